//! Why the second tier did not do what it was asked.

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use fullbore_core::Failure;
use fullbore_limit::Open;
use fullbore_pool::GetError;
use redis::{RedisError, ServerErrorKind};

/// The second tier could not be asked, refused, or was asked for what it does not do. Cheap to clone.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum TierError {
    /// The breaker is open: Redis failed before, and was not asked.
    Open(Open),
    /// There was no answer within the budget. What was asked may have been done.
    TimedOut {
        /// How long the step had.
        budget: Duration,
    },
    /// There is no connection to Redis.
    Connect(Arc<dyn Error + Send + Sync>),
    /// The connection broke. What was asked may have been done.
    Io(Arc<RedisError>),
    /// Redis answered with an error.
    Refused {
        /// Its first word, such as `OOM` or `NOPERM`.
        code: Arc<str>,
        /// The rest of it.
        detail: Arc<str>,
    },
    /// The connection that tells of changes is down: nobody could say when another process has loaded the key.
    LinkDown,
    /// The key in bytes is longer than `max_key`.
    KeyTooLarge {
        /// Its length.
        length: usize,
        /// The setting.
        max_key: usize,
    },
    /// The value in bytes is longer than `max_value`.
    ValueTooLarge {
        /// Its length.
        length: usize,
        /// The setting.
        max_value: usize,
    },
    /// The codec refused the value, or its tags are too many or too long.
    Unwritable(Failure),
    /// Another process has loaded for longer than the caller wants to wait.
    WaitedInVain,
    /// Too many writes wait in the background.
    QueueFull,
    /// The tier is closed, or belongs to the parent of this process.
    Closed,
}

impl TierError {
    /// Whether Redis could not be reached, did not answer or refused: of no interest to who has another source. The other errors
    /// are of what it was asked for.
    #[must_use]
    pub const fn is_unavailable(&self) -> bool {
        matches!(
            self,
            TierError::Open(_)
                | TierError::TimedOut { .. }
                | TierError::Connect(_)
                | TierError::Io(_)
                | TierError::Refused { .. }
                | TierError::LinkDown
                | TierError::Closed
        )
    }

    /// Whether the time was up.
    #[must_use]
    pub const fn is_timeout(&self) -> bool {
        matches!(self, TierError::TimedOut { .. } | TierError::WaitedInVain)
    }

    /// Whether the key or the value is larger than allowed. Trying again is of no use.
    #[must_use]
    pub const fn is_oversized(&self) -> bool {
        matches!(self, TierError::KeyTooLarge { .. } | TierError::ValueTooLarge { .. })
    }

    /// Whether the breaker was open and Redis was not asked.
    #[must_use]
    pub const fn is_open(&self) -> bool {
        matches!(self, TierError::Open(_))
    }

    /// The setting of the tier that decided, if one did.
    #[must_use]
    pub const fn setting(&self) -> Option<&'static str> {
        match self {
            TierError::TimedOut { .. } => Some("budget"),
            TierError::KeyTooLarge { .. } => Some("max_key"),
            TierError::ValueTooLarge { .. } => Some("max_value"),
            TierError::Open(_) => Some("breaker"),
            TierError::QueueFull => Some("writes"),
            _ => None,
        }
    }

    pub(crate) fn io(error: RedisError, budget: Duration) -> Self {
        if error.is_timeout() {
            return TierError::TimedOut { budget };
        }
        if let Some(code) = error.code() {
            return TierError::Refused { code: code.into(), detail: error.detail().unwrap_or_default().into() };
        }
        TierError::Io(Arc::new(error))
    }

    pub(crate) fn get(error: &GetError<RedisError>, budget: Duration) -> Self {
        if error.is_closed() || error.is_forked() {
            return TierError::Closed;
        }
        match error.connect_error() {
            Some(said) if !error.is_timeout() => {
                TierError::Connect(Arc::from(Box::<dyn Error + Send + Sync>::from(said.to_string())))
            }
            _ => TierError::TimedOut { budget },
        }
    }
}

/// Whether an answer says that Redis does not serve at the moment, so that it counts as a failure.
pub(crate) fn is_no_service(error: &RedisError) -> bool {
    use redis::ErrorKind::Server;
    match error.kind() {
        Server(kind) => matches!(
            kind,
            ServerErrorKind::BusyLoading
                | ServerErrorKind::MasterDown
                | ServerErrorKind::ClusterDown
                | ServerErrorKind::ReadOnly
                | ServerErrorKind::TryAgain
        ),
        redis::ErrorKind::Extension => error.code() == Some("BUSY"),
        _ => true,
    }
}

impl fmt::Display for TierError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TierError::Open(open) => write!(f, "Redis was not asked: {open}"),
            TierError::TimedOut { budget } => write!(f, "no answer of Redis within {budget:.1?} (setting budget)"),
            TierError::Connect(error) => write!(f, "no connection to Redis: {error}"),
            TierError::Io(error) => write!(f, "the connection to Redis broke: {error}"),
            TierError::Refused { code, detail } => write!(f, "Redis refused: {code} {detail}"),
            TierError::LinkDown => f.write_str("the connection that tells of changes in Redis is down"),
            TierError::KeyTooLarge { length, max_key } => {
                write!(f, "a key of {length} bytes, more than the {max_key} of the setting max_key")
            }
            TierError::ValueTooLarge { length, max_value } => {
                write!(f, "a value of {length} bytes, more than the {max_value} of the setting max_value")
            }
            TierError::Unwritable(failure) => write!(f, "the value cannot be written: {failure}"),
            TierError::WaitedInVain => f.write_str("another process has not loaded the key in time"),
            TierError::QueueFull => f.write_str("too many writes to Redis wait in the background (setting writes)"),
            TierError::Closed => f.write_str("the second tier is closed"),
        }
    }
}

impl Error for TierError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            TierError::Io(error) => Some(&**error),
            TierError::Connect(error) => Some(&**error),
            TierError::Unwritable(failure) => failure.source(),
            _ => None,
        }
    }
}
