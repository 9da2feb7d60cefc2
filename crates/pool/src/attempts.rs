//! Connects that can be given up, on threads of their own: for drivers that may wait longer than they were told.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::time::Instant;

use fullbore_core::{Clock, Crew, Monitor, Overflow, Patience, Room, WaitFor};

/// How many connects of one manager can be under way, those included that nobody waits for any more: what bounds the
/// threads and sockets that a silent server can hold.
const ATTEMPTS: usize = 32;

/// The connects of one manager that are under way.
#[derive(Clone)]
pub(crate) struct Attempts(Arc<Monitor<Room>>);

impl Attempts {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Monitor::new(Room::of(ATTEMPTS, WaitFor::Permit), Clock::Real)))
    }

    /// What `connect` returns on `fullbore-pool-connect-0`; `None` if it is not done by `deadline`: then it is left behind,
    /// and its thread drops what comes of it. `connect` should come to an end by itself. Where as many are under way as can be,
    /// it waits for a place first.
    ///
    /// # Panics
    /// If `connect` does.
    pub(crate) fn run<R: Send + 'static>(
        &self,
        deadline: Instant,
        connect: impl FnOnce() -> R + Clone + Send + 'static,
    ) -> Option<R> {
        let entered = self.0.lock().enter(|room| room, Overflow::Block, Patience::Policy(Some(deadline)));
        if entered.is_err() {
            return None;
        }
        let place = Attempt(Arc::clone(&self.0));
        let outcome = Arc::new(Monitor::new(None, Clock::Real));
        let theirs = Arc::clone(&outcome);
        let crew = Crew::new("pool", "connect", Clock::Real);
        let on_its_own = connect.clone();
        let spawned = crew.spawn(move || {
            let _place = place;
            let result = catch_unwind(AssertUnwindSafe(on_its_own));
            *theirs.lock() = Some(result);
        });
        if spawned.is_err() {
            // No thread to be had: rather a connection without a deadline than none.
            return Some(connect());
        }
        crew.join(Some(deadline));
        // In a statement of its own: the connection must not be dropped under the lock.
        let result = outcome.lock().take();
        result.map(|result| result.unwrap_or_else(|panic| resume_unwind(panic)))
    }
}

/// The place of an attempt, kept until it ends.
struct Attempt(Arc<Monitor<Room>>);

impl Drop for Attempt {
    fn drop(&mut self) {
        self.0.lock().leave(|room| room, 1);
    }
}

#[cfg(all(test, not(fullbore_loom)))]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
    use std::sync::{Arc, RwLock, RwLockReadGuard};
    use std::time::{Duration, Instant};

    use fullbore_core::{Overflow, Patience};

    use super::{ATTEMPTS, Attempts};

    const LONG: Duration = Duration::from_secs(60);

    impl Attempts {
        /// How many are under way.
        pub(crate) fn under_way(&self) -> usize {
            self.0.lock().used()
        }

        /// Waits until none is, by taking every place.
        pub(crate) fn wait_for_all(&self) {
            let mut room = self.0.lock();
            for _ in 0..ATTEMPTS {
                assert!(room.enter(|room| room, Overflow::Block, Patience::Policy(None)).is_ok());
            }
        }
    }

    #[test]
    fn a_bounded_number_is_left_behind_and_comes_to_its_end() {
        let attempts = Attempts::new();
        let stuck = Arc::new(RwLock::new(()));
        let held = stuck.write().unwrap();
        for _ in 0..ATTEMPTS + 8 {
            let stuck = Arc::clone(&stuck);
            let soon = Instant::now() + Duration::from_millis(2);
            assert!(attempts.run(soon, move || drop::<RwLockReadGuard<'_, ()>>(stuck.read().unwrap())).is_none());
        }
        assert_eq!(attempts.under_way(), ATTEMPTS);
        drop(held);
        attempts.wait_for_all();
    }

    #[test]
    fn what_comes_of_it_comes_back_a_panic_too() {
        let attempts = Attempts::new();
        assert_eq!(attempts.run(Instant::now() + LONG, || 7), Some(7));
        let run = || attempts.run(Instant::now() + LONG, || resume_unwind(Box::new("on purpose")));
        let panic: Result<Option<()>, _> = catch_unwind(AssertUnwindSafe(run));
        assert_eq!(panic.unwrap_err().downcast_ref(), Some(&"on purpose"));
        attempts.wait_for_all();
    }
}
