use std::{error, fmt, io};

use crate::find;

/// What starting a server returns.
pub type Started<T> = Result<T, StartError>;

/// Why a server did not start.
///
/// `Debug` prints the same as `Display`, so that `unwrap` in a test shows the server's log readably.
#[non_exhaustive]
pub enum StartError {
    /// The binary is not on this machine; the only case in which a test is skipped.
    Missing {
        /// The binary's name.
        binary: &'static str,
        /// The environment variable that can point to it.
        variable: &'static str,
    },
    /// The binary is there and the server did not come up.
    Failed {
        /// The server's name.
        server: &'static str,
        /// What went wrong.
        reason: String,
        /// The end of what the server printed; may be empty.
        log: String,
    },
}

impl StartError {
    pub(crate) fn failed(server: &'static str, reason: impl Into<String>) -> Self {
        Self::Failed { server, reason: reason.into(), log: String::new() }
    }

    /// For `map_err`: `what` names the step that met the error.
    pub(crate) fn io(server: &'static str, what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |error| Self::failed(server, format!("{what}: {error}"))
    }

    /// Whether the binary is not installed, so that the test may be skipped.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Missing { .. })
    }
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing { binary, variable } => write!(
                f,
                "`{binary}` not found: install it with `cargo xtask test --install`, or set {variable} to its path"
            ),
            Self::Failed { server, reason, log } if log.is_empty() => write!(f, "{server} did not start: {reason}"),
            Self::Failed { server, reason, log } => {
                write!(f, "{server} did not start: {reason}\n--- its log ---\n{log}")
            }
        }
    }
}

impl fmt::Debug for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl error::Error for StartError {}

/// The rule of every `start_or_skip`.
pub(crate) fn or_skip<T>(started: Started<T>) -> Option<T> {
    match started {
        Ok(server) => Some(server),
        Err(StartError::Missing { binary, .. }) if !find::is_required(binary) => {
            // Straight to stderr: `println!` in a passing test is captured, and a skip that nobody sees looks like a pass.
            use io::Write as _;
            let _ = writeln!(io::stderr(), "SKIPPED: {binary}");
            None
        }
        Err(missing @ StartError::Missing { .. }) => {
            panic!("{} is set, and {missing}", find::REQUIRE_SERVERS)
        }
        Err(failed) => panic!("{failed}"),
    }
}
