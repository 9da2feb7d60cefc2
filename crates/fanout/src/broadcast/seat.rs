//! One publisher's way past the lock, while nobody else needs the writer.
//!
//! Publisher in the seat, without any lock:         Whoever has the lock and needs the writer:
//!
//! ```text
//! claim = 1                                        limit = 0
//! light barrier                                    heavy barrier
//! tail < limit? else claim = 0, and ask            wait until claim == 0
//! write the message, publish it
//! claim = 0
//! ```
//!
//! Invariants:
//!
//! - **S1** A seat belongs to one thread for good, which alone writes its claim. It is given a limit on that thread only.
//! - **S2** The writer is used by the thread whose seat has a limit, between its claim and the end of it; or under the lock while the
//!   post is *still*: no seat has a limit, and none has a claim that saw one. For a thread on its way either saw the lowered limit, or
//!   the heavy barrier has made its claim visible, and `stop` has waited for its end. Between the two the thread runs no code of the
//!   user, and needs no lock.
//! - **S3** The limit is not beyond the block that the writer is in, nor what any subscription may have, and while there is one, no
//!   subscriber sleeps whom nobody has woken or will wake.

use std::marker::PhantomData;
use std::sync::Arc;

use fullbore_core::barrier::Barrier;

use super::ring::{Apart, Published, Writer};
use super::sync::{AtomicU64, Ordering, UnsafeCell, spin_loop, yield_now};

/// The running thread. Does not leave it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Me {
    number: u64,
    stays: PhantomData<*const ()>,
}

impl Me {
    /// # Safety
    /// The number is this thread's, now and as long as it lives, and never another's.
    pub(crate) unsafe fn new(number: u64) -> Self {
        Self { number, stays: PhantomData }
    }

    pub(crate) fn number(self) -> u64 {
        self.number
    }
}

/// A thread's place at a hub.
pub(crate) struct Seat<T> {
    thread: u64,
    writing: Arc<Writing<T>>,
    /// 1 while its thread is on its way. Written by it.
    claim: Apart<AtomicU64>,
    /// The first number for which it has to ask. Written under the lock.
    limit: Apart<AtomicU64>,
}

impl<T> Seat<T> {
    /// Publishes a message if this is the seat of this thread, and it need not ask.
    #[inline(always)]
    pub(crate) fn publish(&self, me: Me, barrier: Barrier, message: T) -> Result<(), T> {
        if self.thread != me.number {
            return Err(message);
        }
        // ORDERING: Relaxed: the barriers order it before the load of `limit` (S2).
        self.claim.0.store(1, Ordering::Relaxed);
        barrier.light();
        // ORDERING: Relaxed: the barriers order it after the claim (S2). What the writer is like this thread knows since it was given
        // the limit, by itself, under the lock.
        let may = self.writing.published.tail() < self.limit.0.load(Ordering::Relaxed);
        let result = if may {
            // SAFETY: this thread's seat has a limit, and is within its claim (S2).
            self.writing.writer.0.with_mut(|writer| unsafe {
                (*writer).put(message);
                (*writer).publish();
            });
            Ok(())
        } else {
            Err(message)
        };
        // ORDERING: Release pairs with the Acquire in `stop`: who sees it sees what the writer is like.
        self.claim.0.store(0, Ordering::Release);
        result
    }
}

/// The writer, where both can get at it.
struct Writing<T> {
    writer: Apart<UnsafeCell<Writer<T>>>,
    published: Arc<Published>,
}

// SAFETY: who may touch the writer is settled by S2; what it hands over can be sent and shared.
unsafe impl<T: Send + Sync> Send for Writing<T> {}
// SAFETY: as above.
unsafe impl<T: Send + Sync> Sync for Writing<T> {}

/// The lock's side.
pub(crate) struct Post<T> {
    writing: Arc<Writing<T>>,
    /// Who has a limit, or had one last.
    seat: Option<Arc<Seat<T>>>,
    /// See S2.
    still: bool,
}

impl<T> Post<T> {
    pub(crate) fn new(writer: Writer<T>, published: &Arc<Published>) -> Self {
        let writing = Writing { writer: Apart(UnsafeCell::new(writer)), published: Arc::clone(published) };
        Self { writing: Arc::new(writing), seat: None, still: true }
    }

    /// A seat for this thread.
    pub(crate) fn seat(&self, me: Me) -> Arc<Seat<T>> {
        let (claim, limit) = (Apart(AtomicU64::new(0)), Apart(AtomicU64::new(0)));
        Arc::new(Seat { thread: me.number, writing: Arc::clone(&self.writing), claim, limit })
    }

    /// The writer.
    ///
    /// # Panics
    /// If nobody has stopped who is in the seat.
    #[inline]
    pub(crate) fn with<R>(&mut self, f: impl FnOnce(&mut Writer<T>) -> R) -> R {
        assert!(self.still, "whoever needs the writer stops the others");
        // SAFETY: still, and this is the lock's side, of which there is one (S2).
        self.writing.writer.0.with_mut(|writer| f(unsafe { &mut *writer }))
    }

    /// Has whoever is in the seat ask for each message. `false` if nobody was.
    pub(crate) fn stop(&mut self, barrier: Barrier) -> bool {
        if self.still {
            return false;
        }
        if let Some(seat) = &self.seat {
            // ORDERING: Relaxed: nothing is handed over, and the barriers order it before the load of the claim (S2).
            seat.limit.0.store(0, Ordering::Relaxed);
            barrier.heavy();
            let mut looks = 0_u32;
            // ORDERING: Acquire pairs with the Release that ends the claim.
            while seat.claim.0.load(Ordering::Acquire) != 0 {
                // It is a few instructions away, unless its thread was put aside among them.
                looks += 1;
                if looks < 64 { spin_loop() } else { yield_now() }
            }
        }
        self.still = true;
        true
    }

    /// The same for one that may be in the seat itself, and so is not on its way.
    pub(crate) fn stop_for(&mut self, me: Me, barrier: Barrier) {
        if !self.still
            && let Some(seat) = self.seat.as_ref().filter(|seat| seat.thread == me.number)
        {
            // ORDERING: Relaxed: its own (S1).
            seat.limit.0.store(0, Ordering::Relaxed);
            self.still = true;
        }
        self.stop(barrier);
    }

    /// Lets this thread, in its own seat, go on up to `limit` without asking. S3 is the caller's.
    pub(crate) fn grant(&mut self, me: Me, seat: &Arc<Seat<T>>, limit: u64) {
        if seat.thread != me.number || !self.still || !Arc::ptr_eq(&seat.writing, &self.writing) {
            return;
        }
        if !self.seat.as_ref().is_some_and(|last| Arc::ptr_eq(last, seat)) {
            self.seat = Some(Arc::clone(seat));
        }
        // ORDERING: Relaxed: for this thread (S1).
        seat.limit.0.store(limit, Ordering::Relaxed);
        self.still = false;
    }
}
