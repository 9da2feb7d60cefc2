//! Criterion benches of `fullbore-batch`.

mod common;

use criterion::{Criterion, criterion_group, criterion_main};

fn batch(criterion: &mut Criterion) {
    common::bench(criterion, "batch");
}

criterion_group!(benches, batch);
criterion_main!(benches);
