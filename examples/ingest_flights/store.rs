//! The two databases: the table, and the process function that writes a batch into it.

use std::path::Path;
use std::sync::Arc;

use fullbore::batch::{Batch, CopyIn, SqliteInsert, WriteError, Written};
use fullbore::prelude::*;
use fullbore_examples::fleet::row::COLUMNS;
use fullbore_examples::fleet::{Dataset, Flight};
use postgres::error::SqlState;
use rusqlite::params;

use crate::Stop;
use crate::args::{Args, Target};
use crate::totals::{self, Totals};

/// What a batcher calls.
pub(crate) type Process = Box<dyn Fn(Batch<Flight>) -> Result<Written, WriteError> + Send + Sync>;

/// A database with an empty table `flights`.
#[derive(Debug)]
pub(crate) enum Store {
    Sqlite {
        pool: Pool<Sqlite>,
        /// Removed with it.
        _temporary: Option<tempfile::TempDir>,
    },
    Postgres {
        pool: Pool<Postgres>,
    },
}

const CREATE: &str = "CREATE TABLE flights (
    id BIGINT PRIMARY KEY, year BIGINT NOT NULL, month BIGINT NOT NULL, day BIGINT NOT NULL, dep_time BIGINT,
    sched_dep_time BIGINT NOT NULL, dep_delay BIGINT, arr_time BIGINT, sched_arr_time BIGINT NOT NULL,
    arr_delay BIGINT, carrier TEXT NOT NULL, flight BIGINT NOT NULL, tailnum TEXT, origin TEXT NOT NULL,
    dest TEXT NOT NULL, air_time BIGINT, distance BIGINT NOT NULL, hour BIGINT NOT NULL, minute BIGINT NOT NULL,
    time_hour TEXT NOT NULL)";

/// The columns of a row in their order, as a list for the driver.
macro_rules! in_order {
    ($list:ident, $row:ident) => {
        $list![
            $row.id,
            $row.year,
            $row.month,
            $row.day,
            $row.dep_time,
            $row.sched_dep_time,
            $row.dep_delay,
            $row.arr_time,
            $row.sched_arr_time,
            $row.arr_delay,
            $row.carrier,
            $row.flight,
            $row.tailnum,
            $row.origin,
            $row.dest,
            $row.air_time,
            $row.distance,
            $row.hour,
            $row.minute,
            $row.time_hour
        ]
    };
}

/// As `rusqlite::params` for PostgreSQL.
macro_rules! values {
    ($($value:expr),*) => { &[$(&$value),*] };
}

impl Store {
    pub(crate) fn open(args: &Args) -> Result<Self, Stop> {
        match &args.target {
            Target::Sqlite(Some(path)) => Self::sqlite(path, args.full, None),
            Target::Sqlite(None) => {
                let dir = temporary()?;
                Self::sqlite(&dir.path().join("flights.db"), args.full, Some(dir))
            }
            Target::Postgres(url) => Self::postgres(url, args.full),
        }
    }

    fn sqlite(path: &Path, full: bool, temporary: Option<tempfile::TempDir>) -> Result<Self, Stop> {
        let shown = path.display();
        let synchronous = if full { "FULL" } else { "NORMAL" };
        let manager = Sqlite::new(path).setup(format!("PRAGMA journal_mode = WAL; PRAGMA synchronous = {synchronous}"));
        // One: SQLite has one writer at a time.
        let pool = Pool::builder(manager).max_size(1).build().map_err(Stop::failed)?;
        let unusable = |error: &dyn std::fmt::Display| {
            Stop::Usage(format!("cannot write {shown}: {error}: name another file with --db"))
        };
        let created = pool.with(|db| db.execute_batch(CREATE)).map_err(|error| unusable(&error))?;
        created.map_err(|error| unusable(&error))?;
        Ok(Self::Sqlite { pool, _temporary: temporary })
    }

    fn postgres(url: &str, full: bool) -> Result<Self, Stop> {
        let config: Result<postgres::Config, _> = url.parse();
        let mut config = config.map_err(|error| {
            Stop::Usage(format!("--postgres: {error}: give postgres://user:password@host:port/database"))
        })?;
        if !full {
            let options = config.get_options().unwrap_or_default();
            config.options(&format!("{options} -c synchronous_commit=off"));
        }
        let pool = Pool::builder(Postgres::with_config(config)).max_size(2).build().map_err(Stop::failed)?;
        let created = pool.with(|db| db.batch_execute(CREATE)).map_err(Stop::failed)?;
        created.map_err(|error| match error.code() {
            Some(code) if *code == SqlState::DUPLICATE_TABLE => {
                Stop::Usage("that database has a table `flights`: drop it, or name another database".into())
            }
            _ => Stop::failed(WriteError::not_written(error)),
        })?;
        Ok(Self::Postgres { pool })
    }

    // ANCHOR: writer
    pub(crate) fn writer(&self, dataset: Arc<Dataset>) -> Process {
        match self {
            Self::Sqlite { pool, .. } => {
                let pool = pool.clone();
                let marks = vec!["?"; 1 + COLUMNS.len()].join(", ");
                let insert = SqliteInsert::new(format!("INSERT INTO flights VALUES ({marks})"), move |flight, to| {
                    let row = dataset.row_of(flight);
                    to.put(in_order!(params, row))
                });
                Box::new(insert.through(move || pool.get()))
            }
            Self::Postgres { pool } => {
                let pool = pool.clone();
                let columns = ["id"].into_iter().chain(COLUMNS);
                let copy = CopyIn::new("flights", columns, move |flight, to| {
                    let row = dataset.row_of(flight);
                    to.put(in_order!(values, row))
                });
                Box::new(copy.through(move || pool.get()))
            }
        }
    }
    // ANCHOR_END: writer

    /// What the table holds, computed by the database.
    pub(crate) fn totals(&self) -> Result<Totals, Stop> {
        match self {
            Self::Sqlite { pool, .. } => pool
                .with(|db| {
                    db.query_row(&totals::sql("unicode"), [], |row| {
                        Ok(Totals { rows: row.get(0)?, checksum: row.get(1)? })
                    })
                })
                .map_err(Stop::failed)?
                .map_err(Stop::failed),
            Self::Postgres { pool } => pool
                .with(|db| {
                    let row = db.query_one(&totals::sql("ascii"), &[])?;
                    Ok(Totals { rows: row.get(0), checksum: row.get(1) })
                })
                .map_err(Stop::failed)?
                .map_err(|error: postgres::Error| Stop::failed(error)),
        }
    }
}

/// Beside the build, and not in the system's temporary directory: that is often in memory, where a sync costs nothing.
fn temporary() -> Result<tempfile::TempDir, Stop> {
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target");
    let parent = if target.is_dir() { target } else { std::env::temp_dir() };
    tempfile::Builder::new().prefix("ingest_flights-").tempdir_in(&parent).map_err(|error| {
        Stop::Failed(format!("cannot write in {}: {error}: name a file elsewhere with --db", parent.display()))
    })
}
