//! The cache that loads by itself: early, behind its callers' backs, and away from them.
#![allow(missing_docs, clippy::unwrap_used)]

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use fullbore_cache::{Cache, CacheBuilder, LoadCtx, LoadingCache};
use fullbore_core::{BuildError, OnDrop, PausedClock, Shutdown};

const SECOND: Duration = Duration::from_secs(1);

/// The background threads wait, too.
const THREADS: usize = 2;

fn builder(clock: &PausedClock) -> CacheBuilder<u32, u32> {
    Cache::builder().name("loading").ttl(10 * SECOND).refresh_threads(THREADS).clock(clock)
}

fn eventually(what: &str, holds: impl FnMut() -> bool) {
    assert!(fullbore_testkit::eventually(60 * SECOND, holds), "{what} did not come");
}

/// A source that answers when it is told to, and says when it is asked.
struct Source {
    asked: Mutex<mpsc::Receiver<u32>>,
    answers: mpsc::Sender<io::Result<u32>>,
}

fn source() -> (Source, impl Fn(&u32, &mut LoadCtx) -> io::Result<u32> + Send + Sync + 'static) {
    let (ask, asked) = mpsc::channel();
    let (answers, answer) = mpsc::channel();
    let answer = Mutex::new(answer);
    let load = move |key: &u32, _: &mut LoadCtx| {
        ask.send(*key).unwrap();
        answer.lock().unwrap().recv().unwrap_or_else(|_| Err(io::Error::other("the test is over")))
    };
    (Source { asked: Mutex::new(asked), answers }, load)
}

impl Source {
    fn wait_until_asked(&self) -> u32 {
        self.asked.lock().unwrap().recv().unwrap()
    }

    fn answer(&self, answer: io::Result<u32>) {
        self.answers.send(answer).unwrap();
    }
}

#[test]
fn a_missing_value_is_loaded_on_the_thread_that_asks() {
    let clock = PausedClock::new();
    let on = Arc::new(Mutex::new(None));
    let seen = Arc::clone(&on);
    let cache = builder(&clock)
        .loader(move |key, _| {
            *seen.lock().unwrap() = Some(thread::current().id());
            Ok::<_, io::Error>(2 * key)
        })
        .build()
        .unwrap();
    assert_eq!((cache.get_or_load(&4).unwrap(), cache.get_or_load(&4).unwrap()), (8, 8));
    assert_eq!(*on.lock().unwrap(), Some(thread::current().id()));
    assert_eq!(cache.stats().loads, 1);
    assert_eq!(cache.get(&4), Some(8), "it has all that a cache has");
}

#[test]
fn a_stale_value_is_returned_after_the_soft_timeout_and_the_load_goes_on() {
    let clock = PausedClock::new();
    let (source, load) = source();
    let cache = builder(&clock).stale_for(60 * SECOND).soft_timeout(SECOND).loader(load).build().unwrap();
    cache.insert(1, 1);
    clock.advance(10 * SECOND);
    thread::scope(|scope| {
        let call = scope.spawn(|| cache.get_or_load(&1));
        assert_eq!(source.wait_until_asked(), 1);
        clock.wait_for_waiters(THREADS);
        clock.advance(SECOND);
        assert_eq!(call.join().unwrap().unwrap(), 1);
    });
    source.answer(Ok(2));
    eventually("the load in the background", || cache.get(&1) == Some(2));
    assert_eq!((cache.stats().stale_hits, cache.stats().refreshes, cache.stats().loads), (1, 1, 1));
}

#[test]
fn with_a_soft_timeout_of_zero_a_stale_value_is_returned_at_once() {
    let clock = PausedClock::new();
    let (source, load) = source();
    let cache = builder(&clock).stale_for(60 * SECOND).soft_timeout(Duration::ZERO).loader(load).build().unwrap();
    cache.insert(1, 1);
    clock.advance(10 * SECOND);
    for _ in 0..10 {
        assert_eq!(cache.get_or_load(&1).unwrap(), 1);
    }
    source.answer(Ok(2));
    eventually("the load in the background", || cache.get(&1) == Some(2));
    assert_eq!(cache.stats().loads, 1, "ten calls, one load");
}

#[test]
fn a_quick_load_is_waited_for_within_the_soft_timeout() {
    let clock = PausedClock::new();
    let cache = builder(&clock)
        .stale_for(60 * SECOND)
        .soft_timeout(SECOND)
        .loader(|_, _| Ok::<_, io::Error>(2))
        .build()
        .unwrap();
    cache.insert(1, 1);
    clock.advance(10 * SECOND);
    assert_eq!(cache.get_or_load(&1).unwrap(), 2);
}

#[test]
fn a_call_leaves_a_load_that_hangs_at_the_hard_timeout() {
    let clock = PausedClock::new();
    let (source, load) = source();
    let cache = builder(&clock).hard_timeout(SECOND).loader(load).build().unwrap();
    thread::scope(|scope| {
        let call = scope.spawn(|| cache.get_or_load(&1));
        assert_eq!(source.wait_until_asked(), 1);
        clock.wait_for_waiters(THREADS);
        clock.advance(SECOND);
        let error = call.join().unwrap().unwrap_err();
        assert!(error.is_timeout());
        assert_eq!(error.state().unwrap().load_age, Some(SECOND));
    });
    source.answer(Ok(1));
    eventually("the load in the background", || cache.get(&1) == Some(1));
    assert!(cache.station().snapshot().balanced());
}

#[test]
fn an_error_in_the_background_reaches_who_waits() {
    let clock = PausedClock::new();
    let cache =
        builder(&clock).hard_timeout(SECOND).loader(|_, _| Err::<u32, _>(io::Error::other("down"))).build().unwrap();
    assert_eq!(cache.get_or_load(&1).unwrap_err().downcast_ref::<io::Error>().unwrap().to_string(), "down");
    let cache = builder(&clock)
        .hard_timeout(SECOND)
        .loader(|_, _| -> io::Result<u32> { panic!("on purpose") })
        .build()
        .unwrap();
    for _ in 0..4 {
        assert!(cache.get_or_load(&1).unwrap_err().is_load(), "the threads live on");
    }
}

/// With the clock at half of the TTL no early load begins; at its end, chance makes one, and only one.
#[test]
fn what_is_asked_for_is_loaded_again_before_it_expires() {
    let clock = PausedClock::new();
    let loads = Arc::new(AtomicU32::new(0));
    let (counted, at) = (Arc::clone(&loads), clock.clone());
    let cache = builder(&clock)
        .loader(move |_, _| {
            // How long a load takes is read on the cache's clock.
            at.advance(SECOND);
            Ok::<_, io::Error>(counted.fetch_add(1, Ordering::SeqCst) + 1)
        })
        .build()
        .unwrap();
    assert_eq!(cache.get_or_load(&1).unwrap(), 1);
    for _ in 0..1_000 {
        assert_eq!(cache.get_or_load(&1).unwrap(), 1);
    }
    assert_eq!(cache.stats().refreshes, 0);
    clock.advance(Duration::from_millis(9_900));
    // A tenth of a load's time before the end nine in ten calls would begin it.
    eventually("an early load", || {
        assert!(cache.get_or_load(&1).is_ok(), "it is still there");
        cache.stats().refreshes > 0
    });
    eventually("the new value", || cache.get(&1) == Some(2));
    assert_eq!(loads.load(Ordering::SeqCst), 2);
}

#[test]
fn refresh_ahead_can_be_switched_off() {
    let clock = PausedClock::new();
    let at = clock.clone();
    let cache = builder(&clock)
        .refresh_ahead(0.0)
        .loader(move |_, _| {
            at.advance(SECOND);
            Ok::<_, io::Error>(1)
        })
        .build()
        .unwrap();
    cache.get_or_load(&1).unwrap();
    clock.advance(Duration::from_millis(9_999));
    for _ in 0..1_000 {
        cache.get_or_load(&1).unwrap();
    }
    assert_eq!((cache.stats().refreshes, cache.stats().loads), (0, 1));
}

#[test]
fn a_refresh_is_asked_for_once_and_finds_the_old_value() {
    let clock = PausedClock::new();
    let (source, load) = source();
    let cache = builder(&clock).loader(load).build().unwrap();
    cache.insert(1, 1);
    assert!(cache.refresh(&1));
    assert_eq!(source.wait_until_asked(), 1);
    assert!(cache.refresh(&1), "it is under way");
    assert_eq!(cache.get_or_load(&1).unwrap(), 1);
    source.answer(Ok(5));
    eventually("the new value", || cache.get(&1) == Some(5));
    assert_eq!(cache.stats().loads, 1);
}

/// Caffeine #193, FusionCache #218: what is invalidated while it is loaded in the background.
#[test]
fn an_invalidation_during_a_refresh_wins() {
    let clock = PausedClock::new();
    let (source, load) = source();
    let cache = builder(&clock).loader(load).build().unwrap();
    for invalidate in [
        |cache: &Cache<u32, u32>| assert_eq!(cache.remove(&1), Some(1)),
        |cache: &Cache<u32, u32>| cache.clear(),
        |cache: &Cache<u32, u32>| cache.insert(1, 9),
    ] {
        cache.insert(1, 1);
        assert!(cache.refresh(&1));
        source.wait_until_asked();
        invalidate(&cache);
        let kept = cache.get(&1);
        source.answer(Ok(5));
        eventually("the landing", || cache.station().snapshot().in_service() == 0);
        assert_eq!(cache.get(&1), kept);
    }
    eventually("all to be counted", || cache.stats().invalidated_loads == 3);
}

#[test]
fn a_refresh_that_was_invalidated_before_it_began_is_not_done() {
    let clock = PausedClock::new();
    let (source, load) = source();
    let cache = builder(&clock).refresh_threads(1).loader(load).build().unwrap();
    assert!(cache.refresh(&1));
    assert_eq!(source.wait_until_asked(), 1);
    assert!(cache.refresh(&2));
    cache.remove(&2);
    assert!(cache.refresh(&3));
    source.answer(Ok(1));
    assert_eq!(source.wait_until_asked(), 3);
    source.answer(Ok(3));
    eventually("the third", || cache.get(&3) == Some(3));
    assert_eq!(cache.stats().loads, 2);
}

#[test]
fn a_full_queue_is_said() {
    let clock = PausedClock::new();
    let (source, load) = source();
    let cache = builder(&clock)
        .refresh_threads(1)
        .refresh_queue(2)
        .stale_for(60 * SECOND)
        .hard_timeout(5 * SECOND)
        .loader(load)
        .build()
        .unwrap();
    cache.insert(9, 9);
    clock.advance(10 * SECOND);
    assert!(cache.refresh(&1));
    source.wait_until_asked();
    assert!(cache.refresh(&2));
    assert!(!cache.refresh(&3));
    assert_eq!(cache.stats().refreshes_dropped, 1);
    assert!(cache.get_or_load(&3).unwrap_err().is_overloaded());
    assert_eq!(cache.get_or_load(&9).unwrap(), 9, "a stale value is better than none");
    source.answer(Ok(1));
    source.wait_until_asked();
    source.answer(Ok(2));
    eventually("both", || (cache.get(&1), cache.get(&2)) == (Some(1), Some(2)));
    assert!(cache.station().snapshot().balanced());
}

/// Both threads hang, and an early load waits for one of them: a call loads for itself.
#[test]
fn a_load_that_waits_for_a_thread_holds_up_nobody() {
    let clock = PausedClock::new();
    let (source, load) = source();
    let cache = builder(&clock).refresh_threads(1).loader(load).build().unwrap();
    assert!(cache.refresh(&1));
    assert_eq!(source.wait_until_asked(), 1);
    assert!(cache.refresh(&2), "it waits for the thread");
    thread::scope(|scope| {
        let call = scope.spawn(|| cache.get_or_load(&2));
        assert_eq!(source.wait_until_asked(), 2);
        source.answer(Ok(20));
        source.answer(Ok(20));
        assert_eq!(call.join().unwrap().unwrap(), 20);
    });
    eventually("the first", || cache.get(&1) == Some(20));
    eventually("the end", || cache.station().snapshot().in_service() == 0);
    assert_eq!(cache.stats().loads, 2, "the thread finds that the second key has been loaded");
    assert_eq!(cache.stats().abandoned, 0);
}

/// With a hard timeout all loads are the threads': one that hangs is replaced, and goes when it comes back.
#[test]
fn a_thread_that_hangs_is_replaced() {
    let clock = PausedClock::new();
    let (go, gate) = mpsc::channel::<()>();
    let gate = Mutex::new(gate);
    let (begun, wait_begun) = mpsc::channel();
    let cache = builder(&clock)
        .refresh_threads(1)
        .load_limit(SECOND)
        .hard_timeout(5 * SECOND)
        .loader(move |key, _| {
            if *key == 0 {
                begun.send(()).unwrap();
                gate.lock().unwrap().recv().unwrap();
            }
            Ok::<_, io::Error>(*key)
        })
        .build()
        .unwrap();
    thread::scope(|scope| {
        let hung = scope.spawn(|| cache.get_or_load(&0));
        wait_begun.recv().unwrap();
        clock.wait_for_waiters(1);
        clock.advance(SECOND);
        // The call has had it begun once more, on another thread, where it hangs again.
        wait_begun.recv().unwrap();
        assert_eq!((cache.stats().hand_overs, cache.stats().abandoned), (1, 1));
        clock.wait_for_waiters(1);
        go.send(()).unwrap();
        assert_eq!(hung.join().unwrap().unwrap(), 0);
        eventually("the first thread to come back", || cache.stats().abandoned == 0);
        go.send(()).unwrap();
    });
    assert_eq!(cache.get_or_load(&7).unwrap(), 7);
    cache.close_within(60 * SECOND).unwrap();
}

#[test]
fn a_load_in_the_background_may_need_others() {
    let clock = PausedClock::new();
    let cache: Arc<Mutex<Option<LoadingCache<u32, u32>>>> = Arc::default();
    let inner = Arc::clone(&cache);
    let built = builder(&clock)
        .refresh_threads(1)
        .hard_timeout(5 * SECOND)
        .loader(move |key, _| {
            let cache = inner.lock().unwrap().clone();
            if *key == 0 { Ok(0) } else { cache.unwrap().get_or_load(&(key - 1)).map(|n| n + key) }
        })
        .build()
        .unwrap();
    *cache.lock().unwrap() = Some(built.clone());
    assert_eq!(built.get_or_load(&4).unwrap(), 10);
    // Or it would keep itself alive.
    drop(cache.lock().unwrap().take());
}

#[test]
fn c5_close_wakes_those_who_wait_and_ends_the_threads() {
    let clock = PausedClock::new();
    let (source, load) = source();
    let cache = builder(&clock).refresh_threads(1).hard_timeout(60 * SECOND).loader(load).build().unwrap();
    thread::scope(|scope| {
        let began = scope.spawn(|| cache.get_or_load(&1));
        source.wait_until_asked();
        let waits = scope.spawn(|| cache.get_or_load(&2));
        clock.wait_for_waiters(2);
        cache.close();
        assert!(began.join().unwrap().unwrap_err().is_closed());
        assert!(waits.join().unwrap().unwrap_err().is_closed());
        let left = cache.close_within(Duration::ZERO).unwrap_err();
        assert_eq!(left.in_flight, 1);
        assert_eq!(left.abandoned_threads, ["fullbore-cache-loading-0"]);
    });
    source.answer(Ok(1));
    cache.close_within(60 * SECOND).unwrap();
    assert!(cache.get_or_load(&3).unwrap_err().is_closed());
    assert!(cache.refresh(&3), "nothing to do");
    assert!(cache.station().snapshot().balanced());
}

#[test]
fn c5_a_shutdown_closes_it() {
    let clock = PausedClock::new();
    let cache = builder(&clock).loader(|_, _| Ok::<_, io::Error>(1)).build().unwrap();
    let shutdown = Shutdown::new();
    shutdown.register(cache.clone());
    assert!(shutdown.close_within(60 * SECOND).is_clean());
    assert!(cache.get_or_load(&1).unwrap_err().is_closed());
}

#[test]
fn c5_the_last_handle_ends_the_threads_and_leaves_the_values() {
    let clock = PausedClock::new();
    let (source, load) = source();
    let cache = builder(&clock).refresh_threads(1).on_drop(OnDrop::Abandon).loader(load).build().unwrap();
    let values = cache.cache().clone();
    cache.insert(1, 1);
    cache.refresh(&2);
    source.wait_until_asked();
    cache.refresh(&3);
    drop(cache.clone());
    assert!(cache.refresh(&4), "one of two handles is left");
    drop(cache);
    source.answer(Ok(2));
    eventually("the load that had begun", || values.get(&2) == Some(2));
    assert_eq!((values.get(&1), values.get(&3)), (Some(1), None));
    assert_eq!(values.get_or_compute(&3, |_| Ok::<_, io::Error>(3)).unwrap(), 3, "its key is free");
}

#[test]
fn c7_nonsense_is_refused_by_name() {
    let field = |built: Result<(), BuildError>| built.unwrap_err().field().unwrap().to_owned();
    let with = |set: fn(CacheBuilder<u32, u32>) -> CacheBuilder<u32, u32>| {
        field(set(Cache::builder()).loader(|_, _| Ok::<_, io::Error>(1)).build().map(drop))
    };
    assert_eq!(with(|b| b.refresh_threads(0)), "refresh_threads");
    assert_eq!(with(|b| b.refresh_queue(0)), "refresh_queue");
    assert_eq!(with(|b| b.hard_timeout(Duration::ZERO)), "hard_timeout");
    assert_eq!(with(|b| b.refresh_ahead(-1.0)), "refresh_ahead");
    assert_eq!(with(|b| b.refresh_ahead(f64::NAN)), "refresh_ahead");
    assert_eq!(with(|b| b.jitter(1.5)), "jitter");
    assert_eq!(with(|b| b.time_to_idle(Duration::ZERO)), "time_to_idle");
    assert_eq!(with(|b| b.load_limit(Duration::ZERO)), "load_limit");
    assert_eq!(field(Cache::<u32, u32>::builder().hard_timeout(SECOND).build().map(drop)), "hard_timeout");
    assert_eq!(field(Cache::<u32, u32>::builder().jitter(f64::NAN).build().map(drop)), "jitter");
}
