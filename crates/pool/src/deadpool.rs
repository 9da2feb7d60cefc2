//! Threads at a pool of `deadpool`.

use std::fmt;
use std::future::Future;
use std::mem;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use ::deadpool::managed::{Manager, Object, Pool, PoolError, Timeouts};
use fullbore_core::{BuildError, Clock, Monitor, Refusal, WaitFor, Waiters};

use crate::error::{ConnectError, GetError, Status};

const GET_TIMEOUT: Duration = Duration::from_secs(30);

/// A face for threads of a pool that exists: a `deadpool::managed::Pool` that async code has filled and shares with them.
///
/// `get` drives deadpool's own future on the calling thread, which parks in between. No runtime is started and no thread.
/// What comes back is deadpool's own object (or the type that the pool wraps it in), and goes back to deadpool. A cheap
/// handle if the pool is one; it does not close the pool.
///
/// ```
/// use deadpool::managed::{Manager, Metrics, Pool, RecycleResult};
/// use fullbore_pool::Blocking;
///
/// struct Numbers;
/// impl Manager for Numbers {
///     type Type = u32;
///     type Error = std::io::Error;
///     async fn create(&self) -> std::io::Result<u32> {
///         Ok(7)
///     }
///     async fn recycle(&self, _: &mut u32, _: &Metrics) -> RecycleResult<std::io::Error> {
///         Ok(())
///     }
/// }
///
/// let shared: Pool<Numbers> = Pool::builder(Numbers).max_size(4).build()?;
/// let pool = Blocking::new(shared.clone());
/// std::thread::scope(|scope| {
///     for _ in 0..8 {
///         scope.spawn(|| assert_eq!(*pool.get().expect("30 s are enough"), 7));
///     }
/// });
/// assert!(shared.status().size <= 4);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Limits
/// - **Managers that need a runtime.** Those of `deadpool-postgres`, `deadpool-redis` and most others open sockets or start
///   tasks, for which the thread must be in the context of their runtime, or they panic. Enter it around the call, and keep
///   it entered while the object is in use or dropped: `let _context = runtime_handle.enter();`, with a `Handle` of a Tokio
///   runtime that is running elsewhere (several threads, or one in `block_on`): its threads do the waiting for sockets. What
///   the object does is async still; drive it with `runtime_handle.block_on(..)`, on a thread that is none of the runtime's.
/// - **What a manager does inside one poll** cannot be interrupted: where it blocks, or a hook does, the caller is held beyond
///   its deadline. The `deadpool-sync` family does not block there, but needs a runtime.
/// - **At the deadline the future is dropped**, which is how a `get` of deadpool is cancelled: a place in line is given up, and
///   a connection that was being made or recycled is lost to the pool; the next caller makes another.
/// - **The pool's own timeouts are not used** here, as they would need a runtime's clock: the one deadline stands for waiting,
///   creating and recycling together.
/// - **It is no station**: objects go back to deadpool without passing here. What deadpool knows is in `pool().status()`.
/// - Deadpool hands an object that a panicking thread held to the next caller, as always; [`Pool`](crate::Pool) closes it.
#[derive(Clone)]
pub struct Blocking<P> {
    pool: P,
    settings: Settings,
}

#[derive(Clone)]
struct Settings {
    name: String,
    get_timeout: Duration,
    clock: Clock,
}

impl<P> Blocking<P> {
    /// The pool's face, with the defaults.
    pub fn new(pool: P) -> Self {
        let settings = Settings { name: "deadpool".into(), get_timeout: GET_TIMEOUT, clock: Clock::Real };
        Self { pool, settings }
    }

    /// As [`new`](Self::new), with settings.
    pub fn builder(pool: P) -> BlockingBuilder<P> {
        BlockingBuilder { blocking: Self::new(pool) }
    }

    /// The pool: for its `status`, `retain`, `resize` and `close`.
    #[must_use]
    pub fn pool(&self) -> &P {
        &self.pool
    }
}

impl<M: Manager, W: From<Object<M>>> Blocking<Pool<M, W>> {
    /// An object: an idle one, or a new one when there is room, or the first that comes free. Waits for `get_timeout` (30 s
    /// unless set otherwise).
    ///
    /// # Errors
    /// Timed out, closed, or what deadpool says: the manager's own error in it is `PoolError::Backend`.
    ///
    /// # Panics
    /// If the manager or a hook does; the place is free again then.
    ///
    /// # Deadlock
    /// A thread that holds objects and asks for one more can wait for itself, until the timeout. So can a thread that is to
    /// drive the task that holds one: not to be called in async code.
    pub fn get(&self) -> Result<W, GetError<PoolError<M::Error>>> {
        self.get_by(self.default_deadline(), None)
    }

    /// As [`get`](Self::get), but does not wait for others; if there is room it does create, within `get_timeout`.
    ///
    /// # Errors
    /// Full, closed, or what deadpool says; timed out if creating or recycling took too long.
    ///
    /// # Panics
    /// As [`get`](Self::get).
    pub fn try_get(&self) -> Result<W, GetError<PoolError<M::Error>>> {
        // Deadpool looks once then, and starts no clock.
        self.get_by(self.default_deadline(), Some(Duration::ZERO))
    }

    /// As [`get`](Self::get), until `deadline`. One in the past gets nothing: an object that is there would have to be
    /// recycled first, and would be lost if that took time.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    ///
    /// # Panics
    /// As [`get`](Self::get).
    pub fn get_deadline(&self, deadline: Instant) -> Result<W, GetError<PoolError<M::Error>>> {
        self.get_by(Some(deadline), None)
    }

    fn default_deadline(&self) -> Option<Instant> {
        self.settings.clock.after(self.settings.get_timeout)
    }

    fn get_by(&self, deadline: Option<Instant>, wait: Option<Duration>) -> Result<W, GetError<PoolError<M::Error>>> {
        let clock = &self.settings.clock;
        let timeouts = Timeouts { wait, ..Timeouts::new() };
        let mut future = pin!(self.pool.timeout_get(&timeouts));
        let signal = Arc::new(Signal::new(clock.clone()));
        let waker = Waker::from(Arc::clone(&signal));
        let mut context = Context::from_waker(&waker);
        let mut since = None;
        while deadline.is_none_or(|deadline| clock.now() < deadline) {
            match future.as_mut().poll(&mut context) {
                Poll::Ready(result) => return result.map_err(|error| self.explain(error, since)),
                Poll::Pending => {
                    since.get_or_insert_with(|| clock.now());
                    signal.wait(deadline);
                }
            }
        }
        // Before the future is dropped: this caller is still among those who wait.
        Err(GetError::refused(Refusal::TimedOut).with(self.snapshot(since), None))
    }

    fn explain(&self, error: PoolError<M::Error>, since: Option<Instant>) -> GetError<PoolError<M::Error>> {
        match error {
            PoolError::Closed => GetError::refused(Refusal::Closed).with(self.snapshot(since), None),
            // The only timeout that is ever set is that of `try_get`.
            PoolError::Timeout(_) => GetError::refused(Refusal::Full),
            error => GetError::connect(ConnectError::Manager(Arc::new(error)), Duration::ZERO),
        }
    }

    /// What the pool looks like, for a caller that has waited.
    fn snapshot(&self, since: Option<Instant>) -> Option<Box<Status>> {
        let oldest_wait = self.settings.clock.now().saturating_duration_since(since?);
        let status = self.pool.status();
        Some(Box::new(Status {
            name: self.settings.name.clone(),
            max_size: status.max_size,
            size: status.size,
            available: status.available,
            waiting: status.waiting,
            // Deadpool does not know; somebody has waited for as long as this.
            oldest_wait,
            ..Status::default()
        }))
    }
}

impl<P> fmt::Debug for Blocking<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Blocking").field("name", &self.settings.name).finish_non_exhaustive()
    }
}

/// Builds a [`Blocking`].
#[must_use = "a builder does nothing before build()"]
pub struct BlockingBuilder<P> {
    blocking: Blocking<P>,
}

impl<P> BlockingBuilder<P> {
    /// The name in errors. Default: `deadpool`.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.blocking.settings.name = name.into();
        self
    }

    /// How long `get` waits in all. Choose less than the patience of whoever waits for you.
    ///
    /// Default: 30 s.
    pub fn get_timeout(mut self, get_timeout: Duration) -> Self {
        self.blocking.settings.get_timeout = get_timeout;
        self
    }

    /// The clock for deadlines. Default: the real one; tests pass a [`PausedClock`](fullbore_core::PausedClock).
    pub fn clock(mut self, clock: impl Into<Clock>) -> Self {
        self.blocking.settings.clock = clock.into();
        self
    }

    /// The pool's face.
    ///
    /// # Errors
    /// [`BuildError::Config`] for a timeout of zero.
    pub fn build(self) -> Result<Blocking<P>, BuildError> {
        if self.blocking.settings.get_timeout.is_zero() {
            return Err(BuildError::config("get_timeout", "0s", "more than zero"));
        }
        Ok(self.blocking)
    }
}

impl<P> fmt::Debug for BlockingBuilder<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlockingBuilder").field("name", &self.blocking.settings.name).finish_non_exhaustive()
    }
}

/// What wakes one call of `get`. Each has its own, and not the thread's token of `std::thread::park`: a call within a call
/// (a manager that uses a pool of its own), a waker that outlives its future, and whoever else unparks or parks this
/// thread, cannot take each other's wake-ups.
struct Signal(Monitor<State>);

struct State {
    /// Somebody has called the waker since the last poll began.
    woken: bool,
    /// The calling thread.
    caller: Waiters,
}

impl Signal {
    fn new(clock: Clock) -> Self {
        Self(Monitor::new(State { woken: false, caller: Waiters::of(WaitFor::Permit) }, clock))
    }

    /// Until the waker is called, or was since the last wait; or the deadline.
    fn wait(&self, deadline: Option<Instant>) {
        self.0.lock().wait_until(|state| &mut state.caller, deadline, |state| mem::take(&mut state.woken));
    }
}

impl Wake for Signal {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let mut state = self.0.lock();
        state.woken = true;
        state.notify_all(|state| &mut state.caller);
    }
}
