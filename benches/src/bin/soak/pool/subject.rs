//! Both kinds of pool, as the stress sees them.

use std::time::{Duration, Instant};

use fullbore_core::{BuildError, Undelivered};
use fullbore_metrics::Station;
use fullbore_pool::{
    Background, Checkout, Config, Connection, GetError, Key, KeyedManager, KeyedPool, Pool, RetainResult, Single,
    Stats, Status,
};

use super::server::{Client, Down, Link};

pub(super) type Guard<S> = Connection<<S as Subject>::Key, <S as Subject>::Manager>;

/// A pool whose connections are named by a number.
pub(super) trait Subject: Clone + Send + Sync + Sized + 'static {
    type Key: Key;
    type Manager: KeyedManager<Self::Key, Connection = Link, Error = Down>;
    const KEYED: bool;

    fn build(config: Config, background: &Background, client: Client) -> Result<Self, BuildError>;
    fn get(&self, key: u64) -> Result<Guard<Self>, GetError<Down>>;
    fn get_deadline(&self, key: u64, deadline: Instant) -> Result<Guard<Self>, GetError<Down>>;
    fn try_get(&self, key: u64) -> Result<Guard<Self>, GetError<Down>>;
    fn with(&self, key: u64, f: impl FnOnce(&mut Link)) -> Result<(), GetError<Down>>;
    fn retain(&self, keep: impl FnMut(&mut Link) -> bool) -> RetainResult<Link>;
    fn pause(&self);
    fn pause_within(&self, limit: Duration) -> Result<(), Undelivered<()>>;
    fn resume(&self);
    fn resize(&self, max_size: usize);
    fn soft_evict(&self);
    fn close(&self);
    fn close_within(&self, limit: Duration) -> Result<(), Undelivered<()>>;
    fn status(&self) -> Status;
    fn stats(&self) -> Stats;
    fn station(&self) -> &Station;
    fn checkouts(&self) -> Vec<Checkout>;
    /// Looks at all there is to look at.
    fn look(&self);
}

/// What the two have in common.
macro_rules! forward {
    () => {
        fn pause(&self) {
            self.pause();
        }
        fn pause_within(&self, limit: Duration) -> Result<(), Undelivered<()>> {
            self.pause_within(limit)
        }
        fn resume(&self) {
            self.resume();
        }
        fn resize(&self, max_size: usize) {
            self.resize(max_size);
        }
        fn soft_evict(&self) {
            self.soft_evict();
        }
        fn close(&self) {
            self.close();
        }
        fn close_within(&self, limit: Duration) -> Result<(), Undelivered<()>> {
            self.close_within(limit)
        }
        fn status(&self) -> Status {
            self.status()
        }
        fn stats(&self) -> Stats {
            self.stats()
        }
        fn station(&self) -> &Station {
            self.station()
        }
        fn checkouts(&self) -> Vec<Checkout> {
            self.checkouts()
        }
    };
}

impl Subject for Pool<Client> {
    type Key = ();
    type Manager = Single<Client>;
    const KEYED: bool = false;

    fn build(config: Config, background: &Background, client: Client) -> Result<Self, BuildError> {
        Pool::builder(client).config(config).background(background).build()
    }
    fn get(&self, _: u64) -> Result<Guard<Self>, GetError<Down>> {
        self.get()
    }
    fn get_deadline(&self, _: u64, deadline: Instant) -> Result<Guard<Self>, GetError<Down>> {
        self.get_deadline(deadline)
    }
    fn try_get(&self, _: u64) -> Result<Guard<Self>, GetError<Down>> {
        self.try_get()
    }
    fn with(&self, _: u64, f: impl FnOnce(&mut Link)) -> Result<(), GetError<Down>> {
        self.with(f)
    }
    fn retain(&self, mut keep: impl FnMut(&mut Link) -> bool) -> RetainResult<Link> {
        self.retain(|link, _| keep(link))
    }
    fn look(&self) {
        drop((self.checkouts(), self.is_closed(), format!("{self:?}"), self.closer(), self.clone()));
    }
    forward!();
}

impl Subject for KeyedPool<u64, Client> {
    type Key = u64;
    type Manager = Client;
    const KEYED: bool = true;

    fn build(config: Config, background: &Background, client: Client) -> Result<Self, BuildError> {
        KeyedPool::builder(client).config(config).background(background).build()
    }
    fn get(&self, key: u64) -> Result<Guard<Self>, GetError<Down>> {
        self.get(&key)
    }
    fn get_deadline(&self, key: u64, deadline: Instant) -> Result<Guard<Self>, GetError<Down>> {
        self.get_deadline(&key, deadline)
    }
    fn try_get(&self, key: u64) -> Result<Guard<Self>, GetError<Down>> {
        self.try_get(&key)
    }
    fn with(&self, key: u64, f: impl FnOnce(&mut Link)) -> Result<(), GetError<Down>> {
        self.with(&key, f)
    }
    fn retain(&self, mut keep: impl FnMut(&mut Link) -> bool) -> RetainResult<Link> {
        self.retain(|_, link, _| keep(link))
    }
    fn look(&self) {
        drop((self.checkouts(), self.is_closed(), format!("{self:?}"), self.closer(), self.top_keys(), self.clone()));
    }
    forward!();
}
