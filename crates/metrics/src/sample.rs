//! One in 64, by chance.

use std::cell::Cell;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};

/// Whether this event is to be timed: one in 64, chosen at random on each thread (a counter would let two stations that
/// take turns starve each other of samples).
#[must_use]
pub fn sampled() -> bool {
    random() >> 58 == 0
}

/// How many go by until the next one is to be timed, so that it is one in 64 on average.
pub(crate) fn gap() -> u32 {
    // 0 to 126, evenly: a fixed gap could keep step with what it samples.
    (((random() >> 32) * 127) >> 32) as u32
}

/// A number by chance, from a generator of the calling thread (xorshift64): for jitter and sampling, in a few nanoseconds. Not for
/// secrets, and not the same in any two runs.
#[must_use]
pub fn random() -> u64 {
    // No destructor and no initialisation: it can be used at any time of a thread's life.
    thread_local!(static STATE: Cell<u64> = const { Cell::new(0) });
    STATE.with(|state| {
        let mut x = state.get();
        if x == 0 {
            x = seed();
        }
        // Marsaglia's xorshift64: three shifts, period 2^64 - 1.
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        state.set(x);
        x
    })
}

/// Another one for each thread, far from the others' and never 0. Not the address of something: threads that follow each
/// other have theirs in the same place, and all would make the same choices.
#[cold]
fn seed() -> u64 {
    static THREADS: AtomicU64 = AtomicU64::new(1);
    // ORDERING: Relaxed: only the numbers' being different matters.
    let n = THREADS.fetch_add(1, Ordering::Relaxed);
    // Other processes that began at the same moment are to choose differently, too.
    let n = RandomState::new().hash_one(n);
    // The finaliser of MurmurHash3: a bijection that maps only 0 to 0.
    let n = (n ^ (n >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let n = (n ^ (n >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    (n ^ (n >> 33)).max(1)
}

#[cfg(test)]
mod tests {
    #[test]
    fn about_one_in_64_is_sampled() {
        let hits = (0..64_000).filter(|_| super::sampled()).count();
        // 1,000 expected with a standard deviation of 31: eight of them to either side.
        assert!((750..1250).contains(&hits), "{hits}");
    }

    #[test]
    fn threads_that_ask_once_are_sampled_like_others() {
        let ask_once = || std::thread::spawn(super::sampled).join().unwrap();
        let hits = (0..4_000).filter(|_| ask_once()).count();
        // 62 expected with a standard deviation of 8.
        assert!((1..130).contains(&hits), "{hits}");
    }
}
