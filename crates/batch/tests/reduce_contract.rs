//! The rules of the house (C1-C11) for reducing batches. The names are the same in every crate.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::collections::{BTreeSet, HashMap};
use std::hash::{Hash, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use common::{Gate, NEVER, blow_up};
use fullbore_batch::{Batch, Outcomes, ReducingBatcher, ReducingBuilder, ReducingConfig};
use fullbore_core::{BuildError, Clock, EnvReader, Failure, OnDrop, Overflow, PausedClock, SendError, Shutdown, Sink};
use fullbore_metrics::{Station, StationKind};

type Pair = (u8, u32);

/// Sums that never linger out, and a process function that waits at a gate.
fn gated(clock: &PausedClock, gate: &Gate, setup: impl Fn(Sums) -> Sums) -> ReducingBatcher<u8, u32> {
    let entry = gate.entry();
    setup(ReducingBatcher::sum().linger(NEVER).clock(clock)).build(move |_: Batch<Pair>| entry.pass(())).unwrap()
}

type Sums = ReducingBuilder<u8, u32>;

#[test]
fn c1_every_way_out_is_counted() {
    let clock = PausedClock::new();
    let gate = Gate::new();
    let entry = gate.entry();
    let batcher = ReducingBatcher::sum()
        .max_keys(2)
        .linger(NEVER)
        .capacity(4)
        .overflow(Overflow::DropOldest)
        .clock(&clock)
        .build(move |batch: Batch<Pair>| {
            entry.pass(());
            batch.into_iter().map(|(key, _)| if key == 0 { Err("zero") } else { Ok(()) }).collect::<Vec<_>>()
        })
        .unwrap();
    batcher.send((0, 1)).unwrap();
    batcher.send((0, 1)).unwrap(); // merged
    batcher.send((1, 1)).unwrap();
    gate.wait(); // both keys are in the process function
    batcher.send((2, 1)).unwrap();
    batcher.send((3, 1)).unwrap();
    batcher.send((3, 1)).unwrap(); // merged, without a place of its own
    batcher.send((4, 1)).unwrap(); // displaces key 2
    let left = batcher.close_within(Duration::ZERO).unwrap_err();
    assert_eq!((left.items, left.in_flight), (vec![(3, 2), (4, 1)], 2));
    assert!(batcher.send((5, 1)).unwrap_err().is_closed());
    let seen = batcher.station().snapshot();
    assert_eq!((seen.waiting(), seen.in_service()), (0, 2));
    gate.open(1);
    batcher.close().unwrap();
    let seen = batcher.station().snapshot();
    assert!(seen.balanced(), "{seen:?}");
    assert_eq!((seen.offered(), seen.refused, seen.arrivals), (8, 1, 7));
    assert_eq!((seen.served, seen.failed, seen.merged, seen.dropped, seen.returned), (1, 1, 2, 1, 2));
    assert_eq!((seen.waiting(), seen.in_service()), (0, 0));
}

#[test]
fn c1_failed_pairs_are_dead_letters_or_tried_again_with_what_came_since() {
    let clock = PausedClock::new();
    let (letters, dead) = mpsc::channel();
    let (begins, began) = mpsc::channel();
    let gate = Gate::new();
    let entry = gate.entry();
    let batcher = ReducingBatcher::builder(|old: &mut String, new: String| old.push_str(&new))
        .linger(Duration::from_millis(10))
        .keep_on_error(2, Duration::from_secs(1))
        .dead_letter(move |pair: (u8, String), failure| letters.send((pair, failure.to_string())).unwrap())
        .clock(&clock)
        .build(move |batch: Batch<(u8, String)>| {
            begins.send(batch.to_vec()).unwrap();
            entry.pass(());
            let outcome = |pair: &(u8, String)| if pair.0 == 0 { Err(Failure::error("down")) } else { Ok(()) };
            Outcomes::each(batch.iter().map(outcome).collect())
        })
        .unwrap();
    let pair = |key, text: &str| (key, text.to_owned());
    batcher.send(pair(1, "x")).unwrap();
    batcher.send(pair(0, "a")).unwrap();
    clock.wait_for_waiters(1);
    clock.advance(Duration::from_millis(10));
    assert_eq!(began.recv().unwrap(), [pair(1, "x"), pair(0, "a")]);
    batcher.send(pair(2, "y")).unwrap();
    batcher.send(pair(0, "b")).unwrap(); // newer than what fails
    gate.open(1);
    clock.wait_for_waiters(1); // rests
    assert_eq!(clock.timers(), 1);
    let seen = batcher.station().snapshot();
    assert_eq!((seen.served, seen.retried, seen.waiting()), (1, 1, 3 - seen.merged));
    batcher.send(pair(0, "c")).unwrap();
    clock.advance(Duration::from_millis(999));
    clock.wait_for_waiters(1);
    assert!(began.try_recv().is_err(), "not before the pause is over");
    clock.advance(Duration::from_millis(1));
    assert_eq!(began.recv().unwrap(), [pair(0, "abc"), pair(2, "y")]);
    gate.open(1);
    batcher.flush().unwrap();
    assert_eq!(dead.try_recv().unwrap(), (pair(0, "abc"), "down".to_owned()));
    let seen = batcher.station().snapshot();
    assert!(seen.balanced(), "{seen:?}");
    assert_eq!((seen.arrivals, seen.served, seen.failed, seen.merged, seen.retried), (5, 2, 1, 2, 1));
}

#[test]
fn c2_capacity_counts_pairs_and_an_update_of_a_key_that_waits_needs_no_place() {
    let clock = PausedClock::new();
    let gate = Gate::new();
    let batcher = gated(&clock, &gate, |sums| sums.max_keys(2).capacity(4));
    batcher.send((1, 1)).unwrap();
    batcher.send((2, 1)).unwrap();
    gate.wait();
    batcher.send((1, 1)).unwrap();
    batcher.send((3, 1)).unwrap();
    for _ in 0..100 {
        batcher.try_send((3, 1)).unwrap(); // merging goes on while the process function is busy
    }
    assert!(batcher.try_send((4, 1)).unwrap_err().is_full());
    thread::scope(|scope| {
        // The default waits for room.
        let blocked = scope.spawn(|| batcher.send((4, 1)));
        clock.wait_for_waiters(1);
        gate.open(9);
        blocked.join().unwrap().unwrap();
    });
    batcher.close().unwrap();
    let seen = batcher.station().snapshot();
    assert_eq!((seen.served, seen.merged), (5, 100));
}

#[test]
fn c2_overflow_says_what_happens_when_it_is_full() {
    let full = |overflow: Overflow| {
        let clock = PausedClock::new();
        let (letters, dead) = mpsc::channel();
        let gate = Gate::new();
        let batcher = gated(&clock, &gate, |sums| {
            let letters = letters.clone();
            sums.max_keys(1).capacity(2).overflow(overflow).dead_letter(move |pair, failure| {
                letters.send((pair, failure.to_string())).unwrap();
            })
        });
        batcher.send((1, 1)).unwrap();
        gate.wait();
        batcher.send((2, 1)).unwrap();
        batcher.send((2, 1)).unwrap();
        let outcome = batcher.send((3, 1));
        gate.open(3);
        batcher.close().unwrap();
        assert!(batcher.station().snapshot().balanced());
        (outcome, dead.try_iter().collect::<Vec<_>>())
    };
    let (refused, dead) = full(Overflow::Reject);
    assert!(refused.unwrap_err().is_full() && dead.is_empty());
    let (refused, _) = full(Overflow::BlockFor(Duration::ZERO));
    assert!(refused.unwrap_err().is_timeout());
    let (accepted, dead) = full(Overflow::DropOldest);
    accepted.unwrap();
    assert_eq!(dead, [((2, 2), Failure::Dropped.to_string())], "with all that was merged into it");
}

#[test]
fn c2_with_everything_in_process_the_newcomer_is_the_oldest() {
    let clock = PausedClock::new();
    let gate = Gate::new();
    let batcher = gated(&clock, &gate, |sums| sums.max_keys(1).capacity(1).overflow(Overflow::DropOldest));
    batcher.send((1, 1)).unwrap();
    gate.wait();
    batcher.try_send((1, 1)).unwrap();
    assert_eq!(batcher.station().snapshot().dropped, 1);
    gate.open(1);
}

#[test]
fn c3_every_wait_has_a_deadline() {
    let clock = PausedClock::new();
    let gate = Gate::new();
    let batcher = gated(&clock, &gate, |sums| sums.max_keys(1).capacity(1));
    batcher.send((0, 1)).unwrap();
    gate.wait();
    let soon = clock.now() + Duration::from_secs(5);
    let timed_out = |error: SendError<Pair>| error.is_timeout() && error.into_inner() == (7, 1);
    thread::scope(|scope| {
        let by_default = scope.spawn(|| batcher.send((7, 1)).unwrap_err());
        clock.wait_for_waiters(1);
        let send = scope.spawn(|| batcher.send_deadline((7, 1), soon).unwrap_err());
        let sink = scope.spawn(|| Sink::send_deadline(&batcher, (7, 1), Some(soon)).unwrap_err());
        let flush = scope.spawn(|| batcher.flush_within(Duration::from_secs(5)).unwrap_err());
        clock.wait_for_waiters(4);
        clock.advance(Duration::from_secs(5));
        assert!(timed_out(send.join().unwrap()));
        assert!(timed_out(sink.join().unwrap()));
        let flush = flush.join().unwrap();
        assert!(flush.is_timeout());
        assert_eq!((flush.waiting(), flush.in_flight()), (0, 1));
        clock.advance(Duration::from_secs(25));
        assert!(timed_out(by_default.join().unwrap()));
    });
    gate.open(1);
    assert_eq!(batcher.station().snapshot().refused, 3);
}

#[test]
fn c3_too_far_away_means_never() {
    let clock = PausedClock::new();
    let batcher = ReducingBatcher::sum()
        .max_keys(2)
        .linger(Duration::MAX)
        .overflow(Overflow::BlockFor(Duration::MAX))
        .on_drop(OnDrop::Drain(Duration::MAX))
        .clock(&clock)
        .build(|_: Batch<Pair>| ())
        .unwrap();
    batcher.send((1, 1)).unwrap();
    clock.wait_for_waiters(1);
    clock.advance(Duration::from_secs(3600 * 24 * 365 * 100));
    assert_eq!(batcher.station().snapshot().begun, 0);
    batcher.send((2, 1)).unwrap();
    batcher.flush_within(Duration::MAX).unwrap();
    batcher.close_within(Duration::MAX).unwrap();
    assert_eq!(batcher.station().snapshot().served, 2);
}

#[test]
fn c4_a_panic_of_the_process_function_fails_its_batch_and_nothing_else() {
    let (letters, dead) = mpsc::channel();
    let batcher = ReducingBatcher::sum()
        .max_keys(1)
        .dead_letter(move |pair: Pair, failure| letters.send((pair, failure.is_panic())).unwrap())
        .build(|batch: Batch<Pair>| {
            if batch[0].0 == 13 {
                blow_up();
            }
        })
        .unwrap();
    batcher.send((13, 1)).unwrap();
    batcher.flush().unwrap();
    assert_eq!(dead.try_recv().unwrap(), ((13, 1), true));
    batcher.send((14, 1)).unwrap();
    batcher.flush().unwrap();
    let seen = batcher.station().snapshot();
    assert_eq!((seen.served, seen.failed), (1, 1), "the thread lives on");
}

#[test]
fn c4_a_panic_of_merge_costs_its_pair_and_nothing_else() {
    let (letters, dead) = mpsc::channel();
    let (done, pairs) = mpsc::channel();
    let batcher = ReducingBatcher::builder(|old: &mut u32, new| {
        *old += 100; // half done
        if new == 13 {
            blow_up();
        }
        *old -= 100;
        *old += new;
    })
    .linger(NEVER)
    .dead_letter(move |pair: Pair, failure| letters.send((pair, failure.is_panic())).unwrap())
    .build(move |batch: Batch<Pair>| done.send(batch.into_vec()))
    .unwrap();
    for (key, n) in [(0, 1), (1, 1), (2, 1), (0, 13), (3, 1), (0, 7), (1, 1), (3, 1)] {
        batcher.send((key, n)).unwrap();
    }
    batcher.flush().unwrap();
    assert_eq!(dead.try_iter().collect::<Vec<_>>(), [((0, 101), true)], "as the panic left it");
    let mut pairs: Vec<_> = pairs.try_iter().flatten().collect();
    pairs.sort_unstable();
    assert_eq!(pairs, [(0, 7), (1, 2), (2, 1), (3, 2)]);
    let seen = batcher.station().snapshot();
    assert!(seen.balanced());
    assert_eq!((seen.arrivals, seen.served, seen.failed, seen.merged), (8, 4, 2, 2));
}

/// Panics wherever a key can.
#[derive(Clone, Debug)]
struct Bad(u8, Arc<Mutex<&'static str>>);

impl Bad {
    fn strike(&self, at: &str) {
        if self.0 == 13 && *self.1.lock().unwrap() == at {
            blow_up();
        }
    }
}

impl PartialEq for Bad {
    fn eq(&self, other: &Self) -> bool {
        self.strike("eq");
        self.0 == other.0
    }
}

impl Eq for Bad {}

impl Hash for Bad {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.strike("hash");
        self.0.hash(state);
    }
}

impl Drop for Bad {
    fn drop(&mut self) {
        self.strike("drop");
    }
}

#[test]
fn c4_panics_in_keys_cost_their_update_and_nothing_else() {
    for at in ["hash", "eq", "drop"] {
        let when = Arc::new(Mutex::new(""));
        let calm = Arc::clone(&when);
        let (letters, dead) = mpsc::channel();
        let batcher = ReducingBatcher::sum()
            .linger(NEVER)
            .dead_letter(move |pair: (Bad, u32), failure| {
                *calm.lock().unwrap() = "";
                letters.send((pair.0.0, failure.is_panic())).unwrap();
            })
            .build(|batch: Batch<(Bad, u32)>| std::mem::forget(batch))
            .unwrap();
        let send = |key| batcher.send((Bad(key, Arc::clone(&when)), 1)).unwrap();
        send(13);
        send(1);
        batcher.flush().unwrap();
        send(13);
        send(13);
        *when.lock().unwrap() = at;
        send(1);
        batcher.flush().unwrap();
        *when.lock().unwrap() = "";
        let letters: Vec<_> = dead.try_iter().collect();
        // Each is hashed; the first one meets none that it is compared with.
        let expected = ["drop", "eq", "hash"].iter().position(|known| *known == at).unwrap();
        assert_eq!(letters, vec![(13, true); expected], "{at}");
        batcher.close().unwrap();
        let seen = batcher.station().snapshot();
        assert!(seen.balanced());
        assert_eq!(seen.arrivals, 5);
        assert_eq!(seen.failed, letters.len() as u64, "{at}");
    }
}

#[test]
fn c4_merge_runs_without_a_lock_and_cannot_wait_for_its_own_batcher() {
    let clock = PausedClock::new();
    type Seat = Arc<Mutex<Option<Arc<ReducingBatcher<u8, u32>>>>>;
    let seat = Seat::default();
    let inside = Arc::clone(&seat);
    let (said, heard) = mpsc::channel();
    let gate = Gate::new();
    let entry = gate.entry();
    let batcher = ReducingBatcher::builder(move |old: &mut u32, new| {
        *old += new;
        let batcher = inside.lock().unwrap().take();
        if let Some(batcher) = batcher {
            assert!(batcher.station().snapshot().arrivals > 0);
            assert!(batcher.flush().unwrap_err().is_own_thread());
            assert!(!batcher.is_closed());
            // All places are taken, and only the end of this very call can make room.
            assert!(batcher.send((9, 1)).unwrap_err().is_full());
            said.send(()).unwrap();
            let left = batcher.close().unwrap_err();
            assert_eq!((left.items.len(), left.abandoned_threads.len()), (0, 0));
            assert_eq!(left.in_flight, 4);
        }
    })
    .max_keys(1)
    .capacity(4)
    .linger(NEVER)
    .overflow(Overflow::Block)
    .clock(&clock)
    .build(move |_: Batch<Pair>| entry.pass(()))
    .unwrap();
    let batcher = Arc::new(batcher);
    batcher.send((1, 1)).unwrap();
    gate.wait();
    batcher.send((2, 1)).unwrap();
    batcher.send((2, 1)).unwrap();
    *seat.lock().unwrap() = Some(Arc::clone(&batcher));
    batcher.send((3, 1)).unwrap(); // the last place: this thread merges
    heard.try_recv().expect("every assertion inside held");
    gate.open(1);
    // What it had in its hands when it closed is given up.
    batcher.close().unwrap();
    let seen = batcher.station().snapshot();
    assert!(seen.balanced());
    assert_eq!((seen.served, seen.merged, seen.dropped, seen.refused), (1, 1, 2, 1));
}

#[test]
fn c4_a_merge_that_is_stuck_holds_up_nobody_beyond_his_deadline() {
    let clock = PausedClock::new();
    let (gate, slow) = (Gate::new(), Gate::new());
    let (entry, slow_entry) = (gate.entry(), slow.entry());
    let armed = Arc::new(AtomicBool::new(true));
    let arms = Arc::clone(&armed);
    let (letters, dead) = mpsc::channel();
    let batcher = ReducingBatcher::builder(move |old: &mut u32, new| {
        if arms.swap(false, Ordering::SeqCst) {
            slow_entry.pass(());
        }
        *old += new;
    })
    .max_keys(1)
    .capacity(5)
    .linger(NEVER)
    .clock(&clock)
    .dead_letter(move |pair: Pair, failure| letters.send((pair, matches!(failure, Failure::Closed))).unwrap())
    .build(move |_: Batch<Pair>| entry.pass(()))
    .unwrap();
    batcher.send((1, 1)).unwrap();
    gate.wait();
    for _ in 0..3 {
        batcher.send((2, 1)).unwrap();
    }
    let soon = clock.now() + Duration::from_secs(5);
    thread::scope(|scope| {
        let merging = scope.spawn(|| batcher.send((3, 1)));
        slow.wait();
        let waits = scope.spawn(|| batcher.send_deadline((4, 1), soon).unwrap_err());
        clock.wait_for_waiters(1);
        assert!(batcher.try_send((4, 1)).unwrap_err().is_full());
        clock.advance(Duration::from_secs(5));
        assert!(waits.join().unwrap().is_timeout());
        let close = scope.spawn(|| batcher.close_within(Duration::ZERO).unwrap_err());
        clock.wait_for_waiters(1);
        clock.advance(Duration::from_millis(100));
        let left = close.join().unwrap();
        assert_eq!((left.items.len(), left.in_flight, left.abandoned_threads.len()), (0, 5, 1));
        slow.open(1);
        merging.join().unwrap().unwrap();
    });
    gate.open(1);
    batcher.close().unwrap();
    assert_eq!(dead.try_iter().collect::<Vec<_>>(), [((2, 3), true), ((3, 1), true)]);
    let seen = batcher.station().snapshot();
    assert!(seen.balanced());
    assert_eq!((seen.served, seen.merged, seen.dropped), (1, 2, 2));
}

/// Panics where user code is least expected.
#[derive(Clone)]
struct Grenade(Arc<AtomicUsize>);

impl Drop for Grenade {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
        blow_up();
    }
}

#[test]
fn c4_panicking_destructors_and_hooks_cost_no_other_pair_anything() {
    let drops = Arc::new(AtomicUsize::new(0));
    let batcher = ReducingBatcher::last_wins()
        .linger(NEVER)
        .dead_letter(|_: (u8, Grenade), _| ())
        .build(|batch: Batch<(u8, Grenade)>| std::mem::forget(batch))
        .unwrap();
    for key in [1, 1, 2, 2, 3] {
        batcher.send((key, Grenade(Arc::clone(&drops)))).unwrap();
    }
    // A replaced value that panics is a panic of `merge`.
    batcher.flush().unwrap();
    let seen = batcher.station().snapshot();
    assert!(seen.balanced());
    assert_eq!((seen.served, seen.failed, seen.merged), (1, 4, 0));

    let (letters, dead) = mpsc::channel();
    let batcher = ReducingBatcher::sum()
        .linger(NEVER)
        .on_drop(OnDrop::Abandon)
        .dead_letter(move |pair: Pair, _| {
            letters.send(pair).unwrap();
            blow_up();
        })
        .build(|_| ())
        .unwrap();
    batcher.send((1, 1)).unwrap();
    batcher.send((2, 1)).unwrap();
    drop(batcher);
    assert_eq!(dead.iter().collect::<Vec<_>>(), [(1, 1), (2, 1)]);
}

#[test]
fn c4_a_panicking_dead_letter_hook_goes_to_the_sender_and_leaves_everything_usable() {
    let clock = PausedClock::new();
    let gate = Gate::new();
    let batcher = gated(&clock, &gate, |sums| {
        sums.max_keys(1).capacity(2).overflow(Overflow::DropOldest).dead_letter(|_, _| blow_up())
    });
    batcher.send((1, 1)).unwrap();
    gate.wait();
    batcher.send((2, 1)).unwrap();
    let caught = catch_unwind(AssertUnwindSafe(|| batcher.send((3, 1))));
    assert!(caught.is_err(), "the caller's panic is resumed");
    gate.open(2);
    batcher.close().unwrap();
    let seen = batcher.station().snapshot();
    assert_eq!((seen.served, seen.dropped), (2, 1));
}

#[test]
fn c4_a_panicking_clone_fails_its_batch_and_the_pairs_are_dead_letters() {
    struct Once(u8);
    impl Clone for Once {
        fn clone(&self) -> Self {
            if self.0 == 13 {
                blow_up();
            }
            Self(self.0)
        }
    }
    let (letters, dead) = mpsc::channel();
    let batcher = ReducingBatcher::last_wins()
        .max_keys(1)
        .dead_letter(move |pair: (u8, Once), failure| letters.send((pair.1.0, failure.is_panic())).unwrap())
        .build(|_: Batch<(u8, Once)>| ())
        .unwrap();
    batcher.send((1, Once(13))).unwrap();
    batcher.send((2, Once(1))).unwrap();
    batcher.flush().unwrap();
    assert_eq!(dead.try_iter().collect::<Vec<_>>(), [(13, true)]);
    let seen = batcher.station().snapshot();
    assert_eq!((seen.served, seen.failed), (1, 1));
}

#[test]
fn c5_flush_waits_for_what_was_before_it_and_ignores_linger() {
    let clock = PausedClock::new();
    let batcher = ReducingBatcher::sum().linger(NEVER).clock(&clock).build(|_: Batch<Pair>| ()).unwrap();
    batcher.flush().unwrap();
    for n in 0..6 {
        batcher.send((n % 3, 1)).unwrap();
    }
    batcher.flush().unwrap();
    let seen = batcher.station().snapshot();
    assert_eq!((seen.served, seen.merged), (3, 3));
    batcher.handle().flush().unwrap();
}

#[test]
fn c5_a_flush_does_not_hurry_what_comes_later() {
    let clock = PausedClock::new();
    let gate = Gate::new();
    let batcher = gated(&clock, &gate, |sums| sums.max_keys(8));
    batcher.send((0, 1)).unwrap();
    thread::scope(|scope| {
        let first = scope.spawn(|| batcher.flush());
        gate.wait();
        batcher.send((0, 1)).unwrap();
        batcher.send((1, 1)).unwrap();
        let second = scope.spawn(|| batcher.flush());
        clock.wait_for_waiters(2);
        batcher.send((0, 1)).unwrap(); // rides along
        batcher.send((2, 1)).unwrap();
        gate.open(1);
        first.join().unwrap().unwrap();
        gate.wait();
        batcher.send((3, 1)).unwrap();
        gate.open(1);
        second.join().unwrap().unwrap();
    });
    clock.wait_for_waiters(1);
    let seen = batcher.station().snapshot();
    assert_eq!((seen.served, seen.waiting()), (4, 1));
    gate.open(1);
}

#[test]
fn c5_close_is_idempotent_and_finishes_accepted_work() {
    let clock = PausedClock::new();
    let (done, results) = mpsc::channel();
    let batcher = ReducingBatcher::sum()
        .max_keys(2)
        .capacity(100)
        .linger(NEVER)
        .clock(&clock)
        .build(move |batch: Batch<Pair>| done.send(batch.into_vec()))
        .unwrap();
    let handle = batcher.handle();
    for key in [0, 1, 2, 2, 2] {
        handle.send((key, 1)).unwrap();
    }
    batcher.close().unwrap();
    batcher.close().unwrap();
    batcher.close_within(Duration::ZERO).unwrap();
    assert!(batcher.is_closed() && handle.is_closed());
    // The process function is gone with the thread: the channel ends.
    assert_eq!(results.iter().flatten().collect::<Vec<_>>(), [(0, 1), (1, 1), (2, 3)]);
    assert_eq!(handle.send((9, 1)).unwrap_err().into_inner(), (9, 1));
    assert!(batcher.flush().is_ok());
    drop(batcher);
    assert!(handle.try_send((9, 1)).unwrap_err().is_closed());
}

#[test]
fn c5_close_wakes_blocked_producers_with_their_item() {
    let clock = PausedClock::new();
    let gate = Gate::new();
    let batcher = gated(&clock, &gate, |sums| sums.max_keys(1).capacity(1));
    batcher.send((1, 1)).unwrap();
    gate.wait();
    thread::scope(|scope| {
        let send = scope.spawn(|| batcher.send((2, 1)).unwrap_err());
        clock.wait_for_waiters(1);
        let left = batcher.close_within(Duration::ZERO).unwrap_err();
        assert_eq!((left.items.len(), left.in_flight), (0, 1));
        assert_eq!(left.abandoned_threads, ["fullbore-batch-reduce-0"]);
        let send = send.join().unwrap();
        assert!(send.is_closed() && send.into_inner() == (2, 1));
    });
    gate.open(1);
    batcher.close().unwrap();
}

#[test]
fn c5_what_a_close_cannot_finish_in_time_comes_back() {
    let clock = PausedClock::new();
    let gate = Gate::new();
    let batcher = gated(&clock, &gate, |sums| sums.name("slow").max_keys(2).capacity(8));
    batcher.send((1, 1)).unwrap();
    batcher.send((2, 1)).unwrap();
    gate.wait();
    for (key, n) in [(3, 1), (4, 1), (3, 1)] {
        batcher.send((key, n)).unwrap();
    }
    thread::scope(|scope| {
        let close = scope.spawn(|| batcher.close_within(Duration::from_secs(5)));
        clock.wait_for_waiters(1);
        clock.advance(Duration::from_secs(5));
        let left = close.join().unwrap().unwrap_err();
        assert_eq!((left.items, left.in_flight), (vec![(3, 1), (4, 1), (3, 1)], 2));
        assert_eq!(left.abandoned_threads, ["fullbore-batch-slow-0"]);
    });
    gate.open(1);
    batcher.close().unwrap();
    let seen = batcher.station().snapshot();
    assert!(seen.balanced());
    assert_eq!((seen.served, seen.returned), (2, 3));
}

#[test]
fn c5_an_idle_batcher_closes_cleanly_without_time() {
    let batcher = ReducingBatcher::sum().build(|_: Batch<Pair>| ()).unwrap();
    batcher.close_within(Duration::ZERO).unwrap();
    let clock = PausedClock::new();
    let batcher = ReducingBatcher::sum().linger(NEVER).clock(&clock).build(|_: Batch<Pair>| ()).unwrap();
    batcher.send((1, 1)).unwrap();
    let left = batcher.close_within(Duration::ZERO).unwrap_err();
    assert_eq!((left.items, left.in_flight, left.abandoned_threads.len()), (vec![(1, 1)], 0, 0));
}

#[test]
fn c5_a_close_does_not_wait_for_the_pause_beyond_its_time() {
    let clock = PausedClock::new();
    let batcher = ReducingBatcher::sum()
        .max_keys(1)
        .keep_on_error(3, Duration::MAX)
        .clock(&clock)
        .build(|_: Batch<Pair>| Err::<(), _>("down"))
        .unwrap();
    batcher.send((1, 1)).unwrap();
    while batcher.station().snapshot().retried == 0 {
        thread::yield_now();
    }
    clock.wait_for_waiters(1);
    assert_eq!(clock.timers(), 0);
    let left = batcher.close_within(Duration::ZERO).unwrap_err();
    assert_eq!((left.items, left.in_flight), (vec![(1, 1)], 0));
    batcher.close().unwrap();
}

#[test]
fn c5_shutdown_closes_it_and_dead_letters_what_is_left() {
    let clock = PausedClock::new();
    let (letters, dead) = mpsc::channel();
    let gate = Gate::new();
    let batcher = gated(&clock, &gate, |sums| {
        let letters = letters.clone();
        sums.name("part")
            .max_keys(1)
            .capacity(9)
            .dead_letter(move |pair, failure| letters.send((pair, failure)).unwrap())
    });
    let shutdown = Shutdown::with_clock(Clock::from(&clock));
    shutdown.register(batcher.closer());
    batcher.send((1, 1)).unwrap();
    gate.wait();
    batcher.send((2, 1)).unwrap();
    let report = shutdown.close_within(Duration::ZERO);
    let (name, left) = &report.parts()[0];
    assert_eq!((name.as_str(), left.items, left.in_flight, left.abandoned_threads.len()), ("part", 1, 1, 1));
    let (pair, failure) = dead.recv().unwrap();
    assert!(pair == (2, 1) && matches!(failure, Failure::Closed));
    gate.open(1);
    batcher.close().unwrap();
    let seen = batcher.station().snapshot();
    assert_eq!((seen.served, seen.dropped, seen.returned), (1, 1, 0));
}

#[test]
fn c5_the_process_function_cannot_wait_for_its_own_batcher() {
    type Seat = Arc<Mutex<Option<Arc<ReducingBatcher<u8, u32>>>>>;
    let clock = PausedClock::new();
    let seat: Seat = Arc::default();
    let inside = Arc::clone(&seat);
    let (done, finished) = mpsc::channel();
    let batcher = ReducingBatcher::sum()
        .max_keys(1)
        .capacity(2)
        .linger(NEVER)
        .overflow(Overflow::Block)
        .clock(&clock)
        .build(move |_: Batch<Pair>| {
            let batcher = inside.lock().unwrap().take();
            if let Some(batcher) = batcher {
                assert!(batcher.flush().unwrap_err().is_own_thread());
                assert!(batcher.flush_within(Duration::from_secs(1)).unwrap_err().is_own_thread());
                // There is one place left; then a send that would block is refused.
                batcher.send((2, 1)).unwrap();
                batcher.send((2, 1)).unwrap();
                assert!(batcher.send((3, 1)).unwrap_err().is_full());
                let left = batcher.close().unwrap_err();
                assert_eq!((left.items, left.in_flight), (vec![(2, 2)], 1));
                assert!(left.abandoned_threads.is_empty());
                done.send(()).unwrap();
            }
        })
        .unwrap();
    let batcher = Arc::new(batcher);
    *seat.lock().unwrap() = Some(Arc::clone(&batcher));
    batcher.send((0, 1)).unwrap();
    batcher.flush().unwrap();
    finished.recv().expect("every assertion inside held");
    batcher.close().unwrap();
    let seen = batcher.station().snapshot();
    assert_eq!((seen.served, seen.returned, seen.refused, seen.merged), (1, 1, 1, 1));
}

#[test]
fn c6_there_is_always_a_station() {
    let clock = PausedClock::new();
    let inside = clock.clone();
    let batcher = ReducingBatcher::sum()
        .name("named")
        .max_keys(4)
        .capacity(40)
        .linger(Duration::from_millis(10))
        .clock(&clock)
        .build(move |_: Batch<Pair>| inside.advance(Duration::from_millis(7)))
        .unwrap();
    let next = Station::new("next");
    batcher.feeds(&next);
    clock.wait_for_waiters(1);
    batcher.send((1, 1)).unwrap();
    clock.wait_for_waiters(1);
    clock.advance(Duration::from_millis(4));
    batcher.send((2, 1)).unwrap();
    clock.wait_for_waiters(1);
    clock.advance(Duration::from_millis(6));
    batcher.flush().unwrap();
    let seen = batcher.handle().station().snapshot();
    assert_eq!((seen.name(), seen.kind(), seen.parallelism(), seen.capacity()), ("named", StationKind::Batch, 1, 40));
    assert_eq!(seen.feeds(), [next.id()]);
    assert_eq!((seen.wait().count(), seen.wait().max()), (1, Some(Duration::from_millis(10))), "from the first update");
    assert_eq!((seen.service().count(), seen.service().max()), (1, Some(Duration::from_millis(7))));
    assert_eq!((seen.served, seen.busy()), (2, Duration::from_millis(7)));
}

#[test]
fn c7_nonsense_is_refused_by_name() {
    let field = |error: BuildError| error.field().map(str::to_owned);
    let build = |builder: Sums| builder.build(|_| ()).unwrap_err();
    let sums = ReducingBatcher::sum;
    assert_eq!(field(build(sums().max_keys(0))).as_deref(), Some("max_keys"));
    let error = build(sums().max_keys(10).capacity(9));
    assert_eq!(error.to_string(), "capacity = 9 is not usable: expected at least max_keys, which is 10");
    assert_eq!(field(build(sums().capacity(0))).as_deref(), Some("capacity"));
    assert_eq!(field(build(sums().name("a\0b"))).as_deref(), Some("name"));
    assert_eq!(field(build(sums().keep_on_error(0, Duration::ZERO))).as_deref(), Some("keep_on_error"));
    // Absurd, but not nonsense.
    let huge = ReducingBatcher::sum().max_keys(usize::MAX).build(|_: Batch<Pair>| ()).unwrap();
    huge.send((1, 1)).unwrap();
    huge.close().unwrap();

    let env = |name: &str, value: &str| {
        ReducingConfig::read(EnvReader::from_vars("APP_", [(name.to_owned().into(), value.to_owned().into())]))
    };
    assert_eq!(env("APP_MAX_KEYS", "7").unwrap().max_keys, 7);
    assert_eq!(env("APP_LINGER", "250ms").unwrap().linger, Duration::from_millis(250));
    assert_eq!(env("APP_CAPACITY", "90000").unwrap().capacity, Some(90_000));
    assert_eq!(env("APP_OVERFLOW", "drop_oldest").unwrap().overflow, Overflow::DropOldest);
    let config = ReducingConfig { on_drop: OnDrop::Abandon, ..ReducingConfig::default() };
    assert_eq!(env("APP_ON_DROP", "abandon").unwrap(), config);
    assert_eq!(env("APP_CAPACITY", "many").unwrap_err().field(), Some("APP_CAPACITY"));
    assert_eq!(env("APP_LINGERS", "7").unwrap_err().field(), Some("APP_LINGERS"));
    assert!(format!("{:?}", sums().config(config)).contains("Abandon"));
}

#[cfg(feature = "serde")]
#[test]
fn c7_a_file_is_read_and_unknown_fields_are_refused() {
    let text = r#"{"max_keys": 5, "linger": "1m 30s", "overflow": "reject", "on_drop": "2s"}"#;
    let config: ReducingConfig = serde_json::from_str(text).unwrap();
    assert_eq!((config.max_keys, config.linger, config.capacity), (5, Duration::from_secs(90), None));
    assert_eq!((config.overflow, config.on_drop), (Overflow::Reject, OnDrop::Drain(Duration::from_secs(2))));
    let again: ReducingConfig = serde_json::from_str(&serde_json::to_string(&config).unwrap()).unwrap();
    assert_eq!(again, config);
    assert!(serde_json::from_str::<ReducingConfig>(r#"{"max_key": 5}"#).unwrap_err().to_string().contains("max_key"));
}

#[test]
fn c8_errors_say_why() {
    // No `T: Debug` is needed for any of them.
    #[derive(PartialEq, Eq, Hash)]
    struct Plain;
    let plain = ReducingBatcher::last_wins().build(|_: Batch<(Plain, Plain)>| ()).unwrap();
    plain.close().unwrap();
    let error = plain.send((Plain, Plain)).unwrap_err();
    assert_eq!((error.to_string().as_str(), error.is_closed()), ("item not accepted: closed", true));
    assert!(error.into_inner() == (Plain, Plain));
    assert!(format!("{plain:?} {:?}", plain.handle()).contains("reduce"));
}

#[test]
fn c8_a_wrong_number_of_results_fails_the_whole_batch() {
    for results in [0, 1, 3] {
        let (letters, dead) = mpsc::channel();
        let batcher = ReducingBatcher::sum()
            .max_keys(2)
            .linger(NEVER)
            .dead_letter(move |_, failure| letters.send(failure).unwrap())
            .build(move |_: Batch<Pair>| (0..results).map(|_| Ok::<_, Failure>(())).collect::<Vec<_>>())
            .unwrap();
        batcher.send((1, 1)).unwrap();
        batcher.send((2, 1)).unwrap();
        batcher.flush().unwrap();
        let failures: Vec<_> = dead.try_iter().collect();
        assert_eq!((failures.len(), batcher.station().snapshot().failed), (2, 2));
        assert!(matches!(failures[0], Failure::Mismatch { expected: 2, got } if got == results));
    }
}

#[test]
fn c9_the_first_in_line_is_handed_the_place_when_it_waited_too_long() {
    let clock = PausedClock::new();
    let gate = Gate::new();
    let batcher = gated(&clock, &gate, |sums| sums.max_keys(1).capacity(1));
    batcher.send((1, 1)).unwrap();
    gate.wait();
    thread::scope(|scope| {
        let waiter = scope.spawn(|| batcher.send((2, 1)).unwrap());
        clock.wait_for_waiters(1);
        clock.advance(fullbore_core::FAIR_AFTER);
        gate.open(1);
        // Nobody can be faster: the place never becomes free. (It may be in the process function by now.)
        waiter.join().unwrap();
        assert!(batcher.try_send((3, 1)).unwrap_err().is_full());
        gate.wait();
        gate.open(1);
    });
}

#[test]
fn c10_idle_costs_nothing() {
    let clock = PausedClock::new();
    let batcher = ReducingBatcher::sum()
        .max_keys(64)
        .linger(Duration::from_millis(10))
        .clock(&clock)
        .build(|_: Batch<Pair>| ())
        .unwrap();
    clock.wait_for_waiters(1);
    assert_eq!(clock.timers(), 0, "nothing there, nothing armed");
    batcher.send((1, 1)).unwrap();
    clock.wait_for_waiters(1);
    assert_eq!(clock.timers(), 1, "the linger of the first update");
    let parks = clock.parks();
    for _ in 0..10_000 {
        batcher.send((1, 1)).unwrap();
    }
    clock.wait_for_waiters(1);
    assert_eq!(clock.parks(), parks, "updates wake nobody: their senders merge them");
    clock.advance(Duration::from_millis(10));
    clock.wait_for_waiters(1);
    assert_eq!(batcher.station().snapshot().served, 1);
    assert_eq!(clock.timers(), 0, "disarmed when empty");
    for key in 0..64 {
        batcher.send((key, 1)).unwrap();
    }
    clock.wait_for_waiters(1);
    assert_eq!(batcher.station().snapshot().served, 65);
    assert_eq!(clock.timers(), 0, "disarmed by a full batch");
}

#[test]
fn a_million_updates_of_a_thousand_keys_make_a_thousand_writes() {
    for threads in [1, 2, 8] {
        let clock = PausedClock::new();
        let (done, written) = mpsc::channel();
        let batcher = ReducingBatcher::sum()
            .linger(Duration::from_millis(100))
            .clock(&clock)
            .build(move |batch: Batch<(u64, u64)>| done.send(batch.into_vec()))
            .unwrap();
        let each = 1_000_000 / threads;
        thread::scope(|scope| {
            for thread in 0..threads {
                let handle = batcher.handle();
                scope.spawn(move || (0..each).for_each(|n| handle.send(((n + thread) % 1_000, 1)).unwrap()));
            }
        });
        clock.wait_for_waiters(1);
        clock.advance(Duration::from_millis(100)); // one linger period
        let batch = written.recv().unwrap();
        assert_eq!(batch.len(), 1_000);
        assert!(batch.iter().all(|(_, sum)| *sum == 1_000));
        batcher.close().unwrap();
        let seen = batcher.station().snapshot();
        assert_eq!((seen.served, seen.merged), (1_000, 999_000));
    }
}

#[test]
fn the_ready_made_ways_to_merge() {
    let (done, written) = mpsc::channel();
    let last =
        ReducingBatcher::last_wins().linger(NEVER).build(move |b: Batch<(u8, &str)>| done.send(b.into_vec())).unwrap();
    for value in ["a", "b", "c"] {
        last.send((1, value)).unwrap();
    }
    last.close().unwrap();
    assert_eq!(written.recv().unwrap(), [(1, "c")]);

    let (done, written) = mpsc::channel();
    let sets = ReducingBatcher::extend()
        .linger(NEVER)
        .build(move |b: Batch<(u8, BTreeSet<u32>)>| done.send(b.into_vec()))
        .unwrap();
    for value in [3, 1, 3, 2] {
        Sink::send(&sets, (1, BTreeSet::from([value]))).unwrap();
    }
    sets.close().unwrap();
    assert_eq!(written.recv().unwrap(), [(1, BTreeSet::from([1, 2, 3]))]);

    let peaks = ReducingBatcher::builder(|peak: &mut f64, seen| *peak = peak.max(seen));
    let (done, written) = mpsc::channel();
    let peaks = peaks.linger(NEVER).build(move |b: Batch<(String, f64)>| done.send(b.into_vec())).unwrap();
    for value in [3.0, 7.0, 5.0] {
        peaks.send(("x".to_owned(), value)).unwrap();
    }
    peaks.close().unwrap();
    let peaks: HashMap<String, f64> = written.recv().unwrap().into_iter().collect();
    assert_eq!(peaks, HashMap::from([("x".to_owned(), 7.0)]));
}

#[cfg(feature = "tracing")]
#[test]
fn c11_displaced_pairs_can_be_followed() {
    let clock = PausedClock::new();
    let gate = Gate::new();
    let batcher =
        gated(&clock, &gate, |sums| sums.name("followed").max_keys(1).capacity(1).overflow(Overflow::DropOldest));
    batcher.send((0, 1)).unwrap();
    gate.wait();
    let events = fullbore_testkit::events::capture(|| {
        for key in 0..3 {
            batcher.send((key, 1)).unwrap();
        }
        batcher.close_within(Duration::ZERO).unwrap_err();
    });
    assert_eq!(events.len(), 2, "rate-limited: {events:?}");
    assert!(events[0].contains("followed") && events[0].contains("drop"), "{events:?}");
    assert!(events[1].contains("followed") && events[1].contains("abandoned"), "{events:?}");
    gate.open(1);
}

#[cfg(feature = "tracing")]
#[test]
fn c11_panics_and_retries_can_be_followed() {
    let events = fullbore_testkit::events::capture_everywhere();
    let batcher = ReducingBatcher::sum()
        .name("fragile")
        .max_keys(1)
        .keep_on_error(2, Duration::ZERO)
        .build(|_: Batch<Pair>| -> () { blow_up() })
        .unwrap();
    batcher.send((1, 1)).unwrap();
    batcher.flush().unwrap();
    let seen: Vec<_> = events().into_iter().filter(|line| line.contains("fragile")).collect();
    assert!(seen.iter().any(|line| line.contains("panicked: on purpose")), "{seen:?}");
    assert!(seen.iter().any(|line| line.contains("retry") && line.contains("1 pairs")), "{seen:?}");
}
