//! A subscription with a lane for each part of its keys: a thread and a buffer each, so that what has the same key is handled
//! in order.

use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::Arc;
use std::time::Instant;

use fullbore_core::{
    BuildError, Clock, Crew, Failure, FlushError, Monitor, Overflow, Patience, Place, Refusal, Undelivered, WaitFor,
    Waiters, earlier,
};
use fullbore_metrics::Station;

use crate::buffer::{Buffer, Handled, Offer};
use crate::config::SubscriptionConfig;
use crate::dead::Desk;
use crate::error::ResizeError;
use crate::jump::jump;

/// What the lanes of a subscription share.
///
/// Order by key over a change of the lanes: a publisher is counted at the gate from before it chooses a lane until its message
/// is in it. A change lets nobody in any more, waits until nobody is inside and every lane is empty and idle, and only then puts
/// the new lanes in place. So a message that finds its key in another lane than before comes after all before it were handled.
pub(crate) struct Lanes<M> {
    pub(crate) id: u64,
    pub(crate) name: Arc<str>,
    pub(crate) station: Station,
    pub(crate) overflow: Overflow,
    config: SubscriptionConfig,
    clock: Clock,
    router: u64,
    desk: Arc<Desk<M>>,
    key: KeyHash<M>,
    handle: Arc<Handle<M>>,
    gate: Monitor<Gate<M>>,
}

pub(crate) type Handle<M> = dyn Fn(Arc<M>) -> Result<(), Failure> + Send + Sync;
pub(crate) type KeyHash<M> = Box<dyn Fn(&M) -> u64 + Send + Sync>;

struct Gate<M> {
    lanes: Arc<[Arc<Buffer<M>>]>,
    /// Publishers that have chosen or are about to choose a lane.
    inside: usize,
    changing: bool,
    closed: bool,
    /// Ever made, for names.
    made: usize,
    entry: Waiters,
    /// Who changes the lanes.
    empty: Waiters,
}

/// The key's hash is this destination's own: of routers one behind the other, each spreads the keys it gets over all its lanes.
pub(crate) fn key_hash<M, K: Hash>(key: impl Fn(&M) -> K + Send + Sync + 'static) -> KeyHash<M> {
    let hasher = RandomState::new();
    Box::new(move |message| hasher.hash_one(key(message)))
}

/// What a subscription with lanes is made of.
pub(crate) struct Parts<M> {
    pub(crate) id: u64,
    pub(crate) name: Arc<str>,
    pub(crate) station: Station,
    pub(crate) config: SubscriptionConfig,
    pub(crate) clock: Clock,
    pub(crate) router: u64,
    pub(crate) desk: Arc<Desk<M>>,
}

impl<M: Send + Sync + 'static> Lanes<M> {
    pub(crate) fn start(
        parts: Parts<M>,
        lanes: usize,
        key: KeyHash<M>,
        handle: Arc<Handle<M>>,
    ) -> Result<Self, BuildError> {
        let Parts { id, name, station, config, clock, router, desk } = parts;
        let gate = Gate {
            lanes: Arc::new([]),
            inside: 0,
            changing: false,
            closed: false,
            made: 0,
            entry: Waiters::of(WaitFor::Place),
            empty: Waiters::new(),
        };
        let gate = Monitor::new(gate, clock.clone());
        let overflow = config.overflow;
        let this = Self { id, name, station, overflow, config, clock, router, desk, key, handle, gate };
        let started = this.start_lanes(lanes)?;
        this.gate.lock().lanes = started.into();
        Ok(this)
    }

    /// So many more; none if one cannot be had.
    fn start_lanes(&self, lanes: usize) -> Result<Vec<Arc<Buffer<M>>>, BuildError> {
        let mut started = Vec::with_capacity(lanes);
        for _ in 0..lanes {
            let n = {
                let mut gate = self.gate.lock();
                gate.made += 1;
                gate.made - 1
            };
            let name = Arc::clone(&self.name);
            let mut lane = Buffer::new(self.id, &self.config, name, self.station.clone(), &self.clock);
            lane.crew = Some(Crew::new("fanout", &format!("{}-{n}", self.name), self.clock.clone()));
            let lane = Arc::new(lane);
            let handle = Arc::clone(&self.handle);
            if let Err(error) = lane.spawn(self.router, &self.desk, move |message| Outcome(handle(message))) {
                end(&started);
                return Err(error);
            }
            started.push(lane);
        }
        Ok(started)
    }

    /// Changes the number of lanes; the caller is no thread of the router's.
    pub(crate) fn resize(&self, lanes: usize, deadline: Option<Instant>) -> Result<(), ResizeError> {
        BuildError::refuse_zero("lanes", lanes)?;
        let old = {
            let mut gate = self.gate.lock();
            gate.wait_until(|gate| &mut gate.entry, deadline, |gate| !gate.changing || gate.closed);
            if gate.closed {
                return Err(ResizeError::Closed);
            }
            if gate.changing {
                return Err(ResizeError::NotDrained(FlushError::new(0, 0, false)));
            }
            gate.changing = true;
            Arc::clone(&gate.lanes)
        };
        let mut made = Vec::new();
        let result = self.change(&old, lanes, deadline, &mut made);
        let mut gate = self.gate.lock();
        gate.changing = false;
        let result = match &result {
            // Closed since `change` has looked.
            Ok(_) if gate.closed => Err(ResizeError::Closed),
            Ok(new) => {
                gate.lanes = Arc::clone(new);
                Ok(Arc::clone(new))
            }
            Err(_) => result,
        };
        let now = Arc::clone(&gate.lanes);
        gate.notify_all(|gate| &mut gate.entry);
        drop(gate);
        if result.is_ok() {
            self.station.set_parallelism(lanes);
        }
        // Those that are not in use (any more) are empty.
        let unused = |lane: &&Arc<Buffer<M>>| !now.iter().any(|other| Arc::ptr_eq(other, lane));
        let ours = old.iter().chain(made.iter());
        end(&ours.filter(unused).cloned().collect::<Vec<_>>());
        result.map(drop)
    }

    fn change(
        &self,
        old: &Arc<[Arc<Buffer<M>>]>,
        lanes: usize,
        deadline: Option<Instant>,
        made: &mut Vec<Arc<Buffer<M>>>,
    ) -> Result<Arc<[Arc<Buffer<M>>]>, ResizeError> {
        *made = self.start_lanes(lanes.saturating_sub(old.len()))?;
        let left = |gate: &mut Gate<M>| gate.inside == 0 || gate.closed;
        let alone = self.gate.lock().wait_until(|gate| &mut gate.empty, deadline, left);
        if !alone || !old.iter().all(|lane| lane.inbox.flush(deadline)) {
            let (waiting, in_flight) = (self.waiting(), self.in_flight());
            return Err(ResizeError::NotDrained(FlushError::new(waiting, in_flight, false)));
        }
        if self.gate.lock().closed {
            return Err(ResizeError::Closed);
        }
        Ok(old.iter().take(lanes).chain(made.iter()).cloned().collect())
    }
}

/// These have nothing, and get nothing any more: their threads end at once.
fn end<M>(lanes: &[Arc<Buffer<M>>]) {
    lanes.iter().for_each(|lane| lane.inbox.close());
    for lane in lanes {
        lane.finish(None);
    }
}

impl<M> Lanes<M> {
    /// The user's code: it may panic.
    pub(crate) fn hash(&self, message: &M) -> u64 {
        (self.key)(message)
    }

    fn lanes(&self) -> Arc<[Arc<Buffer<M>>]> {
        Arc::clone(&self.gate.lock().lanes)
    }

    /// Lets a publisher in, who waits while the lanes are changed as it would for room.
    pub(crate) fn enter(&self, hash: u64, patience: Patience) -> Result<Inside<'_, M>, Refusal> {
        let mut gate = self.gate.lock();
        if gate.changing && !gate.closed {
            let deadline = match (patience, self.overflow) {
                (Patience::Try, _) | (_, Overflow::Reject | Overflow::DropOldest) => return Err(Refusal::Full),
                (Patience::Policy(cap), Overflow::BlockFor(limit)) => earlier(gate.now().checked_add(limit), cap),
                (Patience::Policy(cap), _) => cap,
                _ => None,
            };
            if !gate.wait_until(|gate| &mut gate.entry, deadline, |gate| !gate.changing || gate.closed) {
                return Err(Refusal::TimedOut);
            }
        }
        if gate.closed {
            return Err(Refusal::Closed);
        }
        gate.inside += 1;
        let lane = Arc::clone(&gate.lanes[jump(hash, gate.lanes.len())]);
        Ok(Inside { lanes: self, lane })
    }

    pub(crate) fn offer(&self, hash: u64, offer: &Offer<'_, M>, patience: Patience) -> Result<Option<Arc<M>>, Refusal> {
        let inside = self.enter(hash, patience)?;
        inside.lane.offer(offer, patience)
    }

    pub(crate) fn waits(&self, patience: Patience) -> bool {
        patience != Patience::Try && !matches!(self.overflow, Overflow::Reject | Overflow::DropOldest)
    }

    /// How full they are on average, in thousandths.
    pub(crate) fn fullness(&self) -> usize {
        let lanes = self.lanes();
        lanes.iter().map(|lane| lane.fullness()).sum::<usize>() / lanes.len().max(1)
    }

    pub(crate) fn len(&self) -> usize {
        self.gate.lock().lanes.len()
    }

    pub(crate) fn waiting(&self) -> usize {
        self.lanes().iter().map(|lane| lane.inbox.len()).sum()
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.lanes().iter().map(|lane| lane.inbox.in_flight()).sum()
    }

    /// A message accepted before the call is in one of the lanes of now: those before were emptied.
    pub(crate) fn flush(&self, deadline: Option<Instant>) -> bool {
        self.lanes().iter().all(|lane| lane.inbox.flush(deadline))
    }

    pub(crate) fn close(&self) {
        let lanes = {
            let mut gate = self.gate.lock();
            gate.closed = true;
            gate.notify_all(|gate| &mut gate.entry);
            gate.notify_all(|gate| &mut gate.empty);
            Arc::clone(&gate.lanes)
        };
        lanes.iter().for_each(|lane| lane.inbox.close());
    }

    pub(crate) fn finish(&self, deadline: Option<Instant>) -> Undelivered<Arc<M>> {
        self.close();
        let mut rest = Undelivered::new(Vec::new(), 0, Vec::new());
        for lane in self.lanes().iter() {
            let left = lane.finish(deadline);
            rest.items.extend(left.items);
            rest.in_flight += left.in_flight;
            rest.abandoned_threads.extend(left.abandoned_threads);
        }
        rest
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.lanes().iter().all(|lane| lane.has_ended())
    }
}

/// A publisher that is counted at the gate, with its lane.
pub(crate) struct Inside<'a, M> {
    lanes: &'a Lanes<M>,
    pub(crate) lane: Arc<Buffer<M>>,
}

impl<M> Inside<'_, M> {
    pub(crate) fn reserve(&self, patience: Patience) -> Result<Place, Refusal> {
        self.lane.inbox.reserve(patience)
    }
}

impl<M> Drop for Inside<'_, M> {
    fn drop(&mut self) {
        let mut gate = self.lanes.gate.lock();
        gate.inside -= 1;
        if gate.changing && gate.inside == 0 {
            gate.notify_all(|gate| &mut gate.empty);
        }
    }
}

/// A closure's answer that was read already.
pub(crate) struct Outcome(pub(crate) Result<(), Failure>);

impl Handled for Outcome {
    fn into_result(self) -> Result<(), Failure> {
        self.0
    }
}
