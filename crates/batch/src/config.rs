//! Settings and the builder.

use std::fmt;
use std::time::Duration;

use fullbore_core::{Backoff, BuildError, Clock, EnvReader, Failure, FromEnv, OnDrop, Overflow};

use crate::batch::Batch;
use crate::batcher::Batcher;
use crate::engine::{Hooks, Shared};
use crate::outcomes::IntoOutcomes;
use crate::process::{ByRef, ByValue, Process};

pub(crate) type RetryIf = Box<dyn Fn(&Failure) -> bool + Send + Sync>;
pub(crate) type Weigher<T> = Box<dyn Fn(&T) -> u64 + Send + Sync>;
pub(crate) type DeadLetter<T> = Box<dyn Fn(T, Failure) + Send + Sync>;

/// The settings of a [`Batcher`], from code, a file (feature `serde`: unknown fields are refused) or the environment.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default, deny_unknown_fields))]
pub struct Config {
    /// See [`BatcherBuilder::name`].
    pub name: String,
    /// See [`BatcherBuilder::max_items`].
    pub max_items: usize,
    /// See [`BatcherBuilder::adapt_size`]. `None`: batches of `max_items`.
    #[cfg_attr(feature = "serde", serde(with = "fullbore_core::serde_text::maybe_duration"))]
    pub adapt_size: Option<Duration>,
    /// See [`BatcherBuilder::max_weight`]. `None`: items are not weighed.
    pub max_weight: Option<u64>,
    /// See [`BatcherBuilder::capacity_weight`]. `None`: ten batches.
    pub capacity_weight: Option<u64>,
    /// See [`BatcherBuilder::oversized`].
    pub oversized: Oversized,
    /// See [`BatcherBuilder::linger`].
    #[cfg_attr(feature = "serde", serde(with = "fullbore_core::serde_text::duration"))]
    pub linger: Duration,
    /// See [`BatcherBuilder::capacity`]. `None`: ten batches.
    pub capacity: Option<usize>,
    /// See [`BatcherBuilder::eager_when_idle`].
    pub eager_when_idle: bool,
    /// See [`BatcherBuilder::overflow`].
    pub overflow: Overflow,
    /// See [`BatcherBuilder::workers`].
    pub workers: usize,
    /// See [`BatcherBuilder::ordered`].
    pub ordered: bool,
    /// See [`BatcherBuilder::max_attempts`].
    pub max_attempts: u32,
    /// See [`BatcherBuilder::backoff`].
    #[cfg_attr(feature = "serde", serde(with = "fullbore_core::serde_text::duration"))]
    pub backoff_min: Duration,
    /// See [`BatcherBuilder::backoff`].
    #[cfg_attr(feature = "serde", serde(with = "fullbore_core::serde_text::duration"))]
    pub backoff_max: Duration,
    /// See [`BatcherBuilder::jitter`].
    pub jitter: bool,
    /// See [`BatcherBuilder::isolate_poison`].
    pub isolate_poison: bool,
    /// See [`BatcherBuilder::on_drop`].
    pub on_drop: OnDrop,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            name: "batch".into(),
            max_items: 500,
            adapt_size: None,
            max_weight: None,
            capacity_weight: None,
            oversized: Oversized::default(),
            linger: Duration::from_millis(10),
            capacity: None,
            eager_when_idle: true,
            overflow: Overflow::default(),
            workers: 1,
            ordered: false,
            max_attempts: 1,
            backoff_min: Duration::from_millis(100),
            backoff_max: Duration::from_secs(30),
            jitter: true,
            isolate_poison: false,
            on_drop: OnDrop::default(),
        }
    }
}

/// More would be a mistake in the unit.
const MAX_WORKERS: usize = 1024;

/// So that a variable that is not set leaves the setting to follow another one.
struct Set<T>(Option<T>);

impl<T: FromEnv> FromEnv for Set<T> {
    const EXPECTED: &'static str = T::EXPECTED;
    fn from_env_text(text: &str) -> Option<Self> {
        T::from_env_text(text).map(|value| Self(Some(value)))
    }
}

/// What is done with an item that is heavier than a batch may be.
///
/// As text (configuration files, environment): `alone`, `refuse`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum Oversized {
    /// It makes a batch of its own, and may exceed the weight of the capacity while nothing else is inside.
    #[default]
    Alone,
    /// It is refused, with [`Refusal::Oversized`](fullbore_core::Refusal::Oversized).
    Refuse,
}

impl FromEnv for Oversized {
    const EXPECTED: &'static str = "alone or refuse";
    fn from_env_text(text: &str) -> Option<Self> {
        match text {
            "alone" => Some(Self::Alone),
            "refuse" => Some(Self::Refuse),
            _ => None,
        }
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
        let (mut capacity, mut max_weight, mut capacity_weight) = (Set(None), Set(None), Set(None));
        let mut adapt_size = Set(None);
        env.read("name", &mut config.name)?;
        env.read("max_items", &mut config.max_items)?;
        env.read("linger", &mut config.linger)?;
        env.read("capacity", &mut capacity)?;
        env.read("adapt_size", &mut adapt_size)?;
        env.read("max_weight", &mut max_weight)?;
        env.read("capacity_weight", &mut capacity_weight)?;
        env.read("oversized", &mut config.oversized)?;
        env.read("eager_when_idle", &mut config.eager_when_idle)?;
        env.read("overflow", &mut config.overflow)?;
        env.read("workers", &mut config.workers)?;
        env.read("ordered", &mut config.ordered)?;
        env.read("max_attempts", &mut config.max_attempts)?;
        env.read("backoff_min", &mut config.backoff_min)?;
        env.read("backoff_max", &mut config.backoff_max)?;
        env.read("jitter", &mut config.jitter)?;
        env.read("isolate_poison", &mut config.isolate_poison)?;
        env.read("on_drop", &mut config.on_drop)?;
        env.finish()?;
        config.capacity = capacity.0;
        config.adapt_size = adapt_size.0;
        config.max_weight = max_weight.0;
        config.capacity_weight = capacity_weight.0;
        Ok(config)
    }

    pub(crate) fn backoff(&self) -> Backoff {
        Backoff { min: self.backoff_min, max: self.backoff_max, jitter: self.jitter }
    }

    fn check(&self) -> Result<(), BuildError> {
        BuildError::refuse_zero("max_items", self.max_items)?;
        if !(1..=MAX_WORKERS).contains(&self.workers) {
            return Err(BuildError::config("workers", self.workers, format!("1 to {MAX_WORKERS}")));
        }
        BuildError::refuse_zero("max_attempts", self.max_attempts as usize)?;
        if self.backoff_min > self.backoff_max {
            let expected = format!("at most backoff_max ({:?})", self.backoff_max);
            return Err(BuildError::config("backoff_min", format!("{:?}", self.backoff_min), expected));
        }
        if self.places() < self.max_items {
            let expected = format!("at least max_items, which is {}", self.max_items);
            return Err(BuildError::config("capacity", self.places(), expected));
        }
        if self.adapt_size == Some(Duration::ZERO) {
            return Err(BuildError::config("adapt_size", "0s", "more than no time"));
        }
        if self.max_weight == Some(0) {
            return Err(BuildError::config("max_weight", 0, "at least 1"));
        }
        match (self.max_weight, self.capacity_weight) {
            (None, Some(weight)) => {
                return Err(BuildError::config("capacity_weight", weight, "a max_weight with it"));
            }
            (Some(max), Some(weight)) if weight < max => {
                let expected = format!("at least max_weight, which is {max}");
                return Err(BuildError::config("capacity_weight", weight, expected));
            }
            _ => {}
        }
        Ok(())
    }

    /// The weight of all that may be inside.
    pub(crate) fn weight(&self) -> u64 {
        self.capacity_weight.or(self.max_weight.map(|max| max.saturating_mul(10))).unwrap_or(u64::MAX)
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
    retry_if: Option<RetryIf>,
    weigher: Option<Weigher<T>>,
}

impl<T> Default for BatcherBuilder<T> {
    fn default() -> Self {
        Self { config: Config::default(), clock: Clock::default(), dead_letter: None, retry_if: None, weigher: None }
    }
}

impl<T> BatcherBuilder<T> {
    /// Takes all settings from `config`.
    #[must_use]
    pub fn config(mut self, config: Config) -> Self {
        self.config = config;
        self
    }

    /// The name in reports and in the threads' names, `fullbore-batch-<name>-<n>`. Default: `batch`.
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

    /// Finds the size of batches by trying: from 1 to `max_items`, whichever makes the process function do the most items a
    /// second, as long as a call takes no longer than `latency`. It climbs in steps of a quarter, each measured over eight
    /// full batches, and comes down at once after a call that was too long. The station shows the present size
    /// ([`StationSnapshot::batch_size`](fullbore_metrics::StationSnapshot::batch_size)). Choose it where the best size is not known or
    /// changes with the other side's load; give a large `max_items`.
    ///
    /// Default: off, batches of up to `max_items`.
    ///
    /// ```
    /// use fullbore_batch::{Batch, Batcher};
    /// use std::time::Duration;
    ///
    /// let batcher = Batcher::builder()
    ///     .max_items(10_000)
    ///     .adapt_size(Duration::from_millis(50))
    ///     .build(|rows: Batch<u64>| drop(rows))?;
    /// assert_eq!(batcher.station().snapshot().batch_size(), 1, "it begins small");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn adapt_size(mut self, latency: Duration) -> Self {
        self.config.adapt_size = Some(latency);
        self
    }

    /// How heavy a batch is at most, by what [`weigher`](Self::weigher) says of its items: bytes of a request, cost of a
    /// statement. A batch starts once it is that heavy, or once the next item would make it heavier. Choose what the other side
    /// takes in one call. One heavier item is a case for [`oversized`](Self::oversized).
    ///
    /// Items of a batcher that weighs are accepted under a lock; those of one that only counts are not.
    ///
    /// Default: items are not weighed.
    #[must_use]
    pub fn max_weight(mut self, max_weight: u64) -> Self {
        self.config.max_weight = Some(max_weight);
        self
    }

    /// What an item weighs. It runs on the sender's thread, once for each item, and a panic is the sender's. Sums that do not
    /// fit into 64 bits count as the largest number that does.
    ///
    /// Default: none; needed for a [`max_weight`](Self::max_weight), and only then.
    ///
    /// ```
    /// use fullbore_batch::{Batch, Batcher};
    ///
    /// let batcher = Batcher::builder()
    ///     .max_weight(1 << 20)
    ///     .weigher(|body: &Vec<u8>| body.len() as u64)
    ///     .build(|bodies: Batch<Vec<u8>>| assert!(bodies.iter().map(Vec::len).sum::<usize>() <= 1 << 20))?;
    /// batcher.send(vec![0; 700_000])?;
    /// batcher.send(vec![0; 700_000])?;
    /// batcher.close()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn weigher(mut self, weigher: impl Fn(&T) -> u64 + Send + Sync + 'static) -> Self {
        self.weigher = Some(Box::new(weigher));
        self
    }

    /// How heavy all items that are accepted and not yet processed may be together. Whichever of this and
    /// [`capacity`](Self::capacity) is reached first holds senders up. Choose the memory that the buffer may take. At least
    /// `max_weight`.
    ///
    /// Default: ten times `max_weight`.
    #[must_use]
    pub fn capacity_weight(mut self, capacity_weight: u64) -> Self {
        self.config.capacity_weight = Some(capacity_weight);
        self
    }

    /// What happens to an item that is heavier than `max_weight`. Refuse it where the other side would; an error for its
    /// sender is better than one for the batch.
    ///
    /// Default: it goes alone.
    #[must_use]
    pub fn oversized(mut self, oversized: Oversized) -> Self {
        self.config.oversized = oversized;
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

    /// Whether [`Batcher::call`] does not linger: an idle worker takes its item at once, with all that waits. Its caller waits,
    /// and if it is alone nobody else is coming; under load batches fill while the workers are busy. Without it every caller
    /// pays the linger, for larger batches when there are few of them. `send` and `submit` always linger.
    ///
    /// Default: true.
    #[must_use]
    pub fn eager_when_idle(mut self, eager_when_idle: bool) -> Self {
        self.config.eager_when_idle = eager_when_idle;
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

    /// How many batches are processed at once, each on a thread of its own. More hide the latency of what the process
    /// function calls; then effects have no order any more, not even those of one producer. Choose what the other side takes
    /// at once: connections, permits.
    ///
    /// Default: 1, at most 1,024: effects in the order of the batches.
    #[must_use]
    pub fn workers(mut self, workers: usize) -> Self {
        self.config.workers = workers;
        self
    }

    /// With several workers, whether results are told in the order of the batches: counts, tickets and dead letters of a batch
    /// come after those of all batches that began before it. It orders results, **not effects**. A slow batch then holds up
    /// the workers of its successors.
    ///
    /// Default: false: each batch tells its results when it has them.
    #[must_use]
    pub fn ordered(mut self, ordered: bool) -> Self {
        self.config.ordered = ordered;
        self
    }

    /// How often a batch that fails as a whole is tried, the first time included, before it is given up or taken apart. Its
    /// successors wait meanwhile (with one worker): effects stay in order. Only with [`build_by_ref`](Self::build_by_ref), which keeps the items.
    /// Choose by how long the failures last that pass by themselves, together with [`backoff`](Self::backoff).
    ///
    /// Default: 1, no second attempt: not every process function can be called twice.
    #[must_use]
    pub fn max_attempts(mut self, max_attempts: u32) -> Self {
        self.config.max_attempts = max_attempts;
        self
    }

    /// The pause before the second attempt, and the longest one; it doubles in between. Choose `max` shorter than the time in
    /// which the buffer fills, or producers will notice each outage.
    ///
    /// Default: 100 ms and 30 s.
    #[must_use]
    pub fn backoff(mut self, min: Duration, max: Duration) -> Self {
        self.config.backoff_min = min;
        self.config.backoff_max = max;
        self
    }

    /// Whether pauses are lengthened at random, by up to as much again, so that programs which failed together do not all come
    /// back together. Without, they are exact.
    ///
    /// Default: true.
    #[must_use]
    pub fn jitter(mut self, jitter: bool) -> Self {
        self.config.jitter = jitter;
        self
    }

    /// Which failures may pass by themselves and are worth another attempt: an outage, a deadlock victim. What may pass
    /// concerns the whole batch; it is not taken apart for it. All others are final at once, or a case for
    /// [`isolate_poison`](Self::isolate_poison). It runs on the batcher's thread; a panic counts as no. It is not asked about a
    /// batch that may have been done ([`Retryable::may_retry`](crate::Retryable::may_retry)): that is never tried again, nor
    /// about one that is known to fail again ([`is_permanent`](crate::Retryable::is_permanent)).
    ///
    /// Default: all, if there is more than one attempt.
    #[must_use]
    pub fn retry_if(mut self, retry_if: impl Fn(&Failure) -> bool + Send + Sync + 'static) -> Self {
        self.retry_if = Some(Box::new(retry_if));
        self
    }

    /// Whether a batch that has failed is taken apart, so that only the items fail that fail alone: halves are tried, and
    /// halves of those that fail. With `k` bad items among `n` that is at most `2 k (1 + log2 n)` further calls. Only with
    /// [`build_by_ref`](Self::build_by_ref), for a process function that has done nothing when it fails, as a transaction
    /// that is rolled back; say with [`retry_if`](Self::retry_if) what an outage is, or all items will be asked one by one
    /// while the database is down.
    ///
    /// Default: false: the batch fails as a whole.
    #[must_use]
    pub fn isolate_poison(mut self, isolate_poison: bool) -> Self {
        self.config.isolate_poison = isolate_poison;
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
    /// when the batcher is dropped or a `Shutdown` runs out of time ([`Failure::Closed`]). With
    /// [`build_by_ref`](Self::build_by_ref) it also gets the items that have failed for good, each with its failure. With
    /// [`build`](Self::build) it does **not**: the process function has consumed them, and is the one to keep what it cannot
    /// store.
    ///
    /// It runs on the thread that sends, drops or shuts down, or on the batcher's own, should not wait, and should not send to
    /// the same batcher. A panic goes to the sender; elsewhere it is contained.
    ///
    /// Default: none; such items are dropped and counted.
    #[must_use]
    pub fn dead_letter(mut self, hook: impl Fn(T, Failure) + Send + Sync + 'static) -> Self {
        self.dead_letter = Some(Box::new(hook));
        self
    }

    /// The batcher, with `process` as its function: it is called with one batch at a time on each worker's thread, and dropped
    /// on the last of them at close. See [`IntoOutcomes`] for what it may return. A panic fails the batch; the next one is processed.
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
        const KEEPS: &str = "build_by_ref, which keeps the items for it";
        if self.config.max_attempts > 1 {
            return Err(BuildError::config("max_attempts", self.config.max_attempts, format!("1, or {KEEPS}")));
        }
        if self.config.isolate_poison {
            return Err(BuildError::config("isolate_poison", true, format!("false, or {KEEPS}")));
        }
        self.start(ByValue(process))
    }

    /// The batcher, with a process function that borrows the items, so that a batch which fails can be tried again
    /// ([`max_attempts`](Self::max_attempts)) or taken apart ([`isolate_poison`](Self::isolate_poison)), and what fails for
    /// good goes to the dead-letter hook. Otherwise as [`build`](Self::build).
    ///
    /// ```
    /// use fullbore_batch::Batcher;
    /// use std::sync::mpsc;
    ///
    /// let (bad, letters) = mpsc::channel();
    /// let sum = Batcher::builder()
    ///     .isolate_poison(true)
    ///     .dead_letter(move |text: &str, failure| drop(bad.send((text, failure.to_string()))))
    ///     .build_by_ref(|texts: &[&str]| texts.iter().map(|text| text.parse::<i32>()).collect::<Result<Vec<_>, _>>())?;
    /// let tickets = ["1", "two", "3"].map(|text| sum.submit(text));
    /// sum.close()?;
    /// let sum: i32 = tickets.into_iter().filter_map(|ticket| ticket.ok()?.wait().ok()).sum();
    /// assert_eq!(sum, 4, "only the bad one has failed");
    /// assert_eq!(letters.recv()?, ("two", "invalid digit found in string".to_owned()));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// As [`build`](Self::build).
    pub fn build_by_ref<R, O, F>(self, process: F) -> Result<Batcher<T, R>, BuildError>
    where
        T: Send + 'static,
        R: Send + 'static,
        F: Fn(&[T]) -> O + Send + Sync + 'static,
        O: IntoOutcomes<R>,
    {
        self.start(ByRef(process))
    }

    fn start<R: Send + 'static>(self, process: impl Process<T, R>) -> Result<Batcher<T, R>, BuildError>
    where
        T: Send + 'static,
    {
        let Self { config, clock, dead_letter, retry_if, weigher } = self;
        config.check()?;
        match (&weigher, config.max_weight) {
            (None, Some(max)) => return Err(BuildError::config("max_weight", max, "a weigher with it")),
            (Some(_), None) => return Err(BuildError::config("max_weight", "none", "a weight, as there is a weigher")),
            _ => {}
        }
        let places = config.places();
        let hooks = Hooks { dead_letter, retry_if, weigher };
        Shared::start(config, places, clock, hooks, process).map(Batcher::new)
    }
}

impl<T> fmt::Debug for BatcherBuilder<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BatcherBuilder").field("config", &self.config).finish_non_exhaustive()
    }
}
