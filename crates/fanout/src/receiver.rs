//! A subscription that is read by hand.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use fullbore_metrics::{Departure, Outcome, Station};

use crate::buffer::Buffer;
use crate::dead::DeadReason;
use crate::error::RecvError;
use crate::shared::Shared;

/// The reading end of a subscription without a thread. Dropping it leaves the router; what it holds goes to the dead
/// letters then.
///
/// When the router closes, what is here can still be taken; then every call says `Closed`. Several threads may share it by
/// reference; each message goes to one of them.
///
/// ```
/// use fullbore_fanout::Router;
///
/// let router = Router::new();
/// let errors = router.subscribe("#.error").receiver()?;
/// router.publish("db.error", "disk full")?;
/// drop(router);
/// assert_eq!(errors.iter().map(|text| *text).collect::<Vec<_>>(), ["disk full"]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Receiver<M> {
    shared: Arc<Shared<M>>,
    buffer: Arc<Buffer<M>>,
}

impl<M> Receiver<M> {
    pub(crate) fn new(shared: Arc<Shared<M>>, buffer: Arc<Buffer<M>>) -> Self {
        Self { shared, buffer }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.buffer.name
    }

    /// Its counts: an arrival is a message that its buffer took, and it is served when it is taken out.
    #[must_use]
    pub fn station(&self) -> &Station {
        &self.buffer.station
    }

    /// How many messages wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.buffer.inbox.len()
    }

    /// Takes the next message, waiting for it **as long as the router is open**.
    ///
    /// # Errors
    /// [`RecvError::Closed`] when none is left and none will come.
    pub fn recv(&self) -> Result<Arc<M>, RecvError> {
        self.take(None).ok_or(RecvError::Closed)
    }

    /// Takes the next message if there is one.
    ///
    /// # Errors
    /// [`RecvError::Empty`], or [`RecvError::Closed`].
    pub fn try_recv(&self) -> Result<Arc<M>, RecvError> {
        self.take(Some(self.shared.clock.now())).ok_or_else(|| self.nothing(RecvError::Empty))
    }

    /// Takes the next message, waiting for it until `deadline`.
    ///
    /// # Errors
    /// [`RecvError::TimedOut`], or [`RecvError::Closed`].
    pub fn recv_deadline(&self, deadline: Instant) -> Result<Arc<M>, RecvError> {
        self.take(Some(deadline)).ok_or_else(|| self.nothing(RecvError::TimedOut))
    }

    /// The messages as they come, until the router is closed and all are taken. Each step waits as [`recv`](Self::recv)
    /// does.
    pub fn iter(&self) -> Iter<'_, M> {
        Iter { receiver: self }
    }

    /// Leaves the router: no new message comes, publishers blocked here are released with `Closed` for this destination
    /// only. What is here can still be taken. Idempotent.
    pub fn close(&self) {
        self.shared.remove(self.buffer.id);
    }

    fn take(&self, deadline: Option<Instant>) -> Option<Arc<M>> {
        loop {
            let (letter, at) = self.buffer.inbox.take_one(deadline)?;
            if !self.buffer.expired(&self.shared.desk, &letter, at) {
                self.buffer.station.began(1);
                self.buffer.station.ended(Outcome::Served, 1);
                self.buffer.note_wait(at);
                return Some(letter.message);
            }
        }
    }

    /// Why there was none: closed is for good, so it may be asked afterwards.
    fn nothing(&self, otherwise: RecvError) -> RecvError {
        let inbox = &self.buffer.inbox;
        if inbox.is_closed() && inbox.is_empty() { RecvError::Closed } else { otherwise }
    }
}

impl<M> Drop for Receiver<M> {
    fn drop(&mut self) {
        self.shared.remove(self.buffer.id);
        // Closed already unless the router's own close came first; then too, nothing comes in after it.
        self.buffer.inbox.close();
        let left = self.buffer.take_back();
        self.buffer.station.departed(Departure::Dropped, left.len());
        for message in left {
            let destination = Arc::clone(&self.buffer.name);
            self.shared.desk.post_contained(message, DeadReason::Abandoned { destination });
        }
    }
}

impl<M> fmt::Debug for Receiver<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receiver")
            .field("name", &self.buffer.name)
            .field("waiting", &self.waiting())
            .finish_non_exhaustive()
    }
}

/// The messages of a [`Receiver`] as they come.
#[derive(Debug)]
pub struct Iter<'a, M> {
    receiver: &'a Receiver<M>,
}

impl<M> Iterator for Iter<'_, M> {
    type Item = Arc<M>;
    fn next(&mut self) -> Option<Arc<M>> {
        self.receiver.recv().ok()
    }
}

impl<'a, M> IntoIterator for &'a Receiver<M> {
    type Item = Arc<M>;
    type IntoIter = Iter<'a, M>;
    fn into_iter(self) -> Iter<'a, M> {
        self.iter()
    }
}
