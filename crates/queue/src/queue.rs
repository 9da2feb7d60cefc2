//! The queue's owner, its producers, and its part in a shutdown.

use std::fmt;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use fullbore_core::{BuildError, Close, FlushError, Leftover, Patience, SendError, Sink, Undelivered};
use fullbore_metrics::Station;

use crate::config::{Handler, QueueBuilder};
use crate::shared::Shared;

/// Jobs in memory and the threads that work on them. The owner: dropping it closes the queue. Producers on other threads
/// use [`Producer`], or a reference.
///
/// ```
/// use fullbore_queue::Queue;
/// use std::{sync::mpsc, time::Duration};
///
/// let (done, results) = mpsc::channel();
/// let queue = Queue::builder().name("squares").workers(4).build(move |job| done.send(**job * **job))?;
/// for n in 1..=4u64 {
///     queue.send(n)?;
/// }
/// queue.close_within(Duration::from_secs(5))?;
/// drop(queue);
/// assert_eq!(results.iter().sum::<u64>(), 30);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "dropping the queue closes it"]
pub struct Queue<J: Send + 'static> {
    producer: Producer<J>,
    /// The workers have it too. Here so that it goes with the queue, on the owner's thread, once they have ended.
    handler: Handler<J>,
}

/// Sends jobs into a [`Queue`]. A cheap handle that does not keep the queue open.
pub struct Producer<J> {
    shared: Arc<Shared<J>>,
}

impl<J: Send + 'static> Queue<J> {
    /// Describes a queue.
    pub fn builder() -> QueueBuilder<J> {
        QueueBuilder::new()
    }

    pub(crate) fn start(builder: QueueBuilder<J>, handler: Handler<J>) -> Result<Self, BuildError> {
        // From here on a failure drops the queue, which ends the threads that did start.
        let queue = Self { producer: Producer { shared: Arc::new(Shared::new(builder)) }, handler };
        let shared = &queue.producer.shared;
        // Under the model checker the workers run on its threads, see `worker`.
        let threads = if cfg!(fullbore_loom) { 0 } else { shared.config.workers };
        for _ in 0..threads {
            shared.spawn_worker(&queue.handler)?;
        }
        Ok(queue)
    }

    /// What a worker does.
    #[cfg(fullbore_loom)]
    #[doc(hidden)]
    pub fn worker(&self) -> impl FnOnce() + Send + 'static {
        let (shared, handler) = (Arc::clone(&self.producer.shared), Arc::clone(&self.handler));
        move || crate::worker::run(&shared, &handler)
    }

    /// A handle for another thread.
    #[must_use]
    pub fn producer(&self) -> Producer<J> {
        self.producer.clone()
    }

    /// Sends a job, waiting for room as the overflow policy says. `Ok` means accepted, not done.
    ///
    /// # Errors
    /// The job, with the reason.
    pub fn send(&self, item: J) -> Result<(), SendError<J>> {
        self.producer.send(item)
    }

    /// Sends a job if there is room now.
    ///
    /// # Errors
    /// The job, with the reason.
    pub fn try_send(&self, item: J) -> Result<(), SendError<J>> {
        self.producer.try_send(item)
    }

    /// Sends a job, waiting as [`send`](Self::send) does but not beyond `deadline`.
    ///
    /// # Errors
    /// The job, with the reason.
    pub fn send_deadline(&self, item: J, deadline: Instant) -> Result<(), SendError<J>> {
        self.producer.send_deadline(item, deadline)
    }

    /// Sends a job to be worked on no sooner than after `delay`. It takes its place in the capacity from now on.
    ///
    /// # Errors
    /// The job, with the reason.
    pub fn send_after(&self, item: J, delay: Duration) -> Result<(), SendError<J>> {
        self.producer.send_after(item, delay)
    }

    /// Waits until every job accepted before the call is finished, retries included. Later arrivals do not prolong it;
    /// delayed jobs are not hurried.
    ///
    /// # Errors
    /// Only on a worker's own thread, where it does not wait: how many jobs are left.
    ///
    /// # Deadlock
    /// Never ends if a handler never returns; [`flush_within`](Self::flush_within) does.
    pub fn flush(&self) -> Result<(), FlushError> {
        self.producer.shared.flush(None)
    }

    /// As [`flush`](Self::flush), for at most `limit`.
    ///
    /// # Errors
    /// If the time was up: how many jobs are left; none of them is taken out. As [`flush`](Self::flush).
    pub fn flush_within(&self, limit: Duration) -> Result<(), FlushError> {
        self.producer.shared.flush(self.after(limit))
    }

    /// Refuses new jobs, wakes blocked producers with `Closed`, and waits until every accepted job is finished (delayed ones
    /// and retries too, when they are due) and the workers have ended. Idempotent.
    ///
    /// # Errors
    /// Only on a worker's own thread, where it does not wait: the jobs that were not begun come back at once.
    ///
    /// # Deadlock
    /// Never ends if a handler never returns; [`close_within`](Self::close_within) does.
    pub fn close(&self) -> Result<(), Undelivered<J>> {
        self.producer.shared.close_and_return(None)
    }

    /// As [`close`](Self::close), for at most `limit`. What is in process then goes on, but is not tried again if it fails.
    /// Calling it again waits for that.
    ///
    /// # Errors
    /// The jobs that were not begun (delayed ones and those waiting for a retry included) in the order of acceptance, how
    /// many are still in process, and the names of the workers that are.
    pub fn close_within(&self, limit: Duration) -> Result<(), Undelivered<J>> {
        self.producer.shared.close_and_return(self.after(limit))
    }

    /// Whether no more jobs are accepted.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.producer.is_closed()
    }

    fn after(&self, limit: Duration) -> Option<Instant> {
        self.producer.shared.monitor.clock().after(limit)
    }

    /// For [`Shutdown`](fullbore_core::Shutdown). Jobs that are left go to the dead-letter hook.
    #[must_use]
    pub fn closer(&self) -> impl Close + 'static {
        Closer { shared: Arc::downgrade(&self.producer.shared) }
    }

    /// Its counts and times: an arrival is a job; waiting includes delays; each attempt is a service.
    #[must_use]
    pub fn station(&self) -> &Station {
        self.producer.station()
    }
}

impl<J: Send + 'static> Drop for Queue<J> {
    fn drop(&mut self) {
        let shared = &self.producer.shared;
        shared.close_and_bury(self.after(shared.config.on_drop.budget()));
    }
}

impl<J: Send + 'static> fmt::Debug for Queue<J> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue").field("station", &self.station().snapshot().to_string()).finish_non_exhaustive()
    }
}

impl<J: Send + 'static> Producer<J> {
    /// As [`Queue::send`].
    ///
    /// # Errors
    /// The job, with the reason.
    pub fn send(&self, item: J) -> Result<(), SendError<J>> {
        self.shared.send(item, Duration::ZERO, Patience::Policy(None))
    }

    /// As [`Queue::try_send`].
    ///
    /// # Errors
    /// The job, with the reason.
    pub fn try_send(&self, item: J) -> Result<(), SendError<J>> {
        self.shared.send(item, Duration::ZERO, Patience::Try)
    }

    /// As [`Queue::send_deadline`].
    ///
    /// # Errors
    /// The job, with the reason.
    pub fn send_deadline(&self, item: J, deadline: Instant) -> Result<(), SendError<J>> {
        self.shared.send(item, Duration::ZERO, Patience::Policy(Some(deadline)))
    }

    /// As [`Queue::send_after`].
    ///
    /// # Errors
    /// The job, with the reason.
    pub fn send_after(&self, item: J, delay: Duration) -> Result<(), SendError<J>> {
        self.shared.send(item, delay, Patience::Policy(None))
    }

    /// As [`Queue::is_closed`].
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.shared.is_closed()
    }
}

impl<J> Producer<J> {
    /// As [`Queue::station`].
    #[must_use]
    pub fn station(&self) -> &Station {
        &self.shared.station
    }
}

impl<J> Clone for Producer<J> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<J> fmt::Debug for Producer<J> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Producer").field("queue", &self.shared.config.name).finish_non_exhaustive()
    }
}

impl<J: Send + 'static> Sink<J> for Producer<J> {
    fn try_send(&self, item: J) -> Result<(), SendError<J>> {
        Producer::try_send(self, item)
    }
    fn send_deadline(&self, item: J, deadline: Option<Instant>) -> Result<(), SendError<J>> {
        self.shared.send(item, Duration::ZERO, Patience::Policy(deadline))
    }
}

impl<J: Send + 'static> Sink<J> for Queue<J> {
    fn try_send(&self, item: J) -> Result<(), SendError<J>> {
        self.producer.try_send(item)
    }
    fn send_deadline(&self, item: J, deadline: Option<Instant>) -> Result<(), SendError<J>> {
        Sink::send_deadline(&self.producer, item, deadline)
    }
}

struct Closer<J> {
    shared: Weak<Shared<J>>,
}

impl<J: Send + 'static> Close for Closer<J> {
    fn name(&self) -> String {
        self.shared.upgrade().map_or_else(|| "queue".into(), |shared| shared.config.name.clone())
    }

    fn close_within(&self, limit: Duration) -> Leftover {
        let Some(shared) = self.shared.upgrade() else { return Leftover::default() };
        shared.close_and_bury(shared.monitor.clock().after(limit))
    }
}
