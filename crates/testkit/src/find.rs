//! Where the server binaries are.

use std::{
    env,
    ffi::{OsStr, OsString},
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use crate::error::StartError;

pub(crate) const REQUIRE_SERVERS: &str = "FULLBORE_REQUIRE_SERVERS=1";
const POSTGRES_VERSIONS: &str = "/usr/lib/postgresql";
/// Where Debian keeps servers; in the `PATH` of root only.
const SYSTEM_BINARIES: &str = "/usr/sbin";

/// A binary that a server needs.
pub(crate) struct Binary {
    pub(crate) name: &'static str,
    pub(crate) variable: &'static str,
}

pub(crate) const REDIS: Binary = Binary { name: "redis-server", variable: "FULLBORE_REDIS_BIN" };
pub(crate) const POSTGRES: Binary = Binary { name: "postgres", variable: "FULLBORE_POSTGRES_BIN" };
pub(crate) const PROMETHEUS: Binary = Binary { name: "prometheus", variable: "FULLBORE_PROMETHEUS_BIN" };
pub(crate) const PROMTOOL: Binary = Binary { name: "promtool", variable: "FULLBORE_PROMTOOL_BIN" };
pub(crate) const PGBOUNCER: Binary = Binary { name: "pgbouncer", variable: "FULLBORE_PGBOUNCER_BIN" };
const INITDB: Binary = Binary { name: "initdb", variable: POSTGRES.variable };

/// Whether it is an error instead of a skip that `binary` is missing.
///
/// `FULLBORE_WITHOUT_SERVERS` names those that this machine cannot have. `cargo xtask test --install` sets it for a server
/// that some system does not package, after it has tried and said so; never a mere absence, so that a test is not skipped
/// where somebody forgot an installation.
pub(crate) fn is_required(binary: &str) -> bool {
    let required = env::var_os("FULLBORE_REQUIRE_SERVERS").is_some_and(|value| value == "1");
    required && !is_named(binary, env::var_os("FULLBORE_WITHOUT_SERVERS").as_deref())
}

/// Whether `list`, names with commas between them, has this one.
fn is_named(name: &str, list: Option<&OsStr>) -> bool {
    list.and_then(OsStr::to_str).is_some_and(|list| list.split(',').any(|other| other.trim() == name))
}

pub(crate) fn redis() -> Result<PathBuf, StartError> {
    REDIS.find(&[])
}

/// `postgres`, and the `initdb` of the same installation: another version's would make a cluster that it cannot open.
pub(crate) fn postgres() -> Result<(PathBuf, PathBuf), StartError> {
    let postgres = POSTGRES.find(&versioned_dirs(Path::new(POSTGRES_VERSIONS)))?;
    let initdb = beside(&postgres, INITDB.name).ok_or_else(|| INITDB.missing())?;
    Ok((postgres, initdb))
}

pub(crate) fn pgbouncer() -> Result<PathBuf, StartError> {
    PGBOUNCER.find(&[SYSTEM_BINARIES.into()])
}

pub(crate) fn prometheus() -> Result<PathBuf, StartError> {
    PROMETHEUS.find(&[])
}

/// Rather the `promtool` that came with the `prometheus` than one from elsewhere: they change together.
pub(crate) fn promtool() -> Result<PathBuf, StartError> {
    if PROMTOOL.explicit().is_none()
        && let Some(promtool) = prometheus().ok().and_then(|prometheus| beside(&prometheus, PROMTOOL.name))
    {
        return Ok(promtool);
    }
    PROMTOOL.find(&[])
}

impl Binary {
    fn missing(&self) -> StartError {
        StartError::Missing { binary: self.name, variable: self.variable }
    }

    fn explicit(&self) -> Option<OsString> {
        env::var_os(self.variable).filter(|value| !value.is_empty())
    }

    fn find(&self, extra: &[PathBuf]) -> Result<PathBuf, StartError> {
        locate(self.name, self.explicit(), env::var_os("PATH").as_deref(), extra).ok_or_else(|| self.missing())
    }
}

/// The binary `name` of the same installation as `program`.
fn beside(program: &Path, name: &str) -> Option<PathBuf> {
    // In PATH there may be only a link into the installation.
    let behind_link = program.canonicalize().map(|real| real.with_file_name(name));
    Some(program.with_file_name(name)).into_iter().chain(behind_link.ok()).find(|candidate| is_executable(candidate))
}

/// An explicit path is the only place looked at: falling back would run another server than the one asked for.
fn locate(name: &str, explicit: Option<OsString>, path: Option<&OsStr>, extra: &[PathBuf]) -> Option<PathBuf> {
    if let Some(explicit) = explicit {
        let explicit = PathBuf::from(explicit);
        let file = if explicit.is_dir() { explicit.join(name) } else { explicit };
        // The server runs in its own directory, where a relative path would not resolve.
        return is_executable(&file).then(|| std::path::absolute(&file).unwrap_or(file));
    }
    path.map(|path| env::split_paths(path).collect::<Vec<_>>())
        .unwrap_or_default()
        .iter()
        .chain(extra)
        .filter(|dir| dir.is_absolute())
        .map(|dir| dir.join(name))
        .find(|file| is_executable(file))
}

/// `root/<version>/bin`, highest version first; entries that are no version are left out.
fn versioned_dirs(root: &Path) -> Vec<PathBuf> {
    let mut found: Vec<(Vec<u32>, PathBuf)> = fs::read_dir(root)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| Some((version(entry.file_name().to_str()?)?, entry.path().join("bin"))))
        .collect();
    found.sort_by(|(a, _), (b, _)| b.cmp(a));
    found.into_iter().map(|(_, dir)| dir).collect()
}

fn version(text: &str) -> Option<Vec<u32>> {
    text.split('.').map(|part| part.parse().ok()).collect()
}

fn is_executable(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn executable(path: &Path) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "").unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    #[test]
    fn explicit_path_wins_and_has_no_fallback() {
        let dir = tempfile::tempdir().unwrap();
        executable(&dir.path().join("a/server"));
        executable(&dir.path().join("b/server"));
        let path = dir.path().join("a");
        let look = |explicit: Option<PathBuf>| {
            locate("server", explicit.map(PathBuf::into_os_string), Some(path.as_os_str()), &[])
        };
        assert_eq!(look(None), Some(dir.path().join("a/server")));
        assert_eq!(look(Some(dir.path().join("b/server"))), Some(dir.path().join("b/server")));
        assert_eq!(look(Some(dir.path().join("b"))), Some(dir.path().join("b/server")), "a directory that holds it");
        assert_eq!(look(Some(dir.path().join("missing"))), None);
    }

    #[test]
    fn what_cannot_be_executed_is_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("a/server")).unwrap();
        fs::create_dir_all(dir.path().join("b")).unwrap();
        fs::write(dir.path().join("b/server"), "").unwrap();
        executable(&dir.path().join("c/server"));
        let path = env::join_paths([dir.path().join("a"), dir.path().join("b")]).unwrap();
        assert_eq!(locate("server", None, Some(&path), &[dir.path().join("c")]), Some(dir.path().join("c/server")));
    }

    #[test]
    fn what_belongs_together_is_found_behind_a_link() {
        let dir = tempfile::tempdir().unwrap();
        executable(&dir.path().join("real/server"));
        executable(&dir.path().join("real/tool"));
        fs::create_dir_all(dir.path().join("bin")).unwrap();
        let link = dir.path().join("bin/server");
        std::os::unix::fs::symlink(dir.path().join("real/server"), &link).unwrap();
        let real = dir.path().canonicalize().unwrap().join("real/tool");
        assert_eq!(beside(&link, "tool"), Some(real));
        executable(&dir.path().join("bin/tool"));
        assert_eq!(beside(&link, "tool"), Some(dir.path().join("bin/tool")));
        assert_eq!(beside(&link, "other"), None);
    }

    #[test]
    fn a_machine_says_what_it_cannot_have() {
        assert!(!is_named("b", None));
        assert!(!is_named("b", Some(OsStr::new(""))));
        assert!(!is_named("b", Some(OsStr::new("bb,a"))));
        assert!(is_named("b", Some(OsStr::new("b"))));
        assert!(is_named("b", Some(OsStr::new("a, b"))));
    }

    #[test]
    fn the_highest_version_comes_first() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["9.6", "15", "9.10", "common"] {
            fs::create_dir_all(dir.path().join(name).join("bin")).unwrap();
        }
        let order: Vec<_> = versioned_dirs(dir.path());
        assert_eq!(order, ["15", "9.10", "9.6"].map(|name| dir.path().join(name).join("bin")));
        assert!(versioned_dirs(&dir.path().join("missing")).is_empty());
    }
}
