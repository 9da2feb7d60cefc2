//! The races that users of other caches have met, each as a test with a fixed order of events.
#![allow(missing_docs, clippy::unwrap_used)]

use std::convert::Infallible;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Barrier, mpsc};
use std::thread;
use std::time::Duration;

use fullbore_cache::{Cache, CacheError, LoadCtx};
use fullbore_core::PausedClock;

type Numbers = Cache<u32, u32>;

fn value(n: u32) -> impl FnOnce(&mut LoadCtx) -> Result<u32, Infallible> {
    move |_| Ok(n)
}

fn no_load(_: &mut LoadCtx) -> io::Result<u32> {
    panic!("no load was expected")
}

fn on(clock: &PausedClock) -> Numbers {
    Cache::builder().name("test").clock(clock).build().unwrap()
}

/// Runs `meanwhile` while a load of key 0 is under way and one caller waits for it; the load ends afterwards with 1, which
/// is what both must get.
fn during_a_load(cache: &Numbers, clock: &PausedClock, meanwhile: impl FnOnce()) {
    thread::scope(|scope| {
        let (go, gate) = mpsc::channel::<()>();
        let (begun, wait_begun) = mpsc::channel();
        let leader = scope.spawn(move || {
            cache.get_or_compute(&0, |_| {
                begun.send(()).unwrap();
                gate.recv().unwrap();
                Ok::<_, Infallible>(1)
            })
        });
        wait_begun.recv().unwrap();
        let waiter = scope.spawn(|| cache.get_or_compute(&0, no_load));
        clock.wait_for_waiters(1);
        meanwhile();
        go.send(()).unwrap();
        assert_eq!(leader.join().unwrap().unwrap(), 1);
        assert_eq!(waiter.join().unwrap().unwrap(), 1);
    });
}

#[test]
fn stampede_64_threads_on_a_cold_key_load_once() {
    for capacity in [10_000, 0] {
        let clock = PausedClock::new();
        let cache = Numbers::builder().capacity(capacity).clock(&clock).build().unwrap();
        let start = Barrier::new(64);
        let loads = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..64 {
                scope.spawn(|| {
                    start.wait();
                    let load = |_: &mut LoadCtx| {
                        loads.fetch_add(1, Ordering::Relaxed);
                        clock.wait_for_waiters(63);
                        Ok::<_, Infallible>(7)
                    };
                    assert_eq!(cache.get_or_compute(&0, load).unwrap(), 7);
                });
            }
        });
        assert_eq!(loads.load(Ordering::Relaxed), 1);
        assert_eq!((cache.stats().loads, cache.stats().waits), (1, 63));
        // Capacity 0 passes through: what was loaded is not there afterwards.
        assert_eq!(cache.get(&0), (capacity > 0).then_some(7));
        assert_eq!(cache.entry_count(), u64::from(capacity > 0));
    }
}

#[test]
fn different_keys_load_at_the_same_time() {
    let cache = Numbers::builder().build().unwrap();
    let all_inside = Barrier::new(16);
    thread::scope(|scope| {
        for key in 0..16 {
            let (cache, all_inside) = (&cache, &all_inside);
            scope.spawn(move || {
                let load = |_: &mut LoadCtx| {
                    all_inside.wait();
                    Ok::<_, Infallible>(key)
                };
                assert_eq!(cache.get_or_compute(&key, load).unwrap(), key);
            });
        }
    });
}

#[test]
fn stale_set_after_remove() {
    let clock = PausedClock::new();
    let cache = on(&clock);
    during_a_load(&cache, &clock, || assert_eq!(cache.remove(&0), None));
    assert_eq!(cache.get(&0), None);
    assert_eq!(cache.stats().invalidated_loads, 1);
}

#[test]
fn stale_set_after_clear() {
    let clock = PausedClock::new();
    let cache = on(&clock);
    during_a_load(&cache, &clock, || cache.clear());
    assert_eq!(cache.get(&0), None);
    assert_eq!(cache.stats().invalidated_loads, 1);
}

#[test]
fn stale_set_after_insert() {
    let clock = PausedClock::new();
    let cache = on(&clock);
    during_a_load(&cache, &clock, || cache.insert(0, 2));
    assert_eq!(cache.get(&0), Some(2));
    assert_eq!(cache.stats().invalidated_loads, 1);
    // An insert that is not kept invalidates all the same.
    cache.remove(&0);
    during_a_load(&cache, &clock, || cache.insert_with_ttl(0, 2, Duration::ZERO));
    assert_eq!(cache.get(&0), None);
}

#[test]
fn an_undisturbed_load_is_kept() {
    let clock = PausedClock::new();
    let cache = on(&clock);
    // Other keys' changes are no invalidation.
    during_a_load(&cache, &clock, || {
        cache.insert(1, 1);
        cache.remove(&1);
    });
    assert_eq!(cache.get(&0), Some(1));
    assert_eq!(cache.stats().invalidated_loads, 0);
}

#[test]
fn a_call_after_an_invalidation_never_joins_the_load_from_before() {
    let clock = PausedClock::new();
    let cache = on(&clock);
    let remove: fn(&Numbers) = |cache| {
        cache.remove(&0);
    };
    for invalidate in [remove, Cache::clear] {
        during_a_load(&cache, &clock, || {
            invalidate(&cache);
            assert_eq!(cache.get_or_compute(&0, value(2)).unwrap(), 2);
            assert_eq!(cache.get(&0), Some(2), "and its value is kept");
        });
        assert_eq!(cache.get(&0), Some(2), "the load from before does not replace it");
        cache.remove(&0);
    }
    // The same with the new load ending after the old one.
    let (go, gate) = mpsc::channel::<()>();
    let (begun, wait_begun) = mpsc::channel();
    thread::scope(|scope| {
        let mut newer = None;
        during_a_load(&cache, &clock, || {
            cache.remove(&0);
            newer = Some(scope.spawn(|| {
                cache.get_or_compute(&0, move |_| {
                    begun.send(()).unwrap();
                    gate.recv().unwrap();
                    Ok::<_, Infallible>(3)
                })
            }));
            wait_begun.recv().unwrap();
        });
        assert_eq!(cache.get(&0), None);
        let joins = scope.spawn(|| cache.get_or_compute(&0, no_load));
        clock.wait_for_waiters(1);
        go.send(()).unwrap();
        assert_eq!(joins.join().unwrap().unwrap(), 3);
        assert_eq!(newer.unwrap().join().unwrap().unwrap(), 3);
    });
    assert_eq!(cache.get(&0), Some(3));
}

#[test]
fn a_load_may_invalidate_its_own_key() {
    let cache = Numbers::builder().build().unwrap();
    let removes = |_: &mut LoadCtx| {
        cache.remove(&0);
        Ok::<_, Infallible>(1)
    };
    assert_eq!(cache.get_or_compute(&0, removes).unwrap(), 1);
    assert_eq!(cache.get(&0), None);
    let inserts = |_: &mut LoadCtx| {
        cache.insert(0, 2);
        Ok::<_, Infallible>(1)
    };
    assert_eq!(cache.get_or_compute(&0, inserts).unwrap(), 1);
    assert_eq!(cache.get(&0), Some(2));
    cache.remove(&0);
    let clears = |_: &mut LoadCtx| {
        cache.clear();
        Ok::<_, Infallible>(1)
    };
    assert_eq!(cache.get_or_compute(&0, clears).unwrap(), 1);
    assert_eq!(cache.get(&0), None);
    assert_eq!(cache.stats().invalidated_loads, 3);
}

#[test]
fn a_load_that_asks_for_its_own_key_is_refused() {
    let cache = Numbers::builder().build().unwrap();
    let outer = cache.get_or_compute(&0, |_| {
        assert!(cache.get_or_compute(&0, no_load).unwrap_err().is_reentrant());
        assert_eq!(cache.get(&0), None, "a plain get does not wait");
        // Other keys are no trouble.
        cache.get_or_compute(&1, value(41)).map(|one| one + 1)
    });
    assert_eq!(outer.unwrap(), 42);
    assert_eq!(cache.get_or_compute(&0, no_load).unwrap(), 42);
    // The refusal can be passed on, and is then the load's own error.
    let passed_on = cache.get_or_compute(&2, |_| cache.get_or_compute(&2, no_load)).unwrap_err();
    assert!(passed_on.downcast_ref::<CacheError>().unwrap().is_reentrant());
    assert!(cache.station().snapshot().balanced());
}

#[test]
fn a_cycle_of_loads_ends_at_the_deadline() {
    let clock = PausedClock::new();
    let cache = on(&clock);
    let both = Barrier::new(2);
    thread::scope(|scope| {
        let calls = [(0, 1), (1, 0)].map(|(mine, yours)| {
            let (cache, both) = (&cache, &both);
            scope.spawn(move || {
                cache.get_or_compute(&mine, |_| {
                    both.wait();
                    cache.get_or_compute(&yours, no_load)
                })
            })
        });
        clock.wait_for_waiters(2);
        clock.advance(Duration::from_secs(30));
        for call in calls {
            let error = call.join().unwrap().unwrap_err();
            assert!(error.downcast_ref::<CacheError>().unwrap().is_timeout(), "{error}");
        }
    });
    assert_eq!(cache.get_or_compute(&0, value(1)).unwrap(), 1, "both keys are free");
    assert_eq!(cache.get_or_compute(&1, value(2)).unwrap(), 2);
}

#[test]
fn a_failure_is_shared_and_the_next_call_loads_again() {
    #[derive(Debug, PartialEq)]
    struct Down(u32);
    impl std::fmt::Display for Down {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            write!(f, "down since {}", self.0)
        }
    }
    impl std::error::Error for Down {}

    let clock = PausedClock::new();
    let cache = on(&clock);
    let loads = AtomicUsize::new(0);
    thread::scope(|scope| {
        let calls: Vec<_> = (0..16)
            .map(|_| {
                scope.spawn(|| {
                    cache.get_or_compute(&0, |_| {
                        loads.fetch_add(1, Ordering::Relaxed);
                        clock.wait_for_waiters(15);
                        Err(Down(9))
                    })
                })
            })
            .collect();
        for call in calls {
            assert_eq!(call.join().unwrap().unwrap_err().downcast_ref(), Some(&Down(9)));
        }
    });
    assert_eq!(loads.load(Ordering::Relaxed), 1, "no storm of retries");
    assert_eq!(cache.get_or_compute(&0, value(1)).unwrap(), 1);
}

#[test]
fn a_hung_load_holds_up_nobody_beyond_the_deadline_and_a_remove_frees_its_key() {
    let clock = PausedClock::new();
    let cache = on(&clock);
    during_a_load(&cache, &clock, || {
        assert_eq!(cache.get_or_compute(&1, value(5)).unwrap(), 5, "other keys are not held up");
        assert!(cache.get_or_compute_deadline(&0, clock.now(), value(2)).unwrap_err().is_timeout());
        cache.remove(&0);
        assert_eq!(cache.get_or_compute(&0, value(2)).unwrap(), 2, "the key is free again");
    });
    assert_eq!(cache.get(&0), Some(2));
}

#[test]
fn a_value_expires_on_the_clock_and_is_loaded_again() {
    let clock = PausedClock::new();
    let cache = Numbers::builder().ttl(Duration::from_secs(60)).clock(&clock).build().unwrap();
    let long = |ctx: &mut LoadCtx| {
        ctx.ttl(Duration::from_secs(100));
        // It counts from the end of the load.
        clock.advance(Duration::from_secs(1000));
        Ok::<_, Infallible>(3)
    };
    assert_eq!(cache.get_or_compute(&3, long).unwrap(), 3);
    cache.insert(0, 1);
    cache.get_or_compute(&1, value(1)).unwrap();
    cache.insert_with_ttl(2, 1, Duration::MAX);
    clock.advance(Duration::from_nanos(59_999_999_999));
    assert_eq!((cache.get(&0), cache.get(&1)), (Some(1), Some(1)));
    clock.advance(Duration::from_nanos(1));
    assert_eq!((cache.get(&0), cache.get(&1), cache.get(&2)), (None, None, Some(1)));
    assert_eq!(cache.get_or_compute(&1, value(2)).unwrap(), 2);
    assert_eq!(cache.get(&3), Some(3));
    clock.advance(Duration::from_secs(40));
    assert_eq!((cache.get(&3), cache.remove(&3)), (None, None));
    // An expired value is not returned by `remove` either.
    cache.insert(4, 4);
    clock.advance(Duration::from_secs(60));
    assert_eq!(cache.remove(&4), None);
    // What was asked for in vain is gone: 2 is the only one that is left, and 1 expired unseen.
    assert_eq!(cache.entry_count(), 2);
}

#[test]
fn a_load_can_refuse_to_be_kept() {
    let clock = PausedClock::new();
    let cache = on(&clock);
    let unkept: [fn(&mut LoadCtx); 2] = [|ctx| ctx.no_store(), |ctx| ctx.ttl(Duration::ZERO)];
    for say in unkept {
        let load = |ctx: &mut LoadCtx| {
            say(ctx);
            Ok::<_, Infallible>(1)
        };
        assert_eq!(cache.get_or_compute(&0, load).unwrap(), 1);
        assert_eq!((cache.get(&0), cache.entry_count()), (None, 0));
    }
    assert_eq!(cache.stats().invalidated_loads, 0);
}

#[test]
fn keys_whose_eq_lies_hang_nothing() {
    #[derive(Clone)]
    struct Liar;
    impl PartialEq for Liar {
        fn eq(&self, _: &Self) -> bool {
            false
        }
    }
    impl Eq for Liar {}
    impl std::hash::Hash for Liar {
        fn hash<H: std::hash::Hasher>(&self, _: &mut H) {}
    }
    let cache = Cache::<Liar, u32>::builder().build().unwrap();
    for n in 0..10 {
        assert_eq!(cache.get_or_compute(&Liar, |_| Ok::<_, Infallible>(n)).unwrap(), n);
    }
    assert_eq!(cache.close_within(Duration::ZERO), Ok(()), "no flight is left behind");
}
