//! One run of a server.

use std::{
    ffi::OsString,
    fs::File,
    io::{self, Write as _},
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use rustix::{
    io::Errno,
    process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, kill_process_group, waitid},
};

use crate::{guardian::Guardian, proc_fs::as_pid, user::User};

/// What to run.
#[derive(Debug)]
pub(crate) struct Launch {
    pub(crate) program: PathBuf,
    pub(crate) args: Vec<OsString>,
    /// The working directory.
    pub(crate) dir: PathBuf,
    pub(crate) user: Option<User>,
}

/// Waits for the word before it becomes the server (same pid), so that no moment exists in which the server runs and the
/// guardian does not know it: if this process dies before the word, the shell reads the end of its input and exits.
const SHIM: &str = r#"read -r go && exec "$@" </dev/null"#;

/// These would change what the server does behind our back.
const UNWANTED_ENV: [&str; 9] =
    ["PGDATA", "PGPORT", "PGHOST", "PGUSER", "PGDATABASE", "PGOPTIONS", "PGTZ", "PGDATESTYLE", "PGCLIENTENCODING"];

/// A child in its own process group; killed and reaped on drop.
///
/// A thread waits for its exit *without reaping it*: so the exit is an event with a time-out, and the pid cannot become
/// somebody else's before [`Process::reap`].
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    pid: Pid,
    exit: Arc<Exit>,
    waiter: Option<JoinHandle<()>>,
    guardian: Arc<Guardian>,
    reaped: bool,
}

#[derive(Debug, Default)]
struct Exit {
    happened: Mutex<bool>,
    changed: Condvar,
}

impl Process {
    pub(crate) fn spawn(launch: &Launch, output: File, guardian: &Arc<Guardian>) -> io::Result<Self> {
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", SHIM, "fullbore-testkit-server"])
            .arg(&launch.program)
            .args(&launch.args)
            .current_dir(&launch.dir)
            .env("LC_ALL", "C") // the messages that we look for in logs
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(output.try_clone()?)
            .stderr(output);
        for name in UNWANTED_ENV {
            command.env_remove(name);
        }
        if let Some(user) = launch.user {
            command.uid(user.uid).gid(user.gid); // std drops root's other groups with it
        }
        let mut child = command.spawn()?;
        let Some(pid) = as_pid(child.id()) else {
            drop(child.stdin.take());
            child.wait()?;
            return Err(io::Error::other("the system gave an impossible process id"));
        };
        let mut process =
            Self { child, pid, exit: Arc::default(), waiter: None, guardian: Arc::clone(guardian), reaped: false };
        process.waiter = Some(process.start_waiter()?);
        guardian.guard(process.id())?;
        // If the shell failed already, its exit says why.
        if let Some(mut stdin) = process.child.stdin.take() {
            let _ = stdin.write_all(b"go\n");
        }
        Ok(process)
    }

    fn start_waiter(&self) -> io::Result<JoinHandle<()>> {
        static STARTED: AtomicU64 = AtomicU64::new(0);
        let n = STARTED.fetch_add(1, Ordering::Relaxed);
        let (pid, exit) = (self.pid, Arc::clone(&self.exit));
        thread::Builder::new().name(format!("fullbore-testkit-wait-{n}")).spawn(move || {
            let exited = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
            while matches!(waitid(WaitId::Pid(pid), exited), Err(Errno::INTR)) {}
            *exit.happened.lock().unwrap_or_else(PoisonError::into_inner) = true;
            exit.changed.notify_all();
        })
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether it exited, after waiting for that for at most `within`.
    pub(crate) fn exits_within(&self, within: Duration) -> bool {
        let happened = self.exit.happened.lock().unwrap_or_else(PoisonError::into_inner);
        let (happened, _) = self
            .exit
            .changed
            .wait_timeout_while(happened, within, |happened| !*happened)
            .unwrap_or_else(PoisonError::into_inner);
        *happened
    }

    /// To the process alone; nothing happens if it exited.
    pub(crate) fn signal(&self, signal: Signal) {
        let _ = kill_process(self.pid, signal);
    }

    /// SIGKILL to the process and its group.
    pub(crate) fn kill(&self) {
        let _ = kill_process_group(self.pid, Signal::KILL);
    }

    /// Waits for the exit, and takes the last trace of the process off the system.
    pub(crate) fn reap(&mut self) -> io::Result<ExitStatus> {
        if let Some(waiter) = self.waiter.take() {
            let _ = waiter.join();
        }
        self.guardian.release();
        self.reaped = true;
        self.child.wait()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.reaped {
            self.kill();
            let _ = self.reap();
        }
    }
}
