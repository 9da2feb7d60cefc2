//! Batches by key: one open batch for each key, few threads for all of them. `README.md` beside this file has the states of a
//! key and the invariants.

mod chunk;
mod config;
mod engine;
mod hub;
mod keys;
mod offer;
mod room;
mod shard;
mod sync;
mod worker;

use std::fmt;
use std::hash::Hash;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fullbore_core::{BuildError, Close, FlushError, Leftover, Patience, SendError, Sink, Undelivered};
use fullbore_metrics::Station;

pub use self::config::{KeyedBatcherBuilder, KeyedConfig};
use self::engine::Shared;
use self::worker::Process;
use crate::error::CallError;
use crate::ticket::{Reply, Ticket};

/// The owner of a batcher that groups items `T` by key `K`: one open batch for each key, results `R` out. Dropping it closes it, see
/// [`on_drop`](KeyedBatcherBuilder::on_drop); [`handle`](Self::handle) gives others a way in.
///
/// ```
/// use fullbore_batch::{Batch, KeyedBatcher};
/// use std::sync::mpsc;
///
/// let (stored, inserts) = mpsc::channel();
/// let per_tenant = KeyedBatcher::builder()
///     .max_items(100)
///     .build(move |tenant: &String, rows: Batch<u32>| stored.send((tenant.clone(), rows.into_vec())))?;
/// for n in 0..4 {
///     per_tenant.send(if n % 2 == 0 { "even" } else { "odd" }.to_owned(), n)?;
/// }
/// per_tenant.close()?;
/// let mut inserts: Vec<_> = inserts.iter().collect();
/// inserts.sort();
/// assert_eq!(inserts, [("even".to_owned(), vec![0, 2]), ("odd".to_owned(), vec![1, 3])]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Guarantees
/// - A key's batch starts when it has `max_items`, when its first item has waited for `linger`, at a flush, at the close, or when
///   there is no room for more and nothing else to do.
/// - The items of one producer and one key enter batches in the order in which it sent them. Unless
///   [`one_in_flight(false)`](KeyedBatcherBuilder::one_in_flight) was set, the batches of a key are processed one after the other, so that
///   the effects of a key are ordered with any number of [`workers`](KeyedBatcherBuilder::workers).
/// - Batches that are due are begun oldest first, within a part of the keys; the parts take turns. A busy key cannot keep
///   others from their turn.
/// - Nothing is kept of a key that has nothing waiting and nothing in process.
/// - A panic of the process function, or of a key's `Clone`, fails its batch and nothing else.
///
/// The key's `Eq` and `Clone` run under the lock of a part of the keys: they should not wait, and must not use the batcher. `Hash` runs
/// without it.
///
/// # What it costs
/// A thread with the standard stack for each worker. A few kilobytes for each core at rest. A key with one waiting `u64` takes less
/// than 200 bytes, one that has nothing takes none. An item takes two locks of its own part of the keys, the sender's and the
/// worker's share of its batch; with very many keys most of its time is that of memory that is in no cache.
#[must_use = "dropping the batcher closes it"]
pub struct KeyedBatcher<K, T, R> {
    shared: Arc<Shared<K, T, R>>,
    /// For the model checker, whose threads work instead of ours.
    #[cfg(fullbore_loom)]
    process: Process<K, T, R>,
}

/// A way into a [`KeyedBatcher`]. A cheap handle; it does not keep the batcher open: after that is closed or dropped, every item
/// is refused with `Closed`.
pub struct KeyedHandle<K, T, R> {
    shared: Arc<Shared<K, T, R>>,
}

impl<K, T> KeyedBatcher<K, T, ()> {
    /// Describes a batcher. The result type follows from the function given to [`KeyedBatcherBuilder::build`].
    #[must_use]
    pub fn builder() -> KeyedBatcherBuilder<K, T> {
        KeyedBatcherBuilder::default()
    }
}

/// What the owner and its handles have in common.
macro_rules! way_in {
    ($type:ident) => {
        impl<K: Hash + Eq + Clone, T, R> $type<K, T, R> {
            /// Offers an item to its key's batch, waiting for room as the overflow policy says (up to 30 s unless set
            /// otherwise). `Ok` means accepted, not processed. Inside the process function of the same batcher, which alone can
            /// make room, it never waits.
            ///
            /// # Errors
            /// The key and the item, if there was no room for them or the batcher is closed.
            pub fn send(&self, key: K, item: T) -> Result<(), SendError<(K, T)>> {
                self.shared.offer(key, item, Reply::none(), Patience::Policy(None))
            }

            /// Offers an item without waiting.
            ///
            /// # Errors
            /// As [`send`](Self::send).
            pub fn try_send(&self, key: K, item: T) -> Result<(), SendError<(K, T)>> {
                self.shared.offer(key, item, Reply::none(), Patience::Try)
            }

            /// As [`send`](Self::send), but never waits beyond `deadline`.
            ///
            /// # Errors
            /// As [`send`](Self::send).
            pub fn send_deadline(&self, key: K, item: T, deadline: Instant) -> Result<(), SendError<(K, T)>> {
                self.shared.offer(key, item, Reply::none(), Patience::Policy(Some(deadline)))
            }

            /// As [`send`](Self::send), for an item whose own result is wanted.
            ///
            /// # Errors
            /// As [`send`](Self::send).
            pub fn submit(&self, key: K, item: T) -> Result<Ticket<R>, SendError<(K, T)>> {
                self.shared.submit(key, item, Patience::Policy(None))
            }

            /// As [`submit`](Self::submit), without waiting for room.
            ///
            /// # Errors
            /// As [`send`](Self::send).
            pub fn try_submit(&self, key: K, item: T) -> Result<Ticket<R>, SendError<(K, T)>> {
                self.shared.submit(key, item, Patience::Try)
            }

            /// As [`submit`](Self::submit), but never waits for room beyond `deadline`.
            ///
            /// # Errors
            /// As [`send`](Self::send).
            pub fn submit_deadline(&self, key: K, item: T, deadline: Instant) -> Result<Ticket<R>, SendError<(K, T)>> {
                self.shared.submit(key, item, Patience::Policy(Some(deadline)))
            }

            /// Submits an item and waits for its result: for room as the overflow policy says, then for the linger of its key's
            /// batch, then as long as the process function takes.
            ///
            /// # Errors
            /// Why there is no result; with the key and the item if it was not accepted.
            ///
            /// # Deadlock
            /// Never ends if the process function never returns; [`call_deadline`](Self::call_deadline) does. Inside the
            /// process function of the same batcher it is refused at once.
            pub fn call(&self, key: K, item: T) -> Result<R, CallError<(K, T)>> {
                self.shared.call(key, item, None)
            }

            /// As [`call`](Self::call), but ends at `deadline`. An item that was accepted by then may still be processed.
            ///
            /// # Errors
            /// As [`call`](Self::call).
            pub fn call_deadline(&self, key: K, item: T, deadline: Instant) -> Result<R, CallError<(K, T)>> {
                self.shared.call(key, item, Some(deadline))
            }

            /// Waits until everything of this key that was accepted before the call is processed and its tickets are resolved,
            /// without lingering. Items sent later, and other keys' items, do not prolong it.
            ///
            /// # Errors
            /// Only inside the process function of the same batcher, where it cannot wait.
            ///
            /// # Deadlock
            /// Never ends if the process function never returns; [`flush_key_within`](Self::flush_key_within) does.
            pub fn flush_key(&self, key: &K) -> Result<(), FlushError> {
                self.shared.flush_key(key, None)
            }

            /// As [`flush_key`](Self::flush_key), for at most `limit`. What is not processed by then still will be. The error
            /// counts the items of all keys.
            ///
            /// # Errors
            /// If the time was up, with what is left; as [`flush_key`](Self::flush_key).
            pub fn flush_key_within(&self, key: &K, limit: Duration) -> Result<(), FlushError> {
                self.shared.flush_key(key, self.shared.clock().after(limit))
            }
        }

        impl<K, T, R> $type<K, T, R> {
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
                self.shared.flush(self.shared.clock().after(limit))
            }

            /// How many keys have something waiting or in process.
            #[must_use]
            pub fn keys(&self) -> usize {
                self.shared.keys()
            }

            /// Whether no more items are accepted.
            #[must_use]
            pub fn is_closed(&self) -> bool {
                self.shared.is_closed()
            }

            /// Its counts and times, of all keys together: an arrival is an item, a wait is that of the oldest item of a batch, a
            /// service that of a batch.
            #[must_use]
            pub fn station(&self) -> &Station {
                &self.shared.station
            }
        }

        impl<K: Hash + Eq + Clone + Send, T: Send, R: Send> Sink<(K, T)> for $type<K, T, R> {
            fn try_send(&self, (key, item): (K, T)) -> Result<(), SendError<(K, T)>> {
                $type::try_send(self, key, item)
            }
            fn send_deadline(&self, (key, item): (K, T), deadline: Option<Instant>) -> Result<(), SendError<(K, T)>> {
                self.shared.offer(key, item, Reply::none(), Patience::Policy(deadline))
            }
        }

        impl<K, T, R> fmt::Debug for $type<K, T, R> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($type)).field("station", self.station()).finish_non_exhaustive()
            }
        }
    };
}
way_in!(KeyedBatcher);
way_in!(KeyedHandle);

impl<K, T, R> KeyedBatcher<K, T, R> {
    /// A way in for others.
    #[must_use]
    pub fn handle(&self) -> KeyedHandle<K, T, R> {
        KeyedHandle { shared: Arc::clone(&self.shared) }
    }

    /// Says that the process function sends to `next`, whose back-pressure this batcher meets.
    pub fn feeds(&self, next: &Station) {
        self.station().feeds(next);
    }

    /// Its part in a [`Shutdown`](fullbore_core::Shutdown). Items that are left at its deadline go to the dead-letter hook.
    /// It does not keep the batcher open.
    #[must_use]
    pub fn closer(&self) -> impl Close + use<K, T, R>
    where
        K: Send + 'static,
        T: Send + 'static,
        R: Send + 'static,
    {
        Closer { shared: Arc::clone(&self.shared) }
    }
}

impl<K: Hash + Eq + Clone, T, R> KeyedBatcher<K, T, R> {
    /// Refuses new items, wakes blocked senders with `Closed`, and waits until everything accepted is processed and the
    /// threads have ended. Idempotent.
    ///
    /// # Errors
    /// Inside the process function of the same batcher, where it cannot wait: what it has not begun comes back at once. Or
    /// if another [`close_within`](Self::close_within) meanwhile left a thread behind.
    ///
    /// # Deadlock
    /// Never ends if the process function never returns; [`close_within`](Self::close_within) does.
    pub fn close(&self) -> Result<(), Undelivered<(K, T)>> {
        self.shared.close_and_return(None)
    }

    /// As [`close`](Self::close), for at most `limit`. Items that the process function has not begun by then come back with
    /// their keys, those of one key in order, and their tickets end with [`Failure::Closed`](fullbore_core::Failure::Closed). A
    /// batch in process goes on; if it ends later its results still reach their tickets. Calling it again waits for that.
    ///
    /// # Errors
    /// What was left when the time was up; as [`close`](Self::close).
    pub fn close_within(&self, limit: Duration) -> Result<(), Undelivered<(K, T)>> {
        self.shared.close_and_return(self.shared.clock().after(limit))
    }
}

impl<K, T, R> KeyedBatcher<K, T, R>
where
    K: Hash + Eq + Clone + Send + 'static,
    T: Send + 'static,
    R: Send + 'static,
{
    /// With its threads; if one cannot be had, those that can are ended.
    fn start(shared: Shared<K, T, R>, process: &Process<K, T, R>) -> Result<Self, BuildError> {
        let threads = if cfg!(fullbore_loom) { 0 } else { shared.config.workers };
        let batcher = Self {
            shared: Arc::new(shared),
            #[cfg(fullbore_loom)]
            process: Arc::clone(process),
        };
        for _ in 0..threads {
            batcher.shared.spawn_worker(process)?;
        }
        Ok(batcher)
    }

    /// What a worker does.
    #[cfg(fullbore_loom)]
    #[doc(hidden)]
    pub fn worker(&self) -> impl FnOnce() + Send + 'static {
        let (shared, process) = (Arc::clone(&self.shared), Arc::clone(&self.process));
        move || worker::run(shared, process)
    }
}

impl<K, T, R> Drop for KeyedBatcher<K, T, R> {
    fn drop(&mut self) {
        let shared = &self.shared;
        shared.close_and_give_up(shared.clock().after(shared.config.on_drop.budget()));
    }
}

impl<K, T, R> Clone for KeyedHandle<K, T, R> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

struct Closer<K, T, R> {
    shared: Arc<Shared<K, T, R>>,
}

impl<K: Send, T: Send, R: Send> Close for Closer<K, T, R> {
    fn name(&self) -> String {
        self.shared.config.name.clone()
    }

    fn close_within(&self, limit: Duration) -> Leftover {
        self.shared.close_and_give_up(self.shared.clock().after(limit))
    }
}

/// The calls that are made of several steps.
impl<K: Hash + Eq + Clone, T, R> Shared<K, T, R> {
    fn submit(&self, key: K, item: T, patience: Patience) -> Result<Ticket<R>, SendError<(K, T)>> {
        let (ticket, reply) = Ticket::new(self.station.id(), self.clock().clone());
        self.offer(key, item, reply, patience)?;
        Ok(ticket)
    }

    fn call(&self, key: K, item: T, deadline: Option<Instant>) -> Result<R, CallError<(K, T)>> {
        if self.is_inside() {
            self.station.refused(1);
            return Err(CallError::OwnThread((key, item)));
        }
        let ticket = self.submit(key, item, Patience::Policy(deadline)).map_err(CallError::Refused)?;
        let answer = match deadline {
            None => ticket.wait(),
            Some(deadline) => ticket.wait_deadline(deadline).map_err(|_| CallError::TimedOut)?,
        };
        answer.map_err(CallError::Failed)
    }
}
