//! Rare events for those who follow along (C11). With feature `tracing` off every call here is empty.

use std::fmt;

use crate::error::contain;

/// What happened. None of these happens for each item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// An item was displaced or dropped.
    Drop,
    /// Work is tried again.
    Retry,
    /// An item went to the dead letters.
    DeadLetter,
    /// A connection was lost, refused or made again.
    Reconnect,
    /// User code panicked on one of our threads.
    Panic,
    /// A thread or accepted work was left behind at close.
    Abandoned,
    /// Something that was lent has been out for too long, or came back after that.
    Leak,
    /// A thread asks for a second one of what it holds already.
    Nested,
    /// A breaker opened or closed.
    Breaker,
}

impl Event {
    /// How many kinds there are.
    #[cfg(feature = "tracing")]
    const COUNT: usize = 9;

    /// The name in the event's `event` field.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Event::Drop => "drop",
            Event::Retry => "retry",
            Event::DeadLetter => "dead_letter",
            Event::Reconnect => "reconnect",
            Event::Panic => "panic",
            Event::Abandoned => "abandoned",
            Event::Leak => "leak",
            Event::Nested => "nested",
            Event::Breaker => "breaker",
        }
    }
}

/// The events of one primitive: target `fullbore`, fields `area`, `name`, `event`, and `suppressed`, the number of events
/// of the same kind that were left out since the last one: at most one a second of each kind is emitted.
#[derive(Debug)]
pub struct Events {
    #[cfg(feature = "tracing")]
    inner: imp::Inner,
}

impl Events {
    /// Events of the primitive `name` of the crate `area`.
    #[must_use]
    #[cfg_attr(not(feature = "tracing"), expect(unused_variables, reason = "nothing is emitted"))]
    pub fn new(area: &'static str, name: &str) -> Self {
        Self {
            #[cfg(feature = "tracing")]
            inner: imp::Inner::new(area, name),
        }
    }

    /// Emits one, if it is due. `detail` is built only then.
    ///
    /// Subscribers are user code, and so is what they print: a panic there ends here, and changes nothing in what is told of.
    #[cfg_attr(not(feature = "tracing"), expect(unused_variables, reason = "nothing is emitted"))]
    #[inline]
    pub fn emit<D: fmt::Display>(&self, event: Event, detail: impl FnOnce() -> D) {
        #[cfg(feature = "tracing")]
        self.inner.emit(event, detail);
    }

    /// Runs user code where a panic has nobody to go to: a destructor, a hook on our own thread. A panic is an event.
    pub fn contained(&self, f: impl FnOnce()) {
        if let Err(panicked) = contain(f) {
            self.emit(Event::Panic, || panicked);
        }
    }
}

/// The span in which an item was handed over, to be entered again by the worker. Empty without feature `tracing`.
#[derive(Clone, Debug, Default)]
pub struct CallerSpan {
    #[cfg(feature = "tracing")]
    span: Option<tracing::Span>,
}

impl CallerSpan {
    /// The calling thread's span.
    #[must_use]
    #[inline]
    pub fn current() -> Self {
        Self {
            #[cfg(feature = "tracing")]
            span: Some(tracing::Span::current()).filter(|span| !span.is_none()),
        }
    }

    /// Whether there is one.
    #[must_use]
    #[inline]
    pub fn is_some(&self) -> bool {
        #[cfg(feature = "tracing")]
        return self.span.is_some();
        #[cfg(not(feature = "tracing"))]
        false
    }

    /// Lets go of it. That may be the end of the span, which a subscriber is told of: user code.
    pub fn end(self) {
        #[cfg(feature = "tracing")]
        drop(self.span);
    }

    /// Runs `f` inside the span.
    #[inline]
    pub fn in_scope<R>(&self, f: impl FnOnce() -> R) -> R {
        #[cfg(feature = "tracing")]
        if let Some(span) = &self.span {
            return span.in_scope(f);
        }
        f()
    }
}

#[cfg(feature = "tracing")]
mod imp {
    use super::Event;
    use crate::error::contain;
    use std::fmt;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Instant;

    #[derive(Debug)]
    pub(super) struct Inner {
        area: &'static str,
        name: String,
        born: Instant,
        kinds: [Kind; Event::COUNT],
    }

    #[derive(Debug, Default)]
    struct Kind {
        /// Milliseconds since `born` until which this kind is silent.
        silent_until: AtomicU64,
        suppressed: AtomicU64,
    }

    impl Inner {
        pub(super) fn new(area: &'static str, name: &str) -> Self {
            Self { area, name: name.to_owned(), born: Instant::now(), kinds: Default::default() }
        }

        pub(super) fn emit<D: fmt::Display>(&self, event: Event, detail: impl FnOnce() -> D) {
            let kind = &self.kinds[event as usize];
            let now = u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX);
            let until = kind.silent_until.load(Ordering::Relaxed);
            // ORDERING: Relaxed throughout: the counters limit a rate and publish nothing; who wins the exchange emits.
            let mine = now >= until
                && kind
                    .silent_until
                    .compare_exchange(until, now.saturating_add(1000), Ordering::Relaxed, Ordering::Relaxed)
                    .is_ok();
            if !mine {
                kind.suppressed.fetch_add(1, Ordering::Relaxed);
                return;
            }
            let suppressed = kind.suppressed.swap(0, Ordering::Relaxed);
            let (area, name, kind) = (self.area, self.name.as_str(), event.name());
            // The panic hook has told of it, and there is nobody else to tell.
            contain(|| {
                let detail = detail();
                tracing::warn!(target: "fullbore", area, name, event = kind, suppressed, "{detail}");
            })
            .ok();
        }
    }

    #[cfg(all(test, not(fullbore_loom)))]
    mod tests {
        use super::{Event, Inner, Ordering};
        use std::fmt;

        struct Spiteful;

        impl fmt::Display for Spiteful {
            fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
                std::panic::resume_unwind(Box::new("on purpose"))
            }
        }

        #[test]
        fn a_panic_while_it_is_told_of_ends_there() {
            let events = Inner::new("core", "spiteful");
            let seen = fullbore_testkit::events::capture(|| {
                events.emit(Event::Drop, || Spiteful);
                events.emit(Event::Panic, || "told after it");
            });
            assert_eq!(seen.len(), 1);
            assert!(seen[0].contains("told after it"));
        }

        #[test]
        fn what_was_left_out_is_counted_in_the_next_one() {
            let events = Inner::new("core", "limited");
            let emit = |kind| fullbore_testkit::events::capture(|| events.emit(kind, || "why"));
            assert!(emit(Event::Drop)[0].contains("suppressed=0"));
            // Far into the future, so that the test does not depend on its speed.
            let silent_until = &events.kinds[Event::Drop as usize].silent_until;
            silent_until.store(u64::MAX, Ordering::Relaxed);
            assert!(emit(Event::Drop).is_empty() && emit(Event::Drop).is_empty());
            assert_eq!(emit(Event::Abandoned).len(), 1, "each kind for itself");
            silent_until.store(0, Ordering::Relaxed);
            assert!(emit(Event::Drop)[0].contains("suppressed=2"));
            assert!(silent_until.load(Ordering::Relaxed) >= 1000, "silent for a second");
        }
    }
}
