//! `fullbore-pool`: checkout and return of an idle connection, against other pools and the least that could do it. Other
//! cases of it are in files of their own.

use std::convert::Infallible;
use std::hint::black_box;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::Duration;

use fullbore_pool::{Manager, Pool};
use parking_lot::Mutex;

use super::{Count, FITS, allocations_each};
use crate::measure::{Case, Plan, Side, Team};

/// See the module.
#[must_use]
pub fn cases() -> Vec<Case> {
    let points = [
        ("checkout and return, 1 connection", 1, 1),
        ("checkout and return, 2 connections", 2, 2),
        ("checkout and return, 8 connections", 8, 8),
        ("checkout and return, 8 connections", 64, 8),
    ];
    let mut cases: Vec<Case> = points
        .into_iter()
        .map(|(name, threads, connections)| {
            let case = Case::new(name, threads, move || side(ours(connections), threads, connections))
                .against("r2d2", move || side(r2d2(connections), threads, connections))
                .against("deadpool", move || side(deadpool(connections), threads, connections));
            match threads {
                1 => case.against("Mutex<Vec>", || side(Arc::new(Mutex::new(vec![Idle::default()])), 1, 1)),
                _ => case,
            }
        })
        .collect();
    cases.extend(super::pool_load::load_cases());
    cases.extend(super::pool_spike::spike_cases());
    cases.extend(super::pool_keyed::keyed_cases());
    cases.extend(super::pool_db::db_cases());
    cases
}

/// What is to be zero.
#[must_use]
pub fn counts(plan: &Plan) -> Vec<Count> {
    let mut counts = vec![Count { name: "allocations for each checkout", unit: "allocs", ours: allocations }];
    counts.extend(super::pool_spike::spike_counts());
    counts.extend(super::pool_outage::outage_counts(plan));
    counts.extend(super::pool_keyed::keyed_counts());
    counts
}

/// A connection to nowhere that knows how often it was used.
#[derive(Debug, Default)]
pub(super) struct Idle {
    pub(super) uses: u64,
}

impl Idle {
    pub(super) fn call(&mut self) {
        *black_box(&mut self.uses) += 1;
    }
}

/// A way to a connection.
pub(super) trait Checkout: Clone + Send + Sync + 'static {
    /// Checks a connection out, uses it, and returns it.
    fn with<R>(&self, work: impl FnOnce(&mut Idle) -> R) -> R;

    /// The uses of this many connections, all of them out at once.
    fn uses(&self, connections: usize) -> u64 {
        match connections {
            0 => 0,
            n => self.with(|connection| connection.uses + self.uses(n - 1)),
        }
    }
}

/// Every use is to be found in one of the pool's connections: none was made twice, lost, or given to two at once.
fn side(pool: impl Checkout, threads: usize, connections: usize) -> Side {
    assert_eq!(pool.uses(connections), 0, "all connections are there and fresh");
    let shared = pool.clone();
    let mut team = Team::new(threads, move |_| {
        let pool = shared.clone();
        move |calls| calls.for_each(|_| pool.with(Idle::call))
    });
    let mut uses = 0;
    Box::new(move |count| {
        let took = team.run(count).took();
        uses += count;
        assert_eq!(pool.uses(connections), uses);
        took
    })
}

/// Makes them, for all.
#[derive(Debug)]
pub(super) struct Maker;

impl Manager for Maker {
    type Connection = Idle;
    type Error = Infallible;

    fn connect(&self, _: Duration) -> Result<Idle, Infallible> {
        Ok(Idle::default())
    }
    fn validate(&self, _: &mut Idle, _: Duration) -> Result<(), Infallible> {
        Ok(())
    }
}

/// Validation window, idle and life times are on, as by default.
pub(super) fn ours(connections: usize) -> Pool<Maker> {
    Pool::builder(Maker).max_size(connections).build().expect(FITS)
}

impl Checkout for Pool<Maker> {
    fn with<R>(&self, work: impl FnOnce(&mut Idle) -> R) -> R {
        work(&mut self.get().expect("a connection comes free within 30 s"))
    }
}

impl r2d2::ManageConnection for Maker {
    type Connection = Idle;
    type Error = Infallible;

    fn connect(&self) -> Result<Idle, Infallible> {
        Ok(Idle::default())
    }
    fn is_valid(&self, _: &mut Idle) -> Result<(), Infallible> {
        Ok(())
    }
    fn has_broken(&self, _: &mut Idle) -> bool {
        false
    }
}

/// Validation off: ours trusts a connection that was used just now, too.
pub(super) fn r2d2(connections: usize) -> r2d2::Pool<Maker> {
    let connections = u32::try_from(connections).expect("few connections");
    r2d2::Pool::builder().max_size(connections).test_on_check_out(false).build(Maker).expect("nothing can fail")
}

impl Checkout for r2d2::Pool<Maker> {
    fn with<R>(&self, work: impl FnOnce(&mut Idle) -> R) -> R {
        work(&mut self.get().expect("a connection comes free within 30 s"))
    }
}

impl deadpool::managed::Manager for Maker {
    type Type = Idle;
    type Error = Infallible;

    async fn create(&self) -> Result<Idle, Infallible> {
        Ok(Idle::default())
    }
    async fn recycle(
        &self,
        _: &mut Idle,
        _: &deadpool::managed::Metrics,
    ) -> deadpool::managed::RecycleResult<Infallible> {
        Ok(())
    }
}

pub(super) type Deadpool = deadpool::managed::Pool<Maker>;

/// No timeouts: those need a runtime. So its wait has no deadline, which ours has.
pub(super) fn deadpool(connections: usize) -> Deadpool {
    Deadpool::builder(Maker).max_size(connections).build().expect("no timeouts are set")
}

impl Checkout for Deadpool {
    fn with<R>(&self, work: impl FnOnce(&mut Idle) -> R) -> R {
        work(&mut block_on(self.get()).expect("the pool is open"))
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }
    fn wake_by_ref(self: &Arc<Self>) {
        self.0.unpark();
    }
}

/// The least that drives a future on a thread. The waker is made once for each thread, not for each call.
fn block_on<F: Future>(future: F) -> F::Output {
    thread_local!(static WAKER: Waker = Waker::from(Arc::new(Unpark(thread::current()))));
    let mut future = pin!(future);
    WAKER.with(|waker| {
        let mut context = Context::from_waker(waker);
        loop {
            match future.as_mut().poll(&mut context) {
                Poll::Ready(output) => return output,
                Poll::Pending => thread::park(),
            }
        }
    })
}

/// No waiting, no checks, no times, no counts: nothing can be much faster.
impl Checkout for Arc<Mutex<Vec<Idle>>> {
    fn with<R>(&self, work: impl FnOnce(&mut Idle) -> R) -> R {
        let mut connection = self.lock().pop().expect("as many connections as threads");
        let result = work(&mut connection);
        self.lock().push(connection);
        result
    }
}

fn allocations() -> f64 {
    let pool = ours(1);
    allocations_each(|| pool.with(Idle::call).expect("the connection is idle"))
}
