//! Where entries live: shards of a hash table with a policy of what is worth its place, or a plain map for the model checker.
//!
//! Every call can be made under a lock of the flights': no code of the user runs in it but `Hash`, `Eq`, `Clone` and `Drop` of keys,
//! and `Clone` of values that need no destructor, because weights were computed before and an [`Entry`] only lays its value aside
//! when it is dropped.

use std::mem;
use std::sync::Arc;

use crate::entry::{Entry, Grave, Kept};
use crate::world::Age;

#[cfg(not(fullbore_loom))]
mod shard;
#[cfg(not(fullbore_loom))]
mod sharded;
#[cfg(not(fullbore_loom))]
mod sketch;

#[cfg(not(fullbore_loom))]
mod two;

#[cfg(not(fullbore_loom))]
pub(crate) use two::Store;

/// A value on its way into the store or out of it.
#[derive(Clone)]
pub(crate) enum Held<V> {
    /// It lies in the table itself: one line of memory less on the way to it.
    Inline(V),
    /// Values with a destructor, and large ones.
    Shared(Arc<Entry<V>>),
}

impl<V> Held<V> {
    /// Larger ones would make the table too sparse.
    pub(crate) const INLINE: bool = !mem::needs_drop::<V>() && mem::size_of::<V>() <= 64;

    /// To be called under no lock.
    pub(crate) fn new(value: V, grave: &Arc<Grave<V>>) -> Self {
        if Self::INLINE { Held::Inline(value) } else { Held::Shared(Entry::new(value, grave)) }
    }

    /// The same of a value that others share. To be called under no lock.
    pub(crate) fn of(entry: &Arc<Entry<V>>) -> Self
    where
        V: Clone,
    {
        if Self::INLINE { Held::Inline(entry.value().clone()) } else { Held::Shared(Arc::clone(entry)) }
    }

    /// As something that others can share. To be called under no lock.
    pub(crate) fn into_entry(self, grave: &Arc<Grave<V>>) -> Arc<Entry<V>> {
        match self {
            Held::Inline(value) => Entry::new(value, grave),
            Held::Shared(entry) => entry,
        }
    }

    pub(crate) fn value(&self) -> &V {
        match self {
            Held::Inline(value) => value,
            Held::Shared(entry) => entry.value(),
        }
    }

    /// The value itself, to be cloned under no lock if it has to be.
    #[inline]
    pub(crate) fn into_value(self) -> V
    where
        V: Clone,
    {
        match self {
            Held::Inline(value) => value,
            Held::Shared(entry) => entry.value().clone(),
        }
    }
}

/// What a quick look for a key finds. Small, and without a destructor of its own: most looks end here.
pub(crate) enum Quick<T> {
    Fresh(T),
    /// It takes a longer look ([`Look`]).
    Unclear,
    Nothing,
}

impl<T> Quick<T> {
    fn map<U>(self, f: impl FnOnce(T) -> U) -> Quick<U> {
        match self {
            Quick::Fresh(found) => Quick::Fresh(f(found)),
            Quick::Unclear => Quick::Unclear,
            Quick::Nothing => Quick::Nothing,
        }
    }
}

/// What a look for a key finds.
pub(crate) enum Look<T> {
    Live(T),
    /// It is there, and not plainly fresh.
    Aged(T, Kept, Age),
    /// It may not be returned any more.
    Dead,
    Nothing,
}

impl<T> Look<T> {
    fn map<U>(self, f: impl FnOnce(T) -> U) -> Look<U> {
        match self {
            Look::Live(found) => Look::Live(f(found)),
            Look::Aged(found, kept, age) => Look::Aged(f(found), kept, age),
            Look::Dead => Look::Dead,
            Look::Nothing => Look::Nothing,
        }
    }
}

#[cfg(fullbore_loom)]
mod plain {
    use std::collections::HashMap;
    use std::hash::Hash;
    use std::sync::Arc;

    use fullbore_core::{Clock, Monitor};
    use fullbore_metrics::Counter;

    use super::{Held, Look, Quick};
    use crate::entry::Kept;
    use crate::world::{Age, World};

    /// Never displaces anything.
    pub(crate) struct Store<K, V> {
        map: Monitor<HashMap<K, (Held<V>, Kept)>>,
        capacity: u64,
        world: Arc<World>,
    }

    impl<K: Hash + Eq, V: Clone> Store<K, V> {
        pub(crate) fn new(capacity: u64, _: bool, world: Arc<World>, _: Arc<Counter>, _: Arc<Counter>) -> Self {
            Self { map: Monitor::new(HashMap::default(), Clock::Real), capacity, world }
        }
        pub(crate) fn hash(&self, _: &K) -> u64 {
            0
        }
        pub(crate) fn quick(&self, _: u64, _: &K) -> Quick<Held<V>> {
            Quick::Unclear
        }
        pub(crate) fn get(&self, hash: u64, key: &K) -> Look<Held<V>> {
            match self.peek(hash, key) {
                None => Look::Nothing,
                Some((_, _, Age::Dead)) => Look::Dead,
                Some((held, _, Age::Fresh)) => Look::Live(held),
                Some((held, kept, age)) => Look::Aged(held, kept, age),
            }
        }
        pub(crate) fn peek(&self, _: u64, key: &K) -> Option<(Held<V>, Kept, Age)> {
            let map = self.map.lock();
            let (held, kept) = map.get(key)?;
            Some((held.clone(), kept.clone(), self.world.age_of(kept)))
        }
        pub(crate) fn insert(&self, _: u64, key: K, held: Held<V>, kept: Kept) {
            if u64::from(kept.weight) <= self.capacity {
                self.map.lock().insert(key, (held, kept));
            }
        }
        pub(crate) fn remove(&self, _: u64, key: &K) -> Look<Held<V>> {
            match self.map.lock().remove(key) {
                None => Look::Nothing,
                Some((_, kept)) if !matches!(self.world.age_of(&kept), Age::Fresh | Age::Early) => Look::Dead,
                Some((held, _)) => Look::Live(held),
            }
        }
        /// Leaves everything where it is: what was cleared is dead anyway.
        pub(crate) fn clear(&self) {}
        pub(crate) fn resize(&self, _: u64) {}
        pub(crate) fn count(&self) -> u64 {
            self.map.lock().len() as u64
        }
        pub(crate) fn weight(&self) -> u64 {
            self.map.lock().values().map(|(_, kept)| u64::from(kept.weight)).sum()
        }
    }
}

#[cfg(fullbore_loom)]
pub(crate) use plain::Store;
