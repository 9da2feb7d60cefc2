//! What the fleet run is compared with: the same function one at a time, and a bare loop on as many threads.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Barrier, Mutex, PoisonError};
use std::time::{Duration, Instant};

use fullbore_examples::fleet::migrate::{migrate, open};
use fullbore_examples::fleet::reference::FromMemory;

/// The same function with the same PRAGMAs as the fleet run.
fn migrate_one(path: &Path, refs: &FromMemory) -> Result<(), String> {
    let migrated = open(path).and_then(|mut sqlite| migrate(&mut sqlite, refs));
    migrated.map(drop).map_err(|error| format!("the sample {} failed: {error}", path.display()))
}

/// Migrates `paths` one after the other, on this thread.
pub(crate) fn one_at_a_time(paths: &[PathBuf], refs: &FromMemory) -> Result<Duration, String> {
    let begin = Instant::now();
    for path in paths {
        migrate_one(path, refs)?;
    }
    Ok(begin.elapsed())
}

/// Migrates `paths` on `threads` threads that take the next one from a shared counter: what the machine allows.
pub(crate) fn bare_loop(paths: &[PathBuf], refs: &FromMemory, threads: usize) -> Result<Duration, String> {
    let next = AtomicUsize::new(0);
    let first_error = Mutex::new(None);
    // The fleet's workers are there before its clock starts, so these are as well.
    let start = Barrier::new(threads + 1);
    let begin = std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                start.wait();
                // ORDERING: Relaxed: the counter only hands out numbers.
                while let Some(path) = paths.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(error) = migrate_one(path, refs) {
                        first_error.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                    }
                }
            });
        }
        start.wait();
        Instant::now()
    });
    let took = begin.elapsed();
    match first_error.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None => Ok(took),
    }
}
