//! What each worker does: finds a shard that is due, takes a batch, has it processed, ends it.

use std::sync::Arc;
use std::time::Duration;

use fullbore_core::{Event, Failure, Locked, Serve, contain};
use fullbore_metrics::Outcome;

use super::engine::Shared;
use super::hub::{self, Hub, sooner};
use super::room::Places;
use super::shard::{Hurried, News, Taken};
use crate::batch::Batch;
use crate::inside;
use crate::outcomes::{Kind, Outcomes};
use crate::ticket::Reply;

/// The process function, whatever it returns.
pub(super) type Process<K, T, R> = Arc<dyn Fn(&K, Batch<T>) -> Outcomes<R> + Send + Sync>;

/// So many batches of a shard a lone worker processes before it looks at the others, if they do not take longer than this many
/// nanoseconds. With several workers it is one: the next batch may be another's.
const VISIT: usize = 32;
const VISIT_NANOS: u64 = 1_000_000;

/// Works until a close is through.
pub(super) fn run<K: Clone, T, R>(shared: Arc<Shared<K, T, R>>, process: Process<K, T, R>) {
    if !cfg!(fullbore_loom) {
        // The model checker's threads are one thread of the system.
        inside::serve(shared.station.id());
    }
    Worker { shared: &shared, process: &*process, now: shared.now(), worked: false, found: Vec::new() }.run();
    shared.user_code(move || drop(process));
    // The last one to hold it drops the dead-letter hook with it; its events are gone then, too.
    contain(move || drop(shared)).ok();
}

struct Worker<'a, K, T, R> {
    shared: &'a Shared<K, T, R>,
    process: &'a (dyn Fn(&K, Batch<T>) -> Outcomes<R> + Send + Sync),
    /// When it last read the clock.
    now: u64,
    /// Whether anything was processed since the last scan: then the alarm may be one of batches that are gone.
    worked: bool,
    /// What a scan found, kept for its memory.
    found: Vec<usize>,
}

/// A batch that has been processed and answered, and is still to be ended in its shard.
struct Ended<K> {
    chunk: u64,
    key: Result<K, Failure>,
    /// Not given back yet.
    places: Places,
}

/// What a look at all shards has shown, beside those that are due and in nobody's hands.
struct Looked {
    /// When the next one will be due.
    next: Option<u64>,
    /// One is, in whosever hands.
    any_due: bool,
    /// The open batch to be made due if there is no room, and where it is.
    hurried: Option<(usize, Hurried)>,
}

impl<K: Clone, T, R> Worker<'_, K, T, R> {
    fn run(&mut self) {
        let limit = if self.shared.config.workers == 1 { VISIT } else { 1 };
        while let Some(at) = self.next_shard() {
            let until = self.now.saturating_add(VISIT_NANOS);
            let mut ended = None;
            for n in 1..=limit {
                let last = n == limit || self.now >= until;
                let Some(taken) = self.step(at, ended.take(), Some(last)) else { break };
                self.worked = true;
                ended = Some(self.process(taken));
                if last {
                    break;
                }
            }
            if ended.is_some() {
                self.step(at, ended, None);
            }
        }
    }

    /// Ends a batch, and takes one if asked to: in one critical section. If there is none, or if it is the `last` one of this
    /// visit, the shard is left: with what the hub has to know of it.
    fn step(&mut self, at: usize, ended: Option<Ended<K>>, last: Option<bool>) -> Option<Taken<K, T, R>> {
        let shared = self.shared;
        let rules = &shared.rules;
        let mut shard = shared.shard(at);
        let (mut due, mut wanted, mut keys) = (false, false, (None, None));
        if let Some(Ended { chunk, key, places }) = ended {
            let done = shard.done(chunk, rules);
            // Before the flush that waits for it can go on.
            let places = Places { keys: u32::from(done.idle.is_some()), ..places };
            wanted = !places.is_none() && shared.room.give(places);
            if done.settled {
                shard.notify_all(|shard| &mut shard.progress);
            }
            if !shard.key_progress.is_empty() {
                let of_key = |hash| if hash == done.hash { Serve::Nudge } else { Serve::Skip };
                shard.serve(|shard| &mut shard.key_progress, |_, waiter, _| of_key(*waiter.tag));
            }
            due = done.due;
            keys = (key.ok(), done.idle);
        }
        let taken = if last.is_some() { shard.take(self.now, rules) } else { None };
        let mut timer = None;
        if last.is_some_and(|last| last || taken.is_none()) {
            due = shard.is_due(self.now, rules);
            shard.queued = due;
            timer = if due { None } else { shard.first_timer().and_then(|first| rules.deadline(first)) };
        }
        drop(shard);
        if due {
            shared.tell(at, News::Due);
        } else if let Some(timer) = timer {
            shared.tell(at, News::Timer(timer));
        }
        if wanted {
            hub::serve_line(&mut shared.lock_hub(), &shared.room);
        }
        if std::mem::needs_drop::<K>() {
            shared.user_code(move || drop(keys.0));
            shared.user_code(move || drop(keys.1));
        }
        taken
    }

    /// The next shard to look at, waiting for it. `None`: closed, and nothing is due.
    fn next_shard(&mut self) -> Option<usize> {
        let shared = self.shared;
        let mut hub = shared.lock_hub();
        loop {
            if hub.alarm().is_some_and(|alarm| alarm <= self.now) {
                self.scan(&mut hub, false);
            }
            if let Some(at) = hub::next_due(&mut hub) {
                return Some(at);
            }
            // What was processed may have had the first timer, or kept others from being taken.
            let worked = std::mem::take(&mut self.worked);
            let pressed = shared.room.relieve() | (worked && std::mem::take(&mut hub.unrelieved));
            let closed = hub.closed;
            if pressed || closed || (worked && hub.alarm().is_some()) {
                self.scan(&mut hub, pressed);
                if closed && !hub.has_due() {
                    return None;
                }
                // Meanwhile something may have come that the sleep would not see; a close, too.
                continue;
            }
            hub::sleep(&mut hub, |at| shared.instant(at));
            self.now = shared.now();
        }
    }

    /// Looks at all shards: puts those that are due into the hub's line, and the alarm right. If none is and there is
    /// pressure, the oldest open batch becomes due.
    fn scan(&mut self, hub: &mut Locked<'_, Hub>, pressed: bool) {
        let (shared, closed) = (self.shared, hub.closed);
        hub.forget_alarm();
        let (next, relieved) = hub.released(|| {
            let Looked { next, any_due, hurried } = self.look(closed, pressed);
            let relieved = if !pressed || (!any_due && !shared.room.is_full()) {
                true
            } else if !any_due {
                hurried.is_some_and(|(at, hurried)| self.hurry(at, hurried))
            } else if self.found.is_empty() {
                false
            } else {
                // What is due makes room perhaps; if not, the pressure is still there.
                shared.room.press();
                true
            };
            (next, relieved)
        });
        // It is all in somebody's hands. Who comes back from there looks again.
        hub.unrelieved |= !relieved;
        for at in self.found.drain(..) {
            hub.add(at);
        }
        if let Some(at) = next {
            hub::tell_timer(hub, at);
        }
    }

    /// Finds the shards that are due, and what else there is to know of all; under pressure, what to hurry.
    fn look(&mut self, closed: bool, pressed: bool) -> Looked {
        let rules = &self.shared.rules;
        let mut looked = Looked { next: None, any_due: false, hurried: None };
        for at in 0..self.shared.shards.len() {
            let mut shard = self.shared.shard(at);
            let first = shard.first_timer();
            if shard.is_due(self.now, rules) {
                looked.any_due = true;
                // At the end whoever has it in hand may be a sender, who does not wait for anybody.
                if !shard.queued || closed {
                    shard.queued = true;
                    self.found.push(at);
                }
                continue;
            }
            looked.next = sooner(looked.next, first.and_then(|first| rules.deadline(first)));
            let Some(found) = pressed.then(|| shard.find_hurried(rules)).flatten() else { continue };
            if looked.hurried.is_none_or(|(_, other)| found.preference() < other.preference()) {
                looked.hurried = Some((at, found));
            }
        }
        looked
    }

    /// Makes an open batch due. False: it is gone.
    fn hurry(&mut self, at: usize, hurried: Hurried) -> bool {
        let rules = &self.shared.rules;
        let mut shard = self.shared.shard(at);
        let found = shard.hurry_one(hurried.timer, rules);
        if !shard.queued && shard.is_due(self.now, rules) {
            shard.queued = true;
            self.found.push(at);
        }
        found
    }

    fn process(&mut self, taken: Taken<K, T, R>) -> Ended<K> {
        let shared = self.shared;
        let Taken { key, chunk } = taken;
        let (id, began) = (chunk.id, self.now);
        let count = chunk.items.len();
        shared.station.began(count);
        // C6: the oldest item's.
        shared.station.waited(Duration::from_nanos(began.saturating_sub(chunk.first)));
        let span = chunk.span.clone();
        let (items, replies) = chunk.apart();
        let outcomes = match &key {
            Ok(key) => contain(|| span.in_scope(|| (self.process)(key, Batch::from(items)))),
            Err(panicked) => {
                shared.user_code(|| drop(items));
                Err(panicked.clone())
            }
        };
        let outcomes = outcomes.unwrap_or_else(|panicked| {
            span.in_scope(|| shared.events.emit(Event::Panic, || &panicked));
            Outcomes::failed(panicked)
        });
        let outcomes = outcomes.checked(count, &shared.events);
        self.now = shared.now();
        shared.station.took(Duration::from_nanos(self.now.saturating_sub(began)));
        let served = match &outcomes {
            Kind::Done(results) => results.len(),
            Kind::Each(results) => results.iter().filter(|result| result.is_ok()).count(),
            Kind::Failed(_) => 0,
        };
        shared.station.ended(Outcome::Served, served);
        if served < count {
            shared.station.ended(Outcome::Failed, count - served);
        }
        // Who has a result finds its item counted and its place free; who has flushed finds every result there.
        let mut places = Places { items: count as u32, keys: 0 };
        if replies.is_some() || shared.room.is_wanted() {
            shared.release(std::mem::take(&mut places));
        }
        self.answer(outcomes, replies);
        Ended { chunk: id, key, places }
    }

    fn answer(&self, outcomes: Kind<R>, replies: Option<Vec<Reply<R>>>) {
        let shared = self.shared;
        // A result that nobody wants is dropped here, by its own destructor.
        let answer = |reply: Reply<R>, result| shared.user_code(|| reply.resolve(result));
        let unwanted = replies.is_none() && !std::mem::needs_drop::<R>();
        let replies = replies.unwrap_or_default().into_iter();
        let each = || std::iter::repeat_with(Reply::none);
        match outcomes {
            Kind::Done(_) if unwanted => {}
            Kind::Done(results) => {
                replies.chain(each()).zip(results).for_each(|(reply, result)| answer(reply, Ok(result)));
            }
            Kind::Each(results) => {
                replies.chain(each()).zip(results).for_each(|(reply, result)| answer(reply, result));
            }
            Kind::Failed(failure) => {
                let wanted = replies.filter(Reply::is_wanted);
                wanted.for_each(|reply| answer(reply, Err(failure.clone())));
                shared.user_code(|| drop(failure));
            }
        }
    }
}
