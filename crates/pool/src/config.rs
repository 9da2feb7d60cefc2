//! Settings and the builder.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use fullbore_core::{Backoff, BuildError, Clock, EnvReader, FromEnv};

use crate::background::Background;
use crate::keyed::KeyedPool;
use crate::manager::{Key, KeyedManager, Manager, Single};
use crate::nested::Nested;
use crate::pool::Pool;

/// Which of the idle connections is taken first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum QueueMode {
    /// The one that the thread had last, else the next in a fixed order (of a keyed pool: the one that was used last): few
    /// connections do most of the work, and the others can be closed. No lock is needed.
    #[default]
    Lifo,
    /// The one that was idle for longest: all get the same work, for example behind a balancer of load. Each checkout
    /// takes the pool's lock then.
    Fifo,
}
from_text!(QueueMode: "lifo or fifo"; "lifo" => QueueMode::Lifo, "fifo" => QueueMode::Fifo);

/// What becomes of a connection whose holder panicked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum OnPanic {
    /// It is closed: nobody continues a stranger's half-done work.
    #[default]
    Discard,
    /// It is validated before it is used again. That finds a broken connection, not an open transaction.
    Check,
    /// It goes back like any other.
    Return,
}
from_text!(OnPanic: "discard, check or return"; "discard" => OnPanic::Discard, "check" => OnPanic::Check, "return" => OnPanic::Return);

/// What `get` does while no connection can be made and there is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum WhileDown {
    /// Fails at once with the last error, and its age.
    #[default]
    Fail,
    /// Waits for the next attempts, until its own deadline.
    Wait,
}
from_text!(WhileDown: "fail or wait"; "fail" => WhileDown::Fail, "wait" => WhileDown::Wait);

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
    /// See [`PoolBuilder::min_idle`]. A keyed pool keeps none, and refuses another number than 0.
    pub min_idle: usize,
    /// See [`PoolBuilder::queue_mode`].
    pub queue_mode: QueueMode,
    /// See [`PoolBuilder::get_timeout`].
    #[cfg_attr(feature = "serde", serde(with = "fullbore_core::serde_text::duration"))]
    pub get_timeout: Duration,
    /// See [`PoolBuilder::max_waiters`].
    pub max_waiters: usize,
    /// See [`PoolBuilder::reserve_size`].
    pub reserve_size: usize,
    /// See [`PoolBuilder::reserve_after`].
    #[cfg_attr(feature = "serde", serde(with = "fullbore_core::serde_text::duration"))]
    pub reserve_after: Duration,
    /// See [`PoolBuilder::connect_timeout`].
    #[cfg_attr(feature = "serde", serde(with = "fullbore_core::serde_text::duration"))]
    pub connect_timeout: Duration,
    /// See [`PoolBuilder::backoff`].
    #[cfg_attr(feature = "serde", serde(with = "fullbore_core::serde_text::duration"))]
    pub backoff_min: Duration,
    /// See [`PoolBuilder::backoff`].
    #[cfg_attr(feature = "serde", serde(with = "fullbore_core::serde_text::duration"))]
    pub backoff_max: Duration,
    /// See [`PoolBuilder::while_down`].
    pub while_down: WhileDown,
    /// See [`PoolBuilder::validate_after`].
    #[cfg_attr(feature = "serde", serde(with = "fullbore_core::serde_text::duration"))]
    pub validate_after: Duration,
    /// See [`PoolBuilder::validate_timeout`].
    #[cfg_attr(feature = "serde", serde(with = "fullbore_core::serde_text::duration"))]
    pub validate_timeout: Duration,
    /// See [`PoolBuilder::keepalive`].
    #[cfg_attr(feature = "serde", serde(with = "fullbore_core::serde_text::maybe_duration"))]
    pub keepalive: Option<Duration>,
    /// See [`PoolBuilder::idle_timeout`].
    #[cfg_attr(feature = "serde", serde(with = "fullbore_core::serde_text::maybe_duration"))]
    pub idle_timeout: Option<Duration>,
    /// See [`PoolBuilder::max_lifetime`].
    #[cfg_attr(feature = "serde", serde(with = "fullbore_core::serde_text::maybe_duration"))]
    pub max_lifetime: Option<Duration>,
    /// See [`PoolBuilder::lifetime_jitter`].
    pub lifetime_jitter: f64,
    /// See [`PoolBuilder::on_panic`].
    pub on_panic: OnPanic,
    /// See [`PoolBuilder::nested`].
    pub nested: Nested,
    /// See [`PoolBuilder::leak_after`].
    #[cfg_attr(feature = "serde", serde(with = "fullbore_core::serde_text::maybe_duration"))]
    pub leak_after: Option<Duration>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            name: "pool".into(),
            max_size: 10,
            max_per_key: usize::MAX,
            min_idle: 0,
            queue_mode: QueueMode::Lifo,
            get_timeout: Duration::from_secs(30),
            max_waiters: usize::MAX,
            reserve_size: 0,
            reserve_after: Duration::from_secs(5),
            connect_timeout: Duration::from_secs(10),
            backoff_min: Duration::from_millis(100),
            backoff_max: Duration::from_secs(5),
            while_down: WhileDown::Fail,
            validate_after: Duration::from_millis(500),
            validate_timeout: Duration::from_secs(5),
            keepalive: None,
            idle_timeout: Some(Duration::from_secs(600)),
            max_lifetime: Some(Duration::from_secs(1800)),
            lifetime_jitter: 0.1,
            on_panic: OnPanic::Discard,
            nested: Nested::Off,
            leak_after: None,
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
        env.read("min_idle", &mut config.min_idle)?;
        env.read("queue_mode", &mut config.queue_mode)?;
        env.read("get_timeout", &mut config.get_timeout)?;
        env.read("max_waiters", &mut config.max_waiters)?;
        env.read("reserve_size", &mut config.reserve_size)?;
        env.read("reserve_after", &mut config.reserve_after)?;
        env.read("connect_timeout", &mut config.connect_timeout)?;
        env.read("backoff_min", &mut config.backoff_min)?;
        env.read("backoff_max", &mut config.backoff_max)?;
        env.read("while_down", &mut config.while_down)?;
        env.read("validate_after", &mut config.validate_after)?;
        env.read("validate_timeout", &mut config.validate_timeout)?;
        env.read("keepalive", &mut config.keepalive)?;
        env.read("idle_timeout", &mut config.idle_timeout)?;
        env.read("max_lifetime", &mut config.max_lifetime)?;
        env.read("lifetime_jitter", &mut config.lifetime_jitter)?;
        env.read("on_panic", &mut config.on_panic)?;
        env.read("nested", &mut config.nested)?;
        env.read("leak_after", &mut config.leak_after)?;
        env.finish()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), BuildError> {
        BuildError::refuse_zero("max_size", self.max_size)?;
        BuildError::refuse_zero("max_per_key", self.max_per_key)?;
        // Who asks for the first connection waits for it.
        BuildError::refuse_zero("max_waiters", self.max_waiters)?;
        if self.min_idle > self.max_size {
            return Err(BuildError::config("min_idle", self.min_idle, "at most max_size"));
        }
        let times = [
            // Nobody could ever connect; `try_get` is the call that does not wait.
            ("get_timeout", Some(self.get_timeout)),
            ("connect_timeout", Some(self.connect_timeout)),
            ("validate_timeout", Some(self.validate_timeout)),
            ("backoff_min", Some(self.backoff_min)),
            ("keepalive", self.keepalive),
            ("idle_timeout", self.idle_timeout),
            ("max_lifetime", self.max_lifetime),
            ("leak_after", self.leak_after),
        ];
        for (field, value) in times {
            if value == Some(Duration::ZERO) {
                return Err(BuildError::config(field, "0s", "more than zero"));
            }
        }
        if self.backoff_max < self.backoff_min {
            let value = format!("{:?}", self.backoff_max);
            return Err(BuildError::config("backoff_max", value, "at least backoff_min"));
        }
        if !(0.0..1.0).contains(&self.lifetime_jitter) {
            return Err(BuildError::config("lifetime_jitter", self.lifetime_jitter, "at least 0 and less than 1"));
        }
        Ok(())
    }
}

/// What a [`PoolBuilder`] can build: [`Pool`] and [`KeyedPool`].
pub trait Target: Sized + sealed::Sealed {
    /// Its manager.
    type Manager;

    #[doc(hidden)]
    fn start(config: Config, clock: Clock, background: Background, manager: Self::Manager) -> Result<Self, BuildError>;
}

mod sealed {
    #[expect(unnameable_types, reason = "sealed: nobody else implements `Target`")]
    pub trait Sealed {}
    impl<M: super::Manager> Sealed for super::Pool<M> {}
    impl<K: super::Key, M: super::KeyedManager<K>> Sealed for super::KeyedPool<K, M> {}
}

impl<M: Manager> Target for Pool<M> {
    type Manager = M;
    fn start(config: Config, clock: Clock, background: Background, manager: M) -> Result<Self, BuildError> {
        // There is one key, which has it all.
        let config = Config { max_per_key: usize::MAX, ..config };
        Ok(Pool { keyed: KeyedPool::open(config, clock, background, Single(manager)) })
    }
}

impl<K: Key, M: KeyedManager<K>> Target for KeyedPool<K, M> {
    type Manager = M;
    fn start(config: Config, clock: Clock, background: Background, manager: M) -> Result<Self, BuildError> {
        if config.min_idle != 0 {
            return Err(BuildError::config("min_idle", config.min_idle, "0: a keyed pool cannot know of which key"));
        }
        Ok(KeyedPool::open(config, clock, background, manager))
    }
}

/// Builds a [`Pool`] or a [`KeyedPool`].
#[must_use = "a builder does nothing before build()"]
pub struct PoolBuilder<P: Target> {
    config: Config,
    clock: Clock,
    background: Option<Background>,
    manager: P::Manager,
}

impl<P: Target> PoolBuilder<P> {
    pub(crate) fn new(manager: P::Manager) -> Self {
        Self { config: Config::default(), clock: Clock::Real, background: None, manager }
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

    /// The most connections there are at once, idle ones, those being made and those being closed included. A database does not get
    /// faster by more connections than it has cores and disks to serve them: start with twice its cores, measure, change.
    ///
    /// Default: 10.
    pub fn max_size(mut self, max_size: usize) -> Self {
        self.config.max_size = max_size;
        self
    }

    /// Which idle connection is taken first.
    ///
    /// Default: [`QueueMode::Lifo`].
    pub fn queue_mode(mut self, queue_mode: QueueMode) -> Self {
        self.config.queue_mode = queue_mode;
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

    /// How many threads may wait in `get`; one more is refused at once
    /// ([`GetError::is_shed`](crate::GetError::is_shed)). A time limit alone lets everybody wait for it in vain when the pool
    /// is far too small for what is asked of it. Choose `get_timeout` over the time that a connection is out, times `max_size`.
    ///
    /// Default: no limit, which is the number of threads.
    pub fn max_waiters(mut self, max_waiters: usize) -> Self {
        self.config.max_waiters = max_waiters;
        self
    }

    /// How many connections above `max_size` may be made when the first in line has waited for
    /// [`reserve_after`](Self::reserve_after). They are closed when nobody waits any more.
    ///
    /// Default: 0.
    pub fn reserve_size(mut self, reserve_size: usize) -> Self {
        self.config.reserve_size = reserve_size;
        self
    }

    /// When the reserve is used. Choose a wait that you want to be told of rather than have.
    ///
    /// Default: 5 s; of no account without a reserve.
    pub fn reserve_after(mut self, reserve_after: Duration) -> Self {
        self.config.reserve_after = reserve_after;
        self
    }

    /// How long making one connection may take. The manager is told; an attempt that takes half a second longer is given up, its
    /// place is free again, and what comes of it later is closed. While 4 such attempts (of one key; 32 of all) have not come to
    /// their end, no other is begun: a manager should keep to its time.
    ///
    /// Default: 10 s. Choose several times what it usually takes.
    pub fn connect_timeout(mut self, connect_timeout: Duration) -> Self {
        self.config.connect_timeout = connect_timeout;
        self
    }

    /// The pauses between attempts to connect while they fail: from `min`, doubled each time, to `max`, each shortened by
    /// up to half of itself by chance. There is one attempt at a time then (for each key of a keyed pool). `max` is how long the
    /// database can be back before the pool notices, if it is asked.
    ///
    /// Default: 100 ms to 5 s.
    pub fn backoff(mut self, min: Duration, max: Duration) -> Self {
        self.config.backoff_min = min;
        self.config.backoff_max = max;
        self
    }

    /// What `get` does while no connection can be made and there is none.
    ///
    /// Default: [`WhileDown::Fail`]. A job in the night chooses `Wait`.
    pub fn while_down(mut self, while_down: WhileDown) -> Self {
        self.config.while_down = while_down;
        self
    }

    /// A connection idle for longer than this is validated at checkout; one used more recently is trusted, as long as no other
    /// one turned out to be dead meanwhile. Zero validates each time, which costs a round trip; long windows hand out
    /// connections that died.
    ///
    /// Default: 500 ms.
    pub fn validate_after(mut self, validate_after: Duration) -> Self {
        self.config.validate_after = validate_after;
        self
    }

    /// How long a validation may take, if the caller has as much time left.
    ///
    /// Default: 5 s.
    pub fn validate_timeout(mut self, validate_timeout: Duration) -> Self {
        self.config.validate_timeout = validate_timeout;
        self
    }

    /// A connection idle for this long is validated in the background, so that a firewall or a server does not drop it, and
    /// a dead one is found before anybody wants it. Choose half of what they allow.
    ///
    /// Default: none.
    pub fn keepalive(mut self, keepalive: impl Into<Option<Duration>>) -> Self {
        self.config.keepalive = keepalive.into();
        self
    }

    /// A connection idle for longer than this is closed, unless `min_idle` needs it. Choose less than the server or a firewall on
    /// the way allows.
    ///
    /// Default: 10 minutes.
    pub fn idle_timeout(mut self, idle_timeout: impl Into<Option<Duration>>) -> Self {
        self.config.idle_timeout = idle_timeout.into();
        self
    }

    /// A connection older than this is closed: when it is returned, and while it is idle, after another one has been made
    /// in its stead if `min_idle` wants one. Bounds what a server leaks for a connection and how long an old address is used
    /// after a failover.
    ///
    /// Default: 30 minutes, less [`lifetime_jitter`](Self::lifetime_jitter).
    pub fn max_lifetime(mut self, max_lifetime: impl Into<Option<Duration>>) -> Self {
        self.config.max_lifetime = max_lifetime.into();
        self
    }

    /// By which part of itself, at most, each connection's lifetime is shortened by chance, so that those made together do not
    /// go together. From 0 to below 1.
    ///
    /// Default: 0.1.
    pub fn lifetime_jitter(mut self, lifetime_jitter: f64) -> Self {
        self.config.lifetime_jitter = lifetime_jitter;
        self
    }

    /// What becomes of a connection whose holder panicked.
    ///
    /// Default: [`OnPanic::Discard`].
    pub fn on_panic(mut self, on_panic: OnPanic) -> Self {
        self.config.on_panic = on_panic;
        self
    }

    /// What `get` does on a thread that holds a connection of this pool. T threads that need C connections each at once can
    /// only be sure to end with T x (C - 1) + 1 of them.
    ///
    /// Default: [`Nested::Off`], which costs nothing; the others take some 20 ns a checkout. A connection that moves to another
    /// thread counts there from its first use as `&mut`.
    pub fn nested(mut self, nested: Nested) -> Self {
        self.config.nested = nested;
        self
    }

    /// A connection that is out for longer than this is reported, once, with the call of `get` that took it (an event of
    /// feature `tracing`; [`Pool::checkouts`] lists them). It is not taken back. Choose several times the longest work.
    ///
    /// Default: none, which costs nothing; with it a checkout takes some 50 ns more.
    pub fn leak_after(mut self, leak_after: impl Into<Option<Duration>>) -> Self {
        self.config.leak_after = leak_after.into();
        self
    }

    /// The threads that make its connections.
    ///
    /// Default: those that all pools of the process share ([`Background::shared`]); with a paused clock, its own.
    pub fn background(mut self, background: &Background) -> Self {
        self.background = Some(background.clone());
        self
    }

    /// The clock for deadlines and ages. Default: the real one; tests pass a [`PausedClock`](fullbore_core::PausedClock).
    pub fn clock(mut self, clock: impl Into<Clock>) -> Self {
        self.clock = clock.into();
        self
    }

    /// The pool. It does not wait for connections: `min_idle` of them are made in the background.
    ///
    /// # Errors
    /// [`BuildError::Config`] for sizes and times that make no sense.
    pub fn build(self) -> Result<P, BuildError> {
        self.config.check()?;
        let background = match (self.background, &self.clock) {
            (Some(background), _) => background,
            (None, Clock::Real) => Background::shared(),
            (None, clock) => Background::on(Background::DEFAULT_MAX_CONNECTING, clock.clone())?,
        };
        if background.is_forked() {
            return Err(BuildError::config("background", "the parent's of this process", "one that was made in it"));
        }
        if !background.is_on(&self.clock) {
            return Err(BuildError::config("background", "one with another clock", "one with the pool's clock"));
        }
        P::start(self.config, self.clock, background, self.manager)
    }
}

impl<M: Manager> PoolBuilder<Pool<M>> {
    /// How many idle connections are kept ready, made in the background when there are fewer, within `max_size`.
    ///
    /// Default: 0. Choose what a burst after a pause needs at once, if connecting is slow.
    pub fn min_idle(mut self, min_idle: usize) -> Self {
        self.config.min_idle = min_idle;
        self
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

impl Config {
    pub(crate) fn backoff(&self) -> Backoff {
        Backoff { min: self.backoff_min, max: self.backoff_max, jitter: false }
    }
}

impl<P: Target> fmt::Debug for PoolBuilder<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PoolBuilder").field("config", &self.config).finish_non_exhaustive()
    }
}
