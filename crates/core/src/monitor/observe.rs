//! Telling somebody outside what a thread that parks waits for.

use std::sync::OnceLock;

/// What a thread in a list waits for, for those who account for its time. Changes nothing in how it waits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum WaitFor {
    /// Other threads: a flush, a close, somebody else's computation.
    #[default]
    Threads,
    /// Work to do.
    Work,
    /// A place in something that is full.
    Place,
    /// A permit or a connection.
    Permit,
    /// The result of work that it has handed over.
    Result,
    /// Something to look after, now and then. Nobody waits for this thread.
    Background,
}

/// Called by a thread before it parks (`true`) and after (`false`), with no lock held.
pub type WaitObserver = fn(WaitFor, bool);

static OBSERVER: OnceLock<WaitObserver> = OnceLock::new();

/// Has `observer` told of every wait in a [`Monitor`](crate::Monitor) that really parks. The first one stays; false if there is
/// another one. It must not panic and not wait.
pub fn observe_waits(observer: WaitObserver) -> bool {
    OBSERVER.set(observer).is_ok()
}

/// Around the park of the calling thread.
pub(super) struct Observed(Option<(WaitObserver, WaitFor)>);

impl Observed {
    pub(super) fn begin(wait_for: WaitFor) -> Self {
        let observer = OBSERVER.get().map(|observer| (*observer, wait_for));
        if let Some((observer, wait_for)) = observer {
            observer(wait_for, true);
        }
        Self(observer)
    }
}

impl Drop for Observed {
    fn drop(&mut self) {
        if let Some((observer, wait_for)) = self.0 {
            observer(wait_for, false);
        }
    }
}
