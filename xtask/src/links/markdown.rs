//! Reads as much of a Markdown file as a link check needs: links, anchors, includes.
//!
//! Not a Markdown parser. Known: fenced code, code spans, HTML comments, inline links and images, reference definitions,
//! ATX headings (`# ..`), explicit ids. Not known: indented code blocks and underlined headings; this project has none.

use std::collections::{HashMap, HashSet};

/// What a page refers to, and what can be referred to in it.
#[derive(Debug, Default)]
pub(super) struct Page {
    /// Links, as written.
    pub(super) links: Vec<Reference>,
    /// `{{#include ..}}` and its like, as written.
    pub(super) includes: Vec<Reference>,
    /// The ids of headings, and explicit ones.
    pub(super) anchors: HashSet<String>,
}

/// Something that must exist.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Reference {
    /// The line, from 1.
    pub(super) line: usize,
    /// What it refers to.
    pub(super) target: String,
}

/// Reads a page.
pub(super) fn read(text: &str) -> Page {
    let prose = without_comments(&without_fences(text));
    let plain = without_code_spans(&prose);
    let mut links = inline_links(&plain);
    links.extend(definitions(&plain));
    links.sort_by_key(|link| link.line);
    let mut anchors = heading_ids(&prose);
    anchors.extend(explicit_ids(&plain));
    Page { links, includes: includes(text), anchors }
}

/// `text` with fenced code blocks blanked; every line stays where it is.
fn without_fences(text: &str) -> String {
    let mut open: Option<&str> = None;
    let mut lines = Vec::new();
    for line in text.split('\n') {
        let fence = fence(line);
        match (open, fence) {
            (None, None) => lines.push(line),
            (None, Some(mark)) => {
                open = Some(mark);
                lines.push("");
            }
            (Some(opened), closing) => {
                let closes = closing.is_some_and(|mark| mark.starts_with(opened) && line.trim() == mark);
                open = if closes { None } else { Some(opened) };
                lines.push("");
            }
        }
    }
    lines.join("\n")
}

/// The three or more backticks or tildes that a line starts with. A quote mark may stand before them.
fn fence(line: &str) -> Option<&str> {
    let line = line.trim_start_matches([' ', '\t', '>']);
    ['`', '~'].into_iter().find_map(|mark| {
        let length = line.len() - line.trim_start_matches(mark).len();
        // "```x``` y" is a code span.
        (length >= 3 && !(mark == '`' && line[length..].contains('`'))).then(|| &line[..length])
    })
}

fn without_comments(text: &str) -> String {
    let mut rest = text;
    let mut out = String::new();
    while let Some((before, comment)) = rest.split_once("<!--") {
        let (comment, after) = comment.split_once("-->").unwrap_or((comment, ""));
        out.push_str(before);
        out.extend(comment.chars().filter(|c| *c == '\n'));
        rest = after;
    }
    out + rest
}

/// Blanks what stands between runs of backticks of equal length, within a paragraph.
fn without_code_spans(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(start) = rest.find('`') {
        let (before, from) = rest.split_at(start);
        out.push_str(before);
        let mark = &from[..from.len() - from.trim_start_matches('`').len()];
        let inside = &from[mark.len()..];
        let escaped = before.ends_with('\\');
        match closing_run(inside, mark.len()).filter(|_| !escaped) {
            Some(end) => {
                out.extend(inside[..end].chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
                rest = &inside[end + mark.len()..];
            }
            None => {
                out.push_str(mark);
                rest = inside;
            }
        }
    }
    out + rest
}

/// Where the next run of exactly `length` backticks starts, if it is in this paragraph.
fn closing_run(text: &str, length: usize) -> Option<usize> {
    let paragraph = &text[..text.find("\n\n").unwrap_or(text.len())];
    let mut at = 0;
    while let Some(start) = paragraph[at..].find('`').map(|found| at + found) {
        let run = paragraph[start..].len() - paragraph[start..].trim_start_matches('`').len();
        if run == length {
            return Some(start);
        }
        at = start + run;
    }
    None
}

/// `[text](target)` and `![text](target "title")`.
fn inline_links(plain: &str) -> Vec<Reference> {
    let found = plain.match_indices("](").filter_map(|(at, mark)| {
        let target = destination(&plain[at + mark.len()..])?;
        Some(Reference { line: line_at(plain, at), target })
    });
    found.collect()
}

/// The destination that `text` starts with, up to its closing parenthesis or a title.
fn destination(text: &str) -> Option<String> {
    let text = text.trim_start();
    if let Some(angled) = text.strip_prefix('<') {
        return Some(angled.split_once('>')?.0.to_owned());
    }
    let mut depth = 0;
    for (at, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' if depth == 0 => return Some(text[..at].to_owned()),
            ')' => depth -= 1,
            c if c.is_whitespace() => return Some(text[..at].to_owned()),
            _ => {}
        }
    }
    None
}

/// `[label]: target`.
fn definitions(plain: &str) -> Vec<Reference> {
    let found = plain.lines().zip(1..).filter_map(|(line, number)| {
        let (label, target) = line.trim_start().strip_prefix('[')?.split_once("]:")?;
        let footnote = label.starts_with('^') || label.contains(']');
        let target = target.split_whitespace().next()?.trim_matches(['<', '>']).to_owned();
        (!footnote).then_some(Reference { line: number, target })
    });
    found.collect()
}

/// `{{#include x}}`, `{{#rustdoc_include x}}`, `{{#playground x}}`: code blocks are where these stand, so in all of the
/// text; not those with a backslash before them.
fn includes(text: &str) -> Vec<Reference> {
    let found = text.match_indices("{{#").filter_map(|(at, mark)| {
        let (inside, _) = text[at + mark.len()..].split_once("}}")?;
        let mut words = inside.split_whitespace();
        let directive = words.next()?;
        let known = ["include", "rustdoc_include", "playground"].contains(&directive);
        let target = words.next()?.to_owned();
        (known && !text[..at].ends_with('\\')).then(|| Reference { line: line_at(text, at), target })
    });
    found.collect()
}

/// The ids that GitHub and mdBook give to headings: the second of the same name gets `-1`, the third `-2`.
fn heading_ids(prose: &str) -> HashSet<String> {
    let mut ids = HashSet::new();
    let mut seen: HashMap<String, usize> = HashMap::new();
    for title in prose.lines().filter_map(heading) {
        if let Some((_, id)) = title.rsplit_once("{#").and_then(|(t, id)| Some((t, id.strip_suffix('}')?))) {
            ids.insert(id.to_owned());
            continue;
        }
        let id = slug(title);
        let count = seen.entry(id.clone()).or_default();
        ids.insert(if *count == 0 { id } else { format!("{id}-{count}") });
        *count += 1;
    }
    ids
}

/// The text of a heading.
fn heading(line: &str) -> Option<&str> {
    let text = line.trim_start_matches('#');
    let level = line.len() - text.len();
    let title = ((1..=6).contains(&level) && text.starts_with([' ', '\t'])).then(|| text.trim())?;
    let open = title.trim_end_matches('#');
    Some(if open.ends_with(' ') || open.is_empty() { open.trim_end() } else { title })
}

/// A heading's id: letters, digits, `-` and `_` in lower case, white space as `-`, the rest dropped.
fn slug(title: &str) -> String {
    let mut slug = String::new();
    for c in shown(title).chars() {
        if c.is_alphanumeric() || c == '-' || c == '_' {
            slug.extend(c.to_lowercase());
        } else if c.is_whitespace() {
            slug.push('-');
        }
    }
    slug
}

/// The text that a reader of the heading sees: of `[text](target)` only the text, no HTML tags outside of code.
fn shown(title: &str) -> String {
    let mut out = String::new();
    let mut rest = title;
    let mut in_code = false;
    while let Some(c) = rest.chars().next() {
        let after = &rest[c.len_utf8()..];
        let tag = c == '<' && !in_code && after.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/');
        rest = match (tag.then(|| after.find('>')).flatten(), after.strip_prefix('(')) {
            (Some(end), _) => &after[end + 1..],
            (None, Some(target)) if c == ']' && !in_code => target.split_once(')').map_or(after, |(_, behind)| behind),
            _ => {
                in_code ^= c == '`';
                out.push(c);
                after
            }
        };
    }
    out
}

/// `id="x"` and `name="x"` of HTML.
fn explicit_ids(plain: &str) -> Vec<String> {
    let values = [" id=\"", " name=\""].into_iter().flat_map(|attribute| {
        let (_, values) = plain.split_once(attribute).map_or(("", None), |(before, rest)| (before, Some(rest)));
        values.into_iter().flat_map(move |rest| rest.split(attribute))
    });
    values.filter_map(|value| Some(value.split_once('"')?.0.to_owned())).collect()
}

fn line_at(text: &str, at: usize) -> usize {
    1 + text[..at].matches('\n').count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn targets(text: &str) -> Vec<(usize, String)> {
        read(text).links.into_iter().map(|link| (link.line, link.target)).collect()
    }

    fn one(text: &str) -> String {
        let targets = targets(text);
        assert_eq!(targets.len(), 1, "{text:?}: {targets:?}");
        targets[0].1.clone()
    }

    #[test]
    fn inline_links_of_all_kinds() {
        assert_eq!(one("see [x](a.md#b)"), "a.md#b");
        assert_eq!(one("![x](a.png \"title\")"), "a.png");
        assert_eq!(one("[x](<a b.md>)"), "a b.md");
        assert_eq!(one("[x](a_(b).md)"), "a_(b).md");
        assert_eq!(one("[`code`](a.md)"), "a.md");
        assert_eq!(targets("[![badge](i.svg)](ci.md)").len(), 2);
    }

    #[test]
    fn a_text_over_two_lines() {
        assert_eq!(targets("\n[a\nb](c.md)"), [(3, String::from("c.md"))]);
    }

    #[test]
    fn reference_definitions() {
        assert_eq!(one("[x][l]\n\n[l]: a.md 'title'"), "a.md");
        assert!(targets("[^1]: a note").is_empty());
    }

    #[test]
    fn code_is_no_link() {
        assert!(targets("`[x](a.md)` and ``[y](b`.md)``").is_empty());
        assert!(targets("```\n[x](a.md)\n```").is_empty());
        assert!(targets("~~~~ md\n[x](a.md)\n~~~\n[y](b.md)\n~~~~").is_empty());
        assert!(targets("- item\n  ```rust\n  [x](a.md)\n  ```").is_empty());
        assert!(targets("<!-- [x](a.md)\n[y](b.md) -->").is_empty());
    }

    #[test]
    fn text_behind_code_counts_with_its_line() {
        assert_eq!(targets("```\n[x](a.md)\n```\n<!--\n-->`c` [y](b.md)"), [(5, String::from("b.md"))]);
    }

    #[test]
    fn a_lone_backtick_hides_nothing() {
        assert_eq!(one("a ` b\n\n[x](a.md) ` c"), "a.md");
        assert_eq!(one("\\` [x](a.md) \\`"), "a.md");
    }

    #[test]
    fn heading_ids_as_github_and_mdbook_make_them() {
        for (heading, id) in [
            ("# Ten minutes", "ten-minutes"),
            ("## C1: nothing is lost, silently!", "c1-nothing-is-lost-silently"),
            ("### `Pool<M>` and you", "poolm-and-you"),
            ("# <i>Fast</i> & free", "fast--free"),
            ("# [Linked](https://x.org/y) text", "linked-text"),
            ("# Over-all under_score", "over-all-under_score"),
            ("# Größe", "größe"),
            ("# Closed #", "closed"),
            ("# C#", "c"),
            ("# Own {#mine}", "mine"),
        ] {
            let anchors = read(heading).anchors;
            assert!(anchors.contains(id), "{heading}: {anchors:?}");
            assert_eq!(anchors.len(), 1);
        }
    }

    #[test]
    fn headings_of_one_name_are_counted() {
        let anchors = read("# A\n## A\n## A\n").anchors;
        assert_eq!(anchors, HashSet::from(["a", "a-1", "a-2"].map(String::from)));
    }

    #[test]
    fn what_is_no_heading() {
        assert!(read("#tag\n```\n# comment\n```\n####### seven\n").anchors.is_empty());
    }

    #[test]
    fn explicit_ids_count() {
        let anchors = read("<a id=\"x\"></a> <a name=\"y\"></a>\n<p id=\"z\">").anchors;
        assert_eq!(anchors, HashSet::from(["x", "y", "z"].map(String::from)));
    }

    #[test]
    fn includes_stand_in_code() {
        let page = read(
            "```rust\n{{#include ../x.rs:a}}\n{{#rustdoc_include y.rs}}\n\\{{#include z.rs}}\n{{#title T}}\n```\n",
        );
        let found: Vec<_> = page.includes.iter().map(|include| (include.line, include.target.as_str())).collect();
        assert_eq!(found, [(2, "../x.rs:a"), (3, "y.rs")]);
    }
}
