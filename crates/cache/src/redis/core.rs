//! What a tier knows and does that does not depend on the types of its keys and values.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fullbore_core::Events;
use fullbore_metrics::Counter;
use redis::{Value, cmd};

use crate::redis::error::TierError;
use crate::redis::frame::{CHECKSUM, Facts, Limits, Moment, TOKEN, token};
use crate::redis::link::{Link, new_epoch, random};
use crate::redis::scripts::Scripts;
use crate::redis::space::Space;
use crate::redis::tags::Tags;
use crate::redis::wire::{Call, Purse, Wire};

/// What became of questions so far.
#[derive(Default)]
pub(crate) struct Counts {
    pub(crate) hits: Counter,
    pub(crate) misses: Counter,
    pub(crate) undecodable: Counter,
    pub(crate) tag_misses: Counter,
    pub(crate) led: Counter,
    pub(crate) waited: Counter,
    pub(crate) takeovers: Counter,
    pub(crate) stored: Counter,
    pub(crate) revoked: Counter,
    pub(crate) abandoned: Counter,
    pub(crate) removed: Counter,
    pub(crate) too_large: Counter,
    pub(crate) dropped: Counter,
}

pub(crate) struct Core {
    pub(crate) wire: Wire,
    pub(crate) link: Link,
    pub(crate) space: Arc<Space>,
    pub(crate) scripts: Scripts,
    pub(crate) tags: Arc<Tags>,
    pub(crate) limits: Limits,
    pub(crate) budget: Duration,
    pub(crate) lease: Duration,
    pub(crate) counts: Counts,
    pub(crate) events: Events,
}

/// What a slot held when it was looked at.
pub(crate) struct Seen {
    pub(crate) bytes: Option<Vec<u8>>,
    pub(crate) when: When,
}

/// When that was.
#[derive(Clone, Copy)]
pub(crate) struct When {
    /// How long Redis keeps it, in ms, as it says itself; asked for only where the server's time is not known.
    pttl: Option<i64>,
    /// How long ago that was, at most.
    ago: Duration,
    /// The server's time, at most.
    now: Option<u64>,
}

/// What a slot must hold to be claimed.
pub(crate) enum Expect {
    Nothing,
    Same(Vec<u8>),
    Head(Vec<u8>),
    Gone([u8; CHECKSUM]),
    Tail([u8; CHECKSUM]),
}

impl Expect {
    fn args(&self) -> (&'static [u8], &[u8]) {
        match self {
            Expect::Nothing => (b"none", b""),
            Expect::Same(bytes) => (b"same", bytes),
            Expect::Head(bytes) => (b"head", bytes),
            Expect::Gone(bytes) => (b"gone", bytes),
            Expect::Tail(bytes) => (b"tail", bytes),
        }
    }
}

/// How a claim went.
pub(crate) enum Claimed {
    Led(Lease),
    /// Somebody was faster; this is there.
    Have(Seen),
}

/// How long a value lives from now on.
pub(crate) struct Left {
    pub(crate) fresh: Option<Duration>,
    pub(crate) keep: Option<Duration>,
}

/// How old a value is.
pub(crate) enum Age {
    /// It does not age.
    None,
    Known(Duration),
    /// Redis was told to keep it for ever since.
    Persisted,
    /// Redis must be asked.
    Unknown,
    Gone,
}

/// The right, and the duty, to load a key for all processes. Dropping it gives it back, so that the next one loads; that asks
/// Redis, for at most the budget.
#[must_use = "dropping it gives the lease back"]
pub struct Lease {
    pub(crate) core: Arc<Core>,
    pub(crate) key: Arc<[u8]>,
    pub(crate) token: [u8; TOKEN],
    /// Where the sequence stood when the load began.
    pub(crate) born: Option<Moment>,
    pub(crate) ended: bool,
}

pub(crate) fn bytes_of(answer: Value) -> Option<Vec<u8>> {
    match answer {
        Value::BulkString(bytes) => Some(bytes),
        Value::SimpleString(text) => Some(text.into_bytes()),
        Value::Okay => Some(b"OK".to_vec()),
        _ => None,
    }
}

/// Of the answers to a pipeline one that is an error.
pub(crate) fn answered(answer: Value) -> Result<Value, TierError> {
    match answer {
        Value::ServerError(error) => {
            Err(TierError::Refused { code: error.code().into(), detail: error.details().unwrap_or_default().into() })
        }
        answer => Ok(answer),
    }
}

fn pttl_of(answer: &Result<(Value, Option<i64>), TierError>) -> Option<i64> {
    answer.as_ref().ok().and_then(|(_, pttl)| *pttl)
}

fn is_wrong_type(error: &TierError) -> bool {
    matches!(error, TierError::Refused { code, .. } if **code == *"WRONGTYPE")
}

impl Core {
    pub(crate) fn purse(&self, until: Option<Instant>) -> Purse {
        Purse::new(self.budget, until)
    }

    /// What is in the slot. One question, that is one round trip.
    pub(crate) fn look(&self, key: &[u8], purse: &mut Purse) -> Result<Seen, TierError> {
        let asked = Instant::now();
        let result = if self.link.shared.server_time().is_some() {
            let mut get = cmd("GET");
            get.arg(key);
            self.wire.ask(purse, |line| line.ask(&get)).map(|answer| (answer, None))
        } else {
            let mut both = [cmd("GET"), cmd("PTTL")];
            for one in &mut both {
                one.arg(key);
            }
            self.wire.ask(purse, |line| line.ask_all(&both)).and_then(|answers| {
                let mut answers = answers.into_iter();
                let bytes = answered(answers.next().unwrap_or(Value::Nil))?;
                let pttl = match answers.next() {
                    Some(Value::Int(pttl)) => Some(pttl),
                    _ => None,
                };
                Ok((bytes, pttl))
            })
        };
        let when = self.when(pttl_of(&result), asked);
        match result {
            Ok((answer, _)) => Ok(Seen { bytes: bytes_of(answer), when }),
            // Of another type: nothing that could be read, and the claim overwrites it.
            Err(error) if is_wrong_type(&error) => Ok(Seen { bytes: None, when }),
            Err(error) => Err(error),
        }
    }

    /// Now, for something that was asked then.
    pub(crate) fn when(&self, pttl: Option<i64>, asked: Instant) -> When {
        When { pttl, ago: asked.elapsed(), now: self.link.shared.server_time().map(|(_, high)| high) }
    }

    /// How old the value is.
    pub(crate) fn age(facts: &Facts<'_>, when: &When) -> Age {
        let Some(px) = facts.px else { return Age::None };
        match (when.pttl, when.now) {
            (Some(-2), _) => Age::Gone,
            (Some(-1), _) => Age::Persisted,
            (Some(left), _) => {
                let left = u64::try_from(left).unwrap_or(0);
                Age::Known(Duration::from_millis(px.saturating_sub(left)) + when.ago)
            }
            // The latest that it can be there, so that nothing is taken for fresher than it is.
            (None, Some(now)) if facts.written > 0 => {
                Age::Known(Duration::from_micros(now.saturating_sub(facts.written)))
            }
            (None, _) => Age::Unknown,
        }
    }

    /// How long Redis keeps each of these, in ms.
    pub(crate) fn pttls(&self, keys: &[&[u8]], purse: &mut Purse) -> Result<Vec<When>, TierError> {
        let asked = Instant::now();
        let commands: Vec<_> = keys
            .iter()
            .map(|key| {
                let mut pttl = cmd("PTTL");
                pttl.arg(*key);
                pttl
            })
            .collect();
        let answers = self.wire.ask(purse, |line| line.ask_all(&commands))?;
        let when = |answer: &Value| {
            let pttl = if let Value::Int(pttl) = answer { *pttl } else { -2 };
            self.when(Some(pttl), asked)
        };
        Ok(answers.iter().map(when).collect())
    }

    /// What is left of a value of that age; `None` if nothing is.
    pub(crate) fn left(facts: &Facts<'_>, age: &Age) -> Option<Left> {
        let (fresh, keep) =
            (facts.fresh.or(facts.keep).map(Duration::from_millis), facts.keep.map(Duration::from_millis));
        let left = match age {
            Age::None => Left { fresh, keep },
            Age::Known(age) => Left {
                fresh: fresh.map(|fresh| fresh.saturating_sub(*age)),
                keep: keep.map(|keep| keep.saturating_sub(*age)),
            },
            // Nobody can say how old it is: it may be used as what is stale may.
            Age::Persisted => Left { fresh: fresh.map(|_| Duration::ZERO), keep },
            Age::Unknown | Age::Gone => return None,
        };
        (left.keep != Some(Duration::ZERO)).then_some(left)
    }

    /// When each of the tags was last removed. Costs nothing where all are known.
    pub(crate) fn numbers(&self, tags: &[&str], purse: &mut Purse) -> Result<HashMap<Arc<str>, Moment>, TierError> {
        let mut missing = Vec::new();
        let mut numbers = self.tags.look(tags, &mut missing);
        if missing.is_empty() {
            return Ok(numbers);
        }
        let ticket = self.tags.ask(&missing);
        let names: Vec<Vec<u8>> = missing.iter().map(|tag| self.space.tag(tag)).collect();
        let epoch = new_epoch();
        let lives = lives();
        let calls: Vec<Call<'_>> = names
            .iter()
            .map(|name| {
                (vec![self.space.sequence(), &name[..]], vec![epoch.as_bytes(), lives.0.as_bytes(), lives.1.as_bytes()])
            })
            .collect();
        let answers = self.wire.ask(purse, |line| line.eval_all(&self.scripts.tag, &calls))?;
        for (tag, answer) in missing.into_iter().zip(answers) {
            // A tag whose key holds something else covers nothing: what has it is a miss.
            if let Some(number) = bytes_of(answered(answer)?).and_then(|text| Moment::parse(&text)) {
                self.tags.answer(&ticket, &tag, number);
                numbers.insert(tag, number);
            }
        }
        Ok(numbers)
    }

    /// Whether no tag of the value was removed since its load began.
    pub(crate) fn is_valid(facts: &Facts<'_>, numbers: &HashMap<Arc<str>, Moment>) -> bool {
        let covered = |tag: &&str| facts.born.zip(numbers.get(*tag)).is_some_and(|(born, number)| born.covers(*number));
        facts.tags.iter().all(covered)
    }

    /// Where the sequence stands now, or stood a moment ago.
    pub(crate) fn sequence(&self, purse: &mut Purse) -> Result<Option<Moment>, TierError> {
        if let Some(sequence) = self.link.shared.sequence() {
            return Ok(Some(sequence));
        }
        let mut get = cmd("GET");
        get.arg(self.space.sequence());
        let answer = self.wire.ask(purse, |line| line.ask(&get))?;
        Ok(bytes_of(answer).and_then(|text| Moment::parse(&text)))
    }

    /// Claims the slot if it holds what is expected.
    pub(crate) fn claim(
        self: &Arc<Self>,
        key: &Arc<[u8]>,
        expect: &Expect,
        purse: &mut Purse,
    ) -> Result<Claimed, TierError> {
        let mut claimed = self.claim_all(&[(key, expect)], purse)?;
        claimed.pop().unwrap_or(Err(TierError::Closed))
    }

    /// Claims many slots in one go.
    pub(crate) fn claim_all(
        self: &Arc<Self>,
        claims: &[(&Arc<[u8]>, &Expect)],
        purse: &mut Purse,
    ) -> Result<Vec<Result<Claimed, TierError>>, TierError> {
        let shared = &self.link.shared;
        let say_alive = shared.lease_begins(claims.len());
        let held = Held { core: self, leases: claims.len() };
        // Before the claim, so before the load.
        let sequence = shared.sequence();
        let tokens: Vec<[u8; TOKEN]> =
            claims.iter().map(|_| token(shared.owner, u64::from_le_bytes(random()))).collect();
        let life = u64::try_from(self.lease.as_millis()).unwrap_or(u64::MAX).to_string();
        let calls: Vec<Call<'_>> = claims
            .iter()
            .zip(&tokens)
            .map(|((key, expect), token)| {
                let (mode, expected) = expect.args();
                (vec![&key[..]], vec![&token[..], life.as_bytes(), mode, expected])
            })
            .collect();
        let alive = shared.alive();
        let mut get_sequence = cmd("GET");
        get_sequence.arg(self.space.sequence());
        let asked = Instant::now();
        let asked_all = self.wire.ask(purse, |line| {
            // That this process lives must be known before its lease is seen.
            let mut first = Vec::new();
            if say_alive {
                first.push(alive.clone());
            }
            if sequence.is_none() {
                first.push(get_sequence.clone());
            }
            let (mut told, answers) = line.eval_all_after(first, &self.scripts.claim, &calls)?;
            let sequence = match sequence {
                None => told.pop().and_then(bytes_of).and_then(|text| Moment::parse(&text)),
                known => known,
            };
            Ok((answers, sequence))
        });
        // Without an answer they may be ours all the same, and nobody would know: while this process lives nobody takes them over.
        let (answers, sequence) = asked_all.inspect_err(|_| {
            for ((key, _), token) in claims.iter().zip(&tokens) {
                shared.owe(Arc::clone(key), token.to_vec());
            }
        })?;
        if say_alive {
            shared.owner_said();
        }
        let mut claimed = Vec::with_capacity(claims.len());
        for (((key, _), token), answer) in claims.iter().zip(tokens).zip(answers) {
            let lead = || Lease { core: Arc::clone(self), key: Arc::clone(key), token, born: sequence, ended: false };
            claimed.push(answered(answer).map(|answer| match answer {
                Value::Int(_) => Claimed::Led(lead()),
                answer => match bytes_of(answer) {
                    // Asked twice, as the connection went while the answer was on its way.
                    Some(bytes) if bytes.starts_with(&token) => Claimed::Led(lead()),
                    bytes => Claimed::Have(Seen { bytes, when: self.when(None, asked) }),
                },
            }));
        }
        let led = claimed.iter().filter(|one| matches!(one, Ok(Claimed::Led(_)))).count();
        self.counts.led.add(led as u64);
        held.keep(led);
        Ok(claimed)
    }

    /// Whether the process that holds a lease has said lately that it lives.
    pub(crate) fn lives(&self, owner: &[u8; 16], purse: &mut Purse) -> Result<bool, TierError> {
        let mut exists = cmd("EXISTS");
        exists.arg(self.space.owner(owner));
        Ok(self.wire.ask(purse, |line| line.ask(&exists))? != Value::Int(0))
    }

    pub(crate) fn remove_tag(&self, tag: &str, purse: &mut Purse) -> Result<(), TierError> {
        let (name, epoch, lives) = (self.space.tag(tag), new_epoch(), lives());
        let keys = [self.space.sequence(), &name[..]];
        let args = [epoch.as_bytes(), lives.0.as_bytes(), lives.1.as_bytes()];
        let removed = self.wire.ask(purse, |line| line.eval(&self.scripts.remove_tag, &keys, &args));
        // Also when it is not known whether it was done. The link will tell; until then this process must not believe the old
        // number.
        self.tags.changed(tag);
        self.link.shared.forget_sequence();
        removed.map(drop)
    }
}

/// The lives of the sequence and of a tag in ms.
fn lives() -> (String, String) {
    (Space::SEQUENCE_LIFE.as_millis().to_string(), Space::TAG_LIFE.as_millis().to_string())
}

/// Leases that are counted and that perhaps are not got.
struct Held<'a> {
    core: &'a Core,
    leases: usize,
}

impl Held<'_> {
    /// So many were got.
    fn keep(mut self, led: usize) {
        self.leases -= led;
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.core.link.shared.leases_end(self.leases);
    }
}

impl Lease {
    /// Gives it back without a value.
    pub(crate) fn give_back(&mut self) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        let core = &self.core;
        core.counts.abandoned.inc();
        let mut purse = core.purse(None);
        let result = core.wire.ask(&mut purse, |line| line.eval(&core.scripts.abandon, &[&self.key], &[&self.token]));
        if result.is_err() {
            core.link.shared.owe(Arc::clone(&self.key), self.token.to_vec());
        }
        core.link.shared.leases_end(1);
    }

    /// It has ended in some other way.
    pub(crate) fn end(mut self, certain: bool) {
        self.ended = true;
        if !certain {
            self.core.link.shared.owe(Arc::clone(&self.key), self.token.to_vec());
        }
        self.core.link.shared.leases_end(1);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.give_back();
    }
}

impl std::fmt::Debug for Lease {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lease").field("ended", &self.ended).finish_non_exhaustive()
    }
}
