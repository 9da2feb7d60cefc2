//! Settings and builders.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use fullbore_core::{BuildError, Clock, EnvReader, FromEnv};

use super::error::SubscribeError;
use super::{Broadcast, LagPolicy, Shared, Subscriber};
use crate::config::check_name;

/// The settings of a [`Broadcast`], from code, a file (feature `serde`: unknown fields are refused) or the environment.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default, deny_unknown_fields))]
pub struct BroadcastConfig {
    /// See [`BroadcastBuilder::name`].
    pub name: String,
    /// See [`BroadcastBuilder::capacity`].
    pub capacity: usize,
    /// See [`BroadcastBuilder::retain`].
    pub retain: usize,
    /// See [`BroadcastBuilder::max_wait`].
    #[cfg_attr(feature = "serde", serde(with = "fullbore_core::serde_text::duration"))]
    pub max_wait: Duration,
}

impl Default for BroadcastConfig {
    fn default() -> Self {
        Self { name: "broadcast".into(), capacity: 1024, retain: 0, max_wait: Duration::from_secs(30) }
    }
}

impl BroadcastConfig {
    /// The defaults, overwritten by variables such as `APP_PRICES_CAPACITY` for the prefix `APP_PRICES_`.
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
        env.read("retain", &mut config.retain)?;
        env.read("max_wait", &mut config.max_wait)?;
        env.finish()?;
        Ok(config)
    }
}

/// The settings of a [`Subscriber`], from code, a file (feature `serde`: unknown fields are refused) or the environment.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default, deny_unknown_fields))]
pub struct SubscriberConfig {
    /// See [`SubscriberBuilder::name`].
    pub name: String,
    /// See [`SubscriberBuilder::lag`]; `None` is the broadcast's capacity.
    pub lag: Option<usize>,
    /// See [`SubscriberBuilder::policy`].
    pub policy: LagPolicy,
}

impl Default for SubscriberConfig {
    fn default() -> Self {
        Self { name: "subscriber".into(), lag: None, policy: LagPolicy::Block }
    }
}

impl SubscriberConfig {
    /// The defaults, overwritten by variables such as `APP_SCREEN_LAG` for the prefix `APP_SCREEN_`.
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
        let mut lag = Lag(None);
        env.read("lag", &mut lag)?;
        config.lag = lag.0;
        env.read("policy", &mut config.policy)?;
        env.finish()?;
        Ok(config)
    }
}

struct Lag(Option<usize>);

impl FromEnv for Lag {
    const EXPECTED: &'static str = usize::EXPECTED;
    fn from_env_text(text: &str) -> Option<Self> {
        usize::from_env_text(text).map(|lag| Self(Some(lag)))
    }
}

impl FromEnv for LagPolicy {
    const EXPECTED: &'static str = "block, reject, drop_oldest or evict";
    fn from_env_text(text: &str) -> Option<Self> {
        match text {
            "block" => Some(LagPolicy::Block),
            "reject" => Some(LagPolicy::Reject),
            "drop_oldest" => Some(LagPolicy::DropOldest),
            "evict" => Some(LagPolicy::Evict),
            _ => None,
        }
    }
}

/// Builds a [`Broadcast`].
pub struct BroadcastBuilder<T> {
    config: BroadcastConfig,
    clock: Clock,
    messages: PhantomData<fn(T)>,
}

impl<T> Default for BroadcastBuilder<T> {
    fn default() -> Self {
        Self { config: BroadcastConfig::default(), clock: Clock::Real, messages: PhantomData }
    }
}

impl<T> BroadcastBuilder<T> {
    /// Takes all settings from `config`.
    #[must_use]
    pub fn config(mut self, config: BroadcastConfig) -> Self {
        self.config = config;
        self
    }

    /// The name in reports and events. Default: `broadcast`.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.config.name = name.into();
        self
    }

    /// How many messages the ring keeps, at least: what the slowest subscriber may be behind, and the memory that it takes. A
    /// message's destructor runs when its place is needed again, so up to this many and a block (16 to 128) more stay alive after
    /// everybody has read them. Choose what is published in the longest pause of a subscriber that is not to lose anything, or to hold up
    /// nobody.
    ///
    /// Default: 1024.
    #[must_use]
    pub fn capacity(mut self, capacity: usize) -> Self {
        self.config.capacity = capacity;
        self
    }

    /// How many of the last messages a new subscription begins with, at most its lag. Choose 0 where only news counts, 1 for a
    /// present state that every newcomer needs, more for some history.
    ///
    /// Default: 0.
    #[must_use]
    pub fn retain(mut self, retain: usize) -> Self {
        self.config.retain = retain;
        self
    }

    /// How long a publisher waits at most for subscriptions with [`LagPolicy::Block`]; then its message is refused, for everybody.
    /// Choose it longer than the longest pause of such a subscriber, and short enough that a stuck one is noticed.
    ///
    /// Default: 30 s.
    #[must_use]
    pub fn max_wait(mut self, max_wait: Duration) -> Self {
        self.config.max_wait = max_wait;
        self
    }

    /// The clock for deadlines. Default: the real one; tests pass a [`PausedClock`](fullbore_core::PausedClock).
    #[must_use]
    pub fn clock(mut self, clock: impl Into<Clock>) -> Self {
        self.clock = clock.into();
        self
    }

    /// The broadcast.
    ///
    /// # Errors
    /// [`BuildError::Config`] for a capacity of 0 or of more than 2^32, for more retained messages than it holds, or an unusable
    /// name.
    pub fn build(self) -> Result<Broadcast<T>, BuildError>
    where
        T: Send + Sync,
    {
        /// Numbers of messages and what is added to them stay far from the end of 64 bits.
        const MOST: u64 = 1 << 32;
        let BroadcastConfig { name, capacity, retain, .. } = &self.config;
        check_name(name)?;
        if *capacity == 0 || *capacity as u64 > MOST {
            return Err(BuildError::config("capacity", capacity, format!("1 to {MOST}")));
        }
        if retain > capacity {
            return Err(BuildError::config("retain", retain, format!("0 to {capacity}, the capacity")));
        }
        Ok(Broadcast { shared: Shared::new(self.config, self.clock) })
    }
}

impl<T> fmt::Debug for BroadcastBuilder<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BroadcastBuilder").field("config", &self.config).finish_non_exhaustive()
    }
}

/// Builds a [`Subscriber`]. Made by [`Broadcast::subscribe`].
#[must_use = "there is no subscription before `join`"]
pub struct SubscriberBuilder<T> {
    shared: Arc<Shared<T>>,
    config: SubscriberConfig,
}

impl<T> SubscriberBuilder<T> {
    pub(super) fn new(shared: Arc<Shared<T>>) -> Self {
        Self { shared, config: SubscriberConfig::default() }
    }

    /// Takes all settings from `config`.
    pub fn config(mut self, config: SubscriberConfig) -> Self {
        self.config = config;
        self
    }

    /// The name of its station and in events. Default: `subscriber`.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.config.name = name.into();
        self
    }

    /// How many messages it may be behind; what happens then is its [`policy`](Self::policy). A message that it is being shown
    /// counts. Choose it small where old messages are worth nothing, or where a slow subscriber is to be noticed early.
    ///
    /// Default: the broadcast's capacity, which is also the most.
    pub fn lag(mut self, lag: usize) -> Self {
        self.config.lag = Some(lag);
        self
    }

    /// What happens when it is as far behind as it may be. Choose [`LagPolicy::Block`] where every message counts more than the
    /// publisher's time, [`DropOldest`](LagPolicy::DropOldest) where the newest counts, [`Reject`](LagPolicy::Reject) where what it has
    /// begun counts, [`Evict`](LagPolicy::Evict) where a gap is worse than an end. With `DropOldest` it looks how far it is behind
    /// each time that it has read what was there when it looked last. With `Reject` up to `lag` messages that have left the ring are
    /// kept for it, in blocks of up to 128.
    ///
    /// Default: [`LagPolicy::Block`].
    pub fn policy(mut self, policy: LagPolicy) -> Self {
        self.config.policy = policy;
        self
    }

    /// The subscription begins.
    ///
    /// # Errors
    /// [`SubscribeError::Closed`]; [`SubscribeError::Build`] for a lag of 0 or beyond the capacity, or an unusable name.
    pub fn join(self) -> Result<Subscriber<T>, SubscribeError>
    where
        T: Send + Sync,
    {
        Subscriber::join(self.shared, self.config)
    }
}

impl<T> fmt::Debug for SubscriberBuilder<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SubscriberBuilder").field("config", &self.config).finish_non_exhaustive()
    }
}
