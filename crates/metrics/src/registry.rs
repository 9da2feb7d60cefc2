//! Stations by name, and the table that a person reads.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::snapshot::StationSnapshot;
use crate::station::{Station, StationId};

/// A list of stations. A cheap handle; clones share the list.
///
/// ```
/// use fullbore_metrics::{Registry, Station};
///
/// let (parse, store) = (Station::new("parse"), Station::new("store"));
/// parse.feeds(&store);
/// let registry = Registry::new();
/// registry.add(&parse).add(&store);
/// parse.run(|| store.run(|| ()));
/// println!("{}", registry.table());
/// ```
#[derive(Clone, Default)]
pub struct Registry {
    stations: Arc<parking_lot::Mutex<Vec<Station>>>,
}

impl Registry {
    /// An empty one.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a station, once; later calls with the same one change nothing.
    pub fn add(&self, station: &Station) -> &Self {
        let mut stations = self.stations.lock();
        if !stations.iter().any(|known| known.id() == station.id()) {
            stations.push(station.clone());
        }
        self
    }

    /// A snapshot of each, in the order they were added.
    #[must_use]
    pub fn snapshot(&self) -> Vec<StationSnapshot> {
        let stations = self.stations.lock().clone();
        stations.iter().map(Station::snapshot).collect()
    }

    /// A table of the present numbers, to be printed.
    #[must_use]
    pub fn table(&self) -> Table {
        Table { rows: self.snapshot() }
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").field("stations", &self.stations.lock().len()).finish()
    }
}

/// Snapshots as a table of text.
#[derive(Clone, Debug)]
pub struct Table {
    rows: Vec<StationSnapshot>,
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
        Ok(())
    }
}

impl Table {
    fn cells(&self, row: &StationSnapshot) -> [String; 11] {
        let median = |histogram: &crate::HistogramSnapshot| match histogram.p50() {
            Ok(percentile) => short(percentile.value),
            Err(few) => format!("n={}", few.n),
        };
        let edges = row.feeds().iter().map(|id| self.name_of(*id));
        let held = row.held_by().iter().map(|id| format!("held by {}", self.name_of(*id)));
        [
            one_line(row.name()),
            row.kind().name().to_owned(),
            row.arrivals.to_string(),
            row.served.to_string(),
            row.failed.to_string(),
            (row.dropped + row.returned + row.refused).to_string(),
            row.waiting().to_string(),
            row.in_service().to_string(),
            median(row.wait()),
            median(row.service()),
            edges.chain(held).collect::<Vec<_>>().join(", "),
        ]
    }

    fn name_of(&self, id: StationId) -> String {
        let known = self.rows.iter().find(|row| row.id() == id);
        known.map_or_else(|| id.to_string(), |row| one_line(row.name()))
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
