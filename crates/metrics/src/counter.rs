//! Counters.

use std::fmt;

use crate::cell::CounterCell;
use crate::raw::Handle;

/// A number that only grows. A cheap handle; clones share the number.
///
/// Adding writes to memory of the calling thread's own, so that threads do not meet. At the largest `u64` it stays there.
///
/// ```
/// use fullbore_metrics::Counter;
///
/// static ROWS: Counter = Counter::new();
/// std::thread::scope(|scope| {
///     for _ in 0..4 {
///         scope.spawn(|| (0..1000).for_each(|_| ROWS.add(2)));
///     }
/// });
/// assert_eq!(ROWS.get(), 8000);
/// ```
pub struct Counter {
    handle: Handle<CounterCell, ()>,
}

impl Counter {
    /// Zero. Takes no memory before the first addition.
    #[must_use]
    pub const fn new() -> Self {
        Self { handle: Handle::new() }
    }

    /// Adds `n`. Wait-free; a thread's first addition allocates 128 bytes.
    #[inline]
    pub fn add(&self, n: u64) {
        self.handle.mine(|| ()).write(|cell| cell.count.add(n));
    }

    /// Adds 1.
    #[inline]
    pub fn inc(&self) {
        self.add(1);
    }

    /// What all threads have added, ended ones included. Exact for every addition that happened before the call.
    #[must_use]
    pub fn get(&self) -> u64 {
        let Some(shards) = self.handle.get() else { return 0 };
        shards.read(|cells| cells.iter().fold(0, |sum: u64, cell| sum.saturating_add(cell.count.get())))
    }

    pub(crate) fn id(&self) -> u64 {
        self.handle.id()
    }
}

impl Clone for Counter {
    fn clone(&self) -> Self {
        Self { handle: self.handle.share(|| ()) }
    }
}

impl Default for Counter {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Counter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Counter").field(&self.get()).finish()
    }
}
