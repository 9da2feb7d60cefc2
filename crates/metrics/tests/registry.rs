//! Names, labels, families, tables and graphs.
#![allow(missing_docs, clippy::unwrap_used)]

use std::thread;
use std::time::Duration;

use fullbore_metrics::{
    Counter, Description, Gauge, Histogram, Reading, RegisterError, Registry, RegistrySnapshot, Relation, Station,
};
use proptest::prelude::*;

/// The numbers of a metric's series.
fn counts(snapshot: &RegistrySnapshot, name: &str) -> Vec<u64> {
    let metric = snapshot.metrics.iter().find(|metric| metric.name == name).unwrap();
    let number = |reading: &Reading| match reading {
        Reading::Counter(n) => *n,
        other => panic!("{other:?}"),
    };
    metric.series.iter().map(|series| number(&series.reading)).collect()
}

#[test]
fn the_same_name_is_the_same_instrument() {
    let registry = Registry::new();
    registry.counter("rows").unwrap().add(2);
    registry.clone().counter("rows").unwrap().add(3);
    assert_eq!(registry.counter("rows").unwrap().get(), 5);
    assert_eq!(registry.counter("rows_total").unwrap().get(), 5, "the ending belongs to the export");
    registry.gauge("open").unwrap().set(7);
    assert_eq!(registry.gauge("open").unwrap().get(), 7);
    registry.histogram("bytes").unwrap().record(1);
    assert_eq!(registry.histogram("bytes").unwrap().snapshot().count(), 1);
    let users = Description::new("copied").label("table", "users");
    registry.counter(users.clone()).unwrap().add(4);
    registry.counter(Description::new("copied").label("table", "orders")).unwrap().add(1);
    assert_eq!(registry.counter(users).unwrap().get(), 4);
    assert_eq!(counts(&registry.snapshot(), "copied"), [4, 1]);
}

#[test]
fn a_static_can_be_registered_and_nothing_takes_its_place() {
    static ROWS: Counter = Counter::new();
    let registry = Registry::new();
    registry.register("rows", &ROWS).unwrap();
    registry.register("rows", &ROWS).unwrap();
    ROWS.add(3);
    assert_eq!(counts(&registry.snapshot(), "rows"), [3]);
    let taken = registry.register("rows", &Counter::new()).unwrap_err();
    assert_eq!(taken, RegisterError::Taken { name: "rows".into() });
    let (gauge, histogram) = (Gauge::new(), Histogram::new());
    registry.register("level", &gauge).unwrap();
    registry.register("level", &gauge).unwrap();
    assert!(registry.register("level", &Gauge::new()).is_err());
    registry.register("sizes", &histogram).unwrap();
    assert!(registry.register("sizes", &Histogram::new()).is_err());
    assert!(registry.register("sizes", &histogram).is_ok());
}

#[test]
fn what_does_not_fit_is_refused() {
    let registry = Registry::new();
    registry.counter("a").unwrap();
    registry.counter_family("f", ["x"]).unwrap();
    registry.histogram("h").unwrap();
    let asked = |labels: &[&str]| labels.iter().map(|label| (*label).to_owned()).collect::<Vec<_>>();
    assert_eq!(
        registry.counter(Description::new("a").label("x", "1")).unwrap_err(),
        RegisterError::OtherLabels { name: "a".into(), has: vec![], asked: asked(&["x"]) }
    );
    assert_eq!(
        registry.counter_family("f", ["y"]).unwrap_err(),
        RegisterError::OtherLabels { name: "f".into(), has: asked(&["x"]), asked: asked(&["y"]) }
    );
    assert!(matches!(registry.histogram_family("f", ["x"]), Err(RegisterError::OtherType { .. })));
    assert!(matches!(registry.counter(Description::new("f").label("x", "1")), Err(RegisterError::Taken { .. })));
    for label in ["", "0", "a b", "__name__", "at", "le", "quantile", "é"] {
        let error = registry.counter_family("g", [label]).unwrap_err();
        assert_eq!(error, RegisterError::InvalidLabel { name: label.into() });
    }
    assert!(registry.counter_family("g", ["twice", "twice"]).is_err());
    assert!(registry.counter_family(Description::new("g").label("twice", "1"), ["twice"]).is_err());
    assert!(matches!(
        registry.counter_family(Description::new("g").max_series(0), ["x"]),
        Err(RegisterError::NoSeries { .. })
    ));
    assert!(matches!(registry.gauge("fullbore_station_served"), Err(RegisterError::Reserved { .. })));
    for (about, what) in [
        (Description::new("f").label("env", "test"), "labels that never change"),
        (Description::new("f").durations(), "unit"),
    ] {
        let error = registry.counter_family(about, ["x"]).unwrap_err();
        assert_eq!(error, RegisterError::Differs { name: "f".into(), what });
    }
    let other_buckets = registry.histogram(Description::new("h").buckets([1.0])).unwrap_err();
    assert_eq!(other_buckets, RegisterError::Differs { name: "h".into(), what: "buckets" });
    registry.gauge("y").unwrap();
    assert!(matches!(registry.counter("y_max"), Err(RegisterError::Clashes { .. })));
    registry.snapshot().metrics.iter().for_each(|metric| assert_ne!(metric.name, "y_max"));
    // Names that only meet in the exported text.
    for name in ["h_count", "h_sum", "h_bucket", "a_total", "h_quantile"] {
        let error = registry.gauge(name).unwrap_err();
        assert!(matches!(error, RegisterError::Clashes { .. }), "{name}: {error}");
    }
    for bounds in [vec![1.0, 1.0], vec![2.0, 1.0], vec![f64::NAN], vec![-1.0], vec![f64::INFINITY]] {
        let error = registry.histogram(Description::new("b").buckets(bounds)).unwrap_err();
        assert!(matches!(error, RegisterError::InvalidBucket { .. }), "{error}");
    }
    assert_eq!(registry.snapshot().metrics.len(), 4, "nothing that was refused is there");
}

/// prometheus-client#231: two members of one family in one expression; #102: two threads that make the same one.
#[test]
fn a_family_hands_out_instruments_and_keeps_no_lock() {
    let family = Registry::new().counter_family("f", ["a", "b"]).unwrap();
    let both = (family.with(["1", "2"]), family.with(["2", "1"]));
    both.0.inc();
    assert_eq!(family.with(["1", "2"]).get() + family.with(["2", "1"]).get(), 1);
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| (0..100).for_each(|n: u32| family.with([&n.to_string(), "same"]).inc()));
        }
    });
    assert_eq!(family.len(), 102);
    for n in 0..100u32 {
        assert_eq!(family.with([&n.to_string(), "same"]).get(), 8);
    }
}

#[test]
fn a_million_label_sets_are_as_many_series_as_allowed() {
    let registry = Registry::new();
    let family = registry.counter_family(Description::new("hits").max_series(500), ["user"]).unwrap();
    for user in 0..1_000_000u32 {
        family.with([&user.to_string()]).inc();
    }
    assert_eq!((family.len(), family.overflowed()), (500, 999_500));
    let snapshot = registry.snapshot();
    let numbers = counts(&snapshot, "hits");
    assert_eq!((numbers.len(), numbers.iter().sum::<u64>()), (501, 1_000_000), "nothing is lost");
    let other = snapshot.metrics[0].series.iter().find(|series| series.labels[0].1 == "other").unwrap();
    assert_eq!(other.reading, Reading::Counter(999_500));
    assert_eq!(snapshot.metrics[0].overflowed, 999_500);
}

#[test]
fn somebodys_own_other_and_the_rest_are_one_series() {
    let registry = Registry::new();
    let family = registry.counter_family(Description::new("f").max_series(1), ["x"]).unwrap();
    family.with(["other"]).add(2);
    family.with(["more"]).add(3);
    assert_eq!(counts(&registry.snapshot(), "f"), [5]);
}

#[test]
fn stations_can_be_taken_out_again() {
    let (registry, station) = (Registry::new(), Station::new("passing"));
    registry.add(&station).add(&station.clone());
    assert_eq!(registry.stations().len(), 1);
    assert!(registry.remove(&station) && !registry.remove(&station));
    assert!(registry.snapshot().stations.is_empty());
    // A label stays with its station, whoever else goes.
    let (first, second) = (Station::new("db"), Station::new("db"));
    registry.add(&first).add(&second);
    assert_eq!(registry.snapshot().stations[1].label(), "db#2");
    registry.remove(&first);
    assert_eq!(registry.snapshot().stations[0].label(), "db#2");
    registry.add(&first);
    assert_eq!(registry.snapshot().stations[1].label(), "db");
    assert!(std::ptr::eq(Registry::global(), Registry::global()));
}

#[test]
fn edges_are_a_graph() {
    let (parse, store, disk) = (Station::new("parse \"raw\""), Station::new("store"), Station::new("disk"));
    parse.feeds(&store);
    store.held_by(&disk);
    let registry = Registry::new();
    registry.add(&parse).add(&store);
    let graph = registry.graph();
    let edges: Vec<_> = graph.edges.iter().map(|edge| (&*edge.from, edge.relation, &*edge.to)).collect();
    let unknown = disk.id().to_string();
    assert_eq!(edges, [("parse \"raw\"", Relation::Feeds, "store"), ("store", Relation::HeldBy, &*unknown)]);
    let dot = graph.to_string();
    assert!(dot.contains("\"parse \\\"raw\\\"\" -> \"store\";"), "{dot}");
    assert!(dot.contains("[style=dashed"), "{dot}");
}

#[test]
fn the_table_shows_metrics_below_the_stations() {
    let registry = Registry::new();
    registry.counter(Description::new("rows").label("table", "a\nb")).unwrap().add(3);
    registry.gauge("open").unwrap().set(2);
    let sizes = registry.histogram("sizes").unwrap();
    (0..100).for_each(|_| sizes.record_duration(Duration::from_nanos(64)));
    let table = registry.table().to_string();
    assert!(table.contains("rows{table=\"a\u{fffd}b\"}  3\n"), "{table}");
    assert!(table.contains("open  2 (max 2)\n") && table.contains("sizes  n=100 p50=64 max=64\n"), "{table}");
}

proptest! {
    #[test]
    fn any_name_and_label_is_taken_or_refused(name in ".*", label in ".*", value in ".*") {
        let registry = Registry::new();
        if let Ok(family) = registry.counter_family(Description::new(name), [&label]) {
            family.with([&value]).inc();
        }
        let _ = registry.gauge(Description::new("g").label(label, value));
        let _ = registry.table().to_string();
    }
}
