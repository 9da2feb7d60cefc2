//! The cache.

use std::convert::Infallible;
use std::error::Error;
use std::fmt;
use std::hash::Hash;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fullbore_core::{Close, Failure, Leftover, Undelivered};
use fullbore_metrics::{Station, sampled};

use crate::config::CacheBuilder;
use crate::error::CacheError;
use crate::load::{LoadCtx, Says};
use crate::metadata::Metadata;
use crate::shared::Shared;
use crate::stats::CacheStats;
use crate::store::{Held, Quick};
use crate::world::Age;

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
    pub(crate) shared: Arc<Shared<K, V>>,
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
    pub(crate) fn start(shared: Shared<K, V>) -> Self {
        let shared = Arc::new(shared);
        #[cfg(feature = "redis")]
        if let Some(second) = &shared.second {
            second.attach(&shared);
        }
        Self { shared }
    }

    /// The value, if it is there and has not expired. Waits for nobody.
    #[must_use]
    pub fn get(&self, key: &K) -> Option<V> {
        let shared = &*self.shared;
        let _burial = shared.burial();
        let found = match shared.table.quick(key) {
            Quick::Fresh(held) => Some(held),
            Quick::Unclear => shared.fresh(key),
            Quick::Nothing => None,
        };
        match found {
            Some(held) => {
                shared.tally.hits.inc();
                Some(held.into_value())
            }
            None => shared.get_missing(key),
        }
    }

    /// Puts a value in, in place of the one that is there, with the cache's TTL. It wins over every load of the key that is
    /// under way.
    pub fn insert(&self, key: K, value: V) {
        let _burial = self.shared.burial();
        self.shared.put(key, value, Says::default(), None);
    }

    /// As [`insert`](Self::insert), with a TTL of its own. Zero: it is not kept, as if it had expired already; too long to
    /// represent: it never expires.
    pub fn insert_with_ttl(&self, key: K, value: V, ttl: Duration) {
        self.insert_with(key, value, |ctx| ctx.ttl(ttl));
    }

    /// As [`insert`](Self::insert); `say` tells how the value is to be kept, with the words that a load has for it: TTL, tags, an etag, ...
    ///
    /// ```
    /// # use fullbore_cache::Cache;
    /// let pages = Cache::<u32, &str>::builder().build()?;
    /// pages.insert_with(1, "start", |ctx| ctx.tags(["site:7"]));
    /// pages.remove_by_tag("site:7");
    /// assert_eq!(pages.get(&1), None);
    /// # Ok::<(), fullbore_core::BuildError>(())
    /// ```
    pub fn insert_with(&self, key: K, value: V, say: impl FnOnce(&mut LoadCtx)) {
        let _burial = self.shared.burial();
        let mut ctx = LoadCtx::new(None, None);
        say(&mut ctx);
        self.shared.put(key, value, ctx.says, None);
    }

    /// As [`insert`](Self::insert), unless the value that is there has the same or a higher version: for changes that may arrive
    /// in another order than they were made in; `false` then. A version that was removed or displaced is not remembered; 0
    /// is what a value has that was given none. A second tier knows no versions: with one this compares with what is in memory, and is of little
    /// use.
    pub fn insert_version(&self, key: K, value: V, version: u64) -> bool {
        let _burial = self.shared.burial();
        self.shared.put(key, value, Says { version, ..Says::default() }, Some(version))
    }

    /// Takes the value out and returns it if it was there and fresh. It wins over every load of the key that is under way: the value
    /// of such a load goes to those who wait for it already, and no further.
    pub fn remove(&self, key: &K) -> Option<V> {
        let shared = &*self.shared;
        let _burial = shared.burial();
        shared.take(key).map(Held::into_value)
    }

    /// Forgets the values that bear the tag ([`LoadCtx::tags`]), however many there are, in one step; their memory is given back by and
    /// by. It wins over every load under way that turns out to bear it: the value of such a load goes to those who waited for it
    /// already, and no further. Costs every entry a longer look at its next hit.
    pub fn remove_by_tag(&self, tag: &str) {
        let _burial = self.shared.burial();
        #[cfg(feature = "redis")]
        if let Some(second) = &self.shared.second {
            // Told of, and owed.
            let _ = self.shared.remove_tag_joined(second, tag);
            return;
        }
        self.shared.table.remove_tag(tag);
    }

    /// Forgets all values, and wins over every load that is under way, as [`remove`](Self::remove) does. Memory is given back
    /// by and by.
    pub fn clear(&self) {
        let _burial = self.shared.burial();
        #[cfg(feature = "redis")]
        if let Some(second) = &self.shared.second {
            // Told of, and owed.
            let _ = self.shared.clear_joined(second);
            return;
        }
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
        let shared = &*self.shared;
        let _burial = shared.burial();
        let found = match shared.table.quick(key) {
            Quick::Fresh(held) => Some(held),
            Quick::Unclear => shared.fresh(key),
            Quick::Nothing => None,
        };
        match found {
            Some(held) => Ok(shared.hit(held, since)),
            None => shared.missing(key, deadline, since, None, |ctx| load(ctx).map_err(Failure::error)),
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
        let deadline = self.shared.clock.after(limit);
        let in_flight = self.shared.table.close_until(deadline);
        Undelivered::new(Vec::new(), in_flight, self.shared.close_second(deadline)).into_result()
    }

    /// The value, if it is there and has not expired, without a trace: neither the policy nor the counts learn of it.
    #[must_use]
    pub fn peek(&self, key: &K) -> Option<V> {
        let shared = &*self.shared;
        let _burial = shared.burial();
        let (held, _, age) = shared.table.look(key)?;
        (age != Age::Stale).then(|| held.into_value())
    }

    /// The value, also one that is stale ([`stale_for`](crate::CacheBuilder::stale_for)). Leaves no trace.
    #[must_use]
    pub fn peek_stale(&self, key: &K) -> Option<V> {
        let shared = &*self.shared;
        let _burial = shared.burial();
        shared.table.look(key).map(|(held, ..)| held.into_value())
    }

    /// For how long the value will still be fresh, if it is there: `Some(None)` if it does not expire. A time to idle may end it before.
    /// Leaves no trace.
    #[must_use]
    pub fn ttl_left(&self, key: &K) -> Option<Option<Duration>> {
        self.metadata(key).filter(|metadata| !metadata.is_stale).map(|metadata| metadata.ttl_left)
    }

    /// What is known of an entry, also of a stale one. Leaves no trace.
    #[must_use]
    pub fn metadata(&self, key: &K) -> Option<Metadata> {
        let shared = &*self.shared;
        let _burial = shared.burial();
        let (_, kept, age) = shared.table.look(key)?;
        Some(Metadata::of(&kept, age, &shared.table.world))
    }

    /// As [`remove`](Self::remove), and says whether it reached Redis. If it did not, other processes may see the value until it does: it is
    /// tried again when Redis can be asked, before anything from there is trusted.
    ///
    /// # Errors
    /// Why Redis could not be asked.
    #[cfg(feature = "redis")]
    pub fn try_remove(&self, key: &K) -> Result<Option<V>, crate::redis::TierError> {
        let shared = &*self.shared;
        let _burial = shared.burial();
        let (held, told) = match &shared.second {
            Some(second) => shared.remove_joined(second, key),
            None => (shared.table.remove(key), Ok(())),
        };
        let value = held.map(Held::into_value);
        told.map(|()| value)
    }

    /// As [`remove_by_tag`](Self::remove_by_tag), and says whether it reached Redis, as [`try_remove`](Self::try_remove) does.
    ///
    /// # Errors
    /// Why Redis could not be asked.
    #[cfg(feature = "redis")]
    pub fn try_remove_by_tag(&self, tag: &str) -> Result<(), crate::redis::TierError> {
        let shared = &*self.shared;
        let _burial = shared.burial();
        match &shared.second {
            Some(second) => shared.remove_tag_joined(second, tag),
            None => {
                shared.table.remove_tag(tag);
                Ok(())
            }
        }
    }

    /// As [`clear`](Self::clear), and says whether it reached Redis, as [`try_remove`](Self::try_remove) does.
    ///
    /// # Errors
    /// Why Redis could not be asked.
    #[cfg(feature = "redis")]
    pub fn try_clear(&self) -> Result<(), crate::redis::TierError> {
        let shared = &*self.shared;
        let _burial = shared.burial();
        match &shared.second {
            Some(second) => shared.clear_joined(second),
            None => {
                shared.table.clear();
                Ok(())
            }
        }
    }

    /// What became of the questions to Redis; `None` without a second tier.
    #[cfg(feature = "redis")]
    #[must_use]
    pub fn tier_stats(&self) -> Option<crate::redis::TierStats> {
        self.shared.second.as_ref().map(|second| second.remote.stats())
    }

    /// Changes the capacity, and displaces at once what is too much. How many threads can work at once was decided when it was built: one for
    /// every 64 entries at most.
    pub fn resize(&self, capacity: u64) {
        let _burial = self.shared.burial();
        self.shared.table.store.resize(capacity);
    }

    /// What all entries weigh, which is never more than the capacity; without a weigher, how many there are.
    #[must_use]
    pub fn weight(&self) -> u64 {
        self.shared.table.store.weight()
    }

    /// How many entries there are, those included that have expired and that nobody has asked for since.
    #[must_use]
    pub fn entry_count(&self) -> u64 {
        let _burial = self.shared.burial();
        self.shared.table.store.count()
    }

    /// Hits, misses, loads and what became of them.
    #[must_use]
    pub fn stats(&self) -> CacheStats {
        let table = &self.shared.table;
        let (hand_overs, abandoned) = (table.hand_overs.get(), table.abandoned() as u64);
        CacheStats { hand_overs, abandoned, ..self.shared.tally.read() }
    }

    /// Its counts and times: an arrival is a call of [`get_or_compute`](Self::get_or_compute), waiting is waiting for
    /// somebody else's load, service is the load (or the hit, timed now and then).
    #[must_use]
    pub fn station(&self) -> &Station {
        &self.shared.station
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
