//! Every order of send, work, retry, alarm and close. A lost wake-up shows as a deadlock, a lost job as a wrong sum. The
//! workers run on the model checker's threads, the clock is moved by another one:
//! `RUSTFLAGS="--cfg fullbore_loom" cargo test --release -p fullbore-queue --test loom_queue`.
#![cfg(fullbore_loom)]
#![allow(missing_docs, clippy::unwrap_used)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use fullbore_core::{Overflow, PausedClock};
use fullbore_queue::{Queue, QueueBuilder, Verdict};
use loom::thread::{self, JoinHandle};

const SECOND: Duration = Duration::from_secs(1);

fn model(check: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound.get_or_insert(2);
    builder.check(check);
}

/// A queue whose handler adds up what is done. The sum is std's: the model need not branch on it.
struct World {
    queue: Arc<Queue<u64>>,
    clock: PausedClock,
    done: Arc<AtomicU64>,
    buried: Arc<AtomicU64>,
}

fn add(sum: &AtomicU64, job: u64) {
    // ORDERING: SeqCst, for want of a reason to think.
    sum.fetch_add(job, Ordering::SeqCst);
}

impl World {
    /// Jobs fail on their first `failures` attempts.
    fn new(failures: u32, set: impl Fn(QueueBuilder<u64>) -> QueueBuilder<u64>) -> Self {
        let clock = PausedClock::new();
        let (done, buried) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let (served, letters) = (Arc::clone(&done), Arc::clone(&buried));
        let builder = set(Queue::builder().backoff(Duration::ZERO, SECOND).jitter(false).clock(&clock));
        let queue = builder
            .dead_letter(move |letter| add(&letters, letter.item))
            .build(move |job| {
                if job.attempt() <= failures {
                    return Verdict::retry("not yet");
                }
                add(&served, **job);
                Verdict::Done
            })
            .unwrap();
        Self { queue: Arc::new(queue), clock, done, buried }
    }

    fn worker(&self) -> JoinHandle<()> {
        thread::spawn(self.queue.worker())
    }

    /// Closes on another thread and says the sum of what came back.
    fn closer(&self, limit: Duration) -> JoinHandle<u64> {
        let queue = Arc::clone(&self.queue);
        thread::spawn(move || queue.close_within(limit).map_or_else(|left| left.items.iter().sum(), |()| 0))
    }

    /// Moves the clock on another thread.
    fn time(&self, by: Duration) -> JoinHandle<()> {
        let clock = self.clock.clone();
        thread::spawn(move || clock.advance(by))
    }

    fn send(&self, job: u64) -> u64 {
        self.queue.send(job).map_or(0, |()| job)
    }

    fn done(&self) -> u64 {
        self.done.load(Ordering::SeqCst)
    }

    fn buried(&self) -> u64 {
        self.buried.load(Ordering::SeqCst)
    }
}

#[test]
fn what_is_accepted_is_done_or_handed_back_whenever_it_closes() {
    for limit in [Duration::ZERO, Duration::MAX] {
        model(move || {
            let world = World::new(0, |queue| queue.capacity(1).overflow(Overflow::Block));
            let (worker, closer) = (world.worker(), world.closer(limit));
            // The second one may have to wait for room, and be woken by the close.
            let accepted = world.send(1) + world.send(2);
            let left = closer.join().unwrap();
            worker.join().unwrap();
            assert_eq!(world.done() + left, accepted);
            assert!(limit.is_zero() || left == 0);
        });
    }
}

#[test]
fn a_retry_ends_once_whenever_it_closes() {
    for limit in [Duration::ZERO, Duration::MAX] {
        model(move || {
            // With no time to close, a retry that is put back too late would never be due.
            let pause = if limit.is_zero() { SECOND } else { Duration::ZERO };
            let world = World::new(1, |queue| queue.backoff(pause, SECOND));
            let (worker, closer) = (world.worker(), world.closer(limit));
            let accepted = world.send(1);
            let left = closer.join().unwrap();
            worker.join().unwrap();
            assert_eq!(world.done() + world.buried() + left, accepted);
            assert!(limit.is_zero() || world.done() == accepted);
        });
    }
}

#[test]
fn two_workers_share_what_comes() {
    model(|| {
        let world = World::new(0, |queue| queue);
        let workers = [world.worker(), world.worker()];
        assert_eq!(world.send(1) + world.send(2), 3);
        world.queue.flush().unwrap();
        assert_eq!(world.done(), 3);
        world.queue.close().unwrap();
        workers.into_iter().for_each(|worker| worker.join().unwrap());
    });
}

#[test]
fn some_idle_worker_always_keeps_the_alarm() {
    model(|| {
        let world = World::new(0, |queue| queue);
        let workers = [world.worker(), world.worker()];
        let time = world.time(SECOND);
        world.queue.send_after(1, SECOND).unwrap();
        world.queue.send(2).unwrap();
        time.join().unwrap();
        // It may have been sent after the clock had moved: then it is due a second later.
        world.clock.advance(SECOND);
        world.queue.flush().unwrap();
        assert_eq!(world.done(), 3);
        world.queue.close().unwrap();
        workers.into_iter().for_each(|worker| worker.join().unwrap());
    });
}

#[test]
fn an_earlier_delay_moves_the_alarm() {
    model(|| {
        let world = World::new(0, |queue| queue);
        let worker = world.worker();
        world.queue.send_after(1, 2 * SECOND).unwrap();
        world.queue.send_after(2, SECOND).unwrap();
        world.clock.advance(SECOND);
        while world.done() == 0 {
            thread::yield_now();
        }
        assert_eq!(world.done(), 2);
        assert_eq!(world.queue.close_within(Duration::ZERO).unwrap_err().items, [1]);
        worker.join().unwrap();
    });
}

#[test]
fn the_keeper_of_the_alarm_does_what_is_ready_if_nobody_else_is_idle() {
    model(|| {
        let world = World::new(0, |queue| queue);
        let worker = world.worker();
        world.queue.send_after(1, SECOND).unwrap();
        world.queue.send(2).unwrap();
        while world.done() == 0 {
            thread::yield_now();
        }
        assert_eq!(world.queue.close_within(Duration::ZERO).unwrap_err().items, [1]);
        worker.join().unwrap();
    });
}

#[test]
fn displacing_loses_nothing() {
    model(|| {
        let world = World::new(0, |queue| queue.capacity(1).overflow(Overflow::DropOldest));
        let worker = world.worker();
        assert_eq!(world.send(1) + world.send(2), 3);
        world.queue.flush().unwrap();
        assert_eq!(world.done() + world.buried(), 3);
        world.queue.close().unwrap();
        worker.join().unwrap();
    });
}
