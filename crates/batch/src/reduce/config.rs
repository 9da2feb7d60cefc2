//! Settings and the builder.

use std::fmt;
use std::hash::Hash;
use std::time::Duration;

use fullbore_core::{BuildError, Clock, EnvReader, Failure, FromEnv, OnDrop, Overflow};

use super::batcher::ReducingBatcher;
use super::engine::Shared;
use super::pending::{By, Reduce};
use crate::batch::Batch;
use crate::outcomes::IntoOutcomes;

pub(super) type DeadLetter<K, V> = Box<dyn Fn((K, V), Failure) + Send + Sync>;

/// The settings of a [`ReducingBatcher`], from code, a file (feature `serde`: unknown fields are refused) or the environment.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default, deny_unknown_fields))]
pub struct ReducingConfig {
    /// See [`ReducingBuilder::name`].
    pub name: String,
    /// See [`ReducingBuilder::max_keys`].
    pub max_keys: usize,
    /// See [`ReducingBuilder::linger`].
    #[cfg_attr(feature = "serde", serde(with = "fullbore_core::serde_text::duration"))]
    pub linger: Duration,
    /// See [`ReducingBuilder::capacity`]. `None`: two batches.
    pub capacity: Option<usize>,
    /// See [`ReducingBuilder::overflow`].
    pub overflow: Overflow,
    /// See [`ReducingBuilder::on_drop`].
    pub on_drop: OnDrop,
}

impl Default for ReducingConfig {
    fn default() -> Self {
        Self {
            name: "reduce".into(),
            max_keys: 10_000,
            linger: Duration::from_millis(100),
            capacity: None,
            overflow: Overflow::default(),
            on_drop: OnDrop::default(),
        }
    }
}

/// So that a variable that is not set leaves the capacity to follow `max_keys`.
struct Places(Option<usize>);

impl FromEnv for Places {
    const EXPECTED: &'static str = usize::EXPECTED;
    fn from_env_text(text: &str) -> Option<Self> {
        usize::from_env_text(text).map(|places| Self(Some(places)))
    }
}

impl ReducingConfig {
    /// The defaults, overwritten by variables such as `APP_COUNTS_MAX_KEYS` for the prefix `APP_COUNTS_`.
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
        env.read("max_keys", &mut config.max_keys)?;
        env.read("linger", &mut config.linger)?;
        env.read("capacity", &mut capacity)?;
        env.read("overflow", &mut config.overflow)?;
        env.read("on_drop", &mut config.on_drop)?;
        env.finish()?;
        config.capacity = capacity.0;
        Ok(config)
    }

    /// The capacity that holds: the one that was set, or two batches.
    fn places(&self) -> usize {
        self.capacity.unwrap_or_else(|| self.max_keys.saturating_mul(2))
    }
}

/// What is done with pairs whose batch has failed.
pub(super) struct WhenFailed {
    pub(super) tries: u32,
    pub(super) pause: Duration,
}

pub(super) struct Setup<K, V> {
    pub(super) config: ReducingConfig,
    pub(super) dead_letter: Option<DeadLetter<K, V>>,
    pub(super) when_failed: Option<WhenFailed>,
    /// Copies a batch, so that it is still there when the process function has failed.
    pub(super) copy: Option<Copy<K, V>>,
}

/// Copies the pairs of a batch, so that they are still there if it fails.
pub(super) type Copy<K, V> = fn(&Vec<(K, V)>) -> Vec<(K, V)>;

/// Builds a [`ReducingBatcher`].
pub struct ReducingBuilder<K, V> {
    setup: Setup<K, V>,
    clock: Clock,
    reduce: Box<dyn Reduce<K, V>>,
}

impl<K: Hash + Eq, V> ReducingBuilder<K, V> {
    pub(super) fn new(merge: impl Fn(&mut V, V) + Send + Sync + 'static) -> Self {
        let setup = Setup { config: ReducingConfig::default(), dead_letter: None, when_failed: None, copy: None };
        Self { setup, clock: Clock::default(), reduce: Box::new(By(merge)) }
    }
}

impl<K, V> ReducingBuilder<K, V> {
    /// Takes all settings of [`ReducingConfig`] from `config`.
    #[must_use]
    pub fn config(mut self, config: ReducingConfig) -> Self {
        self.setup.config = config;
        self
    }

    /// The name in reports and in the thread's name, `fullbore-batch-<name>-0`. Default: `reduce`.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.setup.config.name = name.into();
        self
    }

    /// How many keys a batch holds at most; that many start it. It bounds what one call of the process function gets, and is
    /// no way to merge more: that is `linger`. With fewer than there are keys, batches go as soon as they are full, and
    /// updates that could have been merged go in two. Choose more than change within one `linger`, and no more than the
    /// target takes at once.
    ///
    /// A batch never holds more. That it holds as many is noticed when its last updates are merged: within an eighth of
    /// `max_keys` further updates, and at `linger` at the latest.
    ///
    /// Default: 10,000.
    #[must_use]
    pub fn max_keys(mut self, max_keys: usize) -> Self {
        self.setup.config.max_keys = max_keys;
        self
    }

    /// How long a batch collects updates, counted from its first one: each key is written at most once in this time, and
    /// what is written is this old. While the process function is busy updates are merged anyway. Zero takes whatever is
    /// there; one too long to represent means until `max_keys` or a flush. Choose how old the written values may be.
    ///
    /// Default: 100 ms: ten writes a second for each key that changes all the time, and less than a person notices.
    #[must_use]
    pub fn linger(mut self, linger: Duration) -> Self {
        self.setup.config.linger = linger;
        self
    }

    /// How many pairs and updates that are not merged yet may be held, those in the process function included: the memory. An
    /// update of a key that waits is merged even if all places are taken; one of another key meets
    /// [`overflow`](Self::overflow). At least `max_keys`, or a full batch could never form; twice as much lets a full one collect
    /// while another one is processed.
    ///
    /// Default: twice `max_keys`.
    #[must_use]
    pub fn capacity(mut self, capacity: usize) -> Self {
        self.setup.config.capacity = Some(capacity);
        self
    }

    /// What [`ReducingBatcher::send`] does when all places are taken, by other keys. Blocking makes producers as slow as the
    /// process function; `DropOldest` gives up the pair whose key has waited longest, with all that was merged into it.
    ///
    /// Default: waits for up to 30 s.
    #[must_use]
    pub fn overflow(mut self, overflow: Overflow) -> Self {
        self.setup.config.overflow = overflow;
        self
    }

    /// What dropping the batcher does with what it holds. Choose a limit that your program's end can afford; what does not fit
    /// into it goes to the dead-letter hook. While the thread panics, and inside the process function, there is no waiting
    /// at all.
    ///
    /// Default: processes it, for at most 5 s.
    #[must_use]
    pub fn on_drop(mut self, on_drop: OnDrop) -> Self {
        self.setup.config.on_drop = on_drop;
        self
    }

    /// The clock for linger, pauses and deadlines. Default: the real one; tests pass a
    /// [`PausedClock`](fullbore_core::PausedClock).
    #[must_use]
    pub fn clock(mut self, clock: impl Into<Clock>) -> Self {
        self.clock = clock.into();
        self
    }

    /// Gets every pair that was accepted and not processed: those of a failed batch (with its error; after the last try, see
    /// [`keep_on_error`](Self::keep_on_error)), displaced ones (`DropOldest`; [`Failure::Dropped`]), those left when the
    /// batcher is dropped or a `Shutdown` runs out of time ([`Failure::Closed`]), and those over which `merge`, `Hash` or `Eq`
    /// panicked ([`Failure::Panicked`]), with the value as the panic left it.
    ///
    /// Each batch is cloned before it is processed, since the process function consumes it.
    ///
    /// It runs on the batcher's thread or on one that sends, drops or shuts down. It should not wait, and should not
    /// send to the same batcher. A panic of it goes to the sender whose update displaced a pair; else it is contained.
    ///
    /// Default: none; such pairs are dropped and counted.
    #[must_use]
    pub fn dead_letter(mut self, hook: impl Fn((K, V), Failure) + Send + Sync + 'static) -> Self
    where
        K: Clone,
        V: Clone,
    {
        self.setup.dead_letter = Some(Box::new(hook));
        self.setup.copy = Some(Vec::clone);
        self
    }

    /// Tries the pairs of a failed batch again, up to `tries` times in all: they go back in front, what has come for their
    /// keys meanwhile is merged into them, as `merge(old, new)`, and the next batch begins no sooner than `pause` later, not
    /// even for a flush or a close. Updates are merged meanwhile. With one result for each pair, only those that failed come
    /// back.
    ///
    /// The process function must be idempotent for this, or fail as a whole: a sum that was written before the error is written
    /// again. Choose `tries` times `pause` longer than your target's usual outage, and shorter than `capacity` keys need to
    /// come together. Each batch is cloned before it is processed.
    ///
    /// Default: one try.
    #[must_use]
    pub fn keep_on_error(mut self, tries: u32, pause: Duration) -> Self
    where
        K: Clone,
        V: Clone,
    {
        self.setup.when_failed = Some(WhenFailed { tries, pause });
        self.setup.copy = Some(Vec::clone);
        self
    }

    /// The batcher, with `process` as its function: it is called with one batch at a time, on one thread, and dropped on that
    /// thread at close. A batch holds each key once, in the order in which the keys first came. `process` returns nothing, a
    /// `Result`, or one result for each pair, see [`IntoOutcomes`]. A panic fails the batch; the next one is processed.
    ///
    /// # Errors
    /// [`BuildError::Config`] for zero `max_keys` or tries, a `capacity` below `max_keys`, or a name that no thread can have;
    /// [`BuildError::Spawn`] if there is no thread.
    pub fn build<O, F>(self, process: F) -> Result<ReducingBatcher<K, V>, BuildError>
    where
        K: Send + 'static,
        V: Send + 'static,
        F: Fn(Batch<(K, V)>) -> O + Send + Sync + 'static,
        O: IntoOutcomes<()>,
    {
        let Self { setup, clock, reduce } = self;
        let config = &setup.config;
        BuildError::refuse_zero("max_keys", config.max_keys)?;
        let places = config.places();
        if places < config.max_keys {
            let expected = format!("at least max_keys, which is {}", config.max_keys);
            return Err(BuildError::config("capacity", places, expected));
        }
        if setup.when_failed.as_ref().is_some_and(|when| when.tries == 0) {
            return Err(BuildError::config("keep_on_error", "0 tries", "at least 1"));
        }
        Shared::start(setup, places, clock, reduce, process).map(ReducingBatcher::new)
    }
}

impl<K, V> fmt::Debug for ReducingBuilder<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReducingBuilder").field("config", &self.setup.config).finish_non_exhaustive()
    }
}
