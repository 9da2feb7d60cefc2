//! Everything at once: callers, an operator, a server in all its moods.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, Instant};

use fullbore_pool::{Config, GetError, Nested, OnPanic, WhileDown};

use super::MILLI;
use super::server::{Down, MOODS, Mood, Server, panic_on_purpose};
use super::subject::{Guard, Subject};
use crate::chance::Chance;
use crate::watch::HANG;

/// So long, and so many looks of ours, nobody waits who could have an idle connection, or one that is made for him.
const UNSERVED: Duration = Duration::from_millis(300);
const UNSERVED_LOOKS: usize = 20;

/// So long nobody waits when all is well again.
pub(super) const SERVED: Duration = Duration::from_secs(10);

/// A pool and what is known of it.
pub(super) struct Arena<S> {
    pub(super) pool: S,
    pub(super) server: Arc<Server>,
    pub(super) config: Config,
    /// Calls of `get` and its like.
    pub(super) calls: AtomicU64,
    stop: AtomicBool,
    /// The server is well, and nobody does anything but take and give back.
    pub(super) calm: AtomicBool,
    /// Connections of an earlier era must not be handed out.
    stale: AtomicU64,
    /// `close` has been called; it has returned.
    closing: AtomicBool,
    closed: AtomicBool,
    /// Odd after `pause` has returned, and before `resume` is called.
    paused: AtomicU64,
}

/// What a connection goes to that is dropped on another thread, after a while.
type Janitor<S> = SyncSender<(Guard<S>, Duration)>;

impl<S: Subject> Arena<S> {
    pub(super) fn new(pool: S, server: Arc<Server>, config: Config) -> Self {
        Self {
            pool,
            server,
            config,
            calls: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            calm: AtomicBool::new(false),
            stale: AtomicU64::new(0),
            closing: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            paused: AtomicU64::new(0),
        }
    }

    /// How things are, for whoever has to find out why.
    pub(super) fn tell(&self) -> String {
        let (live, calls) = (self.server.live(), self.calls.load(SeqCst));
        let (status, stats, out) = (self.pool.status(), self.pool.stats(), self.pool.checkouts());
        format!("{live} connections, {calls} calls, {status:?}, {stats:?}, out: {out:?}")
    }

    /// All of them at work for `time`.
    pub(super) fn round(&self, threads: usize, time: Duration, close: bool, chance: &mut Chance) {
        self.stop.store(false, SeqCst);
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            let (janitor, given) = sync_channel(8);
            scope.spawn(move || clean(&given));
            let callers = (0..threads).map(|_| {
                let (mut chance, janitor) = (Chance::new(chance.next()), janitor.clone());
                scope.spawn(move || {
                    while !self.stop.load(SeqCst) {
                        self.contain(|| self.call(&mut chance, &janitor));
                    }
                })
            });
            let callers: Vec<_> = callers.collect();
            drop(janitor);
            let mut operator = Chance::new(chance.next());
            scope.spawn(move || {
                while !self.stop.load(SeqCst) {
                    self.operate(&mut operator);
                    thread::sleep(operator.time(MILLI * 40));
                }
                // Whoever waits is served now. What was paused is resumed.
                self.server.change_to(Mood::Well);
            });
            scope.spawn(|| self.look(&done));
            if close {
                thread::sleep(chance.time(time));
                self.closing.store(true, SeqCst);
                self.pool.close();
                self.closed.store(true, SeqCst);
            }
            thread::sleep(time);
            self.stop.store(true, SeqCst);
            let stopped = Instant::now();
            let mut served = true;
            while !callers.iter().all(ScopedJoinHandle::is_finished) {
                // While it lasts: afterwards nobody can tell why.
                if served && stopped.elapsed() > SERVED {
                    served = false;
                    self.server.complain(format!("all is well again, and somebody has waited since: {}", self.tell()));
                }
                thread::sleep(MILLI);
            }
            done.store(true, SeqCst);
        });
    }

    /// User code panics on purpose only.
    fn contain(&self, f: impl FnOnce()) {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(f)) {
            let text = text(&*panic);
            if text != "on purpose" {
                self.server.complain(format!("a panic: {text}"));
            }
        }
    }

    /// One call, and what is done with what it gets.
    fn call(&self, chance: &mut Chance, janitor: &Janitor<S>) {
        let key = if chance.one_in(2) { chance.below(3) } else { chance.below(40) };
        if chance.one_in(8) {
            return self.call_with(key, chance);
        }
        let Some(mut guard) = self.get(key, chance, false) else {
            // Who goes without tries again after a while, as a rule.
            if !chance.one_in(8) {
                thread::sleep(chance.time(MILLI * 2));
            }
            return;
        };
        guard.touch();
        match chance.below(16) {
            0 => {
                guard.tainted = true;
                panic_on_purpose();
            }
            1 => guard.discard(),
            2 => {
                guard.leave();
                drop(guard.detach());
            }
            3 => drop(janitor.send((guard, chance.time(MILLI * 2)))),
            4 => guard.broken = true,
            5 => drop(self.get(key + chance.below(2), chance, true)),
            6 | 7 => thread::sleep(chance.time(MILLI * 5)),
            8 => thread::yield_now(),
            _ => {}
        }
    }

    fn call_with(&self, key: u64, chance: &mut Chance) {
        self.calls.fetch_add(1, SeqCst);
        let panics = chance.one_in(4);
        let outcome = self.pool.with(key, |link| {
            link.touch();
            if panics {
                link.tainted = true;
                panic_on_purpose();
            }
        });
        if let Err(error) = outcome {
            self.judge(&error);
        }
    }

    /// Who holds one does not wait for another for as long as the pool lets it: when everything is out to threads that do, each waits
    /// for the others. That is theirs to know, and not the pool's to prevent, unless it is `Nested::Refuse`.
    fn get(&self, key: u64, chance: &mut Chance, holds_one: bool) -> Option<Guard<S>> {
        let (stale, closed, paused) = (self.stale.load(SeqCst), self.closed.load(SeqCst), self.paused.load(SeqCst));
        self.calls.fetch_add(1, SeqCst);
        let asked = Instant::now();
        let got = match chance.below(6) {
            0 => self.pool.try_get(key),
            1 => self.pool.get_deadline(key, asked + chance.time(MILLI * 20)),
            2 => self.pool.get_deadline(key, asked - MILLI),
            _ if holds_one && self.config.nested != Nested::Refuse => {
                self.pool.get_deadline(key, asked + chance.time(MILLI * 20))
            }
            _ => self.pool.get(key),
        };
        if asked.elapsed() > HANG {
            self.server.complain(format!("a call took {:?}", asked.elapsed()));
        }
        let guard = got.inspect_err(|error| self.judge(error)).ok()?;
        let must_not = |holds: bool, what: &str| {
            if holds {
                self.server.complain(format!("handed out {what}"));
            }
        };
        must_not(closed, "by a closed pool");
        must_not(paused % 2 == 1 && paused == self.paused.load(SeqCst), "by a paused pool");
        must_not(guard.era < stale, "after a soft eviction of it");
        must_not(guard.tainted && self.config.on_panic == OnPanic::Discard, "after its holder panicked");
        must_not(guard.broken, "although it came back broken");
        must_not(S::KEYED && guard.key != key, "for another key");
        Some(guard)
    }

    /// Whether it may have failed like this.
    fn judge(&self, error: &GetError<Down>) {
        let config = &self.config;
        let wrong = (error.is_closed() && !self.closing.load(SeqCst))
            || (error.is_connect() && config.while_down == WhileDown::Wait)
            || (error.is_shed() && config.max_waiters == usize::MAX)
            || (error.is_nested() && config.nested != Nested::Refuse)
            || error.is_forked();
        if wrong {
            self.server.complain(format!("an error for which there is no reason: {error}"));
        }
    }

    /// What an operator does, and what befalls the server.
    fn operate(&self, chance: &mut Chance) {
        let pool = &self.pool;
        match chance.below(12) {
            0 => {
                if chance.one_in(2) {
                    pool.pause();
                } else {
                    drop(pool.pause_within(chance.time(MILLI * 10)));
                }
                self.paused.fetch_add(1, SeqCst);
                thread::sleep(chance.time(MILLI * 20));
                self.paused.fetch_add(1, SeqCst);
                pool.resume();
            }
            1 => {
                let max_size = chance.size(1, 12);
                self.server.allow(max_size + self.config.reserve_size);
                pool.resize(max_size);
            }
            2 => {
                let era = self.server.era.fetch_add(1, SeqCst) + 1;
                pool.soft_evict();
                self.stale.store(era, SeqCst);
            }
            3 => self.contain(|| {
                let removed = pool.retain(|link| {
                    link.touch();
                    match chance.below(30) {
                        0 => panic_on_purpose(),
                        1..10 => {
                            link.leave();
                            false
                        }
                        _ => true,
                    }
                });
                drop(removed);
            }),
            4 | 5 => pool.look(),
            6 => self.server.restart(),
            _ => self.server.change_to(chance.one_of(&MOODS)),
        }
    }

    /// Looks from outside whether all is as it should be.
    pub(super) fn look(&self, stop: &AtomicBool) {
        let (mut since, mut looks) = (None, 0);
        while !stop.load(SeqCst) {
            let (status, cap) = (self.pool.status(), self.server.cap());
            if status.size > cap {
                self.server.complain(format!("{} connections, where {cap} are allowed: {status:?}", status.size));
            }
            // Of a keyed pool the idle ones may be of other keys, for which one is closed and another made.
            let usable = !status.paused && (!S::KEYED || (status.connecting == 0 && self.is_calm()));
            // Or one would be made for him: there is room, and the server is well.
            let none_made = status.size < status.max_size && status.connecting == 0 && status.stuck == 0;
            let possible = status.available > 0 || (none_made && self.server.mood() == Mood::Well);
            if usable && possible && status.waiting > 0 {
                let since = *since.get_or_insert_with(Instant::now);
                looks += 1;
                // If the machine stands still, so do we.
                if looks > UNSERVED_LOOKS && since.elapsed() > UNSERVED && status.oldest_wait > UNSERVED {
                    self.server.complain(format!("somebody waits who could have a connection: {status:?}"));
                }
            } else {
                (since, looks) = (None, 0);
            }
            thread::sleep(MILLI * 5);
        }
    }

    /// Whether whoever waits can use any idle connection: the server is well, and no key at its bound.
    fn is_calm(&self) -> bool {
        self.config.max_per_key == usize::MAX && self.calm.load(SeqCst)
    }
}

fn clean<G>(given: &Receiver<(G, Duration)>) {
    for (guard, after) in given {
        thread::sleep(after);
        drop(guard);
    }
}

fn text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("without a message").to_owned()
}
