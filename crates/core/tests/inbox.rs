//! The inbox against a model, and under many threads: no item is lost, doubled, or out of order.
#![cfg(not(fullbore_loom))]
#![allow(missing_docs, clippy::unwrap_used)]

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use fullbore_core::{Clock, Group, Inbox, Overflow, Patience, PausedClock, Place, Ready, Refusal};
use proptest::prelude::*;

const LINGER: Duration = Duration::from_secs(1);

#[derive(Clone, Debug)]
enum Step {
    Send,
    Take(usize),
    TakeOne,
    Done(usize),
    Vacate(usize),
    TakeBack,
    Flush,
    Reserve,
    Fill(usize),
    Unreserve(usize),
    Close,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => Just(Step::Send),
        4 => (0usize..4).prop_map(Step::Take),
        2 => Just(Step::TakeOne),
        3 => (0usize..4).prop_map(Step::Done),
        1 => (0usize..4).prop_map(Step::Vacate),
        1 => Just(Step::TakeBack),
        2 => Just(Step::Flush),
        3 => Just(Step::Reserve),
        2 => (0usize..3).prop_map(Step::Fill),
        1 => (0usize..3).prop_map(Step::Unreserve),
        1 => Just(Step::Close),
    ]
}

/// What the inbox ought to hold.
#[derive(Default)]
struct Model {
    waiting: VecDeque<u64>,
    in_flight: Vec<(Group<u64>, bool)>,
    /// Places that are kept; those that were full when they were asked for have none of their own.
    kept: Vec<(Place, bool)>,
    closed: bool,
    /// Everything was taken back after the close.
    drained: bool,
    accepted: u64,
    displaced: u64,
    returned: u64,
    done: u64,
}

impl Model {
    fn used(&self) -> usize {
        let flying = self.in_flight.iter().filter(|(_, vacated)| !vacated).map(|(group, _)| group.items.len());
        self.waiting.len() + flying.sum::<usize>() + self.kept.iter().filter(|(_, own)| *own).count()
    }
}

proptest! {
    #[test]
    fn it_does_what_the_model_does(
        steps in proptest::collection::vec(step(), 0..60),
        capacity in 1usize..5,
        drop_oldest: bool,
    ) {
        let overflow = if drop_oldest { Overflow::DropOldest } else { Overflow::Reject };
        let clock = PausedClock::new();
        let inbox = Inbox::new(capacity, overflow, Clock::from(&clock));
        let mut model = Model::default();
        let mut counted = 0;
        for (item, step) in (0u64..).zip(steps) {
            let now = Some(clock.now());
            match step {
                Step::Send => match inbox.send(item, Patience::Policy(None), || counted += 1) {
                    Ok(displaced) => {
                        prop_assert!(!model.closed);
                        model.accepted += 1;
                        if let Some(displaced) = displaced {
                            prop_assert!(drop_oldest && model.used() == capacity);
                            model.displaced += 1;
                            model.waiting.push_back(item);
                            prop_assert_eq!(Some(displaced), model.waiting.pop_front(), "the oldest that waits");
                        } else {
                            prop_assert!(model.used() < capacity);
                            model.waiting.push_back(item);
                        }
                    }
                    Err(error) => {
                        let full = !drop_oldest && model.used() == capacity;
                        let why = if model.closed { Some(Refusal::Closed) } else { full.then_some(Refusal::Full) };
                        prop_assert_eq!(Some(error.reason()), why);
                        prop_assert_eq!(error.into_inner(), item);
                    }
                },
                Step::Take(max_items) => match inbox.take(Ready { max_items, linger: LINGER }, now) {
                    Some(group) => {
                        prop_assert!(!group.items.is_empty() && group.items.len() <= max_items.max(1));
                        for (item, _) in &group.items {
                            prop_assert_eq!(Some(*item), model.waiting.pop_front(), "in order");
                        }
                        model.in_flight.push((group, false));
                    }
                    None => prop_assert!(model.waiting.is_empty()),
                },
                Step::TakeOne => {
                    let taken = inbox.take_one(now).map(|(item, _)| item);
                    prop_assert_eq!(taken, model.waiting.pop_front());
                    model.done += u64::from(taken.is_some());
                }
                Step::Vacate(at) if at < model.in_flight.len() => {
                    let (group, vacated) = &mut model.in_flight[at];
                    inbox.vacate(&mut group.ticket);
                    *vacated = true;
                }
                Step::Done(at) if at < model.in_flight.len() => {
                    let (group, _) = model.in_flight.remove(at);
                    model.done += group.items.len() as u64;
                    inbox.done(group.ticket);
                }
                Step::Vacate(_) | Step::Done(_) => {}
                Step::TakeBack => {
                    let back = inbox.take_back();
                    prop_assert_eq!(&back, model.waiting.make_contiguous());
                    model.returned += back.len() as u64;
                    model.waiting.clear();
                    model.drained = model.closed;
                }
                Step::Reserve => match inbox.reserve(Patience::Policy(None)) {
                    Ok(place) => {
                        prop_assert!(!model.closed && (drop_oldest || model.used() < capacity));
                        let own = model.used() < capacity;
                        model.kept.push((place, own));
                    }
                    Err(reason) => {
                        let why = if model.closed { Refusal::Closed } else { Refusal::Full };
                        prop_assert_eq!(reason, why);
                        prop_assert!(model.closed || (!drop_oldest && model.used() == capacity));
                    }
                },
                Step::Fill(at) if at < model.kept.len() => {
                    let (place, own) = model.kept.remove(at);
                    let roomy = own || (!model.closed && model.used() < capacity);
                    model.accepted += 1;
                    let displaced = inbox.fill(place, item, || counted += 1);
                    model.waiting.push_back(item);
                    // It is never refused; at worst it is the one that is displaced.
                    if model.drained || !roomy {
                        prop_assert_eq!(displaced, model.waiting.pop_front());
                        model.displaced += 1;
                    } else {
                        prop_assert_eq!(displaced, None);
                    }
                }
                Step::Unreserve(at) if at < model.kept.len() => inbox.unreserve(model.kept.remove(at).0),
                Step::Fill(_) | Step::Unreserve(_) => {}
                Step::Flush => {
                    let nothing_open = model.waiting.is_empty() && model.in_flight.is_empty();
                    prop_assert_eq!(inbox.flush(now), nothing_open);
                }
                Step::Close => {
                    inbox.close();
                    model.closed = true;
                }
            }
            let in_flight: usize = model.in_flight.iter().map(|(group, _)| group.items.len()).sum();
            prop_assert_eq!((inbox.len(), inbox.in_flight()), (model.waiting.len(), in_flight));
            prop_assert_eq!(inbox.used(), model.used());
            prop_assert_eq!(counted, model.accepted, "counted once for each accepted item");
            let out = model.displaced + model.returned + model.done + in_flight as u64;
            prop_assert_eq!(model.accepted, out + model.waiting.len() as u64);
        }
    }
}

#[test]
fn nothing_is_lost_between_many_senders_and_takers() {
    for overflow in [Overflow::Block, Overflow::BlockFor(Duration::from_micros(50)), Overflow::DropOldest] {
        let inbox = Inbox::new(7, overflow, Clock::Real);
        let [accepted, displaced, taken, refused] = [const { AtomicU64::new(0) }; 4];
        let senders = AtomicUsize::new(8);
        thread::scope(|scope| {
            for sender in 0..8u64 {
                let (inbox, accepted, displaced, refused) = (&inbox, &accepted, &displaced, &refused);
                let senders = &senders;
                scope.spawn(move || {
                    for n in 0..2_000 {
                        let patience = if n % 5 == 0 { Patience::Try } else { Patience::Policy(None) };
                        let item = sender * 10_000 + n;
                        match inbox.send(item, patience, || ()) {
                            Ok(old) => {
                                accepted.fetch_add(item, Ordering::Relaxed);
                                displaced.fetch_add(old.unwrap_or(0), Ordering::Relaxed);
                            }
                            Err(error) => {
                                assert_eq!(error.into_inner(), item);
                                refused.fetch_add(item, Ordering::Relaxed);
                            }
                        }
                        if n % 500 == 0 {
                            assert!(inbox.flush(None));
                        }
                    }
                    if senders.fetch_sub(1, Ordering::AcqRel) == 1 {
                        inbox.close();
                    }
                });
            }
            for taker in 0..3 {
                let (inbox, taken) = (&inbox, &taken);
                scope.spawn(move || {
                    // Not all of the same mind; one lingers for ever unless it is hurried.
                    let ready = match taker {
                        0 => Ready { max_items: 1, linger: Duration::ZERO },
                        1 => Ready { max_items: 3, linger: Duration::from_micros(20) },
                        _ => Ready { max_items: 5, linger: Duration::MAX },
                    };
                    let mut last_of = [None; 8];
                    while let Some(group) = inbox.take(ready, None) {
                        for (item, _) in &group.items {
                            let last = &mut last_of[(item / 10_000) as usize];
                            assert!(*last < Some(*item), "one sender's items stay in order");
                            *last = Some(*item);
                            taken.fetch_add(*item, Ordering::Relaxed);
                        }
                        inbox.done(group.ticket);
                    }
                });
            }
        });
        let sum = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let offered: u64 = (0..8u64).map(|sender| (0..2_000).map(|n| sender * 10_000 + n).sum::<u64>()).sum();
        assert_eq!(sum(&accepted) + sum(&refused), offered);
        assert_eq!(sum(&taken) + sum(&displaced), sum(&accepted));
        assert_eq!((inbox.len(), inbox.in_flight()), (0, 0));
    }
}

#[test]
fn a_flush_is_not_kept_alive_by_what_comes_later() {
    let clock = PausedClock::new();
    let inbox = Inbox::new(9, Overflow::Block, Clock::from(&clock));
    let ready = Ready { max_items: 1, linger: Duration::ZERO };
    let send = |item: u32| assert_eq!(inbox.send(item, Patience::Policy(None), || ()).unwrap(), None);
    send(1);
    send(2);
    let [first, second] = [0, 1].map(|_| inbox.take(ready, None).unwrap());
    thread::scope(|scope| {
        let flush = scope.spawn(|| inbox.flush(None));
        clock.wait_for_waiters(1);
        send(3);
        // Out of order: the first is still open.
        inbox.done(second.ticket);
        clock.wait_for_waiters(1);
        inbox.done(first.ticket);
        assert!(flush.join().unwrap());
    });
    assert_eq!(inbox.len(), 1);
}

#[test]
fn a_flush_is_over_when_what_it_waits_for_is_displaced() {
    let clock = PausedClock::new();
    let inbox = Inbox::new(1, Overflow::DropOldest, Clock::from(&clock));
    let send = |item: u32| inbox.send(item, Patience::Try, || ()).unwrap();
    assert_eq!(send(1), None);
    thread::scope(|scope| {
        let flush = scope.spawn(|| inbox.flush(None));
        clock.wait_for_waiters(1);
        assert_eq!(send(2), Some(1));
        assert!(flush.join().unwrap());
    });
}

#[test]
fn a_flush_that_gave_up_still_ended_the_linger() {
    let clock = PausedClock::new();
    let inbox = Inbox::new(9, Overflow::Block, Clock::from(&clock));
    inbox.send(1, Patience::Policy(None), || ()).unwrap();
    assert!(!inbox.flush(Some(clock.now())));
    let group = inbox.take(Ready { max_items: 9, linger: Duration::MAX }, None).unwrap();
    assert_eq!(group.items[0].0, 1);
    inbox.done(group.ticket);
    assert!(inbox.flush(None));
}

#[test]
fn a_linger_starts_with_the_oldest_item() {
    let clock = PausedClock::new();
    let inbox = Inbox::new(2, Overflow::DropOldest, Clock::from(&clock));
    let send = |item: u32| inbox.send(item, Patience::Policy(None), || ()).unwrap();
    thread::scope(|scope| {
        let taker = scope.spawn(|| inbox.take(Ready { max_items: 9, linger: LINGER }, None).unwrap().items);
        clock.wait_for_waiters(1);
        send(1);
        clock.wait_for_waiters(1);
        clock.advance(LINGER / 2);
        send(2);
        assert_eq!(send(3), Some(1), "displaced: now the oldest came half a linger later");
        clock.wait_for_waiters(1);
        clock.advance(LINGER / 2);
        clock.wait_for_waiters(1);
        assert_eq!(inbox.len(), 2);
        clock.advance(LINGER / 2);
        let items: Vec<u32> = taker.join().unwrap().into_iter().map(|(item, _)| item).collect();
        assert_eq!(items, [2, 3]);
    });
}
