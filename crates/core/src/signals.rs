//! SIGINT and SIGTERM.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use signal_hook::iterator::Signals;

use crate::error::contain;
use crate::shutdown::Shutdown;

static LISTENING: AtomicBool = AtomicBool::new(false);

pub(crate) fn listen(shutdown: Shutdown) -> io::Result<()> {
    // ORDERING: a flag on its own; nothing is published with it.
    if LISTENING.swap(true, Ordering::Relaxed) {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, "signals are already being listened to"));
    }
    let listening = start(shutdown);
    if listening.is_err() {
        LISTENING.store(false, Ordering::Relaxed);
    }
    listening
}

fn start(shutdown: Shutdown) -> io::Result<()> {
    // The thread first: without it a handler would swallow signals. It ends if the handlers cannot be installed.
    let (give, given) = crossbeam_channel::bounded::<Signals>(1);
    std::thread::Builder::new().name("fullbore-core-signals-0".into()).spawn(move || {
        let Ok(mut signals) = given.recv() else { return };
        for _ in signals.forever() {
            // A hook that panics must not end the listening.
            drop(contain(|| shutdown.request()));
        }
    })?;
    // The second signal ends the process in the handler: also while a hook blocks the thread. The order matters: each
    // handler looks at the flag before it sets it.
    let seen = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&seen))?;
        flag::register(signal, Arc::clone(&seen))?;
    }
    // The thread waits for this and for nothing else.
    give.send(Signals::new([SIGINT, SIGTERM])?).map_err(|_| io::Error::other("the listening thread is gone"))
}
