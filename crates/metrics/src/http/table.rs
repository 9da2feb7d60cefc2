//! Who is connected, how far each has come, and who has to go when there are too many.

use std::collections::VecDeque;
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fullbore_core::Waiters;

use crate::http::stats::{End, MetricsServerStats};
use crate::http::wake::Waker;

/// How long a newcomer waits for a place before somebody has to go, and how old a request has to be before its sender
/// is slow. Longer than an honest client takes from connecting to the end of its request, so that a burst of them is
/// served one after the other; short beside the patience of whoever waits.
pub(super) const PATIENCE: Duration = Duration::from_millis(100);

/// How far a connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Its request is not complete. May have to go.
    Reading,
    /// In user code.
    Rendering,
    /// The response is on its way.
    Writing,
    /// Answered and counted; we only let the client read that before its socket goes. May have to go.
    Lingering,
}

#[derive(Debug)]
struct Connection {
    id: u64,
    stream: Arc<TcpStream>,
    phase: Phase,
    /// The beginning of the request, or of the answer.
    since: Instant,
}

/// A connection for a worker.
#[derive(Debug)]
pub(super) struct Ticket {
    pub(super) id: u64,
    pub(super) stream: Arc<TcpStream>,
}

#[derive(Debug, Default)]
pub(super) struct Table {
    /// By arrival. One that was evicted is not here any more, while its worker may still be on the way to notice.
    connections: Vec<Connection>,
    /// Those that no worker has yet.
    ready: VecDeque<Ticket>,
    /// They have their 503 and would lose it if their sockets went while a request comes in.
    turned_away: VecDeque<Arc<TcpStream>>,
    next_id: u64,
    /// Threads that serve; at least as many as connections.
    pub(super) workers: usize,
    /// Nobody has been answered since a newcomer waited in vain: those who are slow have company, and go at once.
    impatient: bool,
    pub(super) closed: bool,
    /// Nothing is answered any more.
    cut: bool,
    /// There as long as the acceptor is.
    pub(super) waker: Option<Arc<Waker>>,
    pub(super) stats: MetricsServerStats,
    /// Workers, for `ready`.
    pub(super) work: Waiters,
    /// The acceptor, for a place or the close.
    pub(super) place: Waiters,
    /// Closers, for the end of connections and of the acceptor.
    pub(super) ended: Waiters,
}

impl Table {
    pub(super) fn is_full(&self) -> bool {
        self.connections.len() >= self.workers
    }

    /// Whether a newcomer gets a place without harm to anybody: one is free, or its holder has been answered.
    pub(super) fn has_place(&self) -> bool {
        !self.is_full() || self.connections.iter().any(|connection| connection.phase == Phase::Lingering)
    }

    /// Whether a newcomer that finds no place should wait for one: nobody who may have to go has been slow, or if all
    /// are being answered, at least one of them has not been for long.
    pub(super) fn is_worth_waiting(&self, now: Instant) -> bool {
        let is_young = |one: &Connection| now.saturating_duration_since(one.since) < PATIENCE;
        match self.victim().map(|at| &self.connections[at]) {
            Some(victim) => is_young(victim) && !self.impatient,
            None => self.connections.iter().any(is_young),
        }
    }

    pub(super) fn waited_in_vain(&mut self) {
        self.impatient = true;
    }

    fn victim(&self) -> Option<usize> {
        let oldest = |phase| self.connections.iter().position(|connection| connection.phase == phase);
        oldest(Phase::Lingering).or_else(|| oldest(Phase::Reading))
    }

    /// Cuts the oldest connection that is not being answered; `false` if there is none.
    pub(super) fn evict(&mut self) -> bool {
        let Some(at) = self.victim() else { return false };
        let victim = self.connections.remove(at);
        self.ready.retain(|ticket| ticket.id != victim.id);
        if victim.phase == Phase::Reading {
            self.stats.count(End::Evicted);
        }
        // Its worker finds the end of the stream. A failure means that the client was faster.
        victim.stream.shutdown(Shutdown::Both).ok();
        true
    }

    pub(super) fn admit(&mut self, stream: TcpStream, now: Instant) {
        let (id, stream) = (self.next_id, Arc::new(stream));
        self.next_id += 1;
        self.ready.push_back(Ticket { id, stream: Arc::clone(&stream) });
        self.connections.push(Connection { id, stream, phase: Phase::Reading, since: now });
    }

    /// Keeps the socket of a client that was sent a 503 until the next response is out; not more of them than places.
    pub(super) fn turn_away(&mut self, stream: TcpStream) {
        if self.turned_away.len() >= self.workers {
            self.turned_away.pop_front();
        }
        if !self.closed {
            self.turned_away.push_back(Arc::new(stream));
        }
    }

    pub(super) fn next(&mut self) -> Option<Ticket> {
        self.ready.pop_front()
    }

    /// Begins the answer to a request, from when on the connection is not evicted; `false` if it is not to be answered
    /// any more. After a close only a request that is `whole` is: the others were ended by us.
    pub(super) fn answer(&mut self, id: u64, whole: bool, now: Instant) -> bool {
        if self.closed && !whole {
            return false;
        }
        if let Some(connection) = self.connections.iter_mut().find(|connection| connection.id == id) {
            connection.since = now;
        }
        self.move_on(id, if whole { Phase::Rendering } else { Phase::Writing })
    }

    /// Moves a connection on; `false` if it was cut.
    pub(super) fn move_on(&mut self, id: u64, phase: Phase) -> bool {
        if self.cut {
            return false;
        }
        let connection = self.connections.iter_mut().find(|connection| connection.id == id);
        connection.map(|connection| connection.phase = phase).is_some()
    }

    /// Counts a connection as ended and leaves it in place; `false` if it should go at once.
    pub(super) fn linger(&mut self, id: u64, end: End) -> bool {
        let lingers = !self.closed && self.move_on(id, Phase::Lingering);
        if lingers {
            self.stats.count(end);
            self.impatient = false;
        }
        lingers
    }

    /// Takes a connection out, and returns what is to be dropped without the lock.
    pub(super) fn finish(&mut self, id: u64, end: End) -> VecDeque<Arc<TcpStream>> {
        let mut gone = std::mem::take(&mut self.turned_away);
        // It was evicted, and counted, if it is not there.
        if let Some(at) = self.connections.iter().position(|connection| connection.id == id) {
            let connection = self.connections.remove(at);
            if connection.phase != Phase::Lingering {
                self.stats.count(end);
            }
            if !matches!(end, End::TimedOut | End::Disconnected) {
                self.impatient = false;
            }
            gone.push_back(connection.stream);
        }
        gone
    }

    pub(super) fn is_empty(&self) -> bool {
        self.connections.is_empty()
    }

    pub(super) fn open(&self) -> usize {
        self.connections.iter().filter(|connection| connection.phase != Phase::Lingering).count()
    }

    /// No newcomers, and no waiting for requests. What a client has sent by now can still be read (on Linux), so a
    /// request that is complete is answered.
    pub(super) fn close(&mut self) {
        self.closed = true;
        self.turned_away.clear();
        for connection in &self.connections {
            if matches!(connection.phase, Phase::Reading | Phase::Lingering) {
                connection.stream.shutdown(Shutdown::Read).ok();
            }
        }
    }

    /// Cuts everybody. Returns how many were being answered, and how many of those are in user code.
    pub(super) fn cut(&mut self) -> (usize, usize) {
        self.cut = true;
        let (mut answering, mut rendering) = (0, 0);
        for connection in &self.connections {
            connection.stream.shutdown(Shutdown::Both).ok();
            answering += usize::from(matches!(connection.phase, Phase::Rendering | Phase::Writing));
            rendering += usize::from(connection.phase == Phase::Rendering);
        }
        (answering, rendering)
    }
}
