//! The threads, and everything that they share with senders. `README.md` of the crate has the protocol.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fullbore_core::{
    BuildError, CallerSpan, Clock, Crew, Event, Events, Failure, FlushError, Leftover, Monitor, Patience, Refusal,
    SendError, Undelivered, Waiters, contain,
};
use fullbore_metrics::{Departure, Outcome, Station, StationKind};

use crate::adapt::Climber;
use crate::batch::Spare;
use crate::config::{Config, DeadLetter, Oversized, RetryIf, Weigher};
use crate::inside;
use crate::intake::{Bounds, Group, Intake, Load, Ready, Taker};
use crate::outcomes::{Kind, Outcomes};
use crate::process::{Host, Process, Processed, Verdict};
use crate::retryable::Retryable;
use crate::ticket::Reply;

/// A thread outside the process function has only to end. It gets this long beyond the deadline, so that a close without
/// time to wait does not report a healthy thread; only a destructor of what the process function captured can use it up.
const WIND_UP: Duration = Duration::from_millis(100);

pub(crate) struct Shared<T, R> {
    intake: Intake<T, Extra<R>>,
    crew: Crew,
    station: Station,
    events: Events,
    config: Config,
    hooks: Hooks<T>,
    pause: Monitor<Pause>,
    /// Without waiting: see `Monitor`.
    climber: Option<Monitor<Climber>>,
}

/// The user's functions beside the process function.
pub(crate) struct Hooks<T> {
    pub(crate) dead_letter: Option<DeadLetter<T>>,
    pub(crate) retry_if: Option<RetryIf>,
    pub(crate) weigher: Option<Weigher<T>>,
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

/// What an item can have with it.
pub(crate) struct Extra<R> {
    reply: Reply<R>,
    span: CallerSpan,
}

impl<R> Extra<R> {
    /// Of an item whose result nobody asked for: none, if its sender is in no span.
    #[inline]
    fn of_caller() -> Option<Self> {
        let span = CallerSpan::current();
        span.is_some().then_some(Self { reply: Reply::none(), span })
    }
}

/// What a close left behind.
pub(crate) struct Left<T, R> {
    items: Vec<(T, Option<Extra<R>>)>,
    in_flight: usize,
    stuck: Vec<String>,
}

impl<T: Send + 'static, R: Send + 'static> Shared<T, R> {
    pub(crate) fn start(
        config: Config,
        capacity: usize,
        clock: Clock,
        hooks: Hooks<T>,
        process: impl Process<T, R>,
    ) -> Result<Arc<Self>, BuildError> {
        let bounds = Bounds { capacity, weight: config.weight(), overflow: config.overflow, workers: config.workers };
        let climber = config.adapt_size.map(|latency| Climber::new(1, config.max_items, latency));
        let size = climber.as_ref().map_or(config.max_items, Climber::size);
        let ready = Ready { max_items: size, max_weight: config.max_weight, linger: config.linger };
        let shared = Arc::new(Self {
            intake: Intake::new(bounds, ready, clock.clone()),
            crew: Crew::new("batch", &config.name, clock.clone()),
            pause: Monitor::new(Pause::default(), clock.clone()),
            climber: climber.map(|climber| Monitor::new(climber, clock)),
            station: Station::builder(config.name.clone())
                .kind(StationKind::Batch)
                .parallelism(config.workers)
                .capacity(capacity)
                .build(),
            events: Events::new("batch", &config.name),
            config,
            hooks,
        });
        shared.station.set_batch_size(size);
        shared.station.arrivals_from(shared.intake.sent_on_lanes());
        let process = Arc::new(process);
        for _ in 0..shared.config.workers {
            let (worker, process) = (Arc::clone(&shared), Arc::clone(&process));
            let started = shared.crew.spawn(move || {
                inside::serve(worker.station.id());
                worker.work(&*process);
                worker.user_code(move || drop(process));
                // The last one to hold it drops the dead-letter hook with it; its events are gone then, too.
                contain(move || drop(worker)).ok();
            });
            if let Err(error) = started {
                // Those that were started have nothing to do yet.
                shared.intake.close();
                shared.crew.join(None);
                return Err(error);
            }
        }
        Ok(shared)
    }

    fn work(&self, process: &impl Process<T, R>) {
        let spare = Arc::new(Spare::new());
        let (mut load, mut taker, mut before) = (Load::default(), Taker::new(), None);
        loop {
            load.items = spare.take();
            let Some(mut group) = self.intake.take(before, &mut taker, &mut load) else { return };
            let mut open = load.items.len();
            let process = || self.process(&mut group, &mut load, &mut open, &spare, process);
            if let Err(panicked) = contain(AssertUnwindSafe(process)) {
                // A destructor of the user's error, or a subscriber. Tickets were answered as it went by.
                self.station.ended(Outcome::Failed, open);
                self.events.emit(Event::Panic, || panicked);
            }
            before = Some(group);
        }
    }

    fn process(
        &self,
        group: &mut Group,
        load: &mut Load<T, Extra<R>>,
        open: &mut usize,
        spare: &Arc<Spare<T>>,
        process: &impl Process<T, R>,
    ) {
        let count = load.items.len();
        let clock = self.intake.clock();
        self.station.began(count);
        // C6: the oldest item's wait always, the others' now and then.
        if !load.waits.contains(&group.oldest) {
            self.station.waited(group.oldest);
        }
        for wait in load.waits.drain(..) {
            self.station.waited(wait);
        }
        let mut replies = Vec::new();
        let mut span = None;
        for (number, Extra { reply, span: with }) in load.extras.drain(..) {
            // The oldest item's, if it has one; the others' end here, and that is a subscriber's code.
            if number == 0 {
                span = Some(with);
            } else {
                self.user_code(|| with.end());
            }
            if reply.is_wanted() {
                replies.push((number, reply));
            }
        }
        let span = span.unwrap_or_default();
        let items = std::mem::take(&mut load.items);
        let Processed { outcomes, kept } = process.run(items, spare, &InSpan { shared: self, span: &span, count });
        let service = clock.now().saturating_duration_since(group.taken);
        if self.config.workers > 1 && self.config.ordered {
            self.intake.wait_turn(group);
        }
        self.station.took(service);
        *open = 0;
        let served = match &outcomes {
            Kind::Done(results) => results.len(),
            Kind::Each(results) => results.iter().filter(|result| result.is_ok()).count(),
            Kind::Failed(_) => 0,
        };
        if served > 0 {
            self.station.ended(Outcome::Served, served);
        }
        if served < count {
            self.station.ended(Outcome::Failed, count - served);
        } else {
            self.adapt(count, service);
        }
        // Who has a result finds its item counted and its place free; who has flushed finds every result there.
        if !replies.is_empty() {
            self.intake.vacate(group);
        }
        let letters = self.letters(kept, &outcomes, spare);
        let replies = replies.into_iter();
        match outcomes {
            Kind::Done(results) if replies.len() == 0 && !std::mem::needs_drop::<R>() => drop(results),
            Kind::Done(results) => self.answer_each(replies, results.into_iter().map(Ok)),
            Kind::Each(results) => self.answer_each(replies, results.into_iter()),
            Kind::Failed(failure) => {
                replies.for_each(|(_, reply)| self.answer(reply, Err(failure.clone())));
                self.user_code(|| drop(failure));
            }
        }
        for (item, failure) in letters {
            self.user_code(|| span.in_scope(|| self.bury(item, failure)));
        }
        self.user_code(|| span.end());
    }

    /// Lets the size follow what a batch has taken.
    fn adapt(&self, items: usize, service: Duration) {
        let Some(climber) = &self.climber else { return };
        let mut climber = climber.lock();
        if climber.took(items, service) {
            let size = climber.size();
            self.station.set_batch_size(size);
            // Under the climber's lock, so that the last size is the last one set.
            self.intake.resize(size);
        }
    }

    /// Gives each result to the one who wants it, if there is one.
    fn answer_each(
        &self,
        replies: impl Iterator<Item = (usize, Reply<R>)>,
        results: impl Iterator<Item = Result<R, Failure>>,
    ) {
        let mut replies = replies.peekable();
        for (index, result) in results.enumerate() {
            match replies.next_if(|(wanted, _)| *wanted == index) {
                Some((_, reply)) => self.answer(reply, result),
                None => self.user_code(|| drop(result)),
            }
        }
    }

    /// The items that have failed, of those that were kept, for the dead-letter hook.
    fn letters(&self, mut kept: Vec<T>, outcomes: &Kind<R>, spare: &Spare<T>) -> Vec<(T, Failure)> {
        match outcomes {
            _ if self.hooks.dead_letter.is_none() => {}
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
        if kept.capacity() > 0 {
            if std::mem::needs_drop::<T>() {
                // One by one: two panics in one drop of all would abort.
                kept.drain(..).for_each(|item| self.user_code(|| drop(item)));
            }
            kept.clear();
            spare.keep(kept);
        }
        Vec::new()
    }

    /// A result whose ticket is gone is dropped here, by its own destructor.
    fn answer(&self, reply: Reply<R>, result: Result<R, Failure>) {
        self.user_code(|| reply.resolve(result));
    }
}

impl<T, R> Drop for Shared<T, R> {
    fn drop(&mut self) {
        // Who has the station's handle keeps the counts, not the lanes.
        self.station.settle_arrivals();
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
        self.intake.clock()
    }

    pub(crate) fn is_inside(&self) -> bool {
        inside::is_inside(self.station.id())
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.intake.is_closed()
    }

    /// Offers an item, waiting for room as `patience` says; in the process function, which alone can make room, never.
    ///
    /// Always inlined, so that registers need not be saved: each store that a send makes waits behind the lines that the worker
    /// has to give back.
    #[inline(always)]
    pub(crate) fn offer(&self, item: T, patience: Patience) -> Result<(), SendError<T>> {
        // Before the claim: it may run a subscriber's code.
        let extra = Extra::of_caller();
        match self.intake.claim() {
            Some(claimed) if extra.is_none() => {
                claimed.fill(item);
                Ok(())
            }
            Some(claimed) => {
                claimed.fill_with(item, extra);
                Ok(())
            }
            None => self.offer_slowly((item, extra), patience),
        }
    }

    /// The same, for an item whose result is wanted.
    pub(crate) fn offer_for(&self, item: T, reply: Reply<R>, patience: Patience) -> Result<(), SendError<T>> {
        let extra = Some(Extra { reply, span: CallerSpan::current() });
        match self.intake.claim() {
            Some(claimed) => {
                claimed.fill_with(item, extra);
                Ok(())
            }
            None => self.offer_slowly((item, extra), patience),
        }
    }

    #[cold]
    #[inline(never)]
    fn offer_slowly(&self, came: (T, Option<Extra<R>>), patience: Patience) -> Result<(), SendError<T>> {
        // Those of a batcher that weighs all come this way.
        let weight = self.hooks.weigher.as_ref().map_or(0, |weigh| weigh(&came.0));
        let too_heavy = self.config.max_weight.is_some_and(|max| weight > max);
        if too_heavy && self.config.oversized == Oversized::Refuse {
            self.station.refused(1);
            let reason = if self.is_closed() { Refusal::Closed } else { Refusal::Oversized };
            return Err(SendError::new(came.0, reason));
        }
        let patience = if self.is_inside() { Patience::Try } else { patience };
        match self.intake.send(came, weight, patience, &|| self.station.arrived(1)) {
            Ok(displaced) => {
                self.displaced(displaced);
                Ok(())
            }
            Err(refused) => {
                self.station.refused(1);
                Err(refused)
            }
        }
    }

    /// Accepted items leave for a newer one. A panic of the hook or of a destructor is the sender's, once all are gone.
    fn displaced(&self, items: Vec<(T, Option<Extra<R>>)>) {
        self.station.departed(Departure::Dropped, items.len());
        let mut panicked = None;
        for (item, extra) in items {
            self.settle(extra, &Failure::Dropped);
            let buried = catch_unwind(AssertUnwindSafe(|| self.bury(item, Failure::Dropped)));
            panicked = panicked.or(buried.err());
        }
        if let Some(panic) = panicked {
            resume_unwind(panic);
        }
    }

    /// An accepted item leaves unprocessed. The hook and the item's destructor come last: they are user code.
    fn discard(&self, (item, extra): (T, Option<Extra<R>>), failure: Failure) {
        self.station.departed(Departure::Dropped, 1);
        self.settle(extra, &failure);
        self.bury(item, failure);
    }

    /// Answers for an item that is not processed.
    fn settle(&self, extra: Option<Extra<R>>, failure: &Failure) {
        if let Some(Extra { reply, span }) = extra {
            self.user_code(|| reply.resolve(Err(failure.clone())));
            self.user_code(|| span.end());
        }
    }

    fn bury(&self, item: T, failure: Failure) {
        match &self.hooks.dead_letter {
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
            self.intake.hurry();
        }
    }

    pub(crate) fn flush(&self, deadline: Option<Instant>) -> Result<(), FlushError> {
        let own_thread = self.is_inside();
        // On its own thread it still ends the linger of what waits.
        let deadline = if own_thread { Some(self.clock().now()) } else { deadline };
        if self.intake.flush(deadline) {
            return Ok(());
        }
        Err(FlushError::new(self.intake.len(), self.intake.in_flight(), own_thread))
    }

    /// Closes, and waits until the thread has ended or `deadline` has come; on its own thread not at all.
    pub(crate) fn close(&self, deadline: Option<Instant>) -> Left<T, R> {
        let inside = self.is_inside();
        let no_time = inside || deadline.is_some_and(|deadline| deadline <= self.clock().now());
        let items = if no_time {
            self.intake.abandon()
        } else {
            self.intake.close();
            if self.crew.join(deadline).is_empty() {
                // Nothing is left, unless a thread has ended before its time.
                return Left { items: self.intake.take_back(), in_flight: 0, stuck: Vec::new() };
            }
            self.intake.take_back()
        };
        // Nothing is left to take: from here on the thread can only finish its batch and end. A batch that waits for another
        // attempt has had its last.
        let resting = self.wake_for_good();
        let busy = self.intake.in_flight() > resting;
        let stuck = if inside {
            Vec::new()
        } else {
            let patience = if busy { Duration::ZERO } else { WIND_UP };
            self.crew.join(self.clock().after(patience))
        };
        let in_flight = self.intake.in_flight();
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
        let items = items.into_iter().map(|(item, extra)| {
            self.settle(extra, &Failure::Closed);
            item
        });
        Undelivered::new(items.collect(), in_flight, stuck).into_result()
    }

    /// What was left has nobody to go back to. A panic of the hook or of a destructor costs no other item its dead letter.
    pub(crate) fn give_up(&self, left: Left<T, R>) -> Leftover {
        let mut report = Leftover::default();
        report.items = left.items.len();
        report.in_flight = left.in_flight;
        report.abandoned_threads = left.stuck;
        for item in left.items {
            self.user_code(|| self.discard(item, Failure::Closed));
        }
        report
    }

    /// Runs the user's destructors and hooks where a panic has nobody to go to.
    fn user_code(&self, f: impl FnOnce()) {
        self.events.contained(f);
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
            self.span.in_scope(|| self.shared.events.emit(Event::Panic, || &panicked));
            Outcomes::failed(panicked)
        });
        outcomes.checked(items, &self.shared.events)
    }

    fn judge(&self, failure: &Failure) -> Verdict {
        // They walk through the user's own errors.
        if !contain(|| failure.may_retry()).unwrap_or(false) {
            return Verdict::Settled;
        }
        if contain(|| failure.is_permanent()).unwrap_or(true) {
            return Verdict::Lasting;
        }
        let Some(retry_if) = &self.shared.hooks.retry_if else { return Verdict::Unknown };
        match contain(|| retry_if(failure)) {
            Ok(true) => Verdict::Passing,
            Ok(false) => Verdict::Lasting,
            Err(panicked) => {
                self.shared.events.emit(Event::Panic, || &panicked);
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
        self.span.in_scope(|| shared.events.emit(Event::Retry, || failure));
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
