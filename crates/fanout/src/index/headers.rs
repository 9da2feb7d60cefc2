//! Rules about headers, filed under the headers that they name.

use std::hash::BuildHasher;

use hashbrown::{DefaultHashBuilder, HashTable};

use super::{Found, Given, Slots};
use crate::rule::Headers;

type Pair = (Box<str>, Box<str>);

/// A rule for "any" is filed under each of its headers, one for "all" under the one that the fewest are filed under: it need
/// only be looked at where that one is.
pub(crate) struct ByHeader<T> {
    table: HashTable<(Pair, Slots<Filed<T>>)>,
    /// Those that ask for one of no headers.
    never: Slots<T>,
    len: usize,
}

#[derive(Clone)]
struct Filed<T> {
    /// The rule's other headers: for "all" those that have to be there, too; for "any" those before the one that it is filed
    /// under, none of which may be there (then it is found there).
    others: Box<[Pair]>,
    any: bool,
    to: T,
}

impl<T: Clone> ByHeader<T> {
    pub(crate) fn new() -> Self {
        Self { table: HashTable::new(), never: Slots::new(), len: 0 }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn insert(&mut self, hasher: &DefaultHashBuilder, headers: &Headers, id: u64, to: T) {
        self.len += 1;
        let pairs = &headers.pairs;
        if pairs.is_empty() {
            return self.never.insert(id, to);
        }
        if headers.any {
            for (n, pair) in pairs.iter().enumerate() {
                self.file(hasher, pair, id, Filed { others: pairs[..n].into(), any: true, to: to.clone() });
            }
            return;
        }
        let load = |pair: &&Pair| self.slots(hasher, pair).map_or(0, |slots| slots.0.len());
        let Some(least) = pairs.iter().min_by_key(load) else { return };
        let others = pairs.iter().filter(|pair| *pair != least).cloned().collect();
        self.file(hasher, least, id, Filed { others, any: false, to });
    }

    fn slots(&self, hasher: &DefaultHashBuilder, pair: &Pair) -> Option<&Slots<Filed<T>>> {
        self.table.find(hash(hasher, &pair.0, &pair.1), |(it, _)| it == pair).map(|(_, slots)| slots)
    }

    fn file(&mut self, hasher: &DefaultHashBuilder, pair: &Pair, id: u64, filed: Filed<T>) {
        let of = |(pair, _): &(Pair, _)| hash(hasher, &pair.0, &pair.1);
        let entry = self.table.entry(hash(hasher, &pair.0, &pair.1), |(it, _)| it == pair, of);
        entry.or_insert_with(|| (pair.clone(), Slots::new())).into_mut().1.insert(id, filed);
    }

    /// Where an "all" was filed is not written down, so all its places are looked at.
    pub(crate) fn remove(&mut self, hasher: &DefaultHashBuilder, headers: &Headers, id: u64) -> Option<T> {
        let mut removed = self.never.remove(id);
        for pair in &headers.pairs {
            let there = self.table.find_entry(hash(hasher, &pair.0, &pair.1), |(it, _)| it == pair);
            let Ok(mut there) = there else { continue };
            if let Some(filed) = there.get_mut().1.remove(id) {
                removed = Some(filed.to);
            }
            if there.get().1.is_empty() {
                there.remove();
            }
        }
        self.len -= usize::from(removed.is_some());
        removed
    }

    pub(crate) fn find(&self, hasher: &DefaultHashBuilder, given: &Given<'_>, found: &mut Found<T>) {
        if self.len == 0 {
            return;
        }
        let has = |(key, value): &Pair| given.iter().any(|(k, v)| **k == **key && **v == **value);
        for (key, value) in given {
            let is_it = |(pair, _): &(Pair, _)| *pair.0 == **key && *pair.1 == **value;
            let Some((_, slots)) = self.table.find(hash(hasher, key, value), is_it) else { continue };
            for (id, filed) in slots.iter() {
                let matches = if filed.any { !filed.others.iter().any(has) } else { filed.others.iter().all(has) };
                if matches {
                    found.push((*id, filed.to.clone()));
                }
            }
        }
    }
}

fn hash(hasher: &DefaultHashBuilder, key: &str, value: &str) -> u64 {
    hasher.hash_one((key, value))
}
