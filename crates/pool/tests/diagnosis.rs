//! What a pool tells of itself: who has a connection and since when, who asks for a second one, which keys are used most.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use fullbore_core::PausedClock;
use fullbore_pool::{Nested, Pool, Pooled};
use support::{Db, Fake, advance, keyed, pool, until};

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn who_has_a_connection_since_when_and_from_where_is_known() {
    let (clock, db) = (PausedClock::new(), Db::new());
    let pool = pool(&db, &clock, 3).leak_after(SECOND * 60).build().unwrap();
    assert_eq!(pool.checkouts(), []);
    let (mine, line) = (pool.get().unwrap(), line!());
    clock.advance(SECOND);
    let named = thread::Builder::new().name("borrower".into());
    let take = || pool.get().unwrap();
    let theirs = thread::scope(|scope| named.spawn_scoped(scope, take).unwrap().join().unwrap());
    clock.advance(SECOND);
    let mut checkouts = pool.checkouts();
    checkouts.sort_by_key(|checkout| checkout.id);
    let [first, second] = &checkouts[..] else { panic!("{checkouts:?}") };
    assert_eq!((first.id, first.age, first.site.line(), first.reported), (mine.id(), SECOND * 2, line, false));
    assert!(first.site.file().ends_with("diagnosis.rs"), "{first:?}");
    assert_eq!((second.id, second.age, &*second.thread), (theirs.id(), SECOND, "borrower"));
    drop(mine);
    drop(theirs.detach());
    assert_eq!(pool.checkouts(), []);
    // Through the other calls it is the call as well.
    let (checkouts, line) = (pool.with(|_| pool.checkouts()).unwrap(), line!());
    assert_eq!((checkouts.len(), checkouts[0].site.line()), (1, line));
}

#[test]
fn without_leak_after_no_book_is_kept() {
    let (clock, db) = (PausedClock::new(), Db::new());
    let pool = pool(&db, &clock, 1).build().unwrap();
    let _held = pool.get().unwrap();
    clock.advance(SECOND * 3600);
    assert_eq!((pool.checkouts(), pool.stats().leaks), (vec![], 0));
}

#[test]
fn a_leak_is_reported_once_and_not_taken_back() {
    let (clock, db) = (PausedClock::new(), Db::new());
    let builder = pool(&db, &clock, 2).leak_after(SECOND * 60).idle_timeout(None).max_lifetime(None);
    let pool = builder.build().unwrap();
    let leaked = pool.get().unwrap();
    drop(pool.get().unwrap());
    advance(&clock, SECOND * 59);
    assert_eq!(pool.stats().leaks, 0);
    advance(&clock, SECOND);
    assert_eq!((pool.stats().leaks, pool.checkouts()[0].reported), (1, true));
    for _ in 0..5 {
        advance(&clock, SECOND * 60);
    }
    assert_eq!((pool.stats().leaks, db.live(), leaked.serial), (1, 2, 1));
    drop(leaked);
    assert_eq!(pool.status().available, 2);
    // The next one to take it starts anew.
    let _held = pool.get().unwrap();
    assert_eq!(pool.checkouts().iter().filter(|checkout| checkout.reported).count(), 0);
    for _ in 0..2 {
        advance(&clock, SECOND * 60);
    }
    assert_eq!(pool.stats().leaks, 2);
}

/// Of threads of ours, so there is one collector for the whole process; the pools have names of their own.
#[cfg(feature = "tracing")]
#[test]
fn c11_what_our_own_threads_find_out_can_be_followed() {
    let events = fullbore_testkit::events::capture_everywhere();
    let about = |name: &str| -> Vec<String> { events().into_iter().filter(|event| event.contains(name)).collect() };
    let (clock, db) = (PausedClock::new(), Db::new());
    let leaky = pool(&db, &clock, 1).name("leaky").leak_after(SECOND * 60).build().unwrap();
    let (leaked, line) = (leaky.get().unwrap(), line!());
    advance(&clock, SECOND * 60);
    let told = about("leaky");
    assert_eq!(told.len(), 1, "{told:?}");
    let site = format!("diagnosis.rs:{line}:");
    let expected = ["leak", "connection 1 has been out for 60s", "c11_what_our_own_threads_find_out", &*site];
    assert!(expected.iter().all(|part| told[0].contains(part)), "{told:?}");
    drop(leaked);
    // That it came back after all is rate-limited away, or told.
    assert!(about("leaky").len() <= 2);

    let down = Db::new();
    down.on_connect(|_, _| Err(support::Down));
    let unreachable = pool(&down, &clock, 1).name("unreachable").build().unwrap();
    assert!(unreachable.get().is_err());
    let told = about("unreachable");
    assert!(told.len() == 1 && told[0].contains("cannot connect: the database is down"), "{told:?}");

    let panicky = Db::new();
    panicky.on_connect(|_, _| support::panic_on_purpose());
    let panicking = pool(&panicky, &clock, 1).name("panicky").build().unwrap();
    assert!(panicking.get().is_err());
    let told = about("panicky");
    assert!(told.iter().any(|event| event.contains("panic") && event.contains("on purpose")), "{told:?}");

    let nested = pool(&Db::new(), &clock, 2).name("twofold").nested(Nested::Warn).build().unwrap();
    let first = nested.get().unwrap();
    assert!(about("twofold").is_empty());
    let second = nested.get().unwrap();
    let told = about("twofold");
    assert!(told.len() == 1 && told[0].contains("nested"), "{told:?}");
    drop((first, second));
}

fn nested(mode: Nested) -> (PausedClock, Pool<Fake>) {
    let clock = PausedClock::new();
    let pool = pool(&Db::new(), &clock, 4).nested(mode).build().unwrap();
    (clock, pool)
}

#[test]
fn a_thread_that_holds_one_may_be_refused_another() {
    for mode in [Nested::Off, Nested::Warn] {
        let (_clock, pool) = nested(mode);
        let _first = pool.get().unwrap();
        assert!(pool.get().is_ok(), "{mode:?}");
    }
    let (clock, pool) = nested(Nested::Refuse);
    let first = pool.get().unwrap();
    for refused in [pool.get(), pool.try_get(), pool.get_deadline(clock.now())] {
        let error = refused.unwrap_err();
        assert!(error.is_nested() && !error.is_full() && !error.is_timeout(), "{error}");
        assert_eq!(error.to_string(), "this thread holds a connection of the pool already");
    }
    let (_, another_pool) = nested(Nested::Refuse);
    let other = another_pool.get().unwrap();
    thread::scope(|scope| scope.spawn(|| drop(pool.get().unwrap())).join().unwrap());
    drop(first);
    let ends: [fn(Pooled<Fake>); 3] = [drop, Pooled::discard, |held| drop(held.detach())];
    for end in ends {
        end(pool.get().unwrap());
    }
    assert!(pool.get().is_ok());
    drop(other);
    let seen = pool.station().snapshot();
    assert!(seen.balanced() && seen.refused == 3, "{seen:?}");
}

#[test]
fn a_guard_that_moves_counts_where_it_is_used() {
    let (_clock, pool) = nested(Nested::Refuse);
    let mut held = pool.get().unwrap();
    let (back, comes_back) = mpsc::channel();
    thread::scope(|scope| {
        let pool = &pool;
        scope.spawn(move || {
            assert!(pool.get().is_ok(), "not used here yet");
            held.broken = false;
            assert!(pool.get().unwrap_err().is_nested());
            back.send(held).unwrap();
        });
        let mut held = comes_back.recv().unwrap();
        assert!(pool.get().is_ok(), "it counts there");
        held.broken = false;
        assert!(pool.get().unwrap_err().is_nested());
        // Dropped elsewhere it is gone from here.
        scope.spawn(move || drop(held)).join().unwrap();
        assert!(pool.get().is_ok());
    });
}

/// Afterwards it looks like a lost wake-up: somebody waited for all of its time, and a connection is idle. Only while it lasts the
/// pool can tell: all are out, to threads that stand in line.
#[test]
fn threads_that_hold_all_and_ask_for_more_wait_until_one_of_them_gives_up() {
    let (clock, db) = (PausedClock::new(), Db::new());
    let builder = pool(&db, &clock, 2).nested(Nested::Warn).get_timeout(SECOND * 20).leak_after(SECOND);
    let pool = builder.idle_timeout(SECOND / 2).max_lifetime(SECOND * 2).build().unwrap();
    thread::scope(|scope| {
        let held = [pool.get().unwrap(), pool.get().unwrap()];
        let mut in_line = 0;
        let callers = held.map(|held| {
            let pool = &pool;
            let caller = scope.spawn(move || {
                let another = pool.get();
                drop(held);
                another
            });
            in_line += 1;
            clock.wait_for_waiters(in_line);
            clock.advance(SECOND / 100);
            caller
        });
        let status = pool.status();
        assert_eq!((status.size, status.available, status.waiting), (2, 0, 2), "{status:?}");
        assert_eq!(pool.checkouts().len(), 2);
        clock.advance(SECOND * 20 - SECOND / 50);
        let [first, second] = callers.map(|caller| caller.join().unwrap());
        assert!(first.unwrap_err().is_timeout());
        assert!(second.is_ok(), "what the first one held was in its way: {second:?}");
    });
    let (status, stats) = (pool.status(), pool.stats());
    assert_eq!((status.size, status.available, status.waiting), (1, 1, 0), "{status:?}");
    assert_eq!((stats.connected, stats.closed_old, stats.closed_idle), (3, 2, 0), "{stats:?}");
}

#[test]
fn a_panic_of_the_holder_does_not_leave_it_counted() {
    let (_clock, pool) = nested(Nested::Refuse);
    let work = || pool.with(|_| support::panic_on_purpose());
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).is_err());
    assert!(pool.get().is_ok());
}

#[test]
fn the_keys_that_are_used_most_are_known() {
    let (clock, db) = (PausedClock::new(), Db::new());
    let pool = keyed::<u32>(&db, &clock, 64).build().unwrap();
    assert_eq!(pool.top_keys(), []);
    // Eight hot ones, each twice as hot as the next.
    for round in 0..1 << 15 {
        let key = u32::trailing_zeros(1 << 7 | round);
        drop(pool.get(&key).unwrap());
    }
    let top = pool.top_keys();
    let three: Vec<u32> = top.iter().map(|known| known.key).take(3).collect();
    assert_eq!(three, [0, 1, 2]);
    let hottest = &top[0];
    assert!(hottest.checkouts.abs_diff(1 << 14) < 1 << 13, "{hottest:?}");
}

#[test]
fn keys_that_always_wait_for_a_connection_do_not_look_busier_than_they_are() {
    let (clock, db) = (PausedClock::new(), Db::new());
    let pool = keyed::<u32>(&db, &clock, 2).build().unwrap();
    for round in 0..400_u32 {
        // One hot key and many that are evicted each time.
        for _ in 0..32 {
            drop(pool.get(&0).unwrap());
        }
        clock.advance(Duration::from_micros(10));
        drop(pool.get(&(1 + round % 10)).unwrap());
        clock.advance(Duration::from_micros(10));
    }
    let top = pool.top_keys();
    assert_eq!(top[0].key, 0, "{top:?}");
    let cold = top.iter().filter(|known| known.key != 0).map(|known| known.checkouts).sum::<u64>();
    assert!((300..600).contains(&cold), "400 in all: {top:?}");
    assert!(db.connects() > 400);
}

#[test]
fn stats_say_what_became_of_each_connection() {
    let (clock, db) = (PausedClock::new(), Db::new());
    let builder = pool(&db, &clock, 2).idle_timeout(SECOND * 60).max_lifetime(SECOND * 100).lifetime_jitter(0.0);
    let pool = builder.build().unwrap();
    pool.get().unwrap().broken = true;
    let work = || pool.with(|_| support::panic_on_purpose());
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).is_err());
    pool.get().unwrap().discard();
    drop(pool.get().unwrap());
    until(|| clock.timers() == 1);
    clock.advance(SECOND * 60);
    until(|| pool.status().size == 0);
    let held = pool.get().unwrap();
    clock.advance(SECOND * 100);
    drop(held);
    drop(pool.get().unwrap());
    clock.advance(SECOND);
    db.on_validate(|_, _| Err(support::Down));
    drop([pool.get().unwrap(), pool.get().unwrap()]);
    pool.resize(1);
    pool.close();
    let stats = pool.stats();
    let closed = [
        stats.closed_broken,
        stats.closed_panicked,
        stats.removed,
        stats.closed_idle,
        stats.closed_old,
        stats.closed_invalid,
        stats.closed_surplus,
        stats.closed_with_pool,
    ];
    assert_eq!(closed, [1; 8], "{stats:?}");
    assert_eq!((stats.connected, stats.connect_failures, db.live()), (8, 0, 0), "{stats:?}");
    assert_eq!(Arc::strong_count(&db), 2, "the test's and the manager's");
}
