//! A batcher: items from many threads, grouped by count and time, handed to one function.
//!
//! # When to use it
//! Where a call costs much and an item little: inserts into a database, requests to an API that takes lists, writes that
//! share an fsync. Not where items must survive a crash: what was accepted and not processed is in memory only.
//!
//! # Example
//! ```
//! use fullbore_batch::{Batch, Batcher};
//! use std::time::Duration;
//!
//! let doubler = Batcher::builder()
//!     .name("doubler")
//!     .max_items(500)
//!     .linger(Duration::from_millis(20))
//!     .build(|numbers: Batch<u64>| Ok::<_, std::io::Error>(numbers.iter().map(|n| n * 2).collect::<Vec<_>>()))?;
//! doubler.send(1)?; // fire and forget
//! let ticket = doubler.submit(2)?; // its own result, later
//! assert_eq!(doubler.call(3)?, 6); // its own result, now
//! assert_eq!(ticket.wait()?, 4);
//! doubler.close()?;
//! assert_eq!(doubler.station().snapshot().served, 3);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Guarantees
//! - A batch starts when `max_items` are there, when they weigh `max_weight`, when its first item has waited for `linger`, at a
//!   flush, at the close, or for a [`Batcher::call`]. Behind a full batch linger may end sooner: time is not noted for each item.
//!   While the process function is busy items collect, and time spent there is not added to the next wait.
//! - The items of one thread enter batches in the order in which it sent them; those of several threads in any order, even if
//!   one was sent after the other. Batches are processed one after the other,
//!   unless there are several workers.
//! - A batch that fails can be tried again, and taken apart until only the bad items fail; what fails for good goes to the
//!   dead-letter hook ([`BatcherBuilder::build_by_ref`]).
//! - [`KeyedBatcher`] keeps a batch for each key, and on request one batch of a key in process at most; [`ReducingBatcher`] merges
//!   the items of a key into one.
//! - At most `capacity` items, of at most `capacity_weight`, are accepted and not yet processed;
//!   [`Overflow`](fullbore_core::Overflow) says what happens to more.
//! - Every accepted item is processed once, or dead-lettered, or handed back at close. Every [`Ticket`] is resolved,
//!   whatever became of its item. A panic of the process function fails its batch and nothing else.
//! - A wrong number of results fails the batch with [`Failure::Mismatch`](fullbore_core::Failure::Mismatch): no item can get
//!   another one's result.
//! - Waiting for a batcher inside its own process function is an error, not a deadlock.
//!
//! # What it costs
//! One thread for each worker (one, unless set otherwise) with the standard stack. A `send` takes no lock, nearly always (2 ns where
//! no other processor has its memory; 10 to 25 ns an item from `send` to processed, batches of 100, with up to 8 senders on 2 processors); with a
//! [`weigher`](BatcherBuilder::weigher) one lock. No allocations once warm, but for a ticket: one small object. At rest a ring for each
//! thread that sends, of at most 1,024 items or 256 KiB (16 items at least), and what waits beyond that. An idle worker looks for
//! new items for some microseconds, at most 50, before it sleeps.
//!
//! # Trade-offs
//! Linger is latency bought for larger batches; a lone caller of [`Batcher::call`] does not pay it. One thread processes, so
//! effects are ordered, and a slow batch holds up its successors.
//!
//! # Fork
//! Build it after `fork`: the thread does not survive it.
//!
//! # Features
//! - `serde`: [`Config`] from files.
//! - `tracing`: events for dropped items, panics and abandoned work; the process function runs in the span of the caller
//!   that sent the batch's oldest item.
//! - `sqlite`: `SqliteInsert`, a batch into SQLite in one transaction.
//! - `postgres`: `CopyIn` and `MultiRowInsert`, a batch into PostgreSQL in one transaction.
#![deny(unsafe_code)]

mod adapt;
mod batch;
mod batcher;
mod config;
mod engine;
mod error;
mod inside;
// The way from sender to worker is what this crate exists for; `intake::ring` and `intake::lane` name the invariants.
#[expect(unsafe_code, reason = "items go from thread to thread without a lock")]
mod intake;
mod keyed;
mod outcomes;
#[cfg(feature = "postgres")]
mod postgres;
mod process;
mod reduce;
mod retryable;
#[cfg(feature = "sqlite")]
mod sqlite;
mod sync;
mod ticket;
mod write;

#[cfg(feature = "postgres")]
#[doc(inline)]
pub use crate::postgres::{CopyIn, MultiRowInsert, PostgresRow};
#[cfg(feature = "sqlite")]
#[doc(inline)]
pub use crate::sqlite::{SqliteInsert, SqliteRow};
#[doc(inline)]
pub use crate::{
    batch::{Batch, IntoIter},
    batcher::{BatchHandle, Batcher},
    config::{BatcherBuilder, Config, Oversized},
    error::{CallError, OwnThread},
    keyed::{KeyedBatcher, KeyedBatcherBuilder, KeyedConfig, KeyedHandle},
    outcomes::{IntoOutcomes, Outcomes},
    reduce::{ReducingBatcher, ReducingBuilder, ReducingConfig, ReducingHandle},
    retryable::Retryable,
    ticket::Ticket,
    write::{WriteError, Written},
};
