//! How long entries live, and what ends them: time to idle, stale values, negative ones, jitter, versions, tags, errors, metadata.
#![allow(missing_docs, clippy::unwrap_used)]

use std::convert::Infallible;
use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use fullbore_cache::{Cache, CacheBuilder, CacheError, LoadCtx};
use fullbore_core::PausedClock;

const SECOND: Duration = Duration::from_secs(1);

type Numbers = Cache<u32, u32>;

fn builder(clock: &PausedClock) -> CacheBuilder<u32, u32> {
    Cache::builder().name("life").ttl(10 * SECOND).clock(clock)
}

fn value(n: u32) -> impl FnOnce(&mut LoadCtx) -> Result<u32, Infallible> {
    move |_| Ok(n)
}

fn fails(_: &mut LoadCtx) -> Result<u32, io::Error> {
    Err(io::Error::other("down"))
}

fn no_load(_: &mut LoadCtx) -> io::Result<u32> {
    panic!("no load was expected")
}

#[test]
fn what_nobody_asks_for_goes_after_its_time_to_idle() {
    let clock = PausedClock::new();
    let cache = builder(&clock).ttl(None).time_to_idle(3 * SECOND).build().unwrap();
    cache.insert(1, 1);
    cache.insert(2, 2);
    for _ in 0..5 {
        clock.advance(2 * SECOND);
        assert_eq!(cache.get(&1), Some(1));
        // A look without a trace is not a use.
        let _ = cache.peek(&2);
    }
    assert_eq!(cache.get(&2), None);
    clock.advance(2 * SECOND);
    assert_eq!(cache.metadata(&1).unwrap().idle, Some(2 * SECOND));
    clock.advance(SECOND);
    assert_eq!(cache.get(&1), None);
}

#[test]
fn a_time_to_idle_does_not_prolong_the_ttl() {
    let clock = PausedClock::new();
    let cache = builder(&clock).time_to_idle(3 * SECOND).build().unwrap();
    cache.insert(1, 1);
    for _ in 0..4 {
        clock.advance(2 * SECOND);
        assert_eq!(cache.get(&1), Some(1));
    }
    clock.advance(2 * SECOND);
    assert_eq!(cache.get(&1), None);
}

#[test]
fn a_stale_value_stands_in_for_a_failed_load_within_its_window() {
    let clock = PausedClock::new();
    let cache = builder(&clock).stale_for(5 * SECOND).build().unwrap();
    cache.insert(1, 1);
    clock.advance(10 * SECOND);
    assert_eq!(cache.get(&1), None, "`get` never returns what is stale");
    assert_eq!((cache.peek(&1), cache.peek_stale(&1)), (None, Some(1)));
    assert_eq!(cache.get_or_compute(&1, fails).unwrap(), 1);
    assert_eq!(cache.stats().stale_hits, 1);
    assert_eq!(cache.stats().load_failures, 1);
    clock.advance(4 * SECOND);
    assert_eq!(cache.get_or_compute(&1, fails).unwrap(), 1);
    // A new value replaces it.
    assert_eq!(cache.get_or_compute(&1, value(2)).unwrap(), 2);
    clock.advance(15 * SECOND);
    assert!(cache.get_or_compute(&1, fails).unwrap_err().is_load());
    assert!(cache.station().snapshot().balanced());
}

#[test]
fn who_waits_for_a_failed_load_gets_the_stale_value_too() {
    let clock = PausedClock::new();
    let cache = builder(&clock).stale_for(SECOND).build().unwrap();
    cache.insert(1, 7);
    clock.advance(10 * SECOND);
    thread::scope(|scope| {
        let (go, gate) = mpsc::channel::<()>();
        let (begun, wait_begun) = mpsc::channel();
        let leader = scope.spawn({
            let cache = cache.clone();
            move || {
                cache.get_or_compute(&1, |_| {
                    begun.send(()).unwrap();
                    gate.recv().unwrap();
                    Err::<u32, _>(io::Error::other("down"))
                })
            }
        });
        wait_begun.recv().unwrap();
        let waiter = scope.spawn(|| cache.get_or_compute(&1, no_load));
        clock.wait_for_waiters(1);
        go.send(()).unwrap();
        assert_eq!((leader.join().unwrap().unwrap(), waiter.join().unwrap().unwrap()), (7, 7));
    });
}

#[test]
fn who_waits_longer_than_the_soft_timeout_gets_the_stale_value() {
    let clock = PausedClock::new();
    let cache = builder(&clock).stale_for(60 * SECOND).soft_timeout(2 * SECOND).build().unwrap();
    cache.insert(1, 7);
    clock.advance(10 * SECOND);
    thread::scope(|scope| {
        let (go, gate) = mpsc::channel::<()>();
        let (begun, wait_begun) = mpsc::channel();
        let leader = scope.spawn({
            let cache = cache.clone();
            move || {
                cache.get_or_compute(&1, |_| {
                    begun.send(()).unwrap();
                    gate.recv().unwrap();
                    Ok::<_, Infallible>(8)
                })
            }
        });
        wait_begun.recv().unwrap();
        let waiter = scope.spawn(|| cache.get_or_compute(&1, no_load));
        clock.wait_for_waiters(1);
        clock.advance(2 * SECOND);
        assert_eq!(waiter.join().unwrap().unwrap(), 7);
        go.send(()).unwrap();
        assert_eq!(leader.join().unwrap().unwrap(), 8);
    });
    assert_eq!(cache.get(&1), Some(8));
}

#[test]
fn a_load_may_ask_for_its_own_stale_key_and_is_refused() {
    let clock = PausedClock::new();
    let cache = builder(&clock).stale_for(60 * SECOND).build().unwrap();
    cache.insert(1, 7);
    clock.advance(10 * SECOND);
    let loaded = cache.get_or_compute(&1, |_| {
        assert!(cache.get_or_compute(&1, no_load).unwrap_err().is_reentrant());
        Ok::<_, Infallible>(8)
    });
    assert_eq!(loaded.unwrap(), 8);
}

#[test]
fn an_error_is_the_answer_for_its_time() {
    let clock = PausedClock::new();
    let cache = builder(&clock).error_ttl(2 * SECOND).build().unwrap();
    assert!(cache.get_or_compute(&1, fails).unwrap_err().is_load());
    clock.advance(SECOND);
    let error = cache.get_or_compute(&1, no_load).unwrap_err();
    assert_eq!(error.downcast_ref::<io::Error>().unwrap().to_string(), "down");
    assert_eq!(cache.stats().error_hits, 1);
    clock.advance(SECOND);
    assert_eq!(cache.get_or_compute(&1, value(1)).unwrap(), 1);
    // A load has the last word on how long.
    cache.remove(&1);
    let for_long = |ctx: &mut LoadCtx| {
        ctx.retry_after(100 * SECOND);
        fails(ctx)
    };
    assert!(cache.get_or_compute(&1, for_long).is_err());
    clock.advance(99 * SECOND);
    assert!(cache.get_or_compute(&1, no_load).unwrap_err().is_load());
    // Whoever changes the key ends it.
    cache.remove(&1);
    assert_eq!(cache.get_or_compute(&1, value(3)).unwrap(), 3);
    assert!(cache.station().snapshot().balanced());
}

#[test]
fn a_clear_forgets_errors() {
    let clock = PausedClock::new();
    let cache = builder(&clock).error_ttl(60 * SECOND).build().unwrap();
    assert!(cache.get_or_compute(&1, fails).is_err());
    cache.clear();
    assert_eq!(cache.get_or_compute(&1, value(1)).unwrap(), 1);
}

#[test]
fn many_errors_are_remembered_in_bounded_memory() {
    let clock = PausedClock::new();
    let cache = builder(&clock).error_ttl(60 * SECOND).build().unwrap();
    for key in 0..100_000 {
        assert!(cache.get_or_compute(&key, fails).is_err());
    }
    // The newest first: of the oldest there is none left, and asking for them would displace the others.
    for key in (0..100_000).rev() {
        assert!(cache.get_or_compute(&key, fails).is_err());
    }
    let hits = cache.stats().error_hits;
    assert!((1..50_000).contains(&hits), "{hits} errors were kept");
}

#[test]
fn with_a_stale_value_and_an_error_ttl_the_source_is_left_in_peace() {
    let clock = PausedClock::new();
    let cache = builder(&clock).stale_for(60 * SECOND).error_ttl(5 * SECOND).build().unwrap();
    cache.insert(1, 1);
    clock.advance(10 * SECOND);
    assert_eq!(cache.get_or_compute(&1, fails).unwrap(), 1);
    for _ in 0..4 {
        assert_eq!(cache.get_or_compute(&1, no_load).unwrap(), 1);
        clock.advance(SECOND);
    }
    assert_eq!(cache.stats().stale_hits, 5);
    clock.advance(SECOND);
    assert_eq!(cache.get_or_compute(&1, value(2)).unwrap(), 2);
}

#[test]
fn a_negative_result_has_a_ttl_of_its_own() {
    let clock = PausedClock::new();
    let cache =
        Cache::<u32, Option<u32>>::builder().ttl(100 * SECOND).negative_ttl(SECOND).clock(&clock).build().unwrap();
    let nothing = |ctx: &mut LoadCtx| {
        ctx.negative();
        Ok::<_, Infallible>(None)
    };
    assert_eq!(cache.get_or_compute(&1, nothing).unwrap(), None);
    assert_eq!(cache.get(&1), Some(None));
    assert!(cache.metadata(&1).unwrap().is_negative);
    clock.advance(SECOND);
    assert_eq!(cache.get(&1), None);
    let not_kept = Cache::<u32, Option<u32>>::builder().negative_ttl(Duration::ZERO).clock(&clock).build().unwrap();
    assert_eq!(not_kept.get_or_compute(&1, nothing).unwrap(), None);
    assert_eq!(not_kept.entry_count(), 0);
}

#[test]
fn jitter_takes_off_up_to_its_part() {
    let clock = PausedClock::new();
    let cache = builder(&clock).ttl(100 * SECOND).jitter(0.5).build().unwrap();
    for key in 0..1_000 {
        cache.insert(key, key);
    }
    let left: Vec<Duration> = (0..1_000).map(|key| cache.ttl_left(&key).unwrap().unwrap()).collect();
    let (least, most) = (left.iter().min().unwrap(), left.iter().max().unwrap());
    assert!((50 * SECOND..60 * SECOND).contains(least), "{least:?}");
    assert!((90 * SECOND..=100 * SECOND).contains(most), "{most:?}");
}

#[test]
fn an_older_version_does_not_replace_a_newer_one() {
    let cache = Numbers::builder().ttl(None).build().unwrap();
    assert!(cache.insert_version(1, 5, 5));
    assert!(!cache.insert_version(1, 4, 4));
    assert!(!cache.insert_version(1, 6, 5));
    assert_eq!(cache.get(&1), Some(5));
    assert_eq!(cache.metadata(&1).unwrap().version, 5);
    assert!(cache.insert_version(1, 7, 7));
    assert_eq!(cache.get(&1), Some(7));
    // One without a version says nothing of its age.
    cache.insert(1, 0);
    assert!(cache.insert_version(1, 1, 1));
    cache.remove(&1);
    assert!(cache.insert_version(1, 1, 1));
}

#[test]
fn an_insertion_of_an_old_version_leaves_a_load_alone() {
    let clock = PausedClock::new();
    let cache = builder(&clock).stale_for(60 * SECOND).build().unwrap();
    cache.insert_version(1, 5, 5);
    clock.advance(10 * SECOND);
    let loaded = cache.get_or_compute(&1, |ctx| {
        assert!(!cache.insert_version(1, 4, 4));
        ctx.version(6);
        Ok::<_, Infallible>(6)
    });
    assert_eq!((loaded.unwrap(), cache.get(&1)), (6, Some(6)));
    clock.advance(10 * SECOND);
    // A load from a replica that lags behind.
    let older = cache.get_or_compute(&1, |ctx| {
        ctx.version(3);
        Ok::<_, Infallible>(3)
    });
    assert_eq!((older.unwrap(), cache.peek_stale(&1)), (3, Some(6)));
}

#[test]
fn a_tag_removes_what_bears_it_and_nothing_else() {
    let cache = Numbers::builder().build().unwrap();
    for key in 0..100 {
        cache.insert_with(key, key, |ctx| ctx.tags([format!("mod 3: {}", key % 3), format!("mod 5: {}", key % 5)]));
    }
    cache.insert(100, 100);
    cache.remove_by_tag("mod 3: 1");
    cache.remove_by_tag("nobody's");
    cache.remove_by_tag("mod 5: 0");
    for key in 0..100 {
        let stays = key % 3 != 1 && key % 5 != 0;
        assert_eq!(cache.get(&key), stays.then_some(key));
    }
    assert_eq!(cache.get(&100), Some(100));
    cache.insert_with(1, 1, |ctx| ctx.tags(["mod 3: 1"]));
    assert_eq!(cache.get(&1), Some(1), "the tag can be used again");
    cache.remove_by_tag("mod 3: 1");
    assert_eq!(cache.remove(&1), None);
    assert_eq!(cache.metadata(&2).unwrap().tags.iter().map(|tag| &**tag).collect::<Vec<_>>(), ["mod 3: 2", "mod 5: 2"]);
}

/// FusionCache #535, #628: there a tag that is removed while a load runs in the background is lost.
#[test]
fn a_tag_that_is_removed_during_a_load_wins() {
    let clock = PausedClock::new();
    let cache = builder(&clock).build().unwrap();
    let loads = AtomicU32::new(0);
    let load = |ctx: &mut LoadCtx| {
        ctx.tags(["users"]);
        if loads.fetch_add(1, Ordering::SeqCst) == 0 {
            cache.remove_by_tag("users");
        }
        Ok::<_, Infallible>(loads.load(Ordering::SeqCst))
    };
    assert_eq!(cache.get_or_compute(&1, load).unwrap(), 1);
    assert_eq!(cache.get(&1), None);
    assert_eq!(cache.stats().invalidated_loads, 1);
    assert_eq!(cache.get_or_compute(&1, load).unwrap(), 2);
    assert_eq!(cache.get(&1), Some(2));
    // Another tag's removal does not matter.
    let other = |ctx: &mut LoadCtx| {
        ctx.tags(["users"]);
        cache.remove_by_tag("orders");
        Ok::<_, Infallible>(9)
    };
    assert_eq!(cache.get_or_compute(&2, other).unwrap(), 9);
    assert_eq!(cache.get(&2), Some(9));
}

#[test]
fn who_joins_a_load_after_a_removal_of_its_tag_does_not_get_its_value() {
    let clock = PausedClock::new();
    let cache = builder(&clock).build().unwrap();
    thread::scope(|scope| {
        let (go, gate) = mpsc::channel::<()>();
        let (begun, wait_begun) = mpsc::channel();
        let leader = scope.spawn({
            let cache = cache.clone();
            move || {
                cache.get_or_compute(&1, |ctx| {
                    ctx.tags(["t"]);
                    begun.send(()).unwrap();
                    gate.recv().unwrap();
                    Ok::<_, Infallible>(1)
                })
            }
        });
        wait_begun.recv().unwrap();
        let before = scope.spawn(|| cache.get_or_compute(&1, no_load));
        clock.wait_for_waiters(1);
        cache.remove_by_tag("t");
        let after = scope.spawn(|| cache.get_or_compute(&1, value(2)));
        clock.wait_for_waiters(2);
        go.send(()).unwrap();
        assert_eq!(leader.join().unwrap().unwrap(), 1);
        assert_eq!(before.join().unwrap().unwrap(), 1);
        assert_eq!(after.join().unwrap().unwrap(), 2);
    });
    assert_eq!(cache.get(&1), Some(2));
    assert!(cache.station().snapshot().balanced());
}

#[test]
fn tags_that_nobody_uses_are_forgotten_and_what_they_removed_stays_removed() {
    let cache = Numbers::builder().capacity(10).build().unwrap();
    cache.insert_with(0, 0, |ctx| ctx.tags(["kept"]));
    // A load that began before its tag was removed, and ends when nobody remembers the tag.
    let loaded = cache.get_or_compute(&1, |ctx| {
        cache.remove_by_tag("mine");
        for n in 0..1_000 {
            cache.remove_by_tag(&format!("tag {n}"));
        }
        ctx.tags(["mine"]);
        Ok::<_, Infallible>(1)
    });
    assert_eq!((loaded.unwrap(), cache.get(&1)), (1, None));
    assert_eq!(cache.get(&0), Some(0));
    cache.remove_by_tag("kept");
    assert_eq!(cache.get(&0), None);
}

#[test]
fn a_load_can_say_that_nothing_has_changed() {
    let clock = PausedClock::new();
    let cache = Cache::<u32, String>::builder().ttl(SECOND).stale_for(60 * SECOND).clock(&clock).build().unwrap();
    let first = cache.get_or_compute(&1, |ctx| {
        assert!(ctx.etag().is_none() && ctx.previous::<String>().is_none() && ctx.not_modified::<String>().is_none());
        ctx.set_etag("v1");
        ctx.tags(["t"]);
        ctx.version(4);
        Ok::<_, Infallible>("one".to_owned())
    });
    assert_eq!(first.unwrap(), "one");
    clock.advance(SECOND);
    let same = cache.get_or_compute(&1, |ctx| {
        assert_eq!(ctx.etag(), Some("v1"));
        assert_eq!(ctx.previous::<String>().unwrap(), "one");
        assert!(ctx.previous::<u32>().is_none());
        Ok::<_, Infallible>(ctx.not_modified().unwrap())
    });
    assert_eq!(same.unwrap(), "one");
    let metadata = cache.metadata(&1).unwrap();
    assert_eq!((metadata.etag.as_deref(), metadata.version, metadata.ttl_left), (Some("v1"), 4, Some(SECOND)));
    cache.remove_by_tag("t");
    assert_eq!(cache.peek_stale(&1), None, "it still bears its tag");
}

#[test]
fn metadata_says_what_is_known() {
    let clock = PausedClock::new();
    let cache = Cache::<u32, u32>::builder()
        .weigher(|_, weight| *weight)
        .ttl(10 * SECOND)
        .stale_for(5 * SECOND)
        .clock(&clock)
        .build()
        .unwrap();
    assert_eq!(cache.metadata(&1), None);
    cache.insert(1, 9);
    clock.advance(4 * SECOND);
    let known = cache.metadata(&1).unwrap();
    assert_eq!((known.ttl_left, known.stale_left), (Some(6 * SECOND), Some(11 * SECOND)));
    assert_eq!((known.weight, known.version, known.is_stale, known.is_negative), (9, 0, false, false));
    assert!(known.age <= 4 * SECOND && known.age > 3 * SECOND, "{:?}", known.age);
    clock.advance(7 * SECOND);
    let known = cache.metadata(&1).unwrap();
    assert_eq!((known.ttl_left, known.stale_left, known.is_stale), (Some(Duration::ZERO), Some(4 * SECOND), true));
    assert_eq!(cache.ttl_left(&1), None);
    assert_eq!(cache.stats().hits + cache.stats().misses, 0, "without a trace");
}

/// Altinn/dialogporten#4300: a load that hung held its key, and every request that needed it.
#[test]
fn a_hung_load_loses_its_key() {
    let clock = PausedClock::new();
    let cache = builder(&clock).load_limit(5 * SECOND).max_abandoned(1).load_timeout(60 * SECOND).build().unwrap();
    thread::scope(|scope| {
        let hang = |n: u32| {
            let (go, gate) = mpsc::channel::<()>();
            let (begun, wait_begun) = mpsc::channel();
            let cache = cache.clone();
            let hung = scope.spawn(move || {
                cache.get_or_compute(&1, |_| {
                    begun.send(()).unwrap();
                    gate.recv().unwrap();
                    Ok::<_, Infallible>(n)
                })
            });
            (go, wait_begun, hung)
        };
        let (go, begun, hung) = hang(1);
        begun.recv().unwrap();
        let waiters: Vec<_> = (0..4).map(|_| scope.spawn(|| cache.get_or_compute(&1, value(2)))).collect();
        clock.wait_for_waiters(4);
        clock.advance(5 * SECOND);
        for waiter in waiters {
            assert_eq!(waiter.join().unwrap().unwrap(), 2);
        }
        assert_eq!((cache.stats().hand_overs, cache.stats().abandoned), (1, 1));
        assert_eq!(cache.stats().loads, 2, "one of those that waited took it over, and the others waited for that one");
        // No more than one is left behind.
        cache.remove(&1);
        let (go_second, begun, second) = hang(3);
        begun.recv().unwrap();
        let patient = scope.spawn(|| cache.get_or_compute(&1, no_load));
        clock.wait_for_waiters(1);
        clock.advance(5 * SECOND);
        let late = cache.get_or_compute_deadline(&1, clock.now(), no_load).unwrap_err();
        assert!(late.is_timeout());
        go_second.send(()).unwrap();
        assert_eq!(second.join().unwrap().unwrap(), 3);
        assert_eq!(patient.join().unwrap().unwrap(), 3);
        // What hung brings its value to its own caller, and not into the cache.
        go.send(()).unwrap();
        assert_eq!(hung.join().unwrap().unwrap(), 1);
    });
    assert_eq!(cache.get(&1), Some(3));
    assert_eq!(cache.stats().abandoned, 0);
    assert!(cache.station().snapshot().balanced());
}

#[test]
fn what_makes_room_is_counted() {
    let cache = Numbers::builder().capacity(10).build().unwrap();
    for key in 0..10 {
        cache.insert(key, key);
    }
    assert_eq!(cache.stats().evictions, 0);
    cache.resize(4);
    assert_eq!(cache.stats().evictions, 6);
}

#[test]
fn a_function_is_memoized() {
    let calls = std::sync::Arc::new(AtomicU32::new(0));
    let counted = std::sync::Arc::clone(&calls);
    let cache = Cache::<(u32, u32), u32>::builder().build().unwrap();
    let sum = cache.memoize(move |a: u32, b: u32| {
        counted.fetch_add(1, Ordering::SeqCst);
        a + b
    });
    assert_eq!((sum((1, 2)), sum((1, 2)), sum((2, 1))), (3, 3, 3));
    assert_eq!(calls.load(Ordering::SeqCst), 2);
    cache.close();
    assert_eq!(sum((5, 5)), 10, "a closed cache computes");

    let cache = Cache::<u32, u32>::builder().build().unwrap();
    let half = cache.try_memoize(|n: u32| if n.is_multiple_of(2) { Ok(n / 2) } else { Err(io::Error::other("odd")) });
    assert_eq!(half(4).unwrap(), 2);
    assert!(matches!(half(3), Err(CacheError::Load(_))));
}

#[test]
fn a_memoized_function_may_call_itself() {
    fn fibonacci(cache: &Cache<u32, u64>, n: u32) -> u64 {
        let again = cache.clone();
        let f = cache.memoize(
            move |n: u32| if n < 2 { u64::from(n) } else { fibonacci(&again, n - 1) + fibonacci(&again, n - 2) },
        );
        f(n)
    }
    let cache = Cache::builder().build().unwrap();
    assert_eq!(fibonacci(&cache, 80), 23_416_728_348_467_685);
    assert_eq!(cache.stats().loads, 81);
}

/// Whoever asks after the removal joins the load of a value that has no tags in the end, because it is not kept.
#[test]
fn a_tag_counts_also_where_the_value_is_not_kept() {
    let clock = PausedClock::new();
    let cache = builder(&clock).build().unwrap();
    thread::scope(|scope| {
        let (go, gate) = mpsc::channel::<()>();
        let (begun, wait_begun) = mpsc::channel();
        let leader = scope.spawn({
            let cache = cache.clone();
            move || {
                cache.get_or_compute(&1, |ctx| {
                    ctx.tags(["t"]);
                    ctx.no_store();
                    begun.send(()).unwrap();
                    gate.recv().unwrap();
                    Ok::<_, Infallible>(1)
                })
            }
        });
        wait_begun.recv().unwrap();
        cache.remove_by_tag("t");
        let after = scope.spawn(|| cache.get_or_compute(&1, value(2)));
        clock.wait_for_waiters(1);
        go.send(()).unwrap();
        assert_eq!((leader.join().unwrap().unwrap(), after.join().unwrap().unwrap()), (1, 2));
    });
}

/// The stale value dies while its load runs.
#[test]
fn what_was_removed_does_not_stand_in() {
    let clock = PausedClock::new();
    let cache = builder(&clock).stale_for(60 * SECOND).build().unwrap();
    for remove in [|cache: &Numbers| cache.remove_by_tag("t"), |cache: &Numbers| cache.clear()] {
        cache.insert_with(1, 7, |ctx| ctx.tags(["t"]));
        clock.advance(10 * SECOND);
        let failed = cache.get_or_compute(&1, |_| {
            remove(&cache);
            Err::<u32, _>(io::Error::other("down"))
        });
        assert!(failed.unwrap_err().is_load());
    }
}

#[test]
fn a_call_whose_stale_value_dies_waits_on() {
    let clock = PausedClock::new();
    let cache = builder(&clock).stale_for(60 * SECOND).soft_timeout(SECOND).build().unwrap();
    cache.insert_with(1, 7, |ctx| ctx.tags(["t"]));
    clock.advance(10 * SECOND);
    thread::scope(|scope| {
        let (go, gate) = mpsc::channel::<()>();
        let (begun, wait_begun) = mpsc::channel();
        let leader = scope.spawn({
            let cache = cache.clone();
            move || {
                cache.get_or_compute(&1, |_| {
                    begun.send(()).unwrap();
                    gate.recv().unwrap();
                    Ok::<_, Infallible>(8)
                })
            }
        });
        wait_begun.recv().unwrap();
        let waiter = scope.spawn(|| cache.get_or_compute(&1, no_load));
        clock.wait_for_waiters(1);
        cache.remove_by_tag("t");
        let parks = clock.parks();
        clock.advance(SECOND);
        assert!(fullbore_testkit::eventually(60 * SECOND, || clock.parks() > parks), "it waits again");
        go.send(()).unwrap();
        assert_eq!((leader.join().unwrap().unwrap(), waiter.join().unwrap().unwrap()), (8, 8));
    });
}

/// A value that came while a call waited for a load that was invalidated.
#[test]
fn at_its_deadline_a_call_looks_once_more() {
    let clock = PausedClock::new();
    let cache = builder(&clock).load_timeout(SECOND).build().unwrap();
    thread::scope(|scope| {
        let (go, gate) = mpsc::channel::<()>();
        let (begun, wait_begun) = mpsc::channel();
        let leader = scope.spawn({
            let cache = cache.clone();
            move || {
                cache.get_or_compute(&1, |_| {
                    begun.send(()).unwrap();
                    gate.recv().unwrap();
                    Ok::<_, Infallible>(1)
                })
            }
        });
        wait_begun.recv().unwrap();
        let waiter = scope.spawn(|| cache.get_or_compute(&1, no_load));
        clock.wait_for_waiters(1);
        cache.insert(1, 5);
        clock.advance(SECOND);
        assert_eq!(waiter.join().unwrap().unwrap(), 5);
        go.send(()).unwrap();
        assert_eq!(leader.join().unwrap().unwrap(), 1);
    });
    assert_eq!(cache.get(&1), Some(5));
    assert!(cache.station().snapshot().balanced());
}

/// A source that always takes longer than the limit is cached all the same.
#[test]
fn a_load_that_took_too_long_is_kept_if_it_comes_first() {
    let clock = PausedClock::new();
    let cache = builder(&clock).load_limit(SECOND).build().unwrap();
    let mut later = None;
    let first = cache.get_or_compute(&1, |_| {
        clock.advance(SECOND);
        // The second one, which takes the key, is under way when the first one ends.
        let (begun, wait_begun) = mpsc::channel();
        let (go, gate) = mpsc::channel::<()>();
        let other = cache.clone();
        let second = thread::spawn(move || {
            other.get_or_compute(&1, |_| {
                begun.send(()).unwrap();
                gate.recv().unwrap();
                Ok::<_, Infallible>(2)
            })
        });
        wait_begun.recv().unwrap();
        later = Some((go, second));
        Ok::<_, Infallible>(1)
    });
    assert_eq!((first.unwrap(), cache.get(&1)), (1, Some(1)));
    let (go, second) = later.unwrap();
    go.send(()).unwrap();
    assert_eq!(second.join().unwrap().unwrap(), 2);
    assert_eq!(cache.get(&1), Some(1));
    assert_eq!((cache.stats().hand_overs, cache.stats().abandoned), (1, 0));
}

#[test]
fn an_error_that_is_remembered_for_ever_is() {
    let clock = PausedClock::new();
    let cache = builder(&clock).error_ttl(Duration::MAX).build().unwrap();
    assert!(cache.get_or_compute(&1, fails).is_err());
    clock.advance(Duration::from_secs(100 * 365 * 24 * 3600));
    assert!(cache.get_or_compute(&1, no_load).is_err());
}

/// Heavy ones, so few that most shards have none.
#[test]
fn a_popular_newcomer_comes_in_also_where_its_shard_is_empty() {
    let cache = Cache::<u32, u32>::builder().capacity(1_000_000).weigher(|_, _| 50_000).ttl(None).build().unwrap();
    for key in 0..20 {
        cache.insert(key, key);
    }
    assert_eq!(cache.weight(), 1_000_000);
    for key in 100..120 {
        for _ in 0..50 {
            cache.get_or_compute(&key, value(key)).unwrap();
        }
    }
    assert!(cache.stats().loads < 20 * 25, "{} loads", cache.stats().loads);
}

#[test]
fn what_weighs_as_much_as_all_makes_room_for_itself() {
    let cache = Cache::<u32, u32>::builder().capacity(1_000).weigher(|_, weight| *weight).ttl(None).build().unwrap();
    for key in 0..1_000 {
        cache.insert(key, 1);
    }
    for _ in 0..20 {
        cache.insert(5_000, 1_000);
    }
    assert_eq!((cache.get(&5_000), cache.weight()), (Some(1_000), 1_000));
}
