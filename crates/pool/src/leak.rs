//! Who has a connection, since when and from where: for the leak report.

use std::panic::Location;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

/// A connection that is out, if the pool keeps book ([`leak_after`](crate::PoolBuilder::leak_after)).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Checkout {
    /// The connection's number.
    pub id: u64,
    /// The call of `get` that took it.
    pub site: &'static Location<'static>,
    /// The name of the thread that took it, else its number.
    pub thread: String,
    /// For how long it has been out, to a few milliseconds.
    pub age: Duration,
    /// Whether it was reported as a leak.
    pub reported: bool,
}

pub(crate) struct Lease {
    pub(crate) id: u64,
    pub(crate) site: &'static Location<'static>,
    pub(crate) thread: thread::Thread,
    pub(crate) since: u64,
    pub(crate) reported: bool,
}

impl Lease {
    pub(crate) fn checkout(&self, now: u64) -> Checkout {
        let thread = self.thread.name().map_or_else(|| format!("{:?}", self.thread.id()), str::to_owned);
        let age = Duration::from_nanos(now.saturating_sub(self.since));
        Checkout { id: self.id, site: self.site, thread, age, reported: self.reported }
    }
}

/// The lease of a slot: written by its holder, read by the pool. Only used where book is kept.
#[derive(Default)]
pub(crate) struct LeaseCell(Mutex<Option<Lease>>);

impl LeaseCell {
    /// Runs `f` with it. Nothing in there can panic half-way.
    pub(crate) fn with<R>(&self, f: impl FnOnce(&mut Option<Lease>) -> R) -> R {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
