//! The migration on the whole fleet, on the tenants that must be refused, and on what its verification must notice.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, LazyLock, Mutex};

use fullbore_examples::fleet::data::DEFAULT_DIR;
use fullbore_examples::fleet::migrate::{self, migrate};
use fullbore_examples::fleet::reference::FromMemory;
use fullbore_examples::fleet::row::{COLUMNS, Checksum, Row};
use fullbore_examples::fleet::verify::verify;
use fullbore_examples::fleet::{
    Dataset, FleetTruths, MigrateError, Reference, ReferenceError, Tenant, TenantFacts, faults, tenant,
};
use rusqlite::Connection;

static DATA: LazyLock<Dataset> = LazyLock::new(|| Dataset::load(Path::new(DEFAULT_DIR)).unwrap());
static REFS: LazyLock<FromMemory> = LazyLock::new(|| FromMemory::new(&DATA).unwrap());

/// A tenant of 111 flights of one carrier.
fn some_tenant() -> &'static Tenant {
    DATA.tenant("N14228").unwrap()
}

/// The v1 database of [`some_tenant`] in a directory of its own.
fn v1() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tenant.db");
    tenant::create(&path, some_tenant(), &DATA).unwrap();
    (dir, path)
}

fn migrate_at(path: &Path) -> Result<migrate::Migrated, MigrateError> {
    migrate(&mut migrate::open(path)?, &*REFS)
}

/// Files beside the database: a journal that was left behind.
fn companions(path: &Path) -> usize {
    fs::read_dir(path.parent().unwrap()).unwrap().count() - 1
}

#[test]
fn the_whole_fleet_migrates_and_holds_its_truths() {
    let dir = tempfile::tempdir().unwrap();
    let next = AtomicUsize::new(0);
    let found = Mutex::new(TenantFacts::default());
    // Enough threads that the disk's syncs overlap: the test is about the result.
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                let mut facts = TenantFacts::default();
                while let Some(tenant) = DATA.tenants().get(next.fetch_add(1, Relaxed)) {
                    let path = dir.path().join(&tenant.name);
                    tenant::create(&path, tenant, &DATA).unwrap();
                    let done = migrate_at(&path).unwrap();
                    assert_eq!((done.already, done.rows), (false, tenant.flights.len()));
                    let tenant_facts =
                        verify(&path, tenant, &DATA, &REFS).unwrap_or_else(|e| panic!("{}: {e}", tenant.name));
                    assert_eq!(done.arrivals as u64, tenant_facts.arrivals);
                    facts += tenant_facts;
                    fs::remove_file(&path).unwrap();
                }
                *found.lock().unwrap() += facts;
            });
        }
    });
    let found = *found.lock().unwrap();
    assert_eq!(found.differences(&FleetTruths::FULL), Vec::<String>::new());
    assert_eq!(found, FleetTruths::FULL);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "a journal was left behind");
}

/// The two flights for which the rules were made, by what they must give.
#[test]
fn the_arrivals_at_a_change_of_the_clock() {
    let arr_utc = |pick: &dyn Fn(&Row<'_>) -> bool| {
        let tenant = DATA.tenants().iter().find(|t| DATA.rows(t).any(|r| pick(&r))).unwrap();
        let id = DATA.rows(tenant).find(|r| pick(r)).unwrap().id;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tenant.db");
        tenant::create(&path, tenant, &DATA).unwrap();
        migrate_at(&path).unwrap();
        let conn = Connection::open(&path).unwrap();
        let sql = "SELECT strftime('%FT%TZ', arr_utc, 'unixepoch') FROM flights WHERE id = ?1";
        conn.query_row(sql, [id], |row| row.get::<_, String>(0)).unwrap()
    };
    let on = |r: &Row<'_>, month, day| (r.month, r.day) == (month, day);
    // 0203 on 10 March is not on the clock of Palm Beach, which goes from 0159 EST to 0300 EDT: it was 0303 EDT.
    let skipped = arr_utc(&|r| on(r, 3, 9) && r.dest == "PBI" && r.origin == "JFK" && r.arr_time == Some(203));
    assert_eq!(skipped, "2013-03-10T07:03:00Z");
    // Between 0100 and 0200 on 3 November, the first time.
    let twice = arr_utc(&|r| on(r, 11, 2) && r.dest == "LAX" && r.arr_time.is_some_and(|t| (100..200).contains(&t)));
    assert!(("2013-11-03T08:00:00Z".."2013-11-03T09:00:00Z").contains(&&*twice), "{twice}");
}

#[test]
fn v1_holds_the_original_columns() {
    let (_dir, path) = v1();
    let conn = Connection::open(&path).unwrap();
    let pragma = |name: &str| conn.query_row(&format!("PRAGMA {name}"), [], |r| r.get::<_, i64>(0)).unwrap();
    assert_eq!((pragma("user_version"), pragma("page_size")), (1, 4096));
    let mode: String = conn.query_row("PRAGMA journal_mode", [], |r| r.get(0)).unwrap();
    assert_eq!(mode, "delete");
    let mut select = conn.prepare(&format!("SELECT id, {} FROM flights ORDER BY id", COLUMNS.join(", "))).unwrap();
    let mut rows = select.query([]).unwrap();
    let mut sum = Checksum::default();
    let mut expected = DATA.rows(some_tenant());
    while let Some(sql) = rows.next().unwrap() {
        let row = Row::from_sql(sql).unwrap();
        assert_eq!(Some(&row), expected.next().as_ref());
        sum.add(&row);
    }
    assert!(expected.next().is_none());
    assert_eq!(sum.value(), tenant::checksum(some_tenant(), &DATA));
}

#[test]
fn the_checksum_notices_one_value_and_the_order() {
    let rows: Vec<_> = DATA.rows(some_tenant()).collect();
    let of = |rows: &[Row<'_>]| {
        let mut sum = Checksum::default();
        rows.iter().for_each(|row| sum.add(row));
        sum.value()
    };
    let whole = of(&rows);
    let mut other = rows.clone();
    other[7].air_time = None;
    assert_ne!(of(&other), whole);
    let mut other = rows.clone();
    other.swap(3, 4);
    assert_ne!(of(&other), whole);
    assert_ne!(of(&rows[1..]), whole);
    // The number itself is fixed: a stored checksum stays comparable.
    assert_eq!(of(&[]), 0xcbf2_9ce4_8422_2325);
    assert_eq!(of(&rows[..1]), FIRST_ROW, "{:#x}", of(&rows[..1]));
}

/// The checksum of row 1 of the file, computed by another program from the text of the file.
const FIRST_ROW: u64 = 0x355b_fac1_0af9_4e7c;

#[test]
fn a_second_migration_changes_nothing() {
    let (_dir, path) = v1();
    let mut conn = migrate::open(&path).unwrap();
    assert!(!migrate(&mut conn, &*REFS).unwrap().already);
    let bytes = fs::read(&path).unwrap();
    // On the same connection and on another.
    assert!(migrate(&mut conn, &*REFS).unwrap().already);
    assert!(migrate_at(&path).unwrap().already);
    assert_eq!(fs::read(&path).unwrap(), bytes);
    verify(&path, some_tenant(), &DATA, &REFS).unwrap();
}

#[test]
fn what_is_no_database_is_refused_and_kept() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(faults::NOT_A_DATABASE);
    faults::create_not_a_database(&path).unwrap();
    let bytes = fs::read(&path).unwrap();
    let error = migrate_at(&path).unwrap_err();
    assert!(matches!(error, MigrateError::NotADatabase(_)) && !error.is_transient(), "{error}");
    assert_eq!(fs::read(&path).unwrap(), bytes);
    assert_eq!(companions(&path), 0);
    // And what is not there is not made.
    assert!(matches!(migrate::open(&dir.path().join("none")), Err(MigrateError::Sqlite(_))));
    assert_eq!(companions(&path), 0);
}

#[test]
fn what_violates_is_refused_and_kept() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(faults::VIOLATES);
    faults::create_violating(&path, some_tenant(), &DATA).unwrap();
    let bytes = fs::read(&path).unwrap();
    for _ in 0..2 {
        let error = migrate_at(&path).unwrap_err();
        let last = DATA.rows(some_tenant()).last().unwrap().id;
        assert!(matches!(error, MigrateError::Violates { row: Some(row), .. } if row == last), "{error}");
        assert!(!error.is_transient());
        assert!(error.to_string().contains("time_hour"), "{error}");
        assert!(!error.to_string().contains('\n'), "{error}");
        assert_eq!(fs::read(&path).unwrap(), bytes);
        assert_eq!(companions(&path), 0);
    }
}

/// Whatever is wrong: refused with the reason, not transient, and the file keeps its bytes.
#[test]
fn every_contradiction_is_refused_and_kept() {
    for (damage, reason) in [
        ("PRAGMA user_version=0", "version is 0"),
        ("PRAGMA user_version=3", "version is 3"),
        ("ALTER TABLE flights ADD COLUMN note TEXT", "schema is not v1"),
        ("ALTER TABLE flights RENAME COLUMN hour TO stunde", "schema is not v1"),
        ("CREATE TABLE other (x)", "schema is not v1"),
        ("CREATE INDEX own ON flights (dest)", "schema is not v1"),
        ("UPDATE flights SET dep_time = dep_time + 1 WHERE id = 1", "dep_time is 0518"),
        ("UPDATE flights SET dep_delay = dep_delay + 1 WHERE id = 1", "3 minutes after 0515"),
        ("UPDATE flights SET dep_delay = NULL WHERE id = 1", "only one of"),
        ("UPDATE flights SET dep_delay = 9223372036854775807 WHERE id = 1", "beyond all clocks"),
        ("UPDATE flights SET dep_delay = 1000000000000 WHERE id = 1", "range"),
        ("UPDATE flights SET sched_dep_time = 575 WHERE id = 1", "not a time of day"),
        ("UPDATE flights SET arr_time = 2401 WHERE id = 1", "not a time of day"),
        ("UPDATE flights SET month = 13 WHERE id = 1", "date does not exist"),
        ("UPDATE flights SET year = 9223372036854775807 WHERE id = 1", "date does not exist"),
        ("UPDATE flights SET origin = 'SJU' WHERE id = 1", "origin SJU is unknown"),
        ("UPDATE flights SET carrier = 'ZZ' WHERE id = 1", "no airline"),
        ("UPDATE flights SET time_hour = 'ten' WHERE id = 1", "ten"),
        ("UPDATE flights SET arr_time = 'ten' WHERE id = 1", "arr_time is Text"),
        ("UPDATE flights SET dest = x'ff' WHERE id = 1", "dest is Blob"),
    ] {
        let (_dir, path) = v1();
        Connection::open(&path).unwrap().execute_batch(damage).unwrap();
        let bytes = fs::read(&path).unwrap();
        let error = migrate_at(&path).unwrap_err();
        assert!(matches!(error, MigrateError::Violates { .. }), "{damage}: {error:?}");
        assert!(!error.is_transient());
        assert!(error.to_string().contains(reason), "{damage}: {error}");
        assert_eq!(fs::read(&path).unwrap(), bytes, "{damage}");
        assert_eq!(companions(&path), 0, "{damage}");
    }
}

#[test]
fn an_empty_tenant_migrates() {
    let (_dir, path) = v1();
    Connection::open(&path).unwrap().execute_batch("DELETE FROM flights").unwrap();
    assert_eq!(migrate_at(&path).unwrap(), migrate::Migrated { already: false, rows: 0, arrivals: 0 });
}

#[test]
fn a_damaged_page_is_refused_and_kept() {
    let (_dir, path) = v1();
    let mut bytes = fs::read(&path).unwrap();
    // The root page of the table.
    bytes[4096..4196].fill(0xff);
    fs::write(&path, &bytes).unwrap();
    assert!(matches!(migrate_at(&path).unwrap_err(), MigrateError::NotADatabase(_)));
    assert_eq!(fs::read(&path).unwrap(), bytes);
}

#[test]
fn a_locked_tenant_is_busy_and_migrates_later() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(faults::LOCKED);
    faults::create_locked(&path, some_tenant(), &DATA).unwrap();
    let lock = faults::hold_lock(&path).unwrap();
    assert!(faults::hold_lock(&path).is_err());
    let mut conn = migrate::open(&path).unwrap();
    for _ in 0..3 {
        let error = migrate(&mut conn, &*REFS).unwrap_err();
        assert!(matches!(error, MigrateError::Busy) && error.is_transient(), "{error:?}");
    }
    // The guard may be dropped elsewhere.
    std::thread::spawn(move || drop(lock)).join().unwrap();
    assert!(!migrate(&mut conn, &*REFS).unwrap().already);
    verify(&path, some_tenant(), &DATA, &REFS).unwrap();
}

/// A reader does not stop the migration from writing, only from committing: the hardest place to be refused.
#[test]
fn busy_at_the_commit_leaves_the_tenant_as_it_was() {
    let (_dir, path) = v1();
    let reader = Connection::open(&path).unwrap();
    reader.execute_batch("BEGIN; SELECT count(*) FROM flights;").unwrap();
    let mut conn = migrate::open(&path).unwrap();
    assert!(matches!(migrate(&mut conn, &*REFS).unwrap_err(), MigrateError::Busy));
    assert!(conn.is_autocommit());
    assert_eq!(companions(&path), 0);
    reader.execute_batch("COMMIT").unwrap();
    let version: i64 = reader.query_row("PRAGMA user_version", [], |r| r.get(0)).unwrap();
    assert_eq!(version, 1);
    migrate(&mut conn, &*REFS).unwrap();
    verify(&path, some_tenant(), &DATA, &REFS).unwrap();
}

/// Reference data that cannot be had is not the tenant's fault.
#[test]
fn a_failed_lookup_is_transient_and_keeps_the_file() {
    struct Fails;
    impl Reference for Fails {
        fn zone(&self, faa: &str) -> Result<Option<jiff::tz::TimeZone>, ReferenceError> {
            REFS.zone(faa)
        }
        fn carrier_name(&self, _: &str) -> Result<Option<Arc<str>>, ReferenceError> {
            Err("the control database is away".into())
        }
    }
    let (_dir, path) = v1();
    let bytes = fs::read(&path).unwrap();
    let error = migrate(&mut migrate::open(&path).unwrap(), &Fails).unwrap_err();
    assert!(matches!(error, MigrateError::Reference(_)) && error.is_transient());
    assert!(error.source().unwrap().to_string().contains("away"));
    assert_eq!(fs::read(&path).unwrap(), bytes);
}

/// Each carrier and each airport is asked for once, however many flights there are.
#[test]
fn lookups_are_made_once_for_each_code() {
    struct Counts(Mutex<Vec<String>>);
    impl Reference for Counts {
        fn zone(&self, faa: &str) -> Result<Option<jiff::tz::TimeZone>, ReferenceError> {
            self.0.lock().unwrap().push(faa.to_owned());
            REFS.zone(faa)
        }
        fn carrier_name(&self, code: &str) -> Result<Option<Arc<str>>, ReferenceError> {
            self.0.lock().unwrap().push(code.to_owned());
            REFS.carrier_name(code)
        }
    }
    let (_dir, path) = v1();
    let counts = Counts(Mutex::default());
    migrate(&mut migrate::open(&path).unwrap(), &counts).unwrap();
    let mut asked = counts.0.into_inner().unwrap();
    let all = asked.len();
    asked.sort();
    asked.dedup();
    assert_eq!(asked.len(), all);
}

#[test]
fn verification_notices_what_is_wrong() {
    let (_dir, path) = v1();
    let unmigrated = verify(&path, some_tenant(), &DATA, &REFS).unwrap_err();
    assert!(unmigrated.to_string().contains("version is 1"));
    migrate_at(&path).unwrap();
    let migrated = fs::read(&path).unwrap();
    let flight = "(SELECT id FROM flights WHERE arr_utc IS NOT NULL LIMIT 1)";
    for (damage, reason) in [
        ("PRAGMA user_version=3".to_owned(), "version is 3"),
        ("DROP INDEX flights_dest_dep_utc".to_owned(), "it holds"),
        ("CREATE TABLE other (x)".to_owned(), "it holds"),
        (format!("UPDATE flights SET sched_dep_utc = sched_dep_utc + 60 WHERE id = {flight}"), "sched_dep_utc reads"),
        (
            format!("UPDATE flights SET sched_dep_utc = sched_dep_utc + 86400 WHERE id = {flight}"),
            "sched_dep_utc reads",
        ),
        (format!("UPDATE flights SET dep_utc = dep_utc + 86400 WHERE id = {flight}"), "dep_utc reads"),
        (format!("UPDATE flights SET dep_utc = NULL WHERE id = {flight}"), "not both there"),
        (format!("UPDATE flights SET sched_arr_utc = NULL WHERE id = {flight}"), "sched_arr_utc is missing"),
        (format!("UPDATE flights SET sched_arr_utc = sched_arr_utc + 60 WHERE id = {flight}"), "the instant reads"),
        (format!("UPDATE flights SET arr_utc = NULL WHERE id = {flight}"), "not both there"),
        (format!("UPDATE flights SET arr_utc = arr_utc + 60 WHERE id = {flight}"), "the instant reads"),
        (format!("UPDATE flights SET arr_utc = arr_utc - 86400 WHERE id = {flight}"), "not after the departure"),
        (format!("UPDATE flights SET arr_utc = arr_utc + 86400 WHERE id = {flight}"), "before the instant"),
        (format!("UPDATE flights SET arr_utc = 9223372036854775807 WHERE id = {flight}"), "range"),
        (format!("UPDATE flights SET tailnum = 'N1' WHERE id = {flight}"), "checksum"),
        (format!("UPDATE flights SET arr_delay = arr_delay + 1 WHERE id = {flight}"), "checksum"),
        (format!("DELETE FROM flights WHERE id = {flight}"), "flights, expected"),
        ("UPDATE carriers SET name = 'Nobody'".to_owned(), "has the name"),
        ("UPDATE carriers SET code = 'AA', name = 'American Airlines Inc.'".to_owned(), "checksum"),
        ("INSERT INTO carriers VALUES (9, 'AA', 'American Airlines Inc.')".to_owned(), "2 carriers"),
    ] {
        fs::write(&path, &migrated).unwrap();
        verify(&path, some_tenant(), &DATA, &REFS).unwrap();
        Connection::open(&path).unwrap().execute_batch(&damage).unwrap();
        let error = verify(&path, some_tenant(), &DATA, &REFS).expect_err(&damage);
        assert!(error.to_string().contains(reason), "{damage}: {error}");
    }
    // The right database for the wrong tenant.
    fs::write(&path, &migrated).unwrap();
    verify(&path, &DATA.tenants()[0], &DATA, &REFS).unwrap_err();
    // And what is no database at all.
    faults::create_not_a_database(&path).unwrap();
    verify(&path, some_tenant(), &DATA, &REFS).unwrap_err();
}
