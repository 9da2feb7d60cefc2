//! The running thread's cells by instrument id: an open-addressed table that only its thread ever looks at.
//!
//! Ids are handed out one after the other, so the id itself is the hash, and the first slot is nearly always the right one.

use std::cell::{Cell, RefCell};
use std::mem;
use std::ptr::NonNull;
use std::sync::Weak;

/// An instrument that takes back the cell of a thread that ends.
pub(crate) trait Retire: Send + Sync {
    /// Adds what is in the cell to what ended threads have left, and frees it.
    fn retire(&self, cell: NonNull<()>);
}

#[derive(Clone, Copy)]
struct Entry {
    id: u64,
    cell: NonNull<()>,
}

/// No instrument has this id.
const VACANT: Entry = Entry { id: u64::MAX, cell: NonNull::dangling() };

/// A table for a thread that has no cells: one vacant entry.
struct Empty([Entry; 1]);

// SAFETY: it is never written, and nobody follows its pointer: no instrument has its id.
unsafe impl Sync for Empty {}

static EMPTY: Empty = Empty([VACANT]);

/// `mask + 1` entries, a power of two, at least half of them vacant. No destructor: it can be read at any time of a thread's
/// life. What it points to belongs to [`Keep`].
struct Table {
    entries: Cell<*const Entry>,
    mask: Cell<usize>,
}

/// The owner of what [`Table`] points to; its destructor retires the thread's cells.
#[derive(Default)]
struct Keep {
    kept: RefCell<Kept>,
}

#[derive(Default)]
struct Kept {
    entries: Box<[Entry]>,
    /// One for each entry in use.
    owners: Vec<Owner>,
}

struct Owner {
    entry: Entry,
    instrument: Weak<dyn Retire>,
}

thread_local! {
    static TABLE: Table = const { Table { entries: Cell::new(EMPTY.0.as_ptr()), mask: Cell::new(0) } };
    static KEEP: Keep = Keep::default();
}

/// The running thread's cell for this instrument.
#[inline]
pub(super) fn find(id: u64) -> Option<NonNull<()>> {
    TABLE.with(|table| {
        let (entries, mask) = (table.entries.get(), table.mask.get());
        // SAFETY: `entries` points to `mask + 1` entries that live until this thread replaces them, in `insert` or at its
        // end, and neither can happen before this reference is gone.
        let first = unsafe { &*entries.add(id as usize & mask) };
        if first.id == id { Some(first.cell) } else { probe(entries, mask, id) }
    })
}

/// The slots after the first.
#[cold]
#[inline(never)]
fn probe(entries: *const Entry, mask: usize, id: u64) -> Option<NonNull<()>> {
    let mut at = id as usize;
    loop {
        // SAFETY: as in `find`. It ends: at least one entry is vacant.
        let entry = unsafe { &*entries.add(at & mask) };
        if entry.id == id {
            return Some(entry.cell);
        }
        if entry.id == VACANT.id {
            return None;
        }
        at = at.wrapping_add(1);
    }
}

/// Makes and notes the running thread's cell for an instrument; not if the thread is past retiring its cells.
pub(super) fn insert(id: u64, instrument: Weak<dyn Retire>, cell: impl FnOnce() -> NonNull<()>) -> Option<NonNull<()>> {
    KEEP.try_with(|keep| {
        let mut kept = keep.kept.try_borrow_mut().ok()?;
        let entry = Entry { id, cell: cell() };
        kept.owners.push(Owner { entry, instrument });
        if kept.owners.len() > kept.entries.len() / 2 {
            let old = kept.rebuild();
            kept.publish();
            drop(old);
        } else {
            put(&mut kept.entries, entry);
            kept.publish();
        }
        Some(entry.cell)
    })
    .ok()
    .flatten()
}

fn put(entries: &mut [Entry], entry: Entry) {
    let mask = entries.len() - 1;
    let mut at = entry.id as usize & mask;
    while entries[at].id != VACANT.id {
        at = (at + 1) & mask;
    }
    entries[at] = entry;
}

impl Kept {
    /// Forgets instruments that are gone, and makes a table at least four times as large as what is left. Returns the old one,
    /// which is in `TABLE` until the next `publish`.
    fn rebuild(&mut self) -> Box<[Entry]> {
        self.owners.retain(|owner| owner.instrument.strong_count() > 0);
        let size = (4 * self.owners.len()).next_power_of_two();
        let mut entries = vec![VACANT; size].into_boxed_slice();
        for owner in &self.owners {
            put(&mut entries, owner.entry);
        }
        mem::replace(&mut self.entries, entries)
    }

    fn publish(&self) {
        TABLE.with(|table| {
            table.entries.set(self.entries.as_ptr());
            table.mask.set(self.entries.len() - 1);
        });
    }
}

impl Drop for Keep {
    fn drop(&mut self) {
        // R2: first out of the table, then retired.
        TABLE.with(|table| {
            table.entries.set(EMPTY.0.as_ptr());
            table.mask.set(0);
        });
        for owner in self.kept.get_mut().owners.drain(..) {
            if let Some(instrument) = owner.instrument.upgrade() {
                instrument.retire(owner.entry.cell);
            }
        }
    }
}
