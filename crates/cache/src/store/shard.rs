//! One shard: a table, and what it knows of how often its keys are asked for.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering::Relaxed};

use hashbrown::HashTable;
use hashbrown::hash_table::Entry as Place;

use super::sketch::{MOST, Sketch};
use super::{Look, Quick};
use crate::entry::{Kept, More};
use crate::world::{Age, World};

/// One entry, in the table itself. Small: the fewer lines of memory, the sooner it is there.
pub(super) struct Slot<K, T> {
    pub(super) key: K,
    pub(super) held: T,
    due: u64,
    more: Option<Arc<More>>,
    /// See G3.
    generation: AtomicU32,
    weight: u32,
    born: u32,
    /// How often it was asked for of late.
    uses: AtomicU8,
    /// The shard's time when it was asked for last.
    seen: AtomicU8,
}

impl<K, T> Slot<K, T> {
    pub(super) fn new(key: K, held: T, kept: Kept) -> Self {
        let Kept { due, generation, weight, born, more } = kept;
        let (uses, seen) = (AtomicU8::new(0), AtomicU8::new(0));
        Self { key, held, due, more, generation: AtomicU32::new(generation), weight, born, uses, seen }
    }

    pub(super) fn weight(&self) -> u64 {
        self.weight.into()
    }

    pub(super) fn is_dead(&self, world: &World) -> bool {
        self.age(world) == Age::Dead
    }

    pub(super) fn is_fresh(&self, world: &World) -> bool {
        matches!(self.age(world), Age::Fresh | Age::Early)
    }

    fn age(&self, world: &World) -> Age {
        // ORDERING: Relaxed, also below: it is as of the one and of the other; with the older one the look is only longer.
        let as_of = self.generation.load(Relaxed);
        let (age, generation) = world.age(as_of, self.due, self.more.as_deref());
        if age != Age::Dead && as_of != generation {
            self.generation.store(generation, Relaxed);
        }
        age
    }

    fn kept(&self) -> Kept {
        let (weight, born, more) = (self.weight, self.born, self.more.clone());
        Kept { due: self.due, generation: self.generation.load(Relaxed), weight, born, more }
    }

    fn look(&self, age: Age) -> Look<T>
    where
        T: Clone,
    {
        match age {
            Age::Dead => Look::Dead,
            Age::Fresh => Look::Live(self.held.clone()),
            Age::Early | Age::Stale => Look::Aged(self.held.clone(), self.kept(), age),
        }
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

    /// Counts as a use if it is fresh.
    #[inline]
    pub(super) fn quick(&self, hash: u64, key: &K, world: &World) -> Quick<T> {
        let Some(slot) = self.table.find(hash, |slot| slot.key == *key) else { return Quick::Nothing };
        if !world.is_plainly_fresh(slot.generation.load(Relaxed), slot.due) {
            return Quick::Unclear;
        }
        self.note_use(slot);
        Quick::Fresh(slot.held.clone())
    }

    /// Counts as a use.
    pub(super) fn get(&self, hash: u64, key: &K, world: &World) -> Look<T> {
        let Some(slot) = self.table.find(hash, |slot| slot.key == *key) else { return Look::Nothing };
        let age = slot.age(world);
        if age != Age::Dead {
            world.touch(slot.more.as_deref());
            self.note_use(slot);
        }
        slot.look(age)
    }

    #[inline]
    fn note_use(&self, slot: &Slot<K, T>) {
        // ORDERING: Relaxed, also below: hints of the policy. Two at once may count as one; what does not change is not written, so
        // that a line that all read stays with all.
        let uses = slot.uses.load(Relaxed);
        if uses < MOST {
            slot.uses.store(uses + 1, Relaxed);
        }
        if slot.seen.load(Relaxed) != self.time {
            slot.seen.store(self.time, Relaxed);
        }
    }

    /// What there is, and how it stands, without a trace.
    pub(super) fn peek(&self, hash: u64, key: &K, world: &World) -> Option<(T, Kept, Age)> {
        let slot = self.table.find(hash, |slot| slot.key == *key)?;
        let age = slot.age(world);
        Some((slot.held.clone(), slot.kept(), age))
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
        if !self.sketch.fits(self.table.len().max(1)) {
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

    /// How often an entry of this hash was asked for.
    pub(super) fn estimate(&self, hash: u64) -> u8 {
        self.sketch.estimate(hash)
    }

    /// Displaces one entry for the sake of another one that is wanted so often: one that is dead, else the one that was asked for least, and
    /// of several the one not asked for the longest, of a few that chance chooses; if it was asked for less than the other one.
    pub(super) fn displace(
        &mut self,
        wanted: Option<u8>,
        world: &World,
        hasher: impl Fn(&K) -> u64,
    ) -> Result<Slot<K, T>, Full> {
        let victim = self.victim(world).ok_or(Full::Empty)?;
        let there = self.table.get_bucket(victim).ok_or(Full::Empty)?;
        let uses = there.uses.load(Relaxed);
        if wanted.is_some_and(|wanted| wanted <= uses) && !there.is_dead(world) {
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
    fn victim(&mut self, world: &World) -> Option<usize> {
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
            if slot.is_dead(world) {
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

    /// Takes out what was cleared; returns its weight.
    pub(super) fn sweep(&mut self, world: &World) -> u64 {
        let mut weight = 0;
        self.table.retain(|slot| {
            let stays = !world.is_cleared(*slot.generation.get_mut());
            weight += if stays { 0 } else { slot.weight() };
            stays
        });
        weight
    }
}
