//! Where entries live: `moka`, or a plain map for the model checker.
//!
//! Every call can be made under a lock of ours: no code of the user runs in it but `Hash`, `Eq`, `Clone` and `Drop` of keys,
//! because weights were computed before and an [`Entry`] only lays its value aside when it is dropped.

use std::hash::Hash;
use std::sync::Arc;

use crate::entry::Entry;

#[cfg(not(fullbore_loom))]
pub(crate) struct Store<K, V> {
    /// `None`: nothing is kept.
    moka: Option<moka::sync::Cache<K, Arc<Entry<V>>>>,
    capacity: u64,
}

#[cfg(not(fullbore_loom))]
impl<K, V> Store<K, V>
where
    K: Hash + Eq + Send + Sync + 'static,
    V: Send + Sync + 'static,
{
    pub(crate) fn new(capacity: u64) -> Self {
        // `moka` shows an entry until its next maintenance even with no capacity at all, so then there is none of it.
        let moka = (capacity > 0).then(|| {
            moka::sync::Cache::builder()
                .max_capacity(capacity)
                .weigher(|_, entry: &Arc<Entry<V>>| entry.kept.weight)
                .build()
        });
        Self { moka, capacity }
    }

    pub(crate) fn get(&self, key: &K) -> Option<Arc<Entry<V>>> {
        self.moka.as_ref()?.get(key)
    }

    /// A look that the policy does not count as a use.
    pub(crate) fn contains(&self, key: &K) -> bool {
        self.moka.as_ref().is_some_and(|moka| moka.contains_key(key))
    }

    /// What is heavier than the whole cache is not kept; the entry that it would have replaced goes all the same.
    pub(crate) fn insert(&self, key: K, entry: Arc<Entry<V>>) {
        if u64::from(entry.kept.weight) > self.capacity {
            self.remove(&key);
        } else if let Some(moka) = &self.moka {
            moka.insert(key, entry);
        }
    }

    pub(crate) fn remove(&self, key: &K) -> Option<Arc<Entry<V>>> {
        self.moka.as_ref()?.remove(key)
    }

    pub(crate) fn clear(&self) {
        if let Some(moka) = &self.moka {
            moka.invalidate_all();
        }
    }

    pub(crate) fn count(&self) -> u64 {
        self.moka.as_ref().map_or(0, |moka| {
            moka.run_pending_tasks();
            moka.entry_count()
        })
    }
}

#[cfg(fullbore_loom)]
pub(crate) struct Store<K, V> {
    map: fullbore_core::Monitor<std::collections::HashMap<K, Arc<Entry<V>>>>,
    capacity: u64,
}

#[cfg(fullbore_loom)]
impl<K: Hash + Eq, V> Store<K, V> {
    pub(crate) fn new(capacity: u64) -> Self {
        Self { map: fullbore_core::Monitor::new(Default::default(), fullbore_core::Clock::Real), capacity }
    }
    pub(crate) fn get(&self, key: &K) -> Option<Arc<Entry<V>>> {
        self.map.lock().get(key).cloned()
    }
    pub(crate) fn contains(&self, key: &K) -> bool {
        self.map.lock().contains_key(key)
    }
    /// Never displaces anything.
    pub(crate) fn insert(&self, key: K, entry: Arc<Entry<V>>) {
        if u64::from(entry.kept.weight) <= self.capacity {
            self.map.lock().insert(key, entry);
        }
    }
    pub(crate) fn remove(&self, key: &K) -> Option<Arc<Entry<V>>> {
        self.map.lock().remove(key)
    }
    /// Leaves everything where it is: `moka` forgets lazily too, and by a clock that can miss an entry of the same tick.
    pub(crate) fn clear(&self) {}
    pub(crate) fn count(&self) -> u64 {
        self.map.lock().len() as u64
    }
}
