//! A service that Prometheus can scrape: stations, a family of counters, an alarm, an account of what its threads do.
//!
//! `cargo run --release --example serve_metrics` works for a moment, scrapes itself once and ends.

use std::error::Error;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::Duration;

use fullbore::metrics::activity::{self, Activity};
use fullbore::metrics::{Alarm, Alarms, MeasureExt, OpenMetrics, Registry, Station};

// ANCHOR: body
static PARSE: Station = Station::named("parse");
static STORE: Station = Station::named("store");

fn main() -> Result<(), Box<dyn Error>> {
    let registry = Registry::global();
    PARSE.feeds(&STORE);
    registry.add(&PARSE).add(&STORE);
    let lines = registry.counter_family("lines", ["table"])?;
    let endpoint = OpenMetrics::new(registry).serve().listen("127.0.0.1:0").build()?;
    let failing = Alarm::on_window("lines fail", &PARSE, |window| window.failure_ratio())
        .above(0.1)
        .notify(|edge| eprintln!("{edge}"));
    let alarms = Alarms::builder().every(Duration::from_millis(50)).alarm(failing).build()?;

    thread::scope(|scope| {
        for table in ["users", "orders"] {
            let lines = lines.with([table]);
            scope.spawn(move || {
                let parsed = (0..5000).map(|n| if n % 5 == 0 { Err("no number") } else { Ok(n) }).measured(&PARSE);
                for row in parsed.flatten() {
                    STORE.run(|| activity::within(Activity::Io, || write(row)));
                    lines.inc();
                }
            });
        }
    });
    print!("{}", registry.table());
    // ANCHOR_END: body

    let edge = alarms.next_edge(None).ok_or("the alarms have ended")?;
    if !edge.firing || !alarms.firing().contains(&"lines fail".to_owned()) {
        return Err(format!("a fifth of the lines fail: {edge}").into());
    }
    let page = scrape(endpoint.local_addr())?;
    for line in [
        "fullbore_station_failed_total{station=\"parse\",kind=\"custom\"} 2000",
        "fullbore_station_served_total{station=\"store\",kind=\"custom\"} 8000",
        "lines_total{table=\"users\"} 4000",
    ] {
        if !page.lines().any(|each| each == line) {
            return Err(format!("the page has no line {line}\n{page}").into());
        }
    }
    let disk = activity::accounts().of(Activity::Io);
    println!("\n{} of threads' time at input and output; scraped {} bytes", format_args!("{disk:.1?}"), page.len());
    endpoint.close()?;
    Ok(())
}

/// Stands for a write to a disk.
fn write(row: u32) {
    std::hint::black_box(row);
}

fn scrape(from: SocketAddr) -> Result<String, Box<dyn Error>> {
    let mut stream = TcpStream::connect(from)?;
    write!(stream, "GET /metrics HTTP/1.1\r\nHost: {from}\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, page) = answer.split_once("\r\n\r\n").ok_or("no head")?;
    if !head.starts_with("HTTP/1.1 200 ") {
        return Err(head.into());
    }
    Ok(page.to_owned())
}
