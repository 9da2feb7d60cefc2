//! How long to wait between attempts.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};

/// Pauses that double from `min` to `max`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// The first pause.
    pub min: Duration,
    /// The longest one.
    pub max: Duration,
    /// Whether each is lengthened by a random part of itself, so that many who failed together do not come back together.
    pub jitter: bool,
}

impl Backoff {
    /// How long to wait after so many attempts; the first pause is that after 1.
    #[must_use]
    pub fn pause(&self, attempts: u32) -> Duration {
        /// After so many doublings a nanosecond is the longest `Duration`: further attempts change nothing.
        const DOUBLINGS: u32 = 94;
        let backoff = ExponentialBuilder::default()
            .with_min_delay(self.min)
            .with_max_delay(self.max)
            .with_max_times(attempts.min(DOUBLINGS + 1) as usize);
        let backoff = if self.jitter { backoff.with_jitter() } else { backoff };
        backoff.build().last().unwrap_or(self.max)
    }
}

#[cfg(all(test, not(fullbore_loom)))]
mod tests {
    use super::*;

    const MILLI: Duration = Duration::from_millis(1);

    fn steady(min: Duration, max: Duration) -> Backoff {
        Backoff { min, max, jitter: false }
    }

    #[test]
    fn pauses_double_up_to_the_maximum() {
        let backoff = steady(125 * MILLI, 1100 * MILLI);
        assert_eq!([1, 2, 3, 4, 5, 6].map(|n| backoff.pause(n).as_millis()), [125, 250, 500, 1000, 1100, 1100]);
    }

    #[test]
    fn extreme_settings_have_a_pause() {
        let far = |min, max| [1, 64, u32::MAX].map(|n| Backoff { min, max, jitter: true }.pause(n));
        assert_eq!(far(Duration::ZERO, Duration::ZERO), [Duration::ZERO; 3]);
        assert_eq!(far(Duration::ZERO, Duration::MAX), [Duration::ZERO; 3]);
        assert_eq!(far(Duration::MAX, Duration::MAX), [Duration::MAX; 3]);
        assert_eq!(steady(Duration::from_nanos(1), Duration::MAX).pause(u32::MAX), Duration::MAX);
    }

    #[test]
    fn jitter_lengthens_each_pause_by_less_than_itself() {
        let backoff = Backoff { min: 125 * MILLI, max: Duration::from_secs(30), jitter: true };
        let fourth: Vec<u128> = (0..1000).map(|_| backoff.pause(4).as_millis()).collect();
        assert!(fourth.iter().all(|pause| (1000..=2000).contains(pause)), "{fourth:?}");
        assert!(fourth.iter().any(|pause| *pause < 1500) && fourth.iter().any(|pause| *pause >= 1500), "{fourth:?}");
    }
}
