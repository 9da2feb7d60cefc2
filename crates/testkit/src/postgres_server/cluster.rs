//! A fresh data directory: `initdb` once per process and installation, then copies of its result.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tempfile::TempDir;

use super::PostgresKind;
use crate::{
    error::{StartError, Started},
    guardian::Guardian,
    process::{Launch, Process},
    server::{Kind, open_log, private_dir, read_log},
    user::User,
};

const INITDB_WITHIN: Duration = Duration::from_secs(120);
const SERVER: &str = PostgresKind::NAME;

#[derive(Debug)]
struct Template {
    initdb: PathBuf,
    dir: TempDir,
    /// A static is never dropped: it is the guardian that removes the directory when this process is gone.
    _guardian: Arc<Guardian>,
}

/// Held while `initdb` runs, so that tests which start together wait for one run instead of making one each.
static TEMPLATES: Mutex<Vec<Template>> = Mutex::new(Vec::new());

/// Makes `data`, a directory in `dir`, a fresh cluster; both belong to `user` then.
pub(super) fn create(initdb: &Path, user: Option<User>, dir: &Path, data: &Path) -> Started<()> {
    let mut templates = TEMPLATES.lock().unwrap_or_else(PoisonError::into_inner);
    let known = templates.iter().position(|template| template.initdb == initdb);
    let index = match known {
        Some(index) => index,
        None => {
            templates.push(run_initdb(initdb, user)?);
            templates.len() - 1
        }
    };
    own(dir, user)
        .and_then(|()| copy(&data_of(templates[index].dir.path()), data, user))
        .map_err(StartError::io(SERVER, "cannot make a data directory"))
}

fn run_initdb(initdb: &Path, user: Option<User>) -> Started<Template> {
    let (dir, guardian) = private_dir::<PostgresKind>()?;
    own(dir.path(), user).map_err(StartError::io(SERVER, "cannot make a data directory"))?;
    let mut args = vec!["-D".into(), data_of(dir.path()).into_os_string()];
    // `C` and UTF-8: the same order and the same characters on every machine.
    args.extend(["-A", "trust", "-U", "postgres", "--no-sync", "--locale=C", "--encoding=UTF8"].map(Into::into));
    let launch = Launch { program: initdb.to_owned(), args, dir: dir.path().to_owned(), user };

    let mut process = open_log(dir.path())
        .and_then(|log| Process::spawn(&launch, log, &guardian))
        .map_err(|error| cannot_run(&launch, &error))?;
    let in_time = process.exits_within(INITDB_WITHIN);
    if !in_time {
        process.kill();
    }
    let status = process.reap().map_err(StartError::io(SERVER, "initdb"))?;
    if !in_time || !status.success() {
        let reason = format!("initdb ended with {status} (its time limit is {INITDB_WITHIN:?})");
        return Err(StartError::Failed { server: SERVER, reason, log: read_log(dir.path(), 0) });
    }
    Ok(Template { initdb: initdb.to_owned(), dir, _guardian: guardian })
}

fn cannot_run(launch: &Launch, error: &io::Error) -> StartError {
    let mut reason = format!("cannot run {}: {error}", launch.program.display());
    if launch.user.is_some() && error.kind() == io::ErrorKind::PermissionDenied {
        // TMPDIR is in root's own directory, most likely.
        let dir = launch.dir.display();
        reason.push_str(&format!("; it runs as the user `postgres`, who must be able to reach {dir} (see TMPDIR)"));
    }
    StartError::failed(SERVER, reason)
}

fn data_of(dir: &Path) -> PathBuf {
    dir.join("data")
}

fn own(path: &Path, user: Option<User>) -> io::Result<()> {
    user.map_or(Ok(()), |user| user.own(path))
}

/// With permissions, which PostgreSQL checks. A fresh cluster holds directories and plain files only.
fn copy(from: &Path, to: &Path, user: Option<User>) -> io::Result<()> {
    fs::create_dir(to)?;
    fs::set_permissions(to, fs::metadata(from)?.permissions())?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target, user)?;
        } else {
            fs::copy(entry.path(), &target)?;
            own(&target, user)?;
        }
    }
    own(to, user)
}
