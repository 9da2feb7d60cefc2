//! The only door to atomics and locks, so that the loom models can compile the protocol with loom's (`tests/loom_cells.rs`).

pub(crate) use parking_lot::Mutex;
pub(crate) use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering};
