//! What the handles of a cache share, and what its calls do.

use std::hash::Hash;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fullbore_core::{Clock, Event, Events, Failure};
use fullbore_metrics::{Departure, Outcome, Station};

use crate::claim::{Claim, Keep};
use crate::config::{Config, Weigher};
use crate::entry::{Entry, Grave, Kept};
use crate::error::{CacheError, LoadState};
use crate::flight::{Behind, Call, Entered, Table};
#[cfg(feature = "redis")]
use crate::joined::Second;
use crate::life::Life;
use crate::load::{LoadCtx, Previous, Says};
use crate::stats::Tally;
use crate::store::{Held, Look};
use crate::world::{Age, Tag};

pub(crate) struct Shared<K, V> {
    pub(crate) table: Table<K, V>,
    pub(crate) grave: Arc<Grave<V>>,
    pub(crate) weigher: Option<Weigher<K, V>>,
    pub(crate) config: Config,
    pub(crate) life: Life,
    pub(crate) clock: Clock,
    pub(crate) tally: Tally,
    pub(crate) station: Station,
    pub(crate) events: Events,
    #[cfg(feature = "redis")]
    pub(crate) second: Option<Second<K, V>>,
}

impl<K, V> Shared<K, V>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    #[inline]
    pub(crate) fn hit(&self, held: Held<V>, since: Option<Instant>) -> V {
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

    /// A look that found nothing fresh in memory.
    #[cold]
    pub(crate) fn get_missing(&self, key: &K) -> Option<V> {
        #[cfg(feature = "redis")]
        if let Some(second) = &self.second {
            return self.get_joined(second, key);
        }
        let _ = key;
        self.tally.misses.inc();
        None
    }

    pub(crate) fn has_second(&self) -> bool {
        #[cfg(feature = "redis")]
        return self.second.is_some();
        #[cfg(not(feature = "redis"))]
        false
    }

    /// Closes the second tier; returns the threads that have not ended.
    pub(crate) fn close_second(&self, deadline: Option<Instant>) -> Vec<String> {
        #[cfg(feature = "redis")]
        if let Some(second) = &self.second {
            let limit = deadline.map_or(Duration::MAX, |at| at.saturating_duration_since(self.clock.now()));
            return second.close_within(limit, &self.events);
        }
        let _ = deadline;
        Vec::new()
    }

    /// What a longer look finds that is fresh.
    #[cold]
    pub(crate) fn fresh(&self, key: &K) -> Option<Held<V>> {
        match self.table.get(key) {
            Look::Live(held) | Look::Aged(held, _, Age::Early) => Some(held),
            Look::Aged(..) | Look::Dead | Look::Nothing => None,
        }
    }

    /// A call that found nothing fresh. `since` is when it began, if it is timed.
    #[cold]
    pub(crate) fn missing(
        &self,
        key: &K,
        deadline: Option<Instant>,
        since: Option<Instant>,
        behind: Option<Behind<'_, K>>,
        load: impl FnOnce(&mut LoadCtx) -> Result<V, Failure>,
    ) -> Result<V, CacheError> {
        let (entered, joined) = self.enter(key, deadline, behind, false);
        match entered {
            Entered::Hit(held) => Ok(self.found(held, since, joined)),
            Entered::Lead(claim, old) => {
                if joined {
                    self.waited_in_vain();
                }
                self.load(claim, old, deadline, load)
            }
            other => self.without_a_load(other, joined),
        }
    }

    /// The value was there at the second look, or came while the call waited.
    pub(crate) fn found(&self, held: Held<V>, since: Option<Instant>, joined: bool) -> V {
        if !joined {
            return self.hit(held, since);
        }
        self.tally.hits.inc();
        self.served(|| held.into_value())
    }

    /// For a load that hung or was removed: the call's own load is another arrival.
    pub(crate) fn waited_in_vain(&self) {
        self.station.departed(Departure::Returned, 1);
    }

    /// Counts, too.
    pub(crate) fn enter<'a>(
        &'a self,
        key: &'a K,
        deadline: Option<Instant>,
        behind: Option<Behind<'_, K>>,
        no_wait: bool,
    ) -> (Entered<'a, K, V>, bool) {
        let (timeout, soft) = (self.config.load_timeout, self.config.soft_timeout);
        let mut joined = None;
        let entered = self.table.enter(key, &Call { timeout, deadline, soft, no_wait, look: false, behind }, || {
            joined = Some(Instant::now());
            self.tally.waits.inc();
            self.station.arrived(1);
        });
        if !matches!(entered, Entered::Hit(_) | Entered::Busy) {
            self.tally.misses.inc();
        }
        if let Some(joined) = joined {
            self.station.waited(joined.elapsed());
        }
        (entered, joined.is_some())
    }

    /// What a call gets that is neither to load nor served from the table.
    pub(crate) fn without_a_load(&self, entered: Entered<'_, K, V>, joined: bool) -> Result<V, CacheError> {
        let arrive = || {
            if !joined {
                self.station.arrived(1);
            }
        };
        let refuse = |error| {
            if joined {
                self.station.departed(Departure::Returned, 1);
            } else {
                self.station.refused(1);
            }
            Err(error)
        };
        match entered {
            Entered::Landed(entry) => Ok(self.served(|| entry.value().clone())),
            Entered::StoodIn(entry) => {
                self.tally.stale_hits.inc();
                Ok(self.served(|| entry.value().clone()))
            }
            Entered::Stale(held) => {
                arrive();
                self.tally.stale_hits.inc();
                Ok(self.served(|| held.into_value()))
            }
            Entered::Failed(CacheError::Closed) => refuse(CacheError::Closed),
            Entered::Failed(error) => {
                if !joined {
                    self.tally.error_hits.inc();
                }
                arrive();
                Service::begin(&self.station, None).end(Outcome::Failed);
                Err(error)
            }
            Entered::TimedOut { load_age, waiting } => {
                self.tally.wait_timeouts.inc();
                refuse(self.timed_out(Some(load_age), waiting))
            }
            Entered::TooLate => refuse(self.timed_out(None, 0)),
            Entered::Refused(error) => {
                if error.is_overloaded() {
                    self.tally.refreshes_dropped.inc();
                }
                refuse(error)
            }
            // Callers deal with these.
            Entered::Hit(held) => Ok(self.hit(held, None)),
            Entered::Lead(..) | Entered::Busy => refuse(CacheError::cut_short()),
        }
    }

    /// What somebody else's load brought, which was timed as its leader's service.
    pub(crate) fn served(&self, value: impl FnOnce() -> V) -> V {
        let service = Service::begin(&self.station, None);
        let value = value();
        service.end(Outcome::Served);
        value
    }

    /// A load on the calling thread, for its own sake or for that of others.
    pub(crate) fn load(
        &self,
        claim: Claim<'_, K, V>,
        old: Option<(Held<V>, Kept)>,
        deadline: Option<Instant>,
        load: impl FnOnce(&mut LoadCtx) -> Result<V, Failure>,
    ) -> Result<V, CacheError> {
        match self.load_for(claim, old, deadline, load)? {
            Loaded::New(value) => Ok(value),
            Loaded::Old(entry) => {
                self.tally.stale_hits.inc();
                Ok(entry.value().clone())
            }
        }
    }

    pub(crate) fn load_for(
        &self,
        claim: Claim<'_, K, V>,
        old: Option<(Held<V>, Kept)>,
        deadline: Option<Instant>,
        load: impl FnOnce(&mut LoadCtx) -> Result<V, Failure>,
    ) -> Result<Loaded<V>, CacheError> {
        #[cfg(feature = "redis")]
        if let Some(second) = &self.second {
            return self.load_joined(second, claim, old, deadline, load);
        }
        self.tally.loads.inc();
        self.station.arrived(1);
        let service = Service::begin(&self.station, Some(Instant::now()));
        let begun = self.clock.now();
        let mut ctx = LoadCtx::new(deadline, old.as_ref().map(previous));
        let loaded = catch_unwind(AssertUnwindSafe(|| {
            let value = load(&mut ctx)?;
            let took = self.clock.now().saturating_duration_since(begun);
            let entry = Entry::new(value.clone(), &self.grave);
            let keep = self.keep(claim.key(), &entry, std::mem::take(&mut ctx.says), took);
            Ok::<_, Failure>((value, entry, keep))
        }));
        match loaded {
            Ok(Ok((value, entry, keep))) => {
                if !claim.land(&entry, keep) {
                    self.tally.invalidated_loads.inc();
                }
                service.end(Outcome::Served);
                Ok(Loaded::New(value))
            }
            Ok(Err(failure)) => {
                self.tally.load_failures.inc();
                let error = CacheError::Load(failure);
                let stand_in = self.failed(claim, &error, old, &ctx.says);
                service.end(if stand_in.is_some() { Outcome::Served } else { Outcome::Failed });
                stand_in.map_or(Err(error), |entry| Ok(Loaded::Old(entry)))
            }
            Err(payload) => {
                self.tally.load_failures.inc();
                let failure = Failure::panicked(&*payload);
                self.events.emit(Event::Panic, || format!("a load {failure}"));
                self.failed(claim, &CacheError::Load(failure), old, &ctx.says);
                service.end(Outcome::Failed);
                resume_unwind(payload)
            }
        }
    }

    /// Ends a flight whose load failed; returns what stands in for its value.
    pub(crate) fn failed(
        &self,
        claim: Claim<'_, K, V>,
        error: &CacheError,
        old: Option<(Held<V>, Kept)>,
        says: &Says,
    ) -> Option<Arc<Entry<V>>> {
        claim.fail(error, says.retry_after.unwrap_or(self.config.error_ttl), old, &self.grave)
    }

    /// What a loaded value leaves in the store.
    pub(crate) fn keep(&self, key: &K, entry: &Arc<Entry<V>>, mut says: Says, took: Duration) -> Keep<V> {
        let world = &self.table.world;
        let tags = world.tags(says.tags.take().unwrap_or_default());
        match self.kept(key, entry.value(), says, &tags, took) {
            Some(kept) => Keep::Entry(Held::of(entry), kept),
            None => Keep::Nothing(tags),
        }
    }

    /// How a value is to be kept; `None`: not at all.
    fn kept(&self, key: &K, value: &V, says: Says, tags: &[Arc<Tag>], took: Duration) -> Option<Kept> {
        let kept = self.life.kept(&self.table.world, says, tags, took)?;
        let weight = self.weigher.as_ref().map_or(1, |weigher| weigher(key, value).max(1));
        Some(Kept { weight, ..kept })
    }

    /// Puts a value in; one that is not to be kept removes what is there.
    pub(crate) fn put(&self, key: K, value: V, mut says: Says, above: Option<u64>) -> bool {
        #[cfg(feature = "redis")]
        if let Some(second) = &self.second {
            return self.put_joined(second, key, value, says, above);
        }
        let tags = self.table.world.tags(says.tags.take().unwrap_or_default());
        match self.kept(&key, &value, says, &tags, Duration::ZERO) {
            Some(kept) => self.table.insert(key, Held::new(value, &self.grave), kept, above),
            None => {
                self.table.remove(&key);
                true
            }
        }
    }

    /// As `put`, here only.
    #[cfg(feature = "redis")]
    pub(crate) fn put_here(&self, key: K, entry: &Arc<Entry<V>>, says: Says) -> bool {
        match self.keep(&key, entry, says, Duration::ZERO) {
            Keep::Entry(held, kept) => self.table.insert(key, held, kept, None),
            Keep::Nothing(_) => {
                self.table.remove(&key);
                true
            }
        }
    }

    /// For how long an entry is fresh.
    #[cfg(feature = "redis")]
    pub(crate) fn fresh_left(&self, kept: &Kept) -> Duration {
        Duration::from_nanos(kept.fresh_until().saturating_sub(self.table.world.now()))
    }

    /// Removes it, from wherever it is.
    pub(crate) fn take(&self, key: &K) -> Option<Held<V>> {
        #[cfg(feature = "redis")]
        if let Some(second) = &self.second {
            return self.remove_joined(second, key).0;
        }
        self.table.remove(key)
    }

    pub(crate) fn timed_out(&self, load_age: Option<Duration>, waiting: usize) -> CacheError {
        CacheError::TimedOut(Box::new(LoadState { name: self.config.name.clone(), load_age, waiting }))
    }
}

/// What a load brought.
pub(crate) enum Loaded<V> {
    New(V),
    /// It failed, and this stands in.
    Old(Arc<Entry<V>>),
}

/// What a load learns of the value that it is to replace.
pub(crate) fn previous<V: Clone + Send + Sync + 'static>((held, kept): &(Held<V>, Kept)) -> Previous {
    let more = kept.more.as_deref();
    Previous {
        held: Box::new(held.clone()),
        etag: more.and_then(|more| more.etag.clone()),
        tags: more.map_or_else(Vec::new, |more| more.tags.iter().map(|tag| Arc::clone(&tag.name)).collect()),
        version: more.map_or(0, |more| more.version),
        negative: more.is_some_and(|more| more.negative),
    }
}

impl<K, V> Shared<K, V> {
    /// To be declared first in a call, so that it is dropped last: under no lock, and also when the call panics.
    pub(crate) fn burial(&self) -> Burial<'_, V> {
        Burial { grave: &self.grave, events: &self.events }
    }
}

/// Runs, at the end of a call, the destructors of values that have left the cache.
pub(crate) struct Burial<'a, V> {
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
pub(crate) struct Service<'a> {
    station: &'a Station,
    since: Option<Instant>,
    outcome: Outcome,
    count: usize,
}

impl<'a> Service<'a> {
    pub(crate) fn begin(station: &'a Station, since: Option<Instant>) -> Self {
        Self::begin_many(station, since, 1)
    }

    /// So many at once: timed as one.
    pub(crate) fn begin_many(station: &'a Station, since: Option<Instant>, count: usize) -> Self {
        station.began(count);
        Self { station, since, outcome: Outcome::Failed, count }
    }

    pub(crate) fn end(mut self, outcome: Outcome) {
        self.outcome = outcome;
    }
}

impl Drop for Service<'_> {
    fn drop(&mut self) {
        if let Some(since) = self.since {
            self.station.took(since.elapsed());
        }
        self.station.ended(self.outcome, self.count);
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
