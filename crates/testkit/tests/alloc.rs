//! The counting allocator, as a test binary uses it.

use std::{hint::black_box, thread};

use fullbore_testkit::{CountingAlloc, allocations, measure};

#[global_allocator]
static ALLOC: CountingAlloc = CountingAlloc;

#[test]
fn allocations_are_counted_one_by_one() {
    assert_eq!(allocations(|| ()), 0);
    assert_eq!(allocations(|| black_box(Box::new(1_u64))), 1);
    assert_eq!(allocations(|| black_box([Box::new(1_u64), Box::new(2)])), 2);
    assert_eq!(allocations(|| black_box(vec![0_u8; 100])), 1, "zeroed memory too");
    let grown = allocations(|| {
        let mut list = Vec::with_capacity(1);
        list.push(1_u64);
        list.reserve_exact(1_000);
        black_box(list)
    });
    assert_eq!(grown, 2, "growing counts as another");
}

#[test]
fn bytes_at_rest_are_what_was_not_given_back() {
    let (kept, counted) = measure(|| {
        drop(black_box(vec![0_u8; 500]));
        let mut list = Vec::<u8>::with_capacity(10);
        list.reserve_exact(1_000);
        black_box(list)
    });
    assert_eq!(counted.net_bytes(), i64::try_from(kept.capacity()).unwrap());
    assert_eq!(counted.count, 3);
    let ((), counted) = measure(|| drop(kept));
    assert_eq!((counted.count, counted.bytes, counted.freed), (0, 0, 1_000));
    assert_eq!(counted.net_bytes(), -1_000);
}

#[test]
fn other_threads_are_not_counted() {
    let (start, started) = std::sync::mpsc::sync_channel::<()>(0);
    let (done, finished) = std::sync::mpsc::sync_channel::<()>(0);
    let other = thread::spawn(move || {
        started.recv().unwrap();
        let counted = allocations(|| (0..1_000).map(|n| black_box(Box::new(n))).for_each(drop));
        done.send(()).unwrap();
        counted
    });
    let mine = allocations(|| {
        start.send(()).unwrap();
        finished.recv().unwrap();
    });
    assert_eq!(other.join().unwrap(), 1_000);
    assert!(mine < 1_000, "{mine}: only what waiting itself allocates");
}
