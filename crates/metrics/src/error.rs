//! Why a number is not given.

use std::fmt;

/// There are too few samples beyond this quantile to name its value.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct TooFewSamples {
    /// The quantile that was asked for.
    pub q: f64,
    /// How many samples there are.
    pub n: u64,
    /// How many there would have to be.
    pub needed: u64,
}

impl fmt::Display for TooFewSamples {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.q == 0.0 || self.q == 1.0 {
            write!(f, "no sample lies beyond quantile {}: ask for the minimum or the maximum", self.q)
        } else if (0.0..=1.0).contains(&self.q) {
            write!(f, "quantile {} needs {} samples, there are {}", self.q, self.needed, self.n)
        } else {
            write!(f, "quantile {} is not between 0 and 1", self.q)
        }
    }
}

impl std::error::Error for TooFewSamples {}
