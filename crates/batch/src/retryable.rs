//! What a failure says about doing the same again.

use std::error::Error;
use std::iter;

use fullbore_core::Failure;

use crate::write::{Doubt, WriteError};

/// What a failure says about doing the same again.
///
/// Whoever retries asks [`may_retry`](Self::may_retry) first: the answer is no where the work may have been done already,
/// and doing it twice would do harm. Taking a failed batch apart to find its bad items is doing it again, too.
/// [`is_permanent`](Self::is_permanent) tells that waiting will not help.
///
/// [`WriteError`] implements it, and so does [`Failure`], which finds a [`WriteError`] in whatever error a process function
/// returned, however deep in its chain of sources. Implement it for an error of your own and ask it through
/// [`Failure::downcast_ref`].
///
/// ```
/// use fullbore_batch::{Retryable, WriteError};
/// use fullbore_core::Failure;
///
/// let lost = || std::io::Error::from(std::io::ErrorKind::ConnectionReset);
/// assert!(Failure::error(WriteError::not_written(lost())).may_retry());
/// assert!(!Failure::error(WriteError::in_doubt(lost())).may_retry());
/// assert!(Failure::error(WriteError::in_doubt(lost()).idempotent(true)).may_retry());
/// ```
pub trait Retryable {
    /// Whether doing it again does no harm: nothing was done, or twice is the same as once.
    fn may_retry(&self) -> bool;

    /// Whether doing the same again will surely fail in the same way, as with a row that breaks a constraint. The items may
    /// still succeed without the bad ones among them. Default: no.
    fn is_permanent(&self) -> bool {
        false
    }
}

/// An error that is not known to be in doubt may be retried: by returning it the process function says that the batch is not
/// done. A batch with a wrong number of results was done, and one that was closed or dropped is not wanted any more.
impl Retryable for Failure {
    fn may_retry(&self) -> bool {
        match self {
            Failure::Error(error) => known(&**error).is_none_or(Retryable::may_retry),
            Failure::Panicked(_) => true,
            _ => false,
        }
    }

    fn is_permanent(&self) -> bool {
        match self {
            Failure::Error(error) => known(&**error).is_some_and(Retryable::is_permanent),
            _ => false,
        }
    }
}

/// The first in the chain of sources that can tell. An error that is transparent for its source hides a [`WriteError`] and
/// shows what that has as its source: for this reason what is in doubt is a link of its own.
fn known<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a dyn Retryable> {
    iter::successors(Some(error), |&error| error.source()).find_map(|error| -> Option<&'a dyn Retryable> {
        if let Some(error) = error.downcast_ref::<WriteError>() {
            return Some(error);
        }
        Some(error.downcast_ref::<Doubt>()?)
    })
}

#[cfg(test)]
mod tests {
    use std::fmt;
    use std::io;

    use super::*;

    /// Somebody's error around one of ours.
    #[derive(Debug)]
    struct Around {
        inner: WriteError,
        transparent: bool,
    }

    impl fmt::Display for Around {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("around")
        }
    }

    impl Error for Around {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            if self.transparent { self.inner.source() } else { Some(&self.inner) }
        }
    }

    fn cause() -> io::Error {
        io::Error::other("cause")
    }

    #[test]
    fn what_is_in_doubt_is_found_in_any_error() {
        for transparent in [false, true] {
            for idempotent in [false, true] {
                let inner = WriteError::in_doubt(cause()).idempotent(idempotent);
                let failure = Failure::error(Around { inner, transparent });
                assert_eq!(failure.may_retry(), idempotent, "transparent: {transparent}");
                assert!(!failure.is_permanent());
            }
            let failure = Failure::error(Around { inner: WriteError::not_written(cause()), transparent });
            assert!(failure.may_retry());
        }
    }

    #[test]
    fn failures_of_other_kinds() {
        assert!(Failure::error(cause()).may_retry() && !Failure::error(cause()).is_permanent());
        assert!(Failure::error(WriteError::not_written(cause()).permanent(true)).is_permanent());
        assert!(Failure::Panicked("so".into()).may_retry());
        assert!(!Failure::Mismatch { expected: 2, got: 1 }.may_retry());
        assert!(!Failure::Closed.may_retry() && !Failure::Dropped.may_retry());
    }
}
