//! `fullbore-fanout`: a message to many, against a channel for each of them that gets an `Arc`. An operation is a delivery.

use std::iter;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use crossbeam_channel::bounded;
use fullbore_fanout::{Receiver, Router};

use super::{FITS, broadcast};
use crate::measure::{Case, Side, Tally};

/// The subscription's default.
const CAPACITY: usize = 1024;
/// Messages between two looks of a receiver.
const BURST: u64 = 64;
const TOPIC: &str = "prices.eurusd";
const CROSSBEAM: &str = "crossbeam-channel and Arc";

/// See the module.
#[must_use]
pub fn cases() -> Vec<Case> {
    let mut cases = vec![
        receivers("publish and receive, 1 receiver", 1),
        receivers("publish and receive, 4 receivers", 4),
        receivers("publish and receive, 16 receivers", 16),
        Case::new("publish to handled, 4 handlers", 1, || ours_handled(4)).against(CROSSBEAM, || crossbeam_handled(4)),
        Case::new("a delivery, as receivers grow to 16", 1, || ours_received(16))
            .against("itself, 1 receiver", || ours_received(1)),
    ];
    cases.extend(broadcast::cases());
    cases
}

fn receivers(name: &'static str, receivers: u64) -> Case {
    Case::new(name, 1, move || ours_received(receivers)).against(CROSSBEAM, move || crossbeam_received(receivers))
}

/// Publisher and receivers on one thread: what the work costs, without the scheduler's part in it.
fn ours_received(receivers: u64) -> Side {
    let router = Router::new();
    let subscribe = |_| router.subscribe("#").capacity(CAPACITY).receiver().expect(FITS);
    let subscriptions: Vec<Receiver<u64>> = (0..receivers).map(subscribe).collect();
    in_bursts(
        receivers,
        move |message| {
            assert!(router.publish(TOPIC, message).expect("the router is open").is_complete());
        },
        move || {
            let sum =
                |receiver: &Receiver<u64>| iter::from_fn(|| receiver.try_recv().ok()).map(|message| *message).sum();
            subscriptions.iter().map(sum).collect()
        },
    )
}

fn crossbeam_received(receivers: u64) -> Side {
    let (senders, channels): (Vec<_>, Vec<_>) = (0..receivers).map(|_| bounded::<Arc<u64>>(CAPACITY)).unzip();
    in_bursts(
        receivers,
        move |message| {
            let message = Arc::new(message);
            for sender in &senders {
                sender.send(Arc::clone(&message)).expect("the receiver is there");
            }
        },
        move || channels.iter().map(|channel| channel.try_iter().map(|message| *message).sum()).collect(),
    )
}

/// Publishes messages in bursts and has each burst received; `receive` says what each receiver's messages sum up to.
fn in_bursts(receivers: u64, publish: impl Fn(u64) + 'static, receive: impl Fn() -> Vec<u64> + 'static) -> Side {
    Box::new(move |deliveries| {
        let messages = deliveries.div_ceil(receivers);
        let began = Instant::now();
        for first in (0..messages).step_by(BURST as usize) {
            let burst = first..messages.min(first + BURST);
            burst.clone().for_each(&publish);
            let sum: u64 = burst.sum();
            assert!(receive().iter().all(|received| *received == sum), "every receiver has every message");
        }
        began.elapsed()
    })
}

/// With a thread for each closure.
fn ours_handled(handlers: u64) -> Side {
    let router = Router::new();
    let tally = Arc::new(Tally::default());
    for _ in 0..handlers {
        let handled = Arc::clone(&tally);
        let subscription =
            router.subscribe("#").capacity(CAPACITY).run(move |message: Arc<u64>| handled.add(&[*message]));
        subscription.expect(FITS);
    }
    handled(handlers, tally, move |message| {
        assert!(router.publish(TOPIC, message).expect("the router is open").is_complete());
    })
}

/// Receivers wait once and then drain, as `crossbeam-channel` advises. They end when their senders are dropped.
fn crossbeam_handled(handlers: u64) -> Side {
    let tally = Arc::new(Tally::default());
    let start = |_| {
        let (sender, receiver) = bounded::<Arc<u64>>(CAPACITY);
        let handled = Arc::clone(&tally);
        thread::spawn(move || {
            while let Ok(first) = receiver.recv() {
                iter::once(first).chain(receiver.try_iter()).for_each(|message| handled.add(&[*message]));
            }
        });
        sender
    };
    let senders: Vec<_> = (0..handlers).map(start).collect();
    handled(handlers, tally, move |message| {
        let message = Arc::new(message);
        for sender in &senders {
            sender.send(Arc::clone(&message)).expect("the receiver is there");
        }
    })
}

/// Publishes messages and waits until all are handled.
fn handled(handlers: u64, tally: Arc<Tally>, publish: impl Fn(u64) + 'static) -> Side {
    Box::new(move |deliveries| {
        let messages = deliveries.div_ceil(handlers);
        tally.expect(messages * handlers);
        let began = Instant::now();
        (0..messages).for_each(&publish);
        tally.wait();
        let took = began.elapsed();
        tally.check(messages, handlers);
        took
    })
}
