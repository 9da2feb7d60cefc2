//! The same calls to this pool and to r2d2 have the same outcomes and leave the same counts.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use fullbore_pool::{Manager, Pool, Pooled};
use support::{Chance, Down, seed};

/// A database for both.
struct Both {
    made: Arc<AtomicU64>,
}

struct Conn {
    broken: bool,
}

impl Manager for Both {
    type Connection = Conn;
    type Error = Down;
    fn connect(&self, _: Duration) -> Result<Conn, Down> {
        self.made.fetch_add(1, Ordering::Relaxed);
        Ok(Conn { broken: false })
    }
    fn validate(&self, _: &mut Conn, _: Duration) -> Result<(), Down> {
        Ok(())
    }
    fn is_broken(&self, conn: &mut Conn) -> bool {
        conn.broken
    }
}

impl r2d2::ManageConnection for Both {
    type Connection = Conn;
    type Error = Down;
    fn connect(&self) -> Result<Conn, Down> {
        Manager::connect(self, Duration::MAX)
    }
    fn is_valid(&self, _: &mut Conn) -> Result<(), Down> {
        Ok(())
    }
    fn has_broken(&self, conn: &mut Conn) -> bool {
        conn.broken
    }
}

#[test]
fn does_what_r2d2_does() {
    const SIZE: usize = 4;
    let mut chance = Chance::new(seed());
    let (our_made, their_made) = (Arc::default(), Arc::default());
    let manager = |made: &Arc<AtomicU64>| Both { made: Arc::clone(made) };
    let ours = Pool::builder(manager(&our_made)).max_size(SIZE).validate_after(Duration::ZERO).build().unwrap();
    let theirs = r2d2::Pool::builder()
        .max_size(SIZE as u32)
        .min_idle(Some(0))
        .idle_timeout(None)
        .max_lifetime(None)
        .build(manager(&their_made))
        .unwrap();
    let mut held: Vec<(Pooled<Both>, r2d2::PooledConnection<Both>)> = Vec::new();
    let (mut timeouts, mut breaks) = (0, 0);
    for step in 0..2000 {
        match chance.below(5) {
            0..=2 if held.len() == SIZE => {
                // Nothing is free: both time out. This is the one real wait.
                if timeouts < 20 {
                    timeouts += 1;
                    let soon = Duration::from_millis(1);
                    assert!(ours.get_deadline(Instant::now() + soon).unwrap_err().is_timeout());
                    assert!(theirs.get_timeout(soon).is_err());
                }
                assert!(ours.try_get().unwrap_err().is_full());
                assert!(theirs.try_get().is_none());
            }
            0..=2 => {
                let pair = (ours.get().unwrap(), theirs.get().unwrap());
                held.push(pair);
            }
            3 | 4 if !held.is_empty() => {
                let at = usize::try_from(chance.below(held.len() as u64)).unwrap();
                let (mut ours, mut theirs) = held.swap_remove(at);
                let broken = chance.one_in(4);
                breaks += u32::from(broken);
                (ours.broken, theirs.broken) = (broken, broken);
            }
            _ => {}
        }
        // Which of the idle ones it is may differ, how many were made so far may not.
        assert_eq!(our_made.load(Ordering::Relaxed), their_made.load(Ordering::Relaxed), "step {step}");
        let (a, b) = (ours.status(), theirs.state());
        assert_eq!((a.size as u32, a.available as u32), (b.connections, b.idle_connections), "step {step}");
    }
    assert!(timeouts == 20 && breaks > 50);
}
