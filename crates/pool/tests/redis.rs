//! The pool with a real Redis that dies, falls silent, or is cut off.
#![cfg(feature = "redis")]
#![allow(missing_docs, clippy::unwrap_used)]

use std::net::TcpListener;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use ::redis::{Commands as _, ConnectionLike as _, ErrorKind, RedisResult, ServerErrorKind, cmd};
use fullbore_core::PausedClock;
use fullbore_pool::{Manager as _, Pool, Redis, RedisConnection, WhileDown};
use fullbore_testkit::{Redis as Server, TcpProxy, eventually};

/// For waits that end by an event; only a defect lets them run out.
const LONG: Duration = Duration::from_secs(60);

fn pool(url: String, max_size: usize) -> Pool<Redis> {
    Pool::builder(Redis::new(url).unwrap()).max_size(max_size).build().unwrap()
}

fn ping(connection: &mut RedisConnection) -> RedisResult<()> {
    cmd("PING").exec(connection)
}

#[test]
fn commands_pipelines_and_scripts_work_through_the_guard() {
    let Some(server) = Server::start_or_skip() else { return };
    let client = redis::Client::open(server.url()).unwrap();
    let manager = Redis::with_client(client).read_timeout(None).write_timeout(LONG);
    let pool = Pool::builder(manager).max_size(2).build().unwrap();
    let mut connection = pool.get().unwrap();
    let id = connection.id();
    connection.set::<_, _, ()>("key", 1).unwrap();
    assert_eq!(connection.incr::<_, _, u32>("key", 2).unwrap(), 3);
    let (a, b): (u32, u32) = redis::pipe().atomic().incr("key", 1).incr("key", 1).query(&mut connection).unwrap();
    assert_eq!((a, b), (4, 5));
    assert_eq!(connection.get_db(), 0);
    assert!(connection.supports_pipelining() && connection.check_connection());
    drop(connection);
    assert_eq!(pool.with(|connection| connection.get::<_, u32>("key")).unwrap().unwrap(), 5);
    assert_eq!(pool.get().unwrap().id(), id);
}

#[test]
fn an_error_that_redis_answers_with_does_not_cost_the_connection() {
    let Some(server) = Server::start_or_skip() else { return };
    let pool = pool(server.url(), 1);
    let mut connection = pool.get().unwrap();
    let id = connection.id();
    connection.set::<_, _, ()>("key", "text").unwrap();
    let error = connection.lpush::<_, _, u32>("key", 1).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Extension, "WRONGTYPE: {error}");
    assert_eq!(
        cmd("NOTACOMMAND").exec(&mut connection).unwrap_err().kind(),
        ErrorKind::Server(ServerErrorKind::ResponseError)
    );
    let aborted = redis::pipe().atomic().cmd("NOTACOMMAND").exec(&mut connection).unwrap_err();
    assert_eq!(aborted.kind(), ErrorKind::Server(ServerErrorKind::ExecAbort));
    // An answer of another type than asked for is one, too.
    assert!(connection.get::<_, u32>("key").is_err());
    drop(connection);
    let mut connection = pool.get().unwrap();
    assert_eq!(connection.id(), id);
    assert_eq!(connection.get::<_, String>("key").unwrap(), "text");
}

#[test]
fn what_redis_says_to_a_connect_comes_back() {
    let Some(server) = Server::start_or_skip() else { return };
    let pool = pool(format!("{}99999", server.url()), 1);
    for _ in 0..3 {
        let error = pool.get().unwrap_err();
        let said = error.connect_error().unwrap();
        assert_eq!(said.kind(), ErrorKind::Server(ServerErrorKind::ResponseError), "{error}");
    }
    assert_eq!(pool.status().size, 0);
}

#[test]
fn a_connection_that_was_cut_off_is_not_handed_out_again() {
    let Some(server) = Server::start_or_skip() else { return };
    let proxy = TcpProxy::start(server.addr()).unwrap();
    let clock = PausedClock::new();
    let manager = Redis::new(server.url_at(proxy.addr())).unwrap();
    let pool = Pool::builder(manager).max_size(1).clock(&clock).build().unwrap();
    // In use. The clock stands: whoever comes next would trust it.
    let mut connection = pool.get().unwrap();
    ping(&mut connection).unwrap();
    proxy.cut();
    assert!(ping(&mut connection).is_err());
    drop(connection);
    assert_eq!(pool.status().size, 0);
    // Idle and trusted: its first use finds out, and nobody else gets it.
    pool.with(ping).unwrap().unwrap();
    proxy.cut();
    assert!(pool.with(ping).unwrap().is_err());
    assert_eq!(pool.status().size, 0);
    // Idle for longer: the check finds out.
    pool.with(ping).unwrap().unwrap();
    let id = pool.get().unwrap().id();
    proxy.cut();
    clock.advance(Duration::from_secs(1));
    let mut connection = pool.get().unwrap();
    assert_ne!(connection.id(), id);
    ping(&mut connection).unwrap();
}

#[test]
fn an_idle_connection_is_validated_and_kept() {
    let Some(server) = Server::start_or_skip() else { return };
    let clock = PausedClock::new();
    let pool = Pool::builder(Redis::new(server.url()).unwrap()).clock(&clock).build().unwrap();
    let id = pool.get().unwrap().id();
    clock.advance(Duration::from_secs(1));
    let mut connection = pool.get_deadline(clock.now() + LONG).unwrap();
    assert_eq!(connection.id(), id);
    ping(&mut connection).unwrap();
}

#[test]
fn an_answer_that_comes_too_late_is_nobody_elses() {
    let Some(server) = Server::start_or_skip() else { return };
    let proxy = TcpProxy::start(server.addr()).unwrap();
    let manager = Redis::new(server.url_at(proxy.addr())).unwrap().read_timeout(Duration::from_millis(50));
    let pool = Pool::builder(manager).max_size(1).build().unwrap();
    let mut connection = pool.get().unwrap();
    proxy.black_hole(true);
    let error = connection.get::<_, Option<u32>>("mine").unwrap_err();
    assert!(error.is_timeout(), "{error}");
    // The answer would come now; nobody is there to take it for his own.
    proxy.black_hole(false);
    assert!(!connection.is_open());
    drop(connection);
    assert_eq!(pool.status().size, 0);
}

#[test]
fn a_connection_out_of_step_fails_its_check() {
    let Some(server) = Server::start_or_skip() else { return };
    let manager = Redis::new(server.url()).unwrap();
    let mut connection = manager.connect(LONG).unwrap();
    manager.validate(&mut connection, LONG).unwrap();
    manager.validate(&mut connection, Duration::MAX).unwrap();
    // A question whose answer nobody reads.
    let question = cmd("ECHO").arg("stray").get_packed_command();
    connection.raw().send_packed_command(&question).unwrap();
    let error = manager.validate(&mut connection, LONG).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::UnexpectedReturnType, "{error}");
}

#[test]
fn the_drivers_own_connection_is_there_and_not_passed_on() {
    let Some(server) = Server::start_or_skip() else { return };
    let pool = pool(server.url(), 2);
    let mut connection = pool.get().unwrap();
    let mut pubsub = connection.raw().as_pubsub();
    pubsub.subscribe("news").unwrap();
    assert_eq!(pool.with(|connection| connection.publish::<_, _, u32>("news", "hello")).unwrap().unwrap(), 1);
    let message: String = pubsub.get_message().unwrap().get_payload().unwrap();
    assert_eq!(message, "hello");
    drop(pubsub);
    assert_eq!(pool.status().size, 2);
    drop(connection);
    assert_eq!(pool.status().size, 1);
    // For good.
    let mut own = pool.get().unwrap().detach().into_inner();
    cmd("PING").exec(&mut own).unwrap();
    assert_eq!(pool.status().size, 0);
}

#[test]
fn a_silent_server_holds_nobody_beyond_the_deadline() {
    let Some(server) = Server::start_or_skip() else { return };
    let proxy = TcpProxy::start(server.addr()).unwrap();
    let soon = Duration::from_millis(200);
    // A database, so that connecting asks for more than one answer.
    let manager = Redis::new(format!("{}1", server.url_at(proxy.addr()))).unwrap();
    let pool = Pool::builder(manager).max_size(1).get_timeout(soon).validate_after(Duration::ZERO);
    let pool = pool.connect_timeout(soon).while_down(WhileDown::Wait).build().unwrap();
    // Connecting: the socket opens and then nothing comes. Those in line behind it are released as well.
    proxy.black_hole(true);
    thread::scope(|scope| {
        let callers = [0; 4].map(|_| scope.spawn(|| pool.get().map(drop)));
        for caller in callers {
            let error = caller.join().unwrap().unwrap_err();
            assert!(error.is_timeout() || error.connect_error().unwrap().is_timeout(), "{error}");
        }
    });
    assert!(eventually(LONG, || pool.status().size == 0));
    proxy.black_hole(false);
    // Enough time, so that a slow machine does not matter: what is tested is that it works again.
    let patient = || pool.get_deadline(Instant::now() + LONG);
    ping(&mut patient().unwrap()).unwrap();
    // Validating: an idle connection whose server does not answer.
    assert_eq!(pool.status().available, 1);
    proxy.black_hole(true);
    let error = pool.get().unwrap_err();
    assert!(error.is_timeout() || error.connect_error().unwrap().is_timeout(), "{error}");
    assert!(eventually(LONG, || pool.status().size == 0));
    proxy.black_hole(false);
    ping(&mut patient().unwrap()).unwrap();
}

#[test]
fn a_connect_is_given_up_although_the_driver_goes_on() {
    // It accepts each connection and never answers. The driver gives each of the answers to its handshake the whole budget.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let manager = Redis::new(format!("redis://:password@{}/1", silent.local_addr().unwrap())).unwrap();
    for _ in 0..40 {
        let error = manager.connect(Duration::from_millis(1)).unwrap_err();
        assert!(error.is_timeout(), "{error}");
    }
}

#[test]
fn survives_the_death_of_the_server_in_mid_load() {
    let Some(server) = Server::start_or_skip() else { return };
    let pool = pool(server.url(), 3);
    let (done, dones) = mpsc::channel();
    thread::scope(|scope| {
        for _ in 0..8 {
            let (pool, done) = (&pool, done.clone());
            // More threads than connections: some are waiting when it happens.
            scope.spawn(move || {
                loop {
                    match pool.with(|connection| connection.incr::<_, _, u64>("n", 1)) {
                        // A command that died takes its connection with it.
                        Ok(result) => {
                            let _ = done.send(result.is_ok());
                        }
                        Err(error) => {
                            assert!(error.connect_error().is_some(), "{error}");
                            break;
                        }
                    }
                }
            });
        }
        drop(done);
        assert_eq!(dones.iter().filter(|good| *good).take(200).count(), 200);
        server.kill_9();
    });
    assert!(pool.get().unwrap_err().connect_error().is_some(), "later callers too");
    assert_eq!(pool.status().size, 0, "no dead connection is left");
    server.restart();
    // After the pause between two attempts.
    assert!(eventually(LONG, || pool.get().is_ok()));
    let mut three = [0; 3].map(|_| pool.get().unwrap());
    assert!(three.iter_mut().all(|connection| ping(connection).is_ok()));
    drop(three);
    let seen = pool.station().snapshot();
    assert!(seen.balanced() && seen.in_service() == 0, "{seen:?}");
}

#[test]
fn connections_that_died_while_idle_are_replaced() {
    let Some(server) = Server::start_or_skip() else { return };
    let clock = PausedClock::new();
    let pool = Pool::builder(Redis::new(server.url()).unwrap()).max_size(3).clock(&clock).build().unwrap();
    drop([0; 3].map(|_| pool.get().unwrap()));
    server.kill_9();
    server.restart();
    clock.advance(Duration::from_secs(1));
    let mut three = [0; 3].map(|_| pool.get().unwrap());
    assert!(three.iter_mut().all(|connection| ping(connection).is_ok()));
    assert!(three.iter().all(|connection| connection.id() > 3));
}
