//! One message to everybody who matches.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::time::Instant;

use fullbore_core::{Event, Failure, Patience, Refusal, Sink, contain};
use fullbore_metrics::{Departure, Outcome};

use crate::dead::DeadReason;
use crate::error::Fault;
use crate::here;
use crate::pattern::check_topic;
use crate::receipt::Receipt;
use crate::shared::{Entry, Routes, Shared, To};

/// A message that has been offered to everybody, with what is still to be done about it.
pub(crate) struct Delivery<M> {
    pub(crate) receipt: Receipt,
    /// Displaced and failed ones, and this one if it was unroutable; refusals are in the receipt.
    letters: Vec<(Arc<M>, DeadReason)>,
    panic: FirstPanic,
    begun: Instant,
    /// Dropped last: a route that was removed meanwhile may go with it, and its sink is the user's.
    routes: Routes<M>,
}

/// The first panic of several pieces of user code, all of which have to run.
#[derive(Default)]
struct FirstPanic(Option<Box<dyn Any + Send>>);

impl FirstPanic {
    fn catch<R>(&mut self, f: impl FnOnce() -> R) -> Result<R, Failure> {
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
}

impl<M> Shared<M> {
    /// The list to publish to, if anything can be published under `topic`.
    pub(crate) fn admit(&self, topic: &str) -> Result<Routes<M>, Fault> {
        let admitted = match check_topic(topic) {
            Ok(()) => self.routes().ok_or(Fault::Closed),
            Err(malformed) => Err(Fault::Malformed(Box::new(malformed))),
        };
        if admitted.is_err() {
            self.station.refused(1);
        }
        admitted
    }

    pub(crate) fn publish(&self, routes: &Routes<M>, topic: &str, message: &Arc<M>, patience: Patience) -> Receipt {
        let delivery = self.deliver(routes, topic, message, patience);
        self.conclude(delivery, Some(message))
    }

    /// Offers the message to everybody: first to those whose buffers can say at once, then to sinks, then to those that
    /// make the publisher wait. So whoever waits here holds up nobody else's copy of this message.
    pub(crate) fn deliver(&self, routes: &Routes<M>, topic: &str, message: &Arc<M>, patience: Patience) -> Delivery<M> {
        self.station.arrived(1);
        let begun = Instant::now();
        let mut delivery = Delivery {
            receipt: Receipt::default(),
            letters: Vec::new(),
            panic: FirstPanic::default(),
            begun,
            routes: Arc::clone(routes),
        };
        let (mut sinks, mut full) = (Vec::new(), Vec::new());
        for entry in routes.iter().filter(|entry| entry.pattern.matches(topic)) {
            if delivery.receipt.matched == 0 {
                self.station.began(1);
            }
            delivery.receipt.matched += 1;
            match &entry.to {
                To::Sink(sink) => sinks.push((entry, sink)),
                To::Buffer(buffer) => match buffer.offer(message, Patience::Try) {
                    Err(Refusal::Full) if buffer.waits(patience) => full.push((entry, buffer)),
                    outcome => delivery.note(entry, outcome),
                },
            }
        }
        for (entry, sink) in sinks {
            self.offer_sink(&mut delivery, entry, &**sink, message, patience);
        }
        for (entry, buffer) in full {
            let outcome = match here::wait_for(buffer.id) {
                Some(_waiting) => buffer.offer(message, patience),
                // Room would only come from this thread.
                None => Err(Refusal::Full),
            };
            delivery.note(entry, outcome);
        }
        if delivery.receipt.matched == 0 {
            self.station.departed(Departure::Dropped, 1);
            delivery.letters.push((Arc::clone(message), DeadReason::Unroutable { topic: topic.into() }));
        }
        delivery
    }

    fn offer_sink(
        &self,
        delivery: &mut Delivery<M>,
        entry: &Entry<M>,
        sink: &dyn Sink<Arc<M>>,
        message: &Arc<M>,
        patience: Patience,
    ) {
        let copy = Arc::clone(message);
        let begun = Instant::now();
        let outcome = delivery.panic.catch(|| match patience {
            Patience::Try => sink.try_send(copy),
            Patience::Policy(Some(deadline)) => sink.send_deadline(copy, Some(deadline)),
            _ => sink.send(copy),
        });
        let took = begun.elapsed();
        match outcome {
            Ok(Ok(())) => {
                entry.sent(Outcome::Served, took);
                delivery.note(entry, Ok(None));
            }
            Ok(Err(error)) => delivery.note(entry, Err(error.reason())),
            Err(failure) => {
                self.desk.emit(Event::Panic, || format!("{}: {failure}", entry.name));
                entry.sent(Outcome::Failed, took);
                let destination = Arc::clone(&entry.name);
                delivery.letters.push((Arc::clone(message), DeadReason::Failed { destination, failure }));
            }
        }
    }

    /// Sends off the dead letters, counts the publish, and resumes a panic if there was one. `refused` is the message, if
    /// its refusals are dead letters, too; without it they are the caller's business.
    pub(crate) fn conclude(&self, delivery: Delivery<M>, refused: Option<&Arc<M>>) -> Receipt {
        let Delivery { receipt, letters, mut panic, begun, routes } = delivery;
        let refusals = refused.into_iter().flat_map(|message| {
            receipt.refused.iter().map(|(name, reason)| {
                let reason = DeadReason::Refused { destination: Arc::clone(name), reason: *reason };
                (Arc::clone(message), reason)
            })
        });
        for (message, reason) in letters.into_iter().chain(refusals) {
            if let Err(failure) = panic.catch(|| self.desk.post(message, reason)) {
                self.desk.emit(Event::Panic, || format!("dead-letter hook: {failure}"));
            }
        }
        if receipt.matched > 0 {
            let all = receipt.accepted == receipt.matched;
            self.station.took(begun.elapsed());
            self.station.ended(if all { Outcome::Served } else { Outcome::Failed }, 1);
        }
        drop(routes);
        if let Some(payload) = panic.0 {
            resume_unwind(payload);
        }
        receipt
    }
}

impl<M> Delivery<M> {
    fn note(&mut self, entry: &Entry<M>, outcome: Result<Option<Arc<M>>, Refusal>) {
        match outcome {
            Ok(displaced) => {
                self.receipt.accepted += 1;
                if let Some(old) = displaced {
                    self.receipt.displaced += 1;
                    self.letters.push((old, DeadReason::Displaced { destination: Arc::clone(&entry.name) }));
                }
            }
            Err(reason) => {
                entry.station.refused(1);
                self.receipt.refused.push((Arc::clone(&entry.name), reason));
            }
        }
    }

    /// Why nobody at all took the message, if so; it can then be handed back without being a duplicate later.
    pub(crate) fn refused_by_all(&self) -> Option<Refusal> {
        let refused = &self.receipt.refused;
        if self.receipt.matched == 0 || refused.len() < self.receipt.matched {
            return None;
        }
        // One that may take it later is worth more to the caller than one that never will.
        let open = refused.iter().find(|(_, reason)| *reason != Refusal::Closed);
        open.or(refused.first()).map(|(_, reason)| *reason)
    }
}

impl<M> Entry<M> {
    /// Counts what a sink did with a message.
    fn sent(&self, outcome: Outcome, took: std::time::Duration) {
        self.station.arrived(1);
        self.station.began(1);
        self.station.took(took);
        self.station.ended(outcome, 1);
    }
}
