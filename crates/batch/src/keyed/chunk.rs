//! Items on their way: a sender's, and those of a batch.

use fullbore_core::CallerSpan;

use crate::ticket::Reply;

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
    pub(super) replies: Replies<R>,
    /// The first item's.
    pub(super) span: CallerSpan,
}

/// Those of a batch's items, as far as the last one that is wanted. Boxed, for most batches have none.
pub(super) struct Replies<R>(Option<Box<List<R>>>);

struct List<R>(Vec<Reply<R>>);

impl<R> Replies<R> {
    pub(super) const fn none() -> Self {
        Self(None)
    }

    pub(super) fn take(&mut self) -> Self {
        Self(self.0.take())
    }

    /// Keeps the reply of the item with this number.
    pub(super) fn keep(&mut self, at: usize, reply: Reply<R>) {
        let List(replies) = &mut **self.0.get_or_insert_with(|| Box::new(List(Vec::new())));
        replies.resize_with(at, Reply::none);
        replies.push(reply);
    }

    pub(super) fn take_first(&mut self) -> Reply<R> {
        match self.0.as_deref_mut() {
            Some(List(replies)) if !replies.is_empty() => replies.remove(0),
            _ => Reply::none(),
        }
    }
}

impl<T, R> Chunk<T, R> {
    /// An item as a batch of its own.
    pub(super) fn of_one(item: T, reply: Reply<R>, span: CallerSpan) -> Self {
        let mut replies = Replies::none();
        replies.keep(0, reply);
        Self { id: 0, first: 0, items: vec![item], replies, span }
    }

    /// The items and, if anybody wants one, the replies of the first of them.
    pub(super) fn apart(self) -> (Vec<T>, Option<Vec<Reply<R>>>) {
        (self.items, self.replies.0.map(|list| list.0))
    }

    /// Each item with its reply.
    pub(super) fn pairs(self) -> impl Iterator<Item = (T, Reply<R>)> {
        let (items, replies) = self.apart();
        items.into_iter().zip(replies.into_iter().flatten().chain(std::iter::repeat_with(Reply::none)))
    }
}
