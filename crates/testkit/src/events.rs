//! What a primitive says through `tracing`, as text (for the contract's C11).

use std::fmt::{Debug, Write as _};
use std::sync::{Arc, Mutex, PoisonError};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

/// Runs `f` and returns the events of target `fullbore` that the calling thread emitted meanwhile, each as
/// `field=value field=value ...`.
pub fn capture(f: impl FnOnce()) -> Vec<String> {
    capture_with(|_| f())
}

/// As [`capture`], for events of other threads too: `f` gets a subscriber handle that those threads enter with
/// `tracing::dispatcher::with_default`.
pub fn capture_with(f: impl FnOnce(&tracing::Dispatch)) -> Vec<String> {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let dispatch = tracing::Dispatch::new(Collector { seen: Arc::clone(&seen) });
    tracing::dispatcher::with_default(&dispatch, || f(&dispatch));
    let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
    std::mem::take(&mut *seen)
}

/// Makes one collector the subscriber of the whole process, for events of a primitive's own threads, and returns a
/// function that gives what has been emitted so far. Call it once in a test binary.
///
/// # Panics
/// If the process has a global subscriber already.
pub fn capture_everywhere() -> impl Fn() -> Vec<String> {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let dispatch = tracing::Dispatch::new(Collector { seen: Arc::clone(&seen) });
    assert!(tracing::dispatcher::set_global_default(dispatch).is_ok(), "one global collector in a process");
    move || seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

struct Collector {
    seen: Arc<Mutex<Vec<String>>>,
}

impl Subscriber for Collector {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_span() || metadata.target() == "fullbore"
    }
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn event(&self, event: &Event<'_>) {
        let mut line = Line(String::new());
        event.record(&mut line);
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).push(line.0);
    }
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let gap = if self.0.is_empty() { "" } else { " " };
        // Writing into a String cannot fail.
        let _ = write!(self.0, "{gap}{}={value:?}", field.name());
    }
}
