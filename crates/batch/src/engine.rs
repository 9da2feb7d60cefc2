//! The threads, and everything that they share with senders. `README.md` of the crate has the protocol.

use std::cell::Cell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fullbore_core::{
    BuildError, CallerSpan, Clock, Crew, Event, Events, Failure, FlushError, Group, Inbox, Leftover, Monitor, Patience,
    Ready, SendError, Undelivered, Waiters, contain,
};
use fullbore_metrics::{Departure, Outcome, Station, StationId, StationKind, sampled};

use crate::config::{Config, DeadLetter, RetryIf};
use crate::outcomes::{Kind, Outcomes};
use crate::process::{Host, Process, Processed, Verdict};
use crate::retryable::Retryable;
use crate::ticket::Reply;

/// A thread outside the process function has only to end. It gets this long beyond the deadline, so that a close without
/// time to wait does not report a healthy thread; only a destructor of what the process function captured can use it up.
const WIND_UP: Duration = Duration::from_millis(100);

thread_local!(static SERVES: Cell<Option<StationId>> = const { Cell::new(None) });

/// Whether the calling thread is one of the batcher with this station: whoever waits here waits for himself. Not
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
    retry_if: Option<RetryIf>,
    pause: Monitor<Pause>,
}

/// The threads' rests between two attempts.
#[derive(Default)]
struct Pause {
    /// So many items are in batches that rest: their threads are not in user code.
    resting: usize,
    /// There is no time for another attempt any more.
    given_up: bool,
    over: Waiters,
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
    pub(crate) fn start(
        config: Config,
        capacity: usize,
        clock: Clock,
        dead_letter: Option<DeadLetter<T>>,
        retry_if: Option<RetryIf>,
        process: impl Process<T, R>,
    ) -> Result<Arc<Self>, BuildError> {
        let shared = Arc::new(Self {
            inbox: Inbox::new(capacity, config.overflow, clock.clone()),
            crew: Crew::new("batch", &config.name, clock.clone()),
            pause: Monitor::new(Pause::default(), clock),
            retry_if,
            station: Station::builder(config.name.clone())
                .kind(StationKind::Batch)
                .parallelism(config.workers)
                .capacity(capacity)
                .build(),
            events: Events::new("batch", &config.name),
            config,
            dead_letter,
        });
        let process = Arc::new(process);
        for _ in 0..shared.config.workers {
            let (worker, process) = (Arc::clone(&shared), Arc::clone(&process));
            let started = shared.crew.spawn(move || {
                SERVES.with(|serves| serves.set(Some(worker.station.id())));
                worker.work(&*process);
                worker.user_code(move || drop(process));
                // The last one to hold it drops the dead-letter hook with it; its events are gone then, too.
                contain(move || drop(worker)).ok();
            });
            if let Err(error) = started {
                // Those that were started have nothing to do yet.
                shared.inbox.close();
                shared.crew.join(None);
                return Err(error);
            }
        }
        Ok(shared)
    }

    fn work(&self, process: &impl Process<T, R>) {
        let ready = Ready { max_items: self.config.max_items, linger: self.config.linger };
        while let Some(group) = self.inbox.take(ready, None) {
            self.process(group, process);
        }
    }

    fn process(&self, group: Group<Envelope<T, R>>, process: &impl Process<T, R>) {
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
        let Processed { outcomes, kept } = process.run(batch, &InSpan { shared: self, span: &span, count });
        if self.config.workers > 1 && self.config.ordered {
            self.inbox.wait_turn(&ticket);
        }
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
        let letters = self.letters(kept, &outcomes);
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
        for (item, failure) in letters {
            self.user_code(|| span.in_scope(|| self.bury(item, failure)));
        }
        self.inbox.done(ticket);
    }

    /// The items that have failed, of those that were kept, for the dead-letter hook.
    fn letters(&self, kept: Vec<T>, outcomes: &Kind<R>) -> Vec<(T, Failure)> {
        match outcomes {
            _ if self.dead_letter.is_none() => {}
            Kind::Done(_) => {}
            Kind::Each(results) => {
                let mut letters = Vec::new();
                for (item, result) in kept.into_iter().zip(results) {
                    match result {
                        Ok(_) => self.user_code(|| drop(item)),
                        Err(failure) => letters.push((item, failure.clone())),
                    }
                }
                return letters;
            }
            Kind::Failed(failure) => return kept.into_iter().map(|item| (item, failure.clone())).collect(),
        }
        self.user_code(|| drop(kept));
        Vec::new()
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
        self.user_code(|| reply.resolve(Err(failure.clone())));
        self.bury(item, failure);
    }

    fn bury(&self, item: T, failure: Failure) {
        match &self.dead_letter {
            Some(hook) => {
                self.events.emit(Event::DeadLetter, || &failure);
                hook(item, failure);
            }
            None => self.events.emit(Event::Drop, || failure),
        }
    }

    /// Somebody waits: as soon as a worker is idle, there is nothing to linger for.
    pub(crate) fn hurry(&self) {
        if self.config.eager_when_idle {
            self.inbox.hurry();
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
        // Nothing is left to take: from here on the thread can only finish its batch and end. A batch that waits for another
        // attempt has had its last.
        let resting = self.wake_for_good();
        let busy = self.inbox.in_flight() > resting;
        let stuck = if inside {
            Vec::new()
        } else {
            let patience = if busy { Duration::ZERO } else { WIND_UP };
            self.crew.join(self.clock().after(patience))
        };
        let in_flight = self.inbox.in_flight();
        if in_flight > 0 || !stuck.is_empty() {
            self.events.emit(Event::Abandoned, || format!("{in_flight} items in process"));
        }
        Left { items, in_flight, stuck }
    }

    /// Ends all rests between two attempts, now and from now on; how many items were in them.
    fn wake_for_good(&self) -> usize {
        let mut pause = self.pause.lock();
        pause.given_up = true;
        pause.notify_all(|pause| &mut pause.over);
        pause.resting
    }

    /// What was left goes back to whoever closed.
    pub(crate) fn hand_back(&self, left: Left<T, R>) -> Result<(), Undelivered<T>> {
        let Left { items, in_flight, stuck } = left;
        self.station.departed(Departure::Returned, items.len());
        let items = items.into_iter().map(|envelope| {
            let reply = envelope.reply;
            self.user_code(|| reply.resolve(Err(Failure::Closed)));
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

/// What a process function is run in: the span of the caller that sent the batch's oldest item.
struct InSpan<'a, T, R> {
    shared: &'a Shared<T, R>,
    span: &'a CallerSpan,
    /// Items in the batch.
    count: usize,
}

impl<T: Send + 'static, R: Send + 'static> Host<R> for InSpan<'_, T, R> {
    fn call(&self, items: usize, f: &mut dyn FnMut() -> Outcomes<R>) -> Kind<R> {
        let outcomes = contain(|| self.span.in_scope(f));
        let outcomes = outcomes.unwrap_or_else(|panicked| {
            self.span.in_scope(|| self.shared.say(Event::Panic, &panicked));
            Outcomes::failed(panicked)
        });
        self.shared.checked(outcomes, items)
    }

    fn judge(&self, failure: &Failure) -> Verdict {
        if !failure.may_retry() {
            return Verdict::Settled;
        }
        if failure.is_permanent() {
            return Verdict::Lasting;
        }
        let Some(retry_if) = &self.shared.retry_if else { return Verdict::Unknown };
        match contain(|| retry_if(failure)) {
            Ok(true) => Verdict::Passing,
            Ok(false) => Verdict::Lasting,
            Err(panicked) => {
                self.shared.say(Event::Panic, &panicked);
                Verdict::Lasting
            }
        }
    }

    fn pause(&self, attempts: u32, failure: &Failure) -> bool {
        let shared = self.shared;
        if attempts >= shared.config.max_attempts {
            return false;
        }
        let length = shared.config.backoff().pause(attempts);
        self.span.in_scope(|| shared.say(Event::Retry, failure));
        let until = shared.clock().after(length);
        let mut pause = shared.pause.lock();
        pause.resting += self.count;
        pause.wait_until(|pause| &mut pause.over, until, |pause| pause.given_up);
        pause.resting -= self.count;
        !pause.given_up
    }

    fn isolates(&self) -> bool {
        self.shared.config.isolate_poison && !self.shared.pause.lock().given_up
    }
}
