//! `fullbore-fanout`'s `Router`: finding whom a message is for among many rules. An operation is a publish, which three of the
//! rules match, and the taking of the three copies.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, bounded};
use fullbore_fanout::{Pattern, Router};

use super::FITS;
use crate::measure::{Case, Side};

/// Messages between two looks of the receivers.
const BURST: u64 = 64;
const TOPIC: &str = "orders.r17.created";
const MATCHING: [&str; 3] = ["orders.r17.*", "orders.*.created", "#.r17.created"];

/// See the module.
#[must_use]
pub fn cases() -> Vec<Case> {
    vec![
        Case::new("publish, 3 of 10,000 topic rules match", 1, || ours(10_000))
            .against("itself, those 3 rules", || ours(3)),
        Case::new("publish, 3 of 100 topic rules match", 1, || ours(100))
            .against("crossbeam senders, each pattern asked", || linear(100)),
        Case::new("publish to receivers, 3 of 100 match", 1, || ours_received(100))
            .against("crossbeam senders, each pattern asked", || linear(100)),
    ]
}

/// The three that match in the midst of others that come close.
fn patterns(rules: usize) -> Vec<String> {
    let others = (0..rules - MATCHING.len()).map(|n| match n % 4 {
        0 => format!("orders.x{n}.*"),
        1 => format!("orders.*.x{n}"),
        2 => format!("orders.r17.x{n}.#"),
        _ => format!("x{n}.#"),
    });
    let mut patterns: Vec<String> = others.collect();
    for (n, pattern) in MATCHING.into_iter().enumerate() {
        patterns.insert(patterns.len() * (n + 1) / 4, pattern.to_owned());
    }
    patterns
}

type Channel = (String, Sender<Arc<u64>>, Receiver<Arc<u64>>);

/// Where copies come out. To look into thousands of channels that get nothing would hide what is measured.
fn keep(taken: &mut Vec<Receiver<Arc<u64>>>, pattern: &str, receiver: Receiver<Arc<u64>>) {
    if MATCHING.contains(&pattern) {
        taken.push(receiver);
    }
}

/// A channel for each rule.
fn channels(rules: usize) -> Vec<Channel> {
    let channel = |pattern| {
        let (sender, receiver) = bounded(BURST as usize);
        (pattern, sender, receiver)
    };
    patterns(rules).into_iter().map(channel).collect()
}

fn ours(rules: usize) -> Side {
    let router = Router::builder().build().expect(FITS);
    let mut taken = Vec::new();
    for (pattern, sender, receiver) in channels(rules) {
        keep(&mut taken, &pattern, receiver);
        router.route(pattern, sender).expect(FITS);
    }
    in_bursts(
        move |message| {
            let receipt = router.publish(black_box(TOPIC), message).expect("the router is open");
            assert!(receipt.is_complete() && receipt.accepted() == MATCHING.len());
        },
        move || sum(taken.iter().flat_map(Receiver::try_iter)),
    )
}

fn ours_received(rules: usize) -> Side {
    let router = Router::builder().build().expect(FITS);
    let (mut taken, mut others) = (Vec::new(), Vec::new());
    for pattern in patterns(rules) {
        let receiver = router.subscribe(&pattern).capacity(BURST as usize).receiver().expect(FITS);
        if MATCHING.contains(&&*pattern) { &mut taken } else { &mut others }.push(receiver);
    }
    in_bursts(
        move |message| {
            let receipt = router.publish(black_box(TOPIC), message).expect("the router is open");
            assert!(receipt.is_complete() && receipt.accepted() == MATCHING.len());
        },
        move || {
            // They are there, and get nothing.
            black_box(&others);
            sum(taken.iter().flat_map(|receiver| std::iter::from_fn(|| receiver.try_recv().ok())))
        },
    )
}

/// As one would write it: the patterns are read once, and each is asked about each topic.
fn linear(rules: usize) -> Side {
    let (mut routes, mut taken) = (Vec::new(), Vec::new());
    for (pattern, sender, receiver) in channels(rules) {
        keep(&mut taken, &pattern, receiver);
        routes.push((Pattern::new(&pattern).expect(FITS), sender));
    }
    in_bursts(
        move |message| {
            let (topic, message) = (black_box(TOPIC), Arc::new(message));
            for (pattern, sender) in &routes {
                if pattern.matches(topic) {
                    sender.send(Arc::clone(&message)).expect("the receiver is there");
                }
            }
        },
        move || sum(taken.iter().flat_map(Receiver::try_iter)),
    )
}

fn sum(messages: impl Iterator<Item = Arc<u64>>) -> u64 {
    messages.map(|message| *message).sum()
}

/// Publishes messages in bursts and takes the copies of each burst; `take` says what they sum up to.
fn in_bursts(publish: impl Fn(u64) + 'static, take: impl Fn() -> u64 + 'static) -> Side {
    Box::new(move |messages| {
        let began = Instant::now();
        for first in (0..messages).step_by(BURST as usize) {
            let burst = first..messages.min(first + BURST);
            burst.clone().for_each(&publish);
            assert_eq!(take(), MATCHING.len() as u64 * burst.sum::<u64>(), "each message came three times");
        }
        began.elapsed()
    })
}
