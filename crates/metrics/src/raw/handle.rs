//! What every instrument's handle is made of.

use std::panic::{RefUnwindSafe, UnwindSafe};
use std::ptr::NonNull;
use std::sync::{Arc, OnceLock, Weak};

use super::table::{self, Retire};
use crate::shards::{Cell, Shards};
use crate::sync::{AtomicU64, Ordering};

// A panic cannot leave a cell half written, nor a lock poisoned: no user code runs between (C4).
impl<C: Cell, M> UnwindSafe for Handle<C, M> {}
impl<C: Cell, M> RefUnwindSafe for Handle<C, M> {}

/// A share of an instrument. Nothing is allocated before the first record or clone.
pub(crate) struct Handle<C: Cell, M> {
    /// 0 until it is asked for.
    id: AtomicU64,
    shards: OnceLock<Arc<Shards<C, M>>>,
}

impl<C: Cell, M: Send + Sync + 'static> Handle<C, M> {
    pub(crate) const fn new() -> Self {
        Self { id: AtomicU64::new(0), shards: OnceLock::new() }
    }

    /// The instrument's number in this process.
    pub(crate) fn id(&self) -> u64 {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        // ORDERING: Relaxed, here and below: only the numbers' being different matters.
        match self.id.load(Ordering::Relaxed) {
            0 => {
                let fresh = NEXT.fetch_add(1, Ordering::Relaxed);
                match self.id.compare_exchange(0, fresh, Ordering::Relaxed, Ordering::Relaxed) {
                    Ok(_) => fresh,
                    Err(another_threads) => another_threads,
                }
            }
            id => id,
        }
    }

    /// What all handles of the instrument share, if there is such a thing yet.
    pub(crate) fn get(&self) -> Option<&Arc<Shards<C, M>>> {
        self.shards.get()
    }

    /// What all handles of the instrument share.
    pub(crate) fn shards(&self, meta: impl FnOnce() -> M) -> &Arc<Shards<C, M>> {
        self.shards.get_or_init(|| Arc::new(Shards::new(meta())))
    }

    /// Another handle of the same instrument.
    pub(crate) fn share(&self, meta: impl FnOnce() -> M) -> Self {
        let shards = OnceLock::from(Arc::clone(self.shards(meta)));
        Self { id: AtomicU64::new(self.id()), shards }
    }

    /// The running thread's cell. Wait-free, and without allocation, from the second time on.
    #[inline]
    pub(crate) fn mine(&self, meta: impl FnOnce() -> M) -> Mine<'_, C, M> {
        // ORDERING: Relaxed: the id alone says nothing; what it finds was put there by this very thread.
        let cell = table::find(self.id.load(Ordering::Relaxed)).map(NonNull::cast).or_else(|| self.first(meta));
        Mine { cell, handle: self }
    }

    /// A cell for the running thread, unless it has retired its cells.
    #[cold]
    #[inline(never)]
    fn first(&self, meta: impl FnOnce() -> M) -> Option<NonNull<C>> {
        let shards = self.shards(meta);
        let id = self.id();
        // Its id may have been given, by another thread, between the caller's look and now.
        if let Some(cell) = table::find(id) {
            return Some(cell.cast());
        }
        let instrument: Weak<dyn Retire> = Arc::downgrade(&(Arc::clone(shards) as Arc<dyn Retire>));
        table::insert(id, instrument, || shards.register().cast()).map(NonNull::cast)
    }
}

/// The running thread's cell of an instrument, while the thread has one. It stays on the stack of its thread: the thread's end
/// is what ends the cell (R2).
pub(crate) struct Mine<'a, C: Cell, M> {
    /// Also what keeps this from being sent elsewhere.
    cell: Option<NonNull<C>>,
    handle: &'a Handle<C, M>,
}

impl<C: Cell, M: Send + Sync + 'static> Mine<'_, C, M> {
    #[inline]
    pub(crate) fn get(&self) -> Option<&C> {
        // SAFETY: R1 to R3, in `super`: a cell of ours that lives as long as the borrow of the handle and the thread.
        self.cell.map(|cell| unsafe { cell.as_ref() })
    }

    /// Lets `write` write into the cell, or into that of all ended threads if the running one is ending.
    #[inline]
    pub(crate) fn write(&self, write: impl Fn(&C)) {
        match self.get() {
            Some(cell) => write(cell),
            None => self.write_as_ended(&write),
        }
    }

    #[cold]
    #[inline(never)]
    fn write_as_ended(&self, write: &dyn Fn(&C)) {
        // `first` has made them.
        if let Some(shards) = self.handle.get() {
            shards.write_as_ended(write);
        }
    }
}

impl<C: Cell, M: Send + Sync> Retire for Shards<C, M> {
    fn retire(&self, cell: NonNull<()>) {
        self.retire_cell(cell.cast());
    }
}
