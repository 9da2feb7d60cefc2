//! How fast something goes: a report on the work of one thread.

use std::fmt;
use std::time::{Duration, Instant};

use crate::histogram::DurationSnapshot;
use crate::station::{Outcome, Station};
use crate::ticks::Ticks;

/// Does `work` for each item, on this thread, and reports how it went.
///
/// The values that `work` returns are dropped; an error counts as failed and does not end it. A panic of `work` goes on.
///
/// ```
/// use fullbore_metrics::measure;
///
/// let report = measure(["1", "2", "three", "4"], |text| text.parse::<u32>());
/// assert_eq!((report.total, report.succeeded, report.failed), (4, 3, 1));
/// assert_eq!(report.success_rate(), Some(0.75));
/// println!("{report}");
/// ```
pub fn measure<I: IntoIterator, T, E>(items: I, mut work: impl FnMut(I::Item) -> Result<T, E>) -> ThroughputReport {
    let mut report = ThroughputReport::default();
    let begun = Instant::now();
    for item in items {
        let since = Ticks::now();
        let result = work(item);
        report.count(result.is_ok(), since.elapsed_nanos());
    }
    report.duration = begun.elapsed();
    report
}

/// How a run of items went.
#[derive(Clone, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct ThroughputReport {
    /// Items worked on.
    pub total: u64,
    /// Those that went well.
    pub succeeded: u64,
    /// Those that did not.
    pub failed: u64,
    /// From the first item to the last, including what lay between them.
    pub duration: Duration,
    /// How long each took, failed ones included.
    pub latency: DurationSnapshot,
}

impl ThroughputReport {
    fn count(&mut self, succeeded: bool, nanos: u64) {
        self.total += 1;
        *(if succeeded { &mut self.succeeded } else { &mut self.failed }) += 1;
        self.latency.nanos_mut().record(nanos);
    }

    /// Items a second, failed ones included; 0 if it took no time.
    #[must_use]
    pub fn throughput(&self) -> f64 {
        match self.duration.as_secs_f64() {
            seconds if seconds > 0.0 => self.total as f64 / seconds,
            _ => 0.0,
        }
    }

    /// The share of items that went well, from 0 to 1; none if there were no items.
    #[must_use]
    pub fn success_rate(&self) -> Option<f64> {
        (self.total > 0).then(|| self.succeeded as f64 / self.total as f64)
    }
}

impl fmt::Display for ThroughputReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rate = self.success_rate().map_or_else(|| "-".to_owned(), |rate| format!("{:.2} %", 100.0 * rate));
        writeln!(f, "total       {}", self.total)?;
        writeln!(f, "succeeded   {} ({rate})", self.succeeded)?;
        writeln!(f, "failed      {}", self.failed)?;
        writeln!(f, "duration    {:.3?}", self.duration)?;
        writeln!(f, "throughput  {:.1} items/s", self.throughput())?;
        for (name, q) in [("p50", 0.5), ("p90", 0.9), ("p99", 0.99)] {
            match self.latency.quantile(q) {
                Ok(percentile) => writeln!(f, "{name}         {percentile}")?,
                Err(too_few) => writeln!(f, "{name}         - ({too_few})")?,
            }
        }
        match self.latency.max() {
            Some(max) => writeln!(f, "max         {max:.3?}"),
            None => writeln!(f, "max         -"),
        }
    }
}

/// Iterators that are measured as they go.
pub trait MeasureExt: Iterator + Sized {
    /// The same items, with the time that each took to come recorded at `station` and in a report. What is measured is the
    /// work of the iterator itself: put it behind the `map` that does it.
    ///
    /// ```
    /// use fullbore_metrics::{MeasureExt, Station};
    ///
    /// let parse = Station::new("parse");
    /// let mut numbers = ["1", "2", "three"].into_iter().map(str::parse::<u32>).measured(&parse);
    /// let sum: u32 = numbers.by_ref().flatten().sum();
    /// assert_eq!(sum, 3);
    /// let report = numbers.report();
    /// assert_eq!((report.total, report.failed, parse.snapshot().failed), (3, 1, 1));
    /// ```
    fn measured<T, E>(self, station: &Station) -> Measured<'_, Self>
    where
        Self: Iterator<Item = Result<T, E>>,
    {
        Measured { items: self, station, begun: None, report: ThroughputReport::default() }
    }
}

impl<I: Iterator> MeasureExt for I {}

/// See [`MeasureExt::measured`].
#[derive(Clone, Debug)]
#[must_use = "iterators do nothing before they are asked for items"]
pub struct Measured<'a, I> {
    items: I,
    station: &'a Station,
    /// When the first item was asked for.
    begun: Option<Instant>,
    report: ThroughputReport,
}

impl<I> Measured<'_, I> {
    /// How it went up to the last item that was asked for.
    #[must_use]
    pub fn report(&self) -> ThroughputReport {
        self.report.clone()
    }
}

/// An item that does not come because of a panic has failed.
struct Coming<'a>(&'a Station);

impl Drop for Coming<'_> {
    fn drop(&mut self) {
        self.0.ended_at_once(Outcome::Failed, None);
    }
}

impl<T, E, I: Iterator<Item = Result<T, E>>> Iterator for Measured<'_, I> {
    type Item = Result<T, E>;

    fn next(&mut self) -> Option<Self::Item> {
        let begun = *self.begun.get_or_insert_with(Instant::now);
        let since = Ticks::now();
        let coming = Coming(self.station);
        let item = self.items.next();
        std::mem::forget(coming);
        let took = since.elapsed_nanos();
        let result = item?;
        let outcome = if result.is_ok() { Outcome::Served } else { Outcome::Failed };
        self.station.ended_at_once(outcome, Some(took));
        self.report.count(result.is_ok(), took);
        self.report.duration = begun.elapsed();
        Some(result)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.items.size_hint()
    }
}
