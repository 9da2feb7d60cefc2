//! `fullbore-queue`: empty jobs from `send` to done, against threads that read a channel.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Sender, bounded};
use fullbore_core::OnDrop;
use fullbore_queue::{Job, Queue};

use super::FITS;
use crate::measure::{Case, Side, Tally, Team};

const WORKERS: usize = 2;
/// The queue's default.
const CAPACITY: usize = 10_000;
const DELAYED: usize = 10_000;

/// See the module.
#[must_use]
pub fn cases() -> Vec<Case> {
    vec![
        Case::new("send to done, 2 workers", 1, || ours(0)).against("crossbeam-channel and threads", crossbeam),
        Case::new("send to done, as delayed jobs grow to 10,000", 1, || ours(DELAYED))
            .against("itself, none", || ours(0)),
    ]
}

fn ours(delayed: usize) -> Side {
    let tally = Arc::new(Tally::default());
    let done = Arc::clone(&tally);
    let queue = Queue::builder()
        .workers(WORKERS)
        .capacity(CAPACITY + delayed)
        .on_drop(OnDrop::Abandon)
        .build(move |job: &Job<u64>| done.add(&[**job]))
        .expect(FITS);
    for _ in 0..delayed {
        queue.send_after(0, Duration::from_secs(24 * 3600)).expect("there is room");
    }
    let producer = queue.producer();
    let team = Team::new(1, move |_| {
        let producer = producer.clone();
        move |jobs| jobs.for_each(|job| producer.send(job).expect("room comes within 30 s"))
    });
    let mut side = until_done(tally, team);
    Box::new(move |count| {
        // Keeps the queue open as long as the side lives.
        let _open = &queue;
        side(count)
    })
}

fn crossbeam() -> Side {
    let tally = Arc::new(Tally::default());
    let sender = workers(&tally);
    let team = Team::new(1, move |_| {
        let sender = sender.clone();
        move |jobs| jobs.for_each(|job| sender.send(job).expect("the workers are there"))
    });
    until_done(tally, team)
}

/// They end when the last sender is dropped.
fn workers(tally: &Arc<Tally>) -> Sender<u64> {
    let (sender, receiver) = bounded(CAPACITY);
    for _ in 0..WORKERS {
        let (done, receiver) = (Arc::clone(tally), receiver.clone());
        thread::spawn(move || receiver.iter().for_each(|job| done.add(&[job])));
    }
    sender
}

fn until_done(tally: Arc<Tally>, mut team: Team) -> Side {
    Box::new(move |count| {
        tally.expect(count);
        let began = team.run(count).began;
        tally.wait();
        let took = began.elapsed();
        tally.check(count, 1);
        took
    })
}
