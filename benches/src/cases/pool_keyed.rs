//! `fullbore-pool`, by key: few connections for thousands of tenants.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, ThreadId};
use std::time::Duration;

use fullbore_pool::{KeyedManager, KeyedPool, Pool};
use fullbore_testkit::{allocated_so_far, eventually, measure};
use parking_lot::Mutex;

use super::pool::{Checkout, Idle, Maker};
use super::{Count, FITS, Random};
use crate::measure::{Case, Side, Team};

const TENANTS: u64 = 4_044;
const CONNECTIONS: usize = 64;
/// Connections are trusted however long ago they were used: with many keys that is longer ago, and this is not about validation.
const TRUSTED: Duration = Duration::from_secs(600);

/// See the module. For the list of the area `pool`.
#[must_use]
pub fn keyed_cases() -> Vec<Case> {
    vec![
        Case::new("checkout by key, as keys grow to 1,000", 1, || by_key(1_000, 1_000))
            .against("itself, 1 key", || by_key(1, 1)),
        Case::new("warm checkout by key", 1, || by_key(TENANTS, CONNECTIONS)).against("the plain pool", plain),
    ]
}

/// What a tenant costs that has no connection.
#[must_use]
pub fn keyed_counts() -> Vec<Count> {
    vec![Count { name: "bytes for each idle tenant over 300", unit: "bytes", ours: bytes_over_300 }]
}

impl KeyedManager<u64> for Maker {
    type Connection = Idle;
    type Error = Infallible;

    fn connect(&self, _: &u64, _: Duration) -> Result<Idle, Infallible> {
        Ok(Idle::default())
    }
    fn validate(&self, _: &u64, _: &mut Idle, _: Duration) -> Result<(), Infallible> {
        Ok(())
    }
}

/// All of `keys` have been used, and the last ones have a connection each, which is idle. Those are used in random order.
fn by_key(keys: u64, connections: usize) -> Side {
    let pool = KeyedPool::builder(Maker).max_size(connections).validate_after(TRUSTED).build().expect(FITS);
    let call = |pool: &KeyedPool<u64, Maker>, key| pool.with(&key, Idle::call).expect("a connection is idle");
    (0..keys).for_each(|key| call(&pool, key));
    let warm = connections as u64;
    let first = keys - warm;
    let mut uses = warm;
    let shared = pool.clone();
    let mut team = Team::new(1, move |number| {
        let (pool, mut random) = (shared.clone(), Random::of_thread(number));
        move |calls| calls.for_each(|_| call(&pool, first + random.below(warm)))
    });
    Box::new(move |count| {
        let took = team.run(count).took();
        uses += count;
        let used: u64 = (first..keys).map(|key| pool.get(&key).map_or(0, |connection| connection.uses)).sum();
        assert_eq!(used, uses, "no connection was closed");
        took
    })
}

/// As many connections, of which any will do.
fn plain() -> Side {
    let pool = Pool::builder(Maker).max_size(CONNECTIONS).validate_after(TRUSTED).build().expect(FITS);
    assert_eq!(pool.uses(CONNECTIONS), 0, "all connections are there and fresh");
    let mut uses = 0;
    let shared = pool.clone();
    let mut team = Team::new(1, move |_| {
        let pool = shared.clone();
        move |calls| calls.for_each(|_| pool.with(Idle::call).expect("a connection is idle"))
    });
    Box::new(move |count| {
        let took = team.run(count).took();
        uses += count;
        assert_eq!(pool.uses(CONNECTIONS), uses, "no connection was closed");
        took
    })
}

/// What threads of the pool's own, if it has any, have allocated and not given back: each is asked when it makes or closes a
/// connection.
#[derive(Debug, Default)]
struct Books {
    open: AtomicU64,
    /// Net bytes when a thread was first and last seen.
    seen: Mutex<HashMap<ThreadId, (i64, i64)>>,
}

impl Books {
    fn look(&self) {
        let bytes = allocated_so_far().net_bytes();
        self.seen.lock().entry(thread::current().id()).or_insert((bytes, bytes)).1 = bytes;
    }

    /// Forgets what was seen.
    fn begin(&self) {
        self.seen.lock().values_mut().for_each(|(first, last)| *first = *last);
    }

    /// Of all threads but this one.
    fn of_others(&self) -> i64 {
        let me = thread::current().id();
        let seen = self.seen.lock();
        seen.iter().filter(|(thread, _)| **thread != me).map(|(_, (first, last))| last - first).sum()
    }
}

struct Tenant(Arc<Books>);

impl Tenant {
    fn new(books: &Arc<Books>) -> Self {
        books.look();
        books.open.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(books))
    }
}

impl Drop for Tenant {
    fn drop(&mut self) {
        self.0.look();
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

struct Tenants(Arc<Books>);

impl KeyedManager<u64> for Tenants {
    type Connection = Tenant;
    type Error = Infallible;

    fn connect(&self, _: &u64, _: Duration) -> Result<Tenant, Infallible> {
        Ok(Tenant::new(&self.0))
    }
    fn validate(&self, _: &u64, _: &mut Tenant, _: Duration) -> Result<(), Infallible> {
        Ok(())
    }
}

/// All tenants are used once, and those with a connection are not idle: but theirs is counted with the others'. Without what a
/// pool costs that has one.
fn bytes_over_300() -> f64 {
    let books = Arc::new(Books::default());
    let pool = KeyedPool::builder(Tenants(Arc::clone(&books))).max_size(CONNECTIONS).build().expect(FITS);
    let call = |key| pool.with(&key, |_| ()).expect("there is room, or a connection is idle");
    let left = |connections: usize| {
        let there = || books.open.load(Ordering::Relaxed) == connections as u64;
        assert!(eventually(Duration::from_secs(60), there), "{connections} connections, not {:?}", books.open);
    };
    call(0);
    left(1);
    books.begin();
    let ((), caller) = measure(|| (1..TENANTS).for_each(call));
    left(CONNECTIONS);
    let bytes = caller.net_bytes() + books.of_others();
    let idle = TENANTS - CONNECTIONS as u64;
    (bytes as f64 / idle as f64 - 300.0).max(0.0).round()
}
