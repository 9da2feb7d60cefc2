//! The life of one pool, from its settings to its last thread: rounds of everything at once, and between them moments in which all is
//! quiet and the books must agree.

mod chaos;
mod server;
mod subject;

use std::fmt;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use fullbore_pool::{Background, Config, GetError, KeyedPool, Nested, OnPanic, Pool, QueueMode, Stats, WhileDown};

use crate::chance::Chance;
use crate::watch::{HANG, Watch};
use chaos::{Arena, SERVED};
use server::{Client, Down, Mood, Server};
use subject::Subject;

const MILLI: Duration = Duration::from_millis(1);

/// What there was to see so far.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pools: u64,
    calls: u64,
    served: u64,
    failed: u64,
    connected: u64,
    connect_failures: u64,
    given_up: u64,
    elided: u64,
    evicted: u64,
}

impl Seen {
    fn add<S: Subject>(&mut self, pool: &S) {
        let (stats, seen) = (pool.stats(), pool.station().snapshot());
        self.pools += 1;
        self.calls += seen.offered();
        self.served += seen.served;
        self.failed += seen.failed;
        self.connected += stats.connected;
        self.connect_failures += stats.connect_failures;
        self.given_up += stats.connects_given_up;
        self.elided += stats.connects_elided;
        self.evicted += stats.closed_evicted;
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pools, calls, served, failed, connected, connect_failures, given_up, elided, evicted } = self;
        write!(
            f,
            "{pools} pools, {calls} calls, {served} served, {failed} panicked, {connected} connections, {connect_failures} failed, \
             {given_up} given up, {elided} not begun, {evicted} evicted"
        )
    }
}

/// How it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// By `close`, when all is quiet.
    Quiet,
    /// By `close`, in the middle of it.
    Amid,
    /// By the drop of its handles, with a connection out.
    Drop,
}

/// All that is decided before it begins.
#[derive(Debug)]
struct Plan {
    config: Config,
    max_connecting: usize,
    threads: usize,
    rounds: usize,
    round: Duration,
    end: End,
    seed: u64,
}

impl Plan {
    fn by(chance: &mut Chance, keyed: bool) -> Self {
        let max_size = chance.size(1, 12);
        let some = |chance: &mut Chance, times: &[u32]| {
            if chance.one_in(3) { None } else { Some(MILLI * chance.one_of(times)) }
        };
        let config = Config {
            name: "soak".into(),
            max_size,
            max_per_key: if keyed { chance.one_of(&[1, 2, 3, usize::MAX]) } else { usize::MAX },
            min_idle: if keyed { 0 } else { chance.one_of(&[0, 0, 1, max_size / 2, max_size]) },
            queue_mode: chance.one_of(&[QueueMode::Lifo, QueueMode::Lifo, QueueMode::Fifo]),
            get_timeout: MILLI * chance.one_of(&[2, 20, 200, 20_000]),
            max_waiters: chance.one_of(&[usize::MAX, usize::MAX, 4]),
            reserve_size: chance.one_of(&[0, 0, 1, 3]),
            reserve_after: MILLI * chance.one_of(&[1, 10, 100]),
            connect_timeout: MILLI * chance.one_of(&[20, 100, 500]),
            backoff_min: MILLI * chance.one_of(&[1, 5]),
            backoff_max: MILLI * chance.one_of(&[5, 50]),
            while_down: chance.one_of(&[WhileDown::Fail, WhileDown::Wait]),
            validate_after: MILLI * chance.one_of(&[0, 1, 50, 1_000]),
            validate_timeout: MILLI * chance.one_of(&[5, 50]),
            keepalive: some(chance, &[1, 20, 200]),
            idle_timeout: some(chance, &[1, 50, 500]),
            max_lifetime: some(chance, &[1, 50, 2_000]),
            lifetime_jitter: chance.one_of(&[0.0, 0.1, 0.9]),
            on_panic: chance.one_of(&[OnPanic::Discard, OnPanic::Check, OnPanic::Return]),
            nested: chance.one_of(&[Nested::Off, Nested::Warn, Nested::Refuse]),
            leak_after: some(chance, &[1, 20]),
        };
        Self {
            config,
            max_connecting: chance.size(1, 8),
            threads: chance.size(2, 24),
            rounds: chance.size(1, 4),
            round: MILLI * chance.one_of(&[100, 300, 1_000, 3_000]),
            end: chance.one_of(&[End::Quiet, End::Amid, End::Drop]),
            seed: chance.next(),
        }
    }
}

/// One pool, of either kind.
///
/// # Errors
/// What did not hold.
pub(crate) fn life(chance: &mut Chance, watch: &Watch, seen: &mut Seen) -> Result<(), String> {
    let keyed = chance.one_in(2);
    let plan = Plan::by(chance, keyed);
    let outcome = if keyed {
        live::<KeyedPool<u64, Client>>(&plan, watch, seen)
    } else {
        live::<Pool<Client>>(&plan, watch, seen)
    };
    outcome.map_err(|violation| format!("{violation}\n{} with {plan:#?}", if keyed { "KeyedPool" } else { "Pool" }))
}

fn live<S: Subject>(plan: &Plan, watch: &Watch, seen: &mut Seen) -> Result<(), String> {
    let mut chance = Chance::new(plan.seed);
    let config = &plan.config;
    let cap = config.max_size + config.reserve_size;
    let server = Server::new(chance.next(), config.connect_timeout, cap, config.max_per_key);
    let background = Background::new(plan.max_connecting).map_err(|error| error.to_string())?;
    let pool = S::build(config.clone(), &background, Client(Arc::clone(&server))).map_err(|error| error.to_string())?;
    drop(background);
    let arena = Arc::new(Arena::new(pool, Arc::clone(&server), config.clone()));
    for round in 1..=plan.rounds {
        let told = Arc::clone(&arena);
        watch.enter("in a round", move || told.tell());
        let close = plan.end == End::Amid && round == plan.rounds;
        arena.round(plan.threads, plan.round, close, &mut chance);
        first(&server)?;
        if !close {
            let told = Arc::clone(&arena);
            watch.enter("in a quiet moment", move || told.tell());
            arena.wait_for_quiet()?;
            arena.probe(plan.threads, &mut chance);
            arena.wait_for_quiet()?;
            first(&server)?;
        }
    }
    watch.enter("at the end", || "nothing is known".into());
    seen.add(&arena.pool);
    end(arena, plan.end)?;
    let gone = || Arc::strong_count(&server) == 1 && server.live() == 0 && threads() == 0;
    let left =
        || format!("{} handles, {} connections, {} threads", Arc::strong_count(&server), server.live(), threads());
    eventually(|| if gone() { Ok(()) } else { Err(format!("the pool is gone, and there are still {}", left())) })?;
    watch.leave();
    first(&server)
}

fn first(server: &Server) -> Result<(), String> {
    server.first_complaint().map_or(Ok(()), Err)
}

fn end<S: Subject>(arena: Arc<Arena<S>>, end: End) -> Result<(), String> {
    let arena = Arc::try_unwrap(arena).map_err(|_| "somebody still has the arena".to_owned())?;
    let Arena { pool, server, .. } = arena;
    server.change_to(Mood::Well);
    if end == End::Drop {
        let mut held = patiently(|deadline| pool.get_deadline(7, deadline))?;
        drop(pool);
        eventually(|| match server.live() {
            1 => Ok(()),
            live => Err(format!("{live} connections of a dropped pool, of which one is out")),
        })?;
        held.touch();
        drop(held);
        return match server.live() {
            0 => Ok(()),
            live => Err(format!("{live} connections after the last one came back")),
        };
    }
    pool.close_within(HANG).map_err(|left| format!("{} connections are not closed", left.in_flight))?;
    let status = pool.status();
    if status.size != 0 || status.waiting != 0 || !pool.get(1).is_err_and(|error| error.is_closed()) {
        return Err(format!("it is closed, and yet: {status:?}"));
    }
    balance(&pool)
}

/// Until it has got one: the server is up again.
fn patiently<G>(get: impl Fn(Instant) -> Result<G, GetError<Down>>) -> Result<G, String> {
    let deadline = Instant::now() + HANG;
    loop {
        match get(deadline) {
            Ok(got) => return Ok(got),
            // In the pause after the last failure, or in a crowd.
            Err(error) if (error.is_connect() || error.is_shed()) && Instant::now() < deadline => thread::sleep(MILLI),
            Err(error) => {
                return Err(format!("the server is up, nobody keeps a connection for long, and yet: {error}"));
            }
        }
    }
}

/// What is over at once, but for a moment in which others are on their way out.
fn eventually(holds: impl Fn() -> Result<(), String>) -> Result<(), String> {
    let begun = Instant::now();
    loop {
        match holds() {
            Err(_) if begun.elapsed() < HANG => thread::sleep(MILLI),
            outcome => return outcome,
        }
    }
}

fn balance<S: Subject>(pool: &S) -> Result<(), String> {
    let seen = pool.station().snapshot();
    if seen.balanced() && seen.waiting() == 0 && seen.in_service() == 0 {
        Ok(())
    } else {
        Err(format!("the station's books: {seen:?}"))
    }
}

impl<S: Subject> Arena<S> {
    /// Everybody is served, although one connection stays out all the time.
    fn probe(&self, threads: usize, chance: &mut Chance) {
        let hold = self.pool.status().max_size > 1;
        let get = |key| {
            let asked = Instant::now();
            let get = |deadline| {
                self.calls.fetch_add(1, SeqCst);
                self.pool.get_deadline(key, deadline)
            };
            let got = patiently(get).inspect_err(|violation| self.server.complain(violation.clone())).ok();
            if asked.elapsed() > SERVED {
                self.server.complain(format!("all is well, and somebody waited for {:?}", asked.elapsed()));
            }
            got
        };
        self.calm.store(true, SeqCst);
        let done = AtomicBool::new(false);
        let held = if hold { get(0) } else { None };
        let seeds: Vec<u64> = (0..threads).map(|_| chance.next()).collect();
        thread::scope(|scope| {
            scope.spawn(|| self.look(&done));
            let workers = seeds.into_iter().map(|seed| {
                scope.spawn(move || {
                    let mut chance = Chance::new(seed);
                    for _ in 0..20 {
                        if chance.one_in(4) {
                            self.calls.fetch_add(1, SeqCst);
                            drop(self.pool.get_deadline(0, Instant::now() + chance.time(MILLI * 5)));
                        }
                        let Some(mut got) = get(1 + chance.below(3)) else { return };
                        got.touch();
                        if chance.one_in(3) {
                            thread::sleep(chance.time(MILLI));
                        }
                    }
                })
            });
            for worker in workers.collect::<Vec<_>>() {
                if worker.join().is_err() {
                    self.server.complain("a panic, where nobody panics".into());
                }
            }
            done.store(true, SeqCst);
        });
        self.calm.store(false, SeqCst);
        drop(held);
    }

    /// Waits until nothing goes on any more and all counts agree.
    fn wait_for_quiet(&self) -> Result<(), String> {
        eventually(|| self.is_quiet())?;
        self.server.allow_only(self.pool.status().max_size + self.config.reserve_size);
        Ok(())
    }

    fn is_quiet(&self) -> Result<(), String> {
        let (pool, server) = (&self.pool, &self.server);
        let (stats, attempts, live, status) =
            (pool.stats(), server.attempts.load(SeqCst), server.live(), pool.status());
        let ready = self.config.min_idle.min(status.max_size);
        let must = |holds: bool, what: &str| {
            if holds {
                Ok(())
            } else {
                Err(format!("{what}: {live} connections, {attempts} attempts, {status:?}, {stats:?}"))
            }
        };
        must(status.waiting == 0, "nobody is there, and somebody waits")?;
        must(status.connecting == 0 && status.stuck == 0, "the server is up, and an attempt does not end")?;
        must(status.size == live, "the pool counts other connections than the server")?;
        must(status.available == live, "not all are idle")?;
        must(status.size <= status.max_size, "more than there may be")?;
        must(status.available >= ready, "fewer than are to be kept ready")?;
        must(attempts == stats.connected + stats.connect_failures, "the pool counts other attempts than the server")?;
        must(stats.connected == closed(&stats) + live as u64, "connections are neither there nor closed")?;
        balance(pool)?;
        let (offered, calls) = (pool.station().snapshot().offered(), self.calls.load(SeqCst));
        must(offered == calls, &format!("{calls} calls, and the station knows of {offered}"))
    }
}

fn closed(stats: &Stats) -> u64 {
    stats.closed_invalid
        + stats.closed_broken
        + stats.closed_panicked
        + stats.closed_idle
        + stats.closed_old
        + stats.closed_evicted
        + stats.closed_surplus
        + stats.closed_with_pool
        + stats.removed
}

/// The pool's own threads that there are, where the system tells.
fn threads() -> usize {
    let tasks = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let names = tasks.filter_map(|task| fs::read_to_string(task.path().join("comm")).ok());
    names.filter(|name| name.starts_with("fullbore-pool")).count()
}
