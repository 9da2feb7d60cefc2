//! `package`: what would be published builds from nothing but what is in it.

use std::ffi::OsString;
use std::time::{SystemTime, UNIX_EPOCH};
use std::{env, fs, process};

use crate::call::Call;
use crate::commands::no_arguments;
use crate::repo::Repo;
use crate::stop::Stop;

/// Packages every published crate, and builds each from its package. CI insists that all is committed.
///
/// # Errors
///
/// A crate lacks a file or a field, or does not build alone.
pub(crate) fn package(repo: &Repo, arguments: &[OsString]) -> Result<(), Stop> {
    no_arguments(arguments)?;
    // A new place each time: cargo takes a package of the same version from the same place for the same package, whatever is
    // in it now, and would build ours against what they were the last time.
    let places = repo.target_dir().join("package-check");
    if places.exists() {
        fs::remove_dir_all(&places)
            .map_err(|error| Stop::failed(format!("cannot remove {}: {error}", places.display())))?;
    }
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let place = places.join(format!("{}-{}", since.as_millis(), process::id()));
    let mut call = Call::cargo().args(["package", "--workspace", "--locked", "--target-dir"]).args([&place]);
    // cargo would package these too.
    for package in repo.packages()?.iter().filter(|package| !package.published) {
        call = call.args(["--exclude", &package.name]);
    }
    if env::var_os("CI").is_none() {
        call = call.args(["--allow-dirty"]);
    }
    call.run()
}
