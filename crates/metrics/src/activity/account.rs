//! An account as it is read.

use std::time::Duration;

use super::Activity;

/// Named activities that a thread tells apart.
pub(super) const NAMES: usize = 16;
/// The activities without a name of their own.
pub(super) const PLAIN: [Activity; 8] = [
    Activity::Work,
    Activity::Idle,
    Activity::Queue,
    Activity::Lock,
    Activity::Permit,
    Activity::Push,
    Activity::Io,
    Activity::Coordinate,
];
/// All, and last the one for names for which there was no room.
pub(super) const PARTS: usize = PLAIN.len() + NAMES + 1;
/// What external calls count as when there is no room for their name.
pub(super) const OTHER: &str = "other";

/// How a thread has spent its time.
#[derive(Clone, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct ThreadAccount {
    pub(super) name: Option<String>,
    /// Nanoseconds. Their sum is the wall time: there is no second measure of it that could differ.
    pub(super) parts: Vec<(Activity, u64)>,
}

impl ThreadAccount {
    /// The thread's name; none for a thread without, and for all ended ones together.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// The time since the account began, or until its thread ended: the sum of the parts.
    #[must_use]
    pub fn wall(&self) -> Duration {
        Duration::from_nanos(self.parts.iter().map(|(_, nanos)| nanos).sum())
    }

    /// The time at each activity that there was.
    pub fn parts(&self) -> impl Iterator<Item = (Activity, Duration)> {
        self.parts.iter().map(|(activity, nanos)| (*activity, Duration::from_nanos(*nanos)))
    }

    /// The time at one activity.
    #[must_use]
    pub fn of(&self, activity: Activity) -> Duration {
        self.parts().filter(|(part, _)| *part == activity).map(|(_, time)| time).sum()
    }

    /// What has come to each part since an earlier reading of the same account. Where a part has become less, nothing: a thread
    /// that was stopped while it switched has told a reader too early how long it had been at what it had left.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let before =
            |activity| earlier.parts.iter().filter(|(part, _)| *part == activity).map(|(_, nanos)| nanos).sum();
        let parts = self.parts.iter().map(|(activity, nanos)| (*activity, nanos.saturating_sub(before(*activity))));
        Self { name: self.name.clone(), parts: parts.filter(|(_, nanos)| *nanos > 0).collect() }
    }

    /// Adds another's times.
    pub(super) fn merge(&mut self, other: &Self) {
        for (activity, nanos) in &other.parts {
            let known = self.parts.iter().any(|(part, _)| part == activity);
            // Bounded, whatever names ended threads had.
            let named = matches!(activity, Activity::External(_));
            let full = self.parts.len() >= 4 * PARTS;
            let activity = if named && full && !known { Activity::External(OTHER) } else { *activity };
            match self.parts.iter_mut().find(|(part, _)| *part == activity) {
                Some((_, sum)) => *sum += nanos,
                None => self.parts.push((activity, *nanos)),
            }
        }
    }
}
