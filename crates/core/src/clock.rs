//! Time, injected: the machine's clock, or one that stands still until a test moves it.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::parker::Parker;
use crate::sync::{Condvar, Mutex, wait};

/// Where a primitive takes its time from.
///
/// Every primitive has a builder setter `clock(..)`; the default is [`Clock::Real`]. Tests pass a [`PausedClock`], so that
/// a linger, a deadline or a back-off happens exactly when the test says so, and no test sleeps.
///
/// ```
/// use fullbore_core::{Clock, PausedClock};
/// use std::time::Duration;
///
/// let paused = PausedClock::new();
/// let clock = Clock::from(&paused);
/// let before = clock.now();
/// paused.advance(Duration::from_secs(60));
/// assert_eq!(clock.now() - before, Duration::from_secs(60));
/// ```
#[derive(Clone, Debug, Default)]
pub enum Clock {
    /// `std::time::Instant::now()`.
    #[default]
    Real,
    /// Stands still until [`PausedClock::advance`] is called.
    Paused(PausedClock),
}

impl Clock {
    /// The present instant of this clock.
    #[must_use]
    pub fn now(&self) -> Instant {
        match self {
            Clock::Real => Instant::now(),
            Clock::Paused(paused) => paused.now(),
        }
    }

    /// The instant `after` from now; `None` (which means *never*) when it is too far away to represent.
    #[must_use]
    pub fn after(&self, after: Duration) -> Option<Instant> {
        self.now().checked_add(after)
    }

    /// Nanoseconds since some fixed moment of this clock: for stamps that are taken all the time and need not be exact. Up to a
    /// tick of the system (at most 10 ms, 4 ms on most) behind [`now`](Self::now), for a third of its price.
    #[must_use]
    #[inline]
    pub fn coarse(&self) -> u64 {
        match self {
            Clock::Real => coarse_real(),
            Clock::Paused(paused) => paused.coarse(),
        }
    }

    /// Whether both show the same time, whatever happens.
    #[must_use]
    pub fn is_same(&self, other: &Clock) -> bool {
        match (self, other) {
            (Clock::Real, Clock::Real) => true,
            (Clock::Paused(one), Clock::Paused(other)) => Arc::ptr_eq(&one.shared, &other.shared),
            _ => false,
        }
    }

    /// Parks the calling thread until `parker` is unparked or `until` has come. May return early.
    pub(crate) fn park(&self, parker: &Arc<Parker>, until: Option<Instant>, seen: bool) {
        match self {
            Clock::Real => parker.park(until),
            Clock::Paused(paused) => paused.park(parker, until, seen),
        }
    }
}

#[cfg(all(target_os = "linux", not(fullbore_loom)))]
#[inline]
fn coarse_real() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::MonotonicCoarse);
    // Neither is ever negative: it counts from the start of the machine.
    (now.tv_sec as u64).wrapping_mul(1_000_000_000).wrapping_add(now.tv_nsec as u64)
}

#[cfg(not(all(target_os = "linux", not(fullbore_loom))))]
fn coarse_real() -> u64 {
    static BORN: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    u64::try_from(BORN.get_or_init(Instant::now).elapsed().as_nanos()).unwrap_or(u64::MAX)
}

impl From<&PausedClock> for Clock {
    fn from(paused: &PausedClock) -> Self {
        Clock::Paused(paused.clone())
    }
}

impl From<PausedClock> for Clock {
    fn from(paused: PausedClock) -> Self {
        Clock::Paused(paused)
    }
}

/// A clock for tests: it moves only when told, and knows who waits on it. A cheap handle; clones share the time.
#[derive(Clone)]
pub struct PausedClock {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    /// Signalled whenever a thread parks.
    parked: Condvar,
}

struct State {
    born: Instant,
    now: Instant,
    parks: u64,
    waiting: Vec<Sleeper>,
}

impl State {
    /// Those who are parked and whom nobody has woken.
    fn asleep(&self) -> impl Iterator<Item = &Sleeper> {
        self.waiting.iter().filter(|sleeper| !sleeper.parker.is_unparked())
    }
}

struct Sleeper {
    id: u64,
    until: Option<Instant>,
    parker: Arc<Parker>,
    /// Whether `wait_for_waiters` counts it.
    seen: bool,
}

impl PausedClock {
    /// A clock that stands at the present instant.
    #[must_use]
    pub fn new() -> Self {
        let now = Instant::now();
        let state = State { born: now, now, parks: 0, waiting: Vec::new() };
        Self { shared: Arc::new(Shared { state: Mutex::new(state), parked: Condvar::new() }) }
    }

    /// Where the clock stands.
    #[must_use]
    pub fn now(&self) -> Instant {
        self.shared.state.lock().now
    }

    /// Moves the clock forward and wakes every thread whose deadline has come.
    ///
    /// # Panics
    /// If the clock would leave the range of `Instant`.
    pub fn advance(&self, by: Duration) {
        let mut state = self.shared.state.lock();
        state.now += by;
        let now = state.now;
        for sleeper in &state.waiting {
            if sleeper.until.is_some_and(|until| until <= now) {
                sleeper.parker.unpark();
            }
        }
    }

    /// Blocks until at least `n` threads are parked on this clock and nobody has woken them yet, with a deadline or
    /// without. This is how a test knows that a thread has come to its wait. Threads in the background of a primitive, which
    /// nobody waits for ([`WaitFor::Background`](crate::WaitFor::Background)), are not counted.
    pub fn wait_for_waiters(&self, n: usize) {
        let mut state = self.shared.state.lock();
        while state.asleep().filter(|sleeper| sleeper.seen).count() < n {
            state = wait(&self.shared.parked, state, None);
        }
    }

    /// How many threads are parked with a deadline and nobody has woken them yet. None while a primitive is idle (C10):
    /// nothing will wake it up.
    #[must_use]
    pub fn timers(&self) -> usize {
        self.shared.state.lock().asleep().filter(|sleeper| sleeper.until.is_some()).count()
    }

    /// How many times a thread has parked on this clock so far. A thread that is woken for nothing parks again, so between
    /// two calls of [`wait_for_waiters`](Self::wait_for_waiters) an unchanged number says that nobody was woken (C10).
    #[must_use]
    pub fn parks(&self) -> u64 {
        self.shared.state.lock().parks
    }

    fn coarse(&self) -> u64 {
        let state = self.shared.state.lock();
        // A second more: nothing begins at 0, which can so be a stamp for never.
        u64::try_from((state.now - state.born).as_nanos()).unwrap_or(u64::MAX).saturating_add(1_000_000_000)
    }

    fn park(&self, parker: &Arc<Parker>, until: Option<Instant>, seen: bool) {
        let id = {
            let mut state = self.shared.state.lock();
            if until.is_some_and(|until| until <= state.now) {
                return;
            }
            let id = state.parks;
            state.parks += 1;
            state.waiting.push(Sleeper { id, until, parker: Arc::clone(parker), seen });
            self.shared.parked.notify_all();
            id
        };
        // An `advance` from here on finds the entry and leaves its token in the parker: no wake-up can fall between.
        parker.wait_for_token();
        let mut state = self.shared.state.lock();
        state.waiting.retain(|sleeper| sleeper.id != id);
        // Not before: until the entry is gone the token is what tells `wait_for_waiters` that this thread is awake.
        parker.clear();
    }
}

impl Default for PausedClock {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for PausedClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PausedClock").finish_non_exhaustive()
    }
}
