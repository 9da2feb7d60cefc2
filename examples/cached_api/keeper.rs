//! The process that has a private `redis-server`, and ends it when the run is over or has died.

use std::ffi::{OsStr, OsString};
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, fs, io, thread};

use fullbore_core::Shutdown;

use crate::role;

const SERVER: &str = "redis-server";
/// A file, or the directory that holds it; the only place looked at if it is set.
const VARIABLE: &str = "FULLBORE_REDIS_BIN";
const READY_WITHIN: Duration = Duration::from_secs(10);

/// Where the server is, if there is one.
pub(crate) fn find() -> Option<PathBuf> {
    if let Some(explicit) = env::var_os(VARIABLE).filter(|value| !value.is_empty()) {
        return locate(explicit);
    }
    let path = env::var_os("PATH")?;
    env::split_paths(&path).filter(|dir| dir.is_absolute()).map(|dir| dir.join(SERVER)).find(|file| is_executable(file))
}

fn locate(explicit: OsString) -> Option<PathBuf> {
    let explicit = PathBuf::from(explicit);
    let file = if explicit.is_dir() { explicit.join(SERVER) } else { explicit };
    // It runs in a directory of its own.
    is_executable(&file).then(|| std::path::absolute(&file).unwrap_or(file))
}

fn is_executable(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// Runs the server, tells its URL and its process, and ends it.
pub(crate) fn keep(program: &Path) -> Result<(), String> {
    let shutdown = Shutdown::new();
    shutdown.on_signals().map_err(|error| format!("cannot listen for Ctrl-C: {error}"))?;
    let dir = tempfile::Builder::new().prefix("cached_api-").tempdir();
    let dir = dir.map_err(|error| format!("no temporary directory: {error}"))?;
    let mut last = String::new();
    // Somebody else may take the port between our look and the server's.
    for _ in 0..5 {
        match Redis::start(program, dir.path()) {
            Ok(redis) => {
                return role::ready(&shutdown, &format!("redis://127.0.0.1:{}/ {}", redis.port, redis.child.id()));
            }
            Err(error) => last = error,
        }
    }
    Err(format!("{SERVER} did not start: {last}"))
}

/// Killed on drop: there is nothing to be saved.
struct Redis {
    child: Child,
    port: u16,
}

impl Redis {
    fn start(program: &Path, dir: &Path) -> Result<Self, String> {
        let said = |error: io::Error| error.to_string();
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(said)?;
        let port = free.local_addr().map_err(said)?.port();
        drop(free);
        let text = port.to_string();
        let words = ["--port", &text, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--daemonize", "no"];
        let child = Command::new(program)
            .args(words.map(OsStr::new))
            .current_dir(dir)
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(said)?;
        let mut redis = Self { child, port };
        let until = Instant::now() + READY_WITHIN;
        while !redis.is_ready() {
            if let Some(status) = redis.child.try_wait().map_err(said)? {
                return Err(format!("it ended, {status}"));
            }
            if Instant::now() > until {
                return Err(format!("it does not answer after {READY_WITHIN:?}"));
            }
            thread::sleep(Duration::from_millis(10));
        }
        Ok(redis)
    }

    /// Whether it answers, and not a stranger on the same port.
    fn is_ready(&self) -> bool {
        let info = || {
            let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port))?;
            stream.set_read_timeout(Some(Duration::from_secs(1)))?;
            stream.write_all(b"INFO\r\nQUIT\r\n")?;
            let mut answer = Vec::new();
            stream.take(1 << 20).read_to_end(&mut answer)?;
            Ok::<_, io::Error>(String::from_utf8_lossy(&answer).into_owned())
        };
        let mine = format!("process_id:{}", self.child.id());
        info().is_ok_and(|info| info.lines().any(|line| line == mine) && info.lines().any(|line| line == "loading:0"))
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
