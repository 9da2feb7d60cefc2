//! The pool of many keys: what callers see of it.

use std::fmt;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use fullbore_core::{Clock, Close, Leftover, Undelivered};
use fullbore_metrics::Station;

use crate::checkout::Shared;
use crate::config::{Config, PoolBuilder};
use crate::connection::Connection;
use crate::error::{GetError, PoolState};
use crate::manager::{Key, KeyedManager};

/// Connections of many keys, for example of thousands of tenant databases, under one global bound: idle connections of cold
/// keys make room for hot ones. A cheap handle; clones share the pool, the last one closes it.
///
/// ```
/// use fullbore_pool::{KeyedManager, KeyedPool};
/// use std::{io, time::Duration};
///
/// struct Files(std::path::PathBuf);
/// impl KeyedManager<String> for Files {
///     type Connection = std::fs::File;
///     type Error = io::Error;
///     fn connect(&self, name: &String, _: Duration) -> io::Result<std::fs::File> {
///         std::fs::File::open(self.0.join(name))
///     }
///     fn validate(&self, _: &String, file: &mut std::fs::File, _: Duration) -> io::Result<()> {
///         file.metadata().map(drop)
///     }
/// }
///
/// let pool = KeyedPool::builder(Files(env!("CARGO_MANIFEST_DIR").into())).max_size(2).build()?;
/// let file = pool.get(&"Cargo.toml".to_owned())?;
/// assert!(file.metadata()?.is_file());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct KeyedPool<K: Key, M: KeyedManager<K>> {
    handle: Arc<Handle<K, M>>,
}

/// Counted apart from `Shared`, which connections that are out keep alive: the last handle closes the pool.
struct Handle<K: Key, M: KeyedManager<K>> {
    shared: Arc<Shared<K, M>>,
}

impl<K: Key, M: KeyedManager<K>> Drop for Handle<K, M> {
    fn drop(&mut self) {
        self.shared.close();
    }
}

impl<K: Key, M: KeyedManager<K>> KeyedPool<K, M> {
    /// Describes a pool whose connections `manager` makes.
    pub fn builder(manager: M) -> PoolBuilder<Self> {
        PoolBuilder::new(manager)
    }

    pub(crate) fn open(config: Config, clock: Clock, manager: M) -> Self {
        Self { handle: Arc::new(Handle { shared: Arc::new(Shared::new(config, clock, manager)) }) }
    }

    /// A connection of `key`: an idle one, or a new one when there is room, or the first that comes free. Waits for the
    /// pool's `get_timeout` (30 s unless set otherwise).
    ///
    /// # Errors
    /// Timed out, closed, or the manager could not connect.
    ///
    /// # Panics
    /// If the manager does; nothing is lost then.
    ///
    /// # Deadlock
    /// A thread that holds connections and asks for one more can wait for itself, until the timeout.
    pub fn get(&self, key: &K) -> Result<Connection<K, M>, GetError<M::Error>> {
        let shared = &self.handle.shared;
        shared.get(key, shared.default_deadline(), true)
    }

    /// As [`get`](Self::get), but does not wait for others; if there is room it does connect, within `get_timeout`.
    ///
    /// # Errors
    /// Full, closed, or the manager could not connect.
    ///
    /// # Panics
    /// As [`get`](Self::get).
    pub fn try_get(&self, key: &K) -> Result<Connection<K, M>, GetError<M::Error>> {
        let shared = &self.handle.shared;
        shared.get(key, shared.default_deadline(), false)
    }

    /// As [`get`](Self::get), until `deadline`. One in the past gets an idle connection that needs no check, or nothing.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    ///
    /// # Panics
    /// As [`get`](Self::get).
    pub fn get_deadline(&self, key: &K, deadline: Instant) -> Result<Connection<K, M>, GetError<M::Error>> {
        self.handle.shared.get(key, Some(deadline), true)
    }

    /// Runs `f` with a connection of `key`. A panic of `f` closes the connection.
    ///
    /// # Errors
    /// As [`get`](Self::get); `f` has not run then.
    pub fn with<R>(&self, key: &K, f: impl FnOnce(&mut M::Connection) -> R) -> Result<R, GetError<M::Error>> {
        let mut connection = self.get(key)?;
        Ok(f(&mut connection))
    }

    /// Refuses checkouts from now on, wakes those who wait with `Closed` and closes idle connections; those that are out are
    /// closed when they come back. Does not wait. Idempotent.
    pub fn close(&self) {
        self.handle.shared.close();
    }

    /// As [`close`](Self::close), then waits up to `limit` for connections that are out.
    ///
    /// # Errors
    /// How many had not come back.
    pub fn close_within(&self, limit: Duration) -> Result<(), Undelivered<()>> {
        self.handle.shared.close_within(limit)
    }

    /// For [`Shutdown`](fullbore_core::Shutdown). Does not keep the pool open.
    #[must_use]
    pub fn closer(&self) -> impl Close + 'static {
        let shared = &self.handle.shared;
        Closer { name: shared.config.name.clone(), shared: Arc::downgrade(shared) }
    }

    /// What it looks like now.
    #[must_use]
    pub fn state(&self) -> PoolState {
        self.handle.shared.state_now()
    }

    /// Its counts and times: an arrival is a call of `get`, service is the time that a connection is out.
    #[must_use]
    pub fn station(&self) -> &Station {
        &self.handle.shared.station
    }

    /// What makes the connections.
    #[must_use]
    pub fn manager(&self) -> &M {
        &self.handle.shared.manager
    }
}

impl<K: Key, M: KeyedManager<K>> Clone for KeyedPool<K, M> {
    fn clone(&self) -> Self {
        Self { handle: Arc::clone(&self.handle) }
    }
}

impl<K: Key, M: KeyedManager<K>> fmt::Debug for KeyedPool<K, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyedPool").field("state", &self.state()).finish()
    }
}

struct Closer<K: Key, M: KeyedManager<K>> {
    name: String,
    shared: Weak<Shared<K, M>>,
}

impl<K: Key, M: KeyedManager<K>> Close for Closer<K, M> {
    fn name(&self) -> String {
        self.name.clone()
    }
    fn close_within(&self, limit: Duration) -> Leftover {
        match self.shared.upgrade() {
            Some(shared) => shared.close_within(limit).into(),
            None => Leftover::default(),
        }
    }
}
