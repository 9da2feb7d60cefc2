//! What came of writing a batch into a database, whichever it is.

use std::error::Error;
use std::fmt;

use fullbore_core::Failure;

use crate::outcomes::{IntoOutcomes, Outcomes};
use crate::retryable::Retryable;

/// Why something failed, of any type.
pub(crate) type Cause = Box<dyn Error + Send + Sync>;

/// A batch that is in the database: committed. A process function may return it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Written {
    rows: u64,
}

impl Written {
    #[cfg_attr(not(any(feature = "sqlite", feature = "postgres")), expect(dead_code, reason = "for the databases"))]
    pub(crate) const fn new(rows: u64) -> Self {
        Self { rows }
    }

    /// How many rows the database says it has added or changed. Fewer than there were items where the statement passes over
    /// some (`ON CONFLICT DO NOTHING`), or the items made other than one row each.
    #[must_use]
    pub const fn rows(self) -> u64 {
        self.rows
    }
}

impl<E: Into<Box<dyn Error + Send + Sync>>> IntoOutcomes<()> for Result<Written, E> {
    fn into_outcomes(self, items: usize) -> Outcomes<()> {
        self.map(|Written { .. }| ()).into_outcomes(items)
    }
}

/// A batch that is not known to be written: either it is not, or **nobody can say**.
///
/// The helpers for databases return it; for a database without one, make it yourself and the batcher will treat it alike.
#[derive(Debug)]
pub struct WriteError {
    kind: Kind,
    item: Option<usize>,
    permanent: bool,
}

#[derive(Debug)]
enum Kind {
    NotWritten(Cause),
    InDoubt(Doubt),
}

/// A link of its own in the chain of sources, see [`Retryable`]'s search.
#[derive(Debug)]
pub(crate) struct Doubt {
    cause: Cause,
    idempotent: bool,
}

impl WriteError {
    /// Nothing of the batch is in the database.
    #[must_use]
    pub fn not_written(cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { kind: Kind::NotWritten(cause.into()), item: None, permanent: false }
    }

    /// The connection was lost during COMMIT: all of the batch is in the database, or nothing.
    #[must_use]
    pub fn in_doubt(cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        let doubt = Doubt { cause: cause.into(), idempotent: false };
        Self { kind: Kind::InDoubt(doubt), item: None, permanent: false }
    }

    /// Whether writing the batch twice is the same as once, so that it may be retried even in doubt. Default: no.
    #[must_use]
    pub fn idempotent(mut self, yes: bool) -> Self {
        if let Kind::InDoubt(doubt) = &mut self.kind {
            doubt.idempotent = yes;
        }
        self
    }

    /// Whether the same batch would surely fail again. Default: no.
    #[must_use]
    pub fn permanent(mut self, yes: bool) -> Self {
        self.permanent = yes;
        self
    }

    /// The item that was to blame, by its place in the batch. Default: not known.
    #[must_use]
    pub fn at_item(mut self, item: usize) -> Self {
        self.item = Some(item);
        self
    }

    /// Whether nobody can say if the batch is in the database. If not, nothing of it is.
    #[must_use]
    pub const fn is_in_doubt(&self) -> bool {
        matches!(self.kind, Kind::InDoubt(_))
    }

    /// The item that was to blame, by its place in the batch, counted from 0. Not known where the database refused many rows at
    /// once.
    #[must_use]
    pub const fn item(&self) -> Option<usize> {
        self.item
    }

    /// What the driver said, what the closure that makes rows returned, or why there was no connection. Downcast it to the
    /// driver's error to match on its code.
    #[must_use]
    pub fn cause(&self) -> &(dyn Error + Send + Sync + 'static) {
        match &self.kind {
            Kind::NotWritten(cause) => &**cause,
            Kind::InDoubt(doubt) => &*doubt.cause,
        }
    }
}

impl Retryable for WriteError {
    fn may_retry(&self) -> bool {
        match &self.kind {
            Kind::NotWritten(_) => true,
            Kind::InDoubt(doubt) => doubt.may_retry(),
        }
    }

    fn is_permanent(&self) -> bool {
        self.permanent
    }
}

impl Retryable for Doubt {
    fn may_retry(&self) -> bool {
        self.idempotent
    }
}

impl From<WriteError> for Failure {
    fn from(error: WriteError) -> Self {
        Failure::error(error)
    }
}

impl fmt::Display for WriteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            Kind::NotWritten(cause) => {
                f.write_str("not written")?;
                if let Some(item) = self.item {
                    write!(f, " because of item {item}")?;
                }
                with_sources(&**cause, f)
            }
            Kind::InDoubt(doubt) => doubt.fmt(f),
        }
    }
}

impl fmt::Display for Doubt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the connection was lost during commit, written or not is unknown")?;
        with_sources(&*self.cause, f)
    }
}

/// What a row's maker is told if it keeps an error of `put` to itself: nobody can go on from there.
#[cfg(any(feature = "sqlite", feature = "postgres"))]
pub(crate) const NOT_PASSED_ON: &str = "an error of `put` was not passed on";

/// PostgreSQL's driver says "db error", and leaves what the server said to the source.
fn with_sources(cause: &(dyn Error + 'static), f: &mut fmt::Formatter<'_>) -> fmt::Result {
    std::iter::successors(Some(cause), |&error| error.source()).try_for_each(|error| write!(f, ": {error}"))
}

impl Error for WriteError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match &self.kind {
            Kind::NotWritten(cause) => Some(&**cause),
            Kind::InDoubt(doubt) => Some(doubt),
        }
    }
}

impl Error for Doubt {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&*self.cause)
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn it_says_why_and_whose_fault_it_was() {
        let error = WriteError::not_written(io::Error::other("disk full")).at_item(3);
        assert_eq!(error.to_string(), "not written because of item 3: disk full");
        assert!(!error.is_in_doubt() && error.item() == Some(3));
        assert!(error.cause().downcast_ref::<io::Error>().is_some());
        assert!(error.source().is_some_and(|source| source.is::<io::Error>()));

        let error = WriteError::in_doubt(io::Error::other("reset"));
        let text = "the connection was lost during commit, written or not is unknown: reset";
        assert_eq!((error.to_string(), Failure::from(error).to_string()), (text.to_owned(), text.to_owned()));
    }

    #[test]
    fn the_drivers_error_is_at_the_end_of_the_chain() {
        let error = WriteError::in_doubt(io::Error::other("reset"));
        assert!(error.cause().is::<io::Error>());
        let doubt = error.source().unwrap();
        assert!(doubt.source().is_some_and(|source| source.is::<io::Error>()));
    }
}
