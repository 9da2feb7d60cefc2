//! Transactions that are done again when they failed for a reason that passes.

use std::fmt;
use std::time::Duration;

use fullbore_core::{Backoff, Event, Monitor, Waiters};

use super::{TransactionError, Transactional};
use crate::pool::Pool;

impl<M: Transactional> Pool<M> {
    /// Transactions that are done again after an error of which `retry` says so, up to 5 times in all. It is not asked about
    /// [`TransactionError::InDoubt`]: that may be done already, and ends the attempts.
    ///
    /// ```no_run
    /// # #[cfg(feature = "postgres")] fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use fullbore_pool::{Pool, Postgres, TransactionError, Transactional};
    ///
    /// #[derive(Debug)]
    /// enum Sale {
    ///     Database(postgres::Error),
    ///     SoldOut,
    /// }
    /// let pool = Pool::builder(Postgres::new("postgres://localhost/shop")?).build()?;
    /// let conflict = |error: &TransactionError<Sale, _>| match error {
    ///     TransactionError::Body(Sale::Database(error)) | TransactionError::Commit(error) => {
    ///         pool.manager().is_serialization_failure(error)
    ///     }
    ///     _ => false,
    /// };
    /// let sold = pool.retry_on(conflict).attempts(3).transaction(|tx| {
    ///     let sell = "UPDATE stock SET left = left - 1 WHERE id = $1 AND left > 0";
    ///     match tx.execute(sell, &[&7]).map_err(Sale::Database)? {
    ///         0 => Err(Sale::SoldOut),
    ///         _ => Ok(()),
    ///     }
    /// });
    /// # drop(sold); Ok(()) }
    /// # #[cfg(not(feature = "postgres"))] fn main() {}
    /// ```
    pub fn retry_on<E, P>(&self, retry: P) -> Retry<'_, M, P>
    where
        P: Fn(&TransactionError<E, M::Error>) -> bool,
    {
        let backoff = Backoff { min: Duration::from_millis(10), max: Duration::from_secs(1), jitter: true };
        Retry { pool: self, retry, attempts: 5, backoff }
    }

    /// Transactions that are done again when the database gave them up for the sake of others at the same time
    /// ([`Transactional::is_serialization_failure`]), up to 5 times in all: for PostgreSQL a serialization failure or a
    /// deadlock, for SQLite a lock that was not to be had, which comes after the `busy_timeout` if waiting could have helped.
    ///
    /// The body's error is the driver's, and the body must pass it on: in a transaction whose failure it keeps to itself the
    /// next statement, or the commit, fails for another reason. For errors of your own there is
    /// [`retry_on`](Self::retry_on).
    ///
    /// ```no_run
    /// # #[cfg(feature = "postgres")] fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use fullbore_pool::{Pool, Postgres};
    ///
    /// let pool = Pool::builder(Postgres::new("postgres://localhost/shop")?).build()?;
    /// pool.retry_serialization().transaction(|tx| {
    ///     tx.batch_execute("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE")?;
    ///     let on_call: i64 = tx.query_one("SELECT count(*) FROM doctors WHERE on_call", &[])?.get(0);
    ///     if on_call > 1 {
    ///         tx.execute("UPDATE doctors SET on_call = false WHERE id = $1", &[&7])?;
    ///     }
    ///     Ok(())
    /// })?;
    /// # Ok(()) }
    /// # #[cfg(not(feature = "postgres"))] fn main() {}
    /// ```
    #[expect(clippy::type_complexity, reason = "what a closure makes of it has no other name")]
    pub fn retry_serialization(&self) -> Retry<'_, M, impl Fn(&TransactionError<M::Error, M::Error>) -> bool> {
        self.retry_on(|error| match error {
            TransactionError::Begin(error) | TransactionError::Body(error) | TransactionError::Commit(error) => {
                self.manager().is_serialization_failure(error)
            }
            TransactionError::Get(_) | TransactionError::InDoubt(_) => false,
        })
    }
}

/// Runs transactions of a [`Pool`], and some of them again. Made by [`Pool::retry_on`] and [`Pool::retry_serialization`].
#[must_use = "it does nothing before transaction()"]
pub struct Retry<'p, M: Transactional, P> {
    pool: &'p Pool<M>,
    retry: P,
    attempts: u32,
    backoff: Backoff,
}

impl<M: Transactional, P> Retry<'_, M, P> {
    /// How many times a transaction is done in all, the first time included; 1 is never again, and so is 0. More help against
    /// more rivals for the same rows, and keep a caller longer who has no chance.
    ///
    /// Default: 5.
    pub fn attempts(mut self, attempts: u32) -> Self {
        self.attempts = attempts;
        self
    }

    /// The pauses between attempts, in which no connection is held. Choose a first one as long as the transaction takes, so
    /// that whoever was in the way is done; jitter keeps those apart who failed together.
    ///
    /// Default: 10 ms, doubling up to 1 s, each lengthened by a random part of itself.
    pub fn backoff(mut self, backoff: Backoff) -> Self {
        self.backoff = backoff;
        self
    }

    /// As [`Pool::transaction`], as many times as it takes, within [`attempts`](Self::attempts). What `body` did outside the
    /// transaction is not undone between two attempts.
    ///
    /// Each attempt takes a connection for itself and has the whole of the pool's `get_timeout` for that, so all of them may wait
    /// `attempts` times as long, and the pauses. Closing the pool does not cut a pause short; the attempt after it finds the
    /// pool closed.
    ///
    /// # Errors
    /// As [`Pool::transaction`]: that of the last attempt. [`TransactionError::InDoubt`] is always the last.
    ///
    /// # Panics
    /// As [`Pool::transaction`], without another attempt; or if the question whether to retry does.
    pub fn transaction<R, E>(
        &self,
        mut body: impl FnMut(&mut M::Transaction<'_>) -> Result<R, E>,
    ) -> Result<R, TransactionError<E, M::Error>>
    where
        P: Fn(&TransactionError<E, M::Error>) -> bool,
    {
        let mut attempt = 1;
        loop {
            let error = match self.pool.transaction(&mut body) {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            if attempt >= self.attempts || error.is_in_doubt() || !(self.retry)(&error) {
                return Err(error);
            }
            self.pause(attempt, &error);
            attempt += 1;
        }
    }

    /// The pause after this attempt.
    fn pause<E>(&self, attempt: u32, error: &TransactionError<E, M::Error>) {
        let pause = self.backoff.pause(attempt);
        let shared = self.pool.keyed.shared();
        shared.events.emit(Event::Retry, || {
            let (of, why) = (self.attempts, Why(error));
            format!("attempt {attempt} of {of} of a transaction failed, the next in {pause:.1?}: {why}")
        });
        let until = shared.clock.after(pause);
        let rest = Monitor::new(Waiters::new(), shared.clock.clone());
        rest.lock().wait_until(|rest| rest, until, |_| false);
    }
}

/// An error as text, but for the body's own: that need not have any.
struct Why<'a, E, D>(&'a TransactionError<E, D>);

impl<E, D: fmt::Display> fmt::Display for Why<'_, E, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            TransactionError::Get(error) => write!(f, "{error}"),
            TransactionError::Body(_) => f.write_str("an error of its body"),
            TransactionError::Begin(error) | TransactionError::Commit(error) | TransactionError::InDoubt(error) => {
                write!(f, "{error}")
            }
        }
    }
}

impl<M: Transactional, P> fmt::Debug for Retry<'_, M, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Retry")
            .field("pool", &self.pool)
            .field("attempts", &self.attempts)
            .field("backoff", &self.backoff)
            .finish_non_exhaustive()
    }
}
