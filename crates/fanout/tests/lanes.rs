//! Key lanes, threads, groups, TTLs and batches.
#![allow(missing_docs, clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use fullbore_core::{BuildError, Overflow, PausedClock, Refusal};
use fullbore_fanout::{Became, DeadReason, ResizeError, RouteError, Router, Subscription};

/// Key and number.
type Keyed = (u32, u32);

fn field(error: &RouteError) -> Option<&str> {
    match error {
        RouteError::Build(error) => error.field(),
        _ => None,
    }
}

fn assert_settled<M>(subscription: &Subscription<M>) {
    let seen = subscription.station().snapshot();
    assert!(seen.balanced() && seen.waiting() == 0 && seen.in_service() == 0, "{seen:?}");
}

#[test]
fn the_same_key_keeps_its_order_while_lanes_come_and_go() {
    const KEYS: u32 = 40;
    const EACH: u32 = 300;
    let router = Router::<Keyed>::new();
    let last: Arc<Mutex<BTreeMap<u32, u32>>> = Arc::default();
    let seen = Arc::clone(&last);
    let lanes = router
        .subscribe("#")
        .name("ordered")
        .capacity(3)
        .overflow(Overflow::Block)
        .lanes(2)
        .by_key(|(key, _)| *key)
        .run(move |message: Arc<Keyed>| {
            let (key, n) = *message;
            let before = seen.lock().unwrap().insert(key, n);
            assert_eq!(n, before.map_or(0, |before| before + 1), "key {key}");
            if n % 16 == key % 16 {
                thread::yield_now();
            }
        })
        .unwrap();
    let busy = AtomicBool::new(true);
    thread::scope(|scope| {
        let publishers: Vec<_> = (0..4)
            .map(|publisher| {
                let router = &router;
                scope.spawn(move || {
                    for n in 0..EACH {
                        for key in (0..KEYS).filter(|key| key % 4 == publisher) {
                            assert!(router.publish("t", (key, n)).unwrap().is_complete());
                        }
                    }
                })
            })
            .collect();
        scope.spawn(|| {
            for to in [3, 1, 8, 5, 2, 16].into_iter().cycle() {
                lanes.resize_lanes(to).unwrap();
                assert_eq!(lanes.lanes(), Some(to));
                if !busy.load(Ordering::Relaxed) {
                    break;
                }
            }
        });
        publishers.into_iter().for_each(|publisher| publisher.join().unwrap());
        busy.store(false, Ordering::Relaxed);
    });
    router.close().unwrap();
    assert_settled(&lanes);
    let counts = lanes.station().snapshot();
    assert_eq!((counts.served, counts.failed), (u64::from(KEYS * EACH), 0));
    assert!(last.lock().unwrap().values().all(|n| *n == EACH - 1));
}

#[test]
fn keys_spread_over_all_lanes_and_each_stays_in_one() {
    let router = Router::<Keyed>::new();
    let threads: Arc<Mutex<BTreeMap<u32, BTreeSet<String>>>> = Arc::default();
    let seen = Arc::clone(&threads);
    let lanes = router
        .subscribe("#")
        .name("spread")
        .lanes(4)
        .by_key(|(key, _)| *key)
        .run(move |message: Arc<Keyed>| {
            let name = thread::current().name().unwrap().to_owned();
            seen.lock().unwrap().entry(message.0).or_default().insert(name);
        })
        .unwrap();
    for n in 0..400 {
        let _ = router.publish("t", (n % 100, n)).unwrap();
    }
    router.flush().unwrap();
    let threads = threads.lock().unwrap();
    assert!(threads.values().all(|names| names.len() == 1));
    let all: BTreeSet<_> = threads.values().flatten().cloned().collect();
    let expected: BTreeSet<_> = (0..4).map(|n| format!("fullbore-fanout-spread-{n}-0")).collect();
    assert_eq!(all, expected);
    assert_eq!(lanes.station().snapshot().parallelism(), 4);
}

#[test]
fn a_router_with_lanes_behind_a_lane_uses_all_of_its_own() {
    let (outer, inner) = (Router::<Keyed>::new(), Router::<Keyed>::new());
    let used: Arc<Mutex<BTreeSet<String>>> = Arc::default();
    let seen = Arc::clone(&used);
    inner
        .subscribe("#")
        .name("inner")
        .lanes(4)
        .by_key(|(key, _)| *key)
        .run(move |_| {
            seen.lock().unwrap().insert(thread::current().name().unwrap().to_owned());
        })
        .unwrap();
    let onward = inner.clone();
    // What the first of two lanes gets goes on.
    outer
        .subscribe("#")
        .name("outer")
        .lanes(2)
        .by_key(|(key, _)| *key)
        .run(move |message| {
            if thread::current().name() == Some("fullbore-fanout-outer-0-0") {
                assert!(onward.publish_arc("t", message).unwrap().is_complete());
            }
        })
        .unwrap();
    for n in 0..500 {
        let _ = outer.publish("t", (n, n)).unwrap();
    }
    outer.flush().unwrap();
    inner.flush().unwrap();
    assert_eq!(used.lock().unwrap().len(), 4);
    outer.close().unwrap();
}

#[test]
fn publishers_wait_for_a_change_of_lanes_and_the_impatient_are_refused() {
    let clock = PausedClock::new();
    let router = Router::<u32>::builder().clock(&clock).build().unwrap();
    let (say, begun) = mpsc::channel();
    let (go, wait) = mpsc::channel::<()>();
    let wait = Mutex::new(wait);
    let lanes = router
        .subscribe("#")
        .name("lanes")
        .lanes(1)
        .by_key(|n: &u32| *n)
        .run(move |n| {
            say.send(*n).unwrap();
            let _ = wait.lock().unwrap().recv();
        })
        .unwrap();
    router.publish("t", 1).map(drop).unwrap();
    assert_eq!(begun.recv().unwrap(), 1);
    let late = lanes.resize_lanes_within(4, Duration::ZERO).unwrap_err();
    assert!(late.is_timeout() && !late.is_own_thread(), "{late}");
    assert_eq!(lanes.lanes(), Some(1));
    thread::scope(|scope| {
        let resizer = scope.spawn(|| lanes.resize_lanes(4));
        // The resizer, and the three new lanes' threads.
        clock.wait_for_waiters(4);
        let receipt = router.try_publish("t", 2).unwrap();
        assert_eq!(receipt.refused(), [("lanes".into(), Refusal::Full)]);
        let publisher = scope.spawn(|| router.publish("t", 3).unwrap());
        clock.wait_for_waiters(5);
        drop(go);
        resizer.join().unwrap().unwrap();
        assert!(publisher.join().unwrap().is_complete());
    });
    assert_eq!(begun.recv().unwrap(), 3);
    router.close().unwrap();
    assert_settled(&lanes);
}

#[test]
fn a_close_while_lanes_change_ends_both() {
    for round in 0..40 {
        let router = Router::<u32>::new();
        let held = Arc::new(());
        let lanes = {
            let held = Arc::clone(&held);
            router
                .subscribe("#")
                .lanes(2)
                .by_key(|n: &u32| *n)
                .run(move |_| {
                    let _held = &held;
                    thread::yield_now();
                })
                .unwrap()
        };
        thread::scope(|scope| {
            scope.spawn(|| {
                for n in 0..50 {
                    if router.publish("t", n).is_err() {
                        break;
                    }
                }
            });
            scope.spawn(|| {
                for to in [5, 1, 7].into_iter().cycle().take(9) {
                    match lanes.resize_lanes(to) {
                        Ok(()) => {}
                        Err(error) => {
                            assert!(matches!(error, ResizeError::Closed), "{error}");
                            break;
                        }
                    }
                }
            });
            (0..round).for_each(|_| thread::yield_now());
            router.close().unwrap();
        });
        assert_settled(&lanes);
        assert!(matches!(lanes.resize_lanes(2), Err(ResizeError::Closed)));
        // Every lane that ever was has ended.
        assert_eq!(Arc::strong_count(&held), 2, "the test and the subscription's handle");
        drop(lanes);
        drop(router);
        assert_eq!(Arc::strong_count(&held), 1);
    }
}

#[test]
fn c7_numbers_of_lanes_and_threads_that_cannot_be_are_refused() {
    let router = Router::<u32>::new();
    for n in [0, 4097] {
        assert_eq!(field(&router.subscribe("#").lanes(n).by_key(|n| *n).run(|_| ()).unwrap_err()), Some("lanes"));
        assert_eq!(field(&router.subscribe("#").threads(n).run(|_| ()).unwrap_err()), Some("threads"));
    }
    assert_eq!(field(&router.subscribe("#").capacity(0).threads(2).run(|_| ()).unwrap_err()), Some("capacity"));
    assert!(router.subscribe("#x").lanes(2).by_key(|n| *n).run(|_| ()).unwrap_err().malformed().is_some());
    let plain = router.subscribe("#").run(|_| ()).unwrap();
    assert!(matches!(plain.resize_lanes(2), Err(ResizeError::NoLanes)));
    assert_eq!(plain.lanes(), None);
    let lanes = router.subscribe("#").lanes(2).by_key(|n| *n).run(|_| ()).unwrap();
    assert!(matches!(lanes.resize_lanes(0), Err(ResizeError::Build(BuildError::Config { .. }))));
    let sink = fullbore_core::sink::from_fn(|_: Arc<u32>| Ok(()));
    assert_eq!(field(&router.bind("#").overflow(Overflow::DropOldest).sink(sink).unwrap_err()), Some("overflow"));
    assert_eq!(router.len(), 2);
}

#[test]
fn on_a_lanes_own_thread_nothing_waits() {
    let router = Router::<u32>::new();
    let (give, slot) = mpsc::channel::<Arc<Subscription<u32>>>();
    let (slot, (say, said)) = (Mutex::new(slot), mpsc::channel());
    let inside = router.clone();
    let lanes = router
        .subscribe("#")
        .name("own")
        .capacity(1)
        .overflow(Overflow::Block)
        .lanes(1)
        .by_key(|n: &u32| *n)
        .run(move |n| {
            if *n == 0 {
                let lanes = slot.lock().unwrap().recv().unwrap();
                let resized = lanes.resize_lanes(2).unwrap_err().is_own_thread();
                let refused = inside.publish("t", 1).unwrap().refused()[0].1;
                say.send((resized, refused)).unwrap();
            }
        })
        .unwrap();
    let lanes = Arc::new(lanes);
    router.publish("t", 0).map(drop).unwrap();
    give.send(Arc::clone(&lanes)).unwrap();
    assert_eq!(said.recv().unwrap(), (true, Refusal::Full));
    router.close().unwrap();
}

#[test]
fn threads_share_the_work_of_one_subscription() {
    let router = Router::<u32>::new();
    let (say, said) = mpsc::channel();
    let (go, wait) = mpsc::channel::<()>();
    let wait = Arc::new(Mutex::new(wait));
    let four = router
        .subscribe("#")
        .name("four")
        .threads(4)
        .run(move |n| {
            say.send(thread::current().name().unwrap().to_owned()).unwrap();
            if *n < 4 {
                // All four are at work at once, or this never ends.
                let _ = wait.lock().unwrap().recv();
            }
            if n.is_multiple_of(5) { Err("five") } else { Ok(()) }
        })
        .unwrap();
    for n in 0..4 {
        let _ = router.publish("t", n).unwrap();
    }
    let names: BTreeSet<_> = said.iter().take(4).collect();
    assert_eq!(names, (0..4).map(|n| format!("fullbore-fanout-four-{n}")).collect());
    drop(go);
    for n in 4..20 {
        let _ = router.publish("t", n).unwrap();
    }
    router.close().unwrap();
    assert_settled(&four);
    let seen = four.station().snapshot();
    assert_eq!((seen.served, seen.failed, seen.parallelism()), (16, 4, 4));
}

#[test]
fn a_group_shares_one_copy_among_the_least_full() {
    let router = Router::<u32>::new();
    let member = |capacity| {
        router.subscribe("#").group("workers").capacity(capacity).overflow(Overflow::Reject).receiver().unwrap()
    };
    let (small, large) = (member(2), member(4));
    let own = router.subscribe("#").name("own").receiver().unwrap();
    for n in 0..6 {
        let receipt = router.publish("t", n).unwrap();
        assert_eq!(receipt.destinations().collect::<Vec<_>>().len(), 2);
        assert!(receipt.destinations().any(|it| it == ("workers", Became::Accepted)), "{receipt}");
    }
    assert_eq!((small.waiting(), large.waiting(), own.waiting()), (2, 4, 6));
    let receipt = router.publish("t", 6).unwrap();
    assert_eq!(receipt.refused(), [("workers".into(), Refusal::Full)]);
    assert_eq!((receipt.matched(), receipt.accepted()), (2, 1));
    assert_eq!(small.station().snapshot().refused + large.station().snapshot().refused, 1);
    // Whoever is left does the work of all.
    drop(small);
    large.try_recv().unwrap();
    assert!(router.publish("t", 7).unwrap().is_complete());
    drop(large);
    assert_eq!(router.publish("t", 8).unwrap().matched(), 1);
}

#[test]
fn a_group_takes_turns_among_the_equally_full_and_members_may_differ() {
    let router = Router::<u32>::new();
    let (first, firsts) = crossbeam_channel::bounded(3);
    let (second, seconds) = crossbeam_channel::bounded(100);
    router.bind("a.#").group("sinks").sink(first).unwrap();
    router.bind("#.b").group("sinks").sink(second).unwrap();
    for n in 0..10 {
        assert!(router.publish("a.b", n).unwrap().is_complete(), "the other one takes what one refuses");
    }
    assert_eq!((firsts.len(), seconds.len()), (3, 7));
    assert!(router.publish("b", 10).unwrap().is_complete());
    assert_eq!(seconds.len(), 8);
    assert_eq!(router.try_publish("a", 11).unwrap().refused()[0].1, Refusal::Full);
}

#[test]
fn a_publisher_waits_for_a_full_group_and_is_released() {
    let clock = PausedClock::new();
    let router = Router::<u32>::builder().clock(&clock).build().unwrap();
    let member = || router.subscribe("#").group("g").capacity(1).overflow(Overflow::Block).receiver().unwrap();
    let (one, two) = (member(), member());
    for n in 0..2 {
        assert!(router.publish("t", n).unwrap().is_complete());
    }
    thread::scope(|scope| {
        let publisher = scope.spawn(|| router.publish("t", 2).unwrap());
        clock.wait_for_waiters(1);
        one.try_recv().unwrap();
        two.try_recv().unwrap();
        assert!(publisher.join().unwrap().is_complete());
    });
    assert_eq!(one.waiting() + two.waiting(), 1);
    let receipt = router.publish_all_or_nothing("t", 3).unwrap();
    assert_eq!(receipt.accepted(), 1);
    assert_eq!((one.waiting(), two.waiting()), (1, 1));
    assert_eq!(router.try_publish_all_or_nothing("t", 4).unwrap_err().withheld(), Some(("g", Refusal::Full)));
}

#[test]
fn what_is_too_old_is_a_dead_letter() {
    let clock = PausedClock::new();
    let (tell, dead) = mpsc::channel();
    let hook = move |n: Arc<u32>, reason: DeadReason| tell.send((*n, reason.to_string())).unwrap();
    let ttl = |n: &u32| (*n >= 100).then_some(Duration::from_secs(1));
    let router = Router::<u32>::builder().clock(&clock).dead_letter(hook).ttl(ttl).build().unwrap();
    let by_hand = router.subscribe("#").name("by_hand").ttl(Duration::from_secs(10)).receiver().unwrap();
    let patient = router.subscribe("#").name("patient").receiver().unwrap();
    for n in [1, 100] {
        let _ = router.publish("t", n).unwrap();
    }
    clock.advance(Duration::from_secs(1));
    let _ = router.publish("t", 2).unwrap();
    assert_eq!(*by_hand.try_recv().unwrap(), 1);
    assert_eq!(*by_hand.try_recv().unwrap(), 2);
    assert_eq!(dead.try_recv().unwrap(), (100, "expired at by_hand after 1s".to_owned()));
    let _ = router.publish("t", 3).unwrap();
    clock.advance(Duration::from_secs(10));
    assert!(by_hand.try_recv().unwrap_err().is_empty());
    assert_eq!(dead.try_recv().unwrap(), (3, "expired at by_hand after 10s".to_owned()));
    let seen = by_hand.station().snapshot();
    assert!(seen.balanced() && seen.waiting() == 0);
    assert_eq!((seen.served, seen.dropped), (2, 2));
    let taken: Vec<u32> = std::iter::from_fn(|| patient.try_recv().ok()).map(|n| *n).collect();
    assert_eq!(taken, [1, 2, 3]);
    assert_eq!(dead.try_iter().map(|(n, _)| n).collect::<Vec<_>>(), [100]);
}

#[test]
fn a_closure_is_not_given_what_is_too_old() {
    let clock = PausedClock::new();
    let dead = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&dead);
    let hook = move |_, reason| {
        assert!(matches!(reason, DeadReason::Expired { .. }));
        counted.fetch_add(1, Ordering::Relaxed);
    };
    let router = Router::<u32>::builder().clock(&clock).dead_letter(hook).build().unwrap();
    let (say, said) = mpsc::channel();
    let (go, wait) = mpsc::channel::<()>();
    let closure = move |n: Arc<u32>| {
        say.send(*n).unwrap();
        let _ = wait.recv();
    };
    let timely = router.subscribe("#").ttl(Duration::from_secs(1)).run(closure).unwrap();
    for n in 0..4 {
        let _ = router.publish("t", n).unwrap();
    }
    assert_eq!(said.recv().unwrap(), 0);
    clock.advance(Duration::from_secs(1));
    let _ = router.publish("t", 4).unwrap();
    drop(go);
    assert_eq!(said.recv().unwrap(), 4);
    router.flush().unwrap();
    assert_eq!(dead.load(Ordering::Relaxed), 3);
    assert_settled(&timely);
    assert_eq!((timely.station().snapshot().served, timely.station().snapshot().dropped), (2, 3));
}

#[test]
fn a_batch_has_one_receipt_that_adds_up() {
    let router = Router::<u32>::new();
    let all = router.subscribe("#").name("all").receiver().unwrap();
    let few = router.subscribe("#").name("few").capacity(2).overflow(Overflow::Reject).receiver().unwrap();
    let latest = router.subscribe("#").name("latest").capacity(1).overflow(Overflow::DropOldest).receiver().unwrap();
    let receipt = router.publish_batch("t", 0..4).unwrap();
    assert_eq!((receipt.messages(), receipt.unroutable(), receipt.matched()), (4, 0, 12));
    assert_eq!((receipt.accepted(), receipt.displaced()), (10, 3));
    assert_eq!(receipt.refused(), [(2, "few".into(), Refusal::Full), (3, "few".into(), Refusal::Full)]);
    assert!(!receipt.is_complete());
    assert_eq!(receipt.to_string(), "4 messages, 10 of 12 deliveries accepted, 3 displaced");
    assert_eq!((all.waiting(), few.waiting(), latest.waiting()), (4, 2, 1));
    assert_eq!(router.publish_batch("t", []).unwrap().messages(), 0);
    drop((all, few, latest));
    let receipt = router.publish_batch("t", 0..3).unwrap();
    assert_eq!((receipt.unroutable(), receipt.matched(), receipt.is_complete()), (3, 0, true));
    assert_eq!(router.publish_batch("t..", 0..3).unwrap_err().into_inner(), [0, 1, 2]);
    router.close().unwrap();
    assert_eq!(router.publish_batch("t", 0..3).unwrap_err().into_inner(), [0, 1, 2]);
}
