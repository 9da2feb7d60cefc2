//! The link's thread.
//!
//! It reads; a push is passed on as soon as it is read. Once a second, and at once where something is to be asked, it sends a
//! round of questions that ends with a `PING` of its own: its answer says that the connection lives and that every push sent
//! before has been passed on. The driver leaves out as many answers as reads have timed out before; the round begins with
//! `PING`s that may be left out, and what is read is counted from its end.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use fullbore_core::{Backoff, Event, Events, Serve};
use fullbore_pool::Manager as _;
use redis::{
    Client, Cmd, Connection, ConnectionLike as _, ErrorKind, ProtocolVersion, PushKind, RedisError, Value, cmd,
};

use crate::redis::frame::Moment;
use crate::redis::link::{Heard, Plan, Shared, UNKNOWN, Why, new_epoch, random};
use crate::redis::space::{Changed, Space};
use crate::redis::wire::run_id;

/// How long the link may be silent before it is asked whether it lives.
const BEAT: Duration = Duration::from_secs(1);
/// How long it may leave that unanswered.
const PATIENCE: Duration = Duration::from_secs(2);
/// Of `PING`s whose answers may be left out.
const SPARE: usize = 3;

/// The thread's own.
pub(super) struct Worker {
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
    /// Leases that it gives back.
    debts: Vec<(Arc<[u8]>, Vec<u8>)>,
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
    pub(super) fn new(plan: Plan, shared: Arc<Shared>, heard: Arc<dyn Heard>) -> Self {
        let events = Events::new("cache", &plan.name);
        Self { shared, plan, heard, events, sequence_wanted: true, attempts: 0 }
    }

    pub(super) fn run(mut self) {
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
        let mut round = None;
        let why = self.listen(connection, &mut round);
        if let Some(open) = round {
            self.shared.owe_again(open.debts);
        }
        why
    }

    fn listen(&mut self, connection: &mut Connection, round: &mut Option<Round>) -> Why {
        self.sequence_wanted = true;
        *round = match self.send(connection) {
            Ok(round) => Some(round),
            Err(why) => return why,
        };
        let mut last = Instant::now();
        loop {
            match connection.recv_response() {
                Ok(Value::Push { kind: PushKind::Invalidate, data }) => self.invalidate(&data),
                Ok(Value::Push { .. }) => {}
                Ok(answer) => {
                    if let Some(open) = round.as_mut() {
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
            match round.as_ref() {
                Some(open) if open.sent.elapsed() >= PATIENCE => return Why::Silent,
                Some(_) => {}
                None => {
                    if self.sequence_wanted || last.elapsed() >= BEAT || self.owes() {
                        last = Instant::now();
                        match self.send(connection) {
                            Ok(sent) => *round = Some(sent),
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
        if self.sequence_wanted || self.shared.sequence().is_none() {
            // Unless nobody has begun it, or it was evicted, this does nothing: a new epoch, which nothing that was remembered
            // belongs to.
            let mut begin = cmd("SET");
            begin.arg(self.plan.space.sequence()).arg(new_epoch()).arg("NX");
            ask(Asked::Nothing, begin.arg("PX").arg(Space::SEQUENCE_LIFE.as_millis() as u64));
            ask(Asked::Sequence, cmd("GET").arg(self.plan.space.sequence()));
            self.sequence_wanted = false;
        }
        let mark = random::<8>().map(|byte| b"0123456789abcdef"[usize::from(byte & 15)]).to_vec();
        packed.extend_from_slice(&cmd("PING").arg(&mark).get_packed_command());
        let (sent, local) = (Instant::now(), self.shared.local());
        if let Err(error) = connection.send_packed_command(&packed) {
            self.shared.owe_again(debts);
            return Err(classify(error));
        }
        Ok(Round { sent, local, mark, asked, answers: Vec::new(), debts })
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
                self.shared.forget_sequence();
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
                            if **waiting.tag == *key { Serve::Nudge } else { Serve::Skip }
                        },
                    );
                }
            }
            Changed::Tag(tag) => self.events.contained(|| self.heard.tag(tag)),
            Changed::Sequence => {
                self.sequence_wanted = true;
                // The old one would do no harm, but revoke loads that begin now and end with that tag: they ask for it themselves.
                self.shared.forget_sequence();
            }
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
