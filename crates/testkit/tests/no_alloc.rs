//! A binary that does not set the counting allocator.

#[test]
#[should_panic(expected = "is not the #[global_allocator]")]
fn counting_without_the_allocator_is_refused() {
    fullbore_testkit::allocations(|| ());
}
