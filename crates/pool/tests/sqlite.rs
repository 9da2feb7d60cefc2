//! The pool with real SQLite files.
#![cfg(feature = "sqlite")]
#![allow(missing_docs, clippy::unwrap_used)]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use fullbore_core::PausedClock;
use fullbore_pool::{Manager, Pool, Sqlite, TransactionError};

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
    let pool = pool(&dir, 1);
    for _ in 0..3 {
        let error = pool.get().unwrap_err();
        let inner = error.connect_error().unwrap();
        assert_eq!(inner.sqlite_error_code(), Some(rusqlite::ErrorCode::NotADatabase));
    }
    assert_eq!(pool.status().size, 0);
    std::fs::remove_file(dir.path().join("db")).unwrap();
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
