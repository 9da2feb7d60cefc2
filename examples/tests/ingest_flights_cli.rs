//! The ingest as its user runs it: into SQLite and PostgreSQL, and with bad input.
#![expect(clippy::unwrap_used, reason = "in the helpers of tests")]

use std::path::PathBuf;
use std::process::{Command, Output};

use fullbore_testkit::Postgres;
use postgres::{Client, NoTls};
use rusqlite::Connection;

/// Cargo builds the examples beside the tests: `<target>/<profile>/examples`.
fn program() -> PathBuf {
    let profile = std::env::current_exe().unwrap().ancestors().nth(2).unwrap().to_owned();
    let program = profile.join("examples/ingest_flights");
    assert!(program.is_file(), "{} is built by `cargo test` without a target filter", program.display());
    program
}

fn run(words: &[&str]) -> Output {
    Command::new(program()).args(words).output().unwrap()
}

fn error_of(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The lines of a run that went well.
fn lines(words: &[&str]) -> Vec<String> {
    let output = run(words);
    assert_eq!(output.status.code(), Some(0), "{words:?}: {}", error_of(&output));
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

/// What was checked: rows and checksum.
fn checked(lines: &[String]) -> &str {
    lines.last().and_then(|line| line.strip_prefix("checked: ")).unwrap_or_else(|| panic!("{lines:?}"))
}

#[test]
fn wrong_usage_is_one_line_with_the_remedy_and_status_2() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, [b'x'; 4096]).unwrap();
    // Below a file there can be no other, whoever asks.
    let below_a_file = file.join("db");
    for (words, says) in [
        (&["--rows", "0"][..], "give 1 to 336776"),
        (&["--rows", "336777"], "give 1 to 336776"),
        (&["--rows", "-1"], "give 1 to 336776"),
        (&["--rows"], "--rows needs a value"),
        (&["--producers", "0"], "give 1 to 256"),
        (&["--producers", "many"], "give 1 to 256"),
        (&["--batch", "0"], "give 1 to 100000"),
        (&["--batch", "100001"], "give 1 to 100000"),
        (&["--durability", "none"], "give full or normal"),
        (&["--fast"], "--fast"),
        (&["here"], "here"),
        (&["--db", "x", "--postgres", "y"], "name one"),
        (&["--postgres", "http://localhost"], "give postgres://user:password@host:port/database"),
        (&["--postgres", "host=localhost port=none"], "give postgres://user:password@host:port/database"),
        (&["--db", below_a_file.to_str().unwrap()], "name another file with --db"),
        (&["--db", "/nowhere/at/all"], "name another file with --db"),
        (&["--db", file.to_str().unwrap()], "file is not a database"),
    ] {
        let output = run(words);
        let error = error_of(&output);
        assert_eq!(output.status.code(), Some(2), "{words:?}: {error}");
        assert!(error.contains(says) && error.trim_end().lines().count() == 1, "{words:?}: {error}");
        assert!(output.stdout.is_empty(), "{words:?}");
    }
}

#[test]
fn help_says_what_it_does() {
    let output = run(&["--help"]);
    assert_eq!(output.status.code(), Some(0));
    assert!(String::from_utf8_lossy(&output.stdout).contains("--durability full|normal"));
}

#[test]
fn missing_data_and_a_missing_server_are_one_line_and_status_1() {
    let dir = tempfile::tempdir().unwrap();
    let missing = run(&["--data", dir.path().to_str().unwrap()]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(error_of(&missing).contains("airlines.csv.zst is missing"), "{}", error_of(&missing));
    // Port 1 is nobody's.
    let nobody = run(&["--postgres", "postgres://postgres@127.0.0.1:1/postgres", "--rows", "1"]);
    assert_eq!(nobody.status.code(), Some(1));
    let error = error_of(&nobody);
    assert!(error.contains("cannot connect") && error.trim_end().lines().count() == 1, "{error}");
}

#[test]
fn into_sqlite_everything_arrives_whoever_sends_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("flights.db");
    let words = ["--rows", "20000", "--db", path.to_str().unwrap(), "--producers", "8", "--durability", "normal"];
    let eight = lines(&words);
    assert!(checked(&eight).starts_with("20000 rows"), "{eight:?}");
    let one = lines(&["--rows", "20000", "--producers", "1", "--batch", "7777"]);
    assert_eq!(checked(&one), checked(&eight));
    assert!(one[1].starts_with("3 batches of "), "{one:?}");
    assert!(lines(&["--rows", "1", "--producers", "256"])[1].starts_with("1 batches of 1 to 1 rows"));

    // It is kept, and not written to twice.
    let database = Connection::open(&path).unwrap();
    let flights: i64 = database.query_row("SELECT count(*) FROM flights", [], |row| row.get(0)).unwrap();
    assert_eq!(flights, 20_000);
    let again = run(&["--db", path.to_str().unwrap()]);
    assert_eq!(again.status.code(), Some(2));
    assert!(error_of(&again).contains("table flights already exists"), "{}", error_of(&again));
}

#[test]
fn into_postgresql_everything_arrives_and_nothing_twice() {
    let Some(server) = Postgres::start_or_skip() else { return };
    let url = server.url();
    let words = ["--postgres", &url, "--rows", "30000", "--producers", "3", "--durability", "normal"];
    let postgres = lines(&words);
    let sqlite = lines(&["--rows", "30000"]);
    assert_eq!(checked(&postgres), checked(&sqlite), "the same rows and the same checksum, computed by two databases");
    let again = run(&words);
    assert_eq!(again.status.code(), Some(2));
    assert!(error_of(&again).contains("drop it, or name another database"), "{}", error_of(&again));
    let rows: i64 = server.client().query_one("SELECT count(*) FROM flights", &[]).unwrap().get(0);
    assert_eq!(rows, 30_000);
}

/// Lets `body` see every row of a table as it is created.
fn meddle(server: &Postgres, database: &str, body: &str) -> String {
    let url = server.create_database(database);
    let setup = format!(
        "CREATE FUNCTION meddle() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body}; RETURN NEW; END $$;
         CREATE FUNCTION created() RETURNS event_trigger LANGUAGE plpgsql AS
             'BEGIN CREATE TRIGGER meddle BEFORE INSERT ON flights FOR EACH ROW EXECUTE FUNCTION meddle(); END';
         CREATE EVENT TRIGGER created ON ddl_command_end WHEN TAG IN ('CREATE TABLE') EXECUTE FUNCTION created()"
    );
    Client::connect(&url, NoTls).unwrap().batch_execute(&setup).unwrap();
    url
}

#[test]
fn what_the_database_alters_is_found_out_and_what_it_refuses_is_said() {
    let Some(server) = Postgres::start_or_skip() else { return };
    let altered = "IF NEW.id % 97 = 0 THEN NEW.minute := NEW.hour; NEW.hour := 1; END IF";
    let refused = "IF NEW.id % 97 = 0 THEN RAISE 'not this one'; END IF";
    for (name, body, says) in [
        ("alters", altered, "the table is not what was sent"),
        ("refuses", refused, "not written: db error: ERROR: not this one"),
    ] {
        let output = run(&["--rows", "10000", "--postgres", &meddle(&server, name, body)]);
        let error = error_of(&output);
        assert_eq!(output.status.code(), Some(1), "{error}");
        assert!(error.contains(says) && error.trim_end().lines().count() == 1, "{error}");
    }
}
