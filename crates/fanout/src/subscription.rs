//! Destinations: how they are made, and the handles to them.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use fullbore_core::{BuildError, Crew, Overflow, Undelivered};
use fullbore_metrics::{Station, StationKind};

use crate::buffer::{Buffer, Handled};
use crate::config::{SubscriptionConfig, check_name};
use crate::error::RouteError;
use crate::here;
use crate::pattern::Pattern;
use crate::receiver::Receiver;
use crate::shared::{Entry, Shared, To};

/// Describes a subscription. Made by [`Router::subscribe`](crate::Router::subscribe); it begins with [`run`](Self::run) or
/// [`receiver`](Self::receiver).
pub struct SubscriptionBuilder<M> {
    shared: Arc<Shared<M>>,
    pattern: String,
    config: SubscriptionConfig,
}

impl<M> SubscriptionBuilder<M> {
    pub(crate) fn new(shared: Arc<Shared<M>>, pattern: &str) -> Self {
        Self { shared, pattern: pattern.to_owned(), config: SubscriptionConfig::default() }
    }

    /// Takes all settings from `config`.
    #[must_use]
    pub fn config(mut self, config: SubscriptionConfig) -> Self {
        self.config = config;
        self
    }

    /// The name in receipts and reports, and of the thread. Two may have the same, and are then hard to tell apart.
    ///
    /// Default: the pattern.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.config.name = Some(name.into());
        self
    }

    /// How many messages may be here: those that wait and the one being handled. Few make the overflow policy bite early,
    /// many hide a subscription that is too slow and keep more messages alive. Choose what arrives in the longest pause you
    /// accept; at least 2 with [`Overflow::DropOldest`], for with 1 whatever comes while one is handled is itself dropped.
    ///
    /// Default: 1024.
    #[must_use]
    pub fn capacity(mut self, capacity: usize) -> Self {
        self.config.capacity = capacity;
        self
    }

    /// What a publisher meets when the buffer is full. `Block` and `BlockFor` slow the publishers down to this
    /// subscription's speed; `Reject` makes it miss the new message, `DropOldest` the oldest that waits.
    ///
    /// Default: [`Overflow::DEFAULT`], waits up to 30 s, then refuses. Choose `DropOldest` for what may lag or lose
    /// (progress, metrics), `BlockFor` for what may not.
    #[must_use]
    pub fn overflow(mut self, overflow: Overflow) -> Self {
        self.config.overflow = overflow;
        self
    }
}

impl<M: Send + Sync + 'static> SubscriptionBuilder<M> {
    /// Begins: `handle` is called with each message on a thread `fullbore-fanout-<name>-0` of its own, in the order in which
    /// the buffer took them. It may return nothing, or a `Result` whose `Err` counts as failed. A panic is contained and
    /// counts as failed; the next message comes as usual.
    ///
    /// The subscription stays when its handle is dropped.
    ///
    /// # Errors
    /// A malformed pattern, a closed router, too many routes, a capacity of zero, or no thread to be had.
    pub fn run<R: Handled>(
        self,
        handle: impl FnMut(Arc<M>) -> R + Send + 'static,
    ) -> Result<Subscription<M>, RouteError> {
        let (pattern, mut buffer) = self.prepare()?;
        let shared = self.shared;
        let crew = Crew::new("fanout", &buffer.name, shared.clock.clone());
        buffer.crew = Some(crew);
        let buffer = Arc::new(buffer);
        let (desk, router, its) = (Arc::clone(&shared.desk), shared.id, Arc::clone(&buffer));
        if let Some(crew) = &buffer.crew {
            crew.spawn(move || {
                here::settle(router, its.id);
                its.serve(&desk, handle);
            })?;
        }
        if let Err(error) = shared.add(&entry(pattern, &buffer)) {
            // It was closed or filled up since `prepare` looked. The thread has nothing to do and ends.
            buffer.finish(shared.deadline(Some(Duration::ZERO)));
            return Err(error);
        }
        Ok(Subscription { shared, buffer })
    }

    /// Begins: messages are taken out of the buffer with [`Receiver::recv`]. No thread is started.
    ///
    /// # Errors
    /// A malformed pattern, a closed router, too many routes, or a capacity of zero.
    pub fn receiver(self) -> Result<Receiver<M>, RouteError> {
        let (pattern, buffer) = self.prepare()?;
        let buffer = Arc::new(buffer);
        self.shared.add(&entry(pattern, &buffer))?;
        Ok(Receiver::new(self.shared, buffer))
    }

    fn prepare(&self) -> Result<(Pattern, Buffer<M>), RouteError> {
        let config = &self.config;
        let pattern = Pattern::new(&self.pattern)?;
        let name = match &config.name {
            Some(name) => {
                check_name(name)?;
                name.as_str().into()
            }
            None => Arc::clone(pattern.text()),
        };
        BuildError::refuse_zero("capacity", config.capacity)?;
        self.shared.check_open()?;
        let station = Station::builder(name.to_string()).kind(StationKind::Fanout).capacity(config.capacity).build();
        let buffer = Buffer::new(config, name, station, &self.shared.clock);
        Ok((pattern, buffer))
    }
}

fn entry<M>(pattern: Pattern, buffer: &Arc<Buffer<M>>) -> Arc<Entry<M>> {
    Arc::new(Entry {
        id: buffer.id,
        name: Arc::clone(&buffer.name),
        pattern,
        station: buffer.station.clone(),
        to: To::Buffer(Arc::clone(buffer)),
    })
}

impl<M> fmt::Debug for SubscriptionBuilder<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SubscriptionBuilder")
            .field("pattern", &self.pattern)
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

/// A closure that is given messages. Dropping this handle changes nothing; the subscription ends with
/// [`unsubscribe`](Self::unsubscribe), [`close`](Self::close) or its router.
pub struct Subscription<M> {
    shared: Arc<Shared<M>>,
    buffer: Arc<Buffer<M>>,
}

impl<M> Subscription<M> {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.buffer.name
    }

    /// Its counts and times: an arrival is a message that its buffer took, service is the closure.
    #[must_use]
    pub fn station(&self) -> &Station {
        &self.buffer.station
    }

    /// How many messages wait for the closure.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.buffer.inbox.len()
    }

    /// Leaves the router, without waiting: no new message comes, publishers blocked here are released with `Closed` for this
    /// destination only, and the thread handles what was accepted, then ends. Idempotent.
    pub fn unsubscribe(&self) {
        self.shared.remove(self.buffer.id);
    }

    /// [Unsubscribes](Self::unsubscribe) and waits until what was accepted is handled and the thread has ended, however long
    /// that takes. Idempotent.
    ///
    /// # Errors
    /// What was left: only on one of the router's own threads, which does not wait.
    pub fn close(&self) -> Result<(), Undelivered<Arc<M>>> {
        self.shared.finish_one(&self.buffer, None).into_result()
    }

    /// As [`close`](Self::close), for at most `limit`.
    ///
    /// # Errors
    /// The messages that the closure was not given, whether it is still at one, and the name of its thread if so.
    pub fn close_within(&self, limit: Duration) -> Result<(), Undelivered<Arc<M>>> {
        self.shared.finish_one(&self.buffer, Some(limit)).into_result()
    }
}

impl<M> fmt::Debug for Subscription<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription")
            .field("name", &self.buffer.name)
            .field("waiting", &self.waiting())
            .finish_non_exhaustive()
    }
}

/// A sink that is given messages. Dropping this handle changes nothing; the route ends with [`remove`](Self::remove) or its
/// router.
pub struct Route<M> {
    shared: Arc<Shared<M>>,
    id: u64,
    name: Arc<str>,
    station: Station,
}

impl<M> Route<M> {
    pub(crate) fn new(shared: Arc<Shared<M>>, entry: &Entry<M>) -> Self {
        Self { shared, id: entry.id, name: Arc::clone(&entry.name), station: entry.station.clone() }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its counts and times: an arrival is a message that the sink took (or panicked on), service is the sink's `send`.
    /// Tell it which station the sink belongs to with [`Station::feeds`].
    #[must_use]
    pub fn station(&self) -> &Station {
        &self.station
    }

    /// Takes the sink off the router; a publish that is under way may still reach it, and the last to let go drops it. Says
    /// whether it was there.
    pub fn remove(&self) -> bool {
        self.shared.remove(self.id)
    }
}

impl<M> fmt::Debug for Route<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Route").field("name", &self.name).finish_non_exhaustive()
    }
}
