//! Sinks that can keep a place for an item to come.

use fullbore_core::{Patience, Refusal, Sink};

/// A [`Sink`] that can keep a place, so that an all-or-nothing publish
/// ([`Router::publish_all_or_nothing`](crate::Router::publish_all_or_nothing)) can have it among those that must take the message.
/// Subscriptions and receivers of a router keep places by themselves; implement this for a bounded buffer of your own.
///
/// ```
/// use fullbore_core::{Patience, Refusal, SendError, Sink};
/// use fullbore_fanout::{Place, Reserve, Router};
/// use std::sync::{Arc, Mutex};
/// use std::time::Instant;
///
/// /// At most ten, kept or filled.
/// #[derive(Default)]
/// struct Ten { kept: Mutex<usize>, items: Mutex<Vec<Arc<u32>>> }
/// struct Kept<'a>(&'a Ten, bool);
///
/// impl Reserve<Arc<u32>> for Ten {
///     fn reserve(&self, _: Patience) -> Result<Box<dyn Place<Arc<u32>> + '_>, Refusal> {
///         let mut kept = self.kept.lock().unwrap();
///         if *kept == 10 {
///             return Err(Refusal::Full);
///         }
///         *kept += 1;
///         Ok(Box::new(Kept(self, false)))
///     }
/// }
/// impl Place<Arc<u32>> for Kept<'_> {
///     fn fill(mut self: Box<Self>, item: Arc<u32>) {
///         self.0.items.lock().unwrap().push(item);
///         self.1 = true;
///     }
/// }
/// impl Drop for Kept<'_> {
///     fn drop(&mut self) {
///         *self.0.kept.lock().unwrap() -= usize::from(!self.1);
///     }
/// }
/// impl Sink<Arc<u32>> for Ten {
///     fn try_send(&self, item: Arc<u32>) -> Result<(), SendError<Arc<u32>>> {
///         match self.reserve(Patience::Try) {
///             Ok(place) => Ok(place.fill(item)),
///             Err(reason) => Err(SendError::new(item, reason)),
///         }
///     }
///     fn send_deadline(&self, item: Arc<u32>, _: Option<Instant>) -> Result<(), SendError<Arc<u32>>> {
///         self.try_send(item)
///     }
/// }
///
/// let router = Router::new();
/// let ten = Arc::new(Ten::default());
/// router.bind("#").name("ten").reserving_sink(Arc::clone(&ten))?;
/// let other = router.subscribe("#").receiver()?;
/// for n in 0..12 {
///     let published = router.publish_all_or_nothing("t", n);
///     assert_eq!(published.is_ok(), n < 10);
/// }
/// assert_eq!((ten.items.lock().unwrap().len(), other.waiting()), (10, 10));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait Reserve<T>: Sink<T> {
    /// Keeps a place, waiting for one as `patience` says: `Try` does not wait, `Policy` waits as `send` would, until the
    /// deadline at most. The router waits in here only while it keeps no other place.
    ///
    /// # Errors
    /// Why there is none.
    fn reserve(&self, patience: Patience) -> Result<Box<dyn Place<T> + '_>, Refusal>;
}

/// A place that is kept. Dropping it gives it back.
pub trait Place<T> {
    /// Puts the item there. This cannot fail: not even when the sink was closed meanwhile.
    fn fill(self: Box<Self>, item: T);
}

impl<T, S: Reserve<T> + ?Sized> Reserve<T> for std::sync::Arc<S> {
    fn reserve(&self, patience: Patience) -> Result<Box<dyn Place<T> + '_>, Refusal> {
        (**self).reserve(patience)
    }
}
