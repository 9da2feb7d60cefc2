//! Flights: who loads a key, who waits for it, and what may reach the store. The protocol is in the crate's README.

use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::time::{Duration, Instant};

use fullbore_core::{Clock, Locked, Monitor, Serve, Waiters, earlier};
use fullbore_metrics::Counter;
use hashbrown::HashMap;

use crate::claim::{Claim, Landing};
use crate::entry::{Entry, Kept};
use crate::error::CacheError;
use crate::store::{Held, Look, Quick, Store};
use crate::sync::{AtomicU32, Ordering, ThreadId, current};
use crate::world::{Age, World};

/// The entries and the flights of a cache.
pub(crate) struct Table<K, V> {
    shards: Box<[Monitor<Shard<K, V>>]>,
    pub(crate) store: Store<K, V>,
    pub(crate) world: Arc<World>,
    /// Loads that lost their key because they took too long, and have not landed.
    abandoned: AtomicUsize,
    /// Of those, the ones that hold a thread of the cache's.
    lost: AtomicUsize,
    pub(crate) hand_overs: Counter,
    limits: Limits,
}

/// When a load counts as hung.
#[derive(Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) load: Option<Duration>,
    pub(crate) abandoned: usize,
}

pub(crate) struct Shard<K, V> {
    /// What a call for the key meets. A flight may reach the store only while it is in here.
    flights: HashMap<K, Place>,
    /// How many of them are failures.
    failures: usize,
    /// Those who wait for a flight of this shard, also for flights that are no longer in `flights`.
    pub(crate) waiters: Waiters<Landing<V>, Waiter>,
    /// Loads that have begun, or are to begin behind, and have not landed, also those that are no longer in `flights`.
    pub(crate) loading: usize,
    /// Threads in `close_within`.
    pub(crate) idle: Waiters,
    closed: bool,
}

enum Place {
    /// `leader` is `None` until a thread has begun with it; `since` is when that was, or when it was put here.
    Loading { flight: Arc<Flight>, leader: Option<ThreadId>, since: Instant },
    /// The last load failed, and the next one is not to begin before; `None`: never.
    Failed { error: CacheError, until: Option<Instant>, generation: u32 },
}

/// One load of one key. Told apart by address.
pub(crate) struct Flight {
    /// These are written under the shard's lock only; atomic because the compiler cannot know that.
    generation: AtomicU32,
    waiting: AtomicUsize,
    abandoned: AtomicBool,
    /// Its leader is a thread of the cache's.
    behind: AtomicBool,
    /// Another tier told of a change of its key: it may reach the store no more, and nobody joins it. Its leader still has its place, for
    /// the change may be its own.
    told: AtomicBool,
    /// The hung one that lost its key to this one. What that brings in the end is still good, as long as this one's would be.
    instead_of: Option<Arc<Flight>>,
}

pub(crate) struct Waiter {
    pub(crate) flight: Arc<Flight>,
    /// When it joined.
    pub(crate) generation: u32,
}

/// What a call is ready to do.
pub(crate) struct Call<'a, K> {
    /// How long it waits for somebody else's load, unless there is a deadline.
    pub(crate) timeout: Duration,
    pub(crate) deadline: Option<Instant>,
    /// And how long where a stale value could be had instead.
    pub(crate) soft: Option<Duration>,
    /// Not at all.
    pub(crate) no_wait: bool,
    /// It would only look elsewhere, and leaves the loads of others alone.
    pub(crate) look: bool,
    pub(crate) behind: Option<Behind<'a, K>>,
}

/// A way to have a load done by another thread.
pub(crate) struct Behind<'a, K> {
    /// `false` if that is not possible at present. Called under the shard's lock.
    pub(crate) push: Push<'a, K>,
    /// A thread that it had for that hangs. Called under the shard's lock.
    pub(crate) replace: &'a dyn Fn(),
    /// Where there is nothing to serve meanwhile, the caller loads.
    pub(crate) only_for_stale: bool,
}

/// The key, its hash, and the flight.
pub(crate) type Push<'a, K> = &'a dyn Fn(K, u64, &Arc<Flight>) -> bool;

/// How [`Table::enter`] ended.
pub(crate) enum Entered<'a, K: Hash + Eq + Clone + Send + Sync + 'static, V: Clone + Send + Sync + 'static> {
    /// The value is there after all.
    Hit(Held<V>),
    /// The caller is to load it, and to say how that ended. What it is to replace, if there is something.
    Lead(Claim<'a, K, V>, Option<(Held<V>, Kept)>),
    /// Somebody else's load ended well.
    Landed(Arc<Entry<V>>),
    /// It failed, and this stands in.
    StoodIn(Arc<Entry<V>>),
    /// Somebody else's load failed; the cache was closed.
    Failed(CacheError),
    /// A stale value has to do.
    Stale(Held<V>),
    /// Somebody else's load did not end in time.
    TimedOut { load_age: Duration, waiting: usize },
    /// There is nothing, and the deadline has passed.
    TooLate,
    /// There is nothing to wait for and nothing to begin.
    Refused(CacheError),
    /// The call would have to wait.
    Busy,
}

/// More failures than this are not remembered in one shard.
const FAILURES: usize = 256;

impl<K, V> Table<K, V>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    pub(crate) fn new(
        capacity: u64,
        clock: &Clock,
        idle: Option<u64>,
        weighed: bool,
        limits: Limits,
        hits: Arc<Counter>,
        evicted: Arc<Counter>,
    ) -> Self {
        let shard = || {
            let shard = Shard {
                flights: HashMap::new(),
                failures: 0,
                waiters: Waiters::new(),
                loading: 0,
                idle: Waiters::new(),
                closed: false,
            };
            Monitor::new(shard, clock.clone())
        };
        let shards = (0..shard_count()).map(|_| shard()).collect();
        let world = Arc::new(World::new(clock.clone(), idle));
        let store = Store::new(capacity, weighed, Arc::clone(&world), hits, evicted);
        Self {
            shards,
            store,
            world,
            abandoned: AtomicUsize::new(0),
            lost: AtomicUsize::new(0),
            hand_overs: Counter::new(),
            limits,
        }
    }

    /// The value of `key` if it is plainly fresh. Takes no lock of ours.
    #[inline]
    pub(crate) fn quick(&self, key: &K) -> Quick<Held<V>> {
        self.store.quick(self.store.hash(key), key)
    }

    /// What is there for `key`, where a quick look was not enough. Takes no lock of ours unless it finds a dead one.
    #[cold]
    pub(crate) fn get(&self, key: &K) -> Look<Held<V>> {
        let hash = self.store.hash(key);
        match self.store.get(hash, key) {
            Look::Dead => self.get_locked(hash, key),
            found => found,
        }
    }

    /// A dead one is removed, unless there is another one by now.
    #[cold]
    fn get_locked(&self, hash: u64, key: &K) -> Look<Held<V>> {
        let _shard = self.shard(hash).lock();
        match self.present(hash, key) {
            Some((held, _, Age::Fresh)) => Look::Live(held),
            Some((held, kept, age)) => Look::Aged(held, kept, age),
            None => Look::Nothing,
        }
    }

    /// What is there for `key` and is not dead, without a trace. Takes no lock of ours.
    pub(crate) fn look(&self, key: &K) -> Option<(Held<V>, Kept, Age)> {
        self.store.peek(self.store.hash(key), key).filter(|(_, _, age)| *age != Age::Dead)
    }

    /// As `look`, with the shard's lock held by the caller; a dead entry is removed.
    fn present(&self, hash: u64, key: &K) -> Option<(Held<V>, Kept, Age)> {
        let found = self.store.peek(hash, key)?;
        if found.2 == Age::Dead {
            self.store.remove(hash, key);
            return None;
        }
        Some(found)
    }

    /// Puts an entry of the present generation in, unless there is one of a higher version than `above`, where that is given. A flight of the
    /// key can no longer reach the store.
    pub(crate) fn insert(&self, key: K, held: Held<V>, mut kept: Kept, above: Option<u64>) -> bool {
        // Declared before the lock: the key in it is dropped after the lock's release.
        let _detached;
        let hash = self.store.hash(&key);
        let mut shard = self.shard(hash).lock();
        if let Some(version) = above
            && self.version(hash, &key).is_some_and(|there| there >= version)
        {
            return false;
        }
        _detached = shard.take(&key);
        // Read under the lock: an older one could replace a later insert's entry and be dead itself.
        kept.generation = self.world.generation();
        self.store.insert(hash, key, held, kept);
        true
    }

    /// The version of what is there. The shard's lock is held by the caller.
    pub(crate) fn version(&self, hash: u64, key: &K) -> Option<u64> {
        let (_, kept, age) = self.store.peek(hash, key)?;
        (age != Age::Dead).then(|| kept.more.map_or(0, |more| more.version))
    }

    /// Takes the entry out. A flight of the key can no longer reach the store.
    pub(crate) fn remove(&self, key: &K) -> Option<Held<V>> {
        let _detached;
        let hash = self.store.hash(key);
        let removed = {
            let mut shard = self.shard(hash).lock();
            _detached = shard.take(key);
            self.store.remove(hash, key)
        };
        match removed {
            Look::Live(held) | Look::Aged(held, ..) => Some(held),
            Look::Dead | Look::Nothing => None,
        }
    }

    /// Another tier tells of a change of the key: what is in memory goes, and nothing that was asked for before gets there.
    #[cfg(feature = "redis")]
    pub(crate) fn told(&self, key: &K) {
        let hash = self.store.hash(key);
        let _gone;
        let shard = self.shard(hash).lock();
        if let Some(Place::Loading { flight, .. }) = shard.flights.get(key) {
            flight.told.store(true, Ordering::Relaxed);
        }
        _gone = self.store.remove(hash, key);
    }

    /// Forgets everything. Flights can no longer reach the store, and nobody joins them.
    pub(crate) fn clear(&self) {
        self.world.clear();
        // Only frees memory: what was cleared is not returned any more.
        self.store.clear();
    }

    /// Forgets what bears the tag. Flights that turn out to bear it do not reach the store, and who joins them from now on does not
    /// get their value.
    pub(crate) fn remove_tag(&self, tag: &str) {
        if self.world.remove_tag(tag) {
            self.store.clear();
        }
    }

    /// Finds the entry, joins the flight, or makes the caller its leader. `joined` runs under the lock before the first wait.
    pub(crate) fn enter<'a>(&'a self, key: &'a K, call: &Call<'_, K>, joined: impl FnOnce()) -> Entered<'a, K, V> {
        // Declared before the lock: what is in it is dropped after the lock's release.
        let mut _detached = None;
        let hash = self.store.hash(key);
        let monitor = self.shard(hash);
        let mut joined = Some(joined);
        let mut wait: Option<Patience> = None;
        loop {
            _detached = None;
            let mut shard = monitor.lock();
            let now = shard.now();
            // Before the look at what is there: what is removed after that look is not this flight's to bring back.
            let generation = self.world.generation();
            // The flight that the caller did not find may have landed just now: under the lock, the entry or the flight is there.
            let old = match self.present(hash, key) {
                Some((held, _, Age::Fresh | Age::Early)) => return Entered::Hit(held),
                old => old.map(|(held, kept, _)| (held, kept)),
            };
            let stale = |old: Option<(Held<V>, Kept)>, other| old.map_or(other, |(held, _)| Entered::Stale(held));
            let behind = call.behind.as_ref().filter(|behind| old.is_some() || !behind.only_for_stale);
            let (mut flight, mut hung, mut queued) = (None, None, None);
            match shard.flights.get(key) {
                Some(Place::Loading { flight: there, leader, since }) if !self.world.is_cleared(there.generation()) => {
                    if *leader == Some(current().id()) {
                        return Entered::Refused(CacheError::Reentrant);
                    }
                    if shard.closed {
                        return stale(old, Entered::Refused(CacheError::Closed));
                    }
                    let there = Arc::clone(there);
                    match leader {
                        _ if call.look => return Entered::Busy,
                        Some(_) if there.is_told() => {}
                        // Nobody has begun with it, and this call can begin at once.
                        None if behind.is_none() => queued = Some(there),
                        Some(_) if self.is_hung(*since, now) => hung = Some(there),
                        _ => flight = Some((there, *since)),
                    }
                }
                Some(Place::Failed { error, until, generation })
                    if until.is_none_or(|until| now < until) && !self.world.is_cleared(*generation) =>
                {
                    let error = error.clone();
                    return stale(old, Entered::Failed(error));
                }
                _ => {}
            }
            let (flight, since) = match flight {
                Some(flight) => flight,
                None if shard.closed => return stale(old, Entered::Refused(CacheError::Closed)),
                None if call.deadline.is_some_and(|deadline| deadline <= now) => return stale(old, Entered::TooLate),
                None => {
                    let flight = Arc::new(Flight::new(generation, hung.clone()));
                    let (owned, pushed) = (key.clone(), key.clone());
                    if let Some(hung) = &hung {
                        self.abandon(hung);
                        if let Some(behind) = behind {
                            (behind.replace)();
                        }
                    }
                    if behind.is_some_and(|behind| !(behind.push)(pushed, hash, &flight)) {
                        return stale(old, Entered::Refused(CacheError::Overloaded));
                    }
                    let leader = behind.is_none().then(|| current().id());
                    let place = Place::Loading { flight: Arc::clone(&flight), leader, since: now };
                    _detached = Some(shard.put(owned, place));
                    shard.loading += 1;
                    if let Some(queued) = queued {
                        // Those who wait for it wait for this one from now on.
                        answer(&mut shard, &queued, |_| Landing::Again);
                    }
                    if behind.is_none() {
                        drop(shard);
                        return Entered::Lead(Claim::new(self, monitor, key, flight), old);
                    }
                    (flight, now)
                }
            };
            if call.no_wait {
                return Entered::Busy;
            }
            let patience = *wait.get_or_insert_with(|| Patience::new(call, now));
            if let Some(joined) = joined.take() {
                joined();
            }
            let until = earlier(patience.hard, old.as_ref().and(patience.soft));
            // Of one that nobody has begun with, at the earliest.
            let hung = self.limits.load.and_then(|limit| since.checked_add(limit)).filter(|at| *at > now);
            match self.wait(&mut shard, &flight, earlier(until, hung)) {
                Some(Landing::Value(entry)) => return Entered::Landed(entry),
                Some(Landing::StoodIn(entry)) => return Entered::StoodIn(entry),
                Some(Landing::Failed(CacheError::Closed)) => {
                    return match self.present(hash, key) {
                        Some((held, ..)) => Entered::Stale(held),
                        None => Entered::Failed(CacheError::Closed),
                    };
                }
                Some(Landing::Failed(error)) => return Entered::Failed(error),
                // The flight was not what this call could take; or it may count as hung by now.
                Some(Landing::Again) => {}
                None => {
                    let now = shard.now();
                    let late = patience.hard.is_some_and(|hard| hard <= now);
                    match self.present(hash, key) {
                        Some((held, _, Age::Fresh | Age::Early)) => return Entered::Hit(held),
                        Some((held, ..)) if late || patience.soft.is_some_and(|soft| soft <= now) => {
                            return Entered::Stale(held);
                        }
                        None if late => {
                            let load_age = now.saturating_duration_since(since);
                            // This call included.
                            let waiting = flight.waiting.load(Ordering::Relaxed) + 1;
                            return Entered::TimedOut { load_age, waiting };
                        }
                        _ => {}
                    }
                }
            }
        }
    }

    fn is_hung(&self, since: Instant, now: Instant) -> bool {
        let hung = self.limits.load.is_some_and(|limit| now.saturating_duration_since(since) >= limit);
        // ORDERING: Relaxed: a bound of what is left behind, which two shards may pass by one.
        hung && self.abandoned.load(Ordering::Relaxed) < self.limits.abandoned
    }

    /// Under the shard's lock.
    fn abandon(&self, hung: &Flight) {
        if !hung.abandoned.swap(true, Ordering::Relaxed) {
            self.hand_overs.inc();
            self.abandoned.fetch_add(1, Ordering::Relaxed);
            if hung.behind.load(Ordering::Relaxed) {
                self.lost.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    fn wait(
        &self,
        shard: &mut Locked<'_, Shard<K, V>>,
        flight: &Arc<Flight>,
        until: Option<Instant>,
    ) -> Option<Landing<V>> {
        // ORDERING: Relaxed here and below: under the shard's lock.
        flight.waiting.fetch_add(1, Ordering::Relaxed);
        let waiter = Waiter { flight: Arc::clone(flight), generation: self.world.generation() };
        let closed = |shard: &mut Shard<K, V>| shard.closed.then_some(Landing::Failed(CacheError::Closed));
        let landing = shard.wait_turn(|shard| &mut shard.waiters, until, waiter, closed);
        flight.waiting.fetch_sub(1, Ordering::Relaxed);
        landing
    }

    /// Has the entry loaded again by another thread, unless that is under way or failed lately.
    pub(crate) fn begin_behind(&self, key: &K, behind: Push<'_, K>) -> bool {
        let _detached;
        let hash = self.store.hash(key);
        let mut shard = self.shard(hash).lock();
        let now = shard.now();
        let busy = match shard.flights.get(key) {
            Some(Place::Loading { flight, .. }) => !self.world.is_cleared(flight.generation()),
            Some(Place::Failed { until, generation, .. }) => {
                until.is_none_or(|until| now < until) && !self.world.is_cleared(*generation)
            }
            None => false,
        };
        if busy || shard.closed {
            return true;
        }
        let flight = Arc::new(Flight::new(self.world.generation(), None));
        let (owned, pushed) = (key.clone(), key.clone());
        let begun = behind(pushed, hash, &flight);
        if begun {
            _detached = shard.put(owned, Place::Loading { flight, leader: None, since: now });
            shard.loading += 1;
        }
        begun
    }

    /// The calling thread is to do what another call left to it. `None` if the key has been invalidated since, and with it the flight: those
    /// who wait for it ask again.
    pub(crate) fn adopt<'a>(&'a self, key: &'a K, hash: u64, flight: &Arc<Flight>) -> Option<Claim<'a, K, V>> {
        let monitor = self.shard(hash);
        let claim = Claim::new(self, monitor, key, Arc::clone(flight));
        let valid = {
            let mut shard = monitor.lock();
            let (closed, now) = (shard.closed, shard.now());
            match shard.flights.get_mut(key) {
                Some(Place::Loading { flight: there, leader, since }) if Arc::ptr_eq(there, flight) => {
                    let valid = !closed && !self.world.is_cleared(flight.generation());
                    if valid {
                        (*leader, *since) = (Some(current().id()), now);
                        flight.behind.store(true, Ordering::Relaxed);
                        flight.told.store(false, Ordering::Relaxed);
                        // The load begins now, and sees what was removed before.
                        flight.generation.store(self.world.generation(), Ordering::Relaxed);
                    }
                    valid
                }
                _ => false,
            }
        };
        if valid {
            return Some(claim);
        }
        claim.give_up();
        None
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

    /// Loads that lost their key because they took too long, and have not landed.
    pub(crate) fn abandoned(&self) -> usize {
        self.abandoned.load(Ordering::Relaxed)
    }

    /// Loads that hold a thread of the cache's and are not waited for any more.
    pub(crate) fn lost(&self) -> usize {
        self.lost.load(Ordering::Relaxed)
    }

    pub(crate) fn landed(&self, flight: &Flight) {
        if flight.abandoned.load(Ordering::Relaxed) {
            self.abandoned.fetch_sub(1, Ordering::Relaxed);
            if flight.behind.load(Ordering::Relaxed) {
                self.lost.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }

    fn shard(&self, hash: u64) -> &Monitor<Shard<K, V>> {
        // The number of shards is a power of two far below 2^32.
        &self.shards[hash as usize & (self.shards.len() - 1)]
    }
}

impl<K: Hash + Eq + Clone, V> Shard<K, V> {
    fn take(&mut self, key: &K) -> Option<Detached<K>> {
        let (key, place) = self.flights.remove_entry(key)?;
        self.failures -= usize::from(matches!(place, Place::Failed { .. }));
        Some(Detached { keys: vec![key], places: vec![place] })
    }

    fn put(&mut self, key: K, place: Place) -> Option<Detached<K>> {
        let mut detached = self.take(&key);
        self.failures += usize::from(matches!(place, Place::Failed { .. }));
        // With keys whose `Eq` lies there may be another one after all.
        if let Some(place) = self.flights.insert(key, place) {
            detached.get_or_insert_with(Detached::default).places.push(place);
        }
        detached
    }

    /// Takes the flight out if it may still reach the store.
    pub(crate) fn take_flight(&mut self, key: &K, flight: &Arc<Flight>) -> Option<(K, Arc<Flight>)> {
        self.take_flight_if(key, |there| Arc::ptr_eq(there, flight))
    }

    /// Takes the flight out, or the one that has its key because it hung: what the one brings in the end is as good as what the other will.
    pub(crate) fn take_flight_or_successor(&mut self, key: &K, flight: &Arc<Flight>) -> Option<(K, Arc<Flight>)> {
        self.take_flight_if(key, |there| there.is_or_follows(flight))
    }

    fn take_flight_if(&mut self, key: &K, that: impl Fn(&Arc<Flight>) -> bool) -> Option<(K, Arc<Flight>)> {
        match self.flights.get(key) {
            Some(Place::Loading { flight, .. }) if that(flight) => {}
            _ => return None,
        }
        match self.flights.remove_entry(key)? {
            (key, Place::Loading { flight, .. }) => Some((key, flight)),
            (_, Place::Failed { .. }) => None,
        }
    }

    /// Nobody may join a flight that has ended, also if an `Eq` or a `Hash` lied or panicked.
    pub(crate) fn forget_flight(&mut self, flight: &Arc<Flight>) {
        self.flights
            .retain(|_, place| !matches!(place, Place::Loading { flight: there, .. } if Arc::ptr_eq(there, flight)));
    }

    /// The key is not to be loaded again before `until`. Returns what had to be forgotten for that.
    pub(crate) fn remember(
        &mut self,
        key: K,
        error: CacheError,
        until: Option<Instant>,
        generation: u32,
    ) -> Detached<K> {
        let mut detached = Detached::default();
        if self.failures >= FAILURES {
            // The lock is only held for a short while: every other one, so that this is seldom needed.
            let mut other = false;
            let go = self.flights.extract_if(|_, place| {
                other = !other;
                other && matches!(place, Place::Failed { .. })
            });
            for (key, place) in go {
                self.failures -= 1;
                detached.keys.push(key);
                detached.places.push(place);
            }
        }
        self.failures += 1;
        detached.places.extend(self.flights.insert(key, Place::Failed { error, until, generation }));
        detached
    }
}

/// What was taken out under a lock, to be dropped when it has been released: keys and errors are the user's.
pub(crate) struct Detached<K> {
    keys: Vec<K>,
    places: Vec<Place>,
}

impl<K> Default for Detached<K> {
    fn default() -> Self {
        Self { keys: Vec::new(), places: Vec::new() }
    }
}

impl Flight {
    fn new(generation: u32, instead_of: Option<Arc<Flight>>) -> Self {
        Self {
            generation: AtomicU32::new(generation),
            waiting: AtomicUsize::new(0),
            abandoned: AtomicBool::new(false),
            behind: AtomicBool::new(false),
            told: AtomicBool::new(false),
            instead_of,
        }
    }

    /// What it is as of.
    pub(crate) fn generation(&self) -> u32 {
        self.generation.load(Ordering::Relaxed)
    }

    /// Whether it may still reach the store.
    pub(crate) fn is_told(&self) -> bool {
        self.told.load(Ordering::Relaxed)
    }

    /// Whether its leader was given up, and its thread replaced if it was one of the cache's.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.abandoned.load(Ordering::Relaxed)
    }

    fn is_or_follows(self: &Arc<Self>, other: &Arc<Flight>) -> bool {
        let mut one = Some(self);
        while let Some(flight) = one {
            if Arc::ptr_eq(flight, other) {
                return true;
            }
            one = flight.instead_of.as_ref();
        }
        false
    }
}

/// Gives those who wait for the flight what there is for those who joined in a generation.
pub(crate) fn answer<K, V>(
    shard: &mut Locked<'_, Shard<K, V>>,
    flight: &Arc<Flight>,
    landing: impl Fn(u32) -> Landing<V>,
) {
    shard.serve(
        |shard| &mut shard.waiters,
        |_, waiter, _| {
            let theirs = Arc::ptr_eq(&waiter.tag.flight, flight);
            if theirs { Serve::Grant(landing(waiter.tag.generation)) } else { Serve::Skip }
        },
    );
}

/// When a call gives up.
#[derive(Clone, Copy)]
struct Patience {
    hard: Option<Instant>,
    soft: Option<Instant>,
}

impl Patience {
    fn new<K>(call: &Call<'_, K>, now: Instant) -> Self {
        let hard = call.deadline.or_else(|| now.checked_add(call.timeout));
        Self { hard, soft: call.soft.and_then(|soft| now.checked_add(soft)) }
    }
}

/// Four for each core, so that two threads seldom meet in one.
fn shard_count() -> usize {
    if cfg!(fullbore_loom) {
        return 1;
    }
    (4 * std::thread::available_parallelism().map_or(1, usize::from)).next_power_of_two()
}
