//! Metrics with percentiles.
use fullbore::prelude::*;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // ANCHOR: body
    let hash = Station::new("hash");
    let sum = (0..10_000u64)
        .map(|n| hash.run(|| (0..n % 100).fold(n, |a, b| a.rotate_left(5) ^ b)))
        .fold(0, u64::wrapping_add);
    let seen = hash.snapshot();
    println!("{} served, {sum:x}", seen.served);
    println!("p50 {}", seen.service().p50()?); // value, 95 % confidence interval, number of samples
    println!("p99 {}", seen.service().p99()?); // an error below 1,000 samples: it would be noise
    println!("{}", Registry::new().add(&hash).table());
    // ANCHOR_END: body
    assert_eq!(seen.served, 10_000);
    Ok(())
}
