//! The pool of many keys: one bound for all of them, cold connections make room for hot keys, no key blocks another.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use fullbore_core::{FAIR_AFTER, PausedClock};
use fullbore_pool::KeyedPool;
use support::{Chance, Db, Down, FakeKeyed, Gate, LONG, keyed, panic_on_purpose, seed};

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn the_coldest_idle_connection_makes_room() {
    let clock = PausedClock::new();
    let db = Db::new();
    let pool = keyed::<char>(&db, &clock, 3).build().unwrap();
    // What happens in the same tick of the clock has no order.
    let use_one = |key| {
        clock.advance(SECOND / 1000);
        pool.get(&key).unwrap().id()
    };
    for key in ['a', 'b', 'c'] {
        use_one(key);
    }
    let (b, c) = (use_one('b'), use_one('c'));
    use_one('a');
    // Last used: b, c, a. So b goes.
    let d = pool.get(&'d').unwrap();
    assert_eq!((db.closes(), db.live(), pool.status().size), (1, 3, 3));
    assert_eq!(use_one('c'), c);
    assert_eq!(use_one('a'), 1);
    assert_eq!(d.key(), &'d');
    // And it comes back as a new one, in place of the coldest, which is c by now.
    assert_ne!(use_one('b'), b);
    assert_ne!(use_one('c'), c);
    assert_eq!(db.most(), 3);
}

#[test]
fn only_idle_connections_are_evicted() {
    let clock = PausedClock::new();
    let db = Db::new();
    let pool = keyed::<char>(&db, &clock, 2).build().unwrap();
    let (a, b) = (pool.get(&'a').unwrap(), pool.get(&'b').unwrap());
    assert!(pool.try_get(&'c').unwrap_err().is_full());
    drop(b);
    let c = pool.get(&'c').unwrap();
    assert_eq!((a.counted.serial, c.counted.serial, db.closes()), (1, 3, 1));
}

#[test]
fn an_evicted_connection_is_closed_before_the_new_one_is_made() {
    let clock = PausedClock::new();
    let db = Db::new();
    let pool = keyed::<char>(&db, &clock, 1).build().unwrap();
    drop(pool.get(&'a').unwrap());
    let closed_first = Arc::downgrade(&db);
    db.on_connect(move |_, _| {
        assert_eq!(closed_first.upgrade().unwrap().closes(), 1);
        Ok(())
    });
    drop(pool.get(&'b').unwrap());
    assert_eq!(db.most(), 1);
}

#[test]
fn an_evicted_connection_counts_for_its_key_until_it_is_closed() {
    let clock = PausedClock::new();
    let db = Db::new();
    let pool = keyed::<char>(&db, &clock, 2).max_per_key(1).build().unwrap();
    drop(pool.get(&'a').unwrap());
    let other = pool.get(&'x').unwrap();
    let (gate, pass) = Gate::new();
    db.on_close(move |counted, _| {
        if counted.serial == 1 {
            pass(counted);
        }
    });
    thread::scope(|scope| {
        let evicting = scope.spawn(|| pool.get(&'b').unwrap());
        gate.wait();
        // A place is free, and yet `a` cannot have it: its connection is still there.
        other.discard();
        assert!(pool.try_get(&'a').unwrap_err().is_full());
        let waiter = scope.spawn(|| pool.get(&'a').map(drop));
        clock.wait_for_waiters(1);
        gate.release();
        // Not by the return of `b`, which is still out.
        waiter.join().unwrap().unwrap();
        drop(evicting.join().unwrap());
    });
    assert_eq!(pool.manager().keys.lock().unwrap()[&'a'].most, 1);
}

#[test]
fn no_key_has_more_than_its_share() {
    let clock = PausedClock::new();
    let db = Db::new();
    let pool = keyed::<char>(&db, &clock, 4).max_per_key(2).build().unwrap();
    let greedy = [pool.get(&'a').unwrap(), pool.get(&'a').unwrap()];
    assert!(pool.try_get(&'a').unwrap_err().is_full());
    let others = [pool.get(&'b').unwrap(), pool.get(&'c').unwrap()];
    assert!(pool.try_get(&'d').unwrap_err().is_full());
    drop(others);
    assert!(pool.try_get(&'a').unwrap_err().is_full(), "its cap, although there is something to evict");
    drop(greedy);
    assert_eq!((pool.status().available, db.closes()), (4, 0));
}

#[test]
fn a_waiter_is_served_by_the_return_of_another_key() {
    for overdue in [false, true] {
        let clock = PausedClock::new();
        let db = Db::new();
        let pool = keyed::<char>(&db, &clock, 1).build().unwrap();
        let held = pool.get(&'b').unwrap();
        thread::scope(|scope| {
            let waiter = scope.spawn(|| pool.get(&'a').map(|got| got.key));
            clock.wait_for_waiters(1);
            if overdue {
                clock.advance(FAIR_AFTER);
            }
            drop(held);
            assert_eq!(waiter.join().unwrap().unwrap(), 'a');
        });
        assert_eq!((db.closes(), db.live()), (1, 1), "evicted");
    }
}

#[test]
fn a_waiter_whose_key_is_at_its_share_blocks_nobody_behind_it() {
    for overdue in [false, true] {
        let clock = PausedClock::new();
        let db = Db::new();
        let pool = keyed::<char>(&db, &clock, 2).max_per_key(1).build().unwrap();
        let (a, b) = (pool.get(&'a').unwrap(), pool.get(&'b').unwrap());
        thread::scope(|scope| {
            let first = scope.spawn(|| pool.get(&'a').map(|got| got.counted.serial));
            clock.wait_for_waiters(1);
            let second = scope.spawn(|| pool.get(&'c').map(drop));
            clock.wait_for_waiters(2);
            if overdue {
                clock.advance(FAIR_AFTER);
            }
            drop(b);
            second.join().unwrap().unwrap();
            assert!(!first.is_finished());
            drop(a);
            assert_eq!(first.join().unwrap().unwrap(), 1, "it gets the one it waited for");
        });
    }
}

#[test]
fn a_hot_key_does_not_starve_a_cold_one() {
    let clock = PausedClock::new();
    let pool = keyed::<char>(&Db::new(), &clock, 1).build().unwrap();
    let hot = pool.get(&'h').unwrap();
    thread::scope(|scope| {
        let cold = scope.spawn(|| pool.get(&'c').unwrap());
        clock.wait_for_waiters(1);
        clock.advance(FAIR_AFTER);
        drop(hot);
        assert!(pool.try_get(&'h').unwrap_err().is_full(), "its own connection, and yet it is not its turn");
        drop(cold.join().unwrap());
    });
}

#[test]
fn what_was_made_for_a_waiter_is_not_evicted_before_he_has_it() {
    // The waiter races with this thread, which has nothing else to do than to ask for another key.
    for _ in 0..300 {
        let (clock, db) = (PausedClock::new(), Db::new());
        let gate = db.stop_in_connect();
        let pool = keyed::<char>(&db, &clock, 1).build().unwrap();
        thread::scope(|scope| {
            let waiter = scope.spawn(|| pool.get(&'a').unwrap());
            gate.wait();
            drop(gate);
            while !waiter.is_finished() {
                assert!(pool.try_get(&'b').is_err());
            }
            assert_eq!(waiter.join().unwrap().counted.serial, 1);
        });
    }
}

#[test]
fn the_most_recently_used_connection_of_a_key_comes_first() {
    let clock = PausedClock::new();
    let pool = keyed::<char>(&Db::new(), &clock, 4).build().unwrap();
    let held = [0; 3].map(|_| pool.get(&'a').unwrap());
    let other = pool.get(&'b').unwrap();
    let ids = held.each_ref().map(|held| held.id());
    let [first, second, third] = held;
    for held in [second, other, first, third] {
        clock.advance(SECOND / 1000);
        drop(held);
    }
    // Another thread: this one would get the one it had last. Under the lock, as what is idle has to be checked.
    clock.advance(SECOND);
    let again = thread::scope(|scope| {
        scope.spawn(|| [0; 3].map(|_| pool.get(&'a').unwrap()).each_ref().map(|held| held.id())).join().unwrap()
    });
    assert_eq!(again, [ids[2], ids[0], ids[1]]);
}

#[test]
fn thousands_of_keys_share_a_few_connections() {
    let clock = PausedClock::new();
    let db = Db::new();
    let pool = keyed::<String>(&db, &clock, 16).build().unwrap();
    let keys: Vec<String> = (0..4044).map(|n| format!("N{n}")).collect();
    for round in 0..2 {
        for key in &keys {
            assert_eq!(&pool.get(key).unwrap().key, key);
        }
        assert_eq!(db.connects(), 4044 * (round + 1), "each had been evicted long ago");
        clock.advance(SECOND / 1000);
    }
    assert_eq!((db.live(), pool.status().size, pool.status().available), (16, 16, 16));
    assert_eq!((db.most(), db.closes()), (16, 2 * 4044 - 16));
    // The last ones are still warm.
    for key in &keys[4044 - 16..] {
        drop(pool.get(key).unwrap());
    }
    assert_eq!(db.connects(), 2 * 4044);
}

#[test]
fn everything_is_conserved_whatever_happens() {
    const THREADS: u64 = 64;
    const ROUNDS: u64 = 150;
    let seed = seed();
    let db = Db::new();
    // What the manager does wrong depends on how often it was asked.
    let count = || {
        let calls = AtomicU64::new(seed % 100);
        move || calls.fetch_add(1, Ordering::Relaxed)
    };
    let (connects, validates, checks, closes) = (count(), count(), count(), count());
    db.on_connect(move |_, _| match connects() % 13 {
        0 => panic_on_purpose(),
        1 | 2 => Err(Down),
        _ => Ok(()),
    });
    db.on_validate(move |_, _| match validates() % 17 {
        0 => panic_on_purpose(),
        1 | 2 => Err(Down),
        _ => Ok(()),
    });
    db.on_is_broken(move |_, _| match checks() % 19 {
        0 => panic_on_purpose(),
        n => n < 3,
    });
    db.on_close(move |_, _| {
        if closes().is_multiple_of(5) {
            panic_on_purpose();
        }
    });
    let micros = Duration::from_micros;
    let manager = FakeKeyed::<u64>::new(&db);
    let keys = Arc::clone(&manager.keys);
    let pool = KeyedPool::builder(manager)
        .max_size(8)
        .max_per_key(3)
        .get_timeout(Duration::from_millis(2))
        .validate_after(micros(20))
        .idle_timeout(micros(500))
        .max_lifetime(Duration::from_millis(3))
        .backoff(Duration::from_nanos(1), micros(50))
        .build()
        .unwrap();
    let calls = AtomicU64::new(0);
    thread::scope(|scope| {
        for n in 0..THREADS {
            let (pool, calls) = (&pool, &calls);
            scope.spawn(move || {
                let mut chance = Chance::new(seed.wrapping_add(n));
                for _ in 0..ROUNDS {
                    // Whoever makes the call after nine tenths of all closes it.
                    if calls.fetch_add(1, Ordering::Relaxed) == THREADS * ROUNDS * 9 / 10 {
                        pool.close();
                    }
                    // Half of the calls go to three hot keys.
                    let key = if chance.one_in(2) { chance.below(3) } else { chance.below(200) };
                    let one_round = || {
                        let got = match chance.below(4) {
                            0 => pool.try_get(&key),
                            1 => pool.get_deadline(&key, Instant::now() + micros(chance.below(300))),
                            2 => pool.get_deadline(&key, Instant::now() - micros(1)),
                            _ => pool.get(&key),
                        };
                        let Ok(mut held) = got else { return };
                        assert_eq!(held.key, key);
                        if chance.one_in(2) {
                            thread::yield_now();
                        }
                        match chance.below(8) {
                            0 => panic_on_purpose(),
                            1 => held.discard(),
                            2 => {
                                held.uncount();
                                drop(held.detach());
                            }
                            3 => thread::scope(|scope| {
                                scope.spawn(move || drop(held));
                            }),
                            _ => drop(held),
                        }
                    };
                    let _ = catch_unwind(AssertUnwindSafe(one_round));
                }
            });
        }
    });
    pool.close_within(LONG).unwrap();
    let (state, seen) = (pool.status(), pool.station().snapshot());
    assert!(seen.balanced(), "{seen:?}");
    assert_eq!((seen.waiting(), seen.in_service(), seen.offered()), (0, 0, THREADS * ROUNDS), "{seen:?}");
    assert_eq!((state.size, state.available, state.waiting, db.live()), (0, 0, 0, 0));
    let most = db.most();
    assert!(most <= 8, "{most} connections at once");
    let keys = keys.lock().unwrap();
    assert!(keys.values().all(|key| key.live == 0 && key.most <= 3), "{keys:?}");
    let stats = pool.stats();
    assert_eq!(stats.connected + stats.connect_failures, db.connects(), "{stats:?}");
    assert!(seen.served > THREADS && seen.failed > 0 && seen.refused > 0, "it did nothing: {seen:?}");
}
