//! Threads that hold a connection and ask for another one: with enough of them each waits for all others.

use std::cell::RefCell;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use fullbore_core::FromEnv;

/// What `get` does on a thread that holds a connection of the same pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum Nested {
    /// Nothing: nobody counts.
    #[default]
    Off,
    /// Tells of it (feature `tracing`), and goes on.
    Warn,
    /// Fails ([`GetError::is_nested`](crate::GetError::is_nested)).
    Refuse,
}

from_text!(Nested: "off, warn or refuse"; "off" => Nested::Off, "warn" => Nested::Warn, "refuse" => Nested::Refuse);

thread_local! {
    /// How many connections of each pool this thread holds; a pool's entry is made at its first checkout here.
    static HELD: RefCell<Vec<(u64, Arc<AtomicUsize>)>> = const { RefCell::new(Vec::new()) };
}

/// One connection in the count of the thread that holds it.
pub(crate) struct Home(Arc<AtomicUsize>);

/// This thread's count of this pool; none while the thread's locals are torn down.
fn count_of(pool: u64) -> Option<Arc<AtomicUsize>> {
    HELD.try_with(|held| {
        let mut held = held.borrow_mut();
        if let Some((_, count)) = held.iter().find(|(other, _)| *other == pool) {
            return Arc::clone(count);
        }
        // Of pools that are gone, or that this thread has nothing of: they come again when they are needed.
        held.retain(|(_, count)| Arc::strong_count(count) > 1);
        let count = Arc::new(AtomicUsize::new(0));
        held.push((pool, Arc::clone(&count)));
        count
    })
    .ok()
}

/// How many connections of this pool the calling thread holds.
pub(crate) fn held_here(pool: u64) -> usize {
    // ORDERING: Relaxed, here and below: a count, which a connection that moves changes on both sides.
    count_of(pool).map_or(0, |count| count.load(Ordering::Relaxed))
}

impl Home {
    pub(crate) fn here(pool: u64) -> Option<Self> {
        let count = count_of(pool)?;
        count.fetch_add(1, Ordering::Relaxed);
        Some(Self(count))
    }

    /// The connection is used on this thread now.
    pub(crate) fn follow(&mut self, pool: u64) {
        if let Some(here) = count_of(pool)
            && !Arc::ptr_eq(&here, &self.0)
        {
            here.fetch_add(1, Ordering::Relaxed);
            let gone = std::mem::replace(&mut self.0, here);
            gone.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
