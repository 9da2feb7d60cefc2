//! `fullbore-metrics`: what it costs to be counted and timed.

use std::hint::black_box;
use std::mem::size_of;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use fullbore_metrics::{Counter, Gauge, Histogram, Outcome, Station};
use fullbore_testkit::measure;
use metrics::{Key, Level, Metadata, Recorder};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusRecorder};
use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter as PromCounter;
use prometheus_client::metrics::histogram::{Histogram as PromHistogram, exponential_buckets};
use prometheus_client::registry::Registry as PromRegistry;

use super::{Count, Random, allocations_each};
use crate::measure::{Case, Side, Team, on_threads};

/// See the module.
#[must_use]
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for threads in [1, 2, 8] {
        cases.push(
            Case::new("Counter::add", threads, move || counter(threads))
                .against("prometheus-client", move || prometheus_counter(threads))
                .against("metrics, Prometheus recorder", move || metrics_counter(threads))
                .against("one shared AtomicU64", move || atomic(threads)),
        );
    }
    for threads in [1, 2, 8] {
        cases.push(
            Case::new("Histogram::record", threads, move || histogram(threads))
                .against("histogram::AtomicHistogram", move || atomic_histogram(threads))
                .against("hdrhistogram in a Mutex", move || hdr_histogram(threads))
                .against("prometheus-client", move || prometheus_histogram(threads))
                .against("metrics, Prometheus recorder", move || metrics_histogram(threads)),
        );
    }
    for threads in [1, 2, 8] {
        cases.push(
            Case::new("Station::run_sampled", threads, move || on_station(threads, run_sampled))
                .against("one shared AtomicU64", move || atomic(threads)),
        );
    }
    for threads in [1, 2, 8] {
        cases.push(
            Case::new("Station::run, empty closure", threads, move || on_station(threads, run))
                .against("two reads of quanta", move || two_reads(threads)),
        );
    }
    cases.push(
        Case::new("Station::run, as threads grow to 8", 8, || on_station(8, run))
            .against("itself, 1 thread", || on_station(1, run)),
    );
    cases.push(
        Case::new("snapshot of 100 stations, 8 writers", 1, || snapshots(100, 8))
            .against("encode 100 prometheus-client histograms", encodes),
    );
    cases.push(
        Case::new("snapshot, as stations grow to 1,000", 1, || one_by_one(1000))
            .against("itself, 10 stations", || one_by_one(10)),
    );
    cases
}

/// What is to be zero.
#[must_use]
pub fn counts() -> Vec<Count> {
    vec![
        Count { name: "allocations for each run", unit: "allocs", ours: allocations },
        Count { name: "allocations of unused instruments", unit: "allocs", ours: unused_allocations },
        Count { name: "bytes over 64 of an unused instrument", unit: "bytes", ours: unused_bytes },
        Count { name: "MB over 64, 100 stations, 64 threads", unit: "bytes", ours: full_house },
    ]
}

/// Counts `items` on every thread with `count`, and checks with `total` what was counted.
fn counted<W: FnMut(Range<u64>)>(
    threads: usize,
    make: impl Fn(usize) -> W + Send + Sync + 'static,
    total: impl Fn() -> u64 + 'static,
) -> Side {
    let mut team = Team::new(threads, make);
    let mut expected = 0;
    Box::new(move |items| {
        let took = team.run(items).took();
        expected += items;
        assert_eq!(total(), expected);
        took
    })
}

fn counter(threads: usize) -> Side {
    let counter = Counter::new();
    let shared = counter.clone();
    let make = move |_| {
        let counter = shared.clone();
        move |items: Range<u64>| items.for_each(|_| counter.add(black_box(1)))
    };
    counted(threads, make, move || counter.get())
}

fn prometheus_counter(threads: usize) -> Side {
    let counter: PromCounter = PromCounter::default();
    let shared = counter.clone();
    let make = move |_| {
        let counter = shared.clone();
        move |items: Range<u64>| items.for_each(|_| _ = counter.inc_by(black_box(1)))
    };
    counted(threads, make, move || counter.get())
}

/// A recorder of one's own: the global one can be installed only once.
fn recorder() -> PrometheusRecorder {
    PrometheusBuilder::new().build_recorder()
}

const METADATA: Metadata<'static> = Metadata::new("bench", Level::INFO, None);

fn metrics_counter(threads: usize) -> Side {
    let recorder = recorder();
    let counter = recorder.register_counter(&Key::from_static_name("bench"), &METADATA);
    let handle = recorder.handle();
    let make = move |_| {
        let counter = counter.clone();
        move |items: Range<u64>| items.for_each(|_| counter.increment(black_box(1)))
    };
    let total = move || {
        let text = handle.render();
        let line = text.lines().find(|line| line.starts_with("bench "));
        line.and_then(|line| line.split(' ').nth(1)?.parse().ok()).unwrap_or(0)
    };
    counted(threads, make, total)
}

fn atomic(threads: usize) -> Side {
    let count = Arc::new(AtomicU64::new(0));
    let shared = Arc::clone(&count);
    let make = move |_| {
        let count = Arc::clone(&shared);
        move |items: Range<u64>| items.for_each(|_| _ = count.fetch_add(black_box(1), Ordering::Relaxed))
    };
    counted(threads, make, move || count.load(Ordering::Relaxed))
}

/// Nanoseconds as services take them: most between 20 and 500 microseconds, some a hundred times as long.
#[derive(Clone, Debug)]
struct Times {
    nanos: Arc<[u64; 1024]>,
}

impl Times {
    fn new(thread: usize) -> Self {
        let mut random = Random::of_thread(thread);
        // The sum of twelve even draws is nearly normal, with a standard deviation of 1.
        let mut normal = || (0..12).map(|_| random.below(1 << 20) as f64 / f64::from(1 << 20)).sum::<f64>() - 6.0;
        Self { nanos: Arc::new(std::array::from_fn(|_| (100_000.0 * normal().exp()) as u64)) }
    }

    fn get(&self, at: u64) -> u64 {
        self.nanos[at as usize % 1024]
    }
}

fn histogram(threads: usize) -> Side {
    let histogram = Histogram::new();
    let shared = histogram.clone();
    let make = move |thread| {
        let (histogram, times) = (shared.clone(), Times::new(thread));
        move |items: Range<u64>| items.for_each(|at| histogram.record(times.get(at)))
    };
    counted(threads, make, move || histogram.snapshot().count())
}

/// Buckets of 1/128 of a power of two, as ours are in effect, for all of `u64`.
fn atomic_histogram(threads: usize) -> Side {
    let histogram = Arc::new(histogram::AtomicHistogram::new(7, 64).expect("as documented"));
    let shared = Arc::clone(&histogram);
    let make = move |thread| {
        let (histogram, times) = (Arc::clone(&shared), Times::new(thread));
        move |items: Range<u64>| items.for_each(|at| histogram.increment(times.get(at)).expect("in range"))
    };
    counted(threads, make, move || histogram.load().as_slice().iter().sum())
}

/// Two digits, up to an hour.
fn hdr_histogram(threads: usize) -> Side {
    let new = hdrhistogram::Histogram::<u64>::new_with_bounds(1, 3_600_000_000_000, 2);
    let histogram = Arc::new(Mutex::new(new.expect("as documented")));
    let shared = Arc::clone(&histogram);
    let make = move |thread| {
        let (histogram, times) = (Arc::clone(&shared), Times::new(thread));
        move |items: Range<u64>| items.for_each(|at| histogram.lock().record(times.get(at)).expect("in range"))
    };
    counted(threads, make, move || histogram.lock().len())
}

/// Twenty-four buckets, from a microsecond to some ten seconds.
fn prometheus() -> PromHistogram {
    PromHistogram::new(exponential_buckets(1e-6, 2.0, 24))
}

fn seconds(nanos: u64) -> f64 {
    nanos as f64 * 1e-9
}

fn prometheus_histogram(threads: usize) -> Side {
    let histogram = prometheus();
    on_threads(threads, move |thread| {
        let (histogram, times) = (histogram.clone(), Times::new(thread));
        move |items: Range<u64>| items.for_each(|at| histogram.observe(seconds(times.get(at))))
    })
}

/// Its samples are folded after each turn, off the clock, as its `upkeep` does.
fn metrics_histogram(threads: usize) -> Side {
    let recorder = recorder();
    let histogram = recorder.register_histogram(&Key::from_static_name("bench"), &METADATA);
    let handle = recorder.handle();
    let mut side = on_threads(threads, move |thread| {
        let (histogram, times) = (histogram.clone(), Times::new(thread));
        move |items: Range<u64>| items.for_each(|at| histogram.record(seconds(times.get(at))))
    });
    Box::new(move |items| {
        let took = side(items);
        handle.run_upkeep();
        took
    })
}

/// Sends items through a station that all threads share, and checks that each was counted.
fn on_station(threads: usize, item: impl Fn(&Station) + Copy + Send + Sync + 'static) -> Side {
    let station = Station::new("bench");
    let shared = station.clone();
    let make = move |_| {
        let station = shared.clone();
        move |items: Range<u64>| items.for_each(|_| item(&station))
    };
    counted(threads, make, move || station.snapshot().served)
}

fn run_sampled(station: &Station) {
    station.run_sampled(|| black_box(()));
}

fn run(station: &Station) {
    station.run(|| black_box(()));
}

fn two_reads(threads: usize) -> Side {
    on_threads(threads, |_| {
        let clock = quanta::Clock::new();
        move |calls| {
            let took = |_| {
                let begun = clock.now();
                black_box(());
                clock.now().duration_since(begun)
            };
            let sum: Duration = calls.map(took).sum();
            assert!(black_box(sum) < Duration::from_secs(600));
        }
    })
}

/// Threads that write while `running` is set.
struct Writers {
    running: Arc<AtomicBool>,
    over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Writers {
    fn new<W: FnMut(u64) + Send + 'static>(count: usize, make: impl Fn(usize) -> W) -> Self {
        let (running, over) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        // All have written once before anything is measured.
        let ready = Arc::new(Barrier::new(count + 1));
        let threads = (0..count).map(|number| {
            let (running, over, ready) = (Arc::clone(&running), Arc::clone(&over), Arc::clone(&ready));
            let mut write = make(number);
            thread::spawn(move || {
                (0..50_000).for_each(&mut write);
                ready.wait();
                while !over.load(Ordering::Acquire) {
                    if running.load(Ordering::Acquire) {
                        (0..1000).for_each(&mut write);
                    } else {
                        thread::park();
                    }
                }
            })
        });
        let threads = threads.collect();
        ready.wait();
        Self { running, over, threads }
    }

    fn during<R>(&self, f: impl FnOnce() -> R) -> R {
        self.running.store(true, Ordering::Release);
        self.threads.iter().for_each(|thread| thread.thread().unpark());
        let result = f();
        self.running.store(false, Ordering::Release);
        result
    }
}

impl Drop for Writers {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Release);
        for thread in self.threads.drain(..) {
            thread.thread().unpark();
            if thread.join().is_err() && !thread::panicking() {
                panic!("a writer has panicked");
            }
        }
    }
}

fn go_through(station: &Station, nanos: u64) {
    station.arrived(1);
    station.began(1);
    station.waited(Duration::from_nanos(nanos / 4));
    station.took(Duration::from_nanos(nanos));
    station.ended(Outcome::Served, 1);
}

fn stations(count: usize) -> Vec<Station> {
    (0..count).map(|number| Station::new(format!("station {number}"))).collect()
}

fn writers_of(stations: &[Station], threads: usize) -> Writers {
    Writers::new(threads, |thread| {
        let (stations, times) = (stations.to_vec(), Times::new(thread));
        let mut random = Random::of_thread(thread);
        move |at| go_through(&stations[random.below(stations.len() as u64) as usize], times.get(at))
    })
}

fn snapshots(count: usize, threads: usize) -> Side {
    let stations = stations(count);
    let writers = writers_of(&stations, threads);
    Box::new(move |times| {
        writers.during(|| {
            let begun = Instant::now();
            for _ in 0..times {
                for station in &stations {
                    let seen = black_box(station.snapshot());
                    assert!(seen.service().count() > 0 && seen.served > 0);
                }
            }
            begun.elapsed()
        })
    })
}

fn encodes() -> Side {
    let mut registry = PromRegistry::default();
    let histograms: Vec<PromHistogram> = (0..100).map(|_| prometheus()).collect();
    for (number, histogram) in histograms.iter().enumerate() {
        registry.register(format!("station_{number}"), "Seconds of service", histogram.clone());
    }
    let writers = Writers::new(8, |thread| {
        let (histograms, times) = (histograms.clone(), Times::new(thread));
        let mut random = Random::of_thread(thread);
        move |at| histograms[random.below(100) as usize].observe(seconds(times.get(at)))
    });
    Box::new(move |times| {
        writers.during(|| {
            let begun = Instant::now();
            for _ in 0..times {
                let mut text = String::new();
                prometheus_client::encoding::text::encode(&mut text, &registry).expect("a String takes everything");
                assert!(black_box(text).ends_with("# EOF\n"));
            }
            begun.elapsed()
        })
    })
}

/// Of so many stations, one after the other; nobody writes. An item is one station.
fn one_by_one(count: usize) -> Side {
    let stations = stations(count);
    let times = Times::new(0);
    for at in 0..300 {
        stations.iter().for_each(|station| go_through(station, times.get(at)));
    }
    Box::new(move |times| {
        let begun = Instant::now();
        for at in 0..times {
            let seen = black_box(stations[at as usize % stations.len()].snapshot());
            assert_eq!(seen.served, 300);
        }
        begun.elapsed()
    })
}

fn allocations() -> f64 {
    let station = Station::new("bench");
    allocations_each(|| run(&station))
}

fn unused_allocations() -> f64 {
    allocations_each(|| {
        drop(black_box((Counter::new(), Gauge::new(), Histogram::new(), Station::new("unused"))));
    })
}

fn unused_bytes() -> f64 {
    let largest =
        [size_of::<Counter>(), size_of::<Gauge>(), size_of::<Histogram>(), size_of::<Station>()].into_iter().max();
    largest.map_or(f64::NAN, |bytes| bytes.saturating_sub(64) as f64)
}

/// Megabytes, to the nearest, by which a hundred stations that 64 threads record into take more than 64.
fn full_house() -> f64 {
    let stations = stations(100);
    let taken = AtomicI64::new(0);
    let all = Barrier::new(64);
    thread::scope(|scope| {
        for thread in 0..64 {
            let (stations, taken, all) = (&stations, &taken, &all);
            scope.spawn(move || {
                let times = Times::new(thread);
                let record = || (0..1024).for_each(|at| stations.iter().for_each(|it| go_through(it, times.get(at))));
                taken.fetch_add(measure(record).1.net_bytes(), Ordering::Relaxed);
                // All are there until all have recorded.
                all.wait();
            });
        }
    });
    ((taken.into_inner() as f64 / 1e6).round() - 64.0).max(0.0)
}
