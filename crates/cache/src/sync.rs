//! What the protocol takes from `std` in a normal build and from `loom` under `--cfg fullbore_loom`.

#[cfg(not(fullbore_loom))]
mod imp {
    pub(crate) use std::sync::atomic::{AtomicU32, Ordering};
    pub(crate) use std::thread::{ThreadId, current};
}

#[cfg(fullbore_loom)]
mod imp {
    pub(crate) use loom::sync::atomic::{AtomicU32, Ordering};
    // All of loom's threads are one thread to `std`.
    pub(crate) use loom::thread::{ThreadId, current};
}

pub(crate) use imp::{AtomicU32, Ordering, ThreadId, current};
