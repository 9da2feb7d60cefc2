//! Why a call got no result.

use std::error::Error;
use std::fmt;

use fullbore_core::{Failure, SendError};

/// The process function waited for its own batcher: the wait could only end after the function has returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct OwnThread;

impl fmt::Display for OwnThread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the process function cannot wait for its own batcher")
    }
}

impl Error for OwnThread {}

/// A call that got no result.
#[non_exhaustive]
pub enum CallError<T> {
    /// The item was not accepted and comes back.
    Refused(SendError<T>),
    /// Called from the process function of the same batcher, see [`OwnThread`]. The item was not accepted and comes back.
    OwnThread(T),
    /// The item was accepted, and this became of it.
    Failed(Failure),
    /// The item was accepted, and there was no result at the deadline. It may still be processed.
    TimedOut,
}

impl<T> CallError<T> {
    /// The item, if it was not accepted. One that was accepted belongs to the process function.
    pub fn into_inner(self) -> Option<T> {
        match self {
            CallError::Refused(refused) => Some(refused.into_inner()),
            CallError::OwnThread(item) => Some(item),
            CallError::Failed(_) | CallError::TimedOut => None,
        }
    }

    /// Why the accepted item failed, if it did.
    pub const fn failure(&self) -> Option<&Failure> {
        match self {
            CallError::Failed(failure) => Some(failure),
            _ => None,
        }
    }

    /// Whether the item was not accepted, and so not worked on.
    pub const fn is_refused(&self) -> bool {
        matches!(self, CallError::Refused(_) | CallError::OwnThread(_))
    }

    /// Whether there was no room and the call does not wait for it.
    pub const fn is_full(&self) -> bool {
        matches!(self, CallError::Refused(refused) if refused.is_full())
    }

    /// Whether there was no room, or no result, until the deadline; [`is_refused`](Self::is_refused) tells which.
    pub const fn is_timeout(&self) -> bool {
        match self {
            CallError::Refused(refused) => refused.is_timeout(),
            CallError::TimedOut => true,
            CallError::OwnThread(_) | CallError::Failed(_) => false,
        }
    }

    /// Whether the batcher was closed: before it accepted the item, or before it processed it.
    pub const fn is_closed(&self) -> bool {
        match self {
            CallError::Refused(refused) => refused.is_closed(),
            CallError::Failed(failure) => matches!(failure, Failure::Closed),
            CallError::OwnThread(_) | CallError::TimedOut => false,
        }
    }

    /// Whether it was called from the process function of the same batcher.
    pub const fn is_own_thread(&self) -> bool {
        matches!(self, CallError::OwnThread(_))
    }
}

impl<T> fmt::Debug for CallError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CallError::Refused(refused) => f.debug_tuple("Refused").field(&refused.reason()).finish(),
            CallError::OwnThread(_) => f.debug_tuple("OwnThread").finish_non_exhaustive(),
            CallError::Failed(failure) => f.debug_tuple("Failed").field(failure).finish(),
            CallError::TimedOut => f.write_str("TimedOut"),
        }
    }
}

impl<T> fmt::Display for CallError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CallError::Refused(refused) => refused.fmt(f),
            CallError::OwnThread(_) => OwnThread.fmt(f),
            CallError::Failed(failure) => failure.fmt(f),
            CallError::TimedOut => f.write_str("no result until the deadline"),
        }
    }
}

impl<T> Error for CallError<T> {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        // A refusal holds a `T`, which need not be 'static: its text is in ours.
        match self {
            CallError::Failed(failure) => failure.source(),
            _ => None,
        }
    }
}
