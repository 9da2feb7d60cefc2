//! The commands that are one call of cargo.

use std::ffi::OsString;

use crate::call::Call;
use crate::commands::no_arguments;
use crate::repo::Repo;
use crate::stop::Stop;

/// `fmt [--check]`.
///
/// # Errors
///
/// With `--check`: a file is not formatted.
pub(crate) fn fmt(_: &Repo, arguments: &[OsString]) -> Result<(), Stop> {
    let mut call = Call::cargo().args(["fmt", "--all"]);
    let mut parser = lexopt::Parser::from_args(arguments);
    while let Some(argument) = parser.next()? {
        match argument {
            lexopt::Arg::Long("check") => call = call.args(["--check"]),
            other => return Err(other.unexpected().into()),
        }
    }
    call.run()
}

/// `doc`: the links to private items are checked too.
///
/// # Errors
///
/// rustdoc warns.
pub(crate) fn doc(_: &Repo, arguments: &[OsString]) -> Result<(), Stop> {
    no_arguments(arguments)?;
    Call::cargo()
        .args(["doc", "--workspace", "--no-deps", "--all-features", "--document-private-items"])
        .env("RUSTDOCFLAGS", "-D warnings")
        .run()
}

/// `bench`: the arguments go to cargo as they are.
///
/// # Errors
///
/// A bench fails: each asserts its result.
pub(crate) fn bench(_: &Repo, arguments: &[OsString]) -> Result<(), Stop> {
    Call::cargo().args(["bench", "-p", "fullbore-benches"]).args(arguments).run()
}

/// `scoreboard`: the arguments go to the program as they are.
///
/// # Errors
///
/// The program fails.
pub(crate) fn scoreboard(_: &Repo, arguments: &[OsString]) -> Result<(), Stop> {
    let program = ["run", "--release", "-p", "fullbore-benches", "--bin", "scoreboard", "--"];
    Call::cargo().args(program).args(arguments).run()
}

/// `soak`: the arguments go to the program as they are.
///
/// # Errors
///
/// The program found something, or fails.
pub(crate) fn soak(_: &Repo, arguments: &[OsString]) -> Result<(), Stop> {
    let program = ["run", "--release", "-p", "fullbore-benches", "--bin", "soak", "--"];
    Call::cargo().args(program).args(arguments).run()
}
