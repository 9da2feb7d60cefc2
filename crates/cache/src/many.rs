//! Many keys in one call: what is there is returned, and what is missing is loaded together.

use std::error::Error;
use std::hash::Hash;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fullbore_core::{Event, Failure, earlier};
use fullbore_metrics::Outcome;
use hashbrown::HashMap;

use crate::cache::Cache;
use crate::claim::{Claim, Keep};
use crate::entry::{Entry, Kept};
use crate::error::CacheError;
use crate::flight::Entered;
use crate::load::{LoadCtx, Says};
use crate::shared::{Service, Shared};
use crate::store::Held;

type LoadMany<'a, K, V> = dyn FnMut(&[K], &mut LoadCtx) -> Result<HashMap<K, V>, Failure> + 'a;

/// A value that a load brought.
type Found<V> = (V, Arc<Entry<V>>);
/// The same, what it leaves in memory, and whether it was still valid.
type Done<V> = (V, Arc<Entry<V>>, Keep<V>, bool);

/// A key that this call is to load: its place in the result, and what it is to replace.
pub(crate) struct Missing<'a, K: Hash + Eq + Clone + Send + Sync + 'static, V: Clone + Send + Sync + 'static> {
    pub(crate) at: usize,
    pub(crate) claim: Claim<'a, K, V>,
    old: Option<(Held<V>, Kept)>,
    /// The right to put it into Redis.
    #[cfg(feature = "redis")]
    pub(crate) lease: Option<crate::redis::testing::Lease>,
}

impl<'a, K, V> Missing<'a, K, V>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    fn new(at: usize, claim: Claim<'a, K, V>, old: Option<(Held<V>, Kept)>) -> Self {
        Self {
            at,
            claim,
            old,
            #[cfg(feature = "redis")]
            lease: None,
        }
    }
}

impl<K, V> Cache<K, V>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// The values of many keys, in their order. Those that are there are returned as they are; for all that are missing `load` is
    /// called once, on this thread, and what it returns is kept as in [`get_or_compute`](Self::get_or_compute). A key that it does not return is `None` in
    /// the result, and others that wait for it load it themselves. Each key is a flight of its own: what somebody else loads already
    /// is waited for, after the others have been loaded.
    ///
    /// `load` is given the missing keys, each once. It is only called again for a key that had been left to somebody else, whose load came
    /// to nothing. What it says of TTL, tags and so on holds for all that it returns; it finds no previous values.
    ///
    /// ```
    /// use fullbore_cache::Cache;
    ///
    /// let names = Cache::<u32, String>::builder().build()?;
    /// names.insert(1, "one".into());
    /// let found = names.get_or_compute_many(&[1, 2, 3], |missing, _| {
    ///     assert_eq!(missing, [2, 3]);
    ///     Ok::<_, std::io::Error>([(2, "two".to_owned())]) // one query for all of them
    /// })?;
    /// assert_eq!(found, [Some("one".into()), Some("two".into()), None]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// As [`get_or_compute`](Self::get_or_compute), for the first key that has no value because of it. What has been loaded by then is
    /// kept.
    ///
    /// # Panics
    /// As [`get_or_compute`](Self::get_or_compute).
    ///
    /// # Deadlock
    /// As [`get_or_compute`](Self::get_or_compute). Waits for the load timeout in all.
    pub fn get_or_compute_many<E, I>(
        &self,
        keys: &[K],
        load: impl FnMut(&[K], &mut LoadCtx) -> Result<I, E>,
    ) -> Result<Vec<Option<V>>, CacheError>
    where
        E: Into<Box<dyn Error + Send + Sync>>,
        I: IntoIterator<Item = (K, V)>,
    {
        self.compute_many(keys, None, false, load)
    }

    /// As [`get_or_compute_many`](Self::get_or_compute_many), with the deadline of
    /// [`get_or_compute_deadline`](Self::get_or_compute_deadline) for the whole call.
    ///
    /// # Errors
    /// As [`get_or_compute_many`](Self::get_or_compute_many).
    ///
    /// # Panics
    /// As [`get_or_compute_many`](Self::get_or_compute_many).
    pub fn get_or_compute_many_deadline<E, I>(
        &self,
        keys: &[K],
        deadline: Instant,
        load: impl FnMut(&[K], &mut LoadCtx) -> Result<I, E>,
    ) -> Result<Vec<Option<V>>, CacheError>
    where
        E: Into<Box<dyn Error + Send + Sync>>,
        I: IntoIterator<Item = (K, V)>,
    {
        self.compute_many(keys, Some(deadline), false, load)
    }

    /// Loads what is missing of the keys, so many in one call of `load`: for a start with an empty memory. What somebody else loads at the moment,
    /// here or, with a second tier, in another process, is left to him: processes that start together share the work. Returns how many of the
    /// keys are there in the end.
    ///
    /// # Errors
    /// As [`get_or_compute_many`](Self::get_or_compute_many), at the first call of `load` that fails; the keys after it are not loaded.
    ///
    /// # Panics
    /// As [`get_or_compute_many`](Self::get_or_compute_many).
    pub fn warm<E, I>(
        &self,
        keys: &[K],
        at_once: usize,
        mut load: impl FnMut(&[K], &mut LoadCtx) -> Result<I, E>,
    ) -> Result<usize, CacheError>
    where
        E: Into<Box<dyn Error + Send + Sync>>,
        I: IntoIterator<Item = (K, V)>,
    {
        let mut there = 0;
        for some in keys.chunks(at_once.max(1)) {
            there += self.compute_many(some, None, true, &mut load)?.iter().flatten().count();
        }
        Ok(there)
    }

    fn compute_many<E, I>(
        &self,
        keys: &[K],
        deadline: Option<Instant>,
        leave_busy: bool,
        mut load: impl FnMut(&[K], &mut LoadCtx) -> Result<I, E>,
    ) -> Result<Vec<Option<V>>, CacheError>
    where
        E: Into<Box<dyn Error + Send + Sync>>,
        I: IntoIterator<Item = (K, V)>,
    {
        let shared = &*self.shared;
        let _burial = shared.burial();
        let mut load = |keys: &[K], ctx: &mut LoadCtx| {
            let pairs = load(keys, ctx).map_err(Failure::error)?;
            Ok(pairs.into_iter().collect())
        };
        let mut values = vec![None; keys.len()];
        // Where a key comes twice, the first time counts.
        let mut first = HashMap::with_capacity(keys.len());
        let (mut missing, mut busy) = (Vec::new(), Vec::new());
        for (at, key) in keys.iter().enumerate() {
            if *first.entry(key).or_insert(at) != at {
                continue;
            }
            if let Some(held) = shared.fresh(key) {
                values[at] = Some(shared.hit(held, None));
                continue;
            }
            match shared.enter(key, deadline, None, true).0 {
                Entered::Busy => busy.push(at),
                Entered::Lead(claim, old) => missing.push(Missing::new(at, claim, old)),
                other => match shared.without_a_load(other, false) {
                    Ok(value) => values[at] = Some(value),
                    Err(error) => {
                        missing.into_iter().for_each(|missing| missing.claim.give_up());
                        return Err(error);
                    }
                },
            }
        }
        #[cfg(feature = "redis")]
        if let Some(second) = &shared.second {
            missing = shared.ask_for_many(second, missing, None, &mut values, &mut busy)?;
        }
        shared.load_many(missing, deadline, &mut values, &mut load)?;
        // Nothing is claimed any more: two calls that wait for each other's keys have both landed theirs.
        let until = earlier(deadline, shared.clock.after(shared.config.load_timeout));
        if leave_busy {
            busy.clear();
        }
        for at in busy {
            let (entered, joined) = shared.enter(&keys[at], until, None, false);
            match entered {
                Entered::Lead(claim, old) => {
                    if joined {
                        shared.waited_in_vain();
                    }
                    let missing = vec![Missing::new(at, claim, old)];
                    #[cfg(feature = "redis")]
                    let missing = match &shared.second {
                        Some(second) => {
                            shared.ask_for_many(second, missing, Some(until), &mut values, &mut Vec::new())?
                        }
                        None => missing,
                    };
                    shared.load_many(missing, deadline, &mut values, &mut load)?;
                }
                Entered::Hit(held) => values[at] = Some(shared.found(held, None, joined)),
                other => values[at] = Some(shared.without_a_load(other, joined)?),
            }
        }
        for (at, key) in keys.iter().enumerate() {
            // A key that is not equal to itself is found nowhere.
            if let Some(first) = first.get(key).filter(|first| **first != at) {
                values[at] = values[*first].clone();
            }
        }
        Ok(values)
    }
}

impl<K, V> Shared<K, V>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// Loads them all in one call, and lands each flight.
    fn load_many(
        &self,
        mut missing: Vec<Missing<'_, K, V>>,
        deadline: Option<Instant>,
        values: &mut [Option<V>],
        load: &mut LoadMany<'_, K, V>,
    ) -> Result<(), CacheError> {
        if missing.is_empty() {
            return Ok(());
        }
        self.tally.loads.inc();
        self.station.arrived(missing.len());
        let service = Service::begin_many(&self.station, Some(Instant::now()), missing.len());
        let begun = self.clock.now();
        let mut ctx = LoadCtx::new(deadline, None);
        let loaded = catch_unwind(AssertUnwindSafe(|| {
            let keys: Vec<K> = missing.iter().map(|missing| missing.claim.key().clone()).collect();
            let mut found = load(&keys, &mut ctx)?;
            let took = self.clock.now().saturating_duration_since(begun);
            let prepare = |key: &K| {
                let value = found.remove(key)?;
                let entry = Entry::new(value.clone(), &self.grave);
                Some((value, entry))
            };
            let found = keys.iter().map(prepare).collect::<Vec<_>>();
            Ok::<_, Failure>((found, std::mem::take(&mut ctx.says), took))
        }));
        self.tally.load_failures.add(u64::from(!matches!(loaded, Ok(Ok(_)))));
        let (error, payload) = match loaded {
            Ok(Ok((found, says, took))) => {
                let found = self.keep_many(&mut missing, found, &says, took);
                for (missing, found) in missing.into_iter().zip(found) {
                    let Some((value, entry, keep, valid)) = found else {
                        missing.claim.land_nothing();
                        continue;
                    };
                    let here = missing.claim.land_for(&entry, keep, valid);
                    if !valid || !(here || self.has_second()) {
                        self.tally.invalidated_loads.inc();
                    }
                    values[missing.at] = Some(value);
                }
                service.end(Outcome::Served);
                return Ok(());
            }
            Ok(Err(failure)) => (CacheError::Load(failure), None),
            Err(payload) => {
                let failure = Failure::panicked(&*payload);
                self.events.emit(Event::Panic, || format!("a load {failure}"));
                (CacheError::Load(failure), Some(payload))
            }
        };
        let mut all = true;
        for missing in missing {
            #[cfg(feature = "redis")]
            if let (Some(second), Some(lease)) = (&self.second, missing.lease) {
                second.remote.abandon(lease);
            }
            match self.failed(missing.claim, &error, missing.old, &ctx.says) {
                Some(stand_in) => {
                    self.tally.stale_hits.inc();
                    values[missing.at] = Some(stand_in.value().clone());
                }
                None => all = false,
            }
        }
        service.end(if all && payload.is_none() { Outcome::Served } else { Outcome::Failed });
        match payload {
            Some(payload) => resume_unwind(payload),
            None if all => Ok(()),
            None => Err(error),
        }
    }

    /// What each of the values leaves in memory, and whether it was still valid.
    fn keep_many(
        &self,
        missing: &mut [Missing<'_, K, V>],
        found: Vec<Option<Found<V>>>,
        says: &Says,
        took: Duration,
    ) -> Vec<Option<Done<V>>> {
        #[cfg(feature = "redis")]
        if let Some(second) = &self.second {
            let there = missing.iter_mut().zip(&found).filter_map(|(missing, found)| {
                let entry = &found.as_ref()?.1;
                Some((missing.claim.key(), missing.lease.take(), entry))
            });
            let there = there.collect();
            let mut kept = self.complete_many(second, there, says, took).into_iter();
            return found
                .into_iter()
                .map(|found| {
                    let (value, entry) = found?;
                    let (keep, valid) = kept.next()?;
                    Some((value, entry, keep, valid))
                })
                .collect();
        }
        let keep = |(missing, found): (&mut Missing<'_, K, V>, Option<Found<V>>)| {
            let (value, entry) = found?;
            let keep = self.keep(missing.claim.key(), &entry, says.clone(), took);
            Some((value, entry, keep, true))
        };
        missing.iter_mut().zip(found).map(keep).collect()
    }
}
