//! SQLite through `rusqlite`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{ErrorCode, OpenFlags, Transaction};

use crate::manager::Manager;
use crate::transaction::Transactional;

/// How long a statement waits for a lock of another connection, unless the setup SQL says otherwise.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Connections to one SQLite file. A connection that comes back inside a transaction is closed, not passed on.
#[derive(Clone, Debug)]
pub struct Sqlite {
    path: PathBuf,
    flags: OpenFlags,
    setup: String,
}

impl Sqlite {
    /// The file at `path`, made if it is not there.
    #[must_use]
    pub fn new(path: impl AsRef<Path>) -> Self {
        Self { path: path.as_ref().to_owned(), flags: OpenFlags::default(), setup: String::new() }
    }

    /// Open with these flags. Default: read, write, create.
    #[must_use]
    pub fn flags(mut self, flags: OpenFlags) -> Self {
        self.flags = flags;
        self
    }

    /// SQL that each new connection runs first, for example PRAGMAs. Default: none, with a `busy_timeout` of 5 s.
    #[must_use]
    pub fn setup(mut self, sql: impl Into<String>) -> Self {
        self.setup = sql.into();
        self
    }
}

impl Manager for Sqlite {
    type Connection = rusqlite::Connection;
    type Error = rusqlite::Error;

    fn connect(&self, budget: Duration) -> Result<Self::Connection, Self::Error> {
        let connection = rusqlite::Connection::open_with_flags(&self.path, self.flags)?;
        let at_first = budget.min(BUSY_TIMEOUT);
        connection.busy_timeout(at_first)?;
        connection.execute_batch(&self.setup)?;
        // The budget was that of connecting. What `setup` chose stays.
        let now: i64 = connection.pragma_query_value(None, "busy_timeout", |row| row.get(0))?;
        if u128::from(now.unsigned_abs()) == at_first.as_millis() {
            connection.busy_timeout(BUSY_TIMEOUT)?;
        }
        Ok(connection)
    }

    fn validate(&self, connection: &mut Self::Connection, _: Duration) -> Result<(), Self::Error> {
        connection.query_row("SELECT 1", [], |_| Ok(()))
    }

    fn is_broken(&self, connection: &mut Self::Connection) -> bool {
        // Left inside a transaction by its last user: not fit for the next one.
        !connection.is_autocommit()
    }
}

impl Transactional for Sqlite {
    type Transaction<'c> = Transaction<'c>;

    fn begin<'c>(&self, connection: &'c mut Self::Connection) -> Result<Transaction<'c>, Self::Error> {
        connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)
    }

    fn commit(&self, transaction: Transaction<'_>) -> Result<(), Self::Error> {
        transaction.commit()
    }

    fn rollback(&self, transaction: Transaction<'_>) -> Result<(), Self::Error> {
        transaction.rollback()
    }

    fn outcome_unknown(&self, _: &Self::Error) -> bool {
        // The database is in this process: an error of COMMIT means that it did not happen.
        false
    }

    fn is_serialization_failure(&self, error: &Self::Error) -> bool {
        // BUSY_SNAPSHOT, the answer to a write in a transaction that read before somebody else wrote, is a kind of busy.
        matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked))
    }
}
