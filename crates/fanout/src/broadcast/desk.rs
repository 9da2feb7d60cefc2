//! What a subscriber and the publishers say to each other without a lock, and the subscription's counts.

use std::sync::Arc;

use super::ring::{Apart, Published};
use super::sync::{AtomicU64, Ordering, spin_loop, yield_now};

/// Nothing of the kind.
pub(crate) const NONE: u64 = u64::MAX;

/// One for each subscription.
#[derive(Debug)]
pub(crate) struct Desk {
    own: Apart<Own>,
    told: Apart<Told>,
    /// The first number that it was offered.
    start: u64,
    published: Arc<Published>,
}

/// Written by the subscriber.
#[derive(Debug)]
struct Own {
    /// Twice the number of messages served; one more while a callback has one. [`NONE`] while the rest changes.
    phase: AtomicU64,
    /// Messages whose callback has panicked.
    failed: AtomicU64,
    /// Messages that it went over without reading them.
    jumped: AtomicU64,
    /// The thread whose callback was the last one.
    thread: AtomicU64,
}

/// What the subscriber's words say together.
#[derive(Clone, Copy, Debug)]
struct Stand {
    served: u64,
    in_callback: u64,
    failed: u64,
    jumped: u64,
}

/// Written under the hub's lock.
#[derive(Debug)]
struct Told {
    /// Somebody waits for the cursor to come so far.
    wanted: AtomicU64,
    /// The first number that it must not read without asking: a gap begins there, or it is evicted.
    bound: AtomicU64,
    /// Accepted are numbers from here on: the first one offered, and one more for each missed.
    offset: AtomicU64,
    /// While nothing more is accepted: how many were.
    shut: AtomicU64,
    /// While nothing more is offered: the first number that was not.
    left: AtomicU64,
}

impl Desk {
    pub(crate) fn new(start: u64, published: &Arc<Published>) -> Self {
        let at = |n| AtomicU64::new(n);
        Self {
            own: Apart(Own { phase: at(0), failed: at(0), jumped: at(0), thread: at(0) }),
            told: Apart(Told { wanted: at(NONE), bound: at(NONE), offset: at(start), shut: at(NONE), left: at(NONE) }),
            start,
            published: Arc::clone(published),
        }
    }

    // The subscriber's.

    /// A callback has the message after so many that were served.
    #[inline]
    pub(crate) fn begin(&self, served: u64) {
        // ORDERING: Release pairs with the Acquire in `stand`.
        self.own.0.phase.store(2 * served + 1, Ordering::Release);
    }

    /// So many are served; the cursor is on the next.
    #[inline]
    pub(crate) fn served(&self, served: u64) {
        // ORDERING: Release pairs with the Acquire in `stand`: for a close that waits for what was done with a message.
        self.own.0.phase.store(2 * served, Ordering::Release);
    }

    /// A callback has panicked after so many that were served, or the cursor has jumped: so often and so far in all.
    #[cold]
    pub(crate) fn set_back(&self, served: u64, failed: u64, jumped: u64) {
        // ORDERING: Release pairs with the Acquire in `stand`, each: who sees one of them sees those before it.
        self.own.0.phase.store(NONE, Ordering::Release);
        self.own.0.failed.store(failed, Ordering::Release);
        self.own.0.jumped.store(jumped, Ordering::Release);
        self.own.0.phase.store(2 * served, Ordering::Release);
    }

    /// The callbacks are on this thread from now on.
    #[cold]
    pub(crate) fn set_thread(&self, thread: u64) {
        // ORDERING: Relaxed: looked at by this thread.
        self.own.0.thread.store(thread, Ordering::Relaxed);
    }

    /// Whether somebody waits for the cursor to come here. After a light barrier behind the cursor's move.
    #[inline]
    pub(crate) fn is_wanted_at(&self, next: u64) -> bool {
        // ORDERING: Relaxed: the barriers order it behind the store of the cursor (H2).
        self.told.0.wanted.load(Ordering::Relaxed) <= next
    }

    /// The first number that must not be read without asking.
    #[inline]
    pub(crate) fn bound(&self) -> u64 {
        // ORDERING: Relaxed: for the end of what is accepted, `tail` was loaded with Acquire before, which was published after it
        // was set (H3); for an eviction, later is early enough.
        self.told.0.bound.load(Ordering::Relaxed)
    }

    // Under the hub's lock.

    /// The next number that it reads, or reads at this moment.
    pub(crate) fn cursor(&self) -> u64 {
        let Stand { served, failed, jumped, .. } = self.stand();
        self.start + served + failed + jumped
    }

    /// Whether this thread is in its callback.
    pub(crate) fn is_busy_on(&self, thread: u64) -> bool {
        // ORDERING: Relaxed: if it is, it has stored this itself.
        thread != 0 && self.own.0.thread.load(Ordering::Relaxed) == thread && self.is_busy()
    }

    /// Whether it is in a callback.
    pub(crate) fn is_busy(&self) -> bool {
        self.stand().in_callback > 0
    }

    /// Wants to be told when the cursor is there. A heavy barrier comes next, then another look at the cursor (H2).
    pub(crate) fn want(&self, at: u64) {
        // ORDERING: Relaxed, for the barriers.
        let before = self.told.0.wanted.load(Ordering::Relaxed);
        self.told.0.wanted.store(at.min(before), Ordering::Relaxed);
    }

    pub(crate) fn want_nothing(&self) {
        // ORDERING: Relaxed: under the lock.
        self.told.0.wanted.store(NONE, Ordering::Relaxed);
    }

    pub(crate) fn set_bound(&self, bound: u64) {
        // ORDERING: Relaxed: before `tail` is published beyond it (H3).
        self.told.0.bound.store(bound, Ordering::Relaxed);
    }

    /// Nothing from `tail` on is accepted.
    pub(crate) fn shut(&self, tail: u64) {
        // ORDERING: Relaxed: written under the lock only.
        if self.told.0.shut.load(Ordering::Relaxed) == NONE {
            let accepted = tail - self.told.0.offset.load(Ordering::Relaxed);
            // ORDERING: Release pairs with the Acquire in `accepted`.
            self.told.0.shut.store(accepted, Ordering::Release);
        }
    }

    /// Everything from `tail` on is accepted again.
    pub(crate) fn open(&self, tail: u64) {
        // ORDERING: Relaxed: written under the lock only.
        let accepted = self.told.0.shut.load(Ordering::Relaxed);
        // ORDERING: Release pairs with the Acquire in `accepted`, both: who sees it open sees the new offset.
        self.told.0.offset.store(tail - accepted, Ordering::Release);
        self.told.0.shut.store(NONE, Ordering::Release);
    }

    /// Nothing from `tail` on is offered.
    pub(crate) fn leave(&self, tail: u64) {
        self.shut(tail);
        // ORDERING: Release pairs with the Acquire in `counts`.
        self.told.0.left.store(tail, Ordering::Release);
    }

    // Anybody's.

    /// How many messages were accepted, and how many were missed because it had too many. Neither ever falls.
    pub(crate) fn accounts(&self) -> (u64, u64) {
        loop {
            // ORDERING: Acquire pairs with the Releases in `shut` and `open`.
            let shut = self.told.0.shut.load(Ordering::Acquire);
            if shut != NONE {
                // ORDERING: Acquire pairs with the Release in `leave`.
                let end = self.told.0.left.load(Ordering::Acquire).min(self.published.tail());
                if self.told.0.shut.load(Ordering::Acquire) == shut {
                    return (shut, (end - self.start).saturating_sub(shut));
                }
                continue;
            }
            let offset = self.told.0.offset.load(Ordering::Acquire);
            let tail = self.published.tail();
            // Else the offset may be an old one, or the tail too new. After `tail`, whose load is an Acquire.
            if self.told.0.shut.load(Ordering::Acquire) == NONE && self.told.0.offset.load(Ordering::Acquire) == offset
            {
                return (tail.saturating_sub(offset), offset - self.start);
            }
        }
    }

    fn stand(&self) -> Stand {
        let set_back = || {
            // ORDERING: Acquire pairs with the Releases in `set_back`: who sees one of them does not see a phase before it.
            (self.own.0.failed.load(Ordering::Acquire), self.own.0.jumped.load(Ordering::Acquire))
        };
        let mut looks = 0_u32;
        loop {
            let before = set_back();
            // ORDERING: Acquire pairs with the Releases of the subscriber: what `set_back` wrote before it is seen below.
            let phase = self.own.0.phase.load(Ordering::Acquire);
            // The same before and after: so it was at that moment. It seldom changes, so this ends, however fast the phase does.
            if phase != NONE && set_back() == before {
                let (failed, jumped) = before;
                return Stand { served: phase / 2, in_callback: phase % 2, failed, jumped };
            }
            // It is a few instructions away, unless its thread was put aside among them.
            looks += 1;
            if looks < 64 { spin_loop() } else { yield_now() }
        }
    }

    /// Served, begun, accepted and missed so far: none exceeds its cause.
    pub(crate) fn counts(&self) -> [u64; 4] {
        let Stand { served, in_callback, failed, .. } = self.stand();
        let (accepted, missed) = self.accounts();
        [served, served + failed + in_callback, accepted, missed]
    }
}
