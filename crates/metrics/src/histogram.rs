//! A log-linear histogram of nanoseconds that many threads write and anybody reads, without a lock.
//!
//! A value below 256 has a bucket of its own; above, each power of two is cut into 128 buckets, so a bucket is at most
//! 1/128 = 0.78 % of its value wide. Buckets come in pages of 128 on first touch.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::error::TooFewSamples;

/// Buckets to each power of two, as a power of two.
const GROUPING: u32 = 7;
const PAGE: usize = 1 << GROUPING;
/// Pages 0 and 1 hold the exact values below 256, then one page to a power of two: `u64` needs 64 - 8 more.
const PAGES: usize = 2 + (64 - GROUPING as usize - 1);

type Page = [AtomicU64; PAGE];

/// The histogram.
#[derive(Debug)]
pub(crate) struct Histogram {
    pages: [OnceLock<Box<Page>>; PAGES],
    sum: AtomicU64,
    min: AtomicU64,
    max: AtomicU64,
}

/// The bucket that holds `value`.
fn index(value: u64) -> usize {
    let Some(magnitude) = value.checked_ilog2() else { return 0 };
    if magnitude <= GROUPING {
        return value as usize;
    }
    let shift = magnitude - GROUPING;
    // The leading bit and the seven after it choose the bucket; the leading bit counts into the page number.
    ((shift as usize) << GROUPING) + (value >> shift) as usize
}

/// The smallest and the largest value of a bucket.
fn bounds(index: usize) -> (u64, u64) {
    if index < 2 * PAGE {
        return (index as u64, index as u64);
    }
    let shift = (index >> GROUPING) - 1;
    let low = ((PAGE + (index & (PAGE - 1))) as u64) << shift;
    (low, low + ((1u64 << shift) - 1))
}

impl Histogram {
    pub(crate) const fn new() -> Self {
        Self {
            pages: [const { OnceLock::new() }; PAGES],
            sum: AtomicU64::new(0),
            min: AtomicU64::new(u64::MAX),
            max: AtomicU64::new(0),
        }
    }

    /// Records a duration, in nanoseconds, `times` times. One allocation of 1 KiB at the first touch of a page.
    pub(crate) fn record_n(&self, duration: Duration, times: u64) {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        // ORDERING: Relaxed, but the bucket: its Release pairs with the Acquire in `snapshot`. Who sees the sample in its
        // bucket sees it in the sum and between the extremes, also if another thread had set those.
        if nanos < self.min.load(Ordering::Relaxed) {
            self.min.fetch_min(nanos, Ordering::Relaxed);
        }
        if nanos > self.max.load(Ordering::Relaxed) {
            self.max.fetch_max(nanos, Ordering::Relaxed);
        }
        self.sum.fetch_add(nanos.saturating_mul(times), Ordering::Relaxed);
        let index = index(nanos);
        let page = self.pages[index >> GROUPING].get_or_init(|| Box::new([const { AtomicU64::new(0) }; PAGE]));
        page[index & (PAGE - 1)].fetch_add(times, Ordering::Release);
    }

    pub(crate) fn snapshot(&self) -> HistogramSnapshot {
        let mut buckets = Vec::new();
        let mut count = 0;
        for (number, page) in self.pages.iter().enumerate() {
            let Some(page) = page.get() else { continue };
            for (slot, bucket) in page.iter().enumerate() {
                // ORDERING: Acquire pairs with the Release in `record_n`.
                let n = bucket.load(Ordering::Acquire);
                if n > 0 {
                    count += n;
                    buckets.push(((number << GROUPING) + slot, n));
                }
            }
        }
        if count == 0 {
            return HistogramSnapshot::default();
        }
        // Written before the buckets and read after them: at least as wide, and as much, as what the buckets hold.
        let sum = self.sum.load(Ordering::Relaxed);
        let (min, max) = (self.min.load(Ordering::Relaxed), self.max.load(Ordering::Relaxed));
        HistogramSnapshot { buckets, count, sum, min, max }
    }
}

/// What a histogram held at one moment. Durations; relative error at most 0.8 %.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct HistogramSnapshot {
    /// Index and count of every bucket that is not empty, in order.
    buckets: Vec<(usize, u64)>,
    count: u64,
    sum: u64,
    min: u64,
    max: u64,
}

/// A percentile with its confidence interval.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Percentile {
    /// The value at the rank.
    pub value: Duration,
    /// Lower end of the 95 % confidence interval, from order statistics.
    pub low: Duration,
    /// Upper end of it.
    pub high: Duration,
    /// How many samples there are.
    pub n: u64,
}

impl std::fmt::Display for Percentile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.3?} ({:.3?} .. {:.3?}, n = {})", self.value, self.low, self.high, self.n)
    }
}

impl HistogramSnapshot {
    /// How many durations were recorded. Sampled paths record fewer than the counts of their station say.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The sum of all. Wraps after 584 years of recorded time.
    #[must_use]
    pub fn sum(&self) -> Duration {
        Duration::from_nanos(self.sum)
    }

    /// The exact smallest.
    #[must_use]
    pub fn min(&self) -> Option<Duration> {
        (self.count > 0).then(|| Duration::from_nanos(self.min))
    }

    /// The exact largest.
    #[must_use]
    pub fn max(&self) -> Option<Duration> {
        (self.count > 0).then(|| Duration::from_nanos(self.max))
    }

    /// The arithmetic mean.
    #[must_use]
    pub fn mean(&self) -> Option<Duration> {
        // While others record, the sum may hold samples that the count does not.
        (self.count > 0).then(|| Duration::from_nanos((self.sum / self.count).clamp(self.min, self.max)))
    }

    /// The median. See [`quantile`](Self::quantile).
    ///
    /// # Errors
    /// With fewer than 20 samples.
    pub fn p50(&self) -> Result<Percentile, TooFewSamples> {
        self.quantile(0.5)
    }

    /// The 99th percentile. See [`quantile`](Self::quantile).
    ///
    /// # Errors
    /// With fewer than 1,000 samples.
    pub fn p99(&self) -> Result<Percentile, TooFewSamples> {
        self.quantile(0.99)
    }

    /// The value at quantile `q`, with the 95 % confidence interval of its rank.
    ///
    /// # Errors
    /// If fewer than ten samples lie beyond the quantile (1,000 samples are needed for p99): the number would be noise. Also
    /// if `q` is not between 0 and 1.
    pub fn quantile(&self, q: f64) -> Result<Percentile, TooFewSamples> {
        let tail = q.min(1.0 - q);
        // Not `tail * n < 10`, whose rounding would refuse p99 at exactly 1,000.
        let needed = if tail > 0.0 { (10.0 / tail).round() as u64 } else { u64::MAX };
        if !(0.0..=1.0).contains(&q) || self.count < needed {
            return Err(TooFewSamples { q, n: self.count, needed });
        }
        let n = self.count as f64;
        let spread = 1.96 * (n * q * (1.0 - q)).sqrt();
        let value = self.at_rank((n * q).ceil());
        Ok(Percentile {
            value,
            low: self.at_rank((n * q - spread).floor()).min(value),
            high: self.at_rank((n * q + spread).ceil()).max(value),
            n: self.count,
        })
    }

    /// The upper end of the bucket that holds the sample of this rank (1 is the smallest), within the true extremes.
    fn at_rank(&self, rank: f64) -> Duration {
        let rank = rank.max(1.0) as u64;
        let mut seen = 0;
        for (index, n) in &self.buckets {
            seen += n;
            if seen >= rank {
                return Duration::from_nanos(bounds(*index).1.clamp(self.min, self.max));
            }
        }
        Duration::from_nanos(self.max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn buckets_tile_the_whole_range() {
        let mut next = 0u64;
        for index in 0..PAGES * PAGE {
            let (low, high) = bounds(index);
            assert_eq!(low, next, "bucket {index} begins where the one before ends");
            assert_eq!(super::index(low), index);
            assert_eq!(super::index(high), index);
            if high == u64::MAX {
                assert_eq!(index, PAGES * PAGE - 1, "the last bucket ends the range");
                return;
            }
            next = high + 1;
        }
        panic!("the range is not covered");
    }

    #[test]
    fn extremes_are_exact_and_do_not_panic() {
        let histogram = Histogram::new();
        for nanos in [0, 1, u64::MAX] {
            histogram.record_n(Duration::from_nanos(nanos), 1);
        }
        histogram.record_n(Duration::MAX, 1);
        let snapshot = histogram.snapshot();
        assert_eq!(snapshot.count(), 4);
        assert_eq!(snapshot.min(), Some(Duration::ZERO));
        assert_eq!(snapshot.max(), Some(Duration::from_nanos(u64::MAX)));
    }

    #[test]
    fn what_is_recorded_during_a_snapshot_does_not_move_the_mean_out_of_range() {
        // Seen in the sum, not yet in its bucket: three samples of 1,000 ns.
        let seen = HistogramSnapshot { buckets: vec![(10, 1)], count: 1, sum: 3010, min: 10, max: 1000 };
        assert_eq!(seen.mean(), Some(Duration::from_nanos(1000)));
    }

    #[test]
    fn a_quantile_needs_ten_samples_beyond_it() {
        let histogram = Histogram::new();
        histogram.record_n(Duration::from_micros(5), 999);
        let refused = histogram.snapshot().p99().unwrap_err();
        assert_eq!((refused.n, refused.needed), (999, 1000));
        histogram.record_n(Duration::from_micros(5), 1);
        assert_eq!(histogram.snapshot().p99().unwrap().value, Duration::from_micros(5));
        assert!(histogram.snapshot().quantile(f64::NAN).is_err());
        assert!(histogram.snapshot().quantile(1.5).is_err());
    }

    proptest! {
        #[test]
        fn quantiles_are_within_the_stated_error(
            mut values in proptest::collection::vec(1u64..4_000_000_000_000, 100..600),
            q in 0.1f64..0.9,
        ) {
            let histogram = Histogram::new();
            for value in &values {
                histogram.record_n(Duration::from_nanos(*value), 1);
            }
            values.sort_unstable();
            let snapshot = histogram.snapshot();
            prop_assert_eq!(snapshot.sum(), Duration::from_nanos(values.iter().sum()));
            let exact = values[((values.len() as f64 * q).ceil() as usize).max(1) - 1] as f64;
            let got = snapshot.quantile(q).unwrap();
            let error = (got.value.as_nanos() as f64 - exact).abs() / exact;
            prop_assert!(error <= 0.008, "{} for {}", got.value.as_nanos(), exact);
            prop_assert!(got.low <= got.value && got.value <= got.high);
            prop_assert!(got.high <= snapshot.max().unwrap());
        }
    }
}
