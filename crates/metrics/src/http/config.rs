//! Settings and the builder.

use std::fmt;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use fullbore_core::{BuildError, Clock, EnvReader, OnDrop};

use crate::http::server::{MetricsServer, Render};

/// Less than this and no client gets through: Prometheus sends about 400 bytes.
const LEAST_REQUEST_BYTES: usize = 128;

/// The settings of a [`MetricsServer`], from code, a file (feature `serde`: unknown fields are refused) or the
/// environment.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default, deny_unknown_fields))]
pub struct MetricsServerConfig {
    /// See [`MetricsServerBuilder::name`].
    pub name: String,
    /// See [`MetricsServerBuilder::listen`].
    pub listen: String,
    /// See [`MetricsServerBuilder::path`].
    pub path: String,
    /// See [`MetricsServerBuilder::max_connections`].
    pub max_connections: usize,
    /// See [`MetricsServerBuilder::max_request_bytes`].
    pub max_request_bytes: usize,
    /// See [`MetricsServerBuilder::request_timeout`].
    #[cfg_attr(feature = "serde", serde(with = "fullbore_core::serde_text::duration"))]
    pub request_timeout: Duration,
    /// See [`MetricsServerBuilder::response_timeout`].
    #[cfg_attr(feature = "serde", serde(with = "fullbore_core::serde_text::duration"))]
    pub response_timeout: Duration,
    /// See [`MetricsServerBuilder::on_drop`].
    pub on_drop: OnDrop,
}

impl Default for MetricsServerConfig {
    fn default() -> Self {
        Self {
            name: "http".into(),
            listen: "127.0.0.1:9464".into(),
            path: "/metrics".into(),
            max_connections: 8,
            max_request_bytes: 8 * 1024,
            request_timeout: Duration::from_secs(5),
            response_timeout: Duration::from_secs(10),
            on_drop: OnDrop::default(),
        }
    }
}

impl MetricsServerConfig {
    /// The defaults, overwritten by variables such as `APP_METRICS_LISTEN` for the prefix `APP_METRICS_`.
    ///
    /// # Errors
    /// Names the variable whose value cannot be read, or that belongs to no setting.
    pub fn from_env(prefix: &str) -> Result<Self, BuildError> {
        Self::read(EnvReader::new(prefix))
    }

    /// As [`from_env`](Self::from_env), from a reader of your choice.
    ///
    /// # Errors
    /// As [`from_env`](Self::from_env).
    pub fn read(mut env: EnvReader) -> Result<Self, BuildError> {
        let mut config = Self::default();
        env.read("name", &mut config.name)?;
        env.read("listen", &mut config.listen)?;
        env.read("path", &mut config.path)?;
        env.read("max_connections", &mut config.max_connections)?;
        env.read("max_request_bytes", &mut config.max_request_bytes)?;
        env.read("request_timeout", &mut config.request_timeout)?;
        env.read("response_timeout", &mut config.response_timeout)?;
        env.read("on_drop", &mut config.on_drop)?;
        env.finish()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), BuildError> {
        BuildError::refuse_zero("max_connections", self.max_connections)?;
        if self.max_request_bytes < LEAST_REQUEST_BYTES {
            let expected = format!("at least {LEAST_REQUEST_BYTES}");
            return Err(BuildError::config("max_request_bytes", self.max_request_bytes, expected));
        }
        for (field, value) in [("request_timeout", self.request_timeout), ("response_timeout", self.response_timeout)] {
            if value.is_zero() {
                return Err(BuildError::config(field, "0s", "more than zero"));
            }
        }
        let fits = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'?' | b'#');
        if !self.path.starts_with('/') || !self.path.bytes().all(fits) {
            let expected = "a path such as /metrics, in ASCII, without query";
            return Err(BuildError::config("path", self.path.escape_debug(), expected));
        }
        Ok(())
    }

    fn bind(&self) -> Result<TcpListener, BuildError> {
        let refused = |expected: String| BuildError::config("listen", self.listen.escape_debug(), expected);
        let address: SocketAddr = self
            .listen
            .parse()
            .map_err(|_| refused("an IP address and a port, such as 127.0.0.1:9464 or [::1]:9464".to_owned()))?;
        TcpListener::bind(address).map_err(|error| {
            refused(match error.kind() {
                ErrorKind::AddrInUse => "a port that nobody listens on".to_owned(),
                ErrorKind::AddrNotAvailable => "an address of this machine".to_owned(),
                _ => format!("an address that can be listened on: {error}"),
            })
        })
    }
}

/// Builds a [`MetricsServer`].
#[must_use = "a builder does nothing before build()"]
pub struct MetricsServerBuilder {
    config: MetricsServerConfig,
    clock: Clock,
    render: Arc<Render>,
}

impl MetricsServerBuilder {
    pub(super) fn new(render: Arc<Render>) -> Self {
        Self { config: MetricsServerConfig::default(), clock: Clock::Real, render }
    }

    /// Takes all settings from `config`.
    pub fn config(mut self, config: MetricsServerConfig) -> Self {
        self.config = config;
        self
    }

    /// The name in events and in the threads' names, `fullbore-metrics-<name>-<n>`. Default: `http`.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.config.name = name.into();
        self
    }

    /// The IP address and port to listen on; port 0 takes any that is free, see [`MetricsServer::local_addr`]. Whoever
    /// reaches the address can read the metrics, and there is no TLS: choose loopback, or the address of a network that
    /// is yours; `0.0.0.0:9464` or `[::]:9464` is everybody. Names such as `localhost` are not looked up.
    ///
    /// Default: `127.0.0.1:9464`, for this machine only; 9464 is the port of OpenTelemetry's exporters.
    pub fn listen(mut self, address: impl fmt::Display) -> Self {
        self.config.listen = address.to_string();
        self
    }

    /// The path of the metrics; it is compared byte by byte. Another one only if the scraper is set to it.
    ///
    /// Default: `/metrics`, where Prometheus looks.
    pub fn path(mut self, path: impl Into<String>) -> Self {
        self.config.path = path.into();
        self
    }

    /// How many connections there may be at a time, each with a thread, which is started when it is needed. More of
    /// them take more threads; with fewer, clients that take their responses slowly sooner keep others out. Choose the
    /// number of your scrapers and twice as many for people and for one that hangs. [`MetricsServer`] says what happens
    /// beyond it.
    ///
    /// Default: 8.
    pub fn max_connections(mut self, max_connections: usize) -> Self {
        self.config.max_connections = max_connections;
        self
    }

    /// How long a request's head may be; a longer one is answered with 431. It bounds the memory that a client can take
    /// up. At least 128. Choose more only if proxies or cookies add to what your scraper sends.
    ///
    /// Default: 8 KiB.
    pub fn max_request_bytes(mut self, max_request_bytes: usize) -> Self {
        self.config.max_request_bytes = max_request_bytes;
        self
    }

    /// How long a client has for sending its whole request, however it is cut into pieces; then it is answered with
    /// 408. Real time, whatever the clock. Choose several round trips of your slowest client.
    ///
    /// Default: 5 s.
    pub fn request_timeout(mut self, request_timeout: Duration) -> Self {
        self.config.request_timeout = request_timeout;
        self
    }

    /// How long a client has for taking the whole response; then the connection is cut. The renderer's own time is not
    /// in it. Real time, whatever the clock. Choose the scraper's timeout: after that nobody reads.
    ///
    /// Default: 10 s, which is Prometheus's timeout.
    pub fn response_timeout(mut self, response_timeout: Duration) -> Self {
        self.config.response_timeout = response_timeout;
        self
    }

    /// How long dropping the server waits for responses that are on their way; those that take longer are cut. Choose
    /// what your program's end can afford. While the thread panics, and in the renderer, there is no waiting at all.
    ///
    /// Default: 5 s.
    pub fn on_drop(mut self, on_drop: OnDrop) -> Self {
        self.config.on_drop = on_drop;
        self
    }

    /// The clock for closing, for newcomers that wait for a place and for the pause after the system had no connection
    /// to give. The timeouts of sockets are the system's. Default: the real one; tests pass a
    /// [`PausedClock`](fullbore_core::PausedClock).
    pub fn clock(mut self, clock: impl Into<Clock>) -> Self {
        self.clock = clock.into();
        self
    }

    /// The server, listening.
    ///
    /// # Errors
    /// [`BuildError::Config`] for a `listen` that is no address, or one that cannot be listened on, for example because
    /// somebody else does; for a `max_connections` or timeout of zero, a `max_request_bytes` below 128, a `path` that
    /// cannot be one, or a name that no thread can have. [`BuildError::Spawn`] if there is no thread.
    pub fn build(self) -> Result<MetricsServer, BuildError> {
        let Self { config, clock, render } = self;
        config.check()?;
        let listener = config.bind()?;
        MetricsServer::start(config, clock, listener, render)
    }
}

impl fmt::Debug for MetricsServerBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MetricsServerBuilder").field("config", &self.config).finish_non_exhaustive()
    }
}
