//! The rules of the house (C1-C11) for `Broadcast`. The names are the same in every crate.
#![allow(missing_docs, clippy::unwrap_used)]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use fullbore_core::{BuildError, EnvReader, PausedClock, Refusal, SendError, Shutdown, Sink};
use fullbore_fanout::{
    Broadcast, BroadcastConfig, LagPolicy, Publisher, ReceiveError, SubscribeError, Subscriber, SubscriberConfig,
};
use fullbore_metrics::{Counts, Station, StationKind};

const LONG: Duration = Duration::from_secs(3600);

fn of(capacity: usize) -> Broadcast<u64> {
    Broadcast::builder().capacity(capacity).build().unwrap()
}

fn on(clock: &PausedClock, capacity: usize) -> Broadcast<u64> {
    Broadcast::builder().capacity(capacity).clock(clock).build().unwrap()
}

fn with(broadcast: &Broadcast<u64>, lag: usize, policy: LagPolicy) -> Subscriber<u64> {
    broadcast.subscribe().lag(lag).policy(policy).join().unwrap()
}

fn publish(publisher: &Publisher<u64>, numbers: std::ops::Range<u64>) {
    numbers.for_each(|n| publisher.publish(n).unwrap());
}

fn balanced(station: &Station) -> Counts {
    let seen = station.snapshot();
    assert!(seen.balanced(), "{seen:?}");
    *seen
}

/// What comes until nothing is there: messages, and losses as they are told.
fn available(subscriber: &mut Subscriber<u64>) -> Vec<Result<u64, ReceiveError>> {
    let mut seen = Vec::new();
    loop {
        match subscriber.try_recv() {
            Err(ReceiveError::Empty | ReceiveError::Closed) => return seen,
            Err(error) if error.is_evicted() => {
                seen.push(Err(error));
                return seen;
            }
            other => seen.push(other),
        }
    }
}

/// A message that counts when it is dropped.
struct Noted(Arc<AtomicUsize>);

impl Drop for Noted {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn c1_each_policy_tells_what_is_lost_and_the_counts_balance() {
    use ReceiveError::{Evicted, Missed, Skipped};
    let broadcast = of(64);
    let publisher = broadcast.publisher();
    let mut block = with(&broadcast, 64, LagPolicy::Block);
    let mut reject = with(&broadcast, 4, LagPolicy::Reject);
    let mut newest = with(&broadcast, 4, LagPolicy::DropOldest);
    let mut evict = with(&broadcast, 4, LagPolicy::Evict);
    publish(&publisher, 0..10);

    // Before anybody has looked.
    let seen = balanced(reject.station());
    assert_eq!((seen.arrivals, seen.refused, seen.waiting()), (4, 6, 4));
    assert_eq!(balanced(evict.station()).arrivals, 4);
    assert_eq!(broadcast.subscribers(), 3, "one is evicted");

    assert_eq!(available(&mut block), (0..10).map(Ok).collect::<Vec<_>>());
    assert_eq!(available(&mut reject), [Ok(0), Ok(1), Ok(2), Ok(3), Err(Missed(6))]);
    assert_eq!(available(&mut newest), [Err(Skipped(6)), Ok(6), Ok(7), Ok(8), Ok(9)]);
    assert_eq!(available(&mut evict), [Err(Evicted(4))]);
    assert_eq!(evict.try_recv(), Err(Evicted(0)));

    publish(&publisher, 10..12);
    for subscriber in [&mut block, &mut reject, &mut newest] {
        assert_eq!(available(subscriber), [Ok(10), Ok(11)]);
    }
    let counts = |subscriber: &Subscriber<u64>| {
        let seen = balanced(subscriber.station());
        assert_eq!((seen.waiting(), seen.in_service(), seen.begun), (0, 0, seen.served));
        (seen.offered(), seen.refused, seen.served, seen.dropped)
    };
    assert_eq!(counts(&block), (12, 0, 12, 0));
    assert_eq!(counts(&reject), (12, 6, 6, 0));
    assert_eq!(counts(&newest), (12, 0, 6, 6));
    assert_eq!(counts(&evict), (4, 0, 0, 4));
    let seen = balanced(broadcast.station());
    assert_eq!((seen.arrivals, seen.served, seen.refused), (12, 12, 0));
}

#[test]
fn c1_what_is_left_unread_is_counted() {
    let broadcast = of(16);
    let publisher = broadcast.publisher();
    let mut reader = with(&broadcast, 16, LagPolicy::Block);
    let station = reader.station().clone();
    publish(&publisher, 0..5);
    assert_eq!(reader.recv(), Ok(0));
    assert_eq!(reader.waiting(), 4);
    drop(reader);
    let seen = balanced(&station);
    assert_eq!((seen.arrivals, seen.served, seen.dropped, seen.waiting()), (5, 1, 4, 0));
    publish(&publisher, 5..50);
    assert_eq!(balanced(&station).arrivals, 5, "it has left");
}

#[test]
fn c1_one_that_rejects_has_room_again_at_half() {
    let broadcast = of(16);
    let publisher = broadcast.publisher();
    let mut reject = with(&broadcast, 4, LagPolicy::Reject);
    publish(&publisher, 0..6);
    assert_eq!(reject.recv(), Ok(0));
    publish(&publisher, 6..7);
    assert_eq!(reject.recv(), Ok(1));
    publish(&publisher, 7..12);
    // 2 and 3, then a gap of 3, then 7 and 8 had room, then another gap.
    let seen = balanced(reject.station());
    assert_eq!((seen.arrivals, seen.refused), (6, 6));
    use ReceiveError::Missed;
    assert_eq!(available(&mut reject), [Ok(2), Ok(3), Err(Missed(3)), Ok(7), Ok(8), Err(Missed(3))]);
    publish(&publisher, 12..13);
    assert_eq!(reject.recv(), Ok(12));
}

#[test]
fn c1_what_a_full_one_has_stays_whatever_the_ring_does() {
    let broadcast = of(64);
    let publisher = broadcast.publisher();
    let mut reject = with(&broadcast, 64, LagPolicy::Reject);
    publish(&publisher, 0..10_000);
    let got: Vec<_> = available(&mut reject);
    assert_eq!(got[..64], (0..64).map(Ok).collect::<Vec<_>>());
    assert_eq!(got[64..], [Err(ReceiveError::Missed(10_000 - 64))]);
}

#[test]
fn c1_a_batch_stops_where_something_was_lost_and_the_next_says_so() {
    let broadcast = of(16);
    let publisher = broadcast.publisher();
    let mut reject = with(&broadcast, 2, LagPolicy::Reject);
    publish(&publisher, 0..5);
    let mut seen = Vec::new();
    assert_eq!(reject.recv_many(10, &mut seen), Ok(2));
    assert_eq!(reject.for_each_available(|n| seen.push(*n)), Err(ReceiveError::Missed(3)));
    assert_eq!(reject.for_each_available(|n| seen.push(*n)), Err(ReceiveError::Empty));
    publish(&publisher, 5..6);
    assert_eq!(reject.recv_each(|n| seen.push(*n)), Ok(1));
    assert_eq!(seen, [0, 1, 5]);
}

#[test]
fn c1_each_message_is_dropped_once() {
    let drops = Arc::new(AtomicUsize::new(0));
    let noted = || Noted(Arc::clone(&drops));
    let broadcast = Broadcast::builder().capacity(32).build().unwrap();
    let publisher = broadcast.publisher();
    let mut reader = broadcast.subscribe().join().unwrap();
    let reject = broadcast.subscribe().lag(20).policy(LagPolicy::Reject).join().unwrap();
    for _ in 0..500 {
        assert!(publisher.publish(noted()).is_ok());
        reader.recv_with(|_| ()).unwrap();
    }
    let before = drops.load(Ordering::SeqCst);
    assert!((500 - 32 - 16 - 64..=500 - 32).contains(&before), "{before}");
    let mut batch: Vec<_> = (0..20).map(|_| noted()).collect();
    publisher.publish_all(&mut batch).unwrap();
    broadcast.close();
    let mut batch: Vec<_> = (0..3).map(|_| noted()).collect();
    assert_eq!(publisher.publish_all(&mut batch), Err(SendError::new(3, Refusal::Closed)));
    assert_eq!(batch.len(), 3, "given back");
    drop((broadcast, publisher, reader, reject));
    assert_eq!(drops.load(Ordering::SeqCst), 520);
    drop(batch);
    assert_eq!(drops.load(Ordering::SeqCst), 523);
}

#[test]
fn c1_a_message_that_is_being_shown_stays_although_the_ring_goes_round() {
    let drops = Arc::new(AtomicUsize::new(0));
    let broadcast = Broadcast::builder().capacity(16).build().unwrap();
    let publisher = broadcast.publisher();
    let mut stuck = broadcast.subscribe().policy(LagPolicy::DropOldest).join().unwrap();
    assert!(publisher.publish((7, Noted(Arc::clone(&drops)))).is_ok());
    stuck
        .recv_with(|(number, noted)| {
            for n in 0..1000 {
                assert!(publisher.publish((n, Noted(Arc::clone(&noted.0)))).is_ok());
            }
            assert_eq!(*number, 7);
            assert_eq!(
                drops.load(Ordering::SeqCst),
                1001 - (9 + 16) - 16,
                "all but the ring and the block that is shown"
            );
        })
        .unwrap();
    assert_eq!(stuck.recv_with(|_| ()), Err(ReceiveError::Skipped(1000 - 16)));
    drop((stuck, broadcast, publisher));
    assert_eq!(drops.load(Ordering::SeqCst), 1001);
}

#[test]
fn c2_memory_is_bounded_by_the_ring_and_what_is_kept() {
    let copies = Arc::new(());
    let broadcast = Broadcast::builder().capacity(64).build().unwrap();
    let publisher = broadcast.publisher();
    let readers: Vec<Subscriber<Arc<()>>> = [LagPolicy::Reject, LagPolicy::DropOldest, LagPolicy::Evict]
        .into_iter()
        .cycle()
        .take(12)
        .map(|policy| broadcast.subscribe().lag(48).policy(policy).join().unwrap())
        .collect();
    for _ in 0..10_000 {
        publisher.publish(Arc::clone(&copies)).unwrap();
    }
    // Five blocks of 16 in the ring, three that were kept; one copy of each message, whatever the number of subscribers.
    let there = Arc::strong_count(&copies) - 1;
    assert!((64..=128).contains(&there), "{there}");
    drop(readers);
    assert!(Arc::strong_count(&copies) - 1 <= 80);
}

#[test]
fn c2_without_subscribers_the_ring_goes_round() {
    let broadcast = of(1);
    publish(&broadcast.publisher(), 0..1000);
    assert_eq!(balanced(broadcast.station()).served, 1000);
    let mut late = with(&broadcast, 1, LagPolicy::Block);
    assert_eq!(late.try_recv(), Err(ReceiveError::Empty));
}

#[test]
fn c2_newcomers_begin_with_what_is_retained() {
    for capacity in [1, 5, 16, 100, 1024] {
        for published in [0, 1, 15, 16, 17, 1000, 5000_u64] {
            let retain = capacity.min(7);
            let broadcast = Broadcast::builder().capacity(capacity).retain(retain).build().unwrap();
            publish(&broadcast.publisher(), 0..published);
            let first = published - published.min(retain as u64);
            let mut all = broadcast.subscribe().join().unwrap();
            assert_eq!(available(&mut all), (first..published).map(Ok).collect::<Vec<_>>());
            let mut few = broadcast.subscribe().lag(retain.min(3)).join().unwrap();
            let first = published - published.min(retain.min(3) as u64);
            assert_eq!(available(&mut few), (first..published).map(Ok).collect::<Vec<_>>());
            assert!(balanced(few.station()).balanced());
        }
    }
}

#[test]
fn c3_publishing_has_a_deadline_and_gives_the_message_back() {
    let clock = PausedClock::new();
    let broadcast = on(&clock, 2);
    let publisher = broadcast.publisher();
    let _full = with(&broadcast, 2, LagPolicy::Block);
    publish(&publisher, 0..2);
    let refused = publisher.try_publish(2).unwrap_err();
    assert!(refused.is_full());
    assert_eq!(refused.into_inner(), 2);
    let refused = publisher.publish_deadline(2, clock.now()).unwrap_err();
    assert!(refused.is_timeout());
    thread::scope(|scope| {
        let waiter = scope.spawn(|| publisher.publish_deadline(2, clock.now() + Duration::from_secs(7)));
        clock.wait_for_waiters(1);
        clock.advance(Duration::from_secs(7));
        assert!(waiter.join().unwrap().unwrap_err().is_timeout());
        // Nobody waits for ever by default.
        let waiter = scope.spawn(|| publisher.publish(3));
        clock.wait_for_waiters(1);
        clock.advance(Duration::from_secs(30));
        let refused = waiter.join().unwrap().unwrap_err();
        assert!(refused.is_timeout());
        assert_eq!(refused.into_inner(), 3);
    });
    assert_eq!(balanced(broadcast.station()).refused, 4);
}

#[test]
fn c3_receiving_has_a_deadline() {
    let clock = PausedClock::new();
    let broadcast = on(&clock, 2);
    let mut reader = with(&broadcast, 2, LagPolicy::Block);
    assert_eq!(reader.try_recv(), Err(ReceiveError::Empty));
    assert_eq!(reader.recv_deadline(clock.now()), Err(ReceiveError::TimedOut));
    thread::scope(|scope| {
        let deadline = clock.now() + LONG;
        let waiter = scope.spawn(move || (reader.recv_deadline(deadline), reader.recv_with_deadline(deadline, |n| *n)));
        clock.wait_for_waiters(1);
        broadcast.publisher().publish(5).unwrap();
        clock.wait_for_waiters(1);
        clock.advance(LONG);
        assert_eq!(waiter.join().unwrap(), (Ok(5), Err(ReceiveError::TimedOut)));
    });
}

#[test]
fn c3_a_wait_too_long_to_represent_means_never() {
    let broadcast = Broadcast::builder().capacity(1).max_wait(Duration::MAX).build().unwrap();
    let mut reader = broadcast.subscribe().join().unwrap();
    let publisher = broadcast.publisher();
    thread::scope(|scope| {
        scope.spawn(|| publish(&publisher, 0..100));
        assert!((0..100).all(|n| reader.recv() == Ok(n)));
    });
    broadcast.close_within(Duration::MAX).unwrap();
}

#[test]
fn c4_a_callback_that_panics_loses_that_message_only() {
    let broadcast = of(8);
    let mut reader = with(&broadcast, 2, LagPolicy::Block);
    let publisher = broadcast.publisher();
    publish(&publisher, 0..2);
    let panicked = catch_unwind(AssertUnwindSafe(|| reader.recv_with(|n| assert_ne!(*n, 0, "on purpose"))));
    assert!(panicked.is_err());
    publisher.try_publish(2).unwrap();
    let mut seen = Vec::new();
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        reader.for_each_available(|n| {
            assert_ne!(*n, 2, "on purpose");
            seen.push(*n);
        })
    }));
    assert!(panicked.is_err());
    assert_eq!(seen, [1]);
    let counts = balanced(reader.station());
    assert_eq!((counts.served, counts.failed, counts.waiting(), counts.in_service()), (1, 2, 0, 0));
    publisher.try_publish(3).unwrap();
    assert_eq!(reader.recv(), Ok(3));
}

#[test]
fn c4_what_a_message_does_when_it_is_dropped_is_contained_and_under_no_lock() {
    struct Awkward(Publisher<Option<Box<Awkward>>>, bool);
    impl Drop for Awkward {
        fn drop(&mut self) {
            // Uses the broadcast that drops it.
            let _ = self.0.try_publish(None);
            let _ = self.0.is_closed();
            assert!(!self.1, "on purpose");
        }
    }
    let broadcast = Broadcast::builder().capacity(16).build().unwrap();
    let mut reader = broadcast.subscribe().policy(LagPolicy::DropOldest).join().unwrap();
    let publisher = broadcast.publisher();
    for n in 0..100 {
        let message = Some(Box::new(Awkward(broadcast.publisher(), n % 2 == 0)));
        assert!(publisher.publish(message).is_ok());
        let _ = reader.try_recv_with(|_| ());
    }
    drop((reader, broadcast));
    // They hold publishers, and these the ring: what is still in it goes with the last one that is not.
    assert!(publisher.is_closed());
}

#[test]
fn c4_a_clone_that_panics_loses_that_message_only() {
    #[derive(Debug, PartialEq)]
    struct Picky(u32);
    impl Clone for Picky {
        fn clone(&self) -> Self {
            assert_ne!(self.0, 1, "on purpose");
            Picky(self.0)
        }
    }
    let broadcast = Broadcast::builder().capacity(8).build().unwrap();
    let mut reader = broadcast.subscribe().join().unwrap();
    let publisher = broadcast.publisher();
    (0..3).for_each(|n| publisher.publish(Picky(n)).unwrap());
    let mut into = Vec::new();
    assert!(catch_unwind(AssertUnwindSafe(|| reader.recv_many(9, &mut into))).is_err());
    assert_eq!(into, [Picky(0)]);
    assert_eq!(reader.recv(), Ok(Picky(2)));
}

#[test]
fn c4_publishing_inside_a_callback_works_or_is_refused_and_no_deadlock() {
    let broadcast = of(4);
    let publisher = broadcast.publisher();
    let mut reader = with(&broadcast, 2, LagPolicy::Block);
    publish(&publisher, 0..1);
    reader
        .recv_with(|_| {
            publisher.publish(1).unwrap();
            let refused = publisher.publish(2).unwrap_err();
            assert!(refused.is_full(), "it would wait for itself");
            assert_eq!(refused.into_inner(), 2);
        })
        .unwrap();
    assert_eq!(available(&mut reader), [Ok(1)]);

    // One that blocks nobody can publish as much as it likes.
    let mut newest = with(&broadcast, 1, LagPolicy::DropOldest);
    drop(reader);
    publish(&publisher, 0..1);
    newest.recv_each(|_| publish(&publisher, 0..100)).unwrap();
    assert_eq!(newest.recv(), Err(ReceiveError::Skipped(99)));

    // Joining and leaving inside a callback works.
    newest.recv_with(|_| drop(with(&broadcast, 1, LagPolicy::Block))).unwrap();
    assert_eq!(broadcast.subscribers(), 1);
}

#[test]
fn c4_a_subscriber_that_is_stuck_in_its_callback_is_in_nobodys_way() {
    let broadcast = of(16);
    let publisher = broadcast.publisher();
    let (begun, stuck) = mpsc::channel();
    let held: Vec<_> = [LagPolicy::Reject, LagPolicy::DropOldest, LagPolicy::Evict]
        .into_iter()
        .map(|policy| {
            let mut reader = with(&broadcast, 4, policy);
            let begun = begun.clone();
            let (go, wait) = mpsc::channel::<()>();
            let holder = thread::spawn(move || {
                reader.recv_with(|n| {
                    begun.send(*n).unwrap();
                    let _ = wait.recv();
                    *n
                })
            });
            (go, holder)
        })
        .collect();
    let mut reader = with(&broadcast, 4, LagPolicy::Block);
    publish(&publisher, 7..8);
    assert_eq!(stuck.iter().take(3).collect::<Vec<_>>(), [7; 3]);
    assert_eq!(reader.recv(), Ok(7));
    for n in 0..1000 {
        publisher.try_publish(n).unwrap();
        assert_eq!(reader.recv(), Ok(n));
    }
    for (go, holder) in held {
        drop(go);
        assert_eq!(holder.join().unwrap(), Ok(7), "what it was shown has not changed");
    }
}

#[test]
fn c5_close_wakes_blocked_publishers_and_subscribers_drain() {
    let clock = PausedClock::new();
    let broadcast = on(&clock, 2);
    let mut reader = with(&broadcast, 2, LagPolicy::Block);
    let publisher = broadcast.publisher();
    publish(&publisher, 0..2);
    thread::scope(|scope| {
        let one = scope.spawn(|| publisher.publish(2));
        let all = scope.spawn(|| {
            let mut messages = vec![3, 4];
            (publisher.publish_all(&mut messages), messages)
        });
        clock.wait_for_waiters(2);
        broadcast.close();
        broadcast.close();
        let refused = one.join().unwrap().unwrap_err();
        assert!(refused.is_closed());
        assert_eq!(refused.into_inner(), 2);
        assert_eq!(all.join().unwrap(), (Err(SendError::new(2, Refusal::Closed)), vec![3, 4]));
    });
    assert!(broadcast.is_closed() && publisher.is_closed());
    assert!(matches!(broadcast.subscribe().join(), Err(SubscribeError::Closed)));
    assert_eq!(reader.iter().collect::<Vec<_>>(), [Ok(0), Ok(1)]);
    assert_eq!(reader.recv(), Err(ReceiveError::Closed));
    assert_eq!(balanced(broadcast.station()).refused, 3);
}

#[test]
fn c5_close_wakes_subscribers_that_sleep() {
    let clock = PausedClock::new();
    let broadcast = on(&clock, 2);
    thread::scope(|scope| {
        let waiters: Vec<_> = (0..4)
            .map(|_| {
                let mut reader = with(&broadcast, 2, LagPolicy::Block);
                scope.spawn(move || reader.recv())
            })
            .collect();
        clock.wait_for_waiters(4);
        broadcast.close();
        assert!(waiters.into_iter().all(|waiter| waiter.join().unwrap() == Err(ReceiveError::Closed)));
    });
}

#[test]
fn c5_a_subscriber_that_leaves_releases_the_publisher() {
    let clock = PausedClock::new();
    let broadcast = on(&clock, 8);
    let publisher = broadcast.publisher();
    let mut other = with(&broadcast, 8, LagPolicy::Block);
    let reader = with(&broadcast, 1, LagPolicy::Block);
    publish(&publisher, 0..1);
    thread::scope(|scope| {
        let blocked = scope.spawn(|| publisher.publish(1));
        clock.wait_for_waiters(1);
        drop(reader);
        blocked.join().unwrap().unwrap();
    });
    assert_eq!(available(&mut other), [Ok(0), Ok(1)]);
}

#[test]
fn c5_one_message_read_is_room_for_one() {
    let clock = PausedClock::new();
    let broadcast = on(&clock, 8);
    let publisher = broadcast.publisher();
    let mut reader = with(&broadcast, 8, LagPolicy::Block);
    publish(&publisher, 0..8);
    thread::scope(|scope| {
        for n in 8..20 {
            let blocked = scope.spawn({
                let publisher = publisher.clone();
                move || publisher.publish(n)
            });
            clock.wait_for_waiters(1);
            assert_eq!(reader.recv(), Ok(n - 8));
            blocked.join().unwrap().unwrap();
        }
    });
}

#[test]
fn c5_on_the_real_clock_one_message_read_is_room_for_one_too() {
    let broadcast = Broadcast::builder().capacity(64).max_wait(LONG).build().unwrap();
    let publisher = broadcast.publisher();
    let mut reader = broadcast.subscribe().join().unwrap();
    publish(&publisher, 0..64);
    thread::scope(|scope| {
        for n in 64..70 {
            let publisher = publisher.clone();
            let blocked = scope.spawn(move || publisher.publish(n));
            assert_eq!(reader.recv(), Ok(n - 64));
            // The reader does nothing more until the publisher is through.
            blocked.join().unwrap().unwrap();
        }
    });
}

#[test]
fn c5_closing_in_time_waits_for_subscribers_and_says_what_is_left() {
    let clock = PausedClock::new();
    let broadcast = on(&clock, 8);
    let publisher = broadcast.publisher();
    let mut reader = with(&broadcast, 8, LagPolicy::Block);
    let mut other = with(&broadcast, 8, LagPolicy::DropOldest);
    publish(&publisher, 0..3);
    let left = broadcast.close_within(Duration::ZERO).unwrap_err();
    assert_eq!(left.items.iter().map(|unread| unread.messages).collect::<Vec<_>>(), [3, 3]);
    assert_eq!(left.in_flight, 0);
    thread::scope(|scope| {
        let closing = scope.spawn(|| broadcast.close_within(LONG));
        clock.wait_for_waiters(1);
        assert_eq!(available(&mut reader).len(), 3);
        assert_eq!(other.recv(), Ok(0));
        other
            .recv_with(|_| {
                let left = broadcast.close_within(Duration::ZERO).unwrap_err();
                assert_eq!((left.items[0].messages, left.in_flight), (2, 1));
            })
            .unwrap();
        drop(other);
        assert_eq!(closing.join().unwrap(), Ok(()));
    });
    assert_eq!(broadcast.close_within(Duration::ZERO), Ok(()));
}

#[test]
fn c5_dropping_the_owner_closes_and_handles_keep_nothing_open() {
    let broadcast = of(4);
    let publisher = broadcast.publisher();
    let mut reader = with(&broadcast, 4, LagPolicy::Block);
    publish(&publisher, 0..2);
    drop(broadcast);
    assert!(publisher.publish(9).unwrap_err().is_closed());
    assert_eq!(reader.iter().collect::<Vec<_>>(), [Ok(0), Ok(1)]);
}

#[test]
fn c5_shutdown_closes_it() {
    let broadcast = of(4);
    let reader = with(&broadcast, 4, LagPolicy::Block);
    let shutdown = Shutdown::new();
    shutdown.register(broadcast.closer());
    publish(&broadcast.publisher(), 0..2);
    let report = shutdown.close_within(Duration::ZERO);
    let (name, left) = &report.parts()[0];
    assert_eq!((name.as_str(), left.items), ("broadcast", 2));
    drop(reader);
    assert!(shutdown.close_within(LONG).is_clean());
}

#[test]
fn c6_there_is_always_a_station_and_it_feeds_the_others() {
    let broadcast = Broadcast::<u64>::builder().name("prices").capacity(8).build().unwrap();
    let reader = broadcast.subscribe().name("ledger").lag(4).join().unwrap();
    let (all, one) = (broadcast.station().snapshot(), reader.station().snapshot());
    assert_eq!((all.name(), all.kind(), all.capacity()), ("prices", StationKind::Fanout, 8));
    assert_eq!((one.name(), one.kind(), one.capacity()), ("ledger", StationKind::Fanout, 4));
    assert_eq!(all.feeds(), [one.id()]);
    drop(reader);
    assert!(broadcast.station().snapshot().feeds().is_empty());
}

#[test]
fn c6_waits_and_services_are_sampled() {
    let broadcast = of(1024);
    let mut reader = with(&broadcast, 1024, LagPolicy::Block);
    publish(&broadcast.publisher(), 0..1024);
    assert_eq!(reader.for_each_available(|_| ()), Ok(1024));
    let seen = reader.station().snapshot();
    assert_eq!(seen.wait().count(), 8, "the first of each block");
    assert_eq!(seen.service().count(), 16, "one in 64");
}

#[test]
fn c7_nonsense_is_refused_by_name() {
    fn field<T>(result: Result<T, BuildError>) -> String {
        result.err().unwrap().field().unwrap().to_owned()
    }
    let build = |capacity, retain| Broadcast::<u64>::builder().capacity(capacity).retain(retain).build();
    assert_eq!(field(build(0, 0)), "capacity");
    assert_eq!(field(build(usize::MAX, 0)), "capacity");
    assert_eq!(field(build(4, 5)), "retain");
    assert_eq!(field(Broadcast::<u64>::builder().name("").build()), "name");
    let broadcast = of(4);
    let join = |lag, name: &str| match broadcast.subscribe().lag(lag).name(name).join() {
        Err(SubscribeError::Build(error)) => field::<()>(Err(error)),
        other => panic!("{other:?}"),
    };
    assert_eq!(join(0, "x"), "lag");
    assert_eq!(join(5, "x"), "lag");
    assert_eq!(join(4, "a\0b"), "name");
    assert_eq!(broadcast.subscribers(), 0);
}

#[test]
fn c7_settings_come_from_the_environment() {
    let reader = |vars: &[(&str, &str)]| {
        let vars: Vec<_> = vars.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        EnvReader::from_vars("APP_", vars)
    };
    let config = BroadcastConfig::read(reader(&[
        ("APP_NAME", "prices"),
        ("APP_CAPACITY", "64"),
        ("APP_RETAIN", "3"),
        ("APP_MAX_WAIT", "2s"),
    ]));
    let expected = BroadcastConfig { name: "prices".into(), capacity: 64, retain: 3, max_wait: Duration::from_secs(2) };
    assert_eq!(config.unwrap(), expected);
    let config =
        SubscriberConfig::read(reader(&[("APP_NAME", "screen"), ("APP_LAG", "7"), ("APP_POLICY", "drop_oldest")]));
    let expected = SubscriberConfig { name: "screen".into(), lag: Some(7), policy: LagPolicy::DropOldest };
    assert_eq!(config.unwrap(), expected);
    let wrong = SubscriberConfig::read(reader(&[("APP_POLICY", "sulk")])).unwrap_err();
    assert_eq!(wrong.field(), Some("APP_POLICY"));
    assert_eq!(BroadcastConfig::read(reader(&[("APP_LAG", "1")])).unwrap_err().field(), Some("APP_LAG"));
}

#[cfg(feature = "serde")]
#[test]
fn c7_a_file_is_read_and_unknown_fields_are_refused() {
    let config: BroadcastConfig = serde_json::from_str(r#"{"capacity": 8, "max_wait": "250ms"}"#).unwrap();
    assert_eq!((config.capacity, config.max_wait), (8, Duration::from_millis(250)));
    let config: SubscriberConfig = serde_json::from_str(r#"{"lag": 2, "policy": "evict"}"#).unwrap();
    assert_eq!((config.lag, config.policy), (Some(2), LagPolicy::Evict));
    assert!(serde_json::from_str::<SubscriberConfig>(r#"{"lagg": 2}"#).is_err());
}

#[test]
fn c8_errors_say_why() {
    let text = |error: ReceiveError| error.to_string();
    assert_eq!(text(ReceiveError::Missed(3)), "3 messages missed while it had as many as it may have");
    assert!(text(ReceiveError::Evicted(2)).contains("evicted with 2"));
    assert!(ReceiveError::Closed.is_closed() && ReceiveError::Empty.is_empty() && ReceiveError::TimedOut.is_timeout());
    assert_eq!(ReceiveError::Closed.lost(), None);
    let broadcast = Broadcast::<u64>::builder().capacity(4).build().unwrap();
    let error = broadcast.subscribe().lag(9).join().unwrap_err();
    assert_eq!(error.to_string(), "lag = 9 is not usable: expected 1 to 4, the broadcast's capacity");
}

#[test]
fn c8_it_is_a_sink() {
    let broadcast = of(2);
    let mut reader = with(&broadcast, 2, LagPolicy::Block);
    let sink: Box<dyn Sink<u64>> = Box::new(broadcast.publisher());
    assert_eq!(sink.send_all(&mut (0..2)), Ok(2));
    assert!(sink.try_send(2).unwrap_err().is_full());
    assert_eq!(available(&mut reader), [Ok(0), Ok(1)]);
}

#[test]
fn c10_idle_subscribers_arm_no_timer_and_are_not_woken() {
    let clock = PausedClock::new();
    let broadcast = on(&clock, 8);
    thread::scope(|scope| {
        for _ in 0..16 {
            let mut reader = with(&broadcast, 8, LagPolicy::Block);
            scope.spawn(move || {
                assert_eq!(reader.recv(), Ok(1));
                assert_eq!(reader.recv(), Err(ReceiveError::Closed));
            });
        }
        clock.wait_for_waiters(16);
        let parks = clock.parks();
        clock.advance(LONG);
        assert_eq!((clock.timers(), clock.parks()), (0, parks));
        // One message wakes each of them once.
        broadcast.publisher().publish(1).unwrap();
        while clock.parks() < parks + 16 {
            thread::yield_now();
        }
        clock.wait_for_waiters(16);
        assert_eq!(clock.timers(), 0);
        broadcast.close();
    });
}

#[cfg(feature = "tracing")]
#[test]
fn c11_losses_can_be_followed() {
    let seen = fullbore_testkit::events::capture(|| {
        let broadcast = of(4);
        let mut reader = with(&broadcast, 2, LagPolicy::DropOldest);
        publish(&broadcast.publisher(), 0..4);
        assert_eq!(reader.recv(), Err(ReceiveError::Skipped(2)));
    });
    assert!(seen[0].contains("2 messages skipped"), "{seen:?}");
}

#[test]
fn the_page_of_the_book() -> Result<(), Box<dyn std::error::Error>> {
    let mut shown = Vec::new();
    let mut show = |price| shown.push(price);
    // ANCHOR: prices
    let prices = Broadcast::builder().capacity(1024).build()?;
    let mut screen = prices.subscribe().name("screen").lag(1).policy(LagPolicy::DropOldest).join()?;

    let publisher = prices.publisher(); // one for each thread
    publisher.publish(101)?;
    screen.recv_with(|price| show(*price))?; // looks at it where it is; `recv` clones it
    publisher.publish_all(&mut vec![102, 103])?;
    assert_eq!(screen.recv(), Err(ReceiveError::Skipped(1)));
    assert_eq!(screen.recv(), Ok(103));
    // ANCHOR_END: prices
    assert_eq!(shown, [101]);
    Ok(())
}

/// A router's route into a ring.
#[test]
fn a_broadcast_is_a_destination_of_a_router() {
    let ring = Broadcast::<Arc<String>>::builder().capacity(8).build().unwrap();
    let mut reader = ring.subscribe().join().unwrap();
    let router = fullbore_fanout::Router::<String>::new();
    router.route("orders.#", ring.publisher()).unwrap();
    let receipt = router.publish("orders.new", "one".to_owned()).unwrap();
    assert_eq!(receipt.accepted(), 1);
    assert_eq!(*reader.try_recv().unwrap(), "one");
}
