//! The pool with a real PostgreSQL that dies, falls silent, or is cut off at the worst moment.
#![cfg(feature = "postgres")]
#![allow(missing_docs, clippy::unwrap_used)]

mod ledger;

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Barrier, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use ::postgres::error::SqlState;
use fullbore_core::PausedClock;
use fullbore_pool::{Pool, Postgres, TransactionError, WhileDown};
use fullbore_testkit::{Postgres as Server, TcpProxy, eventually};

use ledger::Ledger;

/// For waits that end by an event; only a defect lets them run out.
const LONG: Duration = Duration::from_secs(60);

type Error = ::postgres::Error;

fn pool(url: &str, max_size: usize) -> Pool<Postgres> {
    Pool::builder(Postgres::new(url).unwrap()).max_size(max_size).build().unwrap()
}

fn count(server: &Server) -> i64 {
    server.client().query_one("SELECT count(*) FROM t", &[]).unwrap().get(0)
}

fn insert(tx: &mut ::postgres::Transaction<'_>, id: i32) -> Result<u64, Error> {
    tx.execute("INSERT INTO t VALUES ($1)", &[&id])
}

#[test]
fn a_transaction_commits_on_ok_and_rolls_back_on_err_and_panic() {
    let Some(server) = Server::start_or_skip() else { return };
    server.client().batch_execute("CREATE TABLE t (id int)").unwrap();
    let pool = pool(&server.url(), 2);
    assert_eq!(pool.transaction(|tx| insert(tx, 1)).unwrap(), 1);
    assert_eq!(count(&server), 1);

    let error = pool
        .transaction(|tx| {
            insert(tx, 2).unwrap();
            Err::<(), _>("no")
        })
        .unwrap_err();
    assert!(matches!(error, TransactionError::Body("no")), "{error}");
    assert_eq!((count(&server), pool.status().size), (1, 1), "the connection was fit for the next one");

    let panicked = catch_unwind(AssertUnwindSafe(|| {
        pool.transaction(|tx| -> Result<(), Error> {
            insert(tx, 3)?;
            resume_unwind(Box::new("on purpose"))
        })
    }));
    assert!(panicked.is_err());
    assert_eq!((count(&server), pool.status().size), (1, 0));
    assert_eq!(pool.transaction(|tx| insert(tx, 4)).unwrap(), 1);
    assert_eq!(count(&server), 2);
    // Nothing is left of a transaction on the connection that is used again.
    let id = pool.get().unwrap().id();
    assert_eq!(pool.transaction(|tx| insert(tx, 5)).unwrap(), 1);
    assert_eq!((pool.get().unwrap().id(), count(&server)), (id, 3));
}

#[test]
fn a_transaction_in_which_a_statement_failed_is_never_reported_as_committed() {
    let Some(server) = Server::start_or_skip() else { return };
    server.client().batch_execute("CREATE TABLE t (id int PRIMARY KEY)").unwrap();
    let pool = pool(&server.url(), 1);
    // PostgreSQL answers COMMIT with a rollback here, and the driver says `Ok`.
    let outcome = pool.transaction(|tx| {
        insert(tx, 1)?;
        assert!(insert(tx, 1).is_err(), "a duplicate");
        Ok::<_, Error>(())
    });
    let error = outcome.unwrap_err();
    assert!(matches!(&error, TransactionError::Commit(why) if why.code().is_some()), "{error:?}");
    assert!(!error.is_in_doubt());
    assert_eq!((count(&server), pool.status().available), (0, 1));
    pool.transaction(|tx| insert(tx, 1)).unwrap();
}

#[test]
fn a_refused_commit_is_not_in_doubt() {
    let Some(server) = Server::start_or_skip() else { return };
    let tables = "CREATE TABLE p (id int PRIMARY KEY);
                  CREATE TABLE t (id int REFERENCES p DEFERRABLE INITIALLY DEFERRED)";
    server.client().batch_execute(tables).unwrap();
    let pool = pool(&server.url(), 1);
    let error = pool.transaction(|tx| insert(tx, 7)).unwrap_err();
    assert!(matches!(error, TransactionError::Commit(_)), "{error:?}");
    assert_eq!((count(&server), pool.status().available), (0, 1));
}

#[test]
fn survives_the_death_of_the_server_in_mid_load() {
    let Some(server) = Server::start_or_skip() else { return };
    let pool = pool(&server.url(), 3);
    let (done, dones) = mpsc::channel();
    thread::scope(|scope| {
        for _ in 0..8 {
            let (pool, done) = (&pool, done.clone());
            // More threads than connections: some are waiting when it happens.
            scope.spawn(move || {
                loop {
                    match pool.with(|client| client.batch_execute("SELECT 1")) {
                        // A query that died takes its connection with it.
                        Ok(result) => {
                            let _ = done.send(result.is_ok());
                        }
                        Err(error) => {
                            assert!(error.connect_error().is_some(), "{error}");
                            break;
                        }
                    }
                }
            });
        }
        drop(done);
        assert_eq!(dones.iter().filter(|good| *good).take(200).count(), 200);
        server.kill_9();
    });
    // Later callers too.
    let error = pool.get().unwrap_err();
    assert!(error.connect_error().is_some(), "{error}");
    assert_eq!(pool.status().size, 0, "no dead connection is left");
    server.restart();
    // After the pause between two attempts.
    assert!(eventually(LONG, || pool.get().is_ok()));
    let mut three = [0; 3].map(|_| pool.get().unwrap());
    assert!(three.iter_mut().all(|client| client.batch_execute("SELECT 1").is_ok()));
    drop(three);
    let seen = pool.station().snapshot();
    assert!(seen.balanced() && seen.in_service() == 0, "{seen:?}");
}

#[test]
fn what_callers_were_told_is_true_when_the_server_goes_down_in_mid_load() {
    // Commits that wait for the disk take long enough to be hit.
    let Some(server) = Server::builder().fsync(true).start_or_skip() else { return };
    ledger::create(&mut server.client());
    let pool = pool(&server.url(), 4);
    let killed = || {
        server.kill_9();
        server.restart();
    };
    let stopped = || {
        server.stop();
        server.restart();
    };
    let ledger = Ledger::keep(&pool, &[&killed, &stopped, &killed]);
    ledger.audit(&mut server.client());
    assert!(pool.status().size <= 4);
    let seen = pool.station().snapshot();
    assert!(seen.balanced() && seen.in_service() == 0, "{seen:?}");
}

#[test]
fn what_callers_were_told_is_true_when_the_network_is_cut_in_mid_load() {
    let Some(server) = Server::start_or_skip() else { return };
    ledger::create(&mut server.client());
    let proxy = TcpProxy::start(server.addr()).unwrap();
    // Most of a transaction's time is on the way, so that a cut finds some at each of its steps.
    proxy.delay(Duration::from_millis(1));
    let pool = pool(&server.url_at(proxy.addr()), 4);
    let cut = || proxy.cut();
    let ledger = Ledger::keep(&pool, &[&cut, &cut, &cut, &cut]);
    // A backend whose client is cut off may be about to commit.
    let mut client = server.client();
    let others = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'
        AND state <> 'idle' AND pid <> pg_backend_pid()";
    assert!(eventually(LONG, || client.query_one(others, &[]).unwrap().get::<_, i64>(0) == 0));
    ledger.audit(&mut client);
    assert!(pool.status().size <= 4);
}

#[test]
fn connections_that_died_while_idle_are_replaced() {
    let Some(server) = Server::start_or_skip() else { return };
    let clock = PausedClock::new();
    let manager = Postgres::new(&server.url()).unwrap();
    let pool = Pool::builder(manager).max_size(3).clock(&clock).build().unwrap();
    drop([0; 3].map(|_| pool.get().unwrap()));
    server.kill_9();
    server.restart();
    clock.advance(Duration::from_secs(1));
    let mut three = [0; 3].map(|_| pool.get().unwrap());
    assert!(three.iter_mut().all(|client| client.batch_execute("SELECT 1").is_ok()));
    assert!(three.iter().all(|client| client.id() > 3));
    // One that is trusted because it was used just now is found out by its first use, and not passed on.
    drop(three);
    server.stop();
    server.restart();
    for _ in 0..3 {
        assert!(pool.with(|client| client.batch_execute("SELECT 1")).unwrap().is_err());
    }
    assert!(pool.with(|client| client.batch_execute("SELECT 1")).unwrap().is_ok());
}

#[test]
fn a_commit_that_did_not_arrive_is_in_doubt() {
    let Some(server) = Server::start_or_skip() else { return };
    server.client().batch_execute("CREATE TABLE t (id int)").unwrap();
    let proxy = TcpProxy::start(server.addr()).unwrap();
    let pool = pool(&server.url_at(proxy.addr()), 1);
    thread::scope(|scope| {
        let committing = scope.spawn(|| {
            pool.transaction(|tx| {
                let inserted = insert(tx, 1);
                proxy.black_hole(true);
                inserted
            })
        });
        assert!(proxy.wait_for(LONG, |stats| stats.held > 0), "the COMMIT is on its way");
        proxy.cut();
        let error = committing.join().unwrap().unwrap_err();
        assert!(error.is_in_doubt(), "{error:?}");
    });
    assert_eq!((count(&server), pool.status().size), (0, 0));
    proxy.black_hole(false);
    pool.transaction(|tx| insert(tx, 2)).unwrap();
    assert_eq!(count(&server), 1);
}

/// Makes each commit wait for advisory lock 1, and takes that.
fn commits_wait(server: &Server) -> ::postgres::Client {
    let mut client = server.client();
    let setup = "CREATE TABLE t (id int);
        CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql
            AS 'BEGIN PERFORM pg_advisory_xact_lock(1); RETURN NULL; END';
        CREATE CONSTRAINT TRIGGER wait AFTER INSERT ON t DEFERRABLE INITIALLY DEFERRED
            FOR EACH ROW EXECUTE FUNCTION wait();
        SELECT pg_advisory_lock(1)";
    client.batch_execute(setup).unwrap();
    client
}

/// Until somebody waits for that lock; the pid of its back end.
fn backend_at_the_lock(client: &mut ::postgres::Client) -> i32 {
    let mut pid = None;
    let who = "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND NOT granted";
    assert!(eventually(LONG, || {
        pid = client.query_opt(who, &[]).unwrap().map(|row| row.get(0));
        pid.is_some()
    }));
    pid.unwrap()
}

#[test]
fn a_commit_that_is_not_confirmed_is_in_doubt_although_it_is_done() {
    let Some(server) = Server::start_or_skip() else { return };
    let mut other = commits_wait(&server);
    let proxy = TcpProxy::start(server.addr()).unwrap();
    let pool = pool(&server.url_at(proxy.addr()), 1);
    thread::scope(|scope| {
        let committing = scope.spawn(|| pool.transaction(|tx| insert(tx, 1)));
        backend_at_the_lock(&mut other);
        proxy.black_hole(true);
        other.batch_execute("SELECT pg_advisory_unlock(1)").unwrap();
        assert!(proxy.wait_for(LONG, |stats| stats.held > 0), "the answer is on its way");
        proxy.cut();
        let error = committing.join().unwrap().unwrap_err();
        assert!(error.is_in_doubt(), "{error:?}");
    });
    assert_eq!((count(&server), pool.status().size), (1, 0), "it is there");
}

#[test]
fn a_commit_whose_backend_is_terminated_is_in_doubt() {
    let Some(server) = Server::start_or_skip() else { return };
    let mut other = commits_wait(&server);
    let pool = pool(&server.url(), 1);
    thread::scope(|scope| {
        let committing = scope.spawn(|| pool.transaction(|tx| insert(tx, 1)));
        let pid = backend_at_the_lock(&mut other);
        other.execute("SELECT pg_terminate_backend($1)", &[&pid]).unwrap();
        let error = committing.join().unwrap().unwrap_err();
        assert!(error.is_in_doubt(), "{error:?}");
    });
    assert_eq!(pool.status().size, 0, "not used again");
}

#[test]
fn a_query_that_is_cut_off_rolls_back_and_its_connection_is_not_used_again() {
    let Some(server) = Server::start_or_skip() else { return };
    let mut other = server.client();
    other.batch_execute("CREATE TABLE t (id int); SELECT pg_advisory_lock(1)").unwrap();
    let proxy = TcpProxy::start(server.addr()).unwrap();
    let pool = pool(&server.url_at(proxy.addr()), 1);
    thread::scope(|scope| {
        let querying = scope.spawn(|| {
            pool.transaction(|tx| {
                insert(tx, 1)?;
                tx.batch_execute("SELECT pg_advisory_xact_lock(1)")
            })
        });
        backend_at_the_lock(&mut other);
        proxy.cut();
        let error = querying.join().unwrap().unwrap_err();
        assert!(error.body_error().is_some_and(|why| why.as_db_error().is_none()), "{error:?}");
    });
    assert_eq!(pool.status().size, 0);
    other.batch_execute("SELECT pg_advisory_unlock(1)").unwrap();
    pool.transaction(|tx| insert(tx, 2)).unwrap();
    let ids = server.client().query("SELECT id FROM t", &[]).unwrap();
    assert_eq!(ids.iter().map(|row| row.get(0)).collect::<Vec<i32>>(), [2]);
}

#[test]
fn a_query_that_gets_no_answer_holds_its_own_caller_only() {
    let Some(server) = Server::start_or_skip() else { return };
    let proxy = TcpProxy::start(server.addr()).unwrap();
    let manager = Postgres::new(&server.url_at(proxy.addr())).unwrap();
    let pool = Pool::builder(manager).max_size(1).get_timeout(Duration::from_millis(100)).build().unwrap();
    let mut held = pool.get_deadline(Instant::now() + LONG).unwrap();
    let id = held.id();
    proxy.black_hole(true);
    thread::scope(|scope| {
        let querying = scope.spawn(move || held.query_one("SELECT 7", &[]).unwrap().get::<_, i32>(0));
        assert!(proxy.wait_for(LONG, |stats| stats.held > 0), "the query is on its way");
        let callers = [0; 4].map(|_| scope.spawn(|| pool.get().map(drop)));
        for caller in callers {
            let error = caller.join().unwrap().unwrap_err();
            assert!(error.is_timeout(), "{error}");
            assert_eq!(error.status().unwrap().in_use(), 1, "it says why");
        }
        proxy.black_hole(false);
        assert_eq!(querying.join().unwrap(), 7);
    });
    assert_eq!(pool.get_deadline(Instant::now() + LONG).unwrap().id(), id, "nothing is wrong with it");
}

/// A server of our own that answers COMMIT with this error and everything else with success, for one connection.
fn answers_commit_with(severity: &str, code: &str) -> (thread::JoinHandle<()>, String) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("host=127.0.0.1 port={} user=u", listener.local_addr().unwrap().port());
    let message = |tag: u8, body: &[u8]| {
        let length = u32::try_from(body.len() + 4).unwrap();
        [&[tag], &length.to_be_bytes()[..], body].concat()
    };
    // Nothing follows a FATAL error.
    let fatal = severity == "FATAL";
    let fields = format!("S{severity}\0V{severity}\0C{code}\0Mserver conn crashed?\0\0");
    let (ready, done) = (message(b'Z', b"T"), message(b'C', b"OK\0"));
    let error = message(b'E', fields.as_bytes());
    let server = thread::spawn(move || {
        let (mut socket, _) = listener.accept().unwrap();
        let read = |socket: &mut TcpStream, n: usize| -> Option<Vec<u8>> {
            let mut bytes = vec![0; n];
            socket.read_exact(&mut bytes).ok().map(|()| bytes)
        };
        let length = |bytes: &[u8]| usize::try_from(u32::from_be_bytes(bytes.try_into().unwrap())).unwrap() - 4;
        let startup = read(&mut socket, 4).unwrap();
        read(&mut socket, length(&startup)).unwrap();
        let mut answer = [message(b'R', &[0; 4]), ready.clone()].concat();
        loop {
            socket.write_all(&answer).unwrap();
            let Some(head) = read(&mut socket, 5) else { return };
            let body = String::from_utf8(read(&mut socket, length(&head[1..])).unwrap()).unwrap();
            answer = match (head[0], &*body) {
                (b'Q', query) if query.contains("COMMIT") && fatal => error.clone(),
                (b'Q', query) if query.contains("COMMIT") => [&error[..], &ready].concat(),
                (b'Q', query) if query.contains("ROLLBACK") && fatal => return,
                (b'Q', _) => [&done[..], &ready].concat(),
                _ => return,
            };
        }
    });
    (server, url)
}

#[test]
fn which_answers_to_commit_leave_it_in_doubt() {
    // The first is what PgBouncer says when it has lost the server behind it.
    let in_doubt = [("FATAL", "08P01"), ("FATAL", "57P01"), ("ERROR", "08006"), ("ERROR", "40003")];
    let refused = [("ERROR", "40001"), ("ERROR", "23503")];
    let cases = in_doubt.map(|case| (case, true)).into_iter().chain(refused.map(|case| (case, false)));
    for ((severity, code), expected) in cases {
        let (server, url) = answers_commit_with(severity, code);
        let pool = pool(&url, 1);
        let error = pool.transaction(|_| Ok::<_, Error>(())).unwrap_err();
        assert_eq!(error.is_in_doubt(), expected, "{severity} {code}: {error:?}");
        assert!(
            matches!(&error, TransactionError::InDoubt(why) | TransactionError::Commit(why)
                if why.code().is_some_and(|seen| seen.code() == code)),
            "{error:?}"
        );
        assert_eq!(pool.status().size, usize::from(!expected), "a connection in doubt is not used again");
        drop(pool);
        server.join().unwrap();
    }
}

/// Runs `body` in two threads at once, in transactions that are tried again; says how often it was begun in all. The first
/// attempts meet at the barrier that `body` is given, so that they are in each other's way; later ones get none.
fn in_each_others_way(
    pool: &Pool<Postgres>,
    body: impl Fn(usize, &mut ::postgres::Transaction<'_>, &dyn Fn()) -> Result<(), Error> + Sync,
) -> usize {
    let both = Barrier::new(2);
    let (both, body) = (&both, &body);
    thread::scope(|scope| {
        let threads = [0, 1].map(|me| {
            scope.spawn(move || {
                let mut attempts = 0;
                let done = pool.retry_serialization().transaction(|tx| {
                    attempts += 1;
                    let first = attempts == 1;
                    body(me, tx, &|| {
                        if first {
                            both.wait();
                        }
                    })
                });
                done.unwrap();
                attempts
            })
        });
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    })
}

#[test]
fn transactions_that_cannot_be_put_in_order_end_well_when_tried_again() {
    let Some(server) = Server::start_or_skip() else { return };
    let setup =
        "CREATE TABLE doctors (id int PRIMARY KEY, on_call bool); INSERT INTO doctors VALUES (0, true), (1, true)";
    server.client().batch_execute(setup).unwrap();
    let pool = pool(&server.url(), 2);
    // Each leaves only if somebody else stays. Both see the other one there, and without an order both would leave.
    let begun = in_each_others_way(&pool, |me, tx, both_have_looked| {
        tx.batch_execute("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE")?;
        let on_call: i64 = tx.query_one("SELECT count(*) FROM doctors WHERE on_call", &[])?.get(0);
        both_have_looked();
        if on_call > 1 {
            tx.execute("UPDATE doctors SET on_call = false WHERE id = $1", &[&i32::try_from(me).unwrap()])?;
        }
        Ok(())
    });
    let left: i64 = server.client().query_one("SELECT count(*) FROM doctors WHERE on_call", &[]).unwrap().get(0);
    assert_eq!(left, 1);
    assert!(begun > 2, "one of them was tried again, and stayed");
    assert_eq!(pool.status().size, 2, "a conflict costs no connection");
}

// ANCHOR: retry
/// Ends the doctor's duty, unless nobody would be left.
fn leave(pool: &Pool<Postgres>, doctor: i32) -> Result<bool, TransactionError<Error, Error>> {
    pool.retry_serialization().attempts(100).transaction(|tx| {
        tx.batch_execute("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE")?;
        let on_call: i64 = tx.query_one("SELECT count(*) FROM doctors WHERE on_call", &[])?.get(0);
        if on_call < 2 {
            return Ok(false);
        }
        tx.execute("UPDATE doctors SET on_call = false WHERE id = $1", &[&doctor])?;
        Ok(true)
    })
}
// ANCHOR_END: retry

#[test]
fn of_many_who_leave_at_once_one_stays() {
    let Some(server) = Server::start_or_skip() else { return };
    let setup = "CREATE TABLE doctors (id int PRIMARY KEY, on_call bool);
        INSERT INTO doctors SELECT id, true FROM generate_series(0, 5) id";
    server.client().batch_execute(setup).unwrap();
    let pool = pool(&server.url(), 4);
    let left = thread::scope(|scope| {
        let doctors = [0, 1, 2, 3, 4, 5].map(|doctor| {
            let pool = &pool;
            scope.spawn(move || leave(pool, doctor).unwrap())
        });
        doctors.into_iter().filter_map(|doctor| doctor.join().unwrap().then_some(())).count()
    });
    assert_eq!(left, 5);
}

#[test]
fn a_deadlock_is_tried_again() {
    let Some(server) = Server::builder().config("deadlock_timeout", "10ms").start_or_skip() else { return };
    let setup = "CREATE TABLE accounts (id int PRIMARY KEY, cents int); INSERT INTO accounts VALUES (0, 100), (1, 100)";
    server.client().batch_execute(setup).unwrap();
    let pool = pool(&server.url(), 2);
    let begun = in_each_others_way(&pool, |me, tx, both_have_one| {
        for (step, account) in [me, 1 - me].into_iter().enumerate() {
            let account = i32::try_from(account).unwrap();
            tx.execute("UPDATE accounts SET cents = cents + 1 WHERE id = $1", &[&account])?;
            if step == 0 {
                both_have_one();
            }
        }
        Ok(())
    });
    assert!(begun > 2, "one of them was the victim");
    let cents: i64 = server.client().query_one("SELECT sum(cents) FROM accounts", &[]).unwrap().get(0);
    assert_eq!(cents, 204);
}

#[test]
fn a_conflict_that_does_not_end_ends_with_the_attempts() {
    let Some(server) = Server::start_or_skip() else { return };
    let pool = pool(&server.url(), 1);
    let mut attempts = 0;
    let error = pool
        .retry_serialization()
        .attempts(3)
        .transaction(|tx| {
            attempts += 1;
            tx.batch_execute("DO $$ BEGIN RAISE serialization_failure; END $$")
        })
        .unwrap_err();
    let why = error.body_error().unwrap().code();
    assert_eq!((why, attempts), (Some(&SqlState::T_R_SERIALIZATION_FAILURE), 3));
    // Any other error is no reason, whatever it is of.
    server.client().batch_execute("CREATE TABLE t (id int PRIMARY KEY)").unwrap();
    let mut attempts = 0;
    let error = pool
        .retry_serialization()
        .transaction(|tx| {
            attempts += 1;
            insert(tx, 1)?;
            insert(tx, 1)
        })
        .unwrap_err();
    let why = error.body_error().unwrap().code();
    assert_eq!((why, attempts), (Some(&SqlState::UNIQUE_VIOLATION), 1));
}

#[test]
fn what_is_in_doubt_is_not_done_again() {
    let Some(server) = Server::start_or_skip() else { return };
    server.client().batch_execute("CREATE TABLE t (id int)").unwrap();
    let proxy = TcpProxy::start(server.addr()).unwrap();
    let pool = pool(&server.url_at(proxy.addr()), 1);
    thread::scope(|scope| {
        let committing = scope.spawn(|| {
            let mut attempts = 0;
            let outcome = pool.retry_on(|_| true).transaction(|tx| {
                attempts += 1;
                if attempts > 1 {
                    return Ok(0);
                }
                let inserted = insert(tx, 1);
                proxy.black_hole(true);
                inserted
            });
            (outcome, attempts)
        });
        assert!(proxy.wait_for(LONG, |stats| stats.held > 0), "the COMMIT is on its way");
        proxy.cut();
        proxy.black_hole(false);
        let (outcome, attempts) = committing.join().unwrap();
        assert!(outcome.unwrap_err().is_in_doubt());
        assert_eq!(attempts, 1, "although another attempt would have succeeded");
    });
    assert_eq!(count(&server), 0);
}

#[test]
fn a_silent_server_holds_nobody_beyond_the_deadline() {
    let Some(server) = Server::start_or_skip() else { return };
    let proxy = TcpProxy::start(server.addr()).unwrap();
    let soon = Duration::from_millis(200);
    let manager = Postgres::new(&server.url_at(proxy.addr())).unwrap();
    let pool = Pool::builder(manager).max_size(1).get_timeout(soon).validate_after(Duration::ZERO);
    let pool = pool.connect_timeout(soon).while_down(WhileDown::Wait).build().unwrap();
    // Connecting: the socket opens and then nothing comes. Those in line behind it are released as well.
    proxy.black_hole(true);
    thread::scope(|scope| {
        let callers = [0; 4].map(|_| scope.spawn(|| pool.get().map(drop)));
        for caller in callers {
            let error = caller.join().unwrap().unwrap_err();
            assert!(error.is_timeout() || error.connect_error().is_some(), "{error}");
        }
    });
    assert!(eventually(LONG, || pool.status().size == 0));
    proxy.black_hole(false);
    // Enough time, so that a slow machine does not matter: what is tested is that it works again.
    let patient = || pool.get_deadline(Instant::now() + LONG);
    patient().unwrap().batch_execute("SELECT 1").unwrap();
    // Validating: an idle connection whose server does not answer.
    assert_eq!(pool.status().available, 1);
    proxy.black_hole(true);
    let error = pool.get().unwrap_err();
    assert!(error.is_timeout() || error.connect_error().is_some(), "{error}");
    proxy.black_hole(false);
    patient().unwrap().batch_execute("SELECT 1").unwrap();
}
