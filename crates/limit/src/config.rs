//! Settings and the builder.

use std::time::Duration;

use fullbore_core::{BuildError, Clock, EnvReader, Events};
use fullbore_metrics::{Station, StationKind};

use crate::limit::Limit;

/// The settings of a [`Limit`], from code, a file (feature `serde`: unknown fields are refused) or the environment.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default, deny_unknown_fields))]
pub struct Config {
    /// See [`LimitBuilder::name`].
    pub name: String,
    /// See [`LimitBuilder::permits`].
    pub permits: usize,
    /// See [`LimitBuilder::max_waiters`].
    pub max_waiters: usize,
    /// See [`LimitBuilder::acquire_timeout`].
    #[cfg_attr(feature = "serde", serde(with = "fullbore_core::serde_text::duration"))]
    pub acquire_timeout: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            name: "limit".into(),
            permits: std::thread::available_parallelism().map_or(1, usize::from),
            max_waiters: 10_000,
            acquire_timeout: Duration::from_secs(30),
        }
    }
}

impl Config {
    /// The defaults, overwritten by variables such as `APP_LIMIT_PERMITS` for the prefix `APP_LIMIT_`.
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
        env.read("permits", &mut config.permits)?;
        env.read("max_waiters", &mut config.max_waiters)?;
        env.read("acquire_timeout", &mut config.acquire_timeout)?;
        env.finish()?;
        Ok(config)
    }
}

/// Builds a [`Limit`].
#[derive(Clone, Debug, Default)]
pub struct LimitBuilder {
    config: Config,
    clock: Clock,
}

impl LimitBuilder {
    /// Takes all settings from `config`.
    #[must_use]
    pub fn config(mut self, config: Config) -> Self {
        self.config = config;
        self
    }

    /// The name in reports. Default: `limit`.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.config.name = name.into();
        self
    }

    /// How many may work at once. Too few waste capacity of what is behind the limit, too many let it thrash: start with
    /// what it serves well (a database: its cores times two), measure, double while throughput still grows.
    ///
    /// Default: the number of cores.
    #[must_use]
    pub fn permits(mut self, permits: usize) -> Self {
        self.config.permits = permits;
        self
    }

    /// How many threads may wait; the next one is refused at once. Choose how many a full acquire timeout can serve; 0
    /// means that nobody waits.
    ///
    /// Default: 10,000.
    #[must_use]
    pub fn max_waiters(mut self, max_waiters: usize) -> Self {
        self.config.max_waiters = max_waiters;
        self
    }

    /// How long [`Limit::acquire`] waits. Choose less than the patience of whoever waits for you.
    ///
    /// Default: 30 s.
    #[must_use]
    pub fn acquire_timeout(mut self, acquire_timeout: Duration) -> Self {
        self.config.acquire_timeout = acquire_timeout;
        self
    }

    /// The clock for deadlines. Default: the real one; tests pass a [`PausedClock`](fullbore_core::PausedClock).
    #[must_use]
    pub fn clock(mut self, clock: impl Into<Clock>) -> Self {
        self.clock = clock.into();
        self
    }

    /// The limit.
    ///
    /// # Errors
    /// [`BuildError::Config`] for zero permits.
    pub fn build(self) -> Result<Limit, BuildError> {
        let config = self.config;
        BuildError::refuse_zero("permits", config.permits)?;
        let station = Station::builder(config.name.clone())
            .kind(StationKind::Limit)
            .parallelism(config.permits)
            .capacity(config.max_waiters)
            .build();
        let events = Events::new("limit", &config.name);
        Ok(Limit::start(config, self.clock, station, events))
    }
}
