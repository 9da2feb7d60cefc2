//! Histories of real threads on one key, each checked for an order in which a plain `Option` would have given the same answers.
//!
//! The rules beside those of an `Option`: a load that was called puts its value in, or, if something invalidated the key while it
//! ran, leaves everything as it is; a call that got the value of somebody else's load ran at the same time as that load, and no
//! invalidation lay between the two.
#![allow(missing_docs, clippy::unwrap_used)]

use std::collections::HashSet;
use std::convert::Infallible;
use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use fullbore_cache::Cache;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Did {
    Get(Option<u64>),
    Insert(u64),
    Remove(Option<u64>),
    Clear,
    RemoveTag,
    /// The value that its own load would have brought, when that began if it did, and what the call returned.
    Compute {
        own: u64,
        loaded: Option<u64>,
        got: u64,
    },
}

impl Did {
    fn invalidates(self) -> bool {
        matches!(self, Did::Insert(_) | Did::Remove(_) | Did::Clear | Did::RemoveTag)
    }
}

#[derive(Clone, Copy, Debug)]
struct Event {
    from: u64,
    to: u64,
    did: Did,
}

impl Event {
    fn overlaps(&self, other: &Event) -> bool {
        self.from < other.to && other.from < self.to
    }
}

/// Whether there is an order. Depth first, without going twice to the same set of done events with the same state.
fn is_linear(history: &[Event]) -> bool {
    fn next(history: &[Event], done: u64, state: Option<u64>, seen: &mut HashSet<(u64, Option<u64>)>) -> bool {
        if done.count_ones() as usize == history.len() {
            return true;
        }
        if !seen.insert((done, state)) {
            return false;
        }
        let open = |at: usize| done & (1 << at) == 0;
        // What ended before another one began comes before it.
        let first_end = (0..history.len()).filter(|at| open(*at)).map(|at| history[at].to).min().unwrap();
        (0..history.len())
            .filter(|at| open(*at) && history[*at].from < first_end)
            .any(|at| outcomes(history, at, state).into_iter().any(|after| next(history, done | 1 << at, after, seen)))
    }
    next(history, 0, None, &mut HashSet::new())
}

/// The states in which the event can leave the key.
fn outcomes(history: &[Event], at: usize, state: Option<u64>) -> Vec<Option<u64>> {
    let event = &history[at];
    match event.did {
        Did::Get(got) if got == state => vec![state],
        Did::Remove(got) if got == state => vec![None],
        Did::Get(_) | Did::Remove(_) => vec![],
        Did::Insert(value) => vec![Some(value)],
        Did::Clear | Did::RemoveTag => vec![None],
        Did::Compute { own, loaded: Some(_), .. } => {
            let invalidated = history.iter().any(|other| other.did.invalidates() && other.overlaps(event));
            let kept = state.is_none().then_some(Some(own));
            kept.into_iter().chain(invalidated.then_some(state)).collect()
        }
        Did::Compute { got, loaded: None, .. } => {
            let joined = history.iter().any(|load| {
                let Did::Compute { own, loaded: Some(began), .. } = load.did else { return false };
                let between = |other: &Event| other.did.invalidates() && began < other.from && other.to < event.from;
                own == got && load.overlaps(event) && !history.iter().any(between)
            });
            if state == Some(got) || joined { vec![state] } else { vec![] }
        }
    }
}

fn text(mut history: Vec<Event>) -> String {
    history.sort_by_key(|event| event.from);
    history.iter().map(|event| format!("\n{:3} .. {:3}  {:?}", event.from, event.to, event.did)).collect()
}

#[test]
fn the_checker_tells_right_from_wrong() {
    let event = |from, to, did| Event { from, to, did };
    let load = Did::Compute { own: 1, loaded: Some(0), got: 1 };
    assert!(is_linear(&[event(0, 3, load), event(1, 2, Did::Get(None)), event(4, 5, Did::Get(Some(1)))]));
    assert!(!is_linear(&[event(0, 1, Did::Insert(1)), event(2, 3, Did::Get(None))]), "lost");
    assert!(
        !is_linear(&[event(0, 3, load), event(1, 2, Did::Remove(None)), event(4, 5, Did::Get(Some(2)))]),
        "from nowhere"
    );
    // A load that began before an invalidation, found after it.
    let stale = [
        event(0, 5, load),
        event(1, 2, Did::Insert(7)),
        event(3, 4, Did::Get(Some(7))),
        event(6, 7, Did::Get(Some(1))),
    ];
    assert!(!is_linear(&stale));
    // Who asks after an invalidation does not join a load from before it.
    let joined = Did::Compute { own: 2, loaded: None, got: 1 };
    assert!(is_linear(&[event(0, 5, load), event(3, 6, joined)]));
    assert!(!is_linear(&[
        event(0, 5, load),
        event(1, 2, Did::Clear),
        event(3, 6, joined),
        event(7, 8, Did::Get(None))
    ]));
}

#[test]
fn histories_of_threads_are_linear() {
    const THREADS: u64 = 4;
    const STEPS: u64 = 5;
    let seed = fullbore_metrics::random();
    for round in 0..2_000u64 {
        // Values without a destructor and others are kept in different ways.
        let history = if round % 2 == 0 { run::<u64>(seed, round) } else { run::<Box<u64>>(seed, round) };
        assert!(is_linear(&history), "seed {seed}, round {round}: {}", text(history));
    }

    trait Value: Clone + Send + Sync + 'static {
        fn of(n: u64) -> Self;
        fn n(&self) -> u64;
    }
    impl Value for u64 {
        fn of(n: u64) -> Self {
            n
        }
        fn n(&self) -> u64 {
            *self
        }
    }
    impl Value for Box<u64> {
        fn of(n: u64) -> Self {
            Box::new(n)
        }
        fn n(&self) -> u64 {
            **self
        }
    }

    fn run<V: Value>(seed: u64, round: u64) -> Vec<Event> {
        let cache = Cache::<u8, V>::builder().ttl(None).build().unwrap();
        let (time, values, start) = (AtomicU64::new(0), AtomicU64::new(1), Barrier::new(THREADS as usize));
        thread::scope(|scope| {
            let threads: Vec<_> = (0..THREADS)
                .map(|thread| {
                    let (cache, time, values, start) = (&cache, &time, &values, &start);
                    scope.spawn(move || {
                        let mut random = (seed ^ round.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ thread << 32) | 1;
                        start.wait();
                        let step = |_| {
                            random ^= random << 13;
                            random ^= random >> 7;
                            random ^= random << 17;
                            let own = values.fetch_add(1, Ordering::SeqCst);
                            let from = time.fetch_add(1, Ordering::SeqCst);
                            let did = match (random >> 20) % 10 {
                                0 | 1 => Did::Get(cache.get(&0).map(|value| value.n())),
                                2 => {
                                    cache.insert_with(0, V::of(own), |ctx| ctx.tags(["t"]));
                                    Did::Insert(own)
                                }
                                3 | 4 => Did::Remove(cache.remove(&0).map(|value| value.n())),
                                5 => {
                                    cache.clear();
                                    Did::Clear
                                }
                                6 => {
                                    cache.remove_by_tag("t");
                                    Did::RemoveTag
                                }
                                _ => {
                                    let mut loaded = None;
                                    let got = cache.get_or_compute(&0, |ctx| {
                                        loaded = Some(time.fetch_add(1, Ordering::SeqCst));
                                        ctx.tags(["t"]);
                                        for _ in 0..(random >> 40) % 3 {
                                            thread::yield_now();
                                        }
                                        Ok::<_, Infallible>(V::of(own))
                                    });
                                    Did::Compute { own, loaded, got: got.unwrap().n() }
                                }
                            };
                            Event { from, to: time.fetch_add(1, Ordering::SeqCst), did }
                        };
                        (0..STEPS).map(step).collect::<Vec<_>>()
                    })
                })
                .collect();
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
        })
    }
}
