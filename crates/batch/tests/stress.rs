//! Nothing is lost and nothing out of order, whatever the process function does and whoever closes when.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use common::{Dice, Tally, add, blow_up};
use fullbore_batch::{Batch, Batcher, Outcomes};
use fullbore_core::{Failure, Overflow};

const PRODUCERS: usize = 8;
const ITEMS: u64 = 400;

type Item = (usize, u64);

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
    let early_close = dice.roll(2) == 0;
    let close_after = dice.roll(PRODUCERS as u64 * ITEMS);
    let dead = Arc::new(Mutex::new(Vec::new()));
    let hook = Arc::clone(&dead);
    let processed = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&processed);
    let state = Mutex::new((Dice::new(seed + 1), HashMap::<usize, u64>::new()));
    let disorder = Arc::new(AtomicU64::new(0));
    let disordered = Arc::clone(&disorder);
    let batcher = Batcher::builder()
        .max_items(max_items)
        .capacity(max_items + dice.roll(30) as usize)
        .linger(Duration::from_micros(dice.roll(200)))
        .overflow(overflow)
        .dead_letter(move |item: Item, failure| hook.lock().unwrap().push((item, failure)))
        .build(move |batch: Batch<Item>| {
            counter.fetch_add(batch.len() as u64, Ordering::Relaxed);
            let chance = {
                let (dice, last) = &mut *state.lock().unwrap();
                for (producer, n) in &batch {
                    if last.insert(*producer, *n).is_some_and(|before| before >= *n) {
                        add(&disordered);
                    }
                }
                dice.roll(8)
            };
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
            let mut dice = Dice::new(seed + 2 + producer as u64);
            scope.spawn(move || {
                let mut tickets = Vec::new();
                for n in 0..ITEMS {
                    let item = (producer, n);
                    let submitted = if dice.roll(3) == 0 { handle.try_submit(item) } else { handle.submit(item) };
                    match submitted {
                        Ok(ticket) => tickets.push((ticket, item)),
                        Err(refused) => {
                            assert_eq!(refused.into_inner(), item);
                            add(&tally.refused);
                        }
                    }
                    add(offered);
                    match dice.roll(40) {
                        0 => handle.flush().unwrap(),
                        1 => tickets.drain(..).for_each(|(ticket, item)| tally.ticket(ticket, &item)),
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
    assert_eq!((seen.waiting(), seen.in_service()), (0, 0));
    assert_eq!(seen.offered(), PRODUCERS as u64 * ITEMS);
    assert_eq!(seen.refused, get(&tally.refused));
    assert_eq!((seen.served, seen.failed), (get(&tally.served), get(&tally.failed)));
    assert_eq!((seen.dropped, seen.returned), (get(&tally.dropped), get(&tally.closed)));
    assert_eq!(seen.served + seen.failed, get(&processed));
    assert_eq!((seen.dropped, seen.returned), (dead.lock().unwrap().len() as u64, returned));
    assert_eq!(get(&disorder), 0, "items of one producer out of order");
}

#[test]
fn conservation_and_order_under_panics_errors_and_closes() {
    let first = RandomState::new().hash_one(0) >> 32;
    for seed in first..first + 40 {
        round(seed);
    }
}
