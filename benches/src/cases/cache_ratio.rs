//! `fullbore-cache`: how much of what is asked for is there, where not all can be. Against `moka` on one thread, whose policy is
//! as good as any; on many threads it forgets to note what was read.
//!
//! A run is what users write: get, and on a miss insert. Both sides begin empty, and the first misses count.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use super::Count;
use super::cache::ours;
use super::cache_trace::{Trace, traces};
use crate::measure::{Plan, Team};

/// Of the different keys.
const CAPACITIES_PERCENT: [u64; 3] = [1, 5, 20];
/// What may be lost, in points: less is within what the hashes of two runs make of it.
const ALLOWED: f64 = 0.5;
const THREADS: usize = 8;

/// How many points the worst of all runs loses, of a million accesses each, or of a tenth of it if the plan is quick.
#[must_use]
pub fn ratio_counts(plan: &Plan) -> Vec<Count> {
    if plan.quick { counts::<100_000>() } else { counts::<1_000_000>() }
}

fn counts<const ACCESSES: usize>() -> Vec<Count> {
    vec![
        Count {
            name: "hit ratio, 1 thread: points lost over 0.5",
            unit: "points",
            ours: || lost(references(ACCESSES), "1 thread", alone),
        },
        Count {
            name: "hit ratio, 8 threads: points lost over 0.5",
            unit: "points",
            ours: || lost(references(ACCESSES), "8 threads", together),
        },
    ]
}

/// A trace with a capacity, and what `moka` makes of it.
#[derive(Clone, Debug)]
struct Reference {
    trace: Arc<Trace>,
    capacity: u64,
    moka: f64,
}

/// Both counts are against the same ones.
fn references(accesses: usize) -> &'static [Reference] {
    static REFERENCES: OnceLock<Vec<Reference>> = OnceLock::new();
    REFERENCES.get_or_init(|| {
        let with_capacity = |(trace, percent): (Arc<Trace>, u64)| {
            let capacity = (trace.distinct * percent / 100).max(1);
            let cache = moka::sync::Cache::new(capacity);
            let hits = hits(&trace.keys, |key| cache.get(&key), |key| cache.insert(key, !key));
            Reference { moka: percent_of(hits, &trace), trace, capacity }
        };
        let traces = traces(accesses).into_iter().map(Arc::new);
        let runs = traces.flat_map(|trace| CAPACITIES_PERCENT.map(|percent| (Arc::clone(&trace), percent)));
        runs.map(with_capacity).collect()
    })
}

/// The worst of all. Each is told on the way, for whoever works on the policy.
fn lost(references: &[Reference], threads: &str, hits: fn(&Arc<Trace>, u64) -> u64) -> f64 {
    let points = references.iter().map(|Reference { trace, capacity, moka }| {
        let ours = percent_of(hits(trace, *capacity), trace);
        eprintln!(
            "hit ratio, {threads}, {}, {capacity} of {} keys: moka {moka:.2} %, ours {ours:.2} %",
            trace.name, trace.distinct
        );
        moka - ours - ALLOWED
    });
    (points.fold(0.0, f64::max) * 100.0).round() / 100.0
}

fn percent_of(hits: u64, trace: &Trace) -> f64 {
    hits as f64 / trace.keys.len() as f64 * 100.0
}

/// How many of the keys are there.
fn hits(keys: &[u64], get: impl Fn(u64) -> Option<u64>, insert: impl Fn(u64)) -> u64 {
    let hit = |key: &&u64| match get(**key) {
        Some(value) => {
            assert_eq!(value, !**key, "the value of its key");
            true
        }
        None => {
            insert(**key);
            false
        }
    };
    keys.iter().filter(hit).count() as u64
}

fn alone(trace: &Arc<Trace>, capacity: u64) -> u64 {
    let cache = ours(capacity);
    hits(&trace.keys, |key| cache.get(&key), |key| cache.insert(key, !key))
}

/// The threads take small portions of the trace, whoever comes first.
fn together(trace: &Arc<Trace>, capacity: u64) -> u64 {
    let cache = ours(capacity);
    let found = Arc::new(AtomicU64::new(0));
    let (shared, sum) = (Arc::clone(trace), Arc::clone(&found));
    let mut team = Team::new(THREADS, move |_| {
        let (cache, trace, sum) = (cache.clone(), Arc::clone(&shared), Arc::clone(&sum));
        move |calls| {
            let keys = &trace.keys[calls.start as usize..calls.end as usize];
            let hits = hits(keys, |key| cache.get(&key), |key| cache.insert(key, !key));
            sum.fetch_add(hits, Ordering::Relaxed);
        }
    });
    team.run(trace.keys.len() as u64);
    found.load(Ordering::Relaxed)
}
