//! Gauges.

use std::fmt;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, OnceLock};

/// A number that goes up and down, and the highest it has been since somebody last read that. A cheap handle; clones share it.
///
/// Unlike the other instruments it is one number in one place, since that is what its users set and what a true maximum
/// needs: threads that change it at the same time meet there. What changes with every item is better counted by a
/// [`Station`](crate::Station), whose waiting and in-service numbers are differences of counts.
///
/// ```
/// use fullbore_metrics::Gauge;
///
/// static OPEN: Gauge = Gauge::new();
/// OPEN.add(3);
/// OPEN.sub(2);
/// assert_eq!(OPEN.get(), 1);
/// assert_eq!(OPEN.take_max(), 3);
/// assert_eq!(OPEN.take_max(), 1, "the highest since the last reading");
/// ```
pub struct Gauge {
    number: OnceLock<Arc<Number>>,
}

/// A line of its own: gauges are often neighbours.
#[derive(Default)]
#[repr(align(64))]
struct Number {
    value: AtomicI64,
    max: AtomicI64,
}

impl Gauge {
    /// Zero. Takes no memory before the first change.
    #[must_use]
    pub const fn new() -> Self {
        Self { number: OnceLock::new() }
    }

    #[inline]
    fn number(&self) -> &Number {
        self.number.get_or_init(Arc::default)
    }

    /// Sets it.
    pub fn set(&self, value: i64) {
        let number = self.number();
        number.value.store(value, Ordering::Relaxed);
        number.raise(value);
    }

    /// Adds `n`. Wraps around at the ends of `i64`.
    #[inline]
    pub fn add(&self, n: i64) {
        let number = self.number();
        // ORDERING: Relaxed, here and elsewhere: a gauge says nothing about other memory.
        let value = number.value.fetch_add(n, Ordering::Relaxed).wrapping_add(n);
        if n > 0 {
            number.raise(value);
        }
    }

    /// Subtracts `n`. Wraps around at the ends of `i64`.
    #[inline]
    pub fn sub(&self, n: i64) {
        self.add(n.wrapping_neg());
    }

    /// The present value.
    #[must_use]
    pub fn get(&self) -> i64 {
        self.number.get().map_or(0, |number| number.value.load(Ordering::Relaxed))
    }

    /// The highest value since the last call of this, or since the beginning. The next reading starts from the present value.
    #[must_use = "the maximum starts anew"]
    pub fn take_max(&self) -> i64 {
        let Some(number) = self.number.get() else { return 0 };
        let now = number.value.load(Ordering::Relaxed);
        let max = number.max.swap(now, Ordering::Relaxed);
        // What rose between the two lines above counts for the next reading, also if its own raise came before the swap.
        number.raise(number.value.load(Ordering::Relaxed));
        max.max(now)
    }

    /// The highest value since the last [`take_max`](Self::take_max), left as it is.
    #[must_use]
    pub fn max(&self) -> i64 {
        let Some(number) = self.number.get() else { return 0 };
        number.max.load(Ordering::Relaxed).max(number.value.load(Ordering::Relaxed))
    }

    /// Whether both are handles of one gauge.
    pub(crate) fn same(&self, other: &Self) -> bool {
        std::ptr::eq(self.number(), other.number())
    }
}

impl Number {
    #[inline]
    fn raise(&self, value: i64) {
        if value > self.max.load(Ordering::Relaxed) {
            self.max.fetch_max(value, Ordering::Relaxed);
        }
    }
}

impl Clone for Gauge {
    fn clone(&self) -> Self {
        Self { number: OnceLock::from(Arc::clone(self.number.get_or_init(Arc::default))) }
    }
}

impl Default for Gauge {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Gauge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gauge").field("value", &self.get()).field("max", &self.max()).finish()
    }
}
