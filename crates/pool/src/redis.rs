//! Redis through `redis`.

use std::fmt;
use std::io;
use std::time::{Duration, Instant};

use ::redis::{
    Client, Cmd, Connection, ConnectionLike, ErrorKind, IntoConnectionInfo, RedisError, RedisResult, Value, cmd,
};
use fullbore_core::Clock;

use crate::attempts::Attempts;
use crate::manager::Manager;

/// How long an answer may take, unless set otherwise.
const TIMEOUT: Duration = Duration::from_secs(30);

/// The least that a socket is given: zero would mean for ever.
const AT_LEAST: Duration = Duration::from_millis(1);

/// Connections to one Redis server.
///
/// A connect is done on a thread of its own, `fullbore-pool-connect-0`: the driver's timeout holds for each of the answers
/// that its handshake waits for, and not at all for the name server. An attempt that is not done within `connect_timeout` is
/// left behind; at most 32 of them are, then further ones fail when their time is up.
///
/// A connection is closed instead of passed on when a command on it ended otherwise than with an answer: cut off, timed
/// out (the answer may still come, to the wrong question), or not to be understood. An error that Redis answers with is an
/// answer. What a holder changed on the connection stays changed for the next one: end a `MULTI`, `WATCH` or `SELECT` of
/// your own, or [`discard`](crate::Connection::discard) the connection.
///
/// For a cluster or sentinels take the driver's own managers for `r2d2` (its feature of that name) and the feature `r2d2` here.
///
/// ```no_run
/// use fullbore_pool::{Pool, Redis};
/// use redis::Commands;
///
/// let pool = Pool::builder(Redis::new("redis://localhost/")?).max_size(16).build()?;
/// let mut connection = pool.get()?;
/// let hits: u64 = connection.incr("hits", 1)?;
/// assert!(hits > 0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Redis {
    client: Client,
    read_timeout: Option<Duration>,
    write_timeout: Option<Duration>,
    attempts: Attempts,
}

impl Redis {
    /// From a URL such as `redis://:password@localhost:6379/0`, or what else the driver takes.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn new(params: impl IntoConnectionInfo) -> RedisResult<Self> {
        Client::open(params).map(Self::with_client)
    }

    /// From a client of your own.
    #[must_use]
    pub fn with_client(client: Client) -> Self {
        Self { client, read_timeout: Some(TIMEOUT), write_timeout: Some(TIMEOUT), attempts: Attempts::new() }
    }

    /// How long a command waits for its answer, or the next part of it. It must be more than zero, and longer than any
    /// command that waits in Redis itself (`BLPOP`, `WAIT`): those are best given a pool of their own. A connection on which
    /// it ran out is closed.
    ///
    /// Default: 30 s. `None` waits for ever.
    #[must_use]
    pub fn read_timeout(mut self, read_timeout: impl Into<Option<Duration>>) -> Self {
        self.read_timeout = read_timeout.into();
        self
    }

    /// How long a command waits until Redis takes it, or the next part of it. It must be more than zero. A connection on
    /// which it ran out is closed.
    ///
    /// Default: 30 s. `None` waits for ever.
    #[must_use]
    pub fn write_timeout(mut self, write_timeout: impl Into<Option<Duration>>) -> Self {
        self.write_timeout = write_timeout.into();
        self
    }

    fn connect_by(&self, deadline: Instant, budget: Duration) -> RedisResult<Connection> {
        let client = self.client.clone();
        let connected = self.attempts.run(deadline, move || client.get_connection_with_timeout(budget));
        connected.unwrap_or_else(|| Err(io::Error::new(io::ErrorKind::TimedOut, "timed out while connecting").into()))
    }

    /// Sets the time that a command on this connection has.
    fn limit(&self, connection: &Connection, budget: Duration) -> RedisResult<()> {
        connection.set_read_timeout(within(self.read_timeout, budget))?;
        connection.set_write_timeout(within(self.write_timeout, budget))
    }
}

/// The shorter of the two; [`Duration::MAX`] is no budget.
fn within(timeout: Option<Duration>, budget: Duration) -> Option<Duration> {
    match timeout {
        _ if budget < Duration::MAX => Some(timeout.map_or(budget, |timeout| timeout.min(budget)).max(AT_LEAST)),
        timeout => timeout,
    }
}

impl fmt::Debug for Redis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The driver's own form leaves the password out.
        f.debug_struct("Redis")
            .field("client", &self.client)
            .field("read_timeout", &self.read_timeout)
            .field("write_timeout", &self.write_timeout)
            .finish_non_exhaustive()
    }
}

impl Manager for Redis {
    type Connection = RedisConnection;
    type Error = RedisError;

    fn connect(&self, budget: Duration) -> RedisResult<RedisConnection> {
        let connection = match Clock::Real.after(budget) {
            Some(deadline) => self.connect_by(deadline, budget)?,
            None => self.client.get_connection()?,
        };
        self.limit(&connection, Duration::MAX)?;
        Ok(RedisConnection { connection, spoiled: false })
    }

    fn validate(&self, connection: &mut RedisConnection, budget: Duration) -> RedisResult<()> {
        self.limit(&connection.connection, budget)?;
        let answer: String = cmd("PING").query(connection)?;
        if answer != "PONG" {
            // Somebody else's answer: it is out of step.
            return Err((ErrorKind::UnexpectedReturnType, "not the answer to PING", answer).into());
        }
        self.limit(&connection.connection, Duration::MAX)
    }

    fn is_broken(&self, connection: &mut RedisConnection) -> bool {
        !connection.is_open()
    }
}

/// A connection to Redis, to be used as the driver's own: `redis::cmd("GET").arg("key").query(&mut connection)`, pipelines,
/// scripts, and the methods of `redis::Commands`. It notes when it is not fit for anybody else any more, which the driver's
/// own does not always tell.
pub struct RedisConnection {
    connection: Connection,
    /// Not to be passed on.
    spoiled: bool,
}

impl RedisConnection {
    /// The driver's own connection, for what needs one: pub/sub, `MONITOR`, other timeouts. What happens on it is not seen, so
    /// **this connection is closed when it comes back**.
    pub fn raw(&mut self) -> &mut Connection {
        self.spoiled = true;
        &mut self.connection
    }

    /// The driver's own connection, after [`detach`](crate::Connection::detach).
    #[must_use]
    pub fn into_inner(self) -> Connection {
        self.connection
    }

    /// Lets `f` ask something, and looks at how that ended.
    fn ask<R>(&mut self, f: impl FnOnce(&mut Connection) -> RedisResult<R>) -> RedisResult<R> {
        let result = f(&mut self.connection);
        if let Err(error) = &result {
            // An error of the server is an answer. After any other the next answer may be that to this question.
            self.spoiled |= !matches!(error.kind(), ErrorKind::Server(_) | ErrorKind::Extension);
        }
        result
    }
}

impl ConnectionLike for RedisConnection {
    fn req_packed_command(&mut self, cmd: &[u8]) -> RedisResult<Value> {
        self.ask(|connection| connection.req_packed_command(cmd))
    }

    fn req_packed_commands(&mut self, cmd: &[u8], offset: usize, count: usize) -> RedisResult<Vec<Value>> {
        self.ask(|connection| connection.req_packed_commands(cmd, offset, count))
    }

    fn req_command(&mut self, cmd: &Cmd) -> RedisResult<Value> {
        self.ask(|connection| connection.req_command(cmd))
    }

    fn get_db(&self) -> i64 {
        self.connection.get_db()
    }

    fn supports_pipelining(&self) -> bool {
        self.connection.supports_pipelining()
    }

    fn check_connection(&mut self) -> bool {
        let good = self.connection.check_connection();
        self.spoiled |= !good;
        good
    }

    /// Whether it can be used again: open, and every command on it was answered.
    fn is_open(&self) -> bool {
        !self.spoiled && self.connection.is_open()
    }
}

impl fmt::Debug for RedisConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisConnection").field("open", &self.is_open()).finish_non_exhaustive()
    }
}

#[cfg(all(test, not(fullbore_loom)))]
mod tests {
    use std::time::Duration;

    use super::{AT_LEAST, Redis, within};

    #[test]
    fn the_password_is_not_in_debug() {
        let manager = Redis::new("redis://user:hunter2@localhost/").unwrap();
        assert!(!format!("{manager:?}").contains("hunter2"));
    }

    #[test]
    fn the_budget_shortens_a_timeout_and_never_lengthens_it() {
        let (short, long) = (Duration::from_secs(1), Duration::from_secs(5));
        assert_eq!(within(Some(long), short), Some(short));
        assert_eq!(within(Some(short), long), Some(short));
        assert_eq!(within(None, short), Some(short));
        assert_eq!(within(Some(short), Duration::MAX), Some(short));
        assert_eq!(within(None, Duration::MAX), None);
        assert_eq!(within(None, Duration::ZERO), Some(AT_LEAST), "zero would be refused by the socket");
    }
}
