//! A thread that does something again and again until it is closed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use fullbore_core::{BuildError, Clock, Crew, Monitor, OnDrop, Waiters};

/// The owner of such a thread. Dropping it waits for what the thread is at, for at most five seconds.
#[derive(Debug)]
pub(crate) struct Ticker {
    state: Arc<Monitor<State>>,
    crew: Crew,
}

#[derive(Debug, Default)]
struct State {
    closed: bool,
    asleep: Waiters,
}

impl Ticker {
    /// Calls `work` every `period`, the first time after one; late if the call before took longer.
    pub(crate) fn start(
        name: &str,
        clock: Clock,
        period: Duration,
        mut work: impl FnMut() + Send + 'static,
    ) -> Result<Self, BuildError> {
        if period.is_zero() {
            return Err(BuildError::config("every", "0s", "more than zero"));
        }
        let ticker = Self {
            state: Arc::new(Monitor::new(State::default(), clock.clone())),
            crew: Crew::new("metrics", name, clock),
        };
        let state = Arc::clone(&ticker.state);
        let begun = state.clock().now();
        ticker.crew.spawn(move || {
            let mut next = after(begun, period);
            loop {
                let mut locked = state.lock();
                if locked.wait_until(|state| &mut state.asleep, next, |state| state.closed) {
                    return;
                }
                let now = locked.now();
                drop(locked);
                work();
                next = after(now, period);
            }
        })?;
        Ok(ticker)
    }

    /// Ends it: waits for what it is at, until the deadline. Returns the names of the threads that are still at it.
    pub(crate) fn close(&self, deadline: Option<Instant>) -> Vec<String> {
        let mut state = self.state.lock();
        state.closed = true;
        state.notify_all(|state| &mut state.asleep);
        drop(state);
        self.crew.join(deadline)
    }

    pub(crate) fn clock(&self) -> &Clock {
        self.state.clock()
    }
}

/// None if it is too far to represent: never.
fn after(at: Instant, period: Duration) -> Option<Instant> {
    at.checked_add(period)
}

impl Drop for Ticker {
    fn drop(&mut self) {
        let deadline = self.clock().after(OnDrop::default().budget());
        self.close(deadline);
    }
}
