//! Who may publish how far, who waits for whom, and who is told. `README.md` of the crate has the protocol.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use fullbore_core::barrier::Barrier;
use fullbore_core::looks::{Looks, Round, pause};
use fullbore_core::{Clock, FAIR_AFTER, Locked, Monitor, Patience, Refusal, WaitFor, Waiters, earlier};

use super::desk::Desk;
use super::entry::{Entry, LagPolicy};
use super::ring::{Apart, Moving, Pin, Published, Ring, Vacant, Writer};
use super::seat::{Me, Post, Seat};
use super::sync::{AtomicU64, Ordering};

/// Slots of a block: one lock for so many messages, of each subscriber.
const MOST_SLOTS: u64 = 128;
const LEAST_SLOTS: u64 = if cfg!(fullbore_loom) { 2 } else { 16 };

/// A publisher that has to wait does so, for a short time, until no more than this part of a lag is unread.
const AMPLE: u64 = 16;

/// A publisher that has come to the lock so often in a row goes on without: to take that back costs as much as some of them.
const SEAT_AFTER: u32 = if cfg!(fullbore_loom) { 1 } else { 32 };

/// So many others are woken by each one that has been woken itself.
const PASSED_ON: usize = 2;

pub(crate) struct Hub<T> {
    ring: Arc<Ring<T>>,
    monitor: Apart<Monitor<State<T>>>,
    /// 1 once nothing more is accepted.
    closed: AtomicU64,
    barrier: Barrier,
    capacity: u64,
    max_wait: Duration,
}

struct State<T> {
    post: Post<T>,
    published: Arc<Published>,
    /// Who has published last, and how many times in a row without anybody in between who needed the writer.
    last: (u64, u32),
    /// The first number for which there is more to do than to write it: 0, or not beyond the block, nor what a subscription may have.
    limit: u64,
    closed: bool,
    entries: Vec<Entry<T>>,
    spare: Option<Vacant<T>>,
    /// One of the subscribers that sleep has been woken, and will wake others.
    rousing: bool,
    sleepers: Waiters,
    /// Publishers that wait for any room at all.
    room: Waiters,
    /// Publishers that wait for ample room, for a millisecond at most: one of them at a time is told, for it will use it all.
    ample: Waiters,
    /// Closes that wait for subscribers.
    drained: Waiters,
    publisher_looks: Looks,
}

/// A publisher that waits for subscribers.
struct Waiting {
    began: Instant,
    deadline: Option<Instant>,
    /// Until then it waits for more room than for one message: a switch of threads for each would cost more than the messages.
    ample_until: Option<Instant>,
    looks: Round,
}

impl Waiting {
    fn wants_ample(&self, now: Instant) -> bool {
        self.ample_until.is_some_and(|until| now < until)
    }
}

/// What stands in a subscriber's way.
pub(crate) enum Crossing {
    /// Nothing any more.
    Nothing,
    /// So many were missed; it goes on at this number.
    Missed(u64, u64),
    /// It is no subscriber any more.
    Evicted,
}

impl<T: Send + Sync> Hub<T> {
    pub(crate) fn new(capacity: usize, max_wait: Duration, clock: Clock) -> Self {
        let capacity = capacity as u64;
        let slots = (capacity / 8).clamp(LEAST_SLOTS, MOST_SLOTS).next_power_of_two();
        let (ring, writer) = Ring::new(capacity, slots, clock.clone());
        let state = State {
            post: Post::new(writer, ring.published()),
            published: Arc::clone(ring.published()),
            last: (0, 0),
            limit: 0,
            closed: false,
            entries: Vec::new(),
            spare: None,
            rousing: false,
            sleepers: Waiters::of(WaitFor::Work),
            room: Waiters::of(WaitFor::Place),
            ample: Waiters::of(WaitFor::Place),
            drained: Waiters::new(),
            publisher_looks: Looks::new(),
        };
        Self {
            ring,
            monitor: Apart(Monitor::new(state, clock)),
            closed: AtomicU64::new(0),
            barrier: Barrier::of_this_process(),
            capacity,
            max_wait,
        }
    }
}

impl<T> State<T> {
    /// The number of the next message. It may go on at any time unless nobody is in the seat.
    fn tail(&self) -> u64 {
        self.published.tail()
    }

    fn line(&mut self, ample: bool) -> &mut Waiters {
        if ample { &mut self.ample } else { &mut self.room }
    }

    /// Has every publisher come to the lock for its next message.
    fn stop(&mut self, barrier: Barrier) {
        if self.post.stop(barrier) {
            self.last = (0, 0);
        }
    }

    /// How far publishers may go now: up to the end of the block, or to what the first subscription may have. `false` if one has to be
    /// waited for; if not, sees to the others that have as much as they may have.
    fn may_go_on(&mut self) -> bool {
        let tail = self.tail();
        let mut limit = self.post.with(|writer| writer.end()).max(tail);
        self.limit = 0;
        for entry in self.blocking() {
            let unread = entry.unread(tail);
            if unread >= entry.lag {
                return false;
            }
            limit = limit.min(tail + (entry.lag - unread));
        }
        // Only now: what is not published evicts nobody.
        let mut evicted = false;
        for entry in &mut self.entries {
            if !matches!(entry.policy, LagPolicy::Reject | LagPolicy::Evict) || entry.is_shut() {
                continue;
            }
            let unread = entry.unread(tail);
            if unread < entry.lag {
                limit = limit.min(tail + (entry.lag - unread));
            } else if entry.policy == LagPolicy::Reject {
                entry.shut(tail);
            } else {
                entry.desk.leave(tail);
                entry.desk.set_bound(0);
                evicted = true;
            }
        }
        if evicted {
            self.entries.retain(|entry| entry.desk.bound() != 0);
        }
        self.limit = limit;
        true
    }

    /// Wants to be told when those that have too much have read some of it.
    fn want_room(&self, ample: bool) {
        let tail = self.tail();
        for entry in self.blocking() {
            let most = if ample { entry.lag / AMPLE } else { entry.lag - 1 };
            if entry.unread(tail) > most {
                entry.desk.want(entry.position(tail, most));
            }
        }
    }

    /// Whether nobody has to be waited for again soon.
    fn has_ample_room(&self) -> bool {
        let tail = self.tail();
        self.blocking().all(|entry| entry.unread(tail) <= entry.lag / AMPLE)
    }

    fn blocking(&self) -> impl Iterator<Item = &Entry<T>> {
        self.entries.iter().filter(|entry| entry.policy == LagPolicy::Block)
    }

    fn is_full_on(&self, thread: u64) -> bool {
        let tail = self.tail();
        self.blocking().any(|entry| entry.desk.is_busy_on(thread) && entry.unread(tail) >= entry.lag)
    }

    fn find(&mut self, desk: &Arc<Desk>) -> Option<usize> {
        self.entries.iter().position(|entry| Arc::ptr_eq(&entry.desk, desk))
    }
}

impl<T> Hub<T> {
    pub(crate) fn clock(&self) -> &Clock {
        self.monitor.0.clock()
    }

    pub(crate) fn capacity(&self) -> u64 {
        self.capacity
    }

    pub(crate) fn barrier(&self) -> Barrier {
        self.barrier
    }

    pub(crate) fn ring(&self) -> &Arc<Ring<T>> {
        &self.ring
    }

    pub(crate) fn published(&self) -> &Arc<Published> {
        self.ring.published()
    }

    pub(crate) fn is_closed(&self) -> bool {
        // ORDERING: Acquire pairs with the Release in `close`: who sees it sees everything that was published.
        self.closed.load(Ordering::Acquire) != 0
    }

    // Publishers.

    /// Publishes a message. `seat` is the caller's. For how long it waited.
    ///
    /// # Errors
    /// The message, with the reason.
    #[inline(always)]
    pub(crate) fn publish(
        &self,
        message: T,
        patience: Patience,
        me: Me,
        seat: &OnceLock<Arc<Seat<T>>>,
    ) -> Result<Duration, (T, Refusal)> {
        let message = match seat.get() {
            Some(seat) => match seat.publish(me, self.barrier, message) {
                Ok(()) => return Ok(Duration::ZERO),
                Err(message) => message,
            },
            None => message,
        };
        self.publish_by_lock(message, patience, me, seat)
    }

    #[inline(never)]
    fn publish_by_lock(
        &self,
        message: T,
        patience: Patience,
        me: Me,
        seat: &OnceLock<Arc<Seat<T>>>,
    ) -> Result<Duration, (T, Refusal)> {
        let mut state = self.monitor.0.lock();
        state.post.stop_for(me, self.barrier);
        let mut waited = Duration::ZERO;
        if state.tail() >= state.limit {
            match self.admit(&mut state, patience, me) {
                Ok(wait) => waited = wait,
                Err(reason) => return Err((message, reason)),
            }
        }
        state.post.with(|writer| {
            writer.put(message);
            writer.publish();
        });
        Self::rouse(&mut state);
        Self::seat(&mut state, me, seat);
        Ok(waited)
    }

    /// Publishes all of these, in order, as if one by one. For how long it waited in all.
    ///
    /// # Errors
    /// The reason; what was not published is still there.
    pub(crate) fn publish_all(
        &self,
        messages: &mut Moving<'_, T>,
        patience: Patience,
        me: Me,
        seat: &OnceLock<Arc<Seat<T>>>,
    ) -> Result<Duration, Refusal> {
        let mut waited = Duration::ZERO;
        let mut state = self.monitor.0.lock();
        state.post.stop_for(me, self.barrier);
        while messages.left() > 0 {
            if state.tail() >= state.limit {
                waited += self.admit(&mut state, patience, me)?;
            }
            let n = (state.limit - state.tail()).min(messages.left() as u64);
            state.post.with(|writer| {
                writer.put_from(messages, n as usize);
                writer.publish();
            });
            Self::rouse(&mut state);
        }
        Self::seat(&mut state, me, seat);
        Ok(waited)
    }

    /// Lets a publisher that has come here several times in a row go on without the lock (S3).
    fn seat(state: &mut Locked<'_, State<T>>, me: Me, seat: &OnceLock<Arc<Seat<T>>>) {
        let (last, times) = state.last;
        let times = if last == me.number() { times.saturating_add(1) } else { 1 };
        state.last = (me.number(), times);
        let all_awake = state.sleepers.is_empty() || state.rousing;
        if times >= SEAT_AFTER && all_awake && !state.closed && state.tail() < state.limit {
            let limit = state.limit;
            let seat = seat.get_or_init(|| state.post.seat(me));
            state.post.grant(me, seat, limit);
        }
    }

    /// Makes it so that the next number is below the limit, if need be by waiting.
    #[cold]
    fn admit(&self, state: &mut Locked<'_, State<T>>, patience: Patience, me: Me) -> Result<Duration, Refusal> {
        let mut waiting: Option<Waiting> = None;
        loop {
            // The lock was released, perhaps.
            state.stop(self.barrier);
            if state.closed {
                return Err(Refusal::Closed);
            }
            let ample = waiting.as_ref().is_some_and(|waiting| waiting.wants_ample(state.now()));
            if state.may_go_on() && (!ample || state.has_ample_room()) {
                if state.tail() < state.limit {
                    let began = waiting.map(|waiting| waiting.began);
                    return Ok(began.map_or(Duration::ZERO, |began| state.now().saturating_duration_since(began)));
                }
                self.next_block(state);
                continue;
            }
            let Patience::Policy(cap) = patience else { return Err(Refusal::Full) };
            // A subscription of which this thread has a message in its hands will not read the next before this returns.
            if state.is_full_on(me.number()) {
                return Err(Refusal::Full);
            }
            let now = state.now();
            let waiting = waiting.get_or_insert_with(|| Waiting {
                began: now,
                deadline: earlier(now.checked_add(self.max_wait), cap),
                // A clock that stands still would never let it end.
                ample_until: matches!(self.clock(), Clock::Real).then(|| now + FAIR_AFTER),
                looks: Round::new(state.publisher_looks.bound(), self.clock()),
            });
            if waiting.deadline.is_some_and(|deadline| deadline <= now) {
                return Err(Refusal::TimedOut);
            }
            if let Some(look) = waiting.looks.next() {
                state.released(|| pause(look));
                continue;
            }
            let ample = waiting.wants_ample(now);
            let until = if ample { earlier(waiting.deadline, waiting.ample_until) } else { waiting.deadline };
            let enough = |state: &mut State<T>| {
                state.stop(self.barrier);
                let enough = |state: &mut State<T>| state.may_go_on() && (!ample || state.has_ample_room());
                state.closed || enough(state) || {
                    state.want_room(ample);
                    self.barrier.heavy();
                    enough(state)
                }
            };
            state.wait_until(|state| state.line(ample), until, enough);
            let slept = state.now().saturating_duration_since(now);
            state.publisher_looks.learn(slept);
        }
    }

    /// At the end of a block: goes on in the next, or releases the lock to do what must not be done under it, and is called again.
    fn next_block(&self, state: &mut Locked<'_, State<T>>) {
        let inner = &mut **state;
        if let Some(old) = inner.post.with(Writer::take_old) {
            let numbers = old.numbers();
            for entry in &mut inner.entries {
                if entry.needs(&numbers) {
                    entry.keep(old.pin());
                }
            }
            if !std::mem::needs_drop::<T>() {
                inner.spare = old.empty().or(inner.spare.take());
            } else {
                // The messages' destructors are the user's.
                let vacant = state.released(|| old.empty());
                state.spare = vacant.or(state.spare.take());
                return;
            }
        }
        if inner.tail() < inner.post.with(|writer| writer.end()) {
            return;
        }
        match inner.spare.take() {
            Some(vacant) => inner.post.with(|writer| writer.enter(vacant)),
            None => {
                let vacant = state.released(|| self.ring.fresh());
                let old = state.spare.replace(vacant);
                drop(old);
            }
        }
    }

    /// Something was published: if subscribers sleep, one of them is woken, who wakes the others.
    #[inline]
    fn rouse(state: &mut Locked<'_, State<T>>) {
        if !state.sleepers.is_empty() && !state.rousing {
            state.rousing = true;
            state.notify_one(|state| &mut state.sleepers);
        }
    }

    // Subscribers.

    /// A new subscription, which begins with the last `retained` messages, as far as it may have them.
    pub(crate) fn join(&self, lag: u64, policy: LagPolicy, retained: u64) -> Option<Arc<Desk>> {
        let mut state = self.monitor.0.lock();
        if state.closed {
            return None;
        }
        state.stop(self.barrier);
        let tail = state.tail();
        // The ring has no fewer than its capacity.
        let start = tail - retained.min(lag).min(self.capacity).min(tail);
        let desk = Arc::new(Desk::new(start, self.published()));
        state.entries.push(Entry::new(Arc::clone(&desk), lag, policy));
        // How far publishers may go depends on it.
        state.limit = 0;
        Some(desk)
    }

    /// Ends a subscription. To be dropped without a lock: what was kept for it.
    pub(crate) fn leave(&self, desk: &Arc<Desk>) -> Option<impl Sized + use<T>> {
        let mut state = self.monitor.0.lock();
        let at = state.find(desk)?;
        state.stop(self.barrier);
        let entry = state.entries.swap_remove(at);
        desk.leave(state.tail());
        Self::moved(&mut state);
        Some(entry)
    }

    /// A cursor has moved, or has gone: those who wait for that look again.
    fn moved(state: &mut Locked<'_, State<T>>) {
        state.limit = 0;
        state.notify_all(|state| &mut state.room);
        state.notify_one(|state| &mut state.ample);
        state.notify_all(|state| &mut state.drained);
    }

    /// Somebody wanted this subscriber's cursor to come where it is.
    #[cold]
    pub(crate) fn arrived(&self, desk: &Arc<Desk>) {
        let mut state = self.monitor.0.lock();
        desk.want_nothing();
        self.reopen(&mut state, desk);
        Self::moved(&mut state);
    }

    /// Accepts messages again for a subscription that has read half of what it had.
    fn reopen(&self, state: &mut Locked<'_, State<T>>, desk: &Arc<Desk>) {
        let Some(at) = state.find(desk).filter(|at| state.entries[*at].is_shut()) else { return };
        // How far the one in the seat may go will depend on this one, too.
        state.stop(self.barrier);
        let tail = state.tail();
        let entry = &mut state.entries[at];
        if entry.unread(tail) <= entry.lag / 2 {
            entry.open(tail);
            state.limit = 0;
        } else {
            let half = entry.position(tail, entry.lag / 2);
            entry.desk.want(half);
        }
    }

    /// What stands in the way at the desk's bound, where its subscriber is. `jump` moves its cursor.
    #[cold]
    pub(crate) fn cross(&self, desk: &Arc<Desk>, next: u64, jump: impl FnOnce(u64)) -> Crossing {
        let mut state = self.monitor.0.lock();
        self.reopen(&mut state, desk);
        let Some(at) = state.find(desk) else { return Crossing::Evicted };
        let crossed = state.entries[at].cross(next);
        if let Some((_, to)) = crossed {
            // In one with the gap, which is not counted as unread.
            jump(to);
        }
        crossed.map_or(Crossing::Nothing, |(missed, to)| Crossing::Missed(missed, to))
    }

    /// A block that has gone from the ring and was kept for this subscription.
    #[cold]
    pub(crate) fn take_kept(&self, desk: &Arc<Desk>, next: u64) -> Option<Pin<T>> {
        let mut state = self.monitor.0.lock();
        let at = state.find(desk)?;
        let first = self.ring.first_of(next);
        state.entries[at].take_kept(first)
    }

    /// Waits until there is more than `next`, or there is something to be told. `false` at the deadline.
    pub(crate) fn sleep(&self, desk: &Desk, next: u64, deadline: Option<Instant>) -> bool {
        let mut state = self.monitor.0.lock();
        let something = |state: &State<T>| state.closed || state.tail() > next || desk.bound() == 0;
        if something(&state) {
            return true;
        }
        let mut slept = false;
        let found = state.wait_until(
            |state| &mut state.sleepers,
            deadline,
            |state| {
                // Whoever publishes from now on sees that this one sleeps (S3).
                state.stop(self.barrier);
                let found = something(state);
                if !found {
                    // Whoever was woken for nothing wakes nobody (H4).
                    state.rousing = false;
                    slept = true;
                }
                found
            },
        );
        if found && slept {
            if state.sleepers.is_empty() {
                state.rousing = false;
            } else {
                (0..PASSED_ON).for_each(|_| state.notify_one(|state| &mut state.sleepers));
            }
        }
        found
    }

    // Everybody.

    /// Accepts nothing from now on, and lets everybody know. Idempotent.
    pub(crate) fn close(&self) {
        let mut state = self.monitor.0.lock();
        state.stop(self.barrier);
        state.closed = true;
        state.limit = 0;
        // ORDERING: Release pairs with the Acquire in `is_closed`.
        self.closed.store(1, Ordering::Release);
        state.notify_all(|state| &mut state.sleepers);
        state.notify_all(|state| &mut state.room);
        state.notify_all(|state| &mut state.ample);
        state.notify_all(|state| &mut state.drained);
    }

    /// Waits until all subscribers have read everything, or have gone. Those that have not at the deadline, and how much is left to them.
    pub(crate) fn wait_until_drained(&self, deadline: Option<Instant>) -> Vec<(Arc<Desk>, u64)> {
        let left = |state: &State<T>| -> Vec<(Arc<Desk>, u64)> {
            let tail = state.tail();
            let unread = state.entries.iter().map(|entry| (Arc::clone(&entry.desk), entry.unread(tail)));
            unread.filter(|(_, unread)| *unread > 0).collect()
        };
        let mut state = self.monitor.0.lock();
        let all = |state: &mut State<T>| {
            left(state).is_empty() || {
                let tail = state.tail();
                for entry in state.entries.iter().filter(|entry| entry.unread(tail) > 0) {
                    entry.desk.want(entry.position(tail, 0));
                }
                self.barrier.heavy();
                left(state).is_empty()
            }
        };
        state.wait_until(|state| &mut state.drained, deadline, all);
        left(&state)
    }

    /// How many subscriptions there are.
    pub(crate) fn subscriptions(&self) -> usize {
        self.monitor.0.lock().entries.len()
    }
}
