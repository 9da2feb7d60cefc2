//! A flight with its original columns, the same whether it comes from the data or from a database, and the checksum over it.

use std::borrow::Cow;

use rusqlite::types::ValueRef;

/// The columns of `flights.csv`, in its order.
pub const COLUMNS: [&str; 19] = [
    "year",
    "month",
    "day",
    "dep_time",
    "sched_dep_time",
    "dep_delay",
    "arr_time",
    "sched_arr_time",
    "arr_delay",
    "carrier",
    "flight",
    "tailnum",
    "origin",
    "dest",
    "air_time",
    "distance",
    "hour",
    "minute",
    "time_hour",
];

/// One flight. Clock times are `hhmm` on the clock of the airport (`2400` is midnight), delays and durations minutes.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the columns of flights.csv under their own names")]
pub struct Row<'a> {
    /// The row of `flights.csv`, from 1.
    pub id: i64,
    pub year: i64,
    pub month: i64,
    pub day: i64,
    pub dep_time: Option<i64>,
    pub sched_dep_time: i64,
    pub dep_delay: Option<i64>,
    pub arr_time: Option<i64>,
    pub sched_arr_time: i64,
    pub arr_delay: Option<i64>,
    pub carrier: &'a str,
    pub flight: i64,
    pub tailnum: Option<&'a str>,
    pub origin: &'a str,
    pub dest: &'a str,
    pub air_time: Option<i64>,
    pub distance: i64,
    pub hour: i64,
    pub minute: i64,
    /// The UTC hour of the scheduled departure, as `2013-01-01T10:00:00Z`.
    pub time_hour: Cow<'a, str>,
}

impl<'a> Row<'a> {
    /// Reads the first 20 columns of a query that selects `id` and then [`COLUMNS`].
    ///
    /// # Errors
    /// A column is missing or has another type.
    pub fn from_sql(row: &'a rusqlite::Row<'_>) -> rusqlite::Result<Self> {
        let text_or_null = |i: usize| -> rusqlite::Result<Option<&'a str>> {
            let value = row.get_ref(i)?;
            value.as_str_or_null().map_err(|_| wrong_type(i, &value))
        };
        let text =
            |i: usize| -> rusqlite::Result<&'a str> { text_or_null(i)?.ok_or_else(|| wrong_type(i, &ValueRef::Null)) };
        Ok(Self {
            id: row.get(0)?,
            year: row.get(1)?,
            month: row.get(2)?,
            day: row.get(3)?,
            dep_time: row.get(4)?,
            sched_dep_time: row.get(5)?,
            dep_delay: row.get(6)?,
            arr_time: row.get(7)?,
            sched_arr_time: row.get(8)?,
            arr_delay: row.get(9)?,
            carrier: text(10)?,
            flight: row.get(11)?,
            tailnum: text_or_null(12)?,
            origin: text(13)?,
            dest: text(14)?,
            air_time: row.get(15)?,
            distance: row.get(16)?,
            hour: row.get(17)?,
            minute: row.get(18)?,
            time_hour: Cow::Borrowed(text(19)?),
        })
    }
}

/// The error that [`rusqlite::Row::get`] gives with the name of the column, which `get_ref` does not know.
fn wrong_type(column: usize, value: &ValueRef<'_>) -> rusqlite::Error {
    let name = if column == 0 { "id" } else { COLUMNS[column - 1] };
    rusqlite::Error::InvalidColumnType(column, name.to_owned(), value.data_type())
}

/// A checksum over rows in their order: 64-bit FNV-1a over a tag, and the value as little-endian integer or as length and
/// bytes, of `id` and of each column in the order of [`COLUMNS`].
///
/// Made to notice mistakes, not attacks. The same on every machine and in every version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checksum(u64);

impl Default for Checksum {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Checksum {
    /// Takes one more row in.
    pub fn add(&mut self, row: &Row<'_>) {
        self.int(row.id);
        self.int(row.year);
        self.int(row.month);
        self.int(row.day);
        self.opt(row.dep_time);
        self.int(row.sched_dep_time);
        self.opt(row.dep_delay);
        self.opt(row.arr_time);
        self.int(row.sched_arr_time);
        self.opt(row.arr_delay);
        self.text(row.carrier);
        self.int(row.flight);
        match row.tailnum {
            Some(tail) => self.text(tail),
            None => self.bytes(&[0]),
        }
        self.text(row.origin);
        self.text(row.dest);
        self.opt(row.air_time);
        self.int(row.distance);
        self.int(row.hour);
        self.int(row.minute);
        self.text(&row.time_hour);
    }

    /// The checksum of what was added.
    pub fn value(&self) -> u64 {
        self.0
    }

    fn opt(&mut self, value: Option<i64>) {
        match value {
            Some(v) => self.int(v),
            None => self.bytes(&[0]),
        }
    }

    fn int(&mut self, value: i64) {
        self.bytes(&[1]);
        self.bytes(&value.to_le_bytes());
    }

    fn text(&mut self, value: &str) {
        self.bytes(&[2]);
        self.bytes(&(value.len() as u64).to_le_bytes());
        self.bytes(value.as_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        for &b in bytes {
            self.0 = (self.0 ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}
