//! The cache.

use std::convert::Infallible;
use std::error::Error;
use std::fmt;
use std::hash::Hash;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fullbore_core::{Clock, Close, Event, Events, Failure, Leftover, Undelivered};
use fullbore_metrics::{Departure, Outcome, Station, sampled};

use crate::config::{CacheBuilder, Config, Weigher};
use crate::entry::{Entry, Grave, Kept, NEVER};
use crate::error::{CacheError, LoadState};
use crate::flight::{Claim, Entered, Landing, Table};
use crate::load::LoadCtx;
use crate::stats::{CacheStats, Tally};
use crate::store::Held;

/// Values by key, a bounded number of them, each loaded once when it is missing. A cheap handle; clones share everything.
///
/// Values are cloned out: make large ones an `Arc`. The keys' `Hash`, `Eq`, `Clone` and `Drop` may run under a lock and must
/// not use the cache.
///
/// ```
/// use fullbore_cache::Cache;
///
/// let squares = Cache::<u64, u64>::builder().capacity(100).ttl(None).build()?;
/// squares.insert(3, 9);
/// assert_eq!(squares.get(&3), Some(9));
/// assert_eq!(squares.get_or_compute(&4, |_| Ok::<_, std::io::Error>(16))?, 16);
/// assert_eq!(squares.remove(&4), Some(16));
/// assert_eq!(squares.get(&4), None);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Cache<K, V> {
    shared: Arc<Shared<K, V>>,
}

struct Shared<K, V> {
    table: Table<K, V>,
    grave: Arc<Grave<V>>,
    weigher: Option<Weigher<K, V>>,
    config: Config,
    clock: Clock,
    tally: Tally,
    station: Station,
    events: Events,
}

impl<K, V> Cache<K, V> {
    /// Describes a cache.
    #[must_use]
    pub fn builder() -> CacheBuilder<K, V> {
        CacheBuilder::default()
    }
}

impl<K, V> Cache<K, V>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    pub(crate) fn start(
        config: Config,
        weigher: Option<Weigher<K, V>>,
        clock: Clock,
        station: Station,
        events: Events,
    ) -> Self {
        let tally = Tally::default();
        let table = Table::new(config.capacity, clock.clone(), Arc::clone(&tally.hits));
        let grave = Arc::new(Grave::new());
        Self { shared: Arc::new(Shared { table, grave, weigher, config, clock, tally, station, events }) }
    }

    /// The value, if it is there and has not expired. Waits for nobody.
    #[must_use]
    pub fn get(&self, key: &K) -> Option<V> {
        let shared = &*self.shared;
        let _burial = shared.burial();
        let entry = shared.table.get(key);
        if entry.is_some() {
            shared.tally.hits.inc();
        } else {
            shared.tally.misses.inc();
        }
        entry.map(|entry| entry.value().clone())
    }

    /// Puts a value in, in place of the one that is there, with the cache's TTL. It wins over every load of the key that is
    /// under way.
    pub fn insert(&self, key: K, value: V) {
        self.put(key, value, self.shared.config.ttl);
    }

    /// As [`insert`](Self::insert), with a TTL of its own. Zero: it is not kept, as if it had expired already; too long to
    /// represent: it never expires.
    pub fn insert_with_ttl(&self, key: K, value: V, ttl: Duration) {
        self.put(key, value, Some(ttl));
    }

    fn put(&self, key: K, value: V, ttl: Option<Duration>) {
        let shared = &*self.shared;
        let _burial = shared.burial();
        if ttl == Some(Duration::ZERO) {
            shared.table.remove(&key);
            return;
        }
        let kept = shared.weigh(&key, &value, ttl);
        shared.table.insert(key, Held::new(value, &shared.grave), kept);
    }

    /// Takes the value out and returns it if it was there. It wins over every load of the key that is under way: the value
    /// of such a load goes to those who wait for it already, and no further.
    pub fn remove(&self, key: &K) -> Option<V> {
        let shared = &*self.shared;
        let _burial = shared.burial();
        shared.table.remove(key).map(Held::into_value)
    }

    /// Forgets all values, and wins over every load that is under way, as [`remove`](Self::remove) does. Memory is given back
    /// by and by.
    pub fn clear(&self) {
        let _burial = self.shared.burial();
        self.shared.table.clear();
    }

    /// The value if it is there; otherwise that of `load`, which runs on this thread and is kept for the cache's TTL. If
    /// somebody loads the key already, waits for that load instead, for the load timeout (30 s unless set otherwise).
    ///
    /// `load` runs under no lock: it may use this cache, and borrow what it likes. What it says about the value goes through
    /// the [`LoadCtx`].
    ///
    /// # Errors
    /// The load's failure, shared by all who waited for it and kept for nobody else; timed out, closed, or re-entrant.
    ///
    /// # Panics
    /// If `load`, the weigher or the value's `Clone` does. Those who wait get [`Failure::Panicked`]; the key is free again.
    ///
    /// # Deadlock
    /// A load that asks for its own key is refused as re-entrant. Loads on several threads that need each other's keys wait
    /// for each other until the load timeout.
    pub fn get_or_compute<E>(&self, key: &K, load: impl FnOnce(&mut LoadCtx) -> Result<V, E>) -> Result<V, CacheError>
    where
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        self.compute(key, None, load)
    }

    /// As [`get_or_compute`](Self::get_or_compute), but waits for somebody else's load until `deadline`, and begins none
    /// itself once the deadline has passed. A load that has begun cannot be interrupted: it is told the deadline
    /// ([`LoadCtx::deadline`]).
    ///
    /// # Errors
    /// As [`get_or_compute`](Self::get_or_compute).
    ///
    /// # Panics
    /// As [`get_or_compute`](Self::get_or_compute).
    pub fn get_or_compute_deadline<E>(
        &self,
        key: &K,
        deadline: Instant,
        load: impl FnOnce(&mut LoadCtx) -> Result<V, E>,
    ) -> Result<V, CacheError>
    where
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        self.compute(key, Some(deadline), load)
    }

    #[inline]
    fn compute<E>(
        &self,
        key: &K,
        deadline: Option<Instant>,
        load: impl FnOnce(&mut LoadCtx) -> Result<V, E>,
    ) -> Result<V, CacheError>
    where
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        // C6: a hit is timed now and then.
        let since = sampled().then(Instant::now);
        match self.shared.table.get(key) {
            Some(held) => {
                let _burial = self.shared.burial();
                Ok(self.shared.hit(held, since))
            }
            None => self.compute_missing(key, deadline, since, load),
        }
    }

    #[cold]
    fn compute_missing<E>(
        &self,
        key: &K,
        deadline: Option<Instant>,
        since: Option<Instant>,
        load: impl FnOnce(&mut LoadCtx) -> Result<V, E>,
    ) -> Result<V, CacheError>
    where
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        let shared = &*self.shared;
        let _burial = shared.burial();
        let mut joined = None;
        let entered = shared.table.enter(key, shared.config.load_timeout, deadline, || {
            joined = Some(Instant::now());
            shared.tally.waits.inc();
            shared.station.arrived(1);
        });
        if !matches!(entered, Entered::Hit(_)) {
            shared.tally.misses.inc();
        }
        if let Some(joined) = joined {
            shared.station.waited(joined.elapsed());
        }
        match entered {
            Entered::Hit(entry) => Ok(shared.hit(entry, since)),
            Entered::Lead(claim) => shared.load(claim, key, deadline, load),
            Entered::Landed(landing) => shared.landed(landing),
            Entered::TimedOut { load_age, waiting } => {
                shared.tally.wait_timeouts.inc();
                shared.station.departed(Departure::Returned, 1);
                Err(shared.timed_out(Some(load_age), waiting))
            }
            Entered::TooLate => {
                shared.station.refused(1);
                Err(shared.timed_out(None, 0))
            }
            Entered::Refused(error) => {
                shared.station.refused(1);
                Err(error)
            }
        }
    }

    /// Begins no load from now on and wakes those who wait for one, with `Closed`. Loads that have begun end as usual, and
    /// values can still be read, inserted and removed. Idempotent.
    pub fn close(&self) {
        self.shared.table.close();
    }

    /// [`close`](Self::close), then waits for the loads that have begun, for at most `limit`.
    ///
    /// # Errors
    /// How many loads had not ended, if any had not. They go on, on their callers' threads.
    ///
    /// # Deadlock
    /// Called from within a load it waits for that load, until `limit`.
    pub fn close_within(&self, limit: Duration) -> Result<(), Undelivered<Infallible>> {
        let in_flight = self.shared.table.close_until(self.shared.clock.after(limit));
        Undelivered::new(Vec::new(), in_flight, Vec::new()).into_result()
    }

    /// The value, if it is there and has not expired, without a trace: neither the policy nor the counts learn of it.
    #[must_use]
    pub fn peek(&self, key: &K) -> Option<V> {
        let shared = &*self.shared;
        let _burial = shared.burial();
        shared.table.look(key).map(|(held, _)| held.into_value())
    }

    /// For how long the value will still be returned, if it is there: `Some(None)` if it does not expire. Leaves no trace.
    #[must_use]
    pub fn ttl_left(&self, key: &K) -> Option<Option<Duration>> {
        let shared = &*self.shared;
        let _burial = shared.burial();
        let expires = shared.table.look(key)?.1.expires;
        Some((expires != NEVER).then(|| Duration::from_nanos(expires.saturating_sub(shared.clock.coarse()))))
    }

    /// Changes the capacity, and displaces at once what is too much.
    pub fn resize(&self, capacity: u64) {
        let _burial = self.shared.burial();
        self.shared.table.resize(capacity);
    }

    /// What all entries weigh, which is never more than the capacity; without a weigher, how many there are.
    #[must_use]
    pub fn weight(&self) -> u64 {
        self.shared.table.weight()
    }

    /// How many entries there are, those included that have expired and that nobody has asked for since.
    #[must_use]
    pub fn entry_count(&self) -> u64 {
        let _burial = self.shared.burial();
        self.shared.table.count()
    }

    /// Hits, misses, loads and what became of them.
    #[must_use]
    pub fn stats(&self) -> CacheStats {
        self.shared.tally.read()
    }

    /// Its counts and times: an arrival is a call of [`get_or_compute`](Self::get_or_compute), waiting is waiting for
    /// somebody else's load, service is the load (or the hit, timed now and then).
    #[must_use]
    pub fn station(&self) -> &Station {
        &self.shared.station
    }
}

impl<K, V> Shared<K, V>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    #[inline]
    fn hit(&self, held: Held<V>, since: Option<Instant>) -> V {
        self.tally.hits.inc();
        if since.is_some() {
            self.station.arrived(1);
            let service = Service::begin(&self.station, since);
            let value = held.into_value();
            service.end(Outcome::Served);
            return value;
        }
        // Three counts in one, unless the value's `Clone` panics.
        let unless_it_panics = Passing(&self.station);
        let value = held.into_value();
        std::mem::forget(unless_it_panics);
        self.station.passed(1);
        value
    }

    fn load<E>(
        &self,
        claim: Claim<'_, K, V>,
        key: &K,
        deadline: Option<Instant>,
        load: impl FnOnce(&mut LoadCtx) -> Result<V, E>,
    ) -> Result<V, CacheError>
    where
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        self.tally.loads.inc();
        self.station.arrived(1);
        let service = Service::begin(&self.station, Some(Instant::now()));
        let mut ctx = LoadCtx::new(self.config.ttl, deadline);
        let loaded = catch_unwind(AssertUnwindSafe(|| {
            let value = load(&mut ctx).map_err(Failure::error)?;
            let kept = Kept { generation: claim.generation(), ..self.weigh(key, &value, ctx.ttl) };
            let entry = Entry::new(value.clone(), &self.grave);
            let held = Held::of(&entry);
            Ok::<_, Failure>((value, entry, held, kept))
        }));
        match loaded {
            Ok(Ok((value, entry, held, kept))) => {
                let keep = ctx.store && ctx.ttl != Some(Duration::ZERO);
                if !claim.land(&Ok(entry), keep.then_some((held, kept))) {
                    self.tally.invalidated_loads.inc();
                }
                service.end(Outcome::Served);
                Ok(value)
            }
            Ok(Err(failure)) => {
                self.tally.load_failures.inc();
                claim.land(&Err(CacheError::Load(failure.clone())), None);
                service.end(Outcome::Failed);
                Err(CacheError::Load(failure))
            }
            Err(payload) => {
                self.tally.load_failures.inc();
                let failure = Failure::panicked(&*payload);
                claim.land(&Err(CacheError::Load(failure.clone())), None);
                service.end(Outcome::Failed);
                self.events.emit(Event::Panic, || format!("a load {failure}"));
                resume_unwind(payload)
            }
        }
    }

    /// A call that waited gets what it waited for.
    fn landed(&self, landing: Landing<V>) -> Result<V, CacheError> {
        if let Err(CacheError::Closed) = landing {
            self.station.departed(Departure::Returned, 1);
            return Err(CacheError::Closed);
        }
        // The load was timed as the leader's service.
        let service = Service::begin(&self.station, None);
        let result = landing.map(|entry| entry.value().clone());
        service.end(if result.is_ok() { Outcome::Served } else { Outcome::Failed });
        result
    }

    fn weigh(&self, key: &K, value: &V, ttl: Option<Duration>) -> Kept {
        let weight = self.weigher.as_ref().map_or(1, |weigher| weigher(key, value).max(1));
        let expires = ttl.map_or(NEVER, |ttl| self.clock.coarse().saturating_add(nanos(ttl)));
        Kept { weight, expires, generation: 0 }
    }

    fn timed_out(&self, load_age: Option<Duration>, waiting: usize) -> CacheError {
        CacheError::TimedOut(Box::new(LoadState { name: self.config.name.clone(), load_age, waiting }))
    }
}

impl<K, V> Shared<K, V> {
    /// To be declared first in a call, so that it is dropped last: under no lock, and also when the call panics.
    fn burial(&self) -> Burial<'_, V> {
        Burial { grave: &self.grave, events: &self.events }
    }
}

/// Runs, at the end of a call, the destructors of values that have left the cache.
struct Burial<'a, V> {
    grave: &'a Grave<V>,
    events: &'a Events,
}

impl<V> Drop for Burial<'_, V> {
    #[inline]
    fn drop(&mut self) {
        // Values that lie in the table have no destructor.
        if std::mem::needs_drop::<V>() {
            self.grave.bury(self.events);
        }
    }
}

/// A call in service. Dropped without `end`, by a panicking `Clone`, it counts as failed.
struct Service<'a> {
    station: &'a Station,
    since: Option<Instant>,
    outcome: Outcome,
}

impl<'a> Service<'a> {
    fn begin(station: &'a Station, since: Option<Instant>) -> Self {
        station.began(1);
        Self { station, since, outcome: Outcome::Failed }
    }

    fn end(mut self, outcome: Outcome) {
        self.outcome = outcome;
    }
}

impl Drop for Service<'_> {
    fn drop(&mut self) {
        if let Some(since) = self.since {
            self.station.took(since.elapsed());
        }
        self.station.ended(self.outcome, 1);
    }
}

/// An untimed hit. Dropped, by a panicking `Clone`, it counts as failed.
struct Passing<'a>(&'a Station);

impl Drop for Passing<'_> {
    #[cold]
    fn drop(&mut self) {
        self.0.arrived(1);
        drop(Service::begin(self.0, None));
    }
}

impl<K, V> Clone for Cache<K, V> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<K, V> Close for Cache<K, V>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    fn name(&self) -> String {
        self.shared.config.name.clone()
    }

    fn close_within(&self, limit: Duration) -> Leftover {
        Cache::close_within(self, limit).into()
    }
}

impl<K, V> fmt::Debug for Cache<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache")
            .field("config", &self.shared.config)
            .field("stats", &self.shared.tally.read())
            .finish_non_exhaustive()
    }
}

/// For sums with the coarse time.
fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
