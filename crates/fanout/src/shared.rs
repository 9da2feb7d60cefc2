//! What the clones of a router share: the list of routes, and how they come, go and end.

use std::mem;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fullbore_core::{Clock, Event, FlushError, Leftover, Monitor, Sink, Undelivered};
use fullbore_metrics::{Departure, Station};

use crate::buffer::Buffer;
use crate::config::Config;
use crate::dead::{DeadReason, Desk};
use crate::error::RouteError;
use crate::here;
use crate::pattern::Pattern;

/// A destination and what it wants. Never changed once it is in the list.
pub(crate) struct Entry<M> {
    pub(crate) id: u64,
    pub(crate) name: Arc<str>,
    pub(crate) pattern: Pattern,
    pub(crate) station: Station,
    pub(crate) to: To<M>,
}

pub(crate) enum To<M> {
    Sink(Box<dyn Sink<Arc<M>>>),
    Buffer(Arc<Buffer<M>>),
}

impl<M> Entry<M> {
    /// The buffer, if a thread of ours empties it.
    fn served(&self) -> Option<&Arc<Buffer<M>>> {
        match &self.to {
            To::Buffer(buffer) if buffer.crew.is_some() => Some(buffer),
            _ => None,
        }
    }
}

/// The routes at one moment. A publish works on the list that it found, without a lock.
pub(crate) type Routes<M> = Arc<[Arc<Entry<M>>]>;

pub(crate) struct Shared<M> {
    pub(crate) id: u64,
    pub(crate) config: Config,
    pub(crate) clock: Clock,
    pub(crate) station: Station,
    pub(crate) desk: Arc<Desk<M>>,
    state: Monitor<State<M>>,
}

struct State<M> {
    closed: bool,
    routes: Routes<M>,
    /// Buffers that are off the list and whose thread was not seen to end.
    leaving: Vec<Arc<Buffer<M>>>,
}

impl<M> State<M> {
    /// Those of the leaving whose threads have ended in the meantime.
    fn take_gone(&mut self) -> Vec<Arc<Buffer<M>>> {
        let ended = |buffer: &mut Arc<Buffer<M>>| buffer.crew.as_ref().is_none_or(|crew| crew.alive() == 0);
        self.leaving.extract_if(.., ended).collect()
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
    pub(crate) fn new(config: Config, clock: Clock, station: Station, id: u64, desk: Desk<M>) -> Self {
        let state = State { closed: false, routes: Arc::new([]), leaving: Vec::new() };
        Self { id, config, state: Monitor::new(state, clock.clone()), clock, station, desk: Arc::new(desk) }
    }

    /// The list to publish to; `None` once closed.
    pub(crate) fn routes(&self) -> Option<Routes<M>> {
        let state = self.state.lock();
        (!state.closed).then(|| Arc::clone(&state.routes))
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
        let state = self.state.lock();
        self.admits(&state)
    }

    fn admits(&self, state: &State<M>) -> Result<(), RouteError> {
        let max_routes = self.config.max_routes;
        if state.closed {
            Err(RouteError::Closed)
        } else if state.routes.len() >= max_routes {
            Err(RouteError::TooMany { max_routes })
        } else {
            Ok(())
        }
    }

    pub(crate) fn add(&self, entry: &Arc<Entry<M>>) -> Result<(), RouteError> {
        let gone;
        {
            let mut state = self.state.lock();
            self.admits(&state)?;
            self.station.feeds(&entry.station);
            state.routes = state.routes.iter().chain([entry]).map(Arc::clone).collect();
            gone = state.take_gone();
        }
        join_gone(&gone);
        Ok(())
    }

    /// Takes a route off the list; publishes that began before still see it. Returns whether it was there.
    pub(crate) fn remove(&self, id: u64) -> bool {
        // Dropped after the lock is released: with the last reference the user's sink goes.
        let removed;
        let gone;
        {
            let mut state = self.state.lock();
            let Some(at) = state.routes.iter().position(|entry| entry.id == id) else { return false };
            removed = Arc::clone(&state.routes[at]);
            state.routes = state.routes.iter().filter(|entry| entry.id != id).map(Arc::clone).collect();
            self.station.no_longer_feeds(&removed.station);
            gone = state.take_gone();
            if let Some(buffer) = removed.served() {
                state.leaving.push(Arc::clone(buffer));
            }
        }
        if let To::Buffer(buffer) = &removed.to {
            // Publishers blocked on it get `Closed`; its thread finishes what is there.
            buffer.inbox.close();
        }
        join_gone(&gone);
        true
    }

    /// Takes a subscription off the list and waits for its thread.
    pub(crate) fn finish_one(&self, buffer: &Arc<Buffer<M>>, limit: Option<Duration>) -> Undelivered<Arc<M>> {
        let deadline = self.deadline(limit);
        self.remove(buffer.id);
        let left = self.finish(buffer, deadline);
        buffer.station.departed(Departure::Returned, left.items.len());
        left
    }

    fn finish(&self, buffer: &Arc<Buffer<M>>, deadline: Option<Instant>) -> Undelivered<Arc<M>> {
        let left = buffer.finish(deadline);
        self.state.lock().leaving.retain(|other| !Arc::ptr_eq(other, buffer));
        if !left.is_empty() {
            self.desk.emit(Event::Abandoned, || format!("{}: {left}", buffer.name));
        }
        left
    }

    /// Waits until every subscription has handled what it had accepted before the call.
    pub(crate) fn flush(&self, limit: Option<Duration>) -> Result<(), FlushError> {
        let deadline = self.deadline(limit);
        let buffers: Vec<_> = {
            let state = self.state.lock();
            let present = state.routes.iter().filter_map(|entry| entry.served());
            present.chain(&state.leaving).map(Arc::clone).collect()
        };
        if buffers.iter().all(|buffer| buffer.inbox.flush(deadline)) {
            return Ok(());
        }
        let waiting = buffers.iter().map(|buffer| buffer.inbox.len()).sum();
        let in_flight = buffers.iter().map(|buffer| buffer.inbox.in_flight()).sum();
        Err(FlushError::new(waiting, in_flight, here::is_thread_of(self.id)))
    }

    /// Refuses everything from now on, releases blocked publishers, and lets the subscriptions finish until the deadline.
    /// Items in the rest are counted as `fate`.
    pub(crate) fn close(&self, deadline: Option<Instant>, fate: Departure) -> Undelivered<Stranded<M>> {
        let (routes, leaving) = {
            let mut state = self.state.lock();
            state.closed = true;
            let routes = mem::replace(&mut state.routes, Arc::new([]));
            state.leaving.extend(routes.iter().filter_map(|entry| entry.served()).map(Arc::clone));
            (routes, state.leaving.clone())
        };
        // All at once, so that they finish side by side.
        for entry in routes.iter() {
            if let To::Buffer(buffer) = &entry.to {
                buffer.inbox.close();
            }
        }
        let mut rest = Undelivered::new(Vec::new(), 0, Vec::new());
        for buffer in &leaving {
            let left = self.finish(buffer, deadline);
            buffer.station.departed(fate, left.items.len());
            let stranded = |message| Stranded { destination: Arc::clone(&buffer.name), message };
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
fn join_gone<M>(gone: &[Arc<Buffer<M>>]) {
    for buffer in gone {
        buffer.finish(None);
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
            let leaving = shared.state.lock().leaving.clone();
            assert_eq!(leaving.len(), 1, "and those before are gone");
            // Its thread ends by itself; from then on the next change of the list forgets it.
            leaving[0].crew.as_ref().unwrap().join(None);
        }
    }
}
