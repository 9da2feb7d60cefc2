//! The thread of a proxy: one loop around `poll`.
//!
//! Each turn carries out the orders, passes on what is due, reports, and sleeps until a socket is ready, a delay is over
//! or an order comes. What is not wanted from a socket is not polled for, so that no turn is made for nothing.

use std::{
    io::{self, ErrorKind, Read as _},
    net::{SocketAddr, TcpListener},
    os::unix::net::UnixStream,
    sync::Arc,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};

use super::{
    control::{Faults, Orders, ProxyStats, Shared},
    link::{CHUNK, Link, Upstream},
};

/// A longer delay takes another turn of the loop.
const LONGEST_SLEEP: Duration = Duration::from_secs(3_600);

pub(super) struct Engine {
    shared: Arc<Shared>,
    wake: UnixStream,
    addr: SocketAddr,
    upstream: SocketAddr,
    /// None while new connections are refused.
    listener: Option<TcpListener>,
    links: Vec<Link>,
    faults: Faults,
    cuts: u64,
    stats: ProxyStats,
    scratch: Vec<u8>,
}

/// What `poll` can report about.
#[derive(Clone, Copy)]
enum Source {
    Wake,
    Listener,
    Client(usize),
    Upstream(usize),
}

/// Tells the handle when the thread ends, also by a panic.
struct Obituary(Arc<Shared>);

impl Drop for Obituary {
    fn drop(&mut self) {
        self.0.ended();
    }
}

impl Engine {
    pub(super) fn new(
        shared: Arc<Shared>,
        wake: UnixStream,
        listener: TcpListener,
        upstream: SocketAddr,
    ) -> io::Result<Self> {
        wake.set_nonblocking(true)?;
        listener.set_nonblocking(true)?;
        Ok(Self {
            shared,
            wake,
            addr: listener.local_addr()?,
            upstream,
            listener: Some(listener),
            links: Vec::new(),
            faults: Faults::default(),
            cuts: 0,
            stats: ProxyStats::default(),
            scratch: vec![0; CHUNK],
        })
    }

    /// Until it is told to stop.
    ///
    /// # Panics
    /// If the system does not let it listen, accept or poll: a test must not take that for an intended fault.
    pub(super) fn run(mut self) {
        let _obituary = Obituary(Arc::clone(&self.shared));
        loop {
            let orders = self.shared.orders();
            if orders.stop {
                return;
            }
            self.obey(&orders);
            self.connect();
            self.advance();
            self.stats.open = self.links.len();
            self.stats.held = self.links.iter().map(Link::held).sum();
            self.shared.report(&orders, self.stats);
            for (source, events) in self.sleep() {
                self.handle(source, events);
            }
        }
    }

    fn obey(&mut self, orders: &Orders) {
        if orders.cuts != self.cuts {
            self.cuts = orders.cuts;
            // For its client a connection exists already when the system has taken it, before we have.
            self.accept();
            for link in self.links.drain(..) {
                link.reset();
                self.stats.cut += 1;
            }
        }
        if orders.faults.refuse != self.faults.refuse {
            if orders.faults.refuse {
                self.accept();
                self.listener = None;
            } else {
                let listener = TcpListener::bind(self.addr).expect("the proxy's port, to accept again");
                listener.set_nonblocking(true).expect("a non-blocking listener");
                self.listener = Some(listener);
            }
        }
        self.faults = orders.faults;
    }

    fn accept(&mut self) {
        while let Some(listener) = &self.listener {
            match listener.accept().and_then(|(client, _)| Link::new(client)) {
                Ok(link) => {
                    self.stats.accepted += 1;
                    self.links.push(link);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                // The client went away before we took it.
                Err(error) if matches!(error.kind(), ErrorKind::ConnectionAborted | ErrorKind::Interrupted) => {}
                Err(error) => panic!("the proxy cannot accept: {error}"),
            }
        }
    }

    /// Begins connections to the server, and closes links that it did not accept.
    fn connect(&mut self) {
        if self.faults.black_hole {
            return;
        }
        let upstream = self.upstream;
        self.retain(|link, stats| {
            if matches!(link.upstream, Upstream::Untried) {
                link.connect(upstream);
            }
            let failed = matches!(link.upstream, Upstream::Failed);
            if failed {
                stats.unreachable += 1;
                link.reset();
            }
            !failed
        });
    }

    fn advance(&mut self) {
        let (faults, now) = (self.faults, Instant::now());
        self.retain(|link, stats| {
            let before = (link.up.bytes, link.down.bytes);
            let keep = link.advance(&faults, now).is_ok();
            stats.bytes_up += link.up.bytes - before.0;
            stats.bytes_down += link.down.bytes - before.1;
            keep
        });
    }

    fn retain(&mut self, mut keep: impl FnMut(&mut Link, &mut ProxyStats) -> bool) {
        let stats = &mut self.stats;
        self.links.retain_mut(|link| keep(link, stats));
    }

    /// Waits for what comes next and returns it.
    fn sleep(&mut self) -> Vec<(Source, PollFlags)> {
        let mut sources = vec![Source::Wake];
        let mut fds = vec![PollFd::new(&self.wake, PollFlags::IN)];
        if let Some(listener) = &self.listener {
            sources.push(Source::Listener);
            fds.push(PollFd::new(listener, PollFlags::IN));
        }
        let open = !self.faults.black_hole;
        let mut until: Option<Instant> = None;
        for (n, link) in self.links.iter().enumerate() {
            let client = interest(link.up.wants_more(), open && link.down.blocked);
            if !client.is_empty() {
                sources.push(Source::Client(n));
                fds.push(PollFd::new(&link.client, client));
            }
            let (stream, upstream) = match &link.upstream {
                Upstream::Untried | Upstream::Failed => (None, PollFlags::empty()),
                Upstream::Connecting(stream) => (Some(stream), PollFlags::OUT),
                Upstream::Ready(stream) => (Some(stream), interest(link.down.wants_more(), open && link.up.blocked)),
            };
            if let Some(stream) = stream
                && !upstream.is_empty()
            {
                sources.push(Source::Upstream(n));
                fds.push(PollFd::new(stream, upstream));
            }
            until = [until, link.due(&self.faults)].into_iter().flatten().min();
        }
        let timeout = until.map(|until| {
            let left = until.saturating_duration_since(Instant::now()).min(LONGEST_SLEEP);
            Timespec::try_from(left).expect("an hour fits")
        });
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => panic!("the proxy cannot poll: {error}"),
        }
        self.stats.wakeups += 1;
        let ready = sources.into_iter().zip(fds.iter().map(PollFd::revents));
        ready.filter(|(_, events)| !events.is_empty()).collect()
    }

    fn handle(&mut self, source: Source, events: PollFlags) {
        // A hang-up or an error shows in the read, and where nothing is read in the write of the next turn.
        let readable = events.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR);
        let delayed = !self.faults.delay.is_zero();
        match source {
            Source::Wake => while matches!((&self.wake).read(&mut [0; 64]), Ok(64)) {},
            Source::Listener => self.accept(),
            Source::Client(n) => {
                let link = &mut self.links[n];
                if readable && link.up.wants_more() {
                    self.stats.delayed += u64::from(link.read_client(&mut self.scratch) && delayed);
                }
            }
            Source::Upstream(n) => {
                let link = &mut self.links[n];
                if matches!(link.upstream, Upstream::Connecting(_)) {
                    link.finish_connecting();
                } else if readable && link.down.wants_more() {
                    self.stats.delayed += u64::from(link.read_upstream(&mut self.scratch) && delayed);
                }
            }
        }
    }
}

fn interest(read: bool, write: bool) -> PollFlags {
    let mut flags = PollFlags::empty();
    flags.set(PollFlags::IN, read);
    flags.set(PollFlags::OUT, write);
    flags
}
