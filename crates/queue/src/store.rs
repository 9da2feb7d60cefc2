//! The jobs in memory: the state under the queue's lock. Protocol in the crate's README.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Instant;

use fullbore_core::{Room, WaitFor, Waiters};

use crate::job::Job;

/// A job that waits, with the moment from which it has waited.
pub(crate) struct Entry<J> {
    pub(crate) job: Job<J>,
    pub(crate) since: Instant,
}

pub(crate) struct Store<J> {
    pub(crate) room: Room,
    ready: VecDeque<Entry<J>>,
    /// Delayed jobs and retries, by the moment they are due.
    delayed: BTreeMap<(Instant, u64), Entry<J>>,
    /// Numbers of all jobs that are accepted and not finished.
    open: BTreeSet<u64>,
    /// A close is through, or ran out of time: nothing is begun any more, and what fails now is not tried again.
    given_up: bool,
    next: u64,
    /// Workers that may be in user code: from taking a job until all is done about that attempt.
    pub(crate) busy: usize,
    /// Idle workers that sleep until they are told.
    pub(crate) workers: Waiters,
    /// The one idle worker that sleeps until `alarm`, or until it is told.
    pub(crate) keeper: Waiters,
    /// For when the keeper has set its alarm; `None`: there is no keeper.
    pub(crate) alarm: Option<Instant>,
    /// Threads in `flush` or `close`.
    pub(crate) progress: Waiters,
}

impl<J> Store<J> {
    pub(crate) fn new(capacity: usize) -> Self {
        Self {
            room: Room::new(capacity),
            ready: VecDeque::new(),
            delayed: BTreeMap::new(),
            open: BTreeSet::new(),
            given_up: false,
            next: 0,
            busy: 0,
            workers: Waiters::of(WaitFor::Work),
            keeper: Waiters::of(WaitFor::Work),
            alarm: None,
            progress: Waiters::new(),
        }
    }

    /// Numbers a new job and opens it.
    pub(crate) fn open(&mut self) -> u64 {
        let id = self.next;
        self.next += 1;
        self.open.insert(id);
        id
    }

    /// The number that the next job will get.
    pub(crate) fn next_id(&self) -> u64 {
        self.next
    }

    pub(crate) fn push_ready(&mut self, entry: Entry<J>) {
        self.ready.push_back(entry);
    }

    pub(crate) fn push_delayed(&mut self, due: Instant, entry: Entry<J>) {
        self.delayed.insert((due, entry.job.id), entry);
    }

    /// When the first delayed job is due.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.delayed.first_key_value().map(|((due, _), _)| *due)
    }

    /// Takes the next job to work on, moving those that are due into the line first. The worker is busy from now on.
    pub(crate) fn take(&mut self, now: Instant) -> Option<Entry<J>> {
        while let Some(first) = self.delayed.first_entry() {
            if first.key().0 > now {
                break;
            }
            self.ready.push_back(first.remove());
        }
        let entry = self.ready.pop_front()?;
        self.busy += 1;
        Some(entry)
    }

    /// Whether another worker would find a job at once.
    pub(crate) fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// A job that was in process is finished, one way or the other.
    pub(crate) fn finish(&mut self, id: u64) {
        self.open.remove(&id);
    }

    /// Takes out the job that would be begun next: the first in line, or the delayed one that is due first.
    pub(crate) fn displace_oldest(&mut self) -> Option<Job<J>> {
        let first = self.ready.pop_front().or_else(|| self.delayed.pop_first().map(|(_, entry)| entry));
        let job = first?.job;
        self.open.remove(&job.id);
        Some(job)
    }

    /// Gives up: takes everything out that nobody works on, by number.
    pub(crate) fn give_up(&mut self) -> Vec<Job<J>> {
        self.given_up = true;
        let delayed = std::mem::take(&mut self.delayed).into_values();
        let mut jobs: Vec<_> = self.ready.drain(..).chain(delayed).map(|entry| entry.job).collect();
        jobs.sort_unstable_by_key(|job| job.id);
        for job in &jobs {
            self.open.remove(&job.id);
        }
        jobs
    }

    pub(crate) fn has_given_up(&self) -> bool {
        self.given_up
    }

    /// How many jobs are in the hands of workers.
    pub(crate) fn in_process(&self) -> usize {
        self.open.len() - self.waiting()
    }

    /// How many jobs wait, delayed ones and retries included.
    pub(crate) fn waiting(&self) -> usize {
        self.ready.len() + self.delayed.len()
    }

    /// Whether all jobs below this number are finished.
    pub(crate) fn finished_below(&self, id: u64) -> bool {
        self.open.first().is_none_or(|oldest| *oldest >= id)
    }

    /// Whether a close is through: nothing is open.
    pub(crate) fn is_drained(&self) -> bool {
        self.room.is_closed() && self.open.is_empty()
    }
}
