//! A subscription's own bounded buffer, and the thread that empties it into a closure.

use std::sync::Arc;
use std::time::{Duration, Instant};

use fullbore_core::{
    BuildError, CallerSpan, Clock, Crew, Event, Failure, Inbox, Overflow, Patience, Place, Ready, Refusal, Undelivered,
    contain,
};
use fullbore_metrics::{Departure, Outcome, Station, sampled};

use crate::config::SubscriptionConfig;
use crate::dead::{DeadReason, Desk};
use crate::here;

/// One message at a time, as soon as it is there.
const ONE: Ready = Ready { max_items: 1, linger: Duration::ZERO };

/// How long a thread that is not in the user's closure is given to end, whatever the deadline: it has to be scheduled, and
/// to drop the closure.
const GRACE: Duration = Duration::from_secs(1);

/// A message on its way to one destination.
pub(crate) struct Letter<M> {
    pub(crate) message: Arc<M>,
    span: CallerSpan,
    /// When it is worth nothing any more.
    expires: Option<Instant>,
}

/// What a publish gives to each destination.
pub(crate) struct Offer<'a, M> {
    pub(crate) message: &'a Arc<M>,
    pub(crate) expires: Option<Instant>,
}

impl<M> Offer<'_, M> {
    fn letter(&self) -> Letter<M> {
        Letter { message: Arc::clone(self.message), span: CallerSpan::current(), expires: self.expires }
    }
}

pub(crate) struct Buffer<M> {
    pub(crate) id: u64,
    pub(crate) name: Arc<str>,
    pub(crate) station: Station,
    pub(crate) inbox: Inbox<Letter<M>>,
    pub(crate) overflow: Overflow,
    ttl: Option<Duration>,
    /// `None` for a receiver, which has no thread.
    pub(crate) crew: Option<Crew>,
}

impl<M> Buffer<M> {
    pub(crate) fn new(id: u64, config: &SubscriptionConfig, name: Arc<str>, station: Station, clock: &Clock) -> Self {
        Self {
            id,
            name,
            station,
            inbox: Inbox::new(config.capacity, config.overflow, clock.clone()),
            overflow: config.overflow,
            ttl: config.ttl,
            crew: None,
        }
    }

    /// Puts a message in; `Ok(Some(old))` is the one it displaced, already counted.
    pub(crate) fn offer(&self, offer: &Offer<'_, M>, patience: Patience) -> Result<Option<Arc<M>>, Refusal> {
        let sent = self.inbox.send(offer.letter(), patience, || self.station.arrived(1));
        Ok(self.displaced(sent.map_err(|error| error.reason())?))
    }

    /// As [`offer`](Self::offer), where a place is kept.
    pub(crate) fn fill(&self, place: Place, offer: &Offer<'_, M>) -> Option<Arc<M>> {
        self.displaced(self.inbox.fill(place, offer.letter(), || self.station.arrived(1)))
    }

    fn displaced(&self, old: Option<Letter<M>>) -> Option<Arc<M>> {
        old.map(|old| {
            self.station.departed(Departure::Dropped, 1);
            old.message
        })
    }

    /// Whether a sender of such patience waits for room here.
    pub(crate) fn waits(&self, patience: Patience) -> bool {
        patience != Patience::Try && !matches!(self.overflow, Overflow::Reject | Overflow::DropOldest)
    }

    /// How much of its room is taken, in thousandths.
    pub(crate) fn fullness(&self) -> usize {
        self.inbox.used().saturating_mul(1000) / self.inbox.capacity().max(1)
    }

    /// Whether a message that was accepted `at` some instant is worth nothing any more; then it is counted and goes to the dead
    /// letters.
    pub(crate) fn expired(&self, desk: &Desk<M>, letter: &Letter<M>, at: Instant) -> bool {
        if self.ttl.is_none() && letter.expires.is_none() {
            return false;
        }
        let now = self.inbox.clock().now();
        let waited = now.saturating_duration_since(at);
        let expired = self.ttl.is_some_and(|ttl| waited >= ttl) || letter.expires.is_some_and(|until| until <= now);
        if expired {
            self.station.departed(Departure::Dropped, 1);
            let destination = Arc::clone(&self.name);
            desk.post_contained(Arc::clone(&letter.message), DeadReason::Expired { destination, waited });
        }
        expired
    }

    /// Counts the wait of a message that entered at `at`; one in 64, for that costs two looks at the clock.
    pub(crate) fn note_wait(&self, at: Instant) {
        if sampled() {
            self.station.waited(self.inbox.clock().now().saturating_duration_since(at));
        }
    }

    /// Takes back what nobody has begun. Not counted yet: the caller knows whether it is returned or dropped.
    pub(crate) fn take_back(&self) -> Vec<Arc<M>> {
        self.inbox.take_back().into_iter().map(|letter| letter.message).collect()
    }

    /// Whether it has threads of ours, and all of them have come to their end.
    pub(crate) fn has_ended(&self) -> bool {
        self.crew.as_ref().is_none_or(|crew| crew.alive() == 0)
    }

    /// Refuses new messages, lets the thread finish until `deadline`, and takes back what is left.
    pub(crate) fn finish(&self, deadline: Option<Instant>) -> Undelivered<Arc<M>> {
        self.inbox.close();
        let Some(crew) = &self.crew else { return Undelivered::new(self.take_back(), 0, Vec::new()) };
        let mut stuck = crew.join(deadline);
        let items = self.take_back();
        let in_flight = self.inbox.in_flight();
        if in_flight == 0 && !stuck.is_empty() {
            // It is not stuck: it only has to notice.
            stuck = crew.join(self.inbox.clock().after(GRACE));
        }
        Undelivered::new(items, in_flight, stuck)
    }

    /// Starts a thread that hands over each message to `handle`.
    pub(crate) fn spawn<R: Handled>(
        self: &Arc<Self>,
        router: u64,
        desk: &Arc<Desk<M>>,
        handle: impl FnMut(Arc<M>) -> R + Send + 'static,
    ) -> Result<(), BuildError>
    where
        M: Send + Sync + 'static,
    {
        let Some(crew) = &self.crew else { return Ok(()) };
        let (desk, its) = (Arc::clone(desk), Arc::clone(self));
        crew.spawn(move || {
            here::settle(router, its.id);
            its.serve(&desk, handle);
        })
    }

    /// The thread's work: hands over each message, until the buffer is closed and empty.
    pub(crate) fn serve<R: Handled>(&self, desk: &Desk<M>, mut handle: impl FnMut(Arc<M>) -> R) {
        while let Some(group) = self.inbox.take(ONE, None) {
            for (letter, at) in group.items {
                // A dead letter's last reference may be this one, and its destructor is the user's.
                if self.expired(desk, &letter, at) {
                    drop(contain(|| drop(letter)));
                    continue;
                }
                self.note_wait(at);
                self.hand_over(desk, letter, &mut handle);
            }
            // After the counts, so that who waits for a flush sees them.
            self.inbox.done(group.ticket);
        }
        if let Err(failure) = contain(|| drop(handle)) {
            desk.emit(Event::Panic, || format!("{}: dropping the closure {failure}", self.name));
        }
    }

    fn hand_over<R: Handled>(&self, desk: &Desk<M>, letter: Letter<M>, handle: &mut impl FnMut(Arc<M>) -> R) {
        let Letter { message, span, .. } = letter;
        let copy = desk.has_hook().then(|| Arc::clone(&message));
        self.station.began(1);
        let begun = Instant::now();
        let result = span.in_scope(|| contain(|| handle(message).into_result()).and_then(|result| result));
        self.station.took(begun.elapsed());
        self.station.ended(if result.is_ok() { Outcome::Served } else { Outcome::Failed }, 1);
        // The rest may drop what is the user's, so it must not get through either.
        let contained = contain(|| match (result, copy) {
            (Ok(()), copy) => drop(copy),
            (Err(failure), copy) => {
                if failure.is_panic() {
                    desk.emit(Event::Panic, || format!("{}: {failure}", self.name));
                }
                if let Some(message) = copy {
                    desk.post(message, DeadReason::Failed { destination: Arc::clone(&self.name), failure });
                }
            }
        });
        if let Err(failure) = contained {
            desk.emit(Event::Panic, || format!("{}: after the closure: {failure}", self.name));
        }
    }
}

/// What a subscription's closure may return: nothing, or a `Result` whose `Err` counts as failed.
pub trait Handled {
    /// `Err` if the message was not handled.
    ///
    /// # Errors
    /// The closure's own error.
    fn into_result(self) -> Result<(), Failure>;
}

impl Handled for () {
    fn into_result(self) -> Result<(), Failure> {
        Ok(())
    }
}

impl<E: Into<Box<dyn std::error::Error + Send + Sync>>> Handled for Result<(), E> {
    fn into_result(self) -> Result<(), Failure> {
        self.map_err(Failure::error)
    }
}
