//! How long an entry lives: from what the settings, the caller and the load say.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crate::config::Config;
use crate::entry::{Kept, More, NEVER};
use crate::load::Says;
use crate::world::{Tag, World};

/// The settings, in the clock's terms.
pub(crate) struct Life {
    ttl: Option<Duration>,
    negative_ttl: Duration,
    stale_for: Duration,
    jitter: f64,
    /// How early an entry may be loaded again, in times of its load. 0: not early.
    early: f64,
}

/// 10 ms, in nanoseconds.
const ASK_AGAIN: u64 = 10_000_000;

/// Beyond so many times of a load the chance of an early one is below one in three thousand.
const REACH: f64 = 8.0;

impl Life {
    pub(crate) fn new(config: &Config, loads_itself: bool) -> Self {
        Self {
            ttl: config.ttl,
            negative_ttl: config.negative_ttl,
            stale_for: config.stale_for.unwrap_or_default(),
            jitter: config.jitter,
            early: if loads_itself { config.refresh_ahead } else { 0.0 },
        }
    }

    /// `None` if it is not to be kept at all. The generation and the weight are the caller's to fill in.
    pub(crate) fn kept(&self, world: &World, says: Says, tags: &[Arc<Tag>], took: Duration) -> Option<Kept> {
        let ttl = says.ttl.or(if says.negative { Some(self.negative_ttl) } else { self.ttl });
        if says.no_store || ttl == Some(Duration::ZERO) {
            return None;
        }
        let mut kept = Kept { due: NEVER, generation: 0, weight: 1, born: world.tick(), more: None };
        let (mut now, mut fresh_until, mut stale_until) = (0, NEVER, NEVER);
        if let Some(ttl) = ttl {
            now = world.now();
            fresh_until = now.saturating_add(if says.is_exact { nanos(ttl) } else { self.jittered(nanos(ttl)) });
            stale_until = fresh_until.saturating_add(nanos(says.stale_for.unwrap_or(self.stale_for)));
            kept.due = fresh_until;
        }
        let took = nanos(took);
        if self.early > 0.0 && fresh_until != NEVER && !says.negative {
            let zone = (took as f64 * self.early * REACH) as u64;
            // Never before half of its time: a load that takes longer than that is not to be begun all the time.
            kept.due = fresh_until.saturating_sub(zone.min((fresh_until - now) / 2));
        }
        let plain = kept.due == fresh_until && stale_until == fresh_until && tags.is_empty() && says.etag.is_none();
        if !plain || says.version > 0 || says.negative || world.has_idle() {
            let used = AtomicU64::new(if world.has_idle() { world.now() } else { 0 });
            let (etag, version, negative) = (says.etag, says.version, says.negative);
            let tags = tags.into();
            kept.more = Some(Arc::new(More {
                fresh_until,
                stale_until,
                took,
                tags,
                etag,
                version,
                negative,
                used,
                ..More::default()
            }));
        }
        Some(kept)
    }

    /// For how long a value is fresh, and kept, where another tier keeps it, too; `None` if not at all.
    #[cfg(feature = "redis")]
    pub(crate) fn times(&self, says: &Says) -> Option<(Option<Duration>, Option<Duration>)> {
        let ttl = says.ttl.or(if says.negative { Some(self.negative_ttl) } else { self.ttl });
        if says.no_store || ttl == Some(Duration::ZERO) {
            return None;
        }
        let fresh = ttl.map(|ttl| Duration::from_nanos(self.jittered(nanos(ttl))));
        Some((fresh, fresh.map(|fresh| fresh.saturating_add(says.stale_for.unwrap_or(self.stale_for)))))
    }

    /// Shortens the TTL; afterwards it is of no use.
    #[cfg(feature = "redis")]
    pub(crate) fn cap(&self, says: &mut Says, most: Duration) {
        let ttl = says.ttl.or(if says.negative { Some(self.negative_ttl) } else { self.ttl });
        says.ttl = Some(ttl.map_or(most, |ttl| ttl.min(most)));
        says.stale_for = Some(Duration::ZERO);
    }

    fn jittered(&self, nanos: u64) -> u64 {
        if self.jitter == 0.0 {
            return nanos;
        }
        let off = nanos as f64 * self.jitter * chance();
        nanos.saturating_sub(off as u64).max(1)
    }

    /// Whether an entry in its last time is to be loaded again now (XFetch, Vattani and others, VLDB 2015): the sooner, the longer a
    /// load takes; asked at each hit, the sooner, the more often it is asked for.
    pub(crate) fn is_early_enough(&self, more: &More, now: u64) -> bool {
        // Whoever was told so has begun the load, or found no room for it: the next one may ask when it may have ended.
        if now < more.asked.load(Relaxed).saturating_add(more.took.max(ASK_AGAIN)) {
            return false;
        }
        let ahead = more.took as f64 * self.early * -chance().ln();
        let enough = ahead >= more.fresh_until.saturating_sub(now) as f64;
        if enough {
            more.asked.store(now, Relaxed);
        }
        enough
    }
}

/// Evenly between 0, which it never is, and 1.
fn chance() -> f64 {
    ((fullbore_metrics::random() >> 11) + 1) as f64 / (1u64 << 53) as f64
}

/// For sums with the coarse time.
pub(crate) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
