//! A blocking connection pool for threads, plain ([`Pool`]) and keyed by tenant ([`KeyedPool`]).
//!
//! # When to use it
//! When threads share connections that are expensive to make or must not be too many. Not in async programs, and not for a bare
//! limit on how many may work at once: that is `fullbore-limit`.
//!
//! # Example
//! ```
//! use fullbore_pool::{Manager, Pool};
//! use std::{io, net::{TcpListener, TcpStream}, time::Duration};
//!
//! struct Tcp(std::net::SocketAddr);
//! impl Manager for Tcp {
//!     type Connection = TcpStream;
//!     type Error = io::Error;
//!     fn connect(&self, budget: Duration) -> io::Result<TcpStream> {
//!         TcpStream::connect_timeout(&self.0, budget)
//!     }
//!     fn validate(&self, stream: &mut TcpStream, _: Duration) -> io::Result<()> {
//!         stream.take_error()?.map_or(Ok(()), Err)
//!     }
//! }
//!
//! let server = TcpListener::bind("127.0.0.1:0")?;
//! let pool = Pool::builder(Tcp(server.local_addr()?)).max_size(2).build()?;
//! let first = pool.get()?.id();
//! assert_eq!(pool.get()?.id(), first, "it came back and was used again");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Guarantees
//! - Never more than `max_size` connections (and `reserve_size` more for waiters in need), those being made and being closed
//!   included; no place is lost, whatever the manager or the holder does: error, panic, timeout, close.
//! - A deadline covers the wait, the check and the connecting. Connections are made in the background: a caller takes the first
//!   that comes free or is made, is let go at its deadline whoever else hangs, and costs nobody a connection if it came too late.
//! - While the server is down there is one attempt at a time, with growing pauses, and callers are told the last error at once
//!   ([`WhileDown`]). An attempt that hangs is given up and its place used again.
//! - First come, first served among those who can be served, with bounded overtaking: what comes free is handed to the first of
//!   those in line for a millisecond.
//! - A connection that was idle for longer than `validate_after` is checked before it is handed out, and once one was found
//!   dead so are all others. One whose holder panicked is closed, not passed on ([`OnPanic`]).
//! - `min_idle` connections are ready, `idle_timeout`, `max_lifetime` and `keepalive` hold whether or not somebody uses the
//!   pool.
//! - User code never runs under the pool's lock (except `Hash`, `Eq`, `Clone` and `Drop` of keys).
//!
//! # What it costs
//! - **Time.** To check out an idle connection and give it back are two compare-and-swaps and no lock, some 30 ns. Whoever
//!   waits, connects or checks takes the pool's lock. [`leak_after`](PoolBuilder::leak_after) and
//!   [`nested`](PoolBuilder::nested) cost more where they are used.
//! - **Threads.** At most `max_connecting` (8) that connect, check and close, and one that keeps the time, for all pools of the
//!   process together ([`Background`]); none before they are needed, and they end with the last pool. A thread that hangs in a
//!   manager is replaced, up to 32 times. The managers for PostgreSQL and Redis connect on a short-lived one more, to be able
//!   to give up.
//! - **Memory.** 256 bytes a place for connections of up to 96 bytes, made in portions of 8, 16, 32 and so on as more places
//!   are in use at once. A tenant of a [`KeyedPool`] that has no connection costs nothing.
//!
//! # Trade-offs
//! - **The check is on the caller's thread**, within its deadline; a manager that ignores its budget holds that one caller. In
//!   the background it would cost each checkout two switches of threads. [`keepalive`](PoolBuilder::keepalive) finds most of
//!   the dead before.
//! - **A thread gets the connection it had last**, as it is nearest. So which of the idle ones rest and can be closed is
//!   decided by a fixed order, not strictly by last use; [`QueueMode::Fifo`] is exact, and takes the lock.
//! - **Ages are measured in ticks of the system**: `validate_after` and `max_lifetime` are up to 4 ms late on most systems, 10
//!   ms at the most; what is done for idle connections is up to a second late.
//! - **By the lock everything is counted**: a return that somebody waits for looks at each place, and making room for another
//!   key looks for the coldest connection among all. It is meant for hundreds of connections, and any number of keys.
//! - **Fairness costs a switch of threads**, so it is not strict: within a millisecond whoever runs may be faster than whoever
//!   waits.
//!
//! # Fork
//! Build it after `fork`. In a child a pool of its parent refuses ([`GetError::is_forked`]), and nothing is closed there, not
//! even by drop: the sockets are the parent's. What the child builds itself works if the
//! parent had no threads when it forked, or after an `exec`: otherwise the child's copy of the table of parked threads (`parking_lot`'s) has
//! the parent's in it, which are gone.
//!
//! # Features
//! - `postgres`, `sqlite`, `redis`: managers for `postgres`, `rusqlite` and `redis`.
//! - `r2d2`: `R2d2Manager`, for any manager written for `r2d2`.
//! - `deadpool`: `Blocking`, a face for threads of an existing deadpool pool. Deadpool is taken without its default features:
//!   of Tokio it needs `sync`, and no runtime.
//! - `serde`: [`Config`] from files.
//! - `tracing`: events for lost connections, failed attempts, retries, leaks, nested calls and panics.
#![deny(unsafe_code)]

#[macro_use]
mod text;

mod admin;

#[cfg(any(feature = "postgres", feature = "redis"))]
mod attempts;
mod background;
mod checkout;
mod config;
mod connect;
mod connection;
#[cfg(feature = "deadpool")]
mod deadpool;
mod desk;
mod error;
mod fork;
mod hot;
mod keyed;
mod leak;
mod manager;
mod nested;
mod pool;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "r2d2")]
mod r2d2;
#[cfg(feature = "redis")]
mod redis;
#[expect(unsafe_code, reason = "a connection is taken and given back without a lock")]
mod slot;
#[cfg(feature = "sqlite")]
mod sqlite;
mod stats;
mod top;
mod transaction;
mod upkeep;

#[cfg(feature = "deadpool")]
#[doc(inline)]
pub use crate::deadpool::{Blocking, BlockingBuilder};
#[cfg(feature = "postgres")]
#[doc(inline)]
pub use crate::postgres::Postgres;
#[cfg(feature = "r2d2")]
#[doc(inline)]
pub use crate::r2d2::R2d2Manager;
#[cfg(feature = "redis")]
#[doc(inline)]
pub use crate::redis::{Redis, RedisConnection};
#[cfg(feature = "sqlite")]
#[doc(inline)]
pub use crate::sqlite::Sqlite;
#[doc(inline)]
pub use crate::{
    admin::RetainResult,
    background::Background,
    config::{Config, OnPanic, PoolBuilder, QueueMode, Target, WhileDown},
    connection::{Connection, Metrics},
    error::{ConnectError, GetError, Status},
    keyed::KeyedPool,
    leak::Checkout,
    manager::{Key, KeyedManager, Manager, Single},
    nested::Nested,
    pool::{Pool, Pooled},
    stats::Stats,
    top::KeyUse,
    transaction::{Retry, TransactionError, Transactional},
};

// Prose that shows code is compiled and run. These files are not in the package; `doctest` is never set for one.
#[cfg(all(doctest, feature = "r2d2"))]
#[doc = include_str!("../../../docs/src/crates/pool-from-r2d2.md")]
struct BookFromR2d2;
#[cfg(all(doctest, feature = "deadpool"))]
#[doc = include_str!("../../../docs/src/crates/pool-from-deadpool.md")]
struct BookFromDeadpool;
