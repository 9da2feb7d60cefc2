//! The pool behind a real PgBouncer in transaction mode: what works there, what does not, and what survives its death.
#![cfg(feature = "postgres")]
#![allow(missing_docs, clippy::unwrap_used)]

mod ledger;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::thread;
use std::time::{Duration, Instant};

use ::postgres::SimpleQueryMessage;
use ::postgres::error::SqlState;
use ::postgres::types::Type;
use fullbore_core::PausedClock;
use fullbore_pool::{Pool, Postgres, TransactionError};
use fullbore_testkit::{PgBouncer, Postgres as Server, eventually};
use ledger::Ledger;

/// For waits that end by an event; only a defect lets them run out.
const LONG: Duration = Duration::from_secs(60);

type Error = ::postgres::Error;

/// A server, and a PgBouncer that has so many connections to it.
fn servers(connections: usize) -> Option<(Server, PgBouncer)> {
    let server = Server::start_or_skip()?;
    let bouncer = PgBouncer::builder(server.addr()).config("default_pool_size", &connections.to_string());
    bouncer.start_or_skip().map(|bouncer| (server, bouncer))
}

fn pool(bouncer: &PgBouncer, max_size: usize) -> Pool<Postgres> {
    Pool::builder(Postgres::new(&bouncer.url()).unwrap()).max_size(max_size).build().unwrap()
}

fn sum(server: &Server) -> i64 {
    server.client().query_one("SELECT sum(n)::bigint FROM t", &[]).unwrap().get(0)
}

#[test]
fn checkouts_queries_and_transactions_work() {
    let Some((server, bouncer)) = servers(2) else { return };
    server.client().batch_execute("CREATE TABLE t (n int)").unwrap();
    let clock = PausedClock::new();
    let manager = Postgres::new(&bouncer.url()).unwrap();
    let pool = Pool::builder(manager).max_size(2).clock(&clock).build().unwrap();
    let mut client = pool.get().unwrap();
    let id = client.id();
    client.batch_execute("SELECT 1").unwrap();
    let one: i32 = client.query_typed("SELECT $1", &[(&1, Type::INT4)]).unwrap()[0].get(0);
    assert_eq!(one, 1);
    drop(client);
    // The check of one that was idle goes through it, too.
    clock.advance(Duration::from_secs(1));
    assert_eq!(pool.get().unwrap().id(), id);

    let insert = |tx: &mut ::postgres::Transaction<'_>, n: i32| tx.execute("INSERT INTO t VALUES ($1)", &[&n]);
    assert_eq!(pool.transaction(|tx| insert(tx, 1)).unwrap(), 1);
    let error = pool.transaction(|tx| insert(tx, 10).and(tx.batch_execute("SELECT 1 / 0"))).unwrap_err();
    assert_eq!(error.body_error().unwrap().code(), Some(&SqlState::DIVISION_BY_ZERO));
    let swallowed = pool.transaction(|tx| {
        insert(tx, 100)?;
        assert!(tx.batch_execute("SELECT 1 / 0").is_err());
        Ok::<_, Error>(())
    });
    assert!(matches!(swallowed.unwrap_err(), TransactionError::Commit(_)));
    assert_eq!((sum(&server), pool.status().size), (1, 1), "all on the same connection");
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        pool.transaction(|tx| -> Result<(), Error> {
            insert(tx, 1000)?;
            resume_unwind(Box::new("on purpose"))
        })
    }));
    assert!(panicked.is_err());
    assert_eq!(pool.transaction(|tx| insert(tx, 2)).unwrap(), 1);
    assert_eq!(sum(&server), 3);
}

#[test]
fn many_threads_share_few_connections_of_the_server() {
    let Some((server, bouncer)) = servers(2) else { return };
    server.client().batch_execute("CREATE TABLE t (n int); INSERT INTO t VALUES (0)").unwrap();
    let pool = pool(&bouncer, 8);
    let backends = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'";
    // Those of this test's own have to be gone first.
    let watch = || pool.transaction(|tx| tx.query_one(backends, &[])).unwrap().get::<_, i64>(0);
    assert!(eventually(LONG, || watch() <= 2));
    let most = thread::scope(|scope| {
        let threads: Vec<_> = (0..32)
            .map(|_| {
                scope.spawn(|| {
                    let most = (0..20).map(|_| {
                        let counted = pool.transaction(|tx| {
                            tx.execute("UPDATE t SET n = n + $1", &[&1])?;
                            tx.query_one(backends, &[])
                        });
                        counted.unwrap().get::<_, i64>(0)
                    });
                    most.max().unwrap()
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).max().unwrap()
    });
    assert!(most <= 2, "{most} connections to the server");
    assert_eq!(sum(&server), 32 * 20);
    assert!(pool.status().size <= 8);
    let seen = pool.station().snapshot();
    assert!(seen.balanced() && seen.in_service() == 0, "{seen:?}");
}

/// Whether this PgBouncer makes prepared statements known to the connection that it picks (`max_prepared_statements`).
fn tracks_statements(bouncer: &PgBouncer) -> bool {
    let answer = bouncer.console().simple_query("SHOW CONFIG").unwrap();
    answer.iter().any(|message| match message {
        SimpleQueryMessage::Row(row) => {
            row.get(0) == Some("max_prepared_statements") && row.get(1).is_some_and(|value| value != "0")
        }
        _ => false,
    })
}

#[test]
fn a_prepared_statement_outlives_its_transaction_only_where_pgbouncer_tracks_it() {
    let Some((_server, bouncer)) = servers(2) else { return };
    let pool = pool(&bouncer, 2);
    let mut client = pool.get().unwrap();
    let statement = client.prepare("SELECT $1::int").unwrap();
    // The only connection that PgBouncer has so far, and where the statement is.
    let mut other = bouncer.client();
    let mut held = other.transaction().unwrap();
    held.batch_execute("SELECT 1").unwrap();
    let answer = client.query_one(&statement, &[&1]);
    if tracks_statements(&bouncer) {
        assert_eq!(answer.unwrap().get::<_, i32>(0), 1);
    } else {
        assert_eq!(answer.unwrap_err().code(), Some(&SqlState::INVALID_SQL_STATEMENT_NAME));
    }
    // With any PgBouncer: in one round trip, or all in one transaction.
    let one: i32 = client.query_typed("SELECT $1", &[(&1, Type::INT4)]).unwrap()[0].get(0);
    let mut tx = client.transaction().unwrap();
    let statement = tx.prepare("SELECT $1::int").unwrap();
    let two: i32 = tx.query_one(&statement, &[&2]).unwrap().get(0);
    let three: i32 = tx.query_one("SELECT $1::int", &[&3]).unwrap().get(0);
    tx.commit().unwrap();
    assert_eq!((one, two, three), (1, 2, 3));
    held.commit().unwrap();
    assert_eq!(pool.status().size, 1);
}

#[test]
fn a_time_limit_in_the_connection_string_is_refused() {
    let Some((server, bouncer)) = servers(2) else { return };
    let limited = format!("{}?options=-c%20statement_timeout%3D30s", bouncer.url());
    let pool = Pool::builder(Postgres::new(&limited).unwrap()).build().unwrap();
    let error = pool.get().unwrap_err();
    let answer = error.connect_error().unwrap().as_db_error().unwrap();
    assert!(answer.message().contains("unsupported startup parameter"), "{answer}");
    // Where it belongs then: it comes with each connection of the server.
    server.client().batch_execute("ALTER ROLE postgres SET statement_timeout = '30s'").unwrap();
    let limit = self::pool(&bouncer, 1).transaction(|tx| tx.query_one("SHOW statement_timeout", &[])).unwrap();
    assert_eq!(limit.get::<_, &str>(0), "30s");
}

#[test]
fn a_check_waits_for_a_connection_of_the_server_as_a_query_does() {
    let Some((_server, bouncer)) = servers(1) else { return };
    let manager = Postgres::new(&bouncer.url()).unwrap();
    let soon = Duration::from_millis(200);
    let pool = Pool::builder(manager).get_timeout(soon).validate_after(Duration::ZERO).build().unwrap();
    drop(pool.get_deadline(Instant::now() + LONG).unwrap());
    let mut other = bouncer.client();
    let mut held = other.transaction().unwrap();
    held.batch_execute("SELECT 1").unwrap();
    let error = pool.get().unwrap_err();
    assert!(error.is_timeout() || error.connect_error().is_some(), "{error}");
    held.commit().unwrap();
    drop(pool.get_deadline(Instant::now() + LONG).unwrap());
}

#[test]
fn a_commit_behind_it_that_loses_the_server_is_in_doubt() {
    let Some((server, bouncer)) = servers(2) else { return };
    let mut direct = server.client();
    let setup = "CREATE TABLE t (n int);
        CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql
            AS 'BEGIN PERFORM pg_advisory_xact_lock(1); RETURN NULL; END';
        CREATE CONSTRAINT TRIGGER wait AFTER INSERT ON t DEFERRABLE INITIALLY DEFERRED
            FOR EACH ROW EXECUTE FUNCTION wait();
        SELECT pg_advisory_lock(1)";
    direct.batch_execute(setup).unwrap();
    let pool = pool(&bouncer, 1);
    for kills_the_bouncer in [false, true] {
        thread::scope(|scope| {
            let committing = scope.spawn(|| {
                let mut attempts = 0;
                let outcome = pool.retry_on(|_| true).transaction(|tx| {
                    attempts += 1;
                    if attempts == 1 { tx.execute("INSERT INTO t VALUES (1)", &[]) } else { Ok(0) }
                });
                (outcome, attempts)
            });
            let in_commit = "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND NOT granted";
            let mut backend = None;
            assert!(eventually(LONG, || {
                backend = direct.query_opt(in_commit, &[]).unwrap().map(|row| row.get::<_, i32>(0));
                backend.is_some()
            }));
            if kills_the_bouncer {
                bouncer.kill_9();
            } else {
                direct.execute("SELECT pg_terminate_backend($1)", &[&backend]).unwrap();
            }
            let (outcome, attempts) = committing.join().unwrap();
            let error = outcome.unwrap_err();
            assert!(error.is_in_doubt(), "{error:?}");
            assert_eq!((attempts, pool.status().size), (1, 0));
        });
    }
}

#[test]
fn killed_in_mid_load_nothing_is_lost() {
    let Some((server, bouncer)) = servers(2) else { return };
    ledger::create(&mut server.client());
    let pool = pool(&bouncer, 4);
    let disaster = || {
        bouncer.kill_9();
        bouncer.restart();
    };
    Ledger::keep(&pool, &[&disaster, &disaster]).audit(&mut server.client());
    assert!(pool.status().size <= 4);
    let seen = pool.station().snapshot();
    assert!(seen.balanced() && seen.in_service() == 0, "{seen:?}");
}

#[test]
fn the_server_behind_it_is_killed_in_mid_load_and_nothing_is_lost() {
    let Some((server, bouncer)) = servers(2) else { return };
    ledger::create(&mut server.client());
    let pool = pool(&bouncer, 4);
    let disaster = || {
        server.kill_9();
        server.restart();
    };
    Ledger::keep(&pool, &[&disaster]).audit(&mut server.client());
    let seen = pool.station().snapshot();
    assert!(seen.balanced() && seen.in_service() == 0, "{seen:?}");
}
