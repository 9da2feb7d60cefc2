//! Subscriptions: how they are made, and the handles to them.

use std::fmt;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use fullbore_core::{BuildError, Crew, Overflow, Undelivered};
use fullbore_metrics::{Station, StationKind};

use crate::buffer::{Buffer, Handled};
use crate::config::{SubscriptionConfig, check_name};
use crate::error::{Malformed, ResizeError, RouteError};
use crate::here;
use crate::lanes::{self, Handle, KeyHash, Lanes, Outcome};
use crate::receiver::Receiver;
use crate::rule::Rule;
use crate::shared::{Entry, Served, Shared, To};

/// More threads or lanes than this are a typing error.
const MAX_THREADS: usize = 4096;

/// Describes a subscription. Made by [`Router::subscribe`](crate::Router::subscribe); it begins with [`run`](Self::run) or
/// [`receiver`](Self::receiver), or, with several threads, after [`threads`](Self::threads) or [`lanes`](Self::lanes).
pub struct SubscriptionBuilder<M> {
    shared: Arc<Shared<M>>,
    rule: Result<Rule<M>, Malformed>,
    config: SubscriptionConfig,
    group: Option<String>,
    optional: bool,
}

/// What a subscription is made of, once its settings are seen to be good.
struct Prepared<M> {
    id: u64,
    name: Arc<str>,
    rule: Rule<M>,
    station: Station,
}

impl<M> SubscriptionBuilder<M> {
    pub(crate) fn new(shared: Arc<Shared<M>>, rule: Result<Rule<M>, Malformed>) -> Self {
        Self { shared, rule, config: SubscriptionConfig::default(), group: None, optional: false }
    }

    /// Takes all settings from `config`.
    #[must_use]
    pub fn config(mut self, config: SubscriptionConfig) -> Self {
        self.config = config;
        self
    }

    /// The name in receipts and reports, and of the thread. Two may have the same, and are then hard to tell apart.
    ///
    /// Default: the rule as text, for example the pattern.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.config.name = Some(name.into());
        self
    }

    /// How many messages may be here: those that wait and those being handled; in each lane, if there are lanes. Few make the
    /// overflow policy bite early, many hide a subscription that is too slow and keep more messages alive. Choose what arrives
    /// in the longest pause you accept; at least 2 with [`Overflow::DropOldest`], for with 1 whatever comes while one is handled
    /// is itself dropped.
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

    /// How long a message may wait here. One that has waited as long when its turn comes is not handed over but becomes a dead
    /// letter ([`DeadReason::Expired`](crate::DeadReason::Expired)) and counts as dropped. Choose the age at which handling it
    /// does more harm than losing it. It keeps its place until its turn comes.
    ///
    /// Default: none. See [`RouterBuilder::ttl`](crate::RouterBuilder::ttl) for a limit by message.
    #[must_use]
    pub fn ttl(mut self, ttl: impl Into<Option<Duration>>) -> Self {
        self.config.ttl = ttl.into();
        self
    }

    /// Makes it a member of a group: of the members that a message matches **one** gets it, the one whose buffer is the least
    /// full, or, where they are equally full, the one whose turn it is. If that one refuses, the next; if all do, the policy of
    /// the first says what happens. A receipt names the group.
    ///
    /// Members may have different rules, and sinks may be members ([`RouteBuilder::group`](crate::RouteBuilder::group)). Groups
    /// of one router with the same name are the same.
    ///
    /// Default: none; it gets every message that it matches.
    #[must_use]
    pub fn group(mut self, name: impl Into<String>) -> Self {
        self.group = Some(name.into());
        self
    }

    /// Lets an all-or-nothing publish ([`Router::publish_all_or_nothing`](crate::Router::publish_all_or_nothing)) go on without
    /// it: it is offered the message once all others are sure of theirs.
    ///
    /// Default: no; if it refuses, nobody gets the message.
    #[must_use]
    pub fn optional(mut self) -> Self {
        self.optional = true;
        self
    }

    /// Several threads, which take the messages from one buffer as they come free: for work in any order.
    ///
    /// ```
    /// use fullbore_fanout::Router;
    ///
    /// let router = Router::<u32>::new();
    /// let four = router.subscribe("#").name("resize").threads(4).run(|size| assert!(*size < 10))?;
    /// let _ = router.publish("image.new", 7)?;
    /// router.close()?;
    /// assert_eq!(four.station().snapshot().served, 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// A closure that publishes to its own subscription is refused where that is full, although another of its threads might
    /// make room. Choose the number of cores for work that computes, more for work that waits.
    #[must_use = "it begins with `run`"]
    pub fn threads(self, threads: usize) -> ParallelBuilder<M> {
        ParallelBuilder { builder: self, threads, key: None }
    }

    /// So many lanes: with [`by_key`](LanesBuilder::by_key), messages with the same key are handled in order, those with
    /// different keys side by side. Each lane has a thread and a buffer of its own.
    ///
    /// Choose about twice the number of threads that would do: keys do not spread evenly. The number can be
    /// [changed](Subscription::resize_lanes) later.
    #[must_use = "it needs a key"]
    pub fn lanes(self, lanes: usize) -> LanesBuilder<M> {
        LanesBuilder { builder: self, lanes }
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
        mut self,
        handle: impl FnMut(Arc<M>) -> R + Send + 'static,
    ) -> Result<Subscription<M>, RouteError> {
        let prepared = self.prepare(1, self.config.capacity)?;
        let buffer = Arc::new(self.buffer(&prepared, true));
        buffer.spawn(self.shared.id, &self.shared.desk, handle)?;
        let to = To::Buffer(Arc::clone(&buffer));
        self.add(prepared, to, Served::One(buffer))
    }

    /// Begins: messages are taken out of the buffer with [`Receiver::recv`]. No thread is started.
    ///
    /// # Errors
    /// A malformed pattern, a closed router, too many routes, or a capacity of zero.
    pub fn receiver(mut self) -> Result<Receiver<M>, RouteError> {
        let prepared = self.prepare(1, self.config.capacity)?;
        let buffer = Arc::new(self.buffer(&prepared, false));
        let entry = self.entry(prepared, To::Buffer(Arc::clone(&buffer)));
        self.shared.add(&Arc::new(entry))?;
        Ok(Receiver::new(self.shared, buffer))
    }

    /// Begins, with several threads and a closure that they share.
    fn run_parallel(
        mut self,
        threads: usize,
        key: Option<KeyHash<M>>,
        handle: Arc<Handle<M>>,
    ) -> Result<Subscription<M>, RouteError> {
        let field = if key.is_some() { "lanes" } else { "threads" };
        if !(1..=MAX_THREADS).contains(&threads) {
            return Err(BuildError::config(field, threads, format!("1 to {MAX_THREADS}")).into());
        }
        let buffers = if key.is_some() { threads } else { 1 };
        let prepared = self.prepare(threads, self.config.capacity.saturating_mul(buffers))?;
        if let Some(key) = key {
            let parts = lanes::Parts {
                id: prepared.id,
                name: Arc::clone(&prepared.name),
                station: prepared.station.clone(),
                config: self.config.clone(),
                clock: self.shared.clock.clone(),
                router: self.shared.id,
                desk: Arc::clone(&self.shared.desk),
            };
            let lanes = Arc::new(Lanes::start(parts, threads, key, handle)?);
            return self.add(prepared, To::Lanes(Arc::clone(&lanes)), Served::Lanes(lanes));
        }
        let buffer = Arc::new(self.buffer(&prepared, true));
        for _ in 0..threads {
            let handle = Arc::clone(&handle);
            let spawned = buffer.spawn(self.shared.id, &self.shared.desk, move |message| Outcome(handle(message)));
            if let Err(error) = spawned {
                buffer.finish(None);
                return Err(error.into());
            }
        }
        let to = To::Buffer(Arc::clone(&buffer));
        self.add(prepared, to, Served::One(buffer))
    }

    fn prepare(&mut self, parallelism: usize, capacity: usize) -> Result<Prepared<M>, RouteError> {
        let config = &self.config;
        let rule = std::mem::replace(&mut self.rule, Ok(Rule::all()))?;
        let name = match &config.name {
            Some(name) => name.clone(),
            None => rule.to_string(),
        };
        check_name(&name)?;
        BuildError::refuse_zero("capacity", config.capacity)?;
        self.shared.check_open()?;
        let station = Station::builder(name.clone())
            .kind(StationKind::Fanout)
            .parallelism(parallelism)
            .capacity(capacity)
            .build();
        Ok(Prepared { id: here::fresh_id(), name: name.into(), rule, station })
    }

    fn buffer(&self, prepared: &Prepared<M>, crew: bool) -> Buffer<M> {
        let Prepared { id, name, station, .. } = prepared;
        let clock = &self.shared.clock;
        let mut buffer = Buffer::new(*id, &self.config, Arc::clone(name), station.clone(), clock);
        buffer.crew = crew.then(|| Crew::new("fanout", name, clock.clone()));
        buffer
    }

    fn entry(&self, prepared: Prepared<M>, to: To<M>) -> Entry<M> {
        let Prepared { id, name, rule, station } = prepared;
        let group = self.group.as_ref().map(|name| self.shared.group(name));
        Entry { id, name, rule, station, group, optional: self.optional, to }
    }

    fn add(self, prepared: Prepared<M>, to: To<M>, served: Served<M>) -> Result<Subscription<M>, RouteError> {
        let entry = self.entry(prepared, to);
        if let Err(error) = self.shared.add(&Arc::new(entry)) {
            // It was closed or filled up since `prepare` looked. The threads have nothing to do and end.
            served.finish(self.shared.deadline(Some(Duration::ZERO)));
            return Err(error);
        }
        Ok(Subscription { shared: self.shared, served })
    }
}

impl<M> fmt::Debug for SubscriptionBuilder<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SubscriptionBuilder")
            .field("rule", &self.rule)
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

/// Describes a subscription with several threads. Made by [`SubscriptionBuilder::threads`] and [`LanesBuilder::by_key`].
pub struct ParallelBuilder<M> {
    builder: SubscriptionBuilder<M>,
    threads: usize,
    key: Option<KeyHash<M>>,
}

impl<M: Send + Sync + 'static> ParallelBuilder<M> {
    /// Begins, as [`SubscriptionBuilder::run`] does; `handle` is called on several threads at once. The threads are named
    /// `fullbore-fanout-<name>-<n>`, those of lanes `fullbore-fanout-<name>-<lane>-0`.
    ///
    /// # Errors
    /// As [`SubscriptionBuilder::run`]; and no threads, no lanes, or more than 4,096.
    pub fn run<R: Handled>(
        self,
        handle: impl Fn(Arc<M>) -> R + Send + Sync + 'static,
    ) -> Result<Subscription<M>, RouteError> {
        let handle = Arc::new(move |message| handle(message).into_result());
        self.builder.run_parallel(self.threads, self.key, handle)
    }
}

impl<M> fmt::Debug for ParallelBuilder<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ParallelBuilder")
            .field("builder", &self.builder)
            .field("threads", &self.threads)
            .finish_non_exhaustive()
    }
}

/// Describes a subscription with lanes. Made by [`SubscriptionBuilder::lanes`].
#[derive(Debug)]
pub struct LanesBuilder<M> {
    builder: SubscriptionBuilder<M>,
    lanes: usize,
}

impl<M: Send + Sync + 'static> LanesBuilder<M> {
    /// What messages have to have in common to be handled in order.
    ///
    /// ```
    /// use fullbore_fanout::Router;
    ///
    /// let router = Router::<(u64, &str)>::new();
    /// let accounts = router.subscribe("#").lanes(8).by_key(|(account, _)| *account).run(|_| ())?;
    /// let _ = router.publish("booking", (7, "in"))?;
    /// let _ = router.publish("booking", (7, "out"))?;
    /// accounts.resize_lanes(16)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// `key` is called once for each message, on the publisher's thread; its panic is treated as a sink's. The lane is chosen by
    /// jump consistent hash over a hash of this subscription's own: a change from `n` to `n + 1` lanes moves one key in `n + 1`,
    /// and routers with lanes one behind the other do not choose alike.
    #[must_use = "it begins with `run`"]
    pub fn by_key<K: Hash>(self, key: impl Fn(&M) -> K + Send + Sync + 'static) -> ParallelBuilder<M> {
        ParallelBuilder { builder: self.builder, threads: self.lanes, key: Some(lanes::key_hash(key)) }
    }
}

/// A closure that is given messages. Dropping this handle changes nothing; the subscription ends with
/// [`unsubscribe`](Self::unsubscribe), [`close`](Self::close) or its router.
pub struct Subscription<M> {
    shared: Arc<Shared<M>>,
    served: Served<M>,
}

impl<M> Subscription<M> {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.served.name()
    }

    /// Its counts and times: an arrival is a message that its buffer took, service is the closure.
    #[must_use]
    pub fn station(&self) -> &Station {
        self.served.station()
    }

    /// How many messages wait for the closure.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.served.waiting()
    }

    /// How many lanes it has, if it has lanes.
    #[must_use]
    pub fn lanes(&self) -> Option<usize> {
        match &self.served {
            Served::One(_) => None,
            Served::Lanes(lanes) => Some(lanes.len()),
        }
    }

    /// Leaves the router, without waiting: no new message comes, publishers blocked here are released with `Closed` for this
    /// destination only, and the threads handle what was accepted, then end. Idempotent.
    pub fn unsubscribe(&self) {
        self.shared.remove(self.served.id());
    }

    /// [Unsubscribes](Self::unsubscribe) and waits until what was accepted is handled and the threads have ended, however long
    /// that takes. Idempotent.
    ///
    /// # Errors
    /// What was left: only on one of the router's own threads, which does not wait.
    pub fn close(&self) -> Result<(), Undelivered<Arc<M>>> {
        self.shared.finish_one(&self.served, None).into_result()
    }

    /// As [`close`](Self::close), for at most `limit`.
    ///
    /// # Errors
    /// The messages that the closure was not given, how many it is still at, and the names of those threads.
    pub fn close_within(&self, limit: Duration) -> Result<(), Undelivered<Arc<M>>> {
        self.shared.finish_one(&self.served, Some(limit)).into_result()
    }
}

impl<M: Send + Sync + 'static> Subscription<M> {
    /// Changes the number of lanes, and waits until what they hold is handled: messages with the same key are handled in order
    /// across the change. Meanwhile publishers wait as if the lanes were full (under `Reject` and `DropOldest` they are refused).
    ///
    /// # Errors
    /// There are no lanes, the subscription has ended, the number cannot be, a thread cannot be had, or the caller is one of the
    /// router's own threads, which do not wait. The lanes are then as before.
    ///
    /// # Deadlock
    /// Never ends if a closure never returns; [`resize_lanes_within`](Self::resize_lanes_within) does.
    pub fn resize_lanes(&self, lanes: usize) -> Result<(), ResizeError> {
        self.resize(lanes, None)
    }

    /// As [`resize_lanes`](Self::resize_lanes), for at most `limit`.
    ///
    /// # Errors
    /// If the time was up; as [`resize_lanes`](Self::resize_lanes). The lanes are then as before.
    pub fn resize_lanes_within(&self, lanes: usize, limit: Duration) -> Result<(), ResizeError> {
        self.resize(lanes, Some(limit))
    }

    fn resize(&self, lanes: usize, limit: Option<Duration>) -> Result<(), ResizeError> {
        let Served::Lanes(ours) = &self.served else { return Err(ResizeError::NoLanes) };
        if !(1..=MAX_THREADS).contains(&lanes) {
            return Err(BuildError::config("lanes", lanes, format!("1 to {MAX_THREADS}")).into());
        }
        if here::is_thread_of(self.shared.id) {
            let left = fullbore_core::FlushError::new(ours.waiting(), ours.in_flight(), true);
            return Err(ResizeError::NotDrained(left));
        }
        ours.resize(lanes, self.shared.deadline(limit))
    }
}

impl<M> fmt::Debug for Subscription<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription")
            .field("name", &self.name())
            .field("waiting", &self.waiting())
            .field("lanes", &self.lanes())
            .finish_non_exhaustive()
    }
}
