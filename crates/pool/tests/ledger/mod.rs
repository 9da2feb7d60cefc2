//! Transactions that insert numbered rows while the server goes down and comes back, and what became of each.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use fullbore_core::Backoff;
use fullbore_pool::{Pool, Postgres, TransactionError};

type Error = ::postgres::Error;

const THREADS: i64 = 8;
/// So many are committed before each disaster, and after the last one.
const COMMITS: usize = 100;

/// What the callers were told.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    committed: BTreeSet<i64>,
    rolled_back: BTreeSet<i64>,
    in_doubt: BTreeSet<i64>,
}

enum Told {
    Committed,
    RolledBack,
    InDoubt,
}

pub(crate) fn create(client: &mut ::postgres::Client) {
    let tables = "CREATE TABLE t (id bigint PRIMARY KEY); CREATE TABLE sums (worker bigint PRIMARY KEY, n bigint);
        INSERT INTO sums SELECT worker, 0 FROM generate_series(0, 7) worker";
    client.batch_execute(tables).unwrap();
}

/// Two tables in one transaction: a row, and the number of rows.
fn enter(tx: &mut ::postgres::Transaction<'_>, worker: i64, id: i64) -> Result<(), Error> {
    tx.execute("INSERT INTO t VALUES ($1)", &[&id])?;
    tx.execute("UPDATE sums SET n = n + 1 WHERE worker = $1", &[&worker])?;
    Ok(())
}

impl Ledger {
    /// Runs the load through the disasters, each in the middle of it. After one the load must go on by itself.
    pub(crate) fn keep(pool: &Pool<Postgres>, disasters: &[&dyn Fn()]) -> Self {
        let (enough, told) = (AtomicBool::new(false), mpsc::channel());
        let (tell, hear) = told;
        let mut ledger = Self::default();
        thread::scope(|scope| {
            for worker in 0..THREADS {
                let (enough, tell) = (&enough, tell.clone());
                scope.spawn(move || {
                    // Nothing was done then, so that a number is used only where there is something to tell.
                    let is_down = |error: &TransactionError<Error, Error>| match error {
                        TransactionError::Get(error) => error.connect_error().is_some(),
                        error => matches!(error, TransactionError::Begin(_)),
                    };
                    let backoff =
                        Backoff { min: Duration::from_millis(5), max: Duration::from_millis(50), jitter: true };
                    let patient = pool.retry_on(is_down).attempts(u32::MAX).backoff(backoff);
                    for n in 0.. {
                        if enough.load(Ordering::Relaxed) {
                            break;
                        }
                        let id = worker * 1_000_000_000 + n;
                        let became = match patient.transaction(|tx| enter(tx, worker, id)) {
                            Ok(()) => Told::Committed,
                            Err(TransactionError::InDoubt(_)) => Told::InDoubt,
                            Err(TransactionError::Body(error)) => {
                                assert!(
                                    error.as_db_error().is_none_or(|answer| answer.code().code() != "23505"),
                                    "{error}"
                                );
                                Told::RolledBack
                            }
                            Err(TransactionError::Commit(_)) => Told::RolledBack,
                            Err(error) => panic!("{error}"),
                        };
                        tell.send((id, became)).unwrap();
                    }
                });
            }
            drop(tell);
            for disaster in disasters {
                ledger.hear(&hear);
                disaster();
                // What was told before it, or during it, does not show that the load goes on.
                hear.try_iter().for_each(|(id, became)| ledger.note(id, &became));
            }
            ledger.hear(&hear);
            enough.store(true, Ordering::Relaxed);
            hear.iter().for_each(|(id, became)| ledger.note(id, &became));
        });
        ledger
    }

    fn hear(&mut self, hear: &mpsc::Receiver<(i64, Told)>) {
        let before = self.committed.len();
        while self.committed.len() < before + COMMITS {
            let (id, became) = hear.recv().unwrap();
            self.note(id, &became);
        }
    }

    fn note(&mut self, id: i64, became: &Told) {
        let book = match became {
            Told::Committed => &mut self.committed,
            Told::RolledBack => &mut self.rolled_back,
            Told::InDoubt => &mut self.in_doubt,
        };
        assert!(book.insert(id));
    }

    /// Compares with what is in the database.
    pub(crate) fn audit(&self, client: &mut ::postgres::Client) {
        // In one snapshot: an end in doubt may come to its commit even now.
        let mut tx =
            client.build_transaction().isolation_level(::postgres::IsolationLevel::RepeatableRead).start().unwrap();
        let there: BTreeSet<i64> =
            tx.query("SELECT id FROM t", &[]).unwrap().iter().map(|row| row.get::<_, i64>(0)).collect();
        let sum: i64 = tx.query_one("SELECT sum(n)::bigint FROM sums", &[]).unwrap().get(0);
        tx.commit().unwrap();
        let told = format!(
            "committed {}, rolled back {}, in doubt {}",
            self.committed.len(),
            self.rolled_back.len(),
            self.in_doubt.len()
        );
        println!("{told}");
        let lost: Vec<_> = self.committed.difference(&there).collect();
        assert!(lost.is_empty(), "{told}: committed and not there: {lost:?}");
        let ghosts: Vec<_> = self.rolled_back.intersection(&there).collect();
        assert!(ghosts.is_empty(), "{told}: rolled back and there: {ghosts:?}");
        let unknown: Vec<_> =
            there.iter().filter(|id| !self.committed.contains(id) && !self.in_doubt.contains(id)).collect();
        assert!(unknown.is_empty(), "{told}: nobody was told of {unknown:?}");
        assert_eq!(usize::try_from(sum).unwrap(), there.len(), "{told}: half a transaction");
    }
}
