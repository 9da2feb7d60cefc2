//! The thread, and everything that it shares with senders. `README.md` beside this file has the protocol.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fullbore_core::{
    BuildError, CallerSpan, Clock, Crew, Entry, Event, Events, Failure, FlushError, Leftover, Locked, Monitor,
    Overflow, Patience, SendError, Undelivered, contain, earlier,
};
use fullbore_metrics::{Departure, Outcome, Station, StationId, StationKind};

use super::config::Setup;
use super::pending::{Casualty, Folded, Reduce, Taken};
use super::state::{Due, InProcess, Next, State};
use crate::batch::Batch;
use crate::outcomes::{IntoOutcomes, Kind, Outcomes};

/// Who is in our own code has only to come out of it: a thread that ends, a sender that merges a portion. It gets this long beyond
/// the deadline, so that a close without time to wait loses sight of nothing that is about to be there.
const WIND_UP: Duration = Duration::from_millis(100);

/// So many updates are merged at once: the swap of buffers costs nothing beside it, they are in the processor's cache, and the
/// sender whose turn it is loses some microseconds.
const PORTION: usize = 1024;

thread_local!(static INSIDE: RefCell<Vec<StationId>> = const { RefCell::new(Vec::new()) });

/// The calling thread runs user code of a batcher.
struct Inside;

impl Inside {
    fn of(id: StationId) -> Self {
        // While the thread's locals are torn down there is none: then nobody sees who waits for himself.
        INSIDE.try_with(|inside| inside.borrow_mut().push(id)).ok();
        Self
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        INSIDE.try_with(|inside| inside.borrow_mut().pop()).ok();
    }
}

pub(super) struct Shared<K, V> {
    monitor: Monitor<State<K, V>>,
    reduce: Box<dyn Reduce<K, V>>,
    due: Due,
    crew: Crew,
    station: Station,
    events: Events,
    setup: Setup<K, V>,
}

type Lock<'a, K, V> = Locked<'a, State<K, V>>;

/// A batch that was begun.
struct Begun<K, V> {
    taken: Taken<K, V>,
    began: Instant,
    span: CallerSpan,
}

/// What a close left behind.
pub(super) struct Left<K, V> {
    pairs: Vec<(K, V)>,
    in_flight: usize,
    stuck: Vec<String>,
}

/// What becomes of the pairs of a batch that has ended.
struct Sorted<K, V> {
    failed: usize,
    kept: Vec<((K, V), u32)>,
    dead: Vec<((K, V), Failure)>,
}

/// How a batch ended.
enum Came {
    Well,
    Badly(Failure),
    /// For each pair, why it failed.
    Mixed(Vec<Option<Failure>>),
}

impl<K: Send + 'static, V: Send + 'static> Shared<K, V> {
    pub(super) fn start<O, F>(
        setup: Setup<K, V>,
        capacity: usize,
        clock: Clock,
        reduce: Box<dyn Reduce<K, V>>,
        process: F,
    ) -> Result<Arc<Self>, BuildError>
    where
        F: Fn(Batch<(K, V)>) -> O + Send + Sync + 'static,
        O: IntoOutcomes<()>,
    {
        let config = &setup.config;
        let due = Due {
            max_keys: config.max_keys,
            linger: config.linger,
            pause: setup.when_failed.as_ref().map_or(Duration::ZERO, |when| when.pause),
            portion: PORTION.min(capacity),
        };
        let shared = Arc::new(Self {
            monitor: Monitor::new(State::new(capacity, clock.now()), clock.clone()),
            reduce,
            due,
            crew: Crew::new("batch", &config.name, clock),
            station: Station::builder(config.name.clone()).kind(StationKind::Batch).capacity(capacity).build(),
            events: Events::new("batch", &config.name),
            setup,
        });
        let worker = Arc::clone(&shared);
        shared.crew.spawn(move || {
            let inside = Inside::of(worker.station.id());
            worker.work(&process);
            worker.user_code(move || drop(process));
            // The last one to hold it drops the hook and the merge function with it; its events are gone then, too.
            contain(move || drop(worker)).ok();
            drop(inside);
        })?;
        Ok(shared)
    }

    fn work<O: IntoOutcomes<()>>(&self, process: &impl Fn(Batch<(K, V)>) -> O) {
        while let Some(begun) = self.begin() {
            self.process(begun, process);
        }
    }

    /// Merges and waits until a batch is to begin. None: there will be no more.
    fn begin(&self) -> Option<Begun<K, V>> {
        let mut state = self.monitor.lock();
        let mut merged = false;
        loop {
            state.parked = true;
            state.called = false;
            let now = state.now();
            match state.next(self.due, now, merged) {
                Next::Merge => {
                    self.merge(&mut state);
                    merged = true;
                }
                Next::Begin => {
                    state.parked = false;
                    return Some(self.take_batch(&mut state, now));
                }
                Next::Wait(until) => {
                    state.wants_role = state.pending.is_none();
                    state.idle = !state.wants_role && state.is_empty();
                    state.wait_until(|s| &mut s.thread, until, |s| s.called);
                    merged = false;
                }
                Next::GiveUp => {
                    let pairs = self.take_everything(&mut state);
                    state.parked = false;
                    drop(state);
                    self.discard_all(pairs);
                    return None;
                }
                Next::End => {
                    state.parked = false;
                    return None;
                }
            }
        }
    }

    fn take_batch(&self, state: &mut Lock<'_, K, V>, began: Instant) -> Begun<K, V> {
        let Some(mut pending) = state.pending.take() else { unreachable!("the thread has looked under the same lock") };
        let count = pending.len().min(self.due.max_keys);
        state.held = pending.len() - count;
        state.acted();
        state.in_process = Some(InProcess { first: pending.first(), count });
        let waits: Vec<Instant> = state.waits(count).collect();
        let span = state.take_span();
        let retired = std::mem::take(&mut state.retired);
        let taken = state.released(|| {
            contain(|| drop(retired)).ok();
            self.station.began(count);
            waits.iter().for_each(|since| self.station.waited(began.saturating_duration_since(*since)));
            pending.take(count)
        });
        state.pending = Some(pending);
        self.role_is_free(state);
        Begun { taken, began, span }
    }

    fn process<O: IntoOutcomes<()>>(&self, begun: Begun<K, V>, process: &impl Fn(Batch<(K, V)>) -> O) {
        let Begun { taken: Taken { pairs, tries }, began, span } = begun;
        let count = pairs.len();
        let copy = self.setup.copy.map(|copy| contain(|| copy(&pairs))).transpose();
        let (outcomes, copy) = match copy {
            Ok(copy) => {
                let run = || span.in_scope(|| process(Batch::from(pairs)).into_outcomes(count));
                (contain(run).unwrap_or_else(Outcomes::failed), copy)
            }
            // It was never worked on, so it is still here.
            Err(panicked) => (Outcomes::failed(panicked), Some(pairs)),
        };
        let came = self.judged(outcomes, count);
        if let Came::Badly(panicked @ Failure::Panicked(_)) = &came {
            span.in_scope(|| self.events.emit(Event::Panic, || panicked));
        }
        self.station.took(self.clock().now().saturating_duration_since(began));
        let mut sorted = Sorted { failed: 0, kept: Vec::new(), dead: Vec::new() };
        self.sort(came, count, copy, &tries, &mut sorted);
        let Sorted { failed, kept, dead } = sorted;
        self.station.ended(Outcome::Served, count - failed);
        self.station.ended(Outcome::Failed, failed - kept.len());
        self.station.retried(kept.len());
        if !kept.is_empty() {
            contain(|| self.events.emit(Event::Retry, || format!("{} pairs", kept.len()))).ok();
        }
        dead.into_iter().for_each(|(pair, failure)| self.user_code(|| self.bury(pair, failure)));
        self.end_batch(count, kept);
    }

    /// Which pairs have failed, and of those that are still here, which are tried again. All others are dropped, one by one: their
    /// destructors and those of the failures are user code.
    fn sort(&self, came: Came, count: usize, copy: Option<Vec<(K, V)>>, tries: &[u32], sorted: &mut Sorted<K, V>) {
        let limit = self.setup.when_failed.as_ref().map_or(1, |when| when.tries);
        let mut pairs = copy.into_iter().flatten();
        let mut one = |at: usize, failure: Option<Failure>| {
            let pair = pairs.next();
            sorted.failed += usize::from(failure.is_some());
            let tried = tries.get(at).copied().unwrap_or(0) + 1;
            match (pair, failure) {
                (Some(pair), Some(failure)) if tried < limit => {
                    sorted.kept.push((pair, tried));
                    self.user_code(|| drop(failure));
                }
                (Some(pair), Some(failure)) => sorted.dead.push((pair, failure)),
                (pair, failure) => {
                    self.user_code(|| drop(pair));
                    self.user_code(|| drop(failure));
                }
            }
        };
        match came {
            Came::Well => (0..count).for_each(|at| one(at, None)),
            Came::Badly(failure) => {
                (0..count).for_each(|at| one(at, Some(failure.clone())));
                self.user_code(|| drop(failure));
            }
            Came::Mixed(failures) => failures.into_iter().enumerate().for_each(|(at, failure)| one(at, failure)),
        }
    }

    /// Merges back what is kept, gives back the other places, and the batch is done.
    fn end_batch(&self, count: usize, kept: Vec<((K, V), u32)>) {
        let mut state = self.monitor.lock();
        let mut gone = count - kept.len();
        if !kept.is_empty() {
            state.wait_until(|s| &mut s.role, None, |s| s.pending.is_some());
            if let (Some(mut pending), Some(batch)) = (state.pending.take(), state.in_process) {
                state.held = pending.len();
                state.acted();
                gone += state.released(|| {
                    let folded = self.reduce.restore(&mut pending, batch.first, kept);
                    self.settle_up(folded)
                });
                state.pending = Some(pending);
                state.held = 0;
                state.failed_at = Some(state.now());
            }
        }
        state.in_process = None;
        state.leave(|s| &mut s.room, gone);
        self.role_is_free(&mut state);
    }

    /// What it means for the pairs.
    fn judged(&self, outcomes: Outcomes<()>, expected: usize) -> Came {
        match outcomes.checked(expected, &self.events) {
            Kind::Failed(failure) => Came::Badly(failure),
            Kind::Each(results) if results.iter().any(Result::is_err) => {
                Came::Mixed(results.into_iter().map(Result::err).collect())
            }
            Kind::Done(_) | Kind::Each(_) => Came::Well,
        }
    }
}

impl<K, V> Shared<K, V> {
    pub(super) fn station(&self) -> &Station {
        &self.station
    }

    pub(super) fn setup(&self) -> &Setup<K, V> {
        &self.setup
    }

    pub(super) fn clock(&self) -> &Clock {
        self.monitor.clock()
    }

    /// Whether the calling thread runs user code of this batcher: whoever waits there may wait for himself.
    fn is_inside(&self) -> bool {
        let id = self.station.id();
        INSIDE.try_with(|inside| inside.borrow().contains(&id)).unwrap_or(false)
    }

    pub(super) fn is_closed(&self) -> bool {
        self.monitor.lock().room.is_closed()
    }

    /// Offers an update, waiting for room as `patience` says; in user code of the batcher, which alone can make room, never.
    #[inline]
    pub(super) fn offer(&self, update: (K, V), patience: Patience) -> Result<(), SendError<(K, V)>> {
        // Dropped after the lock is released.
        let mut span = CallerSpan::current();
        let mut state = self.monitor.lock();
        if state.is_full() || state.enter(|s| &mut s.room, Overflow::Reject, Patience::Try).is_err() {
            return self.offer_slowly(state, update, patience, &mut span);
        }
        self.append(&mut state, update, &mut span);
        Ok(())
    }

    #[inline]
    fn append(&self, state: &mut Lock<'_, K, V>, update: (K, V), span: &mut CallerSpan) {
        let state_now: &mut State<K, V> = state;
        state_now.append(update, || self.monitor.clock().now(), span);
        self.station.arrived(1);
        if state_now.must_act() {
            self.act(state);
        }
    }

    /// There is no place, or the batcher is closed.
    #[cold]
    fn offer_slowly<'a>(
        &'a self,
        mut state: Lock<'a, K, V>,
        update: (K, V),
        patience: Patience,
        span: &mut CallerSpan,
    ) -> Result<(), SendError<(K, V)>> {
        let (update, patience) = match self.merge_directly(&mut state, update, patience) {
            Ok(()) => return Ok(()),
            Err(back) => back,
        };
        let displaced = match state.enter(|s| &mut s.room, self.setup.config.overflow, patience) {
            Ok(Entry::Entered) => None,
            Ok(_displace) => match self.take_oldest(&mut state) {
                // The newcomer takes over its place.
                Some(oldest) => Some(oldest),
                // All places belong to pairs in process or in the making: of those that wait, this one is the oldest.
                None => {
                    drop(state);
                    self.station.arrived(1);
                    self.discard(update, Failure::Dropped);
                    return Ok(());
                }
            },
            Err(reason) => {
                drop(state);
                self.station.refused(1);
                return Err(SendError::new(update, reason));
            }
        };
        self.append(&mut state, update, span);
        drop(state);
        if let Some(oldest) = displaced {
            self.discard(oldest, Failure::Dropped);
        }
        Ok(())
    }

    #[cold]
    fn act(&self, state: &mut Lock<'_, K, V>) {
        if state.parked && state.idle {
            // It has a timer to arm.
            state.idle = false;
            state.expect(self.due);
            self.call_thread(state);
        } else {
            self.merge(state);
        }
    }

    /// All places are taken. Needs none for an update of a key that waits (D5). Else the update comes back, with what is left of the
    /// patience.
    #[cold]
    fn merge_directly(
        &self,
        state: &mut Lock<'_, K, V>,
        update: (K, V),
        patience: Patience,
    ) -> Result<(), ((K, V), Patience)> {
        let patience = match (patience, self.setup.config.overflow) {
            _ if self.is_inside() => Patience::Try,
            (Patience::Policy(cap), Overflow::BlockFor(limit)) => {
                Patience::Policy(earlier(state.now().checked_add(limit), cap))
            }
            _ => patience,
        };
        let deadline = match (patience, self.setup.config.overflow) {
            (Patience::Policy(deadline), Overflow::Block | Overflow::BlockFor(_)) => Some(deadline),
            _ => None,
        };
        while state.is_full() {
            if state.pending.is_none() {
                let ready = |s: &mut State<K, V>| s.pending.is_some() || !s.is_full();
                if !deadline.is_some_and(|deadline| state.wait_until(|s| &mut s.role, deadline, ready)) {
                    break;
                }
            } else if !state.buffer.is_empty() {
                self.merge(state);
            } else if let Some(mut pending) = state.pending.take() {
                state.held = pending.len();
                state.acted();
                let mut updates = std::mem::take(&mut state.spare);
                updates.push_back(update);
                let gone = state.released(|| {
                    let _inside = Inside::of(self.station.id());
                    let folded = self.reduce.fold(&mut pending, &mut updates, true);
                    if updates.is_empty() {
                        self.station.arrived(1);
                    }
                    // The update itself has no place to give back.
                    self.settle_up(folded).saturating_sub(1)
                });
                let back = updates.pop_front();
                state.spare = updates;
                state.pending = Some(pending);
                state.leave(|s| &mut s.room, gone);
                self.role_is_free(state);
                return back.map_or(Ok(()), |update| Err((update, patience)));
            }
        }
        Err((update, patience))
    }

    /// Takes the role and merges the buffer, and again as long as senders have filled it to the last place meanwhile (D4).
    fn merge(&self, state: &mut Lock<'_, K, V>) {
        while !state.buffer.is_empty() {
            let Some(mut pending) = state.pending.take() else { return };
            let (mut updates, mark) = state.take_portion();
            let retired = std::mem::take(&mut state.retired);
            state.held = pending.len() + updates.len();
            state.acted();
            let gone = state.released(|| {
                contain(|| drop(retired)).ok();
                let _inside = Inside::of(self.station.id());
                let folded = self.reduce.fold(&mut pending, &mut updates, false);
                self.settle_up(folded)
            });
            state.spare = updates;
            state.note(mark, pending.next());
            state.pending = Some(pending);
            state.leave(|s| &mut s.room, gone);
            self.role_is_free(state);
            if !state.is_full() {
                return;
            }
        }
    }

    /// Counts what a fold has come to, and dead-letters what it has cost. How many places are free.
    fn settle_up(&self, folded: Folded<K, V>) -> usize {
        let Folded { merged, casualties } = folded;
        self.station.departed(Departure::Merged, merged);
        let mut gone = merged;
        for Casualty { pair, updates, failure } in casualties {
            gone += updates;
            self.station.began(updates);
            self.station.ended(Outcome::Failed, updates);
            self.events.emit(Event::Panic, || &failure);
            self.user_code(|| self.bury(pair, failure));
        }
        gone
    }

    /// Whoever waits for the role, or for something to be done, may look.
    fn role_is_free(&self, state: &mut Lock<'_, K, V>) {
        state.held = 0;
        if state.settle() {
            state.notify_all(|s| &mut s.progress);
        }
        state.expect(self.due);
        state.notify_all(|s| &mut s.role);
        if state.parked && (state.wants_role || state.has_a_batch(self.due)) {
            self.call_thread(state);
        }
    }

    fn call_thread(&self, state: &mut Lock<'_, K, V>) {
        state.called = true;
        state.notify_all(|s| &mut s.thread);
    }

    fn take_oldest(&self, state: &mut Lock<'_, K, V>) -> Option<(K, V)> {
        let oldest = match &mut state.pending {
            Some(pending) => pending.take_oldest().or_else(|| state.buffer.pop_front()),
            None => state.buffer.pop_front(),
        };
        if oldest.is_some() && state.settle() {
            // A flush may have waited for it.
            state.notify_all(|s| &mut s.progress);
        }
        oldest
    }

    /// Everything that waits, oldest first. The role must be free, else only what nobody has begun to merge.
    fn take_everything(&self, state: &mut Lock<'_, K, V>) -> Vec<(K, V)> {
        let mut everything = match &mut state.pending {
            Some(pending) => pending.take(usize::MAX).pairs,
            None => Vec::new(),
        };
        if !state.buffer.is_empty() {
            let (updates, mark) = state.take_portion();
            everything.extend(updates);
            let end = state.pending.as_ref().map_or(0, |pending| pending.next());
            state.note(mark, end);
        }
        state.leave(|s| &mut s.room, everything.len());
        if state.settle() {
            state.notify_all(|s| &mut s.progress);
        }
        everything
    }

    /// A pair that nobody will work on any more goes to the dead letters, if there are any.
    fn bury(&self, pair: (K, V), failure: Failure) {
        match &self.setup.dead_letter {
            Some(hook) => {
                self.events.emit(Event::DeadLetter, || &failure);
                hook(pair, failure);
            }
            None => self.events.emit(Event::Drop, || failure),
        }
    }

    /// An accepted update leaves unprocessed. The hook and the destructors come last: they are user code.
    fn discard(&self, pair: (K, V), failure: Failure) {
        self.station.departed(Departure::Dropped, 1);
        self.bury(pair, failure);
    }

    /// A panic of the hook or of a destructor costs no other pair its dead letter.
    fn discard_all(&self, pairs: Vec<(K, V)>) {
        pairs.into_iter().for_each(|pair| self.user_code(|| self.discard(pair, Failure::Closed)));
    }

    pub(super) fn flush(&self, deadline: Option<Instant>) -> Result<(), FlushError> {
        let own_thread = self.is_inside();
        let mut state = self.monitor.lock();
        // On its own thread it still ends the linger of what waits.
        let deadline = if own_thread { Some(state.now()) } else { deadline };
        let target = state.hurry_up();
        if !own_thread {
            // A portion ends here: nothing that comes later is in a hurry.
            self.merge(&mut state);
        }
        self.call_thread(&mut state);
        if state.wait_until(|s| &mut s.progress, deadline, |s| s.is_done(target)) {
            return Ok(());
        }
        Err(FlushError::new(state.waiting(), state.in_flight(), own_thread))
    }

    /// Closes, and waits until the thread has ended or `deadline` has come; in user code of the batcher not at all.
    pub(super) fn close(&self, deadline: Option<Instant>) -> Left<K, V> {
        let inside = self.is_inside();
        let mut state = self.monitor.lock();
        let no_time = inside || deadline.is_some_and(|deadline| deadline <= state.now());
        state.close_room(|s| &mut s.room);
        state.notify_all(|s| &mut s.role);
        self.call_thread(&mut state);
        if !no_time {
            drop(state);
            if self.crew.join(deadline).is_empty() {
                return Left { pairs: Vec::new(), in_flight: 0, stuck: Vec::new() };
            }
            state = self.monitor.lock();
        }
        // From here on nothing begins: the thread can only finish its batch and end.
        state.abandoned = true;
        if !inside {
            state.takers += 1;
            let patience = state.now().checked_add(WIND_UP);
            state.wait_until(|s| &mut s.role, patience, |s| s.pending.is_some());
            state.takers -= 1;
        }
        let pairs = self.take_everything(&mut state);
        let in_flight = state.in_flight() + state.held;
        self.call_thread(&mut state);
        drop(state);
        let stuck = if inside {
            Vec::new()
        } else {
            let patience = if in_flight == 0 { WIND_UP } else { Duration::ZERO };
            self.crew.join(self.clock().after(patience))
        };
        if in_flight > 0 || !stuck.is_empty() {
            self.events.emit(Event::Abandoned, || format!("{in_flight} pairs in process"));
        }
        Left { pairs, in_flight, stuck }
    }

    /// What was left goes back to whoever closed.
    pub(super) fn hand_back(&self, left: Left<K, V>) -> Result<(), Undelivered<(K, V)>> {
        let Left { pairs, in_flight, stuck } = left;
        self.station.departed(Departure::Returned, pairs.len());
        Undelivered::new(pairs, in_flight, stuck).into_result()
    }

    /// What was left has nobody to go back to.
    pub(super) fn give_up(&self, left: Left<K, V>) -> Leftover {
        let mut report = Leftover::default();
        report.items = left.pairs.len();
        report.in_flight = left.in_flight;
        report.abandoned_threads = left.stuck;
        self.discard_all(left.pairs);
        report
    }

    /// Runs the user's destructors and hooks where a panic has nobody to go to.
    fn user_code(&self, f: impl FnOnce()) {
        self.events.contained(f);
    }
}
