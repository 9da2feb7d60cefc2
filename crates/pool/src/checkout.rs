//! Checkout and return: what happens to a place. Protocol in the crate's README.

use std::cell::{Cell, RefCell};
use std::hash::BuildHasher;
use std::panic::{AssertUnwindSafe, Location, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use fullbore_core::{Clock, Event, Events, Locked, Monitor, Refusal, Serve, contain};
use fullbore_metrics::{Departure, Outcome, Station, StationKind};
use hashbrown::DefaultHashBuilder;

use crate::background::{Background, Keep};
use crate::config::{Config, OnPanic, QueueMode};
use crate::connection::Connection;
use crate::desk::{Claim, Desk};
use crate::error::{GetError, Status};
use crate::fork;
use crate::hot::Index;
use crate::leak::Lease;
use crate::manager::{Key, KeyedManager};
use crate::nested::{Home, Nested, held_here};
use crate::slot::{Held, Out, Slot, Slots, Taken};
use crate::stats::Why;
use crate::top::{SAMPLED, Top};

/// What the handles of a pool and its connections share.
pub(crate) struct Shared<K: Key, M: KeyedManager<K>> {
    /// Tells pools apart; never 0.
    pub(crate) id: u64,
    pub(crate) slots: Slots<K, M>,
    /// Whether a checkout may go without the lock.
    quick: bool,
    /// Whether book is kept of who has what.
    watched: bool,
    /// `validate_after`, in nanoseconds.
    validate_after: u64,
    forks: u32,
    /// How often trust in all idle connections was lost. Changed under the lock.
    pub(crate) trust: AtomicU64,
    index: Option<Index>,
    hasher: DefaultHashBuilder,
    pub(crate) only_key: Option<K>,
    pub(crate) clock: Clock,
    pub(crate) station: Station,
    pub(crate) manager: M,
    pub(crate) monitor: Monitor<Desk<K, M>>,
    pub(crate) config: Config,
    pub(crate) events: Events,
    pub(crate) background: Background,
    pub(crate) top: Mutex<Top<K>>,
    /// For what runs in the background.
    pub(crate) me: Weak<Self>,
}

pub(crate) type LockedDesk<'a, K, M> = Locked<'a, Desk<K, M>>;

/// How a caller of `get` waits.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Patience {
    /// Not at all.
    Now,
    /// As long as the pool says.
    Default,
    /// Until then.
    Until(Instant),
}

impl<K: Key, M: KeyedManager<K>> Shared<K, M> {
    pub(crate) fn new(config: Config, clock: Clock, background: Background, manager: M) -> Arc<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        fork::watch();
        let only_key = M::only_key();
        Arc::new_cyclic(|me| Self {
            // ORDERING: Relaxed: only the numbers' being different matters.
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            slots: Slots::new(),
            quick: config.queue_mode == QueueMode::Lifo,
            watched: config.leak_after.is_some() || config.nested != Nested::Off,
            validate_after: nanos(config.validate_after),
            forks: fork::generation(),
            trust: AtomicU64::new(0),
            index: only_key.is_none().then(|| Index::new(config.max_size)),
            hasher: DefaultHashBuilder::default(),
            only_key,
            station: Station::builder(config.name.clone()).kind(StationKind::Pool).parallelism(config.max_size).build(),
            manager,
            monitor: Monitor::new(Desk::new(&config), clock.clone()),
            clock,
            events: Events::new("pool", &config.name),
            config,
            background,
            top: Mutex::new(Top::new()),
            me: Weak::clone(me),
        })
    }

    #[inline]
    pub(crate) fn get(
        &self,
        key: &K,
        patience: Patience,
        site: &'static Location<'static>,
    ) -> Result<Connection<K, M>, GetError<M::Error>> {
        if self.watched
            && let Some(refused) = self.nested()
        {
            return Err(refused);
        }
        match self.take_hot(key) {
            Some(out) => {
                let timed = self.station.entered();
                Ok(self.hand_out(out, timed.then(Instant::now), if timed { SAMPLED } else { 0 }, site))
            }
            None => self.get_slow(key, patience, site),
        }
    }

    /// An idle connection that needs no check, without the lock.
    #[inline]
    fn take_hot(&self, key: &K) -> Option<Out<K, M>> {
        if !self.quick || self.forks != fork::generation() {
            return None;
        }
        let hash = self.hash(key);
        let last = self.slots.recall(self.id);
        let out = match last.filter(|slot| slot.tag() == hash).and_then(|slot| slot.try_take()) {
            Some(out) => out,
            None => self.find_hot(hash)?,
        };
        let now = self.clock.coarse();
        let slot = out.slot();
        let fresh = slot.is_recent(now, self.validate_after) && now < slot.retire_at();
        // Different keys can have the same hash.
        if fresh && (self.only_key.is_some() || out.held().key == *key) {
            return Some(out);
        }
        self.put_back(out);
        None
    }

    /// Any other idle slot.
    fn find_hot(&self, hash: u64) -> Option<Out<K, M>> {
        let out = match &self.index {
            None => self.slots.iter().find_map(|slot| slot.try_take_if_idle()),
            Some(index) => index
                .find(hash)
                .filter_map(|number| self.slots.get(number))
                .filter(|slot| slot.tag() == hash)
                .find_map(|slot| slot.try_take_if_idle()),
        }?;
        out.slot().remember(self.id);
        Some(out)
    }

    #[inline]
    pub(crate) fn hash(&self, key: &K) -> u64 {
        if self.only_key.is_some() { 0 } else { self.hasher.hash_one(key) }
    }

    /// Unused: it goes back as it was.
    #[cold]
    fn put_back(&self, out: Out<K, M>) {
        if let Err(out) = out.try_give() {
            Self::give_slow(out, Duration::ZERO, false, false);
        }
    }

    #[cold]
    fn get_slow(
        &self,
        key: &K,
        patience: Patience,
        site: &'static Location<'static>,
    ) -> Result<Connection<K, M>, GetError<M::Error>> {
        if self.is_forked() {
            // Its locks and its sockets are the parent's.
            return Err(GetError::forked());
        }
        let deadline = match patience {
            Patience::Default => self.clock.after(self.config.get_timeout),
            Patience::Until(deadline) => Some(deadline),
            // It does not wait; checks of idle ones have this time together.
            Patience::Now => self.clock.after(self.config.validate_timeout),
        };
        // C6: what parks is timed each time.
        let mut since = None;
        let came = self.clock.now();
        loop {
            let mut desk = self.monitor.lock();
            let mut claim = desk.claim(self, key);
            if claim.is_none() {
                if let Some(refused) = self.refuse(&mut desk, key, patience, since.is_some()) {
                    self.settle(desk);
                    return Err(self.leave(refused, since));
                }
                if since.is_none() {
                    since = Some(Instant::now());
                    self.station.arrived(1);
                }
                claim = self.stand_in_line(&mut desk, key, deadline);
            }
            let late = deadline.is_some_and(|deadline| deadline <= desk.now());
            let out = match claim {
                Some(Claim::Slot(out) | Claim::Handed(out)) => out,
                None => {
                    let status = Some(Box::new(self.status(&desk)));
                    let failed = desk.keys.get(key).and_then(|mine| mine.down.as_ref());
                    let failed =
                        failed.map(|down| (down.error.clone(), desk.now().saturating_duration_since(down.since)));
                    self.settle(desk);
                    return Err(self.leave(GetError::refused(Refusal::TimedOut).with(status, failed), since));
                }
                Some(Claim::Failed(error, age)) => {
                    self.settle(desk);
                    return Err(self.leave(GetError::connect(error, age), since));
                }
                Some(Claim::Closed) => {
                    self.settle(desk);
                    return Err(self.leave(GetError::refused(Refusal::Closed), since));
                }
            };
            if desk.closed {
                // It was handed over before.
                drop(desk);
                self.retire(out, Why::Closed);
                return Err(self.leave(GetError::refused(Refusal::Closed), since));
            }
            // One that was made since he came is good, however short `validate_after` is: were it checked, a check that never
            // succeeds would make connections without end.
            let made_since = out.held().uses == 0 && out.held().created >= came;
            let fresh = self.is_fresh(&out) || (made_since && self.is_trusted(out.held()));
            if !fresh && late {
                // Who is out of time gets what is there, but must not cost anybody a connection by a check that has no time to
                // succeed.
                drop(desk);
                Self::give_slow(out, Duration::ZERO, false, false);
                return Err(self.leave(GetError::refused(Refusal::TimedOut), since));
            }
            self.settle(desk);
            let checked = if fresh { Ok(out) } else { self.check(out, deadline, since) };
            match checked {
                Ok(out) => {
                    out.slot().remember(self.id);
                    return Ok(self.begin(out, since, fresh, site));
                }
                Err(Lost::Closed) => return Err(self.leave(GetError::refused(Refusal::Closed), since)),
                // Its place is free again: back to the line, on which the time is running.
                Err(Lost::Invalid) => {}
            }
        }
    }

    /// Counts a checkout that did not go the quick way.
    fn begin(
        &self,
        out: Out<K, M>,
        since: Option<Instant>,
        fresh: bool,
        site: &'static Location<'static>,
    ) -> Connection<K, M> {
        let (timed, stands_for) = match since {
            Some(since) => {
                self.station.began(1);
                self.station.waited(since.elapsed());
                (true, 1)
            }
            None => {
                let sampled = self.station.entered();
                (sampled || !fresh, if sampled { SAMPLED } else { 0 })
            }
        };
        self.hand_out(out, timed.then(Instant::now), stands_for, site)
    }

    /// Counts a caller who goes without.
    fn leave(&self, error: GetError<M::Error>, since: Option<Instant>) -> GetError<M::Error> {
        match since {
            Some(since) => {
                self.station.waited(since.elapsed());
                self.station.departed(Departure::Returned, 1);
            }
            None => self.station.refused(1),
        }
        error
    }

    /// Why a caller may not stand in line.
    fn refuse(
        &self,
        desk: &mut LockedDesk<'_, K, M>,
        key: &K,
        patience: Patience,
        again: bool,
    ) -> Option<GetError<M::Error>> {
        let now = desk.now();
        if matches!(patience, Patience::Now) {
            // What is idle may be promised to those in line.
            if desk.is_open() && !again && desk.waiters.is_empty() {
                // For the next one who looks.
                let limit = self.limit(desk, now);
                if !desk.attempts.values().any(|attempt| attempt.wished && attempt.key == *key)
                    && let Some(attempt) = desk.start(self, key, limit, now, 1, true)
                {
                    desk.released(|| self.launch(vec![attempt]));
                }
            }
            return Some(GetError::refused(Refusal::Full));
        }
        if !again && desk.waiters.len() >= self.config.max_waiters {
            let status = Some(Box::new(self.status(desk)));
            return Some(GetError::refused(Refusal::Shed).with(status, None));
        }
        None
    }

    fn stand_in_line(
        &self,
        desk: &mut LockedDesk<'_, K, M>,
        key: &K,
        deadline: Option<Instant>,
    ) -> Option<Claim<K, M>> {
        let now = desk.now();
        if deadline.is_some_and(|deadline| deadline <= now) {
            return desk.claim(self, key);
        }
        if self.config.reserve_size > 0
            && let Some(at) = now.checked_add(self.config.reserve_after)
        {
            self.look_at(at);
        }
        desk.want(key);
        // What the thread begins for itself is made by others, who are told once it is in line: so nothing that comes of it can be
        // missed, and whenever it finds that somebody else was faster it begins again.
        let starts = RefCell::new(Vec::new());
        let (mut was_told, in_vain) = (false, Cell::new(false));
        let claim = desk.wait_turn_after(
            |desk| &mut desk.waiters,
            deadline,
            key.clone(),
            |desk| {
                let claim = desk.claim_or_bar(self, key);
                if claim.is_none() && desk.is_open() {
                    let now = self.clock.now();
                    let limit = self.limit(desk, now);
                    // What is idle may be promised to somebody before him in line: only who walks the line knows that.
                    let others = desk.waiters.len() > usize::from(was_told);
                    let may_evict = self.only_key.is_none() && self.slots.iter().any(Slot::is_idle);
                    let walk_first = may_evict && others && desk.size >= limit;
                    if !walk_first {
                        starts.borrow_mut().extend(desk.start(self, key, limit, now, 0, false));
                    }
                    // (W) Because he was told, others were not. What came back since then may be of their keys.
                    in_vain.set(walk_first || (was_told && may_evict));
                }
                was_told = true;
                claim
            },
            || {
                self.launch(starts.take());
                if in_vain.take() {
                    self.settle(self.monitor.lock());
                }
            },
        );
        if !matches!(claim, Some(Claim::Handed(_))) {
            desk.unwant(key);
        }
        let unneeded = starts.take();
        if !unneeded.is_empty() {
            // Begun with its last look. Others may need it; else it ends at once.
            desk.released(|| self.launch(unneeded));
        }
        claim
    }

    /// The one path on which waiters get something. Called, under the same lock, after each change of what can be had: return,
    /// loss, a connect that ended, a given-up wait, and also a claim, because the one who took it may have been faster than a
    /// waiter who was told of it. Walks the line and lets everybody look who can be served now; who waited too long is handed it
    /// (C9). Begins what connections are worth making. What it returns is to be given to [`launch`](Self::launch) after the lock.
    pub(crate) fn grant_next(&self, desk: &mut LockedDesk<'_, K, M>, used: Duration) -> Vec<u64> {
        let mut starts = Vec::new();
        if desk.closed || desk.paused {
            desk.notify_all(|desk| &mut desk.all_back);
        }
        if !desk.is_open() {
            return starts;
        }
        while !desk.waiters.is_empty() {
            let now = desk.now();
            let limit = self.limit(desk, now);
            let mut idle = self.slots.iter().filter(|slot| slot.is_idle()).count();
            let (mut told, mut unserved) = (false, false);
            desk.begin_walk();
            desk.serve_after(
                used,
                |desk| &mut desk.waiters,
                |desk, waiting, overdue| {
                    if idle == 0 && !desk.could_start(self, limit, idle) {
                        unserved = true;
                        return Serve::Stop;
                    }
                    match desk.promise(self, waiting.tag, overdue) {
                        Some(given) => {
                            idle = idle.saturating_sub(1);
                            told |= given.is_none();
                            let Some(out) = given else { return Serve::Nudge };
                            desk.unwant(waiting.tag);
                            Serve::Grant(Claim::Handed(out))
                        }
                        None => {
                            unserved = true;
                            if let Some(attempt) = desk.start(self, waiting.tag, limit, now, 0, false) {
                                starts.push(attempt);
                                // It may have taken an idle one of another key.
                                idle = idle.min(self.slots.iter().filter(|slot| slot.is_idle()).count());
                            }
                            Serve::Skip
                        }
                    }
                },
            );
            // (W) Who was not told must be told by a return, which has to come by the lock for that; but as long as somebody was
            // told and has not looked yet, that one will come here, and the quick ways can stay open until then.
            if told || !unserved || !self.bar_all() {
                break;
            }
        }
        while desk.missing > 0 && self.start_missing(desk, &mut starts) {
            desk.missing -= 1;
        }
        if desk.size > desk.max_size {
            // The reserve, or after a resize: they go when they come back.
            self.bar_all();
        }
        starts
    }

    /// Begins one of those that are missing of `min_idle`.
    fn start_missing(&self, desk: &mut LockedDesk<'_, K, M>, starts: &mut Vec<u64>) -> bool {
        let Some(key) = &self.only_key else { return false };
        let (now, most) = (desk.now(), desk.max_size);
        // Beside those that are being made, and those in line.
        let more = desk.connecting + 1;
        let attempt = desk.start(self, key, most, now, more, false);
        starts.extend(attempt);
        attempt.is_some()
    }

    /// Counts what is missing of `min_idle`: when the pool is built, when a connection was lost, and once a second at most. Not at each
    /// checkout: a burst that takes what is idle is over, as a rule, before another one is made.
    pub(crate) fn count_missing(&self, desk: &mut Desk<K, M>) {
        if self.config.min_idle > 0 {
            let idle = self.slots.iter().filter(|slot| slot.is_idle()).count();
            let room = desk.max_size.saturating_sub(desk.size);
            desk.missing = (self.config.min_idle + desk.leaving).saturating_sub(idle + desk.connecting).min(room);
        }
    }

    /// How many connections there may be now.
    pub(crate) fn limit(&self, desk: &Desk<K, M>, now: Instant) -> usize {
        let overdue = |since: Instant| now.saturating_duration_since(since) >= self.config.reserve_after;
        let reserve = if self.config.reserve_size > 0 && desk.waiters.oldest().is_some_and(overdue) {
            self.config.reserve_size
        } else {
            0
        };
        desk.max_size.saturating_add(reserve).min(Slots::<K, M>::MOST)
    }

    /// Bars the quick ways of all slots. `true` if one that was open was idle.
    pub(crate) fn bar_all(&self) -> bool {
        let mut idle = false;
        for slot in self.slots.iter() {
            idle |= slot.bar();
        }
        idle
    }

    /// The end of each change: what follows from it, and the lock is free.
    pub(crate) fn settle(&self, desk: LockedDesk<'_, K, M>) {
        self.settle_after(Duration::ZERO, desk);
    }

    /// The same, where a connection came back that had been out for `used`.
    fn settle_after(&self, used: Duration, mut desk: LockedDesk<'_, K, M>) {
        let starts = self.grant_next(&mut desk, used);
        let graves = std::mem::take(&mut desk.graves);
        drop(desk);
        drop(graves);
        if !starts.is_empty() {
            self.launch(starts);
        }
    }

    /// Whether it can be handed out unchecked.
    fn is_fresh(&self, out: &Out<K, M>) -> bool {
        let (now, slot) = (self.clock.coarse(), out.slot());
        self.is_trusted(out.held()) && slot.is_recent(now, self.validate_after) && now < slot.retire_at()
    }

    pub(crate) fn trust(&self) -> u64 {
        // ORDERING: Relaxed: changed under the lock; who reads it without just reads it again later.
        self.trust.load(Ordering::Relaxed)
    }

    /// Whether nothing speaks against it but time.
    pub(crate) fn is_trusted(&self, held: &Held<K, M>) -> bool {
        !held.suspect && held.trusted == self.trust()
    }

    /// Checks an idle connection on the caller's thread. One that is not good is closed, its place free.
    fn check(&self, out: Out<K, M>, deadline: Option<Instant>, since: Option<Instant>) -> Result<Out<K, M>, Lost> {
        if self.clock.coarse() >= out.slot().retire_at() {
            self.retire(out, Why::Old);
            return Err(Lost::Invalid);
        }
        let left = deadline.map_or(Duration::MAX, |deadline| deadline.saturating_duration_since(self.clock.now()));
        // What others find out meanwhile counts.
        let trust = self.trust();
        let mut out = out;
        let held = out.held_mut();
        let budget = left.min(self.config.validate_timeout);
        let validate = || self.manager.validate(&held.key, &mut held.connection, budget);
        match catch_unwind(AssertUnwindSafe(validate)) {
            Ok(Ok(())) => {
                (held.trusted, held.suspect) = (trust, false);
                out.used(self.clock.coarse());
                if !self.monitor.lock().closed {
                    return Ok(out);
                }
                self.retire(out, Why::Closed);
                Err(Lost::Closed)
            }
            Ok(Err(error)) => {
                self.distrust();
                self.events.emit(Event::Reconnect, || format!("an idle connection is gone: {error}"));
                self.retire(out, Why::Invalid);
                Err(Lost::Invalid)
            }
            Err(panic) => {
                self.retire(out, Why::Invalid);
                // It came in, was begun and failed.
                match since {
                    Some(_) => self.station.began(1),
                    None => {
                        self.station.entered();
                    }
                }
                self.station.ended(Outcome::Failed, 1);
                resume_unwind(panic);
            }
        }
    }

    /// One connection is dead: all others have to be checked, however short they were idle.
    pub(crate) fn distrust(&self) {
        let _desk = self.monitor.lock();
        // ORDERING: Relaxed: see `is_trusted`; the bars stop those without the lock.
        self.trust.fetch_add(1, Ordering::Relaxed);
        self.bar_all();
    }

    /// `stands_for` is how many checkouts this one stands for in the count of keys.
    #[inline]
    fn hand_out(
        &self,
        out: Out<K, M>,
        taken: Option<Instant>,
        stands_for: u64,
        site: &'static Location<'static>,
    ) -> Connection<K, M> {
        let home = if self.watched { self.keep_book(&out, site) } else { None };
        if stands_for > 0 {
            self.note_key(&out, stands_for);
        }
        Connection::new(out, taken, home)
    }

    #[cold]
    fn note_key(&self, out: &Out<K, M>, stands_for: u64) {
        if self.only_key.is_none() {
            Top::note(&self.top, &out.held().key, stands_for);
        }
    }

    #[cold]
    fn nested(&self) -> Option<GetError<M::Error>> {
        match self.config.nested {
            Nested::Off => return None,
            _ if held_here(self.id) == 0 => return None,
            Nested::Warn => {
                self.events.emit(Event::Nested, || "a thread that holds a connection asks for another one");
                return None;
            }
            Nested::Refuse => {}
        }
        self.station.refused(1);
        Some(GetError::nested())
    }

    #[cold]
    fn keep_book(&self, out: &Out<K, M>, site: &'static Location<'static>) -> Option<Home> {
        if self.config.leak_after.is_some() {
            let lease = Lease {
                id: out.held().id,
                site,
                thread: std::thread::current(),
                since: self.clock.coarse(),
                reported: false,
            };
            out.slot().lease.with(|cell| *cell = Some(lease));
        }
        if self.config.nested == Nested::Off { None } else { Home::here(self.id) }
    }

    pub(crate) fn is_forked(&self) -> bool {
        self.forks != fork::generation()
    }

    /// A connection comes back.
    #[inline]
    pub(crate) fn give_back(mut out: Out<K, M>, taken: Option<Instant>) {
        let held = out.held_mut();
        let pool: &Self = &held.pool;
        if pool.forks != fork::generation() {
            return;
        }
        let panicking = std::thread::panicking();
        let broken = pool.is_broken(&held.key, &mut held.connection);
        let used = pool.end_service(taken, if panicking { Outcome::Failed } else { Outcome::Served });
        held.uses += 1;
        let pool: &Self = &out.held().pool;
        if pool.watched {
            pool.close_book(&out);
        }
        let now = pool.clock.coarse();
        out.used(now);
        if panicking || broken || now >= out.slot().retire_at() {
            return Self::give_slow(out, used, panicking, broken);
        }
        if let Err(out) = out.try_give() {
            Self::give_slow(out, used, false, false);
        }
    }

    /// Returns how long it took, if this one was timed: all of those are that were waited for.
    #[inline]
    pub(crate) fn end_service(&self, taken: Option<Instant>, outcome: Outcome) -> Duration {
        let mut used = Duration::ZERO;
        if let Some(taken) = taken {
            used = taken.elapsed();
            self.station.took(used);
        }
        self.station.ended(outcome, 1);
        used
    }

    #[cold]
    pub(crate) fn close_book(&self, out: &Out<K, M>) {
        if self.config.leak_after.is_some() {
            let lease = out.slot().lease.with(Option::take);
            if let Some(lease) = lease.filter(|lease| lease.reported) {
                let (site, now) = (lease.site, self.clock.coarse());
                let age = lease.checkout(now).age;
                self.events.emit(Event::Leak, || format!("a connection came back after {age:?}, taken at {site}"));
            }
        }
    }

    /// A connection comes back by the lock.
    #[cold]
    fn give_slow(mut out: Out<K, M>, used: Duration, panicking: bool, broken: bool) {
        let pool = Arc::clone(&out.held().pool);
        let why = if broken {
            Some(Why::Broken)
        } else if panicking {
            match pool.config.on_panic {
                OnPanic::Discard => Some(Why::Panicked),
                OnPanic::Check => {
                    out.held_mut().suspect = true;
                    None
                }
                OnPanic::Return => None,
            }
        } else {
            None
        };
        let mut desk = pool.monitor.lock();
        match why.or_else(|| pool.has_to_go(&mut desk, &out)) {
            None => {
                let open = desk.is_open() && pool.is_trusted(out.held());
                out.give(open);
                pool.settle_after(used, desk);
            }
            Some(why) => {
                drop(desk);
                pool.retire(out, why);
            }
        }
    }

    /// Why one that came back cannot stay.
    fn has_to_go(&self, desk: &mut Desk<K, M>, out: &Out<K, M>) -> Option<Why> {
        if desk.closed {
            return Some(Why::Closed);
        }
        if out.held().epoch != desk.epoch || self.clock.coarse() >= out.slot().retire_at() {
            return Some(Why::Old);
        }
        self.is_surplus(desk).then_some(Why::Surplus)
    }

    /// Whether there is one more than there should be. If so, the caller has to close one, as [`Why::Surplus`].
    pub(crate) fn is_surplus(&self, desk: &mut Desk<K, M>) -> bool {
        let used = if desk.waiters.is_empty() { 0 } else { self.config.reserve_size };
        let surplus = desk.size - desk.going > desk.max_size.saturating_add(used);
        desk.going += usize::from(surplus);
        surplus
    }

    #[inline]
    fn is_broken(&self, key: &K, connection: &mut M::Connection) -> bool {
        match contain(|| self.manager.is_broken(key, connection)) {
            Ok(false) => false,
            Ok(true) => {
                self.events.emit(Event::Reconnect, || "a connection came back broken");
                true
            }
            Err(failure) => {
                self.events.emit(Event::Panic, || format!("checking a returned connection: {failure}"));
                true
            }
        }
    }

    /// Gives a connection to the manager to close; its place is still taken. A panic is not the caller's concern: contained
    /// and reported.
    pub(crate) fn close_one(&self, held: Held<K, M>) -> K {
        let Held { key, connection, .. } = held;
        if let Err(failure) = contain(|| self.manager.close(&key, connection)) {
            self.events.emit(Event::Panic, || format!("closing a connection: {failure}"));
        }
        key
    }

    /// Closes a connection and then gives up its place: never more than `max_size`, those being closed included.
    pub(crate) fn retire(&self, out: Out<K, M>, why: Why) {
        self.retire_taken(out.into_taken(), why);
    }

    /// As [`retire`](Self::retire).
    pub(crate) fn retire_taken(&self, mut taken: Taken<K, M>, why: Why) {
        if self.is_forked() {
            // Closing says goodbye to the server, on the parent's connection.
            return;
        }
        let key = taken.empty(self).map(|held| self.close_one(held));
        self.free_place(taken, key.as_ref(), why);
    }

    /// Takes a connection out of the pool. Its place is free at once.
    pub(crate) fn remove(&self, mut taken: Taken<K, M>) -> Option<M::Connection> {
        let held = taken.empty(self);
        let (key, connection) = held.map(|Held { key, connection, .. }| (key, connection)).unzip();
        if self.is_forked() {
            return connection;
        }
        self.free_place(taken, key.as_ref(), Why::Removed);
        connection
    }

    fn free_place(&self, taken: Taken<K, M>, key: Option<&K>, why: Why) {
        let mut desk = self.monitor.lock();
        if let Some(key) = key {
            desk.unlist(self, key, taken.number(self));
            desk.leave_slot(self, taken);
            desk.change(key, |mine| mine.places -= 1);
        } else {
            desk.leave_slot(self, taken);
        }
        desk.stats.count(why);
        match why {
            Why::Surplus => desk.going -= 1,
            Why::Old => desk.leaving = desk.leaving.saturating_sub(1),
            _ => {}
        }
        self.count_missing(&mut desk);
        self.settle(desk);
    }

    pub(crate) fn status_now(&self) -> Status {
        if self.is_forked() {
            return Status { name: self.config.name.clone(), ..Status::default() };
        }
        self.status(&self.monitor.lock())
    }

    pub(crate) fn status(&self, desk: &LockedDesk<'_, K, M>) -> Status {
        let waited = |since| desk.now().saturating_duration_since(since);
        Status {
            name: self.config.name.clone(),
            max_size: desk.max_size,
            size: desk.size,
            available: self.slots.iter().filter(|slot| slot.is_idle()).count(),
            connecting: desk.connecting,
            stuck: desk.stuck,
            waiting: desk.waiters.len(),
            oldest_wait: desk.waiters.oldest().map_or(Duration::ZERO, waited),
            paused: desk.paused,
        }
    }

    /// A slot has a connection of this key now.
    pub(crate) fn list(&self, number: u32) {
        if let (Some(index), Some(slot)) = (&self.index, self.slots.get(number)) {
            index.insert(slot.tag(), number);
        }
    }

    /// And now no longer.
    pub(crate) fn unlist(&self, number: u32) {
        if let (Some(index), Some(slot)) = (&self.index, self.slots.get(number)) {
            index.remove(slot.tag(), number);
        }
    }

    /// Has the keeper come at `at`.
    pub(crate) fn look_at(&self, at: Instant) {
        let keep: Weak<dyn Keep> = Weak::<Self>::clone(&self.me);
        self.background.look_after(self.id, &keep, at);
    }
}

/// Why a connection was not handed out after all.
enum Lost {
    Invalid,
    Closed,
}

/// For comparisons with the coarse time.
pub(crate) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
