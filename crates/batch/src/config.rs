//! Settings and the builder.

use std::fmt;
use std::time::Duration;

use fullbore_core::{BuildError, Clock, EnvReader, Failure, FromEnv, OnDrop, Overflow};

use crate::batch::Batch;
use crate::batcher::Batcher;
use crate::engine::Shared;
use crate::outcomes::IntoOutcomes;

pub(crate) type DeadLetter<T> = Box<dyn Fn(T, Failure) + Send + Sync>;

/// The settings of a [`Batcher`], from code, a file (feature `serde`: unknown fields are refused) or the environment.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default, deny_unknown_fields))]
pub struct Config {
    /// See [`BatcherBuilder::name`].
    pub name: String,
    /// See [`BatcherBuilder::max_items`].
    pub max_items: usize,
    /// See [`BatcherBuilder::linger`].
    #[cfg_attr(feature = "serde", serde(with = "fullbore_core::serde_text::duration"))]
    pub linger: Duration,
    /// See [`BatcherBuilder::capacity`]. `None`: ten batches.
    pub capacity: Option<usize>,
    /// See [`BatcherBuilder::overflow`].
    pub overflow: Overflow,
    /// See [`BatcherBuilder::on_drop`].
    pub on_drop: OnDrop,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            name: "batch".into(),
            max_items: 500,
            linger: Duration::from_millis(10),
            capacity: None,
            overflow: Overflow::default(),
            on_drop: OnDrop::default(),
        }
    }
}

/// So that a variable that is not set leaves the capacity to follow `max_items`.
struct Places(Option<usize>);

impl FromEnv for Places {
    const EXPECTED: &'static str = usize::EXPECTED;
    fn from_env_text(text: &str) -> Option<Self> {
        usize::from_env_text(text).map(|places| Self(Some(places)))
    }
}

impl Config {
    /// The defaults, overwritten by variables such as `APP_BATCH_MAX_ITEMS` for the prefix `APP_BATCH_`.
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
        let mut capacity = Places(None);
        env.read("name", &mut config.name)?;
        env.read("max_items", &mut config.max_items)?;
        env.read("linger", &mut config.linger)?;
        env.read("capacity", &mut capacity)?;
        env.read("overflow", &mut config.overflow)?;
        env.read("on_drop", &mut config.on_drop)?;
        env.finish()?;
        config.capacity = capacity.0;
        Ok(config)
    }

    /// The capacity that holds: the one that was set, or ten batches.
    fn places(&self) -> usize {
        self.capacity.unwrap_or_else(|| self.max_items.saturating_mul(10))
    }
}

/// Builds a [`Batcher`].
pub struct BatcherBuilder<T> {
    config: Config,
    clock: Clock,
    dead_letter: Option<DeadLetter<T>>,
}

impl<T> Default for BatcherBuilder<T> {
    fn default() -> Self {
        Self { config: Config::default(), clock: Clock::default(), dead_letter: None }
    }
}

impl<T> BatcherBuilder<T> {
    /// Takes all settings from `config`.
    #[must_use]
    pub fn config(mut self, config: Config) -> Self {
        self.config = config;
        self
    }

    /// The name in reports and in the thread's name, `fullbore-batch-<name>-0`. Default: `batch`.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.config.name = name.into();
        self
    }

    /// How many items a batch holds at most; that many start it at once. Larger batches share the fixed cost of a call
    /// among more items, and let each item wait for more others: choose the size from which a call's cost grows in
    /// proportion to its items (a few hundred rows for a database).
    ///
    /// Default: 500.
    #[must_use]
    pub fn max_items(mut self, max_items: usize) -> Self {
        self.config.max_items = max_items;
        self
    }

    /// How long a batch waits for more items, counted from its first one. While the process function is busy items collect
    /// anyway, so this matters when it is idle: it is the latency that a lone item pays. Zero takes whatever is there; one
    /// too long to represent means until the batch is full or flushed. Choose the part of your latency that you can spare.
    ///
    /// Default: 10 ms: batches of 500 fill by themselves from 50,000 items a second on, and below that 10 ms is of the order
    /// of the commit that it saves, and less than a person notices.
    #[must_use]
    pub fn linger(mut self, linger: Duration) -> Self {
        self.config.linger = linger;
        self
    }

    /// How many items may be accepted and not yet processed, those in the process function included. More smooths longer
    /// bursts, and costs memory and time at close. At least `max_items`, or a full batch could never form.
    ///
    /// Default: ten times `max_items`.
    #[must_use]
    pub fn capacity(mut self, capacity: usize) -> Self {
        self.config.capacity = Some(capacity);
        self
    }

    /// What [`Batcher::send`] does when all places are taken. Blocking makes producers as slow as the process function;
    /// `DropOldest` suits data of which the newest counts.
    ///
    /// Default: waits for up to 30 s.
    #[must_use]
    pub fn overflow(mut self, overflow: Overflow) -> Self {
        self.config.overflow = overflow;
        self
    }

    /// What dropping the batcher does with accepted items. Choose a limit that your program's end can afford; what does
    /// not fit into it goes to the dead-letter hook. While the thread panics, and inside the process function, there is no
    /// waiting at all.
    ///
    /// Default: processes them, for at most 5 s.
    #[must_use]
    pub fn on_drop(mut self, on_drop: OnDrop) -> Self {
        self.config.on_drop = on_drop;
        self
    }

    /// The clock for linger and deadlines. Default: the real one; tests pass a
    /// [`PausedClock`](fullbore_core::PausedClock).
    #[must_use]
    pub fn clock(mut self, clock: impl Into<Clock>) -> Self {
        self.clock = clock.into();
        self
    }

    /// Gets the accepted items that were never processed: displaced ones (`DropOldest`; [`Failure::Dropped`]) and those left
    /// when the batcher is dropped or a `Shutdown` runs out of time ([`Failure::Closed`]). It does **not** get items whose
    /// batch failed: the process function has consumed them, and is the one to keep what it cannot store.
    ///
    /// It runs on the thread that sends, drops or shuts down, should not wait, and should not send to the same batcher. A
    /// panic goes to the sender; at a drop it is contained.
    ///
    /// Default: none; such items are dropped and counted.
    #[must_use]
    pub fn dead_letter(mut self, hook: impl Fn(T, Failure) + Send + Sync + 'static) -> Self {
        self.dead_letter = Some(Box::new(hook));
        self
    }

    /// The batcher, with `process` as its function: it is called with one batch at a time, on one thread, and dropped on that
    /// thread at close. See [`IntoOutcomes`] for what it may return. A panic fails the batch; the next one is processed.
    ///
    /// # Errors
    /// [`BuildError::Config`] for a `max_items` of zero, a `capacity` below `max_items`, or a name that no thread can have;
    /// [`BuildError::Spawn`] if there is no thread.
    pub fn build<R, O, F>(self, process: F) -> Result<Batcher<T, R>, BuildError>
    where
        T: Send + 'static,
        R: Send + 'static,
        F: Fn(Batch<T>) -> O + Send + Sync + 'static,
        O: IntoOutcomes<R>,
    {
        let Self { config, clock, dead_letter } = self;
        BuildError::refuse_zero("max_items", config.max_items)?;
        let places = config.places();
        if places < config.max_items {
            let expected = format!("at least max_items, which is {}", config.max_items);
            return Err(BuildError::config("capacity", places, expected));
        }
        Shared::start(config, places, clock, dead_letter, process).map(Batcher::new)
    }
}

impl<T> fmt::Debug for BatcherBuilder<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BatcherBuilder").field("config", &self.config).finish_non_exhaustive()
    }
}
