//! Stations: the same exact counts and honest times for everything that work passes through.
//!
//! # When to use it
//! Every fullbore primitive has a [`Station`] already; make your own around the parts of your program that are not one, and
//! put them into a [`Registry`] to see where work waits. Not for tracing single requests.
//!
//! # Example
//! ```
//! use fullbore_metrics::{Registry, Station};
//!
//! let fetch = Station::new("fetch");
//! let pages: Vec<usize> = (0..100).map(|n| fetch.run(|| n * 2)).collect();
//! assert_eq!(pages.len(), 100);
//! let seen = fetch.snapshot();
//! assert_eq!(seen.served, 100);
//! println!("median {}", seen.service().p50()?);
//! print!("{}", Registry::new().add(&fetch).table());
//! # Ok::<(), fullbore_metrics::QuantileError>(())
//! ```
//!
//! # Guarantees
//! - Counts are exact: nothing that arrives can leave uncounted, also when the code in [`Station::run`] panics.
//! - A snapshot waits for nobody, takes no lock that recording takes, and never shows more ends than begins or more begins
//!   than arrivals.
//! - A percentile comes with its confidence interval, or not at all when too few samples lie beyond it. Relative error of
//!   recorded durations at most 0.8 %; minimum, maximum, sum and count are exact.
//!
//! # What it costs
//! No threads. A station is about 2 KiB, and 1 KiB more for each power of two of nanoseconds that is touched in a
//! histogram. [`Station::run`] costs two clock reads, the guards three, both a handful of atomic additions on memory that
//! all threads share. Recording allocates only at such a first touch; a snapshot does each time.
//!
//! # Trade-offs
//! Recording is atomic additions on shared lines: simple and exact, but threads that record into one station at a time meet
//! there. Primitives therefore time only 1 in 64 of their cheapest operations ([`sampled`]).
//!
//! # Fork
//! Safe: no thread, no lock held across calls.
//!
//! # Features
//! - `serde`: snapshots can be serialised.
//! - `tracing`: passed on to `fullbore-core`.
#![deny(unsafe_code)]

pub mod activity;
mod alarm;
mod buckets;
mod cell;
mod counter;
mod error;
#[cfg(feature = "metrics-facade")]
mod facade;
mod gauge;
mod guard;
mod histogram;
#[cfg(feature = "http")]
mod http;
mod measure;
#[cfg(feature = "prometheus")]
mod openmetrics;
#[expect(unsafe_code, reason = "recording without a lock, into memory of the thread's own")]
mod raw;
mod registry;
mod sample;
mod shards;
mod snapshot;
mod station;
mod sync;
mod ticker;
mod ticks;
mod watch;
mod window;

#[cfg(feature = "metrics-facade")]
#[doc(inline)]
pub use crate::facade::Publisher;
#[cfg(feature = "http")]
#[doc(inline)]
pub use crate::http::{
    Exposition, IntoExposition, MetricsServer, MetricsServerBuilder, MetricsServerConfig, MetricsServerStats, Scrape,
};
#[cfg(feature = "prometheus")]
#[doc(inline)]
pub use crate::openmetrics::{Format, OpenMetrics};
#[doc(inline)]
pub use crate::{
    alarm::{Alarm, AlarmEdge, Alarms, AlarmsBuilder},
    counter::Counter,
    error::{InvalidObservation, QuantileError, WindowError},
    gauge::Gauge,
    guard::{Serving, Waiting},
    histogram::{DurationSnapshot, Histogram, HistogramSnapshot, Percentile},
    measure::{MeasureExt, Measured, ThroughputReport, measure},
    registry::{
        Description, Edge, Family, Graph, Instrument, MetricSnapshot, Reading, RegisterError, Registry,
        RegistrySnapshot, Relation, Series, Table,
    },
    sample::sampled,
    snapshot::{Counts, StationSnapshot},
    station::{Departure, Outcome, Station, StationBuilder, StationId, StationKind},
    watch::Watch,
    window::{Window, Windows},
};
