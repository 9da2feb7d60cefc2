//! One proxied connection.

use std::{
    collections::VecDeque,
    io::{self, ErrorKind, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use rustix::io::Errno;
use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, Type};

use super::control::Faults;

/// What one read takes at most.
pub(super) const CHUNK: usize = 64 * 1024;
/// Per direction; then the sender meets back-pressure. Also bounds what a black hole swallows.
const BUFFER: usize = 4 * 1024 * 1024;

/// The link's life is over.
pub(super) struct Closed;

#[derive(Debug)]
pub(super) struct Link {
    pub(super) client: TcpStream,
    pub(super) upstream: Upstream,
    pub(super) up: Direction,
    pub(super) down: Direction,
}

#[derive(Debug)]
pub(super) enum Upstream {
    /// Not tried yet: behind a black hole the server sees nothing of a new client.
    Untried,
    Connecting(TcpStream),
    Ready(TcpStream),
    /// Nobody there.
    Failed,
}

/// Bytes on their way from one side to the other.
#[derive(Debug, Default)]
pub(super) struct Direction {
    queue: VecDeque<(Instant, Item)>,
    buffered: usize,
    /// The sender has nothing more to say.
    read_ended: bool,
    /// And the receiver knows it.
    pub(super) write_ended: bool,
    /// The receiver takes no more at the moment.
    pub(super) blocked: bool,
    pub(super) bytes: u64,
}

#[derive(Debug)]
enum Item {
    Data { bytes: Vec<u8>, sent: usize },
    End,
    Reset,
}

impl Link {
    pub(super) fn new(client: TcpStream) -> io::Result<Self> {
        client.set_nonblocking(true)?;
        let _ = client.set_nodelay(true); // fails on some systems if the client has gone already, which the read shows
        Ok(Self { client, upstream: Upstream::Untried, up: Direction::default(), down: Direction::default() })
    }

    /// Begins to connect without waiting for it: a server that is stopped or flooded must not stop the other links.
    pub(super) fn connect(&mut self, addr: SocketAddr) {
        let begin = || -> io::Result<Upstream> {
            let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
            socket.set_nonblocking(true)?;
            socket.set_tcp_nodelay(true)?;
            match socket.connect(&SockAddr::from(addr)) {
                Ok(()) => Ok(Upstream::Ready(socket.into())),
                Err(error) if error.raw_os_error() == Some(Errno::INPROGRESS.raw_os_error()) => {
                    Ok(Upstream::Connecting(socket.into()))
                }
                Err(error) => Err(error),
            }
        };
        self.upstream = begin().unwrap_or(Upstream::Failed);
    }

    /// The connection that was begun is made, or failed.
    pub(super) fn finish_connecting(&mut self) {
        self.upstream = match std::mem::replace(&mut self.upstream, Upstream::Failed) {
            Upstream::Connecting(stream) if matches!(stream.take_error(), Ok(None)) => Upstream::Ready(stream),
            Upstream::Connecting(_) => Upstream::Failed,
            other => other,
        };
    }

    /// Returns whether a chunk came in.
    pub(super) fn read_client(&mut self, scratch: &mut [u8]) -> bool {
        self.up.read_from(&self.client, scratch)
    }

    /// Returns whether a chunk came in.
    pub(super) fn read_upstream(&mut self, scratch: &mut [u8]) -> bool {
        match &self.upstream {
            Upstream::Ready(stream) => self.down.read_from(stream, scratch),
            _ => false,
        }
    }

    /// Passes on what is due.
    pub(super) fn advance(&mut self, faults: &Faults, now: Instant) -> Result<(), Closed> {
        if faults.black_hole {
            return Ok(());
        }
        if let Upstream::Ready(upstream) = &self.upstream {
            let done = match (
                self.up.write_to(upstream, faults.delay, now),
                self.down.write_to(&self.client, faults.delay, now),
            ) {
                (Ok(()), Ok(())) => self.up.write_ended && self.down.write_ended,
                _ => {
                    self.reset();
                    true
                }
            };
            if done {
                return Err(Closed);
            }
        }
        Ok(())
    }

    /// When something becomes due next without an event on a socket.
    pub(super) fn due(&self, faults: &Faults) -> Option<Instant> {
        if faults.black_hole || !matches!(self.upstream, Upstream::Ready(_)) {
            return None;
        }
        [&self.up, &self.down].into_iter().filter_map(|direction| direction.due(faults.delay)).min()
    }

    /// Makes that closing tells both sides at once and drops what is on its way.
    pub(super) fn reset(&self) {
        let upstream = match &self.upstream {
            Upstream::Untried | Upstream::Failed => None,
            Upstream::Connecting(stream) | Upstream::Ready(stream) => Some(stream),
        };
        for stream in [Some(&self.client), upstream].into_iter().flatten() {
            let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
        }
    }

    pub(super) fn held(&self) -> usize {
        self.up.queue.len() + self.down.queue.len()
    }
}

impl Direction {
    /// Whether more should be read. A socket that is not read must not be polled either: its hang-up would be reported
    /// again and again.
    pub(super) fn wants_more(&self) -> bool {
        !self.read_ended && self.buffered < BUFFER
    }

    fn read_from(&mut self, mut from: &TcpStream, scratch: &mut [u8]) -> bool {
        let item = match from.read(scratch) {
            Ok(0) => Item::End,
            Ok(n) => {
                self.buffered += n;
                Item::Data { bytes: scratch[..n].to_vec(), sent: 0 }
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => return false,
            Err(_) => Item::Reset,
        };
        self.read_ended = !matches!(item, Item::Data { .. });
        self.queue.push_back((Instant::now(), item));
        true
    }

    fn due(&self, delay: Duration) -> Option<Instant> {
        if self.blocked {
            return None;
        }
        let (arrived, _) = self.queue.front()?;
        arrived.checked_add(delay) // none: so far away that it is never
    }

    /// An error means that the link is to be reset.
    fn write_to(&mut self, mut to: &TcpStream, delay: Duration, now: Instant) -> Result<(), Closed> {
        self.blocked = false;
        while self.due(delay).is_some_and(|due| due <= now) {
            let Some((_, item)) = self.queue.front_mut() else { break };
            match item {
                Item::Data { bytes, sent } => match to.write(&bytes[*sent..]) {
                    Ok(0) => return Err(Closed),
                    Ok(n) => {
                        *sent += n;
                        self.bytes += n as u64;
                        if *sent < bytes.len() {
                            continue;
                        }
                        self.buffered -= bytes.len();
                    }
                    Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {
                        self.blocked = true;
                        break;
                    }
                    Err(_) => return Err(Closed),
                },
                Item::End => {
                    // It fails if the other side is gone already, which is what we would say.
                    let _ = to.shutdown(Shutdown::Write);
                    self.write_ended = true;
                }
                Item::Reset => return Err(Closed),
            }
            self.queue.pop_front();
        }
        Ok(())
    }
}
