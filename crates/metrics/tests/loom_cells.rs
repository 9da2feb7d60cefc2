//! Every interleaving of writers, readers and threads that end, with the real code of the cells and loom's atomics.
#![cfg(fullbore_loom)]
#![allow(missing_docs, dead_code, unreachable_pub)]

#[path = "../src/buckets.rs"]
mod buckets;
#[path = "../src/cell.rs"]
mod cell;
#[path = "../src/raw/once_ptr.rs"]
mod once_ptr;
#[path = "../src/shards.rs"]
mod shards;

mod raw {
    pub(crate) use crate::once_ptr;
}

/// What `src/sync.rs` is in a normal build.
mod sync {
    pub(crate) use loom::sync::MutexGuard;
    pub(crate) use loom::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering};
    use std::sync::PoisonError;

    /// loom's mutex with the signature of `parking_lot`'s.
    pub(crate) struct Mutex<T>(loom::sync::Mutex<T>);

    impl<T> Mutex<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(loom::sync::Mutex::new(value))
        }
        pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner)
        }
    }
}

use std::ptr::NonNull;
use std::sync::Arc;

use cell::{CounterCell, HistogramCell, StationCell, Way, read_ways};
use loom::thread;
use shards::{Cell, Shards};
use sync::{AtomicU64, Ordering};

/// A thread's cell, as `raw::Handle` hands it out: from its first record to its end.
struct Thread<C: Cell> {
    shards: Arc<Shards<C, ()>>,
    cell: NonNull<C>,
}

impl<C: Cell> Thread<C> {
    fn begin(shards: &Arc<Shards<C, ()>>) -> Self {
        Self { shards: Arc::clone(shards), cell: shards.register() }
    }

    fn write(&self, write: impl Fn(&C)) {
        // SAFETY: registered in `begin` and not yet retired; the `Arc` keeps the shards.
        write(unsafe { self.cell.as_ref() });
    }
}

impl<C: Cell> Drop for Thread<C> {
    fn drop(&mut self) {
        self.shards.retire_cell(self.cell);
    }
}

/// A cell is many atomics, and to give one back reads them all.
fn model(f: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.max_branches = 20_000;
    builder.check(f);
}

fn new<C: Cell>() -> Arc<Shards<C, ()>> {
    Arc::new(Shards::new(()))
}

fn total(shards: &Shards<CounterCell, ()>) -> u64 {
    shards.read(|cells| cells.iter().map(|cell| cell.count.get()).sum())
}

#[test]
fn a_thread_that_ends_loses_nothing_and_counts_nothing_twice() {
    model(|| {
        let shards = new::<CounterCell>();
        let writers: Vec<_> = [1, 10]
            .into_iter()
            .map(|n| {
                let shards = Arc::clone(&shards);
                thread::spawn(move || {
                    let thread = Thread::begin(&shards);
                    thread.write(|cell| cell.count.add(n));
                    thread.write(|cell| cell.count.add(n));
                    drop(thread);
                    // In its own teardown.
                    shards.write_as_ended(&|cell| cell.count.add(100 * n));
                })
            })
            .collect();
        let first = total(&shards);
        let second = total(&shards);
        assert!(first <= second && second <= 1122, "{first}, then {second}");
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        assert_eq!(total(&shards), 1122);
    });
}

/// An item arrives on one thread, is served on another, and both threads end.
#[test]
fn no_count_exceeds_its_cause() {
    model(|| {
        let shards = new::<StationCell>();
        let handed_over = Arc::new(AtomicU64::new(0));
        let arriving = {
            let (shards, handed_over) = (Arc::clone(&shards), Arc::clone(&handed_over));
            thread::spawn(move || {
                let thread = Thread::begin(&shards);
                thread.write(|cell| cell.count(Way::Arrived, 1));
                handed_over.store(1, Ordering::Release);
            })
        };
        let serving = {
            let shards = Arc::clone(&shards);
            thread::spawn(move || {
                let thread = Thread::begin(&shards);
                if handed_over.load(Ordering::Acquire) == 1 {
                    thread.write(|cell| cell.count(Way::Begun, 1));
                    thread.write(|cell| cell.count(Way::Served, 1));
                }
            })
        };
        let seen = shards.read(|cells| read_ways(|| cells.iter()));
        let count = |way: Way| seen[way as usize];
        assert!(count(Way::Served) <= count(Way::Begun) && count(Way::Begun) <= count(Way::Arrived), "{seen:?}");
        arriving.join().unwrap();
        serving.join().unwrap();
    });
}

/// The samples in the buckets, with sum and extremes read after them.
fn read(shards: &Shards<HistogramCell, ()>) -> (u64, u128, u64, u64) {
    shards.read(|cells| {
        let mut counts = [0; buckets::PAGE];
        for cell in cells.iter() {
            let present = cell.present();
            (0..buckets::PAGES).filter(|page| present >> page & 1 == 1).for_each(|page| {
                cell.add_page_to(page, &mut counts);
            });
        }
        let count = counts.iter().sum();
        let totals = cells.iter().map(HistogramCell::sum_min_max);
        let (sum, min, max) =
            totals.fold((0, u64::MAX, 0), |(sum, min, max), cell| (sum + cell.0, min.min(cell.1), max.max(cell.2)));
        (count, sum, min, max)
    })
}

#[test]
fn whoever_sees_a_sample_sees_it_in_the_sum_and_between_the_extremes() {
    model(|| {
        let shards = new::<HistogramCell>();
        let writer = {
            let shards = Arc::clone(&shards);
            thread::spawn(move || {
                let thread = Thread::begin(&shards);
                thread.write(|cell| cell.record(5));
                thread.write(|cell| cell.record(3));
            })
        };
        let (count, sum, min, max) = read(&shards);
        assert!(sum >= [0, 5, 8][count as usize], "{count} samples, sum {sum}");
        if count > 0 {
            assert!(min <= if count == 2 { 3 } else { 5 } && max >= 5, "{count} samples between {min} and {max}");
        }
        writer.join().unwrap();
        assert_eq!(read(&shards), (2, 8, 3, 5));
    });
}

/// The bucket goes over 2^31, whose two words are written one after the other.
#[test]
fn a_reader_cannot_catch_a_carry_half_done() {
    model(|| {
        const BEGIN: u64 = (1 << 31) - 1;
        let shards = new::<HistogramCell>();
        let thread = Thread::begin(&shards);
        thread.write(|cell| cell.begin_with(1, BEGIN));
        // Handed to another thread before anybody else uses it; loom's `spawn` orders the two.
        let cell = Carried(thread);
        let writer = thread::spawn(move || {
            let cell = cell;
            (0..3).for_each(|_| cell.0.write(|cell| cell.record(1)));
        });
        let first = read(&shards).0;
        let second = read(&shards).0;
        assert!(BEGIN <= first && first <= second && second <= BEGIN + 3, "{first}, then {second}");
        writer.join().unwrap();
        assert_eq!(read(&shards).0, BEGIN + 3);
    });
}

struct Carried(Thread<HistogramCell>);

// SAFETY: the cell has one writer at a time, and loom's `spawn` orders the two.
unsafe impl Send for Carried {}

#[test]
fn a_sum_that_goes_over_its_word_only_grows() {
    model(|| {
        const BIG: u64 = (1 << 63) - 1;
        let shards = new::<HistogramCell>();
        let writer = {
            let shards = Arc::clone(&shards);
            thread::spawn(move || {
                let thread = Thread::begin(&shards);
                (0..3).for_each(|_| thread.write(|cell| cell.record(BIG)));
            })
        };
        let first = read(&shards).1;
        let second = read(&shards).1;
        assert!(first <= second && second <= 3 * u128::from(BIG), "{first}, then {second}");
        writer.join().unwrap();
        assert_eq!(read(&shards).1, 3 * u128::from(BIG));
    });
}
