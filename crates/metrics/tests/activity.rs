//! Accounts of what threads do.
#![allow(missing_docs, clippy::unwrap_used)]

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use fullbore_metrics::activity::{self, Activity, ThreadAccount};

/// So that each test has a thread, and with it an account, of its own.
fn on_a_thread<R: Send>(f: impl FnOnce() -> R + Send) -> R {
    thread::scope(|scope| scope.spawn(f).join().unwrap())
}

/// Uses time up, so that there is some to be seen.
fn spin(length: Duration) {
    let begun = Instant::now();
    while begun.elapsed() < length {
        std::hint::spin_loop();
    }
}

const BIT: Duration = Duration::from_micros(200);

fn sums_up(account: &ThreadAccount) {
    assert_eq!(account.parts().map(|(_, time)| time).sum::<Duration>(), account.wall());
}

#[test]
fn an_account_sums_to_the_wall_time_of_its_thread() {
    on_a_thread(|| {
        let before = Instant::now();
        let first = activity::of_this_thread();
        let begun = Instant::now();
        for activity in [Activity::Io, Activity::Lock, Activity::External("stripe"), Activity::Idle] {
            activity::within(activity, || spin(BIT));
        }
        let inner = begun.elapsed();
        let account = activity::of_this_thread();
        let outer = before.elapsed();
        sums_up(&account);
        let wall = account.wall() - first.wall();
        assert!(wall >= inner && account.wall() <= outer, "{inner:?} <= {wall:?}, {:?} <= {outer:?}", account.wall());
        for activity in [Activity::Io, Activity::Lock, Activity::External("stripe"), Activity::Idle] {
            assert!(account.of(activity) >= BIT, "{account:?}");
        }
    });
}

#[test]
fn time_counts_for_the_innermost_only() {
    on_a_thread(|| {
        let begun = Instant::now();
        let outer = activity::enter(Activity::Io);
        spin(BIT);
        let inner_took = activity::within(Activity::Lock, || {
            let begun = Instant::now();
            spin(10 * BIT);
            begun.elapsed()
        });
        spin(BIT);
        drop(outer);
        let all = begun.elapsed();
        let account = activity::of_this_thread();
        sums_up(&account);
        assert!(account.of(Activity::Lock) >= inner_took);
        assert!(account.of(Activity::Io) >= 2 * BIT);
        assert!(account.of(Activity::Io) <= all - inner_took, "what is inside is not outside: {account:?}");
    });
}

#[test]
fn guards_in_the_wrong_order_end_what_they_enclose() {
    on_a_thread(|| {
        let outer = activity::enter(Activity::Io);
        let inner = activity::enter(Activity::Lock);
        drop(outer);
        spin(BIT);
        let lock = activity::of_this_thread().of(Activity::Lock);
        drop(inner);
        spin(BIT);
        let account = activity::of_this_thread();
        assert_eq!(account.of(Activity::Lock), lock, "it ended with the outer one");
        assert!(account.of(Activity::Work) >= 2 * BIT);
        // A forgotten guard: the next outer one to end puts it right.
        let outer = activity::enter(Activity::Push);
        std::mem::forget(activity::enter(Activity::Queue));
        drop(outer);
        let queue = activity::of_this_thread().of(Activity::Queue);
        spin(BIT);
        assert_eq!(activity::of_this_thread().of(Activity::Queue), queue);
    });
}

#[test]
fn a_panic_ends_the_activity() {
    on_a_thread(|| {
        let caught = std::panic::catch_unwind(|| {
            activity::within(Activity::Io, || std::panic::resume_unwind(Box::new("on purpose")))
        });
        assert!(caught.is_err());
        let io = activity::of_this_thread().of(Activity::Io);
        spin(BIT);
        assert_eq!(activity::of_this_thread().of(Activity::Io), io);
    });
}

#[test]
fn names_beyond_sixteen_and_nests_beyond_thirty_two_are_still_accounted_for() {
    const NAMES: [&str; 20] =
        ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m", "n", "o", "p", "q", "r", "s", "t"];
    on_a_thread(|| {
        for name in NAMES {
            activity::external(name, || spin(BIT));
        }
        let account = activity::of_this_thread();
        sums_up(&account);
        assert!(account.of(Activity::External("p")) >= BIT && account.of(Activity::External("q")).is_zero());
        assert!(account.of(Activity::External("other")) >= 4 * BIT, "{account:?}");
        let guards: Vec<_> = (0..100).map(|_| activity::enter(Activity::Coordinate)).collect();
        spin(BIT);
        guards.into_iter().rev().for_each(drop);
        let coordinate = activity::of_this_thread().of(Activity::Coordinate);
        assert!(coordinate >= BIT);
        spin(BIT);
        assert_eq!(activity::of_this_thread().of(Activity::Coordinate), coordinate, "all have been left");
    });
}

/// A reader beside threads that switch as fast as they can, and beside one that is stopped.
#[test]
fn every_reading_sums_up_and_only_grows() {
    let over = AtomicBool::new(false);
    let (named, is_named) = mpsc::channel();
    let (leave, may_leave) = mpsc::channel::<()>();
    thread::scope(|scope| {
        let resting = thread::Builder::new().name("resting".into());
        let resting = resting.spawn_scoped(scope, move || {
            let _guard = activity::enter(Activity::Idle);
            named.send(()).unwrap();
            may_leave.recv().unwrap();
        });
        for _ in 0..3 {
            scope.spawn(|| {
                while !over.load(Ordering::Acquire) {
                    activity::within(Activity::Io, || activity::external("quick", || ()));
                }
            });
        }
        is_named.recv().unwrap();
        let idle_of = |accounts: &activity::Accounts| {
            let resting = accounts.threads.iter().find(|account| account.name() == Some("resting")).unwrap();
            resting.of(Activity::Idle)
        };
        let mut before = Duration::ZERO;
        for _ in 0..2000 {
            let accounts = activity::accounts();
            accounts.threads.iter().for_each(sums_up);
            let idle = idle_of(&accounts);
            assert!(idle >= before, "a thread at rest is read without its help");
            before = idle;
        }
        assert!(before > Duration::ZERO);
        over.store(true, Ordering::Release);
        leave.send(()).unwrap();
        resting.unwrap().join().unwrap();
    });
}

#[test]
fn threads_that_have_ended_are_added_up() {
    let of_it = || activity::accounts().ended.of(Activity::External("ended with it"));
    assert!(of_it().is_zero());
    for _ in 0..50 {
        thread::spawn(|| activity::external("ended with it", || spin(BIT))).join().unwrap();
    }
    assert!(of_it() >= 50 * BIT);
    sums_up(&activity::accounts().ended);
    assert!(activity::accounts().of(Activity::External("ended with it")) >= 50 * BIT);
}

/// What the lists of our own primitives say.
#[test]
fn waits_in_our_own_primitives_are_labelled() {
    use fullbore_core::{Clock, Monitor, PausedClock, WaitFor, Waiters};

    let cases = [
        (WaitFor::Work, Activity::Idle),
        (WaitFor::Place, Activity::Push),
        (WaitFor::Permit, Activity::Permit),
        (WaitFor::Result, Activity::Queue),
        (WaitFor::Threads, Activity::Coordinate),
    ];
    drop(activity::accounts());
    for (wait_for, activity) in cases {
        let clock = PausedClock::new();
        let monitor = Monitor::new(Waiters::of(wait_for), Clock::Paused(clock.clone()));
        thread::scope(|scope| {
            let waiting = scope.spawn(|| {
                let until = clock.now() + BIT;
                assert!(!monitor.lock().wait_until(|list| list, Some(until), |_| false));
                let account = activity::of_this_thread();
                let waited = account.of(activity);
                assert!(waited > Duration::ZERO, "{account:?}");
                spin(BIT);
                assert_eq!(activity::of_this_thread().of(activity), waited, "the wait has ended");
            });
            clock.wait_for_waiters(1);
            clock.advance(BIT);
            waiting.join().unwrap();
        });
    }
}

/// Names are bounded among the ended; plain activities are not names.
#[test]
fn ended_threads_with_many_names_hide_no_plain_activity() {
    let wait = || activity::accounts().ended.of(Activity::Permit);
    let before = wait();
    for n in 0..200 {
        thread::spawn(move || activity::external(String::leak(format!("name {n}")), || spin(Duration::from_micros(1))))
            .join()
            .unwrap();
    }
    thread::spawn(|| activity::within(Activity::Permit, || spin(BIT))).join().unwrap();
    assert!(wait() >= before + BIT);
    assert!(activity::accounts().ended.parts().count() < 150);
    let (early, late) = (activity::of_this_thread(), activity::of_this_thread());
    sums_up(&late.since(&early));
    assert_eq!(early.since(&late).wall(), Duration::ZERO, "the other way round there is nothing");
}
