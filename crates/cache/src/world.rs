//! What makes entries invalid without a look at them: time, `clear`, and tags.
//!
//! A number, the *generation*, counts the calls of `clear` and `remove_by_tag`. An entry and a flight are *as of* the generation in which
//! they were made or begun.
//!
//! - **G1** A `clear` or a tag's removal is written down first, then the generation is raised: whoever reads a generation knows of
//!   everything that made it.
//! - **G2** An entry is dead once the cache was cleared, or one of its tags removed, in a generation after the one that it is as of.
//! - **G3** An entry that was looked at in a later generation and is not dead is as of that one from then on.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use fullbore_core::{Clock, Monitor};

use crate::entry::{Kept, More, NEVER};
use crate::sync::{AtomicU32, Ordering};

/// How an entry stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Age {
    Fresh,
    /// Fresh, and so near to its end that it may be loaded again.
    Early,
    /// Not fresh any more, but better than nothing.
    Stale,
    Dead,
}

/// A name under which entries are removed together.
#[derive(Debug)]
pub(crate) struct Tag {
    pub(crate) name: Arc<str>,
    /// The generation that its last removal made.
    changed: AtomicU32,
}

pub(crate) struct World {
    clock: Clock,
    /// In nanoseconds; `None`: as long as you like.
    idle: Option<u64>,
    generation: AtomicU32,
    /// The generation that the last `clear` made.
    cleared: AtomicU32,
    tags: Monitor<Tags>,
    /// Ticks are counted from here.
    start: u64,
}

struct Tags {
    known: HashMap<Arc<str>, Arc<Tag>>,
    /// The latest change of those that were forgotten: a tag that comes back may have been one of them.
    floor: u32,
    /// At this many it is worth looking for those that nobody uses.
    limit: usize,
}

/// So many tags are kept without a look whether anybody uses them.
const FEW_TAGS: usize = 64;
/// A tick is 2^24 ns, 17 ms.
const TICK: u32 = 24;
/// Generations are compared by their distance, which must stay below half of what a number can hold.
const ROUND: u32 = 1 << 30;

/// Whether `one` comes after `other`.
fn after(one: u32, other: u32) -> bool {
    one != other && one.wrapping_sub(other) <= u32::MAX / 2
}

impl World {
    pub(crate) fn new(clock: Clock, idle: Option<u64>) -> Self {
        let tags = Tags { known: HashMap::new(), floor: 0, limit: FEW_TAGS };
        Self {
            idle,
            generation: AtomicU32::new(0),
            cleared: AtomicU32::new(0),
            tags: Monitor::new(tags, clock.clone()),
            start: clock.coarse(),
            clock,
        }
    }

    #[inline]
    pub(crate) fn generation(&self) -> u32 {
        // ORDERING: Acquire pairs with the Release of `advance` (G1).
        self.generation.load(Ordering::Acquire)
    }

    pub(crate) fn now(&self) -> u64 {
        self.clock.coarse()
    }

    /// The present moment in ticks.
    pub(crate) fn tick(&self) -> u32 {
        // Wraps around after two years.
        (self.clock.coarse().saturating_sub(self.start) >> TICK) as u32
    }

    /// For how long something born at `tick` has been there, in nanoseconds, to a tick.
    pub(crate) fn since(&self, tick: u32) -> u64 {
        u64::from(self.tick().wrapping_sub(tick)) << TICK
    }

    /// Whether entries of the generation were cleared.
    #[inline]
    pub(crate) fn is_cleared(&self, generation: u32) -> bool {
        // ORDERING: Relaxed: whoever read a generation has seen what made it (G1); an older one is as of before the clear.
        after(self.cleared.load(Ordering::Relaxed), generation)
    }

    /// Whether nothing has to be looked at to know that the entry is fresh.
    #[inline]
    pub(crate) fn is_plainly_fresh(&self, as_of: u32, due: u64) -> bool {
        as_of == self.generation() && self.idle.is_none() && (due == NEVER || self.clock.coarse() < due)
    }

    /// How an entry stands, and the generation that this is as of.
    pub(crate) fn age(&self, as_of: u32, due: u64, more: Option<&More>) -> (Age, u32) {
        let generation = self.generation();
        let removed = || more.is_some_and(|more| more.tags.iter().any(|tag| tag.is_removed_after(as_of)));
        if self.is_cleared(as_of) || (as_of != generation && removed()) {
            return (Age::Dead, generation);
        }
        if due == NEVER && self.idle.is_none() {
            return (Age::Fresh, generation);
        }
        let now = self.clock.coarse();
        if let (Some(idle), Some(more)) = (self.idle, more)
            && now >= more.used.load(Relaxed).saturating_add(idle)
        {
            return (Age::Dead, generation);
        }
        let age = match more {
            _ if due == NEVER || now < due => Age::Fresh,
            Some(more) if more.fresh_until == NEVER || now < more.fresh_until => Age::Early,
            Some(more) if more.stale_until == NEVER || now < more.stale_until => Age::Stale,
            _ => Age::Dead,
        };
        (age, generation)
    }

    pub(crate) fn age_of(&self, kept: &Kept) -> Age {
        self.age(kept.generation, kept.due, kept.more.as_deref()).0
    }

    /// An entry was asked for.
    #[inline]
    pub(crate) fn touch(&self, more: Option<&More>) {
        if self.idle.is_some()
            && let Some(more) = more
        {
            let now = self.clock.coarse();
            // What does not change is not written, so that a line that all read stays with all.
            if more.used.load(Relaxed) != now {
                more.used.store(now, Relaxed);
            }
        }
    }

    pub(crate) fn has_idle(&self) -> bool {
        self.idle.is_some()
    }

    /// Forgets all entries.
    pub(crate) fn clear(&self) {
        self.advance(|_, _| true);
    }

    /// Forgets the entries that bear the tag. `true`: all others, too, and their memory is to be given back: the generations have
    /// come round.
    pub(crate) fn remove_tag(&self, name: &str) -> bool {
        self.advance(|tags, next| {
            // ORDERING: Relaxed: `advance` publishes it.
            tags.get(name).changed.store(next, Ordering::Relaxed);
            false
        })
    }

    /// `change` says whether everything is to be forgotten.
    fn advance(&self, change: impl FnOnce(&mut Tags, u32) -> bool) -> bool {
        let mut tags = self.tags.lock();
        let next = self.generation.load(Ordering::Relaxed).wrapping_add(1);
        let mut all = change(&mut tags, next);
        if next.is_multiple_of(ROUND) {
            all = true;
            tags.floor = next;
            for tag in tags.known.values() {
                tag.changed.store(next, Ordering::Relaxed);
            }
        }
        if all {
            self.cleared.store(next, Ordering::Relaxed);
        }
        // ORDERING: Release pairs with the Acquire of `generation` (G1). Stores of this number are made under the lock only.
        self.generation.store(next, Ordering::Release);
        all
    }

    /// The tags of these names, each once.
    pub(crate) fn tags(&self, mut names: Vec<Arc<str>>) -> Box<[Arc<Tag>]> {
        if names.is_empty() {
            return Box::default();
        }
        names.sort_unstable();
        names.dedup();
        let mut tags = self.tags.lock();
        names.iter().map(|name| tags.get(name)).collect()
    }

    /// Whether one of the tags was removed after the generation.
    pub(crate) fn is_removed(&self, tags: &[Arc<Tag>], as_of: u32) -> bool {
        // What is not in this generation yet comes after the load's landing.
        self.generation() != as_of && tags.iter().any(|tag| tag.is_removed_after(as_of))
    }
}

impl Tags {
    fn get(&mut self, name: &str) -> Arc<Tag> {
        if let Some(tag) = self.known.get(name) {
            return Arc::clone(tag);
        }
        if self.known.len() >= self.limit {
            let floor = &mut self.floor;
            self.known.retain(|_, tag| {
                let used = Arc::strong_count(tag) > 1;
                let changed = tag.changed.load(Ordering::Relaxed);
                if !used && after(changed, *floor) {
                    *floor = changed;
                }
                used
            });
            self.limit = (2 * self.known.len()).max(FEW_TAGS);
        }
        let name: Arc<str> = name.into();
        // Loads that began before count as older than its last removal, which nobody remembers: they are not kept.
        let tag = Arc::new(Tag { name: Arc::clone(&name), changed: AtomicU32::new(self.floor) });
        self.known.insert(name, Arc::clone(&tag));
        tag
    }
}

impl Tag {
    fn is_removed_after(&self, as_of: u32) -> bool {
        // ORDERING: Relaxed: whoever read a generation has seen what made it (G1).
        after(self.changed.load(Ordering::Relaxed), as_of)
    }
}
