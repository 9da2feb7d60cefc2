//! `fullbore-cache`: inserts that displace something.

use std::sync::Arc;

use super::cache::ours;
use crate::measure::{Case, Side, Team};

const CAPACITY: u64 = 10_000;
/// The keys of a thread begin at a multiple of this, so that no two threads have the same.
const OF_A_THREAD: u64 = 1 << 40;

/// See the module. For the list of the area `cache`.
#[must_use]
pub fn insert_cases() -> Vec<Case> {
    let case = |threads| {
        Case::new("insert, new keys into a full cache of 10,000", threads, move || {
            let cache = ours(CAPACITY);
            let counted = cache.clone();
            insert(threads, move |key| cache.insert(key, !key), move || counted.entry_count())
        })
        .against("moka", move || {
            let cache = moka::sync::Cache::new(CAPACITY);
            let counted = cache.clone();
            let count = move || {
                counted.run_pending_tasks();
                counted.entry_count()
            };
            insert(threads, move |key| cache.insert(key, !key), count)
        })
        .against("quick_cache", move || {
            let cache = Arc::new(quick_cache::sync::Cache::new(CAPACITY as usize));
            let counted = Arc::clone(&cache);
            insert(threads, move |key| cache.insert(key, !key), move || counted.len() as u64)
        })
    };
    [1, 2, 8].map(case).into()
}

/// Each key is a new one: for the cache that is full, something has to go each time, or the key itself.
fn insert(
    threads: usize,
    put: impl Fn(u64) + Clone + Send + Sync + 'static,
    count: impl Fn() -> u64 + 'static,
) -> Side {
    // Several times the capacity: parts of a cache do not all fill up at once.
    (0..10 * CAPACITY).for_each(&put);
    let mut team = Team::new(threads, move |number| {
        let (put, mut next) = (put.clone(), OF_A_THREAD * (number as u64 + 1));
        move |calls| {
            calls.for_each(|_| {
                put(next);
                next += 1;
            });
        }
    });
    Box::new(move |inserts| {
        let took = team.run(inserts).took();
        let entries = count();
        assert!((CAPACITY * 9 / 10..=CAPACITY).contains(&entries), "{entries} entries: it is full, and not more");
        took
    })
}
