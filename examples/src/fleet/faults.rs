//! Tenants that fail on purpose: faults are part of the job.

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};

use super::data::{Dataset, Tenant};
use super::tenant;

/// The name of the tenant whose file is no database.
pub const NOT_A_DATABASE: &str = "not-a-database";
/// The name of the tenant whose content contradicts itself.
pub const VIOLATES: &str = "violates";
/// The name of the tenant that another connection has locked.
pub const LOCKED: &str = "locked";

/// Writes a file that is not an SQLite database.
///
/// # Errors
/// The file cannot be written.
pub fn create_not_a_database(path: &Path) -> io::Result<()> {
    fs::write(path, "This is not a database, though somebody gave it the name of one.\n".repeat(128))
}

/// Writes a copy of `tenant` in schema v1 in which one flight has a `time_hour` an hour later than its schedule says.
///
/// # Errors
/// As [`tenant::create`].
pub fn create_violating(path: &Path, tenant: &Tenant, dataset: &Dataset) -> rusqlite::Result<()> {
    tenant::create(path, tenant, dataset)?;
    let conn = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    // The last flight, so that all others have been read when it is met.
    conn.execute(
        "UPDATE flights SET time_hour = strftime('%Y-%m-%dT%H:00:00Z', time_hour, '+1 hour') \
         WHERE id = (SELECT max(id) FROM flights)",
        [],
    )?;
    conn.close().map_err(|(_, error)| error)
}

/// Writes a healthy copy of `tenant` in schema v1, for [`hold_lock`].
///
/// # Errors
/// As [`tenant::create`].
pub fn create_locked(path: &Path, tenant: &Tenant, dataset: &Dataset) -> rusqlite::Result<()> {
    tenant::create(path, tenant, dataset)
}

/// Locks the database at `path` against every other connection until the guard is dropped.
///
/// The guard may move to another thread. While it lives, nothing in this process may open the file except through SQLite:
/// on POSIX systems closing any other handle of it would give up the lock.
///
/// # Errors
/// The database cannot be opened, or is locked already.
pub fn hold_lock(path: &Path) -> rusqlite::Result<LockGuard> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = Connection::open_with_flags(path, flags)?;
    conn.busy_timeout(Duration::ZERO)?;
    conn.execute_batch("BEGIN EXCLUSIVE")?;
    Ok(LockGuard { _conn: conn })
}

/// Holds the lock of [`hold_lock`]; nothing was written, so dropping it leaves the file as it is.
#[derive(Debug)]
pub struct LockGuard {
    _conn: Connection,
}
