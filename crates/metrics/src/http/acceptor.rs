//! The thread that lets connections in.

use std::io::{self, ErrorKind, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use fullbore_core::Event;

use crate::http::response::{Response, Status};
use crate::http::server::{Render, Shared};
use crate::http::stats::End;
use crate::http::table::PATIENCE;
use crate::http::worker;

/// The pauses after `accept` failed, doubled from the one to the other: for lack of file descriptors it fails at once
/// again.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

pub(super) fn run(shared: &Arc<Shared>, listener: TcpListener, render: &Arc<Render>) {
    accept_all(shared, || listener.accept().map(|(stream, _)| stream), render);
    // The port is free before anybody hears of it.
    drop(listener);
    let mut table = shared.monitor.lock();
    let waker = table.waker.take();
    table.notify_all(|table| &mut table.ended);
    drop(table);
    drop(waker);
}

/// Until the close.
fn accept_all(shared: &Arc<Shared>, mut accept: impl FnMut() -> io::Result<TcpStream>, render: &Arc<Render>) {
    let mut pause = FIRST_PAUSE;
    loop {
        match accept() {
            Ok(stream) => {
                pause = FIRST_PAUSE;
                hire(shared, render);
                if !let_in(shared, stream) {
                    return;
                }
            }
            Err(_) if shared.monitor.lock().closed => return,
            // A client that did not wait. There is one less of them each time, so this cannot go on for ever.
            Err(error) if is_of_one_client(&error) => {}
            Err(error) => {
                shared.monitor.lock().stats.accept_errors += 1;
                shared.tell(Event::Retry, || format!("no connection can be accepted: {error}"));
                let mut table = shared.monitor.lock();
                let until = shared.monitor.clock().after(pause);
                if table.wait_until(|table| &mut table.place, until, |table| table.closed) {
                    return;
                }
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    }
}

fn is_of_one_client(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset)
}

/// One more worker, if all have a connection and there may be more. Where the system has no thread, those that are
/// there do: places follow workers.
fn hire(shared: &Arc<Shared>, render: &Arc<Render>) {
    let table = shared.monitor.lock();
    let wanted = table.is_full() && table.workers < shared.config.max_connections && !table.closed;
    drop(table);
    if !wanted {
        return;
    }
    match worker::spawn(shared, render) {
        Ok(()) => shared.monitor.lock().workers += 1,
        Err(error) => shared.tell(Event::Retry, || error),
    }
}

/// Finds a place for a newcomer; `false` after the close.
fn let_in(shared: &Shared, stream: TcpStream) -> bool {
    // What is written last should not wait for the client's acknowledgement of what came before.
    stream.set_nodelay(true).ok();
    let mut table = shared.monitor.lock();
    if !table.has_place() && !table.closed && table.is_worth_waiting(table.now()) {
        let until = shared.monitor.clock().after(PATIENCE);
        if !table.wait_until(|table| &mut table.place, until, |table| table.closed || table.has_place()) {
            table.waited_in_vain();
        }
    }
    if table.closed {
        return false;
    }
    table.stats.accepted += 1;
    let evicted = table.is_full() && table.evict();
    if table.is_full() {
        table.stats.count(End::Refused);
        drop(table);
        turn_away(&stream);
        shared.monitor.lock().turn_away(stream);
        shared.tell(Event::Drop, || "no place for a connection: answered with 503");
        return true;
    }
    let now = table.now();
    table.admit(stream, now);
    table.notify_one(|table| &mut table.work);
    drop(table);
    if evicted {
        shared.tell(
            Event::Drop,
            || "cut the oldest connection that had not sent its request, to make room for a new one",
        );
    }
    true
}

/// Says 503. Nothing was sent on this connection before, so it fits into the buffers and need not wait.
fn turn_away(mut stream: &TcpStream) {
    let response = Response::error(Status::Unavailable);
    if stream.set_nonblocking(true).is_ok() {
        let text = response.head() + response.body();
        // A client that does not get it sees that the connection ended.
        stream.write_all(text.as_bytes()).ok();
        stream.shutdown(Shutdown::Write).ok();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use fullbore_core::{Clock, PausedClock};

    use super::*;
    use crate::http::config::MetricsServerConfig;
    use crate::http::exposition::Exposition;

    fn shared(clock: &PausedClock) -> (Arc<Shared>, Arc<Render>) {
        let shared = Shared::new(MetricsServerConfig::default(), Clock::from(clock));
        (Arc::new(shared), Arc::new(|_: &_| Ok(Exposition::plain_text(String::new()))))
    }

    #[test]
    fn after_an_error_it_pauses_for_longer_each_time_and_a_close_ends_that() {
        let clock = PausedClock::new();
        let (shared, render) = shared(&clock);
        let (tried, attempts) = mpsc::channel();
        std::thread::scope(|scope| {
            let accepting = scope.spawn(|| {
                accept_all(
                    &shared,
                    || {
                        tried.send(()).unwrap();
                        Err(ErrorKind::OutOfMemory.into())
                    },
                    &render,
                );
            });
            for millis in [10, 20, 40, 80, 160, 320, 640, 1000, 1000] {
                attempts.recv().unwrap();
                clock.wait_for_waiters(1);
                clock.advance(Duration::from_millis(millis - 1));
                assert_eq!((clock.timers(), attempts.try_recv()), (1, Err(mpsc::TryRecvError::Empty)));
                clock.advance(Duration::from_millis(1));
            }
            attempts.recv().unwrap();
            clock.wait_for_waiters(1);
            shared.close_now();
            accepting.join().unwrap();
        });
        assert_eq!(shared.stats().accept_errors, 10);
    }

    #[test]
    fn a_client_that_did_not_wait_is_no_reason_to_pause() {
        let clock = PausedClock::new();
        let (shared, render) = shared(&clock);
        let mut kinds = [ErrorKind::ConnectionAborted, ErrorKind::Interrupted].into_iter();
        let accept = || {
            kinds.next().map_or_else(
                || {
                    shared.close_now();
                    Err(ErrorKind::Other.into())
                },
                |kind| Err(kind.into()),
            )
        };
        accept_all(&shared, accept, &render);
        assert_eq!((shared.stats().accept_errors, clock.parks()), (0, 0));
    }
}
