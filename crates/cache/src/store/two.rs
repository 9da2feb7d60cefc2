//! Values in the table itself, or behind a pointer: which of the two is known when the program is compiled.

use std::hash::{BuildHasher, Hash};
use std::sync::Arc;

use fullbore_core::Clock;
use fullbore_metrics::Counter;
use hashbrown::DefaultHashBuilder;

use super::sharded::Sharded;
use super::{Held, Look};
use crate::entry::{Entry, Kept};

/// Where the entries are.
pub(crate) struct Store<K, V> {
    hasher: DefaultHashBuilder,
    two: Two<K, V>,
}

enum Two<K, V> {
    Inline(Sharded<K, V>),
    Shared(Sharded<K, Arc<Entry<V>>>),
}

impl<K, V> Store<K, V>
where
    K: Hash + Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    pub(crate) fn new(capacity: u64, clock: Clock, hits: Arc<Counter>) -> Self {
        let two = if Held::<V>::INLINE {
            Two::Inline(Sharded::new(capacity, clock, hits))
        } else {
            Two::Shared(Sharded::new(capacity, clock, hits))
        };
        Self { hasher: DefaultHashBuilder::default(), two }
    }

    #[inline]
    pub(crate) fn hash(&self, key: &K) -> u64 {
        self.hasher.hash_one(key)
    }

    /// Counts as a use.
    #[inline]
    pub(crate) fn get(&self, hash: u64, key: &K, generation: u32) -> Look<Held<V>> {
        match &self.two {
            Two::Inline(store) => store.get(hash, key, generation).map(Held::Inline),
            Two::Shared(store) => store.get(hash, key, generation).map(Held::Shared),
        }
    }

    /// A look that the policy does not count as a use.
    pub(crate) fn peek(&self, hash: u64, key: &K, generation: u32) -> Look<(Held<V>, Kept)> {
        match &self.two {
            Two::Inline(store) => store.peek(hash, key, generation).map(|(value, kept)| (Held::Inline(value), kept)),
            Two::Shared(store) => store.peek(hash, key, generation).map(|(entry, kept)| (Held::Shared(entry), kept)),
        }
    }

    /// Keeps the entry, if it is worth a place. What is heavier than the whole cache is not; the entry that it would have replaced
    /// goes all the same. `generation` is that of the cache.
    pub(crate) fn insert(&self, hash: u64, key: K, held: Held<V>, kept: Kept, generation: u32) {
        let hasher = |key: &K| self.hash(key);
        match (&self.two, held) {
            (Two::Inline(store), Held::Inline(value)) => store.insert(hash, key, value, kept, generation, hasher),
            (Two::Shared(store), Held::Shared(entry)) => store.insert(hash, key, entry, kept, generation, hasher),
            // Both are chosen by `Held::INLINE`.
            (Two::Inline(_), Held::Shared(_)) | (Two::Shared(_), Held::Inline(_)) => {}
        }
    }

    pub(crate) fn remove(&self, hash: u64, key: &K, generation: u32) -> Look<Held<V>> {
        match &self.two {
            Two::Inline(store) => store.remove(hash, key, generation).map(Held::Inline),
            Two::Shared(store) => store.remove(hash, key, generation).map(Held::Shared),
        }
    }

    /// Gives back the memory of what is of another generation.
    pub(crate) fn clear(&self, generation: u32) {
        match &self.two {
            Two::Inline(store) => store.clear(generation),
            Two::Shared(store) => store.clear(generation),
        }
    }

    /// Changes how much there may be, and displaces what is too much.
    pub(crate) fn resize(&self, capacity: u64, generation: u32) {
        let hasher = |key: &K| self.hash(key);
        match &self.two {
            Two::Inline(store) => store.resize(capacity, generation, hasher),
            Two::Shared(store) => store.resize(capacity, generation, hasher),
        }
    }

    pub(crate) fn count(&self) -> u64 {
        match &self.two {
            Two::Inline(store) => store.count(),
            Two::Shared(store) => store.count(),
        }
    }

    pub(crate) fn weight(&self) -> u64 {
        match &self.two {
            Two::Inline(store) => store.weight(),
            Two::Shared(store) => store.weight(),
        }
    }
}
