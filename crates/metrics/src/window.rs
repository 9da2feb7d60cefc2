//! What happened between two snapshots, and the snapshots of the last minute.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use fullbore_core::Clock;

use crate::error::WindowError;
use crate::histogram::DurationSnapshot;
use crate::snapshot::{Counts, StationSnapshot};
use crate::station::Station;

/// What a station did between two snapshots of it.
///
/// ```
/// use fullbore_metrics::Station;
///
/// let parse = Station::new("parse");
/// parse.run(|| ());
/// let before = parse.snapshot();
/// parse.run(|| ());
/// parse.run(|| ());
/// let window = parse.snapshot().since(&before)?;
/// assert_eq!(window.counts().served, 2);
/// assert!(window.throughput() > 0.0);
/// # Ok::<(), fullbore_metrics::WindowError>(())
/// ```
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Window {
    duration: Duration,
    parallelism: u64,
    counts: Counts,
    busy: Duration,
    wait: DurationSnapshot,
    service: DurationSnapshot,
    response: DurationSnapshot,
}

impl StationSnapshot {
    /// What happened between an earlier snapshot of the same station and this one.
    ///
    /// # Errors
    /// If `earlier` is of another station, or not the earlier one.
    pub fn since(&self, earlier: &Self) -> Result<Window, WindowError> {
        if self.id != earlier.id {
            return Err(WindowError::OtherStation);
        }
        let late = WindowError::NotEarlier;
        let (now, then) = (&self.counts, &earlier.counts);
        let less = |now: u64, then: u64| now.checked_sub(then).ok_or(late);
        Ok(Window {
            duration: self.taken.checked_duration_since(earlier.taken).ok_or(late)?,
            parallelism: self.parallelism,
            counts: Counts {
                refused: less(now.refused, then.refused)?,
                arrivals: less(now.arrivals, then.arrivals)?,
                begun: less(now.begun, then.begun)?,
                served: less(now.served, then.served)?,
                failed: less(now.failed, then.failed)?,
                dropped: less(now.dropped, then.dropped)?,
                merged: less(now.merged, then.merged)?,
                returned: less(now.returned, then.returned)?,
                retried: less(now.retried, then.retried)?,
            },
            busy: self.busy.checked_sub(earlier.busy).ok_or(late)?,
            wait: self.wait.since(&earlier.wait)?,
            service: self.service.since(&earlier.service)?,
            response: self.response.since(&earlier.response)?,
        })
    }
}

impl Window {
    /// Its length.
    #[must_use]
    pub fn duration(&self) -> Duration {
        self.duration
    }

    /// What was counted in it. `waiting` and `in_service` of it are differences, not numbers of items: ask the snapshot.
    #[must_use]
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Time in line of the items that began in it.
    #[must_use]
    pub fn wait(&self) -> &DurationSnapshot {
        &self.wait
    }

    /// Time in service of the items that ended in it.
    #[must_use]
    pub fn service(&self) -> &DurationSnapshot {
        &self.service
    }

    /// Time from arrival to the end of service of the items that ended in it; see [`StationSnapshot::response`].
    #[must_use]
    pub fn response(&self) -> &DurationSnapshot {
        &self.response
    }

    /// Summed time of all servers at work, for services that ended in it.
    #[must_use]
    pub fn busy(&self) -> Duration {
        self.busy
    }

    /// Items a second that came in; 0 for a window without length.
    #[must_use]
    pub fn arrival_rate(&self) -> f64 {
        self.rate(self.counts.arrivals)
    }

    /// Items a second that were served; 0 for a window without length.
    #[must_use]
    pub fn throughput(&self) -> f64 {
        self.rate(self.counts.served)
    }

    /// Items a second, for one of [`counts`](Self::counts).
    #[must_use]
    pub fn rate(&self, count: u64) -> f64 {
        match self.duration.as_secs_f64() {
            seconds if seconds > 0.0 => count as f64 / seconds,
            _ => 0.0,
        }
    }

    /// The share of ended services that failed; none if nothing ended.
    #[must_use]
    pub fn failure_ratio(&self) -> Option<f64> {
        let ended = self.counts.served.saturating_add(self.counts.failed);
        (ended > 0).then(|| self.counts.failed as f64 / ended as f64)
    }

    /// Busy time over what all servers had; above 1 where long services end in a short window.
    #[must_use]
    pub fn utilisation(&self) -> f64 {
        let had = self.duration.as_secs_f64() * self.parallelism.max(1) as f64;
        if had > 0.0 { self.busy.as_secs_f64() / had } else { 0.0 }
    }
}

/// The snapshots of a station that windows of up to a minute need: one a second for the last ten, one in ten seconds before.
///
/// Somebody has to call [`tick`](Self::tick), once a second or so; [`Registry::watch`](crate::Registry::watch) does for what it
/// prints.
///
/// ```
/// use fullbore_core::{Clock, PausedClock};
/// use fullbore_metrics::{Station, Windows};
/// use std::time::Duration;
///
/// let clock = PausedClock::new();
/// let station = Station::new("parse");
/// let mut windows = Windows::with_clock(&station, Clock::Paused(clock.clone()));
/// for _ in 0..=60 {
///     windows.tick();
///     station.run(|| ());
///     clock.advance(Duration::from_secs(1));
/// }
/// for seconds in [1, 10, 60] {
///     assert!(windows.over(Duration::from_secs(seconds)).is_some());
/// }
/// ```
#[derive(Clone, Debug)]
pub struct Windows {
    station: Station,
    clock: Clock,
    /// Oldest first; the last one is the newest, whatever its slot.
    kept: VecDeque<(Instant, StationSnapshot)>,
    begun: Instant,
}

const FINE: Duration = Duration::from_secs(1);
const COARSE: Duration = Duration::from_secs(10);
/// So long the fine ones are kept, and so long the coarse ones: a step more than the longest window that needs them.
const FINE_KEPT: Duration = Duration::from_secs(11);
const COARSE_KEPT: Duration = Duration::from_secs(71);

impl Windows {
    /// No snapshots yet.
    #[must_use]
    pub fn new(station: &Station) -> Self {
        Self::with_clock(station, Clock::Real)
    }

    /// The same, on another clock.
    #[must_use]
    pub fn with_clock(station: &Station, clock: Clock) -> Self {
        Self { station: station.clone(), begun: clock.now(), clock, kept: VecDeque::new() }
    }

    /// Takes a snapshot. At most 20 are kept, however often it is called.
    pub fn tick(&mut self) {
        let now = self.clock.now();
        let mut newest = self.station.snapshot();
        // The clock that was asked is the one that windows are measured with.
        newest.taken = now;
        self.kept.push_back((now, newest));
        let slot = |at: Instant, step: Duration| at.saturating_duration_since(self.begun).as_nanos() / step.as_nanos();
        let mut before: Option<Instant> = None;
        let last = self.kept.len() - 1;
        let mut at = 0;
        self.kept.retain(|(taken, _)| {
            let age = now.saturating_duration_since(*taken);
            // The first of its slot stays: where slots begin does not depend on when this is called.
            let first_of = |step| before.is_none_or(|before| slot(before, step) != slot(*taken, step));
            let keep = at == last || (age <= FINE_KEPT && first_of(FINE)) || (age <= COARSE_KEPT && first_of(COARSE));
            at += 1;
            before = Some(*taken);
            keep
        });
    }

    /// What happened in the last `length`, or a little more: up to a second for ten seconds or less, up to ten for a minute;
    /// [`Window::duration`] says how long it was. None if the snapshots do not go back that far.
    #[must_use]
    pub fn over(&self, length: Duration) -> Option<Window> {
        let (now, newest) = self.kept.back()?;
        let old_enough = |(at, _): &&(Instant, StationSnapshot)| now.saturating_duration_since(*at) >= length;
        let (_, earlier) = self.kept.iter().rev().skip(1).find(old_enough)?;
        newest.since(earlier).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fullbore_core::PausedClock;

    #[test]
    fn windows_are_as_long_as_asked_or_a_step_longer_however_often_it_ticks() {
        for tick in [100, 250, 1000, 1700] {
            let clock = PausedClock::new();
            let station = Station::new("steady");
            let mut windows = Windows::with_clock(&station, Clock::Paused(clock.clone()));
            for _ in 0..150_000 / tick {
                windows.tick();
                assert!(windows.kept.len() <= 20, "{} at {tick} ms", windows.kept.len());
                station.passed(tick as usize);
                clock.advance(Duration::from_millis(tick));
            }
            windows.tick();
            for (asked, slack) in [(1, 1000), (10, 1000), (60, 10_000)] {
                let window = windows.over(Duration::from_secs(asked)).expect("150 seconds have gone by");
                let length = window.duration();
                let most = Duration::from_secs(asked) + Duration::from_millis(slack + tick);
                assert!(length >= Duration::from_secs(asked) && length <= most, "{length:?} for {asked} at {tick} ms");
                assert!((window.throughput() - 1000.0).abs() < 1e-6, "an item for each millisecond: {window:?}");
            }
            assert!(windows.over(Duration::from_secs(80)).is_none());
        }
    }
}
