//! A station: work arrives, waits, is served, leaves.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};
use std::{fmt, mem};

use parking_lot::Mutex;

use crate::cell::{StationCell, Way, read_ways};
use crate::guard::{Held, Waiting};
use crate::histogram::{DurationSnapshot, HistogramSnapshot, long, nanos};
use crate::raw::{Handle, Mine};
use crate::sample;
use crate::shards::{Cells, Shards};
use crate::snapshot::{Counts, StationSnapshot};
use crate::ticks::Ticks;

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
pub struct Station {
    handle: Handle<StationCell, Facts>,
    /// What it was made with; in a clone, `Facts` has it.
    plan: Plan,
}

/// What is said of a station when it is made. Small: an unused station is no more than this.
struct Plan {
    name: Cow<'static, str>,
    capacity: u64,
    parallelism: u32,
    kind: StationKind,
}

/// What all handles of a station share beside the cells.
struct Facts {
    name: Arc<str>,
    kind: StationKind,
    parallelism: AtomicU64,
    batch_size: AtomicU64,
    capacity: u64,
    born: Instant,
    feeds: Edges,
    held_by: Edges,
    /// What is counted elsewhere. Held by readers from their first look to their last.
    elsewhere: Mutex<Option<Source>>,
}

type Source = Box<dyn Fn() -> Elsewhere + Send + Sync>;

/// Counts that a primitive keeps itself, for [`Station::counts_from`]. None of them ever falls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Elsewhere {
    /// Items done.
    pub served: u64,
    /// Items whose service began.
    pub begun: u64,
    /// Items that came in.
    pub arrivals: u64,
    /// Items refused at the door.
    pub refused: u64,
}

/// Stations that another one depends on, as long as somebody has a handle of them. A router can feed thousands.
#[derive(Default)]
struct Edges(Mutex<Ends>);

#[derive(Default)]
struct Ends {
    to: BTreeMap<StationId, Weak<Shared>>,
    /// At so many, those whose stations have gone are looked for.
    tidy_at: usize,
}

type Shared = Shards<StationCell, Facts>;

impl Edges {
    fn add(&self, to: &Station) {
        let mut edges = self.0.lock();
        if edges.to.len() >= edges.tidy_at {
            edges.to.retain(|_, there| there.strong_count() > 0);
            edges.tidy_at = 2 * edges.to.len() + 8;
        }
        edges.to.entry(to.id()).or_insert_with(|| Arc::downgrade(to.shared()));
    }

    fn remove(&self, to: &Station) {
        self.0.lock().to.remove(&to.id());
    }

    fn ids(&self) -> Vec<StationId> {
        self.0.lock().to.iter().filter(|(_, there)| there.strong_count() > 0).map(|(id, _)| *id).collect()
    }
}

impl Station {
    /// A station of your own that serves one item at a time. See [`StationBuilder`] for more.
    #[must_use]
    pub fn new(name: impl Into<Cow<'static, str>>) -> Self {
        Self::builder(name).build()
    }

    /// The same, for a `static`.
    ///
    /// ```
    /// use fullbore_metrics::Station;
    ///
    /// static PARSE: Station = Station::named("parse");
    /// assert_eq!(PARSE.run(|| 6 * 7), 42);
    /// ```
    #[must_use]
    pub const fn named(name: &'static str) -> Self {
        let plan = Plan { name: Cow::Borrowed(name), capacity: 0, parallelism: 1, kind: StationKind::Custom };
        Self { handle: Handle::new(), plan }
    }

    /// A station with more said about it.
    pub fn builder(name: impl Into<Cow<'static, str>>) -> StationBuilder {
        StationBuilder { plan: Plan { name: name.into(), capacity: 0, parallelism: 1, kind: StationKind::Custom } }
    }

    fn shared(&self) -> &Arc<Shared> {
        self.handle.shards(|| self.plan.facts())
    }

    /// The running thread's memory for this station.
    #[inline]
    fn mine(&self) -> Mine<'_, StationCell, Facts> {
        self.handle.mine(|| self.plan.facts())
    }

    #[inline]
    pub(crate) fn record(&self, write: impl Fn(&StationCell)) {
        self.mine().write(write);
    }

    /// Its number in this process.
    #[must_use]
    pub fn id(&self) -> StationId {
        StationId(self.handle.id())
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.handle.get().map_or(&self.plan.name, |shared| &shared.meta.name)
    }

    /// Its kind.
    #[must_use]
    pub fn kind(&self) -> StationKind {
        self.plan.kind
    }

    /// Says that what leaves here goes to `next`, whose back-pressure this station meets. The edge ends with the last handle of
    /// `next`.
    pub fn feeds(&self, next: &Station) {
        self.shared().meta.feeds.add(next);
    }

    /// Takes [`feeds`](Self::feeds) back: `next` has gone.
    pub fn no_longer_feeds(&self, next: &Station) {
        self.shared().meta.feeds.remove(next);
    }

    /// Says that service here needs a permit or a connection of `holder`. The edge ends with the last handle of `holder`.
    pub fn held_by(&self, holder: &Station) {
        self.shared().meta.held_by.add(holder);
    }

    /// Takes [`held_by`](Self::held_by) back.
    pub fn no_longer_held_by(&self, holder: &Station) {
        self.shared().meta.held_by.remove(holder);
    }

    /// Runs `f` as the service of one item that did not wait, and times it. A panic counts as failed and goes on.
    #[inline]
    pub fn run<R>(&self, f: impl FnOnce() -> R) -> R {
        let entered = Entered::begin(self);
        let result = f();
        entered.end(Outcome::Served);
        result
    }

    /// Runs `f` as the service of one item; `Err` counts as failed.
    ///
    /// # Errors
    /// That of `f`.
    #[inline]
    pub fn try_run<R, E>(&self, f: impl FnOnce() -> Result<R, E>) -> Result<R, E> {
        let entered = Entered::begin(self);
        let result = f();
        entered.end(if result.is_ok() { Outcome::Served } else { Outcome::Failed });
        result
    }

    /// Runs `f` as [`run`](Self::run) does, for what takes less time than to read a clock: every item is counted, when it is
    /// through, and one in 64 is timed, chosen at random.
    #[inline]
    pub fn run_sampled<R>(&self, f: impl FnOnce() -> R) -> R {
        let mine = self.mine();
        let untimed = mine.get().is_some_and(StationCell::pass_untimed);
        if !untimed {
            if let Some(cell) = mine.get() {
                cell.time_after(sample::gap());
            }
            return self.run_timed(f);
        }
        let passing = Passing(mine);
        let result = f();
        passing.0.write(|cell| cell.count(Way::Passed, 1));
        mem::forget(passing);
        result
    }

    /// The one in 64, and whatever a thread does after it has given back its memory.
    #[cold]
    fn run_timed<R>(&self, f: impl FnOnce() -> R) -> R {
        self.run(f)
    }

    /// An item arrives and waits. To hand it to a thread that may outlive the borrow, use
    /// [`arrive_owned`](Self::arrive_owned).
    #[must_use = "dropping it counts the item as returned"]
    pub fn arrive(&self) -> Waiting<'_> {
        Waiting::new(Held::Borrowed(self))
    }

    /// An item arrives and waits, with a handle of its own: costs two additions on memory that all handles share.
    #[must_use = "dropping it counts the item as returned"]
    pub fn arrive_owned(&self) -> Waiting<'static> {
        Waiting::new(Held::Owned(self.clone()))
    }

    // The plain counts, for primitives that keep their own items: a call for each step, any number of items.

    /// `n` items were refused at the door.
    #[inline]
    pub fn refused(&self, n: usize) {
        self.count(Way::Refused, n);
    }

    /// `n` items came in.
    #[inline]
    pub fn arrived(&self, n: usize) {
        self.count(Way::Arrived, n);
    }

    /// The service of `n` waiting items began.
    #[inline]
    pub fn began(&self, n: usize) {
        self.count(Way::Begun, n);
    }

    /// `n` items came in, were served at once and left: three counts in one, without a time.
    #[inline]
    pub fn passed(&self, n: usize) {
        self.count(Way::Passed, n);
    }

    /// One item came in and its service began at once. `true` if this service is to be timed: one in 64, chosen at random.
    #[inline]
    pub fn entered(&self) -> bool {
        let mine = self.mine();
        mine.write(|cell| cell.count(Way::Entered, 1));
        let untimed = mine.get().is_some_and(StationCell::pass_untimed);
        if !untimed && let Some(cell) = mine.get() {
            cell.time_after(sample::gap());
        }
        !untimed
    }

    /// The service of `n` items ended.
    #[inline]
    pub fn ended(&self, outcome: Outcome, n: usize) {
        self.count(outcome.into(), n);
    }

    /// `n` items in service went back to waiting, to be tried again.
    pub fn retried(&self, n: usize) {
        self.count(Way::Retried, n);
    }

    /// `n` waiting items left without service.
    pub fn departed(&self, departure: Departure, n: usize) {
        let way = match departure {
            Departure::Dropped => Way::Dropped,
            Departure::Merged => Way::Merged,
            Departure::Returned => Way::Returned,
        };
        self.count(way, n);
    }

    #[inline]
    fn count(&self, way: Way, n: usize) {
        self.record(|cell| cell.count(way, n as u64));
    }

    /// One item came in, was served at once and left, after the fact.
    pub(crate) fn ended_at_once(&self, outcome: Outcome, took: Option<u64>) {
        self.record(|cell| {
            cell.count(Way::Entered, 1);
            if let Some(nanos) = took {
                cell.service.record(nanos);
            }
            cell.count(outcome.into(), 1);
        });
    }

    /// One item waited this long.
    pub fn waited(&self, wait: Duration) {
        self.record(|cell| cell.wait.record(nanos(wait)));
    }

    /// One service took this long.
    pub fn took(&self, service: Duration) {
        self.record(|cell| cell.service.record(nanos(service)));
    }

    /// One item was through this long after it had come in: its wait, its service and what was between. For queues.
    pub fn responded(&self, response: Duration) {
        self.record(|cell| cell.respond(nanos(response)));
    }

    /// One of the station's servers was busy this long beside what [`took`](Self::took) says, which counts as busy by itself.
    pub fn busy(&self, busy: Duration) {
        self.record(|cell| cell.busy.add(nanos(busy)));
    }

    /// Changes how many items can be served at once.
    pub fn set_parallelism(&self, parallelism: usize) {
        self.shared().meta.parallelism.store(parallelism as u64, Ordering::Relaxed);
    }

    /// Says how many items are served together at most, where that is more than one.
    pub fn set_batch_size(&self, batch_size: usize) {
        self.shared().meta.batch_size.store(batch_size as u64, Ordering::Relaxed);
    }

    /// The counts at this moment, without the times: cheaper than a [`snapshot`](Self::snapshot) where there are many threads.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.handle.get().map_or_else(Counts::default, |shared| {
            let elsewhere = shared.meta.elsewhere.lock();
            shared.read(|cells| count(cells).0).with(elsewhere.as_ref())
        })
    }

    /// For a primitive that knows anyway how many items have come to it: `source` is read with the counts, after all others,
    /// and added to the arrivals that are counted here. It must be exact, never fall, and show an item before the item's
    /// service is counted as begun. It runs under a lock that only readers take. Only one can be there: a second one is added
    /// to what the first has come to, as in [`settle_arrivals`](Self::settle_arrivals).
    ///
    /// ```
    /// use fullbore_metrics::Station;
    /// use std::sync::Arc;
    /// use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
    ///
    /// let station = Station::new("inbox");
    /// let sent = Arc::new(AtomicU64::new(0));
    /// let count = Arc::clone(&sent);
    /// station.arrivals_from(move || count.load(SeqCst));
    /// sent.store(3, SeqCst);
    /// assert_eq!(station.counts().arrivals, 3);
    /// station.settle_arrivals();
    /// sent.store(4, SeqCst);
    /// assert_eq!(station.counts().arrivals, 3);
    /// ```
    pub fn arrivals_from(&self, source: impl Fn() -> u64 + Send + Sync + 'static) {
        self.counts_from(move || Elsewhere { arrivals: source(), ..Elsewhere::default() });
    }

    /// As [`arrivals_from`](Self::arrivals_from), for a primitive that knows more of its counts anyway. `source` must read them in
    /// the order of [`Elsewhere`], so that none exceeds its cause. What else happens to the same items, a failure for example,
    /// is counted here.
    pub fn counts_from(&self, source: impl Fn() -> Elsewhere + Send + Sync + 'static) {
        self.replace_source(Some(Box::new(source)));
    }

    /// Keeps what the source of [`arrivals_from`](Self::arrivals_from) or [`counts_from`](Self::counts_from) says now, and lets
    /// go of it.
    pub fn settle_arrivals(&self) {
        self.replace_source(None);
    }

    fn replace_source(&self, by: Option<Source>) {
        let mut elsewhere = self.shared().meta.elsewhere.lock();
        let old = mem::replace(&mut *elsewhere, by);
        if let Some(source) = &old {
            // No reader is between: each sees it here or there.
            let Elsewhere { served, begun, arrivals, refused } = source();
            let kept = [(Way::Refused, refused), (Way::Arrived, arrivals), (Way::Begun, begun), (Way::Served, served)];
            kept.into_iter().filter(|(_, n)| *n > 0).for_each(|(way, n)| self.count(way, n as usize));
        }
        drop(elsewhere);
        drop(old);
    }

    /// All numbers at this moment. Waits for nobody who records.
    ///
    /// Times are read first, then ends, begins and arrivals, so that no count exceeds its cause even while others record.
    #[must_use]
    pub fn snapshot(&self) -> StationSnapshot {
        let Some(shared) = self.handle.get() else {
            return StationSnapshot::unused(
                self.id(),
                &self.plan.name,
                self.plan.kind,
                self.plan.parallelism,
                self.plan.capacity,
            );
        };
        let facts = &shared.meta;
        let elsewhere = facts.elsewhere.lock();
        let seen = shared.read(Seen::read);
        let counts = seen.counts.with(elsewhere.as_ref());
        drop(elsewhere);
        StationSnapshot {
            taken: Instant::now(),
            id: self.id(),
            name: Arc::clone(&facts.name),
            label: Arc::clone(&facts.name),
            kind: facts.kind,
            parallelism: facts.parallelism.load(Ordering::Relaxed),
            batch_size: facts.batch_size.load(Ordering::Relaxed),
            capacity: facts.capacity,
            age: facts.born.elapsed(),
            counts,
            busy: long(seen.busy),
            wait: DurationSnapshot::new(seen.wait),
            service: DurationSnapshot::new(seen.service),
            response: DurationSnapshot::new(seen.response),
            feeds: facts.feeds.ids(),
            held_by: facts.held_by.ids(),
        }
    }
}

/// What the cells of a station hold together.
struct Seen {
    counts: Counts,
    busy: u128,
    wait: HistogramSnapshot,
    service: HistogramSnapshot,
    response: HistogramSnapshot,
}

impl Seen {
    /// Times before counts, as in an item's way they come after its begin.
    fn read(cells: &Cells<StationCell>) -> Self {
        let response = HistogramSnapshot::of(|| cells.iter().filter_map(StationCell::response));
        let service = HistogramSnapshot::of(|| cells.iter().map(|cell| &cell.service));
        let mut wait = HistogramSnapshot::of(|| cells.iter().map(|cell| &cell.wait));
        let busy = service.sum() + cells.iter().map(|cell| cell.busy.get()).sum::<u128>();
        let (counts, entered) = count(cells);
        wait.record_n(0, entered);
        Self { counts, busy, wait, service, response }
    }
}

/// The counts of all cells together, and how many items entered without a wait.
fn count(cells: &Cells<StationCell>) -> (Counts, u64) {
    let ways = read_ways(|| cells.iter());
    let count = |way: Way| ways[way as usize];
    let at_once = count(Way::Entered).saturating_add(count(Way::Passed));
    let counts = Counts {
        refused: count(Way::Refused),
        arrivals: count(Way::Arrived).saturating_add(at_once),
        begun: count(Way::Begun).saturating_add(at_once),
        served: count(Way::Served).saturating_add(count(Way::Passed)),
        failed: count(Way::Failed),
        dropped: count(Way::Dropped),
        merged: count(Way::Merged),
        returned: count(Way::Returned),
        retried: count(Way::Retried),
    };
    (counts, count(Way::Entered))
}

impl Counts {
    /// Read after all others, so that no begin is seen without its arrival.
    fn with(mut self, elsewhere: Option<&Source>) -> Self {
        if let Some(source) = elsewhere {
            let Elsewhere { served, begun, arrivals, refused } = source();
            self.served = self.served.saturating_add(served);
            self.begun = self.begun.saturating_add(begun);
            self.arrivals = self.arrivals.saturating_add(arrivals);
            self.refused = self.refused.saturating_add(refused);
        }
        self
    }
}

impl From<Outcome> for Way {
    #[inline]
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Served => Way::Served,
            Outcome::Failed => Way::Failed,
        }
    }
}

impl Plan {
    fn facts(&self) -> Facts {
        Facts {
            name: Arc::from(&*self.name),
            kind: self.kind,
            parallelism: AtomicU64::new(self.parallelism.into()),
            batch_size: AtomicU64::new(1),
            capacity: self.capacity,
            born: Instant::now(),
            feeds: Edges::default(),
            held_by: Edges::default(),
            elsewhere: Mutex::new(None),
        }
    }
}

/// An item whose service began as it came in, on this thread. Dropped without [`end`](Self::end), by a panic, it has failed.
struct Entered<'a> {
    mine: Mine<'a, StationCell, Facts>,
    since: Ticks,
}

impl<'a> Entered<'a> {
    #[inline]
    fn begin(station: &'a Station) -> Self {
        let mine = station.mine();
        mine.write(|cell| cell.count(Way::Entered, 1));
        Self { mine, since: Ticks::now() }
    }

    #[inline]
    fn end(self, outcome: Outcome) {
        self.finish(outcome);
        mem::forget(self);
    }

    #[inline]
    fn finish(&self, outcome: Outcome) {
        let took = self.since.elapsed_nanos();
        self.mine.write(|cell| {
            cell.service.record(took);
            cell.count(outcome.into(), 1);
        });
    }
}

impl Drop for Entered<'_> {
    #[cold]
    fn drop(&mut self) {
        self.finish(Outcome::Failed);
    }
}

/// An item that is counted when it is through. Dropped before, by a panic, it has failed.
struct Passing<'a>(Mine<'a, StationCell, Facts>);

impl Drop for Passing<'_> {
    #[cold]
    fn drop(&mut self) {
        self.0.write(|cell| {
            cell.count(Way::Entered, 1);
            cell.count(Way::Failed, 1);
        });
    }
}

impl Clone for Station {
    fn clone(&self) -> Self {
        let plan = Plan { name: Cow::Borrowed(""), ..self.plan };
        Self { handle: self.handle.share(|| self.plan.facts()), plan }
    }
}

impl fmt::Debug for Station {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Station").field("id", &self.id()).field("name", &self.name()).finish_non_exhaustive()
    }
}

/// Describes a [`Station`].
#[must_use = "it makes a station with `build`"]
pub struct StationBuilder {
    plan: Plan,
}

impl StationBuilder {
    /// What sort of primitive it belongs to. Default: [`StationKind::Custom`].
    pub fn kind(mut self, kind: StationKind) -> Self {
        self.plan.kind = kind;
        self
    }

    /// How many items can be served at once: threads, permits, connections. Utilisation is busy time over this. Default: 1.
    pub fn parallelism(mut self, parallelism: usize) -> Self {
        self.plan.parallelism = u32::try_from(parallelism).unwrap_or(u32::MAX);
        self
    }

    /// How many items can wait. Default: 0, which means that nothing is buffered here.
    pub fn capacity(mut self, capacity: usize) -> Self {
        self.plan.capacity = capacity as u64;
        self
    }

    /// The station.
    #[must_use]
    pub fn build(self) -> Station {
        Station { handle: Handle::new(), plan: self.plan }
    }
}

impl fmt::Debug for StationBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StationBuilder").field("name", &self.plan.name).finish_non_exhaustive()
    }
}
