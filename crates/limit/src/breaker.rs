//! The breaker: stops asking what keeps failing, and tries it again now and then.
//!
//! One lock around the whole state. What is asked through a breaker is a call over a network, beside which the lock is
//! nothing; and the order of outcomes, which decides when it opens, is then plain.

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fullbore_core::{Backoff, Clock, Event, Events, Monitor};
use fullbore_metrics::{Outcome, Station};

use crate::breaker_config::{BreakerBuilder, BreakerConfig};

/// Says no at once while what is behind it is down. A cheap handle; clones share the breaker.
///
/// Closed, it lets everybody pass and counts how that ends. After
/// [`consecutive_failures`](BreakerBuilder::consecutive_failures), or when too large a part of the last calls has
/// [failed](BreakerBuilder::failure_rate), it opens: every call is refused at once. After
/// [a while](BreakerBuilder::open_for) it lets one call pass, the probe: if that succeeds it closes, if it fails it stays
/// open, for twice as long as before.
///
/// ```
/// use fullbore_limit::Breaker;
///
/// let breaker = Breaker::builder().name("geocoder").consecutive_failures(2).build()?;
/// for _ in 0..2 {
///     breaker.try_acquire()?.failure();
/// }
/// let refused = breaker.try_acquire().unwrap_err();
/// assert!(!refused.retry_in().is_zero());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Breaker {
    shared: Arc<Shared>,
}

struct Shared {
    monitor: Monitor<State>,
    config: BreakerConfig,
    station: Station,
    events: Events,
}

/// How many parts the window has: what is older leaves it in steps of a tenth.
const PARTS: usize = 10;

#[derive(Clone, Copy, Default)]
struct Part {
    /// Which part of time this is, counted from the breaker's birth.
    number: u64,
    succeeded: u32,
    failed: u32,
}

struct State {
    born: Instant,
    phase: Phase,
    /// Counts the changes of phase. What a call says that began in an earlier phase changes nothing any more.
    era: u64,
    /// Failures since the last success.
    consecutive: u32,
    parts: [Part; PARTS],
    /// How often it has opened since it was last closed.
    openings: u32,
    opened: u64,
}

#[derive(Clone, Copy)]
enum Phase {
    Closed,
    /// Until then; afterwards the next call is the probe.
    Open(Instant),
    /// The probe is under way. One that has not ended by then is given up, and the next call is another one.
    Probing(Instant),
}

/// What a breaker does at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BreakerState {
    /// Everybody passes.
    Closed,
    /// Nobody does, for so long.
    Open {
        /// Until the next probe may go.
        retry_in: Duration,
    },
    /// The next call is the probe, or it is under way.
    HalfOpen,
}

impl BreakerState {
    /// `closed`, `open` or `half_open`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            BreakerState::Closed => "closed",
            BreakerState::Open { .. } => "open",
            BreakerState::HalfOpen => "half_open",
        }
    }
}

/// Refused: the breaker is open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Open {
    name: Arc<str>,
    retry_in: Duration,
}

impl Open {
    /// How long until it is tried again. Zero: somebody is trying right now.
    #[must_use]
    pub const fn retry_in(&self) -> Duration {
        self.retry_in
    }

    /// The breaker's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl fmt::Display for Open {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.retry_in {
            Duration::ZERO => write!(f, "the breaker of {} is open, and is being probed", self.name),
            retry_in => write!(f, "the breaker of {} is open, the next attempt is in {retry_in:.1?}", self.name),
        }
    }
}

impl Error for Open {}

impl Breaker {
    /// Describes a breaker.
    #[must_use]
    pub fn builder() -> BreakerBuilder {
        BreakerBuilder::default()
    }

    pub(crate) fn start(config: BreakerConfig, clock: Clock, station: Station, events: Events) -> Self {
        let state = State {
            born: clock.now(),
            phase: Phase::Closed,
            era: 0,
            consecutive: 0,
            parts: [Part::default(); PARTS],
            openings: 0,
            opened: 0,
        };
        Self { shared: Arc::new(Shared { monitor: Monitor::new(state, clock), config, station, events }) }
    }

    /// Leave to make one call. Say afterwards how it ended.
    ///
    /// # Errors
    /// The breaker is open; never waits.
    pub fn try_acquire(&self) -> Result<BreakerPermit, Open> {
        let shared = &self.shared;
        let mut state = shared.monitor.lock();
        let now = state.now();
        let verdict = match state.phase {
            Phase::Closed => Ok(()),
            Phase::Open(until) if now < until => Err(until - now),
            Phase::Probing(until) if now < until => Err(Duration::ZERO),
            Phase::Open(_) | Phase::Probing(_) => {
                // A probe that hangs must not keep it open for ever.
                let patience = shared.pause(state.openings);
                state.turn(Phase::Probing(now.checked_add(patience).unwrap_or(now)));
                Ok(())
            }
        };
        let era = state.era;
        drop(state);
        match verdict {
            Ok(()) => {
                let timed = shared.station.entered().then(Instant::now);
                Ok(BreakerPermit { shared: Arc::clone(shared), era, timed, ended: false })
            }
            Err(retry_in) => {
                shared.station.refused(1);
                Err(Open { name: Arc::from(shared.station.name()), retry_in })
            }
        }
    }

    /// What it does at the moment.
    #[must_use]
    pub fn state(&self) -> BreakerState {
        let state = self.shared.monitor.lock();
        let now = state.now();
        match state.phase {
            Phase::Closed => BreakerState::Closed,
            Phase::Open(until) if now < until => BreakerState::Open { retry_in: until - now },
            Phase::Open(_) | Phase::Probing(_) => BreakerState::HalfOpen,
        }
    }

    /// How often it has opened so far, failed probes included.
    #[must_use]
    pub fn opened(&self) -> u64 {
        self.shared.monitor.lock().opened
    }

    /// Its counts and times: an arrival is a call that may pass, a refusal one that may not.
    #[must_use]
    pub fn station(&self) -> &Station {
        &self.shared.station
    }
}

impl Shared {
    fn pause(&self, openings: u32) -> Duration {
        let config = &self.config;
        Backoff { min: config.open_for, max: config.open_max, jitter: config.jitter }.pause(openings.max(1))
    }

    /// A call that began in `era` has ended.
    fn note(&self, era: u64, succeeded: bool) {
        let mut state = self.monitor.lock();
        if state.era != era {
            return;
        }
        let now = state.now();
        let told = match (state.phase, succeeded) {
            (Phase::Probing(_), true) => {
                state.close();
                Some("closed: the probe succeeded")
            }
            (Phase::Probing(_), false) => {
                state.open(now, self);
                Some("open: the probe failed")
            }
            (Phase::Closed, _) => {
                let (calls, failed) = state.count(now, self.config.window, succeeded);
                let many = state.consecutive >= self.config.consecutive_failures;
                let often = calls >= self.config.min_calls
                    && f64::from(failed) >= self.config.failure_rate * f64::from(calls)
                    && failed > 0;
                (many || often).then(|| {
                    state.open(now, self);
                    if many { "open: one failure after the other" } else { "open: too many of the last calls failed" }
                })
            }
            // Nobody has a permit of this era.
            (Phase::Open(_), _) => None,
        };
        drop(state);
        if let Some(told) = told {
            self.events.emit(Event::Breaker, || told);
        }
    }

    /// A call that began in `era` will not say how it ended.
    fn forget(&self, era: u64) {
        let mut state = self.monitor.lock();
        if state.era == era && matches!(state.phase, Phase::Probing(_)) {
            // Nothing is known: the next call is the probe.
            let now = state.now();
            state.turn(Phase::Open(now));
        }
    }
}

impl State {
    fn turn(&mut self, phase: Phase) {
        self.phase = phase;
        self.era += 1;
    }

    fn close(&mut self) {
        self.turn(Phase::Closed);
        self.consecutive = 0;
        self.openings = 0;
        self.parts = [Part::default(); PARTS];
    }

    fn open(&mut self, now: Instant, shared: &Shared) {
        self.openings = self.openings.saturating_add(1);
        self.opened += 1;
        let pause = shared.pause(self.openings);
        // Too far to represent: a day is as good.
        let until = now.checked_add(pause).unwrap_or(now + Duration::from_secs(86_400));
        self.turn(Phase::Open(until));
    }

    /// Counts a call, and says how many there were in the window and how many of them failed.
    fn count(&mut self, now: Instant, window: Duration, succeeded: bool) -> (u32, u32) {
        let each = (window.as_nanos() / PARTS as u128).max(1);
        let number = u64::try_from((now - self.born).as_nanos() / each).unwrap_or(u64::MAX);
        let part = &mut self.parts[(number % PARTS as u64) as usize];
        if part.number != number {
            *part = Part { number, ..Part::default() };
        }
        if succeeded {
            part.succeeded = part.succeeded.saturating_add(1);
            self.consecutive = 0;
        } else {
            part.failed = part.failed.saturating_add(1);
            self.consecutive = self.consecutive.saturating_add(1);
        }
        let recent = self.parts.iter().filter(|part| number - part.number.min(number) < PARTS as u64);
        let (succeeded, failed) =
            recent.fold((0u32, 0u32), |(s, f), part| (s.saturating_add(part.succeeded), f.saturating_add(part.failed)));
        (succeeded.saturating_add(failed), failed)
    }
}

impl fmt::Debug for Breaker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Breaker").field("name", &self.shared.config.name).field("state", &self.state()).finish()
    }
}

/// Leave to make one call through a [`Breaker`]. Dropped without a word it counts as neither good nor bad; if it was the
/// probe, the next call is.
#[must_use = "say how the call ended"]
pub struct BreakerPermit {
    shared: Arc<Shared>,
    era: u64,
    /// When it was taken, if this one is timed.
    timed: Option<Instant>,
    ended: bool,
}

impl BreakerPermit {
    /// The call succeeded. An error that the other side answered with may be a success here: it was there to answer.
    pub fn success(mut self) {
        self.end(Some(true));
    }

    /// The call failed or took too long.
    pub fn failure(mut self) {
        self.end(Some(false));
    }

    fn end(&mut self, succeeded: Option<bool>) {
        self.ended = true;
        let station = &self.shared.station;
        if let Some(timed) = self.timed {
            station.took(timed.elapsed());
        }
        station.ended(if succeeded == Some(true) { Outcome::Served } else { Outcome::Failed }, 1);
        match succeeded {
            Some(succeeded) => self.shared.note(self.era, succeeded),
            None => self.shared.forget(self.era),
        }
    }
}

impl Drop for BreakerPermit {
    fn drop(&mut self) {
        if !self.ended {
            self.end(None);
        }
    }
}

impl fmt::Debug for BreakerPermit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BreakerPermit").field("breaker", &self.shared.config.name).finish_non_exhaustive()
    }
}
