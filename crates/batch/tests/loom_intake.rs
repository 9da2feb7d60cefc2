//! Every order of send, take, flush and close, with the real code of the intake and loom's atomics, cells and locks. A lost
//! wake-up shows as a deadlock, a lost item as a wrong count, an unsynchronised slot as a race:
//! `RUSTFLAGS="--cfg fullbore_loom" cargo test --release -p fullbore-batch --test loom_intake`.
#![cfg(fullbore_loom)]
#![allow(missing_docs, dead_code, unreachable_pub, clippy::unwrap_used)]

#[path = "../src/intake/mod.rs"]
mod intake;
#[path = "../src/sync.rs"]
mod sync;

use std::sync::Arc;
// Not loom's: the model need not branch on them.
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use fullbore_core::{Clock, Overflow, Patience, PausedClock};
use intake::{Bounds, Intake, Lane, Load, Ready, Taker};
use loom::thread::{self, JoinHandle};

type Numbers = Intake<u64, ()>;

fn model(preemptions: usize, check: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(builder.preemption_bound.unwrap_or(preemptions));
    builder.check(check);
}

fn intake(capacity: usize, max_items: usize, overflow: Overflow) -> Arc<Numbers> {
    lingering(capacity, max_items, overflow, Duration::ZERO)
}

fn lingering(capacity: usize, max_items: usize, overflow: Overflow, linger: Duration) -> Arc<Numbers> {
    let ready = Ready { max_items, max_weight: None, linger };
    let bounds = Bounds { capacity, weight: u64::MAX, overflow, workers: 2 };
    Arc::new(Intake::new(bounds, ready, Clock::from(PausedClock::new())))
}

/// The hot way first, as the batcher does.
fn send(intake: &Numbers, lane: &Lane<u64, ()>, item: u64, extra: Option<()>) -> bool {
    // SAFETY: each model's thread has a lane of its own.
    if let Some(claimed) = unsafe { intake.claim_on(lane) } {
        claimed.fill_with(item, extra);
        return true;
    }
    // SAFETY: as above.
    let sent = unsafe { intake.send_on(Some(lane), (item, extra), 0, Patience::Policy(None), &|| ()) };
    sent.is_ok_and(|displaced| displaced.is_empty())
}

/// Takes groups until the intake is closed and empty; what it got, and the positions of extras among it.
fn take_all(intake: &Numbers) -> (Vec<u64>, Vec<usize>) {
    take(intake, usize::MAX)
}

/// The same, until it has so many: nobody closes the intake, so a worker that is not woken sleeps for ever.
fn take(intake: &Numbers, enough: usize) -> (Vec<u64>, Vec<usize>) {
    let (mut taker, mut before, mut all, mut with) = (Taker::new(), None, Vec::new(), Vec::new());
    while all.len() < enough {
        let mut load = Load::default();
        let Some(group) = intake.take(before, &mut taker, &mut load) else { break };
        assert!(!load.items.is_empty(), "a group is never empty");
        with.extend(load.extras.iter().map(|(number, ())| all.len() + number));
        all.append(&mut load.items);
        before = Some(group);
    }
    (all, with)
}

fn worker(intake: &Arc<Numbers>) -> JoinHandle<(Vec<u64>, Vec<usize>)> {
    worker_for(intake, usize::MAX)
}

fn worker_for(intake: &Arc<Numbers>, enough: usize) -> JoinHandle<(Vec<u64>, Vec<usize>)> {
    let intake = Arc::clone(intake);
    thread::spawn(move || take(&intake, enough))
}

/// A worker that sleeps is woken, and gets everything in order.
#[test]
fn a_sender_and_a_worker() {
    model(3, || {
        let intake = intake(8, 2, Overflow::Block);
        let worker = worker_for(&intake, 3);
        let lane = intake.new_lane();
        assert!((0..3).all(|n| send(&intake, &lane, n, (n == 1).then_some(()))));
        assert_eq!(worker.join().unwrap(), (vec![0, 1, 2], vec![1]));
    });
}

/// A worker that lingers for ever is woken by the item that fills its batch, whichever sender's it is.
#[test]
fn a_full_batch() {
    model(2, || {
        let intake = lingering(16, 4, Overflow::Block, Duration::MAX);
        let worker = worker_for(&intake, 4);
        let other = {
            let intake = Arc::clone(&intake);
            thread::spawn(move || {
                let lane = intake.new_lane();
                assert!(send(&intake, &lane, 9, None));
            })
        };
        let lane = intake.new_lane();
        assert!((0..3).all(|n| send(&intake, &lane, n, None)));
        other.join().unwrap();
        let (mut all, _) = worker.join().unwrap();
        all.retain(|n| *n != 9);
        assert_eq!(all, [0, 1, 2]);
    });
}

/// The same, for a single sender and the second batch, whose places it has been lent before.
#[test]
fn two_full_batches() {
    model(2, || {
        let intake = lingering(16, 3, Overflow::Block, Duration::MAX);
        let worker = worker_for(&intake, 6);
        let lane = intake.new_lane();
        assert!((0..6).all(|n| send(&intake, &lane, n, None)));
        assert_eq!(worker.join().unwrap().0, [0, 1, 2, 3, 4, 5]);
    });
}

/// A sender without room is woken when a group is done.
#[test]
fn a_sender_without_room() {
    model(3, || {
        let intake = intake(1, 1, Overflow::Block);
        let worker = worker(&intake);
        let lane = intake.new_lane();
        assert!((0..3).all(|n| send(&intake, &lane, n, None)));
        intake.close();
        assert_eq!(worker.join().unwrap().0, [0, 1, 2]);
    });
}

/// What is accepted while the intake closes is taken; what is not is refused.
#[test]
fn a_close_beside_a_sender() {
    model(3, || {
        let intake = intake(8, 2, Overflow::Block);
        let closer = {
            let intake = Arc::clone(&intake);
            thread::spawn(move || intake.close())
        };
        let lane = intake.new_lane();
        let accepted: Vec<u64> = (0..3).filter(|n| send(&intake, &lane, *n, None)).collect();
        closer.join().unwrap();
        assert_eq!(take_all(&intake).0, accepted);
        assert_eq!((intake.len(), intake.in_flight()), (0, 0));
    });
}

/// The same with everything handed back at once.
#[test]
fn an_abandonment_beside_a_sender_and_a_worker() {
    model(2, || {
        let intake = intake(8, 2, Overflow::Block);
        let worker = worker(&intake);
        let sender = {
            let intake = Arc::clone(&intake);
            thread::spawn(move || {
                let lane = intake.new_lane();
                (0..3).filter(|n| send(&intake, &lane, *n, None)).collect::<Vec<u64>>()
            })
        };
        let back = intake.abandon();
        let accepted = sender.join().unwrap();
        let mut out = worker.join().unwrap().0;
        out.extend(back.into_iter().map(|(item, _)| item));
        assert_eq!(out, accepted);
    });
}

/// What one sender was lent and does not use is there for the other.
#[test]
fn two_senders_and_little_room() {
    model(2, || {
        let intake = intake(4, 4, Overflow::Reject);
        let other = {
            let intake = Arc::clone(&intake);
            thread::spawn(move || {
                let lane = intake.new_lane();
                usize::from(send(&intake, &lane, 1, None))
            })
        };
        let lane = intake.new_lane();
        let mine = (0..4).filter(|_| send(&intake, &lane, 1, None)).count();
        let others = other.join().unwrap();
        assert_eq!(mine + others, 4, "five items, four places, and nobody takes any out");
        intake.close();
        assert_eq!(take_all(&intake).0.len(), 4);
    });
}

/// A flush sees what was sent before it, on whatever thread, and ends while others send.
#[test]
fn a_flush_beside_a_sender() {
    model(2, || {
        let intake = intake(8, 4, Overflow::Block);
        let lane = intake.new_lane();
        assert!(send(&intake, &lane, 0, None));
        let worker = worker(&intake);
        let sender = {
            let intake = Arc::clone(&intake);
            thread::spawn(move || {
                let lane = intake.new_lane();
                assert!(send(&intake, &lane, 1, None));
            })
        };
        assert!(intake.flush(None));
        sender.join().unwrap();
        intake.close();
        assert_eq!(worker.join().unwrap().0.len(), 2);
    });
}

/// Two workers share the lanes: each item is taken once, whoever reads it.
#[test]
fn two_workers() {
    model(2, || {
        let intake = intake(4, 1, Overflow::Block);
        let workers = [worker_for(&intake, 1), worker_for(&intake, 2)];
        let lane = intake.new_lane();
        assert!((0..3).all(|n| send(&intake, &lane, n, None)));
        let mut all: Vec<u64> = workers.into_iter().flat_map(|worker| worker.join().unwrap().0).collect();
        all.sort_unstable();
        assert_eq!(all, [0, 1, 2]);
    });
}

/// A worker that takes a group and then is busy leaves the rest to the one that sleeps. Whoever takes the last item closes.
#[test]
fn a_busy_worker_and_a_sleeping_one() {
    model(2, || {
        let intake = intake(16, 4, Overflow::Block);
        let taken = Arc::new(AtomicUsize::new(0));
        let work = |groups: usize| {
            let (intake, taken) = (Arc::clone(&intake), Arc::clone(&taken));
            thread::spawn(move || {
                for _ in 0..groups {
                    let got = take(&intake, 1).0.len();
                    if got == 0 {
                        return;
                    }
                    if taken.fetch_add(got, Ordering::SeqCst) + got == 3 {
                        intake.close();
                    }
                }
            })
        };
        let workers = [work(1), work(4)];
        let lane = intake.new_lane();
        assert!((0..3).all(|n| send(&intake, &lane, n, None)));
        workers.into_iter().for_each(|worker| worker.join().unwrap());
        assert_eq!(taken.load(Ordering::SeqCst), 3);
    });
}

/// The slots are used again: four items through a ring of two.
#[test]
fn more_items_than_slots() {
    model(2, || {
        let intake = intake(2, 2, Overflow::Block);
        let worker = worker(&intake);
        let lane = intake.new_lane();
        assert!((0..4).all(|n| send(&intake, &lane, n, Some(()))));
        intake.close();
        assert_eq!(worker.join().unwrap(), (vec![0, 1, 2, 3], vec![0, 1, 2, 3]));
    });
}

/// The oldest goes, and nothing twice.
#[test]
fn displaced_beside_a_worker() {
    model(2, || {
        let intake = intake(2, 2, Overflow::DropOldest);
        let worker = worker(&intake);
        let lane = intake.new_lane();
        let mut displaced = Vec::new();
        for n in 0..4 {
            // SAFETY: this thread's lane.
            match unsafe { intake.claim_on(&lane) } {
                Some(claimed) => claimed.fill(n),
                None => {
                    // SAFETY: as above.
                    let sent = unsafe { intake.send_on(Some(&lane), (n, None), 0, Patience::Policy(None), &|| ()) };
                    displaced.extend(sent.unwrap().into_iter().map(|(item, _)| item));
                }
            }
        }
        intake.close();
        let mut all = worker.join().unwrap().0;
        assert!(all.is_sorted());
        all.append(&mut displaced);
        all.sort_unstable();
        assert_eq!(all, [0, 1, 2, 3]);
    });
}
