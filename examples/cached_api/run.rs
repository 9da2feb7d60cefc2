//! The run: what is started, in which order, and what must hold.

use std::ffi::OsStr;
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use fullbore_core::Shutdown;

use crate::args::Args;
use crate::fleet::{Caller, Fleet, HOT, NODES, Trouble};
use crate::keeper;
use crate::load::{Load, Random};
use crate::node::NodeStats;
use crate::report;
use crate::role::Role;
use crate::upstream::{SLOW, Upstream};

/// How many threads ask each node, on average.
const READERS: usize = 4;
/// Who asks each node for a cold item at the same time.
const AT_ONCE: usize = 4;
/// Items that nobody has asked for before.
const COLD: u64 = 1_000_000;
/// The item that is being loaded when its process is killed.
const HELD: u64 = 2_000_000;
/// The death of a process is noticed in about four seconds; the rest is for a machine that has other things to do.
const BACK_WITHIN: Duration = Duration::from_secs(10);
/// At most; half of the load is to come after it.
const KILL_AFTER: Duration = Duration::from_secs(2);
const SETTLED_WITHIN: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(crate) enum Ended {
    AllHeld,
    Skipped,
    /// The check that did not hold.
    Broken(String),
    Interrupted,
}

/// Why there is no more to do.
enum Stop {
    Broken(String),
    Failed(String),
}

impl From<String> for Stop {
    fn from(error: String) -> Self {
        Stop::Failed(error)
    }
}

impl From<Trouble> for Stop {
    fn from(trouble: Trouble) -> Self {
        Stop::Failed(match trouble {
            Trouble::Gone | Trouble::Killed => String::from("a node is not there any more"),
            Trouble::Failed(error) => error,
        })
    }
}

/// `Err` unless it held.
fn check(holds: bool, what: impl FnOnce() -> String) -> Result<(), Stop> {
    if holds { Ok(()) } else { Err(Stop::Broken(what())) }
}

pub(crate) fn run(args: &Args) -> Result<Ended, String> {
    let shutdown = Shutdown::new();
    shutdown.on_signals().map_err(|error| format!("cannot listen for Ctrl-C: {error}"))?;
    let ended = whole(args, &shutdown);
    if shutdown.is_requested() {
        // Whatever failed, it was because of that.
        return Ok(Ended::Interrupted);
    }
    match ended {
        Ok(ended) => Ok(ended),
        Err(Stop::Broken(check)) => Ok(Ended::Broken(check)),
        Err(Stop::Failed(error)) => Err(error),
    }
}

fn whole(args: &Args, shutdown: &Shutdown) -> Result<Ended, Stop> {
    // The nodes end before it does: it is dropped last.
    let (_keeper, redis) = match &args.redis {
        Some(url) => (None, url.clone()),
        None => {
            let Some(program) = keeper::find() else {
                println!("skipped: redis-server is not installed");
                return Ok(Ended::Skipped);
            };
            let (keeper, says) = Role::start("the private Redis", &[OsStr::new("--keep-redis"), program.as_os_str()])?;
            let (url, pid) = says.split_once(' ').ok_or_else(|| format!("the private Redis says {says}"))?;
            println!("private redis-server: process {pid}, kept by {}", keeper.pid());
            (Some(keeper), url.to_owned())
        }
    };
    let upstream = Upstream::start()?;
    // Nobody else has it, and no earlier run had.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos());
    let prefix = format!("cached_api:{}-{now}:", std::process::id());
    let fleet = Arc::new(Fleet::new(redis, prefix, upstream.addr()));
    let (ends, let_go) = (Arc::clone(&fleet), upstream.interrupter());
    shutdown.on_request(move || {
        ends.kill_all();
        let_go();
    });
    let ended = with_nodes(args, shutdown, &fleet, &upstream);
    if args.redis.is_some() {
        // It is somebody's. What cannot be removed expires.
        let _ = (0..NODES).find(|node| Caller::new(&fleet).ask(*node, "POST", "/clear").is_ok());
    }
    fleet.end();
    ended
}

fn with_nodes(args: &Args, shutdown: &Shutdown, fleet: &Fleet, upstream: &Upstream) -> Result<Ended, Stop> {
    let pids = (0..NODES).map(|node| fleet.start(node)).collect::<Result<Vec<_>, _>>()?;
    println!("{NODES} nodes: processes {pids:?}");
    let mut held = Vec::new();
    held.push(cold(fleet, upstream, if args.quick { 1 } else { 3 })?);

    let load = Load::new(fleet, upstream);
    let victim = Random(u64::from(std::process::id())).below(NODES);
    let killed = thread::scope(|scope| {
        let _end = EndOnDrop(&load);
        for reader in 0..NODES * READERS {
            let load = &load;
            scope.spawn(move || load.read(reader as u64));
        }
        scope.spawn(|| load.write(u64::MAX));
        let begun = Instant::now();
        // It is over early if a check does not hold, and when it is interrupted.
        if load.wait(KILL_AFTER.min(args.load_for / 2)) {
            return Ok(String::new());
        }
        let killed = kill(fleet, upstream, victim)?;
        // So that the one that was started again has something to do, too.
        load.wait(args.load_for.saturating_sub(begun.elapsed()).max(Duration::from_millis(300)));
        Ok::<_, Stop>(killed)
    });
    if let Some(broken) = load.broken() {
        return Err(Stop::Broken(broken.to_owned()));
    }
    held.push(killed?);
    check(load.compared.get() > 0 && load.removals.get() > 0, || {
        String::from("no old answer: not one answer came after a removal, so nothing was checked")
    })?;
    held.push(format!(
        "no old answer: {} removals through any node, {} answers compared with those of their own node",
        load.removals.get(),
        load.compared.get()
    ));
    held.push(settled(fleet, upstream, shutdown)?);

    print!("\n{}", report::table(fleet, victim)?);
    println!("the upstream was asked {} times, {SLOW:?} each\n", upstream.all_calls());
    held.iter().for_each(|line| println!("ok: {line}"));
    Ok(Ended::AllHeld)
}

/// However the run goes on, its threads end.
struct EndOnDrop<'a>(&'a Load<'a>);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// An item that nobody has, asked for by all at once, is loaded once.
fn cold(fleet: &Fleet, upstream: &Upstream, rounds: u64) -> Result<String, Stop> {
    let mut slowest = Duration::ZERO;
    for id in COLD..COLD + rounds {
        let barrier = Barrier::new(NODES * AT_ONCE);
        let ask = |node| {
            let mut caller = Caller::new(fleet);
            // The connection is there before.
            let connected = caller.stats(node);
            barrier.wait();
            let since = Instant::now();
            connected?;
            caller.item(node, id).map(|_| since.elapsed())
        };
        let took: Vec<Result<Duration, Trouble>> = thread::scope(|scope| {
            let asking: Vec<_> = (0..NODES * AT_ONCE).map(|n| scope.spawn(move || ask(n % NODES))).collect();
            asking.into_iter().filter_map(|asked| asked.join().ok()).collect()
        });
        for took in took {
            slowest = slowest.max(took?);
        }
        let calls = upstream.calls(id);
        check(calls == 1, || {
            format!(
                "one load of a cold item: {} requests of {NODES} nodes made {calls} calls of the upstream",
                NODES * AT_ONCE
            )
        })?;
    }
    let asked = NODES * AT_ONCE;
    Ok(format!(
        "one load of a cold item: {asked} requests of {NODES} nodes at once, 1 call of the upstream, the last answer \
         after {slowest:.0?}"
    ))
}

/// Kills a node while the upstream answers it, has the others ask for the same, and starts it again.
fn kill(fleet: &Fleet, upstream: &Upstream, victim: usize) -> Result<String, Stop> {
    upstream.hold(HELD);
    let (answers, back) = thread::scope(|scope| {
        // It gets no answer.
        scope.spawn(|| Caller::new(fleet).item(victim, HELD));
        let asked = upstream.wait_for_call(HELD, BACK_WITHIN);
        let has_done = Caller::new(fleet).stats(victim);
        fleet.kill(victim, has_done.as_ref().map_or(NodeStats::default(), |stats| *stats));
        upstream.release(HELD);
        if !asked {
            return Err(Stop::Failed(format!("node {victim} did not ask the upstream")));
        }
        has_done?;
        let since = Instant::now();
        let living = (0..NODES).filter(|node| *node != victim);
        let asking: Vec<_> = living
            .map(|node| scope.spawn(move || (node, Caller::new(fleet).item(node, HELD), since.elapsed())))
            .collect();
        let pid = fleet.start(victim)?;
        println!("node {victim} was killed while it loads, and is started again: process {pid}");
        let answers: Vec<_> = asking.into_iter().filter_map(|asked| asked.join().ok()).collect();
        Ok((answers, Caller::new(fleet).item(victim, HELD)))
    })?;
    let mut slowest = Duration::ZERO;
    for (node, answer, took) in answers {
        if let Err(trouble) = answer {
            return Err(Stop::Broken(format!(
                "the others go on: node {node} has not the item whose loader was killed: {trouble:?}"
            )));
        }
        slowest = slowest.max(took);
    }
    check(slowest <= BACK_WITHIN, || {
        format!("the others go on: the item whose loader was killed was back after {slowest:.1?} only")
    })?;
    back?;
    let calls = upstream.calls(HELD);
    check(calls == 2, || {
        format!("one loader after the other: {calls} calls of the upstream, the killed one's included")
    })?;
    Ok(format!(
        "the others go on: node {victim} was killed while it loaded; the item was back after {slowest:.1?}, by 1 more \
         call of the upstream"
    ))
}

/// Once nothing changes any more, all see the last change.
fn settled(fleet: &Fleet, upstream: &Upstream, shutdown: &Shutdown) -> Result<String, Stop> {
    let since = Instant::now();
    let mut caller = Caller::new(fleet);
    for id in 0..HOT as u64 {
        let newest = upstream.version(id);
        for node in 0..NODES {
            loop {
                let version = caller.item(node, id)?.version;
                if version == newest {
                    break;
                }
                check(since.elapsed() < SETTLED_WITHIN + SLOW * HOT as u32, || {
                    format!(
                        "all see the newest: node {node} still answers with change {version} of item {id}, not {newest}"
                    )
                })?;
                if shutdown.wait_within(Duration::from_millis(5)) {
                    return Ok(String::new());
                }
            }
        }
    }
    Ok(format!("all see the newest: {NODES} nodes, {HOT} items, {:.0?} after the load", since.elapsed()))
}
