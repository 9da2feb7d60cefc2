//! Where the two tiers meet: what a call does with the second one, and what is heard from it.
//!
//! - **J1** Memory only takes over from Redis what a `GET` brought, under the flight of its key: whatever is told of the key meanwhile takes
//!   the flight away, and with it the right to be remembered. What this process has loaded or put into Redis itself is read back
//!   from there at the next look: the push that tells of it cannot be told from one that tells of a removal after it.
//! - **J2** An invalidation goes to Redis first, then to memory: a call that begins after it finds the value in neither.
//! - **J3** While Redis cannot be asked, or does not tell of changes, values are loaded here and remembered for the outage TTL only; all that is
//!   in memory is forgotten when it is lost, and again when it is back.
//! - **J4** What could not be removed from Redis is owed: a thread removes it as soon as that is possible, and until then nothing from there
//!   is believed.

use std::collections::HashMap;
use std::hash::Hash;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use fullbore_core::{
    BuildError, Clock, Crew, Event, Events, Failure, Monitor, OnDrop, WaitFor, Waiters, contain, earlier,
};
use fullbore_metrics::{Counter, Outcome};

use crate::claim::{Claim, Keep};
use crate::entry::{Entry, Kept};
use crate::error::CacheError;
use crate::flight::{Call, Entered};
use crate::load::{LoadCtx, Says};
use crate::many::Missing;
use crate::redis::testing::{Completed, Lease, Looked, Need, Sought, Stored, Tier, Told};
use crate::redis::{Codec, RedisKey, RedisTier, TierError, TierStats, Writes};
use crate::shared::{Loaded, Service, Shared, previous};
use crate::store::Held;
use crate::world::{Age, Tag};

/// A key, the right to put it into Redis, and what was loaded.
pub(crate) type LoadedOne<'a, K, V> = (&'a K, Option<Lease>, &'a Arc<Entry<V>>);

/// What is owed of removals at most; beyond that all that is below the prefix is removed.
const OWED: usize = 10_000;

/// The second tier, for whatever types of keys and values.
pub(crate) trait Remote<K, V>: Send + Sync {
    fn look(&self, key: &K, until: Option<Instant>) -> Result<Option<Looked<V>>, TierError>;
    fn seek(&self, key: &K, until: Option<Instant>, need: Need) -> Result<Sought<V>, TierError>;
    fn seek_many(&self, keys: &[K], until: Option<Instant>) -> Vec<Result<Sought<V>, TierError>>;
    fn complete(&self, lease: Lease, stored: &Stored<V>) -> Result<Completed, TierError>;
    fn complete_many(&self, loads: Vec<(Lease, &Stored<V>)>) -> Vec<Result<Completed, TierError>>;
    fn abandon(&self, lease: Lease);
    fn put(&self, key: &K, stored: &Stored<V>) -> Result<(), TierError>;
    fn remove(&self, key: &K) -> Result<bool, TierError>;
    fn remove_tag(&self, tag: &str) -> Result<(), TierError>;
    fn clear(&self) -> Result<(), TierError>;
    fn is_up(&self) -> bool;
    fn stats(&self) -> TierStats;
    fn close_within(&self, limit: Duration) -> Vec<String>;
}

impl<K, V> Remote<K, V> for Tier<K, V>
where
    K: RedisKey + 'static,
    V: Send + Sync + 'static,
{
    fn look(&self, key: &K, until: Option<Instant>) -> Result<Option<Looked<V>>, TierError> {
        self.get(key, until)
    }

    fn seek(&self, key: &K, until: Option<Instant>, need: Need) -> Result<Sought<V>, TierError> {
        self.get_or_lease(key, until, need)
    }

    fn seek_many(&self, keys: &[K], until: Option<Instant>) -> Vec<Result<Sought<V>, TierError>> {
        self.lease_many(keys, until)
    }

    fn complete(&self, lease: Lease, stored: &Stored<V>) -> Result<Completed, TierError> {
        Tier::complete(self, lease, stored)
    }

    fn complete_many(&self, loads: Vec<(Lease, &Stored<V>)>) -> Vec<Result<Completed, TierError>> {
        Tier::complete_many(self, loads)
    }

    fn abandon(&self, lease: Lease) {
        Tier::abandon(self, lease);
    }

    fn put(&self, key: &K, stored: &Stored<V>) -> Result<(), TierError> {
        Tier::put(self, key, stored)
    }

    fn remove(&self, key: &K) -> Result<bool, TierError> {
        Tier::remove(self, key)
    }

    fn remove_tag(&self, tag: &str) -> Result<(), TierError> {
        Tier::remove_tag(self, tag)
    }

    fn clear(&self) -> Result<(), TierError> {
        Tier::clear(self)
    }

    fn is_up(&self) -> bool {
        Tier::is_up(self)
    }

    fn stats(&self) -> TierStats {
        Tier::stats(self)
    }

    fn close_within(&self, limit: Duration) -> Vec<String> {
        Tier::close_within(self, limit)
    }
}

/// What could not be removed from Redis. While there is something nothing from there is believed.
struct Owed<K> {
    /// Each with when it was noted, in notes: what is noted again while it is paid stays owed.
    keys: HashMap<K, u64>,
    tags: HashMap<Arc<str>, u64>,
    all: Option<u64>,
    notes: u64,
    /// A thread is there that pays.
    payer: bool,
    closed: bool,
    more: Waiters,
}

impl<K> Owed<K> {
    fn is_empty(&self) -> bool {
        self.all.is_none() && self.keys.is_empty() && self.tags.is_empty()
    }

    fn len(&self) -> usize {
        self.keys.len() + self.tags.len() + usize::from(self.all.is_some())
    }
}

/// The second tier of a cache.
pub(crate) struct Second<K, V> {
    pub(crate) remote: Arc<dyn Remote<K, V>>,
    listener: Arc<Listener<K, V>>,
    outage_ttl: Duration,
    /// Writes are on their way for a while.
    in_background: bool,
    owed: Arc<Monitor<Owed<K>>>,
    /// The thread that pays, if one is needed.
    crew: Crew,
    events: Arc<Events>,
    /// Values that were remembered although Redis could not be asked.
    pub(crate) outage_loads: Counter,
}

impl<K, V> Second<K, V>
where
    K: RedisKey + Hash + Eq + Clone + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    pub(crate) fn connect<C: Codec<V>>(name: &str, tier: RedisTier<C>) -> Result<Self, BuildError> {
        let settings = tier.settings();
        let (outage_ttl, in_background) = (settings.outage_ttl, settings.writes != Writes::Foreground);
        let listener = Arc::new(Listener { shared: OnceLock::new() });
        let remote = Arc::new(tier.connect::<K, V>(name, Arc::clone(&listener) as Arc<dyn Told<K>>)?);
        let owed = Owed {
            keys: HashMap::new(),
            tags: HashMap::new(),
            all: None,
            notes: 0,
            payer: false,
            closed: false,
            more: Waiters::of(WaitFor::Background),
        };
        let owed = Arc::new(Monitor::new(owed, Clock::Real));
        let crew = Crew::new("cache", &format!("{name}-payer"), Clock::Real);
        let events = Arc::new(Events::new("cache", name));
        Ok(Self { remote, listener, outage_ttl, in_background, owed, crew, events, outage_loads: Counter::new() })
    }
}

impl<K, V> Second<K, V>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Send + Sync + 'static,
{
    /// From now on it hears of changes. What was told before was of no interest to an empty cache.
    pub(crate) fn attach(&self, shared: &Arc<Shared<K, V>>) {
        // Only its builder does, once.
        let _ = self.listener.shared.set(Arc::downgrade(shared));
    }

    fn owe_key(&self, key: &K) {
        let key = key.clone();
        self.owe(|owed| {
            if owed.keys.len() >= OWED {
                owed.all = Some(owed.notes);
            } else {
                owed.keys.insert(key, owed.notes);
            }
        });
    }

    fn owe_tag(&self, tag: &str) {
        self.owe(|owed| {
            if owed.tags.len() >= OWED {
                owed.all = Some(owed.notes);
            } else {
                owed.tags.insert(tag.into(), owed.notes);
            }
        });
    }

    fn owe_all(&self) {
        self.owe(|owed| owed.all = Some(owed.notes));
    }

    fn owe(&self, note: impl FnOnce(&mut Owed<K>)) {
        let begin = {
            let mut owed = self.owed.lock();
            owed.notes += 1;
            note(&mut owed);
            !owed.closed && !std::mem::replace(&mut owed.payer, true)
        };
        if begin {
            let (owed, remote) = (Arc::clone(&self.owed), Arc::downgrade(&self.remote));
            let events = Arc::clone(&self.events);
            if let Err(error) = self.crew.spawn(move || pay(&owed, &remote, &events)) {
                self.owed.lock().payer = false;
                self.events.emit(Event::Abandoned, || format!("no thread for what is owed to Redis: {error}"));
            }
        }
    }

    /// Whether what Redis says can be believed (J4).
    pub(crate) fn is_trusted(&self) -> bool {
        self.owed.lock().is_empty()
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.owed.lock().closed
    }

    /// Pays what can be paid, and ends the threads; returns those that have not ended.
    pub(crate) fn close_within(&self, limit: Duration, events: &Events) -> Vec<String> {
        let until = Instant::now().checked_add(limit);
        let left = {
            let mut owed = self.owed.lock();
            owed.closed = true;
            owed.notify_all(|owed| &mut owed.more);
            // The thread looks once more.
            owed.wait_until(|owed| &mut owed.more, until, |owed| !owed.payer);
            owed.len()
        };
        if left > 0 {
            events.emit(Event::Abandoned, || format!("{left} removals have not reached Redis"));
        }
        let mut threads = self.crew.join(until);
        let limit = until.map_or(Duration::MAX, |until| until.saturating_duration_since(Instant::now()));
        threads.extend(self.remote.close_within(limit));
        threads
    }
}

/// How often it is tried to pay.
const TRY_AGAIN: Duration = Duration::from_secs(1);

/// Removes what is owed, as soon as Redis can be asked; until nothing is owed, or the cache is gone.
fn pay<K, V>(owed: &Monitor<Owed<K>>, remote: &Weak<dyn Remote<K, V>>, events: &Events)
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Send + Sync + 'static,
{
    loop {
        let closing = owed.lock().closed;
        if let Some(remote) = remote.upgrade().filter(|remote| remote.is_up()) {
            // A key's code may panic; then that one is not paid, and not tried again.
            if let Err(failure) = contain(|| pay_once(owed, &*remote)) {
                events.emit(Event::Panic, || format!("a key {failure}"));
                let mut owed = owed.lock();
                owed.keys = HashMap::new();
                owed.all = Some(owed.notes);
            }
        }
        let mut owed = owed.lock();
        if owed.is_empty() || closing || remote.strong_count() == 0 {
            owed.payer = false;
            owed.notify_all(|owed| &mut owed.more);
            return;
        }
        let again = Instant::now() + TRY_AGAIN;
        owed.wait_until(|owed| &mut owed.more, Some(again), |owed| owed.closed);
    }
}

/// Until Redis cannot be asked. What it refuses for good is not owed any more: its caller was told.
fn pay_once<K, V>(owed: &Monitor<Owed<K>>, remote: &dyn Remote<K, V>)
where
    K: Hash + Eq + Clone,
{
    let (keys, tags, all, noted) = {
        let owed = owed.lock();
        let tags: Vec<Arc<str>> = owed.tags.keys().cloned().collect();
        (owed.keys.keys().cloned().collect::<Vec<K>>(), tags, owed.all, owed.notes)
    };
    let failed = |error: TierError| error.is_unavailable();
    if all.is_some() {
        if !remote.clear().is_err_and(failed) {
            let mut owed = owed.lock();
            owed.all = owed.all.filter(|at| *at > noted);
            owed.keys.retain(|_, at| *at > noted);
            owed.tags.retain(|_, at| *at > noted);
        }
        return;
    }
    for key in keys {
        if remote.remove(&key).is_err_and(failed) {
            return;
        }
        let mut owed = owed.lock();
        if owed.keys.get(&key).is_some_and(|at| *at <= noted) {
            owed.keys.remove(&key);
        }
    }
    for tag in tags {
        if remote.remove_tag(&tag).is_err_and(failed) {
            return;
        }
        let mut owed = owed.lock();
        if owed.tags.get(&tag).is_some_and(|at| *at <= noted) {
            owed.tags.remove(&tag);
        }
    }
}

impl<K, V> Drop for Second<K, V> {
    fn drop(&mut self) {
        {
            let mut owed = self.owed.lock();
            owed.closed = true;
            owed.notify_all(|owed| &mut owed.more);
        }
        self.crew.join(Clock::Real.after(OnDrop::default().budget()));
    }
}

/// What tells the cache of changes in Redis. Made before the cache is.
struct Listener<K, V> {
    shared: OnceLock<Weak<Shared<K, V>>>,
}

impl<K, V> Listener<K, V>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    fn with(&self, hear: impl FnOnce(&Shared<K, V>)) {
        // Before it is attached there is nothing in memory.
        if let Some(shared) = self.shared.get().and_then(Weak::upgrade) {
            let _burial = shared.burial();
            hear(&shared);
        }
    }
}

impl<K, V> Told<K> for Listener<K, V>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    fn invalidated(&self, key: &K) {
        self.with(|shared| shared.table.told(key));
    }

    fn tag_changed(&self, tag: &str) {
        self.with(|shared| shared.table.remove_tag(tag));
    }

    fn flushed(&self) {
        self.with(|shared| shared.table.clear());
    }

    fn lost(&self) {
        self.with(|shared| shared.table.clear());
    }

    fn regained(&self) {
        self.with(|shared| shared.table.clear());
    }
}

impl<K, V> Shared<K, V>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// A load, for which Redis is asked first: it may be there, or somebody else may be loading it.
    pub(crate) fn load_joined(
        &self,
        second: &Second<K, V>,
        claim: Claim<'_, K, V>,
        old: Option<(Held<V>, Kept)>,
        deadline: Option<Instant>,
        load: impl FnOnce(&mut LoadCtx) -> Result<V, Failure>,
    ) -> Result<Loaded<V>, CacheError> {
        self.station.arrived(1);
        let service = Service::begin(&self.station, Some(Instant::now()));
        let need = match &old {
            Some((_, kept)) if self.table.world.age_of(kept) != Age::Stale => Need::Longer(self.fresh_left(kept)),
            _ => Need::Fresh,
        };
        let until = earlier(deadline, self.clock.after(self.config.load_timeout)).and_then(|until| self.real(until));
        let sought = second.is_trusted().then(|| second.remote.seek(claim.key(), until, need));
        let lease = match sought.unwrap_or(Err(TierError::LinkDown)) {
            Ok(Sought::Value(stored)) => {
                let value = stored.value.clone();
                let (entry, keep) = self.take_over(second, claim.key(), stored);
                // If something was told of meanwhile it is read again at the next look.
                claim.land(&entry, keep);
                service.end(Outcome::Served);
                return Ok(Loaded::New(value));
            }
            Ok(Sought::Lead(lease)) => Some(lease),
            Ok(Sought::Busy) | Err(TierError::WaitedInVain) => {
                return self.waited_for_another(claim, old, service);
            }
            Err(error) if error.is_timeout() && until.is_some_and(|until| until <= Instant::now()) => {
                return self.waited_for_another(claim, old, service);
            }
            Err(_) if second.is_closed() => {
                claim.give_up();
                return Err(CacheError::Closed);
            }
            Err(error) => {
                self.tell_if_oversized(&error);
                None
            }
        };
        self.tally.loads.inc();
        let begun = self.clock.now();
        let mut ctx = LoadCtx::new(deadline, old.as_ref().map(previous));
        let loaded = catch_unwind(AssertUnwindSafe(|| {
            let value = load(&mut ctx)?;
            let took = self.clock.now().saturating_duration_since(begun);
            let entry = Entry::new(value.clone(), &self.grave);
            let says = std::mem::take(&mut ctx.says);
            let stored = self.stored(says.clone(), took, &entry);
            Ok::<_, Failure>((value, entry, stored, says, took))
        }));
        match loaded {
            Ok(Ok((value, entry, stored, says, took))) => {
                let led = lease.is_some();
                let (keep, valid) = self.to_remote(second, claim.key(), lease, stored, &entry, says, took);
                // Redis has the last word, where it has one: what takes the flight away may be the push of its own lease.
                let here = claim.land_for(&entry, keep, valid);
                if !valid || (!led && !here) {
                    self.tally.invalidated_loads.inc();
                }
                service.end(Outcome::Served);
                Ok(Loaded::New(value))
            }
            Ok(Err(failure)) => {
                self.tally.load_failures.inc();
                let error = CacheError::Load(failure);
                if let Some(lease) = lease {
                    second.remote.abandon(lease);
                }
                let old = old.or_else(|| self.stale_of_remote(second, claim.key()));
                let stand_in = self.failed(claim, &error, old, &ctx.says);
                service.end(if stand_in.is_some() { Outcome::Served } else { Outcome::Failed });
                stand_in.map_or(Err(error), |entry| Ok(Loaded::Old(entry)))
            }
            Err(payload) => {
                self.tally.load_failures.inc();
                let failure = Failure::panicked(&*payload);
                self.events.emit(Event::Panic, || format!("a load {failure}"));
                if let Some(lease) = lease {
                    second.remote.abandon(lease);
                }
                self.failed(claim, &CacheError::Load(failure), old, &ctx.says);
                service.end(Outcome::Failed);
                resume_unwind(payload)
            }
        }
    }

    /// Another process has not loaded it in time.
    fn waited_for_another(
        &self,
        claim: Claim<'_, K, V>,
        old: Option<(Held<V>, Kept)>,
        service: Service<'_>,
    ) -> Result<Loaded<V>, CacheError> {
        claim.give_up();
        match old.filter(|(_, kept)| self.table.world.age_of(kept) != Age::Dead) {
            Some((held, _)) => {
                service.end(Outcome::Served);
                Ok(Loaded::Old(held.into_entry(&self.grave)))
            }
            None => {
                self.tally.wait_timeouts.inc();
                Err(self.timed_out(None, 0))
            }
        }
    }

    /// Puts what was loaded into Redis; says what is left for memory, and whether the load was still valid there.
    #[expect(clippy::too_many_arguments, reason = "what a load left")]
    fn to_remote(
        &self,
        second: &Second<K, V>,
        key: &K,
        lease: Option<Lease>,
        stored: Option<Stored<V>>,
        entry: &Arc<Entry<V>>,
        says: Says,
        took: Duration,
    ) -> (Keep<V>, bool) {
        let tags = self.table.world.tags(says.tags.clone().unwrap_or_default());
        let (Some(lease), Some(stored)) = (lease, stored) else {
            // Not to be kept, or nobody to be asked. A lease goes back by itself.
            return (self.keep_in_outage(second, key, entry, says, took), true);
        };
        let completed = second.remote.complete(lease, &stored);
        self.completed(second, key, completed, tags, entry, says, took)
    }

    /// What is left for memory, and whether the load was still valid, where Redis was to have the value.
    #[expect(clippy::too_many_arguments, reason = "what a load left")]
    fn completed(
        &self,
        second: &Second<K, V>,
        key: &K,
        completed: Result<Completed, TierError>,
        tags: Box<[Arc<Tag>]>,
        entry: &Arc<Entry<V>>,
        says: Says,
        took: Duration,
    ) -> (Keep<V>, bool) {
        match completed {
            // J1.
            Ok(Completed::Stored) => (Keep::Nothing(tags), true),
            Ok(Completed::Revoked) => (Keep::Nothing(tags), false),
            Err(error) => {
                self.tell_if_oversized(&error);
                (self.keep_in_outage(second, key, entry, says, took), true)
            }
        }
    }

    /// Asks Redis for what a call for many keys misses: those that are there are landed, those that another process loads are left for
    /// later, unless the call waits for them; the others are returned, to be loaded.
    pub(crate) fn ask_for_many<'a>(
        &self,
        second: &Second<K, V>,
        missing: Vec<Missing<'a, K, V>>,
        wait_until: Option<Option<Instant>>,
        values: &mut [Option<V>],
        busy: &mut Vec<usize>,
    ) -> Result<Vec<Missing<'a, K, V>>, CacheError> {
        if missing.is_empty() {
            return Ok(missing);
        }
        let keys: Vec<K> = missing.iter().map(|missing| missing.claim.key().clone()).collect();
        let sought = if !second.is_trusted() {
            keys.iter().map(|_| Err(TierError::LinkDown)).collect()
        } else if let Some(until) = wait_until {
            let until = until.and_then(|until| self.real(until));
            keys.iter().map(|key| second.remote.seek(key, until, Need::Fresh)).collect()
        } else {
            second.remote.seek_many(&keys, None)
        };
        let mut open = Vec::new();
        let mut in_vain = false;
        for (mut missing, sought) in missing.into_iter().zip(sought) {
            match sought {
                Ok(Sought::Value(stored)) if !stored.is_stale() => {
                    let value = stored.value.clone();
                    let (entry, keep) = self.take_over(second, missing.claim.key(), stored);
                    missing.claim.land(&entry, keep);
                    self.station.arrived(1);
                    values[missing.at] = Some(self.served(|| value));
                }
                Ok(Sought::Lead(lease)) => {
                    missing.lease = Some(lease);
                    open.push(missing);
                }
                // A stale one would do for `seek_many`, and not for the caller: as one that is being loaded.
                Ok(Sought::Busy | Sought::Value(_)) if wait_until.is_none() => {
                    missing.claim.give_up();
                    busy.push(missing.at);
                }
                Ok(Sought::Busy | Sought::Value(_)) | Err(TierError::WaitedInVain) => {
                    missing.claim.give_up();
                    in_vain = true;
                }
                Err(error) => {
                    self.tell_if_oversized(&error);
                    open.push(missing);
                }
            }
        }
        if in_vain {
            for missing in open {
                self.give_up_many(second, missing);
            }
            self.tally.wait_timeouts.inc();
            return Err(self.timed_out(None, 0));
        }
        Ok(open)
    }

    fn give_up_many(&self, second: &Second<K, V>, missing: Missing<'_, K, V>) {
        if let Some(lease) = missing.lease {
            second.remote.abandon(lease);
        }
        missing.claim.give_up();
    }

    /// Puts what was loaded for many keys into Redis, in one go; says for each what is left for memory, and whether it was valid.
    pub(crate) fn complete_many(
        &self,
        second: &Second<K, V>,
        loaded: Vec<LoadedOne<'_, K, V>>,
        says: &Says,
        took: Duration,
    ) -> Vec<(Keep<V>, bool)> {
        let stored: Vec<Option<Stored<V>>> =
            loaded.iter().map(|(_, _, entry)| self.stored(says.clone(), took, entry)).collect();
        let mut leases = Vec::new();
        let mut of = Vec::with_capacity(loaded.len());
        let mut rest = Vec::with_capacity(loaded.len());
        for ((key, lease, entry), stored) in loaded.into_iter().zip(&stored) {
            rest.push((key, entry));
            match (lease, stored) {
                (Some(lease), Some(stored)) => {
                    of.push(Some(leases.len()));
                    leases.push((lease, stored));
                }
                // A lease goes back by itself.
                _ => of.push(None),
            }
        }
        let mut completed: Vec<Option<Result<Completed, TierError>>> =
            second.remote.complete_many(leases).into_iter().map(Some).collect();
        let keep = |((key, entry), of): ((&K, &Arc<Entry<V>>), Option<usize>)| {
            let tags = self.table.world.tags(says.tags.clone().unwrap_or_default());
            match of.and_then(|of| completed.get_mut(of)?.take()) {
                Some(completed) => self.completed(second, key, completed, tags, entry, says.clone(), took),
                None => (self.keep_in_outage(second, key, entry, says.clone(), took), true),
            }
        };
        rest.into_iter().zip(of).map(keep).collect()
    }

    /// For the outage TTL at most (J3).
    fn keep_in_outage(
        &self,
        second: &Second<K, V>,
        key: &K,
        entry: &Arc<Entry<V>>,
        mut says: Says,
        took: Duration,
    ) -> Keep<V> {
        if !says.no_store {
            second.outage_loads.inc();
        }
        self.life.cap(&mut says, second.outage_ttl);
        self.keep(key, entry, says, took)
    }

    /// A value as Redis is to have it; `None` if it is not to be kept.
    pub(crate) fn stored(&self, says: Says, took: Duration, entry: &Arc<Entry<V>>) -> Option<Stored<V>> {
        let (fresh, keep) = self.life.times(&says)?;
        Some(Stored {
            value: entry.value().clone(),
            fresh,
            keep,
            tags: says.tags.unwrap_or_default(),
            negative: says.negative,
            took,
            etag: says.etag.map(|etag| (*etag).into()),
        })
    }

    /// A value that came from Redis, as memory is to have it.
    fn take_over(&self, second: &Second<K, V>, key: &K, stored: Stored<V>) -> (Arc<Entry<V>>, Keep<V>) {
        let Stored { value, fresh, keep, tags, negative, took, etag } = stored;
        let mut says = Says {
            ttl: Some(fresh.unwrap_or(Duration::MAX)),
            stale_for: Some(keep.map_or(Duration::MAX, |keep| keep.saturating_sub(fresh.unwrap_or(keep)))),
            negative,
            is_exact: true,
            tags: Some(tags),
            etag: etag.map(Arc::from),
            ..Says::default()
        };
        if !second.remote.is_up() {
            self.life.cap(&mut says, second.outage_ttl);
        }
        let entry = Entry::new(value, &self.grave);
        let keep = self.keep(key, &entry, says, took);
        (entry, keep)
    }

    /// What stands in for a value that could not be loaded, and was not in memory.
    fn stale_of_remote(&self, second: &Second<K, V>, key: &K) -> Option<(Held<V>, Kept)> {
        // What was removed here, and is still there, does not stand in for anything.
        let stored = second.is_trusted().then(|| second.remote.look(key, None).ok())???.stored;
        let fresh = Some(stored.keep.unwrap_or(Duration::MAX));
        match self.take_over(second, key, Stored { fresh, ..stored }) {
            (_, Keep::Entry(held, kept)) => Some((held, Kept { generation: self.table.world.generation(), ..kept })),
            (_, Keep::Nothing(_)) => None,
        }
    }

    /// A look into Redis for a call that does not load. Where somebody loads the key, what is found is not remembered.
    pub(crate) fn get_joined(&self, second: &Second<K, V>, key: &K) -> Option<V> {
        let call =
            Call { timeout: Duration::ZERO, deadline: None, soft: None, no_wait: true, look: true, behind: None };
        let claim = match self.table.enter(key, &call, || {}) {
            Entered::Hit(held) => {
                self.tally.hits.inc();
                return Some(held.into_value());
            }
            Entered::Lead(claim, _) => Some(claim),
            _ => None,
        };
        self.tally.misses.inc();
        let found = if second.is_trusted() { second.remote.look(key, None).ok().flatten() } else { None };
        let found = found.map(|looked| looked.stored).filter(|stored| !stored.is_stale());
        match (found, claim) {
            (Some(stored), Some(claim)) => {
                let value = stored.value.clone();
                let (entry, keep) = self.take_over(second, key, stored);
                claim.land(&entry, keep);
                Some(value)
            }
            (found, claim) => {
                if let Some(claim) = claim {
                    claim.give_up();
                }
                found.map(|stored| stored.value)
            }
        }
    }

    /// An insertion: into Redis, to be read back from there (J1).
    pub(crate) fn put_joined(
        &self,
        second: &Second<K, V>,
        key: K,
        value: V,
        mut says: Says,
        above: Option<u64>,
    ) -> bool {
        let entry = Entry::new(value, &self.grave);
        let Some(stored) = self.stored(says.clone(), Duration::ZERO, &entry) else {
            drop(self.remove_joined(second, &key));
            return true;
        };
        if above.is_some_and(|version| self.table.look(&key).is_some_and(|(_, kept, _)| kept.version() >= version)) {
            return false;
        }
        let there = match second.remote.put(&key, &stored) {
            Ok(()) => !second.in_background,
            Err(error) => {
                self.tell(&error);
                // What is there is older, where something is.
                let gone = error.is_unavailable().then_some(()).ok_or(error);
                match gone {
                    Ok(()) => second.owe_key(&key),
                    Err(TierError::KeyTooLarge { .. }) => {}
                    Err(_) => drop(self.remove_joined(second, &key)),
                }
                false
            }
        };
        if there {
            drop(self.table.remove(&key));
            return true;
        }
        self.life.cap(&mut says, second.outage_ttl);
        self.put_here(key, &entry, says)
    }

    /// Removes it everywhere (J2).
    pub(crate) fn remove_joined(&self, second: &Second<K, V>, key: &K) -> (Option<Held<V>>, Result<(), TierError>) {
        let told = second.remote.remove(key).map(|_| ());
        if let Err(error) = &told {
            self.tell(error);
            if error.is_unavailable() {
                second.owe_key(key);
            }
        }
        (self.table.remove(key), told)
    }

    pub(crate) fn remove_tag_joined(&self, second: &Second<K, V>, tag: &str) -> Result<(), TierError> {
        let told = second.remote.remove_tag(tag);
        if let Err(error) = &told {
            self.tell(error);
            if error.is_unavailable() {
                second.owe_tag(tag);
            }
        }
        self.table.remove_tag(tag);
        told
    }

    pub(crate) fn clear_joined(&self, second: &Second<K, V>) -> Result<(), TierError> {
        let told = second.remote.clear();
        if let Err(error) = &told {
            self.tell(error);
            if error.is_unavailable() {
                second.owe_all();
            }
        }
        self.table.clear();
        told
    }

    fn tell(&self, error: &TierError) {
        self.events.emit(Event::Drop, || format!("a change did not reach Redis: {error}"));
    }

    /// These are not the server's fault and do not go away.
    fn tell_if_oversized(&self, error: &TierError) {
        if error.is_oversized() {
            self.events.emit(Event::Drop, || format!("not kept in Redis: {error}"));
        }
    }

    /// An instant of the cache's clock on the one that Redis is asked by.
    fn real(&self, until: Instant) -> Option<Instant> {
        Instant::now().checked_add(until.saturating_duration_since(self.clock.now()))
    }
}
