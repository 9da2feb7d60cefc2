//! `test`: all tests, with the servers they need, and none skipped for want of one.

use std::ffi::OsString;

use crate::call::Call;
use crate::repo::Repo;
use crate::servers;
use crate::stop::Stop;

/// Under this variable a test whose server is missing fails instead of skipping, unless [`servers::WITHOUT_SERVERS`] names it.
const REQUIRE_SERVERS: &str = "FULLBORE_REQUIRE_SERVERS";

/// `test [--install] [ARGUMENTS OF THE RUNNER]`.
///
/// # Errors
///
/// A server is missing, or a test fails.
pub(crate) fn test(_: &Repo, arguments: &[OsString]) -> Result<(), Stop> {
    let (install, arguments) = split(arguments);
    let without = servers::ensure(install)?;
    let with_servers = |call: Call| call.env(REQUIRE_SERVERS, "1").env(servers::WITHOUT_SERVERS, &without);
    let selection = if selects_package(&arguments) { &[][..] } else { &["--workspace"][..] };
    let runner: &[&str] = if Call::cargo().args(["nextest", "--version"]).works() {
        &["nextest", "run"]
    } else {
        eprintln!("cargo-nextest is not installed: going on with cargo test");
        &["test", "--lib", "--bins", "--tests", "--examples"]
    };
    let call = Call::cargo().args(runner).args(selection).args(["--all-features"]);
    with_servers(call.args(&arguments)).run()?;
    if !arguments.is_empty() {
        eprintln!("Doc tests run only without further arguments.");
        return Ok(());
    }
    with_servers(Call::cargo().args(["test", "--doc", "--workspace", "--all-features"])).run()
}

/// Takes our own option out of the arguments; whatever stands behind `--` is the runner's.
fn split(arguments: &[OsString]) -> (bool, Vec<OsString>) {
    let end = arguments.iter().position(|argument| argument == "--").unwrap_or(arguments.len());
    let (front, back) = arguments.split_at(end);
    let rest = front.iter().filter(|argument| *argument != "--install").chain(back);
    (front.iter().any(|argument| argument == "--install"), rest.cloned().collect())
}

/// Whether the arguments say which package to test.
fn selects_package(arguments: &[OsString]) -> bool {
    let ours = arguments.iter().take_while(|argument| *argument != "--");
    ours.filter_map(|argument| argument.to_str())
        .any(|argument| argument.starts_with("-p") || argument == "--package" || argument.starts_with("--package="))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<OsString> {
        text.split_whitespace().map(OsString::from).collect()
    }

    #[test]
    fn install_is_ours() {
        assert_eq!(split(&words("--install")), (true, Vec::new()));
        assert_eq!(split(&words("c5 --install -p x")), (true, words("c5 -p x")));
        assert_eq!(split(&words("c5 -- --install")), (false, words("c5 -- --install")));
    }

    #[test]
    fn a_package_replaces_the_workspace() {
        assert!(selects_package(&words("-p fullbore-pool")));
        assert!(selects_package(&words("c5 --package=fullbore-pool")));
        assert!(!selects_package(&words("c5 -- -p")));
    }
}
