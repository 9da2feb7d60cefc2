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
    served: u64,
    failed: u64,
    /// Numbers that the cursor went over.
    jumped: u64,
    /// Messages skipped so far, or lost to an eviction.
    skipped: u64,
    /// As the desk knows it.
    thread: u64,
    /// What was lost behind messages of the same call, and counted: for the next call to say.
    unsaid: Option<ReceiveError>,
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
            served: 0,
            failed: 0,
            jumped: 0,
            skipped: 0,
            thread: 0,
            unsaid: None,
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

    fn begun(&self) -> u64 {
        self.served + self.failed
    }

    /// How many have been served.
    #[inline]
    pub(crate) fn served(&self) -> u64 {
        self.served
    }

    /// Has the next call say this, which is counted already.
    pub(crate) fn say_next(&mut self, unsaid: ReceiveError) {
        self.unsaid = Some(unsaid);
        // So that it is looked at.
        self.reader.hold();
    }

    /// What is to be said before anything else.
    pub(crate) fn take_unsaid(&mut self) -> Option<ReceiveError> {
        self.unsaid.take()
    }

    /// Whether the next message is there, with nothing to be said before it.
    #[inline]
    pub(crate) fn is_ready(&self) -> bool {
        self.reader.is_ready() && self.desk.bound() > self.reader.next()
    }

    /// How long the message that is ready has waited, if this is one of those for which it is known.
    pub(crate) fn take_note(&mut self) -> Option<Duration> {
        self.note.take()
    }

    /// Makes the next message ready, waiting for one if it may.
    ///
    /// # Errors
    /// Why there is none; what was missed is said once.
    #[cold]
    pub(crate) fn prepare(&mut self, wait: Wait) -> Result<(), ReceiveError> {
        let mut looks: Option<Round> = None;
        if self.few && matches!(wait, Wait::Until(_)) && !self.reader.has_seen_more() {
            // A look takes the number of messages away from the publisher, who needs it for each: rather see more at once.
            looks = Some(Round::new(self.looks.bound(), self.hub.clock()));
            if let Some(look) = looks.as_mut().and_then(Round::next) {
                pause(look);
            }
        }
        self.reader.resume();
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
        self.jumped += to - next;
        self.desk.set_back(self.served, self.failed, self.jumped);
        self.moved();
        self.skipped += to - next;
        Err(ReceiveError::Skipped(to - next))
    }

    fn cross(&mut self) -> Result<(), ReceiveError> {
        let next = self.reader.next();
        let (desk, served, failed, jumped) = (&self.desk, self.served, self.failed, &mut self.jumped);
        let jump = |to| {
            *jumped += to - next;
            desk.set_back(served, failed, *jumped);
        };
        match self.hub.cross(desk, next, jump) {
            Crossing::Nothing => Ok(()),
            Crossing::Missed(missed, to) => {
                self.reader.skip_to(to);
                if missed == 0 { Ok(()) } else { Err(ReceiveError::Missed(missed)) }
            }
            Crossing::Evicted => {
                let (accepted, _) = self.desk.accounts();
                let lost = accepted - self.begun() - self.skipped;
                self.skipped += lost;
                self.reader.unpin();
                Err(ReceiveError::Evicted(lost))
            }
        }
    }

    /// The callbacks are on this thread from now on.
    #[inline]
    pub(crate) fn set_thread(&mut self, thread: u64) {
        if self.thread != thread {
            self.thread = thread;
            self.desk.set_thread(thread);
        }
    }

    /// Shows the message that is ready to a callback, then counts it as served.
    ///
    /// # Panics
    /// If the callback does; then it is past the message, which has failed.
    #[inline(always)]
    pub(crate) fn serve<R>(&mut self, f: impl FnOnce(&T) -> R) -> R {
        self.desk.begin(self.served);
        let failing = Failing(self);
        let result = failing.0.reader.with(f);
        std::mem::forget(failing);
        self.served += 1;
        self.desk.served(self.served);
        self.reader.step();
        self.moved();
        result
    }

    /// The same with so many messages, which have to be ready, one after the other.
    ///
    /// # Panics
    /// As [`serve`](Self::serve).
    #[inline(always)]
    pub(crate) fn serve_run(&mut self, messages: u64, mut f: impl FnMut(&T)) {
        let end = self.served + messages;
        if messages > 0 {
            self.desk.begin(self.served);
        }
        while self.served < end {
            let failing = Failing(self);
            failing.0.reader.with(&mut f);
            std::mem::forget(failing);
            self.served += 1;
            // Where one ends the next begins.
            if self.served < end {
                self.desk.begin(self.served);
            } else {
                self.desk.served(self.served);
            }
            self.reader.step();
            self.moved();
        }
    }

    /// The cursor is elsewhere.
    #[inline(always)]
    fn moved(&self) {
        self.barrier.light();
        if self.desk.is_wanted_at(self.reader.next()) {
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
        accepted - self.begun() - self.skipped
    }
}

/// On the way out of a callback's panic.
struct Failing<'a, T>(&'a mut Feed<T>);

impl<T> Drop for Failing<'_, T> {
    #[cold]
    fn drop(&mut self) {
        let feed = &mut *self.0;
        feed.failed += 1;
        feed.desk.set_back(feed.served, feed.failed, feed.jumped);
        feed.reader.step();
        feed.moved();
    }
}
