//! Rows that arrive one by one from several threads, written into a database in large transactions, and checked.
//!
//! `cargo run --release --example ingest_flights` takes the 336,776 real flights into SQLite; `--postgres URL` into
//! PostgreSQL. See `--help`.
#![forbid(unsafe_code)]

mod args;
mod store;
mod totals;

use std::fmt::Display;
use std::process::ExitCode;
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use fullbore::metrics::{DurationSnapshot, Histogram};
use fullbore::prelude::*;
use fullbore_examples::fleet::{Dataset, Flight};

use crate::args::{Args, Asked};
use crate::store::Store;
use crate::totals::Totals;

/// Why there is no result; the text is for the user.
#[derive(Debug)]
enum Stop {
    /// The command line asks for something that cannot be.
    Usage(String),
    /// Something fails.
    Failed(String),
}

impl Stop {
    fn failed(error: impl Display) -> Self {
        Self::Failed(error.to_string())
    }
}

fn main() -> ExitCode {
    let outcome = match args::parse(std::env::args_os().skip(1)) {
        Ok(Asked::Run(args)) => run(&args),
        Ok(Asked::Help) => {
            print!("{}", args::HELP);
            Ok(())
        }
        Err(error) => Err(Stop::Usage(format!("{error} (see --help)"))),
    };
    let (error, status) = match outcome {
        Ok(()) => return ExitCode::SUCCESS,
        Err(Stop::Failed(error)) => (error, 1),
        Err(Stop::Usage(error)) => (error, 2),
    };
    eprintln!("ingest_flights: {error}");
    ExitCode::from(status)
}

fn run(args: &Args) -> Result<(), Stop> {
    let dataset = Arc::new(Dataset::load(&args.data).map_err(Stop::failed)?);
    let flights = &dataset.flights()[..args.rows];
    let store = Store::open(args)?;

    let began = Instant::now();
    let (batcher, sizes) = ingest(&store, &dataset, flights, args)?;
    let took = began.elapsed();

    let mut expected = Totals::default();
    flights.iter().for_each(|flight| expected.add(&dataset.row_of(flight)));
    let stored = store.totals()?;
    report(&batcher, &sizes, flights.len(), took);
    if stored != expected {
        return Err(Stop::Failed(format!("the table is not what was sent: {stored:?} instead of {expected:?}")));
    }
    println!("checked: {} rows, checksum {:016x} on both sides", stored.rows, stored.checksum);
    Ok(())
}

/// Sends all flights and returns when they are in the database.
fn ingest(
    store: &Store,
    dataset: &Arc<Dataset>,
    flights: &[Flight],
    args: &Args,
) -> Result<(Batcher<Flight, ()>, Arc<Histogram>), Stop> {
    let sizes = Arc::new(Histogram::new());
    let first_error = Arc::new(OnceLock::new());
    // ANCHOR: batcher
    let write = store.writer(Arc::clone(dataset));
    let batcher = Batcher::builder().name("flights").max_items(args.batch).build({
        let (sizes, first_error) = (Arc::clone(&sizes), Arc::clone(&first_error));
        move |rows: Batch<Flight>| {
            sizes.record(rows.len() as u64);
            write(rows).inspect_err(|error| drop(first_error.set(error.to_string())))
        }
    });
    let batcher = batcher.map_err(Stop::failed)?;
    let produce = |share: &[Flight]| {
        for flight in share {
            if first_error.get().is_some() {
                return;
            }
            if let Err(refused) = batcher.send(*flight) {
                drop(first_error.set(refused.to_string()));
            }
        }
    };
    thread::scope(|scope| {
        for share in flights.chunks(flights.len().div_ceil(args.producers)) {
            scope.spawn(move || produce(share));
        }
    });
    // Accepted is not written: that it is, a flush says, a ticket or the close.
    batcher.close_within(Duration::from_secs(600)).map_err(Stop::failed)?;
    // ANCHOR_END: batcher
    match first_error.get() {
        None => Ok((batcher, sizes)),
        Some(error) => Err(Stop::Failed(error.clone())),
    }
}

fn report(batcher: &Batcher<Flight, ()>, sizes: &Histogram, rows: usize, took: Duration) {
    let (seen, sizes) = (batcher.station().snapshot(), sizes.snapshot());
    println!("{rows} rows in {took:.2?}: {:.0} rows/s", rows as f64 / took.as_secs_f64());
    println!(
        "{} batches of {} to {} rows, {:.0} on average",
        sizes.count(),
        sizes.min().unwrap_or_default(),
        sizes.max().unwrap_or_default(),
        sizes.mean().unwrap_or_default()
    );
    for (what, times) in [("wait of a row", seen.wait()), ("service of a batch", seen.service())] {
        println!("{what:<18}  p50 {}, p99 {}", percentile(times, 0.5), percentile(times, 0.99));
    }
}

/// Of too few samples there is none.
fn percentile(times: &DurationSnapshot, q: f64) -> String {
    times.quantile(q).map_or_else(|too_few| too_few.to_string(), |percentile| percentile.to_string())
}
