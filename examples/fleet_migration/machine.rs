//! What the machine does underneath: time to sync, processor time, memory.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::time::{Duration, Instant};

/// Times of single small synced writes, as each commit needs several of.
#[derive(Debug, Default)]
pub(crate) struct Fsync {
    taken: Vec<Duration>,
}

impl Fsync {
    /// Measures `n` of them in a file in `dir`.
    pub(crate) fn measure(&mut self, dir: &Path, n: usize) -> io::Result<()> {
        let path = dir.join("fsync-probe");
        let mut file = File::create(&path)?;
        for _ in 0..n {
            let begin = Instant::now();
            file.write_all(&[0u8; 4096])?;
            file.sync_data()?;
            self.taken.push(begin.elapsed());
        }
        drop(file);
        fs::remove_file(path)
    }

    pub(crate) fn p50(&self) -> Duration {
        let mut taken = self.taken.clone();
        taken.sort_unstable();
        taken.get(taken.len() / 2).copied().unwrap_or_default()
    }
}

/// Processor time of the whole process, all threads.
pub(crate) fn cpu_time() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    // Both parts of a CPU clock are never negative.
    Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or(0))
}

/// The most memory that the process ever had resident, in MB. `None` where `/proc` does not tell.
pub(crate) fn peak_rss_mb() -> Option<f64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024.0 / 1e6)
}

pub(crate) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
