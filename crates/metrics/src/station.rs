//! A station: work arrives, waits, is served, leaves.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::histogram::Histogram;
use crate::snapshot::{Counts, StationSnapshot};

/// Tells stations apart within a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct StationId(u64);

impl fmt::Display for StationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.0)
    }
}

/// What sort of primitive a station belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum StationKind {
    /// A batcher.
    Batch,
    /// A cache.
    Cache,
    /// A subscription of a fan-out.
    Fanout,
    /// A concurrency limit.
    Limit,
    /// A connection pool.
    Pool,
    /// A work queue with its workers.
    Queue,
    /// The user's own.
    Custom,
}

impl StationKind {
    /// The crate's folder name, or `custom`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            StationKind::Batch => "batch",
            StationKind::Cache => "cache",
            StationKind::Fanout => "fanout",
            StationKind::Limit => "limit",
            StationKind::Pool => "pool",
            StationKind::Queue => "queue",
            StationKind::Custom => "custom",
        }
    }
}

/// How the service of an item ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// It was done.
    Served,
    /// It was tried and went wrong.
    Failed,
}

/// Why an item that had arrived left without service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Departure {
    /// Displaced by a newer one, or given up.
    Dropped,
    /// Merged into another item.
    Merged,
    /// Handed back, at close or at a timeout.
    Returned,
}

/// The counts and times of one primitive, always on. A cheap handle; clones share everything.
///
/// At any quiet moment `offered = refused + arrivals` and
/// `arrivals = served + failed + dropped + merged + returned + waiting + in_service`.
///
/// ```
/// use fullbore_metrics::Station;
///
/// let resize = Station::new("resize");
/// let pixels: usize = (1..=4).map(|side| resize.run(|| side * side)).sum();
/// assert_eq!(pixels, 30);
/// let seen = resize.snapshot();
/// assert_eq!(seen.served, 4);
/// assert!(seen.service().p99().is_err(), "four samples make no p99");
/// ```
#[derive(Clone)]
pub struct Station {
    inner: Arc<Inner>,
}

struct Inner {
    id: StationId,
    name: String,
    kind: StationKind,
    parallelism: AtomicU64,
    capacity: AtomicU64,
    born: Instant,
    counts: Tally,
    wait: Histogram,
    service: Histogram,
    busy_nanos: AtomicU64,
    feeds: parking_lot::Mutex<Vec<StationId>>,
    held_by: parking_lot::Mutex<Vec<StationId>>,
}

/// One number for each way in and out. Shared by all threads.
#[derive(Default)]
struct Tally {
    refused: AtomicU64,
    arrivals: AtomicU64,
    begun: AtomicU64,
    served: AtomicU64,
    failed: AtomicU64,
    dropped: AtomicU64,
    merged: AtomicU64,
    returned: AtomicU64,
    retried: AtomicU64,
}

impl Station {
    /// A station of your own that serves one item at a time. See [`StationBuilder`] for more.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self::builder(name).build()
    }

    /// A station with more said about it.
    #[must_use]
    pub fn builder(name: &str) -> StationBuilder {
        StationBuilder { name: name.to_owned(), kind: StationKind::Custom, parallelism: 1, capacity: 0 }
    }

    /// Its number in this process.
    #[must_use]
    pub fn id(&self) -> StationId {
        self.inner.id
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// Its kind.
    #[must_use]
    pub fn kind(&self) -> StationKind {
        self.inner.kind
    }

    /// Says that what leaves here goes to `next`, whose back-pressure this station meets.
    pub fn feeds(&self, next: &Station) {
        let mut feeds = self.inner.feeds.lock();
        if !feeds.contains(&next.id()) {
            feeds.push(next.id());
        }
    }

    /// Takes [`feeds`](Self::feeds) back: `next` has gone.
    pub fn no_longer_feeds(&self, next: &Station) {
        self.inner.feeds.lock().retain(|id| *id != next.id());
    }

    /// Says that service here needs a permit or a connection of `holder`.
    pub fn held_by(&self, holder: &Station) {
        let mut held_by = self.inner.held_by.lock();
        if !held_by.contains(&holder.id()) {
            held_by.push(holder.id());
        }
    }

    /// Runs `f` as the service of one item that did not wait, and times it. A panic counts as failed and goes on.
    pub fn run<R>(&self, f: impl FnOnce() -> R) -> R {
        let serving = self.begin_at_once();
        let result = f();
        serving.end(Outcome::Served);
        result
    }

    /// Runs `f` as the service of one item; `Err` counts as failed.
    ///
    /// # Errors
    /// That of `f`.
    pub fn try_run<R, E>(&self, f: impl FnOnce() -> Result<R, E>) -> Result<R, E> {
        let serving = self.begin_at_once();
        let result = f();
        serving.end(if result.is_ok() { Outcome::Served } else { Outcome::Failed });
        result
    }

    fn begin_at_once(&self) -> Serving {
        self.arrived(1);
        self.began(1);
        self.waited(Duration::ZERO);
        Serving { station: Some(self.clone()), since: Instant::now() }
    }

    /// An item arrives and waits.
    #[must_use = "dropping it counts the item as returned"]
    pub fn arrive(&self) -> Waiting {
        self.arrived(1);
        Waiting { station: Some(self.clone()), since: Instant::now() }
    }

    // The plain counts, for primitives that keep their own items: a call for each step, any number of items.

    /// `n` items were refused at the door.
    pub fn refused(&self, n: usize) {
        add(&self.inner.counts.refused, n);
    }

    /// `n` items came in.
    pub fn arrived(&self, n: usize) {
        add(&self.inner.counts.arrivals, n);
    }

    /// The service of `n` waiting items began.
    pub fn began(&self, n: usize) {
        add(&self.inner.counts.begun, n);
    }

    /// The service of `n` items ended.
    pub fn ended(&self, outcome: Outcome, n: usize) {
        let counts = &self.inner.counts;
        let count = if outcome == Outcome::Served { &counts.served } else { &counts.failed };
        // ORDERING: Release pairs with the Acquire in `snapshot`: who sees this end sees its begin and its arrival.
        count.fetch_add(n as u64, Ordering::Release);
    }

    /// `n` items in service went back to waiting, to be tried again.
    pub fn retried(&self, n: usize) {
        add(&self.inner.counts.retried, n);
    }

    /// `n` waiting items left without service.
    pub fn departed(&self, departure: Departure, n: usize) {
        let counts = &self.inner.counts;
        let count = match departure {
            Departure::Dropped => &counts.dropped,
            Departure::Merged => &counts.merged,
            Departure::Returned => &counts.returned,
        };
        // ORDERING: as in `ended`.
        count.fetch_add(n as u64, Ordering::Release);
    }

    /// One item waited this long.
    pub fn waited(&self, wait: Duration) {
        self.inner.wait.record_n(wait, 1);
    }

    /// One service took this long.
    pub fn took(&self, service: Duration) {
        self.inner.service.record_n(service, 1);
        self.busy(service);
    }

    /// One of the station's servers was busy this long. `took` includes it.
    pub fn busy(&self, busy: Duration) {
        let nanos = u64::try_from(busy.as_nanos()).unwrap_or(u64::MAX);
        self.inner.busy_nanos.fetch_add(nanos, Ordering::Relaxed);
    }

    /// Changes how many items can be served at once.
    pub fn set_parallelism(&self, parallelism: usize) {
        self.inner.parallelism.store(parallelism as u64, Ordering::Relaxed);
    }

    /// All numbers at this moment. Waits for nobody.
    ///
    /// Times are read first, then ends, begins and arrivals, so that no count exceeds its cause even while others record.
    #[must_use]
    pub fn snapshot(&self) -> StationSnapshot {
        let inner = &*self.inner;
        let counts = &inner.counts;
        // ORDERING: Acquire pairs with the Release of `ended`, `departed` and `began`; the order of the reads matters.
        let load = |count: &AtomicU64| count.load(Ordering::Acquire);
        let busy = Duration::from_nanos(inner.busy_nanos.load(Ordering::Relaxed));
        let (wait, service) = (inner.wait.snapshot(), inner.service.snapshot());
        let (served, failed) = (load(&counts.served), load(&counts.failed));
        let (dropped, merged, returned) = (load(&counts.dropped), load(&counts.merged), load(&counts.returned));
        let retried = load(&counts.retried);
        let begun = load(&counts.begun);
        let arrivals = load(&counts.arrivals);
        let refused = load(&counts.refused);
        StationSnapshot {
            id: inner.id,
            name: inner.name.clone(),
            kind: inner.kind,
            parallelism: inner.parallelism.load(Ordering::Relaxed),
            capacity: inner.capacity.load(Ordering::Relaxed),
            age: inner.born.elapsed(),
            counts: Counts { refused, arrivals, begun, served, failed, dropped, merged, returned, retried },
            busy,
            wait,
            service,
            feeds: inner.feeds.lock().clone(),
            held_by: inner.held_by.lock().clone(),
        }
    }
}

fn add(count: &AtomicU64, n: usize) {
    // ORDERING: Release pairs with the Acquire in `snapshot`, as in `ended`.
    count.fetch_add(n as u64, Ordering::Release);
}

impl fmt::Debug for Station {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Station").field("id", &self.inner.id).field("name", &self.inner.name).finish_non_exhaustive()
    }
}

/// Describes a [`Station`].
#[derive(Clone, Debug)]
pub struct StationBuilder {
    name: String,
    kind: StationKind,
    parallelism: usize,
    capacity: usize,
}

impl StationBuilder {
    /// What sort of primitive it belongs to. Default: [`StationKind::Custom`].
    #[must_use]
    pub fn kind(mut self, kind: StationKind) -> Self {
        self.kind = kind;
        self
    }

    /// How many items can be served at once: threads, permits, connections. Utilisation is busy time over this. Default: 1.
    #[must_use]
    pub fn parallelism(mut self, parallelism: usize) -> Self {
        self.parallelism = parallelism;
        self
    }

    /// How many items can wait. Default: 0, which means that nothing is buffered here.
    #[must_use]
    pub fn capacity(mut self, capacity: usize) -> Self {
        self.capacity = capacity;
        self
    }

    /// The station.
    #[must_use]
    pub fn build(self) -> Station {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Station {
            inner: Arc::new(Inner {
                id: StationId(NEXT.fetch_add(1, Ordering::Relaxed)),
                name: self.name,
                kind: self.kind,
                parallelism: AtomicU64::new(self.parallelism as u64),
                capacity: AtomicU64::new(self.capacity as u64),
                born: Instant::now(),
                counts: Tally::default(),
                wait: Histogram::new(),
                service: Histogram::new(),
                busy_nanos: AtomicU64::new(0),
                feeds: parking_lot::Mutex::new(Vec::new()),
                held_by: parking_lot::Mutex::new(Vec::new()),
            }),
        }
    }
}

/// An item that has arrived and waits. Dropped without [`begin`](Self::begin) it counts as returned.
#[derive(Debug)]
pub struct Waiting {
    station: Option<Station>,
    since: Instant,
}

impl Waiting {
    /// Service begins: the wait is recorded.
    #[must_use = "dropping it counts the item as failed"]
    pub fn begin(mut self) -> Serving {
        let now = Instant::now();
        let station = self.station.take();
        if let Some(station) = &station {
            station.began(1);
            station.waited(now - self.since);
        }
        Serving { station, since: now }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Some(station) = self.station.take() {
            station.departed(Departure::Returned, 1);
        }
    }
}

/// An item in service. Dropped without [`end`](Self::end), by a panic for example, it counts as failed.
#[derive(Debug)]
pub struct Serving {
    station: Option<Station>,
    since: Instant,
}

impl Serving {
    /// Service ends: its time is recorded.
    pub fn end(mut self, outcome: Outcome) {
        self.finish(outcome);
    }

    fn finish(&mut self, outcome: Outcome) {
        if let Some(station) = self.station.take() {
            station.took(self.since.elapsed());
            station.ended(outcome, 1);
        }
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.finish(Outcome::Failed);
    }
}
