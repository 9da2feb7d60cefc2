//! `links`: every relative link, anchor and include of our Markdown files resolves. Nothing is fetched.
//!
//! For all `*.md` files: the target of a link exists inside the repository, and a `#anchor` into a Markdown file is one
//! of its headings. For the book (`docs/src`) also: a link does not leave the book, each page stands in `SUMMARY.md`,
//! and each `{{#include}}` finds its file, anchor or lines. mdBook itself only warns of these, or is silent.

mod include;
mod markdown;

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::{Component, Path, PathBuf};

use crate::commands::no_arguments;
use crate::repo::{self, Repo};
use crate::stop::Stop;
use markdown::{Page, Reference};

/// Where the book's pages are.
const BOOK: &str = "docs/src";

/// `links`.
///
/// # Errors
///
/// Something is dead; each place is printed as `file:line`.
pub(crate) fn links(repo: &Repo, arguments: &[OsString]) -> Result<(), Stop> {
    no_arguments(arguments)?;
    check(repo)
}

/// Checks all Markdown files.
///
/// # Errors
///
/// As [`links`].
pub(crate) fn check(repo: &Repo) -> Result<(), Stop> {
    let checker = Checker::new(repo)?;
    let dead = checker.dead();
    for line in &dead {
        eprintln!("{line}");
    }
    match dead.len() {
        0 => Ok(()),
        n => Err(Stop::failed(format!("{n} dead links or includes"))),
    }
}

/// All pages, read once.
struct Checker<'a> {
    root: &'a Path,
    pages: HashMap<PathBuf, Page>,
}

impl<'a> Checker<'a> {
    fn new(repo: &'a Repo) -> Result<Self, Stop> {
        let mut pages = HashMap::new();
        for path in repo.files(&["md"])? {
            let page = markdown::read(&repo::read(&repo.path(&path))?);
            pages.insert(path, page);
        }
        Ok(Self { root: repo.root(), pages })
    }

    /// What is dead, as lines for a person, in the order of the files.
    fn dead(&self) -> Vec<String> {
        let mut paths: Vec<_> = self.pages.keys().collect();
        paths.sort();
        let mut dead = Vec::new();
        for path in paths {
            let page = &self.pages[path];
            let mut complain = |line: usize, what: String| dead.push(format!("{}:{line}: {what}", path.display()));
            for link in &page.links {
                if let Err(why) = self.link(path, link) {
                    complain(link.line, format!("`{}` {why}", link.target));
                }
            }
            if !path.starts_with(BOOK) {
                continue;
            }
            for include in &page.includes {
                if let Err(why) = include::resolve(&self.root.join(folder(path)), &include.target) {
                    complain(include.line, format!("include `{}` {why}", include.target));
                }
            }
            if !self.is_in_book(path) {
                complain(1, String::from("this page does not stand in SUMMARY.md, so mdBook leaves it out"));
            }
        }
        dead
    }

    fn link(&self, from: &Path, link: &Reference) -> Result<(), String> {
        if has_scheme(&link.target) {
            return Ok(());
        }
        let summary = from == Path::new(BOOK).join("SUMMARY.md");
        if link.target.is_empty() {
            // A chapter in draft.
            return if summary { Ok(()) } else { Err(String::from("has no target")) };
        }
        let (path, anchor) = link.target.split_once('#').unwrap_or((&link.target, ""));
        if path.starts_with('/') {
            return Err(String::from("starts at a root: make it relative"));
        }
        let path = percent_decoded(path);
        let target = if path.is_empty() { Some(from.to_path_buf()) } else { joined(folder(from), Path::new(&path)) };
        let Some(target) = target else { return Err(String::from("leaves the repository")) };
        if !self.root.join(&target).exists() {
            return Err(String::from("does not exist"));
        }
        if from.starts_with(BOOK) {
            if !target.starts_with(BOOK) {
                return Err(String::from("leaves the book: a reader of the site has only docs/src"));
            }
            if self.pages.contains_key(&target) && !self.is_in_book(&target) {
                return Err(String::from("is a page that does not stand in SUMMARY.md"));
            }
        }
        match self.pages.get(&target) {
            Some(page) if !anchor.is_empty() && !page.anchors.contains(anchor) => {
                Err(format!("has no heading for `#{anchor}`"))
            }
            _ => Ok(()),
        }
    }

    /// Whether mdBook renders this page: `SUMMARY.md` links to it, or is it.
    fn is_in_book(&self, path: &Path) -> bool {
        let summary = Path::new(BOOK).join("SUMMARY.md");
        let links = self.pages.get(&summary).map_or(&[][..], |page| &page.links);
        path == summary
            || links.iter().any(|link| joined(Path::new(BOOK), Path::new(&link.target)).as_deref() == Some(path))
    }
}

fn folder(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new(""))
}

/// `https:`, `mailto:` ..
fn has_scheme(target: &str) -> bool {
    let Some((scheme, _)) = target.split_once(':') else { return false };
    scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c))
}

/// `folder/relative` without `.` and `..`; `None` if that is above the root.
fn joined(folder: &Path, relative: &Path) -> Option<PathBuf> {
    let mut path = PathBuf::new();
    for component in folder.join(relative).components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir => {
                if !path.pop() {
                    return None;
                }
            }
            other => path.push(other),
        }
    }
    Some(path)
}

/// `%20` is a space.
fn percent_decoded(text: &str) -> String {
    let mut parts = text.split('%');
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        match part.get(..2).and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                bytes.extend(&part.as_bytes()[2..]);
            }
            None => {
                bytes.push(b'%');
                bytes.extend(part.as_bytes());
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{env, fs, process};

    /// A repository of these files; gone at the end.
    struct Toy(PathBuf);

    impl Toy {
        fn new(name: &str, files: &[(&str, &str)]) -> Self {
            let root = env::temp_dir().join(format!("xtask-links-{name}-{}", process::id()));
            for (path, text) in files {
                let path = root.join(path);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, text).unwrap();
            }
            Self(root)
        }

        fn dead(&self) -> Vec<String> {
            let repo = Repo::at(self.0.clone());
            Checker::new(&repo).unwrap().dead()
        }
    }

    impl Drop for Toy {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn living_links() {
        let toy = Toy::new(
            "living",
            &[
                (
                    "README.md",
                    "# Top\n[a](docs/src/a.md#one-two), [b](#top), [c](crates/), [d](https://x.org/#y), [e](a%20b.txt)\n",
                ),
                ("a b.txt", ""),
                ("crates/pool/README.md", "[up](../../README.md)\n"),
                ("docs/src/SUMMARY.md", "- [A](a.md)\n- [Draft]()\n"),
                ("docs/src/a.md", "## One two\n[self](./a.md#one-two)\n"),
            ],
        );
        assert!(toy.dead().is_empty(), "{:?}", toy.dead());
    }

    #[test]
    fn dead_links_are_named_with_their_place() {
        let toy = Toy::new("dead", &[("README.md", "# Top\n\n[a](gone.md) [b](#bottom)\n[c](../x) [d](/x) [e]()\n")]);
        assert_eq!(
            toy.dead(),
            [
                "README.md:3: `gone.md` does not exist",
                "README.md:3: `#bottom` has no heading for `#bottom`",
                "README.md:4: `../x` leaves the repository",
                "README.md:4: `/x` starts at a root: make it relative",
                "README.md:4: `` has no target",
            ]
        );
    }

    #[test]
    fn a_page_must_stand_in_the_summary() {
        let toy = Toy::new(
            "summary",
            &[
                ("README.md", ""),
                ("docs/src/SUMMARY.md", "- [A](a.md)\n"),
                ("docs/src/a.md", "[out](../../README.md) [b](b.md)\n"),
                ("docs/src/b.md", "lost\n"),
            ],
        );
        let dead = toy.dead();
        assert_eq!(dead.len(), 3, "{dead:?}");
        assert!(dead[0].contains("leaves the book"), "{dead:?}");
        assert!(dead[1].contains("does not stand in SUMMARY.md"), "{dead:?}");
        assert!(dead[2].starts_with("docs/src/b.md:1: this page"), "{dead:?}");
    }

    #[test]
    fn includes_are_checked_in_the_book() {
        let toy = Toy::new(
            "includes",
            &[
                ("README.md", "{{#include anything.rs}}\n"),
                ("examples/x.rs", "// ANCHOR: main\nfn main() {}\n// ANCHOR_END: main\n"),
                ("docs/src/SUMMARY.md", "- [A](a.md)\n"),
                (
                    "docs/src/a.md",
                    "```rust\n{{#include ../../examples/x.rs:main}}\n{{#include ../../examples/x.rs:gone}}\n```\n{{#include y.rs}}\n",
                ),
            ],
        );
        let dead = toy.dead();
        assert_eq!(dead.len(), 2, "{dead:?}");
        assert!(dead[0].starts_with("docs/src/a.md:3: include `../../examples/x.rs:gone`"), "{dead:?}");
        assert!(dead[1].starts_with("docs/src/a.md:5: include `y.rs`"), "{dead:?}");
    }

    #[test]
    fn schemes() {
        assert!(has_scheme("https://x") && has_scheme("mailto:a@b"));
        assert!(!has_scheme("a.md") && !has_scheme("a.md#x:y") && !has_scheme("./a:b"));
    }

    #[test]
    fn percent_signs() {
        assert_eq!(percent_decoded("a%20b%C3%A4"), "a bä");
        assert_eq!(percent_decoded("100%"), "100%");
    }
}
