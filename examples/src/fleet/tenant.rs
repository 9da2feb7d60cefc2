//! The database of one tenant in schema v1, as the migration finds it.

use std::path::Path;

use rusqlite::{Connection, OpenFlags, params};

use super::data::{Dataset, Tenant};
use super::row::Checksum;

/// Schema v1: the columns of `flights.csv` under their own names, and the row of that file as key.
pub const SCHEMA_V1: &str = "\
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
    carrier TEXT NOT NULL,
    flight INTEGER NOT NULL,
    tailnum TEXT,
    origin TEXT NOT NULL,
    dest TEXT NOT NULL,
    air_time INTEGER,
    distance INTEGER NOT NULL,
    hour INTEGER NOT NULL,
    minute INTEGER NOT NULL,
    time_hour TEXT NOT NULL
)";

const INSERT_V1: &str =
    "INSERT INTO flights VALUES (?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11,?12,?13,?14,?15,?16,?17,?18,?19,?20)";

/// Writes the v1 database of `tenant` to `path`, which must not exist or be empty.
///
/// Rollback journal, SQLite's default page size, `user_version` 1. It is made without a journal and without syncing: a
/// database that a crash leaves half made is made again, it never held anything.
///
/// # Errors
/// The file cannot be created or written, or is a database already.
pub fn create(path: &Path, tenant: &Tenant, dataset: &Dataset) -> rusqlite::Result<()> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut conn = Connection::open_with_flags(path, flags)?;
    conn.execute_batch("PRAGMA locking_mode=EXCLUSIVE; PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF;")?;
    let tx = conn.transaction()?;
    tx.execute_batch(SCHEMA_V1)?;
    {
        let mut insert = tx.prepare(INSERT_V1)?;
        for r in dataset.rows(tenant) {
            insert.execute(params![
                r.id,
                r.year,
                r.month,
                r.day,
                r.dep_time,
                r.sched_dep_time,
                r.dep_delay,
                r.arr_time,
                r.sched_arr_time,
                r.arr_delay,
                r.carrier,
                r.flight,
                r.tailnum,
                r.origin,
                r.dest,
                r.air_time,
                r.distance,
                r.hour,
                r.minute,
                r.time_hour,
            ])?;
        }
    }
    tx.execute_batch("PRAGMA user_version=1")?;
    tx.commit()?;
    conn.close().map_err(|(_, error)| error)
}

/// The checksum of the columns that the migration must not change, over all flights of `tenant`.
pub fn checksum(tenant: &Tenant, dataset: &Dataset) -> u64 {
    let mut sum = Checksum::default();
    dataset.rows(tenant).for_each(|row| sum.add(&row));
    sum.value()
}
