//! What the pool does for connections that nobody uses.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use fullbore_core::PausedClock;
use fullbore_pool::{Pool, QueueMode};
use support::{Db, Down, Fake, advance, pool, until};

const SECOND: Duration = Duration::from_secs(1);

fn wait_for_idle(pool: &Pool<Fake>, idle: usize) {
    until(|| (pool.status().size, pool.status().available) == (idle, idle));
}

#[test]
fn min_idle_is_there_before_anybody_asks() {
    let (clock, db) = (PausedClock::new(), Db::new());
    let pool = pool(&db, &clock, 5).min_idle(3).build().unwrap();
    wait_for_idle(&pool, 3);
    advance(&clock, SECOND * 60);
    assert_eq!((db.connects(), pool.status().size), (3, 3), "and no more");
    assert!(pool.try_get().is_ok());
}

#[test]
fn min_idle_stays_within_max_size() {
    let (clock, db) = (PausedClock::new(), Db::new());
    let pool = pool(&db, &clock, 3).min_idle(3).build().unwrap();
    wait_for_idle(&pool, 3);
    let held = [0; 3].map(|_| pool.get().unwrap());
    thread::scope(|scope| {
        let waiter = scope.spawn(|| pool.get().map(drop));
        clock.wait_for_waiters(1);
        assert_eq!(pool.status().connecting, 0);
        drop(held);
        waiter.join().unwrap().unwrap();
    });
    assert_eq!((db.most(), db.connects()), (3, 3));
}

#[test]
fn min_idle_is_refilled_whatever_took_one_away() {
    let (clock, db) = (PausedClock::new(), Db::new());
    let pool = pool(&db, &clock, 4).min_idle(2).build().unwrap();
    wait_for_idle(&pool, 2);
    let mut expected = 2;
    let mut refilled = |what| {
        expected += 1;
        db.wait(|db| db.connects() == expected);
        wait_for_idle(&pool, 2);
        assert_eq!(db.connects(), expected, "{what}");
    };
    pool.get().unwrap().discard();
    refilled("closed by its holder");
    pool.get().unwrap().detach().uncount();
    refilled("taken out by its holder");
    pool.get().unwrap().broken = true;
    refilled("came back broken");
    let mut one = true;
    let taken = pool.retain(|_, _| !std::mem::take(&mut one));
    assert_eq!((taken.removed.len(), taken.retained), (1, 1));
    drop(taken);
    refilled("taken out by retain");
    // All that are ready are out, and somebody asks in vain.
    let held = [0; 2].map(|_| pool.get().unwrap());
    let third = pool.get().unwrap();
    advance(&clock, SECOND);
    db.wait(|db| db.live() == 4);
    drop((held, third));
    wait_for_idle(&pool, 4);
    assert_eq!(db.most(), 4);
}

#[test]
fn min_idle_comes_after_an_outage() {
    let (clock, db) = (PausedClock::new(), Db::new());
    db.on_connect(|_, _| Err(Down));
    let pool = pool(&db, &clock, 4).min_idle(2).build().unwrap();
    for failures in 1..6 {
        until(|| pool.stats().connect_failures == failures);
        assert_eq!(pool.status().size, 0, "one attempt at a time");
        // Longer than any pause.
        advance(&clock, SECOND * 10);
    }
    until(|| pool.stats().connect_failures == 6);
    db.on_connect(|_, _| Ok(()));
    advance(&clock, SECOND * 10);
    wait_for_idle(&pool, 2);
    assert_eq!((db.connects(), pool.stats().connect_failures), (8, 6));
}

#[test]
fn what_has_been_idle_for_too_long_goes_but_min_idle_stays() {
    let (clock, db) = (PausedClock::new(), Db::new());
    let pool = pool(&db, &clock, 5).min_idle(2).idle_timeout(SECOND * 60).max_lifetime(None).build().unwrap();
    wait_for_idle(&pool, 2);
    let held = [0; 5].map(|_| pool.get().unwrap());
    drop(held);
    wait_for_idle(&pool, 5);
    advance(&clock, SECOND * 59);
    assert_eq!(pool.status().size, 5);
    advance(&clock, SECOND);
    wait_for_idle(&pool, 2);
    advance(&clock, SECOND * 600);
    assert_eq!((pool.status().size, db.connects(), pool.stats().closed_idle), (2, 5, 3));
}

#[test]
fn one_that_is_to_retire_is_replaced_before() {
    let (clock, db) = (PausedClock::new(), Db::new());
    let builder = pool(&db, &clock, 2).min_idle(1).idle_timeout(None);
    let pool = builder.max_lifetime(SECOND * 100).lifetime_jitter(0.0).build().unwrap();
    wait_for_idle(&pool, 1);
    let at_close = Arc::new(Mutex::new(Vec::new()));
    let (log, seen) = (Arc::clone(&at_close), Arc::downgrade(&db));
    db.on_close(move |counted, _| log.lock().unwrap().push((counted.serial, seen.upgrade().unwrap().live())));
    advance(&clock, SECOND * 94);
    assert_eq!(db.connects(), 1);
    // A twentieth of its life before the end.
    advance(&clock, SECOND);
    db.wait(|db| db.connects() == 2);
    until(|| pool.status().available == 2);
    assert_eq!(db.closes(), 0);
    advance(&clock, SECOND);
    wait_for_idle(&pool, 1);
    assert_eq!(*at_close.lock().unwrap(), [(1, 2)], "there were two when it was closed");
    assert_eq!((pool.get().unwrap().serial, pool.stats().closed_old), (2, 1));
}

#[test]
fn lifetimes_end_one_by_one() {
    let (clock, db) = (PausedClock::new(), Db::new());
    let builder = pool(&db, &clock, 32).idle_timeout(None).validate_after(Duration::MAX);
    let pool = builder.max_lifetime(SECOND * 100).lifetime_jitter(0.5).build().unwrap();
    drop([0; 32].map(|_| pool.get().unwrap()));
    wait_for_idle(&pool, 32);
    let mut ends = BTreeSet::new();
    for second in 1..=100 {
        if db.live() > 0 {
            advance(&clock, SECOND);
        }
        until(|| pool.status().available == pool.status().size);
        if db.live() < 32 {
            ends.insert((second, db.live()));
        }
        if db.live() == 0 {
            break;
        }
    }
    let first = ends.first().unwrap().0;
    let moments: BTreeSet<usize> = ends.iter().map(|(_, live)| *live).collect();
    assert!(first >= 45, "half of it is certain, less the time for a replacement: {ends:?}");
    // And nobody gets more.
    until(|| db.live() == 0);
    assert!(moments.len() >= 8, "32 connections made together went in few groups: {ends:?}");
}

#[test]
fn keepalive_asks_exactly_those_that_are_idle() {
    let (clock, db) = (PausedClock::new(), Db::new());
    let asked = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&asked);
    db.on_validate(move |counted, budget| {
        log.lock().unwrap().push((counted.serial, budget));
        Ok(())
    });
    let builder = pool(&db, &clock, 3).keepalive(SECOND * 30).validate_timeout(SECOND * 7);
    let pool = builder.idle_timeout(None).build().unwrap();
    let [first, second, third] = [0; 3].map(|_| pool.get().unwrap());
    drop(first);
    advance(&clock, SECOND * 10);
    drop(second);
    let asked = |expected: &[u64]| {
        db.wait(|db| db.validates() >= expected.len());
        until(|| pool.status().available == 2);
        let asked = std::mem::take(&mut *asked.lock().unwrap());
        assert_eq!(asked, expected.iter().map(|serial| (*serial, SECOND * 7)).collect::<Vec<_>>());
        db.validates.store(0, std::sync::atomic::Ordering::SeqCst);
    };
    advance(&clock, SECOND * 20);
    asked(&[1]);
    advance(&clock, SECOND * 10);
    asked(&[2]);
    advance(&clock, SECOND * 20);
    asked(&[1]);
    advance(&clock, SECOND * 10);
    asked(&[2]);
    drop(third);
    assert_eq!((db.connects(), pool.status().size), (3, 3));
}

#[test]
fn one_that_keepalive_finds_dead_is_closed_and_no_other_is_trusted() {
    let (clock, db) = (PausedClock::new(), Db::new());
    let pool = pool(&db, &clock, 2).keepalive(SECOND * 30).build().unwrap();
    let [first, second] = [0; 2].map(|_| pool.get().unwrap());
    drop(first);
    advance(&clock, SECOND * 29);
    clock.advance(SECOND - Duration::from_millis(1));
    drop(second);
    assert_eq!(pool.get().unwrap().serial, 2, "the one this thread had last");
    assert_eq!(db.validates(), 0, "trusted, as it was used just now");
    db.on_validate(|counted, _| if counted.serial == 1 { Err(Down) } else { Ok(()) });
    advance(&clock, Duration::from_millis(1));
    until(|| pool.status().size == 1);
    assert_eq!((db.validates(), db.closes(), pool.stats().closed_invalid), (1, 1, 1));
    assert_eq!(pool.get().unwrap().serial, 2);
    assert_eq!(db.validates(), 2, "checked, although it was used just now");
    assert_eq!(pool.get().unwrap().serial, 2);
    assert_eq!(db.validates(), 2, "and trusted again");
}

#[test]
fn one_that_keepalive_finds_alive_is_trusted_again() {
    let (clock, db) = (PausedClock::new(), Db::new());
    let builder = pool(&db, &clock, 2).keepalive(SECOND * 30).validate_after(SECOND * 60);
    let pool = builder.idle_timeout(None).build().unwrap();
    let [first, second] = [0; 2].map(|_| pool.get().unwrap());
    drop(first);
    advance(&clock, SECOND * 15);
    drop(second);
    // At 30 s the first is dead, at 45 s the second is alive.
    db.on_validate(|counted, _| if counted.serial == 1 { Err(Down) } else { Ok(()) });
    advance(&clock, SECOND * 15);
    until(|| pool.status().size == 1);
    advance(&clock, SECOND * 15);
    db.wait(|db| db.validates() == 2);
    wait_for_idle(&pool, 1);
    assert_eq!(pool.get().unwrap().serial, 2);
    assert_eq!(db.validates(), 2, "asked once, not twice");
}

#[test]
fn keepalive_keeps_nothing_from_its_idle_timeout() {
    let (clock, db) = (PausedClock::new(), Db::new());
    let builder = pool(&db, &clock, 1).keepalive(SECOND * 30).idle_timeout(SECOND * 100);
    let pool = builder.max_lifetime(None).build().unwrap();
    drop(pool.get().unwrap());
    for asked in 1..=3 {
        advance(&clock, SECOND * 30);
        db.wait(|db| db.validates() == asked);
        wait_for_idle(&pool, 1);
    }
    // At 100 s it is due, and seen at the next look at the latest.
    clock.advance(SECOND * 30);
    wait_for_idle(&pool, 0);
    assert_eq!((db.validates(), pool.stats().closed_idle), (3, 1));
}

/// HikariCP#1839: the window in which connections are trusted unchecked handed out one dead connection after the other.
#[test]
fn after_the_first_dead_one_no_other_is_trusted_unchecked() {
    let (clock, db) = (PausedClock::new(), Db::new());
    let pool = pool(&db, &clock, 3).queue_mode(QueueMode::Fifo).build().unwrap();
    let [first, second, third] = [0; 3].map(|_| pool.get().unwrap());
    drop(first);
    clock.advance(SECOND);
    drop((second, third));
    let asked = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&asked);
    db.on_validate(move |counted, _| {
        log.lock().unwrap().push(counted.serial);
        Err(Down)
    });
    // The one that was idle for long is asked; the others were used just now.
    assert_eq!(pool.get().unwrap().serial, 4);
    assert_eq!(*asked.lock().unwrap(), [1, 2, 3]);
    assert_eq!(pool.get().unwrap().serial, 4, "made since, so it is trusted");
    assert_eq!((db.validates(), pool.stats().closed_invalid), (3, 3));
}

#[test]
fn lifo_uses_few_and_fifo_all() {
    for (mode, expected) in [(QueueMode::Lifo, [3, 3, 3, 3]), (QueueMode::Fifo, [1, 2, 3, 1])] {
        let (clock, db) = (PausedClock::new(), Db::new());
        let pool = pool(&db, &clock, 3).queue_mode(mode).build().unwrap();
        let held = [0; 3].map(|_| pool.get().unwrap());
        for one in held {
            clock.advance(Duration::from_millis(1));
            drop(one);
        }
        let used = [0; 4].map(|_| {
            clock.advance(Duration::from_millis(1));
            pool.get().unwrap().serial
        });
        assert_eq!(used, expected, "{mode:?}");
    }
}

#[test]
fn what_a_connection_has_been_through_is_known() {
    let (clock, db) = (PausedClock::new(), Db::new());
    let pool = pool(&db, &clock, 1).build().unwrap();
    let born = clock.now();
    for uses in 0..3 {
        let held = pool.get().unwrap();
        assert_eq!((held.metrics().created, held.metrics().recycle_count), (born, uses));
        clock.advance(SECOND / 4);
    }
    let mut own = fullbore_pool::Connection::take(pool.get().unwrap());
    own.uncount();
    assert_eq!((pool.status().size, db.live(), pool.stats().removed), (0, 0, 1));
}
