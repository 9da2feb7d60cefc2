//! `fullbore-cache`: memory at rest, and what a hit allocates.

use std::time::Duration;

use fullbore_cache::Cache;
use fullbore_testkit::measure;

use super::cache::{missing, ours};
use super::{Amount, Count, FITS, allocations_each};
use crate::board::Better;

const ENTRIES: u64 = 100_000;

/// What an entry takes in a cache that is full, its share of all that the cache has for itself included.
pub(super) fn memory() -> Amount {
    Amount {
        name: "memory for each u64 entry, 100,000 entries",
        unit: "bytes",
        better: Better::Less,
        ours: || {
            each(|| {
                let cache = ours(ENTRIES);
                (0..ENTRIES).for_each(|key| cache.insert(key, !key));
                (cache.entry_count(), cache)
            })
        },
        rival: "moka",
        theirs: || {
            each(|| {
                let cache = moka::sync::Cache::new(ENTRIES);
                (0..ENTRIES).for_each(|key| cache.insert(key, !key));
                cache.run_pending_tasks();
                (cache.entry_count(), cache)
            })
        },
    }
}

/// Bytes for each of the entries. None of the caches has threads of its own: this one allocates everything.
fn each<C>(fill: impl FnOnce() -> (u64, C)) -> f64 {
    let ((entries, _cache), allocated) = measure(fill);
    assert!((ENTRIES * 9 / 10..=ENTRIES).contains(&entries), "{entries} entries: it is full, and not more");
    allocated.net_bytes() as f64 / entries as f64
}

/// Hits, with and without expiry.
pub(super) fn allocation_counts() -> Vec<Count> {
    vec![
        Count { name: "allocations for each hit", unit: "allocs", ours: || of_hits(|cache| cache.get(&0)) },
        Count {
            name: "allocations for each get_or_compute hit",
            unit: "allocs",
            ours: || of_hits(|cache| cache.get_or_compute(&0, |_| missing()).ok()),
        },
    ]
}

fn of_hits(hit: impl Fn(&Cache<u64, u64>) -> Option<u64>) -> f64 {
    let caches = [None, Some(Duration::from_secs(60 * 60))].map(|ttl| {
        let cache = Cache::builder().ttl(ttl).build().expect(FITS);
        cache.insert(0, !0);
        cache
    });
    let both = allocations_each(|| caches.iter().for_each(|cache| assert_eq!(hit(cache), Some(!0))));
    both / caches.len() as f64
}
