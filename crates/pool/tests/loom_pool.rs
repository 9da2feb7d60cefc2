//! Every order of grant, deadline and close, within the bound on preemptions.
//!
//! `RUSTFLAGS="--cfg fullbore_loom" LOOM_MAX_PREEMPTIONS=2 cargo test --release -p fullbore-pool --test loom_pool`
//!
//! A deadline that comes is `PausedClock::advance` here, at any moment that loom chooses. A lost wake-up ends as loom's
//! "deadlock".
#![cfg(fullbore_loom)]
#![allow(missing_docs, clippy::unwrap_used)]

use std::io;
use std::time::Duration;

use fullbore_core::{FAIR_AFTER, PausedClock};
use fullbore_pool::{KeyedManager, KeyedPool};
use loom::thread;

struct Plain;

impl KeyedManager<char> for Plain {
    type Connection = char;
    type Error = io::Error;
    fn connect(&self, key: &char, _: Duration) -> io::Result<char> {
        Ok(*key)
    }
    fn validate(&self, _: &char, _: &mut char, _: Duration) -> io::Result<()> {
        Ok(())
    }
}

type Keyed = KeyedPool<char, Plain>;

/// One place, and nobody gives up by himself.
fn pool(clock: &PausedClock) -> Keyed {
    KeyedPool::builder(Plain).max_size(1).get_timeout(Duration::MAX).clock(clock).build().unwrap()
}

fn is_quiet(pool: &Keyed, idle: usize) {
    let (state, seen) = (pool.status(), pool.station().snapshot());
    assert_eq!((state.size, state.available, state.waiting), (idle, idle, 0));
    assert!(seen.balanced() && seen.waiting() == 0 && seen.in_service() == 0, "{seen:?}");
}

#[test]
fn a_return_serves_everybody_in_line() {
    loom::model(|| {
        let clock = PausedClock::new();
        let pool = pool(&clock);
        let held = pool.get(&'a').unwrap();
        let waiters = ['a', 'b'].map(|key| {
            let pool = pool.clone();
            thread::spawn(move || assert_eq!(*pool.get(&key).unwrap(), key))
        });
        drop(held);
        for waiter in waiters {
            waiter.join().unwrap();
        }
        is_quiet(&pool, 1);
    });
}

#[test]
fn a_waiter_that_gives_up_takes_nothing_with_it() {
    for expire_first in [false, true] {
        loom::model(move || {
            let clock = PausedClock::new();
            let pool = pool(&clock);
            let held = pool.get(&'a').unwrap();
            let deadline = clock.now() + FAIR_AFTER;
            let hasty = {
                let pool = pool.clone();
                thread::spawn(move || match pool.get_deadline(&'a', deadline) {
                    Ok(got) => assert_eq!(*got, 'a'),
                    Err(error) => assert!(error.is_timeout()),
                })
            };
            let patient = {
                let pool = pool.clone();
                thread::spawn(move || assert_eq!(*pool.get(&'a').unwrap(), 'a'))
            };
            if expire_first {
                clock.advance(FAIR_AFTER);
                drop(held);
            } else {
                drop(held);
                clock.advance(FAIR_AFTER);
            }
            hasty.join().unwrap();
            patient.join().unwrap();
            is_quiet(&pool, 1);
        });
    }
}

#[test]
fn a_close_meets_a_return_and_a_waiter() {
    for overdue in [false, true] {
        loom::model(move || {
            let clock = PausedClock::new();
            let pool = pool(&clock);
            let held = pool.get(&'a').unwrap();
            let waiter = {
                let pool = pool.clone();
                thread::spawn(move || match pool.get(&'a') {
                    Ok(got) => drop(got),
                    Err(error) => assert!(error.is_closed()),
                })
            };
            let closer = {
                let pool = pool.clone();
                // Waits for all, without a deadline.
                thread::spawn(move || pool.close_within(Duration::MAX).unwrap())
            };
            if overdue {
                clock.advance(FAIR_AFTER);
            }
            drop(held);
            waiter.join().unwrap();
            closer.join().unwrap();
            assert!(pool.get(&'a').unwrap_err().is_closed());
            is_quiet(&pool, 0);
        });
    }
}

#[test]
fn a_grant_meets_the_deadline() {
    loom::model(|| {
        let clock = PausedClock::new();
        let pool = pool(&clock);
        let held = pool.get(&'b').unwrap();
        let deadline = clock.now() + FAIR_AFTER * 2;
        let waiter = {
            let pool = pool.clone();
            // Of another key: it has to evict. Where its time ends after that, nothing is left, and no place is lost.
            thread::spawn(move || match pool.get_deadline(&'a', deadline) {
                Ok(got) => assert_eq!(*got, 'a'),
                Err(error) => assert!(error.is_timeout()),
            })
        };
        let time = {
            let clock = clock.clone();
            thread::spawn(move || {
                clock.advance(FAIR_AFTER);
                clock.advance(FAIR_AFTER);
            })
        };
        drop(held);
        waiter.join().unwrap();
        time.join().unwrap();
        is_quiet(&pool, pool.status().available);
    });
}

#[test]
fn one_who_comes_without_the_lock_meets_a_waiter() {
    loom::model(|| {
        let clock = PausedClock::new();
        let pool = pool(&clock);
        let held = pool.get(&'a').unwrap();
        let waiter = {
            let pool = pool.clone();
            thread::spawn(move || assert_eq!(*pool.get(&'a').unwrap(), 'a'))
        };
        drop(held);
        // It may overtake the waiter, by the quick way or the other one, and has to leave it the connection then.
        drop(pool.try_get(&'a'));
        waiter.join().unwrap();
        is_quiet(&pool, 1);
    });
}

#[test]
fn two_who_come_without_the_lock_never_have_the_same() {
    loom::model(|| {
        let clock = PausedClock::new();
        let pool = pool(&clock);
        drop(pool.get(&'a').unwrap());
        let other = {
            let pool = pool.clone();
            thread::spawn(move || pool.try_get(&'a').ok().map(|mut mine| *mine = 'b'))
        };
        let mine = pool.try_get(&'a').ok().map(|mut mine| *mine = 'b');
        let theirs = other.join().unwrap();
        assert!(mine.is_some() || theirs.is_some());
        assert_eq!(*pool.try_get(&'a').unwrap(), 'b');
        is_quiet(&pool, 1);
    });
}

#[test]
fn a_soft_eviction_meets_a_return_and_a_checkout() {
    loom::model(|| {
        let clock = PausedClock::new();
        let pool = pool(&clock);
        let held = pool.get(&'a').unwrap();
        let user = {
            let pool = pool.clone();
            thread::spawn(move || {
                drop(held);
                drop(pool.get(&'a').unwrap());
            })
        };
        pool.soft_evict();
        // Whatever was there before is not handed out any more.
        assert_ne!(pool.get(&'a').unwrap().id(), 1);
        user.join().unwrap();
        is_quiet(&pool, 1);
    });
}

#[test]
fn a_pause_meets_a_return_and_a_waiter() {
    loom::model(|| {
        let clock = PausedClock::new();
        let pool = pool(&clock);
        let held = pool.get(&'a').unwrap();
        let waiter = {
            let pool = pool.clone();
            thread::spawn(move || assert_eq!(*pool.get(&'a').unwrap(), 'a'))
        };
        pool.pause();
        drop(held);
        pool.resume();
        waiter.join().unwrap();
        is_quiet(&pool, 1);
    });
}

#[test]
fn a_resize_meets_a_return_and_a_waiter() {
    for max_size in [1, 2] {
        loom::model(move || {
            let clock = PausedClock::new();
            let pool = pool(&clock);
            pool.resize(3 - max_size);
            let held = pool.get(&'a').unwrap();
            let waiter = {
                let pool = pool.clone();
                thread::spawn(move || assert_eq!(*pool.get(&'a').unwrap(), 'a'))
            };
            let user = thread::spawn(move || drop(held));
            pool.resize(max_size);
            waiter.join().unwrap();
            user.join().unwrap();
            let available = pool.status().available;
            assert!((1..=max_size).contains(&available), "{available} of {max_size}");
            is_quiet(&pool, available);
        });
    }
}

#[test]
fn one_who_looks_through_meets_a_return_and_a_waiter() {
    for keep in [true, false] {
        loom::model(move || {
            let clock = PausedClock::new();
            let pool = pool(&clock);
            let held = pool.get(&'a').unwrap();
            let waiter = {
                let pool = pool.clone();
                thread::spawn(move || assert_eq!(*pool.get(&'a').unwrap(), 'a'))
            };
            let user = thread::spawn(move || drop(held));
            // Whatever it takes in hand it gives back, or another one is made.
            let looked_at = pool.retain(|_, _, _| keep);
            assert!(looked_at.retained + looked_at.removed.len() <= 1);
            waiter.join().unwrap();
            user.join().unwrap();
            is_quiet(&pool, pool.status().available);
        });
    }
}
