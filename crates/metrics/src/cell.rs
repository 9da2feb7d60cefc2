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
/// top bit of `low` is set. It is written after `low`. A reader who finds it the same before and after reading `low`, and not
/// to match, knows that it is one behind.
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
            // ORDERING: Release pairs with the Acquire in `get`: who sees it sees every `halves` before it.
            self.low.store(new, Ordering::Release);
        }
    }

    /// Goes over a multiple of 2^63 once at a time.
    #[cold]
    fn add_much(&self, value: u64) {
        for step in [value & !TOP, value & TOP] {
            let old = self.low.load(Ordering::Relaxed);
            let new = old.wrapping_add(step);
            // ORDERING: Release, as in `add`.
            self.low.store(new, Ordering::Release);
            if (old ^ new) & TOP != 0 {
                // ORDERING: Release pairs with the Acquire in `get`: who sees it sees `low` as well.
                self.halves.store(self.halves.load(Ordering::Relaxed) + 1, Ordering::Release);
            }
        }
    }

    pub(crate) fn get(&self) -> u128 {
        loop {
            // ORDERING: Acquire pairs with the Release in `add_much`; `low` is read after it.
            let halves = self.halves.load(Ordering::Acquire);
            // ORDERING: Acquire pairs with the Release in `add`; `halves` is read again after it.
            let low = self.low.load(Ordering::Acquire);
            // Else it has gone over a multiple meanwhile, perhaps twice: it has to add 2^63 for each time that this is repeated.
            if self.halves.load(Ordering::Relaxed) == halves {
                let behind = (halves & 1) ^ (low >> 63);
                return (u128::from(halves + behind) << 63) + u128::from(low & !TOP);
            }
        }
    }

    fn absorb(&self, ended: &Self) {
        // Nobody reads meanwhile: both words at once.
        let sum = self.get() + ended.get();
        self.low.store(sum as u64, Ordering::Relaxed);
        self.halves.store((sum >> 63) as u64, Ordering::Relaxed);
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
        // ORDERING: Acquire pairs with the Release in `seldom`.
        let halves = || self.halves.get().map_or(0, |halves| halves[slot].load(Ordering::Acquire));
        loop {
            let before = halves();
            // ORDERING: Acquire pairs with the Release in `add`; `halves` is read before it and after it.
            let low = self.low[slot].load(Ordering::Acquire);
            // As in `Sum::get`.
            if halves() == before {
                let behind = (before & 1) ^ u64::from(low >> 31);
                return ((before + behind) << 31) + u64::from(low & !TOP32);
            }
        }
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

    /// Adds the count of each bucket to those in `counts`.
    fn add_to(&self, counts: &mut [u64; PAGE]) {
        if self.halves.get().is_none() {
            let low: [u32; PAGE] = std::array::from_fn(|slot| self.low[slot].load(Ordering::Acquire));
            // As in `get`, for all at once: none of them has gone over 2^31 more than once, so `low` is the whole count.
            if self.halves.get().is_none() {
                counts.iter_mut().zip(low).for_each(|(count, low)| *count += u64::from(low));
                return;
            }
        }
        self.for_each(|slot, n| counts[slot] += n);
    }

    /// Adds many at once, when nobody reads.
    fn absorb(&self, ended: &Self) {
        ended.for_each(|slot, n| {
            self.touched.store(self.touched.load(Ordering::Relaxed) | 1 << slot, Ordering::Relaxed);
            self.set(slot, self.get(slot) + n);
        });
    }

    /// The count of a bucket that has been touched, when nobody reads.
    fn set(&self, slot: usize, n: u64) {
        // One behind at a multiple, as the next `add` expects it.
        let halves = n.saturating_sub(1) >> 31;
        if halves != 0 {
            self.halves()[slot].store(halves, Ordering::Relaxed);
        }
        self.low[slot].store(n as u32, Ordering::Relaxed);
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

    /// Adds the count of each bucket of a page to those in `counts`.
    #[inline]
    pub(crate) fn add_page_to(&self, page: usize, counts: &mut [u64; PAGE]) {
        if let Some(page) = self.pages[page].get() {
            page.add_to(counts);
        }
    }

    /// As if `value` had been recorded `n` times, when nobody reads.
    #[cfg(any(test, fullbore_loom))]
    #[cfg_attr(not(test), expect(dead_code, reason = "for the models, which compile this file by themselves"))]
    pub(crate) fn begin_with(&self, value: u64, n: u64) {
        self.record(value);
        let (page, slot) = place(value);
        if let Some(page) = self.pages[page].get() {
            page.set(slot, n);
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
    pub(crate) const COUNT: usize = Way::Retried as usize + 1;

    /// Ends before begins before arrivals: whoever reads in this order and sees an end also sees its begin and its arrival.
    const BACKWARDS: [Way; Self::COUNT] = [
        Way::Passed,
        Way::Served,
        Way::Failed,
        Way::Dropped,
        Way::Merged,
        Way::Returned,
        Way::Retried,
        Way::Entered,
        Way::Begun,
        Way::Arrived,
        Way::Refused,
    ];
}

/// How often each way was gone, by the number of the way; no count exceeds its cause, whatever is recorded meanwhile.
pub(crate) fn read_ways<'a, I: Iterator<Item = &'a StationCell>>(cells: impl Fn() -> I) -> [u64; Way::COUNT] {
    let mut counts = [0; Way::COUNT];
    for way in Way::BACKWARDS {
        counts[way as usize] = cells().fold(0, |sum: u64, cell| sum.saturating_add(cell.counted(way)));
    }
    counts
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

#[cfg(all(test, not(fullbore_loom)))]
mod tests {
    use super::*;

    fn count(cell: &HistogramCell) -> u64 {
        let mut counts = [0; PAGE];
        (0..PAGES).for_each(|page| cell.add_page_to(page, &mut counts));
        counts.iter().sum()
    }

    #[test]
    fn a_bucket_counts_over_every_multiple_of_its_word() {
        for multiple in 1..6u64 {
            for before in 0..3 {
                let cell = HistogramCell::default();
                let begin = (multiple << 31) - before;
                cell.begin_with(1000, begin);
                for n in 0..6 {
                    assert_eq!(count(&cell), begin + n, "{n} after {begin}");
                    cell.record(1000);
                }
                let other = HistogramCell::default();
                other.absorb(&cell);
                other.absorb(&cell);
                assert_eq!(count(&other), 2 * (begin + 6));
                other.record(1000);
                assert_eq!(count(&other), 2 * (begin + 6) + 1);
            }
        }
    }

    #[test]
    fn a_sum_goes_on_beyond_its_word() {
        let (sum, mut truth) = (Sum::default(), 0u128);
        let values = [1, TOP - 1, TOP, TOP + 1, u64::MAX, 0, u64::MAX, u64::MAX - 1, TOP, TOP];
        for value in values.iter().cycle().take(100) {
            sum.add(*value);
            truth += u128::from(*value);
            assert_eq!(sum.get(), truth);
        }
        let other = Sum::default();
        other.add(7);
        other.absorb(&sum);
        assert_eq!(other.get(), truth + 7);
    }

    #[test]
    fn every_way_is_read() {
        let cell = StationCell::default();
        for (n, way) in (1..).zip(Way::BACKWARDS) {
            cell.count(way, n);
        }
        let mut read = read_ways(|| std::iter::once(&cell));
        read.sort_unstable();
        assert!(read.into_iter().eq(1..=Way::COUNT as u64));
    }
}
