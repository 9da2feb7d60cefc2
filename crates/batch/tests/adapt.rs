//! The size of batches, found by trying. The arithmetic has its tests beside it; here a batcher uses it.
#![allow(missing_docs, clippy::unwrap_used)]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use fullbore_batch::{Batch, Batcher, Config};
use fullbore_core::{BuildError, PausedClock};

/// A call costs a millisecond, an item a microsecond: the larger the better, up to what the bound allows.
#[test]
fn batches_grow_to_what_the_bound_allows() {
    let clock = PausedClock::new();
    let (time, sizes) = (clock.clone(), Arc::new(Mutex::new(Vec::new())));
    let seen = Arc::clone(&sizes);
    let batcher = Batcher::builder()
        .max_items(100_000)
        .linger(Duration::MAX)
        .adapt_size(Duration::from_millis(2))
        .clock(&clock)
        .build(move |items: Batch<u32>| {
            seen.lock().unwrap().push(items.len());
            time.advance(Duration::from_micros(1000 + items.len() as u64));
        })
        .unwrap();
    assert_eq!(batcher.station().snapshot().batch_size(), 1);
    (0..100_000).for_each(|n| batcher.send(n).unwrap());
    batcher.close().unwrap();
    let sizes = sizes.lock().unwrap();
    assert_eq!(sizes.iter().sum::<usize>(), 100_000);
    let largest = *sizes.iter().max().unwrap();
    assert!((500..=1000).contains(&largest), "{largest} of 1,000 that take 2 ms");
    let shown = batcher.station().snapshot().batch_size();
    assert!((500..=1000).contains(&shown), "{shown}");
}

#[test]
fn without_it_the_size_is_what_was_set() {
    let batcher = Batcher::builder().max_items(70).build(|_: Batch<u32>| ()).unwrap();
    assert_eq!(batcher.station().snapshot().batch_size(), 70);
}

#[test]
fn nonsense_is_refused_by_name() {
    let builder = Batcher::<u32, ()>::builder().adapt_size(Duration::ZERO);
    let error = builder.build(|_: Batch<u32>| ()).map(drop).unwrap_err();
    assert!(matches!(error, BuildError::Config { ref field, .. } if field == "adapt_size"), "{error}");
    assert_eq!(Config::default().adapt_size, None);
}
