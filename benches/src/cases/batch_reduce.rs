//! `fullbore-batch`, reducing: updates of 1,000 keys, summed up for each key, against maps that people share and drain by hand.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use fullbore_batch::{Batch, Batcher, ReducingBatcher};
use parking_lot::Mutex;

use super::{FITS, Random};
use crate::measure::{Case, Side, Team};

const KEYS: u64 = 1_000;
const CASE: &str = "an update merged, 1,000 keys";
/// Longer than a turn: on all sides what is written is written at its end.
const LINGER: Duration = Duration::from_secs(1);

/// See the module. For the list of the area `batch`.
#[must_use]
pub fn reduce_cases() -> Vec<Case> {
    let mut cases: Vec<Case> = [1, 2, 8]
        .into_iter()
        .map(|producers| {
            Case::new(CASE, producers, move || ours(producers))
                .against("Batcher, merging in its function", move || batcher(producers))
        })
        .collect();
    cases.push(Case::new("an update merged, 1 thread", 1, || ours(1)).against("Mutex<HashMap>", || mutexed_map(1)));
    cases.push(Case::new("an update merged, 8 threads", 8, || ours(8)).against("Mutex<HashMap>", || mutexed_map(8)));
    cases.push(Case::new("an update merged, 64 threads", 64, || ours(64)).against("itself, 1 thread", || ours(1)));
    cases
}

/// What was written: one addition for each pair.
#[derive(Default)]
struct Written {
    pairs: AtomicU64,
    sum: AtomicU64,
}

impl Written {
    fn add(&self, pairs: &[(u64, u64)]) {
        self.pairs.fetch_add(pairs.len() as u64, Ordering::Relaxed);
        self.sum.fetch_add(pairs.iter().map(|(_, sum)| sum).sum(), Ordering::Relaxed);
    }

    fn check(&self, count: u64) {
        let (pairs, sum) = (self.pairs.swap(0, Ordering::Relaxed), self.sum.swap(0, Ordering::Relaxed));
        assert_eq!(sum, count, "the sum of all updates");
        assert!(pairs <= count.min(KEYS * 10), "{pairs} writes for {count} updates");
    }
}

/// Threads that send updates of random keys, and what comes after each turn, in the measured time.
fn side(
    producers: usize,
    send: impl Fn((u64, u64)) + Clone + Send + Sync + 'static,
    mut write: impl FnMut() + 'static,
    written: Arc<Written>,
) -> Side {
    let mut team = Team::new(producers, move |number| {
        let send = send.clone();
        let mut random = Random::of_thread(number);
        move |updates| updates.for_each(|_| send((random.below(KEYS), 1)))
    });
    Box::new(move |count| {
        let began = team.run(count).began;
        write();
        let took = began.elapsed();
        written.check(count);
        took
    })
}

fn ours(producers: usize) -> Side {
    let written = Arc::new(Written::default());
    let writes = Arc::clone(&written);
    let batcher =
        ReducingBatcher::sum().linger(LINGER).build(move |pairs: Batch<(u64, u64)>| writes.add(&pairs)).expect(FITS);
    let handle = batcher.handle();
    let send = move |update| handle.send(update).expect("room comes within 30 s");
    side(producers, send, move || batcher.flush().expect("this is not the batcher's thread"), written)
}

fn batcher(producers: usize) -> Side {
    let written = Arc::new(Written::default());
    let map = Arc::new(Mutex::new(HashMap::new()));
    let merged = Arc::clone(&map);
    let batcher = Batcher::builder()
        .build(move |updates: Batch<(u64, u64)>| {
            let mut map = merged.lock();
            for (key, value) in updates {
                *map.entry(key).or_insert(0) += value;
            }
        })
        .expect(FITS);
    let handle = batcher.handle();
    let writes = Arc::clone(&written);
    let write = move || {
        batcher.flush().expect("this is not the batcher's thread");
        drain(&map, &writes);
    };
    side(producers, move |update| handle.send(update).expect("room comes within 30 s"), write, written)
}

fn mutexed_map(producers: usize) -> Side {
    let written = Arc::new(Written::default());
    let map = Arc::new(Mutex::new(HashMap::new()));
    let merged = Arc::clone(&map);
    let send = move |(key, value)| *merged.lock().entry(key).or_insert(0) += value;
    let writes = Arc::clone(&written);
    side(producers, send, move || drain(&map, &writes), written)
}

/// By hand.
fn drain(map: &Mutex<HashMap<u64, u64>>, written: &Written) {
    let pairs: Vec<(u64, u64)> = map.lock().drain().collect();
    written.add(&pairs);
}
