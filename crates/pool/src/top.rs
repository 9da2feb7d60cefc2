//! The keys that are used most.

use std::sync::{Mutex, PoisonError};

use crate::manager::Key;

/// How often a key was checked out, by estimate: each checkout that waited is counted, and of the others one in 64 is looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct KeyUse<K> {
    /// Whose.
    pub key: K,
    /// About how many. The true number is lower by at most `error`, beside what comes of looking at one in 64.
    pub checkouts: u64,
    /// By how much `checkouts` can be too high.
    pub error: u64,
}

/// So many are told of, and four times as many kept, so that those are the right ones.
const TOLD: usize = 16;
const KEPT: usize = 4 * TOLD;
/// What one checkout stands for that is looked at by chance.
pub(crate) const SAMPLED: u64 = 64;

/// The counters of the Space-Saving algorithm (Metwally, Agrawal, El Abbadi, 2005): a new key takes the place of the rarest one and
/// its count, so that a frequent one is never missed.
pub(crate) struct Top<K>(Vec<KeyUse<K>>);

impl<K: Key> Top<K> {
    pub(crate) fn new() -> Self {
        Self(Vec::new())
    }

    /// So many checkouts were of this key. `Eq` and `Clone` of keys run under the lock.
    pub(crate) fn note(top: &Mutex<Self>, key: &K, checkouts: u64) {
        let replaced = {
            let mut top = top.lock().unwrap_or_else(PoisonError::into_inner);
            top.count(key, checkouts)
        };
        drop(replaced);
    }

    fn count(&mut self, key: &K, checkouts: u64) -> Option<K> {
        if let Some(known) = self.0.iter_mut().find(|known| known.key == *key) {
            known.checkouts += checkouts;
            return None;
        }
        if self.0.len() < KEPT {
            self.0.push(KeyUse { key: key.clone(), checkouts, error: 0 });
            return None;
        }
        let rarest = self.0.iter_mut().min_by_key(|known| known.checkouts)?;
        rarest.error = rarest.checkouts;
        rarest.checkouts += checkouts;
        Some(std::mem::replace(&mut rarest.key, key.clone()))
    }

    /// The most used first.
    pub(crate) fn told(top: &Mutex<Self>) -> Vec<KeyUse<K>> {
        let mut told = top.lock().unwrap_or_else(PoisonError::into_inner).0.clone();
        told.sort_by_key(|known| std::cmp::Reverse(known.checkouts));
        told.truncate(TOLD);
        told
    }
}

#[cfg(all(test, not(fullbore_loom)))]
mod tests {
    use std::sync::Mutex;

    use super::Top;

    #[test]
    fn the_most_frequent_are_found_among_many() {
        let top = Mutex::new(Top::new());
        for n in 0..20_000_u64 {
            // Every other one is one of 16, the rest never come again.
            Top::note(&top, &if n % 2 == 0 { n / 2 % 16 } else { 1000 + n }, 64);
        }
        let told = Top::told(&top);
        let mut keys: Vec<u64> = told.iter().map(|known| known.key).collect();
        keys.sort_unstable();
        assert_eq!(keys, (0..16).collect::<Vec<_>>());
        assert!(told.iter().all(|known| known.checkouts - known.error <= 625 * 64 && known.checkouts >= 625 * 64));
    }
}
