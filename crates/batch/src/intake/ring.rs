//! Places for items on their way from one thread to another. The only unsafe code of the crate.
//!
//! Positions count from 0 and never wrap; position `p` lives in slot `p % len`. The ring itself knows nothing of who may do what;
//! [`Lane`](super::lane::Lane) does, and keeps these invariants:
//!
//! - **U1** A position is written once, by the lane's owner thread, then read (moved out) once, by whom the intake has promised it
//!   under its lock.
//! - **U2** A position is read only after the owner has published it: the reader's Acquire load of `tail` shows a larger one.
//! - **U3** A position is written only after the one that had its slot before was read: it is below `limit`, which the owner has
//!   raised itself, under the lock, to no more than the ring's length beyond what was read.
//! - **U4** The same for the stamps: that of a position is read no later than the position itself, and there are twice as many stamps
//!   as blocks, so that no stamp of a position that may still be read shares its cell with one that may be written.

use std::mem::MaybeUninit;
use std::ops::Range;
use std::time::Instant;

use crate::sync::UnsafeCell;

/// One position in so many gets a stamp at least.
pub(super) const BLOCK: u64 = 64;
/// Memory for the items of one thread, within limits of their number.
const BYTES: usize = 256 << 10;

pub(super) struct Ring<T> {
    slots: Box<[UnsafeCell<MaybeUninit<T>>]>,
    stamps: Box<[UnsafeCell<Stamp>]>,
    mask: usize,
}

/// When a position was accepted.
#[derive(Clone, Copy)]
struct Stamp {
    position: u64,
    at: Option<Instant>,
}

// SAFETY: it hands items from thread to thread, which is why only a ring for items that are `Send` can be made (`new`), and
// never a reference to one; who may touch a slot is settled by U1 to U4.
unsafe impl<T> Send for Ring<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Ring<T> {}

impl<T: Send> Ring<T> {
    /// A ring for at most `wanted` items.
    pub(super) fn new(wanted: usize) -> Self {
        let fits = (BYTES / size_of::<T>().max(1)).clamp(16, 1024);
        Self::of(fits.min(wanted).max(1).next_power_of_two() as u64)
    }
}

impl<T> Ring<T> {
    /// A ring of so many slots, a power of two. Only for items that are `Send`.
    pub(super) fn of(len: u64) -> Self {
        let len = len as usize;
        let blocks = len.div_ceil(BLOCK as usize);
        Self {
            slots: (0..len).map(|_| UnsafeCell::new(MaybeUninit::uninit())).collect(),
            stamps: (0..2 * blocks).map(|_| UnsafeCell::new(Stamp { position: 0, at: None })).collect(),
            mask: len - 1,
        }
    }

    /// How many positions can be written and not read.
    pub(super) fn len(&self) -> u64 {
        self.slots.len() as u64
    }

    fn slot(&self, position: u64) -> &UnsafeCell<MaybeUninit<T>> {
        &self.slots[position as usize & self.mask]
    }

    fn stamp_cell(&self, position: u64) -> &UnsafeCell<Stamp> {
        &self.stamps[(position / BLOCK) as usize & (self.stamps.len() - 1)]
    }

    /// Writes a position.
    ///
    /// # Safety
    /// U1 and U3.
    #[inline]
    pub(super) unsafe fn write(&self, position: u64, item: T) {
        // SAFETY: nobody else is in this slot (U3), and what was there is moved out (U1).
        self.slot(position).with_mut(|slot| unsafe { (*slot).write(item) });
    }

    /// Moves an item out.
    ///
    /// # Safety
    /// U1 and U2.
    #[inline]
    pub(super) unsafe fn read(&self, position: u64) -> T {
        // SAFETY: it is written (U2), and this is the only time that it is read (U1).
        self.slot(position).with_mut(|slot| unsafe { (*slot).assume_init_read() })
    }

    /// Moves the items at these positions out, to the end of `into`: as one piece of memory, or two, so that the processor fetches
    /// all of it at once.
    ///
    /// # Safety
    /// U1 and U2 for each of them.
    pub(super) unsafe fn read_all(&self, positions: Range<u64>, into: &mut Vec<T>) {
        let count = (positions.end - positions.start) as usize;
        into.reserve(count);
        #[cfg(fullbore_loom)]
        // One by one, so that loom sees each.
        // SAFETY: as the caller says.
        into.extend(positions.map(|position| unsafe { self.read(position) }));
        #[cfg(not(fullbore_loom))]
        {
            let from = positions.start as usize & self.mask;
            let (first, second) = (&self.slots[from..], &self.slots[..from]);
            let until_end = count.min(first.len());
            for piece in [&first[..until_end], &second[..count - until_end]] {
                // The slots' type is transparent over `T`: `UnsafeCell` in `UnsafeCell` in `MaybeUninit`.
                let source = piece.as_ptr().cast::<T>();
                let len = into.len();
                // SAFETY: `piece` is written (U2) and nobody else is in it; it is moved out once (U1), as the length says. There
                // is room for it, reserved above.
                unsafe {
                    std::ptr::copy_nonoverlapping(source, into.as_mut_ptr().add(len), piece.len());
                    into.set_len(len + piece.len());
                }
            }
        }
    }

    /// Looks at an item that stays.
    ///
    /// # Safety
    /// U2, and nobody moves it out meanwhile (U1).
    pub(super) unsafe fn peek<R>(&self, position: u64, look: impl FnOnce(&T) -> R) -> R {
        // SAFETY: it is written (U2) and not moved out.
        self.slot(position).with(|slot| look(unsafe { (*slot).assume_init_ref() }))
    }

    /// Notes when a position was accepted.
    ///
    /// # Safety
    /// On the owner's thread, before the position is published; and no position of the same block before it is yet to be
    /// read, unless it is the block's first (U4).
    pub(super) unsafe fn stamp(&self, position: u64, at: Instant) {
        // SAFETY: the last reader of this cell is past it (U4).
        self.stamp_cell(position).with_mut(|cell| unsafe { *cell = Stamp { position, at: Some(at) } });
    }

    /// The instants that were noted for these positions, oldest first.
    ///
    /// # Safety
    /// U2, none of them is read yet, and all that came before the first were promised to somebody (U1).
    pub(super) unsafe fn stamps_of(&self, positions: Range<u64>, mut each: impl FnMut(u64, Instant)) {
        // Only the first of a block has a stamp, and one that found the ring empty: that is the first of those promised then.
        let mut position = positions.start;
        while position < positions.end {
            // SAFETY: as the caller says.
            if let Some(at) = unsafe { self.stamp_of(position) } {
                each(position, at);
            }
            position = (position / BLOCK + 1) * BLOCK;
        }
    }

    /// When a position was accepted, if that was noted.
    ///
    /// # Safety
    /// U2, and it is not read yet, nor promised to somebody else (U1).
    #[inline]
    pub(super) unsafe fn stamp_of(&self, position: u64) -> Option<Instant> {
        // SAFETY: whoever writes the cell next waits until this position is read (U4).
        let stamp = self.stamp_cell(position).with(|cell| unsafe { *cell });
        if stamp.position == position { stamp.at } else { None }
    }
}
