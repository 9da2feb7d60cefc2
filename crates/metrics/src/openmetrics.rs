//! The text that Prometheus reads.

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry as Encoded;

use crate::histogram::HistogramSnapshot;
use crate::registry::{
    MetricSnapshot, Reading, RegisterError, Registry, RegistrySnapshot, check_bounds, quantile_name,
};
use crate::snapshot::StationSnapshot;
use crate::station_numbers::{COUNTS, NOW};

/// The quantiles that are shown as gauges beside each histogram, where there are enough samples.
const QUANTILES: [(f64, &str); 4] = [(0.5, "0.5"), (0.9, "0.9"), (0.99, "0.99"), (0.999, "0.999")];

/// The languages that Prometheus reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Format {
    /// OpenMetrics 1.0.
    OpenMetrics,
    /// The text format of Prometheus before it, version 0.0.4.
    Text,
}

/// Writes what a registry shows as text for Prometheus. A cheap handle.
///
/// Each station becomes counters (`fullbore_station_served_total` and so on), gauges and histograms in seconds, with the labels
/// `station` and `kind`; stations of the same name are told apart by a number behind it. Each histogram has gauges of its
/// quantiles beside it (`.._quantile_seconds{at="0.99"}`), from all samples since the beginning.
///
/// ```
/// use fullbore_metrics::{Format, OpenMetrics, Registry, Station};
///
/// let parse = Station::new("parse");
/// parse.run(|| ());
/// let registry = Registry::new();
/// registry.add(&parse);
/// let text = OpenMetrics::new(&registry).encode(Format::Text)?;
/// assert!(text.contains("fullbore_station_served_total{station=\"parse\",kind=\"custom\"} 1\n"));
/// # Ok::<(), std::fmt::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct OpenMetrics {
    registry: Registry,
    station_buckets: Arc<[f64]>,
}

impl OpenMetrics {
    /// For what this registry has at each call of [`encode`](Self::encode).
    #[must_use]
    pub fn new(registry: &Registry) -> Self {
        Self { registry: registry.clone(), station_buckets: seconds_buckets().into() }
    }

    /// The upper bounds (`le`), in seconds, of the stations' histograms. Default: 24, as for
    /// [`Description::buckets`](crate::Description::buckets).
    ///
    /// # Errors
    /// If one is negative, not finite, or not greater than the one before.
    pub fn station_buckets(mut self, bounds: &[f64]) -> Result<Self, RegisterError> {
        check_bounds(bounds)?;
        self.station_buckets = bounds.into();
        Ok(self)
    }

    /// An HTTP endpoint that shows this to Prometheus, in the format that each client asks for; `build` starts it.
    ///
    /// ```
    /// use fullbore_metrics::{OpenMetrics, Registry};
    ///
    /// let endpoint = OpenMetrics::new(Registry::global()).serve().listen("127.0.0.1:0").build()?;
    /// println!("http://{}/metrics", endpoint.local_addr());
    /// # Ok::<(), fullbore_core::BuildError>(())
    /// ```
    #[cfg(feature = "http")]
    pub fn serve(&self) -> crate::http::MetricsServerBuilder {
        use crate::http::{Exposition, MetricsServer, Scrape};
        let shown = self.clone();
        MetricsServer::builder(move |scrape: &Scrape<'_>| {
            if scrape.wants_openmetrics() {
                shown.encode(Format::OpenMetrics).map(Exposition::openmetrics)
            } else {
                shown.encode(Format::Text).map(Exposition::plain_text)
            }
        })
    }

    /// The text.
    ///
    /// # Errors
    /// Never, as far as we know: that of the encoder.
    pub fn encode(&self, format: Format) -> Result<String, fmt::Error> {
        let mut registry = Encoded::default();
        let snapshot = self.registry.snapshot();
        registry.register_collector(Box::new(Shown { snapshot, station_buckets: Arc::clone(&self.station_buckets) }));
        let mut text = String::new();
        text::encode(&mut text, &registry)?;
        Ok(match format {
            Format::OpenMetrics => text,
            Format::Text => as_old_text(&text),
        })
    }
}

/// In the older format a counter is described under the name that its samples have.
fn as_old_text(text: &str) -> String {
    let mut old = String::with_capacity(text.len() + 1024);
    // The help comes right before the type.
    let mut help: Option<(&str, &str)> = None;
    for line in text.lines().filter(|line| *line != "# EOF") {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ');
            continue;
        }
        let kind = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' '));
        let total = if matches!(kind, Some((_, "counter"))) { "_total" } else { "" };
        if let Some((name, help)) = help.take() {
            old += &format!("# HELP {name}{total} {help}\n");
        }
        match kind {
            Some((name, kind)) => old += &format!("# TYPE {name}{total} {kind}\n"),
            None => {
                old += line;
                old.push('\n');
            }
        }
    }
    old
}

/// 1, 2.5 and 5 times powers of ten, from a microsecond to 50 seconds.
fn seconds_buckets() -> Vec<f64> {
    // Written out by their decimals, so that they are the numbers one would type.
    let bound = |(power, digits): (i32, &str)| format!("{digits}e{power}").parse();
    let all = (-6..=1).flat_map(|power| ["1", "2.5", "5"].map(|digits| (power, digits)));
    all.filter_map(|each| bound(each).ok()).collect()
}

/// Powers of four.
fn plain_buckets() -> Vec<f64> {
    (0..24).map(|power| 4f64.powi(power)).collect()
}

type Labels = Vec<(String, String)>;

#[derive(Debug)]
struct Shown {
    snapshot: RegistrySnapshot,
    station_buckets: Arc<[f64]>,
}

impl Collector for Shown {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let stations = labelled(&self.snapshot.stations);
        if !stations.is_empty() {
            self.stations(&mut encoder, &stations)?;
        }
        self.snapshot.metrics.iter().try_for_each(|it| metric(&mut encoder, it))?;
        overflows(&mut encoder, &self.snapshot.metrics)
    }
}

fn labelled(stations: &[StationSnapshot]) -> Vec<(Labels, &StationSnapshot)> {
    let labels = |station: &StationSnapshot| {
        [("station", station.label()), ("kind", station.kind().name())]
            .map(|(name, value)| (name.into(), value.into()))
            .into()
    };
    stations.iter().map(|station| (labels(station), station)).collect()
}

impl Shown {
    fn stations(&self, encoder: &mut DescriptorEncoder<'_>, stations: &[(Labels, &StationSnapshot)]) -> fmt::Result {
        for (name, help, number) in COUNTS {
            let name = format!("fullbore_station_{name}");
            let mut metric = encoder.encode_descriptor(&name, help, None, MetricType::Counter)?;
            for (labels, station) in stations {
                metric.encode_family(labels)?.encode_counter::<NoLabelSet, u64, u64>(&number(station), None)?;
            }
        }
        let mut busy = encoder.encode_descriptor(
            "fullbore_station_busy_seconds",
            "Summed time of all servers at work",
            None,
            MetricType::Counter,
        )?;
        for (labels, station) in stations {
            let busy_secs = station.busy().as_secs_f64();
            busy.encode_family(labels)?.encode_counter::<NoLabelSet, f64, u64>(&busy_secs, None)?;
        }
        for (name, help, number) in NOW {
            let name = format!("fullbore_station_{name}");
            let mut metric = encoder.encode_descriptor(&name, help, None, MetricType::Gauge)?;
            for (labels, station) in stations {
                metric.encode_family(labels)?.encode_gauge(&number(station))?;
            }
        }
        type Times = (&'static str, &'static str, fn(&StationSnapshot) -> &HistogramSnapshot);
        let histograms: [Times; 3] = [
            ("wait", "Time in line", |it| it.wait().as_nanos()),
            ("service", "Time in service", |it| it.service().as_nanos()),
            ("response", "Time from arrival to the end of service", |it| it.response().as_nanos()),
        ];
        for (name, help, times) in histograms {
            let series = stations.iter().map(|(labels, station)| (labels, times(station)));
            // Only queues have response times.
            let series: Vec<_> = series.filter(|(_, samples)| name != "response" || samples.count() > 0).collect();
            histograms_and_quantiles(
                encoder,
                &format!("fullbore_station_{name}_seconds"),
                help,
                &Scale { bounds: &self.station_buckets, seconds: true },
                &series,
            )?;
        }
        self.edges(encoder, stations)
    }

    fn edges(&self, encoder: &mut DescriptorEncoder<'_>, stations: &[(Labels, &StationSnapshot)]) -> fmt::Result {
        let name_of = |id| {
            let known = stations.iter().find(|(_, station)| station.id() == id);
            known.map_or_else(|| id.to_string(), |(labels, _)| labels[0].1.clone())
        };
        let mut metric = encoder.encode_descriptor(
            "fullbore_station_edge",
            "1 where a station feeds another, or needs its permits or connections",
            None,
            MetricType::Gauge,
        )?;
        for (labels, station) in stations {
            let feeds = station.feeds().iter().map(|to| ("feeds", *to));
            let held_by = station.held_by().iter().map(|to| ("held_by", *to));
            for (relation, to) in feeds.chain(held_by) {
                let labels = [("from", labels[0].1.clone()), ("relation", relation.to_owned()), ("to", name_of(to))];
                metric.encode_family(&labels)?.encode_gauge(&1u64)?;
            }
        }
        Ok(())
    }
}

/// How a histogram's whole numbers are shown.
struct Scale<'a> {
    bounds: &'a [f64],
    /// Whether they are nanoseconds, to be shown as seconds.
    seconds: bool,
}

impl Scale<'_> {
    fn shown(&self, value: f64) -> f64 {
        if self.seconds { value / 1e9 } else { value }
    }

    fn recorded(&self, bound: f64) -> u64 {
        // The cast saturates. Rounded: a microsecond is 1,000 ns, whatever its binary fraction.
        (if self.seconds { bound * 1e9 } else { bound }).round() as u64
    }

    fn encode(&self, metric: &mut MetricEncoder<'_>, samples: &HistogramSnapshot) -> fmt::Result {
        let mut below = 0;
        let mut buckets: Vec<(f64, u64)> = Vec::with_capacity(self.bounds.len() + 1);
        for bound in self.bounds {
            let at_most = samples.at_most(self.recorded(*bound));
            buckets.push((*bound, at_most - below));
            below = at_most;
        }
        buckets.push((f64::INFINITY, samples.count() - below));
        metric.encode_histogram::<NoLabelSet>(self.shown(samples.sum() as f64), samples.count(), &buckets, None)
    }
}

/// The series with these labels; without any it is the metric itself, or the text would have empty braces.
fn with_labels(
    metric: &mut MetricEncoder<'_>,
    labels: &Labels,
    encode: impl FnOnce(&mut MetricEncoder<'_>) -> fmt::Result,
) -> fmt::Result {
    if labels.is_empty() { encode(metric) } else { encode(&mut metric.encode_family(labels)?) }
}

fn histograms_and_quantiles(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    scale: &Scale<'_>,
    series: &[(&Labels, &HistogramSnapshot)],
) -> fmt::Result {
    let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
    for (labels, samples) in series {
        with_labels(&mut metric, labels, |metric| scale.encode(metric, samples))?;
    }
    let quantiles = quantile_name(name);
    let help = format!("{help}: quantiles of all samples");
    let mut metric = encoder.encode_descriptor(&quantiles, &help, None, MetricType::Gauge)?;
    for (labels, samples) in series {
        for (q, shown) in QUANTILES {
            // Where there are too few samples, there is no number.
            let Ok(percentile) = samples.quantile(q) else { continue };
            let mut labels = (*labels).clone();
            labels.push(("at".to_owned(), shown.to_owned()));
            metric.encode_family(&labels)?.encode_gauge(&scale.shown(percentile.value as f64))?;
        }
    }
    Ok(())
}

fn metric(encoder: &mut DescriptorEncoder<'_>, metric: &MetricSnapshot) -> fmt::Result {
    let help = metric.help.replace('\\', "\\\\").replace('\n', "\\n");
    if metric.kind == "histogram" {
        let default = if metric.durations { seconds_buckets() } else { plain_buckets() };
        let scale = Scale { bounds: metric.buckets.as_ref().unwrap_or(&default), seconds: metric.durations };
        let samples = metric.series.iter().filter_map(|series| match &series.reading {
            Reading::Histogram(samples) => Some((&series.labels, samples)),
            _ => None,
        });
        return histograms_and_quantiles(encoder, &metric.name, &help, &scale, &samples.collect::<Vec<_>>());
    }
    let kind = if metric.kind == "counter" { MetricType::Counter } else { MetricType::Gauge };
    let mut values = encoder.encode_descriptor(&metric.name, &help, None, kind)?;
    for series in &metric.series {
        match &series.reading {
            Reading::Counter(n) => {
                with_labels(&mut values, &series.labels, |it| it.encode_counter::<NoLabelSet, u64, u64>(n, None))?;
            }
            Reading::Gauge { value, .. } => {
                with_labels(&mut values, &series.labels, |it| it.encode_gauge(value))?;
            }
            Reading::Histogram(_) => {}
        }
    }
    if metric.kind == "gauge" {
        let help = format!("{help}: the highest since it was last taken");
        let name = format!("{}_max", metric.name);
        let mut highest = encoder.encode_descriptor(&name, &help, None, MetricType::Gauge)?;
        for series in &metric.series {
            if let Reading::Gauge { max, .. } = &series.reading {
                with_labels(&mut highest, &series.labels, |it| it.encode_gauge(max))?;
            }
        }
    }
    Ok(())
}

/// Families that have more label sets than they may have series.
fn overflows(encoder: &mut DescriptorEncoder<'_>, metrics: &[MetricSnapshot]) -> fmt::Result {
    if metrics.iter().all(|metric| metric.overflowed == 0) {
        return Ok(());
    }
    let help = "Times that a label set had to share the series of all others";
    let mut counter = encoder.encode_descriptor("fullbore_label_sets_overflowed", help, None, MetricType::Counter)?;
    for metric in metrics.iter().filter(|metric| metric.overflowed > 0) {
        let labels = [("metric", metric.name.as_str())];
        counter.encode_family(&labels)?.encode_counter::<NoLabelSet, u64, u64>(&metric.overflowed, None)?;
    }
    Ok(())
}
