//! The pool with managers that were written for r2d2.
#![cfg(feature = "r2d2")]
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use ::r2d2::ManageConnection;
use fullbore_core::PausedClock;
use fullbore_pool::{Pool, R2d2Manager};
use r2d2_sqlite::SqliteConnectionManager;
use support::{Counted, Db, Down, Fake, panic_on_purpose};

/// The fake database behind the other trait, and how often it was asked whether a connection has broken.
struct Foreign {
    db: Fake,
    asked: Arc<AtomicUsize>,
}

impl ManageConnection for Foreign {
    type Connection = Counted;
    type Error = Down;

    fn connect(&self) -> Result<Counted, Down> {
        fullbore_pool::Manager::connect(&self.db, Duration::MAX)
    }

    fn is_valid(&self, counted: &mut Counted) -> Result<(), Down> {
        fullbore_pool::Manager::validate(&self.db, counted, Duration::MAX)
    }

    fn has_broken(&self, counted: &mut Counted) -> bool {
        self.asked.fetch_add(1, Ordering::SeqCst);
        fullbore_pool::Manager::is_broken(&self.db, counted)
    }
}

fn foreign(db: &Arc<Db>) -> R2d2Manager<Foreign> {
    R2d2Manager::new(Foreign { db: Fake(Arc::clone(db)), asked: Arc::default() })
}

#[test]
fn connects_checks_and_asks_at_the_return() {
    let (clock, db) = (PausedClock::new(), Db::new());
    let pool = Pool::builder(foreign(&db)).max_size(1).clock(&clock).build().unwrap();
    let asked = || pool.manager().get_ref().asked.load(Ordering::SeqCst);
    assert_eq!(pool.get().unwrap().serial, 1);
    assert_eq!((db.connects(), asked()), (1, 1));
    assert_eq!(pool.get().unwrap().serial, 1, "used again, trusted");
    assert_eq!(db.validates.load(Ordering::SeqCst), 0);
    clock.advance(Duration::from_secs(1));
    assert_eq!(pool.get().unwrap().serial, 1);
    assert_eq!(db.validates.load(Ordering::SeqCst), 1);
    // One that is not valid any more is replaced.
    db.on_validate(|_, _| Err(Down));
    clock.advance(Duration::from_secs(1));
    assert_eq!(pool.get().unwrap().serial, 2);
    // One that has broken is not passed on.
    pool.get().unwrap().broken = true;
    assert_eq!((pool.status().size, db.live()), (0, 0));
    assert_eq!(pool.get().unwrap().serial, 3);
}

#[test]
fn has_broken_can_be_skipped() {
    let (clock, db) = (PausedClock::new(), Db::new());
    let pool = Pool::builder(foreign(&db).skip_has_broken()).max_size(1).clock(&clock).build().unwrap();
    pool.get().unwrap().broken = true;
    assert_eq!(pool.manager().get_ref().asked.load(Ordering::SeqCst), 0);
    assert_eq!(pool.get().unwrap().serial, 1, "passed on: nobody asked");
    // The next check finds it.
    db.on_validate(|counted, _| if counted.broken { Err(Down) } else { Ok(()) });
    clock.advance(Duration::from_secs(1));
    assert_eq!(pool.get().unwrap().serial, 2);
}

#[test]
fn the_managers_own_error_comes_back() {
    let (clock, db) = (PausedClock::new(), Db::new());
    db.on_connect(|_, _| Err(Down));
    let pool = Pool::builder(foreign(&db)).max_size(1).clock(&clock).build().unwrap();
    for _ in 0..3 {
        let error = pool.get().unwrap_err();
        assert_eq!(error.connect_error(), Some(&Down), "{error}");
        clock.advance(Duration::from_secs(1));
    }
    assert_eq!((pool.status().size, db.connects()), (0, 3));
    db.on_connect(|_, _| Ok(()));
    assert!(pool.get().is_ok());
}

#[test]
fn a_panic_costs_no_place() {
    // In r2d2 itself a panic of `connect` or `is_valid` takes a place for good.
    let (clock, db) = (PausedClock::new(), Db::new());
    let pool = Pool::builder(foreign(&db)).max_size(1).clock(&clock).build().unwrap();
    db.on_connect(|_, _| panic_on_purpose());
    for _ in 0..3 {
        assert!(pool.get().unwrap_err().is_connect());
        clock.advance(Duration::from_secs(1));
    }
    assert_eq!(db.connects(), 3);
    db.on_connect(|_, _| Ok(()));
    drop(pool.get().unwrap());
    db.on_validate(|_, _| panic_on_purpose());
    clock.advance(Duration::from_secs(1));
    assert!(catch_unwind(AssertUnwindSafe(|| pool.get())).is_err());
    assert_eq!((pool.status().size, db.live()), (0, 0));
    // `has_broken` runs where a guard is dropped: contained, and the connection is closed.
    db.on_is_broken(|_, _| panic_on_purpose());
    drop(pool.get().unwrap());
    assert_eq!((pool.status().size, db.live()), (0, 0));
    db.on_is_broken(|_, _| false);
    drop(pool.get().unwrap());
    assert_eq!((pool.status().available, db.live()), (1, 1));
    let seen = pool.station().snapshot();
    assert!(seen.balanced() && seen.in_service() == 0, "{seen:?}");
}

#[test]
fn a_waiter_gets_the_place_of_a_connection_that_came_back_broken() {
    // In r2d2 with `min_idle` 0 it waits until its timeout.
    let (clock, db) = (PausedClock::new(), Db::new());
    let pool = Pool::builder(foreign(&db)).max_size(1).clock(&clock).build().unwrap();
    let mut held = pool.get().unwrap();
    thread::scope(|scope| {
        let waiter = scope.spawn(|| pool.get().map(|counted| counted.serial));
        clock.wait_for_waiters(1);
        held.broken = true;
        drop(held);
        assert_eq!(waiter.join().unwrap().unwrap(), 2);
    });
}

#[test]
fn a_real_manager_moves_in_unchanged() {
    let dir = tempfile::tempdir().unwrap();
    let clock = PausedClock::new();
    let manager = SqliteConnectionManager::file(dir.path().join("db"))
        .with_init(|connection| connection.execute_batch("CREATE TABLE IF NOT EXISTS t (id INTEGER PRIMARY KEY)"));
    let pool = Pool::builder(R2d2Manager::new(manager)).max_size(2).clock(&clock).build().unwrap();
    thread::scope(|scope| {
        for id in 0..8 {
            let pool = &pool;
            scope.spawn(move || {
                let insert = |connection: &mut r2d2_sqlite::rusqlite::Connection| {
                    connection.execute("INSERT INTO t VALUES (?1)", [id])
                };
                assert_eq!(pool.with(insert).unwrap().unwrap(), 1);
            });
        }
    });
    assert!(pool.status().size <= 2);
    // Its own check.
    let id = pool.get().unwrap().id();
    clock.advance(Duration::from_secs(1));
    let connection = pool.get().unwrap();
    assert_eq!(connection.id(), id);
    let count: u32 = connection.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).unwrap();
    assert_eq!(count, 8);
}

#[test]
fn a_real_managers_error_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let manager = SqliteConnectionManager::file(dir.path().join("nowhere").join("db"));
    let pool = Pool::builder(R2d2Manager::new(manager)).max_size(1).build().unwrap();
    for _ in 0..2 {
        let error = pool.get().unwrap_err();
        let code = error.connect_error().unwrap().sqlite_error_code();
        assert_eq!(code, Some(r2d2_sqlite::rusqlite::ErrorCode::CannotOpen), "{error}");
    }
    assert_eq!(pool.status().size, 0);
}
