//! Settings and the builder.

use std::fmt;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use fullbore_core::{BuildError, Clock, EnvReader, Failure, FromEnv, OnDrop, Overflow};

use super::KeyedBatcher;
use super::engine::Shared;
use super::room::Room;
use super::worker::Process;
use crate::batch::Batch;
use crate::outcomes::IntoOutcomes;

pub(super) type KeyedDeadLetter<K, T> = Box<dyn Fn(&K, T, Failure) + Send + Sync>;

/// More threads than this are a mistake.
const MAX_WORKERS: usize = 4096;

/// The settings of a [`KeyedBatcher`], from code, a file (feature `serde`: unknown fields are refused) or the environment.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default, deny_unknown_fields))]
pub struct KeyedConfig {
    /// See [`KeyedBatcherBuilder::name`].
    pub name: String,
    /// See [`KeyedBatcherBuilder::max_items`].
    pub max_items: usize,
    /// See [`KeyedBatcherBuilder::linger`].
    #[cfg_attr(feature = "serde", serde(with = "fullbore_core::serde_text::duration"))]
    pub linger: Duration,
    /// See [`KeyedBatcherBuilder::max_keys`].
    pub max_keys: usize,
    /// See [`KeyedBatcherBuilder::capacity`]. `None`: ten batches, or an item for each key if that is more.
    pub capacity: Option<usize>,
    /// See [`KeyedBatcherBuilder::workers`].
    pub workers: usize,
    /// See [`KeyedBatcherBuilder::one_in_flight`].
    pub one_in_flight: bool,
    /// See [`KeyedBatcherBuilder::overflow`].
    pub overflow: Overflow,
    /// See [`KeyedBatcherBuilder::on_drop`].
    pub on_drop: OnDrop,
}

impl Default for KeyedConfig {
    fn default() -> Self {
        Self {
            name: "keyed".into(),
            max_items: 500,
            linger: Duration::from_millis(10),
            max_keys: 10_000,
            capacity: None,
            workers: 1,
            one_in_flight: true,
            overflow: Overflow::default(),
            on_drop: OnDrop::default(),
        }
    }
}

/// So that a variable that is not set leaves the capacity to follow the others.
struct Limit(Option<usize>);

impl FromEnv for Limit {
    const EXPECTED: &'static str = usize::EXPECTED;
    fn from_env_text(text: &str) -> Option<Self> {
        usize::from_env_text(text).map(|places| Self(Some(places)))
    }
}

impl KeyedConfig {
    /// The defaults, overwritten by variables such as `APP_BATCH_MAX_KEYS` for the prefix `APP_BATCH_`.
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
        let mut capacity = Limit(None);
        env.read("name", &mut config.name)?;
        env.read("max_items", &mut config.max_items)?;
        env.read("linger", &mut config.linger)?;
        env.read("max_keys", &mut config.max_keys)?;
        env.read("capacity", &mut capacity)?;
        env.read("workers", &mut config.workers)?;
        env.read("one_in_flight", &mut config.one_in_flight)?;
        env.read("overflow", &mut config.overflow)?;
        env.read("on_drop", &mut config.on_drop)?;
        env.finish()?;
        config.capacity = capacity.0;
        Ok(config)
    }

    /// The capacity that holds, if everything makes sense.
    fn checked(&self) -> Result<usize, BuildError> {
        BuildError::refuse_zero("max_items", self.max_items)?;
        BuildError::refuse_zero("max_keys", self.max_keys)?;
        BuildError::refuse_zero("workers", self.workers)?;
        for (field, value, most) in [
            ("max_items", self.max_items, Room::MAX_ITEMS),
            ("max_keys", self.max_keys, Room::MAX_KEYS),
            ("capacity", self.capacity.unwrap_or(0), Room::MAX_ITEMS),
            ("workers", self.workers, MAX_WORKERS),
        ] {
            if value > most {
                return Err(BuildError::config(field, value, format!("at most {most}")));
            }
        }
        let by_default = self.max_items.saturating_mul(10).max(self.max_keys).min(Room::MAX_ITEMS);
        let capacity = self.capacity.unwrap_or(by_default);
        if capacity < self.max_items {
            let expected = format!("at least max_items, which is {}", self.max_items);
            return Err(BuildError::config("capacity", capacity, expected));
        }
        Ok(capacity)
    }
}

/// Builds a [`KeyedBatcher`].
pub struct KeyedBatcherBuilder<K, T> {
    config: KeyedConfig,
    clock: Clock,
    dead_letter: Option<KeyedDeadLetter<K, T>>,
}

impl<K, T> Default for KeyedBatcherBuilder<K, T> {
    fn default() -> Self {
        Self { config: KeyedConfig::default(), clock: Clock::default(), dead_letter: None }
    }
}

impl<K, T> KeyedBatcherBuilder<K, T> {
    /// Takes all settings from `config`.
    #[must_use]
    pub fn config(mut self, config: KeyedConfig) -> Self {
        self.config = config;
        self
    }

    /// The name in reports and in the threads' names, `fullbore-batch-<name>-<n>`. Default: `keyed`.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.config.name = name.into();
        self
    }

    /// How many items a key's batch holds at most; that many start it at once. Larger batches share the fixed cost of a call
    /// among more items. Choose the size from which a call's cost grows in proportion to its items. At most 4,294,967,295.
    ///
    /// Default: 500.
    #[must_use]
    pub fn max_items(mut self, max_items: usize) -> Self {
        self.config.max_items = max_items;
        self
    }

    /// How long a key's batch waits for more items, counted from its first one. Each key gets only its share of the items, so
    /// batches fill more slowly than those of a batcher without keys: for batches of `n` choose about `n` times the
    /// pause between two items of a key, if your latency can spare that. Zero takes whatever is there; one too long to
    /// represent means until the batch is full or flushed, or its room is needed.
    ///
    /// Default: 10 ms.
    #[must_use]
    pub fn linger(mut self, linger: Duration) -> Self {
        self.config.linger = linger;
        self
    }

    /// How many keys may have something waiting or in process at the same time. An item of one more key follows
    /// [`overflow`](Self::overflow), as if there were no room for it. Keys that have nothing are not counted, and take no
    /// memory; one with a waiting item takes some 200 bytes and its items. Choose the number of keys that you expect to be
    /// busy within one `linger`. At most 2,147,483,647.
    ///
    /// Default: 10,000.
    #[must_use]
    pub fn max_keys(mut self, max_keys: usize) -> Self {
        self.config.max_keys = max_keys;
        self
    }

    /// How many items of all keys together may be accepted and not yet processed, those in process included. When it is
    /// used up and no batch is due, the oldest open batch is processed as it is: with less room than `max_items` for
    /// each busy key, batches stay smaller than `max_items` under load. At least `max_items`, at most 4,294,967,295.
    ///
    /// Default: ten times `max_items`, or `max_keys` if that is more.
    #[must_use]
    pub fn capacity(mut self, capacity: usize) -> Self {
        self.config.capacity = Some(capacity);
        self
    }

    /// How many threads call the process function. One is enough where a call takes less time than its batch takes to
    /// collect, and makes all calls follow each other. With more, a slow call of one key does not hold up the others: choose as
    /// many as calls can wait at the same time, connections of a pool for example. At most 4,096.
    ///
    /// Default: 1.
    #[must_use]
    pub fn workers(mut self, workers: usize) -> Self {
        self.config.workers = workers;
        self
    }

    /// Whether a key has at most one batch in process at a time. With `true` the effects of one key are ordered, however
    /// many [`workers`](Self::workers) there are, and what comes meanwhile collects for the next batch. With `false` one
    /// busy key can use several workers, and its batches can overtake each other: choose it if items of one key do not depend
    /// on each other. Makes no difference with one worker.
    ///
    /// Default: `true`: who groups by key nearly always relies on the order within a key, and would find out late.
    #[must_use]
    pub fn one_in_flight(mut self, one_in_flight: bool) -> Self {
        self.config.one_in_flight = one_in_flight;
        self
    }

    /// What [`KeyedBatcher::send`] does when `capacity` or `max_keys` is reached. Blocking makes producers as slow as the process
    /// function. `DropOldest` displaces the first item of the batch that has waited longest, of whatever key; if it is keys that
    /// there are too many of, the whole batches of the key that has waited longest and is not in process.
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

    /// Gets the accepted items that were never processed, with their keys: displaced ones (`DropOldest`; [`Failure::Dropped`]) and
    /// those left when the batcher is dropped or a `Shutdown` runs out of time ([`Failure::Closed`]). It does **not** get items
    /// whose batch failed: the process function has consumed them, and is the one to keep what it cannot store.
    ///
    /// It runs on the thread that sends, drops or shuts down, should not wait, and should not send to the same batcher. A
    /// panic goes to the sender; at a drop it is contained.
    ///
    /// Default: none; such items are dropped and counted.
    #[must_use]
    pub fn dead_letter(mut self, hook: impl Fn(&K, T, Failure) + Send + Sync + 'static) -> Self {
        self.dead_letter = Some(Box::new(hook));
        self
    }

    /// The batcher, with `process` as its function: it is called with one key and one batch at a time on each worker's thread, and
    /// dropped on one of them at close. See [`IntoOutcomes`] for what it may return. A panic fails the batch; the next one is
    /// processed.
    ///
    /// # Errors
    /// [`BuildError::Config`] for a `max_items`, `max_keys` or `workers` of zero or beyond its maximum, a `capacity` below
    /// `max_items` or beyond its maximum, or a name that no thread can have; [`BuildError::Spawn`] if there is no thread.
    pub fn build<R, O, F>(self, process: F) -> Result<KeyedBatcher<K, T, R>, BuildError>
    where
        K: Hash + Eq + Clone + Send + 'static,
        T: Send + 'static,
        R: Send + 'static,
        F: Fn(&K, Batch<T>) -> O + Send + Sync + 'static,
        O: IntoOutcomes<R>,
    {
        let Self { config, clock, dead_letter } = self;
        let capacity = config.checked()?;
        let process: Process<K, T, R> = Arc::new(move |key, batch| {
            let items = batch.len();
            process(key, batch).into_outcomes(items)
        });
        KeyedBatcher::start(Shared::new(config, capacity, &clock, dead_letter), &process)
    }
}

impl<K, T> fmt::Debug for KeyedBatcherBuilder<K, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyedBatcherBuilder").field("config", &self.config).finish_non_exhaustive()
    }
}
