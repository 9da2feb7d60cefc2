//! `Broadcast` of `fullbore-fanout`: a message stored once, read by all, against those who do that by spinning, by losing, or by a
//! channel for each. An operation is a delivery, from the publisher's call to the reader's hands.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use bus::Bus;
use crossbeam_channel::bounded;
use disruptor::{BusySpin, Producer};
use fullbore_fanout::{Broadcast, LagPolicy, Subscriber};
use parking_lot::Mutex;
use rustix::time::ClockId;
use tokio::sync::broadcast;

use super::pool_outage::cpu_time;
use super::{Count, FITS, allocations_each, tenths};
use crate::measure::{Case, Plan, Side, Tally, Team};

/// Messages that can be on their way; all have the same.
const CAPACITY: usize = 1024;
const BATCH: usize = 100;
/// The last message of a turn.
const END: u64 = u64::MAX;

const BUS: &str = "bus";
const BUS_LOCKED: &str = "bus in a Mutex";
const CROSSBEAM: &str = "crossbeam-channel and Arc";
const TOKIO: &str = "tokio broadcast";
const DISRUPTOR: &str = "disruptor, busy spin";

/// See the module.
pub(super) fn cases() -> Vec<Case> {
    let one = |name, readers: usize| {
        Case::new(name, 1, move || ours(readers))
            .against(BUS, move || bus(readers))
            .against(CROSSBEAM, move || crossbeam(readers))
            .against(TOKIO, move || tokio(readers))
    };
    vec![
        one("broadcast, 1 subscriber", 1),
        one("broadcast, 4 subscribers", 4),
        one("broadcast, 16 subscribers", 16),
        one("broadcast, 64 subscribers", 64),
        Case::new("broadcast in batches of 100, 1 subscriber", 1, ours_in_batches)
            .against(DISRUPTOR, disruptor_in_batches),
        Case::new("broadcast, 4 publishers, 4 subscribers", 4, ours_many)
            .against(BUS_LOCKED, bus_many)
            .against(CROSSBEAM, crossbeam_many)
            .against(TOKIO, tokio_many),
        Case::new("broadcast, 15 subscribers beside a stuck one", 1, || ours_beside(true))
            .against("itself, without the stuck one", || ours_beside(false)),
    ]
}

/// What is to be zero.
pub(super) fn counts(plan: &Plan) -> Vec<Count> {
    let idle = if plan.quick { || idle(Duration::from_millis(200)) } else { || idle(Duration::from_secs(10)) };
    vec![
        Count { name: "broadcast, 64 idle subscribers: CPU over 10 ms in 10 s", unit: "ms", ours: idle },
        Count { name: "broadcast: allocations for each message, 16 subscribers", unit: "allocs", ours: allocations },
        Count { name: "broadcast: copies of each message over 1, 16 subscribers", unit: "count", ours: copies },
    ]
}

fn new<T: Send + Sync>() -> Broadcast<T> {
    Broadcast::builder().capacity(CAPACITY).build().expect(FITS)
}

fn subscribe<T: Send + Sync>(broadcast: &Broadcast<T>) -> Subscriber<T> {
    broadcast.subscribe().join().expect(FITS)
}

/// What a reader has seen in a turn: little enough that it hides nothing of how the messages came.
struct Reading {
    tally: Arc<Tally>,
    count: u64,
    sum: u64,
}

impl Reading {
    fn new(tally: &Arc<Tally>) -> Self {
        Self { tally: Arc::clone(tally), count: 0, sum: 0 }
    }

    #[inline]
    fn see(&mut self, message: u64) {
        if message == END {
            self.tally.add_sum(self.count, self.sum);
            (self.count, self.sum) = (0, 0);
        } else {
            self.count += 1;
            self.sum = self.sum.wrapping_add(message);
        }
    }
}

/// Turns of one publisher on this thread, for readers that live as long as `publish` does.
fn turns(readers: usize, tally: Arc<Tally>, mut publish: impl FnMut(u64) + 'static) -> Side {
    Box::new(move |deliveries| turn(readers, deliveries, &tally, &mut publish))
}

/// The same for readers that spin: they must not do that in the other side's turn, so each turn has new ones, made before it begins.
fn turns_of_spinners<P: FnMut(u64)>(readers: usize, make: impl Fn(&Arc<Tally>) -> P + 'static) -> Side {
    Box::new(move |deliveries| {
        let tally = Arc::new(Tally::default());
        let mut publish = make(&tally);
        // Once through, so that all are there and warm.
        turn(readers, readers as u64 * BATCH as u64, &tally, &mut publish);
        turn(readers, deliveries, &tally, &mut publish)
    })
}

fn turn(readers: usize, deliveries: u64, tally: &Tally, publish: &mut impl FnMut(u64)) -> Duration {
    let readers = readers as u64;
    let messages = deliveries.div_ceil(readers);
    tally.expect(messages * readers);
    let began = Instant::now();
    (0..messages).for_each(&mut *publish);
    publish(END);
    tally.wait();
    let took = began.elapsed();
    tally.check(messages, readers);
    took
}

fn ours(readers: usize) -> Side {
    let broadcast = new();
    let tally = Arc::new(Tally::default());
    start(&broadcast, readers, &tally);
    publish_on(broadcast, readers, tally)
}

fn start(broadcast: &Broadcast<u64>, readers: usize, tally: &Arc<Tally>) {
    for _ in 0..readers {
        let (mut subscriber, mut reading) = (subscribe(broadcast), Reading::new(tally));
        thread::spawn(move || while subscriber.recv_with(|message| reading.see(*message)).is_ok() {});
    }
}

fn publish_on(broadcast: Broadcast<u64>, readers: usize, tally: Arc<Tally>) -> Side {
    let publisher = broadcast.publisher();
    turns(readers, tally, move |message| {
        let _open = &broadcast;
        publisher.publish(message).expect("readers read");
    })
}

/// One more, which has a message in its hands all the time, is in nobody's way.
fn ours_beside(stuck: bool) -> Side {
    const READERS: usize = 15;
    let broadcast = new();
    let tally = Arc::new(Tally::default());
    start(&broadcast, READERS, &tally);
    if stuck {
        let mut subscriber = broadcast.subscribe().policy(LagPolicy::DropOldest).join().expect(FITS);
        let (begun, has_begun) = bounded(1);
        let watch = Arc::downgrade(&tally);
        thread::spawn(move || {
            let hold = |_: &u64| {
                begun.send(()).expect("it is waited for");
                // Until the side is gone.
                while watch.strong_count() > READERS {
                    thread::park_timeout(Duration::from_millis(100));
                }
            };
            subscriber.recv_with(hold).expect("one message is there");
        });
        broadcast.publisher().publish(0).expect("readers read");
        has_begun.recv().expect("it begins");
        // The readers count this one with those of the first turn: so it ends a turn of its own.
        tally.expect(READERS as u64);
        broadcast.publisher().publish(END).expect("readers read");
        tally.wait();
    }
    publish_on(broadcast, READERS, tally)
}

fn ours_in_batches() -> Side {
    let broadcast = new();
    let tally = Arc::new(Tally::default());
    let (mut subscriber, mut reading) = (subscribe(&broadcast), Reading::new(&tally));
    thread::spawn(move || while subscriber.recv_each(|message| reading.see(*message)).is_ok() {});
    let publisher = broadcast.publisher();
    let mut batch = Vec::with_capacity(BATCH);
    turns(1, tally, move |message| {
        let _open = &broadcast;
        batch.push(message);
        if batch.len() == BATCH || message == END {
            publisher.publish_all(&mut batch).expect("readers read");
        }
    })
}

fn disruptor_in_batches() -> Side {
    turns_of_spinners(1, |tally| {
        let mut reading = Reading::new(tally);
        let process = move |message: &u64, _, _| reading.see(*message);
        let mut producer =
            disruptor::build_single_producer(CAPACITY, || 0_u64, BusySpin).handle_events_with(process).build();
        let mut batch = Vec::with_capacity(BATCH);
        move |message| {
            batch.push(message);
            if batch.len() == BATCH || message == END {
                let fill = |(slot, message): (&mut u64, u64)| *slot = message;
                producer.batch_publish(batch.len(), |slots| slots.zip(batch.drain(..)).for_each(fill));
            }
        }
    })
}

fn bus(readers: usize) -> Side {
    turns_of_spinners(readers, move |tally| {
        let mut bus = Bus::new(CAPACITY);
        start_bus(&mut bus, readers, tally);
        move |message| bus.broadcast(message)
    })
}

fn start_bus(bus: &mut Bus<u64>, readers: usize, tally: &Arc<Tally>) {
    for _ in 0..readers {
        let (mut reader, mut reading) = (bus.add_rx(), Reading::new(tally));
        thread::spawn(move || reader.iter().for_each(|message| reading.see(message)));
    }
}

type Senders = Vec<crossbeam_channel::Sender<Arc<u64>>>;

fn crossbeam(readers: usize) -> Side {
    let tally = Arc::new(Tally::default());
    let senders = start_crossbeam(readers, &tally);
    turns(readers, tally, move |message| send_to_all(&senders, message))
}

/// Receivers wait once and then drain, as `crossbeam-channel` advises.
fn start_crossbeam(readers: usize, tally: &Arc<Tally>) -> Senders {
    let start = |_| {
        let (sender, receiver) = bounded::<Arc<u64>>(CAPACITY);
        let mut reading = Reading::new(tally);
        thread::spawn(move || {
            while let Ok(first) = receiver.recv() {
                reading.see(*first);
                receiver.try_iter().for_each(|message| reading.see(*message));
            }
        });
        sender
    };
    (0..readers).map(start).collect()
}

fn send_to_all(senders: &Senders, message: u64) {
    let message = Arc::new(message);
    for sender in senders {
        sender.send(Arc::clone(&message)).expect("the receiver is there");
    }
}

fn tokio(readers: usize) -> Side {
    let (sender, _) = broadcast::channel(CAPACITY);
    let tally = Arc::new(Tally::default());
    start_tokio(&sender, readers, &tally);
    turns(readers, tally, move |message| send_losslessly(&sender, 1, message))
}

fn start_tokio(sender: &broadcast::Sender<u64>, readers: usize, tally: &Arc<Tally>) {
    for _ in 0..readers {
        let (mut receiver, mut reading) = (sender.subscribe(), Reading::new(tally));
        thread::spawn(move || {
            while let Ok(message) = receiver.blocking_recv() {
                reading.see(message);
            }
        });
    }
}

/// It overwrites what was not received and has nothing to wait with: so publishers look now and then, well before.
fn send_losslessly(sender: &broadcast::Sender<u64>, publishers: u64, message: u64) {
    let burst = CAPACITY as u64 / 4 / publishers;
    if message.is_multiple_of(burst) {
        while sender.len() > CAPACITY / 2 {
            thread::yield_now();
        }
    }
    sender.send(message).expect("receivers are there");
}

/// Turns of four publishers; the last message of a turn comes when all the others are published.
fn turns_of_many(tally: Arc<Tally>, publish: impl Fn(u64) + Clone + Send + Sync + 'static) -> Side {
    const THREADS: usize = 4;
    const READERS: u64 = 4;
    let end = publish.clone();
    let mut team = Team::new(THREADS, move |_| {
        let publish = publish.clone();
        move |messages| messages.for_each(&publish)
    });
    Box::new(move |deliveries| {
        let messages = deliveries.div_ceil(READERS);
        tally.expect(messages * READERS);
        let began = team.run(messages).began;
        end(END);
        tally.wait();
        let took = began.elapsed();
        tally.check(messages, READERS);
        took
    })
}

fn ours_many() -> Side {
    let broadcast = Arc::new(new());
    let tally = Arc::new(Tally::default());
    start(&broadcast, 4, &tally);
    let publisher = broadcast.publisher();
    turns_of_many(tally, move |message| {
        let _open = &broadcast;
        publisher.publish(message).expect("readers read");
    })
}

/// New readers for each turn, as in `turns_of_spinners`.
fn bus_many() -> Side {
    Box::new(|deliveries| {
        let mut bus = Bus::new(CAPACITY);
        let tally = Arc::new(Tally::default());
        start_bus(&mut bus, 4, &tally);
        let bus = Arc::new(Mutex::new(bus));
        let mut side = turns_of_many(tally, move |message| bus.lock().broadcast(message));
        side(4 * BATCH as u64);
        side(deliveries)
    })
}

fn crossbeam_many() -> Side {
    let tally = Arc::new(Tally::default());
    let senders = start_crossbeam(4, &tally);
    turns_of_many(tally, move |message| send_to_all(&senders, message))
}

fn tokio_many() -> Side {
    let (sender, _) = broadcast::channel(CAPACITY);
    let tally = Arc::new(Tally::default());
    start_tokio(&sender, 4, &tally);
    turns_of_many(tally, move |message| send_losslessly(&sender, 4, message))
}

/// CPU time, beyond what is allowed, while 64 subscribers wait for nothing.
fn idle(time: Duration) -> f64 {
    const ALLOWED_MS: f64 = 10.0;
    let broadcast = new::<u64>();
    let tally = Arc::new(Tally::default());
    start(&broadcast, 64, &tally);
    // One message through, then some time to fall asleep.
    tally.expect(64);
    broadcast.publisher().publish(0).expect("readers read");
    broadcast.publisher().publish(END).expect("readers read");
    tally.wait();
    thread::sleep(Duration::from_millis(50));
    let began = cpu_time(ClockId::ProcessCPUTime);
    thread::sleep(time);
    let used = cpu_time(ClockId::ProcessCPUTime) - began;
    tenths((used.as_secs_f64() * 1_000.0 - ALLOWED_MS).max(0.0))
}

fn allocations() -> f64 {
    let broadcast = new::<u64>();
    let publisher = broadcast.publisher();
    let mut subscribers: Vec<_> = (0..16).map(|_| subscribe(&broadcast)).collect();
    allocations_each(|| {
        publisher.publish(7).expect("there is room");
        for subscriber in &mut subscribers {
            subscriber.try_recv_with(|message| assert_eq!(*message, 7)).expect("it is there");
        }
    })
}

/// How many objects there are for one message, beyond the one that was published, when all have read it.
fn copies() -> f64 {
    let broadcast = new::<Arc<u64>>();
    let mut subscribers: Vec<_> = (0..16).map(|_| subscribe(&broadcast)).collect();
    let message = Arc::new(7);
    broadcast.publisher().publish(Arc::clone(&message)).expect("there is room");
    let most =
        |subscriber: &mut Subscriber<Arc<u64>>| subscriber.try_recv_with(Arc::strong_count).expect("it is there");
    let most = subscribers.iter_mut().map(most).max().unwrap_or(0);
    most as f64 - 2.0
}
