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
    /// A folder that is not on everybody's `PATH`.
    folder: Option<&'static str>,
    /// Whether there are systems that cannot have it. Where it cannot be installed its tests are skipped, and that is said.
    optional: bool,
}

/// The binaries that this machine cannot have, with commas between them: their tests are skipped although servers are
/// required.
pub(crate) const WITHOUT_SERVERS: &str = "FULLBORE_WITHOUT_SERVERS";

/// One line for each server that some test uses.
const SERVERS: &[ServerPackage] = &[
    ServerPackage {
        name: "Redis",
        binary: "redis-server",
        env: "FULLBORE_REDIS_BIN",
        apt: "redis-server",
        versions: None,
        folder: None,
        optional: false,
    },
    ServerPackage {
        name: "PostgreSQL",
        binary: "postgres",
        env: "FULLBORE_POSTGRES_BIN",
        apt: "postgresql",
        versions: Some("/usr/lib/postgresql"),
        folder: None,
        optional: false,
    },
    // Its package brings `promtool` too.
    ServerPackage {
        name: "Prometheus",
        binary: "prometheus",
        env: "FULLBORE_PROMETHEUS_BIN",
        apt: "prometheus",
        versions: None,
        folder: None,
        optional: false,
    },
    ServerPackage {
        name: "PgBouncer",
        binary: "pgbouncer",
        env: "FULLBORE_PGBOUNCER_BIN",
        apt: "pgbouncer",
        versions: None,
        folder: Some("/usr/sbin"),
        optional: true,
    },
];

/// Makes sure that every server is there. Returns the binaries of those that this machine has to go without, with commas
/// between them, for [`WITHOUT_SERVERS`]: what that says already, and optional ones that could not be installed.
///
/// # Errors
///
/// One is missing and `install` is false, or could not be installed.
pub(crate) fn ensure(install: bool) -> Result<String, Stop> {
    let mut without = env::var(WITHOUT_SERVERS).unwrap_or_default();
    let missing = missing(&without)?;
    if missing.is_empty() {
        return Ok(without);
    }
    if !install {
        let (names, by_hand) = (names(&missing), by_hand(&missing));
        return Err(Stop::unable(format!(
            "the tests need {names}, not found on this machine. Install with\n\n    {by_hand}\n\n\
             or let `cargo xtask test --install` do it. `{WITHOUT_SERVERS}=..` names those that this machine cannot have: \
             their tests are skipped. `cargo test --workspace` passes without servers."
        )));
    }
    let (optional, needed): (Vec<_>, Vec<_>) = missing.into_iter().partition(|server| server.optional);
    let mut updated = false;
    if !needed.is_empty() {
        get(&needed, &mut updated)?;
    }
    for server in optional {
        // Each by itself: apt-get installs nothing at all if it knows one of several packages not.
        if let Err(stop) = get(&[server], &mut updated) {
            let (name, binary) = (server.name, server.binary);
            eprintln!(
                "{stop}\n{name} is not to be had on this machine: going on with {WITHOUT_SERVERS}={binary}, which skips its tests"
            );
            if !without.is_empty() {
                without.push(',');
            }
            without.push_str(binary);
        }
    }
    Ok(without)
}

/// Installs these, unless that is impossible here.
fn get(servers: &[ServerPackage], updated: &mut bool) -> Result<(), Stop> {
    let names = names(servers);
    if !Call::new("apt-get").args(["--version"]).works() {
        return Err(Stop::unable(format!(
            "{names} cannot be installed: no apt-get here. Install by your system's means; the tests look for the \
             programs on the PATH and in {}",
            servers.iter().map(|server| server.env).collect::<Vec<_>>().join(", ")
        )));
    }
    if !is_root() {
        let by_hand = by_hand(servers);
        return Err(Stop::unable(format!("{names} cannot be installed: that needs root. Run\n\n    {by_hand}\n")));
    }
    eprintln!("Installing {names} with apt-get. Debian may start system services of theirs: the tests use their own.");
    if !std::mem::replace(updated, true)
        && let Err(stop) = apt_get().args(["update"]).run()
    {
        eprintln!("{stop}; going on with the package lists that are there");
    }
    let packages = servers.iter().map(|server| server.apt);
    apt_get().args(["install", "--yes", "--no-install-recommends"]).args(packages).run()?;
    for server in servers {
        if server.look()?.is_none() {
            return Err(Stop::failed(format!(
                "package `{}` is installed, but `{}` is still not found; name it in {}",
                server.apt, server.binary, server.env
            )));
        }
    }
    Ok(())
}

/// Those that are not there, but for those that are named in `without`.
fn missing(without: &str) -> Result<Vec<ServerPackage>, Stop> {
    let mut missing = Vec::new();
    for server in SERVERS {
        match server.look()? {
            Some(found) => eprintln!("{}: {}", server.name, found.display()),
            None if without.split(',').any(|binary| binary.trim() == server.binary) => {
                eprintln!("{}: not here, and {WITHOUT_SERVERS} says so: its tests are skipped", server.name);
            }
            None => missing.push(*server),
        }
    }
    Ok(missing)
}

fn names(servers: &[ServerPackage]) -> String {
    let names: Vec<_> = servers.iter().map(|server| format!("{} (`{}`)", server.name, server.binary)).collect();
    names.join(" and ")
}

impl ServerPackage {
    /// Where it is on this machine.
    fn look(&self) -> Result<Option<PathBuf>, Stop> {
        let path = env::var_os("PATH").unwrap_or_default();
        find(self, env::var_os(self.env).filter(|named| !named.is_empty()), &path)
    }
}

/// The program of `server`: what its variable says (the program, or its folder), or on the `PATH`, or in its own folder, or in
/// the newest of its versions.
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
    let own = server.folder.map(|folder| Path::new(folder).join(server.binary));
    Ok(on_path.chain(own).chain(versioned).find(|program| program.is_file()))
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
        let (versions, folder) = (None, None);
        ServerPackage { name: "Toy", binary: "toyd", env: "TOY_BIN", apt: "toy", versions, folder, optional: false }
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
        assert!(command.ends_with("apt-get install --yes redis-server postgresql prometheus pgbouncer"), "{command}");
    }
}
