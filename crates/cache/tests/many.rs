//! Many keys in one call.
#![allow(missing_docs, clippy::unwrap_used)]

use std::collections::HashMap;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Barrier, mpsc};
use std::thread;
use std::time::Duration;

use fullbore_cache::{Cache, LoadCtx};
use fullbore_core::PausedClock;
use proptest::prelude::*;

type Numbers = Cache<u32, u32>;

fn doubled(keys: &[u32]) -> HashMap<u32, u32> {
    keys.iter().map(|key| (*key, 2 * key)).collect()
}

#[test]
fn only_what_is_missing_is_loaded_in_one_call_each_once() {
    let cache = Numbers::builder().build().unwrap();
    cache.insert(2, 0);
    let mut calls = 0;
    let found = cache.get_or_compute_many(&[1, 2, 3, 1, 2], |missing, _| {
        calls += 1;
        assert_eq!(missing, [1, 3]);
        Ok::<_, io::Error>(doubled(missing))
    });
    assert_eq!(found.unwrap(), [Some(2), Some(0), Some(6), Some(2), Some(0)]);
    assert_eq!((calls, cache.stats().loads), (1, 1));
    assert_eq!((cache.get(&1), cache.get(&3)), (Some(2), Some(6)));
    let none: Vec<Option<u32>> = cache.get_or_compute_many(&[], |_, _| Ok::<_, io::Error>(Vec::new())).unwrap();
    assert!(none.is_empty());
    assert!(cache.station().snapshot().balanced());
}

#[test]
fn what_the_load_does_not_return_is_none_and_is_asked_for_again() {
    let cache = Numbers::builder().build().unwrap();
    for _ in 0..2 {
        let found = cache.get_or_compute_many(&[1, 2], |missing, _| {
            assert!(missing.contains(&2));
            Ok::<_, io::Error>([(1, 1), (99, 99)])
        });
        assert_eq!(found.unwrap(), [Some(1), None]);
    }
    assert_eq!(cache.get(&99), None, "nobody asked for it");
}

/// What does not exist any more has no stale value to stand in for it.
#[test]
fn what_the_load_does_not_return_is_gone() {
    let clock = PausedClock::new();
    let cache =
        Numbers::builder().ttl(Duration::from_secs(1)).stale_for(Duration::from_secs(9)).clock(&clock).build().unwrap();
    cache.insert(1, 1);
    clock.advance(Duration::from_secs(1));
    let found = cache.get_or_compute_many(&[1], |_, _| Ok::<_, io::Error>(Vec::new()));
    assert_eq!((found.unwrap(), cache.peek_stale(&1)), (vec![None], None));
}

#[test]
fn keys_whose_eq_lies_hang_and_panic_nowhere() {
    #[derive(Clone)]
    struct Liar;
    impl std::hash::Hash for Liar {
        fn hash<H: std::hash::Hasher>(&self, _: &mut H) {}
    }
    impl PartialEq for Liar {
        fn eq(&self, _: &Self) -> bool {
            false
        }
    }
    impl Eq for Liar {}
    let cache = Cache::<Liar, u32>::builder().capacity(4).build().unwrap();
    for _ in 0..20 {
        let found = cache.get_or_compute_many(&[Liar, Liar], |_, _| Ok::<_, io::Error>([(Liar, 1)]));
        assert_eq!(found.unwrap().len(), 2);
        cache.insert(Liar, 1);
    }
    assert!(cache.weight() <= 4);
    assert_eq!(cache.weight(), cache.entry_count());
}

#[test]
fn a_failure_is_everybodys() {
    let clock = PausedClock::new();
    let cache =
        Numbers::builder().ttl(Duration::from_secs(1)).stale_for(Duration::from_secs(9)).clock(&clock).build().unwrap();
    let fail = |_: &[u32], _: &mut LoadCtx| Err::<Vec<(u32, u32)>, _>(io::Error::other("down"));
    assert!(cache.get_or_compute_many(&[1, 2], fail).unwrap_err().is_load());
    cache.insert(1, 1);
    cache.insert(2, 2);
    clock.advance(Duration::from_secs(1));
    assert_eq!(cache.get_or_compute_many(&[1, 2], fail).unwrap(), [Some(1), Some(2)], "stale values stand in");
    assert!(cache.get_or_compute_many(&[1, 2, 3], fail).unwrap_err().is_load());
    assert!(cache.station().snapshot().balanced());
}

#[test]
fn a_panic_frees_all_keys() {
    let cache = Numbers::builder().build().unwrap();
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        cache.get_or_compute_many(&[1, 2], |_, _| -> io::Result<Vec<(u32, u32)>> { panic!("on purpose") })
    }));
    assert!(panicked.is_err());
    assert_eq!(
        cache.get_or_compute_many(&[1, 2], |keys, _| Ok::<_, io::Error>(doubled(keys))).unwrap(),
        [Some(2), Some(4)]
    );
    assert!(cache.station().snapshot().balanced());
}

/// The second call lands its own key before it waits for the first one's, which ends only then.
#[test]
fn a_call_lands_its_own_keys_before_it_waits_for_others() {
    let cache = &Numbers::builder().build().unwrap();
    let (a_claimed, a_gate) = mpsc::channel::<()>();
    let (b_claimed, b_gate) = mpsc::channel::<()>();
    let (loads, loading) = mpsc::channel::<()>();
    thread::scope(|scope| {
        let one = scope.spawn(move || {
            cache.get_or_compute_many(&[1], |missing, _| {
                a_claimed.send(()).unwrap();
                b_gate.recv().unwrap();
                Ok::<_, io::Error>(doubled(missing))
            })
        });
        a_gate.recv().unwrap();
        let other = scope.spawn(move || {
            let mut first = true;
            cache.get_or_compute_many(&[1, 2], |missing, _| {
                assert!(std::mem::take(&mut first));
                assert_eq!(missing, [2], "the first key is somebody else's");
                loads.send(()).unwrap();
                Ok::<_, io::Error>(doubled(missing))
            })
        });
        loading.recv().unwrap();
        let second = cache.get_or_compute(&2, |_| -> io::Result<u32> { panic!("it is being loaded") });
        assert_eq!(second.unwrap(), 4);
        b_claimed.send(()).unwrap();
        assert_eq!(one.join().unwrap().unwrap(), [Some(2)]);
        assert_eq!(other.join().unwrap().unwrap(), [Some(2), Some(4)]);
    });
}

#[test]
fn a_key_that_somebody_else_failed_to_load_fails_the_call() {
    let clock = PausedClock::new();
    let cache = Numbers::builder().clock(&clock).build().unwrap();
    thread::scope(|scope| {
        let (go, gate) = mpsc::channel::<()>();
        let (begun, wait_begun) = mpsc::channel();
        let cache = &cache;
        let leader = scope.spawn(move || {
            cache.get_or_compute(&1, |_| {
                begun.send(()).unwrap();
                gate.recv().unwrap();
                Err::<u32, _>(io::Error::other("down"))
            })
        });
        wait_begun.recv().unwrap();
        let many = scope.spawn(|| cache.get_or_compute_many(&[1, 2], |keys, _| Ok::<_, io::Error>(doubled(keys))));
        clock.wait_for_waiters(1);
        go.send(()).unwrap();
        assert!(leader.join().unwrap().is_err());
        assert!(many.join().unwrap().unwrap_err().is_load());
    });
    assert_eq!(cache.get(&2), Some(4), "what was loaded is kept");
    assert!(cache.station().snapshot().balanced());
}

#[test]
fn a_load_that_asks_for_its_own_keys_is_refused() {
    let cache = Numbers::builder().build().unwrap();
    let found = cache.get_or_compute_many(&[1, 2], |missing, _| {
        let again = cache.get_or_compute_many(&[3, 2], |keys, _| Ok::<_, io::Error>(doubled(keys)));
        assert!(again.unwrap_err().is_reentrant());
        Ok::<_, io::Error>(doubled(missing))
    });
    assert_eq!(found.unwrap(), [Some(2), Some(4)]);
    assert_eq!(cache.get_or_compute(&3, |_| Ok::<_, io::Error>(3)).unwrap(), 3, "nobody holds the third key");
}

proptest! {
    /// Threads with overlapping keys: every result is right, nobody hangs, and a key is not loaded twice at a time.
    #[test]
    fn overlapping_calls_all_get_their_values(sets in proptest::collection::vec(proptest::collection::vec(0..12u32, 1..8), 2..6)) {
        let cache = Numbers::builder().build().unwrap();
        let under_way: Vec<AtomicU32> = (0..12).map(|_| AtomicU32::new(0)).collect();
        let start = Barrier::new(sets.len());
        thread::scope(|scope| {
            let calls: Vec<_> = sets
                .iter()
                .map(|set| {
                    let (cache, under_way, start) = (&cache, &under_way, &start);
                    scope.spawn(move || {
                        start.wait();
                        cache.get_or_compute_many(set, |missing, _| {
                            for key in missing {
                                assert_eq!(under_way[*key as usize].fetch_add(1, Ordering::SeqCst), 0);
                            }
                            thread::yield_now();
                            for key in missing {
                                under_way[*key as usize].fetch_sub(1, Ordering::SeqCst);
                            }
                            Ok::<_, io::Error>(doubled(missing))
                        })
                    })
                })
                .collect();
            for (call, set) in calls.into_iter().zip(&sets) {
                let want: Vec<_> = set.iter().map(|key| Some(2 * key)).collect();
                assert_eq!(call.join().unwrap().unwrap(), want);
            }
        });
        prop_assert!(cache.station().snapshot().balanced());
    }
}

#[test]
fn a_cold_start_leaves_to_others_what_they_load() {
    let cache = &Numbers::builder().build().unwrap();
    let (go, gate) = mpsc::channel::<()>();
    let (begun, wait_begun) = mpsc::channel();
    thread::scope(|scope| {
        let other = scope.spawn(move || {
            cache.get_or_compute(&3, |_| {
                begun.send(()).unwrap();
                gate.recv().unwrap();
                Ok::<_, io::Error>(6)
            })
        });
        wait_begun.recv().unwrap();
        let mut calls = Vec::new();
        let there = cache.warm(&[1, 2, 3, 4, 5], 2, |keys, _| {
            calls.push(keys.to_vec());
            Ok::<_, io::Error>(doubled(keys))
        });
        assert_eq!((there.unwrap(), calls), (4, vec![vec![1, 2], vec![4], vec![5]]));
        go.send(()).unwrap();
        assert_eq!(other.join().unwrap().unwrap(), 6);
    });
    assert_eq!(
        cache.warm(&[1, 2, 3, 4, 5], 2, |_, _| -> io::Result<Vec<(u32, u32)>> { panic!("all is there") }).unwrap(),
        5
    );
}
