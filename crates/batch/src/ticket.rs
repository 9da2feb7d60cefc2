//! The two ends of one item's result.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use fullbore_core::{Clock, Failure, Monitor, WaitFor, Waiters, contain, looks};
use fullbore_metrics::StationId;

use crate::error::OwnThread;
use crate::inside;

/// The claim to one item's result. It may be dropped: the item is processed all the same.
///
/// ```
/// use fullbore_batch::{Batch, Batcher};
///
/// let lengths = Batcher::builder()
///     .build(|words: Batch<&str>| words.iter().map(|w| w.parse::<u32>()).collect::<Vec<_>>())?;
/// let (good, bad) = (lengths.submit("7")?, lengths.submit("seven")?);
/// lengths.flush()?;
/// assert!(good.is_done());
/// assert_eq!(good.wait()?, 7);
/// assert!(bad.wait().unwrap_err().downcast_ref::<std::num::ParseIntError>().is_some());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "the result can only be had here; `send` is for items without one"]
pub struct Ticket<R> {
    slot: Arc<Monitor<Slot<R>>>,
    of: StationId,
}

struct Slot<R> {
    answer: Option<Result<R, Failure>>,
    /// Gets the answer instead, if it is there first.
    callback: Option<Callback<R>>,
    waiting: Waiters,
}

type Callback<R> = Box<dyn FnOnce(Result<R, Failure>) + Send>;

/// The other end, which travels with the item. Dropped unanswered it answers `Dropped`, so that nobody waits for an item
/// that is gone.
pub(crate) struct Reply<R>(Option<Arc<Monitor<Slot<R>>>>);

impl<R> Ticket<R> {
    /// Both ends for an item of the batcher with station `of`.
    pub(crate) fn new(of: StationId, clock: Clock) -> (Self, Reply<R>) {
        let slot =
            Arc::new(Monitor::new(Slot { answer: None, callback: None, waiting: Waiters::of(WaitFor::Result) }, clock));
        (Self { slot: Arc::clone(&slot), of }, Reply(Some(slot)))
    }

    /// Waits for the result: until the item's batch was processed, or the item was displaced, or handed back or given up
    /// at close. That takes as long as the process function does.
    ///
    /// # Errors
    /// Why there is none. In the process function of the same batcher, a [`Failure::Error`] with [`OwnThread`] at once
    /// unless the result is there.
    ///
    /// # Deadlock
    /// Never ends if the process function never returns; [`wait_deadline`](Self::wait_deadline) does.
    pub fn wait(self) -> Result<R, Failure> {
        if inside::is_inside(self.of) {
            return self.try_take().unwrap_or_else(|_| Err(Failure::error(OwnThread)));
        }
        self.wait_until(None).unwrap_or(Err(Failure::Dropped))
    }

    /// Waits for the result until `deadline`; not at all in the process function of the same batcher.
    ///
    /// # Errors
    /// The ticket, if there was no result by then.
    pub fn wait_deadline(self, deadline: Instant) -> Result<Result<R, Failure>, Self> {
        if inside::is_inside(self.of) { self.try_take() } else { self.wait_until(Some(deadline)) }
    }

    /// Gives the result to `callback` as soon as it is there: at once, on this thread, if it is there already; else on the
    /// thread that has it, which is the batcher's or whoever displaces or hands back the item. It should not wait: the
    /// batcher's thread waits for it. A panic there is contained and told as an event; here it goes on.
    ///
    /// ```
    /// use fullbore_batch::{Batch, Batcher};
    /// use std::sync::mpsc;
    ///
    /// let (told, tells) = mpsc::channel();
    /// let batcher = Batcher::builder().build(|ns: Batch<u32>| Ok::<_, std::io::Error>(ns.into_vec()))?;
    /// batcher.submit(7)?.on_done(move |result| drop(told.send(result.ok())));
    /// batcher.flush()?;
    /// assert_eq!(tells.recv()?, Some(7));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn on_done(self, callback: impl FnOnce(Result<R, Failure>) + Send + 'static) {
        let mut slot = self.slot.lock();
        match slot.answer.take() {
            None => slot.callback = Some(Box::new(callback)),
            Some(answer) => {
                drop(slot);
                callback(answer);
            }
        }
    }

    /// Takes the result if it is there.
    ///
    /// # Errors
    /// The ticket, if it is not.
    pub fn try_take(self) -> Result<Result<R, Failure>, Self> {
        let answer = self.slot.lock().answer.take();
        answer.ok_or(self)
    }

    /// Whether the result is there.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.slot.lock().answer.is_some()
    }

    fn wait_until(self, deadline: Option<Instant>) -> Result<Result<R, Failure>, Self> {
        let answer = {
            let mut slot = self.slot.lock();
            // Under load the batch is nearly there, and a sleep costs more than the rest of the way.
            let mut looks = looks::Round::new(looks::LEAST, self.slot.clock());
            while slot.answer.is_none() {
                let Some(look) = looks.next() else { break };
                slot.released(|| looks::pause(look));
            }
            slot.wait_until(|slot| &mut slot.waiting, deadline, |slot| slot.answer.is_some());
            slot.answer.take()
        };
        answer.ok_or(self)
    }
}

impl<R> fmt::Debug for Ticket<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ticket").field("done", &self.is_done()).finish_non_exhaustive()
    }
}

impl<R> Reply<R> {
    /// For an item whose result nobody asked for.
    pub(crate) const fn none() -> Self {
        Self(None)
    }

    pub(crate) const fn is_wanted(&self) -> bool {
        self.0.is_some()
    }

    /// Gives the answer: to a callback, or if nobody holds the ticket any more to its own destructor. Both are user code.
    pub(crate) fn resolve(mut self, answer: Result<R, Failure>) {
        self.put(answer);
    }

    fn put(&mut self, answer: Result<R, Failure>) {
        if let Some(slot) = self.0.take() {
            let mut slot = slot.lock();
            match slot.callback.take() {
                None => {
                    slot.answer = Some(answer);
                    slot.notify_all(|slot| &mut slot.waiting);
                }
                Some(callback) => {
                    drop(slot);
                    callback(answer);
                }
            }
        }
    }
}

impl<R> Drop for Reply<R> {
    #[inline]
    fn drop(&mut self) {
        if self.is_wanted() {
            self.give_up();
        }
    }
}

impl<R> Reply<R> {
    #[cold]
    fn give_up(&mut self) {
        // On its way out with its item: a callback's panic has nobody to go to.
        contain(|| self.put(Err(Failure::Dropped))).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::Ticket;
    use fullbore_core::{Clock, Failure};
    use fullbore_metrics::Station;

    #[test]
    fn a_reply_that_vanishes_answers() {
        let (ticket, reply) = Ticket::<u32>::new(Station::new("vanishing").id(), Clock::Real);
        let ticket = ticket.try_take().unwrap_err();
        drop(reply);
        assert!(matches!(ticket.wait(), Err(Failure::Dropped)));
    }
}
