//! A run from beginning to end.

use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use fullbore_core::Shutdown;
use fullbore_examples::fleet::faults::{self, hold_lock};
use fullbore_examples::fleet::reference::FromMemory;
use fullbore_examples::fleet::{Dataset, Tenant};
use indicatif::ProgressDrawTarget;

use crate::args::{AUTO_MAX, Args, Workers};
use crate::baseline::{bare_loop, one_at_a_time};
use crate::check::{Untouched, check};
use crate::events::Counters;
use crate::fleet::{FAULTS, create, create_faulty, deal, every_nth, model, names, select};
use crate::machine::{Fsync, cores, cpu_time, peak_rss_mb};
use crate::pipeline::{Fatal, Pipeline, Round, Task};
use crate::place::{Place, PlaceError, TenantName, file_name};
use crate::report::{Bottleneck, Report, bottleneck};
use crate::{control, place};

/// How a run ended.
pub(crate) enum Ended {
    Verified,
    /// It ran, and something is not as it should be; the report says what.
    Wrong,
    Failed(String),
    Usage(String),
    /// With what was done and what was not.
    Interrupted(String),
}

/// How long the locked tenant stays locked.
const LOCK_HELD: Duration = Duration::from_secs(2);
/// How long a stop waits for what is being migrated.
const DRAIN: Duration = Duration::from_secs(30);

pub(crate) fn run(args: &Args) -> Ended {
    match prepare(args).and_then(|prepared| prepared.go(args)) {
        Ok(ended) | Err(ended) => ended,
    }
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn failed(error: impl ToString) -> Ended {
    Ended::Failed(error.to_string())
}

/// Everything that is there before the first migration.
struct Prepared {
    place: Arc<Place>,
    dataset: Arc<Dataset>,
    refs: Arc<FromMemory>,
    fleet: Vec<Tenant>,
    control: control::Control,
    shutdown: Shutdown,
    say: Say,
}

/// Progress in plain lines: to standard error with `--json`.
#[derive(Clone, Copy)]
struct Say {
    json: bool,
}

impl Say {
    fn line(self, text: impl std::fmt::Display) {
        if self.json {
            eprintln!("{text}");
        } else {
            println!("{text}");
        }
    }
}

fn prepare(args: &Args) -> Result<Prepared, Ended> {
    let say = Say { json: args.json };
    let shutdown = Shutdown::new();
    shutdown.on_signals().map_err(|error| failed(format!("cannot listen to signals: {error}")))?;
    let dataset = Arc::new(Dataset::load(&args.data).map_err(failed)?);
    let all = dataset.tenants().len();
    if let Some(n) = args.tenants.filter(|n| *n > all) {
        return Err(Ended::Usage(format!("--tenants {n} is beyond the fleet: give 1 to {all}")));
    }
    let place = Arc::new(Place::open(args).map_err(|error| match error {
        PlaceError::Usage(text) => Ended::Usage(text),
        PlaceError::Failed(text) => Ended::Failed(text),
    })?);
    let refs = Arc::new(FromMemory::new(&dataset).map_err(failed)?);
    let control = control::open(&place).map_err(failed)?;
    let n = match (args.resume, control::noted_fleet(&control).map_err(failed)?) {
        (false, _) => args.tenants.unwrap_or(all),
        (true, None) => {
            let dir = place.root().display();
            let text = format!("the run in {dir} was stopped before its fleet was complete: remove it and start again");
            return Err(Ended::Usage(text));
        }
        (true, Some(noted)) => match args.tenants {
            Some(n) if n != noted => {
                let text = format!("--tenants {n} does not fit: the run to resume has {noted}; leave --tenants out");
                return Err(Ended::Usage(text));
            }
            _ => noted,
        },
    };
    let fleet = select(&dataset, n);
    let prepared = Prepared { place, dataset, refs, fleet, control, shutdown, say };
    if !args.resume {
        prepared.make_fleet().map_err(failed)?;
    }
    Ok(prepared)
}

impl Prepared {
    fn make_fleet(&self) -> Result<(), String> {
        let begin = Instant::now();
        control::fill(&self.control, &self.dataset)?;
        create(&self.place.tenants(), &self.fleet, &self.dataset)?;
        create_faulty(&self.place, &self.fleet, &self.dataset)?;
        control::note_fleet(&self.control, self.fleet.len())?;
        let (n, took) = (self.fleet.len() + FAULTS.len(), begin.elapsed().as_secs_f64());
        self.say.line(format_args!("made {n} tenant databases in {took:.1} s, three of them faulty"));
        Ok(())
    }

    /// Copies outside the fleet: all of it for the bare loop, so that its rounds are as long as the fleet's, and one in
    /// twenty, of all sizes, for one at a time.
    fn make_samples(&self, one: &[Tenant]) -> Result<(), String> {
        create(&self.place.sample("bare"), &self.fleet, &self.dataset)?;
        create(&self.place.sample("one"), one, &self.dataset)
    }

    fn go(self, args: &Args) -> Result<Ended, Ended> {
        let rounds = (self.fleet.len() / 250).clamp(1, 8);
        let one: Vec<Tenant> = every_nth(&self.fleet, (self.fleet.len() / 20).clamp(1, 200)).cloned().collect();
        self.make_samples(&one).map_err(|error| failed(format!("{error}{}", self.go_on())))?;
        let untouched = Untouched::read(&self.place, &[faults::NOT_A_DATABASE, faults::VIOLATES]).map_err(failed)?;

        let fatal = Fatal::new(&self.shutdown);
        let most = match args.workers {
            Workers::Fixed(n) => n,
            Workers::Auto => AUTO_MAX,
        };
        let all = self.fleet.len() + FAULTS.len();
        let pipeline = Pipeline::start(&self.place, &self.control, most, all, &fatal).map_err(failed)?;
        if args.json {
            pipeline.listeners.bar.set_draw_target(ProgressDrawTarget::hidden());
        }
        pipeline.register(&self.shutdown);
        self.shutdown.on_request(pipeline.stop_beginning());

        let measured = self.rounds(args, &pipeline, rounds, &one);
        // Also after an error or a stop: what was begun is finished and recorded.
        pipeline.drain();
        let report = self.shutdown.close_within(DRAIN);
        pipeline.listeners.bar.finish_and_clear();
        let (measured, stopped) = match measured {
            Ok(measured) => (measured, false),
            Err(Stop::Requested) => (Measured::default(), true),
            Err(Stop::Failed(error)) => return Err(self.stopped_by(&pipeline, &error)),
        };
        if let Some(error) = fatal.get() {
            return Err(self.stopped_by(&pipeline, &error));
        }
        if stopped {
            return Err(Ended::Interrupted(self.state(&pipeline)));
        }
        if !report.is_clean() {
            return Err(failed(format!("not everything was finished: {report}")));
        }
        self.finish(args, &pipeline, &measured, &untouched)
    }

    fn state(&self, pipeline: &Pipeline) -> String {
        let counters = &pipeline.listeners.counters;
        let done = Counters::get(&counters.migrated) + Counters::get(&counters.already);
        let dead = pipeline.dead().len();
        let left = (self.fleet.len() + FAULTS.len()).saturating_sub(usize::try_from(done).unwrap_or(0) + dead);
        let taken_back = pipeline.not_begun();
        let go_on = self.go_on();
        format!("{done} migrated, {dead} dead letters, {left} not begun ({taken_back} of them had been queued){go_on}")
    }

    /// How to go on after a run that ended early.
    fn go_on(&self) -> String {
        if self.place.is_temporary() {
            "; its temporary directory is removed, with --dir the run could be resumed".to_owned()
        } else {
            format!("; then go on with --resume --dir {}", self.place.root().display())
        }
    }

    fn stopped_by(&self, pipeline: &Pipeline, error: &str) -> Ended {
        Ended::Failed(format!("{error}; {}", self.state(pipeline)))
    }

    /// The measured part: in each round a share of the fleet, of the one-at-a-time sample, and of the bare loop's.
    fn rounds(&self, args: &Args, pipeline: &Pipeline, rounds: usize, one: &[Tenant]) -> Result<Measured, Stop> {
        let mut measured = Measured::default();
        let shares = deal(&self.fleet, rounds).into_iter().zip(deal(one, rounds));
        let mut auto = Auto::new(args.workers);
        let lock = self.send_faulty(pipeline)?;
        for (n, (share, one)) in shares.enumerate() {
            let workers = auto.workers();
            pipeline.limit.set_permits(workers);
            measured.workers = workers;
            // What comes after a burst of writes meets a busy disk, so the two take turns in coming first.
            let mut rate = None;
            if n % 2 == 0 {
                rate = Some(self.fleet_round(pipeline, &share, &mut measured)?);
                self.one_round(&one, &mut measured)?;
            }
            self.bare_round(&share, workers, &mut measured)?;
            if n % 2 == 1 {
                self.one_round(&one, &mut measured)?;
                rate = Some(self.fleet_round(pipeline, &share, &mut measured)?);
            }
            let rate = rate.unwrap_or_default();
            auto.saw(rate);
            measured.fsync.measure(self.place.root(), 16).map_err(|error| {
                Stop::Failed(format!("cannot write in {}: {error}: make room there", self.place.root().display()))
            })?;
            self.check_stop()?;
            self.say.line(format_args!("round {} of {rounds}: {rate:.0} tenants/s, {workers} at once", n + 1));
        }
        if let Some(lock) = lock {
            // Released by its own thread; joined so that no failure of it goes unseen.
            lock.join().map_err(|_| Stop::Failed("the thread that held the lock panicked".into()))?;
        }
        pipeline.drain();
        self.check_stop()?;
        Ok(measured)
    }

    fn one_round(&self, tenants: &[Tenant], measured: &mut Measured) -> Result<(), Stop> {
        measured.one += one_at_a_time(&self.samples("one", tenants), &self.refs).map_err(Stop::Failed)?;
        measured.one_count += tenants.len();
        self.check_stop()
    }

    fn bare_round(&self, tenants: &[Tenant], workers: usize, measured: &mut Measured) -> Result<(), Stop> {
        measured.bare += bare_loop(&self.samples("bare", tenants), &self.refs, workers).map_err(Stop::Failed)?;
        measured.bare_count += tenants.len();
        self.check_stop()
    }

    fn samples(&self, baseline: &str, tenants: &[Tenant]) -> Vec<PathBuf> {
        let dir = self.place.sample(baseline);
        tenants.iter().map(|tenant| dir.join(file_name(&tenant.name))).collect()
    }

    fn check_stop(&self) -> Result<(), Stop> {
        if self.shutdown.is_requested() { Err(Stop::Requested) } else { Ok(()) }
    }

    /// Sends the three faulty tenants, one of them locked for two seconds by a connection of its own.
    fn send_faulty(&self, pipeline: &Pipeline) -> Result<Option<thread::JoinHandle<()>>, Stop> {
        let locked = self.place.tenant(faults::LOCKED);
        let guard =
            hold_lock(&locked).map_err(|error| Stop::Failed(format!("cannot lock {}: {error}", locked.display())))?;
        let shutdown = self.shutdown.clone();
        let holder = thread::Builder::new()
            .name("lock-holder".into())
            .spawn(move || {
                // The lock is the fault: it lasts this long, or until the run is stopped.
                let _ = shutdown.wait_within(LOCK_HELD);
                drop(guard);
            })
            .map_err(|error| Stop::Failed(error.to_string()))?;
        for (_, name) in FAULTS {
            if pipeline.send(Task { tenant: TenantName::from(name), round: None }).is_err() {
                return Err(Stop::Requested);
            }
        }
        Ok(Some(holder))
    }

    /// Tenants per second.
    fn fleet_round(&self, pipeline: &Pipeline, share: &[Tenant], measured: &mut Measured) -> Result<f64, Stop> {
        let round = Round::of(share.len());
        let waits = Arc::clone(&round);
        self.shutdown.on_request(move || waits.abandon());
        let (cpu, begin) = (cpu_time(), Instant::now());
        let producer = pipeline.producer();
        for tenant in names(share) {
            if producer.send(Task { tenant, round: Some(Arc::clone(&round)) }).is_err() {
                return Err(Stop::Requested);
            }
        }
        round.wait();
        pipeline.flush_results().map_err(Stop::Failed)?;
        let took = begin.elapsed();
        self.check_stop()?;
        measured.fleet += took;
        measured.cpu += cpu_time().saturating_sub(cpu);
        measured.fleet_count += share.len();
        Ok(share.len() as f64 / took.as_secs_f64())
    }

    fn finish(
        &self,
        args: &Args,
        pipeline: &Pipeline,
        measured: &Measured,
        untouched: &Untouched,
    ) -> Result<Ended, Ended> {
        let dead = pipeline.dead();
        let is_dead = |name: &str| dead.iter().any(|letter| &*letter.tenant == name);
        let healthy: Vec<Tenant> = self.fleet.iter().filter(|tenant| !is_dead(&tenant.name)).cloned().collect();
        let locked = (TenantName::from(faults::LOCKED), model(&self.fleet).clone());
        let extra: Vec<_> = Some(locked).into_iter().filter(|(name, _)| !is_dead(name)).collect();
        self.say.line("verifying: every database is opened again");
        let mut checked = check(&self.place, &healthy, &extra, &self.dataset, &self.refs).map_err(failed)?;

        let counters = &pipeline.listeners.counters;
        let already = Counters::get(&counters.already);
        let migrated = Counters::get(&counters.migrated) + already;
        let all = self.fleet.len() + FAULTS.len();
        let mut wrong = std::mem::take(&mut checked.wrong);
        for letter in dead.iter().filter(|letter| !FAULTS.iter().any(|(_, name)| *name == &*letter.tenant)) {
            wrong.push(format!("{} became a dead letter: {}", letter.tenant, letter.reason));
        }
        if is_dead(faults::LOCKED) {
            wrong.push("the locked tenant was given up".into());
        }
        for name in [faults::NOT_A_DATABASE, faults::VIOLATES].iter().filter(|name| !is_dead(name)) {
            wrong.push(format!("the faulty tenant {name} was not noticed"));
        }
        for name in untouched.changed(&self.place) {
            wrong.push(format!("the file of the dead letter {name} was changed"));
        }
        if migrated + dead.len() as u64 != all as u64 {
            wrong.push(format!("{migrated} migrated and {} dead letters do not make {all} tenants", dead.len()));
        }
        let recorded = control::count(&self.control, "migrated").map_err(failed)?;
        if recorded != migrated {
            wrong.push(format!("the control database knows {recorded} migrated tenants, there are {migrated}"));
        }
        for row in pipeline.registry.snapshot().stations {
            if !row.balanced() || row.waiting() + row.in_service() > 0 {
                wrong.push(format!("the counts of station {} do not add up: {row}", row.name()));
            }
        }

        let report = Report {
            tenants: all,
            migrated,
            dead_lettered: dead.len(),
            verified: checked.verified,
            ok: wrong.is_empty(),
            already,
            retries: Counters::get(&counters.retried),
            workers: measured.workers,
            one_at_a_time_per_s: measured.one_per_s(),
            fleet_per_s: measured.fleet_per_s(),
            bare_loop_per_s: measured.bare_per_s(),
            speedup: measured.fleet_per_s() / measured.one_per_s(),
            of_bare_loop: measured.fleet_per_s() / measured.bare_per_s(),
            fsync_ms_p50: measured.fsync.p50().as_secs_f64() * 1e3,
            cpu_ms_per_tenant: measured.cpu.as_secs_f64() * 1e3 / measured.fleet_count as f64,
            peak_rss_mb: peak_rss_mb(),
            bottleneck: self.bottleneck(pipeline, measured),
            wrong,
        };
        if args.json {
            println!("{}", serde_json::to_string(&report).map_err(failed)?);
        } else {
            println!();
            print!("{}", pipeline.registry.table());
            report.print(&dead);
            if !self.place.is_temporary() {
                println!("  kept in {}: {}", self.place.root().display(), place::file_name("tenants/<name>"));
            }
        }
        Ok(if report.ok { Ended::Verified } else { Ended::Wrong })
    }

    fn bottleneck(&self, pipeline: &Pipeline, measured: &Measured) -> Bottleneck {
        let mut single = vec![pipeline.results_station().snapshot()];
        single.extend(pipeline.listeners.subscriptions.iter().map(|listener| listener.station().snapshot()));
        bottleneck(&pipeline.station().snapshot(), &single, measured.fleet, measured.cpu, cores())
    }
}

/// Why the rounds ended early.
enum Stop {
    Requested,
    Failed(String),
}

/// Sums over all rounds.
#[derive(Default)]
struct Measured {
    fleet: Duration,
    fleet_count: usize,
    cpu: Duration,
    one: Duration,
    one_count: usize,
    bare: Duration,
    bare_count: usize,
    fsync: Fsync,
    workers: usize,
}

impl Measured {
    fn fleet_per_s(&self) -> f64 {
        self.fleet_count as f64 / self.fleet.as_secs_f64()
    }
    fn one_per_s(&self) -> f64 {
        self.one_count as f64 / self.one.as_secs_f64()
    }
    fn bare_per_s(&self) -> f64 {
        self.bare_count as f64 / self.bare.as_secs_f64()
    }
}

/// Doubles the number at work while the gain is at least 5 %.
struct Auto {
    workers: usize,
    last: Option<f64>,
    settled: bool,
}

impl Auto {
    fn new(workers: Workers) -> Self {
        match workers {
            Workers::Fixed(workers) => Self { workers, last: None, settled: true },
            Workers::Auto => Self { workers: 2, last: None, settled: false },
        }
    }

    fn workers(&self) -> usize {
        self.workers
    }

    fn saw(&mut self, rate: f64) {
        if self.settled {
            return;
        }
        if self.last.is_some_and(|last| rate < last * 1.05) {
            self.workers /= 2;
            self.settled = true;
        } else if self.workers >= AUTO_MAX {
            self.settled = true;
        } else {
            self.last = Some(rate);
            self.workers = (self.workers * 2).min(AUTO_MAX);
        }
    }
}
