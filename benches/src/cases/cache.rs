//! `fullbore-cache`, against `moka`, `quick_cache` and `amalgam`. What is measured is in the modules beside this one.

use std::io;

use fullbore_cache::Cache;

use super::cache_hit::hit_cases;
use super::cache_insert::insert_cases;
use super::cache_load::load_counts;
use super::cache_memory::{allocation_counts, memory};
use super::cache_ratio::ratio_counts;
use super::cache_redis::{redis_cases, redis_counts};
use super::{Amount, Count, FITS};
use crate::measure::{Case, Plan};

/// See the module.
#[must_use]
pub fn cases() -> Vec<Case> {
    hit_cases().into_iter().chain(insert_cases()).chain(redis_cases()).collect()
}

/// What is to be zero.
#[must_use]
pub fn counts(plan: &Plan) -> Vec<Count> {
    allocation_counts().into_iter().chain(load_counts()).chain(redis_counts()).chain(ratio_counts(plan)).collect()
}

/// What both sides have, and is not time.
#[must_use]
pub fn amounts() -> Vec<Amount> {
    vec![memory()]
}

/// Ours, in which nothing expires.
pub(super) fn ours<K, V>(capacity: u64) -> Cache<K, V>
where
    K: std::hash::Hash + Eq + Clone + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    Cache::builder().capacity(capacity).ttl(None).build().expect(FITS)
}

/// The load of a key that is there.
pub(super) fn missing() -> io::Result<u64> {
    Err(io::ErrorKind::NotFound.into())
}
