//! Writes in the background: what waits to be written, by key, and one batcher that writes it.
//!
//! The batcher carries keys; what is to be written lies in a table, so that of two writes of one key only the later is done,
//! and so that a write can be changed while it waits: whatever happens to the key meanwhile turns it into a removal, which is
//! always safe. Dropping it instead would leave what was there before.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use fullbore_batch::{Batch, Batcher};
use fullbore_core::{BuildError, Clock, Monitor, Overflow, WaitFor, Waiters};
use redis::cmd;

use crate::redis::core::Core;
use crate::redis::error::TierError;
use crate::redis::space::Space;
use crate::redis::tier::set;

/// How many writes go to Redis in one pipeline.
const TOGETHER: usize = 128;

pub(crate) struct Background {
    batcher: Batcher<Arc<[u8]>, ()>,
    shared: Arc<Shared>,
}

struct Shared {
    waiting: Monitor<Waiting>,
    space: Arc<Space>,
    core: OnceLock<Weak<Core>>,
}

struct Waiting {
    writes: HashMap<Arc<[u8]>, Write>,
    /// Those that are on their way.
    writing: HashSet<Arc<[u8]>>,
    written: Waiters,
}

enum Write {
    Put(Vec<u8>, u64),
    /// It was overtaken.
    Remove,
}

impl Background {
    pub(crate) fn new(name: &str, capacity: usize, space: Arc<Space>) -> Result<Self, BuildError> {
        let waiting =
            Waiting { writes: HashMap::new(), writing: HashSet::new(), written: Waiters::of(WaitFor::Threads) };
        let shared = Arc::new(Shared { waiting: Monitor::new(waiting, Clock::Real), space, core: OnceLock::new() });
        let writer = Arc::clone(&shared);
        let batcher = Batcher::builder()
            .name(format!("{name}-l2"))
            .max_items(TOGETHER.min(capacity.max(1)))
            .capacity(capacity)
            .overflow(Overflow::Reject)
            .linger(Duration::from_millis(1))
            .build(move |keys: Batch<Arc<[u8]>>| writer.write(&keys.into_vec()))?;
        Ok(Self { batcher, shared })
    }

    pub(crate) fn attach(&self, core: &Arc<Core>) {
        // Once, when the tier is made.
        let _ = self.shared.core.set(Arc::downgrade(core));
    }

    pub(crate) fn put(&self, name: Arc<[u8]>, bytes: Vec<u8>, px: u64) -> Result<(), TierError> {
        {
            let mut waiting = self.shared.waiting.lock();
            if let Some(there) = waiting.writes.get_mut(&name) {
                // Its key is in the batcher already. Whoever overtook the earlier one did so before this one.
                *there = Write::Put(bytes, px);
                return Ok(());
            }
            waiting.writes.insert(Arc::clone(&name), Write::Put(bytes, px));
        }
        self.batcher.try_send(name).map_err(|refused| {
            let closed = refused.is_closed();
            self.shared.waiting.lock().writes.remove(&refused.into_inner());
            if closed { TierError::Closed } else { TierError::QueueFull }
        })
    }

    /// Redis tells of a change of the key.
    pub(crate) fn changed(&self, encoded: &[u8]) {
        let mut waiting = self.shared.waiting.lock();
        if !waiting.writes.is_empty()
            && let Some(write) = waiting.writes.get_mut(&self.shared.space.encoded(encoded)[..])
        {
            *write = Write::Remove;
        }
    }

    /// Nobody knows what changed.
    pub(crate) fn all_changed(&self) {
        self.shared.waiting.lock().writes.values_mut().for_each(|write| *write = Write::Remove);
    }

    /// What waits for the key is not written, and what is on its way has arrived when this returns.
    pub(crate) fn cancel(&self, name: &Arc<[u8]>, until: Instant) -> Result<(), TierError> {
        let mut waiting = self.shared.waiting.lock();
        waiting.writes.remove(name);
        let done =
            waiting.wait_until(|waiting| &mut waiting.written, Some(until), |waiting| !waiting.writing.contains(name));
        if done { Ok(()) } else { Err(TierError::TimedOut { budget: Duration::ZERO }) }
    }

    /// The same of all keys.
    pub(crate) fn cancel_all(&self, until: Instant) -> Result<(), TierError> {
        let mut waiting = self.shared.waiting.lock();
        waiting.writes.clear();
        let done =
            waiting.wait_until(|waiting| &mut waiting.written, Some(until), |waiting| waiting.writing.is_empty());
        if done { Ok(()) } else { Err(TierError::TimedOut { budget: Duration::ZERO }) }
    }

    pub(crate) fn close(&self, limit: Duration) {
        // What is left is lost with the process, as what was not written yet; it is counted there.
        drop(self.batcher.close_within(limit));
    }

    pub(crate) fn station(&self) -> &fullbore_metrics::Station {
        self.batcher.station()
    }
}

impl Shared {
    /// On the batcher's thread.
    fn write(&self, keys: &[Arc<[u8]>]) -> Result<(), TierError> {
        let Some(core) = self.core.get().and_then(Weak::upgrade) else { return Err(TierError::Closed) };
        let mut commands = Vec::with_capacity(keys.len());
        let mut puts = 0;
        {
            let mut waiting = self.waiting.lock();
            for key in keys {
                match waiting.writes.remove(key) {
                    Some(Write::Put(bytes, px)) => {
                        puts += 1;
                        commands.push(set(key, &bytes, px));
                    }
                    Some(Write::Remove) => {
                        core.counts.dropped.inc();
                        let mut remove = cmd("DEL");
                        remove.arg(&key[..]);
                        commands.push(remove);
                    }
                    None => continue,
                }
                waiting.writing.insert(Arc::clone(key));
            }
        }
        let result = core.wire.ask(&mut core.purse(None), |line| line.ask_all(&commands));
        {
            let mut waiting = self.waiting.lock();
            for key in keys {
                waiting.writing.remove(key);
            }
            waiting.notify_all(|waiting| &mut waiting.written);
        }
        match result {
            Ok(answers) => {
                let refused =
                    answers.iter().filter(|answer| matches!(answer, redis::Value::ServerError(_))).count() as u64;
                core.counts.dropped.add(refused.min(puts));
                core.counts.stored.add(puts.saturating_sub(refused));
            }
            Err(error) => {
                core.counts.dropped.add(puts);
                return Err(error);
            }
        }
        Ok(())
    }
}
