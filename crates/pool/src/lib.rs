//! A blocking connection pool for threads, plain ([`Pool`]) and keyed by tenant ([`KeyedPool`]).
//!
//! # When to use it
//! When threads share connections that are expensive to make or must not be too many. Not for a bare limit on how many may
//! work at once: that is `fullbore-limit`.
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
//! - Never more than `max_size` connections, those being made and being closed included; no place is lost, whatever the
//!   manager or the holder does: error, panic, timeout, close.
//! - A deadline covers the wait, the check and the connecting: the manager is told what is left of it. Who comes or gets its
//!   turn too late costs nobody a connection.
//! - First come, first served among those who can be served, with bounded overtaking: what comes free is handed to
//!   the first of those in line for a millisecond, at most once in each millisecond.
//! - A connection whose holder panicked is closed, not passed on.
//! - User code never runs under the pool's lock (except `Hash`, `Eq`, `Clone` and `Drop` of keys).
//!
//! # What it costs
//! No threads: connections are made, checked and closed on the threads of those who need it (the managers for
//! PostgreSQL and Redis connect on a short-lived one, to be able to give up, and that for PostgreSQL closes on one). A key
//! that has no connection costs nothing. A checkout and a return take a lock each.
//!
//! # Trade-offs
//! The caller makes its own connection, so a slow connect is seen by that caller even if another connection comes back
//! meanwhile. Idle and outlived connections are closed when somebody uses the pool, not by a clock.
//!
//! # Fork
//! Build it after `fork`; connections must not be shared between processes.
//!
//! # Features
//! - `postgres`, `sqlite`, `redis`: managers for `postgres`, `rusqlite` and `redis`.
//! - `r2d2`: `R2d2Manager`, for any manager written for `r2d2`.
//! - `deadpool`: `Blocking`, a face for threads of an existing deadpool pool. Deadpool is taken without its default features:
//!   of Tokio it needs `sync`, and no runtime.
//! - `serde`: [`Config`] from files.
//! - `tracing`: events for lost connections and panics.
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
