//! The few threads that pools share: those that connect, check and close, and one that keeps the time.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use fullbore_core::{BuildError, Clock, Crew, Locked, Monitor, WaitFor, Waiters, contain};

use crate::fork;

/// Work for one of the threads.
pub(crate) type Job = Box<dyn FnOnce() + Send>;

/// What is looked after from time to time.
pub(crate) trait Keep: Send + Sync {
    /// Does what is due, and says when to come again. Runs no user code.
    fn keep(&self) -> Option<Instant>;
}

/// The threads in the background of one or many pools. A cheap handle; the threads end with the last one.
///
/// Connections are made, checked while idle, and idle ones closed on at most `max_connecting` threads, which are started when
/// there is work for them and stay. One more thread keeps the time. A thread that is stuck in a manager for longer than it may is
/// replaced, up to 32 of them. All pools of a process share one such set ([`Background::shared`]) unless a builder is given
/// another one: for a database whose driver has no timeouts, say, that is not to hold up the others.
///
/// ```
/// use fullbore_pool::Background;
///
/// let apart = Background::new(2)?;
/// assert_eq!(apart.max_connecting(), 2);
/// # Ok::<(), fullbore_core::BuildError>(())
/// ```
#[derive(Clone)]
pub struct Background {
    inner: Arc<Inner>,
}

/// Counted apart from what the threads hold.
struct Inner {
    shared: Arc<Monitor<State>>,
    workers: Arc<Crew>,
    keeper: Crew,
    max_connecting: usize,
    /// The process that has the threads.
    forks: u32,
}

/// Threads that are stuck in user code for longer than they were allowed are replaced, so many times.
const LOST: usize = 32;

struct State {
    jobs: VecDeque<(Job, Option<Duration>)>,
    /// Threads that wait for a job.
    idle: usize,
    /// Threads that were started and have not ended.
    alive: usize,
    /// The ends of the jobs under way, by number: who is not through by then is lost.
    running: BTreeMap<u64, Option<Instant>>,
    /// Jobs that were not through in time and whose threads have been replaced.
    lost: Vec<u64>,
    next: u64,
    /// When to come to whom. The second part tells those of one moment apart.
    due: BTreeMap<(Instant, u64), Weak<dyn Keep>>,
    /// The same the other way round.
    whens: HashMap<u64, Instant>,
    keeper: bool,
    stop: bool,
    work: Waiters,
    time: Waiters,
}

impl State {
    fn new() -> Self {
        Self {
            jobs: VecDeque::new(),
            idle: 0,
            alive: 0,
            running: BTreeMap::new(),
            lost: Vec::new(),
            next: 0,
            due: BTreeMap::new(),
            whens: HashMap::new(),
            keeper: false,
            stop: false,
            work: Waiters::of(WaitFor::Background),
            time: Waiters::of(WaitFor::Background),
        }
    }

    /// Threads that can be counted on. Those of lost jobs may never come back.
    fn present(&self) -> usize {
        self.alive - self.lost.len().min(LOST)
    }

    /// When the keeper has to look next.
    fn next_look(&self) -> Option<Instant> {
        let due = self.due.keys().next().map(|(at, _)| *at);
        let overrun = self.running.values().flatten().min().copied();
        match (due, overrun) {
            (Some(due), Some(overrun)) => Some(due.min(overrun)),
            (due, overrun) => due.or(overrun),
        }
    }
}

impl Background {
    /// What [`shared`](Self::shared) has.
    pub const DEFAULT_MAX_CONNECTING: usize = 8;

    /// Threads of their own. `max_connecting` is how many connections are made at once, for all pools that share them: a
    /// server that starts again is asked for so many at a time.
    ///
    /// # Errors
    /// [`BuildError::Config`] for zero.
    pub fn new(max_connecting: usize) -> Result<Self, BuildError> {
        Self::on(max_connecting, Clock::Real)
    }

    /// As [`new`](Self::new), with the time of `clock`: for tests, in which the pools have the same one.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn on(max_connecting: usize, clock: impl Into<Clock>) -> Result<Self, BuildError> {
        BuildError::refuse_zero("max_connecting", max_connecting)?;
        fork::watch();
        let clock = clock.into();
        let inner = Inner {
            workers: Arc::new(Crew::new("pool", "connect", clock.clone())),
            keeper: Crew::new("pool", "keeper", clock.clone()),
            shared: Arc::new(Monitor::new(State::new(), clock)),
            max_connecting,
            forks: fork::generation(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The set that pools share which are given no other: 8 at once.
    #[must_use]
    pub fn shared() -> Self {
        static SHARED: Mutex<Weak<Inner>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        // In a child the parent's is still there, but none of its threads.
        if let Some(inner) = shared.upgrade().filter(|inner| inner.forks == fork::generation()) {
            return Self { inner };
        }
        let made = Self::on(Self::DEFAULT_MAX_CONNECTING, Clock::Real).expect("8 is not 0");
        *shared = Arc::downgrade(&made.inner);
        made
    }

    /// How many connections are made at once.
    #[must_use]
    pub fn max_connecting(&self) -> usize {
        self.inner.max_connecting
    }

    /// Runs `job` on one of the threads. `limit` is how long it may take before it is given up and its thread replaced.
    /// Where there is no thread to be had it runs here.
    pub(crate) fn submit(&self, job: Job, limit: Option<Duration>) {
        #[cfg(fullbore_loom)]
        {
            let _ = limit;
            job();
        }
        #[cfg(not(fullbore_loom))]
        self.inner.submit(job, limit);
    }

    /// Has `keep` called at `at`, or earlier if it was due earlier. `id` tells it apart.
    pub(crate) fn look_after(&self, id: u64, keep: &Weak<dyn Keep>, at: Instant) {
        #[cfg(fullbore_loom)]
        let _ = (id, keep, at);
        #[cfg(not(fullbore_loom))]
        self.inner.look_after(id, keep, at);
    }

    /// Whether its threads are those of this process's parent.
    pub(crate) fn is_forked(&self) -> bool {
        self.inner.forks != fork::generation()
    }

    /// Whether it goes by this clock.
    pub(crate) fn is_on(&self, clock: &Clock) -> bool {
        self.inner.shared.clock().is_same(clock)
    }
}

#[cfg_attr(fullbore_loom, expect(dead_code, reason = "no threads in models"))]
impl Inner {
    fn submit(&self, job: Job, limit: Option<Duration>) {
        let mut state = self.shared.lock();
        state.jobs.push_back((job, limit));
        staff(state, &self.shared, &self.workers, self.max_connecting);
    }

    fn look_after(&self, id: u64, keep: &Weak<dyn Keep>, at: Instant) {
        let mut state = self.shared.lock();
        match state.whens.get(&id) {
            Some(earlier) if *earlier <= at && state.keeper => return,
            Some(later) => {
                let later = *later;
                state.due.remove(&(later, id));
            }
            None => {}
        }
        state.whens.insert(id, at);
        state.due.insert((at, id), Weak::clone(keep));
        self.wake_keeper(state);
    }

    /// Starts the thread that keeps the time, or lets it look again.
    fn wake_keeper(&self, mut state: Locked<'_, State>) {
        if std::mem::replace(&mut state.keeper, true) {
            state.notify_one(|state| &mut state.time);
            return;
        }
        drop(state);
        let (shared, workers, most) = (Arc::clone(&self.shared), Arc::clone(&self.workers), self.max_connecting);
        if self.keeper.spawn(move || keep_time(&shared, &workers, most)).is_err() {
            // The next one who comes tries again.
            self.shared.lock().keeper = false;
        }
    }
}

/// Sees to it that the first job in line has a thread, if there may be one more.
fn staff(mut state: Locked<'_, State>, shared: &Arc<Monitor<State>>, workers: &Crew, most: usize) {
    if state.idle >= state.jobs.len() || state.present() >= most {
        state.notify_one(|state| &mut state.work);
        return;
    }
    state.alive += 1;
    drop(state);
    let theirs = Arc::clone(shared);
    if workers.spawn(move || work(&theirs, most)).is_err() {
        let mut state = shared.lock();
        state.alive -= 1;
        // Whoever is there will come to it. Where nobody is, it is done here.
        let job = if state.present() == 0 { state.jobs.pop_front() } else { None };
        drop(state);
        if let Some((job, _)) = job {
            job();
        }
    }
}

/// A worker's life.
fn work(shared: &Monitor<State>, most: usize) {
    let mut state = shared.lock();
    loop {
        if state.stop || state.present() > most {
            break;
        }
        let Some((job, limit)) = state.jobs.pop_front() else {
            state.idle += 1;
            state.wait_until(|state| &mut state.work, None, |state| state.stop || !state.jobs.is_empty());
            state.idle -= 1;
            continue;
        };
        let number = state.next;
        state.next += 1;
        let end = limit.and_then(|limit| state.now().checked_add(limit));
        state.running.insert(number, end);
        if end.is_some() {
            state.notify_one(|state| &mut state.time);
        }
        state.released(|| {
            // Jobs contain the user code they call: what gets here is a bug of ours, which the panic hook has told of.
            drop(contain(job));
        });
        state.running.remove(&number);
        state.lost.retain(|lost| *lost != number);
    }
    state.alive -= 1;
}

/// The keeper's life.
fn keep_time(shared: &Arc<Monitor<State>>, workers: &Crew, most: usize) {
    let mut state = shared.lock();
    loop {
        if state.stop {
            return;
        }
        let now = state.now();
        let late: Vec<u64> = state
            .running
            .iter()
            .filter(|(_, end)| end.is_some_and(|end| end <= now))
            .map(|(number, _)| *number)
            .collect();
        if !late.is_empty() {
            for number in late {
                state.running.insert(number, None);
                state.lost.push(number);
                // A thread in its stead.
                if !state.jobs.is_empty() {
                    staff(state, shared, workers, most);
                    state = shared.lock();
                }
            }
            continue;
        }
        let due = state.due.first_key_value().map(|((at, id), _)| (*at, *id)).filter(|(at, _)| *at <= now);
        let Some(due) = due else {
            let next = state.next_look();
            state.wait_until(
                |state| &mut state.time,
                next,
                |state| state.stop || state.next_look().is_some_and(|look| next.is_none_or(|next| look < next)),
            );
            continue;
        };
        let keep = state.due.remove(&due);
        state.whens.remove(&due.1);
        let again = state.released(|| {
            let keep = keep?.upgrade()?;
            let again = Arc::downgrade(&keep);
            // No user code in there, unless this was the last handle: then the manager goes. Neither that nor a bug of ours may end
            // all other pools' care.
            contain(|| keep.keep().map(|at| (at, again))).ok().flatten()
        });
        if let Some((at, keep)) = again
            && state.whens.get(&due.1).is_none_or(|other| at < *other)
        {
            if let Some(other) = state.whens.insert(due.1, at) {
                state.due.remove(&(other, due.1));
            }
            state.due.insert((at, due.1), keep);
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if self.forks != fork::generation() {
            // The threads are the parent's, and the lock may be one of theirs.
            return;
        }
        let mut state = self.shared.lock();
        state.stop = true;
        // Nobody is left who would hear of them: a pool that is still there has a handle.
        let jobs = std::mem::take(&mut state.jobs);
        let busy = state.running.len();
        state.notify_all(|state| &mut state.work);
        state.notify_all(|state| &mut state.time);
        drop(state);
        drop(jobs);
        if !self.keeper.is_member() {
            self.keeper.join(None);
        }
        if !self.workers.is_member() {
            self.workers.wait_for_all_but(busy);
        }
        // Those that are in user code end when they come out of it.
        self.workers.join(Some(self.shared.clock().now()));
    }
}

impl fmt::Debug for Background {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (threads, waiting, lost) = {
            let state = self.inner.shared.lock();
            (state.alive, state.jobs.len(), state.lost.len())
        };
        f.debug_struct("Background")
            .field("max_connecting", &self.inner.max_connecting)
            .field("threads", &threads)
            .field("waiting", &waiting)
            .field("lost", &lost)
            .finish()
    }
}
