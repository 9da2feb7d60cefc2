//! What all servers have in common: directory, port, start, stop, kill.

use std::{
    fmt,
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom},
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use rustix::process::Signal;
use tempfile::TempDir;

use crate::{
    error::{StartError, Started},
    eventually,
    guardian::Guardian,
    port::PortLease,
    proc_fs,
    process::{Launch, Process},
};

const READY_WITHIN: Duration = Duration::from_secs(30);
const READY_POLL: Duration = Duration::from_millis(20);
const STOP_WITHIN: Duration = Duration::from_secs(10);
const KILLED_WITHIN: Duration = Duration::from_secs(10);
/// A stranger may take a port between our look at it and the server's start.
const PORT_ATTEMPTS: usize = 16;
const REBIND_WITHIN: Duration = Duration::from_secs(10);
/// How much of a log goes into an error message.
const LOG_TAIL: u64 = 4_096;

/// What differs between servers.
pub(crate) trait Kind: fmt::Debug + Send + Sync {
    const NAME: &'static str;
    /// Stops it in order, without waiting for clients.
    const STOP: Signal;
    /// What the guardian sends, as `kill -s` names it.
    const ORPHAN_STOP: &'static str;

    /// Fills the fresh directory, once.
    fn prepare(&self, dir: &Path) -> Started<()>;
    /// Where the server's processes work.
    fn work_dir(&self, dir: &Path) -> PathBuf;
    fn launch(&self, dir: &Path, port: u16) -> io::Result<Launch>;
    /// Whether the process `pid`, and not a stranger on the same port, serves clients now.
    fn is_ready(&self, dir: &Path, addr: SocketAddr, pid: u32) -> bool;
    /// Removes what a killed server leaves outside its data. All of its processes are gone.
    fn after_kill(&self, dir: &Path);
}

#[derive(Debug)]
pub(crate) struct Server<K: Kind> {
    kind: K,
    port: PortLease,
    process: Mutex<Option<Process>>,
    dir: TempDir,
    guardian: Arc<Guardian>,
}

struct LaunchError {
    error: StartError,
    /// Another port, or this one a little later, may do.
    address_in_use: bool,
}

impl<K: Kind> Server<K> {
    pub(crate) fn start(kind: K) -> Started<Self> {
        let (dir, guardian) = private_dir::<K>()?;
        kind.prepare(dir.path())?;
        let mut attempt = 0;
        loop {
            attempt += 1;
            let port = PortLease::acquire().map_err(StartError::io(K::NAME, "no port"))?;
            match launch(&kind, dir.path(), port.port(), &guardian) {
                Ok(process) => {
                    return Ok(Self { kind, port, process: Mutex::new(Some(process)), guardian, dir });
                }
                Err(failed) if failed.address_in_use && attempt < PORT_ATTEMPTS => {}
                Err(failed) => return Err(failed.error),
            }
        }
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        loopback(self.port.port())
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn log(&self) -> String {
        read_log(self.dir(), 0)
    }

    pub(crate) fn pid(&self) -> Option<u32> {
        self.lock().as_ref().filter(|process| !process.exits_within(Duration::ZERO)).map(Process::id)
    }

    pub(crate) fn stop(&self) {
        self.stop_locked(&mut self.lock());
    }

    pub(crate) fn kill_9(&self) {
        self.kill_locked(&mut self.lock());
    }

    pub(crate) fn restart(&self) -> Started<()> {
        let mut process = self.lock();
        self.stop_locked(&mut process);
        let start = Instant::now();
        loop {
            match launch(&self.kind, self.dir(), self.port.port(), &self.guardian) {
                Ok(started) => {
                    *process = Some(started);
                    return Ok(());
                }
                // The port is reserved within this kit; a stranger's probe of it passes.
                Err(failed) if failed.address_in_use && start.elapsed() < REBIND_WITHIN => {
                    thread::sleep(READY_POLL);
                }
                Err(failed) => return Err(failed.error),
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Process>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stop_locked(&self, slot: &mut Option<Process>) {
        if let Some(process) = slot {
            process.signal(K::STOP);
            if !process.exits_within(STOP_WITHIN) {
                return self.kill_locked(slot);
            }
            let _ = process.reap();
            *slot = None;
        }
    }

    fn kill_locked(&self, slot: &mut Option<Process>) {
        if let Some(mut process) = slot.take() {
            process.kill();
            let _ = process.reap();
            // Only now, when nobody is left who could start another one.
            let work_dir = self.kind.work_dir(self.dir());
            let _ = eventually(KILLED_WITHIN, || proc_fs::kill_all_in(&work_dir) == 0);
            self.kind.after_kill(self.dir());
        }
    }
}

impl<K: Kind> Drop for Server<K> {
    fn drop(&mut self) {
        // Then the fields, in order: the directory is removed and the guardian dismissed.
        self.stop();
    }
}

/// A temporary directory that goes away with this process even if it is killed.
pub(crate) fn private_dir<K: Kind>() -> Started<(TempDir, Arc<Guardian>)> {
    let dir = tempfile::Builder::new()
        .prefix(&format!("fullbore-testkit-{}-", K::NAME))
        .tempdir()
        .map_err(StartError::io(K::NAME, "no temporary directory"))?;
    let guardian =
        Guardian::start(dir.path(), K::ORPHAN_STOP).map_err(StartError::io(K::NAME, "cannot run /bin/sh"))?;
    Ok((dir, Arc::new(guardian)))
}

pub(crate) fn open_log(dir: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(log_path(dir))
}

/// The log from byte `from` on, and at most its end.
pub(crate) fn read_log(dir: &Path, from: u64) -> String {
    let mut bytes = Vec::new();
    let read = File::open(log_path(dir)).and_then(|mut file| {
        let tail = file.metadata()?.len().saturating_sub(LOG_TAIL);
        file.seek(SeekFrom::Start(from.max(tail)))?;
        file.read_to_end(&mut bytes)
    });
    match read {
        Ok(_) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) => format!("(unreadable: {error})"),
    }
}

fn log_path(dir: &Path) -> PathBuf {
    dir.join("server.log")
}

fn loopback(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

fn launch<K: Kind>(kind: &K, dir: &Path, port: u16, guardian: &Arc<Guardian>) -> Result<Process, LaunchError> {
    let failed = |error| LaunchError { error, address_in_use: false };
    let log_start = fs::metadata(log_path(dir)).map_or(0, |meta| meta.len());
    let mut process = kind
        .launch(dir, port)
        .and_then(|launch| Process::spawn(&launch, open_log(dir)?, guardian))
        .map_err(|error| failed(StartError::io(K::NAME, "cannot run it")(error)))?;

    let start = Instant::now();
    loop {
        // The pause between two looks is the wait for an early exit, which is an event.
        if process.exits_within(READY_POLL) {
            let reason = match process.reap() {
                Ok(status) => format!("it ended with {status} before it was ready"),
                Err(error) => format!("it ended before it was ready: {error}"),
            };
            let log = read_log(dir, log_start);
            // The C library's words, Go's and PostgreSQL's.
            let address_in_use = ["Address already in use", "address already in use", "is still in use"]
                .iter()
                .any(|words| log.contains(words));
            return Err(LaunchError { error: StartError::Failed { server: K::NAME, reason, log }, address_in_use });
        }
        if kind.is_ready(dir, loopback(port), process.id()) {
            return Ok(process);
        }
        if start.elapsed() > READY_WITHIN {
            drop(process);
            let reason = format!("not ready after {READY_WITHIN:?}");
            return Err(failed(StartError::Failed { server: K::NAME, reason, log: read_log(dir, log_start) }));
        }
    }
}
