//! What the tests share.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use fullbore_core::{Failure, PausedClock};
use fullbore_queue::{DeadLetter, Queue, QueueBuilder};

pub const SECOND: Duration = Duration::from_secs(1);
pub const HOUR: Duration = Duration::from_secs(3600);

/// One worker, exact pauses of a second and more.
pub fn one(clock: &PausedClock) -> QueueBuilder<u32> {
    Queue::builder().name("test").workers(1).backoff(SECOND, HOUR).jitter(false).clock(clock)
}

pub type Letters = Receiver<(u32, u32, Failure)>;

pub fn with_letters(builder: QueueBuilder<u32>) -> (QueueBuilder<u32>, Letters) {
    let (letters, dead) = channel();
    let hook = move |letter: DeadLetter<u32>| letters.send((letter.item, letter.attempts, letter.failure)).unwrap();
    (builder.dead_letter(hook), dead)
}

/// Stands in a handler: the test sees each attempt begin and lets it go on. Moved into the handler is the [`Entry`].
pub struct Gate<T = ()> {
    began: Receiver<T>,
    go: Sender<()>,
}

/// The side inside the handler.
#[derive(Clone)]
pub struct Entry<T = ()> {
    began: Sender<T>,
    go: Arc<Mutex<Receiver<()>>>,
}

pub fn gate<T>() -> (Gate<T>, Entry<T>) {
    let ((began, seen), (go, gone)) = (channel(), channel());
    (Gate { began: seen, go }, Entry { began, go: Arc::new(Mutex::new(gone)) })
}

impl<T> Gate<T> {
    /// Waits until an attempt has come to the gate.
    pub fn wait(&self) -> T {
        self.began.recv().unwrap()
    }

    /// Lets `n` attempts pass, also future ones. After the handler is gone there are none.
    pub fn open(&self, n: usize) {
        for _ in 0..n {
            let _ = self.go.send(());
        }
    }
}

impl<T> Entry<T> {
    /// Says that an attempt is here, and waits until it may go on. Once the gate is gone nothing is held up.
    pub fn pass(&self, what: T) {
        let _ = self.began.send(what);
        let _ = self.go.lock().unwrap_or_else(PoisonError::into_inner).recv();
    }
}

/// Panics without a message on standard error.
pub fn blow_up() -> ! {
    std::panic::resume_unwind(Box::new("on purpose"))
}

/// A small generator of random numbers, so that a seed says everything about what was asked for.
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
