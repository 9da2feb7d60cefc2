//! A job, what became of an attempt, and what nobody could do.

use std::error::Error;
use std::fmt;
use std::ops::Deref;
use std::time::Instant;

use fullbore_core::{CallerSpan, Failure};

/// A job as its handler sees it. Dereferences to what was sent.
pub struct Job<J> {
    pub(crate) item: J,
    pub(crate) id: u64,
    pub(crate) attempt: u32,
    pub(crate) accepted: Instant,
    pub(crate) span: CallerSpan,
}

impl<J> Job<J> {
    /// Its number in this queue, in the order of acceptance.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Which attempt this is; the first is 1.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.attempt
    }
}

impl<J> Deref for Job<J> {
    type Target = J;
    fn deref(&self) -> &J {
        &self.item
    }
}

impl<J> fmt::Debug for Job<J> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Job").field("id", &self.id).field("attempt", &self.attempt).finish_non_exhaustive()
    }
}

/// What a handler says about an attempt.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Verdict {
    /// Done.
    Done,
    /// Went wrong; try again while attempts are left.
    Retry(Failure),
    /// Went wrong and always will: to the dead letters.
    Dead(Failure),
}

impl Verdict {
    /// Went wrong; try again while attempts are left.
    pub fn retry(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Verdict::Retry(Failure::error(error))
    }

    /// Went wrong and always will.
    pub fn dead(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Verdict::Dead(Failure::error(error))
    }
}

/// What a handler may return.
pub trait IntoVerdict {
    /// What it means.
    fn into_verdict(self) -> Verdict;
}

impl IntoVerdict for Verdict {
    fn into_verdict(self) -> Verdict {
        self
    }
}

impl IntoVerdict for () {
    fn into_verdict(self) -> Verdict {
        Verdict::Done
    }
}

impl<E: Into<Box<dyn Error + Send + Sync>>> IntoVerdict for Result<(), E> {
    fn into_verdict(self) -> Verdict {
        match self {
            Ok(()) => Verdict::Done,
            Err(error) => Verdict::retry(error),
        }
    }
}

/// A job that was given up.
#[non_exhaustive]
pub struct DeadLetter<J> {
    /// What was sent.
    pub item: J,
    /// How often it was tried.
    pub attempts: u32,
    /// Why it was given up: the last attempt's failure, or that it was displaced or dropped.
    pub failure: Failure,
}

impl<J> fmt::Debug for DeadLetter<J> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeadLetter")
            .field("attempts", &self.attempts)
            .field("failure", &self.failure)
            .finish_non_exhaustive()
    }
}
