//! Whose process function the thread is in.

use std::cell::Cell;

use fullbore_metrics::StationId;

thread_local!(static SERVES: Cell<Option<StationId>> = const { Cell::new(None) });

/// The calling thread runs the process function of the batcher with this station from now on.
pub(crate) fn serve(of: StationId) {
    SERVES.with(|serves| serves.set(Some(of)));
}

/// Whether the calling thread is one of the batcher with this station: whoever waits here waits for himself. Not
/// `Crew::is_member`, which takes a lock: every `send` asks.
pub(crate) fn is_inside(of: StationId) -> bool {
    SERVES.with(|serves| serves.get() == Some(of))
}
