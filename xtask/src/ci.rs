//! `ci`: every check in an order that fails early and shares what it builds.

use std::ffi::OsString;
use std::time::{Duration, Instant};

use crate::commands::{self, no_arguments};
use crate::repo::Repo;
use crate::stop::Stop;

/// The steps, each exactly as one would type it behind `cargo xtask`. First what needs no build; then the dev builds
/// (clippy, tests, docs and packages share the dependencies' metadata and build scripts); then the release builds.
const STEPS: &[&[&str]] = &[
    &["fmt", "--check"],
    &["links"],
    &["deps"],
    &["lint"],
    &["test", "--install"],
    &["doc"],
    &["book"],
    &["package"],
    &["loom"],
    &["bench", "--", "--test"],
    &["scoreboard", "--quick"],
    &["examples"],
];

/// Runs the steps up to the first that fails, then says how long each took.
///
/// # Errors
///
/// A step fails.
pub(crate) fn ci(repo: &Repo, arguments: &[OsString]) -> Result<(), Stop> {
    no_arguments(arguments)?;
    let mut times = Vec::new();
    for (number, step) in STEPS.iter().enumerate() {
        eprintln!("\n==> step {} of {}: cargo xtask {}", number + 1, STEPS.len(), step.join(" "));
        let start = Instant::now();
        let words: Vec<_> = step.iter().map(OsString::from).collect();
        let result = commands::dispatch(repo, &words);
        times.push(start.elapsed());
        eprintln!("<== {} {} in {}", step[0], verdict(&result), seconds(start.elapsed()));
        if let Err(stop) = result {
            print!("{}", table(&times, true));
            return Err(Stop::failed(format!("ci stopped at `cargo xtask {}`: {stop}", step.join(" "))));
        }
    }
    print!("{}", table(&times, false));
    Ok(())
}

/// A line for each step that ran, and the sum.
fn table(times: &[Duration], last_failed: bool) -> String {
    let mut text = String::from("\n");
    for (number, (step, time)) in STEPS.iter().zip(times).enumerate() {
        let failed = last_failed && number + 1 == times.len();
        let mark = if failed { "FAILED" } else { "ok" };
        text.push_str(&format!("{:<22} {:>9}  {mark}\n", step.join(" "), seconds(*time)));
    }
    text.push_str(&format!("{:<22} {:>9}\n", "total", seconds(times.iter().sum())));
    let failed = usize::from(last_failed);
    let (passed, skipped) = (times.len() - failed, STEPS.len() - times.len());
    text.push_str(&format!("steps: {passed} passed, {failed} failed, {skipped} skipped\n"));
    text
}

fn verdict(result: &Result<(), Stop>) -> &'static str {
    if result.is_ok() { "passed" } else { "FAILED" }
}

/// `7.3 s`, or `2 min 05 s`.
fn seconds(time: Duration) -> String {
    if time < Duration::from_secs(60) {
        return format!("{:.1} s", time.as_secs_f64());
    }
    format!("{} min {:02} s", time.as_secs() / 60, time.as_secs() % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tests_run_as_the_readme_says() {
        assert!(STEPS.contains(&&["test", "--install"][..]));
    }

    #[test]
    fn times_are_short() {
        assert_eq!(seconds(Duration::from_millis(7_340)), "7.3 s");
        assert_eq!(seconds(Duration::from_secs(125)), "2 min 05 s");
    }

    #[test]
    fn the_table_counts_the_steps() {
        let whole = table(&vec![Duration::from_secs(1); STEPS.len()], false);
        assert!(whole.ends_with(&format!("steps: {} passed, 0 failed, 0 skipped\n", STEPS.len())), "{whole}");
        let part = table(&[Duration::from_secs(1); 3], true);
        assert!(part.contains("deps                       1.0 s  FAILED"), "{part}");
        assert!(part.ends_with(&format!("steps: 2 passed, 1 failed, {} skipped\n", STEPS.len() - 3)), "{part}");
    }
}
