//! Errors that say why, and give the item back.

use std::any::Any;
use std::borrow::Cow;
use std::error::Error;
use std::fmt;
use std::io;
use std::sync::Arc;

/// Why an item was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Refusal {
    /// The buffer was full and the call does not wait.
    Full,
    /// The buffer stayed full until the deadline.
    TimedOut,
    /// The target no longer takes items.
    Closed,
    /// The target sheds load: too many wait already.
    Shed,
    /// The item is larger than the target takes. Trying again is of no use.
    Oversized,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Refusal::Full => "full",
            Refusal::TimedOut => "timed out waiting for room",
            Refusal::Closed => "closed",
            Refusal::Shed => "too many wait already",
            Refusal::Oversized => "larger than allowed",
        })
    }
}

/// An item that was not accepted, with the reason. The item comes back through [`into_inner`](Self::into_inner).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SendError<T> {
    item: T,
    reason: Refusal,
}

impl<T> SendError<T> {
    /// `item`, refused for `reason`.
    pub const fn new(item: T, reason: Refusal) -> Self {
        Self { item, reason }
    }

    /// The item that was refused.
    pub fn into_inner(self) -> T {
        self.item
    }

    /// Why it was refused.
    pub const fn reason(&self) -> Refusal {
        self.reason
    }

    /// Whether there was no room and the call does not wait.
    pub const fn is_full(&self) -> bool {
        matches!(self.reason, Refusal::Full)
    }

    /// Whether there was no room until the deadline.
    pub const fn is_timeout(&self) -> bool {
        matches!(self.reason, Refusal::TimedOut)
    }

    /// Whether the target is closed. Trying again is of no use.
    pub const fn is_closed(&self) -> bool {
        matches!(self.reason, Refusal::Closed)
    }

    /// Whether the item is larger than the target takes. Trying again is of no use.
    pub const fn is_oversized(&self) -> bool {
        matches!(self.reason, Refusal::Oversized)
    }

    /// The same refusal of another form of the item.
    pub fn map<U>(self, f: impl FnOnce(T) -> U) -> SendError<U> {
        SendError { item: f(self.item), reason: self.reason }
    }
}

impl<T> fmt::Debug for SendError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SendError").field("reason", &self.reason).finish_non_exhaustive()
    }
}

impl<T> fmt::Display for SendError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "item not accepted: {}", self.reason)
    }
}

impl<T> Error for SendError<T> {}

/// What a close or a flush could not finish in time.
#[derive(PartialEq, Eq)]
#[non_exhaustive]
pub struct Undelivered<T> {
    /// Accepted items that were never worked on, in order.
    pub items: Vec<T>,
    /// How many items are still being worked on. Their outcome is not known.
    pub in_flight: usize,
    /// Names of our threads that are stuck in user code and were left behind.
    pub abandoned_threads: Vec<String>,
}

impl<T> Undelivered<T> {
    /// A report of what is left.
    #[must_use]
    pub const fn new(items: Vec<T>, in_flight: usize, abandoned_threads: Vec<String>) -> Self {
        Self { items, in_flight, abandoned_threads }
    }

    /// Whether nothing was left at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.items.is_empty() && self.in_flight == 0 && self.abandoned_threads.is_empty()
    }

    /// `Ok` if nothing was left.
    ///
    /// # Errors
    /// The report itself, if it names anything.
    pub fn into_result(self) -> Result<(), Self> {
        if self.is_empty() { Ok(()) } else { Err(self) }
    }
}

impl<T> fmt::Debug for Undelivered<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Undelivered")
            .field("items", &self.items.len())
            .field("in_flight", &self.in_flight)
            .field("abandoned_threads", &self.abandoned_threads)
            .finish()
    }
}

impl<T> fmt::Display for Undelivered<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} items undelivered, {} in flight", self.items.len(), self.in_flight)?;
        if !self.abandoned_threads.is_empty() {
            write!(f, ", threads left behind: {}", self.abandoned_threads.join(", "))?;
        }
        Ok(())
    }
}

impl<T> Error for Undelivered<T> {}

/// A flush that did not end. Nothing is lost: what was accepted is still going to be worked on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlushError {
    waiting: usize,
    in_flight: usize,
    own_thread: bool,
}

impl FlushError {
    /// A flush whose time was up, or that was called where it cannot wait (`own_thread`), and what was left then.
    #[must_use]
    pub const fn new(waiting: usize, in_flight: usize, own_thread: bool) -> Self {
        Self { waiting, in_flight, own_thread }
    }

    /// How many items waited when the flush gave up; those sent after it began are among them.
    #[must_use]
    pub const fn waiting(&self) -> usize {
        self.waiting
    }

    /// How many items were being worked on.
    #[must_use]
    pub const fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Whether the time was up.
    #[must_use]
    pub const fn is_timeout(&self) -> bool {
        !self.own_thread
    }

    /// Whether it was called from user code on one of the primitive's own threads: it would wait for itself.
    #[must_use]
    pub const fn is_own_thread(&self) -> bool {
        self.own_thread
    }
}

impl fmt::Display for FlushError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.own_thread { "a thread cannot wait for itself" } else { "the flush timed out" })?;
        write!(f, ": {} items waiting, {} in process", self.waiting, self.in_flight)
    }
}

impl Error for FlushError {}

/// Why work on an item failed. Cheap to clone: many waiters can share one failure.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Failure {
    /// User code returned this error.
    Error(Arc<dyn Error + Send + Sync>),
    /// User code panicked; the message, if it was text.
    Panicked(Arc<str>),
    /// User code gave back the wrong number of results for a batch.
    Mismatch {
        /// How many items went in.
        expected: usize,
        /// How many results came out.
        got: usize,
    },
    /// The primitive was closed before the item was worked on.
    Closed,
    /// The item was displaced by newer ones, or its worker vanished, before it was worked on.
    Dropped,
}

impl Failure {
    /// A failure from whatever user code returned.
    pub fn error(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Failure::Error(Arc::from(error.into()))
    }

    /// A failure from a caught panic's payload.
    #[must_use]
    pub fn panicked(payload: &(dyn Any + Send)) -> Self {
        let text = payload
            .downcast_ref::<&str>()
            .copied()
            .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
            .unwrap_or("a panic whose payload is not text");
        Failure::Panicked(Arc::from(text))
    }

    /// The user's own error, if it was one of type `E`.
    #[must_use]
    pub fn downcast_ref<E: Error + 'static>(&self) -> Option<&E> {
        match self {
            Failure::Error(error) => error.downcast_ref(),
            _ => None,
        }
    }

    /// Whether user code panicked.
    #[must_use]
    pub const fn is_panic(&self) -> bool {
        matches!(self, Failure::Panicked(_))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Error(error) => write!(f, "{error}"),
            Failure::Panicked(message) => write!(f, "panicked: {message}"),
            Failure::Mismatch { expected, got } => write!(f, "{got} results for {expected} items"),
            Failure::Closed => f.write_str("closed before it was worked on"),
            Failure::Dropped => f.write_str("dropped before it was worked on"),
        }
    }
}

impl Error for Failure {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Failure::Error(error) => error.source(),
            _ => None,
        }
    }
}

/// Runs user code and turns a panic into [`Failure::Panicked`].
///
/// No `UnwindSafe` bound: what the closure touched is ours to keep usable (C4). With `panic=abort` a panic ends the process.
///
/// # Errors
/// If `f` panicked.
pub fn contain<R>(f: impl FnOnce() -> R) -> Result<R, Failure> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(f)).map_err(|payload| {
        let failure = Failure::panicked(&*payload);
        // The payload is the user's: its destructor may panic as well, and must not take our thread with it.
        if let Err(again) = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(payload))) {
            std::mem::forget(again);
        }
        failure
    })
}

/// Why a primitive could not be built.
#[derive(Debug)]
#[non_exhaustive]
pub enum BuildError {
    /// A setting makes no sense.
    Config {
        /// The builder's setter or the environment variable.
        field: Cow<'static, str>,
        /// What it was set to.
        value: String,
        /// What would have been accepted.
        expected: Cow<'static, str>,
    },
    /// A thread could not be started.
    Spawn(io::Error),
}

impl BuildError {
    /// A setting that makes no sense.
    pub fn config(
        field: impl Into<Cow<'static, str>>,
        value: impl fmt::Display,
        expected: impl Into<Cow<'static, str>>,
    ) -> Self {
        BuildError::Config { field: field.into(), value: value.to_string(), expected: expected.into() }
    }

    /// The offending setting, if it was one.
    #[must_use]
    pub fn field(&self) -> Option<&str> {
        match self {
            BuildError::Config { field, .. } => Some(field),
            BuildError::Spawn(_) => None,
        }
    }

    /// Refuses zero for `field`.
    ///
    /// # Errors
    /// If `value` is zero.
    pub fn refuse_zero(field: &'static str, value: usize) -> Result<(), Self> {
        if value == 0 { Err(Self::config(field, value, "at least 1")) } else { Ok(()) }
    }
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BuildError::Config { field, value, expected } => {
                write!(f, "{field} = {value} is not usable: expected {expected}")
            }
            BuildError::Spawn(error) => write!(f, "a thread could not be started: {error}"),
        }
    }
}

impl Error for BuildError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            BuildError::Spawn(error) => Some(error),
            BuildError::Config { .. } => None,
        }
    }
}
