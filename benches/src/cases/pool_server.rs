//! A server in name only, for the cases of `fullbore-pool` in which connecting takes time or fails.

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use fullbore_pool::Manager;
use fullbore_testkit::eventually;

/// What takes its time sleeps: a client of a server far away costs no more. It keeps the books on its clients.
#[derive(Debug, Default)]
pub(super) struct Server {
    connect: Duration,
    query: Duration,
    down: AtomicBool,
    /// Goes up with each start: connections of an earlier one are dead.
    start: AtomicU64,
    /// Somebody was refused since it went down: whoever asks from now on can know.
    refuses: AtomicBool,
    connecting: AtomicUsize,
    /// Of those that can know.
    probing: AtomicUsize,
    most_probing: AtomicUsize,
    open: AtomicUsize,
    most_open: AtomicUsize,
    queries: AtomicU64,
}

impl Server {
    /// One that is up. Connecting takes so long, and a query.
    pub(super) fn new(connect: Duration, query: Duration) -> Arc<Self> {
        Arc::new(Self { connect, query, ..Self::default() })
    }

    /// Goes down, and with it all connections.
    pub(super) fn stop(&self) {
        self.refuses.store(false, SeqCst);
        self.down.store(true, SeqCst);
        self.start.fetch_add(1, SeqCst);
    }

    /// Comes back.
    pub(super) fn restart(&self) {
        self.down.store(false, SeqCst);
    }

    /// The most attempts to connect that were under way at once although it was known to be down.
    pub(super) fn most_probing(&self) -> usize {
        self.most_probing.load(SeqCst)
    }

    /// Connections that there are.
    pub(super) fn open(&self) -> usize {
        self.open.load(SeqCst)
    }

    /// The most connections that there were at once.
    pub(super) fn most_open(&self) -> usize {
        self.most_open.load(SeqCst)
    }

    /// Queries that were answered.
    pub(super) fn queries(&self) -> u64 {
        self.queries.load(SeqCst)
    }

    /// Waits until there are so many connections and no more to come, and until whoever got the last one can have laid it down.
    ///
    /// # Panics
    /// If that takes more than a minute.
    pub(super) fn wait_for_open(&self, connections: usize) {
        let there = || self.connecting.load(SeqCst) == 0 && self.open() == connections;
        assert!(eventually(Duration::from_secs(60), there), "{} connections, not {connections}", self.open());
        thread::sleep(Duration::from_millis(10));
        assert!(there(), "{} connections after there were {connections}", self.open());
    }

    /// Waits until nobody has been connecting for as long as it takes to connect twice: nobody is about to go on with it.
    ///
    /// # Panics
    /// If that takes more than a minute.
    pub(super) fn wait_for_quiet(&self) {
        let mut busy = Instant::now();
        let quiet = || {
            if self.connecting.load(SeqCst) > 0 {
                busy = Instant::now();
            }
            busy.elapsed() >= self.connect * 2
        };
        assert!(eventually(Duration::from_secs(60), quiet), "clients do not stop to connect");
    }

    /// A connection, or not.
    pub(super) fn accept(self: &Arc<Self>) -> Result<Link, Down> {
        let connecting = Counted::new(&self.connecting);
        let known = self.down.load(SeqCst) && self.refuses.load(SeqCst);
        let probing = known.then(|| Counted::new(&self.probing));
        if let Some(probing) = &probing {
            self.most_probing.fetch_max(probing.now, SeqCst);
        }
        let start = self.start.load(SeqCst);
        thread::sleep(self.connect);
        // Before they count as over: there must be no moment without them and without the connection.
        let accepted = if self.down.load(SeqCst) {
            self.refuses.store(true, SeqCst);
            Err(Down)
        } else {
            self.most_open.fetch_max(self.open.fetch_add(1, SeqCst) + 1, SeqCst);
            Ok(Link { server: Arc::clone(self), start })
        };
        drop((probing, connecting));
        accepted
    }
}

/// One more, until it is dropped.
struct Counted<'a> {
    count: &'a AtomicUsize,
    /// How many there are with this one.
    now: usize,
}

impl<'a> Counted<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        Self { count, now: count.fetch_add(1, SeqCst) + 1 }
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.count.fetch_sub(1, SeqCst);
    }
}

/// A connection to it.
#[derive(Debug)]
pub(super) struct Link {
    server: Arc<Server>,
    start: u64,
}

impl Link {
    /// Asks something.
    pub(super) fn query(&mut self) -> Result<(), Down> {
        if self.is_dead() {
            return Err(Down);
        }
        thread::sleep(self.server.query);
        if self.is_dead() {
            return Err(Down);
        }
        self.server.queries.fetch_add(1, SeqCst);
        Ok(())
    }

    fn is_dead(&self) -> bool {
        self.start != self.server.start.load(SeqCst)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.server.open.fetch_sub(1, SeqCst);
    }
}

/// The server is down.
#[derive(Debug)]
pub(super) struct Down;

impl fmt::Display for Down {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the server is down")
    }
}

impl Error for Down {}

/// Makes connections to it, for all pools.
#[derive(Debug)]
pub(super) struct Client(pub(super) Arc<Server>);

impl Manager for Client {
    type Connection = Link;
    type Error = Down;

    fn connect(&self, _: Duration) -> Result<Link, Down> {
        self.0.accept()
    }
    fn validate(&self, link: &mut Link, _: Duration) -> Result<(), Down> {
        if link.is_dead() { Err(Down) } else { Ok(()) }
    }
    fn is_broken(&self, link: &mut Link) -> bool {
        link.is_dead()
    }
}

impl r2d2::ManageConnection for Client {
    type Connection = Link;
    type Error = Down;

    fn connect(&self) -> Result<Link, Down> {
        self.0.accept()
    }
    fn is_valid(&self, link: &mut Link) -> Result<(), Down> {
        if link.is_dead() { Err(Down) } else { Ok(()) }
    }
    fn has_broken(&self, link: &mut Link) -> bool {
        link.is_dead()
    }
}
