//! The owner, its handles, and its part in a shutdown.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fullbore_core::{Close, FlushError, Leftover, Patience, SendError, Sink, Undelivered};
use fullbore_metrics::Station;

use crate::config::BatcherBuilder;
use crate::engine::{Left, Shared};
use crate::error::CallError;
use crate::ticket::Ticket;

/// The owner of a batcher: items `T` in, results `R` out. Dropping it closes it, see
/// [`on_drop`](BatcherBuilder::on_drop); [`handle`](Self::handle) gives others a way in.
///
/// ```
/// use fullbore_batch::{Batch, Batcher};
/// use std::sync::mpsc;
///
/// let (stored, rows) = mpsc::channel();
/// let batcher = Batcher::builder().max_items(100).build(move |rows: Batch<u32>| stored.send(rows.into_vec()))?;
/// std::thread::scope(|scope| {
///     for n in 0..4 {
///         let handle = batcher.handle();
///         scope.spawn(move || handle.send(n));
///     }
/// });
/// batcher.close()?;
/// assert_eq!(rows.iter().flatten().sum::<u32>(), 6);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "dropping the batcher closes it"]
pub struct Batcher<T, R> {
    shared: Arc<Shared<T, R>>,
}

/// A way into a [`Batcher`]. A cheap handle; it does not keep the batcher open: after that is closed or dropped, every item
/// is refused with `Closed`.
pub struct BatchHandle<T, R> {
    shared: Arc<Shared<T, R>>,
}

impl<T> Batcher<T, ()> {
    /// Describes a batcher. The result type follows from the function given to [`BatcherBuilder::build`].
    #[must_use]
    pub fn builder() -> BatcherBuilder<T> {
        BatcherBuilder::default()
    }
}

/// What the owner and its handles have in common.
macro_rules! way_in {
    ($type:ident) => {
        impl<T, R> $type<T, R> {
            /// Offers an item, waiting for room as the overflow policy says (up to 30 s unless set otherwise). `Ok` means
            /// accepted, not processed. Inside the process function of the same batcher, which alone can make room, it
            /// never waits.
            ///
            /// # Errors
            /// The item, if there was no room or the batcher is closed.
            #[inline]
            pub fn send(&self, item: T) -> Result<(), SendError<T>> {
                self.shared.offer(item, Patience::Policy(None))
            }

            /// Offers an item without waiting.
            ///
            /// # Errors
            /// As [`send`](Self::send).
            pub fn try_send(&self, item: T) -> Result<(), SendError<T>> {
                self.shared.offer(item, Patience::Try)
            }

            /// As [`send`](Self::send), but never waits beyond `deadline`.
            ///
            /// # Errors
            /// As [`send`](Self::send).
            pub fn send_deadline(&self, item: T, deadline: Instant) -> Result<(), SendError<T>> {
                self.shared.offer(item, Patience::Policy(Some(deadline)))
            }

            /// As [`send`](Self::send), for an item whose own result is wanted.
            ///
            /// # Errors
            /// As [`send`](Self::send).
            pub fn submit(&self, item: T) -> Result<Ticket<R>, SendError<T>> {
                self.shared.submit(item, Patience::Policy(None))
            }

            /// As [`submit`](Self::submit), without waiting for room.
            ///
            /// # Errors
            /// As [`send`](Self::send).
            pub fn try_submit(&self, item: T) -> Result<Ticket<R>, SendError<T>> {
                self.shared.submit(item, Patience::Try)
            }

            /// As [`submit`](Self::submit), but never waits for room beyond `deadline`.
            ///
            /// # Errors
            /// As [`send`](Self::send).
            pub fn submit_deadline(&self, item: T, deadline: Instant) -> Result<Ticket<R>, SendError<T>> {
                self.shared.submit(item, Patience::Policy(Some(deadline)))
            }

            /// Submits an item and waits for its result: for room as the overflow policy says, then until a worker is idle (or, with
            /// [`eager_when_idle`](BatcherBuilder::eager_when_idle) off, for the linger), then as long as the process function
            /// takes.
            ///
            /// # Errors
            /// Why there is no result; with the item if it was not accepted.
            ///
            /// # Deadlock
            /// Never ends if the process function never returns; [`call_deadline`](Self::call_deadline) does. Inside the
            /// process function of the same batcher it is refused at once.
            pub fn call(&self, item: T) -> Result<R, CallError<T>> {
                self.shared.call(item, None)
            }

            /// As [`call`](Self::call), but ends at `deadline`. An item that was accepted by then may still be processed.
            ///
            /// # Errors
            /// As [`call`](Self::call).
            pub fn call_deadline(&self, item: T, deadline: Instant) -> Result<R, CallError<T>> {
                self.shared.call(item, Some(deadline))
            }

            /// Waits until everything accepted before the call is processed and its tickets are resolved, without
            /// lingering. Items sent later do not prolong it.
            ///
            /// # Errors
            /// Only inside the process function of the same batcher, where it cannot wait.
            ///
            /// # Deadlock
            /// Never ends if the process function never returns; [`flush_within`](Self::flush_within) does.
            pub fn flush(&self) -> Result<(), FlushError> {
                self.shared.flush(None)
            }

            /// As [`flush`](Self::flush), for at most `limit`. What is not processed by then still will be.
            ///
            /// # Errors
            /// If the time was up, with what is left; as [`flush`](Self::flush).
            pub fn flush_within(&self, limit: Duration) -> Result<(), FlushError> {
                self.shared.flush_within(limit)
            }

            /// Whether no more items are accepted.
            #[must_use]
            pub fn is_closed(&self) -> bool {
                self.shared.is_closed()
            }

            /// Its counts and times: an arrival is an item, a wait is that of an item, a service that of a batch.
            #[must_use]
            pub fn station(&self) -> &Station {
                self.shared.station()
            }
        }

        impl<T: Send, R: Send> Sink<T> for $type<T, R> {
            fn try_send(&self, item: T) -> Result<(), SendError<T>> {
                $type::try_send(self, item)
            }
            fn send_deadline(&self, item: T, deadline: Option<Instant>) -> Result<(), SendError<T>> {
                self.shared.offer(item, Patience::Policy(deadline))
            }
        }

        impl<T, R> fmt::Debug for $type<T, R> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($type)).field("station", self.station()).finish_non_exhaustive()
            }
        }
    };
}
way_in!(Batcher);
way_in!(BatchHandle);

impl<T, R> Batcher<T, R> {
    pub(crate) fn new(shared: Arc<Shared<T, R>>) -> Self {
        Self { shared }
    }

    /// A way in for others.
    #[must_use]
    pub fn handle(&self) -> BatchHandle<T, R> {
        BatchHandle { shared: Arc::clone(&self.shared) }
    }

    /// Says that the process function sends to `next`, whose back-pressure this batcher meets.
    pub fn feeds(&self, next: &Station) {
        self.station().feeds(next);
    }

    /// Refuses new items, wakes blocked senders with `Closed`, and waits until everything accepted is processed and the
    /// thread has ended. Idempotent.
    ///
    /// # Errors
    /// Inside the process function of the same batcher, where it cannot wait: what it has not begun comes back at once. Or
    /// if another [`close_within`](Self::close_within) meanwhile left the thread behind.
    ///
    /// # Deadlock
    /// Never ends if the process function never returns; [`close_within`](Self::close_within) does.
    pub fn close(&self) -> Result<(), Undelivered<T>> {
        self.shared.hand_back(self.shared.close(None))
    }

    /// As [`close`](Self::close), for at most `limit`. Items that the process function has not begun by then come back, and
    /// their tickets end with [`Failure::Closed`](fullbore_core::Failure::Closed). A batch in process goes on; if it ends
    /// later its results still reach their tickets. Calling it again waits for that.
    ///
    /// # Errors
    /// What was left when the time was up; as [`close`](Self::close).
    pub fn close_within(&self, limit: Duration) -> Result<(), Undelivered<T>> {
        self.shared.hand_back(self.shared.close_within(limit))
    }

    /// Its part in a [`Shutdown`](fullbore_core::Shutdown). Items that are left at its deadline go to the dead-letter hook.
    /// It does not keep the batcher open.
    #[must_use]
    pub fn closer(&self) -> impl Close + use<T, R>
    where
        T: Send + 'static,
        R: Send + 'static,
    {
        Closer { shared: Arc::clone(&self.shared) }
    }
}

impl<T, R> Drop for Batcher<T, R> {
    fn drop(&mut self) {
        let left = self.shared.close_within(self.shared.config().on_drop.budget());
        self.shared.give_up(left);
    }
}

impl<T, R> Clone for BatchHandle<T, R> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

struct Closer<T, R> {
    shared: Arc<Shared<T, R>>,
}

impl<T: Send, R: Send> Close for Closer<T, R> {
    fn name(&self) -> String {
        self.shared.config().name.clone()
    }

    fn close_within(&self, limit: Duration) -> Leftover {
        self.shared.give_up(self.shared.close_within(limit))
    }
}

/// The calls that are made of several steps.
impl<T, R> Shared<T, R> {
    fn submit(&self, item: T, patience: Patience) -> Result<Ticket<R>, SendError<T>> {
        let (ticket, reply) = Ticket::new(self.station().id(), self.clock().clone());
        self.offer_for(item, reply, patience)?;
        Ok(ticket)
    }

    fn call(&self, item: T, deadline: Option<Instant>) -> Result<R, CallError<T>> {
        if self.is_inside() {
            self.station().refused(1);
            return Err(CallError::OwnThread(item));
        }
        let ticket = self.submit(item, Patience::Policy(deadline)).map_err(CallError::Refused)?;
        self.hurry();
        let answer = match deadline {
            None => ticket.wait(),
            Some(deadline) => ticket.wait_deadline(deadline).map_err(|_| CallError::TimedOut)?,
        };
        answer.map_err(CallError::Failed)
    }

    fn flush_within(&self, limit: Duration) -> Result<(), FlushError> {
        self.flush(self.clock().after(limit))
    }

    fn close_within(&self, limit: Duration) -> Left<T, R> {
        self.close(self.clock().after(limit))
    }
}
