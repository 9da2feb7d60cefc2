//! Ends the program when something does not come to its end.

use std::process::exit;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// What takes longer than this hangs, however loaded the machine is: nothing here is planned to take more than some seconds.
pub(crate) const HANG: Duration = Duration::from_secs(60);

/// Looks whether each phase comes to its end.
pub(crate) struct Watch {
    phase: Arc<Mutex<Phase>>,
}

struct Phase {
    name: &'static str,
    since: Instant,
    tell: Option<Box<dyn Fn() -> String + Send>>,
}

impl Watch {
    pub(crate) fn start(seed: u64) -> Self {
        let phase = Arc::new(Mutex::new(Phase { name: "start", since: Instant::now(), tell: None }));
        let watched = Arc::clone(&phase);
        thread::spawn(move || {
            loop {
                thread::sleep(Duration::from_secs(1));
                let phase = lock(&watched);
                if phase.since.elapsed() > HANG * 2 {
                    println!("VIOLATION, seed {seed}: it hangs, {}", phase.name);
                    // Last, as that may hang too.
                    if let Some(tell) = &phase.tell {
                        println!("{}", tell());
                    }
                    exit(1);
                }
            }
        });
        Self { phase }
    }

    /// The next phase, and who can say how things are.
    pub(crate) fn enter(&self, name: &'static str, tell: impl Fn() -> String + Send + 'static) {
        let before = {
            let mut phase = lock(&self.phase);
            (phase.name, phase.since) = (name, Instant::now());
            phase.tell.replace(Box::new(tell))
        };
        drop(before);
    }

    /// Nothing to be told of any more.
    pub(crate) fn leave(&self) {
        let before = lock(&self.phase).tell.take();
        drop(before);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
