//! What producers, workers and the owner have in common: the way in, the dead letters, flush and close. `README.md` of the
//! crate has the protocol.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fullbore_core::{
    BuildError, CallerSpan, Crew, Entry as Entered, Event, Events, Failure, FlushError, Leftover, Monitor, Patience,
    SendError, Undelivered, contain,
};
use fullbore_limit::{AcquireError, Limit, Permit};
use fullbore_metrics::{Departure, Station, StationKind};

use crate::config::{Config, DeadLetterHook, Handler, QueueBuilder};
use crate::job::{DeadLetter, Job};
use crate::store::{Entry, Store};
use crate::worker;

/// Not the handler: producers may outlive the queue, and what the handler has captured should not.
pub(crate) struct Shared<J> {
    pub(crate) monitor: Monitor<Store<J>>,
    pub(crate) config: Config,
    pub(crate) limit: Option<Limit>,
    pub(crate) station: Station,
    pub(crate) events: Events,
    dead_letter: Option<DeadLetterHook<J>>,
    crew: Crew,
}

/// What a close left behind.
pub(crate) struct Left<J> {
    jobs: Vec<Job<J>>,
    in_flight: usize,
    stuck: Vec<String>,
}

impl<J: Send + 'static> Shared<J> {
    /// Without workers as yet.
    pub(crate) fn new(builder: QueueBuilder<J>) -> Self {
        let QueueBuilder { config, clock, limit, dead_letter } = builder;
        let station = Station::builder(config.name.clone())
            .kind(StationKind::Queue)
            .parallelism(config.workers)
            .capacity(config.capacity)
            .build();
        if let Some(limit) = &limit {
            station.held_by(limit.station());
        }
        Self {
            monitor: Monitor::new(Store::new(config.capacity), clock.clone()),
            limit,
            station,
            events: Events::new("queue", &config.name),
            dead_letter,
            crew: Crew::new("queue", &config.name, clock),
            config,
        }
    }

    pub(crate) fn spawn_worker(self: &Arc<Self>, handler: &Handler<J>) -> Result<(), BuildError> {
        let (shared, handler) = (Arc::clone(self), Arc::clone(handler));
        self.crew.spawn(move || worker::run(&shared, &handler))
    }

    pub(crate) fn send(&self, item: J, delay: Duration, patience: Patience) -> Result<(), SendError<J>> {
        // A worker that waits for room in its own queue would wait for itself.
        let patience = if self.crew.is_member() { Patience::Try } else { patience };
        // Asked now: a tracing subscriber is user code.
        let span = CallerSpan::current();
        let mut store = self.monitor.lock();
        let mut displaced = None;
        match store.enter(|store| &mut store.room, self.config.overflow, patience) {
            Err(reason) => {
                drop(store);
                self.station.refused(1);
                return Err(SendError::new(item, reason));
            }
            Ok(Entered::Displace) => match store.displace_oldest() {
                // The newcomer takes over the place of the displaced one.
                Some(oldest) => displaced = Some(oldest),
                // Every place belongs to a job in process: of those that wait, the newcomer is the oldest.
                None => {
                    let job = Job { item, id: store.next_id(), attempt: 0, accepted: store.now(), span };
                    drop(store);
                    self.station.arrived(1);
                    self.station.departed(Departure::Dropped, 1);
                    self.bury(job, Failure::Dropped);
                    return Ok(());
                }
            },
            Ok(_) => {}
        }
        let now = store.now();
        let id = store.open();
        let entry = Entry { job: Job { item, id, attempt: 0, accepted: now, span }, since: now };
        // C1: counted before a worker can see it.
        self.station.arrived(1);
        if delay.is_zero() {
            store.push_ready(entry);
        } else {
            store.push_delayed(worker::later(now, delay), entry);
        }
        worker::wake(&mut store);
        if displaced.is_some() {
            // Before the flush that may have waited for the displaced one.
            self.station.departed(Departure::Dropped, 1);
            store.notify_all(|store| &mut store.progress);
        }
        drop(store);
        if let Some(job) = displaced {
            self.bury(job, Failure::Dropped);
        }
        Ok(())
    }

    pub(crate) fn flush(&self, deadline: Option<Instant>) -> Result<(), FlushError> {
        let deadline = self.unless_own_thread(deadline);
        let mut store = self.monitor.lock();
        let target = store.next_id();
        if store.wait_until(|store| &mut store.progress, deadline, |store| store.finished_below(target)) {
            return Ok(());
        }
        Err(FlushError::new(store.waiting(), store.in_process(), self.crew.is_member()))
    }

    /// Closes and waits until everything is finished or `deadline` has come; on a worker's own thread not at all. What is
    /// left counts as `departure`.
    pub(crate) fn close(&self, deadline: Option<Instant>, departure: Departure) -> Left<J> {
        let deadline = self.unless_own_thread(deadline);
        let (jobs, busy) = {
            let mut store = self.monitor.lock();
            store.close_room(|store| &mut store.room);
            store.wait_until(|store| &mut store.progress, deadline, |store| store.is_drained());
            // Drained or out of time: either way nothing new is begun from here on.
            let jobs = store.give_up();
            store.leave(|store| &mut store.room, jobs.len());
            self.station.departed(departure, jobs.len());
            worker::wake_all(&mut store);
            store.notify_all(|store| &mut store.progress);
            (jobs, store.busy)
        };
        let stuck = if self.crew.is_member() {
            Vec::new()
        } else {
            // The others are in our own code and on their way out.
            self.crew.wait_for_all_but(busy);
            self.crew.join(deadline)
        };
        let in_flight = self.monitor.lock().in_process();
        if !jobs.is_empty() || !stuck.is_empty() {
            let detail = || format!("{} jobs not begun, {in_flight} in process", jobs.len());
            self.tell(&CallerSpan::default(), Event::Abandoned, detail);
        }
        Left { jobs, in_flight, stuck }
    }

    /// What was left goes back to whoever closed.
    pub(crate) fn close_and_return(&self, deadline: Option<Instant>) -> Result<(), Undelivered<J>> {
        let Left { jobs, in_flight, stuck } = self.close(deadline, Departure::Returned);
        let items = jobs.into_iter().map(|job| job.item).collect();
        Undelivered::new(items, in_flight, stuck).into_result()
    }

    /// What was left has nobody to go back to.
    pub(crate) fn close_and_bury(&self, deadline: Option<Instant>) -> Leftover {
        let Left { jobs, in_flight, stuck } = self.close(deadline, Departure::Dropped);
        let mut report = Leftover::default();
        report.items = jobs.len();
        report.in_flight = in_flight;
        report.abandoned_threads = stuck;
        for job in jobs {
            self.user_code("the dead-letter hook", || self.bury(job, Failure::Closed));
        }
        report
    }

    /// A worker that waits for its own queue would wait for itself.
    fn unless_own_thread(&self, deadline: Option<Instant>) -> Option<Instant> {
        if self.crew.is_member() { Some(self.monitor.clock().now()) } else { deadline }
    }
}

impl<J> Shared<J> {
    /// Hands a job that nobody will do to the hook. That is user code, and so is the item's destructor.
    pub(crate) fn bury(&self, job: Job<J>, failure: Failure) {
        let Job { item, attempt: attempts, span, .. } = job;
        let event = match failure {
            Failure::Dropped | Failure::Closed => Event::Drop,
            _ => Event::DeadLetter,
        };
        self.tell(&span, event, || format!("{attempts} attempts: {failure}"));
        match &self.dead_letter {
            Some(hook) => hook(DeadLetter { item, attempts, failure }),
            None => {
                // One after the other: two panics in one drop would abort.
                self.user_code("dropping a failure", || drop(failure));
                drop(item);
            }
        }
    }

    /// Emits an event. Its text may be the user's, and the subscriber is: neither may end a thread of ours.
    pub(crate) fn tell<D: fmt::Display>(&self, span: &CallerSpan, event: Event, detail: impl FnOnce() -> D) {
        contain(|| span.in_scope(|| self.events.emit(event, detail))).ok();
    }

    /// Runs the user's hooks and destructors where a panic has nobody to go to.
    pub(crate) fn user_code(&self, what: &str, f: impl FnOnce()) {
        if let Err(panicked) = contain(f) {
            self.tell(&CallerSpan::default(), Event::Panic, || format!("{what}: {panicked}"));
        }
    }

    /// A permit of the limit, if there is one.
    pub(crate) fn permit(&self) -> Result<Option<Permit>, AcquireError> {
        self.limit.as_ref().map(Limit::acquire).transpose()
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.monitor.lock().room.is_closed()
    }
}
