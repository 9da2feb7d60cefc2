//! The rules of the house (C1-C11) for `fullbore-cache`. The names are the same in every crate.
#![allow(missing_docs, clippy::unwrap_used)]

use std::convert::Infallible;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use fullbore_cache::{Cache, CacheError, Config};
use fullbore_core::{BuildError, Close, EnvReader, PausedClock, Shutdown};

type Numbers = Cache<u32, u32>;

fn on(clock: &PausedClock) -> Numbers {
    Cache::builder().name("test").clock(clock).build().unwrap()
}

fn value(n: u32) -> impl FnOnce(&mut fullbore_cache::LoadCtx) -> Result<u32, Infallible> {
    move |_| Ok(n)
}

/// Starts a load of key 0 on a thread of `scope` that ends, with `outcome`, when the returned sender is used or dropped.
fn slow_load<'s>(
    scope: &'s thread::Scope<'s, '_>,
    cache: &Numbers,
    outcome: io::Result<u32>,
) -> (mpsc::Sender<()>, thread::ScopedJoinHandle<'s, Result<u32, CacheError>>) {
    let (go, gate) = mpsc::channel();
    let (begun, wait_begun) = mpsc::channel();
    let cache = cache.clone();
    let leader = scope.spawn(move || {
        cache.get_or_compute(&0, |_| {
            begun.send(()).unwrap();
            let _ = gate.recv();
            outcome
        })
    });
    wait_begun.recv().unwrap();
    (go, leader)
}

#[test]
fn c1_calls_are_conserved_under_panics_errors_timeouts_and_close() {
    #[derive(Default)]
    struct Seen {
        ok: AtomicU64,
        failed: AtomicU64,
        other: AtomicU64,
        loads: AtomicU64,
        bad_loads: AtomicU64,
    }
    let add = |count: &AtomicU64| count.fetch_add(1, Ordering::Relaxed);
    let cache = Numbers::builder().capacity(8).load_timeout(Duration::from_millis(1)).build().unwrap();
    let seen = Seen::default();
    const THREADS: u32 = 32;
    const ROUNDS: u32 = 300;
    thread::scope(|scope| {
        for n in 0..THREADS {
            let (cache, seen) = (&cache, &seen);
            scope.spawn(move || {
                for round in 0..ROUNDS {
                    let dice = n.wrapping_mul(2_654_435_761).wrapping_add(round.wrapping_mul(40_503)) >> 3;
                    let key = dice % 13;
                    let load = |_: &mut fullbore_cache::LoadCtx| {
                        add(&seen.loads);
                        thread::yield_now();
                        match dice % 7 {
                            0 => {
                                add(&seen.bad_loads);
                                resume_unwind(Box::new("on purpose"))
                            }
                            1 => {
                                add(&seen.bad_loads);
                                Err(io::Error::other("on purpose"))
                            }
                            _ => Ok(key),
                        }
                    };
                    let call = || match dice % 5 {
                        0 => cache.get_or_compute_deadline(&key, Instant::now(), load),
                        _ => cache.get_or_compute(&key, load),
                    };
                    match catch_unwind(AssertUnwindSafe(call)) {
                        Ok(Ok(value)) => {
                            assert_eq!(value, key);
                            add(&seen.ok)
                        }
                        Err(_) | Ok(Err(CacheError::Load(_))) => add(&seen.failed),
                        Ok(Err(_)) => add(&seen.other),
                    };
                    match dice % 11 {
                        0 => drop(cache.remove(&key)),
                        1 => cache.insert(key, key),
                        2 => cache.clear(),
                        _ => {}
                    }
                }
                if n == THREADS - 1 {
                    cache.close();
                }
            });
        }
    });
    let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
    let station = cache.station().snapshot();
    assert!(station.balanced(), "{station:?}");
    assert_eq!((station.waiting(), station.in_service()), (0, 0));
    assert_eq!(station.offered(), u64::from(THREADS * ROUNDS));
    assert_eq!(station.served, read(&seen.ok));
    assert_eq!(station.failed, read(&seen.failed));
    assert_eq!(station.returned + station.refused, read(&seen.other));
    let stats = cache.stats();
    assert_eq!((stats.loads, stats.load_failures), (read(&seen.loads), read(&seen.bad_loads)));
    assert_eq!(stats.hits + stats.misses, u64::from(THREADS * ROUNDS));
    assert_eq!(cache.close_within(Duration::ZERO), Ok(()), "no flight was left behind");
}

#[test]
fn c2_the_capacity_is_held_under_64_threads() {
    let cache = Numbers::builder().capacity(100).build().unwrap();
    thread::scope(|scope| {
        for n in 0..64 {
            let cache = &cache;
            scope.spawn(move || {
                for k in 0..200 {
                    cache.get_or_compute(&(n * 200 + k), value(k)).unwrap();
                }
            });
        }
    });
    let count = cache.entry_count();
    assert!((1..=100).contains(&count), "{count}");
}

#[test]
fn c2_weight_bounds_too_and_zero_counts_as_one() {
    let heavy = Numbers::builder().capacity(100).weigher(|_, weight| *weight).build().unwrap();
    for key in 0..1000 {
        heavy.insert(key, 30);
    }
    assert!((1..=3).contains(&heavy.entry_count()), "{}", heavy.entry_count());
    heavy.insert(5000, 10);
    heavy.insert(5000, 101);
    assert_eq!(heavy.get(&5000), None, "heavier than the cache, and the old value must not come back");
    heavy.clear();
    for key in 0..1000 {
        heavy.insert(key, 0);
    }
    assert!((1..=100).contains(&heavy.entry_count()), "{}", heavy.entry_count());
}

#[test]
fn c2_the_capacity_can_be_changed() {
    let cache = Cache::<u32, u32>::builder().capacity(1000).ttl(None).build().unwrap();
    (0..1000).for_each(|key| cache.insert(key, key));
    assert_eq!((cache.entry_count(), cache.weight()), (1000, 1000));
    cache.resize(10);
    assert_eq!((cache.entry_count(), cache.weight()), (10, 10));
    cache.resize(20);
    (2000..3000).for_each(|key| {
        // Twice: what is asked for once only is not worth more than what is there.
        cache.insert(key, key);
        cache.insert(key, key);
    });
    assert_eq!((cache.entry_count(), cache.weight()), (20, 20));
    cache.resize(0);
    assert_eq!((cache.entry_count(), cache.weight()), (0, 0));
}

#[test]
fn c2_what_is_large_makes_room_for_itself_in_every_shard() {
    let weigher = |_: &u32, weight: &u32| *weight;
    let cache = Cache::<u32, u32>::builder().capacity(10_000).weigher(weigher).ttl(None).build().unwrap();
    (0..10_000).for_each(|key| cache.insert(key, 1));
    for _ in 0..100 {
        cache.insert(77_777, 9_000);
    }
    assert!(cache.weight() <= 10_000 && cache.entry_count() <= 10_000, "{} in {}", cache.weight(), cache.entry_count());
}

#[test]
fn a_look_without_a_trace() {
    let clock = PausedClock::new();
    let cache = Cache::<u32, u32>::builder().ttl(Duration::from_secs(10)).clock(&clock).build().unwrap();
    assert_eq!((cache.peek(&1), cache.ttl_left(&1)), (None, None));
    cache.insert(1, 7);
    clock.advance(Duration::from_secs(4));
    assert_eq!((cache.peek(&1), cache.ttl_left(&1)), (Some(7), Some(Some(Duration::from_secs(6)))));
    clock.advance(Duration::from_secs(6));
    assert_eq!((cache.peek(&1), cache.ttl_left(&1)), (None, None));
    assert_eq!((cache.stats().hits, cache.stats().misses), (0, 0));
    let forever = Cache::<u32, String>::builder().ttl(None).build().unwrap();
    forever.insert(1, "seven".into());
    assert_eq!((forever.peek(&1).as_deref(), forever.ttl_left(&1)), (Some("seven"), Some(None)));
}

#[test]
fn c3_every_wait_has_a_deadline() {
    let clock = PausedClock::new();
    let cache = on(&clock);
    thread::scope(|scope| {
        let (go, leader) = slow_load(scope, &cache, Ok(1));
        assert!(cache.get_or_compute_deadline(&0, clock.now(), value(2)).unwrap_err().is_timeout());
        let by_default = scope.spawn(|| cache.get_or_compute(&0, value(2)));
        clock.wait_for_waiters(1);
        let by_deadline =
            scope.spawn(|| cache.get_or_compute_deadline(&0, clock.now() + Duration::from_secs(5), value(2)));
        clock.wait_for_waiters(2);
        let patient =
            scope.spawn(|| cache.get_or_compute_deadline(&0, clock.now() + Duration::from_secs(60), value(2)));
        clock.wait_for_waiters(3);
        clock.advance(Duration::from_secs(5));
        assert!(by_deadline.join().unwrap().unwrap_err().is_timeout());
        clock.advance(Duration::from_secs(25));
        assert!(by_default.join().unwrap().unwrap_err().is_timeout());
        // The hung load has cost its waiters nothing but their time: it still ends, and is kept.
        go.send(()).unwrap();
        assert_eq!(leader.join().unwrap().unwrap(), 1);
        assert_eq!(patient.join().unwrap().unwrap(), 1);
    });
    assert_eq!(cache.get(&0), Some(1));
    assert_eq!(cache.stats().wait_timeouts, 3);
    // A deadline that has passed begins no load, and finds what is there.
    let late = cache.get_or_compute_deadline(&1, clock.now(), |_| -> io::Result<u32> { panic!("no load") });
    assert!(late.unwrap_err().is_timeout());
    assert_eq!(cache.get_or_compute_deadline(&0, clock.now(), value(2)).unwrap(), 1);
    // A load is told the deadline of its call.
    let deadline = clock.now() + Duration::from_secs(1);
    let told = |ctx: &mut fullbore_cache::LoadCtx| {
        assert_eq!(ctx.deadline(), Some(deadline));
        Ok::<_, Infallible>(3)
    };
    assert_eq!(cache.get_or_compute_deadline(&2, deadline, told).unwrap(), 3);
}

#[test]
fn c3_a_timeout_too_long_to_represent_means_never() {
    let clock = PausedClock::new();
    let cache = Numbers::builder()
        .load_timeout(Duration::MAX)
        .load_limit(None)
        .ttl(Duration::MAX)
        .clock(&clock)
        .build()
        .unwrap();
    thread::scope(|scope| {
        let (go, leader) = slow_load(scope, &cache, Ok(1));
        let waiter = scope.spawn(|| cache.get_or_compute(&0, value(2)));
        clock.wait_for_waiters(1);
        assert_eq!(clock.timers(), 0);
        go.send(()).unwrap();
        assert_eq!((leader.join().unwrap().unwrap(), waiter.join().unwrap().unwrap()), (1, 1));
    });
    clock.advance(Duration::from_secs(100 * 365 * 24 * 3600));
    assert_eq!(cache.get(&0), Some(1));
}

#[test]
fn c4_a_panic_of_the_leader_goes_on_and_the_waiters_learn_of_it() {
    let clock = PausedClock::new();
    let cache = on(&clock);
    thread::scope(|scope| {
        let (go, gate) = mpsc::channel::<()>();
        let (begun, wait_begun) = mpsc::channel();
        let cache = &cache;
        let leader = scope.spawn(move || {
            let load = |_: &mut fullbore_cache::LoadCtx| -> io::Result<u32> {
                begun.send(()).unwrap();
                gate.recv().unwrap();
                panic!("on purpose");
            };
            catch_unwind(AssertUnwindSafe(|| cache.get_or_compute(&0, load)))
        });
        wait_begun.recv().unwrap();
        let waiter = scope.spawn(|| cache.get_or_compute(&0, value(2)));
        clock.wait_for_waiters(1);
        go.send(()).unwrap();
        let payload = leader.join().unwrap().unwrap_err();
        assert_eq!(payload.downcast_ref::<&str>(), Some(&"on purpose"), "the caller's panic is resumed");
        let error = waiter.join().unwrap().unwrap_err();
        assert!(error.failure().unwrap().is_panic());
        assert_eq!(error.to_string(), "the load failed: panicked: on purpose");
    });
    assert_eq!(cache.get_or_compute(&0, value(3)).unwrap(), 3, "the key is free");
    let seen = cache.station().snapshot();
    assert!(seen.balanced());
    assert_eq!((seen.failed, seen.served, seen.in_service()), (2, 1, 0));
}

#[test]
fn c4_a_weigher_may_panic() {
    let weigher = |_: &u32, value: &u32| if *value == 13 { panic!("on purpose") } else { 1 };
    let cache = Numbers::builder().weigher(weigher).build().unwrap();
    cache.insert(0, 1);
    assert!(catch_unwind(AssertUnwindSafe(|| cache.insert(0, 13))).is_err());
    assert_eq!(cache.get(&0), Some(1), "an insert that panicked has changed nothing");
    assert!(catch_unwind(AssertUnwindSafe(|| cache.get_or_compute(&1, value(13)))).is_err());
    assert_eq!(cache.get_or_compute(&1, value(2)).unwrap(), 2, "the key is free");
    assert_eq!(cache.close_within(Duration::ZERO), Ok(()));
}

#[test]
fn c4_a_clone_may_panic() {
    // With a destructor, or it would lie in the table itself and be cloned there.
    struct Brittle(u32, Box<u32>);
    impl Clone for Brittle {
        fn clone(&self) -> Self {
            assert!(self.0 < 10, "on purpose");
            Self(self.0, self.1.clone())
        }
    }
    let brittle = |n| Brittle(n, Box::new(n));
    let cache = Cache::<u32, Brittle>::builder().build().unwrap();
    let load = |n| catch_unwind(AssertUnwindSafe(|| cache.get_or_compute(&0, |_| Ok::<_, Infallible>(brittle(n)))));
    assert!(load(10).is_err());
    assert!(load(1).is_ok(), "the key is free");
    cache.insert(1, brittle(10));
    assert!(catch_unwind(AssertUnwindSafe(|| cache.get(&1))).is_err());
    assert!(catch_unwind(AssertUnwindSafe(|| cache.get_or_compute(&1, |_| Ok::<_, Infallible>(brittle(1))))).is_err());
    assert!(catch_unwind(AssertUnwindSafe(|| cache.remove(&1))).is_err());
    assert!(cache.get(&1).is_none());
    let seen = cache.station().snapshot();
    assert!(seen.balanced() && seen.in_service() == 0, "{seen:?}");
    assert_eq!((seen.served, seen.failed), (1, 2));
}

#[test]
fn c4_a_clone_may_panic_in_the_table() {
    struct Brittle(u32);
    impl Clone for Brittle {
        fn clone(&self) -> Self {
            assert!(self.0 < 10, "on purpose");
            Self(self.0)
        }
    }
    let cache = Cache::<u32, Brittle>::builder().build().unwrap();
    cache.insert(1, Brittle(10));
    assert!(catch_unwind(AssertUnwindSafe(|| cache.get(&1))).is_err());
    assert!(catch_unwind(AssertUnwindSafe(|| cache.get_or_compute(&1, |_| Ok::<_, Infallible>(Brittle(1))))).is_err());
    cache.insert(1, Brittle(2));
    assert_eq!(cache.get(&1).unwrap().0, 2, "nothing is locked");
    assert!(cache.station().snapshot().balanced());
}

#[test]
fn c4_a_key_may_panic_while_its_load_ends() {
    static ANGRY: AtomicBool = AtomicBool::new(false);
    #[derive(Clone, Copy)]
    struct Moody;
    impl PartialEq for Moody {
        fn eq(&self, _: &Self) -> bool {
            true
        }
    }
    impl Eq for Moody {}
    impl std::hash::Hash for Moody {
        fn hash<H: std::hash::Hasher>(&self, _: &mut H) {
            assert!(!ANGRY.load(Ordering::Relaxed), "on purpose");
        }
    }
    let cache = Cache::<Moody, u32>::builder().build().unwrap();
    let call = || {
        cache.get_or_compute(&Moody, |_| {
            ANGRY.store(true, Ordering::Relaxed);
            Ok::<_, Infallible>(1)
        })
    };
    assert!(catch_unwind(AssertUnwindSafe(call)).is_err());
    ANGRY.store(false, Ordering::Relaxed);
    assert_eq!(cache.get_or_compute(&Moody, |_| Ok::<_, Infallible>(2)).unwrap(), 2, "the key is free");
    assert_eq!(cache.close_within(Duration::ZERO), Ok(()));
}

#[test]
fn c4_destructors_run_outside_all_locks_and_may_panic() {
    static CACHE: OnceLock<Cache<u32, Noisy>> = OnceLock::new();
    static DROPPED: AtomicUsize = AtomicUsize::new(0);
    #[derive(Clone)]
    struct Noisy(bool);
    impl Drop for Noisy {
        fn drop(&mut self) {
            if self.0 && !thread::panicking() {
                DROPPED.fetch_add(1, Ordering::Relaxed);
                // Any of these would hang or fail under a lock of ours or of the store.
                let cache = CACHE.get().unwrap();
                for key in 0..20 {
                    cache.insert(100_000 + key, Noisy(false));
                    cache.remove(&key);
                }
                cache.clear();
                assert!(cache.get_or_compute(&7, |_| Ok::<_, Infallible>(Noisy(false))).is_ok());
                panic!("on purpose");
            }
        }
    }
    let cache = CACHE.get_or_init(|| Cache::builder().capacity(20).build().unwrap());
    for key in 0..1000 {
        cache.insert(key, Noisy(true));
        let load = |_: &mut fullbore_cache::LoadCtx| Ok::<_, Infallible>(Noisy(false));
        cache.get_or_compute(&(10_000 + key), load).unwrap();
    }
    assert!(DROPPED.load(Ordering::Relaxed) > 100, "{DROPPED:?}");
}

#[test]
fn c5_close_wakes_those_who_wait_and_leaves_the_rest() {
    let clock = PausedClock::new();
    let cache = on(&clock);
    cache.insert(1, 10);
    thread::scope(|scope| {
        let (go, leader) = slow_load(scope, &cache, Ok(1));
        let waiter = scope.spawn(|| cache.get_or_compute(&0, value(2)));
        clock.wait_for_waiters(1);
        cache.clone().close();
        cache.close();
        assert!(waiter.join().unwrap().unwrap_err().is_closed());
        assert!(cache.get_or_compute(&0, value(2)).unwrap_err().is_closed(), "nobody joins");
        assert!(cache.get_or_compute(&2, value(2)).unwrap_err().is_closed(), "nothing begins");
        assert_eq!(cache.get_or_compute(&1, value(2)).unwrap(), 10, "values stay readable");
        assert_eq!(cache.close_within(Duration::ZERO).unwrap_err().in_flight, 1);
        let closer = scope.spawn(|| cache.close_within(Duration::from_secs(10)));
        clock.wait_for_waiters(1);
        go.send(()).unwrap();
        assert_eq!(closer.join().unwrap(), Ok(()));
        assert_eq!(leader.join().unwrap().unwrap(), 1, "a load that had begun ends as usual");
    });
    assert_eq!(cache.get(&0), Some(1));
    cache.insert(1, 11);
    assert_eq!((cache.get(&1), cache.remove(&1), cache.get(&1)), (Some(11), Some(11), None));
    let seen = cache.station().snapshot();
    assert!(seen.balanced() && seen.waiting() + seen.in_service() == 0, "{seen:?}");
    assert_eq!((seen.served, seen.returned, seen.refused), (2, 1, 2));
}

#[test]
fn c5_close_wakes_also_those_whose_flight_was_invalidated() {
    let clock = PausedClock::new();
    let cache = on(&clock);
    thread::scope(|scope| {
        let (go, leader) = slow_load(scope, &cache, Ok(1));
        let waiter = scope.spawn(|| cache.get_or_compute(&0, value(2)));
        clock.wait_for_waiters(1);
        cache.remove(&0);
        cache.close();
        assert!(waiter.join().unwrap().unwrap_err().is_closed());
        assert_eq!(cache.close_within(Duration::ZERO).unwrap_err().in_flight, 1, "it still runs");
        drop(go);
        leader.join().unwrap().unwrap();
    });
}

#[test]
fn c5_a_shutdown_closes_it() {
    let cache = Numbers::builder().name("users").build().unwrap();
    let shutdown = Shutdown::new();
    shutdown.register(cache.clone());
    let report = shutdown.close_within(Duration::from_secs(1));
    assert!(report.is_clean());
    assert_eq!(report.parts()[0].0, "users");
    assert_eq!(Close::name(&cache), "users");
    assert!(cache.get_or_compute(&0, value(1)).unwrap_err().is_closed());
}

#[test]
fn c6_there_is_always_a_station() {
    let clock = PausedClock::new();
    let cache = on(&clock);
    thread::scope(|scope| {
        let (go, leader) = slow_load(scope, &cache, Ok(1));
        let waiter = scope.spawn(|| cache.get_or_compute(&0, value(2)));
        clock.wait_for_waiters(1);
        let seen = cache.station().snapshot();
        assert_eq!((seen.waiting(), seen.in_service()), (1, 1));
        go.send(()).unwrap();
        leader.join().unwrap().unwrap();
        waiter.join().unwrap().unwrap();
    });
    cache.get_or_compute(&0, value(2)).unwrap();
    let _ = cache.get_or_compute(&1, |_| Err::<u32, _>(io::Error::other("no")));
    let seen = cache.station().snapshot();
    assert_eq!((seen.name(), seen.kind().name(), seen.arrivals), ("test", "cache", 4));
    assert_eq!((seen.served, seen.failed), (3, 1));
    assert_eq!(seen.wait().count(), 1, "a wait is timed each time");
    assert!((2..=3).contains(&seen.service().count()), "loads each time, hits now and then");
    let stats = cache.stats();
    assert_eq!((stats.hits, stats.misses, stats.loads, stats.load_failures, stats.waits), (1, 3, 2, 1, 1));
    assert_eq!(stats.hit_ratio(), Some(0.25));
}

#[test]
fn c6_hits_are_timed_now_and_then() {
    let cache = Numbers::builder().build().unwrap();
    for _ in 0..64_000 {
        cache.get_or_compute(&0, value(1)).unwrap();
    }
    // 1,000 expected with a standard deviation of 31.
    let timed = cache.station().snapshot().service().count();
    assert!((750..1250).contains(&timed), "{timed}");
}

#[test]
fn c7_nonsense_is_refused_by_name() {
    let error = Numbers::builder().ttl(Duration::ZERO).build().unwrap_err();
    assert!(matches!(&error, BuildError::Config { field, .. } if field == "ttl"), "{error}");
    let env = |name: &str, value: &str| {
        Config::read(EnvReader::from_vars("APP_", [(name.to_owned().into(), value.to_owned().into())]))
    };
    assert_eq!(env("APP_CAPACITY", "7").unwrap().capacity, 7);
    assert_eq!(env("APP_TTL", "none").unwrap().ttl, None);
    assert_eq!(env("APP_TTL", "250ms").unwrap().ttl, Some(Duration::from_millis(250)));
    assert_eq!(env("APP_LOAD_TIMEOUT", "1s").unwrap().load_timeout, Duration::from_secs(1));
    assert_eq!(env("APP_NAME", "users").unwrap().name, "users");
    assert_eq!(env("APP_CAPACITY", "many").unwrap_err().field(), Some("APP_CAPACITY"));
    assert_eq!(env("APP_SIZE", "7").unwrap_err().field(), Some("APP_SIZE"));
    let config = Config { capacity: 1, ..Config::default() };
    let cache = Numbers::builder().config(config).build().unwrap();
    cache.insert(0, 0);
    cache.insert(1, 1);
    assert_eq!(cache.entry_count(), 1);
}

#[cfg(feature = "serde")]
#[test]
fn c7_a_file_is_read_and_unknown_fields_are_refused() {
    let config: Config = serde_json::from_str(r#"{"capacity": 5, "ttl": "none", "load_timeout": "1m 30s"}"#).unwrap();
    assert_eq!((config.capacity, config.ttl, config.load_timeout), (5, None, Duration::from_secs(90)));
    assert!(serde_json::from_str::<Config>(r#"{"size": 5}"#).unwrap_err().to_string().contains("size"));
}

#[test]
fn c8_errors_say_why() {
    let clock = PausedClock::new();
    let cache = on(&clock);
    thread::scope(|scope| {
        let (go, leader) = slow_load(scope, &cache, Ok(1));
        clock.advance(Duration::from_secs(1));
        let waiters: Vec<_> = (0..3).map(|_| scope.spawn(|| cache.get_or_compute(&0, value(2)))).collect();
        clock.wait_for_waiters(3);
        clock.advance(Duration::from_secs(30));
        let mut waiting: Vec<_> = waiters
            .into_iter()
            .map(|waiter| {
                let error = waiter.join().unwrap().unwrap_err();
                let state = error.state().unwrap().clone();
                assert_eq!((state.name.as_str(), state.load_age), ("test", Some(Duration::from_secs(31))));
                let text = format!(
                    "timed out waiting for a value: a load of test has run for 31.0s, {} waiting",
                    state.waiting
                );
                assert_eq!(error.to_string(), text);
                state.waiting
            })
            .collect();
        waiting.sort_unstable();
        assert_eq!(waiting, [1, 2, 3], "each as it found them when it left");
        drop(go);
        leader.join().unwrap().unwrap();
    });
    let error = cache.get_or_compute(&1, |_| Err::<u32, _>(io::Error::other("no such table"))).unwrap_err();
    assert!(error.is_load());
    assert_eq!(error.to_string(), "the load failed: no such table");
    assert_eq!(error.downcast_ref::<io::Error>().unwrap().kind(), io::ErrorKind::Other);
    let text = cache.get_or_compute(&1, |_| Err::<u32, _>("plain text will do")).unwrap_err();
    assert_eq!(text.to_string(), "the load failed: plain text will do");
    let late = cache.get_or_compute_deadline(&1, clock.now(), value(1)).unwrap_err();
    assert_eq!(late.to_string(), "timed out waiting for a value: no load of test was begun");
}

#[test]
fn c10_a_waiter_arms_one_timer_and_an_idle_cache_none() {
    let clock = PausedClock::new();
    let cache = on(&clock);
    cache.insert(5, 5);
    assert_eq!(clock.timers(), 0, "expiry needs no timer");
    thread::scope(|scope| {
        let (go, leader) = slow_load(scope, &cache, Ok(1));
        assert_eq!(clock.timers(), 0);
        let waiter = scope.spawn(|| cache.get_or_compute(&0, value(2)));
        clock.wait_for_waiters(1);
        assert_eq!(clock.timers(), 1);
        go.send(()).unwrap();
        leader.join().unwrap().unwrap();
        waiter.join().unwrap().unwrap();
    });
    assert_eq!(clock.timers(), 0);
}

#[cfg(feature = "tracing")]
#[test]
fn c11_panics_can_be_followed() {
    #[derive(Clone)]
    struct Bomb(bool);
    impl Drop for Bomb {
        fn drop(&mut self) {
            if self.0 {
                resume_unwind(Box::new("a destructor's panic"));
            }
        }
    }
    let of_loads = fullbore_testkit::events::capture(|| {
        let cache = Numbers::builder().name("followed").build().unwrap();
        for _ in 0..3 {
            let load = |_: &mut fullbore_cache::LoadCtx| -> io::Result<u32> { resume_unwind(Box::new("a load's")) };
            assert!(catch_unwind(AssertUnwindSafe(|| cache.get_or_compute(&0, load))).is_err());
        }
    });
    assert_eq!(of_loads.len(), 1, "rate-limited: {of_loads:?}");
    assert!(of_loads[0].contains("followed") && of_loads[0].contains("panicked: a load's"), "{of_loads:?}");
    let of_destructors = fullbore_testkit::events::capture(|| {
        // The store may take its time with what is displaced; what it does not keep is dropped by this very call.
        let cache = Cache::<u32, Bomb>::builder().name("followed").capacity(0).build().unwrap();
        cache.insert(0, Bomb(true));
    });
    assert_eq!(of_destructors.len(), 1, "{of_destructors:?}");
    assert!(of_destructors[0].contains("a value's destructor panicked"), "{of_destructors:?}");
}
