//! `fullbore-batch`: from `send` to processed, against what people write by hand; results, hand-over, allocations.
//!
//! All sides that hand items to another thread hold at most `CAPACITY` of them, except for the channels and vectors that are
//! without a bound by nature (`Mutex<Vec>`, a vector of each thread's own).

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::bounded;
use fullbore_batch::{Batch, Batcher};
use parking_lot::{Condvar, Mutex};

use super::{Count, FITS, allocations_each};
use crate::measure::{Case, Side, Tally, Team};

const BATCH: usize = 100;
/// The batcher's default: ten batches.
const CAPACITY: usize = 10 * BATCH;

const SEND: &str = "send to processed, batches of 100";
const LARGE: &str = "send to processed, 256 bytes each";
const SUBMIT: &str = "submit to result, 100 at a time";
const HAND_OVER: &str = "full batch to process start, p99";

type Large = [u64; 32];

/// See the module. For the list of the area `batch`.
#[must_use]
pub fn send_cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for producers in [1, 2, 8, 64] {
        let case = Case::new(SEND, producers, move || ours(producers, |n| n))
            .against("crossbeam-channel, recv and try_iter", move || crossbeam(producers, |n| n))
            .against("std mpsc, recv and try_iter", move || std_mpsc(producers))
            .against("batch-channel, one by one", move || batch_channel(producers));
        cases.push(if producers == 1 {
            case.against("Mutex<Vec>, 1 producer", || mutexed_vec(1))
                .against("a vector of the thread's own", || vector_of_its_own())
        } else {
            case.against("Mutex<Vec>", move || mutexed_vec(producers))
        });
    }
    for producers in [1, 2, 8] {
        cases.push(
            Case::new(LARGE, producers, move || ours(producers, large))
                .against("crossbeam-channel, recv and try_iter", move || crossbeam(producers, large)),
        );
    }
    cases.push(
        Case::new("send to processed, 64 producers", 64, || ours(64, |n| n))
            .against("itself, 1 producer", || ours(1, |n| n)),
    );
    cases.push(Case::new(SUBMIT, 8, || submit(8)).against("a crossbeam bounded(1) each", || reply_channels(8)));
    cases.push(Case::new(HAND_OVER, 1, our_hand_over).against("crossbeam send to recv", crossbeam_hand_over));
    cases
}

/// See the module.
#[must_use]
pub fn send_counts() -> Vec<Count> {
    vec![
        Count { name: "allocations for each send", unit: "allocs", ours: allocations_to_send },
        Count { name: "allocations for each processed item", unit: "allocs", ours: allocations_to_process },
    ]
}

const fn large(n: u64) -> Large {
    let mut item = [0; 32];
    item[0] = n;
    item
}

/// What is counted of an item.
trait Number {
    fn number(&self) -> u64;
}

impl Number for u64 {
    fn number(&self) -> u64 {
        *self
    }
}

impl Number for Large {
    fn number(&self) -> u64 {
        self[0]
    }
}

fn count<T: Number>(tally: &Tally, items: &[T]) {
    tally.add_each(items.len(), items.iter().map(Number::number));
}

fn ours<T: Number + Send + 'static>(producers: usize, make: fn(u64) -> T) -> Side {
    let tally = Arc::new(Tally::default());
    let processed = Arc::clone(&tally);
    let batcher = Batcher::builder()
        .max_items(BATCH)
        .capacity(CAPACITY)
        .build(move |items: Batch<T>| count(&processed, &items))
        .expect(FITS);
    let handle = batcher.handle();
    let team = Team::new(producers, move |_| {
        let handle = handle.clone();
        move |items| items.for_each(|item| handle.send(make(item)).expect("room comes within 30 s"))
    });
    // The last batch is seldom full, and who wants it now says so.
    side(team, tally, move || batcher.flush().expect("this is not the batcher's thread"))
}

fn side(mut team: Team, tally: Arc<Tally>, end: impl Fn() + 'static) -> Side {
    Box::new(move |count| {
        tally.expect(count);
        let began = team.run(count).began;
        end();
        tally.wait();
        let took = began.elapsed();
        tally.check(count, 1);
        took
    })
}

/// The loop that people write by hand. It ends when the last sender is dropped.
fn crossbeam<T: Number + Send + 'static>(producers: usize, make: fn(u64) -> T) -> Side {
    let tally = Arc::new(Tally::default());
    let (sender, receiver) = bounded(CAPACITY);
    let processed = Arc::clone(&tally);
    thread::spawn(move || {
        let mut batch = Vec::with_capacity(BATCH);
        while let Ok(first) = receiver.recv() {
            batch.push(first);
            batch.extend(receiver.try_iter().take(BATCH - 1));
            count(&processed, &batch);
            batch.clear();
        }
    });
    let team = Team::new(producers, move |_| {
        let sender = sender.clone();
        move |items| items.for_each(|item| sender.send(make(item)).expect("the thread is there"))
    });
    side(team, tally, || ())
}

fn std_mpsc(producers: usize) -> Side {
    let tally = Arc::new(Tally::default());
    let (sender, receiver) = mpsc::sync_channel(CAPACITY);
    let processed = Arc::clone(&tally);
    thread::spawn(move || {
        let mut batch = Vec::with_capacity(BATCH);
        while let Ok(first) = receiver.recv() {
            batch.push(first);
            batch.extend(receiver.try_iter().take(BATCH - 1));
            processed.add(&batch);
            batch.clear();
        }
    });
    let team = Team::new(producers, move |_| {
        let sender = sender.clone();
        move |items| items.for_each(|item| sender.send(item).expect("the thread is there"))
    });
    side(team, tally, || ())
}

fn batch_channel(producers: usize) -> Side {
    let tally = Arc::new(Tally::default());
    let (sender, receiver) = batch_channel::bounded_sync(CAPACITY);
    let processed = Arc::clone(&tally);
    thread::spawn(move || {
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            receiver.recv_vec(BATCH, &mut batch);
            if batch.is_empty() {
                return;
            }
            processed.add(&batch);
        }
    });
    let team = Team::new(producers, move |_| {
        let sender = sender.clone();
        move |items| items.for_each(|item| sender.send(item).expect("the thread is there"))
    });
    side(team, tally, || ())
}

/// A vector that everybody pushes to, and that a thread swaps for an empty one.
#[derive(Default)]
struct Shared {
    items: Mutex<Collected>,
    filled: Condvar,
}

#[derive(Default)]
struct Collected {
    items: Vec<u64>,
    over: bool,
}

/// Ends the thread with the side.
struct Over(Arc<Shared>);

impl Drop for Over {
    fn drop(&mut self) {
        self.0.items.lock().over = true;
        self.0.filled.notify_one();
    }
}

fn mutexed_vec(producers: usize) -> Side {
    let tally = Arc::new(Tally::default());
    let shared = Arc::new(Shared::default());
    let (processed, collected) = (Arc::clone(&tally), Arc::clone(&shared));
    thread::spawn(move || {
        let mut taken = Vec::new();
        loop {
            {
                let mut there = collected.items.lock();
                collected.filled.wait_while(&mut there, |there| there.items.is_empty() && !there.over);
                if there.over {
                    return;
                }
                std::mem::swap(&mut taken, &mut there.items);
            }
            taken.chunks(BATCH).for_each(|batch| processed.add(batch));
            taken.clear();
        }
    });
    let over = Over(Arc::clone(&shared));
    let team = Team::new(producers, move |_| {
        let shared = Arc::clone(&shared);
        move |items| {
            items.for_each(|item| {
                let mut there = shared.items.lock();
                there.items.push(item);
                if there.items.len() == 1 {
                    drop(there);
                    shared.filled.notify_one();
                }
            });
        }
    });
    side(team, tally, move || _ = &over)
}

/// No other thread at all: what a batch costs by itself.
fn vector_of_its_own() -> Side {
    let tally = Arc::new(Tally::default());
    let processed = Arc::clone(&tally);
    let team = Team::new(1, move |_| {
        let processed = Arc::clone(&processed);
        let mut batch = Vec::with_capacity(BATCH);
        move |items| {
            items.for_each(|item| {
                // Or the compiler sees that the batch is a range, and there is no vector.
                batch.push(std::hint::black_box(item));
                if batch.len() == BATCH {
                    processed.add(&batch);
                    batch.clear();
                }
            });
            processed.add(&batch);
            batch.clear();
        }
    });
    side(team, tally, || ())
}

/// An item's own result: the item. So many are under way at once for each thread.
fn submit(producers: usize) -> Side {
    let batcher = Batcher::builder()
        .max_items(BATCH)
        .capacity(CAPACITY)
        .linger(Duration::from_micros(100))
        .build(|items: Batch<u64>| Ok::<_, std::io::Error>(items.into_vec()))
        .expect(FITS);
    let handle = batcher.handle();
    let mut team = Team::new(producers, move |_| {
        let handle = handle.clone();
        let mut tickets = Vec::with_capacity(BATCH);
        move |items| {
            let mut items = items.peekable();
            while items.peek().is_some() {
                for item in items.by_ref().take(BATCH) {
                    tickets.push((item, handle.submit(item).expect("room comes within 30 s")));
                }
                for (item, ticket) in tickets.drain(..) {
                    assert_eq!(ticket.wait().expect("processed"), item);
                }
            }
        }
    });
    Box::new(move |count| {
        // The batcher goes with the side.
        let _ = &batcher;
        team.run(count).took()
    })
}

fn reply_channels(producers: usize) -> Side {
    let (sender, receiver) = bounded::<(u64, crossbeam_channel::Sender<u64>)>(CAPACITY);
    thread::spawn(move || {
        let mut batch = Vec::with_capacity(BATCH);
        while let Ok(first) = receiver.recv() {
            batch.push(first);
            batch.extend(receiver.try_iter().take(BATCH - 1));
            for (item, reply) in batch.drain(..) {
                reply.send(item).expect("somebody waits");
            }
        }
    });
    let mut team = Team::new(producers, move |_| {
        let sender = sender.clone();
        let mut replies = Vec::with_capacity(BATCH);
        move |items| {
            let mut items = items.peekable();
            while items.peek().is_some() {
                for item in items.by_ref().take(BATCH) {
                    let (reply, result) = bounded(1);
                    sender.send((item, reply)).expect("the thread is there");
                    replies.push((item, result));
                }
                for (item, result) in replies.drain(..) {
                    assert_eq!(result.recv().expect("answered"), item);
                }
            }
        }
    });
    Box::new(move |count| team.run(count).took())
}

/// Until then whoever is idle sleeps for certain.
const ASLEEP: Duration = Duration::from_micros(500);

/// The 99th percentile of the times from `send` to what it causes on another thread, times their number; `prepare` comes before
/// each.
fn hand_overs(count: u64, prepare: impl Fn(), send: impl Fn(), begun: &Begun) -> Duration {
    let mut times: Vec<u64> = (0..count)
        .map(|_| {
            prepare();
            thread::sleep(ASLEEP);
            let sent = begun.since.elapsed();
            send();
            begun.next().saturating_sub(sent.as_nanos() as u64)
        })
        .collect();
    times.sort_unstable();
    let p99 = times[(times.len() * 99).div_ceil(100) - 1];
    Duration::from_nanos(p99) * u32::try_from(count).unwrap_or(u32::MAX)
}

/// When something began, told to another thread that looks all the time.
struct Begun {
    since: Instant,
    /// Nanoseconds; 0 for nothing.
    at: AtomicU64,
}

impl Begun {
    fn new() -> Arc<Self> {
        Arc::new(Self { since: Instant::now(), at: AtomicU64::new(0) })
    }

    fn tell(&self) {
        self.at.store(self.since.elapsed().as_nanos() as u64, Ordering::Release);
    }

    fn next(&self) -> u64 {
        loop {
            match self.at.swap(0, Ordering::Acquire) {
                0 => std::hint::spin_loop(),
                at => return at,
            }
        }
    }
}

fn our_hand_over() -> Side {
    let begun = Begun::new();
    let tells = Arc::clone(&begun);
    let batcher = Batcher::builder()
        .max_items(BATCH)
        .linger(Duration::from_secs(1000))
        .build(move |_: Batch<u64>| tells.tell())
        .expect(FITS);
    Box::new(move |count| {
        let fill = || (1..BATCH as u64).for_each(|item| batcher.send(item).expect("there is room"));
        hand_overs(count, fill, || batcher.send(0).expect("there is room"), &begun)
    })
}

fn crossbeam_hand_over() -> Side {
    let begun = Begun::new();
    let tells = Arc::clone(&begun);
    let (sender, receiver) = bounded::<u64>(CAPACITY);
    thread::spawn(move || receiver.iter().for_each(|_| tells.tell()));
    Box::new(move |count| hand_overs(count, || (), || sender.send(0).expect("the thread is there"), &begun))
}

fn allocations_to_send() -> f64 {
    let batcher = Batcher::builder().max_items(BATCH).build(|_: Batch<u64>| ()).expect(FITS);
    allocations_each(|| batcher.send(1).expect("room comes within 30 s"))
}

/// On the batcher's thread. The least of several counts, as in `allocations_each`.
fn allocations_to_process() -> f64 {
    const WINDOW: usize = 100;
    const WINDOWS: usize = 10;
    let counts = Arc::new(Mutex::new(Vec::with_capacity(WINDOW * WINDOWS)));
    let noted = Arc::clone(&counts);
    let batcher = Batcher::builder()
        .max_items(BATCH)
        .build(move |_: Batch<u64>| noted.lock().push(fullbore_testkit::allocated_so_far().count))
        .expect(FITS);
    for _ in 0..WINDOW * WINDOWS {
        (0..BATCH as u64).for_each(|item| batcher.send(item).expect("room comes within 30 s"));
        batcher.flush().expect("this is not the batcher's thread");
    }
    batcher.close().expect("this is not the batcher's thread");
    let counts = counts.lock();
    // Each look has allocated once itself.
    let of_windows = counts.windows(WINDOW).map(|window| window[WINDOW - 1] - window[0] - (WINDOW as u64 - 1));
    of_windows.min().unwrap_or(u64::MAX) as f64 / ((WINDOW - 1) * BATCH) as f64
}
