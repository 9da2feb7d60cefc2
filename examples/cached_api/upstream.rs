//! The slow service: versions of items, told over HTTP. What it says is what was true when it was asked.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use fullbore_core::{Clock, Locked, Monitor, Waiters};
use serde::{Deserialize, Serialize};

use crate::http::{Request, Response, Server};

/// How long each request takes.
pub(crate) const SLOW: Duration = Duration::from_millis(150);

/// What is cached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Item {
    pub(crate) id: u64,
    pub(crate) version: u64,
    pub(crate) text: String,
}

#[derive(Default)]
struct Of {
    version: u64,
    calls: u64,
    /// The next call is held until it is let go.
    hold: bool,
}

#[derive(Default)]
struct State {
    items: HashMap<u64, Of>,
    changed: Waiters,
    over: bool,
}

type Shared = Monitor<State>;

/// The service, in threads of this process.
pub(crate) struct Upstream {
    // First: its threads are let go.
    let_go: LetGo,
    server: Server,
}

struct LetGo(Arc<Shared>);

impl Drop for LetGo {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.over = true;
        changed(&mut state);
    }
}

fn changed(state: &mut Locked<'_, State>) {
    state.notify_all(|state| &mut state.changed);
}

impl Upstream {
    pub(crate) fn start() -> Result<Self, String> {
        let shared = Arc::new(Monitor::new(State::default(), Clock::Real));
        let let_go = LetGo(Arc::clone(&shared));
        let server = Server::start("upstream", move |request| answer(&shared, request))?;
        Ok(Self { let_go, server })
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.server.addr()
    }

    fn with<R>(&self, id: u64, f: impl FnOnce(&mut Of) -> R) -> R {
        f(self.let_go.0.lock().items.entry(id).or_default())
    }

    /// The item changes; returns its new version.
    pub(crate) fn raise(&self, id: u64) -> u64 {
        self.with(id, |of| {
            of.version += 1;
            of.version
        })
    }

    pub(crate) fn version(&self, id: u64) -> u64 {
        self.with(id, |of| of.version)
    }

    /// How often the item was asked for.
    pub(crate) fn calls(&self, id: u64) -> u64 {
        self.with(id, |of| of.calls)
    }

    pub(crate) fn all_calls(&self) -> u64 {
        self.let_go.0.lock().items.values().map(|of| of.calls).sum()
    }

    /// The next one who asks for the item gets no answer before `release`.
    pub(crate) fn hold(&self, id: u64) {
        self.with(id, |of| of.hold = true);
    }

    pub(crate) fn release(&self, id: u64) {
        self.with(id, |of| of.hold = false);
        changed(&mut self.let_go.0.lock());
    }

    /// Waits until the item has been asked for; `false` if it was not.
    pub(crate) fn wait_for_call(&self, id: u64, within: Duration) -> bool {
        let is_called = |state: &State| state.items.get(&id).is_some_and(|of| of.calls > 0);
        let mut state = self.let_go.0.lock();
        state.wait_until(
            |state| &mut state.changed,
            Instant::now().checked_add(within),
            |state| state.over || is_called(state),
        );
        is_called(&state)
    }

    /// Ends all waits, when the run is interrupted.
    pub(crate) fn interrupter(&self) -> impl Fn() + Send + Sync + 'static {
        let shared = Arc::clone(&self.let_go.0);
        move || drop(LetGo(Arc::clone(&shared)))
    }
}

fn answer(shared: &Shared, request: &Request) -> Response {
    let Some(id) = request.path.strip_prefix("/item/").and_then(|id| id.parse().ok()) else {
        return Response::new(404, "GET /item/ID");
    };
    let mut state = shared.lock();
    let of = state.items.entry(id).or_default();
    of.calls += 1;
    let (version, hold) = (of.version, of.hold);
    changed(&mut state);
    if hold {
        let is_held = |state: &State| !state.over && state.items.get(&id).is_some_and(|of| of.hold);
        state.wait_until(|state| &mut state.changed, None, |state| !is_held(state));
    }
    drop(state);
    thread::sleep(SLOW);
    let item = Item { id, version, text: format!("item {id} as of change {version}") };
    match serde_json::to_string(&item) {
        Ok(body) => Response::new(200, body),
        Err(error) => Response::new(500, error.to_string()),
    }
}
