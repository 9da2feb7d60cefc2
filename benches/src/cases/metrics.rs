//! `fullbore-metrics`: what it costs to be counted and timed.

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use fullbore_metrics::{Outcome, Station, sampled};

use super::{Count, allocations_each};
use crate::measure::{Case, Side, Team, on_threads};

/// See the module.
#[must_use]
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for threads in [1, 2, 8] {
        cases.push(
            Case::new("count an item, sampled timing", threads, move || on_station(threads, count))
                .against("one shared AtomicU64", move || atomic(threads)),
        );
    }
    for threads in [1, 2, 8] {
        cases.push(
            Case::new("Station::run, empty closure", threads, move || on_station(threads, run))
                .against("two Instant::now", move || two_reads(threads)),
        );
    }
    cases.push(
        Case::new("Station::run, as threads grow to 8", 8, || on_station(8, run))
            .against("itself, 1 thread", || on_station(1, run)),
    );
    cases
}

/// What is to be zero.
#[must_use]
pub fn counts() -> Vec<Count> {
    vec![Count { name: "allocations for each run", unit: "allocs", ours: allocations }]
}

/// Sends items through a station that all threads share, and checks that each was counted.
fn on_station(threads: usize, item: impl Fn(&Station) + Copy + Send + Sync + 'static) -> Side {
    let station = Station::new("bench");
    let shared = station.clone();
    let mut team = Team::new(threads, move |_| {
        let station = shared.clone();
        move |items| items.for_each(|_| item(&station))
    });
    let mut served = 0;
    Box::new(move |items| {
        let took = team.run(items).took();
        served += items;
        assert_eq!(station.snapshot().served, served);
        took
    })
}

/// What our own primitives do for an item that goes right through.
fn count(station: &Station) {
    station.arrived(1);
    station.began(1);
    let begun = sampled().then(Instant::now);
    black_box(());
    if let Some(begun) = begun {
        station.took(begun.elapsed());
    }
    station.ended(Outcome::Served, 1);
}

fn run(station: &Station) {
    station.run(|| black_box(()));
}

fn atomic(threads: usize) -> Side {
    let count = Arc::new(AtomicU64::new(0));
    let shared = Arc::clone(&count);
    let mut team = Team::new(threads, move |_| {
        let count = Arc::clone(&shared);
        move |items| {
            for _ in items {
                count.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    let mut served = 0;
    Box::new(move |items| {
        let took = team.run(items).took();
        served += items;
        assert_eq!(count.load(Ordering::Relaxed), served);
        took
    })
}

fn two_reads(threads: usize) -> Side {
    on_threads(threads, |_| {
        move |calls| {
            let took = |_| {
                let begun = Instant::now();
                black_box(());
                begun.elapsed()
            };
            let sum: Duration = calls.map(took).sum();
            assert!(black_box(sum) < Duration::from_secs(600));
        }
    })
}

fn allocations() -> f64 {
    let station = Station::new("bench");
    allocations_each(|| run(&station))
}
