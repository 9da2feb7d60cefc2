//! One message to everybody who matches.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use fullbore_core::{Event, Failure, Overflow, Patience, Refusal, contain, earlier};
use fullbore_metrics::{Departure, Outcome};
use smallvec::SmallVec;

use crate::buffer::Offer;
use crate::dead::DeadReason;
use crate::error::Fault;
use crate::here;
use crate::index::{Given, settle};
use crate::pattern::check_topic;
use crate::receipt::Receipt;
use crate::rule::What;
use crate::shared::{Entry, Group, Matched, Shared, To};
use crate::target::Target;

/// What a publish has to do with, and the panics on the way there.
pub(crate) struct Admitted<M> {
    pub(crate) matched: Matched<M>,
    pub(crate) panic: FirstPanic,
}

/// A message that has been offered to everybody, with what is still to be done about it.
pub(crate) struct Delivery<M> {
    pub(crate) receipt: Receipt,
    /// Displaced and failed ones, and this one if it was unroutable; refusals are in the receipt.
    letters: Vec<(Arc<M>, DeadReason)>,
    pub(crate) panic: FirstPanic,
    /// Destinations that took it and panicked: they matched, and are no part of a receipt that nobody sees.
    failed: usize,
    pub(crate) begun: Option<Instant>,
    /// When the last sink was through, while nothing has come between: the next one begins then. A look at the clock costs as much
    /// as many a sink.
    last: Option<Instant>,
}

/// The first panic of several pieces of user code, all of which have to run.
#[derive(Default)]
pub(crate) struct FirstPanic(Option<Box<dyn Any + Send>>);

impl FirstPanic {
    pub(crate) fn catch<R>(&mut self, f: impl FnOnce() -> R) -> Result<R, Failure> {
        catch_unwind(AssertUnwindSafe(f)).map_err(|payload| {
            let failure = Failure::panicked(&*payload);
            match &self.0 {
                None => self.0 = Some(payload),
                // Its destructor is the user's, too; what it says is in `failure`.
                Some(_) => drop(contain(|| drop(payload))),
            }
            failure
        })
    }

    /// Goes on with the panic if there was one. Nothing of the user's may be left to drop.
    pub(crate) fn resume(self) {
        if let Some(payload) = self.0 {
            resume_unwind(payload);
        }
    }
}

/// What a destination said, and the message that another one displaced there.
type Answer<M> = Result<Option<Arc<M>>, Refusal>;

/// One that was full and may be waited for, by its place among the matched; with the hash of the key, if it has lanes.
type Full = SmallVec<[(usize, u64); 8]>;

impl<M> Shared<M> {
    /// Whom a message is for, if anything can be published under `topic`.
    pub(crate) fn admit(&self, topic: &str, message: &M) -> Result<Admitted<M>, Fault> {
        let admitted = match check_topic(topic) {
            Ok(()) => self.search(topic, message).ok_or(Fault::Closed),
            Err(malformed) => Err(Fault::Malformed(Box::new(malformed))),
        };
        if admitted.is_err() {
            self.station.refused(1);
        }
        admitted
    }

    fn search(&self, topic: &str, message: &M) -> Option<Admitted<M>> {
        let mut panic = FirstPanic::default();
        let mut given = Given::new();
        // ORDERING: Relaxed: see where it is stored.
        if let Some(headers) = &self.facts.headers
            && self.header_rules.load(Ordering::Relaxed) > 0
        {
            let read = panic.catch(|| headers(message, &mut |key, value| given.push((key, value))));
            if let Err(failure) = read {
                given.clear();
                self.desk.emit(Event::Panic, || format!("headers: {failure}"));
            }
        }
        let (mut matched, asking) = self.find(topic, &given)?;
        if let Some(asking) = asking {
            for (id, entry) in asking.iter() {
                let What::When(predicate) = &entry.rule.what else { continue };
                match panic.catch(|| predicate(message)) {
                    Ok(true) => matched.push((*id, Arc::clone(entry))),
                    Ok(false) => {}
                    Err(failure) => self.desk.emit(Event::Panic, || format!("{}: predicate {failure}", entry.name)),
                }
            }
            settle(&mut matched);
        }
        Some(Admitted { matched, panic })
    }

    /// When a message that is published now is worth nothing any more.
    pub(crate) fn expires(&self, message: &M, panic: &mut FirstPanic) -> Option<Instant> {
        let ttl = panic.catch(|| self.facts.ttl.as_ref().and_then(|ttl| ttl(message)));
        ttl.unwrap_or_default().and_then(|ttl| self.clock.after(ttl))
    }

    pub(crate) fn publish(&self, admitted: Admitted<M>, topic: &str, message: &Arc<M>, patience: Patience) -> Receipt {
        let (delivery, matched) = self.deliver(admitted, topic, message, patience);
        self.conclude(delivery, matched, Some(message))
    }

    /// Offers the message to everybody: first to those whose buffers can say at once, then to sinks, then to groups, then to
    /// those that make the publisher wait. So whoever waits here holds up nobody else's copy of this message.
    pub(crate) fn deliver(
        &self,
        admitted: Admitted<M>,
        topic: &str,
        message: &Arc<M>,
        patience: Patience,
    ) -> (Delivery<M>, Matched<M>) {
        let Admitted { matched, mut panic } = admitted;
        let expires = if self.facts.ttl.is_some() { self.expires(message, &mut panic) } else { None };
        let mut delivery = self.begin(topic, message, panic, !matched.is_empty());
        self.offer_all(&mut delivery, &matched, &Offer { message, expires }, patience, |_| true);
        (delivery, matched)
    }

    pub(crate) fn begin(&self, topic: &str, message: &Arc<M>, panic: FirstPanic, routable: bool) -> Delivery<M> {
        let mut delivery =
            Delivery { receipt: Receipt::default(), letters: Vec::new(), panic, failed: 0, begun: None, last: None };
        if routable {
            if self.station.entered() {
                delivery.begun = Some(Instant::now());
            }
        } else {
            self.station.arrived(1);
            self.station.departed(Departure::Dropped, 1);
            delivery.letters.push((Arc::clone(message), DeadReason::Unroutable { topic: topic.into() }));
        }
        delivery
    }

    /// `wanted` says which of the matched are meant.
    pub(crate) fn offer_all(
        &self,
        delivery: &mut Delivery<M>,
        matched: &Matched<M>,
        offer: &Offer<'_, M>,
        patience: Patience,
        wanted: impl Fn(&Entry<M>) -> bool,
    ) {
        let (mut sinks, mut groups) = (false, false);
        let mut full = Full::new();
        for (at, (_, entry)) in matched.iter().enumerate() {
            if entry.group.is_some() {
                groups = true;
                continue;
            }
            if !wanted(entry) {
                continue;
            }
            let (hash, outcome) = match &entry.to {
                To::Sink(..) => {
                    sinks = true;
                    continue;
                }
                To::Buffer(buffer) => (0, buffer.offer(offer, Patience::Try)),
                To::Lanes(lanes) => match delivery.panic.catch(|| lanes.hash(offer.message)) {
                    Ok(hash) => (hash, lanes.offer(hash, offer, Patience::Try)),
                    Err(failure) => {
                        self.panicked(delivery, entry, offer, failure);
                        continue;
                    }
                },
            };
            match outcome {
                Err(Refusal::Full) if entry.waits(patience) => full.push((at, hash)),
                outcome => delivery.note(entry, &entry.name, outcome),
            }
        }
        if sinks || groups || !full.is_empty() {
            // What may take long is timed each time.
            if delivery.begun.is_none() {
                delivery.begun = Some(Instant::now());
                delivery.last = delivery.begun;
            }
        }
        if sinks {
            let alone = matched.iter().filter(|(_, entry)| entry.group.is_none() && wanted(entry));
            for (_, entry) in alone {
                if let To::Sink(target, overflow) = &entry.to {
                    self.offer_sink(delivery, entry, &entry.name, &**target, offer, self.patience(*overflow, patience));
                }
            }
        }
        if groups {
            self.offer_groups(delivery, matched, offer, patience, wanted);
        }
        for (at, hash) in full {
            let entry = &matched[at].1;
            let outcome = self.offer_patiently(entry, hash, offer, patience);
            delivery.note(entry, &entry.name, outcome);
        }
    }

    /// A route's own policy instead of its sink's.
    fn patience(&self, overflow: Option<Overflow>, patience: Patience) -> Patience {
        match (overflow, patience) {
            (Some(Overflow::Reject), _) => Patience::Try,
            (Some(Overflow::BlockFor(limit)), Patience::Policy(cap)) => {
                Patience::Policy(earlier(self.clock.after(limit), cap))
            }
            (_, patience) => patience,
        }
    }

    /// To a buffer that may have to be waited for.
    fn offer_patiently(&self, entry: &Entry<M>, hash: u64, offer: &Offer<'_, M>, patience: Patience) -> Answer<M> {
        // Else room would only come from this thread.
        let _waiting = here::wait_for(entry.id).ok_or(Refusal::Full)?;
        match &entry.to {
            To::Buffer(buffer) => buffer.offer(offer, patience),
            To::Lanes(lanes) => lanes.offer(hash, offer, patience),
            To::Sink(..) => Err(Refusal::Full),
        }
    }

    pub(crate) fn panicked(
        &self,
        delivery: &mut Delivery<M>,
        entry: &Entry<M>,
        offer: &Offer<'_, M>,
        failure: Failure,
    ) {
        self.desk.emit(Event::Panic, || format!("{}: {failure}", entry.name));
        entry.station.entered();
        entry.station.ended(Outcome::Failed, 1);
        delivery.failed += 1;
        let destination = Arc::clone(&entry.name);
        delivery.letters.push((Arc::clone(offer.message), DeadReason::Failed { destination, failure }));
    }

    /// `None` if the sink panicked, which is noted.
    fn ask_sink(
        &self,
        delivery: &mut Delivery<M>,
        entry: &Entry<M>,
        target: &dyn Target<M>,
        offer: &Offer<'_, M>,
        patience: Patience,
    ) -> Option<Result<(), Refusal>> {
        let begun = delivery.last.take().unwrap_or_else(Instant::now);
        let outcome = delivery.panic.catch(|| target.offer(offer.message, patience));
        let ended = Instant::now();
        delivery.last = Some(ended);
        let took = ended.saturating_duration_since(begun);
        match outcome {
            Ok(Ok(())) => {
                entry.station.entered();
                entry.station.took(took);
                entry.station.ended(Outcome::Served, 1);
                Some(Ok(()))
            }
            Ok(refused) => Some(refused),
            Err(failure) => {
                entry.station.took(took);
                self.panicked(delivery, entry, offer, failure);
                None
            }
        }
    }

    fn offer_sink(
        &self,
        delivery: &mut Delivery<M>,
        entry: &Entry<M>,
        name: &Arc<str>,
        target: &dyn Target<M>,
        offer: &Offer<'_, M>,
        patience: Patience,
    ) {
        if let Some(outcome) = self.ask_sink(delivery, entry, target, offer, patience) {
            delivery.note(entry, name, outcome.map(|()| None));
        }
    }

    /// Each group once: to the member that is the least full, to the next one if it refuses, and if all do, to the first as its
    /// policy says.
    fn offer_groups(
        &self,
        delivery: &mut Delivery<M>,
        matched: &Matched<M>,
        offer: &Offer<'_, M>,
        patience: Patience,
        wanted: impl Fn(&Entry<M>) -> bool,
    ) {
        let mut done = SmallVec::<[u64; 8]>::new();
        for (_, first) in matched {
            let Some(group) = &first.group else { continue };
            if done.contains(&group.id) {
                continue;
            }
            done.push(group.id);
            let of_group = |entry: &&Arc<Entry<M>>| entry.group.as_ref().is_some_and(|other| other.id == group.id);
            let members = matched.iter().map(|(_, entry)| entry).filter(of_group);
            if members.clone().all(|entry| wanted(entry)) {
                let members = emptiest_first(group, members.map(|entry| &**entry));
                self.offer_group(delivery, &group.name, &members, offer, patience);
            }
        }
    }

    fn offer_group(
        &self,
        delivery: &mut Delivery<M>,
        name: &Arc<str>,
        members: &[(usize, &Entry<M>)],
        offer: &Offer<'_, M>,
        patience: Patience,
    ) {
        delivery.last = None;
        let mut first_refusal = None;
        for (fullness, entry) in members {
            let outcome = match &entry.to {
                To::Sink(target, _) => match self.ask_sink(delivery, entry, &**target, offer, Patience::Try) {
                    Some(outcome) => outcome.map(|()| None),
                    None => return,
                },
                // A full one that displaces is for when all are full.
                _ if *fullness >= 1000 && members.len() > 1 => Err(Refusal::Full),
                To::Buffer(buffer) => buffer.offer(offer, Patience::Try),
                To::Lanes(lanes) => match delivery.panic.catch(|| lanes.hash(offer.message)) {
                    Ok(hash) => lanes.offer(hash, offer, Patience::Try),
                    Err(failure) => return self.panicked(delivery, entry, offer, failure),
                },
            };
            match outcome {
                Ok(displaced) => return delivery.note(entry, name, Ok(displaced)),
                // One that may take it later is worth more than one that never will.
                Err(reason) if first_refusal.is_none_or(|(_, first)| first == Refusal::Closed) => {
                    first_refusal = Some((*entry, reason));
                }
                Err(_) => {}
            }
        }
        let Some((entry, reason)) = first_refusal else { return };
        let outcome = match &entry.to {
            _ if reason == Refusal::Closed => Err(reason),
            To::Sink(target, overflow) if patience != Patience::Try => {
                let patience = self.patience(*overflow, patience);
                return self.offer_sink(delivery, entry, name, &**target, offer, patience);
            }
            To::Sink(..) => Err(reason),
            To::Buffer(buffer) if !entry.waits(patience) => buffer.offer(offer, patience),
            To::Buffer(_) => self.offer_patiently(entry, 0, offer, patience),
            To::Lanes(lanes) => match delivery.panic.catch(|| lanes.hash(offer.message)) {
                Ok(hash) if !entry.waits(patience) => lanes.offer(hash, offer, patience),
                Ok(hash) => self.offer_patiently(entry, hash, offer, patience),
                Err(failure) => return self.panicked(delivery, entry, offer, failure),
            },
        };
        delivery.note(entry, name, outcome);
    }

    /// Sends off the dead letters, counts the publish, and resumes a panic if there was one. `refused` is the message, if
    /// its refusals are dead letters, too; without it they are the caller's business.
    pub(crate) fn conclude(&self, delivery: Delivery<M>, matched: Matched<M>, refused: Option<&Arc<M>>) -> Receipt {
        let Delivery { receipt, letters, mut panic, failed, begun, .. } = delivery;
        let refusals = refused.into_iter().flat_map(|message| {
            receipt.refused().iter().map(|(name, reason)| {
                let reason = DeadReason::Refused { destination: Arc::clone(name), reason: *reason };
                (Arc::clone(message), reason)
            })
        });
        for (message, reason) in letters.into_iter().chain(refusals) {
            if let Err(failure) = panic.catch(|| self.desk.post(message, reason)) {
                self.desk.emit(Event::Panic, || format!("dead-letter hook: {failure}"));
            }
        }
        if !matched.is_empty() {
            if let Some(begun) = begun {
                self.station.took(begun.elapsed());
            }
            let all = receipt.refused().is_empty() && failed == 0;
            self.station.ended(if all { Outcome::Served } else { Outcome::Failed }, 1);
        }
        // A route that was removed meanwhile may go with it, and its sink is the user's.
        if panic.0.is_some() {
            drop(contain(|| drop(matched)));
        } else {
            drop(matched);
        }
        panic.resume();
        receipt
    }
}

/// The members of a group with how full they are; among those that are equally full the one whose turn it is comes first.
pub(crate) fn emptiest_first<'e, M: 'e>(
    group: &Group,
    members: impl Iterator<Item = &'e Entry<M>>,
) -> SmallVec<[(usize, &'e Entry<M>); 8]> {
    // How full they are changes all the time, so it is looked at once.
    let mut members: SmallVec<_> = members.map(|entry| (entry.fullness(), entry)).collect();
    // ORDERING: Relaxed: it only has to differ from time to time.
    let turn = group.turn.fetch_add(1, Ordering::Relaxed) % members.len().max(1);
    members.rotate_left(turn);
    members.sort_by_key(|(fullness, _)| *fullness);
    members
}

impl<M> Delivery<M> {
    pub(crate) fn note(&mut self, entry: &Entry<M>, name: &Arc<str>, outcome: Answer<M>) {
        match outcome {
            Ok(displaced) => {
                self.receipt.took(name, displaced.is_some());
                if let Some(old) = displaced {
                    self.letters.push((old, DeadReason::Displaced { destination: Arc::clone(&entry.name) }));
                }
            }
            Err(reason) => {
                entry.station.refused(1);
                self.receipt.refuse(name, reason);
            }
        }
    }

    /// Why nobody at all took the message, if so; it can then be handed back without being a duplicate later.
    pub(crate) fn refused_by_all(&self) -> Option<Refusal> {
        let refused = self.receipt.refused();
        if self.receipt.accepted() > 0 || self.failed > 0 {
            return None;
        }
        // One that may take it later is worth more to the caller than one that never will.
        let open = refused.iter().find(|(_, reason)| *reason != Refusal::Closed);
        open.or(refused.first()).map(|(_, reason)| *reason)
    }
}

impl<M> Entry<M> {
    /// Whether a publisher of such patience waits for room here.
    pub(crate) fn waits(&self, patience: Patience) -> bool {
        match &self.to {
            To::Buffer(buffer) => buffer.waits(patience),
            To::Lanes(lanes) => lanes.waits(patience),
            To::Sink(..) => false,
        }
    }

    /// How much of its room is taken, in thousandths; a sink is empty until it refuses.
    pub(crate) fn fullness(&self) -> usize {
        match &self.to {
            To::Buffer(buffer) => buffer.fullness(),
            To::Lanes(lanes) => lanes.fullness(),
            To::Sink(..) => 0,
        }
    }
}
