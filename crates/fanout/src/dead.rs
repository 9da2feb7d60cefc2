//! Dead letters: messages that a destination did not get.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use fullbore_core::{Event, Events, Failure, Refusal, contain};

use crate::here;

/// Why a message went to the dead letters.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum DeadReason {
    /// No route matched.
    Unroutable {
        /// What it was published under.
        topic: Arc<str>,
    },
    /// Newer messages pushed it out of a full buffer.
    Displaced {
        /// The subscription's name.
        destination: Arc<str>,
    },
    /// A destination did not take it.
    Refused {
        /// The route's name.
        destination: Arc<str>,
        /// Why.
        reason: Refusal,
    },
    /// A destination took it and failed or panicked.
    Failed {
        /// The route's name.
        destination: Arc<str>,
        /// How.
        failure: Failure,
    },
    /// It was older than its time to live when its turn came.
    Expired {
        /// The subscription's name.
        destination: Arc<str>,
        /// How long it had waited there.
        waited: Duration,
    },
    /// It was accepted, and nobody was left to handle it when the subscription ended.
    Abandoned {
        /// The subscription's name.
        destination: Arc<str>,
    },
}

impl DeadReason {
    /// The name of the destination that missed the message; `None` if there was none.
    #[must_use]
    pub fn destination(&self) -> Option<&str> {
        match self {
            DeadReason::Unroutable { .. } => None,
            DeadReason::Displaced { destination }
            | DeadReason::Refused { destination, .. }
            | DeadReason::Failed { destination, .. }
            | DeadReason::Expired { destination, .. }
            | DeadReason::Abandoned { destination } => Some(destination),
        }
    }
}

impl fmt::Display for DeadReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeadReason::Unroutable { topic } => write!(f, "nobody takes {topic}"),
            DeadReason::Displaced { destination } => write!(f, "displaced at {destination}"),
            DeadReason::Refused { destination, reason } => write!(f, "refused by {destination}: {reason}"),
            DeadReason::Failed { destination, failure } => write!(f, "failed at {destination}: {failure}"),
            DeadReason::Expired { destination, waited } => write!(f, "expired at {destination} after {waited:?}"),
            DeadReason::Abandoned { destination } => write!(f, "abandoned at {destination}"),
        }
    }
}

pub(crate) type Hook<M> = Arc<dyn Fn(Arc<M>, DeadReason) + Send + Sync>;

/// Where dead letters and events go. The subscriptions' threads hold it; it keeps nothing open.
pub(crate) struct Desk<M> {
    router: u64,
    hook: Option<Hook<M>>,
    events: Events,
}

impl<M> Desk<M> {
    pub(crate) fn new(router: u64, name: &str, hook: Option<Hook<M>>) -> Self {
        Self { router, hook, events: Events::new("fanout", name) }
    }

    pub(crate) fn has_hook(&self) -> bool {
        self.hook.is_some()
    }

    pub(crate) fn emit<D: fmt::Display>(&self, event: Event, detail: impl FnOnce() -> D) {
        self.events.emit(event, detail);
    }

    /// Hands a dead letter to the hook. The hook may panic through this.
    pub(crate) fn post(&self, message: Arc<M>, reason: DeadReason) {
        // What goes wrong inside the hook is not given to it again: it would call itself for ever.
        if let Some(hook) = &self.hook
            && let Some(_inside) = here::enter_hook(self.router)
        {
            self.emit(Event::DeadLetter, || &reason);
            hook(message, reason);
        } else {
            self.emit(Event::Drop, || &reason);
        }
    }

    /// As [`post`](Self::post), where no caller is to be told of a panic.
    pub(crate) fn post_contained(&self, message: Arc<M>, reason: DeadReason) {
        if let Err(failure) = contain(|| self.post(message, reason)) {
            self.emit(Event::Panic, || format!("dead-letter hook: {failure}"));
        }
    }
}
