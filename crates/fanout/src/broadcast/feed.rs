//! A subscriber's way along the messages.

use std::sync::Arc;
use std::time::{Duration, Instant};

use fullbore_core::barrier::Barrier;
use fullbore_core::looks::{Looks, Round, pause};

use super::desk::Desk;
use super::entry::LagPolicy;
use super::error::ReceiveError;
use super::hub::{Crossing, Hub};
use super::ring::Reader;

/// Fewer messages than this are few for a look.
const FEW: u64 = 16;

/// How long a call may wait.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Wait {
    No,
    Until(Option<Instant>),
}

pub(crate) struct Feed<T> {
    hub: Arc<Hub<T>>,
    desk: Arc<Desk>,
    reader: Reader<T>,
    barrier: Barrier,
    lag: u64,
    policy: LagPolicy,
    looks: Looks,
    /// The last look found few messages.
    few: bool,
    begun: u64,
    served: u64,
    /// Skipped so far, or lost to an eviction.
    skipped: u64,
    /// How long the first message of each block had been there when it was read: one of so many.
    note: Option<Duration>,
}

impl<T: Send + Sync> Feed<T> {
    /// `None` if the hub is closed.
    pub(crate) fn new(hub: &Arc<Hub<T>>, lag: u64, policy: LagPolicy, retained: u64) -> Option<Self> {
        let desk = hub.join(lag, policy, retained)?;
        let reader = Reader::new(hub.ring(), desk.cursor());
        Some(Self {
            hub: Arc::clone(hub),
            desk,
            reader,
            barrier: hub.barrier(),
            lag,
            policy,
            looks: Looks::new(),
            few: false,
            begun: 0,
            served: 0,
            skipped: 0,
            note: None,
        })
    }
}

impl<T> Feed<T> {
    pub(crate) fn desk(&self) -> &Arc<Desk> {
        &self.desk
    }

    /// How many messages can be had one after the other without a look.
    #[inline]
    pub(crate) fn ready(&self) -> u64 {
        self.reader.ready()
    }

    pub(crate) fn begun(&self) -> u64 {
        self.begun
    }

    /// How long the message that is ready has waited, if this is one of those for which it is known.
    pub(crate) fn take_note(&mut self) -> Option<Duration> {
        self.note.take()
    }

    /// Makes the next message ready, waiting for one if it may.
    ///
    /// # Errors
    /// Why there is none; what was missed is said once.
    #[inline]
    pub(crate) fn prepare(&mut self, wait: Wait) -> Result<(), ReceiveError> {
        if self.reader.is_ready() && self.desk.bound() > self.reader.next() {
            return Ok(());
        }
        self.prepare_slowly(wait)
    }

    #[cold]
    fn prepare_slowly(&mut self, wait: Wait) -> Result<(), ReceiveError> {
        let mut looks: Option<Round> = None;
        if self.few && matches!(wait, Wait::Until(_)) && !self.reader.has_seen_more() {
            // A look takes the number of messages away from the publisher, who needs it for each: rather see more at once.
            looks = Some(Round::new(self.looks.bound(), self.hub.clock()));
            if let Some(look) = looks.as_mut().and_then(Round::next) {
                pause(look);
            }
        }
        loop {
            self.go_on()?;
            if self.reader.is_ready() {
                self.few = self.reader.ready() < FEW;
                return Ok(());
            }
            // In this order: what was published before the close is seen behind it.
            let closed = self.hub.is_closed();
            if self.is_behind() {
                continue;
            }
            if closed {
                return Err(ReceiveError::Closed);
            }
            let Wait::Until(deadline) = wait else { return Err(ReceiveError::Empty) };
            let looks = looks.get_or_insert_with(|| Round::new(self.looks.bound(), self.hub.clock()));
            if let Some(look) = looks.next() {
                pause(look);
                continue;
            }
            let began = self.hub.clock().now();
            if deadline.is_some_and(|deadline| deadline <= began) {
                return Err(ReceiveError::TimedOut);
            }
            let found = self.hub.sleep(&self.desk, self.reader.next(), deadline);
            self.looks.learn(self.hub.clock().now().saturating_duration_since(began));
            if !found {
                return Err(ReceiveError::TimedOut);
            }
        }
    }

    /// Whether something has come that it has not seen.
    fn is_behind(&self) -> bool {
        self.hub.published().tail() > self.reader.next()
    }

    /// Sees what has come, gets over what is in the way, and pins the block of the next message if there is one.
    fn go_on(&mut self) -> Result<(), ReceiveError> {
        loop {
            let next = self.reader.next();
            if !self.reader.has_seen_more() {
                // Before the bound: see `Desk::bound`.
                let tail = self.hub.published().tail();
                let bound = self.desk.bound();
                if bound > next {
                    self.reader.look(bound.min(tail));
                    if self.policy == LagPolicy::DropOldest {
                        self.catch_up(tail)?;
                    }
                }
            }
            if self.desk.bound() <= self.reader.next() {
                self.cross()?;
                continue;
            }
            if !self.reader.has_seen_more() || self.reader.is_ready() || self.pin() {
                return Ok(());
            }
            // Too far behind, and just noticed.
            if self.policy == LagPolicy::DropOldest {
                self.catch_up(self.hub.published().tail())?;
            }
        }
    }

    fn pin(&mut self) -> bool {
        let pinned = self.reader.pin() || {
            let kept = self.hub.take_kept(&self.desk, self.reader.next());
            kept.is_some_and(|kept| self.reader.pin_kept(kept))
        };
        if pinned {
            self.note = self.reader.age_of_first();
        }
        pinned
    }

    /// Skips what is beyond its lag.
    fn catch_up(&mut self, tail: u64) -> Result<(), ReceiveError> {
        let next = self.reader.next();
        let to = tail.saturating_sub(self.lag);
        if to <= next {
            return Ok(());
        }
        self.reader.skip_to(to);
        self.move_cursor();
        self.skipped += to - next;
        Err(ReceiveError::Skipped(to - next))
    }

    fn cross(&mut self) -> Result<(), ReceiveError> {
        match self.hub.cross(&self.desk, self.reader.next()) {
            Crossing::Nothing => Ok(()),
            Crossing::Missed(missed, to) => {
                self.reader.skip_to(to);
                if missed == 0 { Ok(()) } else { Err(ReceiveError::Missed(missed)) }
            }
            Crossing::Evicted => {
                let (accepted, _) = self.desk.accounts();
                let lost = accepted - self.begun - self.skipped;
                self.skipped += lost;
                self.reader.unpin();
                Err(ReceiveError::Evicted(lost))
            }
        }
    }

    /// Shows the message that is ready to a callback on this thread, then counts it as served.
    ///
    /// # Panics
    /// If the callback does; then it is past the message, which is not served.
    #[inline]
    pub(crate) fn serve<R>(&mut self, thread: u64, f: impl FnOnce(&T) -> R) -> R {
        struct Past<'a, T>(&'a mut Feed<T>);
        impl<T> Drop for Past<'_, T> {
            #[inline]
            fn drop(&mut self) {
                self.0.past();
            }
        }
        self.begun += 1;
        self.desk.begin(self.begun, thread);
        let past = Past(self);
        let result = past.0.reader.with(f);
        past.0.served += 1;
        past.0.desk.served(past.0.served);
        result
    }

    /// The callback has returned.
    #[inline]
    fn past(&mut self) {
        self.desk.end();
        self.reader.step();
        self.move_cursor();
    }

    #[inline]
    fn move_cursor(&mut self) {
        let next = self.reader.next();
        self.desk.set_cursor(next);
        self.barrier.light();
        if self.desk.is_wanted_at(next) {
            self.hub.arrived(&self.desk);
        }
    }

    /// Sees how much there is for a call that takes all of it: up to this number.
    pub(crate) fn end_of_present(&self) -> u64 {
        self.hub.published().tail()
    }

    pub(crate) fn next(&self) -> u64 {
        self.reader.next()
    }

    /// Leaves. How many messages it was to get and has not.
    pub(crate) fn leave(&mut self) -> u64 {
        let kept = self.hub.leave(&self.desk);
        self.reader.unpin();
        drop(kept);
        let (accepted, _) = self.desk.accounts();
        accepted - self.begun - self.skipped
    }
}
