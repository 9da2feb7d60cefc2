//! Closing a whole program: everything that holds items, upstream first, within one deadline.

use std::any::Any;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use crate::clock::Clock;
use crate::error::Undelivered;
use crate::monitor::{Monitor, Waiters};

/// Something that can be closed by [`Shutdown`]. The `closer()` of each primitive is one.
pub trait Close: Send + Sync {
    /// The primitive's name, for the report.
    fn name(&self) -> String;

    /// Refuses new work, finishes accepted work for at most `limit`, and says what was left. Idempotent.
    fn close_within(&self, limit: Duration) -> Leftover;
}

/// What one primitive left behind: [`Undelivered`] without the items, which went back to their owner or were dropped.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Leftover {
    /// Items accepted and never worked on.
    pub items: usize,
    /// Items being worked on when the time was up.
    pub in_flight: usize,
    /// Names of threads stuck in user code.
    pub abandoned_threads: Vec<String>,
}

impl Leftover {
    /// Whether nothing was left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl<T> From<Result<(), Undelivered<T>>> for Leftover {
    fn from(result: Result<(), Undelivered<T>>) -> Self {
        match result {
            Ok(()) => Self::default(),
            Err(left) => {
                Self { items: left.items.len(), in_flight: left.in_flight, abandoned_threads: left.abandoned_threads }
            }
        }
    }
}

/// Closes registered primitives in the order of registration (register upstream first) and lets a program wait for the
/// request to stop. A cheap handle; clones share everything.
///
/// ```
/// use fullbore_core::Shutdown;
/// use std::time::Duration;
///
/// let shutdown = Shutdown::new();
/// // shutdown.register(queue.closer()); shutdown.register(batcher.closer()); ...
/// shutdown.request();
/// assert!(shutdown.is_requested());
/// assert!(shutdown.close_within(Duration::from_secs(5)).is_clean());
/// ```
#[derive(Clone)]
pub struct Shutdown {
    monitor: Arc<Monitor<State>>,
}

#[derive(Default)]
struct State {
    requested: bool,
    parts: Vec<Arc<dyn Close>>,
    hooks: Vec<Arc<dyn Fn() + Send + Sync>>,
    on_request: Waiters,
    /// The parts being closed at this moment, each with the thread that does it.
    closing: Vec<(Arc<dyn Close>, ThreadId)>,
    closed: Waiters,
}

/// A panic of the user's, to be resumed once everybody else was served (C4).
#[derive(Default)]
struct Panics(Option<Box<dyn Any + Send>>);

impl Panics {
    fn hold<R>(&mut self, f: impl FnOnce() -> R) -> Option<R> {
        match catch_unwind(AssertUnwindSafe(f)) {
            Ok(result) => Some(result),
            Err(panic) => {
                self.0.get_or_insert(panic);
                None
            }
        }
    }

    fn resume(self) {
        if let Some(panic) = self.0 {
            resume_unwind(panic);
        }
    }
}

/// What [`Shutdown::close_within`] could not finish, by primitive, in the order of closing.
#[derive(Clone, Debug, Default)]
pub struct ShutdownReport {
    parts: Vec<(String, Leftover)>,
}

impl ShutdownReport {
    /// Whether every part finished all its work.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.parts.iter().all(|(_, left)| left.is_empty())
    }

    /// Each part with what it left, in the order of closing.
    #[must_use]
    pub fn parts(&self) -> &[(String, Leftover)] {
        &self.parts
    }
}

impl fmt::Display for ShutdownReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_clean() {
            return write!(f, "{} parts closed, nothing left", self.parts.len());
        }
        for (name, left) in self.parts.iter().filter(|(_, left)| !left.is_empty()) {
            writeln!(f, "{name}: {} items undelivered, {} in flight", left.items, left.in_flight)?;
            for thread in &left.abandoned_threads {
                writeln!(f, "{name}: left thread {thread} behind")?;
            }
        }
        Ok(())
    }
}

impl Shutdown {
    /// Nothing registered, nothing requested.
    #[must_use]
    pub fn new() -> Self {
        Self::with_clock(Clock::Real)
    }

    /// As [`new`](Self::new), with deadlines on `clock`.
    #[must_use]
    pub fn with_clock(clock: Clock) -> Self {
        Self { monitor: Arc::new(Monitor::new(State::default(), clock)) }
    }

    /// Adds a part to close. Register upstream first: what feeds others closes before them. A part that is registered after
    /// [`close_within`](Self::close_within) stays open until that is called again.
    pub fn register(&self, part: impl Close + 'static) {
        self.monitor.lock().parts.push(Arc::new(part));
    }

    /// Asks the program to stop: wakes [`wait`](Self::wait) and runs the hooks, once. Closing is a call of its own.
    ///
    /// # Panics
    /// If a hook does, after the others have run.
    pub fn request(&self) {
        let mut panics = Panics::default();
        self.request_holding(&mut panics);
        panics.resume();
    }

    fn request_holding(&self, panics: &mut Panics) {
        let hooks = {
            let mut state = self.monitor.lock();
            if std::mem::replace(&mut state.requested, true) {
                return;
            }
            state.notify_all(|state| &mut state.on_request);
            std::mem::take(&mut state.hooks)
        };
        for hook in hooks {
            panics.hold(move || hook());
        }
    }

    /// Runs `hook` once when a stop is requested, at once if it was. It runs on the requesting thread and should not wait.
    pub fn on_request(&self, hook: impl Fn() + Send + Sync + 'static) {
        let mut state = self.monitor.lock();
        if state.requested {
            drop(state);
            hook();
        } else {
            state.hooks.push(Arc::new(hook));
        }
    }

    /// Whether a stop was requested.
    #[must_use]
    pub fn is_requested(&self) -> bool {
        self.monitor.lock().requested
    }

    /// Blocks until a stop is requested.
    pub fn wait(&self) {
        self.wait_for(None);
    }

    /// Blocks until a stop is requested, for at most `limit`; `true` if it was.
    #[must_use]
    pub fn wait_within(&self, limit: Duration) -> bool {
        self.wait_for(Some(limit))
    }

    fn wait_for(&self, limit: Option<Duration>) -> bool {
        let deadline = limit.and_then(|limit| self.monitor.clock().after(limit));
        let mut state = self.monitor.lock();
        state.wait_until(|state| &mut state.on_request, deadline, |state| state.requested)
    }

    /// Closes every part in the order of registration, all within `limit`; a part whose time is used up still closes, with
    /// no time to drain. Also requests the stop.
    ///
    /// It may be called again, and from several threads: each part is closed and reported once, and a call that finds
    /// another at work waits for it. What that one has not closed when `limit` is over is in the report of both, here as
    /// one item in flight.
    ///
    /// # Panics
    /// If a hook or a part does, after everything was closed.
    pub fn close_within(&self, limit: Duration) -> ShutdownReport {
        let mut panics = Panics::default();
        self.request_holding(&mut panics);
        let clock = self.monitor.clock();
        let deadline = clock.after(limit);
        let me = thread::current().id();
        let parts = {
            let mut state = self.monitor.lock();
            let parts = std::mem::take(&mut state.parts);
            state.closing.extend(parts.iter().map(|part| (Arc::clone(part), me)));
            parts
        };
        let mut report = ShutdownReport::default();
        for part in parts {
            let left = match deadline {
                Some(deadline) => deadline.saturating_duration_since(clock.now()),
                None => limit,
            };
            report.parts.extend(panics.hold(|| (part.name(), part.close_within(left))));
            let mut state = self.monitor.lock();
            state.closing.retain(|(closing, _)| !Arc::ptr_eq(closing, &part));
            state.notify_all(|state| &mut state.closed);
            drop(state);
            // The part goes last, not under the lock.
            panics.hold(move || drop(part));
        }
        for part in self.wait_for_others(me, deadline) {
            let left = Leftover { in_flight: 1, ..Leftover::default() };
            report.parts.extend(panics.hold(|| (part.name(), left)));
        }
        panics.resume();
        report
    }

    /// Waits for those who close at the same time, and says what they still have at the deadline. Not for this thread
    /// itself, which may be inside a part's close.
    fn wait_for_others(&self, me: ThreadId, deadline: Option<Instant>) -> Vec<Arc<dyn Close>> {
        let mut state = self.monitor.lock();
        state.wait_until(
            |state| &mut state.closed,
            deadline,
            |state| state.closing.iter().all(|(_, closer)| *closer == me),
        );
        let others = state.closing.iter().filter(|(_, closer)| *closer != me);
        others.map(|(part, _)| Arc::clone(part)).collect()
    }

    /// Requests the stop at the first SIGINT or SIGTERM; a second one ends the process at once with status 128 + signal,
    /// whatever the program is doing: no destructor and no exit handler runs. The thread that listens, on which the hooks
    /// run, is named `fullbore-core-signals-0` and lives as long as the process. A hook's panic is contained there.
    ///
    /// # Errors
    /// If the handlers cannot be installed or the thread cannot be started. `AlreadyExists` if this process listens
    /// already, for this `Shutdown` or another; that one is not changed.
    #[cfg(feature = "signals")]
    pub fn on_signals(&self) -> std::io::Result<()> {
        crate::signals::listen(self.clone())
    }
}

impl Default for Shutdown {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Shutdown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.monitor.lock();
        f.debug_struct("Shutdown")
            .field("requested", &state.requested)
            .field("parts", &state.parts.len())
            .finish_non_exhaustive()
    }
}
