//! The four processes, and how they are asked.

use std::ffi::OsStr;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{AcqRel, Acquire};
use std::time::Duration;

use fullbore_core::{Clock, Monitor};
use fullbore_metrics::{Counter, Histogram};

use crate::http::{Client, Response};
use crate::node::NodeStats;
use crate::role::Role;
use crate::upstream::Item;

pub(crate) const NODES: usize = 4;
/// The items 0 to this are asked for all the time.
pub(crate) const HOT: usize = 64;

/// More than a load takes whose process died.
const PATIENCE: Duration = Duration::from_secs(15);

/// One of the four, in all its lives.
pub(crate) struct Node {
    /// Below these versions it must not answer: each was removed through this node, which has said so.
    floors: [AtomicU64; HOT],
    pub(crate) latency: Histogram,
    /// Requests whose process was killed before it answered.
    pub(crate) cut_off: Counter,
    /// Requests it answered.
    pub(crate) answered: Counter,
}

impl Node {
    fn new() -> Self {
        Self {
            floors: [const { AtomicU64::new(0) }; HOT],
            latency: Histogram::new(),
            cut_off: Counter::new(),
            answered: Counter::new(),
        }
    }

    pub(crate) fn floor(&self, id: usize) -> u64 {
        // ORDERING: Acquire, with the AcqRel of `set_floor`: the removal was answered before what is sent from here on.
        self.floors[id].load(Acquire)
    }

    pub(crate) fn set_floor(&self, id: usize, version: u64) {
        // ORDERING: AcqRel, with the Acquire of `floor`.
        self.floors[id].fetch_max(version, AcqRel);
    }
}

/// The process of a node that lives.
struct Life {
    role: Role,
    addr: SocketAddr,
    number: u64,
}

#[derive(Default)]
struct State {
    lives: [Option<Life>; NODES],
    begun: u64,
    /// What was done in earlier lives.
    earlier: [NodeStats; NODES],
    /// No more processes are started.
    over: bool,
}

pub(crate) struct Fleet {
    redis: String,
    prefix: String,
    upstream: SocketAddr,
    state: Monitor<State>,
    pub(crate) nodes: [Node; NODES],
}

impl Fleet {
    /// No process runs yet.
    pub(crate) fn new(redis: String, prefix: String, upstream: SocketAddr) -> Self {
        let state = Monitor::new(State::default(), Clock::Real);
        Self { redis, prefix, upstream, state, nodes: std::array::from_fn(|_| Node::new()) }
    }

    /// Starts the process of a node; returns its id.
    pub(crate) fn start(&self, node: usize) -> Result<u32, String> {
        let (name, upstream) = (format!("node {node}"), self.upstream.to_string());
        let number = node.to_string();
        let words = ["--node", &number, "--upstream", &upstream, "--redis", &self.redis, "--prefix", &self.prefix]
            .map(OsStr::new);
        let (role, says) = Role::start(&name, &words)?;
        let addr = says.parse().map_err(|_| format!("{name} says {says}"))?;
        let pid = role.pid();
        let mut state = self.state.lock();
        if state.over {
            return Err(String::from("interrupted"));
        }
        state.begun += 1;
        state.lives[node] = Some(Life { role, addr, number: state.begun });
        Ok(pid)
    }

    /// SIGKILL, in the middle of whatever it does; returns when the process has ended.
    pub(crate) fn kill(&self, node: usize, has_done: NodeStats) {
        let life = {
            let mut state = self.state.lock();
            state.earlier[node] = state.earlier[node].plus(has_done);
            state.lives[node].take()
        };
        // From here on nobody calls it a failure that it does not answer.
        if let Some(mut life) = life {
            life.role.kill();
        }
    }

    /// Ends all in order, for good.
    pub(crate) fn end(&self) {
        drop(self.take_all());
    }

    /// Kills all, for good.
    pub(crate) fn kill_all(&self) {
        for mut life in self.take_all().into_iter().flatten() {
            life.role.kill();
        }
    }

    fn take_all(&self) -> [Option<Life>; NODES] {
        let mut state = self.state.lock();
        state.over = true;
        std::mem::take(&mut state.lives)
    }

    /// Whether all have ended for good.
    pub(crate) fn is_over(&self) -> bool {
        self.state.lock().over
    }

    /// Its process, which is another one after each start.
    fn life(&self, node: usize) -> Option<(u64, SocketAddr)> {
        self.state.lock().lives[node].as_ref().map(|life| (life.number, life.addr))
    }

    pub(crate) fn earlier(&self, node: usize) -> NodeStats {
        self.state.lock().earlier[node]
    }
}

/// Why there is no answer.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// There is no process to ask.
    Gone,
    /// There was, and it was killed before it answered.
    Killed,
    /// It lives, and failed.
    Failed(String),
}

/// Who asks, with a connection to each node.
pub(crate) struct Caller<'a> {
    fleet: &'a Fleet,
    clients: [Option<(u64, Client)>; NODES],
}

impl<'a> Caller<'a> {
    pub(crate) fn new(fleet: &'a Fleet) -> Self {
        Self { fleet, clients: [const { None }; NODES] }
    }

    pub(crate) fn ask(&mut self, node: usize, method: &str, path: &str) -> Result<Response, Trouble> {
        let Some((life, addr)) = self.fleet.life(node) else { return Err(Trouble::Gone) };
        match self.try_ask(node, life, addr, method, path) {
            Ok(response) => Ok(response),
            Err(error) => {
                self.clients[node] = None;
                let lives = self.fleet.life(node).is_some_and(|(now, _)| now == life);
                let failed = || Trouble::Failed(format!("node {node}, {method} {path}: {error}"));
                Err(if lives { failed() } else { Trouble::Killed })
            }
        }
    }

    fn try_ask(&mut self, node: usize, life: u64, addr: SocketAddr, method: &str, path: &str) -> io::Result<Response> {
        let client = match &mut self.clients[node] {
            Some((of, client)) if *of == life => client,
            other => &mut other.insert((life, Client::connect(addr, PATIENCE)?)).1,
        };
        client.ask(method, path)
    }

    pub(crate) fn item(&mut self, node: usize, id: u64) -> Result<Item, Trouble> {
        let response = self.ask(node, "GET", &format!("/item/{id}"))?;
        Self::read(node, &response)
    }

    pub(crate) fn stats(&mut self, node: usize) -> Result<NodeStats, Trouble> {
        let response = self.ask(node, "GET", "/stats")?;
        Self::read(node, &response)
    }

    fn read<T: serde::de::DeserializeOwned>(node: usize, response: &Response) -> Result<T, Trouble> {
        let Response { status, body } = response;
        let said = || Trouble::Failed(format!("node {node} says {status}: {body}"));
        if *status == 200 { serde_json::from_str(body).map_err(|_| said()) } else { Err(said()) }
    }
}
