//! Settings and the builder.

use std::fmt;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use fullbore_core::{BuildError, Clock, EnvReader, Events};
use fullbore_metrics::{Station, StationKind};

use crate::cache::Cache;

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
}

impl Default for Config {
    fn default() -> Self {
        Self {
            name: "cache".into(),
            capacity: 10_000,
            ttl: Some(Duration::from_secs(10 * 60)),
            load_timeout: Duration::from_secs(30),
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
        env.finish()?;
        Ok(config)
    }
}

pub(crate) type Weigher<K, V> = Arc<dyn Fn(&K, &V) -> u32 + Send + Sync>;

/// Builds a [`Cache`].
pub struct CacheBuilder<K, V> {
    config: Config,
    weigher: Option<Weigher<K, V>>,
    clock: Clock,
}

impl<K, V> CacheBuilder<K, V> {
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

    /// The clock for deadlines and expiry. Default: the real one; tests pass a [`PausedClock`](fullbore_core::PausedClock).
    #[must_use]
    pub fn clock(mut self, clock: impl Into<Clock>) -> Self {
        self.clock = clock.into();
        self
    }

    /// The cache.
    ///
    /// # Errors
    /// [`BuildError::Config`] for a TTL of zero: a capacity of 0 says that nothing is to be kept.
    pub fn build(self) -> Result<Cache<K, V>, BuildError>
    where
        K: Hash + Eq + Clone + Send + Sync + 'static,
        V: Clone + Send + Sync + 'static,
    {
        let config = self.config;
        if config.ttl == Some(Duration::ZERO) {
            return Err(BuildError::config("ttl", "0s", "a duration above zero, or none (capacity 0 keeps nothing)"));
        }
        // Loads run on the threads that ask, as many as there are: the cores say how many can make progress.
        let station = Station::builder(config.name.clone())
            .kind(StationKind::Cache)
            .parallelism(std::thread::available_parallelism().map_or(1, usize::from))
            .build();
        let events = Events::new("cache", &config.name);
        Ok(Cache::start(config, self.weigher, self.clock, station, events))
    }
}

impl<K, V> Default for CacheBuilder<K, V> {
    fn default() -> Self {
        Self { config: Config::default(), weigher: None, clock: Clock::default() }
    }
}

impl<K, V> Clone for CacheBuilder<K, V> {
    fn clone(&self) -> Self {
        Self { config: self.config.clone(), weigher: self.weigher.clone(), clock: self.clock.clone() }
    }
}

impl<K, V> fmt::Debug for CacheBuilder<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CacheBuilder")
            .field("config", &self.config)
            .field("weigher", &self.weigher.is_some())
            .field("clock", &self.clock)
            .finish()
    }
}
