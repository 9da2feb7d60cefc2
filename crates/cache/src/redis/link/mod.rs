//! The link: one connection that Redis tells of every change below the prefix, and the one thread that listens to it.
//!
//! Also what hangs on it: who waits for a change of which key, whether what this process remembers can be trusted (*up*), the
//! server's clock, and the sequence that orders changes of tags.

mod worker;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use fullbore_core::{BuildError, Clock, Crew, Monitor, WaitFor, Waiters};
use fullbore_metrics::Counter;
use redis::{Client, Cmd, RedisError, cmd};

use crate::redis::frame::Moment;
use crate::redis::space::Space;
use crate::redis::wire::Lua;
use worker::Worker;

/// How long a process is believed to live after it said so.
const OWNER_LIFE: Duration = Duration::from_secs(3);
/// Leases that could not be given back at once and wait for the link.
const MAX_DEBTS: usize = 1 << 16;

/// Who is told of what happens. Called on the link's thread, under no lock.
pub(crate) trait Heard: Send + Sync {
    fn key(&self, encoded: &[u8]);
    fn tag(&self, tag: &str);
    fn flushed(&self);
    fn lost(&self);
    fn regained(&self);
}

/// What the link is called and where it connects to.
pub(crate) struct Plan {
    pub(crate) name: String,
    pub(crate) client: Client,
    pub(crate) space: Arc<Space>,
    pub(crate) connect_timeout: Duration,
    pub(crate) abandon: Arc<Lua>,
    /// Has the pool make its connections anew.
    pub(crate) renew: Box<dyn Fn() + Send>,
}

/// Why the link is down.
#[derive(Clone, Debug)]
pub(crate) enum Why {
    /// No connection, or it broke.
    Unreachable(Arc<RedisError>),
    /// Redis does not know `HELLO 3`, or not this kind of tracking.
    TooOld(String),
    /// The user or his password is wrong.
    Credentials(String),
    /// The user may not be told of changes.
    Permission(String),
    Silent,
    /// It is connected to another server than the pool: what is changed there is not told of here.
    Elsewhere,
    Closed,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Why::Unreachable(error) => write!(f, "{error}"),
            Why::TooOld(said) | Why::Credentials(said) | Why::Permission(said) => f.write_str(said),
            Why::Silent => f.write_str("no answer to PING"),
            Why::Elsewhere => f.write_str("other connections lead to another server"),
            Why::Closed => f.write_str("closed"),
        }
    }
}

#[derive(Default)]
pub(crate) struct LinkCounts {
    /// Keys of which a push told.
    pub(crate) pushes: Counter,
    pub(crate) losses: Counter,
    pub(crate) flushes: Counter,
    /// Keys below the prefix that no key of this cache has.
    pub(crate) strangers: Counter,
}

/// What the link's thread and those who use it share.
pub(crate) struct Shared {
    monitor: Monitor<State>,
    born: Instant,
    /// Whether tracking is on and what is remembered can be trusted. A copy of `State::up`, for those who need not be exact.
    up: AtomicBool,
    /// What to add to the time since `born` to have the server's, in microseconds: at least and at most.
    server_low: AtomicI64,
    server_high: AtomicI64,
    /// Leases that this process holds.
    leases: AtomicUsize,
    /// When it was last said that this process lives, in milliseconds since `born`, plus one.
    owner_said: AtomicU64,
    pub(crate) owner: [u8; 16],
    pub(crate) counts: LinkCounts,
    space: Arc<Space>,
}

struct State {
    up: bool,
    closing: bool,
    /// How the first attempt ended.
    first: Option<Result<(), Why>>,
    last_error: Option<Why>,
    /// Counts losses and flushes: who waited across one was perhaps not told.
    epoch: u64,
    interests: HashMap<Arc<[u8]>, Interested>,
    waiters: Waiters<(), Arc<[u8]>>,
    /// The link's thread between attempts.
    pause: Waiters,
    /// Those who wait for the first attempt.
    starting: Waiters,
    sequence: Option<Moment>,
    debts: Vec<(Arc<[u8]>, Vec<u8>)>,
    /// The server that the link is connected to, and that which the last connection of the pool led to.
    server: Option<String>,
    others: Option<String>,
}

struct Interested {
    count: usize,
    /// How often the key was told of.
    told: u64,
}

/// No time of the server is known.
const UNKNOWN: i64 = i64::MIN;

pub(crate) struct Link {
    pub(crate) shared: Arc<Shared>,
    crew: Crew,
}

/// Somebody wants to know of changes of a key, from when this was made.
pub(crate) struct Interest<'a> {
    shared: &'a Shared,
    key: Arc<[u8]>,
    told: u64,
    epoch: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Woken {
    /// The key changed, or may have.
    Told,
    TimedOut,
    /// The link is down: nobody would be told.
    Down,
}

impl Link {
    /// Starts the thread and waits until its first attempt is over.
    pub(crate) fn start(
        plan: Plan,
        owner: [u8; 16],
        heard: Arc<dyn Heard>,
    ) -> Result<(Self, Result<(), Why>), BuildError> {
        let clock = Clock::Real;
        let state = State {
            up: false,
            closing: false,
            first: None,
            last_error: None,
            epoch: 0,
            interests: HashMap::new(),
            waiters: Waiters::of(WaitFor::Threads),
            pause: Waiters::of(WaitFor::Background),
            starting: Waiters::of(WaitFor::Threads),
            sequence: None,
            debts: Vec::new(),
            server: None,
            others: None,
        };
        let shared = Arc::new(Shared {
            monitor: Monitor::new(state, clock.clone()),
            born: Instant::now(),
            up: AtomicBool::new(false),
            server_low: AtomicI64::new(UNKNOWN),
            server_high: AtomicI64::new(UNKNOWN),
            leases: AtomicUsize::new(0),
            owner_said: AtomicU64::new(0),
            owner,
            counts: LinkCounts::default(),
            space: Arc::clone(&plan.space),
        });
        let crew = Crew::new("cache", &format!("{}-link", plan.name), clock);
        let worker = Worker::new(plan, Arc::clone(&shared), heard);
        crew.spawn(move || worker.run())?;
        let link = Self { shared, crew };
        let first = {
            let mut state = link.shared.monitor.lock();
            // The attempt itself has a deadline.
            state.wait_until(|state| &mut state.starting, None, |state| state.first.is_some());
            state.first.clone().unwrap_or(Err(Why::Closed))
        };
        Ok((link, first))
    }

    /// Tells the thread to end. Where it is reading it sees that at the next push or beat.
    pub(crate) fn close(&self) {
        let mut state = self.shared.monitor.lock();
        state.closing = true;
        state.notify_all(|state| &mut state.pause);
        state.notify_all(|state| &mut state.starting);
        state.notify_all(|state| &mut state.waiters);
    }

    /// Waits for the thread's end.
    pub(crate) fn join(&self, deadline: Option<Instant>) -> Vec<String> {
        self.crew.join(deadline)
    }
}

impl Shared {
    pub(crate) fn is_up(&self) -> bool {
        // ORDERING: Acquire pairs with the Release in `set_up`.
        self.up.load(Ordering::Acquire)
    }

    pub(crate) fn last_error(&self) -> Option<Why> {
        self.monitor.lock().last_error.clone()
    }

    /// Where the sequence stands, or stood a moment ago; `None` while the link is down.
    pub(crate) fn sequence(&self) -> Option<Moment> {
        self.monitor.lock().sequence
    }

    /// The sequence has moved on, and the link has perhaps not been told of that yet: who needs it asks.
    pub(crate) fn forget_sequence(&self) {
        self.monitor.lock().sequence = None;
    }

    /// Counts the times when what was heard from the link stopped being complete.
    pub(crate) fn epoch(&self) -> Option<u64> {
        let state = self.monitor.lock();
        state.up.then_some(state.epoch)
    }

    /// A connection of the pool leads to this server. If the link is connected to another one, as after a failover, it is as
    /// good as lost.
    pub(crate) fn others_lead_to(&self, server: Option<String>) {
        if server.is_some() {
            self.monitor.lock().others = server;
        }
    }

    fn local(&self) -> i64 {
        i64::try_from(self.born.elapsed().as_micros()).unwrap_or(i64::MAX)
    }

    /// The server's time in microseconds, at least and at most.
    pub(crate) fn server_time(&self) -> Option<(u64, u64)> {
        // ORDERING: Relaxed: each is by itself a bound that holds.
        let (low, high) = (self.server_low.load(Ordering::Relaxed), self.server_high.load(Ordering::Relaxed));
        if low == UNKNOWN || high == UNKNOWN {
            return None;
        }
        let local = self.local();
        Some((u64::try_from(local + low).ok()?, u64::try_from(local + high).ok()?))
    }

    /// Wants to be told of changes of `key` from now on.
    pub(crate) fn interest(&self, key: &Arc<[u8]>) -> Interest<'_> {
        let mut state = self.monitor.lock();
        let epoch = state.epoch;
        let interested = state.interests.entry(Arc::clone(key)).or_insert(Interested { count: 0, told: 0 });
        interested.count += 1;
        Interest { shared: self, key: Arc::clone(key), told: interested.told, epoch }
    }

    /// One more lease; whether Redis is to be told now that this process lives.
    pub(crate) fn lease_begins(&self, leases: usize) -> bool {
        // ORDERING: Relaxed here and below: a number that the link's thread looks at once a second.
        self.leases.fetch_add(leases, Ordering::Relaxed);
        let said = self.owner_said.load(Ordering::Relaxed);
        said == 0 || self.local() / 1000 + 1 - i64::try_from(said).unwrap_or(i64::MAX) > 1000
    }

    pub(crate) fn owner_said(&self) {
        self.owner_said.store(u64::try_from(self.local() / 1000).unwrap_or(0) + 1, Ordering::Relaxed);
    }

    pub(crate) fn leases_end(&self, leases: usize) {
        self.leases.fetch_sub(leases, Ordering::Relaxed);
    }

    pub(crate) fn leases(&self) -> usize {
        self.leases.load(Ordering::Relaxed)
    }

    /// What tells Redis that this process lives.
    pub(crate) fn alive(&self) -> Cmd {
        let mut alive = cmd("SET");
        alive.arg(self.space.owner(&self.owner)).arg("").arg("PX").arg(OWNER_LIFE.as_millis() as u64);
        alive
    }

    /// A lease that could not be given back: the link does it when it can.
    pub(crate) fn owe(&self, key: Arc<[u8]>, token: Vec<u8>) {
        let mut state = self.monitor.lock();
        // Beyond that the lease's own end must do.
        if state.debts.len() < MAX_DEBTS {
            state.debts.push((key, token));
        }
    }

    /// What a round was to give back, and perhaps did not: to give back what is not there any more does nothing.
    fn owe_again(&self, debts: Vec<(Arc<[u8]>, Vec<u8>)>) {
        self.monitor.lock().debts.extend(debts);
    }
}

impl Interest<'_> {
    /// Waits for a change since this was made, or since the last wait ended with [`Woken::Told`].
    pub(crate) fn wait(&mut self, until: Option<Instant>) -> Woken {
        let Self { shared, key, told, epoch } = self;
        let mut woken = Woken::TimedOut;
        let mut state = shared.monitor.lock();
        state.wait_turn(
            |state| &mut state.waiters,
            until,
            Arc::clone(key),
            |state| {
                let now = state.interests.get(&**key).map_or(0, |interested| interested.told);
                if !state.up || state.closing {
                    woken = Woken::Down;
                } else if now != *told || state.epoch != *epoch {
                    (*told, *epoch) = (now, state.epoch);
                    woken = Woken::Told;
                } else {
                    return None;
                }
                Some(())
            },
        );
        woken
    }
}

impl Drop for Interest<'_> {
    fn drop(&mut self) {
        let mut state = self.shared.monitor.lock();
        if let Some(interested) = state.interests.get_mut(&self.key) {
            interested.count -= 1;
            if interested.count == 0 {
                state.interests.remove(&self.key);
            }
        }
    }
}

impl Why {
    /// Whether waiting may help. The others want other settings.
    pub(crate) fn is_unreachable(&self) -> bool {
        matches!(self, Why::Unreachable(_) | Why::Silent | Why::Elsewhere | Why::Closed)
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("up", &self.shared.is_up()).finish_non_exhaustive()
    }
}

/// Bytes that nobody can guess and no other process has.
pub(crate) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    if getrandom::fill(&mut bytes).is_err() {
        // A system without a source of chance: time and place must do, as it is only for being different.
        let here = std::ptr::from_ref(&bytes) as usize as u64;
        let now = std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_nanos() as u64);
        for (at, byte) in bytes.iter_mut().enumerate() {
            let seed = [here, now, u64::from(std::process::id()), at as u64].map(u64::to_le_bytes).concat();
            *byte = xxhash_rust::xxh3::xxh3_64(&seed) as u8;
        }
    }
    bytes
}

/// The beginning of a sequence.
pub(crate) fn new_epoch() -> String {
    format!("{}:0", u64::from_le_bytes(random()))
}
