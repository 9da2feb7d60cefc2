//! `fullbore-batch`: from `send` to processed, against a loop over a channel.

use std::sync::Arc;
use std::thread;

use crossbeam_channel::{Sender, bounded};
use fullbore_batch::{Batch, Batcher};

use super::FITS;
use crate::measure::{Case, Side, Tally, Team};

const BATCH: usize = 100;
/// The batcher's default: ten batches.
const CAPACITY: usize = 10 * BATCH;

/// See the module.
#[must_use]
pub fn cases() -> Vec<Case> {
    let mut cases: Vec<Case> = [1, 2, 8, 64]
        .into_iter()
        .map(|producers| {
            Case::new("send to processed, batches of 100", producers, move || ours(producers))
                .against("crossbeam-channel, recv and try_iter", move || crossbeam(producers))
        })
        .collect();
    cases.push(Case::new("send to processed, 64 producers", 64, || ours(64)).against("itself, 1 producer", || ours(1)));
    cases.extend(super::batch_reduce::reduce_cases());
    cases.extend(super::batch_db::db_cases());
    cases
}

fn ours(producers: usize) -> Side {
    let tally = Arc::new(Tally::default());
    let processed = Arc::clone(&tally);
    let batcher = Batcher::builder()
        .max_items(BATCH)
        .capacity(CAPACITY)
        .build(move |items: Batch<u64>| processed.add(&items))
        .expect(FITS);
    let handle = batcher.handle();
    let mut team = Team::new(producers, move |_| {
        let handle = handle.clone();
        move |items| items.for_each(|item| handle.send(item).expect("room comes within 30 s"))
    });
    Box::new(move |count| {
        tally.expect(count);
        let began = team.run(count).began;
        // The last batch is seldom full, and who wants it now says so.
        batcher.flush().expect("this is not the batcher's thread");
        tally.wait();
        let took = began.elapsed();
        tally.check(count, 1);
        took
    })
}

fn crossbeam(producers: usize) -> Side {
    let tally = Arc::new(Tally::default());
    let sender = batching_thread(Arc::clone(&tally));
    let mut team = Team::new(producers, move |_| {
        let sender = sender.clone();
        move |items| items.for_each(|item| sender.send(item).expect("the thread is there"))
    });
    Box::new(move |count| {
        tally.expect(count);
        let began = team.run(count).began;
        tally.wait();
        let took = began.elapsed();
        tally.check(count, 1);
        took
    })
}

/// The loop that people write by hand. It ends when the last sender is dropped.
fn batching_thread(tally: Arc<Tally>) -> Sender<u64> {
    let (sender, receiver) = bounded(CAPACITY);
    thread::spawn(move || {
        let mut batch = Vec::with_capacity(BATCH);
        while let Ok(first) = receiver.recv() {
            batch.push(first);
            batch.extend(receiver.try_iter().take(BATCH - 1));
            tally.add(&batch);
            batch.clear();
        }
    });
    sender
}
