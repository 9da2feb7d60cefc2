//! What can go wrong, and why.

use std::error::Error;
use std::fmt;

use fullbore_core::BuildError;

/// Why a [`Subscriber`](crate::Subscriber) has no message to give at this moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReceiveError {
    /// None is there, and the call does not wait.
    Empty,
    /// None came until the deadline.
    TimedOut,
    /// None is there and none will come.
    Closed,
    /// So many were published while it had as many as it may have ([`LagPolicy::Reject`](crate::LagPolicy::Reject)); they would
    /// have come between the last message and the next. Said once.
    Missed(u64),
    /// So many were skipped, because it was further behind than it may be ([`LagPolicy::DropOldest`](crate::LagPolicy::DropOldest)).
    /// Said once.
    Skipped(u64),
    /// It was further behind than it may be ([`LagPolicy::Evict`](crate::LagPolicy::Evict)), and gets nothing any more. So many that
    /// it had were dropped; 0 when it is said again.
    Evicted(u64),
}

impl ReceiveError {
    /// Whether none was there and the call does not wait.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        matches!(self, ReceiveError::Empty)
    }

    /// Whether none came until the deadline.
    #[must_use]
    pub const fn is_timeout(&self) -> bool {
        matches!(self, ReceiveError::TimedOut)
    }

    /// Whether none will come any more, because the broadcast is closed.
    #[must_use]
    pub const fn is_closed(&self) -> bool {
        matches!(self, ReceiveError::Closed)
    }

    /// Whether none will come any more, because the subscriber was too slow.
    #[must_use]
    pub const fn is_evicted(&self) -> bool {
        matches!(self, ReceiveError::Evicted(_))
    }

    /// How many messages did not come, if this tells of some. There are more behind them, unless it was evicted.
    #[must_use]
    pub const fn lost(&self) -> Option<u64> {
        match self {
            ReceiveError::Missed(lost) | ReceiveError::Skipped(lost) | ReceiveError::Evicted(lost) => Some(*lost),
            _ => None,
        }
    }
}

impl fmt::Display for ReceiveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ReceiveError::Empty => f.write_str("no message waits"),
            ReceiveError::TimedOut => f.write_str("timed out waiting for a message"),
            ReceiveError::Closed => f.write_str("closed, and every message was taken"),
            ReceiveError::Missed(n) => write!(f, "{n} messages missed while it had as many as it may have"),
            ReceiveError::Skipped(n) => write!(f, "{n} messages skipped, for it was too far behind"),
            ReceiveError::Evicted(n) => write!(f, "evicted with {n} messages unread, for it was too far behind"),
        }
    }
}

impl Error for ReceiveError {}

/// Why there is no subscription.
#[derive(Debug)]
#[non_exhaustive]
pub enum SubscribeError {
    /// The broadcast is closed.
    Closed,
    /// A setting makes no sense.
    Build(BuildError),
}

impl SubscribeError {
    /// Whether the broadcast is closed.
    #[must_use]
    pub const fn is_closed(&self) -> bool {
        matches!(self, SubscribeError::Closed)
    }
}

impl fmt::Display for SubscribeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SubscribeError::Closed => f.write_str("the broadcast is closed"),
            SubscribeError::Build(error) => error.fmt(f),
        }
    }
}

impl Error for SubscribeError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            SubscribeError::Build(error) => Some(error),
            SubscribeError::Closed => None,
        }
    }
}

impl From<BuildError> for SubscribeError {
    fn from(error: BuildError) -> Self {
        SubscribeError::Build(error)
    }
}
