//! Every order of send, work, time and close, for a key or two. A lost wake-up shows as a deadlock, a lost item as a wrong sum.
//! The workers run on the model checker's threads, the clock is moved by another one:
//! `RUSTFLAGS="--cfg fullbore_loom" cargo test --release -p fullbore-batch --test loom_keyed`.
#![cfg(fullbore_loom)]
#![allow(missing_docs, clippy::unwrap_used)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use fullbore_batch::{Batch, KeyedBatcher, KeyedBatcherBuilder};
use fullbore_core::{Overflow, PausedClock};
use loom::thread::{self, JoinHandle};

const SECOND: Duration = Duration::from_secs(1);

fn model(check: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound.get_or_insert(2);
    builder.check(check);
}

/// For four threads: with two preemptions it takes minutes.
fn large_model(check: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(1);
    builder.check(check);
}

/// A batcher whose process function adds up what it gets. The sums are std's: the model need not branch on them.
struct World {
    batcher: Arc<KeyedBatcher<u8, u64, ()>>,
    clock: PausedClock,
    done: Arc<AtomicU64>,
}

impl World {
    fn new(set: impl Fn(KeyedBatcherBuilder<u8, u64>) -> KeyedBatcherBuilder<u8, u64>) -> Self {
        let clock = PausedClock::new();
        let done = Arc::new(AtomicU64::new(0));
        let (sum, inside) = (Arc::clone(&done), Arc::new(AtomicU64::new(0)));
        let builder = KeyedBatcher::builder().max_items(1).capacity(4).overflow(Overflow::Block).clock(&clock);
        let batcher = set(builder)
            .build(move |key: &u8, batch: Batch<u64>| {
                // Two batches of a key at once would show here.
                let bit = 1 << key;
                assert_eq!(inside.fetch_or(bit, Ordering::SeqCst) & bit, 0);
                thread::yield_now();
                sum.fetch_add(batch.iter().sum(), Ordering::SeqCst);
                inside.fetch_and(!bit, Ordering::SeqCst);
            })
            .unwrap();
        Self { batcher: Arc::new(batcher), clock, done }
    }

    fn worker(&self) -> JoinHandle<()> {
        thread::spawn(self.batcher.worker())
    }

    /// Sends on another thread, and says the sum of what was accepted.
    fn sender(&self, items: &'static [(u8, u64)]) -> JoinHandle<u64> {
        let batcher = Arc::clone(&self.batcher);
        thread::spawn(move || send(&batcher, items))
    }

    /// Closes on another thread, and says the sum of what came back.
    fn closer(&self, limit: Duration) -> JoinHandle<u64> {
        let batcher = Arc::clone(&self.batcher);
        thread::spawn(move || {
            batcher.close_within(limit).map_or_else(|left| left.items.iter().map(|(_, n)| n).sum(), |()| 0)
        })
    }

    fn send(&self, items: &'static [(u8, u64)]) -> u64 {
        send(&self.batcher, items)
    }

    fn done(&self) -> u64 {
        self.done.load(Ordering::SeqCst)
    }

    /// At the end nothing is left, not even of keys.
    fn end(self, workers: impl IntoIterator<Item = JoinHandle<()>>) {
        self.batcher.close().unwrap();
        workers.into_iter().for_each(|worker| worker.join().unwrap());
        assert_eq!(self.batcher.keys(), 0);
    }
}

fn send(batcher: &KeyedBatcher<u8, u64, ()>, items: &[(u8, u64)]) -> u64 {
    items.iter().map(|(key, n)| batcher.send(*key, *n).map_or(0, |()| *n)).sum()
}

#[test]
fn a_key_that_gets_items_while_it_is_in_flight_is_ready_again() {
    model(|| {
        let world = World::new(|builder| builder);
        let worker = world.worker();
        assert_eq!(world.send(&[(1, 1), (1, 2)]), 3);
        // Without a flush: nobody but the worker and the sender see to it.
        while world.done() < 3 {
            thread::yield_now();
        }
        world.end([worker]);
    });
}

#[test]
fn two_workers_never_have_the_same_key() {
    model(|| {
        let world = World::new(|builder| builder.workers(2));
        let workers = [world.worker(), world.worker()];
        assert_eq!(world.send(&[(1, 1), (1, 2)]), 3);
        world.batcher.flush().unwrap();
        assert_eq!(world.done(), 3);
        world.end(workers);
    });
}

#[test]
fn what_is_accepted_is_done_or_handed_back_whenever_it_closes() {
    for limit in [Duration::ZERO, Duration::MAX] {
        model(move || {
            let world = World::new(|builder| builder.max_items(2).capacity(2).linger(Duration::MAX));
            let (worker, closer) = (world.worker(), world.closer(limit));
            let accepted = world.send(&[(1, 1), (2, 2)]);
            let left = closer.join().unwrap();
            worker.join().unwrap();
            assert_eq!(world.done() + left, accepted);
            assert!(limit.is_zero() || left == 0);
        });
    }
}

#[test]
fn a_close_while_a_worker_looks_at_the_timers_leaves_nothing() {
    model(|| {
        let world = World::new(|builder| builder.max_items(2).linger(SECOND));
        // When the full one is done its worker looks at the timers, for the alarm may have been that of its batch.
        assert_eq!(world.send(&[(1, 1), (1, 2), (2, 4)]), 7);
        let (worker, closer) = (world.worker(), world.closer(Duration::MAX));
        assert_eq!(closer.join().unwrap(), 0);
        worker.join().unwrap();
        assert_eq!(world.done(), 7);
    });
}

#[test]
fn pressure_outlives_a_look_at_what_others_have_in_hand() {
    model(|| {
        let world = World::new(|builder| builder.max_items(2).max_keys(1).workers(2).linger(Duration::MAX));
        // A full batch and an open one: if the full one was in hand when the sender got in line, the open one is still to go.
        assert_eq!(world.send(&[(1, 1), (1, 2), (1, 4)]), 7);
        let workers = [world.worker(), world.worker()];
        assert_eq!(world.send(&[(2, 8)]), 8);
        world.end(workers);
    });
}

#[test]
fn senders_wait_for_room_and_get_it() {
    model(|| {
        // No batch is ever full, nor is time up: only want of room makes them due.
        let world = World::new(|builder| builder.max_items(1).capacity(1).linger(Duration::MAX));
        let (worker, sender) = (world.worker(), world.sender(&[(1, 1)]));
        assert_eq!(world.send(&[(2, 2)]) + sender.join().unwrap(), 3);
        world.end([worker]);
    });
}

#[test]
fn want_of_room_for_keys_makes_the_oldest_batch_due() {
    model(|| {
        let world = World::new(|builder| builder.max_items(2).max_keys(1).linger(Duration::MAX));
        let (worker, sender) = (world.worker(), world.sender(&[(1, 1)]));
        assert_eq!(world.send(&[(2, 2)]) + sender.join().unwrap(), 3);
        world.end([worker]);
    });
}

#[test]
fn who_takes_the_last_place_presses_for_those_who_wait() {
    large_model(|| {
        let world = World::new(|builder| builder.max_items(2).max_keys(1).linger(Duration::MAX));
        let worker = world.worker();
        let senders = [world.sender(&[(1, 1)]), world.sender(&[(2, 2)])];
        assert_eq!(world.send(&[(3, 4)]) + senders.map(|sender| sender.join().unwrap()).iter().sum::<u64>(), 7);
        world.end([worker]);
    });
}

#[test]
fn a_flush_of_a_key_sees_it_through() {
    model(|| {
        let world = World::new(|builder| builder.max_items(2).linger(Duration::MAX));
        let (worker, sender) = (world.worker(), world.sender(&[(1, 4)]));
        assert_eq!(world.send(&[(1, 1)]), 1);
        world.batcher.flush_key(&1).unwrap();
        assert!(world.done() & 1 == 1);
        sender.join().unwrap();
        world.end([worker]);
    });
}

#[test]
fn the_linger_of_the_first_item_ends_whenever_it_was_sent() {
    model(|| {
        let world = World::new(|builder| builder.max_items(4).linger(SECOND));
        let (worker, sender) = (world.worker(), world.sender(&[(1, 1)]));
        world.clock.advance(SECOND);
        sender.join().unwrap();
        // It may have been sent after the clock had moved: then it is due a second later.
        world.clock.advance(SECOND);
        while world.done() == 0 {
            thread::yield_now();
        }
        world.end([worker]);
    });
}

#[test]
fn some_idle_worker_always_keeps_the_alarm() {
    model(|| {
        let world = World::new(|builder| builder.max_items(2).linger(SECOND).workers(2));
        let workers = [world.worker(), world.worker()];
        // Key 2 gets full: one of them works, the other one has the timer of key 1, or the first one again.
        assert_eq!(world.send(&[(1, 1), (2, 2), (2, 4)]), 7);
        world.clock.advance(SECOND);
        while world.done() < 7 {
            thread::yield_now();
        }
        world.end(workers);
    });
}
