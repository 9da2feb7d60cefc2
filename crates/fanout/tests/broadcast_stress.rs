//! `Broadcast` with many threads at once: nothing is lost in silence, nothing is counted twice, order is kept.
#![allow(missing_docs, clippy::unwrap_used)]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use fullbore_core::PausedClock;
use fullbore_fanout::{Broadcast, LagPolicy, Publisher, ReceiveError, Subscriber};
use fullbore_metrics::Station;

/// Marsaglia's xorshift64, seeded from the hash keys that the process was given.
struct Dice(u64);

impl Dice {
    fn new(test: &str) -> Self {
        use std::hash::{BuildHasher, RandomState};
        let seed = RandomState::new().hash_one(test) | 1;
        println!("{test}: seed {seed}");
        Dice(seed)
    }
    fn split(&mut self) -> Self {
        Dice(self.roll(u64::MAX) | 1)
    }
    fn roll(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % below
    }
}

const POLICIES: [LagPolicy; 4] = [LagPolicy::Block, LagPolicy::Reject, LagPolicy::DropOldest, LagPolicy::Evict];

/// Counts how many are alive, and knows where it comes from.
#[derive(Debug)]
struct Letter {
    publisher: usize,
    number: u64,
    alive: Arc<AtomicUsize>,
}

impl Letter {
    fn new(publisher: usize, number: u64, alive: &Arc<AtomicUsize>) -> Self {
        alive.fetch_add(1, Ordering::Relaxed);
        Self { publisher, number, alive: Arc::clone(alive) }
    }
}

impl Clone for Letter {
    fn clone(&self) -> Self {
        Self::new(self.publisher, self.number, &self.alive)
    }
}

impl Drop for Letter {
    fn drop(&mut self) {
        self.alive.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What one subscription has seen, against its station.
struct Seen {
    /// The last number of each publisher, plus one.
    last: Vec<u64>,
    received: u64,
    panicked: u64,
    missed: u64,
    lost: u64,
}

impl Seen {
    fn new(publishers: usize) -> Self {
        Self { last: vec![0; publishers], received: 0, panicked: 0, missed: 0, lost: 0 }
    }

    fn note(&mut self, letter: &Letter, gapless: bool) {
        let last = &mut self.last[letter.publisher];
        assert!(letter.number >= *last, "{letter:?} after {last}");
        if gapless && *last > 0 {
            assert_eq!(letter.number, *last, "nothing is missing between two that were received");
        }
        *last = letter.number + 1;
    }

    fn told(&mut self, error: ReceiveError) {
        match error {
            ReceiveError::Missed(n) => self.missed += n,
            ReceiveError::Skipped(n) | ReceiveError::Evicted(n) => self.lost += n,
            _ => {}
        }
    }

    fn settle(&self, station: &Station) {
        let seen = station.snapshot();
        assert!(seen.balanced(), "{seen:?}");
        assert_eq!((seen.waiting(), seen.in_service()), (0, 0));
        assert_eq!((seen.served, seen.failed), (self.received, self.panicked), "{seen:?}");
        // What was left unread at the end was not told.
        assert!(seen.dropped >= self.lost && seen.refused >= self.missed, "{seen:?}");
        assert_eq!(seen.arrivals, seen.served + seen.failed + seen.dropped);
    }
}

/// Reads in every way there is, for some time, and leaves; what it has seen is what was counted.
fn read(mut subscriber: Subscriber<Letter>, policy: LagPolicy, publishers: usize, mut dice: Dice, stay: bool) {
    let gapless = policy == LagPolicy::Block;
    let mut seen = Seen::new(publishers);
    let station = subscriber.station().clone();
    let mut into = Vec::new();
    loop {
        if !stay && dice.roll(400) == 0 {
            break;
        }
        let panics = dice.roll(50) == 0;
        let result = match dice.roll(5) {
            0 => subscriber.try_recv().map(|letter| into.push(letter)),
            1 => subscriber.recv_many(1 + dice.roll(30) as usize, &mut into).map(|_| ()),
            2 if panics => {
                // The first one of those that are there.
                let caught = catch_unwind(AssertUnwindSafe(|| {
                    subscriber.recv_each(|letter| {
                        into.push(letter.clone());
                        std::panic::resume_unwind(Box::new("on purpose"));
                    })
                }));
                match caught {
                    Ok(result) => result.map(|_| ()),
                    Err(_) => {
                        seen.panicked += 1;
                        into.drain(..).for_each(|letter| seen.note(&letter, gapless));
                        Ok(())
                    }
                }
            }
            2 => subscriber.recv_each(|letter| into.push(letter.clone())).map(|_| ()),
            3 => subscriber.for_each_available(|letter| into.push(letter.clone())).map(|_| ()),
            _ => subscriber.recv_with(|letter| {
                if dice.roll(100) == 0 {
                    thread::yield_now();
                }
                into.push(letter.clone());
            }),
        };
        for letter in into.drain(..) {
            seen.note(&letter, gapless);
            seen.received += 1;
        }
        match result {
            Err(ReceiveError::Closed | ReceiveError::Evicted(0)) => break,
            Err(error) => seen.told(error),
            Ok(()) => {}
        }
        if dice.roll(200) == 0 {
            thread::yield_now();
        }
    }
    drop(subscriber);
    seen.settle(&station);
}

fn publish(publisher: &Publisher<Letter>, me: usize, mut dice: Dice, alive: &Arc<AtomicUsize>, most: u64) -> u64 {
    let (mut number, mut refused) = (0, 0);
    while number < most {
        let letter = Letter::new(me, number, alive);
        let result = match dice.roll(4) {
            0 => publisher.try_publish(letter),
            1 => {
                let end = (number + 1 + dice.roll(40)).min(most);
                let mut batch: Vec<_> = (number..end).map(|n| Letter::new(me, n, alive)).collect();
                let result = publisher.publish_all(&mut batch);
                refused += batch.len() as u64;
                number = end - batch.len() as u64;
                if result.is_err() && publisher.is_closed() {
                    break;
                }
                continue;
            }
            _ => publisher.publish(letter),
        };
        match result {
            Ok(()) => number += 1,
            Err(error) => {
                refused += 1;
                assert_eq!(error.into_inner().number, number);
                if publisher.is_closed() {
                    break;
                }
                thread::yield_now();
            }
        }
    }
    REFUSED.fetch_add(refused, Ordering::Relaxed);
    number
}

static REFUSED: AtomicU64 = AtomicU64::new(0);

/// Publishers, subscribers that come, stay or go, panic and are slow; at the end a close, early or when all is published.
fn storm(dice: &mut Dice, policies: &[LagPolicy], publishers: usize, readers: usize, messages: u64) {
    let alive = Arc::new(AtomicUsize::new(0));
    let capacity = [1, 2, 7, 64, 256][dice.roll(5) as usize];
    let broadcast =
        Broadcast::builder().capacity(capacity).retain(dice.roll(3) as usize % (capacity + 1)).build().unwrap();
    let early = dice.roll(3) == 0;
    REFUSED.store(0, Ordering::Relaxed);
    let published = AtomicU64::new(0);
    thread::scope(|scope| {
        let join = |dice: &mut Dice, stay: bool| {
            let policy = policies[dice.roll(policies.len() as u64) as usize];
            let lag = 1 + dice.roll(capacity as u64) as usize;
            let subscriber = broadcast.subscribe().lag(lag).policy(policy).join();
            if let Ok(subscriber) = subscriber {
                let dice = dice.split();
                scope.spawn(move || read(subscriber, policy, publishers, dice, stay));
            }
        };
        (0..readers).for_each(|n| join(dice, n % 3 != 0));
        let threads: Vec<_> = (0..publishers)
            .map(|me| {
                let (publisher, dice, alive, published) = (broadcast.publisher(), dice.split(), &alive, &published);
                scope.spawn(move || {
                    published.fetch_add(publish(&publisher, me, dice, alive, messages), Ordering::Relaxed);
                })
            })
            .collect();
        // More join while it goes on.
        for _ in 0..readers {
            join(dice, false);
            thread::yield_now();
        }
        if early {
            broadcast.close();
        }
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        broadcast.close();
    });
    let seen = broadcast.station().snapshot();
    assert_eq!((seen.served, seen.refused), (published.into_inner(), REFUSED.load(Ordering::Relaxed)));
    assert_eq!(broadcast.subscribers(), 0);
    drop(broadcast);
    assert_eq!(alive.load(Ordering::Relaxed), 0, "every message is dropped once");
}

/// Only one at a time: they count refusals together.
static TURN: Mutex<()> = Mutex::new(());

fn storms(name: &str, policies: &[LagPolicy], rounds: usize) {
    let _turn = TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let mut dice = Dice::new(name);
    for _ in 0..rounds {
        let (publishers, readers) = (1 + dice.roll(4) as usize, 1 + dice.roll(6) as usize);
        storm(&mut dice, policies, publishers, readers, 2_000);
    }
}

#[test]
fn a_storm_of_those_that_block() {
    storms("block", &[LagPolicy::Block], 15);
}

#[test]
fn a_storm_of_those_that_miss() {
    storms("reject", &[LagPolicy::Reject], 15);
}

#[test]
fn a_storm_of_those_that_skip() {
    storms("drop oldest", &[LagPolicy::DropOldest], 15);
}

#[test]
fn a_storm_of_those_that_are_evicted() {
    storms("evict", &[LagPolicy::Evict], 15);
}

#[test]
fn a_storm_of_all_together() {
    storms("all", &POLICIES, 30);
}

/// More threads than any machine has cores: everybody gets everything.
#[test]
fn sixty_four_threads() {
    let broadcast = Broadcast::builder().capacity(256).build().unwrap();
    let total = Arc::new(AtomicU64::new(0));
    thread::scope(|scope| {
        for _ in 0..60 {
            let mut reader = broadcast.subscribe().join().unwrap();
            let total = Arc::clone(&total);
            scope.spawn(move || {
                while let Ok(n) = reader.recv() {
                    total.fetch_add(n, Ordering::Relaxed);
                }
            });
        }
        let publishers: Vec<_> = (0..4)
            .map(|_| {
                let publisher = broadcast.publisher();
                scope.spawn(move || (0..2_000_u64).for_each(|n| publisher.publish(n).unwrap()))
            })
            .collect();
        publishers.into_iter().for_each(|publisher| publisher.join().unwrap());
        broadcast.close_within(Duration::from_secs(60)).unwrap();
    });
    assert_eq!(total.load(Ordering::Relaxed), 60 * 4 * (0..2_000).sum::<u64>());
}

/// One message now and then, to many that sleep: nobody is forgotten, whoever wakes whom.
#[test]
fn single_messages_reach_all_who_sleep() {
    let clock = PausedClock::new();
    let broadcast = Broadcast::builder().capacity(64).clock(&clock).build().unwrap();
    let received = Arc::new(AtomicU64::new(0));
    thread::scope(|scope| {
        for _ in 0..16 {
            let mut reader = broadcast.subscribe().join().unwrap();
            let received = Arc::clone(&received);
            scope.spawn(move || while reader.recv_with(|_| received.fetch_add(1, Ordering::SeqCst)).is_ok() {});
        }
        for n in 0..500_u64 {
            broadcast.publisher().publish(n).unwrap();
            let all = || received.load(Ordering::SeqCst) == 16 * (n + 1);
            assert!(fullbore_testkit::eventually(Duration::from_secs(60), all));
        }
        broadcast.close();
    });
}

/// Counts that are read while everybody records never exceed their cause.
#[test]
fn stations_read_meanwhile_make_sense() {
    let broadcast = Broadcast::<u64>::builder().capacity(32).build().unwrap();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let stations: Vec<_> = POLICIES
            .iter()
            .map(|policy| {
                let mut reader = broadcast.subscribe().lag(8).policy(*policy).join().unwrap();
                let station = reader.station().clone();
                scope.spawn(move || {
                    loop {
                        if let Err(ReceiveError::Closed | ReceiveError::Evicted(_)) = reader.recv_with(|_| ()) {
                            break;
                        }
                    }
                });
                station
            })
            .collect();
        let (done, publisher) = (&done, broadcast.publisher());
        scope.spawn(move || {
            (0..50_000).for_each(|n| publisher.publish(n).unwrap());
            done.store(true, Ordering::Relaxed);
        });
        let mut before = vec![*stations[0].snapshot(); stations.len()];
        before.iter_mut().zip(&stations).for_each(|(before, station)| *before = *station.snapshot());
        while !done.load(Ordering::Relaxed) {
            for (before, station) in before.iter_mut().zip(&stations) {
                let now = *station.snapshot();
                assert!(now.arrivals >= now.begun && now.begun >= now.served + now.failed, "{now:?}");
                let grows = now.arrivals >= before.arrivals && now.refused >= before.refused;
                assert!(grows && now.served >= before.served, "{before:?} then {now:?}");
                *before = now;
            }
        }
        broadcast.close();
    });
}
