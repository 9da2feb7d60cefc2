//! The migration of one tenant from schema v1 to v2, in one transaction.
//!
//! Everything is read, looked up, computed and checked before the first write: a tenant that cannot be migrated keeps its
//! file byte for byte, and the write lock is held no longer than the writing takes.

use std::path::Path;
use std::sync::Arc;

use rusqlite::{Connection, ErrorCode, OpenFlags, Statement, Transaction, TransactionBehavior, params};

use super::plan::Plan;
use super::reference::{Reference, ReferenceError};

/// What the migration creates, before the rows.
///
/// The UTC columns are instants in seconds since 1970. NULL: never departed (`dep_utc`, `arr_utc`), no arrival recorded
/// (`arr_utc`), the time zone of the destination is unknown (`sched_arr_utc`, `arr_utc`).
const SCHEMA_V2: &str = "\
DROP TABLE flights;
CREATE TABLE carriers (
    id INTEGER PRIMARY KEY,
    code TEXT NOT NULL,
    name TEXT NOT NULL
);
CREATE TABLE flights (
    id INTEGER PRIMARY KEY,
    year INTEGER NOT NULL,
    month INTEGER NOT NULL,
    day INTEGER NOT NULL,
    dep_time INTEGER,
    sched_dep_time INTEGER NOT NULL,
    dep_delay INTEGER,
    arr_time INTEGER,
    sched_arr_time INTEGER NOT NULL,
    arr_delay INTEGER,
    carrier_id INTEGER NOT NULL REFERENCES carriers (id),
    flight INTEGER NOT NULL,
    tailnum TEXT,
    origin TEXT NOT NULL,
    dest TEXT NOT NULL,
    air_time INTEGER,
    distance INTEGER NOT NULL,
    hour INTEGER NOT NULL,
    minute INTEGER NOT NULL,
    time_hour TEXT NOT NULL,
    sched_dep_utc INTEGER NOT NULL,
    dep_utc INTEGER,
    sched_arr_utc INTEGER,
    arr_utc INTEGER
);";

const INSERT_CARRIER: &str = "INSERT INTO carriers VALUES (?1, ?2, ?3)";

const INSERT_FLIGHT: &str = "INSERT INTO flights VALUES \
    (?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11,?12,?13,?14,?15,?16,?17,?18,?19,?20,?21,?22,?23,?24)";

/// What the migration creates after the rows: an index is cheaper to fill at once than row by row.
const FINISH_V2: &str = "\
CREATE INDEX flights_dest_dep_utc ON flights (dest, dep_utc);
PRAGMA user_version=2;";

/// What [`migrate`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Migrated {
    /// The database had version 2 before; nothing was written, and the counts are 0.
    pub already: bool,
    /// Flights.
    pub rows: usize,
    /// Flights with an arrival in UTC.
    pub arrivals: usize,
}

/// Why a tenant was not migrated. Its database is as it was before, byte for byte.
#[derive(Debug)]
pub enum MigrateError {
    /// Another connection holds a lock. Worth another try.
    Busy,
    /// The file is not an SQLite database, or is damaged.
    NotADatabase(rusqlite::Error),
    /// The content contradicts what the migration relies on.
    Violates {
        /// The row (`flights.id`), where one row is to blame.
        row: Option<i64>,
        /// What contradicts what.
        reason: String,
    },
    /// Reference data could not be looked up. Not the fault of this tenant, so worth another try.
    Reference(ReferenceError),
    /// It cannot be opened; whoever else asks for it is told the same.
    Open(Arc<MigrateError>),
    /// Anything else that SQLite reports.
    Sqlite(rusqlite::Error),
}

impl MigrateError {
    /// Whether the same call may succeed later with nobody changing this database: locked, or a lookup failed.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Open(error) => error.is_transient(),
            error => matches!(error, Self::Busy | Self::Reference(_)),
        }
    }

    /// Whether the disk (or a quota) is full: no other tenant will fare better.
    pub fn is_disk_full(&self) -> bool {
        match self {
            Self::Open(error) => error.is_disk_full(),
            Self::Sqlite(e) => e.sqlite_error_code() == Some(ErrorCode::DiskFull),
            _ => false,
        }
    }

    pub(super) fn violates(row: impl Into<Option<i64>>, reason: impl Into<String>) -> Self {
        Self::Violates { row: row.into(), reason: reason.into() }
    }
}

impl std::fmt::Display for MigrateError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Busy => f.write_str("the database is locked by another connection"),
            Self::NotADatabase(e) => write!(f, "not a usable database: {e}"),
            Self::Violates { row: Some(row), reason } => write!(f, "flight {row} cannot be migrated: {reason}"),
            Self::Violates { row: None, reason } => write!(f, "cannot be migrated: {reason}"),
            Self::Reference(e) => write!(f, "reference data cannot be looked up: {e}"),
            Self::Open(e) => write!(f, "{e}"),
            Self::Sqlite(e) => write!(f, "SQLite: {e}"),
        }
    }
}

impl std::error::Error for MigrateError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::NotADatabase(e) | Self::Sqlite(e) => Some(e),
            Self::Reference(e) => Some(e.as_ref()),
            Self::Open(e) => e.source(),
            Self::Busy | Self::Violates { .. } => None,
        }
    }
}

impl From<rusqlite::Error> for MigrateError {
    fn from(error: rusqlite::Error) -> Self {
        // SQLite stores any type in any column; what the schema promises is checked when a value is read.
        if let rusqlite::Error::InvalidColumnType(_, name, kind) = &error {
            return Self::violates(None, format!("a value of {name} is {kind}"));
        }
        match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Self::Busy,
            Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => Self::NotADatabase(error),
            Some(ErrorCode::ConstraintViolation | ErrorCode::TypeMismatch) => Self::violates(None, error.to_string()),
            _ => Self::Sqlite(error),
        }
    }
}

/// Opens an existing database for [`migrate`]. Does not read the file, so a damaged or locked one opens too, and the
/// migration reports it.
///
/// A lock is reported at once instead of waited for: the caller has something better to do than to sleep in SQLite.
///
/// # Errors
/// The file does not exist or cannot be opened.
pub fn open(path: &Path) -> Result<Connection, MigrateError> {
    // One thread at a time uses a connection, which `&mut` proves: no need for SQLite's mutex.
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = Connection::open_with_flags(path, flags)?;
    conn.busy_timeout(std::time::Duration::ZERO)?;
    Ok(conn)
}

/// Takes one tenant from schema v1 to v2 in one transaction, durable when this returns (`synchronous=FULL`, rollback
/// journal). A tenant that has version 2 is left alone.
///
/// # Errors
/// See [`MigrateError`]; nothing was changed then.
pub fn migrate(conn: &mut Connection, refs: &dyn Reference) -> Result<Migrated, MigrateError> {
    // The cache holds every page that the largest tenant changes: were it smaller, SQLite would have to sync the journal
    // early to make room. It is a limit and not an allocation.
    conn.execute_batch("PRAGMA journal_mode=DELETE; PRAGMA synchronous=FULL; PRAGMA cache_size=-1024;")?;
    let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let version: i64 = tx.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    match version {
        1 => {}
        2 => return Ok(Migrated { already: true, ..Migrated::default() }),
        other => {
            return Err(MigrateError::violates(None, format!("its version is {other}, expected 1")));
        }
    }
    let plan = Plan::read(&tx, refs)?;
    write(&tx, &plan)?;
    let done = Migrated { already: false, rows: plan.flights().len(), arrivals: plan.arrivals() };
    tx.commit()?;
    Ok(done)
}

fn write(tx: &Transaction<'_>, plan: &Plan) -> Result<(), MigrateError> {
    tx.execute_batch(SCHEMA_V2)?;
    let mut insert = tx.prepare(INSERT_CARRIER)?;
    for c in plan.carriers() {
        insert.execute(params![c.id, c.code, c.name])?;
    }
    let mut insert: Statement<'_> = tx.prepare(INSERT_FLIGHT)?;
    for f in plan.flights() {
        insert.execute(params![
            f.id,
            f.year,
            f.month,
            f.day,
            f.dep_time,
            f.sched_dep_time,
            f.dep_delay,
            f.arr_time,
            f.sched_arr_time,
            f.arr_delay,
            f.carrier_id,
            f.flight,
            plan.opt_text(f.tailnum),
            plan.text(f.origin),
            plan.text(f.dest),
            f.air_time,
            f.distance,
            f.hour,
            f.minute,
            plan.text(f.time_hour),
            f.sched_dep_utc,
            f.dep_utc,
            f.sched_arr_utc,
            f.arr_utc,
        ])?;
    }
    tx.execute_batch(FINISH_V2)?;
    Ok(())
}
