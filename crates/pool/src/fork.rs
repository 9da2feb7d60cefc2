//! Whether this process is the child of the one that built a pool. Sockets would be shared between the two.

use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

/// How many forks lie between the first pool of a process and this one.
static FORKS: AtomicU32 = AtomicU32::new(0);

/// The process's number, which a child has not.
#[inline]
pub(crate) fn generation() -> u32 {
    // ORDERING: Relaxed: a child has one thread, and that one wrote it.
    FORKS.load(Ordering::Relaxed)
}

/// To be called before a pool is used: from then on a fork is noticed.
pub(crate) fn watch() {
    static WATCH: Once = Once::new();
    WATCH.call_once(register);
}

#[cfg(unix)]
#[expect(unsafe_code, reason = "there is no other way to be told of a fork")]
fn register() {
    extern "C" fn forked() {
        FORKS.fetch_add(1, Ordering::Relaxed);
    }
    // SAFETY: the handler is a plain function that lives for ever and only adds to a static atomic, which is
    // async-signal-safe. It cannot unwind.
    let failed = unsafe { libc::pthread_atfork(None, None, Some(forked)) };
    // It fails for want of memory only; then a child is not noticed, as the documentation forbids it anyway.
    debug_assert_eq!(failed, 0);
}

#[cfg(not(unix))]
fn register() {}
