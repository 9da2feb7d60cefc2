//! The data files: what they hold, and what a reader sees when they are missing or damaged.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::fs;
use std::path::Path;

use fullbore_examples::fleet::data::{AIRLINES, AIRPORTS, DEFAULT_DIR, FLIGHTS, TENANTS};
use fullbore_examples::fleet::reference::{self, FromControl, FromMemory};
use fullbore_examples::fleet::{DataError, Dataset, Flight, NO_TAIL, Reference};

const FILES: [&str; 3] = ["airlines.csv.zst", "airports.csv.zst", "flights.csv.zst"];

/// A directory with those of the data files that are named.
fn copy(files: &[&str]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for file in files {
        fs::copy(Path::new(DEFAULT_DIR).join(file), dir.path().join(file)).unwrap();
    }
    dir
}

/// The error, checked to be one line that names the file and a remedy.
fn refusal(dir: &Path, file: &str) -> DataError {
    let error = Dataset::load(dir).unwrap_err();
    let line = error.to_string();
    assert!(!line.contains('\n') && line.contains(file) && line.contains("examples/data"), "{line}");
    error
}

fn is_damaged(error: &DataError) -> bool {
    matches!(error, DataError::Damaged { .. })
}

#[test]
fn the_fleet_is_the_one_of_the_issue() {
    let data = Dataset::load(Path::new(DEFAULT_DIR)).unwrap();
    assert_eq!(data.flights().len(), FLIGHTS);
    assert_eq!(data.airports().len(), AIRPORTS);
    assert_eq!(data.airlines().len(), AIRLINES);
    assert_eq!(data.tenants().len(), TENANTS);
    assert!(size_of::<Flight>() <= 40);

    let (no_tail, tails) = data.tenants().split_last().unwrap();
    assert_eq!((no_tail.name.as_str(), no_tail.flights.len()), (NO_TAIL, 2_512));
    assert!(data.rows(no_tail).all(|row| row.tailnum.is_none() && row.dep_time.is_none()));
    assert!(tails.is_sorted_by(|a, b| a.name < b.name));
    assert!(tails.iter().all(|t| t.name.bytes().all(|b| b.is_ascii_alphanumeric())));
    assert_eq!(tails.iter().map(|t| t.flights.len()).min(), Some(1));
    assert_eq!(tails.iter().map(|t| t.flights.len()).max(), Some(575));

    // Side by side, without a gap, and each flight once.
    let mut next = 0;
    let mut ids = Vec::new();
    for tenant in data.tenants() {
        assert_eq!(tenant.flights.start, next);
        next = tenant.flights.end;
        assert!(data.rows(tenant).is_sorted_by(|a, b| a.id < b.id));
        ids.extend(data.rows(tenant).map(|row| row.id));
    }
    assert_eq!(next, FLIGHTS);
    ids.sort_unstable();
    assert!(ids.into_iter().eq(1..=FLIGHTS as i64));

    let first = data.tenant("N14228").unwrap();
    let row = data.rows(first).next().unwrap();
    assert_eq!((row.id, row.dep_time, row.sched_dep_time, row.dep_delay), (1, Some(517), 515, Some(2)));
    assert_eq!((row.carrier, row.flight, row.origin, row.dest), ("UA", 1545, "EWR", "IAH"));
    assert_eq!((row.air_time, row.distance, &*row.time_hour), (Some(227), 1400, "2013-01-01T10:00:00Z"));
}

/// Every value of every row, against a reader that knows nothing of packing: the text of the file written anew from the
/// dataset is the text of the file.
#[test]
fn nothing_is_lost_in_packing() {
    let data = Dataset::load(Path::new(DEFAULT_DIR)).unwrap();
    let file = fs::File::open(Path::new(DEFAULT_DIR).join("flights.csv.zst")).unwrap();
    let text = zstd::decode_all(file).unwrap();
    let lines: Vec<&str> = str::from_utf8(&text).unwrap().lines().collect();
    let na = |v: Option<i64>| v.map_or("NA".to_owned(), |v| v.to_string());
    for r in data.tenants().iter().flat_map(|t| data.rows(t)) {
        let line = format!(
            "{},{},{},{},{},{},{},{},{},{},{},{},{},{},{},{},{},{},{}",
            r.year,
            r.month,
            r.day,
            na(r.dep_time),
            r.sched_dep_time,
            na(r.dep_delay),
            na(r.arr_time),
            r.sched_arr_time,
            na(r.arr_delay),
            r.carrier,
            r.flight,
            r.tailnum.unwrap_or("NA"),
            r.origin,
            r.dest,
            na(r.air_time),
            r.distance,
            r.hour,
            r.minute,
            r.time_hour
        );
        assert_eq!(line, lines[usize::try_from(r.id).unwrap()]);
    }
}

#[test]
fn a_missing_file_is_named() {
    for (i, file) in FILES.iter().enumerate() {
        let dir = copy(&FILES[..i]);
        assert!(matches!(refusal(dir.path(), file), DataError::Missing { .. }));
    }
    // In the repository, the remedy is a command.
    let ours = DataError::Missing { path: Path::new(DEFAULT_DIR).join("flights.csv.zst") };
    assert!(ours.to_string().contains("`git checkout -- examples/data`"));
}

#[test]
fn an_unreadable_file_is_named() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join(FILES[0])).unwrap();
    // What reading a directory says is not the same everywhere, and neither is where it is said.
    assert!(!matches!(refusal(dir.path(), FILES[0]), DataError::Missing { .. }));
}

#[test]
fn a_truncated_file_is_damaged() {
    let whole = fs::read(Path::new(DEFAULT_DIR).join(FILES[0])).unwrap();
    let dir = tempfile::tempdir().unwrap();
    for length in 0..whole.len() {
        fs::write(dir.path().join(FILES[0]), &whole[..length]).unwrap();
        assert!(is_damaged(&refusal(dir.path(), FILES[0])), "at {length}");
    }
    let dir = copy(&FILES);
    let flights = dir.path().join(FILES[2]);
    let whole = fs::read(&flights).unwrap();
    for length in [whole.len() / 2, whole.len() - 1] {
        fs::write(&flights, &whole[..length]).unwrap();
        assert!(is_damaged(&refusal(dir.path(), FILES[2])), "at {length}");
    }
}

#[test]
fn a_flipped_bit_is_damage_or_makes_no_difference() {
    let whole = fs::read(Path::new(DEFAULT_DIR).join(FILES[0])).unwrap();
    let content = zstd::decode_all(&whole[..]).unwrap();
    let dir = tempfile::tempdir().unwrap();
    for bit in 0..whole.len() * 8 {
        let mut flipped = whole.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        fs::write(dir.path().join(FILES[0]), &flipped).unwrap();
        let error = Dataset::load(dir.path()).unwrap_err();
        // A bit may be spare (the size of the window). Then the airlines are whole, and the next file is the one missing.
        if !is_damaged(&error) {
            assert_eq!(zstd::decode_all(&flipped[..]).unwrap(), content, "bit {bit}: {error}");
            assert!(error.to_string().contains(FILES[1]), "bit {bit}: {error}");
        }
    }
    let dir = copy(&FILES);
    let flights = dir.path().join(FILES[2]);
    let whole = fs::read(&flights).unwrap();
    for at in [whole.len() / 3, whole.len() - 2] {
        let mut flipped = whole.clone();
        flipped[at] ^= 0x10;
        fs::write(&flights, &flipped).unwrap();
        assert!(is_damaged(&refusal(dir.path(), FILES[2])), "at {at}");
    }
}

#[test]
fn another_content_is_damage() {
    let content = zstd::decode_all(&fs::read(Path::new(DEFAULT_DIR).join(FILES[0])).unwrap()[..]).unwrap();
    let content = String::from_utf8(content).unwrap();
    let dir = tempfile::tempdir().unwrap();
    for (other, reason) in [
        (content.lines().take(16).map(|l| format!("{l}\n")).collect(), "15 rows, expected 16"),
        (format!("{content}ZZ,Nobody's Air\n"), "17 rows, expected 16"),
        (content.replace("carrier,name", "code,name"), "first line"),
        (content.replace("AA,American Airlines Inc.", "AA,NA"), "row 2: name is empty"),
        (content.replace("AA,American Airlines Inc.", "AA"), "record 2"),
    ] {
        fs::write(dir.path().join(FILES[0]), zstd::encode_all(other.as_bytes(), 1).unwrap()).unwrap();
        let line = refusal(dir.path(), FILES[0]).to_string();
        assert!(line.contains(reason), "{line}");
    }
}

#[test]
fn the_control_database_answers_as_the_data_does() {
    let data = Dataset::load(Path::new(DEFAULT_DIR)).unwrap();
    let mut conn = rusqlite::Connection::open_in_memory().unwrap();
    reference::write_control(&mut conn, &data).unwrap();
    // Twice is as once: a resumed run writes them again.
    reference::write_control(&mut conn, &data).unwrap();
    let memory = FromMemory::new(&data).unwrap();
    let control = FromControl::new(&conn);
    let mut known = 0;
    for faa in data.airports().iter().map(|a| a.faa.as_str()).chain(["BQN", "PSE", "SJU", "STT"]) {
        let zone = memory.zone(faa).unwrap();
        known += usize::from(zone.is_some());
        assert_eq!(control.zone(faa).unwrap(), zone, "{faa}");
    }
    assert_eq!(known, AIRPORTS - 3);
    for code in data.airlines().iter().map(|a| a.carrier.as_str()).chain(["ZZ"]) {
        assert_eq!(control.carrier_name(code).unwrap(), memory.carrier_name(code).unwrap());
    }
    assert_eq!(memory.carrier_name("UA").unwrap().as_deref(), Some("United Air Lines Inc."));
    assert!(control.carrier_name("ZZ").unwrap().is_none());
}
