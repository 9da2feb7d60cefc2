//! The second tier with a real Redis: values, leases, and who is told.
#![cfg(all(feature = "redis", not(fullbore_loom)))]
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use fullbore_cache::redis::testing::{Completed, Need, Sought, Stored};
use fullbore_cache::redis::{TierError, Writes};
use fullbore_testkit::{Redis as Server, eventually};
use redis::Commands as _;
use support::{LONG, Node, PREFIX, builder, calls, key, lead, node, slot, soon, start, stored, value};

fn seek(node: &Node, name: &str) -> Sought<String> {
    node.tier.get_or_lease(&key(name), soon(), Need::Any).unwrap()
}

#[test]
fn what_one_process_loads_another_reads() {
    let Some(server) = Server::start_or_skip() else { return };
    let (one, other) = (node(&server), node(&server));
    assert_eq!(one.get("a"), None);
    let lease = lead(seek(&one, "a"));
    let rich = Stored {
        fresh: Some(LONG / 2),
        negative: true,
        took: Duration::from_millis(7),
        etag: Some("v1".into()),
        ..stored("loaded")
    };
    assert_eq!(one.tier.complete(lease, &rich).unwrap(), Completed::Stored);
    other.diary.expect("key a");
    let read = other.tier.get(&key("a"), None).unwrap().unwrap();
    assert!(!read.refreshing);
    let Stored { value, fresh, keep, tags, negative, took, etag } = read.stored;
    assert_eq!((&*value, negative, took, etag.as_deref()), ("loaded", true, rich.took, Some("v1")));
    assert!(tags.is_empty());
    assert!(fresh <= rich.fresh && fresh > Some(Duration::ZERO) && keep <= rich.keep && keep > fresh);
    assert_eq!(value_of(&other, "a"), "loaded");
    let stats = one.tier.stats();
    assert_eq!((stats.led, stats.stored, stats.misses), (1, 1, 2));
    assert!(stats.link_up);
}

fn value_of(node: &Node, name: &str) -> String {
    value(seek(node, name))
}

#[test]
fn a_plain_del_revokes_a_load() {
    let Some(server) = Server::start_or_skip() else { return };
    let (one, other) = (node(&server), node(&server));
    // By somebody who knows nothing of us.
    let lease = lead(seek(&one, "a"));
    let gone: usize = server.client().del(slot("a")).unwrap();
    assert_eq!(gone, 1, "the lease");
    assert_eq!(one.tier.complete(lease, &stored("old")).unwrap(), Completed::Revoked);
    assert_eq!(other.get("a"), None);
    // By another process, although nothing is there that could be removed but the lease.
    let lease = lead(seek(&one, "a"));
    assert!(other.tier.remove(&key("a")).unwrap());
    assert_eq!(one.tier.complete(lease, &stored("old")).unwrap(), Completed::Revoked);
    // Somebody else has begun another load meanwhile.
    let first = lead(seek(&one, "a"));
    assert!(other.tier.remove(&key("a")).unwrap());
    let second = lead(seek(&other, "a"));
    assert_eq!(one.tier.complete(first, &stored("old")).unwrap(), Completed::Revoked);
    assert_eq!(other.tier.complete(second, &stored("new")).unwrap(), Completed::Stored);
    assert_eq!(one.get("a").unwrap(), "new");
    // A value that was put wins, too.
    one.tier.remove(&key("a")).unwrap();
    let lease = lead(seek(&one, "a"));
    other.tier.put(&key("a"), &stored("put")).unwrap();
    assert_eq!(one.tier.complete(lease, &stored("old")).unwrap(), Completed::Revoked);
    assert_eq!(one.get("a").unwrap(), "put");
    assert_eq!(one.tier.stats().revoked, 4);
}

#[test]
fn a_store_after_the_end_of_the_lease_is_revoked() {
    let Some(server) = Server::start_or_skip() else { return };
    let one = start(builder(&server).lease(Duration::from_millis(1)));
    let other = node(&server);
    let late = lead(seek(&one, "a"));
    // Gone by itself, or nearly: whoever comes waits for that.
    let lease = lead(seek(&other, "a"));
    assert_eq!(one.tier.complete(late, &stored("late")).unwrap(), Completed::Revoked);
    assert_eq!(other.tier.complete(lease, &stored("new")).unwrap(), Completed::Stored);
    assert_eq!(one.get("a").unwrap(), "new");
}

#[test]
fn who_waits_is_woken_by_a_push_and_asks_nothing_meanwhile() {
    let Some(server) = Server::start_or_skip() else { return };
    let (one, other) = (node(&server), node(&server));
    let lease = lead(seek(&one, "a"));
    thread::scope(|scope| {
        let waiter = scope.spawn(|| value_of(&other, "a"));
        assert!(eventually(LONG, || other.tier.stats().waited == 1));
        assert_eq!(one.tier.complete(lease, &stored("loaded")).unwrap(), Completed::Stored);
        assert_eq!(waiter.join().unwrap(), "loaded");
    });
    let asked = other.tier.station().snapshot().served;
    // A look, a claim in vain, perhaps another one for the push of the lease itself, and one that finds the value; the probe at
    // the beginning. Each second of waiting would add one for the owner.
    assert!(asked <= 6, "{asked}");
    assert_eq!(calls(&server, "exists"), 0, "the wait was short");
}

#[test]
fn a_stampede_of_two_processes_loads_once() {
    let Some(server) = Server::start_or_skip() else { return };
    let nodes = [node(&server), node(&server)];
    let loads = AtomicUsize::new(0);
    thread::scope(|scope| {
        for n in 0..16 {
            let (nodes, loads) = (&nodes, &loads);
            scope.spawn(move || {
                let node = &nodes[n % 2];
                match seek(node, "a") {
                    Sought::Value(stored) => assert_eq!(stored.value, "loaded"),
                    Sought::Lead(lease) => {
                        loads.fetch_add(1, Ordering::Relaxed);
                        // It takes until all others wait, or have seen that there is something to wait for.
                        assert!(eventually(LONG, || {
                            nodes.iter().map(|node| node.tier.stats().waited).sum::<u64>() == 15
                        }));
                        assert_eq!(node.tier.complete(lease, &stored("loaded")).unwrap(), Completed::Stored);
                    }
                    Sought::Busy => panic!("it waits"),
                }
            });
        }
    });
    assert_eq!(loads.into_inner(), 1);
    let led: u64 = nodes.iter().map(|node| node.tier.stats().led).sum();
    assert_eq!(led, 1);
}

#[test]
fn a_load_that_failed_is_done_by_who_waits() {
    let Some(server) = Server::start_or_skip() else { return };
    let (one, other) = (node(&server), node(&server));
    for dropped in [false, true] {
        let lease = lead(seek(&one, "a"));
        let before = other.tier.stats().waited;
        thread::scope(|scope| {
            let waiter = scope.spawn(|| lead(seek(&other, "a")));
            assert!(eventually(LONG, || other.tier.stats().waited > before));
            if dropped {
                drop(lease);
            } else {
                one.tier.abandon(lease);
            }
            other.tier.abandon(waiter.join().unwrap());
        });
    }
    assert_eq!(one.tier.stats().abandoned, 2);
    let exists: bool = server.client().exists(slot("a")).unwrap();
    assert!(!exists);
}

#[test]
fn nobody_waits_beyond_his_deadline() {
    let Some(server) = Server::start_or_skip() else { return };
    let (one, other) = (node(&server), node(&server));
    let _lease = lead(seek(&one, "a"));
    let error = other.tier.get_or_lease(&key("a"), Some(Instant::now() + Duration::from_millis(20)), Need::Any);
    let error = error.unwrap_err();
    assert!(error.is_timeout(), "{error}");
    assert!(matches!(other.tier.try_refresh(&key("a")), Ok(Sought::Busy)));
    // The lease of this process itself is no other.
    assert!(matches!(one.tier.try_refresh(&key("a")), Ok(Sought::Busy)));
}

#[test]
fn a_stale_value_is_there_until_it_is_replaced() {
    let Some(server) = Server::start_or_skip() else { return };
    let (one, other) = (node(&server), node(&server));
    let old = Stored { fresh: Some(Duration::ZERO), keep: Some(100 * LONG), etag: Some("1".into()), ..stored("old") };
    one.tier.put(&key("a"), &old).unwrap();
    let read = one.tier.get(&key("a"), None).unwrap().unwrap();
    assert!(read.stored.is_stale() && !read.refreshing);
    assert_eq!(value_of(&one, "a"), "old");
    // One replaces it, the others go on with it, and those who cannot, wait.
    let lease = lead(one.tier.try_refresh(&key("a")).unwrap());
    assert!(matches!(other.tier.try_refresh(&key("a")), Ok(Sought::Busy)));
    let read = other.tier.get(&key("a"), None).unwrap().unwrap();
    assert!(read.refreshing && read.stored.is_stale());
    assert_eq!((value_of(&other, "a").as_str(), read.stored.etag.as_deref()), ("old", Some("1")));
    // It failed: all is as before.
    one.tier.abandon(lease);
    assert!(!other.tier.get(&key("a"), None).unwrap().unwrap().refreshing);
    let left: i64 = server.client().pttl(slot("a")).unwrap();
    assert!(left > LONG.as_millis() as i64, "{left}");
    let lease = lead(other.tier.try_refresh(&key("a")).unwrap());
    thread::scope(|scope| {
        let waiter = scope.spawn(|| value(one.tier.get_or_lease(&key("a"), soon(), Need::Fresh).unwrap()));
        assert!(eventually(LONG, || one.tier.stats().waited == 1));
        assert_eq!(other.tier.complete(lease, &stored("new")).unwrap(), Completed::Stored);
        assert_eq!(waiter.join().unwrap(), "new");
    });
    // Removed while it is replaced: nothing is left of either.
    one.tier.put(&key("b"), &old).unwrap();
    let lease = lead(one.tier.try_refresh(&key("b")).unwrap());
    assert!(other.tier.remove(&key("b")).unwrap());
    assert_eq!(one.tier.complete(lease, &stored("new")).unwrap(), Completed::Revoked);
    assert_eq!(one.get("b"), None);
}

#[test]
fn values_age_and_end() {
    let Some(server) = Server::start_or_skip() else { return };
    let node = node(&server);
    let mut client = server.client();
    // Without an end.
    node.tier.put(&key("a"), &Stored::new("for ever".to_owned())).unwrap();
    let read = node.tier.get(&key("a"), None).unwrap().unwrap().stored;
    assert_eq!((read.fresh, read.keep, read.is_stale()), (None, None, false));
    assert_eq!(client.pttl::<_, i64>(slot("a")).unwrap(), -1);
    // Fresh for a while, stale without an end.
    node.tier.put(&key("a"), &Stored { fresh: Some(LONG), ..Stored::new("long".to_owned()) }).unwrap();
    let read = node.tier.get(&key("a"), None).unwrap().unwrap().stored;
    assert!(read.fresh.is_some_and(|fresh| fresh <= LONG && !fresh.is_zero()) && read.keep.is_none());
    // It becomes stale.
    node.tier.put(&key("a"), &Stored { fresh: Some(Duration::from_millis(1)), ..stored("brief") }).unwrap();
    assert!(eventually(LONG, || node.tier.get(&key("a"), None).unwrap().unwrap().stored.is_stale()));
    // It ends, and that is told.
    node.tier
        .put(&key("a"), &Stored { keep: Some(Duration::from_millis(1)), ..Stored::new("brief".to_owned()) })
        .unwrap();
    node.diary.take();
    assert!(eventually(LONG, || node.get("a").is_none()));
}

#[test]
fn changes_are_told_by_whomever_and_in_whatever_way() {
    let Some(server) = Server::start_or_skip() else { return };
    let node = node(&server);
    node.diary.expect("regained");
    let mut client = server.client();
    client.set::<_, _, ()>(slot("a"), "x").unwrap();
    node.diary.expect("key a");
    client.rename::<_, _, ()>(slot("a"), slot("b")).unwrap();
    node.diary.expect("key b");
    client.pexpire::<_, ()>(slot("b"), 1).unwrap();
    node.diary.expect("key b");
    // The end of it as well, as soon as Redis sees it.
    node.diary.expect("key b");
    // What is not there may be in somebody's memory all the same.
    node.tier.remove(&key("never there")).unwrap();
    node.diary.expect("key never there");
    redis::cmd("FLUSHALL").exec(&mut client).unwrap();
    node.diary.expect("flushed");
    // Other people's names, and those that no key of this cache has.
    client.set::<_, _, ()>("test:v2:k:a", "x").unwrap();
    client.set::<_, _, ()>(&[slot("").as_bytes(), &[0xff]].concat(), "x").unwrap();
    client.set::<_, _, ()>(slot("last"), "x").unwrap();
    node.diary.expect("key last");
    assert_eq!(node.tier.stats().strangers, 1);
    assert_eq!(node.tier.stats().flushes, 1);
}

#[test]
fn what_cannot_be_read_is_a_miss_and_is_overwritten() {
    let Some(server) = Server::start_or_skip() else { return };
    let node = node(&server);
    let mut client = server.client();
    node.tier.put(&key("good"), &stored("good")).unwrap();
    let good: Vec<u8> = client.get(slot("good")).unwrap();
    let mut damaged = good.clone();
    *damaged.last_mut().unwrap() ^= 1;
    let mut format = good.clone();
    format[3] += 1;
    let cases: [(&str, Vec<u8>); 7] = [
        ("text", b"somebody else's".to_vec()),
        ("empty", Vec::new()),
        ("damaged", damaged),
        ("cut", good[..good.len() - 1].to_vec()),
        ("longer", [&good[..], b"x"].concat()),
        ("format", format),
        // Right as it is, but of another key.
        ("moved", good),
    ];
    for (name, bytes) in cases {
        client.set::<_, _, ()>(slot(name), bytes).unwrap();
        assert_eq!(node.get(name), None, "{name}");
        let lease = lead(seek(&node, name));
        assert_eq!(node.tier.complete(lease, &stored(name)).unwrap(), Completed::Stored);
        assert_eq!(node.get(name).as_deref(), Some(name));
    }
    // Another type of Redis.
    client.lpush::<_, _, ()>(slot("list"), "x").unwrap();
    assert_eq!(node.get("list"), None);
    let lease = lead(seek(&node, "list"));
    assert_eq!(node.tier.complete(lease, &stored("list")).unwrap(), Completed::Stored);
    assert_eq!(node.get("list").as_deref(), Some("list"));
    assert!(node.tier.stats().undecodable >= 14);
    // It changed between the look and the claim: the claim sees what is there now.
    client.set::<_, _, ()>(slot("raced"), "rubbish").unwrap();
    let lease = lead(seek(&node, "raced"));
    drop(lease);
}

#[test]
fn a_value_of_another_type_or_codec_is_a_miss() {
    let Some(server) = Server::start_or_skip() else { return };
    let strings = node(&server);
    let told = Arc::new(support::Diary::default());
    let numbers = builder(&server).build().unwrap().connect::<String, (u64, u64)>("numbers", told.clone()).unwrap();
    let json = builder(&server).codec(fullbore_cache::redis::Json).build().unwrap();
    let json = json.connect::<String, String>("json", told).unwrap();
    strings.tier.put(&key("a"), &stored("text")).unwrap();
    assert!(numbers.get(&key("a"), None).unwrap().is_none());
    assert!(json.get(&key("a"), None).unwrap().is_none());
    let Sought::Lead(lease) = json.get_or_lease(&key("a"), soon(), Need::Any).unwrap() else { panic!("a lease") };
    json.complete(lease, &stored("json")).unwrap();
    assert_eq!(json.get(&key("a"), None).unwrap().unwrap().stored.value, "json");
    assert_eq!(strings.get("a"), None);
}

#[test]
fn what_is_too_large_is_refused_by_name_and_holds_nobody_up() {
    let Some(server) = Server::start_or_skip() else { return };
    let node = start(builder(&server).max_value(100).max_key(10));
    let lease = lead(seek(&node, "a"));
    let error = node.tier.complete(lease, &stored(&"x".repeat(101))).unwrap_err();
    assert_eq!((error.setting(), error.is_oversized()), (Some("max_value"), true), "{error}");
    // The lease was given back.
    drop(lead(seek(&node, "a")));
    assert!(node.tier.put(&key("a"), &stored(&"x".repeat(101))).unwrap_err().is_oversized());
    let long = "k".repeat(1 << 20);
    for error in [node.tier.get(&long, None).map(drop), node.tier.remove(&long).map(drop)] {
        assert_eq!(error.unwrap_err().setting(), Some("max_key"));
    }
    assert!(node.tier.get_many(&[long, key("a")], None)[0].is_err());
    let tags = Stored { tags: vec!["t".repeat(2000).into()], ..stored("x") };
    assert!(matches!(node.tier.put(&key("a"), &tags), Err(TierError::Unwritable(_))));
    assert!(matches!(node.tier.remove_tag(&"t".repeat(2000)), Err(TierError::Unwritable(_))));
    assert_eq!(node.tier.stats().too_large, 5);
    assert_eq!(node.tier.stats().failures, 0);
}

fn tagged(value: &str, tags: &[&str]) -> Stored<String> {
    Stored { tags: tags.iter().map(|tag| Arc::from(*tag)).collect(), ..stored(value) }
}

#[test]
fn a_tag_removes_values_in_all_processes() {
    let Some(server) = Server::start_or_skip() else { return };
    let (one, other) = (node(&server), node(&server));
    for name in ["a", "b"] {
        let lease = lead(seek(&one, name));
        assert_eq!(one.tier.complete(lease, &tagged(name, &["all", name])).unwrap(), Completed::Stored);
    }
    assert_eq!((other.get("a").as_deref(), other.get("b").as_deref()), (Some("a"), Some("b")));
    assert_eq!(one.get("a").as_deref(), Some("a"));
    one.tier.remove_tag("a").unwrap();
    assert_eq!(one.get("a"), None, "at once in the process itself");
    assert!(eventually(LONG, || other.get("a").is_none()));
    assert_eq!(other.get("b").as_deref(), Some("b"));
    // Once all is known a value with tags costs no more than one without.
    assert!(eventually(LONG, || {
        let before = calls(&server, "evalsha");
        other.get("b");
        calls(&server, "evalsha") == before
    }));
    // What is loaded from now on is good, and what is there can be replaced.
    let lease = lead(seek(&one, "a"));
    assert_eq!(one.tier.complete(lease, &tagged("new", &["all", "a"])).unwrap(), Completed::Stored);
    assert_eq!(other.get("a").as_deref(), Some("new"));
    other.tier.remove_tag("all").unwrap();
    assert_eq!((other.get("a"), other.get("b")), (None, None));
    // That the tag was told of before, when it was new, does not count: so not by the diary.
    assert!(eventually(LONG, || (one.get("a"), one.get("b")) == (None, None)));
    assert!(one.tier.stats().tag_misses >= 2);
}

#[test]
fn a_tag_removed_during_a_load_revokes_it() {
    let Some(server) = Server::start_or_skip() else { return };
    let (one, other) = (node(&server), node(&server));
    // Also a tag that only the loader knows of, and that nobody ever used.
    let lease = lead(seek(&one, "a"));
    other.tier.remove_tag("t").unwrap();
    assert_eq!(one.tier.complete(lease, &tagged("old", &["t"])).unwrap(), Completed::Revoked);
    assert_eq!(other.get("a"), None);
    // Another tag does not matter.
    one.diary.expect("tag t");
    assert!(eventually(LONG, || {
        let lease = lead(seek(&one, "a"));
        other.tier.remove_tag("another").unwrap();
        one.tier.complete(lease, &tagged("new", &["t"])).unwrap() == Completed::Stored
    }));
    assert_eq!(other.get("a").as_deref(), Some("new"));
    // The removal comes between what is read at the end and the store itself: the reader sees it.
    other.tier.remove_tag("t").unwrap();
    assert_eq!(other.get("a"), None);
}

#[test]
fn tags_that_were_evicted_bring_nothing_back() {
    let Some(server) = Server::start_or_skip() else { return };
    let (one, other) = (node(&server), node(&server));
    let mut client = server.client();
    let put = |name: &str| one.tier.put(&key(name), &tagged(name, &["t"])).unwrap();
    let (sequence, tag) = (format!("{PREFIX}t:{{t}}"), format!("{PREFIX}t:{{t}}:t"));
    // Evicted after it was removed: with a number of zero the old value would be back.
    put("a");
    assert_eq!(other.get("a").as_deref(), Some("a"));
    one.tier.remove_tag("t").unwrap();
    client.del::<_, ()>(&tag).unwrap();
    other.diary.expect("tag t");
    other.diary.expect("tag t");
    assert_eq!((one.get("a"), other.get("a")), (None, None));
    // And the sequence as well: nothing that was written before is believed.
    assert!(eventually(LONG, || {
        put("b");
        other.get("b").is_some()
    }));
    client.del::<_, ()>(&[&sequence, &tag]).unwrap();
    one.tier.remove_tag("t").unwrap();
    client.del::<_, ()>(&tag).unwrap();
    assert!(eventually(LONG, || other.get("b").is_none()));
    assert!(eventually(LONG, || {
        put("c");
        other.get("c").is_some()
    }));
    assert_eq!(one.get("b"), None);
}

#[test]
fn many_at_once() {
    let Some(server) = Server::start_or_skip() else { return };
    let (one, other) = (node(&server), node(&server));
    let names: Vec<String> = (0..1200).map(|n| format!("key {n}")).collect();
    let values: Vec<Stored<String>> = names.iter().map(|name| tagged(name, &["all"])).collect();
    let leases: Vec<_> = one.tier.lease_many(&names, soon()).into_iter().map(|one| lead(one.unwrap())).collect();
    assert!(other.tier.lease_many(&names, soon()).iter().all(|one| matches!(one, Ok(Sought::Busy))));
    // One of them is removed meanwhile.
    other.tier.remove(&names[7]).unwrap();
    let loads = leases.into_iter().zip(&values).collect();
    let outcomes = one.tier.complete_many(loads);
    for (n, outcome) in outcomes.iter().enumerate() {
        assert_eq!(*outcome.as_ref().unwrap(), if n == 7 { Completed::Revoked } else { Completed::Stored }, "{n}");
    }
    let (mgets, gets) = (calls(&server, "mget"), calls(&server, "get"));
    let read = other.tier.get_many(&names, None);
    for (n, (read, name)) in read.into_iter().zip(&names).enumerate() {
        let read = read.unwrap().map(|looked| looked.stored.value);
        assert_eq!(read.as_ref(), (n != 7).then_some(name), "{n}");
    }
    assert_eq!(calls(&server, "mget") - mgets, 5, "256 in each");
    assert!(calls(&server, "pttl") <= 4, "of the tag, no value's");
    assert!(calls(&server, "get") - gets <= 4, "of the sequence and of one tag");
    // Values, one lease, one that is too long.
    let long = "k".repeat(1 << 20);
    let mut some = other.tier.lease_many(&[names[0].clone(), names[7].clone(), long], soon()).into_iter();
    assert_eq!(value(some.next().unwrap().unwrap()), names[0]);
    drop(lead(some.next().unwrap().unwrap()));
    assert!(some.next().unwrap().unwrap_err().is_oversized());
    other.tier.remove_tag("all").unwrap();
    assert!(other.tier.get_many(&names, None).into_iter().all(|read| read.unwrap().is_none()));
}

#[test]
fn writes_in_the_background_arrive_and_do_not_outlive_a_removal() {
    let Some(server) = Server::start_or_skip() else { return };
    let one = start(builder(&server).writes(Writes::Background(1000)));
    let other = node(&server);
    for n in 0..100 {
        one.tier.put(&format!("key {n}"), &stored("value")).unwrap();
    }
    assert!(eventually(LONG, || (0..100).all(|n| other.get(&format!("key {n}")).is_some())));
    for round in 0..200 {
        let name = format!("round {round}");
        one.tier.put(&name, &stored("old")).unwrap();
        one.tier.remove(&name).unwrap();
        assert_eq!(other.get(&name), None, "{name}");
    }
    // What waits at the end is written.
    one.tier.put(&key("last"), &stored("value")).unwrap();
    one.tier.close_within(LONG);
    for round in 0..200 {
        assert_eq!(other.get(&format!("round {round}")), None);
    }
    assert_eq!(other.get("last").as_deref(), Some("value"));
    assert!(matches!(one.tier.put(&key("later"), &stored("value")), Err(TierError::Closed)));
}

#[test]
fn full_of_values_it_goes_on() {
    let Some(server) =
        Server::builder().config("maxmemory", "3mb").config("maxmemory-policy", "allkeys-lru").start_or_skip()
    else {
        return;
    };
    let node = node(&server);
    let text = "x".repeat(20_000);
    for n in 0..500 {
        let name = format!("key {n}");
        let lease = lead(seek(&node, &name));
        // An evicted lease is a revoked one.
        let _: Completed = node.tier.complete(lease, &tagged(&text, &["t"])).unwrap();
    }
    let evicted: String = redis::cmd("INFO").arg("stats").query(&mut server.client()).unwrap();
    assert!(!evicted.contains("evicted_keys:0\r"), "{evicted}");
    // Whatever is still there is right.
    for n in 0..500 {
        assert!(node.get(&format!("key {n}")).is_none_or(|there| there == text));
    }
    let stats = node.tier.stats();
    assert_eq!((stats.failures, stats.undecodable, stats.led), (0, 0, 500));
    // One that evicts nothing refuses.
    redis::cmd("CONFIG").arg("SET").arg("maxmemory-policy").arg("noeviction").exec(&mut server.client()).unwrap();
    redis::cmd("CONFIG").arg("SET").arg("maxmemory").arg("1").exec(&mut server.client()).unwrap();
    let error = node.tier.put(&key("more"), &stored("value")).unwrap_err();
    assert!(matches!(&error, TierError::Refused { code, .. } if **code == *"OOM"), "{error}");
    assert!(node.tier.remove(&key("key 499")).is_ok());
    assert_eq!(node.tier.stats().failures, 0, "it answers");
}

#[cfg(feature = "tracing")]
#[test]
fn c11_what_cannot_be_read_can_be_followed() {
    let Some(server) = Server::start_or_skip() else { return };
    let node = node(&server);
    server.client().set::<_, _, ()>(slot("a"), "rubbish").unwrap();
    let events = fullbore_testkit::events::capture(|| {
        for _ in 0..3 {
            assert_eq!(node.get("a"), None);
        }
    });
    assert_eq!(events.len(), 1, "rate-limited: {events:?}");
    assert!(events[0].contains("not to be read") && events[0].contains("not ours"), "{events:?}");
}

#[test]
fn c6_its_stations_say_what_it_did() {
    let Some(server) = Server::start_or_skip() else { return };
    let node = node(&server);
    for _ in 0..10 {
        node.get("a");
    }
    let (asked, pool) = (node.tier.station().snapshot(), node.tier.pool_station().snapshot());
    // The probe at the beginning, too.
    assert_eq!((asked.name(), asked.served, asked.failed, asked.in_service()), ("test-l2", 11, 0, 0));
    assert!(asked.balanced() && pool.balanced());
    assert_eq!(pool.served, 11);
}
