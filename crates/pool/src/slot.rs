//! Where connections lie, and who may touch them. Beside a system call in `fork.rs` the only unsafe code of the crate.
//!
//! A slot is a word of state and a cell for one connection. The word says who owns the cell:
//!
//! - **S1** The cell belongs to whoever took the slot from `IDLE` to `OUT` (a caller) or from `IDLE` or `EMPTY` to `TAKEN` (the pool, under
//!   its lock), until that one moves it on. The right is a value, [`Out`] or [`Taken`], which cannot be cloned.
//! - **S2** Without the lock there are three steps: `IDLE` to `OUT` ([`Slot::try_take`]), `OUT` to `IDLE` ([`Out::try_give`]), and `OUT` to
//!   `TAKEN` ([`Out::into_taken`]) for a connection that does not come back. The first two are a compare-and-swap that fails if [`SLOW`]
//!   is set: then the way leads through the lock.
//! - **S3** `SLOW` is set under the lock only, and cleared by who takes the slot, gives it back open, or ends it; never by `try_take` and
//!   `try_give`.
//! - **S4** There is a connection in the cell in `IDLE` and `OUT`, none in `EMPTY`. In `TAKEN` its owner knows.
//! - **S5** A connection in a cell holds a handle of the pool's shared state, in which the slot is. So whoever owns a connection in a cell
//!   can reach the slot, and who has given it up does not touch the slot any more.
//! - **S6** What a thread remembers as its last slot under a pool's number is a slot of that pool. No two pools of a process have the same
//!   number.

use std::mem;
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use fullbore_core::shim::{AtomicU32, Ordering, UnsafeCell};

use crate::checkout::Shared;
use crate::hot;
use crate::leak::LeaseCell;
use crate::manager::{Key, KeyedManager};

const EMPTY: u32 = 0;
const IDLE: u32 = 1;
const OUT: u32 = 2;
const TAKEN: u32 = 3;
const STATE: u32 = 3;
/// Whoever wants to take or give this one back has to come by the lock.
const SLOW: u32 = 4;

/// A connection with what the pool knows about it.
pub(crate) struct Held<K: Key, M: KeyedManager<K>> {
    pub(crate) key: K,
    pub(crate) connection: M::Connection,
    pub(crate) id: u64,
    pub(crate) created: Instant,
    /// How often it was returned.
    pub(crate) uses: u64,
    /// The pool's count of soft evictions when it was made.
    pub(crate) epoch: u64,
    /// The pool's count of lost trust when it was last known to be good.
    pub(crate) trusted: u64,
    /// Its last holder panicked: it is to be checked, whenever that was.
    pub(crate) suspect: bool,
    /// S5.
    pub(crate) pool: Arc<Shared<K, M>>,
}

/// See the module.
#[repr(align(128))]
pub(crate) struct Slot<K: Key, M: KeyedManager<K>> {
    state: AtomicU32,
    number: u32,
    // What others look at to choose; who relies on it owns the slot, and the state's order covers it.
    /// The hash of its connection's key.
    tag: AtomicU64,
    /// When it came back last, or was made, in nanoseconds of the clock's coarse time.
    last_used: AtomicU64,
    /// When it was checked last while it was idle, likewise.
    checked: AtomicU64,
    /// When its connection has to go, likewise.
    retire_at: AtomicU64,
    /// Its connection's number.
    id: AtomicU64,
    pub(crate) lease: LeaseCell,
    cell: UnsafeCell<Option<Held<K, M>>>,
}

// SAFETY: S1: the cell is used by one thread at a time, its owner; the order between owners is that of the state's
// compare-and-swaps (Release to give, Acquire to take) or of the lock. `Held` may be sent: keys and connections are `Send`.
unsafe impl<K: Key, M: KeyedManager<K>> Sync for Slot<K, M> {}
// SAFETY: as above.
unsafe impl<K: Key, M: KeyedManager<K>> Send for Slot<K, M> {}

impl<K: Key, M: KeyedManager<K>> Slot<K, M> {
    fn new(number: u32) -> Self {
        Self {
            state: AtomicU32::new(EMPTY),
            number,
            tag: AtomicU64::new(0),
            last_used: AtomicU64::new(0),
            checked: AtomicU64::new(0),
            retire_at: AtomicU64::new(0),
            id: AtomicU64::new(0),
            lease: LeaseCell::default(),
            cell: UnsafeCell::new(None),
        }
    }

    pub(crate) fn number(&self) -> u32 {
        self.number
    }

    #[inline]
    pub(crate) fn tag(&self) -> u64 {
        self.tag.load(Relaxed)
    }

    #[inline]
    pub(crate) fn last_used(&self) -> u64 {
        self.last_used.load(Relaxed)
    }

    /// When it was last known to be good.
    pub(crate) fn last_seen(&self) -> u64 {
        self.last_used().max(self.checked.load(Relaxed))
    }

    /// Whether that is less than `within` ago.
    #[inline]
    pub(crate) fn is_recent(&self, now: u64, within: u64) -> bool {
        now.saturating_sub(self.last_used()) < within || now.saturating_sub(self.checked.load(Relaxed)) < within
    }

    /// Colder ones first: by their last use, and those of the same tick in the order in which they were made.
    pub(crate) fn warmth(&self) -> (u64, u64) {
        (self.last_used(), self.id.load(Relaxed))
    }

    #[inline]
    pub(crate) fn retire_at(&self) -> u64 {
        self.retire_at.load(Relaxed)
    }

    /// A caller takes it, without the lock. For one that is probably idle, and in this processor's cache.
    #[inline]
    pub(crate) fn try_take(&self) -> Option<Out<K, M>> {
        // ORDERING: Acquire: pairs with the Release of who gave it back, whose use of the connection comes before ours.
        let taken = self.state.compare_exchange(IDLE, OUT, Ordering::Acquire, Ordering::Relaxed).is_ok();
        taken.then(|| Out(NonNull::from(self)))
    }

    /// As [`try_take`](Self::try_take), for one of which nothing is known: a failed exchange would take the line from whoever has it.
    pub(crate) fn try_take_if_idle(&self) -> Option<Out<K, M>> {
        if self.state.load(Ordering::Relaxed) == IDLE { self.try_take() } else { None }
    }

    /// The thread shall find it again ([`Slots::recall`]). S6: `pool` is the number of the pool that it is in.
    #[inline]
    pub(crate) fn remember(&self, pool: u64) {
        hot::remember(pool, ptr::from_ref(self).cast());
    }

    /// A caller takes it, under the lock: also where the quick way is barred.
    pub(crate) fn take(&self) -> Option<Out<K, M>> {
        self.leave_idle(OUT).then(|| Out(NonNull::from(self)))
    }

    /// The pool takes it, under the lock.
    pub(crate) fn reserve(&self) -> Option<Taken<K, M>> {
        self.leave_idle(TAKEN).then(|| Taken(NonNull::from(self)))
    }

    fn leave_idle(&self, to: u32) -> bool {
        let mut seen = self.state.load(Ordering::Relaxed);
        while seen & STATE == IDLE {
            // ORDERING: Acquire: as in `try_take`.
            match self.state.compare_exchange(seen, to, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(now) => seen = now,
            }
        }
        false
    }

    /// The pool takes an empty one, under the lock.
    pub(crate) fn fill(&self) -> Taken<K, M> {
        let old = self.state.swap(TAKEN, Ordering::Acquire);
        debug_assert_eq!(old & STATE, EMPTY, "only free numbers are filled");
        Taken(NonNull::from(self))
    }

    /// Bars the quick ways of a slot that is not empty, under the lock. `true` if it was open until now and idle.
    pub(crate) fn bar(&self) -> bool {
        // ORDERING: SeqCst is not needed: this and the quick ways are exchanges of one word, which have one order.
        let seen = self.state.load(Ordering::Relaxed);
        if seen & SLOW != 0 || seen & STATE == EMPTY {
            return false;
        }
        let old = self.state.fetch_or(SLOW, Ordering::Relaxed);
        old & STATE == IDLE
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.state.load(Ordering::Relaxed) & STATE == IDLE
    }

    pub(crate) fn is_out(&self) -> bool {
        self.state.load(Ordering::Relaxed) & STATE == OUT
    }
}

/// A slot in the hands of a caller, with a connection in it. It has no destructor: who drops it loses a place.
#[must_use = "a slot that is dropped is lost"]
pub(crate) struct Out<K: Key, M: KeyedManager<K>>(NonNull<Slot<K, M>>);

/// A slot in the hands of the pool, with or without a connection.
#[must_use = "a slot that is dropped is lost"]
pub(crate) struct Taken<K: Key, M: KeyedManager<K>>(NonNull<Slot<K, M>>);

// SAFETY: they are the right to a cell (S1), which is exclusive like a `&mut Held`; `Held` is `Send`.
unsafe impl<K: Key, M: KeyedManager<K>> Send for Out<K, M> {}
// SAFETY: as above.
unsafe impl<K: Key, M: KeyedManager<K>> Send for Taken<K, M> {}
// SAFETY: `&Out` gives `&Held` and no more, as `&&mut Held` would. Keys are `Sync`, the pool's shared state is.
unsafe impl<K: Key, M: KeyedManager<K>> Sync for Out<K, M> where M::Connection: Sync {}

/// S4: no one makes an `Out` of an empty slot.
const FULL: &str = "there is a connection in a slot that is out";

impl<K: Key, M: KeyedManager<K>> Out<K, M> {
    #[inline]
    pub(crate) fn slot(&self) -> &Slot<K, M> {
        // SAFETY: S5: the connection in the cell keeps the pool's shared state alive, and with it the slot.
        unsafe { self.0.as_ref() }
    }

    #[inline]
    pub(crate) fn held(&self) -> &Held<K, M> {
        // SAFETY: S1: `self` is the right to the cell, and is borrowed for as long.
        self.slot().cell.with(|cell| unsafe { (*cell).as_ref() }).expect(FULL)
    }

    #[inline]
    pub(crate) fn held_mut(&mut self) -> &mut Held<K, M> {
        // SAFETY: S1: `self` is the right to the cell, and is borrowed exclusively for as long. The slot is alive (S5).
        unsafe { self.0.as_ref() }.cell.with_mut(|cell| unsafe { (*cell).as_mut() }).expect(FULL)
    }

    /// Notes when it was used.
    #[inline]
    pub(crate) fn used(&self, now: u64) {
        self.slot().last_used.store(now, Relaxed);
    }

    /// Gives it back without the lock, if that way is open.
    #[inline]
    pub(crate) fn try_give(self) -> Result<(), Self> {
        // ORDERING: Release: pairs with the Acquire of who takes it next. The slot is not touched after it (S5).
        match self.slot().state.compare_exchange(OUT, IDLE, Ordering::Release, Ordering::Relaxed) {
            Ok(_) => Ok(()),
            Err(_) => Err(self),
        }
    }

    /// Gives it back, under the lock. `open` says whether the quick ways are open again.
    pub(crate) fn give(self, open: bool) {
        // ORDERING: Release: as in `try_give`.
        self.slot().state.store(if open { IDLE } else { IDLE | SLOW }, Ordering::Release);
    }

    /// The pool takes it over, to end it. The caller of this has to see to the pool's being kept alive.
    pub(crate) fn into_taken(self) -> Taken<K, M> {
        // ORDERING: Relaxed: who owns it stays the same. Under the lock or not: nobody else leaves `OUT`, and what is lost
        // with `SLOW` concerned its way back, which there is none of.
        self.slot().state.store(TAKEN, Ordering::Relaxed);
        Taken(self.0)
    }
}

impl<K: Key, M: KeyedManager<K>> Taken<K, M> {
    /// # Safety
    /// The pool's shared state must be alive: all callers are methods of it, or have a handle in hand.
    unsafe fn slot(&self) -> &Slot<K, M> {
        // SAFETY: the caller's promise.
        unsafe { self.0.as_ref() }
    }

    pub(crate) fn number(&self, _alive: &Shared<K, M>) -> u32 {
        // SAFETY: the borrow is a handle of the shared state.
        unsafe { self.slot() }.number
    }

    /// What is in it, for a check.
    pub(crate) fn held_mut(&mut self, _alive: &Shared<K, M>) -> Option<&mut Held<K, M>> {
        // SAFETY: S1, and the borrow is a handle of the shared state.
        unsafe { self.0.as_ref() }.cell.with_mut(|cell| unsafe { (*cell).as_mut() })
    }

    /// Takes the connection out.
    pub(crate) fn empty(&mut self, _alive: &Shared<K, M>) -> Option<Held<K, M>> {
        // SAFETY: S1, and the borrow is a handle of the shared state.
        unsafe { self.0.as_ref() }.cell.with_mut(|cell| unsafe { mem::take(&mut *cell) })
    }

    /// Puts a connection in and makes it an idle one, under the lock.
    pub(crate) fn put(self, alive: &Shared<K, M>, held: Held<K, M>, tag: u64, now: u64, retire_at: u64, open: bool) {
        // SAFETY: the borrow is a handle of the shared state.
        let slot = unsafe { self.slot() };
        slot.tag.store(tag, Relaxed);
        slot.id.store(held.id, Relaxed);
        slot.retire_at.store(retire_at, Relaxed);
        slot.last_used.store(now, Relaxed);
        // SAFETY: S1.
        let old = slot.cell.with_mut(|cell| unsafe { (*cell).replace(held) });
        debug_assert!(old.is_none(), "a connection is put into an empty slot");
        self.give(alive, open);
    }

    /// It is idle again, under the lock.
    pub(crate) fn give(self, _alive: &Shared<K, M>, open: bool) {
        // SAFETY: the borrow is a handle of the shared state.
        let slot = unsafe { self.slot() };
        // ORDERING: Release: pairs with the Acquire of who takes it next.
        slot.state.store(if open { IDLE } else { IDLE | SLOW }, Ordering::Release);
    }

    /// As [`give`](Self::give), after it was checked at `now`.
    pub(crate) fn give_checked(self, alive: &Shared<K, M>, now: u64, open: bool) {
        // SAFETY: the borrow is a handle of the shared state.
        unsafe { self.slot() }.checked.store(now, Relaxed);
        self.give(alive, open);
    }

    /// Nothing is in it, under the lock.
    pub(crate) fn vacate(self, _alive: &Shared<K, M>) {
        // SAFETY: the borrow is a handle of the shared state.
        let slot = unsafe { self.slot() };
        slot.tag.store(0, Relaxed);
        slot.state.store(EMPTY, Ordering::Release);
    }
}

/// The first segment has so many slots, each further one twice as many as the one before.
const FIRST: usize = 8;
const SEGMENTS: usize = 28;

type Segment<K, M> = Box<[Slot<K, M>]>;

/// Slots by number, never moved, made as they are needed.
pub(crate) struct Slots<K: Key, M: KeyedManager<K>> {
    segments: [OnceLock<Segment<K, M>>; SEGMENTS],
}

impl<K: Key, M: KeyedManager<K>> Slots<K, M> {
    /// The most there can be.
    pub(crate) const MOST: usize = FIRST * ((1 << SEGMENTS) - 1);

    pub(crate) fn new() -> Self {
        Self { segments: [const { OnceLock::new() }; SEGMENTS] }
    }

    /// Which segment, which slot in it, how long it is.
    #[inline]
    fn place(number: u32) -> (usize, usize, usize) {
        let n = number as usize / FIRST + 1;
        let segment = n.ilog2() as usize;
        let start = FIRST * ((1 << segment) - 1);
        (segment, number as usize - start, FIRST << segment)
    }

    /// The slot of this pool that the thread had last.
    #[inline]
    pub(crate) fn recall(&self, pool: u64) -> Option<&Slot<K, M>> {
        // SAFETY: (S6) pools have different numbers, so who remembered something under this one did it with a slot of these, which
        // are there as long as `self`, and never moved.
        hot::last(pool).map(|slot| unsafe { &*slot.cast::<Slot<K, M>>() })
    }

    #[inline]
    pub(crate) fn get(&self, number: u32) -> Option<&Slot<K, M>> {
        let (segment, at, _) = Self::place(number);
        self.segments.get(segment)?.get()?.get(at)
    }

    /// The slot of this number, made if it is not there.
    pub(crate) fn make(&self, number: u32) -> &Slot<K, M> {
        let (segment, at, len) = Self::place(number);
        let slots = self.segments[segment].get_or_init(|| {
            let first = number - at as u32;
            (0..len as u32).map(|n| Slot::new(first + n)).collect()
        });
        &slots[at]
    }

    /// All there are, by number, those included that are empty.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Slot<K, M>> {
        self.segments.iter().map_while(OnceLock::get).flatten()
    }
}
