//! What a migration will write, complete and checked before it writes.

use std::sync::Arc;

use jiff::Timestamp;
use jiff::civil::Date;
use rusqlite::Connection;

use super::clock::{Clock, Reading};
use super::migrate::MigrateError;
use super::reference::Reference;
use super::row::{COLUMNS, Row};

const MINUTE: i64 = 60;
const HOUR: i64 = 3_600;

/// A text in the arena of a [`Plan`]: hundreds of flights repeat three or four short texts each, and one allocation holds
/// them all.
#[derive(Debug, Clone, Copy)]
pub(super) struct Text {
    start: usize,
    end: usize,
}

/// A flight as schema v2 has it.
#[derive(Debug)]
pub(super) struct FlightV2 {
    pub(super) id: i64,
    pub(super) year: i64,
    pub(super) month: i64,
    pub(super) day: i64,
    pub(super) dep_time: Option<i64>,
    pub(super) sched_dep_time: i64,
    pub(super) dep_delay: Option<i64>,
    pub(super) arr_time: Option<i64>,
    pub(super) sched_arr_time: i64,
    pub(super) arr_delay: Option<i64>,
    pub(super) carrier_id: i64,
    pub(super) flight: i64,
    pub(super) tailnum: Option<Text>,
    pub(super) origin: Text,
    pub(super) dest: Text,
    pub(super) air_time: Option<i64>,
    pub(super) distance: i64,
    pub(super) hour: i64,
    pub(super) minute: i64,
    pub(super) time_hour: Text,
    pub(super) sched_dep_utc: i64,
    pub(super) dep_utc: Option<i64>,
    pub(super) sched_arr_utc: Option<i64>,
    pub(super) arr_utc: Option<i64>,
}

/// A row of the table `carriers`.
#[derive(Debug)]
pub(super) struct Carrier {
    pub(super) id: i64,
    pub(super) code: String,
    pub(super) name: Arc<str>,
}

/// All rows of one tenant in schema v2.
#[derive(Debug, Default)]
pub(super) struct Plan {
    flights: Vec<FlightV2>,
    carriers: Vec<Carrier>,
    arena: String,
}

/// The four instants of a flight.
struct Utc {
    sched_dep: i64,
    dep: Option<i64>,
    sched_arr: Option<i64>,
    arr: Option<i64>,
}

impl Plan {
    /// Reads all flights of a v1 database and computes what v2 adds.
    pub(super) fn read(conn: &Connection, refs: &dyn Reference) -> Result<Self, MigrateError> {
        // The migration replaces the table, so what it does not know about would be lost with it.
        let objects: i64 = conn.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
        let mut select = conn.prepare("SELECT * FROM flights ORDER BY id")?;
        if objects != 1 || select.column_names().into_iter().ne(["id"].into_iter().chain(COLUMNS)) {
            return Err(MigrateError::violates(None, "its schema is not v1"));
        }
        let mut plan = Self::default();
        let mut clocks = Clocks { refs, known: Vec::new() };
        let mut rows = select.query([])?;
        while let Some(sql) = rows.next()? {
            let row = Row::from_sql(sql)?;
            let utc = clocks.utc(&row)?;
            plan.push(&row, &utc, refs)?;
        }
        Ok(plan)
    }

    fn push(&mut self, row: &Row<'_>, utc: &Utc, refs: &dyn Reference) -> Result<(), MigrateError> {
        let carrier_id = self.carrier(row, refs)?;
        let flight = FlightV2 {
            id: row.id,
            year: row.year,
            month: row.month,
            day: row.day,
            dep_time: row.dep_time,
            sched_dep_time: row.sched_dep_time,
            dep_delay: row.dep_delay,
            arr_time: row.arr_time,
            sched_arr_time: row.sched_arr_time,
            arr_delay: row.arr_delay,
            carrier_id,
            flight: row.flight,
            tailnum: row.tailnum.map(|text| self.store(text)),
            origin: self.store(row.origin),
            dest: self.store(row.dest),
            air_time: row.air_time,
            distance: row.distance,
            hour: row.hour,
            minute: row.minute,
            time_hour: self.store(&row.time_hour),
            sched_dep_utc: utc.sched_dep,
            dep_utc: utc.dep,
            sched_arr_utc: utc.sched_arr,
            arr_utc: utc.arr,
        };
        self.flights.push(flight);
        Ok(())
    }

    /// The id of the carrier of `row`, looked up when it is the first of it.
    fn carrier(&mut self, row: &Row<'_>, refs: &dyn Reference) -> Result<i64, MigrateError> {
        if let Some(known) = self.carriers.iter().find(|c| c.code == row.carrier) {
            return Ok(known.id);
        }
        let name = refs
            .carrier_name(row.carrier)
            .map_err(MigrateError::Reference)?
            .ok_or_else(|| MigrateError::violates(row.id, format!("no airline has the code {:?}", row.carrier)))?;
        let id = self.carriers.len() as i64 + 1;
        self.carriers.push(Carrier { id, code: row.carrier.to_owned(), name });
        Ok(id)
    }

    fn store(&mut self, text: &str) -> Text {
        let start = self.arena.len();
        self.arena.push_str(text);
        Text { start, end: self.arena.len() }
    }

    pub(super) fn text(&self, text: Text) -> &str {
        &self.arena[text.start..text.end]
    }

    pub(super) fn opt_text(&self, text: Option<Text>) -> Option<&str> {
        text.map(|t| self.text(t))
    }

    pub(super) fn flights(&self) -> &[FlightV2] {
        &self.flights
    }

    pub(super) fn carriers(&self) -> &[Carrier] {
        &self.carriers
    }

    pub(super) fn arrivals(&self) -> usize {
        self.flights.iter().filter(|f| f.arr_utc.is_some()).count()
    }
}

/// The clocks of the airports that one tenant flies to, each looked up once.
struct Clocks<'r> {
    refs: &'r dyn Reference,
    /// A tenant knows a dozen airports: a scan beats hashing.
    known: Vec<(String, Option<Clock>)>,
}

impl Clocks<'_> {
    fn of(&mut self, faa: &str) -> Result<Option<&mut Clock>, MigrateError> {
        let place = match self.known.iter().position(|(known, _)| known == faa) {
            Some(place) => place,
            None => {
                let zone = self.refs.zone(faa).map_err(MigrateError::Reference)?;
                self.known.push((faa.to_owned(), zone.map(Clock::new)));
                self.known.len() - 1
            }
        };
        Ok(self.known[place].1.as_mut())
    }

    /// The instants of one flight, and the checks that they deserve to be written.
    fn utc(&mut self, row: &Row<'_>) -> Result<Utc, MigrateError> {
        let violates = |reason: String| MigrateError::violates(row.id, reason);
        let time = |e: jiff::Error| MigrateError::violates(row.id, e.to_string());
        let minutes = |name: &str, hhmm: i64| {
            minute_of_day(hhmm).ok_or_else(|| violates(format!("{name} is {hhmm}, not a time of day")))
        };

        let date = date(row).ok_or_else(|| violates("its date does not exist".to_owned()))?;
        let origin = self
            .of(row.origin)?
            .ok_or_else(|| violates(format!("the time zone of its origin {} is unknown", row.origin)))?;
        let sched_dep = origin.instant(date, minutes("sched_dep_time", row.sched_dep_time)?).map_err(time)?;
        let hour: Timestamp =
            row.time_hour.parse().map_err(|e| violates(format!("time_hour is {:?}: {e}", row.time_hour)))?;
        if sched_dep.div_euclid(HOUR) * HOUR != hour.as_second() {
            return Err(violates(format!(
                "time_hour is {}, but {:04} at {} is {}",
                row.time_hour,
                row.sched_dep_time,
                row.origin,
                Timestamp::from_second(sched_dep).map_err(time)?
            )));
        }
        let dep = match (row.dep_time, row.dep_delay) {
            (None, None) => None,
            (Some(dep_time), Some(delay)) => {
                let dep = later(sched_dep, delay).ok_or_else(|| violates(absurd("dep_delay", delay)))?;
                if origin.minute_at(dep).map_err(time)? != minutes("dep_time", dep_time)? {
                    return Err(violates(format!(
                        "dep_time is {dep_time:04}, but {delay} minutes after {:04} at {} is {}",
                        row.sched_dep_time,
                        row.origin,
                        Timestamp::from_second(dep).map_err(time)?
                    )));
                }
                Some(dep)
            }
            _ => return Err(violates("it has only one of dep_time and dep_delay".to_owned())),
        };

        let sched_arr_minute = minutes("sched_arr_time", row.sched_arr_time)?;
        let arr_minute = row.arr_time.map(|t| minutes("arr_time", t)).transpose()?;
        let Some(dest) = self.of(row.dest)? else {
            return Ok(Utc { sched_dep, dep, sched_arr: None, arr: None });
        };
        let sched_arr = match dest.next(sched_dep, sched_arr_minute).map_err(time)? {
            Reading::At(t) | Reading::Skipped(t) => t,
        };
        let arr = match (dep, arr_minute) {
            (Some(dep), Some(minute)) => match dest.next(dep, minute).map_err(time)? {
                Reading::At(t) => Some(t),
                // The clock never showed it, so the delay is the better witness where there is one.
                Reading::Skipped(t) => match row.arr_delay {
                    Some(delay) => Some(later(sched_arr, delay).ok_or_else(|| violates(absurd("arr_delay", delay)))?),
                    None => Some(t),
                },
            },
            _ => None,
        };
        Ok(Utc { sched_dep, dep, sched_arr: Some(sched_arr), arr })
    }
}

fn date(row: &Row<'_>) -> Option<Date> {
    Date::new(row.year.try_into().ok()?, row.month.try_into().ok()?, row.day.try_into().ok()?).ok()
}

/// `t` and a delay in minutes.
fn later(t: i64, delay: i64) -> Option<i64> {
    t.checked_add(delay.checked_mul(MINUTE)?)
}

fn absurd(name: &str, value: i64) -> String {
    format!("{name} is {value}, beyond all clocks")
}

/// `hhmm` in minutes since midnight. `2400`, which the data uses for midnight, is 0.
fn minute_of_day(hhmm: i64) -> Option<i64> {
    let (hour, minute) = (hhmm / 100, hhmm % 100);
    match (hour, minute) {
        (24, 0) => Some(0),
        (0..24, 0..60) => Some(hour * 60 + minute),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_day() {
        assert_eq!(minute_of_day(0), Some(0));
        assert_eq!(minute_of_day(1), Some(1));
        assert_eq!(minute_of_day(517), Some(317));
        assert_eq!(minute_of_day(2359), Some(1439));
        assert_eq!(minute_of_day(2400), Some(0));
        for none in [-1, 60, 2360, 2401, 2500, i64::MIN, i64::MAX] {
            assert_eq!(minute_of_day(none), None, "{none}");
        }
    }

    #[test]
    fn delays_beyond_all_clocks() {
        assert_eq!(later(60, -2), Some(-60));
        assert_eq!(later(60, i64::MAX), None);
        assert_eq!(later(i64::MIN, -1), None);
    }
}
