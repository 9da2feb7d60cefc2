//! `fullbore-batch` into databases: real flights, in large transactions, against what people do without a batcher.
//!
//! An operation is a row that is committed. Both sides write the same rows into a database of their own, which is counted and
//! emptied after each turn, outside the measured time.

use std::fs::File;
use std::io::{Read, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{LazyLock, Mutex};
use std::time::{Duration, Instant};

use fullbore_batch::{Batch, Batcher, CopyIn, IntoOutcomes, MultiRowInsert, PostgresRow, SqliteInsert};
use fullbore_testkit::Postgres;
use postgres::Client;
use rusqlite::{Connection, params};

use super::FITS;
use crate::measure::{Case, Side, Team};

const SQLITE: &str = "flights into SQLite, synchronous=FULL";
const BY_COPY: &str = "flights into PostgreSQL, COPY";
const BY_INSERT: &str = "flights into PostgreSQL, multi-row insert";

const HAND_WRITTEN: &str = "a hand-written loop, one transaction";
const SLOW_DISK: &str = "one transaction each, fsync 5 ms or more";
const FAST_DISK: &str = "one transaction each, fsync under 5 ms";
const COMMITTED: &str = "one committed INSERT each";

/// Cases and rivals that are not on every machine: there may be no server, and a disk is either slow or fast.
pub const NOT_EVERYWHERE: [(&str, &str); 4] =
    [(SQLITE, SLOW_DISK), (SQLITE, FAST_DISK), (BY_COPY, COMMITTED), (BY_INSERT, COMMITTED)];

/// Rows in a transaction.
const BATCH: usize = 10_000;

/// See the module. To be added to those of `batch`.
#[must_use]
pub fn db_cases() -> Vec<Case> {
    let one_each = if fsync() >= Duration::from_millis(5) { SLOW_DISK } else { FAST_DISK };
    let sqlite = Case::new(SQLITE, 1, sqlite_batcher).against(HAND_WRITTEN, sqlite_hand_written);
    let mut cases = vec![sqlite.against(one_each, sqlite_one_each)];
    if Postgres::is_installed() {
        cases.push(Case::new(BY_COPY, 1, || postgres_batcher(By::Copy)).against(COMMITTED, postgres_one_each));
        cases.push(Case::new(BY_INSERT, 1, || postgres_batcher(By::Insert)).against(COMMITTED, postgres_one_each));
    }
    cases
}

/// What a sync to disk takes, where the databases are. Of what is overwritten, as a write-ahead log is most of the time: a
/// file that grows can take far longer.
fn fsync() -> Duration {
    static MEDIAN: LazyLock<Duration> = LazyLock::new(|| {
        let mut file = tempfile::tempfile_in(parent()).expect("a file can be made beside the build");
        let mut sync = || {
            let began = Instant::now();
            let synced = file.rewind().and_then(|()| file.write_all(&[1; 4096])).and_then(|()| file.sync_data());
            synced.expect("it can be written to");
            began.elapsed()
        };
        sync();
        let mut times = [0; 11].map(|_| sync());
        times.sort_unstable();
        times[5]
    });
    *MEDIAN
}

/// Beside the build: the system's temporary directory is often in memory, where a sync costs nothing.
fn parent() -> PathBuf {
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target");
    if target.is_dir() { target } else { std::env::temp_dir() }
}

/// A row of `flights.csv`.
#[derive(Debug, serde::Deserialize)]
struct Flight {
    year: i32,
    month: i32,
    day: i32,
    dep_time: Option<i32>,
    sched_dep_time: i32,
    dep_delay: Option<i32>,
    arr_time: Option<i32>,
    sched_arr_time: i32,
    arr_delay: Option<i32>,
    carrier: String,
    flight: i32,
    tailnum: Option<String>,
    origin: String,
    dest: String,
    air_time: Option<i32>,
    distance: i32,
    hour: i32,
    minute: i32,
    time_hour: String,
}

const COLUMNS: usize = 19;
const CREATE: &str = "CREATE TABLE flights (year INT, month INT, day INT, dep_time INT, sched_dep_time INT,
    dep_delay INT, arr_time INT, sched_arr_time INT, arr_delay INT, carrier TEXT, flight INT, tailnum TEXT, origin TEXT,
    dest TEXT, air_time INT, distance INT, hour INT, minute INT, time_hour TEXT)";

/// The values of a flight in the order of the columns, for a driver's list.
macro_rules! values {
    ($list:ident, $f:ident) => {
        $list![
            $f.year,
            $f.month,
            $f.day,
            $f.dep_time,
            $f.sched_dep_time,
            $f.dep_delay,
            $f.arr_time,
            $f.sched_arr_time,
            $f.arr_delay,
            $f.carrier,
            $f.flight,
            $f.tailnum,
            $f.origin,
            $f.dest,
            $f.air_time,
            $f.distance,
            $f.hour,
            $f.minute,
            $f.time_hour
        ]
    };
}

macro_rules! references {
    ($($value:expr),*) => { &[$(&$value as &(dyn postgres::types::ToSql + Sync)),*] };
}

/// All flights of 2013 from New York.
pub(super) fn open_flights() -> csv::Reader<impl Read> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/data/flights.csv.zst");
    let file = File::open(path).expect("the flights are part of the repository");
    csv::Reader::from_reader(zstd::Decoder::new(file).expect("the file is whole"))
}

/// The flight of this number, going round.
fn flight(number: u64) -> &'static Flight {
    static FLIGHTS: LazyLock<Vec<Flight>> = LazyLock::new(|| {
        let mut reader = open_flights();
        // "NA" is a number to nobody.
        let mut record = csv::StringRecord::new();
        let header = reader.headers().expect("it has a header").clone();
        let mut flights = Vec::with_capacity(336_776);
        while reader.read_record(&mut record).expect("the file is whole") {
            let record: csv::StringRecord = record.iter().map(|field| if field == "NA" { "" } else { field }).collect();
            flights.push(record.deserialize(Some(&header)).expect("a flight"));
        }
        flights
    });
    &FLIGHTS[number as usize % FLIGHTS.len()]
}

/// How many rows there are; empties the table.
type Take = Box<dyn FnMut() -> u64>;

/// One thread that sends, and a batcher that writes.
fn through<O: IntoOutcomes<()>>(
    process: impl Fn(Batch<&'static Flight>) -> O + Send + Sync + 'static,
    mut take: Take,
) -> Side {
    let batcher = Batcher::builder().max_items(BATCH).build(process).expect(FITS);
    let handle = batcher.handle();
    let mut team = Team::new(1, move |_| {
        let handle = handle.clone();
        move |numbers| numbers.for_each(|number| handle.send(flight(number)).expect("room comes within 30 s"))
    });
    flight(0);
    Box::new(move |count| {
        let began = team.run(count).began;
        batcher.flush().expect("this is not the batcher's thread");
        let took = began.elapsed();
        assert_eq!(take(), count, "rows in the table");
        took
    })
}

/// What is written without a batcher.
fn bare(mut write: impl FnMut(u64) + 'static, mut take: Take) -> Side {
    flight(0);
    Box::new(move |count| {
        let began = Instant::now();
        write(count);
        let took = began.elapsed();
        assert_eq!(take(), count, "rows in the table");
        took
    })
}

// --- SQLite ---

const WORKS: &str = "the database works";

/// A connection to write through, and one to count and empty with.
fn sqlite() -> (Connection, Take) {
    let dir = tempfile::tempdir_in(parent()).expect("a directory can be made beside the build");
    let open = || Connection::open(dir.path().join("db")).expect(WORKS);
    let writer = open();
    writer.execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL").expect(WORKS);
    writer.execute_batch(CREATE).expect(WORKS);
    let counter = open();
    let take = move || {
        let _kept = &dir;
        counter.execute("DELETE FROM flights", []).expect(WORKS) as u64
    };
    (writer, Box::new(take))
}

fn insert_sql() -> String {
    format!("INSERT INTO flights VALUES ({})", vec!["?"; COLUMNS].join(", "))
}

fn sqlite_batcher() -> Side {
    let (writer, take) = sqlite();
    let writer = Mutex::new(writer);
    let insert = SqliteInsert::new(insert_sql(), |flight: &&Flight, to| to.put(values!(params, flight)));
    through(move |flights: Batch<_>| insert.write(&mut writer.lock().expect("nobody panics"), &flights), take)
}

fn sqlite_hand_written() -> Side {
    let (mut writer, take) = sqlite();
    let sql = insert_sql();
    let write = move |count| {
        let transaction = writer.transaction().expect(WORKS);
        let mut insert = transaction.prepare_cached(&sql).expect(WORKS);
        for flight in (0..count).map(flight) {
            insert.execute(values!(params, flight)).expect(WORKS);
        }
        drop(insert);
        transaction.commit().expect(WORKS);
    };
    bare(write, take)
}

fn sqlite_one_each() -> Side {
    let (writer, take) = sqlite();
    let sql = insert_sql();
    let write = move |count| {
        let mut insert = writer.prepare_cached(&sql).expect(WORKS);
        for flight in (0..count).map(flight) {
            insert.execute(values!(params, flight)).expect(WORKS);
        }
    };
    bare(write, take)
}

// --- PostgreSQL ---

#[derive(Clone, Copy)]
enum By {
    Copy,
    Insert,
}

/// A server of its own that waits for the disk, as in production: a client to write through, and one to count and empty with.
fn server() -> (Client, Take) {
    let server = Postgres::builder().fsync(true).start().unwrap_or_else(|error| panic!("{error}"));
    let (writer, mut counter) = (server.client(), server.client());
    counter.batch_execute(CREATE).expect(WORKS);
    let take = move || {
        let _kept = &server;
        let rows: i64 = counter.query_one("SELECT count(*) FROM flights", &[]).expect(WORKS).get(0);
        counter.batch_execute("TRUNCATE flights").expect(WORKS);
        rows as u64
    };
    (writer, Box::new(take))
}

fn columns() -> impl Iterator<Item = &'static str> {
    let list = CREATE.split_once('(').map_or("", |(_, list)| list);
    list.split(',').filter_map(|column| column.split_whitespace().next())
}

fn postgres_batcher(by: By) -> Side {
    let (writer, take) = server();
    let writer = Mutex::new(writer);
    let put = |flight: &&Flight, to: &mut PostgresRow<'_>| to.put(values!(references, flight));
    let lock = "nobody panics";
    match by {
        By::Copy => {
            let copy = CopyIn::new("flights", columns(), put);
            through(move |flights: Batch<_>| copy.write(&mut writer.lock().expect(lock), &flights), take)
        }
        By::Insert => {
            let insert = MultiRowInsert::new("flights", columns(), put);
            through(move |flights: Batch<_>| insert.write(&mut writer.lock().expect(lock), &flights), take)
        }
    }
}

fn postgres_one_each() -> Side {
    let (mut writer, take) = server();
    let marks: Vec<String> = (1..=COLUMNS).map(|n| format!("${n}")).collect();
    let insert = writer.prepare(&format!("INSERT INTO flights VALUES ({})", marks.join(", "))).expect(WORKS);
    let write = move |count| {
        for flight in (0..count).map(flight) {
            writer.execute(&insert, values!(references, flight)).expect(WORKS);
        }
    };
    bare(write, take)
}
