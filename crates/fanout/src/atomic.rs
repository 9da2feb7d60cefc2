//! All or nothing: places first, the message afterwards.
//!
//! No wait is begun while a place is kept: two publishers that each keep what the other waits for would wait for ever. Places are
//! tried for everywhere at once; if one is not to be had all are given back, that one is waited for alone, and the others are
//! tried again while it is kept.

use std::sync::Arc;
use std::time::Instant;

use fullbore_core::{Overflow, Patience, Place, Refusal, earlier};
use fullbore_metrics::Outcome;
use smallvec::SmallVec;

use crate::buffer::{Buffer, Offer};
use crate::error::{Fault, PublishError};
use crate::here;
use crate::lanes::Inside;
use crate::publish::{Admitted, Delivery, emptiest_first};
use crate::receipt::Receipt;
use crate::reserve;
use crate::shared::{Entry, Matched, Shared, To};

/// A place that is kept at a destination, until it is filled or dropped.
enum Kept<'e, M> {
    Buffer(&'e Buffer<M>, Option<Place>),
    Lane(Inside<'e, M>, Option<Place>),
    Sink(Option<Box<dyn reserve::Place<Arc<M>> + 'e>>),
}

impl<M> Drop for Kept<'_, M> {
    fn drop(&mut self) {
        let (buffer, place) = match self {
            Kept::Buffer(buffer, place) => (*buffer, place.take()),
            Kept::Lane(inside, place) => (&*inside.lane, place.take()),
            Kept::Sink(_) => return,
        };
        if let Some(place) = place {
            buffer.inbox.unreserve(place);
        }
    }
}

/// One of those that have to take the message: a destination of its own, or a group.
struct Slot<'e, M> {
    name: &'e Arc<str>,
    members: SmallVec<[&'e Entry<M>; 2]>,
}

/// Why there is no place.
enum NoPlace {
    Refused(Refusal),
    Cannot,
}

impl<M> Shared<M> {
    /// # Errors
    /// Why it was given to nobody.
    pub(crate) fn publish_all_or_nothing(
        &self,
        admitted: Admitted<M>,
        topic: &str,
        message: M,
        patience: Patience,
    ) -> Result<Receipt, PublishError<M>> {
        let Admitted { matched, mut panic } = admitted;
        let expires = if self.facts.ttl.is_some() { self.expires(&message, &mut panic) } else { None };
        let slots = slots(&matched);
        let kept = match panic.catch(|| self.keep_all(&slots, &message, patience)) {
            Ok(Ok(kept)) => kept,
            // On the way out of a panic (of a key or a sink) every place was given back.
            otherwise => {
                let fault = otherwise.ok().and_then(Result::err).unwrap_or(Fault::Closed);
                drop(slots);
                self.station.refused(1);
                drop(fullbore_core::contain(|| drop(matched)));
                panic.resume();
                return Err(PublishError::new(message, fault));
            }
        };
        let message = &Arc::new(message);
        let offer = Offer { message, expires };
        let mut delivery = self.begin(topic, message, panic, !matched.is_empty());
        delivery.begun.get_or_insert_with(Instant::now);
        for ((name, entry), kept) in kept {
            self.fill(&mut delivery, entry, name, kept, &offer);
        }
        drop(slots);
        self.offer_all(&mut delivery, &matched, &offer, patience, |entry| entry.optional);
        Ok(self.conclude(delivery, matched, Some(message)))
    }

    fn fill(
        &self,
        delivery: &mut Delivery<M>,
        entry: &Entry<M>,
        name: &Arc<str>,
        mut kept: Kept<'_, M>,
        offer: &Offer<'_, M>,
    ) {
        let (buffer, place) = match &mut kept {
            Kept::Buffer(buffer, place) => (*buffer, place.take()),
            Kept::Lane(inside, place) => (&*inside.lane, place.take()),
            Kept::Sink(place) => return self.fill_sink(delivery, entry, name, place.take(), offer),
        };
        if let Some(place) = place {
            let displaced = buffer.fill(place, offer);
            delivery.note(entry, name, Ok(displaced));
        }
    }

    fn fill_sink(
        &self,
        delivery: &mut Delivery<M>,
        entry: &Entry<M>,
        name: &Arc<str>,
        place: Option<Box<dyn reserve::Place<Arc<M>> + '_>>,
        offer: &Offer<'_, M>,
    ) {
        let begun = Instant::now();
        let filled = delivery.panic.catch(|| place.map(|place| place.fill(Arc::clone(offer.message))));
        entry.station.took(begun.elapsed());
        match filled {
            Ok(_) => {
                entry.station.entered();
                entry.station.ended(Outcome::Served, 1);
                delivery.note(entry, name, Ok(None));
            }
            Err(failure) => self.panicked(delivery, entry, offer, failure),
        }
    }

    #[expect(clippy::type_complexity, reason = "in one place")]
    fn keep_all<'e>(
        &self,
        slots: &[Slot<'e, M>],
        message: &M,
        patience: Patience,
    ) -> Result<SmallVec<[((&'e Arc<str>, &'e Entry<M>), Kept<'e, M>); 8]>, Fault> {
        let begun = self.clock.now();
        let fault = |slot: &Slot<'_, M>, why| match why {
            NoPlace::Refused(reason) => {
                if let Some(entry) = slot.members.first() {
                    entry.station.refused(1);
                }
                Fault::Withheld(Arc::clone(slot.name), reason)
            }
            NoPlace::Cannot => Fault::NoReserve(Arc::clone(slot.name)),
        };
        let mut waited: Option<(usize, &'e Entry<M>, Kept<'e, M>)> = None;
        'again: loop {
            let mut all = SmallVec::new();
            let first = waited.as_ref().map(|(at, ..)| *at);
            for (at, slot) in slots.iter().enumerate() {
                let tried = match waited.take_if(|_| first == Some(at)) {
                    Some((_, entry, kept)) => Ok((entry, kept)),
                    None => slot.keep(message, Patience::Try),
                };
                let why = match tried {
                    Ok((entry, kept)) => {
                        all.push(((slot.name, entry), kept));
                        continue;
                    }
                    Err(why) => why,
                };
                // Whatever comes now, nothing is kept meanwhile.
                drop(all);
                drop(waited.take());
                let NoPlace::Refused(Refusal::Full) = why else { return Err(fault(slot, why)) };
                let Some(entry) = slot.members.iter().find(|entry| entry.may_be_waited_for(patience)) else {
                    return Err(fault(slot, why));
                };
                // Each destination's own limit counts from the beginning, however often it is waited for.
                let cap = |entry: &Entry<M>| match (patience, entry.overflow()) {
                    (Patience::Policy(cap), Some(Overflow::BlockFor(limit))) => {
                        Patience::Policy(earlier(begun.checked_add(limit), cap))
                    }
                    (patience, _) => patience,
                };
                let Some(_waiting) = here::wait_for(entry.id) else { return Err(fault(slot, why)) };
                let kept = entry.keep(message, cap(entry)).map_err(|why| fault(slot, why))?;
                waited = Some((at, *entry, kept));
                continue 'again;
            }
            return Ok(all);
        }
    }
}

fn slots<M>(matched: &Matched<M>) -> SmallVec<[Slot<'_, M>; 8]> {
    let mut slots = SmallVec::<[Slot<'_, M>; 8]>::new();
    let mut groups = SmallVec::<[u64; 8]>::new();
    for (_, entry) in matched {
        let Some(group) = &entry.group else {
            if !entry.optional {
                slots.push(Slot { name: &entry.name, members: SmallVec::from_slice(&[&**entry]) });
            }
            continue;
        };
        if groups.contains(&group.id) {
            continue;
        }
        groups.push(group.id);
        let members = matched.iter().map(|(_, entry)| &**entry);
        let members = members.filter(|entry| entry.group.as_ref().is_some_and(|other| other.id == group.id));
        // A group of optional members only is offered the message afterwards.
        if !members.clone().all(|entry| entry.optional) {
            let members = emptiest_first(group, members).into_iter().map(|(_, entry)| entry).collect();
            slots.push(Slot { name: &group.name, members });
        }
    }
    slots
}

impl<'e, M> Slot<'e, M> {
    /// A place at the first member that has one.
    fn keep(&self, message: &M, patience: Patience) -> Result<(&'e Entry<M>, Kept<'e, M>), NoPlace> {
        let mut why = None;
        for entry in &self.members {
            match entry.keep(message, patience) {
                Ok(kept) => return Ok((entry, kept)),
                // One that may have a place later is worth more than one that never will.
                Err(NoPlace::Refused(Refusal::Full)) => why = Some(NoPlace::Refused(Refusal::Full)),
                Err(other) => why = Some(why.unwrap_or(other)),
            }
        }
        Err(why.unwrap_or(NoPlace::Cannot))
    }
}

impl<M> Entry<M> {
    fn keep(&self, message: &M, patience: Patience) -> Result<Kept<'_, M>, NoPlace> {
        match &self.to {
            To::Buffer(buffer) => {
                let place = buffer.inbox.reserve(patience).map_err(NoPlace::Refused)?;
                Ok(Kept::Buffer(buffer, Some(place)))
            }
            To::Lanes(lanes) => {
                let inside = lanes.enter(lanes.hash(message), patience).map_err(NoPlace::Refused)?;
                let place = inside.reserve(patience).map_err(NoPlace::Refused)?;
                Ok(Kept::Lane(inside, Some(place)))
            }
            To::Sink(target, _) => {
                let place = target.reserve(patience).ok_or(NoPlace::Cannot)?;
                Ok(Kept::Sink(Some(place.map_err(NoPlace::Refused)?)))
            }
        }
    }

    fn may_be_waited_for(&self, patience: Patience) -> bool {
        match &self.to {
            To::Sink(_, Some(Overflow::Reject)) => false,
            To::Sink(..) => patience != Patience::Try,
            _ => self.waits(patience),
        }
    }

    fn overflow(&self) -> Option<Overflow> {
        match &self.to {
            To::Buffer(buffer) => Some(buffer.overflow),
            To::Lanes(lanes) => Some(lanes.overflow),
            To::Sink(_, overflow) => *overflow,
        }
    }
}
