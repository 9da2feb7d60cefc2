//! All cells of one instrument: one for each thread that has recorded and lives, and one for all that have ended.
//!
//! The protocol, its invariants and what a reader can miss are in the crate's README.

use std::ptr::NonNull;
use std::sync::Arc;

use crate::sync::Mutex;

/// What a thread writes and nobody else does. All writes are plain stores of atomics; readers may come at any time.
pub(crate) trait Cell: Default + Send + Sync + 'static {
    /// Adds what is in `ended`, whose thread is no more. Nobody else writes or reads `self` meanwhile.
    fn absorb(&self, ended: &Self);
}

/// The cells of an instrument, and what else its handles share.
pub(crate) struct Shards<C, M> {
    pub(crate) meta: M,
    cells: Mutex<Cells<C>>,
}

pub(crate) struct Cells<C> {
    live: Vec<Arc<C>>,
    /// What ended threads have left. In a box: a thread's table may keep the memory of `Shards` after its end.
    ended: Option<Box<C>>,
}

impl<C> Cells<C> {
    /// Every cell, in the same order each time.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &C> {
        self.ended.as_deref().into_iter().chain(self.live.iter().map(|cell| &**cell))
    }
}

impl<C: Cell, M> Shards<C, M> {
    pub(crate) fn new(meta: M) -> Self {
        Self { meta, cells: Mutex::new(Cells { live: Vec::new(), ended: None }) }
    }

    /// A cell for the calling thread, which alone writes it. It lives until `retire_cell` or until `self` is dropped.
    pub(crate) fn register(&self) -> NonNull<C> {
        let cell = Arc::new(C::default());
        let at = NonNull::from(&*cell);
        self.cells.lock().live.push(cell);
        at
    }

    /// The cell's thread writes no more: what is in it moves over, in one step for every reader.
    pub(crate) fn retire_cell(&self, cell: NonNull<C>) {
        let mut cells = self.cells.lock();
        let Some(at) = cells.live.iter().position(|live| NonNull::from(&**live) == cell) else { return };
        let retired = cells.live.swap_remove(at);
        // Given back when the threads are gone: a pool that has shrunk from thousands keeps no list of thousands.
        if cells.live.len() * 4 < cells.live.capacity() {
            cells.live.shrink_to_fit();
        }
        cells.ended.get_or_insert_default().absorb(&retired);
    }

    /// For a thread that has retired its cells and still records, from the destructor of a thread-local.
    pub(crate) fn write_as_ended(&self, write: &dyn Fn(&C)) {
        write(self.cells.lock().ended.get_or_insert_default());
    }

    /// Reads the cells. Threads keep writing theirs; only threads that come or end meanwhile wait.
    pub(crate) fn read<R>(&self, read: impl FnOnce(&Cells<C>) -> R) -> R {
        read(&self.cells.lock())
    }
}
