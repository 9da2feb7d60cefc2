//! A part of the keys: their open batches, what is due, and when the rest will be. All of it under one lock; `README.md` beside
//! this file has the states and the invariants.

use std::collections::VecDeque;

use fullbore_core::{CallerSpan, Failure, Waiters, contain};

use super::chunk::{Chunk, Parcel};
use super::keys::{Here, Keys, Line, Seat};
use super::room::Places;

/// Above so many places a table or a list that is nearly empty gives memory back.
pub(super) const KEPT: usize = 64;

/// What makes a batch due, and when it may be taken.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules {
    pub(super) max_items: usize,
    /// In nanoseconds; `None`: never.
    pub(super) linger: Option<u64>,
    pub(super) one_in_flight: bool,
}

impl Rules {
    pub(super) fn deadline(&self, first: u64) -> Option<u64> {
        first.checked_add(self.linger?)
    }
}

/// The timer of an open batch, which may be gone.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timer {
    first: u64,
    /// The batch's number.
    id: u64,
    hash: u32,
}

/// A batch in process.
#[derive(Debug)]
struct Running {
    hash: u32,
    node: u64,
    chunk: u64,
    count: usize,
}

/// Batches that were opened between two flushes.
#[derive(Debug)]
struct Epoch {
    /// The number of its first batch.
    first: u64,
    /// How many are not done.
    open: usize,
}

/// A batch that was taken.
pub(super) struct Taken<K, T, R> {
    /// A copy; or why there is none.
    pub(super) key: Result<K, Failure>,
    pub(super) chunk: Chunk<T, R>,
}

/// What an accepted item leaves to do without the lock.
pub(super) struct Pushed<K> {
    /// The sender's key, if there is one like it.
    pub(super) spare: Option<K>,
    /// The sender's span, if the batch has one.
    pub(super) span: Option<CallerSpan>,
    /// The shard is due now, or has a timer that nobody knows of.
    pub(super) news: Option<News>,
}

/// What became of a sender's item.
pub(super) type Sent<K, T, R> = Result<Pushed<K>, (Parcel<K, T, R>, Refused)>;

/// What the hub has to know of a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum News {
    /// Something can be taken.
    Due,
    /// Something will be, at this time.
    Timer(u64),
}

/// Why an item was not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    Closed,
    /// There is no such key yet, and no place for one.
    NoKey,
}

/// What the end of a batch leaves to do without the lock.
pub(super) struct Done<K> {
    /// The key is idle: nothing is kept of it.
    pub(super) idle: Option<K>,
    /// The shard is due now.
    pub(super) due: bool,
    /// A flush may have waited for it.
    pub(super) settled: bool,
    /// The key's hash, for those who flush a key.
    pub(super) hash: u32,
}

/// Items taken out unprocessed.
pub(super) struct Out<K, T, R> {
    pub(super) key: K,
    pub(super) chunks: Vec<Chunk<T, R>>,
    /// The key itself, if nothing is left of it. To be dropped without the lock.
    pub(super) idle: Option<K>,
    /// The places that are free with them.
    pub(super) places: Places,
    /// A flush may have waited for them.
    pub(super) settled: bool,
}

impl<K, T, R> Out<K, T, R> {
    /// A sender's item that was never in.
    pub(super) fn of_one(parcel: Parcel<K, T, R>) -> Self {
        let Parcel { key, item, reply, span } = parcel;
        let chunks = vec![Chunk::of_one(item, reply, span)];
        Self { key, chunks, idle: None, places: Places::default(), settled: false }
    }
}

/// Where the oldest item is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Oldest {
    pub(super) first: u64,
    hash: u32,
    node: u64,
    /// Its batch.
    id: u64,
}

/// An open batch that may be made due before its time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hurried {
    blocked: bool,
    pub(super) timer: Timer,
}

impl Hurried {
    /// The least is the best: the oldest, but one that cannot be taken yet comes after all that can.
    pub(super) fn preference(&self) -> (bool, u64) {
        (self.blocked, self.timer.first)
    }
}

pub(super) struct Shard<K, T, R> {
    keys: Keys<K, T, R>,
    /// Open batches in the order of their first items.
    timers: VecDeque<Timer>,
    /// Nodes with a batch that is due and may be taken.
    line: Line,
    running: Vec<Running>,
    epochs: VecDeque<Epoch>,
    /// The number of the next batch.
    next: u64,
    /// A flush asked for the batches below this number.
    hurry_below: u64,
    /// Items that wait.
    pub(super) waiting: usize,
    /// See K5.
    pub(super) queued: bool,
    pub(super) closed: bool,
    /// Threads in `flush`.
    pub(super) progress: Waiters,
    /// Threads in `flush_key`, by their key's hash.
    pub(super) key_progress: Waiters<(), u32>,
}

impl<K, T, R> Shard<K, T, R> {
    pub(super) fn new() -> Self {
        Self {
            keys: Keys::new(),
            timers: VecDeque::new(),
            line: Line::new(),
            running: Vec::new(),
            epochs: VecDeque::from([Epoch { first: 0, open: 0 }]),
            next: 0,
            hurry_below: 0,
            waiting: 0,
            queued: false,
            closed: false,
            progress: Waiters::new(),
            key_progress: Waiters::new(),
        }
    }

    fn is_ripe(&self, timer: &Timer, now: u64, rules: &Rules) -> bool {
        self.closed || timer.id < self.hurry_below || rules.deadline(timer.first).is_some_and(|due| due <= now)
    }

    /// Whether something may be there to be taken. It is not sure: a timer's batch may be gone, or its key in process.
    pub(super) fn is_due(&self, now: u64, rules: &Rules) -> bool {
        !self.line.is_empty() || self.timers.front().is_some_and(|timer| self.is_ripe(timer, now, rules))
    }

    /// Where the key is: the one step with a sender's item that is user code.
    pub(super) fn seat(&self, hash: u32, key: &K) -> Seat
    where
        K: Eq,
    {
        self.keys.seat(hash, key)
    }

    /// Puts an item in, for which there is a place, at its key's seat; `key_place` takes one for its key if that is new, and
    /// `accepted` runs when the item is in, before anybody can see it.
    pub(super) fn push(
        &mut self,
        seat: Seat,
        parcel: Parcel<K, T, R>,
        rules: &Rules,
        key_place: impl FnOnce() -> bool,
        now: impl FnOnce() -> u64,
        accepted: impl FnOnce(),
    ) -> Sent<K, T, R> {
        if self.closed {
            return Err((parcel, Refused::Closed));
        }
        let Parcel { key, item, reply, span } = parcel;
        let (mut here, spare) = match self.keys.enter(seat, key, self.next, key_place) {
            Ok(entered) => entered,
            Err(key) => return Err((Parcel { key, item, reply, span }, Refused::NoKey)),
        };
        let mut pushed = Pushed { spare, span: None, news: None };
        let waiting = here.node.open.len();
        if waiting > 0 && waiting < rules.max_items {
            pushed.span = Some(span);
        } else {
            if waiting > 0 {
                here.put_aside();
            }
            here.rest.open = self.next;
            here.rest.first = now();
            here.rest.span = span;
            self.next += 1;
            if let Some(epoch) = self.epochs.back_mut() {
                epoch.open += 1;
            }
            if rules.linger == Some(0) {
                here.rest.due = true;
            } else {
                if self.timers.is_empty() && !self.queued {
                    pushed.news = rules.deadline(here.rest.first).map(News::Timer);
                }
                self.timers.push_back(Timer { first: here.rest.first, id: here.rest.open, hash: seat.hash });
            }
        }
        if reply.is_wanted() {
            here.rest.replies.keep(here.node.open.len(), reply);
        }
        here.node.open.push(item);
        self.waiting += 1;
        accepted();
        // Between the first item and the last one nothing gets due by an item.
        let last = here.node.open.len();
        if (last == 1 || last >= rules.max_items) && here.line_up(&mut self.line, rules) && !self.queued {
            self.queued = true;
            pushed.news = Some(News::Due);
        }
        if self.timers.len() > 2 * self.keys.len() + KEPT {
            self.drop_stale_timers();
        }
        Ok(pushed)
    }

    /// Before a search: nearly every key that waits has a timer, so that few of them are stale then.
    fn trim(&mut self) {
        self.first_timer();
        if self.timers.len() > self.keys.len() + KEPT {
            self.drop_stale_timers();
        }
    }

    fn drop_stale_timers(&mut self) {
        let Self { keys, timers, .. } = self;
        timers.retain(|timer| keys.is_open(timer.hash, timer.id));
    }

    /// Takes the oldest batch that is due and may be taken.
    pub(super) fn take(&mut self, now: u64, rules: &Rules) -> Option<Taken<K, T, R>>
    where
        K: Clone,
    {
        loop {
            let timer = self.timers.front().filter(|timer| self.is_ripe(timer, now, rules)).map(|timer| timer.id);
            let lined = self.line.keys().next().copied();
            let by_line = match (lined, timer) {
                (Some(lined), Some(timer)) => lined <= timer,
                (Some(_), None) => true,
                (None, Some(_)) => false,
                (None, None) => return None,
            };
            let found = if by_line {
                let (_, lined) = self.line.pop_first()?;
                self.keys.node(lined.hash, lined.node)
            } else {
                let timer = self.timers.pop_front()?;
                self.keys.open(timer.hash, timer.id)
            };
            let Some(mut here) = found else { continue };
            if by_line {
                here.rest.in_line = false;
            } else {
                here.rest.due = true;
            }
            if !here.can_be_taken(rules) {
                continue;
            }
            // Before anything is changed: it is user code.
            let key = contain(|| here.node.key.clone());
            let chunk = here.take_front();
            here.rest.in_flight += 1;
            here.line_up(&mut self.line, rules);
            let count = chunk.items.len();
            self.waiting -= count;
            self.running.push(Running { hash: here.node.hash, node: here.rest.id, chunk: chunk.id, count });
            return Some(Taken { key, chunk });
        }
    }

    /// A batch is done.
    pub(super) fn done(&mut self, chunk: u64, rules: &Rules) -> Done<K> {
        let mut done = Done { idle: None, due: false, settled: self.settle(chunk), hash: 0 };
        let Some(at) = self.running.iter().position(|running| running.chunk == chunk) else { return done };
        let Running { hash, node: id, .. } = self.running.swap_remove(at);
        done.hash = hash;
        // A close may have taken the node with all that waited.
        let Some(mut here) = self.keys.node(hash, id) else { return done };
        here.rest.in_flight -= 1;
        if here.is_empty() && here.rest.in_flight == 0 {
            done.idle = self.forget(hash, id);
        } else if here.line_up(&mut self.line, rules) {
            done.due = !self.queued;
            self.queued = true;
        }
        done
    }

    /// The node is idle. Its timers are of no use any more, nor is most of their memory if they were many.
    fn forget(&mut self, hash: u32, id: u64) -> Option<K> {
        let key = self.keys.remove(hash, id);
        if self.keys.len() == 0 {
            self.timers.clear();
        }
        if self.timers.capacity() > KEPT && self.timers.len() < self.timers.capacity() / 8 {
            self.timers.shrink_to(2 * self.timers.len());
        }
        key
    }

    /// The batch of this number has ended; true if a flush may have waited for it.
    fn settle(&mut self, chunk: u64) -> bool {
        let before = self.settled_below();
        if let Some(at) = self.epochs.iter().rposition(|epoch| epoch.first <= chunk) {
            let epoch = &mut self.epochs[at];
            epoch.open -= 1;
            // The last one is still to come.
            if epoch.open == 0 && at + 1 < self.epochs.len() {
                self.epochs.remove(at);
            }
        }
        self.settled_below() != before
    }

    /// All batches below this number are done.
    pub(super) fn settled_below(&self) -> u64 {
        self.epochs.front().filter(|epoch| epoch.open > 0).map_or(self.next, |epoch| epoch.first)
    }

    /// Makes everything due, and says below which number all batches have to be done.
    pub(super) fn hurry(&mut self) -> u64 {
        self.hurry_below = self.next;
        if self.epochs.back().is_some_and(|epoch| epoch.open > 0) {
            self.epochs.push_back(Epoch { first: self.next, open: 0 });
        }
        self.next
    }

    /// The open batch to be made due first if there is no room: the oldest one that could be taken, or just the oldest.
    pub(super) fn find_hurried(&mut self, rules: &Rules) -> Option<Hurried> {
        self.trim();
        let Self { keys, timers, .. } = self;
        let mut oldest = None;
        for timer in timers {
            let Some(here) = keys.open(timer.hash, timer.id) else { continue };
            let (blocked, due) = (here.is_blocked(rules), here.rest.due || here.node.open.len() >= rules.max_items);
            match () {
                () if due => {}
                () if !blocked => return Some(Hurried { blocked, timer: *timer }),
                () => _ = oldest.get_or_insert(Hurried { blocked, timer: *timer }),
            }
        }
        oldest
    }

    /// Makes an open batch due. False: it is gone.
    pub(super) fn hurry_one(&mut self, timer: Timer, rules: &Rules) -> bool {
        let Some(mut here) = self.keys.open(timer.hash, timer.id) else { return false };
        here.rest.due = true;
        here.line_up(&mut self.line, rules);
        true
    }

    /// Makes what waits of the key in this seat due. Below which number its batches have to be done, and which node it is; no node
    /// once a close has taken that: then what is in process of keys with the same hash has to be done. `None`: there is nothing.
    pub(super) fn hurry_key(&mut self, seat: Seat, rules: &Rules) -> Option<(u64, Option<u64>)> {
        let Some(mut here) = self.keys.in_seat(seat) else {
            let in_process = self.closed && self.running.iter().any(|running| running.hash == seat.hash);
            return in_process.then_some((self.next, None));
        };
        here.rest.due |= here.is_open();
        here.line_up(&mut self.line, rules);
        Some((self.next, Some(here.rest.id)))
    }

    /// Whether those batches are done.
    pub(super) fn key_settled_below(&mut self, hash: u32, node: Option<u64>, below: u64) -> bool {
        let of_it = |running: &Running| node.map_or(running.hash == hash, |id| running.node == id);
        if self.running.iter().any(|running| of_it(running) && running.chunk < below) {
            return false;
        }
        let here = node.and_then(|id| self.keys.node(hash, id));
        here.is_none_or(|here| here.is_empty() || here.front().0 >= below)
    }

    /// When the first batch that still waits for its timer began. Drops timers of batches that are gone.
    pub(super) fn first_timer(&mut self) -> Option<u64> {
        while let Some(timer) = self.timers.front() {
            if self.keys.is_open(timer.hash, timer.id) {
                return Some(timer.first);
            }
            self.timers.pop_front();
        }
        None
    }

    /// How many items are in process.
    pub(super) fn in_flight(&self) -> usize {
        self.running.iter().map(|running| running.count).sum()
    }

    /// Where the item that waits longest is, as far as the first items of batches tell; if `to_free`, of those whose key
    /// has nothing in process.
    pub(super) fn oldest(&mut self, to_free: bool) -> Option<Oldest> {
        self.trim();
        let Self { keys, line, timers, running, .. } = self;
        let fits = |here: Here<'_, K, T, R>| {
            let fits = !here.is_empty() && (!to_free || here.rest.in_flight == 0);
            let (id, first, _) = here.front();
            fits.then_some(Oldest { first, hash: here.node.hash, node: here.rest.id, id })
        };
        // Each waiting item's batch is lined up, open with a timer, or of a key in process; or behind such a one.
        let in_line = line.values().find_map(|lined| keys.node(lined.hash, lined.node).and_then(fits));
        let by_timer = timers.iter().find_map(|timer| keys.open(timer.hash, timer.id).and_then(fits));
        let held = running.iter().filter_map(|running| keys.node(running.hash, running.node).and_then(fits));
        held.chain(in_line).chain(by_timer).min_by_key(|oldest| oldest.id)
    }

    /// Takes the oldest item of that node out; or all of them, if `to_free`. Nothing, if they are gone.
    pub(super) fn displace(&mut self, oldest: Oldest, to_free: bool, rules: &Rules) -> Option<Out<K, T, R>>
    where
        K: Clone,
    {
        let Oldest { hash, node: id, .. } = oldest;
        let mut here = self.keys.node(hash, id)?;
        if here.is_empty() || (to_free && here.rest.in_flight > 0) {
            return None;
        }
        // Before anything is changed: it is user code.
        let key = here.node.key.clone();
        let mut out = Out { key, chunks: Vec::new(), idle: None, places: Places::default(), settled: false };
        here.leave_line(&mut self.line);
        if !to_free && here.front().2 > 1 {
            out.chunks.push(here.take_first_item());
            out.places = Places::ITEM;
            here.line_up(&mut self.line, rules);
            self.waiting -= 1;
            return Some(out);
        }
        if to_free {
            out.chunks = here.take_all();
        } else {
            out.chunks.push(here.take_front());
        }
        here.line_up(&mut self.line, rules);
        let idle = here.is_empty() && here.rest.in_flight == 0;
        self.account(&mut out);
        if idle {
            out.idle = self.forget(hash, id);
            out.places.keys = 1;
        }
        Some(out)
    }

    /// Takes everything out that is not in process.
    pub(super) fn take_back(&mut self) -> Vec<Out<K, T, R>> {
        let mut outs = Vec::with_capacity(self.keys.len());
        self.keys.drain(|key, chunks| {
            outs.push(Out { key, chunks, idle: None, places: Places::KEY, settled: false });
        });
        outs.iter_mut().for_each(|out| self.account(out));
        self.timers = VecDeque::new();
        self.line = Line::new();
        outs
    }

    /// Whole batches have left.
    fn account(&mut self, out: &mut Out<K, T, R>) {
        for chunk in &out.chunks {
            self.waiting -= chunk.items.len();
            out.places.items += chunk.items.len() as u32;
            out.settled |= self.settle(chunk.id);
        }
    }
}

#[cfg(all(test, not(fullbore_loom)))]
mod tests {
    use fullbore_core::CallerSpan;
    use fullbore_testkit::{CountingAlloc, measure};

    use super::super::chunk::Parcel;
    use super::{Rules, Shard};
    use crate::ticket::Reply;

    #[global_allocator]
    static ALLOC: CountingAlloc = CountingAlloc;

    const KEYS: u64 = 100_000;
    const RULES: Rules = Rules { max_items: 100, linger: Some(10), one_in_flight: true };

    fn push(shard: &mut Shard<u64, u64, ()>, key: u64) {
        let parcel = Parcel { key, item: key, reply: Reply::none(), span: CallerSpan::default() };
        let hash = (key as u32).wrapping_mul(0x9e37_79b9);
        let seat = shard.seat(hash, &key);
        let pushed = shard.push(seat, parcel, &RULES, || true, || 0, || ());
        assert!(pushed.is_ok());
    }

    /// Processes everything that is due, two batches at a time. How many keys are idle with that.
    fn process(shard: &mut Shard<u64, u64, ()>, now: u64) -> usize {
        let mut idle = 0;
        while let Some(first) = shard.take(now, &RULES) {
            let second = shard.take(now, &RULES);
            for taken in [Some(first), second].into_iter().flatten() {
                idle += usize::from(shard.done(taken.chunk.id, &RULES).idle.is_some());
            }
        }
        idle
    }

    #[test]
    fn an_open_key_takes_at_most_200_bytes_and_an_idle_one_nothing() {
        let mut shard = Shard::new();
        let ((), open) = measure(|| (0..KEYS).for_each(|key| push(&mut shard, key)));
        let each = open.net_bytes() / KEYS.cast_signed();
        // A batch may have the sender's span.
        let most = if cfg!(feature = "tracing") { 250 } else { 200 };
        assert!((100..=most).contains(&each), "{each} bytes");
        let (idle, freed) = measure(|| process(&mut shard, 100));
        assert_eq!(idle, KEYS as usize);
        let left = open.net_bytes() + freed.net_bytes();
        assert!(left <= 16 * 1024, "{left} bytes are left");
    }

    #[test]
    fn timers_of_batches_that_are_gone_do_not_pile_up() {
        let mut shard = Shard::new();
        let full = || Rules { max_items: 1, linger: None, ..RULES };
        for key in 0..KEYS {
            let parcel = Parcel { key, item: key, reply: Reply::none(), span: CallerSpan::default() };
            let seat = shard.seat(key as u32, &key);
            assert!(shard.push(seat, parcel, &full(), || true, || 0, || ()).is_ok());
            let id = shard.take(0, &full()).map(|taken: super::Taken<u64, u64, ()>| taken.chunk.id);
            assert!(shard.done(id.unwrap(), &full()).idle.is_some());
        }
        assert!(shard.timers.len() <= 100, "{}", shard.timers.len());
    }
}
