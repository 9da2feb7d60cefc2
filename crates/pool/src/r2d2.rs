//! Any database that `r2d2` can pool.

use std::error::Error;
use std::time::Duration;

use ::r2d2::ManageConnection;

use crate::manager::Manager;

/// Connections that an [`r2d2::ManageConnection`] makes: PostgreSQL, SQLite, MySQL, Redis clusters, LDAP,
/// Oracle, and whatever else has such a manager. It moves in unchanged.
///
/// ```
/// use fullbore_pool::{Pool, R2d2Manager};
/// use r2d2_sqlite::SqliteConnectionManager;
///
/// let pool = Pool::builder(R2d2Manager::new(SqliteConnectionManager::memory())).max_size(4).build()?;
/// let two: u32 = pool.with(|connection| connection.query_row("SELECT 1 + 1", [], |row| row.get(0)))??;
/// assert_eq!(two, 2);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # No budget
/// `connect` and `is_valid` of such a manager are not told how much time they have. `connect` runs in the background, so it holds
/// nobody beyond the deadline; one that takes longer than [`connect_timeout`](crate::PoolBuilder::connect_timeout) is given up, but
/// its thread is not free before the driver is. `is_valid` runs on the thread of the caller of `get`, and holds it for as long as it
/// takes. Set the driver's own timeouts for connecting and for its socket, or use a manager of ours for that database if
/// there is one.
///
/// # What is called when
/// `is_valid` at a checkout after more than [`validate_after`](crate::PoolBuilder::validate_after), `has_broken` at each return,
/// unless [`skip_has_broken`](Self::skip_has_broken). The error must be `Send` and `Sync`, because the pool's is.
#[derive(Clone, Debug)]
pub struct R2d2Manager<M> {
    inner: M,
    ask_has_broken: bool,
}

impl<M> R2d2Manager<M> {
    /// From a manager for `r2d2`.
    pub fn new(inner: M) -> Self {
        Self { inner, ask_has_broken: true }
    }

    /// Does not ask `has_broken` when a connection comes back, for managers in which it is not the quick look that it should
    /// be: that for MySQL does a round trip, at each return. A connection that broke is then found by its next check only,
    /// and without a check within [`validate_after`](crate::PoolBuilder::validate_after) passed on: choose that short, or
    /// [`discard`](crate::Connection::discard) a connection that failed.
    ///
    /// Default: it is asked.
    #[must_use]
    pub fn skip_has_broken(mut self) -> Self {
        self.ask_has_broken = false;
        self
    }

    /// The manager inside.
    #[must_use]
    pub fn get_ref(&self) -> &M {
        &self.inner
    }
}

impl<M> Manager for R2d2Manager<M>
where
    M: ManageConnection,
    M::Error: Error + Send + Sync,
{
    type Connection = M::Connection;
    type Error = M::Error;

    fn connect(&self, _: Duration) -> Result<M::Connection, M::Error> {
        self.inner.connect()
    }

    fn validate(&self, connection: &mut M::Connection, _: Duration) -> Result<(), M::Error> {
        self.inner.is_valid(connection)
    }

    fn is_broken(&self, connection: &mut M::Connection) -> bool {
        self.ask_has_broken && self.inner.has_broken(connection)
    }
}
