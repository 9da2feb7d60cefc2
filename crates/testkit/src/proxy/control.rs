//! What the handle and the thread of a proxy tell each other.

use std::{
    io::{self, Write as _},
    os::unix::net::UnixStream,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Faults {
    pub(super) delay: Duration,
    pub(super) black_hole: bool,
    pub(super) refuse: bool,
}

/// What the thread shall do.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Orders {
    pub(super) faults: Faults,
    /// How many cuts were ordered so far.
    pub(super) cuts: u64,
    pub(super) stop: bool,
    /// Which orders these are; the thread reports this number when it has carried them out.
    number: u64,
}

/// What happened in a [`TcpProxy`](super::TcpProxy). A chunk is what one read returned, or an end of stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ProxyStats {
    /// Connections accepted so far.
    pub accepted: u64,
    /// Connections open now.
    pub open: usize,
    /// Connections closed by [`TcpProxy::cut`](super::TcpProxy::cut).
    pub cut: u64,
    /// Connections reset because the server behind could not be reached.
    pub unreachable: u64,
    /// Chunks that came in while a delay was set.
    pub delayed: u64,
    /// Chunks on their way now: delayed, held by a black hole, or waiting for a slow reader.
    pub held: usize,
    /// Bytes passed on to the server.
    pub bytes_up: u64,
    /// Bytes passed on to clients.
    pub bytes_down: u64,
    /// How often the thread woke up.
    pub wakeups: u64,
}

#[derive(Debug)]
pub(super) struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    alarm: UnixStream,
}

#[derive(Debug, Default)]
struct State {
    orders: Orders,
    carried_out: u64,
    stats: ProxyStats,
    ended: bool,
}

impl Shared {
    pub(super) fn new(alarm: UnixStream) -> io::Result<Self> {
        // A full alarm pipe has woken the thread already.
        alarm.set_nonblocking(true)?;
        Ok(Self { state: Mutex::default(), changed: Condvar::new(), alarm })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // --- the handle's side ---

    /// Changes the orders and waits until they are carried out.
    pub(super) fn order(&self, change: impl FnOnce(&mut Orders)) {
        let mut state = self.lock();
        change(&mut state.orders);
        state.orders.number += 1;
        let number = state.orders.number;
        self.ring();
        while state.carried_out < number {
            assert!(!state.ended, "the proxy's thread has panicked; its message is above");
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    pub(super) fn stop(&self) {
        self.lock().orders.stop = true;
        self.ring();
    }

    pub(super) fn faults(&self) -> Faults {
        self.lock().orders.faults
    }

    pub(super) fn stats(&self) -> ProxyStats {
        self.lock().stats
    }

    pub(super) fn wait_for(&self, within: Duration, mut condition: impl FnMut(&ProxyStats) -> bool) -> bool {
        let (state, _) = self
            .changed
            .wait_timeout_while(self.lock(), within, |state| !state.ended && !condition(&state.stats))
            .unwrap_or_else(PoisonError::into_inner);
        condition(&state.stats)
    }

    fn ring(&self) {
        let _ = (&self.alarm).write(&[0]);
    }

    // --- the thread's side ---

    pub(super) fn orders(&self) -> Orders {
        self.lock().orders
    }

    /// Tells that `orders` are carried out, and what has happened by now.
    pub(super) fn report(&self, orders: &Orders, stats: ProxyStats) {
        let mut state = self.lock();
        state.carried_out = orders.number;
        state.stats = stats;
        self.changed.notify_all();
    }

    /// Whoever waits for the thread must not wait for ever.
    pub(super) fn ended(&self) {
        self.lock().ended = true;
        self.changed.notify_all();
    }
}
