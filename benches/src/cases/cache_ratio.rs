//! `fullbore-cache`: how much of what is asked for is there, where not all can be. Against `moka` on one thread, whose policy is
//! as good as any; on many threads it forgets to note what was read.
//!
//! A run is what users write: get, and on a miss insert. Both sides begin empty, and the first misses count.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;

use super::Count;
use super::cache::ours;
use super::cache_trace::{Trace, traces};
use crate::measure::{Plan, Team};

/// Of the different keys.
const CAPACITIES_PERCENT: [u64; 3] = [1, 5, 20];
/// What may be lost, in points: less is within what the hashes of two runs make of it.
const ALLOWED: f64 = 0.5;
const THREADS: usize = 8;
/// `moka` applies inserts 64 at a time, and until then holds as many entries more than it may. Beside a small capacity that is so
/// much that it finds more than any cache could which keeps its bound, also one that knows the future: 22 % of the routes with
/// room for 2, where 11 % is all there is to find. Below this many it is brought up to date after each insert.
const HELD_BELOW: u64 = 1_000;

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
            ours: || alone(references(ACCESSES)),
        },
        Count {
            name: "hit ratio, 8 threads: points lost over 0.5",
            unit: "points",
            ours: || together(references(ACCESSES)),
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
        let traces = traces(accesses).into_iter().map(Arc::new);
        let runs: Vec<_> = traces.flat_map(|trace| CAPACITIES_PERCENT.map(|part| (Arc::clone(&trace), part))).collect();
        side_by_side(&runs, |(trace, percent)| {
            let capacity = (trace.distinct * percent / 100).max(1);
            Reference { trace: Arc::clone(trace), capacity, moka: percent_of(moka(trace, capacity), trace) }
        })
    })
}

fn moka(trace: &Trace, capacity: u64) -> u64 {
    let cache = moka::sync::Cache::new(capacity);
    let insert = |key: u64| {
        cache.insert(key, !key);
        if capacity < HELD_BELOW {
            cache.run_pending_tasks();
        }
    };
    hits(&trace.keys, |key| cache.get(&key), insert)
}

/// Two at a time: they have nothing to do with each other, and nothing is timed.
fn side_by_side<T: Sync, R: Send>(all: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let (one, other) = all.split_at(all.len() / 2);
    let run = |part: &[T]| part.iter().map(&work).collect::<Vec<R>>();
    thread::scope(|scope| {
        let other = scope.spawn(|| run(other));
        let mut done = run(one);
        done.extend(other.join().expect("each run checks what it finds"));
        done
    })
}

/// The worst of all. Each is told, for whoever works on the policy.
fn lost(references: &[Reference], threads: &str, all: Vec<f64>) -> f64 {
    let points = references.iter().zip(all).map(|(Reference { trace, capacity, moka }, ours)| {
        eprintln!(
            "hit ratio, {threads}, {}, {capacity} of {} keys: moka {moka:.2} %, ours {ours:.2} %",
            trace.name, trace.distinct
        );
        moka - ours - ALLOWED
    });
    (points.fold(0.0, f64::max) * 100.0).round() / 100.0
}

fn alone(references: &[Reference]) -> f64 {
    let run = |of: &Reference| percent_of(by_one(&of.trace, of.capacity), &of.trace);
    lost(references, "1 thread", side_by_side(references, run))
}

fn together(references: &[Reference]) -> f64 {
    let run = |of: &Reference| percent_of(by_many(&of.trace, of.capacity), &of.trace);
    lost(references, "8 threads", references.iter().map(run).collect())
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

fn by_one(trace: &Trace, capacity: u64) -> u64 {
    let cache = ours(capacity);
    hits(&trace.keys, |key| cache.get(&key), |key| cache.insert(key, !key))
}

/// The threads take small portions of the trace, whoever comes first.
fn by_many(trace: &Arc<Trace>, capacity: u64) -> u64 {
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
