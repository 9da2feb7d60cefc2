//! What the cache keeps for a key, and where its value goes in the end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use fullbore_core::{Clock, Event, Events, Monitor, contain};

use crate::world::Tag;

/// A value that several share: the store, the call that loaded it, those who waited.
pub(crate) struct Entry<V> {
    /// `None` only inside `drop`.
    value: Option<V>,
    grave: Arc<Grave<V>>,
}

/// What decides whether a value may still be returned, and what it weighs. Small: it lies in the table.
#[derive(Clone)]
pub(crate) struct Kept {
    /// Until this moment, in the clock's coarse time, it is returned without a second look.
    pub(crate) due: u64,
    /// It is valid as of this generation of the cache: when it was inserted, or when its load began.
    pub(crate) generation: u32,
    pub(crate) weight: u32,
    /// When it was made, in ticks of the world.
    pub(crate) born: u32,
    pub(crate) more: Option<Arc<More>>,
}

/// What not every entry has.
#[derive(Debug, Default)]
pub(crate) struct More {
    /// From this moment on it is stale.
    pub(crate) fresh_until: u64,
    /// From this moment on it is dead.
    pub(crate) stale_until: u64,
    /// How long its load took, in nanoseconds.
    pub(crate) took: u64,
    pub(crate) tags: Box<[Arc<Tag>]>,
    pub(crate) etag: Option<Arc<str>>,
    pub(crate) version: u64,
    pub(crate) negative: bool,
    /// When it was asked for last. Only kept up where there is a time to idle.
    pub(crate) used: AtomicU64,
    /// When it was asked last that it be loaded early.
    pub(crate) asked: AtomicU64,
}

#[cfg(feature = "redis")]
impl Kept {
    pub(crate) fn version(&self) -> u64 {
        self.more.as_ref().map_or(0, |more| more.version)
    }

    /// From then on it is stale.
    pub(crate) fn fresh_until(&self) -> u64 {
        self.more.as_ref().map_or(self.due, |more| more.fresh_until)
    }
}

/// A moment that never comes.
pub(crate) const NEVER: u64 = u64::MAX;

impl<V> Entry<V> {
    pub(crate) fn new(value: V, grave: &Arc<Grave<V>>) -> Arc<Self> {
        Arc::new(Self { value: Some(value), grave: Arc::clone(grave) })
    }

    pub(crate) fn value(&self) -> &V {
        self.value.as_ref().expect("only `drop` takes the value")
    }
}

impl<V> Drop for Entry<V> {
    /// The store lets go of entries in the middle of its work, under its locks and ours: the value is only laid aside.
    fn drop(&mut self) {
        if std::mem::needs_drop::<V>()
            && let Some(value) = self.value.take()
        {
            self.grave.lay(value);
        }
    }
}

/// Values whose entries are gone, until a call on the cache has come to its end and runs their destructors under no lock.
pub(crate) struct Grave<V> {
    dead: Monitor<Vec<V>>,
    /// Whether a look is worth the lock. Written under the lock.
    any: AtomicBool,
}

impl<V> Grave<V> {
    pub(crate) fn new() -> Self {
        Self { dead: Monitor::new(Vec::new(), Clock::Real), any: AtomicBool::new(false) }
    }

    fn lay(&self, value: V) {
        let mut dead = self.dead.lock();
        dead.push(value);
        // ORDERING: Relaxed here and in `bury`: a hint. The thread that laid a value sees it; the lock publishes the value.
        self.any.store(true, Ordering::Relaxed);
    }

    /// Runs the destructors. One that panics belongs to no call: its panic is contained and told through `events`.
    pub(crate) fn bury(&self, events: &Events) {
        if !self.any.load(Ordering::Relaxed) {
            return;
        }
        let dead = {
            let mut dead = self.dead.lock();
            self.any.store(false, Ordering::Relaxed);
            std::mem::take(&mut *dead)
        };
        for value in dead {
            if let Err(failure) = contain(|| drop(value)) {
                events.emit(Event::Panic, || format!("a value's destructor {failure}"));
            }
        }
    }
}

impl<V> Drop for Grave<V> {
    fn drop(&mut self) {
        for value in std::mem::take(&mut *self.dead.lock()) {
            // Nobody is left to be told.
            let _ = contain(|| drop(value));
        }
    }
}
