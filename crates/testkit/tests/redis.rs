//! A real Redis: works, dies, comes back, is never left behind.

#![expect(clippy::unwrap_used, reason = "helpers of tests, which the lint does not know as such")]

mod support;

use std::{process::Command, sync::mpsc, thread};

use fullbore_testkit::{Redis, child_test, is_alive, is_child};
use support::{accepts, let_a_stranger_have_its_port};

fn set(redis: &Redis, key: &str, value: &str) {
    redis::cmd("SET").arg(key).arg(value).exec(&mut redis.client()).unwrap();
}

fn get(redis: &Redis, key: &str) -> Option<String> {
    redis::cmd("GET").arg(key).query(&mut redis.client()).unwrap()
}

#[test]
fn works_dies_and_works_again() {
    let Some(redis) = Redis::start_or_skip() else { return };
    set(&redis, "k", "v");
    assert_eq!(get(&redis, "k").as_deref(), Some("v"));
    let (addr, pid) = (redis.addr(), redis.pid().unwrap());
    assert!(redis.url().contains(&redis.port().to_string()));

    let mut open = redis.client();
    redis.kill_9();
    assert!(!is_alive(pid));
    assert_eq!(redis.pid(), None);
    assert!(redis.try_client().is_err());
    assert!(redis::cmd("PING").exec(&mut open).is_err());
    redis.kill_9(); // once more does no harm

    redis.restart();
    assert_eq!(redis.addr(), addr);
    assert_eq!(get(&redis, "k"), None, "nothing is kept by default");
    set(&redis, "k", "again");
    assert_eq!(get(&redis, "k").as_deref(), Some("again"));
}

#[test]
fn append_only_keeps_what_was_acknowledged() {
    let Some(redis) = Redis::builder().append_only(true).config("maxmemory", "64mb").start_or_skip() else { return };
    for round in 0..3 {
        let key = format!("k{round}");
        set(&redis, &key, "v");
        redis.kill_9();
        redis.restart();
        for earlier in 0..=round {
            assert_eq!(get(&redis, &format!("k{earlier}")).as_deref(), Some("v"));
        }
    }
    redis.stop();
    assert!(redis.try_client().is_err());
    redis.restart();
    redis.restart(); // a running one is stopped first
    assert_eq!(get(&redis, "k0").as_deref(), Some("v"));
    let (_, limit): (String, String) =
        redis::cmd("CONFIG").arg("GET").arg("maxmemory").query(&mut redis.client()).unwrap();
    assert_eq!(limit, (64 * 1024 * 1024).to_string());
}

#[test]
fn is_killed_under_load() {
    let Some(redis) = Redis::builder().append_only(true).start_or_skip() else { return };
    let (acknowledged, acks) = mpsc::channel();
    thread::scope(|scope| {
        for worker in 0..4 {
            let (redis, acknowledged) = (&redis, acknowledged.clone());
            scope.spawn(move || {
                // It may be dead already when this worker gets its turn.
                let Ok(mut client) = redis.try_client() else { return };
                for n in 0.. {
                    let key = format!("{worker}/{n}");
                    if redis::cmd("SET").arg(&key).arg(n).exec(&mut client).is_err() {
                        break;
                    }
                    acknowledged.send(key).unwrap();
                }
            });
        }
        drop(acknowledged);
        let mut keys: Vec<String> = acks.iter().take(200).collect();
        redis.kill_9();
        keys.extend(acks);
        redis.restart();
        let mut client = redis.client();
        for key in keys {
            let there: bool = redis::cmd("EXISTS").arg(&key).query(&mut client).unwrap();
            assert!(there, "{key} was acknowledged and is lost");
        }
    });
}

#[test]
fn many_start_at_once() {
    if Redis::start_or_skip().is_none() {
        return;
    }
    let servers: Vec<Redis> = thread::scope(|scope| {
        let starting: Vec<_> = (0..12).map(|_| scope.spawn(|| Redis::start().unwrap())).collect();
        starting.into_iter().map(|server| server.join().unwrap()).collect()
    });
    for (n, redis) in servers.iter().enumerate() {
        set(redis, "n", &n.to_string());
    }
    for (n, redis) in servers.iter().enumerate() {
        assert_eq!(get(redis, "n"), Some(n.to_string()), "each has its own");
    }
}

#[test]
fn restart_gets_its_port_back_from_a_stranger() {
    let Some(redis) = Redis::start_or_skip() else { return };
    redis.stop();
    let_a_stranger_have_its_port(redis.addr(), || redis.restart(), || redis.log());
    assert_eq!(get(&redis, "k"), None);
}

#[test]
fn a_server_that_cannot_start_says_why() {
    let builder = Redis::builder().config("no-such-directive", "1");
    match builder.start() {
        Err(error) if error.is_missing() => {}
        Err(error) => assert!(error.to_string().contains("no-such-directive"), "{error}"),
        Ok(redis) => panic!("started: {redis:?}"),
    }
}

#[test]
fn a_panicking_test_stops_its_server() {
    let Some(redis) = Redis::start_or_skip() else { return };
    let (addr, pid, dir) = (redis.addr(), redis.pid().unwrap(), redis.dir().to_owned());
    assert!(accepts(addr));
    let panicked = thread::spawn(move || {
        let _owned = redis;
        panic!("on purpose");
    })
    .join();
    assert!(panicked.is_err());
    assert!(!accepts(addr));
    assert!(!is_alive(pid));
    assert!(!dir.exists());
}

#[test]
fn a_server_outlives_the_thread_that_started_it() {
    let redis = thread::spawn(Redis::start_or_skip).join().unwrap();
    let Some(redis) = redis else { return };
    set(&redis, "k", "v");
    assert_eq!(get(&redis, "k").as_deref(), Some("v"));
}

#[test]
#[ignore = "the child of a_killed_test_process_leaves_no_server"]
fn child_holds_a_redis() {
    if is_child("child_holds_a_redis")
        && let Some(redis) = Redis::start_or_skip()
    {
        support::tell(redis.pid(), redis.addr(), redis.dir());
        support::wait_for_the_end();
    }
}

#[test]
fn a_killed_test_process_leaves_no_server() {
    let (mut child, orphan) = support::child_with_server("child_holds_a_redis");
    let alive_before = orphan.as_ref().is_some_and(|orphan| is_alive(orphan.pid));
    child.kill().unwrap();
    child.wait().unwrap();
    let Some(orphan) = orphan else { return }; // skipped there
    assert!(alive_before);
    orphan.must_go_away();
}

#[test]
#[ignore = "the child of a_server_in_a_static_ends_with_its_process"]
fn child_keeps_a_redis_in_a_static() {
    static REDIS: std::sync::OnceLock<Option<Redis>> = std::sync::OnceLock::new();
    if is_child("child_keeps_a_redis_in_a_static")
        && let Some(redis) = REDIS.get_or_init(Redis::start_or_skip)
    {
        support::tell(redis.pid(), redis.addr(), redis.dir());
    }
}

#[test]
fn a_server_in_a_static_ends_with_its_process() {
    let (mut child, orphan) = support::child_with_server("child_keeps_a_redis_in_a_static");
    child.wait().unwrap();
    if let Some(orphan) = orphan {
        orphan.must_go_away();
    }
}

#[test]
#[ignore = "the child of the tests of skipping"]
fn child_starts_a_redis_or_skips() {
    if is_child("child_starts_a_redis_or_skips") && Redis::start_or_skip().is_some() {
        println!("STARTED");
    }
}

/// The test above, where there is no Redis: whether it passed, and what it printed.
fn without_redis(adapt: impl FnOnce(&mut Command) -> &mut Command) -> (bool, String) {
    let mut child = child_test("child_starts_a_redis_or_skips");
    child.env("FULLBORE_REDIS_BIN", "/nowhere/redis-server").env_remove("FULLBORE_REQUIRE_SERVERS");
    let output = adapt(&mut child).output().unwrap();
    let printed = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(printed).unwrap())
}

#[test]
fn without_the_binary_a_test_is_skipped_aloud() {
    let (passed, printed) = without_redis(|child| child);
    assert!(passed, "{printed}");
    assert!(printed.lines().any(|line| line == "SKIPPED: redis-server"), "{printed}");
    assert!(!printed.contains("STARTED"), "{printed}");
}

#[test]
fn without_the_binary_a_test_fails_where_servers_are_required() {
    let (passed, printed) = without_redis(|child| child.env("FULLBORE_REQUIRE_SERVERS", "1"));
    assert!(!passed, "{printed}");
    for part in ["redis-server", "cargo xtask test --install", "FULLBORE_REDIS_BIN", "FULLBORE_REQUIRE_SERVERS"] {
        assert!(printed.contains(part), "no {part} in: {printed}");
    }
}
