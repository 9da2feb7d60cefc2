//! Items that say themselves where they are.

use std::mem;
use std::time::Instant;

use crate::cell::Way;
use crate::histogram::nanos;
use crate::station::{Departure, Outcome, Station};

/// The station of a guard.
#[derive(Debug)]
pub(crate) enum Held<'a> {
    Borrowed(&'a Station),
    Owned(Station),
}

impl Held<'_> {
    fn station(&self) -> &Station {
        match self {
            Held::Borrowed(station) => station,
            Held::Owned(station) => station,
        }
    }
}

/// An item that has arrived and waits. Dropped without [`begin`](Self::begin) it counts as returned.
#[derive(Debug)]
pub struct Waiting<'a> {
    /// `None` once it has begun.
    held: Option<Held<'a>>,
    since: Instant,
}

impl<'a> Waiting<'a> {
    pub(crate) fn new(held: Held<'a>) -> Self {
        held.station().arrived(1);
        Self { held: Some(held), since: Instant::now() }
    }

    /// Service begins: the wait is recorded.
    #[must_use = "dropping it counts the item as failed"]
    pub fn begin(mut self) -> Serving<'a> {
        let now = Instant::now();
        let held = self.held.take();
        if let Some(held) = &held {
            let waited = nanos(now.saturating_duration_since(self.since));
            held.station().record(|cell| {
                cell.count(Way::Begun, 1);
                cell.wait.record(waited);
            });
        }
        Serving { held, arrived: self.since, since: now }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if let Some(held) = self.held.take() {
            held.station().departed(Departure::Returned, 1);
        }
    }
}

/// An item in service. Dropped without [`end`](Self::end), by a panic for example, it counts as failed.
#[derive(Debug)]
pub struct Serving<'a> {
    /// `None` once it has ended.
    held: Option<Held<'a>>,
    arrived: Instant,
    since: Instant,
}

impl Serving<'_> {
    /// Service ends: its time is recorded, and the time since the item arrived.
    pub fn end(mut self, outcome: Outcome) {
        self.finish(outcome);
    }

    fn finish(&mut self, outcome: Outcome) {
        if let Some(held) = mem::take(&mut self.held) {
            let now = Instant::now();
            let took = nanos(now.saturating_duration_since(self.since));
            let response = nanos(now.saturating_duration_since(self.arrived));
            held.station().record(|cell| {
                cell.service.record(took);
                cell.respond(response);
                cell.count(outcome.into(), 1);
            });
        }
    }
}

impl Drop for Serving<'_> {
    fn drop(&mut self) {
        self.finish(Outcome::Failed);
    }
}
