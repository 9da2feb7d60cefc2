//! Batches that fail: tried again, taken apart, given up.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::collections::BTreeSet;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use common::{Dice, NEVER, blow_up};
use fullbore_batch::{Batch, Batcher, BatcherBuilder, WriteError};
use fullbore_core::{BuildError, Clock, Failure, PausedClock};
use proptest::prelude::*;

const SECOND: Duration = Duration::from_secs(1);

fn retrying(clock: &PausedClock, attempts: u32) -> BatcherBuilder<u32> {
    let builder = Batcher::builder().clock(clock.clone()).linger(NEVER).max_items(3).jitter(false);
    builder.max_attempts(attempts).backoff(SECOND, 4 * SECOND)
}

/// Fails so often, then not any more; tells of each call.
fn fails(times: usize) -> (impl Fn(&[u32]) -> io::Result<()> + Send + Sync, mpsc::Receiver<Vec<u32>>) {
    let ((call, calls), left) = (mpsc::channel(), AtomicUsize::new(times));
    let process = move |items: &[u32]| {
        call.send(items.to_vec()).unwrap();
        let failing = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok();
        if failing { Err(io::Error::other("not yet")) } else { Ok(()) }
    };
    (process, calls)
}

#[test]
fn a_failed_batch_is_tried_again_after_pauses_that_double_and_its_successors_wait() {
    let clock = PausedClock::new();
    let (process, calls) = fails(4);
    let batcher = retrying(&clock, 5).build_by_ref(process).unwrap();
    let tickets: Vec<_> = (0..4).map(|n| batcher.submit(n).unwrap()).collect();
    for pause in [1, 2, 4, 4] {
        assert_eq!(calls.recv().unwrap(), [0, 1, 2]);
        clock.wait_for_waiters(1);
        clock.advance(pause * SECOND - Duration::from_nanos(1));
        assert!(calls.try_recv().is_err(), "not before {pause} s are over");
        clock.advance(Duration::from_nanos(1));
    }
    assert_eq!(calls.recv().unwrap(), [0, 1, 2]);
    batcher.close().unwrap();
    assert_eq!(calls.recv().unwrap(), [3], "after its predecessors");
    tickets.into_iter().for_each(|ticket| ticket.wait().unwrap());
    let seen = batcher.station().snapshot();
    assert_eq!((seen.served, seen.failed), (4, 0));
    assert!(seen.balanced());
}

#[test]
fn what_never_works_is_given_up_with_its_items() {
    let clock = PausedClock::new();
    let (process, calls) = fails(usize::MAX);
    let (letter, letters) = mpsc::channel();
    let builder = retrying(&clock, 2).dead_letter(move |item, failure: Failure| letter.send((item, failure)).unwrap());
    let batcher = builder.build_by_ref(process).unwrap();
    let ticket = batcher.submit(7).unwrap();
    (8..10).for_each(|n| batcher.send(n).unwrap());
    calls.recv().unwrap();
    clock.wait_for_waiters(1);
    clock.advance(SECOND);
    assert_eq!(ticket.wait().unwrap_err().to_string(), "not yet");
    batcher.close().unwrap();
    let letters: Vec<_> = letters.try_iter().map(|(item, failure)| (item, failure.to_string())).collect();
    assert_eq!(letters, [7, 8, 9].map(|item| (item, "not yet".to_owned())));
    assert_eq!(calls.try_iter().count(), 1);
    assert_eq!(batcher.station().snapshot().failed, 3);
}

#[test]
fn a_panic_is_a_failure_like_others() {
    let clock = PausedClock::new();
    let calls = AtomicUsize::new(0);
    let batcher = retrying(&clock, 3)
        .build_by_ref(move |items: &[u32]| match calls.fetch_add(1, Ordering::Relaxed) {
            0 | 1 => blow_up(),
            _ => Ok::<_, io::Error>(items.to_vec()),
        })
        .unwrap();
    let ticket = batcher.submit(5).unwrap();
    for pause in [1, 2] {
        assert!(batcher.flush_within(Duration::ZERO).is_err(), "a flush waits for all attempts");
        clock.wait_for_waiters(1);
        clock.advance(pause * SECOND);
    }
    assert_eq!(ticket.wait().unwrap(), 5);
}

/// In doubt, or with a wrong number of results: what may have been done is not done twice, nor any part of it.
#[test]
fn what_may_have_been_done_is_never_tried_again() {
    let clock = PausedClock::new();
    for idempotent in [false, true] {
        let (call, calls) = mpsc::channel();
        let batcher = retrying(&clock, 3)
            .isolate_poison(true)
            .retry_if(|_| true)
            .build_by_ref(move |items: &[u32]| {
                call.send(items.len()).unwrap();
                let lost = io::Error::from(io::ErrorKind::ConnectionReset);
                match items[0] {
                    0 => Err(WriteError::in_doubt(lost).idempotent(idempotent)),
                    _ => Ok(vec![0; items.len() + 1]),
                }
            })
            .unwrap();
        let tickets = [0, 1, 2].map(|n| batcher.submit(n).unwrap());
        if idempotent {
            for pause in [1, 2] {
                clock.wait_for_waiters(1);
                clock.advance(pause * SECOND);
            }
        }
        tickets.into_iter().for_each(|ticket| assert!(ticket.wait().is_err()));
        assert_eq!(calls.try_iter().count(), if idempotent { 3 } else { 1 });
        let tickets = [3, 4, 5].map(|n| batcher.submit(n).unwrap());
        tickets.into_iter().for_each(|ticket| assert!(matches!(ticket.wait(), Err(Failure::Mismatch { .. }))));
        assert_eq!(calls.try_iter().count(), 1);
    }
}

#[test]
fn an_items_own_failure_is_final() {
    let (call, calls) = mpsc::channel();
    let batcher = retrying(&PausedClock::new(), 5)
        .isolate_poison(true)
        .build_by_ref(move |items: &[u32]| {
            call.send(()).unwrap();
            items.iter().map(|n| if n % 2 == 0 { Ok(*n) } else { Err("odd") }).collect::<Vec<_>>()
        })
        .unwrap();
    let tickets = [0, 1, 2].map(|n| batcher.submit(n).unwrap());
    let results = tickets.map(|ticket| ticket.wait().ok());
    assert_eq!(results, [Some(0), None, Some(2)]);
    assert_eq!(calls.try_iter().count(), 1);
}

#[test]
fn an_outage_is_not_taken_apart_and_what_lasts_is_not_tried_again() {
    let clock = PausedClock::new();
    let calls = Arc::new(Mutex::new(Vec::new()));
    let its = Arc::clone(&calls);
    let batcher = retrying(&clock, 3)
        .isolate_poison(true)
        .retry_if(|failure| failure.to_string() == "outage")
        .build_by_ref(move |items: &[u32]| {
            its.lock().unwrap().push(items.to_vec());
            match items.iter().find(|n| **n > 0) {
                Some(100) => Err("outage"),
                Some(_) => Err("bad item"),
                None => Ok(()),
            }
        })
        .unwrap();
    let outage = [100, 100, 100].map(|n| batcher.submit(n).unwrap());
    for pause in [1, 2] {
        clock.wait_for_waiters(1);
        clock.advance(pause * SECOND);
    }
    outage.into_iter().for_each(|ticket| assert!(ticket.wait().is_err()));
    assert_eq!(std::mem::take(&mut *calls.lock().unwrap()), [[100, 100, 100]; 3]);
    let mixed = [0, 1, 0].map(|n| batcher.submit(n).unwrap()).map(|ticket| ticket.wait().is_ok());
    assert_eq!(mixed, [true, false, true]);
    let all: Vec<Vec<u32>> = vec![vec![0, 1, 0], vec![0], vec![1, 0], vec![1], vec![0]];
    assert_eq!(*calls.lock().unwrap(), all, "at once, and by halves");
}

#[test]
fn a_judge_that_panics_says_no() {
    let (process, calls) = fails(usize::MAX);
    let batcher = retrying(&PausedClock::new(), 9).retry_if(|_| blow_up()).build_by_ref(process).unwrap();
    let ticket = batcher.submit(1).unwrap();
    let _ = batcher.flush();
    assert!(ticket.wait().is_err());
    assert_eq!(calls.try_iter().count(), 1);
}

/// The thread rests for an hour; nobody waits for it.
#[test]
fn a_close_that_is_out_of_time_ends_the_attempts() {
    for by_drop in [false, true] {
        let clock = PausedClock::new();
        let (process, calls) = fails(usize::MAX);
        let (letter, letters) = mpsc::channel();
        let batcher = retrying(&clock, u32::MAX)
            .backoff(3600 * SECOND, 3600 * SECOND)
            .isolate_poison(true)
            .dead_letter(move |item, _| letter.send(item).unwrap())
            .on_drop(fullbore_core::OnDrop::Abandon)
            .build_by_ref(process)
            .unwrap();
        let ticket = batcher.submit(1).unwrap();
        (2..5).for_each(|n| batcher.send(n).unwrap());
        calls.recv().unwrap();
        clock.wait_for_waiters(1);
        if by_drop {
            drop(batcher);
        } else {
            let left = batcher.close_within(Duration::ZERO).unwrap_err();
            assert_eq!((left.items, left.abandoned_threads.len()), (vec![4], 0));
        }
        assert!(ticket.wait().is_err());
        let mut all: Vec<u32> = letters.iter().take(if by_drop { 4 } else { 3 }).collect();
        all.sort_unstable();
        assert_eq!(all, if by_drop { vec![1, 2, 3, 4] } else { vec![1, 2, 3] });
        assert!(calls.try_recv().is_err(), "no further attempt, and nothing is taken apart");
    }
}

#[test]
fn a_function_that_takes_the_items_cannot_be_called_again() {
    let refused = |builder: BatcherBuilder<u32>| match builder.build(|_: Batch<u32>| ()).unwrap_err() {
        BuildError::Config { field, expected, .. } => (field, expected.contains("build_by_ref")),
        other => panic!("{other}"),
    };
    assert_eq!(refused(Batcher::builder().max_attempts(2)), ("max_attempts".into(), true));
    assert_eq!(refused(Batcher::builder().isolate_poison(true)), ("isolate_poison".into(), true));
    assert_eq!(refused(Batcher::builder().max_attempts(0)), ("max_attempts".into(), false));
    assert_eq!(refused(Batcher::builder().backoff(2 * SECOND, SECOND)), ("backoff_min".into(), false));
}

proptest! {
    /// All of the bad and only they, with few calls, whatever fails and however: by an error or by a panic.
    #[test]
    fn only_the_items_fail_that_fail_alone(n in 1usize..300, seed in any::<u64>(), dozens in 0usize..3) {
        let mut dice = Dice::new(seed);
        let bad: BTreeSet<u32> = (0..dice.roll(1 + 12 * dozens as u64)).map(|_| dice.roll(n as u64) as u32).collect();
        let calls = Arc::new(AtomicUsize::new(0));
        let (its_bad, its_calls) = (bad.clone(), Arc::clone(&calls));
        let (letter, letters) = mpsc::channel();
        let batcher = Batcher::builder()
            .clock(Clock::Real)
            .max_items(n)
            .linger(NEVER)
            .isolate_poison(true)
            .dead_letter(move |item, failure| letter.send((item, failure)).unwrap())
            .build_by_ref(move |items: &[u32]| {
                its_calls.fetch_add(1, Ordering::Relaxed);
                match items.iter().find(|item| its_bad.contains(item)) {
                    Some(item) if item % 2 == 0 => blow_up(),
                    Some(item) => Err(format!("{item} is bad")),
                    None => Ok(items.iter().map(|item| item * 2).collect::<Vec<_>>()),
                }
            })
            .unwrap();
        let tickets: Vec<_> = (0..n as u32).map(|item| batcher.submit(item).unwrap()).collect();
        for (item, ticket) in (0u32..).zip(tickets) {
            match ticket.wait() {
                Ok(double) => prop_assert!(double == 2 * item && !bad.contains(&item)),
                Err(failure) => {
                    prop_assert!(bad.contains(&item));
                    prop_assert_eq!(matches!(failure, Failure::Panicked(_)), item % 2 == 0);
                }
            }
        }
        batcher.close().unwrap();
        let letters: Vec<u32> = letters.try_iter().map(|(item, _)| item).collect();
        prop_assert!(letters.iter().eq(&bad), "in order, once each: {:?}", letters);
        let most = 1 + 2 * bad.len() * (1 + n.next_power_of_two().ilog2() as usize);
        prop_assert!(calls.load(Ordering::Relaxed) <= most, "{} calls, {} expected", calls.load(Ordering::Relaxed), most);
        let seen = batcher.station().snapshot();
        prop_assert_eq!((seen.served, seen.failed), ((n - bad.len()) as u64, bad.len() as u64));
    }
}

/// The close comes while the batch is being taken apart: the call that runs ends, and there is no other.
#[test]
fn a_close_that_is_out_of_time_ends_the_taking_apart() {
    let gate = common::Gate::new();
    let entry = gate.entry();
    let batcher = Batcher::builder()
        .max_items(8)
        .linger(NEVER)
        .isolate_poison(true)
        .build_by_ref(move |items: &[u32]| {
            entry.pass(items.len());
            Err::<(), _>("never")
        })
        .unwrap();
    let tickets: Vec<_> = (0..8).map(|n| batcher.submit(n).unwrap()).collect();
    assert_eq!(gate.wait(), 8);
    gate.open(1);
    assert_eq!(gate.wait(), 4);
    assert_eq!(batcher.close_within(Duration::ZERO).unwrap_err().in_flight, 8);
    gate.open(8);
    batcher.close().unwrap();
    tickets.into_iter().for_each(|ticket| assert!(ticket.wait().is_err()));
    assert_eq!(batcher.station().snapshot().failed, 8);
}
