//! The cache with its second tier: several caches on one Redis, as so many processes would have it.
#![cfg(feature = "redis")]
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use std::convert::Infallible;
use std::io;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Barrier, mpsc};
use std::thread;
use std::time::Duration;

use fullbore_cache::{Cache, CacheBuilder, LoadCtx};
use fullbore_testkit::{Redis as Server, TcpProxy};
use support::{LONG, PREFIX, builder};

type Texts = Cache<String, String>;

fn texts() -> CacheBuilder<String, String> {
    Cache::builder().name("texts").load_timeout(LONG)
}

fn node(server: &Server) -> Texts {
    texts().redis(builder(server).build().unwrap()).build().unwrap()
}

fn key(name: &str) -> String {
    name.to_owned()
}

fn load(value: &str) -> impl FnOnce(&mut LoadCtx) -> Result<String, Infallible> {
    let value = value.to_owned();
    move |_| Ok(value)
}

fn no_load(_: &mut LoadCtx) -> io::Result<String> {
    panic!("no load was expected")
}

fn eventually(what: &str, holds: impl FnMut() -> bool) {
    assert!(fullbore_testkit::eventually(LONG, holds), "{what} did not come");
}

fn raw(server: &Server, command: &str, name: &str) {
    let mut connection = redis::Client::open(server.url()).unwrap().get_connection().unwrap();
    redis::cmd(command).arg(format!("{PREFIX}k:{name}")).exec(&mut connection).unwrap();
}

/// In memory, where no question to Redis is needed.
fn remember(node: &Texts, name: &str) -> String {
    let name = key(name);
    eventually("memory", || {
        node.get(&name).unwrap();
        node.peek(&name).is_some()
    });
    node.peek(&name).unwrap()
}

#[test]
fn what_one_process_loads_all_have() {
    let Some(server) = Server::start_or_skip() else { return };
    let (one, other) = (node(&server), node(&server));
    assert_eq!(one.get_or_compute(&key("a"), load("1")).unwrap(), "1");
    assert_eq!(other.get_or_compute(&key("a"), no_load).unwrap(), "1");
    assert_eq!(other.get(&key("a")).as_deref(), Some("1"));
    assert_eq!((remember(&one, "a"), remember(&other, "a")), ("1".into(), "1".into()));
    let asked = one.tier_stats().unwrap().hits;
    for _ in 0..100 {
        assert_eq!(one.get(&key("a")).as_deref(), Some("1"));
    }
    assert_eq!(one.tier_stats().unwrap().hits, asked, "what is in memory costs no question");
    assert_eq!((one.stats().loads, other.stats().loads), (1, 0));
    assert_eq!(one.stats().invalidated_loads, 0, "one's own echo is no invalidation");
    assert!(one.station().snapshot().balanced() && other.station().snapshot().balanced());
}

#[test]
fn what_is_removed_anywhere_in_any_way_is_gone_everywhere() {
    let Some(server) = Server::start_or_skip() else { return };
    let (one, other) = (node(&server), node(&server));
    type Way = fn(&Server, &Texts);
    let ways: [(&str, Way); 6] = [
        ("remove", |_, one| drop(one.try_remove(&key("a")).unwrap())),
        ("tag", |_, one| one.try_remove_by_tag("t").unwrap()),
        ("clear", |_, one| one.try_clear().unwrap()),
        ("DEL", |server, _| raw(server, "DEL", "a")),
        ("UNLINK", |server, _| raw(server, "UNLINK", "a")),
        ("FLUSHALL", |server, _| {
            let mut connection = redis::Client::open(server.url()).unwrap().get_connection().unwrap();
            redis::cmd("FLUSHALL").exec(&mut connection).unwrap();
        }),
    ];
    for (name, remove) in ways {
        let tagged = |ctx: &mut LoadCtx| {
            ctx.tags(["t"]);
            Ok::<_, Infallible>(name.to_owned())
        };
        eventually("a load", || one.get_or_compute(&key("a"), tagged).unwrap() == name);
        assert_eq!((remember(&one, "a"), remember(&other, "a")), (name.into(), name.into()));
        remove(&server, &one);
        if ["remove", "tag", "clear"].contains(&name) {
            assert_eq!(one.peek(&key("a")), None, "{name}: at once where it was asked for");
        }
        eventually("the removal", || one.get(&key("a")).is_none() && other.get(&key("a")).is_none());
        assert_eq!(other.get_or_compute(&key("a"), load("new")).unwrap(), "new", "{name}");
        other.remove(&key("a"));
        eventually("quiet", || one.get(&key("a")).is_none());
    }
}

/// memcached's leases, rueidisaside: here any process's plain removal revokes the load of another.
#[test]
fn an_invalidation_during_a_load_wins_whoever_sends_it() {
    let Some(server) = Server::start_or_skip() else { return };
    let (one, other) = (node(&server), node(&server));
    type Way = fn(&Server, &Texts);
    let ways: [Way; 4] = [
        |_, other| drop(other.try_remove(&key("a")).unwrap()),
        |_, other| other.try_remove_by_tag("t").unwrap(),
        |server, _| raw(server, "DEL", "a"),
        |_, other| other.insert(key("a"), "put".into()),
    ];
    for (n, invalidate) in ways.into_iter().enumerate() {
        let got = one.get_or_compute(&key("a"), |ctx| {
            ctx.tags(["t"]);
            invalidate(&server, &other);
            Ok::<_, Infallible>("old".to_owned())
        });
        assert_eq!(got.unwrap(), "old");
        assert_ne!(one.get(&key("a")).as_deref(), Some("old"));
        assert_ne!(other.get(&key("a")).as_deref(), Some("old"));
        assert_eq!(one.stats().invalidated_loads, n as u64 + 1, "counted");
        other.remove(&key("a"));
        eventually("quiet", || one.get(&key("a")).is_none());
    }
}

#[test]
fn a_cold_key_is_loaded_once_by_all_processes() {
    const NODES: usize = 4;
    const THREADS: usize = 8;
    let Some(server) = Server::start_or_skip() else { return };
    let nodes: Vec<Texts> = (0..NODES).map(|_| node(&server)).collect();
    let (loads, start) = (AtomicU32::new(0), Barrier::new(NODES * THREADS));
    thread::scope(|scope| {
        for node in &nodes {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    start.wait();
                    let got = node.get_or_compute(&key("cold"), |_| {
                        loads.fetch_add(1, Ordering::SeqCst);
                        // Until everybody else waits: here, or in Redis.
                        let waiting = || nodes.iter().map(|node| node.station().snapshot().waiting()).sum::<u64>();
                        let enough = (NODES * (THREADS - 1)) as u64;
                        let _ = fullbore_testkit::eventually(Duration::from_secs(5), || waiting() >= enough);
                        Ok::<_, Infallible>("warm".to_owned())
                    });
                    assert_eq!(got.unwrap(), "warm");
                });
            }
        }
    });
    assert_eq!(loads.load(Ordering::SeqCst), 1);
}

#[test]
fn an_insertion_is_seen_by_all() {
    let Some(server) = Server::start_or_skip() else { return };
    let (one, other) = (node(&server), node(&server));
    one.insert(key("a"), "1".into());
    assert_eq!((one.get(&key("a")), other.get(&key("a"))), (Some("1".into()), Some("1".into())));
    other.insert(key("a"), "2".into());
    assert_eq!(other.get(&key("a")).as_deref(), Some("2"), "one's own at once");
    eventually("the change", || one.get(&key("a")).as_deref() == Some("2"));
}

#[test]
fn a_load_that_fails_leaves_the_key_to_others_and_the_stale_value_to_all() {
    let Some(server) = Server::start_or_skip() else { return };
    let ttl = Duration::from_millis(200);
    let built = || texts().ttl(ttl).stale_for(LONG).redis(builder(&server).build().unwrap()).build().unwrap();
    let (one, other) = (built(), built());
    let fails = |_: &mut LoadCtx| Err::<String, _>(io::Error::other("down"));
    assert!(one.get_or_compute(&key("a"), fails).unwrap_err().is_load());
    assert_eq!(other.get_or_compute(&key("a"), load("1")).unwrap(), "1");
    eventually("the end of its TTL", || one.get(&key("a")).is_none());
    // It was never in this one's memory.
    assert_eq!(one.get_or_compute(&key("a"), fails).unwrap(), "1");
    assert_eq!(other.get_or_compute(&key("a"), load("2")).unwrap(), "2");
}

#[test]
fn many_keys_come_in_one_go_and_only_the_missing_are_loaded() {
    let Some(server) = Server::start_or_skip() else { return };
    let (one, other) = (node(&server), node(&server));
    let keys: Vec<String> = (0..1_000).map(|n| format!("{n}")).collect();
    let even = |keys: &[String], _: &mut LoadCtx| {
        let pairs = keys.iter().filter(|key| !key.ends_with('7')).map(|key| (key.clone(), format!("v{key}")));
        Ok::<Vec<_>, io::Error>(pairs.collect())
    };
    let want: Vec<Option<String>> = keys.iter().map(|key| (!key.ends_with('7')).then(|| format!("v{key}"))).collect();
    assert_eq!(one.get_or_compute_many(&keys, even).unwrap(), want);
    let again = other.get_or_compute_many(&keys, |missing, _| {
        assert_eq!(missing.len(), 100, "those that the first load did not find");
        Ok::<Vec<(String, String)>, io::Error>(Vec::new())
    });
    assert_eq!(again.unwrap(), want);
    assert!(one.station().snapshot().balanced() && other.station().snapshot().balanced());
}

/// Overlapping keys in two processes, each claiming what the other needs.
#[test]
fn calls_for_many_keys_in_two_processes_do_not_wait_for_each_other_for_ever() {
    let Some(server) = Server::start_or_skip() else { return };
    let nodes = [node(&server), node(&server)];
    for round in 0..20 {
        let start = Barrier::new(2);
        thread::scope(|scope| {
            for (n, node) in nodes.iter().enumerate() {
                let start = &start;
                scope.spawn(move || {
                    let mut keys: Vec<String> = (0..40).map(|k| format!("{round}/{k}")).collect();
                    if n == 1 {
                        keys.reverse();
                    }
                    start.wait();
                    let found = node.get_or_compute_many(&keys, |missing, _| {
                        Ok::<Vec<_>, io::Error>(missing.iter().map(|key| (key.clone(), key.clone())).collect())
                    });
                    let want: Vec<Option<String>> = keys.into_iter().map(Some).collect();
                    assert_eq!(found.unwrap(), want);
                });
            }
        });
    }
}

#[test]
fn without_redis_it_works_on_memory_and_forgets_soon() {
    let Some(server) = Server::start_or_skip() else { return };
    let proxy = TcpProxy::start(server.addr()).unwrap();
    let tier = builder(&server)
        .url(format!("redis://{}", proxy.addr()))
        .budget(Duration::from_millis(200))
        .outage_ttl(LONG)
        .build()
        .unwrap();
    let (apart, other) = (texts().redis(tier).build().unwrap(), node(&server));
    assert_eq!(apart.get_or_compute(&key("a"), load("1")).unwrap(), "1");
    remember(&apart, "a");
    proxy.refuse(true);
    proxy.cut();
    eventually("the loss", || !apart.tier_stats().unwrap().link_up);
    assert_eq!(apart.peek(&key("a")), None, "what cannot be told of is not believed");
    assert_eq!(apart.get_or_compute(&key("a"), load("2")).unwrap(), "2");
    assert_eq!(apart.get(&key("a")).as_deref(), Some("2"), "for the outage TTL");
    assert!(apart.try_remove(&key("a")).is_err());
    assert_eq!(apart.get(&key("a")), None);
    assert_eq!(other.get(&key("a")).as_deref(), Some("1"), "it could not be told");
    proxy.refuse(false);
    eventually("the link", || apart.tier_stats().unwrap().link_up);
    // What is owed is paid by itself, and before that nothing of Redis is believed.
    assert_ne!(apart.get(&key("a")).as_deref(), Some("1"));
    eventually("the removal", || other.get(&key("a")).as_deref() != Some("1"));
    assert_eq!(apart.get_or_compute(&key("a"), load("3")).unwrap(), "3");
    eventually("belief", || {
        apart.get_or_compute(&key("b"), load("4")).unwrap() == "4" && other.get(&key("b")).is_some()
    });
}

/// No removal that Redis refuses for good is owed for ever.
#[test]
fn what_cannot_be_removed_at_all_does_not_cut_the_cache_off() {
    let Some(server) = Server::start_or_skip() else { return };
    let (one, other) = (node(&server), node(&server));
    assert!(one.try_remove_by_tag(&"x".repeat(100_000)).is_err());
    assert!(one.try_remove(&"x".repeat(100_000)).is_err());
    assert_eq!(one.get_or_compute(&key("a"), load("1")).unwrap(), "1");
    assert_eq!(other.get(&key("a")).as_deref(), Some("1"));
}

/// The push of one's own lease does not make the cache forget who loads, or what failed.
#[test]
fn errors_are_remembered_and_loads_that_ask_for_their_own_key_are_refused() {
    let Some(server) = Server::start_or_skip() else { return };
    let one = texts().error_ttl(LONG).redis(builder(&server).build().unwrap()).build().unwrap();
    let watch = node(&server);
    let failed = one.get_or_compute(&key("a"), |_| {
        // The push of the lease has arrived, as far as one can tell from outside.
        let pushes = one.tier_stats().unwrap().pushes;
        watch.insert(key("other"), "1".into());
        eventually("a push after that of the lease", || one.tier_stats().unwrap().pushes > pushes);
        assert!(one.get_or_compute(&key("a"), no_load).unwrap_err().is_reentrant());
        Err::<String, _>(io::Error::other("down"))
    });
    assert!(failed.unwrap_err().is_load());
    assert!(one.get_or_compute(&key("a"), no_load).unwrap_err().is_load());
    assert_eq!(one.stats().error_hits, 1);
}

#[test]
fn two_that_look_at_once_both_find() {
    let Some(server) = Server::start_or_skip() else { return };
    let (one, other) = (node(&server), node(&server));
    for round in 0..50 {
        let name = format!("{round}");
        one.insert(name.clone(), "1".into());
        let start = Barrier::new(4);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    start.wait();
                    assert_eq!(other.get(&name).as_deref(), Some("1"));
                });
            }
        });
    }
}

#[test]
fn what_has_no_ttl_is_refreshed_too() {
    let Some(server) = Server::start_or_skip() else { return };
    let loads = std::sync::Arc::new(AtomicU64::new(0));
    let counted = std::sync::Arc::clone(&loads);
    let cache = texts()
        .ttl(None)
        .redis(builder(&server).build().unwrap())
        .loader(move |_, _| Ok::<_, Infallible>(counted.fetch_add(1, Ordering::SeqCst).to_string()))
        .build()
        .unwrap();
    assert_eq!(cache.get_or_load(&key("a")).unwrap(), "0");
    remember(&cache, "a");
    assert!(cache.refresh(&key("a")));
    eventually("the new value", || cache.get_or_load(&key("a")).unwrap() == "1");
}

#[test]
fn many_that_are_stale_are_loaded_in_one_call() {
    let Some(server) = Server::start_or_skip() else { return };
    let ttl = Duration::from_millis(100);
    let built = || texts().ttl(ttl).stale_for(LONG).redis(builder(&server).build().unwrap()).build().unwrap();
    let (one, other) = (built(), built());
    let keys: Vec<String> = (0..50).map(|n| format!("{n}")).collect();
    let mut calls = 0;
    let mut all = |keys: &[String], _: &mut LoadCtx| {
        calls += 1;
        Ok::<Vec<_>, io::Error>(keys.iter().map(|key| (key.clone(), key.clone())).collect())
    };
    one.get_or_compute_many(&keys, &mut all).unwrap();
    eventually("the end of their TTL", || keys.iter().all(|key| other.get(key).is_none()));
    other.get_or_compute_many(&keys, &mut all).unwrap();
    assert_eq!(calls, 2);
}

#[test]
fn a_loading_cache_refreshes_for_all() {
    let Some(server) = Server::start_or_skip() else { return };
    let loads = std::sync::Arc::new(AtomicU64::new(0));
    let built = || {
        let loads = std::sync::Arc::clone(&loads);
        texts()
            .redis(builder(&server).build().unwrap())
            .loader(move |_, _| Ok::<_, Infallible>(loads.fetch_add(1, Ordering::SeqCst).to_string()))
            .build()
            .unwrap()
    };
    let (one, other) = (built(), built());
    assert_eq!((one.get_or_load(&key("a")).unwrap(), other.get_or_load(&key("a")).unwrap()), ("0".into(), "0".into()));
    remember(&one, "a");
    remember(&other, "a");
    assert!(one.refresh(&key("a")));
    eventually("the new value", || one.get_or_load(&key("a")).unwrap() == "1");
    eventually("the new value elsewhere", || other.get_or_load(&key("a")).unwrap() == "1");
    assert_eq!(loads.load(Ordering::SeqCst), 2);
}

#[test]
fn a_panic_of_a_load_leaves_the_key_to_others() {
    let Some(server) = Server::start_or_skip() else { return };
    let (one, other) = (node(&server), node(&server));
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        one.get_or_compute(&key("a"), |_| -> io::Result<String> { panic!("on purpose") })
    }));
    assert!(panicked.is_err());
    assert_eq!(other.get_or_compute(&key("a"), load("1")).unwrap(), "1");
}

#[test]
fn a_wait_for_another_process_ends_at_its_deadline() {
    let Some(server) = Server::start_or_skip() else { return };
    let one = node(&server);
    let hurried =
        texts().load_timeout(Duration::from_millis(50)).redis(builder(&server).build().unwrap()).build().unwrap();
    thread::scope(|scope| {
        let (go, gate) = mpsc::channel::<()>();
        let (begun, wait_begun) = mpsc::channel();
        let one = &one;
        let slow = scope.spawn(move || {
            one.get_or_compute(&key("a"), |_| {
                begun.send(()).unwrap();
                gate.recv().unwrap();
                Ok::<_, Infallible>("1".to_owned())
            })
        });
        wait_begun.recv().unwrap();
        assert!(hurried.get_or_compute(&key("a"), no_load).unwrap_err().is_timeout());
        go.send(()).unwrap();
        assert_eq!(slow.join().unwrap().unwrap(), "1");
    });
    assert_eq!(hurried.get_or_compute(&key("a"), no_load).unwrap(), "1");
    assert!(hurried.station().snapshot().balanced());
}

#[test]
fn c5_close_ends_its_threads() {
    let Some(server) = Server::start_or_skip() else { return };
    let cache = node(&server);
    cache.insert(key("a"), "1".into());
    cache.close_within(LONG).unwrap();
    assert!(cache.get_or_compute(&key("b"), load("1")).unwrap_err().is_closed());
    drop(node(&server));
}

/// A source whose versions only rise; each change is followed by a removal on one of the nodes. Nobody may read a version that is older
/// than a removal that had ended when he asked, on the node that removed; and all see it in the end.
#[test]
fn histories_of_removals_and_reads() {
    const KEYS: usize = 3;
    let Some(server) = Server::start_or_skip() else { return };
    let nodes: Vec<Texts> = (0..2).map(|_| node(&server)).collect();
    let source: Vec<AtomicU64> = (0..KEYS).map(|_| AtomicU64::new(0)).collect();
    let ended: Vec<Vec<AtomicU64>> = (0..2).map(|_| (0..KEYS).map(|_| AtomicU64::new(0)).collect()).collect();
    let read = |node: &Texts, k: usize| {
        let got =
            node.get_or_compute(&k.to_string(), |_| Ok::<_, Infallible>(source[k].load(Ordering::SeqCst).to_string()));
        got.unwrap().parse::<u64>().unwrap()
    };
    thread::scope(|scope| {
        for (n, node) in nodes.iter().enumerate() {
            let (source, ended) = (&source, &ended);
            scope.spawn(move || {
                for round in 0..150u64 {
                    let k = (round as usize + n) % KEYS;
                    let version = source[k].fetch_add(1, Ordering::SeqCst) + 1;
                    node.try_remove(&k.to_string()).unwrap();
                    ended[n][k].fetch_max(version, Ordering::SeqCst);
                }
            });
            for _ in 0..2 {
                scope.spawn(move || {
                    for round in 0..400 {
                        let k = round % KEYS;
                        let least = ended[n][k].load(Ordering::SeqCst);
                        let got = read(node, k);
                        assert!(got >= least, "node {n}, key {k}: {got} after the removal of {least}");
                    }
                });
            }
        }
    });
    for (k, source) in source.iter().enumerate() {
        let last = source.load(Ordering::SeqCst);
        for node in &nodes {
            eventually("the last version", || read(node, k) == last);
        }
    }
}
