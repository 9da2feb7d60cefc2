//! Threads that live as long as a side does and begin each turn together.

use std::any::Any;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::Side;

/// How many portions a thread gets if all get the same.
const PORTIONS: u64 = 16;
/// Enough that handing it out costs nothing beside it.
const LARGEST_PORTION: u64 = 1024;

/// A side that is nothing but its threads. See [`Team::new`].
pub fn on_threads<W: FnMut(Range<u64>)>(threads: usize, make: impl Fn(usize) -> W + Send + Sync + 'static) -> Side {
    let mut team = Team::new(threads, make);
    Box::new(move |count| team.run(count).took())
}

/// Threads that share the operations of each turn. They stay from turn to turn, so that what a primitive keeps for each
/// thread is warm, as in a program that runs.
///
/// Operations are handed out in small portions, to whoever asks. With equal shares a thread that the scheduler let wait
/// would do the rest of its share alone, and the primitive would look as if it did well with many threads.
#[derive(Debug)]
pub struct Team {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    /// Everybody and whoever called [`Team::run`], before a turn and after it.
    barrier: Barrier,
    /// How many operations of the turn have been handed out; more than there are at its end.
    handed_out: AtomicU64,
    turn: Mutex<Turn>,
}

#[derive(Default)]
struct Turn {
    /// Operations of all threads together; `None`: go home.
    count: Option<u64>,
    span: Option<Span>,
    panic: Option<Box<dyn Any + Send>>,
}

/// From when to when the threads were at work: the first begin to the last end.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    /// The first of them began.
    pub began: Instant,
    /// The last of them was through.
    pub ended: Instant,
}

impl Span {
    /// How long that was.
    #[must_use]
    pub fn took(&self) -> Duration {
        self.ended - self.began
    }

    fn with(self, other: Option<Self>) -> Self {
        other.map_or(self, |other| Self { began: self.began.min(other.began), ended: self.ended.max(other.ended) })
    }
}

impl Team {
    /// Starts the threads. Each makes its work with `make(its number)`, on the thread itself, and calls it for each portion
    /// of a turn, with the numbers of the operations to do: those of a turn count from 0.
    ///
    /// # Panics
    /// If a thread cannot be started.
    pub fn new<W: FnMut(Range<u64>)>(threads: usize, make: impl Fn(usize) -> W + Send + Sync + 'static) -> Self {
        let shared = Arc::new(Shared {
            barrier: Barrier::new(threads + 1),
            handed_out: AtomicU64::new(0),
            turn: Mutex::default(),
        });
        let make = Arc::new(make);
        let threads = (0..threads)
            .map(|number| {
                let (shared, make) = (Arc::clone(&shared), Arc::clone(&make));
                thread::spawn(move || member(&shared, number, threads as u64, &*make))
            })
            .collect();
        Self { shared, threads }
    }

    /// Has `count` operations done.
    ///
    /// # Panics
    /// If one of the threads did.
    pub fn run(&mut self, count: u64) -> Span {
        *self.shared.turn.lock() = Turn { count: Some(count), ..Turn::default() };
        self.shared.handed_out.store(0, Ordering::Relaxed);
        self.shared.barrier.wait();
        self.shared.barrier.wait();
        let turn = std::mem::take(&mut *self.shared.turn.lock());
        if let Some(panic) = turn.panic {
            resume_unwind(panic);
        }
        turn.span.expect("every thread notes its span or its panic")
    }
}

/// What each thread does. A panic is kept for the caller: a thread that left would make all others wait for ever.
fn member<W: FnMut(Range<u64>)>(shared: &Shared, number: usize, threads: u64, make: &impl Fn(usize) -> W) {
    let mut work = None;
    loop {
        shared.barrier.wait();
        let Some(count) = shared.turn.lock().count else { return };
        let portion = (count / threads / PORTIONS).clamp(1, LARGEST_PORTION);
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            let work = work.get_or_insert_with(|| make(number));
            let began = Instant::now();
            loop {
                let first = shared.handed_out.fetch_add(portion, Ordering::Relaxed);
                if first >= count {
                    break;
                }
                work(first..count.min(first + portion));
            }
            Span { began, ended: Instant::now() }
        }));
        {
            let mut turn = shared.turn.lock();
            match outcome {
                Ok(span) => turn.span = Some(span.with(turn.span)),
                Err(panic) => turn.panic = Some(panic),
            }
        }
        shared.barrier.wait();
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.turn.lock().count = None;
        self.shared.barrier.wait();
        for thread in self.threads.drain(..) {
            // What could panic in it is the drop of its work; the turns' panics have been reported.
            drop(thread.join());
        }
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operation_is_done_once() {
        let done = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&done);
        let mut team = Team::new(3, move |_| {
            let seen = Arc::clone(&seen);
            move |operations| seen.lock().extend(operations)
        });
        for count in [1, 3, 1_000] {
            assert!(team.run(count).took() < Duration::from_secs(60));
            let mut done = std::mem::take(&mut *done.lock());
            done.sort_unstable();
            assert!(done.into_iter().eq(0..count), "{count} operations");
        }
    }

    #[test]
    fn a_panic_comes_out_and_nobody_hangs() {
        let mut side = on_threads(2, |_| |operations| assert!(!operations.contains(&1), "number 1 is wrong"));
        let panic = catch_unwind(AssertUnwindSafe(|| side(2))).unwrap_err();
        assert_eq!(panic.downcast_ref::<&str>(), Some(&"number 1 is wrong"));
    }
}
