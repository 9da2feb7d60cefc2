//! The router as a target of others.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use fullbore_core::{Patience, Refusal, SendError, Sink};

use crate::router::Router;

/// A router under one topic, as a sink of `M` and of `Arc<M>`. Made by [`Router::sink`].
///
/// An item is accepted if the router is open and not everybody who matches refuses it. If **all** refuse it comes back,
/// and to send it again duplicates nothing. If some do, it is accepted and their refusals go to the dead letters. If
/// nobody matches it is accepted and is a dead letter.
pub struct RouterSink<M> {
    router: Router<M>,
    topic: Arc<str>,
}

impl<M> RouterSink<M> {
    pub(crate) fn new(router: Router<M>, topic: &str) -> Self {
        Self { router, topic: topic.into() }
    }

    /// `Err` with the reason if the message was given to nobody. The refusals of a message that `unshare` cannot get back
    /// are dead letters.
    fn offer<T>(
        &self,
        item: T,
        patience: Patience,
        look: impl FnOnce(&T) -> &M,
        share: impl FnOnce(T) -> Arc<M>,
        unshare: impl FnOnce(Arc<M>) -> Result<T, Arc<M>>,
    ) -> Result<(), SendError<T>> {
        let shared = self.router.parts();
        // The topic was looked at when the sink was made, so it is never the fault.
        let Ok(admitted) = shared.admit(&self.topic, look(&item)) else {
            return Err(SendError::new(item, Refusal::Closed));
        };
        let message = share(item);
        let (delivery, matched) = shared.deliver(admitted, &self.topic, &message, patience);
        let message = match delivery.refused_by_all() {
            None => message,
            Some(reason) => match unshare(message) {
                Ok(item) => {
                    let _refused = shared.conclude(delivery, matched, None);
                    return Err(SendError::new(item, reason));
                }
                // Who refused it has kept a copy.
                Err(message) => message,
            },
        };
        let _receipt = shared.conclude(delivery, matched, Some(&message));
        Ok(())
    }
}

impl<M: Send + Sync> Sink<M> for RouterSink<M> {
    fn try_send(&self, item: M) -> Result<(), SendError<M>> {
        self.offer(item, Patience::Try, |item| item, Arc::new, Arc::try_unwrap)
    }

    fn send_deadline(&self, item: M, deadline: Option<Instant>) -> Result<(), SendError<M>> {
        self.offer(item, Patience::Policy(deadline), |item| item, Arc::new, Arc::try_unwrap)
    }
}

impl<M: Send + Sync> Sink<Arc<M>> for RouterSink<M> {
    fn try_send(&self, item: Arc<M>) -> Result<(), SendError<Arc<M>>> {
        self.offer(item, Patience::Try, |item| item, |item| item, Ok)
    }

    fn send_deadline(&self, item: Arc<M>, deadline: Option<Instant>) -> Result<(), SendError<Arc<M>>> {
        self.offer(item, Patience::Policy(deadline), |item| item, |item| item, Ok)
    }
}

impl<M> Clone for RouterSink<M> {
    fn clone(&self) -> Self {
        Self { router: self.router.clone(), topic: Arc::clone(&self.topic) }
    }
}

impl<M> fmt::Debug for RouterSink<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RouterSink").field("router", &self.router).field("topic", &self.topic).finish()
    }
}
