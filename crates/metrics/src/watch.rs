//! A live view for a terminal.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use fullbore_core::{BuildError, Clock, contain};
use parking_lot::Mutex;

use crate::registry::Registry;
use crate::station::{Station, StationId};
use crate::ticker::Ticker;
use crate::window::Windows;

/// Prints a registry again and again until it is closed or dropped.
#[derive(Debug)]
pub struct Watch {
    ticker: Ticker,
    /// Why it has stopped by itself.
    failed: Arc<Mutex<Option<io::Error>>>,
}

impl Registry {
    /// Prints the table to standard error every `period`, with what each station did in the last 1, 10 and 60 seconds, until
    /// the [`Watch`] is dropped. On a terminal, each one takes the place of the one before.
    ///
    /// # Errors
    /// If `period` is zero, or there is no thread to be had.
    pub fn watch(&self, period: Duration) -> Result<Watch, BuildError> {
        let terminal = io::stderr().is_terminal();
        self.print(period, Clock::Real, terminal, io::stderr())
    }

    /// The same, to a writer of your choice and on a clock of your choice, one table after the other. An error or a panic of
    /// the writer ends it; [`Watch::close`] tells.
    ///
    /// # Errors
    /// As [`watch`](Self::watch).
    pub fn watch_to(
        &self,
        period: Duration,
        clock: Clock,
        writer: impl Write + Send + 'static,
    ) -> Result<Watch, BuildError> {
        self.print(period, clock, false, writer)
    }

    fn print(
        &self,
        period: Duration,
        clock: Clock,
        terminal: bool,
        mut writer: impl Write + Send + 'static,
    ) -> Result<Watch, BuildError> {
        let failed = Arc::new(Mutex::new(None));
        let (registry, its_failed) = (self.clone(), Arc::clone(&failed));
        let mut history = History { clock: clock.clone(), windows: HashMap::new() };
        let ticker = Ticker::start("watch", clock, period, move || {
            // Home and clear: the cursor does not flicker over what is there.
            let clear = if terminal { "\x1b[H\x1b[2J" } else { "" };
            let text = history.text(&registry);
            let written =
                contain(|| writer.write_all(format!("{clear}{text}\n").as_bytes()).and_then(|()| writer.flush()));
            if let Err(error) = written.unwrap_or_else(|panicked| Err(io::Error::other(panicked.to_string()))) {
                *its_failed.lock() = Some(error);
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        })?;
        Ok(Watch { ticker, failed })
    }
}

impl Watch {
    /// Ends it. Idempotent.
    ///
    /// # Errors
    /// Why it had ended before, if the writer has failed; told once.
    pub fn close(&self) -> io::Result<()> {
        self.ticker.close(None);
        self.failed.lock().take().map_or(Ok(()), Err)
    }

    /// As [`close`](Self::close), for at most `limit`.
    ///
    /// # Errors
    /// As [`close`](Self::close), and [`io::ErrorKind::TimedOut`] if the writer is still at it then.
    pub fn close_within(&self, limit: Duration) -> io::Result<()> {
        let deadline = self.ticker.clock().after(limit);
        if let Some(thread) = self.ticker.close(deadline).first() {
            return Err(io::Error::new(io::ErrorKind::TimedOut, format!("{thread} is still writing")));
        }
        self.failed.lock().take().map_or(Ok(()), Err)
    }
}

/// The windows of all stations of a registry.
struct History {
    clock: Clock,
    windows: HashMap<StationId, Windows>,
}

impl History {
    fn text(&mut self, registry: &Registry) -> String {
        let stations = registry.stations();
        self.windows.retain(|id, _| stations.iter().any(|station| station.id() == *id));
        let mut text = registry.table().to_string();
        for station in &stations {
            let windows = self.windows.entry(station.id());
            let windows = windows.or_insert_with(|| Windows::with_clock(station, self.clock.clone()));
            windows.tick();
            rates(&mut text, station, windows);
        }
        text
    }
}

/// A line on the last 1, 10 and 60 seconds, as far as they are known.
fn rates(text: &mut String, station: &Station, windows: &Windows) {
    let spans = [1, 10, 60].map(|seconds| (seconds, windows.over(Duration::from_secs(seconds))));
    if spans.iter().all(|(_, window)| window.is_none()) {
        return;
    }
    let name: String =
        station.name().chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect();
    let _ = write!(text, "{name}:");
    for (seconds, window) in spans {
        if let Some(window) = window {
            let (rate, busy) = (window.throughput(), 100.0 * window.utilisation());
            let _ = write!(text, "  {seconds} s {rate:.1}/s {busy:.0} % busy");
        }
    }
    text.push('\n');
}
