//! Several batches at once.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::sync::mpsc;
use std::thread;

use common::{Gate, NEVER};
use fullbore_batch::{Batch, Batcher, BatcherBuilder};
use fullbore_core::BuildError;

fn builder(workers: usize) -> BatcherBuilder<u32> {
    Batcher::builder().max_items(1).linger(NEVER).capacity(1000).workers(workers)
}

#[test]
fn as_many_batches_are_in_process_as_there_are_workers() {
    let gate = Gate::new();
    let entry = gate.entry();
    let batcher = builder(3)
        .build(move |batch: Batch<u32>| {
            entry.pass((thread::current().name().map(str::to_owned), batch[0]));
        })
        .unwrap();
    (0..5).for_each(|n| batcher.send(n).unwrap());
    let mut names: Vec<_> = (0..3).map(|_| gate.wait().0.unwrap()).collect();
    names.sort();
    assert_eq!(names, ["fullbore-batch-batch-0", "fullbore-batch-batch-1", "fullbore-batch-batch-2"]);
    let seen = batcher.station().snapshot();
    assert_eq!((seen.parallelism(), seen.in_service(), seen.waiting()), (3, 3, 2));
    gate.open(5);
    batcher.close().unwrap();
    assert_eq!(batcher.station().snapshot().served, 5);
}

/// The first batch is the last to come back.
#[test]
fn results_can_be_told_in_order() {
    for ordered in [false, true] {
        let (first, may_end) = mpsc::channel::<()>();
        let may_end = std::sync::Mutex::new(may_end);
        let (ended, ends) = mpsc::channel();
        let batcher = builder(2)
            .ordered(ordered)
            .build(move |batch: Batch<u32>| {
                if batch[0] == 0 {
                    may_end.lock().unwrap().recv().unwrap();
                }
                ended.send(batch[0]).unwrap();
                Ok::<_, std::io::Error>(batch.into_vec())
            })
            .unwrap();
        let (slow, quick) = (batcher.submit(0).unwrap(), batcher.submit(1).unwrap());
        assert_eq!(ends.recv().unwrap(), 1, "effects have no order");
        let quick = if ordered {
            assert!(!quick.is_done(), "its predecessor has no result yet");
            Some(quick)
        } else {
            assert_eq!(quick.wait().unwrap(), 1);
            None
        };
        first.send(()).unwrap();
        assert_eq!(slow.wait().unwrap(), 0);
        if let Some(quick) = quick {
            assert_eq!(quick.wait().unwrap(), 1);
        }
        batcher.close().unwrap();
    }
}

#[test]
fn a_flush_waits_for_all_workers_and_everything_is_processed_once() {
    let (done, all) = mpsc::channel();
    let batcher = builder(8)
        .max_items(7)
        .ordered(true)
        .build(move |batch: Batch<u32>| batch.into_iter().for_each(|n| done.send(n).unwrap()))
        .unwrap();
    thread::scope(|scope| {
        for thread in 0..4 {
            let batcher = &batcher;
            scope.spawn(move || (0..1000).for_each(|n| batcher.send(thread * 1000 + n).unwrap()));
        }
    });
    batcher.flush().unwrap();
    let mut seen: Vec<u32> = all.try_iter().collect();
    seen.sort_unstable();
    assert!(seen.into_iter().eq(0..4000));
    assert!(batcher.station().snapshot().balanced());
    batcher.close().unwrap();
}

#[test]
fn c7_a_number_of_workers_that_makes_no_sense_is_refused() {
    for workers in [0, 1025, usize::MAX] {
        match builder(workers).build(|_: Batch<u32>| ()).unwrap_err() {
            BuildError::Config { field, value, .. } => assert_eq!((&*field, value), ("workers", workers.to_string())),
            other => panic!("{other}"),
        }
    }
}

/// franz-go#1195: a synchronous caller that is alone waits for nobody.
#[test]
fn a_lone_caller_does_not_pay_the_linger() {
    let batcher =
        builder(1).max_items(100).build(|batch: Batch<u32>| Ok::<_, std::io::Error>(batch.into_vec())).unwrap();
    assert_eq!(batcher.call(7).unwrap(), 7, "the linger never ends");
    // What lingers goes with it.
    let ticket = batcher.submit(1).unwrap();
    assert_eq!(batcher.call(2).unwrap(), 2);
    assert_eq!(ticket.wait().unwrap(), 1);
    assert_eq!(batcher.station().snapshot().service().count(), 2);
}

/// In each of the ways in which an item ends, also if the callback panics.
#[test]
fn a_callback_gets_the_result_once() {
    let (told, tells) = mpsc::channel();
    let tell = |ticket: fullbore_batch::Ticket<u32>, name: &'static str| {
        let told = told.clone();
        ticket.on_done(move |result| {
            told.send((name, result.map_err(|failure| failure.to_string()))).unwrap();
            common::blow_up();
        });
    };
    let batcher = builder(1)
        .max_items(2)
        .capacity(2)
        .overflow(fullbore_core::Overflow::DropOldest)
        .build(|batch: Batch<u32>| {
            batch.into_iter().map(|n| if n == 0 { Err("zero") } else { Ok(n) }).collect::<Vec<_>>()
        })
        .unwrap();
    tell(batcher.submit(1).unwrap(), "served");
    tell(batcher.submit(0).unwrap(), "failed");
    let mut both = [tells.recv().unwrap(), tells.recv().unwrap()];
    both.sort_unstable_by_key(|(name, _)| *name);
    assert_eq!(both, [("failed", Err("zero".into())), ("served", Ok(1))]);
    batcher.flush().unwrap();
    tell(batcher.submit(5).unwrap(), "returned");
    assert_eq!(batcher.close_within(std::time::Duration::ZERO).unwrap_err().items, [5]);
    assert_eq!(tells.recv().unwrap().0, "returned");
    assert!(tells.try_recv().is_err());
    let done = Batcher::builder().build(|batch: Batch<u32>| Ok::<_, std::io::Error>(batch.into_vec())).unwrap();
    let ticket = done.submit(3).unwrap();
    done.flush().unwrap();
    let here = thread::current().id();
    ticket.on_done(move |result| assert_eq!((result.unwrap(), thread::current().id()), (3, here)));
}
