//! One sending thread's way in: a ring with a claim, and a limit that says how far it may go without asking.
//!
//! Owner, without any lock:                       The intake, under its lock, to stop it:
//!
//! ```text
//! claim = tail + 1                               limit = tail
//! light barrier                                  heavy barrier
//! tail < limit? else claim = tail, and ask       wait until claim == tail
//! write the item
//! tail = tail + 1
//! ```
//!
//! Invariants:
//!
//! - **L1** `tail <= granted`, and `granted` (which only the intake knows, under its lock) `>= limit`.
//! - **L2** After [`stop`](Lane::stop) and [`settle`](Lane::settle) the owner is not on its way: `tail` stands still until
//!   [`grant`](Lane::grant). For either the owner saw the lowered limit, or the heavy barrier has made its claim visible, and `settle`
//!   has waited until it was kept or withdrawn. Between the two the owner runs no code of the user, and needs no lock.
//! - **L3** `granted - freed <= len` of the ring, where all positions below `freed` are read.

use std::ops::Range;
use std::sync::OnceLock;
use std::time::Instant;

use fullbore_core::barrier::Barrier;

use super::ring::{BLOCK, Ring};
use crate::sync::{AtomicU64, Ordering, spin_loop, yield_now};

/// Apart from what other threads write, and from the line that processors fetch along.
#[repr(align(128))]
pub(super) struct Apart<T>(pub(super) T);

/// For items `T`, some of which have an extra `E` with them.
pub(crate) struct Lane<T, E> {
    own: Apart<Own>,
    theirs: Apart<Theirs>,
    barrier: Barrier,
    index: usize,
    ring: Ring<T>,
    /// What some positions have with them, in order. Made when the first one comes.
    extras: OnceLock<Ring<(u64, E)>>,
}

/// Written by the owner.
struct Own {
    /// Positions published.
    tail: AtomicU64,
    /// `tail`, or one more while the owner is about to publish.
    claim: AtomicU64,
    /// Extras written; published with `tail`.
    extras: AtomicU64,
}

/// Written under the intake's lock.
struct Theirs {
    /// From this position on the owner has to ask.
    limit: AtomicU64,
    /// Positions read.
    head: AtomicU64,
}

impl<T: Send, E: Send> Lane<T, E> {
    pub(super) fn new(barrier: Barrier, len: usize, index: usize) -> Self {
        Self {
            own: Apart(Own { tail: AtomicU64::new(0), claim: AtomicU64::new(0), extras: AtomicU64::new(0) }),
            theirs: Apart(Theirs { limit: AtomicU64::new(0), head: AtomicU64::new(0) }),
            barrier,
            index,
            ring: Ring::new(len),
            extras: OnceLock::new(),
        }
    }
}

impl<T, E> Lane<T, E> {
    /// Its place in the intake's list.
    pub(super) fn index(&self) -> usize {
        self.index
    }

    /// How many items can be in it.
    pub(super) fn len(&self) -> u64 {
        self.ring.len()
    }

    /// A position for the owner's next item, to be [`fill`](Self::fill)ed at once; none if the limit is reached. In two steps, so that
    /// a large item is moved once, from its sender into its slot.
    ///
    /// # Safety
    /// Only on the thread that the lane belongs to.
    #[inline(always)]
    pub(super) unsafe fn claim(&self) -> Option<u64> {
        // ORDERING: Relaxed: this thread's own.
        let tail = self.own.0.tail.load(Ordering::Relaxed);
        // ORDERING: Relaxed: the barriers order it before the load of `limit` (L2).
        self.own.0.claim.store(tail + 1, Ordering::Relaxed);
        self.barrier.light();
        // ORDERING: Relaxed: only this thread raises it, in `grant`; the barriers order it after the claim (L2).
        if tail >= self.theirs.0.limit.load(Ordering::Relaxed) {
            // ORDERING: Release pairs with the Acquire in `settle`.
            self.own.0.claim.store(tail, Ordering::Release);
            return None;
        }
        Some(tail)
    }

    /// Puts an item into the position that was claimed.
    ///
    /// # Safety
    /// Only on the thread that the lane belongs to, with what [`claim`](Self::claim) has just said, once.
    #[inline(always)]
    pub(super) unsafe fn fill(&self, tail: u64, item: T, now: impl FnOnce() -> Instant) {
        // ORDERING: Acquire pairs with the Release in `free`: the stamps before it were read, too (U4).
        if tail.is_multiple_of(BLOCK) || self.theirs.0.head.load(Ordering::Acquire) == tail {
            // SAFETY: not published yet, and the block's first or the only one (U4).
            unsafe { self.stamp(tail, now) };
        }
        // SAFETY: below the limit (U3), and `tail` only grows (U1).
        unsafe { self.ring.write(tail, item) };
        // ORDERING: Release pairs with the Acquire in `tail`: who sees it sees the item (U2).
        self.own.0.tail.store(tail + 1, Ordering::Release);
    }

    /// # Safety
    /// As `Ring::stamp`.
    #[cold]
    #[inline(never)]
    unsafe fn stamp(&self, tail: u64, now: impl FnOnce() -> Instant) {
        // SAFETY: as the caller says.
        unsafe { self.ring.stamp(tail, now()) };
    }

    /// Puts down what the item has with it, before the position is filled.
    ///
    /// # Safety
    /// As [`fill`](Self::fill), once for a position.
    pub(super) unsafe fn put_extra(&self, position: u64, extra: E) {
        // As many as there can be positions: U3 for these follows from that for the items.
        let extras = self.extras.get_or_init(|| Ring::of(self.ring.len()));
        // ORDERING: Relaxed: this thread's own.
        let written = self.own.0.extras.load(Ordering::Relaxed);
        // SAFETY: not more extras than positions are written and not read, and this one is written once.
        unsafe { extras.write(written, (position, extra)) };
        // ORDERING: Release pairs with the Acquire in `extras_before`.
        self.own.0.extras.store(written + 1, Ordering::Release);
    }

    /// Positions published.
    #[inline]
    pub(super) fn tail(&self) -> u64 {
        // ORDERING: Acquire pairs with the Release in `fill`.
        self.own.0.tail.load(Ordering::Acquire)
    }

    /// Lets the owner, which is the caller, go on up to `limit`, which L3 allows. Under the intake's lock.
    pub(super) fn grant(&self, limit: u64) {
        // ORDERING: Relaxed: the caller's own from now on. That the slots are free (U3) it has from the lock.
        self.theirs.0.limit.store(limit, Ordering::Relaxed);
    }

    /// The first half of stopping the owner. Under the intake's lock; a heavy barrier and [`settle`](Self::settle) come next.
    pub(super) fn stop(&self) {
        // ORDERING: Relaxed: nothing is handed over, and the barriers order it before the load of `claim` (L2).
        self.theirs.0.limit.store(self.tail(), Ordering::Relaxed);
    }

    /// The second half: waits until the owner has kept its claim or withdrawn it. Where `tail` stands then.
    pub(super) fn settle(&self) -> u64 {
        let mut looks = 0_u32;
        loop {
            // ORDERING: Acquire pairs with the Release that withdraws it.
            let claim = self.own.0.claim.load(Ordering::Acquire);
            let tail = self.tail();
            if claim == tail {
                return tail;
            }
            // It is a few instructions away, unless its thread was put aside among them.
            looks += 1;
            if looks < 64 { spin_loop() } else { yield_now() }
        }
    }

    /// The extras of the positions before `to`, from number `from` on.
    ///
    /// # Safety
    /// Under the intake's lock; none of them is promised yet, and `to` is not beyond `tail`.
    pub(super) unsafe fn extras_before(&self, from: u64, to: u64) -> Range<u64> {
        // ORDERING: Acquire pairs with the Release in `put_extra`. `tail` was read before, so none is missing.
        let written = self.own.0.extras.load(Ordering::Acquire);
        let mut end = from;
        if let Some(extras) = self.extras.get() {
            // SAFETY: written, and promised to nobody.
            while end < written && unsafe { extras.peek(end, |(position, _)| *position < to) } {
                end += 1;
            }
        }
        from..end
    }

    /// Moves the items of `positions` out, and the extras in `extras` with the number of the item, counted from the items that
    /// are there before. The noted instants of acceptance go to `at`.
    ///
    /// # Safety
    /// The intake has promised these positions, which are below `tail`, and their extras to the caller and to nobody else, once.
    pub(super) unsafe fn read(
        &self,
        positions: Range<u64>,
        extras: Range<u64>,
        items: &mut Vec<T>,
        with: &mut Vec<(usize, E)>,
        at: impl FnMut(u64, Instant),
    ) {
        // SAFETY: published and not read; the items come after their stamps (U4).
        unsafe { self.ring.stamps_of(positions.clone(), at) };
        let before = items.len() as u64;
        if let Some(ring) = self.extras.get() {
            for number in extras {
                // SAFETY: published with an item of these, and promised to this caller (U1, U2).
                let (position, extra) = unsafe { ring.read(number) };
                with.push(((before + position - positions.start) as usize, extra));
            }
        }
        // SAFETY: published (U2), and promised to this caller (U1).
        unsafe { self.ring.read_all(positions, items) };
    }

    /// The same, one by one: an item, its extra, and the instant of its acceptance if that was noted.
    ///
    /// # Safety
    /// As [`read`](Self::read).
    pub(super) unsafe fn read_each(
        &self,
        positions: Range<u64>,
        mut extras: Range<u64>,
        mut each: impl FnMut(T, Option<E>, Option<Instant>),
    ) {
        let first = positions.start;
        for position in positions {
            let noted = position == first || position.is_multiple_of(BLOCK);
            // SAFETY: published and not read (U4).
            let at = if noted { unsafe { self.ring.stamp_of(position) } } else { None };
            let extra = self.extras.get().and_then(|ring| {
                // SAFETY: published with an item of these, and promised to this caller (U1, U2).
                let is_its = !extras.is_empty() && unsafe { ring.peek(extras.start, |(of, _)| *of == position) };
                // SAFETY: as above.
                is_its.then(|| unsafe { ring.read(extras.start) }.1)
            });
            extras.start += u64::from(extra.is_some());
            // SAFETY: published (U2), and promised to this caller (U1).
            each(unsafe { self.ring.read(position) }, extra, at);
        }
    }

    /// All positions below `head` are read, and nobody reads one. Under the intake's lock.
    pub(super) fn free(&self, head: u64) {
        // ORDERING: Release pairs with the Acquire in `fill`.
        self.theirs.0.head.store(head, Ordering::Release);
    }

    /// When the position `head` was accepted, if that was noted.
    ///
    /// # Safety
    /// Under the intake's lock, for a position below `tail` that is not promised.
    pub(super) unsafe fn stamp_of_first(&self, head: u64) -> Option<Instant> {
        // SAFETY: published and not read (U4).
        unsafe { self.ring.stamp_of(head) }
    }
}
