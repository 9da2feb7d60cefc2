//! How a transaction ended that did not do its work.

use std::error::Error;
use std::fmt;

use crate::error::GetError;

/// Why a transaction did not do its work. `E` is the error of its body, `D` the manager's.
///
/// In all cases but [`InDoubt`](TransactionError::InDoubt) nothing of it is in the database, and doing it again does no harm. Who
/// retries by other means than [`Pool::retry_on`](crate::Pool::retry_on) must ask [`is_in_doubt`](Self::is_in_doubt): a batcher for
/// example does not know this error, and wants it as `WriteError::in_doubt(error)`.
#[derive(Debug)]
#[non_exhaustive]
pub enum TransactionError<E, D> {
    /// There was no connection. Nothing was done.
    Get(GetError<D>),
    /// The transaction could not be begun. Nothing was done.
    Begin(D),
    /// The body returned an error. Rolled back.
    Body(E),
    /// The database refused to commit. Rolled back.
    Commit(D),
    /// The connection was lost during COMMIT: **it may have been committed or not**. Never tried again by itself.
    InDoubt(D),
}

impl<E, D> TransactionError<E, D> {
    /// Whether nobody can say if the work was done.
    pub fn is_in_doubt(&self) -> bool {
        matches!(self, TransactionError::InDoubt(_))
    }

    /// The body's own error.
    pub fn body_error(&self) -> Option<&E> {
        match self {
            TransactionError::Body(error) => Some(error),
            _ => None,
        }
    }

    /// What the database said to BEGIN or COMMIT. What it said to a statement of the body is part of the body's own error, and
    /// why there was no connection is in [`Get`](TransactionError::Get).
    pub fn driver_error(&self) -> Option<&D> {
        match self {
            TransactionError::Begin(error) | TransactionError::Commit(error) | TransactionError::InDoubt(error) => {
                Some(error)
            }
            TransactionError::Get(_) | TransactionError::Body(_) => None,
        }
    }
}

impl<E: fmt::Display, D: fmt::Display> fmt::Display for TransactionError<E, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TransactionError::Get(error) => write!(f, "{error}"),
            TransactionError::Begin(error) => write!(f, "cannot begin a transaction: {error}"),
            TransactionError::Body(error) => write!(f, "rolled back: {error}"),
            TransactionError::Commit(error) => write!(f, "commit refused, rolled back: {error}"),
            TransactionError::InDoubt(error) => {
                write!(f, "connection lost during commit, committed or not is unknown: {error}")
            }
        }
    }
}

impl<E: Error + 'static, D: Error + 'static> Error for TransactionError<E, D> {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            TransactionError::Get(error) => Some(error),
            TransactionError::Body(error) => Some(error),
            TransactionError::Begin(error) | TransactionError::Commit(error) | TransactionError::InDoubt(error) => {
                Some(error)
            }
        }
    }
}
