//! What the clones of a router share: the routes, and how they come, go and end.

use std::collections::HashMap;
use std::mem;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use fullbore_core::{Clock, Event, FlushError, Leftover, Overflow, Undelivered};
use fullbore_metrics::{Departure, Station};
use parking_lot::RwLock;

use crate::buffer::Buffer;
use crate::config::{Config, Facts};
use crate::dead::{DeadReason, Desk};
use crate::error::RouteError;
use crate::here;
use crate::index::{Found, Given, Index, Slots};
use crate::lanes::Lanes;
use crate::rule::Rule;
use crate::target::Target;

/// A destination and what it wants. Never changed once it is in the index.
pub(crate) struct Entry<M> {
    pub(crate) id: u64,
    pub(crate) name: Arc<str>,
    pub(crate) rule: Rule<M>,
    pub(crate) station: Station,
    pub(crate) group: Option<Arc<Group>>,
    /// An all-or-nothing publish goes on without it.
    pub(crate) optional: bool,
    pub(crate) to: To<M>,
}

pub(crate) enum To<M> {
    /// With the route's own policy, if it has one.
    Sink(Box<dyn Target<M>>, Option<Overflow>),
    Buffer(Arc<Buffer<M>>),
    Lanes(Arc<Lanes<M>>),
}

/// Destinations that share one copy of each message.
pub(crate) struct Group {
    pub(crate) id: u64,
    pub(crate) name: Arc<str>,
    /// Whose turn it is among those that are equally full.
    pub(crate) turn: AtomicUsize,
}

/// A subscription with threads of ours.
pub(crate) enum Served<M> {
    One(Arc<Buffer<M>>),
    Lanes(Arc<Lanes<M>>),
}

impl<M> Clone for Served<M> {
    fn clone(&self) -> Self {
        match self {
            Served::One(buffer) => Served::One(Arc::clone(buffer)),
            Served::Lanes(lanes) => Served::Lanes(Arc::clone(lanes)),
        }
    }
}

impl<M> Served<M> {
    pub(crate) fn id(&self) -> u64 {
        match self {
            Served::One(buffer) => buffer.id,
            Served::Lanes(lanes) => lanes.id,
        }
    }

    pub(crate) fn name(&self) -> &Arc<str> {
        match self {
            Served::One(buffer) => &buffer.name,
            Served::Lanes(lanes) => &lanes.name,
        }
    }

    pub(crate) fn station(&self) -> &Station {
        match self {
            Served::One(buffer) => &buffer.station,
            Served::Lanes(lanes) => &lanes.station,
        }
    }

    pub(crate) fn waiting(&self) -> usize {
        match self {
            Served::One(buffer) => buffer.inbox.len(),
            Served::Lanes(lanes) => lanes.waiting(),
        }
    }

    fn in_flight(&self) -> usize {
        match self {
            Served::One(buffer) => buffer.inbox.in_flight(),
            Served::Lanes(lanes) => lanes.in_flight(),
        }
    }

    fn flush(&self, deadline: Option<Instant>) -> bool {
        match self {
            Served::One(buffer) => buffer.inbox.flush(deadline),
            Served::Lanes(lanes) => lanes.flush(deadline),
        }
    }

    fn has_ended(&self) -> bool {
        match self {
            Served::One(buffer) => buffer.has_ended(),
            Served::Lanes(lanes) => lanes.has_ended(),
        }
    }

    pub(crate) fn finish(&self, deadline: Option<Instant>) -> Undelivered<Arc<M>> {
        match self {
            Served::One(buffer) => buffer.finish(deadline),
            Served::Lanes(lanes) => lanes.finish(deadline),
        }
    }
}

impl<M> Entry<M> {
    /// The subscription, if threads of ours empty it.
    fn served(&self) -> Option<Served<M>> {
        match &self.to {
            To::Buffer(buffer) => buffer.crew.is_some().then(|| Served::One(Arc::clone(buffer))),
            To::Lanes(lanes) => Some(Served::Lanes(Arc::clone(lanes))),
            To::Sink(..) => None,
        }
    }

    /// Refuses new messages; publishers that are blocked there get `Closed`.
    fn close(&self) {
        match &self.to {
            To::Buffer(buffer) => buffer.inbox.close(),
            To::Lanes(lanes) => lanes.close(),
            To::Sink(..) => {}
        }
    }
}

/// The routes that a message matches. A publish works on what it found, without a lock.
pub(crate) type Matched<M> = Found<Arc<Entry<M>>>;

/// Routes that only the message itself can answer.
pub(crate) type Asking<M> = Option<Arc<Slots<Arc<Entry<M>>>>>;

pub(crate) struct Shared<M> {
    pub(crate) id: u64,
    pub(crate) config: Config,
    pub(crate) clock: Clock,
    pub(crate) station: Station,
    pub(crate) desk: Arc<Desk<M>>,
    pub(crate) facts: Facts<M>,
    /// Whether any rule is about headers: whether they have to be read.
    pub(crate) header_rules: AtomicUsize,
    /// Publishers read, for as long as it takes to look a topic up; nothing of the user's runs under it.
    state: RwLock<State<M>>,
}

struct State<M> {
    closed: bool,
    index: Index<Arc<Entry<M>>>,
    /// Where each route is to be found by its number.
    routes: HashMap<u64, Arc<Entry<M>>>,
    groups: HashMap<Arc<str>, Weak<Group>>,
    /// Subscriptions that are off the list and whose threads were not seen to end.
    leaving: Vec<Served<M>>,
}

impl<M> State<M> {
    /// Those of the leaving whose threads have ended in the meantime.
    fn take_gone(&mut self) -> Vec<Served<M>> {
        self.leaving.extract_if(.., |served| served.has_ended()).collect()
    }
}

/// A message that a subscription had accepted and did not come to.
#[derive(Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stranded<M> {
    /// The subscription's name.
    pub destination: Arc<str>,
    /// The message.
    pub message: Arc<M>,
}

impl<M> Shared<M> {
    pub(crate) fn new(config: Config, clock: Clock, station: Station, id: u64, desk: Desk<M>, facts: Facts<M>) -> Self {
        let state = State {
            closed: false,
            index: Index::new(),
            routes: HashMap::new(),
            groups: HashMap::new(),
            leaving: Vec::new(),
        };
        let (state, desk) = (RwLock::new(state), Arc::new(desk));
        Self { id, config, clock, station, desk, facts, header_rules: AtomicUsize::new(0), state }
    }

    /// What a message matches, and whom to ask about the message itself; `None` once closed.
    pub(crate) fn find(&self, topic: &str, headers: &Given<'_>) -> Option<(Matched<M>, Asking<M>)> {
        let state = self.state.read();
        (!state.closed).then(|| (state.index.find(topic, headers), state.index.predicates()))
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.state.read().closed
    }

    pub(crate) fn len(&self) -> usize {
        self.state.read().index.len()
    }

    /// The group of this name, made if there is none.
    pub(crate) fn group(&self, name: &str) -> Arc<Group> {
        let mut state = self.state.write();
        if let Some(group) = state.groups.get(name).and_then(Weak::upgrade) {
            return group;
        }
        state.groups.retain(|_, group| group.strong_count() > 0);
        let group = Arc::new(Group { id: here::fresh_id(), name: name.into(), turn: AtomicUsize::new(0) });
        state.groups.insert(Arc::clone(&group.name), Arc::downgrade(&group));
        group
    }

    /// How long a call that would like to wait `limit` may wait on this thread. A subscription's own thread would wait for
    /// itself, or for one that waits for it.
    pub(crate) fn deadline(&self, limit: Option<Duration>) -> Option<Instant> {
        if here::is_thread_of(self.id) {
            Some(self.clock.now())
        } else {
            limit.and_then(|limit| self.clock.after(limit))
        }
    }

    /// Whether one more route would be taken now.
    pub(crate) fn check_open(&self) -> Result<(), RouteError> {
        self.admits(&self.state.read())
    }

    fn admits(&self, state: &State<M>) -> Result<(), RouteError> {
        let max_routes = self.config.max_routes;
        if state.closed {
            Err(RouteError::Closed)
        } else if state.index.len() >= max_routes {
            Err(RouteError::TooMany { max_routes })
        } else {
            Ok(())
        }
    }

    pub(crate) fn add(&self, entry: &Arc<Entry<M>>) -> Result<(), RouteError> {
        let gone;
        {
            let mut state = self.state.write();
            self.admits(&state)?;
            self.station.feeds(&entry.station);
            state.index.insert(entry.id, &entry.rule, Arc::clone(entry));
            state.routes.insert(entry.id, Arc::clone(entry));
            // ORDERING: Relaxed: who publishes after this call has returned is ordered after it by whatever told it so.
            self.header_rules.store(state.index.header_rules(), Ordering::Relaxed);
            gone = state.take_gone();
        }
        join_gone(&gone);
        Ok(())
    }

    /// Takes a route off the list; publishes that began before still see it. Returns whether it was there.
    pub(crate) fn remove(&self, id: u64) -> bool {
        // Dropped after the lock is released: with the last reference the user's sink goes.
        let removed;
        let indexed;
        let gone;
        {
            let mut state = self.state.write();
            let Some(entry) = state.routes.remove(&id) else { return false };
            removed = entry;
            indexed = state.index.remove(id, &removed.rule);
            self.header_rules.store(state.index.header_rules(), Ordering::Relaxed);
            self.station.no_longer_feeds(&removed.station);
            gone = state.take_gone();
            state.leaving.extend(removed.served());
        }
        drop(indexed);
        removed.close();
        join_gone(&gone);
        true
    }

    /// Takes a subscription off the list and waits for its threads.
    pub(crate) fn finish_one(&self, served: &Served<M>, limit: Option<Duration>) -> Undelivered<Arc<M>> {
        let deadline = self.deadline(limit);
        self.remove(served.id());
        let left = self.finish(served, deadline);
        served.station().departed(Departure::Returned, left.items.len());
        left
    }

    fn finish(&self, served: &Served<M>, deadline: Option<Instant>) -> Undelivered<Arc<M>> {
        let left = served.finish(deadline);
        self.state.write().leaving.retain(|other| other.id() != served.id());
        if !left.is_empty() {
            self.desk.emit(Event::Abandoned, || format!("{}: {left}", served.name()));
        }
        left
    }

    /// Waits until every subscription has handled what it had accepted before the call.
    pub(crate) fn flush(&self, limit: Option<Duration>) -> Result<(), FlushError> {
        let deadline = self.deadline(limit);
        let all: Vec<Served<M>> = {
            let state = self.state.read();
            let present = state.routes.values().filter_map(|entry| entry.served());
            present.chain(state.leaving.iter().cloned()).collect()
        };
        if all.iter().all(|served| served.flush(deadline)) {
            return Ok(());
        }
        let waiting = all.iter().map(Served::waiting).sum();
        let in_flight = all.iter().map(Served::in_flight).sum();
        Err(FlushError::new(waiting, in_flight, here::is_thread_of(self.id)))
    }

    /// Refuses everything from now on, releases blocked publishers, and lets the subscriptions finish until the deadline.
    /// Items in the rest are counted as `fate`.
    pub(crate) fn close(&self, deadline: Option<Instant>, fate: Departure) -> Undelivered<Stranded<M>> {
        let (routes, index, leaving) = {
            let mut state = self.state.write();
            state.closed = true;
            let index = mem::replace(&mut state.index, Index::new());
            let mut routes: Vec<_> = mem::take(&mut state.routes).into_values().collect();
            routes.sort_unstable_by_key(|entry| entry.id);
            state.leaving.extend(routes.iter().filter_map(|entry| entry.served()));
            (routes, index, state.leaving.clone())
        };
        drop(index);
        // All at once, so that they finish side by side.
        routes.iter().for_each(|entry| entry.close());
        let mut rest = Undelivered::new(Vec::new(), 0, Vec::new());
        for served in &leaving {
            let left = self.finish(served, deadline);
            served.station().departed(fate, left.items.len());
            let stranded = |message| Stranded { destination: Arc::clone(served.name()), message };
            rest.items.extend(left.items.into_iter().map(stranded));
            rest.in_flight += left.in_flight;
            rest.abandoned_threads.extend(left.abandoned_threads);
        }
        rest
    }

    /// As [`close`](Self::close), when there is nobody to give the rest to: it goes to the dead letters.
    pub(crate) fn close_for_good(&self, deadline: Option<Instant>) -> Leftover {
        let mut rest = self.close(deadline, Departure::Dropped);
        let items = mem::take(&mut rest.items);
        let mut left = Leftover::from(rest.into_result());
        left.items = items.len();
        for Stranded { destination, message } in items {
            self.desk.post_contained(message, DeadReason::Abandoned { destination });
        }
        left
    }
}

/// Their threads have left our code: joining them does not wait.
fn join_gone<M>(gone: &[Served<M>]) {
    for served in gone {
        served.finish(None);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use crate::Router;

    #[test]
    fn who_has_left_is_forgotten_and_joined() {
        let router = Router::<u32>::new();
        for _ in 0..10 {
            let subscription = router.subscribe("#").run(|_: Arc<u32>| ()).unwrap();
            subscription.unsubscribe();
            let shared = router.parts();
            let leaving = shared.state.read().leaving.clone();
            assert_eq!(leaving.len(), 1, "and those before are gone");
            // Its thread ends by itself; from then on the next change of the list forgets it.
            leaving[0].finish(None);
        }
    }
}
