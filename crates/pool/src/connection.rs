//! A connection in the hands of a caller.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::Instant;

use fullbore_metrics::Outcome;

use crate::checkout::{Place, Shared};
use crate::manager::{Key, KeyedManager};
use crate::shelf::Held;

/// A connection that is yours until you drop it; then it goes back. It may outlive the pool, and move to other threads.
///
/// Dropped by a panic it is closed: nobody else continues a stranger's half-done work.
pub struct Connection<K: Key, M: KeyedManager<K>> {
    shared: Arc<Shared<K, M>>,
    /// `None` only once it was detached or discarded.
    held: Option<Held<K, M::Connection>>,
    /// When it was taken, if this checkout is timed.
    taken: Option<Instant>,
}

impl<K: Key, M: KeyedManager<K>> Connection<K, M> {
    pub(crate) fn new(shared: &Arc<Shared<K, M>>, held: Held<K, M::Connection>, taken: Option<Instant>) -> Self {
        Self { shared: Arc::clone(shared), held: Some(held), taken }
    }

    /// The key it belongs to.
    #[must_use]
    pub fn key(&self) -> &K {
        &self.held.as_ref().expect(PRESENT).key
    }

    /// Its number in this pool; later connections have higher ones.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.held.as_ref().map_or(0, |held| held.id)
    }

    /// Takes it out of the pool for good. Its place is free for another one.
    #[must_use]
    pub fn detach(mut self) -> M::Connection {
        let held = self.held.take().expect(PRESENT);
        self.finish(Outcome::Served);
        drop(Place { shared: &self.shared, key: &held.key });
        held.connection
    }

    /// Closes it now, because the caller knows that it is no good any more.
    pub fn discard(mut self) {
        if let Some(held) = self.held.take() {
            self.finish(Outcome::Served);
            self.shared.retire(held);
        }
    }

    fn finish(&self, outcome: Outcome) {
        if let Some(taken) = self.taken {
            self.shared.station.took(taken.elapsed());
        }
        self.shared.station.ended(outcome, 1);
    }
}

/// `held` is taken only by `detach` and `discard`, which consume the connection, and by `drop`.
const PRESENT: &str = "a live guard holds its connection";

impl<K: Key, M: KeyedManager<K>> Deref for Connection<K, M> {
    type Target = M::Connection;
    fn deref(&self) -> &M::Connection {
        &self.held.as_ref().expect(PRESENT).connection
    }
}

impl<K: Key, M: KeyedManager<K>> DerefMut for Connection<K, M> {
    fn deref_mut(&mut self) -> &mut M::Connection {
        &mut self.held.as_mut().expect(PRESENT).connection
    }
}

impl<K: Key, M: KeyedManager<K>> Drop for Connection<K, M> {
    fn drop(&mut self) {
        if let Some(held) = self.held.take() {
            self.finish(if std::thread::panicking() { Outcome::Failed } else { Outcome::Served });
            self.shared.give_back(held);
        }
    }
}

impl<K: Key, M: KeyedManager<K>> fmt::Debug for Connection<K, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("pool", &self.shared.config.name)
            .field("id", &self.id())
            .finish_non_exhaustive()
    }
}
