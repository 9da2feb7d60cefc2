//! A random history over several tiers of one Redis: no read may return a value older than a removal that had ended before the
//! read began.
#![cfg(all(feature = "redis", not(fullbore_loom)))]
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use fullbore_cache::redis::testing::{Need, Sought, Stored};
use fullbore_cache::redis::{TierError, Writes};
use fullbore_testkit::{Redis as Server, TcpProxy};
use support::{LONG, Node, builder, key, start, stored};

const KEYS: usize = 3;
const NODES: usize = 3;
const THREADS: usize = 3;

/// What is cached: the present version of each key. And for each the version that nobody may see anything older than.
#[derive(Default)]
struct Source {
    present: [AtomicU64; KEYS],
    floor: [AtomicU64; KEYS],
}

/// SplitMix64.
struct Chance(u64);

impl Chance {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }
}

/// How removals are done.
#[derive(Clone, Copy, PartialEq)]
enum By {
    Key,
    Tag,
    /// By somebody who knows nothing of us.
    Del,
}

fn run(by: By, rounds: u64, seed: u64, disturb: impl Fn(u64) + Sync, server: &Server, nodes: &[Node]) {
    println!("seed {seed}");
    let source = Source::default();
    let clock = AtomicU64::new(0);
    let checked = AtomicU64::new(0);
    thread::scope(|scope| {
        for (n, node) in nodes.iter().enumerate() {
            for t in 0..THREADS {
                let (source, disturb, clock, checked) = (&source, &disturb, &clock, &checked);
                scope.spawn(move || {
                    let mut chance = Chance(seed ^ (((n * THREADS + t) as u64) << 32));
                    for _ in 0..rounds {
                        disturb(clock.fetch_add(1, Ordering::Relaxed));
                        let k = chance.below(KEYS as u64) as usize;
                        if chance.below(4) == 0 {
                            change(by, source, k, server, node);
                        } else if look(by, source, k, node) {
                            checked.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                });
            }
        }
    });
    let checked = checked.into_inner();
    assert!(checked > 0, "nothing was ever read: nothing was tested");
}

fn name(k: usize) -> String {
    key(&format!("key {k}"))
}

/// Changes the source, removes the key, and then nobody may see what was before.
fn change(by: By, source: &Source, k: usize, server: &Server, node: &Node) {
    let version = source.present[k].fetch_add(1, Ordering::SeqCst) + 1;
    let removed = match by {
        By::Key => node.tier.remove(&name(k)).is_ok(),
        By::Tag => node.tier.remove_tag(&name(k)).is_ok(),
        By::Del => {
            let gone: redis::RedisResult<u64> =
                redis::cmd("DEL").arg(support::slot(&name(k))).query(&mut server.client());
            gone.is_ok()
        }
    };
    // One that failed may not have been seen by anybody.
    if removed {
        source.floor[k].fetch_max(version, Ordering::SeqCst);
    }
}

/// Reads or loads; whether something was read.
fn look(by: By, source: &Source, k: usize, node: &Node) -> bool {
    let floor = source.floor[k].load(Ordering::SeqCst);
    let until = Some(Instant::now() + LONG);
    match node.tier.get_or_lease(&name(k), until, Need::Any) {
        Ok(Sought::Value(found)) => {
            let version: u64 = found.value.parse().unwrap();
            // A tag's number is remembered until the link tells of another: other processes see it a moment later.
            assert!(version >= floor || by == By::Tag, "key {k}: read {version}, removed at {floor}");
            true
        }
        Ok(Sought::Lead(lease)) => {
            let version = source.present[k].load(Ordering::SeqCst);
            thread::yield_now();
            let tags = if by == By::Tag { vec![Arc::from(name(k))] } else { Vec::new() };
            let value = Stored { tags, keep: Some(LONG), ..Stored::new(version.to_string()) };
            match node.tier.complete(lease, &value) {
                Ok(_) => {}
                Err(error) => assert!(error.is_unavailable(), "{error}"),
            }
            false
        }
        Ok(Sought::Busy) => panic!("it waits"),
        Err(error) => {
            assert!(error.is_unavailable() || matches!(error, TierError::WaitedInVain), "{error}");
            false
        }
    }
}

fn seed() -> u64 {
    std::env::var("TEST_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or_else(|| std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64)
}

#[test]
fn no_read_is_older_than_a_removal() {
    let Some(server) = Server::start_or_skip() else { return };
    let nodes: Vec<Node> = (0..NODES).map(|_| start(builder(&server))).collect();
    for by in [By::Key, By::Del] {
        run(by, 400, seed(), |_| {}, &server, &nodes);
    }
    let led: u64 = nodes.iter().map(|node| node.tier.stats().revoked).sum();
    assert!(led > 0, "no load was ever revoked: nothing was tested");
}

#[test]
fn no_read_is_older_than_a_removal_while_connections_are_cut() {
    let Some(server) = Server::start_or_skip() else { return };
    let proxies: Vec<TcpProxy> = (0..NODES).map(|_| TcpProxy::start(server.addr()).unwrap()).collect();
    let breaker =
        fullbore_limit::BreakerConfig { consecutive_failures: 10_000, min_calls: 10_000, ..Default::default() };
    let nodes: Vec<Node> = proxies
        .iter()
        .map(|proxy| start(builder(&server).url(server.url_at(proxy.addr())).breaker(breaker.clone())))
        .collect();
    let disturb = |time: u64| {
        if time % 150 == 149 {
            proxies[(time / 150) as usize % NODES].cut();
        }
        if time % 1000 == 999 {
            redis::cmd("FLUSHALL").exec(&mut server.client()).unwrap();
        }
    };
    run(By::Key, 400, seed(), disturb, &server, &nodes);
    assert!(nodes.iter().map(|node| node.tier.stats().link_losses).sum::<u64>() > 0);
}

#[test]
fn after_a_removed_tag_was_told_of_nobody_reads_what_was_before() {
    let Some(server) = Server::start_or_skip() else { return };
    let nodes: Vec<Node> = (0..NODES).map(|_| start(builder(&server))).collect();
    run(By::Tag, 200, seed(), |_| {}, &server, &nodes);
    // All is quiet. One more removal of each, told to all: only what is loaded afterwards is seen.
    for k in 0..KEYS {
        nodes[0].tier.remove_tag(&name(k)).unwrap();
        for node in &nodes[1..] {
            node.diary.take();
        }
    }
    for k in 0..KEYS {
        nodes[0].tier.put(&name(k), &Stored { tags: vec![Arc::from(name(k))], ..stored("old") }).unwrap();
        nodes[0].tier.remove_tag(&name(k)).unwrap();
        for node in &nodes {
            node.diary.expect(&format!("tag {}", name(k)));
            assert!(node.get(&name(k)).is_none());
        }
    }
}

#[test]
fn a_removal_overtakes_what_waits_in_the_background() {
    let Some(server) = Server::start_or_skip() else { return };
    let one = start(builder(&server).writes(Writes::Background(10_000)));
    let floor = AtomicU64::new(0);
    thread::scope(|scope| {
        scope.spawn(|| {
            for version in 1..500u64 {
                one.tier.put(&name(0), &stored(&version.to_string())).unwrap();
                if version % 3 == 0 {
                    one.tier.remove(&name(0)).unwrap();
                    floor.store(version + 1, Ordering::SeqCst);
                }
            }
            floor.store(u64::MAX, Ordering::SeqCst);
        });
        loop {
            let least = floor.load(Ordering::SeqCst);
            if least == u64::MAX {
                break;
            }
            if let Some(there) = one.get(&name(0)) {
                let version: u64 = there.parse().unwrap();
                assert!(version >= least, "read {version}, removed before {least}");
            }
            thread::yield_now();
        }
    });
}
