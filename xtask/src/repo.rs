//! Where things are: the root, the target directory, the members, the files that are ours.

use std::path::{Path, PathBuf};
use std::{env, fs};

use crate::manifest::{self, Package};
use crate::stop::Stop;

/// Hidden folders that hold files of ours; every other hidden folder is somebody's private matter.
const HIDDEN_AND_OURS: &[&str] = &[".cargo", ".ci", ".config", ".github"];

/// The repository this program was built from.
#[derive(Debug)]
pub(crate) struct Repo {
    root: PathBuf,
}

impl Repo {
    /// Finds the root, the parent of this package, and makes it the current directory: every command runs there.
    ///
    /// # Errors
    ///
    /// There is no `Cargo.toml` there.
    pub(crate) fn find() -> Result<Self, Stop> {
        let package =
            env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
        let root = package.parent().map(Path::to_path_buf).unwrap_or(package);
        if !root.join("Cargo.toml").is_file() {
            return Err(Stop::unable(format!("{} is not the workspace: run `cargo xtask` inside it", root.display())));
        }
        env::set_current_dir(&root).map_err(|error| Stop::unable(format!("{}: {error}", root.display())))?;
        Ok(Self { root })
    }

    /// A repository at `root`, for tests.
    #[cfg(test)]
    pub(crate) fn at(root: PathBuf) -> Self {
        Self { root }
    }

    /// The root.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// `relative` below the root.
    pub(crate) fn path(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.root.join(relative)
    }

    /// Where cargo builds.
    pub(crate) fn target_dir(&self) -> PathBuf {
        self.root.join(env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into()))
    }

    /// The members of the workspace, in the order of their folders.
    ///
    /// # Errors
    ///
    /// A manifest cannot be read, or has no name.
    pub(crate) fn packages(&self) -> Result<Vec<Package>, Stop> {
        let root = read(&self.path("Cargo.toml"))?;
        let mut folders = Vec::new();
        for member in manifest::members(&root) {
            match member.strip_suffix("/*") {
                Some(parent) => folders.extend(self.folders_in(parent)?),
                None => folders.push(PathBuf::from(member)),
            }
        }
        folders.sort();
        folders.into_iter().map(|folder| self.package(folder)).collect()
    }

    /// The members that are published.
    ///
    /// # Errors
    ///
    /// As [`packages`](Self::packages).
    pub(crate) fn published(&self) -> Result<Vec<Package>, Stop> {
        Ok(self.packages()?.into_iter().filter(|package| package.published).collect())
    }

    /// The text files of the repository with one of these extensions, relative to the root, sorted. A file without an
    /// extension counts as `""`. Target directories (they hold a `CACHEDIR.TAG`) and the built book are left out.
    ///
    /// # Errors
    ///
    /// A folder cannot be read.
    pub(crate) fn files(&self, extensions: &[&str]) -> Result<Vec<PathBuf>, Stop> {
        let mut found = Vec::new();
        let mut folders = vec![PathBuf::new()];
        while let Some(folder) = folders.pop() {
            for (name, is_folder) in list(&self.root.join(&folder))? {
                let path = folder.join(&name);
                if is_folder {
                    let hidden = name.starts_with('.') && !HIDDEN_AND_OURS.contains(&name.as_str());
                    let built = path == Path::new("docs/book") || self.root.join(&path).join("CACHEDIR.TAG").exists();
                    if !hidden && !built {
                        folders.push(path);
                    }
                } else if extensions.contains(&path.extension().map_or("", |e| e.to_str().unwrap_or("?"))) {
                    found.push(path);
                }
            }
        }
        found.sort();
        Ok(found)
    }

    fn package(&self, folder: PathBuf) -> Result<Package, Stop> {
        let path = self.path(&folder).join("Cargo.toml");
        manifest::read(&read(&path)?, folder)
            .ok_or_else(|| Stop::failed(format!("{}: no `name` in [package]", path.display())))
    }

    fn folders_in(&self, parent: &str) -> Result<Vec<PathBuf>, Stop> {
        let names = list(&self.path(parent))?.into_iter().filter(|(_, is_folder)| *is_folder).map(|(name, _)| name);
        let folders = names.map(|name| Path::new(parent).join(name));
        Ok(folders.filter(|folder| self.path(folder).join("Cargo.toml").is_file()).collect())
    }
}

/// Reads a text file.
///
/// # Errors
///
/// It cannot be read, or is not UTF-8.
pub(crate) fn read(path: &Path) -> Result<String, Stop> {
    fs::read_to_string(path).map_err(|error| Stop::failed(format!("{}: {error}", path.display())))
}

/// The names in a folder, and whether each is a folder itself. Symbolic links are not followed.
fn list(folder: &Path) -> Result<Vec<(String, bool)>, Stop> {
    let wrong = |error| Stop::failed(format!("{}: {error}", folder.display()));
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(wrong)? {
        let entry = entry.map_err(wrong)?;
        let is_folder = entry.file_type().map_err(wrong)?.is_dir();
        names.push((entry.file_name().to_string_lossy().into_owned(), is_folder));
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn here() -> Repo {
        Repo::at(Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf())
    }

    #[test]
    fn the_members_are_found() {
        let packages = here().packages().unwrap();
        let xtask = packages.iter().find(|package| package.name == "xtask").unwrap();
        assert!(!xtask.published);
        let core = packages.iter().find(|package| package.folder == Path::new("crates/core")).unwrap();
        assert!(core.published);
        assert_eq!(core.name, "fullbore-core");
    }

    #[test]
    fn files_are_ours_only() {
        let files = here().files(&["rs", ""]).unwrap();
        assert!(files.contains(&PathBuf::from("xtask/src/repo.rs")));
        assert!(files.contains(&PathBuf::from(".ci/run")));
        assert!(!files.iter().any(|file| file.starts_with("target") || file.starts_with(".git")));
    }
}
