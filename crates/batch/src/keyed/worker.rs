//! What each worker does: finds a shard that is due, takes a batch, has it processed, ends it.

use std::sync::Arc;
use std::time::Duration;

use fullbore_core::{Event, Failure, Locked, contain};
use fullbore_metrics::Outcome;

use super::engine::Shared;
use super::hub::{self, Hub, sooner};
use super::inside;
use super::room::Places;
use super::shard::{News, Taken};
use crate::batch::Batch;
use crate::outcomes::{Kind, Outcomes};
use crate::ticket::Reply;

/// The process function, whatever it returns.
pub(super) type Process<K, T, R> = Arc<dyn Fn(&K, Batch<T>) -> Outcomes<R> + Send + Sync>;

/// So many batches of a shard a lone worker processes before it looks at the others. With several workers it is one: the
/// next batch may be another's.
const VISIT: usize = 32;

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

impl<K: Clone, T, R> Worker<'_, K, T, R> {
    fn run(&mut self) {
        let limit = if self.shared.config.workers == 1 { VISIT } else { 1 };
        while let Some(at) = self.next_shard() {
            for n in 1..=limit {
                let Some(taken) = self.take(at, n == limit) else { break };
                self.worked = true;
                self.process(at, taken);
            }
        }
    }

    /// A batch of the shard. If there is none, or if it is the `last` one of this visit, the shard is left: with what the hub
    /// has to know of it.
    fn take(&mut self, at: usize, last: bool) -> Option<Taken<K, T, R>> {
        let rules = &self.shared.rules;
        let mut shard = self.shared.shard(at);
        let taken = shard.take(self.now, rules);
        if taken.is_some() && !last {
            return taken;
        }
        shard.queued = shard.is_due(self.now, rules);
        let news = if shard.queued {
            Some(News::Due)
        } else {
            shard.first_timer().and_then(|first| rules.deadline(first)).map(News::Timer)
        };
        drop(shard);
        if let Some(news) = news {
            self.shared.tell(at, news);
        }
        taken
    }

    /// The next shard to look at, waiting for it. `None`: closed, and nothing is due.
    fn next_shard(&mut self) -> Option<usize> {
        let shared = self.shared;
        let mut hub = shared.lock_hub();
        loop {
            if hub.alarm.is_some_and(|alarm| alarm <= self.now) {
                self.scan(&mut hub);
            }
            if let Some(at) = hub::next_due(&mut hub) {
                return Some(at);
            }
            let stale = std::mem::take(&mut self.worked) && hub.alarm.is_some();
            if shared.room.is_pressed() || hub.closed || stale {
                self.scan(&mut hub);
                if hub.has_due() {
                    continue;
                }
                if hub.closed {
                    return None;
                }
                // Meanwhile something may have come that the sleep would not see.
                continue;
            }
            hub::sleep(&mut hub, |at| shared.instant(at));
            self.now = shared.now();
        }
    }

    /// Looks at all shards: puts those that are due into the hub's line, and the alarm right. If none is and there is
    /// pressure, the oldest open batch becomes due.
    fn scan(&mut self, hub: &mut Locked<'_, Hub>) {
        hub.alarm = None;
        let (pressed, closed) = (self.shared.room.relieve(), hub.closed);
        let next = hub.released(|| {
            let (next, oldest) = self.look(closed);
            if pressed && !self.found.is_empty() {
                // What is due makes room perhaps; if not, the pressure is still there.
                self.shared.room.press();
            } else if pressed && self.shared.room.is_full() {
                self.hurry(oldest);
            }
            next
        });
        for at in self.found.drain(..) {
            hub.add(at);
        }
        hub.alarm = sooner(hub.alarm, next);
    }

    /// Finds the shards that are due. When the next one will be, and which has the oldest open batch.
    fn look(&mut self, closed: bool) -> (Option<u64>, Option<usize>) {
        let rules = &self.shared.rules;
        let (mut next, mut oldest) = (None, None);
        for at in 0..self.shared.shards.len() {
            let mut shard = self.shared.shard(at);
            let first = shard.first_timer();
            if shard.is_due(self.now, rules) {
                // At the end whoever has it in hand may be a sender, who does not wait for anybody.
                if !shard.queued || closed {
                    shard.queued = true;
                    self.found.push(at);
                }
            } else if let Some(first) = first {
                next = sooner(next, rules.deadline(first));
                if oldest.is_none_or(|(oldest, _)| first < oldest) {
                    oldest = Some((first, at));
                }
            }
        }
        (next, oldest.map(|(_, at)| at))
    }

    fn hurry(&mut self, oldest: Option<usize>) {
        let Some(at) = oldest else { return };
        let mut shard = self.shared.shard(at);
        shard.hurry_first();
        if !shard.queued && shard.is_due(self.now, &self.shared.rules) {
            shard.queued = true;
            self.found.push(at);
        }
    }

    fn process(&mut self, at: usize, taken: Taken<K, T, R>) {
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
            span.in_scope(|| shared.say(Event::Panic, &panicked));
            Outcomes::failed(panicked)
        });
        let outcomes = self.checked(outcomes, count);
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
        shared.release(Places { items: count as u32, keys: 0 });
        self.answer(outcomes, replies);
        let rules = &shared.rules;
        let mut shard = shared.shard(at);
        let done = shard.done(id, rules);
        if done.settled {
            shard.notify_all(|shard| &mut shard.progress);
        }
        if !shard.key_progress.is_empty() {
            shard.serve(
                |shard| &mut shard.key_progress,
                |_, waiter, _| {
                    if *waiter.tag == done.node { fullbore_core::Serve::Nudge } else { fullbore_core::Serve::Skip }
                },
            );
        }
        // Before the flush that waits for it can go on.
        let wanted = done.idle.is_some() && shared.room.give(Places::KEY);
        drop(shard);
        if done.due {
            shared.tell(at, News::Due);
        }
        if wanted {
            hub::serve_line(&mut shared.lock_hub(), &shared.room);
        }
        shared.user_code(move || drop(key));
        shared.user_code(move || drop(done.idle));
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

    /// Refuses a wrong number of results. Their destructors are user code: two panics in one drop of all would abort.
    fn checked(&self, outcomes: Outcomes<R>, expected: usize) -> Kind<R> {
        let got = match &outcomes.0 {
            Kind::Done(results) => results.len(),
            Kind::Each(results) => results.len(),
            Kind::Failed(_) => expected,
        };
        if got == expected {
            return outcomes.0;
        }
        let shared = self.shared;
        match outcomes.0 {
            Kind::Done(results) => results.into_iter().for_each(|result| shared.user_code(|| drop(result))),
            Kind::Each(results) => results.into_iter().for_each(|result| shared.user_code(|| drop(result))),
            Kind::Failed(failure) => return Kind::Failed(failure),
        }
        Kind::Failed(Failure::Mismatch { expected, got })
    }
}
