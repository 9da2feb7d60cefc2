//! What we want to reach. Written down before it was measured, and never tuned to pass.

/// A goal: how the ratio of a case against a rival is to come out, turned so that larger is better.
#[derive(Clone, Copy, Debug)]
pub struct Goal {
    /// The crate's folder name.
    pub area: &'static str,
    /// The case, whatever its number of threads.
    pub case: &'static str,
    /// The rival.
    pub rival: &'static str,
    /// The least ratio.
    pub ratio: f64,
}

/// A goal that is written as parity: the difference of 5 % cannot be seen in time here.
const PARITY: f64 = 0.95;

/// A goal of zero, of allocations for example: the ratio is 1 where it is reached and 0 where not.
const ZERO: f64 = 1.0;

/// Ten, a hundred or a thousand times the load makes an operation at most twice as dear.
const GROWTH: f64 = 0.5;

/// The rival of a count that is to be zero.
pub const NONE: &str = "none at all";

/// All goals.
#[rustfmt::skip] // A table.
pub const GOALS: &[Goal] = &[
    goal("batch", "send to processed, batches of 100", "crossbeam-channel, recv and try_iter", 5.0),
    goal("batch", "send to processed, batches of 100", "std mpsc, recv and try_iter", 4.0),
    goal("batch", "send to processed, batches of 100", "batch-channel, one by one", 10.0),
    goal("batch", "send to processed, batches of 100", "Mutex<Vec>, 1 producer", 1.5),
    goal("batch", "send to processed, batches of 100", "Mutex<Vec>", 2.5),
    goal("batch", "send to processed, batches of 100", "a vector of the thread's own", 1.0 / 3.0),
    goal("batch", "send to processed, 256 bytes each", "crossbeam-channel, recv and try_iter", 2.0),
    goal("batch", "send to processed, 64 producers", "itself, 1 producer", GROWTH),
    goal("batch", "submit to result, 100 at a time", "a crossbeam bounded(1) each", 3.0),
    goal("batch", "full batch to process start, p99", "crossbeam send to recv", 1.0 / 1.5),
    goal("batch", "allocations for each send", NONE, ZERO),
    goal("batch", "allocations for each processed item", NONE, ZERO),
    goal("batch", "an update merged, 1,000 keys", "Batcher, merging in its function", 3.0),
    goal("batch", "an update merged, 1 thread", "Mutex<HashMap>", 1.0),
    goal("batch", "an update merged, 8 threads", "Mutex<HashMap>", 2.0),
    goal("batch", "an update merged, 64 threads", "itself, 1 thread", GROWTH),
    goal("batch", "flights into SQLite, synchronous=FULL", "a hand-written loop, one transaction", 0.8),
    goal("batch", "flights into SQLite, synchronous=FULL", "one transaction each, fsync 5 ms or more", 300.0),
    // Elsewhere the hand-written loop is the bar, and this says what it is worth.
    goal("batch", "flights into SQLite, synchronous=FULL", "one transaction each, fsync under 5 ms", 10.0),
    goal("batch", "flights into PostgreSQL, COPY", "one committed INSERT each", 30.0),
    goal("batch", "flights into PostgreSQL, multi-row insert", "one committed INSERT each", 12.0),
    goal("batch", "send to processed, 100,000 keys", "Batcher, unkeyed", 1.0 / 3.0),
    // It also bounds, times, counts and hands over to a thread, which the rival does not.
    goal("batch", "send to processed, 100,000 keys", "maps of vectors behind 16 mutexes", 0.5),
    goal("batch", "bytes over 200 of an idle key, 100,000 keys", NONE, ZERO),
    goal("batch", "bytes over 200 of a key that waits with a u64", NONE, ZERO),

    // W-TinyLFU's bookkeeping is moka's; a hit need not pay for it.
    goal("cache", "get, hit, 100,000 keys uniform", "moka", 8.0),
    goal("cache", "get, hit, 100,000 keys uniform", "quick_cache", 1.0),
    goal("cache", "get, hit, 100,000 text keys uniform", "amalgam, blocking", 1.0),
    goal("cache", "get, hit, 100,000 keys, Zipf 0.99", "moka", 8.0),
    goal("cache", "get, hit, 100,000 keys, Zipf 0.99", "quick_cache", 1.0),
    goal("cache", "get, hit, 100,000 text keys, Zipf 0.99", "amalgam, blocking", 1.0),
    goal("cache", "get, hit, one hot key", "moka", 8.0),
    goal("cache", "get, hit, one hot key", "quick_cache", 1.0),
    // To know whether it has expired takes a look at the clock.
    goal("cache", "get, hit, one hot key, with a TTL", "quick_cache, which has none", 0.7),
    goal("cache", "get_or_compute, hit", "itself, get", 1.0 / 1.3),
    // A plain HashMap gets 5 to 7 times as dear: the small one is in the processor's cache.
    goal("cache", "get, hit, as entries grow to 100,000", "itself, 100 entries", 0.1),
    goal("cache", "insert, new keys into a full cache of 10,000", "moka", 2.0),
    // It neither expires, nor lets inserts win over loads under way, nor runs destructors outside its locks.
    goal("cache", "insert, new keys into a full cache of 10,000", "quick_cache", 0.5),
    goal("cache", "memory for each u64 entry, 100,000 entries", "moka", 1.0 / 1.5),
    goal("cache", "hit ratio, 1 thread: points lost over 0.5", NONE, ZERO),
    goal("cache", "hit ratio, 8 threads: points lost over 0.5", NONE, ZERO),
    goal("cache", "64 threads on a cold key: loads over 1", NONE, ZERO),
    goal("cache", "64 threads on a cold key: CPU over 5 ms", NONE, ZERO),
    goal("cache", "allocations for each hit", NONE, ZERO),
    goal("cache", "a value in Redis, not in memory", "a raw GET", 1.0 / 1.25),
    goal("cache", "1,000 keys in Redis, in one call", "one raw MGET", 1.0 / 1.5),
    goal("cache", "a load while Redis hangs and the breaker is open", "itself, without Redis", 0.5),
    goal("cache", "4 processes of 16 threads on a cold key: loads over 1", NONE, ZERO),
    goal("cache", "the same: last waiter over 1.3 times the load", NONE, ZERO),
    goal("cache", "removed here to missing there, p99 over 3 round trips", NONE, ZERO),
    goal("cache", "Redis hangs: p99 over 1.2 times the budget", NONE, ZERO),
    goal("cache", "allocations for each get_or_compute hit", NONE, ZERO),

    goal("fanout", "publish and receive, 1 receiver", "crossbeam-channel and Arc", 5.0),
    goal("fanout", "publish and receive, 4 receivers", "crossbeam-channel and Arc", 5.0),
    goal("fanout", "publish and receive, 16 receivers", "crossbeam-channel and Arc", 5.0),
    goal("fanout", "publish to handled, 4 handlers", "crossbeam-channel and Arc", 5.0),
    goal("fanout", "a delivery, as receivers grow to 16", "itself, 1 receiver", GROWTH),
    // It spins and we may not: the more readers there are, the less that is worth.
    goal("fanout", "broadcast, 1 subscriber", "bus", 2.0),
    goal("fanout", "broadcast, 1 subscriber", "crossbeam-channel and Arc", 5.0),
    goal("fanout", "broadcast, 1 subscriber", "tokio broadcast", 3.0),
    goal("fanout", "broadcast, 4 subscribers", "bus", 2.0),
    goal("fanout", "broadcast, 4 subscribers", "crossbeam-channel and Arc", 5.0),
    goal("fanout", "broadcast, 4 subscribers", "tokio broadcast", 3.0),
    goal("fanout", "broadcast, 16 subscribers", "bus", 1.2),
    goal("fanout", "broadcast, 16 subscribers", "crossbeam-channel and Arc", 5.0),
    goal("fanout", "broadcast, 16 subscribers", "tokio broadcast", 3.0),
    goal("fanout", "broadcast, 64 subscribers", "bus", 1.2),
    goal("fanout", "broadcast, 64 subscribers", "crossbeam-channel and Arc", 5.0),
    goal("fanout", "broadcast, 64 subscribers", "tokio broadcast", 3.0),
    // It spins, on a core of its own, and may not be joined or left.
    goal("fanout", "broadcast in batches of 100, 1 subscriber", "disruptor, busy spin", 0.5),
    goal("fanout", "broadcast, 4 publishers, 4 subscribers", "bus in a Mutex", 2.0),
    goal("fanout", "broadcast, 4 publishers, 4 subscribers", "crossbeam-channel and Arc", 2.0),
    goal("fanout", "broadcast, 4 publishers, 4 subscribers", "tokio broadcast", 2.0),
    goal("fanout", "broadcast, 15 subscribers beside a stuck one", "itself, without the stuck one", PARITY),
    goal("fanout", "broadcast, 64 idle subscribers: CPU over 10 ms in 10 s", NONE, ZERO),
    goal("fanout", "broadcast: allocations for each message, 16 subscribers", NONE, ZERO),
    goal("fanout", "broadcast: copies of each message over 1, 16 subscribers", NONE, ZERO),
    goal("fanout", "publish, 3 of 10,000 topic rules match", "itself, those 3 rules", GROWTH),
    goal("fanout", "publish, 3 of 100 topic rules match", "crossbeam senders, each pattern asked", 3.0),
    goal("fanout", "publish to receivers, 3 of 100 match", "crossbeam senders, each pattern asked", 3.0),

    goal("limit", "acquire and release, a permit free", "parking_lot Mutex and Condvar", PARITY),
    goal("limit", "acquire and release, 2 permits", "parking_lot Mutex and Condvar", PARITY),
    goal("limit", "acquire and release, 2 permits", "itself, 2 threads", GROWTH),
    goal("limit", "allocations for each acquire", NONE, ZERO),

    goal("metrics", "Counter::add", "prometheus-client", 3.0),
    goal("metrics", "Counter::add", "metrics, Prometheus recorder", 6.0),
    // At one thread it is a goal of ours; the issue of a shared line begins at two.
    goal("metrics", "Counter::add", "one shared AtomicU64", 2.0),
    goal("metrics", "Histogram::record", "histogram::AtomicHistogram", 2.0),
    goal("metrics", "Histogram::record", "hdrhistogram in a Mutex", 5.0),
    goal("metrics", "Histogram::record", "prometheus-client", 7.0),
    goal("metrics", "Histogram::record", "metrics, Prometheus recorder", 12.0),
    goal("metrics", "Station::run_sampled", "one shared AtomicU64", 1.0),
    goal("metrics", "Station::run, empty closure", "two reads of quanta", 0.75),
    goal("metrics", "Station::run, as threads grow to 8", "itself, 1 thread", GROWTH),
    goal("metrics", "snapshot of 100 stations, 8 writers", "encode 100 prometheus-client histograms", 5.0),
    goal("metrics", "snapshot, as stations grow to 1,000", "itself, 10 stations", GROWTH),
    goal("metrics", "allocations for each run", NONE, ZERO),
    goal("metrics", "allocations of unused instruments", NONE, ZERO),
    goal("metrics", "bytes over 64 of an unused instrument", NONE, ZERO),
    goal("metrics", "MB over 64, 100 stations, 64 threads", NONE, ZERO),

    goal("pool", "checkout and return, 1 connection", "r2d2", 5.0),
    goal("pool", "checkout and return, 1 connection", "deadpool", 5.0),
    goal("pool", "checkout and return, 1 connection", "Mutex<Vec>", 0.5),
    goal("pool", "checkout and return, 2 connections", "r2d2", 5.0),
    goal("pool", "checkout and return, 2 connections", "deadpool", 5.0),
    goal("pool", "checkout and return, 8 connections", "r2d2", 5.0),
    goal("pool", "checkout and return, 8 connections", "deadpool", 5.0),
    goal("pool", "allocations for each checkout", NONE, ZERO),
    goal("pool", "held for 2 ms, 64 threads on 8 connections", "8 threads that own a connection each", PARITY),
    goal("pool", "wait for a checkout, p99.9, 64 threads on 8", "r2d2", 1.0),
    // Strictly first come, first served, and slow for it: there no wait is longer than the others.
    goal("pool", "wait for a checkout, p99.9, 64 threads on 8", "deadpool", 0.5),
    goal("pool", "spike of 50 threads: total time", "r2d2", PARITY),
    goal("pool", "spike of 50 threads: connections at the end over 6", NONE, ZERO),
    goal("pool", "outage: connect attempts in flight over 1", NONE, ZERO),
    goal("pool", "outage: CPU over 1 % of a core while down", NONE, ZERO),
    goal("pool", "outage: served later than one backoff step after recovery", NONE, ZERO),
    goal("pool", "checkout by key, as keys grow to 1,000", "itself, 1 key", GROWTH),
    goal("pool", "warm checkout by key", "the plain pool", 0.5),
    goal("pool", "bytes for each idle tenant over 300", NONE, ZERO),
    goal("pool", "select 1 on PostgreSQL", "a connect for each", 50.0),

    // It also retries, delays, times and counts, which the rival does not.
    goal("queue", "send to done, 2 workers", "crossbeam-channel and threads", 0.5),
    goal("queue", "send to done, as delayed jobs grow to 10,000", "itself, none", GROWTH),

    goal("examples", "fleet migration", "bare loop", 0.8),
    // Where a sync takes 5 ms and more, waits are what there is to win.
    goal("examples", "fleet migration, fsync 5 ms or more", "one at a time", 10.0),
    // Elsewhere ten may be out of reach for anybody: this much of what the bare loop gains, or of ten if it gains more.
    goal("examples", "fleet migration, fsync under 5 ms: 0.8 of min(10, bare loop's gain)", "one at a time", 0.8),
    goal("examples", "fleet migration, peak memory", "300 MB", 1.0),
];

const fn goal(area: &'static str, case: &'static str, rival: &'static str, ratio: f64) -> Goal {
    Goal { area, case, rival, ratio }
}

/// The goal of a case against a rival.
///
/// # Panics
/// If there is none: a case without a goal says nothing.
#[must_use]
pub fn of(area: &str, case: &str, rival: &str) -> f64 {
    let found = GOALS.iter().find(|goal| (goal.area, goal.case, goal.rival) == (area, case, rival));
    found.unwrap_or_else(|| panic!("no goal for `{case}` against `{rival}` in {area}")).ratio
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cases::{AREAS, batch_db, cache_redis, examples, pool_db};
    use crate::measure::Plan;
    use std::collections::BTreeSet;

    type Key = (&'static str, &'static str, &'static str);

    fn measured() -> BTreeSet<Key> {
        let mut keys = BTreeSet::from(examples::ROWS.map(|(case, rival)| ("examples", case, rival)));
        keys.extend(batch_db::NOT_EVERYWHERE.map(|(case, rival)| ("batch", case, rival)));
        keys.extend(cache_redis::NOT_EVERYWHERE.map(|(case, rival)| ("cache", case, rival)));
        keys.extend(pool_db::NOT_EVERYWHERE.map(|(case, rival)| ("pool", case, rival)));
        for area in AREAS {
            for case in (area.cases)() {
                keys.extend(case.rivals.iter().map(|rival| (area.name, case.name, rival.name)));
            }
            keys.extend((area.amounts)().iter().map(|amount| (area.name, amount.name, amount.rival)));
            keys.extend((area.counts)(&Plan::QUICK).iter().map(|count| (area.name, count.name, NONE)));
        }
        keys
    }

    #[test]
    fn every_case_has_one_goal_and_every_goal_a_case() {
        let goals: Vec<Key> = GOALS.iter().map(|goal| (goal.area, goal.case, goal.rival)).collect();
        assert_eq!(goals.iter().collect::<BTreeSet<_>>().len(), goals.len(), "a goal is stated twice");
        assert_eq!(BTreeSet::from_iter(goals), measured());
    }

    #[test]
    #[should_panic(expected = "no goal for `sing` against `birds` in pool")]
    fn a_missing_goal_is_named() {
        let _ = of("pool", "sing", "birds");
    }
}
