//! The leader's part of a flight: how it ends.

use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use fullbore_core::{Locked, Monitor, Serve};

use crate::entry::{Entry, Kept};
use crate::error::CacheError;
use crate::flight::{Flight, Shard, Table};
use crate::store::Held;

/// What a load ends with, for those who wait.
pub(crate) enum Landing<V> {
    Value(Arc<Entry<V>>),
    Failed(CacheError),
    /// Nothing for them: they are to look again.
    Again,
}

impl<V> Clone for Landing<V> {
    fn clone(&self) -> Self {
        match self {
            Landing::Value(entry) => Landing::Value(Arc::clone(entry)),
            Landing::Failed(error) => Landing::Failed(error.clone()),
            Landing::Again => Landing::Again,
        }
    }
}

/// The leader's duty to say how the load ended; dropping it says that it was cut short.
pub(crate) struct Claim<'a, K: Hash + Eq + Clone + Send + Sync + 'static, V: Clone + Send + Sync + 'static> {
    table: &'a Table<K, V>,
    monitor: &'a Monitor<Shard<K, V>>,
    key: &'a K,
    flight: Arc<Flight>,
    landed: bool,
}

impl<'a, K, V> Claim<'a, K, V>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// The flight must be counted among those that load.
    pub(crate) fn new(
        table: &'a Table<K, V>,
        monitor: &'a Monitor<Shard<K, V>>,
        key: &'a K,
        flight: Arc<Flight>,
    ) -> Self {
        Self { table, monitor, key, flight, landed: false }
    }

    pub(crate) fn key(&self) -> &'a K {
        self.key
    }

    /// Ends the flight: in one step the entry reaches the store, if there is something to keep and if nothing invalidated it meanwhile,
    /// and the flight is gone. Then everybody who waits gets the value. Says whether it was still valid.
    pub(crate) fn land(mut self, entry: &Arc<Entry<V>>, keep: Option<(Held<V>, Kept)>) -> bool {
        let as_of = self.flight.generation;
        let world = &self.table.world;
        // Declared before the lock: the key in it is dropped after the lock's release.
        let mut mine;
        let monitor = self.monitor;
        let mut shard = monitor.lock();
        mine = shard.take_flight(self.key, &self.flight);
        let found = mine.is_some();
        let more = keep.as_ref().and_then(|(_, kept)| kept.more.as_ref());
        let removed = more.is_some_and(|more| world.is_removed(&more.tags, as_of));
        let mut valid = found && !removed && !world.is_cleared(as_of);
        if valid && let Some(key) = mine.take() {
            let hash = self.table.store.hash(&key);
            match keep {
                Some((held, kept)) => {
                    let version = kept.more.as_ref().map_or(0, |more| more.version);
                    valid = version == 0 || self.table.version(hash, &key).is_none_or(|there| there <= version);
                    if valid {
                        self.table.store.insert(hash, key, held, Kept { generation: as_of, ..kept });
                    } else {
                        mine = Some(key);
                    }
                }
                // What it was to replace is out of date.
                None => {
                    self.table.store.remove(hash, &key);
                    mine = Some(key);
                }
            }
        }
        let landing = Landing::Value(Arc::clone(entry));
        // Who joined after a removal may have seen that the value was removed. Which removal it was is not known any more.
        self.depart(
            &mut shard,
            found,
            |joined| if removed && joined != as_of { Landing::Again } else { landing.clone() },
        );
        drop(shard);
        drop(mine);
        valid
    }

    /// The load failed. Those who wait get the stale value, if there is one to stand in, or the error; for as long as `back_off` says it
    /// is not tried again.
    pub(crate) fn fail(mut self, error: &CacheError, back_off: Duration, stand_in: Option<Arc<Entry<V>>>) {
        // Declared before the lock: what is in it is dropped after the lock's release.
        let (mine, mut _forgotten);
        let monitor = self.monitor;
        let mut shard = monitor.lock();
        mine = shard.take_flight(self.key, &self.flight);
        let found = mine.is_some();
        if !back_off.is_zero()
            && let Some(key) = mine
            && let Some(until) = shard.now().checked_add(back_off)
        {
            _forgotten = shard.remember(key, error.clone(), until, self.flight.generation);
        }
        let landing = stand_in.map_or_else(|| Landing::Failed(error.clone()), Landing::Value);
        self.depart(&mut shard, found, |_| landing.clone());
    }

    /// There was no load: who waits has to see for himself.
    pub(crate) fn give_up(mut self) {
        let mine;
        let monitor = self.monitor;
        let mut shard = monitor.lock();
        mine = shard.take_flight(self.key, &self.flight);
        let found = mine.is_some();
        self.depart(&mut shard, found, |_| Landing::Again);
    }

    /// What the end of a flight needs in any case.
    fn depart(&mut self, shard: &mut Locked<'_, Shard<K, V>>, found: bool, landing: impl Fn(u32) -> Landing<V>) {
        self.landed = true;
        let flight = &self.flight;
        if !found {
            shard.forget_flight(flight);
        }
        self.table.landed(flight);
        shard.loading -= 1;
        if shard.loading == 0 {
            shard.notify_all(|shard| &mut shard.idle);
        }
        shard.serve(
            |shard| &mut shard.waiters,
            |_, waiter, _| {
                let theirs = Arc::ptr_eq(&waiter.tag.flight, flight);
                if theirs { Serve::Grant(landing(waiter.tag.generation)) } else { Serve::Skip }
            },
        );
    }
}

impl<K, V> Drop for Claim<'_, K, V>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    fn drop(&mut self) {
        if !self.landed {
            let error = CacheError::cut_short();
            let monitor = self.monitor;
            self.depart(&mut monitor.lock(), false, |_| Landing::Failed(error.clone()));
        }
    }
}
