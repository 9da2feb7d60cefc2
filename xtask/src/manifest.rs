//! What a `Cargo.toml` says, as far as the checks ask: name, published or not, features, dependencies.
//!
//! A reader of lines, not of TOML: it knows the shapes that manifests in this workspace have.

use std::path::PathBuf;

/// One member of the workspace.
#[derive(Debug)]
pub(crate) struct Package {
    /// Its folder, relative to the root.
    pub(crate) folder: PathBuf,
    /// Its name.
    pub(crate) name: String,
    /// Not `publish = false`.
    pub(crate) published: bool,
    /// `[lints] workspace = true` is there.
    pub(crate) inherits_lints: bool,
    /// The features that it names, without `default`.
    pub(crate) features: Vec<String>,
    /// What it depends on.
    pub(crate) dependencies: Vec<Dependency>,
}

/// One line of a dependency table.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Dependency {
    /// The name on the left.
    pub(crate) name: String,
    /// From `[dev-dependencies]`.
    pub(crate) dev: bool,
    /// `workspace = true`: the version stands in the root manifest.
    pub(crate) inherited: bool,
}

/// Reads the manifest of the member in `folder`; `None` if it has no name.
pub(crate) fn read(text: &str, folder: PathBuf) -> Option<Package> {
    let mut package = Package {
        folder,
        name: String::new(),
        published: true,
        inherits_lints: false,
        features: Vec::new(),
        dependencies: Vec::new(),
    };
    for Entry { section, key, value } in entries(text) {
        match (section.as_str(), key.as_str()) {
            ("package", "name") => package.name = unquoted(&value),
            ("package", "publish") => package.published = value != "false",
            ("lints", "workspace") => package.inherits_lints = value == "true",
            ("features", "default") => {}
            ("features", _) => package.features.push(key),
            _ => package.dependencies.extend(dependency(&section, &key, &value)),
        }
    }
    (!package.name.is_empty()).then_some(package)
}

/// The `members` of the root manifest, globs as they stand.
pub(crate) fn members(text: &str) -> Vec<String> {
    let list = entries(text).into_iter().find(|entry| entry.section == "workspace" && entry.key == "members");
    let list = list.map_or_else(String::new, |entry| entry.value);
    list.split(',').map(|item| unquoted(item.trim_matches(['[', ']', ' ']))).filter(|item| !item.is_empty()).collect()
}

/// `key = value` and the section it stands in. A value over several lines is joined.
struct Entry {
    section: String,
    key: String,
    value: String,
}

fn entries(text: &str) -> Vec<Entry> {
    let mut entries = Vec::new();
    let mut section = String::new();
    let mut lines = text.lines().map(without_comment);
    while let Some(line) = lines.next() {
        if let Some(name) = line.strip_prefix('[') {
            section = name.trim_matches(['[', ']']).to_owned();
        } else if let Some((key, value)) = line.split_once('=') {
            let mut value = value.trim().to_owned();
            while value.matches(['[', '{']).count() > value.matches([']', '}']).count() {
                let Some(more) = lines.next() else { break };
                value.push_str(more);
            }
            entries.push(Entry { section: section.clone(), key: key.trim().to_owned(), value });
        }
    }
    entries
}

/// The dependency that this line states, if it stands in a dependency table (or is a table of its own).
fn dependency(section: &str, key: &str, value: &str) -> Option<Dependency> {
    // `[target."cfg(..)".dependencies]` is a dependency table too.
    let section =
        section.rfind("\".").filter(|_| section.starts_with("target.")).map_or(section, |at| &section[at + 2..]);
    let (table, own) = section.split_once('.').map_or((section, None), |(table, name)| (table, Some(name)));
    if !["dependencies", "dev-dependencies", "build-dependencies"].contains(&table) {
        return None;
    }
    let (name, field) = match own {
        Some(name) => (name, key),
        None => key.split_once('.').unwrap_or((key, "")),
    };
    let inherited = field == "workspace" || value.contains("workspace = true");
    Some(Dependency { name: unquoted(name), dev: table == "dev-dependencies", inherited })
}

/// The line without what follows a `#` outside of quotes.
fn without_comment(line: &str) -> &str {
    let mut quote = None;
    for (at, c) in line.char_indices() {
        match (quote, c) {
            (None, '#') => return line[..at].trim(),
            (None, '"' | '\'') => quote = Some(c),
            (Some(open), _) if open == c => quote = None,
            _ => {}
        }
    }
    line.trim()
}

fn unquoted(text: &str) -> String {
    text.trim().trim_matches(['"', '\'']).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANIFEST: &str = r#"
[package]
name = "fullbore-toy" # the name
publish = false
version.workspace = true

[lints]
workspace = true

[features]
default = ["a"]
a = [
    "dep:serde", # why
]
b = []

[dependencies]
fullbore-core = { workspace = true }
serde.workspace = true
itoa = "1"

[target."cfg(not(fullbore_loom))".dependencies]
parking_lot = { workspace = true, features = ["x"] }

[dev-dependencies]
proptest = { workspace = true }

[dependencies.zstd]
workspace = true
"#;

    #[test]
    fn a_manifest_is_read() {
        let package = read(MANIFEST, PathBuf::from("crates/toy")).unwrap();
        assert_eq!(package.name, "fullbore-toy");
        assert!(!package.published);
        assert!(package.inherits_lints);
        assert_eq!(package.features, ["a", "b"]);
        let shown: Vec<_> = package.dependencies.iter().map(|d| (d.name.as_str(), d.dev, d.inherited)).collect();
        assert_eq!(
            shown,
            [
                ("fullbore-core", false, true),
                ("serde", false, true),
                ("itoa", false, false),
                ("parking_lot", false, true),
                ("proptest", true, true),
                ("zstd", false, true),
            ]
        );
    }

    #[test]
    fn no_name_no_package() {
        assert!(read("[workspace]\nmembers = []\n", PathBuf::new()).is_none());
    }

    #[test]
    fn members_over_several_lines() {
        assert_eq!(members("[workspace]\nmembers = [\n  \"crates/*\",\n  \"xtask\", # us\n]\n"), ["crates/*", "xtask"]);
        assert_eq!(members("[workspace]\nmembers = [\"a\", \"b\"]\n"), ["a", "b"]);
    }

    #[test]
    fn a_hash_in_quotes_is_no_comment() {
        assert_eq!(without_comment("name = \"a#b\" # c"), "name = \"a#b\"");
    }
}
