//! The four processes with one cache as their user runs them: bad input, no Redis, a run with all its checks, Ctrl-C, a
//! crash. None of them leaves a process behind.
#![expect(clippy::unwrap_used, reason = "in the helpers of tests")]

use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::time::Duration;

use fullbore_testkit::{Redis, eventually, is_alive};
use rustix::process::{Pid, Signal, kill_process};

const LONG: Duration = Duration::from_secs(60);

/// Cargo builds the examples beside the tests: `<target>/<profile>/examples`.
fn program() -> PathBuf {
    let profile = std::env::current_exe().unwrap().ancestors().nth(2).unwrap().to_owned();
    let program = profile.join("examples/cached_api");
    assert!(program.is_file(), "{} is built by `cargo test` without a target filter", program.display());
    program
}

fn run(words: &[&str]) -> Output {
    Command::new(program()).args(words).output().unwrap()
}

fn error_of(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The processes that the run has told of.
fn processes(said: &str) -> Vec<u32> {
    let told = said.lines().filter(|line| line.contains("process"));
    told.filter_map(|line| line.split_once("process"))
        .flat_map(|(_, pids)| pids.split(|c: char| !c.is_ascii_digit()))
        .filter_map(|pid| pid.parse().ok())
        .collect()
}

#[test]
fn wrong_usage_is_one_line_with_the_remedy_and_status_2() {
    for (words, says) in [
        (&["--seconds", "0"][..], "give 1 to 3600"),
        (&["--seconds", "many"], "give 1 to 3600"),
        (&["--seconds"], "--seconds needs a value"),
        (&["--redis"], "--redis needs a value"),
        (&["--redis", "somewhere"], "redis://host:port/"),
        (&["--quick", "--seconds", "9"], "leave --seconds out"),
        (&["--node", "1"], "belong together"),
        (&["--fast"], "--fast"),
        (&["here"], "here"),
    ] {
        let output = run(words);
        let error = error_of(&output);
        assert_eq!(output.status.code(), Some(2), "{words:?}: {error}");
        assert!(error.contains(says) && error.trim_end().lines().count() == 1, "{words:?}: {error}");
    }
}

#[test]
fn help_says_what_it_does() {
    let output = run(&["--help"]);
    assert_eq!(output.status.code(), Some(0));
    assert!(said(&output).contains("--redis URL"));
}

#[test]
fn without_a_redis_server_it_says_that_it_is_skipped() {
    let dir = tempfile::tempdir().unwrap();
    let nowhere = dir.path().join("redis-server");
    let output = Command::new(program()).env("FULLBORE_REDIS_BIN", nowhere).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", error_of(&output));
    assert_eq!(said(&output), "skipped: redis-server is not installed\n");

    let path = Command::new(program()).env("PATH", dir.path()).env_remove("FULLBORE_REDIS_BIN").output().unwrap();
    assert_eq!(path.status.code(), Some(0), "{}", error_of(&path));
    assert_eq!(said(&path), "skipped: redis-server is not installed\n");
}

#[test]
fn a_redis_that_is_not_there_is_named_and_status_1() {
    let Some(redis) = Redis::start_or_skip() else { return };
    redis.kill_9(); // and nobody else gets its port
    let output = run(&["--redis", &redis.url()]);
    let error = error_of(&output);
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains(&redis.addr().to_string()) && error.contains("node 0 did not start"), "{error}");
}

fn assert_all_held(output: &Output) {
    let (said, error) = (said(output), error_of(output));
    assert_eq!(output.status.code(), Some(0), "{said}{error}");
    for check in ["one load of a cold item", "the others go on", "no old answer", "all see the newest"] {
        assert!(said.contains(&format!("ok: {check}")), "{check}: {said}{error}");
    }
    assert!(said.contains("upstream calls") && said.contains("p99"), "{said}");
    let all = processes(&said);
    assert!(all.len() >= 4, "{said}");
    for pid in all {
        assert!(!is_alive(pid), "process {pid} is left behind: {said}");
    }
}

#[test]
fn all_checks_hold_with_a_redis_of_its_own() {
    // Says so, if there is none.
    if Redis::start_or_skip().is_none() {
        return;
    }
    assert_all_held(&run(&["--quick"]));
}

#[test]
fn all_checks_hold_with_a_redis_of_ours_and_no_value_stays_there() {
    let Some(redis) = Redis::start_or_skip() else { return };
    assert_all_held(&run(&["--quick", "--redis", &redis.url()]));
    let left: Vec<String> = redis::cmd("KEYS").arg("*:k:*").query(&mut redis.client()).unwrap();
    assert!(left.is_empty(), "{left:?}");
}

/// Starts a long run, and waits until it says `when`; returns the processes it has told of until then.
fn begun(when: &str) -> (Child, BufReader<ChildStdout>, Vec<u32>) {
    let mut child = Command::new(program())
        .args(["--seconds", "600"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut said = String::new();
    while !said.contains(when) {
        let length = stdout.read_line(&mut said).unwrap();
        assert!(length > 0, "it ended early: {said}");
    }
    let all = processes(&said);
    assert!(all.len() >= 6, "{said}");
    assert!(all.iter().filter(|pid| is_alive(**pid)).count() == 6, "Redis, its keeper and four nodes: {said}");
    (child, stdout, all)
}

fn assert_all_end(all: &[u32]) {
    assert!(eventually(LONG, || !all.iter().any(|pid| is_alive(*pid))), "left behind, one of {all:?}");
}

#[test]
fn ctrl_c_ends_everything() {
    if Redis::start_or_skip().is_none() {
        return;
    }
    for when in ["4 nodes:", "started again:"] {
        let (mut child, _stdout, all) = begun(when);
        kill_process(Pid::from_child(&child), Signal::INT).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(130));
        let mut error = String::new();
        child.stderr.take().unwrap().read_to_string(&mut error).unwrap();
        assert_eq!(error, "cached_api: interrupted\n");
        // It has waited for its own; what those had is collected by the system.
        assert_all_end(&all);
    }
}

#[test]
fn killed_it_leaves_nothing_behind() {
    if Redis::start_or_skip().is_none() {
        return;
    }
    let (mut child, _stdout, all) = begun("started again:");
    child.kill().unwrap();
    child.wait().unwrap();
    assert_all_end(&all);
}
