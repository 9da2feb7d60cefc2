//! Batches by weight.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::ffi::OsString;
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use common::{Gate, NEVER, blow_up};
use fullbore_batch::{Batch, Batcher, BatcherBuilder, Config, Oversized};
use fullbore_core::{BuildError, EnvReader, FAIR_AFTER, Overflow, PausedClock};
use proptest::prelude::*;

/// Items weigh what they say.
fn builder(max_weight: u64) -> BatcherBuilder<u64> {
    Batcher::builder().linger(NEVER).max_weight(max_weight).weigher(|item| *item)
}

/// Batches as they come, and a batcher that does not hold them up.
fn batches(builder: BatcherBuilder<u64>) -> (Batcher<u64, ()>, mpsc::Receiver<Vec<u64>>) {
    let (seen, sees) = mpsc::channel();
    let batcher = builder.build(move |batch: Batch<u64>| seen.send(batch.into_vec()).unwrap()).unwrap();
    (batcher, sees)
}

/// Batches that wait at a gate.
fn gated(builder: BatcherBuilder<u64>) -> (Batcher<u64, ()>, Gate<Vec<u64>>) {
    let gate = Gate::new();
    let entry = gate.entry();
    let batcher = builder.build(move |batch: Batch<u64>| entry.pass(batch.into_vec())).unwrap();
    (batcher, gate)
}

#[test]
fn a_batch_starts_when_it_is_full_by_weight_or_the_next_item_would_not_fit() {
    let (batcher, sees) = batches(builder(10));
    for item in [4, 6] {
        batcher.send(item).unwrap();
    }
    assert_eq!(sees.recv().unwrap(), [4, 6], "exactly full");
    for item in [4, 4, 4] {
        batcher.send(item).unwrap();
    }
    assert_eq!(sees.recv().unwrap(), [4, 4], "a third one would not fit");
    batcher.flush().unwrap();
    assert_eq!(sees.recv().unwrap(), [4], "it was left for the next batch");
    for _ in 0..3 {
        batcher.send(0).unwrap();
    }
    batcher.close().unwrap();
    assert_eq!(sees.recv().unwrap(), [0, 0, 0], "what weighs nothing fits everywhere");
}

#[test]
fn the_number_of_items_still_counts() {
    let (batcher, sees) = batches(builder(1000).max_items(3));
    (0..3).for_each(|_| batcher.send(1).unwrap());
    assert_eq!(sees.recv().unwrap(), [1, 1, 1]);
}

#[test]
fn an_oversized_item_goes_alone() {
    let (batcher, gate) = gated(builder(10).capacity_weight(40));
    batcher.send(10).unwrap();
    assert_eq!(gate.wait(), [10]);
    for item in [4, 25, 1] {
        batcher.send(item).unwrap();
    }
    for batch in [vec![4], vec![25]] {
        gate.open(1);
        assert_eq!(gate.wait(), batch);
    }
    gate.open(2);
    batcher.close().unwrap();
    assert_eq!(gate.wait(), [1]);
}

#[test]
fn an_item_heavier_than_the_capacity_waits_until_nothing_else_is_inside() {
    let (batcher, gate) = gated(builder(10).capacity_weight(10).overflow(Overflow::Reject));
    batcher.send(10).unwrap();
    gate.wait();
    let refused = batcher.send(u64::MAX).unwrap_err();
    assert!(refused.is_full() && refused.into_inner() == u64::MAX);
    gate.open(1);
    batcher.flush().unwrap();
    // The flush ends with the batch; its places are free by then.
    batcher.send(u64::MAX).unwrap();
    assert_eq!(gate.wait(), [u64::MAX]);
    assert!(batcher.send(u64::MAX).unwrap_err().is_full(), "a sum that does not fit into 64 bits is no small one");
    gate.open(1);
    batcher.close().unwrap();
}

#[test]
fn an_oversized_item_is_refused_if_so_set() {
    let (batcher, sees) = batches(builder(10).oversized(Oversized::Refuse));
    let refused = batcher.send(11).unwrap_err();
    assert!(refused.is_oversized() && !refused.is_full());
    assert_eq!(refused.to_string(), "item not accepted: larger than allowed");
    assert_eq!(refused.into_inner(), 11);
    batcher.send(10).unwrap();
    assert_eq!(sees.recv().unwrap(), [10]);
    batcher.close().unwrap();
    assert!(batcher.send(11).unwrap_err().is_closed(), "a smaller one would not come in either");
    let seen = batcher.station().snapshot();
    assert_eq!((seen.refused, seen.served), (2, 1));
    assert!(seen.balanced());
}

/// What franz-go#726 is about: room runs out before the batch is full, and nothing happens until the linger ends.
#[test]
fn a_weight_that_fills_the_capacity_before_the_batch_does_not_stall() {
    let (batcher, sees) = batches(builder(100).capacity_weight(100).overflow(Overflow::Block));
    thread::scope(|scope| {
        scope.spawn(|| (0..50).for_each(|_| batcher.send(60).unwrap()));
        for _ in 0..49 {
            assert_eq!(sees.recv().unwrap(), [60]);
        }
    });
    batcher.close().unwrap();
    assert_eq!(sees.recv().unwrap(), [60], "nobody waited for room any more");
}

#[test]
fn weight_is_back_pressure() {
    let (batcher, gate) = gated(builder(10).capacity_weight(20).overflow(Overflow::Reject));
    batcher.send(10).unwrap();
    assert_eq!(gate.wait(), [10]);
    batcher.send(7).unwrap();
    assert!(batcher.send(4).unwrap_err().is_full(), "10 in process, 7 waiting");
    assert!(batcher.try_send(4).unwrap_err().is_full());
    batcher.send(3).unwrap();
    gate.open(2);
    batcher.close().unwrap();
    assert_eq!(gate.wait(), [7, 3]);
}

/// Kafka's `BufferPool`: memory is for the one who has waited longest, or a large request would never be served.
#[test]
fn a_heavy_item_is_not_overtaken_for_ever() {
    let clock = PausedClock::new();
    let set = builder(10).capacity_weight(20).overflow(Overflow::Block).clock(&clock);
    let (batcher, gate) = gated(set);
    batcher.send(10).unwrap();
    gate.wait();
    batcher.send(10).unwrap();
    thread::scope(|scope| {
        let heavy = scope.spawn(|| batcher.send(15));
        clock.wait_for_waiters(1);
        clock.advance(FAIR_AFTER);
        gate.open(1);
        assert_eq!(gate.wait(), [10], "10 of 20 are free now, which is not enough");
        assert!(batcher.try_send(1).unwrap_err().is_full(), "they are kept for the one who has waited");
        gate.open(1);
        heavy.join().unwrap().unwrap();
        assert_eq!(gate.wait(), [15]);
    });
    batcher.send(1).unwrap();
    gate.open(2);
    batcher.close().unwrap();
}

#[test]
fn a_heavy_waiter_that_gives_up_leaves_room_to_others() {
    let clock = PausedClock::new();
    let set = builder(10).capacity_weight(20).overflow(Overflow::BlockFor(Duration::from_secs(1))).clock(&clock);
    let (batcher, gate) = gated(set);
    batcher.send(10).unwrap();
    gate.wait();
    batcher.send(10).unwrap();
    thread::scope(|scope| {
        let heavy = scope.spawn(|| batcher.send(15));
        clock.wait_for_waiters(1);
        clock.advance(FAIR_AFTER);
        let light = scope.spawn(|| batcher.send(1));
        clock.wait_for_waiters(2);
        gate.open(1);
        gate.wait();
        // The light one has come later by its clock, and has its own second; the heavy one's ends here.
        clock.advance(Duration::from_secs(1) - FAIR_AFTER);
        assert!(heavy.join().unwrap().unwrap_err().is_timeout());
        light.join().unwrap().unwrap();
    });
    gate.open(2);
    batcher.close().unwrap();
}

#[test]
fn as_many_are_displaced_as_a_heavy_one_needs() {
    let lost = Arc::new(Mutex::new(Vec::new()));
    let letters = Arc::clone(&lost);
    let set = builder(10).capacity_weight(20).overflow(Overflow::DropOldest);
    let (batcher, gate) = gated(set.dead_letter(move |item, _| letters.lock().unwrap().push(item)));
    batcher.send(10).unwrap();
    gate.wait();
    for item in [3, 4, 2, 1] {
        batcher.send(item).unwrap();
    }
    batcher.send(8).unwrap();
    assert_eq!(*lost.lock().unwrap(), [3, 4, 2], "the oldest of them, until it fits");
    batcher.send(15).unwrap();
    assert_eq!(*lost.lock().unwrap(), [3, 4, 2, 15], "beside what is in process it never fits: it is the one to go");
    gate.open(3);
    batcher.close().unwrap();
    assert_eq!(gate.wait(), [1, 8]);
    let seen = batcher.station().snapshot();
    assert_eq!((seen.arrivals, seen.dropped, seen.served), (7, 4, 3));
    assert!(seen.balanced());
}

#[test]
fn a_panic_of_the_weigher_is_the_senders_and_costs_nothing() {
    let set = Batcher::builder().linger(NEVER).max_weight(10).capacity(1).max_items(1);
    let (batcher, sees) = batches(set.weigher(|item| if *item == 13 { blow_up() } else { *item }));
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| batcher.send(13))).is_err());
    batcher.send(1).unwrap();
    assert_eq!(sees.recv().unwrap(), [1], "the only place is still there");
    batcher.close().unwrap();
    assert_eq!(batcher.station().snapshot().offered(), 1);
}

#[test]
fn nonsense_is_refused_by_name() {
    let refused = |builder: BatcherBuilder<u64>| match builder.build(|_: Batch<u64>| ()).map(drop).unwrap_err() {
        BuildError::Config { field, value, expected } => (field, value, expected),
        other => panic!("{other}"),
    };
    assert_eq!(refused(builder(0)).0, "max_weight");
    let weighed = || Batcher::<u64, ()>::builder();
    assert_eq!(refused(weighed().max_weight(1)), ("max_weight".into(), "1".into(), "a weigher with it".into()));
    assert_eq!(refused(weighed().weigher(|item| *item)).0, "max_weight");
    assert_eq!(refused(weighed().capacity_weight(1)).0, "capacity_weight");
    let (field, value, expected) = refused(builder(10).capacity_weight(9));
    assert_eq!((&*field, &*value, &*expected), ("capacity_weight", "9", "at least max_weight, which is 10"));
}

#[test]
fn the_environment_sets_weights() {
    let read = |vars: &[(&str, &str)]| {
        let vars: Vec<(OsString, OsString)> = vars.iter().map(|(name, value)| (name.into(), value.into())).collect();
        Config::read(EnvReader::from_vars("B_", vars))
    };
    let vars = [("B_MAX_WEIGHT", "1000"), ("B_CAPACITY_WEIGHT", "5000"), ("B_OVERSIZED", "refuse")];
    let config = read(&vars).unwrap();
    assert_eq!((config.max_weight, config.capacity_weight), (Some(1000), Some(5000)));
    assert_eq!(config.oversized, Oversized::Refuse);
    let error = read(&[("B_OVERSIZED", "perhaps")]).unwrap_err();
    assert!(error.to_string().contains("B_OVERSIZED"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// All batches but the flushed ones are the longest that fit; nothing is lost, and the order holds.
    #[test]
    fn batches_are_what_first_fits(weights in prop::collection::vec(0..15_u64, 0..60), max_items in 1..6_usize) {
        let (batcher, sees) = batches(builder(10).max_items(max_items).capacity(100).capacity_weight(1000));
        weights.iter().for_each(|weight| batcher.send(*weight).unwrap());
        batcher.close().unwrap();
        drop(batcher);
        let got: Vec<Vec<u64>> = sees.iter().collect();
        prop_assert_eq!(got.concat(), weights);
        for (batch, next) in got.iter().zip(got.iter().skip(1)) {
            let weight: u64 = batch.iter().sum();
            prop_assert!(weight <= 10 || batch.len() == 1, "{:?}", got);
            let full = weight >= 10 || batch.len() == max_items || weight + next[0] > 10;
            prop_assert!(full, "{:?} was not full: {:?}", batch, got);
        }
    }
}
