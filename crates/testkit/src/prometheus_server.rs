mod api;

use std::{
    ffi::OsString,
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::process::Signal;

pub use self::api::{PrometheusError, Sample, TargetHealth};
use crate::{
    error::{Started, or_skip},
    find,
    process::Launch,
    server::{Kind, Server},
};

const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// For one look at a server that is starting.
const PROBE_WITHIN: Duration = Duration::from_secs(1);
const SCRAPE_EVERY: Duration = Duration::from_millis(200);
const CONFIG_FILE: &str = "prometheus.yml";
const DATA_DIR: &str = "data";

/// A private Prometheus that scrapes the targets it is given; stops on drop.
///
/// The targets are scraped at `/metrics` as `job="fullbore"`, `instance="<address>"`. **The first scrape comes about five
/// seconds after the start**: Prometheus looks for its targets no sooner, and no option changes that. So wait for what you
/// expect with [`eventually`](crate::eventually()) and a generous deadline:
///
/// ```no_run
/// use std::time::Duration;
/// use fullbore_testkit::{Prometheus, TargetHealth, eventually};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let target = "127.0.0.1:9464".parse()?;
/// let Some(prometheus) = Prometheus::start_or_skip(&[target]) else { return Ok(()) };
/// assert!(
///     eventually(Duration::from_secs(60), || prometheus.target_health(target).unwrap() == TargetHealth::Up),
///     "{:?}",
///     prometheus.target_health(target)
/// );
/// for sample in prometheus.query("up")? {
///     println!("{:?} {}", sample.labels, sample.value);
/// }
/// # Ok(())
/// # }
/// ```
///
/// All methods take `&self`, so that one thread can kill the server while others use it.
#[derive(Debug)]
pub struct Prometheus {
    server: Server<PrometheusKind>,
}

/// Options of a private [`Prometheus`].
#[derive(Clone, Debug)]
#[must_use = "it does nothing before `start`"]
pub struct PrometheusBuilder {
    targets: Vec<SocketAddr>,
    scrape_every: Duration,
    flags: Vec<String>,
}

impl Prometheus {
    /// Starts one with the default options.
    ///
    /// # Errors
    /// See [`PrometheusBuilder::start`].
    pub fn start(targets: &[SocketAddr]) -> Started<Self> {
        Self::builder(targets).start()
    }

    /// Starts one with the default options, or says that the test is skipped.
    ///
    /// # Panics
    /// See [`PrometheusBuilder::start_or_skip`].
    #[must_use]
    pub fn start_or_skip(targets: &[SocketAddr]) -> Option<Self> {
        Self::builder(targets).start_or_skip()
    }

    /// The options.
    pub fn builder(targets: &[SocketAddr]) -> PrometheusBuilder {
        PrometheusBuilder { targets: targets.to_vec(), scrape_every: SCRAPE_EVERY, flags: Vec::new() }
    }

    /// Where it listens; the same for its whole life.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.server.addr()
    }

    /// The port of [`Prometheus::addr`].
    #[must_use]
    pub fn port(&self) -> u16 {
        self.addr().port()
    }

    /// `http://…` for it.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}/", self.addr())
    }

    /// The value of a PromQL expression now: one sample for each series, and one without labels for a scalar.
    ///
    /// After a scrape that failed its target's series are gone until the next; `last_over_time(x[1m])` bridges that.
    ///
    /// # Errors
    /// [`PrometheusError::Refused`] if the expression is wrong, [`PrometheusError::Unreachable`] if the server is down or
    /// does not answer within 10 s, [`PrometheusError::Unexpected`] if the value is no number: a range or a text.
    pub fn query(&self, promql: &str) -> Result<Vec<Sample>, PrometheusError> {
        api::query(self.addr(), promql, ANSWER_WITHIN)
    }

    /// How its last scrape of `target` went; [`TargetHealth::Unknown`] before the first, and for what is no target of it.
    /// What that scrape read may reach [`Prometheus::query`] a moment later.
    ///
    /// # Errors
    /// [`PrometheusError::Unreachable`] if the server is down or does not answer within 10 s.
    pub fn target_health(&self, target: SocketAddr) -> Result<TargetHealth, PrometheusError> {
        api::target_health(self.addr(), target, ANSWER_WITHIN)
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

    /// Its directory: configuration, log, and the data in `data`. Goes away with it.
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

    /// Starts it again on the same port and data, after [`Prometheus::stop`] if it still runs; returns when it answers
    /// queries. What it scraped before is there; the next scrape again takes about five seconds.
    ///
    /// # Panics
    /// If it does not come up, with its log.
    pub fn restart(&self) {
        self.server.restart().unwrap_or_else(|error| panic!("{error}"));
    }
}

impl PrometheusBuilder {
    /// How often each target is scraped, and how long a scrape may take (a slower one fails, and `up` is 0); in whole
    /// milliseconds. Default: 200 ms.
    pub fn scrape_every(mut self, interval: Duration) -> Self {
        self.scrape_every = interval;
        self
    }

    /// One option of the command line, as `prometheus --help` shows it: `--name=value`, or `--name` alone. Not the
    /// configuration file, the data's path or the address: those are ours, and Prometheus refuses an option given twice.
    pub fn flag(mut self, flag: &str) -> Self {
        self.flags.push(flag.to_owned());
        self
    }

    /// Starts the server and returns when it answers queries; that is before the first scrape.
    ///
    /// # Errors
    /// [`StartError::Missing`](crate::StartError::Missing) if `prometheus` is not installed,
    /// [`StartError::Failed`](crate::StartError::Failed) with the server's log if it ends early or is not ready after 30 s.
    pub fn start(self) -> Started<Prometheus> {
        let program = find::prometheus()?;
        Ok(Prometheus { server: Server::start(PrometheusKind { program, options: self })? })
    }

    /// Starts the server; if it is not installed, prints `SKIPPED: prometheus` to stderr and returns `None`.
    ///
    /// # Panics
    /// If it is installed and does not start; if it is not installed and `FULLBORE_REQUIRE_SERVERS=1`.
    #[must_use]
    pub fn start_or_skip(self) -> Option<Prometheus> {
        or_skip(self.start())
    }
}

#[derive(Debug)]
struct PrometheusKind {
    program: PathBuf,
    options: PrometheusBuilder,
}

impl PrometheusKind {
    fn config_file(&self) -> String {
        let every = self.options.scrape_every.as_millis();
        // In quotes: the brackets of an IPv6 address mean something else to YAML.
        let targets: Vec<_> = self.options.targets.iter().map(|target| format!("\"{target}\"")).collect();
        let targets = targets.join(", ");
        // The longest time-out that Prometheus allows: a busy machine is not what a test is about.
        format!(
            "global:\n  scrape_interval: {every}ms\n  scrape_timeout: {every}ms\n\
             scrape_configs:\n  - job_name: fullbore\n    metrics_path: /metrics\n    \
             static_configs:\n      - targets: [{targets}]\n"
        )
    }

    fn args(&self, config: &Path, dir: &Path, port: u16) -> Vec<OsString> {
        let path = |flag: &str, path: &Path| {
            let mut argument = OsString::from(flag);
            argument.push(path);
            argument
        };
        let mut args = vec![
            path("--config.file=", config),
            path("--storage.tsdb.path=", &dir.join(DATA_DIR)),
            format!("--web.listen-address=127.0.0.1:{port}").into(),
        ];
        args.extend(self.options.flags.iter().map(OsString::from));
        args
    }
}

impl Kind for PrometheusKind {
    const NAME: &'static str = "prometheus";
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
        fs::write(&config, self.config_file())?;
        let args = self.args(&config, dir, port);
        Ok(Launch { program: self.program.clone(), args, dir: dir.to_owned(), user: None })
    }

    /// It does not tell its pid, but it tells where it works, and in our directory there is no other.
    fn is_ready(&self, dir: &Path, addr: SocketAddr, _pid: u32) -> bool {
        let works_in = api::works_in(addr, PROBE_WITHIN).ok().and_then(|path| path.canonicalize().ok());
        works_in.is_some() && works_in == dir.canonicalize().ok()
    }

    fn after_kill(&self, _dir: &Path) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(options: PrometheusBuilder) -> PrometheusKind {
        PrometheusKind { program: PathBuf::new(), options }
    }

    #[test]
    fn targets_and_interval_are_in_the_configuration() {
        let targets = ["127.0.0.1:7".parse().unwrap(), "[::1]:8".parse().unwrap()];
        let text = kind(Prometheus::builder(&targets)).config_file();
        assert!(text.contains("scrape_interval: 200ms\n  scrape_timeout: 200ms\n"), "{text}");
        assert!(text.contains("job_name: fullbore\n    metrics_path: /metrics\n"), "{text}");
        assert!(text.ends_with("- targets: [\"127.0.0.1:7\", \"[::1]:8\"]\n"), "{text}");
        let text = kind(Prometheus::builder(&[]).scrape_every(Duration::from_secs(1))).config_file();
        assert!(text.contains("scrape_interval: 1000ms\n"), "{text}");
        assert!(text.ends_with("- targets: []\n"), "{text}");
    }

    #[test]
    fn the_data_is_in_its_own_directory() {
        let args = kind(Prometheus::builder(&[]).flag("--log.level=warn")).args(Path::new("/c"), Path::new("/a b"), 7);
        let wanted = [
            "--config.file=/c",
            "--storage.tsdb.path=/a b/data",
            "--web.listen-address=127.0.0.1:7",
            "--log.level=warn",
        ];
        assert_eq!(args, wanted);
    }
}
