//! Criterion benches of `fullbore-queue`.

mod common;

use criterion::{Criterion, criterion_group, criterion_main};

fn queue(criterion: &mut Criterion) {
    common::bench(criterion, "queue");
}

criterion_group!(benches, queue);
criterion_main!(benches);
