//! Requests and changes, on many threads, for as long as it takes.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use fullbore_core::{Clock, Monitor, Waiters};
use fullbore_metrics::Counter;

use crate::fleet::{Caller, Fleet, HOT, NODES, Trouble};
use crate::upstream::Upstream;

/// Between two changes.
const CHANGE_EVERY: Duration = Duration::from_millis(80);

#[derive(Default)]
struct State {
    over: bool,
    waiting: Waiters,
}

/// What the threads of the load share.
pub(crate) struct Load<'a> {
    fleet: &'a Fleet,
    upstream: &'a Upstream,
    state: Monitor<State>,
    /// The first check that did not hold.
    broken: OnceLock<String>,
    /// Answers for items that were removed through the same node before.
    pub(crate) compared: Counter,
    pub(crate) removals: Counter,
    /// Removals that a node could not do, and another one did.
    pub(crate) passed_on: Counter,
}

impl<'a> Load<'a> {
    pub(crate) fn new(fleet: &'a Fleet, upstream: &'a Upstream) -> Self {
        let state = Monitor::new(State::default(), Clock::Real);
        let (compared, removals, passed_on) = (Counter::new(), Counter::new(), Counter::new());
        Self { fleet, upstream, state, broken: OnceLock::new(), compared, removals, passed_on }
    }

    pub(crate) fn end(&self) {
        let mut state = self.state.lock();
        state.over = true;
        state.notify_all(|state| &mut state.waiting);
    }

    pub(crate) fn broken(&self) -> Option<&str> {
        self.broken.get().map(String::as_str)
    }

    /// The first one is told of.
    fn breaks(&self, check: String) {
        self.broken.get_or_init(|| check);
        self.end();
    }

    fn is_over(&self) -> bool {
        self.state.lock().over
    }

    /// Waits; `true` once it is over.
    pub(crate) fn wait(&self, time: Duration) -> bool {
        let mut state = self.state.lock();
        state.wait_until(|state| &mut state.waiting, Instant::now().checked_add(time), |state| state.over)
    }

    /// Asks one node after another for one item after another.
    pub(crate) fn read(&self, seed: u64) {
        let (mut random, mut caller) = (Random(seed), Caller::new(self.fleet));
        while !self.is_over() {
            let (node, id) = (random.below(NODES), random.below(HOT));
            let at = &self.fleet.nodes[node];
            let floor = at.floor(id);
            let since = Instant::now();
            match caller.item(node, id as u64) {
                Ok(item) => {
                    at.latency.record_duration(since.elapsed());
                    at.answered.inc();
                    if floor > 0 {
                        self.compared.inc();
                    }
                    if item.id != id as u64 {
                        self.breaks(format!("node {node}, asked for item {id}, answers with item {}", item.id));
                    }
                    if item.version < floor {
                        self.breaks(format!(
                            "no old answer: node {node} answers with change {} of item {id}, after it has removed all \
                             before {floor}",
                            item.version
                        ));
                    }
                }
                // Nobody is there, and nobody is to blame.
                Err(Trouble::Gone) if self.fleet.is_over() => self.end(),
                Err(Trouble::Gone) => {
                    self.wait(CHANGE_EVERY / 16);
                }
                Err(Trouble::Killed) => at.cut_off.inc(),
                Err(Trouble::Failed(error)) => self.breaks(format!("every request to a living node succeeds: {error}")),
            }
        }
    }

    /// Changes one item after another, and has each removed by one of the nodes.
    pub(crate) fn write(&self, seed: u64) {
        let (mut random, mut caller) = (Random(seed), Caller::new(self.fleet));
        while !self.wait(CHANGE_EVERY) {
            let id = random.below(HOT);
            let version = self.upstream.raise(id as u64);
            let path = format!("/item/{id}/invalidate");
            // A change is over when one of them has said so, as in any program that writes.
            loop {
                let node = random.below(NODES);
                match caller.ask(node, "POST", &path) {
                    Ok(response) if response.status == 204 => {
                        self.fleet.nodes[node].set_floor(id, version);
                        self.removals.inc();
                        break;
                    }
                    Ok(_) | Err(Trouble::Gone | Trouble::Killed) => self.passed_on.inc(),
                    Err(Trouble::Failed(error)) => {
                        self.breaks(format!("every request to a living node succeeds: {error}"));
                        return;
                    }
                }
                if self.fleet.is_over() {
                    return;
                }
            }
        }
    }
}

/// SplitMix64: nobody guesses here.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((mixed ^ (mixed >> 31)) % end as u64) as usize
    }
}
