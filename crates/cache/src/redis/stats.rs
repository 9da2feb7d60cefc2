//! What has happened so far.

use fullbore_limit::BreakerState;

use crate::redis::link::{LinkCounts, Why};
use crate::redis::tier::Tier;

/// The link of a tier and its breaker, and what became of questions so far.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct TierStats {
    /// Whether changes in Redis are told of.
    pub link_up: bool,
    /// Why they were not the last time they were not.
    pub link_error: Option<String>,
    /// How often the link was lost.
    pub link_losses: u64,
    /// What the breaker does.
    pub breaker: BreakerState,
    /// Looks that found a value.
    pub hits: u64,
    /// Looks that found none.
    pub misses: u64,
    /// Of the misses those where there was something that could not be read.
    pub undecodable: u64,
    /// Of the misses those of values one of whose tags was removed.
    pub tag_misses: u64,
    /// Leases got.
    pub led: u64,
    /// Calls that waited for another process.
    pub waited: u64,
    /// Leases taken over from a process that died.
    pub takeovers: u64,
    /// Values written.
    pub stored: u64,
    /// Values not written as the key was removed while they were loaded.
    pub revoked: u64,
    /// Leases given back.
    pub abandoned: u64,
    /// Keys removed.
    pub removed: u64,
    /// Values and keys refused as too large.
    pub too_large: u64,
    /// Writes in the background that were not done.
    pub dropped: u64,
    /// Questions that were not answered in time.
    pub timeouts: u64,
    /// Questions that failed, those included.
    pub failures: u64,
    /// Keys of whose change Redis told.
    pub pushes: u64,
    /// Times the database was emptied.
    pub flushes: u64,
    /// Names below the prefix that are not of this cache.
    pub strangers: u64,
}

impl<K, V> Tier<K, V> {
    /// What has happened so far.
    pub fn stats(&self) -> TierStats {
        let (counts, link) = (&self.core.counts, &self.core.link.shared);
        let LinkCounts { pushes, losses, flushes, strangers } = &link.counts;
        TierStats {
            link_up: link.is_up(),
            link_error: link.last_error().as_ref().map(Why::to_string),
            link_losses: losses.get(),
            breaker: self.core.wire.breaker.state(),
            hits: counts.hits.get(),
            misses: counts.misses.get(),
            undecodable: counts.undecodable.get(),
            tag_misses: counts.tag_misses.get(),
            led: counts.led.get(),
            waited: counts.waited.get(),
            takeovers: counts.takeovers.get(),
            stored: counts.stored.get(),
            revoked: counts.revoked.get(),
            abandoned: counts.abandoned.get(),
            removed: counts.removed.get(),
            too_large: counts.too_large.get(),
            dropped: counts.dropped.get(),
            timeouts: self.core.wire.timeouts.get(),
            failures: self.core.wire.failures.get(),
            pushes: pushes.get(),
            flushes: flushes.get(),
            strangers: strangers.get() + self.strangers.get(),
        }
    }
}
