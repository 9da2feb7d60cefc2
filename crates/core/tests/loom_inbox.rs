//! Every order of send, take, flush and close. A lost wake-up shows as a deadlock, a lost item as a wrong sum.
#![cfg(fullbore_loom)]
#![allow(missing_docs, clippy::unwrap_used)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use fullbore_core::{Clock, Inbox, Overflow, Patience, PausedClock, Ready};
use loom::thread;

const SECOND: Duration = Duration::from_secs(1);
const ONE: Ready = Ready { max_items: 1, linger: Duration::ZERO };
/// Never ready by itself: only a flush, a close or a deadline ends it.
const NEVER: Ready = Ready { max_items: 100, linger: Duration::MAX };

fn inbox(capacity: usize, overflow: Overflow) -> (Arc<Inbox<u32>>, PausedClock) {
    let clock = PausedClock::new();
    (Arc::new(Inbox::new(capacity, overflow, Clock::from(&clock))), clock)
}

fn send(inbox: &Inbox<u32>, item: u32) -> bool {
    inbox.send(item, Patience::Policy(None), || ()).is_ok()
}

/// Takes a group, is done with it, and says the sum of its items; 0 if there was none.
fn take(inbox: &Inbox<u32>, ready: Ready, deadline: Option<Instant>) -> u32 {
    let Some(group) = inbox.take(ready, deadline) else { return 0 };
    let sum = group.items.iter().map(|(item, _)| item).sum();
    inbox.done(group.ticket);
    sum
}

fn take_all(inbox: &Inbox<u32>, ready: Ready) -> u32 {
    let mut sum = 0;
    while let Some(group) = inbox.take(ready, None) {
        sum += group.items.iter().map(|(item, _)| item).sum::<u32>();
        inbox.done(group.ticket);
    }
    sum
}

fn taker(inbox: &Arc<Inbox<u32>>, ready: Ready) -> thread::JoinHandle<u32> {
    let inbox = Arc::clone(inbox);
    thread::spawn(move || take_all(&inbox, ready))
}

#[test]
fn what_is_accepted_is_taken_whenever_it_closes() {
    loom::model(|| {
        let (inbox, _clock) = inbox(1, Overflow::Block);
        let taker = taker(&inbox, ONE);
        let closer = {
            let inbox = Arc::clone(&inbox);
            thread::spawn(move || inbox.close())
        };
        // The second one may have to wait for room.
        let accepted: u32 = [1, 2].into_iter().filter(|item| send(&inbox, *item)).sum();
        closer.join().unwrap();
        assert_eq!(taker.join().unwrap(), accepted);
        assert_eq!((inbox.len(), inbox.in_flight()), (0, 0));
    });
}

#[test]
fn a_place_that_is_kept_is_filled_whenever_it_closes() {
    for (overflow, fill) in [(Overflow::Block, true), (Overflow::Block, false), (Overflow::DropOldest, true)] {
        loom::model(move || {
            let (inbox, _clock) = inbox(1, overflow);
            let taker = taker(&inbox, ONE);
            let closer = {
                let inbox = Arc::clone(&inbox);
                thread::spawn(move || inbox.close())
            };
            let mut accepted = 0;
            if let Ok(place) = inbox.reserve(Patience::Policy(None)) {
                if fill {
                    accepted = 7;
                    assert_eq!(inbox.fill(place, 7, || ()), None, "it had a place of its own");
                } else {
                    inbox.unreserve(place);
                }
            }
            closer.join().unwrap();
            assert_eq!(taker.join().unwrap(), accepted);
            assert_eq!((inbox.len(), inbox.in_flight(), inbox.used()), (0, 0, 0));
        });
    }
}

#[test]
fn a_sender_waits_for_a_place_that_is_kept() {
    loom::model(|| {
        let (inbox, _clock) = inbox(1, Overflow::Block);
        let Ok(place) = inbox.reserve(Patience::Try) else { unreachable!("it is empty") };
        let sender = {
            let inbox = Arc::clone(&inbox);
            thread::spawn(move || send(&inbox, 1))
        };
        inbox.unreserve(place);
        assert!(sender.join().unwrap());
        assert_eq!(take(&inbox, ONE, None), 1);
    });
}

#[test]
fn senders_wait_for_room_and_get_it() {
    loom::model(|| {
        let (inbox, _clock) = inbox(1, Overflow::Block);
        let senders = [1, 2].map(|item| {
            let inbox = Arc::clone(&inbox);
            thread::spawn(move || send(&inbox, item))
        });
        let sum: u32 = (0..2).map(|_| take(&inbox, ONE, None)).sum();
        assert_eq!(sum, 3);
        for sender in senders {
            assert!(sender.join().unwrap());
        }
    });
}

#[test]
fn two_takers_share_two_items() {
    loom::model(|| {
        let (inbox, _clock) = inbox(2, Overflow::Block);
        let takers = [0, 1].map(|_| {
            let inbox = Arc::clone(&inbox);
            thread::spawn(move || take(&inbox, ONE, None))
        });
        assert!(send(&inbox, 1) && send(&inbox, 2));
        let sum: u32 = takers.into_iter().map(|taker| taker.join().unwrap()).sum();
        assert_eq!(sum, 3);
    });
}

#[test]
fn a_full_group_ends_the_linger_of_whoever_has_it() {
    loom::model(|| {
        let (inbox, _clock) = inbox(4, Overflow::Block);
        let ready = Ready { max_items: 2, linger: Duration::MAX };
        let takers = [0, 1].map(|_| {
            let inbox = Arc::clone(&inbox);
            thread::spawn(move || take(&inbox, ready, None))
        });
        for item in 1..=4 {
            assert!(send(&inbox, item));
        }
        let sum: u32 = takers.into_iter().map(|taker| taker.join().unwrap()).sum();
        assert_eq!(sum, 10);
    });
}

#[test]
fn a_flush_ends_the_linger_and_sees_the_end() {
    loom::model(|| {
        let (inbox, _clock) = inbox(2, Overflow::Block);
        let taker = taker(&inbox, NEVER);
        assert!(send(&inbox, 1));
        assert!(inbox.flush(None));
        assert_eq!((inbox.len(), inbox.in_flight()), (0, 0));
        inbox.close();
        assert_eq!(taker.join().unwrap(), 1);
    });
}

#[test]
fn a_flush_against_a_close_and_a_second_taker() {
    loom::model(|| {
        let (inbox, _clock) = inbox(2, Overflow::Block);
        assert!(send(&inbox, 1) && send(&inbox, 2));
        let taker = taker(&inbox, ONE);
        let flusher = {
            let inbox = Arc::clone(&inbox);
            thread::spawn(move || inbox.flush(None))
        };
        inbox.close();
        let mine = take_all(&inbox, ONE);
        assert!(flusher.join().unwrap());
        assert_eq!(mine + taker.join().unwrap(), 3);
    });
}

#[test]
fn a_flush_against_a_displacement() {
    loom::model(|| {
        let (inbox, _clock) = inbox(1, Overflow::DropOldest);
        assert!(send(&inbox, 1));
        let flusher = {
            let inbox = Arc::clone(&inbox);
            thread::spawn(move || inbox.flush(None))
        };
        // Called before this, the flush waits for an item that nobody will ever be done with.
        let displaced = inbox.send(2, Patience::Try, || ()).unwrap();
        assert_eq!(displaced, Some(1));
        let taken = take(&inbox, ONE, None);
        assert_eq!(taken, 2);
        assert!(flusher.join().unwrap());
    });
}

#[test]
fn a_displacement_ends_a_flush_by_itself() {
    loom::model(|| {
        let (inbox, clock) = inbox(1, Overflow::DropOldest);
        assert!(send(&inbox, 1));
        let flusher = {
            let inbox = Arc::clone(&inbox);
            thread::spawn(move || inbox.flush(None))
        };
        clock.wait_for_waiters(1);
        assert_eq!(inbox.send(2, Patience::Try, || ()).unwrap(), Some(1));
        assert!(flusher.join().unwrap());
    });
}

#[test]
fn an_abandon_against_a_taker_and_a_waiting_sender() {
    loom::model(|| {
        let (inbox, _clock) = inbox(1, Overflow::Block);
        let sender = {
            let inbox = Arc::clone(&inbox);
            thread::spawn(move || [1, 2].into_iter().filter(|item| send(&inbox, *item)).sum::<u32>())
        };
        let taker = taker(&inbox, ONE);
        let back: u32 = inbox.abandon().into_iter().sum();
        assert_eq!(taker.join().unwrap() + back, sender.join().unwrap());
    });
}

#[test]
fn an_item_against_a_takers_deadline_is_for_the_other() {
    loom::model(|| {
        let (inbox, clock) = inbox(1, Overflow::Block);
        let deadline = clock.now() + SECOND;
        let hasty = {
            let inbox = Arc::clone(&inbox);
            thread::spawn(move || take(&inbox, ONE, Some(deadline)))
        };
        let patient = {
            let inbox = Arc::clone(&inbox);
            thread::spawn(move || take(&inbox, ONE, None))
        };
        let time = {
            let clock = clock.clone();
            thread::spawn(move || clock.advance(SECOND))
        };
        assert!(send(&inbox, 1));
        time.join().unwrap();
        let hastys = hasty.join().unwrap();
        if hastys > 0 {
            inbox.close();
        }
        assert_eq!(hastys + patient.join().unwrap(), 1);
    });
}

#[test]
fn takers_who_wait_for_different_groups() {
    loom::model(|| {
        let (inbox, _clock) = inbox(2, Overflow::Block);
        let slow = taker(&inbox, NEVER);
        let quick = {
            let inbox = Arc::clone(&inbox);
            thread::spawn(move || take(&inbox, ONE, None))
        };
        assert!(send(&inbox, 1));
        // The slow one leaves it to its linger; the quick one must learn of it.
        assert_eq!(quick.join().unwrap(), 1);
        inbox.close();
        assert_eq!(slow.join().unwrap(), 0);
    });
}
