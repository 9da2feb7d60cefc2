//! Every order of events around a wait: notification, grant, expiry, close. An expiry is a thread that advances the paused
//! clock. A lost wake-up shows as a deadlock.
#![cfg(fullbore_loom)]
#![allow(missing_docs, clippy::unwrap_used)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use fullbore_core::{
    Clock, Entry, FAIR_AFTER, Monitor, Overflow, Patience, PausedClock, Refusal, Room, Serve, Waiters,
};
use loom::thread;

const SECOND: Duration = Duration::from_secs(1);

/// Some things to be taken, and those who wait for one.
struct Shelf {
    things: usize,
    waiters: Waiters<usize>,
}

fn shelf(clock: &PausedClock) -> Arc<Monitor<Shelf>> {
    Arc::new(Monitor::new(Shelf { things: 0, waiters: Waiters::new() }, Clock::from(clock)))
}

fn taker(monitor: &Arc<Monitor<Shelf>>, deadline: Option<Instant>) -> thread::JoinHandle<Option<usize>> {
    let monitor = Arc::clone(monitor);
    thread::spawn(move || take(&monitor, deadline))
}

fn advance(clock: &PausedClock, by: Duration) -> thread::JoinHandle<()> {
    let clock = clock.clone();
    thread::spawn(move || clock.advance(by))
}

fn take(monitor: &Monitor<Shelf>, deadline: Option<Instant>) -> Option<usize> {
    monitor.lock().wait_turn(
        |shelf| &mut shelf.waiters,
        deadline,
        (),
        |shelf| {
            shelf.things = shelf.things.checked_sub(1)?;
            Some(1)
        },
    )
}

fn put_one(monitor: &Monitor<Shelf>) {
    let mut shelf = monitor.lock();
    shelf.things += 1;
    shelf.notify_one(|shelf| &mut shelf.waiters);
}

/// Hands one over directly, if somebody is in line who is not late.
fn hand_one(monitor: &Monitor<Shelf>) {
    let mut shelf = monitor.lock();
    shelf.things += 1;
    shelf.serve(
        |shelf| &mut shelf.waiters,
        |shelf, _, _| match shelf.things.checked_sub(1) {
            Some(rest) => {
                shelf.things = rest;
                Serve::Grant(1)
            }
            None => Serve::Stop,
        },
    );
}

#[test]
fn a_notification_reaches_whoever_sleeps_or_is_about_to() {
    loom::model(|| {
        for clock in [Clock::Real, Clock::from(PausedClock::new())] {
            let shelf = Shelf { things: 0, waiters: Waiters::new() };
            let monitor = Arc::new(Monitor::new(shelf, clock));
            let taker = taker(&monitor, None);
            put_one(&monitor);
            assert_eq!(taker.join().unwrap(), Some(1));
        }
    });
}

#[test]
fn two_notifications_reach_two() {
    loom::model(|| {
        let clock = PausedClock::new();
        let monitor = shelf(&clock);
        let takers = [0, 1].map(|_| taker(&monitor, None));
        put_one(&monitor);
        put_one(&monitor);
        for taker in takers {
            assert_eq!(taker.join().unwrap(), Some(1));
        }
    });
}

#[test]
fn one_notify_all_reaches_two() {
    loom::model(|| {
        let clock = PausedClock::new();
        let monitor = shelf(&clock);
        let takers = [0, 1].map(|_| taker(&monitor, None));
        {
            let mut shelf = monitor.lock();
            shelf.things += 2;
            shelf.notify_all(|shelf| &mut shelf.waiters);
        }
        for taker in takers {
            assert_eq!(taker.join().unwrap(), Some(1));
        }
    });
}

#[test]
fn a_notification_against_an_expiry_is_taken_or_left_whole() {
    loom::model(|| {
        let clock = PausedClock::new();
        let monitor = shelf(&clock);
        let deadline = clock.now() + SECOND;
        let taker = taker(&monitor, Some(deadline));
        let time = advance(&clock, SECOND);
        put_one(&monitor);
        let taken = taker.join().unwrap().unwrap_or(0);
        time.join().unwrap();
        let left = monitor.lock();
        assert_eq!(left.things + taken, 1);
        assert!(left.waiters.is_empty());
    });
}

#[test]
fn a_notification_of_one_who_expires_is_not_lost_for_the_next() {
    loom::model(|| {
        let clock = PausedClock::new();
        let monitor = shelf(&clock);
        let deadline = clock.now() + SECOND;
        // In line first, so that the notification is its; what it gets it puts back.
        let hasty = {
            let monitor = Arc::clone(&monitor);
            thread::spawn(move || {
                if take(&monitor, Some(deadline)).is_some() {
                    put_one(&monitor);
                }
            })
        };
        let patient = taker(&monitor, None);
        let time = advance(&clock, SECOND);
        put_one(&monitor);
        assert_eq!(patient.join().unwrap(), Some(1));
        hasty.join().unwrap();
        time.join().unwrap();
        assert_eq!(monitor.lock().things, 0);
    });
}

#[test]
fn a_grant_against_an_expiry_is_given_once_and_not_to_one_who_left() {
    loom::model(|| {
        let clock = PausedClock::new();
        let monitor = shelf(&clock);
        let deadline = clock.now() + SECOND;
        let taker = taker(&monitor, Some(deadline));
        let time = advance(&clock, SECOND);
        hand_one(&monitor);
        let taken = taker.join().unwrap().unwrap_or(0);
        time.join().unwrap();
        assert_eq!(monitor.lock().things + taken, 1);
    });
}

#[test]
fn two_grants_against_an_expiry_and_one_who_waits_for_ever() {
    loom::model(|| {
        let clock = PausedClock::new();
        let monitor = shelf(&clock);
        let deadline = clock.now() + SECOND;
        let hasty = taker(&monitor, Some(deadline));
        let patient = {
            let (monitor, clock) = (Arc::clone(&monitor), clock.clone());
            thread::spawn(move || {
                clock.advance(SECOND);
                take(&monitor, None)
            })
        };
        hand_one(&monitor);
        hand_one(&monitor);
        assert_eq!(patient.join().unwrap(), Some(1));
        let taken = hasty.join().unwrap().unwrap_or(0);
        assert_eq!(monitor.lock().things + taken, 1);
    });
}

fn room(capacity: usize, clock: &PausedClock) -> Arc<Monitor<Room>> {
    Arc::new(Monitor::new(Room::new(capacity), Clock::from(clock)))
}

fn enter(monitor: &Monitor<Room>, overflow: Overflow) -> Result<Entry, Refusal> {
    monitor.lock().enter(|room| room, overflow, Patience::Policy(None))
}

/// Enters and, if let in, leaves again.
fn visit(monitor: &Arc<Monitor<Room>>, overflow: Overflow) -> Visit {
    let monitor = Arc::clone(monitor);
    thread::spawn(move || {
        enter(&monitor, overflow)?;
        let mut room = monitor.lock();
        assert!((1..=room.capacity()).contains(&room.used()), "each place is counted, once: {}", room.used());
        room.leave(|room| room, 1);
        Ok(())
    })
}

#[track_caller]
fn assert_empty(monitor: &Monitor<Room>) {
    let room = monitor.lock();
    assert_eq!((room.used(), room.waiting()), (0, 0));
}

#[test]
fn everybody_gets_into_a_room_of_one() {
    loom::model(|| {
        let clock = PausedClock::new();
        let monitor = room(1, &clock);
        let visitors = [0, 1].map(|_| visit(&monitor, Overflow::Block));
        enter(&monitor, Overflow::Block).unwrap();
        monitor.lock().leave(|room| room, 1);
        for visitor in visitors {
            assert_eq!(visitor.join().unwrap(), Ok(()));
        }
        assert_empty(&monitor);
    });
}

#[test]
fn two_places_given_back_at_once_are_for_two() {
    loom::model(|| {
        let clock = PausedClock::new();
        let monitor = room(2, &clock);
        enter(&monitor, Overflow::Reject).unwrap();
        enter(&monitor, Overflow::Reject).unwrap();
        let stay = |monitor: &Arc<Monitor<Room>>| {
            let monitor = Arc::clone(monitor);
            thread::spawn(move || enter(&monitor, Overflow::Block))
        };
        let visitors = [stay(&monitor), stay(&monitor)];
        monitor.lock().leave(|room| room, 2);
        for visitor in visitors {
            assert_eq!(visitor.join().unwrap(), Ok(Entry::Entered));
        }
        assert_eq!(monitor.lock().used(), 2);
    });
}

#[test]
fn a_place_left_against_a_timeout_is_for_the_next() {
    loom::model(|| {
        let clock = PausedClock::new();
        let monitor = room(1, &clock);
        enter(&monitor, Overflow::Reject).unwrap();
        let hasty = visit(&monitor, Overflow::BlockFor(SECOND));
        let patient = visit(&monitor, Overflow::Block);
        let time = advance(&clock, SECOND);
        monitor.lock().leave(|room| room, 1);
        assert_eq!(patient.join().unwrap(), Ok(()));
        assert!(matches!(hasty.join().unwrap(), Ok(()) | Err(Refusal::TimedOut)));
        time.join().unwrap();
        assert_empty(&monitor);
    });
}

type Visit = thread::JoinHandle<Result<(), Refusal>>;

/// A full room of one with people in line for long enough to be handed their place.
fn overdue<const N: usize>(overflow: Overflow) -> (PausedClock, Arc<Monitor<Room>>, [Visit; N]) {
    let clock = PausedClock::new();
    let monitor = room(1, &clock);
    enter(&monitor, Overflow::Reject).unwrap();
    let visitors = [(); N].map(|()| visit(&monitor, overflow));
    clock.wait_for_waiters(N);
    clock.advance(FAIR_AFTER);
    (clock, monitor, visitors)
}

#[test]
fn a_place_handed_over_against_a_timeout_is_not_lost() {
    loom::model(|| {
        let (clock, monitor, [hasty]) = overdue(Overflow::BlockFor(SECOND));
        let time = advance(&clock, SECOND);
        monitor.lock().leave(|room| room, 1);
        assert!(matches!(hasty.join().unwrap(), Ok(()) | Err(Refusal::TimedOut)));
        time.join().unwrap();
        assert_empty(&monitor);
        enter(&monitor, Overflow::Reject).unwrap();
    });
}

#[test]
fn a_place_handed_over_against_a_newcomer() {
    loom::model(|| {
        let (_clock, monitor, [first]) = overdue(Overflow::Block);
        let newcomer = visit(&monitor, Overflow::Block);
        monitor.lock().leave(|room| room, 1);
        assert_eq!(first.join().unwrap(), Ok(()));
        assert_eq!(newcomer.join().unwrap(), Ok(()));
        assert_empty(&monitor);
    });
}

#[test]
fn a_close_against_a_leave_lets_in_or_refuses_and_keeps_no_place() {
    loom::model(|| {
        let (_clock, monitor, visitors) = overdue::<2>(Overflow::Block);
        let closer = {
            let monitor = Arc::clone(&monitor);
            thread::spawn(move || monitor.lock().close_room(|room| room))
        };
        monitor.lock().leave(|room| room, 1);
        for visitor in visitors {
            assert!(matches!(visitor.join().unwrap(), Ok(()) | Err(Refusal::Closed)));
        }
        closer.join().unwrap();
        assert_empty(&monitor);
    });
}
