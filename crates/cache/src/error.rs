//! Why there is no value.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use fullbore_core::Failure;

/// No value. Cheap to clone; those who waited for one load share its failure.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum CacheError {
    /// The load failed: the caller's own one, or the one it waited for, or one of late
    /// ([`error_ttl`](crate::CacheBuilder::error_ttl)).
    Load(Failure),
    /// Somebody else's load did not end before the deadline. It goes on. Or: the deadline had passed before a load began.
    TimedOut(Box<LoadState>),
    /// The load of a key asked, on its own thread, for the same key.
    Reentrant,
    /// The value is not there and the cache loads no more.
    Closed,
    /// The value is not there, and as many loads wait for a thread as may
    /// ([`refresh_queue`](crate::CacheBuilder::refresh_queue)).
    Overloaded,
}

/// What the load of a key looked like when a call gave up.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LoadState {
    /// The cache's name.
    pub name: String,
    /// How long the load had been running; `None` if there was none, because the deadline had passed before.
    pub load_age: Option<Duration>,
    /// Calls that waited for it, this one included.
    pub waiting: usize,
}

impl fmt::Display for LoadState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.load_age {
            Some(age) => write!(f, "a load of {} has run for {age:.1?}, {} waiting", self.name, self.waiting),
            None => write!(f, "no load of {} was begun", self.name),
        }
    }
}

impl CacheError {
    /// Whether the load returned an error or panicked.
    #[must_use]
    pub const fn is_load(&self) -> bool {
        matches!(self, CacheError::Load(_))
    }

    /// Whether the deadline came first.
    #[must_use]
    pub const fn is_timeout(&self) -> bool {
        matches!(self, CacheError::TimedOut(_))
    }

    /// Whether a load asked for its own key.
    #[must_use]
    pub const fn is_reentrant(&self) -> bool {
        matches!(self, CacheError::Reentrant)
    }

    /// Whether the cache is closed.
    #[must_use]
    pub const fn is_closed(&self) -> bool {
        matches!(self, CacheError::Closed)
    }

    /// Whether too many loads wait for a thread.
    #[must_use]
    pub const fn is_overloaded(&self) -> bool {
        matches!(self, CacheError::Overloaded)
    }

    /// A load came to its end without one.
    pub(crate) fn cut_short() -> Self {
        CacheError::Load(Failure::Panicked("the load was cut short".into()))
    }

    /// The failure of the load, if that is the reason.
    #[must_use]
    pub const fn failure(&self) -> Option<&Failure> {
        match self {
            CacheError::Load(failure) => Some(failure),
            _ => None,
        }
    }

    /// The load's own error, if it was one of type `E`.
    #[must_use]
    pub fn downcast_ref<E: Error + 'static>(&self) -> Option<&E> {
        self.failure()?.downcast_ref()
    }

    /// What the load looked like; there after a wait.
    #[must_use]
    pub fn state(&self) -> Option<&LoadState> {
        match self {
            CacheError::TimedOut(state) => Some(state),
            _ => None,
        }
    }
}

impl fmt::Display for CacheError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CacheError::Load(failure) => write!(f, "the load failed: {failure}"),
            CacheError::TimedOut(state) => write!(f, "timed out waiting for a value: {state}"),
            CacheError::Reentrant => f.write_str("the load of a key asked for the same key"),
            CacheError::Closed => f.write_str("the cache is closed"),
            CacheError::Overloaded => f.write_str("too many loads wait for a thread"),
        }
    }
}

impl Error for CacheError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            // The failure's own text is in the message already.
            CacheError::Load(failure) => failure.source(),
            _ => None,
        }
    }
}
