//! `fullbore-pool` while its server is down, and when it comes back: 64 threads that want a connection all the time must
//! neither keep the server from coming up nor the machine busy, and must not wait for longer than need be.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use fullbore_pool::Pool;
use fullbore_testkit::eventually;
use rustix::time::{ClockId, clock_gettime};

use super::pool_server::{Client, Server};
use super::{Count, FITS, tenths};
use crate::measure::Plan;

const THREADS: u32 = 64;
const MAX_SIZE: usize = 16;
const CONNECT: Duration = Duration::from_millis(5);
const QUERY: Duration = Duration::from_millis(1);
/// What each caller does after an error.
const PAUSE: Duration = Duration::from_millis(10);
/// One pause in so many is measured.
const MEASURED: u32 = 8;
/// So long all is well, before.
const UP: Duration = Duration::from_millis(200);

/// The longest step that the pool is told to make between attempts.
const BACKOFF_MAX: Duration = Duration::from_millis(500);
/// Once the pool looks: a connect, the pause that a caller may be in, and the queries of all one after the other, should
/// there be a single connection as yet, are 80 ms. A loaded machine may need more.
const SERVICE: Duration = Duration::from_millis(150);

/// How an outage went. It lasts for five seconds, or for one if the plan is quick.
#[must_use]
pub fn outage_counts(plan: &Plan) -> Vec<Count> {
    if plan.quick { counts::<1>() } else { counts::<5>() }
}

fn counts<const SECONDS: u64>() -> Vec<Count> {
    vec![
        Count {
            name: "outage: connect attempts in flight over 1",
            unit: "count",
            ours: || outage(SECONDS).attempts.saturating_sub(1) as f64,
        },
        Count {
            name: "outage: CPU over 1 % of a core while down",
            unit: "percent",
            ours: || tenths((outage(SECONDS).cpu_percent - 1.0).max(0.0)),
        },
        Count {
            name: "outage: served later than one backoff step after recovery",
            unit: "ms",
            ours: || {
                let late = outage(SECONDS).last_served.saturating_sub(BACKOFF_MAX + SERVICE);
                tenths(late.as_secs_f64() * 1_000.0)
            },
        },
    ]
}

#[derive(Clone, Copy, Debug)]
struct Outage {
    /// The most that were under way at once after the first had failed: before that nobody can know.
    attempts: usize,
    cpu_percent: f64,
    /// From the recovery until each of the threads had been served.
    last_served: Duration,
}

/// All counts are of the same one.
fn outage(seconds: u64) -> Outage {
    static OUTAGE: OnceLock<Outage> = OnceLock::new();
    *OUTAGE.get_or_init(|| run(Duration::from_secs(seconds)))
}

fn run(down: Duration) -> Outage {
    let server = Server::new(CONNECT, QUERY);
    let pool = Pool::builder(Client(server.clone())).max_size(MAX_SIZE).backoff(BACKOFF_MAX / 5, BACKOFF_MAX);
    let pool = pool.build().expect(FITS);
    let callers = Callers::default();
    let (cpu_percent, last_served) = thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(|| callers.call(&pool))).collect();
        thread::sleep(UP);
        assert!(server.queries() > 0, "all is well before the outage");

        let (process, pauses) = (cpu_time(ClockId::ProcessCPUTime), callers.cpu_of_pauses());
        server.stop();
        thread::sleep(down);
        let (process, pauses) = (cpu_time(ClockId::ProcessCPUTime) - process, callers.cpu_of_pauses() - pauses);

        callers.recovery.get_or_init(Instant::now);
        server.restart();
        let served = threads.into_iter().map(|thread| thread.join().expect("all are served again"));
        let last_served = served.max().expect("there are threads");
        let of_the_pool = process.saturating_sub(pauses);
        (of_the_pool.as_secs_f64() / down.as_secs_f64() * 100.0, last_served)
    });
    assert_eq!(server.queries(), callers.served.load(Ordering::Relaxed), "each answer was somebody's");
    assert!(server.most_open() <= MAX_SIZE, "{} connections", server.most_open());
    drop(pool);
    let all_closed = eventually(Duration::from_secs(60), || server.open() == 0);
    assert!(all_closed, "{} connections of a closed pool", server.open());
    Outage { attempts: server.most_probing(), cpu_percent, last_served }
}

#[derive(Debug, Default)]
struct Callers {
    served: AtomicU64,
    /// Nanoseconds of processor time that the measured ones of their pauses took.
    measured: AtomicU64,
    recovery: OnceLock<Instant>,
}

impl Callers {
    /// Asks and asks; returns how long after the recovery it was served again.
    fn call(&self, pool: &Pool<Client>) -> Duration {
        let mut pauses = 0;
        loop {
            if matches!(pool.with(|link| link.query()), Ok(Ok(()))) {
                self.served.fetch_add(1, Ordering::Relaxed);
                if let Some(recovery) = self.recovery.get() {
                    return recovery.elapsed();
                }
            } else {
                let overdue = self.recovery.get().is_some_and(|at| at.elapsed() > Duration::from_secs(60));
                assert!(!overdue, "not served for a minute, and the server is up");
                self.pause(pauses);
                pauses += 1;
            }
        }
    }

    /// Thousands of these a second take 3 to 6 % of a core, and are not the pool's: its time is that of the process without
    /// them. They are measured while the outage lasts, because what one costs depends on how many threads wake up together; and
    /// not all of them, because so many looks at the clock would be a third of the goal.
    fn pause(&self, number: u32) {
        if !number.is_multiple_of(MEASURED) {
            thread::sleep(PAUSE);
            return;
        }
        let began = cpu_time(ClockId::ThreadCPUTime);
        thread::sleep(PAUSE);
        let took = cpu_time(ClockId::ThreadCPUTime) - began;
        self.measured.fetch_add(took.as_nanos() as u64, Ordering::Relaxed);
    }

    fn cpu_of_pauses(&self) -> Duration {
        Duration::from_nanos(self.measured.load(Ordering::Relaxed)) * MEASURED
    }
}

/// What this clock has measured so far: of the whole process, all threads, or of this thread.
pub(super) fn cpu_time(clock: ClockId) -> Duration {
    let now = clock_gettime(clock);
    // Both parts of a CPU clock are never negative.
    Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or(0))
}
