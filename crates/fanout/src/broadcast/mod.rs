//! One ring of messages, many readers, each with its own place in it.

mod config;
mod desk;
mod entry;
mod error;
mod feed;
mod hub;
mod publisher;
// What the ring is for is to be written and read without a lock; it names its invariants.
#[expect(unsafe_code, reason = "messages are read where they are, by many threads at once")]
mod ring;
#[expect(unsafe_code, reason = "one publisher alone needs no lock")]
mod seat;
mod subscriber;
mod sync;
mod thread;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fullbore_core::{Close, Events, Leftover, Undelivered};
use fullbore_metrics::{Elsewhere, Station, StationKind};

use hub::Hub;

pub use config::{BroadcastBuilder, BroadcastConfig, SubscriberBuilder, SubscriberConfig};
pub use entry::LagPolicy;
pub use error::{ReceiveError, SubscribeError};
pub use publisher::Publisher;
pub use subscriber::{Messages, Subscriber};

/// A ring of messages: each is stored once, and every [`Subscriber`] goes along them at its own pace.
///
/// This is the owner: it is not `Clone`, and dropping it closes the broadcast. [`publisher`](Self::publisher) gives handles to send
/// with, [`subscribe`](Self::subscribe) those to receive with; neither keeps it open.
///
/// ```
/// use fullbore_fanout::{Broadcast, LagPolicy};
///
/// let prices = Broadcast::builder().capacity(1024).build()?;
/// let mut ledger = prices.subscribe().name("ledger").join()?;
/// let mut screen = prices.subscribe().name("screen").lag(1).policy(LagPolicy::DropOldest).join()?;
///
/// let publisher = prices.publisher();
/// for price in [101, 102, 103] {
///     publisher.publish(price)?;
/// }
/// prices.close();
///
/// assert_eq!(ledger.iter().collect::<Result<Vec<_>, _>>()?, [101, 102, 103]);
/// assert_eq!(screen.recv().unwrap_err().lost(), Some(2));
/// assert_eq!(screen.recv_with(|price| *price)?, 103);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Broadcast<T> {
    shared: Arc<Shared<T>>,
}

/// What the owner and all handles share.
pub(crate) struct Shared<T> {
    hub: Arc<Hub<T>>,
    name: Arc<str>,
    station: Station,
    events: Events,
    retain: u64,
}

/// Messages that a subscriber had not read when the time was up. It can read them still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Unread {
    /// How many.
    pub messages: u64,
}

impl<T> Broadcast<T> {
    /// Settings for a new one.
    #[must_use]
    pub fn builder() -> BroadcastBuilder<T> {
        BroadcastBuilder::default()
    }

    /// A handle to send with.
    #[must_use]
    pub fn publisher(&self) -> Publisher<T> {
        Publisher::new(Arc::clone(&self.shared))
    }

    /// Settings of a new subscription. It gets what is published from [`join`](SubscriberBuilder::join) on, and before that what is
    /// [retained](BroadcastBuilder::retain).
    pub fn subscribe(&self) -> SubscriberBuilder<T> {
        SubscriberBuilder::new(Arc::clone(&self.shared))
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// Its counts: an arrival is a message that was published; it is served when it is in the ring. The wait is that of publishers
    /// for subscribers. Each subscription has a station of its own.
    #[must_use]
    pub fn station(&self) -> &Station {
        &self.shared.station
    }

    /// How many messages the ring holds.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.shared.hub.capacity() as usize
    }

    /// How many subscriptions there are: evicted ones are not.
    #[must_use]
    pub fn subscribers(&self) -> usize {
        self.shared.hub.subscriptions()
    }

    /// Whether it is closed.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.shared.hub.is_closed()
    }

    /// Accepts nothing from now on: publishers that wait get their message back, subscribers what was published, then
    /// [`Closed`](ReceiveError::Closed). Does not wait for them. Idempotent.
    pub fn close(&self) {
        self.shared.hub.close();
    }

    /// [Closes](Self::close), and waits for at most `limit` until every subscriber has read everything or has gone.
    ///
    /// # Errors
    /// What is unread, one item for each such subscription, and how many of them are in a callback.
    ///
    /// # Deadlock
    /// Waits in vain, up to `limit`, for a subscriber that the calling thread itself would have to read from.
    pub fn close_within(&self, limit: Duration) -> Result<(), Undelivered<Unread>> {
        self.shared.close_by(self.shared.hub.clock().after(limit))
    }

    /// A handle that closes it, for a [`Shutdown`](fullbore_core::Shutdown).
    #[must_use]
    pub fn closer(&self) -> impl Close + 'static
    where
        T: Send + Sync + 'static,
    {
        Closer(Arc::clone(&self.shared))
    }
}

impl<T> Shared<T> {
    fn close_by(&self, deadline: Option<Instant>) -> Result<(), Undelivered<Unread>> {
        self.hub.close();
        let left = self.hub.wait_until_drained(deadline);
        let in_flight = left.iter().filter(|(desk, _)| desk.is_busy()).count();
        let items = left.into_iter().map(|(_, messages)| Unread { messages }).collect();
        Undelivered::new(items, in_flight, Vec::new()).into_result()
    }
}

impl<T: Send + Sync> Shared<T> {
    fn new(config: BroadcastConfig, clock: fullbore_core::Clock) -> Arc<Self> {
        let hub = Arc::new(Hub::new(config.capacity, config.max_wait, clock));
        let station = Station::builder(config.name.clone()).kind(StationKind::Fanout).capacity(config.capacity).build();
        let published = Arc::clone(hub.published());
        station.counts_from(move || {
            let tail = published.tail();
            Elsewhere { served: tail, begun: tail, arrivals: tail, refused: 0 }
        });
        let events = Events::new("fanout", &config.name);
        Arc::new(Self { hub, name: config.name.into(), station, events, retain: config.retain as u64 })
    }
}

impl<T> Drop for Broadcast<T> {
    fn drop(&mut self) {
        self.close();
    }
}

impl<T> fmt::Debug for Broadcast<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Broadcast")
            .field("name", &self.name())
            .field("published", &self.shared.hub.published().tail())
            .field("closed", &self.is_closed())
            .finish_non_exhaustive()
    }
}

struct Closer<T>(Arc<Shared<T>>);

impl<T: Send + Sync> Close for Closer<T> {
    fn name(&self) -> String {
        self.0.name.to_string()
    }

    fn close_within(&self, limit: Duration) -> Leftover {
        let mut leftover = Leftover::default();
        if let Err(left) = self.0.close_by(self.0.hub.clock().after(limit)) {
            leftover.items = left.items.iter().map(|unread| unread.messages as usize).sum();
            leftover.in_flight = left.in_flight;
        }
        leftover
    }
}
