//! Batches into real SQLite files.
#![cfg(feature = "sqlite")]
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::error::Error;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use fullbore_batch::{Batch, Batcher, Retryable, SqliteInsert, WriteError, Written};
use rusqlite::types::Value;
use rusqlite::{Connection, ErrorCode, params};

use common::blow_up;

#[derive(Clone, Debug, PartialEq)]
struct Row {
    id: i64,
    number: Option<i64>,
    real: Option<f64>,
    text: Option<String>,
    bytes: Option<Vec<u8>>,
}

fn row(id: i64) -> Row {
    Row { id, number: None, real: None, text: Some(format!("row {id}")), bytes: None }
}

fn insert() -> SqliteInsert<Row> {
    SqliteInsert::new("INSERT INTO t VALUES (?1, ?2, ?3, ?4, ?5)", |row: &Row, to| {
        to.put((row.id, row.number, row.real, &row.text, &row.bytes))
    })
}

fn open(dir: &Path) -> Connection {
    let connection = Connection::open(dir.join("db")).unwrap();
    let setup = "PRAGMA journal_mode = WAL; PRAGMA foreign_keys = ON; PRAGMA busy_timeout = 60000;
        CREATE TABLE IF NOT EXISTS t (id INTEGER PRIMARY KEY, number INTEGER, real REAL, text TEXT, bytes BLOB)";
    connection.execute_batch(setup).unwrap();
    connection
}

fn all(connection: &Connection) -> Vec<Row> {
    let mut statement = connection.prepare("SELECT * FROM t ORDER BY id").unwrap();
    let rows = statement.query_map([], |row| {
        let (id, number, real) = (row.get(0)?, row.get(1)?, row.get(2)?);
        Ok(Row { id, number, real, text: row.get(3)?, bytes: row.get(4)? })
    });
    rows.unwrap().map(Result::unwrap).collect()
}

fn code(error: &WriteError) -> Option<ErrorCode> {
    error.cause().downcast_ref::<rusqlite::Error>().and_then(rusqlite::Error::sqlite_error_code)
}

#[test]
fn every_value_comes_back_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let mut connection = open(dir.path());
    let mut rows = vec![
        Row { id: 0, number: None, real: None, text: None, bytes: None },
        Row { number: Some(i64::MIN), real: Some(f64::NEG_INFINITY), bytes: Some(vec![]), ..row(1) },
        Row { number: Some(i64::MAX), real: Some(f64::MIN_POSITIVE), bytes: Some(vec![0, 255, 0]), ..row(2) },
        Row { text: Some("it's \"quoted\", \\, %s, ?1\r\n\tnew line; -- no comment".into()), ..row(3) },
        Row { text: Some("zero \0 in it".into()), ..row(4) },
        Row { text: Some("čau 🛫 \u{10ffff}".into()), ..row(5) },
        Row { text: Some(String::new()), real: Some(-0.0), ..row(6) },
    ];
    let written = insert().write(&mut connection, &rows).unwrap();
    assert_eq!(written.rows(), 7);
    assert_eq!(all(&connection), rows);
    // SQLite has no NaN: it stores NULL.
    let nan = Row { real: Some(f64::NAN), ..row(7) };
    insert().write(&mut connection, &[nan]).unwrap();
    rows.push(row(7));
    assert_eq!(all(&connection), rows);
}

#[test]
fn none_one_and_more_than_fit_a_statement() {
    let dir = tempfile::tempdir().unwrap();
    let mut connection = open(dir.path());
    assert_eq!(insert().write(&mut connection, &[]).unwrap(), Written::default());
    assert_eq!(insert().write(&mut connection, &[row(0)]).unwrap().rows(), 1);
    // 70,000 parameters, in one transaction.
    let many: Vec<Row> = (1..=14_000).map(row).collect();
    assert_eq!(insert().write(&mut connection, &many).unwrap().rows(), 14_000);
    assert_eq!(all(&connection), (0..=14_000).map(row).collect::<Vec<_>>());
}

#[test]
fn an_item_makes_as_many_rows_as_it_likes() {
    let dir = tempfile::tempdir().unwrap();
    let mut connection = open(dir.path());
    let insert = SqliteInsert::new("INSERT INTO t (id) VALUES (?1)", |ids: &Vec<i64>, to| {
        ids.iter().try_for_each(|id| to.put([id]))
    });
    let written = insert.write(&mut connection, &[vec![], vec![1, 2, 3], vec![], vec![4]]).unwrap();
    assert_eq!(written.rows(), 4);
    let upsert =
        SqliteInsert::new("INSERT INTO t (id) VALUES (?1) ON CONFLICT DO NOTHING", |id: &i64, to| to.put([id]));
    assert_eq!(upsert.write(&mut connection, &[3, 4, 5]).unwrap().rows(), 1);
    assert_eq!(all(&connection).len(), 5);
}

#[test]
fn a_violation_rolls_the_whole_batch_back_and_names_the_item() {
    let dir = tempfile::tempdir().unwrap();
    let mut connection = open(dir.path());
    insert().write(&mut connection, &[row(2)]).unwrap();
    let error = insert().write(&mut connection, &[row(0), row(1), row(2), row(3)]).unwrap_err();
    assert_eq!((code(&error), error.item()), (Some(ErrorCode::ConstraintViolation), Some(2)));
    assert!(error.to_string().starts_with("not written because of item 2: UNIQUE constraint failed: t.id"), "{error}");
    assert!(!error.is_in_doubt() && error.may_retry() && error.is_permanent());
    assert_eq!(all(&connection), [row(2)]);
    // The connection is as good as before.
    insert().write(&mut connection, &[row(3)]).unwrap();
    assert_eq!(all(&connection), [row(2), row(3)]);
}

#[test]
fn a_refused_commit_rolls_back() {
    let dir = tempfile::tempdir().unwrap();
    let mut connection = open(dir.path());
    connection.execute_batch("CREATE TABLE child (t INTEGER REFERENCES t DEFERRABLE INITIALLY DEFERRED)").unwrap();
    let orphan = SqliteInsert::new("INSERT INTO child VALUES (?1)", |id: &i64, to| to.put([id]));
    let error = orphan.write(&mut connection, &[7]).unwrap_err();
    assert_eq!((code(&error), error.item()), (Some(ErrorCode::ConstraintViolation), None));
    assert!(!error.is_in_doubt() && error.is_permanent(), "{error}");
    assert!(connection.is_autocommit());
    let children: i64 = connection.query_row("SELECT count(*) FROM child", [], |row| row.get(0)).unwrap();
    assert_eq!(children, 0);
}

#[test]
fn bad_statements_parameters_and_rows_are_errors() {
    let dir = tempfile::tempdir().unwrap();
    let mut connection = open(dir.path());
    let no_table = SqliteInsert::new("INSERT INTO nowhere VALUES (?1)", |id: &i64, to| to.put([id]));
    let too_few = SqliteInsert::new("INSERT INTO t (id, number) VALUES (?1, ?2)", |id: &i64, to| to.put([id]));
    let returns_rows = SqliteInsert::new("INSERT INTO t (id) VALUES (?1) RETURNING id", |id: &i64, to| to.put([id]));
    let own_error = SqliteInsert::new("INSERT INTO t (id) VALUES (?1)", |id: &i64, to| {
        let small = u8::try_from(*id)?;
        to.put([small])
    });
    let keeps_it_to_itself = SqliteInsert::new("INSERT INTO t (id) VALUES (?1)", |id: &i64, to| {
        let _ = to.put([id]);
        let _ = to.put([id]);
        Ok(())
    });
    for (insert, items, item, says) in [
        (no_table, [1, 2], None, "no such table: nowhere"),
        (too_few, [1, 2], Some(0), "Wrong number of parameters"),
        (returns_rows, [1, 2], Some(0), "returned results"),
        (own_error, [1, 300], Some(1), "out of range integral type conversion"),
        (keeps_it_to_itself, [1, 2], Some(0), "an error of `put` was not passed on"),
    ] {
        let error = insert.write(&mut connection, &items).unwrap_err();
        assert_eq!(error.item(), item, "{error}");
        assert!(error.to_string().contains(says) && error.is_permanent() && !error.is_in_doubt(), "{error}");
        assert!(connection.is_autocommit() && all(&connection).is_empty(), "{error}");
    }
}

#[test]
fn a_panic_of_the_closure_rolls_back() {
    let dir = tempfile::tempdir().unwrap();
    let mut connection = open(dir.path());
    let insert = SqliteInsert::new("INSERT INTO t (id) VALUES (?1)", |id: &i64, to| {
        if *id == 2 {
            blow_up();
        }
        to.put([id])
    });
    assert!(catch_unwind(AssertUnwindSafe(|| insert.write(&mut connection, &[1, 2]))).is_err());
    assert!(connection.is_autocommit() && all(&connection).is_empty());
    insert.write(&mut connection, &[1, 3]).unwrap();
    assert_eq!(all(&connection).len(), 2);
}

#[test]
fn in_a_transaction_of_the_callers_two_tables_are_written_or_none() {
    let dir = tempfile::tempdir().unwrap();
    let mut connection = open(dir.path());
    connection.execute_batch("CREATE TABLE log (n INTEGER)").unwrap();
    for (ids, ok) in [([1, 2], true), ([3, 3], false)] {
        let transaction = connection.transaction().unwrap();
        let outcome = insert().write_in(&transaction, &ids.map(row));
        assert_eq!(outcome.is_ok(), ok);
        if let Ok(written) = outcome {
            transaction.execute("INSERT INTO log VALUES (?1)", params![written.rows() as i64]).unwrap();
            transaction.commit().unwrap();
        }
    }
    let logged: Vec<i64> =
        connection.prepare("SELECT n FROM log").unwrap().query_map([], |row| row.get(0)).unwrap().flatten().collect();
    assert_eq!((logged, all(&connection)), (vec![2], vec![row(1), row(2)]));
    // Inside of one that is open already there can be no other.
    connection.execute_batch("BEGIN").unwrap();
    let error = insert().write(&mut connection, &[row(3)]).unwrap_err();
    assert!(error.to_string().contains("within a transaction"), "{error}");
}

#[test]
fn a_lock_of_somebody_else_is_not_the_items_fault_and_passes() {
    let dir = tempfile::tempdir().unwrap();
    let (mut connection, other) = (open(dir.path()), open(dir.path()));
    connection.execute_batch("PRAGMA busy_timeout = 0").unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let error = insert().write(&mut connection, &[row(1)]).unwrap_err();
    assert_eq!((code(&error), error.item()), (Some(ErrorCode::DatabaseBusy), None));
    assert!(error.may_retry() && !error.is_permanent() && !error.is_in_doubt());
    other.execute_batch("ROLLBACK").unwrap();
    insert().write(&mut connection, &[row(1)]).unwrap();
    assert_eq!(all(&connection), [row(1)]);
}

#[test]
fn through_a_batcher_from_many_threads_everything_arrives_once() {
    let dir = tempfile::tempdir().unwrap();
    let connection = Mutex::new(open(dir.path()));
    let insert = insert();
    let batcher = Batcher::builder()
        .max_items(100)
        .linger(Duration::ZERO)
        .build(move |rows: Batch<Row>| insert.write(&mut connection.lock().unwrap(), &rows))
        .unwrap();
    thread::scope(|scope| {
        for producer in 0..4 {
            let handle = batcher.handle();
            scope.spawn(move || (0..500).for_each(|n| handle.send(row(producer * 500 + n)).unwrap()));
        }
    });
    // A result says that it is committed, and a flush that all is that was sent before, on whatever thread.
    batcher.call(row(2000)).unwrap();
    batcher.flush().unwrap();
    assert_eq!(all(&open(dir.path())), (0..=2000).map(row).collect::<Vec<_>>());
    batcher.close().unwrap();
    let seen = batcher.station().snapshot();
    assert!(seen.balanced() && (seen.served, seen.failed) == (2001, 0), "{seen:?}");
}

#[test]
fn through_a_pool_that_fails_the_error_reaches_the_ticket() {
    let dir = tempfile::tempdir().unwrap();
    // Stands for a pool: one connection, and none at the first attempt.
    let path = Arc::new(dir.path().to_owned());
    let attempts = Mutex::new(0);
    let connect = move || {
        *attempts.lock().unwrap() += 1;
        if *attempts.lock().unwrap() == 1 { Err("no connection free") } else { Ok(Box::new(open(&path))) }
    };
    let batcher = Batcher::builder().max_items(1).build(insert().through(connect)).unwrap();
    let refused = batcher.call(row(1)).unwrap_err();
    let failure = refused.failure().unwrap();
    let error = failure.downcast_ref::<WriteError>().unwrap();
    assert_eq!(error.to_string(), "not written: no connection free");
    assert!(failure.may_retry() && !failure.is_permanent() && error.source().is_some());
    batcher.call(row(1)).unwrap();
    let broken = batcher.call(row(1)).unwrap_err();
    assert!(broken.failure().is_some_and(|failure| failure.is_permanent()), "{broken}");
    batcher.call(row(2)).unwrap();
    assert_eq!(all(&open(dir.path())), [row(1), row(2)]);
}

#[test]
fn dynamic_parameters_are_possible() {
    let dir = tempfile::tempdir().unwrap();
    let mut connection = open(dir.path());
    let insert = SqliteInsert::new("INSERT INTO t (id, text) VALUES (?1, ?2)", |row: &Vec<Value>, to| {
        to.put(rusqlite::params_from_iter(row))
    });
    let rows = [vec![Value::Integer(1), Value::Text("one".into())], vec![Value::Integer(2), Value::Null]];
    assert_eq!(insert.clone().write(&mut connection, &rows).unwrap().rows(), 2);
    assert_eq!(format!("{insert:?}").split('"').nth(1), Some("INSERT INTO t (id, text) VALUES (?1, ?2)"));
}
