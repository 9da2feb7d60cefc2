//! A box that is put in place once, by whoever comes first, and then stays.

use std::marker::PhantomData;
use std::ptr;

use crate::sync::{AtomicPtr, Ordering};

/// Null, or a `T` that this owns. Reading it is one load.
pub(crate) struct OncePtr<T> {
    at: AtomicPtr<T>,
    owns: PhantomData<Box<T>>,
}

// SAFETY: it owns a `T` as a `Box` does and hands out only `&T`; threads that race to set it need `T: Send` for what they
// bring along.
unsafe impl<T: Send + Sync> Send for OncePtr<T> {}
// SAFETY: as above.
unsafe impl<T: Send + Sync> Sync for OncePtr<T> {}

impl<T> OncePtr<T> {
    /// Not `const`: loom's pointers cannot be made so.
    pub(crate) fn new() -> Self {
        Self { at: AtomicPtr::new(ptr::null_mut()), owns: PhantomData }
    }

    #[inline]
    pub(crate) fn get(&self) -> Option<&T> {
        // ORDERING: Acquire pairs with the Release in `get_or_set`: who sees the pointer sees what it points to.
        let at = self.at.load(Ordering::Acquire);
        // SAFETY: not null, it came from `Box::into_raw` in `get_or_set`, is never replaced, and is freed only in `drop`.
        unsafe { at.as_ref() }
    }

    /// What is there, or else what `make` gives.
    #[cold]
    pub(crate) fn get_or_set(&self, make: impl FnOnce() -> Box<T>) -> &T {
        if let Some(there) = self.get() {
            return there;
        }
        let mine = Box::into_raw(make());
        // ORDERING: Release pairs with the Acquire in `get`; Acquire for the loser, who goes on with the winner's.
        match self.at.compare_exchange(ptr::null_mut(), mine, Ordering::AcqRel, Ordering::Acquire) {
            // SAFETY: as in `get`.
            Ok(_) => unsafe { &*mine },
            Err(theirs) => {
                // SAFETY: `mine` came from `Box::into_raw` above, and nobody else has seen it.
                drop(unsafe { Box::from_raw(mine) });
                // SAFETY: as in `get`; it is not null, or the exchange would have worked.
                unsafe { &*theirs }
            }
        }
    }
}

impl<T> Default for OncePtr<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Drop for OncePtr<T> {
    fn drop(&mut self) {
        // ORDERING: Relaxed: whoever drops it has seen everything, `&mut self` says so.
        let at = self.at.load(Ordering::Relaxed);
        if !at.is_null() {
            // SAFETY: it came from `Box::into_raw`, and nobody can have a reference any more.
            drop(unsafe { Box::from_raw(at) });
        }
    }
}
