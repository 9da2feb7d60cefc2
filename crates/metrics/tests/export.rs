//! What other systems are told.
#![allow(missing_docs, clippy::unwrap_used)]

use std::time::Duration;

use fullbore_metrics::{Departure, Description, Format, OpenMetrics, Outcome, Registry, Station, StationKind};
use fullbore_testkit::promtool_check_metrics_or_skip;

/// Something of everything.
fn full() -> Registry {
    let registry = Registry::new();
    let fetch =
        Station::builder("fetch \"quoted\" \\ and\nbroken").kind(StationKind::Queue).parallelism(4).capacity(9).build();
    let store = Station::new("store");
    fetch.feeds(&store);
    fetch.held_by(&store);
    for n in 0..2000u64 {
        fetch.arrived(1);
        fetch.began(1);
        fetch.waited(Duration::from_micros(n));
        fetch.took(Duration::from_micros(1000 + n));
        fetch.responded(Duration::from_micros(1000 + 2 * n));
        fetch.ended(Outcome::Served, 1);
    }
    fetch.arrived(3);
    fetch.departed(Departure::Dropped, 1);
    store.run(|| ());
    registry.add(&fetch).add(&store).add(&Station::new("store")).add(&Station::new("store#2"));
    registry.counter(Description::new("rows_copied").help("Rows copied\nto the \\new table")).unwrap().add(7);
    registry.gauge(Description::new("connections").label("pool", "\"main\"\n")).unwrap().set(-3);
    let sizes = registry.histogram(Description::new("message_bytes").buckets([10.0, 100.0])).unwrap();
    [1, 10, 11, 100, 101].into_iter().for_each(|bytes| sizes.record(bytes));
    let latency = registry.histogram(Description::new("request_seconds").durations()).unwrap();
    (0..100).for_each(|_| latency.record_duration(Duration::from_millis(2)));
    let hits = registry.counter_family(Description::new("hits").max_series(1), ["user"]).unwrap();
    ["ann", "ben", "eve"].into_iter().for_each(|user| hits.with([user]).inc());
    registry
}

#[track_caller]
fn has(text: &str, line: &str) {
    assert!(text.lines().any(|each| each == line), "no line {line}\n{text}");
}

#[test]
fn counts_times_and_labels_are_there() {
    let text = OpenMetrics::new(&full()).encode(Format::OpenMetrics).unwrap();
    assert!(text.ends_with("# EOF\n"));
    let labels = r#"station="fetch \"quoted\" \\ and\nbroken",kind="queue""#;
    has(&text, &format!("fullbore_station_served_total{{{labels}}} 2000"));
    has(&text, &format!("fullbore_station_dropped_total{{{labels}}} 1"));
    has(&text, &format!("fullbore_station_waiting{{{labels}}} 2"));
    has(&text, &format!("fullbore_station_wait_seconds_count{{{labels}}} 2000"));
    has(&text, "# TYPE fullbore_station_served counter");
    // Three stations of one name, one of which is called what the second would be.
    has(&text, r#"fullbore_station_served_total{station="store",kind="custom"} 1"#);
    has(&text, r#"fullbore_station_served_total{station="store#2",kind="custom"} 0"#);
    has(&text, r#"fullbore_station_served_total{station="store#2#2",kind="custom"} 0"#);
    has(&text, r#"fullbore_station_edge{from="fetch \"quoted\" \\ and\nbroken",relation="feeds",to="store"} 1"#);
    has(&text, "rows_copied_total 7");
    has(&text, r#"connections{pool="\"main\"\n"} -3"#);
    has(&text, r#"message_bytes_bucket{le="10.0"} 2"#);
    has(&text, r#"message_bytes_bucket{le="100.0"} 4"#);
    has(&text, r#"message_bytes_bucket{le="+Inf"} 5"#);
    has(&text, "message_bytes_sum 223.0");
    has(&text, r#"request_quantile_seconds{at="0.5"} 0.002"#);
    has(&text, r#"request_seconds_bucket{le="0.001"} 0"#);
    has(&text, r#"request_seconds_bucket{le="0.0025"} 100"#);
    has(&text, r#"hits_total{user="ann"} 1"#);
    has(&text, r#"hits_total{user="other"} 2"#);
    has(&text, r#"fullbore_label_sets_overflowed_total{metric="hits"} 2"#);
}

#[test]
fn a_histogram_has_at_most_24_bounds_and_its_own_if_it_has_some() {
    let registry = full();
    let bounds = |text: &str, series: &str| {
        text.lines().filter(|line| line.starts_with(series) && !line.contains("fetch")).count()
    };
    let text = OpenMetrics::new(&registry).encode(Format::Text).unwrap();
    assert_eq!(bounds(&text, "request_seconds_bucket"), 24 + 1, "and infinity");
    assert_eq!(bounds(&text, "message_bytes_bucket"), 2 + 1);
    assert_eq!(bounds(&text, "fullbore_station_service_seconds_bucket"), 3 * (24 + 1));
    let few = OpenMetrics::new(&registry).station_buckets(&[0.1, 1.0]).unwrap().encode(Format::Text).unwrap();
    assert_eq!(bounds(&few, "fullbore_station_service_seconds_bucket"), 3 * (2 + 1));
    let error = OpenMetrics::new(&registry).station_buckets(&[1.0, 0.1]).unwrap_err();
    assert!(error.to_string().starts_with("0.1"), "{error}");
}

#[test]
fn the_older_format_describes_counters_by_the_names_of_their_samples() {
    let text = OpenMetrics::new(&full()).encode(Format::Text).unwrap();
    has(&text, "# TYPE rows_copied_total counter");
    has(&text, r"# HELP rows_copied_total Rows copied\nto the \\new table");
    assert!(!text.contains("# EOF"));
}

#[test]
fn promtool_finds_nothing() {
    for registry in [Registry::new(), full()] {
        let text = OpenMetrics::new(&registry).encode(Format::Text).unwrap();
        let Some(check) = promtool_check_metrics_or_skip(&text) else { return };
        assert!(check.passed && check.findings.trim().is_empty(), "{}\n{text}", check.findings);
    }
}
