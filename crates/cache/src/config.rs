//! Settings and the builder.

use std::error::Error;
use std::fmt;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use fullbore_core::{BuildError, Clock, EnvReader, Events, Failure, OnDrop};
use fullbore_metrics::{Station, StationKind};

use crate::cache::Cache;
use crate::entry::Grave;
use crate::flight::{Limits, Table};
#[cfg(feature = "redis")]
use crate::joined::Second;
use crate::life::{Life, nanos};
use crate::load::LoadCtx;
use crate::loading::LoadingCache;
use crate::shared::Shared;
use crate::stats::Tally;

/// The settings of a [`Cache`], from code, a file (feature `serde`: unknown fields are refused) or the environment.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default, deny_unknown_fields))]
pub struct Config {
    /// See [`CacheBuilder::name`].
    pub name: String,
    /// See [`CacheBuilder::capacity`].
    pub capacity: u64,
    /// See [`CacheBuilder::ttl`].
    #[cfg_attr(feature = "serde", serde(with = "fullbore_core::serde_text::maybe_duration"))]
    pub ttl: Option<Duration>,
    /// See [`CacheBuilder::load_timeout`].
    #[cfg_attr(feature = "serde", serde(with = "fullbore_core::serde_text::duration"))]
    pub load_timeout: Duration,
    /// See [`CacheBuilder::time_to_idle`].
    #[cfg_attr(feature = "serde", serde(with = "fullbore_core::serde_text::maybe_duration"))]
    pub time_to_idle: Option<Duration>,
    /// See [`CacheBuilder::stale_for`].
    #[cfg_attr(feature = "serde", serde(with = "fullbore_core::serde_text::maybe_duration"))]
    pub stale_for: Option<Duration>,
    /// See [`CacheBuilder::negative_ttl`].
    #[cfg_attr(feature = "serde", serde(with = "fullbore_core::serde_text::duration"))]
    pub negative_ttl: Duration,
    /// See [`CacheBuilder::error_ttl`].
    #[cfg_attr(feature = "serde", serde(with = "fullbore_core::serde_text::duration"))]
    pub error_ttl: Duration,
    /// See [`CacheBuilder::jitter`].
    pub jitter: f64,
    /// See [`CacheBuilder::soft_timeout`].
    #[cfg_attr(feature = "serde", serde(with = "fullbore_core::serde_text::maybe_duration"))]
    pub soft_timeout: Option<Duration>,
    /// See [`CacheBuilder::hard_timeout`].
    #[cfg_attr(feature = "serde", serde(with = "fullbore_core::serde_text::maybe_duration"))]
    pub hard_timeout: Option<Duration>,
    /// See [`CacheBuilder::load_limit`].
    #[cfg_attr(feature = "serde", serde(with = "fullbore_core::serde_text::maybe_duration"))]
    pub load_limit: Option<Duration>,
    /// See [`CacheBuilder::max_abandoned`].
    pub max_abandoned: usize,
    /// See [`CacheBuilder::refresh_ahead`].
    pub refresh_ahead: f64,
    /// See [`CacheBuilder::refresh_threads`].
    pub refresh_threads: usize,
    /// See [`CacheBuilder::refresh_queue`].
    pub refresh_queue: usize,
    /// See [`CacheBuilder::on_drop`].
    pub on_drop: OnDrop,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            name: "cache".into(),
            capacity: 10_000,
            ttl: Some(Duration::from_secs(10 * 60)),
            load_timeout: Duration::from_secs(30),
            time_to_idle: None,
            stale_for: None,
            negative_ttl: Duration::from_secs(30),
            error_ttl: Duration::ZERO,
            jitter: 0.0,
            soft_timeout: None,
            hard_timeout: None,
            load_limit: Some(Duration::from_secs(60)),
            max_abandoned: 8,
            refresh_ahead: 1.0,
            refresh_threads: 2,
            refresh_queue: 1_000,
            on_drop: OnDrop::default(),
        }
    }
}

impl Config {
    /// The defaults, overwritten by variables such as `APP_CACHE_CAPACITY` for the prefix `APP_CACHE_`.
    ///
    /// # Errors
    /// Names the variable whose value cannot be read, or that belongs to no setting.
    pub fn from_env(prefix: &str) -> Result<Self, BuildError> {
        Self::read(EnvReader::new(prefix))
    }

    /// As [`from_env`](Self::from_env), from a reader of your choice.
    ///
    /// # Errors
    /// As [`from_env`](Self::from_env).
    pub fn read(mut env: EnvReader) -> Result<Self, BuildError> {
        let mut config = Self::default();
        env.read("name", &mut config.name)?;
        env.read("capacity", &mut config.capacity)?;
        env.read("ttl", &mut config.ttl)?;
        env.read("load_timeout", &mut config.load_timeout)?;
        env.read("time_to_idle", &mut config.time_to_idle)?;
        env.read("stale_for", &mut config.stale_for)?;
        env.read("negative_ttl", &mut config.negative_ttl)?;
        env.read("error_ttl", &mut config.error_ttl)?;
        env.read("jitter", &mut config.jitter)?;
        env.read("soft_timeout", &mut config.soft_timeout)?;
        env.read("hard_timeout", &mut config.hard_timeout)?;
        env.read("load_limit", &mut config.load_limit)?;
        env.read("max_abandoned", &mut config.max_abandoned)?;
        env.read("refresh_ahead", &mut config.refresh_ahead)?;
        env.read("refresh_threads", &mut config.refresh_threads)?;
        env.read("refresh_queue", &mut config.refresh_queue)?;
        env.read("on_drop", &mut config.on_drop)?;
        env.finish()?;
        Ok(config)
    }
}

pub(crate) type Weigher<K, V> = Arc<dyn Fn(&K, &V) -> u32 + Send + Sync>;

/// A load that the cache has of its own.
pub(crate) type Loader<K, V> = Arc<dyn Fn(&K, &mut LoadCtx) -> Result<V, Failure> + Send + Sync>;

/// Builds a [`Cache`] or, once it was given a [`loader`](Self::loader), a [`LoadingCache`].
pub struct CacheBuilder<K, V, L = ()> {
    config: Config,
    weigher: Option<Weigher<K, V>>,
    clock: Clock,
    loader: L,
    #[cfg(feature = "redis")]
    second: Option<Connect<K, V>>,
}

/// Connects to the second tier, for a cache of that name.
#[cfg(feature = "redis")]
type Connect<K, V> = Arc<dyn Fn(&str) -> Result<Second<K, V>, BuildError> + Send + Sync>;

/// What a [`CacheBuilder`] was given to load with.
pub struct WithLoader<K, V>(Loader<K, V>);

impl<K, V> CacheBuilder<K, V> {
    /// How values are loaded: makes it a [`LoadingCache`], which can then also load without anybody's waiting for it. It is called
    /// on the thread that asks or on one of the cache's own, once at a time for each key, unless one takes longer than the
    /// [`load_limit`](Self::load_limit). It may use other caches; one that holds a
    /// handle of this cache keeps it alive for ever.
    ///
    /// Default: none; each call of [`Cache::get_or_compute`] brings its own.
    pub fn loader<E>(
        self,
        loader: impl Fn(&K, &mut LoadCtx) -> Result<V, E> + Send + Sync + 'static,
    ) -> CacheBuilder<K, V, WithLoader<K, V>>
    where
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        let loader: Loader<K, V> = Arc::new(move |key, ctx| loader(key, ctx).map_err(Failure::error));
        CacheBuilder {
            config: self.config,
            weigher: self.weigher,
            clock: self.clock,
            loader: WithLoader(loader),
            #[cfg(feature = "redis")]
            second: self.second,
        }
    }

    /// The cache.
    ///
    /// # Errors
    /// [`BuildError::Config`] for a TTL or a time to idle of zero (a capacity of 0 says that nothing is to be kept), for a jitter
    /// below 0 or above 1, and for a hard timeout, which needs a loader.
    pub fn build(self) -> Result<Cache<K, V>, BuildError>
    where
        K: Hash + Eq + Clone + Send + Sync + 'static,
        V: Clone + Send + Sync + 'static,
    {
        if let Some(hard) = self.config.hard_timeout {
            return Err(BuildError::config("hard_timeout", format!("{hard:?}"), "none where there is no loader"));
        }
        Ok(Cache::start(self.shared(false)?))
    }
}

impl<K, V> CacheBuilder<K, V, WithLoader<K, V>> {
    /// The cache, with its threads.
    ///
    /// # Errors
    /// [`BuildError::Config`] for a TTL, a time to idle or a hard timeout of zero, a jitter below 0 or above 1, a negative `refresh_ahead`, no
    /// threads or no places for them; [`BuildError::Spawn`] if the system has no threads to give.
    pub fn build(self) -> Result<LoadingCache<K, V>, BuildError>
    where
        K: Hash + Eq + Clone + Send + Sync + 'static,
        V: Clone + Send + Sync + 'static,
    {
        let config = &self.config;
        if config.hard_timeout == Some(Duration::ZERO) {
            return Err(BuildError::config("hard_timeout", "0s", "a duration above zero, or none"));
        }
        BuildError::refuse_zero("refresh_threads", config.refresh_threads)?;
        BuildError::refuse_zero("refresh_queue", config.refresh_queue)?;
        if !(0.0..=1_000.0).contains(&config.refresh_ahead) {
            return Err(BuildError::config("refresh_ahead", config.refresh_ahead, "a number from 0 to 1000"));
        }
        let loader = Arc::clone(&self.loader.0);
        LoadingCache::start(Cache::start(self.shared(true)?), loader)
    }
}

impl<K, V, L> CacheBuilder<K, V, L> {
    /// Takes all settings from `config`.
    #[must_use]
    pub fn config(mut self, config: Config) -> Self {
        self.config = config;
        self
    }

    /// The name in reports. Default: `cache`.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.config.name = name.into();
        self
    }

    /// How many entries are kept or, with a [`weigher`](Self::weigher), how much weight. Too few and the values that are
    /// needed again are displaced before; too many and they only cost memory: raise it while the hit ratio in
    /// [`Cache::stats`] still rises. With 0 nothing is kept, and a key is still loaded once for all who ask at the same time.
    ///
    /// Default: 10,000.
    #[must_use]
    pub fn capacity(mut self, capacity: u64) -> Self {
        self.config.capacity = capacity;
        self
    }

    /// What an entry weighs against the capacity, for example its size in bytes. It is asked once for each value, on the
    /// thread that inserts or loads it and outside all locks. 0 counts as 1, so that the number of entries stays bounded;
    /// what is heavier than the capacity is not kept. If it panics, the value is not kept and the panic goes on: from
    /// [`Cache::insert`] with the cache unchanged, from a load as if the load had panicked.
    ///
    /// Default: every entry weighs 1.
    #[must_use]
    pub fn weigher(mut self, weigher: impl Fn(&K, &V) -> u32 + Send + Sync + 'static) -> Self {
        self.weigher = Some(Arc::new(weigher));
        self
    }

    /// How long a value is returned after it was inserted or loaded; `None`: until it is removed or displaced. It bounds how
    /// old an answer can be when nobody invalidates it: choose what your callers may see, less a little. Too short and the
    /// source is asked again in vain.
    ///
    /// Default: 10 minutes, so that an invalidation that somebody forgot heals by itself while a value that is asked for once
    /// a second still costs one load in 600 calls.
    #[must_use]
    pub fn ttl(mut self, ttl: impl Into<Option<Duration>>) -> Self {
        self.config.ttl = ttl.into();
        self
    }

    /// How long [`Cache::get_or_compute`] waits for somebody else's load of the same key before it gives up; the load itself
    /// goes on. Choose more than a slow load takes and less than the patience of whoever waits for you. Zero: it does not
    /// wait.
    ///
    /// Default: 30 s.
    #[must_use]
    pub fn load_timeout(mut self, load_timeout: Duration) -> Self {
        self.config.load_timeout = load_timeout;
        self
    }

    /// For how long a value may lie there without being asked for; then it goes, also if its TTL is not over. For caches of what is
    /// expensive to hold. Each hit costs a few nanoseconds more, each entry a small allocation.
    ///
    /// Default: none.
    #[must_use]
    pub fn time_to_idle(mut self, time_to_idle: impl Into<Option<Duration>>) -> Self {
        self.config.time_to_idle = time_to_idle.into();
        self
    }

    /// For how long after its TTL a value may stand in for one that cannot be had: because the load fails, or takes longer than the
    /// [`soft_timeout`](Self::soft_timeout) or the deadline. Choose how old an answer may be that is better than none. With it, give an
    /// [`error_ttl`](Self::error_ttl), or a source that is down is asked at every call.
    ///
    /// Default: none, so that nobody sees a value that is older than its TTL.
    #[must_use]
    pub fn stale_for(mut self, stale_for: impl Into<Option<Duration>>) -> Self {
        self.config.stale_for = stale_for.into();
        self
    }

    /// The TTL of values that their load calls [`negative`](LoadCtx::negative): what does not exist today may do so soon. Zero: they are
    /// not kept.
    ///
    /// Default: 30 s.
    #[must_use]
    pub fn negative_ttl(mut self, negative_ttl: Duration) -> Self {
        self.config.negative_ttl = negative_ttl;
        self
    }

    /// For how long the error of a load is the answer for its key, in place of another load: protects a source that is in trouble, and
    /// callers from its timeouts. Where there is a stale value, that is the answer. Choose about as long as the source needs to
    /// recover; a load can say another time ([`LoadCtx::retry_after`]). An insertion or removal of the key ends it.
    ///
    /// Default: zero; the next call loads again.
    #[must_use]
    pub fn error_ttl(mut self, error_ttl: Duration) -> Self {
        self.config.error_ttl = error_ttl;
        self
    }

    /// Up to which part of its TTL a value's life is cut short, by chance: values that came together do not all expire together. 0.1 is
    /// enough where many are loaded at once, at a start say.
    ///
    /// Default: 0.
    #[must_use]
    pub fn jitter(mut self, jitter: f64) -> Self {
        self.config.jitter = jitter;
        self
    }

    /// How long a call waits for a load where there is a stale value: then it returns that one, and the load goes on. Needs
    /// [`stale_for`](Self::stale_for). Without a loader it holds for those who wait for somebody else's load; with one, loads of stale
    /// values run in the background. Zero: a stale value is returned at once.
    ///
    /// Default: none; calls wait for the new value.
    #[must_use]
    pub fn soft_timeout(mut self, soft_timeout: impl Into<Option<Duration>>) -> Self {
        self.config.soft_timeout = soft_timeout.into();
        self
    }

    /// How long a call of [`LoadingCache::get_or_load`] takes at most. All loads run in the background then, so that a call can leave one
    /// that hangs: on at most [`refresh_threads`](Self::refresh_threads) threads, which bound how many there are at a time. A load on one of
    /// those threads that asks for another key loads that itself. Choose it by the patience of your callers.
    ///
    /// Default: none; a value that is not there is loaded on the thread that asks.
    #[must_use]
    pub fn hard_timeout(mut self, hard_timeout: impl Into<Option<Duration>>) -> Self {
        self.config.hard_timeout = hard_timeout.into();
        self
    }

    /// After so long a load counts as hung: the next one who asks or waits loads for himself. What the first one brings in the end is kept
    /// all the same if it comes before that and nothing was invalidated. A thread of a loading cache that hangs is replaced. Choose a time that no healthy load takes. `None`: it keeps its key.
    ///
    /// Default: 60 s.
    #[must_use]
    pub fn load_limit(mut self, load_limit: impl Into<Option<Duration>>) -> Self {
        self.config.load_limit = load_limit.into();
        self
    }

    /// So many hung loads may be left behind at a time ([`CacheStats::abandoned`](crate::CacheStats::abandoned)): each holds a thread.
    /// At this number hung loads keep their keys, and calls for them time out.
    ///
    /// Default: 8.
    #[must_use]
    pub fn max_abandoned(mut self, max_abandoned: usize) -> Self {
        self.config.max_abandoned = max_abandoned;
        self
    }

    /// With a loader: how early a value is loaded again, before it expires, while calls still get the old one. At each hit in the last part
    /// of its life ([`LoadingCache::get_or_load`], not `get`) chance decides, the more often the nearer the end is and the longer the load takes (XFetch): what is asked for
    /// often never expires under its callers. Values that were inserted and not loaded are not loaded early. 1 is right where a load takes about as long as the last one did; above it is earlier. 0: never.
    ///
    /// Default: 1.
    #[must_use]
    pub fn refresh_ahead(mut self, refresh_ahead: f64) -> Self {
        self.config.refresh_ahead = refresh_ahead;
        self
    }

    /// With a loader: the threads for loads in the background, which bound how many the source gets from them at once.
    ///
    /// Default: 2.
    #[must_use]
    pub fn refresh_threads(mut self, refresh_threads: usize) -> Self {
        self.config.refresh_threads = refresh_threads;
        self
    }

    /// With a loader: how many loads in the background may wait or be under way. What is beyond is not begun early; where a call has nothing to
    /// return it is an error. Choose what the threads can work off within the patience of your callers.
    ///
    /// Default: 1,000.
    #[must_use]
    pub fn refresh_queue(mut self, refresh_queue: usize) -> Self {
        self.config.refresh_queue = refresh_queue;
        self
    }

    /// With a loader: for how long dropping the last handle waits for loads in the background that have begun. What has not begun is
    /// not.
    ///
    /// Default: 5 s.
    #[must_use]
    pub fn on_drop(mut self, on_drop: OnDrop) -> Self {
        self.config.on_drop = on_drop;
        self
    }

    /// A second tier in Redis, shared by all processes that use the same prefix: what one of them loads all have, a key is loaded by one of
    /// them at a time, and what one removes is removed for all. See [`RedisTier`](crate::redis::RedisTier).
    ///
    /// ```no_run
    /// use fullbore_cache::{Cache, redis::RedisTier};
    /// use std::time::Duration;
    ///
    /// let tier = RedisTier::builder().url("redis://localhost").prefix("shop:v1:product:").build()?;
    /// let products = Cache::<u64, String>::builder().ttl(Duration::from_secs(600)).redis(tier).build()?;
    /// let product = products.get_or_compute(&7, |_| Ok::<_, std::io::Error>("a lamp".to_owned()))?;
    /// products.try_remove(&7)?; // everywhere
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// Default: none.
    #[cfg(feature = "redis")]
    #[must_use]
    pub fn redis<C>(mut self, tier: crate::redis::RedisTier<C>) -> Self
    where
        K: crate::redis::RedisKey + Hash + Eq + Clone + Send + Sync + 'static,
        V: Clone + Send + Sync + 'static,
        C: crate::redis::Codec<V> + Clone,
    {
        self.second = Some(Arc::new(move |name| Second::connect(name, tier.clone())));
        self
    }

    /// The clock for deadlines and expiry. Default: the real one; tests pass a [`PausedClock`](fullbore_core::PausedClock).
    #[must_use]
    pub fn clock(mut self, clock: impl Into<Clock>) -> Self {
        self.clock = clock.into();
        self
    }

    fn shared(self, loads_itself: bool) -> Result<Shared<K, V>, BuildError>
    where
        K: Hash + Eq + Clone + Send + Sync + 'static,
        V: Clone + Send + Sync + 'static,
    {
        #[cfg(feature = "redis")]
        let second = self.second.clone();
        let Self { config, weigher, clock, .. } = self;
        for (field, value) in
            [("ttl", config.ttl), ("time_to_idle", config.time_to_idle), ("load_limit", config.load_limit)]
        {
            if value == Some(Duration::ZERO) {
                return Err(BuildError::config(
                    field,
                    "0s",
                    "a duration above zero, or none (capacity 0 keeps nothing)",
                ));
            }
        }
        if !(0.0..=1.0).contains(&config.jitter) {
            return Err(BuildError::config("jitter", config.jitter, "a number from 0 to 1"));
        }
        // Loads run on the threads that ask, as many as there are: the cores say how many can make progress.
        let station = Station::builder(config.name.clone())
            .kind(StationKind::Cache)
            .parallelism(std::thread::available_parallelism().map_or(1, usize::from))
            .build();
        let events = Events::new("cache", &config.name);
        let tally = Tally::default();
        let limits = Limits { load: config.load_limit, abandoned: config.max_abandoned };
        let idle = config.time_to_idle.map(nanos);
        let counts = (Arc::clone(&tally.hits), Arc::clone(&tally.evictions));
        let table = Table::new(config.capacity, &clock, idle, weigher.is_some(), limits, counts.0, counts.1);
        let life = Life::new(&config, loads_itself);
        let grave = Arc::new(Grave::new());
        Ok(Shared {
            #[cfg(feature = "redis")]
            second: second.map(|connect| connect(&config.name)).transpose()?,
            table,
            grave,
            weigher,
            config,
            life,
            clock,
            tally,
            station,
            events,
        })
    }
}

impl<K, V> Default for CacheBuilder<K, V> {
    fn default() -> Self {
        Self {
            config: Config::default(),
            weigher: None,
            clock: Clock::default(),
            loader: (),
            #[cfg(feature = "redis")]
            second: None,
        }
    }
}

impl<K, V, L: Clone> Clone for CacheBuilder<K, V, L> {
    fn clone(&self) -> Self {
        Self {
            config: self.config.clone(),
            weigher: self.weigher.clone(),
            clock: self.clock.clone(),
            loader: self.loader.clone(),
            #[cfg(feature = "redis")]
            second: self.second.clone(),
        }
    }
}

impl<K, V> Clone for WithLoader<K, V> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<K, V> fmt::Debug for WithLoader<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WithLoader")
    }
}

impl<K, V, L> fmt::Debug for CacheBuilder<K, V, L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CacheBuilder")
            .field("config", &self.config)
            .field("weigher", &self.weigher.is_some())
            .field("clock", &self.clock)
            .finish()
    }
}
