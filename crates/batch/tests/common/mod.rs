//! What the tests share.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use std::fmt::{self, Debug};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use fullbore_batch::Ticket;
use fullbore_core::Failure;

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

/// What became of many items, counted by many threads.
#[derive(Default)]
pub struct Tally {
    /// The call panicked before the item was in.
    pub unwound: AtomicU64,
    pub refused: AtomicU64,
    pub served: AtomicU64,
    pub failed: AtomicU64,
    pub dropped: AtomicU64,
    pub closed: AtomicU64,
}

pub fn add(count: &AtomicU64) {
    count.fetch_add(1, Ordering::Relaxed);
}

impl Tally {
    /// Waits for the item's own result, which is the item.
    pub fn ticket<T: Debug + PartialEq>(&self, ticket: Ticket<T>, item: &T) {
        match ticket.wait() {
            Ok(result) => {
                assert_eq!(&result, item, "the result of another item");
                add(&self.served);
            }
            Err(Failure::Dropped) => add(&self.dropped),
            Err(Failure::Closed) => add(&self.closed),
            Err(_) => add(&self.failed),
        }
    }
}

/// What becomes of an item in the model tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Served,
    Failed,
    Panicked,
    Dropped,
    Returned,
    Refused,
}

pub fn fails(id: u32) -> bool {
    id % 3 == 1
}

pub fn panics(batch: &[u32]) -> bool {
    batch.iter().any(|id| id % 11 == 10)
}

/// What its ticket says of an item, by now.
pub fn fate(ticket: Ticket<u32>, id: u32) -> Fate {
    match ticket.try_take().expect("every ticket is resolved") {
        Ok(result) => {
            assert_eq!(result, id * 2, "the result of another item");
            Fate::Served
        }
        Err(Failure::Error(_)) => Fate::Failed,
        Err(Failure::Panicked(_)) => Fate::Panicked,
        Err(Failure::Dropped) => Fate::Dropped,
        Err(Failure::Closed) => Fate::Returned,
        Err(other) => panic!("{other}"),
    }
}

/// An error of a process function.
#[derive(Debug)]
pub struct Refused(pub u32);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the server said {}", self.0)
    }
}

impl std::error::Error for Refused {}
