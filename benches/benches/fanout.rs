//! Criterion benches of `fullbore-fanout`.

mod common;

use criterion::{Criterion, criterion_group, criterion_main};

fn fanout(criterion: &mut Criterion) {
    common::bench(criterion, "fanout");
}

criterion_group!(benches, fanout);
criterion_main!(benches);
