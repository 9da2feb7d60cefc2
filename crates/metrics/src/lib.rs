//! Stations and instruments: exact counts and honest times, recorded into memory of the thread's own.
//!
//! # When to use it
//! Every fullbore primitive has a [`Station`] already; make your own around the parts of your program that are not one, and
//! put them into a [`Registry`] to see where work waits. [`Counter`], [`Gauge`] and [`Histogram`] are for what is no station;
//! [`measure()`] is for a loop; [`activity`] for what threads spend their time on. Not for tracing single requests, and not
//! inside a global allocator or a signal handler.
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
//! - Counts are exact: nothing that arrives can leave uncounted, also when the code in [`Station::run`] panics, the thread
//!   ends, or it records in its own teardown. No count wraps.
//! - Recording is wait-free from a thread's second time on: a load and a store of its own memory, no lock, no allocation but
//!   at the first touch of a power of two in a histogram. [`Gauge`] is the exception: one shared number.
//! - A snapshot waits for nobody who records, and never shows more ends than begins or more begins than arrivals.
//! - A percentile comes with its confidence interval, or not at all when too few samples lie beyond it. Relative error of
//!   what histograms hold at most 0.8 %; minimum, maximum, sum and count are exact, and `sum(buckets) = count`.
//! - Nothing is synthesised: service time and response time are recorded apart, each as it was.
//! - Memory is bounded whether anybody reads or not, and given back when threads end.
//!
//! # What it costs
//! No threads, but one each for [`Alarms`], [`Watch`], `Publisher` and a few for `MetricsServer`. An unused instrument is at
//! most 64 bytes. For each thread that records there, a counter takes 128 bytes, a histogram 600 and 320 for each power of two
//! that is touched, a station 1.2 KiB and those of its histograms. A snapshot of a station allocates, and takes about a
//! microsecond for each thread that uses it. The first [`Station::run`] of a process calibrates a clock, for a millisecond or
//! so (at most 200).
//!
//! # Trade-offs
//! Recording is paid for by reading: a snapshot looks at the memory of each thread. A thread's first record at an instrument
//! takes a lock (which a snapshot of that instrument holds while it reads), and so does its end. An instrument that 64 threads
//! use has 64 times the memory.
//!
//! # Fork
//! Fork before threads record: a child that is forked while another thread reads an instrument has that instrument's lock
//! taken for ever. Otherwise numbers go on from where they were; alarms, watches and endpoints stay with the parent.
//!
//! # Features
//! - `http`: `MetricsServer`, an endpoint to be scraped.
//! - `metrics-facade`: stations and metrics in the recorder of the `metrics` crate.
//! - `prometheus`: `OpenMetrics`, text for Prometheus through `prometheus-client`'s encoder.
//! - `serde`: snapshots can be serialised.
//! - `tracing`: rare events, as in all crates.
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
#[cfg(any(feature = "metrics-facade", feature = "prometheus"))]
mod station_numbers;
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
    sample::{random, sampled},
    snapshot::{Counts, StationSnapshot},
    station::{Departure, Elsewhere, Outcome, Station, StationBuilder, StationId, StationKind},
    watch::Watch,
    window::{Window, Windows},
};
