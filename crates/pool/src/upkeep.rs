//! What is done for connections that nobody uses. Called by the keeper of time, at most once a second for one pool, except for what has
//! a moment of its own.

use std::time::{Duration, Instant};

use fullbore_core::{Event, contain};

use crate::background::Keep;
use crate::checkout::{LockedDesk, Shared, nanos};
use crate::desk::Desk;
use crate::leak::Checkout;
use crate::manager::{Key, KeyedManager};
use crate::slot::{Slot, Taken};
use crate::stats::Why;

/// The least time between two rounds (C10).
const EACH: Duration = Duration::from_secs(1);

/// How often a pool that keeps some ready is looked at while nothing happens.
const QUIET: Duration = Duration::from_secs(30);

/// Connections are replaced by this part of their lifetime, at most so long, before its end.
const LEAD_PART: u64 = 20;
const LEAD_MOST: u64 = 30_000_000_000;

/// What is to be done with one, outside the lock.
#[derive(Clone, Copy, PartialEq)]
enum Care {
    Close(Why),
    Ping,
}

/// What is there beside the one that is looked at.
struct Rest {
    /// Idle ones above `min_idle`.
    spare: usize,
    /// Idle ones whose lifetime is not nearly over.
    staying: usize,
}

impl<K: Key, M: KeyedManager<K>> Keep for Shared<K, M> {
    fn keep(&self) -> Option<Instant> {
        if self.is_forked() {
            return None;
        }
        let mut desk = self.monitor.lock();
        let now = desk.now();
        self.give_up_late(&mut desk, now);
        self.forget_failures(&mut desk, now);
        let mut work = Vec::new();
        if desk.is_open() {
            self.look_through(&mut desk, &mut work);
            self.count_missing(&mut desk);
        }
        self.report_leaks(&mut desk);
        let next = self.next_look(&desk, now);
        self.settle(desk);
        for (slot, care) in work {
            self.care_for(slot, care);
        }
        next
    }
}

impl<K: Key, M: KeyedManager<K>> Shared<K, M> {
    /// Chooses the idle connections that have to go or to be checked. They stay where they are until somebody has time for them.
    fn look_through(&self, desk: &mut LockedDesk<'_, K, M>, work: &mut Vec<(u32, Care)>) {
        let now = self.clock.coarse();
        let idle: Vec<_> = self.slots.iter().filter(|slot| slot.is_idle()).collect();
        let leaving = idle.iter().filter(|slot| self.is_leaving(slot, now)).count();
        let mut rest = Rest { spare: idle.len().saturating_sub(self.config.min_idle), staying: idle.len() - leaving };
        let mut left = 0;
        for slot in idle {
            let care = self.what_to_do(desk, slot, now, &rest);
            match care {
                Some(Care::Close(_)) => rest.spare = rest.spare.saturating_sub(1),
                None if self.is_leaving(slot, now) => left += 1,
                _ => {}
            }
            work.extend(care.map(|care| (slot.number(), care)));
        }
        desk.leaving = left;
    }

    /// Whether its lifetime is nearly over.
    fn is_leaving(&self, slot: &Slot<K, M>, now: u64) -> bool {
        now >= slot.retire_at().saturating_sub(self.lead())
    }

    fn lead(&self) -> u64 {
        self.config.max_lifetime.map_or(0, |lifetime| (nanos(lifetime) / LEAD_PART).min(LEAD_MOST))
    }

    fn what_to_do(&self, desk: &Desk<K, M>, slot: &Slot<K, M>, now: u64, rest: &Rest) -> Option<Care> {
        let older =
            |since: u64, limit: Option<Duration>| limit.is_some_and(|limit| now.saturating_sub(since) >= nanos(limit));
        if now >= slot.retire_at() {
            Some(Care::Close(Why::Old))
        } else if desk.size - desk.going > desk.max_size && desk.waiters.is_empty() {
            Some(Care::Close(Why::Surplus))
        } else if self.is_leaving(slot, now) && rest.staying >= self.config.min_idle {
            // Others are there in its stead.
            Some(Care::Close(Why::Old))
        } else if rest.spare > 0 && older(slot.last_used(), self.config.idle_timeout) {
            Some(Care::Close(Why::Idle))
        } else {
            older(slot.last_seen(), self.config.keepalive).then_some(Care::Ping)
        }
    }

    fn care_for(&self, slot: u32, care: Care) {
        let Some(pool) = self.me.upgrade() else { return };
        let limit = match care {
            Care::Close(_) => self.config.connect_timeout,
            Care::Ping => self.config.validate_timeout.saturating_mul(2),
        };
        self.background.submit(Box::new(move || pool.take_care(slot, care)), Some(limit));
    }

    /// Does it, if that is still to be done now that there is time for it.
    fn take_care(&self, number: u32, care: Care) {
        let mut desk = self.monitor.lock();
        let Some(slot) = self.slots.get(number).filter(|slot| slot.is_idle() && desk.is_open()) else { return };
        let now = self.clock.coarse();
        let idle = self.slots.iter().filter(|slot| slot.is_idle());
        let (leaving, staying): (Vec<_>, Vec<_>) = idle.partition(|slot| self.is_leaving(slot, now));
        let spare = (leaving.len() + staying.len()).saturating_sub(self.config.min_idle);
        let rest = Rest { spare, staying: staying.len() };
        if self.what_to_do(&desk, slot, now, &rest) != Some(care) {
            return;
        }
        let Some(taken) = slot.reserve() else { return };
        match care {
            Care::Close(Why::Surplus) if !self.is_surplus(&mut desk) => {
                taken.give(self, false);
                self.settle(desk);
            }
            Care::Close(why) => {
                drop(desk);
                self.retire_taken(taken, why);
            }
            Care::Ping => {
                drop(desk);
                self.ping(taken);
            }
        }
    }

    /// Checks an idle one, in the background.
    fn ping(&self, mut taken: Taken<K, M>) {
        // What others find out meanwhile counts.
        let trust = self.trust();
        let Some(held) = taken.held_mut(self) else { return };
        let good = contain(|| self.manager.validate(&held.key, &mut held.connection, self.config.validate_timeout));
        match good {
            Ok(Ok(())) => {
                let now = self.clock.coarse();
                let desk = self.monitor.lock();
                if desk.closed || held.epoch != desk.epoch {
                    let why = if desk.closed { Why::Closed } else { Why::Old };
                    drop(desk);
                    return self.retire_taken(taken, why);
                }
                (held.trusted, held.suspect) = (trust, false);
                let open = desk.is_open() && self.is_trusted(held);
                taken.give_checked(self, now, open);
                self.settle(desk);
            }
            Ok(Err(error)) => {
                self.events.emit(Event::Reconnect, || format!("an idle connection is gone: {error}"));
                self.distrust();
                self.retire_taken(taken, Why::Invalid);
            }
            Err(failure) => {
                self.events.emit(Event::Panic, || format!("checking an idle connection: {failure}"));
                self.retire_taken(taken, Why::Invalid);
            }
        }
    }

    /// Failures are not remembered for ever: a keyed pool would keep one for each tenant that once was down.
    fn forget_failures(&self, desk: &mut LockedDesk<'_, K, M>, now: Instant) {
        let keep = self.config.backoff_max;
        let mut over = Vec::new();
        desk.keys.retain(|_, mine| {
            let old = |since: Instant| now.saturating_duration_since(since) >= keep;
            if mine.wanting == 0 && mine.connecting == 0 && mine.down.as_ref().is_some_and(|down| old(down.next)) {
                over.extend(mine.down.take());
            }
            !mine.is_forgettable()
        });
        desk.graves.append(&mut over);
    }

    fn report_leaks(&self, desk: &mut LockedDesk<'_, K, M>) {
        let Some(limit) = self.config.leak_after else { return };
        let now = self.clock.coarse();
        for slot in self.slots.iter().filter(|slot| slot.is_out()) {
            let leak = slot.lease.with(|cell| {
                let lease = cell.as_mut().filter(|lease| !lease.reported)?;
                let checkout = lease.checkout(now);
                (checkout.age >= limit).then(|| {
                    lease.reported = true;
                    checkout
                })
            });
            if let Some(Checkout { id, site, thread, age, .. }) = leak {
                desk.stats.leaks += 1;
                desk.released(|| {
                    self.events.emit(Event::Leak, || {
                        format!("connection {id} has been out for {age:?}, taken by {thread} at {site}")
                    });
                });
            }
        }
    }

    /// When those that are out and were not reported are to be.
    fn leaks_due(&self) -> Option<u64> {
        let limit = nanos(self.config.leak_after?);
        let leases = self.slots.iter().filter(|slot| slot.is_out()).filter_map(|slot| {
            slot.lease.with(|cell| cell.as_ref().filter(|lease| !lease.reported).map(|lease| lease.since))
        });
        leases.min().map(|since| since.saturating_add(limit))
    }

    /// What is out, if book is kept of it.
    pub(crate) fn checkouts(&self) -> Vec<Checkout> {
        if self.is_forked() {
            return Vec::new();
        }
        let now = self.clock.coarse();
        let leases = self.slots.iter().filter(|slot| slot.is_out());
        leases.filter_map(|slot| slot.lease.with(|cell| cell.as_ref().map(|lease| lease.checkout(now)))).collect()
    }

    /// When an idle connection needs care for the first time, if it comes back now.
    pub(crate) fn next_care(&self, now: Instant) -> Option<Instant> {
        let config = &self.config;
        let shortest = (1.0 - config.lifetime_jitter) * (1.0 - 1.0 / LEAD_PART as f64);
        let lifetime =
            config.max_lifetime.map(|lifetime| Duration::from_nanos((nanos(lifetime) as f64 * shortest) as u64));
        let times = [config.idle_timeout, config.keepalive, config.leak_after, lifetime];
        let first = times.into_iter().flatten().min()?;
        now.checked_add(first.max(EACH))
    }

    /// When to come again.
    pub(crate) fn next_look(&self, desk: &LockedDesk<'_, K, M>, now: Instant) -> Option<Instant> {
        let attempts = desk.attempts.values().filter_map(|attempt| attempt.end);
        let downs = desk.keys.values().filter_map(|mine| mine.down.as_ref()).filter_map(|down| {
            // To try again, or to forget.
            if down.next > now { Some(down.next) } else { down.next.checked_add(self.config.backoff_max) }
        });
        let reserve = desk.waiters.oldest().filter(|_| self.config.reserve_size > 0);
        // One who has waited for longer may have found no use for it; who comes after him may.
        let reserve = reserve.and_then(|since| since.checked_add(self.config.reserve_after).max(now.checked_add(EACH)));
        let exact = attempts.chain(downs).chain(reserve).filter(|at| *at > now).min();
        // What is out now comes back later, and is due later still than what comes back at once.
        let coarse = self.clock.coarse();
        let idle = self.slots.iter().filter(|slot| slot.is_idle()).flat_map(|slot| {
            let idle = self.config.idle_timeout.map(|limit| slot.last_used().saturating_add(nanos(limit)));
            let unseen = self.config.keepalive.map(|limit| slot.last_seen().saturating_add(nanos(limit)));
            let retire = Some(slot.retire_at().saturating_sub(self.lead()));
            [idle, unseen, retire].into_iter().flatten()
        });
        let idle = idle.chain(self.leaks_due()).min().map(|due| Duration::from_nanos(due.saturating_sub(coarse)));
        let soon = idle.and_then(|left| now.checked_add(left.max(EACH)));
        let later = if desk.size > 0 { self.next_care(now) } else { None };
        let ready = (self.config.min_idle > 0 && desk.is_open()).then(|| {
            let quiet = self.slots.iter().all(|slot| !slot.is_out());
            now + if quiet { QUIET } else { EACH }
        });
        [exact, soon, later, ready].into_iter().flatten().min()
    }
}
