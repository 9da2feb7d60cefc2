//! Real image files: found, read, and made where there are none.

use std::fs;
use std::io::Cursor;
use std::path::{Path, PathBuf};

use image::{ImageFormat, ImageReader, Rgb, RgbImage};

/// An image that was read, as it is published: one copy, whoever works on it.
#[derive(Debug)]
pub(crate) struct Picture {
    /// The file's name.
    pub(crate) name: String,
    pub(crate) format: ImageFormat,
    /// The file's size in bytes.
    pub(crate) bytes: usize,
    pub(crate) pixels: RgbImage,
}

impl Picture {
    /// # Errors
    /// If it cannot be read, or is no image that we know.
    pub(crate) fn read(path: &Path) -> Result<Self, String> {
        let name = name_of(path);
        let bytes = fs::read(path).map_err(|error| format!("{name}: {error}"))?;
        let reader = ImageReader::new(Cursor::new(&bytes));
        let reader = reader.with_guessed_format().map_err(|error| format!("{name}: {error}"))?;
        let format = reader.format().ok_or_else(|| format!("{name}: no image"))?;
        let pixels = reader.decode().map_err(|error| format!("{name}: {error}"))?.to_rgb8();
        Ok(Self { name, format, bytes: bytes.len(), pixels })
    }

    pub(crate) fn topic(&self) -> &'static str {
        match self.format {
            ImageFormat::Png => "image.new.png",
            _ => "image.new.jpeg",
        }
    }
}

pub(crate) fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// The files of a folder, sorted; folders in it are left alone.
///
/// # Errors
/// If it cannot be read.
pub(crate) fn files(folder: &Path) -> Result<Vec<PathBuf>, String> {
    let text = |error| format!("cannot read the folder {}: {error}", folder.display());
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(text)? {
        let path = entry.map_err(text)?.path();
        if path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

const KINDS: [&str; 4] = ["sunset", "portrait", "forest", "harbour"];

/// Makes images with something to see for each destination.
///
/// # Errors
/// If one cannot be written.
pub(crate) fn make(folder: &Path, images: usize) -> Result<(), String> {
    for n in 0..images {
        let kind = KINDS[n % KINDS.len()];
        let (ending, format) = if n % 2 == 0 { ("png", ImageFormat::Png) } else { ("jpg", ImageFormat::Jpeg) };
        let path = folder.join(format!("{kind}-{n:04}.{ending}"));
        let side = 160 + (n as u32 % 5) * 40;
        let picture = RgbImage::from_fn(side * 4 / 3, side, |x, y| paint(kind, n as u32, x, y, side));
        picture
            .save_with_format(&path, format)
            .map_err(|error| format!("cannot make the image {}: {error}", path.display()))?;
    }
    Ok(())
}

fn paint(kind: &str, n: u32, x: u32, y: u32, side: u32) -> Rgb<u8> {
    let shade = |from: u32, to: u32| u8::try_from(from + (to - from) * y / side).unwrap_or(u8::MAX);
    let grain = u8::try_from((x * 7 + y * 13 + n * 31) % 23).unwrap_or(0);
    let (dx, dy) = (x.abs_diff(side * 2 / 3), y.abs_diff(side / 2));
    match kind {
        // Without blue, or it would be taken for skin.
        "sunset" => Rgb([shade(200, 255), shade(60, 120), grain / 2]),
        // A face that fills most of it.
        "portrait" if dx * dx + dy * dy < side * side / 4 => Rgb([220 - grain, 165 - grain, 135 - grain]),
        "portrait" => Rgb([70, 80, shade(90, 140)]),
        "forest" => Rgb([grain, shade(70, 160), 30]),
        _ => Rgb([40 + grain, shade(90, 130), shade(150, 220)]),
    }
}
