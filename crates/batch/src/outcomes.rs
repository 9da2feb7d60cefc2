//! What the process function may return.

use std::error::Error;
use std::fmt;

use fullbore_core::{Events, Failure};

/// What came of a batch of items with results `R`.
pub struct Outcomes<R>(pub(crate) Kind<R>);

pub(crate) enum Kind<R> {
    Done(Vec<R>),
    Each(Vec<Result<R, Failure>>),
    Failed(Failure),
}

impl<R> Outcomes<R> {
    /// Every item was done; one result for each, in the order of the batch.
    #[must_use]
    pub fn done(results: Vec<R>) -> Self {
        Self(Kind::Done(results))
    }

    /// One outcome for each item, in the order of the batch.
    #[must_use]
    pub fn each(results: Vec<Result<R, Failure>>) -> Self {
        Self(Kind::Each(results))
    }

    /// The whole batch failed.
    #[must_use]
    pub fn failed(failure: Failure) -> Self {
        Self(Kind::Failed(failure))
    }
}

impl<R> Outcomes<R> {
    /// Refuses a wrong number of results. Their destructors are user code: two panics in one drop of all would abort.
    pub(crate) fn checked(self, expected: usize, events: &Events) -> Kind<R> {
        let got = match &self.0 {
            Kind::Done(results) => results.len(),
            Kind::Each(results) => results.len(),
            Kind::Failed(_) => expected,
        };
        if got == expected {
            return self.0;
        }
        match self.0 {
            Kind::Done(results) => results.into_iter().for_each(|result| events.contained(|| drop(result))),
            Kind::Each(results) => results.into_iter().for_each(|result| events.contained(|| drop(result))),
            Kind::Failed(failure) => return Kind::Failed(failure),
        }
        Kind::Failed(Failure::Mismatch { expected, got })
    }
}

impl<R> fmt::Debug for Outcomes<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::Done(results) => f.debug_tuple("Done").field(&results.len()).finish(),
            Kind::Each(results) => f.debug_tuple("Each").field(&results.len()).finish(),
            Kind::Failed(failure) => f.debug_tuple("Failed").field(failure).finish(),
        }
    }
}

/// What a process function may return: `R` is what each item's submitter gets.
///
/// | returned | `R` | meaning |
/// |---|---|---|
/// | `()` | `()` | all done |
/// | `Result<(), E>` | `()` | all done, or all failed |
/// | `Result<Vec<R>, E>` | `R` | one result for each item in order, or all failed |
/// | `Vec<Result<R, E>>` | `R` | each item for itself, in order |
///
/// A vector of another length than the batch fails all of it with [`Failure::Mismatch`]. Implement it for a type of your
/// own to return that.
pub trait IntoOutcomes<R> {
    /// What came of a batch of `items` items. It runs on the batcher's thread; a panic fails the batch.
    fn into_outcomes(self, items: usize) -> Outcomes<R>;
}

impl<R> IntoOutcomes<R> for Outcomes<R> {
    fn into_outcomes(self, _items: usize) -> Outcomes<R> {
        self
    }
}

impl IntoOutcomes<()> for () {
    fn into_outcomes(self, items: usize) -> Outcomes<()> {
        // A vector of units takes no memory.
        Outcomes::done(vec![(); items])
    }
}

impl<E: Into<Box<dyn Error + Send + Sync>>> IntoOutcomes<()> for Result<(), E> {
    fn into_outcomes(self, items: usize) -> Outcomes<()> {
        match self {
            Ok(()) => ().into_outcomes(items),
            Err(error) => Outcomes::failed(Failure::error(error)),
        }
    }
}

impl<R, E: Into<Box<dyn Error + Send + Sync>>> IntoOutcomes<R> for Result<Vec<R>, E> {
    fn into_outcomes(self, _items: usize) -> Outcomes<R> {
        match self {
            Ok(results) => Outcomes::done(results),
            Err(error) => Outcomes::failed(Failure::error(error)),
        }
    }
}

impl<R, E: Into<Box<dyn Error + Send + Sync>>> IntoOutcomes<R> for Vec<Result<R, E>> {
    fn into_outcomes(self, _items: usize) -> Outcomes<R> {
        Outcomes::each(self.into_iter().map(|result| result.map_err(Failure::error)).collect())
    }
}
