//! The check of one migrated database against truths that the data holds itself.
//!
//! Nothing is shared with the migration but the reading of rows: it goes from local clocks to instants, this goes back from
//! the stored instants to what the clocks must have shown.

use std::collections::HashMap;
use std::ops::AddAssign;
use std::path::Path;

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::{AmbiguousOffset, TimeZone};
use rusqlite::{Connection, OpenFlags};

use super::data::{Dataset, Tenant};
use super::reference::{FromMemory, Reference};
use super::row::{Checksum, Row};
use super::tenant;

const SELECT_V2: &str = "\
SELECT f.id, year, month, day, dep_time, sched_dep_time, dep_delay, arr_time, sched_arr_time, arr_delay, c.code, flight,
       tailnum, origin, dest, air_time, distance, hour, minute, time_hour, sched_dep_utc, dep_utc, sched_arr_utc, arr_utc, c.name
FROM flights f JOIN carriers c ON c.id = f.carrier_id ORDER BY f.id";

macro_rules! facts {
    ($($(#[$doc:meta])* $name:ident = $full:literal,)*) => {
        /// What was found in databases that passed. Adds up over tenants; over the whole fleet it is [`FleetTruths::FULL`].
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
        pub struct TenantFacts {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl AddAssign for TenantFacts {
            fn add_assign(&mut self, other: Self) {
                $(self.$name += other.$name;)*
            }
        }

        impl TenantFacts {
            /// Each fact with its name, in the order of the fields.
            pub fn named(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name),)*].into_iter()
            }
        }

        impl FleetTruths {
            /// The facts of all 4,044 tenants.
            pub const FULL: TenantFacts = TenantFacts { $($name: $full,)* };
        }
    };
}

/// What is known about the whole fleet.
#[derive(Debug, Clone, Copy)]
pub struct FleetTruths;

facts! {
    /// Databases.
    tenants = 4_044,
    /// Flights.
    rows = 336_776,
    /// `time_hour` is the UTC hour of `sched_dep_utc`.
    hour_agrees = 336_776,
    /// `dep_utc` reads back `dep_time` on the clock of the origin.
    departed = 328_521,
    /// No `dep_time`.
    never_departed = 8_255,
    /// Read as "earlier than scheduled means next day", these departures would be a day late.
    early = 183_575,
    /// `arr_utc` is set, and reads back `arr_time` on the clock of the destination (but for `skipped`).
    arrivals = 320_503,
    /// Departed, and has no `arr_time`.
    no_arr_time = 458,
    /// Has an `arr_time`, and no `arr_delay`.
    no_arr_delay = 717,
    /// Has an `arr_time`, but the time zone of the destination is unknown.
    unknown_zone = 7_560,
    /// Arrivals for which `sched_arr_utc + arr_delay` is a second way to `arr_utc`.
    comparable = 319_809,
    /// Of these, the arrivals for which both ways agree: all but `skipped`, for which the clock is no way.
    agrees = 319_808,
    /// `dep_time` is 2400.
    departed_2400 = 29,
    /// `arr_time` is 2400.
    arrived_2400 = 150,
    /// Arrivals at a time that the clock showed twice.
    ambiguous = 1,
    /// Arrivals at a time that the clock did not show.
    skipped = 1,
}

impl TenantFacts {
    /// Where these facts differ from `expected`, as text for a report; empty if nowhere.
    pub fn differences(&self, expected: &Self) -> Vec<String> {
        self.named()
            .zip(expected.named())
            .filter(|(found, expected)| found != expected)
            .map(|((name, found), (_, expected))| format!("{name} is {found}, expected {expected}"))
            .collect()
    }
}

/// A database is not what the migration should have made of it.
#[derive(Debug)]
pub enum VerifyError {
    /// It cannot be opened or read.
    Sqlite(rusqlite::Error),
    /// Its content is wrong.
    Wrong {
        /// The row (`flights.id`), where one row is to blame.
        row: Option<i64>,
        /// What is wrong.
        reason: String,
    },
}

impl std::fmt::Display for VerifyError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Sqlite(e) => write!(f, "cannot be read: {e}"),
            Self::Wrong { row: Some(row), reason } => write!(f, "flight {row} is wrong: {reason}"),
            Self::Wrong { row: None, reason } => f.write_str(reason),
        }
    }
}

impl std::error::Error for VerifyError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Sqlite(e) => Some(e),
            Self::Wrong { .. } => None,
        }
    }
}

impl From<rusqlite::Error> for VerifyError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

fn wrong(reason: String) -> VerifyError {
    VerifyError::Wrong { row: None, reason }
}

/// Reopens the database at `path` read-only and checks that it is `tenant` in schema v2: version, integrity (indexes
/// included), carriers, number of rows, the checksum of what the migration must not change, and the truths of each row.
///
/// Zones and names come from `refs`, so from the data files and not from what the run looked up.
///
/// # Errors
/// The first thing that is wrong.
pub fn verify(path: &Path, tenant: &Tenant, dataset: &Dataset, refs: &FromMemory) -> Result<TenantFacts, VerifyError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = Connection::open_with_flags(path, flags)?;
    structure(&conn)?;

    let mut facts = TenantFacts { tenants: 1, ..TenantFacts::default() };
    let mut sum = Checksum::default();
    let mut zones = Zones { refs, known: HashMap::new() };
    let mut select = conn.prepare(SELECT_V2)?;
    let mut rows = select.query([])?;
    while let Some(sql) = rows.next()? {
        let row = Row::from_sql(sql)?;
        sum.add(&row);
        let utc = Stored { sched_dep: sql.get(20)?, dep: sql.get(21)?, sched_arr: sql.get(22)?, arr: sql.get(23)? };
        let at_row = |reason| VerifyError::Wrong { row: Some(row.id), reason };
        let name: &str = sql.get_ref(24)?.as_str().map_err(rusqlite::Error::from)?;
        let carrier = dataset.airlines().iter().find(|a| a.carrier == row.carrier);
        if carrier.is_none_or(|a| a.name != name) {
            return Err(at_row(format!("carrier {} has the name {name:?}", row.carrier)));
        }
        facts += flight(&row, &utc, &mut zones).map_err(at_row)?;
    }
    if facts.rows != tenant.flights.len() as u64 {
        return Err(wrong(format!("{} flights, expected {}", facts.rows, tenant.flights.len())));
    }
    let expected = tenant::checksum(tenant, dataset);
    if sum.value() != expected {
        return Err(wrong(format!(
            "its original columns have the checksum {:016x}, expected {expected:016x}",
            sum.value()
        )));
    }
    Ok(facts)
}

/// What can be said without reading flights.
fn structure(conn: &Connection) -> Result<(), VerifyError> {
    let version: i64 = conn.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    if version != 2 {
        return Err(wrong(format!("its version is {version}, expected 2")));
    }
    let objects: String =
        conn.query_row("SELECT group_concat(type || ' ' || name, ', ' ORDER BY name) FROM sqlite_schema", [], |row| {
            row.get(0)
        })?;
    if objects != "table carriers, table flights, index flights_dest_dep_utc" {
        return Err(wrong(format!("it holds {objects}")));
    }
    let integrity: String = conn.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))?;
    if integrity != "ok" {
        return Err(wrong(format!("its integrity check says {integrity}")));
    }
    // A carrier that the join does not meet, or meets twice, would not show in the rows.
    let (carriers, codes, used): (i64, i64, i64) = conn.query_row(
        "SELECT count(*), count(DISTINCT code), (SELECT count(DISTINCT carrier_id) FROM flights) FROM carriers",
        [],
        |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
    )?;
    if carriers != codes || carriers != used {
        return Err(wrong(format!("{carriers} carriers with {codes} codes for {used} carriers in use")));
    }
    Ok(())
}

/// The columns that v2 added to a flight.
struct Stored {
    sched_dep: i64,
    dep: Option<i64>,
    sched_arr: Option<i64>,
    arr: Option<i64>,
}

struct Zones<'r> {
    refs: &'r FromMemory,
    known: HashMap<String, Option<TimeZone>>,
}

impl Zones<'_> {
    fn of(&mut self, faa: &str) -> Result<Option<TimeZone>, String> {
        if let Some(zone) = self.known.get(faa) {
            return Ok(zone.clone());
        }
        let zone = self.refs.zone(faa).map_err(|e| e.to_string())?;
        self.known.insert(faa.to_owned(), zone.clone());
        Ok(zone)
    }
}

/// What the clock shows at an instant.
fn shown(zone: &TimeZone, t: i64) -> Result<DateTime, String> {
    Timestamp::from_second(t).map(|t| zone.to_datetime(t)).map_err(|e| e.to_string())
}

/// The time of day as the data writes it, midnight as 0.
fn hhmm(at: DateTime) -> i64 {
    i64::from(at.hour()) * 100 + i64::from(at.minute())
}

/// Checks one flight and says what it adds to the facts.
fn flight(row: &Row<'_>, utc: &Stored, zones: &mut Zones<'_>) -> Result<TenantFacts, String> {
    let origin = zones.of(row.origin)?.ok_or("its origin has no time zone")?;
    let mut facts = TenantFacts { rows: 1, ..TenantFacts::default() };

    let sched = shown(&origin, utc.sched_dep)?;
    let date = (i64::from(sched.year()), i64::from(sched.month()), i64::from(sched.day()));
    if date != (row.year, row.month, row.day) || hhmm(sched) != row.sched_dep_time || sched.second() != 0 {
        return Err(format!("sched_dep_utc reads {sched} at {}", row.origin));
    }
    // As text: the UTC hour of the stored instant, written out, must be the column.
    let hour = utc.sched_dep - utc.sched_dep.rem_euclid(3600);
    let hour = Timestamp::from_second(hour).map_err(|e| e.to_string())?.to_string();
    if hour != row.time_hour {
        return Err(format!("sched_dep_utc is in the hour {hour}, time_hour says {}", row.time_hour));
    }
    facts.hour_agrees = 1;

    match (row.dep_time, utc.dep) {
        (None, None) => facts.never_departed = 1,
        (Some(dep_time), Some(dep)) => {
            let at = shown(&origin, dep)?;
            if hhmm(at) != dep_time % 2400 || row.dep_delay != Some((dep - utc.sched_dep) / 60) {
                return Err(format!("dep_utc reads {at} at {}, dep_time is {dep_time}", row.origin));
            }
            facts.departed = 1;
            facts.departed_2400 = u64::from(dep_time == 2400);
            facts.early = u64::from(dep_time < row.sched_dep_time && at.date() == sched.date());
            facts.no_arr_time = u64::from(row.arr_time.is_none());
        }
        _ => return Err("dep_time and dep_utc are not both there".to_owned()),
    }
    facts.arrived_2400 = u64::from(row.arr_time == Some(2400));
    facts.no_arr_delay = u64::from(row.arr_time.is_some() && row.arr_delay.is_none());

    match zones.of(row.dest)? {
        Some(dest) => arrival(row, utc, &dest, &mut facts)?,
        None if utc.sched_arr.is_some() || utc.arr.is_some() => {
            return Err(format!("{} has no time zone, but the flight an arrival in UTC", row.dest));
        }
        None => facts.unknown_zone = u64::from(row.arr_time.is_some()),
    }
    Ok(facts)
}

fn arrival(row: &Row<'_>, utc: &Stored, dest: &TimeZone, facts: &mut TenantFacts) -> Result<(), String> {
    let sched_arr = utc.sched_arr.ok_or("sched_arr_utc is missing")?;
    if first_shown(dest, utc.sched_dep, sched_arr, row.sched_arr_time)? == Shown::Skipped {
        return Err(format!("sched_arr_utc does not read {}", row.sched_arr_time));
    }
    let (dep, arr, arr_time) = match (utc.dep, utc.arr, row.arr_time) {
        (Some(dep), Some(arr), Some(arr_time)) => (dep, arr, arr_time),
        (_, None, None) => return Ok(()),
        _ => return Err("arr_time and arr_utc are not both there".to_owned()),
    };
    facts.arrivals = 1;
    let by_delay = row.arr_delay.map(|delay| sched_arr.saturating_add(delay.saturating_mul(60)));
    facts.comparable = u64::from(by_delay.is_some());
    let agrees = by_delay == Some(arr);
    match first_shown(dest, dep, arr, arr_time)? {
        Shown::Once => facts.agrees = u64::from(agrees),
        Shown::Twice => {
            facts.agrees = u64::from(agrees);
            facts.ambiguous = 1;
        }
        Shown::Skipped if agrees => facts.skipped = 1,
        Shown::Skipped => return Err("arr_time is not on the clock, and arr_utc not by the delay".to_owned()),
    }
    Ok(())
}

#[derive(PartialEq, Eq)]
enum Shown {
    Once,
    /// The clock was put back and shows it again.
    Twice,
    /// The clock was put forward over it.
    Skipped,
}

/// Checks that `t` is the first instant after `after` at which the clock shows `time`.
fn first_shown(zone: &TimeZone, after: i64, t: i64, time: i64) -> Result<Shown, String> {
    let at = shown(zone, t)?;
    let kind = |at: DateTime| zone.to_ambiguous_timestamp(at).offset();
    if hhmm(at) != time % 2400 {
        // Only a reading that the clock left out excuses this; it would have been on this day.
        let hour = i8::try_from(time / 100).map_err(|e| e.to_string())?;
        let minute = i8::try_from(time % 100).map_err(|e| e.to_string())?;
        let due = at.date().at(hour, minute, 0, 0);
        return match kind(due) {
            AmbiguousOffset::Gap { .. } => Ok(Shown::Skipped),
            _ => Err(format!("the instant reads {at} there, but the column {time}")),
        };
    }
    if t <= after {
        return Err(format!("the instant that reads {at} is not after the departure"));
    }
    // An earlier instant with the same reading is whole days earlier, give or take the change of the clock in between.
    let offset = |t| -> Result<i64, String> {
        let t = Timestamp::from_second(t).map_err(|e| e.to_string())?;
        Ok(i64::from(zone.to_offset(t).seconds()))
    };
    let change = offset(t)? - offset(after)?;
    for earlier in [t - 86_400, t - 86_400 + change, t + change] {
        if after < earlier && earlier < t && hhmm(shown(zone, earlier)?) == time % 2400 {
            return Err(format!("the clock reads {time} before the instant that reads {at}"));
        }
    }
    match kind(at) {
        AmbiguousOffset::Fold { .. } => Ok(Shown::Twice),
        _ => Ok(Shown::Once),
    }
}
