use std::{
    thread,
    time::{Duration, Instant},
};

/// How often the condition is looked at.
const EVERY: Duration = Duration::from_millis(10);

/// Waits until `condition` holds, for at most `within`; returns whether it came to hold.
///
/// It polls, and that is why it has a narrow use: the state of *another process* (a pid that vanishes, a port that stops
/// accepting), for which there is no event to wait for. For our own threads wait for the event itself; for a proxy there
/// is [`TcpProxy::wait_for`](crate::TcpProxy::wait_for).
///
/// ```
/// use std::time::Duration;
///
/// let mut looks = 0;
/// assert!(fullbore_testkit::eventually(Duration::from_secs(30), || {
///     looks += 1;
///     looks == 3
/// }));
/// ```
#[must_use]
pub fn eventually(within: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    loop {
        if condition() {
            return true;
        }
        let left = within.saturating_sub(start.elapsed());
        if left.is_zero() {
            return false;
        }
        thread::sleep(left.min(EVERY));
    }
}
