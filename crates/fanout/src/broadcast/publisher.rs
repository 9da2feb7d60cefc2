//! The sending side.

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use fullbore_core::{Patience, SendError, Sink};

use super::Shared;
use super::ring::Moving;
use super::seat::{Me, Seat};

/// A handle to publish with. Cheap to clone; it does not keep the broadcast open.
///
/// A message that is published is in the ring, once, for all who subscribe. Publishers see one order: each subscriber gets the messages
/// in it, so those of one publisher in the order of its calls.
///
/// Clone one for each thread: the first thread that publishes much with a handle does so without a lock, as long as no other publishes;
/// through the same handle no second one will.
///
/// As a [`Sink`], `send` is [`publish`](Self::publish).
pub struct Publisher<T> {
    shared: Arc<Shared<T>>,
    /// Of the first thread that has published much with it. Others come to the lock.
    seat: OnceLock<Arc<Seat<T>>>,
}

impl<T> Publisher<T> {
    pub(super) fn new(shared: Arc<Shared<T>>) -> Self {
        Self { shared, seat: OnceLock::new() }
    }

    /// Publishes a message, waiting for subscriptions with [`LagPolicy::Block`](crate::LagPolicy::Block) that have as much as they may
    /// have, for at most [`max_wait`](crate::BroadcastBuilder::max_wait). It is published also if there is no subscription at all.
    ///
    /// # Errors
    /// The message, with the reason: [`Closed`](fullbore_core::Refusal::Closed); [`TimedOut`](fullbore_core::Refusal::TimedOut);
    /// [`Full`](fullbore_core::Refusal::Full) where it would wait for a subscriber whose callback runs on this thread, and so for itself.
    ///
    /// # Deadlock
    /// Waits in vain, up to `max_wait`, for a subscriber that the calling thread itself would have to read from.
    #[inline]
    pub fn publish(&self, message: T) -> Result<(), SendError<T>> {
        self.publish_with(message, Patience::Policy(None))
    }

    /// Publishes a message if nobody has to be waited for.
    ///
    /// # Errors
    /// The message: [`Full`](fullbore_core::Refusal::Full) or [`Closed`](fullbore_core::Refusal::Closed).
    #[inline]
    pub fn try_publish(&self, message: T) -> Result<(), SendError<T>> {
        self.publish_with(message, Patience::Try)
    }

    /// As [`publish`](Self::publish), but waits no longer than until `deadline`.
    ///
    /// # Errors
    /// As [`publish`](Self::publish).
    pub fn publish_deadline(&self, message: T, deadline: Instant) -> Result<(), SendError<T>> {
        self.publish_with(message, Patience::Policy(Some(deadline)))
    }

    /// Publishes all of these in order, emptying the vector: at a lower price for each than one by one, with nobody's in between unless
    /// it has to wait. Each wait for room is as long as in [`publish`](Self::publish).
    ///
    /// # Errors
    /// As [`publish`](Self::publish), with the number of messages that were not published; they stay in the vector, in order.
    pub fn publish_all(&self, messages: &mut Vec<T>) -> Result<(), SendError<usize>> {
        let mut moving = Moving::new(messages);
        let result = self.shared.hub.publish_all(&mut moving, Patience::Policy(None), Me::here(), &self.seat);
        let left = moving.left();
        drop(moving);
        match result {
            Ok(waited) => {
                self.note_wait(waited);
                Ok(())
            }
            Err(reason) => {
                self.shared.station.refused(left);
                Err(SendError::new(left, reason))
            }
        }
    }

    #[inline]
    fn publish_with(&self, message: T, patience: Patience) -> Result<(), SendError<T>> {
        match self.shared.hub.publish(message, patience, Me::here(), &self.seat) {
            Ok(waited) => {
                self.note_wait(waited);
                Ok(())
            }
            Err((message, reason)) => {
                self.shared.station.refused(1);
                Err(SendError::new(message, reason))
            }
        }
    }

    #[inline]
    fn note_wait(&self, waited: Duration) {
        if !waited.is_zero() {
            self.shared.station.waited(waited);
        }
    }

    /// Whether nothing can be published any more.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.shared.hub.is_closed()
    }
}

impl<T: Send + Sync> Sink<T> for Publisher<T> {
    fn try_send(&self, item: T) -> Result<(), SendError<T>> {
        self.try_publish(item)
    }

    fn send_deadline(&self, item: T, deadline: Option<Instant>) -> Result<(), SendError<T>> {
        self.publish_with(item, Patience::Policy(deadline))
    }
}

impl<T> Clone for Publisher<T> {
    fn clone(&self) -> Self {
        Self::new(Arc::clone(&self.shared))
    }
}

impl<T> fmt::Debug for Publisher<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Publisher").field("broadcast", &self.shared.name).finish_non_exhaustive()
    }
}
