//! A real PostgreSQL: works, dies, comes back with what was committed.

#![expect(clippy::unwrap_used, reason = "helpers of tests, which the lint does not know as such")]

mod support;

use std::{sync::mpsc, thread};

use fullbore_testkit::{Postgres, eventually, is_alive, is_child};
use postgres::{Client, NoTls};
use support::{LONG, accepts, let_a_stranger_have_its_port};

fn count(client: &mut Client) -> i64 {
    client.query_one("SELECT count(*) FROM t", &[]).unwrap().get(0)
}

#[test]
fn a_committed_row_survives_kill_9() {
    let Some(server) = Postgres::builder().fsync(true).start_or_skip() else { return };
    let mut client = server.client();
    client.batch_execute("CREATE TABLE t (id int PRIMARY KEY, name text NOT NULL)").unwrap();
    assert_eq!(client.execute("INSERT INTO t VALUES ($1, $2)", &[&1, &"one"]).unwrap(), 1);
    let row = client.query_one("SELECT name FROM t WHERE id = $1", &[&1]).unwrap();
    assert_eq!(row.get::<_, &str>(0), "one");
    assert_eq!(client.query_one("SHOW fsync", &[]).unwrap().get::<_, &str>(0), "on");

    // Not committed when the server dies, so not there afterwards.
    let mut transaction = client.transaction().unwrap();
    transaction.execute("INSERT INTO t VALUES (2, 'two')", &[]).unwrap();
    let (addr, pid) = (server.addr(), server.pid().unwrap());
    server.kill_9();
    assert!(!is_alive(pid));
    assert_eq!(server.pid(), None);
    assert!(transaction.commit().is_err());
    assert!(server.try_client().is_err());

    server.restart();
    assert_eq!(server.addr(), addr);
    let mut client = server.client();
    assert_eq!(count(&mut client), 1);
    assert_eq!(client.query_one("SELECT name FROM t", &[]).unwrap().get::<_, &str>(0), "one");
}

#[test]
fn is_killed_under_load_again_and_again() {
    let Some(server) = Postgres::start_or_skip() else { return };
    server.client().batch_execute("CREATE TABLE t (id bigint PRIMARY KEY)").unwrap();
    let mut acknowledged = Vec::new();
    for round in 0..3_i64 {
        let (ack, acks) = mpsc::channel();
        thread::scope(|scope| {
            for worker in 0..4_i64 {
                let (server, ack) = (&server, ack.clone());
                scope.spawn(move || {
                    // It may be dead already when this worker gets its turn.
                    let Ok(mut client) = server.try_client() else { return };
                    for n in 0.. {
                        let id = round * 1_000_000_000 + worker * 1_000_000 + n;
                        if client.execute("INSERT INTO t VALUES ($1)", &[&id]).is_err() {
                            break;
                        }
                        ack.send(id).unwrap();
                    }
                });
            }
            drop(ack);
            acknowledged.extend(acks.iter().take(100));
            server.kill_9();
            acknowledged.extend(acks);
        });
        server.restart();
    }
    let missing: i64 = server
        .client()
        .query_one("SELECT count(*) FROM unnest($1::bigint[]) id WHERE id NOT IN (SELECT id FROM t)", &[&acknowledged])
        .unwrap()
        .get(0);
    assert_eq!(missing, 0, "of {} acknowledged", acknowledged.len());
}

#[test]
fn two_at_once_know_nothing_of_each_other() {
    let Some(a) = Postgres::start_or_skip() else { return };
    let Some(b) = Postgres::start_or_skip() else { return };
    assert_ne!(a.port(), b.port());
    assert_ne!(a.dir(), b.dir());
    a.client().batch_execute("CREATE TABLE t (id int); INSERT INTO t VALUES (1), (2)").unwrap();
    b.client().batch_execute("CREATE TABLE t (id int)").unwrap();
    a.kill_9();
    assert_eq!(count(&mut b.client()), 0);
    a.restart();
    assert_eq!(count(&mut a.client()), 2);
}

#[test]
fn databases_settings_and_an_orderly_stop() {
    let Some(server) = Postgres::builder().config("max_connections", "17").start_or_skip() else { return };
    for name in ["plain", "with space, Ü and \" "] {
        let url = server.create_database(name);
        let mut client = Client::connect(&url, NoTls).unwrap();
        let here: String = client.query_one("SELECT current_database()::text", &[]).unwrap().get(0);
        assert_eq!(here, name);
    }
    let mut client = server.client();
    let mut show = |name: &str| -> String { client.query_one(&format!("SHOW {name}"), &[]).unwrap().get(0) };
    assert_eq!(show("max_connections"), "17");
    assert_eq!(show("fsync"), "off");
    assert_eq!(show("timezone"), "UTC");
    assert_eq!(show("server_encoding"), "UTF8");

    client.batch_execute("CREATE TABLE t (id int); INSERT INTO t VALUES (1)").unwrap();
    let pid = server.pid().unwrap();
    server.stop(); // does not wait for the client, which is still connected
    assert!(!is_alive(pid));
    assert!(client.batch_execute("SELECT 1").is_err());
    assert!(server.log().contains("database system is shut down"), "{}", server.log());
    server.restart();
    assert_eq!(count(&mut server.client()), 1);
}

#[test]
fn a_panicking_test_stops_its_server() {
    let Some(server) = Postgres::start_or_skip() else { return };
    let (addr, pid, dir) = (server.addr(), server.pid().unwrap(), server.dir().to_owned());
    let panicked = thread::spawn(move || {
        let _client = server.client();
        panic!("on purpose");
    })
    .join();
    assert!(panicked.is_err());
    assert!(!accepts(addr));
    assert!(!is_alive(pid));
    assert!(!dir.exists());
}

#[test]
fn kill_9_ends_a_busy_backend_at_once() {
    let Some(server) = Postgres::start_or_skip() else { return };
    let mut client = server.client();
    let backend: i32 = client.query_one("SELECT pg_backend_pid()", &[]).unwrap().get(0);
    let backend_alive = || is_alive(u32::try_from(backend).unwrap());
    assert!(backend_alive());
    // It does not look whether its postmaster still lives, for hours.
    let query = thread::spawn(move || client.batch_execute("SELECT count(*) FROM generate_series(1, 1e12)"));
    let mut watcher = server.client();
    assert!(eventually(LONG, || {
        let active = "SELECT 1 FROM pg_stat_activity WHERE pid = $1 AND state = 'active'";
        watcher.query_opt(active, &[&backend]).unwrap().is_some()
    }));
    server.kill_9();
    assert!(!backend_alive());
    assert!(query.join().unwrap().is_err());
    server.restart();
}

#[test]
fn restart_gets_its_port_back_from_a_stranger() {
    let Some(server) = Postgres::start_or_skip() else { return };
    server.stop();
    let_a_stranger_have_its_port(server.addr(), || server.restart(), || server.log());
    server.client().batch_execute("SELECT 1").unwrap();
}

#[test]
#[ignore = "the child of a_killed_test_process_leaves_no_server"]
fn child_holds_a_postgres() {
    if is_child("child_holds_a_postgres")
        && let Some(server) = Postgres::start_or_skip()
    {
        let _client = server.client();
        support::tell(server.pid(), server.addr(), server.dir());
        support::wait_for_the_end();
    }
}

#[test]
fn a_killed_test_process_leaves_no_server() {
    let (mut child, orphan) = support::child_with_server("child_holds_a_postgres");
    let alive_before = orphan.as_ref().is_some_and(|orphan| is_alive(orphan.pid));
    child.kill().unwrap();
    child.wait().unwrap();
    let Some(orphan) = orphan else { return }; // skipped there
    assert!(alive_before);
    orphan.must_go_away();
}
