//! Routes to sinks: how they are made, and the handle to them.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use fullbore_core::{BuildError, Overflow, Sink};
use fullbore_metrics::{Station, StationKind};

use crate::config::check_name;
use crate::error::{Malformed, RouteError};
use crate::here;
use crate::reserve::Reserve;
use crate::rule::Rule;
use crate::shared::{Entry, Shared, To};
use crate::target::{Mapped, Plain, Reserving, Target};

/// Describes a route to a sink. Made by [`Router::bind`](crate::Router::bind); it begins with [`sink`](Self::sink).
///
/// ```
/// use fullbore_core::Overflow;
/// use fullbore_fanout::Router;
///
/// let router = Router::<String>::new();
/// let (lengths, seen) = crossbeam_channel::bounded(8);
/// router
///     .bind("orders.#")
///     .name("lengths")
///     .overflow(Overflow::Reject)
///     .filter_map(|order: &String| (!order.is_empty()).then(|| order.len()))
///     .sink(lengths)?;
/// let _ = router.publish("orders.eu", "seven".to_owned())?;
/// let _ = router.publish("orders.eu", String::new())?;
/// assert_eq!(seen.try_iter().collect::<Vec<_>>(), [5]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct RouteBuilder<M> {
    shared: Arc<Shared<M>>,
    rule: Result<Rule<M>, Malformed>,
    name: Option<String>,
    overflow: Option<Overflow>,
    group: Option<String>,
    optional: bool,
}

impl<M> RouteBuilder<M> {
    pub(crate) fn new(shared: Arc<Shared<M>>, rule: Result<Rule<M>, Malformed>) -> Self {
        Self { shared, rule, name: None, overflow: None, group: None, optional: false }
    }

    /// The name in receipts and reports. Two may have the same, and are then hard to tell apart.
    ///
    /// Default: the rule as text, for example the pattern.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// How long a publisher waits for the sink: not at all (`Reject`), so long (`BlockFor`), or as long as the sink's own policy
    /// lets it (`Block`). `DropOldest` is the sink's business and refused here.
    ///
    /// Default: as the sink's own policy says.
    #[must_use]
    pub fn overflow(mut self, overflow: Overflow) -> Self {
        self.overflow = Some(overflow);
        self
    }

    /// As [`SubscriptionBuilder::group`](crate::SubscriptionBuilder::group). Of a sink it is not known how full it is: it counts
    /// as empty until it refuses.
    #[must_use]
    pub fn group(mut self, name: impl Into<String>) -> Self {
        self.group = Some(name.into());
        self
    }

    /// As [`SubscriptionBuilder::optional`](crate::SubscriptionBuilder::optional). A sink that cannot
    /// [keep a place](Self::reserving_sink) has to be optional, or no all-or-nothing publish reaches anybody.
    #[must_use]
    pub fn optional(mut self) -> Self {
        self.optional = true;
        self
    }

    /// Gives the sink what `map` makes of each message, on the publisher's thread. If it panics, that is treated as a panic of
    /// the sink.
    #[must_use = "a route begins with `sink`"]
    pub fn map<T>(
        self,
        map: impl Fn(&M) -> T + Send + Sync + 'static,
    ) -> MappedRouteBuilder<M, impl Fn(&M) -> Option<T> + Send + Sync + 'static> {
        self.filter_map(move |message: &M| Some(map(message)))
    }

    /// As [`map`](Self::map); the sink is not given what `map` makes nothing of. To the publisher it was accepted all the same:
    /// the destination has no use for it.
    #[must_use = "a route begins with `sink`"]
    pub fn filter_map<T, F: Fn(&M) -> Option<T> + Send + Sync + 'static>(self, map: F) -> MappedRouteBuilder<M, F> {
        MappedRouteBuilder { builder: self, map }
    }

    fn begin(self, target: Box<dyn Target<M>>) -> Result<Route<M>, RouteError> {
        let rule = self.rule?;
        let name: Arc<str> = self.name.unwrap_or_else(|| rule.to_string()).into();
        check_name(&name)?;
        if self.overflow == Some(Overflow::DropOldest) {
            let expected = "block, block_for:<duration> or reject: only the sink itself can drop its oldest";
            return Err(BuildError::config("overflow", Overflow::DropOldest, expected).into());
        }
        let group = self.group.map(|name| self.shared.group(&name));
        let to = To::Sink(target, self.overflow);
        let station = station_of_callers(&name);
        let id = here::fresh_id();
        let entry = Arc::new(Entry { id, name, rule, station, group, optional: self.optional, to });
        self.shared.add(&entry)?;
        Ok(Route { shared: self.shared, id, name: Arc::clone(&entry.name), station: entry.station.clone() })
    }
}

impl<M: Send + Sync + 'static> RouteBuilder<M> {
    /// Begins: gives each message to a sink: a queue, a batcher, another router, a channel's sender. See
    /// [`Router::route`](crate::Router::route).
    ///
    /// # Errors
    /// A malformed pattern, a closed router, too many routes, or a setting that makes no sense.
    pub fn sink(self, sink: impl Sink<Arc<M>> + 'static) -> Result<Route<M>, RouteError> {
        self.begin(Box::new(Plain(sink)))
    }

    /// As [`sink`](Self::sink), for one that can keep a place: it may have to take what is published all-or-nothing.
    ///
    /// # Errors
    /// As [`sink`](Self::sink).
    pub fn reserving_sink(self, sink: impl Reserve<Arc<M>> + 'static) -> Result<Route<M>, RouteError> {
        self.begin(Box::new(Reserving(sink)))
    }
}

impl<M> fmt::Debug for RouteBuilder<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RouteBuilder").field("rule", &self.rule).field("name", &self.name).finish_non_exhaustive()
    }
}

/// A [`RouteBuilder`] whose sink gets what a closure makes of each message.
pub struct MappedRouteBuilder<M, F> {
    builder: RouteBuilder<M>,
    map: F,
}

impl<M: Send + Sync + 'static, F> MappedRouteBuilder<M, F> {
    /// Begins, as [`RouteBuilder::sink`] does.
    ///
    /// # Errors
    /// As [`RouteBuilder::sink`].
    pub fn sink<T: 'static>(self, sink: impl Sink<T> + 'static) -> Result<Route<M>, RouteError>
    where
        F: Fn(&M) -> Option<T> + Send + Sync + 'static,
    {
        self.builder.begin(Box::new(Mapped { map: self.map, sink, made: PhantomData }))
    }
}

impl<M, F> fmt::Debug for MappedRouteBuilder<M, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MappedRouteBuilder").field("builder", &self.builder).finish_non_exhaustive()
    }
}

/// A station whose servers are the calling threads.
pub(crate) fn station_of_callers(name: &str) -> Station {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    Station::builder(name.to_owned()).kind(StationKind::Fanout).parallelism(cores).build()
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
