//! Criterion benches of `fullbore-limit`.

mod common;

use criterion::{Criterion, criterion_group, criterion_main};

fn limit(criterion: &mut Criterion) {
    common::bench(criterion, "limit");
}

criterion_group!(benches, limit);
criterion_main!(benches);
