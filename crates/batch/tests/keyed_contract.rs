//! The rules of the house (C1-C11) for the keyed batcher. The names are the same in every crate.
#![cfg(not(fullbore_loom))]
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::collections::BTreeSet;
use std::hash::{Hash, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use common::{Gate, NEVER, Refused, blow_up};
use fullbore_batch::{
    Batch, CallError, KeyedBatcher, KeyedBatcherBuilder, KeyedConfig, KeyedHandle, Outcomes, OwnThread,
};
use fullbore_core::{
    BuildError, Clock, EnvReader, FAIR_AFTER, Failure, OnDrop, Overflow, PausedClock, SendError, Shutdown, Sink,
};
use fullbore_metrics::{Station, StationKind};

type Builder = KeyedBatcherBuilder<&'static str, u32>;

/// Pairs that never linger out.
fn pairs(clock: &PausedClock) -> Builder {
    KeyedBatcher::builder().max_items(2).linger(NEVER).clock(clock)
}

#[test]
fn c1_every_way_out_is_counted() {
    let clock = PausedClock::new();
    let gate = Gate::new();
    let entry = gate.entry();
    let batcher = pairs(&clock)
        .capacity(4)
        .overflow(Overflow::DropOldest)
        .build(move |_, batch: Batch<u32>| {
            entry.pass(());
            batch.into_iter().map(|n| if n == 0 { Err("zero") } else { Ok(n) }).collect::<Vec<_>>()
        })
        .unwrap();
    batcher.send("a", 0).unwrap();
    batcher.send("a", 1).unwrap();
    gate.wait(); // both are in the process function
    let displaced = batcher.submit("b", 2).unwrap();
    clock.advance(Duration::from_secs(1));
    batcher.send("a", 3).unwrap();
    clock.advance(Duration::from_secs(1));
    batcher.send("c", 4).unwrap(); // displaces 2
    assert!(matches!(displaced.wait(), Err(Failure::Dropped)));
    let left = batcher.close_within(Duration::ZERO).unwrap_err();
    assert_eq!((left.items, left.in_flight), (vec![("a", 3), ("c", 4)], 2));
    assert!(batcher.send("a", 5).unwrap_err().is_closed());
    let seen = batcher.station().snapshot();
    assert_eq!((seen.waiting(), seen.in_service()), (0, 2));
    gate.open(1);
    batcher.close().unwrap();
    let seen = batcher.station().snapshot();
    assert!(seen.balanced(), "{seen:?}");
    assert_eq!((seen.offered(), seen.refused, seen.arrivals), (6, 1, 5));
    assert_eq!((seen.served, seen.failed, seen.dropped, seen.returned), (1, 1, 1, 2));
    assert_eq!((seen.waiting(), seen.in_service(), batcher.keys()), (0, 0, 0));
}

#[test]
fn c2_capacity_counts_all_keys_and_what_is_in_process() {
    let clock = PausedClock::new();
    let gate = Gate::new();
    let entry = gate.entry();
    let batcher = pairs(&clock).capacity(3).build(move |_, _: Batch<u32>| entry.pass(())).unwrap();
    batcher.send("a", 1).unwrap();
    batcher.send("a", 2).unwrap();
    gate.wait();
    batcher.send("b", 3).unwrap();
    assert!(batcher.try_send("c", 4).unwrap_err().is_full());
    assert!(batcher.try_send("b", 4).unwrap_err().is_full());
    thread::scope(|scope| {
        // The default waits for room.
        let blocked = scope.spawn(|| batcher.send("c", 4));
        clock.wait_for_waiters(1);
        gate.open(3);
        blocked.join().unwrap().unwrap();
    });
    batcher.close().unwrap();
    assert_eq!(batcher.station().snapshot().served, 4);
}

#[test]
fn c2_so_do_keys() {
    let clock = PausedClock::new();
    let gate = Gate::new();
    let entry = gate.entry();
    let batcher = pairs(&clock).max_keys(2).build(move |key, _: Batch<u32>| entry.pass(*key)).unwrap();
    batcher.send("a", 1).unwrap();
    batcher.send("a", 2).unwrap();
    assert_eq!(gate.wait(), "a");
    batcher.send("b", 3).unwrap();
    assert_eq!(batcher.try_send("c", 4).unwrap_err().into_inner(), ("c", 4));
    clock.advance(Duration::from_secs(1));
    batcher.send("a", 5).unwrap();
    assert_eq!(batcher.keys(), 2);
    thread::scope(|scope| {
        let blocked = scope.spawn(|| batcher.send("c", 4));
        clock.wait_for_waiters(1);
        gate.open(1);
        // `a` has another item, so there is still no place for `c`, and nothing is full. The oldest goes as it is.
        assert_eq!(gate.wait(), "b");
        gate.open(1);
        blocked.join().unwrap().unwrap();
    });
    gate.open(2);
    batcher.close().unwrap();
    let seen = batcher.station().snapshot();
    assert_eq!((seen.served, seen.refused), (5, 1));
}

#[test]
fn c2_overflow_says_what_happens_when_it_is_full() {
    for by_keys in [false, true] {
        let full = |overflow: Overflow| {
            let dead = Arc::new(Mutex::new(Vec::new()));
            let hook = Arc::clone(&dead);
            let gate = Gate::new();
            let entry = gate.entry();
            let batcher = KeyedBatcher::builder()
                .max_items(1)
                .capacity(if by_keys { 100 } else { 2 })
                .max_keys(if by_keys { 2 } else { 100 })
                .overflow(overflow)
                .dead_letter(move |key: &&str, n, failure: Failure| {
                    hook.lock().unwrap().push((*key, n, failure.to_string()));
                })
                .build(move |_: &&str, _: Batch<u32>| entry.pass(()))
                .unwrap();
            batcher.send("a", 1).unwrap();
            gate.wait();
            batcher.send("b", 2).unwrap();
            let outcome = batcher.send("c", 3);
            gate.open(3);
            batcher.close().unwrap();
            assert!(batcher.station().snapshot().balanced());
            (outcome, std::mem::take(&mut *dead.lock().unwrap()))
        };
        let (refused, dead) = full(Overflow::Reject);
        assert!(refused.unwrap_err().is_full() && dead.is_empty());
        let (refused, _) = full(Overflow::BlockFor(Duration::ZERO));
        assert!(refused.unwrap_err().is_timeout());
        let (accepted, dead) = full(Overflow::DropOldest);
        accepted.unwrap();
        assert_eq!(dead, [("b", 2, Failure::Dropped.to_string())]);
    }
}

/// A key like any other, but all of them have the same hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct SameHash(u8);

impl Hash for SameHash {
    fn hash<H: Hasher>(&self, _: &mut H) {}
}

#[test]
fn c2_drop_oldest_displaces_the_oldest_of_all_keys() {
    for all_of_it in [false, true] {
        let clock = PausedClock::new();
        let (letters, dead) = mpsc::channel();
        let gate = Gate::new();
        let entry = gate.entry();
        let batcher = KeyedBatcher::builder()
            .max_items(1)
            .capacity(if all_of_it { 9 } else { 4 })
            .max_keys(if all_of_it { 3 } else { 9 })
            .one_in_flight(false)
            .overflow(Overflow::DropOldest)
            .clock(&clock)
            .dead_letter(move |key: &SameHash, n, _| letters.send((key.0, n)).unwrap())
            .build(move |_: &SameHash, _: Batch<u32>| entry.pass(()))
            .unwrap();
        let send = |key, n| {
            clock.advance(Duration::from_secs(1));
            batcher.send(SameHash(key), n).unwrap();
        };
        send(1, 1);
        gate.wait();
        for (key, n) in [(2, 2), (3, 3), (2, 4)] {
            send(key, n);
        }
        gate.open(1);
        gate.wait(); // of key 2 there is a younger one now, and it got due before key 3's did not
        if all_of_it {
            // Key 2 is in process: displacing what waits of it would not make room for another key.
            for key in [4, 5] {
                send(key, u32::from(key));
            }
            assert_eq!(dead.try_iter().collect::<Vec<_>>(), [(3, 3)]);
        } else {
            for n in [5, 6, 7] {
                send(4, n);
            }
            assert_eq!(dead.try_iter().collect::<Vec<_>>(), [(3, 3), (2, 4)]);
        }
        gate.open(9);
        batcher.close().unwrap();
        let seen = batcher.station().snapshot();
        assert!(seen.balanced());
        assert_eq!(seen.arrivals, seen.served + seen.dropped);
    }
}

#[test]
fn c2_with_everything_in_process_the_newcomer_is_the_oldest() {
    let gate = Gate::new();
    let entry = gate.entry();
    let batcher = KeyedBatcher::builder()
        .max_items(1)
        .capacity(1)
        .overflow(Overflow::DropOldest)
        .build(move |_: &u8, _: Batch<u32>| entry.pass(()))
        .unwrap();
    batcher.send(1, 1).unwrap();
    gate.wait();
    let ticket = batcher.try_submit(2, 2).unwrap();
    assert!(matches!(ticket.wait(), Err(Failure::Dropped)));
    gate.open(1);
}

#[test]
fn c3_every_wait_has_a_deadline() {
    let clock = PausedClock::new();
    let gate = Gate::new();
    let entry = gate.entry();
    let batcher = KeyedBatcher::builder()
        .max_items(1)
        .capacity(1)
        .clock(&clock)
        .build(move |_: &u8, _: Batch<u32>| entry.pass(()))
        .unwrap();
    let ticket = batcher.submit(0, 0).unwrap();
    gate.wait();
    let soon = clock.now() + Duration::from_secs(5);
    let timed_out = |error: SendError<(u8, u32)>| error.is_timeout() && error.into_inner() == (1, 7);
    let ticket = thread::scope(|scope| {
        let by_default = scope.spawn(|| batcher.send(1, 7).unwrap_err());
        clock.wait_for_waiters(1);
        let send = scope.spawn(|| batcher.send_deadline(1, 7, soon).unwrap_err());
        let sink = scope.spawn(|| Sink::send_deadline(&batcher, (1, 7), Some(soon)).unwrap_err());
        let submit = scope.spawn(|| batcher.submit_deadline(1, 7, soon).unwrap_err());
        let call = scope.spawn(|| batcher.call_deadline(1, 7, soon).unwrap_err());
        let flush = scope.spawn(|| batcher.flush_within(Duration::from_secs(5)).unwrap_err());
        let flush_key = scope.spawn(|| batcher.flush_key_within(&0, Duration::from_secs(5)).unwrap_err());
        let wait = scope.spawn(|| ticket.wait_deadline(soon).unwrap_err());
        clock.wait_for_waiters(8);
        clock.advance(Duration::from_secs(5));
        assert!(timed_out(send.join().unwrap()));
        assert!(timed_out(sink.join().unwrap()));
        assert!(timed_out(submit.join().unwrap()));
        let call = call.join().unwrap();
        assert!(call.is_timeout() && call.into_inner() == Some((1, 7)), "not accepted: the item comes back");
        for flush in [flush.join().unwrap(), flush_key.join().unwrap()] {
            assert!(flush.is_timeout());
            assert_eq!((flush.waiting(), flush.in_flight()), (0, 1));
        }
        let ticket = wait.join().unwrap();
        clock.advance(Duration::from_secs(25));
        assert!(timed_out(by_default.join().unwrap()));
        ticket
    });
    let ticket = ticket.try_take().unwrap_err();
    gate.open(2);
    ticket.wait().unwrap();
    // The place is free as soon as the result is there.
    batcher.try_send(0, 8).unwrap();
    gate.wait();
    let seen = batcher.station().snapshot();
    assert_eq!((seen.refused, seen.arrivals), (5, 2));
}

#[test]
fn c3_a_call_that_was_accepted_times_out_without_its_item() {
    let clock = PausedClock::new();
    let batcher = pairs(&clock).build(|_, _: Batch<u32>| ()).unwrap();
    thread::scope(|scope| {
        let call = scope.spawn(|| batcher.call_deadline("a", 1, clock.now() + Duration::from_secs(1)).unwrap_err());
        clock.wait_for_waiters(2);
        clock.advance(Duration::from_secs(1));
        let error = call.join().unwrap();
        assert!(error.is_timeout() && !error.is_refused() && error.into_inner().is_none());
    });
    batcher.close().unwrap();
    assert_eq!(batcher.station().snapshot().served, 1, "it is processed all the same");
}

#[test]
fn c3_too_far_away_means_never() {
    let clock = PausedClock::new();
    let batcher = pairs(&clock)
        .overflow(Overflow::BlockFor(Duration::MAX))
        .on_drop(OnDrop::Drain(Duration::MAX))
        .build(|_, _: Batch<u32>| ())
        .unwrap();
    batcher.send("a", 1).unwrap();
    clock.wait_for_waiters(1);
    clock.advance(Duration::from_secs(3600 * 24 * 365 * 100));
    assert_eq!(batcher.station().snapshot().begun, 0);
    batcher.send("a", 2).unwrap();
    batcher.flush_within(Duration::MAX).unwrap();
    batcher.flush_key_within(&"a", Duration::MAX).unwrap();
    batcher.close_within(Duration::MAX).unwrap();
    assert_eq!(batcher.station().snapshot().served, 2);
}

#[test]
fn c4_a_panic_fails_its_batch_and_nothing_else() {
    let batcher = KeyedBatcher::builder()
        .max_items(1)
        .build(|_: &u8, batch: Batch<u32>| {
            if batch[0] == 13 {
                blow_up();
            }
            batch.into_iter().map(Ok::<_, Failure>).collect::<Vec<_>>()
        })
        .unwrap();
    let error = batcher.call(1, 13).unwrap_err();
    assert!(error.failure().unwrap().is_panic(), "{error}");
    assert_eq!(batcher.call(1, 14).unwrap(), 14, "the thread lives on, and so does the key");
    batcher.flush().unwrap();
    let seen = batcher.station().snapshot();
    assert_eq!((seen.served, seen.failed, batcher.keys()), (1, 1, 0));
}

/// Panics where user code is least expected.
struct Grenade(Arc<AtomicUsize>);

impl Drop for Grenade {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
        blow_up();
    }
}

#[test]
fn c4_panicking_destructors_cost_no_other_item_its_result() {
    let drops = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&drops);
    let batcher = KeyedBatcher::builder()
        .max_items(3)
        .build(move |_: &u8, batch: Batch<u32>| {
            let too_many = batch[0];
            Outcomes::done((0..3 + too_many).map(|_| Grenade(Arc::clone(&counter))).collect())
        })
        .unwrap();
    drop(batcher.submit(1, 0).unwrap());
    let wanted = batcher.submit(1, 0).unwrap();
    batcher.send(1, 0).unwrap();
    std::mem::forget(wanted.wait().unwrap());
    batcher.flush().unwrap();
    assert_eq!(drops.load(Ordering::SeqCst), 2, "the results that nobody wanted");
    for _ in 0..3 {
        batcher.send(1, 2).unwrap();
    }
    batcher.flush().unwrap();
    assert_eq!(drops.load(Ordering::SeqCst), 2 + 5, "a wrong number of results");
    let seen = batcher.station().snapshot();
    assert_eq!((seen.served, seen.failed), (3, 3));
}

/// A key that does as it is told, or panics.
#[derive(Debug, Default)]
struct Key {
    name: u8,
    orders: Arc<Orders>,
}

#[derive(Debug, Default)]
struct Orders {
    hash: AtomicBool,
    eq: AtomicBool,
    clone: AtomicBool,
    drop: AtomicBool,
}

fn obey(order: &AtomicBool) {
    if order.swap(false, Ordering::SeqCst) {
        blow_up();
    }
}

impl Key {
    fn new(name: u8, orders: &Arc<Orders>) -> Self {
        Self { name, orders: Arc::clone(orders) }
    }
}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        obey(&self.orders.hash);
        self.name.hash(state);
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        obey(&self.orders.eq);
        self.name == other.name
    }
}

impl Eq for Key {}

impl Clone for Key {
    fn clone(&self) -> Self {
        obey(&self.orders.clone);
        Self::new(self.name, &self.orders)
    }
}

impl Drop for Key {
    fn drop(&mut self) {
        obey(&self.orders.drop);
    }
}

#[test]
fn c4_a_key_may_panic_wherever_it_is_asked() {
    let clock = PausedClock::new();
    let orders = Arc::new(Orders::default());
    let key = || Key::new(1, &orders);
    let batcher = KeyedBatcher::builder()
        .max_items(2)
        .max_keys(1)
        .capacity(2)
        .linger(NEVER)
        .overflow(Overflow::Reject)
        .clock(&clock)
        .build(|_: &Key, batch: Batch<u32>| Ok::<_, Failure>(batch.into_vec()))
        .unwrap();
    let caught = |order: &AtomicBool, f: &mut dyn FnMut()| {
        order.store(true, Ordering::SeqCst);
        assert!(catch_unwind(AssertUnwindSafe(f)).is_err(), "the caller's panic is resumed");
    };
    caught(&orders.hash, &mut || drop(batcher.send(key(), 1)));
    let first = batcher.submit(key(), 1).unwrap();
    caught(&orders.eq, &mut || drop(batcher.send(key(), 2)));
    caught(&orders.eq, &mut || drop(batcher.flush_key(&key())));
    assert_eq!(batcher.keys(), 1);
    // No place has leaked: there is one left.
    orders.clone.store(true, Ordering::SeqCst);
    let second = batcher.submit(key(), 2).unwrap();
    for ticket in [first, second] {
        assert!(ticket.wait().unwrap_err().is_panic(), "the worker's copy of the key");
    }
    batcher.flush().unwrap();
    assert_eq!(batcher.keys(), 0);
    // The key that is of no use any more, on a worker's thread; then one that is there already, on the sender's.
    let of_this_one = Arc::new(Orders::default());
    batcher.send(Key::new(1, &of_this_one), 3).unwrap();
    of_this_one.drop.store(true, Ordering::SeqCst);
    assert_eq!(batcher.submit(key(), 4).unwrap().wait().unwrap(), 4);
    clock.wait_for_waiters(1); // it drops them last
    assert!(!of_this_one.drop.load(Ordering::SeqCst));
    batcher.send(key(), 5).unwrap();
    caught(&of_this_one.drop, &mut || drop(batcher.send(Key::new(1, &of_this_one), 6)));
    batcher.flush().unwrap();
    batcher.close().unwrap();
    let seen = batcher.station().snapshot();
    assert!(seen.balanced(), "{seen:?}");
    assert_eq!((seen.served, seen.failed, batcher.keys()), (4, 2, 0));
}

#[test]
fn c4_a_key_that_panics_when_it_is_copied_costs_no_other_item_its_way_back() {
    let (letters, dead) = mpsc::channel();
    let clock = PausedClock::new();
    let orders = Arc::new(Orders::default());
    let batcher = KeyedBatcher::builder()
        .max_items(9)
        .linger(NEVER)
        .clock(&clock)
        .dead_letter(move |key: &Key, n: u32, failure: Failure| {
            letters.send((key.name, n, failure.to_string())).unwrap();
        })
        .build(|_: &Key, _: Batch<u32>| ())
        .unwrap();
    for n in 1..=3 {
        batcher.send(Key::new(n, &orders), u32::from(n)).unwrap();
        clock.advance(Duration::from_secs(1));
    }
    let ticket = batcher.submit(Key::new(1, &orders), 9).unwrap();
    orders.clone.store(true, Ordering::SeqCst);
    let left = batcher.close_within(Duration::ZERO).unwrap_err();
    let left: Vec<_> = left.items.into_iter().map(|(key, n)| (key.name, n)).collect();
    // The oldest one was the first to be copied.
    assert_eq!(left, [(1, 9), (2, 2), (3, 3)]);
    assert_eq!(dead.try_iter().collect::<Vec<_>>(), [(1, 1, Failure::Closed.to_string())]);
    assert!(matches!(ticket.wait(), Err(Failure::Closed)));
    assert!(batcher.station().snapshot().balanced());
}

#[test]
fn c4_a_key_that_panics_when_it_is_copied_costs_nobody_displaced_his_letter() {
    let (letters, dead) = mpsc::channel();
    let clock = PausedClock::new();
    let gate = Gate::new();
    let entry = gate.entry();
    let orders = Arc::new(Orders::default());
    let armed = Arc::clone(&orders);
    let batcher = KeyedBatcher::builder()
        .max_items(2)
        .capacity(3)
        .max_keys(3)
        .linger(NEVER)
        .overflow(Overflow::DropOldest)
        .clock(&clock)
        .dead_letter(move |key: &Key, n: u32, _| letters.send((key.name, n)).unwrap())
        .build(move |_: &Key, _: Batch<u32>| entry.pass(()))
        .unwrap();
    let send = |name: u8, n: u32| {
        clock.advance(Duration::from_secs(1));
        batcher.send(Key::new(name, &armed), n)
    };
    for n in 1..=3 {
        send(n, u32::from(n)).unwrap();
    }
    // Nothing is displaced if the copy of the key cannot be had; and the sender's item never was in.
    orders.clone.store(true, Ordering::SeqCst);
    assert!(catch_unwind(AssertUnwindSafe(|| send(4, 4))).is_err());
    assert_eq!((dead.try_iter().count(), batcher.keys()), (0, 3));
    send(4, 4).unwrap();
    assert_eq!(dead.try_iter().collect::<Vec<_>>(), [(1, 1)]);
    gate.open(3);
    batcher.close().unwrap();
    let seen = batcher.station().snapshot();
    assert!(seen.balanced());
    assert_eq!((seen.arrivals, seen.served, seen.dropped, batcher.keys()), (4, 3, 1, 0));
}

#[test]
fn c4_callbacks_of_tickets_may_panic_wherever_they_are_called() {
    let (told, tells) = mpsc::channel();
    let clock = PausedClock::new();
    let gate = Gate::new();
    let entry = gate.entry();
    let (letters, dead) = mpsc::channel();
    let batcher = pairs(&clock)
        .capacity(3)
        .overflow(Overflow::DropOldest)
        .dead_letter(move |_, n, _| letters.send(n).unwrap())
        .build(move |_, _: Batch<u32>| entry.pass(()))
        .unwrap();
    let submit = |key, n: u32| {
        clock.advance(Duration::from_secs(1));
        let told = told.clone();
        batcher.submit(key, n).unwrap().on_done(move |result| {
            told.send((n, result.err().map(|failure| failure.to_string()))).unwrap();
            blow_up();
        });
    };
    submit("a", 1);
    submit("a", 2);
    gate.wait();
    submit("b", 3);
    submit("c", 4); // displaces 3
    let left = batcher.close_within(Duration::ZERO).unwrap_err();
    assert_eq!((left.items, left.in_flight), (vec![("c", 4)], 2));
    gate.open(1);
    batcher.close().unwrap();
    let (dropped, closed) = (Failure::Dropped.to_string(), Failure::Closed.to_string());
    let expected = [(3, Some(dropped)), (4, Some(closed)), (1, None), (2, None)];
    assert_eq!(tells.try_iter().collect::<Vec<_>>(), expected);
    assert_eq!(dead.try_iter().collect::<Vec<_>>(), [3]);
}

#[test]
fn c4_a_panicking_dead_letter_hook_costs_no_other_item_its_letter() {
    let (letters, dead) = mpsc::channel();
    let clock = PausedClock::new();
    let batcher = pairs(&clock)
        .on_drop(OnDrop::Abandon)
        .dead_letter(move |key, n, _| {
            letters.send((*key, n)).unwrap();
            blow_up();
        })
        .build(|_, _| ())
        .unwrap();
    batcher.send("a", 1).unwrap();
    batcher.send("b", 2).unwrap();
    drop(batcher);
    assert_eq!(dead.iter().collect::<BTreeSet<_>>(), BTreeSet::from([("a", 1), ("b", 2)]));
}

#[test]
fn c4_a_panicking_dead_letter_hook_goes_to_the_sender_and_leaves_everything_usable() {
    let (letters, dead) = mpsc::channel();
    let gate = Gate::new();
    let entry = gate.entry();
    let batcher = KeyedBatcher::builder()
        .max_items(2)
        .max_keys(2)
        .overflow(Overflow::DropOldest)
        .dead_letter(move |_: &u8, n: u32, _| {
            letters.send(n).unwrap();
            blow_up()
        })
        .build(move |_: &u8, _: Batch<u32>| entry.pass(()))
        .unwrap();
    batcher.send(1, 1).unwrap();
    batcher.send(1, 1).unwrap();
    gate.wait();
    let displaced = [batcher.submit(2, 2).unwrap(), batcher.submit(2, 3).unwrap()];
    // It makes place for the key by displacing all of another one.
    let caught = catch_unwind(AssertUnwindSafe(|| batcher.send(3, 4)));
    assert!(caught.is_err(), "the caller's panic is resumed");
    for ticket in displaced {
        assert!(matches!(ticket.wait(), Err(Failure::Dropped)));
    }
    assert_eq!(dead.try_iter().collect::<Vec<_>>(), [2, 3]);
    gate.open(2);
    batcher.close().unwrap();
    let seen = batcher.station().snapshot();
    assert_eq!((seen.served, seen.dropped), (3, 2));
}

#[test]
fn c5_flush_waits_for_what_was_before_it_and_ignores_linger() {
    let clock = PausedClock::new();
    let batcher = pairs(&clock).build(|_, _: Batch<u32>| ()).unwrap();
    let tickets = ["a", "b", "c"].map(|key| batcher.submit(key, 1).unwrap());
    batcher.flush().unwrap();
    assert_eq!(batcher.station().snapshot().served, 3);
    assert!(tickets.into_iter().all(|ticket| ticket.is_done()));
    batcher.handle().flush().unwrap();
}

#[test]
fn c5_a_flush_of_one_key_leaves_the_others_alone() {
    let clock = PausedClock::new();
    let batcher = pairs(&clock).build(|_, _: Batch<u32>| ()).unwrap();
    let [flushed, open] = ["a", "b"].map(|key| batcher.submit(key, 1).unwrap());
    batcher.flush_key(&"nobody").unwrap();
    batcher.handle().flush_key(&"a").unwrap();
    assert!(flushed.is_done() && !open.is_done());
    assert_eq!(batcher.station().snapshot().served, 1);
    batcher.close().unwrap();
}

#[test]
fn c5_a_flush_of_a_key_after_a_close_waits_for_what_is_still_in_process() {
    let clock = PausedClock::new();
    let gate = Gate::new();
    let entry = gate.entry();
    let batcher = pairs(&clock).build(move |_, _: Batch<u32>| entry.pass(())).unwrap();
    let [begun, _] = [1, 2].map(|n| batcher.submit("a", n).unwrap());
    gate.wait();
    batcher.send("b", 3).unwrap();
    assert_eq!(batcher.close_within(Duration::ZERO).unwrap_err().items, [("b", 3)]);
    assert_eq!(batcher.flush_key_within(&"a", Duration::ZERO).unwrap_err().in_flight(), 2);
    batcher.flush_key(&"b").unwrap();
    gate.open(1);
    batcher.flush_key(&"a").unwrap();
    assert!(begun.is_done());
}

/// A result that can be held up on its way out.
struct Sticky(Arc<common::Entry<()>>);

impl Drop for Sticky {
    fn drop(&mut self) {
        self.0.pass(());
    }
}

#[test]
fn c5_who_has_a_result_finds_its_place_free_and_who_has_flushed_finds_every_result() {
    let gate = Gate::new();
    let entry = Arc::new(gate.entry());
    let batcher = KeyedBatcher::builder()
        .max_items(2)
        .capacity(2)
        .linger(NEVER)
        .build(move |_: &u8, batch: Batch<u32>| {
            Outcomes::done(batch.iter().map(|_| Sticky(Arc::clone(&entry))).collect())
        })
        .unwrap();
    drop(batcher.submit(1, 1).unwrap());
    let wanted = batcher.submit(1, 2).unwrap();
    gate.wait(); // both are processed, and the first result is on its way to a ticket that nobody holds
    assert_eq!(batcher.station().snapshot().served, 2);
    assert!(batcher.flush_within(Duration::ZERO).is_err());
    assert!(batcher.flush_key_within(&1, Duration::ZERO).is_err());
    batcher.try_send(1, 3).unwrap();
    batcher.try_send(1, 4).unwrap();
    gate.open(4);
    batcher.flush_key(&1).unwrap();
    assert!(wanted.is_done());
    batcher.flush().unwrap();
}

#[test]
fn c5_close_is_idempotent_and_finishes_accepted_work() {
    let clock = PausedClock::new();
    let (done, results) = mpsc::channel();
    let batcher = pairs(&clock).build(move |key, batch: Batch<u32>| done.send((*key, batch.into_vec()))).unwrap();
    let handle = batcher.handle();
    for n in 0..5 {
        handle.send("a", n).unwrap();
    }
    handle.send("b", 9).unwrap();
    batcher.close().unwrap();
    batcher.close().unwrap();
    batcher.close_within(Duration::ZERO).unwrap();
    assert!(batcher.is_closed() && handle.is_closed());
    // The process function is gone with the thread: the channel ends.
    let (a, b): (Vec<_>, Vec<_>) = results.iter().partition(|(key, _)| *key == "a");
    assert_eq!(a.into_iter().map(|(_, batch)| batch).collect::<Vec<_>>(), [vec![0, 1], vec![2, 3], vec![4]]);
    assert_eq!(b, [("b", vec![9])]);
    assert_eq!(handle.send("a", 9).unwrap_err().into_inner(), ("a", 9));
    assert!(handle.call("a", 9).unwrap_err().is_closed());
    drop(batcher);
    assert!(handle.submit("a", 9).unwrap_err().is_closed());
}

#[test]
fn c5_close_wakes_blocked_producers_with_their_item() {
    for by_keys in [false, true] {
        let clock = PausedClock::new();
        let gate = Gate::new();
        let entry = gate.entry();
        let batcher = KeyedBatcher::builder()
            .max_items(1)
            .capacity(if by_keys { 9 } else { 1 })
            .max_keys(if by_keys { 1 } else { 9 })
            .clock(&clock)
            .build(move |_: &u8, _: Batch<u32>| entry.pass(()))
            .unwrap();
        batcher.send(1, 1).unwrap();
        gate.wait();
        thread::scope(|scope| {
            let send = scope.spawn(|| batcher.send(2, 2).unwrap_err());
            let call = scope.spawn(|| batcher.call(3, 3).unwrap_err());
            clock.wait_for_waiters(2);
            let left = batcher.close_within(Duration::ZERO).unwrap_err();
            assert_eq!((left.items.len(), left.in_flight), (0, 1));
            assert_eq!(left.abandoned_threads, ["fullbore-batch-keyed-0"]);
            let send = send.join().unwrap();
            assert!(send.is_closed() && send.into_inner() == (2, 2));
            let call = call.join().unwrap();
            assert!(call.is_closed() && call.is_refused() && call.into_inner() == Some((3, 3)));
        });
        gate.open(1);
        batcher.close().unwrap();
    }
}

#[test]
fn c5_what_a_close_cannot_finish_in_time_comes_back() {
    let clock = PausedClock::new();
    let gate = Gate::new();
    let entry = gate.entry();
    let batcher = pairs(&clock)
        .name("slow")
        .build(move |_, batch: Batch<u32>| {
            entry.pass(());
            Ok::<_, Failure>(batch.into_vec())
        })
        .unwrap();
    let begun = batcher.submit("a", 1).unwrap();
    batcher.send("a", 2).unwrap();
    gate.wait();
    let waiting = batcher.submit("a", 3).unwrap();
    batcher.send("a", 4).unwrap();
    batcher.send("a", 5).unwrap();
    thread::scope(|scope| {
        let close = scope.spawn(|| batcher.close_within(Duration::from_secs(5)));
        clock.wait_for_waiters(1);
        clock.advance(Duration::from_secs(5));
        let left = close.join().unwrap().unwrap_err();
        assert_eq!((left.items, left.in_flight), (vec![("a", 3), ("a", 4), ("a", 5)], 2));
        assert_eq!(left.abandoned_threads, ["fullbore-batch-slow-0"]);
    });
    assert!(matches!(waiting.wait(), Err(Failure::Closed)));
    gate.open(1);
    assert_eq!(begun.wait().unwrap(), 1, "a late result still finds its ticket");
    batcher.close().unwrap();
    assert!(batcher.station().snapshot().balanced());
    assert_eq!(batcher.keys(), 0);
}

#[test]
fn c5_an_idle_batcher_closes_cleanly_without_time() {
    let clock = PausedClock::new();
    let batcher = pairs(&clock).workers(3).build(|_, _: Batch<u32>| ()).unwrap();
    batcher.close_within(Duration::ZERO).unwrap();
    let batcher = pairs(&clock).workers(3).build(|_, _: Batch<u32>| ()).unwrap();
    batcher.send("a", 1).unwrap();
    let left = batcher.close_within(Duration::ZERO).unwrap_err();
    assert_eq!((left.items, left.in_flight, left.abandoned_threads.len()), (vec![("a", 1)], 0, 0));
}

#[test]
fn c5_shutdown_closes_it_and_dead_letters_what_is_left() {
    let clock = PausedClock::new();
    let (letters, dead) = mpsc::channel();
    let gate = Gate::new();
    let entry = gate.entry();
    let batcher = KeyedBatcher::builder()
        .name("part")
        .max_items(1)
        .clock(&clock)
        .dead_letter(move |key: &u8, n, failure| letters.send((*key, n, failure)).unwrap())
        .build(move |_: &u8, _: Batch<u32>| entry.pass(()))
        .unwrap();
    let shutdown = Shutdown::with_clock(Clock::from(&clock));
    shutdown.register(batcher.closer());
    batcher.send(1, 1).unwrap();
    gate.wait();
    let ticket = batcher.submit(2, 2).unwrap();
    let report = shutdown.close_within(Duration::ZERO);
    let (name, left) = &report.parts()[0];
    assert_eq!((name.as_str(), left.items, left.in_flight, left.abandoned_threads.len()), ("part", 1, 1, 1));
    let (key, n, failure) = dead.recv().unwrap();
    assert!((key, n) == (2, 2) && matches!(failure, Failure::Closed));
    assert!(matches!(ticket.wait(), Err(Failure::Closed)));
    gate.open(1);
    batcher.close().unwrap();
    let seen = batcher.station().snapshot();
    assert_eq!((seen.served, seen.dropped, seen.returned), (1, 1, 0));
}

#[test]
fn c5_the_process_function_cannot_wait_for_its_own_batcher() {
    type Seat = Arc<Mutex<Option<Arc<KeyedBatcher<u8, u32, ()>>>>>;
    type Calls = Box<dyn FnOnce(&KeyedBatcher<u8, u32, ()>) + Send>;
    let clock = PausedClock::new();
    let seat: Seat = Arc::default();
    let calls: Arc<Mutex<Option<Calls>>> = Arc::default();
    let (seat_inside, calls_inside) = (Arc::clone(&seat), Arc::clone(&calls));
    let (done, finished) = mpsc::channel();
    let batcher = KeyedBatcher::builder()
        .max_items(2)
        .capacity(2)
        .linger(NEVER)
        .overflow(Overflow::Block)
        .clock(&clock)
        .build(move |_: &u8, _: Batch<u32>| {
            let calls = calls_inside.lock().unwrap().take();
            let batcher = seat_inside.lock().unwrap().take();
            if let (Some(calls), Some(batcher)) = (calls, batcher) {
                calls(&batcher);
                done.send(()).unwrap();
            }
        })
        .unwrap();
    let batcher = Arc::new(batcher);
    *seat.lock().unwrap() = Some(Arc::clone(&batcher));
    let later = clock.now() + Duration::from_secs(9);
    *calls.lock().unwrap() = Some(Box::new(move |batcher| {
        let error = batcher.call(0, 1).unwrap_err();
        assert!(error.is_own_thread() && error.is_refused(), "{error}");
        assert_eq!(error.into_inner(), Some((0, 1)));
        assert!(batcher.flush().unwrap_err().is_own_thread());
        assert!(batcher.flush_key(&0).unwrap_err().is_own_thread());
        assert!(batcher.flush_within(Duration::from_secs(1)).unwrap_err().is_own_thread());
        // There is one place left; then a send that would block is refused.
        let ticket = batcher.submit(1, 2).unwrap();
        assert!(batcher.send(2, 3).unwrap_err().is_full());
        let ticket = ticket.wait_deadline(later).unwrap_err();
        let failure = ticket.wait().unwrap_err();
        assert!(failure.downcast_ref::<OwnThread>().is_some(), "{failure}");
        let left = batcher.close().unwrap_err();
        assert_eq!((left.items, left.in_flight), (vec![(1, 2)], 1));
        assert!(left.abandoned_threads.is_empty());
    }));
    KeyedBatcher::send(&batcher, 0, 0).unwrap();
    batcher.flush().unwrap();
    finished.try_recv().expect("every assertion inside held");
    batcher.close().unwrap();
    let seen = batcher.station().snapshot();
    assert_eq!((seen.served, seen.returned, seen.refused), (1, 1, 2));
}

#[test]
fn c6_there_is_always_a_station() {
    let clock = PausedClock::new();
    let inside = clock.clone();
    let batcher = KeyedBatcher::builder()
        .name("named")
        .max_items(4)
        .capacity(40)
        .workers(2)
        .linger(Duration::from_millis(10))
        .clock(&clock)
        .build(move |_: &u8, _: Batch<u32>| inside.advance(Duration::from_millis(7)))
        .unwrap();
    let next = Station::new("next");
    batcher.feeds(&next);
    batcher.send(1, 1).unwrap();
    clock.wait_for_waiters(2);
    clock.advance(Duration::from_millis(10));
    batcher.flush().unwrap();
    let seen = batcher.handle().station().snapshot();
    assert_eq!((seen.name(), seen.kind(), seen.parallelism(), seen.capacity()), ("named", StationKind::Batch, 2, 40));
    assert_eq!((seen.feeds(), seen.batch_size()), (&[next.id()][..], 4));
    assert_eq!((seen.wait().count(), seen.wait().max()), (1, Some(Duration::from_millis(10))));
    assert_eq!((seen.service().count(), seen.service().max()), (1, Some(Duration::from_millis(7))));
    assert_eq!(seen.busy(), Duration::from_millis(7));
    for n in 0..4 {
        batcher.send(2, n).unwrap();
    }
    batcher.flush().unwrap();
    let seen = batcher.station().snapshot();
    assert_eq!((seen.service().count(), seen.wait().count()), (2, 2), "once for each batch");
}

#[test]
fn c7_nonsense_is_refused_by_name() {
    let field = |error: BuildError| error.field().map(str::to_owned);
    let build = |builder: KeyedBatcherBuilder<u8, u32>| builder.build(|_, _| ()).unwrap_err();
    let builder = KeyedBatcher::<u8, u32, ()>::builder;
    for (builder, name) in [
        (builder().max_items(0), "max_items"),
        (builder().max_items(usize::MAX), "max_items"),
        (builder().max_keys(0), "max_keys"),
        (builder().max_keys(usize::MAX), "max_keys"),
        (builder().workers(0), "workers"),
        (builder().workers(usize::MAX), "workers"),
        (builder().capacity(0), "capacity"),
        (builder().capacity(usize::MAX), "capacity"),
        (builder().name("a\0b"), "name"),
    ] {
        assert_eq!(field(build(builder)).as_deref(), Some(name));
    }
    let error = build(builder().max_items(10).capacity(9));
    assert_eq!(error.to_string(), "capacity = 9 is not usable: expected at least max_items, which is 10");
    let error = build(builder().workers(5000));
    assert_eq!(error.to_string(), "workers = 5000 is not usable: expected at most 4096");
    // Absurd, but not nonsense.
    let huge = builder().max_items(u32::MAX as usize).max_keys(i32::MAX as usize).build(|_, _: Batch<u32>| ()).unwrap();
    huge.send(1, 1).unwrap();
    huge.close().unwrap();

    let env = |name: &str, value: &str| {
        KeyedConfig::read(EnvReader::from_vars("APP_", [(name.to_owned().into(), value.to_owned().into())]))
    };
    assert_eq!(env("APP_MAX_ITEMS", "7").unwrap().max_items, 7);
    assert_eq!(env("APP_MAX_KEYS", "8").unwrap().max_keys, 8);
    assert_eq!(env("APP_WORKERS", "3").unwrap().workers, 3);
    assert!(!env("APP_ONE_IN_FLIGHT", "false").unwrap().one_in_flight);
    assert_eq!(env("APP_LINGER", "250ms").unwrap().linger, Duration::from_millis(250));
    assert_eq!(env("APP_CAPACITY", "900").unwrap().capacity, Some(900));
    assert_eq!(env("APP_OVERFLOW", "drop_oldest").unwrap().overflow, Overflow::DropOldest);
    assert_eq!(
        env("APP_ON_DROP", "abandon").unwrap(),
        KeyedConfig { on_drop: OnDrop::Abandon, ..KeyedConfig::default() }
    );
    assert_eq!(env("APP_CAPACITY", "many").unwrap_err().field(), Some("APP_CAPACITY"));
    assert_eq!(env("APP_LINGERS", "7").unwrap_err().field(), Some("APP_LINGERS"));
}

#[cfg(feature = "serde")]
#[test]
fn c7_a_file_is_read_and_unknown_fields_are_refused() {
    let text = r#"{"max_items": 5, "linger": "1m 30s", "max_keys": 6, "workers": 7, "one_in_flight": false,
        "overflow": "reject", "on_drop": "2s"}"#;
    let config: KeyedConfig = serde_json::from_str(text).unwrap();
    assert_eq!((config.max_items, config.linger, config.capacity), (5, Duration::from_secs(90), None));
    assert_eq!((config.max_keys, config.workers, config.one_in_flight), (6, 7, false));
    assert_eq!((config.overflow, config.on_drop), (Overflow::Reject, OnDrop::Drain(Duration::from_secs(2))));
    let again: KeyedConfig = serde_json::from_str(&serde_json::to_string(&config).unwrap()).unwrap();
    assert_eq!(again, config);
    assert!(serde_json::from_str::<KeyedConfig>(r#"{"max_key": 5}"#).unwrap_err().to_string().contains("max_key"));
}

#[test]
fn c8_errors_say_why() {
    let builder = || KeyedBatcher::builder().max_items(1);
    let batcher = builder().build(|_: &u8, _: Batch<u32>| Err::<(), _>(Refused(503))).unwrap();
    let error = batcher.call(1, 1).unwrap_err();
    assert_eq!(error.to_string(), "the server said 503");
    assert_eq!(error.failure().unwrap().downcast_ref::<Refused>().unwrap().0, 503);
    assert!(!error.is_refused() && !error.is_closed() && !error.is_full() && !error.is_timeout());
    batcher.close().unwrap();
    let error = batcher.call(1, 2).unwrap_err();
    assert_eq!(error.to_string(), "item not accepted: closed");

    // No `Debug` of keys and items is needed for any of them.
    #[derive(Clone, PartialEq, Eq, Hash)]
    struct Plain;
    let plain = KeyedBatcher::builder().build(|_: &Plain, _: Batch<Plain>| ()).unwrap();
    plain.close().unwrap();
    let error: CallError<(Plain, Plain)> = plain.call(Plain, Plain).unwrap_err();
    assert_eq!(format!("{error:?}"), "Refused(Closed)");
    assert!(format!("{plain:?} {:?}", plain.handle()).contains("keyed"));
}

#[test]
fn c8_a_wrong_number_of_results_fails_the_whole_batch() {
    let batcher = KeyedBatcher::builder()
        .max_items(2)
        .linger(NEVER)
        .build(|_: &u8, batch: Batch<u32>| Ok::<Vec<u32>, Refused>((0..batch[0]).collect()))
        .unwrap();
    for results in [0, 1, 3] {
        let tickets = [batcher.submit(1, results).unwrap(), batcher.submit(1, results).unwrap()];
        for ticket in tickets {
            let failure = ticket.wait().unwrap_err();
            assert!(matches!(failure, Failure::Mismatch { expected: 2, got } if got == results as usize), "{failure}");
        }
    }
    let seen = batcher.station().snapshot();
    assert_eq!((seen.served, seen.failed), (0, 6));
}

#[test]
fn c9_the_first_in_line_is_handed_the_place_when_it_waited_too_long() {
    let clock = PausedClock::new();
    let gate = Gate::new();
    let entry = gate.entry();
    let batcher = KeyedBatcher::builder()
        .max_items(1)
        .capacity(1)
        .clock(&clock)
        .build(move |_: &u8, _: Batch<u32>| entry.pass(()))
        .unwrap();
    let first = batcher.submit(1, 1).unwrap();
    gate.wait();
    thread::scope(|scope| {
        let waiter = scope.spawn(|| batcher.submit(2, 2).unwrap());
        clock.wait_for_waiters(1);
        clock.advance(FAIR_AFTER);
        gate.open(1);
        first.wait().unwrap();
        // Nobody can be faster: the place never became free. (It may be in the process function by now.)
        assert!(batcher.try_send(3, 3).unwrap_err().is_full());
        let second = waiter.join().unwrap();
        gate.wait();
        gate.open(1);
        second.wait().unwrap();
    });
}

#[test]
fn c10_idle_costs_nothing() {
    for workers in [1, 3] {
        let clock = PausedClock::new();
        let batcher = KeyedBatcher::builder()
            .max_items(2)
            .workers(workers)
            .linger(Duration::from_millis(10))
            .clock(&clock)
            .build(|_: &u8, _: Batch<u32>| ())
            .unwrap();
        clock.wait_for_waiters(workers);
        assert_eq!(clock.timers(), 0, "nothing there, nothing armed");
        batcher.send(1, 1).unwrap();
        clock.wait_for_waiters(workers);
        assert_eq!(clock.timers(), 1, "the linger of the first item");
        let parks = clock.parks();
        for key in 2..100 {
            batcher.send(key, 1).unwrap();
        }
        clock.wait_for_waiters(workers);
        assert_eq!((clock.timers(), clock.parks()), (1, parks), "one alarm for all keys, and nobody was woken");
        clock.advance(Duration::from_millis(10));
        batcher.flush().unwrap();
        clock.wait_for_waiters(workers);
        assert_eq!(batcher.station().snapshot().served, 99);
        assert_eq!((clock.timers(), batcher.keys()), (0, 0), "disarmed when empty");
    }
    let clock = PausedClock::new();
    let batcher = pairs(&clock).linger(Duration::from_millis(10)).build(|_, _| ()).unwrap();
    batcher.send("a", 1).unwrap();
    batcher.send("a", 2).unwrap();
    batcher.flush().unwrap();
    clock.wait_for_waiters(1);
    assert_eq!(batcher.station().snapshot().served, 2);
    assert_eq!(clock.timers(), 0, "disarmed by a full batch");
}

#[cfg(feature = "tracing")]
#[test]
fn c11_displaced_items_can_be_followed() {
    let gate = Gate::new();
    let entry = gate.entry();
    let batcher = KeyedBatcher::builder()
        .name("followed")
        .max_items(1)
        .capacity(1)
        .overflow(Overflow::DropOldest)
        .build(move |_: &u8, _: Batch<u32>| entry.pass(()))
        .unwrap();
    batcher.send(0, 0).unwrap();
    gate.wait();
    let events = fullbore_testkit::events::capture(|| {
        for n in 0..3 {
            batcher.send(n, 1).unwrap();
        }
        batcher.close_within(Duration::ZERO).unwrap_err();
    });
    assert_eq!(events.len(), 2, "rate-limited: {events:?}");
    assert!(events[0].contains("followed") && events[0].contains("drop"), "{events:?}");
    assert!(events[1].contains("followed") && events[1].contains("abandoned"), "{events:?}");
    gate.open(1);
}

#[cfg(feature = "tracing")]
#[test]
fn c11_a_panic_can_be_followed() {
    let events = fullbore_testkit::events::capture_everywhere();
    let batcher = KeyedBatcher::builder()
        .name("fragile-keyed")
        .max_items(1)
        .build(|_: &u8, _: Batch<u32>| -> () { blow_up() })
        .unwrap();
    assert!(batcher.call(1, 1).unwrap_err().failure().unwrap().is_panic());
    let seen: Vec<_> = events().into_iter().filter(|line| line.contains("fragile-keyed")).collect();
    assert_eq!(seen.len(), 1, "{seen:?}");
    assert!(seen[0].contains("panicked: on purpose"), "{seen:?}");
}

/// It is `Send` and `Sync` for keys and items that can only be sent.
#[test]
fn c8_it_asks_no_more_of_keys_and_items_than_it_needs() {
    fn shared<T: Send + Sync>() {}
    shared::<KeyedBatcher<std::cell::Cell<u8>, std::cell::Cell<u8>, std::cell::Cell<u8>>>();
    shared::<KeyedHandle<std::cell::Cell<u8>, std::cell::Cell<u8>, std::cell::Cell<u8>>>();
}
