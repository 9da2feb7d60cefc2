//! What a route gives its messages to, where that is a sink.

use std::marker::PhantomData;
use std::sync::Arc;

use fullbore_core::{Patience, Refusal, SendError, Sink};

use crate::reserve::{Place, Reserve};

/// A place that is kept, or why there is none.
pub(crate) type Reserved<'a, M> = Result<Box<dyn Place<Arc<M>> + 'a>, Refusal>;

/// A sink of whatever the message is made into.
pub(crate) trait Target<M>: Send + Sync {
    fn offer(&self, message: &Arc<M>, patience: Patience) -> Result<(), Refusal>;

    /// `None` if it cannot keep places.
    fn reserve(&self, _patience: Patience) -> Option<Reserved<'_, M>> {
        None
    }
}

fn send<T, S: Sink<T>>(sink: &S, item: T, patience: Patience) -> Result<(), SendError<T>> {
    match patience {
        Patience::Try => sink.try_send(item),
        Patience::Policy(Some(deadline)) => sink.send_deadline(item, Some(deadline)),
        _ => sink.send(item),
    }
}

/// Takes the message as it is.
pub(crate) struct Plain<S>(pub(crate) S);

impl<M: Send + Sync, S: Sink<Arc<M>>> Target<M> for Plain<S> {
    fn offer(&self, message: &Arc<M>, patience: Patience) -> Result<(), Refusal> {
        send(&self.0, Arc::clone(message), patience).map_err(|error| error.reason())
    }
}

/// The same, and can keep places.
pub(crate) struct Reserving<S>(pub(crate) S);

impl<M: Send + Sync, S: Reserve<Arc<M>>> Target<M> for Reserving<S> {
    fn offer(&self, message: &Arc<M>, patience: Patience) -> Result<(), Refusal> {
        send(&self.0, Arc::clone(message), patience).map_err(|error| error.reason())
    }

    fn reserve(&self, patience: Patience) -> Option<Reserved<'_, M>> {
        Some(self.0.reserve(patience))
    }
}

/// Takes what a closure makes of the message, if it makes anything of it.
pub(crate) struct Mapped<F, S, T> {
    pub(crate) map: F,
    pub(crate) sink: S,
    pub(crate) made: PhantomData<fn(T)>,
}

impl<M: Send + Sync, T, F: Fn(&M) -> Option<T> + Send + Sync, S: Sink<T>> Target<M> for Mapped<F, S, T> {
    fn offer(&self, message: &Arc<M>, patience: Patience) -> Result<(), Refusal> {
        match (self.map)(message) {
            Some(item) => send(&self.sink, item, patience).map_err(|error| error.reason()),
            None => Ok(()),
        }
    }
}
