//! Counters, gauges and histograms: exact whatever threads do.
#![allow(missing_docs, clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::thread;
use std::time::Duration;

use fullbore_metrics::{Counter, Gauge, Histogram, HistogramSnapshot, QuantileError, Station, WindowError};
use fullbore_testkit::{CountingAlloc, measure};
use proptest::prelude::*;

#[global_allocator]
static ALLOC: CountingAlloc = CountingAlloc;

/// Two thousand threads, a dozen at a time, while others read all the time.
#[test]
fn threads_come_and_go_by_the_thousand_and_every_total_is_exact() {
    const THREADS: u64 = 2000;
    const EACH: u64 = 50;
    let (counter, histogram, station) = (Counter::new(), Histogram::new(), Station::new("busy"));
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let readers = [0, 1].map(|_| {
            scope.spawn(|| {
                let (mut count, mut samples, mut served) = (0, 0, 0);
                while !over.load(Ordering::Acquire) {
                    let now = (counter.get(), histogram.snapshot(), station.snapshot());
                    assert!(now.0 >= count && now.1.count() >= samples && now.2.served >= served, "only grows");
                    assert!(now.0 <= THREADS * EACH && now.1.count() <= THREADS * EACH, "nothing counts twice");
                    assert!(now.2.served <= now.2.begun && now.2.begun <= now.2.arrivals);
                    assert_eq!(now.1.buckets().map(|(_, n)| n).sum::<u64>(), now.1.count());
                    (count, samples, served) = (now.0, now.1.count(), now.2.served);
                }
            })
        });
        let workers: Vec<_> = (0..12u64)
            .map(|worker| {
                let (counter, histogram, station) = (&counter, &histogram, &station);
                scope.spawn(move || {
                    for generation in (worker..THREADS).step_by(12) {
                        thread::scope(|inner| {
                            inner.spawn(move || {
                                for n in 0..EACH {
                                    counter.inc();
                                    histogram.record(generation * EACH + n);
                                    station.run(|| ());
                                }
                            });
                        });
                    }
                })
            })
            .collect();
        workers.into_iter().for_each(|worker| worker.join().unwrap());
        over.store(true, Ordering::Release);
        readers.into_iter().for_each(|reader| reader.join().unwrap());
    });
    let all = THREADS * EACH;
    let seen = histogram.snapshot();
    assert_eq!((counter.get(), seen.count()), (all, all));
    assert_eq!(seen.sum(), u128::from(all) * u128::from(all - 1) / 2, "each number once");
    assert_eq!((seen.min(), seen.max()), (Some(0), Some(all - 1)));
    let seen = station.snapshot();
    assert_eq!((seen.served, seen.arrivals, seen.wait().count(), seen.service().count()), (all, all, all, all));
}

/// In the destructor of a thread-local that was there before the thread's first record, and of one that came after.
#[test]
fn a_thread_records_during_its_own_teardown() {
    struct Last(Counter, Histogram);
    impl Drop for Last {
        fn drop(&mut self) {
            self.0.add(10);
            self.1.record(7);
        }
    }
    thread_local! {
        static BEFORE: std::cell::RefCell<Option<Last>> = const { std::cell::RefCell::new(None) };
        static AFTER: std::cell::RefCell<Option<Last>> = const { std::cell::RefCell::new(None) };
    }
    let (counter, histogram) = (Counter::new(), Histogram::new());
    for _ in 0..20 {
        let its = (counter.clone(), histogram.clone());
        let run = move || {
            BEFORE.set(Some(Last(its.0.clone(), its.1.clone())));
            its.0.add(1);
            its.1.record(3);
            AFTER.set(Some(Last(its.0.clone(), its.1.clone())));
        };
        // Joined by handle: a scope may end before the destructors of a thread's locals have run.
        thread::spawn(run).join().unwrap();
    }
    assert_eq!(counter.get(), 20 * 21);
    let seen = histogram.snapshot();
    assert_eq!((seen.count(), seen.sum(), seen.min(), seen.max()), (60, 20 * 17, Some(3), Some(7)));
}

#[test]
fn handles_share_whichever_was_first() {
    let first = Counter::new();
    let second = first.clone();
    second.inc();
    let third = second.clone();
    first.inc();
    thread::scope(|scope| {
        scope.spawn(|| third.inc());
    });
    assert_eq!([first.get(), second.get(), third.get()], [3; 3]);
    drop(first);
    drop(second);
    third.inc();
    assert_eq!(third.get(), 4);

    static SHARED: Counter = Counter::new();
    let start = Barrier::new(8);
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                start.wait();
                SHARED.inc();
            });
        }
    });
    assert_eq!(SHARED.get(), 8, "eight threads that are all the first");
}

/// A thread's table must find its way among instruments that are gone, and not grow with them.
#[test]
fn instruments_that_come_and_go_leave_nothing_behind() {
    let keep = Counter::new();
    keep.inc();
    let round = || {
        for _ in 0..1000 {
            let (counter, histogram, station) = (Counter::new(), Histogram::new(), Station::new("passing"));
            counter.add(3);
            histogram.record(9);
            station.run(|| keep.inc());
            assert_eq!((counter.get(), histogram.snapshot().count(), station.snapshot().served), (3, 1, 1));
        }
    };
    round();
    let ((), taken) = measure(|| (0..10).for_each(|_| round()));
    // What a table keeps of instruments that are gone is little, and is given back as it fills.
    assert!(taken.net_bytes() < 64 * 1024, "{taken:?}");
    assert_eq!(keep.get(), 11_001);
}

#[test]
fn many_instruments_at_once_are_told_apart() {
    let counters: Vec<Counter> = (0..5000).map(|_| Counter::new()).collect();
    let add_all = || (1u64..).zip(&counters).for_each(|(n, counter)| counter.add(n));
    add_all();
    thread::scope(|scope| {
        scope.spawn(add_all);
        scope.spawn(|| (1u64..=5000).rev().for_each(|n| counters[n as usize - 1].add(n)));
    });
    for (n, counter) in (1u64..).zip(&counters) {
        assert_eq!(counter.get(), 3 * n);
    }
}

#[test]
fn memory_is_given_back_when_threads_end() {
    let stations: Vec<Station> = (0..20).map(|n| Station::new(format!("station {n}"))).collect();
    let fill = || {
        for station in &stations {
            (0..40).for_each(|magnitude| station.took(Duration::from_nanos(1 << magnitude)));
        }
    };
    // What ended threads have left has its place from now on.
    thread::scope(|scope| drop(scope.spawn(fill).join()));
    let taken = AtomicI64::new(0);
    for _ in 0..10 {
        let run = || taken.fetch_add(measure(fill).1.net_bytes(), Ordering::Relaxed);
        thread::scope(|scope| drop(scope.spawn(run).join()));
    }
    assert!(taken.into_inner() > 10 * 20 * 40 * 256, "while they ran, they had something to give back");
    let ((), read) = measure(|| {
        for station in &stations {
            assert_eq!(station.snapshot().service().count(), 11 * 40);
        }
    });
    assert_eq!(read.net_bytes(), 0);
}

#[test]
fn a_counter_sticks_at_the_largest_number() {
    let counter = Counter::new();
    counter.add(u64::MAX - 1);
    counter.add(5);
    assert_eq!(counter.get(), u64::MAX);
    thread::scope(|scope| {
        scope.spawn(|| counter.add(u64::MAX));
    });
    assert_eq!(counter.get(), u64::MAX);
}

#[test]
fn a_gauge_remembers_its_highest() {
    let gauge = Gauge::new();
    assert_eq!((gauge.get(), gauge.take_max()), (0, 0));
    gauge.add(7);
    gauge.sub(9);
    assert_eq!((gauge.get(), gauge.max(), gauge.take_max()), (-2, 7, 7));
    assert_eq!(gauge.take_max(), -2, "from the present value on");
    gauge.set(i64::MAX);
    gauge.add(1);
    assert_eq!(gauge.get(), i64::MIN, "wraps");
    assert_eq!(gauge.take_max(), i64::MAX);
    let start = Barrier::new(4);
    let many = Gauge::new();
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                start.wait();
                (0..1000).for_each(|_| many.add(1));
            });
        }
    });
    assert_eq!((many.get(), many.take_max()), (4000, 4000));
}

#[test]
fn extremes_are_exact_and_do_not_panic() {
    let histogram = Histogram::new();
    for value in [0, 1, u64::MAX, u64::MAX, 1 << 63, (1 << 63) - 1] {
        histogram.record(value);
    }
    histogram.record_duration(Duration::MAX);
    let seen = histogram.snapshot();
    assert_eq!((seen.count(), seen.min(), seen.max()), (7, Some(0), Some(u64::MAX)));
    assert_eq!(seen.sum(), 3 * u128::from(u64::MAX) + u128::from(u64::MAX) + 1, "the sum does not wrap");
    // The same, told to others by a thread that ends.
    let other = Histogram::new();
    thread::scope(|scope| {
        scope.spawn(|| [u64::MAX, u64::MAX, 0, u64::MAX].map(|value| other.record(value)));
    });
    other.record(u64::MAX);
    let seen = other.snapshot();
    assert_eq!((seen.sum(), seen.min(), seen.count()), (4 * u128::from(u64::MAX), Some(0), 5));
}

#[test]
fn merging_sticks_at_the_largest_number() {
    let mut samples = HistogramSnapshot::default();
    samples.record(u64::MAX);
    for _ in 0..130 {
        let same = samples.clone();
        samples.merge(&same);
    }
    assert_eq!((samples.count(), samples.sum()), (u64::MAX, u128::MAX));
    assert_eq!(samples.p50().unwrap().value, u64::MAX);
}

#[test]
fn what_cannot_be_observed_is_refused() {
    let histogram = Histogram::new();
    for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -0.5] {
        let error = histogram.try_record(value).unwrap_err();
        assert!(error.0.to_bits() == value.to_bits() && error.to_string().contains("cannot be observed"), "{error}");
    }
    assert_eq!(histogram.snapshot().count(), 0);
    for value in [-0.0, 0.4, 1e300] {
        histogram.try_record(value).unwrap();
    }
    assert_eq!((histogram.snapshot().min(), histogram.snapshot().max()), (Some(0), Some(u64::MAX)));
}

#[test]
fn a_quantile_needs_ten_samples_beyond_it() {
    let mut samples = HistogramSnapshot::default();
    (0..999).for_each(|_| samples.record(5000));
    assert_eq!(samples.p99().unwrap_err(), QuantileError::TooFewSamples { q: 0.99, n: 999, needed: 1000 });
    samples.record(5000);
    let p99 = samples.p99().unwrap();
    assert_eq!((p99.value, p99.low, p99.high, p99.n), (5000, 5000, 5000, 1000));
    assert!(matches!(samples.quantile(f64::NAN), Err(QuantileError::OutOfRange { .. })));
    assert!(matches!(samples.quantile(1.0), Err(QuantileError::Extreme { .. })));
}

/// Locust's defect: with rounded keys, the percentile of equal samples was above their maximum.
#[test]
fn no_percentile_is_above_the_maximum_or_below_the_minimum() {
    for value in [129u64, 1_000_003, 99_999_999_999] {
        let mut samples = HistogramSnapshot::default();
        (0..1000).for_each(|_| samples.record(value));
        for q in [0.01, 0.5, 0.99] {
            let percentile = samples.quantile(q).unwrap();
            assert_eq!((percentile.low, percentile.value, percentile.high), (value, value, value));
        }
    }
}

#[test]
fn at_most_is_what_a_cumulative_bucket_shows() {
    let mut samples = HistogramSnapshot::default();
    assert_eq!(samples.at_most(u64::MAX), 0);
    (1..=100).for_each(|value| samples.record(value));
    assert_eq!([0, 1, 50, 99, 100, u64::MAX].map(|bound| samples.at_most(bound)), [0, 1, 50, 99, 100, 100]);
    let mut alone = HistogramSnapshot::default();
    alone.record(1_064_576);
    assert_eq!([1_064_575, 1_064_576].map(|bound| alone.at_most(bound)), [0, 1], "the middle of its bucket is below");
}

#[test]
fn a_window_is_refused_when_the_snapshots_do_not_fit() {
    let (one, other) = (Station::new("one"), Station::new("other"));
    let before = one.snapshot();
    one.run(|| ());
    let after = one.snapshot();
    assert_eq!(after.since(&before).unwrap().counts().served, 1);
    assert_eq!(before.since(&after).unwrap_err(), WindowError::NotEarlier);
    assert_eq!(other.snapshot().since(&before).unwrap_err(), WindowError::OtherStation);
}

/// As the exact values say, for every quantile and whatever the values.
#[derive(Default)]
struct Sorted(BTreeMap<u64, u64>);

impl Sorted {
    fn at_rank(&self, rank: u64) -> u64 {
        let mut seen = 0;
        *self
            .0
            .iter()
            .find(|(_, n)| {
                seen += **n;
                seen >= rank
            })
            .unwrap()
            .0
    }
}

/// Small ones, ordinary ones, and all there are.
fn value() -> impl Strategy<Value = u64> {
    prop_oneof![0u64..300, 1u64..4_000_000_000_000, (0u32..64).prop_map(|magnitude| 1 << magnitude), any::<u64>()]
}

proptest! {
    #[test]
    fn quantiles_are_within_the_stated_error(
        values in proptest::collection::vec(value(), 20..600),
        threads in 1usize..5,
        q in 0.0f64..1.0,
    ) {
        let histogram = Histogram::new();
        thread::scope(|scope| {
            for part in values.chunks(values.len().div_ceil(threads)) {
                scope.spawn(|| part.iter().for_each(|value| histogram.record(*value)));
            }
        });
        let mut exact = Sorted::default();
        values.iter().for_each(|value| *exact.0.entry(*value).or_default() += 1);
        let seen = histogram.snapshot();
        prop_assert_eq!(seen.count(), values.len() as u64);
        prop_assert_eq!(seen.sum(), values.iter().map(|value| u128::from(*value)).sum::<u128>());
        prop_assert_eq!((seen.min(), seen.max()), (values.iter().min().copied(), values.iter().max().copied()));
        for q in [q, 0.5] {
            let Ok(got) = seen.quantile(q) else { continue };
            let truth = exact.at_rank(((values.len() as f64 * q).ceil() as u64).max(1));
            let error = got.value.abs_diff(truth) as f64;
            prop_assert!(error <= 0.008 * truth as f64, "{} for {}", got.value, truth);
            prop_assert!(got.low <= got.value && got.value <= got.high && got.high <= seen.max().unwrap());
        }
    }

    #[test]
    fn a_merge_is_all_samples_and_a_difference_takes_them_back(
        first in proptest::collection::vec(value(), 0..100),
        second in proptest::collection::vec(value(), 0..100),
    ) {
        let of = |values: &[u64]| {
            let mut samples = HistogramSnapshot::default();
            values.iter().for_each(|value| samples.record(*value));
            samples
        };
        let mut both = of(&first);
        both.merge(&of(&second));
        prop_assert_eq!(&both, &of(&[&first[..], &second].concat()));
        let window = both.since(&of(&first)).unwrap();
        let truth = of(&second);
        prop_assert_eq!((window.count(), window.sum()), (truth.count(), truth.sum()));
        prop_assert!(window.buckets().eq(truth.buckets()));
        // Extremes of a window are those of its buckets.
        for (got, truth) in [(window.min(), truth.min()), (window.max(), truth.max())] {
            prop_assert_eq!(got.is_some(), truth.is_some());
            let (got, truth) = (got.unwrap_or(0), truth.unwrap_or(0));
            prop_assert!(got.abs_diff(truth) as f64 <= truth as f64 / 64.0, "{} for {}", got, truth);
        }
        if !second.is_empty() {
            prop_assert_eq!(of(&first).since(&both).unwrap_err(), WindowError::NotEarlier);
        }
    }
}
