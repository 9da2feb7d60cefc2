//! `loom`: every interleaving of the small concurrent protocols, within a limit.

use std::ffi::OsString;
use std::time::{Duration, Instant};
use std::{env, fs};

use crate::call::Call;
use crate::manifest::Package;
use crate::repo::Repo;
use crate::stop::Stop;
use crate::targets;

/// For all models together, their build included.
const LIMIT: Duration = Duration::from_secs(10 * 60);

/// What loom explores when nobody says otherwise: more preemptions find next to nothing and take for ever.
const PREEMPTIONS: &str = "2";

/// `loom [CRATE]... [-- ARGUMENTS OF THE TESTS]`; a crate is named by its folder or in full.
///
/// # Errors
///
/// A model fails, the limit is reached, or there is no such crate.
pub(crate) fn loom(repo: &Repo, arguments: &[OsString]) -> Result<(), Stop> {
    let end = arguments.iter().position(|argument| argument == "--").unwrap_or(arguments.len());
    let (wanted, passed) = arguments.split_at(end);
    let passed = passed.get(1..).unwrap_or_default();
    let deadline = Instant::now() + LIMIT;
    let packages = chosen(modelled(repo)?, wanted)?;
    if packages.is_empty() {
        eprintln!("No crate has a tests/loom*.rs.");
    }
    for package in packages {
        let call = Call::cargo()
            .args(["test", "--release", "--no-run", "-p", &package.name, "--test", "loom*", "--target-dir"])
            .args([repo.target_dir().join("loom")])
            .env("RUSTFLAGS", with_flag(env::var("RUSTFLAGS").ok()));
        for program in targets::build(call)?.into_iter().filter(|program| program.kind == "test") {
            let preemptions = env::var("LOOM_MAX_PREEMPTIONS").unwrap_or_else(|_| PREEMPTIONS.to_owned());
            Call::new(&program.path)
                .args(passed)
                .env("LOOM_MAX_PREEMPTIONS", preemptions)
                .current_dir(&program.package)
                .run_until(deadline)?;
        }
    }
    Ok(())
}

/// The crates with a `tests/loom*.rs`.
fn modelled(repo: &Repo) -> Result<Vec<Package>, Stop> {
    let mut packages = repo.packages()?;
    packages.retain(|package| {
        let tests = fs::read_dir(repo.path(&package.folder).join("tests")).into_iter().flatten().flatten();
        tests.map(|entry| entry.file_name()).any(|name| is_model(&name.to_string_lossy()))
    });
    Ok(packages)
}

fn is_model(file: &str) -> bool {
    file.starts_with("loom") && file.ends_with(".rs")
}

/// The packages that `wanted` names; all, if it names none.
fn chosen(packages: Vec<Package>, wanted: &[OsString]) -> Result<Vec<Package>, Stop> {
    if wanted.is_empty() {
        return Ok(packages);
    }
    let names = |package: &Package, want: &OsString| {
        *want == *package.name.as_str() || package.folder.file_name() == Some(want.as_os_str())
    };
    if let Some(unknown) = wanted.iter().find(|want| !packages.iter().any(|package| names(package, want))) {
        let known: Vec<_> = packages.iter().map(|package| package.name.as_str()).collect();
        let unknown = unknown.to_string_lossy();
        return Err(Stop::unable(format!("no loom tests in `{unknown}`; there are some in: {}", known.join(", "))));
    }
    Ok(packages.into_iter().filter(|package| wanted.iter().any(|want| names(package, want))).collect())
}

fn with_flag(flags: Option<String>) -> String {
    match flags {
        Some(flags) => format!("{flags} --cfg fullbore_loom"),
        None => String::from("--cfg fullbore_loom"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest;

    fn package(folder: &str) -> Package {
        manifest::read(&format!("[package]\nname = \"fullbore-{folder}\"\n"), format!("crates/{folder}").into())
            .unwrap()
    }

    #[test]
    fn which_files_are_models() {
        assert!(is_model("loom.rs") && is_model("loom_wait.rs"));
        assert!(!is_model("contract.rs") && !is_model("loom"));
    }

    #[test]
    fn a_crate_is_chosen_by_either_name() {
        for name in ["pool", "fullbore-pool"] {
            let chosen = chosen(vec![package("core"), package("pool")], &[name.into()]).unwrap();
            assert_eq!(chosen.len(), 1);
            assert_eq!(chosen[0].name, "fullbore-pool");
        }
        assert_eq!(chosen(vec![package("core"), package("pool")], &[]).unwrap().len(), 2);
        assert_eq!(chosen(vec![package("core")], &["cache".into()]).unwrap_err().status(), 2);
    }

    #[test]
    fn flags_are_added_to() {
        assert_eq!(with_flag(None), "--cfg fullbore_loom");
        assert_eq!(with_flag(Some("-C x".into())), "-C x --cfg fullbore_loom");
    }
}
