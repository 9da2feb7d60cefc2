//! The tier of one cache: its keys and values in Redis.

use std::collections::HashMap;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fullbore_core::Event;
use redis::{Cmd, Value, cmd};

use crate::redis::background::Background;
use crate::redis::codec::Codec;
use crate::redis::core::{Age, Claimed, Core, Expect, Lease, Seen, When, bytes_of};
use crate::redis::error::TierError;
use crate::redis::frame::{self, CHECKSUM, FAR, Facts, Frame, MAX_TEXT, Moment, Slot, Unwritable, millis};
use crate::redis::key::RedisKey;
use crate::redis::link::{Heard, Interest, Woken};
use crate::redis::tags::Tags;
use crate::redis::wire::Purse;

/// How often a process that waits asks whether the one it waits for still lives.
const LOOK_AFTER_OWNER: Duration = Duration::from_secs(1);

/// Who is told of changes in Redis. Called on the link's thread, under no lock; a panic is an event and nothing more. It must be
/// quick, and must not wait for a key: who else would tell of that?
///
/// A process is told of what it does itself as well: a lease that it gets, a value that it stores.
pub trait Told<K>: Send + Sync + 'static {
    /// The key was written, removed, evicted or has expired, by anybody.
    fn invalidated(&self, key: &K);
    /// The tag was removed, or was evicted.
    fn tag_changed(&self, tag: &str);
    /// The whole database was emptied.
    fn flushed(&self);
    /// Changes are not told of any more: nothing that is remembered can be trusted.
    fn lost(&self);
    /// Changes are told of from now on.
    fn regained(&self);
}

/// A value with what is said of it. Times count from when it is written, or, where it was read, from now.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored<V> {
    /// The value.
    pub value: V,
    /// How long it is fresh; `None`: as long as it is kept.
    pub fresh: Option<Duration>,
    /// How long it is kept, stale time included; `None`: no end.
    pub keep: Option<Duration>,
    /// What it can be removed by beside its key.
    pub tags: Vec<Arc<str>>,
    /// Whether it says that there is none.
    pub negative: bool,
    /// How long it took to load.
    pub took: Duration,
    /// What its source calls this version.
    pub etag: Option<Box<str>>,
}

impl<V> Stored<V> {
    /// A value without an end and without more to be said of it.
    pub fn new(value: V) -> Self {
        Self { value, fresh: None, keep: None, tags: Vec::new(), negative: false, took: Duration::ZERO, etag: None }
    }

    /// Whether it may be used only where nothing better is to be had.
    pub fn is_stale(&self) -> bool {
        self.fresh == Some(Duration::ZERO)
    }
}

/// What a look at Redis found.
#[derive(Debug)]
pub struct Looked<V> {
    /// The value.
    pub stored: Stored<V>,
    /// Whether somebody is loading another one in its place.
    pub refreshing: bool,
}

/// Which values [`Tier::get_or_lease`] is content with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// A stale one will do.
    Any,
    /// Only a fresh one will do.
    Fresh,
    /// Only one that is fresh for longer than this: what is there is to be loaded again before it expires.
    Longer(Duration),
}

impl Need {
    fn is_met<V>(self, stored: &Stored<V>) -> bool {
        match self {
            Need::Any => true,
            Need::Fresh => !stored.is_stale(),
            // Ages are known to two round trips.
            Need::Longer(than) => stored.fresh.is_some_and(|fresh| fresh > than + Duration::from_millis(100)),
        }
    }
}

/// What there is for a key.
#[derive(Debug)]
pub enum Sought<V> {
    /// The value.
    Value(Stored<V>),
    /// None, and the caller is to load it, for all processes.
    Lead(Lease),
    /// None, and somebody else is loading it. Only where the caller does not wait.
    Busy,
}

/// What became of a load's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Completed {
    /// It is in Redis.
    Stored,
    /// The key or one of the tags was removed meanwhile, or the lease was lost: it is not.
    Revoked,
}

/// What hears the link, and passes it on to the cache with its own type of keys.
pub(crate) struct Ears<K> {
    pub(crate) told: Arc<dyn Told<K>>,
    pub(crate) tags: Arc<Tags>,
    pub(crate) background: Option<Arc<Background>>,
    pub(crate) strangers: fullbore_metrics::Counter,
}

impl<K: RedisKey + 'static> Heard for Ears<K> {
    fn key(&self, encoded: &[u8]) {
        if let Some(background) = &self.background {
            background.changed(encoded);
        }
        match K::decode(encoded) {
            Some(key) => self.told.invalidated(&key),
            None => self.strangers.inc(),
        }
    }

    fn tag(&self, tag: &str) {
        self.tags.changed(tag);
        self.told.tag_changed(tag);
    }

    fn flushed(&self) {
        self.tags.forget(true);
        if let Some(background) = &self.background {
            background.all_changed();
        }
        self.told.flushed();
    }

    fn lost(&self) {
        self.tags.forget(false);
        if let Some(background) = &self.background {
            background.all_changed();
        }
        self.told.lost();
    }

    fn regained(&self) {
        self.tags.forget(true);
        self.told.regained();
    }
}

/// The keys and values of one cache in Redis.
pub struct Tier<K, V> {
    pub(crate) core: Arc<Core>,
    pub(crate) codec: Arc<dyn Codec<V>>,
    pub(crate) background: Option<Arc<Background>>,
    pub(crate) strangers: fullbore_metrics::Counter,
    pub(crate) keys: PhantomData<fn(&K)>,
}

/// What was read from a slot.
pub(crate) enum Read<V> {
    Value(Stored<V>, [u8; CHECKSUM]),
    Nothing(Expect),
    Leased { token: Vec<u8>, owner: [u8; 16], stale: Option<Stored<V>> },
}

impl<V> Read<V> {
    pub(crate) fn looked(self) -> Option<Looked<V>> {
        match self {
            Read::Value(stored, _) => Some(Looked { stored, refreshing: false }),
            Read::Leased { stale: Some(stored), .. } => Some(Looked { stored, refreshing: true }),
            Read::Leased { stale: None, .. } | Read::Nothing(_) => None,
        }
    }
}

/// What follows from what was read.
enum Settled<V> {
    Done(Stored<V>),
    Claim(Expect),
    Wait { token: Vec<u8>, owner: [u8; 16] },
}

impl<K, V> Tier<K, V>
where
    K: RedisKey + 'static,
    V: Send + Sync + 'static,
{
    /// The value of `key`, if Redis has one.
    ///
    /// # Errors
    /// Redis could not be asked, or not in time.
    pub fn get(&self, key: &K, until: Option<Instant>) -> Result<Option<Looked<V>>, TierError> {
        let name = self.name(key)?;
        let mut purse = self.core.purse(until);
        let seen = self.core.look(&name, &mut purse)?;
        let looked = self.read(&name, seen, &mut purse)?.looked();
        self.count(looked.is_some());
        Ok(looked)
    }

    pub(crate) fn count(&self, hit: bool) {
        let counts = &self.core.counts;
        if hit { counts.hits.inc() } else { counts.misses.inc() }
    }

    pub(crate) fn name(&self, key: &K) -> Result<Arc<[u8]>, TierError> {
        self.core.space.key(key).inspect_err(|_| self.core.counts.too_large.inc())
    }

    /// What the slot holds. Asks Redis for tags and for the age of the value where those are not known.
    pub(crate) fn read(&self, name: &[u8], seen: Seen, purse: &mut Purse) -> Result<Read<V>, TierError> {
        let Some(bytes) = seen.bytes else { return Ok(Read::Nothing(Expect::Nothing)) };
        let mut when = seen.when;
        let slot = frame::read(&bytes, name);
        let mut numbers = HashMap::new();
        if let Some(frame) = slot.frame() {
            if matches!(Core::age(&frame.facts, &when), Age::Unknown) {
                when = self.core.pttls(&[name], purse)?.pop().unwrap_or(when);
            }
            if !frame.facts.tags.is_empty() {
                numbers = self.core.numbers(&frame.facts.tags, purse)?;
            }
        }
        Ok(self.judge(slot, &bytes, &when, &numbers))
    }

    /// What a slot is, with all that is to be known of it.
    pub(crate) fn judge(
        &self,
        slot: Slot<'_>,
        bytes: &[u8],
        when: &When,
        numbers: &HashMap<Arc<str>, Moment>,
    ) -> Read<V> {
        match slot {
            Slot::Undecodable(why) => {
                self.undecodable(why);
                Read::Nothing(Expect::Same(bytes.to_vec()))
            }
            Slot::Lease { token, owner, stale } => {
                // It is still fresh where it is loaded again before its time.
                let stale = stale.and_then(|stale| self.open(&stale, when, numbers).ok());
                Read::Leased { token: token.to_vec(), owner, stale }
            }
            Slot::Value(frame) => match self.open(&frame, when, numbers) {
                Ok(stored) => Read::Value(stored, frame.checksum),
                // Checked as a whole, so its checksum names it.
                Err(()) => Read::Nothing(Expect::Gone(frame.checksum)),
            },
        }
    }

    fn undecodable(&self, why: &'static str) {
        self.core.counts.undecodable.inc();
        self.core.events.emit(Event::Drop, || format!("a value in Redis is not to be read: {why}"));
    }

    fn open(&self, frame: &Frame<'_>, when: &When, numbers: &HashMap<Arc<str>, Moment>) -> Result<Stored<V>, ()> {
        let facts = &frame.facts;
        let counts = &self.core.counts;
        if !Core::is_valid(facts, numbers) {
            counts.tag_misses.inc();
            return Err(());
        }
        let left = Core::left(facts, &Core::age(facts, when)).ok_or(())?;
        let value = frame.open(&*self.codec, self.core.limits).map_err(|why| self.undecodable(why))?;
        Ok(Stored {
            value,
            fresh: left.fresh,
            keep: left.keep,
            tags: facts.tags.iter().map(|tag| Arc::from(*tag)).collect(),
            negative: facts.negative,
            took: Duration::from_micros(facts.took),
            etag: facts.etag.map(Box::from),
        })
    }

    /// The value of `key`, or the lease to load it. Waits for a process that loads it already. Ends at `until` in any case;
    /// `None`: when that process's load has ended, in whatever way. The time on the way to Redis and back has the budget, and a
    /// new one after a wait.
    ///
    /// # Errors
    /// Redis could not be asked, the link is down while somebody else loads, or he has not come to an end.
    ///
    /// # Deadlock
    /// A thread that holds the lease of a key and asks for the same key waits for itself, until `until`.
    pub fn get_or_lease(&self, key: &K, until: Option<Instant>, need: Need) -> Result<Sought<V>, TierError> {
        self.seek(&self.name(key)?, until, need, true)
    }

    /// The lease to replace a stale value, if nobody else has it; never waits.
    ///
    /// # Errors
    /// Redis could not be asked, or not in time.
    pub fn try_refresh(&self, key: &K) -> Result<Sought<V>, TierError> {
        self.seek(&self.name(key)?, None, Need::Fresh, false)
    }

    fn seek(&self, name: &Arc<[u8]>, until: Option<Instant>, need: Need, wait: bool) -> Result<Sought<V>, TierError> {
        let core = &self.core;
        let mut purse = core.purse(until);
        let seen = core.look(name, &mut purse)?;
        let read = self.read(name, seen, &mut purse)?;
        self.count(matches!(&read, Read::Value(..) | Read::Leased { stale: Some(_), .. }));
        let mut expect = match self.settle(read, need) {
            Settled::Done(stored) => return Ok(Sought::Value(stored)),
            Settled::Claim(expect) => expect,
            Settled::Wait { .. } if !wait => return Ok(Sought::Busy),
            // It may be over by the time somebody listens.
            Settled::Wait { .. } => Expect::Nothing,
        };
        // Before the claim: what happens after that is not missed.
        let mut interest = wait.then(|| core.link.shared.interest(name));
        let mut waited = false;
        loop {
            let read = match core.claim(name, &expect, &mut purse)? {
                Claimed::Led(lease) => {
                    if matches!(expect, Expect::Head(_)) {
                        core.counts.takeovers.inc();
                    }
                    return Ok(Sought::Lead(lease));
                }
                Claimed::Have(seen) => self.read(name, seen, &mut purse)?,
            };
            expect = match (self.settle(read, need), interest.as_mut()) {
                (Settled::Done(stored), _) => return Ok(Sought::Value(stored)),
                (Settled::Claim(expect), _) => expect,
                (Settled::Wait { .. }, None) => return Ok(Sought::Busy),
                (Settled::Wait { token, owner }, Some(interest)) => {
                    if !std::mem::replace(&mut waited, true) {
                        core.counts.waited.inc();
                    }
                    let expect = self.wait(interest, token, &owner, until)?;
                    // The time of the wait was not Redis's.
                    purse = core.purse(until);
                    expect
                }
            };
        }
    }

    /// What to do about what was read.
    fn settle(&self, read: Read<V>, need: Need) -> Settled<V> {
        match read {
            Read::Value(stored, _) if need.is_met(&stored) => Settled::Done(stored),
            Read::Value(_, checksum) => Settled::Claim(Expect::Tail(checksum)),
            Read::Leased { stale: Some(stored), .. } if need.is_met(&stored) => Settled::Done(stored),
            Read::Leased { token, owner, .. } => Settled::Wait { token, owner },
            Read::Nothing(expect) => Settled::Claim(expect),
        }
    }

    /// Waits for the end of somebody's load, and says what to expect then.
    fn wait(
        &self,
        interest: &mut Interest<'_>,
        token: Vec<u8>,
        owner: &[u8; 16],
        until: Option<Instant>,
    ) -> Result<Expect, TierError> {
        loop {
            let look = Instant::now() + LOOK_AFTER_OWNER;
            match interest.wait(Some(until.map_or(look, |until| until.min(look)))) {
                Woken::Told => return Ok(Expect::Nothing),
                Woken::Down => return Err(TierError::LinkDown),
                Woken::TimedOut if until.is_some_and(|until| until <= Instant::now()) => {
                    return Err(TierError::WaitedInVain);
                }
                Woken::TimedOut => {
                    // Who waits has time, Redis has its budget.
                    if !self.core.lives(owner, &mut self.core.purse(None))? {
                        return Ok(Expect::Head(token));
                    }
                }
            }
        }
    }

    /// Puts the value of a load into Redis, if the lease is still there.
    ///
    /// # Errors
    /// Redis could not be asked, so it may be there or not; or it is too large or cannot be written, and the lease was given
    /// back.
    pub fn complete(&self, lease: Lease, stored: &Stored<V>) -> Result<Completed, TierError> {
        let mut purse = self.core.purse(None);
        let Some(bytes) = self.written(&lease.key, stored, lease.born, &mut purse)? else {
            self.core.counts.revoked.inc();
            return Ok(Completed::Revoked);
        };
        let px = px(stored);
        let args = [&lease.token[..], &bytes, px.as_bytes()];
        let answer = self.core.wire.ask(&mut purse, |line| line.eval(&self.core.scripts.store, &[&lease.key], &args));
        lease.end(answer.is_ok());
        self.completed(&answer?)
    }

    pub(crate) fn completed(&self, answer: &Value) -> Result<Completed, TierError> {
        if *answer == Value::Int(1) {
            self.core.counts.stored.inc();
            Ok(Completed::Stored)
        } else {
            self.core.counts.revoked.inc();
            Ok(Completed::Revoked)
        }
    }

    /// The slot's bytes for a value whose load began at `born`; `None` if one of its tags was removed since.
    pub(crate) fn written(
        &self,
        name: &[u8],
        stored: &Stored<V>,
        born: Option<Moment>,
        purse: &mut Purse,
    ) -> Result<Option<Vec<u8>>, TierError> {
        let tags: Vec<&str> = stored.tags.iter().map(|tag| &**tag).collect();
        let facts = Facts {
            negative: stored.negative,
            px: Some(px_millis(stored)).filter(|px| *px > 0),
            fresh: stored.fresh.map(whole_millis),
            keep: stored.keep.map(millis),
            took: u64::try_from(stored.took.as_micros()).unwrap_or(u64::MAX),
            // The earliest that it can be.
            written: self.core.link.shared.server_time().map_or(0, |(low, _)| low),
            born,
            tags,
            etag: stored.etag.as_deref(),
        };
        let bytes =
            frame::write(name, &facts, &stored.value, &*self.codec, self.core.limits).map_err(|why| match why {
                Unwritable::TooLarge(length) => {
                    self.core.counts.too_large.inc();
                    TierError::ValueTooLarge { length, max_value: self.core.limits.max_value }
                }
                Unwritable::Codec(failure) => TierError::Unwritable(failure),
                Unwritable::Tags(why) => TierError::Unwritable(fullbore_core::Failure::error(why)),
            })?;
        if facts.tags.is_empty() {
            return Ok(Some(bytes));
        }
        // Those that are new get a number by this; one that is not covered says that the tag was removed meanwhile.
        let numbers = self.core.numbers(&facts.tags, purse)?;
        Ok(Core::is_valid(&facts, &numbers).then_some(bytes))
    }

    /// Gives a lease back without a value: the load failed. Whoever waits loads.
    pub fn abandon(&self, mut lease: Lease) {
        lease.give_back();
    }

    /// Puts a value into Redis, whatever is there. A load that is under way, anywhere, is revoked by it.
    ///
    /// # Errors
    /// Redis could not be asked, so it may be there or not; it is too large or cannot be written; or, in the background, too
    /// many writes wait.
    pub fn put(&self, key: &K, stored: &Stored<V>) -> Result<(), TierError> {
        let name = self.name(key)?;
        let mut purse = self.core.purse(None);
        let born = if stored.tags.is_empty() { None } else { self.core.sequence(&mut purse)? };
        let mut bytes = self.written(&name, stored, born, &mut purse)?;
        if bytes.is_none() {
            // What was known of the sequence is older than a tag's removal.
            self.core.link.shared.forget_sequence();
            let born = self.core.sequence(&mut purse)?;
            bytes = self.written(&name, stored, born, &mut purse)?;
        }
        let Some(bytes) = bytes else {
            // A tag was removed just now, again: then this value is removed as well, and the one that is there is older.
            self.core.counts.revoked.inc();
            return self.remove(key).map(drop);
        };
        if let Some(background) = &self.background {
            return background.put(name, bytes, px_millis(stored)).inspect_err(|_| self.core.counts.dropped.inc());
        }
        let set = set(&name, &bytes, px_millis(stored));
        self.core.wire.ask(&mut purse, |line| line.ask(&set))?;
        self.core.counts.stored.inc();
        Ok(())
    }

    /// Removes the key and revokes its load, in all processes. Says whether there was something.
    ///
    /// # Errors
    /// Redis could not be asked, so others may still see the value.
    pub fn remove(&self, key: &K) -> Result<bool, TierError> {
        let name = self.name(key)?;
        let mut purse = self.core.purse(None);
        if let Some(background) = &self.background {
            background.cancel(&name, Instant::now() + self.core.budget)?;
        }
        let had = self.core.wire.ask(&mut purse, |line| line.eval(&self.core.scripts.remove, &[&name], &[]))?;
        self.core.counts.removed.inc();
        Ok(had == Value::Int(1))
    }

    /// Removes everything of this cache, key by key: what is put there meanwhile may stay. Loads that are under way are revoked.
    ///
    /// # Errors
    /// Redis could not be asked, so others may still see some values.
    pub fn clear(&self) -> Result<(), TierError> {
        let core = &self.core;
        if let Some(background) = &self.background {
            background.cancel_all(Instant::now() + core.budget)?;
        }
        let pattern = core.space.all_keys();
        let mut cursor: Vec<u8> = b"0".to_vec();
        loop {
            // It takes as long as there are keys: each step has a budget.
            let mut purse = core.purse(None);
            let mut scan = cmd("SCAN");
            scan.arg(&cursor[..]).arg("MATCH").arg(&pattern[..]).arg("COUNT").arg(1000);
            let answer = core.wire.ask(&mut purse, |line| line.ask(&scan))?;
            let strange = || TierError::Refused { code: "SCAN".into(), detail: "an answer that is none".into() };
            let Value::Array(mut parts) = answer else { return Err(strange()) };
            let (Some(Value::Array(names)), Some(next)) = (parts.pop(), parts.pop().and_then(bytes_of)) else {
                return Err(strange());
            };
            if !names.is_empty() {
                let mut unlink = cmd("UNLINK");
                for name in names.into_iter().filter_map(bytes_of) {
                    unlink.arg(name);
                }
                core.wire.ask(&mut purse, |line| line.ask(&unlink))?;
            }
            if next == b"0" {
                return Ok(());
            }
            cursor = next;
        }
    }

    /// Makes every value with the tag a miss, and every load that is under way and ends with it, in all processes.
    ///
    /// # Errors
    /// Redis could not be asked, so others may still see the values.
    pub fn remove_tag(&self, tag: &str) -> Result<(), TierError> {
        if tag.len() > MAX_TEXT {
            let why = format!("a tag of {} bytes, at most {MAX_TEXT} are possible", tag.len());
            return Err(TierError::Unwritable(fullbore_core::Failure::error(why)));
        }
        self.core.remove_tag(tag, &mut self.core.purse(None))
    }
}

impl<K, V> Tier<K, V> {
    /// Whether changes in Redis are told of at the moment.
    pub fn is_up(&self) -> bool {
        self.core.link.shared.is_up()
    }

    /// Counts the losses of the link; `None` while it is down. What was read between two equal answers and of which nothing
    /// was told meanwhile is still so.
    pub fn epoch(&self) -> Option<u64> {
        self.core.link.shared.epoch()
    }

    /// Its calls through the breaker: an arrival is a question to Redis, a refusal one that the breaker stopped.
    pub fn station(&self) -> &fullbore_metrics::Station {
        self.core.wire.breaker.station()
    }

    /// The pool of its connections.
    pub fn pool_station(&self) -> &fullbore_metrics::Station {
        self.core.wire.pool.station()
    }

    /// Ends the link's thread and the connections. What is queued in the background is written first, within `limit`. Returns
    /// the threads that did not end.
    pub fn close_within(&self, limit: Duration) -> Vec<String> {
        let until = Instant::now().checked_add(limit);
        if let Some(background) = &self.background {
            background.close(limit);
        }
        let core = &self.core;
        core.link.close();
        // The thread is reading: a change of its own key wakes it up. Without an answer it wakes up by itself within a second.
        let wake = set(&core.space.wake(&core.link.shared.owner), b"", 1);
        let _ = core.wire.ask(&mut Purse::new(core.budget.min(limit), until), |line| line.ask(&wake));
        let left = core.link.join(until);
        core.wire.pool.close();
        left
    }
}

impl<K, V> Drop for Tier<K, V> {
    fn drop(&mut self) {
        self.close_within(fullbore_core::OnDrop::default().budget());
    }
}

impl<K, V> fmt::Debug for Tier<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tier").field("link", &self.core.link).finish_non_exhaustive()
    }
}

/// Whole milliseconds, where zero means that it is stale from the beginning.
fn whole_millis(duration: Duration) -> u64 {
    if duration.is_zero() { 0 } else { millis(duration) }
}

/// How long Redis is told to keep the value, in ms; 0: no end.
fn px_millis<V>(stored: &Stored<V>) -> u64 {
    match (stored.keep, stored.fresh) {
        (Some(keep), _) => millis(keep),
        // Its age is to be known although it has no end.
        (None, Some(_)) => FAR,
        (None, None) => 0,
    }
}

pub(crate) fn px<V>(stored: &Stored<V>) -> String {
    px_millis(stored).to_string()
}

pub(crate) fn set(name: &[u8], bytes: &[u8], px: u64) -> Cmd {
    let mut set = cmd("SET");
    set.arg(name).arg(bytes);
    if px > 0 {
        set.arg("PX").arg(px);
    }
    set
}
