//! The scoreboard's cases for Criterion: a group for each case, ours and the rivals in it.

use std::time::Duration;

use criterion::{Criterion, SamplingMode, Throughput};
use fullbore_benches::cases::AREAS;
use fullbore_benches::measure::MakeSide;

/// Benches the cases of an area.
pub(crate) fn bench(criterion: &mut Criterion, area: &str) {
    let area = AREAS.iter().find(|known| known.name == area).expect("an area of the scoreboard");
    for case in (area.cases)() {
        let mut group = criterion.benchmark_group(format!("{}: {}, threads: {}", area.name, case.name, case.threads));
        group.throughput(Throughput::Elements(1));
        group.warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
        if case.one_a_turn {
            // These last longer than the time they return: Criterion would do hundreds of them to fill its own.
            group.sampling_mode(SamplingMode::Flat).sample_size(10).measurement_time(Duration::from_millis(1));
        }
        let rivals = case.rivals.iter().map(|rival| (rival.name, &rival.side));
        for (name, side) in std::iter::once(("fullbore", &case.ours)).chain(rivals) {
            group.bench_function(name, |bencher| {
                let side: &MakeSide = side;
                bencher.iter_custom(side());
            });
        }
        group.finish();
    }
}
