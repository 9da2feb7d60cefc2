//! This program, started again to do one part. It ends when this process does, however that ends: it reads a pipe that
//! the system closes then.

use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use std::{io, thread};

use fullbore_core::Shutdown;

/// For one that was asked to end, before it is killed.
const END_WITHIN: Duration = Duration::from_secs(5);

/// The process; ends on drop.
#[derive(Debug)]
pub(crate) struct Role {
    child: Child,
}

impl Role {
    /// Starts it, and returns what it says when it is ready.
    pub(crate) fn start(name: &str, words: &[&OsStr]) -> Result<(Self, String), String> {
        let program = std::env::current_exe().map_err(|error| format!("where is this program? {error}"))?;
        let child = Command::new(program)
            .args(words)
            // Ctrl-C is for this process, which ends the others in order.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| format!("{name} cannot be started: {error}"))?;
        let mut role = Self { child };
        let mut line = String::new();
        let read = role.child.stdout.take().map(|stdout| BufReader::new(stdout).read_line(&mut line));
        match (read, line.strip_suffix('\n')) {
            (Some(Ok(_)), Some(line)) => Ok((role, line.to_owned())),
            // It has said why.
            _ => Err(format!("{name} did not start")),
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// SIGKILL. When this returns it has not ended yet; dropping it waits for that.
    pub(crate) fn kill(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
    }
}

impl Drop for Role {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let until = Instant::now() + END_WITHIN;
        while Instant::now() < until {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            thread::sleep(Duration::from_millis(5));
        }
        self.kill();
        let _ = self.child.wait();
    }
}

/// In the started process: says that it is ready, and waits until the one that started it has ended, or a signal.
pub(crate) fn ready(shutdown: &Shutdown, says: &str) -> Result<(), String> {
    let over = shutdown.clone();
    let wait = move || {
        // Nothing is ever written there.
        let _ = io::copy(&mut io::stdin().lock(), &mut io::sink());
        over.request();
    };
    thread::Builder::new().name("parent".into()).spawn(wait).map_err(|error| error.to_string())?;
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{says}").and_then(|()| stdout.flush()).map_err(|error| error.to_string())?;
    drop(stdout);
    shutdown.wait();
    Ok(())
}
