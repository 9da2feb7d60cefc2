//! What the room takes from `std` in a normal build and from `loom` under `--cfg fullbore_loom`.

#[cfg(not(fullbore_loom))]
pub(super) use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

#[cfg(fullbore_loom)]
pub(super) use loom::sync::atomic::{AtomicBool, AtomicU64, Ordering};
