use std::{
    io::{self, Seek as _, Write as _},
    process::{Command, Output, Stdio},
};

use crate::{
    error::{StartError, Started, or_skip},
    find,
};

/// What `promtool check metrics` says of a text.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "it may have findings"]
#[non_exhaustive]
pub struct MetricsCheck {
    /// Whether it has no complaint.
    pub passed: bool,
    /// All that it printed.
    pub findings: String,
}

/// Lets `promtool check metrics` read a text in the exposition format: what it cannot parse and what offends against the
/// conventions (a counter without `_total`, a metric without help).
///
/// # Errors
/// [`StartError::Missing`] if `promtool` is not installed, [`StartError::Failed`] if it cannot be run.
pub fn promtool_check_metrics(text: &str) -> Started<MetricsCheck> {
    let mut command = Command::new(find::promtool()?);
    let output = run(command.args(["check", "metrics"]), text).map_err(StartError::io("promtool", "cannot run it"))?;
    let findings = [output.stdout, output.stderr].concat();
    Ok(MetricsCheck { passed: output.status.success(), findings: String::from_utf8_lossy(&findings).into_owned() })
}

/// The same; if `promtool` is not installed, prints `SKIPPED: promtool` to stderr and returns `None`.
///
/// # Panics
/// If it is installed and cannot be run; if it is not installed and `FULLBORE_REQUIRE_SERVERS=1`.
#[must_use]
pub fn promtool_check_metrics_or_skip(text: &str) -> Option<MetricsCheck> {
    or_skip(promtool_check_metrics(text))
}

/// From a file and not through a pipe: it may stop reading early, and then neither side waits for the other.
fn run(command: &mut Command, input: &str) -> io::Result<Output> {
    let mut file = tempfile::tempfile()?;
    file.write_all(input.as_bytes())?;
    file.rewind()?;
    command.stdin(Stdio::from(file)).output()
}
