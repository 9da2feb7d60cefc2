//! Managers that do what they must not: they panic, never come back, or make connections that are dead already.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use fullbore_core::PausedClock;
use fullbore_pool::{Background, Manager, OnPanic, Pool, WhileDown};
use support::{Counted, Db, Down, advance, keyed, panic_on_purpose, pool, until};

const SECOND: Duration = Duration::from_secs(1);
/// The default time for connecting, and what comes on top of it.
const GIVEN_UP_AFTER: Duration = Duration::from_millis(10_500);

/// Makes connections whose destructor panics.
struct Fragile(Arc<AtomicUsize>);

struct Glass {
    dropped: Arc<AtomicUsize>,
    broken: bool,
}

impl Drop for Glass {
    fn drop(&mut self) {
        self.dropped.fetch_add(1, Ordering::SeqCst);
        // One of them at a time.
        if !thread::panicking() {
            panic_on_purpose();
        }
    }
}

impl Manager for Fragile {
    type Connection = Glass;
    type Error = Down;
    fn connect(&self, _: Duration) -> Result<Glass, Down> {
        Ok(Glass { dropped: Arc::clone(&self.0), broken: false })
    }
    fn validate(&self, _: &mut Glass, _: Duration) -> Result<(), Down> {
        Err(Down)
    }
    fn is_broken(&self, glass: &mut Glass) -> bool {
        glass.broken
    }
}

#[test]
fn a_connection_that_panics_when_it_is_dropped_costs_no_place_wherever_that_is() {
    let (clock, dropped) = (PausedClock::new(), Arc::new(AtomicUsize::new(0)));
    let builder = Pool::builder(Fragile(Arc::clone(&dropped))).max_size(1).clock(&clock).max_lifetime(SECOND * 10);
    let pool = builder.lifetime_jitter(0.0).idle_timeout(SECOND * 5).build().unwrap();
    let gone = |n, what| {
        until(|| dropped.load(Ordering::SeqCst) == n);
        until(|| pool.status().size == 0);
        assert_eq!(dropped.load(Ordering::SeqCst), n, "{what}");
    };
    pool.get().unwrap().discard();
    gone(1, "discarded");
    pool.get().unwrap().broken = true;
    gone(2, "broken");
    assert!(catch_unwind(AssertUnwindSafe(|| pool.with(|_| panic_on_purpose()))).is_err());
    gone(3, "its holder panicked");
    drop(pool.get().unwrap());
    until(|| clock.timers() == 1);
    clock.advance(SECOND * 5);
    gone(4, "idle for too long");
    let held = pool.get().unwrap();
    clock.advance(SECOND * 10);
    drop(held);
    gone(5, "too old");
    drop(pool.get().unwrap());
    clock.advance(SECOND);
    // Not valid any more: replaced by another one, which is given out.
    let held = pool.get().unwrap();
    assert_eq!(dropped.load(Ordering::SeqCst), 6);
    pool.soft_evict();
    drop(held);
    gone(7, "evicted");
    drop(pool.get().unwrap());
    pool.close();
    gone(8, "closed");
    let seen = pool.station().snapshot();
    assert!(seen.balanced() && seen.in_service() == 0, "{seen:?}");
}

#[test]
fn connections_that_are_dead_when_they_are_made_keep_nobody_busy_for_ever() {
    let (clock, db) = (PausedClock::new(), Db::new());
    // Connecting goes well, and nothing else does.
    db.on_validate(|_, _| Err(Down));
    db.on_is_broken(|_, _| true);
    let builder = pool(&db, &clock, 2).validate_after(Duration::ZERO).keepalive(SECOND * 30);
    let pool = builder.min_idle(1).build().unwrap();
    until(|| pool.status().available == 1);
    for calls in 0..20 {
        // The idle one is checked and found dead; the one that is made for the caller is the caller's problem.
        assert!(pool.get().is_ok());
        until(|| pool.status().connecting == 0 && pool.status().available == 1);
        assert!(db.connects() <= 1 + 3 * (calls + 1), "{} connects in {calls} calls", db.connects());
    }
    let before = db.connects();
    advance(&clock, SECOND * 30);
    db.wait(|db| db.connects() == before + 1);
    until(|| pool.status().available == 1);
    advance(&clock, SECOND * 29);
    assert_eq!(db.connects(), before + 1, "one for one that keepalive has found dead, and no loop");
    assert!(db.most() <= 2);
}

#[test]
fn a_validation_that_never_ends_holds_only_its_caller_and_one_place() {
    let (clock, db) = (PausedClock::new(), Db::new());
    let pool = pool(&db, &clock, 2).build().unwrap();
    drop(pool.get().unwrap());
    clock.advance(SECOND);
    let gate = db.stop_in_validate();
    thread::scope(|scope| {
        let stuck = scope.spawn(|| pool.get().map(drop));
        gate.wait();
        db.on_validate(|_, _| Ok(()));
        drop(pool.get().unwrap());
        let held = pool.get().unwrap();
        assert_eq!((held.serial, pool.status().size), (2, 2));
        assert!(pool.try_get().unwrap_err().is_full());
        gate.release();
        stuck.join().unwrap().unwrap();
    });
    assert_eq!((pool.status().available, db.connects()), (2, 2));
}

#[test]
fn checks_in_the_background_that_never_end_leave_the_threads_to_others() {
    let (clock, db) = (PausedClock::new(), Db::new());
    let gate = db.stop_in_validate();
    let background = Background::on(1, &clock).unwrap();
    let builder = pool(&db, &clock, 2).keepalive(SECOND * 30).idle_timeout(None);
    let pool = builder.background(&background).build().unwrap();
    drop(pool.get().unwrap());
    until(|| clock.timers() == 1);
    clock.advance(SECOND * 30);
    gate.wait();
    // Its place is taken; another one is made when the only thread has been given up: twice `validate_timeout`.
    thread::scope(|scope| {
        let caller = scope.spawn(|| pool.get().unwrap().serial);
        clock.wait_for_waiters(1);
        assert_eq!((pool.status().size, db.connects()), (2, 1));
        until(|| clock.timers() == 2);
        clock.advance(SECOND * 10);
        assert_eq!(caller.join().unwrap(), 2);
    });
    gate.release();
    until(|| pool.status().available == 2);
}

#[test]
fn closes_that_never_end_leave_the_threads_to_others() {
    let (clock, db) = (PausedClock::new(), Db::new());
    let gate = db.stop_in_close();
    let background = Background::on(1, &clock).unwrap();
    let builder = pool(&db, &clock, 2).idle_timeout(SECOND * 30).background(&background);
    let pool = builder.max_lifetime(None).build().unwrap();
    drop(pool.get().unwrap());
    until(|| clock.timers() == 1);
    clock.advance(SECOND * 30);
    gate.wait();
    db.on_close(|_, _| ());
    thread::scope(|scope| {
        let caller = scope.spawn(|| pool.get().unwrap().serial);
        clock.wait_for_waiters(1);
        assert_eq!((pool.status().size, db.connects()), (2, 1), "there is one thread");
        until(|| clock.timers() == 2);
        clock.advance(GIVEN_UP_AFTER);
        assert_eq!(caller.join().unwrap(), 2);
    });
    gate.release();
    until(|| pool.status().size == 1);
}

#[test]
fn a_close_that_never_ends_holds_up_only_the_one_who_needed_its_room() {
    let (clock, db) = (PausedClock::new(), Db::new());
    let gate = db.stop_in_close();
    let pool = keyed::<char>(&db, &clock, 1).build().unwrap();
    drop(pool.get(&'a').unwrap());
    thread::scope(|scope| {
        let caller = scope.spawn(|| pool.get(&'b').map(drop));
        gate.wait();
        clock.wait_for_waiters(1);
        clock.advance(GIVEN_UP_AFTER);
        assert!(caller.join().unwrap().unwrap_err().is_connect());
    });
    assert_eq!((pool.status().size, pool.status().stuck, pool.stats().connects_given_up), (0, 1, 1));
    // The room is there for the next one.
    assert_eq!(pool.get(&'c').unwrap().key, 'c');
    clock.advance(SECOND * 10);
    db.on_close(|_, _| ());
    assert_eq!(pool.get(&'b').unwrap().key, 'b');
    gate.release();
    until(|| pool.status().stuck == 0);
    assert_eq!((pool.status().size, db.live(), db.connects()), (1, 1, 3), "the first attempt was not gone on with");
}

#[test]
fn a_guard_may_be_dropped_on_another_thread() {
    let (clock, db) = (PausedClock::new(), Db::new());
    let pool = pool(&db, &clock, 2).build().unwrap();
    for _ in 0..3 {
        let held = [0; 2].map(|_| pool.get().unwrap());
        for one in held {
            thread::spawn(move || drop(one)).join().unwrap();
        }
        assert_eq!((pool.status().available, db.connects()), (2, 2));
    }
    // By a thread that panics, which is not its holder's fault.
    let one = pool.get().unwrap();
    let dying = thread::spawn(move || {
        let _one = one;
        panic_on_purpose()
    });
    assert!(dying.join().is_err());
    assert_eq!((pool.status().size, pool.stats().closed_panicked), (1, 1));
}

#[test]
fn what_becomes_of_the_connection_of_a_holder_that_panicked_can_be_chosen() {
    for (on_panic, serial, validates, closes) in
        [(OnPanic::Discard, 2, 0, 1), (OnPanic::Check, 1, 1, 0), (OnPanic::Return, 1, 0, 0)]
    {
        let (clock, db) = (PausedClock::new(), Db::new());
        let pool = pool(&db, &clock, 1).on_panic(on_panic).build().unwrap();
        let asked_by_another = || thread::scope(|scope| scope.spawn(|| pool.get().unwrap().serial).join().unwrap());
        assert!(catch_unwind(AssertUnwindSafe(|| pool.with(|_| panic_on_purpose()))).is_err());
        assert_eq!((asked_by_another(), db.validates(), db.closes()), (serial, validates, closes), "{on_panic:?}");
        assert_eq!((asked_by_another(), db.validates()), (serial, validates), "checked once");
        // A broken one goes in each case.
        let dying = catch_unwind(AssertUnwindSafe(|| {
            pool.with(|counted: &mut Counted| {
                counted.broken = true;
                panic_on_purpose()
            })
        }));
        assert!(dying.is_err());
        assert_eq!((pool.status().size, pool.stats().closed_broken), (0, 1), "{on_panic:?}");
    }
}

#[test]
fn one_that_fails_its_check_after_a_panic_is_replaced() {
    let (clock, db) = (PausedClock::new(), Db::new());
    let pool = pool(&db, &clock, 1).on_panic(OnPanic::Check).build().unwrap();
    assert!(catch_unwind(AssertUnwindSafe(|| pool.with(|_| panic_on_purpose()))).is_err());
    db.on_validate(|_, _| Err(Down));
    assert_eq!(pool.get().unwrap().serial, 2);
    assert_eq!((db.validates(), pool.stats().closed_invalid), (1, 1));
}

/// Those who wait for a connection that comes back while nothing can be made.
#[test]
fn nobody_is_told_that_it_is_down_while_there_is_a_connection() {
    for while_down in [WhileDown::Fail, WhileDown::Wait] {
        let (clock, db) = (PausedClock::new(), Db::new());
        let pool = pool(&db, &clock, 2).while_down(while_down).build().unwrap();
        let held = pool.get().unwrap();
        db.on_connect(|_, _| Err(Down));
        thread::scope(|scope| {
            let waiter = scope.spawn(|| pool.get().map(|got| got.serial));
            clock.wait_for_waiters(1);
            until(|| pool.stats().connect_failures == 1);
            drop(held);
            assert_eq!(waiter.join().unwrap().unwrap(), 1);
        });
    }
}
