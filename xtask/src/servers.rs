//! The servers that the tests start for themselves: where to look for them, and how to get them.
//!
//! `fullbore-testkit` looks in the same places in the same order.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use crate::call::Call;
use crate::stop::Stop;

/// A server that tests need, and the package that brings it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ServerPackage {
    /// What people call it.
    name: &'static str,
    /// The program that is started.
    binary: &'static str,
    /// The variable that names another one.
    env: &'static str,
    /// Debian's package.
    apt: &'static str,
    /// A folder of versions, each with a `bin`, for servers that Debian keeps off the `PATH`.
    versions: Option<&'static str>,
}

/// One line for each server that some test uses.
const SERVERS: &[ServerPackage] = &[
    ServerPackage {
        name: "Redis",
        binary: "redis-server",
        env: "FULLBORE_REDIS_BIN",
        apt: "redis-server",
        versions: None,
    },
    ServerPackage {
        name: "PostgreSQL",
        binary: "postgres",
        env: "FULLBORE_POSTGRES_BIN",
        apt: "postgresql",
        versions: Some("/usr/lib/postgresql"),
    },
    // Its package brings `promtool` too.
    ServerPackage {
        name: "Prometheus",
        binary: "prometheus",
        env: "FULLBORE_PROMETHEUS_BIN",
        apt: "prometheus",
        versions: None,
    },
];

/// Makes sure that every server is there.
///
/// # Errors
///
/// One is missing and `install` is false, or could not be installed.
pub(crate) fn ensure(install: bool) -> Result<(), Stop> {
    let missing = missing()?;
    if missing.is_empty() {
        return Ok(());
    }
    let names: Vec<_> = missing.iter().map(|server| format!("{} (`{}`)", server.name, server.binary)).collect();
    let names = names.join(" and ");
    let by_hand = by_hand(&missing);
    if !install {
        return Err(Stop::unable(format!(
            "the tests need {names}, not found on this machine. Install with\n\n    {by_hand}\n\n\
             or let `cargo xtask test --install` do it. `cargo test --workspace` passes without servers."
        )));
    }
    if !Call::new("apt-get").args(["--version"]).works() {
        return Err(Stop::unable(format!(
            "{names} cannot be installed: no apt-get here. Install by your system's means; the tests look for the \
             programs on the PATH and in {}",
            missing.iter().map(|server| server.env).collect::<Vec<_>>().join(", ")
        )));
    }
    if !is_root() {
        return Err(Stop::unable(format!("{names} cannot be installed: that needs root. Run\n\n    {by_hand}\n")));
    }
    eprintln!("Installing {names} with apt-get. Debian may start system services of theirs: the tests use their own.");
    if let Err(stop) = apt_get().args(["update"]).run() {
        eprintln!("{stop}; going on with the package lists that are there");
    }
    let packages = missing.iter().map(|server| server.apt);
    apt_get().args(["install", "--yes", "--no-install-recommends"]).args(packages).run()?;
    match self::missing()?.first() {
        None => Ok(()),
        Some(server) => Err(Stop::failed(format!(
            "package `{}` is installed, but `{}` is still not found; name it in {}",
            server.apt, server.binary, server.env
        ))),
    }
}

fn missing() -> Result<Vec<ServerPackage>, Stop> {
    let mut missing = Vec::new();
    for server in SERVERS {
        let path = env::var_os("PATH").unwrap_or_default();
        let named = env::var_os(server.env).filter(|named| !named.is_empty());
        match find(server, named, &path)? {
            Some(found) => eprintln!("{}: {}", server.name, found.display()),
            None => missing.push(*server),
        }
    }
    Ok(missing)
}

/// The program of `server`: what its variable says (the program, or its folder), or on the `PATH`, or in the newest of its versions.
fn find(server: &ServerPackage, named: Option<OsString>, path: &OsStr) -> Result<Option<PathBuf>, Stop> {
    if let Some(named) = named.map(PathBuf::from) {
        if let Some(program) = [named.join(server.binary), named.clone()].into_iter().find(|program| program.is_file())
        {
            return Ok(Some(program));
        }
        let (env, named, binary) = (server.env, named.display(), server.binary);
        return Err(Stop::unable(format!("{env} names {named}: no program, and no folder with a `{binary}`")));
    }
    let on_path = env::split_paths(path).map(|folder| folder.join(server.binary));
    let versioned = server.versions.map(Path::new).into_iter().flat_map(newest_first);
    let versioned = versioned.map(|version| version.join("bin").join(server.binary));
    Ok(on_path.chain(versioned).find(|program| program.is_file()))
}

/// The folders in `folder` whose names are numbers, the largest number first.
fn newest_first(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut versions: Vec<(u32, PathBuf)> =
        entries.filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path()))).collect();
    versions.sort();
    versions.into_iter().rev().map(|(_, path)| path).collect()
}

/// The one command that a person would type.
fn by_hand(missing: &[ServerPackage]) -> String {
    let sudo = if is_root() { "" } else { "sudo " };
    let packages: Vec<_> = missing.iter().map(|server| server.apt).collect();
    format!("{sudo}apt-get update && {sudo}apt-get install --yes {}", packages.join(" "))
}

/// Asks nothing, and waits for another apt that may be running.
fn apt_get() -> Call {
    Call::new("apt-get").env("DEBIAN_FRONTEND", "noninteractive").args(["-o", "DPkg::Lock::Timeout=120"])
}

fn is_root() -> bool {
    Command::new("id").arg("-u").output().is_ok_and(|output| output.stdout.trim_ascii() == b"0")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder that is gone at the end.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = env::temp_dir().join(format!("xtask-servers-{name}-{}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        fn file(&self, relative: &str) -> PathBuf {
            let path = self.0.join(relative);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, "").unwrap();
            path
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn server() -> ServerPackage {
        ServerPackage { name: "Toy", binary: "toyd", env: "TOY_BIN", apt: "toy", versions: None }
    }

    #[test]
    fn the_variable_wins() {
        let folder = Folder::new("variable");
        let (named, _) = (folder.file("own/toyd"), folder.file("path/toyd"));
        let path = folder.0.join("path").into_os_string();
        for variable in [named.clone(), folder.0.join("own")] {
            assert_eq!(find(&server(), Some(variable.into()), &path).unwrap(), Some(named.clone()));
        }
    }

    #[test]
    fn a_variable_that_names_nothing_is_an_error() {
        let stop = find(&server(), Some("nowhere/toyd".into()), OsStr::new("")).unwrap_err();
        assert!(stop.to_string().contains("TOY_BIN"), "{stop}");
        assert_eq!(stop.status(), 2);
    }

    #[test]
    fn the_path_is_searched() {
        let folder = Folder::new("path");
        let program = folder.file("b/toyd");
        let path = env::join_paths([folder.0.join("a"), folder.0.join("b")]).unwrap();
        assert_eq!(find(&server(), None, &path).unwrap(), Some(program));
        assert_eq!(find(&server(), None, OsStr::new("")).unwrap(), None);
    }

    #[test]
    fn the_newest_version_comes_first() {
        let folder = Folder::new("versions");
        folder.file("9/bin/toyd");
        folder.file("15/bin/toyd");
        folder.file("common/bin/toyd");
        let names: Vec<_> = newest_first(&folder.0).iter().map(|path| path.file_name().unwrap().to_owned()).collect();
        assert_eq!(names, ["15", "9"]);
    }

    #[test]
    fn one_command_names_all_packages() {
        let command = by_hand(SERVERS);
        assert!(command.ends_with("apt-get install --yes redis-server postgresql prometheus"), "{command}");
    }
}
