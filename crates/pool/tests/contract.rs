//! The rules of the house (C1-C11) for `fullbore-pool`. The names are the same in every crate.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use fullbore_core::{BuildError, EnvReader, FAIR_AFTER, PausedClock, Shutdown};
use fullbore_pool::{Background, Config, ConnectError, KeyedPool, Nested, OnPanic, Pool, QueueMode, WhileDown};
use support::{Db, Down, Fake, FakeKeyed, LONG, advance, panic_on_purpose, pool, until};

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn c1_connections_are_conserved_under_panics_errors_timeouts_and_close() {
    let db = Db::new();
    db.on_connect(|counted, _| match counted.serial % 11 {
        0 => panic_on_purpose(),
        1 => Err(Down),
        _ => Ok(()),
    });
    let pool = Pool::builder(Fake(Arc::clone(&db)))
        .max_size(3)
        .get_timeout(Duration::from_millis(1))
        .backoff(Duration::from_nanos(1), Duration::from_micros(50))
        .build()
        .unwrap();
    thread::scope(|scope| {
        for n in 0..64_usize {
            let pool = &pool;
            scope.spawn(move || {
                for round in 0..50_usize {
                    let work = |counted: &mut support::Counted| {
                        thread::yield_now();
                        counted.broken = (n + round) % 5 == 0;
                        if (n + round) % 7 == 0 {
                            panic_on_purpose();
                        }
                    };
                    let _ = catch_unwind(AssertUnwindSafe(|| pool.with(work)));
                }
                if n == 63 {
                    pool.close();
                }
            });
        }
    });
    let seen = pool.station().snapshot();
    assert!(seen.balanced(), "{seen:?}");
    assert_eq!((seen.waiting(), seen.in_service()), (0, 0), "{seen:?}");
    assert_eq!(seen.offered(), 64 * 50);
    // What was being made when it was closed.
    pool.close_within(LONG).unwrap();
    let state = pool.status();
    assert_eq!((state.size, state.available, state.waiting, db.live()), (0, 0, 0, 0));
    assert!(db.most() <= 3 && seen.served > 0, "{seen:?}");
}

#[test]
fn c1_every_way_out_is_counted() {
    let clock = PausedClock::new();
    let db = Db::new();
    let pool = pool(&db, &clock, 1).build().unwrap();
    let counts = || {
        let seen = pool.station().snapshot();
        assert!(seen.balanced(), "{seen:?}");
        (seen.served, seen.failed, seen.returned, seen.refused, seen.in_service())
    };
    let held = pool.get().unwrap();
    assert_eq!(counts(), (0, 0, 0, 0, 1));
    assert!(pool.try_get().is_err());
    assert_eq!(counts(), (0, 0, 0, 1, 1), "refused at the door");
    assert!(pool.get_deadline(clock.now()).is_err());
    assert_eq!(counts(), (0, 0, 1, 1, 1), "came, and went without");
    drop(held);
    assert_eq!(counts(), (1, 0, 1, 1, 0));
    pool.get().unwrap().discard();
    assert_eq!(counts(), (2, 0, 1, 1, 0));
    drop(pool.get().unwrap().detach());
    assert_eq!(counts(), (3, 0, 1, 1, 0));
    db.on_connect(|_, _| Err(Down));
    assert!(pool.get().unwrap_err().is_connect());
    assert_eq!(counts(), (3, 0, 2, 1, 0), "waited for a connection that could not be made");
    assert!(pool.get().unwrap_err().is_connect());
    assert_eq!(counts(), (3, 0, 2, 2, 0), "told at the door that none can be made");
    clock.advance(SECOND);
    db.on_connect(|_, _| panic_on_purpose());
    assert!(pool.get().unwrap_err().is_connect());
    assert_eq!(counts(), (3, 0, 3, 2, 0));
    clock.advance(SECOND);
    db.on_connect(|_, _| Ok(()));
    drop(pool.get().unwrap());
    clock.advance(SECOND);
    db.on_validate(|_, _| panic_on_purpose());
    assert!(catch_unwind(AssertUnwindSafe(|| pool.get())).is_err());
    assert_eq!(counts(), (4, 1, 3, 2, 0));
    drop(pool.get().unwrap());
    clock.advance(SECOND);
    db.on_validate(|_, _| Err(Down));
    drop(pool.get().unwrap());
    assert_eq!(counts(), (6, 1, 3, 2, 0), "one call, although the first connection was not good");
    pool.close();
    assert!(pool.get().is_err());
    assert_eq!(counts(), (6, 1, 3, 3, 0));
}

#[test]
fn c2_never_more_connections_than_max_size() {
    let clock = PausedClock::new();
    let db = Db::new();
    let pool = pool(&db, &clock, 2).build().unwrap();
    let held = [pool.get().unwrap(), pool.get().unwrap()];
    assert!(pool.try_get().unwrap_err().is_full());
    assert!(pool.get_deadline(clock.now()).unwrap_err().is_timeout());
    assert_eq!((pool.status().size, db.live()), (2, 2));
    drop(held);
    assert_eq!((pool.status().size, pool.status().available, db.live()), (2, 2, 2));
    assert_eq!((db.most(), db.connects()), (2, 2));
}

#[test]
fn c2_a_place_is_taken_until_its_connection_is_closed() {
    let clock = PausedClock::new();
    let db = Db::new();
    let pool =
        pool(&db, &clock, 1).max_lifetime(SECOND * 10).lifetime_jitter(0.0).idle_timeout(SECOND).build().unwrap();
    let pool = Arc::new(pool);
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (inside, log) = (Arc::downgrade(&pool), Arc::clone(&seen));
    db.on_close(move |_, _| {
        let pool = inside.upgrade().unwrap();
        log.lock().unwrap().push((pool.status().size, pool.try_get().is_err()));
    });
    // Too old when it comes back.
    let held = pool.get().unwrap();
    clock.advance(SECOND * 10);
    drop(held);
    assert_eq!((db.closes(), pool.status().size), (1, 0));
    // Idle for too long.
    drop(pool.get().unwrap());
    until(|| clock.timers() == 1);
    clock.advance(SECOND);
    until(|| pool.status().size == 0);
    // Given up by its holder, and at the close.
    pool.get().unwrap().discard();
    drop(pool.get().unwrap());
    pool.close();
    assert_eq!(*seen.lock().unwrap(), [(1, true); 4], "closed in its place, which nobody else has meanwhile");
    assert_eq!((pool.status().size, db.connects()), (0, 4));
}

#[test]
fn c3_every_wait_has_a_deadline() {
    let clock = PausedClock::new();
    let db = Db::new();
    let pool = pool(&db, &clock, 1).build().unwrap();
    let held = pool.get().unwrap();
    assert!(pool.try_get().unwrap_err().is_full());
    assert!(pool.get_deadline(clock.now()).unwrap_err().is_timeout());
    assert!(pool.get_deadline(clock.now() - SECOND).unwrap_err().is_timeout(), "in the past");
    thread::scope(|scope| {
        let by_default = scope.spawn(|| pool.get().map(drop));
        clock.wait_for_waiters(1);
        let by_deadline = scope.spawn(|| pool.get_deadline(clock.now() + SECOND * 5).map(drop));
        clock.wait_for_waiters(2);
        clock.advance(SECOND * 5);
        assert!(by_deadline.join().unwrap().unwrap_err().is_timeout());
        clock.advance(SECOND * 25);
        assert!(by_default.join().unwrap().unwrap_err().is_timeout());
    });
    drop(held);
}

#[test]
fn c3_too_far_to_represent_means_never() {
    let db = Db::new();
    let budgets = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&budgets);
    db.on_connect(move |_, budget| {
        log.lock().unwrap().push(budget);
        Ok(())
    });
    let pool = Pool::builder(Fake(Arc::clone(&db)))
        .max_size(usize::MAX)
        .get_timeout(Duration::MAX)
        .connect_timeout(Duration::MAX)
        .backoff(Duration::MAX, Duration::MAX)
        .validate_after(Duration::MAX)
        .validate_timeout(Duration::MAX)
        .keepalive(Duration::MAX)
        .idle_timeout(Duration::MAX)
        .max_lifetime(Duration::MAX)
        .reserve_size(usize::MAX)
        .reserve_after(Duration::MAX)
        .leak_after(Duration::MAX)
        .build()
        .unwrap();
    drop([pool.get().unwrap(), pool.get().unwrap()]);
    drop(pool.try_get().unwrap());
    assert_eq!(*budgets.lock().unwrap(), [Duration::MAX; 2]);
    assert_eq!((pool.status().size, pool.status().available), (2, 2));
    pool.close_within(Duration::MAX).unwrap();
}

#[test]
fn c3_the_manager_is_told_what_is_left() {
    let clock = PausedClock::new();
    let db = Db::new();
    let budgets = Arc::new(Mutex::new(Vec::new()));
    for (name, hook) in [("connect", &db.on_connect), ("validate", &db.on_validate)] {
        let log = Arc::clone(&budgets);
        *hook.lock().unwrap() = Arc::new(move |_, budget| {
            log.lock().unwrap().push((name, budget));
            Err(Down)
        });
    }
    let pool = pool(&db, &clock, 1)
        .get_timeout(SECOND * 30)
        .connect_timeout(SECOND * 7)
        .validate_after(Duration::ZERO)
        .validate_timeout(SECOND * 25)
        .build()
        .unwrap();
    // Whoever waits, the connection is everybody's.
    assert!(pool.get_deadline(clock.now() + SECOND).unwrap_err().is_connect());
    clock.advance(SECOND);
    db.on_connect(|_, _| Ok(()));
    let held = pool.get().unwrap();
    thread::scope(|scope| {
        let waiter = scope.spawn(|| pool.get().map(drop));
        clock.wait_for_waiters(1);
        clock.advance(SECOND * 10);
        // It validates what it gets, in vain, and waits for a new one.
        drop(held);
        waiter.join().unwrap().unwrap();
    });
    // Who has plenty of time does not wait for one check all of it.
    drop(pool.get().unwrap());
    let expected = [("connect", SECOND * 7), ("validate", SECOND * 20), ("validate", SECOND * 25)];
    assert_eq!(*budgets.lock().unwrap(), expected);
}

#[test]
fn c3_waiters_are_released_while_a_connect_is_stuck() {
    let clock = PausedClock::new();
    let db = Db::new();
    let gate = db.stop_in_connect();
    let pool = pool(&db, &clock, 1).connect_timeout(SECOND * 60).build().unwrap();
    thread::scope(|scope| {
        let first = scope.spawn(|| pool.get().map(drop));
        gate.wait();
        assert!(pool.try_get().unwrap_err().is_full());
        let second = scope.spawn(|| pool.get_deadline(clock.now() + SECOND).map(drop));
        clock.wait_for_waiters(2);
        clock.advance(SECOND);
        assert!(second.join().unwrap().unwrap_err().is_timeout());
        clock.advance(SECOND * 29);
        assert!(first.join().unwrap().unwrap_err().is_timeout());
    });
    assert_eq!((pool.status().size, pool.status().connecting), (1, 1));
    gate.release();
    until(|| pool.status().available == 1);
    assert_eq!(pool.get().unwrap().serial, 1, "what came too late is not lost");
}

#[test]
fn c3_who_is_out_of_time_costs_nobody_a_connection() {
    let clock = PausedClock::new();
    let db = Db::new();
    let pool = KeyedPool::builder(FakeKeyed::new(&db)).max_size(1).clock(&clock).build().unwrap();
    let first = pool.get(&'a').unwrap().id();
    let too_late = |key| pool.get_deadline(&key, clock.now() - SECOND);
    assert_eq!(too_late('a').unwrap().id(), first, "what needs no time is given");
    assert!(too_late('b').unwrap_err().is_timeout(), "no time to connect, so nothing is evicted");
    clock.advance(SECOND);
    assert!(too_late('a').unwrap_err().is_timeout(), "no time to validate");
    assert_eq!((pool.status().available, db.closes(), db.connects()), (1, 0, 1));
    assert_eq!(pool.get(&'a').unwrap().id(), first, "still there");
    // Nor is a free place lost.
    pool.get(&'a').unwrap().discard();
    assert!(too_late('b').unwrap_err().is_timeout());
    assert_eq!(pool.status().size, 0);
}

#[test]
fn c3_a_check_that_took_all_the_time_leaves_none_to_connect() {
    let clock = PausedClock::new();
    let db = Db::new();
    let pool = pool(&db, &clock, 1).get_timeout(SECOND * 4).build().unwrap();
    drop(pool.get().unwrap());
    let slow = clock.clone();
    db.on_validate(move |_, budget| {
        slow.advance(budget);
        Err(Down)
    });
    clock.advance(SECOND);
    assert!(pool.get().unwrap_err().is_timeout());
    assert_eq!((db.connects(), pool.status().size, db.live()), (1, 0, 0));
}

#[test]
fn c4_panics_of_the_manager_lose_nothing() {
    let clock = PausedClock::new();
    let db = Db::new();
    let pool = pool(&db, &clock, 1).build().unwrap();
    // connect: on a thread of ours, so those who wait are told, and the thread lives on.
    db.on_connect(|_, _| panic_on_purpose());
    let told = pool.get().unwrap_err();
    assert!(told.is_connect() && told.connect_error().is_none(), "{told}");
    assert!(matches!(told.into_connect_error(), Ok(ConnectError::Panicked(_))));
    db.on_connect(|_, _| Ok(()));
    assert_eq!((pool.status().size, db.live()), (0, 0));
    clock.advance(SECOND);
    // is_broken: the connection is not trusted any more; whoever drops a guard does not see it.
    db.on_is_broken(|_, _| panic_on_purpose());
    drop(pool.get().unwrap());
    db.on_is_broken(|_, _| false);
    assert_eq!((pool.status().size, db.live()), (0, 0));
    // validate: goes on; the connection is closed.
    drop(pool.get().unwrap());
    clock.advance(SECOND);
    db.on_validate(|_, _| panic_on_purpose());
    let closes = db.closes();
    assert!(catch_unwind(AssertUnwindSafe(|| pool.get())).is_err());
    assert_eq!((pool.status().size, db.live(), db.closes() - closes), (0, 0, 1));
    db.on_validate(|_, _| Ok(()));
    // close: contained, wherever it happens.
    db.on_close(|_, _| panic_on_purpose());
    pool.get().unwrap().discard();
    drop(pool.get().unwrap());
    pool.close();
    assert_eq!((pool.status().size, db.live()), (0, 0));
    assert!(pool.station().snapshot().balanced());
}

#[test]
fn c4_a_holders_panic_closes_the_connection_and_goes_on() {
    let clock = PausedClock::new();
    let db = Db::new();
    let pool = pool(&db, &clock, 1).build().unwrap();
    // Even when closing it panics as well.
    db.on_close(|_, _| panic_on_purpose());
    assert!(catch_unwind(AssertUnwindSafe(|| pool.with(|_| panic_on_purpose()))).is_err());
    assert_eq!((db.closes(), db.live(), pool.status().size), (1, 0, 0));
    assert_eq!(pool.with(|_| 1).unwrap(), 1);
    assert_eq!(pool.station().snapshot().failed, 1);
}

#[test]
fn c4_the_manager_may_use_the_pool() {
    // Each of these would be a deadlock under the pool's lock.
    let clock = PausedClock::new();
    let db = Db::new();
    let pool = Arc::new(pool(&db, &clock, 1).validate_after(Duration::ZERO).build().unwrap());
    let calls = Arc::new(Mutex::new(Vec::new()));
    let inside = |name: &'static str| {
        let (pool, calls) = (Arc::downgrade(&pool), Arc::clone(&calls));
        move || {
            calls.lock().unwrap().push((name, pool.upgrade().unwrap().status().size));
        }
    };
    let (connect, validate, is_broken, close) =
        (inside("connect"), inside("validate"), inside("is_broken"), inside("close"));
    db.on_connect(move |_, _| {
        connect();
        Ok(())
    });
    db.on_validate(move |_, _| {
        validate();
        Ok(())
    });
    db.on_is_broken(move |_, _| {
        is_broken();
        false
    });
    db.on_close(move |_, _| close());
    drop(pool.get().unwrap());
    drop(pool.get().unwrap());
    pool.close();
    let expected = ["connect", "is_broken", "validate", "is_broken", "close"].map(|name| (name, 1));
    assert_eq!(*calls.lock().unwrap(), expected);
}

#[test]
fn c5_close_wakes_those_who_wait_and_closes_the_idle() {
    let clock = PausedClock::new();
    let db = Db::new();
    let pool = pool(&db, &clock, 2).build().unwrap();
    let held = pool.get().unwrap();
    drop(pool.get().unwrap());
    let other = pool.get().unwrap();
    thread::scope(|scope| {
        let waiter = scope.spawn(|| pool.get().map(drop));
        clock.wait_for_waiters(1);
        drop(other);
        waiter.join().unwrap().unwrap();
        let other = pool.get().unwrap();
        let waiters = [0; 3].map(|_| scope.spawn(|| pool.get().map(drop)));
        clock.wait_for_waiters(3);
        pool.close();
        for waiter in waiters {
            assert!(waiter.join().unwrap().unwrap_err().is_closed());
        }
        drop(other);
    });
    assert_eq!(db.live(), 1);
    pool.close();
    drop(held);
    assert_eq!((db.live(), db.closes(), pool.status().size), (0, 2, 0));
    assert!(pool.get().unwrap_err().is_closed());
    assert!(pool.try_get().unwrap_err().is_closed());
}

#[test]
fn c5_close_within_waits_for_those_that_are_out() {
    let clock = PausedClock::new();
    let db = Db::new();
    let pool = pool(&db, &clock, 2).build().unwrap();
    let held = [pool.get().unwrap(), pool.get().unwrap()];
    let left = pool.close_within(Duration::ZERO).unwrap_err();
    assert_eq!((left.in_flight, left.items.len()), (2, 0));
    let [first, second] = held;
    thread::scope(|scope| {
        let in_time = scope.spawn(|| pool.close_within(SECOND));
        clock.wait_for_waiters(1);
        drop(first);
        clock.wait_for_waiters(1);
        clock.advance(SECOND);
        assert_eq!(in_time.join().unwrap().unwrap_err().in_flight, 1);
        let patient = scope.spawn(|| pool.close_within(Duration::MAX));
        clock.wait_for_waiters(1);
        drop(second.detach());
        patient.join().unwrap().unwrap();
    });
    pool.close_within(Duration::ZERO).unwrap();
}

#[test]
fn c5_the_limit_of_close_within_covers_the_closing_itself() {
    let clock = PausedClock::new();
    let db = Db::new();
    let pool = pool(&db, &clock, 2).build().unwrap();
    let held = pool.get().unwrap();
    drop(pool.get().unwrap());
    let slow = clock.clone();
    db.on_close(move |_, _| slow.advance(SECOND));
    assert_eq!(pool.close_within(SECOND).unwrap_err().in_flight, 1);
    drop(held);
}

#[test]
fn c5_close_within_waits_for_what_another_close_is_closing() {
    let clock = PausedClock::new();
    let db = Db::new();
    let pool = pool(&db, &clock, 1).build().unwrap();
    drop(pool.get().unwrap());
    let (entered, is_closing) = mpsc::channel();
    let (release, released) = mpsc::channel::<()>();
    let released = Mutex::new(released);
    db.on_close(move |_, _| {
        entered.send(()).unwrap();
        released.lock().unwrap().recv().unwrap();
    });
    thread::scope(|scope| {
        scope.spawn(|| pool.close());
        is_closing.recv().unwrap();
        assert_eq!(pool.close_within(Duration::ZERO).unwrap_err().in_flight, 1);
        release.send(()).unwrap();
        pool.close_within(SECOND).unwrap();
    });
    assert_eq!(db.live(), 0);
}

#[test]
fn c5_the_last_handle_closes_and_guards_do_not_keep_it_open() {
    let clock = PausedClock::new();
    let db = Db::new();
    let pool = pool(&db, &clock, 2).build().unwrap();
    let other = pool.clone();
    let closer = pool.closer();
    let (held, idle) = (pool.get().unwrap(), pool.get().unwrap());
    drop(idle);
    drop(pool);
    assert_eq!(other.status().available, 1, "a clone is left");
    drop(other);
    assert_eq!(db.live(), 1, "the idle one is closed, the other is still out");
    drop(thread::spawn(move || drop(held)).join());
    assert_eq!((db.live(), db.closes()), (0, 2));
    let shutdown = Shutdown::with_clock((&clock).into());
    shutdown.register(closer);
    let report = shutdown.close_within(SECOND);
    assert!(report.is_clean());
    assert_eq!(report.parts()[0].0, "test");
}

#[test]
fn c5_shutdown_closes_it_and_reports_what_is_out() {
    let clock = PausedClock::new();
    let pool = pool(&Db::new(), &clock, 1).build().unwrap();
    let held = pool.get().unwrap();
    let shutdown = Shutdown::with_clock((&clock).into());
    shutdown.register(pool.closer());
    let report = shutdown.close_within(Duration::ZERO);
    assert_eq!(report.parts()[0].1.in_flight, 1);
    assert!(pool.get().unwrap_err().is_closed());
    drop(held);
}

#[test]
fn c6_there_is_always_a_station() {
    let clock = PausedClock::new();
    let db = Db::new();
    let pool = pool(&db, &clock, 2).build().unwrap();
    pool.with(|_| ()).unwrap();
    let seen = pool.station().snapshot();
    assert_eq!((seen.name(), seen.kind().name(), seen.parallelism(), seen.served), ("test", "pool", 2, 1));
    assert_eq!((seen.wait().count(), seen.service().count()), (1, 1), "a checkout that connects is timed each time");
    db.on_connect(|_, _| Err(Down));
    pool.get().unwrap().discard();
    let timed = pool.station().snapshot().wait().count();
    assert!(pool.get().is_err());
    assert_eq!(pool.station().snapshot().wait().count(), timed + 1, "and so is one that waited in vain");
}

#[test]
fn c7_nonsense_is_refused_by_name() {
    let builder = || Pool::builder(Fake(Db::new()));
    let field = |error: BuildError| match error {
        BuildError::Config { field, .. } => field.into_owned(),
        other => panic!("{other}"),
    };
    let refused = [
        (builder().max_size(0), "max_size"),
        (builder().max_size(3).min_idle(4), "min_idle"),
        (builder().get_timeout(Duration::ZERO), "get_timeout"),
        (builder().max_waiters(0), "max_waiters"),
        (builder().connect_timeout(Duration::ZERO), "connect_timeout"),
        (builder().backoff(Duration::ZERO, SECOND), "backoff_min"),
        (builder().backoff(SECOND, SECOND / 2), "backoff_max"),
        (builder().validate_timeout(Duration::ZERO), "validate_timeout"),
        (builder().keepalive(Duration::ZERO), "keepalive"),
        (builder().idle_timeout(Duration::ZERO), "idle_timeout"),
        (builder().max_lifetime(Duration::ZERO), "max_lifetime"),
        (builder().lifetime_jitter(1.0), "lifetime_jitter"),
        (builder().lifetime_jitter(-0.1), "lifetime_jitter"),
        (builder().lifetime_jitter(f64::NAN), "lifetime_jitter"),
        (builder().leak_after(Duration::ZERO), "leak_after"),
    ];
    for (builder, expected) in refused {
        assert_eq!(field(builder.build().unwrap_err()), expected);
    }
    let keyed = || KeyedPool::<u8, _>::builder(FakeKeyed::new(&Db::new()));
    assert_eq!(field(keyed().max_per_key(0).build().unwrap_err()), "max_per_key");
    let for_one = Config { min_idle: 1, ..Config::default() };
    assert_eq!(field(keyed().config(for_one).build().unwrap_err()), "min_idle", "of which key?");
    assert_eq!(field(Background::new(0).unwrap_err()), "max_connecting");
    // What is unusual, and makes sense.
    let none = builder().idle_timeout(None).max_lifetime(None).keepalive(None).leak_after(None);
    none.validate_after(Duration::ZERO).reserve_after(Duration::ZERO).lifetime_jitter(0.0).build().unwrap();
    builder().max_size(3).min_idle(3).backoff(SECOND, SECOND).build().unwrap().close();

    let env = |name: &str, value: &str| {
        Config::read(EnvReader::from_vars("APP_", [(name.to_owned().into(), value.to_owned().into())]))
    };
    assert_eq!(env("APP_MAX_SIZE", "7").unwrap().max_size, 7);
    assert_eq!(env("APP_GET_TIMEOUT", "250ms").unwrap().get_timeout, Duration::from_millis(250));
    assert_eq!(env("APP_IDLE_TIMEOUT", "1m").unwrap().idle_timeout, Some(SECOND * 60));
    assert_eq!(env("APP_IDLE_TIMEOUT", "none").unwrap().idle_timeout, None);
    assert_eq!(env("APP_MAX_SIZE", "many").unwrap_err().field(), Some("APP_MAX_SIZE"));
    assert_eq!(env("APP_SIZE", "7").unwrap_err().field(), Some("APP_SIZE"));
}

/// Every setting with another value than its default. One that is added has to be added here.
fn unusual() -> (Config, [(&'static str, &'static str); 22]) {
    let config = Config {
        name: "shop".into(),
        max_size: 7,
        max_per_key: 5,
        min_idle: 2,
        queue_mode: QueueMode::Fifo,
        get_timeout: SECOND * 3,
        max_waiters: 100,
        reserve_size: 4,
        reserve_after: SECOND * 2,
        connect_timeout: SECOND * 4,
        backoff_min: SECOND / 4,
        backoff_max: SECOND * 60,
        while_down: WhileDown::Wait,
        validate_after: SECOND,
        validate_timeout: SECOND * 6,
        keepalive: Some(SECOND * 30),
        idle_timeout: None,
        max_lifetime: Some(SECOND * 90),
        lifetime_jitter: 0.25,
        on_panic: OnPanic::Check,
        nested: Nested::Refuse,
        leak_after: Some(SECOND * 120),
    };
    let text = [
        ("name", "shop"),
        ("max_size", "7"),
        ("max_per_key", "5"),
        ("min_idle", "2"),
        ("queue_mode", "fifo"),
        ("get_timeout", "3s"),
        ("max_waiters", "100"),
        ("reserve_size", "4"),
        ("reserve_after", "2s"),
        ("connect_timeout", "4s"),
        ("backoff_min", "250ms"),
        ("backoff_max", "1m"),
        ("while_down", "wait"),
        ("validate_after", "1s"),
        ("validate_timeout", "6s"),
        ("keepalive", "30s"),
        ("idle_timeout", "none"),
        ("max_lifetime", "1m 30s"),
        ("lifetime_jitter", "0.25"),
        ("on_panic", "check"),
        ("nested", "refuse"),
        ("leak_after", "2m"),
    ];
    (config, text)
}

#[test]
fn c7_every_setting_is_read_from_the_environment() {
    let (config, text) = unusual();
    let read = |vars: &[(&str, &str)]| {
        let name = |field: &str| format!("APP_{}", field.to_uppercase());
        Config::read(EnvReader::from_vars("APP_", vars.iter().map(|(field, text)| (name(field).into(), text.into()))))
    };
    assert_eq!(read(&text).unwrap(), config);
    assert_eq!(read(&[]).unwrap(), Config::default());
    for (field, text) in text {
        assert_ne!(read(&[(field, text)]).unwrap(), Config::default(), "{field}");
        if field != "name" {
            let error = read(&[(field, "nonsense")]).unwrap_err();
            assert_eq!(error.field(), Some(&*format!("APP_{}", field.to_uppercase())));
        }
    }
}

#[test]
fn c7_choices_have_names() {
    for mode in [QueueMode::Lifo, QueueMode::Fifo] {
        assert_eq!(mode.to_string().parse::<QueueMode>().unwrap(), mode);
    }
    for mode in [OnPanic::Discard, OnPanic::Check, OnPanic::Return] {
        assert_eq!(mode.to_string().parse::<OnPanic>().unwrap(), mode);
    }
    for mode in [WhileDown::Fail, WhileDown::Wait] {
        assert_eq!(mode.to_string().parse::<WhileDown>().unwrap(), mode);
    }
    for mode in [Nested::Off, Nested::Warn, Nested::Refuse] {
        assert_eq!(mode.to_string().parse::<Nested>().unwrap(), mode);
    }
    let error = "sometimes".parse::<Nested>().unwrap_err();
    assert!(error.to_string().contains("off, warn or refuse"), "{error}");
}

#[cfg(feature = "serde")]
#[test]
fn c7_every_setting_is_read_from_a_file_and_written_to_one() {
    let (config, text) = unusual();
    let written = serde_json::to_value(&config).unwrap();
    assert_eq!(serde_json::from_value::<Config>(written.clone()).unwrap(), config);
    let mut fields: Vec<&str> = written.as_object().unwrap().keys().map(String::as_str).collect();
    fields.sort_unstable();
    let mut expected = text.map(|(field, _)| field);
    expected.sort_unstable();
    assert_eq!(fields, expected);
    // As a human writes it.
    let is_number = |text: &str| text.parse::<f64>().is_ok();
    let quoted =
        text.map(
            |(field, text)| {
                if is_number(text) { format!("\"{field}\": {text}") } else { format!("\"{field}\": \"{text}\"") }
            },
        );
    assert_eq!(serde_json::from_str::<Config>(&format!("{{{}}}", quoted.join(", "))).unwrap(), config);
    assert_eq!(serde_json::from_str::<Config>("{}").unwrap(), Config::default());
    let no_limits = r#"{"keepalive": "none", "max_lifetime": "none", "leak_after": "none", "backoff_max": "1h"}"#;
    let config: Config = serde_json::from_str(no_limits).unwrap();
    assert_eq!((config.keepalive, config.max_lifetime, config.leak_after), (None, None, None));
    for (field, value) in [("size", "5"), ("queue_mode", "\"random\""), ("nested", "\"sometimes\""), ("keepalive", "5")]
    {
        let error = serde_json::from_str::<Config>(&format!("{{\"{field}\": {value}}}")).unwrap_err().to_string();
        assert!(error.contains(field) || error.contains(value.trim_matches('"')), "{error}");
    }
}

#[test]
fn c8_errors_say_why() {
    let clock = PausedClock::new();
    let db = Db::new();
    let pool = pool(&db, &clock, 1).build().unwrap();
    let held = pool.get().unwrap();
    assert_eq!(pool.try_get().unwrap_err().to_string(), "no connection free");
    thread::scope(|scope| {
        let waiters = [0; 2].map(|_| scope.spawn(|| pool.get().map(drop)));
        clock.wait_for_waiters(2);
        clock.advance(SECOND * 30);
        let mut errors = waiters.map(|waiter| waiter.join().unwrap().unwrap_err());
        errors.sort_by_key(|error| error.status().unwrap().waiting);
        let [last, first] = &errors;
        let state = last.status().unwrap();
        assert_eq!((state.max_size, state.in_use(), state.waiting), (1, 1, 0));
        assert_eq!(first.status().unwrap().oldest_wait, SECOND * 30);
        let text = "timed out waiting for a connection: 1 of 1 connections of test busy, 1 waiting, oldest 30.0s";
        assert_eq!(first.to_string(), text);
    });
    held.discard();
    db.on_connect(|_, _| Err(Down));
    let error = pool.get().unwrap_err();
    assert_eq!(error.to_string(), "cannot connect: the database is down");
    assert!(!error.is_full() && !error.is_timeout() && !error.is_closed());
    assert_eq!(error.connect_error(), Some(&Down));
    assert!(std::error::Error::source(&error).unwrap().is::<Down>());
    assert_eq!(*error.into_connect_error().unwrap().manager_error().unwrap(), Down);
    pool.close();
    let error = pool.get().unwrap_err();
    assert!(error.is_closed() && error.to_string().starts_with("the pool is closed"), "{error}");
}

#[test]
fn c9_the_first_in_line_is_handed_the_connection_when_it_waited_too_long() {
    let clock = PausedClock::new();
    let pool = pool(&Db::new(), &clock, 1).build().unwrap();
    let held = pool.get().unwrap();
    thread::scope(|scope| {
        let waiter = scope.spawn(|| pool.get().unwrap());
        clock.wait_for_waiters(1);
        clock.advance(FAIR_AFTER);
        drop(held);
        // Nobody can be faster: it never became free.
        assert!(pool.try_get().unwrap_err().is_full());
        drop(waiter.join().unwrap());
    });
    assert!(pool.try_get().is_ok());
}

#[test]
fn c9_expired_waiters_are_skipped() {
    let clock = PausedClock::new();
    let pool = pool(&Db::new(), &clock, 1).build().unwrap();
    let held = pool.get().unwrap();
    thread::scope(|scope| {
        let hasty = scope.spawn(|| pool.get_deadline(clock.now() + SECOND).map(drop));
        clock.wait_for_waiters(1);
        let patient = scope.spawn(|| pool.get().map(|got| got.id()));
        clock.wait_for_waiters(2);
        // Both at once: the first is expired, and may not have run yet.
        clock.advance(SECOND);
        let id = held.id();
        drop(held);
        assert_eq!(patient.join().unwrap().unwrap(), id);
        // Unless the patient one was done so quickly that even the hasty one got it.
        let _ = hasty.join().unwrap();
    });
    assert_eq!((pool.status().available, pool.status().waiting), (1, 0));
}

#[test]
fn c10_an_idle_pool_wakes_at_most_once_a_second_and_an_empty_one_never() {
    let clock = PausedClock::new();
    let db = Db::new();
    let pool = pool(&db, &clock, 1).idle_timeout(SECOND * 60).max_lifetime(None).build().unwrap();
    assert_eq!((clock.timers(), clock.parks()), (0, 0), "no thread, no timer");
    let held = pool.get().unwrap();
    // The keeper of time.
    until(|| clock.timers() == 1);
    thread::scope(|scope| {
        let waiter = scope.spawn(|| pool.get().map(drop));
        clock.wait_for_waiters(1);
        assert_eq!(clock.timers(), 2, "one for the waiter");
        drop(held);
        waiter.join().unwrap().unwrap();
    });
    until(|| clock.timers() == 1);
    let parks = clock.parks();
    for _ in 0..59 {
        advance(&clock, SECOND);
    }
    // The end of the time for connecting, and the thread that connected may have come to rest meanwhile.
    assert!(clock.parks() - parks <= 2, "nothing to do, so nobody was woken");
    assert_eq!(db.live(), 1);
    // Checked every time it comes back, as far as the clock of one second allows.
    drop(pool.get().unwrap());
    let parks = clock.parks();
    for _ in 0..599 {
        advance(&clock, SECOND / 10);
    }
    clock.advance(SECOND / 10);
    assert!(clock.parks() - parks <= 60, "{} wake-ups in a minute", clock.parks() - parks);
    until(|| pool.status().size == 0);
    // The last look of the keeper may be to come.
    clock.advance(SECOND * 60);
    until(|| clock.timers() == 0);
    let parks = clock.parks();
    for _ in 0..100 {
        clock.advance(SECOND * 60);
    }
    assert_eq!(clock.timers(), 0, "an empty pool needs nothing");
    // The keeper, and the thread that closed the last one, may have come to rest meanwhile.
    assert!(clock.parks() - parks <= 2, "and nobody is woken for it");
}

#[cfg(feature = "tracing")]
#[test]
fn c11_lost_connections_and_panics_can_be_followed() {
    let clock = PausedClock::new();
    let db = Db::new();
    let events = fullbore_testkit::events::capture(|| {
        let pool = pool(&db, &clock, 1).name("followed").build().unwrap();
        db.on_is_broken(|_, _| true);
        for _ in 0..3 {
            drop(pool.get().unwrap());
        }
        db.on_close(|_, _| panic_on_purpose());
        drop(pool.get().unwrap());
    });
    assert_eq!(events.len(), 2, "rate-limited: {events:?}");
    for (event, what) in events.iter().zip(["reconnect", "panic"]) {
        assert!(event.contains("followed") && event.contains(what), "{events:?}");
    }
    let events = fullbore_testkit::events::capture(|| {
        let pool = support::pool(&Db::new(), &clock, 1).build().unwrap();
        pool.with(|_| ()).unwrap();
        pool.with(|_| ()).unwrap();
    });
    assert!(events.is_empty(), "none per item: {events:?}");
    let events = fullbore_testkit::events::capture(|| {
        let db = Db::new();
        let pool = support::pool(&db, &clock, 1).build().unwrap();
        drop(pool.get().unwrap());
        clock.advance(SECOND);
        db.on_validate(|_, _| Err(Down));
        drop(pool.get().unwrap());
    });
    assert!(events.len() == 1 && events[0].contains("the database is down"), "{events:?}");
}
