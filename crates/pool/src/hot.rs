//! Ways to an idle connection that need no lock: the slot that the thread had last, and for keyed pools a table of slots by key. Both
//! are hints: who follows one still has to take the slot, and to look whose it is.

use std::cell::Cell;
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// A thread remembers its last slot in so many pools.
const POOLS: usize = 4;

thread_local! {
    /// Pool and slot, by the pool's number.
    static LAST: [Cell<(u64, *const ())>; POOLS] = const { [const { Cell::new((0, ptr::null())) }; POOLS] };
}

/// What this thread has remembered last for this pool. No pool has number 0.
#[inline]
pub(crate) fn last(pool: u64) -> Option<*const ()> {
    LAST.with(|last| {
        let (of, slot) = last[pool as usize % POOLS].get();
        (of == pool).then_some(slot)
    })
}

#[inline]
pub(crate) fn remember(pool: u64, slot: *const ()) {
    LAST.with(|last| last[pool as usize % POOLS].set((pool, slot)));
}

/// So many slots of keys whose hashes end alike; one cache line.
const WAYS: usize = 16;

/// One set of entries: 8 bits of the hash and 24 of the slot's number plus one; 0 is none.
#[repr(align(64))]
#[derive(Default)]
struct Set([AtomicU32; WAYS]);

/// Slots by the hash of their connections' keys. What does not fit is not in it, and found under the lock.
pub(crate) struct Index {
    sets: Box<[Set]>,
}

impl Index {
    /// For about so many slots.
    pub(crate) fn new(slots: usize) -> Self {
        // On average a set is a quarter full, so that one that is full is rare.
        let sets = (slots / (WAYS / 4)).clamp(4, 1 << 16).next_power_of_two();
        Self { sets: (0..sets).map(|_| Set::default()).collect() }
    }

    #[inline]
    fn set(&self, hash: u64) -> &Set {
        &self.sets[hash as usize & (self.sets.len() - 1)]
    }

    fn entry(hash: u64, slot: u32) -> Option<u32> {
        (slot < (1 << 24) - 1).then(|| Self::mark(hash) | (slot + 1))
    }

    /// The bits at the other end from those that choose the set.
    #[inline]
    fn mark(hash: u64) -> u32 {
        (hash >> 56 << 24) as u32
    }

    /// Slots that may have a connection of a key with this hash.
    #[inline]
    pub(crate) fn find(&self, hash: u64) -> impl Iterator<Item = u32> {
        let mark = Self::mark(hash);
        self.set(hash).0.iter().map(|entry| entry.load(Relaxed)).filter_map(move |entry| {
            let slot = entry & ((1 << 24) - 1);
            (slot != 0 && entry & !((1 << 24) - 1) == mark).then(|| slot - 1)
        })
    }

    /// Under the pool's lock.
    pub(crate) fn insert(&self, hash: u64, slot: u32) {
        if let Some(entry) = Self::entry(hash, slot)
            && let Some(free) = self.set(hash).0.iter().find(|other| other.load(Relaxed) == 0)
        {
            free.store(entry, Relaxed);
        }
    }

    /// Under the pool's lock.
    pub(crate) fn remove(&self, hash: u64, slot: u32) {
        if let Some(entry) = Self::entry(hash, slot)
            && let Some(there) = self.set(hash).0.iter().find(|other| other.load(Relaxed) == entry)
        {
            there.store(0, Relaxed);
        }
    }
}

#[cfg(all(test, not(fullbore_loom)))]
mod tests {
    use std::ptr;

    use super::{Index, WAYS, last, remember};

    #[test]
    fn what_is_put_in_is_found_until_it_is_taken_out() {
        let index = Index::new(64);
        let hash = |n: u64| n.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        (0..64).for_each(|n| index.insert(hash(n), n as u32));
        for n in 0..64 {
            assert!(index.find(hash(n)).any(|slot| u64::from(slot) == n), "{n}");
            index.remove(hash(n), n as u32);
            assert!(!index.find(hash(n)).any(|slot| u64::from(slot) == n), "{n}");
        }
    }

    #[test]
    fn a_full_set_takes_no_more_and_loses_nothing() {
        let index = Index::new(1);
        for slot in 0..20 {
            index.insert(7, slot);
        }
        assert_eq!(index.find(7).count(), WAYS);
        (0..20).for_each(|slot| index.remove(7, slot));
        assert_eq!(index.find(7).count(), 0);
        index.insert(7, u32::MAX);
        assert_eq!(index.find(7).count(), 0, "too large a number is not in it");
    }

    #[test]
    fn a_thread_knows_its_slot_of_each_pool() {
        assert_eq!(last(9), None);
        let [one, other] = [1, 2].map(|n: u8| ptr::without_provenance(n.into()));
        remember(9, one);
        remember(10, other);
        assert_eq!((last(9), last(10)), (Some(one), Some(other)));
        assert_eq!(last(13), None, "of the same place");
    }
}
