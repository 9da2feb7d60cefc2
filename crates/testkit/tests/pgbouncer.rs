//! A real PgBouncer before a real PostgreSQL: pools, dies, comes back, is never left behind.

#![expect(clippy::unwrap_used, reason = "helpers of tests, which the lint does not know as such")]

mod support;

use std::{process::Command, thread};

use fullbore_testkit::{PgBouncer, Postgres, child_test, is_alive, is_child};
use postgres::{Client, NoTls, SimpleQueryMessage};
use support::{accepts, let_a_stranger_have_its_port};

fn both() -> Option<(Postgres, PgBouncer)> {
    let server = Postgres::start_or_skip()?;
    let bouncer = PgBouncer::start_or_skip(server.addr())?;
    Some((server, bouncer))
}

#[test]
fn works_dies_and_works_again() {
    let Some((server, bouncer)) = both() else { return };
    server.client().batch_execute("CREATE TABLE t (id int)").unwrap();
    let mut open = bouncer.client();
    open.batch_execute("INSERT INTO t VALUES (1)").unwrap();
    let addr = bouncer.addr();
    assert!(bouncer.url().contains(&bouncer.port().to_string()));
    for stop in [PgBouncer::kill_9, PgBouncer::stop] {
        let pid = bouncer.pid().unwrap();
        stop(&bouncer);
        assert!(!is_alive(pid));
        assert_eq!(bouncer.pid(), None);
        assert!(open.batch_execute("SELECT 1").is_err());
        assert!(bouncer.try_client().is_err());
        stop(&bouncer); // once more does no harm
        bouncer.restart();
        assert_eq!(bouncer.addr(), addr);
        open = bouncer.client();
        open.batch_execute("INSERT INTO t VALUES (1)").unwrap();
    }
    let count: i64 = server.client().query_one("SELECT count(*) FROM t", &[]).unwrap().get(0);
    assert_eq!(count, 3);
}

#[test]
fn transactions_share_the_connections_of_the_server() {
    let Some(server) = Postgres::start_or_skip() else { return };
    let bouncer = PgBouncer::builder(server.addr()).config("default_pool_size", "1").start_or_skip();
    let Some(bouncer) = bouncer else { return };
    let pid = |client: &mut Client| {
        let answer = client.simple_query("SELECT pg_backend_pid()").unwrap();
        answer.iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        })
    };
    let mut clients = [0; 3].map(|_| bouncer.client());
    let backends = clients.each_mut().map(pid);
    assert!(backends[0].is_some() && backends.iter().all(|backend| *backend == backends[0]), "{backends:?}");
    // Every database of the server is there.
    let url = server.create_database("other").replace(&server.port().to_string(), &bouncer.port().to_string());
    Client::connect(&url, NoTls).unwrap().batch_execute("SELECT 1").unwrap();
}

#[test]
fn it_needs_no_server_to_start_and_finds_one_that_comes_back() {
    let Some((server, bouncer)) = both() else { return };
    bouncer.client().batch_execute("SELECT 1").unwrap();
    server.kill_9();
    bouncer.restart();
    assert!(bouncer.pid().is_some());
    server.restart();
    // It waits for the server by itself, beyond the connect timeout if it must.
    Client::connect(&bouncer.url(), NoTls).unwrap().batch_execute("SELECT 1").unwrap();
}

#[test]
fn one_that_cannot_start_says_why() {
    let error = match PgBouncer::builder(([127, 0, 0, 1], 1).into()).config("no_such_setting", "1").start() {
        Err(error) if error.is_missing() => return,
        outcome => outcome.unwrap_err(),
    };
    assert!(error.to_string().contains("no_such_setting"), "{error}");
}

#[test]
fn restart_gets_its_port_back_from_a_stranger() {
    let Some((_server, bouncer)) = both() else { return };
    bouncer.stop();
    let_a_stranger_have_its_port(bouncer.addr(), || bouncer.restart(), || bouncer.log());
    bouncer.client().batch_execute("SELECT 1").unwrap();
}

#[test]
fn a_panicking_test_stops_it() {
    let Some((_server, bouncer)) = both() else { return };
    let (addr, pid, dir) = (bouncer.addr(), bouncer.pid().unwrap(), bouncer.dir().to_owned());
    let panicked = thread::spawn(move || {
        let _client = bouncer.client();
        panic!("on purpose");
    })
    .join();
    assert!(panicked.is_err());
    assert!(!accepts(addr));
    assert!(!is_alive(pid));
    assert!(!dir.exists());
}

#[test]
#[ignore = "the child of a_killed_test_process_leaves_none"]
fn child_holds_a_pgbouncer() {
    if is_child("child_holds_a_pgbouncer")
        && let Some((_server, bouncer)) = both()
    {
        let _client = bouncer.client();
        support::tell(bouncer.pid(), bouncer.addr(), bouncer.dir());
        support::wait_for_the_end();
    }
}

#[test]
fn a_killed_test_process_leaves_none() {
    let (mut child, orphan) = support::child_with_server("child_holds_a_pgbouncer");
    let alive_before = orphan.as_ref().is_some_and(|orphan| is_alive(orphan.pid));
    child.kill().unwrap();
    child.wait().unwrap();
    let Some(orphan) = orphan else { return }; // skipped there
    assert!(alive_before);
    orphan.must_go_away();
}

#[test]
#[ignore = "the child of the tests of skipping"]
fn child_starts_a_pgbouncer_or_skips() {
    if is_child("child_starts_a_pgbouncer_or_skips") && PgBouncer::start_or_skip(([127, 0, 0, 1], 1).into()).is_some() {
        println!("STARTED");
    }
}

/// The test above, where there is no PgBouncer: whether it passed, and what it printed.
fn without_it(adapt: impl FnOnce(&mut Command) -> &mut Command) -> (bool, String) {
    let mut child = child_test("child_starts_a_pgbouncer_or_skips");
    child.env("FULLBORE_PGBOUNCER_BIN", "/nowhere/pgbouncer");
    child.env_remove("FULLBORE_REQUIRE_SERVERS").env_remove("FULLBORE_WITHOUT_SERVERS");
    let output = adapt(&mut child).output().unwrap();
    let printed = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(printed).unwrap())
}

#[test]
fn where_servers_are_required_it_may_be_missing_only_if_that_is_said() {
    let required = "FULLBORE_REQUIRE_SERVERS";
    let (passed, printed) = without_it(|child| child.env(required, "1"));
    assert!(!passed, "{printed}");
    for part in ["pgbouncer", "cargo xtask test --install", "FULLBORE_PGBOUNCER_BIN", required] {
        assert!(printed.contains(part), "no {part} in: {printed}");
    }
    let (passed, printed) =
        without_it(|child| child.env(required, "1").env("FULLBORE_WITHOUT_SERVERS", "redis-server"));
    assert!(!passed, "another one is: {printed}");
    for said in [None, Some("pgbouncer"), Some("x,pgbouncer")] {
        let (passed, printed) = without_it(|child| match said {
            None => child,
            Some(said) => child.env(required, "1").env("FULLBORE_WITHOUT_SERVERS", said),
        });
        assert!(passed, "{printed}");
        assert!(printed.lines().any(|line| line == "SKIPPED: pgbouncer"), "{printed}");
        assert!(!printed.contains("STARTED"), "{printed}");
    }
}
