//! Threads at a pool of deadpool.
#![cfg(feature = "deadpool")]
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use std::fmt;
use std::future::{Future, poll_fn, ready};
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Poll, Waker};
use std::thread;
use std::time::{Duration, Instant};

use ::deadpool::managed::{Hook, HookError, Manager, Metrics, Object, Pool, PoolError, RecycleError, RecycleResult};
use fullbore_core::{BuildError, PausedClock};
use fullbore_pool::Blocking;
use support::{Chance, Down, LONG, panic_on_purpose, seed};

const SECOND: Duration = Duration::from_secs(1);

type Todo = Pin<Box<dyn Future<Output = Result<(), Down>> + Send>>;
type Script = Mutex<Arc<dyn Fn() -> Todo + Send + Sync>>;

/// What happened, and what shall happen.
struct Db {
    live: AtomicUsize,
    most: AtomicUsize,
    made: AtomicUsize,
    detached: AtomicUsize,
    on_create: Script,
    on_recycle: Script,
}

impl Db {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            live: AtomicUsize::new(0),
            most: AtomicUsize::new(0),
            made: AtomicUsize::new(0),
            detached: AtomicUsize::new(0),
            on_create: Mutex::new(Arc::new(|| Box::pin(ready(Ok(()))))),
            on_recycle: Mutex::new(Arc::new(|| Box::pin(ready(Ok(()))))),
        })
    }

    fn on_create<F: Future<Output = Result<(), Down>> + Send + 'static>(
        &self,
        f: impl Fn() -> F + Send + Sync + 'static,
    ) {
        *self.on_create.lock().unwrap() = Arc::new(move || Box::pin(f()));
    }

    fn on_recycle<F: Future<Output = Result<(), Down>> + Send + 'static>(
        &self,
        f: impl Fn() -> F + Send + Sync + 'static,
    ) {
        *self.on_recycle.lock().unwrap() = Arc::new(move || Box::pin(f()));
    }

    fn live(&self) -> usize {
        self.live.load(Ordering::SeqCst)
    }

    fn pool(self: &Arc<Self>, max_size: usize) -> Pool<Scripted> {
        Pool::builder(Scripted(Arc::clone(self))).max_size(max_size).build().unwrap()
    }
}

impl fmt::Debug for Db {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Db").field("live", &self.live).finish_non_exhaustive()
    }
}

/// Counted while it exists, also while it is being made.
#[derive(Debug)]
struct Conn {
    serial: usize,
    in_use: bool,
    /// Whether it is one of the pool's.
    counted: bool,
    db: Arc<Db>,
}

impl Conn {
    fn new(db: &Arc<Db>) -> Self {
        let serial = db.made.fetch_add(1, Ordering::SeqCst) + 1;
        let live = db.live.fetch_add(1, Ordering::SeqCst) + 1;
        db.most.fetch_max(live, Ordering::SeqCst);
        Self { serial, in_use: false, counted: true, db: Arc::clone(db) }
    }
}

impl Conn {
    fn uncount(&mut self) {
        if std::mem::take(&mut self.counted) {
            self.db.live.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

impl Drop for Conn {
    fn drop(&mut self) {
        self.uncount();
    }
}

#[derive(Debug)]
struct Scripted(Arc<Db>);

impl Manager for Scripted {
    type Type = Conn;
    type Error = Down;

    async fn create(&self) -> Result<Conn, Down> {
        let conn = Conn::new(&self.0);
        let script = Arc::clone(&self.0.on_create.lock().unwrap());
        script().await?;
        Ok(conn)
    }

    async fn recycle(&self, _: &mut Conn, _: &Metrics) -> RecycleResult<Down> {
        let script = Arc::clone(&self.0.on_recycle.lock().unwrap());
        script().await.map_err(RecycleError::Backend)
    }

    fn detach(&self, _: &mut Conn) {
        self.0.detached.fetch_add(1, Ordering::SeqCst);
    }
}

/// Something that a future waits for, opened by another thread.
#[derive(Clone, Default)]
struct Gate(Arc<Mutex<GateState>>);

#[derive(Default)]
struct GateState {
    open: bool,
    waker: Option<Waker>,
}

impl Gate {
    async fn pass(self) -> Result<(), Down> {
        poll_fn(|context| {
            let mut state = self.0.lock().unwrap();
            if state.open {
                return Poll::Ready(Ok(()));
            }
            state.waker = Some(context.waker().clone());
            Poll::Pending
        })
        .await
    }

    /// Wakes whoever waits, who may find it closed still.
    fn knock(&self) {
        let waker = self.0.lock().unwrap().waker.take();
        waker.unwrap().wake();
    }

    fn open(&self) {
        self.0.lock().unwrap().open = true;
        self.knock();
    }
}

fn paused(pool: &Pool<Scripted>, clock: &PausedClock) -> Blocking<Pool<Scripted>> {
    Blocking::builder(pool.clone()).clock(clock).build().unwrap()
}

/// Its size, what is available, and who waits.
fn seen(pool: &Pool<Scripted>) -> (usize, usize, usize) {
    let status = pool.status();
    (status.size, status.available, status.waiting)
}

#[test]
fn works_without_a_runtime() {
    let db = Db::new();
    let shared = db.pool(1);
    let pool = Blocking::new(shared.clone());
    let first = pool.get().unwrap();
    assert_eq!(first.serial, 1);
    assert!(pool.try_get().unwrap_err().is_full());
    drop(first);
    let again = pool.get_deadline(Instant::now() + LONG).unwrap();
    assert_eq!((again.serial, Object::metrics(&again).recycle_count), (1, 1), "deadpool's own object");
    // Taken out for good, its place is free.
    drop(Object::take(again));
    assert_eq!(pool.try_get().unwrap().serial, 2);
    assert_eq!((seen(pool.pool()), seen(&shared)), ((1, 1, 0), (1, 1, 0)));
}

#[test]
fn a_wrapped_object_comes_wrapped() {
    struct Client(Object<Scripted>);
    impl From<Object<Scripted>> for Client {
        fn from(object: Object<Scripted>) -> Self {
            Client(object)
        }
    }
    let db = Db::new();
    let shared: Pool<Scripted, Client> = Pool::builder(Scripted(Arc::clone(&db))).max_size(1).build().unwrap();
    let client: Client = Blocking::new(shared).get().unwrap();
    assert_eq!(client.0.serial, 1);
}

#[test]
fn c3_every_wait_has_a_deadline() {
    let (clock, db) = (PausedClock::new(), Db::new());
    let shared = db.pool(1);
    let pool = paused(&shared, &clock);
    let held = pool.get().unwrap();
    assert!(pool.try_get().unwrap_err().is_full());
    thread::scope(|scope| {
        let by_default = scope.spawn(|| pool.get().map(drop));
        clock.wait_for_waiters(1);
        let by_deadline = scope.spawn(|| pool.get_deadline(clock.now() + SECOND * 5).map(drop));
        clock.wait_for_waiters(2);
        assert_eq!(seen(&shared), (1, 0, 2));
        clock.advance(SECOND * 5);
        let error = by_deadline.join().unwrap().unwrap_err();
        assert!(error.is_timeout() && error.connect_error().is_none());
        let state = error.status().unwrap();
        assert_eq!((state.max_size, state.size, state.available, state.waiting), (1, 1, 0, 2));
        assert_eq!(state.oldest_wait, SECOND * 5);
        assert!(error.to_string().contains("1 of 1 connections of deadpool busy, 2 waiting"), "{error}");
        clock.advance(SECOND * 25);
        assert!(by_default.join().unwrap().unwrap_err().is_timeout());
    });
    // Nothing of them is left.
    assert_eq!(seen(&shared), (1, 0, 0));
    drop(held);
    assert_eq!(seen(&shared), (1, 1, 0));
    assert_eq!(pool.try_get().unwrap().serial, 1);
}

#[test]
fn c3_too_far_to_represent_means_never() {
    let (clock, db) = (PausedClock::new(), Db::new());
    let shared = db.pool(1);
    let pool = Blocking::builder(shared.clone()).clock(&clock).get_timeout(Duration::MAX).build().unwrap();
    let held = pool.get().unwrap();
    thread::scope(|scope| {
        let waiter = scope.spawn(|| pool.get().map(|conn| conn.serial));
        clock.wait_for_waiters(1);
        clock.advance(SECOND * 3600);
        drop(held);
        assert_eq!(waiter.join().unwrap().unwrap(), 1);
    });
}

#[test]
fn c7_a_timeout_of_zero_is_refused() {
    let db = Db::new();
    let refused = Blocking::builder(db.pool(1)).name("shared").get_timeout(Duration::ZERO).build().unwrap_err();
    assert!(matches!(&refused, BuildError::Config { field, .. } if field == "get_timeout"), "{refused}");
}

#[test]
fn a_deadline_in_the_past_gets_nothing_and_costs_nobody_an_object() {
    let (clock, db) = (PausedClock::new(), Db::new());
    let shared = db.pool(1);
    let pool = paused(&shared, &clock);
    drop(pool.get().unwrap());
    db.on_recycle(|| Gate::default().pass());
    let error = pool.get_deadline(clock.now()).unwrap_err();
    assert!(error.is_timeout() && error.status().is_none(), "{error}");
    assert!(pool.get_deadline(clock.now() - SECOND).unwrap_err().is_timeout());
    assert_eq!((seen(&shared), db.live()), ((1, 1, 0), 1));
}

#[test]
fn who_gives_up_while_creating_leaves_nothing_behind() {
    let (clock, db) = (PausedClock::new(), Db::new());
    let shared = db.pool(1);
    let pool = paused(&shared, &clock);
    let gate = Gate::default();
    let stuck = gate.clone();
    db.on_create(move || stuck.clone().pass());
    for wait in [true, false] {
        thread::scope(|scope| {
            let caller = scope.spawn(|| if wait { pool.get() } else { pool.try_get() }.map(drop));
            clock.wait_for_waiters(1);
            assert_eq!(db.live(), 1, "being made");
            clock.advance(SECOND * 30);
            assert!(caller.join().unwrap().unwrap_err().is_timeout());
        });
        assert_eq!((seen(&shared), db.live()), ((0, 0, 0), 0));
    }
    // Its waker is called after all.
    gate.open();
    assert_eq!(pool.get().unwrap().serial, 3);
}

#[test]
fn who_gives_up_while_recycling_costs_the_object_and_not_its_place() {
    let (clock, db) = (PausedClock::new(), Db::new());
    let shared = db.pool(1);
    let pool = paused(&shared, &clock);
    drop(pool.get().unwrap());
    db.on_recycle(|| Gate::default().pass());
    thread::scope(|scope| {
        let caller = scope.spawn(|| pool.get().map(drop));
        clock.wait_for_waiters(1);
        clock.advance(SECOND * 30);
        assert!(caller.join().unwrap().unwrap_err().is_timeout());
    });
    assert_eq!((seen(&shared), db.live(), db.detached.load(Ordering::SeqCst)), ((0, 0, 0), 0, 1));
    assert_eq!(pool.try_get().unwrap().serial, 2);
}

#[test]
fn another_thread_wakes_it_also_in_vain() {
    let (clock, db) = (PausedClock::new(), Db::new());
    let pool = paused(&db.pool(1), &clock);
    let gate = Gate::default();
    let theirs = gate.clone();
    db.on_create(move || theirs.clone().pass());
    thread::scope(|scope| {
        let caller = scope.spawn(|| pool.get().map(|conn| conn.serial));
        for woken in 0..3 {
            // It parks again each time.
            while clock.parks() <= woken {
                thread::yield_now();
            }
            clock.wait_for_waiters(1);
            gate.knock();
        }
        while clock.parks() <= 3 {
            thread::yield_now();
        }
        gate.open();
        assert_eq!(caller.join().unwrap().unwrap(), 1);
    });
}

#[test]
fn a_future_that_wakes_itself_is_polled_again() {
    let (clock, db) = (PausedClock::new(), Db::new());
    let pool = paused(&db.pool(1), &clock);
    db.on_create(|| {
        let mut polls = 0;
        poll_fn(move |context| {
            polls += 1;
            context.waker().wake_by_ref();
            if polls < 100 { Poll::Pending } else { Poll::Ready(Ok(())) }
        })
    });
    assert_eq!(pool.get().unwrap().serial, 1);
    assert_eq!(clock.parks(), 0, "it never had to wait");
    // One that never comes to an end does not get around the deadline.
    let held = pool.get().unwrap();
    drop(Object::take(held));
    let time = clock.clone();
    db.on_create(move || {
        let time = time.clone();
        poll_fn(move |context| {
            time.advance(SECOND);
            context.waker().wake_by_ref();
            Poll::Pending
        })
    });
    assert!(pool.get().unwrap_err().is_timeout());
}

#[test]
fn the_threads_own_token_is_left_alone() {
    let (clock, db) = (PausedClock::new(), Db::new());
    let pool = paused(&db.pool(1), &clock);
    let held = pool.get().unwrap();
    thread::scope(|scope| {
        let caller = scope.spawn(|| {
            // Meant for the `park` below, which comes after a wait of ours.
            thread::current().unpark();
            let conn = pool.get().unwrap();
            thread::park();
            conn.serial
        });
        clock.wait_for_waiters(1);
        drop(held);
        assert_eq!(caller.join().unwrap(), 1);
    });
    // And one that comes during the wait does not end it.
    let held = pool.get().unwrap();
    thread::scope(|scope| {
        let caller = scope.spawn(|| pool.get().map(drop));
        clock.wait_for_waiters(1);
        caller.thread().unpark();
        clock.advance(SECOND * 30);
        assert!(caller.join().unwrap().unwrap_err().is_timeout());
    });
    drop(held);
}

#[test]
fn a_manager_may_use_a_pool_of_its_own() {
    let (clock, inner_db, db) = (PausedClock::new(), Db::new(), Db::new());
    let inner = paused(&inner_db.pool(1), &clock);
    let outer = paused(&db.pool(1), &clock);
    let held = inner.get().unwrap();
    let (gate, called) = (Gate::default(), Arc::new(AtomicUsize::new(0)));
    let (theirs, theirs_called, theirs_inner) = (gate.clone(), Arc::clone(&called), inner.clone());
    db.on_create(move || {
        let (gate, called, inner) = (theirs.clone(), Arc::clone(&theirs_called), theirs_inner.clone());
        let mut passing = Box::pin(gate.pass());
        poll_fn(move |context| {
            // First for the gate, then within the same poll for the inner pool, on the same thread.
            let passed = passing.as_mut().poll(context);
            if called.fetch_add(1, Ordering::SeqCst) == 0 {
                assert_eq!(inner.get().unwrap().serial, 1);
            }
            passed
        })
    });
    thread::scope(|scope| {
        let caller = scope.spawn(|| outer.get().map(|conn| conn.serial));
        clock.wait_for_waiters(1);
        // The outer call's wake-up comes while the inner one waits, and must still be there after it.
        gate.open();
        drop(held);
        assert_eq!(caller.join().unwrap().unwrap(), 1);
    });
    assert_eq!(called.load(Ordering::SeqCst), 2);
}

#[test]
fn what_deadpool_says_comes_back() {
    let db = Db::new();
    let pool = Blocking::new(db.pool(1));
    db.on_create(|| ready(Err(Down)));
    for _ in 0..3 {
        let error = pool.get().unwrap_err();
        assert!(matches!(error.connect_error(), Some(PoolError::Backend(Down))), "{error}");
        let inner = error.into_connect_error().unwrap();
        assert!(matches!(inner.manager_error(), Some(PoolError::Backend(Down))));
    }
    db.on_create(|| ready(Ok(())));
    // What cannot be recycled is replaced.
    drop(pool.get().unwrap());
    db.on_recycle(|| ready(Err(Down)));
    let before = db.made.load(Ordering::SeqCst);
    assert_eq!(pool.get().unwrap().serial, before + 1);
    assert_eq!(db.live(), 1);
    let hook = Hook::sync_fn(|_, _| Err(HookError::message("no")));
    let hooked = Pool::builder(Scripted(Arc::clone(&db))).post_create(hook).build().unwrap();
    let error = Blocking::<Pool<Scripted>>::new(hooked).get().unwrap_err();
    assert!(matches!(error.connect_error(), Some(PoolError::PostCreateHook(_))), "{error}");
}

#[test]
fn a_panic_goes_on_and_costs_no_place() {
    let db = Db::new();
    let shared = db.pool(1);
    let pool = Blocking::new(shared.clone());
    db.on_create(|| async { panic_on_purpose() });
    for _ in 0..3 {
        assert!(catch_unwind(AssertUnwindSafe(|| pool.get())).is_err());
        assert_eq!((seen(&shared), db.live()), ((0, 0, 0), 0));
    }
    db.on_create(|| ready(Ok(())));
    drop(pool.get().unwrap());
    db.on_recycle(|| async { panic_on_purpose() });
    assert!(catch_unwind(AssertUnwindSafe(|| pool.get())).is_err());
    assert_eq!((seen(&shared), db.live()), ((0, 0, 0), 0));
    assert!(pool.try_get().is_ok());
}

#[test]
fn c5_close_wakes_those_who_wait() {
    let (clock, db) = (PausedClock::new(), Db::new());
    let shared = db.pool(1);
    let pool = paused(&shared, &clock);
    let held = pool.get().unwrap();
    thread::scope(|scope| {
        let waiter = scope.spawn(|| pool.get().map(drop));
        clock.wait_for_waiters(1);
        shared.close();
        let error = waiter.join().unwrap().unwrap_err();
        assert!(error.is_closed() && error.status().is_some(), "{error}");
    });
    assert!(pool.get().unwrap_err().is_closed());
    assert!(pool.try_get().unwrap_err().is_closed());
    drop(held);
    assert_eq!(db.live(), 0);
}

#[test]
fn c1_sixty_four_threads_on_four_connections_lose_none() {
    const ROUNDS: u64 = 100;
    let seed = seed();
    let db = Db::new();
    let shared = db.pool(4);
    let pool = Blocking::new(shared.clone());
    let (made, recycled) = (AtomicUsize::new(0), AtomicUsize::new(0));
    db.on_create(move || {
        let n = made.fetch_add(1, Ordering::SeqCst);
        let mut polls = n % 3;
        poll_fn(move |context| match (n % 7, polls) {
            (3, _) => panic_on_purpose(),
            (5, _) => Poll::Ready(Err(Down)),
            (_, 0) => Poll::Ready(Ok(())),
            _ => {
                polls -= 1;
                context.waker().wake_by_ref();
                Poll::Pending
            }
        })
    });
    db.on_recycle(move || ready(if recycled.fetch_add(1, Ordering::SeqCst) % 11 == 0 { Err(Down) } else { Ok(()) }));
    let (got, not) = (AtomicUsize::new(0), AtomicUsize::new(0));
    thread::scope(|scope| {
        for n in 0..64 {
            let (pool, got, not) = (&pool, &got, &not);
            scope.spawn(move || {
                let mut chance = Chance::new(seed + n);
                for _ in 0..ROUNDS {
                    let soon = Duration::from_micros(chance.below(500));
                    let outcome = catch_unwind(AssertUnwindSafe(|| match chance.below(4) {
                        0 => pool.try_get(),
                        1 => pool.get(),
                        _ => pool.get_deadline(Instant::now() + soon),
                    }));
                    let Ok(Ok(mut conn)) = outcome else {
                        not.fetch_add(1, Ordering::SeqCst);
                        continue;
                    };
                    assert!(!conn.in_use, "two have it");
                    conn.in_use = true;
                    thread::yield_now();
                    conn.in_use = false;
                    got.fetch_add(1, Ordering::SeqCst);
                    if chance.one_in(16) {
                        // Its place is free before it is dropped.
                        conn.uncount();
                        drop(Object::take(conn));
                    }
                }
            });
        }
    });
    let (got, not) = (got.into_inner(), not.into_inner());
    assert_eq!(got + not, usize::try_from(64 * ROUNDS).unwrap());
    assert!(got > 0 && not > 0, "{got} {not}");
    let (size, available, waiting) = seen(&shared);
    assert_eq!((available, waiting, db.live()), (size, 0, size));
    assert!(size <= 4 && db.most.load(Ordering::SeqCst) <= 4);
    // Each of the four places is still there.
    db.on_create(|| ready(Ok(())));
    db.on_recycle(|| ready(Ok(())));
    let four = [0; 4].map(|_| pool.try_get().unwrap());
    assert!(pool.try_get().unwrap_err().is_full());
    drop(four);
}

/// Connects with a socket of Tokio and waits for one byte on it.
#[derive(Debug)]
struct Reactor(SocketAddr);

impl Manager for Reactor {
    type Type = tokio::net::TcpStream;
    type Error = std::io::Error;

    async fn create(&self) -> std::io::Result<tokio::net::TcpStream> {
        let stream = tokio::net::TcpStream::connect(self.0).await?;
        stream.readable().await?;
        Ok(stream)
    }

    async fn recycle(&self, _: &mut tokio::net::TcpStream, _: &Metrics) -> RecycleResult<std::io::Error> {
        Ok(())
    }
}

#[test]
fn a_manager_that_needs_a_reactor_works_in_the_context_of_a_runtime() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let shared: Pool<Reactor> = Pool::builder(Reactor(listener.local_addr().unwrap())).max_size(1).build().unwrap();
    let pool = Blocking::new(shared.clone());
    // Without one Tokio panics, and nothing is lost.
    assert!(catch_unwind(AssertUnwindSafe(|| pool.get())).is_err());
    assert_eq!((shared.status().size, shared.status().waiting), (0, 0));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_io().build().unwrap();
    let _context = runtime.enter();
    // Nobody sends anything: the deadline holds.
    let error = pool.get_deadline(Instant::now() + Duration::from_millis(50)).unwrap_err();
    assert!(error.is_timeout(), "{error}");
    assert_eq!((shared.status().size, shared.status().waiting), (0, 0));
    // The runtime's thread wakes it.
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            for stream in listener.incoming() {
                if done.load(Ordering::SeqCst) {
                    return;
                }
                // The first ones are those of the calls that came to nothing.
                let _ = stream.unwrap().write_all(b"x");
            }
        });
        let got = pool.get().map(|stream| {
            // What it does is async still.
            runtime.handle().block_on(stream.readable()).unwrap();
        });
        done.store(true, Ordering::SeqCst);
        drop(TcpStream::connect(listener.local_addr().unwrap()).unwrap());
        got.unwrap();
    });
    assert_eq!(shared.status().available, 1);
}
