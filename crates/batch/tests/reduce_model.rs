//! Every sequence of updates, time, flushes, ends of a batch and closes against a plain list of keys.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use common::{Gate, NEVER, blow_up};
use fullbore_batch::{Batch, Outcomes, ReducingBatcher};
use fullbore_core::{Failure, Overflow, PausedClock};
use proptest::prelude::*;

type Pair = (u8, Vec<u32>);

#[derive(Clone, Debug)]
enum Op {
    Send(u8),
    /// Longer than any linger.
    Advance,
    /// A flush that does not wait: it ends the linger of what is there.
    Flush,
    /// The process function returns.
    Release(How),
    Close,
}

#[derive(Clone, Copy, Debug)]
enum How {
    Well,
    Badly,
    Panics,
    /// Pairs with an odd key fail.
    Odd,
}

impl How {
    fn fails(self, key: u8) -> bool {
        match self {
            How::Well => false,
            How::Badly | How::Panics => true,
            How::Odd => key % 2 == 1,
        }
    }
}

#[derive(Clone, Debug)]
struct Setup {
    max_keys: usize,
    linger: Option<u64>,
    capacity: usize,
    drop_oldest: bool,
    tries: u32,
}

#[derive(Clone)]
struct Waiting {
    pair: Pair,
    at: u64,
    hurried: bool,
    /// It came while a batch was in process: when exactly is not known to the batcher, only that of the first such one.
    vague: bool,
    tries: u32,
}

struct Model {
    setup: Setup,
    now: u64,
    waiting: Vec<Waiting>,
    busy: Option<Vec<Waiting>>,
    closed: bool,
    abandoned: bool,
    dead: Vec<Pair>,
    arrived: u64,
    refused: u64,
    merged: u64,
    served: u64,
    failed: u64,
    dropped: u64,
}

impl Model {
    fn merge(into: &mut Vec<Waiting>, new: Waiting, merged: &mut u64) {
        match into.iter_mut().find(|old| old.pair.0 == new.pair.0) {
            Some(old) => {
                old.pair.1.extend(new.pair.1);
                *merged += 1;
            }
            None => into.push(new),
        }
    }

    fn send(&mut self, key: u8, id: u32) -> bool {
        let vague = self.busy.is_some();
        let new = Waiting { pair: (key, vec![id]), at: self.now, hurried: false, vague, tries: 0 };
        let known = self.waiting.iter().any(|old| old.pair.0 == key);
        let used = self.waiting.len() + self.busy.as_ref().map_or(0, Vec::len);
        if self.closed || (!known && used >= self.setup.capacity && !self.setup.drop_oldest) {
            self.refused += 1;
            return false;
        }
        self.arrived += 1;
        if !known && used >= self.setup.capacity {
            self.dropped += 1;
            if self.waiting.is_empty() {
                self.dead.push(new.pair);
                return true;
            }
            self.dead.push(self.waiting.remove(0).pair);
        }
        Self::merge(&mut self.waiting, new, &mut self.merged);
        true
    }

    fn must_begin(&self) -> bool {
        let due = |waiting: &Waiting| self.setup.linger.is_some_and(|linger| self.now - waiting.at >= linger);
        let ready = self.waiting.len() >= self.setup.max_keys || self.closed;
        self.busy.is_none() && (ready && !self.waiting.is_empty() || self.waiting.iter().any(|w| due(w) || w.hurried))
    }

    fn may_begin(&self) -> bool {
        self.busy.is_none() && self.waiting.iter().any(|waiting| waiting.vague)
    }

    fn begin(&mut self) -> Vec<Pair> {
        let count = self.waiting.len().min(self.setup.max_keys);
        let batch: Vec<Waiting> = self.waiting.drain(..count).collect();
        let pairs = batch.iter().map(|waiting| waiting.pair.clone()).collect();
        self.busy = Some(batch);
        pairs
    }

    fn release(&mut self, how: How) {
        let mut kept = Vec::new();
        for mut waiting in self.busy.take().into_iter().flatten() {
            waiting.tries += 1;
            if !how.fails(waiting.pair.0) {
                self.served += 1;
            } else if waiting.tries >= self.setup.tries {
                self.failed += 1;
                self.dead.push(waiting.pair);
            } else if self.abandoned {
                self.dropped += 1;
                self.dead.push(waiting.pair);
            } else {
                kept.push(waiting);
            }
        }
        for newer in std::mem::take(&mut self.waiting) {
            Self::merge(&mut kept, newer, &mut self.merged);
        }
        self.waiting = kept;
    }
}

fn op() -> impl Strategy<Value = Op> {
    let how = prop_oneof![6 => Just(How::Well), 2 => Just(How::Badly), 1 => Just(How::Panics), 2 => Just(How::Odd)];
    prop_oneof![
        16 => (0..6u8).prop_map(Op::Send),
        3 => Just(Op::Advance),
        3 => Just(Op::Flush),
        6 => how.prop_map(Op::Release),
        1 => Just(Op::Close),
    ]
}

fn setup() -> impl Strategy<Value = Setup> {
    let linger = prop_oneof![Just(Some(0)), Just(Some(10)), Just(None)];
    (1..5usize, linger, 0..5usize, any::<bool>(), 1..4u32).prop_map(|(max_keys, linger, more, drop_oldest, tries)| {
        Setup { max_keys, linger, capacity: max_keys + more, drop_oldest, tries }
    })
}

fn folded(items: Vec<Pair>) -> Vec<Pair> {
    let mut pairs: Vec<Pair> = Vec::new();
    for (key, ids) in items {
        match pairs.iter_mut().find(|pair| pair.0 == key) {
            Some(pair) => pair.1.extend(ids),
            None => pairs.push((key, ids)),
        }
    }
    pairs
}

fn run(setup: Setup, ops: &[Op]) {
    let clock = PausedClock::new();
    let gate = Gate::new();
    let entry = gate.entry();
    let (begins, began) = channel();
    let dead = Arc::new(Mutex::new(Vec::new()));
    let letters = Arc::clone(&dead);
    let how = Arc::new(Mutex::new(How::Well));
    let ends = Arc::clone(&how);
    let batcher = ReducingBatcher::extend()
        .max_keys(setup.max_keys)
        .capacity(setup.capacity)
        .linger(setup.linger.map_or(NEVER, Duration::from_millis))
        .overflow(if setup.drop_oldest { Overflow::DropOldest } else { Overflow::Reject })
        .keep_on_error(setup.tries, Duration::ZERO)
        .dead_letter(move |pair: Pair, _| letters.lock().unwrap().push(pair))
        .clock(&clock)
        .build(move |batch: Batch<Pair>| {
            begins.send(batch.to_vec()).unwrap();
            entry.pass(());
            let how = *ends.lock().unwrap();
            match how {
                How::Panics => blow_up(),
                How::Badly => Outcomes::failed(Failure::error("all")),
                How::Well | How::Odd => {
                    let each = |pair: &Pair| if how.fails(pair.0) { Err(Failure::error("odd")) } else { Ok(()) };
                    Outcomes::each(batch.iter().map(each).collect())
                }
            }
        })
        .unwrap();
    let mut model = Model {
        setup,
        now: 0,
        waiting: Vec::new(),
        busy: None,
        closed: false,
        abandoned: false,
        dead: Vec::new(),
        arrived: 0,
        refused: 0,
        merged: 0,
        served: 0,
        failed: 0,
        dropped: 0,
    };
    let mut parks = 0;
    let (mut returned, mut returned_items) = (Vec::new(), 0);
    for (id, op) in (0u32..).zip(ops) {
        match op {
            Op::Send(key) => {
                let accepted = model.send(*key, id);
                match batcher.send((*key, vec![id])) {
                    Ok(()) => assert!(accepted, "{id} should have been refused"),
                    Err(refused) => {
                        assert!(!accepted, "{id} should have been accepted");
                        assert_eq!((refused.is_closed(), refused.is_full()), (model.closed, !model.closed));
                        assert_eq!(refused.into_inner(), (*key, vec![id]));
                    }
                }
            }
            Op::Advance => {
                model.now += 20;
                clock.advance(Duration::from_millis(20));
            }
            Op::Flush => {
                let busy = model.busy.iter_mut().flatten();
                model.waiting.iter_mut().chain(busy).for_each(|waiting| waiting.hurried = true);
                let open = model.waiting.len() + model.busy.as_ref().map_or(0, Vec::len);
                assert_eq!(batcher.flush_within(Duration::ZERO).is_ok(), open == 0);
            }
            Op::Release(ends) => {
                if model.busy.is_some() {
                    *how.lock().unwrap() = *ends;
                    model.release(*ends);
                    parks = clock.parks();
                    gate.open(1);
                }
            }
            Op::Close => {
                let waiting: Vec<Pair> = model.waiting.drain(..).map(|waiting| waiting.pair).collect();
                (model.closed, model.abandoned) = (true, true);
                let in_flight = model.busy.as_ref().map_or(0, Vec::len);
                match batcher.close_within(Duration::ZERO) {
                    Ok(()) => assert_eq!((waiting.len(), in_flight), (0, 0)),
                    Err(left) => {
                        assert_eq!(left.in_flight, in_flight);
                        assert_eq!(left.abandoned_threads.len(), usize::from(in_flight > 0));
                        returned_items += left.items.len() as u64;
                        let items = folded(left.items);
                        assert_eq!(items, waiting);
                        returned.extend(items);
                    }
                }
            }
        }
        // Now the thread does what the model says, and nothing else.
        if model.busy.is_some() {
            continue;
        }
        let batch = if model.must_begin() {
            Some(began.recv().unwrap())
        } else if model.closed {
            // Nothing is left: the thread ends.
            batcher.close().unwrap();
            None
        } else if model.may_begin() {
            begins_or_sleeps(&began, &clock, parks)
        } else {
            clock.wait_for_waiters(1);
            None
        };
        match batch {
            Some(batch) => assert_eq!(batch, model.begin()),
            None if model.closed => {}
            None => {
                model.waiting.iter_mut().for_each(|waiting| waiting.vague = false);
                let armed = !model.waiting.is_empty() && model.setup.linger.is_some();
                assert_eq!(clock.timers(), usize::from(armed));
            }
        }
    }
    // An orderly close processes the rest in batches as large as may be.
    *how.lock().unwrap() = How::Well;
    gate.open(ops.len() + 1);
    batcher.close().unwrap();
    model.closed = true;
    loop {
        model.release(How::Well);
        if !model.must_begin() {
            break;
        }
        assert_eq!(began.recv().unwrap(), model.begin());
    }
    let mut letters = std::mem::take(&mut *dead.lock().unwrap());
    letters.sort();
    model.dead.sort();
    assert_eq!(letters, model.dead);
    let seen = batcher.station().snapshot();
    assert!(seen.balanced(), "{seen:?}");
    assert_eq!((seen.waiting(), seen.in_service()), (0, 0));
    assert_eq!((seen.arrivals, seen.refused), (model.arrived, model.refused));
    assert_eq!((seen.served, seen.failed, seen.dropped), (model.served, model.failed, model.dropped));
    assert_eq!(seen.returned, returned_items);
    // What came back unmerged was not merged.
    assert_eq!(seen.merged + returned_items, model.merged + returned.len() as u64);
}

/// The batch that begins, unless the thread goes to sleep: it has slept `parks` times before.
fn begins_or_sleeps(began: &Receiver<Vec<Pair>>, clock: &PausedClock, parks: u64) -> Option<Vec<Pair>> {
    loop {
        if let Ok(batch) = began.try_recv() {
            return Some(batch);
        }
        if clock.parks() > parks {
            return None;
        }
        thread::yield_now();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_reducing_batcher_does_what_the_model_says(setup in setup(), ops in prop::collection::vec(op(), 1..70)) {
        run(setup, &ops);
    }
}
