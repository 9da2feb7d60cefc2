//! The house rules that a search can check. This file is not searched: it spells out what it looks for.

use std::path::{Path, PathBuf};

use crate::repo::{self, Repo};
use crate::stop::Stop;

/// What the rules look at.
const SEARCHED: &[&str] = &["rs", "md", "toml", "yml", "sh", ""];

/// Where people keep their checkouts.
const PERSONAL: &[&str] = &["/home/", "/root/", "/Users/"];

/// One rule: where it holds, what breaks it, and what to do instead.
struct Rule {
    holds: fn(&Path) -> bool,
    broken: fn(&str) -> bool,
    instead: &'static str,
}

const RULES: &[Rule] = &[
    Rule {
        holds: is_rust,
        broken: is_ignored,
        instead: "an ignored test tests nothing: mend it, delete it, or make it a command of its own",
    },
    Rule {
        holds: is_crate_test,
        broken: |line| line.contains("thread::sleep"),
        instead: "a test that sleeps is slow and still a race: use the paused clock or wait for the event",
    },
    Rule {
        holds: |path| is_markdown(path) || is_rust(path),
        broken: |line| states_our_version(line),
        instead: "prose never states a version of ours: write `cargo add fullbore-...`",
    },
    Rule {
        holds: |_| true,
        broken: has_personal_path,
        instead: "a path of somebody's machine: make it relative, or take it from the environment",
    },
];

/// Searches every file of ours.
///
/// # Errors
///
/// A rule is broken; each place is printed as `file:line`.
pub(crate) fn check(repo: &Repo) -> Result<(), Stop> {
    let mut broken = 0;
    for path in repo.files(SEARCHED)? {
        if path == Path::new("xtask/src/rules.rs") {
            continue;
        }
        let text = repo::read(&repo.path(&path))?;
        for (line, instead) in breaches(&path, &text) {
            eprintln!("{}:{line}: {instead}", path.display());
            broken += 1;
        }
    }
    match broken {
        0 => Ok(()),
        n => Err(Stop::failed(format!("house rules broken in {n} places"))),
    }
}

/// The lines of `text` that break a rule, and what to do instead.
fn breaches(path: &Path, text: &str) -> Vec<(usize, &'static str)> {
    let holding: Vec<_> = RULES.iter().filter(|rule| (rule.holds)(path)).collect();
    let lines = text.lines().zip(1..);
    lines
        .flat_map(|(line, number)| {
            holding.iter().filter(move |rule| (rule.broken)(line)).map(move |rule| (number, rule.instead))
        })
        .collect()
}

fn is_rust(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "rs")
}

fn is_markdown(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "md")
}

/// `crates/*/tests/**.rs`.
fn is_crate_test(path: &Path) -> bool {
    let folder: PathBuf = path.components().skip(2).take(1).collect();
    is_rust(path) && path.starts_with("crates") && folder == Path::new("tests")
}

/// `#[ignore]`. The part that another test runs in a child process is no test of its own: it says so, and is let be.
fn is_ignored(line: &str) -> bool {
    let line = line.trim_start();
    line.starts_with("#[ignore") && !line.starts_with("#[ignore = \"the child of ")
}

/// `fullbore-x = "0.1"` or `fullbore = { version = ..`.
fn states_our_version(line: &str) -> bool {
    line.match_indices("fullbore").any(|(at, _)| {
        let rest = line[at..].trim_start_matches(|c: char| c.is_ascii_alphanumeric() || c == '-');
        let Some(value) = rest.trim_start().strip_prefix('=').map(str::trim_start) else {
            return false;
        };
        let quoted = value.strip_prefix('"').is_some_and(|number| number.starts_with(|c: char| c.is_ascii_digit()));
        quoted || (value.starts_with('{') && value.contains("version"))
    })
}

/// An absolute path that starts with a folder of [`PERSONAL`].
fn has_personal_path(line: &str) -> bool {
    PERSONAL.iter().any(|folder| {
        line.match_indices(folder).any(|(at, _)| {
            let before = line[..at].chars().next_back();
            !before.is_some_and(|c| c.is_alphanumeric() || "./-_*~}>)".contains(c))
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(path: &str, text: &str) -> Vec<usize> {
        breaches(Path::new(path), text).into_iter().map(|(line, _)| line).collect()
    }

    #[test]
    fn ignored_tests() {
        assert_eq!(places("crates/pool/src/lib.rs", "#[test]\n#[ignore = \"slow\"]\nfn x() {}\n"), [2]);
        assert!(places("crates/pool/tests/x.rs", "#[ignore = \"the child of survives_kill_9\"]\n").is_empty());
        assert!(places("crates/pool/tests/x.rs", "/// `#[ignore]` in a comment\n").is_empty());
        assert!(places("docs/src/x.md", "an `#[ignore]` in prose is fine\n").is_empty());
    }

    #[test]
    fn sleep_in_tests_only() {
        let text = "std::thread::sleep(d);\n";
        assert_eq!(places("crates/pool/tests/contract.rs", text), [1]);
        assert_eq!(places("crates/pool/tests/common/mod.rs", text), [1]);
        assert!(places("crates/testkit/src/lib.rs", text).is_empty());
        assert!(places("examples/fleet/tests.rs", text).is_empty());
    }

    #[test]
    fn versions_in_prose() {
        assert_eq!(places("README.md", "fullbore-pool = \"0.1\"\n"), [1]);
        assert_eq!(places("README.md", "fullbore = { version = \"1\", features = [] }\n"), [1]);
        assert_eq!(places("crates/pool/src/lib.rs", "//! fullbore-pool = \"0.1\"\n"), [1]);
        assert!(places("README.md", "`cargo add fullbore`; serde = \"1\"; crates/fullbore = facade\n").is_empty());
        assert!(places("Cargo.toml", "fullbore = { path = \"crates/fullbore\", version = \"0.1.0\" }\n").is_empty());
    }

    #[test]
    fn personal_paths() {
        assert_eq!(places("README.md", "see /home/me/x\nand `/root/x`\n"), [1, 2]);
        assert_eq!(places(".ci/run", "cd /root/x\n"), [1]);
        assert!(places("README.md", "docs/home/page.md, https://example.org/home/x, ../root/x\n").is_empty());
    }
}
