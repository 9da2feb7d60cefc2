//! Counts what a thread allocates.
//!
//! The only unsafe code of the crate. Its invariant: every call is passed on to [`System`] unchanged and its result
//! returned unchanged, so what holds for `System` holds here. Counting in between neither allocates nor unwinds: the
//! counters are `Cell`s in thread-local storage that needs no initialisation and no destructor.

#![expect(unsafe_code, reason = "a global allocator is an unsafe trait; see the invariant above")]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    hint::black_box,
};

thread_local! {
    static COUNTED: Cell<Allocations> = const { Cell::new(Allocations { count: 0, bytes: 0, freed: 0 }) };
}

/// A global allocator that counts the allocations of each thread for itself and otherwise is the system's.
///
/// ```standalone_crate
/// use fullbore_testkit::{CountingAlloc, allocations};
///
/// #[global_allocator]
/// static ALLOC: CountingAlloc = CountingAlloc;
///
/// assert_eq!(allocations(|| Box::new(1)), 1);
/// assert_eq!(allocations(|| 1 + 1), 0);
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct CountingAlloc;

/// What the current thread allocated and freed during [`measure`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Allocations {
    /// Allocations; growing or shrinking one counts as another.
    pub count: u64,
    /// Bytes asked for by these.
    pub bytes: u64,
    /// Bytes given back, whichever thread had asked for them.
    pub freed: u64,
}

impl Allocations {
    /// Bytes asked for and not given back: the memory at rest of what was built. Negative if more was freed.
    #[must_use]
    pub fn net_bytes(&self) -> i64 {
        self.bytes.wrapping_sub(self.freed).cast_signed()
    }
}

/// How many allocations `work` makes on the current thread. Its result is dropped uncounted.
///
/// # Panics
/// See [`measure`].
pub fn allocations<R>(work: impl FnOnce() -> R) -> u64 {
    measure(work).1.count
}

/// Runs `work` and returns its result and what it allocated and freed on the current thread.
///
/// # Panics
/// If the test binary has not set [`CountingAlloc`] as its `#[global_allocator]`: every count would be zero, and every
/// test that wants zero would pass. Also if `work` panics.
pub fn measure<R>(work: impl FnOnce() -> R) -> (R, Allocations) {
    let before = COUNTED.get();
    drop(black_box(Box::new(0_u8)));
    let start = COUNTED.get();
    assert!(
        start.count > before.count,
        "fullbore_testkit::CountingAlloc is not the #[global_allocator] of this binary"
    );
    let result = work();
    let end = COUNTED.get();
    let counted =
        Allocations { count: end.count - start.count, bytes: end.bytes - start.bytes, freed: end.freed - start.freed };
    (result, counted)
}

/// What the current thread has allocated and freed so far, for work that does not come back to whoever counts: the
/// difference of two is what was allocated between.
///
/// # Panics
/// See [`measure`].
#[must_use]
pub fn allocated_so_far() -> Allocations {
    measure(|| ());
    COUNTED.get()
}

/// Adds to the counters of this thread.
fn note(allocated: Option<usize>, freed: usize) {
    let mut counted = COUNTED.get();
    if let Some(bytes) = allocated {
        counted.count += 1;
        counted.bytes += bytes as u64;
    }
    counted.freed += freed as u64;
    COUNTED.set(counted);
}

// SAFETY: see the invariant at the top: all four methods are `System`'s own, with counting around them.
unsafe impl GlobalAlloc for CountingAlloc {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(Some(layout.size()), 0);
        // SAFETY: the caller keeps the contract of `alloc`, which is the same for `System`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        note(Some(layout.size()), 0);
        // SAFETY: as in `alloc`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        note(None, layout.size());
        // SAFETY: `block` came from one of these methods, so from `System`, with this layout.
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        note(Some(new_size), layout.size());
        // SAFETY: as in `dealloc`; the caller keeps the contract for `new_size`.
        unsafe { System.realloc(block, layout, new_size) }
    }
}
