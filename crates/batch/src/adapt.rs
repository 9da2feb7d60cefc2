//! The size of batches, found by trying: uphill in items a second, within a bound on how long a batch takes.
//!
//! Pure arithmetic: it is told of batches and says a size. A rate is measured over an *epoch* of full batches, as others say
//! nothing about the size. Upwards it goes as long as each step makes the rate better by more than chance does; then downwards, as
//! long as the rate stays near the best one: of two sizes that are as good, the smaller one costs everybody less time.

use std::time::Duration;

/// Full batches in an epoch.
const BATCHES: u32 = 8;
/// A change below this is chance.
const NOTICEABLE: f64 = 0.03;
/// What may be lost for smaller batches.
const NEAR: f64 = 0.05;
/// So much of the best rate is forgotten with each epoch: the other side may have become slower.
const FORGOTTEN: f64 = 0.002;
/// A step, up or down.
const STEP: f64 = 1.25;

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct Climber {
    least: usize,
    most: usize,
    bound: Duration,
    size: usize,
    upwards: bool,
    /// Items a second at the size before.
    before: f64,
    best: f64,
    batches: u32,
    items: u64,
    busy: Duration,
    longest: Duration,
}

impl Climber {
    /// Begins with batches of `least`.
    pub(crate) fn new(least: usize, most: usize, bound: Duration) -> Self {
        Self {
            least,
            most,
            bound,
            size: least,
            upwards: true,
            before: 0.0,
            best: 0.0,
            batches: 0,
            items: 0,
            busy: Duration::ZERO,
            longest: Duration::ZERO,
        }
    }

    pub(crate) fn size(&self) -> usize {
        self.size
    }

    /// A batch has taken so long. Whether the size is another one now.
    pub(crate) fn took(&mut self, items: usize, service: Duration) -> bool {
        // One that was taken before the size changed, or was not full, says nothing about this size; but what was too long for
        // a smaller one is too long.
        let too_long = service > self.bound && items <= self.size;
        if items != self.size && !too_long {
            return false;
        }
        self.batches += 1;
        self.items += items as u64;
        self.busy += service;
        self.longest = self.longest.max(service);
        if self.batches < BATCHES && !too_long {
            return false;
        }
        let rate = self.items as f64 / self.busy.as_secs_f64().max(1e-9);
        let (size, longest) = (self.size, self.longest);
        (self.batches, self.items, self.busy, self.longest) = (0, 0, Duration::ZERO, Duration::ZERO);
        if longest > self.bound {
            self.shrink(longest);
        } else {
            self.climb(rate, longest);
        }
        self.size != size
    }

    /// Towards what would have been in time, if time goes with size; a step at least.
    fn shrink(&mut self, longest: Duration) {
        let share = self.bound.as_secs_f64() / longest.as_secs_f64();
        self.upwards = false;
        self.go_to(self.size as f64 * share.clamp(0.25, 1.0 / STEP));
    }

    fn climb(&mut self, rate: f64, longest: Duration) {
        self.best = rate.max(self.best * (1.0 - FORGOTTEN));
        self.upwards = if self.upwards {
            rate > self.before * (1.0 + NOTICEABLE)
        } else {
            rate < self.best * (1.0 - NEAR) || self.size == self.least
        };
        self.before = rate;
        // Not knowingly beyond the bound: a batch one step larger takes at most a step longer, if time goes with size.
        if self.upwards && longest.mul_f64(STEP) > self.bound {
            return;
        }
        self.go_to(if self.upwards { self.size as f64 * STEP } else { self.size as f64 / STEP });
    }

    fn go_to(&mut self, size: f64) {
        let rounded = if size > self.size as f64 { size.ceil() } else { size.floor() };
        self.size = (rounded as usize).clamp(self.least, self.most);
    }
}

#[cfg(test)]
mod tests {
    use super::Climber;
    use std::time::Duration;

    const LONG: Duration = Duration::from_secs(10);

    /// Sizes in the last half of so many full batches, each of which takes `cost(items)` microseconds.
    fn sizes(mut climber: Climber, batches: usize, cost: impl Fn(f64) -> f64) -> Vec<usize> {
        let mut sizes = Vec::new();
        for _ in 0..batches {
            let items = climber.size();
            sizes.push(items);
            climber.took(items, Duration::from_secs_f64(cost(items as f64) / 1e6));
        }
        sizes.split_off(batches / 2)
    }

    #[test]
    fn it_finds_a_peak_and_stays_near_it() {
        // 1 ms for each call, 10 us for each item, and what grows with the square: best at the square root of 1000 / 0.01.
        let cost = |n: f64| 1000.0 + 10.0 * n + 0.01 * n * n;
        let seen = sizes(Climber::new(1, 10_000, LONG), 2_000, cost);
        let best = 316.0 / cost(316.0);
        let worst = seen.iter().map(|n| *n as f64 / cost(*n as f64) / best).fold(f64::MAX, f64::min);
        assert!(worst > 0.85, "{worst} of the best rate, with sizes {:?}", &seen[..200]);
    }

    #[test]
    fn it_keeps_to_the_bound() {
        // Larger is always better, but 20 ms are reached at 1,900.
        let cost = |n: f64| 1000.0 + 10.0 * n;
        let seen = sizes(Climber::new(1, 10_000, Duration::from_millis(20)), 2_000, cost);
        assert!(seen.iter().all(|n| *n <= 1900), "{seen:?}");
        let rate = |n: f64| n / cost(n);
        let least = *seen.iter().min().unwrap();
        assert!(rate(least as f64) > 0.85 * rate(1900.0), "{least} is far from what was allowed");
    }

    #[test]
    fn where_size_makes_no_difference_batches_stay_small() {
        let seen = sizes(Climber::new(10, 10_000, LONG), 2_000, |n| 10.0 * n);
        assert!(seen.iter().all(|n| *n < 40), "{seen:?}");
    }

    #[test]
    fn it_comes_down_at_once_when_the_other_side_gets_slow() {
        let mut climber = Climber::new(1, 1000, Duration::from_millis(10));
        while climber.size() < 500 {
            let items = climber.size();
            climber.took(items, Duration::from_micros(1000 + items as u64));
        }
        let size = climber.size();
        assert!(climber.took(size, Duration::from_secs(1)), "one batch is enough");
        assert_eq!(climber.size(), size / 4);
        assert!(!climber.took(size, Duration::from_secs(1)), "taken before; it says nothing of the new size");
    }

    #[test]
    fn batches_that_are_not_full_change_nothing() {
        let mut climber = Climber::new(4, 1000, LONG);
        assert!((0..1000).all(|_| !climber.took(3, Duration::from_millis(1))));
    }

    #[test]
    fn it_never_leaves_its_limits() {
        let seen = sizes(Climber::new(7, 9, LONG), 500, |n| 1000.0 - n);
        assert!(seen.iter().all(|n| (7..=9).contains(n)));
        let seen = sizes(Climber::new(5, 5, LONG), 100, |_| 0.0);
        assert!(seen.iter().all(|n| *n == 5));
    }
}
