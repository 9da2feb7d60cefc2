//! Why a permit was not given.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use fullbore_core::Refusal;

/// No permit.
#[derive(Debug)]
pub struct AcquireError {
    pub(crate) reason: Refusal,
    pub(crate) state: Option<Box<LimitState>>,
}

/// What a limit looked like when a permit was not given.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LimitState {
    /// The limit's name.
    pub name: String,
    /// Permits in all.
    pub permits: usize,
    /// Permits that are out.
    pub in_use: usize,
    /// Threads in line.
    pub waiting: usize,
    /// How long the first in line has waited.
    pub oldest_wait: Duration,
}

impl fmt::Display for LimitState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} of {} permits of {} in use, {} waiting, oldest {:.1?}",
            self.in_use, self.permits, self.name, self.waiting, self.oldest_wait
        )
    }
}

impl AcquireError {
    /// Why.
    #[must_use]
    pub fn reason(&self) -> Refusal {
        self.reason
    }

    /// Whether all permits were out and the call does not wait.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.reason == Refusal::Full
    }

    /// Whether all permits were out until the deadline.
    #[must_use]
    pub fn is_timeout(&self) -> bool {
        self.reason == Refusal::TimedOut
    }

    /// Whether too many waited already.
    #[must_use]
    pub fn is_shed(&self) -> bool {
        self.reason == Refusal::Shed
    }

    /// Whether the limit is closed.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.reason == Refusal::Closed
    }

    /// What the limit looked like; there after a wait, and when the call was shed.
    #[must_use]
    pub fn state(&self) -> Option<&LimitState> {
        self.state.as_deref()
    }
}

impl fmt::Display for AcquireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.reason {
            Refusal::Full => "no permit free",
            Refusal::TimedOut => "timed out waiting for a permit",
            Refusal::Closed => "the limit is closed",
            Refusal::Shed => "no permit, and too many wait already",
            _ => "no permit",
        })?;
        match &self.state {
            Some(state) => write!(f, ": {state}"),
            None => Ok(()),
        }
    }
}

impl Error for AcquireError {}
