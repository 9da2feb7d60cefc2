//! Values in the table itself, or behind a pointer: which of the two is known when the program is compiled.

use std::hash::{BuildHasher, Hash};
use std::sync::Arc;

use fullbore_metrics::Counter;
use hashbrown::DefaultHashBuilder;

use super::sharded::Sharded;
use super::{Held, Look, Quick};
use crate::entry::{Entry, Kept};
use crate::world::{Age, World};

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
    pub(crate) fn new(
        capacity: u64,
        weighed: bool,
        world: Arc<World>,
        hits: Arc<Counter>,
        evicted: Arc<Counter>,
    ) -> Self {
        let two = if Held::<V>::INLINE {
            Two::Inline(Sharded::new(capacity, weighed, world, hits, evicted))
        } else {
            Two::Shared(Sharded::new(capacity, weighed, world, hits, evicted))
        };
        Self { hasher: DefaultHashBuilder::default(), two }
    }

    #[inline]
    pub(crate) fn hash(&self, key: &K) -> u64 {
        self.hasher.hash_one(key)
    }

    /// Counts as a use if it is fresh.
    #[inline]
    pub(crate) fn quick(&self, hash: u64, key: &K) -> Quick<Held<V>> {
        match &self.two {
            Two::Inline(store) => store.quick(hash, key).map(Held::Inline),
            Two::Shared(store) => store.quick(hash, key).map(Held::Shared),
        }
    }

    /// Counts as a use.
    pub(crate) fn get(&self, hash: u64, key: &K) -> Look<Held<V>> {
        match &self.two {
            Two::Inline(store) => store.get(hash, key).map(Held::Inline),
            Two::Shared(store) => store.get(hash, key).map(Held::Shared),
        }
    }

    /// A look that the policy does not count as a use, also at what is dead.
    pub(crate) fn peek(&self, hash: u64, key: &K) -> Option<(Held<V>, Kept, Age)> {
        match &self.two {
            Two::Inline(store) => store.peek(hash, key).map(|(value, kept, age)| (Held::Inline(value), kept, age)),
            Two::Shared(store) => store.peek(hash, key).map(|(entry, kept, age)| (Held::Shared(entry), kept, age)),
        }
    }

    /// Keeps the entry, if it is worth a place. What is heavier than the whole cache is not; the entry that it would have replaced
    /// goes all the same.
    pub(crate) fn insert(&self, hash: u64, key: K, held: Held<V>, kept: Kept) {
        let hasher = |key: &K| self.hash(key);
        match (&self.two, held) {
            (Two::Inline(store), Held::Inline(value)) => store.insert(hash, key, value, kept, hasher),
            (Two::Shared(store), Held::Shared(entry)) => store.insert(hash, key, entry, kept, hasher),
            // Both are chosen by `Held::INLINE`.
            (Two::Inline(_), Held::Shared(_)) | (Two::Shared(_), Held::Inline(_)) => {}
        }
    }

    pub(crate) fn remove(&self, hash: u64, key: &K) -> Look<Held<V>> {
        match &self.two {
            Two::Inline(store) => store.remove(hash, key).map(Held::Inline),
            Two::Shared(store) => store.remove(hash, key).map(Held::Shared),
        }
    }

    /// Gives back the memory of what was cleared.
    pub(crate) fn clear(&self) {
        match &self.two {
            Two::Inline(store) => store.clear(),
            Two::Shared(store) => store.clear(),
        }
    }

    /// Changes how much there may be, and displaces what is too much.
    pub(crate) fn resize(&self, capacity: u64) {
        let hasher = |key: &K| self.hash(key);
        match &self.two {
            Two::Inline(store) => store.resize(capacity, hasher),
            Two::Shared(store) => store.resize(capacity, hasher),
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
