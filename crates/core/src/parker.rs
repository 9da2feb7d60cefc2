//! One thread's bed: a token and a condition variable.
//!
//! Our own and not `std::thread::park`, because that token belongs to the whole thread: a library that eats it can make
//! somebody else's `unpark` vanish.

use std::sync::Arc;
use std::time::Instant;

use crate::sync::{Condvar, Mutex, wait};

#[derive(Debug)]
pub(crate) struct Parker {
    token: Mutex<bool>,
    unparked: Condvar,
}

impl Parker {
    fn new() -> Self {
        Self { token: Mutex::new(false), unparked: Condvar::new() }
    }

    /// The calling thread's parker. A stale token in it costs one early return of `park`, which every caller allows.
    pub(crate) fn of_this_thread() -> Arc<Self> {
        #[cfg(not(fullbore_loom))]
        {
            thread_local!(static MINE: Arc<Parker> = Arc::new(Parker::new()));
            // While the thread's locals are being torn down there is none any more: then a fresh one serves.
            MINE.try_with(Arc::clone).unwrap_or_else(|_| Arc::new(Self::new()))
        }
        #[cfg(fullbore_loom)]
        Arc::new(Self::new())
    }

    /// Takes the token, waiting for it until `until`. May return early without it.
    pub(crate) fn park(&self, until: Option<Instant>) {
        let mut token = self.token.lock();
        if !*token {
            token = wait(&self.unparked, token, until);
        }
        *token = false;
    }

    /// Waits for the token and leaves it in place; [`clear`](Self::clear) takes it.
    pub(crate) fn wait_for_token(&self) {
        let mut token = self.token.lock();
        while !*token {
            token = wait(&self.unparked, token, None);
        }
    }

    /// Takes the token if there is one.
    pub(crate) fn clear(&self) {
        *self.token.lock() = false;
    }

    pub(crate) fn unpark(&self) {
        *self.token.lock() = true;
        self.unparked.notify_one();
    }

    pub(crate) fn is_unparked(&self) -> bool {
        *self.token.lock()
    }
}
