//! Settings and the router's builder.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use fullbore_core::{BuildError, Clock, EnvReader, OnDrop, Overflow};

use crate::dead::{DeadReason, Hook};
use crate::router::Router;
use crate::rule::HasHeaders;

/// The settings of a [`Router`], from code, a file (feature `serde`: unknown fields are refused) or the environment.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default, deny_unknown_fields))]
pub struct Config {
    /// See [`RouterBuilder::name`].
    pub name: String,
    /// See [`RouterBuilder::max_routes`].
    pub max_routes: usize,
    /// See [`RouterBuilder::on_drop`].
    pub on_drop: OnDrop,
}

impl Default for Config {
    fn default() -> Self {
        Self { name: "router".into(), max_routes: 100_000, on_drop: OnDrop::default() }
    }
}

impl Config {
    /// The defaults, overwritten by variables such as `APP_ROUTER_MAX_ROUTES` for the prefix `APP_ROUTER_`.
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
        env.read("max_routes", &mut config.max_routes)?;
        env.read("on_drop", &mut config.on_drop)?;
        env.finish()?;
        Ok(config)
    }
}

/// The settings of a subscription, from code, a file (feature `serde`: unknown fields are refused) or the environment.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default, deny_unknown_fields))]
pub struct SubscriptionConfig {
    /// See [`SubscriptionBuilder::name`](crate::SubscriptionBuilder::name); `None` is the pattern.
    pub name: Option<String>,
    /// See [`SubscriptionBuilder::capacity`](crate::SubscriptionBuilder::capacity).
    pub capacity: usize,
    /// See [`SubscriptionBuilder::overflow`](crate::SubscriptionBuilder::overflow).
    pub overflow: Overflow,
    /// See [`SubscriptionBuilder::ttl`](crate::SubscriptionBuilder::ttl).
    #[cfg_attr(feature = "serde", serde(with = "fullbore_core::serde_text::maybe_duration"))]
    pub ttl: Option<Duration>,
}

impl Default for SubscriptionConfig {
    fn default() -> Self {
        Self { name: None, capacity: 1024, overflow: Overflow::DEFAULT, ttl: None }
    }
}

impl SubscriptionConfig {
    /// The defaults, overwritten by variables such as `APP_AUDIT_CAPACITY` for the prefix `APP_AUDIT_`.
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
        let mut name = String::new();
        env.read("name", &mut name)?;
        config.name = (!name.is_empty()).then_some(name);
        env.read("capacity", &mut config.capacity)?;
        env.read("overflow", &mut config.overflow)?;
        env.read("ttl", &mut config.ttl)?;
        env.finish()?;
        Ok(config)
    }
}

/// Refuses what cannot be part of a thread's name.
pub(crate) fn check_name(name: &str) -> Result<(), BuildError> {
    if name.is_empty() || name.contains('\0') {
        return Err(BuildError::config("name", format_args!("{name:?}"), "at least one character, and no NUL"));
    }
    Ok(())
}

/// Builds a [`Router`].
pub struct RouterBuilder<M> {
    config: Config,
    clock: Clock,
    hook: Option<Hook<M>>,
    facts: Facts<M>,
}

/// What the router can find out about a message.
pub(crate) struct Facts<M> {
    pub(crate) headers: Option<HeadersOf<M>>,
    pub(crate) ttl: Option<TtlOf<M>>,
}

type HeadersOf<M> = Box<dyn for<'m> Fn(&'m M, &mut dyn FnMut(&'m str, &'m str)) + Send + Sync>;
type TtlOf<M> = Box<dyn Fn(&M) -> Option<Duration> + Send + Sync>;

impl<M> Default for RouterBuilder<M> {
    fn default() -> Self {
        let facts = Facts { headers: None, ttl: None };
        Self { config: Config::default(), clock: Clock::Real, hook: None, facts }
    }
}

impl<M> RouterBuilder<M> {
    /// Takes all settings from `config`.
    #[must_use]
    pub fn config(mut self, config: Config) -> Self {
        self.config = config;
        self
    }

    /// The name in reports and events. Default: `router`.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.config.name = name.into();
        self
    }

    /// How many routes, subscriptions and receivers there may be at once; one more is refused. A bound against a leak, not
    /// a tuning knob: choose well above what the program needs.
    ///
    /// Default: 100,000.
    #[must_use]
    pub fn max_routes(mut self, max_routes: usize) -> Self {
        self.config.max_routes = max_routes;
        self
    }

    /// What dropping the last clone does with messages that subscriptions have accepted: handle them for at most this
    /// long, or abandon them. What is left then goes to the dead letters. Choose at least what the slowest subscription
    /// needs for a full buffer, or call [`Router::close_within`] and look at its report.
    ///
    /// Default: 5 s.
    #[must_use]
    pub fn on_drop(mut self, on_drop: OnDrop) -> Self {
        self.config.on_drop = on_drop;
        self
    }

    /// Is given every message that a destination did not get or could not handle, with the reason; without it they are
    /// counted and, with feature `tracing`, reported. A message that several destinations missed comes once for each.
    ///
    /// It runs without a lock, on the publisher's thread ([`DeadReason::Unroutable`], `Displaced`, `Refused`), on the
    /// subscription's (`Failed`, `Expired`), or on the one that closes (`Abandoned`), and should not wait. Its panic is treated as a
    /// sink's while publishing (resumed once everybody was served) and contained elsewhere. What is published inside it and
    /// goes wrong as well is not given to it again.
    ///
    /// Default: none.
    #[must_use]
    pub fn dead_letter(mut self, hook: impl Fn(Arc<M>, DeadReason) + Send + Sync + 'static) -> Self {
        self.hook = Some(Arc::new(hook));
        self
    }

    /// How a message's headers are read, for [`Rule::header`](crate::Rule::header) and its kin. Called on the publisher's thread,
    /// under no lock, once for each publish while there is a rule about headers. If it panics the message has none, and the
    /// panic goes on once everybody was served.
    ///
    /// Default: no message has headers. See [`own_headers`](Self::own_headers) for messages that say it themselves.
    #[must_use]
    pub fn headers(
        mut self,
        headers: impl for<'m> Fn(&'m M, &mut dyn FnMut(&'m str, &'m str)) + Send + Sync + 'static,
    ) -> Self {
        self.facts.headers = Some(Box::new(headers));
        self
    }

    /// As [`headers`](Self::headers), for messages that are [`HasHeaders`].
    #[must_use]
    pub fn own_headers(self) -> Self
    where
        M: HasHeaders,
    {
        self.headers(|message, each| message.each_header(each))
    }

    /// How long a message is worth anything, from its publishing on; `None`: for ever. One that is older when a subscription
    /// comes to it is not handed over but becomes a dead letter ([`DeadReason::Expired`]). Called on the publisher's thread,
    /// once for each publish. Sinks know nothing of it.
    ///
    /// Default: for ever. A subscription can have a limit [of its own](crate::SubscriptionBuilder::ttl); the earlier one counts.
    #[must_use]
    pub fn ttl(mut self, ttl: impl Fn(&M) -> Option<Duration> + Send + Sync + 'static) -> Self {
        self.facts.ttl = Some(Box::new(ttl));
        self
    }

    /// The clock for deadlines. Default: the real one; tests pass a [`PausedClock`](fullbore_core::PausedClock).
    #[must_use]
    pub fn clock(mut self, clock: impl Into<Clock>) -> Self {
        self.clock = clock.into();
        self
    }

    /// The router.
    ///
    /// # Errors
    /// [`BuildError::Config`] for zero routes or an unusable name.
    pub fn build(self) -> Result<Router<M>, BuildError>
    where
        M: Send + Sync + 'static,
    {
        check_name(&self.config.name)?;
        BuildError::refuse_zero("max_routes", self.config.max_routes)?;
        Ok(self.start())
    }

    /// As [`build`](Self::build), for settings known to be good.
    pub(crate) fn start(self) -> Router<M>
    where
        M: Send + Sync + 'static,
    {
        Router::start(self.config, self.clock, self.hook, self.facts)
    }
}

impl<M> fmt::Debug for RouterBuilder<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RouterBuilder").field("config", &self.config).finish_non_exhaustive()
    }
}
