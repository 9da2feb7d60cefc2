//! The one way to wait: state under a lock, lists of waiters inside that state, and a clock.
//!
//! See `README.md` beside this file for the protocol and why no wake-up can be lost.

mod observe;

use std::collections::VecDeque;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::clock::Clock;
use crate::parker::Parker;
use crate::sync::{Mutex, MutexGuard};
use observe::Observed;
pub use observe::{WaitFor, WaitObserver, observe_waits};

/// How long a waiter may be overtaken by newcomers before what it waits for is handed to it directly (C9).
///
/// Long enough for a woken thread to run in the ordinary case, so that no convoy forms; the value is that of
/// `parking_lot`'s fair unlock, doubled.
pub const FAIR_AFTER: Duration = Duration::from_millis(1);

/// State `S` behind a lock, on which threads can wait with a deadline. The only timed wait in the workspace.
///
/// The state holds one [`Waiters`] list for each thing that can be waited for. User code must never run while the lock is
/// held (C4).
pub struct Monitor<S> {
    state: Mutex<S>,
    clock: Clock,
}

impl<S> Monitor<S> {
    /// A monitor around `state` whose deadlines are read on `clock`.
    #[must_use]
    pub fn new(state: S, clock: Clock) -> Self {
        Self { state: Mutex::new(state), clock }
    }

    /// Takes the lock.
    pub fn lock(&self) -> Locked<'_, S> {
        Locked { monitor: self, guard: Some(self.state.lock()), wake: Wake::default() }
    }

    /// The clock that the deadlines are read on.
    #[must_use]
    pub fn clock(&self) -> &Clock {
        &self.clock
    }
}

impl<S> fmt::Debug for Monitor<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Monitor").field("clock", &self.clock).finish_non_exhaustive()
    }
}

/// The lock of a [`Monitor`], held. Threads notified through it are woken after it is released, so that they do not wake
/// up into a taken lock.
pub struct Locked<'a, S> {
    monitor: &'a Monitor<S>,
    /// `None` only between release and re-acquisition inside `wait`, and in `drop`.
    guard: Option<MutexGuard<'a, S>>,
    wake: Wake,
}

/// Threads to wake once the lock is free: one inline, as nearly always.
#[derive(Default)]
struct Wake {
    first: Option<Arc<Parker>>,
    more: Vec<Arc<Parker>>,
}

impl Wake {
    fn push(&mut self, parker: Arc<Parker>) {
        if self.first.is_none() {
            self.first = Some(parker);
        } else {
            self.more.push(parker);
        }
    }

    #[inline]
    fn fire(&mut self) {
        // Nearly always there is none at all.
        let Some(first) = self.first.take() else { return };
        first.unpark();
        for parker in self.more.drain(..) {
            parker.unpark();
        }
    }
}

/// A queue of waiting threads, first come first, kept inside the state of a [`Monitor`].
///
/// `G` is what can be handed to a waiter directly; `T` is what a waiter says about itself, for example the key it needs.
pub struct Waiters<G = (), T = ()> {
    queue: VecDeque<Arc<Waiter<G, T>>>,
    /// When something was last handed to a waiter because it was overdue.
    handed: Option<Instant>,
    wait_for: WaitFor,
}

struct Waiter<G, T> {
    parker: Arc<Parker>,
    since: Instant,
    deadline: Option<Instant>,
    tag: T,
    /// Written under the monitor's lock only; a lock of its own because the compiler cannot know that.
    turn: Mutex<Turn<G>>,
}

enum Turn<G> {
    Waiting,
    /// Told to look for itself; still queued. Newcomers may be faster.
    Nudged,
    /// Taken out of the queue with what it waited for.
    Granted(G),
}

/// One waiting thread, as [`Locked::serve`] shows it.
#[derive(Debug)]
#[non_exhaustive]
pub struct Waiting<'a, T> {
    /// What the waiter said about itself.
    pub tag: &'a T,
    /// When it began to wait.
    pub since: Instant,
}

/// What [`Locked::serve`]'s closure decides for a waiter.
#[derive(Debug)]
#[non_exhaustive]
pub enum Serve<G> {
    /// Nothing here for this one; look at the next.
    Skip,
    /// Let it look for itself; a newcomer may be faster.
    Nudge,
    /// It gets this, now.
    Grant(G),
    /// Nothing is left for anybody.
    Stop,
}

impl<G, T> Waiters<G, T> {
    /// An empty list.
    #[must_use]
    pub const fn new() -> Self {
        Self::of(WaitFor::Threads)
    }

    /// The same, of threads that wait for something else than for other threads.
    #[must_use]
    pub const fn of(wait_for: WaitFor) -> Self {
        Self { queue: VecDeque::new(), handed: None, wait_for }
    }

    /// How many threads wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.queue.len()
    }

    /// Whether nobody waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Since when the first in line has waited.
    #[must_use]
    pub fn oldest(&self) -> Option<Instant> {
        self.queue.front().map(|waiter| waiter.since)
    }
}

impl<G, T> Waiter<G, T> {
    /// Tells the waiter to look for itself; `false` if it was told before and has not looked yet.
    fn nudge(&self) -> bool {
        let mut turn = self.turn.lock();
        let asleep = matches!(*turn, Turn::Waiting);
        if asleep {
            *turn = Turn::Nudged;
        }
        asleep
    }
}

impl<G, T> Default for Waiters<G, T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<G, T> fmt::Debug for Waiters<G, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Waiters").field("len", &self.queue.len()).finish()
    }
}

impl<S> Locked<'_, S> {
    /// The present instant on the monitor's clock.
    #[must_use]
    pub fn now(&self) -> Instant {
        self.monitor.clock.now()
    }

    /// Waits, with the lock released, until `done` says so or `deadline` has come; `true` if `done` did. `done` is asked
    /// first and after each notification of the list, and once more at the deadline.
    pub fn wait_until(
        &mut self,
        on: impl Fn(&mut S) -> &mut Waiters,
        deadline: Option<Instant>,
        mut done: impl FnMut(&mut S) -> bool,
    ) -> bool {
        self.wait_turn(on, deadline, (), |state| done(state).then_some(())).is_some()
    }

    /// Waits in line until something is granted, or `take` finds it for itself after a nudge, or `deadline` has come.
    ///
    /// `take` is asked first, at every wake-up, and once more at the deadline: what was made available is never left
    /// behind by a waiter that gives up. A waiter that is nudged in vain keeps its place in line.
    ///
    /// `tag` is dropped under the lock, as `take` runs under it.
    ///
    /// # Panics
    /// If `take` does, for example in the `Hash` of a user's key. The thread is out of the line then, and all others in
    /// it look again.
    pub fn wait_turn<G, T>(
        &mut self,
        on: impl Fn(&mut S) -> &mut Waiters<G, T>,
        deadline: Option<Instant>,
        tag: T,
        take: impl FnMut(&mut S) -> Option<G>,
    ) -> Option<G> {
        self.wait_turn_after(on, deadline, tag, take, || {})
    }

    /// As [`wait_turn`](Self::wait_turn), and calls `first` each time before it parks: in line, and with the lock free. For what
    /// `take` found that others should do; whatever comes of that at once is not missed.
    ///
    /// # Panics
    /// As [`wait_turn`](Self::wait_turn). If `first` does, as if `take` had.
    pub fn wait_turn_after<G, T>(
        &mut self,
        on: impl Fn(&mut S) -> &mut Waiters<G, T>,
        deadline: Option<Instant>,
        tag: T,
        mut take: impl FnMut(&mut S) -> Option<G>,
        mut first: impl FnMut(),
    ) -> Option<G> {
        if let Some(taken) = take(self) {
            return Some(taken);
        }
        let since = self.now();
        if deadline.is_some_and(|deadline| deadline <= since) {
            return None;
        }
        let parker = Parker::of_this_thread();
        let waiter =
            Arc::new(Waiter { parker: Arc::clone(&parker), since, deadline, tag, turn: Mutex::new(Turn::Waiting) });
        let list = on(self);
        list.queue.push_back(Arc::clone(&waiter));
        let wait_for = list.wait_for;
        let line = InLine { locked: self, on: &on, waiter: &waiter };
        loop {
            let locked = &mut *line.locked;
            let monitor = locked.monitor;
            locked.released(|| {
                first();
                // It may have waited for something else, and woken up by what was meant for this wait.
                if matches!(*waiter.turn.lock(), Turn::Waiting) {
                    let _observed = Observed::begin(wait_for);
                    monitor.clock.park(&parker, deadline, wait_for != WaitFor::Background);
                }
            });
            match std::mem::replace(&mut *waiter.turn.lock(), Turn::Waiting) {
                // Who granted it took the waiter out of the line.
                Turn::Granted(grant) => {
                    std::mem::forget(line);
                    return Some(grant);
                }
                Turn::Waiting | Turn::Nudged => {}
            }
            let taken = take(locked);
            if taken.is_some() || deadline.is_some_and(|deadline| deadline <= locked.now()) {
                return taken;
            }
        }
    }

    /// Goes through the waiters in line and lets `decide` serve each. Waiters whose deadline has passed are skipped; those
    /// that were nudged before and have not run yet are asked again, but not woken twice.
    ///
    /// A waiter is shown to `decide` as ready for a direct grant when it has waited for [`FAIR_AFTER`], and nothing was handed
    /// over for as long: under overload everybody is that old, and a hand-over to each would cost a switch of threads for
    /// each.
    pub fn serve<G, T>(
        &mut self,
        on: impl Fn(&mut S) -> &mut Waiters<G, T>,
        decide: impl FnMut(&mut S, &Waiting<'_, T>, bool) -> Serve<G>,
    ) {
        self.serve_after(Duration::ZERO, on, decide);
    }

    /// As [`serve`](Self::serve), where what comes free had been in use for `used`. A hand-over costs what it takes a thread to
    /// wake up; where that is little beside the time of use, each may be one.
    pub fn serve_after<G, T>(
        &mut self,
        used: Duration,
        on: impl Fn(&mut S) -> &mut Waiters<G, T>,
        mut decide: impl FnMut(&mut S, &Waiting<'_, T>, bool) -> Serve<G>,
    ) {
        let mut at = 0;
        if on(self).is_empty() {
            return;
        }
        let now = self.now();
        let elapsed = |since: Instant| now.saturating_duration_since(since) >= FAIR_AFTER;
        let always = used >= FAIR_AFTER / 2;
        let mut may_hand_over = always || on(self).handed.is_none_or(elapsed);
        while let Some(waiter) = on(self).queue.get(at).map(Arc::clone) {
            if waiter.deadline.is_some_and(|deadline| deadline <= now) {
                at += 1;
                continue;
            }
            let overdue = may_hand_over && elapsed(waiter.since);
            match decide(self, &Waiting { tag: &waiter.tag, since: waiter.since }, overdue) {
                Serve::Stop => return,
                Serve::Skip => at += 1,
                Serve::Nudge => {
                    at += 1;
                    if waiter.nudge() {
                        self.wake.push(Arc::clone(&waiter.parker));
                    }
                }
                Serve::Grant(grant) => {
                    *waiter.turn.lock() = Turn::Granted(grant);
                    on(self).queue.remove(at);
                    if overdue {
                        on(self).handed = Some(now);
                        may_hand_over = always;
                    }
                    self.wake.push(Arc::clone(&waiter.parker));
                }
            }
        }
    }

    /// Lets the first thread in line that has not been told yet look again. For lists whose waiters all wait for the same:
    /// whoever is told and leaves has taken it, or found that it is gone.
    pub fn notify_one<G, T>(&mut self, on: impl Fn(&mut S) -> &mut Waiters<G, T>) {
        let told = on(self).queue.iter().find(|waiter| waiter.nudge()).map(|waiter| Arc::clone(&waiter.parker));
        if let Some(parker) = told {
            self.wake.push(parker);
        }
    }

    /// Lets every thread in line look again.
    pub fn notify_all<G, T>(&mut self, on: impl Fn(&mut S) -> &mut Waiters<G, T>) {
        for at in 0..on(self).queue.len() {
            let waiter = &on(self).queue[at];
            if waiter.nudge() {
                let parker = Arc::clone(&waiter.parker);
                self.wake.push(parker);
            }
        }
    }

    /// Runs `f` with the lock released, then takes it again. Pending wake-ups are delivered first.
    pub fn released<R>(&mut self, f: impl FnOnce() -> R) -> R {
        /// Takes the lock again, also when `f` panics: the way out of a panic leads through it.
        struct Again<'l, 'a, S>(&'l mut Locked<'a, S>);

        impl<S> Drop for Again<'_, '_, S> {
            fn drop(&mut self) {
                self.0.guard = Some(self.0.monitor.state.lock());
            }
        }

        self.guard = None;
        self.wake.fire();
        let _again = Again(self);
        f()
    }
}

/// A waiter's place in line, given up however the wait ends (except by a grant, which takes it out of the line itself).
struct InLine<'a, 'm, S, G, T, F>
where
    F: Fn(&mut S) -> &mut Waiters<G, T>,
{
    locked: &'a mut Locked<'m, S>,
    on: &'a F,
    waiter: &'a Arc<Waiter<G, T>>,
}

impl<S, G, T, F> Drop for InLine<'_, '_, S, G, T, F>
where
    F: Fn(&mut S) -> &mut Waiters<G, T>,
{
    fn drop(&mut self) {
        let Self { locked, on, waiter } = self;
        let queue = &mut on(locked).queue;
        if let Some(at) = queue.iter().position(|other| Arc::ptr_eq(other, waiter)) {
            queue.remove(at);
        }
        if std::thread::panicking() {
            // `take` panicked: what this thread was told of is still there.
            locked.notify_all(*on);
        }
    }
}

impl<S> Deref for Locked<'_, S> {
    type Target = S;
    fn deref(&self) -> &S {
        self.guard.as_ref().expect(HELD)
    }
}

impl<S> DerefMut for Locked<'_, S> {
    fn deref_mut(&mut self) -> &mut S {
        self.guard.as_mut().expect(HELD)
    }
}

/// `guard` is `None` only while `released` runs (which borrows the lock mutably) or in `drop`.
const HELD: &str = "the lock is held outside `released`";

impl<S> Drop for Locked<'_, S> {
    #[inline]
    fn drop(&mut self) {
        self.guard = None;
        self.wake.fire();
    }
}

impl<S> fmt::Debug for Locked<'_, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Locked").finish_non_exhaustive()
    }
}
