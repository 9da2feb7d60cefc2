//! How accounts are kept: one for each thread, written by it alone, readable at any time.
//!
//! An account is there twice. A switch brings the copy up to date that readers are not pointed at, then points them to it by
//! counting `version` up; so while a thread is at rest, or stopped in the middle of a switch, the copy that readers are pointed
//! at does not change. A reader that finds the version to have moved reads again: it is repeated only by progress of the
//! thread.
//!
//! - **A1** Only the thread itself writes its copies and its version.
//! - **A2** Copy `version % 2` is complete, and is not written before `version` has gone up.
//! - **A3** In each copy: the sum of `parts` is `since` minus the beginning of the account.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering, fence};
use std::time::Instant;

use fullbore_core::{WaitFor, observe_waits};
use parking_lot::Mutex;

use super::account::{NAMES, OTHER, PARTS, PLAIN, ThreadAccount};
use super::{Accounts, Activity, Depth};

/// Activities deeper than this count for the one at this depth.
const LEVELS: usize = 32;

#[derive(Default)]
struct Copy {
    parts: [AtomicU64; PARTS],
    /// What the thread is at, and since when, in nanoseconds since the beginning of the account.
    current: AtomicUsize,
    since: AtomicU64,
}

/// What readers see of a thread's account.
struct Shared {
    name: Option<String>,
    begun: Instant,
    version: AtomicU64,
    copies: [Copy; 2],
    /// Set once each, in order, before the part is first used.
    names: [OnceLock<&'static str>; NAMES],
}

/// A switch: `spent` nanoseconds at `part`, and since `at` the thread is at `next`.
#[derive(Clone, Copy, Default)]
struct Switch {
    part: usize,
    spent: u64,
    next: usize,
    at: u64,
}

/// What only the thread itself knows.
struct Own {
    shared: Arc<Shared>,
    /// The parts entered and not left, with the serial number of their guards.
    nest: Vec<(usize, u64)>,
    serial: u64,
    /// What the other copy has not been told yet.
    last: Switch,
    /// The wait in one of our own primitives that the thread is in.
    parked: Option<Depth>,
}

struct Ledger {
    live: Vec<Arc<Shared>>,
    ended: ThreadAccount,
}

static LEDGER: Mutex<Ledger> =
    Mutex::new(Ledger { live: Vec::new(), ended: ThreadAccount { name: None, parts: Vec::new() } });

thread_local!(static OWN: Ending = Ending { own: RefCell::new(Own::begin()) });

struct Ending {
    own: RefCell<Own>,
}

impl Drop for Ending {
    fn drop(&mut self) {
        let own = self.own.get_mut();
        own.switch(own.last.next);
        let mut ledger = LEDGER.lock();
        ledger.live.retain(|live| !Arc::ptr_eq(live, &own.shared));
        let account = own.shared.read_at(own.last.at);
        ledger.ended.merge(&account);
    }
}

/// Runs `f` with the calling thread's account; none if the thread has closed it.
fn own<R>(f: impl FnOnce(&mut Own) -> R) -> Option<R> {
    OWN.try_with(|ending| ending.own.try_borrow_mut().ok().map(|mut own| f(&mut own))).ok().flatten()
}

pub(super) fn enter(activity: Activity) -> Option<Depth> {
    own(|own| own.enter(activity))
}

pub(super) fn leave(depth: Depth) {
    own(|own| own.leave(depth));
}

pub(super) fn of_this_thread() -> ThreadAccount {
    own(|own| own.shared.read()).unwrap_or_default()
}

pub(super) fn accounts() -> Accounts {
    observe();
    let ledger = LEDGER.lock();
    Accounts { threads: ledger.live.iter().map(|thread| thread.read()).collect(), ended: ledger.ended.clone() }
}

/// Has our own primitives tell of their waits. Until somebody asks for an account, they have nobody to tell.
fn observe() {
    // False if it is done already, or somebody else's observer is there: then waits count for what they are within.
    let _ = observe_waits(waits);
}

/// What our own primitives say about the waits of the calling thread.
fn waits(wait_for: WaitFor, begins: bool) {
    let activity = match wait_for {
        WaitFor::Work | WaitFor::Background => Activity::Idle,
        WaitFor::Place => Activity::Push,
        WaitFor::Permit => Activity::Permit,
        WaitFor::Result => Activity::Queue,
        _ => Activity::Coordinate,
    };
    own(|own| match begins {
        true => own.parked = Some(own.enter(activity)),
        false => own.parked.take().into_iter().for_each(|depth| own.leave(depth)),
    });
}

impl Own {
    fn begin() -> Self {
        observe();
        let shared = Arc::new(Shared {
            name: std::thread::current().name().map(str::to_owned),
            begun: Instant::now(),
            version: AtomicU64::new(0),
            copies: Default::default(),
            names: [const { OnceLock::new() }; NAMES],
        });
        LEDGER.lock().live.push(Arc::clone(&shared));
        Self { shared, nest: Vec::with_capacity(LEVELS), serial: 0, last: Switch::default(), parked: None }
    }

    fn enter(&mut self, activity: Activity) -> Depth {
        self.serial += 1;
        let depth = Depth { level: self.nest.len(), serial: self.serial };
        if depth.level < LEVELS {
            let part = self.shared.part(activity);
            self.nest.push((part, self.serial));
            self.switch(part);
        }
        depth
    }

    fn leave(&mut self, depth: Depth) {
        // Not there if one that was entered before has ended it, or if it was too deep to be noted.
        if self.nest.get(depth.level).is_some_and(|(_, serial)| *serial == depth.serial) {
            self.nest.truncate(depth.level);
            let outer = self.nest.last().map_or(0, |(part, _)| *part);
            self.switch(outer);
        }
    }

    fn switch(&mut self, next: usize) {
        let shared = &*self.shared;
        let at = shared.now().max(self.last.at);
        let switch = Switch { part: self.last.next, spent: at - self.last.at, next, at };
        let version = shared.version.load(Ordering::Relaxed) + 1;
        let copy = &shared.copies[(version % 2) as usize];
        // ORDERING: whoever sees one of the stores below sees the version before them, that is, that this copy is not to be
        // read any more: this fence pairs with the one in `read_at`.
        fence(Ordering::Release);
        for Switch { part, spent, .. } in [self.last, switch] {
            let sum = &copy.parts[part];
            sum.store(sum.load(Ordering::Relaxed) + spent, Ordering::Relaxed);
        }
        copy.current.store(switch.next, Ordering::Relaxed);
        copy.since.store(switch.at, Ordering::Relaxed);
        // ORDERING: Release pairs with the Acquire in `read_at`: who is pointed at the copy sees all of it (A2).
        shared.version.store(version, Ordering::Release);
        self.last = switch;
    }
}

impl Shared {
    fn now(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Where an activity is booked. Only called by the thread itself.
    fn part(&self, activity: Activity) -> usize {
        let Activity::External(name) = activity else {
            return PLAIN.iter().position(|plain| *plain == activity).unwrap_or(0);
        };
        let place = self.names.iter().position(|known| *known.get_or_init(|| name) == name);
        PLAIN.len() + place.unwrap_or(NAMES)
    }

    fn activity(&self, part: usize) -> Activity {
        let name = || self.names.get(part - PLAIN.len()).and_then(OnceLock::get);
        PLAIN.get(part).copied().unwrap_or_else(|| Activity::External(name().copied().unwrap_or(OTHER)))
    }

    fn read(&self) -> ThreadAccount {
        self.read_at(self.now())
    }

    /// The account at a moment since its beginning, or later if the thread has switched since.
    fn read_at(&self, now: u64) -> ThreadAccount {
        loop {
            // ORDERING: Acquire pairs with the Release in `switch`.
            let version = self.version.load(Ordering::Acquire);
            let copy = &self.copies[(version % 2) as usize];
            let mut parts = [0; PARTS];
            for (read, part) in parts.iter_mut().zip(&copy.parts) {
                *read = part.load(Ordering::Relaxed);
            }
            let (current, since) = (copy.current.load(Ordering::Relaxed), copy.since.load(Ordering::Relaxed));
            // ORDERING: pairs with the fence in `switch`: had one of the loads above seen a store to this copy, the load below
            // would see a later version.
            fence(Ordering::Acquire);
            if self.version.load(Ordering::Relaxed) != version {
                continue;
            }
            parts[current] += now.saturating_sub(since);
            let spent = parts.into_iter().enumerate().filter(|(_, nanos)| *nanos > 0);
            let parts = spent.map(|(part, nanos)| (self.activity(part), nanos)).collect();
            return ThreadAccount { name: self.name.clone(), parts };
        }
    }
}
