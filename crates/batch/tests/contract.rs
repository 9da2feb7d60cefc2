//! The rules of the house (C1-C11) for `fullbore-batch`. The names are the same in every crate.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use common::{Gate, NEVER, Refused, blow_up};
use fullbore_batch::{Batch, Batcher, CallError, Config, Outcomes, OwnThread};
use fullbore_core::{BuildError, Clock, EnvReader, Failure, OnDrop, Overflow, PausedClock, SendError, Shutdown, Sink};
use fullbore_metrics::{Station, StationKind};

#[test]
fn c1_every_way_out_is_counted() {
    let clock = PausedClock::new();
    let gate = Gate::new();
    let entry = gate.entry();
    let batcher = Batcher::builder()
        .max_items(2)
        .linger(NEVER)
        .capacity(4)
        .overflow(Overflow::DropOldest)
        .clock(&clock)
        .build(move |batch: Batch<u32>| {
            entry.pass(());
            batch.into_iter().map(|n| if n == 0 { Err("zero") } else { Ok(n) }).collect::<Vec<_>>()
        })
        .unwrap();
    batcher.send(0).unwrap();
    batcher.send(1).unwrap();
    gate.wait(); // both are in the process function
    let displaced = batcher.submit(2).unwrap();
    batcher.send(3).unwrap();
    batcher.send(4).unwrap(); // displaces 2
    assert!(matches!(displaced.wait(), Err(Failure::Dropped)));
    let left = batcher.close_within(Duration::ZERO).unwrap_err();
    assert_eq!((left.items, left.in_flight), (vec![3, 4], 2));
    assert!(batcher.send(5).unwrap_err().is_closed());
    let seen = batcher.station().snapshot();
    assert_eq!((seen.waiting(), seen.in_service()), (0, 2));
    gate.open(1);
    batcher.close().unwrap();
    let seen = batcher.station().snapshot();
    assert!(seen.balanced(), "{seen:?}");
    assert_eq!((seen.offered(), seen.refused, seen.arrivals), (6, 1, 5));
    assert_eq!((seen.served, seen.failed, seen.dropped, seen.returned), (1, 1, 1, 2));
    assert_eq!((seen.waiting(), seen.in_service()), (0, 0));
}

#[test]
fn c2_capacity_counts_what_waits_and_what_is_in_process() {
    let clock = PausedClock::new();
    let gate = Gate::new();
    let entry = gate.entry();
    let batcher = Batcher::builder()
        .max_items(2)
        .linger(NEVER)
        .capacity(3)
        .clock(&clock)
        .build(move |_: Batch<u32>| entry.pass(()))
        .unwrap();
    batcher.send(1).unwrap();
    batcher.send(2).unwrap();
    gate.wait();
    batcher.send(3).unwrap();
    assert!(batcher.try_send(4).unwrap_err().is_full());
    thread::scope(|scope| {
        // The default waits for room.
        let blocked = scope.spawn(|| batcher.send(4));
        clock.wait_for_waiters(1);
        gate.open(2);
        blocked.join().unwrap().unwrap();
    });
    batcher.close().unwrap();
    assert_eq!(batcher.station().snapshot().served, 4);
}

#[test]
fn c2_overflow_says_what_happens_when_it_is_full() {
    let full = |overflow: Overflow| {
        let dead = Arc::new(Mutex::new(Vec::new()));
        let hook = Arc::clone(&dead);
        let gate = Gate::new();
        let entry = gate.entry();
        let batcher = Batcher::builder()
            .max_items(1)
            .capacity(2)
            .overflow(overflow)
            .dead_letter(move |n, failure| hook.lock().unwrap().push((n, failure.to_string())))
            .build(move |_: Batch<u32>| entry.pass(()))
            .unwrap();
        batcher.send(1).unwrap();
        gate.wait();
        batcher.send(2).unwrap();
        let outcome = batcher.send(3);
        gate.open(3);
        batcher.close().unwrap();
        assert!(batcher.station().snapshot().balanced());
        (outcome, std::mem::take(&mut *dead.lock().unwrap()))
    };
    let (refused, dead) = full(Overflow::Reject);
    assert!(refused.unwrap_err().is_full() && dead.is_empty());
    let (refused, _) = full(Overflow::BlockFor(Duration::ZERO));
    assert!(refused.unwrap_err().is_timeout());
    let (accepted, dead) = full(Overflow::DropOldest);
    accepted.unwrap();
    assert_eq!(dead, [(2, Failure::Dropped.to_string())]);
}

#[test]
fn c2_with_everything_in_process_the_newcomer_is_the_oldest() {
    let gate = Gate::new();
    let entry = gate.entry();
    let batcher = Batcher::builder()
        .max_items(1)
        .capacity(1)
        .overflow(Overflow::DropOldest)
        .build(move |_: Batch<u32>| entry.pass(()))
        .unwrap();
    batcher.send(1).unwrap();
    gate.wait();
    let ticket = batcher.try_submit(2).unwrap();
    assert!(matches!(ticket.wait(), Err(Failure::Dropped)));
    gate.open(1);
}

#[test]
fn c3_every_wait_has_a_deadline() {
    let clock = PausedClock::new();
    let gate = Gate::new();
    let entry = gate.entry();
    let batcher =
        Batcher::builder().max_items(1).capacity(1).clock(&clock).build(move |_: Batch<u32>| entry.pass(())).unwrap();
    let ticket = batcher.submit(0).unwrap();
    gate.wait();
    let soon = clock.now() + Duration::from_secs(5);
    let timed_out = |error: SendError<u32>| error.is_timeout() && error.into_inner() == 7;
    let ticket = thread::scope(|scope| {
        let by_default = scope.spawn(|| batcher.send(7).unwrap_err());
        clock.wait_for_waiters(1);
        let send = scope.spawn(|| batcher.send_deadline(7, soon).unwrap_err());
        let sink = scope.spawn(|| Sink::send_deadline(&batcher, 7, Some(soon)).unwrap_err());
        let submit = scope.spawn(|| batcher.submit_deadline(7, soon).unwrap_err());
        let call = scope.spawn(|| batcher.call_deadline(7, soon).unwrap_err());
        let flush = scope.spawn(|| batcher.flush_within(Duration::from_secs(5)).unwrap_err());
        let wait = scope.spawn(|| ticket.wait_deadline(soon).unwrap_err());
        clock.wait_for_waiters(7);
        clock.advance(Duration::from_secs(5));
        assert!(timed_out(send.join().unwrap()));
        assert!(timed_out(sink.join().unwrap()));
        assert!(timed_out(submit.join().unwrap()));
        let call = call.join().unwrap();
        assert!(call.is_timeout() && call.into_inner() == Some(7), "not accepted: the item comes back");
        let flush = flush.join().unwrap();
        assert!(flush.is_timeout());
        assert_eq!((flush.waiting(), flush.in_flight()), (0, 1));
        let ticket = wait.join().unwrap();
        clock.advance(Duration::from_secs(25));
        assert!(timed_out(by_default.join().unwrap()));
        ticket
    });
    let ticket = ticket.try_take().unwrap_err();
    gate.open(2);
    ticket.wait().unwrap();
    // The place is free as soon as the result is there.
    batcher.try_send(8).unwrap();
    gate.wait();
    let seen = batcher.station().snapshot();
    assert_eq!((seen.refused, seen.arrivals), (5, 2));
}

#[test]
fn c3_a_call_that_was_accepted_times_out_without_its_item() {
    let clock = PausedClock::new();
    let batcher =
        Batcher::builder().linger(NEVER).eager_when_idle(false).clock(&clock).build(|_: Batch<u32>| ()).unwrap();
    thread::scope(|scope| {
        let deadline = clock.now() + Duration::from_secs(1);
        let call = scope.spawn(move || batcher.call_deadline(1, deadline).map_err(|error| (error, batcher)));
        clock.wait_for_waiters(2);
        clock.advance(Duration::from_secs(1));
        let (error, batcher) = call.join().unwrap().unwrap_err();
        assert!(error.is_timeout() && !error.is_refused() && error.into_inner().is_none());
        batcher.close().unwrap();
        assert_eq!(batcher.station().snapshot().served, 1, "it is processed all the same");
    });
}

#[test]
fn c3_too_far_away_means_never() {
    let clock = PausedClock::new();
    let batcher = Batcher::builder()
        .max_items(2)
        .linger(Duration::MAX)
        .overflow(Overflow::BlockFor(Duration::MAX))
        .on_drop(OnDrop::Drain(Duration::MAX))
        .clock(&clock)
        .build(|_: Batch<u32>| ())
        .unwrap();
    batcher.send(1).unwrap();
    clock.wait_for_waiters(1);
    clock.advance(Duration::from_secs(3600 * 24 * 365 * 100));
    assert_eq!(batcher.station().snapshot().begun, 0);
    batcher.send(2).unwrap();
    batcher.flush_within(Duration::MAX).unwrap();
    batcher.close_within(Duration::MAX).unwrap();
    assert_eq!(batcher.station().snapshot().served, 2);
}

#[test]
fn c4_a_panic_fails_its_batch_and_nothing_else() {
    let batcher = Batcher::builder()
        .max_items(1)
        .build(|batch: Batch<u32>| {
            if batch[0] == 13 {
                blow_up();
            }
            batch.into_iter().map(Ok::<_, Failure>).collect::<Vec<_>>()
        })
        .unwrap();
    let error = batcher.call(13).unwrap_err();
    assert!(error.failure().unwrap().is_panic(), "{error}");
    assert_eq!(batcher.call(14).unwrap(), 14, "the thread lives on");
    let seen = batcher.station().snapshot();
    assert_eq!((seen.served, seen.failed), (1, 1));
}

/// Panics where user code is least expected.
struct Grenade(Arc<AtomicUsize>);

impl Drop for Grenade {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
        blow_up();
    }
}

#[test]
fn c4_panicking_destructors_cost_no_other_item_its_result() {
    let drops = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&drops);
    let batcher = Batcher::builder()
        .max_items(3)
        .build(move |batch: Batch<u32>| {
            let too_many = batch[0];
            Outcomes::done((0..3 + too_many).map(|_| Grenade(Arc::clone(&counter))).collect())
        })
        .unwrap();
    drop(batcher.submit(0).unwrap());
    let wanted = batcher.submit(0).unwrap();
    batcher.send(0).unwrap();
    std::mem::forget(wanted.wait().unwrap());
    batcher.flush().unwrap();
    assert_eq!(drops.load(Ordering::SeqCst), 2, "the results that nobody wanted");
    for _ in 0..3 {
        batcher.send(2).unwrap();
    }
    batcher.flush().unwrap();
    assert_eq!(drops.load(Ordering::SeqCst), 2 + 5, "a wrong number of results");
    let seen = batcher.station().snapshot();
    assert_eq!((seen.served, seen.failed), (3, 3));
}

#[test]
fn c4_a_panicking_dead_letter_hook_costs_no_other_item_its_letter() {
    let (letters, dead) = mpsc::channel();
    let clock = PausedClock::new();
    let batcher = Batcher::builder()
        .linger(NEVER)
        .on_drop(OnDrop::Abandon)
        .clock(&clock)
        .dead_letter(move |n: u32, _| {
            letters.send(n).unwrap();
            blow_up();
        })
        .build(|_| ())
        .unwrap();
    batcher.send(1).unwrap();
    batcher.send(2).unwrap();
    drop(batcher);
    assert_eq!(dead.iter().collect::<Vec<_>>(), [1, 2]);
}

#[test]
fn c4_a_panicking_dead_letter_hook_goes_to_the_sender_and_leaves_everything_usable() {
    let gate = Gate::new();
    let entry = gate.entry();
    let batcher = Batcher::builder()
        .max_items(1)
        .capacity(2)
        .overflow(Overflow::DropOldest)
        .dead_letter(|_: u32, _| blow_up())
        .build(move |_: Batch<u32>| entry.pass(()))
        .unwrap();
    batcher.send(1).unwrap();
    gate.wait();
    let displaced = batcher.submit(2).unwrap();
    let caught = catch_unwind(AssertUnwindSafe(|| batcher.send(3)));
    assert!(caught.is_err(), "the caller's panic is resumed");
    assert!(matches!(displaced.wait(), Err(Failure::Dropped)));
    gate.open(2);
    batcher.close().unwrap();
    let seen = batcher.station().snapshot();
    assert_eq!((seen.served, seen.dropped), (2, 1));
}

#[test]
fn c5_flush_waits_for_what_was_before_it_and_ignores_linger() {
    let clock = PausedClock::new();
    let batcher = Batcher::builder().linger(NEVER).clock(&clock).build(|_: Batch<u32>| ()).unwrap();
    let tickets: Vec<_> = (0..3).map(|n| batcher.submit(n).unwrap()).collect();
    batcher.flush().unwrap();
    assert_eq!(batcher.station().snapshot().served, 3);
    assert!(tickets.into_iter().all(|ticket| ticket.is_done()));
    batcher.handle().flush().unwrap();
}

/// A result that can be held up on its way out.
struct Sticky(Arc<common::Entry<()>>);

impl Drop for Sticky {
    fn drop(&mut self) {
        self.0.pass(());
    }
}

#[test]
fn c5_who_has_a_result_finds_its_place_free_and_who_has_flushed_finds_every_result() {
    let gate = Gate::new();
    let entry = Arc::new(gate.entry());
    let batcher = Batcher::builder()
        .max_items(2)
        .capacity(2)
        .linger(NEVER)
        .build(move |batch: Batch<u32>| Outcomes::done(batch.iter().map(|_| Sticky(Arc::clone(&entry))).collect()))
        .unwrap();
    drop(batcher.submit(1).unwrap());
    let wanted = batcher.submit(2).unwrap();
    gate.wait(); // both are processed, and the first result is on its way to a ticket that nobody holds
    assert_eq!(batcher.station().snapshot().served, 2);
    assert!(batcher.flush_within(Duration::ZERO).is_err());
    batcher.try_send(3).unwrap();
    batcher.try_send(4).unwrap();
    gate.open(4);
    batcher.flush().unwrap();
    assert!(wanted.is_done());
}

#[test]
fn c5_close_is_idempotent_and_finishes_accepted_work() {
    let clock = PausedClock::new();
    let (done, results) = mpsc::channel();
    let batcher = Batcher::builder()
        .max_items(2)
        .linger(NEVER)
        .clock(&clock)
        .build(move |batch: Batch<u32>| done.send(batch.into_vec()))
        .unwrap();
    let handle = batcher.handle();
    for n in 0..5 {
        handle.send(n).unwrap();
    }
    batcher.close().unwrap();
    batcher.close().unwrap();
    batcher.close_within(Duration::ZERO).unwrap();
    assert!(batcher.is_closed() && handle.is_closed());
    // The process function is gone with the thread: the channel ends.
    assert_eq!(results.iter().collect::<Vec<_>>(), [vec![0, 1], vec![2, 3], vec![4]]);
    assert_eq!(handle.send(9).unwrap_err().into_inner(), 9);
    assert!(handle.call(9).unwrap_err().is_closed());
    drop(batcher);
    assert!(handle.submit(9).unwrap_err().is_closed());
}

#[test]
fn c5_close_wakes_blocked_producers_with_their_item() {
    let clock = PausedClock::new();
    let gate = Gate::new();
    let entry = gate.entry();
    let batcher =
        Batcher::builder().max_items(1).capacity(1).clock(&clock).build(move |_: Batch<u32>| entry.pass(())).unwrap();
    batcher.send(1).unwrap();
    gate.wait();
    thread::scope(|scope| {
        let send = scope.spawn(|| batcher.send(2).unwrap_err());
        let call = scope.spawn(|| batcher.call(3).unwrap_err());
        clock.wait_for_waiters(2);
        let left = batcher.close_within(Duration::ZERO).unwrap_err();
        assert_eq!((left.items.len(), left.in_flight), (0, 1));
        assert_eq!(left.abandoned_threads, ["fullbore-batch-batch-0"]);
        let send = send.join().unwrap();
        assert!(send.is_closed() && send.into_inner() == 2);
        let call = call.join().unwrap();
        assert!(call.is_closed() && call.is_refused() && call.into_inner() == Some(3));
    });
    gate.open(1);
    batcher.close().unwrap();
}

#[test]
fn c5_what_a_close_cannot_finish_in_time_comes_back() {
    let clock = PausedClock::new();
    let gate = Gate::new();
    let entry = gate.entry();
    let batcher = Batcher::builder()
        .name("slow")
        .max_items(2)
        .linger(NEVER)
        .clock(&clock)
        .build(move |batch: Batch<u32>| {
            entry.pass(());
            Ok::<_, Failure>(batch.into_vec())
        })
        .unwrap();
    let begun = batcher.submit(1).unwrap();
    batcher.send(2).unwrap();
    gate.wait();
    let waiting = batcher.submit(3).unwrap();
    thread::scope(|scope| {
        let close = scope.spawn(|| batcher.close_within(Duration::from_secs(5)));
        clock.wait_for_waiters(1);
        clock.advance(Duration::from_secs(5));
        let left = close.join().unwrap().unwrap_err();
        assert_eq!((left.items, left.in_flight), (vec![3], 2));
        assert_eq!(left.abandoned_threads, ["fullbore-batch-slow-0"]);
    });
    assert!(matches!(waiting.wait(), Err(Failure::Closed)));
    gate.open(1);
    assert_eq!(begun.wait().unwrap(), 1, "a late result still finds its ticket");
    batcher.close().unwrap();
    assert!(batcher.station().snapshot().balanced());
}

#[test]
fn c5_an_idle_batcher_closes_cleanly_without_time() {
    let batcher = Batcher::builder().build(|_: Batch<u32>| ()).unwrap();
    batcher.close_within(Duration::ZERO).unwrap();
    let clock = PausedClock::new();
    let batcher = Batcher::builder().linger(NEVER).clock(&clock).build(|_: Batch<u32>| ()).unwrap();
    batcher.send(1).unwrap();
    let left = batcher.close_within(Duration::ZERO).unwrap_err();
    assert_eq!((left.items, left.in_flight, left.abandoned_threads.len()), (vec![1], 0, 0));
}

#[test]
fn c5_shutdown_closes_it_and_dead_letters_what_is_left() {
    let clock = PausedClock::new();
    let (letters, dead) = mpsc::channel();
    let gate = Gate::new();
    let entry = gate.entry();
    let batcher = Batcher::builder()
        .name("part")
        .max_items(1)
        .clock(&clock)
        .dead_letter(move |n, failure| letters.send((n, failure)).unwrap())
        .build(move |_: Batch<u32>| entry.pass(()))
        .unwrap();
    let shutdown = Shutdown::with_clock(Clock::from(&clock));
    shutdown.register(batcher.closer());
    batcher.send(1).unwrap();
    gate.wait();
    let ticket = batcher.submit(2).unwrap();
    let report = shutdown.close_within(Duration::ZERO);
    let (name, left) = &report.parts()[0];
    assert_eq!((name.as_str(), left.items, left.in_flight, left.abandoned_threads.len()), ("part", 1, 1, 1));
    let (n, failure) = dead.recv().unwrap();
    assert!(n == 2 && matches!(failure, Failure::Closed));
    assert!(matches!(ticket.wait(), Err(Failure::Closed)));
    gate.open(1);
    batcher.close().unwrap();
    let seen = batcher.station().snapshot();
    assert_eq!((seen.served, seen.dropped, seen.returned), (1, 1, 0));
}

#[test]
fn c5_the_process_function_cannot_wait_for_its_own_batcher() {
    type Seat = Arc<Mutex<Option<Arc<Batcher<u32, ()>>>>>;
    type Calls = Box<dyn FnOnce(&Batcher<u32, ()>) + Send>;
    let clock = PausedClock::new();
    let seat: Seat = Arc::default();
    let calls: Arc<Mutex<Option<Calls>>> = Arc::default();
    let (seat_inside, calls_inside) = (Arc::clone(&seat), Arc::clone(&calls));
    let (done, finished) = mpsc::channel();
    let batcher = Batcher::builder()
        .max_items(2)
        .capacity(2)
        .linger(NEVER)
        .overflow(Overflow::Block)
        .clock(&clock)
        .build(move |_: Batch<u32>| {
            let calls = calls_inside.lock().unwrap().take();
            let batcher = seat_inside.lock().unwrap().take();
            if let (Some(calls), Some(batcher)) = (calls, batcher) {
                calls(&batcher);
                done.send(()).unwrap();
            }
        })
        .unwrap();
    let batcher = Arc::new(batcher);
    *seat.lock().unwrap() = Some(Arc::clone(&batcher));
    let later = clock.now() + Duration::from_secs(9);
    *calls.lock().unwrap() = Some(Box::new(move |batcher| {
        let error = batcher.call(1).unwrap_err();
        assert!(error.is_own_thread() && error.is_refused(), "{error}");
        assert_eq!(error.into_inner(), Some(1));
        assert!(batcher.flush().unwrap_err().is_own_thread());
        assert!(batcher.flush_within(Duration::from_secs(1)).unwrap_err().is_own_thread());
        // There is one place left; then a send that would block is refused.
        let ticket = batcher.submit(2).unwrap();
        assert!(batcher.send(3).unwrap_err().is_full());
        let ticket = ticket.wait_deadline(later).unwrap_err();
        let failure = ticket.wait().unwrap_err();
        assert!(failure.downcast_ref::<OwnThread>().is_some(), "{failure}");
        let left = batcher.close().unwrap_err();
        assert_eq!((left.items, left.in_flight), (vec![2], 1));
        assert!(left.abandoned_threads.is_empty());
    }));
    batcher.send(0).unwrap();
    batcher.flush().unwrap();
    finished.try_recv().expect("every assertion inside held");
    batcher.close().unwrap();
    let seen = batcher.station().snapshot();
    assert_eq!((seen.served, seen.returned, seen.refused), (1, 1, 2));
}

#[test]
fn c6_there_is_always_a_station() {
    let clock = PausedClock::new();
    let inside = clock.clone();
    let batcher = Batcher::builder()
        .name("named")
        .max_items(4)
        .capacity(40)
        .linger(Duration::from_millis(10))
        .clock(&clock)
        .build(move |_: Batch<u32>| inside.advance(Duration::from_millis(7)))
        .unwrap();
    let next = Station::new("next");
    batcher.feeds(&next);
    batcher.send(1).unwrap();
    clock.wait_for_waiters(1);
    clock.advance(Duration::from_millis(10));
    batcher.flush().unwrap();
    let seen = batcher.handle().station().snapshot();
    assert_eq!((seen.name(), seen.kind(), seen.parallelism(), seen.capacity()), ("named", StationKind::Batch, 1, 40));
    assert_eq!(seen.feeds(), [next.id()]);
    assert_eq!((seen.wait().count(), seen.wait().max()), (1, Some(Duration::from_millis(10))));
    assert_eq!((seen.service().count(), seen.service().max()), (1, Some(Duration::from_millis(7))));
    assert_eq!(seen.busy(), Duration::from_millis(7));
    for n in 0..4 {
        batcher.send(n).unwrap();
    }
    batcher.flush().unwrap();
    let seen = batcher.station().snapshot();
    assert_eq!(seen.service().count(), 2, "once for each batch");
    assert!((2..=5).contains(&seen.wait().count()), "the oldest of each batch, and others by chance");
}

#[test]
fn c7_nonsense_is_refused_by_name() {
    let field = |error: BuildError| error.field().map(str::to_owned);
    let build = |builder: fullbore_batch::BatcherBuilder<u32>| builder.build(|_| ()).unwrap_err();
    assert_eq!(field(build(Batcher::builder().max_items(0))).as_deref(), Some("max_items"));
    let error = build(Batcher::builder().max_items(10).capacity(9));
    assert_eq!(error.to_string(), "capacity = 9 is not usable: expected at least max_items, which is 10");
    assert_eq!(field(build(Batcher::builder().capacity(0))).as_deref(), Some("capacity"));
    assert_eq!(field(build(Batcher::builder().name("a\0b"))).as_deref(), Some("name"));
    // Absurd, but not nonsense.
    let huge = Batcher::builder().max_items(usize::MAX).build(|_: Batch<u32>| ()).unwrap();
    huge.send(1).unwrap();
    huge.close().unwrap();

    let env = |name: &str, value: &str| {
        Config::read(EnvReader::from_vars("APP_", [(name.to_owned().into(), value.to_owned().into())]))
    };
    assert_eq!(env("APP_MAX_ITEMS", "7").unwrap().max_items, 7);
    assert_eq!(env("APP_LINGER", "250ms").unwrap().linger, Duration::from_millis(250));
    assert_eq!(env("APP_CAPACITY", "900").unwrap().capacity, Some(900));
    assert_eq!(env("APP_OVERFLOW", "drop_oldest").unwrap().overflow, Overflow::DropOldest);
    assert_eq!(env("APP_ON_DROP", "abandon").unwrap(), Config { on_drop: OnDrop::Abandon, ..Config::default() });
    assert_eq!(env("APP_CAPACITY", "many").unwrap_err().field(), Some("APP_CAPACITY"));
    assert_eq!(env("APP_LINGERS", "7").unwrap_err().field(), Some("APP_LINGERS"));
}

#[cfg(feature = "serde")]
#[test]
fn c7_a_file_is_read_and_unknown_fields_are_refused() {
    let text = r#"{"max_items": 5, "linger": "1m 30s", "overflow": "reject", "on_drop": "2s"}"#;
    let config: Config = serde_json::from_str(text).unwrap();
    assert_eq!((config.max_items, config.linger, config.capacity), (5, Duration::from_secs(90), None));
    assert_eq!((config.overflow, config.on_drop), (Overflow::Reject, OnDrop::Drain(Duration::from_secs(2))));
    let again: Config = serde_json::from_str(&serde_json::to_string(&config).unwrap()).unwrap();
    assert_eq!(again, config);
    assert!(serde_json::from_str::<Config>(r#"{"max_item": 5}"#).unwrap_err().to_string().contains("max_item"));
}

#[test]
fn c8_errors_say_why() {
    let batcher = Batcher::builder().max_items(1).build(|_: Batch<u32>| Err::<(), _>(Refused(503))).unwrap();
    let error = batcher.call(1).unwrap_err();
    assert_eq!(error.to_string(), "the server said 503");
    assert_eq!(error.failure().unwrap().downcast_ref::<Refused>().unwrap().0, 503);
    assert!(!error.is_refused() && !error.is_closed() && !error.is_full() && !error.is_timeout());
    batcher.close().unwrap();
    let error = batcher.call(2).unwrap_err();
    assert_eq!(error.to_string(), "item not accepted: closed");

    // No `T: Debug` is needed for any of them.
    struct Plain;
    let plain = Batcher::builder().build(|_: Batch<Plain>| ()).unwrap();
    plain.close().unwrap();
    let error: CallError<Plain> = plain.call(Plain).unwrap_err();
    assert_eq!(format!("{error:?}"), "Refused(Closed)");
    assert!(format!("{plain:?} {:?}", plain.handle()).contains("batch"));
}

#[test]
fn c8_a_wrong_number_of_results_fails_the_whole_batch() {
    fn expect<R: Send + std::fmt::Debug + 'static>(batcher: &Batcher<u32, R>, results: u32) {
        let tickets = [batcher.submit(results).unwrap(), batcher.submit(results).unwrap()];
        for ticket in tickets {
            let failure = ticket.wait().unwrap_err();
            assert!(matches!(failure, Failure::Mismatch { expected: 2, got } if got == results as usize), "{failure}");
        }
        assert_eq!(batcher.station().snapshot().served, 0);
    }
    let pairs = || Batcher::builder().max_items(2).linger(NEVER);
    let all = pairs().build(|batch: Batch<u32>| Ok::<Vec<u32>, Refused>((0..batch[0]).collect())).unwrap();
    let each = pairs().build(|batch: Batch<u32>| (0..batch[0]).map(Ok::<u32, Refused>).collect::<Vec<_>>()).unwrap();
    for results in [0, 1, 3] {
        expect(&all, results);
        expect(&each, results);
    }
    assert_eq!((all.station().snapshot().failed, each.station().snapshot().failed), (6, 6));
}

#[test]
fn c9_the_first_in_line_is_handed_the_place_when_it_waited_too_long() {
    let clock = PausedClock::new();
    let gate = Gate::new();
    let entry = gate.entry();
    let batcher =
        Batcher::builder().max_items(1).capacity(1).clock(&clock).build(move |_: Batch<u32>| entry.pass(())).unwrap();
    let first = batcher.submit(1).unwrap();
    gate.wait();
    thread::scope(|scope| {
        let waiter = scope.spawn(|| batcher.submit(2).unwrap());
        clock.wait_for_waiters(1);
        clock.advance(fullbore_core::FAIR_AFTER);
        gate.open(1);
        first.wait().unwrap();
        // Nobody can be faster: the place never became free. (It may be in the process function by now.)
        assert!(batcher.try_send(3).unwrap_err().is_full());
        let second = waiter.join().unwrap();
        gate.wait();
        gate.open(1);
        second.wait().unwrap();
    });
}

#[test]
fn c10_idle_costs_nothing() {
    let clock = PausedClock::new();
    let batcher = Batcher::builder()
        .max_items(2)
        .linger(Duration::from_millis(10))
        .clock(&clock)
        .build(|_: Batch<u32>| ())
        .unwrap();
    clock.wait_for_waiters(1);
    assert_eq!(clock.timers(), 0, "nothing there, nothing armed");
    batcher.send(1).unwrap();
    clock.wait_for_waiters(1);
    assert_eq!(clock.timers(), 1, "the linger of the first item");
    clock.advance(Duration::from_millis(10));
    clock.wait_for_waiters(1);
    assert_eq!(batcher.station().snapshot().served, 1);
    assert_eq!(clock.timers(), 0, "disarmed when empty");
    batcher.send(1).unwrap();
    batcher.send(2).unwrap();
    clock.wait_for_waiters(1);
    assert_eq!(batcher.station().snapshot().served, 3);
    assert_eq!(clock.timers(), 0, "disarmed by a full batch");
}

#[cfg(feature = "tracing")]
#[test]
fn c11_displaced_items_can_be_followed() {
    let gate = Gate::new();
    let entry = gate.entry();
    let batcher = Batcher::builder()
        .name("followed")
        .max_items(1)
        .capacity(1)
        .overflow(Overflow::DropOldest)
        .build(move |_: Batch<u32>| entry.pass(()))
        .unwrap();
    batcher.send(0).unwrap();
    gate.wait();
    let events = fullbore_testkit::events::capture(|| {
        for n in 0..3 {
            batcher.send(n).unwrap();
        }
        batcher.close_within(Duration::ZERO).unwrap_err();
    });
    assert_eq!(events.len(), 2, "rate-limited: {events:?}");
    assert!(events[0].contains("followed") && events[0].contains("drop"), "{events:?}");
    assert!(events[1].contains("followed") && events[1].contains("abandoned"), "{events:?}");
    gate.open(1);
}

#[cfg(feature = "tracing")]
#[test]
fn c11_a_panic_can_be_followed() {
    let events = fullbore_testkit::events::capture_everywhere();
    let batcher = Batcher::builder().name("fragile").max_items(1).build(|_: Batch<u32>| -> () { blow_up() }).unwrap();
    assert!(batcher.call(1).unwrap_err().failure().unwrap().is_panic());
    let seen: Vec<_> = events().into_iter().filter(|line| line.contains("fragile")).collect();
    assert_eq!(seen.len(), 1, "{seen:?}");
    assert!(seen[0].contains("panicked: on purpose"), "{seen:?}");
}
