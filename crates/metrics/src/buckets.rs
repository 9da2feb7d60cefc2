//! Which bucket a value belongs to.
//!
//! Log-linear: a value below 128 has a bucket of its own; above, each power of two is cut into 64 buckets, so a bucket is at
//! most 1/64 of its values wide and its middle at most 1/128 = 0.78 % away from any of them. The buckets of a power of two are
//! a page, so that only those that are used take memory.

/// Buckets to a page, as a power of two.
const GROUPING: u32 = 6;
pub(crate) const PAGE: usize = 1 << GROUPING;
/// Pages 0 and 1 hold the exact values below 128, then one page to a power of two.
pub(crate) const PAGES: usize = 2 + (64 - GROUPING as usize - 1);

/// The page and the place in it of `value`.
#[inline]
pub(crate) const fn place(value: u64) -> (usize, usize) {
    // The lowest page is shared by all small values: `|` makes them as large as its end.
    let shift = (value | PAGE as u64).ilog2() - GROUPING;
    // The leading bit and the six after it choose the bucket; the leading bit counts into the page number.
    let index = ((shift as usize) << GROUPING) + (value >> shift) as usize;
    (index >> GROUPING, index & (PAGE - 1))
}

/// The smallest and the largest value of a bucket.
pub(crate) const fn bounds(page: usize, slot: usize) -> (u64, u64) {
    if page < 2 {
        let value = (page * PAGE + slot) as u64;
        return (value, value);
    }
    let shift = page - 1;
    let low = ((PAGE + slot) as u64) << shift;
    (low, low + ((1 << shift) - 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_tile_the_whole_range() {
        let mut next = Some(0u64);
        for page in 0..PAGES {
            for slot in 0..PAGE {
                let (low, high) = bounds(page, slot);
                assert_eq!(Some(low), next, "page {page}, slot {slot} begins where the one before ends");
                assert_eq!((place(low), place(high)), ((page, slot), (page, slot)));
                let middle = low + (high - low) / 2;
                assert!((high - middle).max(middle - low) as f64 <= 0.0078125 * low as f64, "{low}..={high}");
                next = high.checked_add(1);
            }
        }
        assert_eq!(next, None, "the last bucket ends the range");
    }
}
