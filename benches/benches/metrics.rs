//! Criterion benches of `fullbore-metrics`.

mod common;

use criterion::{Criterion, criterion_group, criterion_main};

fn metrics(criterion: &mut Criterion) {
    common::bench(criterion, "metrics");
}

criterion_group!(benches, metrics);
criterion_main!(benches);
