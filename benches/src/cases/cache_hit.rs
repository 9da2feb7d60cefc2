//! `fullbore-cache`: hits. Everything that is asked for is there, and nothing expires while it is measured.
//!
//! `amalgam` has text for keys and nothing else: against it ours has the same texts, made beforehand.

use std::hint::black_box;
use std::sync::LazyLock;
use std::time::Duration;

use amalgam::{BlockingCache, EntryOptions};
use fullbore_cache::Cache;

use super::cache::{missing, ours};
use super::cache_trace::{Zipf, scattered};
use super::{FITS, Random};
use crate::measure::{Case, Side, on_threads};

const ENTRIES: u64 = 100_000;
/// More than there are entries, so that no policy has a reason to displace any.
const CAPACITY: u64 = 2 * ENTRIES;
/// Long enough that nothing expires.
const HOUR: Duration = Duration::from_secs(60 * 60);

/// How many of them ask.
const THREADS: [usize; 3] = [1, 2, 8];

/// See the module. For the list of the area `cache`.
#[must_use]
pub fn hit_cases() -> Vec<Case> {
    let mut cases = Vec::new();
    cases.extend(THREADS.map(|n| by_number("get, hit, 100,000 keys uniform", n, ENTRIES, uniform)));
    cases.extend(THREADS.map(|n| by_text("get, hit, 100,000 text keys uniform", n, uniform)));
    cases.extend(THREADS.map(|n| by_number("get, hit, 100,000 keys, Zipf 0.99", n, ENTRIES, zipf)));
    cases.extend(THREADS.map(|n| by_text("get, hit, 100,000 text keys, Zipf 0.99", n, zipf)));
    cases.extend(THREADS.map(|n| by_number("get, hit, one hot key", n, 1, one)));
    cases.extend(THREADS.map(|n| {
        Case::new("get, hit, one hot key, with a TTL", n, move || {
            get(n, full(Cache::builder().capacity(CAPACITY).ttl(HOUR).build().expect(FITS), 1), one)
        })
        .against("quick_cache, which has none", move || quick_cache(n, 1, one))
    }));
    cases.push(
        Case::new("get_or_compute, hit", 1, get_or_compute)
            .against("itself, get", || get(1, full(ours(CAPACITY), ENTRIES), uniform)),
    );
    cases.push(
        Case::new("get, hit, as entries grow to 100,000", 1, || get(1, full(ours(CAPACITY), ENTRIES), uniform))
            .against("itself, 100 entries", || get(1, full(ours(CAPACITY), 100), |number| below(number, 100))),
    );
    cases
}

fn by_number<N: Next>(name: &'static str, threads: usize, entries: u64, keys: impl Keys<N>) -> Case {
    Case::new(name, threads, move || get(threads, full(ours(CAPACITY), entries), keys))
        .against("moka", move || moka(threads, entries, keys))
        .against("quick_cache", move || quick_cache(threads, entries, keys))
}

fn by_text<N: Next>(name: &'static str, threads: usize, keys: impl Keys<N>) -> Case {
    Case::new(name, threads, move || get_text(threads, keys))
        .against("amalgam, blocking", move || amalgam(threads, keys))
}

// --- which keys are asked for ---

/// Makes, for the thread of a number, what says which key is next.
trait Keys<N>: Fn(usize) -> N + Copy + Send + Sync + 'static {}
impl<N, F: Fn(usize) -> N + Copy + Send + Sync + 'static> Keys<N> for F {}

/// The next key.
trait Next: FnMut() -> u64 + 'static {}
impl<F: FnMut() -> u64 + 'static> Next for F {}

fn below(number: usize, end: u64) -> impl Next {
    let mut random = Random::of_thread(number);
    move || random.below(end)
}

fn uniform(number: usize) -> impl Next {
    below(number, ENTRIES)
}

fn one(_: usize) -> impl Next {
    || 0
}

/// Drawn beforehand: to draw one takes longer than a hit. Each thread begins elsewhere and goes round.
fn zipf(number: usize) -> impl Next {
    const DRAWN: usize = 1 << 20;
    static KEYS: LazyLock<Vec<u32>> = LazyLock::new(|| {
        let (zipf, mut random) = (Zipf::new(ENTRIES, 0.99), Random::of_thread(0));
        let key = |_| u32::try_from(scattered(zipf.draw(&mut random), ENTRIES)).expect("there are fewer keys");
        (0..DRAWN).map(key).collect()
    });
    let keys: &'static [u32] = &KEYS;
    let mut at = number * DRAWN / 8;
    move || {
        at = (at + 1) % DRAWN;
        u64::from(keys[at])
    }
}

/// The keys as text, made beforehand.
fn texts() -> &'static [String] {
    static TEXTS: LazyLock<Vec<String>> = LazyLock::new(|| (0..ENTRIES).map(|key| format!("user:{key}")).collect());
    &TEXTS
}

// --- who is asked ---

/// `cache` with all of the first `entries` keys in it.
fn full(cache: Cache<u64, u64>, entries: u64) -> Cache<u64, u64> {
    (0..entries).for_each(|key| cache.insert(key, !key));
    assert_eq!(cache.entry_count(), entries);
    cache
}

fn get<N: Next>(threads: usize, cache: Cache<u64, u64>, keys: impl Keys<N>) -> Side {
    ask(threads, keys, move |key| cache.get(&key))
}

fn get_text<N: Next>(threads: usize, keys: impl Keys<N>) -> Side {
    let (cache, texts) = (ours::<String, u64>(CAPACITY), texts());
    (0..).zip(texts).for_each(|(key, text): (u64, _)| cache.insert(text.clone(), !key));
    assert_eq!(cache.entry_count(), ENTRIES);
    ask(threads, keys, move |key| cache.get(&texts[key as usize]))
}

fn get_or_compute() -> Side {
    let cache = full(ours(CAPACITY), ENTRIES);
    ask(1, uniform, move |key| cache.get_or_compute(&key, |_| missing()).ok())
}

fn moka<N: Next>(threads: usize, entries: u64, keys: impl Keys<N>) -> Side {
    let cache = moka::sync::Cache::new(CAPACITY);
    (0..entries).for_each(|key| cache.insert(key, !key));
    cache.run_pending_tasks();
    assert_eq!(cache.entry_count(), entries);
    ask(threads, keys, move |key| cache.get(&key))
}

fn quick_cache<N: Next>(threads: usize, entries: u64, keys: impl Keys<N>) -> Side {
    let cache = std::sync::Arc::new(quick_cache::sync::Cache::new(CAPACITY as usize));
    (0..entries).for_each(|key| cache.insert(key, !key));
    assert_eq!(cache.len() as u64, entries);
    ask(threads, keys, move |key| cache.get(&key))
}

/// With a duration that is longer than its 30 s: nothing is to expire here.
fn amalgam<N: Next>(threads: usize, keys: impl Keys<N>) -> Side {
    const WORKS: &str = "it is in memory alone";
    let builder = amalgam::Cache::builder().max_capacity(CAPACITY).default_options(EntryOptions::new(HOUR));
    let (cache, texts) = (BlockingCache::from_builder(builder).expect(FITS), texts());
    for (key, text) in (0_u64..).zip(texts) {
        cache.set(text.as_str(), !key).execute().expect(WORKS);
    }
    ask(threads, keys, move |key| cache.try_get(texts[key as usize].as_str()).execute().expect(WORKS))
}

fn ask<N: Next>(
    threads: usize,
    keys: impl Keys<N>,
    get: impl Fn(u64) -> Option<u64> + Clone + Send + Sync + 'static,
) -> Side {
    on_threads(threads, move |number| {
        let (get, mut next) = (get.clone(), keys(number));
        move |calls| {
            let asked = calls.end - calls.start;
            let found = calls.filter(|_| {
                let key = next();
                get(black_box(key)) == Some(!key)
            });
            assert_eq!(found.count() as u64, asked, "every key is there, with its value");
        }
    })
}
