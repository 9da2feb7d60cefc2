//! The vocabulary that the fullbore crates share: where items go, why they come back, how a thread waits, how things close.
//!
//! # When to use it
//! You meet these types through the other crates. Depend on this one when you write a [`Sink`] or a primitive of your own.
//! It is a leaf: it knows nothing of metrics, pools or queues.
//!
//! # Example
//! ```
//! use fullbore_core::{SendError, Sink};
//!
//! // Anything that takes items is a sink, a crossbeam channel for example.
//! fn feed(sink: &dyn Sink<u32>) -> Result<(), SendError<u32>> {
//!     sink.send_all(&mut (1..=3)).map(|accepted| assert_eq!(accepted, 3))
//! }
//!
//! let (sender, receiver) = crossbeam_channel::bounded(3);
//! feed(&sender)?;
//! let refused = Sink::try_send(&sender, 4).unwrap_err();
//! assert!(refused.is_full());
//! assert_eq!(refused.into_inner(), 4);
//! assert_eq!(receiver.iter().take(3).sum::<u32>(), 6);
//! # Ok::<(), SendError<u32>>(())
//! ```
//!
//! # Guarantees
//! - A refused item comes back in the error ([`SendError::into_inner`]).
//! - Every wait has a deadline, on a [`Clock`] that a test can stop ([`PausedClock`]).
//! - User code never runs under a lock of ours, and its panic becomes a [`Failure`] ([`contain`]).
//!
//! # What it costs
//! No threads, except one for [`Shutdown`]'s signals if asked for. A [`Monitor`] is one lock; a wait allocates one small
//! object.
//!
//! # Trade-offs
//! [`Monitor`] serves the first in line after [`FAIR_AFTER`] and lets newcomers overtake before: throughput first, no
//! starvation.
//!
//! # Fork
//! Locks and threads do not survive `fork`; build primitives after it.
//!
//! # Features
//! - `serde`: [`Overflow`], [`OnDrop`] and durations in configuration files.
//! - `signals`: `Shutdown::on_signals`.
//! - `tracing`: rare events of all primitives.
#![forbid(unsafe_code)]

mod backoff;
#[doc(hidden)]
pub mod barrier;
mod clock;
mod crew;
mod env;
mod error;
mod events;
mod inbox;
#[doc(hidden)]
pub mod looks;
mod monitor;
mod overflow;
mod parker;
mod room;
#[cfg(feature = "serde")]
pub mod serde_text;
#[doc(hidden)]
pub mod shim;
mod shutdown;
#[cfg(feature = "signals")]
mod signals;
pub mod sink;
mod sync;

#[doc(inline)]
pub use crate::{
    backoff::Backoff,
    clock::{Clock, PausedClock},
    crew::{Crew, OnDrop},
    env::{EnvReader, FromEnv},
    error::{BuildError, Failure, FlushError, Refusal, SendError, Undelivered, contain},
    events::{CallerSpan, Event, Events},
    inbox::{Group, GroupTicket, Inbox, Place, Ready},
    monitor::{FAIR_AFTER, Locked, Monitor, Serve, WaitFor, WaitObserver, Waiters, Waiting, observe_waits},
    overflow::{Overflow, ParseOverflowError, Patience, earlier},
    room::{Entry, Room},
    shutdown::{Close, Leftover, Shutdown, ShutdownReport},
    sink::Sink,
};
