//! What the tests of the second tier have in common.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use fullbore_cache::redis::testing::{Lease, Sought, Stored, Tier, Told};
use fullbore_cache::redis::{Postcard, RedisTier, RedisTierBuilder};
use fullbore_testkit::Redis as Server;

/// For waits that end by an event; only a defect lets them run out.
pub(crate) const LONG: Duration = Duration::from_secs(60);
pub(crate) const PREFIX: &str = "test:v1:";

/// What was told, in order, with a way to wait for more.
#[derive(Default)]
pub(crate) struct Diary {
    told: Mutex<VecDeque<String>>,
    more: Condvar,
}

impl Diary {
    fn note(&self, what: String) {
        self.told.lock().unwrap().push_back(what);
        self.more.notify_all();
    }

    /// Waits for `what`, and forgets it and what came before it.
    #[track_caller]
    pub(crate) fn expect(&self, what: &str) {
        let until = Instant::now() + LONG;
        let mut told = self.told.lock().unwrap();
        let mut skipped = Vec::new();
        loop {
            while let Some(next) = told.pop_front() {
                if next == what {
                    return;
                }
                skipped.push(next);
            }
            let left = until.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "never told: {what}; but {skipped:?}");
            told = self.more.wait_timeout(told, left).unwrap().0;
        }
    }

    pub(crate) fn take(&self) -> Vec<String> {
        self.told.lock().unwrap().drain(..).collect()
    }
}

impl Told<String> for Diary {
    fn invalidated(&self, key: &String) {
        self.note(format!("key {key}"));
    }
    fn tag_changed(&self, tag: &str) {
        self.note(format!("tag {tag}"));
    }
    fn flushed(&self) {
        self.note("flushed".into());
    }
    fn lost(&self) {
        self.note("lost".into());
    }
    fn regained(&self) {
        self.note("regained".into());
    }
}

/// A process, as far as Redis can tell.
pub(crate) struct Node {
    pub(crate) tier: Tier<String, String>,
    pub(crate) diary: Arc<Diary>,
}

pub(crate) fn builder(server: &Server) -> RedisTierBuilder {
    // A budget that nothing but a defect exceeds.
    RedisTier::builder().url(server.url()).prefix(PREFIX).budget(LONG)
}

pub(crate) fn start(builder: RedisTierBuilder<Postcard>) -> Node {
    let diary = Arc::new(Diary::default());
    let tier = builder.build().unwrap().connect("test", diary.clone()).unwrap();
    Node { tier, diary }
}

pub(crate) fn node(server: &Server) -> Node {
    start(builder(server))
}

pub(crate) fn stored(value: &str) -> Stored<String> {
    Stored { keep: Some(LONG), ..Stored::new(value.to_owned()) }
}

pub(crate) fn key(name: &str) -> String {
    name.to_owned()
}

/// The name of a key's slot.
pub(crate) fn slot(name: &str) -> String {
    format!("{PREFIX}k:{name}")
}

pub(crate) fn soon() -> Option<Instant> {
    Some(Instant::now() + LONG)
}

#[track_caller]
pub(crate) fn lead(sought: Sought<String>) -> Lease {
    match sought {
        Sought::Lead(lease) => lease,
        other => panic!("no lease: {other:?}"),
    }
}

#[track_caller]
pub(crate) fn value(sought: Sought<String>) -> String {
    match sought {
        Sought::Value(stored) => stored.value,
        other => panic!("no value: {other:?}"),
    }
}

impl Node {
    #[track_caller]
    pub(crate) fn get(&self, name: &str) -> Option<String> {
        self.tier.get(&key(name), None).unwrap().map(|looked| looked.stored.value)
    }
}

/// How often Redis was asked this.
pub(crate) fn calls(server: &Server, command: &str) -> u64 {
    let info: String = redis::cmd("INFO").arg("commandstats").query(&mut server.client()).unwrap();
    let prefix = format!("cmdstat_{command}:calls=");
    let line = info.lines().find_map(|line| line.strip_prefix(&prefix));
    line.map_or(0, |line| line.split(',').next().unwrap().parse().unwrap())
}
