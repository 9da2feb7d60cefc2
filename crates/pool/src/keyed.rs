//! The pool of many keys: what callers see of it.

use std::fmt;
use std::panic::Location;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use fullbore_core::{Clock, Close, Leftover, Undelivered};
use fullbore_metrics::Station;

use crate::admin::RetainResult;
use crate::background::Background;
use crate::checkout::{Patience, Shared};
use crate::config::{Config, PoolBuilder};
use crate::connection::{Connection, Metrics};
use crate::error::{GetError, Status};
use crate::leak::Checkout;
use crate::manager::{Key, KeyedManager};
use crate::stats::Stats;
use crate::top::{KeyUse, Top};

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

    pub(crate) fn open(config: Config, clock: Clock, background: Background, manager: M) -> Self {
        let pool = Self { handle: Arc::new(Handle { shared: Shared::new(config, clock, background, manager) }) };
        // What is to be kept ready is begun.
        let shared = pool.shared();
        let mut desk = shared.monitor.lock();
        shared.count_missing(&mut desk);
        shared.settle(desk);
        pool
    }

    #[inline]
    pub(crate) fn shared(&self) -> &Shared<K, M> {
        &self.handle.shared
    }

    /// A connection of `key`: an idle one, or the first that comes free or is made: while the caller waits one is made in the
    /// background, if there is room, or the coldest idle connection of another key makes room. Waits for the pool's `get_timeout`
    /// (30 s unless set otherwise).
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
    pub fn get(&self, key: &K) -> Result<Connection<K, M>, GetError<M::Error>> {
        self.shared().get(key, Patience::Default, Location::caller())
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
    pub fn try_get(&self, key: &K) -> Result<Connection<K, M>, GetError<M::Error>> {
        self.shared().get(key, Patience::Now, Location::caller())
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
    pub fn get_deadline(&self, key: &K, deadline: Instant) -> Result<Connection<K, M>, GetError<M::Error>> {
        self.shared().get(key, Patience::Until(deadline), Location::caller())
    }

    /// Runs `f` with a connection of `key`. A panic of `f` closes the connection.
    ///
    /// # Errors
    /// As [`get`](Self::get); `f` has not run then.
    #[track_caller]
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

    /// Hands out nothing from now on: who asks waits, until [`resume`](Self::resume) or its own deadline; what is out stays out. For
    /// a switch-over of the database. Idempotent.
    pub fn pause(&self) {
        self.handle.shared.pause();
    }

    /// As [`pause`](Self::pause), then waits up to `limit` for connections that are out. It stays paused in either case.
    ///
    /// # Errors
    /// How many had not come back.
    pub fn pause_within(&self, limit: Duration) -> Result<(), Undelivered<()>> {
        self.handle.shared.pause_within(limit)
    }

    /// Ends a [`pause`](Self::pause).
    pub fn resume(&self) {
        self.handle.shared.resume();
    }

    /// Changes `max_size`, to at least 1. Where there are more, idle ones are closed now and the others when they come back.
    pub fn resize(&self, max_size: usize) {
        self.handle.shared.resize(max_size);
    }

    /// Replaces all connections: the idle ones are closed now, those that are out when they come back. For a change behind the
    /// address: a failover, a new password.
    pub fn soft_evict(&self) {
        self.handle.shared.soft_evict();
    }

    /// Looks through the idle connections, one after the other, and takes out those for which `keep` says `false`. Others can use
    /// the pool meanwhile.
    ///
    /// # Panics
    /// If `keep` does. The connection that it looked at stays.
    pub fn retain(&self, keep: impl FnMut(&K, &mut M::Connection, Metrics) -> bool) -> RetainResult<M::Connection> {
        self.handle.shared.retain(keep)
    }

    /// What it looks like now.
    #[must_use]
    pub fn status(&self) -> Status {
        self.handle.shared.status_now()
    }

    /// What became of its connections so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let shared = self.shared();
        if shared.is_forked() { Stats::default() } else { shared.monitor.lock().stats }
    }

    /// The connections that are out, with who took them where, if it keeps book of them
    /// ([`leak_after`](PoolBuilder::leak_after)); else none.
    #[must_use]
    pub fn checkouts(&self) -> Vec<Checkout> {
        self.handle.shared.checkouts()
    }

    /// The 16 keys that are used most, the most used first, by estimate: see [`KeyUse`].
    #[must_use]
    pub fn top_keys(&self) -> Vec<KeyUse<K>> {
        let shared = self.shared();
        if shared.is_forked() { Vec::new() } else { Top::told(&shared.top) }
    }

    /// Whether it is closed. In a child of the process that built it, it always is.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        let shared = self.shared();
        shared.is_forked() || shared.monitor.lock().closed
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
        f.debug_struct("KeyedPool").field("status", &self.status()).finish()
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
