//! The tier of one cache: its keys and values in Redis.

use std::collections::HashMap;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fullbore_core::Event;
use fullbore_limit::BreakerState;
use redis::{Cmd, Value, cmd};

use crate::redis::background::Background;
use crate::redis::codec::Codec;
use crate::redis::core::{Age, Claimed, Core, Expect, Lease, Seen, bytes_of};
use crate::redis::error::TierError;
use crate::redis::frame::{self, FAR, Facts, Frame, Moment, Slot, Unwritable, millis};
use crate::redis::key::RedisKey;
use crate::redis::link::{Heard, Interest, LinkCounts, Why, Woken};
use crate::redis::tags::Tags;
use crate::redis::wire::Purse;

/// How often a process that waits asks whether the one it waits for still lives.
const LOOK_AFTER_OWNER: Duration = Duration::from_secs(1);
/// How many keys one `MGET` has.
const CHUNK: usize = 512;

/// Who is told of changes in Redis. Called on the link's thread, under no lock; a panic is an event and nothing more.
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

/// The link of a tier and its breaker, and what became of questions so far.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct TierStats {
    /// Whether changes in Redis are told of.
    pub link_up: bool,
    /// Why they were not the last time they were not.
    pub link_error: Option<String>,
    /// How often the link was lost.
    pub link_losses: u64,
    /// What the breaker does.
    pub breaker: BreakerState,
    /// Looks that found a value.
    pub hits: u64,
    /// Looks that found none.
    pub misses: u64,
    /// Of the misses those where there was something that could not be read.
    pub undecodable: u64,
    /// Of the misses those of values one of whose tags was removed.
    pub tag_misses: u64,
    /// Leases got.
    pub led: u64,
    /// Calls that waited for another process.
    pub waited: u64,
    /// Leases taken over from a process that died.
    pub takeovers: u64,
    /// Values written.
    pub stored: u64,
    /// Values not written as the key was removed while they were loaded.
    pub revoked: u64,
    /// Leases given back.
    pub abandoned: u64,
    /// Keys removed.
    pub removed: u64,
    /// Values and keys refused as too large.
    pub too_large: u64,
    /// Writes in the background that were not done.
    pub dropped: u64,
    /// Questions that were not answered in time.
    pub timeouts: u64,
    /// Questions that failed, those included.
    pub failures: u64,
    /// Keys of whose change Redis told.
    pub pushes: u64,
    /// Times the database was emptied.
    pub flushes: u64,
    /// Names below the prefix that are not of this cache.
    pub strangers: u64,
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
enum Read<V> {
    Value(Stored<V>, Vec<u8>),
    Nothing(Expect),
    Leased { token: Vec<u8>, owner: [u8; 16], stale: Option<Stored<V>> },
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
        let looked = self.looked(self.read(&name, seen, &mut purse)?);
        Ok(looked)
    }

    fn looked(&self, read: Read<V>) -> Option<Looked<V>> {
        let looked = match read {
            Read::Value(stored, _) => Some(Looked { stored, refreshing: false }),
            Read::Leased { stale: Some(stored), .. } => Some(Looked { stored, refreshing: true }),
            Read::Leased { stale: None, .. } | Read::Nothing(_) => None,
        };
        self.count(looked.is_some());
        looked
    }

    fn count(&self, hit: bool) {
        let counts = &self.core.counts;
        if hit { counts.hits.inc() } else { counts.misses.inc() }
    }

    fn name(&self, key: &K) -> Result<Arc<[u8]>, TierError> {
        self.core.space.key(key).inspect_err(|_| self.core.counts.too_large.inc())
    }

    /// What the slot holds. Asks Redis for tags and for the age of the value where those are not known.
    fn read(&self, name: &[u8], mut seen: Seen, purse: &mut Purse) -> Result<Read<V>, TierError> {
        let Some(bytes) = seen.bytes.take() else { return Ok(Read::Nothing(Expect::Nothing)) };
        let numbers = match frame::read(&bytes, name) {
            Slot::Value(frame) | Slot::Lease { stale: Some(frame), .. } => {
                if matches!(self.core.age(&frame.facts, &seen), Age::Unknown) {
                    seen.asked = Instant::now();
                    seen.pttl = self.core.pttls(&[name], purse)?.pop();
                }
                if frame.facts.tags.is_empty() {
                    HashMap::new()
                } else {
                    self.core.numbers(&frame.facts.tags, purse)?
                }
            }
            Slot::Lease { stale: None, .. } | Slot::Undecodable(_) => HashMap::new(),
        };
        Ok(self.judge(name, bytes, &seen, &numbers))
    }

    /// What `bytes` are, with all that is to be known of them.
    fn judge(&self, name: &[u8], bytes: Vec<u8>, seen: &Seen, numbers: &HashMap<Arc<str>, Moment>) -> Read<V> {
        match frame::read(&bytes, name) {
            Slot::Undecodable(why) => {
                self.undecodable(why);
                Read::Nothing(Expect::Same(bytes))
            }
            Slot::Lease { token, owner, stale } => {
                let stale = stale.and_then(|stale| self.open(&stale, seen, numbers).ok()).map(|mut stale| {
                    stale.fresh = Some(Duration::ZERO);
                    stale
                });
                Read::Leased { token: token.to_vec(), owner, stale }
            }
            Slot::Value(frame) => match self.open(&frame, seen, numbers) {
                Ok(stored) => Read::Value(stored, frame.checksum.to_vec()),
                // Checked as a whole, so its checksum names it.
                Err(()) => Read::Nothing(Expect::Gone(frame.checksum.to_vec())),
            },
        }
    }

    fn undecodable(&self, why: &'static str) {
        self.core.counts.undecodable.inc();
        self.core.events.emit(Event::Drop, || format!("a value in Redis is not to be read: {why}"));
    }

    fn open(&self, frame: &Frame<'_>, seen: &Seen, numbers: &HashMap<Arc<str>, Moment>) -> Result<Stored<V>, ()> {
        let facts = &frame.facts;
        let counts = &self.core.counts;
        if !Core::is_valid(facts, numbers) {
            counts.tag_misses.inc();
            return Err(());
        }
        let left = Core::left(facts, &self.core.age(facts, seen)).ok_or(())?;
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

    /// The value of `key`, or the lease to load it. Waits until `until` for a process that loads it already; `until` in the
    /// past, or now: it does not wait. The time on the way to Redis and back is bounded by the budget in any case.
    ///
    /// # Errors
    /// Redis could not be asked, the link is down while somebody else loads, or he has not come to an end.
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
            Read::Value(stored, _) if need == Need::Any || !stored.is_stale() => Settled::Done(stored),
            Read::Value(_, checksum) => Settled::Claim(Expect::Tail(checksum)),
            Read::Leased { stale: Some(stored), .. } if need == Need::Any => Settled::Done(stored),
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
                    if !self.core.lives(owner, &mut self.core.purse(until))? {
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

    fn completed(&self, answer: &Value) -> Result<Completed, TierError> {
        if *answer == Value::Int(1) {
            self.core.counts.stored.inc();
            Ok(Completed::Stored)
        } else {
            self.core.counts.revoked.inc();
            Ok(Completed::Revoked)
        }
    }

    /// The slot's bytes for a value whose load began at `born`; `None` if one of its tags was removed since.
    fn written(
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
        let Some(bytes) = self.written(&name, stored, born, &mut purse)? else {
            self.core.counts.revoked.inc();
            return Ok(());
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

    /// Makes every value with the tag a miss, and every load that is under way and ends with it, in all processes.
    ///
    /// # Errors
    /// Redis could not be asked, so others may still see the values.
    pub fn remove_tag(&self, tag: &str) -> Result<(), TierError> {
        self.core.remove_tag(tag, &mut self.core.purse(None))
    }

    /// As [`get`](Self::get), for many keys in few round trips. The answers are in the order of the keys.
    pub fn get_many(&self, keys: &[K], until: Option<Instant>) -> Vec<Result<Option<Looked<V>>, TierError>> {
        let mut purse = self.core.purse(until);
        let mut outcomes = Vec::with_capacity(keys.len());
        for chunk in keys.chunks(CHUNK) {
            let names: Vec<_> = chunk.iter().map(|key| self.name(key)).collect();
            let there: Vec<&Arc<[u8]>> = names.iter().filter_map(|name| name.as_ref().ok()).collect();
            match self.read_many(&there, &mut purse) {
                Ok(reads) => {
                    let mut reads = reads.into_iter();
                    outcomes.extend(
                        names.into_iter().map(|name| name.map(|_| reads.next().and_then(|read| self.looked(read)))),
                    );
                }
                Err(error) => {
                    outcomes.extend(names.into_iter().map(|name| name.and_then(|_| Err(error.clone()))));
                }
            }
        }
        outcomes
    }

    fn read_many(&self, names: &[&Arc<[u8]>], purse: &mut Purse) -> Result<Vec<Read<V>>, TierError> {
        if names.is_empty() {
            return Ok(Vec::new());
        }
        let mut mget = cmd("MGET");
        for name in names {
            mget.arg(&name[..]);
        }
        let asked = Instant::now();
        let Value::Array(answers) = self.core.wire.ask(purse, |line| line.ask(&mget))? else {
            return Ok(names.iter().map(|_| Read::Nothing(Expect::Nothing)).collect());
        };
        let mut seen: Vec<Seen> =
            answers.into_iter().map(|answer| Seen { bytes: bytes_of(answer), pttl: None, asked }).collect();
        // What has to be asked beside it, for all of them at once.
        let mut tags: Vec<String> = Vec::new();
        let mut ages: Vec<usize> = Vec::new();
        for (n, (seen, name)) in seen.iter().zip(names).enumerate() {
            if let Some(bytes) = &seen.bytes
                && let Slot::Value(frame) | Slot::Lease { stale: Some(frame), .. } = frame::read(bytes, name)
            {
                tags.extend(frame.facts.tags.iter().map(|tag| (*tag).to_owned()));
                if matches!(self.core.age(&frame.facts, seen), Age::Unknown) {
                    ages.push(n);
                }
            }
        }
        if !ages.is_empty() {
            let of: Vec<&[u8]> = ages.iter().map(|n| &names[*n][..]).collect();
            let asked = Instant::now();
            for (n, pttl) in ages.iter().zip(self.core.pttls(&of, purse)?) {
                (seen[*n].pttl, seen[*n].asked) = (Some(pttl), asked);
            }
        }
        let numbers = if tags.is_empty() {
            HashMap::new()
        } else {
            self.core.numbers(&tags.iter().map(String::as_str).collect::<Vec<_>>(), purse)?
        };
        let reads = seen.into_iter().zip(names).map(|(mut seen, name)| match seen.bytes.take() {
            Some(bytes) => self.judge(name, bytes, &seen, &numbers),
            None => Read::Nothing(Expect::Nothing),
        });
        Ok(reads.collect())
    }

    /// The values of the keys or the leases to load them, in few round trips and without waiting for anybody: a key that
    /// another process loads is [`Sought::Busy`], and the caller asks for that again when it has done its own work.
    pub fn lease_many(&self, keys: &[K], until: Option<Instant>) -> Vec<Result<Sought<V>, TierError>> {
        let mut purse = self.core.purse(until);
        let mut outcomes = Vec::with_capacity(keys.len());
        for chunk in keys.chunks(CHUNK) {
            let names: Vec<_> = chunk.iter().map(|key| self.name(key)).collect();
            let there: Vec<&Arc<[u8]>> = names.iter().filter_map(|name| name.as_ref().ok()).collect();
            match self.claim_many(&there, &mut purse) {
                Ok(sought) => {
                    let mut sought = sought.into_iter();
                    outcomes.extend(
                        names.into_iter().map(|name| name.and_then(|_| sought.next().unwrap_or(Ok(Sought::Busy)))),
                    );
                }
                Err(error) => {
                    outcomes.extend(names.into_iter().map(|name| name.and_then(|_| Err(error.clone()))));
                }
            }
        }
        outcomes
    }

    fn claim_many(
        &self,
        names: &[&Arc<[u8]>],
        purse: &mut Purse,
    ) -> Result<Vec<Result<Sought<V>, TierError>>, TierError> {
        let mut sought: Vec<Option<Result<Sought<V>, TierError>>> = Vec::with_capacity(names.len());
        let mut expects = Vec::new();
        for read in self.read_many(names, purse)? {
            sought.push(match read {
                Read::Value(stored, _) | Read::Leased { stale: Some(stored), .. } => Some(Ok(Sought::Value(stored))),
                Read::Leased { stale: None, .. } => Some(Ok(Sought::Busy)),
                Read::Nothing(expect) => {
                    expects.push(expect);
                    None
                }
            });
            self.count(matches!(sought.last(), Some(Some(Ok(Sought::Value(_))))));
        }
        let open: Vec<usize> = (0..sought.len()).filter(|n| sought[*n].is_none()).collect();
        let claims: Vec<(&Arc<[u8]>, &Expect)> =
            open.iter().zip(&expects).map(|(n, expect)| (names[*n], expect)).collect();
        if !claims.is_empty() {
            for (n, claimed) in open.iter().zip(self.core.claim_all(&claims, purse)?) {
                sought[*n] = Some(match claimed {
                    Ok(Claimed::Led(lease)) => Ok(Sought::Lead(lease)),
                    Ok(Claimed::Have(seen)) => self.read(names[*n], seen, purse).map(|read| match read {
                        Read::Value(stored, _) | Read::Leased { stale: Some(stored), .. } => Sought::Value(stored),
                        Read::Leased { stale: None, .. } | Read::Nothing(_) => Sought::Busy,
                    }),
                    Err(error) => Err(error),
                });
            }
        }
        Ok(sought.into_iter().map(|one| one.unwrap_or(Ok(Sought::Busy))).collect())
    }

    /// As [`complete`](Self::complete), for many loads in one round trip. The answers are in the order of the loads.
    pub fn complete_many(&self, loads: Vec<(Lease, &Stored<V>)>) -> Vec<Result<Completed, TierError>> {
        let mut purse = self.core.purse(None);
        let mut ready = Vec::new();
        let mut outcomes: Vec<Option<Result<Completed, TierError>>> = Vec::with_capacity(loads.len());
        for (lease, stored) in loads {
            outcomes.push(match self.written(&lease.key, stored, lease.born, &mut purse) {
                Ok(Some(bytes)) => {
                    ready.push((outcomes.len(), lease, bytes, px(stored)));
                    None
                }
                Ok(None) => {
                    self.core.counts.revoked.inc();
                    Some(Ok(Completed::Revoked))
                }
                Err(error) => Some(Err(error)),
            });
        }
        for chunk in ready.chunks(CHUNK) {
            let calls: Vec<(Vec<&[u8]>, Vec<&[u8]>)> = chunk
                .iter()
                .map(|(_, lease, bytes, px)| (vec![&lease.key[..]], vec![&lease.token[..], &bytes[..], px.as_bytes()]))
                .collect();
            match self.core.wire.ask(&mut purse, |line| line.eval_all(&self.core.scripts.store, &calls)) {
                Ok(answers) => {
                    for ((n, ..), answer) in chunk.iter().zip(answers) {
                        outcomes[*n] =
                            Some(crate::redis::core::answered(answer).and_then(|answer| self.completed(&answer)));
                    }
                }
                Err(error) => chunk.iter().for_each(|(n, ..)| outcomes[*n] = Some(Err(error.clone()))),
            }
        }
        for (n, lease, ..) in ready {
            lease.end(matches!(&outcomes[n], Some(Ok(_))));
        }
        outcomes.into_iter().map(|one| one.unwrap_or(Err(TierError::Closed))).collect()
    }
}

impl<K, V> Tier<K, V> {
    /// What has happened so far.
    pub fn stats(&self) -> TierStats {
        let (counts, link) = (&self.core.counts, &self.core.link.shared);
        let LinkCounts { pushes, losses, flushes, strangers } = &link.counts;
        TierStats {
            link_up: link.is_up(),
            link_error: link.last_error().as_ref().map(Why::to_string),
            link_losses: losses.get(),
            breaker: self.core.wire.breaker.state(),
            hits: counts.hits.get(),
            misses: counts.misses.get(),
            undecodable: counts.undecodable.get(),
            tag_misses: counts.tag_misses.get(),
            led: counts.led.get(),
            waited: counts.waited.get(),
            takeovers: counts.takeovers.get(),
            stored: counts.stored.get(),
            revoked: counts.revoked.get(),
            abandoned: counts.abandoned.get(),
            removed: counts.removed.get(),
            too_large: counts.too_large.get(),
            dropped: counts.dropped.get(),
            timeouts: self.core.wire.timeouts.get(),
            failures: self.core.wire.failures.get(),
            pushes: pushes.get(),
            flushes: flushes.get(),
            strangers: strangers.get() + self.strangers.get(),
        }
    }

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

fn px<V>(stored: &Stored<V>) -> String {
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
