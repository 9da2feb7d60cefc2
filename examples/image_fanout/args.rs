//! The command line.

use std::ffi::OsString;
use std::ops::RangeInclusive;
use std::path::PathBuf;

pub(crate) const HELP: &str = "\
Takes a folder of PNG and JPEG files, publishes each once, and lets four destinations work on it, each with a queue of its
own: thumbnails, moderation, metadata, and a search index. One of them is slow and one fails now and then, on purpose.
Checks that every image reached all four.

Usage: image_fanout [OPTIONS] [FOLDER]

  FOLDER               where the images are            [default: some are made, in a temporary folder]

Options:
  --images N           how many are made, 1 to 10,000  [default: 24]
  --out PATH           a folder, made if it is not there, for thumbnails and index.db, which are kept
                                                       [default: a temporary one, removed]
  --pause MS           how long moderation rests at each image, 0 to 10,000 [default: 20]
  --fail-every N       every Nth attempt at the search index fails, 1 to 1,000,000; with 1 all do [default: 3]
  --help               this text

Exit status: 0 every image reached all four, 1 one did not or something failed, 2 wrong usage or no image to be found.
";

#[derive(Debug)]
pub(crate) struct Args {
    pub(crate) folder: Option<PathBuf>,
    pub(crate) images: usize,
    pub(crate) out: Option<PathBuf>,
    pub(crate) pause_ms: usize,
    pub(crate) fail_every: usize,
}

/// What the command line asks for: a run, or the help text.
#[derive(Debug)]
pub(crate) enum Asked {
    Run(Args),
    Help,
}

pub(crate) fn parse(words: impl IntoIterator<Item = OsString>) -> Result<Asked, String> {
    use lexopt::prelude::*;
    let mut args = Args { folder: None, images: 24, out: None, pause_ms: 20, fail_every: 3 };
    let mut images = None;
    let mut parser = lexopt::Parser::from_args(words);
    while let Some(arg) = parser.next().map_err(|error| error.to_string())? {
        match arg {
            Long("images") => images = Some(number(&mut parser, "images", 1..=10_000)?),
            Long("out") => args.out = Some(value(&mut parser, "out")?.into()),
            Long("pause") => args.pause_ms = number(&mut parser, "pause", 0..=10_000)?,
            Long("fail-every") => args.fail_every = number(&mut parser, "fail-every", 1..=1_000_000)?,
            Long("help") | Short('h') => return Ok(Asked::Help),
            Value(folder) if args.folder.is_none() => args.folder = Some(folder.into()),
            other => return Err(other.unexpected().to_string()),
        }
    }
    if images.is_some() && args.folder.is_some() {
        return Err("--images says how many to make, and a folder is given: leave one out".into());
    }
    args.images = images.unwrap_or(args.images);
    Ok(Asked::Run(args))
}

fn value(parser: &mut lexopt::Parser, name: &str) -> Result<OsString, String> {
    parser.value().map_err(|_| format!("--{name} needs a value"))
}

fn number(parser: &mut lexopt::Parser, name: &str, within: RangeInclusive<usize>) -> Result<usize, String> {
    let text = value(parser, name)?.into_string().map_err(|_| format!("--{name} is not text"))?;
    let number = text.parse().ok().filter(|number| within.contains(number));
    number.ok_or_else(|| format!("--{name} {text} cannot be: give {} to {}", within.start(), within.end()))
}
