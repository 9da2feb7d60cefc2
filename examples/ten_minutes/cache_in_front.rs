//! A cache in front of a slow call.
use fullbore::prelude::*;
use std::time::Duration;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // ANCHOR: body
    let cache: Cache<String, usize> = Cache::builder().capacity(10_000).ttl(Duration::from_secs(60)).build()?;
    std::thread::scope(|scope| {
        for _ in 0..8 {
            // Eight threads ask at once; one of them reads the file, the others get its answer.
            scope
                .spawn(|| cache.get_or_compute(&"Cargo.toml".into(), |_| std::fs::read("Cargo.toml").map(|b| b.len())));
        }
    });
    println!("{:?} bytes, {:?}", cache.get(&"Cargo.toml".into()), cache.stats());
    // ANCHOR_END: body
    assert_eq!(cache.stats().loads, 1);
    Ok(())
}
