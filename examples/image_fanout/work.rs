//! What the four destinations do with an image. Each may be told to do it again, so each does it over.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use image::imageops::{self, FilterType};
use image::{ImageFormat, Rgb};
use rusqlite::{Connection, params};

use crate::pictures::Picture;

type Failed = Box<dyn std::error::Error + Send + Sync>;

/// The longest side of a thumbnail.
const THUMBNAIL: u32 = 96;

/// Small copies, as PNG files.
#[derive(Debug)]
pub(crate) struct Thumbnails(pub(crate) PathBuf);

impl Thumbnails {
    fn path(&self, name: &str) -> PathBuf {
        self.0.join(format!("{name}.thumbnail.png"))
    }

    pub(crate) fn make(&self, picture: &Picture) -> Result<(), Failed> {
        let (width, height) = picture.pixels.dimensions();
        let longest = width.max(height).max(THUMBNAIL);
        let scaled = |side: u32| (side * THUMBNAIL / longest).max(1);
        let small = imageops::resize(&picture.pixels, scaled(width), scaled(height), FilterType::Triangle);
        small.save_with_format(self.path(&picture.name), ImageFormat::Png)?;
        Ok(())
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        image::image_dimensions(self.path(name)).is_ok_and(|(width, height)| width.max(height) <= THUMBNAIL)
    }
}

/// How much of an image a moderator should look at.
#[derive(Debug, Default)]
pub(crate) struct Moderation(Mutex<BTreeMap<String, f64>>);

/// With a larger part of skin tones than this, somebody has to look.
const SUSPECT: f64 = 0.4;

impl Moderation {
    /// A heuristic, and no more: the part of pixels whose colour is one of skin under daylight, after Kovac, Peer and Solina
    /// (2003). It takes sand for skin, and skin under a red lamp for none.
    pub(crate) fn judge(&self, picture: &Picture) {
        let skin = |Rgb([r, g, b]): &Rgb<u8>| {
            let spread = r.max(g).max(b) - r.min(g).min(b);
            *r > 95 && *g > 40 && *b > 20 && spread > 15 && r.abs_diff(*g) > 15 && r > g && r > b
        };
        let all = picture.pixels.pixels().len().max(1);
        let part = picture.pixels.pixels().filter(|pixel| skin(pixel)).count() as f64 / all as f64;
        lock(&self.0).insert(picture.name.clone(), part);
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        lock(&self.0).contains_key(name)
    }

    /// Who is to be looked at.
    pub(crate) fn suspects(&self) -> usize {
        lock(&self.0).values().filter(|part| **part > SUSPECT).count()
    }
}

/// What is known of an image without looking at it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Facts {
    pub(crate) width: u32,
    pub(crate) height: u32,
    pub(crate) format: &'static str,
    pub(crate) bytes: usize,
    pub(crate) average: [u8; 3],
}

impl Facts {
    pub(crate) fn of(picture: &Picture) -> Self {
        let (width, height) = picture.pixels.dimensions();
        let mut sums = [0_u64; 3];
        for Rgb(colour) in picture.pixels.pixels() {
            sums.iter_mut().zip(colour).for_each(|(sum, part)| *sum += u64::from(*part));
        }
        let all = (u64::from(width) * u64::from(height)).max(1);
        let average = sums.map(|sum| u8::try_from(sum / all).unwrap_or(u8::MAX));
        let format = if picture.format == ImageFormat::Png { "png" } else { "jpeg" };
        Self { width, height, format, bytes: picture.bytes, average }
    }

    /// What the average colour is called.
    fn colour(&self) -> &'static str {
        let [r, g, b] = self.average;
        match r.max(g).max(b) {
            most if most < 64 => "dark",
            most if most - r.min(g).min(b) < 24 => "grey",
            most if most == r => "red",
            most if most == g => "green",
            _ => "blue",
        }
    }
}

#[derive(Debug, Default)]
pub(crate) struct Metadata(Mutex<BTreeMap<String, Facts>>);

impl Metadata {
    pub(crate) fn note(&self, picture: &Picture) {
        lock(&self.0).insert(picture.name.clone(), Facts::of(picture));
    }

    pub(crate) fn get(&self, name: &str) -> Option<Facts> {
        lock(&self.0).get(name).cloned()
    }

    pub(crate) fn pixels(&self) -> u64 {
        lock(&self.0).values().map(|facts| u64::from(facts.width) * u64::from(facts.height)).sum()
    }
}

/// Full-text search over names, formats and colours: SQLite's FTS5.
#[derive(Debug)]
pub(crate) struct Search(Mutex<Connection>);

impl Search {
    pub(crate) fn open(path: &Path) -> Result<Self, String> {
        let open = || {
            let database = Connection::open(path)?;
            database.execute_batch(
                "PRAGMA journal_mode = WAL;
                 PRAGMA synchronous = NORMAL;
                 CREATE VIRTUAL TABLE IF NOT EXISTS images USING fts5(name UNINDEXED, words);",
            )?;
            Ok(database)
        };
        let opened =
            open().map_err(|error: rusqlite::Error| format!("cannot open the index {}: {error}", path.display()));
        opened.map(|database| Self(Mutex::new(database)))
    }

    pub(crate) fn add(&self, picture: &Picture) -> Result<(), Failed> {
        let facts = Facts::of(picture);
        let shape = if facts.width >= facts.height { "landscape" } else { "upright" };
        let words = format!("{} {} {} {shape}", picture.name, facts.format, facts.colour());
        let mut database = lock(&self.0);
        let transaction = database.transaction()?;
        transaction.execute("DELETE FROM images WHERE name = ?1", params![picture.name])?;
        transaction.execute("INSERT INTO images (name, words) VALUES (?1, ?2)", params![picture.name, words])?;
        transaction.commit()?;
        Ok(())
    }

    /// How often an image is in the index, asked for by its name.
    pub(crate) fn count(&self, name: &str) -> Result<u32, String> {
        // A phrase; a quote in it is doubled.
        let phrase = format!("\"{}\"", name.replace('"', "\"\""));
        let query = "SELECT count(*) FROM images WHERE images MATCH ?1 AND name = ?2";
        let found = lock(&self.0).query_row(query, params![phrase, name], |row| row.get(0));
        found.map_err(|error| format!("cannot search the index for {name}: {error}"))
    }

    /// How many are found by a word.
    pub(crate) fn hits(&self, word: &str) -> Result<u32, String> {
        let query = "SELECT count(*) FROM images WHERE images MATCH ?1";
        let found = lock(&self.0).query_row(query, params![word], |row| row.get(0));
        found.map_err(|error| format!("cannot search the index for {word}: {error}"))
    }
}

/// Whoever panicked while writing has written nothing by halves.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
