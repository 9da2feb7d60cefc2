use std::{
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use postgres::NoTls;
use rustix::process::Signal;

use crate::{
    error::{StartError, Started, or_skip},
    find,
    process::Launch,
    server::{Kind, Server},
    user::User,
};

const CONNECT_WITHIN: Duration = Duration::from_secs(10);
const CONFIG_FILE: &str = "pgbouncer.ini";
const USERS_FILE: &str = "users.txt";
const PID_FILE: &str = "pgbouncer.pid";

/// A private PgBouncer in front of a PostgreSQL, in transaction mode; stops on drop.
///
/// It lets in the user `postgres` without a password and passes every database of the server through. All methods take
/// `&self`, so that one thread can kill it while others use it. Where the tests run as root it runs as the system's
/// `postgres` user, because it refuses to be root.
#[derive(Debug)]
pub struct PgBouncer {
    server: Server<PgBouncerKind>,
}

/// Options of a private [`PgBouncer`].
#[derive(Clone, Debug)]
#[must_use = "it does nothing before `start`"]
pub struct PgBouncerBuilder {
    upstream: SocketAddr,
    config: Vec<(String, String)>,
}

impl PgBouncer {
    /// Starts one in front of `upstream`, a [`Postgres`](crate::Postgres) or a [`TcpProxy`](crate::TcpProxy) before it,
    /// with the default options.
    ///
    /// # Errors
    /// See [`PgBouncerBuilder::start`].
    pub fn start(upstream: SocketAddr) -> Started<Self> {
        Self::builder(upstream).start()
    }

    /// Starts one with the default options, or says that the test is skipped.
    ///
    /// # Panics
    /// See [`PgBouncerBuilder::start_or_skip`].
    #[must_use]
    pub fn start_or_skip(upstream: SocketAddr) -> Option<Self> {
        Self::builder(upstream).start_or_skip()
    }

    /// The options of one in front of `upstream`, which need not be up.
    pub fn builder(upstream: SocketAddr) -> PgBouncerBuilder {
        PgBouncerBuilder { upstream, config: Vec::new() }
    }

    /// Where it listens; the same for its whole life.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.server.addr()
    }

    /// The port of [`PgBouncer::addr`].
    #[must_use]
    pub fn port(&self) -> u16 {
        self.addr().port()
    }

    /// `postgres://…` for the server's database `postgres`, through it.
    #[must_use]
    pub fn url(&self) -> String {
        self.url_at(self.addr())
    }

    /// The same at another address: that of a [`TcpProxy`](crate::TcpProxy) in front of it.
    #[must_use]
    pub fn url_at(&self, addr: SocketAddr) -> String {
        format!("postgres://postgres@{addr}/postgres")
    }

    /// A new connection to the server's database `postgres`, through it.
    ///
    /// # Panics
    /// If it cannot connect; [`PgBouncer::try_client`] is for one that may be down.
    #[must_use]
    pub fn client(&self) -> postgres::Client {
        self.try_client().unwrap_or_else(|error| panic!("no connection to {}: {error}", self.url()))
    }

    /// A new connection to the server's database `postgres`, through it.
    ///
    /// # Errors
    /// What connecting met.
    pub fn try_client(&self) -> Result<postgres::Client, postgres::Error> {
        let mut config: postgres::Config = self.url().parse()?;
        config.connect_timeout(CONNECT_WITHIN).connect(NoTls)
    }

    /// A connection to its console, which takes simple queries only: `SHOW POOLS`, `PAUSE`.
    ///
    /// # Panics
    /// If it cannot connect.
    #[must_use]
    pub fn console(&self) -> postgres::Client {
        let url = format!("postgres://postgres@{}/pgbouncer", self.addr());
        let config = url.parse().map(|mut config: postgres::Config| config.connect_timeout(CONNECT_WITHIN).clone());
        let client = config.and_then(|config| config.connect(NoTls));
        client.unwrap_or_else(|error| panic!("no connection to {url}: {error}"))
    }

    /// The process id, if it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.server.pid()
    }

    /// The end of what it printed.
    #[must_use]
    pub fn log(&self) -> String {
        self.server.log()
    }

    /// Its directory: configuration and log. Goes away with it.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.server.dir()
    }

    /// Kills it with SIGKILL, at once; when this returns it is gone, and both its clients and the server see their
    /// connections closed. Nothing happens if it is down already.
    pub fn kill_9(&self) {
        self.server.kill_9();
    }

    /// Stops it without waiting for clients (SIGQUIT, after 10 s SIGKILL) and keeps its port. Nothing happens if it is down.
    pub fn stop(&self) {
        self.server.stop();
    }

    /// Starts it again on the same port, after [`PgBouncer::stop`] if it still runs; returns when it serves clients.
    ///
    /// # Panics
    /// If it does not come up, with its log.
    pub fn restart(&self) {
        self.server.restart().unwrap_or_else(|error| panic!("{error}"));
    }
}

impl PgBouncerBuilder {
    /// One line of the section `[pgbouncer]`, `name = value`; wins over ours.
    pub fn config(mut self, name: &str, value: &str) -> Self {
        self.config.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Starts it and returns when it serves clients; whether the server behind it does is another matter.
    ///
    /// # Errors
    /// [`StartError::Missing`] if `pgbouncer` is not installed; [`StartError::Failed`] with its log if it ends early or is
    /// not ready after 30 s, or if the tests run as root and there is no `postgres` user.
    pub fn start(self) -> Started<PgBouncer> {
        let program = find::pgbouncer()?;
        let user = User::for_postgres("PgBouncer")?;
        Ok(PgBouncer { server: Server::start(PgBouncerKind { program, user, options: self })? })
    }

    /// Starts it; if it is not installed, prints `SKIPPED: pgbouncer` to stderr and returns `None`.
    ///
    /// # Panics
    /// If it is installed and does not start; if it is not installed, `FULLBORE_REQUIRE_SERVERS=1`, and
    /// `FULLBORE_WITHOUT_SERVERS` does not name it.
    #[must_use]
    pub fn start_or_skip(self) -> Option<PgBouncer> {
        or_skip(self.start())
    }
}

#[derive(Debug)]
struct PgBouncerKind {
    program: PathBuf,
    user: Option<User>,
    options: PgBouncerBuilder,
}

impl PgBouncerKind {
    fn config_file(&self, dir: &Path, port: u16) -> String {
        let (host, server_port) = (self.options.upstream.ip(), self.options.upstream.port());
        let (users, pid) = (dir.join(USERS_FILE), dir.join(PID_FILE));
        let (users, pid) = (users.display(), pid.display());
        // No Unix socket: with one it would live on without its TCP port. A server that was down is tried again soon, not
        // after 15 s.
        let mut text = format!(
            "[databases]\n* = host={host} port={server_port}\n\n[pgbouncer]\n\
             listen_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\npidfile = {pid}\n\
             auth_type = trust\nauth_file = {users}\nadmin_users = postgres\n\
             pool_mode = transaction\nserver_login_retry = 0.1\n"
        );
        for (name, value) in &self.options.config {
            text.push_str(&format!("{name} = {value}\n"));
        }
        text
    }
}

impl Kind for PgBouncerKind {
    const NAME: &'static str = "pgbouncer";
    /// SIGTERM waits for clients in newer versions. Older ones know nothing of SIGQUIT and end by it all the same.
    const STOP: Signal = Signal::QUIT;
    const ORPHAN_STOP: &'static str = "KILL";

    fn prepare(&self, dir: &Path) -> Started<()> {
        self.user
            .map_or(Ok(()), |user| user.own(dir))
            .and_then(|()| fs::write(dir.join(USERS_FILE), "\"postgres\" \"\"\n"))
            .map_err(StartError::io(Self::NAME, "cannot write its files"))
    }

    fn work_dir(&self, dir: &Path) -> PathBuf {
        dir.to_owned()
    }

    fn launch(&self, dir: &Path, port: u16) -> io::Result<Launch> {
        let config = dir.join(CONFIG_FILE);
        fs::write(&config, self.config_file(dir, port))?;
        // That of one that was killed, whose number may be somebody else's by now: it would not start.
        match fs::remove_file(dir.join(PID_FILE)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        Ok(Launch { program: self.program.clone(), args: vec![config.into()], dir: dir.to_owned(), user: self.user })
    }

    /// It writes its number there once it listens.
    fn is_ready(&self, dir: &Path, _addr: SocketAddr, pid: u32) -> bool {
        fs::read_to_string(dir.join(PID_FILE)).is_ok_and(|text| text.trim_ascii() == pid.to_string())
    }

    fn after_kill(&self, _dir: &Path) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_come_last_so_that_they_win() {
        let options = PgBouncer::builder(([127, 0, 0, 1], 5).into()).config("pool_mode", "session");
        let kind = PgBouncerKind { program: PathBuf::new(), user: None, options };
        let text = kind.config_file(Path::new("/a"), 7);
        assert!(text.contains("\n* = host=127.0.0.1 port=5\n"), "{text}");
        assert!(text.contains("\nlisten_port = 7\n"), "{text}");
        assert!(text.contains("\npool_mode = transaction\n") && text.ends_with("\npool_mode = session\n"), "{text}");
    }
}
