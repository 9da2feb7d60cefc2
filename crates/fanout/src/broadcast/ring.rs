//! Where the messages are. The only unsafe code of the crate.
//!
//! Messages are numbered from 0 on. They live in blocks of `len` slots; the block of number `n` begins at `n - n % len`, and is at place
//! `n / len % places` of the table, until the block that comes `places` later takes that place. Invariants:
//!
//! - **B1** Slots are written by who has the [`Writer`], of which a ring has one: each number once, in order, before `tail` is published
//!   beyond it.
//! - **B2** A slot is read only by who has pinned its block, and has seen a `tail` beyond its number: a [`Reader`] knows both. It is
//!   not written again as long as the pin is there (B3).
//! - **B3** A block gets another first number, or has its messages dropped, only once it is out of the table and then was found without
//!   a pin. Pins are made of blocks in the table, under the table's lock, and by whoever took the block out, before he looks for pins;
//!   so none comes after that.
//! - **B4** In a block that nobody writes, the slots below `filled` hold a message, and the others do not.

use std::mem::{self, MaybeUninit};
use std::sync::Arc;
use std::sync::atomic::AtomicU64 as PlainU64;
use std::time::{Duration, Instant};

use fullbore_core::{Clock, Monitor, contain};

use super::sync::{AtomicU64, Ordering, UnsafeCell};

/// Apart from what other threads write, and from the line that processors fetch along.
#[derive(Debug)]
#[repr(align(128))]
pub(crate) struct Apart<T>(pub(crate) T);

/// How many messages are published: the first number that cannot be read yet.
#[derive(Debug)]
pub(crate) struct Published(Apart<AtomicU64>);

impl Published {
    #[inline]
    pub(crate) fn tail(&self) -> u64 {
        // ORDERING: Acquire pairs with the Release in `Writer::publish`: who sees a number sees the messages below it (B2).
        self.0.0.load(Ordering::Acquire)
    }
}

/// The blocks of a broadcast.
pub(crate) struct Ring<T> {
    published: Arc<Published>,
    table: Monitor<Vec<Option<Arc<Block<T>>>>>,
    /// Slots of a block, a power of two.
    len: u64,
    /// So that a held pin does not get to the reader of another ring.
    id: u64,
    born: Instant,
}

struct Block<T> {
    ring: u64,
    /// Number of the message in slot 0. Written while nobody else can look (B3).
    first: AtomicU64,
    /// Readers that may touch slots.
    pins: AtomicU64,
    /// See B4.
    filled: AtomicU64,
    /// When slot 0 was written: nanoseconds since `Ring::born`.
    stamp: AtomicU64,
    slots: Box<[UnsafeCell<MaybeUninit<T>>]>,
}

// SAFETY: a block hands messages from thread to thread (`T: Send`), and lets many look at one at a time (`T: Sync`), which is why a ring
// can only be made for such messages (`Ring::new`). Who may touch a slot is settled by B1 to B3.
unsafe impl<T> Send for Block<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Block<T> {}

impl<T> Block<T> {
    /// Drops the messages in it. Their destructors are the user's.
    ///
    /// # Safety
    /// Nobody else touches the slots, and nobody writes the block (B3, B4).
    unsafe fn clear(&self) {
        // ORDERING: Relaxed: the caller has the block for himself.
        let filled = self.filled.load(Ordering::Relaxed);
        self.filled.store(0, Ordering::Relaxed);
        if !mem::needs_drop::<T>() {
            return;
        }
        for slot in &self.slots[..filled as usize] {
            // SAFETY: it holds a message (B4), which is dropped once: `filled` says so already.
            let drop_it = || slot.with_mut(|message| unsafe { (*message).assume_init_drop() });
            // The panic hook has told of it, and there is nobody else to tell.
            drop(contain(drop_it));
        }
    }
}

impl<T> Drop for Block<T> {
    fn drop(&mut self) {
        // ORDERING: Acquire pairs with the Release in the drop of each pin; for the models, which do not see what `Arc` does.
        let pins = self.pins.load(Ordering::Acquire);
        debug_assert_eq!(pins, 0, "a pin has a reference of its own");
        // SAFETY: this is the last reference, and the writer sets `filled` before it gives up its own.
        unsafe { self.clear() };
    }
}

impl<T: Send + Sync> Ring<T> {
    /// A ring that keeps the last `capacity` messages at least, in blocks of `len` (a power of two), and its writer.
    pub(crate) fn new(capacity: u64, len: u64, clock: Clock) -> (Arc<Self>, Writer<T>) {
        static NEXT: PlainU64 = PlainU64::new(0);
        assert!(len.is_power_of_two(), "the number of slots is a mask");
        // One more than the messages fill: who is in the oldest block that counts is not in the way of the next.
        let places = capacity.div_ceil(len) + 1;
        let born = clock.now();
        let ring = Arc::new(Self {
            published: Arc::new(Published(Apart(AtomicU64::new(0)))),
            table: Monitor::new((0..places).map(|_| None).collect(), clock),
            len,
            // ORDERING: Relaxed: only has to be different each time.
            id: NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed),
            born,
        });
        let writer = Writer { ring: Arc::clone(&ring), block: None, tail: 0, end: 0 };
        (ring, writer)
    }
}

impl<T> Ring<T> {
    pub(crate) fn published(&self) -> &Arc<Published> {
        &self.published
    }

    /// The first number in the block of this one.
    pub(crate) fn first_of(&self, number: u64) -> u64 {
        number & !(self.len - 1)
    }

    fn since_born(&self) -> u64 {
        u64::try_from(self.table.clock().now().saturating_duration_since(self.born).as_nanos()).unwrap_or(u64::MAX)
    }

    /// Memory for one more block.
    pub(crate) fn fresh(&self) -> Vacant<T> {
        Vacant(Arc::new(Block {
            ring: self.id,
            first: AtomicU64::new(0),
            pins: AtomicU64::new(0),
            filled: AtomicU64::new(0),
            stamp: AtomicU64::new(0),
            slots: (0..self.len).map(|_| UnsafeCell::new(MaybeUninit::uninit())).collect(),
        }))
    }
}

/// Puts messages in. There is one for each ring.
pub(crate) struct Writer<T> {
    ring: Arc<Ring<T>>,
    block: Option<Arc<Block<T>>>,
    /// The next number.
    tail: u64,
    /// The first number that has no slot in the present block.
    end: u64,
}

impl<T> Writer<T> {
    /// The first number that needs a new block.
    pub(crate) fn end(&self) -> u64 {
        self.end
    }

    /// Writes the next message; [`publish`](Self::publish) lets it be seen.
    ///
    /// # Panics
    /// If the block is full.
    #[inline]
    pub(crate) fn put(&mut self, message: T) {
        let Some(block) = self.block.as_ref().filter(|_| self.tail < self.end) else { panic!("the block is full") };
        let slot = &block.slots[(self.tail & (self.ring.len - 1)) as usize];
        // SAFETY: this is the only writer (B1), the number is not published, so nobody reads the slot (B2), and it is empty: the
        // block was when it was entered, and numbers only grow.
        slot.with_mut(|slot| unsafe { (*slot).write(message) });
        self.tail += 1;
    }

    /// Writes the next `n` of these in one piece.
    ///
    /// # Panics
    /// If there are not so many, or the block has no room for them.
    pub(crate) fn put_from(&mut self, messages: &mut Moving<'_, T>, n: usize) {
        assert!(n as u64 <= self.end - self.tail && n <= messages.left(), "as many as there are and fit");
        let Some(block) = self.block.as_ref() else { panic!("the block is full") };
        let at = (self.tail & (self.ring.len - 1)) as usize;
        let slots = &block.slots[at..at + n];
        #[cfg(fullbore_loom)]
        // One by one, so that loom sees each.
        for (n, slot) in slots.iter().enumerate() {
            // SAFETY: as below.
            slot.with_mut(|slot| unsafe { (*slot).write(messages.front().add(n).read()) });
        }
        #[cfg(not(fullbore_loom))]
        // SAFETY: the slots are free, as in `put`, and there are `n` of them and of messages, as asserted. The slots' type is
        // transparent over `T`: `UnsafeCell` in `UnsafeCell` in `MaybeUninit`. The messages are moved: they are counted below.
        unsafe {
            std::ptr::copy_nonoverlapping(messages.front(), slots.as_ptr().cast::<T>().cast_mut(), n);
        }
        messages.at += n;
        self.tail += n as u64;
    }

    /// Lets everybody see what was written.
    #[inline]
    pub(crate) fn publish(&self) {
        // ORDERING: Release pairs with the Acquire in `Published::tail`.
        self.ring.published.0.0.store(self.tail, Ordering::Release);
    }

    /// At the end of a block: takes the one whose place the next will have out of the table.
    pub(crate) fn take_old(&mut self) -> Option<Taken<T>> {
        if self.tail < self.end {
            return None;
        }
        if let Some(full) = self.block.take() {
            // ORDERING: Relaxed: whoever has the block for himself later has it by a lock or an `Arc` (B3).
            full.filled.store(self.ring.len, Ordering::Relaxed);
        }
        let mut table = self.ring.table.lock();
        let place = (self.tail / self.ring.len) as usize % table.len();
        table[place].take().map(Taken)
    }

    /// At the end of a block, with the old one taken out: goes on in this one.
    pub(crate) fn enter(&mut self, vacant: Vacant<T>) {
        debug_assert!(self.tail == self.end, "the block is full");
        let block = vacant.0;
        // ORDERING: Relaxed: the block is nobody else's yet, and gets to others through the table's lock.
        block.first.store(self.tail, Ordering::Relaxed);
        block.stamp.store(self.ring.since_born(), Ordering::Relaxed);
        let mut table = self.ring.table.lock();
        let place = (self.tail / self.ring.len) as usize % table.len();
        debug_assert!(table[place].is_none(), "the old block was taken out");
        table[place] = Some(Arc::clone(&block));
        drop(table);
        self.block = Some(block);
        self.end = self.tail + self.ring.len;
    }
}

impl<T> Drop for Writer<T> {
    fn drop(&mut self) {
        if let Some(block) = self.block.take() {
            // ORDERING: Relaxed: the others get it from the drop of this reference.
            block.filled.store(self.ring.len - (self.end - self.tail), Ordering::Relaxed);
        }
    }
}

/// A vector whose messages are moved out from the front. What is left stays in it.
pub(crate) struct Moving<'a, T> {
    /// Its length is 0 meanwhile: those from `at` to `len` are this one's.
    messages: &'a mut Vec<T>,
    at: usize,
    len: usize,
}

impl<'a, T> Moving<'a, T> {
    pub(crate) fn new(messages: &'a mut Vec<T>) -> Self {
        let len = messages.len();
        // SAFETY: shorter than it is. If this one is forgotten, the messages are, too.
        unsafe { messages.set_len(0) };
        Self { messages, at: 0, len }
    }

    /// How many are left.
    pub(crate) fn left(&self) -> usize {
        self.len - self.at
    }

    fn front(&self) -> *const T {
        // SAFETY: within the vector's memory, or just behind it.
        unsafe { self.messages.as_ptr().add(self.at) }
    }
}

impl<T> Drop for Moving<'_, T> {
    fn drop(&mut self) {
        let left = self.left();
        let front = self.front();
        // SAFETY: the rest is moved to the beginning, as a whole, and belongs to the vector again; what is before it was moved out.
        unsafe {
            std::ptr::copy(front, self.messages.as_mut_ptr(), left);
            self.messages.set_len(left);
        }
    }
}

/// A block that was taken out of the table and that readers may still have.
pub(crate) struct Taken<T>(Arc<Block<T>>);

impl<T> Taken<T> {
    /// The numbers in it.
    pub(crate) fn numbers(&self) -> std::ops::Range<u64> {
        // ORDERING: Relaxed: written before the block came into the table, whose lock the caller had.
        let first = self.0.first.load(Ordering::Relaxed);
        first..first + self.0.slots.len() as u64
    }

    /// Keeps it for a reader that will want it (B3: before `empty`).
    pub(crate) fn pin(&self) -> Pin<T> {
        Pin::new(&self.0)
    }

    /// The block without its messages, whose destructors run; none if a reader has it: then they run when that lets go of it.
    pub(crate) fn empty(self) -> Option<Vacant<T>> {
        // ORDERING: Acquire pairs with the Release in the drop of each pin: who had one is through with the slots (B3).
        if self.0.pins.load(Ordering::Acquire) > 0 {
            return None;
        }
        // SAFETY: out of the table and without a pin (B3), and only full blocks are taken out (B4).
        unsafe { self.0.clear() };
        Some(Vacant(self.0))
    }
}

/// An empty block that is nobody's.
pub(crate) struct Vacant<T>(Arc<Block<T>>);

/// Keeps a block as it is.
pub(crate) struct Pin<T>(Arc<Block<T>>);

impl<T> Pin<T> {
    fn new(block: &Arc<Block<T>>) -> Self {
        // ORDERING: Relaxed: under the table's lock, or by who took the block out and looks for pins himself (B3).
        block.pins.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(block))
    }

    /// The number of its first message.
    pub(crate) fn first(&self) -> u64 {
        // ORDERING: Relaxed: it does not change as long as there is a pin.
        self.0.first.load(Ordering::Relaxed)
    }
}

impl<T> Drop for Pin<T> {
    fn drop(&mut self) {
        // ORDERING: Release pairs with the Acquire of whoever looks for pins.
        self.0.pins.fetch_sub(1, Ordering::Release);
    }
}

/// Goes along the messages.
pub(crate) struct Reader<T> {
    ring: Arc<Ring<T>>,
    pin: Option<Pin<T>>,
    /// The slots of the pinned block; dangling without one.
    slots: *const UnsafeCell<MaybeUninit<T>>,
    mask: u64,
    /// The next number to be read.
    next: u64,
    /// All below this are published, and their block is pinned if they are not below `next`: the lesser of the next two, or 0.
    limit: u64,
    /// All below this are published.
    seen: u64,
    /// The first number beyond the pinned block, in which `next` is or has been; 0 without one.
    end: u64,
}

// SAFETY: what `slots` points to is the block's that it has pinned, which can be sent and shared as the messages can; the pointer is
// only used for what B2 allows.
unsafe impl<T: Send + Sync> Send for Reader<T> {}
// SAFETY: as above; through a shared reference messages can only be looked at.
unsafe impl<T: Send + Sync> Sync for Reader<T> {}

impl<T> Reader<T> {
    pub(crate) fn new(ring: &Arc<Ring<T>>, next: u64) -> Self {
        let (slots, mask) = (std::ptr::null(), ring.len - 1);
        Self { ring: Arc::clone(ring), pin: None, slots, mask, next, limit: 0, seen: next, end: 0 }
    }

    #[inline]
    pub(crate) fn next(&self) -> u64 {
        self.next
    }

    /// Whether there is a next message that it has seen, and the block of it is pinned.
    #[inline]
    pub(crate) fn is_ready(&self) -> bool {
        self.next < self.limit
    }

    /// How many messages can be read one after the other without looking again.
    #[inline]
    pub(crate) fn ready(&self) -> u64 {
        self.limit.saturating_sub(self.next)
    }

    /// Nothing is ready until the next look or [`resume`](Self::resume).
    pub(crate) fn hold(&mut self) {
        self.limit = 0;
    }

    /// What it has seen and pinned is ready.
    pub(crate) fn resume(&mut self) {
        self.limit = self.seen.min(self.end);
    }

    /// Whether it has seen more than it has read.
    pub(crate) fn has_seen_more(&self) -> bool {
        self.next < self.seen
    }

    /// Looks how far the messages go, and goes along with it up to `bound`.
    pub(crate) fn look(&mut self, bound: u64) {
        self.seen = self.ring.published.tail().min(bound).max(self.next);
        self.resume();
    }

    /// Shows the next message, which has to be ready.
    ///
    /// # Panics
    /// If it is not; if `f` does.
    #[inline(always)]
    pub(crate) fn with<R>(&self, f: impl FnOnce(&T) -> R) -> R {
        assert!(self.is_ready(), "a message is ready");
        // SAFETY: pinned, as `next` is below `end`: so the pointer is to its slots, of which there are `mask + 1`.
        let slot = unsafe { &*self.slots.add((self.next & self.mask) as usize) };
        // SAFETY: pinned, and published: `seen` never exceeds a tail that was loaded (B2), unless `next` does, too. `next` is in the
        // pinned block: below its end, and not below its first number, as it was not when the block was pinned, and only grows.
        slot.with(|slot| f(unsafe { (*slot).assume_init_ref() }))
    }

    /// Past the next message.
    #[inline]
    pub(crate) fn step(&mut self) {
        self.next += 1;
    }

    /// Goes forward to a number that is published.
    pub(crate) fn skip_to(&mut self, next: u64) {
        debug_assert!(next >= self.next, "numbers only grow");
        self.next = self.next.max(next);
        self.seen = self.seen.max(self.next);
        self.resume();
    }

    /// Pins the block of the next message. `false`: it is not in the table any more, or not yet.
    pub(crate) fn pin(&mut self) -> bool {
        let first = self.ring.first_of(self.next);
        let table = self.ring.table.lock();
        let place = (first / self.ring.len) as usize % table.len();
        // ORDERING: Relaxed: written before it came into the table.
        let is_it = |block: &&Arc<Block<T>>| block.first.load(Ordering::Relaxed) == first;
        let pin = table[place].as_ref().filter(is_it).map(Pin::new);
        drop(table);
        self.exchange(pin, first);
        self.pin.is_some()
    }

    /// As [`pin`](Self::pin), with a block that was kept.
    pub(crate) fn pin_kept(&mut self, kept: Pin<T>) -> bool {
        let first = self.ring.first_of(self.next);
        if kept.0.ring != self.ring.id || kept.first() != first {
            return false;
        }
        self.exchange(Some(kept), first);
        true
    }

    /// Lets go of the block.
    pub(crate) fn unpin(&mut self) {
        self.exchange(None, 0);
    }

    fn exchange(&mut self, pin: Option<Pin<T>>, first: u64) {
        self.slots = pin.as_ref().map_or(std::ptr::null(), |pin| pin.0.slots.as_ptr());
        self.end = if pin.is_some() { first + self.ring.len } else { 0 };
        let old = std::mem::replace(&mut self.pin, pin);
        self.resume();
        // It can be the last one, and its messages' destructors are the user's.
        drop(old);
    }

    /// How long ago the pinned block was begun, if the next message is the first in it.
    pub(crate) fn age_of_first(&self) -> Option<Duration> {
        let pin = self.pin.as_ref().filter(|pin| pin.first() == self.next)?;
        // ORDERING: Relaxed: written before the block came into the table.
        let stamp = pin.0.stamp.load(Ordering::Relaxed);
        Some(Duration::from_nanos(self.ring.since_born().saturating_sub(stamp)))
    }
}
