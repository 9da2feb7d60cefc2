//! What became of connections, counted.

/// Connections of a pool since it was built. Exact.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Made.
    pub connected: u64,
    /// Attempts that failed: errors, panics, and those given up.
    pub connect_failures: u64,
    /// Attempts that were given up because they took too long.
    pub connects_given_up: u64,
    /// Attempts that nobody needed any more before they had begun.
    pub connects_elided: u64,
    /// Closed because a validation failed.
    pub closed_invalid: u64,
    /// Closed because they came back broken.
    pub closed_broken: u64,
    /// Closed because their holder panicked.
    pub closed_panicked: u64,
    /// Closed because they were idle for too long.
    pub closed_idle: u64,
    /// Closed because they were too old, or there before a soft eviction.
    pub closed_old: u64,
    /// Closed to make room for another key.
    pub closed_evicted: u64,
    /// Closed because there were too many: the reserve, or after a resize.
    pub closed_surplus: u64,
    /// Closed with the pool.
    pub closed_with_pool: u64,
    /// Closed or taken out by their holders, or by `retain`.
    pub removed: u64,
    /// Reported as leaks.
    pub leaks: u64,
}

/// Why a connection goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    Invalid,
    Broken,
    Panicked,
    Idle,
    Old,
    Evicted,
    Surplus,
    Closed,
    Removed,
}

impl Stats {
    pub(crate) fn count(&mut self, why: Why) {
        *match why {
            Why::Invalid => &mut self.closed_invalid,
            Why::Broken => &mut self.closed_broken,
            Why::Panicked => &mut self.closed_panicked,
            Why::Idle => &mut self.closed_idle,
            Why::Old => &mut self.closed_old,
            Why::Evicted => &mut self.closed_evicted,
            Why::Surplus => &mut self.closed_surplus,
            Why::Closed => &mut self.closed_with_pool,
            Why::Removed => &mut self.removed,
        } += 1;
    }
}
