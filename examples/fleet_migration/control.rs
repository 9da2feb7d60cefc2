//! The control database: reference data that migrations look up, and what became of each tenant.

use std::sync::Arc;
use std::time::Duration;

use fullbore_batch::{Batch, Batcher};
use fullbore_cache::Cache;
use fullbore_examples::fleet::reference::{read_carrier_name, read_zone, write_control};
use fullbore_examples::fleet::{Dataset, Reference, ReferenceError};
use fullbore_pool::{Pool, Sqlite};
use jiff::tz::TimeZone;
use rusqlite::{OptionalExtension, params};

use crate::place::{Place, TenantName};

pub(crate) type Control = Pool<Sqlite>;

/// What became of a tenant; one row of `results`.
#[derive(Clone, Debug)]
pub(crate) struct ResultRow {
    pub(crate) tenant: TenantName,
    /// `migrated` or `dead`.
    pub(crate) status: &'static str,
    pub(crate) rows: usize,
    pub(crate) attempts: u32,
    pub(crate) reason: Option<String>,
}

/// Opens the control database, with its tables. The truth about a tenant is its own `user_version`; a result lost in a crash
/// is written again by `--resume`, so this database need not sync each commit.
pub(crate) fn open(place: &Place) -> Result<Control, String> {
    let sqlite = Sqlite::new(place.control()).setup("PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;");
    let pool = Pool::builder(sqlite).name("control").max_size(4).build().map_err(|error| error.to_string())?;
    let tables = "CREATE TABLE IF NOT EXISTS run (key TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
        CREATE TABLE IF NOT EXISTS results (
            tenant TEXT PRIMARY KEY, status TEXT NOT NULL, flights INTEGER NOT NULL, attempts INTEGER NOT NULL, reason TEXT
        ) WITHOUT ROWID;";
    pool.with(|sqlite| sqlite.execute_batch(tables))
        .map_err(|error| error.to_string())?
        .map_err(|error| format!("cannot write the control database: {error}"))?;
    Ok(pool)
}

/// Writes the reference data.
pub(crate) fn fill(control: &Control, dataset: &Dataset) -> Result<(), String> {
    control
        .with(|sqlite| write_control(sqlite, dataset))
        .map_err(|error| error.to_string())?
        .map_err(|error| format!("cannot write the control database: {error}"))
}

/// Notes that the fleet of `tenants` healthy databases is there.
pub(crate) fn note_fleet(control: &Control, tenants: usize) -> Result<(), String> {
    control
        .with(|sqlite| sqlite.execute("INSERT OR REPLACE INTO run VALUES ('tenants', ?1)", [tenants as i64]))
        .map_err(|error| error.to_string())?
        .map(drop)
        .map_err(|error| format!("cannot write the control database: {error}"))
}

/// How many healthy tenants the run in this directory has; `None` if its fleet was never complete.
pub(crate) fn noted_fleet(control: &Control) -> Result<Option<usize>, String> {
    let noted: Option<i64> = control
        .with(|sqlite| sqlite.query_row("SELECT value FROM run WHERE key = 'tenants'", [], |row| row.get(0)).optional())
        .map_err(|error| error.to_string())?
        .map_err(|error| format!("cannot read the control database: {error}"))?;
    Ok(noted.and_then(|n| usize::try_from(n).ok()))
}

/// How many results are recorded, by status.
pub(crate) fn count(control: &Control, status: &str) -> Result<u64, String> {
    control
        .with(|sqlite| {
            sqlite.query_row("SELECT count(*) FROM results WHERE status = ?1", [status], |row| row.get::<_, i64>(0))
        })
        .map_err(|error| error.to_string())?
        .map(|n| n.unsigned_abs())
        .map_err(|error| format!("cannot read the control database: {error}"))
}

/// Groups results and writes each group in one transaction. `failed` hears of a group that could not be written.
pub(crate) fn results(
    control: &Control,
    failed: impl Fn(String) + Send + Sync + 'static,
) -> Result<Batcher<ResultRow, ()>, fullbore_core::BuildError> {
    let control = control.clone();
    Batcher::builder().name("results").max_items(256).linger(Duration::from_millis(20)).capacity(4096).build(
        move |rows: Batch<ResultRow>| {
            let written = control.transaction(|tx| {
                let mut upsert = tx.prepare_cached(
                    "INSERT INTO results VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT (tenant) DO UPDATE SET
                     status = excluded.status, flights = max(flights, excluded.flights),
                     attempts = excluded.attempts, reason = excluded.reason",
                )?;
                for row in &rows {
                    upsert.execute(params![&*row.tenant, row.status, row.rows as i64, row.attempts, row.reason])?;
                }
                Ok::<(), rusqlite::Error>(())
            });
            if let Err(error) = &written {
                failed(format!("cannot write results into the control database: {error}"));
            }
            written
        },
    )
}

/// Reference data from the control database, each answer kept in a cache: 1,458 airports serve 336,776 flights.
#[derive(Debug)]
pub(crate) struct CachedReference {
    control: Control,
    pub(crate) zones: Cache<String, Option<TimeZone>>,
    pub(crate) carriers: Cache<String, Option<Arc<str>>>,
}

impl CachedReference {
    pub(crate) fn new(control: &Control) -> Result<Self, fullbore_core::BuildError> {
        Ok(Self {
            control: control.clone(),
            zones: Cache::builder().name("airports").capacity(2_000).ttl(None).build()?,
            carriers: Cache::builder().name("carriers").capacity(100).ttl(None).build()?,
        })
    }
}

impl Reference for CachedReference {
    fn zone(&self, faa: &str) -> Result<Option<TimeZone>, ReferenceError> {
        let zone = self.zones.get_or_compute(&faa.to_owned(), |_| -> Result<_, ReferenceError> {
            let name = self.control.with(|sqlite| read_zone(sqlite, faa))??;
            Ok(name.map(|name| TimeZone::get(&name)).transpose()?)
        });
        Ok(zone?)
    }

    fn carrier_name(&self, code: &str) -> Result<Option<Arc<str>>, ReferenceError> {
        let name = self.carriers.get_or_compute(&code.to_owned(), |_| -> Result<_, ReferenceError> {
            Ok(self.control.with(|sqlite| read_carrier_name(sqlite, code))??.map(Arc::from))
        });
        Ok(name?)
    }
}
