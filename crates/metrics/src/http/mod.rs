//! An HTTP/1.1 endpoint to be scraped: blocking sockets of the standard library, a bounded number of threads.
//!
//! `server` has the owner and its close, `table` who may stay and who has to go, `acceptor` lets connections in,
//! `worker` answers one at a time; `request` and `response` know HTTP, `timed` reads and writes with a deadline over
//! the whole.

mod acceptor;
mod config;
mod exposition;
mod request;
mod response;
mod server;
mod stats;
mod table;
mod timed;
mod wake;
mod worker;

pub use config::{MetricsServerBuilder, MetricsServerConfig};
pub use exposition::{Exposition, IntoExposition, Scrape};
pub use server::MetricsServer;
pub use stats::MetricsServerStats;
