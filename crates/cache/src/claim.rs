//! The leader's part of a flight: how it ends.

use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use fullbore_core::{Locked, Monitor};

use crate::entry::{Entry, Grave, Kept};
use crate::error::CacheError;
use crate::flight::{Flight, Shard, Table, answer};
use crate::store::Held;
use crate::world::{Age, Tag};

/// What a load ends with, for those who wait.
pub(crate) enum Landing<V> {
    Value(Arc<Entry<V>>),
    /// A stale one, because the load failed.
    StoodIn(Arc<Entry<V>>),
    Failed(CacheError),
    /// Nothing for them: they are to look again.
    Again,
}

impl<V> Clone for Landing<V> {
    fn clone(&self) -> Self {
        match self {
            Landing::Value(entry) => Landing::Value(Arc::clone(entry)),
            Landing::StoodIn(entry) => Landing::StoodIn(Arc::clone(entry)),
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
    pub(crate) fn land(self, entry: &Arc<Entry<V>>, keep: Keep<V>) -> bool {
        self.land_for(entry, keep, true)
    }

    /// As `land`; without `for_all` those who wait look again: it is not known who of them asked before the value was invalidated.
    pub(crate) fn land_for(mut self, entry: &Arc<Entry<V>>, keep: Keep<V>, for_all: bool) -> bool {
        // Declared before the lock: what is in it is dropped after the lock's release.
        let mut mine;
        let world = &self.table.world;
        let monitor = self.monitor;
        let mut shard = monitor.lock();
        let as_of = self.flight.generation();
        mine = shard.take_flight_or_successor(self.key, &self.flight);
        let removed = world.is_removed(keep.tags(), as_of);
        let mut valid = mine.is_some() && !removed && !self.flight.is_told() && !world.is_cleared(as_of);
        let taken = mine.as_ref().map(|(_, flight)| Arc::clone(flight));
        if valid && let Some((key, flight)) = mine.take() {
            let hash = self.table.store.hash(&key);
            match keep {
                Keep::Entry(held, kept) => {
                    let version = kept.more.as_ref().map_or(0, |more| more.version);
                    valid = version == 0 || self.table.version(hash, &key).is_none_or(|there| there <= version);
                    if valid {
                        self.table.store.insert(hash, key, held, Kept { generation: as_of, ..kept });
                    } else {
                        mine = Some((key, flight));
                    }
                }
                // What it was to replace is out of date.
                Keep::Nothing(_) => {
                    self.table.store.remove(hash, &key);
                    mine = Some((key, flight));
                }
            }
        }
        let landing = Landing::Value(Arc::clone(entry));
        // Who joined after a removal may have seen that the value was removed. Which removal it was is not known any more.
        let again = |joined| !for_all || (removed && joined != as_of);
        let answers = |joined| if again(joined) { Landing::Again } else { landing.clone() };
        self.depart(&mut shard, taken.as_ref(), answers);
        drop(shard);
        drop(mine);
        valid
    }

    /// The load failed. Those who wait get the stale value, if there still is one to stand in, or the error; for as long as `back_off` says it
    /// is not tried again. Returns what stands in.
    pub(crate) fn fail(
        mut self,
        error: &CacheError,
        back_off: Duration,
        old: Option<(Held<V>, Kept)>,
        grave: &Arc<Grave<V>>,
    ) -> Option<Arc<Entry<V>>> {
        // Declared before the lock: what is in it is dropped after the lock's release.
        let (mine, _forgotten);
        let old = old.map(|(held, kept)| (held.into_entry(grave), kept));
        let monitor = self.monitor;
        let mut shard = monitor.lock();
        mine = shard.take_flight(self.key, &self.flight);
        let taken = mine.as_ref().map(|(_, flight)| Arc::clone(flight));
        // Under the lock: who joined it after a removal finds that taken into account.
        let stand_in = old.filter(|(_, kept)| self.table.world.age_of(kept) != Age::Dead).map(|(entry, _)| entry);
        if !back_off.is_zero()
            && let Some((key, _)) = mine
        {
            let until = shard.now().checked_add(back_off);
            _forgotten = shard.remember(key, error.clone(), until, self.flight.generation());
        }
        let landing = stand_in.clone().map_or_else(|| Landing::Failed(error.clone()), Landing::StoodIn);
        self.depart(&mut shard, taken.as_ref(), |_| landing.clone());
        stand_in
    }

    /// There was no load: who waits has to see for himself.
    pub(crate) fn give_up(mut self) {
        let mine;
        let monitor = self.monitor;
        let mut shard = monitor.lock();
        mine = shard.take_flight(self.key, &self.flight);
        let taken = mine.as_ref().map(|(_, flight)| flight);
        self.depart(&mut shard, taken, |_| Landing::Again);
    }

    /// The load says that there is no such thing: nothing stays, and who waits has to see for himself.
    pub(crate) fn land_nothing(mut self) {
        let mine;
        let monitor = self.monitor;
        let mut shard = monitor.lock();
        mine = shard.take_flight(self.key, &self.flight);
        let taken = mine.as_ref().map(|(_, flight)| flight);
        if taken.is_some() {
            self.table.store.remove(self.table.store.hash(self.key), self.key);
        }
        self.depart(&mut shard, taken, |_| Landing::Again);
    }

    /// What the end of a flight needs in any case. `taken` is the flight that had its key, its own or a successor's.
    fn depart(
        &mut self,
        shard: &mut Locked<'_, Shard<K, V>>,
        taken: Option<&Arc<Flight>>,
        landing: impl Fn(u32) -> Landing<V>,
    ) {
        self.landed = true;
        let flight = &self.flight;
        if taken.is_none() {
            shard.forget_flight(flight);
        }
        self.table.landed(flight);
        shard.loading -= 1;
        if shard.loading == 0 {
            shard.notify_all(|shard| &mut shard.idle);
        }
        answer(shard, flight, landing);
        if let Some(successor) = taken.filter(|taken| !Arc::ptr_eq(taken, flight)) {
            // There may be something for them now, which need not wait for their own flight.
            answer(shard, successor, |_| Landing::Again);
        }
    }
}

/// What a load leaves in the store.
pub(crate) enum Keep<V> {
    Entry(Held<V>, Kept),
    /// Nothing. Its tags still say who may have the value.
    Nothing(Box<[Arc<Tag>]>),
}

impl<V> Keep<V> {
    fn tags(&self) -> &[Arc<Tag>] {
        match self {
            Keep::Entry(_, kept) => kept.more.as_ref().map_or(&[], |more| &more.tags),
            Keep::Nothing(tags) => tags,
        }
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
            self.depart(&mut monitor.lock(), None, |_| Landing::Failed(error.clone()));
        }
    }
}
