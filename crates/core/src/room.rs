//! Room: places that are taken and given back, with a line of waiters. The semaphore inside every bounded thing here.

use std::time::Instant;

use crate::error::Refusal;
use crate::monitor::{Locked, Serve, WaitFor, Waiters};
use crate::overflow::{Overflow, Patience, earlier};

/// A number of places, kept inside the state of a [`Monitor`](crate::Monitor).
///
/// Newcomers may take a free place before a waiter that was woken for it has run; a waiter in line for longer than
/// [`FAIR_AFTER`](crate::FAIR_AFTER) is handed its place, at most one in each such time (C9).
///
/// Invariant **R1**: when the lock is free, each free place has a waiter of its own that was nudged, or no waiter that is
/// still within its deadline is left to nudge.
#[derive(Debug)]
pub struct Room {
    capacity: usize,
    used: usize,
    closed: bool,
    waiters: Waiters,
}

/// How [`Locked::enter`] ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Entry {
    /// A place was taken.
    Entered,
    /// There is no place; the policy says to displace the oldest.
    Displace,
}

impl Room {
    /// `capacity` free places.
    #[must_use]
    pub const fn new(capacity: usize) -> Self {
        Self::of(capacity, WaitFor::Place)
    }

    /// The same, where a place is something else than a place: a permit.
    #[must_use]
    pub const fn of(capacity: usize, wait_for: WaitFor) -> Self {
        Self { capacity, used: 0, closed: false, waiters: Waiters::of(wait_for) }
    }

    /// How many places there are.
    #[must_use]
    pub const fn capacity(&self) -> usize {
        self.capacity
    }

    /// How many are taken.
    #[must_use]
    pub const fn used(&self) -> usize {
        self.used
    }

    /// How many threads wait for one.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiters.len()
    }

    /// Since when the first in line has waited.
    #[must_use]
    pub fn oldest_waiter(&self) -> Option<Instant> {
        self.waiters.oldest()
    }

    /// Whether no new place is given out any more.
    #[must_use]
    pub const fn is_closed(&self) -> bool {
        self.closed
    }

    fn take(&mut self) -> Option<Result<(), Refusal>> {
        if self.closed {
            Some(Err(Refusal::Closed))
        } else if self.used < self.capacity {
            self.used += 1;
            Some(Ok(()))
        } else {
            None
        }
    }
}

/// What a waiter ends with: a place it took or was handed, or the news that the room is closed.
type Outcome = Result<(), Refusal>;

impl<S> Locked<'_, S> {
    /// Takes a place, waiting for one as `overflow` and `patience` allow.
    ///
    /// # Errors
    /// `Closed`; `Full` where nobody may wait; `TimedOut` at the deadline.
    pub fn enter(
        &mut self,
        room: impl Fn(&mut S) -> &mut Room,
        overflow: Overflow,
        patience: Patience,
    ) -> Result<Entry, Refusal> {
        if let Some(outcome) = room(self).take() {
            return outcome.map(|()| Entry::Entered);
        }
        if overflow == Overflow::DropOldest {
            return Ok(Entry::Displace);
        }
        let deadline = match (patience, overflow) {
            (Patience::Try, _) | (_, Overflow::Reject) => return Err(Refusal::Full),
            (Patience::Policy(cap), Overflow::BlockFor(limit)) => earlier(self.now().checked_add(limit), cap),
            (Patience::Policy(cap), _) => cap,
        };
        let taken: Option<Outcome> = self.wait_place(&room, deadline);
        match taken {
            Some(outcome) => outcome.map(|()| Entry::Entered),
            None => {
                // R1: this waiter may have been the one nudged for a place that somebody else gave back since.
                self.serve_places(&room);
                Err(Refusal::TimedOut)
            }
        }
    }

    fn wait_place(&mut self, room: &impl Fn(&mut S) -> &mut Room, deadline: Option<Instant>) -> Option<Outcome> {
        // A place handed over is `()`: it is already counted as used.
        let mut outcome = None;
        let granted = self.wait_turn(
            |state| &mut room(state).waiters,
            deadline,
            (),
            |state| {
                let taken = room(state).take()?;
                outcome = Some(taken);
                Some(())
            },
        );
        granted?;
        Some(match outcome {
            Some(outcome) => outcome,
            // Handed over, but closed before this thread ran: nothing is accepted after a close.
            None if room(self).closed => {
                room(self).used -= 1;
                Err(Refusal::Closed)
            }
            None => Ok(()),
        })
    }

    /// Gives `n` places back.
    pub fn leave(&mut self, room: impl Fn(&mut S) -> &mut Room, n: usize) {
        {
            let room = room(self);
            debug_assert!(room.used >= n, "more places given back than taken");
            room.used = room.used.saturating_sub(n);
        }
        self.serve_places(&room);
    }

    /// Changes the number of places. With fewer than are taken, nobody enters until enough have left.
    pub fn resize_room(&mut self, room: impl Fn(&mut S) -> &mut Room, capacity: usize) {
        room(self).capacity = capacity;
        self.serve_places(&room);
    }

    /// Refuses everybody from now on, also those who wait.
    pub fn close_room(&mut self, room: impl Fn(&mut S) -> &mut Room) {
        room(self).closed = true;
        self.notify_all(|state| &mut room(state).waiters);
    }

    /// Restores R1.
    fn serve_places(&mut self, room: &impl Fn(&mut S) -> &mut Room) {
        let mut free = {
            let room = room(self);
            if room.closed { 0 } else { room.capacity.saturating_sub(room.used) }
        };
        if free == 0 {
            return;
        }
        self.serve(
            |state| &mut room(state).waiters,
            |state, _, overdue| {
                if free == 0 {
                    return Serve::Stop;
                }
                free -= 1;
                if overdue {
                    room(state).used += 1;
                    Serve::Grant(())
                } else {
                    Serve::Nudge
                }
            },
        );
    }
}

#[cfg(all(test, not(fullbore_loom)))]
mod tests {
    use super::{Entry, Room};
    use crate::{Clock, FAIR_AFTER, Monitor, Overflow, Patience, PausedClock, Refusal};

    #[test]
    fn a_place_that_was_handed_over_before_the_close_is_given_back() {
        let clock = PausedClock::new();
        let monitor = Monitor::new(Room::new(1), Clock::from(&clock));
        let enter = || monitor.lock().enter(|room| room, Overflow::Block, Patience::Policy(None));
        assert_eq!(enter(), Ok(Entry::Entered));
        std::thread::scope(|scope| {
            let waiter = scope.spawn(enter);
            clock.wait_for_waiters(1);
            clock.advance(FAIR_AFTER);
            let mut room = monitor.lock();
            room.leave(|room| room, 1);
            assert_eq!(room.used(), 1, "handed over");
            room.close_room(|room| room);
            drop(room);
            assert_eq!(waiter.join().unwrap(), Err(Refusal::Closed));
        });
        assert_eq!(monitor.lock().used(), 0);
    }
}
