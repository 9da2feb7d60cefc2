//! The real Prometheus scrapes the endpoint, and its query API returns what was recorded.
#![allow(missing_docs, clippy::unwrap_used)]

use std::time::Duration;

use fullbore_metrics::{Description, OpenMetrics, Registry, Station};
use fullbore_testkit::{Prometheus, TargetHealth, eventually};

/// For a machine that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn prometheus_scrapes_what_was_recorded() {
    let registry = Registry::new();
    let parse = Station::new("parse \"quoted\"");
    registry.add(&parse);
    let rows = registry.counter_family("rows_copied", ["table"]).unwrap();
    let latency = registry.histogram(Description::new("request_seconds").durations()).unwrap();
    for n in 0..1000u64 {
        parse.took(Duration::from_millis(3));
        parse.passed(1);
        rows.with([if n % 4 == 0 { "users" } else { "orders" }]).inc();
        latency.record_duration(Duration::from_micros(n));
    }
    let endpoint = OpenMetrics::new(&registry).serve().listen("127.0.0.1:0").build().unwrap();
    let Some(prometheus) =
        Prometheus::builder(&[endpoint.local_addr()]).scrape_every(Duration::from_secs(1)).start_or_skip()
    else {
        return;
    };
    let value = |query: &str| {
        let samples = prometheus.query(query).unwrap();
        match samples.as_slice() {
            [] => None,
            [sample] => Some(sample.value),
            many => panic!("{query}: {many:?}"),
        }
    };
    // The first scrape comes some seconds after the start; the samples a moment after the health.
    let scraped = eventually(PATIENCE, || {
        prometheus.target_health(endpoint.local_addr()).unwrap() == TargetHealth::Up
            && value("last_over_time(rows_copied_total{table=\"users\"}[1m])").is_some()
    });
    assert!(scraped, "{}", prometheus.log());
    let expect = [
        ("last_over_time(fullbore_station_served_total[1m])", 1000.0),
        ("last_over_time(fullbore_station_service_seconds_count{station=\"parse \\\"quoted\\\"\"}[1m])", 1000.0),
        ("last_over_time(fullbore_station_service_seconds_sum[1m])", 3.0),
        ("last_over_time(fullbore_station_service_seconds_bucket{le=\"0.0025\"}[1m])", 0.0),
        ("last_over_time(fullbore_station_service_seconds_bucket{le=\"0.005\"}[1m])", 1000.0),
        ("last_over_time(fullbore_station_service_quantile_seconds{at=\"0.5\"}[1m])", 0.003),
        ("last_over_time(rows_copied_total{table=\"users\"}[1m])", 250.0),
        ("sum(last_over_time(rows_copied_total[1m]))", 1000.0),
        ("last_over_time(request_seconds_count[1m])", 1000.0),
        ("last_over_time(request_seconds_bucket{le=\"0.0005\"}[1m])", 501.0),
    ];
    for (query, expected) in expect {
        let got = value(query).unwrap_or_else(|| panic!("nothing for {query}"));
        assert!((got - expected).abs() <= 0.008 * expected, "{query}: {got}, not {expected}");
    }
    // What is recorded later is seen later.
    rows.with(["users"]).add(50);
    assert!(eventually(PATIENCE, || value("rows_copied_total{table=\"users\"}") == Some(300.0)));
    endpoint.close().unwrap();
}
