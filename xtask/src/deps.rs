//! `deps`: who may know whom. The architecture page draws these arrows; here they are checked.

use std::ffi::OsString;
use std::path::Path;

use crate::commands::no_arguments;
use crate::manifest::{Dependency, Package};
use crate::repo::Repo;
use crate::stop::Stop;

/// The name that all our packages start with; the facade has no more than that.
const FACADE: &str = "fullbore";

/// A crate's folder, and the folders of the crates that it may depend on. The facade may depend on each but `testkit`.
const ARROWS: &[(&str, &[&str])] = &[
    ("core", &[]),
    ("metrics", &["core"]),
    ("limit", &["core", "metrics"]),
    ("batch", &["core", "metrics"]),
    ("pool", &["core", "metrics"]),
    ("cache", &["core", "metrics", "limit", "pool", "batch"]),
    ("fanout", &["core", "metrics"]),
    ("queue", &["core", "metrics", "limit", "pool", "batch"]),
    ("flow", &["core", "metrics", "limit", "batch"]),
    ("diagnose", &["core", "metrics"]),
    ("testkit", &["core"]),
];

/// Checks every member's manifest.
///
/// # Errors
///
/// An arrow that is not drawn, or a dependency or lints that do not come from the root manifest.
pub(crate) fn deps(repo: &Repo, arguments: &[OsString]) -> Result<(), Stop> {
    no_arguments(arguments)?;
    let complaints: Vec<_> = repo.packages()?.iter().flat_map(complaints).collect();
    for complaint in &complaints {
        eprintln!("{complaint}");
    }
    match complaints.len() {
        0 => Ok(()),
        n => Err(Stop::failed(format!("{n} things to mend in the manifests"))),
    }
}

fn complaints(package: &Package) -> Vec<String> {
    let manifest = package.folder.join("Cargo.toml");
    let mut found = Vec::new();
    let mut complain = |what: String| found.push(format!("{}: {what}", manifest.display()));
    if !package.inherits_lints {
        complain(String::from("`[lints] workspace = true` is missing"));
    }
    for Dependency { name, .. } in package.dependencies.iter().filter(|dependency| !dependency.inherited) {
        complain(format!("`{name}` is to come from the root manifest: `{name} = {{ workspace = true }}`"));
    }
    let Some(folder) = package.folder.strip_prefix("crates").ok().and_then(Path::to_str) else {
        return found; // benches, examples and xtask know whom they like
    };
    let allowed = ARROWS.iter().find(|(from, _)| *from == folder).map(|(_, to)| *to);
    if folder != FACADE && allowed.is_none() {
        complain(String::from("a new crate: say what it may depend on in `ARROWS` (xtask/src/deps.rs)"));
    }
    for Dependency { name, dev, .. } in &package.dependencies {
        if name == FACADE && folder != FACADE {
            complain(String::from("nothing imports the facade"));
        }
        let Some(to) = name.strip_prefix("fullbore-").filter(|_| !*dev) else { continue };
        let drawn = allowed.map_or(to != "testkit", |allowed| allowed.contains(&to));
        if !drawn {
            complain(format!("no arrow from `{folder}` to `{to}`: arrows point down only (xtask/src/deps.rs)"));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest;

    fn complaints_of(folder: &str, dependencies: &str) -> Vec<String> {
        let text = format!("[package]\nname = \"fullbore-x\"\n[lints]\nworkspace = true\n{dependencies}");
        complaints(&manifest::read(&text, folder.into()).unwrap())
    }

    #[test]
    fn arrows_point_down() {
        let down = "[dependencies]\nfullbore-core = { workspace = true }\n";
        assert!(complaints_of("crates/pool", down).is_empty());
        let up = complaints_of("crates/core", "[dependencies]\nfullbore-pool = { workspace = true }\n");
        assert!(up[0].contains("no arrow from `core` to `pool`"), "{up:?}");
    }

    #[test]
    fn tests_may_look_anywhere_but_at_the_facade() {
        assert!(
            complaints_of("crates/core", "[dev-dependencies]\nfullbore-testkit = { workspace = true }\n").is_empty()
        );
        let facade = complaints_of("crates/core", "[dev-dependencies]\nfullbore = { workspace = true }\n");
        assert!(facade[0].contains("facade"), "{facade:?}");
    }

    #[test]
    fn the_facade_is_free_but_for_the_testkit() {
        assert!(complaints_of("crates/fullbore", "[dependencies]\nfullbore-queue = { workspace = true }\n").is_empty());
        let testkit = complaints_of("crates/fullbore", "[dependencies]\nfullbore-testkit = { workspace = true }\n");
        assert_eq!(testkit.len(), 1);
    }

    #[test]
    fn versions_stand_in_one_place() {
        let own = complaints_of("benches", "[dependencies]\nserde = \"1\"\n");
        assert!(own[0].contains("`serde` is to come from the root manifest"), "{own:?}");
    }

    #[test]
    fn a_new_crate_is_asked_for_its_arrows() {
        assert!(complaints_of("crates/novel", "")[0].contains("ARROWS"));
    }
}
