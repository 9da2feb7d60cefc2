//! A cache that can load by itself.

use std::convert::Infallible;
use std::fmt;
use std::hash::Hash;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use fullbore_core::{
    BuildError, Close, Crew, Event, Failure, Inbox, Leftover, OnDrop, Overflow, Patience, Ready, Undelivered, contain,
    earlier,
};
use fullbore_metrics::sampled;

use crate::cache::Cache;
use crate::config::Loader;
use crate::error::CacheError;
use crate::flight::{Behind, Flight};
use crate::shared::{Loaded, Shared};
use crate::store::{Look, Quick};
use crate::world::Age;

/// A [`Cache`] with a loader of its own, which it can also use without anybody's waiting: values are loaded again shortly before they
/// expire, a stale one stands in for a load that takes too long, and calls can leave a load that hangs. A cheap handle; clones share
/// everything, and the last one ends its threads.
///
/// It has all that a [`Cache`] has.
///
/// ```
/// use fullbore_cache::Cache;
/// use std::time::Duration;
///
/// let pages = Cache::<u32, String>::builder()
///     .ttl(Duration::from_secs(60))
///     .stale_for(Duration::from_secs(3600))
///     .soft_timeout(Duration::from_millis(50))
///     .error_ttl(Duration::from_secs(2))
///     .loader(|id, ctx| {
///         ctx.tags([format!("section:{}", id / 100)]);
///         Ok::<_, std::io::Error>(format!("page {id}")) // something slow
///     })
///     .build()?;
/// assert_eq!(pages.get_or_load(&7)?, "page 7");
/// pages.remove_by_tag("section:0");
/// assert_eq!(pages.get(&7), None);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct LoadingCache<K, V>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    cache: Cache<K, V>,
    engine: Arc<Engine<K, V>>,
}

/// The threads, and what they share with the calls. Not counted by them.
struct Engine<K, V>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    shared: Arc<Shared<K, V>>,
    loader: Loader<K, V>,
    queue: Arc<Inbox<Job<K>>>,
    crew: Crew,
    on_drop: OnDrop,
    /// Threads that were started because others hang, and of which as many will end.
    extra: Arc<AtomicUsize>,
}

/// A load that a call has begun and left to a thread of ours.
struct Job<K> {
    key: K,
    hash: u64,
    flight: Arc<Flight>,
}

impl<K, V> LoadingCache<K, V>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    pub(crate) fn start(cache: Cache<K, V>, loader: Loader<K, V>) -> Result<Self, BuildError> {
        let shared = Arc::clone(&cache.shared);
        let config = &shared.config;
        let queue = Arc::new(Inbox::new(config.refresh_queue, Overflow::Reject, shared.clock.clone()));
        let crew = Crew::new("cache", &config.name, shared.clock.clone());
        let on_drop = config.on_drop;
        let engine = Arc::new(Engine { loader, queue, crew, on_drop, shared, extra: Arc::default() });
        for _ in 0..engine.shared.config.refresh_threads {
            engine.spawn()?;
        }
        Ok(Self { cache, engine })
    }

    /// The value if it is there; otherwise the loader's. If somebody loads the key already, waits for that load instead. Where the load
    /// runs, and for how long this call waits for it, is said by [`soft_timeout`](crate::CacheBuilder::soft_timeout) and
    /// [`hard_timeout`](crate::CacheBuilder::hard_timeout).
    ///
    /// # Errors
    /// The load's failure, if there is no stale value to stand in; timed out, closed, re-entrant; or overloaded, where loads
    /// run in the background and too many wait.
    ///
    /// # Panics
    /// If the loader, the weigher or the value's `Clone` does on this thread.
    ///
    /// # Deadlock
    /// As [`Cache::get_or_compute`].
    ///
    /// [`get`](Cache::get) never loads.
    pub fn get_or_load(&self, key: &K) -> Result<V, CacheError> {
        self.load(key, None)
    }

    /// As [`get_or_load`](Self::get_or_load), but waits for a load until `deadline`, if that is earlier, and begins none once it has
    /// passed.
    ///
    /// # Errors
    /// As [`get_or_load`](Self::get_or_load).
    ///
    /// # Panics
    /// As [`get_or_load`](Self::get_or_load).
    pub fn get_or_load_deadline(&self, key: &K, deadline: Instant) -> Result<V, CacheError> {
        self.load(key, Some(deadline))
    }

    fn load(&self, key: &K, deadline: Option<Instant>) -> Result<V, CacheError> {
        // C6: a hit is timed now and then.
        let since = sampled().then(Instant::now);
        let shared = &*self.cache.shared;
        let _burial = shared.burial();
        match shared.table.quick(key) {
            Quick::Fresh(held) => return Ok(shared.hit(held, since)),
            Quick::Unclear => {}
            Quick::Nothing => return self.load_missing(key, deadline, since),
        }
        match shared.table.get(key) {
            Look::Live(held) => return Ok(shared.hit(held, since)),
            Look::Aged(held, kept, Age::Early) => {
                if let Some(more) = &kept.more
                    && shared.life.is_early_enough(more, shared.table.world.now())
                {
                    self.refresh(key);
                }
                return Ok(shared.hit(held, since));
            }
            Look::Aged(..) | Look::Dead | Look::Nothing => {}
        }
        self.load_missing(key, deadline, since)
    }

    #[cold]
    fn load_missing(&self, key: &K, deadline: Option<Instant>, since: Option<Instant>) -> Result<V, CacheError> {
        let (shared, engine) = (&*self.cache.shared, &*self.engine);
        let push = |key: K, hash: u64, flight: &Arc<Flight>| engine.push(key, hash, flight);
        let replace = || engine.replace_lost();
        let hard = shared.config.hard_timeout;
        // A load that needs another value must not wait for a thread that waits for the same.
        let has_timeout = (hard.is_some() || shared.config.soft_timeout.is_some()) && !engine.crew.is_member();
        let behind = has_timeout.then_some(Behind { push: &push, replace: &replace, only_for_stale: hard.is_none() });
        let deadline = earlier(deadline, hard.and_then(|hard| shared.clock.after(hard)));
        shared.missing(key, deadline, since, behind, |ctx| (engine.loader)(key, ctx))
    }

    /// Has the key loaded in the background, whether it is there or not; calls get the old value meanwhile. Nothing happens if it is being
    /// loaded, its load failed lately, or the cache is closed. `false`: too many loads wait for a thread.
    pub fn refresh(&self, key: &K) -> bool {
        let begun = self.cache.shared.table.begin_behind(key, &|key, hash, flight| self.engine.push(key, hash, flight));
        if !begun {
            self.cache.shared.tally.refreshes_dropped.inc();
        }
        begun
    }

    /// The same cache without the loader. It does not keep the threads alive.
    #[must_use]
    pub fn cache(&self) -> &Cache<K, V> {
        &self.cache
    }

    /// As [`Cache::close`]; loads that wait for a thread are not begun.
    pub fn close(&self) {
        self.engine.close();
    }

    /// [`close`](Self::close), then waits until the loads that have begun and the threads have ended, for at most `limit`.
    ///
    /// # Errors
    /// How many loads, and which threads, had not ended.
    ///
    /// # Deadlock
    /// Called from within a load it waits for that load, until `limit`.
    pub fn close_within(&self, limit: Duration) -> Result<(), Undelivered<Infallible>> {
        let deadline = self.cache.shared.clock.after(limit);
        self.engine.close();
        let in_flight = self.cache.shared.table.close_until(deadline);
        let mut threads = self.engine.crew.join(deadline);
        threads.extend(self.cache.shared.close_second(deadline));
        Undelivered::new(Vec::new(), in_flight, threads).into_result()
    }
}

impl<K, V> Engine<K, V>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    fn spawn(&self) -> Result<(), BuildError> {
        let (shared, queue) = (Arc::clone(&self.shared), Arc::clone(&self.queue));
        let (loader, extra) = (Arc::clone(&self.loader), Arc::clone(&self.extra));
        self.crew.spawn(move || work(&shared, &queue, &loader, &extra))
    }

    /// Starts a thread for one that hangs and was given up; so many as may be left behind.
    fn replace_lost(&self) {
        // ORDERING: Relaxed, also in `work`: a count.
        let missing = |extra: usize| (extra < self.shared.table.lost()).then_some(extra + 1);
        while self.extra.fetch_update(Relaxed, Relaxed, missing).is_ok() {
            if let Err(error) = self.spawn() {
                // The hung one stays in place of it when it comes back.
                self.extra.fetch_sub(1, Relaxed);
                self.shared.events.emit(Event::Abandoned, || format!("no thread in place of one that hangs: {error}"));
                return;
            }
        }
    }

    /// Under the lock of the key's shard.
    fn push(&self, key: K, hash: u64, flight: &Arc<Flight>) -> bool {
        self.queue.send(Job { key, hash, flight: Arc::clone(flight) }, Patience::Try, || {}).is_ok()
    }

    fn return_jobs(&self) {
        for job in self.queue.abandon() {
            let returned = contain(|| {
                // Where the cache is closed, whoever waits for it learns that.
                if let Some(claim) = self.shared.table.adopt(&job.key, job.hash, &job.flight) {
                    claim.give_up();
                }
                drop(job);
            });
            if let Err(failure) = returned {
                self.shared.events.emit(Event::Panic, || format!("a key {failure}"));
            }
        }
    }

    fn close(&self) {
        self.shared.table.close();
        self.return_jobs();
    }
}

impl<K, V> Drop for Engine<K, V>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    fn drop(&mut self) {
        // The handles without a loader go on.
        self.return_jobs();
        let left = self.crew.join(self.shared.clock.after(self.on_drop.budget()));
        if !left.is_empty() {
            self.shared.events.emit(Event::Abandoned, || format!("still loading: {}", left.join(", ")));
        }
    }
}

/// What a thread does.
fn work<K, V>(shared: &Arc<Shared<K, V>>, queue: &Inbox<Job<K>>, loader: &Loader<K, V>, extra: &AtomicUsize)
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    let one = Ready { max_items: 1, linger: Duration::ZERO };
    while let Some(group) = queue.take(one, None) {
        let mut given_up = false;
        for (job, _) in group.items {
            let flight = Arc::clone(&job.flight);
            // A load has counted its panic and told of it.
            let _: Result<(), Failure> = contain(|| {
                let _burial = shared.burial();
                if let Some(claim) = shared.table.adopt(&job.key, job.hash, &job.flight) {
                    shared.tally.refreshes.inc();
                    let old = shared.table.look(&job.key).map(|(held, kept, _)| (held, kept));
                    let deadline = shared.config.hard_timeout.and_then(|hard| shared.clock.after(hard));
                    // Whoever waits gets the error, too.
                    let _: Result<Loaded<V>, CacheError> =
                        shared.load_for(claim, old, deadline, |ctx| loader(&job.key, ctx));
                }
                drop(job);
            });
            given_up |= flight.is_abandoned();
        }
        queue.done(group.ticket);
        // Another one has its place.
        if given_up && extra.fetch_update(Relaxed, Relaxed, |extra| extra.checked_sub(1)).is_ok() {
            return;
        }
    }
}

impl<K, V> Deref for LoadingCache<K, V>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    type Target = Cache<K, V>;

    fn deref(&self) -> &Cache<K, V> {
        &self.cache
    }
}

impl<K, V> Clone for LoadingCache<K, V>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    fn clone(&self) -> Self {
        Self { cache: self.cache.clone(), engine: Arc::clone(&self.engine) }
    }
}

impl<K, V> Close for LoadingCache<K, V>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    fn name(&self) -> String {
        self.cache.shared.config.name.clone()
    }

    fn close_within(&self, limit: Duration) -> Leftover {
        LoadingCache::close_within(self, limit).into()
    }
}

impl<K, V> fmt::Debug for LoadingCache<K, V>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoadingCache").field("cache", &self.cache).finish_non_exhaustive()
    }
}
