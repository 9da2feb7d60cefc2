mod cluster;

use std::{
    ffi::OsString,
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use postgres::NoTls;
use rustix::process::Signal;

use crate::{
    error::{Started, or_skip},
    find,
    process::Launch,
    server::{Kind, Server},
    user::User,
};

const CONNECT_WITHIN: Duration = Duration::from_secs(10);
/// Of a Unix socket's path, on the system with the smallest one.
const LONGEST_SOCKET_PATH: usize = 103;

/// A private PostgreSQL; stops on drop.
///
/// Its superuser is `postgres`, without a password, its first database `postgres`. All methods take `&self`, so that one
/// thread can kill the server while others use it. Where the tests run as root it runs as the system's `postgres` user.
#[derive(Debug)]
pub struct Postgres {
    server: Server<PostgresKind>,
}

/// Options of a private [`Postgres`].
#[derive(Clone, Debug)]
#[must_use = "it does nothing before `start`"]
pub struct PostgresBuilder {
    fsync: bool,
    config: Vec<(String, String)>,
}

impl Postgres {
    /// Starts one with the default options.
    ///
    /// # Errors
    /// See [`PostgresBuilder::start`].
    pub fn start() -> Started<Self> {
        Self::builder().start()
    }

    /// Starts one with the default options, or says that the test is skipped.
    ///
    /// # Panics
    /// See [`PostgresBuilder::start_or_skip`].
    #[must_use]
    pub fn start_or_skip() -> Option<Self> {
        Self::builder().start_or_skip()
    }

    /// Whether `postgres` and its `initdb` are on this machine.
    #[must_use]
    pub fn is_installed() -> bool {
        find::postgres().is_ok()
    }

    /// The options.
    pub fn builder() -> PostgresBuilder {
        PostgresBuilder { fsync: false, config: Vec::new() }
    }

    /// Where it listens; the same for its whole life.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.server.addr()
    }

    /// The port of [`Postgres::addr`].
    #[must_use]
    pub fn port(&self) -> u16 {
        self.addr().port()
    }

    /// `postgres://…` for its database `postgres`.
    #[must_use]
    pub fn url(&self) -> String {
        self.url_at(self.addr())
    }

    /// The same at another address: that of a [`TcpProxy`](crate::TcpProxy) in front of it.
    #[must_use]
    pub fn url_at(&self, addr: SocketAddr) -> String {
        database_url(addr, "postgres")
    }

    /// Creates a database and returns its URL.
    ///
    /// # Panics
    /// If the server refuses, for example because there is one of that name.
    pub fn create_database(&self, name: &str) -> String {
        let statement = format!("CREATE DATABASE \"{}\"", name.replace('"', "\"\""));
        self.client()
            .batch_execute(&statement)
            .unwrap_or_else(|error| panic!("cannot create the database {name:?}: {error}"));
        database_url(self.addr(), name)
    }

    /// A new connection to the database `postgres`.
    ///
    /// # Panics
    /// If it cannot connect; [`Postgres::try_client`] is for a server that may be down.
    #[must_use]
    pub fn client(&self) -> postgres::Client {
        self.try_client().unwrap_or_else(|error| panic!("no connection to {}: {error}", self.url()))
    }

    /// A new connection to the database `postgres`.
    ///
    /// # Errors
    /// What connecting met.
    pub fn try_client(&self) -> Result<postgres::Client, postgres::Error> {
        let mut config: postgres::Config = self.url().parse()?;
        config.connect_timeout(CONNECT_WITHIN).connect(NoTls)
    }

    /// The process id of the server (the postmaster), if it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.server.pid()
    }

    /// The end of what the server printed.
    #[must_use]
    pub fn log(&self) -> String {
        self.server.log()
    }

    /// Its directory: log, Unix socket, and the data in `data`. Goes away with it.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.server.dir()
    }

    /// Kills the server and all of its backends with SIGKILL, at once; when this returns they are gone, and so are the
    /// lock files and the shared memory segment that they left (its data is as they left it). Nothing happens if it is down
    /// already.
    ///
    /// A committed transaction survives it also without [`PostgresBuilder::fsync`]: the system's page cache outlives a
    /// process. That option matters for a crash of the machine, and for measuring what a commit costs.
    pub fn kill_9(&self) {
        self.server.kill_9();
    }

    /// Stops the server in order (a *fast* shutdown: clients are disconnected; after 10 s SIGKILL) and keeps its port and
    /// data. Nothing happens if it is down.
    pub fn stop(&self) {
        self.server.stop();
    }

    /// Starts it again on the same port and data, after [`Postgres::stop`] if it still runs; returns when it serves
    /// clients.
    ///
    /// # Panics
    /// If it does not come up, with its log.
    pub fn restart(&self) {
        self.server.restart().unwrap_or_else(|error| panic!("{error}"));
    }
}

impl PostgresBuilder {
    /// Whether a commit waits for the disk, as in production; off, a commit costs a fraction. Default: false.
    pub fn fsync(mut self, on: bool) -> Self {
        self.fsync = on;
        self
    }

    /// One setting, as `postgres -c name=value` takes it; wins over ours.
    pub fn config(mut self, name: &str, value: &str) -> Self {
        self.config.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Starts the server and returns when it serves clients. The first one of a process takes about a second longer.
    ///
    /// # Errors
    /// [`StartError::Missing`](crate::StartError::Missing) if `postgres` or its `initdb` is not installed; [`StartError::Failed`](crate::StartError::Failed) with the server's
    /// log if it ends early or is not ready after 30 s, or if the tests run as root and there is no `postgres` user.
    pub fn start(self) -> Started<Postgres> {
        let (program, initdb) = find::postgres()?;
        let user = User::for_postgres("PostgreSQL")?;
        Ok(Postgres { server: Server::start(PostgresKind { program, initdb, user, options: self })? })
    }

    /// Starts the server; if it is not installed, prints `SKIPPED: postgres` to stderr and returns `None`.
    ///
    /// # Panics
    /// If it is installed and does not start; if it is not installed and `FULLBORE_REQUIRE_SERVERS=1`.
    #[must_use]
    pub fn start_or_skip(self) -> Option<Postgres> {
        or_skip(self.start())
    }
}

#[derive(Debug)]
struct PostgresKind {
    program: PathBuf,
    initdb: PathBuf,
    user: Option<User>,
    options: PostgresBuilder,
}

impl PostgresKind {
    fn settings(&self, dir: &Path, port: u16) -> Vec<(String, String)> {
        let on_off = if self.options.fsync { "on" } else { "off" };
        // A long TMPDIR leaves no room for a socket's path; TCP is what the tests use.
        let socket = dir.join(format!(".s.PGSQL.{port}"));
        let fits = socket.as_os_str().len() <= LONGEST_SOCKET_PATH;
        let socket_dir = if fits { quoted(&dir.to_string_lossy()) } else { String::new() };
        let ours: [(&str, &str); 9] = [
            ("listen_addresses", "127.0.0.1"),
            ("unix_socket_directories", &socket_dir),
            ("shared_buffers", "16MB"),
            // In the data directory, where a killed server's segments go away with it.
            ("dynamic_shared_memory_type", "mmap"),
            ("fsync", on_off),
            ("full_page_writes", on_off),
            ("logging_collector", "off"),
            ("timezone", "UTC"),
            ("log_timezone", "UTC"),
        ];
        let ours = ours.map(|(name, value)| (name.to_owned(), value.to_owned()));
        ours.into_iter().chain(self.options.config.iter().cloned()).collect()
    }
}

impl Kind for PostgresKind {
    const NAME: &'static str = "postgres";
    const STOP: Signal = Signal::INT;
    /// An immediate shutdown: no checkpoint, and yet no shared memory is left behind.
    const ORPHAN_STOP: &'static str = "QUIT";

    fn prepare(&self, dir: &Path) -> Started<()> {
        cluster::create(&self.initdb, self.user, dir, &self.work_dir(dir))
    }

    fn work_dir(&self, dir: &Path) -> PathBuf {
        dir.join("data")
    }

    fn launch(&self, dir: &Path, port: u16) -> io::Result<Launch> {
        let mut args: Vec<OsString> =
            vec!["-D".into(), self.work_dir(dir).into(), "-p".into(), port.to_string().into()];
        for (name, value) in self.settings(dir, port) {
            args.extend(["-c".into(), format!("{name}={value}").into()]);
        }
        Ok(Launch { program: self.program.clone(), args, dir: dir.to_owned(), user: self.user })
    }

    /// The server itself writes its state into its lock file, after it has bound its port and finished its recovery.
    fn is_ready(&self, dir: &Path, _addr: SocketAddr, pid: u32) -> bool {
        LockFile::read(&self.work_dir(dir)).is_some_and(|file| file.pid == Some(pid) && file.ready)
    }

    fn after_kill(&self, dir: &Path) {
        let data = self.work_dir(dir);
        if let Some(id) = LockFile::read(&data).and_then(|file| file.shared_memory) {
            // A few bytes, but the system has a limited number of segments and nobody else frees them.
            let mut ipcrm = Command::new("ipcrm");
            let _ = ipcrm.args(["-m", &id]).stdout(Stdio::null()).stderr(Stdio::null()).status();
        }
        // They hold the pid of the dead server, and a new server does not start if that pid is somebody's by then.
        let _ = fs::remove_file(data.join(LockFile::NAME));
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(".s.PGSQL.") {
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}

/// What `postmaster.pid` says.
#[derive(Debug, PartialEq, Eq)]
struct LockFile {
    pid: Option<u32>,
    shared_memory: Option<String>,
    ready: bool,
}

impl LockFile {
    const NAME: &str = "postmaster.pid";

    fn read(data: &Path) -> Option<Self> {
        fs::read_to_string(data.join(Self::NAME)).ok().map(|text| Self::parse(&text))
    }

    /// Lines: pid, data directory, start time, port, socket directory, address, shared memory key and id, state.
    fn parse(text: &str) -> Self {
        let line = |n: usize| text.lines().nth(n).unwrap_or_default().trim();
        Self {
            pid: line(0).parse().ok(),
            shared_memory: line(6).split_ascii_whitespace().nth(1).map(str::to_owned),
            ready: line(7) == "ready",
        }
    }
}

fn database_url(addr: SocketAddr, database: &str) -> String {
    let encoded: String = database
        .bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => char::from(byte).to_string(),
            _ => format!("%{byte:02X}"),
        })
        .collect();
    format!("postgres://postgres@{addr}/{encoded}")
}

/// One entry of a list setting, which is split at commas and spaces.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lock_file_is_read_at_every_stage_of_its_writing() {
        let starting = "71\n/tmp/data\n1760000000\n15432\n/tmp\n127.0.0.1\n";
        let full = format!("{starting}  5432001     32768\nready   \n");
        let at = |text: &str| LockFile::parse(text);
        assert_eq!(at(""), LockFile { pid: None, shared_memory: None, ready: false });
        assert_eq!(at(starting), LockFile { pid: Some(71), shared_memory: None, ready: false });
        assert_eq!(at(&full), LockFile { pid: Some(71), shared_memory: Some("32768".into()), ready: true });
        assert!(!at(&full.replace("ready   ", "stopping")).ready);
    }

    #[test]
    fn a_database_name_is_encoded_in_its_url() {
        let url = database_url(([127, 0, 0, 1], 5).into(), "Ü b/c");
        assert_eq!(url, "postgres://postgres@127.0.0.1:5/%C3%9C%20b%2Fc");
    }
}
