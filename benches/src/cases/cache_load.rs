//! `fullbore-cache`: many threads that want the same key, and it is not there.

use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Barrier, OnceLock};
use std::thread;
use std::time::Duration;

use rustix::time::ClockId;

use super::cache::ours;
use super::pool_outage::cpu_time;
use super::{Count, tenths};

const THREADS: usize = 64;
const LOAD: Duration = Duration::from_millis(50);
/// To wake a thread takes some 20 us and is not for nothing; what is, is to look again and again.
const CPU_MS: f64 = 5.0;
/// An odd number: of what they cost it is the median.
const TIMES: usize = 5;

/// See the module. For the list of the area `cache`.
#[must_use]
pub fn load_counts() -> Vec<Count> {
    vec![
        Count {
            name: "64 threads on a cold key: loads over 1",
            unit: "count",
            ours: || stampedes().iter().map(|stampede| stampede.loads - 1).max().unwrap_or(0) as f64,
        },
        Count {
            name: "64 threads on a cold key: CPU over 5 ms",
            unit: "ms",
            ours: || {
                let mut times = stampedes().map(|stampede| stampede.cpu);
                times.sort_unstable();
                tenths((times[TIMES / 2].as_secs_f64() * 1_000.0 - CPU_MS).max(0.0))
            },
        },
    ]
}

#[derive(Clone, Copy, Debug)]
struct Stampede {
    loads: u64,
    /// Of the process, from the begin of the load until everybody has the value.
    cpu: Duration,
}

/// Both counts are of the same ones.
fn stampedes() -> [Stampede; TIMES] {
    static STAMPEDES: OnceLock<[Stampede; TIMES]> = OnceLock::new();
    *STAMPEDES.get_or_init(|| [(); TIMES].map(|()| stampede()))
}

fn stampede() -> Stampede {
    let cache = ours::<u64, u64>(100);
    let (loads, began, ended) = (AtomicU64::new(0), OnceLock::new(), AtomicU64::new(0));
    let now = || cpu_time(ClockId::ProcessCPUTime);
    let load = || {
        loads.fetch_add(1, Ordering::Relaxed);
        began.get_or_init(now);
        thread::sleep(LOAD);
        Ok::<_, Infallible>(42)
    };
    // They begin together, and none ends while another waits for its value: what its end costs would count.
    let all = Barrier::new(THREADS);
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                all.wait();
                let value = cache.get_or_compute(&0, |_| load());
                ended.fetch_max(now().as_nanos() as u64, Ordering::Relaxed);
                all.wait();
                assert_eq!(value.ok(), Some(42), "everybody has the value");
            });
        }
    });
    let began = *began.get().expect("somebody has loaded it");
    let cpu = Duration::from_nanos(ended.into_inner()) - began;
    Stampede { loads: loads.into_inner(), cpu }
}
