//! `fullbore-cache`: hits, against `moka`. Nothing expires on either side, and everything asked for is there.

use std::hint::black_box;
use std::io;

use fullbore_cache::Cache;

use super::{Count, FITS, Random, allocations_each};
use crate::measure::{Case, Side, on_threads};

const ENTRIES: u64 = 100_000;
/// More than there are entries, so that the policy has no reason to displace any.
const CAPACITY: u64 = 2 * ENTRIES;

/// See the module.
#[must_use]
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for threads in [1, 2, 8] {
        cases.push(
            Case::new("get, hit, 100,000 keys uniform", threads, move || get(threads, ENTRIES))
                .against("moka", move || moka_get(threads, ENTRIES)),
        );
    }
    for threads in [1, 2, 8] {
        cases.push(
            Case::new("get, hit, one hot key", threads, move || get(threads, 1))
                .against("moka", move || moka_get(threads, 1)),
        );
    }
    cases.push(
        Case::new("get_or_compute, hit", 1, || get_or_compute(ENTRIES)).against("itself, get", || get(1, ENTRIES)),
    );
    cases.push(
        Case::new("get, hit, as entries grow to 100,000", 1, || get(1, ENTRIES))
            .against("itself, 100 entries", || get(1, 100)),
    );
    cases
}

/// What is to be zero.
#[must_use]
pub fn counts() -> Vec<Count> {
    vec![Count { name: "allocations for each hit", unit: "allocs", ours: allocations }]
}

/// A cache with all of the first `entries` keys in it.
fn full(entries: u64) -> Cache<u64, u64> {
    let cache = Cache::builder().capacity(CAPACITY).ttl(None).build().expect(FITS);
    (0..entries).for_each(|key| cache.insert(key, !key));
    assert_eq!(cache.entry_count(), entries);
    cache
}

fn get(threads: usize, entries: u64) -> Side {
    let cache = full(entries);
    ask(threads, entries, move |key| cache.get(&key))
}

fn get_or_compute(entries: u64) -> Side {
    let cache = full(entries);
    ask(1, entries, move |key| cache.get_or_compute(&key, |_| missing()).ok())
}

fn moka_get(threads: usize, entries: u64) -> Side {
    let cache = moka::sync::Cache::new(CAPACITY);
    (0..entries).for_each(|key| cache.insert(key, !key));
    cache.run_pending_tasks();
    assert_eq!(cache.entry_count(), entries);
    ask(threads, entries, move |key| cache.get(&key))
}

/// Asks for random keys below `entries`.
fn ask(threads: usize, entries: u64, get: impl Fn(u64) -> Option<u64> + Clone + Send + Sync + 'static) -> Side {
    on_threads(threads, move |number| {
        let get = get.clone();
        let mut random = Random::of_thread(number);
        move |calls| {
            let asked = calls.end - calls.start;
            let found = calls.filter(|_| {
                let key = random.below(entries);
                get(black_box(key)) == Some(!key)
            });
            assert_eq!(found.count() as u64, asked, "every key is there, with its value");
        }
    })
}

fn allocations() -> f64 {
    let cache = full(1);
    allocations_each(|| {
        assert_eq!(cache.get(&0), Some(!0));
        assert_eq!(cache.get_or_compute(&0, |_| missing()).ok(), Some(!0));
    })
}

fn missing() -> io::Result<u64> {
    Err(io::ErrorKind::NotFound.into())
}
