//! The way in: room for an item, or what becomes of it without.

use std::hash::{BuildHasher, Hash};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use fullbore_core::{CallerSpan, Failure, Overflow, Patience, Refusal, SendError, earlier};
use fullbore_metrics::Departure;

use super::chunk::{Chunk, Parcel};
use super::engine::Shared;
use super::hub;
use super::room::Places;
use super::shard::{Out, Pushed, Refused};
use crate::ticket::Reply;

/// What a displacement came to.
enum Displaced<K, T, R> {
    Out(Out<K, T, R>),
    /// What was found was taken meanwhile, and perhaps there is room now.
    Gone,
    NoneWaits,
}

/// Places that go back if they are not used: the user's `Eq` may panic.
struct Held<'a, K, T, R> {
    shared: &'a Shared<K, T, R>,
    places: Places,
}

impl<K, T, R> Drop for Held<'_, K, T, R> {
    fn drop(&mut self) {
        self.shared.release(self.places);
    }
}

impl<K: Hash + Eq + Clone, T, R> Shared<K, T, R> {
    /// Offers an item, waiting for room as `patience` says; in the process function, which alone can make room, never.
    pub(super) fn offer(&self, key: K, item: T, reply: Reply<R>, patience: Patience) -> Result<(), SendError<(K, T)>> {
        let hash = self.hasher.hash_one(&key);
        let parcel = Parcel { key, item, reply, span: CallerSpan::current() };
        // Most items find room and their key.
        let refused = if self.room.take(Places::ITEM) {
            match self.put(hash, parcel, Places::ITEM) {
                Ok(()) => return Ok(()),
                Err((parcel, Refused::Closed)) => Err((parcel, Refusal::Closed)),
                Err((parcel, Refused::NoKey)) => self.offer_slowly(hash, parcel, Places::BOTH, patience),
            }
        } else {
            self.offer_slowly(hash, parcel, Places::ITEM, patience)
        };
        refused.map_err(|(Parcel { key, item, .. }, reason)| {
            self.station.refused(1);
            SendError::new((key, item), reason)
        })
    }

    #[cold]
    fn offer_slowly(
        &self,
        hash: u64,
        parcel: Parcel<K, T, R>,
        want: Places,
        patience: Patience,
    ) -> Result<(), (Parcel<K, T, R>, Refusal)> {
        let patience = if self.is_inside() { Patience::Try } else { patience };
        let mut displaced = Vec::new();
        // What it has displaced when a key's `Eq` or `Clone` panics is given out all the same.
        let outcome = catch_unwind(AssertUnwindSafe(|| self.squeeze(hash, parcel, want, patience, &mut displaced)));
        self.give_out_all(displaced);
        outcome.unwrap_or_else(|payload| resume_unwind(payload))
    }

    /// Offers an item until it is in or refused, displacing others if that is the policy.
    fn squeeze(
        &self,
        hash: u64,
        mut parcel: Parcel<K, T, R>,
        mut want: Places,
        patience: Patience,
        displaced: &mut Vec<Out<K, T, R>>,
    ) -> Result<(), (Parcel<K, T, R>, Refusal)> {
        let mut deadline = None;
        loop {
            if self.is_closed() {
                return Err((parcel, Refusal::Closed));
            }
            if !self.room.take(want) {
                let until = match (self.config.overflow, patience) {
                    (Overflow::DropOldest, _) => {
                        match self.displace(want) {
                            Displaced::Out(out) => {
                                self.release(out.places);
                                displaced.push(out);
                            }
                            Displaced::Gone => {}
                            // It may have been processed just now; if not, of those that wait this item is the oldest.
                            Displaced::NoneWaits if self.room.fits(want) => {}
                            Displaced::NoneWaits => {
                                self.station.arrived(1);
                                self.station.departed(Departure::Dropped, 1);
                                displaced.push(Out::of_one(parcel));
                                return Ok(());
                            }
                        }
                        continue;
                    }
                    (Overflow::BlockFor(limit), Patience::Policy(cap)) => {
                        *deadline.get_or_insert_with(|| earlier(self.clock().after(limit), cap))
                    }
                    (Overflow::Block, Patience::Policy(cap)) => cap,
                    // `Reject`, or the call does not wait.
                    _ => {
                        self.press();
                        return Err((parcel, Refusal::Full));
                    }
                };
                let waited = hub::wait_for_room(&mut self.lock_hub(), &self.room, want, until);
                if let Err(reason) = waited {
                    return Err((parcel, reason));
                }
            }
            match self.put(hash, parcel, want) {
                Ok(()) => return Ok(()),
                Err((back, Refused::Closed)) => return Err((back, Refusal::Closed)),
                Err((back, Refused::NoKey)) => {
                    parcel = back;
                    want = Places::BOTH;
                }
            }
        }
    }

    /// Puts an item into its shard, in places that are taken.
    fn put(&self, hash: u64, parcel: Parcel<K, T, R>, places: Places) -> Result<(), (Parcel<K, T, R>, Refused)> {
        let mut held = Held { shared: self, places };
        let at = self.shard_of(hash);
        let mut shard = self.shard(at);
        let seat = shard.seat(hash as u32, &parcel.key);
        let pushed = shard.push(
            seat,
            parcel,
            &self.rules,
            || places.keys > 0 || self.room.take(Places::KEY),
            || self.now(),
            || self.station.arrived(1),
        );
        drop(shard);
        let pushed = pushed?;
        // It took a key's place that it did not need.
        held.places = if pushed.spare.is_some() { Places { items: 0, ..places } } else { Places::default() };
        drop(held);
        let Pushed { spare: _spare, span: _span, news } = pushed;
        if let Some(news) = news {
            self.tell(at, news);
        }
        if self.room.is_short() {
            self.press();
        }
        Ok(())
    }

    /// Takes out the item that waits longest; if it is keys that there are too many of, all items of the key with the
    /// oldest batch.
    fn displace(&self, want: Places) -> Displaced<K, T, R> {
        let to_free = want.keys > 0 && self.room.free().items > 0;
        let oldest = (0..self.shards.len()).filter_map(|at| Some((at, self.shard(at).oldest(to_free)?)));
        let Some((at, oldest)) = oldest.min_by_key(|(_, oldest)| oldest.first) else { return Displaced::NoneWaits };
        let mut shard = self.shard(at);
        let Some(out) = shard.displace(oldest, to_free, &self.rules) else { return Displaced::Gone };
        self.station.departed(Departure::Dropped, out.chunks.iter().map(|chunk| chunk.items.len()).sum());
        if out.settled {
            shard.notify_all(|shard| &mut shard.progress);
        }
        shard.notify_all(|shard| &mut shard.key_progress);
        Displaced::Out(out)
    }

    /// Displaced items go to the hook on the sender's thread, after its own item is in. A panic goes to the sender, and costs no
    /// other item its dead letter.
    fn give_out_all(&self, outs: Vec<Out<K, T, R>>) {
        let mut panic = None;
        let mut guarded = |f: &mut dyn FnMut()| {
            if let Err(payload) = catch_unwind(AssertUnwindSafe(f)) {
                panic.get_or_insert(payload);
            }
        };
        for Out { key, chunks, idle, .. } in outs {
            for (item, reply) in chunks.into_iter().flat_map(Chunk::pairs) {
                let mut gone = Some((item, reply));
                guarded(&mut || {
                    if let Some((item, reply)) = gone.take() {
                        self.give_up(&key, item, reply, Failure::Dropped);
                    }
                });
            }
            for key in [Some(key), idle] {
                let mut gone = key;
                guarded(&mut || drop(gone.take()));
            }
        }
        if let Some(payload) = panic {
            resume_unwind(payload);
        }
    }
}
