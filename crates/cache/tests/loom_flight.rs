//! The whole cache under the model checker, over a plain map in place of the store:
//! `RUSTFLAGS="--cfg fullbore_loom" cargo test --release -p fullbore-cache --test loom_flight`.
//!
//! The "database" behind a cache is an atomic number that a writer changes before it invalidates: whoever asks after the
//! invalidation must see the new number, in every interleaving.
#![cfg(fullbore_loom)]
#![allow(missing_docs, clippy::unwrap_used)]

use std::convert::Infallible;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::Duration;

use fullbore_cache::{Cache, CacheError};
use fullbore_core::{Clock, PausedClock};
use loom::sync::Arc;
use loom::sync::atomic::{AtomicU32, Ordering};
use loom::thread;

fn model(check: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(check);
}

fn cache(clock: impl Into<Clock>) -> Cache<u8, u32> {
    Cache::builder().ttl(None).clock(clock).build().unwrap()
}

struct World {
    cache: Cache<u8, u32>,
    database: AtomicU32,
    loads: AtomicU32,
}

impl World {
    fn new() -> Arc<Self> {
        let paused = PausedClock::new();
        Arc::new(Self { cache: cache(paused), database: AtomicU32::new(1), loads: AtomicU32::new(0) })
    }

    fn read(&self) -> u32 {
        self.cache
            .get_or_compute(&0, |_| {
                self.loads.fetch_add(1, Ordering::SeqCst);
                Ok::<_, Infallible>(self.database.load(Ordering::SeqCst))
            })
            .unwrap()
    }
}

/// A reader on a second thread against a writer that invalidates and then asks for itself.
fn no_stale_value_after(invalidate: fn(&Cache<u8, u32>)) {
    model(move || {
        let world = World::new();
        let reader = {
            let world = Arc::clone(&world);
            thread::spawn(move || world.read())
        };
        world.database.store(2, Ordering::SeqCst);
        invalidate(&world.cache);
        assert_eq!(world.read(), 2, "a value from before the invalidation");
        assert!([1, 2].contains(&reader.join().unwrap()));
        assert_eq!(world.cache.get(&0), Some(2), "a late load reached the cache");
    });
}

#[test]
fn a_cold_key_is_loaded_once() {
    model(|| {
        let world = World::new();
        let other = {
            let world = Arc::clone(&world);
            thread::spawn(move || world.read())
        };
        assert_eq!(world.read(), 1);
        assert_eq!(other.join().unwrap(), 1);
        assert_eq!(world.loads.load(Ordering::SeqCst), 1);
        assert_eq!(world.cache.get(&0), Some(1));
        let seen = world.cache.station().snapshot();
        assert!(seen.balanced() && seen.served == 2 && seen.waiting() + seen.in_service() == 0, "{seen:?}");
    });
}

#[test]
fn remove_wins_over_a_load() {
    no_stale_value_after(|cache| {
        cache.remove(&0);
    });
}

#[test]
fn clear_wins_over_a_load() {
    no_stale_value_after(Cache::clear);
}

#[test]
fn insert_wins_over_a_load() {
    no_stale_value_after(|cache| cache.insert(0, 2));
}

#[test]
fn a_clear_never_kills_a_later_insert() {
    model(|| {
        let world = World::new();
        let inserter = {
            let world = Arc::clone(&world);
            thread::spawn(move || world.cache.insert(0, 1))
        };
        world.cache.clear();
        world.cache.insert(0, 2);
        assert!([1, 2].contains(&world.cache.get(&0).unwrap()));
        inserter.join().unwrap();
        assert!(world.cache.get(&0).is_some());
    });
}

#[test]
fn a_panic_of_the_leader_reaches_the_waiter_and_frees_the_key() {
    model(|| {
        let world = World::new();
        let leader = {
            let world = Arc::clone(&world);
            thread::spawn(move || {
                let load = || world.cache.get_or_compute(&0, |_| -> io::Result<u32> { resume_unwind(Box::new("no")) });
                // It may have been faster, or slower, than the other: only its own load panics.
                catch_unwind(AssertUnwindSafe(load)).is_err()
            })
        };
        let mine = world.cache.get_or_compute(&0, |_| Ok::<_, Infallible>(7));
        let panicked = leader.join().unwrap();
        match mine {
            Ok(value) => assert_eq!(value, 7),
            Err(CacheError::Load(failure)) => assert!(failure.is_panic() && panicked),
            Err(other) => panic!("{other}"),
        }
        let _ = world.cache.get_or_compute(&0, |_| Ok::<_, Infallible>(7)).unwrap();
        let seen = world.cache.station().snapshot();
        assert!(seen.balanced() && seen.waiting() + seen.in_service() == 0, "{seen:?}");
    });
}

#[test]
fn a_deadline_races_with_the_landing() {
    model(|| {
        let clock = PausedClock::new();
        let cache = Arc::new(cache(&clock));
        let other = {
            let cache = Arc::clone(&cache);
            thread::spawn(move || cache.get_or_compute(&0, |_| Ok::<_, Infallible>(1)))
        };
        let advance = thread::spawn(move || clock.advance(Duration::from_secs(30)));
        let mine = cache.get_or_compute(&0, |_| Ok::<_, Infallible>(1));
        advance.join().unwrap();
        let other = other.join().unwrap();
        for result in [&mine, &other] {
            assert!(matches!(result, Ok(1) | Err(CacheError::TimedOut(_))), "{result:?}");
        }
        assert!(mine.is_ok() || other.is_ok(), "the leader never times out");
        assert_eq!(cache.get(&0), Some(1));
    });
}

#[test]
fn close_races_with_a_waiter() {
    model(|| {
        let world = World::new();
        let other = {
            let world = Arc::clone(&world);
            thread::spawn(move || world.cache.get_or_compute(&0, |_| Ok::<_, Infallible>(1)))
        };
        let closer = {
            let world = Arc::clone(&world);
            thread::spawn(move || world.cache.close_within(Duration::MAX))
        };
        let mine = world.cache.get_or_compute(&0, |_| Ok::<_, Infallible>(1));
        closer.join().unwrap().unwrap();
        for result in [mine, other.join().unwrap()] {
            assert!(matches!(result, Ok(1) | Err(CacheError::Closed)), "{result:?}");
        }
    });
}

#[test]
fn the_removal_of_a_tag_wins_over_a_load_that_bears_it() {
    model(|| {
        let world = World::new();
        let read = |world: &World| {
            world.cache.get_or_compute(&0, |ctx| {
                ctx.tags(["t"]);
                Ok::<_, Infallible>(world.database.load(Ordering::SeqCst))
            })
        };
        let reader = {
            let world = Arc::clone(&world);
            thread::spawn(move || read(&world).unwrap())
        };
        world.database.store(2, Ordering::SeqCst);
        world.cache.remove_by_tag("t");
        assert_eq!(read(&world).unwrap(), 2, "a value from before the removal");
        assert!([1, 2].contains(&reader.join().unwrap()));
        assert_eq!(world.cache.get(&0), Some(2), "a late load reached the cache");
    });
}

/// A load that may count as hung against one that takes its key: both values are good, one of them is kept, and nobody is left behind.
#[test]
fn a_hung_load_and_its_successor_both_land() {
    model(|| {
        let clock = PausedClock::new();
        let cache =
            Cache::<u8, u32>::builder().ttl(None).load_limit(Duration::from_secs(1)).clock(&clock).build().unwrap();
        let first = {
            let cache = cache.clone();
            thread::spawn(move || {
                cache.get_or_compute(&0, |_| {
                    clock.advance(Duration::from_secs(1));
                    Ok::<_, Infallible>(1)
                })
            })
        };
        let second = cache.get_or_compute(&0, |_| Ok::<_, Infallible>(2)).unwrap();
        let first = first.join().unwrap().unwrap();
        let there = cache.get(&0).expect("nothing was invalidated");
        assert!(there == first || there == second, "{there} of {first} and {second}");
        assert_eq!(cache.stats().abandoned, 0);
        assert!(cache.station().snapshot().balanced());
    });
}
