//! What happens to tenants, told to three listeners at once: a progress bar, an audit log, counters.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fullbore_core::Overflow;
use fullbore_fanout::{Router, Subscription};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::place::TenantName;

#[derive(Clone, Debug, Serialize)]
pub(crate) struct TenantEvent {
    /// Milliseconds since 1970.
    at_ms: u64,
    tenant: TenantName,
    event: What,
    attempt: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    rows: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum What {
    Migrated,
    Already,
    Retried,
    Dead,
}

impl What {
    fn topic(self) -> &'static str {
        match self {
            What::Migrated => "tenant.done.migrated",
            What::Already => "tenant.done.already",
            What::Retried => "tenant.retried",
            What::Dead => "tenant.done.dead",
        }
    }
}

impl TenantEvent {
    pub(crate) fn new(tenant: &TenantName, event: What, attempt: u32) -> Self {
        let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let at_ms = u64::try_from(at.as_millis()).unwrap_or(u64::MAX);
        Self { at_ms, tenant: Arc::clone(tenant), event, attempt, rows: None, reason: None }
    }

    pub(crate) fn rows(mut self, rows: usize) -> Self {
        self.rows = Some(rows);
        self
    }

    pub(crate) fn reason(mut self, reason: &impl ToString) -> Self {
        self.reason = Some(reason.to_string());
        self
    }
}

/// Events counted by what they say.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) migrated: AtomicU64,
    pub(crate) already: AtomicU64,
    pub(crate) retried: AtomicU64,
    pub(crate) dead: AtomicU64,
}

impl Counters {
    fn count(&self, what: What) {
        let counter = match what {
            What::Migrated => &self.migrated,
            What::Already => &self.already,
            What::Retried => &self.retried,
            What::Dead => &self.dead,
        };
        // ORDERING: Relaxed: read after the subscription was closed, which joins the thread that counts.
        counter.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn get(counter: &AtomicU64) -> u64 {
        counter.load(Ordering::Relaxed)
    }
}

/// The router with its three listeners.
#[derive(Debug)]
pub(crate) struct Listeners {
    pub(crate) router: Router<TenantEvent>,
    pub(crate) subscriptions: Vec<Subscription<TenantEvent>>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) bar: ProgressBar,
}

/// `failed` hears of an audit line that could not be written.
pub(crate) fn listen(
    audit: &Path,
    tenants: usize,
    failed: impl Fn(String) + Send + 'static,
) -> Result<Listeners, String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let router = Router::new();

    // Drawn on standard error, and only on a terminal. It may lag or miss events, never slow anybody down.
    let bar = ProgressBar::new(tenants as u64);
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} tenants  {per_sec}  {elapsed}");
    bar.set_style(style.map_err(|error| text(&error))?);
    let drawn = bar.clone();
    let progress = router
        .subscribe("tenant.done.*")
        .name("progress")
        .capacity(64)
        .overflow(Overflow::DropOldest)
        .run(move |_| drawn.inc(1))
        .map_err(|error| text(&error))?;

    let mut file = OpenOptions::new()
        .create(true)
        .append(true)
        .open(audit)
        .map_err(|error| format!("cannot write the audit log {}: {error}", audit.display()))?;
    let log = router
        .subscribe("tenant.#")
        .name("audit")
        .capacity(4096)
        .overflow(Overflow::BlockFor(Duration::from_secs(30)))
        .run(move |event: Arc<TenantEvent>| {
            // One write for each line, so that a killed run leaves whole lines.
            let written = serde_json::to_vec(&*event).map_err(std::io::Error::from).and_then(|mut line| {
                line.push(b'\n');
                file.write_all(&line)
            });
            if let Err(error) = &written {
                failed(format!("cannot write the audit log: {error}"));
            }
            written
        })
        .map_err(|error| text(&error))?;

    let counters = Arc::new(Counters::default());
    let counting = Arc::clone(&counters);
    let count = router
        .subscribe("tenant.#")
        .name("counters")
        .overflow(Overflow::BlockFor(Duration::from_secs(30)))
        .run(move |event: Arc<TenantEvent>| counting.count(event.event))
        .map_err(|error| text(&error))?;
    Ok(Listeners { router, subscriptions: vec![progress, log, count], counters, bar })
}

/// Tells everybody. A full or closed listener is not the tenant's fault: the router counts what it refused.
pub(crate) fn tell(router: &Router<TenantEvent>, event: TenantEvent) -> Result<(), String> {
    let topic = event.event.topic();
    match router.publish(topic, event) {
        // The progress bar may miss events, and says so; nobody may refuse one.
        Ok(receipt) if receipt.refused().is_empty() => Ok(()),
        Ok(receipt) => Err(format!("an event did not reach {:?}", receipt.refused())),
        Err(error) => Err(error.to_string()),
    }
}
