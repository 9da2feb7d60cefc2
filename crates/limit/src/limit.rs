//! The limit and its permits.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fullbore_core::{Clock, Events, Locked, Monitor, Overflow, Patience, Refusal, Room, WaitFor};
use fullbore_metrics::{Departure, Outcome, Station, sampled};

use crate::config::{Config, LimitBuilder};
use crate::error::{AcquireError, LimitState};

/// A number of permits; whoever holds one may work. A cheap handle; clones share the permits.
///
/// ```
/// use fullbore_limit::Limit;
///
/// let limit = Limit::builder().name("geocoder").permits(2).build()?;
/// let first = limit.acquire()?;
/// let second = limit.acquire()?;
/// assert!(limit.try_acquire().unwrap_err().is_full());
/// drop(first);
/// assert_eq!(limit.run(|| 6 * 7)?, 42);
/// # drop(second);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Limit {
    shared: Arc<Shared>,
}

struct Shared {
    monitor: Monitor<Room>,
    config: Config,
    station: Station,
    events: Events,
}

impl Limit {
    /// Describes a limit.
    #[must_use]
    pub fn builder() -> LimitBuilder {
        LimitBuilder::default()
    }

    pub(crate) fn start(config: Config, clock: Clock, station: Station, events: Events) -> Self {
        let monitor = Monitor::new(Room::of(config.permits, WaitFor::Permit), clock);
        Self { shared: Arc::new(Shared { monitor, config, station, events }) }
    }

    /// Takes a permit, waiting for one for the acquire timeout (30 s unless set otherwise).
    ///
    /// # Errors
    /// Timed out, shed, or closed.
    ///
    /// # Deadlock
    /// A thread that holds a permit and asks for another can wait for itself, until the timeout.
    pub fn acquire(&self) -> Result<Permit, AcquireError> {
        let shared = &*self.shared;
        self.take(Patience::Policy(None), Overflow::BlockFor(shared.config.acquire_timeout))
    }

    /// Takes a permit if one is free now.
    ///
    /// # Errors
    /// Full or closed.
    pub fn try_acquire(&self) -> Result<Permit, AcquireError> {
        self.take(Patience::Try, Overflow::Reject)
    }

    /// Takes a permit, waiting for one until `deadline`.
    ///
    /// # Errors
    /// Timed out, shed, or closed.
    pub fn acquire_deadline(&self, deadline: Instant) -> Result<Permit, AcquireError> {
        self.take(Patience::Policy(Some(deadline)), Overflow::Block)
    }

    /// Runs `f` under a permit, waiting for it as [`acquire`](Self::acquire) does. A panic of `f` gives the permit back.
    ///
    /// # Errors
    /// As [`acquire`](Self::acquire); `f` has not run then.
    pub fn run<R>(&self, f: impl FnOnce() -> R) -> Result<R, AcquireError> {
        let _permit = self.acquire()?;
        Ok(f())
    }

    /// Refuses new permits from now on and wakes those who wait with `Closed`. Permits that are out stay good. Idempotent.
    pub fn close(&self) {
        self.shared.monitor.lock().close_room(|room| room);
    }

    /// Changes the number of permits, at least 1. Permits that are out stay good; with fewer than are out, nobody gets one
    /// until enough have come back.
    pub fn set_permits(&self, permits: usize) {
        let permits = permits.max(1);
        self.shared.monitor.lock().resize_room(|room| room, permits);
        self.shared.station.set_parallelism(permits);
    }

    /// How many permits there are.
    #[must_use]
    pub fn permits(&self) -> usize {
        self.shared.monitor.lock().capacity()
    }

    /// What it looks like now.
    #[must_use]
    pub fn state(&self) -> LimitState {
        self.shared.state(&self.shared.monitor.lock())
    }

    /// Its counts and times: an arrival is a call, service is the time that a permit is out.
    #[must_use]
    pub fn station(&self) -> &Station {
        &self.shared.station
    }

    fn take(&self, patience: Patience, overflow: Overflow) -> Result<Permit, AcquireError> {
        let shared = &self.shared;
        let station = &shared.station;
        let mut room = shared.monitor.lock();
        let must_wait = room.used() >= room.capacity() && !room.is_closed();
        let waits = must_wait && patience != Patience::Try;
        if waits && room.waiting() >= shared.config.max_waiters {
            station.refused(1);
            let state = Some(Box::new(shared.state(&room)));
            drop(room);
            shared.events.emit(fullbore_core::Event::Drop, || "too many wait for a permit");
            return Err(AcquireError { reason: Refusal::Shed, state });
        }
        // C6: what parks is timed each time, the rest now and then.
        let since = (waits || sampled()).then(Instant::now);
        if waits {
            station.arrived(1);
        }
        let entered = room.enter(|room| room, overflow, patience);
        match entered {
            Ok(_) => {
                drop(room);
                if !waits {
                    station.arrived(1);
                }
                station.began(1);
                let taken = since.map(|since| {
                    let now = Instant::now();
                    station.waited(now - since);
                    now
                });
                Ok(Permit { shared: Arc::clone(shared), taken })
            }
            Err(reason) => {
                let state = waits.then(|| Box::new(shared.state(&room)));
                drop(room);
                if waits {
                    station.departed(Departure::Returned, 1);
                } else {
                    station.refused(1);
                }
                Err(AcquireError { reason, state })
            }
        }
    }
}

impl Shared {
    fn state(&self, room: &Locked<'_, Room>) -> LimitState {
        LimitState {
            name: self.config.name.clone(),
            permits: room.capacity(),
            in_use: room.used(),
            waiting: room.waiting(),
            oldest_wait: room
                .oldest_waiter()
                .map_or(Duration::ZERO, |since| room.now().saturating_duration_since(since)),
        }
    }
}

impl fmt::Debug for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Limit").field("state", &self.state()).finish()
    }
}

/// Leave to work. Dropping it gives it back, on any thread, also during a panic (which counts as failed).
#[must_use = "dropping a permit gives it back"]
pub struct Permit {
    shared: Arc<Shared>,
    /// When it was taken, if this one is timed.
    taken: Option<Instant>,
}

impl Drop for Permit {
    fn drop(&mut self) {
        let station = &self.shared.station;
        if let Some(taken) = self.taken {
            station.took(taken.elapsed());
        }
        let outcome = if std::thread::panicking() { Outcome::Failed } else { Outcome::Served };
        station.ended(outcome, 1);
        self.shared.monitor.lock().leave(|room| room, 1);
    }
}

impl fmt::Debug for Permit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Permit").field("limit", &self.shared.config.name).finish_non_exhaustive()
    }
}
