//! A database that is not there: its connections are counted, and its functions do what the test says.
#![allow(dead_code, clippy::unwrap_used)]

use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use fullbore_core::PausedClock;
use fullbore_pool::{KeyedManager, KeyedPool, Manager, Pool, PoolBuilder};

/// For waits that end by an event; only a defect lets them run out.
pub(crate) const LONG: Duration = Duration::from_secs(60);

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Down;

impl fmt::Display for Down {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the database is down")
    }
}

impl std::error::Error for Down {}

type Hook<R> = Mutex<Arc<dyn Fn(&mut Counted, Duration) -> R + Send + Sync>>;

/// What happened, and what shall happen. Shared by the test and the manager.
pub(crate) struct Db {
    /// Connections there are: being made, open, being closed.
    pub(crate) live: AtomicUsize,
    /// The most there were at once.
    pub(crate) most: AtomicUsize,
    pub(crate) connects: AtomicU64,
    pub(crate) validates: AtomicUsize,
    /// Connections that were handed to `close`.
    pub(crate) closes: AtomicUsize,
    pub(crate) on_connect: Hook<Result<(), Down>>,
    pub(crate) on_validate: Hook<Result<(), Down>>,
    pub(crate) on_is_broken: Hook<bool>,
    pub(crate) on_close: Hook<()>,
    changed: (Mutex<()>, Condvar),
}

/// Where user code stops until the test lets it go on. Each that passes takes one permission; when the gate is dropped all pass.
pub(crate) struct Gate {
    is_inside: mpsc::Receiver<u64>,
    release: mpsc::Sender<()>,
}

impl Gate {
    /// The gate, and what user code calls there.
    pub(crate) fn new() -> (Self, impl Fn(&Counted) + Send + Sync + 'static) {
        let (entered, is_inside) = mpsc::channel();
        let (release, released) = mpsc::channel();
        let (entered, released) = (Mutex::new(entered), Mutex::new(released));
        let pass = move |counted: &Counted| {
            // Fails where the test is over: nobody is interested any more.
            let _ = entered.lock().unwrap().send(counted.serial);
            let _ = released.lock().unwrap().recv();
        };
        (Self { is_inside, release }, pass)
    }

    /// Waits until one more is there, and says which connection it is about.
    pub(crate) fn wait(&self) -> u64 {
        self.is_inside.recv_timeout(LONG).expect("nobody comes")
    }

    /// How many more have come by now.
    pub(crate) fn waiting(&self) -> usize {
        self.is_inside.try_iter().count()
    }

    /// Lets one go on.
    pub(crate) fn release(&self) {
        self.release.send(()).unwrap();
    }
}

impl Db {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            live: AtomicUsize::new(0),
            most: AtomicUsize::new(0),
            connects: AtomicU64::new(0),
            validates: AtomicUsize::new(0),
            closes: AtomicUsize::new(0),
            on_connect: Mutex::new(Arc::new(|_, _| Ok(()))),
            on_validate: Mutex::new(Arc::new(|_, _| Ok(()))),
            on_is_broken: Mutex::new(Arc::new(|counted, _| counted.broken)),
            on_close: Mutex::new(Arc::new(|_, _| ())),
            changed: Default::default(),
        })
    }

    fn count<R>(&self, count: impl FnOnce() -> R) -> R {
        let _lock = self.changed.0.lock().unwrap();
        self.changed.1.notify_all();
        count()
    }

    /// Waits until its counts are so.
    pub(crate) fn wait(&self, until: impl Fn(&Self) -> bool) {
        let lock = self.changed.0.lock().unwrap();
        let (_lock, timed_out) = self.changed.1.wait_timeout_while(lock, LONG, |()| !until(self)).unwrap();
        assert!(
            !timed_out.timed_out(),
            "{} connects, {} validates, {} closes, {} live",
            self.connects(),
            self.validates(),
            self.closes(),
            self.live()
        );
    }

    /// From now on each connect stops at the gate, and then goes well.
    pub(crate) fn stop_in_connect(&self) -> Gate {
        let (gate, pass) = Gate::new();
        self.on_connect(move |counted, _| {
            pass(counted);
            Ok(())
        });
        gate
    }

    /// From now on each validation stops at the gate, and then goes well.
    pub(crate) fn stop_in_validate(&self) -> Gate {
        let (gate, pass) = Gate::new();
        self.on_validate(move |counted, _| {
            pass(counted);
            Ok(())
        });
        gate
    }

    /// From now on each close stops at the gate.
    pub(crate) fn stop_in_close(&self) -> Gate {
        let (gate, pass) = Gate::new();
        self.on_close(move |counted, _| pass(counted));
        gate
    }

    pub(crate) fn live(&self) -> usize {
        self.live.load(Ordering::SeqCst)
    }

    pub(crate) fn connects(&self) -> u64 {
        self.connects.load(Ordering::SeqCst)
    }

    pub(crate) fn closes(&self) -> usize {
        self.closes.load(Ordering::SeqCst)
    }

    pub(crate) fn validates(&self) -> usize {
        self.validates.load(Ordering::SeqCst)
    }

    /// The most connections there were at once.
    pub(crate) fn most(&self) -> usize {
        self.most.load(Ordering::SeqCst)
    }

    pub(crate) fn on_connect(&self, f: impl Fn(&mut Counted, Duration) -> Result<(), Down> + Send + Sync + 'static) {
        *self.on_connect.lock().unwrap() = Arc::new(f);
    }

    pub(crate) fn on_validate(&self, f: impl Fn(&mut Counted, Duration) -> Result<(), Down> + Send + Sync + 'static) {
        *self.on_validate.lock().unwrap() = Arc::new(f);
    }

    pub(crate) fn on_is_broken(&self, f: impl Fn(&mut Counted, Duration) -> bool + Send + Sync + 'static) {
        *self.on_is_broken.lock().unwrap() = Arc::new(f);
    }

    pub(crate) fn on_close(&self, f: impl Fn(&mut Counted, Duration) + Send + Sync + 'static) {
        *self.on_close.lock().unwrap() = Arc::new(f);
    }
}

/// A connection: counted while it exists.
pub(crate) struct Counted {
    pub(crate) serial: u64,
    pub(crate) broken: bool,
    db: Arc<Db>,
    counted: bool,
}

impl Counted {
    fn new(db: &Arc<Db>) -> Self {
        let serial = db.count(|| {
            let live = db.live.fetch_add(1, Ordering::SeqCst) + 1;
            db.most.fetch_max(live, Ordering::SeqCst);
            db.connects.fetch_add(1, Ordering::SeqCst) + 1
        });
        Self { serial, broken: false, db: Arc::clone(db), counted: true }
    }

    /// The pool's no longer, so not to be counted either: to be called before `detach`.
    pub(crate) fn uncount(&mut self) {
        if std::mem::take(&mut self.counted) {
            self.db.count(|| self.db.live.fetch_sub(1, Ordering::SeqCst));
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.uncount();
    }
}

/// The manager.
pub(crate) struct Fake(pub(crate) Arc<Db>);

fn hook<R>(hook: &Hook<R>, counted: &mut Counted, budget: Duration) -> R {
    let hook = Arc::clone(&hook.lock().unwrap());
    hook(counted, budget)
}

impl Manager for Fake {
    type Connection = Counted;
    type Error = Down;

    fn connect(&self, budget: Duration) -> Result<Counted, Down> {
        let mut counted = Counted::new(&self.0);
        hook(&self.0.on_connect, &mut counted, budget)?;
        Ok(counted)
    }

    fn validate(&self, counted: &mut Counted, budget: Duration) -> Result<(), Down> {
        self.0.count(|| self.0.validates.fetch_add(1, Ordering::SeqCst));
        hook(&self.0.on_validate, counted, budget)
    }

    fn is_broken(&self, counted: &mut Counted) -> bool {
        hook(&self.0.on_is_broken, counted, Duration::ZERO)
    }

    fn close(&self, mut counted: Counted) {
        self.0.count(|| self.0.closes.fetch_add(1, Ordering::SeqCst));
        hook(&self.0.on_close, &mut counted, Duration::ZERO);
    }
}

/// The manager of a keyed pool: one database, and the live connections of each key.
pub(crate) struct FakeKeyed<K> {
    pub(crate) db: Arc<Db>,
    pub(crate) keys: Arc<Mutex<HashMap<K, PerKey>>>,
}

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct PerKey {
    pub(crate) live: usize,
    pub(crate) most: usize,
}

/// A connection that also counts for its key.
pub(crate) struct OfKey<K: Hash + Eq + Clone> {
    pub(crate) counted: Counted,
    pub(crate) key: K,
    keys: Arc<Mutex<HashMap<K, PerKey>>>,
    in_key: bool,
}

impl<K: Hash + Eq + Clone> OfKey<K> {
    pub(crate) fn uncount(&mut self) {
        self.counted.uncount();
        if std::mem::take(&mut self.in_key) {
            self.keys.lock().unwrap().get_mut(&self.key).unwrap().live -= 1;
        }
    }
}

impl<K: Hash + Eq + Clone> Drop for OfKey<K> {
    fn drop(&mut self) {
        self.uncount();
    }
}

impl<K: Hash + Eq + Clone> FakeKeyed<K> {
    pub(crate) fn new(db: &Arc<Db>) -> Self {
        Self { db: Arc::clone(db), keys: Arc::default() }
    }
}

impl<K: Hash + Eq + Clone + Send + Sync + 'static> KeyedManager<K> for FakeKeyed<K> {
    type Connection = OfKey<K>;
    type Error = Down;

    fn connect(&self, key: &K, budget: Duration) -> Result<OfKey<K>, Down> {
        let counted = Counted::new(&self.db);
        {
            let mut keys = self.keys.lock().unwrap();
            let per_key = keys.entry(key.clone()).or_default();
            per_key.live += 1;
            per_key.most = per_key.most.max(per_key.live);
        }
        let mut made = OfKey { counted, key: key.clone(), keys: Arc::clone(&self.keys), in_key: true };
        hook(&self.db.on_connect, &mut made.counted, budget)?;
        Ok(made)
    }

    fn validate(&self, key: &K, made: &mut OfKey<K>, budget: Duration) -> Result<(), Down> {
        assert!(*key == made.key, "a connection of another key");
        self.db.count(|| self.db.validates.fetch_add(1, Ordering::SeqCst));
        hook(&self.db.on_validate, &mut made.counted, budget)
    }

    fn is_broken(&self, key: &K, made: &mut OfKey<K>) -> bool {
        assert!(*key == made.key, "a connection of another key");
        hook(&self.db.on_is_broken, &mut made.counted, Duration::ZERO)
    }

    fn close(&self, key: &K, mut made: OfKey<K>) {
        assert!(*key == made.key, "a connection of another key");
        self.db.count(|| self.db.closes.fetch_add(1, Ordering::SeqCst));
        hook(&self.db.on_close, &mut made.counted, Duration::ZERO);
    }
}

/// A pool of `max_size` on a stopped clock.
pub(crate) fn pool(db: &Arc<Db>, clock: &PausedClock, max_size: usize) -> PoolBuilder<Pool<Fake>> {
    Pool::builder(Fake(Arc::clone(db))).name("test").max_size(max_size).clock(clock)
}

/// A keyed pool of `max_size` on a stopped clock.
pub(crate) fn keyed<K: Hash + Eq + Clone + Send + Sync + 'static>(
    db: &Arc<Db>,
    clock: &PausedClock,
    max_size: usize,
) -> PoolBuilder<KeyedPool<K, FakeKeyed<K>>> {
    KeyedPool::builder(FakeKeyed::new(db)).name("test").max_size(max_size).clock(clock)
}

/// Waits for what follows at once, on another thread, from something that the test has seen happen: a place is free a moment after
/// its connection was closed, a thread parks a moment after its work.
pub(crate) fn until(condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < LONG, "it never comes");
        thread::yield_now();
    }
}

/// Moves the clock, and waits until the keeper of time, for whom the pool's own `Background` has one timer, has done what is due. For
/// pools that are not empty afterwards: they need no keeper.
pub(crate) fn advance(clock: &PausedClock, by: Duration) {
    until(|| clock.timers() == 1);
    clock.advance(by);
    until(|| clock.timers() == 1);
}

/// A panic that prints nothing.
pub(crate) fn panic_on_purpose() -> ! {
    resume_unwind(Box::new("on purpose"))
}

/// Numbers by chance (xorshift64*), the same for the same seed.
pub(crate) struct Chance(u64);

impl Chance {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % n
    }

    pub(crate) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// `FULLBORE_SEED`, or one of its own that is printed.
pub(crate) fn seed() -> u64 {
    let seed = std::env::var("FULLBORE_SEED").ok().and_then(|text| text.parse().ok());
    let seed = seed.unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        now.map_or(1, |now| u64::from(now.subsec_nanos()) | 1)
    });
    println!("FULLBORE_SEED={seed}");
    seed
}
