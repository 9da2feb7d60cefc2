//! A fence that costs one side nothing, because the other side pays for both. Not for users: hidden, and outside what versions promise.
//!
//! A store and a later load of another word may swap places in a processor's store buffer. Two threads that each store, then look
//! at what the other has stored, need a full fence each, and that costs more than all the rest of a send. Linux can
//! interrupt all processors that run threads of this process (`membarrier`): with it, the thread that seldom comes here pays, and the
//! one that always does needs only that the compiler keeps its order.

use std::sync::OnceLock;
use std::sync::atomic::compiler_fence;

use crate::shim::{Ordering, fence};

/// Which of the two ways this process has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Barrier {
    one_sided: bool,
}

impl Barrier {
    /// The best way of this system. All users must have the same: it is found out once.
    #[must_use]
    pub fn of_this_process() -> Self {
        static FOUND: OnceLock<bool> = OnceLock::new();
        Self { one_sided: *FOUND.get_or_init(register) }
    }

    /// Between the frequent side's store and its load.
    #[inline]
    pub fn light(self) {
        if self.one_sided {
            compiler_fence(Ordering::SeqCst);
        } else {
            fence(Ordering::SeqCst);
        }
    }

    /// Between the other side's store and its load.
    pub fn heavy(self) {
        // Its own half, and what makes the two halves of two heavy sides meet.
        fence(Ordering::SeqCst);
        if self.one_sided {
            interrupt_all();
        }
    }
}

#[cfg(all(target_os = "linux", not(fullbore_loom)))]
fn register() -> bool {
    use rustix::thread::{MembarrierCommand, membarrier, membarrier_query};

    let there = membarrier_query().contains_command(MembarrierCommand::PrivateExpedited);
    there && membarrier(MembarrierCommand::RegisterPrivateExpedited).is_ok()
}

#[cfg(all(target_os = "linux", not(fullbore_loom)))]
fn interrupt_all() {
    use rustix::thread::{MembarrierCommand, membarrier};

    // The quick way fails only for want of kernel memory; the slow one needs none.
    let done = membarrier(MembarrierCommand::PrivateExpedited).or_else(|_| membarrier(MembarrierCommand::Global));
    if let Err(error) = done {
        // Senders have been told that they need no fence. Without one an item could be lost, which is worse than an end.
        eprintln!("fullbore: membarrier, which there was at the start, is gone: {error}");
        std::process::abort();
    }
}

#[cfg(any(not(target_os = "linux"), fullbore_loom))]
fn register() -> bool {
    false
}

#[cfg(any(not(target_os = "linux"), fullbore_loom))]
fn interrupt_all() {}
