//! The calls for many keys at once: a few round trips for all of them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use redis::{Cmd, Value, cmd};

use crate::redis::core::{Age, Claimed, Core, Expect, Lease, When, answered, bytes_of};
use crate::redis::error::TierError;
use crate::redis::frame::{self, Slot};
use crate::redis::key::RedisKey;
use crate::redis::space::Names;
use crate::redis::tier::{Completed, Looked, Read, Sought, Stored, Tier, px};
use crate::redis::wire::{Call, Purse};

/// How many keys are asked for in one go.
const CHUNK: usize = 4096;
/// How many keys one question has: Redis does nothing else meanwhile.
const PACKET: usize = 256;

impl<K, V> Tier<K, V>
where
    K: RedisKey + 'static,
    V: Send + Sync + 'static,
{
    /// As [`get`](Self::get), for many keys in few round trips, which have one budget together. The answers are in the order of
    /// the keys.
    pub fn get_many(&self, keys: &[K], until: Option<Instant>) -> Vec<Result<Option<Looked<V>>, TierError>> {
        let mut purse = self.core.purse(until);
        let mut outcomes = Vec::with_capacity(keys.len());
        for chunk in keys.chunks(CHUNK) {
            let (names, wrong) = self.names(chunk);
            let reads = self.read_many(&names, &mut purse);
            Self::fill(&mut outcomes, wrong, reads.map(|reads| reads.into_iter().map(|read| Ok(read.looked()))));
        }
        let hits = outcomes.iter().filter(|one| matches!(one, Ok(Some(_)))).count();
        let misses = outcomes.iter().filter(|one| matches!(one, Ok(None))).count();
        self.core.counts.hits.add(hits as u64);
        self.core.counts.misses.add(misses as u64);
        outcomes
    }

    fn names(&self, keys: &[K]) -> (Names, Vec<Option<TierError>>) {
        let (names, wrong) = self.core.space.names(keys);
        if names.len() < keys.len() {
            self.core.counts.too_large.add((keys.len() - names.len()) as u64);
        }
        (names, wrong)
    }

    /// Adds what became of a chunk of keys: what is wrong with a key, or what came of the question for all others.
    fn fill<T>(
        outcomes: &mut Vec<Result<T, TierError>>,
        wrong: Vec<Option<TierError>>,
        answers: Result<impl Iterator<Item = Result<T, TierError>>, TierError>,
    ) {
        match answers {
            Ok(mut answers) => outcomes.extend(wrong.into_iter().map(|wrong| match wrong {
                Some(wrong) => Err(wrong),
                // There is one for each.
                None => answers.next().unwrap_or(Err(TierError::Closed)),
            })),
            Err(error) => {
                outcomes.extend(wrong.into_iter().map(|wrong| Err(wrong.unwrap_or_else(|| error.clone()))));
            }
        }
    }

    fn read_many(&self, names: &Names, purse: &mut Purse) -> Result<Vec<Read<V>>, TierError> {
        if names.len() == 0 {
            return Ok(Vec::new());
        }
        let packets: Vec<Cmd> = (0..names.len())
            .step_by(PACKET)
            .map(|from| {
                let mut mget = cmd("MGET");
                for n in from..names.len().min(from + PACKET) {
                    mget.arg(names.get(n));
                }
                mget
            })
            .collect();
        let asked = Instant::now();
        let answers = self.core.wire.ask(purse, |line| line.ask_apart(&packets))?;
        let mut there: Vec<Option<Vec<u8>>> = Vec::with_capacity(names.len());
        for answer in answers {
            if let Value::Array(values) = answered(answer)? {
                there.extend(values.into_iter().map(bytes_of));
            }
        }
        // There is one for each; what is not there is a miss.
        there.resize(names.len(), None);
        let when = self.core.when(None, asked);
        let slots: Vec<Option<Slot<'_>>> = there
            .iter()
            .zip(names.iter())
            .map(|(bytes, name)| bytes.as_ref().map(|bytes| frame::read(bytes, name)))
            .collect();
        // What has to be asked beside it, for all of them at once.
        let mut tags: Vec<&str> = Vec::new();
        let mut ages: Vec<usize> = Vec::new();
        for (n, slot) in slots.iter().enumerate() {
            if let Some(frame) = slot.as_ref().and_then(Slot::frame) {
                tags.extend(&frame.facts.tags);
                if matches!(Core::age(&frame.facts, &when), Age::Unknown) {
                    ages.push(n);
                }
            }
        }
        let mut whens: HashMap<usize, When> = HashMap::new();
        if !ages.is_empty() {
            let of: Vec<&[u8]> = ages.iter().map(|n| names.get(*n)).collect();
            whens.extend(ages.iter().copied().zip(self.core.pttls(&of, purse)?));
        }
        tags.sort_unstable();
        tags.dedup();
        let numbers = if tags.is_empty() { HashMap::new() } else { self.core.numbers(&tags, purse)? };
        let reads = slots.into_iter().zip(&there).enumerate().map(|(n, (slot, bytes))| match (slot, bytes) {
            (Some(slot), Some(bytes)) => {
                let when = if whens.is_empty() { &when } else { whens.get(&n).unwrap_or(&when) };
                self.judge(slot, bytes, when, &numbers)
            }
            _ => Read::Nothing(Expect::Nothing),
        });
        Ok(reads.collect())
    }

    /// The values of the keys or the leases to load them, in few round trips and without waiting for anybody: a key that
    /// another process loads is [`Sought::Busy`], and the caller asks for that again when it has done its own work. A stale
    /// value is not enough.
    pub fn lease_many(&self, keys: &[K], until: Option<Instant>) -> Vec<Result<Sought<V>, TierError>> {
        let mut purse = self.core.purse(until);
        let mut outcomes = Vec::with_capacity(keys.len());
        for chunk in keys.chunks(CHUNK) {
            let (names, wrong) = self.names(chunk);
            let sought = self.claim_many(&names, &mut purse);
            Self::fill(&mut outcomes, wrong, sought.map(Vec::into_iter));
        }
        outcomes
    }

    fn claim_many(&self, names: &Names, purse: &mut Purse) -> Result<Vec<Result<Sought<V>, TierError>>, TierError> {
        let mut sought: Vec<Result<Sought<V>, TierError>> = Vec::with_capacity(names.len());
        let mut open: Vec<(usize, Arc<[u8]>, Expect)> = Vec::new();
        for (n, read) in self.read_many(names, purse)?.into_iter().enumerate() {
            sought.push(Ok(match read {
                Read::Value(stored, _) | Read::Leased { stale: Some(stored), .. } if !stored.is_stale() => {
                    Sought::Value(stored)
                }
                Read::Leased { .. } => Sought::Busy,
                Read::Value(_, checksum) => {
                    open.push((n, names.get(n).into(), Expect::Tail(checksum)));
                    Sought::Busy
                }
                Read::Nothing(expect) => {
                    open.push((n, names.get(n).into(), expect));
                    Sought::Busy
                }
            }));
            self.count(matches!(sought.last(), Some(Ok(Sought::Value(_)))));
        }
        if open.is_empty() {
            return Ok(sought);
        }
        let claims: Vec<(&Arc<[u8]>, &Expect)> = open.iter().map(|(_, name, expect)| (name, expect)).collect();
        for ((n, name, _), claimed) in open.iter().zip(self.core.claim_all(&claims, purse)?) {
            sought[*n] = match claimed {
                Ok(Claimed::Led(lease)) => Ok(Sought::Lead(lease)),
                Ok(Claimed::Have(seen)) => self.read(name, seen, purse).map(|read| match read {
                    Read::Value(stored, _) | Read::Leased { stale: Some(stored), .. } if !stored.is_stale() => {
                        Sought::Value(stored)
                    }
                    Read::Value(..) | Read::Leased { .. } | Read::Nothing(_) => Sought::Busy,
                }),
                Err(error) => Err(error),
            };
        }
        Ok(sought)
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
        for chunk in ready.chunks(PACKET) {
            let calls: Vec<Call<'_>> = chunk
                .iter()
                .map(|(_, lease, bytes, px)| (vec![&lease.key[..]], vec![&lease.token[..], &bytes[..], px.as_bytes()]))
                .collect();
            match self.core.wire.ask(&mut purse, |line| line.eval_all(&self.core.scripts.store, &calls)) {
                Ok(answers) => {
                    for ((n, ..), answer) in chunk.iter().zip(answers) {
                        outcomes[*n] = Some(answered(answer).and_then(|answer| self.completed(&answer)));
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
