//! Settings of a breaker, and the builder.

use std::time::Duration;

use fullbore_core::{BuildError, Clock, EnvReader, Events};
use fullbore_metrics::{Station, StationKind};

use crate::breaker::Breaker;

/// The settings of a [`Breaker`], from code, a file (feature `serde`: unknown fields are refused) or the environment.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default, deny_unknown_fields))]
pub struct BreakerConfig {
    /// See [`BreakerBuilder::name`].
    pub name: String,
    /// See [`BreakerBuilder::consecutive_failures`].
    pub consecutive_failures: u32,
    /// See [`BreakerBuilder::failure_rate`].
    pub failure_rate: f64,
    /// See [`BreakerBuilder::window`].
    #[cfg_attr(feature = "serde", serde(with = "fullbore_core::serde_text::duration"))]
    pub window: Duration,
    /// See [`BreakerBuilder::min_calls`].
    pub min_calls: u32,
    /// See [`BreakerBuilder::open_for`].
    #[cfg_attr(feature = "serde", serde(with = "fullbore_core::serde_text::duration"))]
    pub open_for: Duration,
    /// See [`BreakerBuilder::open_max`].
    #[cfg_attr(feature = "serde", serde(with = "fullbore_core::serde_text::duration"))]
    pub open_max: Duration,
    /// See [`BreakerBuilder::jitter`].
    pub jitter: bool,
}

impl Default for BreakerConfig {
    fn default() -> Self {
        Self {
            name: "breaker".into(),
            consecutive_failures: 5,
            failure_rate: 0.5,
            window: Duration::from_secs(10),
            min_calls: 20,
            open_for: Duration::from_secs(1),
            open_max: Duration::from_secs(30),
            jitter: true,
        }
    }
}

impl BreakerConfig {
    /// The defaults, overwritten by variables such as `APP_BREAKER_WINDOW` for the prefix `APP_BREAKER_`.
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
        env.read("consecutive_failures", &mut config.consecutive_failures)?;
        env.read("failure_rate", &mut config.failure_rate)?;
        env.read("window", &mut config.window)?;
        env.read("min_calls", &mut config.min_calls)?;
        env.read("open_for", &mut config.open_for)?;
        env.read("open_max", &mut config.open_max)?;
        env.read("jitter", &mut config.jitter)?;
        env.finish()?;
        Ok(config)
    }

    /// Whether the settings make sense; [`BreakerBuilder::build`] asks this.
    ///
    /// # Errors
    /// Names the setting that does not.
    pub fn check(&self) -> Result<(), BuildError> {
        let zero = |field: &'static str, is_zero: bool| {
            if is_zero { Err(BuildError::config(field, 0, "more than zero")) } else { Ok(()) }
        };
        zero("consecutive_failures", self.consecutive_failures == 0)?;
        zero("min_calls", self.min_calls == 0)?;
        zero("window", self.window.is_zero())?;
        zero("open_for", self.open_for.is_zero())?;
        if !(self.failure_rate > 0.0 && self.failure_rate <= 1.0) {
            return Err(BuildError::config("failure_rate", self.failure_rate, "more than 0 and at most 1"));
        }
        if self.open_max < self.open_for {
            return Err(BuildError::config("open_max", format!("{:?}", self.open_max), "at least open_for"));
        }
        Ok(())
    }
}

/// Builds a [`Breaker`].
#[derive(Clone, Debug, Default)]
pub struct BreakerBuilder {
    config: BreakerConfig,
    clock: Clock,
}

impl BreakerBuilder {
    /// Takes all settings from `config`.
    #[must_use]
    pub fn config(mut self, config: BreakerConfig) -> Self {
        self.config = config;
        self
    }

    /// The name in reports. Default: `breaker`.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.config.name = name.into();
        self
    }

    /// It opens after so many failures without a success between them. Few open it at a hiccup; many let as many callers
    /// wait for their timeout first.
    ///
    /// Default: 5.
    #[must_use]
    pub fn consecutive_failures(mut self, consecutive_failures: u32) -> Self {
        self.config.consecutive_failures = consecutive_failures;
        self
    }

    /// It opens when this part of the calls of the last [`window`](Self::window) has failed, above 0 and up to 1: for what
    /// fails often and not always. Choose what your callers would rather do without.
    ///
    /// Default: 0.5.
    #[must_use]
    pub fn failure_rate(mut self, failure_rate: f64) -> Self {
        self.config.failure_rate = failure_rate;
        self
    }

    /// How far back the failure rate looks, to a tenth of itself. A long one is slow to see a change.
    ///
    /// Default: 10 s.
    #[must_use]
    pub fn window(mut self, window: Duration) -> Self {
        self.config.window = window;
        self
    }

    /// With fewer calls in the window the failure rate says nothing. Too few and two bad calls at night open it.
    ///
    /// Default: 20.
    #[must_use]
    pub fn min_calls(mut self, min_calls: u32) -> Self {
        self.config.min_calls = min_calls;
        self
    }

    /// How long it stays open before the first probe; each probe that fails doubles it. Choose what a restart of the other
    /// side takes at least.
    ///
    /// Default: 1 s.
    #[must_use]
    pub fn open_for(mut self, open_for: Duration) -> Self {
        self.config.open_for = open_for;
        self
    }

    /// The longest time between two probes. It is also about the longest time that a recovery goes unnoticed.
    ///
    /// Default: 30 s.
    #[must_use]
    pub fn open_max(mut self, open_max: Duration) -> Self {
        self.config.open_max = open_max;
        self
    }

    /// Whether each time between probes is lengthened by a random part of itself, so that many processes do not come back
    /// together.
    ///
    /// Default: true.
    #[must_use]
    pub fn jitter(mut self, jitter: bool) -> Self {
        self.config.jitter = jitter;
        self
    }

    /// The clock for windows and probes. Default: the real one; tests pass a [`PausedClock`](fullbore_core::PausedClock).
    #[must_use]
    pub fn clock(mut self, clock: impl Into<Clock>) -> Self {
        self.clock = clock.into();
        self
    }

    /// The breaker.
    ///
    /// # Errors
    /// [`BuildError::Config`] names the setting that makes no sense.
    pub fn build(self) -> Result<Breaker, BuildError> {
        let config = self.config;
        config.check()?;
        let station = Station::builder(config.name.clone()).kind(StationKind::Limit).build();
        let events = Events::new("limit", &config.name);
        Ok(Breaker::start(config, self.clock, station, events))
    }
}
