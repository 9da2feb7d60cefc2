//! What an operator does to a pool: close, pause, resize, evict, look through.

use std::time::Duration;

use fullbore_core::Undelivered;

use crate::checkout::Shared;
use crate::connection::Metrics;
use crate::manager::{Key, KeyedManager};
use crate::slot::{Slots, Taken};
use crate::stats::Why;

/// What [`retain`](crate::Pool::retain) did.
#[derive(Debug)]
#[non_exhaustive]
pub struct RetainResult<C> {
    /// How many idle connections were kept.
    pub retained: usize,
    /// Those that were not. They are the caller's now.
    pub removed: Vec<C>,
}

impl<K: Key, M: KeyedManager<K>> Shared<K, M> {
    pub(crate) fn close(&self) {
        if self.is_forked() {
            // Closing says goodbye to the server, on the parent's connection.
            return;
        }
        let mut desk = self.monitor.lock();
        if desk.closed {
            return;
        }
        desk.closed = true;
        let idle = self.take_all_idle();
        desk.notify_all(|desk| &mut desk.waiters);
        self.settle(desk);
        for taken in idle {
            self.retire_taken(taken, Why::Closed);
        }
    }

    /// Takes every idle connection, and bars the way back of all others. Under the lock.
    fn take_all_idle(&self) -> Vec<Taken<K, M>> {
        self.bar_all();
        self.slots.iter().filter_map(|slot| slot.reserve()).collect()
    }

    pub(crate) fn close_within(&self, limit: Duration) -> Result<(), Undelivered<()>> {
        if self.is_forked() {
            return Ok(());
        }
        let deadline = self.clock.after(limit);
        self.close();
        let mut desk = self.monitor.lock();
        desk.wait_until(|desk| &mut desk.all_back, deadline, |desk| desk.size == 0);
        let out = desk.size;
        drop(desk);
        Undelivered::new(Vec::new(), out, Vec::new()).into_result()
    }

    pub(crate) fn pause(&self) {
        if self.is_forked() {
            return;
        }
        let mut desk = self.monitor.lock();
        desk.paused = true;
        self.bar_all();
    }

    pub(crate) fn pause_within(&self, limit: Duration) -> Result<(), Undelivered<()>> {
        if self.is_forked() {
            return Ok(());
        }
        let deadline = self.clock.after(limit);
        self.pause();
        let mut desk = self.monitor.lock();
        let mut out = 0;
        desk.wait_until(
            |desk| &mut desk.all_back,
            deadline,
            |desk| {
                out = self.slots.iter().filter(|slot| slot.is_out()).count();
                out == 0 || !desk.paused
            },
        );
        drop(desk);
        Undelivered::new(Vec::new(), out, Vec::new()).into_result()
    }

    pub(crate) fn resume(&self) {
        if self.is_forked() {
            return;
        }
        let mut desk = self.monitor.lock();
        desk.paused = false;
        // Those in `pause_within`: it is over.
        desk.notify_all(|desk| &mut desk.all_back);
        // What was to be made when the pause came was given up.
        self.count_missing(&mut desk);
        self.settle(desk);
    }

    pub(crate) fn resize(&self, max_size: usize) {
        if self.is_forked() {
            return;
        }
        let mut surplus = Vec::new();
        let mut desk = self.monitor.lock();
        desk.max_size = max_size.clamp(1, Slots::<K, M>::MOST);
        self.station.set_parallelism(desk.max_size);
        if !desk.closed {
            // Those that are out go when they come back.
            self.bar_all();
            let mut idle: Vec<_> = self.slots.iter().filter(|slot| slot.is_idle()).collect();
            idle.sort_by_key(|slot| slot.warmth());
            for taken in idle.into_iter().filter_map(|slot| slot.reserve()) {
                if self.is_surplus(&mut desk) {
                    surplus.push(taken);
                } else {
                    // As it was, but barred: whoever takes it next opens it again.
                    taken.give(self, false);
                }
            }
            self.count_missing(&mut desk);
        }
        self.settle(desk);
        for taken in surplus {
            self.retire_taken(taken, Why::Surplus);
        }
    }

    pub(crate) fn soft_evict(&self) {
        if self.is_forked() {
            return;
        }
        let mut desk = self.monitor.lock();
        if desk.closed {
            return;
        }
        desk.epoch += 1;
        let idle = self.take_all_idle();
        self.settle(desk);
        for taken in idle {
            self.retire_taken(taken, Why::Old);
        }
    }

    pub(crate) fn retain(
        &self,
        mut keep: impl FnMut(&K, &mut M::Connection, Metrics) -> bool,
    ) -> RetainResult<M::Connection> {
        let mut result = RetainResult { retained: 0, removed: Vec::new() };
        if self.is_forked() {
            return result;
        }
        // One at a time, so that others can use the rest meanwhile.
        for slot in self.slots.iter() {
            let taken = {
                let desk = self.monitor.lock();
                if desk.closed { None } else { slot.reserve() }
            };
            let Some(taken) = taken else { continue };
            let mut looked_at = LookedAt { pool: self, taken: Some(taken) };
            if looked_at.ask(&mut keep) {
                result.retained += 1;
            } else if let Some(taken) = looked_at.taken.take() {
                result.removed.extend(self.remove(taken));
            }
        }
        result
    }

    /// It is idle again as it was, or goes, if it has to by now.
    pub(crate) fn give_unchanged(&self, mut taken: Taken<K, M>) {
        let mut desk = self.monitor.lock();
        let why = match taken.held_mut(self) {
            _ if desk.closed => Some(Why::Closed),
            Some(held) if held.epoch != desk.epoch => Some(Why::Old),
            _ if self.is_surplus(&mut desk) => Some(Why::Surplus),
            _ => None,
        };
        if let Some(why) = why {
            drop(desk);
            return self.retire_taken(taken, why);
        }
        let open = desk.is_open() && taken.held_mut(self).is_some_and(|held| self.is_trusted(held));
        taken.give(self, open);
        self.settle(desk);
    }
}

/// An idle connection that a predicate looks at; it goes back, also when that panics.
struct LookedAt<'a, K: Key, M: KeyedManager<K>> {
    pool: &'a Shared<K, M>,
    taken: Option<Taken<K, M>>,
}

impl<K: Key, M: KeyedManager<K>> LookedAt<'_, K, M> {
    fn ask(&mut self, keep: &mut impl FnMut(&K, &mut M::Connection, Metrics) -> bool) -> bool {
        let held = self.taken.as_mut().and_then(|taken| taken.held_mut(self.pool));
        held.is_some_and(|held| {
            let metrics = Metrics::of(held);
            keep(&held.key, &mut held.connection, metrics)
        })
    }
}

impl<K: Key, M: KeyedManager<K>> Drop for LookedAt<'_, K, M> {
    fn drop(&mut self) {
        if let Some(taken) = self.taken.take() {
            self.pool.give_unchanged(taken);
        }
    }
}
