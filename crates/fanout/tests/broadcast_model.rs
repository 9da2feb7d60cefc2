//! `Broadcast` against simple queues, one for each subscriber: whatever is done in whatever order, each gets what it should, is told
//! what it should, and counts it.
#![allow(missing_docs, clippy::unwrap_used)]

use std::collections::VecDeque;

use fullbore_fanout::{Broadcast, LagPolicy, ReceiveError, Subscriber};
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Step {
    Publish(u8),
    PublishAll(u8),
    Join(LagPolicy, u8),
    Leave(u8),
    Take(u8),
    Each(u8),
    Many(u8, u8),
}

fn step() -> impl Strategy<Value = Step> {
    let policy = prop_oneof![
        Just(LagPolicy::Block),
        Just(LagPolicy::Reject),
        Just(LagPolicy::DropOldest),
        Just(LagPolicy::Evict)
    ];
    prop_oneof![
        6 => (1..30_u8).prop_map(Step::Publish),
        3 => (1..80_u8).prop_map(Step::PublishAll),
        2 => (policy, any::<u8>()).prop_map(|(policy, lag)| Step::Join(policy, lag)),
        1 => any::<u8>().prop_map(Step::Leave),
        6 => any::<u8>().prop_map(Step::Take),
        4 => any::<u8>().prop_map(Step::Each),
        4 => (any::<u8>(), 1..40_u8).prop_map(|(at, max)| Step::Many(at, max)),
    ]
}

#[derive(Clone, Copy, Debug)]
enum Thing {
    Message(u64),
    Gap(u64),
}

struct Model {
    subscriber: Subscriber<u64>,
    policy: LagPolicy,
    lag: usize,
    things: VecDeque<Thing>,
    shut: bool,
    evicted: bool,
    accepted: u64,
    missed: u64,
    received: u64,
    lost: u64,
    /// What it was told in the middle of a batch.
    unsaid: bool,
}

impl Model {
    fn messages(&self) -> usize {
        self.things.iter().filter(|thing| matches!(thing, Thing::Message(_))).count()
    }

    fn publish(&mut self, number: u64) {
        if self.evicted {
            return;
        }
        match self.policy {
            LagPolicy::Evict if self.messages() == self.lag => {
                self.evicted = true;
                return;
            }
            LagPolicy::Reject if self.shut || self.messages() == self.lag => {
                self.shut = true;
                self.missed += 1;
                match self.things.back_mut() {
                    Some(Thing::Gap(gap)) => *gap += 1,
                    _ => self.things.push_back(Thing::Gap(1)),
                }
                return;
            }
            _ => {}
        }
        self.accepted += 1;
        self.things.push_back(Thing::Message(number));
    }

    /// What the subscriber says to one call is what it should say.
    fn check(&mut self, got: Result<u64, ReceiveError>) {
        match got {
            Ok(number) => {
                let Some(Thing::Message(expected)) = self.things.pop_front() else { panic!("{number} came too early") };
                assert_eq!(number, expected);
                assert!(!self.evicted);
                self.received += 1;
                if self.shut && self.messages() <= self.lag / 2 {
                    self.shut = false;
                }
            }
            Err(ReceiveError::Empty) => assert!(self.things.is_empty() && !self.evicted),
            Err(ReceiveError::Missed(n)) => {
                assert_eq!(self.policy, LagPolicy::Reject);
                let Some(Thing::Gap(gap)) = self.things.pop_front() else { panic!("{n} missed?") };
                assert_eq!(n, gap);
            }
            Err(ReceiveError::Skipped(n)) => {
                assert_eq!(self.policy, LagPolicy::DropOldest);
                assert!(self.messages() > self.lag, "it was not too far behind");
                self.things.drain(..n as usize);
                assert_eq!(self.messages(), self.lag, "it skips no more than it must");
                self.lost += n;
            }
            Err(ReceiveError::Evicted(n)) => {
                assert!(self.evicted);
                assert_eq!(n as usize, self.messages());
                self.things.clear();
                self.lost += n;
            }
            other => panic!("{other:?}"),
        }
    }

    fn balance(&self) {
        let seen = self.subscriber.station().snapshot();
        assert!(seen.balanced(), "{seen:?}");
        assert_eq!(
            (seen.arrivals, seen.refused, seen.served, seen.dropped, seen.in_service()),
            (self.accepted, self.missed, self.received, self.lost, 0)
        );
    }

    fn take(&mut self) {
        let got = self.subscriber.try_recv();
        self.check_after_batch(got);
    }

    fn check_after_batch(&mut self, got: Result<u64, ReceiveError>) {
        if std::mem::take(&mut self.unsaid) {
            // Counted already, and nothing else is told before it.
            assert!(got.unwrap_err().lost().is_some());
        } else {
            self.check(got);
        }
    }

    fn batch(
        &mut self,
        max: usize,
        call: impl FnOnce(&mut Subscriber<u64>, &mut Vec<u64>) -> Result<usize, ReceiveError>,
    ) {
        let mut got = Vec::new();
        match call(&mut self.subscriber, &mut got) {
            Ok(n) => {
                assert!(!self.unsaid);
                assert_eq!(n, got.len());
                assert!((1..=max).contains(&n));
                got.into_iter().for_each(|number| self.check(Ok(number)));
                if n < max {
                    // It stopped because nothing more is there, or something was lost.
                    match self.things.front().copied() {
                        None if !self.evicted => {}
                        Some(Thing::Gap(gap)) => {
                            self.check(Err(ReceiveError::Missed(gap)));
                            self.unsaid = true;
                        }
                        _ if self.policy == LagPolicy::DropOldest && self.messages() > self.lag => {
                            let skipped = (self.messages() - self.lag) as u64;
                            self.check(Err(ReceiveError::Skipped(skipped)));
                            self.unsaid = true;
                        }
                        other => panic!("it stopped before {other:?}"),
                    }
                }
            }
            Err(error) => self.check_after_batch(Err(error)),
        }
    }
}

fn run(capacity: usize, retain: usize, steps: Vec<Step>) {
    let retain = retain.min(capacity);
    let broadcast = Broadcast::builder().capacity(capacity).retain(retain).build().unwrap();
    let publisher = broadcast.publisher();
    let mut models: Vec<Model> = Vec::new();
    let mut next = 0_u64;
    for step in steps {
        let publish = |models: &mut Vec<Model>, next: &mut u64| {
            let fits = models.iter().all(|m| m.policy != LagPolicy::Block || m.messages() < m.lag);
            if fits {
                models.iter_mut().for_each(|model| model.publish(*next));
                *next += 1;
            }
            fits
        };
        match step {
            Step::Publish(n) => {
                for _ in 0..n {
                    let published = publisher.try_publish(next).is_ok();
                    assert_eq!(publish(&mut models, &mut next), published);
                }
            }
            Step::PublishAll(n) => {
                // It would wait: so only as many as fit.
                let room = models.iter().filter(|m| m.policy == LagPolicy::Block).map(|m| m.lag - m.messages()).min();
                let n = (n as usize).min(room.unwrap_or(usize::MAX));
                let mut batch: Vec<u64> = (next..next + n as u64).collect();
                publisher.publish_all(&mut batch).unwrap();
                assert!(batch.is_empty());
                (0..n).for_each(|_| assert!(publish(&mut models, &mut next)));
            }
            Step::Join(policy, lag) if models.len() < 6 => {
                let lag = lag as usize % capacity + 1;
                let subscriber = broadcast.subscribe().lag(lag).policy(policy).join().unwrap();
                let first = next - (retain.min(lag) as u64).min(next);
                let things: VecDeque<_> = (first..next).map(Thing::Message).collect();
                models.push(Model {
                    subscriber,
                    policy,
                    lag,
                    accepted: things.len() as u64,
                    things,
                    shut: false,
                    evicted: false,
                    missed: 0,
                    received: 0,
                    lost: 0,
                    unsaid: false,
                });
            }
            Step::Leave(at) if !models.is_empty() => {
                let at = at as usize % models.len();
                let mut model = models.swap_remove(at);
                let station = model.subscriber.station().clone();
                model.lost += model.messages() as u64;
                let Model { subscriber, accepted, missed, received, lost, .. } = model;
                drop(subscriber);
                let seen = station.snapshot();
                assert!(seen.balanced());
                let counted = (seen.arrivals, seen.refused, seen.served, seen.dropped, seen.waiting());
                assert_eq!(counted, (accepted, missed, received, lost, 0));
            }
            Step::Take(at) if !models.is_empty() => {
                let at = at as usize % models.len();
                models[at].take();
            }
            Step::Each(at) if !models.is_empty() => {
                let at = at as usize % models.len();
                models[at].batch(usize::MAX, |subscriber, got| subscriber.for_each_available(|n| got.push(*n)));
            }
            Step::Many(at, max) if !models.is_empty() => {
                let at = at as usize % models.len();
                let model = &mut models[at];
                // Else it would wait.
                if !model.things.is_empty() || model.evicted || model.unsaid {
                    let max = max as usize;
                    model.batch(max, |subscriber, got| subscriber.recv_many(max, got));
                }
            }
            _ => {}
        }
        models.iter().for_each(Model::balance);
        let seen = broadcast.station().snapshot();
        assert_eq!((seen.arrivals, seen.served), (next, next));
        assert_eq!(broadcast.subscribers(), models.iter().filter(|model| !model.evicted).count());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn each_subscriber_is_a_queue_of_its_own(
        capacity in prop_oneof![1..5_usize, 5..40_usize, Just(64), 100..300_usize],
        retain in 0..50_usize,
        steps in prop::collection::vec(step(), 1..120),
    ) {
        run(capacity, retain, steps);
    }
}
