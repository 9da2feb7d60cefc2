//! How many items and keys there are: one word, so that "full" is one question and "somebody waits" cannot be missed.

use super::sync::{AtomicBool, AtomicU64, Ordering};

/// A number of items and of keys, to be taken or given back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Places {
    pub(super) items: u32,
    pub(super) keys: u32,
}

impl Places {
    /// For an item of a key that is there.
    pub(super) const ITEM: Self = Self { items: 1, keys: 0 };
    /// For a key.
    pub(super) const KEY: Self = Self { items: 0, keys: 1 };
    /// For the first item of a key.
    pub(super) const BOTH: Self = Self { items: 1, keys: 1 };

    pub(super) const fn is_none(self) -> bool {
        self.items == 0 && self.keys == 0
    }

    /// Without `other`, if that is in it.
    pub(super) fn minus(self, other: Self) -> Option<Self> {
        Some(Self { items: self.items.checked_sub(other.items)?, keys: self.keys.checked_sub(other.keys)? })
    }

    const fn word(self) -> u64 {
        self.items as u64 | (self.keys as u64) << KEYS_AT
    }

    const fn of_word(word: u64) -> Self {
        Self { items: word as u32, keys: ((word & !WANTED) >> KEYS_AT) as u32 }
    }
}

const KEYS_AT: u32 = 32;
const WANTED: u64 = 1 << 63;

/// The places. Taken and given back without a lock; who waits for them stands in the hub's line. On lines of its own: every
/// sender writes it.
#[repr(align(128))]
#[derive(Debug)]
pub(super) struct Room {
    /// Items in the lower half; keys above it; and `WANTED` while somebody may wait in line.
    word: AtomicU64,
    /// Somebody found none, and no idle worker has looked since.
    pressed: AtomicBool,
    limit: Places,
}

impl Room {
    /// The most items that can be counted.
    pub(super) const MAX_ITEMS: usize = u32::MAX as usize;
    /// The most keys that can be counted.
    pub(super) const MAX_KEYS: usize = (u32::MAX >> 1) as usize;

    pub(super) fn new(items: usize, keys: usize) -> Self {
        let limit = Places { items: items.min(Self::MAX_ITEMS) as u32, keys: keys.min(Self::MAX_KEYS) as u32 };
        Self { word: AtomicU64::new(0), pressed: AtomicBool::new(false), limit }
    }

    // ORDERING, for all: what a place stands for is under a shard's lock, which orders it. The mark is in the same word as the
    // numbers, and so in one order with them for everybody. AcqRel is for whoever reasons from "there is room" to "it is
    // done", as a test does.

    fn fits_in(&self, word: u64, want: Places) -> bool {
        let used = Places::of_word(word);
        (want.items == 0 || used.items < self.limit.items) && (want.keys == 0 || used.keys < self.limit.keys)
    }

    /// Whether there is an item's or key's place now, or both.
    pub(super) fn fits(&self, want: Places) -> bool {
        self.fits_in(self.word.load(Ordering::Acquire), want)
    }

    /// Takes one item's or key's place, or both, if there are.
    pub(super) fn take(&self, want: Places) -> bool {
        let taken = self.word.fetch_update(Ordering::AcqRel, Ordering::Acquire, |word| {
            self.fits_in(word, want).then(|| word + want.word())
        });
        taken.is_ok()
    }

    /// The same; if there are none, says so to whoever gives some back from now on. Under the hub's lock.
    pub(super) fn take_or_want(&self, want: Places) -> bool {
        let fits = |word| self.fits_in(word, want);
        let before = self.word.fetch_update(Ordering::AcqRel, Ordering::Acquire, |word| {
            Some(if fits(word) { word + want.word() } else { word | WANTED })
        });
        before.is_ok_and(fits)
    }

    /// Gives places back; true if somebody may wait for them.
    pub(super) fn give(&self, places: Places) -> bool {
        self.word.fetch_sub(places.word(), Ordering::AcqRel) & WANTED != 0
    }

    /// Nobody is in line any more. Under the hub's lock.
    pub(super) fn unwant(&self) {
        self.word.fetch_and(!WANTED, Ordering::AcqRel);
    }

    /// Whether somebody may wait.
    pub(super) fn is_wanted(&self) -> bool {
        self.word.load(Ordering::Acquire) & WANTED != 0
    }

    /// What is taken.
    pub(super) fn used(&self) -> Places {
        Places::of_word(self.word.load(Ordering::Acquire))
    }

    /// What is free.
    pub(super) fn free(&self) -> Places {
        let used = self.used();
        Places { items: self.limit.items.saturating_sub(used.items), keys: self.limit.keys.saturating_sub(used.keys) }
    }

    /// Whether an item of a new key would find no place.
    pub(super) fn is_full(&self) -> bool {
        let free = self.free();
        free.items == 0 || free.keys == 0
    }

    /// Whether somebody waits and there is nothing for him.
    pub(super) fn is_short(&self) -> bool {
        self.is_wanted() && self.is_full()
    }

    /// Puts the pressure on; true if it was not. Then the caller wakes a worker.
    pub(super) fn press(&self) -> bool {
        // A look first: under load it is on all the time.
        !self.pressed.load(Ordering::SeqCst) && !self.pressed.swap(true, Ordering::SeqCst)
    }

    /// Takes the pressure off; true if it was on. Under the hub's lock.
    pub(super) fn relieve(&self) -> bool {
        self.pressed.load(Ordering::SeqCst) && self.pressed.swap(false, Ordering::SeqCst)
    }
}
