//! When jobs are begun: their order, delays, pauses, and how many at once.
#![cfg(not(fullbore_loom))]
#![allow(missing_docs)]

mod common;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use common::{HOUR, SECOND, blow_up, gate, one, with_letters};
use fullbore_core::{Failure, PausedClock, Sink, sink};
use fullbore_limit::{AcquireError, Limit};
use fullbore_queue::{Job, Queue, Verdict};

#[test]
fn retries_come_at_exact_times_until_no_attempt_is_left() {
    let clock = PausedClock::new();
    let begin = clock.now();
    let (attempt, attempts) = mpsc::channel();
    let (builder, dead) = with_letters(one(&clock).max_attempts(5).backoff(SECOND, 5 * SECOND));
    let handlers_clock = clock.clone();
    let queue = builder
        .build(move |job| {
            attempt.send((job.attempt(), handlers_clock.now() - begin)).unwrap();
            Err("busy")
        })
        .unwrap();
    queue.send(7).unwrap();
    let mut due = Duration::ZERO;
    for (n, pause) in [(1, 1), (2, 2), (3, 4), (4, 5)] {
        assert_eq!(attempts.recv(), Ok((n, due)));
        clock.wait_for_waiters(1);
        assert_eq!(clock.timers(), 1);
        clock.advance(pause * SECOND - Duration::from_nanos(1));
        // Nobody was woken: if it were to begin too soon, it would have by the time the worker is back in line.
        clock.wait_for_waiters(1);
        assert_eq!(
            queue.station().snapshot().begun,
            u64::from(n),
            "a nanosecond before the pause of {pause} s is over"
        );
        assert!(dead.try_recv().is_err());
        clock.advance(Duration::from_nanos(1));
        due += pause * SECOND;
    }
    assert_eq!(attempts.recv(), Ok((5, due)));
    let (job, attempts, failure) = dead.recv().unwrap();
    assert_eq!((job, attempts, failure.to_string()), (7, 5, "busy".into()));
    queue.flush().unwrap();
    clock.wait_for_waiters(1);
    assert_eq!(clock.timers(), 0);
    let seen = queue.station().snapshot();
    assert_eq!((seen.begun, seen.retried, seen.failed), (5, 4, 1));
}

#[test]
fn a_verdict_of_dead_is_final_at_once() {
    let clock = PausedClock::new();
    let (builder, dead) = with_letters(one(&clock));
    let queue = builder.build(|job| if **job == 1 { Verdict::dead("no such tenant") } else { Verdict::Done }).unwrap();
    queue.send(1).unwrap();
    queue.send(2).unwrap();
    queue.flush().unwrap();
    let (job, attempts, failure) = dead.try_recv().unwrap();
    assert_eq!((job, attempts, failure.to_string()), (1, 1, "no such tenant".into()));
    assert!(dead.try_recv().is_err());
}

#[test]
fn one_attempt_means_no_retry() {
    let clock = PausedClock::new();
    let (builder, dead) = with_letters(one(&clock).max_attempts(1));
    let queue = builder.build(|_| Err("no")).unwrap();
    queue.send(1).unwrap();
    queue.flush().unwrap();
    assert!(matches!(dead.try_recv(), Ok((1, 1, Failure::Error(_)))));
}

#[test]
fn one_worker_begins_jobs_in_the_order_of_acceptance() {
    let clock = PausedClock::new();
    let (gate, entry) = gate();
    let queue = one(&clock).build(move |job| entry.pass((job.id(), **job))).unwrap();
    for job in 0..50 {
        queue.send(job).unwrap();
    }
    gate.open(50);
    for job in 0..50 {
        assert_eq!(gate.wait(), (u64::from(job), job));
    }
    queue.close().unwrap();
}

#[test]
fn delayed_jobs_come_when_due_and_in_the_order_of_acceptance_within_a_moment() {
    let clock = PausedClock::new();
    let (done, results) = mpsc::channel();
    let queue = one(&clock).build(move |job| done.send(**job)).unwrap();
    for (job, delay) in [(30, 3), (10, 1), (20, 2), (11, 1), (0, 0)] {
        queue.send_after(job, delay * SECOND).unwrap();
    }
    let ready = || {
        clock.wait_for_waiters(1);
        results.try_iter().collect::<Vec<_>>()
    };
    assert_eq!(ready(), [0]);
    for due in [vec![10, 11], vec![20], vec![30]] {
        clock.advance(SECOND);
        assert_eq!(ready(), due);
    }
}

#[test]
fn many_due_at_once_are_shared_by_all_idle_workers() {
    let clock = PausedClock::new();
    let (gate, entry) = gate();
    let queue = one(&clock).workers(4).build(move |job| entry.pass(**job)).unwrap();
    for job in 0..4 {
        queue.send_after(job, SECOND).unwrap();
    }
    clock.wait_for_waiters(4);
    assert_eq!(clock.timers(), 1);
    clock.advance(SECOND);
    // All four are in the handler before one of them goes on.
    let mut begun: Vec<_> = (0..4).map(|_| gate.wait()).collect();
    begun.sort_unstable();
    assert_eq!(begun, [0, 1, 2, 3]);
    gate.open(4);
    queue.close().unwrap();
}

#[test]
fn the_alarm_is_handed_over_when_its_keeper_gets_busy() {
    let clock = PausedClock::new();
    let (gate, entry) = gate();
    let queue = one(&clock).workers(2).build(move |job| entry.pass(**job)).unwrap();
    queue.send_after(1, SECOND).unwrap();
    queue.send_after(2, 2 * SECOND).unwrap();
    clock.wait_for_waiters(2);
    clock.advance(SECOND);
    assert_eq!(gate.wait(), 1);
    // The keeper stays in the handler; the other one has taken over.
    clock.wait_for_waiters(1);
    assert_eq!(clock.timers(), 1);
    clock.advance(SECOND);
    assert_eq!(gate.wait(), 2);
    gate.open(2);
    queue.close().unwrap();
}

#[test]
fn a_keeper_that_is_the_only_idle_worker_takes_what_comes() {
    let clock = PausedClock::new();
    let (gate, entry) = gate();
    let queue = one(&clock).workers(2).build(move |job| entry.pass(**job)).unwrap();
    queue.send(1).unwrap();
    assert_eq!(gate.wait(), 1);
    queue.send_after(3, SECOND).unwrap();
    clock.wait_for_waiters(1);
    assert_eq!(clock.timers(), 1);
    queue.send(2).unwrap();
    assert_eq!(gate.wait(), 2);
    assert_eq!(clock.timers(), 0, "nobody is idle");
    gate.open(1);
    clock.wait_for_waiters(1);
    assert_eq!(clock.timers(), 1, "whoever is idle first keeps the alarm");
    clock.advance(SECOND);
    assert_eq!(gate.wait(), 3);
    gate.open(2);
    queue.close().unwrap();
}

#[test]
fn a_job_in_line_does_not_wait_for_the_keeper_of_the_alarm() {
    let clock = PausedClock::new();
    let (gate, entry) = gate();
    let queue = one(&clock).workers(3).build(move |job| entry.pass(**job)).unwrap();
    clock.wait_for_waiters(3);
    queue.send_after(9, HOUR).unwrap();
    clock.wait_for_waiters(3);
    for job in 0..3 {
        queue.send(job).unwrap();
        assert_eq!(gate.wait(), job);
    }
    gate.open(4);
    queue.close_within(Duration::ZERO).map_err(|left| assert_eq!(left.items, [9])).unwrap_err();
}

#[test]
fn a_handler_feeds_its_own_queue_without_waiting_for_itself() {
    let clock = PausedClock::new();
    let (own, queues) = mpsc::channel::<Box<dyn Sink<u32>>>();
    let (report, reports) = mpsc::channel();
    let queues = std::sync::Mutex::new(queues);
    let queue = one(&clock)
        .capacity(2)
        .build(move |job| {
            if **job > 0 {
                return;
            }
            let own = queues.lock().unwrap().recv().unwrap();
            report.send((own.send(1).is_ok(), own.send(2).map_err(|refused| refused.is_full()))).unwrap();
        })
        .unwrap();
    queue.send(0).unwrap();
    own.send(Box::new(queue.producer())).unwrap();
    assert_eq!(reports.recv(), Ok((true, Err(true))));
    queue.close().unwrap();
    assert_eq!(queue.station().snapshot().served, 2);
}

#[test]
fn the_limit_bounds_how_many_are_in_the_handler_and_panics_give_the_permit_back() {
    let limit = Limit::builder().permits(3).build().unwrap();
    let (inside, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (counted, highest) = (Arc::clone(&inside), Arc::clone(&most));
    let queue = Queue::builder()
        .workers(8)
        .max_attempts(2)
        .backoff(Duration::ZERO, Duration::ZERO)
        .limit(&limit)
        .build(move |job: &Job<u32>| {
            highest.fetch_max(counted.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            thread::yield_now();
            counted.fetch_sub(1, Ordering::SeqCst);
            if (**job).is_multiple_of(3) { blow_up() } else { Verdict::Done }
        })
        .unwrap();
    for job in 0..300 {
        queue.send(job).unwrap();
    }
    queue.close().unwrap();
    assert!((1..=3).contains(&most.load(Ordering::SeqCst)), "{most:?} at once with 3 permits");
    assert_eq!(limit.state().in_use, 0);
    let seen = queue.station().snapshot();
    assert_eq!((seen.served, seen.failed, seen.retried), (200, 100, 100));
    assert_eq!(limit.station().snapshot().offered(), 400, "a permit for each attempt");
}

#[test]
fn two_permits_let_two_in() {
    let limit = Limit::builder().permits(2).build().unwrap();
    let (gate, entry) = gate();
    let queue = Queue::builder().workers(4).limit(&limit).build(move |_: &Job<u32>| entry.pass(())).unwrap();
    for job in 0..4 {
        queue.send(job).unwrap();
    }
    gate.wait();
    gate.wait();
    assert_eq!(limit.state().in_use, 2);
    gate.open(4);
    queue.close().unwrap();
}

#[test]
fn without_a_permit_in_time_the_attempt_has_failed() {
    let clock = PausedClock::new();
    let limit = Limit::builder().permits(1).acquire_timeout(5 * SECOND).clock(&clock).build().unwrap();
    let held = limit.acquire().unwrap();
    let (builder, dead) = with_letters(one(&clock).max_attempts(2).limit(&limit));
    let queue = builder.build(|_| ()).unwrap();
    queue.send(1).unwrap();
    for wait in [5, 1, 5] {
        clock.wait_for_waiters(1);
        clock.advance(wait * SECOND);
    }
    let (job, attempts, failure) = dead.recv().unwrap();
    assert_eq!((job, attempts), (1, 2));
    assert!(failure.downcast_ref::<AcquireError>().unwrap().is_timeout(), "{failure}");
    drop(held);
    queue.send(2).unwrap();
    queue.flush().unwrap();
    assert_eq!(queue.station().snapshot().served, 1);
    limit.close();
    queue.send(3).unwrap();
    clock.wait_for_waiters(1);
    clock.advance(SECOND);
    let (.., failure) = dead.recv().unwrap();
    assert!(failure.downcast_ref::<AcquireError>().unwrap().is_closed(), "{failure}");
}

#[test]
fn a_producer_is_a_sink_for_others() {
    let clock = PausedClock::new();
    let (gate, entry) = gate();
    let queue = one(&clock).capacity(2).build(move |_| entry.pass(())).unwrap();
    let sink: Arc<dyn Sink<u32>> = Arc::new(queue.producer());
    let doubled = sink::from_fn(|n: u32| sink.try_send(2 * n).map_err(|refused| refused.map(|n| n / 2)));
    let refused = doubled.send_all(&mut (1..=3)).unwrap_err();
    assert!(refused.is_full());
    assert_eq!(refused.into_inner(), 3);
    gate.wait();
    gate.open(2);
    queue.close().unwrap();
    assert!(sink.send(9).unwrap_err().is_closed());
}
