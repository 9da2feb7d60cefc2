//! A case that hangs ends the program, with its name, and not somebody's patience.

use std::process;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::Duration;

/// The longest cases take half a minute.
const PATIENCE: Duration = Duration::from_secs(300);

/// Watches one case until [`Watch::end`].
#[derive(Debug)]
pub(crate) struct Watch {
    alive: Sender<()>,
}

impl Watch {
    pub(crate) fn over(what: &str) -> Self {
        let (alive, case) = mpsc::channel();
        let what = what.to_owned();
        thread::spawn(move || {
            if case.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
                // Its threads cannot be stopped, so there is no going on.
                println!("FAILED {what}: not through after {} s", PATIENCE.as_secs());
                process::exit(1);
            }
        });
        Self { alive }
    }

    /// The case is through.
    pub(crate) fn end(self) {
        drop(self.alive);
    }
}
