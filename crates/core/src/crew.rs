//! Our own threads: named, counted, joined, and reported when they are stuck in user code.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::clock::Clock;
use crate::error::{BuildError, contain};
use crate::monitor::{Monitor, Waiters};

/// What dropping an owner does with accepted work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum OnDrop {
    /// Finish it, for at most this long.
    Drain(Duration),
    /// Leave it: what was not begun is dropped and counted.
    Abandon,
}

impl OnDrop {
    /// How long a drop may take here and now: nothing while the thread is panicking.
    #[must_use]
    pub fn budget(self) -> Duration {
        match self {
            OnDrop::Drain(limit) if !thread::panicking() => limit,
            _ => Duration::ZERO,
        }
    }
}

impl Default for OnDrop {
    /// Drains for at most 5 seconds.
    fn default() -> Self {
        OnDrop::Drain(Duration::from_secs(5))
    }
}

thread_local! {
    /// The crew that the thread belongs to; 0 for threads that are not ours.
    static CREW: Cell<u64> = const { Cell::new(0) };
}

/// The threads of one primitive. Thread `n` is named `fullbore-<crate>-<name>-<n>`.
#[derive(Debug)]
pub struct Crew {
    id: u64,
    prefix: String,
    shared: Arc<Monitor<Roll>>,
}

#[derive(Debug, Default)]
struct Roll {
    members: Vec<Member>,
    next: usize,
    left: Waiters,
}

#[derive(Debug)]
struct Member {
    n: usize,
    name: String,
    /// Set by the thread itself as the last thing it does: joining it from then on does not wait.
    finished: bool,
    /// `None` until `spawn` has it; the thread may be through by then.
    handle: Option<JoinHandle<()>>,
}

impl Member {
    fn can_be_joined(&self) -> bool {
        self.finished && self.handle.is_some()
    }
}

impl Crew {
    /// No threads yet. `area` is the crate's folder name, `name` the primitive's.
    #[must_use]
    pub fn new(area: &str, name: &str, clock: Clock) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        // ORDERING: Relaxed: only the numbers' being different matters.
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        Self { id, prefix: format!("fullbore-{area}-{name}"), shared: Arc::new(Monitor::new(Roll::default(), clock)) }
    }

    /// Starts a thread.
    ///
    /// # Errors
    /// [`BuildError::Spawn`] if the system has none to give; [`BuildError::Config`] for a name that no thread can have.
    pub fn spawn(&self, work: impl FnOnce() + Send + 'static) -> Result<(), BuildError> {
        if self.prefix.contains('\0') {
            // The standard library would panic.
            return Err(BuildError::config("name", self.prefix.escape_debug(), "text without a NUL character"));
        }
        // A crew whose members come and go must not keep what is left of them.
        self.join_ended();
        let (n, name) = {
            let mut roll = self.shared.lock();
            let n = roll.next;
            roll.next += 1;
            let name = format!("{}-{n}", self.prefix);
            roll.members.push(Member { n, name: name.clone(), finished: false, handle: None });
            (n, name)
        };
        let (id, shared) = (self.id, Arc::clone(&self.shared));
        let spawned = thread::Builder::new().name(name).spawn(move || {
            CREW.set(id);
            // User code is contained where it is called. What still gets here is a bug of ours, which the panic hook has
            // reported; it must not hang a join.
            drop(contain(work));
            let mut roll = shared.lock();
            if let Some(member) = roll.members.iter_mut().find(|member| member.n == n) {
                member.finished = true;
            }
            roll.notify_all(|roll| &mut roll.left);
        });
        let mut roll = self.shared.lock();
        match spawned {
            Ok(handle) => {
                if let Some(member) = roll.members.iter_mut().find(|member| member.n == n) {
                    member.handle = Some(handle);
                }
                roll.notify_all(|roll| &mut roll.left);
                Ok(())
            }
            Err(error) => {
                roll.members.retain(|member| member.n != n);
                Err(BuildError::Spawn(error))
            }
        }
    }

    /// Whether the calling thread is one of these. Such a thread never joins the crew.
    #[must_use]
    pub fn is_member(&self) -> bool {
        // While the thread's locals are torn down it runs no work of ours any more.
        CREW.try_with(|crew| crew.get() == self.id).unwrap_or(false)
    }

    /// How many threads have not come to their end.
    #[must_use]
    pub fn alive(&self) -> usize {
        self.shared.lock().members.iter().filter(|member| !member.finished).count()
    }

    /// Waits until at most `busy` threads are left. For a close that has run out of time: all threads but those in user code
    /// are in our own code and on their way out, so this needs no deadline. Not to be called on one of its own threads.
    pub fn wait_for_all_but(&self, busy: usize) {
        let mut roll = self.shared.lock();
        roll.wait_until(
            |roll| &mut roll.left,
            None,
            |roll| roll.members.iter().filter(|member| !member.finished).count() <= busy,
        );
    }

    /// Waits until all threads have ended, or the deadline; joins those that have and returns the names of the others.
    /// On one of its own threads it does not wait.
    pub fn join(&self, deadline: Option<Instant>) -> Vec<String> {
        let deadline = if self.is_member() { Some(self.shared.clock().now()) } else { deadline };
        self.shared.lock().wait_until(
            |roll| &mut roll.left,
            deadline,
            |roll| roll.members.iter().all(Member::can_be_joined),
        );
        self.join_ended();
        self.shared.lock().members.iter().map(|member| member.name.clone()).collect()
    }

    /// Joins those that have come to their end.
    fn join_ended(&self) {
        let ended: Vec<Member> = self.shared.lock().members.extract_if(.., |member| member.can_be_joined()).collect();
        for member in ended {
            if let Some(handle) = member.handle {
                // It has left its closure, so this waits for the exit of the thread itself and nothing else; a panic was
                // contained there. One of its own may be here too, in the destructor of a thread-local of the user's.
                if handle.thread().id() != thread::current().id() {
                    drop(handle.join());
                }
            }
        }
    }
}
