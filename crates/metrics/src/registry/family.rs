//! Series that are told apart by the values of labels, as many as are allowed.

use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::RwLock;

use super::metric::{Instrument, Reading, Series};

/// What stands for the label sets over the cap.
const OTHER: &str = "other";

/// One instrument for each set of label values. A cheap handle; clones share the series.
///
/// [`with`](Self::with) is a lookup: where it is called for each event, keep what it returns.
///
/// ```
/// use fullbore_metrics::{Description, Registry};
///
/// let registry = Registry::new();
/// let requests = registry.counter_family(Description::new("requests").max_series(2), ["method", "status"])?;
/// requests.with(["GET", "200"]).add(3);
/// requests.with(["GET", "404"]).inc();
/// // Over the cap: counted all the same, but not told apart.
/// requests.with(["PUT", "200"]).inc();
/// requests.with(["POST", "500"]).inc();
/// assert_eq!(requests.with(["GET", "200"]).get(), 3);
/// assert_eq!((requests.len(), requests.overflowed()), (2, 2));
/// # Ok::<(), fullbore_metrics::RegisterError>(())
/// ```
pub struct Family<I, const N: usize> {
    shared: Arc<Shared<I, N>>,
}

struct Shared<I, const N: usize> {
    names: [String; N],
    max_series: usize,
    hasher: RandomState,
    /// By the hash of their values: a lookup makes no copy of them.
    series: RwLock<HashMap<u64, Vec<Member<I, N>>>>,
    other: I,
    overflowed: AtomicU64,
}

struct Member<I, const N: usize> {
    values: [Box<str>; N],
    instrument: I,
}

impl<I: Instrument, const N: usize> Family<I, N> {
    pub(super) fn new(names: [String; N], max_series: usize) -> Self {
        let shared = Shared {
            names,
            max_series,
            hasher: RandomState::new(),
            series: RwLock::default(),
            other: I::default(),
            overflowed: AtomicU64::new(0),
        };
        Self { shared: Arc::new(shared) }
    }

    /// The instrument for these values, in the order of the label names. Made if it is new; if there are as many as may be,
    /// the one that all further label sets share.
    #[must_use]
    pub fn with(&self, values: [&str; N]) -> I {
        let shared = &*self.shared;
        let hash = shared.hasher.hash_one(values);
        let find = |series: &HashMap<u64, Vec<Member<I, N>>>| {
            let same = |member: &&Member<I, N>| member.values.iter().zip(values).all(|(is, asked)| **is == *asked);
            series.get(&hash).and_then(|members| members.iter().find(same)).map(|member| member.instrument.clone())
        };
        if let Some(known) = find(&shared.series.read()) {
            return known;
        }
        // The lock for writing is taken only while there is room: afterwards, strangers do not stop each other.
        if self.len() < shared.max_series {
            let mut series = shared.series.write();
            if let Some(known) = find(&series) {
                return known;
            }
            if series.values().map(Vec::len).sum::<usize>() < shared.max_series {
                let instrument = I::default();
                let member = Member { values: values.map(Box::from), instrument: instrument.clone() };
                series.entry(hash).or_default().push(member);
                return instrument;
            }
        }
        shared.overflowed.fetch_add(1, Ordering::Relaxed);
        shared.other.clone()
    }

    /// How many label sets have a series of their own.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shared.series.read().values().map(Vec::len).sum()
    }

    /// Whether there is none yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How often a label set had to share the series `other`.
    #[must_use]
    pub fn overflowed(&self) -> u64 {
        self.shared.overflowed.load(Ordering::Relaxed)
    }
}

/// A family whatever its type, for a registry.
pub(super) trait AnyFamily: Send + Sync {
    fn read(&self) -> Vec<Series>;
    fn overflowed(&self) -> u64;
    fn as_any(&self) -> &dyn std::any::Any;
}

impl<I: Instrument, const N: usize> AnyFamily for Family<I, N> {
    fn read(&self) -> Vec<Series> {
        let shared = &*self.shared;
        let labels = |values: [&str; N]| {
            shared.names.iter().zip(values).map(|(name, value)| (name.clone(), value.to_owned())).collect()
        };
        let members: Vec<_> = {
            let series = shared.series.read();
            let members = series.values().flatten();
            members
                .map(|member| (labels(member.values.each_ref().map(|value| &**value)), member.instrument.clone()))
                .collect()
        };
        let mut read: Vec<Series> =
            members.into_iter().map(|(labels, instrument)| Series { labels, reading: instrument.read() }).collect();
        read.sort_by(|a, b| a.labels.cmp(&b.labels));
        if self.overflowed() > 0 {
            let labels: Vec<(String, String)> = labels([OTHER; N]);
            match read.iter_mut().find(|series| series.labels == labels) {
                // Somebody's own values are all `other`: one series, with both.
                Some(own) => own.reading.merge(shared.other.read()),
                None => read.push(Series { labels, reading: shared.other.read() }),
            }
        }
        read
    }

    fn overflowed(&self) -> u64 {
        Family::overflowed(self)
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}

impl Reading {
    fn merge(&mut self, other: Self) {
        match (self, other) {
            (Reading::Counter(sum), Reading::Counter(n)) => *sum = sum.saturating_add(n),
            (Reading::Gauge { value, max }, Reading::Gauge { value: v, max: m }) => {
                *value = value.saturating_add(v);
                *max = (*max).max(m);
            }
            (Reading::Histogram(sum), Reading::Histogram(n)) => sum.merge(&n),
            // One family has one type.
            _ => {}
        }
    }
}

impl<I, const N: usize> Clone for Family<I, N> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<I, const N: usize> fmt::Debug for Family<I, N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Family").field("labels", &self.shared.names).finish_non_exhaustive()
    }
}
