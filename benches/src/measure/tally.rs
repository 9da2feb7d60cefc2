//! What came out at the far end, where items are handed on to other threads.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};

/// How many of the low bits hold the count; the sum, without its high bits, is above them.
const COUNT_BITS: u32 = 40;
const COUNT: u64 = (1 << COUNT_BITS) - 1;

/// Counts and sums up what is processed, and tells when all of a turn is: the same for both sides, and no more than one
/// atomic addition a call, so that it hides little of the difference between them.
#[derive(Debug)]
pub struct Tally {
    /// The count and the sum.
    seen: AtomicU64,
    /// The count at which the turn is over.
    target: AtomicU64,
    over: Sender<()>,
    is_over: Receiver<()>,
}

impl Default for Tally {
    fn default() -> Self {
        let (over, is_over) = bounded(1);
        Self { seen: AtomicU64::new(0), target: AtomicU64::new(0), over, is_over }
    }
}

/// Both in one number.
fn packed(count: u64, sum: u64) -> u64 {
    (sum << COUNT_BITS).wrapping_add(count)
}

impl Tally {
    /// These were processed.
    pub fn add(&self, items: &[u64]) {
        self.add_each(items.len(), items.iter().copied());
    }

    /// The same, where the numbers are parts of the items.
    pub fn add_each(&self, n: usize, items: impl Iterator<Item = u64>) {
        self.add_sum(n as u64, items.fold(0, |sum: u64, item| sum.wrapping_add(item)));
    }

    /// The same, where somebody has counted and summed them up.
    pub fn add_sum(&self, n: u64, sum: u64) {
        let before = self.seen.fetch_add(packed(n, sum), Ordering::Relaxed) & COUNT;
        let target = self.target.load(Ordering::Relaxed);
        if before < target && before + n >= target {
            // There is room: `wait` takes it before the next target is set.
            let _ = self.over.try_send(());
        }
    }

    /// A turn of `count` items begins. To be called before the first of them is sent, whose way also makes it seen.
    pub fn expect(&self, count: u64) {
        self.seen.store(0, Ordering::Relaxed);
        self.target.store(count, Ordering::Relaxed);
    }

    /// Waits until all of them are processed.
    ///
    /// # Panics
    /// If that takes more than a minute: something was lost.
    pub fn wait(&self) {
        self.is_over.recv_timeout(Duration::from_secs(60)).expect("all items are processed within a minute");
    }

    /// Checks that the items of the turn were the numbers below `end`, each `copies` times.
    ///
    /// # Panics
    /// If the count or the sum is wrong.
    pub fn check(&self, end: u64, copies: u64) {
        let sum = u128::from(end) * u128::from(end - 1) / 2 * u128::from(copies);
        let (seen, expected) = (self.seen.load(Ordering::Relaxed), packed(end * copies, sum as u64));
        assert_eq!(seen & COUNT, expected & COUNT, "processed items");
        assert_eq!(seen >> COUNT_BITS, expected >> COUNT_BITS, "the sum of the processed items, its low bits");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_ends_when_all_are_there() {
        let tally = Tally::default();
        for _ in 0..2 {
            tally.expect(4);
            tally.add(&[1, 0, 0]);
            tally.add(&[1]);
            tally.wait();
            tally.check(2, 2);
        }
    }

    #[test]
    #[should_panic(expected = "the sum of the processed items")]
    fn a_wrong_item_is_noticed() {
        let tally = Tally::default();
        tally.expect(1);
        tally.add(&[1]);
        tally.wait();
        tally.check(1, 1);
    }
}
