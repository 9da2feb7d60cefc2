//! Nothing is lost and nothing out of order, whatever `merge` and the process function do and whoever closes when.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use common::{Dice, blow_up};
use fullbore_batch::{Batch, Outcomes, ReducingBatcher};
use fullbore_core::{Failure, Overflow};

const ITEMS: u64 = 300;

/// The updates of one key, in the order in which they were merged: `(producer, number)`.
type Updates = Vec<(usize, u64)>;

#[derive(Default)]
struct Seen {
    served: Vec<Updates>,
    dead: Vec<Updates>,
}

fn add(count: &AtomicU64, n: u64) {
    count.fetch_add(n, Ordering::Relaxed);
}

/// Each producer's numbers rise.
fn is_ordered(updates: &Updates) -> bool {
    let mut last = HashMap::new();
    updates.iter().all(|(producer, n)| last.insert(*producer, *n).is_none_or(|before| before < *n))
}

fn count(pairs: &[Updates]) -> u64 {
    pairs.iter().map(|updates| updates.len() as u64).sum()
}

fn round(seed: u64, producers: usize) {
    println!("seed {seed}, {producers} producers");
    let mut dice = Dice::new(seed);
    let overflow = match dice.roll(4) {
        0 => Overflow::Reject,
        1 => Overflow::DropOldest,
        2 => Overflow::BlockFor(Duration::from_micros(50)),
        _ => Overflow::Block,
    };
    let max_keys = 1 + dice.roll(20) as usize;
    let keys = 1 + dice.roll(40);
    let merge_panics = dice.roll(2) == 0;
    let early_close = dice.roll(2) == 0;
    let close_after = dice.roll(producers as u64 * ITEMS);
    let seen = Arc::new(Mutex::new(Seen::default()));
    let (letters, written) = (Arc::clone(&seen), Arc::clone(&seen));
    // What was in the hands of a `merge` that panicked: updates, and pairs, of which each can hold several.
    let lost = Arc::new((AtomicU64::new(0), AtomicU64::new(0)));
    let losses = Arc::clone(&lost);
    let rolls = Mutex::new((Dice::new(seed + 1), Dice::new(seed + 2)));
    let rolls = Arc::new(rolls);
    let merge_rolls = Arc::clone(&rolls);
    let tries = 1 + dice.roll(3) as u32;
    let batcher = ReducingBatcher::builder(move |old: &mut Updates, new: Updates| {
        if merge_panics && merge_rolls.lock().unwrap().0.roll(100) == 0 {
            add(&losses.0, new.len() as u64);
            add(&losses.1, 1);
            blow_up();
        }
        old.extend(new);
    })
    .max_keys(max_keys)
    .capacity(max_keys + dice.roll(30) as usize)
    .linger(Duration::from_micros(dice.roll(200)))
    .keep_on_error(tries, Duration::from_micros(dice.roll(50)))
    .overflow(overflow)
    .dead_letter(move |(_, updates): (u64, Updates), _| letters.lock().unwrap().dead.push(updates))
    .build(move |batch: Batch<(u64, Updates)>| {
        assert!(batch.len() <= max_keys);
        let chance = rolls.lock().unwrap().1.roll(8);
        match chance {
            0 => blow_up(),
            1 => return Outcomes::failed(Failure::error("on purpose")),
            2 => return Outcomes::each(Vec::new()),
            _ => {}
        }
        let mut written = written.lock().unwrap();
        let outcomes = batch.into_iter().map(|(key, updates)| {
            if chance == 3 && key % 2 == 0 {
                return Err(Failure::error("even"));
            }
            written.served.push(updates);
            Ok(())
        });
        Outcomes::each(outcomes.collect())
    })
    .unwrap();
    let (offered, refused) = (AtomicU64::new(0), AtomicU64::new(0));
    let mut returned = Vec::new();
    thread::scope(|scope| {
        for producer in 0..producers {
            let handle = batcher.handle();
            let (offered, refused) = (&offered, &refused);
            let mut dice = Dice::new(seed + 3 + producer as u64);
            scope.spawn(move || {
                for n in 0..ITEMS {
                    let update = (dice.roll(keys), vec![(producer, n)]);
                    let sent = if dice.roll(3) == 0 { handle.try_send(update) } else { handle.send(update) };
                    if let Err(back) = sent {
                        assert_eq!(back.into_inner().1, [(producer, n)]);
                        add(refused, 1);
                    }
                    add(offered, 1);
                    if dice.roll(60) == 0 {
                        handle.flush().unwrap();
                    }
                }
            });
        }
        if early_close {
            while offered.load(Ordering::Relaxed) < close_after {
                thread::yield_now();
            }
            if let Err(left) = batcher.close_within(Duration::ZERO) {
                returned = left.items;
            }
        }
    });
    batcher.close().unwrap();
    let counts = batcher.station().snapshot();
    let seen = std::mem::take(&mut *seen.lock().unwrap());
    let get = |count: &AtomicU64| count.load(Ordering::Relaxed);
    assert!(counts.balanced(), "{counts:?}");
    assert_eq!((counts.waiting(), counts.in_service()), (0, 0));
    assert_eq!((counts.offered(), counts.refused), (producers as u64 * ITEMS, get(&refused)));
    assert_eq!(counts.served, seen.served.len() as u64);
    assert_eq!(counts.returned, returned.len() as u64);
    // One letter for each pair that failed or was dropped; the other half of a panicked merge has none.
    assert_eq!(counts.failed + counts.dropped, seen.dead.len() as u64 + get(&lost.1));
    // Every update that was accepted is in exactly one place.
    let returned: Vec<Updates> = returned.into_iter().map(|(_, updates)| updates).collect();
    let places = count(&seen.served) + count(&seen.dead) + count(&returned) + get(&lost.0);
    assert_eq!(places, counts.arrivals);
    assert!(seen.served.iter().chain(&seen.dead).chain(&returned).all(is_ordered), "a producer's updates out of order");
}

#[test]
fn conservation_and_order_under_panics_errors_and_closes() {
    let first = RandomState::new().hash_one(0) >> 32;
    for seed in first..first + 40 {
        round(seed, 8);
    }
}

#[test]
fn conservation_and_order_with_64_producers() {
    let first = RandomState::new().hash_one(0) >> 32;
    for seed in first..first + 6 {
        round(seed, 64);
    }
}

#[test]
fn the_last_value_of_a_producer_wins() {
    const KEYS: u64 = 20;
    let written = Arc::new(Mutex::new(HashMap::<u64, u64>::new()));
    let newest = Arc::clone(&written);
    let batcher = ReducingBatcher::last_wins()
        .max_keys(7)
        .capacity(25)
        .linger(Duration::ZERO)
        .build(move |batch: Batch<(u64, u64)>| {
            let mut newest = newest.lock().unwrap();
            for (key, n) in batch {
                assert!(newest.insert(key, n).is_none_or(|before| before < n), "an older value after a newer one");
            }
        })
        .unwrap();
    thread::scope(|scope| {
        for producer in 0..8 {
            let handle = batcher.handle();
            scope.spawn(move || {
                // Keys of its own: only their order is defined.
                for n in 0..20_000 {
                    handle.send((producer * KEYS + n % KEYS, n)).unwrap();
                }
            });
        }
    });
    batcher.flush().unwrap();
    assert_eq!(batcher.station().snapshot().failed, 0, "never out of order");
    let written = written.lock().unwrap();
    assert!((0..8 * KEYS).all(|key| written[&key] == 20_000 - KEYS + key % KEYS));
}

#[test]
fn what_one_thread_sends_after_it_heard_of_another_ones_is_newer() {
    let batcher = ReducingBatcher::last_wins().build(|_: Batch<(u8, u64)>| ()).unwrap();
    let last = Arc::new(Mutex::new(None));
    let newest = Arc::clone(&last);
    let turns = ReducingBatcher::last_wins()
        .linger(Duration::from_secs(3600))
        .build(move |batch: Batch<(u8, u64)>| *newest.lock().unwrap() = batch.first().copied())
        .unwrap();
    let turn = AtomicU64::new(0);
    thread::scope(|scope| {
        for me in 0..4 {
            let (turns, turn) = (&turns, &turn);
            scope.spawn(move || {
                for n in 0..2_000 {
                    let mine = n * 4 + me;
                    while turn.load(Ordering::Acquire) != mine {
                        thread::yield_now();
                    }
                    turns.send((0, mine)).unwrap();
                    turn.store(mine + 1, Ordering::Release);
                }
            });
        }
    });
    turns.flush().unwrap();
    assert_eq!(*last.lock().unwrap(), Some((0, 7_999)));
    batcher.close().unwrap();
}

#[test]
fn a_flush_ends_while_producers_go_on() {
    let served = Arc::new(Mutex::new(0));
    let sums = Arc::clone(&served);
    let batcher = ReducingBatcher::sum()
        .max_keys(10)
        .capacity(40)
        .build(move |batch: Batch<(u64, u64)>| {
            *sums.lock().unwrap() += batch.iter().filter(|pair| pair.0 == 99).map(|pair| pair.1).sum::<u64>();
        })
        .unwrap();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..4 {
            let (handle, stop) = (batcher.handle(), &stop);
            scope.spawn(move || {
                let mut n = 0;
                while !stop.load(Ordering::Relaxed) {
                    n += 1;
                    handle.send((n % 60, 1)).unwrap();
                }
            });
        }
        for n in 1..=200 {
            batcher.send((99, 1)).unwrap();
            batcher.flush().unwrap();
            assert_eq!(*served.lock().unwrap(), n, "what was accepted before the flush is done after it");
        }
        stop.store(true, Ordering::Relaxed);
    });
    batcher.close().unwrap();
    assert!(batcher.station().snapshot().balanced());
}
