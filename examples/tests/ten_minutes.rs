//! "Ten minutes" of the book: each snippet is the whole program of an empty crate, built and run as a reader would.
#![expect(clippy::unwrap_used, reason = "in the helpers of tests")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use fullbore_testkit::Postgres;

/// An empty crate that depends on the facade alone, with `snippet` as its program; runs it.
fn run_in_an_empty_crate(snippet: &str, features: &str, database: Option<&str>) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let dir = tempfile::tempdir().unwrap();
    let facade = root.join("crates/fullbore").canonicalize().unwrap();
    let manifest = format!(
        "[package]\nname = \"reader\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\n[workspace]\n\n[dependencies]\n\
         fullbore = {{ path = {facade:?}, features = [{features}] }}\n"
    );
    fs::create_dir(dir.path().join("src")).unwrap();
    fs::write(dir.path().join("Cargo.toml"), manifest).unwrap();
    fs::copy(root.join("examples/ten_minutes").join(snippet), dir.path().join("src/main.rs")).unwrap();
    // The versions that this repository was tested with.
    fs::copy(root.join("Cargo.lock"), dir.path().join("Cargo.lock")).unwrap();
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["run", "--quiet", "--offline"]).current_dir(dir.path());
    // One for all snippets, so that what they share is built once.
    cargo.env("CARGO_TARGET_DIR", target_dir().join("ten_minutes")).env_remove("RUSTFLAGS");
    if let Some(url) = database {
        cargo.env("DATABASE_URL", url);
    }
    let output = cargo.output().unwrap();
    assert!(
        output.status.success(),
        "{snippet}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// The build directory that this test itself lies in: `<target>/<profile>/deps/<test>`.
fn target_dir() -> PathBuf {
    std::env::current_exe().unwrap().ancestors().nth(3).unwrap().to_owned()
}

/// The lines between the anchors: what the page shows.
fn body(snippet: &str) -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("ten_minutes").join(snippet);
    let text = fs::read_to_string(path).unwrap();
    let lines = text.lines().skip_while(|line| !line.contains("ANCHOR: body")).skip(1);
    lines.take_while(|line| !line.contains("ANCHOR_END: body")).map(str::to_owned).collect()
}

#[test]
fn every_snippet_has_at_most_ten_lines() {
    for snippet in ["batch_rows.rs", "cache_in_front.rs", "pool_transaction.rs", "fan_out.rs", "percentiles.rs"] {
        let lines = body(snippet).len();
        assert!((1..=10).contains(&lines), "{snippet} has {lines} lines");
    }
}

#[test]
fn the_snippets_run_in_an_empty_crate() {
    run_in_an_empty_crate("cache_in_front.rs", "", None);
    run_in_an_empty_crate("fan_out.rs", "", None);
    run_in_an_empty_crate("percentiles.rs", "", None);
}

#[test]
fn the_database_snippets_run_in_an_empty_crate() {
    let Some(postgres) = Postgres::start_or_skip() else { return };
    run_in_an_empty_crate("batch_rows.rs", "\"postgres\"", Some(&postgres.url()));
    run_in_an_empty_crate("pool_transaction.rs", "\"postgres\"", Some(&postgres.url()));
}
