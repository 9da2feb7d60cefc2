//! A part of the keys: their open batches, what is due, and when the rest will be. All of it under one lock; `README.md` beside
//! this file has the states and the invariants.

use std::collections::VecDeque;

use fullbore_core::{CallerSpan, Failure, Waiters, contain};
use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

use super::room::Places;
use crate::ticket::Reply;

/// Above so many places a table or a line that is nearly empty gives memory back.
const KEPT: usize = 64;

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

/// What a sender brings.
pub(super) struct Parcel<K, T, R> {
    pub(super) key: K,
    pub(super) item: T,
    pub(super) reply: Reply<R>,
    pub(super) span: CallerSpan,
}

/// Items of one key on their way to one call of the process function.
pub(super) struct Chunk<T, R> {
    /// Its number in the shard, ascending.
    pub(super) id: u64,
    /// When its first item was accepted.
    pub(super) first: u64,
    pub(super) items: Vec<T>,
    /// One for each item, or none at all.
    replies: Option<Box<Replies<R>>>,
    /// The first item's.
    pub(super) span: CallerSpan,
}

/// Boxed, for most batches have none.
struct Replies<R>(Vec<Reply<R>>);

/// Boxed, for most keys have none.
struct Backlog<T, R>(VecDeque<Chunk<T, R>>);

impl<T, R> Chunk<T, R> {
    fn none() -> Self {
        Self { id: 0, first: 0, items: Vec::new(), replies: None, span: CallerSpan::default() }
    }

    fn push(&mut self, item: T, reply: Reply<R>) {
        if reply.is_wanted() || self.replies.is_some() {
            let replies = &mut self.replies.get_or_insert_with(|| Box::new(Replies(Vec::new()))).0;
            replies.resize_with(self.items.len(), Reply::none);
            replies.push(reply);
        }
        self.items.push(item);
    }

    /// Takes the first item out, as a batch of its own.
    fn split_first(&mut self) -> Self {
        let mut first = Self::none();
        let reply = self.replies.as_mut().map_or_else(Reply::none, |replies| replies.0.remove(0));
        first.push(self.items.remove(0), reply);
        first
    }

    /// The items and, if anybody wants one, their replies.
    pub(super) fn apart(self) -> (Vec<T>, Option<Vec<Reply<R>>>) {
        (self.items, self.replies.map(|replies| replies.0))
    }

    /// Each item with its reply.
    pub(super) fn pairs(self) -> impl Iterator<Item = (T, Reply<R>)> {
        let (items, replies) = self.apart();
        let mut replies = replies.map(Vec::into_iter);
        items.into_iter().map(move |item| (item, replies.as_mut().and_then(Iterator::next).unwrap_or_else(Reply::none)))
    }
}

struct Node<K, T, R> {
    key: K,
    hash: u64,
    /// The number of its first batch: no other node of the shard ever has it.
    id: u64,
    /// Batches in process.
    in_flight: u32,
    /// What `open` waits for has come.
    due: bool,
    /// There is an entry in the line.
    in_line: bool,
    /// The batch that is being filled, or has just become full.
    open: Chunk<T, R>,
    /// Full batches before it.
    backlog: Option<Box<Backlog<T, R>>>,
}

impl<K, T, R> Node<K, T, R> {
    fn is_empty(&self) -> bool {
        !self.is_open() && self.backlog.is_none()
    }

    /// Whether there is a batch that is being filled, or is full and not behind another one yet.
    fn is_open(&self) -> bool {
        !self.open.items.is_empty()
    }

    /// Whether its first batch is due and may be taken.
    fn can_be_taken(&self, rules: &Rules) -> bool {
        if rules.one_in_flight && self.in_flight > 0 {
            return false;
        }
        let waiting = self.open.items.len();
        self.backlog.is_some() || waiting >= rules.max_items || (self.due && waiting > 0)
    }

    /// The batch to be taken next; an empty one if there is none.
    fn front(&self) -> &Chunk<T, R> {
        self.backlog.as_ref().and_then(|backlog| backlog.0.front()).unwrap_or(&self.open)
    }

    fn front_mut(&mut self) -> &mut Chunk<T, R> {
        self.backlog.as_mut().and_then(|backlog| backlog.0.front_mut()).unwrap_or(&mut self.open)
    }

    fn take_front(&mut self) -> Chunk<T, R> {
        if let Some(backlog) = &mut self.backlog
            && let Some(chunk) = backlog.0.pop_front()
        {
            if backlog.0.is_empty() {
                self.backlog = None;
            }
            return chunk;
        }
        self.due = false;
        std::mem::replace(&mut self.open, Chunk::none())
    }

    fn line_up(&mut self, line: &mut VecDeque<Ref>) {
        self.in_line = true;
        line.push_back(Ref { first: self.front().first, hash: self.hash, id: self.id });
    }
}

/// Names a node (in the line) or an open batch (in the list of timers) that may be gone.
#[derive(Clone, Copy, Debug)]
struct Ref {
    first: u64,
    hash: u64,
    id: u64,
}

/// A batch in process.
#[derive(Debug)]
struct Running {
    hash: u64,
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
    pub(super) span: CallerSpan,
    /// The shard is due now, or has a timer that nobody knows of.
    pub(super) news: Option<News>,
}

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
    /// The node, for those who flush a key.
    pub(super) node: u64,
}

/// Items taken out unprocessed.
pub(super) struct Out<K, T, R> {
    pub(super) key: K,
    pub(super) chunks: Vec<Chunk<T, R>>,
    /// The places that are free with them.
    pub(super) places: Places,
    /// A flush may have waited for them.
    pub(super) settled: bool,
}

impl<K, T, R> Out<K, T, R> {
    /// A sender's item that was never in.
    pub(super) fn of_one(parcel: Parcel<K, T, R>) -> Self {
        let Parcel { key, item, reply, span } = parcel;
        let mut chunk = Chunk::none();
        chunk.push(item, reply);
        chunk.span = span;
        Self { key, chunks: vec![chunk], places: Places::default(), settled: false }
    }
}

/// Where the oldest item is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Oldest {
    pub(super) first: u64,
    hash: u64,
    node: u64,
}

pub(super) struct Shard<K, T, R> {
    table: HashTable<Node<K, T, R>>,
    /// Open batches in the order of their first items.
    timers: VecDeque<Ref>,
    /// Nodes with a batch that is due, in the order in which they became so.
    line: VecDeque<Ref>,
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
    /// Threads in `flush_key`, by node.
    pub(super) key_progress: Waiters<(), u64>,
}

impl<K, T, R> Shard<K, T, R> {
    pub(super) fn new() -> Self {
        Self {
            table: HashTable::new(),
            timers: VecDeque::new(),
            line: VecDeque::new(),
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

    fn is_ripe(&self, timer: &Ref, now: u64, rules: &Rules) -> bool {
        self.closed || timer.id < self.hurry_below || rules.deadline(timer.first).is_some_and(|due| due <= now)
    }

    /// Whether something may be there to be taken. It is not sure: what the entries name may be gone.
    pub(super) fn is_due(&self, now: u64, rules: &Rules) -> bool {
        !self.line.is_empty() || self.timers.front().is_some_and(|timer| self.is_ripe(timer, now, rules))
    }

    /// Puts an item in, for which there is a place; `key_place` takes one for its key if that is new, and `accepted` runs
    /// when the item is in, before anybody can see it.
    pub(super) fn push(
        &mut self,
        hash: u64,
        parcel: Parcel<K, T, R>,
        rules: &Rules,
        key_place: impl FnOnce() -> bool,
        now: impl FnOnce() -> u64,
        accepted: impl FnOnce(),
    ) -> Result<Pushed<K>, (Parcel<K, T, R>, Refused)>
    where
        K: Eq,
    {
        if self.closed {
            return Err((parcel, Refused::Closed));
        }
        let entry = self.table.entry(hash, |node| node.key == parcel.key, |node| node.hash);
        let Parcel { key, item, reply, span } = parcel;
        let (node, spare) = match entry {
            Entry::Occupied(entry) => (entry.into_mut(), Some(key)),
            Entry::Vacant(_) if !key_place() => {
                return Err((Parcel { key, item, reply, span }, Refused::NoKey));
            }
            Entry::Vacant(entry) => {
                let node = Node {
                    key,
                    hash,
                    id: self.next,
                    in_flight: 0,
                    due: false,
                    in_line: false,
                    open: Chunk::none(),
                    backlog: None,
                };
                (entry.insert(node).into_mut(), None)
            }
        };
        if node.open.items.len() >= rules.max_items {
            // Full, and not taken yet.
            let full = std::mem::replace(&mut node.open, Chunk::none());
            node.due = false;
            node.backlog.get_or_insert_with(|| Box::new(Backlog(VecDeque::new()))).0.push_back(full);
        }
        let mut news = None;
        let mut spare_span = CallerSpan::default();
        if !node.is_open() {
            node.open.id = self.next;
            node.open.first = now();
            node.open.span = span;
            self.next += 1;
            if let Some(epoch) = self.epochs.back_mut() {
                epoch.open += 1;
            }
            if rules.linger == Some(0) {
                node.due = true;
            } else {
                if self.timers.is_empty() && !self.queued {
                    news = rules.deadline(node.open.first).map(News::Timer);
                }
                self.timers.push_back(Ref { first: node.open.first, hash, id: node.open.id });
            }
        } else {
            spare_span = span;
        }
        node.open.push(item, reply);
        self.waiting += 1;
        accepted();
        if !node.in_line && node.can_be_taken(rules) {
            node.line_up(&mut self.line);
            if !self.queued {
                self.queued = true;
                news = Some(News::Due);
            }
        }
        if self.timers.len() > 2 * self.table.len() + KEPT {
            self.drop_stale_timers();
        }
        Ok(Pushed { spare, span: spare_span, news })
    }

    fn drop_stale_timers(&mut self) {
        let table = &self.table;
        self.timers.retain(|timer| table.find(timer.hash, |node| node.open.id == timer.id && node.is_open()).is_some());
    }

    /// Takes a batch that is due: of the line and the timers the older one.
    pub(super) fn take(&mut self, now: u64, rules: &Rules) -> Option<Taken<K, T, R>>
    where
        K: Clone,
    {
        loop {
            let timer = self.timers.front().filter(|timer| self.is_ripe(timer, now, rules));
            let by_line = match (self.line.front(), timer) {
                (Some(line), Some(timer)) => line.first <= timer.first,
                (Some(_), None) => true,
                (None, Some(_)) => false,
                (None, None) => return None,
            };
            let entry = if by_line { self.line.pop_front() } else { self.timers.pop_front() }?;
            let named = |node: &Node<K, T, R>| {
                if by_line { node.id == entry.id } else { node.open.id == entry.id && node.is_open() }
            };
            let Some(node) = self.table.find_mut(entry.hash, named) else { continue };
            if by_line {
                node.in_line = false;
            } else {
                node.due = true;
            }
            if !node.can_be_taken(rules) {
                continue;
            }
            // Before anything is changed: it is user code.
            let key = contain(|| node.key.clone());
            let chunk = node.take_front();
            node.in_flight += 1;
            if !node.in_line && node.can_be_taken(rules) {
                node.line_up(&mut self.line);
            }
            let count = chunk.items.len();
            self.waiting -= count;
            self.running.push(Running { hash: node.hash, node: node.id, chunk: chunk.id, count });
            return Some(Taken { key, chunk });
        }
    }

    /// A batch is done.
    pub(super) fn done(&mut self, chunk: u64, rules: &Rules) -> Done<K> {
        let mut done = Done { idle: None, due: false, settled: self.settle(chunk), node: 0 };
        let Some(at) = self.running.iter().position(|running| running.chunk == chunk) else { return done };
        let Running { hash, node: id, .. } = self.running.swap_remove(at);
        done.node = id;
        // A close may have taken the node with all that waited.
        let Ok(mut entry) = self.table.find_entry(hash, |node| node.id == id) else { return done };
        let node = entry.get_mut();
        node.in_flight -= 1;
        if node.is_empty() && node.in_flight == 0 {
            let (node, _) = entry.remove();
            done.idle = Some(node.key);
            self.trim();
        } else if !node.in_line && node.can_be_taken(rules) {
            node.line_up(&mut self.line);
            done.due = !self.queued;
            self.queued = true;
        }
        done
    }

    /// Gives memory back if much of it is of no use any more.
    fn trim(&mut self) {
        if self.table.capacity() > KEPT && self.table.len() < self.table.capacity() / 8 {
            self.table.shrink_to(2 * self.table.len(), |node| node.hash);
        }
        if self.table.is_empty() {
            for line in [&mut self.timers, &mut self.line] {
                line.clear();
                if line.capacity() > KEPT {
                    *line = VecDeque::new();
                }
            }
        }
    }

    /// The batch of this number has ended; true if a flush may have waited for it.
    fn settle(&mut self, chunk: u64) -> bool {
        let before = self.settled_below();
        if let Some(epoch) = self.epochs.iter_mut().rfind(|epoch| epoch.first <= chunk) {
            epoch.open -= 1;
        }
        while self.epochs.len() > 1 && self.epochs.front().is_some_and(|epoch| epoch.open == 0) {
            self.epochs.pop_front();
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

    /// Makes the batch of the first timer due.
    pub(super) fn hurry_first(&mut self) {
        if let Some(timer) = self.timers.front() {
            self.hurry_below = self.hurry_below.max(timer.id + 1);
        }
    }

    /// Makes what waits of a key due. Its node, if there is one, and below which number its batches have to be done.
    pub(super) fn hurry_key(&mut self, hash: u64, key: &K, rules: &Rules) -> Option<(u64, u64)>
    where
        K: Eq,
    {
        let node = self.table.find_mut(hash, |node| node.key == *key)?;
        node.due |= node.is_open();
        if !node.in_line && node.can_be_taken(rules) {
            node.line_up(&mut self.line);
        }
        Some((node.id, self.next))
    }

    /// Whether the batches of a node below this number are done.
    pub(super) fn key_settled_below(&self, hash: u64, id: u64, below: u64) -> bool {
        if self.running.iter().any(|running| running.node == id && running.chunk < below) {
            return false;
        }
        let front = self.table.find(hash, |node| node.id == id).map(Node::front);
        front.is_none_or(|front| front.items.is_empty() || front.id >= below)
    }

    /// When the first batch that still waits for its timer began. Drops entries of batches that are gone.
    pub(super) fn first_timer(&mut self) -> Option<u64> {
        while let Some(timer) = self.timers.front() {
            if self.table.find(timer.hash, |node| node.open.id == timer.id && node.is_open()).is_some() {
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
        self.first_timer();
        let table = &self.table;
        while self.line.front().is_some_and(|entry| table.find(entry.hash, |node| node.id == entry.id).is_none()) {
            self.line.pop_front();
        }
        let fits = |node: &&Node<K, T, R>| !node.is_empty() && (!to_free || node.in_flight == 0);
        let in_line =
            self.line.iter().find_map(|entry| table.find(entry.hash, |node| node.id == entry.id).filter(fits));
        let by_timer = self
            .timers
            .iter()
            .find_map(|entry| table.find(entry.hash, |node| node.open.id == entry.id && node.is_open()).filter(fits));
        let held = self
            .running
            .iter()
            .filter_map(|running| table.find(running.hash, |node| node.id == running.node).filter(fits));
        let oldest = in_line.into_iter().chain(by_timer).chain(held).min_by_key(|node| node.front().first)?;
        Some(Oldest { first: oldest.front().first, hash: oldest.hash, node: oldest.id })
    }

    /// Takes the oldest item of that node out; or all of them, if `to_free`. Nothing, if they are gone.
    pub(super) fn displace(&mut self, oldest: Oldest, to_free: bool) -> Option<Out<K, T, R>>
    where
        K: Clone,
    {
        let mut entry = self.table.find_entry(oldest.hash, |node| node.id == oldest.node).ok()?;
        let node = entry.get_mut();
        if node.is_empty() || (to_free && node.in_flight > 0) {
            return None;
        }
        if !to_free && node.front().items.len() > 1 {
            // Before anything is changed: it is user code.
            let key = node.key.clone();
            let chunks = vec![node.front_mut().split_first()];
            self.waiting -= 1;
            return Some(Out { key, chunks, places: Places::ITEM, settled: false });
        }
        let mut out = if to_free || (node.in_flight == 0 && node.backlog.is_none()) {
            let (mut node, _) = entry.remove();
            let mut chunks = Vec::new();
            while !node.is_empty() {
                chunks.push(node.take_front());
            }
            Out { key: node.key, chunks, places: Places::KEY, settled: false }
        } else {
            let key = node.key.clone();
            Out { key, chunks: vec![node.take_front()], places: Places::default(), settled: false }
        };
        self.account(&mut out);
        self.trim();
        Some(out)
    }

    /// Takes everything out that is not in process.
    pub(super) fn take_back(&mut self) -> Vec<Out<K, T, R>> {
        let table = std::mem::take(&mut self.table);
        let mut outs = Vec::with_capacity(table.len());
        for mut node in table {
            let mut chunks = Vec::new();
            while !node.is_empty() {
                chunks.push(node.take_front());
            }
            let mut out = Out { key: node.key, chunks, places: Places::KEY, settled: false };
            self.account(&mut out);
            outs.push(out);
        }
        self.trim();
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

    use super::{Parcel, Rules, Shard};
    use crate::ticket::Reply;

    #[global_allocator]
    static ALLOC: CountingAlloc = CountingAlloc;

    const KEYS: u64 = 100_000;
    const RULES: Rules = Rules { max_items: 100, linger: Some(10), one_in_flight: true };

    fn push(shard: &mut Shard<u64, u64, ()>, key: u64) {
        let parcel = Parcel { key, item: key, reply: Reply::none(), span: CallerSpan::default() };
        let hash = key.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let pushed = shard.push(hash, parcel, &RULES, || true, || 0, || ());
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
    fn an_open_key_takes_some_200_bytes_and_an_idle_one_nothing() {
        let mut shard = Shard::new();
        let ((), open) = measure(|| (0..KEYS).for_each(|key| push(&mut shard, key)));
        let each = open.net_bytes() / KEYS.cast_signed();
        println!("{each} bytes for each open key with a u64");
        assert!((100..=260).contains(&each), "{each} bytes");
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
            assert!(shard.push(key, parcel, &full(), || true, || 0, || ()).is_ok());
            let id = shard.take(0, &full()).map(|taken: super::Taken<u64, u64, ()>| taken.chunk.id);
            assert!(shard.done(id.unwrap(), &full()).idle.is_some());
        }
        assert!(shard.timers.len() <= 100, "{}", shard.timers.len());
    }
}
