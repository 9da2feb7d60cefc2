//! What there is of a key, and the table of keys.

use std::collections::{BTreeMap, VecDeque};

use fullbore_core::CallerSpan;
use hashbrown::HashTable;

use super::chunk::{Chunk, Replies};
use super::shard::{KEPT, Rules};

/// Boxed, for most keys have none.
struct Backlog<T, R>(VecDeque<Chunk<T, R>>);

/// What each item touches of its key. Small, for where keys are many most of the time goes into fetching it.
pub(super) struct Node<K, T> {
    pub(super) key: K,
    /// The batch that is being filled, or has just become full.
    pub(super) open: Vec<T>,
    /// What the table needs of the hash, see `spread`.
    pub(super) hash: u32,
    /// Where the rest is.
    rest: u32,
}

/// What there is of a key beside its open batch's items.
pub(super) struct Rest<T, R> {
    /// The number of its first batch: no other node of the shard ever has it.
    pub(super) id: u64,
    /// The open batch's number, and when its first item was accepted.
    pub(super) open: u64,
    pub(super) first: u64,
    pub(super) replies: Replies<R>,
    /// Full batches before it.
    backlog: Option<Box<Backlog<T, R>>>,
    /// Batches in process.
    pub(super) in_flight: u32,
    /// What the open batch waits for has come.
    pub(super) due: bool,
    /// There is an entry in the line, under the number of its first batch.
    pub(super) in_line: bool,
    pub(super) span: CallerSpan,
}

impl<T, R> Rest<T, R> {
    fn new(id: u64) -> Self {
        Self {
            id,
            open: id,
            first: 0,
            replies: Replies::none(),
            backlog: None,
            in_flight: 0,
            due: false,
            in_line: false,
            span: CallerSpan::default(),
        }
    }
}

/// A key, as far as it is here.
pub(super) struct Here<'a, K, T, R> {
    pub(super) node: &'a mut Node<K, T>,
    pub(super) rest: &'a mut Rest<T, R>,
}

/// Nodes with a batch that may be taken, by the number of that batch: the oldest first. Each is in it once, or not at all.
pub(super) type Line = BTreeMap<u64, Lined>;

/// Names a node in the line.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lined {
    pub(super) node: u64,
    pub(super) hash: u32,
}

impl<K, T, R> Here<'_, K, T, R> {
    /// Whether there is a batch that is being filled, or is full and not behind another one yet.
    pub(super) fn is_open(&self) -> bool {
        !self.node.open.is_empty()
    }

    pub(super) fn is_empty(&self) -> bool {
        !self.is_open() && self.rest.backlog.is_none()
    }

    /// Whether its first batch is due and may be taken.
    pub(super) fn can_be_taken(&self, rules: &Rules) -> bool {
        if self.is_blocked(rules) {
            return false;
        }
        let waiting = self.node.open.len();
        self.rest.backlog.is_some() || waiting >= rules.max_items || (self.rest.due && waiting > 0)
    }

    /// Whether no batch may be taken, whatever is due: there is one in process.
    pub(super) fn is_blocked(&self, rules: &Rules) -> bool {
        rules.one_in_flight && self.rest.in_flight > 0
    }

    /// Number, beginning and size of the batch to be taken next.
    pub(super) fn front(&self) -> (u64, u64, usize) {
        match self.rest.backlog.as_ref().and_then(|backlog| backlog.0.front()) {
            Some(chunk) => (chunk.id, chunk.first, chunk.items.len()),
            None => (self.rest.open, self.rest.first, self.node.open.len()),
        }
    }

    pub(super) fn take_front(&mut self) -> Chunk<T, R> {
        let Some(backlog) = &mut self.rest.backlog else { return self.take_open() };
        let chunk = backlog.0.pop_front();
        if backlog.0.is_empty() {
            self.rest.backlog = None;
        }
        chunk.unwrap_or_else(|| self.take_open())
    }

    /// Moves the open batch, which is full, behind the others.
    pub(super) fn put_aside(&mut self) {
        let full = self.take_open();
        self.rest.backlog.get_or_insert_with(|| Box::new(Backlog(VecDeque::new()))).0.push_back(full);
    }

    fn take_open(&mut self) -> Chunk<T, R> {
        self.rest.due = false;
        Chunk {
            id: self.rest.open,
            first: self.rest.first,
            items: std::mem::take(&mut self.node.open),
            replies: self.rest.replies.take(),
            span: std::mem::take(&mut self.rest.span),
        }
    }

    pub(super) fn take_all(&mut self) -> Vec<Chunk<T, R>> {
        std::iter::from_fn(|| (!self.is_empty()).then(|| self.take_front())).collect()
    }

    /// Takes the first item of the batch to be taken next, as a batch of its own.
    pub(super) fn take_first_item(&mut self) -> Chunk<T, R> {
        let (items, replies) = match self.rest.backlog.as_mut().and_then(|backlog| backlog.0.front_mut()) {
            Some(chunk) => (&mut chunk.items, &mut chunk.replies),
            None => (&mut self.node.open, &mut self.rest.replies),
        };
        Chunk::of_one(items.remove(0), replies.take_first(), CallerSpan::default())
    }

    /// Puts it into the line, if it may be taken and is not in it. True if it was put there.
    pub(super) fn line_up(&mut self, line: &mut Line, rules: &Rules) -> bool {
        let joins = !self.rest.in_line && self.can_be_taken(rules);
        if joins {
            self.rest.in_line = true;
            line.insert(self.front().0, Lined { node: self.rest.id, hash: self.node.hash });
        }
        joins
    }

    /// Takes it out of the line. Before anything happens to its first batch.
    pub(super) fn leave_line(&mut self, line: &mut Line) {
        if std::mem::take(&mut self.rest.in_line) {
            line.remove(&self.front().0);
        }
    }
}

/// The table's hash from the half of it that is kept: the table needs its ends to be good. Shards are told apart by the other
/// half.
fn spread(hash: u32) -> u64 {
    u64::from(hash).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// Where a key is in its table, or that it is not there; as long as the lock is held and no key enters or leaves.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seat {
    at: Option<usize>,
    pub(super) hash: u32,
}

/// A key that is here, and a sender's that is like it.
pub(super) type Entered<'a, K, T, R> = (Here<'a, K, T, R>, Option<K>);

/// The keys of a shard.
pub(super) struct Keys<K, T, R> {
    table: HashTable<Node<K, T>>,
    rests: Vec<Rest<T, R>>,
    /// Which of `rests` are of no key.
    free: Vec<u32>,
}

impl<K, T, R> Keys<K, T, R> {
    pub(super) fn new() -> Self {
        Self { table: HashTable::new(), rests: Vec::new(), free: Vec::new() }
    }

    pub(super) fn len(&self) -> usize {
        self.table.len()
    }

    /// Where the key is. The only thing here that is user code.
    pub(super) fn seat(&self, hash: u32, key: &K) -> Seat
    where
        K: Eq,
    {
        Seat { at: self.table.find_bucket_index(spread(hash), |node| node.key == *key), hash }
    }

    /// The key that is in this seat, and the sender's, which is like it; or a new one, that gets the number `id`. The sender's key
    /// comes back: it would be new, and there is no `place` for it.
    pub(super) fn enter(
        &mut self,
        seat: Seat,
        key: K,
        id: u64,
        place: impl FnOnce() -> bool,
    ) -> Result<Entered<'_, K, T, R>, K> {
        let Self { table, rests, free } = self;
        let hash = seat.hash;
        let (node, spare) = match seat.at {
            Some(at) => match table.get_bucket_mut(at) {
                Some(node) => (node, Some(key)),
                // Never: the lock was held since.
                None => return Err(key),
            },
            None if !place() => return Err(key),
            None => {
                let rest = free.pop().unwrap_or(rests.len() as u32);
                match rests.get_mut(rest as usize) {
                    Some(rest) => *rest = Rest::new(id),
                    None => rests.push(Rest::new(id)),
                }
                let node = Node { key, open: Vec::new(), hash, rest };
                (table.insert_unique(spread(hash), node, |node| spread(node.hash)).into_mut(), None)
            }
        };
        let rest = &mut rests[node.rest as usize];
        Ok((Here { node, rest }, spare))
    }

    fn find(&mut self, hash: u32, named: impl Fn(&Node<K, T>, &Rest<T, R>) -> bool) -> Option<Here<'_, K, T, R>> {
        let Self { table, rests, .. } = self;
        let node = table.find_mut(spread(hash), |node| named(node, &rests[node.rest as usize]))?;
        let rest = &mut rests[node.rest as usize];
        Some(Here { node, rest })
    }

    /// The node with this number.
    pub(super) fn node(&mut self, hash: u32, id: u64) -> Option<Here<'_, K, T, R>> {
        self.find(hash, |_, rest| rest.id == id)
    }

    /// The node whose open batch has this number.
    pub(super) fn open(&mut self, hash: u32, id: u64) -> Option<Here<'_, K, T, R>> {
        self.find(hash, |node, rest| rest.open == id && !node.open.is_empty())
    }

    /// The node of the key in this seat.
    pub(super) fn in_seat(&mut self, seat: Seat) -> Option<Here<'_, K, T, R>> {
        let node = self.table.get_bucket_mut(seat.at?)?;
        let rest = &mut self.rests[node.rest as usize];
        Some(Here { node, rest })
    }

    /// Whether there is an open batch with this number.
    pub(super) fn is_open(&self, hash: u32, id: u64) -> bool {
        let named = |node: &Node<K, T>| self.rests[node.rest as usize].open == id && !node.open.is_empty();
        self.table.find(spread(hash), named).is_some()
    }

    /// Forgets the node with this number, in which nothing is.
    pub(super) fn remove(&mut self, hash: u32, id: u64) -> Option<K> {
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

    /// Takes all of them out.
    pub(super) fn drain(&mut self, mut each: impl FnMut(K, Vec<Chunk<T, R>>)) {
        let Self { table, mut rests, .. } = std::mem::replace(self, Self::new());
        for mut node in table {
            let chunks = Here { rest: &mut rests[node.rest as usize], node: &mut node }.take_all();
            each(node.key, chunks);
        }
    }
}

/// No node has this number.
const NOBODY: u64 = u64::MAX;
