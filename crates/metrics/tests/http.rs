//! The endpoint for scrapers, against clients of every kind. The names `cN_` are those of the rules of the house.
#![allow(missing_docs, clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::panic::resume_unwind;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use fullbore_core::{BuildError, EnvReader, OnDrop, PausedClock};
use fullbore_metrics::{
    Exposition, MetricsServer, MetricsServerBuilder, MetricsServerConfig, MetricsServerStats, Scrape,
};
use proptest::prelude::*;

/// So long that it does not happen in a test that passes.
const LONG: Duration = Duration::from_secs(600);
const GET: &str = "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n";
const PAGE: &str = "up 1\n";

fn page() -> Exposition {
    Exposition::plain_text(PAGE.to_owned())
}

fn anywhere(builder: MetricsServerBuilder) -> MetricsServerBuilder {
    builder.listen("127.0.0.1:0").request_timeout(LONG).response_timeout(LONG)
}

fn simple() -> MetricsServerBuilder {
    anywhere(MetricsServer::builder(|_: &Scrape<'_>| page()))
}

fn connect(server: &MetricsServer) -> TcpStream {
    connect_to(server.local_addr())
}

fn connect_to(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    // A test that fails should not hang.
    stream.set_read_timeout(Some(LONG)).unwrap();
    stream
}

fn send(server: &MetricsServer, text: &str) -> TcpStream {
    let mut stream = connect(server);
    stream.write_all(text.as_bytes()).unwrap();
    stream
}

/// All that comes, until the end or an error.
fn rest(mut stream: &TcpStream) -> String {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).ok();
    String::from_utf8(bytes).unwrap()
}

fn ask(server: &MetricsServer, text: &str) -> String {
    let mut stream = send(server, text);
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// As `ask`, for a client that may be sent away or cut.
fn try_ask(server: &MetricsServer) -> String {
    let mut stream = connect(server);
    stream.write_all(GET.as_bytes()).ok();
    rest(&stream)
}

fn is_ok(answer: &str) -> bool {
    answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with(&format!("\r\n\r\n{PAGE}"))
}

fn status(answer: &str) -> &str {
    answer.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)).unwrap_or_default()
}

fn balanced(seen: MetricsServerStats) -> bool {
    let ended = seen.served + seen.rejected + seen.refused + seen.evicted + seen.timed_out;
    seen.accepted == seen.open + ended + seen.failed + seen.panicked + seen.disconnected
}

/// A renderer that says when it is called and returns when it may.
fn gated() -> (MetricsServerBuilder, Receiver<()>, Sender<()>) {
    let ((began, seen), (go, gone)) = (channel(), channel::<()>());
    let gone = Mutex::new(gone);
    let builder = MetricsServer::builder(move |_: &Scrape<'_>| {
        began.send(()).ok();
        gone.lock().unwrap().recv().ok();
        page()
    });
    (anywhere(builder), seen, go)
}

/// Waits until nobody listens there any more.
fn wait_until_closed(address: SocketAddr) {
    while TcpStream::connect(address).is_ok() {
        thread::yield_now();
    }
}

#[test]
fn get_and_head() {
    let server = simple().build().unwrap();
    let got = ask(&server, GET);
    assert!(is_ok(&got), "{got}");
    assert!(
        got.contains("\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\nContent-Length: 5\r\n"),
        "{got}"
    );
    assert!(got.contains("\r\nConnection: close\r\n"), "{got}");
    let head = ask(&server, "HEAD /metrics?name=x HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(head, got.strip_suffix(PAGE).unwrap());
    assert!(is_ok(&ask(&server, "GET http://x:1/metrics?a HTTP/1.0\r\n\r\n")));
    let front = ask(&server, "GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(status(&front) == "200" && front.ends_with("/metrics\n"), "{front}");
    let seen = server.stats();
    assert_eq!((seen.accepted, seen.served, seen.open), (4, 4, 0));
}

#[test]
fn the_path_may_be_the_root() {
    let server = simple().path("/").build().unwrap();
    assert!(is_ok(&ask(&server, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")));
}

#[test]
fn the_renderer_knows_what_the_client_wants() {
    let server = anywhere(MetricsServer::builder(|scrape: &Scrape<'_>| {
        let body = format!("# {:?} {:?}\n# EOF\n", scrape.accept, scrape.query);
        if scrape.wants_openmetrics() { Exposition::openmetrics(body) } else { Exposition::plain_text(body) }
    }));
    let server = server.build().unwrap();
    let accept = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
    let answer = ask(&server, &format!("GET /metrics?a=b HTTP/1.1\r\nHost: x\r\nAccept: {accept}\r\n\r\n"));
    assert!(
        answer.contains("Content-Type: application/openmetrics-text; version=1.0.0; charset=utf-8\r\n"),
        "{answer}"
    );
    assert!(answer.contains(accept) && answer.contains("a=b"), "{answer}");
    let answer = ask(&server, GET);
    assert!(answer.contains("text/plain; version=0.0.4") && answer.contains("# None None\n"), "{answer}");
}

#[test]
fn what_cannot_be_served_is_named() {
    let server = simple().max_request_bytes(256).build().unwrap();
    let expect = |wanted: &str, request: &str| {
        let answer = ask(&server, request);
        assert_eq!(status(&answer), wanted, "{request:?}: {answer}");
        answer
    };
    expect("404", "GET /metric HTTP/1.1\r\nHost: x\r\n\r\n");
    expect("404", "GET /metrics/ HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(expect("404", "HEAD /x HTTP/1.1\r\nHost: x\r\n\r\n").ends_with("\r\n\r\n"));
    let answer = expect("405", "POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello");
    assert!(answer.contains("\r\nAllow: GET, HEAD\r\n"), "{answer}");
    expect("405", "OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n");
    expect("400", "GET /metrics HTTP/1.1\r\n\r\n");
    expect("400", "GET /metrics HTTP/2.0\r\nHost: x\r\n\r\n");
    expect("400", "\u{16}\u{3}\u{1}");
    expect("431", &format!("GET /metrics HTTP/1.1\r\nHost: x\r\nCookie: {}\r\n\r\n", "x".repeat(300)));
    expect("431", &format!("GET /{}", "x".repeat(100_000)));
    assert!(is_ok(&expect("200", "GET /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello")));
    server.close().unwrap();
    let seen = server.stats();
    assert_eq!((seen.rejected, seen.served), (10, 1));
    assert!(balanced(seen), "{seen:?}");
}

#[test]
fn half_a_request_and_no_more_to_come() {
    let server = simple().build().unwrap();
    let client = send(&server, "GET /met");
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(status(&rest(&client)), "400");
    let client = connect(&server);
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(rest(&client), "");
    assert_eq!(server.stats().disconnected, 1);
}

#[test]
fn a_request_may_come_byte_by_byte() {
    let server = simple().build().unwrap();
    let mut client = connect(&server);
    client.set_nodelay(true).unwrap();
    for byte in GET.bytes() {
        client.write_all(&[byte]).unwrap();
    }
    assert!(is_ok(&rest(&client)));
}

#[test]
fn too_slow_a_request_is_told_so() {
    let server = simple().request_timeout(Duration::from_millis(30)).build().unwrap();
    assert_eq!(status(&ask(&server, "GET /met")), "408");
    assert_eq!(status(&ask(&server, "")), "408");
    assert_eq!(server.stats().timed_out, 2);
}

#[test]
fn too_slow_a_reader_is_cut() {
    let huge = || Exposition::plain_text("x".repeat(64 << 20));
    let (began, seen) = channel();
    let server = anywhere(MetricsServer::builder(move |_: &Scrape<'_>| {
        began.send(()).unwrap();
        huge()
    }));
    let server = server.response_timeout(Duration::from_millis(30)).build().unwrap();
    let client = send(&server, GET);
    seen.recv().unwrap();
    // Its response is on its way: the close waits for its end, which is the timeout.
    server.close().unwrap();
    assert_eq!((server.stats().timed_out, server.stats().served), (1, 0));
    assert!(rest(&client).len() < 64 << 20);
}

#[test]
fn clients_that_never_finish_their_request_keep_nobody_out() {
    let server = simple().build().unwrap();
    let slow: Vec<_> = (0..30).map(|_| send(&server, "G")).collect();
    assert!(is_ok(&ask(&server, GET)));
    // 8 places: the newest of the slow ones still have theirs.
    let seen = server.stats();
    assert_eq!((seen.served, seen.evicted, seen.open), (1, 23, 7));
    let idle: Vec<_> = (0..30).map(|_| connect(&server)).collect();
    for _ in 0..20 {
        assert!(is_ok(&ask(&server, GET)));
    }
    assert_eq!(rest(&slow[0]), "", "the oldest was cut");
    server.close().unwrap();
    assert!(slow.iter().chain(&idle).all(|client| rest(client).is_empty()));
    let seen = server.stats();
    assert_eq!((seen.served, seen.open, seen.refused), (21, 0, 0));
    assert!(balanced(seen), "{seen:?}");
}

#[test]
fn clients_that_never_read_keep_nobody_else_waiting() {
    let (began, seen) = channel();
    let server = anywhere(MetricsServer::builder(move |scrape: &Scrape<'_>| {
        if scrape.query.is_none() {
            return page();
        }
        began.send(()).unwrap();
        Exposition::plain_text("x".repeat(64 << 20))
    }));
    let server = server.max_connections(4).build().unwrap();
    let hogs: Vec<_> = (0..3).map(|_| send(&server, "GET /metrics?huge HTTP/1.1\r\nHost: x\r\n\r\n")).collect();
    for _ in &hogs {
        seen.recv().unwrap();
    }
    for _ in 0..20 {
        assert!(is_ok(&ask(&server, GET)));
    }
    assert_eq!(server.stats().open, 3);
    let left = server.close_within(Duration::ZERO).unwrap_err();
    assert_eq!(left.in_flight, 3);
    assert!(hogs.iter().all(|hog| rest(hog).len() < 64 << 20));
    server.close().unwrap();
    assert!(balanced(server.stats()) && server.stats().open == 0);
}

#[test]
fn without_a_place_a_newcomer_waits_for_one_or_is_told() {
    let clock = PausedClock::new();
    let (builder, began, go) = gated();
    let server = builder.max_connections(1).clock(&clock).build().unwrap();
    let first = send(&server, GET);
    began.recv().unwrap();
    let second = send(&server, GET);
    // The acceptor; the worker is busy.
    clock.wait_for_waiters(1);
    assert_eq!(clock.timers(), 1);
    go.send(()).unwrap();
    assert!(is_ok(&rest(&first)));
    began.recv().unwrap();
    let mut third = connect(&server);
    clock.wait_for_waiters(1);
    clock.advance(Duration::from_millis(100));
    let told = rest(&third);
    assert!(status(&told) == "503" && told.contains("\r\nRetry-After: 1\r\n"), "{told}");
    // Its socket is kept for a while: a request that comes late must not take the answer back.
    for _ in 0..2 {
        third.write_all(GET.as_bytes()).unwrap();
    }
    // The first one takes long by now: the others are told at once, also if they have sent their request.
    assert_eq!(status(&rest(&connect(&server))), "503");
    assert_eq!(status(&ask(&server, GET)), "503");
    go.send(()).unwrap();
    assert!(is_ok(&rest(&second)));
    assert_eq!((server.stats().served, server.stats().refused), (2, 3));
    let fourth = send(&server, GET);
    began.recv().unwrap();
    go.send(()).unwrap();
    assert!(is_ok(&rest(&fourth)));
    assert_eq!(clock.timers(), 0);
}

#[test]
fn who_is_slow_among_many_goes_at_once() {
    let clock = PausedClock::new();
    let server = simple().max_connections(1).clock(&clock).build().unwrap();
    let first = send(&server, "G");
    let second = send(&server, "G");
    while clock.timers() == 0 {
        thread::yield_now();
    }
    clock.advance(Duration::from_millis(100));
    assert_eq!(rest(&first), "");
    // The clock stands still from here on.
    assert!(is_ok(&ask(&server, GET)));
    assert_eq!(rest(&second), "");
    assert_eq!(server.stats().evicted, 2);
}

#[test]
fn many_at_once() {
    for places in [64, 8, 1] {
        let server = simple().max_connections(places).build().unwrap();
        let served = thread::scope(|scope| {
            let clients: Vec<_> = (0..64).map(|_| scope.spawn(|| try_ask(&server))).collect();
            let answers: Vec<_> = clients.into_iter().map(|client| client.join().unwrap()).collect();
            // Those beyond the places may be sent away or cut when the machine is slow; half an answer is none.
            assert!(answers.iter().all(|answer| is_ok(answer) || matches!(status(answer), "503" | "")), "{answers:?}");
            answers.iter().filter(|answer| is_ok(answer)).count()
        });
        assert!(served == 64 || places < 64, "{served} of 64");
        server.close().unwrap();
        let seen = server.stats();
        assert_eq!((seen.served, seen.accepted), (served as u64, 64));
        assert!(balanced(seen), "{seen:?}");
    }
}

#[test]
fn an_error_of_the_renderer_stays_inside() {
    let server = anywhere(MetricsServer::builder(|scrape: &Scrape<'_>| match scrape.query {
        None => Ok(page()),
        Some("type") => Ok(Exposition { content_type: "a\r\nSet-Cookie: b", body: String::new() }),
        Some(_) => Err("the password is 1234"),
    }));
    let server = server.build().unwrap();
    for query in ["type", "error"] {
        let answer = ask(&server, &format!("GET /metrics?{query} HTTP/1.1\r\nHost: x\r\n\r\n"));
        assert_eq!(status(&answer), "500");
        assert!(!answer.contains("1234") && !answer.contains("Cookie"), "{answer}");
    }
    assert!(is_ok(&ask(&server, GET)));
    assert_eq!((server.stats().failed, server.stats().served), (2, 1));
}

#[test]
fn c4_a_panic_of_the_renderer_costs_one_response() {
    let server = anywhere(MetricsServer::builder(|scrape: &Scrape<'_>| {
        if scrape.query.is_some() {
            resume_unwind(Box::new("on purpose"));
        }
        page()
    }));
    let server = server.max_connections(1).build().unwrap();
    for _ in 0..3 {
        let answer = ask(&server, "GET /metrics?panic HTTP/1.1\r\nHost: x\r\n\r\n");
        assert!(status(&answer) == "500" && !answer.contains("purpose"), "{answer}");
        assert!(is_ok(&ask(&server, GET)));
    }
    assert_eq!((server.stats().panicked, server.stats().served), (3, 3));
    server.close().unwrap();
}

#[test]
fn c4_a_panic_of_what_the_renderer_has_captured_is_contained() {
    struct Blow;
    impl Drop for Blow {
        fn drop(&mut self) {
            resume_unwind(Box::new("on purpose"));
        }
    }
    let blow = Blow;
    let server = anywhere(MetricsServer::builder(move |_: &Scrape<'_>| {
        let _ = &blow;
        page()
    }));
    server.build().unwrap().close().unwrap();
}

#[test]
fn c5_close_is_idempotent_and_frees_the_port() {
    for listen in ["127.0.0.1:0", "0.0.0.0:0"] {
        let server = simple().listen(listen).build().unwrap();
        let address = server.local_addr();
        assert_eq!(server.close_within(Duration::ZERO), Ok(()));
        server.close().unwrap();
        server.close().unwrap();
        assert!(TcpStream::connect(("127.0.0.1", address.port())).is_err());
        let again = simple().listen(address).build().unwrap();
        drop(server);
        assert!(is_ok(&rest(&{
            let mut client = connect_to(([127, 0, 0, 1], address.port()).into());
            client.write_all(GET.as_bytes()).unwrap();
            client
        })));
        drop(again);
    }
}

#[test]
fn c5_close_does_not_wait_for_a_request() {
    let server = simple().build().unwrap();
    let half = send(&server, "GET /met");
    let nothing = connect(&server);
    server.close().unwrap();
    assert!(rest(&half).is_empty() && rest(&nothing).is_empty());
    assert!(balanced(server.stats()) && server.stats().open == 0);
}

#[test]
fn c5_close_waits_for_responses() {
    let (builder, began, go) = gated();
    let server = builder.build().unwrap();
    let client = send(&server, GET);
    began.recv().unwrap();
    thread::scope(|scope| {
        let closers = [scope.spawn(|| server.close()), scope.spawn(|| server.close())];
        wait_until_closed(server.local_addr());
        go.send(()).unwrap();
        assert!(is_ok(&rest(&client)));
        closers.into_iter().for_each(|closer| closer.join().unwrap().unwrap());
    });
    assert_eq!((server.stats().served, server.stats().open), (1, 0));
}

#[test]
fn c5_what_a_close_cannot_finish_in_time_is_named() {
    let (builder, began, go) = gated();
    let server = builder.name("slow").build().unwrap();
    let client = send(&server, GET);
    began.recv().unwrap();
    let left = server.close_within(Duration::ZERO).unwrap_err();
    assert_eq!((left.in_flight, left.abandoned_threads), (1, vec!["fullbore-metrics-slow-0".to_owned()]));
    assert_eq!(rest(&client), "", "cut at the deadline");
    drop(go);
    server.close().unwrap();
    assert_eq!((server.stats().disconnected, server.stats().open), (1, 0));
}

#[test]
fn c5_dropped_it_drains_for_as_long_as_set() {
    let (builder, began, go) = gated();
    let server = builder.on_drop(OnDrop::Drain(LONG)).build().unwrap();
    let address = server.local_addr();
    let client = send(&server, GET);
    began.recv().unwrap();
    thread::scope(|scope| {
        let dropping = scope.spawn(move || drop(server));
        wait_until_closed(address);
        go.send(()).unwrap();
        assert!(is_ok(&rest(&client)));
        dropping.join().unwrap();
    });
    // The renderer went with the last thread.
    assert_eq!(began.try_recv(), Err(TryRecvError::Disconnected));

    let (builder, began, go) = gated();
    let server = builder.on_drop(OnDrop::Abandon).build().unwrap();
    let client = send(&server, GET);
    began.recv().unwrap();
    drop(server);
    assert_eq!(rest(&client), "");
    drop(go);
}

#[test]
fn c5_inside_the_renderer_nothing_waits_for_itself() {
    for drops in [true, false] {
        let seat: Arc<Mutex<Option<MetricsServer>>> = Arc::default();
        let inside = Arc::clone(&seat);
        let (closed, seen) = channel();
        let server = anywhere(MetricsServer::builder(move |_: &Scrape<'_>| {
            let mut server = inside.lock().unwrap();
            let in_flight = server.as_ref().unwrap().close().unwrap_err().in_flight;
            if drops {
                drop(server.take());
            }
            closed.send(in_flight).unwrap();
            page()
        }));
        *seat.lock().unwrap() = Some(server.build().unwrap());
        let client = send(seat.lock().unwrap().as_ref().unwrap(), GET);
        assert_eq!(seen.recv().unwrap(), 1);
        assert_eq!(rest(&client), "");
        if let Some(server) = seat.lock().unwrap().take() {
            server.close().unwrap();
        }
    }
}

#[test]
fn c5_shutdown_closes_it() {
    let server = simple().name("part").build().unwrap();
    let shutdown = fullbore_core::Shutdown::new();
    shutdown.register(server.closer());
    let report = shutdown.close_within(LONG);
    assert!(report.is_clean());
    assert_eq!(report.parts()[0].0, "part");
    assert!(TcpStream::connect(server.local_addr()).is_err());
}

fn config_error(builder: MetricsServerBuilder) -> (String, String, String) {
    match builder.build().unwrap_err() {
        BuildError::Config { field, value, expected } => (field.into_owned(), value, expected.into_owned()),
        other => panic!("{other}"),
    }
}

#[test]
fn c7_an_address_that_cannot_be_listened_on_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let (field, value, expected) = config_error(simple().listen(address));
    assert_eq!(
        (field.as_str(), value, expected.as_str()),
        ("listen", address.to_string(), "a port that nobody listens on")
    );
    for bad in ["localhost:9464", "127.0.0.1", ":9464", "300.0.0.1:1", "127.0.0.1:65536", "", "a\nb"] {
        let (field, value, expected) = config_error(simple().listen(bad));
        assert_eq!((field.as_str(), value), ("listen", bad.escape_debug().to_string()));
        assert!(expected.contains("127.0.0.1:9464"), "{expected}");
    }
    let (field, _, expected) = config_error(simple().listen("192.0.2.1:0"));
    assert_eq!((field.as_str(), expected.as_str()), ("listen", "an address of this machine"));
}

#[test]
fn c7_nonsense_is_refused_by_name() {
    let field = |builder| config_error(builder).0;
    assert_eq!(field(simple().max_connections(0)), "max_connections");
    assert_eq!(field(simple().max_request_bytes(127)), "max_request_bytes");
    assert_eq!(field(simple().request_timeout(Duration::ZERO)), "request_timeout");
    assert_eq!(field(simple().response_timeout(Duration::ZERO)), "response_timeout");
    assert_eq!(field(simple().name("a\0b")), "name");
    for path in ["", "metrics", "/a b", "/a?b", "/é", "/a\r\nb"] {
        assert_eq!(field(simple().path(path)), "path", "{path:?}");
    }
    // Absurd, but not nonsense.
    let huge = simple().request_timeout(Duration::MAX).response_timeout(Duration::MAX);
    let huge = huge.max_connections(usize::MAX).max_request_bytes(usize::MAX).build().unwrap();
    assert!(is_ok(&ask(&huge, GET)));

    let env = |name: &str, value: &str| {
        MetricsServerConfig::read(EnvReader::from_vars("APP_", [(name.to_owned().into(), value.to_owned().into())]))
    };
    assert_eq!(env("APP_LISTEN", "[::1]:1").unwrap().listen, "[::1]:1");
    assert_eq!(env("APP_REQUEST_TIMEOUT", "250ms").unwrap().request_timeout, Duration::from_millis(250));
    assert_eq!(env("APP_MAX_CONNECTIONS", "3").unwrap().max_connections, 3);
    let config = MetricsServerConfig { on_drop: OnDrop::Abandon, ..MetricsServerConfig::default() };
    assert_eq!(env("APP_ON_DROP", "abandon").unwrap(), config);
    assert_eq!(env("APP_MAX_CONNECTIONS", "many").unwrap_err().field(), Some("APP_MAX_CONNECTIONS"));
    assert_eq!(env("APP_PORT", "1").unwrap_err().field(), Some("APP_PORT"));
    let config = MetricsServerConfig { listen: "127.0.0.1:0".into(), path: "/m".into(), ..config };
    let server = simple().config(config).build().unwrap();
    assert!(is_ok(&ask(&server, "GET /m HTTP/1.1\r\nHost: x\r\n\r\n")));
}

#[cfg(feature = "serde")]
#[test]
fn c7_a_file_is_read_and_unknown_fields_are_refused() {
    type Config = MetricsServerConfig;
    let text = r#"{"listen": "0.0.0.0:1", "request_timeout": "250ms", "on_drop": "2s"}"#;
    let config: Config = serde_json::from_str(text).unwrap();
    assert_eq!((config.listen.as_str(), config.request_timeout), ("0.0.0.0:1", Duration::from_millis(250)));
    assert_eq!((config.on_drop, config.max_connections), (OnDrop::Drain(Duration::from_secs(2)), 8));
    let again: Config = serde_json::from_str(&serde_json::to_string(&config).unwrap()).unwrap();
    assert_eq!(again, config);
    assert!(serde_json::from_str::<Config>(r#"{"port": 1}"#).unwrap_err().to_string().contains("port"));
}

#[test]
fn c10_idle_costs_nothing() {
    let clock = PausedClock::new();
    let server = simple().clock(&clock).build().unwrap();
    clock.wait_for_waiters(1);
    assert!(is_ok(&ask(&server, GET)));
    clock.wait_for_waiters(1);
    let parks = clock.parks();
    assert_eq!(clock.timers(), 0, "one worker waits for work, the acceptor in the system");
    clock.advance(LONG);
    clock.wait_for_waiters(1);
    assert_eq!(clock.parks(), parks, "nobody was woken");
    server.close().unwrap();
}

#[cfg(feature = "tracing")]
#[test]
fn c11_a_panic_can_be_followed() {
    let events = fullbore_testkit::events::capture_everywhere();
    let server = MetricsServer::builder(|_: &Scrape<'_>| -> Exposition { resume_unwind(Box::new("on purpose")) });
    let server = anywhere(server).name("fragile").build().unwrap();
    for _ in 0..3 {
        assert_eq!(status(&ask(&server, GET)), "500");
    }
    let fragile: Vec<_> = events().into_iter().filter(|line| line.contains("fragile")).collect();
    assert!(fragile[0].contains("area=\"metrics\"") && fragile[0].contains("event=\"panic\""), "{fragile:?}");
    assert!(fragile[0].contains("panicked: on purpose"), "{fragile:?}");
}

const STARTS: &[&str] = &["", "GET ", "GET /metrics HTTP/1.1\r\n", "HEAD / HTTP/1.1\r\nHost: ", "\r\n", GET];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn no_bytes_kill_it(
        requests in prop::collection::vec((
            prop::sample::select(STARTS),
            prop::collection::vec(any::<u8>(), 0..600),
            any::<bool>(),
        ), 1..12),
    ) {
        let server = simple().max_connections(2).max_request_bytes(256).build().unwrap();
        let mut clients = Vec::new();
        for (start, bytes, ends) in &requests {
            let mut client = connect(&server);
            client.write_all(start.as_bytes()).ok();
            // It may have been refused by now.
            client.write_all(bytes).ok();
            if *ends {
                client.shutdown(Shutdown::Write).ok();
            }
            clients.push(client);
        }
        // On a slow machine the two places may be busy with answers for a while.
        while !is_ok(&try_ask(&server)) {}
        server.close().unwrap();
        let seen = server.stats();
        prop_assert!(balanced(seen) && seen.open == 0 && seen.panicked == 0, "{seen:?}");
    }
}

/// Each in a process of its own.
#[cfg(target_os = "linux")]
mod alone {
    use std::ffi::OsStr;
    use std::io::Write as _;
    use std::net::TcpStream;
    use std::process::Command;

    use fullbore_testkit::{child_test, eventually, is_child};

    use super::{GET, LONG, ask, is_ok, rest, send, simple};

    fn threads() -> usize {
        std::fs::read_dir("/proc/self/task").unwrap().count()
    }

    fn descriptors() -> usize {
        std::fs::read_dir("/proc/self/fd").unwrap().count()
    }

    fn run_alone(mut child: Command) {
        assert!(child.status().unwrap().success());
    }

    #[test]
    #[ignore = "the child of c5_nothing_is_left_of_it"]
    fn child_leaves_nothing() {
        if !is_child("alone::child_leaves_nothing") {
            return;
        }
        let before = (threads(), descriptors());
        let server = simple().build().unwrap();
        assert_eq!(threads(), before.0 + 2, "the acceptor and a worker");
        let slow: Vec<_> = (0..20).map(|_| send(&server, "G")).collect();
        assert!(is_ok(&ask(&server, GET)));
        assert_eq!(threads(), before.0 + 9, "a worker for each place");
        drop(slow);
        server.close().unwrap();
        // The system takes a joined thread off its list a moment later.
        assert!(eventually(LONG, || (threads(), descriptors()) == before));
    }

    #[test]
    fn c5_nothing_is_left_of_it() {
        run_alone(child_test("alone::child_leaves_nothing"));
    }

    #[test]
    #[ignore = "the child of c10_without_file_descriptors_it_pauses_and_can_be_closed"]
    fn child_without_descriptors() {
        if !is_child("alone::child_without_descriptors") {
            return;
        }
        let all = || {
            let mut files = Vec::new();
            while let Ok(file) = std::fs::File::open("/dev/null") {
                files.push(file);
            }
            files
        };
        let server = simple().build().unwrap();
        let spare = std::fs::File::open("/dev/null").unwrap();
        let mut files = all();
        drop(spare);
        // The system gives the acceptor the descriptor for its next connection before there is one. If that took the
        // spare one, the client needs another. Either way there is none for the connection after this.
        let mut client = loop {
            match TcpStream::connect(server.local_addr()) {
                Ok(client) => break client,
                Err(_) => drop(files.pop()),
            }
        };
        client.write_all(GET.as_bytes()).unwrap();
        assert!(eventually(LONG, || server.stats().accept_errors > 0));
        drop(files);
        assert!(is_ok(&rest(&client)));
        assert!(is_ok(&ask(&server, GET)), "it goes on");

        let files = all();
        server.close().unwrap();
        drop(files);
        println!("closed");
    }

    #[test]
    fn c10_without_file_descriptors_it_pauses_and_can_be_closed() {
        let child = child_test("alone::child_without_descriptors");
        let mut limited = Command::new("/bin/sh");
        limited.args(["-c", "ulimit -n 64; exec \"$0\" \"$@\""]).arg(child.get_program()).args(child.get_args());
        limited.envs(child.get_envs().filter_map(|(name, value): (&OsStr, _)| Some((name, value?))));
        run_alone(limited);
    }
}
