//! A thread that does something again and again until it is closed.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use fullbore_core::{BuildError, Clock, Crew, Monitor, OnDrop, Waiters};

/// The owner of such a thread. Dropping it waits for what the thread is at, for at most five seconds.
#[derive(Debug)]
pub(crate) struct Ticker {
    state: Arc<Monitor<State>>,
    crew: Crew,
    /// Somebody has waited in vain: nobody waits again.
    stuck: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    closed: bool,
    asleep: Waiters,
}

impl Ticker {
    /// Calls `work` every `period`, the first time after one, until it breaks off; late if the call before took longer.
    pub(crate) fn start(
        name: &str,
        clock: Clock,
        period: Duration,
        mut work: impl FnMut() -> ControlFlow<()> + Send + 'static,
    ) -> Result<Self, BuildError> {
        if period.is_zero() {
            return Err(BuildError::config("every", "0s", "more than zero"));
        }
        let ticker = Self {
            state: Arc::new(Monitor::new(State::default(), clock.clone())),
            crew: Crew::new("metrics", name, clock),
            stuck: AtomicBool::new(false),
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
                if work().is_break() {
                    return;
                }
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
        let left = self.crew.join(deadline);
        self.stuck.store(!left.is_empty(), Ordering::Relaxed);
        left
    }

    /// Until when a drop waits: not at all if somebody has waited in vain before.
    pub(crate) fn deadline_of_drop(&self) -> Option<Instant> {
        let patience = if self.stuck.load(Ordering::Relaxed) { Duration::ZERO } else { OnDrop::default().budget() };
        self.clock().after(patience)
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
        let deadline = self.deadline_of_drop();
        self.close(deadline);
    }
}
