//! `fullbore-limit`: a permit, against the semaphore that people write by hand.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use fullbore_limit::Limit;
use parking_lot::{Condvar, Mutex};

use super::{Count, FITS, allocations_each};
use crate::measure::{Case, Side, on_threads};

const SEMAPHORE: &str = "parking_lot Mutex and Condvar";

/// See the module.
#[must_use]
pub fn cases() -> Vec<Case> {
    let mut cases: Vec<Case> = [1, 2, 8]
        .into_iter()
        .map(|threads| {
            Case::new("acquire and release, a permit free", threads, move || ours(threads, threads))
                .against(SEMAPHORE, move || semaphore(threads, threads))
        })
        .collect();
    cases.push(
        Case::new("acquire and release, 2 permits", 8, || ours(8, 2))
            .against(SEMAPHORE, || semaphore(8, 2))
            .against("itself, 2 threads", || ours(2, 2)),
    );
    cases
}

/// What is to be zero.
#[must_use]
pub fn counts() -> Vec<Count> {
    vec![Count { name: "allocations for each acquire", unit: "allocs", ours: allocations }]
}

fn limit(permits: usize) -> Limit {
    Limit::builder().permits(permits).build().expect(FITS)
}

fn ours(threads: usize, permits: usize) -> Side {
    let limit = limit(permits);
    inside(threads, permits, move |work| limit.run(work).expect("a permit comes within 30 s"))
}

fn semaphore(threads: usize, permits: usize) -> Side {
    let semaphore = Arc::new(Semaphore { free: Mutex::new(permits), freed: Condvar::new() });
    inside(threads, permits, move |work| semaphore.run(work))
}

/// Goes through the limit, and checks that never more than `permits` are inside. Only now and then: the check is as dear as
/// what is measured.
fn inside(threads: usize, permits: usize, run: impl Fn(&dyn Fn()) + Clone + Send + Sync + 'static) -> Side {
    let at_once = Arc::new(AtomicUsize::new(0));
    on_threads(threads, move |_| {
        let (run, at_once) = (run.clone(), Arc::clone(&at_once));
        move |calls| {
            for call in calls {
                if call % 64 > 0 {
                    run(&|| ());
                    continue;
                }
                run(&|| {
                    assert!(at_once.fetch_add(1, Ordering::Relaxed) < permits, "more inside than permits");
                    at_once.fetch_sub(1, Ordering::Relaxed);
                });
            }
        }
    })
}

struct Semaphore {
    free: Mutex<usize>,
    freed: Condvar,
}

impl Semaphore {
    fn run(&self, work: &dyn Fn()) {
        let mut free = self.free.lock();
        while *free == 0 {
            self.freed.wait(&mut free);
        }
        *free -= 1;
        drop(free);
        work();
        *self.free.lock() += 1;
        self.freed.notify_one();
    }
}

fn allocations() -> f64 {
    let limit = limit(1);
    allocations_each(|| drop(limit.acquire().expect("the permit is free")))
}
