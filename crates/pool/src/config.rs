//! Settings and the builder.

use std::fmt;
use std::time::Duration;

use fullbore_core::{BuildError, Clock, EnvReader};

use crate::keyed::KeyedPool;
use crate::manager::{Key, KeyedManager, Manager, Single};
use crate::pool::Pool;

/// The settings of a pool, from code, a file (feature `serde`: unknown fields are refused) or the environment.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default, deny_unknown_fields))]
pub struct Config {
    /// See [`PoolBuilder::name`].
    pub name: String,
    /// See [`PoolBuilder::max_size`].
    pub max_size: usize,
    /// See [`PoolBuilder::max_per_key`]. A plain pool has one key and ignores it.
    pub max_per_key: usize,
    /// See [`PoolBuilder::get_timeout`].
    #[cfg_attr(feature = "serde", serde(with = "fullbore_core::serde_text::duration"))]
    pub get_timeout: Duration,
    /// See [`PoolBuilder::validate_after`].
    #[cfg_attr(feature = "serde", serde(with = "fullbore_core::serde_text::duration"))]
    pub validate_after: Duration,
    /// See [`PoolBuilder::idle_timeout`].
    #[cfg_attr(feature = "serde", serde(with = "fullbore_core::serde_text::maybe_duration"))]
    pub idle_timeout: Option<Duration>,
    /// See [`PoolBuilder::max_lifetime`].
    #[cfg_attr(feature = "serde", serde(with = "fullbore_core::serde_text::maybe_duration"))]
    pub max_lifetime: Option<Duration>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            name: "pool".into(),
            max_size: 10,
            max_per_key: usize::MAX,
            get_timeout: Duration::from_secs(30),
            validate_after: Duration::from_millis(500),
            idle_timeout: Some(Duration::from_secs(600)),
            max_lifetime: Some(Duration::from_secs(1800)),
        }
    }
}

impl Config {
    /// The defaults, overwritten by variables such as `APP_POOL_MAX_SIZE` for the prefix `APP_POOL_`.
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
        env.read("max_size", &mut config.max_size)?;
        env.read("max_per_key", &mut config.max_per_key)?;
        env.read("get_timeout", &mut config.get_timeout)?;
        env.read("validate_after", &mut config.validate_after)?;
        env.read("idle_timeout", &mut config.idle_timeout)?;
        env.read("max_lifetime", &mut config.max_lifetime)?;
        env.finish()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), BuildError> {
        BuildError::refuse_zero("max_size", self.max_size)?;
        BuildError::refuse_zero("max_per_key", self.max_per_key)?;
        if self.get_timeout.is_zero() {
            // Nobody could ever connect; `try_get` is the call that does not wait.
            return Err(BuildError::config("get_timeout", "0s", "more than zero"));
        }
        for (field, value) in [("idle_timeout", self.idle_timeout), ("max_lifetime", self.max_lifetime)] {
            if value == Some(Duration::ZERO) {
                return Err(BuildError::config(field, "0s", "more than zero, or none"));
            }
        }
        Ok(())
    }
}

/// What a [`PoolBuilder`] can build: [`Pool`] and [`KeyedPool`].
pub trait Target: Sized + sealed::Sealed {
    /// Its manager.
    type Manager;

    #[doc(hidden)]
    fn start(config: Config, clock: Clock, manager: Self::Manager) -> Self;
}

mod sealed {
    #[expect(unnameable_types, reason = "sealed: nobody else implements `Target`")]
    pub trait Sealed {}
    impl<M: super::Manager> Sealed for super::Pool<M> {}
    impl<K: super::Key, M: super::KeyedManager<K>> Sealed for super::KeyedPool<K, M> {}
}

impl<M: Manager> Target for Pool<M> {
    type Manager = M;
    fn start(config: Config, clock: Clock, manager: M) -> Self {
        Pool { keyed: KeyedPool::start(config, clock, Single(manager)) }
    }
}

impl<K: Key, M: KeyedManager<K>> Target for KeyedPool<K, M> {
    type Manager = M;
    fn start(config: Config, clock: Clock, manager: M) -> Self {
        KeyedPool::open(config, clock, manager)
    }
}

/// Builds a [`Pool`] or a [`KeyedPool`].
#[must_use = "a builder does nothing before build()"]
pub struct PoolBuilder<P: Target> {
    config: Config,
    clock: Clock,
    manager: P::Manager,
}

impl<P: Target> PoolBuilder<P> {
    pub(crate) fn new(manager: P::Manager) -> Self {
        Self { config: Config::default(), clock: Clock::Real, manager }
    }

    /// Takes all settings from `config`.
    pub fn config(mut self, config: Config) -> Self {
        self.config = config;
        self
    }

    /// The name in reports. Default: `pool`.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.config.name = name.into();
        self
    }

    /// The most connections there are at once, idle ones, those being made and those being closed included. A database does not get faster by
    /// more connections than it has cores and disks to serve them: start with twice its cores, measure, change.
    ///
    /// Default: 10.
    pub fn max_size(mut self, max_size: usize) -> Self {
        self.config.max_size = max_size;
        self
    }

    /// How long `get` waits in all, for a place, a check and a new connection. Choose less than the patience of whoever
    /// waits for you.
    ///
    /// Default: 30 s.
    pub fn get_timeout(mut self, get_timeout: Duration) -> Self {
        self.config.get_timeout = get_timeout;
        self
    }

    /// A connection idle for longer than this is validated at checkout; one used more recently is trusted. Zero validates
    /// each time, which costs a round trip; long windows hand out connections that died meanwhile.
    ///
    /// Default: 500 ms.
    pub fn validate_after(mut self, validate_after: Duration) -> Self {
        self.config.validate_after = validate_after;
        self
    }

    /// A connection idle for longer than this is closed, at the next use of the pool (there is no background thread).
    /// Choose less than the server or a firewall on the way allows.
    ///
    /// Default: 10 minutes.
    pub fn idle_timeout(mut self, idle_timeout: impl Into<Option<Duration>>) -> Self {
        self.config.idle_timeout = idle_timeout.into();
        self
    }

    /// A connection older than this is closed when it is returned, or met idle. Bounds what a server leaks for a connection
    /// and how long an old address is used after a failover.
    ///
    /// Default: 30 minutes.
    pub fn max_lifetime(mut self, max_lifetime: impl Into<Option<Duration>>) -> Self {
        self.config.max_lifetime = max_lifetime.into();
        self
    }

    /// The clock for deadlines and ages. Default: the real one; tests pass a [`PausedClock`](fullbore_core::PausedClock).
    pub fn clock(mut self, clock: impl Into<Clock>) -> Self {
        self.clock = clock.into();
        self
    }

    /// The pool. No connection is made yet.
    ///
    /// # Errors
    /// [`BuildError::Config`] for sizes and times of zero.
    pub fn build(self) -> Result<P, BuildError> {
        self.config.check()?;
        Ok(P::start(self.config, self.clock, self.manager))
    }
}

impl<K: Key, M: KeyedManager<K>> PoolBuilder<KeyedPool<K, M>> {
    /// The most connections of one key at once: keeps a busy tenant from taking every place.
    ///
    /// Default: no limit below `max_size`.
    pub fn max_per_key(mut self, max_per_key: usize) -> Self {
        self.config.max_per_key = max_per_key;
        self
    }
}

impl<P: Target> fmt::Debug for PoolBuilder<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PoolBuilder").field("config", &self.config).finish_non_exhaustive()
    }
}
