//! Many senders, each with a lane of its own: none is forgotten, and what happens between their lanes.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use common::{Gate, NEVER, blow_up};
use fullbore_batch::{Batch, Batcher};
use fullbore_core::{Failure, Overflow, PausedClock};

/// So large that a lane holds 16 of them, far fewer than there are places.
struct Large([u8; 4096]);

#[test]
fn a_sender_with_much_does_not_keep_out_one_with_little() {
    const BATCH: usize = 10;
    let gate = Gate::new();
    let entry = gate.entry();
    let batcher = Batcher::builder()
        .max_items(BATCH)
        .capacity(200)
        .build(move |batch: Batch<Large>| entry.pass(batch.iter().any(|item| item.0[0] == 7)))
        .unwrap();
    let send = |n| (0..n).for_each(|_| batcher.send(Large([0; 4096])).unwrap());
    send(20);
    assert!(!gate.wait());
    thread::scope(|scope| {
        scope.spawn(|| batcher.send(Large([7; 4096])).unwrap());
    });
    send(150);
    gate.open(20);
    let after = (1..).find(|_| gate.wait()).unwrap();
    // 20 were before it, and at most two lanes full of 16 came in before anybody looked at its lane.
    assert!(after <= (20 + 2 * 16) / BATCH + 1, "{after} batches");
    batcher.close().unwrap();
}

#[test]
fn the_oldest_is_displaced_whichever_lane_it_is_in() {
    let clock = PausedClock::new();
    let gate = Gate::new();
    let entry = gate.entry();
    let lost = Arc::new(Mutex::new(Vec::new()));
    let letters = Arc::clone(&lost);
    let batcher = Batcher::builder()
        .max_items(1)
        .capacity(5)
        .linger(NEVER)
        .overflow(Overflow::DropOldest)
        .clock(&clock)
        .dead_letter(move |item, _| letters.lock().unwrap().push(item))
        .build(move |batch: Batch<&str>| entry.pass(batch[0]))
        .unwrap();
    // This thread's lane is the first one.
    batcher.send("in process").unwrap();
    gate.wait();
    let old = ["old", "older than the new", "also old"];
    thread::scope(|scope| {
        scope.spawn(|| old.into_iter().for_each(|item| batcher.send(item).unwrap()));
    });
    clock.advance(Duration::from_secs(60));
    ["new", "newer", "newest"].into_iter().for_each(|item| batcher.send(item).unwrap());
    assert_eq!(*lost.lock().unwrap(), old[..2]);
    gate.open(5);
    batcher.close().unwrap();
    assert_eq!([(); 4].map(|()| gate.wait()), ["also old", "new", "newer", "newest"]);
}

#[test]
fn a_panic_of_the_hook_costs_no_other_displaced_item_its_letter() {
    let gate = Gate::new();
    let entry = gate.entry();
    let letters = Arc::new(Mutex::new(Vec::new()));
    let written = Arc::clone(&letters);
    let batcher = Batcher::builder()
        .max_weight(10)
        .capacity_weight(20)
        .weigher(|item: &u64| *item)
        .linger(NEVER)
        .overflow(Overflow::DropOldest)
        .dead_letter(move |item, _| {
            written.lock().unwrap().push(item);
            if item == 1 {
                blow_up();
            }
        })
        .build(move |batch: Batch<u64>| entry.pass(batch.len()))
        .unwrap();
    batcher.send(10).unwrap();
    gate.wait();
    [1, 2, 3].into_iter().for_each(|item| batcher.send(item).unwrap());
    assert!(catch_unwind(AssertUnwindSafe(|| batcher.send(9))).is_err(), "the hook's panic is the sender's");
    assert_eq!(*letters.lock().unwrap(), [1, 2, 3], "10 are in process, and 9 have room beside nothing that waits");
    gate.open(2);
    batcher.close().unwrap();
    let seen = batcher.station().snapshot();
    assert!(seen.balanced() && seen.waiting() == 0, "{seen:?}");
}

/// An error of the user's whose destructor panics, dropped on the batcher's thread between two attempts.
#[derive(Debug)]
struct Spiteful(AtomicBool);

impl std::fmt::Display for Spiteful {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("spiteful")
    }
}
impl std::error::Error for Spiteful {}
impl Drop for Spiteful {
    fn drop(&mut self) {
        if self.0.load(Ordering::SeqCst) && !thread::panicking() {
            blow_up();
        }
    }
}

#[test]
fn a_destructor_that_panics_between_two_attempts_costs_its_batch_only() {
    let calls = AtomicUsize::new(0);
    let batcher = Batcher::builder()
        .max_items(1)
        .max_attempts(3)
        .backoff(Duration::ZERO, Duration::ZERO)
        .build_by_ref(move |items: &[u32]| {
            if items[0] == 0 && calls.fetch_add(1, Ordering::SeqCst) < 2 {
                return Err(Spiteful(AtomicBool::new(true)));
            }
            Ok(items.to_vec())
        })
        .unwrap();
    let first = batcher.submit(0).unwrap();
    let second = batcher.submit(1).unwrap();
    assert!(matches!(first.wait().unwrap_err(), Failure::Dropped), "nobody knows what came of it");
    assert_eq!(second.wait().unwrap(), 1, "the thread lives on");
    batcher.flush().unwrap();
    batcher.close().unwrap();
    let seen = batcher.station().snapshot();
    assert_eq!((seen.served, seen.failed), (1, 1));
    assert!(seen.balanced() && seen.in_service() == 0);
}

#[test]
fn thousands_of_threads_that_send_once() {
    let sum = Arc::new(AtomicUsize::new(0));
    let added = Arc::clone(&sum);
    let batcher = Batcher::builder()
        .max_items(64)
        .build(move |batch: Batch<usize>| {
            added.fetch_add(batch.iter().sum(), Ordering::SeqCst);
        })
        .unwrap();
    for round in 0..40 {
        thread::scope(|scope| {
            for n in 0..50 {
                let handle = batcher.handle();
                scope.spawn(move || handle.send(round * 50 + n).unwrap());
            }
        });
    }
    batcher.flush().unwrap();
    assert_eq!(sum.load(Ordering::SeqCst), 2000 * 1999 / 2);
    assert_eq!(batcher.station().counts().arrivals, 2000);
    batcher.close().unwrap();
}

/// A lane belongs to a thread; a batcher that ends takes its lanes along, and the thread goes on with others.
#[test]
fn a_thread_that_sends_to_many_batchers_one_after_the_other() {
    for n in 0..300 {
        let batcher = Batcher::builder().build(|_: Batch<Vec<u32>>| ()).unwrap();
        batcher.send(vec![n]).unwrap();
        drop(batcher);
    }
}

/// What a thread sends from the destructor of a thread-local comes in, too.
#[test]
fn a_send_from_the_end_of_a_thread() {
    struct Last(Option<fullbore_batch::BatchHandle<u32, ()>>);
    impl Drop for Last {
        fn drop(&mut self) {
            self.0.take().unwrap().send(2).unwrap();
        }
    }
    thread_local!(static LAST: std::cell::RefCell<Option<Last>> = const { std::cell::RefCell::new(None) });
    let sum = Arc::new(AtomicUsize::new(0));
    let added = Arc::clone(&sum);
    let batcher = Batcher::builder()
        .build(move |batch: Batch<u32>| {
            added.fetch_add(batch.iter().sum::<u32>() as usize, Ordering::SeqCst);
        })
        .unwrap();
    for before in [false, true] {
        let handle = batcher.handle();
        thread::spawn(move || {
            if before {
                handle.send(1).unwrap();
            }
            LAST.with(|last| *last.borrow_mut() = Some(Last(Some(handle.clone()))));
            handle.send(1).unwrap();
        })
        .join()
        .unwrap();
    }
    batcher.close().unwrap();
    assert_eq!(sum.load(Ordering::SeqCst), 7);
}
