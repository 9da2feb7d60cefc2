//! Private servers, a faulty network and a counting allocator for the tests of this workspace; not published.
//!
//! Use it in a test that needs a *real* Redis, PostgreSQL, PgBouncer or Prometheus, or needs one to die at the wrong moment. Do not use it where
//! a unit test on the paused clock would do: a server costs a process and some tenths of a second.
//!
//! ```no_run
//! use fullbore_testkit::{Redis, TcpProxy};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let Some(redis) = Redis::start_or_skip() else { return Ok(()) };
//! redis::cmd("SET").arg("k").arg("v").exec(&mut redis.client())?;
//! redis.kill_9(); // in mid-load
//! redis.restart(); // same port, same data directory
//!
//! let proxy = TcpProxy::start(redis.addr())?;
//! let far_away = redis::Client::open(redis.url_at(proxy.addr()))?;
//! proxy.black_hole(true);
//! # Ok(())
//! # }
//! ```
//!
//! # What holds
//!
//! - **Private.** Each server has its own port on 127.0.0.1 and its own temporary directory; nothing of the machine's own
//!   servers is read or touched.
//! - **Never left behind.** A server stops when its handle drops, so also when the test panics. When the test process is
//!   itself killed with SIGKILL, aborts or exits without dropping (a server in a `static`), a guardian process stops the
//!   server and removes its directory.
//! - **The port is yours.** It stays reserved while the server is down, against other tests of this kit and against
//!   outgoing connections, so that [`Redis::restart`] and a refusing [`TcpProxy`] come back on the same address.
//! - **Skips say so.** Without the binary, `start_or_skip` prints `SKIPPED: <binary>` and returns `None`; with
//!   `FULLBORE_REQUIRE_SERVERS=1` it panics instead, unless `FULLBORE_WITHOUT_SERVERS` names the binary.
//!
//! # Where the binaries come from
//!
//! `FULLBORE_REDIS_BIN`, `FULLBORE_POSTGRES_BIN`, `FULLBORE_PGBOUNCER_BIN`, `FULLBORE_PROMETHEUS_BIN` and
//! `FULLBORE_PROMTOOL_BIN` (a file, or a directory that holds it), then for promtool the directory of `prometheus`, then
//! `PATH`, then for PostgreSQL the highest version in `/usr/lib/postgresql/*/bin`, for PgBouncer `/usr/sbin`. A variable that
//! is set is the only place looked at.
//!
//! # What it costs
//!
//! Per server: the server, one small shell (the guardian) and one parked thread. The first PostgreSQL of a process runs
//! `initdb` (about a second); the next ones copy its result. A Prometheus answers queries at once, and scrapes
//! for the first time after about five seconds. Per proxy: one thread, which sleeps in `poll` when nothing
//! moves.
//!
//! Unix only. On Linux `kill_9` also ends a server's own children at once; elsewhere they notice by themselves.

#![deny(unsafe_code)]

mod alloc;
mod child;
mod error;
pub mod events;
mod eventually;
mod find;
mod guardian;
mod pgbouncer;
mod port;
mod postgres_server;
mod proc_fs;
mod process;
mod prometheus_server;
mod promtool;
mod proxy;
mod redis_server;
mod server;
mod user;

pub use alloc::{Allocations, CountingAlloc, allocated_so_far, allocations, measure};
pub use child::{child_test, is_child};
pub use error::{StartError, Started};
pub use eventually::eventually;
pub use pgbouncer::{PgBouncer, PgBouncerBuilder};
pub use postgres_server::{Postgres, PostgresBuilder};
pub use proc_fs::is_alive;
pub use prometheus_server::{Prometheus, PrometheusBuilder, PrometheusError, Sample, TargetHealth};
pub use promtool::{MetricsCheck, promtool_check_metrics, promtool_check_metrics_or_skip};
pub use proxy::{ProxyStats, TcpProxy};
pub use redis_server::{Redis, RedisBuilder};
