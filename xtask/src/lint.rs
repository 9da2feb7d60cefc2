//! `lint`: clippy with warnings as errors, every feature of every crate alone, and the house rules.

use std::ffi::OsString;

use crate::call::Call;
use crate::commands::no_arguments;
use crate::manifest::Package;
use crate::repo::Repo;
use crate::rules;
use crate::stop::Stop;

/// Runs all three, the quickest first.
///
/// # Errors
///
/// Something is to be mended.
pub(crate) fn lint(repo: &Repo, arguments: &[OsString]) -> Result<(), Stop> {
    no_arguments(arguments)?;
    rules::check(repo)?;
    clippy(&["--workspace", "--all-targets", "--all-features"])?;
    clippy(&["--workspace", "--all-targets"])?;
    for package in repo.published()? {
        alone(&package)?;
    }
    Ok(())
}

/// The library of one crate without features, with each one, and with all: in a workspace build the features of all
/// members add up, so a missing one shows only here.
fn alone(package: &Package) -> Result<(), Stop> {
    let library = ["-p", package.name.as_str(), "--lib"];
    clippy(&[&library[..], &["--no-default-features"]].concat())?;
    if package.features.len() > 1 {
        for feature in &package.features {
            clippy(&[&library[..], &["--no-default-features", "--features", feature]].concat())?;
        }
    }
    clippy(&[&library[..], &["--all-features"]].concat())
}

/// Clippy and not `check`, so that all of these share what they build, and warnings fail each.
fn clippy(selection: &[&str]) -> Result<(), Stop> {
    Call::cargo().args(["clippy", "--quiet"]).args(selection).args(["--", "-D", "warnings"]).run()
}
