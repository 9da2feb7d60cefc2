//! The way from many senders to the workers. `README.md` beside this file has the protocol.

mod lane;
mod places;
mod ring;

use std::cell::Cell;
use std::collections::VecDeque;
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use fullbore_core::barrier::Barrier;
use fullbore_core::looks::{self, Looks, pause};
use fullbore_core::{
    Clock, FAIR_AFTER, Locked, Monitor, Overflow, Patience, Refusal, SendError, WaitFor, Waiters, contain, earlier,
};
use thread_local::ThreadLocal;

use crate::sync::{AtomicU64, Ordering};
use lane::Apart;
pub(crate) use lane::Lane;
use places::{HasPlaces, Places};

/// So many more items a thread may send without asking, at most.
const LOAN: usize = 256;
const LEAST_LOAN: usize = 32;

/// So many senders without room look before they sleep; more would only take turns.
const MOST_LOOKING: usize = 8;

/// What a send comes to: the items that it displaced.
pub(crate) type Sent<T, E> = Result<Vec<(T, Option<E>)>, SendError<T>>;

/// When a batch is ready.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ready {
    pub(crate) max_items: usize,
    /// `None`: weight is not looked at, and the fast way is open.
    pub(crate) max_weight: Option<u64>,
    pub(crate) linger: Duration,
}

/// What may be inside at once, and what happens to more.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub(crate) capacity: usize,
    pub(crate) weight: u64,
    pub(crate) overflow: Overflow,
    pub(crate) workers: usize,
}

pub(crate) struct Intake<T, E> {
    lanes: ThreadLocal<Arc<Lane<T, E>>>,
    /// Where `T: Send` was known.
    make_lane: fn(Barrier, usize, usize) -> Lane<T, E>,
    barrier: Barrier,
    /// Apart from what senders read each time.
    monitor: Apart<Monitor<State<T, E>>>,
    /// Moves on whenever places are given back, and at the close: for a sender that looks without the lock.
    given_back: Apart<AtomicU64>,
    /// All lanes once more, for counting without the lock.
    roll: Arc<Roll<T, E>>,
    weighs: bool,
    /// If there is so much: else senders that are faster than the workers ask for each item.
    least_loan: usize,
    bounds: Bounds,
}

/// All lanes.
struct Roll<T, E>(Mutex<Vec<Arc<Lane<T, E>>>>);

/// What a worker keeps from one group to the next.
pub(crate) struct Taker<T, E> {
    /// All lanes that it has seen so far, as in `State::sides`.
    lanes: Vec<Arc<Lane<T, E>>>,
    promised: Vec<Promised>,
}

/// Positions of a lane that one worker, and nobody else, reads.
struct Promised {
    lane: usize,
    positions: Range<u64>,
    extras: Range<u64>,
    /// What is in it was accepted after this; then, when it is read, the last stamp in it.
    since: Instant,
    /// Nothing was left.
    all: bool,
}

/// The items of a group.
pub(crate) struct Load<T, E> {
    pub(crate) items: Vec<T>,
    /// What some of the items have with them, each with the number of its item; in order.
    pub(crate) extras: Vec<(usize, E)>,
    /// How long some of the items have waited.
    pub(crate) waits: Vec<Duration>,
}

impl<T, E> Default for Load<T, E> {
    fn default() -> Self {
        Self { items: Vec::new(), extras: Vec::new(), waits: Vec::new() }
    }
}

/// A position in the running thread's lane. To be filled at once: whoever needs to know where the lane stands waits for it.
#[must_use = "the lane stands still until it is filled"]
pub(crate) struct Claimed<'a, T, E> {
    lane: &'a Lane<T, E>,
    position: u64,
    clock: &'a Clock,
    /// On its thread.
    stays: PhantomData<*const ()>,
}

impl<T, E> Claimed<'_, T, E> {
    /// Of its own, without a word about an extra: to move an empty `Option` would wait for all stores before it.
    #[inline(always)]
    pub(crate) fn fill(self, item: T) {
        // SAFETY: made by `claim_on`, on this thread, and used up.
        unsafe { self.lane.fill(self.position, item, || self.clock.now()) };
    }

    pub(crate) fn fill_with(self, item: T, extra: Option<E>) {
        if let Some(extra) = extra {
            // SAFETY: as in `fill`, which comes next.
            unsafe { self.lane.put_extra(self.position, extra) };
        }
        self.fill(item);
    }
}

/// A group that was taken and is not done.
#[derive(Debug)]
#[must_use = "the group's places are only given back by `done`"]
pub(crate) struct Group {
    first: u64,
    /// Items whose places it still has.
    held: usize,
    weight: u128,
    /// When it was taken.
    pub(crate) taken: Instant,
    /// How long its oldest item has waited.
    pub(crate) oldest: Duration,
}

struct State<T, E> {
    ready: Ready,
    sides: Vec<Side<T, E>>,
    /// The lane that is looked at first: each in turn.
    turn: usize,
    /// What was collected from the lanes; older than all that is in them.
    items: VecDeque<Entered<T, E>>,
    /// Their weight.
    weight: u128,
    places: Places,
    /// Sequence number of the next item to be collected.
    next: u64,
    in_flight: Vec<Flight>,
    /// No linger for items below this sequence number.
    hurry_below: u64,
    /// Workers that sleep. While there are any, no more may be lent than `budget` says.
    sleepers: usize,
    /// All of them sleep without a timer: the next item has to wake one.
    unarmed: bool,
    /// So many more items, sent or lent, until one of them has to be woken.
    budget: usize,
    /// An idle worker looks every now and then; one is enough.
    looking: bool,
    worker_looks: Looks,
    sender_looks: Looks,
    senders_looking: usize,
    not_empty: Waiters,
    /// Threads in `flush`, or that wait for their turn.
    progress: Waiters,
}

/// The intake's side of a lane.
struct Side<T, E> {
    lane: Arc<Lane<T, E>>,
    /// The first position that is not promised to anybody.
    head: u64,
    /// All positions below are read.
    freed: u64,
    /// The first extra that is not promised to anybody.
    extras: u64,
    /// Workers that read.
    readers: usize,
    /// How far the owner may come; the lane's limit may say less.
    granted: u64,
    /// What is in the lane and has no stamp was accepted after this.
    since: Instant,
}

struct Entered<T, E> {
    item: T,
    extra: Option<E>,
    weight: u64,
    /// When it was accepted, or something before that.
    at: Instant,
    exact: bool,
}

struct Flight {
    first: u64,
    count: usize,
}

impl<T, E> HasPlaces for State<T, E> {
    fn places(&mut self) -> &mut Places {
        &mut self.places
    }
}

impl<T, E> State<T, E> {
    /// What waits, except for what is on its way into a lane at this moment. Exact after `freeze`.
    fn there(&self) -> usize {
        self.items.len() + self.sides.iter().map(Side::there).sum::<usize>()
    }

    /// When the oldest item was accepted, or something before that.
    fn oldest(&self) -> Option<Instant> {
        let collected = self.items.front().map(|first| first.at);
        let in_lanes = self.sides.iter().filter(|side| side.there() > 0).map(Side::oldest);
        collected.into_iter().chain(in_lanes).min()
    }

    /// Whether somebody waits for the first item.
    fn is_hurried(&self) -> bool {
        !self.items.is_empty() && self.next - (self.items.len() as u64) < self.hurry_below
    }

    /// Senders wait for room that only the next batch can make, and it will not get any fuller.
    fn is_pressed(&self) -> bool {
        self.ready.max_weight.is_some() && self.in_flight.is_empty() && self.places.has_line()
    }

    /// As [`there`](Self::there), but stops once a batch is full: each look at a lane takes it away from its sender.
    fn there_for_batch(&self) -> usize {
        let mut there = self.items.len();
        let (later, sooner) = self.sides.split_at(self.turn.min(self.sides.len()));
        for side in sooner.iter().chain(later) {
            if there >= self.ready.max_items {
                break;
            }
            there += side.there();
        }
        there
    }

    fn is_full(&self, there: usize) -> bool {
        there >= self.ready.max_items || self.ready.max_weight.is_some_and(|max| self.weight >= u128::from(max))
    }

    /// Whether what is there is to be taken, whatever the time.
    fn is_called_for(&self, there: usize) -> bool {
        self.is_full(there) || (there > 0 && (self.places.is_closed() || self.is_hurried() || self.is_pressed()))
    }

    /// How many more items until the next full batch.
    fn until_full(&self, there: usize) -> usize {
        self.ready.max_items - there % self.ready.max_items
    }

    /// Moves what is in the lanes behind what was collected before, in the order of age.
    fn collect(&mut self, now: Instant) {
        let (before, mut lanes) = (self.items.len(), 0);
        for at in 0..self.sides.len() {
            if self.sides[at].there() > 0 {
                self.collect_from(at, now);
                lanes += 1;
            }
        }
        if lanes > 1 {
            // Stable: each lane's own order stays.
            self.items.make_contiguous()[before..].sort_by_key(|entered| entered.at);
        }
    }

    /// Whether the lane can take one more, or can once all are emptied: what is collected from one would overtake the others.
    fn has_room_in(&mut self, at: usize, now: impl FnOnce() -> Instant) -> bool {
        if self.sides[at].room() == 0 {
            self.collect(now());
        }
        self.sides[at].room() > 0
    }

    fn collect_from(&mut self, at: usize, now: Instant) {
        let Self { sides, items, next, .. } = self;
        let side = &mut sides[at];
        let (positions, extras) = side.promise(u64::MAX);
        *next += positions.end - positions.start;
        let mut since = side.since;
        // SAFETY: promised, just now.
        unsafe {
            side.lane.read_each(positions, extras, |item, extra, stamp| {
                since = stamp.unwrap_or(since);
                items.push_back(Entered { item, extra, weight: 0, at: since, exact: stamp.is_some() });
            });
        }
        // So what is collected later is never older.
        side.since = now;
        side.read();
    }

    /// Promises so many items from the lanes, which have them, to a worker.
    fn promise(&mut self, mut missing: u64, now: Instant, taker: &mut Taker<T, E>) {
        taker.lanes.extend(self.sides[taker.lanes.len()..].iter().map(|side| Arc::clone(&side.lane)));
        self.next += missing;
        let lanes = self.sides.len();
        for lane in (self.turn..lanes).chain(0..self.turn) {
            if missing == 0 {
                break;
            }
            let side = &mut self.sides[lane];
            if side.there() == 0 {
                continue;
            }
            let since = side.since;
            let (positions, extras) = side.promise(missing);
            missing -= positions.end - positions.start;
            let all = side.there() == 0;
            if all {
                side.since = now;
            }
            taker.promised.push(Promised { lane, positions, extras, since, all });
        }
        self.turn = if self.turn + 1 < lanes { self.turn + 1 } else { 0 };
    }

    /// What was promised to a worker is read.
    fn are_read(&mut self, taker: &mut Taker<T, E>) {
        for promised in taker.promised.drain(..) {
            let side = &mut self.sides[promised.lane];
            side.since = side.since.max(promised.since);
            side.read();
        }
    }

    /// How many of the collected items a batch by weight takes.
    fn by_weight(&self, max: u64) -> usize {
        let (mut weight, max) = (0_u128, u128::from(max));
        let fits = self.items.iter().take(self.ready.max_items).take_while(|entered| {
            weight += u128::from(entered.weight);
            weight <= max
        });
        // An oversized one goes alone.
        fits.count().max(1).min(self.items.len())
    }

    /// The oldest item that is accepted and not done; `next` if there is none.
    fn oldest_open(&self) -> u64 {
        let waiting = self.next - self.items.len() as u64;
        self.in_flight.iter().map(|flight| flight.first).min().unwrap_or(waiting).min(waiting)
    }
}

impl<T, E> Side<T, E> {
    fn there(&self) -> usize {
        (self.lane.tail() - self.head) as usize
    }

    /// The next positions, `most` at most, for somebody to read and then say so by `read`.
    fn promise(&mut self, most: u64) -> (Range<u64>, Range<u64>) {
        let from = self.head;
        self.head = self.lane.tail().min(from.saturating_add(most));
        // SAFETY: this state is only there under the lock, and keeps what is promised.
        let extras = unsafe { self.lane.extras_before(self.extras, self.head) };
        self.extras = extras.end;
        self.readers += 1;
        (from..self.head, extras)
    }

    /// What was promised to somebody is read. What was promised before it may not be, to a slower worker.
    fn read(&mut self) {
        self.readers -= 1;
        if self.readers == 0 {
            self.freed = self.head;
            if self.there() == 0 {
                // Its owner sees that the next item is a first one. Not otherwise: each time costs it a fetch of the line.
                self.lane.free(self.freed);
            }
        }
    }

    /// How many positions can still be granted.
    fn room(&self) -> u64 {
        self.lane.len() - (self.granted - self.freed)
    }

    /// With something there.
    fn oldest(&self) -> Instant {
        // SAFETY: something is there, under the lock, and promised to nobody.
        unsafe { self.lane.stamp_of_first(self.head) }.unwrap_or(self.since)
    }
}

impl<T: Send, E: Send> Intake<T, E> {
    pub(crate) fn new(bounds: Bounds, ready: Ready, clock: Clock) -> Self {
        let state = State {
            ready,
            sides: Vec::new(),
            turn: 0,
            items: VecDeque::new(),
            weight: 0,
            places: Places::new(bounds.capacity, bounds.weight),
            next: 0,
            in_flight: Vec::new(),
            hurry_below: 0,
            sleepers: 0,
            unarmed: false,
            budget: usize::MAX,
            looking: false,
            worker_looks: Looks::new(),
            sender_looks: Looks::new(),
            senders_looking: 0,
            not_empty: Waiters::of(WaitFor::Work),
            progress: Waiters::new(),
        };
        Self {
            lanes: ThreadLocal::new(),
            make_lane: Lane::new,
            barrier: Barrier::of_this_process(),
            monitor: Apart(Monitor::new(state, clock)),
            given_back: Apart(AtomicU64::new(0)),
            roll: Arc::new(Roll(Mutex::new(Vec::new()))),
            least_loan: (bounds.capacity / 16).min(LEAST_LOAN),
            weighs: ready.max_weight.is_some(),
            bounds,
        }
    }
}

impl<T, E> Intake<T, E> {
    /// How many items have come through the lanes so far.
    pub(crate) fn sent_on_lanes(&self) -> impl Fn() -> u64 + Send + Sync + use<T, E> {
        let roll = Arc::clone(&self.roll);
        move || roll.lock().iter().map(|lane| lane.tail()).sum()
    }

    /// A lane, for one thread.
    pub(crate) fn new_lane(&self) -> Arc<Lane<T, E>> {
        let mut state = self.monitor.0.lock();
        let lane = (self.make_lane)(self.barrier, self.bounds.capacity, state.sides.len());
        let lane = Arc::new(lane);
        let since = state.now();
        self.roll.lock().push(Arc::clone(&lane));
        state.sides.push(Side { lane: Arc::clone(&lane), head: 0, freed: 0, extras: 0, readers: 0, granted: 0, since });
        lane
    }

    /// The running thread's lane. None for a thread whose thread-local values are gone already.
    #[cold]
    fn my_lane(&self) -> Option<&Lane<T, E>> {
        thread_local! {
            static GONE: Cell<bool> = const { Cell::new(false) };
            static END: End = const { End };
        }
        struct End;
        impl Drop for End {
            fn drop(&mut self) {
                GONE.set(true);
            }
        }
        if let Some(lane) = self.lanes.get() {
            return Some(lane);
        }
        if GONE.get() {
            return None;
        }
        // It panics if its own destructor on this thread is past already.
        let lane = contain(|| self.lanes.get_or(|| self.new_lane())).ok()?;
        // Behind the registration by `thread_local`, so that its end comes first: when the number of this thread, and with it
        // the lane, can become another one's, `GONE` says so.
        END.try_with(|_| ()).ok()?;
        Some(lane)
    }

    /// The running thread's lane and a position in it, if an item can go in without a lock now. Otherwise it has to be
    /// [`send`](Self::send) properly.
    #[inline(always)]
    pub(crate) fn claim(&self) -> Option<Claimed<'_, T, E>> {
        let lane = self.lanes.get()?;
        // SAFETY: it is this thread's.
        unsafe { self.claim_on(lane) }
    }

    /// As [`claim`](Self::claim), on a lane from [`new_lane`](Self::new_lane).
    ///
    /// # Safety
    /// Always on the same thread.
    #[inline(always)]
    pub(crate) unsafe fn claim_on<'a>(&'a self, lane: &'a Lane<T, E>) -> Option<Claimed<'a, T, E>> {
        // SAFETY: the caller says that it is this thread's. To be filled is all that can be done with the result.
        let position = unsafe { lane.claim() }?;
        Some(Claimed { lane, position, clock: self.clock(), stays: PhantomData })
    }

    /// Puts an item in. `Ok` hands back the items it displaced; with nothing waiting that can be `item` itself.
    ///
    /// `off_lane` runs if the item is accepted and does not go through a lane, before anybody else can see it, under the lock: for
    /// exact counts, never for user code.
    ///
    /// # Errors
    /// The item with the reason, as the overflow policy and `patience` say.
    #[cold]
    pub(crate) fn send(
        &self,
        came: (T, Option<E>),
        weight: u64,
        patience: Patience,
        off_lane: &dyn Fn(),
    ) -> Sent<T, E> {
        let lane = if self.weighs { None } else { self.my_lane() };
        // SAFETY: it is this thread's.
        unsafe { self.send_on(lane, came, weight, patience, off_lane) }
    }

    /// As [`send`](Self::send), on a lane from [`new_lane`](Self::new_lane).
    ///
    /// # Safety
    /// Always on the same thread.
    pub(crate) unsafe fn send_on(
        &self,
        lane: Option<&Lane<T, E>>,
        (item, extra): (T, Option<E>),
        weight: u64,
        patience: Patience,
        off_lane: &dyn Fn(),
    ) -> Sent<T, E> {
        let mut state = self.monitor.0.lock();
        let mut displaced = Vec::new();
        match self.enter(&mut state, weight, patience) {
            Err(reason) => return Err(SendError::new(item, reason)),
            Ok(true) => {}
            Ok(false) => {
                let now = state.now();
                state.collect(now);
                if !state.places.would_fit(weight, state.weight) || state.items.is_empty() {
                    // All room belongs to items being worked on: of those that wait, this one is the oldest.
                    off_lane();
                    displaced.push((item, extra));
                    return Ok(displaced);
                }
                displaced = Self::displace(&mut state, weight);
            }
        }
        let lent = match lane.filter(|lane| state.has_room_in(lane.index(), || self.clock().now())) {
            Some(lane) => self.put_on(&mut state, lane, item, extra),
            None => {
                // What this thread has sent before may be in a lane.
                let at = state.now();
                state.collect(at);
                off_lane();
                state.items.push_back(Entered { item, extra, weight, at, exact: true });
                state.weight += u128::from(weight);
                state.next += 1;
                0
            }
        };
        self.came(&mut state, 1 + lent);
        Ok(displaced)
    }

    /// Puts the item into its sender's lane, which has room; how many more it may send without asking.
    fn put_on(&self, state: &mut Locked<'_, State<T, E>>, lane: &Lane<T, E>, item: T, extra: Option<E>) -> usize {
        let room = (state.sides[lane.index()].room() - 1) as usize;
        // The rest of the free places is for others; the last one that a sleeping worker waits for has to ask.
        let free = state.places.free();
        let loan = LOAN.min(free / 2).max(self.least_loan.min(free)).min(room);
        let lent = if state.sleepers > 0 { loan.min(state.budget.saturating_sub(2)) } else { loan };
        state.places.lend(lent);
        let side = &mut state.sides[lane.index()];
        side.granted += 1 + lent as u64;
        lane.grant(side.granted);
        // SAFETY: it is the caller's lane.
        let claimed = unsafe { self.claim_on(lane) };
        // Nobody lowers limits while this thread has the lock.
        claimed.expect("granted just now").fill_with(item, extra);
        lent
    }

    /// Takes a place, waiting for one as the policy and `patience` allow. `Ok(false)`: it has to be taken from another item.
    fn enter(&self, state: &mut Locked<'_, State<T, E>>, weight: u64, patience: Patience) -> Result<bool, Refusal> {
        if let Some(outcome) = state.places.take(weight) {
            return outcome.map(|()| true);
        }
        // What was lent to others and is not used.
        self.freeze(state);
        if let Some(outcome) = state.places.take(weight) {
            return outcome.map(|()| true);
        }
        let deadline = match (self.bounds.overflow, patience) {
            (Overflow::DropOldest, _) => return Ok(false),
            (_, Patience::Try) | (Overflow::Reject, _) => return Err(Refusal::Full),
            (Overflow::BlockFor(limit), Patience::Policy(cap)) => earlier(state.now().checked_add(limit), cap),
            (_, Patience::Policy(cap)) => cap,
            (_, _) => return Err(Refusal::Full),
        };
        if deadline.is_none_or(|deadline| deadline > state.now()) {
            let bound = if state.senders_looking < MOST_LOOKING { state.sender_looks.bound() } else { 0 };
            state.senders_looking += 1;
            let mut taken = None;
            let mut looks = looks::Round::new(bound, self.clock());
            while let Some(look) = looks.next() {
                // ORDERING: Relaxed: a hint; what counts is looked at under the lock.
                let before = self.given_back.0.load(Ordering::Relaxed);
                let mut after = before;
                state.released(|| {
                    pause(look);
                    after = self.given_back.0.load(Ordering::Relaxed);
                });
                if before != after {
                    taken = state.places.take(weight);
                }
                if taken.is_some() {
                    break;
                }
            }
            state.senders_looking -= 1;
            if let Some(outcome) = taken {
                return outcome.map(|()| true);
            }
        }
        if state.ready.max_weight.is_some() {
            // W2: a worker that lingers sees the line.
            state.notify_all(|state| &mut state.not_empty);
        }
        let asleep = state.now();
        let outcome = places::wait_in_line(state, weight, deadline);
        let now = state.now();
        state.sender_looks.learn(now.saturating_duration_since(asleep));
        if outcome == Err(Refusal::TimedOut) {
            // What was lent since, and is not used.
            self.freeze(state);
            if let Some(outcome) = state.places.take(weight) {
                return outcome.map(|()| true);
            }
        }
        outcome.map(|()| true)
    }

    /// Takes the oldest items out until one of this weight has a place.
    fn displace(state: &mut Locked<'_, State<T, E>>, weight: u64) -> Vec<(T, Option<E>)> {
        let mut displaced = Vec::new();
        let mut freed = 0_u128;
        while displaced.is_empty() || !state.places.would_fit(weight, freed) {
            let Some(oldest) = state.items.pop_front() else { break };
            freed += u128::from(oldest.weight);
            displaced.push((oldest.item, oldest.extra));
        }
        state.weight -= freed;
        // The newcomer has one of their places.
        state.places.exchange(freed, weight);
        places::leave(state, displaced.len() - 1, 0);
        // A flush may have waited for them.
        state.notify_all(|state| &mut state.progress);
        displaced
    }

    /// So many items have come or may come without asking: wakes a worker if it is time.
    fn came(&self, state: &mut Locked<'_, State<T, E>>, n: usize) {
        if state.sleepers == 0 {
            return;
        }
        state.budget = state.budget.saturating_sub(n);
        let heavy = state.ready.max_weight.is_some_and(|max| state.weight >= u128::from(max));
        if state.budget > 0 && !heavy {
            return;
        }
        self.freeze(state);
        let there = state.there();
        if state.unarmed || state.is_full(there) {
            state.unarmed = false;
            state.notify_one(|state| &mut state.not_empty);
        }
        state.budget = state.until_full(there);
    }

    /// Takes back what was lent and is not used. Afterwards every sender asks, and nothing is on its way.
    fn freeze(&self, state: &mut Locked<'_, State<T, E>>) {
        let mut any = false;
        for side in &state.sides {
            if side.granted > side.lane.tail() {
                side.lane.stop();
                any = true;
            }
        }
        if !any {
            return;
        }
        self.barrier.heavy();
        let mut unused = 0;
        for side in &mut state.sides {
            let tail = side.lane.settle();
            unused += side.granted - tail;
            side.granted = tail;
        }
        places::leave(state, unused as usize, 0);
    }

    /// Ends the group before, and takes the next one, waiting until one is ready, a flush asks for it, or the intake closes:
    /// then what is there. Its items come behind those in `load`, oldest first of each sender.
    /// `None`: closed and empty.
    pub(crate) fn take(&self, before: Option<Group>, taker: &mut Taker<T, E>, load: &mut Load<T, E>) -> Option<Group> {
        let mut state = self.monitor.0.lock();
        if let Some(before) = before {
            self.end(&mut state, before);
            state.are_read(taker);
        }
        let mut group = self.wait_for_group(&mut state, taker, load)?;
        drop(state);
        // Another worker's positions are only free when this one's are, too.
        let mut at_once = self.bounds.workers > 1;
        for Promised { lane, positions, extras, since, all } in &mut taker.promised {
            let from = positions.start;
            let mut first = *since;
            let noted = |position, at| {
                if position == from {
                    first = at;
                }
                *since = at;
                load.waits.push(group.taken.saturating_duration_since(at));
            };
            let lane = &taker.lanes[*lane];
            // SAFETY: promised to this worker, and cleared before anything else is.
            unsafe { lane.read(positions.clone(), extras.clone(), &mut load.items, &mut load.extras, noted) };
            group.oldest = group.oldest.max(group.taken.saturating_duration_since(first));
            at_once |= *all || 4 * (positions.end - positions.start) > lane.len();
        }
        if at_once {
            // Its sender needs the slots before the group is done, or to know that its next item is a first one.
            self.monitor.0.lock().are_read(taker);
        }
        Some(group)
    }

    fn wait_for_group(
        &self,
        state: &mut Locked<'_, State<T, E>>,
        taker: &mut Taker<T, E>,
        load: &mut Load<T, E>,
    ) -> Option<Group> {
        let mut looks = looks::Round::new(state.worker_looks.bound(), self.clock());
        loop {
            let there = state.there_for_batch();
            if state.is_called_for(there) {
                return Some(self.group(state, there, taker, load));
            }
            if state.places.is_closed() {
                return None;
            }
            let due = state.oldest().map(|oldest| oldest.checked_add(state.ready.linger));
            // Looked at again, as senders go on meanwhile: what has come since is for the next round.
            if there > 0 && due.flatten().is_some_and(|due| due <= state.now()) {
                return Some(self.group(state, there, taker, load));
            }
            if !state.looking
                && let Some(look) = looks.next()
            {
                state.looking = true;
                state.released(|| pause(look));
                state.looking = false;
                continue;
            }
            self.freeze(state);
            places::serve_all(state);
            if state.there() == there {
                Self::sleep(state, there, due.flatten());
            }
        }
    }

    fn sleep(state: &mut Locked<'_, State<T, E>>, there: usize, due: Option<Instant>) {
        state.sleepers += 1;
        state.unarmed |= there == 0;
        state.budget = if there == 0 { 1 } else { state.until_full(there) };
        let enough = |state: &mut State<T, E>| {
            let now = state.there();
            // Armed now, not before: the linger has to be put on the first item.
            state.is_called_for(now) || state.places.is_closed() || (there == 0 && now > 0)
        };
        let asleep = state.now();
        state.wait_until(|state| &mut state.not_empty, due, enough);
        let now = state.now();
        state.worker_looks.learn(now.saturating_duration_since(asleep));
        state.sleepers -= 1;
        if state.sleepers == 0 {
            state.unarmed = false;
            state.budget = usize::MAX;
        }
    }

    fn group(
        &self,
        state: &mut Locked<'_, State<T, E>>,
        there: usize,
        taker: &mut Taker<T, E>,
        load: &mut Load<T, E>,
    ) -> Group {
        let taken = state.now();
        let waited = |at: Instant| taken.saturating_duration_since(at);
        let oldest = state.items.front().map_or(Duration::ZERO, |first| waited(first.at));
        let count = match state.ready.max_weight {
            None => there.min(state.ready.max_items),
            Some(max) => state.by_weight(max),
        };
        debug_assert!(count > 0, "a group is never empty");
        let first = state.next - state.items.len() as u64;
        let collected = count.min(state.items.len());
        let mut weight = 0_u128;
        for entered in state.items.drain(..collected) {
            weight += u128::from(entered.weight);
            load.waits.extend(entered.exact.then(|| waited(entered.at)));
            load.extras.extend(entered.extra.map(|extra| (load.items.len(), extra)));
            load.items.push(entered.item);
        }
        state.weight -= weight;
        state.promise((count - collected) as u64, taken, taker);
        state.in_flight.push(Flight { first, count });
        if state.sleepers > 0 {
            self.leave_to_sleepers(state);
        }
        Group { first, held: count, weight, taken, oldest }
    }

    /// Others sleep: they are woken for what is left, or for the next item.
    fn leave_to_sleepers(&self, state: &mut Locked<'_, State<T, E>>) {
        self.freeze(state);
        let left = state.there();
        if left > 0 {
            state.notify_one(|state| &mut state.not_empty);
            state.budget = state.until_full(left);
        } else {
            state.unarmed = true;
            state.budget = 1;
        }
    }

    /// Gives the places of a group back before it is done: the work is over, but a [`flush`](Self::flush) still waits.
    pub(crate) fn vacate(&self, group: &mut Group) {
        let (count, weight) = (std::mem::take(&mut group.held), std::mem::take(&mut group.weight));
        let mut state = self.monitor.0.lock();
        self.tell_lookers();
        places::leave(&mut state, count, weight);
    }

    /// Senders that look for room look under the lock next. Only under the lock.
    fn tell_lookers(&self) {
        // ORDERING: Relaxed: a hint, see `enter`.
        self.given_back.0.store(self.given_back.0.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }

    /// Changes how many items a group has at most.
    pub(crate) fn resize(&self, max_items: usize) {
        let mut state = self.monitor.0.lock();
        state.ready.max_items = max_items;
        if state.sleepers > 0 && !state.unarmed {
            // Who sleeps may have enough now, or has to be woken after another number of items than before.
            self.freeze(&mut state);
            state.budget = state.until_full(state.there());
        }
        state.notify_all(|state| &mut state.not_empty);
    }

    /// Waits until all groups that were taken before this one are done.
    pub(crate) fn wait_turn(&self, group: &Group) {
        let mut state = self.monitor.0.lock();
        let first_of_all = |state: &mut State<T, E>| state.in_flight.iter().all(|flight| flight.first >= group.first);
        state.wait_until(|state| &mut state.progress, None, first_of_all);
    }

    /// A group is done; gives its places back.
    #[expect(clippy::needless_pass_by_value, reason = "a group is done once")]
    fn end(&self, state: &mut Locked<'_, State<T, E>>, group: Group) {
        self.tell_lookers();
        state.in_flight.retain(|flight| flight.first != group.first);
        places::leave(state, group.held, group.weight);
        if state.places.has_line() && state.now().saturating_duration_since(group.taken) >= FAIR_AFTER {
            // The next one may take as long: no room is left unused meanwhile.
            places::serve_all(state);
        }
        state.notify_all(|state| &mut state.progress);
        if state.is_pressed() && state.sleepers > 0 {
            state.notify_all(|state| &mut state.not_empty);
        }
    }

    /// Ends the linger of what waits: the next worker takes it at once, now or when it comes.
    pub(crate) fn hurry(&self) {
        Self::hurry_all(&mut self.monitor.0.lock());
    }

    fn hurry_all(state: &mut Locked<'_, State<T, E>>) -> u64 {
        let now = state.now();
        state.collect(now);
        state.hurry_below = state.next;
        state.notify_all(|state| &mut state.not_empty);
        state.next
    }

    /// Waits until everything accepted before the call is done; arrivals after it do not prolong it. `false` at the
    /// deadline.
    pub(crate) fn flush(&self, deadline: Option<Instant>) -> bool {
        let mut state = self.monitor.0.lock();
        let target = Self::hurry_all(&mut state);
        state.wait_until(|state| &mut state.progress, deadline, |state| state.oldest_open() >= target)
    }

    /// Refuses new items from now on and wakes everybody; workers get what is left. Idempotent.
    pub(crate) fn close(&self) {
        self.refuse(&mut self.monitor.0.lock());
    }

    fn refuse(&self, state: &mut Locked<'_, State<T, E>>) {
        places::close(state);
        self.tell_lookers();
        // What is on its way has been accepted: here it is in its lane.
        self.freeze(state);
        state.notify_all(|state| &mut state.not_empty);
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.monitor.0.lock().places.is_closed()
    }

    /// Takes out what nobody has taken yet, in order, and gives their places back.
    pub(crate) fn take_back(&self) -> Vec<(T, Option<E>)> {
        Self::drain(&mut self.monitor.0.lock())
    }

    /// [`close`](Self::close) and [`take_back`](Self::take_back) in one step: no worker gets anything in between.
    pub(crate) fn abandon(&self) -> Vec<(T, Option<E>)> {
        let mut state = self.monitor.0.lock();
        self.refuse(&mut state);
        Self::drain(&mut state)
    }

    fn drain(state: &mut Locked<'_, State<T, E>>) -> Vec<(T, Option<E>)> {
        let now = state.now();
        state.collect(now);
        let weight = std::mem::take(&mut state.weight);
        let items: Vec<_> = state.items.drain(..).map(|entered| (entered.item, entered.extra)).collect();
        places::leave(state, items.len(), weight);
        state.notify_all(|state| &mut state.progress);
        items
    }

    /// How many items wait.
    pub(crate) fn len(&self) -> usize {
        self.monitor.0.lock().there()
    }

    /// How many items were taken and are not done.
    pub(crate) fn in_flight(&self) -> usize {
        self.monitor.0.lock().in_flight.iter().map(|flight| flight.count).sum()
    }

    pub(crate) fn clock(&self) -> &Clock {
        self.monitor.0.clock()
    }
}

impl<T, E> Roll<T, E> {
    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Lane<T, E>>>> {
        // Nothing that can panic is done under it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T, E> Taker<T, E> {
    pub(crate) const fn new() -> Self {
        Self { lanes: Vec::new(), promised: Vec::new() }
    }
}

impl<T, E> Drop for State<T, E> {
    fn drop(&mut self) {
        // What is still in the lanes goes with it.
        self.collect(Instant::now());
    }
}
