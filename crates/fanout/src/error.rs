//! What can go wrong, and why.

use std::error::Error;
use std::fmt;
use std::sync::Arc;

use fullbore_core::{BuildError, FlushError, Refusal};

/// A pattern or a topic that cannot be used, and where it is at fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Malformed {
    what: &'static str,
    text: Box<str>,
    position: usize,
    problem: Problem,
}

/// What is wrong with a pattern or a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Problem {
    /// It has no characters.
    Empty,
    /// Two dots in a row, or one at the start or the end.
    EmptySegment,
    /// `*` or `#` beside other characters: a wildcard is a whole segment.
    WildcardInSegment,
    /// `*` or `#` in a topic: messages are published under one topic, not under a pattern.
    WildcardInTopic,
    /// A control character.
    ControlCharacter,
    /// A pattern of more than 128 segments.
    TooManySegments,
}

impl Malformed {
    pub(crate) fn pattern(text: &str, position: usize, problem: Problem) -> Self {
        Self { what: "pattern", text: text.into(), position, problem }
    }

    pub(crate) fn topic(text: &str, position: usize, problem: Problem) -> Self {
        Self { what: "topic", text: text.into(), position, problem }
    }

    /// The byte at which it is at fault.
    #[must_use]
    pub fn position(&self) -> usize {
        self.position
    }

    /// What is wrong.
    #[must_use]
    pub fn problem(&self) -> Problem {
        self.problem
    }

    /// The pattern or topic as it was given.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let problem = match self.problem {
            Problem::Empty => "it is empty",
            Problem::EmptySegment => "empty segment",
            Problem::WildcardInSegment => "a wildcard has to be a whole segment",
            Problem::WildcardInTopic => "a topic has no wildcards",
            Problem::ControlCharacter => "control character",
            Problem::TooManySegments => "more than 128 segments",
        };
        write!(f, "{} {:?} at byte {}: {problem}", self.what, self.text, self.position)
    }
}

impl Error for Malformed {}

/// Why a route or a subscription was not made.
#[derive(Debug)]
#[non_exhaustive]
pub enum RouteError {
    /// The pattern cannot be read.
    Malformed(Malformed),
    /// The router is closed.
    Closed,
    /// The router has as many routes as it may have.
    TooMany {
        /// See [`RouterBuilder::max_routes`](crate::RouterBuilder::max_routes).
        max_routes: usize,
    },
    /// A setting makes no sense, or the thread could not be started.
    Build(BuildError),
}

impl RouteError {
    /// Whether the router is closed.
    #[must_use]
    pub const fn is_closed(&self) -> bool {
        matches!(self, RouteError::Closed)
    }

    /// What is wrong with the pattern, if that is it.
    #[must_use]
    pub const fn malformed(&self) -> Option<&Malformed> {
        match self {
            RouteError::Malformed(malformed) => Some(malformed),
            _ => None,
        }
    }
}

impl fmt::Display for RouteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RouteError::Malformed(malformed) => malformed.fmt(f),
            RouteError::Closed => f.write_str("the router is closed"),
            RouteError::TooMany { max_routes } => write!(f, "the router has {max_routes} routes, its maximum"),
            RouteError::Build(error) => error.fmt(f),
        }
    }
}

impl Error for RouteError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            RouteError::Malformed(malformed) => Some(malformed),
            RouteError::Build(error) => Some(error),
            RouteError::Closed | RouteError::TooMany { .. } => None,
        }
    }
}

impl From<Malformed> for RouteError {
    fn from(malformed: Malformed) -> Self {
        RouteError::Malformed(malformed)
    }
}

impl From<BuildError> for RouteError {
    fn from(error: BuildError) -> Self {
        RouteError::Build(error)
    }
}

/// Why a subscription has as many lanes as before.
#[derive(Debug)]
#[non_exhaustive]
pub enum ResizeError {
    /// It has no lanes.
    NoLanes,
    /// It has ended.
    Closed,
    /// A number of lanes that cannot be, or a thread that could not be started.
    Build(BuildError),
    /// What the lanes hold was not handled in time; or the caller is one of the router's own threads, which do not wait.
    NotDrained(FlushError),
}

impl ResizeError {
    /// Whether time was up.
    #[must_use]
    pub fn is_timeout(&self) -> bool {
        matches!(self, ResizeError::NotDrained(error) if error.is_timeout())
    }

    /// Whether the caller is one of the router's own threads.
    #[must_use]
    pub fn is_own_thread(&self) -> bool {
        matches!(self, ResizeError::NotDrained(error) if error.is_own_thread())
    }
}

impl fmt::Display for ResizeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ResizeError::NoLanes => f.write_str("the subscription has no lanes"),
            ResizeError::Closed => f.write_str("the subscription has ended"),
            ResizeError::Build(error) => error.fmt(f),
            ResizeError::NotDrained(error) => write!(f, "the lanes are not empty: {error}"),
        }
    }
}

impl Error for ResizeError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            ResizeError::Build(error) => Some(error),
            ResizeError::NotDrained(error) => Some(error),
            ResizeError::NoLanes | ResizeError::Closed => None,
        }
    }
}

impl From<BuildError> for ResizeError {
    fn from(error: BuildError) -> Self {
        ResizeError::Build(error)
    }
}

/// Why nothing was published to anybody.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    Closed,
    Malformed(Box<Malformed>),
    /// All or nothing: one of those that have to take it did not.
    Withheld(Arc<str>, Refusal),
    /// All or nothing: one of those that have to take it cannot promise to.
    NoReserve(Arc<str>),
}

/// A message that was published to nobody, with the reason. It comes back through [`into_inner`](Self::into_inner).
#[derive(Clone, PartialEq, Eq)]
pub struct PublishError<T> {
    item: T,
    fault: Fault,
}

impl<T> PublishError<T> {
    pub(crate) fn new(item: T, fault: Fault) -> Self {
        Self { item, fault }
    }

    /// The message.
    pub fn into_inner(self) -> T {
        self.item
    }

    pub(crate) fn into_parts(self) -> (T, Fault) {
        (self.item, self.fault)
    }

    /// Whether the router is closed.
    pub const fn is_closed(&self) -> bool {
        matches!(self.fault, Fault::Closed)
    }

    /// What is wrong with the topic, if that is it.
    pub fn malformed(&self) -> Option<&Malformed> {
        match &self.fault {
            Fault::Malformed(malformed) => Some(malformed),
            _ => None,
        }
    }

    /// Which destination refused, and why, if an all-or-nothing publish was withheld from all for it.
    pub fn withheld(&self) -> Option<(&str, Refusal)> {
        match &self.fault {
            Fault::Withheld(destination, reason) => Some((destination, *reason)),
            _ => None,
        }
    }

    /// Which destination cannot keep a place, if that is why an all-or-nothing publish was withheld: make it
    /// [optional](crate::RouteBuilder::optional), or a sink that [can](crate::Reserve).
    pub fn cannot_reserve(&self) -> Option<&str> {
        match &self.fault {
            Fault::NoReserve(destination) => Some(destination),
            _ => None,
        }
    }
}

impl<T> fmt::Debug for PublishError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PublishError").field("fault", &self.fault).finish_non_exhaustive()
    }
}

impl<T> fmt::Display for PublishError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.fault {
            Fault::Closed => f.write_str("not published: the router is closed"),
            Fault::Malformed(malformed) => write!(f, "not published: {malformed}"),
            Fault::Withheld(destination, reason) => write!(f, "given to nobody: refused by {destination}: {reason}"),
            Fault::NoReserve(destination) => {
                write!(f, "given to nobody: {destination} has to take it and cannot keep a place")
            }
        }
    }
}

impl<T> Error for PublishError<T> {}

/// Why a [`Receiver`](crate::Receiver) has no message to give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RecvError {
    /// None is there, and the call does not wait.
    Empty,
    /// None came until the deadline.
    TimedOut,
    /// None is there and none will come.
    Closed,
}

impl RecvError {
    /// Whether none was there and the call does not wait.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        matches!(self, RecvError::Empty)
    }

    /// Whether none came until the deadline.
    #[must_use]
    pub const fn is_timeout(&self) -> bool {
        matches!(self, RecvError::TimedOut)
    }

    /// Whether none will come any more.
    #[must_use]
    pub const fn is_closed(&self) -> bool {
        matches!(self, RecvError::Closed)
    }
}

impl fmt::Display for RecvError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            RecvError::Empty => "no message waits",
            RecvError::TimedOut => "timed out waiting for a message",
            RecvError::Closed => "closed, and every message was taken",
        })
    }
}

impl Error for RecvError {}
