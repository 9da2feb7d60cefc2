//! Jump consistent hash: J. Lamping and E. Veach, "A Fast, Minimal Memory, Consistent Hash Algorithm", 2014.

/// The bucket of `key` among `buckets`, of which there is at least one. With one more bucket, one key in `buckets + 1` moves,
/// always to the new one.
pub(crate) fn jump(mut key: u64, buckets: usize) -> usize {
    let (mut bucket, mut next) = (0, 0);
    while next < buckets {
        bucket = next;
        key = key.wrapping_mul(2_862_933_555_777_941_757).wrapping_add(1);
        // 31 bits by chance: never zero, so the next bucket is always further.
        let chance = ((key >> 33) + 1) as f64 / (1_u64 << 31) as f64;
        next = ((bucket + 1) as f64 / chance) as usize;
    }
    bucket
}

#[cfg(test)]
mod tests {
    use super::jump;
    use std::hash::{BuildHasher, RandomState};

    #[test]
    fn one_more_bucket_moves_its_own_share_and_nothing_else() {
        let hasher = RandomState::new();
        let keys: Vec<u64> = (0..40_000_u64).map(|n| hasher.hash_one(n)).collect();
        for buckets in [1, 2, 7, 16] {
            let mut moved = 0;
            for &key in &keys {
                let (before, after) = (jump(key, buckets), jump(key, buckets + 1));
                assert!(before < buckets);
                assert!(after == before || after == buckets, "only to the new one");
                moved += usize::from(after != before);
            }
            let expected = keys.len() / (buckets + 1);
            assert!(moved.abs_diff(expected) < expected / 5, "{buckets}: {moved} of {expected}");
        }
    }

    #[test]
    fn lanes_within_a_lane_are_all_used() {
        // One hash for both: of four lanes within the second of four, only some are ever used. Hence one hasher for each.
        let (outer, inner) = (RandomState::new(), RandomState::new());
        let keys = || (0..40_000_u64).filter(|n| jump(outer.hash_one(n), 4) == 1);
        let lanes = |hasher: &RandomState| {
            let mut lanes = [0_usize; 4];
            keys().for_each(|n| lanes[jump(hasher.hash_one(n), 4)] += 1);
            lanes
        };
        assert!(lanes(&outer).contains(&0), "{:?}", lanes(&outer));
        assert!(lanes(&inner).iter().all(|n| n.abs_diff(2_500) < 500), "{:?}", lanes(&inner));
    }
}
