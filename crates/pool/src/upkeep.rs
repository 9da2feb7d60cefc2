//! What is done for connections that nobody uses. Called by the keeper of time, at most once a second for one pool, except for what has
//! a moment of its own.

use std::time::{Duration, Instant};

use fullbore_core::{Event, contain};

use crate::background::Keep;
use crate::checkout::{LockedDesk, Shared, nanos};
use crate::leak::Checkout;
use crate::manager::{Key, KeyedManager};
use crate::slot::Taken;
use crate::stats::Why;

/// The least time between two rounds (C10).
const EACH: Duration = Duration::from_secs(1);

/// How often a pool that keeps some ready is looked at while nothing happens.
const QUIET: Duration = Duration::from_secs(30);

/// Connections are replaced by this part of their lifetime, at most so long, before its end.
const LEAD_PART: u64 = 20;
const LEAD_MOST: u64 = 30_000_000_000;

/// What is to be done with one, outside the lock.
#[derive(Clone, Copy)]
enum Care {
    Close(Why),
    Ping,
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
        for (taken, care) in work {
            self.care_for(taken, care);
        }
        next
    }
}

impl<K: Key, M: KeyedManager<K>> Shared<K, M> {
    /// Chooses the idle connections that have to go or to be checked.
    fn look_through(&self, desk: &mut LockedDesk<'_, K, M>, work: &mut Vec<(Taken<K, M>, Care)>) {
        let now = self.clock.coarse();
        let lead = self.config.max_lifetime.map_or(0, |lifetime| (nanos(lifetime) / LEAD_PART).min(LEAD_MOST));
        let mut idle: Vec<_> = self.slots.iter().filter(|slot| slot.is_idle()).collect();
        idle.sort_by_key(|slot| slot.last_used());
        let leaving = |retire_at: u64| now >= retire_at.saturating_sub(lead);
        let staying = idle.iter().filter(|slot| !leaving(slot.retire_at())).count();
        // Those that leave soon are replaced first, if they are needed.
        let mut spare = idle.len().saturating_sub(self.config.min_idle);
        let mut over = desk.size.saturating_sub(desk.max_size);
        let mut left = 0;
        for slot in idle {
            let age = now.saturating_sub(slot.last_used());
            let care = if now >= slot.retire_at() {
                Some(Care::Close(Why::Old))
            } else if over > 0 && self.is_surplus(desk) {
                over -= 1;
                Some(Care::Close(Why::Surplus))
            } else if leaving(slot.retire_at()) && staying >= self.config.min_idle {
                Some(Care::Close(Why::Old))
            } else if spare > 0 && self.config.idle_timeout.is_some_and(|limit| age >= nanos(limit)) {
                Some(Care::Close(Why::Idle))
            } else if self.config.keepalive.is_some_and(|limit| age >= nanos(limit)) {
                Some(Care::Ping)
            } else {
                None
            };
            left += usize::from(care.is_none() && leaving(slot.retire_at()));
            let Some(care) = care else { continue };
            if let Some(taken) = slot.reserve() {
                if matches!(care, Care::Close(_)) {
                    spare = spare.saturating_sub(1);
                }
                work.push((taken, care));
            }
        }
        desk.leaving = left;
    }

    fn care_for(&self, taken: Taken<K, M>, care: Care) {
        let Some(pool) = self.me.upgrade() else { return };
        match care {
            Care::Close(why) => self.background.submit(Box::new(move || pool.retire_taken(taken, why)), None),
            Care::Ping => {
                let limit = self.config.validate_timeout.checked_mul(2);
                self.background.submit(Box::new(move || pool.ping(taken)), limit);
            }
        }
    }

    /// Checks an idle one, in the background.
    fn ping(&self, mut taken: Taken<K, M>) {
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
        desk.keys.retain(|_, mine| {
            let old = |since: Instant| now.saturating_duration_since(since) >= keep;
            if mine.wanting == 0 && mine.connecting == 0 && mine.down.as_ref().is_some_and(|down| old(down.next)) {
                mine.down = None;
            }
            mine.places > 0 || mine.wanting > 0 || mine.down.is_some()
        });
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

    /// What is out, if book is kept of it.
    pub(crate) fn checkouts(&self) -> Vec<Checkout> {
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
        let downs = desk.keys.values().filter_map(|mine| mine.down.as_ref()).map(|down| {
            // To try again, or to forget.
            if down.next > now { down.next } else { down.next + self.config.backoff_max }
        });
        let reserve = desk.waiters.oldest().filter(|_| self.config.reserve_size > 0);
        let reserve = reserve.and_then(|since| since.checked_add(self.config.reserve_after));
        let exact = attempts.chain(downs).chain(reserve).filter(|at| *at > now).min();
        // What is out now comes back later, and is due later still than what comes back at once.
        let coarse = self.clock.coarse();
        let idle = self.slots.iter().filter(|slot| slot.is_idle()).flat_map(|slot| {
            let lead = self.config.max_lifetime.map_or(0, |lifetime| (nanos(lifetime) / LEAD_PART).min(LEAD_MOST));
            let quiet = [self.config.idle_timeout, self.config.keepalive].into_iter().flatten();
            let quiet = quiet.map(|limit| slot.last_used().saturating_add(nanos(limit)));
            quiet.chain([slot.retire_at().saturating_sub(lead)]).collect::<Vec<_>>()
        });
        let idle = idle.min().map(|due| Duration::from_nanos(due.saturating_sub(coarse)));
        let soon = idle.and_then(|left| now.checked_add(left.max(EACH)));
        let later = if desk.size > 0 { self.next_care(now) } else { None };
        let ready = (self.config.min_idle > 0 && desk.is_open()).then(|| {
            let quiet = self.slots.iter().all(|slot| !slot.is_out());
            now + if quiet { QUIET } else { EACH }
        });
        [exact, soon, later, ready].into_iter().flatten().min()
    }
}
