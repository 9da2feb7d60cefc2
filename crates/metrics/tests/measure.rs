//! `measure`, `measured` and the live view.
#![allow(missing_docs, clippy::unwrap_used)]

use std::io::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::mpsc;
use std::time::Duration;

use fullbore_core::{Clock, PausedClock};
use fullbore_metrics::{MeasureExt, Registry, Station, ThroughputReport, measure};

#[test]
fn nothing_is_no_division_by_zero() {
    let report = measure(std::iter::empty::<u8>(), |_| Ok::<_, ()>(()));
    assert_eq!((report.total, report.success_rate(), report.latency.count()), (0, None, 0));
    assert!(report.throughput().is_finite());
    assert_eq!(ThroughputReport::default().throughput(), 0.0);
    assert!(report.to_string().contains("max         -"), "{report}");
}

#[test]
fn a_report_counts_and_times_each_item() {
    let report = measure(0..2000, |n| if n % 4 == 0 { Err("every fourth") } else { Ok(n) });
    assert_eq!((report.total, report.succeeded, report.failed), (2000, 1500, 500));
    assert_eq!((report.success_rate(), report.latency.count()), (Some(0.75), 2000));
    assert!(report.latency.sum() <= report.duration, "{report:?}");
    assert!((report.throughput() * report.duration.as_secs_f64() - 2000.0).abs() < 1e-6);
    let text = report.to_string();
    assert!(text.contains("succeeded   1500 (75.00 %)") && text.contains("p99"), "{text}");
    let few = measure(0..5, |_| Ok::<_, ()>(())).to_string();
    assert!(few.contains("quantile 0.99 needs 1000 samples, there are 5"), "{few}");
}

#[test]
fn an_iterator_is_measured_as_far_as_it_is_asked() {
    let station = Station::new("parse");
    let mut items = (0..10).map(|n| if n == 3 { Err(n) } else { Ok(n) }).measured(&station);
    assert_eq!(items.size_hint(), (10, Some(10)));
    assert_eq!(items.by_ref().take(5).filter(Result::is_ok).count(), 4);
    assert_eq!(items.report().total, 5, "the rest has not been asked for");
    assert_eq!(items.by_ref().count(), 5);
    assert_eq!(items.next(), None);
    let (report, seen) = (items.report(), station.snapshot());
    assert_eq!((report.total, report.failed, report.latency.count()), (10, 1, 10), "the end is no item");
    assert_eq!((seen.served, seen.failed, seen.service().count()), (9, 1, 10));
    assert!(seen.balanced());
}

#[test]
fn a_panic_of_an_iterator_is_a_failed_item() {
    let station = Station::new("risky");
    let mut items =
        (0..3).map(|n| if n == 1 { resume_unwind(Box::new("on purpose")) } else { Ok::<_, ()>(n) }).measured(&station);
    assert_eq!(items.next(), Some(Ok(0)));
    assert!(catch_unwind(AssertUnwindSafe(|| items.next())).is_err());
    assert_eq!(items.next(), Some(Ok(2)));
    let seen = station.snapshot();
    assert_eq!((seen.served, seen.failed), (2, 1));
    assert!(seen.balanced());
}

/// Sends what is written; fails or panics when told to.
struct Screen(mpsc::Sender<String>);

impl Write for Screen {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8(bytes.to_vec()).unwrap();
        self.0.send(text).map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Tells that it was asked, and fails.
struct Broken(mpsc::Sender<()>);

impl Write for Broken {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        self.0.send(()).unwrap();
        Err(io::ErrorKind::BrokenPipe.into())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_watch_prints_the_table_and_the_rates_of_the_last_minute() {
    let clock = PausedClock::new();
    let (registry, station) = (Registry::new(), Station::new("steady"));
    registry.add(&station);
    let (screen, shown) = mpsc::channel();
    let second = Duration::from_secs(1);
    let watch = registry.watch_to(second, Clock::Paused(clock.clone()), Screen(screen)).unwrap();
    let mut last = String::new();
    for _ in 0..65 {
        clock.wait_for_waiters(1);
        clock.advance(second);
        last = shown.recv().unwrap();
        station.passed(50);
    }
    assert!(last.starts_with("station"), "{last}");
    assert!(last.contains("steady:  1 s 50.0/s 0 % busy  10 s 50.0/s 0 % busy  60 s 50.0/s 0 % busy\n"), "{last}");
    watch.close().unwrap();
    watch.close().unwrap();
    assert!(shown.try_recv().is_err(), "nothing after it is closed");
}

#[test]
fn a_watch_whose_writer_fails_says_so() {
    let clock = PausedClock::new();
    let (screen, shown) = mpsc::channel();
    let registry = Registry::new();
    let watch = registry.watch_to(Duration::from_secs(1), Clock::Paused(clock.clone()), Broken(screen)).unwrap();
    clock.wait_for_waiters(1);
    clock.advance(Duration::from_secs(1));
    shown.recv().unwrap();
    assert!(shown.recv().is_err(), "the thread has ended, and its writer with it");
    assert_eq!(watch.close().unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    assert!(watch.close_within(Duration::ZERO).is_ok(), "told once");
}
