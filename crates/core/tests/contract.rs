//! The rules of the house (C2-C11) for `fullbore-core`. The names are the same in every crate.
#![cfg(not(fullbore_loom))]
#![allow(missing_docs, clippy::unwrap_used)]

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use fullbore_core::{
    BuildError, Clock, Close, Crew, EnvReader, Failure, FlushError, Inbox, Leftover, Monitor, OnDrop, Overflow,
    Patience, PausedClock, Ready, Refusal, SendError, Shutdown, Undelivered, Waiters, contain,
};

const SECOND: Duration = Duration::from_secs(1);
const ONE: Ready = Ready { max_items: 1, linger: Duration::ZERO };
const POLICY: Patience = Patience::Policy(None);

fn inbox(capacity: usize, overflow: Overflow, clock: &PausedClock) -> Inbox<u32> {
    Inbox::new(capacity, overflow, Clock::from(clock))
}

fn send(inbox: &Inbox<u32>, item: u32, patience: Patience) -> Result<Option<u32>, SendError<u32>> {
    inbox.send(item, patience, || ())
}

fn items(group: &fullbore_core::Group<u32>) -> Vec<u32> {
    group.items.iter().map(|(item, _)| *item).collect()
}

#[test]
fn c2_an_inbox_is_bounded_by_what_waits_and_what_is_in_flight() {
    let inbox = inbox(2, Overflow::Reject, &PausedClock::new());
    send(&inbox, 1, POLICY).unwrap();
    send(&inbox, 2, POLICY).unwrap();
    assert!(send(&inbox, 3, POLICY).unwrap_err().is_full());
    let group = inbox.take(ONE, None).unwrap();
    assert_eq!((inbox.len(), inbox.in_flight()), (1, 1));
    assert_eq!(inbox.refusal(), Some(Refusal::Full), "a slow taker is seen by the senders");
    assert!(send(&inbox, 3, POLICY).unwrap_err().is_full());
    inbox.done(group.ticket);
    assert_eq!(inbox.refusal(), None);
    send(&inbox, 3, POLICY).unwrap();
}

#[test]
fn c2_vacating_gives_the_places_back_once() {
    let inbox = inbox(1, Overflow::Reject, &PausedClock::new());
    send(&inbox, 1, POLICY).unwrap();
    let mut group = inbox.take(ONE, None).unwrap();
    inbox.vacate(&mut group.ticket);
    inbox.vacate(&mut group.ticket);
    send(&inbox, 2, POLICY).unwrap();
    assert!(!inbox.flush(Some(inbox.clock().now())), "the first is not done");
    inbox.done(group.ticket);
    assert!(send(&inbox, 3, POLICY).unwrap_err().is_full(), "its place was given back before");
}

#[test]
fn c2_drop_oldest_displaces_what_waits_and_else_the_newcomer() {
    let inbox = inbox(2, Overflow::DropOldest, &PausedClock::new());
    assert_eq!(send(&inbox, 1, POLICY).unwrap(), None);
    assert_eq!(send(&inbox, 2, POLICY).unwrap(), None);
    assert_eq!(send(&inbox, 3, Patience::Try).unwrap(), Some(1));
    assert_eq!(inbox.refusal(), None);
    let group = inbox.take(Ready { max_items: 2, linger: Duration::ZERO }, None).unwrap();
    assert_eq!(items(&group), [2, 3]);
    assert_eq!(send(&inbox, 4, POLICY).unwrap(), Some(4), "all places are being worked on");
    inbox.done(group.ticket);
    inbox.close();
    assert!(send(&inbox, 5, POLICY).unwrap_err().is_closed());
}

#[test]
fn c3_every_wait_ends_at_its_deadline() {
    let clock = PausedClock::new();
    let patient = inbox(1, Overflow::BlockFor(5 * SECOND), &clock);
    send(&patient, 1, POLICY).unwrap();
    assert!(send(&patient, 2, Patience::Try).unwrap_err().is_full());
    assert!(send(&patient, 2, Patience::Policy(Some(clock.now()))).unwrap_err().is_timeout());
    let (empty, crew) = (inbox(1, Overflow::Block, &clock), Crew::new("core", "held", Clock::from(&clock)));
    let shutdown = Shutdown::with_clock(Clock::from(&clock));
    let (hold, held) = mpsc::channel::<()>();
    crew.spawn(move || assert!(held.recv().is_err())).unwrap();
    let deadline = Some(clock.now() + SECOND);
    thread::scope(|scope| {
        let by_policy = scope.spawn(|| send(&patient, 2, POLICY));
        let by_cap = scope.spawn(|| send(&patient, 3, Patience::Policy(deadline)));
        let take = scope.spawn(|| empty.take(ONE, deadline).is_none());
        let flush = scope.spawn(|| patient.flush(deadline));
        let join = scope.spawn(|| crew.join(deadline));
        let stop = scope.spawn(|| shutdown.wait_within(SECOND));
        clock.wait_for_waiters(6);
        assert_eq!(clock.timers(), 6);
        clock.advance(SECOND);
        assert!(by_cap.join().unwrap().unwrap_err().is_timeout());
        assert!(take.join().unwrap() && !flush.join().unwrap() && !stop.join().unwrap());
        assert_eq!(join.join().unwrap(), ["fullbore-core-held-0"]);
        clock.wait_for_waiters(1);
        clock.advance(4 * SECOND);
        assert!(by_policy.join().unwrap().unwrap_err().is_timeout());
    });
    drop(hold);
    assert!(crew.join(None).is_empty());
}

#[test]
fn c3_a_deadline_too_far_away_means_never() {
    let clock = PausedClock::new();
    assert_eq!(Clock::from(&clock).after(Duration::MAX), None);
    assert_eq!(Clock::Real.after(Duration::MAX), None);
    let full = inbox(1, Overflow::BlockFor(Duration::MAX), &clock);
    send(&full, 1, POLICY).unwrap();
    let shutdown = Shutdown::with_clock(Clock::from(&clock));
    let pair = inbox(2, Overflow::Block, &clock);
    thread::scope(|scope| {
        let sender = scope.spawn(|| send(&full, 2, POLICY));
        let stop = scope.spawn(|| shutdown.wait_within(Duration::MAX));
        let pairs = scope.spawn(|| items(&pair.take(Ready { max_items: 2, linger: Duration::MAX }, None).unwrap()));
        clock.wait_for_waiters(3);
        assert_eq!(clock.timers(), 0);
        inbox_done(&full);
        assert_eq!(sender.join().unwrap().unwrap(), None);
        shutdown.request();
        assert!(stop.join().unwrap());
        send(&pair, 1, POLICY).unwrap();
        send(&pair, 2, POLICY).unwrap();
        assert_eq!(pairs.join().unwrap(), [1, 2]);
    });
}

fn inbox_done(inbox: &Inbox<u32>) {
    let group = inbox.take(ONE, None).unwrap();
    inbox.done(group.ticket);
}

#[test]
fn c3_the_real_clock_takes_the_farthest_instant_there_is() {
    // As far as an instant goes, found by halving.
    let mut far = Instant::now();
    let mut step = Duration::from_secs(u64::MAX / 2);
    while step > SECOND {
        match far.checked_add(step) {
            Some(farther) => far = farther,
            None => step /= 2,
        }
    }
    let inbox = Inbox::new(1, Overflow::Block, Clock::Real);
    thread::scope(|scope| {
        let taker = scope.spawn(|| items(&inbox.take(ONE, Some(far)).unwrap()));
        inbox.send(1, POLICY, || ()).unwrap();
        assert_eq!(taker.join().unwrap(), [1]);
    });
}

#[test]
fn c3_a_taker_takes_at_its_deadline_what_is_there() {
    let clock = PausedClock::new();
    let inbox = inbox(9, Overflow::Block, &clock);
    let ready = Ready { max_items: 9, linger: 10 * SECOND };
    thread::scope(|scope| {
        // Two of them: what the hasty one were told and left behind, the other would never learn of.
        let hasty = scope.spawn(|| inbox.take(ready, Some(clock.now() + SECOND)).map(|group| items(&group)));
        clock.wait_for_waiters(1);
        let patient = scope.spawn(|| inbox.take(ready, None).map(|group| items(&group)));
        clock.wait_for_waiters(2);
        send(&inbox, 1, POLICY).unwrap();
        clock.wait_for_waiters(2);
        clock.advance(SECOND);
        assert_eq!(hasty.join().unwrap(), Some(vec![1]));
        inbox.close();
        assert_eq!(patient.join().unwrap(), None);
    });
}

/// A panic on purpose, without the message of the panic hook.
fn panics() {
    resume_unwind(Box::new("on purpose"));
}

#[test]
fn c4_a_panic_becomes_a_failure_even_if_its_payload_panics_too() {
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            resume_unwind(Box::new("again"));
        }
    }
    assert_eq!(contain(panics).unwrap_err().to_string(), "panicked: on purpose");
    let failure = contain(|| resume_unwind(Box::new(Bomb))).unwrap_err();
    assert!(failure.is_panic());
    assert_eq!(contain(|| 1).unwrap(), 1);
}

#[test]
fn c4_a_waiter_that_panics_leaves_the_line_and_passes_on_what_it_was_told() {
    struct Shelf {
        things: u32,
        waiters: Waiters<u32, &'static str>,
    }
    let clock = PausedClock::new();
    let monitor = Monitor::new(Shelf { things: 0, waiters: Waiters::new() }, Clock::from(&clock));
    let take = |who: &'static str| {
        monitor.lock().wait_turn(
            |shelf| &mut shelf.waiters,
            None,
            who,
            |shelf| {
                shelf.things = shelf.things.checked_sub(1)?;
                // As the `Hash` of a user's key might.
                if who == "first" {
                    shelf.things += 1;
                    panics();
                }
                Some(1)
            },
        )
    };
    thread::scope(|scope| {
        let first = scope.spawn(|| catch_unwind(AssertUnwindSafe(|| take("first"))).is_err());
        clock.wait_for_waiters(1);
        let second = scope.spawn(|| take("second"));
        clock.wait_for_waiters(2);
        let mut shelf = monitor.lock();
        shelf.things = 1;
        shelf.notify_one(|shelf| &mut shelf.waiters);
        drop(shelf);
        assert!(first.join().unwrap());
        assert_eq!(second.join().unwrap(), Some(1));
    });
    assert!(monitor.lock().waiters.is_empty());
}

#[test]
fn c4_a_crew_thread_that_panics_is_joined_all_the_same() {
    let crew = Crew::new("core", "unlucky", Clock::Real);
    for _ in 0..4 {
        crew.spawn(panics).unwrap();
    }
    assert!(crew.join(None).is_empty());
    assert_eq!(crew.alive(), 0);
}

struct Part {
    name: &'static str,
    log: Arc<Log>,
    panics: bool,
}

/// What happened, in order.
mod log {
    use std::sync::Mutex;

    #[derive(Default)]
    pub(super) struct Log(Mutex<Vec<String>>);

    impl Log {
        pub(super) fn note(&self, line: impl Into<String>) {
            self.0.lock().unwrap().push(line.into());
        }
        pub(super) fn lines(&self) -> Vec<String> {
            self.0.lock().unwrap().clone()
        }
    }
}
use log::Log;

impl Close for Part {
    fn name(&self) -> String {
        self.name.to_owned()
    }
    fn close_within(&self, limit: Duration) -> Leftover {
        self.log.note(format!("{} {limit:?}", self.name));
        if self.panics {
            panics();
        }
        Leftover::default()
    }
}

#[test]
fn c4_no_hook_and_no_part_keeps_the_others_from_their_turn() {
    let clock = PausedClock::new();
    let (shutdown, log) = (Shutdown::with_clock(Clock::from(&clock)), Arc::new(Log::default()));
    for name in ["first", "second"] {
        let its = Arc::clone(&log);
        shutdown.on_request(move || {
            its.note(format!("hook {name}"));
            if name == "first" {
                panics();
            }
        });
        shutdown.register(Part { name, log: Arc::clone(&log), panics: name == "first" });
    }
    let caught = catch_unwind(AssertUnwindSafe(|| shutdown.close_within(SECOND)));
    assert_eq!(*caught.unwrap_err().downcast_ref::<&str>().unwrap(), "on purpose", "the caller's panic is resumed");
    assert_eq!(log.lines(), ["hook first", "hook second", "first 1s", "second 1s"]);
    assert!(shutdown.close_within(SECOND).is_clean(), "and nothing is left for a second call");
}

#[test]
fn c4_hooks_may_come_back_in() {
    let (shutdown, log) = (Shutdown::new(), Arc::new(Log::default()));
    let (its, inner) = (Arc::clone(&log), shutdown.clone());
    shutdown.on_request(move || {
        inner.request();
        inner.wait();
        assert!(inner.is_requested());
        let late = Arc::clone(&its);
        inner.on_request(move || late.note("at once"));
        assert!(inner.close_within(SECOND).is_clean());
        its.note("hook");
    });
    shutdown.request();
    shutdown.request();
    assert_eq!(log.lines(), ["at once", "hook"]);
}

#[test]
fn c7_nonsense_is_refused_by_name() {
    let error = BuildError::refuse_zero("max_items", 0).unwrap_err();
    assert_eq!(error.to_string(), "max_items = 0 is not usable: expected at least 1");
    assert!(BuildError::refuse_zero("max_items", 1).is_ok());
    let error = Crew::new("core", "a\0b", Clock::Real).spawn(|| ()).unwrap_err();
    assert_eq!(error.field(), Some("name"));
}

fn env(vars: &[(&str, &str)]) -> EnvReader {
    EnvReader::from_vars("APP_", vars.iter().map(|(name, value)| (name.to_string().into(), value.to_string().into())))
}

#[test]
fn c7_the_environment_is_read_and_its_errors_name_the_variable() {
    let mut reader = env(&[
        ("APP_SIZE", " 7 "),
        ("APP_LINGER", "1m 30s"),
        ("APP_IDLE", "none"),
        ("APP_OVERFLOW", "block_for:250ms"),
        ("APP_ON_DROP", "abandon"),
        ("APP_NAME", "x"),
        ("OTHER_SIZE", "8"),
    ]);
    let (mut size, mut linger, mut idle) = (1usize, Duration::ZERO, Some(SECOND));
    let (mut overflow, mut on_drop, mut name) = (Overflow::Reject, OnDrop::default(), String::new());
    let mut untouched = 5u32;
    reader.read("size", &mut size).unwrap();
    reader.read("linger", &mut linger).unwrap();
    reader.read("idle", &mut idle).unwrap();
    reader.read("overflow", &mut overflow).unwrap();
    reader.read("on_drop", &mut on_drop).unwrap();
    reader.read("name", &mut name).unwrap();
    reader.read("untouched", &mut untouched).unwrap();
    reader.finish().unwrap();
    assert_eq!((size, linger, idle, untouched), (7, Duration::from_secs(90), None, 5));
    assert_eq!((overflow, on_drop), (Overflow::BlockFor(Duration::from_millis(250)), OnDrop::Abandon));
    assert_eq!(name, "x");

    let wrong = |name: &str, value: &str, read: fn(&mut EnvReader) -> Result<(), BuildError>| {
        let error = read(&mut env(&[(name, value)])).unwrap_err();
        assert_eq!(error.field(), Some(name));
        assert!(error.to_string().contains(value), "{error}");
    };
    wrong("APP_SIZE", "-1", |env| env.read("size", &mut 1usize));
    wrong("APP_SIZE", "4294967296", |env| env.read("size", &mut 1u32));
    wrong("APP_LINGER", "soon", |env| env.read("linger", &mut { SECOND }));
    wrong("APP_LINGER", "5", |env| env.read("linger", &mut { SECOND }));
    wrong("APP_RATIO", "NaN", |env| env.read("ratio", &mut 1.0f64));
    wrong("APP_RATIO", "inf", |env| env.read("ratio", &mut 1.0f64));
    wrong("APP_ON", "yes", |env| env.read("on", &mut true));
}

#[test]
fn c7_a_variable_that_no_field_has_is_refused_without_its_value() {
    let mut reader = env(&[("APP_PASSWORT", "hunter2")]);
    reader.read("password", &mut String::new()).unwrap();
    let error = reader.finish().unwrap_err();
    assert_eq!(error.field(), Some("APP_PASSWORT"));
    let text = error.to_string();
    assert!(text.contains("APP_PASSWORD") && !text.contains("hunter2"), "{text}");
}

#[cfg(unix)]
#[test]
fn c7_a_value_that_is_not_text_is_refused_by_name() {
    use std::os::unix::ffi::OsStringExt;
    let value = std::ffi::OsString::from_vec(vec![0xff]);
    let mut reader = EnvReader::from_vars("APP_", [("APP_NAME".into(), value)]);
    assert_eq!(reader.read("name", &mut String::new()).unwrap_err().field(), Some("APP_NAME"));
}

#[test]
fn c8_errors_say_why_and_give_the_item_back() {
    /// Neither `Debug` nor `Clone`.
    struct Opaque(u32);
    let inbox = Inbox::new(1, Overflow::Reject, Clock::Real);
    inbox.send(Opaque(1), POLICY, || ()).unwrap();
    let full = inbox.send(Opaque(2), POLICY, || ()).err().unwrap();
    assert!(full.is_full() && !full.is_closed() && !full.is_timeout());
    assert_eq!(full.to_string(), "item not accepted: full");
    assert_eq!(format!("{full:?}"), "SendError { reason: Full, .. }");
    assert_eq!(full.map(|opaque| opaque.0).into_inner(), 2);
    inbox.close();
    let closed: Box<dyn std::error::Error> = Box::new(inbox.send(Opaque(3), POLICY, || ()).err().unwrap());
    assert_eq!(closed.to_string(), "item not accepted: closed");
    assert_eq!(inbox.abandon()[0].0, 1);

    let left = Undelivered::new(vec![Opaque(1)], 2, vec!["fullbore-core-x-0".into()]).into_result().unwrap_err();
    assert_eq!(left.to_string(), "1 items undelivered, 2 in flight, threads left behind: fullbore-core-x-0");
    assert!(Undelivered::<Opaque>::new(vec![], 0, vec![]).into_result().is_ok());
    let flush = FlushError::new(3, 1, false);
    assert!(flush.is_timeout() && !flush.is_own_thread());
    assert_eq!(flush.to_string(), "the flush timed out: 3 items waiting, 1 in process");
    assert!(FlushError::new(3, 1, true).to_string().starts_with("a thread cannot wait for itself"));
}

#[test]
fn c8_a_failure_keeps_the_users_own_error() {
    let parse = "x".parse::<u32>().unwrap_err();
    let failure = Failure::error(parse.clone());
    assert_eq!(failure.clone().downcast_ref::<std::num::ParseIntError>(), Some(&parse));
    assert_eq!(failure.to_string(), parse.to_string());
    assert!(contain(panics).unwrap_err().downcast_ref::<std::num::ParseIntError>().is_none());
    assert_eq!(Failure::Mismatch { expected: 3, got: 2 }.to_string(), "2 results for 3 items");
}

#[test]
fn c8_a_report_names_what_was_left() {
    struct Stuck;
    impl Close for Stuck {
        fn name(&self) -> String {
            "orders".into()
        }
        fn close_within(&self, _: Duration) -> Leftover {
            Leftover::from(Undelivered::new(vec![1, 2], 1, vec!["fullbore-queue-orders-0".into()]).into_result())
        }
    }
    let shutdown = Shutdown::new();
    shutdown.register(Stuck);
    let report = shutdown.close_within(SECOND);
    assert!(!report.is_clean());
    assert_eq!(report.parts()[0].1.items, 2);
    assert_eq!(
        report.to_string(),
        "orders: 2 items undelivered, 1 in flight\norders: left thread fullbore-queue-orders-0 behind\n"
    );
}

#[test]
fn c10_only_a_linger_arms_a_timer() {
    let clock = PausedClock::new();
    let inbox = inbox(9, Overflow::Block, &clock);
    let ready = Ready { max_items: 9, linger: SECOND };
    thread::scope(|scope| {
        let takers = [0, 1].map(|_| scope.spawn(|| inbox.take(ready, None).map(|group| items(&group))));
        clock.wait_for_waiters(2);
        assert_eq!(clock.timers(), 0, "nothing is there to linger for");
        send(&inbox, 1, POLICY).unwrap();
        clock.wait_for_waiters(2);
        assert_eq!(clock.timers(), 1, "one of them watches the item, the other sleeps");
        clock.advance(SECOND);
        clock.wait_for_waiters(1);
        assert_eq!(clock.timers(), 0);
        inbox.close();
        let mut took = takers.map(|taker| taker.join().unwrap());
        took.sort();
        assert_eq!(took, [None, Some(vec![1])]);
    });
}

#[test]
fn c10_a_taker_sleeps_through_what_does_not_complete_its_group() {
    let clock = PausedClock::new();
    let inbox = inbox(9, Overflow::Block, &clock);
    let ready = Ready { max_items: 4, linger: SECOND };
    thread::scope(|scope| {
        let taker = scope.spawn(|| inbox.take(ready, None).map(|group| items(&group)));
        clock.wait_for_waiters(1);
        send(&inbox, 1, POLICY).unwrap();
        clock.wait_for_waiters(1);
        let looks = clock.parks();
        send(&inbox, 2, POLICY).unwrap();
        send(&inbox, 3, POLICY).unwrap();
        clock.wait_for_waiters(1);
        assert_eq!(clock.parks(), looks, "it was not woken");
        send(&inbox, 4, POLICY).unwrap();
        assert_eq!(taker.join().unwrap(), Some(vec![1, 2, 3, 4]));
    });
}

#[cfg(feature = "tracing")]
#[test]
fn c11_events_can_be_followed_and_are_rate_limited() {
    use fullbore_core::{Event, Events};
    use std::sync::atomic::{AtomicUsize, Ordering};
    let kinds = [Event::Drop, Event::Retry, Event::DeadLetter, Event::Reconnect, Event::Panic, Event::Abandoned];
    let built = AtomicUsize::new(0);
    let lines = fullbore_testkit::events::capture(|| {
        let events = Events::new("core", "followed");
        for kind in kinds {
            for _ in 0..100 {
                events.emit(kind, || {
                    built.fetch_add(1, Ordering::Relaxed);
                    "why"
                });
            }
        }
    });
    // One of each kind, and another for each second that this took.
    assert_eq!(lines.len(), built.load(Ordering::Relaxed), "the detail is built only to be emitted");
    assert!(lines.len() >= kinds.len() && lines.len() < 100, "{lines:?}");
    for kind in kinds {
        let its = lines.iter().find(|line| line.contains(&format!("event=\"{}\"", kind.name()))).unwrap();
        assert!(its.contains("name=\"followed\"") && its.contains("area=\"core\"") && its.contains("why"), "{its}");
    }
}
