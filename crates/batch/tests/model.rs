//! Every sequence of submit, time, flush, end of a batch and close against a model that a reader can check by eye.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::collections::VecDeque;
use std::time::Duration;

use common::{Fate, Gate, NEVER, blow_up, fails, fate, panics};
use fullbore_batch::{Batch, Batcher};
use fullbore_core::{Overflow, PausedClock};
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Op {
    Submit,
    Advance(u64),
    /// A flush that does not wait: it ends the linger of what is there.
    Flush,
    /// The process function returns.
    Release,
    Close,
}

#[derive(Clone, Debug)]
struct Setup {
    max_items: usize,
    linger: Option<u64>,
    capacity: usize,
    drop_oldest: bool,
}

struct Queued {
    id: u32,
    /// When it was accepted; behind others that no worker has looked at yet, when the first of those was.
    at: u64,
    hurried: bool,
}

struct Model {
    setup: Setup,
    now: u64,
    queue: VecDeque<Queued>,
    /// The items that came since somebody last looked at all: their linger counts from the first of them.
    unseen: Option<u64>,
    busy: Option<Vec<u32>>,
    closed: bool,
    fates: Vec<Option<Fate>>,
}

impl Model {
    fn submit(&mut self) -> bool {
        let id = self.fates.len() as u32;
        let used = self.queue.len() + self.busy.as_ref().map_or(0, Vec::len);
        if used >= self.setup.capacity && self.setup.drop_oldest {
            self.unseen = None;
        }
        let at = self.unseen.unwrap_or(self.now);
        let newcomer = Queued { id, at, hurried: false };
        let fate = if self.closed {
            Some(Fate::Refused)
        } else if used < self.setup.capacity {
            self.queue.push_back(newcomer);
            self.unseen = Some(at);
            None
        } else if !self.setup.drop_oldest {
            Some(Fate::Refused)
        } else if let Some(oldest) = self.queue.pop_front() {
            self.fates[oldest.id as usize] = Some(Fate::Dropped);
            self.queue.push_back(newcomer);
            self.unseen = Some(at);
            None
        } else {
            Some(Fate::Dropped)
        };
        self.fates.push(fate);
        fate != Some(Fate::Refused)
    }

    /// The batch that begins now, if one does.
    fn begin(&mut self) -> Option<Vec<u32>> {
        let first = self.queue.front()?;
        let due = self.setup.linger.is_some_and(|linger| self.now - first.at >= linger);
        let ready = self.queue.len() >= self.setup.max_items || due || first.hurried || self.closed;
        if self.busy.is_some() || !ready {
            return None;
        }
        let count = self.queue.len().min(self.setup.max_items);
        let batch: Vec<u32> = self.queue.drain(..count).map(|queued| queued.id).collect();
        if self.queue.is_empty() {
            self.unseen = None;
        }
        self.busy = Some(batch.clone());
        Some(batch)
    }

    fn release(&mut self) -> bool {
        let Some(batch) = self.busy.take() else { return false };
        for id in &batch {
            let fate = if panics(&batch) {
                Fate::Panicked
            } else if fails(*id) {
                Fate::Failed
            } else {
                Fate::Served
            };
            self.fates[*id as usize] = Some(fate);
        }
        true
    }
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        12 => Just(Op::Submit),
        4 => (1..12u64).prop_map(Op::Advance),
        3 => Just(Op::Flush),
        6 => Just(Op::Release),
        1 => Just(Op::Close),
    ]
}

fn setup() -> impl Strategy<Value = Setup> {
    let linger = prop_oneof![Just(Some(0)), Just(Some(1)), Just(Some(10)), Just(None)];
    (1..5usize, linger, 0..5usize, any::<bool>()).prop_map(|(max_items, linger, more, drop_oldest)| Setup {
        max_items,
        linger,
        capacity: max_items + more,
        drop_oldest,
    })
}

fn run(setup: Setup, ops: &[Op]) {
    let clock = PausedClock::new();
    let gate = Gate::new();
    let entry = gate.entry();
    let batcher = Batcher::builder()
        .max_items(setup.max_items)
        .capacity(setup.capacity)
        .linger(setup.linger.map_or(NEVER, Duration::from_millis))
        .overflow(if setup.drop_oldest { Overflow::DropOldest } else { Overflow::Reject })
        .clock(&clock)
        .build(move |batch: Batch<u32>| {
            entry.pass(batch.to_vec());
            if panics(&batch) {
                blow_up();
            }
            batch.into_iter().map(|id| if fails(id) { Err("thirds fail") } else { Ok(id * 2) }).collect::<Vec<_>>()
        })
        .unwrap();
    let mut tickets = Vec::new();
    let mut model =
        Model { setup, now: 0, queue: VecDeque::new(), unseen: None, busy: None, closed: false, fates: Vec::new() };
    for op in ops {
        match op {
            Op::Submit => {
                let id = model.fates.len() as u32;
                let accepted = model.submit();
                match batcher.submit(id) {
                    Ok(ticket) => {
                        assert!(accepted, "{id} should have been refused");
                        tickets.push((id, ticket));
                    }
                    Err(refused) => {
                        assert!(!accepted, "{id} should have been accepted");
                        assert_eq!((refused.is_closed(), refused.is_full()), (model.closed, !model.closed));
                        assert_eq!(refused.into_inner(), id);
                    }
                }
            }
            Op::Advance(by) => {
                model.now += by;
                clock.advance(Duration::from_millis(*by));
            }
            Op::Flush => {
                model.queue.iter_mut().for_each(|queued| queued.hurried = true);
                model.unseen = None;
                // Whether it finds itself done at once depends on nothing but what is there.
                let open = model.queue.len() + model.busy.as_ref().map_or(0, Vec::len);
                let flushed = batcher.flush_within(Duration::ZERO);
                assert_eq!(flushed.is_ok(), open == 0);
            }
            Op::Release => {
                if model.release() {
                    gate.open(1);
                }
            }
            Op::Close => {
                let items: Vec<u32> = model.queue.drain(..).map(|queued| queued.id).collect();
                for id in &items {
                    model.fates[*id as usize] = Some(Fate::Returned);
                }
                model.closed = true;
                let in_flight = model.busy.as_ref().map_or(0, Vec::len);
                let left = batcher.close_within(Duration::ZERO);
                match left {
                    Ok(()) => assert_eq!((items.len(), in_flight), (0, 0)),
                    Err(left) => {
                        assert_eq!((&left.items, left.in_flight), (&items, in_flight));
                        assert_eq!(left.abandoned_threads.len(), usize::from(in_flight > 0));
                    }
                }
            }
        }
        // Now the thread does what the model says, and nothing else.
        if let Some(batch) = model.begin() {
            assert_eq!(gate.wait(), batch);
        } else if model.busy.is_none() && model.closed {
            // Nothing is left: the thread ends.
            batcher.close().unwrap();
        } else if model.busy.is_none() {
            clock.wait_for_waiters(1);
            let armed = !model.queue.is_empty() && model.setup.linger.is_some();
            assert_eq!(clock.timers(), usize::from(armed));
        }
    }
    // An orderly close processes the rest in batches as large as may be.
    gate.open(ops.len() + 1);
    batcher.close().unwrap();
    model.closed = true;
    loop {
        model.release();
        match model.begin() {
            Some(batch) => assert_eq!(gate.wait(), batch),
            None => break,
        }
    }
    for (id, ticket) in tickets {
        assert_eq!(Some(fate(ticket, id)), model.fates[id as usize], "item {id}");
    }
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
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_batcher_does_what_the_model_says(setup in setup(), ops in prop::collection::vec(op(), 1..60)) {
        run(setup, &ops);
    }
}
