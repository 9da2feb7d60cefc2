//! `book`: the docs site, built with mdBook, and its links.

use std::ffi::OsString;

use crate::call::Call;
use crate::commands::no_arguments;
use crate::links;
use crate::repo::Repo;
use crate::stop::Stop;

/// Builds `docs/` into `docs/book`, then checks all links and includes: mdBook itself only warns of those.
///
/// # Errors
///
/// mdBook cannot be had or fails, or a link or include is dead.
pub(crate) fn book(repo: &Repo, arguments: &[OsString]) -> Result<(), Stop> {
    no_arguments(arguments)?;
    mdbook(repo)?.args(["build", "docs"]).run()?;
    links::check(repo)
}

/// The mdBook of this machine, or else one of our own, built once into the target directory.
fn mdbook(repo: &Repo) -> Result<Call, Stop> {
    if Call::new("mdbook").args(["--version"]).works() {
        return Ok(Call::new("mdbook"));
    }
    let tools = repo.target_dir().join("tools");
    let own = tools.join("bin/mdbook");
    if !own.is_file() {
        eprintln!("mdbook is not installed: building one into {}, once", tools.display());
        // A debug build takes half the time, and the book is small. Only the search is wanted of the features.
        Call::cargo()
            .args(["install", "mdbook@^0.5", "--locked", "--debug", "--no-default-features", "--features", "search"])
            .args(["--no-track", "--root"])
            .args([&tools])
            .env("CARGO_PROFILE_DEV_DEBUG", "0")
            .run()?;
    }
    Ok(Call::new(own))
}
