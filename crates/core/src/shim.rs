//! The only door of the lock-free protocols to atomics, so that their loom models are compiled from the same code.
//! Not for users: hidden, and outside what versions promise.

#[cfg(not(fullbore_loom))]
mod imp {
    pub use std::hint::spin_loop;
    pub use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
    pub use std::thread::yield_now;

    /// `std`'s cell with the signature of loom's, which sees whether two threads are in it at once.
    #[derive(Debug)]
    #[repr(transparent)]
    pub struct UnsafeCell<T>(std::cell::UnsafeCell<T>);

    impl<T> UnsafeCell<T> {
        pub const fn new(value: T) -> Self {
            Self(std::cell::UnsafeCell::new(value))
        }
        #[inline]
        pub fn with<R>(&self, f: impl FnOnce(*const T) -> R) -> R {
            f(self.0.get())
        }
        #[inline]
        pub fn with_mut<R>(&self, f: impl FnOnce(*mut T) -> R) -> R {
            f(self.0.get())
        }
    }
}

#[cfg(fullbore_loom)]
mod imp {
    pub use loom::cell::UnsafeCell;
    pub use loom::hint::spin_loop;
    pub use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
    pub use loom::thread::yield_now;
}

pub use imp::{AtomicU32, AtomicU64, Ordering, UnsafeCell, fence, spin_loop, yield_now};
