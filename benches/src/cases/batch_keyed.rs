//! `fullbore-batch`, by key: what it costs that each of many keys has its own batch.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use fullbore_batch::{Batch, Batcher, KeyedBatcher, KeyedBatcherBuilder};
use fullbore_core::OnDrop;
use fullbore_testkit::{allocated_so_far, measure};
use parking_lot::Mutex;

use super::{Count, FITS};
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
            Case::new("send to processed, 100,000 keys", producers, move || keyed(producers))
                .against("Batcher, unkeyed", move || unkeyed(producers))
                .against("maps of vectors behind 16 mutexes", move || maps(producers))
        })
        .collect()
}

/// What 100,000 keys take.
#[must_use]
pub fn keyed_counts() -> Vec<Count> {
    vec![
        Count { name: "bytes over 200 of an idle key, 100,000 keys", unit: "bytes", ours: idle_bytes },
        Count { name: "bytes over 200 of a key that waits with a u64", unit: "bytes", ours: waiting_bytes },
    ]
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

type Map = Mutex<HashMap<u64, Vec<u64>>>;

/// By hand: who fills a batch processes it, and whoever wants the rest takes it out. No bound, no linger, no other thread.
fn maps(producers: usize) -> Side {
    let tally = Arc::new(Tally::default());
    let processed = Arc::clone(&tally);
    let maps: Arc<[Map]> = (0..16).map(|_| Map::default()).collect();
    let shared = Arc::clone(&maps);
    let mut team = Team::new(producers, move |_| {
        let (maps, processed) = (Arc::clone(&shared), Arc::clone(&processed));
        move |items| {
            for item in items {
                let key = key_of(item);
                let mut map = maps[key as usize % maps.len()].lock();
                let batch = map.entry(key).or_default();
                batch.push(item);
                let full = if batch.len() == BATCH { map.remove(&key) } else { None };
                drop(map);
                if let Some(batch) = full {
                    processed.add(&batch);
                }
            }
        }
    });
    Box::new(move |count| {
        tally.expect(count);
        let began = team.run(count).began;
        for map in &*maps {
            map.lock().drain().for_each(|(_, batch)| tally.add(&batch));
        }
        tally.wait();
        let took = began.elapsed();
        tally.check(count, 1);
        took
    })
}

/// With room for all keys, whose batches go when they are told to.
fn patient() -> KeyedBatcherBuilder<u64, u64> {
    KeyedBatcher::builder()
        .max_items(BATCH)
        .max_keys(KEYS as usize)
        .linger(Duration::from_secs(3600))
        .on_drop(OnDrop::Abandon)
}

fn over_200(bytes: i64) -> f64 {
    (bytes as f64 / KEYS as f64 - 200.0).max(0.0).round()
}

/// An item for each key, sent and processed: what is left of it. The sender and the worker both take and give memory; a batch that
/// comes after all others reads the worker's account.
fn idle_bytes() -> f64 {
    let account = Arc::new(AtomicI64::new(0));
    let last = Arc::clone(&account);
    let batcher = patient()
        .build(move |_: &u64, _: Batch<u64>| last.store(allocated_so_far().net_bytes(), Ordering::Relaxed))
        .expect(FITS);
    let send = |key| batcher.send(key, key).expect("there is room for all keys");
    let flush = || batcher.flush().expect("this is not the batcher's thread");
    send(0);
    flush();
    let before = account.load(Ordering::Relaxed);
    let ((), sender) = measure(|| {
        (0..KEYS).for_each(send);
        flush();
        send(0);
        flush();
    });
    assert_eq!((batcher.keys(), batcher.station().snapshot().served), (0, KEYS + 2));
    over_200(sender.net_bytes() + account.load(Ordering::Relaxed) - before)
}

fn waiting_bytes() -> f64 {
    let batcher = patient().build(|_: &u64, _: Batch<u64>| ()).expect(FITS);
    let ((), sender) =
        measure(|| (0..KEYS).for_each(|key| batcher.send(key, key).expect("there is room for all keys")));
    assert_eq!((batcher.keys() as u64, batcher.station().snapshot().waiting()), (KEYS, KEYS));
    over_200(sender.net_bytes())
}
