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
    replies: Replies<R>,
    /// The first item's.
    pub(super) span: CallerSpan,
}

/// Those of a batch's items, as far as the last one that is wanted. Boxed, for most batches have none.
struct Replies<R>(Option<Box<Vec<Reply<R>>>>);

impl<R> Replies<R> {
    /// Keeps the reply of the item with this number.
    fn keep(&mut self, at: usize, reply: Reply<R>) {
        let replies = self.0.get_or_insert_default();
        replies.resize_with(at, Reply::none);
        replies.push(reply);
    }

    fn take_first(&mut self) -> Reply<R> {
        match &mut self.0 {
            Some(replies) if !replies.is_empty() => replies.remove(0),
            _ => Reply::none(),
        }
    }
}

/// Boxed, for most keys have none.
struct Backlog<T, R>(VecDeque<Chunk<T, R>>);

impl<T, R> Chunk<T, R> {
    /// An item as a batch of its own.
    fn of_one(item: T, reply: Reply<R>, span: CallerSpan) -> Self {
        let mut replies = Replies(None);
        replies.keep(0, reply);
        Self { id: 0, first: 0, items: vec![item], replies, span }
    }

    /// The items and, if anybody wants one, the replies of the first of them.
    pub(super) fn apart(self) -> (Vec<T>, Option<Vec<Reply<R>>>) {
        (self.items, self.replies.0.map(|replies| *replies))
    }

    /// Each item with its reply.
    pub(super) fn pairs(self) -> impl Iterator<Item = (T, Reply<R>)> {
        let (items, replies) = self.apart();
        items.into_iter().zip(replies.into_iter().flatten().chain(std::iter::repeat_with(Reply::none)))
    }
}

/// What each item touches of its key. Small, for where keys are many most of the time goes into fetching it.
struct Node<K, T> {
    key: K,
    /// The batch that is being filled, or has just become full.
    open: Vec<T>,
    /// What the table needs of the hash, see `spread`.
    hash: u32,
    /// Where the rest is.
    rest: u32,
}

/// What there is of a key beside its open batch's items.
struct Rest<T, R> {
    /// The number of its first batch: no other node of the shard ever has it.
    id: u64,
    /// The open batch's number, and when its first item was accepted.
    open: u64,
    first: u64,
    replies: Replies<R>,
    /// Full batches before it.
    backlog: Option<Box<Backlog<T, R>>>,
    /// Batches in process.
    in_flight: u32,
    /// What the open batch waits for has come.
    due: bool,
    /// There is an entry in the line.
    in_line: bool,
    span: CallerSpan,
}

impl<T, R> Rest<T, R> {
    fn new(id: u64) -> Self {
        Self {
            id,
            open: id,
            first: 0,
            replies: Replies(None),
            backlog: None,
            in_flight: 0,
            due: false,
            in_line: false,
            span: CallerSpan::default(),
        }
    }
}

/// A key, as far as it is here.
struct Here<'a, K, T, R> {
    node: &'a mut Node<K, T>,
    rest: &'a mut Rest<T, R>,
}

impl<K, T, R> Here<'_, K, T, R> {
    /// Whether there is a batch that is being filled, or is full and not behind another one yet.
    fn is_open(&self) -> bool {
        !self.node.open.is_empty()
    }

    fn is_empty(&self) -> bool {
        !self.is_open() && self.rest.backlog.is_none()
    }

    /// Whether its first batch is due and may be taken.
    fn can_be_taken(&self, rules: &Rules) -> bool {
        if rules.one_in_flight && self.rest.in_flight > 0 {
            return false;
        }
        let waiting = self.node.open.len();
        self.rest.backlog.is_some() || waiting >= rules.max_items || (self.rest.due && waiting > 0)
    }

    /// Number, beginning and size of the batch to be taken next.
    fn front(&self) -> (u64, u64, usize) {
        match self.rest.backlog.as_ref().and_then(|backlog| backlog.0.front()) {
            Some(chunk) => (chunk.id, chunk.first, chunk.items.len()),
            None => (self.rest.open, self.rest.first, self.node.open.len()),
        }
    }

    fn take_front(&mut self) -> Chunk<T, R> {
        let Some(backlog) = &mut self.rest.backlog else { return self.take_open() };
        let chunk = backlog.0.pop_front();
        if backlog.0.is_empty() {
            self.rest.backlog = None;
        }
        chunk.unwrap_or_else(|| self.take_open())
    }

    fn take_open(&mut self) -> Chunk<T, R> {
        self.rest.due = false;
        Chunk {
            id: self.rest.open,
            first: self.rest.first,
            items: std::mem::take(&mut self.node.open),
            replies: Replies(self.rest.replies.0.take()),
            span: std::mem::take(&mut self.rest.span),
        }
    }

    fn take_all(&mut self) -> Vec<Chunk<T, R>> {
        std::iter::from_fn(|| (!self.is_empty()).then(|| self.take_front())).collect()
    }

    /// Takes the first item of the batch to be taken next, as a batch of its own.
    fn take_first_item(&mut self) -> Chunk<T, R> {
        let (items, replies) = match self.rest.backlog.as_mut().and_then(|backlog| backlog.0.front_mut()) {
            Some(chunk) => (&mut chunk.items, &mut chunk.replies),
            None => (&mut self.node.open, &mut self.rest.replies),
        };
        Chunk::of_one(items.remove(0), replies.take_first(), CallerSpan::default())
    }

    fn line_up(&mut self, line: &mut VecDeque<Ref>) {
        self.rest.in_line = true;
        line.push_back(Ref { first: self.front().1, id: self.rest.id, hash: self.node.hash });
    }
}

/// The table's hash from the half of it that is kept: the table needs its ends to be good. Shards are told apart by the other
/// half.
fn spread(hash: u32) -> u64 {
    u64::from(hash).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// The keys of a shard.
struct Keys<K, T, R> {
    table: HashTable<Node<K, T>>,
    rests: Vec<Rest<T, R>>,
    /// Which of `rests` are of no key.
    free: Vec<u32>,
}

impl<K, T, R> Keys<K, T, R> {
    fn new() -> Self {
        Self { table: HashTable::new(), rests: Vec::new(), free: Vec::new() }
    }

    fn len(&self) -> usize {
        self.table.len()
    }

    /// The key's node, or a new one that gets the number `id`. `None`, and nothing has changed: it would be new, and there is
    /// no `place` for it.
    fn enter(
        &mut self,
        hash: u32,
        key: K,
        id: u64,
        place: impl FnOnce() -> bool,
    ) -> Result<(Here<'_, K, T, R>, Option<K>), K>
    where
        K: Eq,
    {
        let Self { table, rests, free } = self;
        match table.entry(spread(hash), |node| node.key == key, |node| spread(node.hash)) {
            Entry::Occupied(entry) => {
                let node = entry.into_mut();
                let rest = &mut rests[node.rest as usize];
                Ok((Here { node, rest }, Some(key)))
            }
            Entry::Vacant(_) if !place() => Err(key),
            Entry::Vacant(entry) => {
                let at = free.pop().unwrap_or(rests.len() as u32);
                match rests.get_mut(at as usize) {
                    Some(rest) => *rest = Rest::new(id),
                    None => rests.push(Rest::new(id)),
                }
                let node = entry.insert(Node { key, open: Vec::new(), hash, rest: at }).into_mut();
                Ok((Here { node, rest: &mut rests[at as usize] }, None))
            }
        }
    }

    fn find(&mut self, hash: u32, named: impl Fn(&Node<K, T>, &Rest<T, R>) -> bool) -> Option<Here<'_, K, T, R>> {
        let Self { table, rests, .. } = self;
        let node = table.find_mut(spread(hash), |node| named(node, &rests[node.rest as usize]))?;
        let rest = &mut rests[node.rest as usize];
        Some(Here { node, rest })
    }

    /// The node with this number.
    fn node(&mut self, hash: u32, id: u64) -> Option<Here<'_, K, T, R>> {
        self.find(hash, |_, rest| rest.id == id)
    }

    /// The node whose open batch has this number.
    fn open(&mut self, hash: u32, id: u64) -> Option<Here<'_, K, T, R>> {
        self.find(hash, |node, rest| rest.open == id && !node.open.is_empty())
    }

    fn is_open(&self, timer: &Ref) -> bool {
        let named = |node: &Node<K, T>| self.rests[node.rest as usize].open == timer.id && !node.open.is_empty();
        self.table.find(spread(timer.hash), named).is_some()
    }

    /// Forgets the node with this number, in which nothing is.
    fn remove(&mut self, hash: u32, id: u64) -> Option<K> {
        let Self { table, rests, free } = self;
        let entry = table.find_entry(spread(hash), |node| rests[node.rest as usize].id == id).ok()?;
        let (node, _) = entry.remove();
        rests[node.rest as usize].id = NOBODY;
        free.push(node.rest);
        if table.capacity() > KEPT && table.len() < table.capacity() / 8 {
            table.shrink_to(2 * table.len(), |node| spread(node.hash));
        }
        if rests.capacity() > KEPT && table.len() < rests.capacity() / 8 {
            let mut kept = Vec::with_capacity(2 * table.len());
            for node in table.iter_mut() {
                let rest = std::mem::replace(&mut rests[node.rest as usize], Rest::new(NOBODY));
                node.rest = kept.len() as u32;
                kept.push(rest);
            }
            *rests = kept;
            *free = Vec::new();
        }
        Some(node.key)
    }
}

/// No node has this number.
const NOBODY: u64 = u64::MAX;

/// Names a node (in the line) or an open batch (in the list of timers) that may be gone.
#[derive(Clone, Copy, Debug)]
struct Ref {
    first: u64,
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
}

pub(super) struct Shard<K, T, R> {
    keys: Keys<K, T, R>,
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
            keys: Keys::new(),
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
        hash: u32,
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
        let Parcel { key, item, reply, span } = parcel;
        let (mut here, spare) = match self.keys.enter(hash, key, self.next, key_place) {
            Ok(entered) => entered,
            Err(key) => return Err((Parcel { key, item, reply, span }, Refused::NoKey)),
        };
        let mut pushed = Pushed { spare, span: None, news: None };
        let waiting = here.node.open.len();
        if waiting > 0 && waiting < rules.max_items {
            pushed.span = Some(span);
        } else {
            if waiting > 0 {
                // Full, and not taken yet.
                let full = here.take_open();
                here.rest.backlog.get_or_insert_with(|| Box::new(Backlog(VecDeque::new()))).0.push_back(full);
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
                self.timers.push_back(Ref { first: here.rest.first, id: here.rest.open, hash });
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
        if (last == 1 || last >= rules.max_items) && !here.rest.in_line && here.can_be_taken(rules) {
            here.line_up(&mut self.line);
            if !self.queued {
                self.queued = true;
                pushed.news = Some(News::Due);
            }
        }
        if self.timers.len() > 2 * self.keys.len() + KEPT {
            self.timers.retain(|timer| self.keys.is_open(timer));
        }
        Ok(pushed)
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
            let found = if by_line {
                self.keys.node(entry.hash, entry.id)
            } else {
                self.keys.open(entry.hash, entry.id)
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
            if !here.rest.in_line && here.can_be_taken(rules) {
                here.line_up(&mut self.line);
            }
            let count = chunk.items.len();
            self.waiting -= count;
            self.running.push(Running { hash: here.node.hash, node: here.rest.id, chunk: chunk.id, count });
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
        let Some(mut here) = self.keys.node(hash, id) else { return done };
        here.rest.in_flight -= 1;
        if here.is_empty() && here.rest.in_flight == 0 {
            done.idle = self.forget(hash, id);
        } else if !here.rest.in_line && here.can_be_taken(rules) {
            here.line_up(&mut self.line);
            done.due = !self.queued;
            self.queued = true;
        }
        done
    }

    /// The node is idle. What names it is of no use any more; without any keys, neither is the memory.
    fn forget(&mut self, hash: u32, id: u64) -> Option<K> {
        let key = self.keys.remove(hash, id);
        if self.keys.len() == 0 {
            for line in [&mut self.timers, &mut self.line] {
                line.clear();
                if line.capacity() > KEPT {
                    *line = VecDeque::new();
                }
            }
        }
        key
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
    pub(super) fn hurry_key(&mut self, hash: u32, key: &K, rules: &Rules) -> Option<(u64, u64)>
    where
        K: Eq,
    {
        let mut here = self.keys.find(hash, |node, _| node.key == *key)?;
        here.rest.due |= here.is_open();
        if !here.rest.in_line && here.can_be_taken(rules) {
            here.line_up(&mut self.line);
        }
        Some((here.rest.id, self.next))
    }

    /// Whether the batches of a node below this number are done.
    pub(super) fn key_settled_below(&mut self, hash: u32, id: u64, below: u64) -> bool {
        if self.running.iter().any(|running| running.node == id && running.chunk < below) {
            return false;
        }
        self.keys.node(hash, id).is_none_or(|here| here.is_empty() || here.front().0 >= below)
    }

    /// When the first batch that still waits for its timer began. Drops entries of batches that are gone.
    pub(super) fn first_timer(&mut self) -> Option<u64> {
        while let Some(timer) = self.timers.front() {
            if self.keys.is_open(timer) {
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
        while self.line.front().is_some_and(|entry| self.keys.node(entry.hash, entry.id).is_none()) {
            self.line.pop_front();
        }
        let Self { keys, line, timers, running, .. } = self;
        let fits = |here: Here<'_, K, T, R>| {
            let fits = !here.is_empty() && (!to_free || here.rest.in_flight == 0);
            fits.then(|| Oldest { first: here.front().1, hash: here.node.hash, node: here.rest.id })
        };
        let in_line = line.iter().find_map(|entry| keys.node(entry.hash, entry.id).and_then(fits));
        let by_timer = timers.iter().find_map(|entry| keys.open(entry.hash, entry.id).and_then(fits));
        let held = running.iter().filter_map(|running| keys.node(running.hash, running.node).and_then(fits));
        held.chain(in_line).chain(by_timer).min_by_key(|oldest| oldest.first)
    }

    /// Takes the oldest item of that node out; or all of them, if `to_free`. Nothing, if they are gone.
    pub(super) fn displace(&mut self, oldest: Oldest, to_free: bool) -> Option<Out<K, T, R>>
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
        if !to_free && here.front().2 > 1 {
            let chunks = vec![here.take_first_item()];
            self.waiting -= 1;
            return Some(Out { key, chunks, idle: None, places: Places::ITEM, settled: false });
        }
        let chunks = if to_free { here.take_all() } else { vec![here.take_front()] };
        let idle = here.is_empty() && here.rest.in_flight == 0;
        let mut out = Out { key, chunks, idle: None, places: Places::default(), settled: false };
        self.account(&mut out);
        if idle {
            out.idle = self.forget(hash, id);
            out.places.keys = 1;
        }
        Some(out)
    }

    /// Takes everything out that is not in process.
    pub(super) fn take_back(&mut self) -> Vec<Out<K, T, R>> {
        let Keys { table, mut rests, .. } = std::mem::replace(&mut self.keys, Keys::new());
        let mut outs = Vec::with_capacity(table.len());
        for mut node in table {
            let chunks = Here { rest: &mut rests[node.rest as usize], node: &mut node }.take_all();
            let mut out = Out { key: node.key, chunks, idle: None, places: Places::KEY, settled: false };
            self.account(&mut out);
            outs.push(out);
        }
        self.timers = VecDeque::new();
        self.line = VecDeque::new();
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
        let hash = (key as u32).wrapping_mul(0x9e37_79b9);
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
            assert!(shard.push(key as u32, parcel, &full(), || true, || 0, || ()).is_ok());
            let id = shard.take(0, &full()).map(|taken: super::Taken<u64, u64, ()>| taken.chunk.id);
            assert!(shard.done(id.unwrap(), &full()).idle.is_some());
        }
        assert!(shard.timers.len() <= 100, "{}", shard.timers.len());
    }
}
