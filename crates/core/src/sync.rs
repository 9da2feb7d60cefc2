//! The only door to locks: `parking_lot` in a normal build, `loom` under `--cfg fullbore_loom`.
//!
//! Nothing here can be poisoned: a panic in a caller never makes a lock unusable (C4).

#[cfg(not(fullbore_loom))]
mod imp {
    pub(crate) use parking_lot::{Condvar, Mutex, MutexGuard};
    use std::time::Instant;

    /// Waits on `condvar` until woken or until `until`. May return early.
    pub(crate) fn wait<'a, T>(
        condvar: &Condvar,
        mut guard: MutexGuard<'a, T>,
        until: Option<Instant>,
    ) -> MutexGuard<'a, T> {
        match until {
            Some(at) => {
                condvar.wait_until(&mut guard, at);
            }
            None => condvar.wait(&mut guard),
        }
        guard
    }
}

#[cfg(fullbore_loom)]
mod imp {
    pub(crate) use loom::sync::{Condvar, MutexGuard};
    use std::sync::PoisonError;
    use std::time::Instant;

    /// `loom`'s mutex with the signature of `parking_lot`'s.
    #[derive(Debug, Default)]
    pub(crate) struct Mutex<T>(loom::sync::Mutex<T>);

    impl<T> Mutex<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(loom::sync::Mutex::new(value))
        }
        pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner)
        }
    }

    /// `loom` never lets a timed wait expire by itself, so a wait here has no time limit: an expiry is another thread
    /// that advances a paused clock, and loom explores both orders.
    pub(crate) fn wait<'a, T>(
        condvar: &Condvar,
        guard: MutexGuard<'a, T>,
        _until: Option<Instant>,
    ) -> MutexGuard<'a, T> {
        condvar.wait(guard).unwrap_or_else(PoisonError::into_inner)
    }
}

pub(crate) use imp::{Condvar, Mutex, MutexGuard, wait};
