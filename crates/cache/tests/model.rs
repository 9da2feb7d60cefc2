//! The cache against a plain map, and readers that must never see time run backwards.
#![allow(missing_docs, clippy::unwrap_used)]

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use fullbore_cache::Cache;
use fullbore_core::PausedClock;
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Op {
    Get(u8),
    Insert(u8, String),
    InsertWithTtl(u8, String, u64),
    Remove(u8),
    Clear,
    Compute(u8, String),
    ComputeWithTtl(u8, String, u64),
    Fail(u8),
    Advance(u64),
}

fn op() -> impl Strategy<Value = Op> {
    let key = 0..8u8;
    let text = "[a-z]{0,3}";
    prop_oneof![
        4 => key.clone().prop_map(Op::Get),
        4 => (key.clone(), text).prop_map(|(k, v)| Op::Insert(k, v)),
        2 => (key.clone(), text, 0..30u64).prop_map(|(k, v, ttl)| Op::InsertWithTtl(k, v, ttl)),
        3 => key.clone().prop_map(Op::Remove),
        1 => Just(Op::Clear),
        4 => (key.clone(), text).prop_map(|(k, v)| Op::Compute(k, v)),
        2 => (key.clone(), text, 0..30u64).prop_map(|(k, v, ttl)| Op::ComputeWithTtl(k, v, ttl)),
        1 => key.prop_map(Op::Fail),
        2 => (0..15u64).prop_map(Op::Advance),
    ]
}

const TTL: u64 = 20;

proptest! {
    #[test]
    fn it_behaves_like_a_map_whose_entries_expire(ops in proptest::collection::vec(op(), 1..200)) {
        let clock = PausedClock::new();
        let cache = Cache::<u8, String>::builder()
            .capacity(u64::MAX)
            .ttl(Duration::from_secs(TTL))
            .clock(&clock)
            .build()
            .unwrap();
        let mut model = HashMap::<u8, (String, u64)>::new();
        let mut now = 0;
        for op in ops {
            model.retain(|_, (_, until)| *until > now);
            let found = |model: &HashMap<u8, (String, u64)>, k| model.get(&k).map(|(value, _)| value.clone());
            match op {
                Op::Get(k) => prop_assert_eq!(cache.get(&k), found(&model, k)),
                Op::Insert(k, v) => {
                    cache.insert(k, v.clone());
                    model.insert(k, (v, now + TTL));
                }
                Op::InsertWithTtl(k, v, ttl) => {
                    cache.insert_with_ttl(k, v.clone(), Duration::from_secs(ttl));
                    model.insert(k, (v, now + ttl));
                }
                Op::Remove(k) => prop_assert_eq!(cache.remove(&k), model.remove(&k).map(|(value, _)| value)),
                Op::Clear => {
                    cache.clear();
                    model.clear();
                }
                Op::Compute(k, v) => {
                    let got = cache.get_or_compute(&k, |_| Ok::<_, Infallible>(v.clone())).unwrap();
                    prop_assert_eq!(&got, &model.entry(k).or_insert((v, now + TTL)).0);
                }
                Op::ComputeWithTtl(k, v, ttl) => {
                    let load = |ctx: &mut fullbore_cache::LoadCtx| {
                        ctx.ttl(Duration::from_secs(ttl));
                        Ok::<_, Infallible>(v.clone())
                    };
                    let got = cache.get_or_compute(&k, load).unwrap();
                    prop_assert_eq!(&got, &model.entry(k).or_insert((v, now + ttl)).0);
                }
                Op::Fail(k) => {
                    let got = cache.get_or_compute(&k, |_| Err::<String, _>("no"));
                    prop_assert_eq!(got.ok(), found(&model, k));
                }
                Op::Advance(by) => {
                    clock.advance(Duration::from_secs(by));
                    now += by;
                }
            }
        }
        model.retain(|_, (_, until)| *until > now);
        for k in 0..8 {
            prop_assert_eq!(cache.get(&k), model.get(&k).map(|(value, _)| value.clone()));
        }
        prop_assert_eq!(cache.entry_count(), model.len() as u64);
        prop_assert!(cache.station().snapshot().balanced());
    }
}

/// A source that only counts up; each writer raises it and then invalidates. Whoever asks afterwards must see at least that
/// number, and no reader may ever see the numbers of a key fall.
#[test]
fn readers_never_see_a_value_from_before_an_invalidation() {
    const KEYS: usize = 4;
    for capacity in [1000, 2, 0] {
        let cache = Cache::<usize, u64>::builder().capacity(capacity).build().unwrap();
        let source: [AtomicU64; KEYS] = Default::default();
        let stop = AtomicBool::new(false);
        let read = |key: usize| {
            cache.get_or_compute(&key, |_| Ok::<_, Infallible>(source[key].load(Ordering::SeqCst))).unwrap()
        };
        thread::scope(|scope| {
            for n in 0..4 {
                let (read, stop) = (&read, &stop);
                scope.spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        let key = n % KEYS;
                        read(key);
                    }
                });
            }
            let writers: Vec<_> = (0..4)
                .map(|n| {
                    let (cache, source, read) = (&cache, &source, &read);
                    scope.spawn(move || {
                        for round in 0..2000 {
                            let key = (n + round) % KEYS;
                            let new = source[key].fetch_add(1, Ordering::SeqCst) + 1;
                            if round % 16 == 0 {
                                cache.clear();
                            } else {
                                cache.remove(&key);
                            }
                            let seen = read(key);
                            assert!(seen >= new, "capacity {capacity}: {seen} after {new} was written");
                        }
                    })
                })
                .collect();
            for writer in writers {
                writer.join().unwrap();
            }
            stop.store(true, Ordering::Relaxed);
        });
        let seen = cache.station().snapshot();
        assert!(seen.balanced() && seen.waiting() + seen.in_service() == 0, "{seen:?}");
    }
}
