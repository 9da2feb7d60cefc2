//! A cache in memory for threads: bounded, with expiry, and with `get_or_compute` that loads each missing key once.
//!
//! # When to use it
//! In front of something slow whose answers may be a little old: a query, a remote call, a parsed file. Not where the
//! answer must be the latest at every moment, not for values that each have one owner (that is `fullbore-pool`), and not to
//! share values between processes.
//!
//! # Example
//! ```
//! use fullbore_cache::Cache;
//! use std::time::Duration;
//!
//! fn fetch(id: u32) -> std::io::Result<String> {
//!     Ok(format!("user {id}")) // something slow
//! }
//!
//! let users = Cache::builder().name("users").capacity(10_000).ttl(Duration::from_secs(60)).build()?;
//! let first = users.get_or_compute(&7, |_| fetch(7))?;
//! let again = users.get_or_compute(&7, |_| -> std::io::Result<String> { unreachable!("it is there") })?;
//! assert_eq!(first, again);
//! assert_eq!(users.stats().loads, 1);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What there is
//! - [`Cache`]: `get`, `insert`, [`get_or_compute`](Cache::get_or_compute), [`get_or_compute_many`](Cache::get_or_compute_many),
//!   [`memoize`](Cache::memoize), [`remove`](Cache::remove), [`remove_by_tag`](Cache::remove_by_tag), [`clear`](Cache::clear),
//!   [`metadata`](Cache::metadata).
//! - [`LoadCtx`]: what a load says of its value: TTL, negative, tags, etag, version, not modified.
//! - [`LoadingCache`]: with a loader of its own: refresh ahead, soft and hard timeouts, [`refresh`](LoadingCache::refresh).
//!
//! # Guarantees
//! - One load at a time for each key, whoever asks; the others wait for it, with a deadline, and get its value or its error.
//! - **An invalidation during a load wins.** After [`remove`](Cache::remove), [`insert`](Cache::insert), [`clear`](Cache::clear) or
//!   [`remove_by_tag`](Cache::remove_by_tag) no load that had begun before reaches the cache, and no call that begins afterwards gets
//!   its value.
//! - A stale value is only returned where [`stale_for`](CacheBuilder::stale_for) allows it, and only by `get_or_compute` and its like, in
//!   place of an error or of a wait.
//! - A load that hangs loses its key after [`load_limit`](CacheBuilder::load_limit); a bounded number of them is left behind.
//! - A load runs on its caller's thread, may borrow, may use the cache, and may panic: the waiters learn of it and the key is
//!   free again. Asking for the key that one is loading is an error, not a deadlock.
//! - No user code runs under a lock, except `Hash`, `Eq`, `Clone` and `Drop` of keys, and `Clone` of values that have no
//!   destructor. Destructors of values run outside
//!   all locks, also those of entries that are displaced; a panic in one goes nowhere.
//!
//! # What it costs
//! No threads, except those of a loading cache ([`refresh_threads`](CacheBuilder::refresh_threads)). A hit is a hash, a shared lock of one of several shards, a look-up, a copy of the value and, where the entry
//! expires, a look at a coarse clock. Values without a destructor, up to 64 bytes, lie in the table itself; others are behind an
//! `Arc` there. An entry is its key, that, and 24 bytes; beside it the policy has 16 to 32 bytes for each. A load allocates one small
//! object, a wait one more. An entry that has more than a TTL (tags, a stale window, ...) allocates one of 100 bytes for that. Flights and waiters need no bound of their own: each is a thread inside a call.
//!
//! # Trade-offs
//! - The capacity is never exceeded. A new entry can lose against those that are used more (TinyLFU: what comes is compared with
//!   what would have to go): then it is not kept, and is loaded again the next time. A cache with room for a few dozen entries
//!   remembers too little for that to be a good choice.
//! - An expired entry is never returned, but stays in memory until somebody asks for its key or newer ones displace it: there
//!   is no timer. The time of expiry is kept to a tick of the system, 4 ms on most.
//! - A value that has left the cache is dropped at the end of some later call, not at once.
//! - With `panic=abort` a panic in a load ends the process.
//! - Keys whose `Eq` or `Hash` lies get wrong misses and second loads; nothing hangs.
//!
//! # Fork
//! Build it after `fork`.
//!
//! # Features
//! - `redis`: a second tier that processes share ([`CacheBuilder::redis`], module [`redis`]): leases in the key's own slot, so that one of
//!   them loads and any of them can revoke that; what is removed anywhere is removed everywhere. `redis-tls`: over TLS. `zstd`: large
//!   values are compressed.
//! - `serde`: [`Config`] from files.
//! - `tracing`: an event when a load or a value's destructor panics, when a change does not reach Redis, when its breaker opens.
#![forbid(unsafe_code)]
// The plain map of the models needs less.
#![cfg_attr(fullbore_loom, allow(dead_code))]

mod cache;
mod claim;
mod config;
mod entry;
mod error;
mod flight;
#[cfg(feature = "redis")]
mod joined;
mod life;
mod load;
mod loading;
mod many;
mod memoize;
mod metadata;
#[cfg(feature = "redis")]
pub mod redis;
mod shared;
mod stats;
mod store;
mod sync;
mod world;

#[doc(inline)]
pub use crate::{
    cache::Cache,
    config::{CacheBuilder, Config, WithLoader},
    error::{CacheError, LoadState},
    load::LoadCtx,
    loading::LoadingCache,
    memoize::{MemoFn, Spread, Whole},
    metadata::Metadata,
    stats::CacheStats,
};

// The book's pages that show code are compiled and run. They are not in the package; `doctest` is never set for one.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/src/crates/cache-loading.md")]
struct BookLoading;
#[cfg(all(doctest, feature = "redis"))]
#[doc = include_str!("../../../docs/src/crates/cache-redis.md")]
struct BookRedis;
#[cfg(doctest)]
#[doc = include_str!("../../../docs/src/crates/cache-from-moka.md")]
struct BookFromMoka;
