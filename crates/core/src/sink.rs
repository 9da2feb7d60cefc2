//! Where items go: the trait that lets the primitives be put one behind the other.

use std::sync::Arc;
use std::time::Instant;

use crate::error::{Refusal, SendError};

/// Something that accepts items. Object-safe.
///
/// **`Ok` means accepted, not processed.** Batchers, routers, queue producers, pipelines and `crossbeam_channel::Sender`
/// are sinks, so a router can feed a batcher that feeds a queue.
pub trait Sink<T>: Send + Sync {
    /// Offers an item without waiting.
    ///
    /// # Errors
    /// The item, with the reason.
    fn try_send(&self, item: T) -> Result<(), SendError<T>>;

    /// Offers an item and waits for room as [`send`](Self::send) would, but never beyond `deadline` (`None`: no further
    /// limit).
    ///
    /// # Errors
    /// The item, with the reason.
    fn send_deadline(&self, item: T, deadline: Option<Instant>) -> Result<(), SendError<T>>;

    /// Offers an item and waits for room as the sink's [`Overflow`](crate::Overflow) policy says.
    ///
    /// # Errors
    /// The item, with the reason.
    fn send(&self, item: T) -> Result<(), SendError<T>> {
        self.send_deadline(item, None)
    }

    /// Sends every item of `items` and says how many were accepted. At a refusal the rest stays in the iterator.
    ///
    /// # Errors
    /// The refused item; those before it were accepted.
    fn send_all(&self, items: &mut dyn Iterator<Item = T>) -> Result<usize, SendError<T>> {
        let mut accepted = 0;
        for item in items {
            self.send(item)?;
            accepted += 1;
        }
        Ok(accepted)
    }
}

macro_rules! forward {
    ($($pointer:ty),*) => {$(
        impl<T, S: Sink<T> + ?Sized> Sink<T> for $pointer {
            fn try_send(&self, item: T) -> Result<(), SendError<T>> {
                (**self).try_send(item)
            }
            fn send_deadline(&self, item: T, deadline: Option<Instant>) -> Result<(), SendError<T>> {
                (**self).send_deadline(item, deadline)
            }
            fn send(&self, item: T) -> Result<(), SendError<T>> {
                (**self).send(item)
            }
            fn send_all(&self, items: &mut dyn Iterator<Item = T>) -> Result<usize, SendError<T>> {
                (**self).send_all(items)
            }
        }
    )*};
}
forward!(&S, Box<S>, Arc<S>);

impl<T: Send> Sink<T> for crossbeam_channel::Sender<T> {
    fn try_send(&self, item: T) -> Result<(), SendError<T>> {
        crossbeam_channel::Sender::try_send(self, item).map_err(|error| match error {
            crossbeam_channel::TrySendError::Full(item) => SendError::new(item, Refusal::Full),
            crossbeam_channel::TrySendError::Disconnected(item) => SendError::new(item, Refusal::Closed),
        })
    }

    fn send_deadline(&self, item: T, deadline: Option<Instant>) -> Result<(), SendError<T>> {
        let Some(deadline) = deadline else {
            return crossbeam_channel::Sender::send(self, item)
                .map_err(|error| SendError::new(error.into_inner(), Refusal::Closed));
        };
        crossbeam_channel::Sender::send_deadline(self, item, deadline).map_err(|error| match error {
            crossbeam_channel::SendTimeoutError::Timeout(item) => SendError::new(item, Refusal::TimedOut),
            crossbeam_channel::SendTimeoutError::Disconnected(item) => SendError::new(item, Refusal::Closed),
        })
    }
}

/// A sink from a function. The function takes the item or gives it back; it is called on the sender's thread and should
/// not wait.
///
/// ```
/// use fullbore_core::{Sink, sink};
/// use std::sync::Mutex;
///
/// let seen = Mutex::new(Vec::new());
/// let sink = sink::from_fn(|n: u32| Ok(seen.lock().unwrap().push(n)));
/// sink.send(7)?;
/// # drop(sink);
/// assert_eq!(seen.into_inner().unwrap(), [7]);
/// # Ok::<(), fullbore_core::SendError<u32>>(())
/// ```
pub fn from_fn<T, F>(f: F) -> FromFn<F>
where
    F: Fn(T) -> Result<(), SendError<T>> + Send + Sync,
{
    FromFn(f)
}

/// The sink that [`from_fn`] makes.
#[derive(Clone, Copy)]
pub struct FromFn<F>(F);

impl<F> std::fmt::Debug for FromFn<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FromFn").finish_non_exhaustive()
    }
}

impl<T, F> Sink<T> for FromFn<F>
where
    F: Fn(T) -> Result<(), SendError<T>> + Send + Sync,
{
    fn try_send(&self, item: T) -> Result<(), SendError<T>> {
        (self.0)(item)
    }
    fn send_deadline(&self, item: T, _deadline: Option<Instant>) -> Result<(), SendError<T>> {
        (self.0)(item)
    }
}
