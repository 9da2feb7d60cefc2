//! Whether an `{{#include}}` finds what it names: `file`, `file:anchor`, `file:5`, `file:5:9`, `file::9`.

use std::fs;
use std::path::Path;

/// Resolves `target` from the folder of the page.
///
/// # Errors
///
/// Why it does not.
pub(super) fn resolve(folder: &Path, target: &str) -> Result<(), String> {
    let (path, part) = target.split_once(':').unwrap_or((target, ""));
    let text = fs::read_to_string(folder.join(path)).map_err(|error| format!("cannot be read: {error}"))?;
    if part.is_empty() {
        return Ok(());
    }
    let mut bounds = part.splitn(2, ':');
    let first = bounds.next().unwrap_or_default();
    if !first.is_empty() && first.parse::<usize>().is_err() {
        return anchor(&text, first);
    }
    let lines = text.lines().count();
    let beyond = |bound: &str| bound.parse::<usize>().is_ok_and(|line| line > lines);
    if beyond(first) || bounds.next().is_some_and(beyond) {
        return Err(format!("names a line beyond the file's {lines}"));
    }
    Ok(())
}

/// Both marks of the anchor are there, with something between them.
fn anchor(text: &str, name: &str) -> Result<(), String> {
    let line_of = |mark: &str| text.lines().position(|line| marks(line, mark, name));
    let Some(start) = line_of("ANCHOR:") else { return Err(format!("has no `ANCHOR: {name}`")) };
    let Some(end) = line_of("ANCHOR_END:") else { return Err(format!("has no `ANCHOR_END: {name}`")) };
    if end <= start + 1 {
        return Err(format!("has nothing between the marks of `{name}`"));
    }
    Ok(())
}

/// Whether `line` holds `mark` followed by exactly `name`.
fn marks(line: &str, mark: &str, name: &str) -> bool {
    let Some((_, rest)) = line.split_once(mark) else { return false };
    let rest = rest.trim_start();
    let end = rest.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == '-')).unwrap_or(rest.len());
    &rest[..end] == name
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "// ANCHOR: a\nfn a() {}\n// ANCHOR_END: a\n// ANCHOR: ab\n// ANCHOR_END: ab\n// ANCHOR: c\n";

    #[test]
    fn an_anchor_has_two_marks_and_something_between() {
        anchor(TEXT, "a").unwrap();
        assert!(anchor(TEXT, "ab").unwrap_err().contains("nothing between"));
        assert!(anchor(TEXT, "b").unwrap_err().contains("no `ANCHOR: b`"));
        assert!(anchor(TEXT, "c").unwrap_err().contains("no `ANCHOR_END: c`"));
    }

    #[test]
    fn lines_must_be_there() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
        for target in ["Cargo.toml", "Cargo.toml:1", "Cargo.toml:1:2", "Cargo.toml::2", "Cargo.toml:1:"] {
            resolve(folder, target).unwrap();
        }
        assert!(resolve(folder, "Cargo.toml:1:9999").unwrap_err().contains("beyond"));
        assert!(resolve(folder, "Cargo.toml:9999").unwrap_err().contains("beyond"));
        assert!(resolve(folder, "gone.toml").unwrap_err().contains("cannot be read"));
    }
}
