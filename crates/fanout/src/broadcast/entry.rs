//! A subscription as the hub sees it, under its lock.

use std::collections::VecDeque;
use std::sync::Arc;

use super::desk::{Desk, NONE};
use super::ring::Pin;

/// What happens when a subscription has as many messages as it may have, and another one is published.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum LagPolicy {
    /// The publisher waits for it, as long as it may wait. Nothing is missed.
    #[default]
    Block,
    /// It misses the new one, and all that come until it has read half of what it has. It is told how many.
    Reject,
    /// It skips the oldest ones, and is told how many.
    DropOldest,
    /// It is a subscription no more, and is told so.
    Evict,
}

pub(crate) struct Entry<T> {
    pub(crate) desk: Arc<Desk>,
    pub(crate) lag: u64,
    pub(crate) policy: LagPolicy,
    /// What it misses: between these numbers, in order, none of them empty but perhaps the last. `NONE` as the end: from there on.
    gaps: VecDeque<(u64, u64)>,
    /// Blocks that have gone from the ring and that it will still read.
    kept: Vec<Pin<T>>,
}

impl<T> Entry<T> {
    pub(crate) fn new(desk: Arc<Desk>, lag: u64, policy: LagPolicy) -> Self {
        Self { desk, lag, policy, gaps: VecDeque::new(), kept: Vec::new() }
    }

    /// How many messages it has to read, the one that it reads now among them.
    pub(crate) fn unread(&self, tail: u64) -> u64 {
        let cursor = self.desk.cursor();
        let missed = |&(from, to): &(u64, u64)| if from >= cursor { to.min(tail) - from } else { 0 };
        // What it has read it has seen published, but `tail` is the writer's own.
        tail.saturating_sub(cursor) - self.gaps.iter().map(missed).sum::<u64>()
    }

    /// Where its cursor comes first to have no more than so many to read.
    pub(crate) fn position(&self, tail: u64, unread: u64) -> u64 {
        let (mut end, mut rest) = (tail, unread);
        for &(from, to) in self.gaps.iter().rev() {
            let there = end - to.min(end);
            if rest < there {
                break;
            }
            rest -= there;
            end = from;
        }
        end.saturating_sub(rest)
    }

    pub(crate) fn is_shut(&self) -> bool {
        self.gaps.back().is_some_and(|gap| gap.1 == NONE)
    }

    /// It has enough: nothing from `tail` on is for it, for now.
    pub(crate) fn shut(&mut self, tail: u64) {
        self.desk.shut(tail);
        match self.gaps.back_mut() {
            // Nothing has come since it was opened.
            Some(gap) if gap.1 == tail => gap.1 = NONE,
            _ => self.gaps.push_back((tail, NONE)),
        }
        self.tell_bound();
        self.desk.want(self.position(tail, self.lag / 2));
    }

    /// Everything from `tail` on is for it again.
    pub(crate) fn open(&mut self, tail: u64) {
        self.desk.open(tail);
        if let Some(gap) = self.gaps.back_mut() {
            gap.1 = tail;
        }
    }

    /// Its cursor is where a gap begins: how many it misses, and where it goes on.
    pub(crate) fn cross(&mut self, next: u64) -> Option<(u64, u64)> {
        let ends_here = |gap: &&(u64, u64)| gap.0 == next && gap.1 != NONE;
        let gap = self.gaps.front().filter(ends_here).copied();
        if gap.is_some() {
            self.gaps.pop_front();
        }
        self.tell_bound();
        gap.map(|(from, to)| (to - from, to))
    }

    fn tell_bound(&self) {
        self.desk.set_bound(self.gaps.front().map_or(NONE, |gap| gap.0));
    }

    /// Whether it will read one of these.
    pub(crate) fn needs(&self, numbers: &std::ops::Range<u64>) -> bool {
        if self.policy != LagPolicy::Reject {
            return false;
        }
        let mut from = self.desk.cursor().max(numbers.start);
        for gap in &self.gaps {
            if from >= gap.0 {
                from = from.max(gap.1);
            }
        }
        from < numbers.end
    }

    pub(crate) fn keep(&mut self, block: Pin<T>) {
        self.kept.push(block);
    }

    pub(crate) fn take_kept(&mut self, first: u64) -> Option<Pin<T>> {
        let at = self.kept.iter().position(|kept| kept.first() == first)?;
        Some(self.kept.swap_remove(at))
    }
}
