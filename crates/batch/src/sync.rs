//! The only door to atomics, so that the loom models can compile the protocol with loom's.

pub(crate) use fullbore_core::shim::{AtomicU64, Ordering, UnsafeCell, spin_loop, yield_now};
