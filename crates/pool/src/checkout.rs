//! Checkout, return, close: what happens to a place. Protocol in the crate's README.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fullbore_core::{Clock, Event, Events, Locked, Monitor, Refusal, Serve, Undelivered, contain};
use fullbore_metrics::{Departure, Outcome, Station, StationKind, sampled};

use crate::config::Config;
use crate::connection::Connection;
use crate::error::{GetError, PoolState};
use crate::manager::{Key, KeyedManager};
use crate::shelf::{Claim, Held, Shelf};

/// What the handles of a pool and its connections share.
pub(crate) struct Shared<K: Key, M: KeyedManager<K>> {
    pub(crate) monitor: Monitor<Shelf<K, M::Connection>>,
    pub(crate) manager: M,
    pub(crate) config: Config,
    pub(crate) station: Station,
    events: Events,
}

type LockedShelf<'a, K, C> = Locked<'a, Shelf<K, C>>;

/// A place in the pool, given up when dropped: whatever the manager does, the count comes out right.
pub(crate) struct Place<'a, K: Key, M: KeyedManager<K>> {
    pub(crate) shared: &'a Shared<K, M>,
    pub(crate) key: &'a K,
}

impl<K: Key, M: KeyedManager<K>> Drop for Place<'_, K, M> {
    fn drop(&mut self) {
        let mut shelf = self.shared.monitor.lock();
        shelf.give_up_place(self.key);
        grant_next(&mut shelf);
    }
}

/// The one path on which waiters get something. Called, under the same lock, after each change of what can be claimed:
/// return, destroy, failed connect, given-up wait, and also a claim, because the one who took it may have been faster than
/// a waiter who was told of it. Walks the line and lets everybody look who can be served now; who waited too long is handed
/// it (C9).
fn grant_next<K: Key, C>(shelf: &mut LockedShelf<'_, K, C>) {
    if shelf.closed {
        if shelf.out() == 0 {
            shelf.notify_all(|shelf| &mut shelf.all_back);
        }
        return;
    }
    let mut chances = shelf.chances();
    if chances == 0 || shelf.waiters.is_empty() {
        return;
    }
    shelf.serve(
        |shelf| &mut shelf.waiters,
        |shelf, waiting, overdue| {
            if chances == 0 {
                return Serve::Stop;
            }
            if !shelf.can_claim(waiting.tag) {
                return Serve::Skip;
            }
            chances -= 1;
            match overdue.then(|| shelf.claim(waiting.tag)).flatten() {
                Some(claim) => Serve::Grant(claim),
                None => Serve::Nudge,
            }
        },
    );
}

impl<K: Key, M: KeyedManager<K>> Shared<K, M> {
    pub(crate) fn new(config: Config, clock: Clock, manager: M) -> Self {
        let station =
            Station::builder(config.name.clone()).kind(StationKind::Pool).parallelism(config.max_size).build();
        let events = Events::new("pool", &config.name);
        let shelf = Shelf::new(config.max_size, config.max_per_key);
        Self { monitor: Monitor::new(shelf, clock), manager, config, station, events }
    }

    /// When a call that names no deadline gives up; `None` is never.
    pub(crate) fn default_deadline(&self) -> Option<Instant> {
        self.monitor.clock().after(self.config.get_timeout)
    }

    pub(crate) fn get(
        self: &Arc<Self>,
        key: &K,
        deadline: Option<Instant>,
        wait: bool,
    ) -> Result<Connection<K, M>, GetError<M::Error>> {
        let (mut shelf, mut now) = self.lock_swept();
        let mut claim = shelf.claim(key);
        // C6: what parks is timed each time.
        let since = (claim.is_none() && wait).then(Instant::now);
        if since.is_some() {
            let tag = key.clone();
            self.station.arrived(1);
            claim = shelf.wait_turn(|shelf| &mut shelf.waiters, deadline, tag, |shelf| shelf.claim(key));
            now = shelf.now();
        }
        let late = deadline.is_some_and(|deadline| deadline <= now);
        let at_once = matches!(&claim, Some(Claim::Idle(held)) if self.is_trusted(held, now));
        let mut unwanted = Vec::new();
        // A handed-over claim can come after a close or the deadline. Who is out of time gets what is there, but must not
        // cost anybody a connection by a check or an eviction that has no time to succeed.
        if shelf.closed || (late && !at_once) {
            if let Some(claim) = claim.take() {
                shelf.undo(key, claim);
            }
            if shelf.closed {
                unwanted = shelf.take_all_idle();
            }
        }
        grant_next(&mut shelf);
        let Some(claim) = claim else {
            let reason = match (shelf.closed, wait) {
                (true, _) => Refusal::Closed,
                (false, true) => Refusal::TimedOut,
                // With room it would have connected, had there been time.
                (false, false) if late => Refusal::TimedOut,
                (false, false) => Refusal::Full,
            };
            let state = since.is_some().then(|| Box::new(self.state(&shelf)));
            drop(shelf);
            match since {
                Some(_) => self.station.departed(Departure::Returned, 1),
                None => self.station.refused(1),
            }
            self.retire_all(unwanted);
            return Err(GetError::refused(reason, state));
        };
        drop(shelf);
        if since.is_none() {
            self.station.arrived(1);
        }
        self.station.began(1);
        let timed = since.is_some() || !at_once || sampled();
        if timed {
            self.station.waited(since.map_or(Duration::ZERO, |since| since.elapsed()));
        }
        // From here on the place is given up unless it ends in a `Connection`, also when the manager panics.
        let serving = Serving { station: &self.station, taken: timed.then(Instant::now) };
        let place = Place { shared: self, key };
        let held = match claim {
            Claim::Idle(held) if at_once => held,
            claim => self.make_ready(key, claim, now, deadline)?,
        };
        let taken = serving.taken;
        std::mem::forget((place, serving));
        Ok(Connection::new(self, held, taken))
    }

    /// The lock, with nothing idle for too long behind it, and the time.
    fn lock_swept(&self) -> (LockedShelf<'_, K, M::Connection>, Instant) {
        let mut shelf = self.monitor.lock();
        let mut now = shelf.now();
        if let Some(idle_timeout) = self.config.idle_timeout {
            let expired = shelf.take_expired(now, idle_timeout);
            if !expired.is_empty() {
                drop(shelf);
                self.retire_all(expired);
                shelf = self.monitor.lock();
                now = shelf.now();
            }
        }
        (shelf, now)
    }

    /// Makes a connection of a claim: checks the idle one, or closes the evicted one and connects.
    fn make_ready(
        &self,
        key: &K,
        claim: Claim<K, M::Connection>,
        now: Instant,
        deadline: Option<Instant>,
    ) -> Result<Held<K, M::Connection>, GetError<M::Error>> {
        let checked = match claim {
            Claim::Idle(held) => self.check(held, now, deadline),
            Claim::Place { evicted } => {
                if let Some(held) = evicted {
                    let cold = self.close_one(held);
                    let mut shelf = self.monitor.lock();
                    shelf.leave_key(&cold);
                    grant_next(&mut shelf);
                }
                None
            }
            Claim::Closed => None,
        };
        let held = match checked {
            Some(held) => held,
            None => {
                let budget = self.budget(deadline);
                if budget.is_zero() {
                    return Err(GetError::refused(Refusal::TimedOut, None));
                }
                let connection = self.manager.connect(key, budget).map_err(GetError::connect)?;
                let key = key.clone();
                let mut shelf = self.monitor.lock();
                let now = shelf.now();
                shelf.admit(key, connection, now)
            }
        };
        if self.monitor.lock().closed {
            // Closed while it was being made or checked: nobody gets it.
            self.close_one(held);
            return Err(GetError::refused(Refusal::Closed, None));
        }
        Ok(held)
    }

    /// Gives the idle connection back if it is still good, else closes it.
    fn check(
        &self,
        mut held: Held<K, M::Connection>,
        now: Instant,
        deadline: Option<Instant>,
    ) -> Option<Held<K, M::Connection>> {
        if !self.outlived(&held, now) {
            if self.is_trusted(&held, now) {
                return Some(held);
            }
            let budget = self.budget(deadline);
            let validate = || self.manager.validate(&held.key, &mut held.connection, budget);
            match catch_unwind(AssertUnwindSafe(validate)) {
                Ok(Ok(())) => return Some(held),
                Ok(Err(error)) => self.events.emit(Event::Reconnect, || format!("an idle connection is gone: {error}")),
                Err(panic) => {
                    self.close_one(held);
                    resume_unwind(panic);
                }
            }
        }
        self.close_one(held);
        None
    }

    /// Whether it can be handed out unchecked.
    fn is_trusted(&self, held: &Held<K, M::Connection>, now: Instant) -> bool {
        now.saturating_duration_since(held.last_used) < self.config.validate_after && !self.outlived(held, now)
    }

    fn outlived(&self, held: &Held<K, M::Connection>, now: Instant) -> bool {
        self.config.max_lifetime.is_some_and(|limit| now.saturating_duration_since(held.created) >= limit)
    }

    /// What is left of the caller's time; no deadline is all the time there is.
    fn budget(&self, deadline: Option<Instant>) -> Duration {
        let clock = self.monitor.clock();
        deadline.map_or(Duration::MAX, |deadline| deadline.saturating_duration_since(clock.now()))
    }

    /// Gives a connection to the manager to close; its place is still taken. A panic is not the caller's concern: contained
    /// and reported.
    fn close_one(&self, held: Held<K, M::Connection>) -> K {
        let Held { key, connection, .. } = held;
        if let Err(failure) = contain(|| self.manager.close(&key, connection)) {
            self.events.emit(Event::Panic, || format!("closing a connection: {failure}"));
        }
        key
    }

    /// Closes a connection and then gives up its place: never more than `max_size`, those being closed included.
    pub(crate) fn retire(&self, held: Held<K, M::Connection>) {
        let key = self.close_one(held);
        drop(Place { shared: self, key: &key });
    }

    fn retire_all(&self, connections: Vec<Held<K, M::Connection>>) {
        for held in connections {
            self.retire(held);
        }
    }

    pub(crate) fn give_back(&self, mut held: Held<K, M::Connection>) {
        let usable = !std::thread::panicking() && !self.is_broken(&mut held);
        let mut shelf = self.monitor.lock();
        let now = shelf.now();
        if usable && !shelf.closed && !self.outlived(&held, now) {
            shelf.put_back(held, now);
            grant_next(&mut shelf);
        } else {
            drop(shelf);
            self.retire(held);
        }
    }

    fn is_broken(&self, held: &mut Held<K, M::Connection>) -> bool {
        match contain(|| self.manager.is_broken(&held.key, &mut held.connection)) {
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

    pub(crate) fn close(&self) {
        let idle = {
            let mut shelf = self.monitor.lock();
            shelf.closed = true;
            shelf.notify_all(|shelf| &mut shelf.waiters);
            shelf.take_all_idle()
        };
        self.retire_all(idle);
    }

    pub(crate) fn close_within(&self, limit: Duration) -> Result<(), Undelivered<()>> {
        let deadline = self.monitor.clock().after(limit);
        self.close();
        let mut shelf = self.monitor.lock();
        shelf.wait_until(|shelf| &mut shelf.all_back, deadline, |shelf| shelf.out() == 0);
        let out = shelf.out();
        drop(shelf);
        Undelivered::new(Vec::new(), out, Vec::new()).into_result()
    }

    pub(crate) fn state_now(&self) -> PoolState {
        self.state(&self.monitor.lock())
    }

    fn state(&self, shelf: &LockedShelf<'_, K, M::Connection>) -> PoolState {
        let waited = |since| shelf.now().saturating_duration_since(since);
        PoolState {
            name: self.config.name.clone(),
            max_size: self.config.max_size,
            size: shelf.size(),
            idle: shelf.idle(),
            waiting: shelf.waiters.len(),
            oldest_wait: shelf.waiters.oldest().map_or(Duration::ZERO, waited),
        }
    }
}

/// Counts a checkout that began as failed, unless it is forgotten because it ended well.
struct Serving<'a> {
    station: &'a Station,
    taken: Option<Instant>,
}

impl Drop for Serving<'_> {
    fn drop(&mut self) {
        if let Some(taken) = self.taken {
            self.station.took(taken.elapsed());
        }
        self.station.ended(Outcome::Failed, 1);
    }
}

#[cfg(all(test, not(fullbore_loom)))]
mod tests {
    use std::sync::Arc;
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    use fullbore_core::{Clock, FAIR_AFTER, PausedClock};

    use super::{Shared, grant_next};
    use crate::config::Config;
    use crate::manager::KeyedManager;
    use crate::shelf::Claim;

    struct Plain;

    impl KeyedManager<char> for Plain {
        type Connection = ();
        type Error = std::io::Error;
        fn connect(&self, _: &char, _: Duration) -> std::io::Result<()> {
            Ok(())
        }
        fn validate(&self, _: &char, (): &mut (), _: Duration) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn shared(clock: &PausedClock, max_size: usize, max_per_key: usize) -> Arc<Shared<char, Plain>> {
        let config = Config { max_size, max_per_key, ..Config::default() };
        Arc::new(Shared::new(config, Clock::from(clock), Plain))
    }

    #[test]
    fn what_was_handed_over_before_the_close_is_not_given_after_it() {
        for idle in [false, true] {
            let clock = PausedClock::new();
            let shared = shared(&clock, 1, 1);
            assert!(matches!(shared.monitor.lock().claim(&'a'), Some(Claim::Place { evicted: None })));
            thread::scope(|scope| {
                let waiter = scope.spawn(|| shared.get(&'b', None, true).map(drop));
                clock.wait_for_waiters(1);
                clock.advance(FAIR_AFTER);
                // Under one lock, so that the waiter cannot run in between.
                let mut shelf = shared.monitor.lock();
                if idle {
                    let held = shelf.admit('a', (), clock.now());
                    shelf.put_back(held, clock.now());
                } else {
                    shelf.give_up_place(&'a');
                }
                grant_next(&mut shelf);
                assert_eq!((shelf.waiters.len(), shelf.out()), (0, 1), "handed over");
                shelf.closed = true;
                drop(shelf);
                assert!(waiter.join().unwrap().unwrap_err().is_closed());
            });
            assert_eq!(shared.state_now().size, 0);
        }
    }

    #[test]
    fn what_was_handed_over_before_the_deadline_and_seen_after_it_is_not_wasted() {
        let clock = PausedClock::new();
        let shared = shared(&clock, 1, 1);
        assert!(matches!(shared.monitor.lock().claim(&'a'), Some(Claim::Place { evicted: None })));
        thread::scope(|scope| {
            let deadline = clock.now() + FAIR_AFTER * 2;
            let waiter = scope.spawn(|| shared.get(&'b', Some(clock.now() + FAIR_AFTER * 2), true).map(drop));
            clock.wait_for_waiters(1);
            clock.advance(FAIR_AFTER);
            let mut shelf = shared.monitor.lock();
            let held = shelf.admit('a', (), clock.now());
            let id = held.id;
            shelf.put_back(held, clock.now());
            grant_next(&mut shelf);
            assert_eq!((shelf.waiters.len(), shelf.idle()), (0, 0), "handed over, with an eviction");
            clock.advance(FAIR_AFTER);
            assert!(clock.now() >= deadline);
            drop(shelf);
            assert!(waiter.join().unwrap().unwrap_err().is_timeout());
            assert_eq!(shared.get(&'a', None, false).unwrap().id(), id, "not evicted");
        });
    }

    #[test]
    fn a_place_that_an_overtaker_left_goes_to_whoever_can_use_it() {
        let clock = PausedClock::new();
        let shared = shared(&clock, 2, 1);
        for key in ['a', 'x'] {
            assert!(shared.monitor.lock().claim(&key).is_some());
        }
        let (done, is_done) = mpsc::channel();
        thread::scope(|scope| {
            for (n, key) in ['a', 'a', 'b'].into_iter().enumerate() {
                let (shared, done) = (&shared, done.clone());
                scope.spawn(move || {
                    let got = shared.get(&key, None, true);
                    done.send((key, got.is_ok())).unwrap();
                });
                clock.wait_for_waiters(n + 1);
            }
            // Under one lock: both come back, and one is taken before any waiter has run. Both waiters for `a` were told.
            let mut shelf = shared.monitor.lock();
            for key in ['a', 'x'] {
                let held = shelf.admit(key, (), clock.now());
                shelf.put_back(held, clock.now());
                grant_next(&mut shelf);
            }
            assert!(matches!(shelf.claim(&'a'), Some(Claim::Idle(_))));
            grant_next(&mut shelf);
            drop(shelf);
            assert_eq!(is_done.recv().unwrap(), ('b', true));
            let mut shelf = shared.monitor.lock();
            shelf.give_up_place(&'a');
            grant_next(&mut shelf);
        });
        assert_eq!(shared.state_now().waiting, 0);
    }
}
