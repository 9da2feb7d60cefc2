//! Room for so many items of so much weight, and the line of those who wait for it.

use std::time::Instant;

use fullbore_core::{FAIR_AFTER, Locked, Refusal, Serve, WaitFor, Waiters};

/// Whoever is told that places are free finds at least this many, if there are so many: a switch of threads for each place
/// would cost more than the item.
const PORTION: usize = 256;

pub(super) struct Places {
    capacity: usize,
    used: usize,
    max_weight: u64,
    weight: u128,
    closed: bool,
    /// The first in line is heavy and has waited too long: what is free is kept for it.
    kept: bool,
    line: Waiters<(), u64>,
}

impl Places {
    pub(super) const fn new(capacity: usize, max_weight: u64) -> Self {
        let line = Waiters::of(WaitFor::Place);
        Self { capacity, used: 0, max_weight, weight: 0, closed: false, kept: false, line }
    }

    pub(super) const fn is_closed(&self) -> bool {
        self.closed
    }

    /// How many items could still come.
    pub(super) const fn free(&self) -> usize {
        if self.closed { 0 } else { self.capacity.saturating_sub(self.used) }
    }

    pub(super) fn has_line(&self) -> bool {
        !self.line.is_empty()
    }

    /// Whether another item of this weight has room. One that is too heavy for all there is goes in alone.
    pub(super) const fn fits(&self, weight: u64) -> bool {
        self.used < self.capacity && self.would_fit(weight, 0)
    }

    /// Whether it would, if `less` went.
    pub(super) const fn would_fit(&self, weight: u64, less: u128) -> bool {
        let rest = self.weight.saturating_sub(less);
        rest == 0 || rest + weight as u128 <= self.max_weight as u128
    }

    fn add(&mut self, weight: u64) {
        self.used += 1;
        self.weight += u128::from(weight);
    }

    /// Takes more places, for items to come without asking.
    pub(super) fn lend(&mut self, n: usize) {
        self.used += n;
    }

    /// Exchanges a waiting item for another one.
    pub(super) fn exchange(&mut self, old: u128, new: u64) {
        self.weight = self.weight.saturating_sub(old) + u128::from(new);
    }

    /// A place, or that there is none for anybody; `None` while there may be later.
    pub(super) fn take(&mut self, weight: u64) -> Option<Result<(), Refusal>> {
        if self.closed {
            Some(Err(Refusal::Closed))
        } else if self.fits(weight) && !self.kept {
            self.add(weight);
            Some(Ok(()))
        } else {
            None
        }
    }

    fn give_back(&mut self, n: usize, weight: u128) {
        debug_assert!(self.used >= n, "more places given back than taken");
        self.used = self.used.saturating_sub(n);
        self.weight = self.weight.saturating_sub(weight);
    }
}

/// State that has places.
pub(super) trait HasPlaces: Sized {
    fn places(&mut self) -> &mut Places;
}

/// Waits in line for a place.
///
/// # Errors
/// `Closed`, or `TimedOut` at the deadline.
pub(super) fn wait_in_line<S: HasPlaces>(
    state: &mut Locked<'_, S>,
    weight: u64,
    deadline: Option<Instant>,
) -> Result<(), Refusal> {
    let mut outcome = None;
    let granted = state.wait_turn(
        |state| &mut state.places().line,
        deadline,
        weight,
        |state| {
            outcome = Some(state.places().take(weight)?);
            Some(())
        },
    );
    let outcome = match (granted, outcome) {
        (None, _) => {
            // What was kept for it, or what it was told of, is the next one's.
            state.places().kept = false;
            Err(Refusal::TimedOut)
        }
        (Some(()), Some(outcome)) => outcome,
        // Handed over, but closed before this thread ran: nothing is accepted after a close.
        (Some(()), None) if state.places().closed => {
            state.places().give_back(1, u128::from(weight));
            Err(Refusal::Closed)
        }
        (Some(()), None) => Ok(()),
    };
    // It was told of more than it needs, perhaps.
    serve(state);
    outcome
}

/// Gives places back.
pub(super) fn leave<S: HasPlaces>(state: &mut Locked<'_, S>, n: usize, weight: u128) {
    state.places().give_back(n, weight);
    serve(state);
}

/// Refuses everybody from now on, also those who wait.
pub(super) fn close<S: HasPlaces>(state: &mut Locked<'_, S>) {
    state.places().closed = true;
    state.notify_all(|state| &mut state.places().line);
}

/// Tells the first in line of what is free, once that is worth a switch of threads.
///
/// Invariant **W1**: when the lock is free and a place is, then either the first in line that is still within its deadline and whom the
/// place fits is told, and whoever leaves the line tells the next; or it has not waited for long, less than a quarter of the
/// places is free, and what has the others is on its way to a worker that does not sleep and whose last group took no
/// longer.
pub(super) fn serve<S: HasPlaces>(state: &mut Locked<'_, S>) {
    let places = state.places();
    let Some(since) = places.line.oldest() else { return };
    let worth = places.free() >= places.capacity / 4;
    if worth || state.now().saturating_duration_since(since) >= FAIR_AFTER {
        serve_all(state);
    }
}

/// Tells the first in line of what is free, be it little.
pub(super) fn serve_all<S: HasPlaces>(state: &mut Locked<'_, S>) {
    let mut free = state.places().free();
    if free == 0 || state.places().line.is_empty() {
        return;
    }
    let now = state.now();
    let most = 1 + free / PORTION;
    let mut told = 0;
    state.serve(
        |state| &mut state.places().line,
        |state, waiting, overdue| {
            let weight = *waiting.tag;
            let places = state.places();
            if free == 0 || told == most {
                return Serve::Stop;
            }
            if !places.fits(weight) {
                // Lighter ones would come in before it for ever.
                places.kept = told == 0 && now.saturating_duration_since(waiting.since) >= FAIR_AFTER;
                return Serve::Stop;
            }
            free -= 1;
            told += 1;
            if overdue || places.kept {
                places.kept = false;
                places.add(weight);
                Serve::Grant(())
            } else {
                Serve::Nudge
            }
        },
    );
}
