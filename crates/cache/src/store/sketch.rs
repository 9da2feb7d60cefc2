//! How often keys were asked for of late, those included that are not in the cache: a count-min sketch of 4-bit counters
//! (Cormode and Muthukrishnan, 2005), halved from time to time as in TinyLFU (Einziger, Friedman, Manes, 2017).

/// The largest count.
pub(super) const MOST: u8 = 15;

/// Each of the four counters of a key is in a word of its own.
const WAYS: u32 = 4;

/// Words that a sketch has at least: one for few entries has to tell as many other keys apart.
const LEAST: usize = 512;

pub(super) struct Sketch {
    words: Box<[u64]>,
}

impl Sketch {
    pub(super) fn new() -> Self {
        Self { words: Box::default() }
    }

    /// Whether it is large enough for so many entries.
    pub(super) fn fits(&self, entries: usize) -> bool {
        self.words.len() >= entries
    }

    /// Empty, and large enough for so many entries: 8 bytes for each, and 4 KiB at least.
    pub(super) fn grow(&mut self, entries: usize) {
        self.words = vec![0; entries.next_power_of_two().max(LEAST)].into();
    }

    /// Which word, and how far its counter is from the word's end.
    fn place(&self, hash: u64, way: u32) -> (usize, u32) {
        // Other bits for each way: the hash is multiplied by four large odd numbers (of the golden ratio's kind).
        const SEEDS: [u64; WAYS as usize] =
            [0x9e37_79b9_7f4a_7c15, 0xc2b2_ae3d_27d4_eb4f, 0x1656_67b1_9e37_79f9, 0x85eb_ca77_c2b2_ae63];
        let mixed = hash.wrapping_mul(SEEDS[way as usize]);
        let mixed = mixed ^ (mixed >> 32);
        (mixed as usize & (self.words.len() - 1), (mixed >> 60) as u32 * 4)
    }

    pub(super) fn add(&mut self, hash: u64, times: u8) {
        if self.words.is_empty() {
            return;
        }
        for way in 0..WAYS {
            let (word, shift) = self.place(hash, way);
            let word = &mut self.words[word];
            let counter = (*word >> shift) as u8 & MOST;
            let more = times.min(MOST - counter);
            *word += u64::from(more) << shift;
        }
    }

    /// At least the true number, unless it was halved or is above [`MOST`].
    pub(super) fn estimate(&self, hash: u64) -> u8 {
        if self.words.is_empty() {
            return 0;
        }
        let counters = (0..WAYS).map(|way| {
            let (word, shift) = self.place(hash, way);
            (self.words[word] >> shift) as u8 & MOST
        });
        counters.min().unwrap_or(0)
    }

    /// What was long ago counts half.
    pub(super) fn halve(&mut self) {
        for word in &mut self.words {
            *word = (*word >> 1) & 0x7777_7777_7777_7777;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{MOST, Sketch};

    fn hash(n: u64) -> u64 {
        (n ^ 0x5bd1_e995).wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    #[test]
    fn counts_are_never_too_low_and_seldom_too_high() {
        let mut sketch = Sketch::new();
        assert_eq!(sketch.estimate(hash(1)), 0, "nothing is counted yet");
        sketch.grow(1000);
        for n in 0..1000 {
            sketch.add(hash(n), (n % 8) as u8);
        }
        let too_high = (0..1000).filter(|n| {
            let estimate = sketch.estimate(hash(*n));
            assert!(estimate >= (n % 8) as u8);
            estimate > (n % 8) as u8
        });
        assert!(too_high.count() < 150);
    }

    #[test]
    fn they_end_at_15_and_are_halved() {
        let mut sketch = Sketch::new();
        sketch.grow(64);
        sketch.add(hash(7), 9);
        sketch.add(hash(7), 9);
        assert_eq!(sketch.estimate(hash(7)), MOST);
        sketch.halve();
        assert_eq!(sketch.estimate(hash(7)), MOST / 2);
    }
}
