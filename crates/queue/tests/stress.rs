//! Every accepted job ends exactly once, whatever the handler does and whoever closes when.
#![expect(clippy::unwrap_used, reason = "in the helpers of tests")]
#![cfg(not(fullbore_loom))]
#![allow(missing_docs)]

mod common;

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use common::{Dice, blow_up};
use fullbore_core::{Failure, OnDrop, Overflow};
use fullbore_limit::Limit;
use fullbore_queue::{DeadLetter, Queue, Verdict};

const PRODUCERS: u64 = 8;
const JOBS: u64 = 300;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Refused,
    Done,
    GivenUp,
    Displaced,
    BuriedAtClose,
    HandedBack,
}

/// What became of each job.
#[derive(Default)]
struct Ends(Mutex<Vec<(u64, End)>>);

impl Ends {
    fn note(&self, job: u64, end: End) {
        self.0.lock().unwrap().push((job, end));
    }

    fn count(&self, end: End) -> u64 {
        self.0.lock().unwrap().iter().filter(|(_, other)| *other == end).count() as u64
    }
}

fn round(seed: u64) {
    println!("seed {seed}");
    let mut dice = Dice::new(seed);
    let overflow = match dice.roll(4) {
        0 => Overflow::Reject,
        1 => Overflow::DropOldest,
        2 => Overflow::BlockFor(Duration::from_micros(50)),
        _ => Overflow::Block,
    };
    let limit = Limit::builder().permits(1 + dice.roll(8) as usize);
    let limit = limit.acquire_timeout(Duration::from_micros(dice.roll(200))).build().unwrap();
    let max_attempts = 1 + dice.roll(4) as u32;
    let ends = Arc::new(Ends::default());
    let attempts = Arc::new(AtomicU64::new(0));
    let mut builder = Queue::builder()
        .workers(8)
        .capacity(1 + dice.roll(100) as usize)
        .overflow(overflow)
        .max_attempts(max_attempts)
        .backoff(Duration::ZERO, Duration::from_micros(100))
        .on_drop(OnDrop::Abandon);
    if dice.roll(2) == 0 {
        builder = builder.limit(&limit);
    }
    let hook = Arc::clone(&ends);
    builder = builder.dead_letter(move |letter: DeadLetter<u64>| {
        hook.note(
            letter.item,
            match letter.failure {
                Failure::Dropped => End::Displaced,
                Failure::Closed if letter.attempts < max_attempts => End::BuriedAtClose,
                _ => End::GivenUp,
            },
        );
        if letter.item.is_multiple_of(16) && !matches!(letter.failure, Failure::Dropped) {
            blow_up();
        }
    });
    let handler = (Arc::clone(&ends), Arc::clone(&attempts), Mutex::new(Dice::new(seed + 1)));
    let queue = builder
        .build(move |job| {
            let (ends, attempts, dice) = &handler;
            attempts.fetch_add(1, Ordering::Relaxed);
            let chance = dice.lock().unwrap().roll(8);
            match chance {
                0 => blow_up(),
                1 => Verdict::dead("no"),
                2 | 3 => Verdict::retry("not yet"),
                _ => {
                    ends.note(**job, End::Done);
                    Verdict::Done
                }
            }
        })
        .unwrap();
    let early_closes = dice.roll(3);
    let close_after = dice.roll(PRODUCERS * JOBS);
    let offered = AtomicU64::new(0);
    thread::scope(|scope| {
        for producer in 0..PRODUCERS {
            let (ends, offered, queue) = (&ends, &offered, &queue);
            let handle = queue.producer();
            let mut dice = Dice::new(seed + 2 + producer);
            scope.spawn(move || {
                for n in 0..JOBS {
                    let job = producer * JOBS + n;
                    let sent = match dice.roll(4) {
                        0 => handle.try_send(job),
                        1 => handle.send_after(job, Duration::from_micros(dice.roll(200))),
                        _ => handle.send(job),
                    };
                    if let Err(refused) = sent {
                        assert_eq!(refused.into_inner(), job);
                        ends.note(job, End::Refused);
                    }
                    offered.fetch_add(1, Ordering::Relaxed);
                    match dice.roll(100) {
                        0 => queue.flush().unwrap(),
                        1 => drop(queue.flush_within(Duration::from_micros(20))),
                        _ => {}
                    }
                }
            });
        }
        for closer in 0..early_closes {
            let (ends, offered, queue) = (&ends, &offered, &queue);
            let limit = Duration::from_micros((seed + closer) % 3 * 100);
            scope.spawn(move || {
                while offered.load(Ordering::Relaxed) < close_after {
                    thread::yield_now();
                }
                if let Err(left) = queue.close_within(limit) {
                    left.items.into_iter().for_each(|job| ends.note(job, End::HandedBack));
                }
            });
        }
    });
    let station = queue.station().clone();
    if dice.roll(2) == 0 {
        queue.close().unwrap();
    } else {
        // Abandons what is left; the workers may still be busy, and end by themselves.
        let producer = queue.producer();
        drop(queue);
        assert!(producer.is_closed());
        while station.snapshot().in_service() > 0 {
            thread::yield_now();
        }
    }
    let seen = station.snapshot();
    assert!(seen.balanced(), "{seen:?}");
    assert_eq!((seen.waiting(), seen.in_service()), (0, 0));
    assert_eq!(seen.offered(), PRODUCERS * JOBS);
    assert_eq!(seen.refused, ends.count(End::Refused));
    assert_eq!(seen.served, ends.count(End::Done));
    assert_eq!(seen.returned, ends.count(End::HandedBack));
    assert_eq!(
        seen.failed + seen.dropped,
        ends.count(End::GivenUp) + ends.count(End::Displaced) + ends.count(End::BuriedAtClose)
    );
    assert!(seen.begun >= attempts.load(Ordering::Relaxed), "an attempt without a permit is not seen by the handler");
    assert_eq!(limit.state().in_use, 0);
    let mut jobs: Vec<u64> = ends.0.lock().unwrap().iter().map(|(job, _)| *job).collect();
    jobs.sort_unstable();
    assert_eq!(jobs, (0..PRODUCERS * JOBS).collect::<Vec<_>>(), "each job ends exactly once");
}

#[test]
fn every_job_ends_exactly_once() {
    let first = RandomState::new().hash_one(0) >> 32;
    for seed in first..first + 40 {
        round(seed);
    }
}
