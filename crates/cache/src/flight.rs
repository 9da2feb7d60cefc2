//! Flights: who loads a key, who waits for it, and what may reach the store. The protocol is in the crate's README.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};

use fullbore_core::{Clock, Failure, Locked, Monitor, Serve, Waiters};
use fullbore_metrics::Counter;

use crate::entry::{Entry, Kept};
use crate::error::CacheError;
use crate::store::{Held, Look, Store};
use crate::sync::{AtomicU32, Ordering, ThreadId, current};

/// What a load ends with, for those who wait.
pub(crate) type Landing<V> = Result<Arc<Entry<V>>, CacheError>;

/// The entries and the flights of a cache.
pub(crate) struct Table<K, V> {
    shards: Box<[Monitor<Shard<K, V>>]>,
    store: Store<K, V>,
    /// Counts the calls of `clear`. Entries and flights of an earlier generation do not exist any more.
    generation: AtomicU32,
}

struct Shard<K, V> {
    /// The flight that a call for the key joins. A flight may reach the store only while it is in here.
    flights: HashMap<K, Arc<Flight>>,
    /// Those who wait for a flight of this shard, also for flights that are no longer in `flights`.
    waiters: Waiters<Landing<V>, Arc<Flight>>,
    /// Loads that have begun and not landed, also those that are no longer in `flights`.
    loading: usize,
    /// Threads in `close_within`.
    idle: Waiters,
    closed: bool,
}

/// One load of one key. Told apart by address.
struct Flight {
    leader: ThreadId,
    since: Instant,
    generation: u32,
    /// Written under the shard's lock only; atomic because the compiler cannot know that.
    waiting: AtomicUsize,
}

/// How [`Table::enter`] ended.
pub(crate) enum Entered<'a, K: Hash + Eq + Clone + Send + Sync + 'static, V: Clone + Send + Sync + 'static> {
    /// The value is there after all.
    Hit(Held<V>),
    /// The caller is to load it, and to say how that ended.
    Lead(Claim<'a, K, V>),
    /// Somebody else's load ended, or the cache was closed.
    Landed(Landing<V>),
    /// Somebody else's load did not end in time.
    TimedOut { load_age: Duration, waiting: usize },
    /// There is nothing, and the deadline has passed.
    TooLate,
    /// There is nothing to wait for and nothing to begin.
    Refused(CacheError),
}

impl<K, V> Table<K, V>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    pub(crate) fn new(capacity: u64, clock: Clock, hits: Arc<Counter>) -> Self {
        let shard = || {
            let shard = Shard {
                flights: HashMap::new(),
                waiters: Waiters::new(),
                loading: 0,
                idle: Waiters::new(),
                closed: false,
            };
            Monitor::new(shard, clock.clone())
        };
        let shards = (0..shard_count()).map(|_| shard()).collect();
        Self { shards, store: Store::new(capacity, clock, hits), generation: AtomicU32::new(0) }
    }

    /// The entry of `key`, if it may be returned. Takes no lock of ours unless it finds a dead one.
    #[inline]
    pub(crate) fn get(&self, key: &K) -> Option<Held<V>> {
        let hash = self.hash(key);
        match self.store.get(hash, key, self.generation()) {
            Look::Live(held) => Some(held),
            Look::Nothing => None,
            Look::Dead => self.get_locked(hash, key),
        }
    }

    /// A dead one is removed, unless there is a live one by now.
    #[cold]
    fn get_locked(&self, hash: u64, key: &K) -> Option<Held<V>> {
        let _shard = self.shard(hash).lock();
        self.peek(hash, key)
    }

    /// The entry of `key`, if it may be returned, without a trace. Takes no lock of ours.
    pub(crate) fn look(&self, key: &K) -> Option<(Held<V>, Kept)> {
        match self.store.peek(self.hash(key), key, self.generation()) {
            Look::Live(found) => Some(found),
            Look::Dead | Look::Nothing => None,
        }
    }

    #[inline]
    fn hash(&self, key: &K) -> u64 {
        self.store.hash(key)
    }

    /// As `get`, with the shard's lock held by the caller; a dead entry is removed.
    fn peek(&self, hash: u64, key: &K) -> Option<Held<V>> {
        let generation = self.generation();
        match self.store.peek(hash, key, generation) {
            Look::Live((held, _)) => return Some(held),
            Look::Nothing => {}
            Look::Dead => {
                self.store.remove(hash, key, generation);
            }
        }
        None
    }

    #[inline]
    pub(crate) fn generation(&self) -> u32 {
        // ORDERING: Acquire pairs with the AcqRel of `clear`: what was made after a `clear` returned bears its generation.
        self.generation.load(Ordering::Acquire)
    }

    /// Puts an entry of the present generation in. A flight of the key can no longer reach the store.
    pub(crate) fn insert(&self, key: K, held: Held<V>, mut kept: Kept) {
        // Declared before the lock: the key in it is dropped after the lock's release.
        let _detached;
        let hash = self.hash(&key);
        let mut shard = self.shard(hash).lock();
        _detached = shard.flights.remove_entry(&key);
        // Read under the lock: an older one could replace a later insert's entry and be dead itself.
        kept.generation = self.generation();
        self.store.insert(hash, key, held, kept, kept.generation);
    }

    /// Takes the entry out. A flight of the key can no longer reach the store.
    pub(crate) fn remove(&self, key: &K) -> Option<Held<V>> {
        let _detached;
        let hash = self.hash(key);
        let removed = {
            let mut shard = self.shard(hash).lock();
            _detached = shard.flights.remove_entry(key);
            self.store.remove(hash, key, self.generation())
        };
        match removed {
            Look::Live(held) => Some(held),
            Look::Dead | Look::Nothing => None,
        }
    }

    /// Forgets everything. Flights can no longer reach the store, and nobody joins them.
    pub(crate) fn clear(&self) {
        // ORDERING: AcqRel pairs with the Acquire in `generation`.
        let generation = self.generation.fetch_add(1, Ordering::AcqRel).wrapping_add(1);
        // Only frees memory: what is of an earlier generation is not returned any more.
        self.store.clear(generation);
    }

    /// Finds the entry, joins the flight, or makes the caller its leader. `joined` runs under the lock before a wait.
    pub(crate) fn enter<'a>(
        &'a self,
        key: &'a K,
        timeout: Duration,
        deadline: Option<Instant>,
        joined: impl FnOnce(),
    ) -> Entered<'a, K, V> {
        let hash = self.hash(key);
        let monitor = self.shard(hash);
        let mut shard = monitor.lock();
        let generation = self.generation();
        if let Some(flight) = shard.flights.get(key)
            && flight.generation == generation
        {
            if flight.leader == current().id() {
                return Entered::Refused(CacheError::Reentrant);
            }
            if shard.closed {
                return Entered::Refused(CacheError::Closed);
            }
            let flight = Arc::clone(flight);
            let until = deadline.or_else(|| shard.now().checked_add(timeout));
            joined();
            return Self::wait(shard, &flight, until);
        }
        // The flight that the caller did not find may have landed just now: under the lock, the entry or the flight is there.
        if let Some(found) = self.peek(hash, key) {
            return Entered::Hit(found);
        }
        if shard.closed {
            return Entered::Refused(CacheError::Closed);
        }
        let now = shard.now();
        if deadline.is_some_and(|deadline| deadline <= now) {
            return Entered::TooLate;
        }
        let flight = Arc::new(Flight { leader: current().id(), since: now, generation, waiting: AtomicUsize::new(0) });
        shard.flights.insert(key.clone(), Arc::clone(&flight));
        shard.loading += 1;
        drop(shard);
        Entered::Lead(Claim { table: self, monitor, key, flight, landed: false })
    }

    fn wait<'a>(mut shard: Locked<'_, Shard<K, V>>, flight: &Arc<Flight>, until: Option<Instant>) -> Entered<'a, K, V> {
        // ORDERING: Relaxed here and below: under the shard's lock.
        flight.waiting.fetch_add(1, Ordering::Relaxed);
        let landing = shard.wait_turn(
            |shard| &mut shard.waiters,
            until,
            Arc::clone(flight),
            |shard| shard.closed.then_some(Err(CacheError::Closed)),
        );
        let waiting = flight.waiting.fetch_sub(1, Ordering::Relaxed);
        match landing {
            Some(landing) => Entered::Landed(landing),
            None => Entered::TimedOut { load_age: shard.now().saturating_duration_since(flight.since), waiting },
        }
    }

    /// Begins no load any more and wakes those who wait.
    pub(crate) fn close(&self) {
        for monitor in &self.shards {
            let mut shard = monitor.lock();
            shard.closed = true;
            shard.notify_all(|shard| &mut shard.waiters);
        }
    }

    /// Closes, waits until every load has landed or the deadline has come, and says how many have not.
    pub(crate) fn close_until(&self, deadline: Option<Instant>) -> usize {
        self.close();
        let left = self.shards.iter().map(|monitor| {
            let mut shard = monitor.lock();
            shard.wait_until(|shard| &mut shard.idle, deadline, |shard| shard.loading == 0);
            shard.loading
        });
        left.sum()
    }

    /// How many entries there are, the dead ones that nobody asked for included.
    pub(crate) fn count(&self) -> u64 {
        self.store.count()
    }

    fn shard(&self, hash: u64) -> &Monitor<Shard<K, V>> {
        // The number of shards is a power of two far below 2^32.
        &self.shards[hash as usize & (self.shards.len() - 1)]
    }

    /// Changes the capacity.
    pub(crate) fn resize(&self, capacity: u64) {
        self.store.resize(capacity, self.generation());
    }

    /// What all entries weigh.
    pub(crate) fn weight(&self) -> u64 {
        self.store.weight()
    }
}

/// Four for each core, so that two threads seldom meet in one.
fn shard_count() -> usize {
    if cfg!(fullbore_loom) {
        return 1;
    }
    (4 * std::thread::available_parallelism().map_or(1, usize::from)).next_power_of_two()
}

/// The leader's duty to say how the load ended; dropping it says that it was cut short.
pub(crate) struct Claim<'a, K: Hash + Eq + Clone + Send + Sync + 'static, V: Clone + Send + Sync + 'static> {
    table: &'a Table<K, V>,
    monitor: &'a Monitor<Shard<K, V>>,
    key: &'a K,
    flight: Arc<Flight>,
    landed: bool,
}

impl<K, V> Claim<'_, K, V>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// The generation in which the load began.
    pub(crate) fn generation(&self) -> u32 {
        self.flight.generation
    }

    /// Ends the flight: in one step the entry reaches the store, if `keep` and if nothing invalidated it meanwhile, and the
    /// flight is gone. Then everybody who waits gets `landing`. Says whether the key was still valid.
    pub(crate) fn land(mut self, landing: &Landing<V>, keep: Option<(Held<V>, Kept)>) -> bool {
        // Declared before the lock: the key in it is dropped after the lock's release.
        let mut mine = None;
        let monitor = self.monitor;
        let mut shard = monitor.lock();
        if shard.flights.get(self.key).is_some_and(|flight| Arc::ptr_eq(flight, &self.flight)) {
            mine = shard.flights.remove_entry(self.key);
        }
        let found = mine.is_some();
        let valid = found && self.flight.generation == self.table.generation();
        if valid
            && let Some((held, kept)) = keep
            && let Some((key, _)) = mine.take()
        {
            let hash = self.table.hash(&key);
            self.table.store.insert(hash, key, held, kept, self.flight.generation);
        }
        self.depart(&mut shard, landing, found);
        drop(shard);
        valid
    }

    /// What the end of a flight needs in any case.
    fn depart(&mut self, shard: &mut Locked<'_, Shard<K, V>>, landing: &Landing<V>, removed: bool) {
        self.landed = true;
        let flight = &self.flight;
        if !removed {
            // Nothing to find, unless an `Eq` or a `Hash` lied or panicked: nobody may join a flight that has ended.
            shard.flights.retain(|_, other| !Arc::ptr_eq(other, flight));
        }
        shard.loading -= 1;
        if shard.loading == 0 {
            shard.notify_all(|shard| &mut shard.idle);
        }
        shard.serve(
            |shard| &mut shard.waiters,
            |_, waiter, _| {
                if Arc::ptr_eq(waiter.tag, flight) { Serve::Grant(landing.clone()) } else { Serve::Skip }
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
            let failure = Failure::Panicked("the load was cut short".into());
            let monitor = self.monitor;
            self.depart(&mut monitor.lock(), &Err(CacheError::Load(failure)), false);
        }
    }
}
