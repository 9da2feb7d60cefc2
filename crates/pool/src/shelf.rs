//! Where idle connections lie and places are counted: the state under the pool's lock. Protocol in the crate's README.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use fullbore_core::{WaitFor, Waiters};

use crate::manager::Key;

/// A connection with what the pool knows about it.
#[derive(Debug)]
pub(crate) struct Held<K, C> {
    pub(crate) key: K,
    pub(crate) connection: C,
    pub(crate) id: u64,
    pub(crate) created: Instant,
    pub(crate) last_used: Instant,
    /// Its rank among the idle ones; lower is colder.
    stamp: u64,
}

/// What a caller of `get` walks away with. Each but `Closed` is one **place**: a unit of `size`, of the pool and of the key.
#[derive(Debug)]
pub(crate) enum Claim<K, C> {
    /// A place with its connection.
    Idle(Held<K, C>),
    /// A place without one: the caller makes it, after closing the one that had to go (see [`Shelf::leave_key`]).
    Place {
        evicted: Option<Held<K, C>>,
    },
    Closed,
}

/// The state.
#[derive(Debug)]
pub(crate) struct Shelf<K, C> {
    max_size: usize,
    max_per_key: usize,
    /// Places taken: idle + out + being made + being closed.
    size: usize,
    keys: HashMap<K, PerKey>,
    /// All idle connections by stamp, which is the order of their return; the first is the coldest.
    idle: BTreeMap<u64, Held<K, C>>,
    next_stamp: u64,
    next_id: u64,
    pub(crate) closed: bool,
    pub(crate) waiters: Waiters<Claim<K, C>, K>,
    /// Threads in `close_within`.
    pub(crate) all_back: Waiters,
}

/// Kept only while the key has a connection: a tenant nobody uses costs nothing.
#[derive(Debug, Default)]
struct PerKey {
    /// Its places. An evicted connection counts here until it is closed, although its place in the pool has passed on.
    size: usize,
    /// Stamps of its idle connections, in order: the most recently used last.
    idle: Vec<u64>,
}

impl<K: Key, C> Shelf<K, C> {
    pub(crate) fn new(max_size: usize, max_per_key: usize) -> Self {
        Self {
            max_size,
            max_per_key,
            size: 0,
            keys: HashMap::new(),
            idle: BTreeMap::new(),
            next_stamp: 0,
            next_id: 0,
            closed: false,
            waiters: Waiters::of(WaitFor::Permit),
            all_back: Waiters::new(),
        }
    }

    pub(crate) fn size(&self) -> usize {
        self.size
    }

    pub(crate) fn idle(&self) -> usize {
        self.idle.len()
    }

    /// Places in the hands of callers: connections that are out, being made, being closed.
    pub(crate) fn out(&self) -> usize {
        self.size - self.idle.len()
    }

    /// An upper bound of how many claims could succeed now.
    pub(crate) fn chances(&self) -> usize {
        self.idle.len() + (self.max_size - self.size)
    }

    /// A connection that was just made, in a place that was claimed.
    pub(crate) fn admit(&mut self, key: K, connection: C, now: Instant) -> Held<K, C> {
        self.next_id += 1;
        Held { key, connection, id: self.next_id, created: now, last_used: now, stamp: 0 }
    }

    /// Whether `claim` would succeed.
    pub(crate) fn can_claim(&self, key: &K) -> bool {
        let Some(per_key) = self.keys.get(key) else { return self.chances() > 0 };
        !per_key.idle.is_empty() || (per_key.size < self.max_per_key && self.chances() > 0)
    }

    /// An idle connection of this key, else a place for a new one, taken from the coldest idle connection of another key if
    /// there is no free one.
    pub(crate) fn claim(&mut self, key: &K) -> Option<Claim<K, C>> {
        if self.closed {
            return Some(Claim::Closed);
        }
        let mine = self.keys.get_mut(key);
        if let Some(stamp) = mine.and_then(|mine| mine.idle.pop()) {
            return self.idle.remove(&stamp).map(Claim::Idle);
        }
        if self.keys.get(key).is_some_and(|mine| mine.size >= self.max_per_key) {
            return None;
        }
        let evicted = if self.size < self.max_size {
            self.size += 1;
            None
        } else {
            // Its place in the pool passes on.
            Some(self.take_coldest()?)
        };
        self.keys.entry(key.clone()).or_default().size += 1;
        Some(Claim::Place { evicted })
    }

    /// As if the claim had not been made.
    pub(crate) fn undo(&mut self, key: &K, claim: Claim<K, C>) {
        match claim {
            Claim::Idle(held) => self.lay_down(held),
            Claim::Place { evicted: Some(held) } => {
                self.leave_key(key);
                self.lay_down(held);
            }
            Claim::Place { evicted: None } => self.give_up_place(key),
            Claim::Closed => {}
        }
    }

    /// Takes the coldest idle connection out. It keeps its place.
    fn take_coldest(&mut self) -> Option<Held<K, C>> {
        let (stamp, held) = self.idle.pop_first()?;
        if let Some(per_key) = self.keys.get_mut(&held.key) {
            per_key.idle.retain(|other| *other != stamp);
        }
        Some(held)
    }

    /// A connection comes back and keeps its place.
    pub(crate) fn put_back(&mut self, mut held: Held<K, C>, now: Instant) {
        held.last_used = now;
        held.stamp = self.next_stamp;
        self.next_stamp += 1;
        self.lay_down(held);
    }

    fn lay_down(&mut self, held: Held<K, C>) {
        if let Some(per_key) = self.keys.get_mut(&held.key) {
            let at = per_key.idle.partition_point(|other| *other < held.stamp);
            per_key.idle.insert(at, held.stamp);
        }
        self.idle.insert(held.stamp, held);
    }

    /// A place is free again.
    pub(crate) fn give_up_place(&mut self, key: &K) {
        self.size -= 1;
        self.leave_key(key);
    }

    /// The key has one connection less: an evicted one is closed.
    pub(crate) fn leave_key(&mut self, key: &K) {
        if let Some(per_key) = self.keys.get_mut(key) {
            per_key.size -= 1;
            if per_key.size == 0 {
                self.keys.remove(key);
            }
        }
    }

    /// Takes out what has been idle for too long. The coldest come first, so this looks at one more than it takes. They keep
    /// their places until they are closed.
    pub(crate) fn take_expired(&mut self, now: Instant, idle_timeout: Duration) -> Vec<Held<K, C>> {
        let mut expired = Vec::new();
        while let Some(entry) = self.idle.first_entry() {
            if now.saturating_duration_since(entry.get().last_used) < idle_timeout {
                break;
            }
            expired.extend(self.take_coldest());
        }
        expired
    }

    /// Takes every idle connection out. They keep their places until they are closed.
    pub(crate) fn take_all_idle(&mut self) -> Vec<Held<K, C>> {
        std::iter::from_fn(|| self.take_coldest()).collect()
    }
}

#[cfg(all(test, not(fullbore_loom)))]
mod tests {
    use std::time::{Duration, Instant};

    use proptest::prelude::{Just, ProptestConfig, Strategy, any, prop_oneof, proptest};

    use super::{Claim, Held, Shelf};

    #[derive(Clone, Debug)]
    enum Step {
        /// Somebody wants a connection of this key.
        Claim(u8),
        /// The n-th claim is given up as if it had not been made, if that is still possible.
        Undo(usize),
        /// The n-th place gets its connection (and the evicted one is closed), or the n-th connection comes back.
        Advance(usize),
        /// The n-th claim's place is given up.
        GiveUp(usize),
        /// So many of the idle ones have expired, and are closed.
        Expire(usize),
        Close,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let n = || any::<usize>();
        let step = prop_oneof![
            8 => (0..6_u8).prop_map(Step::Claim),
            1 => n().prop_map(Step::Undo),
            8 => n().prop_map(Step::Advance),
            2 => n().prop_map(Step::GiveUp),
            1 => (0..4_usize).prop_map(Step::Expire),
        ];
        proptest::collection::vec(prop_oneof![200 => step, 1 => Just(Step::Close)], 1..200)
    }

    /// A connection of the model: its key, and its number instead of a connection.
    type Conn = (u8, u64);

    /// What a caller has: a claim that is fresh or not, an evicted connection to close, and its own.
    struct Caller {
        key: u8,
        /// The claim itself, as long as nothing has been done with it.
        fresh: Option<Claim<u8, u64>>,
        held: Option<Held<u8, u64>>,
    }

    /// The obvious way to say what a shelf does: lists, and every number counted afresh.
    #[derive(Default)]
    struct Model {
        /// Coldest first.
        idle: Vec<Conn>,
        closed: bool,
    }

    impl Model {
        fn claim(&mut self, key: u8, callers: &[Caller], max_size: usize, max_per_key: usize) -> Expected {
            if self.closed {
                return Expected::Closed;
            }
            if let Some(at) = self.idle.iter().rposition(|(other, _)| *other == key) {
                return Expected::Idle(self.idle.remove(at).1);
            }
            let being_evicted = callers.iter().filter(|caller| evicted(caller).is_some_and(|conn| conn.0 == key));
            let of_key = callers.iter().filter(|caller| caller.key == key).count() + being_evicted.count();
            if of_key >= max_per_key {
                return Expected::Nothing;
            }
            if callers.len() + self.idle.len() < max_size {
                return Expected::Place(None);
            }
            if self.idle.is_empty() { Expected::Nothing } else { Expected::Place(Some(self.idle.remove(0))) }
        }
    }

    #[derive(Debug, PartialEq)]
    enum Expected {
        Idle(u64),
        Place(Option<Conn>),
        Nothing,
        Closed,
    }

    fn evicted(caller: &Caller) -> Option<Conn> {
        match &caller.fresh {
            Some(Claim::Place { evicted: Some(held) }) => Some((held.key, held.connection)),
            _ => None,
        }
    }

    fn seen(claim: Option<&Claim<u8, u64>>) -> Expected {
        match claim {
            None => Expected::Nothing,
            Some(Claim::Closed) => Expected::Closed,
            Some(Claim::Idle(held)) => Expected::Idle(held.connection),
            Some(Claim::Place { evicted }) => Expected::Place(evicted.as_ref().map(|held| (held.key, held.connection))),
        }
    }

    fn run(steps: Vec<Step>, max_size: usize, max_per_key: usize) {
        let start = Instant::now();
        let at = |n: u64| start + Duration::from_secs(n);
        let mut shelf = Shelf::<u8, u64>::new(max_size, max_per_key);
        let mut model = Model::default();
        let mut callers: Vec<Caller> = Vec::new();
        let mut time = 0;
        for step in steps {
            time += 1;
            let chosen = |n: usize| if callers.is_empty() { None } else { Some(n % callers.len()) };
            match step {
                Step::Claim(key) => {
                    let could = shelf.can_claim(&key);
                    let claim = shelf.claim(&key);
                    let expected = model.claim(key, &callers, max_size, max_per_key);
                    assert_eq!(seen(claim.as_ref()), expected);
                    match claim {
                        Some(Claim::Closed) => {}
                        Some(claim) => {
                            assert!(could);
                            callers.push(Caller { key, fresh: Some(claim), held: None });
                        }
                        None => assert!(!could),
                    }
                }
                Step::Undo(n) => {
                    if let Some(n) = chosen(n)
                        && let Some(claim) = callers[n].fresh.take()
                    {
                        let back = match seen(Some(&claim)) {
                            Expected::Idle(number) => Some((callers[n].key, number)),
                            Expected::Place(evicted) => evicted,
                            Expected::Nothing | Expected::Closed => None,
                        };
                        shelf.undo(&callers[n].key, claim);
                        callers.swap_remove(n);
                        // Ranked by its last return, which the number of a model's connection does not tell: look it up.
                        if let Some(back) = back {
                            let rank = shelf.idle.values().position(|held| held.connection == back.1);
                            model.idle.insert(rank.expect("it is idle again"), back);
                        }
                    }
                }
                Step::Advance(n) => {
                    let Some(n) = chosen(n) else { continue };
                    match (callers[n].fresh.take(), callers[n].held.take()) {
                        (Some(Claim::Idle(held)), _) => callers[n].held = Some(held),
                        (Some(Claim::Place { evicted }), _) => {
                            if let Some(cold) = evicted {
                                shelf.leave_key(&cold.key);
                            }
                            callers[n].held = Some(shelf.admit(callers[n].key, time, at(time)));
                        }
                        (None, Some(held)) if !shelf.closed => {
                            model.idle.push((held.key, held.connection));
                            shelf.put_back(held, at(time));
                            callers.swap_remove(n);
                        }
                        (_, held) => callers[n].held = held,
                    }
                }
                Step::GiveUp(n) => {
                    let Some(n) = chosen(n) else { continue };
                    let caller = callers.swap_remove(n);
                    if let Some((key, _)) = evicted(&caller) {
                        shelf.leave_key(&key);
                    }
                    shelf.give_up_place(&caller.key);
                }
                Step::Expire(n) => {
                    let n = n.min(model.idle.len());
                    // As old as the n-th coldest: they came back one second apart at least.
                    let now = at(time + 1000);
                    let limit = match n.checked_sub(1).and_then(|last| shelf.idle.values().nth(last)) {
                        Some(last) => now - last.last_used,
                        None => Duration::MAX,
                    };
                    let expired = shelf.take_expired(now, limit);
                    let expected: Vec<Conn> = model.idle.drain(..n).collect();
                    assert_eq!(expired.iter().map(|held| (held.key, held.connection)).collect::<Vec<_>>(), expected);
                    for held in expired {
                        shelf.give_up_place(&held.key);
                    }
                }
                Step::Close => {
                    shelf.closed = true;
                    model.closed = true;
                    for held in shelf.take_all_idle() {
                        assert_eq!((held.key, held.connection), model.idle.remove(0));
                        shelf.give_up_place(&held.key);
                    }
                }
            }
            assert_eq!(shelf.idle(), model.idle.len());
            assert_eq!(shelf.size(), callers.len() + model.idle.len());
            assert_eq!(shelf.out(), callers.len());
            assert!(shelf.size() <= max_size);
            for (key, per_key) in &shelf.keys {
                let idle = model.idle.iter().filter(|(other, _)| other == key).count();
                let mine = callers.iter().filter(|caller| caller.key == *key).count();
                let going = callers.iter().filter(|caller| evicted(caller).is_some_and(|conn| conn.0 == *key));
                assert_eq!((per_key.size, per_key.idle.len()), (idle + mine + going.count(), idle));
                assert!(per_key.size > 0 && per_key.size <= max_per_key, "{per_key:?}");
                assert!(per_key.idle.is_sorted());
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn a_shelf_does_what_its_model_does(steps in steps(), max_size in 1..5_usize, max_per_key in 1..4_usize) {
            run(steps, max_size, max_per_key);
        }
    }
}
