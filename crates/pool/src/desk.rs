//! Places and who waits for them: the state under the pool's lock. Protocol in the crate's README.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::{Duration, Instant};

use fullbore_core::{WaitFor, Waiters};
use hashbrown::HashMap;

use crate::checkout::Shared;
use crate::config::{Config, QueueMode, WhileDown};
use crate::error::ConnectError;
use crate::manager::{Key, KeyedManager};
use crate::slot::{Out, Slots, Taken};
use crate::stats::Stats;

/// What a waiter is given.
pub(crate) enum Claim<K: Key, M: KeyedManager<K>> {
    /// A connection, which may have to be checked.
    Slot(Out<K, M>),
    /// The same, from whoever had it: the waiter does not count as wanting one any more, although it has not run yet.
    Handed(Out<K, M>),
    /// None can be made: the last error and its age.
    Failed(ConnectError<M::Error>, Duration),
    Closed,
}

/// The state.
pub(crate) struct Desk<K: Key, M: KeyedManager<K>> {
    pub(crate) max_size: usize,
    /// Places taken: idle + out + being made + being checked or closed by the pool.
    pub(crate) size: usize,
    /// Those of them that are being made, or are to be.
    pub(crate) connecting: usize,
    pub(crate) keys: HashMap<K, PerKey<M::Error>>,
    /// Numbers of slots that are empty and below `fresh`. The lowest is used first.
    free: BinaryHeap<Reverse<u32>>,
    /// The first number that was never used.
    fresh: u32,
    next_id: u64,
    /// What is being made, by its number.
    pub(crate) attempts: HashMap<u64, Attempt<K, M>>,
    next_attempt: u64,
    /// Attempts that were given up and whose threads have not come back.
    pub(crate) stuck: usize,
    pub(crate) closed: bool,
    pub(crate) paused: bool,
    /// How many soft evictions there were: older connections go when they come back.
    pub(crate) epoch: u64,
    /// Idle connections that are to be replaced soon, and so do not count as kept ready.
    pub(crate) leaving: usize,
    /// How many are to be made so that enough are kept ready.
    pub(crate) missing: usize,
    pub(crate) waiters: Waiters<Claim<K, M>, K>,
    /// Surplus ones that are being closed.
    pub(crate) going: usize,
    /// Failures that are over. They are the user's, so they are dropped when the lock is free.
    pub(crate) graves: Vec<Down<M::Error>>,
    /// Threads in `close_within` and `pause_within`.
    pub(crate) all_back: Waiters,
    pub(crate) stats: Stats,
    /// Tells the rounds of `grant_next` apart.
    walk: u64,
}

/// Kept only while the key has a place, somebody in line or a failure to remember: a tenant nobody uses costs nothing.
pub(crate) struct PerKey<E> {
    /// Its places. An evicted connection counts here until it is closed, although its place in the pool has passed on.
    pub(crate) places: usize,
    pub(crate) connecting: usize,
    /// Threads in line, or about to be.
    pub(crate) wanting: usize,
    /// The slots with its connections, whatever their state.
    pub(crate) slots: Vec<u32>,
    pub(crate) down: Option<Down<E>>,
    /// How many may be made at once, now: one at first, twice as many after each success while somebody waits.
    pub(crate) ramp: usize,
    /// Its attempts that were given up and have not come back.
    pub(crate) stuck: usize,
    /// How many of its idle connections are promised in this round.
    promised: usize,
    walk: u64,
}

impl<E> Default for PerKey<E> {
    fn default() -> Self {
        Self {
            places: 0,
            connecting: 0,
            wanting: 0,
            slots: Vec::new(),
            down: None,
            ramp: 1,
            stuck: 0,
            promised: 0,
            walk: 0,
        }
    }
}

impl<E> PerKey<E> {
    /// Whether nothing is left to know.
    pub(crate) fn is_forgettable(&self) -> bool {
        self.places == 0 && self.wanting == 0 && self.stuck == 0 && self.down.is_none()
    }

    /// Whether it has a connection, in use or not.
    fn has_some(&self) -> bool {
        self.places > self.connecting
    }
}

/// Connections of a key cannot be made.
pub(crate) struct Down<E> {
    pub(crate) failures: u32,
    pub(crate) error: ConnectError<E>,
    /// When it failed last.
    pub(crate) since: Instant,
    /// When the next attempt may be made.
    pub(crate) next: Instant,
}

/// A connection that is being made.
pub(crate) struct Attempt<K: Key, M: KeyedManager<K>> {
    pub(crate) key: K,
    pub(crate) taken: Taken<K, M>,
    pub(crate) begun: bool,
    /// When it is given up.
    pub(crate) end: Option<Instant>,
    /// The pool's `epoch` when it began: what is made at an address of before a soft eviction is of before it.
    pub(crate) epoch: u64,
    /// The same of `trust`.
    pub(crate) trust: u64,
    /// Made whether or not somebody waits: for a `try_get` that found none.
    pub(crate) wished: bool,
}

impl<K: Key, M: KeyedManager<K>> Desk<K, M> {
    pub(crate) fn new(config: &Config) -> Self {
        Self {
            max_size: config.max_size.min(Slots::<K, M>::MOST),
            size: 0,
            connecting: 0,
            keys: HashMap::new(),
            free: BinaryHeap::new(),
            fresh: 0,
            next_id: 0,
            attempts: HashMap::new(),
            next_attempt: 0,
            stuck: 0,
            closed: false,
            paused: false,
            epoch: 0,
            leaving: 0,
            missing: 0,
            going: 0,
            graves: Vec::new(),
            waiters: Waiters::of(WaitFor::Permit),
            all_back: Waiters::new(),
            stats: Stats::default(),
            walk: 0,
        }
    }

    pub(crate) fn next_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    fn entry(&mut self, key: &K) -> &mut PerKey<M::Error> {
        if !self.keys.contains_key(key) {
            self.keys.insert(key.clone(), PerKey::default());
        }
        self.keys.get_mut(key).expect("it was put there if it was not")
    }

    /// Somebody is going to stand in line for `key`.
    pub(crate) fn want(&mut self, key: &K) {
        let mine = self.entry(key);
        if mine.wanting == 0 && mine.connecting == 0 {
            // A new crowd begins with one.
            mine.ramp = 1;
        }
        mine.wanting += 1;
    }

    pub(crate) fn unwant(&mut self, key: &K) {
        self.change(key, |mine| mine.wanting -= 1);
    }

    /// Changes what is known of a key, and forgets it if nothing is left to know.
    pub(crate) fn change(&mut self, key: &K, f: impl FnOnce(&mut PerKey<M::Error>)) {
        if let Some(mine) = self.keys.get_mut(key) {
            f(mine);
            if mine.is_forgettable() {
                self.keys.remove(key);
            }
        }
    }

    /// An idle connection of this key, if there is one, or why there will be none.
    pub(crate) fn claim(&mut self, pool: &Shared<K, M>, key: &K) -> Option<Claim<K, M>> {
        if self.closed {
            return Some(Claim::Closed);
        }
        if self.paused {
            return None;
        }
        match self.claim_idle(pool, key) {
            Some(out) => Some(Claim::Slot(out)),
            None if pool.config.while_down == WhileDown::Fail => self.refusal(pool, key),
            None => None,
        }
    }

    fn claim_idle(&self, pool: &Shared<K, M>, key: &K) -> Option<Out<K, M>> {
        let mine = self.keys.get(key)?;
        loop {
            let idle = mine.slots.iter().filter_map(|number| pool.slots.get(*number)).filter(|slot| slot.is_idle());
            let chosen = match pool.config.queue_mode {
                // Of those that came back in the same tick the lower number: so the others can come to rest.
                QueueMode::Lifo => idle.max_by_key(|slot| (slot.last_used(), Reverse(slot.number()))),
                QueueMode::Fifo => idle.min_by_key(|slot| slot.warmth()),
            }?;
            // Somebody without the lock may have been faster; then there is one less to choose from.
            if let Some(out) = chosen.take() {
                return Some(out);
            }
        }
    }

    /// As [`claim`](Self::claim); if there is none, every slot's way back leads through the lock from now on (W).
    pub(crate) fn claim_or_bar(&mut self, pool: &Shared<K, M>, key: &K) -> Option<Claim<K, M>> {
        loop {
            let claim = self.claim(pool, key);
            if claim.is_some() || !pool.bar_all() {
                return claim;
            }
        }
    }

    /// What those who want this key are to be told instead of standing in line, while it is down.
    fn refusal(&self, pool: &Shared<K, M>, key: &K) -> Option<Claim<K, M>> {
        let mine = self.keys.get(key)?;
        let down = mine.down.as_ref()?;
        if mine.connecting > 0 || mine.has_some() {
            return None;
        }
        let now = pool.clock.now();
        let age = now.saturating_duration_since(down.since);
        (now < down.next).then(|| Claim::Failed(down.error.clone(), age))
    }

    /// How many idle connections of this key are not promised yet in this round.
    fn unpromised(&mut self, pool: &Shared<K, M>, key: &K) -> usize {
        let walk = self.walk;
        let Some(mine) = self.keys.get_mut(key) else { return 0 };
        if mine.walk != walk {
            (mine.walk, mine.promised) = (walk, 0);
        }
        let idle = mine.slots.iter().filter_map(|number| pool.slots.get(*number)).filter(|slot| slot.is_idle()).count();
        idle.saturating_sub(mine.promised)
    }

    /// A new round of promises.
    pub(crate) fn begin_walk(&mut self) {
        self.walk += 1;
    }

    /// What can be done for one in line: an idle connection is promised to him, or with `hand_over` given.
    pub(crate) fn promise(&mut self, pool: &Shared<K, M>, key: &K, hand_over: bool) -> Option<Option<Out<K, M>>> {
        if self.unpromised(pool, key) == 0 {
            return None;
        }
        if hand_over && let Some(out) = self.claim_idle(pool, key) {
            return Some(Some(out));
        }
        self.keys.get_mut(key)?.promised += 1;
        Some(None)
    }

    /// Whether one more connection of `key` is worth an attempt now, and allowed. Those in line who are promised an idle one,
    /// and those for whom one is being made, need no other.
    pub(crate) fn may_start(&self, pool: &Shared<K, M>, key: &K, now: Instant, more: usize) -> bool {
        if self.connecting >= pool.background.max_connecting() || self.stuck >= MOST_STUCK {
            return false;
        }
        let Some(mine) = self.keys.get(key) else { return more > 0 };
        if mine.connecting >= mine.ramp || (mine.stuck >= MOST_STUCK_OF_KEY && pool.only_key.is_none()) {
            return false;
        }
        let idle = mine.slots.iter().filter_map(|number| pool.slots.get(*number)).filter(|slot| slot.is_idle()).count();
        let wanted = mine.wanting.saturating_sub(idle) + more > mine.connecting;
        let up = mine.down.as_ref().is_none_or(|down| mine.connecting == 0 && down.next <= now);
        wanted && up && mine.places < pool.config.max_per_key
    }

    /// Whether a round could begin anything for anybody.
    pub(crate) fn could_start(&self, pool: &Shared<K, M>, limit: usize, idle: usize) -> bool {
        let mine = pool.only_key.as_ref().and_then(|key| self.keys.get(key));
        self.connecting < pool.background.max_connecting()
            && mine.is_none_or(|mine| mine.connecting < mine.ramp)
            && (self.size < limit || (idle > 0 && pool.only_key.is_none()))
    }

    /// Begins an attempt: takes a place for it, from the coldest idle connection of another key if there is no free one.
    /// Returns its number.
    pub(crate) fn start(
        &mut self,
        pool: &Shared<K, M>,
        key: &K,
        limit: usize,
        now: Instant,
        more: usize,
        wished: bool,
    ) -> Option<u64> {
        if !self.may_start(pool, key, now, more) {
            return None;
        }
        let taken = if self.size < limit {
            let number = match self.free.pop() {
                Some(Reverse(number)) => number,
                None => {
                    self.fresh += 1;
                    self.fresh - 1
                }
            };
            self.size += 1;
            pool.slots.make(number).fill()
        } else {
            self.evict_coldest(pool, key)?
        };
        let mine = self.entry(key);
        mine.places += 1;
        mine.connecting += 1;
        self.connecting += 1;
        self.next_attempt += 1;
        let attempt = Attempt {
            key: key.clone(),
            taken,
            begun: false,
            end: None,
            epoch: self.epoch,
            trust: pool.trust(),
            wished,
        };
        self.attempts.insert(self.next_attempt, attempt);
        Some(self.next_attempt)
    }

    /// Takes the coldest idle connection that is not of `key`. It keeps its place in its key until it is closed.
    fn evict_coldest(&mut self, pool: &Shared<K, M>, key: &K) -> Option<Taken<K, M>> {
        let mine = self.keys.get(key).map_or(&[][..], |mine| &mine.slots);
        let mut taken = loop {
            let others = pool.slots.iter().filter(|slot| slot.is_idle() && !mine.contains(&slot.number()));
            let coldest = others.min_by_key(|slot| slot.warmth())?;
            if let Some(taken) = coldest.reserve() {
                break taken;
            }
        };
        let number = taken.number(pool);
        if let Some(held) = taken.held_mut(pool) {
            self.unlist(pool, &held.key, number);
        }
        Some(taken)
    }

    /// The slot is no longer one where a connection of `key` can be found.
    pub(crate) fn unlist(&mut self, pool: &Shared<K, M>, key: &K, number: u32) {
        if let Some(mine) = self.keys.get_mut(key) {
            mine.slots.retain(|other| *other != number);
        }
        pool.unlist(number);
    }

    /// An attempt is over: what it counted as is no longer.
    pub(crate) fn end_attempt(&mut self, number: u64) -> Option<Attempt<K, M>> {
        let attempt = self.attempts.remove(&number)?;
        self.connecting -= 1;
        self.change(&attempt.key, |mine| mine.connecting -= 1);
        Some(attempt)
    }

    /// As if the attempt had not been begun. What was to make room for it is returned, for the caller to give it back.
    pub(crate) fn undo(&mut self, pool: &Shared<K, M>, number: u64) -> Option<Taken<K, M>> {
        let mut attempt = self.end_attempt(number)?;
        let slot = attempt.taken.number(pool);
        let cold = match attempt.taken.held_mut(pool) {
            Some(held) => {
                if let Some(theirs) = self.keys.get_mut(&held.key) {
                    theirs.slots.push(slot);
                }
                pool.list(slot);
                Some(attempt.taken)
            }
            None => {
                self.leave_slot(pool, attempt.taken);
                None
            }
        };
        self.change(&attempt.key, |mine| mine.places -= 1);
        cold
    }

    /// Whether connections can be handed out at all.
    pub(crate) fn is_open(&self) -> bool {
        !self.closed && !self.paused
    }

    /// The slot is empty, its place in the pool free.
    pub(crate) fn leave_slot(&mut self, pool: &Shared<K, M>, taken: Taken<K, M>) {
        self.free.push(Reverse(taken.number(pool)));
        taken.vacate(pool);
        self.size -= 1;
    }
}

/// So many attempts may have been given up and not have come back before no more are begun.
pub(crate) const MOST_STUCK: usize = 32;

/// The same for one key of many: so that one dead tenant does not stop the others.
const MOST_STUCK_OF_KEY: usize = 4;
