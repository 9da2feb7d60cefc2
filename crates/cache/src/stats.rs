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
    /// Loads whose value was not kept because the key or one of its tags was removed, or the key inserted, or all cleared meanwhile; or
    /// because a higher version was there.
    pub invalidated_loads: u64,
    /// Calls that got a stale value because the new one could not be had, or not soon enough.
    pub stale_hits: u64,
    /// Calls that got the error of an earlier load.
    pub error_hits: u64,
    /// Loads in the background, begun early or for a caller who did not wait to the end.
    pub refreshes: u64,
    /// Loads in the background that were not begun because too many waited for a thread.
    pub refreshes_dropped: u64,
    /// Loads begun beside one that took too long.
    pub hand_overs: u64,
    /// Such loads that have not ended. A number of now, not a count.
    pub abandoned: u64,
    /// Entries that had to make room for others.
    pub evictions: u64,
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
    pub(crate) stale_hits: Counter,
    pub(crate) error_hits: Counter,
    pub(crate) refreshes: Counter,
    pub(crate) refreshes_dropped: Counter,
    /// The store counts them.
    pub(crate) evictions: Arc<Counter>,
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
            stale_hits: read(&self.stale_hits),
            error_hits: read(&self.error_hits),
            refreshes: read(&self.refreshes),
            refreshes_dropped: read(&self.refreshes_dropped),
            hand_overs: 0,
            abandoned: 0,
            evictions: read(&self.evictions),
        }
    }
}
