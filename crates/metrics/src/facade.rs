//! Stations and metrics in the recorder of the `metrics` crate.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use fullbore_core::{BuildError, Clock, Event, Events, Undelivered, contain};
use metrics::{Label, counter, gauge};

use crate::histogram::HistogramSnapshot;
use crate::registry::{MetricSnapshot, Reading, Registry, quantile_name};
use crate::snapshot::StationSnapshot;
use crate::station_numbers::{COUNTS, NOW};
use crate::ticker::Ticker;

/// The quantiles that are published.
const QUANTILES: [(f64, &str); 3] = [(0.5, "0.5"), (0.9, "0.9"), (0.99, "0.99")];

impl Registry {
    /// Sets the counters and gauges of the `metrics` crate to what this registry shows now: in the recorder that the program
    /// has installed, or that is local to the calling thread.
    ///
    /// Stations become `fullbore_station_served` and so on, with the labels `station` and `kind`. Of histograms it gets count,
    /// sum and quantiles as they are, not samples made up from buckets: its recorders keep every sample they are given.
    ///
    /// ```
    /// use fullbore_metrics::{Registry, Station};
    ///
    /// let parse = Station::new("parse");
    /// let registry = Registry::new();
    /// registry.add(&parse);
    /// parse.run(|| ());
    /// // Before each time the recorder is read, or every so often: see `publish_every`.
    /// registry.publish();
    /// ```
    pub fn publish(&self) {
        let snapshot = self.snapshot();
        snapshot.stations.iter().for_each(station);
        snapshot.metrics.iter().for_each(metric);
    }

    /// Calls [`publish`](Self::publish) every `period` on a thread of its own, until the [`Publisher`] is dropped. Choose half
    /// the period at which the recorder is read, or less.
    ///
    /// # Errors
    /// If `period` is zero, or there is no thread to be had.
    pub fn publish_every(&self, period: Duration, clock: Clock) -> Result<Publisher, BuildError> {
        let registry = self.clone();
        let panics = Arc::new(AtomicU64::new(0));
        let (its_panics, events) = (Arc::clone(&panics), Events::new("metrics", "publish"));
        let ticker = Ticker::start("publish", clock, period, move || {
            // The recorder is the user's: a panic of it costs this round and no more.
            if let Err(panicked) = contain(|| registry.publish()) {
                its_panics.fetch_add(1, Ordering::Relaxed);
                events.emit(Event::Panic, || panicked);
            }
            ControlFlow::Continue(())
        })?;
        Ok(Publisher { ticker, panics })
    }
}

/// Publishes a registry until it is dropped.
#[derive(Debug)]
pub struct Publisher {
    ticker: Ticker,
    panics: Arc<AtomicU64>,
}

impl Publisher {
    /// How many rounds a panic of the recorder has ended.
    #[must_use]
    pub fn panics(&self) -> u64 {
        self.panics.load(Ordering::Relaxed)
    }

    /// Ends it, and waits for a round that runs. Idempotent.
    pub fn close(&self) {
        self.ticker.close(None);
    }

    /// As [`close`](Self::close), for at most `limit`.
    ///
    /// # Errors
    /// If a round still runs then: names its thread.
    pub fn close_within(&self, limit: Duration) -> Result<(), Undelivered<()>> {
        let stuck = self.ticker.close(self.ticker.clock().after(limit));
        Undelivered::new(Vec::new(), stuck.len(), stuck).into_result()
    }
}

fn station(it: &StationSnapshot) {
    let labels = vec![Label::new("station", it.label().to_owned()), Label::new("kind", it.kind().name())];
    for (name, _, number) in COUNTS {
        counter!(format!("fullbore_station_{name}"), labels.clone()).absolute(number(it));
    }
    for (name, _, number) in NOW {
        gauge!(format!("fullbore_station_{name}"), labels.clone()).set(number(it) as f64);
    }
    gauge!("fullbore_station_busy_seconds", labels.clone()).set(it.busy().as_secs_f64());
    for (name, times) in [("wait", it.wait()), ("service", it.service()), ("response", it.response())] {
        histogram(&format!("fullbore_station_{name}_seconds"), &labels, times.as_nanos(), 1e-9);
    }
}

fn metric(it: &MetricSnapshot) {
    for series in &it.series {
        let labels: Vec<Label> =
            series.labels.iter().map(|(name, value)| Label::new(name.clone(), value.clone())).collect();
        match &series.reading {
            Reading::Counter(n) => counter!(it.name.clone(), labels).absolute(*n),
            Reading::Gauge { value, max } => {
                gauge!(it.name.clone(), labels.clone()).set(*value as f64);
                gauge!(format!("{}_max", it.name), labels).set(*max as f64);
            }
            Reading::Histogram(samples) => {
                histogram(&it.name, &labels, samples, if it.durations { 1e-9 } else { 1.0 });
            }
        }
    }
}

fn histogram(name: &str, labels: &[Label], samples: &HistogramSnapshot, unit: f64) {
    if samples.count() == 0 {
        return;
    }
    counter!(format!("{name}_count"), labels.to_vec()).absolute(samples.count());
    gauge!(format!("{name}_sum"), labels.to_vec()).set(samples.sum() as f64 * unit);
    for (q, shown) in QUANTILES {
        if let Ok(percentile) = samples.quantile(q) {
            let mut labels = labels.to_vec();
            labels.push(Label::new("at", shown));
            gauge!(quantile_name(name), labels).set(percentile.value as f64 * unit);
        }
    }
}
