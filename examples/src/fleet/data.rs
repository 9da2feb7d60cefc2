//! Reading the data files, and the flights in memory: 40 bytes each, grouped by tenant.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::row::Row;

/// Where the data files are unless a caller says otherwise.
pub const DEFAULT_DIR: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/data");

/// The name of the tenant that holds the flights without a tail number (all of them cancelled).
pub const NO_TAIL: &str = "no-tail";

/// Rows in `flights.csv`.
pub const FLIGHTS: usize = 336_776;
/// Rows in `airports.csv`.
pub const AIRPORTS: usize = 1_458;
/// Rows in `airlines.csv`.
pub const AIRLINES: usize = 16;
/// Tenants in the whole fleet: 4,043 tail numbers and [`NO_TAIL`].
pub const TENANTS: usize = 4_044;

/// "Not available" in a column of [`Flight`]. No real value comes near it, and reading refuses one that does.
const NA: i16 = i16::MIN;

/// One row of `flights.csv`, packed: codes are indexes into the tables of its [`Dataset`], `NA` is a reserved value.
///
/// Read it through [`Dataset::rows`].
#[derive(Debug, Clone, Copy)]
pub struct Flight {
    id: u32,
    time_hour: u32,
    tail: u16,
    year: i16,
    dep_time: i16,
    sched_dep_time: i16,
    dep_delay: i16,
    arr_time: i16,
    sched_arr_time: i16,
    arr_delay: i16,
    flight: i16,
    air_time: i16,
    distance: i16,
    month: u8,
    day: u8,
    hour: u8,
    minute: u8,
    carrier: u8,
    origin: u8,
    dest: u8,
}

/// One tenant: an aircraft and its flights.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tenant {
    /// The tail number, or [`NO_TAIL`]. Letters, digits and `-` only, so it can name a file.
    pub name: String,
    /// Where its flights are in [`Dataset::flights`], in the order of `flights.csv`.
    pub flights: Range<usize>,
}

/// One row of `airports.csv`, as far as the migration needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Airport {
    /// The three letters of the FAA.
    pub faa: String,
    /// Its name.
    pub name: String,
    /// The IANA name of its time zone, if the data has one.
    pub tzone: Option<String>,
}

/// One row of `airlines.csv`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Airline {
    /// The carrier code.
    pub carrier: String,
    /// The name of the company.
    pub name: String,
}

/// Flights, airports and airlines, checked when they are read. About 15 MB.
#[derive(Debug)]
pub struct Dataset {
    flights: Vec<Flight>,
    tenants: Vec<Tenant>,
    /// Codes of airports that flights use, by the index in [`Flight`]. Not all of them are in `airports`.
    codes: Vec<String>,
    airports: Vec<Airport>,
    airlines: Vec<Airline>,
}

/// A data file cannot be used. Its `Display` is one line that names the file, the cause and the remedy.
#[derive(Debug)]
pub enum DataError {
    /// The file is not there.
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// The file is there and cannot be read.
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The content is not what it should be: truncated, altered, or another file.
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

impl std::fmt::Display for DataError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The remedy depends on whose files they are: ours come back from the repository, others only from their owner.
        let remedy = |path: &Path| {
            if path.parent() == Some(Path::new(DEFAULT_DIR)) {
                "restore it with `git checkout -- examples/data`"
            } else {
                "copy it again from `examples/data` of the repository"
            }
        };
        match self {
            Self::Missing { path } => write!(f, "{} is missing: {}", path.display(), remedy(path)),
            Self::Unreadable { path, source } => {
                write!(f, "{} cannot be read ({source}): make it readable, or {}", path.display(), remedy(path))
            }
            Self::Damaged { path, reason } => {
                write!(f, "{} is damaged ({reason}): {}", path.display(), remedy(path))
            }
        }
    }
}

impl std::error::Error for DataError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Unreadable { source, .. } => Some(source),
            _ => None,
        }
    }
}

impl Dataset {
    /// Reads `flights.csv.zst`, `airports.csv.zst` and `airlines.csv.zst` in `dir` (see [`DEFAULT_DIR`]).
    ///
    /// # Errors
    /// A file is missing, unreadable, or its content is not the one that belongs there: the checksum of the zstd frame,
    /// the header line, the type of each value and the number of rows are checked.
    pub fn load(dir: &Path) -> Result<Self, DataError> {
        let mut airlines = Vec::with_capacity(AIRLINES);
        read(dir, "airlines.csv.zst", &["carrier", "name"], AIRLINES, |r| {
            airlines.push(Airline { carrier: r.text(0)?.to_owned(), name: r.text(1)?.to_owned() });
            Ok(())
        })?;

        let mut airports = Vec::with_capacity(AIRPORTS);
        let header = ["faa", "name", "lat", "lon", "alt", "tz", "dst", "tzone"];
        read(dir, "airports.csv.zst", &header, AIRPORTS, |r| {
            airports.push(Airport {
                faa: r.text(0)?.to_owned(),
                name: r.text(1)?.to_owned(),
                tzone: r.text_or_na(7)?.map(str::to_owned),
            });
            Ok(())
        })?;

        let mut flights = Vec::with_capacity(FLIGHTS);
        let mut tails = Interner::default();
        let mut codes = Interner::default();
        read(dir, "flights.csv.zst", &super::row::COLUMNS, FLIGHTS, |r| {
            let carrier = r.text(9)?;
            let carrier = airlines
                .iter()
                .position(|a| a.carrier == carrier)
                .ok_or_else(|| format!("carrier {carrier} is not in airlines.csv.zst"))?;
            flights.push(Flight {
                // The count of rows is checked against a constant below, so it fits.
                id: flights.len() as u32 + 1,
                year: r.number(0)?,
                month: r.small(1)?,
                day: r.small(2)?,
                dep_time: r.number_or_na(3)?,
                sched_dep_time: r.number(4)?,
                dep_delay: r.number_or_na(5)?,
                arr_time: r.number_or_na(6)?,
                sched_arr_time: r.number(7)?,
                arr_delay: r.number_or_na(8)?,
                carrier: carrier as u8,
                flight: r.number(10)?,
                tail: tails.index(r.text_or_na(11)?.unwrap_or(NO_TAIL))?,
                origin: narrow(codes.index(r.text(12)?)?)?,
                dest: narrow(codes.index(r.text(13)?)?)?,
                air_time: r.number_or_na(14)?,
                distance: r.number(15)?,
                hour: r.small(16)?,
                minute: r.small(17)?,
                time_hour: r.hour(18)?,
            });
            Ok(())
        })?;

        let tenants = group(&mut flights, tails.names);
        Ok(Self { flights, tenants, codes: codes.names, airports, airlines })
    }

    /// All flights, those of one tenant side by side.
    pub fn flights(&self) -> &[Flight] {
        &self.flights
    }

    /// The tenants: tail numbers in ascending order, then [`NO_TAIL`].
    pub fn tenants(&self) -> &[Tenant] {
        &self.tenants
    }

    /// The tenant of this name.
    pub fn tenant(&self, name: &str) -> Option<&Tenant> {
        self.tenants.iter().find(|t| t.name == name)
    }

    /// All airports, in the order of the file.
    pub fn airports(&self) -> &[Airport] {
        &self.airports
    }

    /// All airlines, in the order of the file.
    pub fn airlines(&self) -> &[Airline] {
        &self.airlines
    }

    /// The flights of `tenant` as rows, in the order of `flights.csv`.
    ///
    /// # Panics
    /// If `tenant` comes from another dataset and lies outside this one.
    pub fn rows<'a>(&'a self, tenant: &'a Tenant) -> impl Iterator<Item = Row<'a>> + 'a {
        let tailnum = (tenant.name != NO_TAIL).then_some(tenant.name.as_str());
        self.flights[tenant.flights.clone()].iter().map(move |f| self.row(f, tailnum))
    }

    /// One of [`flights`](Self::flights) as a row.
    ///
    /// # Panics
    /// If `flight` comes from another dataset and its codes are not in this one.
    pub fn row_of<'a>(&'a self, flight: &Flight) -> Row<'a> {
        let tenant = &self.tenants[usize::from(flight.tail)];
        self.row(flight, (tenant.name != NO_TAIL).then_some(tenant.name.as_str()))
    }

    fn row<'a>(&'a self, f: &Flight, tailnum: Option<&'a str>) -> Row<'a> {
        let opt = |v: i16| (v != NA).then_some(i64::from(v));
        Row {
            id: f.id.into(),
            year: f.year.into(),
            month: f.month.into(),
            day: f.day.into(),
            dep_time: opt(f.dep_time),
            sched_dep_time: f.sched_dep_time.into(),
            dep_delay: opt(f.dep_delay),
            arr_time: opt(f.arr_time),
            sched_arr_time: f.sched_arr_time.into(),
            arr_delay: opt(f.arr_delay),
            carrier: &self.airlines[usize::from(f.carrier)].carrier,
            flight: f.flight.into(),
            tailnum,
            origin: &self.codes[usize::from(f.origin)],
            dest: &self.codes[usize::from(f.dest)],
            air_time: opt(f.air_time),
            distance: f.distance.into(),
            hour: f.hour.into(),
            minute: f.minute.into(),
            time_hour: hour_text(f.time_hour).into(),
        }
    }
}

/// Sorts the flights by tenant, and by row within a tenant, and says where each tenant begins and ends.
fn group(flights: &mut [Flight], mut names: Vec<String>) -> Vec<Tenant> {
    let mut order: Vec<usize> = (0..names.len()).collect();
    order.sort_unstable_by_key(|&i| (names[i] == NO_TAIL, names[i].as_str()));
    let mut rank = vec![0_u16; names.len()];
    for (place, &i) in order.iter().enumerate() {
        rank[i] = place as u16; // an index from `Interner`, which hands out no more than fit
    }
    for f in flights.iter_mut() {
        f.tail = rank[usize::from(f.tail)];
    }
    flights.sort_unstable_by_key(|f| (f.tail, f.id));
    let mut start = 0;
    flights
        .chunk_by(|a, b| a.tail == b.tail)
        .map(|chunk| {
            let name = std::mem::take(&mut names[order[usize::from(chunk[0].tail)]]);
            let tenant = Tenant { name, flights: start..start + chunk.len() };
            start += chunk.len();
            tenant
        })
        .collect()
}

/// Hours since 1970 as `2013-01-01T10:00:00Z`.
fn hour_text(hours: u32) -> String {
    // An hour that was read from a valid timestamp is one.
    Timestamp::from_second(i64::from(hours) * 3600).map(|t| t.to_string()).unwrap_or_default()
}

/// Gives each distinct text a number.
#[derive(Default)]
struct Interner {
    names: Vec<String>,
    indexes: HashMap<String, u16>,
}

impl Interner {
    fn index(&mut self, name: &str) -> Result<u16, String> {
        if let Some(&i) = self.indexes.get(name) {
            return Ok(i);
        }
        let i = u16::try_from(self.names.len()).map_err(|_| "too many distinct codes".to_owned())?;
        self.names.push(name.to_owned());
        self.indexes.insert(name.to_owned(), i);
        Ok(i)
    }
}

fn narrow(index: u16) -> Result<u8, String> {
    u8::try_from(index).map_err(|_| "too many distinct airports".to_owned())
}

/// One record of a CSV file, with typed access to its fields. Errors say the column.
struct Record<'a> {
    record: &'a csv::StringRecord,
    columns: &'a [&'a str],
}

impl<'a> Record<'a> {
    fn text_or_na(&self, column: usize) -> Result<Option<&'a str>, String> {
        match self.record.get(column) {
            Some("" | "NA") => Ok(None),
            Some(text) => Ok(Some(text)),
            None => Err(format!("{} is missing", self.columns[column])),
        }
    }

    fn text(&self, column: usize) -> Result<&'a str, String> {
        self.text_or_na(column)?.ok_or_else(|| format!("{} is empty", self.columns[column]))
    }

    fn parse<T: std::str::FromStr>(&self, column: usize, text: &str) -> Result<T, String> {
        text.parse().map_err(|_| format!("{} is {text:?}", self.columns[column]))
    }

    fn number(&self, column: usize) -> Result<i16, String> {
        let text = self.text(column)?;
        let value = self.parse(column, text)?;
        if value == NA { Err(format!("{} is {text}", self.columns[column])) } else { Ok(value) }
    }

    fn number_or_na(&self, column: usize) -> Result<i16, String> {
        if self.text_or_na(column)?.is_none() { Ok(NA) } else { self.number(column) }
    }

    fn small(&self, column: usize) -> Result<u8, String> {
        self.parse(column, self.text(column)?)
    }

    /// A full hour since 1970, in the one spelling that [`hour_text`] gives back.
    fn hour(&self, column: usize) -> Result<u32, String> {
        let text = self.text(column)?;
        let timestamp: Timestamp = self.parse(column, text)?;
        let hours = u32::try_from(timestamp.as_second() / 3600).ok();
        hours.filter(|&h| hour_text(h) == text).ok_or_else(|| format!("{} is {text:?}", self.columns[column]))
    }
}

/// Reads one file to its end and calls `each` for each record.
fn read(
    dir: &Path,
    name: &str,
    columns: &[&str],
    rows: usize,
    mut each: impl FnMut(&Record<'_>) -> Result<(), String>,
) -> Result<(), DataError> {
    let path = dir.join(name);
    let damaged = |reason: String| DataError::Damaged { path: path.clone(), reason };
    let file = File::open(&path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => DataError::Missing { path: path.clone() },
        _ => DataError::Unreadable { path: path.clone(), source },
    })?;
    let decoder = zstd::Decoder::new(file).map_err(|source| DataError::Unreadable { path: path.clone(), source })?;
    let mut reader = csv::Reader::from_reader(decoder);

    let header = reader.headers().map_err(|e| damaged(e.to_string()))?;
    if header.iter().ne(columns.iter().copied()) {
        return Err(damaged(format!("its first line is not {}", columns.join(","))));
    }
    let mut record = csv::StringRecord::new();
    let mut count = 0;
    // To the end of the file even when there are too many rows: only there does zstd compare the checksum, and a
    // damaged file should be called that and not "too long".
    while reader.read_record(&mut record).map_err(|e| damaged(e.to_string()))? {
        count += 1;
        if count <= rows {
            each(&Record { record: &record, columns }).map_err(|reason| damaged(format!("row {count}: {reason}")))?;
        }
    }
    if count == rows { Ok(()) } else { Err(damaged(format!("{count} rows, expected {rows}"))) }
}
