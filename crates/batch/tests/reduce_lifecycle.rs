//! A reducing batcher dropped in every state.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use common::{Gate, NEVER, blow_up};
use fullbore_batch::{Batch, ReducingBatcher, ReducingBuilder};
use fullbore_core::{Failure, OnDrop, Overflow, PausedClock};

type Pair = (u32, u32);

/// Sums of two keys that never linger out, with dead letters.
fn sums(clock: &PausedClock) -> (ReducingBuilder<u32, u32>, mpsc::Receiver<Pair>) {
    let (letters, dead) = mpsc::channel();
    let builder = ReducingBatcher::sum().max_keys(2).linger(NEVER).clock(clock).dead_letter(move |pair, failure| {
        assert!(matches!(failure, Failure::Closed));
        letters.send(pair).unwrap();
    });
    (builder, dead)
}

#[test]
fn dropped_idle_it_ends_its_thread() {
    let (sender, receiver) = mpsc::channel::<()>();
    let batcher = ReducingBatcher::sum().build(move |_: Batch<Pair>| drop(sender.clone())).unwrap();
    drop(batcher);
    // The process function was dropped before the drop returned.
    assert_eq!(receiver.try_recv(), Err(mpsc::TryRecvError::Disconnected));
}

#[test]
fn dropped_while_lingering_it_drains() {
    let clock = PausedClock::new();
    let (builder, dead) = sums(&clock);
    let batcher = builder.build(|_| ()).unwrap();
    let station = batcher.station().clone();
    batcher.send((1, 1)).unwrap();
    drop(batcher);
    assert_eq!((station.snapshot().served, dead.try_iter().count()), (1, 0));
}

#[test]
fn dropped_to_abandon_it_dead_letters_what_has_not_begun() {
    let clock = PausedClock::new();
    let (builder, dead) = sums(&clock);
    let batcher = builder.on_drop(OnDrop::Abandon).build(|_| ()).unwrap();
    let station = batcher.station().clone();
    batcher.send((1, 1)).unwrap();
    drop(batcher);
    assert_eq!((station.snapshot().dropped, dead.try_iter().collect::<Vec<_>>()), (1, vec![(1, 1)]));
}

#[test]
fn dropped_while_busy_it_drains_for_as_long_as_set() {
    let clock = PausedClock::new();
    let gate = Gate::new();
    let entry = gate.entry();
    let (builder, dead) = sums(&clock);
    let batcher = builder.build(move |_| entry.pass(())).unwrap();
    let station = batcher.station().clone();
    for n in 1..=2 {
        batcher.send((n, 1)).unwrap();
    }
    gate.wait();
    batcher.send((3, 1)).unwrap();
    thread::scope(|scope| {
        let dropping = scope.spawn(move || drop(batcher));
        clock.wait_for_waiters(1);
        assert_eq!(clock.timers(), 1);
        clock.advance(Duration::from_secs(5));
        dropping.join().unwrap();
    });
    assert_eq!(dead.try_iter().collect::<Vec<_>>(), [(3, 1)]);
    gate.open(1);
    // The thread drops the hook as the last thing it does.
    assert!(dead.recv().is_err());
    let seen = station.snapshot();
    assert_eq!((seen.served, seen.dropped), (2, 1));
}

#[test]
fn dropped_while_it_rests_it_drains_and_then_gives_up() {
    let clock = PausedClock::new();
    let (builder, dead) = sums(&clock);
    let batcher = builder.keep_on_error(9, Duration::from_secs(60)).build(|_| Err::<(), _>("down")).unwrap();
    let station = batcher.station().clone();
    batcher.send((1, 1)).unwrap();
    batcher.send((2, 1)).unwrap();
    while station.snapshot().retried == 0 {
        thread::yield_now();
    }
    clock.wait_for_waiters(1);
    batcher.send((2, 1)).unwrap();
    thread::scope(|scope| {
        let dropping = scope.spawn(move || drop(batcher));
        clock.wait_for_waiters(2);
        clock.advance(Duration::from_secs(5));
        dropping.join().unwrap();
    });
    assert!(dead.try_iter().eq([(1, 1), (2, 1), (2, 1)]), "pairs first, then updates that nobody has merged");
    assert!(station.snapshot().balanced());
}

#[test]
fn dropped_during_a_panic_it_does_not_wait() {
    let clock = PausedClock::new();
    let gate = Gate::new();
    let entry = gate.entry();
    let (builder, dead) = sums(&clock);
    let batcher = builder.build(move |_| entry.pass(())).unwrap();
    batcher.send((0, 1)).unwrap();
    batcher.send((1, 1)).unwrap();
    gate.wait();
    batcher.send((2, 1)).unwrap();
    let caught = catch_unwind(AssertUnwindSafe(move || {
        let _batcher = batcher;
        blow_up();
    }));
    assert!(caught.is_err());
    assert_eq!(dead.try_iter().collect::<Vec<_>>(), [(2, 1)]);
    gate.open(1);
}

#[test]
fn dropped_with_blocked_producers_it_gives_them_their_updates() {
    let clock = PausedClock::new();
    let gate = Gate::new();
    let entry = gate.entry();
    let (builder, dead) = sums(&clock);
    let batcher = builder.capacity(2).overflow(Overflow::Block).build(move |_| entry.pass(())).unwrap();
    let handle = batcher.handle();
    handle.send((1, 1)).unwrap();
    handle.send((2, 1)).unwrap();
    gate.wait();
    thread::scope(|scope| {
        let blocked = scope.spawn(|| handle.send((3, 1)).unwrap_err());
        clock.wait_for_waiters(1);
        let dropping = scope.spawn(move || drop(batcher));
        let refused = blocked.join().unwrap();
        assert!(refused.is_closed() && refused.into_inner() == (3, 1));
        gate.open(1);
        dropping.join().unwrap();
    });
    assert_eq!(dead.try_iter().count(), 0);
    assert_eq!(handle.station().snapshot().served, 2);
}

#[test]
fn dropped_after_a_close_nothing_happens_twice() {
    let clock = PausedClock::new();
    let (builder, dead) = sums(&clock);
    let batcher = builder.build(|_| ()).unwrap();
    batcher.send((1, 1)).unwrap();
    assert_eq!(batcher.close_within(Duration::ZERO).unwrap_err().items, [(1, 1)]);
    let station = batcher.station().clone();
    drop(batcher);
    let seen = station.snapshot();
    assert_eq!((seen.returned, seen.dropped, dead.try_iter().count()), (1, 0, 0));
}

#[test]
fn dropped_inside_its_own_process_function_it_does_not_wait() {
    let clock = PausedClock::new();
    let (builder, dead) = sums(&clock);
    let seat: Arc<Mutex<Option<ReducingBatcher<u32, u32>>>> = Arc::default();
    let inside = Arc::clone(&seat);
    let gate = Gate::new();
    let entry = gate.entry();
    let batcher = builder
        .build(move |_| {
            entry.pass(());
            drop(inside.lock().unwrap().take());
        })
        .unwrap();
    let handle = batcher.handle();
    batcher.send((1, 1)).unwrap();
    *seat.lock().unwrap() = Some(batcher);
    handle.send((2, 1)).unwrap();
    gate.wait();
    handle.send((3, 1)).unwrap();
    gate.open(1);
    assert_eq!(dead.recv().unwrap(), (3, 1));
    assert!(handle.send((4, 1)).unwrap_err().is_closed());
    handle.flush().unwrap();
    let seen = handle.station().snapshot();
    assert_eq!((seen.served, seen.dropped), (2, 1));
}

#[test]
fn a_process_function_may_feed_its_own_batcher_until_the_close() {
    let seat = Arc::new(Mutex::new(None));
    let inside = Arc::clone(&seat);
    let (done, rounds) = mpsc::channel();
    let batcher = ReducingBatcher::sum()
        .max_keys(1)
        .build(move |batch: Batch<Pair>| {
            let handle = inside.lock().unwrap();
            let again =
                handle.as_ref().map(|handle: &fullbore_batch::ReducingHandle<_, _>| handle.send((batch[0].0 + 1, 1)));
            done.send(again.is_some_and(|sent| sent.is_ok())).unwrap();
        })
        .unwrap();
    *seat.lock().unwrap() = Some(batcher.handle());
    batcher.send((0, 1)).unwrap();
    assert!(rounds.iter().take(100).all(|again| again));
    // A flush ends although every batch begets another one; so does the close.
    batcher.flush().unwrap();
    drop(batcher);
    assert_eq!(rounds.iter().filter(|again| !again).count(), 1, "only the last one was refused");
}
