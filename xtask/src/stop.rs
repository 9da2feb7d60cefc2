//! How a command ends when it cannot go on: one message for a person, and an exit status.

use std::fmt;

/// Why a command stopped.
#[derive(Debug)]
pub(crate) struct Stop {
    message: String,
    status: u8,
}

impl Stop {
    /// A check found something: exit status 1.
    pub(crate) fn failed(message: impl Into<String>) -> Self {
        Self { message: message.into(), status: 1 }
    }

    /// Wrong usage, or a tool that this machine lacks: exit status 2. Nothing was checked.
    pub(crate) fn unable(message: impl Into<String>) -> Self {
        Self { message: message.into(), status: 2 }
    }

    /// The exit status of the process.
    pub(crate) fn status(&self) -> u8 {
        self.status
    }
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<lexopt::Error> for Stop {
    fn from(error: lexopt::Error) -> Self {
        Self::unable(format!("{error} (`cargo xtask help` lists what each command takes)"))
    }
}
