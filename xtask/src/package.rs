//! `package`: what would be published builds from nothing but what is in it.

use std::ffi::OsString;
use std::{env, fs};

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
    // A place of its own, and empty: cargo takes a package of the same version for the same package, whatever is in it, and
    // would build ours against what it built of their last state.
    let place = repo.target_dir().join("package-check");
    if place.exists() {
        fs::remove_dir_all(&place)
            .map_err(|error| Stop::failed(format!("cannot remove {}: {error}", place.display())))?;
    }
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
