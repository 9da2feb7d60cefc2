//! The owner and its close.

use std::convert::Infallible;
use std::fmt;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fullbore_core::{
    BuildError, Clock, Close, Crew, Event, Events, Failure, Leftover, Monitor, Undelivered, contain, earlier,
};

use crate::http::config::{MetricsServerBuilder, MetricsServerConfig};
use crate::http::exposition::{Exposition, IntoExposition, Scrape};
use crate::http::stats::MetricsServerStats;
use crate::http::table::Table;
use crate::http::wake::Waker;
use crate::http::{acceptor, worker};

/// How long a thread of ours that is outside user code may take to end beyond the deadline of a close, which should not
/// report it.
const WIND_UP: Duration = Duration::from_secs(1);
/// When the acceptor has not heard it is woken again.
const WAKE_AGAIN: Duration = Duration::from_millis(100);

pub(super) type Render = dyn Fn(&Scrape<'_>) -> Result<Exposition, Failure> + Send + Sync;

/// The owner of an HTTP/1.1 endpoint that Prometheus and its like scrape. Dropping it closes it, see
/// [`on_drop`](MetricsServerBuilder::on_drop).
///
/// It serves `GET` and `HEAD` of one path and a line of text at `/` that says which. It is made to stand in a program
/// that has better things to do: without TLS, without authentication, with limits on everything that a client can take
/// up. To serve the world put a proxy in front.
///
/// ```
/// use fullbore_metrics::{Exposition, MetricsServer, Scrape};
/// use std::io::{Read, Write};
/// use std::net::TcpStream;
///
/// let server = MetricsServer::builder(|_: &Scrape<'_>| Exposition::plain_text("up 1\n".to_owned()))
///     .listen("127.0.0.1:0")
///     .build()?;
/// let mut client = TcpStream::connect(server.local_addr())?;
/// client.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
/// let mut response = String::new();
/// client.read_to_string(&mut response)?;
/// assert!(response.starts_with("HTTP/1.1 200 OK\r\n") && response.ends_with("\r\n\r\nup 1\n"));
/// server.close()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # What it costs
/// A thread that sleeps in `accept`, one worker, and up to [`max_connections`](MetricsServerBuilder::max_connections)
/// workers once there were as many clients at a time; they stay. Nobody wakes up while nobody connects. Each connection
/// serves one request.
///
/// # When too many connect
/// A newcomer that finds no place waits a tenth of a second for one. Then the oldest connection that has not sent its
/// whole request is cut; at once, if it is older than that, or if nobody was answered since the last newcomer waited in
/// vain. If all are being answered the newcomer gets a 503; at once, if they have been for longer than that. So clients
/// that send slowly, or nothing, cannot keep others out; clients that take their responses slowly can, for the
/// [`response_timeout`](MetricsServerBuilder::response_timeout).
#[must_use = "dropping the server closes it"]
pub struct MetricsServer {
    shared: Arc<Shared>,
    address: SocketAddr,
}

impl MetricsServer {
    /// Describes a server. `render` makes the page for each scrape, on a thread of the server and possibly on several
    /// at a time. It may return an [`Exposition`], or a `Result` with one. While it is at work nothing but its own
    /// client waits, but no timeout can interrupt it. If it fails or panics that client gets a 500.
    pub fn builder<F, O>(render: F) -> MetricsServerBuilder
    where
        F: Fn(&Scrape<'_>) -> O + Send + Sync + 'static,
        O: IntoExposition,
    {
        MetricsServerBuilder::new(Arc::new(move |scrape: &Scrape<'_>| render(scrape).into_exposition()))
    }

    pub(super) fn start(
        config: MetricsServerConfig,
        clock: Clock,
        listener: TcpListener,
        render: Arc<Render>,
    ) -> Result<Self, BuildError> {
        let parts = listener.local_addr().and_then(|address| Ok((address, Waker::new(&listener)?)));
        let (address, waker) = parts.map_err(|error| {
            BuildError::config("listen", &config.listen, format!("an address that can be listened on: {error}"))
        })?;
        // Whatever fails from here on, dropping it ends what has begun.
        let server = Self { shared: Arc::new(Shared::new(config, clock)), address };
        let shared = &server.shared;
        worker::spawn(shared, &render)?;
        {
            let mut table = shared.monitor.lock();
            table.workers = 1;
            table.waker = Some(Arc::new(waker));
        }
        let accepting = Arc::clone(shared);
        let spawned = shared.crew.spawn(move || {
            acceptor::run(&accepting, listener, &render);
            accepting.user_code(move || drop(render));
        });
        if let Err(error) = spawned {
            shared.monitor.lock().waker = None;
            return Err(error);
        }
        Ok(server)
    }

    /// Where it listens; the port that was found, if port 0 was asked for.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Its counts so far.
    #[must_use]
    pub fn stats(&self) -> MetricsServerStats {
        self.shared.stats()
    }

    /// Stops listening, lets responses that are on their way come to their end, and waits until the port is free and
    /// all threads have ended. A connection in the middle of its request is closed. Idempotent.
    ///
    /// # Errors
    /// In the renderer, where it cannot wait. Or if another [`close_within`](Self::close_within) meanwhile cut
    /// responses.
    ///
    /// # Deadlock
    /// Never ends if the renderer never returns; [`close_within`](Self::close_within) does.
    pub fn close(&self) -> Result<(), Undelivered<Infallible>> {
        self.shared.close(None)
    }

    /// As [`close`](Self::close), for at most `limit`: then all connections are cut. The report counts the responses
    /// among them and names the threads that are still in the renderer.
    ///
    /// # Errors
    /// What was left when the time was up; as [`close`](Self::close).
    pub fn close_within(&self, limit: Duration) -> Result<(), Undelivered<Infallible>> {
        self.shared.close_within(limit)
    }

    /// Its part in a [`Shutdown`](fullbore_core::Shutdown): register it last, so that the end of the others can be
    /// seen. It does not keep the server open.
    #[must_use]
    pub fn closer(&self) -> impl Close + use<> {
        Closer { shared: Arc::clone(&self.shared) }
    }
}

impl Drop for MetricsServer {
    fn drop(&mut self) {
        // What was left has been said in the events; there is nobody else to tell.
        self.shared.close_within(self.shared.config.on_drop.budget()).ok();
    }
}

impl fmt::Debug for MetricsServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MetricsServer").field("address", &self.address).finish_non_exhaustive()
    }
}

struct Closer {
    shared: Arc<Shared>,
}

impl Close for Closer {
    fn name(&self) -> String {
        self.shared.config.name.clone()
    }

    fn close_within(&self, limit: Duration) -> Leftover {
        self.shared.close_within(limit).into()
    }
}

/// What the owner and the threads have in common. Not the renderer: what it has captured goes with the last thread.
pub(super) struct Shared {
    pub(super) monitor: Monitor<Table>,
    pub(super) crew: Crew,
    pub(super) config: MetricsServerConfig,
    events: Events,
}

impl Shared {
    pub(super) fn new(config: MetricsServerConfig, clock: Clock) -> Self {
        Self {
            monitor: Monitor::new(Table::default(), clock.clone()),
            crew: Crew::new("metrics", &config.name, clock),
            events: Events::new("metrics", &config.name),
            config,
        }
    }

    pub(super) fn stats(&self) -> MetricsServerStats {
        let table = self.monitor.lock();
        MetricsServerStats { open: table.open() as u64, ..table.stats }
    }

    /// Emits an event. Its text may be the user's, and the subscriber is: neither may end a thread of ours.
    pub(super) fn tell<D: fmt::Display>(&self, event: Event, detail: impl FnOnce() -> D) {
        contain(|| self.events.emit(event, detail)).ok();
    }

    /// Runs the user's destructors where a panic has nobody to go to.
    pub(super) fn user_code(&self, f: impl FnOnce()) {
        if let Err(panicked) = contain(f) {
            self.tell(Event::Panic, || panicked);
        }
    }

    /// Lets everybody know, and waits for nobody.
    pub(super) fn close_now(&self) {
        let mut table = self.monitor.lock();
        table.close();
        table.notify_all(|table| &mut table.work);
        table.notify_all(|table| &mut table.place);
    }

    fn close_within(&self, limit: Duration) -> Result<(), Undelivered<Infallible>> {
        self.close(self.monitor.clock().after(limit))
    }

    /// On a thread of its own it waits for nothing.
    fn close(&self, deadline: Option<Instant>) -> Result<(), Undelivered<Infallible>> {
        let clock = self.monitor.clock();
        let inside = self.crew.is_member();
        let deadline = if inside { Some(clock.now()) } else { deadline };
        let wind_up = |inside: bool| match (deadline, clock.after(WIND_UP)) {
            _ if inside => deadline,
            (Some(deadline), Some(wound_up)) => Some(deadline.max(wound_up)),
            _ => None,
        };
        self.close_now();
        self.end_acceptor(wind_up(inside));
        let (answering, rendering, accepting) = {
            let mut table = self.monitor.lock();
            let drained = table.wait_until(|table| &mut table.ended, deadline, |table| table.is_empty());
            let (answering, rendering) = if drained { (0, 0) } else { table.cut() };
            (answering, rendering, usize::from(table.waker.is_some()))
        };
        let stuck = if inside {
            Vec::new()
        } else if rendering + accepting == 0 {
            // Only the destructor of what the renderer has captured can use this up.
            self.crew.join(wind_up(inside))
        } else {
            // The others have nothing to wait for; of the renderer's captures these still hold a part.
            self.crew.wait_for_all_but(rendering + accepting);
            self.crew.join(deadline)
        };
        if answering > 0 || !stuck.is_empty() {
            self.tell(Event::Abandoned, || format!("{answering} responses cut, {} threads left behind", stuck.len()));
        }
        Undelivered::new(Vec::new(), answering, stuck).into_result()
    }

    /// Wakes the acceptor until it has heard or `until` has come.
    fn end_acceptor(&self, until: Option<Instant>) {
        loop {
            let Some(waker) = self.monitor.lock().waker.clone() else { return };
            waker.wake();
            drop(waker);
            let again = earlier(self.monitor.clock().after(WAKE_AGAIN), until);
            let mut table = self.monitor.lock();
            let heard = table.wait_until(|table| &mut table.ended, again, |table| table.waker.is_none());
            if heard || until.is_some_and(|until| until <= table.now()) {
                return;
            }
        }
    }
}
