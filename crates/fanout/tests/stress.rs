//! Many threads at once: nothing is lost, nothing is counted twice, order is kept.
#![allow(missing_docs, clippy::unwrap_used)]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use fullbore_core::{Overflow, Refusal, SendError, sink};
use fullbore_fanout::{DeadReason, Router};
use fullbore_metrics::{Counts, Station};

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

const POLICIES: [Overflow; 4] =
    [Overflow::Block, Overflow::BlockFor(Duration::from_millis(1)), Overflow::Reject, Overflow::DropOldest];

fn counts(station: &Station) -> Counts {
    let seen = station.snapshot();
    assert!(seen.balanced(), "{seen:?}");
    assert_eq!((seen.waiting(), seen.in_service()), (0, 0), "{seen:?}");
    *seen
}

/// What the publishers were told, in sum.
#[derive(Default)]
struct Told {
    calls: AtomicU64,
    matched: AtomicU64,
    accepted: AtomicU64,
    displaced: AtomicU64,
    refused: AtomicU64,
    unroutable: AtomicU64,
    closed: AtomicU64,
}

impl Told {
    fn publish(&self, router: &Router<(usize, u64)>, topic: &str, message: (usize, u64), patient: bool) {
        self.calls.fetch_add(1, Ordering::Relaxed);
        let result = if patient { router.publish(topic, message) } else { router.try_publish(topic, message) };
        match result {
            Ok(receipt) => {
                assert_eq!(receipt.matched(), receipt.accepted() + receipt.refused().len());
                self.matched.fetch_add(receipt.matched() as u64, Ordering::Relaxed);
                self.accepted.fetch_add(receipt.accepted() as u64, Ordering::Relaxed);
                self.displaced.fetch_add(receipt.displaced() as u64, Ordering::Relaxed);
                self.refused.fetch_add(receipt.refused().len() as u64, Ordering::Relaxed);
                self.unroutable.fetch_add(u64::from(receipt.is_unroutable()), Ordering::Relaxed);
            }
            Err(error) => {
                assert_eq!(error.into_inner(), message);
                self.closed.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

/// Checks that what the publishers were told is what the destinations counted and the hook was given.
fn settle(told: &Told, router: &Router<(usize, u64)>, destinations: &[Station], dead: &Mutex<Vec<DeadReason>>) {
    let get = |n: &AtomicU64| n.load(Ordering::Relaxed);
    let sum = |of: fn(&Counts) -> u64| destinations.iter().map(|station| of(&counts(station))).sum::<u64>();
    assert_eq!(get(&told.matched), sum(|c| c.arrivals + c.refused));
    assert_eq!(get(&told.accepted), sum(|c| c.arrivals));
    assert_eq!(get(&told.refused), sum(|c| c.refused));
    let whole = counts(router.station());
    assert_eq!(whole.offered(), get(&told.calls));
    assert_eq!((whole.refused, whole.dropped), (get(&told.closed), get(&told.unroutable)));
    let dead = dead.lock().unwrap();
    let of = |kind: fn(&DeadReason) -> bool| dead.iter().filter(|reason| kind(reason)).count() as u64;
    assert_eq!(of(|r| matches!(r, DeadReason::Unroutable { .. })), get(&told.unroutable));
    assert_eq!(of(|r| matches!(r, DeadReason::Refused { .. })), get(&told.refused));
    assert_eq!(of(|r| matches!(r, DeadReason::Displaced { .. })), get(&told.displaced));
    assert_eq!(of(|r| matches!(r, DeadReason::Failed { .. })), sum(|c| c.failed));
    let abandoned = of(|r| matches!(r, DeadReason::Abandoned { .. }));
    assert_eq!(abandoned + get(&told.displaced), sum(|c| c.dropped));
}

type Dead = Arc<Mutex<Vec<DeadReason>>>;

fn watched() -> (Router<(usize, u64)>, Dead) {
    let dead = Arc::new(Mutex::new(Vec::new()));
    let hook = {
        let dead = Arc::clone(&dead);
        move |_, reason| dead.lock().unwrap().push(reason)
    };
    (Router::builder().dead_letter(hook).build().unwrap(), dead)
}

#[test]
fn nothing_is_lost_under_panics_failures_and_full_buffers() {
    let mut dice = Dice::new("nothing_is_lost");
    let (router, dead) = watched();
    let mut stations = Vec::new();
    let ran = Arc::new(AtomicU64::new(0));
    for overflow in POLICIES {
        let (mut dice, ran) = (dice.split(), Arc::clone(&ran));
        let subscription = router
            .subscribe("#")
            .capacity(4)
            .overflow(overflow)
            .run(move |_: Arc<(usize, u64)>| {
                ran.fetch_add(1, Ordering::Relaxed);
                match dice.roll(20) {
                    0 => std::panic::resume_unwind(Box::new("on purpose")),
                    1 => Err("on purpose"),
                    2 => {
                        thread::yield_now();
                        Ok(())
                    }
                    _ => Ok(()),
                }
            })
            .unwrap();
        stations.push(subscription.station().clone());
    }
    let refusing = sink::from_fn(|item: Arc<(usize, u64)>| match item.1 % 3 {
        0 => Err(SendError::new(item, Refusal::Shed)),
        _ => Ok(()),
    });
    stations.push(router.route("even.#", refusing).unwrap().station().clone());
    let told = Told::default();
    thread::scope(|scope| {
        for publisher in 0..4 {
            let (router, told) = (&router, &told);
            let mut dice = dice.split();
            scope.spawn(move || {
                for n in 0..500 {
                    let topic = if n % 2 == 0 { "even.x" } else { "odd" };
                    told.publish(router, topic, (publisher, n), dice.roll(2) == 0);
                }
            });
        }
    });
    router.close().unwrap();
    settle(&told, &router, &stations, &dead);
    let begun: u64 = stations[..4].iter().map(|station| counts(station).begun).sum();
    assert_eq!(begun, ran.load(Ordering::Relaxed));
}

#[test]
fn every_kind_of_destination_balances_under_each_policy() {
    let mut dice = Dice::new("every_kind");
    let (router, dead) = watched();
    let mut stations = Vec::new();
    let handler = |mut dice: Dice| {
        let first = dice.roll(1000);
        move |message: Arc<(usize, u64)>| match (message.1 + first) % 17 {
            0 => std::panic::resume_unwind(Box::new("on purpose")),
            1 => Err("on purpose"),
            2 => {
                thread::yield_now();
                Ok(())
            }
            _ => Ok(()),
        }
    };
    let mut lanes = Vec::new();
    for overflow in POLICIES {
        let plain = || router.subscribe("#").capacity(2).overflow(overflow);
        stations.push(plain().threads(3).run(handler(dice.split())).unwrap().station().clone());
        let by_key =
            plain().lanes(3).by_key(|message: &(usize, u64)| message.1 % 11).run(handler(dice.split())).unwrap();
        stations.push(by_key.station().clone());
        lanes.push(by_key);
        for _ in 0..2 {
            let member = plain().group(overflow.to_string()).run(handler(dice.split())).unwrap();
            stations.push(member.station().clone());
        }
        let (sender, receiver) = crossbeam_channel::bounded(64);
        let map = |message: &(usize, u64)| message.1.is_multiple_of(2).then_some(message.0);
        let mapped = router.bind("even.#").overflow(Overflow::Reject).filter_map(map).sink(sender).unwrap();
        stations.push(mapped.station().clone());
        // It is full from some moment on, and refuses.
        std::mem::forget(receiver);
    }
    let told = Told::default();
    let busy = AtomicUsize::new(3);
    thread::scope(|scope| {
        for publisher in 0..3 {
            let (router, told, busy) = (&router, &told, &busy);
            let mut dice = dice.split();
            scope.spawn(move || {
                for n in 0..400 {
                    let topic = if n % 2 == 0 { "even.x" } else { "odd" };
                    told.publish(router, topic, (publisher, n), dice.roll(2) == 0);
                }
                busy.fetch_sub(1, Ordering::Relaxed);
            });
        }
        scope.spawn(|| {
            for to in (1..6).cycle() {
                lanes.iter().for_each(|lanes| lanes.resize_lanes(to).unwrap());
                if busy.load(Ordering::Relaxed) == 0 {
                    break;
                }
            }
        });
    });
    router.close().unwrap();
    settle(&told, &router, &stations, &dead);
}

#[test]
fn routes_come_and_go_while_others_publish() {
    let mut dice = Dice::new("come_and_go");
    let (router, dead) = watched();
    let told = Told::default();
    let stations = Mutex::new(Vec::new());
    let busy = AtomicUsize::new(3);
    let steady = {
        let last = Mutex::new([None; 3]);
        // Whoever stays gets everything, in order.
        router
            .subscribe("#")
            .name("steady")
            .overflow(Overflow::Block)
            .run(move |message: Arc<(usize, u64)>| {
                let (publisher, n) = *message;
                let last = &mut last.lock().unwrap()[publisher];
                assert_eq!(n, last.map_or(0, |last| last + 1), "publisher {publisher}");
                *last = Some(n);
            })
            .unwrap()
    };
    thread::scope(|scope| {
        for publisher in 0..3 {
            let (router, told, busy) = (&router, &told, &busy);
            scope.spawn(move || {
                for n in 0..1000 {
                    told.publish(router, "t.x", (publisher, n), true);
                }
                busy.fetch_sub(1, Ordering::Relaxed);
            });
        }
        for comer in 0..3 {
            let (router, stations, busy) = (&router, &stations, &busy);
            let mut dice = dice.split();
            scope.spawn(move || {
                let mut rounds = 0;
                while busy.load(Ordering::Relaxed) > 0 || rounds < 20 {
                    rounds += 1;
                    let overflow = POLICIES[usize::try_from(dice.roll(4)).unwrap()];
                    let builder = router.subscribe("t.*").capacity(2).overflow(overflow);
                    let mut ours = stations.lock().unwrap();
                    if comer == 0 {
                        let receiver = builder.receiver().unwrap();
                        ours.push(receiver.station().clone());
                        drop(ours);
                        for _ in 0..dice.roll(5) {
                            let _ = receiver.try_recv();
                        }
                    } else {
                        let subscription = builder.run(|_| ()).unwrap();
                        ours.push(subscription.station().clone());
                        drop(ours);
                        thread::yield_now();
                        if dice.roll(2) == 0 {
                            subscription.unsubscribe();
                        } else {
                            subscription.close().unwrap();
                        }
                    }
                }
            });
        }
    });
    assert_eq!(router.len(), 1);
    router.close().unwrap();
    let seen = counts(steady.station());
    assert_eq!((seen.served, seen.failed), (3000, 0));
    let mut stations = stations.into_inner().unwrap();
    stations.push(steady.station().clone());
    settle(&told, &router, &stations, &dead);
}

#[test]
fn closing_at_every_point_loses_nothing() {
    const MESSAGES: u64 = 24;
    for at in 0..=MESSAGES {
        for overflow in POLICIES {
            let (router, dead) = watched();
            let told = Told::default();
            let subscription =
                router.subscribe("#").capacity(3).overflow(overflow).run(|_| thread::yield_now()).unwrap();
            let receiver = router.subscribe("#").capacity(100).receiver().unwrap();
            let start = Barrier::new(2);
            let (tell, told_to_close) = mpsc::channel();
            let left = thread::scope(|scope| {
                let publisher = {
                    let (router, told, start) = (&router, &told, &start);
                    scope.spawn(move || {
                        start.wait();
                        for n in 0..MESSAGES {
                            if n == at {
                                tell.send(()).unwrap();
                            }
                            told.publish(router, "t", (0, n), true);
                        }
                    })
                };
                start.wait();
                let _ = told_to_close.recv();
                let left = router.close_within(Duration::from_secs(if at % 2 == 0 { 60 } else { 0 }));
                publisher.join().unwrap();
                left
            });
            let taken = receiver.iter().count() as u64;
            assert_eq!(counts(receiver.station()).served, taken);
            if let Err(left) = left {
                // With no time, one message may have been in the closure; it ends there all the same.
                assert!(left.items.len() <= 3 && left.in_flight <= 1, "{left}");
                subscription.close().unwrap();
                assert_eq!(counts(subscription.station()).returned, left.items.len() as u64);
            }
            settle(&told, &router, &[subscription.station().clone(), receiver.station().clone()], &dead);
        }
    }
}

#[test]
fn subscribing_while_closing_ends_one_way_or_the_other() {
    for _ in 0..50 {
        let router = Router::<u32>::new();
        let start = Barrier::new(3);
        let alive = Arc::new(());
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    start.wait();
                    loop {
                        let held = Arc::clone(&alive);
                        match router.subscribe("#").run(move |_| drop(Arc::clone(&held))) {
                            Ok(_) => {}
                            Err(error) => break assert!(error.is_closed(), "{error}"),
                        }
                    }
                });
            }
            start.wait();
            thread::yield_now();
            router.close().unwrap();
        });
        // Every thread has ended and dropped its closure, those that came too late included.
        assert_eq!(Arc::strong_count(&alive), 1);
    }
}

#[test]
fn sinks_that_panic_while_others_publish_leave_the_counts_right() {
    let router = Router::<u32>::new();
    let bad = router
        .route(
            "#",
            sink::from_fn(
                |n: Arc<u32>| if n.is_multiple_of(5) { std::panic::resume_unwind(Box::new(())) } else { Ok(()) },
            ),
        )
        .unwrap();
    let good = router.subscribe("#").overflow(Overflow::Block).capacity(8).run(|_| ()).unwrap();
    let panicked = AtomicU64::new(0);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                for station in [router.station(), bad.station(), good.station()] {
                    let seen = station.snapshot();
                    assert!(seen.begun <= seen.arrivals && seen.served + seen.failed <= seen.begun, "{seen:?}");
                }
            }
        });
        let publishers: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    for n in 0..500 {
                        if catch_unwind(AssertUnwindSafe(|| router.publish("t", n))).is_err() {
                            panicked.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                })
            })
            .collect();
        publishers.into_iter().for_each(|publisher| publisher.join().unwrap());
        stop.store(true, Ordering::Relaxed);
        watcher.join().unwrap();
    });
    router.close().unwrap();
    assert_eq!(panicked.load(Ordering::Relaxed), 400);
    assert_eq!((counts(bad.station()).failed, counts(bad.station()).served), (400, 1600));
    assert_eq!(counts(good.station()).served, 2000);
    assert_eq!((counts(router.station()).failed, counts(router.station()).served), (400, 1600));
}
