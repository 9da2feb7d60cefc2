//! A database that is down, comes back, or does not answer: what callers are told, and how often it is asked.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use fullbore_core::{Clock, PausedClock};
use fullbore_pool::{Background, ConnectError, KeyedManager, KeyedPool, WhileDown};
use support::{Counted, Db, Down, Gate, LONG, advance, keyed, pool, until};

const SECOND: Duration = Duration::from_secs(1);
const MILLI: Duration = Duration::from_millis(1);
/// The default time for connecting, and what comes on top of it.
const GIVEN_UP_AFTER: Duration = Duration::from_millis(10_500);
/// At least the longest pause between attempts.
const PAUSE: Duration = Duration::from_secs(10);

/// Attempts stop at the gate, and fail as long as it is down.
fn stop_and_fail(db: &Db) -> (Gate, Arc<AtomicBool>) {
    let (gate, pass) = Gate::new();
    let is_down = Arc::new(AtomicBool::new(true));
    let down = Arc::clone(&is_down);
    db.on_connect(move |counted, _| {
        pass(counted);
        if down.load(Ordering::SeqCst) { Err(Down) } else { Ok(()) }
    });
    (gate, is_down)
}

#[test]
fn while_it_is_down_there_is_one_attempt_at_a_time() {
    let (clock, db) = (PausedClock::new(), Db::new());
    let (gate, is_down) = stop_and_fail(&db);
    let builder = pool(&db, &clock, 16).while_down(WhileDown::Wait);
    let pool = builder.get_timeout(Duration::MAX).connect_timeout(Duration::MAX).build().unwrap();
    thread::scope(|scope| {
        let callers = [0; 16].map(|_| scope.spawn(|| pool.get().unwrap()));
        clock.wait_for_waiters(16);
        for attempt in 1..=5 {
            assert_eq!(gate.wait(), attempt);
            assert_eq!((pool.status().connecting, pool.status().size), (1, 1));
            gate.release();
            until(|| pool.stats().connect_failures == attempt);
            assert_eq!((pool.status().size, pool.status().waiting), (0, 16), "first a pause");
            clock.advance(PAUSE);
        }
        // It is back: one, and each that is good doubles how many there may be at once.
        is_down.store(false, Ordering::SeqCst);
        let mut new = 1;
        for ramp in [1, 2, 4, 8] {
            (0..new).for_each(|_| _ = gate.wait());
            until(|| pool.status().connecting == ramp);
            assert_eq!(gate.waiting(), 0, "no more of them");
            gate.release();
            new = ramp + 1;
        }
        drop(gate);
        // Each has one of its own.
        let held = callers.map(|caller| caller.join().unwrap());
        assert_eq!((held.len(), pool.status().size), (16, 16));
    });
}

#[test]
fn after_each_failure_it_begins_with_one_again() {
    let (clock, db) = (PausedClock::new(), Db::new());
    let (gate, is_down) = stop_and_fail(&db);
    let builder = pool(&db, &clock, 16).while_down(WhileDown::Wait);
    let pool = builder.get_timeout(Duration::MAX).connect_timeout(Duration::MAX).build().unwrap();
    thread::scope(|scope| {
        let callers = [0; 16].map(|_| scope.spawn(|| pool.get().unwrap()));
        clock.wait_for_waiters(16);
        is_down.store(false, Ordering::SeqCst);
        // Two are good, so there are four.
        for new in [1, 2] {
            (0..new).for_each(|_| _ = gate.wait());
            gate.release();
        }
        (0..3).for_each(|_| _ = gate.wait());
        assert_eq!(pool.status().connecting, 4);
        is_down.store(true, Ordering::SeqCst);
        (0..4).for_each(|_| gate.release());
        until(|| pool.stats().connect_failures == 4);
        assert_eq!((pool.status().size, pool.status().connecting), (2, 0));
        clock.wait_for_waiters(14);
        is_down.store(false, Ordering::SeqCst);
        for ramp in [1, 2, 4] {
            clock.advance(PAUSE);
            until(|| pool.status().connecting == ramp);
            gate.release();
        }
        drop(gate);
        callers.into_iter().for_each(|caller| drop(caller.join().unwrap()));
    });
}

#[test]
fn the_last_error_is_told_at_once_and_with_its_age() {
    let (clock, db) = (PausedClock::new(), Db::new());
    db.on_connect(|_, _| Err(Down));
    let pool = pool(&db, &clock, 2).backoff(SECOND, SECOND * 60).build().unwrap();
    let first = pool.get().unwrap_err();
    assert_eq!(
        (first.connect_error_age(), first.to_string()),
        (Some(Duration::ZERO), "cannot connect: the database is down".into())
    );
    clock.advance(MILLI * 300);
    for error in [pool.get().unwrap_err(), pool.try_get().unwrap_err(), pool.get_deadline(clock.now()).unwrap_err()] {
        assert!(error.is_connect() && !error.is_full() && !error.is_timeout(), "{error}");
        assert_eq!((error.connect_error(), error.connect_error_age()), (Some(&Down), Some(MILLI * 300)));
        assert_eq!(error.to_string(), "cannot connect: the database is down (300.0ms ago)");
    }
    assert_eq!(db.connects(), 1, "nobody was asked");
    // The pause is at most twice as long.
    clock.advance(SECOND * 2);
    let again = pool.get().unwrap_err();
    assert_eq!((again.connect_error_age(), db.connects()), (Some(Duration::ZERO), 2));
    let seen = pool.station().snapshot();
    assert!(seen.balanced() && (seen.returned, seen.refused) == (2, 3), "{seen:?}");
}

#[test]
fn who_waits_and_times_out_is_told_what_failed_last() {
    let (clock, db) = (PausedClock::new(), Db::new());
    db.on_connect(|_, _| Err(Down));
    let pool = pool(&db, &clock, 2).while_down(WhileDown::Wait).backoff(SECOND * 7, SECOND * 7).build().unwrap();
    thread::scope(|scope| {
        let caller = scope.spawn(|| pool.get_deadline(clock.now() + SECOND * 5).map(drop));
        clock.wait_for_waiters(1);
        until(|| pool.stats().connect_failures == 1);
        clock.wait_for_waiters(1);
        clock.advance(SECOND * 5);
        let error = caller.join().unwrap().unwrap_err();
        assert!(error.is_timeout() && !error.is_connect(), "{error}");
        assert_eq!((error.connect_error(), error.connect_error_age()), (Some(&Down), Some(SECOND * 5)));
        assert!(error.to_string().ends_with("the database is down (5.0s ago)"), "{error}");
    });
}

#[test]
fn the_pauses_grow_to_their_bound() {
    let (clock, db) = (PausedClock::new(), Db::new());
    db.on_connect(|_, _| Err(Down));
    let builder = pool(&db, &clock, 2).while_down(WhileDown::Wait).get_timeout(Duration::MAX);
    let pool = builder.backoff(MILLI * 100, MILLI * 1000).build().unwrap();
    let mut pauses = Vec::new();
    thread::scope(|scope| {
        scope.spawn(|| pool.get().map(drop));
        until(|| pool.stats().connect_failures == 1);
        clock.wait_for_waiters(1);
        let mut pause = Duration::ZERO;
        while pauses.len() < 7 {
            let failures = pool.stats().connect_failures;
            advance(&clock, MILLI * 10);
            pause += MILLI * 10;
            until(|| pool.status().connecting == 0);
            if pool.stats().connect_failures > failures {
                pauses.push(std::mem::take(&mut pause));
            }
        }
        pool.close();
    });
    let expected = [100, 200, 400, 800, 1000, 1000, 1000].map(|millis| MILLI * millis);
    for (pause, most) in pauses.iter().zip(expected) {
        // Shortened by up to half of itself; seen at the next hundredth of a second.
        assert!(most / 2 <= *pause && *pause <= most + MILLI * 10, "{pauses:?}");
    }
}

#[test]
fn a_pause_that_is_too_long_to_represent_is_one() {
    let (clock, db) = (PausedClock::new(), Db::new());
    db.on_connect(|counted, _| if counted.serial == 1 { Err(Down) } else { Ok(()) });
    let builder = pool(&db, &clock, 2).while_down(WhileDown::Wait).get_timeout(Duration::MAX);
    let pool = builder.backoff(MILLI * 100, Duration::MAX).build().unwrap();
    thread::scope(|scope| {
        let caller = scope.spawn(|| pool.get().unwrap().serial);
        clock.wait_for_waiters(1);
        until(|| pool.stats().connect_failures == 1);
        clock.wait_for_waiters(1);
        advance(&clock, MILLI * 200);
        assert_eq!(caller.join().unwrap(), 2);
    });
}

#[test]
fn a_tenant_that_is_down_does_not_disturb_the_others() {
    let (clock, db) = (PausedClock::new(), Db::new());
    let manager = PerTenant { db: Arc::clone(&db), down: Mutex::new(Some('a')) };
    let pool = KeyedPool::builder(manager).max_size(4).clock(&clock).build().unwrap();
    assert!(pool.get(&'a').unwrap_err().is_connect());
    for _ in 0..3 {
        assert!(pool.get(&'a').unwrap_err().connect_error_age().is_some());
        let held = ['b', 'c'].map(|key| pool.get(&key).unwrap());
        held.into_iter().for_each(fullbore_pool::Connection::discard);
    }
    assert_eq!(db.connects(), 7, "one for a");
    *pool.manager().down.lock().unwrap() = None;
    clock.advance(PAUSE);
    assert!(pool.get(&'a').is_ok());
}

/// Tenants, one of which may be down.
struct PerTenant {
    db: Arc<Db>,
    down: Mutex<Option<char>>,
}

impl KeyedManager<char> for PerTenant {
    type Connection = Counted;
    type Error = Down;
    fn connect(&self, key: &char, budget: Duration) -> Result<Counted, Down> {
        let made = fullbore_pool::Manager::connect(&support::Fake(Arc::clone(&self.db)), budget)?;
        if *self.down.lock().unwrap() == Some(*key) { Err(Down) } else { Ok(made) }
    }
    fn validate(&self, _: &char, _: &mut Counted, _: Duration) -> Result<(), Down> {
        Ok(())
    }
}

#[test]
fn a_tenant_whose_server_is_silent_does_not_disturb_the_others() {
    let (clock, db) = (PausedClock::new(), Db::new());
    let gate = db.stop_in_connect();
    let pool = keyed::<char>(&db, &clock, 4).build().unwrap();
    thread::scope(|scope| {
        let silent = scope.spawn(|| pool.get_deadline(&'a', clock.now() + SECOND).map(drop));
        gate.wait();
        db.on_connect(|_, _| Ok(()));
        // Nobody has made a connection yet, so it begins with one at a time, of each tenant.
        drop(pool.get(&'b').unwrap());
        drop(pool.get(&'c').unwrap());
        clock.wait_for_waiters(1);
        clock.advance(SECOND);
        assert!(silent.join().unwrap().unwrap_err().is_timeout());
    });
}

#[test]
fn failures_are_forgotten() {
    let (clock, db) = (PausedClock::new(), Db::new());
    db.on_connect(|_, _| Err(Down));
    let pool = keyed::<u32>(&db, &clock, 4).backoff(SECOND, SECOND * 5).build().unwrap();
    for tenant in 0..500 {
        assert!(pool.get(&tenant).unwrap_err().is_connect());
    }
    assert_eq!(pool.get(&0).unwrap_err().connect_error_age(), Some(Duration::ZERO), "remembered");
    until(|| clock.timers() == 1);
    // After its pause, of at most 2 s, each is remembered for the longest pause, so that the next one is longer.
    clock.advance(SECOND * 2);
    until(|| clock.timers() == 1);
    clock.advance(SECOND * 5);
    until(|| clock.timers() == 0);
    let parks = clock.parks();
    for _ in 0..100 {
        clock.advance(SECOND * 60);
    }
    // Threads may have come to rest meanwhile.
    assert!(clock.timers() == 0 && clock.parks() - parks <= 9, "nothing is left to look after");
    assert_eq!(db.connects(), 500, "and nobody was asked in vain");
}

#[test]
fn a_connect_that_takes_too_long_is_given_up_and_what_comes_of_it_is_closed() {
    let (clock, db) = (PausedClock::new(), Db::new());
    let gate = db.stop_in_connect();
    let pool = pool(&db, &clock, 1).build().unwrap();
    let is_stuck = |error: fullbore_pool::GetError<Down>| {
        assert!(error.is_connect() && error.connect_error().is_none(), "{error}");
        assert_eq!(error.to_string(), "cannot connect: no answer within 10s");
        matches!(error.into_connect_error(), Ok(ConnectError::Stuck(limit)) if limit == SECOND * 10)
    };
    thread::scope(|scope| {
        let callers = [0; 3].map(|_| scope.spawn(|| pool.get().map(drop)));
        gate.wait();
        clock.wait_for_waiters(3);
        clock.advance(GIVEN_UP_AFTER - MILLI);
        clock.wait_for_waiters(3);
        assert_eq!((pool.status().connecting, pool.status().stuck), (1, 0));
        clock.advance(MILLI);
        for caller in callers {
            assert!(is_stuck(caller.join().unwrap().unwrap_err()));
        }
    });
    let (status, stats) = (pool.status(), pool.stats());
    assert_eq!((status.size, status.connecting, status.stuck), (0, 0, 1));
    assert_eq!((stats.connects_given_up, stats.connect_failures), (1, 1));
    assert!(status.to_string().contains("1 attempts to connect stuck"), "{status}");
    // Its place is free, and another thread does its work.
    db.on_connect(|_, _| Ok(()));
    clock.advance(PAUSE);
    let held = pool.get().unwrap();
    assert_eq!(held.serial, 2);
    gate.release();
    db.wait(|db| db.closes() == 1);
    until(|| pool.status().stuck == 0);
    assert_eq!((pool.status().size, db.live(), held.serial), (1, 1, 2), "the late one is closed");
}

#[test]
fn a_late_failure_and_a_late_panic_change_nothing() {
    for panics in [false, true] {
        let (clock, db) = (PausedClock::new(), Db::new());
        let (gate, pass) = Gate::new();
        db.on_connect(move |counted, _| {
            pass(counted);
            if panics { support::panic_on_purpose() } else { Err(Down) }
        });
        let pool = pool(&db, &clock, 1).build().unwrap();
        thread::scope(|scope| {
            let caller = scope.spawn(|| pool.get().map(drop));
            gate.wait();
            clock.wait_for_waiters(1);
            clock.advance(GIVEN_UP_AFTER);
            assert!(caller.join().unwrap().unwrap_err().is_connect());
        });
        gate.release();
        until(|| pool.status().stuck == 0);
        assert_eq!((pool.status().size, db.live(), pool.stats().connect_failures), (0, 0, 1));
        db.on_connect(|_, _| Ok(()));
        clock.advance(PAUSE);
        assert!(pool.get().is_ok());
    }
}

#[test]
fn at_most_32_attempts_are_left_behind() {
    let (clock, db) = (PausedClock::new(), Db::new());
    let gate = db.stop_in_connect();
    let pool = pool(&db, &clock, 1).build().unwrap();
    thread::scope(|scope| {
        for stuck in 1..=32 {
            let caller = scope.spawn(|| pool.get().map(drop));
            gate.wait();
            clock.wait_for_waiters(1);
            clock.advance(GIVEN_UP_AFTER);
            assert!(caller.join().unwrap().unwrap_err().is_connect());
            assert_eq!(pool.status().stuck, stuck);
            clock.advance(PAUSE);
        }
        let caller = scope.spawn(|| pool.get().map(drop));
        clock.wait_for_waiters(1);
        clock.advance(SECOND * 30);
        let error = caller.join().unwrap().unwrap_err();
        assert!(error.is_timeout() && error.status().unwrap().stuck == 32, "{error}");
        assert_eq!((db.connects(), gate.waiting()), (32, 0), "no thread more");
        // One comes back, and there is one attempt again.
        gate.release();
        until(|| pool.status().stuck == 31);
        let caller = scope.spawn(|| pool.get().unwrap().serial);
        assert_eq!(gate.wait(), 33);
        drop(gate);
        assert_eq!(caller.join().unwrap(), 33);
    });
    until(|| pool.status().stuck == 0);
    assert_eq!((db.live(), db.closes()), (1, 32));
}

/// One set of threads for all pools: one whose server is silent does not take them all.
#[test]
fn stuck_attempts_of_one_pool_leave_threads_for_the_others() {
    let (clock, db) = (PausedClock::new(), Db::new());
    let gate = db.stop_in_connect();
    let background = Background::on(1, &clock).unwrap();
    let silent = pool(&db, &clock, 1).background(&background).build().unwrap();
    let good = Db::new();
    let other = pool(&good, &clock, 1).background(&background).build().unwrap();
    thread::scope(|scope| {
        let caller = scope.spawn(|| silent.get().map(drop));
        gate.wait();
        let others = scope.spawn(|| other.get().unwrap().serial);
        clock.wait_for_waiters(2);
        assert_eq!(good.connects(), 0, "there is one thread");
        clock.advance(GIVEN_UP_AFTER);
        assert!(caller.join().unwrap().unwrap_err().is_connect());
        assert_eq!(others.join().unwrap(), 1, "and another one instead");
    });
    gate.release();
}

#[test]
fn an_outage_on_the_real_clock_ends_for_those_who_wait() {
    let db = Db::new();
    db.on_connect(|counted, _| if counted.serial < 5 { Err(Down) } else { Ok(()) });
    let builder = pool(&db, &PausedClock::new(), 2).clock(Clock::Real).while_down(WhileDown::Wait).get_timeout(LONG);
    let pool = builder.backoff(MILLI, MILLI * 4).build().unwrap();
    let serials: Vec<u64> = thread::scope(|scope| {
        let callers = [0; 4].map(|_| scope.spawn(|| pool.get().unwrap().serial));
        callers.map(|caller| caller.join().unwrap()).into()
    });
    assert!(serials.iter().all(|serial| *serial >= 5), "{serials:?}");
    assert_eq!(pool.stats().connect_failures, 4);
}
