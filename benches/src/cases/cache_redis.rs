//! `fullbore-cache` with its second tier, on a real Redis on the same machine. "Processes" are caches with tiers of their own, as so many
//! processes would have: their own connections, links and leases.

use std::hint::black_box;
use std::io;
use std::sync::{Barrier, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use fullbore_cache::redis::RedisTier;
use fullbore_cache::{Cache, CacheBuilder};
use fullbore_limit::{BreakerConfig, BreakerState};
use fullbore_testkit::{Redis, TcpProxy};

use super::cache::missing;
use super::{Count, FITS, tenths};
use crate::goals::NONE;
use crate::measure::{Case, Side};

const COLD: &str = "a value in Redis, not in memory";
const RAW_GET: &str = "a raw GET";
const MANY: &str = "1,000 keys in Redis, in one call";
const RAW_MGET: &str = "one raw MGET";
const OPEN: &str = "a load while Redis hangs and the breaker is open";
const ALONE: &str = "itself, without Redis";
const STAMPEDE: &str = "4 processes of 16 threads on a cold key: loads over 1";
const LATE: &str = "the same: last waiter over 1.3 times the load";
const TOLD: &str = "removed here to missing there, p99 over 3 round trips";
const BUDGET: &str = "Redis hangs: p99 over 1.2 times the budget";

/// Cases and rivals that are not on every machine: there may be no server.
pub const NOT_EVERYWHERE: [(&str, &str); 7] =
    [(COLD, RAW_GET), (MANY, RAW_MGET), (OPEN, ALONE), (STAMPEDE, NONE), (LATE, NONE), (TOLD, NONE), (BUDGET, NONE)];

const WORKS: &str = "Redis works";
const PREFIX: &str = "bench:v1:";
const KEYS: u64 = 1_000;

/// See the module. For the list of the area `cache`.
#[must_use]
pub fn redis_cases() -> Vec<Case> {
    if !Redis::is_installed() {
        return Vec::new();
    }
    vec![
        Case::new(COLD, 1, cold).against(RAW_GET, raw_get),
        Case::new(MANY, 1, many).against(RAW_MGET, raw_mget),
        Case::new(OPEN, 1, with_an_open_breaker).against(ALONE, alone),
    ]
}

/// See the module. For the list of the area `cache`.
#[must_use]
pub fn redis_counts() -> Vec<Count> {
    if !Redis::is_installed() {
        return Vec::new();
    }
    vec![
        Count { name: STAMPEDE, unit: "count", ours: || stampede().0 as f64 - 1.0 },
        Count { name: LATE, unit: "ms", ours: || over(stampede().1, LOAD.mul_f64(1.3)) },
        Count { name: TOLD, unit: "ms", ours: told_late },
        Count { name: BUDGET, unit: "ms", ours: over_the_budget },
    ]
}

/// In milliseconds.
fn over(time: Duration, allowed: Duration) -> f64 {
    tenths(time.saturating_sub(allowed).as_secs_f64() * 1_000.0)
}

fn server() -> Redis {
    Redis::start().unwrap_or_else(|error| panic!("{error}"))
}

fn cache(url: &str, budget: Duration) -> CacheBuilder<u64, u64> {
    let tier = RedisTier::builder().url(url).prefix(PREFIX).budget(budget).build().expect(FITS);
    Cache::builder().ttl(None).redis(tier)
}

/// All keys are in Redis.
fn filled(server: &Redis) -> CacheBuilder<u64, u64> {
    let builder = cache(&server.url(), Duration::from_secs(1));
    let first = builder.clone().build().expect(FITS);
    (0..KEYS).for_each(|key| first.insert(key, !key));
    builder
}

fn cold() -> Side {
    let server = server();
    // Nothing is kept in memory: each read asks.
    let cache = filled(&server).capacity(0).build().expect(FITS);
    Box::new(move |count| {
        let _kept = &server;
        let began = Instant::now();
        for n in 0..count {
            let key = n % KEYS;
            assert_eq!(cache.get_or_compute(&key, |_| missing()).expect(WORKS), !key);
        }
        began.elapsed()
    })
}

/// A name as long as ours, and bytes as many.
fn raw(server: &Redis) -> (redis::Connection, Vec<String>) {
    drop(filled(server).build().expect(FITS));
    let names = (0..KEYS).map(|key| format!("{PREFIX}k:{key}")).collect();
    (server.client(), names)
}

fn raw_get() -> Side {
    let server = server();
    let (mut connection, names) = raw(&server);
    Box::new(move |count| {
        let _kept = &server;
        let began = Instant::now();
        for n in 0..count {
            let name = &names[(n % KEYS) as usize];
            let bytes: Vec<u8> = redis::cmd("GET").arg(name).query(&mut connection).expect(WORKS);
            assert!(!bytes.is_empty());
        }
        began.elapsed()
    })
}

fn many() -> Side {
    let server = server();
    let cache = filled(&server).capacity(0).build().expect(FITS);
    let keys: Vec<u64> = (0..KEYS).collect();
    Box::new(move |count| {
        let _kept = &server;
        let began = Instant::now();
        for _ in 0..count {
            let found = cache.get_or_compute_many(&keys, |_, _| Err::<Vec<(u64, u64)>, _>(io::Error::other("there")));
            assert_eq!(found.expect(WORKS).len(), keys.len());
        }
        began.elapsed()
    })
}

fn raw_mget() -> Side {
    let server = server();
    let (mut connection, names) = raw(&server);
    Box::new(move |count| {
        let _kept = &server;
        let began = Instant::now();
        for _ in 0..count {
            let bytes: Vec<Vec<u8>> = redis::cmd("MGET").arg(&names).query(&mut connection).expect(WORKS);
            assert_eq!(bytes.len(), names.len());
        }
        began.elapsed()
    })
}

/// So long that the breaker stays open for the whole of the measurement.
const HANGS: Duration = Duration::from_secs(600);

fn hanging(budget: Duration) -> (Redis, TcpProxy, Cache<u64, u64>) {
    let server = server();
    let proxy = TcpProxy::start(server.addr()).expect("a port is free");
    let tier = RedisTier::builder().url(server.url_at(proxy.addr())).prefix(PREFIX).budget(budget);
    let mut breaker = BreakerConfig::default();
    (breaker.open_for, breaker.open_max) = (HANGS, HANGS);
    let tier = tier.breaker(breaker).outage_ttl(Duration::ZERO).build().expect(FITS);
    let cache = Cache::builder().ttl(None).redis(tier).build().expect(FITS);
    assert_eq!(cache.get_or_compute(&0, |_| Ok::<_, io::Error>(!0)).expect(WORKS), !0);
    proxy.black_hole(true);
    (server, proxy, cache)
}

fn with_an_open_breaker() -> Side {
    let (server, proxy, cache) = hanging(Duration::from_millis(20));
    while !is_open(&cache) {
        load(&cache, 1);
    }
    Box::new(move |count| {
        let _kept = (&server, &proxy);
        loads(&cache, count)
    })
}

fn is_open(cache: &Cache<u64, u64>) -> bool {
    cache.tier_stats().is_some_and(|stats| matches!(stats.breaker, BreakerState::Open { .. }))
}

fn load(cache: &Cache<u64, u64>, key: u64) {
    let got = cache.get_or_compute(&key, |ctx| {
        ctx.no_store();
        Ok::<_, io::Error>(black_box(!key))
    });
    assert_eq!(got.expect(WORKS), !key);
}

fn loads(cache: &Cache<u64, u64>, count: u64) -> Duration {
    let began = Instant::now();
    (0..count).for_each(|key| load(cache, key));
    began.elapsed()
}

fn alone() -> Side {
    let cache = super::cache::ours(10_000);
    Box::new(move |count| loads(&cache, count))
}

const LOAD: Duration = Duration::from_millis(200);

/// How often it was loaded, and how long the last one waited. Both counts are of the same one.
fn stampede() -> (u64, Duration) {
    static STAMPEDE: OnceLock<(u64, Duration)> = OnceLock::new();
    *STAMPEDE.get_or_init(|| {
        const PROCESSES: usize = 4;
        const THREADS: usize = 16;
        let server = server();
        let nodes: Vec<_> =
            (0..PROCESSES).map(|_| cache(&server.url(), Duration::from_secs(1)).build().expect(FITS)).collect();
        let start = Barrier::new(PROCESSES * THREADS);
        let last = thread::scope(|scope| {
            let (start, wait) = (&start, |node: &Cache<u64, u64>| {
                let began = Instant::now();
                let got = node.get_or_compute(&7, |_| {
                    thread::sleep(LOAD);
                    Ok::<_, io::Error>(8)
                });
                assert_eq!(got.expect(WORKS), 8);
                began.elapsed()
            });
            let one = |node| {
                scope.spawn(move || {
                    start.wait();
                    wait(node)
                })
            };
            let all: Vec<_> = nodes.iter().flat_map(|node| [node; THREADS]).map(one).collect();
            all.into_iter().map(|one| one.join().expect("nobody panics")).max()
        });
        (nodes.iter().map(|node| node.stats().loads).sum(), last.unwrap_or_default())
    })
}

/// The 99th of a hundred.
fn p99(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() * 99 / 100 - 1]
}

fn told_late() -> f64 {
    const TIMES: u64 = 400;
    let server = server();
    let build = || cache(&server.url(), Duration::from_secs(1)).build().expect(FITS);
    let (here, there) = (build(), build());
    let mut raw = server.client();
    let mut round_trips = Vec::new();
    let mut told = Vec::new();
    for n in 0..TIMES {
        here.insert(n, n);
        while there.peek(&n).is_none() {
            assert_eq!(there.get(&n), Some(n));
        }
        let began = Instant::now();
        let _: Option<Vec<u8>> = redis::cmd("GET").arg("nothing").query(&mut raw).expect(WORKS);
        round_trips.push(began.elapsed());
        let began = Instant::now();
        here.try_remove(&n).expect(WORKS);
        while there.peek(&n).is_some() {
            std::hint::spin_loop();
        }
        told.push(began.elapsed());
    }
    // The same part of both: on a machine with others on it a round trip has its own late ones.
    over(p99(told), p99(round_trips) * 3)
}

fn over_the_budget() -> f64 {
    const BUDGET: Duration = Duration::from_millis(50);
    let (_server, _proxy, cache) = hanging(BUDGET);
    let mut times = Vec::new();
    for n in 1.. {
        let began = Instant::now();
        load(&cache, n);
        times.push(began.elapsed());
        if is_open(&cache) {
            break;
        }
    }
    over(times.into_iter().max().unwrap_or_default(), BUDGET.mul_f64(1.2))
}
