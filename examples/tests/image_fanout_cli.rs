//! The image pipeline as its user runs it: on images it makes, on a folder, and with bad input.
#![expect(clippy::unwrap_used, reason = "in the helpers of tests")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use image::{ImageFormat, Rgb, RgbImage};
use rusqlite::Connection;

/// Cargo builds the examples beside the tests: `<target>/<profile>/examples`.
fn program() -> PathBuf {
    let profile = std::env::current_exe().unwrap().ancestors().nth(2).unwrap().to_owned();
    let program = profile.join("examples/image_fanout");
    assert!(program.is_file(), "{} is built by `cargo test` without a target filter", program.display());
    program
}

fn run(words: &[&str]) -> Output {
    Command::new(program()).args(words).output().unwrap()
}

fn error_of(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// What a run that went well has said.
fn said(words: &[&str]) -> String {
    let output = run(words);
    assert_eq!(output.status.code(), Some(0), "{words:?}: {}", error_of(&output));
    String::from_utf8(output.stdout).unwrap()
}

fn save(folder: &Path, name: &str, format: ImageFormat, colour: [u8; 3]) {
    RgbImage::from_pixel(40, 20, Rgb(colour)).save_with_format(folder.join(name), format).unwrap();
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn images_that_it_makes_reach_all_four() {
    let said = said(&["--images", "9", "--pause", "5", "--fail-every", "2"]);
    assert!(said.ends_with("checked: 9 images reached thumbnails, moderation, metadata and search\n"), "{said}");
    for station in ["images", "thumbnails", "moderation", "metadata", "search"] {
        assert!(said.contains(station), "{said}");
    }
    // Every other attempt at the search index fails, so nine successes take seventeen.
    assert!(said.contains(" 8 attempts failed on purpose"), "{said}");
    // Two portraits of nine.
    assert!(said.contains("2 for a moderator"), "{said}");
}

#[test]
fn a_folder_is_read_whatever_is_in_it() {
    let dir = tempfile::tempdir().unwrap();
    let (folder, out) = (dir.path().join("in"), dir.path().join("out"));
    fs::create_dir_all(folder.join("a folder in it")).unwrap();
    save(&folder, "green.png", ImageFormat::Png, [10, 200, 10]);
    save(&folder, "skin.jpg", ImageFormat::Jpeg, [220, 165, 135]);
    // The content counts, not the name. Nor do quotes and blanks matter.
    save(&folder, "a \"quoted\" na\u{ef}ve name", ImageFormat::Png, [10, 10, 200]);
    fs::write(folder.join("notes.txt"), "no image").unwrap();
    fs::write(folder.join("empty.png"), "").unwrap();
    let whole = fs::read(folder.join("green.png")).unwrap();
    fs::write(folder.join("half.png"), &whole[..whole.len() / 2]).unwrap();

    let said = said(&[text(&folder), "--out", text(&out), "--pause", "0"]);
    assert!(said.contains("checked: 3 images"), "{said}");
    assert!(said.contains("no images: 3\n"), "{said}");
    for name in ["notes.txt: ", "empty.png: ", "half.png: "] {
        assert!(said.contains(name), "{said}");
    }
    assert!(said.contains("1 for a moderator to look at; 3 landscape; 1 green"), "{said}");
    assert_eq!(fs::read_dir(out.join("thumbnails")).unwrap().count(), 3);
    let index = Connection::open(out.join("index.db")).unwrap();
    let blue: String =
        index.query_row("SELECT name FROM images WHERE images MATCH 'blue'", [], |row| row.get(0)).unwrap();
    assert_eq!(blue, "a \"quoted\" na\u{ef}ve name");
}

#[test]
fn a_destination_that_always_fails_is_found_out() {
    let output = run(&["--images", "3", "--pause", "0", "--fail-every", "1"]);
    let error = error_of(&output);
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(
        error.contains("the check did not hold in 3 places, first: forest-0002.png did not reach search"),
        "{error}"
    );
    // The others have done their part.
    assert!(String::from_utf8_lossy(&output.stdout).contains("thumbnails"), "{error}");
}

#[test]
fn wrong_usage_is_one_line_with_the_remedy_and_status_2() {
    let dir = tempfile::tempdir().unwrap();
    let empty = dir.path().join("empty");
    fs::create_dir(&empty).unwrap();
    let none = dir.path().join("none");
    fs::create_dir(&none).unwrap();
    fs::write(none.join("notes.txt"), "no image").unwrap();
    let file = none.join("notes.txt");
    let below_a_file = file.join("out");
    for (words, says) in [
        (&["--images", "0"][..], "give 1 to 10000"),
        (&["--images", "10001"], "give 1 to 10000"),
        (&["--images", "some"], "give 1 to 10000"),
        (&["--images"], "--images needs a value"),
        (&["--pause", "-1"], "give 0 to 10000"),
        (&["--fail-every", "0"], "give 1 to 1000000"),
        (&["--fast"], "--fast"),
        (&["here", "there"], "there"),
        (&["here", "--images", "3"], "leave one out"),
        (&["/nowhere/at/all"], "cannot read the folder /nowhere/at/all"),
        (&[text(&file)], "cannot read the folder"),
        (&[text(&empty)], "name one with PNG or JPEG files"),
        (&[text(&none)], "none of the 1 files"),
        (&["--out", text(&below_a_file)], "name another with --out"),
    ] {
        let output = run(words);
        let error = error_of(&output);
        assert_eq!(output.status.code(), Some(2), "{words:?}: {error}");
        assert!(error.contains(says) && error.trim_end().lines().count() == 1, "{words:?}: {error}");
        assert!(output.stdout.is_empty(), "{words:?}");
    }
}

#[test]
fn help_says_what_it_does() {
    let output = run(&["--help"]);
    assert_eq!(output.status.code(), Some(0));
    assert!(String::from_utf8_lossy(&output.stdout).contains("--fail-every N"));
}
