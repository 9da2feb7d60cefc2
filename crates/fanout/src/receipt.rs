//! What became of a published message, destination by destination.

use std::fmt;
use std::sync::Arc;

use fullbore_core::Refusal;

/// What became of a message at each destination that matched. `matched = accepted + refused`, always.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use = "a destination may have refused the message"]
pub struct Receipt {
    pub(crate) matched: usize,
    pub(crate) accepted: usize,
    pub(crate) displaced: usize,
    pub(crate) refused: Vec<(Arc<str>, Refusal)>,
}

impl Receipt {
    /// How many destinations matched. With none, the message went to the dead letters.
    #[must_use]
    pub fn matched(&self) -> usize {
        self.matched
    }

    /// How many of them accepted it. Accepted is not handled.
    #[must_use]
    pub fn accepted(&self) -> usize {
        self.accepted
    }

    /// How many of those that accepted it displaced a message for it: an older one, or, where everything accepted before
    /// was being worked on and nothing waited, this one.
    #[must_use]
    pub fn displaced(&self) -> usize {
        self.displaced
    }

    /// Who refused it, by name, and why.
    #[must_use]
    pub fn refused(&self) -> &[(Arc<str>, Refusal)] {
        &self.refused
    }

    /// Whether everybody who matched accepted it, and no message was lost for it.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.refused.is_empty() && self.displaced == 0
    }

    /// Whether nobody matched.
    #[must_use]
    pub fn is_unroutable(&self) -> bool {
        self.matched == 0
    }
}

impl fmt::Display for Receipt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} accepted", self.accepted, self.matched)?;
        if self.displaced > 0 {
            write!(f, ", {} displaced", self.displaced)?;
        }
        for (name, reason) in &self.refused {
            write!(f, ", {name}: {reason}")?;
        }
        Ok(())
    }
}
