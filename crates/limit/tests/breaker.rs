//! The rules of the house (C1-C11) for the breaker, and how it opens and closes. All on a clock that stands still.
#![allow(missing_docs, clippy::unwrap_used)]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;
use std::time::Duration;

use fullbore_core::{BuildError, EnvReader, PausedClock};
use fullbore_limit::{Breaker, BreakerBuilder, BreakerConfig, BreakerState};

const SECOND: Duration = Duration::from_secs(1);

fn builder(clock: &PausedClock) -> BreakerBuilder {
    Breaker::builder().name("test").consecutive_failures(3).jitter(false).clock(clock)
}

fn fail(breaker: &Breaker, times: u32) {
    for _ in 0..times {
        breaker.try_acquire().unwrap().failure();
    }
}

#[test]
fn opens_after_failures_in_a_row_and_a_success_begins_anew() {
    let clock = PausedClock::new();
    let breaker = builder(&clock).build().unwrap();
    fail(&breaker, 2);
    breaker.try_acquire().unwrap().success();
    fail(&breaker, 2);
    assert_eq!(breaker.state(), BreakerState::Closed);
    fail(&breaker, 1);
    assert_eq!(breaker.state(), BreakerState::Open { retry_in: SECOND });
    assert_eq!(breaker.try_acquire().unwrap_err().retry_in(), SECOND);
}

#[test]
fn opens_on_the_rate_of_failures_in_the_window_and_not_on_few_calls() {
    let clock = PausedClock::new();
    let breaker = builder(&clock).consecutive_failures(100).min_calls(10).failure_rate(0.5).build().unwrap();
    // Half of nine: too few to tell.
    for n in 0..9 {
        let permit = breaker.try_acquire().unwrap();
        if n % 2 == 0 { permit.failure() } else { permit.success() }
    }
    assert_eq!(breaker.state(), BreakerState::Closed);
    // They leave the window, and count no more.
    clock.advance(11 * SECOND);
    fail(&breaker, 5);
    assert_eq!(breaker.state(), BreakerState::Closed);
    for _ in 0..4 {
        breaker.try_acquire().unwrap().success();
    }
    breaker.try_acquire().unwrap().success();
    // Ten calls, five of them bad; the last one to end decides.
    assert_eq!(breaker.state(), BreakerState::Open { retry_in: SECOND });
}

#[test]
fn one_probe_at_a_time_and_it_decides() {
    let clock = PausedClock::new();
    let breaker = builder(&clock).build().unwrap();
    fail(&breaker, 3);
    clock.advance(SECOND);
    assert_eq!(breaker.state(), BreakerState::HalfOpen);
    let probe = breaker.try_acquire().unwrap();
    assert_eq!(breaker.try_acquire().unwrap_err().retry_in(), Duration::ZERO);
    probe.failure();
    // Twice as long each time, up to the cap.
    for pause in [2u32, 4, 8, 16, 30, 30] {
        assert_eq!(breaker.state(), BreakerState::Open { retry_in: pause * SECOND });
        clock.advance(pause * SECOND);
        breaker.try_acquire().unwrap().failure();
    }
    clock.advance(30 * SECOND);
    breaker.try_acquire().unwrap().success();
    assert_eq!(breaker.state(), BreakerState::Closed);
    // All is forgotten.
    fail(&breaker, 3);
    assert_eq!(breaker.state(), BreakerState::Open { retry_in: SECOND });
    assert_eq!(breaker.opened(), 9);
}

#[test]
fn a_probe_that_is_dropped_or_hangs_makes_room_for_another() {
    let clock = PausedClock::new();
    let breaker = builder(&clock).build().unwrap();
    fail(&breaker, 3);
    clock.advance(SECOND);
    drop(breaker.try_acquire().unwrap());
    let hung = breaker.try_acquire().unwrap();
    assert!(breaker.try_acquire().is_err());
    clock.advance(SECOND);
    let other = breaker.try_acquire().unwrap();
    // It comes too late to say anything.
    hung.success();
    assert_eq!(breaker.state(), BreakerState::HalfOpen);
    other.success();
    assert_eq!(breaker.state(), BreakerState::Closed);
}

#[test]
fn what_began_before_it_opened_changes_nothing_afterwards() {
    let clock = PausedClock::new();
    let breaker = builder(&clock).build().unwrap();
    let (good, bad) = (breaker.try_acquire().unwrap(), breaker.try_acquire().unwrap());
    fail(&breaker, 3);
    good.success();
    bad.failure();
    assert_eq!(breaker.state(), BreakerState::Open { retry_in: SECOND });
    clock.advance(SECOND);
    breaker.try_acquire().unwrap().success();
    assert_eq!((breaker.state(), breaker.opened()), (BreakerState::Closed, 1));
}

#[test]
fn c1_every_call_is_counted() {
    let breaker = Breaker::builder().consecutive_failures(50).build().unwrap();
    thread::scope(|scope| {
        for n in 0..16 {
            let breaker = &breaker;
            scope.spawn(move || {
                for round in 0..200 {
                    match (breaker.try_acquire(), (n + round) % 3) {
                        (Ok(permit), 0) => permit.success(),
                        (Ok(permit), 1) => permit.failure(),
                        (Ok(permit), _) => drop(permit),
                        (Err(_), _) => {}
                    }
                }
            });
        }
    });
    let seen = breaker.station().snapshot();
    assert!(seen.balanced(), "{seen:?}");
    assert_eq!((seen.offered(), seen.waiting(), seen.in_service()), (16 * 200, 0, 0));
}

#[test]
fn c4_a_panic_leaves_the_probe_to_the_next() {
    let clock = PausedClock::new();
    let breaker = builder(&clock).build().unwrap();
    fail(&breaker, 3);
    clock.advance(SECOND);
    let caught = catch_unwind(AssertUnwindSafe(|| {
        let _permit = breaker.try_acquire().unwrap();
        panic!("on purpose");
    }));
    assert!(caught.is_err());
    breaker.try_acquire().unwrap().success();
    assert_eq!(breaker.state(), BreakerState::Closed);
}

#[test]
fn c6_there_is_always_a_station() {
    let breaker = Breaker::builder().name("named").consecutive_failures(1).build().unwrap();
    breaker.try_acquire().unwrap().success();
    breaker.try_acquire().unwrap().failure();
    assert!(breaker.try_acquire().is_err());
    let seen = breaker.station().snapshot();
    assert_eq!((seen.name(), seen.served, seen.failed, seen.refused), ("named", 1, 1, 1));
}

#[test]
fn c7_nonsense_is_refused_by_name() {
    let field = |builder: BreakerBuilder| builder.build().unwrap_err().field().unwrap().to_owned();
    assert_eq!(field(Breaker::builder().consecutive_failures(0)), "consecutive_failures");
    assert_eq!(field(Breaker::builder().min_calls(0)), "min_calls");
    assert_eq!(field(Breaker::builder().window(Duration::ZERO)), "window");
    assert_eq!(field(Breaker::builder().open_for(Duration::ZERO)), "open_for");
    assert_eq!(field(Breaker::builder().open_max(Duration::from_millis(1))), "open_max");
    for rate in [0.0, -1.0, 1.1, f64::NAN] {
        assert_eq!(field(Breaker::builder().failure_rate(rate)), "failure_rate");
    }
    let env = |name: &str, value: &str| {
        BreakerConfig::read(EnvReader::from_vars("APP_", [(name.to_owned().into(), value.to_owned().into())]))
    };
    assert_eq!(env("APP_WINDOW", "250ms").unwrap().window, Duration::from_millis(250));
    assert!(matches!(env("APP_WINDOWS", "1s"), Err(BuildError::Config { .. })));
    // Extremes neither panic nor hang.
    let far = Breaker::builder()
        .consecutive_failures(1)
        .open_for(Duration::MAX)
        .open_max(Duration::MAX)
        .window(Duration::MAX);
    let far = far.build().unwrap();
    fail(&far, 1);
    assert!(far.try_acquire().is_err());
}

#[cfg(feature = "serde")]
#[test]
fn c7_a_file_is_read_and_unknown_fields_are_refused() {
    let config: BreakerConfig = serde_json::from_str(r#"{"open_for": "2s", "failure_rate": 0.25}"#).unwrap();
    assert_eq!((config.open_for, config.failure_rate), (2 * SECOND, 0.25));
    assert!(serde_json::from_str::<BreakerConfig>(r#"{"open": "2s"}"#).unwrap_err().to_string().contains("open"));
}

#[test]
fn c8_errors_say_why() {
    let clock = PausedClock::new();
    let breaker = builder(&clock).build().unwrap();
    fail(&breaker, 3);
    let error = breaker.try_acquire().unwrap_err();
    assert_eq!(error.to_string(), "the breaker of test is open, the next attempt is in 1.0s");
    assert_eq!(error.name(), "test");
    clock.advance(SECOND);
    let _probe = breaker.try_acquire().unwrap();
    assert_eq!(breaker.try_acquire().unwrap_err().to_string(), "the breaker of test is open, and is being probed");
}

#[test]
fn c10_an_open_breaker_arms_no_timer() {
    let clock = PausedClock::new();
    let breaker = builder(&clock).build().unwrap();
    fail(&breaker, 3);
    assert_eq!((clock.timers(), clock.parks()), (0, 0));
}

#[test]
fn jitter_only_lengthens() {
    for _ in 0..100 {
        let clock = PausedClock::new();
        let breaker = builder(&clock).jitter(true).build().unwrap();
        fail(&breaker, 3);
        let retry_in = breaker.try_acquire().unwrap_err().retry_in();
        assert!((SECOND..=2 * SECOND).contains(&retry_in), "{retry_in:?}");
    }
}

#[cfg(feature = "tracing")]
#[test]
fn c11_its_changes_can_be_followed() {
    let clock = PausedClock::new();
    let breaker = builder(&clock).build().unwrap();
    let events = fullbore_testkit::events::capture(|| fail(&breaker, 3));
    assert_eq!(events.len(), 1, "{events:?}");
    assert!(events[0].contains("breaker") && events[0].contains("one failure after the other"), "{events:?}");
}
