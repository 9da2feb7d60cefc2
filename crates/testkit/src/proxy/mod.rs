//! A faulty network in front of a server.

mod control;
mod engine;
mod link;

use std::{
    fmt, io,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    os::unix::net::UnixStream,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

pub use control::ProxyStats;
use control::Shared;
use engine::Engine;

use crate::port::PortLease;

/// A stranger may take a port between our look at it and the bind.
const PORT_ATTEMPTS: usize = 16;

/// A TCP proxy on 127.0.0.1 that delays, cuts, swallows and refuses when told to.
///
/// Each switch is in force when its method returns, for open connections and new ones. Faults add up. Bytes are never
/// reordered or altered, and lost only with their connection.
///
/// One thread serves all connections and sleeps while nothing moves. It is joined on drop, which closes all connections.
///
/// ```no_run
/// use std::time::Duration;
///
/// # fn main() -> std::io::Result<()> {
/// # let server: std::net::SocketAddr = ([127, 0, 0, 1], 6379).into();
/// let proxy = fullbore_testkit::TcpProxy::start(server)?;
/// // ... connect to proxy.addr(), then:
/// proxy.delay(Duration::from_millis(5));
/// proxy.cut();
/// assert!(proxy.wait_for(Duration::from_secs(30), |stats| stats.accepted == 2)); // the client came back
/// # Ok(())
/// # }
/// ```
pub struct TcpProxy {
    shared: Arc<Shared>,
    addr: SocketAddr,
    upstream: SocketAddr,
    thread: Option<JoinHandle<()>>,
    /// Keeps the port for the time after [`TcpProxy::refuse`].
    _port: PortLease,
}

impl TcpProxy {
    /// Starts one in front of `upstream`, which need not be up.
    ///
    /// # Errors
    /// If no port is free or no thread can be started.
    pub fn start(upstream: SocketAddr) -> io::Result<Self> {
        static STARTED: AtomicU64 = AtomicU64::new(0);

        let (port, listener) = listen()?;
        let addr = listener.local_addr()?;
        let (alarm, wake) = UnixStream::pair()?;
        let shared = Arc::new(Shared::new(alarm)?);
        let engine = Engine::new(Arc::clone(&shared), wake, listener, upstream)?;
        let n = STARTED.fetch_add(1, Ordering::Relaxed);
        let thread = thread::Builder::new().name(format!("fullbore-testkit-proxy-{n}")).spawn(move || engine.run())?;
        Ok(Self { shared, addr, upstream, thread: Some(thread), _port: port })
    }

    /// Where clients connect to; the same for its whole life.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The server behind it.
    #[must_use]
    pub fn upstream(&self) -> SocketAddr {
        self.upstream
    }

    /// Every byte arrives this much later, in each direction (a round trip takes twice as long); bytes that follow each
    /// other do so in the delayed stream too, so throughput stays. Applies to bytes that are on their way already: with a
    /// shorter delay, or zero, those that are due by now go out. Default: zero.
    ///
    /// # Panics
    /// If the proxy's thread has panicked.
    pub fn delay(&self, delay: Duration) {
        self.shared.order(|orders| orders.faults.delay = delay);
    }

    /// Closes all current connections at once, as a crashed router would: both sides get a reset, bytes on their way are
    /// lost. New ones are served.
    ///
    /// # Panics
    /// If the proxy's thread has panicked.
    pub fn cut(&self) {
        self.shared.order(|orders| orders.cuts += 1);
    }

    /// While on, connections are accepted and stay open, and nothing passes, in either direction: no bytes, no end of
    /// stream, no reset. When it is switched off everything that was held passes, in order, as after a network partition.
    /// Default: off.
    ///
    /// # Panics
    /// If the proxy's thread has panicked.
    pub fn black_hole(&self, on: bool) {
        self.shared.order(|orders| orders.faults.black_hole = on);
    }

    /// While on, new connections are refused, as by a server that is down; open ones live on (see [`TcpProxy::cut`]). Its
    /// port stays reserved. Default: off.
    ///
    /// # Panics
    /// If the proxy's thread has panicked: also if a stranger took the port, so that it cannot be listened on again.
    pub fn refuse(&self, on: bool) {
        self.shared.order(|orders| orders.faults.refuse = on);
    }

    /// What has happened so far.
    #[must_use]
    pub fn stats(&self) -> ProxyStats {
        self.shared.stats()
    }

    /// Waits until `condition` holds of what has happened, for at most `within`; returns whether it came to hold. Woken by
    /// the event, so no test needs to sleep.
    #[must_use]
    pub fn wait_for(&self, within: Duration, condition: impl FnMut(&ProxyStats) -> bool) -> bool {
        self.shared.wait_for(within, condition)
    }
}

impl fmt::Debug for TcpProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TcpProxy")
            .field("addr", &self.addr)
            .field("upstream", &self.upstream)
            .field("faults", &self.shared.faults())
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}

impl Drop for TcpProxy {
    fn drop(&mut self) {
        self.shared.stop();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // its panic has been printed, and told to whoever used the proxy
        }
    }
}

fn listen() -> io::Result<(PortLease, TcpListener)> {
    let mut attempt = 0;
    loop {
        attempt += 1;
        let port = PortLease::acquire()?;
        match TcpListener::bind((Ipv4Addr::LOCALHOST, port.port())) {
            Ok(listener) => return Ok((port, listener)),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && attempt < PORT_ATTEMPTS => {}
            Err(error) => return Err(error),
        }
    }
}
