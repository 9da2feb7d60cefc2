//! Questions to Redis over the pool: each within what is left of a budget, and through one breaker.

use std::time::{Duration, Instant};

use fullbore_limit::Breaker;
use fullbore_metrics::Counter;
use fullbore_pool::{Manager, Pool};
use redis::{
    Client, Cmd, Connection, ConnectionLike, ErrorKind, RedisError, RedisResult, Script, ServerErrorKind, Value, cmd,
};

use crate::redis::error::{TierError, is_no_service};

/// The least that a socket is given: zero would mean for ever.
const AT_LEAST: Duration = Duration::from_millis(1);

/// Makes the connections. As the pool's own manager for Redis, except that each question sets the time it may take.
pub(crate) struct Door {
    inner: fullbore_pool::Redis,
    /// Learns which server each connection leads to.
    leads_to: Box<dyn Fn(Option<String>) + Send + Sync>,
}

impl Manager for Door {
    type Connection = Line;
    type Error = RedisError;

    fn connect(&self, budget: Duration) -> RedisResult<Line> {
        let connection = self.inner.connect(budget)?.into_inner();
        let mut line = Line { connection, spoiled: false, given: Duration::MAX };
        line.give(budget)?;
        (self.leads_to)(run_id(&mut line.connection)?);
        Ok(line)
    }

    fn validate(&self, line: &mut Line, budget: Duration) -> RedisResult<()> {
        line.give(budget)?;
        match line.ask(&cmd("PING"))? {
            Value::SimpleString(answer) if answer == "PONG" => Ok(()),
            // Somebody else's answer: it is out of step.
            _ => Err((ErrorKind::UnexpectedReturnType, "not the answer to PING").into()),
        }
    }

    fn is_broken(&self, line: &mut Line) -> bool {
        line.spoiled || !line.connection.is_open()
    }
}

/// The name of one run of a server: not that of another, nor of the same one after a restart. `None` if it does not tell.
pub(crate) fn run_id(connection: &mut Connection) -> RedisResult<Option<String>> {
    let mut info = cmd("INFO");
    let answer = connection.req_command(info.arg("server"))?;
    let text = match &answer {
        Value::BulkString(bytes) => String::from_utf8_lossy(bytes),
        Value::VerbatimString { text, .. } => text.as_str().into(),
        _ => return Ok(None),
    };
    Ok(text.lines().find_map(|line| line.strip_prefix("run_id:")).map(str::to_owned))
}

/// A connection of the pool.
pub(crate) struct Line {
    connection: Connection,
    /// The next answer on it may be that to an earlier question.
    spoiled: bool,
    /// How long its socket waits at the moment.
    given: Duration,
}

impl Line {
    /// Sets how long each read and write may take.
    fn give(&mut self, left: Duration) -> RedisResult<()> {
        let left = left.max(AT_LEAST);
        // Two calls of the system are saved where it is nearly the same as before.
        if self.given > left + left / 8 || self.given < left - left / 8 {
            self.connection.set_read_timeout(Some(left))?;
            self.connection.set_write_timeout(Some(left))?;
            self.given = left;
        }
        Ok(())
    }

    fn noted<R>(&mut self, result: RedisResult<R>) -> RedisResult<R> {
        if let Err(error) = &result {
            // An error of the server is an answer. After any other the next answer may be that to this question.
            self.spoiled |= !matches!(error.kind(), ErrorKind::Server(_) | ErrorKind::Extension);
            // It was the primary once. A new connection may lead to the one that is now.
            self.spoiled |= error.kind() == ErrorKind::Server(ServerErrorKind::ReadOnly);
        }
        result
    }

    /// Asks one thing.
    pub(crate) fn ask(&mut self, command: &Cmd) -> RedisResult<Value> {
        let result = self.connection.req_command(command).and_then(|answer| match answer {
            Value::ServerError(error) => Err(error.into()),
            answer => Ok(answer),
        });
        self.noted(result)
    }

    /// Asks many things in one go. An error that Redis answers one of them with is that one's answer.
    pub(crate) fn ask_all(&mut self, commands: &[Cmd]) -> RedisResult<Vec<Value>> {
        if commands.is_empty() {
            return Ok(Vec::new());
        }
        let mut packed = Vec::new();
        for command in commands {
            packed.extend_from_slice(&command.get_packed_command());
        }
        let result = self.connection.req_packed_commands(&packed, 0, commands.len());
        self.noted(result)
    }

    /// Asks many things, each in a packet of its own: Redis works at the next one while the answer to the one before is read.
    pub(crate) fn ask_apart(&mut self, commands: &[Cmd]) -> RedisResult<Vec<Value>> {
        let result = self.apart(commands);
        self.noted(result)
    }

    fn apart(&mut self, commands: &[Cmd]) -> RedisResult<Vec<Value>> {
        for command in commands {
            self.connection.send_packed_command(&command.get_packed_command())?;
        }
        let mut answers = Vec::with_capacity(commands.len());
        while answers.len() < commands.len() {
            match self.connection.recv_response()? {
                Value::Push { .. } => {}
                answer => answers.push(answer),
            }
        }
        Ok(answers)
    }

    /// Runs a script of one key by its hash, or by its text where Redis does not know it yet.
    pub(crate) fn eval(&mut self, script: &Lua, keys: &[&[u8]], args: &[&[u8]]) -> RedisResult<Value> {
        match self.ask(&script.by_hash(keys, args)) {
            Err(error) if is_no_script(&error) => self.ask(&script.by_text(keys, args)),
            answer => answer,
        }
    }

    /// As [`ask_all`](Self::ask_all) for calls of `script`.
    pub(crate) fn eval_all(&mut self, script: &Lua, calls: &[Call<'_>]) -> RedisResult<Vec<Value>> {
        self.eval_all_after(Vec::new(), script, calls).map(|(_, answers)| answers)
    }

    /// Asks `first`, and then the calls of `script`, all in one go; the answers to both. The first call may have to make the
    /// script known.
    pub(crate) fn eval_all_after(
        &mut self,
        first: Vec<Cmd>,
        script: &Lua,
        calls: &[Call<'_>],
    ) -> RedisResult<(Vec<Value>, Vec<Value>)> {
        let at = first.len();
        let mut commands = first;
        commands.extend(calls.iter().map(|(keys, args)| script.by_hash(keys, args)));
        let mut told = self.ask_all(&commands)?;
        let mut answers = told.split_off(at.min(told.len()));
        let unknown = |answer: &Value| matches!(answer, Value::ServerError(error) if error.code() == "NOSCRIPT");
        let again: Vec<usize> = (0..answers.len()).filter(|n| unknown(&answers[*n])).collect();
        if !again.is_empty() {
            let by_text: Vec<Cmd> = again.iter().map(|n| script.by_text(&calls[*n].0, &calls[*n].1)).collect();
            for (n, answer) in again.into_iter().zip(self.ask_all(&by_text)?) {
                answers[n] = answer;
            }
        }
        Ok((told, answers))
    }
}

/// The keys and the arguments of a script.
pub(crate) type Call<'a> = (Vec<&'a [u8]>, Vec<&'a [u8]>);

fn is_no_script(error: &RedisError) -> bool {
    error.kind() == ErrorKind::Server(ServerErrorKind::NoScript)
}

/// A script, known to Redis by its hash.
#[derive(Debug)]
pub(crate) struct Lua {
    text: &'static str,
    hash: String,
}

impl Lua {
    pub(crate) fn new(text: &'static str) -> Self {
        Self { text, hash: Script::new(text).get_hash().to_owned() }
    }

    fn call(name: &str, what: &str, keys: &[&[u8]], args: &[&[u8]]) -> Cmd {
        let mut call = cmd(name);
        call.arg(what).arg(keys.len()).arg(keys).arg(args);
        call
    }

    pub(crate) fn by_hash(&self, keys: &[&[u8]], args: &[&[u8]]) -> Cmd {
        Self::call("EVALSHA", &self.hash, keys, args)
    }

    pub(crate) fn by_text(&self, keys: &[&[u8]], args: &[&[u8]]) -> Cmd {
        Self::call("EVAL", self.text, keys, args)
    }
}

/// What is left of the time that all questions of one request have together. Time that is not spent on Redis, such as the
/// wait for another process, is not taken from it.
#[derive(Debug)]
pub(crate) struct Purse {
    left: Duration,
    until: Option<Instant>,
}

impl Purse {
    pub(crate) fn new(budget: Duration, until: Option<Instant>) -> Self {
        Self { left: budget, until }
    }
}

/// The pool and the breaker of a tier.
#[derive(Debug)]
pub(crate) struct Wire {
    pub(crate) pool: Pool<Door>,
    pub(crate) breaker: Breaker,
    pub(crate) timeouts: Counter,
    pub(crate) failures: Counter,
}

impl Wire {
    /// What makes its connections; `leads_to` is told which server each new one leads to.
    pub(crate) fn door(client: Client, leads_to: impl Fn(Option<String>) + Send + Sync + 'static) -> Door {
        Door { inner: fullbore_pool::Redis::with_client(client), leads_to: Box::new(leads_to) }
    }

    /// Asks `question` on a connection of the pool, within what is left in the purse. A connection that turns out to be gone
    /// (Redis was restarted since it was used last) is replaced by another one, once: so a question may come twice.
    pub(crate) fn ask<R>(
        &self,
        purse: &mut Purse,
        mut question: impl FnMut(&mut Line) -> RedisResult<R>,
    ) -> Result<R, TierError> {
        let begun = Instant::now();
        let left = purse.until.map_or(purse.left, |until| purse.left.min(until.saturating_duration_since(begun)));
        if left.is_zero() {
            // Nothing is known of Redis: this says nothing to the breaker.
            return Err(TierError::TimedOut { budget: left });
        }
        let permit = self.breaker.try_acquire().map_err(TierError::Open)?;
        let until = begun + left;
        let mut result = self.once(until, left, &mut question);
        if matches!(&result, Err(Went::Gone(_))) {
            let left = until.saturating_duration_since(Instant::now());
            if !left.is_zero() {
                result = self.once(until, left, &mut question);
            }
        }
        purse.left = purse.left.saturating_sub(begun.elapsed());
        match result {
            Ok(answer) => {
                permit.success();
                Ok(answer)
            }
            Err(Went::Answered(error)) => {
                permit.success();
                Err(TierError::io(error, left))
            }
            Err(Went::Wrong(error) | Went::Gone(error)) => {
                // A pool that is closed says nothing of Redis.
                if matches!(error, TierError::Closed) {
                    drop(permit);
                } else {
                    permit.failure();
                    self.failures.inc();
                }
                if error.is_timeout() {
                    self.timeouts.inc();
                }
                Err(error)
            }
        }
    }

    fn once<R>(
        &self,
        until: Instant,
        budget: Duration,
        question: &mut impl FnMut(&mut Line) -> RedisResult<R>,
    ) -> Result<R, Went> {
        let mut line = self.pool.get_deadline(until).map_err(|error| Went::Wrong(TierError::get(&error, budget)))?;
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Went::Wrong(TierError::TimedOut { budget }));
        }
        let result = line.give(left).and_then(|()| question(&mut line));
        result.map_err(|error| match error.kind() {
            ErrorKind::Server(_) | ErrorKind::Extension if !is_no_service(&error) => Went::Answered(error),
            _ if error.is_connection_dropped() && !error.is_timeout() => Went::Gone(TierError::io(error, budget)),
            _ => Went::Wrong(TierError::io(error, budget)),
        })
    }
}

impl std::fmt::Debug for Door {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Door").field("inner", &self.inner).finish_non_exhaustive()
    }
}

/// How a question went that was not answered as hoped for.
enum Went {
    /// Redis said no.
    Answered(RedisError),
    /// The connection was gone.
    Gone(TierError),
    Wrong(TierError),
}
