//! Nothing is lost and nothing out of order, whatever the process function does, however slow a key is and whoever closes
//! when; with keys that panic when they are copied, and many more threads than processors.
#![cfg(not(fullbore_loom))]
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use common::{Dice, Tally, add, blow_up};
use fullbore_batch::{Batch, KeyedBatcher, Outcomes};
use fullbore_core::{Failure, Overflow};

const PRODUCERS: u64 = 64;
const ITEMS: u64 = 150;

/// Producer and number.
type Item = (u64, u64);

/// A key whose copying panics now and then, if it is of that kind: by a worker, by who displaces, by who closes.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Key {
    name: u64,
    brittle: bool,
}

impl Clone for Key {
    fn clone(&self) -> Self {
        static COPIES: AtomicU64 = AtomicU64::new(0);
        if self.brittle && COPIES.fetch_add(1, Ordering::Relaxed) % 16 == 15 {
            blow_up();
        }
        Self { ..*self }
    }
}

/// What the process function sees of a key.
#[derive(Default)]
struct Seen {
    busy: bool,
    last: HashMap<u64, u64>,
}

fn round(seed: u64) {
    println!("seed {seed}");
    let mut dice = Dice::new(seed);
    let overflow = match dice.roll(4) {
        0 => Overflow::Reject,
        1 => Overflow::DropOldest,
        2 => Overflow::BlockFor(Duration::from_micros(50)),
        _ => Overflow::Block,
    };
    let max_items = 1 + dice.roll(20) as usize;
    let keys = 1 + dice.roll(30);
    let one_in_flight = dice.roll(3) > 0;
    let workers = 1 + dice.roll(4) as usize;
    let brittle = dice.roll(3) == 0;
    let ordered = one_in_flight || workers == 1;
    let early_close = dice.roll(2) == 0;
    let close_after = dice.roll(PRODUCERS * ITEMS);
    let dead = Arc::new(Mutex::new(Vec::new()));
    let hook = Arc::clone(&dead);
    let processed = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&processed);
    let state: Vec<Mutex<Seen>> = (0..keys).map(|_| Mutex::default()).collect();
    let rolls = Mutex::new(Dice::new(seed + 1));
    let disorder = Arc::new(AtomicU64::new(0));
    let disordered = Arc::clone(&disorder);
    let batcher = KeyedBatcher::builder()
        .max_items(max_items)
        .capacity(max_items + dice.roll(100) as usize)
        .max_keys(1 + dice.roll(40) as usize)
        .workers(workers)
        .one_in_flight(one_in_flight)
        .linger(Duration::from_micros(dice.roll(200)))
        .overflow(overflow)
        .dead_letter(move |_: &Key, item: Item, failure| hook.lock().unwrap().push((item, failure)))
        .build(move |key: &Key, batch: Batch<Item>| {
            counter.fetch_add(batch.len() as u64, Ordering::Relaxed);
            {
                let seen = &mut *state[key.name as usize].lock().unwrap();
                let overlaps = std::mem::replace(&mut seen.busy, true);
                for (producer, n) in &batch {
                    let late = seen.last.insert(*producer, *n).is_some_and(|before| before >= *n);
                    if ordered && (late || overlaps) {
                        add(&disordered);
                    }
                }
            }
            let chance = rolls.lock().unwrap().roll(12);
            if key.name == 0 || chance == 11 {
                // A slow one.
                (0..50).for_each(|_| thread::yield_now());
            }
            state[key.name as usize].lock().unwrap().busy = false;
            match chance {
                0 => blow_up(),
                1 => Outcomes::failed(Failure::error("on purpose")),
                2 => Outcomes::done(batch.into_iter().skip(1).collect()),
                3 => Outcomes::each(
                    batch
                        .into_iter()
                        .map(|item| if item.1 % 2 == 0 { Ok(item) } else { Err(Failure::error("odd")) })
                        .collect(),
                ),
                _ => Outcomes::done(batch.into_vec()),
            }
        })
        .unwrap();
    let tally = Tally::default();
    let offered = AtomicU64::new(0);
    let mut returned = 0;
    thread::scope(|scope| {
        for producer in 0..PRODUCERS {
            let handle = batcher.handle();
            let (tally, offered) = (&tally, &offered);
            let mut dice = Dice::new(seed + 2 + producer);
            scope.spawn(move || {
                let mut tickets = Vec::new();
                for n in 0..ITEMS {
                    let (name, item) = (dice.roll(keys), (producer, n));
                    let key = || Key { name, brittle };
                    let try_it = dice.roll(3) == 0;
                    let submit = || if try_it { handle.try_submit(key(), item) } else { handle.submit(key(), item) };
                    match catch_unwind(AssertUnwindSafe(submit)) {
                        Ok(Ok(ticket)) => tickets.push((ticket, item)),
                        Ok(Err(refused)) => {
                            assert_eq!(refused.into_inner(), (key(), item));
                            add(&tally.refused);
                        }
                        Err(_) => add(&tally.unwound),
                    }
                    add(offered);
                    match dice.roll(60) {
                        0 => handle.flush().unwrap(),
                        1 => handle.flush_key(&key()).unwrap(),
                        2 => tickets.drain(..).for_each(|(ticket, item)| tally.ticket(ticket, &item)),
                        _ => {}
                    }
                }
                tickets.into_iter().for_each(|(ticket, item)| tally.ticket(ticket, &item));
            });
        }
        if early_close {
            while offered.load(Ordering::Relaxed) < close_after {
                thread::yield_now();
            }
            if let Err(left) = batcher.close_within(Duration::ZERO) {
                returned = left.items.len() as u64;
            }
        }
    });
    batcher.close().unwrap();
    let seen = batcher.station().snapshot();
    let get = |count: &AtomicU64| count.load(Ordering::Relaxed);
    assert!(seen.balanced(), "{seen:?}");
    assert_eq!((seen.waiting(), seen.in_service(), batcher.keys()), (0, 0, 0));
    assert_eq!(seen.offered() + get(&tally.unwound), PRODUCERS * ITEMS);
    assert_eq!(seen.refused, get(&tally.refused));
    assert_eq!((seen.served, seen.failed), (get(&tally.served), get(&tally.failed)));
    assert_eq!((seen.dropped, seen.returned), (get(&tally.dropped), get(&tally.closed)));
    let letters = dead.lock().unwrap().len() as u64;
    assert_eq!(seen.dropped + seen.returned, letters + returned);
    if brittle {
        // A batch whose key cannot be copied fails unseen, and what should come back without a key is a dead letter.
        assert!(seen.served + seen.failed >= get(&processed) && letters >= seen.dropped);
    } else {
        assert_eq!(seen.served + seen.failed, get(&processed));
        assert_eq!((letters, get(&tally.unwound)), (seen.dropped, 0));
    }
    assert_eq!(get(&disorder), 0, "items of one producer and key out of order, or two batches of a key at once");
}

#[test]
fn conservation_and_order_under_panics_errors_slow_keys_and_closes() {
    let first = RandomState::new().hash_one(0) >> 32;
    for seed in first..first + 30 {
        round(seed);
    }
}
