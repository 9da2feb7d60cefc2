//! The rules of the house (C1-C11) for `fullbore-limit`. The names are the same in every crate.
#![allow(missing_docs)]
#![expect(clippy::unwrap_used, reason = "in the helpers of tests")]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use fullbore_core::{BuildError, EnvReader, FAIR_AFTER, PausedClock};
use fullbore_limit::{Config, Limit};

fn one(clock: &PausedClock) -> Limit {
    Limit::builder().name("test").permits(1).clock(clock).build().unwrap()
}

#[test]
fn c1_permits_are_conserved_under_panics_timeouts_and_close() {
    let limit = Limit::builder().permits(3).acquire_timeout(Duration::from_millis(1)).build().unwrap();
    let inside = AtomicUsize::new(0);
    let ran = AtomicUsize::new(0);
    thread::scope(|scope| {
        for n in 0..64usize {
            let (limit, inside, ran) = (&limit, &inside, &ran);
            scope.spawn(move || {
                for round in 0..50usize {
                    let work = || {
                        ran.fetch_add(1, Ordering::Relaxed);
                        assert!(inside.fetch_add(1, Ordering::SeqCst) < 3, "more inside than permits");
                        thread::yield_now();
                        inside.fetch_sub(1, Ordering::SeqCst);
                        if (n + round) % 7 == 0 {
                            std::panic::resume_unwind(Box::new("on purpose"));
                        }
                    };
                    let _ = catch_unwind(AssertUnwindSafe(|| limit.run(work)));
                }
                if n == 63 {
                    limit.close();
                }
            });
        }
    });
    let seen = limit.station().snapshot();
    assert!(seen.balanced(), "{seen:?}");
    assert_eq!((seen.waiting(), seen.in_service()), (0, 0));
    assert_eq!(seen.served + seen.failed, ran.load(Ordering::Relaxed) as u64);
    assert_eq!(seen.offered(), 64 * 50);
    assert_eq!(limit.state().in_use, 0);
}

#[test]
fn c2_the_line_is_bounded() {
    let clock = PausedClock::new();
    let limit = Limit::builder().permits(1).max_waiters(1).clock(&clock).build().unwrap();
    let held = limit.acquire().unwrap();
    thread::scope(|scope| {
        let waiter = scope.spawn(|| limit.acquire().map(drop));
        clock.wait_for_waiters(1);
        assert!(limit.acquire().unwrap_err().is_shed());
        drop(held);
        waiter.join().unwrap().unwrap();
    });
}

#[test]
fn c3_every_wait_has_a_deadline() {
    let clock = PausedClock::new();
    let limit = one(&clock);
    let held = limit.acquire().unwrap();
    assert!(limit.try_acquire().unwrap_err().is_full());
    assert!(limit.acquire_deadline(clock.now()).unwrap_err().is_timeout());
    thread::scope(|scope| {
        let by_default = scope.spawn(|| limit.acquire().map(drop));
        clock.wait_for_waiters(1);
        let by_deadline = scope.spawn(|| limit.acquire_deadline(clock.now() + Duration::from_secs(5)).map(drop));
        clock.wait_for_waiters(2);
        clock.advance(Duration::from_secs(5));
        assert!(by_deadline.join().unwrap().unwrap_err().is_timeout());
        clock.advance(Duration::from_secs(25));
        assert!(by_default.join().unwrap().unwrap_err().is_timeout());
    });
    drop(held);
    // Too far to represent means never, not a panic.
    let patient = Limit::builder().acquire_timeout(Duration::MAX).build().unwrap();
    patient.acquire().map(drop).unwrap();
}

#[test]
fn c4_a_panic_gives_the_permit_back_and_goes_on() {
    let limit = Limit::builder().permits(1).build().unwrap();
    let caught = catch_unwind(AssertUnwindSafe(|| limit.run(|| panic!("on purpose"))));
    assert!(caught.is_err(), "the caller's panic is resumed");
    assert_eq!(limit.run(|| 1).unwrap(), 1);
    assert_eq!(limit.station().snapshot().failed, 1);
}

#[test]
fn c6_there_is_always_a_station() {
    let limit = Limit::builder().name("named").permits(2).build().unwrap();
    limit.run(|| ()).unwrap();
    let seen = limit.station().snapshot();
    assert_eq!((seen.name(), seen.parallelism(), seen.served), ("named", 2, 1));
}

#[test]
fn c7_nonsense_is_refused_by_name() {
    let error = Limit::builder().permits(0).build().unwrap_err();
    assert!(matches!(&error, BuildError::Config { field, value, .. } if field == "permits" && value == "0"), "{error}");
    let env = |name: &str, value: &str| {
        Config::read(EnvReader::from_vars("APP_", [(name.to_owned().into(), value.to_owned().into())]))
    };
    assert_eq!(env("APP_PERMITS", "7").unwrap().permits, 7);
    assert_eq!(env("APP_ACQUIRE_TIMEOUT", "250ms").unwrap().acquire_timeout, Duration::from_millis(250));
    assert_eq!(env("APP_PERMITS", "many").unwrap_err().field(), Some("APP_PERMITS"));
    assert_eq!(env("APP_PERMIT", "7").unwrap_err().field(), Some("APP_PERMIT"));
}

#[cfg(feature = "serde")]
#[test]
fn c7_a_file_is_read_and_unknown_fields_are_refused() {
    let config: Config = serde_json::from_str(r#"{"permits": 5, "acquire_timeout": "1m 30s"}"#).unwrap();
    assert_eq!((config.permits, config.acquire_timeout), (5, Duration::from_secs(90)));
    assert!(serde_json::from_str::<Config>(r#"{"permit": 5}"#).unwrap_err().to_string().contains("permit"));
}

#[test]
fn c8_errors_say_why() {
    let clock = PausedClock::new();
    let limit = one(&clock);
    let held = limit.acquire().unwrap();
    thread::scope(|scope| {
        let waiter = scope.spawn(|| limit.acquire().map(drop));
        clock.wait_for_waiters(1);
        clock.advance(Duration::from_secs(30));
        let error = waiter.join().unwrap().unwrap_err();
        let state = error.state().unwrap();
        assert_eq!((state.permits, state.in_use), (1, 1));
        assert!(error.to_string().starts_with("timed out waiting for a permit: 1 of 1 permits of test"), "{error}");
    });
    drop(held);
    limit.close();
    assert!(limit.acquire().unwrap_err().is_closed());
}

#[test]
fn c8_close_wakes_those_who_wait() {
    let clock = PausedClock::new();
    let limit = one(&clock);
    let held = limit.acquire().unwrap();
    thread::scope(|scope| {
        let waiter = scope.spawn(|| limit.acquire().map(drop));
        clock.wait_for_waiters(1);
        limit.close();
        assert!(waiter.join().unwrap().unwrap_err().is_closed());
    });
    drop(held);
}

#[test]
fn c9_the_first_in_line_is_handed_the_permit_when_it_waited_too_long() {
    let clock = PausedClock::new();
    let limit = one(&clock);
    let held = limit.acquire().unwrap();
    thread::scope(|scope| {
        let waiter = scope.spawn(|| limit.acquire().unwrap());
        clock.wait_for_waiters(1);
        clock.advance(FAIR_AFTER);
        drop(held);
        // Nobody can be faster: the permit never became free.
        assert!(limit.try_acquire().unwrap_err().is_full());
        drop(waiter.join().unwrap());
    });
    assert!(limit.try_acquire().is_ok());
}

#[test]
fn c1_resizing_neither_loses_nor_invents_permits() {
    let clock = PausedClock::new();
    let limit = one(&clock);
    let held = limit.acquire().unwrap();
    thread::scope(|scope| {
        let waiter = scope.spawn(|| limit.acquire().unwrap());
        clock.wait_for_waiters(1);
        limit.set_permits(2);
        let second = waiter.join().unwrap();
        limit.set_permits(1);
        drop(second);
        assert!(limit.try_acquire().unwrap_err().is_full(), "the one permit is still out");
    });
    drop(held);
    assert!(limit.try_acquire().is_ok());
    limit.set_permits(0);
    assert_eq!(limit.permits(), 1);
}

#[test]
fn c10_a_waiter_arms_one_timer_and_an_idle_limit_none() {
    let clock = PausedClock::new();
    let limit = one(&clock);
    let held = limit.acquire().unwrap();
    assert_eq!(clock.timers(), 0);
    thread::scope(|scope| {
        let waiter = scope.spawn(|| limit.acquire().map(drop));
        clock.wait_for_waiters(1);
        assert_eq!(clock.timers(), 1);
        drop(held);
        waiter.join().unwrap().unwrap();
    });
    assert_eq!(clock.timers(), 0);
}

#[cfg(feature = "tracing")]
#[test]
fn c11_shedding_can_be_followed() {
    let limit = Limit::builder().name("followed").permits(1).max_waiters(0).build().unwrap();
    let _held = limit.acquire().unwrap();
    let events = fullbore_testkit::events::capture(|| {
        for _ in 0..3 {
            assert!(limit.acquire().unwrap_err().is_shed());
        }
    });
    assert_eq!(events.len(), 1, "rate-limited: {events:?}");
    assert!(events[0].contains("followed") && events[0].contains("drop"), "{events:?}");
}
