//! A server in name only, which does all that servers do to their clients, and keeps the books.

use std::collections::HashMap;
use std::error::Error;
use std::fmt;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use fullbore_pool::{KeyedManager, Manager};

use crate::chance::Chance;

/// How it is just now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mood {
    /// Quick, and all goes well.
    Well,
    /// Takes its time for everything.
    Slow,
    /// A call in a few fails or panics.
    Flaky,
    /// Refuses to connect.
    Refusing,
    /// Accepts and says nothing, as long as this lasts.
    Silent,
}

pub(super) const MOODS: [Mood; 6] = [Mood::Well, Mood::Well, Mood::Slow, Mood::Flaky, Mood::Refusing, Mood::Silent];

/// See the module.
pub(super) struct Server {
    mood: Mutex<Mood>,
    healed: Condvar,
    chance: Mutex<Chance>,
    /// Connections of an earlier start are dead.
    start: AtomicU64,
    /// After how long a pool may give up an attempt.
    connect_timeout: Duration,
    /// The most connections that there may be at once, for all and for each key.
    cap: AtomicUsize,
    cap_of_key: usize,
    books: Mutex<Books>,
    /// Attempts to connect so far.
    pub(super) attempts: AtomicU64,
    /// Goes up before each soft eviction.
    pub(super) era: AtomicU64,
    violations: Mutex<Vec<String>>,
}

/// Connections that there are: being made, open, being closed.
#[derive(Default)]
struct Books {
    /// Those that the pool has to count.
    live: usize,
    keys: HashMap<u64, usize>,
    /// Those whose making took so long that the pool may have given it up.
    late: usize,
}

impl Server {
    pub(super) fn new(seed: u64, connect_timeout: Duration, cap: usize, cap_of_key: usize) -> Arc<Self> {
        Arc::new(Self {
            mood: Mutex::new(Mood::Well),
            healed: Condvar::new(),
            chance: Mutex::new(Chance::new(seed)),
            start: AtomicU64::new(0),
            connect_timeout,
            cap: AtomicUsize::new(cap),
            cap_of_key,
            books: Mutex::default(),
            attempts: AtomicU64::new(0),
            era: AtomicU64::new(0),
            violations: Mutex::default(),
        })
    }

    pub(super) fn mood(&self) -> Mood {
        *lock(&self.mood)
    }

    pub(super) fn change_to(&self, mood: Mood) {
        *lock(&self.mood) = mood;
        self.healed.notify_all();
    }

    /// All connections are dead.
    pub(super) fn restart(&self) {
        self.start.fetch_add(1, SeqCst);
    }

    /// There may be so many from now on; until the next quiet moment also as many as before.
    pub(super) fn allow(&self, cap: usize) {
        self.cap.fetch_max(cap, SeqCst);
    }

    /// Exactly so many from now on.
    pub(super) fn allow_only(&self, cap: usize) {
        self.cap.store(cap, SeqCst);
    }

    pub(super) fn cap(&self) -> usize {
        self.cap.load(SeqCst)
    }

    /// Connections that the pool has, those included that came late.
    pub(super) fn live(&self) -> usize {
        let books = lock(&self.books);
        books.live + books.late
    }

    pub(super) fn complain(&self, violation: String) {
        lock(&self.violations).push(violation);
    }

    pub(super) fn first_complaint(&self) -> Option<String> {
        lock(&self.violations).first().cloned()
    }

    fn roll<R>(&self, f: impl FnOnce(&mut Chance) -> R) -> R {
        f(&mut lock(&self.chance))
    }

    /// Until the mood changes from silent, or `most` is over.
    fn hang(&self, most: Duration) {
        let mood = lock(&self.mood);
        drop(self.healed.wait_timeout_while(mood, most, |mood| *mood == Mood::Silent));
    }

    fn accept(self: &Arc<Self>, key: u64) -> Result<Link, Down> {
        self.attempts.fetch_add(1, SeqCst);
        let mut link = Link::new(self, key);
        match self.mood() {
            Mood::Well => {}
            Mood::Slow => thread::sleep(self.roll(|chance| chance.time(Duration::from_millis(30)))),
            Mood::Flaky => self.stumble(5)?,
            Mood::Refusing => {
                thread::sleep(self.roll(|chance| chance.time(Duration::from_millis(2))));
                return Err(Down);
            }
            Mood::Silent => {
                let (most, heals) = self.roll(|chance| (chance.time(Duration::from_secs(2)), chance.one_in(2)));
                let begun = Instant::now();
                self.hang(most.min(self.connect_timeout / 2));
                if (!heals || self.mood() == Mood::Silent) && begun.elapsed() < most {
                    // From here on the pool may count on its never coming.
                    link.is_late();
                    if heals {
                        self.hang(most.saturating_sub(begun.elapsed()));
                    } else {
                        thread::sleep(most.saturating_sub(begun.elapsed()));
                    }
                }
                if self.roll(|chance| chance.one_in(2)) {
                    return Err(Down);
                }
            }
        }
        Ok(link)
    }

    /// Fails one time in `n`, and panics one in as many.
    fn stumble(&self, n: u64) -> Result<(), Down> {
        match self.roll(|chance| chance.below(n)) {
            0 => panic_on_purpose(),
            1 => Err(Down),
            _ => Ok(()),
        }
    }

    fn check(&self, link: &mut Link, budget: Duration) -> Result<(), Down> {
        link.touch();
        match self.mood() {
            Mood::Well => {}
            Mood::Slow => thread::sleep(self.roll(|chance| chance.time(Duration::from_millis(3))).min(budget)),
            Mood::Flaky => self.stumble(8)?,
            Mood::Refusing => {}
            Mood::Silent => {
                // It keeps to its budget, or nearly.
                self.hang(budget + Duration::from_millis(1));
                return Err(Down);
            }
        }
        if link.is_dead() { Err(Down) } else { Ok(()) }
    }

    fn is_broken(&self, link: &mut Link) -> bool {
        link.touch();
        if self.mood() == Mood::Flaky && self.roll(|chance| chance.one_in(40)) {
            panic_on_purpose();
        }
        link.broken || (link.is_dead() && self.roll(|chance| chance.one_in(2)))
    }

    fn end(&self, mut link: Link) {
        link.touch();
        match self.mood() {
            Mood::Slow => thread::sleep(self.roll(|chance| chance.time(Duration::from_millis(5)))),
            Mood::Flaky if self.roll(|chance| chance.one_in(10)) => panic_on_purpose(),
            _ => {}
        }
        drop(link);
    }
}

/// A connection.
pub(super) struct Link {
    server: Arc<Server>,
    pub(super) key: u64,
    start: u64,
    /// When its making began.
    pub(super) era: u64,
    /// Its holder says that it is of no use any more.
    pub(super) broken: bool,
    /// A holder of it has panicked.
    pub(super) tainted: bool,
    counted: Counted,
    /// Whoever uses it adds to both: they stay equal as long as nobody else does at the same time.
    uses: u64,
    shared_uses: AtomicU64,
    in_use: AtomicBool,
}

#[derive(Clone, Copy, PartialEq)]
enum Counted {
    Live,
    Late,
    Not,
}

impl Link {
    fn new(server: &Arc<Server>, key: u64) -> Self {
        {
            let mut books = lock(&server.books);
            books.live += 1;
            let (live, cap) = (books.live, server.cap());
            let of_key = books.keys.entry(key).or_default();
            *of_key += 1;
            let of_key = *of_key;
            drop(books);
            if live > cap {
                server.complain(format!("{live} connections, where {cap} are allowed"));
            }
            if of_key > server.cap_of_key {
                server.complain(format!("{of_key} connections of key {key}, where {} are allowed", server.cap_of_key));
            }
        }
        Self {
            server: Arc::clone(server),
            key,
            start: server.start.load(SeqCst),
            era: server.era.load(SeqCst),
            broken: false,
            tainted: false,
            counted: Counted::Live,
            uses: 0,
            shared_uses: AtomicU64::new(0),
            in_use: AtomicBool::new(false),
        }
    }

    fn is_late(&mut self) {
        self.recount(Counted::Late);
    }

    /// The pool's no longer.
    pub(super) fn leave(&mut self) {
        self.recount(Counted::Not);
    }

    fn recount(&mut self, as_what: Counted) {
        let before = std::mem::replace(&mut self.counted, as_what);
        let mut books = lock(&self.server.books);
        match before {
            Counted::Live => {
                books.live -= 1;
                if let Some(of_key) = books.keys.get_mut(&self.key) {
                    *of_key -= 1;
                    if *of_key == 0 {
                        books.keys.remove(&self.key);
                    }
                }
            }
            Counted::Late => books.late -= 1,
            Counted::Not => {}
        }
        books.late += usize::from(as_what == Counted::Late);
    }

    fn is_dead(&self) -> bool {
        self.start != self.server.start.load(SeqCst)
    }

    /// Uses it for a moment.
    pub(super) fn touch(&mut self) {
        if self.in_use.swap(true, SeqCst) {
            self.server.complain("two use a connection at the same time".into());
        }
        self.uses += 1;
        let shared = self.shared_uses.fetch_add(1, SeqCst) + 1;
        if self.uses != shared {
            self.server.complain(format!("a connection was used {shared} times, of which {} are known", self.uses));
        }
        self.in_use.store(false, SeqCst);
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.leave();
    }
}

#[derive(Debug)]
pub(super) struct Down;

impl fmt::Display for Down {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the server is down")
    }
}

impl Error for Down {}

/// What a pool is given to make connections.
pub(super) struct Client(pub(super) Arc<Server>);

impl Manager for Client {
    type Connection = Link;
    type Error = Down;

    fn connect(&self, _: Duration) -> Result<Link, Down> {
        self.0.accept(0)
    }
    fn validate(&self, link: &mut Link, budget: Duration) -> Result<(), Down> {
        self.0.check(link, budget)
    }
    fn is_broken(&self, link: &mut Link) -> bool {
        self.0.is_broken(link)
    }
    fn close(&self, link: Link) {
        self.0.end(link);
    }
}

impl KeyedManager<u64> for Client {
    type Connection = Link;
    type Error = Down;

    fn connect(&self, key: &u64, _: Duration) -> Result<Link, Down> {
        self.0.accept(*key)
    }
    fn validate(&self, key: &u64, link: &mut Link, budget: Duration) -> Result<(), Down> {
        self.belongs(*key, link);
        self.0.check(link, budget)
    }
    fn is_broken(&self, key: &u64, link: &mut Link) -> bool {
        self.belongs(*key, link);
        self.0.is_broken(link)
    }
    fn close(&self, key: &u64, link: Link) {
        self.belongs(*key, &link);
        self.0.end(link);
    }
}

impl Client {
    fn belongs(&self, key: u64, link: &Link) {
        if link.key != key {
            self.0.complain(format!("a connection of key {} is taken for one of {key}", link.key));
        }
    }
}

/// Without a message.
pub(super) fn panic_on_purpose() -> ! {
    resume_unwind(Box::new("on purpose"))
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
