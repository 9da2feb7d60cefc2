//! The second tier with a Redis that dies, falls silent, refuses, or is not there; and with processes that die.
#![cfg(all(feature = "redis", not(fullbore_loom)))]
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::process::Stdio;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use fullbore_cache::redis::testing::{Completed, Need, Sought, Tier};
use fullbore_cache::redis::{RedisConfig, RedisTier, RedisTierBuilder, TierError, WhenUnreachable, Writes};
use fullbore_core::{BuildError, EnvReader};
use fullbore_limit::{BreakerConfig, BreakerState};
use fullbore_testkit::{Redis as Server, TcpProxy, child_test, eventually, is_child};
use redis::Commands as _;
use support::{Diary, LONG, Node, PREFIX, builder, calls, key, lead, node, slot, soon, start, stored, value};

fn seek(node: &Node, name: &str) -> Result<Sought<String>, TierError> {
    node.tier.get_or_lease(&key(name), soon(), Need::Any)
}

fn kill_clients(server: &Server) {
    let mut client = server.client();
    redis::cmd("CLIENT").arg("KILL").arg("TYPE").arg("normal").arg("SKIPME").arg("yes").exec(&mut client).unwrap();
}

fn at(server: &Server, proxy: &TcpProxy) -> RedisTierBuilder {
    builder(server).url(server.url_at(proxy.addr()))
}

/// A breaker that opens at the third failure and stays open for the test.
fn soon_open() -> BreakerConfig {
    BreakerConfig { consecutive_failures: 3, open_for: LONG, open_max: LONG, ..BreakerConfig::default() }
}

#[test]
fn a_lost_link_is_told_of_once_and_comes_back() {
    let Some(server) = Server::start_or_skip() else { return };
    let node = node(&server);
    node.diary.expect("regained");
    let epoch = node.tier.epoch().unwrap();
    node.tier.put(&key("a"), &stored("value")).unwrap();
    for round in 1..=3 {
        kill_clients(&server);
        node.diary.expect("lost");
        assert_eq!(node.diary.take().iter().filter(|told| **told == "lost").count(), 0);
        assert!(eventually(LONG, || node.tier.is_up()));
        assert_eq!(node.tier.stats().link_losses, round);
        // The connections of the pool were killed as well: nobody notices.
        assert_eq!(node.get("a").as_deref(), Some("value"));
        server.client().set::<_, _, ()>(slot("b"), "x").unwrap();
        node.diary.expect("key b");
    }
    assert_ne!(node.tier.epoch().unwrap(), epoch);
    assert_eq!(node.tier.stats().breaker, BreakerState::Closed);
    assert!(node.tier.stats().link_error.is_some());
}

#[test]
fn a_silent_link_is_a_lost_link() {
    let Some(server) = Server::start_or_skip() else { return };
    let proxy = TcpProxy::start(server.addr()).unwrap();
    let node = start(at(&server, &proxy));
    node.diary.expect("regained");
    // It lives through quiet times, of some beats.
    assert!(eventually(LONG, || calls(&server, "time") >= 4));
    assert_eq!(node.tier.stats().link_losses, 0);
    server.client().set::<_, _, ()>(slot("a"), "x").unwrap();
    node.diary.expect("key a");
    proxy.black_hole(true);
    node.diary.expect("lost");
    assert!(!node.tier.is_up());
    proxy.black_hole(false);
    node.diary.expect("regained");
}

#[test]
fn a_restart_is_survived() {
    let Some(server) = Server::start_or_skip() else { return };
    let breaker = BreakerConfig { open_for: Duration::from_millis(10), jitter: false, ..BreakerConfig::default() };
    let breaker = BreakerConfig { open_max: Duration::from_millis(100), ..breaker };
    let node = start(builder(&server).breaker(breaker));
    node.tier.put(&key("a"), &stored("value")).unwrap();
    let lease = lead(seek(&node, "b").unwrap());
    server.kill_9();
    node.diary.expect("lost");
    let error = node.tier.get(&key("a"), None).unwrap_err();
    assert!(error.is_unavailable(), "{error}");
    assert!(node.tier.complete(lease, &stored("old")).is_err());
    assert!(node.tier.remove(&key("a")).is_err());
    assert!(node.tier.remove_tag("t").is_err());
    assert!(node.tier.get_many(&[key("a")], None)[0].is_err());
    assert!(node.tier.lease_many(&[key("a")], None)[0].is_err());
    server.restart();
    node.diary.expect("regained");
    // It kept nothing; the scripts have to be made known again.
    assert!(eventually(LONG, || matches!(node.tier.get(&key("a"), None), Ok(None))));
    let lease = lead(seek(&node, "b").unwrap());
    assert_eq!(node.tier.complete(lease, &stored("new")).unwrap(), Completed::Stored);
    assert_eq!(node.get("b").as_deref(), Some("new"));
    assert_eq!(node.tier.stats().breaker, BreakerState::Closed);
}

/// Passes connections on to whichever server is behind it when they are made.
struct Switch {
    addr: std::net::SocketAddr,
    behind: Arc<std::sync::Mutex<std::net::SocketAddr>>,
}

impl Switch {
    fn to(server: &Server) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let behind = Arc::new(std::sync::Mutex::new(server.addr()));
        let now = Arc::clone(&behind);
        thread::spawn(move || {
            for client in listener.incoming() {
                let (Ok(client), Ok(server)) = (client, std::net::TcpStream::connect(*now.lock().unwrap())) else {
                    return;
                };
                for (mut from, mut to) in [(client.try_clone().unwrap(), server.try_clone().unwrap()), (server, client)]
                {
                    thread::spawn(move || {
                        let _ = std::io::copy(&mut from, &mut to);
                        let _ = to.shutdown(std::net::Shutdown::Both);
                    });
                }
            }
        });
        Self { addr, behind }
    }
}

#[test]
fn a_link_to_yesterdays_primary_is_a_lost_link() {
    let (Some(old), Some(new)) = (Server::start_or_skip(), Server::start_or_skip()) else { return };
    let switch = Switch::to(&old);
    let node = start(builder(&old).url(old.url_at(switch.addr)));
    node.diary.expect("regained");
    node.tier.put(&key("a"), &stored("value")).unwrap();
    // The name leads elsewhere from now on, and the connections of the pool go; the old server lives on, and with it the link.
    *switch.behind.lock().unwrap() = new.addr();
    let clients: String = redis::cmd("CLIENT").arg("LIST").query(&mut old.client()).unwrap();
    for client in clients.lines().filter(|client| client.contains("cmd=set") || client.contains("cmd=eval")) {
        let id = client.split_whitespace().find_map(|field| field.strip_prefix("id=")).unwrap();
        redis::cmd("CLIENT").arg("KILL").arg("ID").arg(id).exec(&mut old.client()).unwrap();
    }
    assert_eq!(node.get("a"), None, "it is not in the new one");
    node.diary.expect("lost");
    node.diary.expect("regained");
    new.client().set::<_, _, ()>(slot("b"), "x").unwrap();
    node.diary.expect("key b");
    assert_eq!(node.tier.stats().link_losses, 1);
    // It was the primary, and is not any more: the connection is not kept.
    redis::cmd("REPLICAOF").arg("127.0.0.1").arg(old.port()).exec(&mut new.client()).unwrap();
    let error = node.tier.put(&key("c"), &stored("value")).unwrap_err();
    assert!(matches!(&error, TierError::Refused { code, .. } if **code == *"READONLY"), "{error}");
    *switch.behind.lock().unwrap() = old.addr();
    node.tier.put(&key("c"), &stored("value")).unwrap();
    node.diary.expect("lost");
    node.diary.expect("regained");
    assert_eq!(node.get("c").as_deref(), Some("value"));
}

#[test]
fn who_waits_when_the_link_is_lost_is_let_go() {
    let Some(server) = Server::start_or_skip() else { return };
    let proxy = TcpProxy::start(server.addr()).unwrap();
    let (one, other) = (node(&server), start(at(&server, &proxy)));
    let _lease = lead(seek(&one, "a").unwrap());
    thread::scope(|scope| {
        let waiter = scope.spawn(|| seek(&other, "a"));
        assert!(eventually(LONG, || other.tier.stats().waited == 1));
        proxy.refuse(true);
        proxy.cut();
        let error = waiter.join().unwrap().unwrap_err();
        assert!(matches!(error, TierError::LinkDown), "{error}");
    });
}

#[test]
fn a_flush_revokes_loads_and_wakes_who_waits() {
    let Some(server) = Server::start_or_skip() else { return };
    let (one, other) = (node(&server), node(&server));
    let lease = lead(seek(&one, "a").unwrap());
    thread::scope(|scope| {
        let waiter = scope.spawn(|| lead(seek(&other, "a").unwrap()));
        assert!(eventually(LONG, || other.tier.stats().waited == 1));
        redis::cmd("FLUSHALL").exec(&mut server.client()).unwrap();
        let second = waiter.join().unwrap();
        assert_eq!(one.tier.complete(lease, &stored("old")).unwrap(), Completed::Revoked);
        assert_eq!(other.tier.complete(second, &stored("new")).unwrap(), Completed::Stored);
    });
    one.diary.expect("flushed");
    assert_eq!(one.get("a").as_deref(), Some("new"));
}

#[test]
fn a_black_hole_costs_the_budget_until_the_breaker_opens_and_then_nothing() {
    let Some(server) = Server::start_or_skip() else { return };
    let proxy = TcpProxy::start(server.addr()).unwrap();
    let node = start(at(&server, &proxy).budget(Duration::from_millis(50)).breaker(soon_open()));
    node.tier.put(&key("a"), &stored("value")).unwrap();
    proxy.black_hole(true);
    for _ in 0..3 {
        let error = node.tier.get(&key("a"), None).unwrap_err();
        assert!(error.is_timeout() && error.setting() == Some("budget"), "{error}");
    }
    assert!(matches!(node.tier.stats().breaker, BreakerState::Open { .. }));
    let accepted = proxy.stats();
    for _ in 0..1000 {
        let error = node.tier.get(&key("a"), None).unwrap_err();
        assert!(error.is_open() && error.is_unavailable(), "{error}");
    }
    for error in [
        seek(&node, "a").map(drop).unwrap_err(),
        node.tier.put(&key("a"), &stored("value")).unwrap_err(),
        node.tier.remove(&key("a")).map(drop).unwrap_err(),
        node.tier.remove_tag("t").unwrap_err(),
    ] {
        assert!(error.is_open(), "{error}");
    }
    assert_eq!(node.tier.stats().timeouts, 3, "{accepted:?}");
    assert_eq!(node.tier.station().snapshot().failed, 3);
}

#[test]
fn the_breaker_closes_when_redis_is_back() {
    let Some(server) = Server::start_or_skip() else { return };
    let proxy = TcpProxy::start(server.addr()).unwrap();
    let brief = Duration::from_millis(5);
    let breaker =
        BreakerConfig { consecutive_failures: 2, open_for: brief, open_max: brief, ..BreakerConfig::default() };
    let node = start(at(&server, &proxy).budget(Duration::from_millis(200)).breaker(breaker));
    node.tier.put(&key("a"), &stored("value")).unwrap();
    proxy.black_hole(true);
    assert!(eventually(LONG, || {
        let failed = node.tier.get(&key("a"), None).is_err();
        failed && node.tier.stats().breaker != BreakerState::Closed
    }));
    proxy.black_hole(false);
    assert!(eventually(LONG, || node.tier.get(&key("a"), None).is_ok_and(|found| found.is_some())));
    assert_eq!(node.tier.stats().breaker, BreakerState::Closed);
    node.diary.expect("regained");
}

#[test]
fn a_lease_that_could_not_be_given_back_is_given_back_later() {
    let Some(server) = Server::start_or_skip() else { return };
    let proxy = TcpProxy::start(server.addr()).unwrap();
    let one = start(at(&server, &proxy).budget(Duration::from_millis(100)));
    let other = node(&server);
    let lease = lead(seek(&one, "a").unwrap());
    proxy.black_hole(true);
    assert!(one.tier.complete(lease, &stored("value")).unwrap_err().is_timeout());
    proxy.cut();
    proxy.black_hole(false);
    // Not at the end of the lease, which is a minute away.
    assert!(eventually(LONG / 2, || matches!(
        other.tier.lease_many(&[key("a")], None).pop(),
        Some(Ok(Sought::Lead(_)))
    )));
}

#[test]
fn an_owner_that_was_killed_is_noticed() {
    let Some(server) = Server::start_or_skip() else { return };
    let mut child = child_test("child_that_loads")
        .env("TEST_URL", server.url())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.map(Result::unwrap).any(|line| line.contains("it has the lease")));
    let node = node(&server);
    thread::scope(|scope| {
        let waiter = scope.spawn(|| lead(seek(&node, "a").unwrap()));
        assert!(eventually(LONG, || node.tier.stats().waited == 1));
        child.kill().unwrap();
        child.wait().unwrap();
        // The lease itself would last for an hour.
        let lease = waiter.join().unwrap();
        assert_eq!(node.tier.complete(lease, &stored("taken over")).unwrap(), Completed::Stored);
    });
    assert_eq!(node.tier.stats().takeovers, 1);
    assert_eq!(node.get("a").as_deref(), Some("taken over"));
}

#[test]
#[ignore = "the child of an_owner_that_was_killed_is_noticed"]
fn child_that_loads() {
    if !is_child("child_that_loads") {
        return;
    }
    let url = std::env::var("TEST_URL").unwrap();
    let tier = RedisTier::builder().url(url).prefix(PREFIX).lease(Duration::from_secs(3600)).build().unwrap();
    let tier: Tier<String, String> = tier.connect("child", Arc::new(Diary::default())).unwrap();
    let Sought::Lead(_lease) = tier.get_or_lease(&key("a"), None, Need::Any).unwrap() else { panic!("a lease") };
    println!("it has the lease");
    // Until it is killed, or its parent is.
    let _ = std::io::stdin().read(&mut [0]);
}

#[test]
fn an_owner_that_is_slow_is_left_in_peace() {
    let Some(server) = Server::start_or_skip() else { return };
    let (one, other) = (node(&server), node(&server));
    let lease = lead(seek(&one, "a").unwrap());
    thread::scope(|scope| {
        let waiter = scope.spawn(|| value(seek(&other, "a").unwrap()));
        // For longer than a process is believed to live without saying so.
        assert!(eventually(LONG, || calls(&server, "exists") >= 5));
        assert_eq!(one.tier.complete(lease, &stored("slow")).unwrap(), Completed::Stored);
        assert_eq!(waiter.join().unwrap(), "slow");
    });
    assert_eq!(other.tier.stats().takeovers, 0);
}

fn refused(builder: RedisTierBuilder) -> BuildError {
    let tier = builder.build().unwrap();
    tier.connect::<String, String>("test", Arc::new(Diary::default())).unwrap_err()
}

#[test]
fn unreachable_at_start_it_fails_or_goes_without() {
    let Some(server) = Server::start_or_skip() else { return };
    let proxy = TcpProxy::start(server.addr()).unwrap();
    proxy.refuse(true);
    let error = refused(at(&server, &proxy).when_unreachable(WhenUnreachable::Fail));
    assert_eq!(error.field(), Some("when_unreachable"), "{error}");
    let breaker = BreakerConfig { consecutive_failures: 1000, min_calls: 1000, ..BreakerConfig::default() };
    let node = start(at(&server, &proxy).breaker(breaker));
    assert!(!node.tier.is_up() && node.tier.stats().link_error.is_some());
    assert!(node.tier.get(&key("a"), None).unwrap_err().is_unavailable());
    assert_eq!(node.diary.take(), Vec::<String>::new(), "there was nothing to lose");
    proxy.refuse(false);
    node.diary.expect("regained");
    assert!(eventually(LONG, || node.tier.put(&key("a"), &stored("value")).is_ok()));
    assert_eq!(node.get("a").as_deref(), Some("value"));
    // One that accepts and never says anything.
    proxy.black_hole(true);
    let silent = at(&server, &proxy).connect_timeout(Duration::from_millis(50));
    let error = refused(silent.when_unreachable(WhenUnreachable::Fail));
    assert_eq!(error.field(), Some("when_unreachable"), "{error}");
}

#[test]
fn a_redis_that_refuses_is_an_error_that_names_the_setting() {
    let Some(server) = Server::start_or_skip() else { return };
    let mut client = server.client();
    let mut user = |name: &str, rules: &str| {
        let mut acl = redis::cmd("ACL");
        acl.arg("SETUSER").arg(name).arg("on").arg(">secret");
        for rule in rules.split(' ') {
            acl.arg(rule);
        }
        acl.exec(&mut client).unwrap();
        builder(&server).url(format!("redis://{name}:secret@{}/", server.addr()))
    };
    let all = format!("~{PREFIX}* +@all");
    // One that may do everything below the prefix, and nothing else.
    let good = start(user("good", &all));
    good.tier.put(&key("a"), &stored("value")).unwrap();
    assert_eq!(good.get("a").as_deref(), Some("value"));
    let lease = lead(seek(&good, "b").unwrap());
    assert_eq!(good.tier.complete(lease, &stored("value")).unwrap(), Completed::Stored);
    good.tier.remove_tag("t").unwrap();
    good.diary.expect("tag t");

    let error = refused(user("untold", &format!("{all} -client")));
    assert_eq!(error.field(), Some("url"), "{error}");
    assert!(error.to_string().contains("CLIENT TRACKING") && !error.to_string().contains("secret"), "{error}");
    let error = refused(user("elsewhere", "~other:* +@all"));
    assert!(error.to_string().contains("prefix"), "{error}");
    let error = refused(user("scriptless", &format!("{all} -@scripting")));
    assert!(error.to_string().contains("EVAL"), "{error}");
    let wrong = builder(&server).url(format!("redis://good:wrong@{}/", server.addr()));
    let error = refused(wrong);
    assert_eq!(error.field(), Some("url"), "{error}");
    assert!(error.to_string().contains("password"), "{error}");
    // One that wants a password and is not given any.
    redis::cmd("CONFIG").arg("SET").arg("requirepass").arg("secret").exec(&mut server.client()).unwrap();
    let error = refused(builder(&server));
    assert!(error.to_string().contains("password"), "{error}");
}

/// A server that answers whatever it is told with the same error.
fn that_says(answer: &'static str) -> RedisTierBuilder {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut asked = [0; 4096];
            while stream.read(&mut asked).is_ok_and(|read| read > 0) {
                if stream.write_all(answer.repeat(3).as_bytes()).is_err() {
                    break;
                }
            }
        }
    });
    RedisTier::builder().url(format!("redis://{addr}/")).prefix(PREFIX)
}

#[test]
fn an_old_or_a_protected_redis_is_an_error_that_names_the_setting() {
    let error = refused(that_says("-ERR unknown command `HELLO`, with args beginning with: `3`, \r\n"));
    assert!(error.field() == Some("url") && error.to_string().contains("6.2"), "{error}");
    let error = refused(that_says("-DENIED Redis is running in protected mode because protected mode is enabled\r\n"));
    assert!(error.field() == Some("url") && error.to_string().contains("protected mode"), "{error}");
}

#[test]
fn nonsense_is_refused_by_name() {
    let good = || RedisTier::builder().url("redis://localhost/").prefix("p:");
    let field = |builder: RedisTierBuilder| builder.build().unwrap_err().field().unwrap().to_owned();
    good().build().unwrap();
    assert_eq!(field(good().prefix("")), "prefix");
    assert_eq!(field(good().prefix("p".repeat(2000))), "prefix");
    assert_eq!(field(good().url("")), "url");
    assert_eq!(field(good().url("http://localhost")), "url");
    assert_eq!(field(good().budget(Duration::ZERO)), "budget");
    assert_eq!(field(good().connect_timeout(Duration::ZERO)), "connect_timeout");
    assert_eq!(field(good().lease(Duration::ZERO)), "lease");
    assert_eq!(field(good().lease(Duration::MAX)), "lease");
    assert_eq!(field(good().max_value(0)), "max_value");
    assert_eq!(field(good().max_value(usize::MAX)), "max_value");
    assert_eq!(field(good().max_key(0)), "max_key");
    assert_eq!(field(good().pool_size(0)), "pool_size");
    assert_eq!(field(good().writes(Writes::Background(0))), "writes");
    assert_eq!(field(good().breaker(BreakerConfig { min_calls: 0, ..BreakerConfig::default() })), "min_calls");
    assert_eq!(good().zstd_above(1000).build().is_ok(), cfg!(feature = "zstd"));
    let env = |name: &str, value: &str| {
        RedisConfig::read(EnvReader::from_vars("APP_", [(name.to_owned().into(), value.to_owned().into())]))
    };
    assert_eq!(env("APP_BUDGET", "20ms").unwrap().budget, Duration::from_millis(20));
    assert_eq!(env("APP_WRITES", "100").unwrap().writes, Writes::Background(100));
    assert_eq!(env("APP_ZSTD_ABOVE", "none").unwrap().zstd_above, None);
    assert_eq!(env("APP_WHEN_UNREACHABLE", "fail").unwrap().when_unreachable, WhenUnreachable::Fail);
    assert_eq!(env("APP_BREAKER_MIN_CALLS", "3").unwrap().breaker.min_calls, 3);
    assert_eq!(env("APP_BUDGETS", "1s").unwrap_err().field(), Some("APP_BUDGETS"));
    let secret = RedisTier::builder().url("redis://user:hunter2@localhost/").prefix("p:");
    assert!(!format!("{secret:?} {:?}", secret.clone().build().unwrap()).contains("hunter2"));
}

#[cfg(feature = "serde")]
#[test]
fn a_file_is_read_and_unknown_fields_are_refused() {
    let text = r#"{"prefix": "p:", "budget": "20ms", "writes": {"background": 10}, "breaker": {"open_for": "2s"}}"#;
    let config: RedisConfig = serde_json::from_str(text).unwrap();
    assert_eq!((config.budget, config.writes), (Duration::from_millis(20), Writes::Background(10)));
    assert_eq!(config.breaker.open_for, Duration::from_secs(2));
    assert!(serde_json::from_str::<RedisConfig>(r#"{"budge": "1s"}"#).unwrap_err().to_string().contains("budge"));
}

#[test]
fn close_ends_the_threads_at_once() {
    let Some(server) = Server::start_or_skip() else { return };
    let node = node(&server);
    let lease = lead(seek(&node, "a").unwrap());
    assert_eq!(node.tier.close_within(LONG), Vec::<String>::new());
    assert!(!node.tier.is_up());
    assert!(matches!(node.tier.get(&key("a"), None), Err(TierError::Closed)));
    assert!(matches!(node.tier.complete(lease, &stored("late")), Err(TierError::Closed)));
    assert_eq!(node.tier.close_within(LONG), Vec::<String>::new());
    // With nobody to answer.
    let proxy = TcpProxy::start(server.addr()).unwrap();
    let other = start(at(&server, &proxy).budget(Duration::from_millis(10)));
    proxy.black_hole(true);
    assert_eq!(other.tier.close_within(LONG), Vec::<String>::new());
    let begun = Instant::now();
    drop(node);
    assert!(begun.elapsed() < LONG);
}

#[cfg(feature = "redis-tls")]
#[test]
fn over_tls() {
    let dir = std::env::temp_dir().join(format!("fullbore-tls-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let file = |name: &str| dir.join(name).to_str().unwrap().to_owned();
    let made = std::process::Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"])
        .args(["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"])
        .args(["-addext", "basicConstraints=critical,CA:FALSE"])
        .args(["-keyout", &file("key.pem"), "-out", &file("cert.pem")])
        .output();
    let Ok(made) = made else {
        eprintln!("SKIPPED: openssl");
        return;
    };
    assert!(made.status.success(), "{made:?}");
    // Free now, and hardly anybody else's in a moment.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let server = Server::builder()
        .config("tls-port", &port.to_string())
        .config("tls-cert-file", &file("cert.pem"))
        .config("tls-key-file", &file("key.pem"))
        .config("tls-auth-clients", "no");
    let Some(server) = server.start_or_skip() else { return };
    let certificates =
        redis::TlsCertificates { client_tls: None, root_cert: Some(std::fs::read(file("cert.pem")).unwrap()) };
    let url = format!("rediss://localhost:{port}/");
    // Whoever does not know the certificate refuses it.
    let error = refused(builder(&server).url(url.clone()).when_unreachable(WhenUnreachable::Fail));
    assert_eq!(error.field(), Some("when_unreachable"), "{error}");
    let node = start(builder(&server).client(redis::Client::build_with_tls(url, certificates).unwrap()));
    node.diary.expect("regained");
    node.tier.put(&key("a"), &stored("value")).unwrap();
    node.diary.expect("key a");
    assert_eq!(node.get("a").as_deref(), Some("value"));
    // Through a quiet time.
    assert!(eventually(LONG, || calls(&server, "time") >= 3));
    assert_eq!(node.tier.stats().link_losses, 0);
    server.client().set::<_, _, ()>(slot("a"), "x").unwrap();
    node.diary.expect("key a");
    std::fs::remove_dir_all(&dir).unwrap();
}
