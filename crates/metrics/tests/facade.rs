//! Stations in the recorder of the `metrics` crate.
#![allow(missing_docs, clippy::unwrap_used)]

use std::time::Duration;

use fullbore_core::{Clock, PausedClock};
use fullbore_metrics::{Description, Registry, Station};
use metrics_exporter_prometheus::PrometheusBuilder;

fn registry() -> Registry {
    let registry = Registry::new();
    let parse = Station::new("parse");
    for n in 0..100u64 {
        parse.run(|| ());
        parse.waited(Duration::from_micros(n));
    }
    parse.arrived(3);
    registry.add(&parse);
    registry.counter(Description::new("rows").label("table", "users")).unwrap().add(7);
    registry.gauge("open").unwrap().set(-2);
    let times = registry.histogram(Description::new("request_seconds").durations()).unwrap();
    (0..1000).for_each(|_| times.record_duration(Duration::from_millis(5)));
    registry
}

#[test]
fn stations_and_metrics_appear_in_the_users_recorder() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let registry = registry();
    metrics::with_local_recorder(&recorder, || {
        registry.publish();
        // Set, not added: the numbers are what they are.
        registry.publish();
    });
    let text = recorder.handle().render();
    for line in [
        "fullbore_station_served{station=\"parse\",kind=\"custom\"} 100",
        "fullbore_station_waiting{station=\"parse\",kind=\"custom\"} 3",
        "fullbore_station_service_seconds_count{station=\"parse\",kind=\"custom\"} 100",
        "rows{table=\"users\"} 7",
        "open -2",
        "open_max 0",
        "request_seconds_sum 5",
        "request_seconds_count 1000",
        "request_quantile_seconds{at=\"0.99\"} 0.005",
    ] {
        assert!(text.lines().any(|each| each == line), "no line {line}\n{text}");
    }
}

#[test]
fn a_publisher_publishes_until_it_is_closed() {
    let clock = PausedClock::new();
    let recorder = PrometheusBuilder::new().build_recorder();
    let handle = recorder.handle();
    metrics::set_global_recorder(recorder).unwrap();
    let registry = registry();
    let publisher = registry.publish_every(Duration::from_secs(1), Clock::Paused(clock.clone())).unwrap();
    clock.wait_for_waiters(1);
    assert!(!handle.render().contains("rows"));
    clock.advance(Duration::from_secs(1));
    clock.wait_for_waiters(1);
    publisher.close();
    publisher.close();
    assert!(publisher.close_within(Duration::ZERO).is_ok());
    assert!(handle.render().contains("rows{table=\"users\"} 7"));
    assert_eq!(publisher.panics(), 0);
    let error = registry.publish_every(Duration::ZERO, Clock::Real).unwrap_err();
    assert_eq!(error.field(), Some("every"));
}
