//! Everything that is measured, by name.

mod describe;
mod family;
mod graph;
mod metric;
mod table;

use std::fmt;
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

pub use describe::{Description, RegisterError};
pub use family::Family;
pub use graph::{Edge, Graph, Relation};
pub use metric::{Instrument, MetricSnapshot, Reading, Series};
pub use table::Table;

use crate::counter::Counter;
use crate::gauge::Gauge;
use crate::histogram::Histogram;
use crate::snapshot::StationSnapshot;
use crate::station::Station;
#[cfg(feature = "prometheus")]
pub(crate) use describe::check_bounds;
use family::AnyFamily;
#[cfg(any(feature = "prometheus", feature = "metrics-facade"))]
pub(crate) use metric::quantile_name;
use metric::{AnyInstrument, exported};

/// Stations and metrics, to be read together. A cheap handle; clones share the lists.
///
/// What is registered stays alive with the registry. Lookups take a lock; recording does not.
///
/// ```
/// use fullbore_metrics::{Registry, Station};
///
/// let (parse, store) = (Station::new("parse"), Station::new("store"));
/// parse.feeds(&store);
/// let registry = Registry::new();
/// registry.add(&parse).add(&store);
/// let rows = registry.counter("rows")?;
/// parse.run(|| store.run(|| rows.inc()));
/// println!("{}", registry.table());
/// println!("{}", registry.graph());
/// # Ok::<(), fullbore_metrics::RegisterError>(())
/// ```
#[derive(Clone, Default)]
pub struct Registry {
    lists: Arc<Mutex<Lists>>,
}

#[derive(Default)]
struct Lists {
    /// Each with a label that no other has.
    stations: Vec<(Station, Arc<str>)>,
    metrics: Vec<Metric>,
}

/// All series of one name.
struct Metric {
    about: Description,
    kind: &'static str,
    label_names: Vec<String>,
    members: Members,
}

/// Names and values.
type Labels = Vec<(String, String)>;

enum Members {
    Fixed(Vec<(Labels, Arc<dyn AnyInstrument>)>),
    Family(Arc<dyn AnyFamily>),
}

/// What a registry held at one moment; the parts are read one after the other.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct RegistrySnapshot {
    /// In the order they were added.
    pub stations: Vec<StationSnapshot>,
    /// In the order of their names.
    pub metrics: Vec<MetricSnapshot>,
}

impl Registry {
    /// An empty one.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The one of the whole process, for programs that want only one.
    #[must_use]
    pub fn global() -> &'static Self {
        static GLOBAL: OnceLock<Registry> = OnceLock::new();
        GLOBAL.get_or_init(Self::new)
    }

    /// Adds a station, once; later calls with the same one change nothing. If there is one of the same name, a number is put
    /// behind the name in what the registry shows.
    pub fn add(&self, station: &Station) -> &Self {
        let mut lists = self.lists.lock();
        if !lists.stations.iter().any(|(known, _)| known.id() == station.id()) {
            let label = lists.label(station.name());
            lists.stations.push((station.clone(), label));
        }
        self
    }

    /// Takes a station out again; false if it is not there.
    pub fn remove(&self, station: &Station) -> bool {
        let mut lists = self.lists.lock();
        let at = lists.stations.iter().position(|(known, _)| known.id() == station.id());
        let removed = at.map(|at| lists.stations.remove(at));
        // What it was the last handle of is dropped after the lock is released.
        drop(lists);
        removed.is_some()
    }

    /// The counter of this name and these labels; a new one if there is none yet.
    ///
    /// # Errors
    /// If the name or a label is not valid, or the name is taken by another type, other labels or a family.
    pub fn counter(&self, about: impl Into<Description>) -> Result<Counter, RegisterError> {
        self.get_or_insert(about.into())
    }

    /// The gauge of this name and these labels; a new one if there is none yet.
    ///
    /// # Errors
    /// As [`counter`](Self::counter).
    pub fn gauge(&self, about: impl Into<Description>) -> Result<Gauge, RegisterError> {
        self.get_or_insert(about.into())
    }

    /// The histogram of this name and these labels; a new one if there is none yet.
    ///
    /// # Errors
    /// As [`counter`](Self::counter).
    pub fn histogram(&self, about: impl Into<Description>) -> Result<Histogram, RegisterError> {
        self.get_or_insert(about.into())
    }

    /// Registers an instrument that is there already, a `static` for example. The same one again changes nothing.
    ///
    /// # Errors
    /// As [`counter`](Self::counter), and if another instrument has this name and these labels.
    pub fn register<I: Instrument>(&self, about: impl Into<Description>, instrument: &I) -> Result<(), RegisterError> {
        let about = about.into();
        let name = about.name.clone();
        let there: I = self.get_or_insert_with(about, || instrument.clone())?;
        if there.is(instrument) { Ok(()) } else { Err(RegisterError::Taken { name }) }
    }

    /// Counters told apart by the values of `labels`; the same family if it is there already.
    ///
    /// # Errors
    /// As [`counter`](Self::counter), and if `max_series` is 0.
    pub fn counter_family<const N: usize>(
        &self,
        about: impl Into<Description>,
        labels: [&str; N],
    ) -> Result<Family<Counter, N>, RegisterError> {
        self.family(about.into(), labels)
    }

    /// Gauges told apart by the values of `labels`; the same family if it is there already.
    ///
    /// # Errors
    /// As [`counter_family`](Self::counter_family).
    pub fn gauge_family<const N: usize>(
        &self,
        about: impl Into<Description>,
        labels: [&str; N],
    ) -> Result<Family<Gauge, N>, RegisterError> {
        self.family(about.into(), labels)
    }

    /// Histograms told apart by the values of `labels`; the same family if it is there already.
    ///
    /// # Errors
    /// As [`counter_family`](Self::counter_family).
    pub fn histogram_family<const N: usize>(
        &self,
        about: impl Into<Description>,
        labels: [&str; N],
    ) -> Result<Family<Histogram, N>, RegisterError> {
        self.family(about.into(), labels)
    }

    fn get_or_insert<I: Instrument>(&self, about: Description) -> Result<I, RegisterError> {
        self.get_or_insert_with(about, I::default)
    }

    fn get_or_insert_with<I: Instrument>(
        &self,
        mut about: Description,
        make: impl FnOnce() -> I,
    ) -> Result<I, RegisterError> {
        about.check()?;
        about.normalise(I::TYPE);
        about.labels.sort();
        let asked = about.label_names();
        let mut lists = self.lists.lock();
        let Some(metric) = lists.metrics.iter_mut().find(|metric| metric.about.name == about.name) else {
            lists.check_clash(I::TYPE, &about.name)?;
            let instrument = make();
            let members = vec![(about.labels.clone(), Arc::new(instrument.clone()) as Arc<dyn AnyInstrument>)];
            let metric = Metric { kind: I::TYPE, label_names: asked, members: Members::Fixed(members), about };
            lists.metrics.push(metric);
            return Ok(instrument);
        };
        metric.check(I::TYPE, &asked, &about)?;
        let Members::Fixed(members) = &mut metric.members else {
            return Err(RegisterError::Taken { name: about.name });
        };
        if let Some((_, there)) = members.iter().find(|(labels, _)| *labels == about.labels) {
            let there = there.as_any().downcast_ref::<I>();
            return there.cloned().ok_or(RegisterError::Taken { name: about.name });
        }
        let instrument = make();
        members.push((about.labels, Arc::new(instrument.clone())));
        Ok(instrument)
    }

    fn family<I: Instrument, const N: usize>(
        &self,
        mut about: Description,
        labels: [&str; N],
    ) -> Result<Family<I, N>, RegisterError> {
        about.check()?;
        describe::check_labels(about.labels.iter().map(|(name, _)| name.as_str()).chain(labels))?;
        about.normalise(I::TYPE);
        about.labels.sort();
        if about.max_series == 0 {
            return Err(RegisterError::NoSeries { name: about.name });
        }
        let names = labels.map(str::to_owned);
        let mut lists = self.lists.lock();
        let Some(metric) = lists.metrics.iter().find(|metric| metric.about.name == about.name) else {
            lists.check_clash(I::TYPE, &about.name)?;
            let family = Family::<I, N>::new(names.clone(), about.max_series);
            let members = Members::Family(Arc::new(family.clone()));
            lists.metrics.push(Metric { kind: I::TYPE, label_names: names.to_vec(), members, about });
            return Ok(family);
        };
        metric.check(I::TYPE, &names, &about)?;
        if metric.about.labels != about.labels {
            return Err(RegisterError::Differs { name: about.name, what: "labels that never change" });
        }
        let there = match &metric.members {
            Members::Family(family) => family.as_any().downcast_ref::<Family<I, N>>().cloned(),
            Members::Fixed(_) => None,
        };
        there.ok_or(RegisterError::Taken { name: about.name })
    }

    /// What everything shows now. Nothing that is recorded meanwhile waits.
    #[must_use]
    pub fn snapshot(&self) -> RegistrySnapshot {
        let lists = self.lists.lock();
        let stations = lists.stations.clone();
        let mut metrics: Vec<MetricSnapshot> = lists.metrics.iter().map(Metric::read).collect();
        drop(lists);
        metrics.sort_by(|a, b| a.name.cmp(&b.name));
        let labelled = |(station, label): (Station, Arc<str>)| {
            let mut snapshot = station.snapshot();
            snapshot.label = label;
            snapshot
        };
        RegistrySnapshot { stations: stations.into_iter().map(labelled).collect(), metrics }
    }

    /// The stations, in the order they were added.
    #[must_use]
    pub fn stations(&self) -> Vec<Station> {
        self.lists.lock().stations.iter().map(|(station, _)| station.clone()).collect()
    }

    /// A table of the present numbers, to be printed.
    #[must_use]
    pub fn table(&self) -> Table {
        Table::new(self.snapshot())
    }

    /// Which station feeds which, and which needs something of which.
    #[must_use]
    pub fn graph(&self) -> Graph {
        Graph::new(&self.snapshot().stations)
    }
}

impl Description {
    /// `_total` belongs to the text of an export, not to the name.
    fn normalise(&mut self, kind: &'static str) {
        if kind == Counter::TYPE
            && let Some(name) = self.name.strip_suffix("_total")
            && !name.is_empty()
        {
            self.name.truncate(name.len());
        }
    }
}

impl Lists {
    /// The name, with a number behind it if need be; it stays, whoever else comes and goes.
    fn label(&self, name: &str) -> Arc<str> {
        let taken = |label: &str| self.stations.iter().any(|(_, there)| **there == *label);
        if !taken(name) {
            return name.into();
        }
        let numbered = (2..).map(|n: u32| format!("{name}#{n}"));
        numbered.into_iter().find(|label| !taken(label)).unwrap_or_default().into()
    }

    fn check_clash(&self, kind: &'static str, name: &str) -> Result<(), RegisterError> {
        let new = exported(kind, name);
        let clashes =
            |metric: &&Metric| exported(metric.kind, &metric.about.name).iter().any(|name| new.contains(name));
        match self.metrics.iter().find(clashes) {
            Some(metric) => Err(RegisterError::Clashes { name: name.to_owned(), with: metric.about.name.clone() }),
            None => Ok(()),
        }
    }
}

impl Metric {
    fn check(&self, kind: &'static str, labels: &[String], about: &Description) -> Result<(), RegisterError> {
        let name = self.about.name.clone();
        if self.kind != kind {
            return Err(RegisterError::OtherType { name, is: self.kind, asked: kind });
        }
        if self.label_names != labels {
            return Err(RegisterError::OtherLabels { name, has: self.label_names.clone(), asked: labels.to_vec() });
        }
        if self.about.seconds != about.seconds {
            return Err(RegisterError::Differs { name, what: "unit" });
        }
        if about.buckets.is_some() && self.about.buckets != about.buckets {
            return Err(RegisterError::Differs { name, what: "buckets" });
        }
        Ok(())
    }

    fn read(&self) -> MetricSnapshot {
        let (series, overflowed) = match &self.members {
            Members::Fixed(members) => {
                let read = members
                    .iter()
                    .map(|(labels, instrument)| Series { labels: labels.clone(), reading: instrument.read_any() });
                (read.collect(), 0)
            }
            Members::Family(family) => {
                let mut series = family.read();
                series.iter_mut().for_each(|series| series.labels.extend_from_slice(&self.about.labels));
                (series, family.overflowed())
            }
        };
        MetricSnapshot {
            name: self.about.name.clone(),
            help: self.about.help.clone(),
            kind: self.kind,
            durations: self.about.seconds,
            buckets: self.about.buckets.clone(),
            overflowed,
            series,
        }
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lists = self.lists.lock();
        let (stations, metrics) = (lists.stations.len(), lists.metrics.len());
        f.debug_struct("Registry").field("stations", &stations).field("metrics", &metrics).finish()
    }
}
