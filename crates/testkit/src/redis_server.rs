use std::{
    fs,
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::process::Signal;

use crate::{
    error::{Started, or_skip},
    find,
    process::Launch,
    server::{Kind, Server},
};

const CONNECT_WITHIN: Duration = Duration::from_secs(10);
/// For one look at a server that is starting.
const PROBE_WITHIN: Duration = Duration::from_secs(1);
const CONFIG_FILE: &str = "redis.conf";

/// A private Redis; stops on drop.
///
/// All methods take `&self`, so that one thread can kill the server while others use it.
#[derive(Debug)]
pub struct Redis {
    server: Server<RedisKind>,
}

/// Options of a private [`Redis`].
#[derive(Clone, Debug)]
#[must_use = "it does nothing before `start`"]
pub struct RedisBuilder {
    append_only: bool,
    config: Vec<(String, String)>,
}

impl Redis {
    /// Starts one with the default options.
    ///
    /// # Errors
    /// See [`RedisBuilder::start`].
    pub fn start() -> Started<Self> {
        Self::builder().start()
    }

    /// Starts one with the default options, or says that the test is skipped.
    ///
    /// # Panics
    /// See [`RedisBuilder::start_or_skip`].
    #[must_use]
    pub fn start_or_skip() -> Option<Self> {
        Self::builder().start_or_skip()
    }

    /// Whether `redis-server` is on this machine.
    #[must_use]
    pub fn is_installed() -> bool {
        find::redis().is_ok()
    }

    /// The options.
    pub fn builder() -> RedisBuilder {
        RedisBuilder { append_only: false, config: Vec::new() }
    }

    /// Where it listens; the same for its whole life.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.server.addr()
    }

    /// The port of [`Redis::addr`].
    #[must_use]
    pub fn port(&self) -> u16 {
        self.addr().port()
    }

    /// `redis://…` for it.
    #[must_use]
    pub fn url(&self) -> String {
        self.url_at(self.addr())
    }

    /// The same at another address: that of a [`TcpProxy`](crate::TcpProxy) in front of it.
    #[must_use]
    pub fn url_at(&self, addr: SocketAddr) -> String {
        format!("redis://{addr}/")
    }

    /// A new connection, without a read time-out.
    ///
    /// # Panics
    /// If it cannot connect; [`Redis::try_client`] is for a server that may be down.
    #[must_use]
    pub fn client(&self) -> redis::Connection {
        self.try_client().unwrap_or_else(|error| panic!("no connection to {}: {error}", self.url()))
    }

    /// A new connection, without a read time-out.
    ///
    /// # Errors
    /// What connecting met.
    pub fn try_client(&self) -> redis::RedisResult<redis::Connection> {
        redis::Client::open(self.url())?.get_connection_with_timeout(CONNECT_WITHIN)
    }

    /// The process id of the server, if it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.server.pid()
    }

    /// The end of what the server printed.
    #[must_use]
    pub fn log(&self) -> String {
        self.server.log()
    }

    /// Its directory: data and log. Goes away with it.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.server.dir()
    }

    /// Kills the server and its children with SIGKILL, at once; when this returns they are gone. Nothing happens if it is
    /// down already.
    pub fn kill_9(&self) {
        self.server.kill_9();
    }

    /// Stops the server in order (SIGTERM, after 10 s SIGKILL) and keeps its port and data. Nothing happens if it is down.
    pub fn stop(&self) {
        self.server.stop();
    }

    /// Starts it again on the same port and data, after [`Redis::stop`] if it still runs; returns when it serves clients.
    ///
    /// What was in memory only is gone: see [`RedisBuilder::append_only`].
    ///
    /// # Panics
    /// If it does not come up, with its log.
    pub fn restart(&self) {
        self.server.restart().unwrap_or_else(|error| panic!("{error}"));
    }
}

impl RedisBuilder {
    /// Keeps what was acknowledged over [`Redis::kill_9`] and [`Redis::restart`]: an append-only file, written and synced
    /// before each reply (`appendfsync always`). Without it nothing is kept. Default: false.
    ///
    /// Not Redis' own `everysec`: with that a write may be acknowledged while it waits for a running sync, and a crash
    /// test could not tell a loss of ours from one of Redis.
    pub fn append_only(mut self, on: bool) -> Self {
        self.append_only = on;
        self
    }

    /// One line of `redis.conf`, `name value`, quoted as that file wants it; wins over ours. Not `requirepass`: the kit
    /// asks the server without one whether it is ready.
    pub fn config(mut self, name: &str, value: &str) -> Self {
        self.config.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Starts the server and returns when it serves clients.
    ///
    /// # Errors
    /// [`StartError::Missing`](crate::StartError::Missing) if `redis-server` is not installed, [`StartError::Failed`](crate::StartError::Failed) with the server's log if it
    /// ends early or is not ready after 30 s.
    pub fn start(self) -> Started<Redis> {
        let program = find::redis()?;
        Ok(Redis { server: Server::start(RedisKind { program, options: self })? })
    }

    /// Starts the server; if it is not installed, prints `SKIPPED: redis-server` to stderr and returns `None`.
    ///
    /// # Panics
    /// If it is installed and does not start; if it is not installed and `FULLBORE_REQUIRE_SERVERS=1`.
    #[must_use]
    pub fn start_or_skip(self) -> Option<Redis> {
        or_skip(self.start())
    }
}

#[derive(Debug)]
struct RedisKind {
    program: PathBuf,
    options: RedisBuilder,
}

impl RedisKind {
    fn config_file(&self, dir: &Path, port: u16) -> String {
        let append_only = if self.options.append_only { "yes" } else { "no" };
        let dir = quoted(&dir.to_string_lossy());
        let mut text = format!(
            "bind 127.0.0.1\nport {port}\ndir {dir}\ndaemonize no\nsave \"\"\n\
             appendonly {append_only}\nappendfsync always\n"
        );
        for (name, value) in &self.options.config {
            text.push_str(&format!("{name} {value}\n"));
        }
        text
    }
}

impl Kind for RedisKind {
    const NAME: &'static str = "redis";
    const STOP: Signal = Signal::TERM;
    const ORPHAN_STOP: &'static str = "KILL";

    fn prepare(&self, _dir: &Path) -> Started<()> {
        Ok(())
    }

    fn work_dir(&self, dir: &Path) -> PathBuf {
        dir.to_owned()
    }

    fn launch(&self, dir: &Path, port: u16) -> io::Result<Launch> {
        let config = dir.join(CONFIG_FILE);
        fs::write(&config, self.config_file(dir, port))?;
        Ok(Launch { program: self.program.clone(), args: vec![config.into()], dir: dir.to_owned(), user: None })
    }

    fn is_ready(&self, _dir: &Path, addr: SocketAddr, pid: u32) -> bool {
        info(addr).is_ok_and(|info| {
            let has = |line: &str| info.lines().any(|other| other.trim_end() == line);
            has(&format!("process_id:{pid}")) && has("loading:0")
        })
    }

    fn after_kill(&self, _dir: &Path) {}
}

/// The reply to `INFO`. Not through the `redis` crate: whoever listens there may be a stranger that never answers, and its
/// handshake has no read time-out.
fn info(addr: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&addr, PROBE_WITHIN)?;
    stream.set_read_timeout(Some(PROBE_WITHIN))?;
    stream.set_write_timeout(Some(PROBE_WITHIN))?;
    stream.write_all(b"INFO\r\nQUIT\r\n")?;
    let mut reply = Vec::new();
    // QUIT closes the connection; a stranger that talks without end is cut off.
    stream.take(1 << 20).read_to_end(&mut reply)?;
    Ok(String::from_utf8_lossy(&reply).into_owned())
}

/// As `redis.conf` wants a value that may hold a space.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_come_last_so_that_they_win() {
        let options = Redis::builder().append_only(true).config("appendfsync", "no").config("maxmemory", "1mb");
        let kind = RedisKind { program: PathBuf::new(), options };
        let text = kind.config_file(Path::new("/a \"b\""), 7);
        assert!(text.contains("port 7\ndir \"/a \\\"b\\\"\"\n"), "{text}");
        assert!(text.contains("appendonly yes\nappendfsync always\n"), "{text}");
        assert!(text.ends_with("appendfsync no\nmaxmemory 1mb\n"), "{text}");
    }
}
