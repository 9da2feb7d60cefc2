//! What the run found out, for a person and for a program.

use std::time::Duration;

use console::style;
use fullbore_metrics::StationSnapshot;
use serde::Serialize;

use crate::pipeline::Dead;

/// The last line of `--json`.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    /// Tenants of this run, the faulty ones included.
    pub(crate) tenants: usize,
    /// Those that have version 2 now.
    pub(crate) migrated: u64,
    pub(crate) dead_lettered: usize,
    /// Those of `migrated` that passed the verification.
    pub(crate) verified: u64,
    /// Whether everything is as it should be: exit status 0.
    pub(crate) ok: bool,
    /// Those that had version 2 before, from the run that is resumed.
    pub(crate) already: u64,
    pub(crate) retries: u64,
    pub(crate) workers: usize,
    pub(crate) one_at_a_time_per_s: f64,
    pub(crate) fleet_per_s: f64,
    pub(crate) bare_loop_per_s: f64,
    /// The fleet run against one at a time.
    pub(crate) speedup: f64,
    /// The fleet run against the bare loop.
    pub(crate) of_bare_loop: f64,
    pub(crate) fsync_ms_p50: f64,
    pub(crate) cpu_ms_per_tenant: f64,
    pub(crate) peak_rss_mb: Option<f64>,
    pub(crate) bottleneck: Bottleneck,
    pub(crate) wrong: Vec<String>,
}

/// Where the fleet's time went.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Bottleneck {
    pub(crate) station: String,
    /// `cpu`: the processors were busy; `disk`: workers waited for the disk; `station`: that station had no time left.
    pub(crate) kind: &'static str,
    /// How much of what it has was used, or for `disk`, how much of the processors' time was spent waiting. 0 to 1.
    pub(crate) share: f64,
}

/// The station with the least time left. `single` are those with one server each.
pub(crate) fn bottleneck(
    migrate: &StationSnapshot,
    single: &[StationSnapshot],
    window: Duration,
    cpu: Duration,
    cores: usize,
) -> Bottleneck {
    let seconds = window.as_secs_f64().max(f64::MIN_POSITIVE);
    let cpu_share = (cpu.as_secs_f64() / (seconds * cores as f64)).min(1.0);
    let busiest = single
        .iter()
        .map(|station| (station.name(), station.utilisation(window).min(1.0)))
        .max_by(|a, b| a.1.total_cmp(&b.1));
    if let Some((name, share)) = busiest.filter(|(_, share)| *share > 0.8 && *share > cpu_share) {
        return Bottleneck { station: name.to_owned(), kind: "station", share };
    }
    let (kind, share) = if cpu_share >= 0.7 { ("cpu", cpu_share) } else { ("disk", 1.0 - cpu_share) };
    Bottleneck { station: migrate.name().to_owned(), kind, share }
}

impl Report {
    /// For people; coloured on a terminal.
    pub(crate) fn print(&self, dead: &[Dead]) {
        let verdict = if self.ok { style("verified").green().bold() } else { style("FAILED").red().bold() };
        println!();
        println!(
            "{verdict}: {} tenants, {} migrated, {} of these verified, {} dead letters, {} retries",
            self.tenants, self.migrated, self.verified, self.dead_lettered, self.retries
        );
        if self.already > 0 {
            println!("  {} had been migrated by the run before", self.already);
        }
        for letter in dead {
            println!("  {} {}: {}", style("dead letter").yellow(), letter.tenant, letter.reason);
        }
        for wrong in self.wrong.iter().take(10) {
            println!("  {} {wrong}", style("wrong").red());
        }
        if self.wrong.len() > 10 {
            println!("  ... and {} more", self.wrong.len() - 10);
        }
        println!();
        println!("  one at a time {:>8.0} tenants/s", self.one_at_a_time_per_s);
        println!(
            "  fleet         {} tenants/s with {} workers, {:.1} times as many",
            style(format!("{:>8.0}", self.fleet_per_s)).bold(),
            self.workers,
            self.speedup
        );
        println!(
            "  bare loop     {:>8.0} tenants/s on as many threads: the fleet reaches {:.0} % of what the machine allows",
            self.bare_loop_per_s,
            100.0 * self.of_bare_loop
        );
        println!();
        let Bottleneck { station, kind, share } = &self.bottleneck;
        let why = match *kind {
            "cpu" => "the processors are busy: more threads cannot help, fewer instructions would",
            "disk" => "the workers wait for the disk: more of them help as long as it takes more at once",
            _ => "that station has no time left: give it more servers, or less to do",
        };
        println!("  bottleneck: {station} ({kind}, {:.0} %): {why}", 100.0 * share);
        println!(
            "  a sync to disk takes {:.2} ms (median), a tenant {:.2} ms of processor time",
            self.fsync_ms_p50, self.cpu_ms_per_tenant
        );
        println!("  that is why the ratio is what it is: the waits overlap, the processor time does not");
        if let Some(mb) = self.peak_rss_mb {
            println!("  peak memory {mb:.0} MB");
        }
    }
}
