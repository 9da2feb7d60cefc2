//! More callers than connections: who is turned away, when the reserve is used, and that no connections are made for nobody.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use std::sync::Mutex;
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Duration;

use fullbore_core::PausedClock;
use fullbore_pool::{Background, Pool};
use support::{Db, Down, Fake, pool, until};

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn who_comes_when_too_many_wait_is_turned_away_at_once() {
    let (clock, db) = (PausedClock::new(), Db::new());
    let pool = pool(&db, &clock, 1).max_waiters(2).build().unwrap();
    let held = pool.get().unwrap();
    thread::scope(|scope| {
        let waiters = [0; 2].map(|_| scope.spawn(|| pool.get().map(drop)));
        clock.wait_for_waiters(2);
        clock.advance(SECOND);
        let shed = pool.get().unwrap_err();
        assert!(shed.is_shed() && !shed.is_full() && !shed.is_timeout(), "{shed}");
        let status = shed.status().unwrap();
        assert_eq!((status.waiting, status.oldest_wait, status.in_use()), (2, SECOND, 1));
        assert!(shed.to_string().contains("1 of 1 connections of test busy, 2 waiting, oldest 1.0s"), "{shed}");
        assert!(pool.get_deadline(clock.now() + SECOND).unwrap_err().is_shed());
        assert!(pool.try_get().unwrap_err().is_full(), "it would not have waited");
        drop(held);
        for waiter in waiters {
            waiter.join().unwrap().unwrap();
        }
    });
    assert!(pool.get().is_ok());
    let seen = pool.station().snapshot();
    assert!(seen.balanced(), "{seen:?}");
    assert_eq!((seen.refused, seen.served, seen.returned), (3, 4, 0));
}

#[test]
fn the_reserve_is_for_one_who_waited_too_long_and_goes_again() {
    let (clock, db) = (PausedClock::new(), Db::new());
    let pool = pool(&db, &clock, 1).reserve_size(1).reserve_after(SECOND * 5).build().unwrap();
    let held = pool.get().unwrap();
    thread::scope(|scope| {
        let first = scope.spawn(|| pool.get().unwrap());
        clock.wait_for_waiters(1);
        clock.advance(SECOND * 4);
        let second = scope.spawn(|| pool.get().unwrap().serial);
        clock.wait_for_waiters(2);
        assert_eq!((db.connects(), pool.status().size), (1, 1));
        clock.advance(SECOND);
        let first = first.join().unwrap();
        assert_eq!((first.serial, pool.status().size, pool.status().max_size), (2, 2, 1));
        // The reserve has one.
        clock.wait_for_waiters(1);
        clock.advance(SECOND * 5);
        clock.wait_for_waiters(1);
        assert_eq!((db.connects(), pool.status().size), (2, 2));
        drop(held);
        assert_eq!(second.join().unwrap(), 1, "the one that came back");
        drop(first);
    });
    until(|| pool.status().size == 1);
    assert_eq!((db.live(), db.most(), pool.stats().closed_surplus), (1, 2, 1));
}

#[test]
fn a_reserve_that_comes_too_late_goes_at_once() {
    let (clock, db) = (PausedClock::new(), Db::new());
    let builder = pool(&db, &clock, 1).reserve_size(1).reserve_after(SECOND * 5).connect_timeout(SECOND * 60);
    let pool = builder.idle_timeout(None).max_lifetime(None).build().unwrap();
    let held = pool.get().unwrap();
    let gate = db.stop_in_connect();
    thread::scope(|scope| {
        let waiter = scope.spawn(|| pool.get().map(drop));
        clock.wait_for_waiters(1);
        clock.advance(SECOND * 5);
        gate.wait();
        clock.advance(SECOND * 25);
        assert!(waiter.join().unwrap().unwrap_err().is_timeout());
    });
    gate.release();
    db.wait(|db| db.closes() == 1);
    until(|| pool.status().size == 1);
    assert_eq!((held.serial, pool.stats().closed_surplus), (1, 1));
}

#[test]
fn try_get_never_waits_and_has_one_made_for_the_next() {
    let (clock, db) = (PausedClock::new(), Db::new());
    let gate = db.stop_in_connect();
    let pool = pool(&db, &clock, 4).build().unwrap();
    for _ in 0..3 {
        assert!(pool.try_get().unwrap_err().is_full());
    }
    gate.wait();
    gate.release();
    until(|| pool.status().available == 1);
    let held = pool.try_get().unwrap();
    assert_eq!((held.serial, db.connects()), (1, 1), "one, however often it was asked for");
    drop(held);
    db.on_connect(|_, _| Err(Down));
    let held = pool.get().unwrap();
    assert!(pool.try_get().unwrap_err().is_full());
    until(|| pool.stats().connect_failures == 1);
    assert!(pool.try_get().unwrap_err().is_full(), "there is one, which may come back");
    held.discard();
    assert!(pool.try_get().unwrap_err().is_connect(), "there will be none");
}

/// HikariCP's spike: 45 callers come at once while one connection is being made. The work is short: that one serves nearly all.
#[test]
fn a_spike_that_is_over_makes_no_connections() {
    let (clock, db) = (PausedClock::new(), Db::new());
    let gate = db.stop_in_connect();
    let background = Background::on(1, &clock).unwrap();
    let builder = pool(&db, &clock, 50).connect_timeout(SECOND * 60).get_timeout(SECOND * 60);
    let pool = builder.background(&background).build().unwrap();
    let begin = Mutex::new(());
    thread::scope(|scope| {
        // Nobody is served before the second connect has begun.
        let hold = begin.lock().unwrap();
        let callers = [0; 45].map(|_| scope.spawn(|| pool.with(|_| drop(begin.lock().unwrap()))));
        gate.wait();
        clock.wait_for_waiters(45);
        assert_eq!((pool.status().connecting, pool.status().waiting), (1, 45), "one at a time");
        gate.release();
        // While the next one is being made the first serves everybody.
        gate.wait();
        drop(hold);
        for caller in callers {
            caller.join().unwrap().unwrap();
        }
    });
    assert_eq!(db.connects(), 2);
    gate.release();
    until(|| pool.status().connecting == 0);
    assert_eq!((db.connects(), db.most(), pool.status().available), (2, 2, 2), "nobody needs more");
}

/// As above: the next ones have been ordered, and are not begun any more.
#[test]
fn what_nobody_needs_any_more_is_not_begun() {
    let (clock, db) = (PausedClock::new(), Db::new());
    let gate = db.stop_in_connect();
    // The only thread that connects is busy for another pool.
    let background = Background::on(1, &clock).unwrap();
    let other = pool(&db, &clock, 1).background(&background).build().unwrap();
    let pool = pool(&db, &clock, 1).background(&background).build().unwrap();
    thread::scope(|scope| {
        let others = scope.spawn(|| other.get().map(drop));
        gate.wait();
        let waiter = scope.spawn(|| pool.get_deadline(clock.now() + SECOND).map(drop));
        clock.wait_for_waiters(2);
        assert_eq!((pool.status().connecting, db.connects()), (1, 1), "ordered");
        clock.advance(SECOND);
        assert!(waiter.join().unwrap().unwrap_err().is_timeout());
        gate.release();
        others.join().unwrap().unwrap();
    });
    until(|| pool.status().size == 0);
    assert_eq!((db.connects(), pool.stats().connects_elided), (1, 1));
    // It is begun again for whoever comes.
    db.on_connect(|_, _| Ok(()));
    assert!(pool.get().is_ok());
}

#[test]
fn a_crowd_is_served_by_as_many_as_it_needs() {
    let db = Db::new();
    let pool = Pool::builder(Fake(Arc::clone(&db))).max_size(8).build().unwrap();
    let together = Barrier::new(8);
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let held = pool.get().unwrap();
                // All at once, so all eight are needed.
                together.wait();
                drop(held);
            });
        }
    });
    assert_eq!((db.most(), pool.status().size), (8, 8));
}
