//! Which keys are asked for, one after the other: drawn from a Zipf distribution, or as they stand in the flights.

use std::collections::HashMap;
use std::ops::Range;

use super::Random;
use super::batch_db::open_flights;

/// Ranks below a number; the one of rank k comes up in proportion to 1 / (k + 1)^exponent. Exact, by a table.
#[derive(Debug)]
pub(super) struct Zipf {
    /// For each rank, how likely it or one before it is.
    up_to: Vec<f64>,
}

impl Zipf {
    pub(super) fn new(ranks: u64, exponent: f64) -> Self {
        let mut sum = 0.0;
        let mut up_to: Vec<f64> = (1..=ranks)
            .map(|rank| {
                sum += (rank as f64).powf(-exponent);
                sum
            })
            .collect();
        up_to.iter_mut().for_each(|part| *part /= sum);
        Self { up_to }
    }

    pub(super) fn draw(&self, random: &mut Random) -> u64 {
        /// As many as there are exact fractions of that kind.
        const STEPS: u64 = 1 << 53;
        let at = random.below(STEPS) as f64 / STEPS as f64;
        self.up_to.partition_point(|up_to| *up_to <= at) as u64
    }
}

/// The key of a rank: those that are wanted most do not lie side by side in a cache that was filled in the order of its keys.
pub(super) fn scattered(rank: u64, keys: u64) -> u64 {
    /// A prime that divides no number of keys here, so that each key has one rank.
    const STEP: u64 = 48_271;
    rank * STEP % keys
}

/// Keys in the order in which they are asked for.
#[derive(Debug)]
pub(super) struct Trace {
    pub(super) name: &'static str,
    pub(super) keys: Vec<u64>,
    /// How many different ones there are, without those of a scan: capacities are parts of it.
    pub(super) distinct: u64,
}

const KEYS: u64 = 100_000;

/// `accesses` of each kind, or all that there are.
pub(super) fn traces(accesses: usize) -> Vec<Trace> {
    let zipf = |name, exponent| Trace { name, keys: drawn(exponent, accesses), distinct: KEYS };
    let [tails, routes] = flights(accesses);
    vec![
        zipf("Zipf 0.7", 0.7),
        zipf("Zipf 0.9", 0.9),
        zipf("Zipf 1.1", 1.1),
        Trace { name: "Zipf 0.9 and a scan", keys: with_scan(accesses), distinct: KEYS },
        tails,
        routes,
    ]
}

fn drawn(exponent: f64, accesses: usize) -> Vec<u64> {
    let (zipf, mut random) = (Zipf::new(KEYS, exponent), Random::of_thread(0));
    (0..accesses).map(|_| scattered(zipf.draw(&mut random), KEYS)).collect()
}

/// As when somebody reads a table from end to end while the others go on: as many keys that never come again as of the others.
fn with_scan(accesses: usize) -> Vec<u64> {
    /// More than the smaller ones of the caches hold.
    const RUN: usize = 10_000;
    let mut scan: Range<u64> = KEYS..u64::MAX;
    let drawn = drawn(0.9, accesses / 2);
    drawn
        .chunks(RUN)
        .flat_map(|run| run.iter().copied().chain(scan.by_ref().take(run.len())).collect::<Vec<_>>())
        .collect()
}

/// The aircraft and the routes of the first flights, in the order of the file: as they took off. Some aircraft are not known.
fn flights(accesses: usize) -> [Trace; 2] {
    const WHOLE: &str = "the file is whole";
    let mut reader = open_flights();
    let header = reader.headers().expect(WHOLE).clone();
    let column = |name| header.iter().position(|column| column == name).expect("a column of the file");
    let (tail, origin, dest) = (column("tailnum"), column("origin"), column("dest"));
    let (mut tails, mut routes) = (Numbered::default(), Numbered::default());
    for record in reader.records().take(accesses) {
        let record = record.expect(WHOLE);
        if !matches!(&record[tail], "" | "NA") {
            tails.push(record[tail].to_owned());
        }
        routes.push([&record[origin], &record[dest]].join("-"));
    }
    [tails.trace("tail numbers"), routes.trace("routes")]
}

/// Names, and the numbers that they have here.
#[derive(Debug, Default)]
struct Numbered {
    numbers: HashMap<String, u64>,
    keys: Vec<u64>,
}

impl Numbered {
    fn push(&mut self, name: String) {
        let next = self.numbers.len() as u64;
        self.keys.push(*self.numbers.entry(name).or_insert(next));
    }

    fn trace(self, name: &'static str) -> Trace {
        Trace { name, keys: self.keys, distinct: self.numbers.len() as u64 }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn zipf_draws_by_rank() {
        let (zipf, mut random) = (Zipf::new(3, 1.0), Random::of_thread(0));
        let mut drawn = [0; 3];
        (0..11_000).for_each(|_| drawn[zipf.draw(&mut random) as usize] += 1);
        // 1, 1/2 and 1/3 of 6/11.
        for (drawn, expected) in drawn.into_iter().zip([6_000, 3_000, 2_000]) {
            assert!((expected * 9 / 10..expected * 11 / 10).contains(&drawn), "{drawn} and not {expected}");
        }
    }

    #[test]
    fn each_key_has_one_rank() {
        let keys: HashSet<u64> = (0..KEYS).map(|rank| scattered(rank, KEYS)).collect();
        assert_eq!(keys.len() as u64, KEYS);
    }

    #[test]
    fn a_scan_never_repeats() {
        let trace = with_scan(100_000);
        let scanned: Vec<_> = trace.iter().filter(|key| **key >= KEYS).collect();
        assert_eq!((trace.len(), scanned.len()), (100_000, 50_000));
        assert_eq!(scanned.iter().collect::<HashSet<_>>().len(), scanned.len());
    }

    #[test]
    fn flights_are_numbered_by_name() {
        let [tails, routes] = flights(1_000);
        assert_eq!(routes.keys.len(), 1_000);
        assert!(tails.keys.len() <= 1_000);
        for trace in [tails, routes] {
            assert_eq!(trace.keys.iter().collect::<HashSet<_>>().len() as u64, trace.distinct, "{}", trace.name);
        }
    }
}
