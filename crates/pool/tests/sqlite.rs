//! The pool with real SQLite files.
#![cfg(feature = "sqlite")]
#![allow(missing_docs, clippy::unwrap_used)]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Barrier, Mutex};
use std::thread;
use std::time::Duration;

use fullbore_core::PausedClock;
use fullbore_pool::{Manager, Pool, Sqlite, TransactionError, Transactional};
use rusqlite::{ErrorCode, TransactionBehavior, ffi};

fn pool(dir: &tempfile::TempDir, max_size: usize) -> Pool<Sqlite> {
    let manager = Sqlite::new(dir.path().join("db")).setup("CREATE TABLE IF NOT EXISTS t (id INTEGER PRIMARY KEY)");
    Pool::builder(manager).max_size(max_size).build().unwrap()
}

fn count(pool: &Pool<Sqlite>) -> u32 {
    pool.with(|connection| connection.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).unwrap()).unwrap()
}

#[test]
fn a_transaction_commits_on_ok_and_rolls_back_on_err_and_panic() {
    let dir = tempfile::tempdir().unwrap();
    let pool = pool(&dir, 2);
    let insert = |tx: &mut rusqlite::Transaction<'_>, id: u32| tx.execute("INSERT INTO t VALUES (?1)", [id]);
    assert_eq!(pool.transaction(|tx| insert(tx, 1)).unwrap(), 1);
    assert_eq!(count(&pool), 1);

    let error = pool
        .transaction(|tx| {
            insert(tx, 2).unwrap();
            Err::<(), _>("no")
        })
        .unwrap_err();
    assert!(matches!(error, TransactionError::Body("no")), "{error}");
    assert_eq!(count(&pool), 1);
    assert_eq!(pool.status().size, 1, "the connection was fit for the next one");

    let panicked = catch_unwind(AssertUnwindSafe(|| {
        pool.transaction(|tx| -> Result<(), rusqlite::Error> {
            insert(tx, 3)?;
            std::panic::resume_unwind(Box::new("on purpose"))
        })
    }));
    assert!(panicked.is_err());
    assert_eq!(pool.status().size, 0, "closed");
    assert_eq!(count(&pool), 1);
}

#[test]
fn a_refused_commit_says_so_and_rolls_back() {
    let dir = tempfile::tempdir().unwrap();
    let manager = Sqlite::new(dir.path().join("db")).setup(
        "PRAGMA foreign_keys = ON;
         CREATE TABLE IF NOT EXISTS t (id INTEGER PRIMARY KEY);
         CREATE TABLE IF NOT EXISTS child (t INTEGER REFERENCES t DEFERRABLE INITIALLY DEFERRED)",
    );
    let pool = Pool::builder(manager).build().unwrap();
    let error = pool.transaction(|tx| tx.execute("INSERT INTO child VALUES (7)", [])).unwrap_err();
    assert!(matches!(error, TransactionError::Commit(_)) && !error.is_in_doubt(), "{error}");
    let children: u32 =
        pool.with(|c| c.query_row("SELECT count(*) FROM child", [], |row| row.get(0)).unwrap()).unwrap();
    assert_eq!((children, pool.status().size), (0, 1));
}

#[test]
fn a_connection_that_comes_back_inside_a_transaction_is_not_passed_on() {
    let dir = tempfile::tempdir().unwrap();
    let pool = pool(&dir, 1);
    let first = pool.get().unwrap();
    first.execute_batch("BEGIN; INSERT INTO t VALUES (1)").unwrap();
    let id = first.id();
    drop(first);
    let second = pool.get().unwrap();
    assert_ne!(second.id(), id);
    assert!(second.is_autocommit());
    drop(second);
    assert_eq!(count(&pool), 0, "rolled back");
}

#[test]
fn the_budget_of_the_first_caller_is_not_the_busy_timeout_of_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let busy_timeout = |connection: &rusqlite::Connection| -> u32 {
        connection.pragma_query_value(None, "busy_timeout", |row| row.get(0)).unwrap()
    };
    let manager = Sqlite::new(dir.path().join("db"));
    assert_eq!(busy_timeout(&manager.connect(Duration::from_millis(7)).unwrap()), 5000);
    assert_eq!(busy_timeout(&manager.connect(Duration::MAX).unwrap()), 5000);
    // The budget holds while connecting: with another one's lock in the way the setup gives up after it.
    let locker = manager.connect(Duration::MAX).unwrap();
    locker.execute_batch("BEGIN EXCLUSIVE").unwrap();
    let writes = manager.clone().setup("CREATE TABLE other (id INTEGER)");
    assert!(writes.connect(Duration::from_micros(1)).is_err());
    // What the setup says, goes.
    let own = manager.setup("PRAGMA busy_timeout = 11");
    assert_eq!(busy_timeout(&own.connect(Duration::from_millis(7)).unwrap()), 11);
}

#[test]
fn a_transaction_that_cannot_begin_did_nothing_and_its_connection_is_not_used_again() {
    let dir = tempfile::tempdir().unwrap();
    let manager = Sqlite::new(dir.path().join("db")).setup("PRAGMA busy_timeout = 0");
    let locker = manager.connect(Duration::MAX).unwrap();
    let pool = Pool::builder(manager).max_size(1).build().unwrap();
    let id = pool.get().unwrap().id();
    locker.execute_batch("BEGIN IMMEDIATE").unwrap();
    let error = pool.transaction(|_| -> Result<(), rusqlite::Error> { unreachable!() }).unwrap_err();
    assert!(matches!(error, TransactionError::Begin(_)), "{error}");
    assert_ne!(pool.get().unwrap().id(), id);
}

#[test]
fn a_file_that_is_no_database_is_an_error_each_time_and_takes_no_place() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("db"), [b'x'; 4096]).unwrap();
    let clock = PausedClock::new();
    let manager = Sqlite::new(dir.path().join("db")).setup("CREATE TABLE IF NOT EXISTS t (id INTEGER PRIMARY KEY)");
    let pool = Pool::builder(manager).max_size(1).clock(&clock).build().unwrap();
    for _ in 0..3 {
        clock.advance(Duration::from_secs(1));
        let error = pool.get().unwrap_err();
        let inner = error.connect_error().unwrap();
        assert_eq!(inner.sqlite_error_code(), Some(ErrorCode::NotADatabase));
    }
    assert_eq!(pool.status().size, 0);
    std::fs::remove_file(dir.path().join("db")).unwrap();
    clock.advance(Duration::from_secs(1));
    assert_eq!(count(&pool), 0);
}

#[test]
fn an_idle_connection_is_validated() {
    let dir = tempfile::tempdir().unwrap();
    let clock = PausedClock::new();
    let pool = Pool::builder(Sqlite::new(dir.path().join("db"))).clock(&clock).build().unwrap();
    let id = pool.get().unwrap().id();
    clock.advance(Duration::from_secs(1));
    assert_eq!(pool.get().unwrap().id(), id);
}

/// As [`Sqlite`], with transactions that lock nothing at their beginning: a write in one that has read can be too late.
struct Deferred(Sqlite);

impl Manager for Deferred {
    type Connection = rusqlite::Connection;
    type Error = rusqlite::Error;

    fn connect(&self, budget: Duration) -> Result<rusqlite::Connection, rusqlite::Error> {
        self.0.connect(budget)
    }
    fn validate(&self, connection: &mut rusqlite::Connection, budget: Duration) -> Result<(), rusqlite::Error> {
        self.0.validate(connection, budget)
    }
}

impl Transactional for Deferred {
    type Transaction<'c> = rusqlite::Transaction<'c>;

    fn begin<'c>(&self, connection: &'c mut rusqlite::Connection) -> Result<Self::Transaction<'c>, rusqlite::Error> {
        connection.transaction_with_behavior(TransactionBehavior::Deferred)
    }
    fn commit(&self, transaction: Self::Transaction<'_>) -> Result<(), rusqlite::Error> {
        self.0.commit(transaction)
    }
    fn rollback(&self, transaction: Self::Transaction<'_>) -> Result<(), rusqlite::Error> {
        self.0.rollback(transaction)
    }
    fn outcome_unknown(&self, error: &rusqlite::Error) -> bool {
        self.0.outcome_unknown(error)
    }
    fn is_serialization_failure(&self, error: &rusqlite::Error) -> bool {
        self.0.is_serialization_failure(error)
    }
}

#[test]
fn two_who_read_and_then_write_both_end_well_when_tried_again() {
    let snapshot = ffi::SQLITE_BUSY_SNAPSHOT;
    for (journal, one_after_the_other) in [("wal", false), ("delete", false), ("wal", true)] {
        let dir = tempfile::tempdir().unwrap();
        let manager = Sqlite::new(dir.path().join("db")).setup(format!("PRAGMA journal_mode = {journal}"));
        let pool = Pool::builder(Deferred(manager)).max_size(2).build().unwrap();
        let setup = "CREATE TABLE counter (n INTEGER); INSERT INTO counter VALUES (0)";
        pool.with(|connection| connection.execute_batch(setup)).unwrap().unwrap();
        let (both_have_read, first_is_done) = (Barrier::new(2), Barrier::new(2));
        let conflicts = Mutex::new(Vec::new());
        thread::scope(|scope| {
            for waits in [false, one_after_the_other] {
                let (pool, both_have_read, first_is_done, conflicts) =
                    (&pool, &both_have_read, &first_is_done, &conflicts);
                scope.spawn(move || {
                    let mut attempts = 0;
                    let note = |error: &TransactionError<rusqlite::Error, rusqlite::Error>| {
                        let error = error.body_error().or(error.driver_error()).unwrap();
                        conflicts.lock().unwrap().push(error.sqlite_error().unwrap().extended_code);
                        pool.manager().is_serialization_failure(error)
                    };
                    // As many as it takes: how long the other one needs is not this test's business.
                    let done = pool.retry_on(note).attempts(u32::MAX).transaction(|tx| {
                        attempts += 1;
                        let n: u32 = tx.query_row("SELECT n FROM counter", [], |row| row.get(0))?;
                        if attempts == 1 {
                            both_have_read.wait();
                            if waits {
                                first_is_done.wait();
                            }
                        }
                        tx.execute("UPDATE counter SET n = ?1", [n + 1])
                    });
                    done.unwrap();
                    if one_after_the_other && !waits {
                        first_is_done.wait();
                    }
                });
            }
        });
        let n: u32 = pool.with(|c| c.query_row("SELECT n FROM counter", [], |row| row.get(0)).unwrap()).unwrap();
        assert_eq!((n, pool.status().size), (2, 2), "{journal}: no update is lost, and no connection");
        let conflicts = conflicts.into_inner().unwrap();
        assert!(!conflicts.is_empty(), "{journal}");
        if one_after_the_other {
            assert_eq!(conflicts, [snapshot]);
        }
    }
}

#[test]
fn which_errors_are_conflicts() {
    let dir = tempfile::tempdir().unwrap();
    let manager = Sqlite::new(dir.path().join("db"));
    let conflicts = [
        ffi::SQLITE_BUSY,
        ffi::SQLITE_BUSY_SNAPSHOT,
        ffi::SQLITE_BUSY_RECOVERY,
        ffi::SQLITE_LOCKED,
        ffi::SQLITE_LOCKED_SHAREDCACHE,
    ];
    let others = [ffi::SQLITE_CONSTRAINT_UNIQUE, ffi::SQLITE_IOERR, ffi::SQLITE_FULL, ffi::SQLITE_SCHEMA];
    let cases = conflicts.map(|code| (code, true)).into_iter().chain(others.map(|code| (code, false)));
    for (code, expected) in cases {
        let error = rusqlite::Error::SqliteFailure(ffi::Error::new(code), None);
        assert_eq!(manager.is_serialization_failure(&error), expected, "{error}");
    }
    assert!(!manager.is_serialization_failure(&rusqlite::Error::QueryReturnedNoRows));
}
