//! The threads that read requests and answer them, each one connection at a time.

use std::io::ErrorKind;
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use fullbore_core::{BuildError, Event, Failure, contain};

use crate::http::exposition::{Exposition, Scrape};
use crate::http::request::{Head, Method, Reader};
use crate::http::response::{Response, Status, is_field_value};
use crate::http::server::{Render, Shared};
use crate::http::stats::End;
use crate::http::table::{Phase, Ticket};
use crate::http::timed::{self, Deadline};

/// A socket that is closed while something in it is unread takes back what the client has not read yet. So when the
/// client sends more than we read, it gets this long, and this many bytes, to read the response and go.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 1024 * 1024;

/// A response, and what it counts as when it gets through.
struct Answer {
    response: Response,
    end: End,
    /// `HEAD`: the head alone.
    head_only: bool,
    /// The client sends more than was read.
    more: bool,
}

pub(super) fn spawn(shared: &Arc<Shared>, render: &Arc<Render>) -> Result<(), BuildError> {
    let (worker, render) = (Arc::clone(shared), Arc::clone(render));
    shared.crew.spawn(move || {
        while let Some(ticket) = take(&worker) {
            serve(&worker, &render, &ticket);
        }
        // The last one drops what the renderer has captured: user code.
        worker.user_code(move || drop(render));
    })
}

/// The next connection; `None` after the close, when there is none left.
fn take(shared: &Shared) -> Option<Ticket> {
    let mut next = None;
    let mut table = shared.monitor.lock();
    table.wait_until(
        |table| &mut table.work,
        None,
        |table| {
            next = table.next();
            next.is_some() || table.closed
        },
    );
    next
}

fn serve(shared: &Shared, render: &Arc<Render>, ticket: &Ticket) {
    let Ticket { id, stream } = ticket;
    let end = attend(shared, render, *id, stream);
    let mut table = shared.monitor.lock();
    // Before the socket is closed: who has read to the end finds itself counted and its place free.
    let gone = table.finish(*id, end);
    table.notify_one(|table| &mut table.place);
    table.notify_all(|table| &mut table.ended);
    drop(table);
    drop(gone);
}

fn attend(shared: &Shared, render: &Arc<Render>, id: u64, stream: &TcpStream) -> End {
    let Some(request) = read(shared, stream) else { return End::Disconnected };
    let now = shared.monitor.clock().now();
    if !shared.monitor.lock().answer(id, request.is_ok(), now) {
        return End::Disconnected;
    }
    let answer = match request {
        Ok(head) => answer(shared, render, &head),
        Err(status) => refusal(status),
    };
    let Answer { response, end, head_only, more } = answer;
    let lost = |to: End| if matches!(end, End::Served | End::Rejected) { to } else { end };
    if !shared.monitor.lock().move_on(id, Phase::Writing) {
        return lost(End::Disconnected);
    }
    let deadline = Deadline::after(shared.config.response_timeout);
    let body = if head_only { "" } else { response.body() };
    let written = timed::write_all(stream, response.head().as_bytes(), deadline)
        .and_then(|()| timed::write_all(stream, body.as_bytes(), deadline));
    match written {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::TimedOut => return lost(End::TimedOut),
        Err(_) => return lost(End::Disconnected),
    }
    if more && shared.monitor.lock().linger(id, end) {
        shared.monitor.lock().notify_one(|table| &mut table.place);
        stream.shutdown(Shutdown::Write).ok();
        see_off(stream);
    }
    end
}

/// Reads a head, all of it within the time for requests; `None` if the client has gone.
fn read(shared: &Shared, stream: &TcpStream) -> Option<Result<Head, Status>> {
    let deadline = Deadline::after(shared.config.request_timeout);
    let mut reader = Reader::new(shared.config.max_request_bytes);
    let mut chunk = [0; 2048];
    loop {
        match timed::read(stream, &mut chunk, deadline) {
            Ok(0) if reader.is_empty() => return None,
            Ok(0) => return Some(Err(Status::BadRequest)),
            Ok(read) => match reader.feed(&chunk[..read]) {
                Ok(None) => {}
                Ok(Some(head)) => return Some(Ok(head)),
                Err(status) => return Some(Err(status)),
            },
            Err(error) if error.kind() == ErrorKind::TimedOut => return Some(Err(Status::RequestTimeout)),
            Err(_) => return None,
        }
    }
}

fn answer(shared: &Shared, render: &Arc<Render>, head: &Head) -> Answer {
    let path = &shared.config.path;
    let (response, end) = match head.method {
        Method::Other => (Response::error(Status::MethodNotAllowed), End::Rejected),
        Method::Get | Method::Head if head.path == *path => page(shared, render, head),
        Method::Get | Method::Head if head.path == "/" => {
            (Response::text(format!("The metrics are at {path}\n")), End::Served)
        }
        Method::Get | Method::Head => (Response::error(Status::NotFound), End::Rejected),
    };
    Answer { response, end, head_only: head.method == Method::Head, more: head.more }
}

fn refusal(status: Status) -> Answer {
    let end = if status == Status::RequestTimeout { End::TimedOut } else { End::Rejected };
    Answer { response: Response::error(status), end, head_only: false, more: true }
}

/// Calls the renderer.
fn page(shared: &Shared, render: &Arc<Render>, head: &Head) -> (Response, End) {
    let scrape = Scrape { accept: head.accept.as_deref(), query: head.query.as_deref() };
    let rendered = contain(|| render(&scrape)).and_then(|rendered| rendered).and_then(checked);
    match rendered {
        Ok(exposition) => (Response::page(exposition), End::Served),
        Err(failure) => {
            let (event, end) = match failure {
                Failure::Panicked(_) => (Event::Panic, End::Panicked),
                _ => (Event::Drop, End::Failed),
            };
            shared.tell(event, || format!("the renderer: {failure}"));
            shared.user_code(move || drop(failure));
            (Response::error(Status::Internal), end)
        }
    }
}

fn checked(exposition: Exposition) -> Result<Exposition, Failure> {
    if is_field_value(exposition.content_type) {
        return Ok(exposition);
    }
    Err(Failure::error(format!("{:?} is no content type", exposition.content_type)))
}

/// Reads and forgets what the client still sends, until it goes.
fn see_off(stream: &TcpStream) {
    let deadline = Deadline::after(LINGER);
    let mut chunk = [0; 8192];
    let mut left = LINGER_BYTES;
    while let Ok(read @ 1..) = timed::read(stream, &mut chunk, deadline) {
        left = left.saturating_sub(read);
        if left == 0 {
            return;
        }
    }
}
