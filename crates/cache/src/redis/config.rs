//! Settings of the second tier, and the builder.

use std::fmt;
use std::marker::PhantomData;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use fullbore_core::{BuildError, EnvReader, Events, FromEnv};
use fullbore_limit::{Breaker, BreakerConfig};
use fullbore_metrics::Counter;
use fullbore_pool::Pool;
use redis::Client;

use crate::redis::background::Background;
use crate::redis::codec::{Codec, Postcard};
use crate::redis::core::{Core, Counts};
use crate::redis::error::TierError;
use crate::redis::frame::{Limits, MAX_TEXT};
use crate::redis::key::RedisKey;
use crate::redis::link::{Link, Plan, Shared, Why, random};
use crate::redis::scripts::Scripts;
use crate::redis::space::Space;
use crate::redis::tags::Tags;
use crate::redis::tier::{Ears, Tier, Told};
use crate::redis::wire::Wire;

/// What a cache does that finds no Redis when it is built.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum WhenUnreachable {
    /// It works in memory alone, and with Redis from when that is there.
    #[default]
    Degrade,
    /// It is not built.
    Fail,
}

impl FromEnv for WhenUnreachable {
    const EXPECTED: &'static str = "degrade or fail";
    fn from_env_text(text: &str) -> Option<Self> {
        match text {
            "degrade" => Some(WhenUnreachable::Degrade),
            "fail" => Some(WhenUnreachable::Fail),
            _ => None,
        }
    }
}

/// When a value that is put into the cache, not loaded, is written to Redis.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum Writes {
    /// Before the call returns.
    #[default]
    Foreground,
    /// By a thread of its own, many together; so many may wait, and the next one is refused. A write that waits is not done
    /// when the key changes meanwhile, by whomever. There remains the time of one round trip in which it can arrive after
    /// another process's removal of the key: where that matters, write in the foreground.
    Background(usize),
}

impl FromEnv for Writes {
    const EXPECTED: &'static str = "foreground, or how many may wait in the background";
    fn from_env_text(text: &str) -> Option<Self> {
        if text == "foreground" { Some(Writes::Foreground) } else { text.parse().ok().map(Writes::Background) }
    }
}

/// The settings of a [`RedisTier`], from code, a file (feature `serde`: unknown fields are refused) or the environment.
#[derive(Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default, deny_unknown_fields))]
pub struct RedisConfig {
    /// See [`RedisTierBuilder::url`].
    pub url: String,
    /// See [`RedisTierBuilder::prefix`].
    pub prefix: String,
    /// See [`RedisTierBuilder::budget`].
    #[cfg_attr(feature = "serde", serde(with = "fullbore_core::serde_text::duration"))]
    pub budget: Duration,
    /// See [`RedisTierBuilder::breaker`].
    pub breaker: BreakerConfig,
    /// See [`RedisTierBuilder::lease`].
    #[cfg_attr(feature = "serde", serde(with = "fullbore_core::serde_text::duration"))]
    pub lease: Duration,
    /// See [`RedisTierBuilder::max_value`].
    pub max_value: usize,
    /// See [`RedisTierBuilder::max_key`].
    pub max_key: usize,
    /// See [`RedisTierBuilder::zstd_above`].
    pub zstd_above: Option<usize>,
    /// See [`RedisTierBuilder::writes`].
    pub writes: Writes,
    /// See [`RedisTierBuilder::when_unreachable`].
    pub when_unreachable: WhenUnreachable,
    /// See [`RedisTierBuilder::outage_ttl`].
    #[cfg_attr(feature = "serde", serde(with = "fullbore_core::serde_text::duration"))]
    pub outage_ttl: Duration,
    /// See [`RedisTierBuilder::pool_size`].
    pub pool_size: usize,
    /// See [`RedisTierBuilder::connect_timeout`].
    #[cfg_attr(feature = "serde", serde(with = "fullbore_core::serde_text::duration"))]
    pub connect_timeout: Duration,
}

impl Default for RedisConfig {
    fn default() -> Self {
        Self {
            url: String::new(),
            prefix: String::new(),
            budget: Duration::from_millis(100),
            breaker: BreakerConfig::default(),
            lease: Duration::from_secs(60),
            max_value: 1 << 20,
            max_key: 64 << 10,
            zstd_above: None,
            writes: Writes::Foreground,
            when_unreachable: WhenUnreachable::Degrade,
            outage_ttl: Duration::from_secs(1),
            pool_size: 16,
            connect_timeout: Duration::from_secs(1),
        }
    }
}

/// An `Option` that a variable sets.
struct Set<T>(Option<T>);

impl<T: FromEnv> FromEnv for Set<T> {
    const EXPECTED: &'static str = T::EXPECTED;
    fn from_env_text(text: &str) -> Option<Self> {
        if text == "none" { Some(Self(None)) } else { T::from_env_text(text).map(|value| Self(Some(value))) }
    }
}

impl RedisConfig {
    /// The defaults, overwritten by variables such as `APP_REDIS_BUDGET` for the prefix `APP_REDIS_`; the breaker's are called
    /// `APP_REDIS_BREAKER_OPEN_FOR` and so on.
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
        env.read("url", &mut config.url)?;
        env.read("prefix", &mut config.prefix)?;
        env.read("budget", &mut config.budget)?;
        env.read("breaker_consecutive_failures", &mut config.breaker.consecutive_failures)?;
        env.read("breaker_failure_rate", &mut config.breaker.failure_rate)?;
        env.read("breaker_window", &mut config.breaker.window)?;
        env.read("breaker_min_calls", &mut config.breaker.min_calls)?;
        env.read("breaker_open_for", &mut config.breaker.open_for)?;
        env.read("breaker_open_max", &mut config.breaker.open_max)?;
        env.read("breaker_jitter", &mut config.breaker.jitter)?;
        env.read("lease", &mut config.lease)?;
        env.read("max_value", &mut config.max_value)?;
        env.read("max_key", &mut config.max_key)?;
        let mut zstd_above = Set(config.zstd_above);
        env.read("zstd_above", &mut zstd_above)?;
        config.zstd_above = zstd_above.0;
        env.read("writes", &mut config.writes)?;
        env.read("when_unreachable", &mut config.when_unreachable)?;
        env.read("outage_ttl", &mut config.outage_ttl)?;
        env.read("pool_size", &mut config.pool_size)?;
        env.read("connect_timeout", &mut config.connect_timeout)?;
        env.finish()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), BuildError> {
        if self.prefix.is_empty() {
            return Err(BuildError::config(
                "prefix",
                "(nothing)",
                "a prefix with your schema's version, such as shop:v3:user:",
            ));
        }
        if self.prefix.len() > MAX_TEXT {
            return Err(BuildError::config(
                "prefix",
                format!("{} bytes", self.prefix.len()),
                format!("at most {MAX_TEXT} bytes"),
            ));
        }
        for (field, value) in [("max_value", self.max_value), ("max_key", self.max_key), ("pool_size", self.pool_size)]
        {
            BuildError::refuse_zero(field, value)?;
        }
        // Redis itself takes no more.
        for (field, value) in [("max_value", self.max_value), ("max_key", self.max_key)] {
            if value > 512 << 20 {
                return Err(BuildError::config(field, value, "at most 512 MiB, as Redis takes no more"));
            }
        }
        for (field, value) in [("budget", self.budget), ("connect_timeout", self.connect_timeout)] {
            if value.is_zero() {
                return Err(BuildError::config(field, "0s", "more than zero"));
            }
        }
        if self.lease < Duration::from_millis(1) || self.lease > Duration::from_secs(86_400) {
            return Err(BuildError::config("lease", format!("{:?}", self.lease), "from 1 ms to a day"));
        }
        if self.writes == Writes::Background(0) {
            return Err(BuildError::config("writes", "background with room for 0", "room for at least 1"));
        }
        if self.zstd_above.is_some() && !cfg!(feature = "zstd") {
            return Err(BuildError::config("zstd_above", "a size", "none, or the crate with its feature zstd"));
        }
        self.breaker.check()
    }
}

impl fmt::Debug for RedisConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the URL, which may hold a password.
        f.debug_struct("RedisConfig")
            .field("prefix", &self.prefix)
            .field("budget", &self.budget)
            .field("lease", &self.lease)
            .field("max_value", &self.max_value)
            .field("max_key", &self.max_key)
            .field("zstd_above", &self.zstd_above)
            .field("writes", &self.writes)
            .field("when_unreachable", &self.when_unreachable)
            .field("pool_size", &self.pool_size)
            .field("connect_timeout", &self.connect_timeout)
            .finish_non_exhaustive()
    }
}

/// Builds a [`RedisTier`].
#[derive(Clone)]
pub struct RedisTierBuilder<C = Postcard> {
    config: RedisConfig,
    client: Option<Client>,
    codec: C,
}

impl<C> RedisTierBuilder<C> {
    /// Takes all settings from `config`.
    #[must_use]
    pub fn config(mut self, config: RedisConfig) -> Self {
        self.config = config;
        self
    }

    /// Where Redis is: `redis://user:password@host:6379/0`, `rediss://` for TLS (feature `redis-tls`). One server or the
    /// primary of several; not a cluster.
    #[must_use]
    pub fn url(mut self, url: impl Into<String>) -> Self {
        self.config.url = url.into();
        self
    }

    /// A client of your own, instead of [`url`](Self::url).
    #[must_use]
    pub fn client(mut self, client: Client) -> Self {
        self.client = Some(client);
        self
    }

    /// What the name of everything in Redis begins with; no other cache's prefix may begin with it. It carries the version of
    /// your value's type: where that changes so that old bytes would be read as something else, change the prefix, and old and
    /// new processes do not meet. Required.
    #[must_use]
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.config.prefix = prefix.into();
        self
    }

    /// How values are written. All processes must use the same; what another one wrote is a miss.
    ///
    /// Default: [`Postcard`].
    #[must_use]
    pub fn codec<D>(self, codec: D) -> RedisTierBuilder<D> {
        RedisTierBuilder { config: self.config, client: self.client, codec }
    }

    /// How long a request may spend on Redis, all steps together, from the wait for a connection to the last answer; not the
    /// wait for another process that loads the value. What does not end in time counts as a failure for the breaker, and the
    /// request goes on without Redis. Choose a few times the slowest answer that you see on a good day, and less than what
    /// loading the value takes.
    ///
    /// Default: 100 ms.
    #[must_use]
    pub fn budget(mut self, budget: Duration) -> Self {
        self.config.budget = budget;
        self
    }

    /// When to stop asking a Redis that fails. Its name is ignored: it has the cache's.
    ///
    /// Default: that of [`BreakerConfig`].
    #[must_use]
    pub fn breaker(mut self, breaker: BreakerConfig) -> Self {
        self.config.breaker = breaker;
        self
    }

    /// How long a load may take before another process may begin one of its own. The death of a process is noticed within
    /// seconds without this. Choose more than your slowest load: the value of one that takes longer is not kept.
    ///
    /// Default: 60 s.
    #[must_use]
    pub fn lease(mut self, lease: Duration) -> Self {
        self.config.lease = lease;
        self
    }

    /// How many bytes a value may have as the codec writes it, before it is compressed. Larger ones are not written, and not
    /// read. Large values hold up all that Redis does: choose the largest that you mean to have.
    ///
    /// Default: 1 MiB.
    #[must_use]
    pub fn max_value(mut self, max_value: usize) -> Self {
        self.config.max_value = max_value;
        self
    }

    /// How many bytes a key may have, without the prefix. A longer one is an error.
    ///
    /// Default: 64 KiB.
    #[must_use]
    pub fn max_key(mut self, max_key: usize) -> Self {
        self.config.max_key = max_key;
        self
    }

    /// Values with more bytes than this are compressed, where that makes them smaller. It costs some microseconds for each
    /// KiB; choose it where the network is what you wait for. Needs feature `zstd`, in every process.
    ///
    /// Default: none, nothing is compressed.
    #[must_use]
    pub fn zstd_above(mut self, zstd_above: impl Into<Option<usize>>) -> Self {
        self.config.zstd_above = zstd_above.into();
        self
    }

    /// When values that are put into the cache are written. Loaded ones are always written before the call returns.
    ///
    /// Default: in the foreground.
    #[must_use]
    pub fn writes(mut self, writes: Writes) -> Self {
        self.config.writes = writes;
        self
    }

    /// What to do when no Redis is there at the beginning. A wrong password, a missing permission and a Redis that is too old
    /// are errors in any case, if they are found out then.
    ///
    /// Default: to work without it until it is there.
    #[must_use]
    pub fn when_unreachable(mut self, when_unreachable: WhenUnreachable) -> Self {
        self.config.when_unreachable = when_unreachable;
        self
    }

    /// For how long a value is remembered that was loaded, or put in, while Redis could not be asked or did not tell of changes: nobody can say
    /// during that time whether another process has removed it. Zero: not at all, and each call loads. Choose how old an answer
    /// may be that nobody can invalidate.
    ///
    /// Default: 1 s.
    #[must_use]
    pub fn outage_ttl(mut self, outage_ttl: Duration) -> Self {
        self.config.outage_ttl = outage_ttl;
        self
    }

    /// How many connections there are at most, beside that of the link. Threads that find none free wait, within the budget:
    /// choose the number of threads that ask Redis at the same moment, which are few where most look-ups are hits.
    ///
    /// Default: 16.
    #[must_use]
    pub fn pool_size(mut self, pool_size: usize) -> Self {
        self.config.pool_size = pool_size;
        self
    }

    /// How long it may take to connect. The caller waits no longer than his budget in any case.
    ///
    /// Default: 1 s.
    #[must_use]
    pub fn connect_timeout(mut self, connect_timeout: Duration) -> Self {
        self.config.connect_timeout = connect_timeout;
        self
    }

    /// The tier, not yet connected: a cache does that when it is built.
    ///
    /// # Errors
    /// [`BuildError::Config`] names the setting that makes no sense.
    pub fn build(self) -> Result<RedisTier<C>, BuildError> {
        let Self { config, client, codec } = self;
        config.check()?;
        let client = match client {
            Some(client) => client,
            // Its value is not told: it may hold a password.
            None => Client::open(config.url.as_str()).map_err(|error| {
                BuildError::config("url", "(not shown)", format!("redis://host:port/ or the like: {error}"))
            })?,
        };
        Ok(RedisTier { config, client, codec })
    }
}

impl<C> fmt::Debug for RedisTierBuilder<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisTierBuilder").field("config", &self.config).finish_non_exhaustive()
    }
}

/// The second tier of a cache: its values in Redis, for all processes that use the same prefix.
///
/// ```
/// use fullbore_cache::redis::RedisTier;
/// use std::time::Duration;
///
/// let tier = RedisTier::builder()
///     .url("redis://localhost/")
///     .prefix("shop:v3:user:")
///     .budget(Duration::from_millis(50))
///     .build()?;
/// # let _ = tier;
/// # Ok::<(), fullbore_core::BuildError>(())
/// ```
#[derive(Clone)]
pub struct RedisTier<C = Postcard> {
    config: RedisConfig,
    client: Client,
    codec: C,
}

impl RedisTier {
    /// Describes a tier.
    #[must_use]
    pub fn builder() -> RedisTierBuilder {
        RedisTierBuilder { config: RedisConfig::default(), client: None, codec: Postcard }
    }
}

impl<C> RedisTier<C> {
    /// Its settings.
    #[must_use]
    pub fn settings(&self) -> &RedisConfig {
        &self.config
    }

    /// Connects, and tells `told` of changes from then on. Waits for the first attempt of the link, for at most the time to
    /// connect.
    ///
    /// # Errors
    /// [`BuildError::Config`] names the setting that keeps Redis from serving; [`BuildError::Spawn`] if there is no thread.
    pub fn connect<K, V>(self, name: &str, told: Arc<dyn Told<K>>) -> Result<Tier<K, V>, BuildError>
    where
        K: RedisKey + 'static,
        V: Send + Sync + 'static,
        C: Codec<V>,
    {
        let Self { config, client, codec } = self;
        provide_tls();
        let shown = client.get_connection_info().addr().to_string();
        let space = Arc::new(Space::new(&config.prefix, config.max_key));
        let scripts = Scripts::new();
        let listener: Arc<OnceLock<Weak<Shared>>> = Arc::default();
        let listens = Arc::clone(&listener);
        let leads_to = move |server| {
            if let Some(link) = listens.get().and_then(Weak::upgrade) {
                link.others_lead_to(server);
            }
        };
        let pool = Pool::builder(Wire::door(client.clone(), leads_to))
            .name(format!("{name}-l2"))
            .max_size(config.pool_size)
            .get_timeout(config.budget)
            .validate_timeout(config.budget)
            .connect_timeout(config.connect_timeout)
            .backoff(Duration::from_millis(50), Duration::from_secs(1))
            .build()?;
        let breaker = Breaker::builder()
            .config(BreakerConfig { name: format!("{name}-l2"), ..config.breaker.clone() })
            .build()?;
        let background = match config.writes {
            Writes::Foreground => None,
            Writes::Background(capacity) => Some(Arc::new(Background::new(name, capacity, Arc::clone(&space))?)),
        };
        let tags = Arc::new(Tags::new());
        let strangers = Counter::new();
        let ears = Ears { told, tags: Arc::clone(&tags), background: background.clone(), strangers: strangers.clone() };
        let renewed = pool.clone();
        let plan = Plan {
            renew: Box::new(move || renewed.soft_evict()),
            name: name.to_owned(),
            client,
            space: Arc::clone(&space),
            connect_timeout: config.connect_timeout,
            abandon: Arc::clone(&scripts.abandon),
        };
        let (link, first) = Link::start(plan, random(), Arc::new(ears))?;
        // No connection of the pool is made before.
        let _ = listener.set(Arc::downgrade(&link.shared));
        let core = Arc::new(Core {
            wire: Wire { pool, breaker, timeouts: Counter::new(), failures: Counter::new() },
            link,
            space,
            scripts,
            tags,
            limits: Limits { max_value: config.max_value, zstd_above: config.zstd_above },
            budget: config.budget,
            lease: config.lease,
            counts: Counts::default(),
            events: Events::new("cache", name),
        });
        core.wire.breaker.station().held_by(core.wire.pool.station());
        if let Some(background) = &background {
            background.attach(&core);
            background.station().feeds(core.wire.breaker.station());
        }
        // From here on its drop ends the threads.
        let tier = Tier { core, codec: Arc::new(codec), background, strangers, keys: PhantomData };
        if let Err(why) = first
            && (config.when_unreachable == WhenUnreachable::Fail || !why.is_unreachable())
        {
            return Err(refusal(&why, shown));
        }
        if tier.is_up() {
            tier.probe(&shown)?;
        }
        Ok(tier)
    }
}

/// What TLS encrypts with, unless the program has said so itself: without it the driver would panic.
#[cfg(feature = "redis-tls")]
fn provide_tls() {
    if rustls::crypto::CryptoProvider::get_default().is_none() {
        // Somebody else may have been faster.
        let _ = rustls::crypto::ring::default_provider().install_default();
    }
}

#[cfg(not(feature = "redis-tls"))]
fn provide_tls() {}

fn refusal(why: &Why, shown: String) -> BuildError {
    match why {
        Why::Credentials(said) => {
            BuildError::config("url", shown, format!("a user and a password that Redis accepts: {said}"))
        }
        Why::Permission(said) => BuildError::config(
            "url",
            shown,
            format!("a user that may use CLIENT TRACKING, and EVAL on names that begin with the prefix: {said}"),
        ),
        Why::TooOld(said) => BuildError::config("url", shown, format!("Redis 6.2 or later, or Valkey: {said}")),
        Why::Unreachable(_) | Why::Silent | Why::Elsewhere | Why::Closed => {
            BuildError::config("when_unreachable", "fail", format!("a Redis at {shown}, or degrade: {why}"))
        }
    }
}

impl<K, V> Tier<K, V> {
    /// Whether scripts may be run below the prefix, in a way that changes nothing.
    fn probe(&self, shown: &str) -> Result<(), BuildError> {
        let core = &self.core;
        let name = core.space.wake(&core.link.shared.owner);
        let mut purse = core.purse(None);
        match core.wire.ask(&mut purse, |line| line.eval(&core.scripts.abandon, &[&name], &[b"probe"])) {
            Err(TierError::Refused { code, detail }) if *code == *"NOPERM" => {
                Err(refusal(&Why::Permission(format!("{code} {detail}")), shown.to_owned()))
            }
            // Of anything else the requests will learn.
            _ => Ok(()),
        }
    }
}

impl<C> fmt::Debug for RedisTier<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisTier").field("config", &self.config).finish_non_exhaustive()
    }
}
