//! A connection in the hands of a caller.

use std::fmt;
use std::mem;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::Instant;

use fullbore_metrics::Outcome;

use crate::checkout::Shared;
use crate::manager::{Key, KeyedManager};
use crate::nested::Home;
use crate::slot::{Held, Out};
use crate::stats::Why;

/// What a pool knows of one of its connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Metrics {
    /// When it was made.
    pub created: Instant,
    /// How often it came back to the pool.
    pub recycle_count: u64,
}

impl Metrics {
    pub(crate) fn of<K: Key, M: KeyedManager<K>>(held: &Held<K, M>) -> Self {
        Self { created: held.created, recycle_count: held.uses }
    }
}

/// A connection that is yours until you drop it; then it goes back. It may outlive the pool, and move to other threads.
///
/// Dropped by a panic it is closed, unless the pool was built to do [something else](crate::OnPanic).
///
/// To drop it is a few instructions as a rule; where it is broken or too old it is closed there and then, on that thread.
pub struct Connection<K: Key, M: KeyedManager<K>> {
    /// `None` only once it was detached or discarded.
    out: Option<Out<K, M>>,
    /// When it was taken, if this checkout is timed.
    taken: Option<Instant>,
    /// The count of the thread that has it, where those are kept.
    home: Option<Home>,
}

impl<K: Key, M: KeyedManager<K>> Connection<K, M> {
    #[inline]
    pub(crate) fn new(out: Out<K, M>, taken: Option<Instant>, home: Option<Home>) -> Self {
        Self { out: Some(out), taken, home }
    }

    /// The key it belongs to.
    #[must_use]
    pub fn key(&self) -> &K {
        &self.out().held().key
    }

    /// Its number in this pool; later connections have higher ones.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.out().held().id
    }

    /// What the pool knows of it.
    #[must_use]
    pub fn metrics(&self) -> Metrics {
        Metrics::of(self.out().held())
    }

    /// Takes it out of the pool for good. Its place is free for another one.
    #[must_use]
    pub fn detach(self) -> M::Connection {
        let (pool, out) = self.end();
        if pool.is_forked() {
            // The pool is the parent's; this is a copy, and so is the connection.
            return out.into_taken().empty(&pool).map(|held| held.connection).expect(HELD);
        }
        pool.remove(out.into_taken()).expect(HELD)
    }

    /// [`detach`](Self::detach), as deadpool names it.
    #[must_use]
    pub fn take(this: Self) -> M::Connection {
        this.detach()
    }

    /// Closes it now, because the caller knows that it is no good any more.
    pub fn discard(self) {
        let (pool, out) = self.end();
        if !pool.is_forked() {
            pool.retire(out, Why::Removed);
        }
    }

    #[inline]
    fn out(&self) -> &Out<K, M> {
        self.out.as_ref().expect(PRESENT)
    }

    /// Its use ends, but not by its going back.
    fn end(mut self) -> (Arc<Shared<K, M>>, Out<K, M>) {
        let out = self.out.take().expect(PRESENT);
        let pool = Arc::clone(&out.held().pool);
        pool.end_service(mem::take(&mut self.taken), Outcome::Served);
        pool.close_book(&out);
        (pool, out)
    }
}

const HELD: &str = "there is a connection in a slot that is out";

/// `out` is taken only by `detach` and `discard`, which consume the connection, and by `drop`.
const PRESENT: &str = "a live guard holds its connection";

impl<K: Key, M: KeyedManager<K>> Deref for Connection<K, M> {
    type Target = M::Connection;
    #[inline]
    fn deref(&self) -> &M::Connection {
        &self.out().held().connection
    }
}

impl<K: Key, M: KeyedManager<K>> DerefMut for Connection<K, M> {
    #[inline]
    fn deref_mut(&mut self) -> &mut M::Connection {
        if let (Some(home), Some(out)) = (&mut self.home, &self.out) {
            home.follow(out.held().pool.id);
        }
        &mut self.out.as_mut().expect(PRESENT).held_mut().connection
    }
}

impl<K: Key, M: KeyedManager<K>> Drop for Connection<K, M> {
    #[inline]
    fn drop(&mut self) {
        if let Some(out) = self.out.take() {
            Shared::give_back(out, self.taken);
        }
    }
}

impl<K: Key, M: KeyedManager<K>> fmt::Debug for Connection<K, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("pool", &self.out().held().pool.config.name)
            .field("id", &self.id())
            .finish_non_exhaustive()
    }
}
