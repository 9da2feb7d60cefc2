//! A connection just for one transaction.

mod error;
mod retry;

pub use error::TransactionError;
pub use retry::Retry;

use crate::manager::Manager;
use crate::pool::Pool;

/// A [`Manager`] whose connections have transactions.
pub trait Transactional: Manager {
    /// The driver's own transaction. Dropped, also by a panic, it must roll back.
    type Transaction<'c>;

    /// Begins one.
    ///
    /// # Errors
    /// What the database says.
    fn begin<'c>(&self, connection: &'c mut Self::Connection) -> Result<Self::Transaction<'c>, Self::Error>;

    /// Commits it. `Ok` only if it is committed: where the database quietly rolls back what has failed before, this fails.
    ///
    /// # Errors
    /// What the database says, or that it says nothing more: see [`outcome_unknown`](Self::outcome_unknown).
    fn commit(&self, transaction: Self::Transaction<'_>) -> Result<(), Self::Error>;

    /// Rolls it back.
    ///
    /// # Errors
    /// What the database says; the connection is closed then.
    fn rollback(&self, transaction: Self::Transaction<'_>) -> Result<(), Self::Error>;

    /// Whether this error of [`commit`](Self::commit) leaves open if the transaction was committed: the connection broke,
    /// and not: the database refused.
    fn outcome_unknown(&self, error: &Self::Error) -> bool;

    /// Whether the database gave this transaction up for the sake of others at the same time, so that the same may well succeed
    /// when it is done again: a serialization failure, a deadlock, a lock not to be had. Asked by
    /// [`Pool::retry_serialization`]. Default: no error is one.
    fn is_serialization_failure(&self, error: &Self::Error) -> bool {
        let _ = error;
        false
    }
}

impl<M: Transactional> Pool<M> {
    /// Runs `body` in a transaction, on a connection that is held for that long only: commits on `Ok`, rolls back on `Err`
    /// and on panic (which goes on).
    ///
    /// # Errors
    /// No connection, the body's own error, or the database's; [`TransactionError::InDoubt`] when the connection was lost
    /// during COMMIT. Nothing is tried again; [`retry_serialization`](Self::retry_serialization) and
    /// [`retry_on`](Self::retry_on) do that.
    ///
    /// # Panics
    /// If `body` or the manager does; it is rolled back, and its connection closed.
    pub fn transaction<R, E>(
        &self,
        body: impl FnOnce(&mut M::Transaction<'_>) -> Result<R, E>,
    ) -> Result<R, TransactionError<E, M::Error>> {
        let mut connection = self.get().map_err(TransactionError::Get)?;
        let (outcome, healthy) = run(self.manager(), &mut connection, body);
        if !healthy {
            connection.discard();
        }
        outcome
    }
}

/// Runs the transaction and says whether the connection can be used again.
fn run<M: Transactional, R, E>(
    manager: &M,
    connection: &mut M::Connection,
    body: impl FnOnce(&mut M::Transaction<'_>) -> Result<R, E>,
) -> (Result<R, TransactionError<E, M::Error>>, bool) {
    let mut transaction = match manager.begin(connection) {
        Ok(transaction) => transaction,
        Err(error) => return (Err(TransactionError::Begin(error)), false),
    };
    match body(&mut transaction) {
        Ok(value) => match manager.commit(transaction) {
            Ok(()) => (Ok(value), true),
            Err(error) if manager.outcome_unknown(&error) => (Err(TransactionError::InDoubt(error)), false),
            Err(error) => (Err(TransactionError::Commit(error)), true),
        },
        Err(error) => {
            let healthy = manager.rollback(transaction).is_ok();
            (Err(TransactionError::Body(error)), healthy)
        }
    }
}
