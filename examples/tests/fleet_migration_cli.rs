//! The main job as its user runs it: bad input, a small run, a stop with Ctrl-C, a crash, and going on after both.
#![expect(clippy::unwrap_used, reason = "in the helpers of tests")]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// Cargo builds the examples beside the tests: `<target>/<profile>/examples`.
fn program() -> PathBuf {
    let profile = std::env::current_exe().unwrap().ancestors().nth(2).unwrap().to_owned();
    let program = profile.join("examples/fleet_migration");
    assert!(program.is_file(), "{} is built by `cargo test` without a target filter", program.display());
    program
}

fn run(words: &[&str]) -> Output {
    Command::new(program()).args(words).output().unwrap()
}

fn error_of(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The last line of standard output.
fn report(output: &Output) -> Value {
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(text.lines().last().unwrap_or_default()).unwrap_or_else(|_| panic!("{}", error_of(output)))
}

#[test]
fn wrong_usage_is_one_line_with_the_remedy_and_status_2() {
    for (words, says) in [
        (&["--tenants", "0"][..], "give 1 to 4044"),
        (&["--tenants", "4045"], "give 1 to 4044"),
        (&["--tenants", "many"], "give 1 to 4044"),
        (&["--tenants"], "--tenants needs a value"),
        (&["--workers", "0"], "give 1 to 512, or auto"),
        (&["--workers", "513"], "give 1 to 512, or auto"),
        (&["--resume"], "--resume needs --dir"),
        (&["--resume", "--dir", "no-run-is-here"], "no run to resume"),
        (&["--fast"], "--fast"),
        (&["here"], "here"),
    ] {
        let output = run(words);
        let error = error_of(&output);
        assert_eq!(output.status.code(), Some(2), "{words:?}: {error}");
        assert!(error.contains(says) && error.trim_end().lines().count() == 1, "{words:?}: {error}");
    }
    assert!(!Path::new("no-run-is-here").exists());
}

#[test]
fn help_says_what_it_does() {
    let output = run(&["--help"]);
    assert_eq!(output.status.code(), Some(0));
    assert!(String::from_utf8_lossy(&output.stdout).contains("--workers N|auto"));
}

#[test]
fn missing_and_damaged_data_and_a_bad_directory_are_one_line_and_status_1() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().to_str().unwrap();
    let missing = run(&["--data", data]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(error_of(&missing).contains("airlines.csv.zst is missing"), "{}", error_of(&missing));

    let original = Path::new(env!("CARGO_MANIFEST_DIR")).join("data");
    for name in ["airlines.csv.zst", "airports.csv.zst", "flights.csv.zst"] {
        std::fs::copy(original.join(name), dir.path().join(name)).unwrap();
    }
    let path = dir.path().join("flights.csv.zst");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes.truncate(bytes.len() / 2);
    std::fs::write(&path, bytes).unwrap();
    let damaged = run(&["--data", data]);
    assert_eq!(damaged.status.code(), Some(1));
    assert!(error_of(&damaged).contains("flights.csv.zst is damaged"), "{}", error_of(&damaged));

    // Below a file there can be no directory, whoever asks.
    let below_a_file = path.join("run");
    let refused = run(&["--dir", below_a_file.to_str().unwrap()]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(error_of(&refused).contains("choose another directory with --dir"), "{}", error_of(&refused));
}

#[test]
fn a_small_run_accounts_for_every_tenant_and_is_not_run_twice() {
    let dir = tempfile::tempdir().unwrap();
    let run_dir = dir.path().join("run");
    let run_dir = run_dir.to_str().unwrap();
    let output = run(&["--tenants", "40", "--workers", "auto", "--json", "--dir", run_dir]);
    assert_eq!(output.status.code(), Some(0), "{}", error_of(&output));
    let report = report(&output);
    assert_eq!(report["tenants"], 43);
    assert_eq!(report["migrated"], 41);
    assert_eq!(report["dead_lettered"], 2);
    assert_eq!(report["verified"], 41);
    for field in
        ["one_at_a_time_per_s", "fleet_per_s", "bare_loop_per_s", "speedup", "fsync_ms_p50", "cpu_ms_per_tenant"]
    {
        assert!(report[field].as_f64().is_some_and(|number| number > 0.0), "{field}: {report}");
    }
    for field in ["station", "kind", "share"] {
        assert!(!report["bottleneck"][field].is_null(), "{field}: {report}");
    }
    // Every tenant is in the audit log exactly once as done.
    let audit = std::fs::read_to_string(Path::new(run_dir).join("audit.jsonl")).unwrap();
    let done = audit.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let done = done.filter(|event| event["event"] != "retried").count();
    assert_eq!(done, 43);

    let again = run(&["--tenants", "40", "--dir", run_dir]);
    assert_eq!(again.status.code(), Some(2));
    assert!(error_of(&again).contains("holds a run already"), "{}", error_of(&again));
    let other = run(&["--tenants", "41", "--resume", "--dir", run_dir]);
    assert_eq!(other.status.code(), Some(2));
    assert!(error_of(&other).contains("leave --tenants out"), "{}", error_of(&other));
}

/// Starts a run of several rounds and waits until the first is over.
fn begun(dir: &Path) -> Child {
    let mut child = Command::new(program())
        .args(["--tenants", "1000", "--workers", "8", "--json", "--dir"])
        .arg(dir)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let first = lines.find(|line| line.as_ref().is_ok_and(|line| line.starts_with("round 1 of 4")));
    assert!(first.is_some(), "the run ended before its first round did");
    // Keeps reading, so that the run never waits for us.
    std::thread::spawn(move || lines.for_each(drop));
    child
}

fn finish(dir: &Path) -> Value {
    let output = run(&["--resume", "--json", "--dir", dir.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(0), "{}", error_of(&output));
    let report = report(&output);
    assert_eq!(report["migrated"], 1001);
    assert_eq!(report["verified"], 1001);
    assert_eq!(report["dead_lettered"], 2);
    report
}

fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

#[test]
fn ctrl_c_stops_cleanly_and_the_run_can_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let run_dir = dir.path().join("run");
    let mut child = begun(&run_dir);
    signal(&child, Signal::INT);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let already = finish(&run_dir)["already"].as_u64().unwrap();
    assert!((250..1000).contains(&already), "{already} of 1,000 had been migrated when it was stopped after a round");
}

#[test]
fn a_killed_run_can_go_on_and_nothing_is_migrated_twice() {
    let dir = tempfile::tempdir().unwrap();
    let run_dir = dir.path().join("run");
    let mut child = begun(&run_dir);
    signal(&child, Signal::KILL);
    child.wait().unwrap();
    let already = finish(&run_dir)["already"].as_u64().unwrap();
    assert!((250..1000).contains(&already), "{already} of 1,000 had been migrated when it was killed after a round");
}
