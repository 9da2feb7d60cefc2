//! Which rules a message matches, found without looking at those that it cannot.
//!
//! A topic is looked up once as a whole (direct rules, and patterns without wildcards), and segment by segment in a trie of
//! the patterns with wildcards. Headers are looked up one by one. What is left are predicates, which the caller asks.

mod headers;
mod trie;

use std::hash::BuildHasher;
use std::sync::Arc;

use hashbrown::{DefaultHashBuilder, HashTable};
use smallvec::SmallVec;

use self::headers::ByHeader;
use self::trie::Trie;
use crate::rule::{Rule, What};

/// The rules that a message matches, sorted by number, each once. Most messages match few.
pub(crate) type Found<T> = SmallVec<[(u64, T); 8]>;

/// The headers of a message.
pub(crate) type Given<'m> = SmallVec<[(&'m str, &'m str); 16]>;

/// The rules of one place, in the order of their numbers.
pub(crate) struct Slots<T>(Vec<(u64, T)>);

/// Rules, each with a number and what stands behind it.
pub(crate) struct Index<T> {
    hasher: DefaultHashBuilder,
    len: usize,
    all: Slots<T>,
    direct: HashTable<(Arc<str>, Slots<T>)>,
    topics: Trie<T>,
    headers: ByHeader<T>,
    /// Copied only where somebody is still asking the old ones.
    predicates: Arc<Slots<T>>,
}

impl<T> Slots<T> {
    const fn new() -> Self {
        Self(Vec::new())
    }

    fn insert(&mut self, id: u64, to: T) {
        // Nearly always at the end.
        let at = self.0.partition_point(|(other, _)| *other < id);
        self.0.insert(at, (id, to));
    }

    fn remove(&mut self, id: u64) -> Option<T> {
        let at = self.0.binary_search_by_key(&id, |(id, _)| *id).ok()?;
        let (_, to) = self.0.remove(at);
        if self.0.len() < self.0.capacity() / 4 {
            self.0.shrink_to(2 * self.0.len());
        }
        Some(to)
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &(u64, T)> {
        self.0.iter()
    }
}

impl<T: Clone> Clone for Slots<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T: Clone> Slots<T> {
    fn give(&self, found: &mut Found<T>) {
        found.extend(self.0.iter().cloned());
    }
}

impl<T: Clone> Index<T> {
    pub(crate) fn new() -> Self {
        Self {
            hasher: DefaultHashBuilder::default(),
            len: 0,
            all: Slots::new(),
            direct: HashTable::new(),
            topics: Trie::new(),
            headers: ByHeader::new(),
            predicates: Arc::new(Slots::new()),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// How many rules are about headers.
    pub(crate) fn header_rules(&self) -> usize {
        self.headers.len()
    }

    /// The rules that only the message itself can answer.
    pub(crate) fn predicates(&self) -> Option<Arc<Slots<T>>> {
        (!self.predicates.is_empty()).then(|| Arc::clone(&self.predicates))
    }

    /// Costs what the rule's own place costs: its segments, or, among rules that are the same, a shift of those behind it.
    pub(crate) fn insert<M>(&mut self, id: u64, rule: &Rule<M>, to: T) {
        let hasher = &self.hasher;
        match &rule.what {
            What::All => self.all.insert(id, to),
            What::Direct(topic) => {
                let hash = hasher.hash_one(&**topic);
                let entry =
                    self.direct.entry(hash, |(there, _)| there == topic, |(there, _)| hasher.hash_one(&**there));
                entry.or_insert_with(|| (Arc::clone(topic), Slots::new())).into_mut().1.insert(id, to);
            }
            What::Topic(pattern) => self.topics.insert(hasher, pattern.segments(), id, to),
            What::Headers(headers) => self.headers.insert(hasher, headers, id, to),
            What::When(_) => Arc::make_mut(&mut self.predicates).insert(id, to),
        }
        self.len += 1;
    }

    pub(crate) fn remove<M>(&mut self, id: u64, rule: &Rule<M>) -> Option<T> {
        let hasher = &self.hasher;
        let removed = match &rule.what {
            What::All => self.all.remove(id),
            What::Direct(topic) => {
                let mut there = self.direct.find_entry(hasher.hash_one(&**topic), |(it, _)| it == topic).ok()?;
                let removed = there.get_mut().1.remove(id);
                if there.get().1.is_empty() {
                    there.remove();
                }
                removed
            }
            What::Topic(pattern) => self.topics.remove(hasher, pattern.segments(), id),
            What::Headers(headers) => self.headers.remove(hasher, headers, id),
            What::When(_) => {
                // To know whether it is there must not cost a copy.
                self.predicates.0.binary_search_by_key(&id, |(id, _)| *id).ok()?;
                Arc::make_mut(&mut self.predicates).remove(id)
            }
        };
        self.len -= usize::from(removed.is_some());
        removed
    }

    /// Everything but the predicates' answers.
    pub(crate) fn find(&self, topic: &str, headers: &Given<'_>) -> Found<T> {
        let mut found = Found::new();
        self.all.give(&mut found);
        if !self.direct.is_empty()
            && let Some((_, slots)) = self.direct.find(self.hasher.hash_one(topic), |(there, _)| **there == *topic)
        {
            slots.give(&mut found);
        }
        if !self.topics.is_empty() {
            self.topics.find(&self.hasher, topic, &mut found);
        }
        if !headers.is_empty() {
            self.headers.find(&self.hasher, headers, &mut found);
        }
        settle(&mut found);
        found
    }
}

/// In the order of the numbers, each once.
pub(crate) fn settle<T>(found: &mut Found<T>) {
    if found.len() > 1 && !found.is_sorted_by(|(a, _), (b, _)| a < b) {
        found.sort_unstable_by_key(|(id, _)| *id);
        found.dedup_by_key(|(id, _)| *id);
    }
}
