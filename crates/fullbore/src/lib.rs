//! Throughput primitives for threaded Rust: make a program on plain threads do more work per second, and see where it waits.
//!
//! One crate for each primitive; this one re-exports them. Each is named here by the need it serves.
//!
//! # Work arrives one by one, but is cheaper in groups
//! - [`batch`]: items from many threads, grouped by count and time, handed to one function.
//!
//! # The same thing is computed or fetched again and again
//! - [`cache`]: a bounded cache with `get_or_compute`: one load for each key, however many threads ask.
//!
//! # Connections are expensive, or must not be too many
//! - [`pool`]: a blocking connection pool, and one keyed by tenant under a global cap.
//!
//! # What is behind gets slower when more of you use it
//! - [`limit`]: at most so many at once, the others wait in line.
//!
//! # Many jobs, some of which fail
//! - [`queue`]: a bounded queue with worker threads, retries, delays and dead letters.
//!
//! # One event, several listeners
//! - [`fanout`]: a router with a bounded buffer for each listener, so that no slow one is in the way.
//!
//! # Where does the time go?
//! - [`metrics`]: every primitive is a station with exact counts and honest percentiles; make your own around your code.
//!
//! [`core`] holds the words that they share: [`Sink`](core::Sink), [`Overflow`](core::Overflow),
//! [`Shutdown`](core::Shutdown), the clock that tests can stop.
//!
//! # Example
//! ```
//! # #[cfg(all(feature = "queue", feature = "metrics"))] fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use fullbore::prelude::*;
//! use std::time::Duration;
//!
//! let queue = Queue::<&str>::builder().workers(4).build(|job| println!("job {} for {}", job.id(), **job))?;
//! for tenant in ["alpha", "beta", "gamma"] {
//!     queue.send(tenant)?;
//! }
//! queue.close_within(Duration::from_secs(5))?;
//! assert_eq!(queue.station().snapshot().served, 3);
//! # Ok(()) }
//! # #[cfg(not(all(feature = "queue", feature = "metrics")))] fn main() {}
//! ```
//!
//! # What all of them promise
//! Nothing is lost silently; every buffer is bounded; every wait has a deadline form; your closures never run under a lock
//! and may panic; closing finishes accepted work and says what it could not; errors give the item back and say why. The
//! rules have numbers (C1 to C11), and each crate has a test for each rule that applies to it.
//!
//! # Features
//! One for each primitive (`batch`, `cache`, `fanout`, `limit`, `metrics`, `pool`, `queue`), all on by default: no C
//! compiler, no async runtime and no Tokio is needed for them. Further: `postgres` and `sqlite` (managers for the pool,
//! batches into a table), `redis` (a manager for the pool, the cache's second tier), `r2d2` (a manager for the pool), `deadpool` (threads at a deadpool pool), `prometheus`,
//! `http` and `metrics-facade` (what stations show, for other systems), `serde` (configuration from files), `signals`
//! (`Shutdown::on_signals`), `tracing` (rare events).
#![forbid(unsafe_code)]

#[cfg(feature = "batch")]
#[doc(inline)]
pub use fullbore_batch as batch;
#[cfg(feature = "cache")]
#[doc(inline)]
pub use fullbore_cache as cache;
#[doc(inline)]
pub use fullbore_core as core;
#[cfg(feature = "fanout")]
#[doc(inline)]
pub use fullbore_fanout as fanout;
#[cfg(feature = "limit")]
#[doc(inline)]
pub use fullbore_limit as limit;
#[cfg(feature = "metrics")]
#[doc(inline)]
pub use fullbore_metrics as metrics;
#[cfg(feature = "pool")]
#[doc(inline)]
pub use fullbore_pool as pool;
#[cfg(feature = "queue")]
#[doc(inline)]
pub use fullbore_queue as queue;

/// The types that most programs name.
pub mod prelude {
    #[cfg(feature = "batch")]
    pub use fullbore_batch::{Batch, Batcher};
    #[cfg(feature = "cache")]
    pub use fullbore_cache::Cache;
    pub use fullbore_core::{Overflow, Shutdown, Sink};
    #[cfg(feature = "fanout")]
    pub use fullbore_fanout::Router;
    #[cfg(feature = "limit")]
    pub use fullbore_limit::Limit;
    #[cfg(feature = "metrics")]
    pub use fullbore_metrics::{Registry, Station};
    #[cfg(feature = "postgres")]
    pub use fullbore_pool::Postgres;
    #[cfg(feature = "redis")]
    pub use fullbore_pool::Redis;
    #[cfg(feature = "sqlite")]
    pub use fullbore_pool::Sqlite;
    #[cfg(feature = "pool")]
    pub use fullbore_pool::{KeyedPool, Pool};
    #[cfg(feature = "queue")]
    pub use fullbore_queue::{Queue, Verdict};
}

// Prose that shows code is compiled and run. These files are not in the package; `doctest` is never set for one.
#[cfg(all(doctest, feature = "batch"))]
#[doc = include_str!("../../../README.md")]
struct RepositoryReadme;
#[cfg(all(doctest, feature = "batch"))]
#[doc = include_str!("../README.md")]
struct Readme;
#[cfg(all(doctest, feature = "batch"))]
#[doc = include_str!("../../../docs/src/crates/core.md")]
struct BookCore;
#[cfg(all(doctest, feature = "limit"))]
#[doc = include_str!("../../../docs/src/crates/limit.md")]
struct BookLimit;
#[cfg(all(doctest, feature = "http", feature = "prometheus"))]
#[doc = include_str!("../../../docs/src/crates/metrics.md")]
struct BookMetrics;
#[cfg(all(doctest, feature = "queue"))]
#[doc = include_str!("../../../docs/src/crates/queue.md")]
struct BookQueue;
