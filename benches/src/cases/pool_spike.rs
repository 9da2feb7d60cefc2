//! `fullbore-pool`: many threads want a connection at once, for far less time than it takes to make one. HikariCP's page
//! "Welcome to the jungle" has this one: those who ask are served sooner by the few connections that there are, and a pool
//! that makes one for each of them loads the server with connections that nobody wants any more.

use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use fullbore_pool::Pool;

use super::pool_server::{Client, Server};
use super::{Count, FITS};
use crate::measure::{Case, Side};

const THREADS: usize = 50;
const MIN_IDLE: usize = 5;
const MAX_SIZE: usize = 50;
const CONNECT: Duration = Duration::from_millis(150);
const QUERY: Duration = Duration::from_millis(2);

/// See the module. For the list of the area `pool`.
#[must_use]
pub fn spike_cases() -> Vec<Case> {
    vec![
        Case::new("spike of 50 threads: total time", THREADS, || spikes(ours))
            .one_a_turn()
            .against("r2d2", || spikes(r2d2)),
    ]
}

/// What is left of it.
#[must_use]
pub fn spike_counts() -> Vec<Count> {
    vec![Count { name: "spike of 50 threads: connections at the end over 6", unit: "count", ours: connections_over_6 }]
}

/// Has a connection asked something.
trait Ask: Sync + 'static {
    fn ask(&self);
}

const ANSWERED: &str = "the server answers";

impl Ask for Pool<Client> {
    fn ask(&self) {
        self.with(|link| link.query()).expect(ANSWERED).expect(ANSWERED);
    }
}

impl Ask for r2d2::Pool<Client> {
    fn ask(&self) {
        self.get().expect(ANSWERED).query().expect(ANSWERED);
    }
}

fn ours(server: &Arc<Server>) -> Pool<Client> {
    Pool::builder(Client(Arc::clone(server))).min_idle(MIN_IDLE).max_size(MAX_SIZE).build().expect(FITS)
}

fn r2d2(server: &Arc<Server>) -> r2d2::Pool<Client> {
    let count = |n| u32::try_from(n).expect("few connections");
    let pool = r2d2::Pool::builder().min_idle(Some(count(MIN_IDLE))).max_size(count(MAX_SIZE));
    // Ours trusts a connection that was used just now, too.
    pool.test_on_check_out(false).build(Client(Arc::clone(server))).expect(ANSWERED)
}

/// An operation is a spike on a pool of its own, which is made before and closed after it.
fn spikes<P: Ask>(make: fn(&Arc<Server>) -> P) -> Side {
    Box::new(move |count| (0..count).map(|_| spike(make).0).sum())
}

/// How long it took, and what is left.
fn spike<P: Ask>(make: fn(&Arc<Server>) -> P) -> (Duration, Arc<Server>, P) {
    let server = Server::new(CONNECT, QUERY);
    let pool = make(&server);
    server.wait_for_open(MIN_IDLE);
    let all = Barrier::new(THREADS);
    let asked = || {
        all.wait();
        let began = Instant::now();
        pool.ask();
        (began, Instant::now())
    };
    let spans: Vec<(Instant, Instant)> = thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(asked)).collect();
        threads.into_iter().map(|thread| thread.join().expect(ANSWERED)).collect()
    });
    assert_eq!(server.queries(), THREADS as u64, "each has asked once");
    assert!(server.most_open() <= MAX_SIZE, "{} connections", server.most_open());
    let began = spans.iter().map(|span| span.0).min().expect("there are threads");
    let ended = spans.iter().map(|span| span.1).max().expect("there are threads");
    (ended - began, server, pool)
}

/// The most of three, when those who were connecting are through with it.
fn connections_over_6() -> f64 {
    let left = |_| {
        let (_, server, _pool) = spike(ours);
        server.wait_for_quiet();
        server.open()
    };
    (0..3).map(left).max().unwrap_or(usize::MAX).saturating_sub(6) as f64
}
