//! The link: one connection that Redis tells of every change below the prefix, and the one thread that listens to it.
//!
//! Also what hangs on it: who waits for a change of which key, whether what this process remembers can be trusted (*up*), the
//! server's clock, and the sequence that orders changes of tags.
//!
//! The thread reads; a push is passed on as soon as it is read. Once a second, and at once where something is to be asked, it
//! sends a round of questions that ends with a `PING` of its own: its answer says that the connection lives and that every
//! push sent before has been passed on. The driver leaves out as many answers as reads have timed out before; the round
//! begins with `PING`s that may be left out, and what is read is counted from its end.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use fullbore_core::{Backoff, BuildError, Clock, Crew, Event, Events, Monitor, WaitFor, Waiters};
use fullbore_metrics::Counter;
use fullbore_pool::Manager as _;
use redis::{
    Client, Cmd, Connection, ConnectionLike as _, ErrorKind, ProtocolVersion, PushKind, RedisError, Value, cmd,
};

use crate::redis::frame::Moment;
use crate::redis::space::{Changed, Space};
use crate::redis::wire::{Lua, run_id};

/// How long the link may be silent before it is asked whether it lives.
const BEAT: Duration = Duration::from_secs(1);
/// How long it may leave that unanswered.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long a process is believed to live after it said so.
const OWNER_LIFE: Duration = Duration::from_secs(3);
/// Of `PING`s whose answers may be left out.
const SPARE: usize = 3;
/// Leases that could not be given back at once and wait for the link.
const MAX_DEBTS: usize = 1024;

/// Who is told of what happens. Called on the link's thread, under no lock.
pub(crate) trait Heard: Send + Sync {
    fn key(&self, encoded: &[u8]);
    fn tag(&self, tag: &str);
    fn flushed(&self);
    fn lost(&self);
    fn regained(&self);
}

/// What the link is called and where it connects to.
pub(crate) struct Plan {
    pub(crate) name: String,
    pub(crate) client: Client,
    pub(crate) space: Arc<Space>,
    pub(crate) connect_timeout: Duration,
    pub(crate) abandon: Arc<Lua>,
    /// Has the pool make its connections anew.
    pub(crate) renew: Box<dyn Fn() + Send>,
}

/// Why the link is down.
#[derive(Clone, Debug)]
pub(crate) enum Why {
    /// No connection, or it broke.
    Unreachable(Arc<RedisError>),
    /// Redis does not know `HELLO 3`, or not this kind of tracking.
    TooOld(String),
    /// The user or his password is wrong.
    Credentials(String),
    /// The user may not be told of changes.
    Permission(String),
    Silent,
    /// It is connected to another server than the pool: what is changed there is not told of here.
    Elsewhere,
    Closed,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Why::Unreachable(error) => write!(f, "{error}"),
            Why::TooOld(said) | Why::Credentials(said) | Why::Permission(said) => f.write_str(said),
            Why::Silent => f.write_str("no answer to PING"),
            Why::Elsewhere => f.write_str("other connections lead to another server"),
            Why::Closed => f.write_str("closed"),
        }
    }
}

#[derive(Default)]
pub(crate) struct LinkCounts {
    /// Keys of which a push told.
    pub(crate) pushes: Counter,
    pub(crate) losses: Counter,
    pub(crate) flushes: Counter,
    /// Keys below the prefix that no key of this cache has.
    pub(crate) strangers: Counter,
}

/// What the link's thread and those who use it share.
pub(crate) struct Shared {
    monitor: Monitor<State>,
    born: Instant,
    /// Whether tracking is on and what is remembered can be trusted. A copy of `State::up`, for those who need not be exact.
    up: AtomicBool,
    /// What to add to the time since `born` to have the server's, in microseconds: at least and at most.
    server_low: AtomicI64,
    server_high: AtomicI64,
    /// Leases that this process holds.
    leases: AtomicUsize,
    /// When it was last said that this process lives, in milliseconds since `born`, plus one.
    owner_said: AtomicU64,
    pub(crate) owner: [u8; 16],
    pub(crate) counts: LinkCounts,
    space: Arc<Space>,
}

struct State {
    up: bool,
    closing: bool,
    /// How the first attempt ended.
    first: Option<Result<(), Why>>,
    last_error: Option<Why>,
    /// Counts losses and flushes: who waited across one was perhaps not told.
    epoch: u64,
    interests: HashMap<Arc<[u8]>, Interested>,
    waiters: Waiters<(), Arc<[u8]>>,
    /// The link's thread between attempts.
    pause: Waiters,
    /// Those who wait for the first attempt.
    starting: Waiters,
    sequence: Option<Moment>,
    debts: Vec<(Arc<[u8]>, Vec<u8>)>,
    /// The server that the link is connected to, and that which the last connection of the pool led to.
    server: Option<String>,
    others: Option<String>,
}

struct Interested {
    count: usize,
    /// How often the key was told of.
    told: u64,
}

/// No time of the server is known.
const UNKNOWN: i64 = i64::MIN;

pub(crate) struct Link {
    pub(crate) shared: Arc<Shared>,
    crew: Crew,
}

/// Somebody wants to know of changes of a key, from when this was made.
pub(crate) struct Interest<'a> {
    shared: &'a Shared,
    key: Arc<[u8]>,
    told: u64,
    epoch: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Woken {
    /// The key changed, or may have.
    Told,
    TimedOut,
    /// The link is down: nobody would be told.
    Down,
}

impl Link {
    /// Starts the thread and waits until its first attempt is over.
    pub(crate) fn start(
        plan: Plan,
        owner: [u8; 16],
        heard: Arc<dyn Heard>,
    ) -> Result<(Self, Result<(), Why>), BuildError> {
        let clock = Clock::Real;
        let state = State {
            up: false,
            closing: false,
            first: None,
            last_error: None,
            epoch: 0,
            interests: HashMap::new(),
            waiters: Waiters::of(WaitFor::Threads),
            pause: Waiters::of(WaitFor::Background),
            starting: Waiters::of(WaitFor::Threads),
            sequence: None,
            debts: Vec::new(),
            server: None,
            others: None,
        };
        let shared = Arc::new(Shared {
            monitor: Monitor::new(state, clock.clone()),
            born: Instant::now(),
            up: AtomicBool::new(false),
            server_low: AtomicI64::new(UNKNOWN),
            server_high: AtomicI64::new(UNKNOWN),
            leases: AtomicUsize::new(0),
            owner_said: AtomicU64::new(0),
            owner,
            counts: LinkCounts::default(),
            space: Arc::clone(&plan.space),
        });
        let crew = Crew::new("cache", &format!("{}-link", plan.name), clock);
        let worker = Worker {
            events: Events::new("cache", &plan.name),
            shared: Arc::clone(&shared),
            plan,
            heard,
            sequence_wanted: true,
            attempts: 0,
        };
        crew.spawn(move || worker.run())?;
        let link = Self { shared, crew };
        let first = {
            let mut state = link.shared.monitor.lock();
            // The attempt itself has a deadline.
            state.wait_until(|state| &mut state.starting, None, |state| state.first.is_some());
            state.first.clone().unwrap_or(Err(Why::Closed))
        };
        Ok((link, first))
    }

    /// Tells the thread to end. Where it is reading it sees that at the next push or beat.
    pub(crate) fn close(&self) {
        let mut state = self.shared.monitor.lock();
        state.closing = true;
        state.notify_all(|state| &mut state.pause);
        state.notify_all(|state| &mut state.starting);
        state.notify_all(|state| &mut state.waiters);
    }

    /// Waits for the thread's end.
    pub(crate) fn join(&self, deadline: Option<Instant>) -> Vec<String> {
        self.crew.join(deadline)
    }
}

impl Shared {
    pub(crate) fn is_up(&self) -> bool {
        // ORDERING: Acquire pairs with the Release in `set_up`.
        self.up.load(Ordering::Acquire)
    }

    pub(crate) fn last_error(&self) -> Option<Why> {
        self.monitor.lock().last_error.clone()
    }

    /// Where the sequence stands, or stood a moment ago; `None` while the link is down.
    pub(crate) fn sequence(&self) -> Option<Moment> {
        self.monitor.lock().sequence
    }

    /// Counts the times when what was heard from the link stopped being complete.
    pub(crate) fn epoch(&self) -> Option<u64> {
        let state = self.monitor.lock();
        state.up.then_some(state.epoch)
    }

    /// A connection of the pool leads to this server. If the link is connected to another one, as after a failover, it is as
    /// good as lost.
    pub(crate) fn others_lead_to(&self, server: Option<String>) {
        if server.is_some() {
            self.monitor.lock().others = server;
        }
    }

    fn local(&self) -> i64 {
        i64::try_from(self.born.elapsed().as_micros()).unwrap_or(i64::MAX)
    }

    /// The server's time in microseconds, at least and at most.
    pub(crate) fn server_time(&self) -> Option<(u64, u64)> {
        // ORDERING: Relaxed: each is by itself a bound that holds.
        let (low, high) = (self.server_low.load(Ordering::Relaxed), self.server_high.load(Ordering::Relaxed));
        if low == UNKNOWN || high == UNKNOWN {
            return None;
        }
        let local = self.local();
        Some((u64::try_from(local + low).ok()?, u64::try_from(local + high).ok()?))
    }

    /// Wants to be told of changes of `key` from now on.
    pub(crate) fn interest(&self, key: &Arc<[u8]>) -> Interest<'_> {
        let mut state = self.monitor.lock();
        let epoch = state.epoch;
        let interested = state.interests.entry(Arc::clone(key)).or_insert(Interested { count: 0, told: 0 });
        interested.count += 1;
        Interest { shared: self, key: Arc::clone(key), told: interested.told, epoch }
    }

    /// One more lease; whether Redis is to be told now that this process lives.
    pub(crate) fn lease_begins(&self, leases: usize) -> bool {
        // ORDERING: Relaxed here and below: a number that the link's thread looks at once a second.
        self.leases.fetch_add(leases, Ordering::Relaxed);
        let said = self.owner_said.load(Ordering::Relaxed);
        said == 0 || self.local() / 1000 + 1 - i64::try_from(said).unwrap_or(i64::MAX) > 1000
    }

    pub(crate) fn owner_said(&self) {
        self.owner_said.store(u64::try_from(self.local() / 1000).unwrap_or(0) + 1, Ordering::Relaxed);
    }

    pub(crate) fn leases_end(&self, leases: usize) {
        self.leases.fetch_sub(leases, Ordering::Relaxed);
    }

    pub(crate) fn leases(&self) -> usize {
        self.leases.load(Ordering::Relaxed)
    }

    /// What tells Redis that this process lives.
    pub(crate) fn alive(&self) -> Cmd {
        let mut alive = cmd("SET");
        alive.arg(self.space.owner(&self.owner)).arg("").arg("PX").arg(OWNER_LIFE.as_millis() as u64);
        alive
    }

    /// A lease that could not be given back: the link does it when it can.
    pub(crate) fn owe(&self, key: Arc<[u8]>, token: Vec<u8>) {
        let mut state = self.monitor.lock();
        // Beyond that the lease's own end must do.
        if state.debts.len() < MAX_DEBTS {
            state.debts.push((key, token));
        }
    }
}

impl Interest<'_> {
    /// Waits for a change since this was made, or since the last wait ended with [`Woken::Told`].
    pub(crate) fn wait(&mut self, until: Option<Instant>) -> Woken {
        let Self { shared, key, told, epoch } = self;
        let mut woken = Woken::TimedOut;
        let mut state = shared.monitor.lock();
        state.wait_turn(
            |state| &mut state.waiters,
            until,
            Arc::clone(key),
            |state| {
                let now = state.interests.get(&**key).map_or(0, |interested| interested.told);
                if !state.up || state.closing {
                    woken = Woken::Down;
                } else if now != *told || state.epoch != *epoch {
                    (*told, *epoch) = (now, state.epoch);
                    woken = Woken::Told;
                } else {
                    return None;
                }
                Some(())
            },
        );
        woken
    }
}

impl Drop for Interest<'_> {
    fn drop(&mut self) {
        let mut state = self.shared.monitor.lock();
        if let Some(interested) = state.interests.get_mut(&self.key) {
            interested.count -= 1;
            if interested.count == 0 {
                state.interests.remove(&self.key);
            }
        }
    }
}

/// The thread's own.
struct Worker {
    shared: Arc<Shared>,
    plan: Plan,
    heard: Arc<dyn Heard>,
    events: Events,
    /// Where the sequence stands is to be asked.
    sequence_wanted: bool,
    attempts: u32,
}

/// Questions that are on their way.
struct Round {
    sent: Instant,
    local: i64,
    mark: Vec<u8>,
    asked: Vec<Asked>,
    answers: Vec<Value>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Asked {
    Time,
    Alive,
    Sequence,
    /// Of no interest.
    Nothing,
}

enum Standing {
    Good,
    Closing,
    Elsewhere,
}

impl Worker {
    fn run(mut self) {
        while !self.closing() {
            let why = match self.connect() {
                Ok(mut connection) => self.serve(&mut connection),
                Err(why) => why,
            };
            self.down(why);
            self.keep_owner();
            self.attempts = self.attempts.saturating_add(1);
            let backoff = Backoff { min: Duration::from_millis(50), max: BEAT, jitter: true };
            let mut state = self.shared.monitor.lock();
            let until = state.now() + backoff.pause(self.attempts).min(BEAT);
            state.wait_until(|state| &mut state.pause, Some(until), |state| state.closing);
        }
        self.down(Why::Closed);
    }

    fn closing(&self) -> bool {
        self.shared.monitor.lock().closing
    }

    /// A connection that is told of changes.
    fn connect(&self) -> Result<Connection, Why> {
        let info = self.plan.client.get_connection_info().clone();
        let resp3 = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
        let client = Client::open(info.set_redis_settings(resp3)).map_err(classify)?;
        let door = fullbore_pool::Redis::with_client(client);
        let mut connection = door.connect(self.plan.connect_timeout).map_err(classify)?.into_inner();
        let limit = |timeout| {
            connection.set_read_timeout(Some(timeout))?;
            connection.set_write_timeout(Some(timeout))
        };
        limit(self.plan.connect_timeout).map_err(classify)?;
        let mut tracking = cmd("CLIENT");
        tracking.arg("TRACKING").arg("ON").arg("BCAST");
        for prefix in self.plan.space.tracked(&self.shared.owner) {
            tracking.arg("PREFIX").arg(prefix);
        }
        // An error is an answer like any other here.
        match connection.req_command(&tracking).map_err(classify)? {
            Value::Okay => {}
            Value::ServerError(error) => {
                let said = error.to_string();
                return Err(match error.code() {
                    "NOPERM" => Why::Permission(said),
                    _ => Why::TooOld(said),
                });
            }
            other => return Err(Why::TooOld(format!("an answer to CLIENT TRACKING that is none: {other:?}"))),
        }
        // What is told from here on may come before this answer, and is of no use yet: nothing is remembered.
        let server = run_id(&mut connection).map_err(classify)?;
        self.shared.monitor.lock().server = server;
        connection.set_read_timeout(Some(BEAT)).map_err(classify)?;
        connection.set_write_timeout(Some(BEAT)).map_err(classify)?;
        Ok(connection)
    }

    /// Listens until the link is lost, and says why.
    fn serve(&mut self, connection: &mut Connection) -> Why {
        self.sequence_wanted = true;
        let mut round = match self.send(connection) {
            Ok(round) => Some(round),
            Err(why) => return why,
        };
        let mut last = Instant::now();
        loop {
            match connection.recv_response() {
                Ok(Value::Push { kind: PushKind::Invalidate, data }) => self.invalidate(&data),
                Ok(Value::Push { .. }) => {}
                Ok(answer) => {
                    if let Some(open) = &mut round {
                        let is_mark = matches!(&answer, Value::BulkString(said) if *said == open.mark);
                        open.answers.push(answer);
                        if is_mark && let Some(done) = round.take() {
                            self.finish(&done);
                        }
                    }
                }
                Err(error) if error.is_timeout() => {}
                Err(error) => return classify(error),
            }
            match self.standing() {
                Standing::Good => {}
                Standing::Closing => return Why::Closed,
                Standing::Elsewhere => {
                    // Which of the two is right nobody knows here: all are made anew.
                    (self.plan.renew)();
                    return Why::Elsewhere;
                }
            }
            match &round {
                Some(open) if open.sent.elapsed() >= PATIENCE => return Why::Silent,
                Some(_) => {}
                None => {
                    if self.sequence_wanted || last.elapsed() >= BEAT || self.owes() {
                        last = Instant::now();
                        match self.send(connection) {
                            Ok(sent) => round = Some(sent),
                            Err(why) => return why,
                        }
                    }
                }
            }
        }
    }

    fn standing(&self) -> Standing {
        let mut state = self.shared.monitor.lock();
        if state.closing {
            Standing::Closing
        } else if state.server.is_some() && state.others.is_some() && state.server != state.others {
            // Until there are new ones.
            state.others = None;
            Standing::Elsewhere
        } else {
            Standing::Good
        }
    }

    fn owes(&self) -> bool {
        !self.shared.monitor.lock().debts.is_empty()
    }

    /// Sends a round.
    fn send(&mut self, connection: &mut Connection) -> Result<Round, Why> {
        let mut packed = Vec::new();
        let mut asked = Vec::new();
        for _ in 0..SPARE {
            packed.extend_from_slice(&cmd("PING").get_packed_command());
        }
        let mut ask = |what: Asked, command: &Cmd| {
            packed.extend_from_slice(&command.get_packed_command());
            asked.push(what);
        };
        ask(Asked::Time, &cmd("TIME"));
        if self.shared.leases() > 0 {
            ask(Asked::Alive, &self.shared.alive());
        }
        let debts = std::mem::take(&mut self.shared.monitor.lock().debts);
        for (key, token) in &debts {
            ask(Asked::Nothing, &self.plan.abandon.by_text(&[key], &[token]));
        }
        if self.sequence_wanted {
            let known = self.shared.sequence().is_some();
            if !known {
                // Nobody has begun it, or it was evicted: a new epoch, which nothing that was remembered belongs to.
                let mut begin = cmd("SET");
                begin.arg(self.plan.space.sequence()).arg(new_epoch()).arg("NX");
                ask(Asked::Nothing, begin.arg("PX").arg(Space::SEQUENCE_LIFE.as_millis() as u64));
            }
            ask(Asked::Sequence, cmd("GET").arg(self.plan.space.sequence()));
            self.sequence_wanted = false;
        }
        let mark = random::<8>().map(|byte| b"0123456789abcdef"[usize::from(byte & 15)]).to_vec();
        packed.extend_from_slice(&cmd("PING").arg(&mark).get_packed_command());
        let (sent, local) = (Instant::now(), self.shared.local());
        connection.send_packed_command(&packed).map_err(classify)?;
        Ok(Round { sent, local, mark, asked, answers: Vec::new() })
    }

    /// Everything that a round asked for is there, and every push before it was passed on.
    fn finish(&mut self, round: &Round) {
        let local = self.shared.local();
        let before_mark = round.answers.len() - 1;
        // Counted from the end: at the beginning some may be missing.
        let Some(from) = before_mark.checked_sub(round.asked.len()) else {
            self.sequence_wanted |= round.asked.contains(&Asked::Sequence);
            return;
        };
        for (what, answer) in round.asked.iter().zip(&round.answers[from..before_mark]) {
            match what {
                Asked::Time => self.clock(answer, round.local, local),
                Asked::Alive if *answer == Value::Okay => self.shared.owner_said(),
                Asked::Sequence => {
                    let sequence = match answer {
                        Value::BulkString(text) => Moment::parse(text),
                        _ => None,
                    };
                    self.shared.monitor.lock().sequence = sequence;
                }
                Asked::Alive | Asked::Nothing => {}
            }
        }
        self.up();
    }

    /// Redis said what time it is, between these two of our own.
    fn clock(&self, answer: &Value, before: i64, after: i64) {
        let number = |value: &Value| match value {
            Value::BulkString(text) => std::str::from_utf8(text).ok()?.parse::<i64>().ok(),
            _ => None,
        };
        if let Value::Array(parts) = answer
            && let [seconds, micros] = &parts[..]
            && let (Some(seconds), Some(micros)) = (number(seconds), number(micros))
        {
            let server = seconds.saturating_mul(1_000_000).saturating_add(micros);
            // It was that time somewhere between the two.
            self.shared.server_low.store(server - after, Ordering::Relaxed);
            self.shared.server_high.store(server - before, Ordering::Relaxed);
        }
    }

    fn invalidate(&mut self, data: &[Value]) {
        match data {
            [Value::Array(keys)] => {
                let mut told = HashSet::new();
                for key in keys {
                    if let Value::BulkString(key) = key
                        && told.insert(&key[..])
                    {
                        self.changed(key);
                    }
                }
            }
            // FLUSHALL or FLUSHDB.
            _ => {
                self.shared.counts.flushes.inc();
                self.sequence_wanted = true;
                self.shared.monitor.lock().sequence = None;
                self.events.contained(|| self.heard.flushed());
                let mut state = self.shared.monitor.lock();
                state.epoch += 1;
                state.notify_all(|state| &mut state.waiters);
            }
        }
    }

    fn changed(&mut self, key: &[u8]) {
        self.shared.counts.pushes.inc();
        match self.plan.space.what(key) {
            Changed::Key(encoded) => {
                // First what is remembered goes, then those who wait look.
                self.events.contained(|| self.heard.key(encoded));
                let mut state = self.shared.monitor.lock();
                if let Some(interested) = state.interests.get_mut(key) {
                    interested.told += 1;
                    state.serve(
                        |state| &mut state.waiters,
                        |_, waiting, _| {
                            if **waiting.tag == *key { fullbore_core::Serve::Nudge } else { fullbore_core::Serve::Skip }
                        },
                    );
                }
            }
            Changed::Tag(tag) => self.events.contained(|| self.heard.tag(tag)),
            Changed::Sequence => self.sequence_wanted = true,
            Changed::Other => self.shared.counts.strangers.inc(),
        }
    }

    fn up(&mut self) {
        let was = self.set_up(true);
        if !was {
            self.attempts = 0;
            self.events.contained(|| self.heard.regained());
            let mut state = self.shared.monitor.lock();
            if state.first.is_none() {
                state.first = Some(Ok(()));
                state.notify_all(|state| &mut state.starting);
            } else {
                drop(state);
                self.events.emit(Event::Reconnect, || "the link to Redis is back");
            }
        }
    }

    fn set_up(&self, up: bool) -> bool {
        let mut state = self.shared.monitor.lock();
        let was = std::mem::replace(&mut state.up, up);
        // ORDERING: Release pairs with the Acquire in `is_up`.
        self.shared.up.store(up, Ordering::Release);
        if !up {
            state.sequence = None;
        }
        if was && !up {
            state.epoch += 1;
            state.notify_all(|state| &mut state.waiters);
        }
        was
    }

    /// The link is down, or did not come up.
    fn down(&mut self, why: Why) {
        let was = self.set_up(false);
        self.shared.server_low.store(UNKNOWN, Ordering::Relaxed);
        self.shared.server_high.store(UNKNOWN, Ordering::Relaxed);
        if was {
            self.events.contained(|| self.heard.lost());
            if !matches!(why, Why::Closed) {
                self.shared.counts.losses.inc();
                self.events.emit(Event::Reconnect, || format!("the link to Redis is lost: {why}"));
            }
        }
        let mut state = self.shared.monitor.lock();
        if state.first.is_none() {
            state.first = Some(Err(why.clone()));
            state.notify_all(|state| &mut state.starting);
        }
        state.last_error = Some(why);
    }

    /// While the link is down somebody else must say that this process lives: a connection for the purpose.
    fn keep_owner(&self) {
        if self.shared.leases() == 0 || self.closing() {
            return;
        }
        let door = fullbore_pool::Redis::with_client(self.plan.client.clone());
        let said = door.connect(self.plan.connect_timeout).and_then(|connection| {
            let mut connection = connection.into_inner();
            connection.set_read_timeout(Some(BEAT))?;
            connection.req_command(&self.shared.alive())
        });
        if said.is_ok_and(|said| said == Value::Okay) {
            self.shared.owner_said();
        }
    }
}

/// What an error while connecting says of the settings.
fn classify(error: RedisError) -> Why {
    let said = error.to_string();
    let is = |word: &str| error.code() == Some(word) || said.contains(word);
    if error.kind() == ErrorKind::AuthenticationFailed || is("WRONGPASS") || is("NOAUTH") || is("DENIED") {
        Why::Credentials(said)
    } else if is("NOPERM") {
        Why::Permission(said)
    } else if error.kind() == ErrorKind::RESP3NotSupported || is("NOPROTO") {
        Why::TooOld(said)
    } else {
        Why::Unreachable(Arc::new(error))
    }
}

impl Why {
    /// Whether waiting may help. The others want other settings.
    pub(crate) fn is_unreachable(&self) -> bool {
        matches!(self, Why::Unreachable(_) | Why::Silent | Why::Elsewhere | Why::Closed)
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("up", &self.shared.is_up()).finish_non_exhaustive()
    }
}

/// Bytes that nobody can guess and no other process has.
pub(crate) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    if getrandom::fill(&mut bytes).is_err() {
        // A system without a source of chance: time and place must do, as it is only for being different.
        let here = std::ptr::from_ref(&bytes) as usize as u64;
        let now = std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_nanos() as u64);
        for (at, byte) in bytes.iter_mut().enumerate() {
            let seed = [here, now, u64::from(std::process::id()), at as u64].map(u64::to_le_bytes).concat();
            *byte = xxhash_rust::xxh3::xxh3_64(&seed) as u8;
        }
    }
    bytes
}

/// The beginning of a sequence.
pub(crate) fn new_epoch() -> String {
    format!("{}:0", u64::from_le_bytes(random()))
}
