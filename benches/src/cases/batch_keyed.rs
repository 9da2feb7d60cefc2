//! `fullbore-batch`, by key: what it costs that each of many keys has its own batch.

use std::sync::Arc;
use std::time::Duration;

use fullbore_batch::{Batch, Batcher, KeyedBatcher};

use super::FITS;
use crate::measure::{Case, Side, Tally, Team};

const BATCH: usize = 100;
const KEYS: u64 = 100_000;

/// Each item is of a random key: a turn has a handful for each, whose batches go by the flush at its end. The rival makes batches
/// of 100 of the same items.
#[must_use]
pub fn keyed_cases() -> Vec<Case> {
    [1, 2, 8]
        .into_iter()
        .map(|producers| {
            Case::new("KeyedBatcher, 100,000 keys", producers, move || keyed(producers))
                .against("Batcher, unkeyed", move || unkeyed(producers))
        })
        .collect()
}

/// At random: the finaliser of splitmix64.
fn key_of(item: u64) -> u64 {
    let mut mixed = item.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((u128::from(mixed ^ (mixed >> 31)) * u128::from(KEYS)) >> 64) as u64
}

fn keyed(producers: usize) -> Side {
    let tally = Arc::new(Tally::default());
    let processed = Arc::clone(&tally);
    let batcher = KeyedBatcher::builder()
        .max_items(BATCH)
        .max_keys(KEYS as usize)
        // Ten items for each key.
        .capacity(10 * KEYS as usize)
        // Longer than a turn: with so many keys a shorter one makes small batches.
        .linger(Duration::from_secs(1))
        .build(move |_: &u64, items: Batch<u64>| processed.add(&items))
        .expect(FITS);
    let handle = batcher.handle();
    let mut team = Team::new(producers, move |_| {
        let handle = handle.clone();
        move |items| items.for_each(|item| handle.send(key_of(item), item).expect("room comes within 30 s"))
    });
    Box::new(move |count| {
        tally.expect(count);
        let began = team.run(count).began;
        batcher.flush().expect("this is not one of the batcher's threads");
        tally.wait();
        let took = began.elapsed();
        tally.check(count, 1);
        took
    })
}

fn unkeyed(producers: usize) -> Side {
    let tally = Arc::new(Tally::default());
    let processed = Arc::clone(&tally);
    let batcher =
        Batcher::builder().max_items(BATCH).build(move |items: Batch<u64>| processed.add(&items)).expect(FITS);
    let handle = batcher.handle();
    let mut team = Team::new(producers, move |_| {
        let handle = handle.clone();
        move |items| items.for_each(|item| handle.send(item).expect("room comes within 30 s"))
    });
    Box::new(move |count| {
        tally.expect(count);
        let began = team.run(count).began;
        batcher.flush().expect("this is not the batcher's thread");
        tally.wait();
        let took = began.elapsed();
        tally.check(count, 1);
        took
    })
}
