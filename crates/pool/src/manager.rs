//! How connections are made, checked and closed: the part that knows the database.

use std::error::Error;
use std::hash::Hash;
use std::time::Duration;

/// Makes and checks the connections of a [`Pool`](crate::Pool).
///
/// The pool calls these outside its lock. They may panic: no place in the pool is lost. Connections are made on threads in the
/// background, and checked on the thread of the caller who gets them (or in the background, by `keepalive`).
pub trait Manager: Send + Sync + 'static {
    /// What is pooled.
    type Connection: Send + 'static;
    /// Why a connection could not be made or is not good any more.
    type Error: Error + Send + Sync + 'static;

    /// Makes a connection. It should give up after `budget`, which is the pool's `connect_timeout`: one that does not is
    /// given up by the pool, and what comes of it later is closed.
    ///
    /// # Errors
    /// Whatever the database says; those who wait receive it.
    fn connect(&self, budget: Duration) -> Result<Self::Connection, Self::Error>;

    /// Asks the server whether the connection still works, within `budget`. Called at checkout when the connection was idle
    /// for longer than the builder's `validate_after`.
    ///
    /// # Errors
    /// Any error: the connection is closed and another one made, and no other idle one is trusted without a check.
    fn validate(&self, connection: &mut Self::Connection, budget: Duration) -> Result<(), Self::Error>;

    /// Whether the connection is known to be useless, without asking the server. Called at each return: it must be quick.
    fn is_broken(&self, connection: &mut Self::Connection) -> bool {
        let _ = connection;
        false
    }

    /// Closes a connection that the pool no longer wants. The default drops it. Runs before anybody else may use its place: on the
    /// thread that gives back one that is broken or too old, that whose check failed, that which closes, resizes or evicts, or,
    /// for idle ones, in the background. Its panic is contained.
    fn close(&self, connection: Self::Connection) {
        drop(connection);
    }
}

/// As [`Manager`], where each connection belongs to a key, for example a tenant's database.
pub trait KeyedManager<K>: Send + Sync + 'static {
    /// The key, where there is only one.
    #[doc(hidden)]
    #[must_use]
    fn only_key() -> Option<K> {
        None
    }

    /// What is pooled.
    type Connection: Send + 'static;
    /// Why a connection could not be made or is not good any more.
    type Error: Error + Send + Sync + 'static;

    /// See [`Manager::connect`].
    ///
    /// # Errors
    /// As there.
    fn connect(&self, key: &K, budget: Duration) -> Result<Self::Connection, Self::Error>;

    /// See [`Manager::validate`].
    ///
    /// # Errors
    /// As there.
    fn validate(&self, key: &K, connection: &mut Self::Connection, budget: Duration) -> Result<(), Self::Error>;

    /// See [`Manager::is_broken`].
    fn is_broken(&self, key: &K, connection: &mut Self::Connection) -> bool {
        let _ = (key, connection);
        false
    }

    /// See [`Manager::close`].
    fn close(&self, key: &K, connection: Self::Connection) {
        let _ = key;
        drop(connection);
    }
}

/// What can be a key of a [`KeyedPool`](crate::KeyedPool). `Hash`, `Eq`, `Clone` and `Drop` run under the pool's lock: they
/// must be quick and must not panic.
pub trait Key: Hash + Eq + Clone + Send + Sync + 'static {}
impl<K: Hash + Eq + Clone + Send + Sync + 'static> Key for K {}

/// A plain manager as one with a single key: a [`Pool`](crate::Pool) is a keyed pool with one key.
#[derive(Debug)]
pub struct Single<M>(pub(crate) M);

impl<M: Manager> KeyedManager<()> for Single<M> {
    type Connection = M::Connection;
    type Error = M::Error;

    fn only_key() -> Option<()> {
        Some(())
    }
    fn connect(&self, (): &(), budget: Duration) -> Result<Self::Connection, Self::Error> {
        self.0.connect(budget)
    }
    fn validate(&self, (): &(), connection: &mut Self::Connection, budget: Duration) -> Result<(), Self::Error> {
        self.0.validate(connection, budget)
    }
    fn is_broken(&self, (): &(), connection: &mut Self::Connection) -> bool {
        self.0.is_broken(connection)
    }
    fn close(&self, (): &(), connection: Self::Connection) {
        self.0.close(connection);
    }
}
