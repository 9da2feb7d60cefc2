//! What the tests share.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// A linger that never ends by itself.
pub const NEVER: Duration = Duration::MAX;

/// Stands in a process function: the test sees each call begin and lets it go on.
pub struct Gate<T = ()> {
    began: Receiver<T>,
    go: Sender<()>,
    entry: Mutex<Option<Entry<T>>>,
}

/// The side inside the process function.
pub struct Entry<T> {
    began: Sender<T>,
    go: Mutex<Receiver<()>>,
}

impl<T> Gate<T> {
    pub fn new() -> Self {
        let ((began, seen), (go, gone)) = (channel(), channel());
        Self { began: seen, go, entry: Mutex::new(Some(Entry { began, go: Mutex::new(gone) })) }
    }

    /// To be moved into the process function; once.
    pub fn entry(&self) -> Entry<T> {
        self.entry.lock().unwrap().take().unwrap()
    }

    /// Waits until a call has come to the gate.
    pub fn wait(&self) -> T {
        self.began.recv().unwrap()
    }

    /// Lets `n` calls pass, also future ones. After the process function is gone there are none.
    pub fn open(&self, n: usize) {
        for _ in 0..n {
            let _ = self.go.send(());
        }
    }
}

impl<T> Entry<T> {
    /// Says that a call is here, and waits until it may go on. Once the gate is gone nothing is held up.
    pub fn pass(&self, what: T) {
        let _ = self.began.send(what);
        let _ = self.go.lock().unwrap_or_else(PoisonError::into_inner).recv();
    }
}

/// Panics without a message on standard error.
pub fn blow_up() -> ! {
    std::panic::resume_unwind(Box::new("on purpose"))
}

/// A small generator of random numbers, so that a seed says everything about a run.
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    /// A number below `n`.
    pub fn roll(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % n
    }
}
