//! Closing a program: order, one deadline, two who close at once, and real signals to a real process.
#![cfg(not(fullbore_loom))]
#![allow(missing_docs, clippy::unwrap_used)]

use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use fullbore_core::{Clock, Close, Leftover, PausedClock, Shutdown};

const SECOND: Duration = Duration::from_secs(1);

/// Takes `needs` of the clock's time to close.
struct Slow {
    name: &'static str,
    needs: Duration,
    clock: PausedClock,
    limits: Arc<Mutex<Vec<(&'static str, Duration)>>>,
}

impl Close for Slow {
    fn name(&self) -> String {
        self.name.to_owned()
    }
    fn close_within(&self, limit: Duration) -> Leftover {
        self.limits.lock().unwrap().push((self.name, limit));
        self.clock.advance(self.needs.min(limit));
        Leftover::default()
    }
}

#[test]
fn all_parts_share_one_deadline_in_the_order_of_registration() {
    let clock = PausedClock::new();
    let shutdown = Shutdown::with_clock(Clock::from(&clock));
    let limits = Arc::new(Mutex::new(Vec::new()));
    for (name, needs) in [("source", 2 * SECOND), ("batcher", 9 * SECOND), ("pool", SECOND)] {
        shutdown.register(Slow { name, needs, clock: clock.clone(), limits: Arc::clone(&limits) });
    }
    let report = shutdown.close_within(5 * SECOND);
    assert!(shutdown.is_requested());
    assert_eq!(*limits.lock().unwrap(), [("source", 5 * SECOND), ("batcher", 3 * SECOND), ("pool", Duration::ZERO)]);
    assert_eq!(report.parts().iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["source", "batcher", "pool"]);
    assert_eq!(report.to_string(), "3 parts closed, nothing left");
}

#[test]
fn a_part_that_came_late_is_closed_by_the_next_call() {
    let clock = PausedClock::new();
    let shutdown = Shutdown::with_clock(Clock::from(&clock));
    assert!(shutdown.close_within(SECOND).parts().is_empty());
    let limits = Arc::default();
    shutdown.register(Slow { name: "late", needs: SECOND, clock, limits: Arc::clone(&limits) });
    assert!(limits.lock().unwrap().is_empty());
    assert_eq!(shutdown.close_within(Duration::MAX).parts().len(), 1);
    assert_eq!(*limits.lock().unwrap(), [("late", Duration::MAX)]);
    assert!(shutdown.close_within(SECOND).parts().is_empty(), "once");
}

/// Closes when it is told.
struct Told {
    begun: mpsc::Sender<()>,
    finish: Mutex<mpsc::Receiver<()>>,
}

impl Close for Told {
    fn name(&self) -> String {
        "told".into()
    }
    fn close_within(&self, _: Duration) -> Leftover {
        self.begun.send(()).unwrap();
        self.finish.lock().unwrap().recv().unwrap();
        Leftover::default()
    }
}

#[test]
fn who_closes_second_waits_for_the_first() {
    let clock = PausedClock::new();
    let shutdown = Shutdown::with_clock(Clock::from(&clock));
    let (begun, has_begun) = mpsc::channel();
    let (finish, finished) = mpsc::channel();
    shutdown.register(Told { begun, finish: Mutex::new(finished) });
    thread::scope(|scope| {
        let first = scope.spawn(|| shutdown.close_within(9 * SECOND));
        has_begun.recv().unwrap();
        let hasty = scope.spawn(|| shutdown.close_within(SECOND));
        let second = scope.spawn(|| shutdown.close_within(9 * SECOND));
        clock.wait_for_waiters(2);
        clock.advance(SECOND);
        let report = hasty.join().unwrap();
        assert!(!report.is_clean(), "somebody is still at it");
        assert_eq!(report.to_string(), "told: 0 items undelivered, 1 in flight\n");
        clock.wait_for_waiters(1);
        finish.send(()).unwrap();
        assert!(second.join().unwrap().is_clean());
        assert_eq!(first.join().unwrap().parts().len(), 1);
    });
}

/// Closes the program it is a part of.
struct Eager(Shutdown);

impl Close for Eager {
    fn name(&self) -> String {
        "eager".into()
    }
    fn close_within(&self, limit: Duration) -> Leftover {
        assert!(self.0.close_within(limit).parts().is_empty());
        Leftover::default()
    }
}

#[test]
fn a_part_that_closes_the_program_does_not_wait_for_itself() {
    let shutdown = Shutdown::with_clock(Clock::from(PausedClock::new()));
    shutdown.register(Eager(shutdown.clone()));
    assert_eq!(shutdown.close_within(Duration::MAX).parts().len(), 1);
}

#[test]
fn a_request_wakes_everybody_who_waits() {
    let clock = PausedClock::new();
    let shutdown = Shutdown::with_clock(Clock::from(&clock));
    thread::scope(|scope| {
        let waiting = [0, 1].map(|_| scope.spawn(|| shutdown.wait()));
        let within = scope.spawn(|| shutdown.wait_within(SECOND));
        clock.wait_for_waiters(3);
        shutdown.request();
        for waiting in waiting {
            waiting.join().unwrap();
        }
        assert!(within.join().unwrap());
    });
}

#[cfg(all(unix, feature = "signals"))]
mod signals {
    use super::*;
    use fullbore_testkit::{child_test, is_child};
    use rustix::process::{Pid, Signal, kill_process};
    use std::io::{self, BufRead as _, BufReader, Read as _};
    use std::process::{Child, ChildStdin, ChildStdout, Stdio};

    /// A child that runs one of the tests below.
    struct Process {
        child: Child,
        /// Its end is the child's leave to go on.
        leave: Option<ChildStdin>,
        says: BufReader<ChildStdout>,
    }

    impl Process {
        fn start(test: &str) -> Self {
            let mut command = child_test(&format!("signals::{test}"));
            let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
            let (leave, says) = (child.stdin.take(), BufReader::new(child.stdout.take().unwrap()));
            Self { child, leave, says }
        }

        /// Reads on until the child says this.
        fn until(&mut self, word: &str) {
            let mut line = String::new();
            while !line.contains(word) {
                line.clear();
                assert!(self.says.read_line(&mut line).unwrap() > 0, "the child ended without saying {word}");
            }
        }

        fn signal(&self, signal: Signal) {
            kill_process(Pid::from_child(&self.child), signal).unwrap();
        }

        fn status(mut self) -> Option<i32> {
            drop(self.leave.take());
            self.child.wait().unwrap().code()
        }
    }

    impl Drop for Process {
        fn drop(&mut self) {
            // Only after a failed assertion: else it was waited for.
            if matches!(self.child.try_wait(), Ok(None)) {
                let _ = self.child.kill();
                let _ = self.child.wait();
            }
        }
    }

    fn wait_for_leave() {
        let _ = io::stdin().read_to_end(&mut Vec::new());
    }

    #[test]
    #[ignore = "the child of a_signal_requests_the_stop"]
    fn child_waits_for_a_request() {
        if !is_child("signals::child_waits_for_a_request") {
            return;
        }
        let shutdown = Shutdown::new();
        shutdown.on_signals().unwrap();
        // Neither a second listener nor its refusal changes the first.
        let other = Shutdown::new();
        assert_eq!(other.on_signals().unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(shutdown.on_signals().unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        println!("READY");
        shutdown.wait();
        assert!(!other.is_requested());
        println!("REQUESTED");
        wait_for_leave();
    }

    #[test]
    fn a_signal_requests_the_stop() {
        for signal in [Signal::TERM, Signal::INT] {
            let mut child = Process::start("child_waits_for_a_request");
            child.until("READY");
            child.signal(signal);
            child.until("REQUESTED");
            assert_eq!(child.status(), Some(0), "it ends as it likes");
        }
    }

    #[test]
    fn a_second_signal_ends_the_process_at_once() {
        for (first, second, status) in
            [(Signal::INT, Signal::INT, 130), (Signal::TERM, Signal::TERM, 143), (Signal::INT, Signal::TERM, 143)]
        {
            let mut child = Process::start("child_waits_for_a_request");
            child.until("READY");
            child.signal(first);
            child.until("REQUESTED");
            child.signal(second);
            // The pipe stays open: nothing but the signal ends it.
            assert_eq!(child.child.wait().unwrap().code(), Some(status));
        }
    }

    #[test]
    #[ignore = "the child of a_hook_that_hangs_does_not_keep_the_second_signal_out"]
    fn child_hangs_in_a_hook() {
        if !is_child("signals::child_hangs_in_a_hook") {
            return;
        }
        let shutdown = Shutdown::new();
        shutdown.on_request(|| {
            println!("HANGING");
            wait_for_leave();
        });
        shutdown.on_signals().unwrap();
        println!("READY");
        wait_for_leave();
    }

    #[test]
    fn a_hook_that_hangs_does_not_keep_the_second_signal_out() {
        let mut child = Process::start("child_hangs_in_a_hook");
        child.until("READY");
        child.signal(Signal::INT);
        child.until("HANGING");
        child.signal(Signal::INT);
        assert_eq!(child.child.wait().unwrap().code(), Some(130));
    }

    #[test]
    #[ignore = "the child of the_first_signal_after_a_request_of_the_programs_own_ends_nothing"]
    fn child_has_requested_the_stop_itself() {
        if !is_child("signals::child_has_requested_the_stop_itself") {
            return;
        }
        // Another listener, by which the child knows that the signal has come.
        let mut seen = signal_hook::iterator::Signals::new([signal_hook::consts::SIGTERM]).unwrap();
        let shutdown = Shutdown::new();
        shutdown.request();
        shutdown.on_signals().unwrap();
        println!("READY");
        assert!(seen.forever().next().is_some());
        println!("SEEN");
        wait_for_leave();
    }

    #[test]
    fn the_first_signal_after_a_request_of_the_programs_own_ends_nothing() {
        let mut child = Process::start("child_has_requested_the_stop_itself");
        child.until("READY");
        child.signal(Signal::TERM);
        child.until("SEEN");
        assert_eq!(child.status(), Some(0));
    }
}
