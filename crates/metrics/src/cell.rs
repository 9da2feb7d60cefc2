//! The memory of one thread for one instrument.
//!
//! Each atomic has one writer, so a record is a load and a store, no read-modify-write. Readers may read at any time; what they
//! can see of a record that is being made is said with each type.

use crate::buckets::{PAGE, PAGES, place};
use crate::raw::once_ptr::OncePtr;
use crate::shards::Cell;
use crate::sync::{AtomicU32, AtomicU64, Ordering};

/// A count that sticks at the largest number.
#[derive(Default)]
pub(crate) struct Count(AtomicU64);

impl Count {
    #[inline]
    pub(crate) fn add(&self, n: u64) {
        // ORDERING: Relaxed: nobody else writes it. Release pairs with the Acquire in `get`: who sees the count sees what the
        // thread had counted before.
        self.0.store(self.0.load(Ordering::Relaxed).saturating_add(n), Ordering::Release);
    }

    #[inline]
    pub(crate) fn get(&self) -> u64 {
        // ORDERING: Acquire pairs with the Release in `add`, and keeps reads of several counts in the order of the program.
        self.0.load(Ordering::Acquire)
    }
}

/// The cell of a `Counter`. A cache line of its own: two threads' cells may be neighbours.
#[derive(Default)]
#[repr(align(64))]
pub(crate) struct CounterCell {
    pub(crate) count: Count,
}

impl Cell for CounterCell {
    fn absorb(&self, ended: &Self) {
        self.count.add(ended.count.get());
    }
}

/// A sum of 127 bits in two words that a reader cannot catch half written.
///
/// `low` is the sum modulo 2^64; `halves` counts how often the sum has gone over a multiple of 2^63, so it must be odd when the
/// top bit of `low` is set. It is written after `low` and read before it: a reader who finds them not to match knows that
/// `halves` is one behind.
#[derive(Default)]
pub(crate) struct Sum {
    low: AtomicU64,
    halves: AtomicU64,
}

/// The top bit of a word of 64.
const TOP: u64 = 1 << 63;

impl Sum {
    #[inline]
    pub(crate) fn add(&self, value: u64) {
        // ORDERING: Relaxed: nobody else writes it. Whoever publishes the record does it with Release, after this.
        let old = self.low.load(Ordering::Relaxed);
        let new = old.wrapping_add(value);
        if ((old ^ new) | value) & TOP != 0 {
            self.add_much(value);
        } else {
            self.low.store(new, Ordering::Relaxed);
        }
    }

    /// Goes over a multiple of 2^63 once at a time.
    #[cold]
    fn add_much(&self, value: u64) {
        for step in [value & !TOP, value & TOP] {
            let old = self.low.load(Ordering::Relaxed);
            let new = old.wrapping_add(step);
            self.low.store(new, Ordering::Relaxed);
            if (old ^ new) & TOP != 0 {
                // ORDERING: Release pairs with the Acquire in `get`: who sees it sees `low` as well.
                self.halves.store(self.halves.load(Ordering::Relaxed) + 1, Ordering::Release);
            }
        }
    }

    pub(crate) fn get(&self) -> u128 {
        // ORDERING: Acquire pairs with the Release in `add_much`; `low` is read after it.
        let halves = self.halves.load(Ordering::Acquire);
        let low = self.low.load(Ordering::Relaxed);
        let behind = (halves & 1) ^ (low >> 63);
        (u128::from(halves + behind) << 63) + u128::from(low & !TOP)
    }

    fn absorb(&self, ended: &Self) {
        let mut rest = ended.get();
        while rest > 0 {
            let step = u64::try_from(rest).unwrap_or(u64::MAX);
            self.add(step);
            rest -= u128::from(step);
        }
    }
}

/// The counts of 64 buckets: 32 bits each, and the rest of the bits, in memory of their own, for those that need them.
///
/// The same trick as in [`Sum`], with 2^31: `halves` counts how often a bucket has gone over a multiple of it. It is brought up
/// to date at the next record, so that one test finds both this and a bucket's first record.
#[repr(align(64))]
struct Page {
    low: [AtomicU32; PAGE],
    /// A bit for each bucket that is not empty.
    touched: AtomicU64,
    halves: OncePtr<[AtomicU64; PAGE]>,
}

/// The top bit of a word of 32.
const TOP32: u32 = 1 << 31;

impl Page {
    fn new() -> Box<Self> {
        Box::new(Self {
            low: std::array::from_fn(|_| AtomicU32::new(0)),
            touched: AtomicU64::new(0),
            halves: OncePtr::new(),
        })
    }

    #[inline]
    fn add(&self, slot: usize) {
        // ORDERING: Relaxed: nobody else writes it.
        let low = self.low[slot].load(Ordering::Relaxed);
        if low & !TOP32 == 0 {
            self.seldom(slot);
        }
        // ORDERING: Release pairs with the Acquire in `get`: who sees the sample sees the sum and the extremes with it.
        self.low[slot].store(low.wrapping_add(1), Ordering::Release);
    }

    /// The bucket holds a multiple of 2^31: nothing, or it has just gone over it.
    #[cold]
    fn seldom(&self, slot: usize) {
        let touched = self.touched.load(Ordering::Relaxed);
        if touched & (1 << slot) == 0 {
            // ORDERING: Release pairs with the Acquire in `for_each`.
            self.touched.store(touched | 1 << slot, Ordering::Release);
            return;
        }
        let halves = &self.halves()[slot];
        // ORDERING: Release pairs with the Acquire in `get`.
        halves.store(halves.load(Ordering::Relaxed) + 1, Ordering::Release);
    }

    fn halves(&self) -> &[AtomicU64; PAGE] {
        self.halves.get_or_set(|| Box::new(std::array::from_fn(|_| AtomicU64::new(0))))
    }

    #[inline]
    fn get(&self, slot: usize) -> u64 {
        // ORDERING: Acquire pairs with the Release in `seldom`; `low` is read after it.
        let halves = self.halves.get().map_or(0, |halves| halves[slot].load(Ordering::Acquire));
        // ORDERING: Acquire pairs with the Release in `add`.
        let low = self.low[slot].load(Ordering::Acquire);
        let behind = (halves & 1) ^ u64::from(low >> 31);
        ((halves + behind) << 31) + u64::from(low & !TOP32)
    }

    /// Calls `each` with the place and the count of every bucket that is not empty.
    #[inline]
    fn for_each(&self, mut each: impl FnMut(usize, u64)) {
        // ORDERING: Acquire pairs with the Release in `seldom`.
        let mut touched = self.touched.load(Ordering::Acquire);
        while touched != 0 {
            let slot = touched.trailing_zeros() as usize;
            each(slot, self.get(slot));
            touched &= touched - 1;
        }
    }

    /// Adds many at once, when nobody reads.
    fn absorb(&self, ended: &Self) {
        ended.for_each(|slot, n| {
            let n = self.get(slot) + n;
            self.touched.store(self.touched.load(Ordering::Relaxed) | 1 << slot, Ordering::Relaxed);
            if n >> 31 != 0 {
                self.halves()[slot].store(n >> 31, Ordering::Relaxed);
            }
            self.low[slot].store(n as u32, Ordering::Relaxed);
        });
    }
}

/// The cell of a `Histogram`, and a part of that of a `Station`.
#[repr(align(64))]
pub(crate) struct HistogramCell {
    sum: Sum,
    min: AtomicU64,
    max: AtomicU64,
    /// A bit for each page that is there.
    present: AtomicU64,
    pages: [OncePtr<Page>; PAGES],
}

impl Default for HistogramCell {
    fn default() -> Self {
        Self {
            sum: Sum::default(),
            min: AtomicU64::new(u64::MAX),
            max: AtomicU64::new(0),
            present: AtomicU64::new(0),
            pages: std::array::from_fn(|_| OncePtr::new()),
        }
    }
}

impl HistogramCell {
    /// Counts one sample. Allocates at the first touch of a power of two.
    #[inline]
    pub(crate) fn record(&self, value: u64) {
        // ORDERING: Relaxed: nobody else writes these, and the bucket comes last, with Release.
        if value < self.min.load(Ordering::Relaxed) {
            self.min.store(value, Ordering::Relaxed);
        }
        if value > self.max.load(Ordering::Relaxed) {
            self.max.store(value, Ordering::Relaxed);
        }
        self.sum.add(value);
        let (page, slot) = place(value);
        match self.pages[page].get() {
            Some(page) => page.add(slot),
            None => self.page(page).add(slot),
        }
    }

    #[cold]
    fn page(&self, at: usize) -> &Page {
        let page = self.pages[at].get_or_set(Page::new);
        // ORDERING: Release pairs with the Acquire in `present`.
        self.present.store(self.present.load(Ordering::Relaxed) | 1 << at, Ordering::Release);
        page
    }

    /// A bit for each page that is there.
    #[inline]
    pub(crate) fn present(&self) -> u64 {
        // ORDERING: Acquire pairs with the Release in `page`.
        self.present.load(Ordering::Acquire)
    }

    /// Calls `each` with the place and the count of every bucket of a page that is not empty.
    #[inline]
    pub(crate) fn for_each_in(&self, page: usize, each: impl FnMut(usize, u64)) {
        if let Some(page) = self.pages[page].get() {
            page.for_each(each);
        }
    }

    /// The sum, minimum and maximum of at least what a bucket showed before; they may be ahead of the buckets.
    pub(crate) fn sum_min_max(&self) -> (u128, u64, u64) {
        // ORDERING: Relaxed: the buckets were read with Acquire.
        (self.sum.get(), self.min.load(Ordering::Relaxed), self.max.load(Ordering::Relaxed))
    }
}

impl Cell for HistogramCell {
    fn absorb(&self, ended: &Self) {
        let (_, min, max) = ended.sum_min_max();
        self.min.fetch_min(min, Ordering::Relaxed);
        self.max.fetch_max(max, Ordering::Relaxed);
        self.sum.absorb(&ended.sum);
        for (at, page) in ended.pages.iter().enumerate() {
            if let Some(page) = page.get() {
                self.page(at).absorb(page);
            }
        }
    }
}

/// A way that an item can go in a station. The order is that of [`StationCell::counts`].
#[derive(Clone, Copy)]
pub(crate) enum Way {
    Refused,
    Arrived,
    Begun,
    /// Arrived and begun in one, without a wait.
    Entered,
    /// Arrived, begun and served in one, untimed.
    Passed,
    Served,
    Failed,
    Dropped,
    Merged,
    Returned,
    Retried,
}

impl Way {
    const COUNT: usize = Way::Retried as usize + 1;
}

/// The cell of a `Station`.
#[derive(Default)]
#[repr(align(64))]
pub(crate) struct StationCell {
    counts: [Count; Way::COUNT],
    /// Busy time that is not in `service`.
    pub(crate) busy: Sum,
    /// How many items go by before the next one is timed. For its thread only.
    gap: AtomicU32,
    pub(crate) wait: HistogramCell,
    pub(crate) service: HistogramCell,
    response: OncePtr<HistogramCell>,
}

impl StationCell {
    #[inline]
    pub(crate) fn count(&self, way: Way, n: u64) {
        self.counts[way as usize].add(n);
    }

    #[inline]
    pub(crate) fn counted(&self, way: Way) -> u64 {
        self.counts[way as usize].get()
    }

    /// Counts one more that passes, unless it is its turn to be timed.
    #[inline]
    pub(crate) fn pass_untimed(&self) -> bool {
        // ORDERING: Relaxed: its own thread's business.
        let gap = self.gap.load(Ordering::Relaxed);
        if gap == 0 {
            return false;
        }
        self.gap.store(gap - 1, Ordering::Relaxed);
        true
    }

    /// So many go by before the next one is timed.
    pub(crate) fn time_after(&self, gap: u32) {
        self.gap.store(gap, Ordering::Relaxed);
    }

    pub(crate) fn respond(&self, nanos: u64) {
        self.response.get().unwrap_or_else(|| self.response.get_or_set(Box::default)).record(nanos);
    }

    pub(crate) fn response(&self) -> Option<&HistogramCell> {
        self.response.get()
    }
}

impl Cell for StationCell {
    fn absorb(&self, ended: &Self) {
        for (mine, theirs) in self.counts.iter().zip(&ended.counts) {
            mine.add(theirs.get());
        }
        self.busy.absorb(&ended.busy);
        self.wait.absorb(&ended.wait);
        self.service.absorb(&ended.service);
        if let Some(response) = ended.response() {
            self.response.get_or_set(Box::default).absorb(response);
        }
    }
}
