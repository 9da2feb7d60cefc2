//! The batcher dropped in every state, its thread, and its order.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use common::{Gate, NEVER, blow_up};
use fullbore_batch::{Batch, BatchHandle, Batcher, BatcherBuilder};
use fullbore_core::{Failure, OnDrop, Overflow, PausedClock, Sink};

type Letters = mpsc::Receiver<(u32, Failure)>;

/// Pairs that never linger out, with dead letters.
fn pairs(clock: &PausedClock) -> (BatcherBuilder<u32>, Letters) {
    let (letters, dead) = mpsc::channel();
    let builder = Batcher::builder()
        .max_items(2)
        .linger(NEVER)
        .clock(clock)
        .dead_letter(move |n, failure| letters.send((n, failure)).unwrap());
    (builder, dead)
}

fn closed(dead: &Letters) -> Vec<u32> {
    dead.try_iter()
        .map(|(n, failure)| {
            assert!(matches!(failure, Failure::Closed));
            n
        })
        .collect()
}

#[test]
fn dropped_idle_it_ends_its_thread() {
    let (sender, receiver) = mpsc::channel::<()>();
    let batcher = Batcher::builder().build(move |_: Batch<u32>| drop(sender.clone())).unwrap();
    drop(batcher);
    // The process function was dropped before the drop returned.
    assert_eq!(receiver.try_recv(), Err(mpsc::TryRecvError::Disconnected));
}

#[test]
fn dropped_while_lingering_it_drains() {
    let clock = PausedClock::new();
    let (builder, dead) = pairs(&clock);
    let batcher = builder.build(|_| ()).unwrap();
    let station = batcher.station().clone();
    let ticket = batcher.submit(1).unwrap();
    drop(batcher);
    assert_eq!((station.snapshot().served, closed(&dead)), (1, vec![]));
    ticket.try_take().unwrap().unwrap();
}

#[test]
fn dropped_to_abandon_it_dead_letters_what_has_not_begun() {
    let clock = PausedClock::new();
    let (builder, dead) = pairs(&clock);
    let batcher = builder.on_drop(OnDrop::Abandon).build(|_| ()).unwrap();
    let station = batcher.station().clone();
    let ticket = batcher.submit(1).unwrap();
    drop(batcher);
    assert_eq!((station.snapshot().dropped, closed(&dead)), (1, vec![1]));
    assert!(matches!(ticket.try_take(), Ok(Err(Failure::Closed))));
}

#[test]
fn dropped_while_busy_it_drains_for_as_long_as_set() {
    let clock = PausedClock::new();
    let gate = Gate::new();
    let entry = gate.entry();
    let (builder, dead) = pairs(&clock);
    let batcher = builder.build(move |_| entry.pass(())).unwrap();
    let station = batcher.station().clone();
    let begun = batcher.submit(1).unwrap();
    batcher.send(2).unwrap();
    gate.wait();
    batcher.send(3).unwrap();
    thread::scope(|scope| {
        let dropping = scope.spawn(move || drop(batcher));
        clock.wait_for_waiters(1);
        assert_eq!(clock.timers(), 1);
        clock.advance(Duration::from_secs(5));
        dropping.join().unwrap();
    });
    assert_eq!(closed(&dead), [3]);
    gate.open(1);
    begun.wait().unwrap();
    let seen = station.snapshot();
    assert_eq!((seen.served, seen.dropped), (2, 1));
}

#[test]
fn dropped_during_a_panic_it_does_not_wait() {
    let clock = PausedClock::new();
    let gate = Gate::new();
    let entry = gate.entry();
    let (builder, dead) = pairs(&clock);
    let batcher = builder.build(move |_| entry.pass(())).unwrap();
    for n in 0..3 {
        batcher.send(n).unwrap();
    }
    gate.wait();
    let caught = catch_unwind(AssertUnwindSafe(move || {
        let _batcher = batcher;
        blow_up();
    }));
    assert!(caught.is_err());
    assert_eq!(closed(&dead), [2]);
    gate.open(1);
}

#[test]
fn dropped_with_blocked_producers_it_gives_them_their_items() {
    let clock = PausedClock::new();
    let gate = Gate::new();
    let entry = gate.entry();
    let (builder, dead) = pairs(&clock);
    let batcher = builder.capacity(2).overflow(Overflow::Block).build(move |_| entry.pass(())).unwrap();
    let handle = batcher.handle();
    handle.send(1).unwrap();
    handle.send(2).unwrap();
    gate.wait();
    thread::scope(|scope| {
        let blocked = scope.spawn(|| handle.send(3).unwrap_err());
        clock.wait_for_waiters(1);
        let dropping = scope.spawn(move || drop(batcher));
        let refused = blocked.join().unwrap();
        assert!(refused.is_closed() && refused.into_inner() == 3);
        gate.open(1);
        dropping.join().unwrap();
    });
    assert!(closed(&dead).is_empty());
    assert_eq!(handle.station().snapshot().served, 2);
}

#[test]
fn dropped_after_a_close_nothing_happens_twice() {
    let clock = PausedClock::new();
    let (builder, dead) = pairs(&clock);
    let batcher = builder.build(|_| ()).unwrap();
    batcher.send(1).unwrap();
    assert_eq!(batcher.close_within(Duration::ZERO).unwrap_err().items, [1]);
    let station = batcher.station().clone();
    drop(batcher);
    let seen = station.snapshot();
    assert_eq!((seen.returned, seen.dropped, closed(&dead)), (1, 0, vec![]));
}

#[test]
fn dropped_inside_its_own_process_function_it_does_not_wait() {
    let clock = PausedClock::new();
    let (builder, dead) = pairs(&clock);
    let seat: Arc<Mutex<Option<Batcher<u32, ()>>>> = Arc::default();
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
    let ticket = batcher.submit(1).unwrap();
    *seat.lock().unwrap() = Some(batcher);
    handle.send(2).unwrap();
    gate.wait();
    handle.send(3).unwrap();
    gate.open(1);
    ticket.wait().unwrap();
    assert_eq!(closed(&dead), [3]);
    assert!(handle.send(4).unwrap_err().is_closed());
    let seen = handle.station().snapshot();
    assert_eq!((seen.served, seen.dropped), (2, 1));
}

#[test]
fn handles_do_not_keep_it_open_and_a_process_function_may_hold_one() {
    let seat: Arc<Mutex<Option<BatchHandle<u32, ()>>>> = Arc::default();
    let inside = Arc::clone(&seat);
    let (done, rounds) = mpsc::channel();
    let batcher = Batcher::builder()
        .max_items(1)
        .build(move |batch: Batch<u32>| {
            // Feeds itself until somebody closes it.
            let again = inside.lock().unwrap().as_ref().map(|handle| handle.send(batch[0] + 1));
            done.send((batch[0], again.is_some_and(|sent| sent.is_ok()))).unwrap();
        })
        .unwrap();
    *seat.lock().unwrap() = Some(batcher.handle());
    batcher.send(0).unwrap();
    assert!(rounds.iter().take(100).all(|(_, again)| again));
    // A flush ends although every item begets another one; so does the close.
    batcher.flush().unwrap();
    drop(batcher);
    let rest: Vec<_> = rounds.iter().collect();
    assert!(rest.windows(2).all(|pair| pair[0].0 + 1 == pair[1].0));
    assert_eq!(rest.iter().filter(|(_, again)| !again).count(), 1, "only the last one was refused");
}

#[test]
fn a_flush_ends_while_producers_go_on() {
    let batcher = Batcher::builder().max_items(10).capacity(40).build(|_: Batch<u32>| ()).unwrap();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let handles: Vec<_> = (0..4).map(|_| batcher.handle()).collect();
        for handle in handles {
            let stop = &stop;
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    handle.send(1).unwrap();
                }
            });
        }
        for _ in 0..200 {
            let ticket = batcher.submit(2).unwrap();
            batcher.flush().unwrap();
            assert!(ticket.is_done(), "what was accepted before the flush is done after it");
        }
        stop.store(true, Ordering::Relaxed);
    });
    batcher.close().unwrap();
    assert!(batcher.station().snapshot().balanced());
}

#[test]
fn the_thread_has_its_name_and_the_sink_its_way_in() {
    let (names, seen) = mpsc::channel();
    let batcher = Batcher::builder()
        .name("named")
        .build(move |batch: Batch<u32>| names.send((thread::current().name().map(str::to_owned), batch.len())))
        .unwrap();
    let sink: Box<dyn Sink<u32>> = Box::new(batcher.handle());
    assert_eq!(sink.send_all(&mut (0..3)).unwrap(), 3);
    batcher.close().unwrap();
    assert_eq!(seen.recv().unwrap(), (Some("fullbore-batch-named-0".to_owned()), 3));
    assert_eq!(sink.send_all(&mut (5..7)).unwrap_err().into_inner(), 5);
}

#[test]
fn a_batch_is_a_vector_with_a_name() {
    let batch = Batch::from(vec![1, 2, 3]);
    assert_eq!((batch.len(), batch.is_empty(), batch.as_slice(), batch[1]), (3, false, &[1, 2, 3][..], 2));
    assert_eq!((&batch).into_iter().sum::<i32>(), 6);
    assert_eq!(batch.clone().into_iter().rev().collect::<Vec<_>>(), [3, 2, 1]);
    assert_eq!(format!("{batch:?}"), "Batch { len: 3 }");
    assert_eq!((Vec::from(batch.clone()), batch.into_vec()), (vec![1, 2, 3], vec![1, 2, 3]));
}
