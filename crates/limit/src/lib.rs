//! A concurrency limit: at most so many threads at once in a part of the program, the others wait in line, with deadlines.
//!
//! # When to use it
//! In front of what gets slower when more of you use it at once: a database, a disk, somebody's API. Not for a resource
//! that has to be handed out, such as connections: that is `fullbore-pool`.
//!
//! [`Breaker`] is for what is down now and then: it says no at once instead of letting everybody wait for a timeout.
//!
//! # Example
//! ```
//! use fullbore_limit::Limit;
//!
//! let limit = Limit::builder().name("disk").permits(4).build()?;
//! std::thread::scope(|scope| {
//!     for _ in 0..16 {
//!         scope.spawn(|| limit.run(|| { /* at most four at once */ }));
//!     }
//! });
//! let seen = limit.station().snapshot();
//! assert_eq!((seen.served, seen.in_service()), (16, 0));
//! # Ok::<(), fullbore_core::BuildError>(())
//! ```
//!
//! # Guarantees
//! - Never more permits out than there are; a permit comes back when it is dropped, also by a panic.
//! - Every wait ends: at its deadline, at [`Limit::close`], or with a permit. At most `max_waiters` wait.
//! - First come, first served, with bounded overtaking: the first in line for a millisecond is handed the next
//!   permit, at most one in each millisecond.
//! - Errors say how many permits were out and how long the line was.
//! - A breaker never waits. While it is half-open one call at a time passes; one that never ends is given up after the
//!   time the breaker had been open for.
//!
//! # What it costs
//! No threads. One lock for each acquire and release; a wait allocates one small object.
//!
//! # Trade-offs
//! A fixed number: you measure and choose. Overtaking in the first millisecond buys throughput with a little fairness.
//!
//! # Fork
//! Build it after `fork`.
//!
//! # Features
//! - `serde`: [`Config`] from files.
//! - `tracing`: an event when calls are shed, and when a breaker opens or closes.
#![forbid(unsafe_code)]

mod breaker;
mod breaker_config;
mod config;
mod error;
mod limit;

#[doc(inline)]
pub use crate::{
    breaker::{Breaker, BreakerPermit, BreakerState, Open},
    breaker_config::{BreakerBuilder, BreakerConfig},
    config::{Config, LimitBuilder},
    error::{AcquireError, LimitState},
    limit::{Limit, Permit},
};
