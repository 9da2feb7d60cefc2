//! What can be wrong, and with which value.

use std::fmt;

/// Why a quantile has no value.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum QuantileError {
    /// Too few samples lie beyond it: the number would be noise.
    TooFewSamples {
        /// The quantile that was asked for.
        q: f64,
        /// How many samples there are.
        n: u64,
        /// How many there would have to be.
        needed: u64,
    },
    /// No sample lies beyond quantiles 0 and 1: ask for the minimum or the maximum.
    Extreme {
        /// The quantile that was asked for.
        q: f64,
    },
    /// It is not between 0 and 1.
    OutOfRange {
        /// What was asked for.
        q: f64,
    },
}

impl fmt::Display for QuantileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooFewSamples { q, n, needed } => write!(f, "quantile {q} needs {needed} samples, there are {n}"),
            Self::Extreme { q } => write!(f, "no sample lies beyond quantile {q}: ask for the minimum or the maximum"),
            Self::OutOfRange { q } => write!(f, "quantile {q} is not between 0 and 1"),
        }
    }
}

impl std::error::Error for QuantileError {}

/// A number that cannot be observed: not a number, infinite, or negative.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct InvalidObservation(pub f64);

impl fmt::Display for InvalidObservation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} cannot be observed: a histogram holds finite numbers that are not negative", self.0)
    }
}

impl std::error::Error for InvalidObservation {}

/// Two snapshots of which one cannot be taken from the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum WindowError {
    /// The snapshot that was given as the earlier one holds more.
    NotEarlier,
    /// They are of different stations.
    OtherStation,
}

impl fmt::Display for WindowError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotEarlier => "the snapshot given as the earlier one is not: it holds what the later one does not",
            Self::OtherStation => "the snapshots are of different stations",
        })
    }
}

impl std::error::Error for WindowError {}
