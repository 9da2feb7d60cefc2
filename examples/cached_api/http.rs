//! As much of HTTP/1.1 as two programs need that know each other: a thread for each connection, which is kept open.

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use fullbore_core::{Clock, Crew, Monitor};

/// A line, and a body, that is longer is not of ours.
const LONGEST: u64 = 64 << 10;

/// `GET /item/7`.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) path: String,
}

#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) body: String,
}

impl Response {
    pub(crate) fn new(status: u16, body: impl Into<String>) -> Self {
        Self { status, body: body.into() }
    }
}

type Answer = Box<dyn Fn(&Request) -> Response + Send + Sync>;

struct Open {
    answer: Answer,
    /// Those that are open, by number; `None` once it ends.
    connections: Monitor<Option<HashMap<u64, TcpStream>>>,
    crew: Crew,
}

/// Answers on a free port of 127.0.0.1 until it is dropped, which waits for the answers that are being made.
pub(crate) struct Server {
    addr: SocketAddr,
    open: Arc<Open>,
}

impl Server {
    pub(crate) fn start(
        name: &str,
        answer: impl Fn(&Request) -> Response + Send + Sync + 'static,
    ) -> Result<Self, String> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(|error| format!("no port: {error}"))?;
        let addr = listener.local_addr().map_err(|error| format!("no port: {error}"))?;
        let connections = Monitor::new(Some(HashMap::new()), Clock::Real);
        let crew = Crew::new("http", name, Clock::Real);
        let open = Arc::new(Open { answer: Box::new(answer), connections, crew });
        let accepts = Arc::clone(&open);
        open.crew.spawn(move || accepts.accept(&listener)).map_err(|error| error.to_string())?;
        Ok(Self { addr, open })
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let connections = self.open.connections.lock().take();
        for connection in connections.iter().flat_map(HashMap::values) {
            // It may be closed already.
            let _ = connection.shutdown(Shutdown::Both);
        }
        // The listener wakes, and sees that it is over.
        let _ = TcpStream::connect(self.addr);
        self.open.crew.join(None);
    }
}

impl Open {
    fn accept(self: &Arc<Self>, listener: &TcpListener) {
        for number in 0.. {
            let stream = listener.accept().map(|(stream, _)| stream);
            let mut connections = self.connections.lock();
            let Some(open) = &mut *connections else { return };
            let Ok((stream, other_hand)) = stream.and_then(|stream| Ok((stream.try_clone()?, stream))) else {
                continue;
            };
            open.insert(number, other_hand);
            drop(connections);
            let serves = Arc::clone(self);
            let spawned = self.crew.spawn(move || {
                serves.serve(&stream);
                serves.close(number);
            });
            if let Err(error) = spawned {
                eprintln!("cached_api: a connection is not served: {error}");
                self.close(number);
            }
        }
    }

    fn close(&self, number: u64) {
        if let Some(open) = &mut *self.connections.lock() {
            open.remove(&number);
        }
    }

    /// Until the other side has had enough, or this one ends.
    fn serve(&self, stream: &TcpStream) {
        // Whoever asked learns of it by the end of the connection.
        let _: io::Result<()> = (|| {
            stream.set_nodelay(true)?;
            let mut reader = BufReader::new(stream);
            while let Some(request) = read_request(&mut reader)? {
                let Response { status, body } = (self.answer)(&request);
                let head = format!("HTTP/1.1 {status} -\r\nContent-Length: {}\r\n\r\n", body.len());
                let mut writer = stream;
                writer.write_all((head + &body).as_bytes())?;
            }
            Ok(())
        })();
    }
}

/// `None`: there are no more.
fn read_request(reader: &mut impl BufRead) -> io::Result<Option<Request>> {
    let first = read_line(reader)?;
    if first.is_empty() {
        return Ok(None);
    }
    let mut words = first.split_ascii_whitespace();
    let (Some(method), Some(path)) = (words.next(), words.next()) else {
        return Err(io::ErrorKind::InvalidData.into());
    };
    let request = Request { method: method.to_owned(), path: path.to_owned() };
    read_rest(reader)?;
    Ok(Some(request))
}

/// The headers, and the body.
fn read_rest(reader: &mut impl BufRead) -> io::Result<String> {
    let mut length = 0;
    loop {
        let line = read_line(reader)?;
        if line.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let line = line.trim_end();
        if line.is_empty() {
            break;
        }
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse().ok().filter(|length| *length <= LONGEST).ok_or(io::ErrorKind::InvalidData)?;
        }
    }
    let mut body = String::new();
    reader.take(length).read_to_string(&mut body)?;
    if body.len() as u64 == length { Ok(body) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

fn read_line(reader: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    reader.take(LONGEST).read_line(&mut line)?;
    Ok(line)
}

/// A connection to a [`Server`].
#[derive(Debug)]
pub(crate) struct Client {
    stream: BufReader<TcpStream>,
}

impl Client {
    /// Each answer may take `patience`.
    pub(crate) fn connect(addr: SocketAddr, patience: Duration) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&addr, patience)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// After an error the connection is of no use.
    pub(crate) fn ask(&mut self, method: &str, path: &str) -> io::Result<Response> {
        let request = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n");
        self.stream.get_mut().write_all(request.as_bytes())?;
        let first = read_line(&mut self.stream)?;
        let status = first.split(' ').nth(1).and_then(|status| status.parse().ok());
        let status =
            status.ok_or(if first.is_empty() { io::ErrorKind::UnexpectedEof } else { io::ErrorKind::InvalidData })?;
        Ok(Response { status, body: read_rest(&mut self.stream)? })
    }
}
