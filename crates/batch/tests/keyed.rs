//! Keys: one batch in flight, slow ones, busy ones, idle ones; the keyed batcher dropped in every state, and its threads.
#![cfg(not(fullbore_loom))]
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use common::{Gate, NEVER, blow_up};
use fullbore_batch::{Batch, KeyedBatcher, KeyedBatcherBuilder, KeyedHandle};
use fullbore_core::{Failure, OnDrop, Overflow, PausedClock, Sink};

type Letters = mpsc::Receiver<(u8, u32, Failure)>;

/// Pairs that never linger out, with dead letters.
fn pairs(clock: &PausedClock) -> (KeyedBatcherBuilder<u8, u32>, Letters) {
    let (letters, dead) = mpsc::channel();
    let builder = KeyedBatcher::builder()
        .max_items(2)
        .linger(NEVER)
        .clock(clock)
        .dead_letter(move |key, n, failure| letters.send((*key, n, failure)).unwrap());
    (builder, dead)
}

fn closed(dead: &Letters) -> Vec<(u8, u32)> {
    dead.try_iter()
        .map(|(key, n, failure)| {
            assert!(matches!(failure, Failure::Closed));
            (key, n)
        })
        .collect()
}

/// The book shows it.
#[test]
fn rows_of_a_tenant_go_into_its_database_together() -> Result<(), Box<dyn std::error::Error>> {
    let databases: Arc<[Mutex<Vec<u64>>; 3]> = Arc::default();
    let tables = Arc::clone(&databases);
    let insert = move |tenant: &usize, rows: &[u64]| tables[*tenant].lock().unwrap().extend(rows);
    // ANCHOR: per_tenant
    let per_tenant = KeyedBatcher::builder()
        .max_items(500)
        .linger(Duration::from_millis(20))
        .max_keys(100_000)
        .workers(4)
        .build(move |tenant: &usize, rows: Batch<u64>| insert(tenant, &rows))?;
    (0..10_000).try_for_each(|row| per_tenant.send(row as usize % 3, row))?;
    per_tenant.flush_key(&0)?; // all rows of tenant 0 are in its database
    per_tenant.close()?;
    // ANCHOR_END: per_tenant
    for (tenant, rows) in databases.iter().enumerate() {
        assert!(rows.lock().unwrap().iter().copied().eq((0..10_000).skip(tenant).step_by(3)));
    }
    Ok(())
}

#[test]
fn a_slow_key_does_not_hold_up_the_others() {
    let gate = Gate::new();
    let entry = gate.entry();
    let batcher = KeyedBatcher::builder()
        .max_items(1)
        .workers(2)
        .build(move |key: &u8, batch: Batch<u32>| {
            if *key == 0 {
                entry.pass(batch[0]);
            }
        })
        .unwrap();
    batcher.send(0, 0).unwrap();
    assert_eq!(gate.wait(), 0);
    // These have to wait for it: they are of the same key.
    batcher.send(0, 1).unwrap();
    batcher.send(0, 2).unwrap();
    for n in 0..1000 {
        batcher.send(1 + (n % 9) as u8, n).unwrap();
    }
    for key in 1..10 {
        batcher.flush_key(&key).unwrap();
    }
    assert_eq!(batcher.station().snapshot().served, 1000);
    gate.open(3);
    batcher.flush_key(&0).unwrap();
    assert_eq!([gate.wait(), gate.wait()], [1, 2]);
    batcher.close().unwrap();
}

#[test]
fn one_in_flight_keeps_a_keys_effects_in_order() {
    const KEYS: usize = 5;
    const WORKERS: usize = 4;
    let inside: Arc<[AtomicBool; KEYS]> = Arc::new(std::array::from_fn(|_| AtomicBool::new(false)));
    let effects: Arc<[Mutex<Vec<u32>>; KEYS]> = Arc::new(std::array::from_fn(|_| Mutex::default()));
    let (busy, written) = (Arc::clone(&inside), Arc::clone(&effects));
    let batcher = KeyedBatcher::builder()
        .max_items(7)
        .workers(WORKERS)
        .linger(Duration::from_micros(50))
        .build(move |key: &usize, batch: Batch<u32>| {
            assert!(!busy[*key].swap(true, Ordering::SeqCst), "two batches of a key");
            for n in batch {
                thread::yield_now();
                written[*key].lock().unwrap().push(n);
            }
            assert!(busy[*key].swap(false, Ordering::SeqCst));
        })
        .unwrap();
    // Each producer has its own keys, so there is an order to keep.
    thread::scope(|scope| {
        for key in 0..KEYS {
            let handle = batcher.handle();
            scope.spawn(move || (0..2000).for_each(|n| handle.send(key, n).unwrap()));
        }
    });
    batcher.close().unwrap();
    assert_eq!(batcher.station().snapshot().failed, 0);
    for effects in &*effects {
        assert_eq!(*effects.lock().unwrap(), (0..2000).collect::<Vec<_>>());
    }
}

#[test]
fn without_it_a_busy_key_uses_all_workers() {
    const WORKERS: usize = 4;
    // They only get past it together.
    let meet = Arc::new(Barrier::new(WORKERS));
    let inside = Arc::clone(&meet);
    let batcher = KeyedBatcher::builder()
        .max_items(1)
        .workers(WORKERS)
        .one_in_flight(false)
        .build(move |_: &u8, _: Batch<u32>| {
            inside.wait();
        })
        .unwrap();
    for n in 0..4 * WORKERS as u32 {
        batcher.send(1, n).unwrap();
    }
    batcher.close().unwrap();
    assert_eq!((batcher.station().snapshot().served, batcher.keys()), (4 * WORKERS as u64, 0));
}

#[test]
fn a_busy_key_does_not_keep_the_others_from_their_turn() {
    let handle: Arc<Mutex<Option<KeyedHandle<u8, u32, ()>>>> = Arc::default();
    let inside = Arc::clone(&handle);
    let (done, rounds) = mpsc::channel();
    let batcher = KeyedBatcher::builder()
        .max_items(1)
        .build(move |key: &u8, _: Batch<u32>| {
            // Key 0 always has another full batch, until it is over.
            if *key == 0 {
                // Refused once it is closed.
                let _ = inside.lock().unwrap().as_ref().map(|handle| handle.send(0, 1));
            }
            done.send(*key).unwrap();
        })
        .unwrap();
    *handle.lock().unwrap() = Some(batcher.handle());
    batcher.send(0, 1).unwrap();
    for key in 1..=200 {
        batcher.send(key, 1).unwrap();
    }
    let mut others: BTreeSet<u8> = (1..=200).collect();
    while !others.is_empty() {
        others.remove(&rounds.recv().unwrap());
    }
    // A flush ends although every item of key 0 begets another one; so does the flush of that key, and the close.
    batcher.flush().unwrap();
    batcher.flush_key(&0).unwrap();
    drop(batcher);
}

#[test]
fn a_flush_ends_while_producers_go_on() {
    let batcher =
        KeyedBatcher::builder().max_items(10).capacity(40).workers(2).build(|_: &u32, _: Batch<u32>| ()).unwrap();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let handles: Vec<_> = (0..4).map(|_| batcher.handle()).collect();
        for handle in handles {
            let stop = &stop;
            scope.spawn(move || {
                for n in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    handle.send(n % 7, 1).unwrap();
                }
            });
        }
        for n in 0..200 {
            let ticket = batcher.submit(n % 7, 2).unwrap();
            if n % 2 == 0 {
                batcher.flush().unwrap();
            } else {
                batcher.flush_key(&(n % 7)).unwrap();
            }
            assert!(ticket.is_done(), "what was accepted before the flush is done after it");
        }
        stop.store(true, Ordering::Relaxed);
    });
    batcher.close().unwrap();
    assert!(batcher.station().snapshot().balanced());
}

#[test]
fn a_crowd_of_small_batches_never_fills_the_room_for_good() {
    for max_keys in [4, 1000] {
        let clock = PausedClock::new();
        let batcher = KeyedBatcher::builder()
            .max_items(10)
            .capacity(10)
            .max_keys(max_keys)
            .linger(NEVER)
            .overflow(Overflow::Block)
            .clock(&clock)
            .build(|_: &u32, _: Batch<u32>| ())
            .unwrap();
        thread::scope(|scope| {
            for first in [0, 10_000, 20_000] {
                let handle = batcher.handle();
                // Each its own key: no batch is ever full, and time stands still.
                scope.spawn(move || (first..first + 1000).for_each(|n| handle.send(n, n).unwrap()));
            }
        });
        batcher.close().unwrap();
        assert_eq!(batcher.station().snapshot().served, 3000);
    }
}

#[test]
fn who_is_refused_for_want_of_room_finds_some_later() {
    let clock = PausedClock::new();
    let batcher = KeyedBatcher::builder()
        .max_items(2)
        .max_keys(1)
        .linger(NEVER)
        .clock(&clock)
        .build(|_: &u8, _: Batch<u32>| ())
        .unwrap();
    batcher.send(1, 1).unwrap();
    assert!(batcher.try_send(2, 1).unwrap_err().is_full());
    clock.wait_for_waiters(1);
    // That made the batch of key 1 due, for nothing else was.
    batcher.try_send(2, 1).unwrap();
    assert_eq!(batcher.station().snapshot().served, 1);
}

#[test]
fn nothing_is_left_of_idle_keys() {
    let batcher = KeyedBatcher::builder()
        .max_items(3)
        .max_keys(100_000)
        .workers(2)
        .build(|_: &Arc<u32>, _: Batch<u32>| ())
        .unwrap();
    // Each key is counted by what still holds it.
    let keys: Vec<Arc<u32>> = (0..20_000).map(Arc::new).collect();
    for round in 0..4 {
        for key in &keys {
            batcher.send(Arc::clone(key), round).unwrap();
        }
        if round == 1 {
            batcher.flush_key(&keys[7]).unwrap();
        }
    }
    batcher.flush().unwrap();
    assert_eq!(batcher.keys(), 0);
    let held = || keys.iter().filter(|key| Arc::strong_count(key) > 1).count();
    while held() > 0 {
        // The last ones are dropped just after their flush was told.
        thread::yield_now();
    }
    batcher.close().unwrap();
    assert_eq!(batcher.station().snapshot().served, 80_000);
}

#[test]
fn dropped_idle_it_ends_its_threads() {
    let (sender, receiver) = mpsc::channel::<()>();
    let batcher = KeyedBatcher::builder().workers(3).build(move |_: &u8, _: Batch<u32>| drop(sender.clone())).unwrap();
    drop(batcher);
    // The process function was dropped before the drop returned.
    assert_eq!(receiver.try_recv(), Err(mpsc::TryRecvError::Disconnected));
}

#[test]
fn dropped_while_lingering_it_drains() {
    let clock = PausedClock::new();
    let (builder, dead) = pairs(&clock);
    let batcher = builder.workers(2).build(|_, _| ()).unwrap();
    let station = batcher.station().clone();
    let tickets = [1, 2, 3].map(|key| batcher.submit(key, 1).unwrap());
    drop(batcher);
    assert_eq!((station.snapshot().served, closed(&dead)), (3, vec![]));
    for ticket in tickets {
        ticket.try_take().unwrap().unwrap();
    }
}

#[test]
fn dropped_to_abandon_it_dead_letters_what_has_not_begun() {
    let clock = PausedClock::new();
    let (builder, dead) = pairs(&clock);
    let batcher = builder.on_drop(OnDrop::Abandon).build(|_, _| ()).unwrap();
    let station = batcher.station().clone();
    let ticket = batcher.submit(1, 1).unwrap();
    drop(batcher);
    assert_eq!((station.snapshot().dropped, closed(&dead)), (1, vec![(1, 1)]));
    assert!(matches!(ticket.try_take(), Ok(Err(Failure::Closed))));
}

#[test]
fn dropped_while_busy_it_drains_for_as_long_as_set() {
    let clock = PausedClock::new();
    let gate = Gate::new();
    let entry = gate.entry();
    let (builder, dead) = pairs(&clock);
    let batcher = builder.build(move |_, _| entry.pass(())).unwrap();
    let station = batcher.station().clone();
    let begun = batcher.submit(1, 1).unwrap();
    batcher.send(1, 2).unwrap();
    gate.wait();
    // In flight and open, behind a full one; and a key that is only open.
    for n in 3..6 {
        batcher.send(1, n).unwrap();
    }
    batcher.send(2, 6).unwrap();
    thread::scope(|scope| {
        let dropping = scope.spawn(move || drop(batcher));
        clock.wait_for_waiters(1);
        assert_eq!(clock.timers(), 1);
        clock.advance(Duration::from_secs(5));
        dropping.join().unwrap();
    });
    let mut left = closed(&dead);
    left.sort_unstable();
    assert_eq!(left, [(1, 3), (1, 4), (1, 5), (2, 6)]);
    gate.open(1);
    begun.wait().unwrap();
    let seen = station.snapshot();
    assert_eq!((seen.served, seen.dropped), (2, 4));
}

#[test]
fn dropped_during_a_panic_it_does_not_wait() {
    let clock = PausedClock::new();
    let gate = Gate::new();
    let entry = gate.entry();
    let (builder, dead) = pairs(&clock);
    let batcher = builder.build(move |_, _| entry.pass(())).unwrap();
    for n in 0..3 {
        batcher.send(1, n).unwrap();
    }
    gate.wait();
    let caught = catch_unwind(AssertUnwindSafe(move || {
        let _batcher = batcher;
        blow_up();
    }));
    assert!(caught.is_err());
    assert_eq!(closed(&dead), [(1, 2)]);
    gate.open(1);
}

#[test]
fn dropped_with_blocked_producers_it_gives_them_their_items() {
    let clock = PausedClock::new();
    let gate = Gate::new();
    let entry = gate.entry();
    let (builder, dead) = pairs(&clock);
    let batcher = builder.capacity(2).overflow(Overflow::Block).build(move |_, _| entry.pass(())).unwrap();
    let handle = batcher.handle();
    handle.send(1, 1).unwrap();
    handle.send(1, 2).unwrap();
    gate.wait();
    thread::scope(|scope| {
        let blocked = scope.spawn(|| handle.send(2, 3).unwrap_err());
        clock.wait_for_waiters(1);
        let dropping = scope.spawn(move || drop(batcher));
        let refused = blocked.join().unwrap();
        assert!(refused.is_closed() && refused.into_inner() == (2, 3));
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
    let batcher = builder.build(|_, _| ()).unwrap();
    batcher.send(1, 1).unwrap();
    assert_eq!(batcher.close_within(Duration::ZERO).unwrap_err().items, [(1, 1)]);
    let station = batcher.station().clone();
    drop(batcher);
    let seen = station.snapshot();
    assert_eq!((seen.returned, seen.dropped, closed(&dead)), (1, 0, vec![]));
}

#[test]
fn dropped_inside_its_own_process_function_it_does_not_wait() {
    let clock = PausedClock::new();
    let (builder, dead) = pairs(&clock);
    let seat: Arc<Mutex<Option<KeyedBatcher<u8, u32, ()>>>> = Arc::default();
    let inside = Arc::clone(&seat);
    let gate = Gate::new();
    let entry = gate.entry();
    let batcher = builder
        .build(move |_, _| {
            entry.pass(());
            drop(inside.lock().unwrap().take());
        })
        .unwrap();
    let handle = batcher.handle();
    let ticket = batcher.submit(1, 1).unwrap();
    *seat.lock().unwrap() = Some(batcher);
    handle.send(1, 2).unwrap();
    gate.wait();
    handle.send(1, 3).unwrap();
    gate.open(1);
    ticket.wait().unwrap();
    assert_eq!(closed(&dead), [(1, 3)]);
    assert!(handle.send(1, 4).unwrap_err().is_closed());
    let seen = handle.station().snapshot();
    assert_eq!((seen.served, seen.dropped), (2, 1));
}

#[test]
fn the_threads_have_their_names_and_the_sink_its_way_in() {
    let (names, seen) = mpsc::channel();
    let meet = Barrier::new(2);
    let batcher = KeyedBatcher::builder()
        .name("named")
        .max_items(1)
        .workers(2)
        .build(move |_: &u8, _: Batch<u32>| {
            names.send(thread::current().name().map(str::to_owned)).unwrap();
            meet.wait();
        })
        .unwrap();
    let sink: Box<dyn Sink<(u8, u32)>> = Box::new(batcher.handle());
    assert_eq!(sink.send_all(&mut (0..2).map(|n| (n as u8, n))).unwrap(), 2);
    batcher.close().unwrap();
    let names: BTreeSet<_> = seen.iter().flatten().collect();
    assert_eq!(names, BTreeSet::from(["fullbore-batch-named-0".to_owned(), "fullbore-batch-named-1".to_owned()]));
    assert_eq!(sink.send_all(&mut (5..7).map(|n| (n as u8, n))).unwrap_err().into_inner(), (5, 5));
}

#[test]
fn many_workers_and_few_keys_end_with_the_close() {
    let calls = Arc::new(AtomicUsize::new(0));
    for _ in 0..50 {
        let count = Arc::clone(&calls);
        let batcher = KeyedBatcher::builder()
            .max_items(3)
            .workers(8)
            .build(move |_: &u32, batch: Batch<u32>| {
                count.fetch_add(batch.len(), Ordering::SeqCst);
            })
            .unwrap();
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..50).for_each(|n| batcher.send(n % 3, n).unwrap()));
            }
        });
        batcher.close().unwrap();
    }
    assert_eq!(calls.load(Ordering::SeqCst), 50 * 200);
}
