//! How connections are made: in the background, one at a time at first, and with pauses while it fails.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fullbore_core::{Event, Serve, contain};

use crate::checkout::{LockedDesk, Shared, nanos};
use crate::config::WhileDown;
use crate::desk::{Claim, Down};
use crate::error::ConnectError;
use crate::manager::{Key, KeyedManager};
use crate::slot::Held;
use crate::stats::Why;

/// How much longer than the manager was told an attempt may take before it is given up.
const GRACE: Duration = Duration::from_millis(500);

impl<K: Key, M: KeyedManager<K>> Shared<K, M> {
    /// Has these attempts made in the background. Not to be called under the lock.
    pub(crate) fn launch(&self, attempts: Vec<u64>) {
        for attempt in attempts {
            // Somebody has a handle of it: the caller.
            let Some(pool) = self.me.upgrade() else { return };
            let limit = self.config.connect_timeout.checked_add(GRACE);
            self.background.submit(Box::new(move || pool.run_attempt(attempt)), limit);
        }
    }

    /// One attempt, on a thread in the background.
    fn run_attempt(&self, number: u64) {
        let mut desk = self.monitor.lock();
        if !self.is_needed(&desk, number) {
            let cold = desk.undo(self, number);
            desk.stats.connects_elided += 1;
            let Some(cold) = cold else { return self.settle(desk) };
            drop(desk);
            return self.give_unchanged(cold);
        }
        let Some(attempt) = desk.attempts.get_mut(&number) else { return };
        attempt.begun = true;
        // From here on it can be given up: closing the one before is part of it.
        let end = self.clock.after(self.config.connect_timeout).and_then(|end| end.checked_add(GRACE));
        attempt.end = end;
        let key = attempt.key.clone();
        let cold = attempt.taken.empty(self);
        drop(desk);
        if let Some(end) = end {
            self.look_at(end);
        }
        if let Some(cold) = cold {
            let cold = self.close_one(cold);
            let mut desk = self.monitor.lock();
            desk.change(&cold, |theirs| theirs.places -= 1);
            desk.stats.count(Why::Evicted);
            let given_up = !desk.attempts.contains_key(&number);
            if given_up {
                self.come_back(&mut desk, &key);
            }
            self.settle(desk);
            if given_up {
                return;
            }
        }
        let made = contain(|| self.manager.connect(&key, self.config.connect_timeout));
        match made {
            Ok(Ok(connection)) => self.admit(number, &key, connection),
            Ok(Err(error)) => self.fail(number, &key, &ConnectError::Manager(Arc::new(error))),
            Err(failure) => {
                self.events.emit(Event::Panic, || format!("connecting: {failure}"));
                self.fail(number, &key, &ConnectError::Panicked(failure));
            }
        }
    }

    /// Whether anybody still wants what an attempt is to make that has not begun.
    fn is_needed(&self, desk: &LockedDesk<'_, K, M>, number: u64) -> bool {
        let Some(attempt) = desk.attempts.get(&number) else { return false };
        if !desk.is_open() {
            return false;
        }
        if attempt.wished {
            return true;
        }
        let Some(mine) = desk.keys.get(&attempt.key) else { return false };
        let begun = desk.attempts.values().filter(|other| other.begun && other.key == attempt.key).count();
        let slots = mine.slots.iter().filter_map(|number| self.slots.get(*number));
        let idle = slots.filter(|slot| slot.is_idle()).count();
        mine.wanting > idle + begun || self.config.min_idle + desk.leaving > idle + begun
    }

    /// A connection is there.
    fn admit(&self, number: u64, key: &K, connection: M::Connection) {
        let mut desk = self.monitor.lock();
        let Some(mut attempt) = desk.end_attempt(number) else {
            // It was given up. Its place has passed on.
            drop(desk);
            if let Err(failure) = contain(|| self.manager.close(key, connection)) {
                self.events.emit(Event::Panic, || format!("closing a connection: {failure}"));
            }
            let mut desk = self.monitor.lock();
            self.come_back(&mut desk, key);
            return self.settle(desk);
        };
        desk.stats.connected += 1;
        let Some(me) = self.me.upgrade() else { return };
        let now = self.clock.coarse();
        let held = Held {
            key: key.clone(),
            connection,
            id: desk.next_id(),
            created: desk.now(),
            uses: 0,
            epoch: attempt.epoch,
            trusted: attempt.trust,
            suspect: false,
            pool: me,
        };
        let why = if desk.closed {
            Some(Why::Closed)
        } else if attempt.epoch != desk.epoch {
            // Of before a soft eviction.
            Some(Why::Old)
        } else {
            self.is_surplus(&mut desk).then_some(Why::Surplus)
        };
        if let Some(why) = why {
            drop(desk);
            self.close_one(held);
            let mut desk = self.monitor.lock();
            desk.leave_slot(self, attempt.taken);
            desk.change(key, |mine| mine.places -= 1);
            desk.going -= usize::from(why == Why::Surplus);
            desk.stats.count(why);
            self.count_missing(&mut desk);
            return self.settle(desk);
        }
        debug_assert!(attempt.taken.held_mut(self).is_none(), "the evicted one is closed");
        let slot = attempt.taken.number(self);
        // Nobody asks on the quick way whether trust was lost while it was made.
        let open = desk.is_open() && self.is_trusted(&held);
        attempt.taken.put(self, held, self.hash(key), now, self.retire_at(now), open);
        self.list(slot);
        let mut down = None;
        if let Some(mine) = desk.keys.get_mut(key) {
            mine.slots.push(slot);
            down = mine.down.take();
            // It goes well: twice as many, as long as there is somebody who waits.
            mine.ramp = mine.ramp.saturating_mul(2).min(self.background.max_connecting());
        }
        desk.graves.extend(down);
        let next = self.next_look(&desk, desk.now());
        self.settle(desk);
        if let Some(next) = next {
            self.look_at(next);
        }
    }

    /// When a connection made at `now` has to go.
    fn retire_at(&self, now: u64) -> u64 {
        let Some(lifetime) = self.config.max_lifetime else { return u64::MAX };
        let lifetime = nanos(lifetime);
        let shorter = (lifetime as f64 * self.config.lifetime_jitter * chance(now)) as u64;
        now.saturating_add(lifetime - shorter.min(lifetime))
    }

    /// An attempt has failed.
    fn fail(&self, number: u64, key: &K, error: &ConnectError<M::Error>) {
        self.events.emit(Event::Reconnect, || format!("cannot connect: {error}"));
        let mut desk = self.monitor.lock();
        match desk.end_attempt(number) {
            Some(attempt) => {
                desk.leave_slot(self, attempt.taken);
                self.note_failure(&mut desk, key, error);
            }
            None => self.come_back(&mut desk, key),
        }
        self.settle(desk);
    }

    /// The thread of an attempt that was given up is there again.
    fn come_back(&self, desk: &mut LockedDesk<'_, K, M>, key: &K) {
        desk.stuck -= 1;
        desk.change(key, |mine| mine.stuck -= 1);
    }

    /// Its place is free; what it means for those who wait, and for the next attempt.
    pub(crate) fn note_failure(&self, desk: &mut LockedDesk<'_, K, M>, key: &K, error: &ConnectError<M::Error>) {
        desk.stats.connect_failures += 1;
        let now = desk.now();
        let backoff = self.config.backoff();
        let mut next = None;
        let mut hopeless = false;
        let mut before = None;
        desk.change(key, |mine| {
            mine.places -= 1;
            let failures = mine.down.as_ref().map_or(0, |down| down.failures).saturating_add(1);
            // Shortened by chance, not lengthened: nobody waits for longer than `backoff_max` for the next attempt.
            let pause = backoff.pause(failures);
            let pause = pause.mul_f64(1.0 - chance(u64::from(failures)) / 2.0);
            let at = now.checked_add(pause).unwrap_or(now + Duration::from_secs(3600));
            next = Some(at);
            before = mine.down.replace(Down { failures, error: error.clone(), since: now, next: at });
            // With others out or under way there is something to wait for.
            hopeless = mine.places == 0;
            mine.ramp = 1;
        });
        desk.graves.extend(before);
        if hopeless && self.config.while_down == WhileDown::Fail {
            desk.serve(
                |desk| &mut desk.waiters,
                |_, waiting, _| {
                    if waiting.tag == key {
                        Serve::Grant(Claim::Failed(error.clone(), Duration::ZERO))
                    } else {
                        Serve::Skip
                    }
                },
            );
        }
        if let Some(next) = next {
            self.look_at(next);
        }
    }

    /// Gives up attempts that take too long. Called by the keeper.
    pub(crate) fn give_up_late(&self, desk: &mut LockedDesk<'_, K, M>, now: Instant) {
        let late = desk.attempts.iter().filter(|(_, attempt)| attempt.end.is_some_and(|end| end <= now));
        for number in late.map(|(number, _)| *number).collect::<Vec<_>>() {
            let Some(attempt) = desk.end_attempt(number) else { continue };
            desk.stuck += 1;
            desk.change(&attempt.key, |mine| mine.stuck += 1);
            desk.stats.connects_given_up += 1;
            desk.leave_slot(self, attempt.taken);
            self.note_failure(desk, &attempt.key, &ConnectError::Stuck(self.config.connect_timeout));
        }
    }
}

/// From 0 to below 1.
fn chance(salt: u64) -> f64 {
    // A hasher with keys of its own is the standard library's only source of chance.
    (RandomState::new().hash_one(salt) >> 11) as f64 / (1_u64 << 53) as f64
}
