//! The queue closed and dropped in every state, also on its own threads.
#![cfg(not(fullbore_loom))]
#![allow(missing_docs)]

mod common;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, OnceLock, mpsc};
use std::thread;
use std::time::Duration;

use common::{HOUR, SECOND, blow_up, gate, one, with_letters};
use fullbore_core::{Failure, PausedClock};
use fullbore_queue::{Job, Queue, Verdict};

#[test]
fn only_workers_in_the_handler_are_reported_however_little_time_there_is() {
    let (gate, entry) = gate();
    let queue = Queue::builder().workers(8).build(move |_: &Job<u32>| entry.pass(())).unwrap();
    queue.send(1).unwrap();
    gate.wait();
    let left = queue.close_within(Duration::ZERO).unwrap_err();
    assert_eq!((left.in_flight, left.abandoned_threads.len()), (1, 1));
    gate.open(1);
    queue.close_within(Duration::MAX).unwrap();
}

/// A queue that its own handler and hook can get at.
type Slot = Arc<Mutex<Option<Queue<u32>>>>;

#[test]
fn close_from_the_handler_does_not_wait() {
    let clock = PausedClock::new();
    let slot = Arc::new(OnceLock::<Arc<Queue<u32>>>::new());
    let (report, reports) = mpsc::channel();
    let handler = Arc::clone(&slot);
    let (gate, entry) = gate();
    let queue = one(&clock)
        .build(move |_| {
            entry.pass(());
            let queue = handler.get().unwrap();
            let full = queue.flush().unwrap_err();
            report.send((full, queue.close().unwrap_err(), queue.close_within(HOUR).unwrap_err())).unwrap();
        })
        .unwrap();
    let queue = Arc::new(queue);
    assert!(slot.set(Arc::clone(&queue)).is_ok());
    queue.send(1).unwrap();
    queue.send(2).unwrap();
    gate.wait();
    gate.open(1);
    let (open, first, second) = reports.recv().unwrap();
    assert!(open.is_own_thread());
    assert_eq!((open.waiting(), open.in_flight()), (1, 1));
    assert_eq!((first.items, first.in_flight), (vec![2], 1));
    assert_eq!((second.items.len(), second.in_flight, second.abandoned_threads.len()), (0, 1, 0));
    queue.close().unwrap();
    assert_eq!(queue.station().snapshot().served, 1);
}

#[test]
fn close_and_drop_from_the_dead_letter_hook() {
    let clock = PausedClock::new();
    let slot = Slot::default();
    let (hook_slot, (report, reports)) = (Arc::clone(&slot), mpsc::channel());
    let (gate, entry) = gate();
    let queue = one(&clock)
        .dead_letter(move |letter| {
            let queue = hook_slot.lock().unwrap().take();
            if let Some(queue) = queue {
                // On its own thread: neither waits for itself.
                assert_eq!(queue.close().unwrap_err().items, [2]);
                drop(queue);
            }
            report.send(letter.item).unwrap();
        })
        .build(move |_| {
            entry.pass(());
            Verdict::dead("no")
        })
        .unwrap();
    let (station, producer) = (queue.station().clone(), queue.producer());
    queue.send(1).unwrap();
    queue.send(2).unwrap();
    gate.wait();
    *slot.lock().unwrap() = Some(queue);
    gate.open(1);
    assert_eq!(reports.recv(), Ok(1));
    drop(producer);
    // The worker ends by itself and drops what it shares, the hook with it.
    assert_eq!(reports.recv(), Err(mpsc::RecvError));
    let seen = station.snapshot();
    assert_eq!((seen.failed, seen.returned, seen.in_service(), seen.waiting()), (1, 1, 0, 0));
}

#[test]
fn dropped_from_its_own_handler_it_does_not_wait_for_itself() {
    let clock = PausedClock::new();
    let slot = Slot::default();
    let handler = Arc::clone(&slot);
    let (gate, entry) = gate();
    let (builder, dead) = with_letters(one(&clock));
    let queue = builder
        .build(move |_| {
            entry.pass(());
            drop(handler.lock().unwrap().take());
        })
        .unwrap();
    let station = queue.station().clone();
    queue.send(1).unwrap();
    queue.send(2).unwrap();
    gate.wait();
    *slot.lock().unwrap() = Some(queue);
    gate.open(1);
    assert!(matches!(dead.recv(), Ok((2, 0, Failure::Closed))));
    assert!(dead.recv().is_err(), "the worker has ended and dropped the hook");
    let seen = station.snapshot();
    assert_eq!((seen.served, seen.dropped), (1, 1));
}

#[test]
fn dropped_it_drains_for_as_long_as_set() {
    let clock = PausedClock::new();
    let (gate, entry) = gate();
    let (builder, dead) = with_letters(one(&clock));
    let queue = builder.build(move |job| entry.pass(**job)).unwrap();
    let station = queue.station().clone();
    queue.send(1).unwrap();
    queue.send_after(2, HOUR).unwrap();
    gate.wait();
    thread::scope(|scope| {
        let dropper = scope.spawn(|| drop(queue));
        clock.wait_for_waiters(1);
        clock.advance(5 * SECOND);
        dropper.join().unwrap();
        assert!(matches!(dead.try_recv(), Ok((2, 0, Failure::Closed))));
        assert_eq!(station.snapshot().in_service(), 1);
        gate.open(1);
        assert!(dead.recv().is_err(), "the worker has ended and dropped the hook");
    });
    assert_eq!(station.snapshot().served, 1);
}

#[test]
fn dropped_while_panicking_it_does_not_wait() {
    let clock = PausedClock::new();
    let (gate, entry) = gate();
    let (letters, dead) = mpsc::channel();
    let caught = catch_unwind(AssertUnwindSafe(|| {
        let queue = one(&clock)
            .dead_letter(move |letter| {
                letters.send(letter.item).unwrap();
                blow_up();
            })
            .build(move |_| entry.pass(()))
            .unwrap();
        queue.send(1).unwrap();
        queue.send(2).unwrap();
        gate.wait();
        blow_up();
    }));
    assert!(caught.is_err());
    assert_eq!(dead.recv(), Ok(2));
    gate.open(1);
    assert!(dead.recv().is_err());
}

#[test]
fn dropped_idle_or_closed_it_ends_its_threads() {
    for close_first in [false, true] {
        let (sender, receiver) = mpsc::channel::<()>();
        let queue = Queue::builder().workers(4).build(move |_: &Job<u32>| drop(sender.clone())).unwrap();
        if close_first {
            queue.close().unwrap();
        }
        let producer = queue.producer();
        drop(queue);
        // The handler was dropped before the drop returned, by the owner.
        assert_eq!(receiver.try_recv(), Err(mpsc::TryRecvError::Disconnected));
        drop(producer);
    }
}
