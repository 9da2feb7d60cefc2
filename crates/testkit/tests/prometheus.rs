//! A real Prometheus: scrapes, answers, dies, comes back with what it scraped, is never left behind; and promtool.

#![expect(clippy::unwrap_used, reason = "helpers of tests, which the lint does not know as such")]

mod support;

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

use fullbore_testkit::{
    MetricsCheck, Prometheus, PrometheusError, TargetHealth, child_test, eventually, is_alive, is_child,
    promtool_check_metrics_or_skip,
};
use support::{LONG, accepts, let_a_stranger_have_its_port};

const METRICS: &str = "# HELP toy_items_total Items so far.\n# TYPE toy_items_total counter\n\
                       toy_items_total{kind=\"a \\\"b\\\"\"} 7\ntoy_items_total{kind=\"c\"} 0.5\n";

/// Answers every request with the same text.
struct Target {
    addr: SocketAddr,
    stopped: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Target {
    fn serve(text: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let stopped = Arc::new(AtomicBool::new(false));
        let thread = thread::spawn({
            let stopped = Arc::clone(&stopped);
            move || {
                for stream in listener.incoming() {
                    if stopped.load(Ordering::Relaxed) {
                        break;
                    }
                    // Prometheus may hang up when it likes.
                    let _ = stream.and_then(|stream| answer(stream, text));
                }
            }
        });
        Self { addr, stopped, thread: Some(thread) }
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(self.addr); // wakes it
        self.thread.take().unwrap().join().unwrap();
    }
}

fn answer(mut stream: TcpStream, text: &str) -> std::io::Result<()> {
    stream.set_read_timeout(Some(LONG))?;
    let mut request = Vec::new();
    let mut part = [0; 1024];
    while !request.ends_with(b"\r\n\r\n") {
        match stream.read(&mut part)? {
            0 => return Ok(()),
            n => request.extend_from_slice(&part[..n]),
        }
    }
    let length = text.len();
    let head = format!("HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\nContent-Length: {length}\r\n");
    stream.write_all(format!("{head}Connection: close\r\n\r\n{text}").as_bytes())
}

fn value(prometheus: &Prometheus, promql: &str) -> Option<f64> {
    let samples = prometheus.query(promql).unwrap();
    assert!(samples.len() <= 1, "{promql}: {samples:?}");
    samples.first().map(|sample| sample.value)
}

fn must_become(prometheus: &Prometheus, target: SocketAddr, is_it: impl Fn(&TargetHealth) -> bool) {
    let becomes = eventually(LONG, || is_it(&prometheus.target_health(target).unwrap()));
    assert!(becomes, "{target}: {:?}\n{}", prometheus.target_health(target), prometheus.log());
}

#[test]
fn answers_queries() {
    let Some(prometheus) = Prometheus::start_or_skip(&[]) else { return };
    assert_eq!(prometheus.query("vector(1)").unwrap().len(), 1);
    assert_eq!(value(&prometheus, "vector(1)"), Some(1.0));
    assert_eq!(value(&prometheus, "1 + 1.5"), Some(2.5), "a scalar");
    assert_eq!(value(&prometheus, "-1/0"), Some(f64::NEG_INFINITY));
    assert_eq!(value(&prometheus, "nothing_of_this_name"), None);
    let labelled = "label_replace(vector(1), \"a\", \"ü & 1+1=2%\", \"\", \"\")";
    assert_eq!(prometheus.query(labelled).unwrap()[0].labels["a"], "ü & 1+1=2%");
    assert!(prometheus.url().contains(&prometheus.port().to_string()));
    assert_eq!(prometheus.target_health(prometheus.addr()).unwrap(), TargetHealth::Unknown);
}

#[test]
fn a_long_answer_arrives_whole() {
    let Some(prometheus) = Prometheus::start_or_skip(&[]) else { return };
    let long = "x".repeat(300_000);
    let promql = format!("label_replace(vector(1), \"a\", \"{long}\", \"\", \"\")");
    assert_eq!(prometheus.query(&promql).unwrap()[0].labels["a"], long);
}

#[test]
fn what_it_cannot_answer_is_an_error_that_says_why() {
    let Some(prometheus) = Prometheus::start_or_skip(&[]) else { return };
    match prometheus.query("up{") {
        Err(PrometheusError::Refused { kind, message }) => {
            assert_eq!(kind, "bad_data");
            assert!(message.contains("parse error"), "{message}");
        }
        other => panic!("{other:?}"),
    }
    for promql in ["up[1m]", "\"a text\""] {
        let answer = prometheus.query(promql);
        assert!(matches!(answer, Err(PrometheusError::Unexpected { .. })), "{promql}: {answer:?}");
    }
    prometheus.stop();
    assert!(matches!(prometheus.query("up"), Err(PrometheusError::Unreachable { .. })));
    assert!(prometheus.target_health(prometheus.addr()).is_err());
}

#[test]
fn scrapes_its_targets_and_keeps_what_it_scraped() {
    let good = Target::serve(METRICS);
    let bad = Target::serve("no metrics {\n");
    let Some(prometheus) = Prometheus::start_or_skip(&[good.addr, bad.addr]) else { return };
    must_become(&prometheus, good.addr, |health| *health == TargetHealth::Up);
    must_become(
        &prometheus,
        bad.addr,
        |health| matches!(health, TargetHealth::Down { last_error } if !last_error.is_empty()),
    );

    let up = |target: &Target| format!("up{{job=\"fullbore\", instance=\"{}\"}}", target.addr);
    // Its health is told a moment before its values. On a busy machine one scrape may fail, which takes them away again.
    assert!(eventually(LONG, || value(&prometheus, &up(&bad)) == Some(0.0)));
    assert!(eventually(LONG, || value(&prometheus, &up(&good)) == Some(1.0)));
    let mut samples = Vec::new();
    assert!(eventually(LONG, || {
        samples = prometheus.query("toy_items_total").unwrap();
        samples.len() == 2
    }));
    assert_eq!(samples[0].labels["job"], "fullbore");
    assert_eq!(samples[0].labels["instance"], good.addr.to_string());
    assert_eq!(samples[0].labels["__name__"], "toy_items_total");
    let last = |kind: &str| value(&prometheus, &format!("last_over_time(toy_items_total{{kind='{kind}'}}[5m])"));
    assert_eq!(last("a \"b\""), Some(7.0));
    assert_eq!(last("c"), Some(0.5));
    assert!(eventually(LONG, || value(&prometheus, &format!("count_over_time({}[1m])", up(&good))) >= Some(3.0)));

    let (addr, pid) = (prometheus.addr(), prometheus.pid().unwrap());
    prometheus.kill_9();
    assert!(!is_alive(pid));
    assert_eq!(prometheus.pid(), None);
    assert!(prometheus.query("up").is_err());
    prometheus.kill_9(); // once more does no harm
    drop(good); // so that nothing new can come from it
    prometheus.restart();
    assert_eq!(prometheus.addr(), addr);
    assert_eq!(last("c"), Some(0.5));
}

#[test]
fn options_reach_it() {
    let target = Target::serve(METRICS);
    let builder = Prometheus::builder(&[target.addr]).flag("--web.page-title=Toy");
    let builder = builder.scrape_every(std::time::Duration::from_millis(350));
    let Some(prometheus) = builder.start_or_skip() else { return };
    let config = std::fs::read_to_string(prometheus.dir().join("prometheus.yml")).unwrap();
    assert!(config.contains("scrape_interval: 350ms"), "{config}");
    assert!(prometheus.dir().join("data").is_dir());
    prometheus.stop();
    assert!(prometheus.log().contains("See you next time"), "an orderly stop: {}", prometheus.log());
    prometheus.restart();
    prometheus.restart(); // a running one is stopped first
    assert_eq!(value(&prometheus, "vector(1)"), Some(1.0));
}

#[test]
fn two_at_once_know_nothing_of_each_other() {
    let Some(a) = Prometheus::start_or_skip(&[]) else { return };
    let Some(b) = Prometheus::start_or_skip(&[]) else { return };
    assert_ne!(a.port(), b.port());
    assert_ne!(a.dir(), b.dir());
    a.kill_9();
    assert_eq!(value(&b, "vector(1)"), Some(1.0));
    a.restart();
    assert_eq!(value(&a, "vector(1)"), Some(1.0));
}

#[test]
fn restart_gets_its_port_back_from_a_stranger() {
    let Some(prometheus) = Prometheus::start_or_skip(&[]) else { return };
    prometheus.stop();
    let_a_stranger_have_its_port(prometheus.addr(), || prometheus.restart(), || prometheus.log());
    assert_eq!(value(&prometheus, "vector(1)"), Some(1.0));
}

#[test]
fn a_server_that_cannot_start_says_why() {
    match Prometheus::builder(&[]).flag("--no-such-flag=1").start() {
        Err(error) if error.is_missing() => {}
        Err(error) => assert!(error.to_string().contains("no-such-flag"), "{error}"),
        Ok(prometheus) => panic!("started: {prometheus:?}"),
    }
}

#[test]
fn a_dropped_one_is_gone() {
    let Some(prometheus) = Prometheus::start_or_skip(&[]) else { return };
    let (addr, pid, dir) = (prometheus.addr(), prometheus.pid().unwrap(), prometheus.dir().to_owned());
    assert!(accepts(addr));
    drop(prometheus);
    assert!(!accepts(addr));
    assert!(!is_alive(pid));
    assert!(!dir.exists());
}

#[test]
fn a_panicking_test_stops_its_server() {
    let Some(prometheus) = Prometheus::start_or_skip(&[]) else { return };
    let (addr, pid, dir) = (prometheus.addr(), prometheus.pid().unwrap(), prometheus.dir().to_owned());
    let panicked = thread::spawn(move || {
        let _owned = prometheus;
        panic!("on purpose");
    })
    .join();
    assert!(panicked.is_err());
    assert!(!accepts(addr));
    assert!(!is_alive(pid));
    assert!(!dir.exists());
}

#[test]
#[ignore = "the child of a_killed_test_process_leaves_no_server"]
fn child_holds_a_prometheus() {
    if is_child("child_holds_a_prometheus")
        && let Some(prometheus) = Prometheus::start_or_skip(&[])
    {
        support::tell(prometheus.pid(), prometheus.addr(), prometheus.dir());
        support::wait_for_the_end();
    }
}

#[test]
fn a_killed_test_process_leaves_no_server() {
    let (mut child, orphan) = support::child_with_server("child_holds_a_prometheus");
    let alive_before = orphan.as_ref().is_some_and(|orphan| is_alive(orphan.pid));
    child.kill().unwrap();
    child.wait().unwrap();
    let Some(orphan) = orphan else { return }; // skipped there
    assert!(alive_before);
    orphan.must_go_away();
}

#[test]
fn promtool_accepts_good_metrics() {
    let Some(check) = promtool_check_metrics_or_skip(METRICS) else { return };
    assert!(check.passed, "{check:?}");
    assert_eq!(check.findings, "");
}

#[test]
fn promtool_says_what_is_bad() {
    let against_conventions = "# TYPE toy_items counter\ntoy_items 1\n";
    let Some(check) = promtool_check_metrics_or_skip(against_conventions) else { return };
    assert!(!check.passed);
    for part in ["toy_items no help text", "_total"] {
        assert!(check.findings.contains(part), "no {part} in: {}", check.findings);
    }
    let unreadable = format!("toy{{ 1\n{}", "# and it stops reading long before the end\n".repeat(10_000));
    let Some(MetricsCheck { passed, findings, .. }) = promtool_check_metrics_or_skip(&unreadable) else { return };
    assert!(!passed);
    assert!(findings.contains("line 1"), "{findings}");
}

#[test]
#[ignore = "the child of the tests of skipping"]
fn child_starts_or_skips() {
    if is_child("child_starts_or_skips") {
        if Prometheus::start_or_skip(&[]).is_some() {
            println!("STARTED");
        }
        if promtool_check_metrics_or_skip(METRICS).is_some() {
            println!("CHECKED");
        }
    }
}

/// The test above, where there is none: whether it passed, and what it printed.
fn without_binaries(adapt: impl FnOnce(&mut Command) -> &mut Command) -> (bool, String) {
    let mut child = child_test("child_starts_or_skips");
    child
        .env("FULLBORE_PROMETHEUS_BIN", "/nowhere/prometheus")
        .env("FULLBORE_PROMTOOL_BIN", "/nowhere/promtool")
        .env_remove("FULLBORE_REQUIRE_SERVERS");
    let output = adapt(&mut child).output().unwrap();
    let printed = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(printed).unwrap())
}

#[test]
fn without_the_binaries_a_test_is_skipped_aloud() {
    let (passed, printed) = without_binaries(|child| child);
    assert!(passed, "{printed}");
    for skipped in ["SKIPPED: prometheus", "SKIPPED: promtool"] {
        assert!(printed.lines().any(|line| line == skipped), "{printed}");
    }
    assert!(!printed.contains("STARTED") && !printed.contains("CHECKED"), "{printed}");
}

#[test]
fn without_the_binary_a_test_fails_where_servers_are_required() {
    let (passed, printed) = without_binaries(|child| child.env("FULLBORE_REQUIRE_SERVERS", "1"));
    assert!(!passed, "{printed}");
    for part in ["`prometheus`", "cargo xtask test --install", "FULLBORE_PROMETHEUS_BIN", "FULLBORE_REQUIRE_SERVERS"] {
        assert!(printed.contains(part), "no {part} in: {printed}");
    }
}
