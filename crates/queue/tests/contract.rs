//! The rules of the house (C1-C11) for `fullbore-queue`. The names are the same in every crate.
#![cfg(not(fullbore_loom))]
#![allow(missing_docs)]

mod common;

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, mpsc};
use std::thread;
use std::time::Duration;

use common::{HOUR, SECOND, blow_up, gate, one, with_letters};
use fullbore_core::{BuildError, EnvReader, Failure, OnDrop, Overflow, PausedClock, SendError, Shutdown, Sink};
use fullbore_limit::Limit;
use fullbore_metrics::StationKind;
use fullbore_queue::{Config, DeadLetter, Job, Producer, Queue, QueueBuilder, Verdict};

#[test]
fn c1_every_way_out_is_counted() {
    let clock = PausedClock::new();
    let (gate, entry) = gate();
    let (builder, dead) = with_letters(one(&clock).capacity(3).overflow(Overflow::DropOldest));
    let queue = builder
        .build(move |job| {
            entry.pass(**job);
            match **job {
                0 => Verdict::Done,
                2 => Verdict::retry("not yet"),
                _ => Verdict::dead("never"),
            }
        })
        .unwrap();
    queue.send(0).unwrap();
    assert_eq!(gate.wait(), 0);
    for job in 1..=3 {
        queue.send(job).unwrap(); // 3 displaces 1
    }
    gate.open(1);
    assert_eq!(gate.wait(), 2);
    gate.open(1);
    assert_eq!(gate.wait(), 3);
    let left = queue.close_within(Duration::ZERO).unwrap_err();
    assert_eq!((left.items, left.in_flight), (vec![2], 1));
    assert!(queue.send(9).unwrap_err().is_closed());
    let seen = queue.station().snapshot();
    assert!(seen.balanced(), "{seen:?}");
    assert_eq!((seen.waiting(), seen.in_service()), (0, 1));
    gate.open(1);
    queue.close().unwrap();
    let seen = queue.station().snapshot();
    assert!(seen.balanced(), "{seen:?}");
    assert_eq!((seen.offered(), seen.refused, seen.arrivals), (5, 1, 4));
    assert_eq!((seen.served, seen.failed, seen.dropped, seen.returned), (1, 1, 1, 1));
    assert_eq!((seen.begun, seen.retried), (3, 1));
    assert_eq!((seen.waiting(), seen.in_service()), (0, 0));
    let dead: Vec<_> = dead.try_iter().map(|(job, attempts, failure)| (job, attempts, failure.to_string())).collect();
    assert_eq!(dead, [(1, 0, Failure::Dropped.to_string()), (3, 1, "never".into())]);
}

#[test]
fn c1_what_is_left_at_a_drop_goes_to_the_hook_with_its_attempts() {
    let clock = PausedClock::new();
    let (builder, dead) = with_letters(one(&clock).on_drop(OnDrop::Abandon));
    let queue = builder.build(|_| Verdict::retry("not yet")).unwrap();
    let station = queue.station().clone();
    queue.send(1).unwrap();
    queue.send_after(2, HOUR).unwrap();
    clock.wait_for_waiters(1);
    drop(queue);
    let dead: Vec<_> = dead.iter().map(|(job, attempts, failure)| (job, attempts, failure.to_string())).collect();
    let closed = Failure::Closed.to_string();
    assert_eq!(dead, [(1, 1, closed.clone()), (2, 0, closed)]);
    let seen = station.snapshot();
    assert!(seen.balanced(), "{seen:?}");
    assert_eq!((seen.dropped, seen.returned, seen.waiting(), seen.in_service()), (2, 0, 0, 0));
}

#[test]
fn c2_capacity_counts_what_waits_what_is_delayed_and_what_is_in_process() {
    let clock = PausedClock::new();
    let (gate, entry) = gate();
    let queue = one(&clock).capacity(3).build(move |job| entry.pass(**job)).unwrap();
    queue.send(0).unwrap();
    gate.wait();
    queue.send_after(1, SECOND).unwrap();
    queue.send(2).unwrap();
    assert!(queue.try_send(3).unwrap_err().is_full());
    thread::scope(|scope| {
        // The default waits for room.
        let blocked = scope.spawn(|| queue.send(3));
        clock.wait_for_waiters(1);
        gate.open(1);
        blocked.join().unwrap().unwrap();
    });
    assert!(queue.try_send(4).unwrap_err().is_full(), "one place for one job");
    gate.open(3);
    assert_eq!((gate.wait(), gate.wait()), (2, 3));
    clock.wait_for_waiters(1);
    clock.advance(SECOND);
    assert_eq!(gate.wait(), 1);
    queue.close().unwrap();
    assert_eq!(queue.station().snapshot().served, 4);
}

#[test]
fn c2_a_job_keeps_its_place_while_it_waits_for_a_retry() {
    let clock = PausedClock::new();
    let queue = one(&clock)
        .capacity(1)
        .build(|job| if job.attempt() == 1 { Verdict::retry("not yet") } else { Verdict::Done })
        .unwrap();
    queue.send(0).unwrap();
    clock.wait_for_waiters(1);
    assert!(queue.try_send(1).unwrap_err().is_full());
    clock.advance(SECOND);
    queue.flush().unwrap();
    queue.try_send(1).unwrap();
    assert!(queue.try_send(2).unwrap_err().is_full(), "one place came back, not two");
    queue.close_within(Duration::ZERO).map_or_else(drop, |()| ());
}

#[test]
fn c2_overflow_says_what_happens_when_it_is_full() {
    let full = |overflow: Overflow| {
        let clock = PausedClock::new();
        let (gate, entry) = gate();
        let (builder, dead) = with_letters(one(&clock).capacity(2).overflow(overflow));
        let queue = builder.build(move |_| entry.pass(())).unwrap();
        queue.send(1).unwrap();
        gate.wait();
        queue.send(2).unwrap();
        let outcome = queue.send(3);
        gate.open(3);
        queue.close().unwrap();
        assert!(queue.station().snapshot().balanced());
        let dead: Vec<_> = dead.try_iter().map(|(job, _, failure)| (job, failure.to_string())).collect();
        (outcome, dead)
    };
    let (refused, dead) = full(Overflow::Reject);
    assert!(refused.unwrap_err().is_full() && dead.is_empty());
    let (refused, dead) = full(Overflow::BlockFor(Duration::ZERO));
    assert!(refused.unwrap_err().is_timeout() && dead.is_empty());
    let (accepted, dead) = full(Overflow::DropOldest);
    accepted.unwrap();
    assert_eq!(dead, [(2, Failure::Dropped.to_string())]);
}

#[test]
fn c2_drop_oldest_displaces_what_would_be_begun_next() {
    let clock = PausedClock::new();
    let (gate, entry) = gate();
    let (builder, dead) = with_letters(one(&clock).capacity(3).overflow(Overflow::DropOldest));
    let queue = builder.build(move |job| entry.pass(**job)).unwrap();
    let displaced = || dead.try_iter().map(|(job, ..)| job).collect::<Vec<_>>();
    queue.send(0).unwrap();
    gate.wait();
    queue.send_after(1, 2 * SECOND).unwrap();
    queue.send_after(2, SECOND).unwrap();
    queue.send_after(3, HOUR).unwrap();
    assert_eq!(displaced(), [2], "the delayed one that is due first");
    queue.send(4).unwrap();
    assert_eq!(displaced(), [1]);
    queue.send(5).unwrap();
    assert_eq!(displaced(), [4], "those in line come before delayed ones");
    queue.flush_within(Duration::ZERO).unwrap_err();
    gate.open(1);
    assert_eq!(gate.wait(), 5);
    let seen = queue.station().snapshot();
    assert_eq!((seen.arrivals, seen.dropped, seen.waiting()), (6, 3, 1));
    gate.open(1);
    queue.close_within(Duration::ZERO).map_err(|left| assert_eq!(left.items, [3])).unwrap_err();
}

#[test]
fn c2_with_everything_in_process_the_newcomer_is_the_oldest() {
    let clock = PausedClock::new();
    let (gate, entry) = gate();
    let (builder, dead) = with_letters(one(&clock).capacity(1).overflow(Overflow::DropOldest));
    let queue = builder.build(move |_| entry.pass(())).unwrap();
    queue.send(1).unwrap();
    gate.wait();
    queue.send(2).unwrap();
    assert!(matches!(dead.try_recv(), Ok((2, 0, Failure::Dropped))));
    gate.open(1);
    queue.flush().unwrap();
    let seen = queue.station().snapshot();
    assert!(seen.balanced(), "{seen:?}");
    assert_eq!((seen.arrivals, seen.served, seen.dropped), (2, 1, 1));
}

#[test]
fn c3_every_wait_has_a_deadline() {
    let clock = PausedClock::new();
    let (gate, entry) = gate();
    let queue = one(&clock).capacity(1).build(move |_| entry.pass(())).unwrap();
    let producer = queue.producer();
    queue.send(0).unwrap();
    gate.wait();
    let soon = clock.now() + 5 * SECOND;
    let timed_out = |error: SendError<u32>| error.is_timeout() && error.into_inner() == 7;
    thread::scope(|scope| {
        let by_default = scope.spawn(|| queue.send(7).unwrap_err());
        clock.wait_for_waiters(1);
        let send = scope.spawn(|| queue.send_deadline(7, soon).unwrap_err());
        let other = scope.spawn(|| producer.send_deadline(7, soon).unwrap_err());
        let sink = scope.spawn(|| Sink::send_deadline(&queue, 7, Some(soon)).unwrap_err());
        let flush = scope.spawn(|| queue.flush_within(5 * SECOND).unwrap_err());
        clock.wait_for_waiters(5);
        clock.advance(5 * SECOND);
        assert!(timed_out(send.join().unwrap()));
        assert!(timed_out(other.join().unwrap()));
        assert!(timed_out(sink.join().unwrap()));
        assert_eq!(flush.join().unwrap().in_flight(), 1);
        clock.wait_for_waiters(1);
        clock.advance(25 * SECOND);
        assert!(timed_out(by_default.join().unwrap()));
        let close = scope.spawn(|| queue.close_within(5 * SECOND).unwrap_err());
        clock.wait_for_waiters(1);
        clock.advance(5 * SECOND);
        assert_eq!(close.join().unwrap().in_flight, 1);
    });
    gate.open(1);
    queue.close().unwrap();
    assert_eq!(queue.station().snapshot().refused, 4);
}

#[test]
fn c3_too_far_away_means_never() {
    let clock = PausedClock::new();
    let queue = one(&clock)
        .overflow(Overflow::BlockFor(Duration::MAX))
        .backoff(Duration::MAX, Duration::MAX)
        .on_drop(OnDrop::Drain(Duration::MAX))
        .build(|job| if **job == 2 { Verdict::retry("not in this life") } else { Verdict::Done })
        .unwrap();
    queue.send_after(1, Duration::MAX).unwrap();
    queue.send(2).unwrap();
    clock.wait_for_waiters(1);
    clock.advance(Duration::from_secs(3600 * 24 * 365 * 100));
    clock.wait_for_waiters(1);
    assert_eq!(queue.station().snapshot().begun, 1);
    queue.close_within(Duration::ZERO).map_err(|left| assert_eq!(left.items, [1, 2])).unwrap_err();
    queue.flush_within(Duration::MAX).unwrap();
    queue.close_within(Duration::MAX).unwrap();
}

#[test]
fn c3_a_close_does_not_wait_for_a_permit_and_nothing_is_begun_after_it() {
    let clock = PausedClock::new();
    let limit = Limit::builder().permits(1).clock(&clock).build().unwrap();
    let held = limit.acquire().unwrap();
    let (builder, dead) = with_letters(one(&clock).limit(&limit));
    let queue = builder.build(|_| -> () { panic!("begun after the close") }).unwrap();
    queue.send(1).unwrap();
    clock.wait_for_waiters(1);
    queue.send(2).unwrap();
    thread::scope(|scope| {
        let close = scope.spawn(|| queue.close_within(5 * SECOND).unwrap_err());
        clock.wait_for_waiters(2);
        clock.advance(5 * SECOND);
        let left = close.join().unwrap();
        assert_eq!((left.items, left.in_flight), (vec![2], 1));
        assert_eq!(left.abandoned_threads, ["fullbore-queue-test-0"]);
    });
    drop(held);
    queue.close().unwrap();
    assert!(matches!(dead.try_recv(), Ok((1, 0, Failure::Closed))));
    assert_eq!(limit.state().in_use, 0);
    let seen = queue.station().snapshot();
    assert_eq!((seen.failed, seen.returned, seen.in_service()), (1, 1, 0));
}

#[test]
fn c4_a_panic_is_a_failed_attempt_and_the_worker_lives_on() {
    let clock = PausedClock::new();
    let (builder, dead) = with_letters(one(&clock).max_attempts(2).backoff(Duration::ZERO, Duration::ZERO));
    let queue = builder.build(|job| if **job == 13 { blow_up() } else { Verdict::Done }).unwrap();
    queue.send(13).unwrap();
    queue.send(14).unwrap();
    queue.flush().unwrap();
    let (job, attempts, failure) = dead.try_recv().unwrap();
    assert_eq!((job, attempts), (13, 2));
    assert!(failure.is_panic(), "{failure}");
    let seen = queue.station().snapshot();
    assert_eq!((seen.served, seen.failed, seen.retried), (1, 1, 1));
}

/// Panics when it is dropped; before that it looks at the queue, which would hang under its lock.
struct Grenade {
    queue: Arc<OnceLock<Producer<Armed>>>,
    drops: Arc<AtomicUsize>,
}

type Armed = (Grenade, u32);

impl Grenade {
    fn go_off(&self) {
        let _ = self.queue.get().map(Producer::is_closed);
        self.drops.fetch_add(1, Ordering::SeqCst);
        blow_up();
    }
}

impl Drop for Grenade {
    fn drop(&mut self) {
        self.go_off();
    }
}

impl fmt::Debug for Grenade {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Grenade")
    }
}

/// Its text panics as well.
impl fmt::Display for Grenade {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.go_off();
        Ok(())
    }
}

impl std::error::Error for Grenade {}

#[test]
fn c4_no_destructor_and_no_error_text_ends_a_worker_or_leaks_a_place() {
    let (slot, drops) = (Arc::new(OnceLock::new()), Arc::new(AtomicUsize::new(0)));
    let grenade = {
        let (slot, drops) = (Arc::clone(&slot), Arc::clone(&drops));
        move || Grenade { queue: Arc::clone(&slot), drops: Arc::clone(&drops) }
    };
    let error = grenade.clone();
    let queue = Queue::builder()
        .workers(2)
        .capacity(4)
        .max_attempts(2)
        .backoff(Duration::ZERO, Duration::ZERO)
        .build(move |job: &Job<Armed>| match job.1 {
            0 => Verdict::Done,
            1 => Verdict::dead(error()),
            _ => Verdict::retry(error()),
        })
        .unwrap();
    slot.set(queue.producer()).unwrap();
    for n in 0..30 {
        queue.send((grenade(), n % 3)).unwrap();
    }
    queue.flush().unwrap();
    let seen = queue.station().snapshot();
    assert!(seen.balanced(), "{seen:?}");
    assert_eq!((seen.served, seen.failed, seen.retried), (10, 20, 10));
    for _ in 0..4 {
        queue.try_send((grenade(), 0)).unwrap();
    }
    queue.close().unwrap();
    // The workers have ended: nothing is still on its way.
    let destroyed = drops.load(Ordering::SeqCst);
    assert!(destroyed >= 34 + 10 + 20, "every job, and the error of every failed attempt: {destroyed}");
}

#[test]
fn c4_a_panicking_hook_costs_no_other_job_its_letter() {
    let clock = PausedClock::new();
    let (letters, dead) = mpsc::channel();
    let queue = one(&clock)
        .on_drop(OnDrop::Abandon)
        .max_attempts(1)
        .dead_letter(move |letter| {
            letters.send(letter.item).unwrap();
            blow_up();
        })
        .build(|job| if **job < 2 { Err("no") } else { Ok(()) })
        .unwrap();
    queue.send(0).unwrap();
    queue.send(1).unwrap();
    queue.send(2).unwrap();
    queue.flush().unwrap();
    queue.send_after(3, HOUR).unwrap();
    queue.send_after(4, HOUR).unwrap();
    let station = queue.station().clone();
    drop(queue);
    assert_eq!(dead.iter().collect::<Vec<_>>(), [0, 1, 3, 4]);
    let seen = station.snapshot();
    assert_eq!((seen.served, seen.failed, seen.dropped), (1, 2, 2));
}

#[test]
fn c4_a_panicking_hook_goes_to_the_sender_and_leaves_everything_usable() {
    let clock = PausedClock::new();
    let (gate, entry) = gate();
    let queue = one(&clock)
        .capacity(2)
        .overflow(Overflow::DropOldest)
        .dead_letter(|_| blow_up())
        .build(move |job| entry.pass(**job))
        .unwrap();
    queue.send(1).unwrap();
    gate.wait();
    queue.send(2).unwrap();
    let caught = catch_unwind(AssertUnwindSafe(|| queue.send(3)));
    assert!(caught.is_err(), "the caller's panic is resumed");
    gate.open(2);
    assert_eq!(gate.wait(), 3, "accepted all the same");
    queue.close().unwrap();
    let seen = queue.station().snapshot();
    assert!(seen.balanced(), "{seen:?}");
    assert_eq!((seen.served, seen.dropped), (2, 1));
}

#[test]
fn c5_flush_waits_for_what_was_before_it_retries_included() {
    let clock = PausedClock::new();
    let (gate, entry) = gate();
    let queue = one(&clock)
        .build(move |job| {
            entry.pass((**job, job.attempt()));
            if (**job, job.attempt()) == (1, 1) { Verdict::retry("not yet") } else { Verdict::Done }
        })
        .unwrap();
    queue.flush().unwrap();
    queue.send(1).unwrap();
    thread::scope(|scope| {
        let flush = scope.spawn(|| queue.flush());
        assert_eq!(gate.wait(), (1, 1));
        clock.wait_for_waiters(1);
        // Later ones do not matter, though they are begun before the retry.
        queue.send(2).unwrap();
        gate.open(1);
        assert_eq!(gate.wait(), (2, 1));
        clock.advance(SECOND);
        queue.send(3).unwrap();
        gate.open(1);
        assert_eq!(gate.wait(), (3, 1), "in line before the retry was due to a worker that looked");
        gate.open(1);
        assert_eq!(gate.wait(), (1, 2));
        queue.send(4).unwrap();
        gate.open(1);
        flush.join().unwrap().unwrap();
        assert_eq!(gate.wait(), (4, 1));
        gate.open(1);
    });
    queue.close().unwrap();
}

#[test]
fn c5_a_flush_is_released_by_a_displacement() {
    let clock = PausedClock::new();
    let queue = one(&clock).capacity(1).overflow(Overflow::DropOldest).build(|_| ()).unwrap();
    queue.send_after(1, HOUR).unwrap();
    thread::scope(|scope| {
        let flush = scope.spawn(|| queue.flush());
        clock.wait_for_waiters(2);
        queue.send_after(2, HOUR).unwrap();
        flush.join().unwrap().unwrap();
    });
    assert_eq!(queue.close_within(Duration::ZERO).unwrap_err().items, [2]);
}

#[test]
fn c5_close_is_idempotent_and_finishes_delayed_jobs_and_retries() {
    let clock = PausedClock::new();
    let (done, results) = mpsc::channel();
    let queue = one(&clock)
        .workers(3)
        .build(move |job| {
            if **job == 1 && job.attempt() < 3 {
                return Err("not yet");
            }
            done.send(**job).unwrap();
            Ok(())
        })
        .unwrap();
    let producer = queue.producer();
    queue.send(1).unwrap();
    queue.send_after(2, 2 * SECOND).unwrap();
    clock.wait_for_waiters(3);
    thread::scope(|scope| {
        let close = scope.spawn(|| queue.close());
        let within = scope.spawn(|| queue.close_within(HOUR));
        clock.wait_for_waiters(5);
        assert!(producer.is_closed() && queue.is_closed());
        clock.advance(SECOND);
        clock.wait_for_waiters(5);
        clock.advance(SECOND);
        assert_eq!(results.recv(), Ok(2));
        clock.wait_for_waiters(5);
        clock.advance(SECOND);
        close.join().unwrap().unwrap();
        within.join().unwrap().unwrap();
    });
    assert_eq!(results.recv(), Ok(1));
    queue.close_within(Duration::ZERO).unwrap();
    assert_eq!(producer.send(9).unwrap_err().into_inner(), 9);
    drop(queue);
    assert!(producer.try_send(9).unwrap_err().is_closed());
    // A producer does not keep the handler: the channel ends.
    assert_eq!(results.recv(), Err(mpsc::RecvError));
}

#[test]
fn c5_close_wakes_blocked_producers_with_their_job() {
    let clock = PausedClock::new();
    let (gate, entry) = gate();
    let queue = one(&clock).capacity(1).build(move |_| entry.pass(())).unwrap();
    let producer = queue.producer();
    queue.send(1).unwrap();
    gate.wait();
    thread::scope(|scope| {
        let send = scope.spawn(|| queue.send(2).unwrap_err());
        let other = scope.spawn(|| producer.send_after(3, SECOND).unwrap_err());
        clock.wait_for_waiters(2);
        let left = queue.close_within(Duration::ZERO).unwrap_err();
        assert_eq!((left.items.len(), left.in_flight), (0, 1));
        assert_eq!(left.abandoned_threads, ["fullbore-queue-test-0"]);
        let (send, other) = (send.join().unwrap(), other.join().unwrap());
        assert!(send.is_closed() && send.into_inner() == 2);
        assert!(other.is_closed() && other.into_inner() == 3);
    });
    gate.open(1);
    queue.close().unwrap();
}

#[test]
fn c5_what_a_close_cannot_finish_in_time_comes_back_in_order() {
    let clock = PausedClock::new();
    let (gate, entry) = gate();
    let (builder, dead) = with_letters(one(&clock).workers(2));
    let queue = builder
        .build(move |job| {
            entry.pass(**job);
            if **job == 0 { Ok(()) } else { Err("again") }
        })
        .unwrap();
    queue.send(1).unwrap();
    assert_eq!(gate.wait(), 1);
    gate.open(1); // waits for its retry from now on
    clock.wait_for_waiters(2);
    queue.send(0).unwrap();
    queue.send(2).unwrap();
    let mut begun = [gate.wait(), gate.wait()];
    begun.sort_unstable();
    assert_eq!(begun, [0, 2]);
    queue.send_after(3, HOUR).unwrap();
    queue.send(4).unwrap();
    queue.send_after(5, SECOND).unwrap();
    thread::scope(|scope| {
        let close = scope.spawn(|| queue.close_within(5 * SECOND));
        clock.wait_for_waiters(1);
        clock.advance(5 * SECOND);
        let left = close.join().unwrap().unwrap_err();
        assert_eq!((left.items, left.in_flight), (vec![1, 3, 4, 5], 2));
        assert_eq!(left.abandoned_threads, ["fullbore-queue-test-0", "fullbore-queue-test-1"]);
    });
    // What is in process goes on, and is not tried again.
    gate.open(2);
    queue.close().unwrap();
    assert!(matches!(dead.try_recv(), Ok((2, 1, Failure::Error(_)))));
    let seen = queue.station().snapshot();
    assert!(seen.balanced(), "{seen:?}");
    assert_eq!((seen.served, seen.failed, seen.returned, seen.retried), (1, 1, 4, 1));
    assert_eq!((seen.waiting(), seen.in_service()), (0, 0));
}

#[test]
fn c5_a_shutdown_closes_it_and_buries_what_is_left() {
    let clock = PausedClock::new();
    let shutdown = Shutdown::with_clock((&clock).into());
    let (builder, dead) = with_letters(one(&clock));
    let queue = builder.build(|_| ()).unwrap();
    shutdown.register(queue.closer());
    let gone = one(&clock).build(|_| ()).unwrap();
    shutdown.register(gone.closer());
    drop(gone);
    queue.send(1).unwrap();
    queue.send_after(2, HOUR).unwrap();
    queue.flush_within(Duration::ZERO).unwrap_err();
    clock.wait_for_waiters(1);
    let report = shutdown.close_within(Duration::ZERO);
    let left: Vec<_> = report.parts().iter().map(|(name, left)| (name.as_str(), left.items, left.in_flight)).collect();
    assert_eq!(left, [("test", 1, 0), ("queue", 0, 0)]);
    assert!(matches!(dead.try_recv(), Ok((2, 0, Failure::Closed))));
    assert!(queue.is_closed());
    assert_eq!(queue.station().snapshot().dropped, 1);
}

#[test]
fn c5_threads_are_named() {
    let (name, names) = mpsc::channel();
    let queue = Queue::builder()
        .name("named")
        .workers(1)
        .build(move |_: &Job<u32>| name.send(thread::current().name().map(str::to_owned)))
        .unwrap();
    queue.send(1).unwrap();
    assert_eq!(names.recv().unwrap().as_deref(), Some("fullbore-queue-named-0"));
}

#[test]
fn c6_there_is_always_a_station() {
    let limit = Limit::builder().permits(2).build().unwrap();
    let queue = Queue::builder()
        .name("named")
        .workers(3)
        .capacity(50)
        .limit(&limit)
        .backoff(Duration::ZERO, Duration::ZERO)
        .build(|job: &Job<u32>| if **job == 1 && job.attempt() == 1 { Err("again") } else { Ok(()) })
        .unwrap();
    queue.send(1).unwrap();
    queue.send(2).unwrap();
    queue.flush().unwrap();
    let seen = queue.station().snapshot();
    assert_eq!((seen.name(), seen.kind()), ("named", StationKind::Queue));
    assert_eq!((seen.parallelism(), seen.capacity()), (3, 50));
    assert_eq!((seen.served, seen.retried), (2, 1));
    assert_eq!((seen.wait().count(), seen.service().count()), (3, 3), "each attempt is timed");
    assert_eq!(seen.response().count(), 2, "and each job from its acceptance to its end");
    assert!(seen.response().sum() >= seen.service().sum(), "all attempts and all waits of a job are in it");
    assert_eq!(seen.held_by(), [limit.station().id()]);
    assert_eq!(queue.producer().station().id(), queue.station().id());
}

#[test]
fn c7_nonsense_is_refused_by_name() {
    let refused = |builder: QueueBuilder<u32>, name: &str, given: &str| {
        let error = builder.build(|_| ()).unwrap_err();
        assert!(
            matches!(&error, BuildError::Config { field, value, .. } if field == name && value == given),
            "{error}"
        );
    };
    refused(Queue::builder().workers(0), "workers", "0");
    refused(Queue::builder().workers(4097), "workers", "4097");
    refused(Queue::builder().workers(usize::MAX), "workers", &usize::MAX.to_string());
    refused(Queue::builder().capacity(0), "capacity", "0");
    refused(Queue::builder().max_attempts(0), "max_attempts", "0");
    refused(Queue::builder().backoff(2 * SECOND, SECOND), "backoff_min", "2s");
    refused(Queue::builder().name("a\0b"), "name", r"fullbore-queue-a\0b");
    // Large, but sensible: nothing is allocated in advance, nothing overflows.
    let large: QueueBuilder<u32> =
        Queue::builder().capacity(usize::MAX).max_attempts(u32::MAX).backoff(Duration::ZERO, Duration::MAX);
    let queue = large.build(|job| if job.attempt() < 200 { Err("again") } else { Ok(()) }).unwrap();
    queue.send(1).unwrap();
    queue.close().unwrap();
    assert_eq!(queue.station().snapshot().retried, 199);

    let env = |name: &str, value: &str| {
        Config::read(EnvReader::from_vars("APP_", [(name.to_owned().into(), value.to_owned().into())]))
    };
    assert_eq!(env("APP_WORKERS", "7").unwrap().workers, 7);
    assert_eq!(env("APP_CAPACITY", "8").unwrap().capacity, 8);
    assert_eq!(env("APP_NAME", "jobs").unwrap().name, "jobs");
    assert_eq!(env("APP_OVERFLOW", "drop_oldest").unwrap().overflow, Overflow::DropOldest);
    assert_eq!(env("APP_MAX_ATTEMPTS", "9").unwrap().max_attempts, 9);
    assert_eq!(env("APP_BACKOFF_MIN", "250ms").unwrap().backoff_min, Duration::from_millis(250));
    assert_eq!(env("APP_BACKOFF_MAX", "2m").unwrap().backoff_max, 120 * SECOND);
    assert!(!env("APP_JITTER", "false").unwrap().jitter);
    assert_eq!(env("APP_ON_DROP", "abandon").unwrap().on_drop, OnDrop::Abandon);
    assert_eq!(env("APP_WORKERS", "many").unwrap_err().field(), Some("APP_WORKERS"));
    assert_eq!(env("APP_WORKER", "7").unwrap_err().field(), Some("APP_WORKER"));
}

#[cfg(feature = "serde")]
#[test]
fn c7_a_file_is_read_and_unknown_fields_are_refused() {
    let text = r#"{"workers": 5, "backoff_max": "1m 30s", "overflow": "reject", "on_drop": "2s", "jitter": false}"#;
    let config: Config = serde_json::from_str(text).unwrap();
    assert_eq!((config.workers, config.backoff_max, config.jitter), (5, 90 * SECOND, false));
    assert_eq!((config.overflow, config.on_drop), (Overflow::Reject, OnDrop::Drain(2 * SECOND)));
    let again: Config = serde_json::from_str(&serde_json::to_string(&config).unwrap()).unwrap();
    assert_eq!(again, config);
    assert!(serde_json::from_str::<Config>(r#"{"worker": 5}"#).unwrap_err().to_string().contains("worker"));
}

/// Under a limit on address space, with threads that want much of it: some start, then one does not.
#[cfg(target_os = "linux")]
#[test]
fn c7_without_threads_it_says_so_and_ends_those_that_did_start() {
    let child = fullbore_testkit::child_test("child_without_threads");
    let mut limited = std::process::Command::new("sh");
    limited.args(["-c", r#"ulimit -v 2097152 && exec "$0" "$@""#]).arg(child.get_program()).args(child.get_args());
    limited.envs(child.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let status = limited.env("RUST_MIN_STACK", (256usize << 20).to_string()).status().unwrap();
    assert!(status.success(), "{status}");
}

#[cfg(target_os = "linux")]
#[test]
#[ignore = "the child of c7_without_threads_it_says_so_and_ends_those_that_did_start"]
fn child_without_threads() {
    if !fullbore_testkit::is_child("child_without_threads") {
        return;
    }
    let captured = Arc::new(());
    let handler = Arc::clone(&captured);
    let built = Queue::builder().name("many").workers(64).build(move |_: &Job<u32>| {
        let _ = &handler;
    });
    assert!(matches!(built, Err(BuildError::Spawn(_))), "{built:?}");
    assert_eq!(Arc::strong_count(&captured), 1, "a worker still has the handler");
    // There is room again for some, so there was for some before.
    let few = Queue::builder().workers(2).build(|_: &Job<u32>| ()).unwrap();
    few.send(1).unwrap();
    few.close().unwrap();
}

#[derive(Debug)]
struct Refused(u32);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the server said {}", self.0)
    }
}

impl std::error::Error for Refused {}

#[test]
fn c8_errors_say_why() {
    // No `J: Debug` is needed anywhere.
    struct Plain;
    let clock = PausedClock::new();
    let (letters, dead) = mpsc::channel();
    let queue = Queue::builder()
        .workers(1)
        .clock(&clock)
        .dead_letter(move |letter| letters.send(letter).unwrap())
        .build(|_: &Job<Plain>| Verdict::dead(Refused(503)))
        .unwrap();
    queue.send(Plain).unwrap();
    queue.flush().unwrap();
    let letter: DeadLetter<Plain> = dead.try_recv().unwrap();
    assert_eq!(letter.failure.downcast_ref::<Refused>().unwrap().0, 503);
    assert!(format!("{letter:?}").contains("the server said 503") || format!("{letter:?}").contains("Refused(503)"));
    queue.send_after(Plain, HOUR).unwrap();
    let left = queue.close_within(Duration::ZERO).unwrap_err();
    assert_eq!(left.to_string(), "1 items undelivered, 0 in flight");
    let refused = queue.send(Plain).unwrap_err();
    assert!(refused.is_closed());
    assert_eq!(refused.to_string(), "item not accepted: closed");
    assert!(format!("{queue:?} {:?}", queue.producer()).contains("queue"));
}

#[test]
fn c10_idle_costs_nothing_and_one_timer_is_enough_for_all_delays() {
    let clock = PausedClock::new();
    let (done, results) = mpsc::channel();
    let queue = one(&clock).workers(4).build(move |job| done.send(**job)).unwrap();
    clock.wait_for_waiters(4);
    assert_eq!(clock.timers(), 0, "nothing there, nothing armed");
    for (job, delay) in [(10, 10), (5, 5), (20, 20), (1, 1)] {
        queue.send_after(job, delay * SECOND).unwrap();
        clock.wait_for_waiters(4);
        assert_eq!(clock.timers(), 1, "after the job of {delay} s");
    }
    let mut now = 0;
    for due in [1, 5, 10, 20] {
        clock.advance((due - now) * SECOND);
        now = due;
        assert_eq!(results.recv(), Ok(due));
        clock.wait_for_waiters(4);
        assert_eq!(clock.timers(), usize::from(due < 20), "after {due} s");
        queue.send(100).unwrap();
        assert_eq!(results.recv(), Ok(100));
        clock.wait_for_waiters(4);
        assert_eq!(clock.timers(), usize::from(due < 20), "after {due} s and a job in between");
    }
    assert!(results.try_recv().is_err());
}

#[cfg(feature = "tracing")]
#[test]
fn c11_what_goes_wrong_can_be_followed() {
    let events = fullbore_testkit::events::capture_everywhere();
    let clock = PausedClock::new();
    let queue = one(&clock)
        .name("followed")
        .capacity(1)
        .max_attempts(2)
        .overflow(Overflow::DropOldest)
        .build(|job| if **job == 13 { blow_up() } else { Verdict::Done })
        .unwrap();
    queue.send(13).unwrap();
    clock.wait_for_waiters(1);
    clock.advance(SECOND);
    queue.flush().unwrap();
    for _ in 0..3 {
        queue.send_after(1, HOUR).unwrap();
    }
    queue.close_within(Duration::ZERO).unwrap_err();
    let seen: Vec<_> = events().into_iter().filter(|line| line.contains("followed")).collect();
    let kinds =
        ["event=\"panic\"", "event=\"retry\"", "event=\"dead_letter\"", "event=\"drop\"", "event=\"abandoned\""];
    assert_eq!(seen.len(), kinds.len(), "rate-limited: {seen:?}");
    for (line, kind) in seen.iter().zip(kinds) {
        assert!(line.contains(kind), "{kind} in {seen:?}");
    }
    assert!(seen[2].contains("2 attempts: panicked: on purpose"), "{seen:?}");
}
