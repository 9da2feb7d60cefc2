//! The thread, and everything that it shares with senders. `README.md` of the crate has the protocol.

use std::cell::Cell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fullbore_core::{
    BuildError, CallerSpan, Clock, Crew, Event, Events, Failure, FlushError, Group, Inbox, Leftover, Patience, Ready,
    SendError, Undelivered, contain,
};
use fullbore_metrics::{Departure, Outcome, Station, StationId, StationKind, sampled};

use crate::batch::Batch;
use crate::config::{Config, DeadLetter};
use crate::outcomes::{IntoOutcomes, Kind, Outcomes};
use crate::ticket::Reply;

/// A thread outside the process function has only to end. It gets this long beyond the deadline, so that a close without
/// time to wait does not report a healthy thread; only a destructor of what the process function captured can use it up.
const WIND_UP: Duration = Duration::from_millis(100);

thread_local!(static SERVES: Cell<Option<StationId>> = const { Cell::new(None) });

/// Whether the calling thread is the one of the batcher with this station: whoever waits here waits for himself. Not
/// `Crew::is_member`, which takes a lock: every `send` asks.
pub(crate) fn is_inside(of: StationId) -> bool {
    SERVES.with(|serves| serves.get() == Some(of))
}

pub(crate) struct Shared<T, R> {
    inbox: Inbox<Envelope<T, R>>,
    crew: Crew,
    station: Station,
    events: Events,
    config: Config,
    dead_letter: Option<DeadLetter<T>>,
}

pub(crate) struct Envelope<T, R> {
    item: T,
    reply: Reply<R>,
    span: CallerSpan,
}

/// What a close left behind.
pub(crate) struct Left<T, R> {
    items: Vec<Envelope<T, R>>,
    in_flight: usize,
    stuck: Vec<String>,
}

impl<T: Send + 'static, R: Send + 'static> Shared<T, R> {
    pub(crate) fn start<O, F>(
        config: Config,
        capacity: usize,
        clock: Clock,
        dead_letter: Option<DeadLetter<T>>,
        process: F,
    ) -> Result<Arc<Self>, BuildError>
    where
        F: Fn(Batch<T>) -> O + Send + Sync + 'static,
        O: IntoOutcomes<R>,
    {
        let shared = Arc::new(Self {
            inbox: Inbox::new(capacity, config.overflow, clock.clone()),
            crew: Crew::new("batch", &config.name, clock),
            station: Station::builder(config.name.clone()).kind(StationKind::Batch).capacity(capacity).build(),
            events: Events::new("batch", &config.name),
            config,
            dead_letter,
        });
        let worker = Arc::clone(&shared);
        shared.crew.spawn(move || {
            SERVES.with(|serves| serves.set(Some(worker.station.id())));
            worker.work(&process);
            worker.user_code(move || drop(process));
            // The last one to hold it drops the dead-letter hook with it; its events are gone then, too.
            contain(move || drop(worker)).ok();
        })?;
        Ok(shared)
    }

    fn work<O: IntoOutcomes<R>>(&self, process: &impl Fn(Batch<T>) -> O) {
        let ready = Ready { max_items: self.config.max_items, linger: self.config.linger };
        while let Some(group) = self.inbox.take(ready, None) {
            self.process(group, process);
        }
    }

    fn process<O: IntoOutcomes<R>>(&self, group: Group<Envelope<T, R>>, process: &impl Fn(Batch<T>) -> O) {
        let Group { items, mut ticket } = group;
        let count = items.len();
        let clock = self.inbox.clock();
        let began = clock.now();
        self.station.began(count);
        let mut batch = Vec::with_capacity(count);
        let mut replies = Vec::with_capacity(count);
        let mut span = None;
        for (envelope, accepted) in items {
            // C6: the oldest item's wait always, the others' now and then.
            if batch.is_empty() || sampled() {
                self.station.waited(began.saturating_duration_since(accepted));
            }
            batch.push(envelope.item);
            replies.push(envelope.reply);
            span.get_or_insert(envelope.span);
        }
        let span = span.unwrap_or_default();
        let outcomes = contain(|| span.in_scope(|| process(Batch::new(batch)).into_outcomes(count)));
        let outcomes = outcomes.unwrap_or_else(|panicked| {
            span.in_scope(|| self.say(Event::Panic, &panicked));
            Outcomes::failed(panicked)
        });
        let outcomes = self.checked(outcomes, count);
        self.station.took(clock.now().saturating_duration_since(began));
        let served = match &outcomes {
            Kind::Done(results) => results.len(),
            Kind::Each(results) => results.iter().filter(|result| result.is_ok()).count(),
            Kind::Failed(_) => 0,
        };
        self.station.ended(Outcome::Served, served);
        self.station.ended(Outcome::Failed, count - served);
        // Who has a result finds its item counted and its place free; who has flushed finds every result there.
        if replies.iter().any(Reply::is_wanted) {
            self.inbox.vacate(&mut ticket);
        }
        match outcomes {
            Kind::Done(results) => {
                replies.into_iter().zip(results).for_each(|(reply, result)| self.answer(reply, Ok(result)));
            }
            Kind::Each(results) => {
                replies.into_iter().zip(results).for_each(|(reply, result)| self.answer(reply, result));
            }
            Kind::Failed(failure) => {
                let wanted = replies.into_iter().filter(Reply::is_wanted);
                wanted.for_each(|reply| self.answer(reply, Err(failure.clone())));
                self.user_code(|| drop(failure));
            }
        }
        self.inbox.done(ticket);
    }

    /// Refuses a wrong number of results. Their destructors are user code: two panics in one drop of all would abort.
    fn checked(&self, outcomes: Outcomes<R>, expected: usize) -> Kind<R> {
        let got = match &outcomes.0 {
            Kind::Done(results) => results.len(),
            Kind::Each(results) => results.len(),
            Kind::Failed(_) => expected,
        };
        if got == expected {
            return outcomes.0;
        }
        match outcomes.0 {
            Kind::Done(results) => results.into_iter().for_each(|result| self.user_code(|| drop(result))),
            Kind::Each(results) => results.into_iter().for_each(|result| self.user_code(|| drop(result))),
            Kind::Failed(failure) => return Kind::Failed(failure),
        }
        Kind::Failed(Failure::Mismatch { expected, got })
    }

    /// A result that nobody wants is dropped here, by its own destructor.
    fn answer(&self, reply: Reply<R>, result: Result<R, Failure>) {
        self.user_code(|| reply.resolve(result));
    }
}

impl<T, R> Shared<T, R> {
    pub(crate) fn station(&self) -> &Station {
        &self.station
    }

    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    pub(crate) fn clock(&self) -> &Clock {
        self.inbox.clock()
    }

    pub(crate) fn is_inside(&self) -> bool {
        is_inside(self.station.id())
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.inbox.is_closed()
    }

    /// Offers an item, waiting for room as `patience` says; in the process function, which alone can make room, never.
    pub(crate) fn offer(&self, item: T, reply: Reply<R>, patience: Patience) -> Result<(), SendError<T>> {
        let patience = if self.is_inside() { Patience::Try } else { patience };
        let envelope = Envelope { item, reply, span: CallerSpan::current() };
        match self.inbox.send(envelope, patience, || self.station.arrived(1)) {
            Ok(None) => Ok(()),
            Ok(Some(displaced)) => {
                self.discard(displaced, Failure::Dropped);
                Ok(())
            }
            Err(refused) => {
                self.station.refused(1);
                Err(refused.map(|envelope| envelope.item))
            }
        }
    }

    /// An accepted item leaves unprocessed. The hook and the item's destructor come last: they are user code.
    fn discard(&self, envelope: Envelope<T, R>, failure: Failure) {
        let Envelope { item, reply, span: _ } = envelope;
        self.station.departed(Departure::Dropped, 1);
        reply.resolve(Err(failure.clone()));
        match &self.dead_letter {
            Some(hook) => {
                self.events.emit(Event::DeadLetter, || &failure);
                hook(item, failure);
            }
            None => self.events.emit(Event::Drop, || failure),
        }
    }

    pub(crate) fn flush(&self, deadline: Option<Instant>) -> Result<(), FlushError> {
        let own_thread = self.is_inside();
        // On its own thread it still ends the linger of what waits.
        let deadline = if own_thread { Some(self.clock().now()) } else { deadline };
        if self.inbox.flush(deadline) {
            return Ok(());
        }
        Err(FlushError::new(self.inbox.len(), self.inbox.in_flight(), own_thread))
    }

    /// Closes, and waits until the thread has ended or `deadline` has come; on its own thread not at all.
    pub(crate) fn close(&self, deadline: Option<Instant>) -> Left<T, R> {
        let inside = self.is_inside();
        let no_time = inside || deadline.is_some_and(|deadline| deadline <= self.clock().now());
        let items = if no_time {
            self.inbox.abandon()
        } else {
            self.inbox.close();
            if self.crew.join(deadline).is_empty() {
                return Left { items: Vec::new(), in_flight: 0, stuck: Vec::new() };
            }
            self.inbox.take_back()
        };
        // Nothing is left to take: from here on the thread can only finish its batch and end.
        let in_flight = self.inbox.in_flight();
        let stuck = if inside {
            Vec::new()
        } else {
            let patience = if in_flight == 0 { WIND_UP } else { Duration::ZERO };
            self.crew.join(self.clock().after(patience))
        };
        if in_flight > 0 || !stuck.is_empty() {
            self.events.emit(Event::Abandoned, || format!("{in_flight} items in process"));
        }
        Left { items, in_flight, stuck }
    }

    /// What was left goes back to whoever closed.
    pub(crate) fn hand_back(&self, left: Left<T, R>) -> Result<(), Undelivered<T>> {
        let Left { items, in_flight, stuck } = left;
        self.station.departed(Departure::Returned, items.len());
        let items = items.into_iter().map(|envelope| {
            envelope.reply.resolve(Err(Failure::Closed));
            envelope.item
        });
        Undelivered::new(items.collect(), in_flight, stuck).into_result()
    }

    /// What was left has nobody to go back to. A panic of the hook or of a destructor costs no other item its dead letter.
    pub(crate) fn give_up(&self, left: Left<T, R>) -> Leftover {
        let mut report = Leftover::default();
        report.items = left.items.len();
        report.in_flight = left.in_flight;
        report.abandoned_threads = left.stuck;
        for envelope in left.items {
            self.user_code(|| self.discard(envelope, Failure::Closed));
        }
        report
    }

    /// Runs the user's destructors and hooks where a panic has nobody to go to.
    fn user_code(&self, f: impl FnOnce()) {
        if let Err(panicked) = contain(f) {
            self.say(Event::Panic, &panicked);
        }
    }

    /// An event on a thread that must go on: a subscriber is user code, too.
    fn say(&self, event: Event, failure: &Failure) {
        contain(|| self.events.emit(event, || failure)).ok();
    }
}
