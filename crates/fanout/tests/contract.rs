//! The rules of the house (C1-C11) for `fullbore-fanout`. The names are the same in every crate.
#![allow(missing_docs, clippy::unwrap_used)]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use fullbore_core::{BuildError, EnvReader, OnDrop, Overflow, PausedClock, Refusal, SendError, Shutdown, Sink, sink};
use fullbore_fanout::{Config, DeadReason, RecvError, RouteError, Router, Subscription, SubscriptionConfig};
use fullbore_metrics::StationKind;

const LONG: Duration = Duration::from_secs(3600);

/// Lets a test see where a closure is, and hold it there.
struct Gate {
    begun: mpsc::Receiver<u32>,
    go: mpsc::Sender<()>,
}

impl Gate {
    /// Waits until the closure has begun a message, and says which.
    fn begun(&self) -> u32 {
        self.begun.recv().unwrap()
    }
    fn open(self) {
        drop(self.go);
    }
}

/// A closure that says what it has begun, then waits until it is let through, or for ever once the gate is open.
fn gated() -> (Gate, impl FnMut(Arc<u32>) + Send + 'static) {
    let (say, begun) = mpsc::channel();
    let (go, wait) = mpsc::channel::<()>();
    let closure = move |message: Arc<u32>| {
        let _ = say.send(*message);
        let _ = wait.recv();
    };
    (Gate { begun, go }, closure)
}

fn on(clock: &PausedClock) -> Router<u32> {
    Router::builder().clock(clock).build().unwrap()
}

type Dead = Arc<Mutex<Vec<String>>>;

fn dead_letters() -> (Dead, impl Fn(Arc<u32>, DeadReason) + Send + Sync + 'static) {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let hook = {
        let seen = Arc::clone(&seen);
        move |message: Arc<u32>, reason: DeadReason| seen.lock().unwrap().push(format!("{message}: {reason}"))
    };
    (seen, hook)
}

/// A sink that accepts everything and says what.
fn telling(tell: mpsc::Sender<u32>) -> impl Sink<Arc<u32>> {
    sink::from_fn(move |item: Arc<u32>| {
        tell.send(*item).unwrap();
        Ok(())
    })
}

fn assert_balanced<M>(subscription: &Subscription<M>) {
    let seen = subscription.station().snapshot();
    assert!(seen.balanced(), "{seen:?}");
    assert_eq!((seen.waiting(), seen.in_service()), (0, 0), "{seen:?}");
}

#[test]
fn c1_each_subscription_balances_under_each_policy() {
    // Policy, and of 6 messages to a stuck subscription of 3 places: accepted, displaced, refused.
    let cases = [
        (Overflow::Block, 3, 0, 3),
        (Overflow::BlockFor(Duration::from_secs(1)), 3, 0, 3),
        (Overflow::Reject, 3, 0, 3),
        (Overflow::DropOldest, 6, 3, 0),
    ];
    for (overflow, accepted, displaced, refused) in cases {
        let (dead, hook) = dead_letters();
        let router = Router::builder().dead_letter(hook).build().unwrap();
        let (gate, closure) = gated();
        let stuck = router.subscribe("#").name("stuck").capacity(3).overflow(overflow).run(closure).unwrap();
        router.publish("t", 0).map(drop).unwrap();
        assert_eq!(gate.begun(), 0);
        let mut sums = (1, 0, 0);
        for n in 1..6 {
            let receipt = router.try_publish("t", n).unwrap();
            assert_eq!(receipt.matched(), receipt.accepted() + receipt.refused().len());
            sums.0 += receipt.accepted();
            sums.1 += receipt.displaced();
            sums.2 += receipt.refused().len();
        }
        assert_eq!(sums, (accepted, displaced, refused), "{overflow}");
        gate.open();
        router.close().unwrap();
        assert_balanced(&stuck);
        let seen = stuck.station().snapshot();
        assert_eq!(seen.arrivals, accepted as u64);
        assert_eq!((seen.served, seen.dropped, seen.refused), (3, displaced as u64, refused as u64), "{overflow}");
        assert_eq!(dead.lock().unwrap().len(), displaced + refused, "{overflow}");
        let whole = router.station().snapshot();
        assert!(whole.balanced() && whole.waiting() == 0 && whole.in_service() == 0, "{whole:?}");
        assert_eq!((whole.served, whole.failed), (6 - refused as u64, refused as u64));
    }
}

#[test]
fn c1_dead_letters_say_what_happened() {
    let (dead, hook) = dead_letters();
    let router = Router::builder().dead_letter(hook).build().unwrap();
    assert!(router.publish("no.body", 1).unwrap().is_unroutable());
    assert_eq!(router.station().snapshot().dropped, 1);

    router.route_named("shut", "a", sink::from_fn(|item| Err(SendError::new(item, Refusal::Shed)))).unwrap();
    let receipt = router.publish("a", 2).unwrap();
    assert_eq!(receipt.refused(), [("shut".into(), Refusal::Shed)]);
    assert!(!receipt.is_complete());

    let failing = router.subscribe("b").name("failing").run(|_: Arc<u32>| Err::<(), _>("no good")).unwrap();
    router.publish("b", 3).map(drop).unwrap();
    router.flush().unwrap();
    assert_eq!(failing.station().snapshot().failed, 1);

    let latest = router.subscribe("c").name("latest").capacity(1).overflow(Overflow::DropOldest).receiver().unwrap();
    router.publish("c", 4).map(drop).unwrap();
    assert_eq!(router.publish("c", 5).unwrap().displaced(), 1);
    drop(latest);

    let expected = [
        "1: nobody takes no.body",
        "2: refused by shut: too many wait already",
        "3: failed at failing: no good",
        "4: displaced at latest",
        "5: abandoned at latest",
    ];
    assert_eq!(*dead.lock().unwrap(), expected);
}

#[test]
fn c1_a_dead_letter_hook_that_publishes_is_not_called_for_ever() {
    let calls = Arc::new(AtomicUsize::new(0));
    let slot: Arc<Mutex<Option<Router<u32>>>> = Arc::default();
    let hook = {
        let (calls, slot) = (Arc::clone(&calls), Arc::clone(&slot));
        move |message: Arc<u32>, _| {
            calls.fetch_add(1, Ordering::Relaxed);
            let router = slot.lock().unwrap().clone().unwrap();
            let receipt = router.publish_arc("dead", message).unwrap();
            assert!(receipt.is_unroutable());
        }
    };
    let router = Router::builder().dead_letter(hook).build().unwrap();
    *slot.lock().unwrap() = Some(router.clone());
    router.publish("no.body", 1).map(drop).unwrap();
    router.publish("no.body", 1).map(drop).unwrap();
    assert_eq!(calls.load(Ordering::Relaxed), 2);
    assert_eq!(router.station().snapshot().dropped, 4);
    *slot.lock().unwrap() = None;
}

#[test]
fn c1_one_copy_is_shared_by_all() {
    let router = Router::new();
    let receivers: Vec<_> = (0..3).map(|_| router.subscribe("#").receiver().unwrap()).collect();
    let message = Arc::new(7);
    router.publish_arc("t", Arc::clone(&message)).map(drop).unwrap();
    for receiver in &receivers {
        assert!(Arc::ptr_eq(&receiver.recv().unwrap(), &message));
    }
}

#[test]
fn c2_a_full_subscription_refuses_and_the_others_get_everything() {
    for overflow in [Overflow::Reject, Overflow::DropOldest] {
        let router = Router::new();
        let (gate, closure) = gated();
        let stuck = router.subscribe("#").capacity(2).overflow(overflow).run(closure).unwrap();
        let others: Vec<_> = (0..3).map(|_| router.subscribe("#").capacity(1000).receiver().unwrap()).collect();
        for n in 0..1000 {
            let _ = router.publish("t", n).unwrap();
            assert!(stuck.waiting() <= 2);
        }
        for other in &others {
            for n in 0..1000 {
                assert_eq!(*other.try_recv().unwrap(), n);
            }
        }
        gate.open();
        router.close().unwrap();
        assert_balanced(&stuck);
    }
}

#[test]
fn c2_a_publisher_that_waits_for_one_has_given_the_message_to_the_others() {
    let clock = PausedClock::new();
    let router = on(&clock);
    let slow = router.subscribe("#").name("slow").capacity(1).receiver().unwrap();
    let quick = router.subscribe("#").name("quick").receiver().unwrap();
    let (tell, told) = mpsc::channel();
    router.route("#", telling(tell)).unwrap();
    router.publish("t", 1).map(drop).unwrap();
    thread::scope(|scope| {
        let publisher = scope.spawn(|| router.publish("t", 2).unwrap());
        clock.wait_for_waiters(1);
        assert_eq!((*quick.try_recv().unwrap(), *quick.try_recv().unwrap()), (1, 2));
        assert_eq!((told.try_recv().unwrap(), told.try_recv().unwrap()), (1, 2));
        assert_eq!(*slow.recv().unwrap(), 1);
        assert!(publisher.join().unwrap().is_complete());
    });
    assert_eq!(*slow.try_recv().unwrap(), 2);
}

#[test]
fn c3_publishing_has_a_deadline() {
    let clock = PausedClock::new();
    let router = on(&clock);
    let full = router.subscribe("#").name("full").capacity(1).receiver().unwrap();
    router.publish("t", 0).map(drop).unwrap();
    let reason = |receipt: fullbore_fanout::Receipt| receipt.refused()[0].1;
    assert_eq!(reason(router.try_publish("t", 1).unwrap()), Refusal::Full);
    assert_eq!(reason(router.publish_deadline("t", 1, clock.now()).unwrap()), Refusal::TimedOut);
    thread::scope(|scope| {
        let by_policy = scope.spawn(|| reason(router.publish("t", 2).unwrap()));
        clock.wait_for_waiters(1);
        let by_deadline =
            scope.spawn(|| reason(router.publish_deadline("t", 3, clock.now() + Duration::from_secs(5)).unwrap()));
        clock.wait_for_waiters(2);
        clock.advance(Duration::from_secs(5));
        assert_eq!(by_deadline.join().unwrap(), Refusal::TimedOut);
        clock.advance(Duration::from_secs(25));
        assert_eq!(by_policy.join().unwrap(), Refusal::TimedOut);
    });
    assert_eq!(full.station().snapshot().refused, 4);
}

#[test]
fn c3_a_deadline_reaches_the_sink() {
    struct Asked(mpsc::Sender<String>, PausedClock);
    impl Sink<Arc<u32>> for Asked {
        fn try_send(&self, _: Arc<u32>) -> Result<(), SendError<Arc<u32>>> {
            self.0.send("try".into()).unwrap();
            Ok(())
        }
        fn send_deadline(&self, _: Arc<u32>, deadline: Option<std::time::Instant>) -> Result<(), SendError<Arc<u32>>> {
            let left = deadline.map(|deadline| deadline - self.1.now());
            self.0.send(format!("{left:?}")).unwrap();
            Ok(())
        }
    }
    let clock = PausedClock::new();
    let router = on(&clock);
    let (tell, told) = mpsc::channel();
    router.route("#", Asked(tell, clock.clone())).unwrap();
    router.try_publish("t", 1).map(drop).unwrap();
    router.publish("t", 1).map(drop).unwrap();
    router.publish_deadline("t", 1, clock.now() + Duration::from_secs(2)).map(drop).unwrap();
    assert_eq!(told.try_iter().collect::<Vec<_>>(), ["try", "None", "Some(2s)"]);
}

#[test]
fn c3_receiving_has_a_deadline() {
    let clock = PausedClock::new();
    let router = on(&clock);
    let receiver = router.subscribe("#").receiver().unwrap();
    assert!(receiver.try_recv().unwrap_err().is_empty());
    assert!(receiver.recv_deadline(clock.now()).unwrap_err().is_timeout());
    thread::scope(|scope| {
        let waiting = scope.spawn(|| receiver.recv_deadline(clock.now() + Duration::from_secs(1)));
        clock.wait_for_waiters(1);
        clock.advance(Duration::from_secs(1));
        assert_eq!(waiting.join().unwrap().unwrap_err(), RecvError::TimedOut);
        let waiting = scope.spawn(|| receiver.recv());
        clock.wait_for_waiters(1);
        router.publish("t", 1).map(drop).unwrap();
        assert_eq!(*waiting.join().unwrap().unwrap(), 1);
        let waiting = scope.spawn(|| receiver.recv());
        clock.wait_for_waiters(1);
        router.close().unwrap();
        assert!(waiting.join().unwrap().unwrap_err().is_closed());
    });
    assert!(receiver.try_recv().unwrap_err().is_closed());
    assert!(receiver.recv_deadline(clock.now()).unwrap_err().is_closed());
}

#[test]
fn c3_a_limit_too_far_to_represent_means_never() {
    let router = Router::new();
    let counter = router.subscribe("#").overflow(Overflow::BlockFor(Duration::MAX)).run(|_: Arc<u32>| ()).unwrap();
    router.publish("t", 1).map(drop).unwrap();
    router.flush_within(Duration::MAX).unwrap();
    counter.close_within(Duration::MAX).unwrap();
    router.close_within(Duration::MAX).unwrap();
}

#[test]
fn c4_a_closure_that_panics_loses_that_message_only() {
    let (dead, hook) = dead_letters();
    let router = Router::builder().dead_letter(hook).build().unwrap();
    let (say, seen) = mpsc::channel();
    let odd = router
        .subscribe("#")
        .name("odd")
        .run(move |n: Arc<u32>| {
            assert!(n.is_multiple_of(2), "{n} is odd");
            say.send(*n).unwrap();
        })
        .unwrap();
    for n in 0..6 {
        let _ = router.publish("t", n).unwrap();
    }
    router.close().unwrap();
    assert_eq!(seen.iter().collect::<Vec<_>>(), [0, 2, 4]);
    let counts = odd.station().snapshot();
    assert_eq!((counts.served, counts.failed), (3, 3));
    assert_balanced(&odd);
    assert_eq!(dead.lock().unwrap()[2], "5: failed at odd: panicked: 5 is odd");
}

#[test]
fn c4_what_a_closure_drops_may_panic() {
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            panic!("dropped");
        }
    }
    // Without a hook the closure drops the last reference, with one the thread around it does.
    for with_hook in [false, true] {
        let mut builder = Router::builder();
        if with_hook {
            builder = builder.dead_letter(|_, _| ());
        }
        let router = builder.build().unwrap();
        let (go, wait) = mpsc::channel::<()>();
        let captured = Bomb;
        let closure = move |message: Arc<Bomb>| {
            let _captured = &captured;
            wait.recv().unwrap();
            drop(message);
        };
        let bombs = router.subscribe("#").run(closure).unwrap();
        for _ in 0..2 {
            let _ = router.publish("t", Bomb).unwrap();
            go.send(()).unwrap();
            router.flush().unwrap();
        }
        router.close().unwrap();
        let seen = bombs.station().snapshot();
        assert_eq!((seen.served, seen.failed), if with_hook { (2, 0) } else { (0, 2) });
    }
}

#[test]
fn c4_a_sink_that_panics_robs_nobody_and_the_publisher_hears_of_it() {
    let (dead, hook) = dead_letters();
    let router = Router::builder().dead_letter(hook).build().unwrap();
    let before = router.subscribe("#").receiver().unwrap();
    let bad = router.route_named("bad", "#", sink::from_fn(|_| panic!("bad sink"))).unwrap();
    let worse = router.route_named("worse", "#", sink::from_fn(|_| panic!("worse sink"))).unwrap();
    let (say, good) = mpsc::channel();
    router.route("#", telling(say)).unwrap();
    let after = router.subscribe("#").receiver().unwrap();
    for n in 0..2 {
        let payload = catch_unwind(AssertUnwindSafe(|| router.publish("t", n))).unwrap_err();
        assert_eq!(payload.downcast_ref(), Some(&"bad sink"), "the first panic is resumed");
        assert_eq!((*before.try_recv().unwrap(), *after.try_recv().unwrap(), good.try_recv().unwrap()), (n, n, n));
    }
    for route in [&bad, &worse] {
        let seen = route.station().snapshot();
        assert!(seen.balanced() && seen.failed == 2 && seen.in_service() == 0, "{seen:?}");
    }
    let whole = router.station().snapshot();
    assert!(whole.balanced() && whole.failed == 2 && whole.in_service() == 0, "{whole:?}");
    assert_eq!(dead.lock().unwrap().len(), 4);
    assert!(dead.lock().unwrap()[0].ends_with("failed at bad: panicked: bad sink"));
}

#[test]
fn c4_a_dead_letter_hook_that_panics_does_no_harm() {
    let calls = Arc::new(AtomicUsize::new(0));
    let hook = {
        let calls = Arc::clone(&calls);
        move |_: Arc<u32>, reason: DeadReason| {
            calls.fetch_add(1, Ordering::Relaxed);
            panic!("hook: {reason}");
        }
    };
    let router = Router::builder().dead_letter(hook).build().unwrap();
    for name in ["one", "two"] {
        router.route_named(name, "shut", sink::from_fn(|item| Err(SendError::new(item, Refusal::Full)))).unwrap();
    }
    assert!(catch_unwind(AssertUnwindSafe(|| router.publish("shut", 1))).is_err());
    assert_eq!(calls.load(Ordering::Relaxed), 2, "one panic keeps no dead letter back");
    let failing = router.subscribe("fails").run(|_: Arc<u32>| Err::<(), _>("no")).unwrap();
    router.publish("fails", 1).map(drop).unwrap();
    router.publish("fails", 2).map(drop).unwrap();
    router.close().unwrap();
    assert_eq!(calls.load(Ordering::Relaxed), 4);
    assert_balanced(&failing);
    let router = Router::builder().dead_letter(|_, _| panic!("hook")).build().unwrap();
    let receiver = router.subscribe("#").receiver().unwrap();
    router.publish("t", 1).map(drop).unwrap();
    drop(receiver);
    assert!(router.station().snapshot().balanced());
}

#[test]
fn c4_a_sink_may_use_the_router() {
    let router = Router::new();
    let (inside, seen) = (router.clone(), router.subscribe("echo").receiver().unwrap());
    let route = router
        .route(
            "t",
            sink::from_fn(move |n: Arc<u32>| {
                assert_eq!(inside.len(), 2);
                let passing = inside.subscribe("passing").receiver().unwrap();
                assert!(inside.publish_arc("echo", n).unwrap().is_complete());
                assert!(inside.publish("passing", 9).unwrap().is_complete());
                assert_eq!(*passing.try_recv().unwrap(), 9);
                Ok(())
            }),
        )
        .unwrap();
    assert!(router.publish("t", 3).unwrap().is_complete());
    assert_eq!(*seen.try_recv().unwrap(), 3);
    assert!(route.remove());
    assert!(!route.remove());
    assert!(router.publish("t", 3).unwrap().is_unroutable());
}

#[test]
fn c4_a_sink_is_dropped_outside_the_lock() {
    struct Leaving(Router<u32>, mpsc::Sender<bool>);
    impl Sink<Arc<u32>> for Leaving {
        fn try_send(&self, _: Arc<u32>) -> Result<(), SendError<Arc<u32>>> {
            Ok(())
        }
        fn send_deadline(&self, _: Arc<u32>, _: Option<std::time::Instant>) -> Result<(), SendError<Arc<u32>>> {
            Ok(())
        }
    }
    impl Drop for Leaving {
        fn drop(&mut self) {
            self.1.send(self.0.is_closed()).unwrap();
        }
    }
    let router = Router::new();
    let (say, said) = mpsc::channel();
    let first = router.route("#", Leaving(router.clone(), say.clone())).unwrap();
    router.route("#", Leaving(router.clone(), say)).unwrap();
    first.remove();
    assert_eq!(said.try_iter().collect::<Vec<_>>(), [false]);
    router.close().unwrap();
    assert_eq!(said.iter().collect::<Vec<_>>(), [true]);
}

#[test]
fn c4_publishing_to_its_own_full_buffer_is_refused_and_no_deadlock() {
    let router = Router::new();
    let (say, receipts) = mpsc::channel();
    let inside = router.clone();
    let echo = router
        .subscribe("echo")
        .name("echo")
        .capacity(2)
        .overflow(Overflow::Block)
        .run(move |n: Arc<u32>| {
            if *n == 0 {
                // This message and one more have a place; the third would wait for this very closure.
                for n in 1..=2 {
                    say.send(inside.publish("echo", n).unwrap()).unwrap();
                }
            }
        })
        .unwrap();
    router.publish("echo", 0).map(drop).unwrap();
    assert!(receipts.recv().unwrap().is_complete());
    assert_eq!(receipts.recv().unwrap().refused(), [("echo".into(), Refusal::Full)]);
    router.close().unwrap();
    assert_balanced(&echo);
    assert_eq!(echo.station().snapshot().served, 2);
}

#[test]
fn c4_two_closures_that_publish_to_each_other_do_not_wait_for_each_other() {
    let clock = PausedClock::new();
    let router = on(&clock);
    // `a` and `b` are both at work and both full; each publishes to the other when it is told to.
    let (say, refusals) = mpsc::channel();
    let mut go = Vec::new();
    let mut begun = Vec::new();
    for (mine, other) in [("a", "b"), ("b", "a")] {
        let (inside, say) = (router.clone(), say.clone());
        let (tell, told) = mpsc::channel::<()>();
        let (report, reported) = mpsc::channel();
        go.push(tell);
        begun.push(reported);
        router
            .subscribe(mine)
            .capacity(1)
            .overflow(Overflow::Block)
            .run(move |n: Arc<u32>| {
                if *n == 0 {
                    report.send(()).unwrap();
                    told.recv().unwrap();
                    let receipt = inside.publish(other, 1).unwrap();
                    say.send((mine, receipt.refused().first().map(|refused| refused.1))).unwrap();
                }
            })
            .unwrap();
        router.publish(mine, 0).map(drop).unwrap();
    }
    for begun in begun {
        begun.recv().unwrap();
    }
    go[0].send(()).unwrap();
    clock.wait_for_waiters(1);
    // `a` waits for `b`; were `b` to wait for `a`, nothing would move any more.
    go[1].send(()).unwrap();
    assert_eq!(refusals.recv().unwrap(), ("b", Some(Refusal::Full)));
    assert_eq!(refusals.recv().unwrap(), ("a", None));
    router.close().unwrap();
}

#[test]
fn c5_close_finishes_what_was_accepted_and_refuses_the_rest() {
    let router = Router::new();
    let (gate, closure) = gated();
    let slow = router.subscribe("#").run(closure).unwrap();
    for n in 0..5 {
        let _ = router.publish("t", n).unwrap();
    }
    assert_eq!(gate.begun(), 0);
    gate.open();
    router.close().unwrap();
    assert_eq!(slow.station().snapshot().served, 5);
    let refused = router.publish("t", 42).unwrap_err();
    assert!(refused.is_closed());
    assert_eq!(refused.into_inner(), 42);
    assert_eq!(router.station().snapshot().refused, 1);
    assert!(router.subscribe("#").run(|_: Arc<u32>| ()).unwrap_err().is_closed());
    assert!(router.subscribe("#").receiver().unwrap_err().is_closed());
    assert!(router.route("#", sink::from_fn(|_| Ok(()))).unwrap_err().is_closed());
    router.close().unwrap();
    slow.close().unwrap();
    assert!(router.is_closed() && router.is_empty());
}

#[test]
fn c5_close_wakes_blocked_publishers() {
    let clock = PausedClock::new();
    let router = on(&clock);
    let full = router.subscribe("#").name("full").capacity(1).overflow(Overflow::Block).receiver().unwrap();
    router.publish("t", 1).map(drop).unwrap();
    thread::scope(|scope| {
        let publisher = scope.spawn(|| router.publish("t", 2).unwrap());
        clock.wait_for_waiters(1);
        router.close().unwrap();
        assert_eq!(publisher.join().unwrap().refused(), [("full".into(), Refusal::Closed)]);
    });
    // What a receiver has stays with it.
    assert_eq!(*full.recv().unwrap(), 1);
    assert!(full.recv().unwrap_err().is_closed());
}

#[test]
fn c5_a_subscriber_that_leaves_releases_the_publisher() {
    type Leave = fn(&Router<u32>, Subscription<u32>);
    let ways: [Leave; 2] =
        [|_, it| it.unsubscribe(), |_, it| assert_eq!(it.close_within(Duration::ZERO).unwrap_err().in_flight, 1)];
    for leave in ways {
        let clock = PausedClock::new();
        let router = on(&clock);
        let (gate, closure) = gated();
        let full = router.subscribe("#").name("full").capacity(1).overflow(Overflow::Block).run(closure).unwrap();
        let other = router.subscribe("#").receiver().unwrap();
        router.publish("t", 1).map(drop).unwrap();
        assert_eq!(gate.begun(), 1);
        thread::scope(|scope| {
            let publisher = scope.spawn(|| router.publish("t", 2).unwrap());
            clock.wait_for_waiters(1);
            leave(&router, full);
            let receipt = publisher.join().unwrap();
            assert_eq!((receipt.matched(), receipt.accepted()), (2, 1));
            assert_eq!(receipt.refused(), [("full".into(), Refusal::Closed)]);
        });
        assert!(router.publish("t", 3).unwrap().is_complete(), "it is off the list");
        assert_eq!(other.iter().take(3).map(|n| *n).collect::<Vec<_>>(), [1, 2, 3]);
        gate.open();
    }
}

#[test]
fn c5_a_receiver_that_is_dropped_releases_the_publisher() {
    let clock = PausedClock::new();
    let router = on(&clock);
    let full = router.subscribe("#").capacity(1).overflow(Overflow::Block).receiver().unwrap();
    router.publish("t", 1).map(drop).unwrap();
    let station = full.station().clone();
    thread::scope(|scope| {
        let publisher = scope.spawn(|| router.publish("t", 2).unwrap());
        clock.wait_for_waiters(1);
        drop(full);
        assert_eq!(publisher.join().unwrap().refused()[0].1, Refusal::Closed);
    });
    let seen = station.snapshot();
    assert!(seen.balanced());
    assert_eq!((seen.arrivals, seen.dropped, seen.refused), (1, 1, 1));
}

#[test]
fn c5_unsubscribing_keeps_what_was_accepted_and_close_waits_for_it() {
    let router = Router::new();
    let (gate, closure) = gated();
    let slow = router.subscribe("#").run(closure).unwrap();
    for n in 0..3 {
        let _ = router.publish("t", n).unwrap();
    }
    slow.unsubscribe();
    slow.unsubscribe();
    assert!(router.is_empty());
    let left = router.flush_within(Duration::ZERO).unwrap_err();
    assert_eq!(left.waiting() + left.in_flight(), 3, "still counted on");
    gate.open();
    router.close().unwrap();
    assert_eq!(slow.station().snapshot().served, 3);
    assert_balanced(&slow);
}

#[test]
fn c5_closing_in_time_says_what_is_left() {
    let clock = PausedClock::new();
    let router = on(&clock);
    let (gate, closure) = gated();
    let stuck = router.subscribe("#").name("stuck").run(closure).unwrap();
    let (say, done) = mpsc::channel();
    let fine = router.subscribe("#").run(move |n: Arc<u32>| say.send(*n).unwrap()).unwrap();
    for n in 0..3 {
        let _ = router.publish("t", n).unwrap();
    }
    assert_eq!(gate.begun(), 0);
    assert_eq!(done.iter().take(3).collect::<Vec<_>>(), [0, 1, 2]);
    thread::scope(|scope| {
        let closing = scope.spawn(|| router.close_within(LONG));
        // It has to be the thread that closes: `fine`'s has ended once its channel is at its end.
        assert!(done.recv().is_err());
        clock.wait_for_waiters(1);
        clock.advance(LONG);
        let left = closing.join().unwrap().unwrap_err();
        let items: Vec<_> = left.items.iter().map(|item| (&*item.destination, *item.message)).collect();
        assert_eq!(items, [("stuck", 1), ("stuck", 2)]);
        assert_eq!(left.in_flight, 1);
        assert_eq!(left.abandoned_threads, ["fullbore-fanout-stuck-0"]);
    });
    let seen = stuck.station().snapshot();
    assert!(seen.balanced());
    assert_eq!((seen.returned, seen.in_service()), (2, 1));
    router.close().unwrap();
    gate.open();
    assert_balanced(&fine);
}

#[test]
fn c5_no_time_to_close_is_enough_for_threads_that_have_nothing_to_do() {
    for _ in 0..100 {
        let router = Router::<u32>::new();
        let subscription = router.subscribe("#").run(|_: Arc<u32>| ()).unwrap();
        router.subscribe("#").run(|_: Arc<u32>| ()).unwrap();
        subscription.close_within(Duration::ZERO).unwrap();
        router.close_within(Duration::ZERO).unwrap();
    }
}

#[test]
fn c5_the_last_clone_closes_and_drains() {
    let router = Router::new();
    let held = Arc::new(());
    let counted = Arc::new(AtomicUsize::new(0));
    let (gate, mut closure) = gated();
    let (in_closure, counting) = (Arc::clone(&held), Arc::clone(&counted));
    let slow = router
        .subscribe("#")
        .run(move |n: Arc<u32>| {
            let _held = &in_closure;
            closure(n);
            counting.fetch_add(1, Ordering::Relaxed);
        })
        .unwrap();
    for n in 0..3 {
        let _ = router.publish("t", n).unwrap();
    }
    let clone = router.clone();
    drop(router);
    assert!(!clone.is_closed(), "a clone keeps it open");
    gate.open();
    drop(clone);
    assert_eq!(counted.load(Ordering::Relaxed), 3, "drained");
    assert_eq!(Arc::strong_count(&held), 1, "the thread has ended and dropped its closure");
    assert_balanced(&slow);
}

#[test]
fn c5_dropping_waits_for_at_most_on_drop() {
    for (on_drop, waits) in [(OnDrop::Drain(LONG), true), (OnDrop::Abandon, false)] {
        let clock = PausedClock::new();
        let (dead, hook) = dead_letters();
        let router = Router::builder().clock(&clock).on_drop(on_drop).dead_letter(hook).build().unwrap();
        let (gate, closure) = gated();
        let stuck = router.subscribe("#").name("stuck").run(closure).unwrap();
        for n in 0..3 {
            let _ = router.publish("t", n).unwrap();
        }
        assert_eq!(gate.begun(), 0);
        thread::scope(|scope| {
            scope.spawn(|| drop(router));
            if waits {
                clock.wait_for_waiters(1);
                assert_eq!(stuck.waiting(), 2);
                clock.advance(LONG);
            }
        });
        assert_eq!(*dead.lock().unwrap(), ["1: abandoned at stuck", "2: abandoned at stuck"]);
        let seen = stuck.station().snapshot();
        assert!(seen.balanced());
        assert_eq!((seen.dropped, seen.in_service()), (2, 1));
        gate.open();
    }
}

#[test]
fn c5_dropping_while_panicking_waits_for_nothing() {
    let (gate, closure) = gated();
    let (dead, hook) = dead_letters();
    let caught = catch_unwind(AssertUnwindSafe(|| {
        let router = Router::builder().on_drop(OnDrop::Drain(LONG)).dead_letter(hook).build().unwrap();
        router.subscribe("#").name("stuck").run(closure).unwrap();
        router.publish("t", 1).map(drop).unwrap();
        router.publish("t", 2).map(drop).unwrap();
        assert_eq!(gate.begun(), 1);
        panic!("on purpose");
    }));
    assert!(caught.is_err());
    assert_eq!(*dead.lock().unwrap(), ["2: abandoned at stuck"]);
    gate.open();
}

#[test]
fn c5_on_its_own_threads_nothing_waits() {
    let router = Router::new();
    let (gate, closure) = gated();
    router.subscribe("other").name("other").run(closure).unwrap();
    let (say, said) = mpsc::channel();
    let inside = router.clone();
    router
        .subscribe("own")
        .run(move |_: Arc<u32>| {
            let flushed = inside.flush().unwrap_err().is_own_thread();
            let left = inside.close().unwrap_err();
            say.send((flushed, left.items[0].destination.to_string(), left.items.len(), left.in_flight)).unwrap();
        })
        .unwrap();
    router.publish("other", 1).map(drop).unwrap();
    router.publish("other", 2).map(drop).unwrap();
    assert_eq!(gate.begun(), 1);
    router.publish("own", 3).map(drop).unwrap();
    assert_eq!(said.recv().unwrap(), (true, "other".into(), 1, 2));
    gate.open();
}

#[test]
fn c5_the_last_clone_may_go_on_its_own_thread() {
    let router = Router::builder().on_drop(OnDrop::Drain(LONG)).build().unwrap();
    let receiver = router.subscribe("#").receiver().unwrap();
    let mut inside = Some(router.clone());
    let (go, wait) = mpsc::channel::<()>();
    let own = router
        .subscribe("#")
        .run(move |_: Arc<u32>| {
            wait.recv().unwrap();
            drop(inside.take());
        })
        .unwrap();
    router.publish("t", 1).map(drop).unwrap();
    drop(router);
    go.send(()).unwrap();
    assert_eq!(receiver.iter().count(), 1);
    own.close().unwrap();
    assert_balanced(&own);
}

#[test]
fn c5_flush_waits_for_what_was_accepted_before_and_no_more() {
    let clock = PausedClock::new();
    let router = on(&clock);
    let (gate, closure) = gated();
    router.subscribe("#").run(closure).unwrap();
    let ignored = router.subscribe("#").receiver().unwrap();
    for n in 0..2 {
        let _ = router.publish("t", n).unwrap();
    }
    assert_eq!(gate.begun(), 0);
    let left = router.flush_within(Duration::ZERO).unwrap_err();
    assert!(left.is_timeout() && (left.waiting(), left.in_flight()) == (1, 1), "{left}");
    thread::scope(|scope| {
        let flush = scope.spawn(|| router.flush());
        clock.wait_for_waiters(1);
        router.publish("t", 2).map(drop).unwrap();
        for n in 1..3 {
            gate.go.send(()).unwrap();
            assert_eq!(gate.begun(), n);
        }
        flush.join().unwrap().expect("2 came after the call and is not done");
    });
    assert_eq!(ignored.waiting(), 3);
    gate.open();
    router.flush().unwrap();
}

#[test]
fn c5_shutdown_closes_it_without_keeping_it_open() {
    let (dead, hook) = dead_letters();
    let router = Router::builder().name("events").dead_letter(hook).build().unwrap();
    let (gate, closure) = gated();
    let stuck = router.subscribe("#").name("stuck").run(closure).unwrap();
    let shutdown = Shutdown::new();
    shutdown.register(router.closer());
    let _ = router.publish("t", 1).unwrap();
    let _ = router.publish("t", 2).unwrap();
    assert_eq!(gate.begun(), 1);
    let report = shutdown.close_within(Duration::ZERO);
    let (name, left) = &report.parts()[0];
    assert_eq!((name.as_str(), left.items, left.in_flight), ("events", 1, 1));
    assert_eq!(left.abandoned_threads, ["fullbore-fanout-stuck-0"]);
    assert_eq!(*dead.lock().unwrap(), ["2: abandoned at stuck"]);
    gate.open();
    assert!(router.publish("t", 3).unwrap_err().is_closed());
    assert!(stuck.station().snapshot().balanced());

    let lone = Router::<u32>::new();
    let receiver = lone.subscribe("#").receiver().unwrap();
    let _closer = lone.closer();
    drop(lone);
    assert!(receiver.recv().unwrap_err().is_closed());
}

#[test]
fn c5_a_router_feeds_a_router() {
    let (first, second) = (Router::<u32>::new(), Router::<u32>::new());
    let seen = second.subscribe("from.first").capacity(1).overflow(Overflow::Reject).receiver().unwrap();
    first.route_named("second", "#", second.sink("from.first").unwrap()).unwrap();
    assert!(first.publish("t", 1).unwrap().is_complete());
    assert_eq!(first.publish("t", 2).unwrap().refused(), [("second".into(), Refusal::Full)]);
    assert_eq!(*seen.recv().unwrap(), 1);
    first.close().unwrap();
    assert!(!second.is_closed(), "nothing closes its target");
}

#[test]
fn c6_there_is_always_a_station_and_it_feeds_the_others() {
    let router = Router::builder().name("events").build().unwrap();
    let audit = router.subscribe("#").name("audit").capacity(7).run(|_: Arc<u32>| ()).unwrap();
    let route = router.route("#", sink::from_fn(|_| Ok(()))).unwrap();
    router.publish("t", 1).map(drop).unwrap();
    router.flush().unwrap();
    let whole = router.station().snapshot();
    assert_eq!((whole.name(), whole.kind(), whole.served), ("events", StationKind::Fanout, 1));
    assert_eq!(whole.feeds(), [audit.station().id(), route.station().id()]);
    assert_eq!(whole.service().count(), 1);
    let seen = audit.station().snapshot();
    assert_eq!((seen.name(), seen.kind(), seen.parallelism(), seen.capacity()), ("audit", StationKind::Fanout, 1, 7));
    assert_eq!((seen.served, seen.service().count()), (1, 1));
    assert_eq!((route.name(), route.station().snapshot().served), ("#", 1));
    route.remove();
    audit.close().unwrap();
    assert!(router.station().snapshot().feeds().is_empty(), "who left is not fed");

    let receiver = router.subscribe("#").receiver().unwrap();
    let audit = router.subscribe("#").run(|_: Arc<u32>| ()).unwrap();
    for n in 0..5000 {
        let _ = router.publish("t", n).unwrap();
        receiver.recv().unwrap();
    }
    router.flush().unwrap();
    for station in [receiver.station(), audit.station()] {
        let waits = station.snapshot().wait().count();
        assert!((1..1000).contains(&waits), "one in 64: {waits}");
    }
}

#[test]
fn c7_nonsense_is_refused_by_name() {
    let config = |error: &RouteError, named: &str| matches!(error, RouteError::Build(BuildError::Config { field, .. }) if field == named);
    assert_eq!(Router::<u32>::builder().max_routes(0).build().unwrap_err().field(), Some("max_routes"));
    assert_eq!(Router::<u32>::builder().name("").build().unwrap_err().field(), Some("name"));
    let router = Router::<u32>::builder().max_routes(2).build().unwrap();
    assert!(config(&router.subscribe("#").capacity(0).receiver().unwrap_err(), "capacity"));
    assert!(config(&router.subscribe("#").capacity(0).run(|_| ()).unwrap_err(), "capacity"));
    assert!(config(&router.subscribe("#").name("a\0b").run(|_| ()).unwrap_err(), "name"));
    let error = router.subscribe("a.b*").receiver().unwrap_err();
    assert_eq!(error.malformed().unwrap().position(), 3);
    assert_eq!(error.to_string(), r#"pattern "a.b*" at byte 3: a wildcard has to be a whole segment"#);
    assert!(router.route("a..b", sink::from_fn(|_| Ok(()))).is_err());
    assert_eq!(router.sink("a.*").unwrap_err().position(), 2);
    let _first = router.subscribe("#").receiver().unwrap();
    router.subscribe("#").run(|_| ()).unwrap();
    assert!(matches!(router.subscribe("#").run(|_| ()).unwrap_err(), RouteError::TooMany { max_routes: 2 }));
    assert!(matches!(router.subscribe("#").receiver().unwrap_err(), RouteError::TooMany { .. }));
    assert_eq!(router.len(), 2);
}

#[test]
fn c7_settings_come_from_the_environment() {
    let env =
        |name: &str, value: &str| EnvReader::from_vars("APP_", [(name.to_owned().into(), value.to_owned().into())]);
    assert_eq!(Config::read(env("APP_MAX_ROUTES", "7")).unwrap().max_routes, 7);
    assert_eq!(Config::read(env("APP_ON_DROP", "abandon")).unwrap().on_drop, OnDrop::Abandon);
    assert_eq!(Config::read(env("APP_MAX_ROUTE", "7")).unwrap_err().field(), Some("APP_MAX_ROUTE"));
    let read = SubscriptionConfig::read(env("APP_NAME", "audit")).unwrap();
    assert_eq!((read.name.as_deref(), read.capacity), (Some("audit"), 1024));
    assert_eq!(SubscriptionConfig::read(env("APP_OVERFLOW", "reject")).unwrap().overflow, Overflow::Reject);
    assert_eq!(SubscriptionConfig::read(env("APP_CAPACITY", "lots")).unwrap_err().field(), Some("APP_CAPACITY"));
    let router = Router::<u32>::builder().config(Config::default()).build().unwrap();
    let receiver = router.subscribe("#").config(read).receiver().unwrap();
    assert_eq!(receiver.name(), "audit");
}

#[cfg(feature = "serde")]
#[test]
fn c7_a_file_is_read_and_unknown_fields_are_refused() {
    let config: Config = serde_json::from_str(r#"{"max_routes": 5, "on_drop": "250ms"}"#).unwrap();
    assert_eq!((config.max_routes, config.on_drop), (5, OnDrop::Drain(Duration::from_millis(250))));
    assert!(serde_json::from_str::<Config>(r#"{"max_route": 5}"#).unwrap_err().to_string().contains("max_route"));
    let config: SubscriptionConfig = serde_json::from_str(r#"{"name": "audit", "overflow": "drop_oldest"}"#).unwrap();
    assert_eq!((config.name.as_deref(), config.overflow), (Some("audit"), Overflow::DropOldest));
    assert!(serde_json::from_str::<SubscriptionConfig>(r#"{"size": 5}"#).is_err());
}

#[test]
fn c8_errors_say_why_and_give_the_message_back() {
    /// Neither `Debug` nor `Clone`.
    struct Mute(u32);
    let router = Router::<Mute>::new();
    let error = router.publish("orders.", Mute(1)).unwrap_err();
    assert_eq!(error.to_string(), r#"not published: topic "orders." at byte 7: empty segment"#);
    assert_eq!(error.malformed().unwrap().position(), 7);
    assert!(format!("{error:?}").contains("Malformed"));
    assert_eq!(error.into_inner().0, 1);
    let message = Arc::new(Mute(2));
    assert_eq!(router.publish_arc("", message).unwrap_err().into_inner().0, 2);
    router.close().map_err(drop).unwrap();
    assert_eq!(router.publish("t", Mute(3)).unwrap_err().to_string(), "not published: the router is closed");
    assert_eq!(router.station().snapshot().refused, 3);
}

#[test]
fn c8_a_router_as_a_sink_gives_back_what_nobody_took() {
    struct Mute(u32);
    let (dead, count) = mpsc::channel();
    let router = Router::builder().dead_letter(move |_, reason| dead.send(reason).unwrap()).build().unwrap();
    let sink = router.sink("t").unwrap();
    let reject =
        |name: &str| router.subscribe("t").name(name).capacity(1).overflow(Overflow::Reject).receiver().unwrap();
    let (first, second) = (reject("first"), reject("second"));
    sink.send(Mute(1)).unwrap();
    let refused = sink.try_send(Mute(2)).unwrap_err();
    assert!(refused.is_full());
    assert_eq!(refused.into_inner().0, 2, "all refused: it comes back, and is no dead letter");
    let shared = sink.send_deadline(Arc::new(Mute(3)), None).unwrap_err();
    assert_eq!(shared.into_inner().0, 3);
    assert!(count.try_recv().is_err());
    assert_eq!(first.recv().unwrap().0, 1);
    sink.send(Mute(4)).unwrap();
    assert!(matches!(count.try_recv(), Ok(DeadReason::Refused { destination, .. }) if &*destination == "second"));
    assert!(count.try_recv().is_err());
    assert_eq!(second.recv().unwrap().0, 1);
    drop((first, second));
    let _ = count.try_iter().count();
    sink.send(Mute(5)).unwrap();
    assert!(matches!(count.try_recv(), Ok(DeadReason::Unroutable { .. })));
    router.close().map_err(drop).unwrap();
    assert!(sink.send(Mute(6)).unwrap_err().is_closed());
    let whole = router.station().snapshot();
    assert!(whole.balanced());
    assert_eq!((whole.served, whole.failed, whole.dropped, whole.refused), (1, 3, 1, 1));
}

#[test]
fn c10_idle_subscriptions_arm_no_timer() {
    let clock = PausedClock::new();
    let router = on(&clock);
    for _ in 0..3 {
        router.subscribe("#").run(|_| ()).unwrap();
    }
    clock.wait_for_waiters(3);
    assert_eq!(clock.timers(), 0);
    router.publish("t", 1).map(drop).unwrap();
    router.flush().unwrap();
    clock.wait_for_waiters(3);
    assert_eq!(clock.timers(), 0);
}

#[cfg(feature = "tracing")]
#[test]
fn c11_losses_can_be_followed() {
    let router = Router::builder().name("followed").build().unwrap();
    let receiver = router.subscribe("#").name("latest").capacity(1).overflow(Overflow::DropOldest).receiver().unwrap();
    let events = fullbore_testkit::events::capture(|| {
        for n in 0..4 {
            let _ = router.publish("t", n).unwrap();
        }
    });
    assert_eq!(events.len(), 1, "rate-limited: {events:?}");
    assert!(events[0].contains("followed") && events[0].contains("drop"), "{events:?}");
    assert!(events[0].contains("displaced at latest"), "{events:?}");
    drop(receiver);

    let (_, hook) = dead_letters();
    let router = Router::builder().name("followed").dead_letter(hook).build().unwrap();
    router.route_named("bad", "bad", sink::from_fn(|_| panic!("bad sink"))).unwrap();
    let events = fullbore_testkit::events::capture(|| {
        let _ = catch_unwind(AssertUnwindSafe(|| router.publish("bad", 1)));
    });
    assert_eq!(events.len(), 2, "{events:?}");
    assert!(events[0].contains("panic") && events[1].contains("dead_letter"), "{events:?}");
}
