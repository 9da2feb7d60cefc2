//! Transactions that are tried again, with a database that does what the test says.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

use fullbore_core::{Backoff, PausedClock};
use fullbore_pool::{Manager, Pool, PoolBuilder, TransactionError, Transactional};
use support::{Counted, Db, Down, Fake, panic_on_purpose};

const MILLI: Duration = Duration::from_millis(1);
const NO_PAUSE: Backoff = Backoff { min: Duration::ZERO, max: Duration::ZERO, jitter: false };

/// What the database says. `Down` is what the manager says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Says {
    Fine,
    Conflict,
    Refused,
    Lost,
}

impl std::fmt::Display for Says {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the database says {self:?}")
    }
}

impl std::error::Error for Says {}

impl From<Down> for Says {
    fn from(_: Down) -> Self {
        Says::Refused
    }
}

/// A database with transactions, in which COMMIT is answered as the transaction says.
struct Banked(Fake);

/// What its COMMIT will be answered with.
struct Tx {
    commit: Says,
}

impl Manager for Banked {
    type Connection = Counted;
    type Error = Says;

    fn connect(&self, budget: Duration) -> Result<Counted, Says> {
        Ok(self.0.connect(budget)?)
    }

    fn validate(&self, counted: &mut Counted, budget: Duration) -> Result<(), Says> {
        Ok(self.0.validate(counted, budget)?)
    }

    fn close(&self, counted: Counted) {
        self.0.close(counted);
    }
}

impl Transactional for Banked {
    type Transaction<'c> = Tx;

    fn begin(&self, _: &mut Counted) -> Result<Tx, Says> {
        Ok(Tx { commit: Says::Fine })
    }

    fn commit(&self, tx: Tx) -> Result<(), Says> {
        if tx.commit == Says::Fine { Ok(()) } else { Err(tx.commit) }
    }

    fn rollback(&self, _: Tx) -> Result<(), Says> {
        Ok(())
    }

    fn outcome_unknown(&self, error: &Says) -> bool {
        *error == Says::Lost
    }

    fn is_serialization_failure(&self, error: &Says) -> bool {
        // Of a lost one too: that it is not asked then is what the tests are for.
        matches!(error, Says::Conflict | Says::Lost)
    }
}

fn builder(db: &Arc<Db>, max_size: usize) -> PoolBuilder<Pool<Banked>> {
    Pool::builder(Banked(Fake(Arc::clone(db)))).name("bank").max_size(max_size)
}

fn pool(db: &Arc<Db>, max_size: usize) -> Pool<Banked> {
    builder(db, max_size).build().unwrap()
}

#[test]
fn it_is_done_again_until_it_is_done() {
    let db = Db::new();
    let pool = pool(&db, 1);
    for at_commit in [false, true] {
        let mut attempts = 0;
        let done = pool.retry_serialization().backoff(NO_PAUSE).transaction(|tx| {
            attempts += 1;
            if attempts > 4 {
                return Ok(attempts);
            }
            tx.commit = Says::Conflict;
            if at_commit { Ok(attempts) } else { Err(Says::Conflict) }
        });
        assert_eq!((done.unwrap(), attempts), (5, 5), "at commit: {at_commit}");
    }
    assert_eq!((db.connects(), pool.status().available), (1, 1), "a conflict costs no connection");
}

#[test]
fn attempts_are_bounded_and_the_last_error_comes_back() {
    let pool = pool(&Db::new(), 1);
    for (wish, expected) in [(None, 5), (Some(0), 1), (Some(1), 1), (Some(2), 2), (Some(9), 9)] {
        let mut attempts = 0;
        let retry = pool.retry_on(|error| matches!(error, TransactionError::Body(_))).backoff(NO_PAUSE);
        let retry = wish.into_iter().fold(retry, |retry, wish| retry.attempts(wish));
        let error = retry
            .transaction(|_| {
                attempts += 1;
                Err::<(), u32>(attempts)
            })
            .unwrap_err();
        assert_eq!((error.body_error(), attempts), (Some(&expected), expected), "{wish:?}");
    }
}

#[test]
fn what_is_in_doubt_is_never_done_again_and_nobody_is_asked() {
    let db = Db::new();
    let pool = pool(&db, 1);
    let mut attempts = 0;
    let mut in_doubt = |tx: &mut Tx| {
        attempts += 1;
        tx.commit = Says::Lost;
        Ok::<_, Says>(())
    };
    let error = pool.retry_serialization().transaction(&mut in_doubt).unwrap_err();
    assert!(error.is_in_doubt() && error.driver_error() == Some(&Says::Lost), "{error}");
    let asked = Cell::new(false);
    let always = |_: &_| !asked.replace(true);
    assert!(pool.retry_on(always).transaction(&mut in_doubt).unwrap_err().is_in_doubt());
    assert!(!asked.get());
    assert_eq!((attempts, pool.status().size, db.closes()), (2, 0, 2));
}

#[test]
fn other_errors_are_not_done_again() {
    let db = Db::new();
    let pool = pool(&db, 1);
    for says in [Says::Refused, Says::Lost] {
        let mut attempts = 0;
        let error = pool
            .retry_on(|error: &TransactionError<Says, _>| error.driver_error() == Some(&Says::Conflict))
            .transaction(|tx| {
                attempts += 1;
                tx.commit = says;
                Ok::<_, Says>(())
            })
            .unwrap_err();
        assert_eq!((error.driver_error(), attempts), (Some(&says), 1));
    }
    let mut attempts = 0;
    let error = pool.retry_serialization().transaction(|_| {
        attempts += 1;
        Err::<(), _>(Says::Refused)
    });
    assert!(matches!(error.unwrap_err(), TransactionError::Body(Says::Refused)));
    assert_eq!(attempts, 1);
}

#[test]
fn no_connection_is_an_error_like_another() {
    let db = Db::new();
    db.on_connect(|counted, _| if counted.serial < 3 { Err(Down) } else { Ok(()) });
    let clock = PausedClock::new();
    let pool = builder(&db, 1).clock(&clock).build().unwrap();
    let nothing = |_: &mut Tx| Ok::<_, Says>(());
    let error = pool.retry_serialization().transaction(nothing).unwrap_err();
    assert!(matches!(error, TransactionError::Get(_)), "that is no conflict: {error}");
    let no_connection = |error: &TransactionError<Says, _>| matches!(error, TransactionError::Get(_));
    // Until then it is told of the first failure, without an attempt.
    clock.advance(Duration::from_secs(1));
    let question = |error: &TransactionError<Says, _>| {
        clock.advance(Duration::from_secs(1));
        no_connection(error)
    };
    pool.retry_on(question).backoff(NO_PAUSE).transaction(nothing).unwrap();
    assert_eq!(db.connects(), 3);
}

#[test]
fn a_panic_of_the_body_or_of_the_question_goes_on_and_costs_no_place() {
    let db = Db::new();
    let pool = pool(&db, 1);
    let mut attempts = 0;
    let body = catch_unwind(AssertUnwindSafe(|| {
        pool.retry_serialization().backoff(NO_PAUSE).transaction(|_| {
            attempts += 1;
            if attempts == 2 {
                panic_on_purpose();
            }
            Err::<(), _>(Says::Conflict)
        })
    }));
    assert!(body.is_err());
    assert_eq!((attempts, pool.status().size), (2, 0), "its connection is closed");
    let question = catch_unwind(AssertUnwindSafe(|| {
        pool.retry_on(|_| panic_on_purpose()).transaction(|_| Err::<(), _>(Says::Conflict))
    }));
    assert!(question.is_err());
    assert_eq!((pool.status().size, pool.status().available), (1, 1));
}

#[test]
fn pauses_are_on_the_clock_and_without_a_connection() {
    let db = Db::new();
    let clock = PausedClock::new();
    let pool = builder(&db, 1).clock(&clock).build().unwrap();
    let backoff = Backoff { min: 10 * MILLI, max: 35 * MILLI, jitter: false };
    let attempts = AtomicU32::new(0);
    thread::scope(|scope| {
        let transaction = scope.spawn(|| {
            let retry = pool.retry_serialization().backoff(backoff);
            retry.transaction(|_| if attempts.fetch_add(1, SeqCst) < 4 { Err(Says::Conflict) } else { Ok(()) })
        });
        for (done, pause) in [(1, 10), (2, 20), (3, 35), (4, 35)] {
            wait_for_pause(&clock, &attempts, done);
            clock.advance((pause - 1) * MILLI);
            // Still parked, and not woken.
            wait_for_pause(&clock, &attempts, done);
            // Somebody else can have it meanwhile.
            drop(pool.try_get().unwrap());
            clock.advance(MILLI);
        }
        transaction.join().unwrap().unwrap();
    });
    assert_eq!((db.connects(), attempts.load(SeqCst)), (1, 5));
}

/// Waits until so many attempts are done and the thread rests. Before the first one it waits for a connection.
fn wait_for_pause(clock: &PausedClock, attempts: &AtomicU32, done: u32) {
    loop {
        clock.wait_for_waiters(1);
        match attempts.load(SeqCst) {
            n if n == done => return,
            n => assert!(n < done, "{n} attempts instead of {done}"),
        }
        thread::yield_now();
    }
}

#[test]
fn a_pool_that_is_closed_in_a_pause_ends_it() {
    let clock = PausedClock::new();
    let pool = builder(&Db::new(), 1).clock(&clock).build().unwrap();
    thread::scope(|scope| {
        let transaction = scope.spawn(|| {
            let retry = pool.retry_serialization();
            retry.transaction(|_| Err::<(), _>(Says::Conflict))
        });
        clock.wait_for_waiters(1);
        pool.close();
        clock.advance(20 * MILLI);
        let error = transaction.join().unwrap().unwrap_err();
        assert!(matches!(&error, TransactionError::Get(error) if error.is_closed()), "{error}");
    });
}

#[test]
fn one_retry_serves_many_transactions() {
    let pool = pool(&Db::new(), 2);
    let retry = pool.retry_serialization().attempts(2).backoff(NO_PAUSE);
    assert!(format!("{retry:?}").contains("attempts: 2"));
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut attempts = 0;
                let done = retry.transaction(|_| {
                    attempts += 1;
                    if attempts < 2 { Err(Says::Conflict) } else { Ok(()) }
                });
                done.unwrap();
            });
        }
    });
}

#[cfg(feature = "tracing")]
#[test]
fn c11_retries_can_be_followed() {
    let pool = pool(&Db::new(), 1);
    let events = fullbore_testkit::events::capture(|| {
        let mut attempts = 0;
        let retry = pool.retry_serialization().backoff(NO_PAUSE);
        let done = retry.transaction(|tx| {
            attempts += 1;
            tx.commit = if attempts < 4 { Says::Conflict } else { Says::Fine };
            Ok::<_, Says>(())
        });
        done.unwrap();
        pool.transaction(|_| Ok::<_, Says>(())).unwrap();
    });
    assert_eq!(events.len(), 1, "rate-limited: {events:?}");
    for part in ["retry", "bank", "attempt 1 of 5", "the database says Conflict"] {
        assert!(events[0].contains(part), "no {part} in {events:?}");
    }
}
