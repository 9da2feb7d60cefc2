//! `fullbore-pool` as it is used: far more threads than connections, each of which is held for the time of a query.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::pool::{Checkout, Idle, deadpool, ours, r2d2};
use crate::measure::{Case, Side, Span, Team};

const THREADS: usize = 64;
const CONNECTIONS: usize = 8;
const QUERY: Duration = Duration::from_millis(2);

/// Half a second of the load: the p99.9 is the third longest wait.
const WAITS: u64 = 2_000;

/// See the module. For the list of the area `pool`.
#[must_use]
pub fn load_cases() -> Vec<Case> {
    vec![
        Case::new("held for 2 ms, 64 threads on 8 connections", THREADS, || held(ours(CONNECTIONS)))
            .against("8 threads that own a connection each", owned),
        Case::new("wait for a checkout, p99.9, 64 threads on 8", THREADS, || waits(ours(CONNECTIONS)))
            .one_a_turn()
            .against("r2d2", || waits(r2d2(CONNECTIONS)))
            .against("deadpool", || waits(deadpool(CONNECTIONS))),
    ]
}

/// Threads that take one operation after the other. Those of a [`Team`] take several at once: with 2 ms for each, the last to be
/// through would be many of them behind, and that more so the fewer threads there are.
struct OneByOne {
    team: Team,
    threads: u64,
    left: Arc<AtomicI64>,
}

impl OneByOne {
    /// Each thread makes what it does with `make(its number)`.
    fn new<W: FnMut()>(threads: usize, make: impl Fn(usize) -> W + Send + Sync + 'static) -> Self {
        let left = Arc::new(AtomicI64::new(0));
        let shared = Arc::clone(&left);
        let team = Team::new(threads, move |number| {
            let (left, mut work) = (Arc::clone(&shared), make(number));
            move |_| {
                while left.fetch_sub(1, Ordering::Relaxed) > 0 {
                    work();
                }
            }
        });
        Self { team, threads: threads as u64, left }
    }

    fn run(&mut self, count: u64) -> Span {
        self.left.store(i64::try_from(count).expect("a turn is short"), Ordering::Relaxed);
        // To the team it is one operation for each thread.
        self.team.run(self.threads)
    }
}

fn query(connection: &mut Idle) {
    connection.call();
    thread::sleep(QUERY);
}

fn held(pool: impl Checkout) -> Side {
    assert_eq!(pool.uses(CONNECTIONS), 0, "all connections are there and fresh");
    let shared = pool.clone();
    let mut threads = OneByOne::new(THREADS, move |_| {
        let pool = shared.clone();
        move || pool.with(query)
    });
    let mut queries = 0;
    Box::new(move |count| {
        let took = threads.run(count).took();
        queries += count;
        assert_eq!(pool.uses(CONNECTIONS), queries, "no query and no connection is lost");
        took
    })
}

/// What the connections can do at most: no thread has to wait, or to be told.
fn owned() -> Side {
    // Nobody else asks for a lock while a turn lasts.
    let connections: Arc<[Mutex<Idle>]> = (0..CONNECTIONS).map(|_| Mutex::default()).collect();
    let shared = Arc::clone(&connections);
    let mut threads = OneByOne::new(CONNECTIONS, move |number| {
        let connections = Arc::clone(&shared);
        move || query(&mut connections[number].lock())
    });
    let mut queries = 0;
    Box::new(move |count| {
        let took = threads.run(count).took();
        queries += count;
        assert_eq!(connections.iter().map(|connection| connection.lock().uses).sum::<u64>(), queries);
        took
    })
}

/// An operation is half a second of the load; its time is the 99.9th percentile of the waits from asking for a connection to
/// having it.
fn waits(pool: impl Checkout) -> Side {
    assert_eq!(pool.uses(CONNECTIONS), 0, "all connections are there and fresh");
    let waits = Arc::new(Mutex::new(Vec::with_capacity(WAITS as usize)));
    let (shared, noted) = (pool.clone(), Arc::clone(&waits));
    let mut threads = OneByOne::new(THREADS, move |_| {
        let (pool, noted) = (shared.clone(), Arc::clone(&noted));
        move || {
            let asked = Instant::now();
            let waited = pool.with(|connection| {
                let waited = asked.elapsed();
                query(connection);
                waited
            });
            noted.lock().push(waited);
        }
    });
    let mut queries = 0;
    Box::new(move |count| {
        let p999 = |_| {
            threads.run(WAITS);
            queries += WAITS;
            assert_eq!(pool.uses(CONNECTIONS), queries, "no query and no connection is lost");
            let mut waits = waits.lock();
            assert_eq!(waits.len() as u64, WAITS);
            waits.sort_unstable();
            let p999 = waits[(waits.len() * 999).div_ceil(1000) - 1];
            waits.clear();
            p999
        };
        (0..count).map(p999).sum()
    })
}
