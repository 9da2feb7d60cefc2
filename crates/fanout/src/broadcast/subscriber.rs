//! The receiving side.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use fullbore_core::{BuildError, Event};
use fullbore_metrics::{Departure, Elsewhere, Outcome, Station, StationKind};

use super::Shared;
use super::config::SubscriberConfig;
use super::error::{ReceiveError, SubscribeError};
use super::feed::{Feed, Wait};
use super::seat::Me;
use crate::config::check_name;

/// One service in so many is timed.
const TIMED: u64 = 64;

/// The receiving end of a subscription: a place in the broadcast's ring, which goes on with each message. Dropping it leaves.
///
/// Messages are shown where they are ([`recv_with`](Self::recv_with), [`recv_each`](Self::recv_each),
/// [`for_each_available`](Self::for_each_available)) or cloned out ([`recv`](Self::recv), [`recv_many`](Self::recv_many),
/// [`iter`](Self::iter)). A message counts toward the lag until its callback has returned. A callback that panics costs its message,
/// which counts as failed: the panic goes on to the caller, and the subscriber to the next message.
///
/// What was lost is said in its place, as an `Err` of the next call: [`Missed`](ReceiveError::Missed) or
/// [`Skipped`](ReceiveError::Skipped). Calls after it go on.
pub struct Subscriber<T> {
    shared: Arc<Shared<T>>,
    feed: Feed<T>,
    name: Arc<str>,
    station: Station,
}

impl<T: Send + Sync> Subscriber<T> {
    pub(super) fn join(shared: Arc<Shared<T>>, config: SubscriberConfig) -> Result<Self, SubscribeError> {
        check_name(&config.name)?;
        let capacity = shared.hub.capacity();
        let lag = config.lag.map_or(capacity, |lag| lag as u64);
        if lag == 0 || lag > capacity {
            let expected = format!("1 to {capacity}, the broadcast's capacity");
            return Err(BuildError::config("lag", lag, expected).into());
        }
        let feed = Feed::new(&shared.hub, lag, config.policy, shared.retain).ok_or(SubscribeError::Closed)?;
        let station = Station::builder(config.name.clone()).kind(StationKind::Fanout).capacity(lag as usize).build();
        let desk = Arc::clone(feed.desk());
        station.counts_from(move || {
            let [served, begun, arrivals, refused] = desk.counts();
            Elsewhere { served, begun, arrivals, refused }
        });
        shared.station.feeds(&station);
        Ok(Self { shared, feed, name: config.name.into(), station })
    }
}

impl<T> Subscriber<T> {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its counts. An arrival is a message that it was given room for, and it is served when it was taken or its callback has
    /// returned; refused are those that it missed, dropped those that it skipped, had when it was evicted, or left unread.
    #[must_use]
    pub fn station(&self) -> &Station {
        &self.station
    }

    /// How many messages wait for it. Those that it will skip are among them.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.station.counts().waiting() as usize
    }

    /// Shows the next message to `f`, waiting for it **as long as the broadcast is open**.
    ///
    /// The message stays in the ring. Nobody but publishers who wait for this subscription is held up, however long `f` takes.
    ///
    /// # Errors
    /// [`ReceiveError::Closed`] when none is left and none will come; what was lost.
    ///
    /// # Panics
    /// If `f` does.
    #[inline]
    pub fn recv_with<R>(&mut self, f: impl FnOnce(&T) -> R) -> Result<R, ReceiveError> {
        self.take(Wait::Until(None), f)
    }

    /// Shows the next message to `f` if there is one.
    ///
    /// # Errors
    /// [`ReceiveError::Empty`], or as [`recv_with`](Self::recv_with).
    ///
    /// # Panics
    /// If `f` does.
    #[inline]
    pub fn try_recv_with<R>(&mut self, f: impl FnOnce(&T) -> R) -> Result<R, ReceiveError> {
        self.take(Wait::No, f)
    }

    /// Shows the next message to `f`, waiting for it until `deadline`.
    ///
    /// # Errors
    /// [`ReceiveError::TimedOut`], or as [`recv_with`](Self::recv_with).
    ///
    /// # Panics
    /// If `f` does.
    pub fn recv_with_deadline<R>(&mut self, deadline: Instant, f: impl FnOnce(&T) -> R) -> Result<R, ReceiveError> {
        self.take(Wait::Until(Some(deadline)), f)
    }

    /// Shows every message that is there at the time of the call, and says how many. Those that come meanwhile are for the next call;
    /// so it ends. It stops where messages were lost, which the next call says.
    ///
    /// # Errors
    /// [`ReceiveError::Empty`] if none is there, or as [`recv_with`](Self::recv_with).
    ///
    /// # Panics
    /// If `f` does; the next call goes on behind that message.
    #[inline]
    pub fn for_each_available(&mut self, f: impl FnMut(&T)) -> Result<usize, ReceiveError> {
        self.take_each(Wait::No, usize::MAX, f)
    }

    /// As [`for_each_available`](Self::for_each_available), but waits for a first message **as long as the broadcast is open**.
    ///
    /// # Errors
    /// As [`recv_with`](Self::recv_with).
    ///
    /// # Panics
    /// If `f` does; the next call goes on behind that message.
    #[inline]
    pub fn recv_each(&mut self, f: impl FnMut(&T)) -> Result<usize, ReceiveError> {
        self.take_each(Wait::Until(None), usize::MAX, f)
    }

    #[inline]
    fn take<R>(&mut self, wait: Wait, f: impl FnOnce(&T) -> R) -> Result<R, ReceiveError> {
        if !self.feed.is_ready() {
            self.prepare(wait)?;
        }
        self.feed.set_thread(Me::here().number());
        Ok(self.serve(f))
    }

    #[inline]
    fn take_each(&mut self, wait: Wait, most: usize, mut f: impl FnMut(&T)) -> Result<usize, ReceiveError> {
        if most == 0 {
            return Ok(0);
        }
        if !self.feed.is_ready() {
            self.prepare(wait)?;
        }
        self.feed.set_thread(Me::here().number());
        let end = self.feed.end_of_present();
        let mut taken = 0;
        loop {
            let run = self.feed.ready().min(end.saturating_sub(self.feed.next())).min((most - taken) as u64);
            self.serve_run(run, &mut f);
            taken += run as usize;
            if taken == most || self.feed.next() >= end {
                return Ok(taken);
            }
            if let Err(error) = self.prepare(Wait::No) {
                if error.lost().is_some() {
                    self.feed.say_next(error);
                }
                return Ok(taken);
            }
        }
    }

    /// Makes the next message ready, and counts what it comes to.
    #[cold]
    fn prepare(&mut self, wait: Wait) -> Result<(), ReceiveError> {
        if let Some(error) = self.feed.take_unsaid() {
            return Err(error);
        }
        self.feed.prepare(wait).map_err(|error| self.told(error))?;
        if let Some(wait) = self.feed.take_note() {
            self.station.waited(wait);
        }
        Ok(())
    }

    #[inline(always)]
    fn serve<R>(&mut self, f: impl FnOnce(&T) -> R) -> R {
        if self.feed.served().is_multiple_of(TIMED) {
            return self.serve_timed(f);
        }
        let failing = Failing(&self.station);
        let result = self.feed.serve(f);
        std::mem::forget(failing);
        result
    }

    #[inline]
    fn serve_run(&mut self, mut run: u64, mut f: impl FnMut(&T)) {
        while run > 0 {
            let until_timed = TIMED - self.feed.served() % TIMED;
            if until_timed == TIMED {
                self.serve_timed(&mut f);
                run -= 1;
            } else {
                let part = run.min(until_timed);
                let failing = Failing(&self.station);
                self.feed.serve_run(part, &mut f);
                std::mem::forget(failing);
                run -= part;
            }
        }
    }

    /// One in so many.
    #[inline(never)]
    fn serve_timed<R>(&mut self, f: impl FnOnce(&T) -> R) -> R {
        let began = Instant::now();
        let failing = Failing(&self.station);
        let result = self.feed.serve(f);
        std::mem::forget(failing);
        self.station.took(began.elapsed());
        result
    }

    /// Counts and tells what was lost.
    #[cold]
    fn told(&self, error: ReceiveError) -> ReceiveError {
        if let ReceiveError::Skipped(lost) | ReceiveError::Evicted(lost) = error {
            self.station.departed(Departure::Dropped, lost as usize);
        }
        if error.lost().is_some_and(|lost| lost > 0) {
            self.shared.events.emit(Event::Drop, || format!("{}: {error}", self.name));
        }
        error
    }
}

/// On the way out of a callback's panic.
struct Failing<'a>(&'a Station);

impl Drop for Failing<'_> {
    #[cold]
    fn drop(&mut self) {
        self.0.ended(Outcome::Failed, 1);
    }
}

impl<T: Clone> Subscriber<T> {
    /// Takes a clone of the next message, waiting for it **as long as the broadcast is open**.
    ///
    /// # Errors
    /// As [`recv_with`](Self::recv_with).
    ///
    /// # Panics
    /// If `T::clone` does.
    #[inline]
    pub fn recv(&mut self) -> Result<T, ReceiveError> {
        self.recv_with(T::clone)
    }

    /// Takes a clone of the next message if there is one.
    ///
    /// # Errors
    /// As [`try_recv_with`](Self::try_recv_with).
    ///
    /// # Panics
    /// If `T::clone` does.
    #[inline]
    pub fn try_recv(&mut self) -> Result<T, ReceiveError> {
        self.try_recv_with(T::clone)
    }

    /// Takes a clone of the next message, waiting for it until `deadline`.
    ///
    /// # Errors
    /// As [`recv_with_deadline`](Self::recv_with_deadline).
    ///
    /// # Panics
    /// If `T::clone` does.
    pub fn recv_deadline(&mut self, deadline: Instant) -> Result<T, ReceiveError> {
        self.recv_with_deadline(deadline, T::clone)
    }

    /// Takes clones of what is there, `max` at most, to the end of `into`; waits for a first one **as long as the broadcast is
    /// open**. How many. With a `max` of 0 it does nothing.
    ///
    /// # Errors
    /// As [`recv_with`](Self::recv_with).
    ///
    /// # Panics
    /// If `T::clone` does; those before it are in `into`.
    pub fn recv_many(&mut self, max: usize, into: &mut Vec<T>) -> Result<usize, ReceiveError> {
        self.take_each(Wait::Until(None), max, |message| into.push(message.clone()))
    }

    /// Clones of the messages as they come, and what was lost, in its place. Ends when the broadcast is closed and everything is read,
    /// or behind an eviction. Each step waits as [`recv`](Self::recv) does.
    pub fn iter(&mut self) -> Messages<'_, T> {
        Messages { subscriber: self, over: false }
    }
}

impl<T> Drop for Subscriber<T> {
    fn drop(&mut self) {
        let left = self.feed.leave();
        if left > 0 {
            self.station.departed(Departure::Dropped, left as usize);
            self.shared.events.emit(Event::Drop, || format!("{}: left with {left} messages unread", self.name));
        }
        self.station.settle_arrivals();
        self.shared.station.no_longer_feeds(&self.station);
    }
}

impl<T> fmt::Debug for Subscriber<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscriber").field("name", &self.name).field("waiting", &self.waiting()).finish_non_exhaustive()
    }
}

/// The messages of a [`Subscriber`] as they come. Made by [`Subscriber::iter`].
#[derive(Debug)]
pub struct Messages<'a, T> {
    subscriber: &'a mut Subscriber<T>,
    over: bool,
}

impl<T: Clone> Iterator for Messages<'_, T> {
    type Item = Result<T, ReceiveError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.over {
            return None;
        }
        let next = self.subscriber.recv();
        self.over = matches!(&next, Err(error) if error.is_closed() || error.is_evicted());
        if matches!(&next, Err(error) if error.is_closed()) { None } else { Some(next) }
    }
}
