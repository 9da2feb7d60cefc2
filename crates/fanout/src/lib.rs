//! One message to many destinations, so that no slow one is in the way of the others: a [`Router`], with a bounded buffer and
//! a policy for each destination, and a [`Broadcast`], a ring that all its subscribers read.
//!
//! # When to use it
//! When several parts of a program want the same events: a progress bar, an audit log, counters; or the same items: four
//! queues that each do something else with an image. Not to share work among equals (each destination gets *every* message
//! that matches, unless they are a [group](SubscriptionBuilder::group); a queue of work is `fullbore-queue`), and not for one producer
//! and one consumer (a channel).
//!
//! A [`Router`] where destinations are many, want different things, or are sinks and closures; a [`Broadcast`] where all want
//! the same, on threads of their own, and there is much of it: a delivery takes some nanoseconds there.
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
//! And [`Broadcast`] has one of its own.
//!
//! # Guarantees
//! Of both:
//! - A message is stored once, whatever the number of destinations.
//! - Each destination gets the messages of one publishing thread in the order of its calls.
//! - Publishing works everywhere: from a closure, a sink, the dead-letter hook, a subscriber's callback. Where it would wait for
//!   itself it is refused.
//! - Destinations come and go without stopping publishers; a subscription that leaves releases those blocked on it.
//!
//! Of the router:
//! - Each destination has its own bounded buffer and [`Overflow`](fullbore_core::Overflow) policy. A full one delays or
//!   loses its own copies only: the copies of the others are handed over first, also when it makes the publisher wait.
//! - Nothing is lost silently: the [`Receipt`] names who refused and why, each destination's station balances, and the
//!   [dead-letter hook](RouterBuilder::dead_letter) gets what was unroutable, displaced, refused, failed or abandoned.
//! - With [lanes](SubscriptionBuilder::lanes) those with the same key are handled in that order, also while the number of lanes changes.
//! - [All or nothing](Router::publish_all_or_nothing), where that is asked for: a place is kept everywhere before anybody has it.
//! - A publish costs what its topic and headers cost to look up and what matches, not how many [rules](Rule) there are (predicates
//!   excepted, which are asked one by one).
//! - A panic in a closure costs that message and nothing else; a panic in a sink reaches the publisher after everybody else
//!   has the message.
//!
//! Of the broadcast:
//! - Each subscriber has its own lag limit and [`LagPolicy`]. Only one that chose [`LagPolicy::Block`] makes publishers wait; one that
//!   is stuck, even inside a callback with a message in its hands, is in nobody else's way.
//! - What a subscriber loses it is told, how much and where; its station counts it.
//! - All subscribers see the messages in the same order.
//! - A panic in a callback costs that message, and goes on to the subscriber's caller; one in a message's destructor ends there.
//!
//! # What it costs
//! One thread for each subscription with a closure, or as many as it asks for (the system's default stack), none for receivers and
//! sinks. A publish reads the router's lock for a moment and takes one lock for each subscription that matches (three with lanes),
//! and allocates the message's `Arc`; with more than four matches, a list of them. Handing a message to a closure allocates one small object. A
//! destination at rest is a station (about 2 KiB); a subscription's buffer is empty and grows up to its capacity with use.
//!
//! A broadcast has no threads. Its ring grows with use, up to its capacity and a block; messages stay in it, read or not, until their
//! place is needed again. A subscriber at rest is a station and some 600 bytes; a stuck one keeps one block of 16 to 128 messages
//! alive, one with [`LagPolicy::Reject`] up to its lag. A publish by one thread alone takes no lock and no atomic read-modify-write;
//! where several publish in turns, a lock each. To read takes a lock once for a block. Publishers and subscribers that have to wait look
//! for up to 50 microseconds before they sleep, fewer if that has been of no use; idle ones cost nothing.
//!
//! # Trade-offs
//! A sink is called on the publisher's thread. A wait for several full
//! destinations is the sum of their waits, unless [`Router::publish_deadline`] caps it. Publishers of one router on many cores
//! share the reading side of one lock. With an ordinary publish some destinations may have a message that others refused; the
//! all-or-nothing one takes each buffer's lock twice.
//!
//! A broadcast keeps messages that everybody has read, for it would cost every reader a shared write to know. A publisher that
//! waits for a full subscriber does so for up to a millisecond until there is room for many messages.
//!
//! # Fork
//! Build it after `fork`: threads and locks do not survive one.
//!
//! # Features
//! - `serde`: [`Config`], [`SubscriptionConfig`], [`BroadcastConfig`] and [`SubscriberConfig`] from files.
//! - `tracing`: events for dropped, dead and abandoned messages and for panics; closures run in the publisher's span.
#![deny(unsafe_code)]

mod atomic;
mod broadcast;
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
    broadcast::{
        Broadcast, BroadcastBuilder, BroadcastConfig, LagPolicy, Messages, Publisher, ReceiveError, SubscribeError,
        Subscriber, SubscriberBuilder, SubscriberConfig, Unread,
    },
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

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
