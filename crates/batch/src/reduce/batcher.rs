//! The owner, its handles, and its part in a shutdown.

use std::fmt;
use std::hash::Hash;
use std::ops::AddAssign;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fullbore_core::{Close, FlushError, Leftover, Patience, SendError, Sink, Undelivered};
use fullbore_metrics::Station;

use super::config::ReducingBuilder;
use super::engine::{Left, Shared};

/// A batcher that merges: updates `(K, V)` come in, and each batch has one pair for each key. The owner: dropping it closes it,
/// see [`on_drop`](ReducingBuilder::on_drop); [`handle`](Self::handle) gives others a way in.
///
/// ```
/// use fullbore_batch::{Batch, ReducingBatcher};
/// use std::sync::mpsc;
///
/// let (written, rows) = mpsc::channel();
/// let views = ReducingBatcher::sum().build(move |pages: Batch<(&str, u64)>| written.send(pages.into_vec()))?;
/// std::thread::scope(|scope| {
///     for _ in 0..4 {
///         let handle = views.handle();
///         scope.spawn(move || (0..1_000).try_for_each(|_| handle.send(("/index", 1))));
///     }
/// });
/// views.close()?;
/// assert_eq!(rows.iter().flatten().map(|(_, count)| count).sum::<u64>(), 4_000);
/// let seen = views.station().snapshot();
/// assert_eq!(seen.merged + seen.served, 4_000);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "dropping the batcher closes it"]
pub struct ReducingBatcher<K, V> {
    shared: Arc<Shared<K, V>>,
}

/// A way into a [`ReducingBatcher`]. A cheap handle; it does not keep the batcher open: after that is closed or dropped, every
/// update is refused with `Closed`.
pub struct ReducingHandle<K, V> {
    shared: Arc<Shared<K, V>>,
}

/// `merge(&mut old, new)` puts a newer update into what is there for its key. The updates of a key are merged in the order in
/// which they were accepted.
///
/// It runs with no lock held, on the batcher's thread or, while that is busy, on one that sends; so do `Hash` and `Eq` of
/// the keys. So it should not wait. In it, and in the process function, `send` never waits, and a flush or a close is an error.
/// If it panics, the pair is lost to the dead letters, see [`dead_letter`](ReducingBuilder::dead_letter), and nothing else is.
impl<K: Hash + Eq, V> ReducingBatcher<K, V> {
    /// Describes one with a merge function of your own.
    ///
    /// ```
    /// use fullbore_batch::{Batch, ReducingBatcher};
    ///
    /// let peaks = ReducingBatcher::builder(|peak: &mut f64, seen| *peak = peak.max(seen))
    ///     .build(|peaks: Batch<(u32, f64)>| println!("{:?}", peaks.as_slice()))?;
    /// peaks.send((7, 20.5))?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn builder(merge: impl Fn(&mut V, V) + Send + Sync + 'static) -> ReducingBuilder<K, V> {
        ReducingBuilder::new(merge)
    }

    /// Describes one that keeps the last value of each key: states, positions, settings.
    pub fn last_wins() -> ReducingBuilder<K, V> {
        Self::builder(|old, new| *old = new)
    }

    /// Describes one that adds the values of each key up: counters, balances.
    pub fn sum() -> ReducingBuilder<K, V>
    where
        V: AddAssign,
    {
        Self::builder(|old, new| *old += new)
    }

    /// Describes one that collects for each key: values are sets, maps or lists, and the newer one's elements go into the older.
    /// A value may come with one element or with many.
    pub fn extend() -> ReducingBuilder<K, V>
    where
        V: IntoIterator + Extend<V::Item>,
    {
        Self::builder(|old, new| old.extend(new))
    }
}

/// What the owner and its handles have in common.
macro_rules! way_in {
    ($type:ident) => {
        impl<K, V> $type<K, V> {
            /// Offers an update, waiting for room as the overflow policy says (up to 30 s unless set otherwise). `Ok` means
            /// accepted, not processed. While the process function is busy it may merge a portion of what others sent. In
            /// user code of the same batcher, which alone can make room, it never waits.
            ///
            /// # Errors
            /// The update, if there was no room or the batcher is closed.
            pub fn send(&self, update: (K, V)) -> Result<(), SendError<(K, V)>> {
                self.shared.offer(update, Patience::Policy(None))
            }

            /// Offers an update without waiting. It may merge a portion, as [`send`](Self::send) does.
            ///
            /// # Errors
            /// As [`send`](Self::send); also if all places are taken and another thread is just merging.
            pub fn try_send(&self, update: (K, V)) -> Result<(), SendError<(K, V)>> {
                self.shared.offer(update, Patience::Try)
            }

            /// As [`send`](Self::send), but never waits beyond `deadline`.
            ///
            /// # Errors
            /// As [`send`](Self::send).
            pub fn send_deadline(&self, update: (K, V), deadline: Instant) -> Result<(), SendError<(K, V)>> {
                self.shared.offer(update, Patience::Policy(Some(deadline)))
            }

            /// Waits until everything accepted before the call is processed, without lingering. Updates sent later do not
            /// prolong it; those for the same keys may be in it. Pairs that are [kept](ReducingBuilder::keep_on_error)
            /// prolong it by their pauses.
            ///
            /// # Errors
            /// Only in user code of the same batcher, where it cannot wait.
            ///
            /// # Deadlock
            /// Never ends if the process function or `merge` never returns; [`flush_within`](Self::flush_within) does.
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

            /// Whether no more updates are accepted.
            #[must_use]
            pub fn is_closed(&self) -> bool {
                self.shared.is_closed()
            }

            /// Its counts and times. An arrival is an update; one that is merged into another departs as `merged`, and the pair
            /// that they make is served or failed once. A wait is that from the first update of a portion that was merged
            /// together to the begin of its batch; a service is that of a batch.
            #[must_use]
            pub fn station(&self) -> &Station {
                self.shared.station()
            }
        }

        impl<K: Send, V: Send> Sink<(K, V)> for $type<K, V> {
            fn try_send(&self, update: (K, V)) -> Result<(), SendError<(K, V)>> {
                $type::try_send(self, update)
            }
            fn send_deadline(&self, update: (K, V), deadline: Option<Instant>) -> Result<(), SendError<(K, V)>> {
                self.shared.offer(update, Patience::Policy(deadline))
            }
        }

        impl<K, V> fmt::Debug for $type<K, V> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($type)).field("station", self.station()).finish_non_exhaustive()
            }
        }
    };
}
way_in!(ReducingBatcher);
way_in!(ReducingHandle);

impl<K, V> ReducingBatcher<K, V> {
    pub(super) fn new(shared: Arc<Shared<K, V>>) -> Self {
        Self { shared }
    }

    /// A way in for others.
    #[must_use]
    pub fn handle(&self) -> ReducingHandle<K, V> {
        ReducingHandle { shared: Arc::clone(&self.shared) }
    }

    /// Says that the process function sends to `next`, whose back-pressure this batcher meets.
    pub fn feeds(&self, next: &Station) {
        self.station().feeds(next);
    }

    /// Refuses new updates, wakes blocked senders with `Closed`, and waits until everything accepted is processed and the
    /// thread has ended. Idempotent.
    ///
    /// # Errors
    /// In user code of the same batcher, where it cannot wait: what it has not begun comes back at once. Or if another
    /// [`close_within`](Self::close_within) meanwhile left the thread behind.
    ///
    /// # Deadlock
    /// Never ends if the process function or `merge` never returns; [`close_within`](Self::close_within) does.
    pub fn close(&self) -> Result<(), Undelivered<(K, V)>> {
        self.shared.hand_back(self.shared.close(None))
    }

    /// As [`close`](Self::close), for at most `limit`. Pairs that the process function has not begun by then come back, oldest
    /// key first, and after them, in order, updates that were not merged yet: a key may be there more than once, and is right
    /// when merged from front to back. A batch in process goes on; calling it again waits for that.
    ///
    /// A portion that is just being merged is waited for for 100 ms more; after that it counts as in flight, and goes to
    /// the dead letters when `merge` returns.
    ///
    /// # Errors
    /// What was left when the time was up; as [`close`](Self::close).
    pub fn close_within(&self, limit: Duration) -> Result<(), Undelivered<(K, V)>> {
        self.shared.hand_back(self.close_left(limit))
    }

    fn close_left(&self, limit: Duration) -> Left<K, V> {
        self.shared.close(self.shared.clock().after(limit))
    }

    /// Its part in a [`Shutdown`](fullbore_core::Shutdown). Pairs that are left at its deadline go to the dead-letter hook.
    /// It does not keep the batcher open.
    #[must_use]
    pub fn closer(&self) -> impl Close + use<K, V>
    where
        K: Send + 'static,
        V: Send + 'static,
    {
        Closer { shared: Arc::clone(&self.shared) }
    }
}

impl<K, V> Drop for ReducingBatcher<K, V> {
    fn drop(&mut self) {
        let left = self.close_left(self.shared.setup().config.on_drop.budget());
        self.shared.give_up(left);
    }
}

impl<K, V> Clone for ReducingHandle<K, V> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

struct Closer<K, V> {
    shared: Arc<Shared<K, V>>,
}

impl<K: Send, V: Send> Close for Closer<K, V> {
    fn name(&self) -> String {
        self.shared.setup().config.name.clone()
    }

    fn close_within(&self, limit: Duration) -> Leftover {
        self.shared.give_up(self.shared.close(self.shared.clock().after(limit)))
    }
}
