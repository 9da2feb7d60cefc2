//! What a load can say about its result.

use std::time::{Duration, Instant};

/// Handed to the load of [`Cache::get_or_compute`](crate::Cache::get_or_compute): says how the value is to be kept.
#[derive(Debug)]
pub struct LoadCtx {
    pub(crate) ttl: Option<Duration>,
    pub(crate) store: bool,
    deadline: Option<Instant>,
}

impl LoadCtx {
    pub(crate) fn new(ttl: Option<Duration>, deadline: Option<Instant>) -> Self {
        Self { ttl, store: true, deadline }
    }

    /// Keeps this value for `ttl` and not for the cache's TTL. It counts from the end of the load. Zero: it is not kept; too
    /// long to represent: it never expires.
    pub fn ttl(&mut self, ttl: Duration) {
        self.ttl = Some(ttl);
    }

    /// Gives the value to the caller and to those who wait, and does not keep it.
    pub fn no_store(&mut self) {
        self.store = false;
    }

    /// The deadline of the call that this load is part of, if it has one: nobody can interrupt a load, so it should pass this
    /// on to whatever it waits for.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }
}
