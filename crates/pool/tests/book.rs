//! The examples of the book's page on the pool, which shows them from here.
#![allow(missing_docs, clippy::unwrap_used)]

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use fullbore_pool::{KeyedManager, KeyedPool, Manager, Pool, WhileDown};

#[derive(Debug)]
struct Down;

impl fmt::Display for Down {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the server is down")
    }
}

impl Error for Down {}

/// A server that is not there: up while its number is even. Connections of an earlier start are dead.
#[derive(Clone, Default)]
struct Server(Arc<AtomicU64>);

struct Client {
    server: Server,
    start: u64,
}

impl Server {
    fn stop(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }

    fn start(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }

    fn client(&self) -> Result<Client, Down> {
        let start = self.0.load(Ordering::SeqCst);
        if start.is_multiple_of(2) { Ok(Client { server: self.clone(), start }) } else { Err(Down) }
    }
}

impl Client {
    fn connect(_params: &str) -> Result<Self, Down> {
        Server::default().client()
    }

    fn ping(&self) -> Result<(), Down> {
        if self.start == self.server.0.load(Ordering::SeqCst) { Ok(()) } else { Err(Down) }
    }

    fn count(&self, table: &str) -> Result<u64, Down> {
        self.ping().map(|()| table.len() as u64)
    }
}

impl Manager for Server {
    type Connection = Client;
    type Error = Down;
    fn connect(&self, _: Duration) -> Result<Client, Down> {
        self.client()
    }
    fn validate(&self, client: &mut Client, _: Duration) -> Result<(), Down> {
        client.ping()
    }
    fn is_broken(&self, client: &mut Client) -> bool {
        client.ping().is_err()
    }
}

#[test]
fn an_outage() -> Result<(), Box<dyn Error>> {
    let server = Server::default();
    // ANCHOR: outage
    let pool = Pool::builder(server.clone()).name("shop").build()?;
    pool.with(|db| db.count("orders"))??;

    server.stop();
    // Used a moment ago, so it was not checked. It is known as broken when it comes back, and closed.
    assert!(pool.with(|db| db.count("orders"))?.is_err());
    // Waited for an attempt, which failed.
    let error = pool.get().unwrap_err();
    assert_eq!(error.to_string(), "cannot connect: the server is down");
    // In the pause after it: told at once, the server does not hear of it.
    let error = pool.get().unwrap_err();
    println!("{error}"); // cannot connect: the server is down (7.5µs ago)
    assert!(error.is_connect() && error.connect_error_age().is_some());

    // Who chose to wait gets a connection as soon as there is one.
    let patient = Pool::builder(server.clone()).while_down(WhileDown::Wait).build()?;
    thread::scope(|scope| {
        let waiter = scope.spawn(|| patient.with(|db| db.count("orders")));
        server.start();
        assert!(waiter.join().unwrap().unwrap().is_ok());
    });
    // ANCHOR_END: outage
    Ok(())
}

// ANCHOR: tenants
struct Tenants;

impl KeyedManager<String> for Tenants {
    type Connection = Client;
    type Error = Down;

    fn connect(&self, tenant: &String, _budget: Duration) -> Result<Client, Down> {
        Client::connect(&format!("dbname={tenant}"))
    }
    fn validate(&self, _: &String, client: &mut Client, _budget: Duration) -> Result<(), Down> {
        client.ping()
    }
}

fn orders(tenants: &[String]) -> Result<u64, Box<dyn Error>> {
    let pool = KeyedPool::builder(Tenants).max_size(64).max_per_key(4).build()?;
    let mut orders = 0;
    for tenant in tenants {
        orders += pool.with(tenant, |client| client.count("orders"))??;
    }
    Ok(orders)
}
// ANCHOR_END: tenants

#[test]
fn thousands_of_tenants() {
    let tenants: Vec<String> = (0..1_000).map(|n| format!("tenant_{n}")).collect();
    assert_eq!(orders(&tenants).unwrap(), 6_000);
}

#[test]
fn what_is_wrong() -> Result<(), Box<dyn Error>> {
    let server = Server::default();
    // ANCHOR: diagnosis
    let pool = Pool::builder(server).name("shop").max_size(1).leak_after(Duration::from_secs(60)).build()?;
    let held = pool.get()?;
    let error = pool.get_deadline(Instant::now() + Duration::from_millis(20)).unwrap_err();
    println!("{error}"); // timed out waiting for a connection: 1 of 1 connections of shop busy, 0 waiting, oldest 0.0ns
    for out in pool.checkouts() {
        println!("connection {} has been out for {:?}, taken by {} at {}", out.id, out.age, out.thread, out.site);
    }
    drop(held);
    println!("{:?}", pool.stats()); // Stats { connected: 1, connect_failures: 0, .. }
    // ANCHOR_END: diagnosis
    assert!(error.to_string().contains("1 of 1 connections of shop busy"), "{error}");
    assert!(pool.checkouts().is_empty());
    Ok(())
}
