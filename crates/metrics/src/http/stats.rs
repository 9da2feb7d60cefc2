//! What became of the connections.

/// The counts of a [`MetricsServer`](crate::MetricsServer), all taken at one moment. Each connection that was accepted
/// is in exactly one of the others: `accepted = open + served + rejected + refused + evicted + timed_out + failed +
/// panicked + disconnected`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct MetricsServerStats {
    /// Connections taken in.
    pub accepted: u64,
    /// Connections whose request is being read or answered now.
    pub open: u64,
    /// Answered with 200 to the last byte.
    pub served: u64,
    /// Answered with 400, 404, 405 or 431.
    pub rejected: u64,
    /// Answered with 503 at once: all places were taken by clients that were being answered.
    pub refused: u64,
    /// Cut in the middle of their request to make room for newer ones.
    pub evicted: u64,
    /// Too slow to send their request (answered with 408) or to take the response (cut).
    pub timed_out: u64,
    /// The renderer returned an error: answered with 500.
    pub failed: u64,
    /// The renderer panicked: answered with 500.
    pub panicked: u64,
    /// Went away in the middle, or were cut by a close.
    pub disconnected: u64,
    /// How often the system had no connection to give although one was waiting, for example for lack of file
    /// descriptors.
    pub accept_errors: u64,
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Served,
    Rejected,
    Refused,
    Evicted,
    TimedOut,
    Failed,
    Panicked,
    Disconnected,
}

impl MetricsServerStats {
    pub(super) fn count(&mut self, end: End) {
        *match end {
            End::Served => &mut self.served,
            End::Rejected => &mut self.rejected,
            End::Refused => &mut self.refused,
            End::Evicted => &mut self.evicted,
            End::TimedOut => &mut self.timed_out,
            End::Failed => &mut self.failed,
            End::Panicked => &mut self.panicked,
            End::Disconnected => &mut self.disconnected,
        } += 1;
    }
}
