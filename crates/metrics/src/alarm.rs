//! Alarms: rules on what stations show, watched by a thread.
//!
//! A rule is clear, pending or firing. `Clear -> Pending` when its value goes over the threshold, `Pending -> Firing` when it
//! has stayed there for long enough, `Firing -> Clear` when it falls below the lower threshold; back to clear from pending at
//! once. The callback hears of the last two. Value and callback are user code: they run on the alarms' thread, under no lock.

use std::collections::VecDeque;
use std::fmt;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fullbore_core::{BuildError, Clock, Event, Events, Monitor, Undelivered, Waiters, contain};

use crate::snapshot::StationSnapshot;
use crate::station::Station;
use crate::ticker::Ticker;
use crate::window::Window;

/// How many edges are kept for those who ask later.
const EDGES: usize = 256;

/// A rule on a station: fires when a value stays above a threshold.
///
/// ```
/// use fullbore_core::{Clock, PausedClock};
/// use fullbore_metrics::{Alarm, Alarms, Station};
/// use std::time::Duration;
///
/// let clock = PausedClock::new();
/// let orders = Station::new("orders");
/// let alarms = Alarms::builder()
///     .clock(Clock::Paused(clock.clone()))
///     .alarm(Alarm::new("orders pile up", &orders, |orders| orders.waiting() as f64).above(100.0).clear_below(10.0))
///     .build()?;
/// orders.arrived(101);
/// clock.wait_for_waiters(1);
/// clock.advance(Duration::from_secs(1));
/// let edge = alarms.next_edge(None).expect("the queue is over the threshold");
/// assert_eq!((edge.alarm.as_str(), edge.firing, edge.value), ("orders pile up", true, 101.0));
/// # Ok::<(), fullbore_core::BuildError>(())
/// ```
#[must_use = "give it to `Alarms::builder().alarm(..)`"]
pub struct Alarm {
    name: String,
    station: Station,
    value: Box<Value>,
    above: f64,
    clear_below: Option<f64>,
    for_at_least: Duration,
    notify: Option<Box<Notify>>,
}

/// None: nothing can be said at the moment.
type Value = dyn FnMut(&StationSnapshot, Option<&Window>) -> Option<f64> + Send;
type Notify = dyn FnMut(&AlarmEdge) + Send;

impl Alarm {
    /// A rule on a number that the station's snapshot shows.
    pub fn new(
        name: impl Into<String>,
        station: &Station,
        mut value: impl FnMut(&StationSnapshot) -> f64 + Send + 'static,
    ) -> Self {
        Self::from(name.into(), station, Box::new(move |snapshot, _| Some(value(snapshot))))
    }

    /// A rule on what happened since the alarms looked last: a rate, a share, a percentile of the last second. Where the value
    /// is none, everything stays as it is.
    pub fn on_window(
        name: impl Into<String>,
        station: &Station,
        mut value: impl FnMut(&Window) -> Option<f64> + Send + 'static,
    ) -> Self {
        Self::from(name.into(), station, Box::new(move |_, window| value(window?)))
    }

    fn from(name: String, station: &Station, value: Box<Value>) -> Self {
        let station = station.clone();
        Self { name, station, value, above: 0.0, clear_below: None, for_at_least: Duration::ZERO, notify: None }
    }

    /// Fires when the value is greater than this. Default: 0. Choose what you would get up for at night.
    pub fn above(mut self, threshold: f64) -> Self {
        self.above = threshold;
        self
    }

    /// Clears when the value is less than this. Default: the threshold itself (then a value equal to it clears, too), which
    /// makes an alarm of a value that wavers around it go on and off; choose well below.
    pub fn clear_below(mut self, threshold: f64) -> Self {
        self.clear_below = Some(threshold);
        self
    }

    /// The value has to stay above the threshold for so long, at every look, before the alarm fires. Default: 0, at the first
    /// look. Choose longer than what passes by itself.
    pub fn for_at_least(mut self, length: Duration) -> Self {
        self.for_at_least = length;
        self
    }

    /// Called when the alarm fires and when it clears, on the alarms' thread: while it runs, no alarm is looked at. A panic is
    /// counted and changes nothing. Default: nobody is called; [`Alarms::next_edge`] tells of both.
    pub fn notify(mut self, notify: impl FnMut(&AlarmEdge) + Send + 'static) -> Self {
        self.notify = Some(Box::new(notify));
        self
    }
}

impl fmt::Debug for Alarm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Alarm").field("name", &self.name).field("station", &self.station).finish_non_exhaustive()
    }
}

/// An alarm that has begun to fire, or has cleared.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct AlarmEdge {
    /// The alarm's name.
    pub alarm: String,
    /// The name of its station.
    pub station: String,
    /// Whether it fires from now on.
    pub firing: bool,
    /// The value that brought it about.
    pub value: f64,
}

impl fmt::Display for AlarmEdge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = if self.firing { "fires" } else { "has cleared" };
        write!(f, "{} {state} at {}: {}", self.alarm, self.station, self.value)
    }
}

/// A set of alarms and the thread that looks at them. Dropping it ends both.
#[derive(Debug)]
pub struct Alarms {
    shared: Arc<Shared>,
    ticker: Ticker,
}

#[derive(Debug)]
struct Shared {
    log: Monitor<Log>,
    events: Events,
}

#[derive(Debug, Default)]
struct Log {
    /// Not yet asked for; the oldest goes when there are too many (C2).
    edges: VecDeque<AlarmEdge>,
    missed: u64,
    panics: u64,
    firing: Vec<String>,
    closed: bool,
    asking: Waiters,
}

impl Alarms {
    /// Describes a set of alarms.
    pub fn builder() -> AlarmsBuilder {
        AlarmsBuilder { name: "alarms".into(), every: Duration::from_secs(1), clock: Clock::Real, alarms: Vec::new() }
    }

    /// The names of the alarms that fire.
    #[must_use]
    pub fn firing(&self) -> Vec<String> {
        self.shared.log.lock().firing.clone()
    }

    /// The oldest edge that has not been asked for; waits for one until `deadline`, without one until the alarms are closed.
    /// None if the time is up, or nothing will come any more.
    #[must_use]
    pub fn next_edge(&self, deadline: Option<Instant>) -> Option<AlarmEdge> {
        let mut log = self.shared.log.lock();
        log.wait_until(|log| &mut log.asking, deadline, |log| log.closed || !log.edges.is_empty());
        log.edges.pop_front()
    }

    /// How many edges nobody asked for in time: the last 256 are kept.
    #[must_use]
    pub fn missed_edges(&self) -> u64 {
        self.shared.log.lock().missed
    }

    /// How many times a value or a callback has panicked.
    #[must_use]
    pub fn panics(&self) -> u64 {
        self.shared.log.lock().panics
    }

    /// Stops looking, and waits for a callback that runs. Idempotent.
    pub fn close(&self) {
        self.end(None);
    }

    /// As [`close`](Self::close), for at most `limit`.
    ///
    /// # Errors
    /// If a value or a callback still runs then: names its thread.
    pub fn close_within(&self, limit: Duration) -> Result<(), Undelivered<AlarmEdge>> {
        let deadline = self.ticker.clock().after(limit);
        let abandoned_threads = self.end(deadline);
        let in_flight = abandoned_threads.len();
        Undelivered::new(Vec::new(), in_flight, abandoned_threads).into_result()
    }

    fn end(&self, deadline: Option<Instant>) -> Vec<String> {
        let stuck = self.ticker.close(deadline);
        let mut log = self.shared.log.lock();
        log.closed = true;
        log.notify_all(|log| &mut log.asking);
        drop(log);
        if let Some(thread) = stuck.first() {
            self.shared.events.emit(Event::Abandoned, || thread.clone());
        }
        stuck
    }
}

impl Drop for Alarms {
    fn drop(&mut self) {
        let deadline = self.ticker.deadline_of_drop();
        self.end(deadline);
    }
}

/// Describes [`Alarms`].
#[derive(Debug)]
#[must_use = "a builder does nothing before build()"]
pub struct AlarmsBuilder {
    name: String,
    every: Duration,
    clock: Clock,
    alarms: Vec<Alarm>,
}

impl AlarmsBuilder {
    /// For the thread's name and for events. Default: `alarms`.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// How often the values are looked at. Default: every second. A look costs a microsecond or so for each alarm and each
    /// thread that uses its station; what lasts for less than this goes unseen.
    pub fn every(mut self, period: Duration) -> Self {
        self.every = period;
        self
    }

    /// The clock that lengths are measured on. Default: the real one; a paused one for tests.
    pub fn clock(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }

    /// One more alarm. Default: none, which is refused.
    pub fn alarm(mut self, alarm: Alarm) -> Self {
        self.alarms.push(alarm);
        self
    }

    /// Starts the thread.
    ///
    /// # Errors
    /// If there is no alarm, a threshold is not a number, `clear_below` is higher than `above`, the period is zero, or there is
    /// no thread to be had.
    pub fn build(self) -> Result<Alarms, BuildError> {
        BuildError::refuse_zero("alarm", self.alarms.len())?;
        for alarm in &self.alarms {
            if alarm.above.is_nan() {
                return Err(BuildError::config("above", alarm.above, "a number"));
            }
            if let Some(clear_below) = alarm.clear_below
                && (clear_below.is_nan() || clear_below > alarm.above)
            {
                return Err(BuildError::config("clear_below", clear_below, "a number that is not higher than `above`"));
            }
        }
        let shared = Arc::new(Shared {
            log: Monitor::new(Log::default(), self.clock.clone()),
            events: Events::new("metrics", &self.name),
        });
        let now = self.clock.now();
        let mut rules: Vec<Rule> = self.alarms.into_iter().map(|alarm| Rule::new(alarm, now)).collect();
        let its = Arc::clone(&shared);
        let work = move || {
            let now = its.log.clock().now();
            rules.iter_mut().for_each(|rule| rule.look(now, &its));
            ControlFlow::Continue(())
        };
        Ok(Alarms { shared, ticker: Ticker::start(&self.name, self.clock, self.every, work)? })
    }
}

/// An alarm and where it stands.
struct Rule {
    alarm: Alarm,
    state: State,
    before: StationSnapshot,
}

#[derive(Clone, Copy, PartialEq)]
enum State {
    Clear,
    Pending(Instant),
    Firing,
}

impl Rule {
    fn new(alarm: Alarm, now: Instant) -> Self {
        let mut before = alarm.station.snapshot();
        before.taken = now;
        Self { before, state: State::Clear, alarm }
    }

    fn look(&mut self, now: Instant, shared: &Shared) {
        let mut snapshot = self.alarm.station.snapshot();
        // The alarms' clock is what lengths are measured on.
        snapshot.taken = now;
        // Snapshots of one station, the earlier one first: there is a window.
        let window = snapshot.since(&self.before).ok();
        let value = contain(|| (self.alarm.value)(&snapshot, window.as_ref()));
        self.before = snapshot;
        let value = match value {
            Ok(Some(value)) if !value.is_nan() => value,
            Ok(_) => return,
            Err(panicked) => return shared.panicked(&self.alarm.name, &panicked),
        };
        let Some(firing) = self.step(value, now) else { return };
        let edge =
            AlarmEdge { alarm: self.alarm.name.clone(), station: self.alarm.station.name().to_owned(), firing, value };
        shared.note(&edge);
        if let Some(notify) = &mut self.alarm.notify
            && let Err(panicked) = contain(|| notify(&edge))
        {
            shared.panicked(&self.alarm.name, &panicked);
        }
    }

    /// The next state; whether it fires from now on, if that has changed.
    fn step(&mut self, value: f64, now: Instant) -> Option<bool> {
        let above = value > self.alarm.above;
        let cleared = match self.alarm.clear_below {
            Some(threshold) => value < threshold,
            None => !above,
        };
        let (next, edge) = match self.state {
            State::Clear | State::Pending(_) if !above => (State::Clear, None),
            State::Clear if self.alarm.for_at_least.is_zero() => (State::Firing, Some(true)),
            State::Clear => (State::Pending(now), None),
            State::Pending(since) if now.saturating_duration_since(since) >= self.alarm.for_at_least => {
                (State::Firing, Some(true))
            }
            State::Firing if cleared => (State::Clear, Some(false)),
            same => (same, None),
        };
        self.state = next;
        edge
    }
}

impl Shared {
    fn note(&self, edge: &AlarmEdge) {
        let mut log = self.log.lock();
        if edge.firing {
            log.firing.push(edge.alarm.clone());
        } else if let Some(at) = log.firing.iter().position(|name| *name == edge.alarm) {
            log.firing.remove(at);
        }
        if log.edges.len() == EDGES {
            log.edges.pop_front();
            log.missed += 1;
        }
        log.edges.push_back(edge.clone());
        log.notify_all(|log| &mut log.asking);
    }

    fn panicked(&self, alarm: &str, failure: &fullbore_core::Failure) {
        self.log.lock().panics += 1;
        self.events.emit(Event::Panic, || format!("{alarm}: {failure}"));
    }
}
