//! PostgreSQL through `postgres`.

use std::fmt;
use std::time::{Duration, Instant};

use ::postgres::error::{Severity, SqlState};
use ::postgres::{Client, Config, Error, NoTls, Transaction};
use fullbore_core::{Clock, Crew};

use crate::attempts::Attempts;
use crate::manager::Manager;
use crate::transaction::Transactional;

/// How long a close waits for the connection to be closed. Nearly always that takes microseconds.
const CLOSE_WITHIN: Duration = Duration::from_millis(10);

/// Connections to one PostgreSQL database, without TLS.
///
/// A connect is done on a thread of its own, `fullbore-pool-connect-0`, because the driver's timeout ends with the TCP
/// connection: a server that accepts and then says nothing would hold a thread of the pool's for ever. An attempt that is not
/// done within `connect_timeout` is left behind and ends with its socket; at most 32 of them are, then further ones fail when
/// their time is up. A connection that still owes an answer is closed on `fullbore-pool-close-0` in the same way, because the
/// driver waits for that answer.
///
/// Statements have no time limit of ours. Set PostgreSQL's own in the connection string, `options=-c
/// statement_timeout=30s`, and `keepalives_idle`, with which a connection that the network has forgotten ends.
///
/// # Behind PgBouncer in transaction mode
/// A transaction works as it does without, [`Pool::transaction`](crate::Pool::transaction) for example, whatever is in it:
/// parameters, statements prepared in it, COPY, portals; and so do `batch_execute`, `simple_query`, `query_typed` and the
/// check of an idle connection, which are one round trip. `query`, `execute` and `prepare` outside a transaction are
/// several: the next one may meet another connection of the server, on which the statement "does not exist" (SQLSTATE
/// 26000). They work only where PgBouncer tracks statements: `max_prepared_statements` above 0, possible from 1.21 on and
/// the default from 1.24 on. Without, types that the driver does not know (enums, for example) fail in the same way, in
/// transactions too, from the second such type of a connection on: the driver keeps the statement with which it asks for
/// them.
///
/// PgBouncer refuses `options` in the connection string; set a `statement_timeout` for the role, `ALTER ROLE .. SET ..`. A
/// `get` that checks an idle connection waits for a connection of the server, as a query does. More connections than
/// PgBouncer has to the server (`default_pool_size`) only wait there instead of here.
#[derive(Clone)]
pub struct Postgres {
    config: Config,
    attempts: Attempts,
}

impl Postgres {
    /// From a connection string: a URL or `key=value` pairs.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn new(params: &str) -> Result<Self, Error> {
        params.parse().map(Self::with_config)
    }

    /// From a configuration of your own.
    #[must_use]
    pub fn with_config(config: Config) -> Self {
        Self { config, attempts: Attempts::new() }
    }

    fn connect_by(&self, config: &Config, deadline: Instant) -> Result<Client, Error> {
        let config = config.clone();
        self.attempts.run(deadline, move || config.connect(NoTls)).unwrap_or_else(|| Err(timed_out()))
    }
}

/// The driver's own timeout error. Hidden in its documentation, but its two crates use it between them across versions, so
/// it cannot go away while both are compatible with what we depend on.
fn timed_out() -> Error {
    Error::__private_api_timeout()
}

impl fmt::Debug for Postgres {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The driver's own form leaves the password out.
        f.debug_struct("Postgres").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Manager for Postgres {
    type Connection = Client;
    type Error = Error;

    fn connect(&self, budget: Duration) -> Result<Client, Error> {
        let mut config = self.config.clone();
        let Some(deadline) = Clock::Real.after(budget) else { return config.connect(NoTls) };
        // The connection string may ask for less.
        let limit = config.get_connect_timeout().map_or(budget, |limit| budget.min(*limit));
        config.connect_timeout(limit);
        self.connect_by(&config, deadline)
    }

    fn validate(&self, client: &mut Client, budget: Duration) -> Result<(), Error> {
        client.is_valid(budget)
    }

    fn is_broken(&self, client: &mut Client) -> bool {
        client.is_closed()
    }

    fn close(&self, client: Client) {
        // Dropped here it would wait for every answer that it still owes: after a validation that timed out, for ever.
        let crew = Crew::new("pool", "close", Clock::Real);
        // Without a thread to be had it is dropped here after all.
        if crew.spawn(move || drop(client)).is_ok() {
            crew.join(Clock::Real.after(CLOSE_WITHIN));
        }
    }
}

impl Transactional for Postgres {
    type Transaction<'c> = Transaction<'c>;

    fn begin<'c>(&self, client: &'c mut Client) -> Result<Transaction<'c>, Error> {
        client.transaction()
    }

    fn commit(&self, mut transaction: Transaction<'_>) -> Result<(), Error> {
        // PostgreSQL answers the COMMIT of a transaction in which a statement failed with a rollback, and the driver takes
        // that for success. The SELECT fails then, in the same round trip, and the COMMIT is not run.
        transaction.batch_execute("SELECT 1; COMMIT")?;
        // It has ended; dropped, it would send a ROLLBACK. Nothing leaks: it owns no memory.
        std::mem::forget(transaction);
        Ok(())
    }

    fn rollback(&self, transaction: Transaction<'_>) -> Result<(), Error> {
        transaction.rollback()
    }

    fn outcome_unknown(&self, error: &Error) -> bool {
        // An ERROR of the server says that it did not commit. A FATAL one ends the connection, and a pooler between us says
        // with it that it lost the server; anything that is not an answer says nothing.
        error.as_db_error().is_none_or(|answer| {
            answer.parsed_severity() != Some(Severity::Error)
                || answer.code().code().starts_with("08")
                || *answer.code() == SqlState::T_R_STATEMENT_COMPLETION_UNKNOWN
        })
    }

    fn is_serialization_failure(&self, error: &Error) -> bool {
        error
            .code()
            .is_some_and(|code| [SqlState::T_R_SERIALIZATION_FAILURE, SqlState::T_R_DEADLOCK_DETECTED].contains(code))
    }
}

#[cfg(all(test, not(fullbore_loom)))]
mod tests {
    use std::net::TcpListener;
    use std::time::Duration;

    use super::Postgres;
    use crate::manager::Manager;

    #[test]
    fn what_a_silent_server_holds_ends_with_its_socket() {
        // Nobody accepts: the system completes the connections, and nothing answers.
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = silent.local_addr().unwrap().port();
        let manager = Postgres::new(&format!("host=127.0.0.1 port={port} user=nobody")).unwrap();
        for _ in 0..4 {
            assert!(manager.connect(Duration::from_millis(2)).is_err());
        }
        assert!(manager.attempts.under_way() > 0, "they are left behind");
        drop(silent);
        manager.attempts.wait_for_all();
    }

    #[test]
    fn the_password_is_not_in_debug() {
        let manager = Postgres::new("host=localhost user=u password=hunter2").unwrap();
        assert!(!format!("{manager:?}").contains("hunter2"));
    }
}
