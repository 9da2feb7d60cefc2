//! A batch into SQLite, in one transaction.

use std::fmt;
use std::ops::DerefMut;
use std::sync::Arc;

use rusqlite::{Connection, Error, ErrorCode, Params, Statement, TransactionBehavior};

use crate::batch::Batch;
use crate::write::{Cause, NOT_PASSED_ON, WriteError, Written};

type MakeRows<T> = dyn Fn(&T, &mut SqliteRow<'_, '_>) -> Result<(), Cause> + Send + Sync;

/// Writes a batch into SQLite in one transaction: all of it or nothing, and one sync to disk instead of one for each item.
///
/// The statement is prepared once for each connection (`rusqlite` keeps it in the connection's cache) and run for each row. It
/// need not be an insert: an upsert, an update or a delete will do.
///
/// ```
/// use fullbore_batch::{Batch, Batcher, SqliteInsert};
/// # use rusqlite::Connection;
/// use std::sync::Mutex;
///
/// # let database = Connection::open_in_memory()?;
/// # database.execute_batch("CREATE TABLE readings (sensor INTEGER, value REAL)")?;
/// let insert = SqliteInsert::new("INSERT INTO readings VALUES (?1, ?2)", |(sensor, value): &(i64, f64), row| {
///     row.put((sensor, value))
/// });
/// let database = Mutex::new(database);
/// let batcher = Batcher::builder().build(move |rows: Batch<_>| insert.write(&mut database.lock().unwrap(), &rows))?;
/// batcher.call((7, 21.5))?; // it is in the database, and as safe as `PRAGMA synchronous` says
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// With a pool: `.build(insert.through(move || pool.get()))`.
pub struct SqliteInsert<T> {
    sql: String,
    rows: Arc<MakeRows<T>>,
    idempotent: bool,
}

/// Where the rows of an item go. See [`SqliteInsert::new`].
pub struct SqliteRow<'s, 'c> {
    statement: &'s mut Statement<'c>,
    written: u64,
    failed: bool,
}

impl<T> SqliteInsert<T> {
    /// The statement, and what makes an item's rows: `rows` calls [`SqliteRow::put`] once for each row, so usually once. An
    /// error of it, of whatever type, fails the batch. It runs inside the transaction and should not wait; a panic rolls
    /// back.
    pub fn new<F>(sql: impl Into<String>, rows: F) -> Self
    where
        F: Fn(&T, &mut SqliteRow<'_, '_>) -> Result<(), Box<dyn std::error::Error + Send + Sync>>,
        F: Send + Sync + 'static,
    {
        Self { sql: sql.into(), rows: Arc::new(rows), idempotent: false }
    }

    /// Says that writing a batch twice is the same as once, because of a key with `ON CONFLICT` for example. Only then may a
    /// batch be retried that is in doubt.
    ///
    /// Default: no.
    #[must_use]
    pub fn idempotent(mut self, yes: bool) -> Self {
        self.idempotent = yes;
        self
    }

    /// Writes `items` in a transaction of its own (`BEGIN IMMEDIATE`) and commits. Nothing is begun for no items.
    ///
    /// It waits for another connection's lock as long as the connection's `busy_timeout` says.
    ///
    /// # Errors
    /// Nothing is written, and [`WriteError::item`] says because of which item if it was one; or the commit met an
    /// input/output error, and it is in doubt: the rows are not to be seen now, but after a crash they may be.
    pub fn write(&self, connection: &mut Connection, items: &[T]) -> Result<Written, WriteError> {
        if items.is_empty() {
            return Ok(Written::default());
        }
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(not_written)?;
        let written = self.write_in(&transaction, items)?;
        transaction.commit().map_err(|error| commit_failed(error, self.idempotent))?;
        Ok(written)
    }

    /// Writes `items` in a transaction of yours, so that they are in it with what else you write. Roll it back after an
    /// error: part of the items may be written.
    ///
    /// # Errors
    /// As [`write`](Self::write), and never in doubt.
    pub fn write_in(&self, transaction: &Connection, items: &[T]) -> Result<Written, WriteError> {
        let mut statement = transaction.prepare_cached(&self.sql).map_err(not_written)?;
        let mut row = SqliteRow { statement: &mut statement, written: 0, failed: false };
        for (place, item) in items.iter().enumerate() {
            let made = (self.rows)(item, &mut row);
            // After some errors SQLite has ended the transaction: what came next would be in none.
            let made = if row.failed { made.and(Err(NOT_PASSED_ON.into())) } else { made };
            made.map_err(|cause| {
                let permanent = cause.downcast_ref().is_none_or(is_permanent);
                let error = WriteError::not_written(cause).permanent(permanent);
                // A full disk is nobody's fault.
                if permanent { error.at_item(place) } else { error }
            })?;
        }
        Ok(Written::new(row.written))
    }

    /// A process function that takes a connection for each batch, of a pool for example. That there is none is an error
    /// like another: nothing is written.
    pub fn through<C, E>(
        self,
        connect: impl Fn() -> Result<C, E> + Send + Sync + 'static,
    ) -> impl Fn(Batch<T>) -> Result<Written, WriteError> + Send + Sync + 'static
    where
        T: 'static,
        C: DerefMut<Target = Connection>,
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        move |items| {
            let mut connection = connect().map_err(WriteError::not_written)?;
            self.write(&mut connection, &items)
        }
    }
}

impl SqliteRow<'_, '_> {
    /// Writes a row with these parameters of the statement: a tuple, an array, or `rusqlite::params!`.
    ///
    /// # Errors
    /// What SQLite says. To be passed on: the batch is not written, either way.
    pub fn put(&mut self, parameters: impl Params) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let changed = self.statement.execute(parameters);
        self.failed |= changed.is_err();
        self.written += changed? as u64;
        Ok(())
    }
}

fn not_written(error: Error) -> WriteError {
    let permanent = is_permanent(&error);
    WriteError::not_written(error).permanent(permanent)
}

/// The database is in this process, so that a commit that fails has not happened. Except for one whose input or output
/// failed: the pages may have reached the disk all the same, and are taken for committed after a crash.
fn commit_failed(error: Error, idempotent: bool) -> WriteError {
    match error.sqlite_error_code() {
        Some(ErrorCode::SystemIoFailure) => WriteError::in_doubt(error).idempotent(idempotent),
        _ => not_written(error),
    }
}

/// Whether nobody but us can change it.
fn is_permanent(error: &Error) -> bool {
    !matches!(
        error.sqlite_error_code(),
        Some(
            ErrorCode::DatabaseBusy
                | ErrorCode::DatabaseLocked
                | ErrorCode::FileLockingProtocolFailed
                | ErrorCode::SchemaChanged
                | ErrorCode::OutOfMemory
                | ErrorCode::DiskFull
                | ErrorCode::CannotOpen
                | ErrorCode::OperationInterrupted
                | ErrorCode::OperationAborted
                | ErrorCode::SystemIoFailure
        )
    )
}

impl<T> Clone for SqliteInsert<T> {
    fn clone(&self) -> Self {
        Self { sql: self.sql.clone(), rows: Arc::clone(&self.rows), idempotent: self.idempotent }
    }
}

impl<T> fmt::Debug for SqliteInsert<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteInsert")
            .field("sql", &self.sql)
            .field("idempotent", &self.idempotent)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for SqliteRow<'_, '_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteRow").field("written", &self.written).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use rusqlite::ffi;

    use super::*;
    use crate::retryable::Retryable;

    fn failure(code: i32) -> Error {
        Error::SqliteFailure(ffi::Error::new(code), None)
    }

    #[test]
    fn a_commit_is_in_doubt_after_an_input_or_output_error_only() {
        for (code, in_doubt, permanent) in [
            (ffi::SQLITE_IOERR_FSYNC, true, false),
            (ffi::SQLITE_IOERR_WRITE, true, false),
            (ffi::SQLITE_BUSY, false, false),
            (ffi::SQLITE_FULL, false, false),
            (ffi::SQLITE_CONSTRAINT_FOREIGNKEY, false, true),
        ] {
            let error = commit_failed(failure(code), false);
            assert_eq!((error.is_in_doubt(), error.is_permanent()), (in_doubt, permanent), "{error}");
            assert_eq!(error.may_retry(), !in_doubt, "{error}");
            assert!(commit_failed(failure(code), true).may_retry(), "{error}");
        }
    }
}
