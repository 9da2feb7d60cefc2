//! The table that a person reads.

use std::fmt;
use std::time::Duration;

use super::{MetricSnapshot, Reading, RegistrySnapshot};
use crate::histogram::DurationSnapshot;
use crate::snapshot::{StationSnapshot, sum};
use crate::station::StationId;

/// Snapshots as a table of text.
#[derive(Clone, Debug)]
pub struct Table {
    rows: Vec<StationSnapshot>,
    metrics: Vec<MetricSnapshot>,
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const HEAD: [&str; 11] = [
            "station",
            "kind",
            "arrived",
            "served",
            "failed",
            "lost",
            "waiting",
            "in service",
            "wait p50",
            "service p50",
            "feeds",
        ];
        let cells: Vec<[String; 11]> = self.rows.iter().map(|row| self.cells(row)).collect();
        let mut width = HEAD.map(str::len);
        for row in &cells {
            for (width, cell) in width.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        for row in std::iter::once(&HEAD.map(str::to_owned)).chain(&cells) {
            for (at, (cell, width)) in row.iter().zip(width).enumerate() {
                let gap = if at == 0 { "" } else { "  " };
                // Names to the left, numbers to the right.
                match at {
                    0 | 1 => write!(f, "{gap}{cell:<width$}")?,
                    10 => write!(f, "{gap}{cell}")?,
                    _ => write!(f, "{gap}{cell:>width$}")?,
                }
            }
            writeln!(f)?;
        }
        self.metrics.iter().try_for_each(|metric| lines(f, metric))
    }
}

/// A metric, with a line for each series.
fn lines(f: &mut fmt::Formatter<'_>, metric: &MetricSnapshot) -> fmt::Result {
    for series in &metric.series {
        let labels: Vec<String> =
            series.labels.iter().map(|(name, value)| format!("{name}={:?}", one_line(value))).collect();
        match labels.is_empty() {
            true => write!(f, "{}  ", metric.name)?,
            false => write!(f, "{}{{{}}}  ", metric.name, labels.join(", "))?,
        }
        match &series.reading {
            Reading::Counter(n) => writeln!(f, "{n}")?,
            Reading::Gauge { value, max } => writeln!(f, "{value} (max {max})")?,
            Reading::Histogram(samples) => {
                let p50 = samples.p50().map_or_else(|_| "-".to_owned(), |p50| p50.value.to_string());
                writeln!(f, "n={} p50={p50} max={}", samples.count(), samples.max().unwrap_or(0))?;
            }
        }
    }
    Ok(())
}

impl Table {
    pub(super) fn new(snapshot: RegistrySnapshot) -> Self {
        Self { rows: snapshot.stations, metrics: snapshot.metrics }
    }

    fn cells(&self, row: &StationSnapshot) -> [String; 11] {
        let median = |times: &DurationSnapshot| match times.p50() {
            Ok(percentile) => short(percentile.value),
            Err(_) => format!("n={}", times.count()),
        };
        let edges = row.feeds().iter().map(|id| self.name_of(*id));
        let held = row.held_by().iter().map(|id| format!("held by {}", self.name_of(*id)));
        [
            one_line(row.label()),
            row.kind().name().to_owned(),
            row.arrivals.to_string(),
            row.served.to_string(),
            row.failed.to_string(),
            sum([row.dropped, row.returned, row.refused]).to_string(),
            row.waiting().to_string(),
            row.in_service().to_string(),
            median(row.wait()),
            median(row.service()),
            edges.chain(held).collect::<Vec<_>>().join(", "),
        ]
    }

    fn name_of(&self, id: StationId) -> String {
        let known = self.rows.iter().find(|row| row.id() == id);
        known.map_or_else(|| id.to_string(), |row| one_line(row.label()))
    }
}

/// A name that cannot break the table.
fn one_line(name: &str) -> String {
    name.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

/// A duration in three digits or so.
fn short(duration: Duration) -> String {
    format!("{duration:.1?}")
}
