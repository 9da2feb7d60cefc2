//! Running another program: what is run is printed first, and its failure names it.

use std::ffi::{OsStr, OsString};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};
use std::{env, io};

use crate::stop::Stop;

/// How often a child under a deadline is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// One run of a program, and the same as a line that can be pasted into a shell.
#[derive(Debug)]
pub(crate) struct Call {
    command: Command,
    variables: String,
    line: String,
}

impl Call {
    /// A call of `program`.
    pub(crate) fn new(program: impl AsRef<OsStr>) -> Self {
        let program = program.as_ref();
        Self { command: Command::new(program), variables: String::new(), line: quoted(program) }
    }

    /// A call of the cargo that runs us.
    pub(crate) fn cargo() -> Self {
        let program = env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
        Self { command: Command::new(program), variables: String::new(), line: String::from("cargo") }
    }

    /// Adds arguments.
    pub(crate) fn args<A: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = A>) -> Self {
        for argument in arguments {
            self.line.push(' ');
            self.line.push_str(&quoted(argument.as_ref()));
            self.command.arg(argument);
        }
        self
    }

    /// Sets an environment variable.
    pub(crate) fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.variables.push_str(&format!("{name}={} ", quoted(value.as_ref())));
        self.command.env(name, value);
        self
    }

    /// Sets the directory that it runs in.
    pub(crate) fn current_dir(mut self, directory: impl AsRef<std::path::Path>) -> Self {
        self.command.current_dir(directory);
        self
    }

    /// Runs it to its end.
    ///
    /// # Errors
    ///
    /// It cannot be started, or its exit status is not 0.
    pub(crate) fn run(mut self) -> Result<(), Stop> {
        self.announce();
        let status = self.command.status().map_err(|error| self.not_started(&error))?;
        self.judge(status)
    }

    /// Runs it, and kills it at `deadline`.
    ///
    /// # Errors
    ///
    /// As [`run`](Self::run); also when the deadline came first.
    pub(crate) fn run_until(mut self, deadline: Instant) -> Result<(), Stop> {
        self.announce();
        let mut child = self.command.spawn().map_err(|error| self.not_started(&error))?;
        match wait_until(&mut child, deadline) {
            Ok(Some(status)) => self.judge(status),
            Ok(None) => Err(Stop::failed(format!("`{}` was still running when the time was up; killed", self.line))),
            Err(error) => Err(Stop::failed(format!("cannot wait for `{}`: {error}", self.line))),
        }
    }

    /// Runs it to its end and returns what it wrote to standard output.
    ///
    /// # Errors
    ///
    /// As [`run`](Self::run).
    pub(crate) fn output(mut self) -> Result<String, Stop> {
        self.announce();
        let output = self.command.stderr(Stdio::inherit()).output().map_err(|error| self.not_started(&error))?;
        self.judge(output.status)?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Whether it runs at all and exits with 0. Prints nothing.
    pub(crate) fn works(mut self) -> bool {
        let quiet = self.command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        quiet.status().is_ok_and(|status| status.success())
    }

    fn announce(&self) {
        eprintln!("$ {}{}", self.variables, self.line);
    }

    fn not_started(&self, error: &io::Error) -> Stop {
        Stop::unable(format!("cannot start `{}`: {error}", self.line))
    }

    fn judge(&self, status: ExitStatus) -> Result<(), Stop> {
        if status.success() {
            return Ok(());
        }
        Err(Stop::failed(format!("`{}` failed ({status})", self.line)))
    }
}

/// Waits for `child` until `deadline`, then kills it and returns `None`.
fn wait_until(child: &mut Child, deadline: Instant) -> io::Result<Option<ExitStatus>> {
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= deadline {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        thread::sleep(LOOK_EVERY);
    }
}

/// `word` as a shell would need it.
fn quoted(word: &OsStr) -> String {
    let word = word.to_string_lossy();
    let plain = |c: char| c.is_alphanumeric() || "-_=./:@^,+%".contains(c);
    if !word.is_empty() && word.chars().all(plain) { word.into_owned() } else { format!("'{word}'") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_can_be_pasted() {
        let call = Call::new("tool").args(["a", "b c", "loom*"]).env("FLAGS", "-D warnings");
        assert_eq!(format!("{}{}", call.variables, call.line), "FLAGS='-D warnings' tool a 'b c' 'loom*'");
    }

    #[test]
    fn a_failure_names_the_call() {
        let stop = Call::new("false").run().unwrap_err();
        assert_eq!(stop.status(), 1);
        assert!(stop.to_string().starts_with("`false` failed"), "{stop}");
    }

    #[test]
    fn a_missing_program_is_status_2() {
        let stop = Call::new("no-such-program-anywhere").run().unwrap_err();
        assert_eq!(stop.status(), 2);
    }

    #[test]
    fn the_deadline_kills() {
        let stop = Call::new("sleep").args(["600"]).run_until(Instant::now()).unwrap_err();
        assert!(stop.to_string().contains("time was up"), "{stop}");
    }

    #[test]
    fn output_is_returned() {
        assert_eq!(Call::new("echo").args(["one", "two"]).output().unwrap(), "one two\n");
    }
}
