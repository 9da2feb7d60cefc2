//! What an operator does to a pool: pause, resize, evict, look through, close; and threads and processes.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use std::io::{Read as _, Write as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Duration;

use fullbore_core::PausedClock;
use fullbore_pool::{Background, Pool, WhileDown};
use fullbore_testkit::{child_test, is_child};
use support::{Db, Down, Fake, LONG, keyed, panic_on_purpose, pool, until};

const SECOND: Duration = Duration::from_secs(1);
/// The default time for connecting, and what comes on top of it.
const GIVEN_UP_AFTER: Duration = Duration::from_millis(10_500);

#[test]
fn a_paused_pool_hands_out_nothing_until_it_is_resumed() {
    let (clock, db) = (PausedClock::new(), Db::new());
    let pool = pool(&db, &clock, 2).build().unwrap();
    drop(pool.get().unwrap());
    pool.pause();
    pool.pause();
    assert!(pool.try_get().unwrap_err().is_full());
    thread::scope(|scope| {
        let hasty = scope.spawn(|| pool.get_deadline(clock.now() + SECOND).map(drop));
        let patient = scope.spawn(|| pool.get().map(|got| got.serial));
        clock.wait_for_waiters(2);
        let status = pool.status();
        assert!(status.paused && (status.available, status.waiting, status.connecting) == (1, 2, 0), "{status}");
        clock.advance(SECOND);
        let error = hasty.join().unwrap().unwrap_err();
        assert!(error.is_timeout() && error.to_string().ends_with(", paused"), "{error}");
        clock.wait_for_waiters(1);
        pool.resume();
        pool.resume();
        assert_eq!(patient.join().unwrap().unwrap(), 1);
    });
    assert!(!pool.status().paused && pool.try_get().is_ok());
    assert_eq!(db.connects(), 1);
}

#[test]
fn what_comes_back_or_is_made_during_a_pause_waits_for_its_end() {
    let (clock, db) = (PausedClock::new(), Db::new());
    let pool = pool(&db, &clock, 2).build().unwrap();
    let held = pool.get().unwrap();
    let gate = db.stop_in_connect();
    thread::scope(|scope| {
        let waiters = [0; 2].map(|_| scope.spawn(|| pool.get().map(drop)));
        gate.wait();
        clock.wait_for_waiters(2);
        pool.pause();
        gate.release();
        until(|| pool.status().available == 1);
        drop(held);
        clock.wait_for_waiters(2);
        assert_eq!((pool.status().available, pool.status().waiting), (2, 2));
        pool.resume();
        for waiter in waiters {
            waiter.join().unwrap().unwrap();
        }
    });
    assert_eq!(db.connects(), 2);
}

#[test]
fn no_connect_is_begun_during_a_pause() {
    let (clock, db) = (PausedClock::new(), Db::new());
    let gate = db.stop_in_connect();
    let background = Background::on(1, &clock).unwrap();
    let other = pool(&db, &clock, 1).background(&background).build().unwrap();
    let pool = pool(&db, &clock, 1).background(&background).build().unwrap();
    thread::scope(|scope| {
        let others = scope.spawn(|| other.get().map(drop));
        gate.wait();
        let waiter = scope.spawn(|| pool.get().map(drop));
        clock.wait_for_waiters(2);
        assert_eq!(pool.status().connecting, 1, "ordered");
        pool.pause();
        gate.release();
        others.join().unwrap().unwrap();
        until(|| pool.status().size == 0);
        assert_eq!((db.connects(), pool.stats().connects_elided), (1, 1));
        db.on_connect(|_, _| Ok(()));
        pool.resume();
        waiter.join().unwrap().unwrap();
    });
}

#[test]
fn pause_within_waits_for_those_that_are_out() {
    let (clock, db) = (PausedClock::new(), Db::new());
    let pool = pool(&db, &clock, 3).build().unwrap();
    let [first, second, third] = [0; 3].map(|_| pool.get().unwrap());
    drop(third);
    assert_eq!(pool.pause_within(Duration::ZERO).unwrap_err().in_flight, 2);
    thread::scope(|scope| {
        let in_time = scope.spawn(|| pool.pause_within(SECOND));
        clock.wait_for_waiters(1);
        drop(first);
        clock.wait_for_waiters(1);
        clock.advance(SECOND);
        assert_eq!(in_time.join().unwrap().unwrap_err().in_flight, 1);
        // It comes back, which is an event: nobody has to wait for the end of the time.
        let patient = scope.spawn(|| pool.pause_within(Duration::MAX));
        clock.wait_for_waiters(1);
        drop(second);
        patient.join().unwrap().unwrap();
    });
    assert!(pool.status().paused && pool.try_get().unwrap_err().is_full(), "it stays paused in either case");
    // The other ways for one to come back.
    let ways: [fn(fullbore_pool::Pooled<Fake>); 2] = [fullbore_pool::Pooled::discard, |held| drop(held.detach())];
    for way in ways {
        pool.resume();
        let held = pool.get().unwrap();
        thread::scope(|scope| {
            let patient = scope.spawn(|| pool.pause_within(Duration::MAX));
            clock.wait_for_waiters(1);
            way(held);
            patient.join().unwrap().unwrap();
        });
    }
}

#[test]
fn more_places_are_there_at_once() {
    let (clock, db) = (PausedClock::new(), Db::new());
    let pool = pool(&db, &clock, 1).build().unwrap();
    let held = pool.get().unwrap();
    thread::scope(|scope| {
        let waiter = scope.spawn(|| pool.get().map(|got| got.serial));
        clock.wait_for_waiters(1);
        pool.resize(2);
        assert_eq!(waiter.join().unwrap().unwrap(), 2);
    });
    assert_eq!((pool.status().max_size, pool.station().snapshot().parallelism()), (2, 2));
    assert_eq!((held.serial, pool.status().size), (1, 2));
}

#[test]
fn what_is_too_much_goes_the_coldest_first() {
    let (clock, db) = (PausedClock::new(), Db::new());
    let pool = pool(&db, &clock, 6).build().unwrap();
    let mut held = Vec::from([0; 6].map(|_| pool.get().unwrap()));
    for idle in held.drain(..4) {
        clock.advance(SECOND / 1000);
        drop(idle);
    }
    pool.resize(3);
    assert_eq!((pool.status().size, pool.status().available, db.closes()), (3, 1, 3));
    // And those that are out when they come back.
    pool.resize(1);
    assert_eq!((pool.status().size, pool.status().available), (2, 0));
    drop(held.pop());
    assert_eq!(pool.status().size, 1);
    drop(held.pop());
    assert_eq!((pool.status().size, pool.status().available, pool.stats().closed_surplus), (1, 1, 5));
    pool.resize(0);
    assert_eq!(pool.status().max_size, 1, "never none");
    assert!(pool.get().is_ok());
}

/// deadpool 0.13.1 (observed): `resize` down before the pool is full has no effect: ten are handed out with a maximum of two.
#[test]
fn a_pool_that_was_made_smaller_while_empty_is_smaller() {
    let (clock, db) = (PausedClock::new(), Db::new());
    let pool = pool(&db, &clock, 10).build().unwrap();
    pool.resize(2);
    let held = [0; 2].map(|_| pool.get().unwrap());
    assert!(pool.try_get().unwrap_err().is_full());
    assert!(pool.get_deadline(clock.now()).unwrap_err().is_timeout());
    drop(held);
    assert_eq!((pool.status().size, db.most()), (2, 2));
}

#[test]
fn one_that_was_being_made_when_the_pool_shrank_goes() {
    let (clock, db) = (PausedClock::new(), Db::new());
    let pool = pool(&db, &clock, 2).build().unwrap();
    let held = pool.get().unwrap();
    let gate = db.stop_in_connect();
    assert!(pool.try_get().unwrap_err().is_full());
    gate.wait();
    pool.resize(1);
    gate.release();
    until(|| pool.status().size == 1);
    assert_eq!((held.serial, pool.stats().closed_surplus), (1, 1));
}

#[test]
fn a_soft_eviction_reaches_all_there_are() {
    let (clock, db) = (PausedClock::new(), Db::new());
    let pool = pool(&db, &clock, 3).build().unwrap();
    let [idle, held] = [0; 2].map(|_| pool.get().unwrap());
    drop(idle);
    let gate = db.stop_in_connect();
    thread::scope(|scope| {
        let idle = pool.get().unwrap();
        let waiter = scope.spawn(|| pool.get().unwrap());
        assert_eq!(gate.wait(), 3);
        clock.wait_for_waiters(1);
        drop(idle);
        drop(waiter.join().unwrap());
        pool.soft_evict();
        assert_eq!((pool.status().size, pool.status().available), (2, 0), "the idle one is gone");
        // The one that is being made is one of the old ones: it is not kept.
        let waiter = scope.spawn(|| pool.get().unwrap());
        clock.wait_for_waiters(1);
        gate.release();
        drop(gate);
        assert!(waiter.join().unwrap().serial > 3);
    });
    assert_eq!(held.serial, 2, "still works");
    drop(held);
    assert_eq!((pool.stats().closed_old, pool.status().size, pool.status().available), (3, 1, 1));
    assert!(pool.get().unwrap().serial > 3);
}

#[test]
fn retain_takes_out_what_the_caller_does_not_want() {
    let (clock, db) = (PausedClock::new(), Db::new());
    let pool = pool(&db, &clock, 4).build().unwrap();
    let held = [0; 4].map(|_| pool.get().unwrap());
    let [first, second, third, fourth] = held;
    drop((first, second, third));
    let mut seen = Vec::new();
    let result = pool.retain(|counted, metrics| {
        seen.push((counted.serial, metrics.recycle_count, pool.status().available));
        counted.serial != 2
    });
    // One at a time: the others are there meanwhile.
    assert_eq!(seen, [(1, 1, 2), (2, 1, 2), (3, 1, 1)]);
    assert_eq!((result.retained, result.removed.len(), result.removed[0].serial), (2, 1, 2));
    assert_eq!((db.closes(), pool.status().size, pool.stats().removed), (0, 3, 1), "it is the caller's");
    drop(fourth);
    assert_eq!(pool.status().available, 3);
}

/// deadpool 0.13.1 (observed): the pool is poisoned; `get` panics, and `drop` aborts.
#[test]
fn a_predicate_of_retain_that_panics_changes_nothing() {
    let (clock, db) = (PausedClock::new(), Db::new());
    let pool = pool(&db, &clock, 2).build().unwrap();
    drop([0; 2].map(|_| pool.get().unwrap()));
    let looks = || pool.retain(|counted, _| if counted.serial == 2 { panic_on_purpose() } else { true });
    assert!(catch_unwind(AssertUnwindSafe(looks)).is_err());
    assert_eq!((pool.status().available, db.closes()), (2, 0));
    let held = [0; 2].map(|_| pool.get().unwrap());
    drop(held);
    pool.close_within(Duration::ZERO).unwrap();
}

#[test]
fn a_waiter_gets_what_retain_has_looked_at() {
    let (clock, db) = (PausedClock::new(), Db::new());
    let pool = pool(&db, &clock, 1).build().unwrap();
    drop(pool.get().unwrap());
    for keep in [true, false] {
        thread::scope(|scope| {
            let mut waiter = None;
            let result = pool.retain(|_, _| {
                waiter = Some(scope.spawn(|| pool.get().map(drop)));
                clock.wait_for_waiters(1);
                keep
            });
            assert_eq!(result.retained, usize::from(keep));
            waiter.unwrap().join().unwrap().unwrap();
        });
    }
    assert_eq!(db.connects(), 2);
}

/// HikariCP's ShutdownTest: a close in each state of the pool. `before` brings it there, `after` lets go on who was stopped.
fn close_when(
    builder: impl FnOnce(&Arc<Db>, &PausedClock) -> Pool<Fake>,
    at_close: impl FnOnce(&Pool<Fake>, &Arc<Db>, &PausedClock),
) {
    let (clock, db) = (PausedClock::new(), Db::new());
    let pool = builder(&db, &clock);
    at_close(&pool, &db, &clock);
    pool.close_within(LONG).unwrap();
    let (status, seen) = (pool.status(), pool.station().snapshot());
    assert_eq!((status.size, status.connecting, status.stuck, status.waiting, db.live()), (0, 0, 0, 0, 0), "{status}");
    assert!(seen.balanced() && seen.in_service() == 0, "{seen:?}");
    assert!(pool.is_closed() && pool.get().unwrap_err().is_closed() && pool.try_get().unwrap_err().is_closed());
    let connects = db.connects();
    clock.advance(SECOND * 3600);
    drop(pool);
    assert_eq!(db.connects(), connects, "nothing is begun any more");
}

fn plain(db: &Arc<Db>, clock: &PausedClock) -> Pool<Fake> {
    pool(db, clock, 2).build().unwrap()
}

#[test]
fn a_close_before_the_first_connect() {
    close_when(plain, |pool, db, _| {
        assert!(!pool.is_closed());
        pool.close();
        assert_eq!(db.connects(), 0);
    });
}

#[test]
fn a_close_while_connecting() {
    for outcome in [Ok(()), Err(Down)] {
        close_when(plain, |pool, db, _| {
            let (gate, pass) = support::Gate::new();
            db.on_connect(move |counted, _| {
                pass(counted);
                outcome.clone()
            });
            thread::scope(|scope| {
                let caller = scope.spawn(|| pool.get().map(drop));
                gate.wait();
                assert_eq!(pool.close_within(Duration::ZERO).unwrap_err().in_flight, 1);
                assert!(caller.join().unwrap().unwrap_err().is_closed());
                gate.release();
            });
        });
    }
}

#[test]
fn a_close_while_idle() {
    close_when(plain, |pool, _, _| drop([0; 2].map(|_| pool.get().unwrap())));
}

#[test]
fn a_close_while_out() {
    close_when(plain, |pool, _, _| {
        let held = pool.get().unwrap();
        assert_eq!(pool.close_within(Duration::ZERO).unwrap_err().in_flight, 1);
        assert_eq!(held.serial, 1, "it still works");
        drop(held);
    });
}

#[test]
fn a_close_while_somebody_waits() {
    close_when(plain, |pool, _, clock| {
        let held = [0; 2].map(|_| pool.get().unwrap());
        thread::scope(|scope| {
            let waiters = [0; 3].map(|_| scope.spawn(|| pool.get().map(drop)));
            clock.wait_for_waiters(3);
            pool.close();
            for waiter in waiters {
                assert!(waiter.join().unwrap().unwrap_err().is_closed());
            }
        });
        drop(held);
    });
}

#[test]
fn a_close_while_paused() {
    close_when(plain, |pool, _, clock| {
        drop(pool.get().unwrap());
        pool.pause();
        thread::scope(|scope| {
            let waiter = scope.spawn(|| pool.get().map(drop));
            clock.wait_for_waiters(1);
            pool.close();
            assert!(waiter.join().unwrap().unwrap_err().is_closed());
        });
        pool.resume();
    });
}

#[test]
fn a_close_while_validating() {
    close_when(plain, |pool, db, clock| {
        drop(pool.get().unwrap());
        clock.advance(SECOND);
        let gate = db.stop_in_validate();
        thread::scope(|scope| {
            let caller = scope.spawn(|| pool.get().map(drop));
            gate.wait();
            assert_eq!(pool.close_within(Duration::ZERO).unwrap_err().in_flight, 1);
            gate.release();
            assert!(caller.join().unwrap().unwrap_err().is_closed());
        });
    });
}

#[test]
fn a_close_while_keepalive_validates() {
    let builder = |db: &Arc<Db>, clock: &PausedClock| pool(db, clock, 2).keepalive(SECOND * 30).build().unwrap();
    close_when(builder, |pool, db, clock| {
        drop(pool.get().unwrap());
        let gate = db.stop_in_validate();
        until(|| clock.timers() == 1);
        clock.advance(SECOND * 30);
        gate.wait();
        assert_eq!(pool.close_within(Duration::ZERO).unwrap_err().in_flight, 1);
        gate.release();
    });
}

#[test]
fn a_close_while_closing() {
    close_when(plain, |pool, db, _| {
        drop(pool.get().unwrap());
        let gate = db.stop_in_close();
        thread::scope(|scope| {
            scope.spawn(|| pool.close());
            gate.wait();
            pool.close();
            assert_eq!(pool.close_within(Duration::ZERO).unwrap_err().in_flight, 1);
            gate.release();
        });
    });
}

#[test]
fn a_close_while_it_is_down() {
    let builder =
        |db: &Arc<Db>, clock: &PausedClock| pool(db, clock, 2).while_down(WhileDown::Wait).min_idle(1).build().unwrap();
    close_when(
        |db, clock| {
            db.on_connect(|_, _| Err(Down));
            builder(db, clock)
        },
        |pool, _, clock| {
            until(|| pool.stats().connect_failures == 1);
            thread::scope(|scope| {
                let waiter = scope.spawn(|| pool.get().map(drop));
                clock.wait_for_waiters(1);
                pool.close();
                assert!(waiter.join().unwrap().unwrap_err().is_closed());
            });
        },
    );
}

#[test]
fn a_close_does_not_wait_for_ever_for_a_connect_that_is_stuck() {
    let (clock, db) = (PausedClock::new(), Db::new());
    let gate = db.stop_in_connect();
    let pool = pool(&db, &clock, 1).build().unwrap();
    thread::scope(|scope| {
        let caller = scope.spawn(|| pool.get().map(drop));
        gate.wait();
        pool.close();
        assert!(caller.join().unwrap().unwrap_err().is_closed());
        let closer = scope.spawn(|| pool.close_within(Duration::MAX));
        clock.wait_for_waiters(1);
        until(|| clock.timers() == 1);
        clock.advance(GIVEN_UP_AFTER);
        closer.join().unwrap().unwrap();
    });
    assert_eq!((pool.status().size, pool.status().stuck), (0, 1));
    gate.release();
    until(|| pool.status().stuck == 0);
    assert_eq!(db.live(), 0);
}

/// Ours: what was to make room for a connect that a close made needless went back, idle, into the closed pool.
#[test]
fn what_was_to_make_room_is_closed_with_the_pool() {
    for pause in [false, true] {
        let (clock, db) = (PausedClock::new(), Db::new());
        let background = Background::on(1, &clock).unwrap();
        let pool = keyed::<char>(&db, &clock, 1).background(&background).build().unwrap();
        drop(pool.get(&'a').unwrap());
        // The only thread is busy for another pool.
        let busy = Db::new();
        let gate = busy.stop_in_connect();
        let other = support::pool(&busy, &clock, 1).background(&background).build().unwrap();
        thread::scope(|scope| {
            let others = scope.spawn(|| other.get().map(drop));
            gate.wait();
            let caller = scope.spawn(|| pool.get(&'b').map(drop));
            clock.wait_for_waiters(2);
            assert_eq!((pool.status().size, pool.status().connecting), (1, 1));
            if pause {
                // It is the old one, and not to be kept.
                pool.pause();
                pool.soft_evict();
            } else {
                pool.close();
                assert!(caller.join().unwrap().unwrap_err().is_closed());
            }
            gate.release();
            others.join().unwrap().unwrap();
            until(|| pool.status().size == 0);
            assert_eq!((db.live(), db.connects()), (0, 1));
            pool.resume();
        });
        pool.close_within(LONG).unwrap();
    }
}

/// Ours: a caller that has a look at a stale connection without the lock puts it back, also into a pool that was closed meanwhile.
#[test]
fn nothing_is_put_back_into_a_closed_pool() {
    for _ in 0..300 {
        let db = Db::new();
        let builder = Pool::builder(Fake(Arc::clone(&db))).max_size(2).validate_after(Duration::ZERO);
        let pool = builder.build().unwrap();
        drop(pool.get().unwrap());
        let together = Barrier::new(3);
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    together.wait();
                    while pool.get().is_ok() {}
                });
            }
            together.wait();
            pool.close();
        });
        pool.close_within(LONG).unwrap();
        assert_eq!((pool.status().available, db.live()), (0, 0));
    }
}

/// How many threads of pools this process has.
#[cfg(target_os = "linux")]
fn threads() -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let names = tasks.filter_map(|task| std::fs::read_to_string(task.unwrap().path().join("comm")).ok());
    // The system keeps 15 characters of a name.
    names.filter(|name| name.starts_with("fullbore-pool-")).count()
}

/// r2d2#43, #44: 300 pools have 900 threads.
#[cfg(target_os = "linux")]
#[test]
#[ignore = "the child of a_thousand_pools_share_a_few_threads"]
fn child_has_a_thousand_pools() {
    if !is_child("child_has_a_thousand_pools") {
        return;
    }
    assert_eq!(threads(), 0);
    let pools: Vec<_> = (0..1000)
        .map(|n| {
            let builder = Pool::builder(Fake(Db::new())).max_size(2).min_idle(n % 2).keepalive(SECOND * 60);
            builder.build().unwrap()
        })
        .collect();
    for pool in &pools {
        drop([pool.get().unwrap(), pool.get().unwrap()]);
    }
    let most = Background::DEFAULT_MAX_CONNECTING + 1;
    assert!((2..=most).contains(&threads()), "{} threads", threads());
    // They end with the last pool.
    drop(pools);
    until(|| threads() == 0);
    let pool = Pool::builder(Fake(Db::new())).build().unwrap();
    assert_eq!(threads(), 0, "none before there is work");
    assert!(pool.get().is_ok());
    println!("a thousand pools: ok");
}

#[cfg(target_os = "linux")]
#[test]
fn a_thousand_pools_share_a_few_threads() {
    let child = child_test("child_has_a_thousand_pools").output().unwrap();
    let said = String::from_utf8_lossy(&child.stdout);
    assert!(child.status.success() && said.contains("a thousand pools: ok"), "{said}");
}

#[cfg(target_os = "linux")]
#[test]
#[ignore = "the child of what_is_forked_uses_nothing_of_its_parent"]
#[expect(unsafe_code, reason = "there is no other way to fork")]
fn child_forks() {
    if !is_child("child_forks") {
        return;
    }
    let db = Db::new();
    let pool = Pool::builder(Fake(Arc::clone(&db))).max_size(4).leak_after(LONG).build().unwrap();
    let [held, discarded, detached, idle] = [0; 4].map(|_| pool.get().unwrap());
    drop(idle);
    // One without connections, whose handle is the last.
    let background = Background::new(1).unwrap();
    let empty = Pool::builder(Fake(Db::new())).background(&background).build().unwrap();
    empty.get().unwrap().discard();
    drop(background);
    let (mut report, mut says) = std::io::pipe().unwrap();
    // SAFETY: no lock is held by another thread at that time that the child takes: those of the pools rest.
    if unsafe { libc::fork() } == 0 {
        for refused in [pool.get(), pool.try_get(), pool.get_deadline(std::time::Instant::now() + LONG)] {
            let error = refused.unwrap_err();
            assert!(error.is_forked() && !error.is_closed(), "{error}");
            assert_eq!(error.to_string(), "the pool was built by the parent of this process");
        }
        drop(held);
        discarded.discard();
        assert_eq!(detached.detach().serial, 3);
        pool.close();
        drop((pool, empty));
        assert_eq!((db.closes(), db.live()), (0, 3), "all but the detached one, which is the child's");
        // A pool of its own it may build after an `exec` only: threads of the parent that were parked at the fork stand in
        // `parking_lot`'s table for ever, and new threads get their memory.
        says.write_all(b"ok").unwrap();
        std::process::exit(0);
    }
    drop(says);
    let mut said = String::new();
    report.read_to_string(&mut said).unwrap();
    assert_eq!(said, "ok");
    // And the parent's goes on.
    assert_eq!((db.closes(), db.live(), pool.status().available), (0, 4, 1));
    drop([held, discarded, detached]);
    assert_eq!(pool.status().available, 4);
    pool.close_within(LONG).unwrap();
    println!("forked: ok");
}

#[cfg(target_os = "linux")]
#[test]
fn what_is_forked_uses_nothing_of_its_parent() {
    let child = child_test("child_forks").output().unwrap();
    let said = String::from_utf8_lossy(&child.stdout);
    let errors = String::from_utf8_lossy(&child.stderr);
    assert!(child.status.success() && said.contains("forked: ok"), "{said}{errors}");
}
