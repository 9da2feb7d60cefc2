//! Who is served when: the line of a monitor, and the room in front of everything bounded.
#![cfg(not(fullbore_loom))]
#![allow(missing_docs, clippy::unwrap_used)]

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use fullbore_core::{
    Clock, Entry, FAIR_AFTER, Monitor, Overflow, Patience, PausedClock, Refusal, Room, Serve, Waiters,
};

const SECOND: Duration = Duration::from_secs(1);

#[derive(Default)]
struct Shelf {
    things: Vec<&'static str>,
    waiters: Waiters<&'static str, &'static str>,
}

/// Takes a thing of that name.
fn take(monitor: &Monitor<Shelf>, wanted: &'static str, limit: Option<Duration>) -> Option<&'static str> {
    let mut shelf = monitor.lock();
    let deadline = limit.map(|limit| shelf.now() + limit);
    shelf.wait_turn(
        |shelf| &mut shelf.waiters,
        deadline,
        wanted,
        |shelf| {
            let at = shelf.things.iter().position(|thing| *thing == wanted)?;
            Some(shelf.things.remove(at))
        },
    )
}

#[test]
fn serve_goes_through_the_line_in_order_and_passes_over_the_late() {
    let clock = PausedClock::new();
    let monitor = Monitor::new(Shelf::default(), Clock::from(&clock));
    let (told, seen) = mpsc::channel();
    thread::scope(|scope| {
        let late = scope.spawn(|| {
            // It is not let out of its wait before the line was served: the lock is taken.
            take(&monitor, "late", Some(SECOND))
        });
        clock.wait_for_waiters(1);
        let mut others = Vec::new();
        for name in ["a", "b", "c"] {
            let monitor = &monitor;
            others.push(scope.spawn(move || take(monitor, name, None)));
            clock.wait_for_waiters(others.len() + 1);
        }
        let mut shelf = monitor.lock();
        clock.advance(SECOND);
        shelf.serve(
            |shelf| &mut shelf.waiters,
            |_, waiting, overdue| {
                told.send((*waiting.tag, overdue)).unwrap();
                match *waiting.tag {
                    "a" => Serve::Skip,
                    "b" => Serve::Grant("for b"),
                    _ => Serve::Stop,
                }
            },
        );
        assert_eq!(shelf.waiters.len(), 3, "only b was taken out");
        let next_is_overdue = |shelf: &mut fullbore_core::Locked<'_, Shelf>| {
            let mut seen = None;
            shelf.serve(
                |shelf| &mut shelf.waiters,
                |_, _, overdue| {
                    seen = Some(overdue);
                    Serve::Stop
                },
            );
            seen
        };
        assert_eq!(next_is_overdue(&mut shelf), Some(false), "nothing more is handed over for a while");
        clock.advance(fullbore_core::FAIR_AFTER);
        assert_eq!(next_is_overdue(&mut shelf), Some(true));
        drop(shelf);
        // One is handed over at a time: after b, c is as old and may be nudged, not handed anything.
        assert_eq!(seen.try_iter().collect::<Vec<_>>(), [("a", true), ("b", true), ("c", false)]);
        assert_eq!(late.join().unwrap(), None);
        let mut shelf = monitor.lock();
        shelf.things = vec!["c", "a"];
        shelf.notify_all(|shelf| &mut shelf.waiters);
        drop(shelf);
        let got: Vec<_> = others.into_iter().map(|thread| thread.join().unwrap()).collect();
        assert_eq!(got, [Some("a"), Some("for b"), Some("c")]);
    });
}

#[test]
fn a_grant_that_comes_before_the_deadline_is_taken_after_it() {
    let clock = PausedClock::new();
    let monitor = Monitor::new(Shelf::default(), Clock::from(&clock));
    thread::scope(|scope| {
        let taker = scope.spawn(|| take(&monitor, "x", Some(SECOND)));
        clock.wait_for_waiters(1);
        let mut shelf = monitor.lock();
        shelf.serve(|shelf| &mut shelf.waiters, |_, _, _| Serve::Grant("granted"));
        clock.advance(SECOND);
        drop(shelf);
        assert_eq!(taker.join().unwrap(), Some("granted"));
    });
}

#[test]
fn a_thing_that_comes_before_the_deadline_is_taken_after_it() {
    let clock = PausedClock::new();
    let monitor = Monitor::new(Shelf::default(), Clock::from(&clock));
    thread::scope(|scope| {
        let taker = scope.spawn(|| take(&monitor, "x", Some(SECOND)));
        clock.wait_for_waiters(1);
        let mut shelf = monitor.lock();
        shelf.things.push("x");
        // Only the deadline wakes it, and it cannot look before the lock is free.
        clock.advance(SECOND);
        drop(shelf);
        assert_eq!(taker.join().unwrap(), Some("x"));
    });
}

#[test]
fn who_tells_another_and_then_waits_has_told_it() {
    let clock = PausedClock::new();
    let monitor = Monitor::new(Shelf::default(), Clock::from(&clock));
    thread::scope(|scope| {
        scope.spawn(|| {
            take(&monitor, "ping", None);
            let mut shelf = monitor.lock();
            shelf.things.push("pong");
            shelf.notify_all(|shelf| &mut shelf.waiters);
        });
        clock.wait_for_waiters(1);
        let mut shelf = monitor.lock();
        shelf.things.push("ping");
        shelf.notify_all(|shelf| &mut shelf.waiters);
        let pong = shelf.wait_turn(
            |shelf| &mut shelf.waiters,
            None,
            "pong",
            |shelf| {
                let at = shelf.things.iter().position(|thing| *thing == "pong")?;
                Some(shelf.things.remove(at))
            },
        );
        assert_eq!(pong, Some("pong"));
    });
}

#[test]
fn nobody_is_told_twice_while_another_sleeps() {
    let clock = PausedClock::new();
    let monitor = Monitor::new(Shelf::default(), Clock::from(&clock));
    thread::scope(|scope| {
        let takers: Vec<_> = (0..3)
            .map(|n| {
                let taker = scope.spawn(|| take(&monitor, "x", None));
                clock.wait_for_waiters(n + 1);
                taker
            })
            .collect();
        let mut shelf = monitor.lock();
        shelf.things = vec!["x"; 3];
        for _ in 0..3 {
            shelf.notify_one(|shelf| &mut shelf.waiters);
        }
        drop(shelf);
        for taker in takers {
            assert_eq!(taker.join().unwrap(), Some("x"));
        }
    });
}

#[test]
fn a_deadline_that_has_passed_still_takes_what_is_there() {
    let clock = PausedClock::new();
    let monitor = Monitor::new(Shelf { things: vec!["x"], ..Shelf::default() }, Clock::from(&clock));
    assert_eq!(take(&monitor, "x", Some(Duration::ZERO)), Some("x"));
    assert_eq!(take(&monitor, "x", Some(Duration::ZERO)), None);
    assert_eq!(clock.parks(), 0);
}

fn room(capacity: usize, clock: &PausedClock) -> Monitor<Room> {
    Monitor::new(Room::new(capacity), Clock::from(clock))
}

fn enter(monitor: &Monitor<Room>, overflow: Overflow) -> Result<Entry, Refusal> {
    monitor.lock().enter(|room| room, overflow, Patience::Policy(None))
}

fn leave(monitor: &Monitor<Room>, n: usize) {
    monitor.lock().leave(|room| room, n);
}

#[test]
fn a_newcomer_overtakes_for_a_millisecond_and_no_longer() {
    let clock = PausedClock::new();
    let monitor = room(1, &clock);
    enter(&monitor, Overflow::Reject).unwrap();
    thread::scope(|scope| {
        let waiter = scope.spawn(|| enter(&monitor, Overflow::Block));
        clock.wait_for_waiters(1);
        let mut locked = monitor.lock();
        locked.leave(|room| room, 1);
        assert_eq!(locked.used(), 0, "the place is free, the waiter told");
        // Before the waiter can run.
        locked.enter(|room| room, Overflow::Reject, Patience::Try).unwrap();
        drop(locked);
        clock.wait_for_waiters(1);
        clock.advance(FAIR_AFTER);
        let mut locked = monitor.lock();
        locked.leave(|room| room, 1);
        assert_eq!(locked.enter(|room| room, Overflow::Reject, Patience::Try), Err(Refusal::Full), "handed over");
        drop(locked);
        assert_eq!(waiter.join().unwrap(), Ok(Entry::Entered));
    });
}

#[test]
fn one_place_is_for_one_of_those_who_wait() {
    let clock = PausedClock::new();
    for long_waited in [false, true] {
        let monitor = room(2, &clock);
        enter(&monitor, Overflow::Reject).unwrap();
        enter(&monitor, Overflow::Reject).unwrap();
        let (entered, entries) = mpsc::channel();
        thread::scope(|scope| {
            for _ in 0..3 {
                let (entered, monitor) = (entered.clone(), &monitor);
                scope.spawn(move || entered.send(enter(monitor, Overflow::Block)).unwrap());
            }
            clock.wait_for_waiters(3);
            if long_waited {
                clock.advance(FAIR_AFTER);
            }
            let parks = clock.parks();
            leave(&monitor, 1);
            assert_eq!(entries.recv(), Ok(Ok(Entry::Entered)));
            clock.wait_for_waiters(2);
            assert_eq!(clock.parks(), parks, "the others were not woken");
            leave(&monitor, 2);
            assert_eq!([entries.recv(), entries.recv()], [Ok(Ok(Entry::Entered)); 2]);
        });
        assert_eq!(monitor.lock().used(), 2);
    }
}

#[test]
fn places_that_come_with_a_bigger_room_are_for_those_who_wait() {
    let clock = PausedClock::new();
    let monitor = room(1, &clock);
    enter(&monitor, Overflow::Reject).unwrap();
    thread::scope(|scope| {
        let waiters = [0, 1].map(|_| scope.spawn(|| enter(&monitor, Overflow::Block)));
        clock.wait_for_waiters(2);
        monitor.lock().resize_room(|room| room, 3);
        for waiter in waiters {
            assert_eq!(waiter.join().unwrap(), Ok(Entry::Entered));
        }
    });
    // With fewer places than are taken nobody enters until enough have left.
    monitor.lock().resize_room(|room| room, 1);
    leave(&monitor, 2);
    assert_eq!(enter(&monitor, Overflow::Reject), Err(Refusal::Full));
    leave(&monitor, 1);
    assert_eq!(enter(&monitor, Overflow::Reject), Ok(Entry::Entered));
}

#[test]
fn a_closed_room_lets_nobody_in_and_wakes_all() {
    let clock = PausedClock::new();
    let monitor = room(1, &clock);
    enter(&monitor, Overflow::Reject).unwrap();
    thread::scope(|scope| {
        let waiters = [0, 1].map(|_| scope.spawn(|| enter(&monitor, Overflow::Block)));
        clock.wait_for_waiters(2);
        monitor.lock().close_room(|room| room);
        for waiter in waiters {
            assert_eq!(waiter.join().unwrap(), Err(Refusal::Closed));
        }
    });
    leave(&monitor, 1);
    assert_eq!(enter(&monitor, Overflow::Reject), Err(Refusal::Closed));
    let locked = monitor.lock();
    assert_eq!((locked.used(), locked.waiting()), (0, 0));
}

#[test]
fn those_in_line_can_be_seen() {
    let clock = PausedClock::new();
    let monitor = room(1, &clock);
    enter(&monitor, Overflow::Reject).unwrap();
    let since = clock.now();
    thread::scope(|scope| {
        let waiter = scope.spawn(|| enter(&monitor, Overflow::BlockFor(SECOND)));
        clock.wait_for_waiters(1);
        clock.advance(SECOND / 2);
        let locked = monitor.lock();
        assert_eq!((locked.waiting(), locked.oldest_waiter()), (1, Some(since)));
        drop(locked);
        clock.advance(SECOND / 2);
        assert_eq!(waiter.join().unwrap(), Err(Refusal::TimedOut));
    });
    assert_eq!(monitor.lock().oldest_waiter(), None);
}

/// `wait_for_waiters` counts those who sleep, not those who have been woken and are still on their way.
#[test]
fn the_paused_clock_knows_who_sleeps() {
    let clock = PausedClock::new();
    let monitor = Monitor::new(Shelf::default(), Clock::from(&clock));
    thread::scope(|scope| {
        let taker = scope.spawn(|| take(&monitor, "x", Some(2 * SECOND)));
        clock.wait_for_waiters(1);
        assert_eq!((clock.parks(), clock.timers()), (1, 1));
        for told in 1..=100 {
            monitor.lock().notify_all(|shelf| &mut shelf.waiters);
            // Comes back only when the taker has looked in vain and sleeps again.
            clock.wait_for_waiters(1);
            assert_eq!(clock.parks(), 1 + told);
        }
        clock.advance(SECOND);
        assert_eq!(clock.parks(), 101, "its deadline has not come");
        let locked = monitor.lock();
        clock.advance(SECOND);
        assert_eq!(clock.timers(), 0, "woken, though it has not run");
        drop(locked);
        assert_eq!(taker.join().unwrap(), None);
    });
}

#[test]
#[should_panic(expected = "overflow")]
fn the_paused_clock_does_not_leave_the_range_of_instants() {
    PausedClock::new().advance(Duration::MAX);
}
