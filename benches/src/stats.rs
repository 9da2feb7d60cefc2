//! The median and how sure we are of it.

/// A median with an interval that holds the true median with a probability of at least 95 %.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Median {
    /// The median of the samples.
    pub value: f64,
    /// Lower end of the interval.
    pub low: f64,
    /// Upper end of the interval.
    pub high: f64,
}

/// The median of `samples` and its 95 % interval, from order statistics.
///
/// Of `n` independent samples the number below the true median is binomial with `p = 1/2`, whatever they are distributed
/// like. So the interval from the `k`-th smallest to the `k`-th largest misses the true median with probability
/// `2 P(B < k)`; `k` is the largest for which that is at most 5 %. No normal distribution is assumed, and a few rounds that
/// another program disturbed move the ends by a rank, not by their size.
///
/// Fewer than 6 samples cannot give 95 %: then it is the smallest and the largest (5 samples: 93.75 %).
///
/// # Panics
/// Without samples.
#[must_use]
pub fn median(samples: &[f64]) -> Median {
    assert!(!samples.is_empty(), "a median of nothing");
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let n = sorted.len();
    let value = f64::midpoint(sorted[(n - 1) / 2], sorted[n / 2]);
    let k = rank(n);
    Median { value, low: sorted[k - 1], high: sorted[n - k] }
}

/// The largest `k` with `2 P(B < k) <= 5 %` for `B` binomial in `n` and 1/2; at least 1.
fn rank(n: usize) -> usize {
    // `chance` is P(B = k) and `below` P(B < k), both built up from P(B = 0) = 2^-n.
    let mut chance = 0.5_f64.powi(i32::try_from(n).unwrap_or(i32::MAX));
    let (mut below, mut k) = (0.0, 0);
    while 2.0 * (below + chance) <= 0.05 {
        below += chance;
        chance *= (n - k) as f64 / (k + 1) as f64;
        k += 1;
    }
    k.max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_are_those_of_the_tables() {
        // Conover, Practical Nonparametric Statistics: 95 % intervals of the median.
        for (n, k) in [(6, 1), (8, 1), (9, 2), (12, 3), (21, 6), (25, 8), (41, 14)] {
            assert_eq!(rank(n), k, "n = {n}");
        }
    }

    #[test]
    fn few_samples_give_the_extremes() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), Median { value: 2.0, low: 1.0, high: 3.0 });
        assert_eq!(median(&[4.0]), Median { value: 4.0, low: 4.0, high: 4.0 });
    }

    #[test]
    fn outliers_do_not_move_it() {
        let mut samples: Vec<f64> = (0..21).map(f64::from).collect();
        let quiet = median(&samples);
        samples[20] = 1e9;
        assert_eq!(median(&samples), quiet);
        assert_eq!(quiet, Median { value: 10.0, low: 5.0, high: 15.0 });
    }
}
