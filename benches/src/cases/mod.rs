//! What is measured: for each crate its cases, ours and the rivals' side by side, and what is to cost nothing.
//!
//! An operation is the smallest thing a user would count: a checkout, a hit, an item, a delivery. Rivals are set up as their
//! own documentation advises. Each side checks, after every turn, that it has done what it was to do.

pub mod batch;
pub mod batch_db;
pub mod batch_keyed;
pub mod batch_reduce;
pub mod batch_send;
mod broadcast;
pub mod cache;
pub mod cache_hit;
pub mod cache_insert;
pub mod cache_load;
mod cache_memory;
pub mod cache_ratio;
pub mod cache_redis;
mod cache_trace;
pub mod examples;
pub mod fanout;
pub mod limit;
pub mod metrics;
pub mod pool;
pub mod pool_db;
pub mod pool_keyed;
pub mod pool_load;
pub mod pool_outage;
mod pool_server;
pub mod pool_spike;
pub mod queue;
pub mod router;

use crate::board::Better;
use crate::measure::{Case, Plan};

/// A crate, and what is measured of it.
#[derive(Clone, Copy, Debug)]
pub struct Area {
    /// The crate's folder name.
    pub name: &'static str,
    /// What takes time.
    pub cases: fn() -> Vec<Case>,
    /// What is to be zero.
    pub counts: fn(&Plan) -> Vec<Count>,
    /// What both sides have, and is not time.
    pub amounts: fn() -> Vec<Amount>,
}

/// Something that is counted, for each operation, and should be zero.
#[derive(Clone, Copy, Debug)]
pub struct Count {
    /// What is counted. The goal is found by it.
    pub name: &'static str,
    /// In what.
    pub unit: &'static str,
    /// Counts.
    pub ours: fn() -> f64,
}

/// Something other than time that both sides have: memory at rest, for example. It is the same each time.
#[derive(Clone, Copy, Debug)]
pub struct Amount {
    /// What it is. The goal is found by it.
    pub name: &'static str,
    /// In what.
    pub unit: &'static str,
    /// Which way is better.
    pub better: Better,
    /// How much we have of it.
    pub ours: fn() -> f64,
    /// Somebody else.
    pub rival: &'static str,
    /// How much they have.
    pub theirs: fn() -> f64,
}

/// All areas but [`examples`], which runs whole programs.
pub const AREAS: &[Area] = &[
    Area { name: "batch", cases: batch::cases, counts: |_| batch::counts(), amounts: Vec::new },
    Area { name: "cache", cases: cache::cases, counts: cache::counts, amounts: cache::amounts },
    Area {
        name: "fanout",
        cases: || [fanout::cases(), router::cases()].into_iter().flatten().collect(),
        counts: broadcast::counts,
        amounts: Vec::new,
    },
    Area { name: "limit", cases: limit::cases, counts: |_| limit::counts(), amounts: Vec::new },
    Area { name: "metrics", cases: metrics::cases, counts: |_| metrics::counts(), amounts: Vec::new },
    Area { name: "pool", cases: pool::cases, counts: pool::counts, amounts: Vec::new },
    Area { name: "queue", cases: queue::cases, counts: |_| Vec::new(), amounts: Vec::new },
];

/// Why building one of ours cannot fail here.
const FITS: &str = "the settings make sense and threads can be started";

/// Allocations of this thread for each call of `operation`, once it is warm.
///
/// The least of several counts: an allocation that belongs to the operation is in all of them, a histogram's page that is
/// touched for the first time only in one.
///
/// # Panics
/// If [`fullbore_testkit::CountingAlloc`] is not the program's allocator.
fn allocations_each(mut operation: impl FnMut()) -> f64 {
    const OPERATIONS: u32 = 10_000;
    let mut count = || fullbore_testkit::allocations(|| (0..OPERATIONS).for_each(|_| operation()));
    count();
    let least = (0..5).map(|_| count()).min().unwrap_or(u64::MAX);
    least as f64 / f64::from(OPERATIONS)
}

/// To one digit after the point.
fn tenths(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

/// Marsaglia's xorshift64: a few instructions, the same for both sides.
#[derive(Debug)]
struct Random(u64);

impl Random {
    /// Another sequence for each thread.
    fn of_thread(number: usize) -> Self {
        Self(0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(number as u64 + 1))
    }

    /// Below `end`, evenly.
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        ((u128::from(self.0) * u128::from(end)) >> 64) as u64
    }
}
