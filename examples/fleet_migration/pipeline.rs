//! The job itself: queue, limit, pool, cache, batch and fan-out put together.
//!
//! ```text
//! names -> queue of tenants -> worker (a permit of the limit) -> connection of the pool -> migrate, asking the cache
//!                                   |-> results: batch -> control database
//!                                   '-> events: fan-out -> progress bar, audit log, counters
//! ```

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use fullbore_batch::{BatchHandle, Batcher};
use fullbore_core::{Failure, Overflow, SendError, Shutdown};
use fullbore_examples::fleet::MigrateError;
use fullbore_examples::fleet::migrate::{migrate, open};
use fullbore_fanout::Router;
use fullbore_limit::Limit;
use fullbore_metrics::Registry;
use fullbore_pool::{ConnectError, GetError, KeyedManager, KeyedPool};
use fullbore_queue::{DeadLetter, Job, Producer, Queue, Verdict};
use rusqlite::Connection;

use crate::control::{CachedReference, Control, ResultRow, results};
use crate::events::{Listeners, TenantEvent, What, listen, tell};
use crate::place::{Place, TenantName};

/// Tenants that may wait in the queue.
const CAPACITY: usize = 1024;

/// Opens the database of a tenant by its name.
#[derive(Debug)]
struct TenantFiles {
    place: Arc<Place>,
}

impl KeyedManager<TenantName> for TenantFiles {
    type Connection = Connection;
    type Error = MigrateError;

    fn connect(&self, tenant: &TenantName, _: Duration) -> Result<Connection, MigrateError> {
        open(&self.place.tenant(tenant))
    }

    fn validate(&self, _: &TenantName, sqlite: &mut Connection, _: Duration) -> Result<(), MigrateError> {
        // A file on this machine does not hang up.
        sqlite.execute_batch("SELECT 1").map_err(MigrateError::from)
    }

    fn is_broken(&self, _: &TenantName, sqlite: &mut Connection) -> bool {
        !sqlite.is_autocommit()
    }
}

/// One tenant to migrate.
#[derive(Clone, Debug)]
pub(crate) struct Task {
    pub(crate) tenant: TenantName,
    /// The round that waits for it; the faulty tenants belong to none.
    pub(crate) round: Option<Arc<Round>>,
}

const MILLISECOND: Duration = Duration::from_millis(1);

/// Counts the tenants of a round that are not finished.
#[derive(Debug)]
pub(crate) struct Round {
    left: Mutex<usize>,
    changed: Condvar,
}

impl Round {
    pub(crate) fn of(tenants: usize) -> Arc<Self> {
        Arc::new(Self { left: Mutex::new(tenants), changed: Condvar::new() })
    }

    fn one_done(&self) {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        *left = left.saturating_sub(1);
        self.changed.notify_all();
    }

    /// Nobody waits for this round any more.
    pub(crate) fn abandon(&self) {
        *self.left.lock().unwrap_or_else(PoisonError::into_inner) = 0;
        self.changed.notify_all();
    }

    /// Waits until all are finished or the round was abandoned.
    pub(crate) fn wait(&self) {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        while *left > 0 {
            left = self.changed.wait(left).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// The first thing that went wrong for the whole run, not for one tenant. It also stops the run.
#[derive(Clone, Debug)]
pub(crate) struct Fatal {
    first: Arc<Mutex<Option<String>>>,
    shutdown: Shutdown,
}

impl Fatal {
    pub(crate) fn new(shutdown: &Shutdown) -> Self {
        Self { first: Arc::default(), shutdown: shutdown.clone() }
    }

    pub(crate) fn raise(&self, what: impl Into<String>) {
        self.first.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(|| what.into());
        self.shutdown.request();
    }

    fn is_stopping(&self) -> bool {
        self.shutdown.is_requested()
    }

    pub(crate) fn get(&self) -> Option<String> {
        self.first.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A tenant that could not be migrated.
#[derive(Clone, Debug)]
pub(crate) struct Dead {
    pub(crate) tenant: TenantName,
    pub(crate) reason: String,
}

/// What every worker needs.
#[derive(Debug)]
struct Desk {
    pool: KeyedPool<TenantName, TenantFiles>,
    reference: CachedReference,
    results: BatchHandle<ResultRow, ()>,
    router: Router<TenantEvent>,
    fatal: Fatal,
    dead: Mutex<Vec<Dead>>,
    /// Tenants that were never begun because the run was stopped.
    not_begun: AtomicUsize,
}

impl Desk {
    fn migrate(&self, job: &Job<Task>) -> Verdict {
        let tenant = &job.tenant;
        let outcome = match self.pool.get(tenant) {
            Ok(mut connection) => {
                let migrated = migrate(&mut connection, &self.reference);
                // Nobody comes back for this tenant: closed here and now, not by whoever needs its place next.
                connection.discard();
                migrated
            }
            Err(error) => Err(cannot_open(error)),
        };
        match outcome {
            Ok(migrated) => {
                let what = if migrated.already { What::Already } else { What::Migrated };
                self.finished(
                    &job.round,
                    ResultRow {
                        tenant: Arc::clone(tenant),
                        status: "migrated",
                        rows: migrated.rows,
                        attempts: job.attempt(),
                        reason: None,
                    },
                    TenantEvent::new(tenant, what, job.attempt()).rows(migrated.rows),
                );
                Verdict::Done
            }
            Err(error) if error.is_disk_full() => {
                self.fatal.raise(format!("the disk is full: make room and go on with --resume ({tenant}: {error})"));
                Verdict::dead(error)
            }
            Err(error) if error.is_transient() => {
                self.tell(TenantEvent::new(tenant, What::Retried, job.attempt()).reason(&error));
                Verdict::retry(error)
            }
            Err(error) => Verdict::dead(error),
        }
    }

    fn bury(&self, letter: DeadLetter<Task>) {
        let Task { tenant, round } = letter.item;
        let transient = letter.failure.downcast_ref::<MigrateError>().is_some_and(MigrateError::is_transient);
        if matches!(letter.failure, Failure::Closed) || (transient && self.fatal.is_stopping()) {
            // Taken back, or not tried again, because the run was stopped: its database is as it was.
            // ORDERING: Relaxed: read after the queue was closed, which joins the workers.
            self.not_begun.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let reason = letter.failure.to_string();
        let dead = Dead { tenant: Arc::clone(&tenant), reason: reason.clone() };
        self.dead.lock().unwrap_or_else(PoisonError::into_inner).push(dead);
        self.finished(
            &round,
            ResultRow {
                tenant: Arc::clone(&tenant),
                status: "dead",
                rows: 0,
                attempts: letter.attempts,
                reason: Some(reason.clone()),
            },
            TenantEvent::new(&tenant, What::Dead, letter.attempts).reason(&reason),
        );
    }

    fn finished(&self, round: &Option<Arc<Round>>, row: ResultRow, event: TenantEvent) {
        if let Err(refused) = self.results.send(row) {
            let reason = refused.reason();
            let tenant = refused.into_inner().tenant;
            self.fatal.raise(format!("the result of {tenant} was not taken: {reason}"));
        }
        self.tell(event);
        if let Some(round) = round {
            round.one_done();
        }
    }

    fn tell(&self, event: TenantEvent) {
        if let Err(error) = tell(&self.router, event) {
            self.fatal.raise(error);
        }
    }
}

fn cannot_open(error: GetError<MigrateError>) -> MigrateError {
    match error.into_connect_error() {
        Ok(ConnectError::Manager(error)) => MigrateError::Open(error),
        Ok(other) => MigrateError::Reference(Box::new(other)),
        // No connection within the timeout: worth another try, as if the database itself were locked.
        Err(refused) => MigrateError::Reference(Box::new(refused)),
    }
}

/// The running job.
pub(crate) struct Pipeline {
    pub(crate) limit: Limit,
    pub(crate) listeners: Listeners,
    pub(crate) registry: Registry,
    queue: Queue<Task>,
    results: Batcher<ResultRow, ()>,
    desk: Arc<Desk>,
}

impl Pipeline {
    pub(crate) fn start(
        place: &Arc<Place>,
        control: &Control,
        workers: usize,
        tenants: usize,
        fatal: &Fatal,
    ) -> Result<Self, String> {
        let text = |error: fullbore_core::BuildError| error.to_string();
        let failed = |fatal: &Fatal| {
            let fatal = fatal.clone();
            move |what: String| fatal.raise(what)
        };
        let limit = Limit::builder().name("migrations").permits(workers).build().map_err(text)?;
        let pool = KeyedPool::builder(TenantFiles { place: Arc::clone(place) })
            .name("tenants")
            .max_size(workers)
            .max_per_key(1)
            // The queue's own pause between two attempts is the one that counts.
            .backoff(MILLISECOND, MILLISECOND)
            .build()
            .map_err(text)?;
        let reference = CachedReference::new(control).map_err(text)?;
        let results = results(control, failed(fatal)).map_err(text)?;
        let listeners = listen(&place.audit(), tenants, failed(fatal))?;
        let desk = Arc::new(Desk {
            pool,
            reference,
            results: results.handle(),
            router: listeners.router.clone(),
            fatal: fatal.clone(),
            dead: Mutex::default(),
            not_begun: AtomicUsize::new(0),
        });
        let (worker, undertaker) = (Arc::clone(&desk), Arc::clone(&desk));
        let queue = Queue::builder()
            .name("migrate")
            .workers(workers)
            // A name and a pointer each: room for a whole round, so that the sender need not take turns with the workers.
            .capacity(CAPACITY)
            .overflow(Overflow::Block)
            .limit(&limit)
            // A lock is held for two seconds: ten attempts wait for longer than that.
            .max_attempts(10)
            .backoff(Duration::from_millis(100), Duration::from_secs(1))
            .dead_letter(move |letter| undertaker.bury(letter))
            .build(move |job| worker.migrate(job))
            .map_err(text)?;

        let registry = Registry::new();
        let station = queue.station();
        station.held_by(desk.pool.station());
        station.held_by(desk.reference.zones.station());
        station.held_by(desk.reference.carriers.station());
        station.feeds(results.station());
        station.feeds(listeners.router.station());
        desk.reference.zones.station().held_by(control.station());
        desk.reference.carriers.station().held_by(control.station());
        results.station().held_by(control.station());
        registry.add(station).add(limit.station()).add(desk.pool.station());
        registry.add(desk.reference.zones.station()).add(desk.reference.carriers.station());
        registry.add(results.station()).add(control.station()).add(listeners.router.station());
        for subscription in &listeners.subscriptions {
            registry.add(subscription.station());
        }
        Ok(Self { limit, listeners, registry, queue, results, desk })
    }

    /// Everything in the order in which it has to close.
    pub(crate) fn register(&self, shutdown: &Shutdown) {
        shutdown.register(self.queue.closer());
        shutdown.register(self.results.closer());
        shutdown.register(self.listeners.router.closer());
        shutdown.register(self.desk.pool.closer());
    }

    pub(crate) fn send(&self, task: Task) -> Result<(), SendError<Task>> {
        self.queue.send(task)
    }

    pub(crate) fn producer(&self) -> Producer<Task> {
        self.queue.producer()
    }

    /// Takes back what was not begun, at once; what is being migrated goes on.
    pub(crate) fn stop_beginning(&self) -> impl Fn() + Send + Sync + 'static {
        let closer = self.queue.closer();
        move || {
            // What it could not finish is counted in `not_begun`, or waited for by the shutdown.
            let _ = fullbore_core::Close::close_within(&closer, Duration::ZERO);
        }
    }

    /// Waits until the results so far are in the control database.
    pub(crate) fn flush_results(&self) -> Result<(), String> {
        self.results.flush_within(Duration::from_secs(30)).map_err(|error| error.to_string())
    }

    /// Waits until the queue has finished everything, retries included.
    pub(crate) fn drain(&self) {
        // Cut short by a stop, which the caller sees.
        let _ = self.queue.flush_within(Duration::from_secs(60));
    }

    pub(crate) fn dead(&self) -> Vec<Dead> {
        self.desk.dead.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn not_begun(&self) -> usize {
        self.desk.not_begun.load(Ordering::Relaxed)
    }

    pub(crate) fn station(&self) -> &fullbore_metrics::Station {
        self.queue.station()
    }

    pub(crate) fn results_station(&self) -> &fullbore_metrics::Station {
        self.results.station()
    }
}
