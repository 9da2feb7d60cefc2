//! What became of a published message, destination by destination.

use std::fmt;
use std::sync::Arc;

use fullbore_core::Refusal;
use smallvec::SmallVec;

/// What became of a message at one destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Became {
    /// The destination took it. Accepted is not handled.
    Accepted,
    /// The destination took it, and lost a message for it: an older one, or, where everything accepted before was being worked
    /// on and nothing waited, this one.
    Displaced,
    /// The destination did not take it.
    Refused(Refusal),
}

/// What became of a message at each destination that matched. `matched = accepted + refused`, always. A
/// [group](crate::SubscriptionBuilder::group) counts as one destination.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use = "a destination may have refused the message"]
pub struct Receipt {
    /// Those that took it, and whether something was displaced.
    taken: SmallVec<[(Arc<str>, bool); 4]>,
    displaced: usize,
    refused: Vec<(Arc<str>, Refusal)>,
}

impl Receipt {
    pub(crate) fn took(&mut self, name: &Arc<str>, displaced: bool) {
        self.displaced += usize::from(displaced);
        self.taken.push((Arc::clone(name), displaced));
    }

    pub(crate) fn refuse(&mut self, name: &Arc<str>, reason: Refusal) {
        self.refused.push((Arc::clone(name), reason));
    }

    /// How many destinations matched. With none, the message went to the dead letters.
    #[must_use]
    pub fn matched(&self) -> usize {
        self.taken.len() + self.refused.len()
    }

    /// How many of them accepted it. Accepted is not handled.
    #[must_use]
    pub fn accepted(&self) -> usize {
        self.taken.len()
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

    /// Every destination that matched, by name, and what became of the message there: those that took it first.
    pub fn destinations(&self) -> impl Iterator<Item = (&str, Became)> {
        let became = |displaced: bool| if displaced { Became::Displaced } else { Became::Accepted };
        let taken = self.taken.iter().map(move |(name, displaced)| (&**name, became(*displaced)));
        taken.chain(self.refused.iter().map(|(name, reason)| (&**name, Became::Refused(*reason))))
    }

    /// Whether everybody who matched accepted it, and no message was lost for it.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.refused.is_empty() && self.displaced == 0
    }

    /// Whether nobody matched.
    #[must_use]
    pub fn is_unroutable(&self) -> bool {
        self.matched() == 0
    }
}

impl fmt::Display for Receipt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} accepted", self.accepted(), self.matched())?;
        if self.displaced > 0 {
            write!(f, ", {} displaced", self.displaced)?;
        }
        for (name, reason) in &self.refused {
            write!(f, ", {name}: {reason}")?;
        }
        Ok(())
    }
}

/// What became of the messages of a [`publish_batch`](crate::Router::publish_batch), in sum. `matched = accepted + refused`,
/// always.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use = "a destination may have refused a message"]
pub struct BatchReceipt {
    messages: usize,
    unroutable: usize,
    accepted: usize,
    displaced: usize,
    refused: Vec<(usize, Arc<str>, Refusal)>,
}

impl BatchReceipt {
    pub(crate) fn add(&mut self, receipt: Receipt) {
        self.unroutable += usize::from(receipt.is_unroutable());
        self.accepted += receipt.accepted();
        self.displaced += receipt.displaced();
        let at = self.messages;
        self.refused.extend(receipt.refused.into_iter().map(|(name, reason)| (at, name, reason)));
        self.messages += 1;
    }

    /// How many messages were published.
    #[must_use]
    pub fn messages(&self) -> usize {
        self.messages
    }

    /// How many of them nobody matched. They went to the dead letters.
    #[must_use]
    pub fn unroutable(&self) -> usize {
        self.unroutable
    }

    /// How many deliveries there were to be: of each message to each destination that matched it.
    #[must_use]
    pub fn matched(&self) -> usize {
        self.accepted + self.refused.len()
    }

    /// How many of them were accepted.
    #[must_use]
    pub fn accepted(&self) -> usize {
        self.accepted
    }

    /// How many of those that were accepted displaced a message. See [`Receipt::displaced`].
    #[must_use]
    pub fn displaced(&self) -> usize {
        self.displaced
    }

    /// Which deliveries were refused: the message's number in the batch, the destination's name, and why.
    #[must_use]
    pub fn refused(&self) -> &[(usize, Arc<str>, Refusal)] {
        &self.refused
    }

    /// Whether everybody accepted everything, and no message was lost for it.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.refused.is_empty() && self.displaced == 0
    }
}

impl fmt::Display for BatchReceipt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} messages, {} of {} deliveries accepted", self.messages, self.accepted, self.matched())?;
        if self.displaced > 0 {
            write!(f, ", {} displaced", self.displaced)?;
        }
        Ok(())
    }
}
