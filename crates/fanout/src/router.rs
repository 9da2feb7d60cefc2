//! The router.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fullbore_core::{Clock, Close, FlushError, Leftover, Patience, Sink, Undelivered};
use fullbore_metrics::{Departure, Station};

use crate::config::{Config, Facts, RouterBuilder};
use crate::dead::{Desk, Hook};
use crate::error::{Malformed, PublishError, RouteError};
use crate::here;
use crate::pattern::check_topic;
use crate::receipt::{BatchReceipt, Receipt};
use crate::route::{Route, RouteBuilder, station_of_callers};
use crate::rule::IntoRule;
use crate::shared::{Shared, Stranded};
use crate::sink::RouterSink;
use crate::subscription::SubscriptionBuilder;

/// Takes messages under topics and gives each to every destination whose rule matches. A cheap handle; clones share
/// the routes, and the last one closes it.
///
/// ```
/// use fullbore_fanout::Router;
/// use std::sync::mpsc;
///
/// let router = Router::new();
/// let (sender, seen) = mpsc::channel();
/// router.subscribe("orders.#").run(move |order: std::sync::Arc<u32>| sender.send(*order))?;
/// let audit = router.subscribe("#").name("audit").receiver()?;
///
/// let receipt = router.publish("orders.eu.created", 7)?;
/// assert_eq!((receipt.matched(), receipt.accepted()), (2, 2));
/// assert_eq!(seen.recv()?, 7);
/// assert_eq!(*audit.recv()?, 7);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Deadlock
/// A closure or a sink that holds a clone of its own router keeps it open: nothing waits, but the threads live until
/// [`close`](Self::close) is called.
pub struct Router<M> {
    owner: Arc<Owner<M>>,
}

/// Closes when the last clone goes. Nothing that the router's own threads hold leads here.
struct Owner<M> {
    shared: Arc<Shared<M>>,
}

impl<M: Send + Sync + 'static> Router<M> {
    /// A router with the default settings.
    #[must_use]
    pub fn new() -> Self {
        RouterBuilder::default().start()
    }

    /// Describes a router.
    #[must_use]
    pub fn builder() -> RouterBuilder<M> {
        RouterBuilder::default()
    }

    pub(crate) fn start(config: Config, clock: Clock, hook: Option<Hook<M>>, facts: Facts<M>) -> Self {
        let station = station_of_callers(&config.name);
        let id = here::fresh_id();
        let desk = Desk::new(id, &config.name, hook);
        let shared = Arc::new(Shared::new(config, clock, station, id, desk, facts));
        Self { owner: Arc::new(Owner { shared }) }
    }

    fn shared(&self) -> &Arc<Shared<M>> {
        &self.owner.shared
    }

    /// Gives what `rule` (a pattern, or any [`Rule`](crate::Rule)) stands for to a sink: a queue, a batcher, another router, a
    /// channel's sender. The route is named after its rule.
    ///
    /// The sink's `send` is called **on the publisher's thread**, with the sink's own policy: one that waits for room makes
    /// the publisher wait. Where that is not wanted put a [subscription](Self::subscribe) in front, choose a sink that
    /// rejects, or [say so](crate::RouteBuilder::overflow). If it panics, every other destination still gets the message, then the
    /// panic goes on in `publish`.
    ///
    /// A sink that has several routes gets a message once for each of them that matches.
    ///
    /// The route stays when its handle is dropped; [`Route::remove`] ends it. The sink is never closed, only dropped.
    ///
    /// # Errors
    /// A malformed pattern, a closed router, or too many routes.
    pub fn route(&self, rule: impl IntoRule<M>, sink: impl Sink<Arc<M>> + 'static) -> Result<Route<M>, RouteError> {
        self.bind(rule).sink(sink)
    }

    /// As [`route`](Self::route), with a name of its own in receipts and reports: for several sinks on one pattern.
    ///
    /// # Errors
    /// As [`route`](Self::route).
    pub fn route_named(
        &self,
        name: &str,
        rule: impl IntoRule<M>,
        sink: impl Sink<Arc<M>> + 'static,
    ) -> Result<Route<M>, RouteError> {
        self.bind(rule).name(name).sink(sink)
    }

    /// Describes a route to a sink: with a name, a policy, a `map` of the messages, a group.
    #[must_use = "a route begins with `sink`"]
    pub fn bind(&self, rule: impl IntoRule<M>) -> RouteBuilder<M> {
        RouteBuilder::new(Arc::clone(self.shared()), rule.into_rule())
    }

    /// Describes a subscription to what `rule` (a pattern, or any [`Rule`](crate::Rule)) stands for: a bounded buffer of its own,
    /// in front of a closure with threads of its own ([`SubscriptionBuilder::run`]) or of a receiver
    /// ([`SubscriptionBuilder::receiver`]).
    #[must_use = "a subscription begins with `run` or `receiver`"]
    pub fn subscribe(&self, rule: impl IntoRule<M>) -> SubscriptionBuilder<M> {
        SubscriptionBuilder::new(Arc::clone(self.shared()), rule.into_rule())
    }

    /// Offers a message to every destination that matches, each with its own policy; one copy is stored. The receipt says
    /// who took it: `Ok` with refusals in it is the ordinary answer when a destination is full or gone.
    ///
    /// Each destination gets the messages of one publishing thread in the order of its calls.
    ///
    /// # Errors
    /// The message, if the router is closed or the topic malformed.
    ///
    /// # Panics
    /// If a sink or the dead-letter hook does, after everybody else was served.
    ///
    /// # Deadlock
    /// Waits for each full destination that blocks, one after the other. A subscription's closure may publish: where that
    /// would wait for itself, directly or over other subscriptions that publish, it is refused as full. With
    /// `Overflow::Block` and a receiver that the same thread reads, nothing ends the wait.
    pub fn publish(&self, topic: &str, message: M) -> Result<Receipt, PublishError<M>> {
        self.publish_patiently(topic, message, Patience::Policy(None))
    }

    /// As [`publish`](Self::publish), for a message that is shared already.
    ///
    /// # Errors
    /// As [`publish`](Self::publish).
    ///
    /// # Panics
    /// As [`publish`](Self::publish).
    pub fn publish_arc(&self, topic: &str, message: Arc<M>) -> Result<Receipt, PublishError<Arc<M>>> {
        let shared = self.shared();
        match shared.admit(topic, &message) {
            Ok(admitted) => Ok(shared.publish(admitted, topic, &message, Patience::Policy(None))),
            Err(fault) => Err(PublishError::new(message, fault)),
        }
    }

    /// As [`publish`](Self::publish), but a destination that would wait refuses.
    ///
    /// # Errors
    /// As [`publish`](Self::publish).
    ///
    /// # Panics
    /// As [`publish`](Self::publish).
    pub fn try_publish(&self, topic: &str, message: M) -> Result<Receipt, PublishError<M>> {
        self.publish_patiently(topic, message, Patience::Try)
    }

    /// As [`publish`](Self::publish), waiting for all destinations together until `deadline` at most. Sinks are given the
    /// deadline.
    ///
    /// # Errors
    /// As [`publish`](Self::publish).
    ///
    /// # Panics
    /// As [`publish`](Self::publish).
    pub fn publish_deadline(&self, topic: &str, message: M, deadline: Instant) -> Result<Receipt, PublishError<M>> {
        self.publish_patiently(topic, message, Patience::Policy(Some(deadline)))
    }

    fn publish_patiently(&self, topic: &str, message: M, patience: Patience) -> Result<Receipt, PublishError<M>> {
        let shared = self.shared();
        match shared.admit(topic, &message) {
            Ok(admitted) => Ok(shared.publish(admitted, topic, &Arc::new(message), patience)),
            Err(fault) => Err(PublishError::new(message, fault)),
        }
    }

    /// Publishes messages under one topic, each as [`publish`](Self::publish) does; one receipt for all. A destination that blocks
    /// makes all of them wait.
    ///
    /// # Errors
    /// The messages, if the router is closed or the topic malformed. If it is closed on the way, those that were not published yet.
    ///
    /// # Panics
    /// As [`publish`](Self::publish), at the first message for which something does; those behind it are dropped.
    pub fn publish_batch(
        &self,
        topic: &str,
        messages: impl IntoIterator<Item = M>,
    ) -> Result<BatchReceipt, PublishError<Vec<M>>> {
        let mut receipt = BatchReceipt::default();
        let mut messages = messages.into_iter();
        while let Some(message) = messages.next() {
            match self.publish(topic, message) {
                Ok(one) => receipt.add(one),
                Err(error) => {
                    let (message, fault) = error.into_parts();
                    return Err(PublishError::new(std::iter::once(message).chain(messages).collect(), fault));
                }
            }
        }
        Ok(receipt)
    }

    /// Offers a message to every destination that matches, or to none: a place is kept at each of them first, and only when all
    /// have one is the message given to any. So a publish that fails can be tried again without anybody's getting it twice.
    ///
    /// It waits for places as the destinations' policies say, and keeps none while it waits. Destinations that are
    /// [optional](SubscriptionBuilder::optional) are offered the message afterwards. A destination that
    /// leaves once its place is kept has accepted the message: it is handled, or a dead letter.
    ///
    /// # Errors
    /// The message, if the router is closed, the topic malformed, a destination refused
    /// ([`withheld`](PublishError::withheld)) or is a sink that cannot keep a place
    /// ([`cannot_reserve`](PublishError::cannot_reserve)). No destination has it then, and no dead letter is made.
    ///
    /// # Panics
    /// As [`publish`](Self::publish). A sink that panics on a place it had kept counts as failed there.
    ///
    /// # Deadlock
    /// As [`publish`](Self::publish).
    pub fn publish_all_or_nothing(&self, topic: &str, message: M) -> Result<Receipt, PublishError<M>> {
        self.publish_all(topic, message, Patience::Policy(None))
    }

    /// As [`publish_all_or_nothing`](Self::publish_all_or_nothing), but does not wait.
    ///
    /// # Errors
    /// As [`publish_all_or_nothing`](Self::publish_all_or_nothing).
    ///
    /// # Panics
    /// As [`publish_all_or_nothing`](Self::publish_all_or_nothing).
    pub fn try_publish_all_or_nothing(&self, topic: &str, message: M) -> Result<Receipt, PublishError<M>> {
        self.publish_all(topic, message, Patience::Try)
    }

    /// As [`publish_all_or_nothing`](Self::publish_all_or_nothing), waiting until `deadline` at most.
    ///
    /// # Errors
    /// As [`publish_all_or_nothing`](Self::publish_all_or_nothing).
    ///
    /// # Panics
    /// As [`publish_all_or_nothing`](Self::publish_all_or_nothing).
    pub fn publish_all_or_nothing_deadline(
        &self,
        topic: &str,
        message: M,
        deadline: Instant,
    ) -> Result<Receipt, PublishError<M>> {
        self.publish_all(topic, message, Patience::Policy(Some(deadline)))
    }

    fn publish_all(&self, topic: &str, message: M, patience: Patience) -> Result<Receipt, PublishError<M>> {
        let shared = self.shared();
        let admitted = match shared.admit(topic, &message) {
            Ok(admitted) => admitted,
            Err(fault) => return Err(PublishError::new(message, fault)),
        };
        // Nobody has a share of it before everybody has a place.
        shared.publish_all_or_nothing(admitted, topic, message, patience)
    }

    /// This router as a target of others: a sink of `M` and of `Arc<M>` that publishes under `topic`. It is a clone, so it
    /// keeps the router open.
    ///
    /// # Errors
    /// If the topic is malformed.
    pub fn sink(&self, topic: &str) -> Result<RouterSink<M>, Malformed> {
        check_topic(topic)?;
        Ok(RouterSink::new(self.clone(), topic))
    }

    /// Closes it from a [`Shutdown`](fullbore_core::Shutdown), without keeping it open until then. What is left goes to the
    /// dead letters.
    #[must_use]
    pub fn closer(&self) -> impl Close + 'static {
        Closer(Arc::clone(self.shared()))
    }
}

impl<M> Router<M> {
    pub(crate) fn parts(&self) -> &Shared<M> {
        &self.owner.shared
    }

    /// Waits until every subscription's closure has handled what was accepted before the call, however long that takes.
    ///
    /// A receiver's messages are not waited for: they are where they were meant to go. The same holds for a sink's.
    ///
    /// # Errors
    /// Only on one of the router's own threads, which does not wait.
    ///
    /// # Deadlock
    /// Never ends if a closure never returns; [`flush_within`](Self::flush_within) does.
    pub fn flush(&self) -> Result<(), FlushError> {
        self.owner.shared.flush(None)
    }

    /// As [`flush`](Self::flush), for at most `limit`.
    ///
    /// # Errors
    /// If the time was up, with what is left; as [`flush`](Self::flush).
    pub fn flush_within(&self, limit: Duration) -> Result<(), FlushError> {
        self.owner.shared.flush(Some(limit))
    }

    /// Refuses new messages and routes, releases blocked publishers (`Closed` for the destinations they wait for), and waits
    /// until the subscriptions have handled what they had accepted, however long that takes. Idempotent.
    ///
    /// Receivers keep what they have; sinks are dropped, not closed. A publish that is under way on another thread ends by
    /// itself; its receipt says who took the message.
    ///
    /// # Errors
    /// What was left: only on one of the router's own threads, which does not wait.
    pub fn close(&self) -> Result<(), Undelivered<Stranded<M>>> {
        self.close_by(None)
    }

    /// As [`close`](Self::close), for at most `limit`.
    ///
    /// # Errors
    /// The messages that no closure was given, with the subscription's name; how many are being handled; and the names of
    /// the threads that are stuck in a closure.
    pub fn close_within(&self, limit: Duration) -> Result<(), Undelivered<Stranded<M>>> {
        self.close_by(Some(limit))
    }

    fn close_by(&self, limit: Option<Duration>) -> Result<(), Undelivered<Stranded<M>>> {
        let shared = &self.owner.shared;
        shared.close(shared.deadline(limit), Departure::Returned).into_result()
    }

    /// Whether it was closed.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.owner.shared.is_closed()
    }

    /// How many routes, subscriptions and receivers there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.owner.shared.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Counts the publishes: served if everybody who matched accepted the message, failed if somebody did not, dropped if
    /// nobody matched, refused if the router was closed or the topic malformed. Service is the time of the call, waits for
    /// full destinations included. It feeds the stations of the routes.
    #[must_use]
    pub fn station(&self) -> &Station {
        &self.owner.shared.station
    }
}

impl<M: Send + Sync + 'static> Default for Router<M> {
    fn default() -> Self {
        Self::new()
    }
}

impl<M> Clone for Router<M> {
    fn clone(&self) -> Self {
        Self { owner: Arc::clone(&self.owner) }
    }
}

impl<M> fmt::Debug for Router<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Router")
            .field("name", &self.owner.shared.config.name)
            .field("routes", &self.len())
            .field("closed", &self.is_closed())
            .finish()
    }
}

impl<M> Drop for Owner<M> {
    fn drop(&mut self) {
        let shared = &self.shared;
        shared.close_for_good(shared.deadline(Some(shared.config.on_drop.budget())));
    }
}

struct Closer<M>(Arc<Shared<M>>);

impl<M: Send + Sync> Close for Closer<M> {
    fn name(&self) -> String {
        self.0.config.name.clone()
    }

    fn close_within(&self, limit: Duration) -> Leftover {
        self.0.close_for_good(self.0.deadline(Some(limit)))
    }
}
