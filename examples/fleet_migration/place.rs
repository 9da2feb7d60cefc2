//! Where a run lives on disk.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::args::Args;

/// The directories and files of a run. A temporary one is removed when this is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    root: PathBuf,
    temporary: Option<tempfile::TempDir>,
}

/// Why a run cannot live there; the text is for the user.
#[derive(Debug)]
pub(crate) enum PlaceError {
    /// The command line asks for something that is not there.
    Usage(String),
    /// The system refuses.
    Failed(String),
}

impl Place {
    pub(crate) fn open(args: &Args) -> Result<Self, PlaceError> {
        let Some(root) = &args.dir else { return Self::temporary() };
        let place = Self { root: root.clone(), temporary: None };
        let shown = root.display();
        if args.resume {
            if !place.control().is_file() {
                let text =
                    format!("there is no run to resume in {shown}: start one with --dir {shown}, without --resume");
                return Err(PlaceError::Usage(text));
            }
        } else if place.control().exists() || place.tenants().exists() {
            let text = format!("{shown} holds a run already: go on with it by --resume, or name an empty directory");
            return Err(PlaceError::Usage(text));
        }
        place.make_dirs().map_err(|error| cannot_write(root, &error))?;
        Ok(place)
    }

    /// Beside the build, and not in the system's temporary directory: that is often in memory, where a sync costs nothing.
    fn temporary() -> Result<Self, PlaceError> {
        let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target");
        let parent = if target.is_dir() { target } else { std::env::temp_dir() };
        let dir = tempfile::Builder::new()
            .prefix("fleet_migration-")
            .tempdir_in(&parent)
            .map_err(|error| cannot_write(&parent, &error))?;
        let place = Self { root: dir.path().to_owned(), temporary: Some(dir) };
        place.make_dirs().map_err(|error| cannot_write(&place.root, &error))?;
        Ok(place)
    }

    fn make_dirs(&self) -> io::Result<()> {
        // A run that was killed could not remove its own.
        match fs::remove_dir_all(self.samples()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        for dir in [self.tenants(), self.sample("one"), self.sample("bare")] {
            fs::create_dir_all(dir)?;
        }
        // A directory that is there can still be read-only.
        let probe = self.root.join("write-probe");
        fs::write(&probe, b"x")?;
        fs::remove_file(probe)
    }

    /// The directory of the whole run.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn is_temporary(&self) -> bool {
        self.temporary.is_some()
    }

    /// One database for each tenant.
    pub(crate) fn tenants(&self) -> PathBuf {
        self.root.join("tenants")
    }

    /// The database of this tenant.
    pub(crate) fn tenant(&self, name: &str) -> PathBuf {
        self.tenants().join(file_name(name))
    }

    /// Copies outside the fleet, for a baseline.
    pub(crate) fn sample(&self, baseline: &str) -> PathBuf {
        self.samples().join(baseline)
    }

    fn samples(&self) -> PathBuf {
        self.root.join("samples")
    }

    pub(crate) fn control(&self) -> PathBuf {
        self.root.join("control.db")
    }

    pub(crate) fn audit(&self) -> PathBuf {
        self.root.join("audit.jsonl")
    }
}

impl Drop for Place {
    /// Samples serve one run only, however it ends.
    fn drop(&mut self) {
        let samples = self.samples();
        match fs::remove_dir_all(&samples) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                eprintln!("fleet_migration: cannot remove {}: {error}: remove it by hand", samples.display());
            }
            _ => {}
        }
    }
}

pub(crate) fn file_name(tenant: &str) -> String {
    format!("{tenant}.db")
}

fn cannot_write(dir: &Path, error: &io::Error) -> PlaceError {
    PlaceError::Failed(format!(
        "cannot write in {}: {error}: choose another directory with --dir, or make room there",
        dir.display()
    ))
}

/// The key of a tenant everywhere: its name.
pub(crate) type TenantName = Arc<str>;
