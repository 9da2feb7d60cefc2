//! All-or-nothing publishes: everybody or nobody, whoever else publishes, closes or leaves meanwhile.
#![allow(missing_docs, clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use fullbore_core::{Overflow, PausedClock, Refusal};
use fullbore_fanout::{DeadReason, Receiver, Router};

fn bounded(router: &Router<u32>, name: &str, capacity: usize, overflow: Overflow) -> Receiver<u32> {
    router.subscribe("#").name(name).capacity(capacity).overflow(overflow).receiver().unwrap()
}

fn held<M: Copy>(receiver: &Receiver<M>) -> Vec<M> {
    std::iter::from_fn(|| receiver.try_recv().ok()).map(|message| *message).collect()
}

#[test]
fn one_that_is_full_keeps_it_from_all() {
    let (tell, dead) = mpsc::channel();
    let router = Router::builder().dead_letter(move |_, reason| tell.send(reason).unwrap()).build().unwrap();
    let wide = bounded(&router, "wide", 10, Overflow::Reject);
    let narrow = bounded(&router, "narrow", 1, Overflow::Reject);
    assert!(router.publish_all_or_nothing("t", 1).unwrap().is_complete());
    let error = router.publish_all_or_nothing("t", 2).unwrap_err();
    assert_eq!(error.withheld(), Some(("narrow", Refusal::Full)));
    assert!(!error.is_closed() && error.malformed().is_none() && error.cannot_reserve().is_none());
    assert!(error.to_string().starts_with("given to nobody: refused by narrow"), "{error}");
    assert_eq!(error.into_inner(), 2);
    assert_eq!((wide.waiting(), narrow.waiting()), (1, 1));
    // The places it had kept are there again.
    assert_eq!(held(&narrow), [1]);
    assert!(router.publish_all_or_nothing("t", 3).unwrap().is_complete());
    assert_eq!((held(&wide), held(&narrow)), (vec![1, 3], vec![3]));
    assert!(dead.try_recv().is_err(), "what comes back is no dead letter");
    let seen = router.station().snapshot();
    assert!(seen.balanced());
    assert_eq!((seen.served, seen.refused), (2, 1));
    assert_eq!((narrow.station().snapshot().refused, wide.station().snapshot().refused), (1, 0));
}

#[test]
fn nobody_at_all_is_a_dead_letter_as_ever() {
    let (tell, dead) = mpsc::channel();
    let router = Router::builder().dead_letter(move |n, _| tell.send(*n).unwrap()).build().unwrap();
    assert!(router.publish_all_or_nothing("t", 7).unwrap().is_unroutable());
    assert_eq!(dead.recv().unwrap(), 7);
    assert!(router.publish_all_or_nothing("", 7).unwrap_err().malformed().is_some());
    router.close().unwrap();
    assert!(router.publish_all_or_nothing("t", 7).unwrap_err().is_closed());
}

#[test]
fn it_waits_for_one_place_and_keeps_no_other_meanwhile() {
    let clock = PausedClock::new();
    let router = Router::builder().clock(&clock).build().unwrap();
    let first = bounded(&router, "first", 1, Overflow::Block);
    let second = bounded(&router, "second", 1, Overflow::Block);
    router.publish("t", 0).map(drop).unwrap();
    thread::scope(|scope| {
        let publisher = scope.spawn(|| router.publish_all_or_nothing("t", 1).unwrap());
        clock.wait_for_waiters(1);
        assert_eq!(*second.try_recv().unwrap(), 0);
        // It waits for `first`, so `second` is free to others.
        let other = router.subscribe("only").name("only").receiver().unwrap();
        drop(other);
        assert!(router.try_publish_all_or_nothing("t", 2).unwrap_err().withheld().is_some());
        assert_eq!((first.waiting(), second.waiting()), (1, 0));
        assert_eq!(*first.try_recv().unwrap(), 0);
        assert!(publisher.join().unwrap().is_complete());
    });
    assert_eq!((held(&first), held(&second)), (vec![1], vec![1]));
}

#[test]
fn a_deadline_and_a_policy_end_the_wait() {
    let clock = PausedClock::new();
    let router = Router::builder().clock(&clock).build().unwrap();
    let full = bounded(&router, "full", 1, Overflow::BlockFor(Duration::from_secs(5)));
    let other = bounded(&router, "other", 9, Overflow::Block);
    router.publish("t", 0).map(drop).unwrap();
    thread::scope(|scope| {
        let by_deadline = scope.spawn(|| {
            let deadline = clock.now() + Duration::from_secs(1);
            router.publish_all_or_nothing_deadline("t", 1, deadline).unwrap_err().withheld().unwrap().1
        });
        clock.wait_for_waiters(1);
        let by_policy = scope.spawn(|| router.publish_all_or_nothing("t", 2).unwrap_err().withheld().unwrap().1);
        clock.wait_for_waiters(2);
        clock.advance(Duration::from_secs(1));
        assert_eq!(by_deadline.join().unwrap(), Refusal::TimedOut);
        clock.advance(Duration::from_secs(4));
        assert_eq!(by_policy.join().unwrap(), Refusal::TimedOut);
    });
    assert_eq!((held(&full), held(&other)), (vec![0], vec![0]));
}

#[test]
fn close_and_leaving_release_who_waits() {
    for leave in [|router: &Router<u32>, _| router.close().unwrap(), |_: &Router<u32>, full: Receiver<u32>| drop(full)]
    {
        let clock = PausedClock::new();
        let router = Router::builder().clock(&clock).build().unwrap();
        let other = bounded(&router, "other", 9, Overflow::Block);
        let full = bounded(&router, "full", 1, Overflow::Block);
        router.publish("t", 0).map(drop).unwrap();
        thread::scope(|scope| {
            let publisher = scope.spawn(|| router.publish_all_or_nothing("t", 1));
            clock.wait_for_waiters(1);
            leave(&router, full);
            let error = publisher.join().unwrap().unwrap_err();
            assert_eq!(error.withheld(), Some(("full", Refusal::Closed)));
        });
        assert_eq!(held(&other), [0]);
    }
}

#[test]
fn sinks_that_cannot_keep_a_place_are_refused_unless_optional() {
    let router = Router::new();
    let buffer = bounded(&router, "buffer", 9, Overflow::Block);
    let (sender, seen) = crossbeam_channel::bounded(1);
    let route = router.bind("#").name("channel").sink(sender.clone()).unwrap();
    let error = router.publish_all_or_nothing("t", 1).unwrap_err();
    assert_eq!(error.cannot_reserve(), Some("channel"));
    assert!(error.to_string().contains("cannot keep a place"));
    assert_eq!(error.into_inner(), 1);
    assert_eq!(buffer.waiting(), 0);
    route.remove();
    router.bind("#").name("channel").optional().overflow(Overflow::Reject).sink(sender).unwrap();
    assert!(router.publish_all_or_nothing("t", 2).unwrap().is_complete());
    let receipt = router.publish_all_or_nothing("t", 3).unwrap();
    assert_eq!((receipt.accepted(), receipt.refused()), (1, &[("channel".into(), Refusal::Full)][..]));
    assert_eq!(held(&buffer), [2, 3]);
    assert_eq!(seen.try_iter().map(|n| *n).collect::<Vec<_>>(), [2]);
}

#[test]
fn one_that_drops_its_oldest_has_always_a_place() {
    let router = Router::new();
    let latest = bounded(&router, "latest", 1, Overflow::DropOldest);
    let all = bounded(&router, "all", 2, Overflow::Reject);
    for n in 0..3 {
        let published = router.publish_all_or_nothing("t", n);
        assert_eq!(published.is_ok(), n < 2);
        if n == 1 {
            assert_eq!(published.unwrap().displaced(), 1);
        }
    }
    assert_eq!((held(&latest), held(&all)), (vec![1], vec![0, 1]), "nothing is displaced for what is withheld");
    assert!(latest.station().snapshot().balanced());
}

#[test]
fn on_a_subscriptions_own_thread_it_is_refused_where_it_would_wait_for_itself() {
    let router = Router::new();
    let (say, said) = mpsc::channel();
    let inside = router.clone();
    let echo = router
        .subscribe("echo")
        .name("echo")
        .capacity(1)
        .overflow(Overflow::Block)
        .run(move |_: Arc<u32>| {
            let error = inside.publish_all_or_nothing("echo", 1).unwrap_err();
            say.send(error.withheld().map(|(name, reason)| (name.to_owned(), reason))).unwrap();
        })
        .unwrap();
    router.publish("echo", 0).map(drop).unwrap();
    assert_eq!(said.recv().unwrap(), Some(("echo".to_owned(), Refusal::Full)));
    router.close().unwrap();
    assert!(echo.station().snapshot().balanced());
}

#[test]
fn a_key_that_panics_gives_every_place_back() {
    let router = Router::new();
    let first = bounded(&router, "first", 1, Overflow::Reject);
    let lanes = router.subscribe("#").lanes(2).by_key(|n: &u32| assert!(*n != 1, "key")).run(|_| ()).unwrap();
    assert!(catch_unwind(AssertUnwindSafe(|| router.publish_all_or_nothing("t", 1))).is_err());
    assert_eq!(first.waiting(), 0);
    assert!(router.publish_all_or_nothing("t", 2).unwrap().is_complete());
    // And after a place was lost, a close would not end.
    router.close().unwrap();
    assert_eq!(lanes.station().snapshot().served, 1);
    assert!(router.station().snapshot().balanced());
}

#[test]
fn under_concurrent_publishers_it_is_never_partial() {
    const PUBLISHERS: u32 = 4;
    const EACH: u32 = 400;
    let dead = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&dead);
    let hook = move |_, reason| {
        assert!(!matches!(reason, DeadReason::Refused { .. }), "{reason}");
        counted.fetch_add(1, Ordering::Relaxed);
    };
    let router = Router::<u32>::builder().dead_letter(hook).build().unwrap();
    let seen: Vec<Arc<Mutex<BTreeSet<u32>>>> = (0..5).map(|_| Arc::default()).collect();
    let collect = |n: usize| {
        let seen = Arc::clone(&seen[n]);
        move |message: Arc<u32>| {
            thread::yield_now();
            assert!(seen.lock().unwrap().insert(*message), "twice");
        }
    };
    let overflows = [Overflow::Block, Overflow::Reject, Overflow::BlockFor(Duration::from_millis(1))];
    for (n, overflow) in overflows.into_iter().enumerate() {
        router.subscribe("#").name(format!("s{n}")).capacity(1 + n).overflow(overflow).run(collect(n)).unwrap();
    }
    router.subscribe("#").capacity(2).threads(2).run(collect(3)).unwrap();
    router.subscribe("#").capacity(2).lanes(3).by_key(|n: &u32| n % 7).run(collect(4)).unwrap();
    let sent = Mutex::new(BTreeSet::new());
    let refused = AtomicU64::new(0);
    thread::scope(|scope| {
        for publisher in 0..PUBLISHERS {
            let (router, sent, refused) = (&router, &sent, &refused);
            scope.spawn(move || {
                for n in 0..EACH {
                    let message = publisher * EACH + n;
                    match router.publish_all_or_nothing("t", message) {
                        Ok(receipt) => {
                            assert!(receipt.is_complete() && receipt.accepted() == 5, "{receipt}");
                            sent.lock().unwrap().insert(message);
                        }
                        Err(error) => {
                            assert!(error.withheld().is_some());
                            refused.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                }
            });
        }
    });
    router.close().unwrap();
    let sent = sent.into_inner().unwrap();
    for seen in &seen {
        assert_eq!(*seen.lock().unwrap(), sent);
    }
    let station = router.station().snapshot();
    assert!(station.balanced() && station.in_service() == 0);
    assert_eq!((station.served, station.refused), (sent.len() as u64, refused.load(Ordering::Relaxed)));
    assert_eq!(dead.load(Ordering::Relaxed), 0);
}

#[test]
fn while_destinations_close_what_was_accepted_is_handled_or_a_dead_letter() {
    for round in 0..60 {
        let router = Router::<u32>::new();
        let stays = router.subscribe("#").name("stays").capacity(4).run(|_| ()).unwrap();
        let goes = router.subscribe("#").name("goes").capacity(2).run(|_| thread::yield_now()).unwrap();
        let receiver = bounded(&router, "receiver", 1000, Overflow::DropOldest);
        let receivers = receiver.station().clone();
        let stop = AtomicBool::new(false);
        let accepted = thread::scope(|scope| {
            let publisher = scope.spawn(|| {
                let mut accepted = 0;
                for n in 0..200 {
                    match router.publish_all_or_nothing("t", n) {
                        Ok(receipt) => accepted += receipt.accepted() as u64,
                        Err(error) => assert!(error.is_closed() || error.withheld().is_some()),
                    }
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                }
                accepted
            });
            match round % 3 {
                0 => drop(goes.close()),
                1 => drop(goes.close_within(Duration::ZERO)),
                _ => drop(receiver),
            }
            stop.store(true, Ordering::Relaxed);
            publisher.join().unwrap()
        });
        router.close().unwrap();
        goes.close().unwrap();
        let mut arrived = 0;
        for station in [stays.station(), goes.station()] {
            let seen = station.snapshot();
            assert!(seen.balanced() && seen.waiting() == 0 && seen.in_service() == 0, "{seen:?}");
            arrived += seen.arrivals;
        }
        assert_eq!(arrived + receivers.snapshot().arrivals, accepted);
        assert!(receivers.snapshot().balanced());
    }
}
