//! What the owner, its handles and the workers have in common: the shards, flush and close. `README.md` beside this file has the
//! protocol.

use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use fullbore_core::{
    BuildError, Clock, Crew, Event, Events, Failure, FlushError, Leftover, Locked, Monitor, Undelivered, contain,
};
use fullbore_metrics::{Departure, Station, StationKind};

use super::chunk::Chunk;
use super::config::{KeyedConfig, KeyedDeadLetter};
use super::hub::{self, Hub};
use super::room::{Places, Room};
use super::shard::{News, Out, Rules, Shard};
use super::worker::{self, Process};
use crate::inside;
use crate::ticket::Reply;

/// A thread outside the process function has only to end. It gets this long beyond the deadline, so that a close without
/// time to wait does not report a healthy thread; only a destructor of what the process function captured can use it up.
const WIND_UP: Duration = Duration::from_millis(100);

/// For each core. With more shards than threads these seldom meet; a worker that falls asleep looks at all of them.
const SHARDS_PER_CORE: usize = 4;
const MAX_SHARDS: usize = 64;

/// Of the hash: the other half is the table's.
const SHARD_BITS_AT: u32 = 32;

/// So that no two locks are on the same line, nor on neighbours that a processor fetches together.
#[repr(align(128))]
pub(super) struct Padded<S>(pub(super) S);

type Part<K, T, R> = Padded<Monitor<Shard<K, T, R>>>;

pub(super) struct Shared<K, T, R> {
    pub(super) shards: Box<[Part<K, T, R>]>,
    pub(super) hub: Padded<Monitor<Hub>>,
    pub(super) room: Room,
    pub(super) rules: Rules,
    pub(super) station: Station,
    pub(super) events: Events,
    pub(super) hasher: RandomState,
    /// What the times in shards and hub count from.
    born: Instant,
    closed: AtomicBool,
    crew: Crew,
    pub(super) config: KeyedConfig,
    dead_letter: Option<KeyedDeadLetter<K, T>>,
}

/// What a close left behind.
pub(super) struct Left<K, T, R> {
    outs: Vec<Out<K, T, R>>,
    in_flight: usize,
    stuck: Vec<String>,
}

impl<K, T, R> Shared<K, T, R> {
    /// Without workers as yet.
    pub(super) fn new(
        config: KeyedConfig,
        capacity: usize,
        clock: &Clock,
        dead_letter: Option<KeyedDeadLetter<K, T>>,
    ) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let shards = (SHARDS_PER_CORE * cores).min(MAX_SHARDS).min(config.max_keys).next_power_of_two();
        let shards = if cfg!(fullbore_loom) { 1 } else { shards };
        let station = Station::builder(config.name.clone())
            .kind(StationKind::Batch)
            .parallelism(config.workers)
            .capacity(capacity)
            .build();
        station.set_batch_size(config.max_items);
        Self {
            shards: (0..shards).map(|_| Padded(Monitor::new(Shard::new(), clock.clone()))).collect(),
            hub: Padded(Monitor::new(Hub::new(), clock.clone())),
            room: Room::new(capacity, config.max_keys),
            rules: Rules {
                max_items: config.max_items,
                linger: u64::try_from(config.linger.as_nanos()).ok(),
                one_in_flight: config.one_in_flight,
            },
            station,
            events: Events::new("batch", &config.name),
            hasher: RandomState::new(),
            born: clock.now(),
            closed: AtomicBool::new(false),
            crew: Crew::new("batch", &config.name, clock.clone()),
            config,
            dead_letter,
        }
    }

    pub(super) fn clock(&self) -> &Clock {
        self.hub.0.clock()
    }

    /// The present time, in nanoseconds since it was built.
    pub(super) fn now(&self) -> u64 {
        let nanos = self.clock().now().saturating_duration_since(self.born).as_nanos();
        u64::try_from(nanos).unwrap_or(u64::MAX)
    }

    pub(super) fn instant(&self, nanos: u64) -> Option<Instant> {
        self.born.checked_add(Duration::from_nanos(nanos))
    }

    pub(super) fn is_inside(&self) -> bool {
        inside::is_inside(self.station.id())
    }

    pub(super) fn is_closed(&self) -> bool {
        // ORDERING: SeqCst, for want of a reason to think: whoever sees it finds every shard closed.
        self.closed.load(Ordering::SeqCst)
    }

    /// How many keys there are.
    pub(super) fn keys(&self) -> usize {
        self.room.used().keys as usize
    }

    pub(super) fn shard(&self, at: usize) -> Locked<'_, Shard<K, T, R>> {
        self.shards[at].0.lock()
    }

    pub(super) fn lock_hub(&self) -> Locked<'_, Hub> {
        self.hub.0.lock()
    }

    pub(super) fn shard_of(&self, hash: u64) -> usize {
        (hash >> SHARD_BITS_AT) as usize & (self.shards.len() - 1)
    }

    /// The hub's part of what happened in a shard.
    pub(super) fn tell(&self, shard: usize, news: News) {
        let mut hub = self.lock_hub();
        match news {
            News::Due => {
                hub.add(shard);
                hub::wake(&mut hub);
            }
            News::Timer(at) => hub::tell_timer(&mut hub, at),
        }
    }

    /// Gives places back.
    pub(super) fn release(&self, places: Places) {
        if places.is_none() {
            return;
        }
        if self.room.is_wanted() {
            hub::hand_back(&mut self.lock_hub(), &self.room, places);
        } else if self.room.give(places) {
            hub::serve_line(&mut self.lock_hub(), &self.room);
        }
    }

    /// Somebody finds no room: an idle worker is to see to it.
    pub(super) fn press(&self) {
        if self.room.press() {
            hub::wake(&mut self.lock_hub());
        }
    }

    /// Runs the user's destructors and hooks where a panic has nobody to go to.
    pub(super) fn user_code(&self, f: impl FnOnce()) {
        self.events.contained(f);
    }

    pub(super) fn flush(&self, deadline: Option<Instant>) -> Result<(), FlushError> {
        let deadline = self.unless_inside(deadline);
        let mut targets = Vec::with_capacity(self.shards.len());
        for at in 0..self.shards.len() {
            let mut shard = self.shard(at);
            targets.push(shard.hurry());
            let due = shard.waiting > 0 && !shard.queued;
            shard.queued |= due;
            drop(shard);
            if due {
                self.tell(at, News::Due);
            }
        }
        let settled = targets.iter().enumerate().all(|(at, target)| {
            let done = |shard: &mut Shard<K, T, R>| shard.settled_below() >= *target;
            self.shard(at).wait_until(|shard| &mut shard.progress, deadline, done)
        });
        if settled { Ok(()) } else { Err(self.unflushed()) }
    }

    fn unflushed(&self) -> FlushError {
        let (mut waiting, mut in_flight) = (0, 0);
        for at in 0..self.shards.len() {
            let shard = self.shard(at);
            waiting += shard.waiting;
            in_flight += shard.in_flight();
        }
        FlushError::new(waiting, in_flight, self.is_inside())
    }

    /// On its own thread nobody waits.
    fn unless_inside(&self, deadline: Option<Instant>) -> Option<Instant> {
        if self.is_inside() { Some(self.clock().now()) } else { deadline }
    }

    /// Closes, and waits until the workers have ended or `deadline` has come; on its own thread not at all. What is left
    /// counts as `departure`.
    pub(super) fn close(&self, deadline: Option<Instant>, departure: Departure) -> Left<K, T, R> {
        let inside = self.is_inside();
        let no_time = inside || deadline.is_some_and(|deadline| deadline <= self.clock().now());
        let mut outs = Vec::new();
        for at in 0..self.shards.len() {
            let mut shard = self.shard(at);
            shard.closed = true;
            if no_time {
                self.take_back(&mut shard, departure, &mut outs);
            }
        }
        // ORDERING: as in `is_closed`.
        self.closed.store(true, Ordering::SeqCst);
        hub::close(&mut self.lock_hub());
        if !no_time {
            if self.crew.join(deadline).is_empty() {
                return Left { outs, in_flight: 0, stuck: Vec::new() };
            }
            for at in 0..self.shards.len() {
                self.take_back(&mut self.shard(at), departure, &mut outs);
            }
        }
        for out in &outs {
            self.release(out.places);
        }
        // Nothing is left to take: from here on the workers can only finish their batches and end.
        let in_flight = (0..self.shards.len()).map(|at| self.shard(at).in_flight()).sum();
        let stuck = if inside {
            Vec::new()
        } else {
            let patience = if in_flight == 0 { WIND_UP } else { Duration::ZERO };
            self.crew.join(self.clock().after(patience))
        };
        if in_flight > 0 || !stuck.is_empty() {
            self.events.emit(Event::Abandoned, || format!("{in_flight} items in process"));
        }
        Left { outs, in_flight, stuck }
    }

    fn take_back(&self, shard: &mut Locked<'_, Shard<K, T, R>>, departure: Departure, outs: &mut Vec<Out<K, T, R>>) {
        let taken = shard.take_back();
        self.station.departed(departure, taken.iter().map(|out| out.places.items as usize).sum());
        outs.extend(taken);
        shard.notify_all(|shard| &mut shard.progress);
        shard.notify_all(|shard| &mut shard.key_progress);
    }

    /// What was left has nobody to go back to. A panic of the hook or of a destructor costs no other item its dead letter.
    pub(super) fn close_and_give_up(&self, deadline: Option<Instant>) -> Leftover {
        let Left { outs, in_flight, stuck } = self.close(deadline, Departure::Dropped);
        let mut report = Leftover::default();
        report.items = outs.iter().map(|out| out.places.items as usize).sum();
        report.in_flight = in_flight;
        report.abandoned_threads = stuck;
        for out in outs {
            let Out { key, chunks, .. } = out;
            for (item, reply) in chunks.into_iter().flat_map(Chunk::pairs) {
                self.user_code(|| self.give_up(&key, item, reply, Failure::Closed));
            }
            self.user_code(move || drop(key));
        }
        report
    }

    /// An accepted item, counted as dropped. The hook and the item's destructor come last: they are user code.
    pub(super) fn give_up(&self, key: &K, item: T, reply: Reply<R>, failure: Failure) {
        self.user_code(|| reply.resolve(Err(failure.clone())));
        self.bury(key, item, failure);
    }

    fn bury(&self, key: &K, item: T, failure: Failure) {
        match &self.dead_letter {
            Some(hook) => {
                self.events.emit(Event::DeadLetter, || &failure);
                hook(key, item, failure);
            }
            None => self.events.emit(Event::Drop, || failure),
        }
    }
}

impl<K: Hash + Eq + Clone, T, R> Shared<K, T, R> {
    pub(super) fn flush_key(&self, key: &K, deadline: Option<Instant>) -> Result<(), FlushError> {
        let deadline = self.unless_inside(deadline);
        let hash = self.hasher.hash_one(key);
        let at = self.shard_of(hash);
        let mut shard = self.shard(at);
        let seat = shard.seat(hash as u32, key);
        let Some((below, node)) = shard.hurry_key(seat, &self.rules) else { return Ok(()) };
        let due = !shard.queued;
        shard.queued = true;
        if due {
            shard.released(|| self.tell(at, News::Due));
        }
        let settled = shard.wait_turn(
            |shard| &mut shard.key_progress,
            deadline,
            seat.hash,
            |shard| shard.key_settled_below(seat.hash, node, below).then_some(()),
        );
        drop(shard);
        settled.ok_or_else(|| self.unflushed())
    }

    /// What was left goes back to whoever closed, the oldest batches first.
    pub(super) fn close_and_return(&self, deadline: Option<Instant>) -> Result<(), Undelivered<(K, T)>> {
        let Left { outs, in_flight, stuck } = self.close(deadline, Departure::Returned);
        let (mut keys, mut batches) = (Vec::with_capacity(outs.len()), Vec::new());
        for Out { key, chunks, .. } in outs {
            batches.extend(chunks.into_iter().map(|chunk| (keys.len(), chunk)));
            keys.push(key);
        }
        batches.sort_by_key(|(_, chunk)| chunk.first);
        let mut items = Vec::new();
        for (key, chunk) in batches {
            let key = &keys[key];
            for (item, reply) in chunk.pairs() {
                self.user_code(|| reply.resolve(Err(Failure::Closed)));
                match contain(|| key.clone()) {
                    Ok(key) => items.push((key, item)),
                    Err(panicked) => {
                        // Without a key it cannot go back. The others can.
                        self.events.emit(Event::Panic, || &panicked);
                        self.user_code(|| self.bury(key, item, Failure::Closed));
                    }
                }
            }
        }
        keys.into_iter().for_each(|key| self.user_code(move || drop(key)));
        Undelivered::new(items, in_flight, stuck).into_result()
    }
}

impl<K, T, R> Shared<K, T, R>
where
    K: Clone + Send + 'static,
    T: Send + 'static,
    R: Send + 'static,
{
    pub(super) fn spawn_worker(self: &Arc<Self>, process: &Process<K, T, R>) -> Result<(), BuildError> {
        let (shared, process) = (Arc::clone(self), Arc::clone(process));
        self.crew.spawn(move || worker::run(shared, process))
    }
}
