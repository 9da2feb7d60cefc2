//! A router: one message to many destinations, each with its own bounded buffer and policy, so that no slow one is in the
//! way of the others.
//!
//! # When to use it
//! When several parts of a program want the same events: a progress bar, an audit log, counters; or the same items: four
//! queues that each do something else with an image. Not to share work among equals (each destination gets *every* message
//! that matches, unless they are a [group](SubscriptionBuilder::group); a queue of work is `fullbore-queue`), and not for one producer and one consumer (a channel).
//!
//! # Example
//! ```
//! use fullbore_core::Overflow;
//! use fullbore_fanout::Router;
//! use std::sync::Arc;
//!
//! let router = Router::<String>::new();
//! let audit = router.subscribe("orders.#").name("audit").run(|event: Arc<String>| println!("{event}"))?;
//! let screen = router.subscribe("#").name("screen").capacity(64).overflow(Overflow::DropOldest).receiver()?;
//!
//! let receipt = router.publish("orders.eu.created", "order 7".to_owned())?;
//! assert_eq!(receipt.accepted(), 2);
//! assert!(receipt.is_complete());
//!
//! router.close()?;
//! assert_eq!(audit.station().snapshot().served, 1);
//! assert_eq!(*screen.recv()?, "order 7");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Guarantees
//! - A message is stored once, whatever the number of destinations.
//! - Each destination has its own bounded buffer and [`Overflow`](fullbore_core::Overflow) policy. A full one delays or
//!   loses its own copies only: the copies of the others are handed over first, also when it makes the publisher wait.
//! - Nothing is lost silently: the [`Receipt`] names who refused and why, each destination's station balances, and the
//!   [dead-letter hook](RouterBuilder::dead_letter) gets what was unroutable, displaced, refused, failed or abandoned.
//! - Each destination gets the messages of one publishing thread in the order of its calls. With [lanes](SubscriptionBuilder::lanes)
//!   those with the same key are handled in that order, also while the number of lanes changes.
//! - [All or nothing](Router::publish_all_or_nothing), where that is asked for: a place is kept everywhere before anybody has it.
//! - A publish costs what its topic and headers cost to look up and what matches, not how many [rules](Rule) there are (predicates
//!   excepted, which are asked one by one).
//! - Publishing works everywhere: from a closure, a sink, the dead-letter hook. Where it would wait for itself it is refused.
//! - Routes come and go without stopping publishers; a subscription that leaves releases those blocked on it.
//! - A panic in a closure costs that message and nothing else; a panic in a sink reaches the publisher after everybody else
//!   has the message.
//!
//! # What it costs
//! One thread for each subscription with a closure, or as many as it asks for (the system's default stack), none for receivers and
//! sinks. A publish reads the router's lock for a moment and takes one lock for each subscription that matches (three with lanes),
//! and allocates the message's `Arc`; with more than four matches, a list of them. Handing a message to a closure allocates one small object. A
//! destination at rest is a station (about 2 KiB); a subscription's buffer is empty and grows up to its capacity with use.
//!
//! # Trade-offs
//! A sink is called on the publisher's thread. A wait for several full
//! destinations is the sum of their waits, unless [`Router::publish_deadline`] caps it. Publishers of one router on many cores
//! share the reading side of one lock. With an ordinary publish some destinations may have a message that others refused; the
//! all-or-nothing one takes each buffer's lock twice.
//!
//! # Fork
//! Build it after `fork`: threads and locks do not survive one.
//!
//! # Features
//! - `serde`: [`Config`] and [`SubscriptionConfig`] from files.
//! - `tracing`: events for dropped, dead and abandoned messages and for panics; closures run in the publisher's span.
#![forbid(unsafe_code)]

mod atomic;
mod buffer;
mod config;
mod dead;
mod error;
mod here;
mod index;
mod jump;
mod lanes;
mod pattern;
mod publish;
mod receipt;
mod receiver;
mod reserve;
mod route;
mod router;
mod rule;
mod shared;
mod sink;
mod subscription;
mod target;

#[doc(inline)]
pub use crate::{
    buffer::Handled,
    config::{Config, RouterBuilder, SubscriptionConfig},
    dead::DeadReason,
    error::{Malformed, Problem, PublishError, RecvError, ResizeError, RouteError},
    pattern::Pattern,
    receipt::{BatchReceipt, Became, Receipt},
    receiver::{Iter, Receiver},
    reserve::{Place, Reserve},
    route::{MappedRouteBuilder, Route, RouteBuilder},
    router::Router,
    rule::{HasHeaders, IntoRule, Rule},
    shared::Stranded,
    sink::RouterSink,
    subscription::{LanesBuilder, ParallelBuilder, Subscription, SubscriptionBuilder},
};
