//! Why there is no connection, and how a transaction ended.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use fullbore_core::Refusal;

/// What a pool looks like at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PoolState {
    /// The pool's name.
    pub name: String,
    /// The most connections there may be.
    pub max_size: usize,
    /// Connections there are: idle, out, being made and being closed.
    pub size: usize,
    /// Those that nobody uses.
    pub idle: usize,
    /// Threads in line.
    pub waiting: usize,
    /// How long the first in line has waited.
    pub oldest_wait: Duration,
}

impl PoolState {
    /// Connections that are not idle: out, being made or being closed.
    #[must_use]
    pub fn in_use(&self) -> usize {
        self.size.saturating_sub(self.idle)
    }
}

impl fmt::Display for PoolState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} of {} connections of {} busy, {} waiting, oldest {:.1?}",
            self.in_use(),
            self.max_size,
            self.name,
            self.waiting,
            self.oldest_wait
        )
    }
}

/// No connection. `E` is the manager's error.
#[derive(Debug)]
pub struct GetError<E> {
    kind: Kind<E>,
    state: Option<Box<PoolState>>,
}

#[derive(Debug)]
enum Kind<E> {
    Refused(Refusal),
    Connect(E),
}

impl<E> GetError<E> {
    pub(crate) fn refused(reason: Refusal, state: Option<Box<PoolState>>) -> Self {
        Self { kind: Kind::Refused(reason), state }
    }

    pub(crate) fn connect(error: E) -> Self {
        Self { kind: Kind::Connect(error), state: None }
    }

    /// Whether every connection was in use and the call does not wait.
    pub fn is_full(&self) -> bool {
        matches!(self.kind, Kind::Refused(Refusal::Full))
    }

    /// Whether the deadline came first.
    pub fn is_timeout(&self) -> bool {
        matches!(self.kind, Kind::Refused(Refusal::TimedOut))
    }

    /// Whether the pool is closed.
    pub fn is_closed(&self) -> bool {
        matches!(self.kind, Kind::Refused(Refusal::Closed))
    }

    /// What the manager said, if a connection could not be made.
    pub fn connect_error(&self) -> Option<&E> {
        match &self.kind {
            Kind::Connect(error) => Some(error),
            Kind::Refused(_) => None,
        }
    }

    /// As [`connect_error`](Self::connect_error), by value.
    ///
    /// # Errors
    /// This error again, if it is another.
    pub fn into_connect_error(self) -> Result<E, Self> {
        match self.kind {
            Kind::Connect(error) => Ok(error),
            Kind::Refused(_) => Err(self),
        }
    }

    /// What the pool looked like; there after a wait.
    pub fn state(&self) -> Option<&PoolState> {
        self.state.as_deref()
    }
}

impl<E: fmt::Display> fmt::Display for GetError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            Kind::Connect(error) => write!(f, "cannot connect: {error}")?,
            Kind::Refused(Refusal::Full) => f.write_str("no connection free")?,
            Kind::Refused(Refusal::TimedOut) => f.write_str("timed out waiting for a connection")?,
            Kind::Refused(Refusal::Closed) => f.write_str("the pool is closed")?,
            Kind::Refused(reason) => write!(f, "no connection: {reason}")?,
        }
        match &self.state {
            Some(state) => write!(f, ": {state}"),
            None => Ok(()),
        }
    }
}

impl<E: Error + 'static> Error for GetError<E> {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match &self.kind {
            Kind::Connect(error) => Some(error),
            Kind::Refused(_) => None,
        }
    }
}

/// Why a transaction did not do its work. `E` is the error of its body, `D` the manager's.
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
