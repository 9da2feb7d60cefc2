//! The proxy, in front of a real Redis and of plain sockets.

#![expect(clippy::unwrap_used, reason = "helpers of tests, which the lint does not know as such")]

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{Ipv4Addr, Shutdown, TcpListener, TcpStream},
    sync::mpsc,
    thread,
    time::Duration,
};

use fullbore_testkit::{Redis, TcpProxy};

/// Far more than needed, so that only what will never happen runs into it.
const LONG: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3_600);

fn connect(redis: &Redis, proxy: &TcpProxy) -> redis::Connection {
    redis::Client::open(redis.url_at(proxy.addr())).unwrap().get_connection().unwrap()
}

fn ping(client: &mut redis::Connection) -> redis::RedisResult<String> {
    redis::cmd("PING").query(client)
}

#[test]
fn a_cut_breaks_open_connections_and_serves_new_ones() {
    let Some(redis) = Redis::start_or_skip() else { return };
    let proxy = TcpProxy::start(redis.addr()).unwrap();
    let mut clients: Vec<_> = (0..3).map(|_| connect(&redis, &proxy)).collect();
    for client in &mut clients {
        assert_eq!(ping(client).unwrap(), "PONG");
    }
    proxy.cut();
    let stats = proxy.stats();
    assert_eq!((stats.accepted, stats.cut, stats.open), (3, 3, 0));
    for client in &mut clients {
        let error = ping(client).unwrap_err();
        assert!(error.is_io_error(), "{error}");
    }
    assert_eq!(ping(&mut connect(&redis, &proxy)).unwrap(), "PONG");
}

#[test]
fn a_delayed_request_waits_until_the_delay_ends() {
    let Some(redis) = Redis::start_or_skip() else { return };
    let proxy = TcpProxy::start(redis.addr()).unwrap();
    let mut client = connect(&redis, &proxy);
    assert_eq!(ping(&mut client).unwrap(), "PONG");
    assert_eq!(proxy.stats().delayed, 0);

    proxy.delay(HOUR);
    let passed_before = proxy.stats().bytes_up;
    thread::scope(|scope| {
        let reply = scope.spawn(|| ping(&mut client));
        assert!(proxy.wait_for(LONG, |stats| stats.delayed > 0));
        assert_eq!(proxy.stats().bytes_up, passed_before);
        assert!(!reply.is_finished());
        proxy.delay(Duration::ZERO); // what is on its way is due now
        assert_eq!(reply.join().unwrap().unwrap(), "PONG");
    });
    assert!(proxy.stats().bytes_up > passed_before);

    // A delay that ends by itself.
    proxy.delay(Duration::from_millis(1));
    let delayed_before = proxy.stats().delayed;
    assert_eq!(ping(&mut client).unwrap(), "PONG");
    assert!(proxy.stats().delayed >= delayed_before + 2, "the request and the reply");
}

#[test]
fn a_black_hole_swallows_until_it_closes() {
    let Some(redis) = Redis::start_or_skip() else { return };
    let proxy = TcpProxy::start(redis.addr()).unwrap();
    let mut client = connect(&redis, &proxy);
    proxy.black_hole(true);
    client.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    let error = ping(&mut client).unwrap_err();
    assert!(error.is_timeout(), "{error}");

    // A new connection is accepted and hears nothing.
    let accepted_before = proxy.stats().accepted;
    let mut silent = TcpStream::connect(proxy.addr()).unwrap();
    silent.write_all(b"PING\r\n").unwrap();
    assert!(proxy.wait_for(LONG, |stats| stats.accepted == accepted_before + 1 && stats.held >= 2));
    silent.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    let error = silent.read(&mut [0; 8]).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{error}");

    proxy.black_hole(false);
    silent.set_read_timeout(Some(LONG)).unwrap();
    let mut reply = [0; 7];
    silent.read_exact(&mut reply).unwrap();
    assert_eq!(&reply, b"+PONG\r\n");
    assert_eq!(ping(&mut connect(&redis, &proxy)).unwrap(), "PONG");
}

#[test]
fn refusing_concerns_new_connections_only() {
    let Some(redis) = Redis::start_or_skip() else { return };
    let proxy = TcpProxy::start(redis.addr()).unwrap();
    let mut client = connect(&redis, &proxy);
    for _ in 0..3 {
        proxy.refuse(true);
        assert_eq!(TcpStream::connect(proxy.addr()).unwrap_err().kind(), ErrorKind::ConnectionRefused);
        assert_eq!(ping(&mut client).unwrap(), "PONG");
        proxy.refuse(false);
        assert_eq!(ping(&mut connect(&redis, &proxy)).unwrap(), "PONG");
    }
}

#[test]
fn a_server_that_dies_and_returns_shows_through() {
    let Some(redis) = Redis::start_or_skip() else { return };
    let proxy = TcpProxy::start(redis.addr()).unwrap();
    let mut client = connect(&redis, &proxy);
    redis.kill_9();
    assert!(ping(&mut client).is_err());
    let mut nobody = TcpStream::connect(proxy.addr()).unwrap();
    assert!(proxy.wait_for(LONG, |stats| stats.unreachable == 1));
    assert!(!matches!(nobody.read(&mut [0]), Ok(1..)), "an error or the end");
    redis.restart();
    assert_eq!(ping(&mut connect(&redis, &proxy)).unwrap(), "PONG");
}

/// A server of one connection that sends back what it gets, and at its end says how much that was.
fn echo() -> (std::net::SocketAddr, mpsc::Receiver<usize>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let addr = listener.local_addr().unwrap();
    let (done, total) = mpsc::channel();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut everything = Vec::new();
        stream.read_to_end(&mut everything).unwrap();
        stream.write_all(&everything).unwrap();
        done.send(everything.len()).unwrap();
    });
    (addr, total)
}

#[test]
fn bytes_arrive_whole_and_in_order_whatever_is_switched() {
    let (server, total) = echo();
    let proxy = TcpProxy::start(server).unwrap();
    // More than the proxy and the sockets hold, so that both sides meet back-pressure.
    let sent: Vec<u8> = (0..32_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let mut stream = TcpStream::connect(proxy.addr()).unwrap();
    let mut reader = stream.try_clone().unwrap();
    let received = thread::scope(|scope| {
        let switches = scope.spawn(|| {
            for n in 1..=20_u64 {
                // Each switch happens after more bytes have passed, or at the end.
                let _ = proxy.wait_for(LONG, |stats| stats.bytes_up >= n * 1_000_000);
                match n % 3 {
                    0 => proxy.delay(Duration::from_micros(n * 100)),
                    1 => proxy.black_hole(true),
                    _ => proxy.delay(Duration::ZERO),
                }
                proxy.black_hole(false);
            }
            proxy.delay(Duration::ZERO);
        });
        let received = scope.spawn(move || {
            let mut received = Vec::new();
            reader.read_to_end(&mut received).unwrap();
            received
        });
        stream.write_all(&sent).unwrap();
        stream.shutdown(Shutdown::Write).unwrap(); // the end passes too, and the other direction stays open
        switches.join().unwrap();
        received.join().unwrap()
    });
    assert_eq!(total.recv_timeout(LONG).unwrap(), sent.len());
    assert!(received == sent);
    let all = sent.len() as u64;
    assert!(proxy.wait_for(LONG, |stats| stats.open == 0));
    let stats = proxy.stats();
    assert_eq!((stats.bytes_up, stats.bytes_down, stats.held), (all, all, 0));
}

#[test]
fn a_slow_reader_meets_a_bound() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let proxy = TcpProxy::start(listener.local_addr().unwrap()).unwrap();
    let mut stream = TcpStream::connect(proxy.addr()).unwrap();
    let (_never_reads, _) = listener.accept().unwrap();
    stream.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
    let megabyte = vec![0; 1_000_000];
    let written = (0..1_000).take_while(|_| stream.write_all(&megabyte).is_ok()).count();
    assert!(written < 1_000, "the proxy took a gigabyte that nobody reads");
    // It is cut like any other, full or not.
    proxy.cut();
    assert_eq!(proxy.stats().open, 0);
}

#[test]
fn nothing_to_do_means_no_wakeups() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let proxy = TcpProxy::start(listener.local_addr().unwrap()).unwrap();
    // Hang-ups of every kind, which a poll that asks too much would report for ever.
    let half_closed = TcpStream::connect(proxy.addr()).unwrap();
    half_closed.shutdown(Shutdown::Write).unwrap();
    let gone_upstream = TcpStream::connect(proxy.addr()).unwrap();
    let servers: Vec<_> = (0..2).map(|_| listener.accept().unwrap().0).collect();
    proxy.black_hole(true);
    drop(servers);
    drop(TcpStream::connect(proxy.addr()).unwrap());
    let mut reset = TcpStream::connect(proxy.addr()).unwrap();
    reset.write_all(b"x").unwrap();
    drop(reset);
    // The ends of both servers and both clients, and one chunk. The half close may have passed before, or come as a sixth.
    assert!(proxy.wait_for(LONG, |stats| stats.accepted == 4 && stats.held >= 5));

    // Each order wakes it once, and some late event may do so; a loop that spins would wake up for ever.
    let before = proxy.stats().wakeups;
    let orders = 1_000;
    for _ in 0..orders {
        proxy.delay(Duration::ZERO);
    }
    let woken = proxy.stats().wakeups - before;
    assert!(woken <= orders + 8, "{woken} wake-ups for {orders} orders");
    drop(gone_upstream);
}

#[test]
fn drop_closes_everything() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let proxy = TcpProxy::start(listener.local_addr().unwrap()).unwrap();
    let addr = proxy.addr();
    let mut stream = TcpStream::connect(addr).unwrap();
    let (mut server, _) = listener.accept().unwrap();
    proxy.delay(HOUR);
    proxy.black_hole(true);
    assert!(format!("{proxy:?}").contains("black_hole: true"));
    drop(proxy);
    assert!(!matches!(stream.read(&mut [0]), Ok(1..)));
    assert!(!matches!(server.read(&mut [0]), Ok(1..)));
    assert!(TcpStream::connect(addr).is_err());
}
