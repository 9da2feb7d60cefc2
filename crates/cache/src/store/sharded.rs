//! The shards together: who is where, and how much there may be in all.

use std::mem;
use std::sync::Arc;
use std::sync::atomic::{
    AtomicU64,
    Ordering::{Relaxed, SeqCst},
};

use fullbore_metrics::Counter;
use parking_lot::RwLock;

use super::shard::{Full, Shard, Slot};
use super::{Look, Quick};
use crate::entry::Kept;
use crate::world::{Age, World};

/// On lines of its own: a reader writes to the lock.
#[repr(align(128))]
struct Line<K, T>(RwLock<Shard<K, T>>);

/// Entries by key, up to a weight.
pub(super) struct Sharded<K, T> {
    shards: Box<[Line<K, T>]>,
    /// Which bits of a hash choose the shard.
    mask: u64,
    capacity: AtomicU64,
    /// The weight of all entries. Only raised when it stays within the capacity.
    weight: AtomicU64,
    /// Of all calls: the policy needs to know how many uses there are.
    hits: Arc<Counter>,
    /// Those that had to make room.
    evicted: Arc<Counter>,
    world: Arc<World>,
}

/// What has left the table, one as a rule.
struct Gone<K, T> {
    first: Option<Slot<K, T>>,
    more: Vec<Slot<K, T>>,
}

impl<K, T> Default for Gone<K, T> {
    fn default() -> Self {
        Self { first: None, more: Vec::new() }
    }
}

impl<K, T> Gone<K, T> {
    fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    fn push(&mut self, slot: Slot<K, T>) {
        match self.first {
            None => self.first = Some(slot),
            Some(_) => self.more.push(slot),
        }
    }
}

/// Room for an entry, given back unless it is used: also where an `Eq` or a `Hash` panics.
struct Reserved<'a> {
    all: &'a AtomicU64,
    weight: u64,
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        self.all.fetch_sub(self.weight, SeqCst);
    }
}

/// A shard has at least so many entries before there is a second one: the policy chooses within one.
const WORTH_A_SHARD: u64 = 64;
/// More shards mean that two threads meet seldom in one.
const SHARDS_EACH_CORE: u64 = 16;

impl<K: Eq, T: Clone> Sharded<K, T> {
    pub(super) fn new(
        capacity: u64,
        weighed: bool,
        world: Arc<World>,
        hits: Arc<Counter>,
        evicted: Arc<Counter>,
    ) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from) as u64;
        let shards = (SHARDS_EACH_CORE * cores).next_power_of_two();
        // The power of two that is not above.
        let most = (capacity / WORTH_A_SHARD).max(1).ilog2();
        // How many entries there will be is not known where they are weighed.
        let shards = if weighed { shards.min(cores.next_power_of_two()) } else { shards }.min(1 << most);
        Self {
            shards: (0..shards).map(|number| Line(RwLock::new(Shard::new(number + 1)))).collect(),
            mask: shards - 1,
            capacity: AtomicU64::new(capacity),
            weight: AtomicU64::new(0),
            hits,
            evicted,
            world,
        }
    }

    #[inline]
    fn shard(&self, hash: u64) -> &RwLock<Shard<K, T>> {
        &self.shards[self.number(hash)].0
    }

    /// The table within a shard chooses by the lowest and the highest bits.
    #[inline]
    fn number(&self, hash: u64) -> usize {
        (hash >> 32 & self.mask) as usize
    }

    #[inline]
    pub(super) fn quick(&self, hash: u64, key: &K) -> Quick<T> {
        self.shard(hash).read().quick(hash, key, &self.world)
    }

    pub(super) fn get(&self, hash: u64, key: &K) -> Look<T> {
        self.shard(hash).read().get(hash, key, &self.world)
    }

    pub(super) fn peek(&self, hash: u64, key: &K) -> Option<(T, Kept, Age)> {
        self.shard(hash).read().peek(hash, key, &self.world)
    }

    pub(super) fn insert(&self, hash: u64, key: K, held: T, kept: Kept, hasher: impl Fn(&K) -> u64) {
        let weight = u64::from(kept.weight);
        if weight > self.capacity.load(Relaxed) {
            self.remove(hash, &key);
            return;
        }
        let slot = Slot::new(key, held, kept);
        // Entries and keys that go are dropped after the lock.
        let mut gone = Gone::default();
        let mut shard = self.shard(hash).write();
        shard.note(hash, || self.hits.get() / self.shards.len() as u64);
        if let Some(old) = shard.remove(hash, &slot.key) {
            self.release(old.weight());
            gone.push(old);
        }
        // One that replaces another is not compared again: the key is here, and only its value is another one. How much it is wanted only
        // its own shard knows.
        let wanted = gone.is_empty().then(|| shard.estimate(hash));
        let Some(reserved) = self.reserve(weight) else {
            let own = self.number(hash);
            return self.insert_displacing(hash, slot, &mut shard, own, wanted, &hasher, &mut gone);
        };
        self.put(hash, slot, &mut shard, reserved, &hasher, &mut gone);
        drop(shard);
    }

    /// As `insert`, where room has to be made: in the own shard first, then in the others, one after the other.
    #[expect(clippy::too_many_arguments, reason = "the rest of `insert`")]
    fn insert_displacing(
        &self,
        hash: u64,
        slot: Slot<K, T>,
        shard: &mut Shard<K, T>,
        own: usize,
        wanted: Option<u8>,
        hasher: &impl Fn(&K) -> u64,
        gone: &mut Gone<K, T>,
    ) {
        let weight = slot.weight();
        let mut make_room = |shard: &mut Shard<K, T>| loop {
            match shard.displace(wanted, &self.world, hasher) {
                Ok(old) => {
                    self.evict(&old);
                    gone.push(old);
                    if let Some(reserved) = self.reserve(weight) {
                        return Ok(reserved);
                    }
                }
                Err(full) => return Err(full),
            }
        };
        let mut made = make_room(shard);
        // What is here is wanted more: then so be it. Where nothing is left here, others have to give.
        for step in 1..self.shards.len() {
            if !matches!(made, Err(Full::Empty)) {
                break;
            }
            // Whoever holds a lock there is about to change it: it is passed over.
            if let Some(mut other) = self.shards[(own + step) % self.shards.len()].0.try_write() {
                made = make_room(&mut other);
                // One that is wanted more there does not speak for the next shard.
                made = made.map_err(|_| Full::Empty);
            }
        }
        if let Ok(reserved) = made {
            self.put(hash, slot, shard, reserved, hasher, gone);
        }
    }

    fn put(
        &self,
        hash: u64,
        slot: Slot<K, T>,
        shard: &mut Shard<K, T>,
        reserved: Reserved<'_>,
        hasher: &impl Fn(&K) -> u64,
        gone: &mut Gone<K, T>,
    ) {
        if let Some(old) = shard.put(hash, slot, hasher) {
            self.release(old.weight());
            gone.push(old);
        }
        // It is that of the entry now.
        mem::forget(reserved);
    }

    fn reserve(&self, weight: u64) -> Option<Reserved<'_>> {
        // ORDERING: SeqCst, with `resize`: either it sees this weight, or this sees its capacity. The sum is all that matters else; entries are
        // under the locks.
        let within = |sum: u64| sum.checked_add(weight).filter(|sum| *sum <= self.capacity.load(SeqCst));
        self.weight.fetch_update(SeqCst, SeqCst, within).ok()?;
        let reserved = Reserved { all: &self.weight, weight };
        (self.weight.load(SeqCst) <= self.capacity.load(SeqCst)).then_some(reserved)
    }

    fn evict(&self, old: &Slot<K, T>) {
        self.evicted.inc();
        self.release(old.weight());
    }

    fn release(&self, weight: u64) {
        self.weight.fetch_sub(weight, SeqCst);
    }

    pub(super) fn remove(&self, hash: u64, key: &K) -> Look<T> {
        let Some(slot) = self.shard(hash).write().remove(hash, key) else { return Look::Nothing };
        self.release(slot.weight());
        if slot.is_fresh(&self.world) { Look::Live(slot.held) } else { Look::Dead }
    }

    /// Gives back the memory of what was cleared.
    pub(super) fn clear(&self) {
        for shard in &self.shards {
            let weight = shard.0.write().sweep(&self.world);
            self.release(weight);
        }
    }

    /// Changes how much there may be, and displaces what is too much.
    pub(super) fn resize(&self, capacity: u64, hasher: impl Fn(&K) -> u64) {
        self.capacity.store(capacity, SeqCst);
        while self.weight.load(SeqCst) > capacity {
            let mut any = false;
            for shard in &self.shards {
                let old = shard.0.write().displace(None, &self.world, &hasher);
                if let Ok(old) = old {
                    self.evict(&old);
                    any = true;
                }
                if self.weight.load(SeqCst) <= capacity {
                    return;
                }
            }
            if !any {
                return;
            }
        }
    }

    pub(super) fn count(&self) -> u64 {
        self.shards.iter().map(|shard| shard.0.read().len() as u64).sum()
    }

    pub(super) fn weight(&self) -> u64 {
        self.weight.load(Relaxed)
    }
}
