//! Settings and the builder.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use fullbore_core::{Backoff, BuildError, Clock, EnvReader, OnDrop, Overflow};
use fullbore_limit::Limit;

use crate::job::{DeadLetter, IntoVerdict, Job, Verdict};
use crate::queue::Queue;

/// The settings of a [`Queue`], from code, a file (feature `serde`: unknown fields are refused) or the environment.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default, deny_unknown_fields))]
pub struct Config {
    /// See [`QueueBuilder::name`].
    pub name: String,
    /// See [`QueueBuilder::workers`].
    pub workers: usize,
    /// See [`QueueBuilder::capacity`].
    pub capacity: usize,
    /// See [`QueueBuilder::overflow`].
    pub overflow: Overflow,
    /// See [`QueueBuilder::max_attempts`].
    pub max_attempts: u32,
    /// See [`QueueBuilder::backoff`].
    #[cfg_attr(feature = "serde", serde(with = "fullbore_core::serde_text::duration"))]
    pub backoff_min: Duration,
    /// See [`QueueBuilder::backoff`].
    #[cfg_attr(feature = "serde", serde(with = "fullbore_core::serde_text::duration"))]
    pub backoff_max: Duration,
    /// See [`QueueBuilder::jitter`].
    pub jitter: bool,
    /// See [`QueueBuilder::on_drop`].
    pub on_drop: OnDrop,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            name: "queue".into(),
            workers: std::thread::available_parallelism().map_or(1, usize::from),
            capacity: 10_000,
            overflow: Overflow::DEFAULT,
            max_attempts: 5,
            backoff_min: Duration::from_millis(100),
            backoff_max: Duration::from_secs(30),
            jitter: true,
            on_drop: OnDrop::default(),
        }
    }
}

impl Config {
    /// The defaults, overwritten by variables such as `APP_QUEUE_WORKERS` for the prefix `APP_QUEUE_`.
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
        env.read("workers", &mut config.workers)?;
        env.read("capacity", &mut config.capacity)?;
        env.read("overflow", &mut config.overflow)?;
        env.read("max_attempts", &mut config.max_attempts)?;
        env.read("backoff_min", &mut config.backoff_min)?;
        env.read("backoff_max", &mut config.backoff_max)?;
        env.read("jitter", &mut config.jitter)?;
        env.read("on_drop", &mut config.on_drop)?;
        env.finish()?;
        Ok(config)
    }

    pub(crate) fn backoff(&self) -> Backoff {
        Backoff { min: self.backoff_min, max: self.backoff_max, jitter: self.jitter }
    }

    fn check(&self) -> Result<(), BuildError> {
        if !(1..=MAX_WORKERS).contains(&self.workers) {
            return Err(BuildError::config("workers", self.workers, format!("1 to {MAX_WORKERS}")));
        }
        BuildError::refuse_zero("capacity", self.capacity)?;
        BuildError::refuse_zero("max_attempts", self.max_attempts as usize)?;
        if self.backoff_min > self.backoff_max {
            let expected = format!("at most backoff_max ({:?})", self.backoff_max);
            return Err(BuildError::config("backoff_min", format!("{:?}", self.backoff_min), expected));
        }
        Ok(())
    }
}

/// More threads than this are a typing error, and could leave the whole machine without.
const MAX_WORKERS: usize = 4096;

/// Does the jobs.
pub(crate) type Handler<J> = Arc<dyn Fn(&Job<J>) -> Verdict + Send + Sync>;

/// Takes what no worker could do.
pub(crate) type DeadLetterHook<J> = Box<dyn Fn(DeadLetter<J>) + Send + Sync>;

/// Builds a [`Queue`].
#[must_use = "a builder does nothing before build()"]
pub struct QueueBuilder<J> {
    pub(crate) config: Config,
    pub(crate) clock: Clock,
    pub(crate) limit: Option<Limit>,
    pub(crate) dead_letter: Option<DeadLetterHook<J>>,
}

impl<J: Send + 'static> QueueBuilder<J> {
    pub(crate) fn new() -> Self {
        Self { config: Config::default(), clock: Clock::Real, limit: None, dead_letter: None }
    }

    /// Takes all settings from `config`.
    pub fn config(mut self, config: Config) -> Self {
        self.config = config;
        self
    }

    /// The name in reports and of the threads. Default: `queue`.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.config.name = name.into();
        self
    }

    /// How many worker threads. For work that computes: the number of cores. For work that waits (disk, network): more, as
    /// long as throughput grows; 64 threads that wait cost little. At most 4,096.
    ///
    /// Default: the number of cores.
    pub fn workers(mut self, workers: usize) -> Self {
        self.config.workers = workers;
        self
    }

    /// The most jobs accepted and not finished: waiting, delayed and being worked on. Choose what may be lost if the process
    /// dies, and what memory allows.
    ///
    /// Default: 10,000.
    pub fn capacity(mut self, capacity: usize) -> Self {
        self.config.capacity = capacity;
        self
    }

    /// What `send` does at capacity. `Block` and `BlockFor` make producers run at the workers' speed. `DropOldest` displaces
    /// the job that would be begun next, also one that is delayed or waits for a retry, and the newcomer itself if all
    /// places belong to jobs being worked on.
    ///
    /// Default: `BlockFor(30 s)`.
    pub fn overflow(mut self, overflow: Overflow) -> Self {
        self.config.overflow = overflow;
        self
    }

    /// How often a job is tried in all before it becomes a dead letter. A handler can give up earlier
    /// ([`Verdict::dead`](crate::Verdict::dead)). 1 means no retry: right for work that must not happen twice.
    ///
    /// Default: 5.
    pub fn max_attempts(mut self, max_attempts: u32) -> Self {
        self.config.max_attempts = max_attempts;
        self
    }

    /// The pause before the second attempt, doubled for each further one up to `max`. Choose `min` about as long as the
    /// fault usually lasts; a short `min` asks a struggling server more often.
    ///
    /// Default: 100 ms to 30 s.
    pub fn backoff(mut self, min: Duration, max: Duration) -> Self {
        self.config.backoff_min = min;
        self.config.backoff_max = max;
        self
    }

    /// Whether each pause is lengthened by a random part of itself (up to double, also beyond `max`), so that jobs that
    /// failed together do not come back together. Without it pauses are exact, which tests like.
    ///
    /// Default: true.
    pub fn jitter(mut self, jitter: bool) -> Self {
        self.config.jitter = jitter;
        self
    }

    /// Each worker takes a permit of `limit` for each attempt, waiting as long as its acquire timeout allows; without one the
    /// attempt counts as failed. A job that waits for a permit counts as in process; if the queue is closed and its time is
    /// up meanwhile, the job becomes a dead letter ([`Failure::Closed`](fullbore_core::Failure::Closed)). Use it to share one bound with other parts of the program, or to change it without
    /// changing the number of threads.
    ///
    /// Default: none.
    pub fn limit(mut self, limit: &Limit) -> Self {
        self.limit = Some(limit.clone());
        self
    }

    /// Receives every job that was given up, displaced, or dropped with the queue, with the reason. Runs on the thread where
    /// that happens, never under a lock. Its panic is contained, except where a send displaced the job: there it goes on to
    /// the sender, whose own job was accepted all the same.
    ///
    /// Default: none; such jobs are counted and dropped.
    pub fn dead_letter(mut self, hook: impl Fn(DeadLetter<J>) + Send + Sync + 'static) -> Self {
        self.dead_letter = Some(Box::new(hook));
        self
    }

    /// What dropping the [`Queue`] does with accepted jobs. Whatever is left goes to the dead-letter hook.
    ///
    /// Default: finishes them for at most 5 s.
    pub fn on_drop(mut self, on_drop: OnDrop) -> Self {
        self.config.on_drop = on_drop;
        self
    }

    /// The clock for deadlines and pauses. Default: the real one; tests pass a
    /// [`PausedClock`](fullbore_core::PausedClock).
    pub fn clock(mut self, clock: impl Into<Clock>) -> Self {
        self.clock = clock.into();
        self
    }

    /// Starts the workers. `handler` is called for each attempt, on several threads at once. It may return `()`, a
    /// `Result<(), E>` whose error means "try again", or a [`Verdict`]. Its panic is a failed attempt.
    ///
    /// # Errors
    /// [`BuildError::Config`] for settings that make no sense, [`BuildError::Spawn`] without threads.
    pub fn build<O: IntoVerdict>(
        self,
        handler: impl Fn(&Job<J>) -> O + Send + Sync + 'static,
    ) -> Result<Queue<J>, BuildError> {
        self.config.check()?;
        Queue::start(self, Arc::new(move |job: &Job<J>| handler(job).into_verdict()))
    }
}

impl<J> fmt::Debug for QueueBuilder<J> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueueBuilder").field("config", &self.config).finish_non_exhaustive()
    }
}
