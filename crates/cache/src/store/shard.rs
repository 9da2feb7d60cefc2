//! One shard: a table, and what it knows of how often its keys are asked for.

use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

use hashbrown::HashTable;
use hashbrown::hash_table::Entry as Place;

use super::Look;
use super::sketch::{MOST, Sketch};
use crate::entry::Kept;
use fullbore_core::Clock;

/// One entry, in the table itself. Small: the fewer lines of memory, the sooner it is there.
pub(super) struct Slot<K, T> {
    pub(super) key: K,
    pub(super) held: T,
    kept: Kept,
    /// How often it was asked for of late.
    uses: AtomicU8,
    /// The shard's time when it was asked for last.
    seen: AtomicU8,
}

impl<K, T> Slot<K, T> {
    pub(super) fn new(key: K, held: T, kept: Kept) -> Self {
        Self { key, held, kept, uses: AtomicU8::new(0), seen: AtomicU8::new(0) }
    }

    pub(super) fn weight(&self) -> u64 {
        self.kept.weight.into()
    }

    pub(super) fn is_dead(&self, generation: u32, clock: &Clock) -> bool {
        self.kept.is_dead(generation, clock)
    }
}

/// So many entries are looked at to find one to displace.
const SAMPLE: usize = 8;

/// The shard's time goes so often while as many entries come in as there are.
const STEPS: usize = 16;

/// What was asked for before this many uses for each entry counts half.
const PERIOD: u64 = 20;

pub(super) struct Shard<K, T> {
    table: HashTable<Slot<K, T>>,
    sketch: Sketch,
    /// Counts up, and around, with what comes in.
    time: u8,
    /// Until the time's next step.
    left: usize,
    /// Entries that came in, or were refused, since the counts were halved.
    came: u64,
    /// The hits of the whole cache at that moment.
    hits_then: u64,
    random: u64,
}

/// Why there is no room.
pub(super) enum Full {
    /// What is here is asked for more often.
    Worse,
    /// There is nothing here that could go.
    Empty,
}

impl<K: Eq, T: Clone> Shard<K, T> {
    pub(super) fn new(number: u64) -> Self {
        Self {
            table: HashTable::new(),
            sketch: Sketch::new(),
            time: 0,
            left: 0,
            came: 0,
            hits_then: 0,
            random: number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.table.len()
    }

    /// Counts as a use.
    #[inline]
    pub(super) fn get(&self, hash: u64, key: &K, generation: u32, clock: &Clock) -> Look<T> {
        let Some(slot) = self.table.find(hash, |slot| slot.key == *key) else { return Look::Nothing };
        if slot.is_dead(generation, clock) {
            return Look::Dead;
        }
        // ORDERING: Relaxed, also below: hints of the policy. Two at once may count as one; what does not change is not written, so
        // that a line that all read stays with all.
        let uses = slot.uses.load(Relaxed);
        if uses < MOST {
            slot.uses.store(uses + 1, Relaxed);
        }
        if slot.seen.load(Relaxed) != self.time {
            slot.seen.store(self.time, Relaxed);
        }
        Look::Live(slot.held.clone())
    }

    pub(super) fn peek(&self, hash: u64, key: &K, generation: u32, clock: &Clock) -> Look<(T, Kept)> {
        match self.table.find(hash, |slot| slot.key == *key) {
            None => Look::Nothing,
            Some(slot) if slot.is_dead(generation, clock) => Look::Dead,
            Some(slot) => Look::Live((slot.held.clone(), slot.kept)),
        }
    }

    pub(super) fn remove(&mut self, hash: u64, key: &K) -> Option<Slot<K, T>> {
        let place = self.table.find_entry(hash, |slot| slot.key == *key).ok()?;
        Some(place.remove().0)
    }

    /// Puts an entry in, for which there is room, in place of the one of its key.
    pub(super) fn put(&mut self, hash: u64, mut slot: Slot<K, T>, hasher: impl Fn(&K) -> u64) -> Option<Slot<K, T>> {
        *slot.seen.get_mut() = self.time;
        *slot.uses.get_mut() = self.sketch.estimate(hash);
        match self.table.entry(hash, |other| other.key == slot.key, |other| hasher(&other.key)) {
            Place::Occupied(mut there) => Some(std::mem::replace(there.get_mut(), slot)),
            Place::Vacant(free) => {
                free.insert(slot);
                None
            }
        }
    }

    /// An entry of this hash wants to come in: the policy's time goes on.
    pub(super) fn note(&mut self, hash: u64, hits: impl FnOnce() -> u64) {
        if !self.sketch.fits(self.table.len()) {
            // What is in the table knows its own count; of what is not, little is lost.
            self.sketch.grow(self.table.len() * 2);
        }
        self.sketch.add(hash, 1);
        self.came += 1;
        if self.left > 0 {
            self.left -= 1;
            return;
        }
        self.left = self.table.len() / STEPS;
        self.time = self.time.wrapping_add(1);
        // `hits` is of all shards, which are alike.
        let hits = hits();
        if self.came + hits.saturating_sub(self.hits_then) >= PERIOD * self.table.len().max(STEPS) as u64 {
            (self.came, self.hits_then) = (0, hits);
            self.sketch.halve();
            for slot in &mut self.table {
                *slot.uses.get_mut() /= 2;
            }
        }
    }

    /// Displaces one entry for the sake of another one of this hash: one that is dead, else the one that was asked for least, and
    /// of several the one not asked for the longest, of a few that chance chooses; if it was asked for less than the other one.
    pub(super) fn displace(
        &mut self,
        hash: Option<u64>,
        generation: u32,
        clock: &Clock,
        hasher: impl Fn(&K) -> u64,
    ) -> Result<Slot<K, T>, Full> {
        let victim = self.victim(generation, clock).ok_or(Full::Empty)?;
        let there = self.table.get_bucket(victim).ok_or(Full::Empty)?;
        let uses = there.uses.load(Relaxed);
        if let Some(hash) = hash
            && !there.is_dead(generation, clock)
            && self.sketch.estimate(hash) <= uses
        {
            return Err(Full::Worse);
        }
        let slot = self.table.get_bucket_entry(victim).map_err(|_| Full::Empty)?.remove().0;
        // If it comes again it is known.
        let hash = hasher(&slot.key);
        let known = self.sketch.estimate(hash);
        self.sketch.add(hash, uses.saturating_sub(known));
        Ok(slot)
    }

    /// The bucket of the one to go.
    fn victim(&mut self, generation: u32, clock: &Clock) -> Option<usize> {
        let buckets = self.table.num_buckets();
        if self.table.is_empty() {
            return None;
        }
        // Marsaglia's xorshift64.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let start = (self.random >> 16) as usize % buckets;
        let mut best: Option<(usize, (u8, u8))> = None;
        let mut seen = 0;
        for step in 0..buckets {
            let at = (start + step) % buckets;
            let Some(slot) = self.table.get_bucket(at) else { continue };
            if slot.is_dead(generation, clock) {
                return Some(at);
            }
            let age = self.time.wrapping_sub(slot.seen.load(Relaxed));
            let rank = (slot.uses.load(Relaxed), u8::MAX - age);
            if best.is_none_or(|(_, other)| rank < other) {
                best = Some((at, rank));
            }
            seen += 1;
            if seen == SAMPLE {
                break;
            }
        }
        best.map(|(at, _)| at)
    }

    /// Takes out what is of another generation; returns its weight.
    pub(super) fn sweep(&mut self, generation: u32) -> u64 {
        let mut weight = 0;
        self.table.retain(|slot| {
            let stays = slot.kept.generation == generation;
            weight += if stays { 0 } else { slot.weight() };
            stays
        });
        weight
    }
}
