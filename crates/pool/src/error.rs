//! Why there is no connection.

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use fullbore_core::{Failure, Refusal};

/// What a pool looks like at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Status {
    /// The pool's name.
    pub name: String,
    /// The most connections there may be, without the reserve.
    pub max_size: usize,
    /// Connections there are: idle, out, being made and being closed.
    pub size: usize,
    /// Those that nobody uses.
    pub available: usize,
    /// Those that are being made.
    pub connecting: usize,
    /// Attempts to connect that were given up and have not come to an end.
    pub stuck: usize,
    /// Threads in line.
    pub waiting: usize,
    /// How long the first in line has waited.
    pub oldest_wait: Duration,
    /// Whether it is paused.
    pub paused: bool,
}

impl Status {
    /// Connections that are not idle: out, being made or being closed.
    #[must_use]
    pub fn in_use(&self) -> usize {
        self.size.saturating_sub(self.available)
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} of {} connections of {} busy, {} waiting, oldest {:.1?}",
            self.in_use(),
            self.max_size,
            self.name,
            self.waiting,
            self.oldest_wait
        )?;
        if self.connecting > 0 {
            write!(f, ", {} being made", self.connecting)?;
        }
        if self.stuck > 0 {
            write!(f, ", {} attempts to connect stuck", self.stuck)?;
        }
        if self.paused {
            f.write_str(", paused")?;
        }
        Ok(())
    }
}

/// How an attempt to connect failed. Many waiters share one.
#[derive(Debug)]
#[non_exhaustive]
pub enum ConnectError<E> {
    /// The manager's error.
    Manager(Arc<E>),
    /// The manager panicked.
    Panicked(Failure),
    /// The manager took longer than it was allowed, this long, and was given up.
    Stuck(Duration),
}

impl<E> ConnectError<E> {
    /// What the manager said, if it said anything.
    #[must_use]
    pub fn manager_error(&self) -> Option<&E> {
        match self {
            ConnectError::Manager(error) => Some(error),
            ConnectError::Panicked(_) | ConnectError::Stuck(_) => None,
        }
    }
}

impl<E> Clone for ConnectError<E> {
    fn clone(&self) -> Self {
        match self {
            ConnectError::Manager(error) => ConnectError::Manager(Arc::clone(error)),
            ConnectError::Panicked(failure) => ConnectError::Panicked(failure.clone()),
            ConnectError::Stuck(limit) => ConnectError::Stuck(*limit),
        }
    }
}

impl<E: fmt::Display> fmt::Display for ConnectError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConnectError::Manager(error) => write!(f, "{error}"),
            ConnectError::Panicked(failure) => write!(f, "{failure}"),
            ConnectError::Stuck(limit) => write!(f, "no answer within {limit:?}"),
        }
    }
}

impl<E: Error + 'static> Error for ConnectError<E> {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            ConnectError::Manager(error) => Some(&**error),
            ConnectError::Panicked(failure) => Some(failure),
            ConnectError::Stuck(_) => None,
        }
    }
}

/// No connection. `E` is the manager's error.
#[derive(Debug)]
pub struct GetError<E> {
    kind: Kind,
    /// That which is the reason, or the last one before a wait that was in vain, and how old it is.
    connect: Option<(ConnectError<E>, Duration)>,
    status: Option<Box<Status>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Refused(Refusal),
    Connect,
    Nested,
    Forked,
}

impl<E> GetError<E> {
    fn new(kind: Kind) -> Self {
        Self { kind, connect: None, status: None }
    }

    pub(crate) fn refused(reason: Refusal) -> Self {
        Self::new(Kind::Refused(reason))
    }

    pub(crate) fn connect(error: ConnectError<E>, age: Duration) -> Self {
        Self { connect: Some((error, age)), ..Self::new(Kind::Connect) }
    }

    pub(crate) fn nested() -> Self {
        Self::new(Kind::Nested)
    }

    pub(crate) fn forked() -> Self {
        Self::new(Kind::Forked)
    }

    /// With what the pool looked like, and what went wrong before.
    pub(crate) fn with(mut self, status: Option<Box<Status>>, connect: Option<(ConnectError<E>, Duration)>) -> Self {
        self.status = status;
        if self.connect.is_none() {
            self.connect = connect;
        }
        self
    }

    /// Whether no connection was idle and the call does not wait.
    pub fn is_full(&self) -> bool {
        self.kind == Kind::Refused(Refusal::Full)
    }

    /// Whether the deadline came first.
    pub fn is_timeout(&self) -> bool {
        self.kind == Kind::Refused(Refusal::TimedOut)
    }

    /// Whether the pool is closed.
    pub fn is_closed(&self) -> bool {
        self.kind == Kind::Refused(Refusal::Closed)
    }

    /// Whether too many threads waited already ([`max_waiters`](crate::PoolBuilder::max_waiters)).
    pub fn is_shed(&self) -> bool {
        self.kind == Kind::Refused(Refusal::Shed)
    }

    /// Whether there is none because none can be made.
    pub fn is_connect(&self) -> bool {
        self.kind == Kind::Connect
    }

    /// Whether the thread held a connection of this pool ([`nested`](crate::PoolBuilder::nested)).
    pub fn is_nested(&self) -> bool {
        self.kind == Kind::Nested
    }

    /// Whether this process is a child of the one that built the pool.
    pub fn is_forked(&self) -> bool {
        self.kind == Kind::Forked
    }

    /// What the manager said, if a connection could not be made: the reason, or, after a timeout, the last failure.
    pub fn connect_error(&self) -> Option<&E> {
        match &self.connect {
            Some((ConnectError::Manager(error), _)) => Some(error),
            _ => None,
        }
    }

    /// As [`connect_error`](Self::connect_error), by value, and whatever else went wrong.
    ///
    /// # Errors
    /// This error again, if there is none.
    pub fn into_connect_error(self) -> Result<ConnectError<E>, Self> {
        match self.connect {
            Some((error, _)) => Ok(error),
            None => Err(self),
        }
    }

    /// How long ago the attempt to connect failed that is told of here.
    pub fn connect_error_age(&self) -> Option<Duration> {
        self.connect.as_ref().map(|(_, age)| *age)
    }

    /// What the pool looked like; there after a wait, and where too many waited.
    pub fn status(&self) -> Option<&Status> {
        self.status.as_deref()
    }
}

impl<E: fmt::Display> fmt::Display for GetError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            Kind::Connect => f.write_str("cannot connect")?,
            Kind::Nested => f.write_str("this thread holds a connection of the pool already")?,
            Kind::Forked => f.write_str("the pool was built by the parent of this process")?,
            Kind::Refused(Refusal::Full) => f.write_str("no connection free")?,
            Kind::Refused(Refusal::TimedOut) => f.write_str("timed out waiting for a connection")?,
            Kind::Refused(Refusal::Closed) => f.write_str("the pool is closed")?,
            Kind::Refused(reason) => write!(f, "no connection: {reason}")?,
        }
        if let Some(status) = &self.status {
            write!(f, ": {status}")?;
        }
        match &self.connect {
            Some((error, age)) if self.kind == Kind::Connect && age.is_zero() => write!(f, ": {error}"),
            Some((error, age)) => write!(f, ": {error} ({age:.1?} ago)"),
            None => Ok(()),
        }
    }
}

impl<E: Error + 'static> Error for GetError<E> {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match &self.connect {
            Some((ConnectError::Manager(error), _)) => Some(&**error),
            Some((ConnectError::Panicked(failure), _)) => Some(failure),
            Some((ConnectError::Stuck(_), _)) | None => None,
        }
    }
}
