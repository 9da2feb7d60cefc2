//! What the system says about processes that are not our children.

use std::{fs, path::Path};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};

/// Whether a process with this id exists and any thread of it still runs; one that ended and is only waiting to be reaped
/// does not count. So when this is false, its ports and files are closed.
#[must_use]
pub fn is_alive(pid: u32) -> bool {
    if cfg!(target_os = "linux") {
        fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat_says_alive(&stat))
    } else {
        as_pid(pid).is_some_and(|pid| test_kill_process(pid).is_ok())
    }
}

/// `stat` is "pid (name) state ...", with the number of threads as the 18th word after the name.
fn stat_says_alive(stat: &str) -> bool {
    // The name may itself hold a parenthesis.
    let Some((_, rest)) = stat.rsplit_once(')') else { return false };
    let mut words = rest.split_ascii_whitespace();
    let ended = matches!(words.next(), Some("Z" | "X"));
    // The state is that of the first thread. Others, which keep the files open, may still be on their way out.
    let threads: u32 = words.nth(16).and_then(|word| word.parse().ok()).unwrap_or(0);
    !ended || threads > 1
}

pub(crate) fn as_pid(pid: u32) -> Option<Pid> {
    i32::try_from(pid).ok().and_then(Pid::from_raw)
}

/// Sends SIGKILL to all processes that work in `dir` and returns how many there were; always 0 where there is no `/proc`.
///
/// This is how the children of a dead server are found: they are no longer its children then (they have a new parent), and
/// PostgreSQL's are not in its process group either, but all of them work in its data directory.
pub(crate) fn kill_all_in(dir: &Path) -> usize {
    let Ok(dir) = dir.canonicalize() else { return 0 };
    let pids = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| fs::read_link(entry.path().join("cwd")).is_ok_and(|cwd| cwd == dir))
        .filter_map(|entry| as_pid(entry.file_name().to_str()?.parse().ok()?));
    let mut found = 0;
    for pid in pids {
        let _ = kill_process(pid, Signal::KILL); // fails if it is gone by now, which is what we want
        found += 1;
    }
    found
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_process_lives_as_long_as_its_last_thread() {
        let stat = |state: &str, threads: u32| {
            format!("7 (redis (1) x) {state} 1 7 7 0 -1 4194304 1 0 0 0 0 0 0 0 20 0 {threads} 0 99 0 0")
        };
        assert!(stat_says_alive(&stat("S", 1)));
        assert!(stat_says_alive(&stat("Z", 4)));
        assert!(!stat_says_alive(&stat("Z", 1)));
        assert!(!stat_says_alive(&stat("X", 0)));
        assert!(!stat_says_alive(""));
    }

    #[test]
    fn an_unreaped_process_is_not_alive() {
        assert!(is_alive(std::process::id()));
        let mut child = Command::new("/bin/sh").args(["-c", "read x"]).stdin(Stdio::piped()).spawn().unwrap();
        let pid = child.id();
        assert!(is_alive(pid));
        drop(child.stdin.take());
        assert!(crate::eventually(std::time::Duration::from_secs(30), || !is_alive(pid)));
        child.wait().unwrap();
        assert!(!is_alive(pid));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn processes_are_found_by_where_they_work() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(kill_all_in(dir.path()), 0);
        let mut child = Command::new("/bin/sh")
            .args(["-c", "read x"])
            .stdin(Stdio::piped())
            .current_dir(dir.path())
            .spawn()
            .unwrap();
        assert_eq!(kill_all_in(dir.path()), 1);
        assert!(!child.wait().unwrap().success());
        assert_eq!(kill_all_in(dir.path()), 0);
    }
}
