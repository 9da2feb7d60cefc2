//! A work queue with its worker threads: bounded, with retries, delays and dead letters, in memory.
//!
//! # When to use it
//! To do many independent jobs on several threads, some of which fail now and then. Not to compute over a slice (`rayon`),
//! and not for work that must survive the process: accepted jobs that are not finished are lost with it.
//!
//! # Example
//! ```
//! use fullbore_queue::{Queue, Verdict};
//! use std::{sync::mpsc, time::Duration};
//!
//! let (dead, letters) = mpsc::channel();
//! let queue = Queue::builder()
//!     .workers(8)
//!     .max_attempts(3)
//!     .backoff(Duration::from_millis(1), Duration::from_millis(10))
//!     .dead_letter(move |letter| dead.send((letter.item, letter.attempts)).unwrap())
//!     .build(|job| match **job {
//!         "ok" => Verdict::Done,
//!         "flaky" if job.attempt() == 2 => Verdict::Done,
//!         "hopeless" => Verdict::dead("no such tenant"),
//!         _ => Verdict::retry("busy"),
//!     })?;
//! for job in ["ok", "flaky", "hopeless", "stubborn"] {
//!     queue.send(job)?;
//! }
//! queue.close_within(Duration::from_secs(10))?;
//! let mut letters: Vec<_> = letters.try_iter().collect();
//! letters.sort();
//! assert_eq!(letters, [("hopeless", 1), ("stubborn", 3)]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Guarantees
//! - An accepted job is tried until it is done, given up (to the dead-letter hook), displaced (`DropOldest`, to the hook)
//!   or handed back by `close_within`; a refused one comes back in the error. The station's counts add up to that.
//! - Jobs begin in the order in which they were accepted (retries and delays when they are due); with several workers they
//!   end in any order.
//! - A handler's panic is a failed attempt; the worker lives on.
//! - Every wait has a deadline form; nothing sleeps by polling.
//! - What the handler has captured is dropped with the [`Queue`], not with its last [`Producer`].
//!
//! # What it costs
//! One thread for each worker, named `fullbore-queue-<name>-<n>`, with the standard stack, asleep while there is nothing to
//! do; one lock for each send and each attempt. At rest the accepted jobs, at most `capacity`, and some 100 bytes for
//! each. However many workers are idle, at most one timer is armed, for the first delayed job.
//!
//! # Trade-offs
//! One lock for all: made for jobs of ten microseconds and more. At-least-once by nature: a job that failed half-way is
//! tried again, so make it idempotent or set `max_attempts(1)`.
//!
//! # Deadlock
//! A handler that sends into its own full queue is refused instead of waiting; a handler that flushes or closes its own
//! queue does not wait. A dead-letter hook that sends back into its own `DropOldest` queue may displace without end.
//!
//! # Fork
//! Build it after `fork`.
//!
//! # Features
//! - `serde`: [`Config`] from files.
//! - `tracing`: events for retries, dead letters, panics; the sender's span is entered around the handler.
#![forbid(unsafe_code)]

mod config;
mod job;
mod queue;
mod shared;
mod store;
mod worker;

#[doc(inline)]
pub use crate::{
    config::{Config, QueueBuilder},
    job::{DeadLetter, IntoVerdict, Job, Verdict},
    queue::{Producer, Queue},
};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
