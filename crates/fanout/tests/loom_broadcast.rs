//! Every order of publish, receive, skip, leave and close, with the real code of the broadcast and loom's atomics, cells and locks. A
//! lost wake-up shows as a deadlock, a lost message as a wrong count, a slot that is written while it is read as a race:
//! `RUSTFLAGS="--cfg fullbore_loom" cargo test --release -p fullbore-fanout --test loom_broadcast`.
#![cfg(fullbore_loom)]
#![allow(missing_docs, dead_code, unreachable_pub, clippy::unwrap_used)]

#[path = "../src/broadcast"]
mod broadcast {
    pub mod desk;
    pub mod entry;
    pub mod error;
    pub mod feed;
    pub mod hub;
    pub mod ring;
    pub mod seat;
    pub mod sync;
}

use std::sync::{Arc, OnceLock};
// Not loom's: the model need not branch on them.
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use broadcast::entry::LagPolicy;
use broadcast::error::ReceiveError;
use broadcast::feed::{Feed, Wait};
use broadcast::hub::Hub;
use broadcast::ring::Moving;
use broadcast::seat::{Me, Seat};
use fullbore_core::{Clock, Patience, PausedClock, Refusal};
use loom::thread;

const FOREVER: Patience = Patience::Policy(None);

fn model(check: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(builder.preemption_bound.unwrap_or(2));
    builder.check(check);
}

/// Blocks have two slots in the models.
fn hub<T: Send + Sync>(capacity: usize) -> Arc<Hub<T>> {
    Arc::new(Hub::new(capacity, Duration::MAX, Clock::from(PausedClock::new())))
}

fn feed<T: Send + Sync>(hub: &Arc<Hub<T>>, lag: u64, policy: LagPolicy) -> Feed<T> {
    Feed::new(hub, lag, policy, 0).unwrap()
}

/// One thread's way to publish. Alone it goes without the lock from its second message on.
struct Publisher<T> {
    hub: Arc<Hub<T>>,
    me: Me,
    seat: OnceLock<Arc<Seat<T>>>,
}

impl<T> Publisher<T> {
    fn new(hub: &Arc<Hub<T>>) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        // SAFETY: each model's thread makes one of its own, and keeps it.
        let me = unsafe { Me::new(NEXT.fetch_add(1, Ordering::SeqCst)) };
        Self { hub: Arc::clone(hub), me, seat: OnceLock::new() }
    }

    fn try_publish(&self, message: T) -> Result<(), Refusal> {
        let result = self.hub.publish(message, FOREVER, self.me, &self.seat);
        result.map(|_| ()).map_err(|(_, reason)| reason)
    }
}

impl Publisher<u64> {
    fn publish(&self, numbers: std::ops::Range<u64>) {
        numbers.for_each(|n| self.try_publish(n).unwrap());
    }
}

/// Everything until the close: what was received, and how many were lost.
fn drain(feed: &mut Feed<u64>) -> (Vec<u64>, u64) {
    let (mut received, mut lost) = (Vec::new(), 0);
    loop {
        match feed.prepare(Wait::Until(None)) {
            Ok(()) => received.push(feed.serve(|number| *number)),
            Err(ReceiveError::Closed) => return (received, lost),
            Err(error) => lost += error.lost().unwrap(),
        }
    }
}

/// A subscriber that sleeps is woken; blocks come and go; publishers wait for it.
#[test]
fn one_publisher_and_one_subscriber() {
    model(|| {
        let hub = hub(2);
        let mut feed = feed(&hub, 2, LagPolicy::Block);
        let publisher = {
            let hub = Arc::clone(&hub);
            thread::spawn(move || {
                Publisher::new(&hub).publish(0..5);
                hub.close();
            })
        };
        assert_eq!(drain(&mut feed), ((0..5).collect(), 0));
        publisher.join().unwrap();
    });
}

#[test]
fn a_batch_over_several_blocks() {
    model(|| {
        let hub = hub(2);
        let mut feed = feed(&hub, 2, LagPolicy::Block);
        let publisher = {
            let hub = Arc::clone(&hub);
            thread::spawn(move || {
                let mut numbers: Vec<u64> = (0..5).collect();
                let publisher = Publisher::new(&hub);
                hub.publish_all(&mut Moving::new(&mut numbers), FOREVER, publisher.me, &publisher.seat).unwrap();
                assert!(numbers.is_empty());
                hub.close();
            })
        };
        assert_eq!(drain(&mut feed), ((0..5).collect(), 0));
        publisher.join().unwrap();
    });
}

/// One wake-up of the publisher's is enough for all who sleep.
#[test]
fn sleepers_wake_each_other() {
    model(|| {
        let hub = hub(4);
        let subscribers: Vec<_> = (0..2)
            .map(|_| {
                let mut feed = feed(&hub, 4, LagPolicy::Block);
                thread::spawn(move || {
                    feed.prepare(Wait::Until(None)).unwrap();
                    assert_eq!(feed.serve(|number| *number), 7);
                })
            })
            .collect();
        Publisher::new(&hub).publish(7..8);
        subscribers.into_iter().for_each(|subscriber| subscriber.join().unwrap());
    });
}

/// Whoever is woken for nothing, or with what it has read already, is in nobody's way at the next message.
#[test]
fn sleepers_wake_each_other_again() {
    model(|| {
        let hub = hub(4);
        let subscribers: Vec<_> = (0..2)
            .map(|_| {
                let mut feed = feed(&hub, 4, LagPolicy::Block);
                thread::spawn(move || {
                    for n in 7..9 {
                        feed.prepare(Wait::Until(None)).unwrap();
                        assert_eq!(feed.serve(|number| *number), n);
                    }
                })
            })
            .collect();
        Publisher::new(&hub).publish(7..9);
        subscribers.into_iter().for_each(|subscriber| subscriber.join().unwrap());
    });
}

#[test]
fn two_publishers() {
    model(|| {
        let hub = hub(2);
        let mut feed = feed(&hub, 2, LagPolicy::Block);
        let other = {
            let hub = Arc::clone(&hub);
            thread::spawn(move || Publisher::new(&hub).publish(10..12))
        };
        let reader = thread::spawn(move || {
            let mut received = Vec::new();
            while received.len() < 3 {
                feed.prepare(Wait::Until(None)).unwrap();
                received.push(feed.serve(|number| *number));
            }
            received
        });
        Publisher::new(&hub).publish(0..1);
        other.join().unwrap();
        let received = reader.join().unwrap();
        let of = |low: bool| received.iter().copied().filter(|n| (*n < 10) == low).collect::<Vec<_>>();
        assert_eq!((of(true), of(false)), (vec![0], vec![10, 11]), "in the order of each");
    });
}

/// One that is in the seat, and one that wants to publish, too.
#[test]
fn two_publishers_and_the_seat() {
    model(|| {
        let hub = hub(8);
        let mut feed = feed(&hub, 8, LagPolicy::Block);
        let other = {
            let hub = Arc::clone(&hub);
            thread::spawn(move || Publisher::new(&hub).publish(10..12))
        };
        Publisher::new(&hub).publish(0..3);
        other.join().unwrap();
        hub.close();
        let (received, _) = drain(&mut feed);
        let of = |low: bool| received.iter().copied().filter(|n| (*n < 10) == low).collect::<Vec<_>>();
        assert_eq!((of(true), of(false)), (vec![0, 1, 2], vec![10, 11]), "in the order of each");
    });
}

/// Who joins gets all from then on, and no more; the one in the seat waits for it.
#[test]
fn one_that_joins_meanwhile() {
    model(|| {
        let hub = hub::<u64>(2);
        let publisher = {
            let hub = Arc::clone(&hub);
            thread::spawn(move || {
                Publisher::new(&hub).publish(0..4);
                hub.close();
            })
        };
        if let Some(mut feed) = Feed::new(&hub, 1, LagPolicy::Block, 0) {
            let (received, lost) = drain(&mut feed);
            let first = 4 - received.len() as u64;
            assert_eq!((received, lost), ((first..4).collect(), 0));
        }
        publisher.join().unwrap();
    });
}

/// A publisher that waits for a subscriber is released when that leaves.
#[test]
fn a_subscriber_leaves() {
    model(|| {
        let hub = hub(2);
        let mut feed = feed(&hub, 1, LagPolicy::Block);
        let publisher = {
            let hub = Arc::clone(&hub);
            thread::spawn(move || Publisher::new(&hub).publish(0..3))
        };
        feed.prepare(Wait::Until(None)).unwrap();
        assert_eq!(feed.serve(|number| *number), 0);
        let left = feed.leave();
        publisher.join().unwrap();
        assert!(left <= 1);
        let [served, begun, accepted, missed] = feed.desk().counts();
        assert_eq!((served, begun, accepted, missed), (1, 1, 1 + left, 0));
    });
}

/// A publisher that waits gets its message back; what was published is received.
#[test]
fn a_close_while_a_publisher_waits() {
    model(|| {
        let hub = hub(2);
        let mut feed = feed(&hub, 1, LagPolicy::Block);
        let publisher = {
            let hub = Arc::clone(&hub);
            thread::spawn(move || {
                let publisher = Publisher::new(&hub);
                (0..2).map(|n| publisher.try_publish(n)).filter(|result| *result != Err(Refusal::Closed)).count()
            })
        };
        let closer = {
            let hub = Arc::clone(&hub);
            thread::spawn(move || hub.close())
        };
        let (received, lost) = drain(&mut feed);
        let published = publisher.join().unwrap();
        closer.join().unwrap();
        assert_eq!((received.len(), lost), (published, 0));
    });
}

/// Whoever closes and waits sees that all is read, a callback's end included.
#[test]
fn a_close_that_waits() {
    model(|| {
        let hub = hub(2);
        let mut feed = feed(&hub, 2, LagPolicy::Block);
        Publisher::new(&hub).publish(0..2);
        let done = Arc::new(AtomicUsize::new(0));
        let reader = {
            let done = Arc::clone(&done);
            thread::spawn(move || {
                for _ in 0..2 {
                    feed.prepare(Wait::Until(None)).unwrap();
                    feed.serve(|_| done.fetch_add(1, Ordering::SeqCst));
                }
                feed
            })
        };
        hub.close();
        assert!(hub.wait_until_drained(None).is_empty());
        assert_eq!(done.load(Ordering::SeqCst), 2);
        reader.join().unwrap();
    });
}

fn loses(policy: LagPolicy, lag: u64, messages: u64) {
    model(move || {
        let hub = hub(2);
        let mut feed = feed(&hub, lag, policy);
        let publisher = {
            let hub = Arc::clone(&hub);
            thread::spawn(move || {
                Publisher::new(&hub).publish(0..messages);
                hub.close();
            })
        };
        let (received, lost) = drain(&mut feed);
        assert!(received.is_sorted());
        assert_eq!(received.len() as u64 + lost, messages);
        publisher.join().unwrap();
        let [served, begun, accepted, missed] = feed.desk().counts();
        assert_eq!(served, begun);
        assert_eq!(accepted + missed, messages);
    });
}

/// The publisher never waits, and blocks are used again under the reader's eyes, but not while it looks at one.
#[test]
fn one_that_skips() {
    loses(LagPolicy::DropOldest, 2, 6);
}

#[test]
fn one_that_misses() {
    loses(LagPolicy::Reject, 1, 6);
}

#[test]
fn one_that_misses_and_keeps_blocks() {
    loses(LagPolicy::Reject, 2, 7);
}

#[test]
fn one_that_is_evicted() {
    model(|| {
        let hub = hub(2);
        let mut feed = feed(&hub, 1, LagPolicy::Evict);
        let publisher = {
            let hub = Arc::clone(&hub);
            thread::spawn(move || {
                Publisher::new(&hub).publish(0..3);
                hub.close();
            })
        };
        let mut received = 0;
        let lost = loop {
            match feed.prepare(Wait::Until(None)) {
                Ok(()) => received += u64::from(feed.serve(|number| *number) == received),
                Err(ReceiveError::Evicted(lost)) => break Some(lost),
                Err(_) => break None,
            }
        };
        publisher.join().unwrap();
        let [_, begun, accepted, _] = feed.desk().counts();
        assert_eq!(begun, received);
        match lost {
            Some(lost) => assert_eq!(accepted, received + lost),
            None => assert_eq!(received, 3),
        }
    });
}

/// Counts what is dropped.
#[derive(Debug)]
struct Noted(Arc<AtomicUsize>);

impl Drop for Noted {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// Each message is dropped once, whoever has its block last.
#[test]
fn each_is_dropped_once() {
    model(|| {
        let drops = Arc::new(AtomicUsize::new(0));
        let hub = hub(2);
        let mut feed = feed(&hub, 1, LagPolicy::DropOldest);
        let publisher = {
            let (hub, drops) = (Arc::clone(&hub), Arc::clone(&drops));
            thread::spawn(move || {
                let publisher = Publisher::new(&hub);
                for _ in 0..6 {
                    assert!(publisher.try_publish(Noted(Arc::clone(&drops))).is_ok());
                }
            })
        };
        if feed.prepare(Wait::No).is_ok() {
            feed.serve(|noted| assert!(Arc::strong_count(&noted.0) > 1));
        }
        feed.leave();
        drop(feed);
        publisher.join().unwrap();
        drop(hub);
        assert_eq!(drops.load(Ordering::SeqCst), 6);
    });
}
