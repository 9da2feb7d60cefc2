//! The main job: the example `fleet_migration`, run as a program of its own.
//!
//! It measures itself: the fleet run, the bare loop and one at a time are interleaved within each run. Here are the ratios of
//! several runs.

use std::env;
use std::ffi::OsString;
use std::process::{Command, Stdio};

use serde::Deserialize;

use crate::board::{Better, Row, Subject};
use crate::goals;
use crate::measure::{Plan, Round};
use crate::stats;

/// This area's name on the scoreboard.
pub const NAME: &str = "examples";

const BARE: (&str, &str) = ("fleet migration", "bare loop");
const SLOW_DISK: (&str, &str) = ("fleet migration, fsync 5 ms or more", "one at a time");
const FAST_DISK: (&str, &str) =
    ("fleet migration, fsync under 5 ms: 0.8 of min(10, bare loop's gain)", "one at a time");
const MEMORY: (&str, &str) = ("fleet migration, peak memory", "300 MB");

/// The cases and rivals of [`rows`]; of the second and the third there is one, as the disk is.
pub const ROWS: [(&str, &str); 4] = [BARE, SLOW_DISK, FAST_DISK, MEMORY];

const MEMORY_MB: f64 = 300.0;
const SLOW_FSYNC_MS: f64 = 5.0;
/// What nobody is asked to exceed, however much the bare loop gains.
const ENOUGH: f64 = 10.0;

/// What the example reports, as far as it matters here.
#[derive(Debug, Deserialize)]
struct Report {
    tenants: u64,
    migrated: u64,
    dead_lettered: u64,
    verified: u64,
    workers: usize,
    one_at_a_time_per_s: f64,
    fleet_per_s: f64,
    bare_loop_per_s: f64,
    fsync_ms_p50: f64,
    /// `None` where the system does not tell.
    peak_rss_mb: Option<f64>,
}

/// Runs the example as often as `plan` says.
///
/// # Errors
/// It does not build, it fails, or its report does not add up.
pub fn rows(plan: &Plan) -> Result<Vec<Row>, String> {
    // Built apart, so that what fails is plain.
    let built = cargo("build").status().map_err(|error| format!("cannot start cargo: {error}"))?;
    if !built.success() {
        return Err(format!("the example does not build ({built})"));
    }
    let mut reports = Vec::new();
    for number in 1..=plan.runs {
        if plan.runs > 1 {
            eprintln!("fleet_migration, run {number} of {}", plan.runs);
        }
        reports.push(run(plan.quick)?);
    }
    Ok(judge(&reports))
}

/// As a user calls it.
fn cargo(command: &str) -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo")));
    cargo.args([command, "--quiet", "--release", "--example", "fleet_migration"]);
    cargo.args(["--manifest-path", concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml")]);
    cargo
}

fn run(quick: bool) -> Result<Report, String> {
    let mut call = cargo("run");
    call.args(["--", "--json"]).stdin(Stdio::null());
    if quick {
        call.args(["--tenants", "200"]);
    }
    let output = call.output().map_err(|error| format!("cannot start cargo: {error}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("fleet_migration failed ({}):\n{said}", output.status));
    }
    read(&String::from_utf8_lossy(&output.stdout))
}

/// The report is the last line.
fn read(output: &str) -> Result<Report, String> {
    let line = output.lines().last().unwrap_or_default();
    let report: Report = serde_json::from_str(line).map_err(|error| format!("the report `{line}`: {error}"))?;
    let Report { tenants, migrated, dead_lettered, verified, .. } = report;
    if verified != migrated || migrated + dead_lettered != tenants {
        return Err(format!("the report does not add up: `{line}`"));
    }
    Ok(report)
}

fn judge(reports: &[Report]) -> Vec<Row> {
    let rounds = |theirs: fn(&Report) -> f64| {
        let round = |report: &Report| Round { ours: report.fleet_per_s, theirs: theirs(report) };
        reports.iter().map(round).collect::<Vec<_>>()
    };
    let typical = |value: fn(&Report) -> f64| stats::median(&reports.iter().map(value).collect::<Vec<_>>()).value;
    let subject = |(case, rival)| {
        let threads = reports.first().map_or(0, |report| report.workers);
        Subject { area: NAME, case, rival, threads }
    };
    let goal = |(case, rival)| goals::of(NAME, case, rival);

    let (case, one_goal) = if typical(|report| report.fsync_ms_p50) >= SLOW_FSYNC_MS {
        (SLOW_DISK, goal(SLOW_DISK))
    } else {
        let gain = typical(|report| report.bare_loop_per_s / report.one_at_a_time_per_s);
        (FAST_DISK, goal(FAST_DISK) * gain.min(ENOUGH))
    };
    let mut rows = vec![
        Row::new(subject(BARE), "per_s", Better::More, &rounds(|report| report.bare_loop_per_s)),
        Row::with_goal(subject(case), "per_s", Better::More, &rounds(|report| report.one_at_a_time_per_s), one_goal),
    ];
    let memory: Option<Vec<Round>> =
        reports.iter().map(|report| report.peak_rss_mb.map(|ours| Round { ours, theirs: MEMORY_MB })).collect();
    if let Some(memory) = memory {
        rows.push(Row::new(subject(MEMORY), "MB", Better::Less, &memory));
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::board::Met;

    fn report(fsync: f64, one: f64, fleet: f64, bare: f64) -> Report {
        let line = format!(
            r#"{{"tenants":203,"migrated":201,"dead_lettered":2,"verified":201,"workers":64,"one_at_a_time_per_s":{one},
            "fleet_per_s":{fleet},"bare_loop_per_s":{bare},"fsync_ms_p50":{fsync},"peak_rss_mb":100.0,"more":[]}}"#
        );
        read(&format!("some line\n{}", line.replace('\n', ""))).unwrap()
    }

    #[test]
    fn a_slow_disk_asks_for_ten() {
        let rows = judge(&[report(5.5, 28.0, 365.0, 400.0)]);
        assert_eq!((rows[1].case, rows[1].goal, rows[1].met), (SLOW_DISK.0, 10.0, Met::Yes));
        assert_eq!((rows[2].ratio, rows[2].threads, rows[2].met), (3.0, 64, Met::Yes));
    }

    #[test]
    fn a_fast_disk_asks_for_what_the_bare_loop_gains() {
        let rows = judge(&[report(0.1, 100.0, 150.0, 200.0)]);
        assert_eq!((rows[0].ratio, rows[0].met), (0.75, Met::No));
        assert_eq!((rows[1].case, rows[1].goal, rows[1].met), (FAST_DISK.0, 1.6, Met::No));
        assert_eq!(judge(&[report(0.1, 1.0, 9.0, 20.0)])[1].goal, 8.0, "ten is enough");
    }

    #[test]
    fn a_report_that_does_not_add_up_is_refused() {
        let line = r#"{"tenants":3,"migrated":2,"dead_lettered":0,"verified":2,"workers":1,"one_at_a_time_per_s":1,
            "fleet_per_s":1,"bare_loop_per_s":1,"fsync_ms_p50":1,"peak_rss_mb":null}"#;
        assert!(read(&line.replace('\n', "")).unwrap_err().contains("does not add up"));
        assert!(read("").unwrap_err().contains("the report ``"));
    }
}
