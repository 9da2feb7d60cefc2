//! Reference data that the migration looks up: the time zone of an airport, the name of a carrier.
//!
//! [`Reference`] is what [`migrate`](super::migrate::migrate) asks. [`FromMemory`] answers from a [`Dataset`];
//! [`FromControl`] queries two tables of a control database each time, so it deserves a cache in front.

use std::collections::HashMap;
use std::error::Error;
use std::sync::Arc;

use jiff::tz::TimeZone;
use rusqlite::{Connection, OptionalExtension, params};

use super::data::Dataset;

/// Why a lookup failed. Not that the airport or carrier is unknown: that is an answer.
pub type ReferenceError = Box<dyn Error + Send + Sync>;

/// Answers what a migration must know beyond its own database.
///
/// The migration asks once for each distinct code of a tenant, before its first write.
pub trait Reference {
    /// The time zone of an airport; `None` if the airport or its zone is unknown.
    ///
    /// # Errors
    /// The lookup itself failed.
    fn zone(&self, faa: &str) -> Result<Option<TimeZone>, ReferenceError>;

    /// The name of a carrier; `None` if it is unknown.
    ///
    /// # Errors
    /// The lookup itself failed.
    fn carrier_name(&self, code: &str) -> Result<Option<Arc<str>>, ReferenceError>;
}

impl<R: Reference + ?Sized> Reference for &R {
    fn zone(&self, faa: &str) -> Result<Option<TimeZone>, ReferenceError> {
        (**self).zone(faa)
    }

    fn carrier_name(&self, code: &str) -> Result<Option<Arc<str>>, ReferenceError> {
        (**self).carrier_name(code)
    }
}

/// All airports and carriers in hash maps: never fails, never waits.
#[derive(Debug)]
pub struct FromMemory {
    zones: HashMap<String, TimeZone>,
    carriers: HashMap<String, Arc<str>>,
}

impl FromMemory {
    /// Takes the airports and carriers out of `dataset`.
    ///
    /// # Errors
    /// A time zone of an airport is not in jiff's database.
    pub fn new(dataset: &Dataset) -> Result<Self, ReferenceError> {
        // Ten zones serve 1,458 airports; they share the handle of the zone.
        let mut known: HashMap<&str, TimeZone> = HashMap::new();
        let mut zones = HashMap::new();
        for airport in dataset.airports() {
            let Some(name) = &airport.tzone else { continue };
            let zone = match known.get(name.as_str()) {
                Some(zone) => zone.clone(),
                None => known.entry(name).or_insert(TimeZone::get(name)?).clone(),
            };
            zones.insert(airport.faa.clone(), zone);
        }
        let carriers = dataset.airlines().iter().map(|a| (a.carrier.clone(), a.name.as_str().into())).collect();
        Ok(Self { zones, carriers })
    }
}

impl Reference for FromMemory {
    fn zone(&self, faa: &str) -> Result<Option<TimeZone>, ReferenceError> {
        Ok(self.zones.get(faa).cloned())
    }

    fn carrier_name(&self, code: &str) -> Result<Option<Arc<str>>, ReferenceError> {
        Ok(self.carriers.get(code).cloned())
    }
}

/// Looks each answer up in the `airports` and `carriers` tables of a control database, see [`write_control`].
#[derive(Debug)]
pub struct FromControl<'c> {
    conn: &'c Connection,
}

impl<'c> FromControl<'c> {
    /// Asks through `conn`.
    pub fn new(conn: &'c Connection) -> Self {
        Self { conn }
    }
}

impl Reference for FromControl<'_> {
    fn zone(&self, faa: &str) -> Result<Option<TimeZone>, ReferenceError> {
        read_zone(self.conn, faa)?.map(|name| TimeZone::get(&name)).transpose().map_err(Into::into)
    }

    fn carrier_name(&self, code: &str) -> Result<Option<Arc<str>>, ReferenceError> {
        Ok(read_carrier_name(self.conn, code)?.map(Into::into))
    }
}

/// Writes the tables `airports(faa, name, tzone)` and `carriers(code, name)` of a control database, in one transaction.
/// What they held before is replaced, so that a resumed run finds the data of its own.
///
/// # Errors
/// What SQLite says.
pub fn write_control(conn: &mut Connection, dataset: &Dataset) -> rusqlite::Result<()> {
    let tx = conn.transaction()?;
    tx.execute_batch(
        "CREATE TABLE IF NOT EXISTS airports (faa TEXT PRIMARY KEY, name TEXT NOT NULL, tzone TEXT) WITHOUT ROWID;
         CREATE TABLE IF NOT EXISTS carriers (code TEXT PRIMARY KEY, name TEXT NOT NULL) WITHOUT ROWID;
         DELETE FROM airports;
         DELETE FROM carriers;",
    )?;
    {
        let mut insert = tx.prepare("INSERT INTO airports VALUES (?1, ?2, ?3)")?;
        for a in dataset.airports() {
            insert.execute(params![a.faa, a.name, a.tzone])?;
        }
        let mut insert = tx.prepare("INSERT INTO carriers VALUES (?1, ?2)")?;
        for a in dataset.airlines() {
            insert.execute(params![a.carrier, a.name])?;
        }
    }
    tx.commit()
}

/// The IANA name of the time zone of an airport from a control database; `None` if the airport or its zone is unknown.
///
/// # Errors
/// What SQLite says.
pub fn read_zone(conn: &Connection, faa: &str) -> rusqlite::Result<Option<String>> {
    conn.prepare_cached("SELECT tzone FROM airports WHERE faa = ?1")?
        .query_row([faa], |row| row.get(0))
        .optional()
        .map(Option::flatten)
}

/// The name of a carrier from a control database; `None` if it is unknown.
///
/// # Errors
/// What SQLite says.
pub fn read_carrier_name(conn: &Connection, code: &str) -> rusqlite::Result<Option<String>> {
    conn.prepare_cached("SELECT name FROM carriers WHERE code = ?1")?.query_row([code], |row| row.get(0)).optional()
}
