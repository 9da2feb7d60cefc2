//! The rules of the house for `fullbore-metrics`: C2 to C5 for what has a thread (the endpoint's are in `http.rs`), C6 (it is
//! what that rule asks for), C7, C8, C10 and C11. The names are the same in every crate.
#![allow(missing_docs, clippy::unwrap_used)]

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use fullbore_core::{BuildError, Clock, PausedClock};
use fullbore_metrics::{
    Alarm, AlarmEdge, Alarms, Counter, Departure, Description, DurationSnapshot, Gauge, Histogram, Outcome,
    QuantileError, RegisterError, Registry, Station, StationKind, StationSnapshot, Waiting, activity, sampled,
};
use fullbore_testkit::{CountingAlloc, allocations, measure};
use proptest::prelude::*;

#[global_allocator]
static ALLOC: CountingAlloc = CountingAlloc;

/// A panic on purpose, without the message of the panic hook.
fn panics() {
    resume_unwind(Box::new("on purpose"));
}

/// It is not: for a closure that returns a `Result`.
fn contained(f: fn()) -> Result<(), ()> {
    f();
    Ok(())
}

#[test]
fn c4_a_panic_counts_as_failed_and_goes_on() {
    let station = Station::new("risky");
    let caught = catch_unwind(AssertUnwindSafe(|| station.run(panics)));
    assert_eq!(*caught.unwrap_err().downcast_ref::<&str>().unwrap(), "on purpose");
    let caught = catch_unwind(AssertUnwindSafe(|| station.try_run(|| contained(panics))));
    assert!(caught.is_err());
    assert_eq!(station.run(|| 7), 7, "it is as good as before");
    let seen = station.snapshot();
    assert_eq!((seen.arrivals, seen.served, seen.failed, seen.in_service()), (3, 1, 2, 0));
    assert_eq!(seen.service().count(), 3, "failures are timed each time");
    assert!(seen.balanced());
}

#[test]
fn c4_an_item_is_accounted_for_wherever_it_is_dropped() {
    let station = Station::new("dropped");
    drop(station.arrive());
    assert_eq!((station.snapshot().returned, station.snapshot().waiting()), (1, 0));
    drop(station.arrive().begin());
    station.arrive().begin().end(Outcome::Served);
    station.arrive().begin().end(Outcome::Failed);
    // By an unwinding, in either state, on another thread.
    for begun in [false, true] {
        let waiting = station.arrive_owned();
        let thread = thread::spawn(move || {
            let held = if begun { (None, Some(waiting.begin())) } else { (Some(waiting), None) };
            panics();
            drop(held);
        });
        assert!(thread.join().is_err());
    }
    let seen = station.snapshot();
    assert_eq!((seen.arrivals, seen.begun, seen.returned), (6, 4, 2));
    assert_eq!((seen.served, seen.failed), (1, 3));
    assert!(seen.balanced());
    assert_eq!((seen.wait().count(), seen.service().count()), (4, 4));
    assert_eq!((seen.waiting(), seen.in_service()), (0, 0));
}

#[test]
fn c6_a_guard_shows_where_its_item_is() {
    let station = Station::builder("guarded").kind(StationKind::Pool).parallelism(3).capacity(9).build();
    let (first, second) = (station.arrive(), station.arrive());
    assert_eq!((station.snapshot().waiting(), station.snapshot().in_service()), (2, 0));
    let serving = first.begin();
    assert_eq!((station.snapshot().waiting(), station.snapshot().in_service()), (1, 1));
    serving.end(Outcome::Served);
    drop(second);
    let seen = station.snapshot();
    assert_eq!((seen.name(), seen.kind(), seen.parallelism(), seen.capacity()), ("guarded", StationKind::Pool, 3, 9));
    assert_eq!((seen.waiting(), seen.in_service(), seen.offered()), (0, 0, 2));
    assert_eq!(seen.to_string(), "guarded: 1 served, 0 failed, 0 waiting, 0 in service");
    station.set_parallelism(5);
    assert_eq!(station.snapshot().parallelism(), 5);
}

#[derive(Clone, Debug)]
enum Step {
    Refuse(usize),
    Arrive(usize),
    Begin(usize),
    Retry(usize),
    End(Outcome, usize),
    Depart(Departure, usize),
}

fn step() -> impl Strategy<Value = Step> {
    let n = 0usize..5;
    prop_oneof![
        n.clone().prop_map(Step::Refuse),
        n.clone().prop_map(Step::Arrive),
        n.clone().prop_map(Step::Begin),
        n.clone().prop_map(Step::Retry),
        (prop_oneof![Just(Outcome::Served), Just(Outcome::Failed)], n.clone()).prop_map(|(o, n)| Step::End(o, n)),
        (prop_oneof![Just(Departure::Dropped), Just(Departure::Merged), Just(Departure::Returned)], n)
            .prop_map(|(d, n)| Step::Depart(d, n)),
    ]
}

proptest! {
    #[test]
    fn c6_counts_add_up_whatever_happens(steps in proptest::collection::vec(step(), 0..100)) {
        let station = Station::new("counted");
        let (mut waiting, mut in_service) = (0usize, 0usize);
        let (mut refused, mut arrived, mut out) = (0usize, 0usize, [0usize; 5]);
        for step in steps {
            match step {
                Step::Refuse(n) => {
                    station.refused(n);
                    refused += n;
                }
                Step::Arrive(n) => {
                    station.arrived(n);
                    arrived += n;
                    waiting += n;
                }
                Step::Begin(n) => {
                    let n = n.min(waiting);
                    station.began(n);
                    waiting -= n;
                    in_service += n;
                }
                Step::Retry(n) => {
                    let n = n.min(in_service);
                    station.retried(n);
                    in_service -= n;
                    waiting += n;
                }
                Step::End(outcome, n) => {
                    let n = n.min(in_service);
                    station.ended(outcome, n);
                    in_service -= n;
                    out[if outcome == Outcome::Served { 0 } else { 1 }] += n;
                }
                Step::Depart(departure, n) => {
                    let n = n.min(waiting);
                    station.departed(departure, n);
                    waiting -= n;
                    out[match departure {
                        Departure::Dropped => 2,
                        Departure::Merged => 3,
                        _ => 4,
                    }] += n;
                }
            }
            let seen = station.snapshot();
            prop_assert!(seen.balanced());
            prop_assert_eq!((seen.waiting(), seen.in_service()), (waiting as u64, in_service as u64));
            prop_assert_eq!((seen.refused, seen.arrivals), (refused as u64, arrived as u64));
            let seen_out = [seen.served, seen.failed, seen.dropped, seen.merged, seen.returned];
            prop_assert_eq!(seen_out, out.map(|n| n as u64));
            prop_assert_eq!(seen.offered(), (refused + arrived) as u64);
        }
    }
}

#[track_caller]
fn no_count_exceeds_its_cause(seen: &StationSnapshot) {
    assert!(seen.served + seen.failed <= seen.begun, "ends after begins: {seen:?}");
    let left = seen.dropped + seen.merged + seen.returned;
    assert!(seen.begun + left <= seen.arrivals, "begins and departures after arrivals: {seen:?}");
    assert!(seen.wait().count() <= seen.begun && seen.service().count() <= seen.begun, "times after begins: {seen:?}");
    for times in [seen.wait(), seen.service()] {
        let (Some(min), Some(mean), Some(max)) = (times.min(), times.mean(), times.max()) else {
            assert_eq!(times, &DurationSnapshot::default(), "nothing is all of nothing");
            continue;
        };
        assert!(min <= mean && mean <= max, "{seen:?}");
        if let Ok(median) = times.p50() {
            assert!(min <= median.low && median.low <= median.value, "{seen:?}");
            assert!(median.value <= median.high && median.high <= max, "{seen:?}");
        }
    }
}

#[test]
fn c6_no_count_exceeds_its_cause_while_others_record() {
    const ITEMS: u64 = 20_000;
    let (station, done) = (Station::new("busy"), AtomicBool::new(false));
    thread::scope(|scope| {
        let watchers = [0, 1].map(|_| {
            scope.spawn(|| {
                let mut snapshots = 0u64;
                let mut before = station.snapshot();
                while !done.load(Ordering::Acquire) {
                    let seen = station.snapshot();
                    no_count_exceeds_its_cause(&seen);
                    assert!(seen.arrivals >= before.arrivals && seen.served >= before.served, "counts only grow");
                    before = seen;
                    snapshots += 1;
                }
                snapshots
            })
        });
        // Items change threads between arrival, begin and end.
        let (arrive, arrived) = mpsc::sync_channel::<Waiting>(100);
        let (begin, begun) = mpsc::sync_channel(100);
        let serve = scope.spawn(|| {
            for (n, waiting) in (0u64..).zip(arrived) {
                match n % 10 {
                    0 => drop(waiting),
                    _ => begin.send(waiting.begin()).unwrap(),
                }
            }
            drop(begin);
        });
        let end = scope.spawn(|| {
            for (n, serving) in (0u64..).zip(begun) {
                serving.end(if n % 9 == 0 { Outcome::Failed } else { Outcome::Served });
            }
        });
        for _ in 0..ITEMS {
            arrive.send(station.arrive()).unwrap();
            station.run(|| ());
        }
        drop(arrive);
        serve.join().unwrap();
        end.join().unwrap();
        done.store(true, Ordering::Release);
        for watcher in watchers {
            assert!(watcher.join().unwrap() > 0);
        }
    });
    let seen = station.snapshot();
    no_count_exceeds_its_cause(&seen);
    assert_eq!((seen.arrivals, seen.begun, seen.returned), (2 * ITEMS, ITEMS / 10 * 19, ITEMS / 10));
    assert_eq!((seen.failed, seen.served), (ITEMS / 10, ITEMS / 10 * 18));
    assert_eq!((seen.waiting(), seen.in_service()), (0, 0));
    assert_eq!((seen.wait().count(), seen.service().count()), (seen.begun, seen.begun));
    assert!(seen.balanced());
}

#[test]
fn c6_threads_that_come_and_go_leave_exact_totals() {
    let station = Station::new("visited");
    for _ in 0..100 {
        thread::scope(|scope| {
            for _ in 0..20 {
                scope.spawn(|| {
                    station.run(|| ());
                    station.refused(1);
                    let _ = sampled();
                });
            }
        });
        // No thread that is gone distorts a snapshot.
        no_count_exceeds_its_cause(&station.snapshot());
    }
    let seen = station.snapshot();
    assert_eq!((seen.served, seen.refused, seen.service().count()), (2000, 2000, 2000));
}

/// Recorded in the destructor of a thread-local, when other locals may be gone.
#[test]
fn c6_a_thread_records_until_its_very_end() {
    struct Last(Station);
    impl Drop for Last {
        fn drop(&mut self) {
            let _ = sampled();
            self.0.run(|| ());
        }
    }
    thread_local!(static LAST: std::cell::RefCell<Option<Last>> = const { std::cell::RefCell::new(None) });
    let station = Station::new("teardown");
    let its = station.clone();
    // Joined by handle: a scope may end before the destructors of a thread's locals have run.
    thread::spawn(move || LAST.set(Some(Last(its)))).join().unwrap();
    assert_eq!(station.snapshot().served, 1);
}

#[test]
fn c6_busy_time_is_the_sum_of_services() {
    let station = Station::builder("timed").parallelism(2).build();
    station.took(Duration::from_secs(3));
    station.busy(Duration::from_secs(1));
    let seen = station.snapshot();
    assert_eq!(seen.busy(), Duration::from_secs(4));
    assert_eq!(seen.service().sum(), Duration::from_secs(3));
    assert_eq!(seen.utilisation(Duration::from_secs(4)), 0.5);
    assert!(!seen.utilisation(Duration::ZERO).is_nan());
}

#[test]
fn c6_edges_are_there_once_and_can_go() {
    let (parse, store, disk) = (Station::new("parse"), Station::new("store"), Station::new("disk"));
    parse.feeds(&store);
    parse.feeds(&store);
    store.held_by(&disk);
    store.held_by(&disk);
    assert_eq!((parse.snapshot().feeds(), store.snapshot().held_by()), (&[store.id()][..], &[disk.id()][..]));
    parse.no_longer_feeds(&store);
    assert!(parse.snapshot().feeds().is_empty());
    assert_ne!(parse.id(), store.id());
}

#[test]
fn c6_edges_end_with_what_they_lead_to() {
    let job = Station::new("job");
    for n in 0..1000 {
        let pool = Station::new(format!("pool {n}"));
        job.held_by(&pool);
        assert_eq!(job.snapshot().held_by(), [pool.id()]);
    }
    assert!(job.snapshot().held_by().is_empty());
    let pool = Station::new("kept");
    job.held_by(&pool);
    job.no_longer_held_by(&pool);
    assert!(job.snapshot().held_by().is_empty());
}

#[test]
fn c6_a_window_can_begin_before_the_first_use() {
    static FRESH: Station = Station::named("fresh");
    let before = FRESH.snapshot();
    let unused = FRESH.snapshot();
    FRESH.run(|| ());
    let window = FRESH.snapshot().since(&before).unwrap();
    assert!(window.duration() > unused.since(&before).unwrap().duration(), "from the first snapshot on");
    assert_eq!(window.counts().served, 1);
}

/// `catch_unwind` asks for no assertion (C4).
#[test]
fn c4_handles_may_be_used_across_a_panic() {
    let (station, counter, histogram) = (Station::new("s"), Counter::new(), Histogram::new());
    let caught = catch_unwind(|| {
        counter.inc();
        histogram.record(1);
        station.run(panics);
    });
    assert!(caught.is_err());
    assert_eq!((counter.get(), histogram.snapshot().count(), station.snapshot().failed), (1, 1, 1));
}

#[test]
fn c6_counts_that_have_stuck_break_nothing() {
    let station = Station::new("absurd");
    station.passed(usize::MAX);
    station.ended(Outcome::Failed, usize::MAX);
    station.arrived(usize::MAX);
    station.refused(usize::MAX);
    station.departed(Departure::Dropped, usize::MAX);
    let seen = station.snapshot();
    assert_eq!((seen.offered(), seen.in_service(), seen.waiting()), (u64::MAX, 0, 0));
    let _ = (seen.balanced(), seen.to_string(), Registry::new().add(&station).table().to_string());
}

#[test]
fn c6_the_table_lines_up_with_any_name_and_any_number() {
    let registry = Registry::new();
    let huge = Station::builder("a name much longer than any heading could be").kind(StationKind::Batch).build();
    huge.arrived(123_456_789_012_345);
    huge.took(Duration::from_secs(u64::MAX / 1_000_000_000));
    let umlauts = Station::new("größenänderung von žluťoučký кінь und naïve façade");
    let torn = Station::new("two\nlines\tand a \u{1b}[31mbell\u{7}");
    let unknown = Station::new("unknown");
    umlauts.feeds(&huge);
    umlauts.feeds(&unknown);
    umlauts.held_by(&torn);
    registry.add(&huge).add(&umlauts).add(&torn).add(&huge);
    for _ in 0..20 {
        umlauts.took(Duration::from_micros(1500));
    }
    let table = registry.table().to_string();
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(lines.len(), 4, "a heading and each station once:\n{table}");
    assert!(!table.chars().any(|c| c.is_control() && c != '\n'), "{table:?}");
    let widest = umlauts.name().chars().count();
    assert_eq!(lines[0].find("kind"), Some(widest + 2), "letters are counted, not bytes: {table}");
    // The right edges of all numbers stand one below the other: the column before `feeds` ends where its heading does.
    let edge = lines[0].find("  feeds").unwrap();
    for line in &lines {
        let chars: Vec<char> = line.chars().collect();
        assert_eq!(chars.get(edge..edge + 2), Some(&[' ', ' '][..]), "{table}");
        assert_ne!(chars[edge - 1], ' ', "{table}");
    }
    assert!(lines[1].contains("123456789012345") && lines[1].contains("n=1"), "{table}");
    let feeds = format!("a name much longer than any heading could be, {}, held by two\u{fffd}lines", unknown.id());
    assert!(lines[2].contains(&feeds) && lines[2].contains("1.5ms"), "{table}");
    assert!(lines[3].starts_with("two\u{fffd}lines\u{fffd}and a"), "{table}");
}

#[test]
fn c7_a_quantile_that_is_none_is_refused() {
    let station = Station::new("asked");
    for n in 0..2000 {
        station.took(Duration::from_nanos(n));
    }
    let seen = station.snapshot();
    for q in [f64::NAN, -0.1, 1.1, f64::INFINITY] {
        let error = seen.service().quantile(q).unwrap_err();
        assert!(error.to_string().ends_with("is not between 0 and 1"), "{error}");
    }
    for q in [0.0, 1.0] {
        let error = seen.service().quantile(q).unwrap_err();
        assert!(error.to_string().contains("minimum"), "{error}");
    }
}

#[test]
fn c8_too_few_samples_say_how_many_are_needed() {
    let station = Station::new("rare");
    for _ in 0..999 {
        station.took(Duration::from_micros(3));
    }
    let error = station.snapshot().service().p99().unwrap_err();
    assert_eq!(error, QuantileError::TooFewSamples { q: 0.99, n: 999, needed: 1000 });
    assert_eq!(error.to_string(), "quantile 0.99 needs 1000 samples, there are 999");
    station.took(Duration::from_micros(3));
    let p99 = station.snapshot().service().p99().unwrap();
    assert_eq!(p99.to_string(), "3.000µs (3.000µs .. 3.000µs, n = 1000)");
}

/// Whether anybody looks or not.
#[test]
fn c10_recording_takes_no_memory_once_it_is_warm() {
    let record_everything = |station: &Station| {
        for magnitude in 0..u64::BITS {
            station.took(Duration::from_nanos(1 << magnitude));
            station.waited(Duration::from_nanos(1 << magnitude));
            station.responded(Duration::from_nanos(1 << magnitude));
        }
        station.refused(1);
        station.run(|| ());
        station.run_sampled(|| ());
        station.passed(1);
        drop(station.arrive());
        station.arrive().begin().end(Outcome::Failed);
        station.departed(Departure::Merged, 1);
    };
    let (station, at_rest) = measure(|| Station::new("warm"));
    assert_eq!(at_rest.count, 0, "an unused station is only what it is itself");
    let ((), cold) = measure(|| record_everything(&station));
    // Three histograms, a page of 320 bytes for each power of two: as large as it ever gets for a thread.
    assert!(cold.net_bytes() <= 3 * (59 * 320 + 512) + 1500, "{cold:?}");
    assert_eq!(allocations(|| (0..1000).for_each(|_| record_everything(&station))), 0);
    assert_eq!(allocations(|| thread_local_sample(10_000)), 0);

    let (counter, gauge, histogram) = (Counter::new(), Gauge::new(), Histogram::new());
    let use_all = || {
        counter.inc();
        gauge.add(1);
        histogram.record(5);
        drop(activity::enter(activity::Activity::Io));
    };
    use_all();
    assert_eq!(allocations(|| (0..1000).for_each(|_| use_all())), 0);
}

#[test]
fn c2_edges_that_nobody_asks_for_are_bounded_and_counted() {
    let clock = PausedClock::new();
    let station = Station::new("wavers");
    let alarms = watch_waiting(&station, &clock, |_| ());
    for round in 0..400u64 {
        if round % 2 == 0 {
            station.arrived(1);
        } else {
            station.departed(Departure::Dropped, 1);
        }
        look(&clock);
    }
    assert_eq!(alarms.missed_edges(), 400 - 256);
    let first = alarms.next_edge(Some(clock.now())).unwrap();
    assert!(first.firing, "the oldest that is kept is edge 144");
    assert_eq!(std::iter::from_fn(|| alarms.next_edge(Some(clock.now()))).count(), 255);
}

/// Lets the alarms look once, and waits until they have.
fn look(clock: &PausedClock) {
    clock.wait_for_waiters(1);
    clock.advance(Duration::from_secs(1));
    clock.wait_for_waiters(1);
}

fn watch_waiting(station: &Station, clock: &PausedClock, heard: impl FnMut(&AlarmEdge) + Send + 'static) -> Alarms {
    let waiting = Alarm::new("waiting", station, |seen| seen.waiting() as f64).notify(heard);
    Alarms::builder().clock(Clock::Paused(clock.clone())).alarm(waiting).build().unwrap()
}

#[test]
fn c3_waiting_for_an_edge_ends_at_the_deadline_and_at_close() {
    let clock = PausedClock::new();
    let station = Station::new("quiet");
    let alarms = watch_waiting(&station, &clock, |_| ());
    assert_eq!(alarms.next_edge(Some(clock.now())), None, "a deadline that has come does not wait");
    let until = clock.now() + Duration::from_millis(500);
    thread::scope(|scope| {
        let asking = scope.spawn(|| alarms.next_edge(Some(until)));
        clock.wait_for_waiters(2);
        clock.advance(Duration::from_millis(500));
        assert_eq!(asking.join().unwrap(), None);
        let asking = scope.spawn(|| alarms.next_edge(None));
        clock.wait_for_waiters(2);
        alarms.close();
        assert_eq!(asking.join().unwrap(), None);
    });
}

#[test]
fn c4_a_rule_or_a_callback_that_panics_stops_nothing() {
    let clock = PausedClock::new();
    let station = Station::new("watched");
    let broken = Alarm::new("broken", &station, |_| {
        panics();
        0.0
    });
    let (heard, hears) = mpsc::channel();
    let loud = Alarm::new("loud", &station, |seen| seen.waiting() as f64).notify(move |edge: &AlarmEdge| {
        heard.send(edge.clone()).unwrap();
        panics();
    });
    let alarms = Alarms::builder().clock(Clock::Paused(clock.clone())).alarm(broken).alarm(loud).build().unwrap();
    station.arrived(1);
    look(&clock);
    station.departed(Departure::Dropped, 1);
    look(&clock);
    let edges: Vec<bool> = hears.try_iter().map(|edge| edge.firing).collect();
    assert_eq!(edges, [true, false], "both edges, although the callback panics at each");
    assert_eq!(alarms.panics(), 4);
}

#[test]
fn c5_close_is_idempotent_and_waits_for_the_callback() {
    let clock = PausedClock::new();
    let station = Station::new("slow to tell");
    let (began, begun) = mpsc::channel();
    let (finish, may_finish) = mpsc::channel::<()>();
    let alarms = watch_waiting(&station, &clock, move |_| {
        began.send(()).unwrap();
        may_finish.recv().unwrap();
    });
    station.arrived(1);
    clock.wait_for_waiters(1);
    clock.advance(Duration::from_secs(1));
    begun.recv().unwrap();
    let left = alarms.close_within(Duration::ZERO).unwrap_err();
    assert_eq!((left.items.len(), left.in_flight), (0, 1));
    assert_eq!(left.abandoned_threads, ["fullbore-metrics-alarms-0"]);
    finish.send(()).unwrap();
    alarms.close();
    alarms.close();
    assert!(alarms.close_within(Duration::ZERO).is_ok());
    assert_eq!(alarms.firing(), ["waiting"], "closed is not cleared");
}

/// On a clock that stands still, a drop that waits would never end.
#[test]
fn c5_dropping_what_is_stuck_does_not_wait_again() {
    let clock = PausedClock::new();
    let station = Station::new("stuck");
    let (began, begun) = mpsc::channel();
    let (finish, may_finish) = mpsc::channel::<()>();
    let alarms = watch_waiting(&station, &clock, move |_| {
        began.send(()).unwrap();
        let _ = may_finish.recv();
    });
    station.arrived(1);
    clock.wait_for_waiters(1);
    clock.advance(Duration::from_secs(1));
    begun.recv().unwrap();
    assert!(alarms.close_within(Duration::ZERO).is_err());
    drop(alarms);
    drop(finish);
}

#[test]
fn c5_dropping_the_alarms_ends_their_thread() {
    let clock = PausedClock::new();
    let alarms = watch_waiting(&Station::new("left"), &clock, |_| ());
    clock.wait_for_waiters(1);
    drop(alarms);
    assert_eq!(clock.timers(), 0);
}

#[test]
fn c6_an_alarm_on_a_window_measures_on_its_clock() {
    let clock = PausedClock::new();
    let station = Station::new("rated");
    let rate = Alarm::on_window("rate", &station, |window| Some(window.arrival_rate())).above(1.0);
    let alarms = Alarms::builder().clock(Clock::Paused(clock.clone())).alarm(rate).build().unwrap();
    station.arrived(100);
    look(&clock);
    assert_eq!(alarms.next_edge(None).unwrap().value, 100.0);
}

#[test]
fn c7_builders_refuse_nonsense_by_name() {
    let station = Station::new("sensible");
    let alarm = || Alarm::new("alarm", &station, |_| 0.0);
    let refused = |alarms: fullbore_metrics::AlarmsBuilder| match alarms.build().unwrap_err() {
        BuildError::Config { field, .. } => field.into_owned(),
        other => panic!("{other}"),
    };
    assert_eq!(refused(Alarms::builder()), "alarm");
    assert_eq!(refused(Alarms::builder().alarm(alarm().above(f64::NAN))), "above");
    assert_eq!(refused(Alarms::builder().alarm(alarm().above(1.0).clear_below(2.0))), "clear_below");
    assert_eq!(refused(Alarms::builder().alarm(alarm().clear_below(f64::NAN))), "clear_below");
    assert_eq!(refused(Alarms::builder().alarm(alarm()).every(Duration::ZERO)), "every");
    assert_eq!(refused(Alarms::builder().alarm(alarm()).name("nul\0")), "name");
    let watch = Registry::new().watch(Duration::ZERO).unwrap_err();
    assert_eq!(watch.field(), Some("every"));
}

#[test]
fn c8_errors_of_a_registry_name_the_value() {
    let registry = Registry::new();
    let invalid = |name: &str| registry.counter(name).unwrap_err().to_string();
    for name in ["", "9lives", "white space", "naïve", "a\nb"] {
        assert!(invalid(name).contains(&format!("{name:?}")), "{}", invalid(name));
    }
    registry.counter("rows").unwrap();
    let error = registry.gauge("rows").unwrap_err();
    assert_eq!(error, RegisterError::OtherType { name: "rows".into(), is: "counter", asked: "gauge" });
    let error = registry.counter(Description::new("rows").label("le", "1")).unwrap_err();
    assert!(error.to_string().starts_with("\"le\""), "{error}");
    let error = Histogram::new().try_record(-1.5).unwrap_err();
    assert!(error.to_string().starts_with("-1.5"), "{error}");
}

#[cfg(feature = "tracing")]
#[test]
fn c11_a_callback_that_panics_can_be_followed() {
    let clock = PausedClock::new();
    let station = Station::new("followed");
    let captured = fullbore_testkit::events::capture_everywhere();
    let alarms = watch_waiting(&station, &clock, |_| panics());
    station.arrived(1);
    look(&clock);
    alarms.close();
    let events = captured();
    assert!(events.iter().any(|event| event.contains("alarms") && event.contains("panic")), "{events:?}");
}

fn thread_local_sample(times: usize) -> usize {
    (0..times).filter(|_| sampled()).count()
}

#[cfg(feature = "serde")]
#[test]
fn a_snapshot_can_be_written() {
    let station = Station::builder("written \"ünïcode\"").kind(StationKind::Queue).parallelism(2).capacity(7).build();
    let next = Station::new("next");
    station.feeds(&next);
    for _ in 0..25 {
        station.run(|| ());
    }
    station.refused(3);
    let seen = station.snapshot();
    let text = serde_json::to_string(&seen).unwrap();
    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(value["name"], "written \"ünïcode\"");
    assert_eq!((&value["kind"], &value["parallelism"], &value["capacity"]), (&"queue".into(), &2.into(), &7.into()));
    assert_eq!((&value["counts"]["served"], &value["counts"]["refused"]), (&25.into(), &3.into()));
    assert_eq!(value["service"]["count"], 25);
    let in_buckets: u64 = value["service"]["buckets"].as_array().unwrap().iter().map(|b| b[2].as_u64().unwrap()).sum();
    assert_eq!(in_buckets, 25);
    assert_eq!(value["feeds"].as_array().unwrap().len(), 1);
    assert!(value["held_by"].as_array().unwrap().is_empty());
}
