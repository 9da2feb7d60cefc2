//! The plain pool: a keyed pool with a single key.

use std::fmt;
use std::time::{Duration, Instant};

use fullbore_core::{Close, Undelivered};
use fullbore_metrics::Station;

use crate::admin::RetainResult;
use crate::config::PoolBuilder;
use crate::connection::{Connection, Metrics};
use crate::error::{GetError, Status};
use crate::keyed::KeyedPool;
use crate::leak::Checkout;
use crate::manager::{Manager, Single};
use crate::stats::Stats;

/// Connections to one database. A cheap handle; clones share the pool, the last one closes it.
///
/// See the crate documentation for an example; with a database at hand:
///
/// ```no_run
/// # #[cfg(feature = "postgres")] fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use fullbore_pool::{Pool, Postgres};
///
/// let pool = Pool::builder(Postgres::new("postgres://localhost/shop")?).max_size(16).build()?;
/// let sold = pool.transaction(|tx| tx.execute("UPDATE stock SET sold = sold + 1 WHERE id = $1", &[&7]))?;
/// assert_eq!(sold, 1);
/// # Ok(()) }
/// # #[cfg(not(feature = "postgres"))] fn main() {}
/// ```
pub struct Pool<M: Manager> {
    pub(crate) keyed: KeyedPool<(), Single<M>>,
}

/// A connection of a [`Pool`]. See [`Connection`].
pub type Pooled<M> = Connection<(), Single<M>>;

impl<M: Manager> Pool<M> {
    /// Describes a pool whose connections `manager` makes.
    pub fn builder(manager: M) -> PoolBuilder<Self> {
        PoolBuilder::new(manager)
    }

    /// A connection: an idle one, or the first that comes free or is made: while the caller waits one is made in the background,
    /// if there is room. Waits for the pool's `get_timeout` (30 s unless set otherwise).
    ///
    /// # Errors
    /// Timed out, closed, no connection can be made, too many wait.
    ///
    /// # Panics
    /// If the manager does while it validates; nothing is lost then.
    ///
    /// # Deadlock
    /// A thread that holds connections and asks for one more can wait for itself, until the timeout: see
    /// [`nested`](PoolBuilder::nested).
    #[inline]
    #[track_caller]
    pub fn get(&self) -> Result<Pooled<M>, GetError<M::Error>> {
        self.keyed.get(&())
    }

    /// As [`get`](Self::get), but never waits: an idle connection, or none. If there is none, and room, one is made in the
    /// background for later calls. An idle one that needs a check is checked, within `validate_timeout`.
    ///
    /// # Errors
    /// None is idle, closed, or none can be made; timed out if checks took all of that time.
    ///
    /// # Panics
    /// As [`get`](Self::get).
    #[inline]
    #[track_caller]
    pub fn try_get(&self) -> Result<Pooled<M>, GetError<M::Error>> {
        self.keyed.try_get(&())
    }

    /// As [`get`](Self::get), until `deadline`. One in the past gets an idle connection that needs no check, or nothing.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    ///
    /// # Panics
    /// As [`get`](Self::get).
    #[inline]
    #[track_caller]
    pub fn get_deadline(&self, deadline: Instant) -> Result<Pooled<M>, GetError<M::Error>> {
        self.keyed.get_deadline(&(), deadline)
    }

    /// Runs `f` with a connection. A panic of `f` closes the connection.
    ///
    /// # Errors
    /// As [`get`](Self::get); `f` has not run then.
    ///
    /// # Panics
    /// If `f` does, or as [`get`](Self::get).
    #[track_caller]
    pub fn with<R>(&self, f: impl FnOnce(&mut M::Connection) -> R) -> Result<R, GetError<M::Error>> {
        self.keyed.with(&(), f)
    }

    /// See [`KeyedPool::close`].
    pub fn close(&self) {
        self.keyed.close();
    }

    /// See [`KeyedPool::close_within`].
    ///
    /// # Errors
    /// How many connections had not come back.
    pub fn close_within(&self, limit: Duration) -> Result<(), Undelivered<()>> {
        self.keyed.close_within(limit)
    }

    /// For [`Shutdown`](fullbore_core::Shutdown). Does not keep the pool open.
    #[must_use]
    pub fn closer(&self) -> impl Close + 'static {
        self.keyed.closer()
    }

    /// See [`KeyedPool::pause`].
    pub fn pause(&self) {
        self.keyed.pause();
    }

    /// See [`KeyedPool::pause_within`].
    ///
    /// # Errors
    /// How many connections had not come back.
    pub fn pause_within(&self, limit: Duration) -> Result<(), Undelivered<()>> {
        self.keyed.pause_within(limit)
    }

    /// See [`KeyedPool::resume`].
    pub fn resume(&self) {
        self.keyed.resume();
    }

    /// See [`KeyedPool::resize`].
    pub fn resize(&self, max_size: usize) {
        self.keyed.resize(max_size);
    }

    /// See [`KeyedPool::soft_evict`].
    pub fn soft_evict(&self) {
        self.keyed.soft_evict();
    }

    /// See [`KeyedPool::retain`].
    ///
    /// # Panics
    /// If `keep` does.
    pub fn retain(&self, mut keep: impl FnMut(&mut M::Connection, Metrics) -> bool) -> RetainResult<M::Connection> {
        self.keyed.retain(|(), connection, metrics| keep(connection, metrics))
    }

    /// What it looks like now.
    #[must_use]
    pub fn status(&self) -> Status {
        self.keyed.status()
    }

    /// What became of its connections so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.keyed.stats()
    }

    /// See [`KeyedPool::checkouts`].
    #[must_use]
    pub fn checkouts(&self) -> Vec<Checkout> {
        self.keyed.checkouts()
    }

    /// Whether it is closed.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.keyed.is_closed()
    }

    /// Its counts and times: an arrival is a call of `get`, service is the time that a connection is out.
    #[must_use]
    pub fn station(&self) -> &Station {
        self.keyed.station()
    }

    /// What makes the connections.
    #[must_use]
    pub fn manager(&self) -> &M {
        &self.keyed.manager().0
    }
}

impl<M: Manager> Clone for Pool<M> {
    fn clone(&self) -> Self {
        Self { keyed: self.keyed.clone() }
    }
}

impl<M: Manager> fmt::Debug for Pool<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("status", &self.status()).finish()
    }
}
