//! What a station had counted at one moment.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::histogram::DurationSnapshot;
use crate::station::{StationId, StationKind};

/// The counts of a station (C1). `begun` is needed to tell waiting from in service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Counts {
    /// Items refused at the door.
    pub refused: u64,
    /// Items that came in.
    pub arrivals: u64,
    /// Items whose service began.
    pub begun: u64,
    /// Items done.
    pub served: u64,
    /// Items tried that went wrong.
    pub failed: u64,
    /// Items displaced or given up.
    pub dropped: u64,
    /// Items merged into others.
    pub merged: u64,
    /// Items handed back unserved.
    pub returned: u64,
    /// Times that an item in service went back to waiting, to be tried again.
    pub retried: u64,
}

/// Counts stick at the largest number, and so do their sums.
pub(crate) fn sum<const N: usize>(counts: [u64; N]) -> u64 {
    counts.into_iter().fold(0, u64::saturating_add)
}

impl Counts {
    /// Everything that was offered.
    #[must_use]
    pub fn offered(&self) -> u64 {
        self.refused.saturating_add(self.arrivals)
    }

    /// Items that are being served.
    #[must_use]
    pub fn in_service(&self) -> u64 {
        self.begun.saturating_sub(sum([self.served, self.failed, self.retried]))
    }

    /// Items that came in, or came back to be tried again, and neither left nor began. While others record, a retry between
    /// two reads can make it too small, never negative.
    #[must_use]
    pub fn waiting(&self) -> u64 {
        sum([self.arrivals, self.retried]).saturating_sub(sum([self.begun, self.dropped, self.merged, self.returned]))
    }

    /// Whether `arrivals = served + failed + dropped + merged + returned + waiting + in_service`. Always true when nobody
    /// records at the moment; tests ask.
    #[must_use]
    pub fn balanced(&self) -> bool {
        let out = sum([self.served, self.failed, self.dropped, self.merged, self.returned]);
        self.arrivals == sum([out, self.waiting(), self.in_service()])
    }
}

/// All numbers of a station at one moment. Dereferences to its [`Counts`].
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct StationSnapshot {
    /// For the length of windows.
    #[cfg_attr(feature = "serde", serde(skip))]
    pub(crate) taken: Instant,
    pub(crate) id: StationId,
    #[cfg_attr(feature = "serde", serde(serialize_with = "as_text"))]
    pub(crate) name: Arc<str>,
    /// The name, or what a registry has made of it so that it is the only one.
    #[cfg_attr(feature = "serde", serde(serialize_with = "as_text"))]
    pub(crate) label: Arc<str>,
    pub(crate) kind: StationKind,
    pub(crate) parallelism: u64,
    pub(crate) batch_size: u64,
    pub(crate) capacity: u64,
    pub(crate) age: Duration,
    pub(crate) counts: Counts,
    pub(crate) busy: Duration,
    pub(crate) wait: DurationSnapshot,
    pub(crate) service: DurationSnapshot,
    pub(crate) response: DurationSnapshot,
    pub(crate) feeds: Vec<StationId>,
    pub(crate) held_by: Vec<StationId>,
}

impl Deref for StationSnapshot {
    type Target = Counts;
    fn deref(&self) -> &Counts {
        &self.counts
    }
}

#[cfg(feature = "serde")]
fn as_text<S: serde::Serializer>(name: &str, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(name)
}

impl StationSnapshot {
    /// Of a station that nobody has used.
    pub(crate) fn unused(id: StationId, name: &str, kind: StationKind, parallelism: u32, capacity: u64) -> Self {
        let name: Arc<str> = Arc::from(name);
        Self {
            taken: Instant::now(),
            id,
            label: Arc::clone(&name),
            name,
            kind,
            parallelism: parallelism.into(),
            batch_size: 1,
            capacity,
            age: Duration::ZERO,
            counts: Counts::default(),
            busy: Duration::ZERO,
            wait: DurationSnapshot::default(),
            service: DurationSnapshot::default(),
            response: DurationSnapshot::default(),
            feeds: Vec::new(),
            held_by: Vec::new(),
        }
    }

    /// The station's number.
    #[must_use]
    pub fn id(&self) -> StationId {
        self.id
    }

    /// The station's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The station's name, with a number behind it if the registry that took the snapshot had one of the same name before.
    #[must_use]
    pub fn label(&self) -> &str {
        &self.label
    }

    /// The station's kind.
    #[must_use]
    pub fn kind(&self) -> StationKind {
        self.kind
    }

    /// How many items it can serve at once.
    #[must_use]
    pub fn parallelism(&self) -> u64 {
        self.parallelism
    }

    /// How many items are served together at most: 1, but for a batcher.
    #[must_use]
    pub fn batch_size(&self) -> u64 {
        self.batch_size
    }

    /// How many items can wait.
    #[must_use]
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Time since the station was first used or shared.
    #[must_use]
    pub fn age(&self) -> Duration {
        self.age
    }

    /// Time in line.
    #[must_use]
    pub fn wait(&self) -> &DurationSnapshot {
        &self.wait
    }

    /// Time in service.
    #[must_use]
    pub fn service(&self) -> &DurationSnapshot {
        &self.service
    }

    /// Time from arrival to the end of service, where items wait in a queue; empty elsewhere. Its difference to
    /// [`service`](Self::service) is what waiting costs.
    #[must_use]
    pub fn response(&self) -> &DurationSnapshot {
        &self.response
    }

    /// Summed time of all servers at work.
    #[must_use]
    pub fn busy(&self) -> Duration {
        self.busy
    }

    /// Busy time over what `parallelism` servers had in `window`; above 1 where timing overlaps, 0 for a window without length.
    #[must_use]
    pub fn utilisation(&self, window: Duration) -> f64 {
        let had = window.as_secs_f64() * self.parallelism.max(1) as f64;
        if had > 0.0 { self.busy.as_secs_f64() / had } else { 0.0 }
    }

    /// The stations that this one feeds.
    #[must_use]
    pub fn feeds(&self) -> &[StationId] {
        &self.feeds
    }

    /// The stations whose permits or connections this one needs.
    #[must_use]
    pub fn held_by(&self) -> &[StationId] {
        &self.held_by
    }
}

impl fmt::Display for StationSnapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {} served, {} failed, {} waiting, {} in service",
            self.name,
            self.served,
            self.failed,
            self.waiting(),
            self.in_service()
        )
    }
}
