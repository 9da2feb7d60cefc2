//! Instruments as a registry knows them, and what it reads.

use std::any::Any;

use crate::counter::Counter;
use crate::gauge::Gauge;
use crate::histogram::{Histogram, HistogramSnapshot};

/// [`Counter`], [`Gauge`] or [`Histogram`].
pub trait Instrument: Clone + Default + Send + Sync + 'static + sealed::Sealed {
    #[doc(hidden)]
    const TYPE: &'static str;

    #[doc(hidden)]
    fn read(&self) -> Reading;

    /// Whether both are handles of one instrument.
    #[doc(hidden)]
    fn is(&self, other: &Self) -> bool;
}

mod sealed {
    #[expect(unnameable_types, reason = "sealed: nobody else implements `Instrument`")]
    pub trait Sealed {}
    impl Sealed for super::Counter {}
    impl Sealed for super::Gauge {}
    impl Sealed for super::Histogram {}
}

/// What an instrument showed.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum Reading {
    /// A counter's number.
    Counter(u64),
    /// A gauge's number, and the highest since it was last taken.
    Gauge {
        /// The present value.
        value: i64,
        /// See [`Gauge::max`].
        max: i64,
    },
    /// A histogram's samples.
    Histogram(HistogramSnapshot),
}

/// A reading and the labels it has.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Series {
    /// Names and values.
    pub labels: Vec<(String, String)>,
    /// What was read.
    pub reading: Reading,
}

/// A metric: all series of one name.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct MetricSnapshot {
    /// Its name.
    pub name: String,
    /// What it means.
    pub help: String,
    /// `counter`, `gauge` or `histogram`.
    pub kind: &'static str,
    /// Whether a histogram's values are nanoseconds.
    pub durations: bool,
    /// The bounds of the buckets that a histogram is exported with, if they were set.
    pub buckets: Option<Vec<f64>>,
    /// How often a label set had to share a series with others, because there were too many.
    pub overflowed: u64,
    /// Its series.
    pub series: Vec<Series>,
}

impl Instrument for Counter {
    const TYPE: &'static str = "counter";
    fn read(&self) -> Reading {
        Reading::Counter(self.get())
    }
    fn is(&self, other: &Self) -> bool {
        self.id() == other.id()
    }
}

impl Instrument for Gauge {
    const TYPE: &'static str = "gauge";
    fn read(&self) -> Reading {
        Reading::Gauge { value: self.get(), max: self.max() }
    }
    fn is(&self, other: &Self) -> bool {
        self.same(other)
    }
}

impl Instrument for Histogram {
    const TYPE: &'static str = "histogram";
    fn read(&self) -> Reading {
        Reading::Histogram(self.snapshot())
    }
    fn is(&self, other: &Self) -> bool {
        self.id() == other.id()
    }
}

/// The names that a metric's series have in an export.
pub(super) fn exported(kind: &str, name: &str) -> Vec<String> {
    let suffixes: &[&str] = match kind {
        Counter::TYPE => &["", "_total", "_created"],
        Gauge::TYPE => &["", "_max"],
        _ => &["", "_sum", "_count", "_bucket", "_created"],
    };
    let mut names: Vec<String> = suffixes.iter().map(|suffix| format!("{name}{suffix}")).collect();
    if kind == Histogram::TYPE {
        names.push(quantile_name(name));
    }
    names
}

/// The name of the gauges that show a histogram's quantiles; a unit stays at the end.
pub(crate) fn quantile_name(name: &str) -> String {
    match name.strip_suffix("_seconds") {
        Some(stem) => format!("{stem}_quantile_seconds"),
        None => format!("{name}_quantile"),
    }
}

/// An instrument whatever its type, for a registry.
pub(super) trait AnyInstrument: Send + Sync {
    fn read_any(&self) -> Reading;
    fn as_any(&self) -> &dyn Any;
}

impl<I: Instrument> AnyInstrument for I {
    fn read_any(&self) -> Reading {
        self.read()
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}
