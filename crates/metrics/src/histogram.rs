//! Histograms of whole numbers: recorded by many threads, read by anybody, without a lock between them.

use std::fmt;
use std::ops::RangeInclusive;
use std::time::Duration;

use crate::buckets::{PAGE, bounds, place};
use crate::cell::HistogramCell;
use crate::error::{InvalidObservation, QuantileError, WindowError};
use crate::raw::Handle;

/// A distribution of whole numbers: bytes, rows, nanoseconds. A cheap handle; clones share everything.
///
/// Recording writes to memory of the calling thread's own. What is recorded comes back with a relative error of at most 0.8 %
/// over all of `u64`; minimum, maximum, sum and count are exact.
///
/// ```
/// use fullbore_metrics::Histogram;
///
/// static ROWS: Histogram = Histogram::new();
/// for rows in 1..=1000 {
///     ROWS.record(rows);
/// }
/// let seen = ROWS.snapshot();
/// assert_eq!((seen.count(), seen.min(), seen.max(), seen.sum()), (1000, Some(1), Some(1000), 500_500));
/// assert!((495..=505).contains(&seen.p50()?.value));
/// assert!(seen.quantile(0.999).is_err(), "one sample beyond the quantile says nothing");
/// # Ok::<(), fullbore_metrics::QuantileError>(())
/// ```
pub struct Histogram {
    handle: Handle<HistogramCell, ()>,
}

impl Histogram {
    /// An empty one. Takes no memory before the first record.
    #[must_use]
    pub const fn new() -> Self {
        Self { handle: Handle::new() }
    }

    /// Counts one sample. Wait-free; allocates when this thread touches a power of two for the first time (320 bytes, and
    /// 600 for the very first).
    #[inline]
    pub fn record(&self, value: u64) {
        self.handle.mine(|| ()).write(|cell| cell.record(value));
    }

    /// Counts a duration, in nanoseconds; one of over 584 years counts as that.
    #[inline]
    pub fn record_duration(&self, duration: Duration) {
        self.record(nanos(duration));
    }

    /// Counts a number that comes from elsewhere, rounded to a whole one.
    ///
    /// # Errors
    /// If it is not a number, infinite or negative. Nothing is counted then.
    pub fn try_record(&self, value: f64) -> Result<(), InvalidObservation> {
        if !value.is_finite() || value < 0.0 {
            return Err(InvalidObservation(value));
        }
        // The cast saturates.
        self.record(value.round() as u64);
        Ok(())
    }

    /// What was recorded up to now, by threads that live and threads that have ended.
    #[must_use]
    pub fn snapshot(&self) -> HistogramSnapshot {
        let Some(shards) = self.handle.get() else { return HistogramSnapshot::default() };
        shards.read(|cells| HistogramSnapshot::of(|| cells.iter()))
    }

    /// The same, for nanoseconds.
    #[must_use]
    pub fn durations(&self) -> DurationSnapshot {
        DurationSnapshot::new(self.snapshot())
    }

    pub(crate) fn id(&self) -> u64 {
        self.handle.id()
    }
}

/// The nanoseconds of a duration, or the most that fit.
#[inline]
pub(crate) fn nanos(duration: Duration) -> u64 {
    duration
        .as_secs()
        .checked_mul(1_000_000_000)
        .and_then(|nanos| nanos.checked_add(u64::from(duration.subsec_nanos())))
        .unwrap_or(u64::MAX)
}

impl Clone for Histogram {
    fn clone(&self) -> Self {
        Self { handle: self.handle.share(|| ()) }
    }
}

impl Default for Histogram {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Histogram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Histogram").field("count", &self.snapshot().count()).finish_non_exhaustive()
    }
}

/// What a histogram held at one moment; also a histogram for a single owner, with [`record`](Self::record) and
/// [`merge`](Self::merge).
#[derive(Clone, Default)]
pub struct HistogramSnapshot {
    /// A bit for each page that is in `counts`, one page after the other.
    present: u64,
    counts: Vec<u64>,
    count: u64,
    sum: u128,
    min: u64,
    max: u64,
}

/// A value at a quantile, with its confidence interval.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Percentile<T> {
    /// The value at the rank.
    pub value: T,
    /// Lower end of the 95 % confidence interval, from order statistics.
    pub low: T,
    /// Upper end of it.
    pub high: T,
    /// How many samples there are.
    pub n: u64,
}

impl<T> Percentile<T> {
    fn map<U>(self, f: impl Fn(T) -> U) -> Percentile<U> {
        Percentile { value: f(self.value), low: f(self.low), high: f(self.high), n: self.n }
    }
}

impl fmt::Display for Percentile<u64> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} .. {}, n = {})", self.value, self.low, self.high, self.n)
    }
}

impl fmt::Display for Percentile<Duration> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.3?} ({:.3?} .. {:.3?}, n = {})", self.value, self.low, self.high, self.n)
    }
}

/// The numbers of the bits that are set.
fn bits(mut mask: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let bit = (mask != 0).then(|| mask.trailing_zeros() as usize)?;
        mask &= mask - 1;
        Some(bit)
    })
}

impl HistogramSnapshot {
    /// Reads cells that others may be writing: buckets first, then the rest, which recording writes the other way round.
    pub(crate) fn of<'a, I: Iterator<Item = &'a HistogramCell>>(cells: impl Fn() -> I) -> Self {
        let present = cells().fold(0, |present, cell| present | cell.present());
        if present == 0 {
            return Self::default();
        }
        let mut read = Self { present, counts: vec![0; present.count_ones() as usize * PAGE], ..Self::default() };
        for cell in cells() {
            // What has come since is for the next snapshot.
            for page in bits(cell.present() & present) {
                cell.add_page_to(page, read.page_mut(page));
            }
        }
        read.count = read.counts.iter().fold(0, |sum: u64, n| sum.saturating_add(*n));
        if read.count == 0 {
            return Self::default();
        }
        read.min = u64::MAX;
        for (sum, min, max) in cells().map(HistogramCell::sum_min_max) {
            read.sum += sum;
            read.min = read.min.min(min);
            read.max = read.max.max(max);
        }
        read
    }

    /// Where the page begins in `counts`, if it is there or was to be put there.
    fn offset(&self, page: usize) -> usize {
        (self.present & ((1 << page) - 1)).count_ones() as usize * PAGE
    }

    /// A page that is there.
    fn page_mut(&mut self, page: usize) -> &mut [u64; PAGE] {
        let offset = self.offset(page);
        self.counts[offset..].first_chunk_mut().expect("a page that is there is whole")
    }

    /// A page that is put there if need be.
    fn page_or_new(&mut self, page: usize) -> &mut [u64; PAGE] {
        if self.present & (1 << page) == 0 {
            let offset = self.offset(page);
            self.counts.splice(offset..offset, [0; PAGE]);
            self.present |= 1 << page;
        }
        self.page_mut(page)
    }

    fn page(&self, page: usize) -> Option<&[u64]> {
        let offset = self.offset(page);
        (self.present & (1 << page) != 0).then(|| &self.counts[offset..offset + PAGE])
    }

    /// Place and count of all buckets that are not empty.
    fn filled(&self) -> impl DoubleEndedIterator<Item = (usize, usize, u64)> {
        let pages: Vec<usize> = bits(self.present).collect();
        let counts = self.counts.iter().enumerate().filter(|(_, n)| **n > 0);
        counts.map(move |(at, n)| (pages[at / PAGE], at % PAGE, *n))
    }

    /// Counts one more sample.
    pub fn record(&mut self, value: u64) {
        self.record_n(value, 1);
    }

    /// Counts the same value `n` times.
    pub(crate) fn record_n(&mut self, value: u64, n: u64) {
        if n == 0 {
            return;
        }
        let (page, slot) = place(value);
        let bucket = &mut self.page_or_new(page)[slot];
        *bucket = bucket.saturating_add(n);
        (self.min, self.max) = match self.count {
            0 => (value, value),
            _ => (self.min.min(value), self.max.max(value)),
        };
        self.count = self.count.saturating_add(n);
        self.sum = self.sum.saturating_add(u128::from(value) * u128::from(n));
    }

    /// Adds another's samples.
    pub fn merge(&mut self, other: &Self) {
        if other.count == 0 {
            return;
        }
        for (page, slot, n) in other.filled() {
            let bucket = &mut self.page_or_new(page)[slot];
            *bucket = bucket.saturating_add(n);
        }
        (self.min, self.max) = match self.count {
            0 => (other.min, other.max),
            _ => (self.min.min(other.min), self.max.max(other.max)),
        };
        self.count = self.count.saturating_add(other.count);
        self.sum = self.sum.saturating_add(other.sum);
    }

    /// What was recorded between an earlier snapshot and this one. Its minimum and maximum are those of their buckets, unless
    /// they are new extremes.
    ///
    /// # Errors
    /// If `earlier` holds samples that this one does not.
    pub fn since(&self, earlier: &Self) -> Result<Self, WindowError> {
        let mut window = self.clone();
        for (page, slot, n) in earlier.filled() {
            if window.page(page).is_none() {
                return Err(WindowError::NotEarlier);
            }
            let count = &mut window.page_mut(page)[slot];
            *count = count.checked_sub(n).ok_or(WindowError::NotEarlier)?;
        }
        window.count -= earlier.count;
        window.sum = window.sum.checked_sub(earlier.sum).ok_or(WindowError::NotEarlier)?;
        let mut filled = window.filled();
        let Some(first) = filled.next() else { return Ok(Self::default()) };
        let last = filled.next_back().unwrap_or(first);
        drop(filled);
        if earlier.count > 0 {
            if self.min >= earlier.min {
                window.min = bounds(first.0, first.1).0.max(self.min);
            }
            if self.max <= earlier.max {
                window.max = bounds(last.0, last.1).1.min(self.max);
            }
        }
        Ok(window)
    }

    /// How many samples there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The exact sum of all.
    #[must_use]
    pub fn sum(&self) -> u128 {
        self.sum
    }

    /// The exact smallest.
    #[must_use]
    pub fn min(&self) -> Option<u64> {
        (self.count > 0).then_some(self.min)
    }

    /// The exact largest.
    #[must_use]
    pub fn max(&self) -> Option<u64> {
        (self.count > 0).then_some(self.max)
    }

    /// The arithmetic mean.
    #[must_use]
    pub fn mean(&self) -> Option<f64> {
        // While others record, the sum may hold samples that the count does not.
        (self.count > 0).then(|| (self.sum as f64 / self.count as f64).clamp(self.min as f64, self.max as f64))
    }

    /// The buckets that are not empty, from the smallest values to the largest: the values they stand for, and their counts.
    pub fn buckets(&self) -> impl Iterator<Item = (RangeInclusive<u64>, u64)> {
        self.filled().map(|(page, slot, n)| {
            let (low, high) = bounds(page, slot);
            (low..=high, n)
        })
    }

    /// How many samples are at most `value`; those in its own bucket count if the middle of the bucket is.
    #[must_use]
    pub fn at_most(&self, value: u64) -> u64 {
        if value < self.min {
            return 0;
        }
        if value >= self.max {
            return self.count;
        }
        let below = self.filled().take_while(|(page, slot, _)| middle(*page, *slot) <= value);
        below.map(|(_, _, n)| n).sum()
    }

    /// The median. See [`quantile`](Self::quantile).
    ///
    /// # Errors
    /// With fewer than 20 samples.
    pub fn p50(&self) -> Result<Percentile<u64>, QuantileError> {
        self.quantile(0.5)
    }

    /// The 99th percentile. See [`quantile`](Self::quantile).
    ///
    /// # Errors
    /// With fewer than 1,000 samples.
    pub fn p99(&self) -> Result<Percentile<u64>, QuantileError> {
        self.quantile(0.99)
    }

    /// The value at quantile `q`, with the 95 % confidence interval of its rank.
    ///
    /// # Errors
    /// If fewer than ten samples lie beyond the quantile (1,000 samples are needed for p99): the number would be noise. Also
    /// if `q` is not between 0 and 1.
    pub fn quantile(&self, q: f64) -> Result<Percentile<u64>, QuantileError> {
        if !(0.0..=1.0).contains(&q) {
            return Err(QuantileError::OutOfRange { q });
        }
        let tail = q.min(1.0 - q);
        if tail <= 0.0 {
            return Err(QuantileError::Extreme { q });
        }
        // A billionth less, or the rounding of 1 - 0.99 would refuse p99 at exactly 1,000.
        let needed = (10.0 / tail - 1e-9 * (10.0 / tail)).ceil() as u64;
        if self.count < needed {
            return Err(QuantileError::TooFewSamples { q, n: self.count, needed });
        }
        let n = self.count as f64;
        let spread = 1.96 * (n * q * (1.0 - q)).sqrt();
        let [low, value, high] =
            self.at_ranks([(n * q - spread).floor(), (n * q).ceil(), (n * q + spread).ceil()].map(|rank| rank as u64));
        let within = |value: u64| value.clamp(self.min, self.max);
        Ok(Percentile {
            value: within(middle(value.0, value.1)),
            low: within(bounds(low.0, low.1).0),
            high: within(bounds(high.0, high.1).1),
            n: self.count,
        })
    }

    /// The buckets that hold the samples of these ranks, which ascend; 1 is the smallest sample.
    fn at_ranks<const N: usize>(&self, ranks: [u64; N]) -> [(usize, usize); N] {
        let mut found = [(0, 0); N];
        let (mut next, mut seen) = (0, 0);
        for (page, slot, n) in self.filled() {
            seen = u64::saturating_add(seen, n);
            found[next..].fill((page, slot));
            while next < N && seen >= ranks[next] {
                next += 1;
            }
            if next == N {
                break;
            }
        }
        found
    }
}

/// The value that stands for a bucket: at most 0.78 % away from any in it.
fn middle(page: usize, slot: usize) -> u64 {
    let (low, high) = bounds(page, slot);
    low + (high - low) / 2
}

impl PartialEq for HistogramSnapshot {
    fn eq(&self, other: &Self) -> bool {
        let totals = |of: &Self| (of.count, of.sum, of.min, of.max);
        totals(self) == totals(other) && self.filled().eq(other.filled())
    }
}

impl Eq for HistogramSnapshot {}

impl fmt::Debug for HistogramSnapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { count, sum, min, max, .. } = self;
        write!(f, "HistogramSnapshot {{ count: {count}, sum: {sum}, min: {min}, max: {max}, .. }}")
    }
}

/// Count, sum, extremes, and `[low, high, count]` for each bucket that is not empty.
#[cfg(feature = "serde")]
impl serde::Serialize for HistogramSnapshot {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeStruct;
        let mut fields = serializer.serialize_struct("HistogramSnapshot", 5)?;
        fields.serialize_field("count", &self.count)?;
        fields.serialize_field("sum", &self.sum)?;
        fields.serialize_field("min", &self.min())?;
        fields.serialize_field("max", &self.max())?;
        let buckets: Vec<_> = self.buckets().map(|(range, n)| (*range.start(), *range.end(), n)).collect();
        fields.serialize_field("buckets", &buckets)?;
        fields.end()
    }
}

/// A [`HistogramSnapshot`] of nanoseconds that speaks of durations.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(transparent))]
pub struct DurationSnapshot {
    nanos: HistogramSnapshot,
}

impl DurationSnapshot {
    pub(crate) fn new(nanos: HistogramSnapshot) -> Self {
        Self { nanos }
    }

    pub(crate) fn nanos_mut(&mut self) -> &mut HistogramSnapshot {
        &mut self.nanos
    }

    /// The same in whole nanoseconds, with its buckets.
    #[must_use]
    pub fn as_nanos(&self) -> &HistogramSnapshot {
        &self.nanos
    }

    /// Counts one more.
    pub fn record(&mut self, duration: Duration) {
        self.nanos.record(nanos(duration));
    }

    /// What was recorded between an earlier snapshot and this one; see [`HistogramSnapshot::since`].
    ///
    /// # Errors
    /// If `earlier` holds samples that this one does not.
    pub fn since(&self, earlier: &Self) -> Result<Self, WindowError> {
        self.nanos.since(&earlier.nanos).map(Self::new)
    }

    /// How many durations were recorded. Sampled paths record fewer than the counts of their station say.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.nanos.count
    }

    /// The exact sum of all.
    #[must_use]
    pub fn sum(&self) -> Duration {
        long(self.nanos.sum)
    }

    /// The exact smallest.
    #[must_use]
    pub fn min(&self) -> Option<Duration> {
        self.nanos.min().map(Duration::from_nanos)
    }

    /// The exact largest.
    #[must_use]
    pub fn max(&self) -> Option<Duration> {
        self.nanos.max().map(Duration::from_nanos)
    }

    /// The arithmetic mean.
    #[must_use]
    pub fn mean(&self) -> Option<Duration> {
        let nanos = &self.nanos;
        let mean = nanos.sum.checked_div(u128::from(nanos.count))?;
        // While others record, the sum may hold samples that the count does not.
        Some(long(mean.clamp(u128::from(nanos.min), u128::from(nanos.max))))
    }

    /// The median. See [`HistogramSnapshot::quantile`].
    ///
    /// # Errors
    /// With fewer than 20 samples.
    pub fn p50(&self) -> Result<Percentile<Duration>, QuantileError> {
        self.quantile(0.5)
    }

    /// The 99th percentile. See [`HistogramSnapshot::quantile`].
    ///
    /// # Errors
    /// With fewer than 1,000 samples.
    pub fn p99(&self) -> Result<Percentile<Duration>, QuantileError> {
        self.quantile(0.99)
    }

    /// The duration at quantile `q`, with the 95 % confidence interval of its rank. See [`HistogramSnapshot::quantile`].
    ///
    /// # Errors
    /// If fewer than ten samples lie beyond the quantile, or if `q` is not between 0 and 1.
    pub fn quantile(&self, q: f64) -> Result<Percentile<Duration>, QuantileError> {
        Ok(self.nanos.quantile(q)?.map(Duration::from_nanos))
    }
}

/// A duration of more nanoseconds than 64 bits hold.
pub(crate) fn long(nanos: u128) -> Duration {
    let secs = u64::try_from(nanos / 1_000_000_000).unwrap_or(u64::MAX);
    Duration::new(secs, (nanos % 1_000_000_000) as u32)
}
