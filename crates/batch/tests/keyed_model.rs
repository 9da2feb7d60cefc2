//! Every sequence of submit, time, flush, end of a batch and close, for a few keys, against a model that a reader can check
//! by eye. Which of several due keys is next is not said by the model: whichever it is, it must be one that may be, with the batch
//! that it must have.
#![cfg(not(fullbore_loom))]
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::collections::{BTreeMap, VecDeque};
use std::hash::{Hash, Hasher};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::{Fate, NEVER, blow_up, fails, fate, panics};
use fullbore_batch::{Batch, KeyedBatcher};
use fullbore_core::{OnDrop, Overflow, PausedClock};
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Op {
    /// An item of this key, a millisecond after what was before.
    Submit(u8),
    Advance(u64),
    /// A flush that does not wait: it makes everything due that is there.
    Flush,
    FlushKey(u8),
    /// The process function returns, from the n-th of the batches that are in it.
    Release(usize),
    Close,
}

/// A key, and whether all of them have the same hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Key(u8, bool);

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        if !self.1 {
            self.0.hash(state);
        }
    }
}

#[derive(Clone, Debug)]
struct Setup {
    max_items: usize,
    linger: Option<u64>,
    capacity: usize,
    max_keys: usize,
    workers: usize,
    one_in_flight: bool,
    drop_oldest: bool,
    one_hash: bool,
}

#[derive(Debug)]
struct Chunk {
    items: Vec<u32>,
    first: u64,
    due: bool,
}

struct Busy {
    key: u8,
    items: Vec<u32>,
    go: Sender<()>,
}

type Call = (u8, Vec<u32>, Sender<()>);

struct Model {
    setup: Setup,
    now: u64,
    /// What waits, for each key.
    keys: BTreeMap<u8, VecDeque<Chunk>>,
    busy: Vec<Busy>,
    pressed: bool,
    /// There was nothing to be hurried: the next one who comes back from work looks again.
    unrelieved: bool,
    closed: bool,
    fates: Vec<Option<Fate>>,
}

impl Model {
    fn items(&self) -> usize {
        let waiting: usize = self.keys.values().flatten().map(|chunk| chunk.items.len()).sum();
        waiting + self.busy.iter().map(|busy| busy.items.len()).sum::<usize>()
    }

    fn in_flight(&self, key: u8) -> bool {
        self.busy.iter().any(|busy| busy.key == key)
    }

    /// Keys with something waiting or in process.
    fn open_keys(&self) -> usize {
        (0..=u8::MAX).filter(|key| self.keys.contains_key(key) || self.in_flight(*key)).count()
    }

    fn is_full(&self) -> bool {
        self.items() >= self.setup.capacity || self.open_keys() >= self.setup.max_keys
    }

    fn has_room_for(&self, key: u8) -> bool {
        let known = self.keys.contains_key(&key) || self.in_flight(key);
        self.items() < self.setup.capacity && (known || self.open_keys() < self.setup.max_keys)
    }

    fn submit(&mut self, key: u8) -> bool {
        let id = self.fates.len() as u32;
        self.fates.push(None);
        while !self.closed && !self.has_room_for(key) {
            if !self.setup.drop_oldest {
                self.pressed = true;
                break;
            }
            if !self.displace() {
                self.fates[id as usize] = Some(Fate::Dropped);
                return true;
            }
        }
        if self.closed || !self.has_room_for(key) {
            self.fates[id as usize] = Some(Fate::Refused);
            return false;
        }
        let chunks = self.keys.entry(key).or_default();
        if chunks.back().is_none_or(|chunk| chunk.items.len() >= self.setup.max_items) {
            let due = self.setup.linger == Some(0);
            chunks.push_back(Chunk { items: Vec::new(), first: self.now, due });
        }
        chunks.back_mut().unwrap().items.push(id);
        true
    }

    /// Throws out the oldest item; all of a key, if it is keys that there are too many of.
    fn displace(&mut self) -> bool {
        let whole = self.items() < self.setup.capacity;
        let candidates = self.keys.iter().filter(|(key, _)| !whole || !self.in_flight(**key));
        let Some((key, _)) = candidates.min_by_key(|(_, chunks)| chunks[0].first) else { return false };
        let key = *key;
        let chunks = self.keys.get_mut(&key).unwrap();
        let gone: Vec<u32> = if whole {
            chunks.drain(..).flat_map(|chunk| chunk.items).collect()
        } else {
            vec![chunks[0].items.remove(0)]
        };
        chunks.retain(|chunk| !chunk.items.is_empty());
        if chunks.is_empty() {
            self.keys.remove(&key);
        }
        for id in gone {
            self.fates[id as usize] = Some(Fate::Dropped);
        }
        true
    }

    /// Whether a worker may begin with this key now.
    fn is_due(&self, key: u8) -> bool {
        let Some(chunks) = self.keys.get(&key) else { return false };
        if self.setup.one_in_flight && self.in_flight(key) {
            return false;
        }
        let first = &chunks[0];
        let lingered = self.setup.linger.is_some_and(|linger| self.now - first.first >= linger);
        chunks.len() > 1 || first.items.len() >= self.setup.max_items || lingered || first.due
    }

    /// Whether something begins now. Pressure counts if nothing is due otherwise.
    fn begins(&mut self) -> bool {
        if self.busy.len() == self.setup.workers {
            return false;
        }
        let any_due = |model: &Self| model.keys.keys().any(|key| model.is_due(*key));
        if any_due(self) {
            return true;
        }
        if !std::mem::take(&mut self.pressed) || !self.is_full() {
            return false;
        }
        // The oldest one that is being filled and may be taken; if there is none, one whose key is in process.
        let busy: Vec<u8> = self.busy.iter().map(|busy| busy.key).filter(|_| self.setup.one_in_flight).collect();
        let open = self.keys.iter_mut().filter_map(|(key, chunks)| Some((busy.contains(key), chunks.back_mut()?)));
        let open = open.filter(|(_, chunk)| {
            let full = chunk.items.len() >= self.setup.max_items;
            let lingered = self.setup.linger.is_some_and(|linger| self.now - chunk.first >= linger);
            !full && !lingered && !chunk.due
        });
        match open.min_by_key(|(blocked, chunk)| (*blocked, chunk.first)) {
            Some((_, oldest)) => oldest.due = true,
            None => self.unrelieved = true,
        }
        any_due(self)
    }

    fn begun(&mut self, (key, items, go): Call) {
        assert!(self.is_due(key), "key {key} was not due");
        let chunks = self.keys.get_mut(&key).unwrap();
        assert_eq!(items, chunks.pop_front().unwrap().items, "key {key}");
        if chunks.is_empty() {
            self.keys.remove(&key);
        }
        self.busy.push(Busy { key, items, go });
    }

    fn release(&mut self, n: usize) {
        let at = n % self.busy.len();
        let Busy { items, go, .. } = self.busy.swap_remove(at);
        for id in &items {
            let fate = match id {
                _ if panics(&items) => Fate::Panicked,
                id if fails(*id) => Fate::Failed,
                _ => Fate::Served,
            };
            self.fates[*id as usize] = Some(fate);
        }
        self.pressed |= std::mem::take(&mut self.unrelieved);
        go.send(()).unwrap();
    }
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        14 => (0..5u8).prop_map(Op::Submit),
        4 => (1..12u64).prop_map(Op::Advance),
        2 => Just(Op::Flush),
        2 => (0..5u8).prop_map(Op::FlushKey),
        7 => any::<usize>().prop_map(Op::Release),
        1 => Just(Op::Close),
    ]
}

fn setup() -> impl Strategy<Value = Setup> {
    let linger = prop_oneof![Just(Some(0)), Just(Some(1)), Just(Some(10)), Just(None)];
    (1..5usize, linger, 0..8usize, 1..6usize, 1..3usize, any::<bool>(), any::<bool>(), any::<bool>()).prop_map(
        |(max_items, linger, more, max_keys, workers, one_in_flight, drop_oldest, one_hash)| Setup {
            max_items,
            linger,
            capacity: max_items + more,
            max_keys,
            workers,
            one_in_flight,
            drop_oldest,
            one_hash,
        },
    )
}

struct World {
    clock: PausedClock,
    /// Before the batcher: where a check fails, the calls that nobody has met go on when this is dropped.
    calls: Receiver<Call>,
    batcher: KeyedBatcher<Key, u32, u32>,
    one_hash: bool,
    /// Calls are not held up any more.
    free: Arc<AtomicBool>,
}

impl World {
    fn new(setup: &Setup) -> Self {
        let clock = PausedClock::new();
        let (began, calls) = channel::<Call>();
        let began = Mutex::new(began);
        let free = Arc::new(AtomicBool::new(false));
        let passing = Arc::clone(&free);
        let batcher = KeyedBatcher::builder()
            .max_items(setup.max_items)
            .capacity(setup.capacity)
            .max_keys(setup.max_keys)
            .workers(setup.workers)
            .one_in_flight(setup.one_in_flight)
            .linger(setup.linger.map_or(NEVER, Duration::from_millis))
            .overflow(if setup.drop_oldest { Overflow::DropOldest } else { Overflow::Reject })
            .on_drop(OnDrop::Abandon)
            .clock(&clock)
            .build(move |key: &Key, batch: Batch<u32>| {
                if !passing.load(Ordering::SeqCst) {
                    let (go, gone) = channel();
                    began.lock().unwrap().send((key.0, batch.to_vec(), go)).unwrap();
                    let held = gone.recv().is_ok();
                    if held && panics(&batch) {
                        blow_up();
                    }
                }
                batch.into_iter().map(|id| if fails(id) { Err("thirds fail") } else { Ok(id * 2) }).collect::<Vec<_>>()
            })
            .unwrap();
        Self { clock, batcher, calls, free, one_hash: setup.one_hash }
    }

    fn key(&self, key: u8) -> Key {
        Key(key, self.one_hash)
    }

    /// Lets the workers do what the model says, and nothing else.
    fn settle(&self, model: &mut Model) {
        while model.begins() {
            model.begun(self.calls.recv().unwrap());
        }
        if model.closed {
            if model.busy.is_empty() {
                // Nothing is left: the threads end.
                self.batcher.close().unwrap();
            }
        } else {
            self.clock.wait_for_waiters(model.setup.workers - model.busy.len());
            assert_eq!(self.batcher.keys(), model.open_keys());
        }
        assert!(self.calls.try_recv().is_err(), "a batch that is not due");
    }
}

fn run(setup: Setup, ops: &[Op]) {
    let world = World::new(&setup);
    let World { clock, batcher, free, .. } = &world;
    let mut tickets = Vec::new();
    let mut model = Model {
        setup,
        now: 0,
        keys: BTreeMap::new(),
        busy: Vec::new(),
        pressed: false,
        unrelieved: false,
        closed: false,
        fates: Vec::new(),
    };
    let advance = |model: &mut Model, by: u64| {
        model.now += by;
        clock.advance(Duration::from_millis(by));
        world.settle(model);
    };
    for op in ops {
        if model.closed && matches!(op, Op::Flush | Op::FlushKey(_) | Op::Close) && !model.busy.is_empty() {
            // Of a thread that ends nobody knows how far it is.
            continue;
        }
        match op {
            Op::Submit(key) => {
                advance(&mut model, 1);
                let id = model.fates.len() as u32;
                let accepted = model.submit(*key);
                match batcher.submit(world.key(*key), id) {
                    Ok(ticket) => {
                        assert!(accepted, "{id} should have been refused");
                        tickets.push((id, ticket));
                    }
                    Err(refused) => {
                        assert!(!accepted, "{id} should have been accepted");
                        assert_eq!((refused.is_closed(), refused.is_full()), (model.closed, !model.closed));
                        assert_eq!(refused.into_inner(), (world.key(*key), id));
                    }
                }
            }
            Op::Advance(by) => advance(&mut model, *by),
            Op::Flush => {
                model.keys.values_mut().flatten().for_each(|chunk| chunk.due = true);
                // Whether it finds itself done at once depends on nothing but what is there.
                assert_eq!(batcher.flush_within(Duration::ZERO).is_ok(), model.items() == 0);
            }
            Op::FlushKey(key) => {
                model.keys.get_mut(key).into_iter().flatten().for_each(|chunk| chunk.due = true);
                let open = model.keys.contains_key(key) || model.in_flight(*key);
                assert_eq!(batcher.flush_key_within(&world.key(*key), Duration::ZERO).is_ok(), !open);
            }
            Op::Release(n) => {
                if !model.busy.is_empty() {
                    model.release(*n);
                }
            }
            Op::Close => {
                let mut returned: BTreeMap<u8, Vec<u32>> = BTreeMap::new();
                for (key, chunks) in std::mem::take(&mut model.keys) {
                    returned.insert(key, chunks.into_iter().flat_map(|chunk| chunk.items).collect());
                }
                for id in returned.values().flatten() {
                    model.fates[*id as usize] = Some(Fate::Returned);
                }
                model.closed = true;
                let in_flight = model.items();
                match batcher.close_within(Duration::ZERO) {
                    Ok(()) => assert!(returned.is_empty() && in_flight == 0),
                    Err(left) => {
                        let mut items: BTreeMap<u8, Vec<u32>> = BTreeMap::new();
                        left.items.iter().for_each(|(key, item)| items.entry(key.0).or_default().push(*item));
                        assert_eq!((items, left.in_flight), (returned, in_flight));
                        assert!(left.abandoned_threads.len() >= model.busy.len());
                    }
                }
            }
        }
        world.settle(&mut model);
    }
    // An orderly close processes the rest.
    let open: Vec<u32> = model.keys.values().flatten().flat_map(|chunk| chunk.items.clone()).collect();
    free.store(true, Ordering::SeqCst);
    let busy = model.busy.drain(..).flat_map(|busy| busy.items);
    for id in open.into_iter().chain(busy) {
        model.fates[id as usize] = Some(if fails(id) { Fate::Failed } else { Fate::Served });
    }
    batcher.close().unwrap();
    for (id, ticket) in tickets {
        assert_eq!(Some(fate(ticket, id)), model.fates[id as usize], "item {id}");
    }
    assert_eq!(batcher.keys(), 0);
    let count = |fates: &[Fate]| model.fates.iter().flatten().filter(|fate| fates.contains(fate)).count() as u64;
    let seen = batcher.station().snapshot();
    assert!(seen.balanced());
    assert_eq!((seen.waiting(), seen.in_service()), (0, 0));
    assert_eq!(seen.offered(), model.fates.len() as u64);
    assert_eq!(seen.refused, count(&[Fate::Refused]));
    assert_eq!(seen.served, count(&[Fate::Served]));
    assert_eq!(seen.failed, count(&[Fate::Failed, Fate::Panicked]));
    assert_eq!(seen.dropped, count(&[Fate::Dropped]));
    assert_eq!(seen.returned, count(&[Fate::Returned]));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_keyed_batcher_does_what_the_model_says(setup in setup(), ops in prop::collection::vec(op(), 1..80)) {
        run(setup, &ops);
    }
}
