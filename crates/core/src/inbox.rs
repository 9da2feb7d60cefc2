//! A bounded queue with an overflow policy, a linger, a flush and a close: what stands in front of every worker here.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::clock::Clock;
use crate::error::{Refusal, SendError};
use crate::monitor::{Locked, Monitor, WaitFor, Waiters};
use crate::overflow::{Overflow, Patience, earlier};
use crate::room::{Entry, Room};

/// A bounded first-in first-out queue between any number of senders and takers.
///
/// Capacity counts what waits **and** what has been taken but is not done: a slow taker is seen by the senders. The
/// building block behind the batcher and the fan-out; use those, or a channel, unless you build a primitive of your own.
///
/// Invariants: **I1** items leave in the order in which they came; **I2** `accepted = displaced + returned + done + in
/// flight + waiting`; **I3** after `close` nothing is accepted, and takers get everything that was.
#[derive(Debug)]
pub struct Inbox<T> {
    monitor: Monitor<State<T>>,
    overflow: Overflow,
}

struct State<T> {
    items: VecDeque<Entered<T>>,
    room: Room,
    /// Places that are kept for items to come, see [`Inbox::reserve`].
    reserved: usize,
    /// Sequence number of the next item to be accepted.
    next: u64,
    /// First sequence number and count of each group that was taken and is not done.
    in_flight: Vec<(u64, usize)>,
    /// A taker need not linger for items below this sequence number.
    hurry_below: u64,
    /// What waited was taken back after a close: nobody takes anything any more.
    drained: bool,
    /// Threads in `take`.
    takers: usize,
    /// What the threads in `take` wait for. A taker is only woken at the first item and from `max_items` on: those between
    /// would find it lingering.
    ready: Ready,
    /// Not all of them wait for the same: then an item that one of them leaves to its linger can be another's.
    mixed: bool,
    not_empty: Waiters,
    /// Threads in `flush` or `wait_idle`.
    progress: Waiters,
}

struct Entered<T> {
    item: T,
    at: Instant,
}

impl<T> std::fmt::Debug for State<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State").field("waiting", &self.items.len()).field("in_flight", &self.in_flight).finish()
    }
}

impl<T> State<T> {
    /// The oldest item that is accepted and not done; `next` if there is none.
    fn oldest_open(&self) -> u64 {
        let waiting = self.next - self.items.len() as u64;
        self.in_flight.iter().map(|(first, _)| *first).min().unwrap_or(waiting).min(waiting)
    }

    /// Whether it is closed, and nothing comes any more that the takers have to wait for.
    fn is_over(&self) -> bool {
        self.room.is_closed() && (self.reserved == 0 || !self.items.is_empty())
    }

    /// Whether a flush waits for the first item.
    fn is_hurried(&self) -> bool {
        !self.items.is_empty() && self.next - (self.items.len() as u64) < self.hurry_below
    }
}

/// When a taker's group is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ready {
    /// At this many items; 0 counts as 1.
    pub max_items: usize,
    /// Or when the first of them has waited this long.
    pub linger: Duration,
}

/// Items that were taken and are in flight until [`Inbox::done`] is called with the group's ticket.
#[derive(Debug)]
pub struct Group<T> {
    /// The items, oldest first, each with the instant at which it was accepted.
    pub items: Vec<(T, Instant)>,
    /// To be given to [`Inbox::done`].
    pub ticket: GroupTicket,
}

/// A place that is kept for an item: see [`Inbox::reserve`].
#[derive(Debug)]
#[must_use = "a place that is neither filled nor given back is lost, and keeps the takers of a closed inbox waiting"]
pub struct Place {
    /// There was none to be had: the item will displace another.
    displacing: bool,
}

/// Says which group is done.
#[derive(Debug)]
#[must_use = "the group's places are only given back by Inbox::done"]
pub struct GroupTicket {
    first: u64,
    count: usize,
}

impl<T> Inbox<T> {
    /// An empty inbox of `capacity` places.
    #[must_use]
    pub fn new(capacity: usize, overflow: Overflow, clock: Clock) -> Self {
        let state = State {
            items: VecDeque::new(),
            room: Room::new(capacity),
            reserved: 0,
            next: 0,
            in_flight: Vec::new(),
            hurry_below: 0,
            drained: false,
            takers: 0,
            ready: Ready { max_items: 1, linger: Duration::ZERO },
            mixed: false,
            not_empty: Waiters::of(WaitFor::Work),
            progress: Waiters::new(),
        };
        Self { monitor: Monitor::new(state, clock), overflow }
    }

    /// Puts an item in. `Ok(Some(old))` hands back the item it displaced; with nothing waiting that can be `item` itself.
    ///
    /// `accepted` runs under the lock, just after the item is in: for exact counts, never for user code.
    ///
    /// # Errors
    /// The item with the reason, as `overflow` and `patience` say.
    pub fn send(&self, item: T, patience: Patience, accepted: impl FnOnce()) -> Result<Option<T>, SendError<T>> {
        let mut state = self.monitor.lock();
        let mut displaced = None;
        match state.enter(|s| &mut s.room, self.overflow, patience) {
            Err(reason) => return Err(SendError::new(item, reason)),
            Ok(Entry::Entered) => {}
            Ok(Entry::Displace) => match state.items.pop_front() {
                // The newcomer takes over the place of the displaced one.
                Some(oldest) => displaced = Some(oldest.item),
                // All places belong to items being worked on: of those that wait, this one is the oldest.
                None => {
                    accepted();
                    return Ok(Some(item));
                }
            },
        }
        Self::push(&mut state, item, accepted);
        if displaced.is_some() {
            // A flush may have waited for the displaced one.
            state.notify_all(|s| &mut s.progress);
        }
        Ok(displaced)
    }

    fn push(state: &mut Locked<'_, State<T>>, item: T, accepted: impl FnOnce()) {
        let at = state.now();
        state.items.push_back(Entered { item, at });
        state.next += 1;
        accepted();
        if state.items.len() == 1 || state.items.len() >= state.ready.max_items || state.mixed {
            Self::call_taker(state);
        }
    }

    /// Keeps a place for an item, as [`send`](Self::send) would take one. [`fill`](Self::fill) cannot be refused then, not even
    /// after a close: until the place is filled or [given back](Self::unreserve) the takers of a closed inbox wait. Under
    /// `DropOldest` nothing is displaced before the item comes.
    ///
    /// # Errors
    /// As `overflow` and `patience` say.
    pub fn reserve(&self, patience: Patience) -> Result<Place, Refusal> {
        let mut state = self.monitor.lock();
        let entry = state.enter(|s| &mut s.room, self.overflow, patience)?;
        state.reserved += 1;
        Ok(Place { displacing: entry == Entry::Displace })
    }

    /// Puts an item into its place. `Some(old)` hands back the item it displaced: with nothing waiting, or once everything was
    /// taken back after a close, that is `item` itself. `accepted` as in [`send`](Self::send).
    #[expect(clippy::needless_pass_by_value, reason = "a place is filled once")]
    pub fn fill(&self, place: Place, item: T, accepted: impl FnOnce()) -> Option<T> {
        let mut state = self.monitor.lock();
        state.reserved -= 1;
        let mut displaced = None;
        if place.displacing {
            // There may be a place by now. A closed room has none, and nobody enters it with patience: then another goes.
            let late = state.room.is_closed();
            let entered = !late && state.enter(|s| &mut s.room, Overflow::Reject, Patience::Try).is_ok();
            if !entered {
                match state.items.pop_front() {
                    Some(oldest) => displaced = Some(oldest.item),
                    None => {
                        accepted();
                        Self::end_if_over(&mut state);
                        return Some(item);
                    }
                }
            }
        }
        if state.drained {
            // Nobody will take it any more.
            accepted();
            state.leave(|s| &mut s.room, usize::from(!place.displacing));
            return Some(item);
        }
        Self::push(&mut state, item, accepted);
        if displaced.is_some() {
            state.notify_all(|s| &mut s.progress);
        }
        Self::end_if_over(&mut state);
        displaced
    }

    /// Gives back a place that no item comes for.
    #[expect(clippy::needless_pass_by_value, reason = "a place is given back once")]
    pub fn unreserve(&self, place: Place) {
        let mut state = self.monitor.lock();
        state.reserved -= 1;
        state.leave(|s| &mut s.room, usize::from(!place.displacing));
        Self::end_if_over(&mut state);
    }

    /// The takers of a closed inbox wait for places that are kept.
    fn end_if_over(state: &mut Locked<'_, State<T>>) {
        if state.room.is_closed() {
            state.notify_all(|s| &mut s.not_empty);
        }
    }

    /// Takes the next group, waiting until it is `ready`, a flush asks for it, the inbox closes, or `deadline` comes: then
    /// it takes what is there. `None`: closed and empty, or the deadline came with nothing there.
    pub fn take(&self, ready: Ready, deadline: Option<Instant>) -> Option<Group<T>> {
        let mut state = self.monitor.lock();
        let count = Self::count_of_group(&mut state, ready, deadline);
        (count > 0).then(|| Self::group(&mut state, count))
    }

    /// Takes the next item, which is done with that: its place is free again. With the instant at which it was accepted. Waits
    /// and ends as [`take`](Self::take) does.
    pub fn take_one(&self, deadline: Option<Instant>) -> Option<(T, Instant)> {
        let mut state = self.monitor.lock();
        let one = Ready { max_items: 1, linger: Duration::ZERO };
        Self::count_of_group(&mut state, one, deadline);
        let Entered { item, at } = state.items.pop_front()?;
        if !state.items.is_empty() {
            Self::call_taker(&mut state);
        }
        state.leave(|s| &mut s.room, 1);
        state.notify_all(|s| &mut s.progress);
        Some((item, at))
    }

    fn count_of_group(state: &mut Locked<'_, State<T>>, ready: Ready, deadline: Option<Instant>) -> usize {
        let ready = Ready { max_items: ready.max_items.max(1), ..ready };
        if state.takers == 0 {
            state.mixed = false;
            state.ready = ready;
        } else if state.ready != ready {
            state.mixed = true;
        }
        state.takers += 1;
        let count = Self::wait_for_group(state, ready, deadline);
        state.takers -= 1;
        count
    }

    /// How many items to take now. None: there will be no more, or the deadline has come.
    fn wait_for_group(state: &mut Locked<'_, State<T>>, ready: Ready, deadline: Option<Instant>) -> usize {
        loop {
            // The group is due once its first item has waited for `linger`; with none there, nothing is armed.
            let due = state.items.front().map(|first| first.at.checked_add(ready.linger));
            let until = earlier(due.flatten(), deadline);
            let enough = |s: &mut State<T>| {
                s.items.len() >= ready.max_items
                    || s.is_over()
                    || s.is_hurried()
                    // Armed now, not before: the linger has to be put on the first item.
                    || (due.is_none() && !s.items.is_empty())
            };
            state.wait_until(|s| &mut s.not_empty, until, enough);
            let now = state.now();
            let late = deadline.is_some_and(|deadline| deadline <= now);
            let first_is_due =
                state.items.front().is_some_and(|first| now.saturating_duration_since(first.at) >= ready.linger);
            let there = state.items.len();
            if there >= ready.max_items || state.is_over() || state.is_hurried() || first_is_due || late {
                return there.min(ready.max_items);
            }
        }
    }

    fn group(state: &mut Locked<'_, State<T>>, count: usize) -> Group<T> {
        let first = state.next - state.items.len() as u64;
        let items = state.items.drain(..count).map(|entered| (entered.item, entered.at)).collect();
        state.in_flight.push((first, count));
        if !state.items.is_empty() {
            // Another taker may find a group in what is left.
            Self::call_taker(state);
        }
        Group { items, ticket: GroupTicket { first, count } }
    }

    fn call_taker(state: &mut Locked<'_, State<T>>) {
        if state.mixed {
            state.notify_all(|s| &mut s.not_empty);
        } else {
            state.notify_one(|s| &mut s.not_empty);
        }
    }

    /// Gives the places of a group back before it is done: the work is over, but a [`flush`](Self::flush) still waits.
    pub fn vacate(&self, ticket: &mut GroupTicket) {
        let count = std::mem::take(&mut ticket.count);
        self.monitor.lock().leave(|s| &mut s.room, count);
    }

    /// Ends the linger of what waits: the next taker takes it at once, now or when it comes.
    pub fn hurry(&self) {
        let mut state = self.monitor.lock();
        state.hurry_below = state.next;
        state.notify_all(|s| &mut s.not_empty);
    }

    /// Waits until all groups that were taken before this one are done.
    ///
    /// # Deadlock
    /// On a thread that has one of them itself.
    pub fn wait_turn(&self, ticket: &GroupTicket) {
        let mut state = self.monitor.lock();
        let first_of_all = |s: &mut State<T>| s.in_flight.iter().all(|(first, _)| *first >= ticket.first);
        state.wait_until(|s| &mut s.progress, None, first_of_all);
    }

    /// A group is done; gives its places back.
    #[expect(clippy::needless_pass_by_value, reason = "a group is done once")]
    pub fn done(&self, ticket: GroupTicket) {
        let mut state = self.monitor.lock();
        state.in_flight.retain(|(first, _)| *first != ticket.first);
        state.leave(|s| &mut s.room, ticket.count);
        state.notify_all(|s| &mut s.progress);
    }

    /// Waits until everything accepted before the call is done; arrivals after it do not prolong it. `false` at the
    /// deadline.
    pub fn flush(&self, deadline: Option<Instant>) -> bool {
        let mut state = self.monitor.lock();
        let target = state.next;
        state.hurry_below = target;
        state.notify_all(|s| &mut s.not_empty);
        state.wait_until(|s| &mut s.progress, deadline, |s| s.oldest_open() >= target)
    }

    /// Refuses new items from now on and wakes everybody; takers get what is left. Idempotent.
    pub fn close(&self) {
        let mut state = self.monitor.lock();
        state.close_room(|s| &mut s.room);
        state.notify_all(|s| &mut s.not_empty);
    }

    /// Whether [`close`](Self::close) was called.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.monitor.lock().room.is_closed()
    }

    /// Takes out what nobody has taken yet, in order, and gives their places back.
    pub fn take_back(&self) -> Vec<T> {
        Self::drain(&mut self.monitor.lock())
    }

    /// [`close`](Self::close) and [`take_back`](Self::take_back) in one step: no taker gets anything in between.
    pub fn abandon(&self) -> Vec<T> {
        let mut state = self.monitor.lock();
        state.close_room(|s| &mut s.room);
        state.notify_all(|s| &mut s.not_empty);
        Self::drain(&mut state)
    }

    fn drain(state: &mut Locked<'_, State<T>>) -> Vec<T> {
        state.drained = state.room.is_closed();
        let items: Vec<T> = state.items.drain(..).map(|entered| entered.item).collect();
        state.leave(|s| &mut s.room, items.len());
        state.notify_all(|s| &mut s.progress);
        items
    }

    /// How many items wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.monitor.lock().items.len()
    }

    /// Whether no item waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many items were taken and are not done.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.monitor.lock().in_flight.iter().map(|(_, count)| count).sum()
    }

    /// How many places are taken: by items that wait, by those that were taken and are not done, and by those to come.
    #[must_use]
    pub fn used(&self) -> usize {
        self.monitor.lock().room.used()
    }

    /// The places in all.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.monitor.lock().room.capacity()
    }

    /// The clock that deadlines are read on.
    #[must_use]
    pub fn clock(&self) -> &Clock {
        self.monitor.clock()
    }

    /// Why an item would be refused at this moment, if it would.
    #[must_use]
    pub fn refusal(&self) -> Option<Refusal> {
        let state = self.monitor.lock();
        if state.room.is_closed() {
            Some(Refusal::Closed)
        } else if state.room.used() >= state.room.capacity() && self.overflow != Overflow::DropOldest {
            Some(Refusal::Full)
        } else {
            None
        }
    }
}
