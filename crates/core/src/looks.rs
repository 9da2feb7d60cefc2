//! How long to look before going to sleep. Not for users: hidden, and outside what versions promise.
//!
//! A sleep and a wake-up cost a few microseconds of both threads, and on many machines tens of microseconds go by in between. Whoever
//! sleeps too early where things come thick and fast sets a rhythm of sleeps for both sides; whoever looks too long where
//! they come seldom wastes a processor. So each sleep teaches: one that was short should have been looks.

use std::time::{Duration, Instant};

use crate::clock::Clock;
use crate::shim::{spin_loop, yield_now};

/// The first looks are close together; later ones let other threads run first.
const CLOSE: u32 = 8;
/// Pauses between two close looks: a sender fills a batch in 200 ns.
const PAUSES: u32 = 20;
/// The bound that is never gone below.
pub const LEAST: u32 = 12;
/// Under the model checker nobody looks: it would only try more orders of the same.
const OFF: bool = cfg!(fullbore_loom);
/// Some 50 microseconds where no other thread wants to run.
const MOST: u32 = 160;
/// Where other threads do want to run, one look can take as long as they like: whoever is woken runs sooner than whoever has let others
/// run first.
const LONG: Duration = Duration::from_micros(50);
/// A sleep shorter than this should have been looks.
const SHORT: Duration = Duration::from_micros(100);

/// One wait's looks.
#[derive(Debug)]
pub struct Round {
    look: u32,
    bound: u32,
    since: Option<Instant>,
}

impl Round {
    /// So many looks at most; none on a clock that stands still, where they teach nothing.
    #[must_use]
    pub fn new(bound: u32, clock: &Clock) -> Self {
        let of_use = !OFF && matches!(clock, Clock::Real);
        Self { look: 0, bound: if of_use { bound } else { 0 }, since: None }
    }

    /// The number of the next look, if there is to be one.
    #[expect(
        clippy::should_implement_trait,
        reason = "it is asked for between other things, never in a loop of its own"
    )]
    pub fn next(&mut self) -> Option<u32> {
        let look = self.look;
        if look >= self.bound {
            return None;
        }
        // The first ones let nobody else run.
        if look >= CLOSE {
            let now = Instant::now();
            if now.saturating_duration_since(*self.since.get_or_insert(now)) > LONG {
                return None;
            }
        }
        self.look += 1;
        Some(look)
    }
}

/// The bound on the looks of one side.
#[derive(Clone, Copy, Debug)]
pub struct Looks(u32);

impl Looks {
    /// The least.
    #[must_use]
    pub const fn new() -> Self {
        Self(LEAST)
    }

    /// So many looks at most.
    #[must_use]
    pub const fn bound(self) -> u32 {
        self.0
    }

    /// Somebody has slept so long.
    pub fn learn(&mut self, slept: Duration) {
        self.0 = if slept < SHORT { (self.0 * 2).min(MOST) } else { (self.0 / 2).max(LEAST) };
    }
}

impl Default for Looks {
    fn default() -> Self {
        Self::new()
    }
}

/// Before the look with this number.
pub fn pause(look: u32) {
    if look < CLOSE {
        (0..PAUSES).for_each(|_| spin_loop());
    } else {
        yield_now();
    }
}

#[cfg(all(test, not(fullbore_loom)))]
mod tests {
    use super::{CLOSE, LEAST, LONG, Looks, MOST, Round, SHORT};
    use crate::{Clock, PausedClock};
    use std::time::{Duration, Instant};

    #[test]
    fn a_round_ends_by_number_by_time_and_on_a_paused_clock_at_once() {
        let mut round = Round::new(3, &Clock::Real);
        assert_eq!([(); 4].map(|()| round.next()), [Some(0), Some(1), Some(2), None]);
        assert_eq!(Round::new(MOST, &Clock::from(PausedClock::new())).next(), None);
        let mut round = Round::new(MOST, &Clock::Real);
        (0..CLOSE).for_each(|look| assert_eq!(round.next(), Some(look)));
        round.since = Instant::now().checked_sub(2 * LONG);
        assert_eq!(round.next(), None, "its time is over");
    }

    #[test]
    fn short_sleeps_lengthen_the_looks_and_long_ones_shorten_them() {
        let mut looks = Looks::new();
        (0..10).for_each(|_| looks.learn(Duration::ZERO));
        assert_eq!(looks.bound(), MOST);
        (0..10).for_each(|_| looks.learn(SHORT));
        assert_eq!(looks.bound(), LEAST);
    }
}
