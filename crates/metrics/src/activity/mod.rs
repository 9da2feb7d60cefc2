//! What threads spend their time on, by their own account.
//!
//! A thread that says what it is doing has an account: its time since it first did, split by [`Activity`]. Guards nest; time
//! counts for the innermost only, so the parts of an account add up to the whole. What nobody labels is [`Activity::Work`].
//!
//! ```
//! use fullbore_metrics::activity::{self, Activity};
//!
//! let answer = activity::external("stripe", || 42);
//! {
//!     let _disk = activity::enter(Activity::Io);
//!     // Reading a file ...
//! }
//! let mine = activity::of_this_thread();
//! assert_eq!(mine.parts().map(|(_, time)| time).sum::<std::time::Duration>(), mine.wall());
//! assert!(mine.of(Activity::External("stripe")) > std::time::Duration::ZERO);
//! # assert_eq!(answer, 42);
//! ```
//!
//! Our own primitives label their waits by themselves, from the first use of this module on: a worker without work is idle,
//! a producer at a full buffer pushes, a checkout that waits is at a permit.
//!
//! Entering and leaving cost a clock reading each. A reader never waits for a thread, and threads never wait for it.

mod account;
mod ledger;

use std::marker::PhantomData;
use std::time::Duration;

pub use account::ThreadAccount;

/// What a thread is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum Activity {
    /// Whatever nobody has labelled: computing, or waiting for something unknown.
    Work,
    /// Waiting for work, with none there.
    Idle,
    /// Waiting for the result of work that is in a queue.
    Queue,
    /// Waiting for a lock.
    Lock,
    /// Waiting for a permit or a connection.
    Permit,
    /// Waiting for room in a full buffer: the back-pressure of what comes next.
    Push,
    /// Reading or writing files, sockets, pipes.
    Io,
    /// In a call to something outside the process, by name. A thread tells 16 names apart; further ones count as `other`.
    External(&'static str),
    /// Waiting for other threads: a flush, a barrier, a join, somebody else's computation of the same value.
    Coordinate,
}

/// Says that the calling thread is at `activity` until the guard is dropped; what it was at before goes on then.
///
/// Guards are to be dropped in the reverse order. If one is not, those entered after it end with it.
#[must_use = "the activity ends when the guard is dropped"]
pub fn enter(activity: Activity) -> Guard {
    Guard { depth: ledger::enter(activity), not_send: PhantomData }
}

/// Runs `call` as [`Activity::External`].
pub fn external<R>(name: &'static str, call: impl FnOnce() -> R) -> R {
    within(Activity::External(name), call)
}

/// Runs `f` at `activity`.
pub fn within<R>(activity: Activity, f: impl FnOnce() -> R) -> R {
    let _guard = enter(activity);
    f()
}

/// Ends an activity when it is dropped. Belongs to its thread.
#[derive(Debug)]
pub struct Guard {
    /// How many were entered before it and not left; none if the thread keeps no account any more.
    depth: Option<Depth>,
    not_send: PhantomData<*const ()>,
}

/// A place in the nest of a thread's activities.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Depth {
    level: usize,
    /// Tells guards of the same level apart.
    serial: u64,
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(depth) = self.depth {
            ledger::leave(depth);
        }
    }
}

/// The account of the calling thread, which begins with this call if it has none.
#[must_use]
pub fn of_this_thread() -> ThreadAccount {
    ledger::of_this_thread()
}

/// The accounts of all threads that have one and live, and one for all that have ended, with the sum of their times.
#[must_use]
pub fn accounts() -> Accounts {
    ledger::accounts()
}

/// The accounts of all threads at one moment.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Accounts {
    /// Threads that live, in the order in which their accounts began.
    pub threads: Vec<ThreadAccount>,
    /// All that have ended, together.
    pub ended: ThreadAccount,
}

impl Accounts {
    /// Time at an activity, of all threads that ever were.
    #[must_use]
    pub fn of(&self, activity: Activity) -> Duration {
        self.threads.iter().map(|thread| thread.of(activity)).sum::<Duration>() + self.ended.of(activity)
    }
}
