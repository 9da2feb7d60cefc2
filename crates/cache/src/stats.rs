//! Counts of what the cache did for its callers.

use std::sync::Arc;

use fullbore_metrics::Counter;

/// What a cache has done since it was built. Each number is exact; taken while others work they may not add up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct CacheStats {
    /// Calls of `get` and `get_or_compute` that found a value.
    pub hits: u64,
    /// Calls of `get` and `get_or_compute` that found none.
    pub misses: u64,
    /// Loads that were begun.
    pub loads: u64,
    /// Loads that returned an error or panicked.
    pub load_failures: u64,
    /// Calls that waited for somebody else's load.
    pub waits: u64,
    /// Of those, the ones that gave up at their deadline.
    pub wait_timeouts: u64,
    /// Loads whose value was not kept because the key was removed, inserted or cleared meanwhile.
    pub invalidated_loads: u64,
}

impl CacheStats {
    /// Hits out of all look-ups; `None` before the first.
    #[must_use]
    pub fn hit_ratio(&self) -> Option<f64> {
        let all = self.hits + self.misses;
        (all > 0).then(|| self.hits as f64 / all as f64)
    }
}

#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// The store's policy reads it, too.
    pub(crate) hits: Arc<Counter>,
    pub(crate) misses: Counter,
    pub(crate) loads: Counter,
    pub(crate) load_failures: Counter,
    pub(crate) waits: Counter,
    pub(crate) wait_timeouts: Counter,
    pub(crate) invalidated_loads: Counter,
}

impl Tally {
    pub(crate) fn read(&self) -> CacheStats {
        let read = |counter: &Counter| counter.get();
        CacheStats {
            hits: read(&self.hits),
            misses: read(&self.misses),
            loads: read(&self.loads),
            load_failures: read(&self.load_failures),
            waits: read(&self.waits),
            wait_timeouts: read(&self.wait_timeouts),
            invalidated_loads: read(&self.invalidated_loads),
        }
    }
}
