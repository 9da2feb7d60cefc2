//! One pair for each key, in the order in which the keys came.

use std::collections::VecDeque;
use std::hash::{BuildHasher, Hash};

use fullbore_core::{Failure, contain};
use hashbrown::{DefaultHashBuilder, HashTable};

/// The pairs that wait. Everything but [`fold`](Self::fold) is free of user code: hashes are stored.
pub(super) struct Pending<K, V> {
    /// Sequence number of the oldest pair.
    first: u64,
    entries: VecDeque<Entry<K, V>>,
    /// The sequence number of each entry, by its key's hash.
    index: HashTable<u64>,
    hasher: DefaultHashBuilder,
}

struct Entry<K, V> {
    hash: u64,
    pair: (K, V),
    /// How many batches with it have failed.
    tries: u32,
}

/// Pairs taken out, with the number of failed tries of each; none at all if no pair has any.
pub(super) struct Taken<K, V> {
    pub(super) pairs: Vec<(K, V)>,
    pub(super) tries: Vec<u32>,
}

/// What came of a portion.
pub(super) struct Folded<K, V> {
    /// How many updates were merged into a pair that was there.
    pub(super) merged: usize,
    pub(super) casualties: Vec<Casualty<K, V>>,
}

/// A pair that left because user code panicked over it.
pub(super) struct Casualty<K, V> {
    pub(super) pair: (K, V),
    /// It, and the update that was to be merged into it.
    pub(super) updates: usize,
    pub(super) failure: Failure,
}

/// What a fold is at, in case of a panic.
enum At {
    /// With the first update of the portion still in it.
    Looking,
    /// The update was moved into `merge`, together with this pair.
    Merging(usize),
    /// The merged update's key is being dropped.
    Merged,
}

impl<K, V> Pending<K, V> {
    pub(super) fn new() -> Self {
        Self { first: 0, entries: VecDeque::new(), index: HashTable::new(), hasher: DefaultHashBuilder::default() }
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) const fn first(&self) -> u64 {
        self.first
    }

    /// The number that the next new pair gets.
    pub(super) fn next(&self) -> u64 {
        self.first + self.entries.len() as u64
    }

    /// Takes the `n` oldest out.
    pub(super) fn take(&mut self, n: usize) -> Taken<K, V> {
        let n = n.min(self.entries.len());
        let all = n == self.entries.len();
        if all {
            self.index.clear();
        }
        let tried = self.entries.iter().take(n).any(|entry| entry.tries > 0);
        let mut taken = Taken { pairs: Vec::with_capacity(n), tries: Vec::with_capacity(if tried { n } else { 0 }) };
        for (entry, number) in self.entries.drain(..n).zip(self.first..) {
            if !all && let Ok(found) = self.index.find_entry(entry.hash, |other| *other == number) {
                found.remove();
            }
            taken.pairs.push(entry.pair);
            if tried {
                taken.tries.push(entry.tries);
            }
        }
        self.first += n as u64;
        taken
    }

    pub(super) fn take_oldest(&mut self) -> Option<(K, V)> {
        let entry = self.entries.pop_front()?;
        if let Ok(found) = self.index.find_entry(entry.hash, |number| *number == self.first) {
            found.remove();
        }
        self.first += 1;
        Some(entry.pair)
    }

    /// Takes one out of the middle. The last one takes its place, and its number.
    fn take_out(&mut self, at: usize) -> Option<(K, V)> {
        let (number, last) = (self.first + at as u64, self.next() - 1);
        let entry = self.entries.swap_remove_back(at)?;
        if let Ok(found) = self.index.find_entry(entry.hash, |other| *other == number) {
            found.remove();
        }
        if let Some(moved) = self.entries.get(at)
            && let Some(its) = self.index.find_mut(moved.hash, |other| *other == last)
        {
            *its = number;
        }
        Some(entry.pair)
    }

    fn push(&mut self, hash: u64, pair: (K, V), tries: u32) {
        let number = self.next();
        self.entries.push_back(Entry { hash, pair, tries });
        let Self { first, entries, index, .. } = self;
        index.insert_unique(hash, number, |number| entries[(number - *first) as usize].hash);
    }
}

impl<K: Hash + Eq, V> Pending<K, V> {
    /// Merges the updates in, in order; none is left. Where user code panics, what it was about is a casualty and the rest goes on.
    ///
    /// With `known` only updates of keys that are there: the first other one, and all behind it, are left.
    pub(super) fn fold(
        &mut self,
        updates: &mut VecDeque<(K, V)>,
        known: bool,
        merge: &impl Fn(&mut V, V),
    ) -> Folded<K, V> {
        let mut folded = Folded { merged: 0, casualties: Vec::new() };
        loop {
            let mut at = At::Looking;
            let run = contain(|| self.fold_until_panic(updates, known, merge, &mut at, &mut folded.merged));
            let Err(failure) = run else { return folded };
            let (pair, updates) = match at {
                At::Looking => (updates.pop_front(), 1),
                At::Merging(there) => (self.take_out(there), 2),
                At::Merged => continue,
            };
            folded.casualties.extend(pair.map(|pair| Casualty { pair, updates, failure }));
        }
    }

    fn fold_until_panic(
        &mut self,
        updates: &mut VecDeque<(K, V)>,
        known: bool,
        merge: &impl Fn(&mut V, V),
        at: &mut At,
        merged: &mut usize,
    ) {
        // The update stays where it is until nothing but `merge` can panic over it.
        while let Some((key, _)) = updates.front() {
            *at = At::Looking;
            let hash = self.hasher.hash_one(key);
            let Self { first, entries, index, .. } = self;
            let entry_of = |number: &u64| (*number - *first) as usize;
            let found = index.find(hash, |number| entries[entry_of(number)].pair.0 == *key).map(entry_of);
            if found.is_none() && known {
                return;
            }
            let Some((key, value)) = updates.pop_front() else { return };
            match found {
                None => self.push(hash, (key, value), 0),
                Some(there) => {
                    *at = At::Merging(there);
                    merge(&mut self.entries[there].pair.1, value);
                    *merged += 1;
                    *at = At::Merged;
                    drop(key);
                }
            }
        }
    }

    /// Puts pairs back that were taken out last, with number `first` on, in front of what has come since, which is merged into
    /// them.
    pub(super) fn restore(&mut self, first: u64, kept: Vec<((K, V), u32)>, merge: &impl Fn(&mut V, V)) -> Folded<K, V> {
        let mut since: VecDeque<(K, V)> = self.take(usize::MAX).pairs.into();
        self.first = first;
        let mut casualties = Vec::new();
        for (pair, tries) in kept {
            match contain(|| self.hasher.hash_one(&pair.0)) {
                Ok(hash) => self.push(hash, pair, tries),
                Err(failure) => casualties.push(Casualty { pair, updates: 1, failure }),
            }
        }
        let mut folded = self.fold(&mut since, false, merge);
        folded.casualties.append(&mut casualties);
        folded
    }
}

/// The user's merge function, with the types that it needs: called once for each portion, so that the calls for each update are
/// direct.
pub(super) trait Reduce<K, V>: Send + Sync {
    fn fold(&self, into: &mut Pending<K, V>, updates: &mut VecDeque<(K, V)>, known: bool) -> Folded<K, V>;
    fn restore(&self, into: &mut Pending<K, V>, first: u64, kept: Vec<((K, V), u32)>) -> Folded<K, V>;
}

pub(super) struct By<F>(pub(super) F);

impl<K: Hash + Eq, V, F: Fn(&mut V, V) + Send + Sync> Reduce<K, V> for By<F> {
    fn fold(&self, into: &mut Pending<K, V>, updates: &mut VecDeque<(K, V)>, known: bool) -> Folded<K, V> {
        into.fold(updates, known, &self.0)
    }
    fn restore(&self, into: &mut Pending<K, V>, first: u64, kept: Vec<((K, V), u32)>) -> Folded<K, V> {
        into.restore(first, kept, &self.0)
    }
}
