#![allow(missing_docs, clippy::unwrap_used)]
use fullbore_fanout::*;
use std::time::Instant;
fn run(subs: usize, batch: usize, n: u64) {
    let b = Broadcast::<u64>::builder().capacity(1024).build().unwrap();
    let p = b.publisher();
    let hs: Vec<_> = (0..subs).map(|_| { let mut s = b.subscribe().join().unwrap(); std::thread::spawn(move || {
        let mut sum = 0; 
        if batch == 1 { while s.recv_with(|x| sum += x).is_ok() {} } else { while s.recv_each(|x| sum += x).is_ok() {} }
        sum }) }).collect();
    let t = Instant::now();
    let mut v = Vec::new();
    if batch == 1 { for i in 0..n { p.publish(i).unwrap(); } }
    else { let mut i = 0; while i < n { v.extend(i..(i + batch as u64).min(n)); i += batch as u64; p.publish_all(&mut v).unwrap(); } }
    b.close();
    for h in hs { assert_eq!(h.join().unwrap(), n * (n - 1) / 2); }
    let e = t.elapsed();
    println!("subs {subs} batch {batch}: {:.1} ns per message, {:.1} per delivery", e.as_nanos() as f64 / n as f64, e.as_nanos() as f64 / n as f64 / subs as f64);
}
#[test]
fn smoke() {
    let s: u64 = std::env::var("N").ok().and_then(|x| x.parse().ok()).unwrap_or(1);
    for subs in [1, 4, 16, 64] { run(subs, 1, s * 1_000_000 / subs as u64); run(subs, 1, s * 1_000_000 / subs as u64); run(subs, 100, s * 1_000_000 / subs as u64); }
}
