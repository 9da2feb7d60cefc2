//! Who cleans up when this process cannot.
//!
//! `Drop` stops a server when a test ends or panics, but not when the test process is killed (a runner's time-out, a crash
//! test), aborts, or exits with the server in a `static`. For these each server directory has a guardian: a shell that
//! reads our end of a pipe. The system closes that end whenever this process ends, however it ends; the shell then stops
//! the server and removes the directory.
//!
//! Why not `PR_SET_PDEATHSIG`: it fires when the *thread* that made the process ends, which is wrong for a server that
//! outlives the test that started it; it exists on Linux only, needs unsafe code between fork and exec, cannot try a
//! gentle signal first and leaves the directory behind.
//!
//! The shell has its own process group, so that a signal to ours (Ctrl-C, a runner's time-out) leaves it to its work.

use std::{
    io::{self, Write as _},
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Mutex, PoisonError},
};

/// `$1` is the directory, `$2` the first signal. Commands are lines; the end of the input means that our process is gone.
///
/// The pid cannot be somebody else's by then: it is released before it is reaped, and the pipe keeps the order.
const SCRIPT: &str = r#"
trap '' HUP INT TERM
PATH="$PATH:/usr/bin:/bin"
pid=
while read -r word arg; do
    case $word in
        guard) pid=$arg ;;
        release) pid= ;;
        done) exit 0 ;;
    esac
done
if [ -n "$pid" ]; then
    kill -s "$2" "$pid"
    tries=0
    while [ "$tries" -lt 60 ] && kill -0 "$pid"; do
        case $(ps -o stat= -p "$pid") in Z*) break ;; esac
        sleep 0.05
        tries=$((tries + 1))
    done
    kill -s KILL -- "-$pid"
fi
rm -rf -- "$1"
"#;

#[derive(Debug)]
pub(crate) struct Guardian {
    shell: Mutex<Child>,
}

impl Guardian {
    /// `signal` is what stops a server quickly and cleanly, by the name that `kill -s` knows.
    pub(crate) fn start(dir: &Path, signal: &str) -> io::Result<Self> {
        let shell = Command::new("/bin/sh")
            .args(["-c", SCRIPT, "fullbore-testkit-guardian"])
            .arg(dir)
            .arg(signal)
            .current_dir("/")
            .process_group(0)
            .stdin(Stdio::piped())
            // A runner waits until nobody holds the test's output open.
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        Ok(Self { shell: Mutex::new(shell) })
    }

    /// From now on `pid` and its process group end with this process.
    pub(crate) fn guard(&self, pid: u32) -> io::Result<()> {
        self.tell(&format!("guard {pid}\n"))
    }

    /// To be called before the guarded process is reaped: after that its pid may be somebody else's.
    pub(crate) fn release(&self) {
        // If the shell is gone there is nobody who could kill the wrong process.
        let _ = self.tell("release\n");
    }

    fn tell(&self, line: &str) -> io::Result<()> {
        let mut shell = self.shell.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut shell.stdin {
            Some(stdin) => stdin.write_all(line.as_bytes()),
            None => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }
}

impl Drop for Guardian {
    fn drop(&mut self) {
        let _ = self.tell("done\n");
        let shell = self.shell.get_mut().unwrap_or_else(PoisonError::into_inner);
        let _ = shell.wait(); // closes the pipe first
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, time::Duration};

    use super::*;
    use crate::{eventually, is_alive};

    const LONG: Duration = Duration::from_secs(30);

    fn sleeper() -> Child {
        Command::new("/bin/sh").args(["-c", "read x"]).stdin(Stdio::piped()).process_group(0).spawn().unwrap()
    }

    /// What the system does when the process is gone.
    fn abandon(mut guardian: Guardian) -> Child {
        let shell = guardian.shell.get_mut().unwrap();
        drop(shell.stdin.take());
        let stand_in = Command::new("/bin/sh").args(["-c", ":"]).spawn().unwrap();
        std::mem::replace(shell, stand_in)
    }

    #[test]
    fn abandoned_it_kills_the_guarded_and_removes_the_directory() {
        let dir = tempfile::tempdir().unwrap().keep();
        fs::write(dir.join("file"), "x").unwrap();
        let mut guarded = sleeper();
        let guardian = Guardian::start(&dir, "TERM").unwrap();
        guardian.guard(guarded.id()).unwrap();
        let mut shell = abandon(guardian);
        assert!(!guarded.wait().unwrap().success());
        assert!(shell.wait().is_ok());
        assert!(!dir.exists());
    }

    #[test]
    fn released_and_dismissed_it_touches_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut process = sleeper();
        let guardian = Guardian::start(dir.path(), "TERM").unwrap();
        let shell = guardian.shell.lock().unwrap().id();
        guardian.guard(process.id()).unwrap();
        guardian.release();
        drop(guardian);
        assert!(!is_alive(shell), "dismissed means ended");
        assert!(is_alive(process.id()));
        assert!(dir.path().exists());
        drop(process.stdin.take());
        process.wait().unwrap();
    }

    #[test]
    fn a_guarded_process_that_ignores_the_signal_is_killed() {
        let dir = tempfile::tempdir().unwrap().keep();
        let mut stubborn = Command::new("/bin/sh")
            .args(["-c", "trap '' TERM; echo; read x"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()
            .unwrap();
        let mut ready = [0];
        io::Read::read_exact(stubborn.stdout.as_mut().unwrap(), &mut ready).unwrap();
        let guardian = Guardian::start(&dir, "TERM").unwrap();
        guardian.guard(stubborn.id()).unwrap();
        let mut shell = abandon(guardian);
        let pid = stubborn.id();
        assert!(eventually(LONG, || !is_alive(pid)));
        stubborn.wait().unwrap();
        shell.wait().unwrap();
        assert!(!dir.exists());
    }
}
