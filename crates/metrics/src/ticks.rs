//! The cheapest clock there is, for what is timed within one thread.

use std::sync::OnceLock;

use quanta::Clock;

/// A moment, in units of the processor's counter.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ticks(u64);

/// Shared, so that it is calibrated once: at the first use, for a millisecond or so, on a bad day for 200.
#[inline]
fn clock() -> &'static Clock {
    static CLOCK: OnceLock<Clock> = OnceLock::new();
    CLOCK.get_or_init(Clock::new)
}

impl Ticks {
    #[inline]
    pub(crate) fn now() -> Self {
        Self(clock().raw())
    }

    /// Nanoseconds since then; 0 if the counter has gone back, as it can between processors that disagree.
    #[inline]
    pub(crate) fn elapsed_nanos(self) -> u64 {
        self.nanos_to(Self::now())
    }

    #[inline]
    pub(crate) fn nanos_to(self, later: Self) -> u64 {
        clock().delta_as_nanos(self.0, later.0)
    }
}

#[cfg(test)]
mod tests {
    use super::Ticks;

    #[test]
    fn a_clock_that_goes_back_has_stood_still() {
        let (early, late) = (Ticks(1_000_000), Ticks(2_000_000));
        assert!(early.nanos_to(late) > 0);
        assert_eq!(late.nanos_to(early), 0);
        assert_eq!(Ticks(u64::MAX).nanos_to(Ticks(0)), 0);
    }
}
