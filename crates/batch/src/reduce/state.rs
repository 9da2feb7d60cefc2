//! What senders, the thread and whoever flushes or closes share, under one lock.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use fullbore_core::{CallerSpan, Room, WaitFor, Waiters};

use super::pending::Pending;

/// A merge costs as much as that of so many updates more.
const SLACK: usize = 16;

/// When the thread begins a batch.
#[derive(Clone, Copy)]
pub(super) struct Due {
    pub(super) max_keys: usize,
    pub(super) linger: Duration,
    pub(super) pause: Duration,
    /// So many unmerged updates are worth a merge.
    pub(super) portion: usize,
}

pub(super) struct State<K, V> {
    /// Updates as they came.
    pub(super) buffer: VecDeque<(K, V)>,
    /// The buffer's first update: when it came, and from where.
    pub(super) since: Instant,
    pub(super) span: CallerSpan,
    /// The number of the portion that the buffer will be.
    pub(super) portion: u64,
    /// An empty buffer, for the next swap.
    pub(super) spare: VecDeque<(K, V)>,
    /// Spans that nobody needs any more. Their destructors are user code: for whoever next leaves the lock.
    pub(super) retired: Vec<CallerSpan>,
    /// `None`: somebody has the role.
    pub(super) pending: Option<Box<Pending<K, V>>>,
    /// How many updates and pairs whoever has the role has.
    pub(super) held: usize,
    /// `Pending::first`, to be read while somebody has the role.
    first: u64,
    /// The portions that are merged and not done.
    marks: VecDeque<Mark>,
    /// The portion up to which all are done.
    done: u64,
    /// The portion up to which nothing lingers.
    hurry: u64,
    pub(super) in_process: Option<InProcess>,
    /// When a batch last failed whose pairs were kept.
    pub(super) failed_at: Option<Instant>,
    /// How long the buffer may get until somebody has to act; never, while somebody does.
    act_at: usize,
    pub(super) room: Room,
    /// A close has run out of time: nothing begins any more.
    pub(super) abandoned: bool,
    /// Whoever closed and waits for the role to take back what is there.
    pub(super) takers: usize,
    /// The thread waits; it was told to look again.
    pub(super) parked: bool,
    pub(super) called: bool,
    /// It waits with nothing there, or for the role.
    pub(super) idle: bool,
    pub(super) wants_role: bool,
    pub(super) thread: Waiters,
    pub(super) role: Waiters,
    pub(super) progress: Waiters,
}

/// Up to `end` lie the pairs of the portions up to `portion`; the first of them came at `since`.
pub(super) struct Mark {
    portion: u64,
    end: u64,
    since: Instant,
    span: CallerSpan,
}

#[derive(Clone, Copy)]
pub(super) struct InProcess {
    pub(super) first: u64,
    pub(super) count: usize,
}

/// What the thread has to do.
pub(super) enum Next {
    Merge,
    Begin,
    /// Dead-letter everything, and end.
    GiveUp,
    End,
    /// Nothing, until then.
    Wait(Option<Instant>),
}

impl<K, V> State<K, V> {
    pub(super) fn new(capacity: usize, now: Instant) -> Self {
        Self {
            buffer: VecDeque::new(),
            since: now,
            span: CallerSpan::default(),
            portion: 1,
            spare: VecDeque::new(),
            retired: Vec::new(),
            pending: Some(Box::new(Pending::new())),
            held: 0,
            first: 0,
            marks: VecDeque::new(),
            done: 0,
            hurry: 0,
            in_process: None,
            failed_at: None,
            act_at: 1,
            room: Room::new(capacity),
            abandoned: false,
            takers: 0,
            parked: false,
            called: false,
            idle: false,
            wants_role: false,
            thread: Waiters::of(WaitFor::Work),
            role: Waiters::new(),
            progress: Waiters::new(),
        }
    }

    #[inline]
    pub(super) fn is_full(&self) -> bool {
        self.room.used() >= self.room.capacity() && !self.room.is_closed()
    }

    /// How many updates and pairs wait.
    pub(super) fn waiting(&self) -> usize {
        self.buffer.len() + self.held + self.pending.as_ref().map_or(0, |pending| pending.len())
    }

    pub(super) fn in_flight(&self) -> usize {
        self.in_process.map_or(0, |batch| batch.count)
    }

    /// An update has its place.
    #[inline]
    pub(super) fn append(&mut self, update: (K, V), now: impl FnOnce() -> Instant, span: &mut CallerSpan) {
        if self.buffer.is_empty() {
            self.since = now();
            self.span = std::mem::take(span);
        }
        self.buffer.push_back(update);
    }

    /// Whether the buffer is so long that somebody has to act.
    #[inline]
    pub(super) fn must_act(&self) -> bool {
        self.buffer.len() >= self.act_at
    }

    pub(super) fn is_empty(&self) -> bool {
        self.buffer.is_empty() && self.pending.as_ref().is_some_and(|pending| pending.len() == 0)
    }

    /// Whether as many keys wait as a batch can hold.
    pub(super) fn has_a_batch(&self, due: Due) -> bool {
        self.failed_at.is_none() && self.pending.as_ref().is_some_and(|pending| pending.len() >= due.max_keys)
    }

    /// Somebody acts: nobody else has to.
    pub(super) const fn acted(&mut self) {
        self.act_at = usize::MAX;
    }

    /// The role is free again; says when somebody has to act next.
    pub(super) fn expect(&mut self, due: Due) {
        let Some(pending) = &self.pending else { return };
        let pairs = pending.len();
        // While the thread is busy or rests, nothing can begin.
        let worth = if !self.parked || self.failed_at.is_some() {
            due.portion
        } else if pairs == 0 && self.buffer.is_empty() {
            1
        } else {
            // The last keys of a batch may be long in coming: not a merge for each update until then.
            let slack = (due.max_keys / 8).clamp(1, SLACK);
            due.max_keys.saturating_sub(pairs).max(slack).min(due.portion)
        };
        let room = self.room.capacity().saturating_sub(self.room.used()) + self.buffer.len();
        self.act_at = worth.min(room.max(1));
    }

    /// What is there for the thread to do. `merged`: it has just done so, and what came since can wait.
    pub(super) fn next(&mut self, due: Due, now: Instant, merged: bool) -> Next {
        let Some(pending) = &self.pending else { return Next::Wait(None) };
        let pairs = pending.len();
        if self.abandoned {
            return if self.takers > 0 { Next::Wait(None) } else { Next::GiveUp };
        }
        let nothing = pairs == 0 && self.buffer.is_empty();
        let rests_until = self.failed_at.map(|at| at.checked_add(due.pause));
        let rests = rests_until.is_some_and(|until| until.is_none_or(|until| until > now));
        if nothing || !rests {
            self.failed_at = None;
        }
        self.expect(due);
        if nothing {
            return if self.room.is_closed() { Next::End } else { Next::Wait(None) };
        }
        let since = self.marks.front().map_or(self.since, |mark| mark.since);
        let begin = !rests
            && (self.room.is_closed()
                || self.hurry > self.done
                || pairs >= due.max_keys
                || now.saturating_duration_since(since) >= due.linger);
        if begin && pairs > 0 && (merged || self.buffer.is_empty()) {
            Next::Begin
        } else if !self.buffer.is_empty() && (begin || self.must_act()) {
            Next::Merge
        } else {
            Next::Wait(rests_until.unwrap_or_else(|| since.checked_add(due.linger)))
        }
    }

    /// The buffer becomes a portion.
    pub(super) fn take_portion(&mut self) -> (VecDeque<(K, V)>, Mark) {
        let updates = std::mem::replace(&mut self.buffer, std::mem::take(&mut self.spare));
        let mark = Mark { portion: self.portion, end: 0, since: self.since, span: std::mem::take(&mut self.span) };
        self.portion += 1;
        (updates, mark)
    }

    /// The portion is merged, and all its pairs lie below `end`.
    pub(super) fn note(&mut self, mark: Mark, end: u64) {
        match self.marks.back_mut() {
            // It has brought no new key.
            Some(last) if last.end >= end => {
                last.portion = last.portion.max(mark.portion);
                self.retired.push(mark.span);
            }
            _ => self.marks.push_back(Mark { end, ..mark }),
        }
    }

    /// The span in which the oldest update that waits was sent.
    pub(super) fn take_span(&mut self) -> CallerSpan {
        self.marks.front_mut().map_or_else(CallerSpan::default, |mark| std::mem::take(&mut mark.span))
    }

    /// Since when each portion that is among the oldest `count` pairs waits.
    pub(super) fn waits(&self, count: usize) -> impl Iterator<Item = Instant> {
        let (mut begin, end) = (self.first, self.first + count as u64);
        let within = self.marks.iter().take_while(move |mark| std::mem::replace(&mut begin, mark.end) < end);
        within.map(|mark| mark.since)
    }

    /// Puts `pending` back, or has a look at it after a change. True if a portion is done, for which somebody may wait.
    pub(super) fn settle(&mut self) -> bool {
        if let Some(pending) = &self.pending {
            self.first = pending.first();
            let next = pending.next();
            // D6: from the back, as ends only grow.
            self.marks.iter_mut().rev().take_while(|mark| mark.end > next).for_each(|mark| mark.end = next);
        }
        let first = self.in_process.map_or(self.first, |batch| batch.first);
        let before = self.done;
        while self.marks.front().is_some_and(|mark| mark.end <= first) {
            if let Some(mark) = self.marks.pop_front() {
                self.done = self.done.max(mark.portion);
                self.retired.push(mark.span);
            }
        }
        self.done != before
    }

    /// What a flush waits for: the portion that everything accepted so far is in, or before.
    pub(super) fn hurry_up(&mut self) -> u64 {
        let target = if self.buffer.is_empty() { self.portion - 1 } else { self.portion };
        self.hurry = self.hurry.max(target);
        target
    }

    pub(super) const fn is_done(&self, portion: u64) -> bool {
        self.done >= portion
    }
}
