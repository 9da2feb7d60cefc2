//! Criterion benches of `fullbore-cache`.

mod common;

use criterion::{Criterion, criterion_group, criterion_main};

fn cache(criterion: &mut Criterion) {
    common::bench(criterion, "cache");
}

criterion_group!(benches, cache);
criterion_main!(benches);
