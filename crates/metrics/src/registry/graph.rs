//! Stations and what is between them.

use std::fmt;

use crate::snapshot::StationSnapshot;
use crate::station::StationId;

/// How two stations hang together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum Relation {
    /// What leaves the first goes to the second, whose back-pressure it meets.
    Feeds,
    /// The first needs permits or connections of the second.
    HeldBy,
}

/// From one station to another.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Edge {
    /// The name of the first.
    pub from: String,
    /// How it depends on the second.
    pub relation: Relation,
    /// The name of the second; its number if it is not registered.
    pub to: String,
}

/// The stations of a registry as a graph. `Display` is the language of Graphviz.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Graph {
    /// The names of the stations.
    pub stations: Vec<String>,
    /// What is between them.
    pub edges: Vec<Edge>,
}

impl Graph {
    pub(super) fn new(stations: &[StationSnapshot]) -> Self {
        let name_of = |id: StationId| {
            let known = stations.iter().find(|station| station.id() == id);
            known.map_or_else(|| id.to_string(), |station| station.label().to_owned())
        };
        let edges = stations.iter().flat_map(|station| {
            let feeds = station.feeds().iter().map(|to| (Relation::Feeds, *to));
            let held_by = station.held_by().iter().map(|to| (Relation::HeldBy, *to));
            feeds.chain(held_by).map(|(relation, to)| Edge {
                from: station.label().to_owned(),
                relation,
                to: name_of(to),
            })
        });
        Self { edges: edges.collect(), stations: stations.iter().map(|station| station.label().to_owned()).collect() }
    }
}

impl fmt::Display for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let quoted = |name: &str| format!("\"{}\"", name.replace('\\', "\\\\").replace('"', "\\\""));
        writeln!(f, "digraph stations {{")?;
        for name in &self.stations {
            writeln!(f, "  {};", quoted(name))?;
        }
        for edge in &self.edges {
            let style = match edge.relation {
                Relation::Feeds => "",
                Relation::HeldBy => " [style=dashed, label=\"held by\"]",
            };
            writeln!(f, "  {} -> {}{style};", quoted(&edge.from), quoted(&edge.to))?;
        }
        writeln!(f, "}}")
    }
}
