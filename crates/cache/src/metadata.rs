//! What is known of an entry.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use crate::entry::{Kept, NEVER};
use crate::world::{Age, World};

/// What [`Cache::metadata`](crate::Cache::metadata) says of an entry at one moment. Times are kept to a tick of the system, 4 ms on
/// most, the age to 17 ms.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Metadata {
    /// For how long it is still fresh; `None`: for ever. Zero for a stale one.
    pub ttl_left: Option<Duration>,
    /// For how long it may still stand in for one that cannot be had, the time in which it is fresh included; `None`: for ever.
    pub stale_left: Option<Duration>,
    /// Whether its TTL is over.
    pub is_stale: bool,
    /// For how long it has been there.
    pub age: Duration,
    /// For how long nobody has asked for it; `None` without a time to idle.
    pub idle: Option<Duration>,
    /// What it weighs.
    pub weight: u32,
    /// As given at insertion or by the load; 0 if it was not.
    pub version: u64,
    /// Whether its load called it negative.
    pub is_negative: bool,
    /// Its tags, in alphabetical order.
    pub tags: Vec<Arc<str>>,
    /// What its source calls this state of it.
    pub etag: Option<Arc<str>>,
    /// How long its load took; `None` where that is not kept (no refresh ahead, nothing else of the above).
    pub load_time: Option<Duration>,
}

impl Metadata {
    pub(crate) fn of(kept: &Kept, age: Age, world: &World) -> Self {
        let more = kept.more.as_deref();
        let now = world.now();
        let left = |until: u64| (until != NEVER).then(|| Duration::from_nanos(until.saturating_sub(now)));
        Self {
            ttl_left: left(more.map_or(kept.due, |more| more.fresh_until)),
            stale_left: left(more.map_or(kept.due, |more| more.stale_until)),
            is_stale: age == Age::Stale,
            age: Duration::from_nanos(world.since(kept.born)),
            idle: more
                .filter(|_| world.has_idle())
                .map(|more| Duration::from_nanos(now.saturating_sub(more.used.load(Relaxed)))),
            weight: kept.weight,
            version: more.map_or(0, |more| more.version),
            is_negative: more.is_some_and(|more| more.negative),
            tags: more.map_or_else(Vec::new, |more| more.tags.iter().map(|tag| Arc::clone(&tag.name)).collect()),
            etag: more.and_then(|more| more.etag.clone()),
            load_time: more.map(|more| Duration::from_nanos(more.took)),
        }
    }
}
