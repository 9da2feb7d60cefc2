//! The command line.

use std::ffi::OsString;
use std::ops::RangeInclusive;
use std::path::PathBuf;

use fullbore_examples::fleet::data::{DEFAULT_DIR, FLIGHTS};

pub(crate) const HELP: &str = "\
Writes the 336,776 flights that left New York City in 2013 into a database, one by one from several threads, through a
batcher, and checks that each is there.

Usage: ingest_flights [OPTIONS]

Options:
  --db PATH            into this SQLite file, which is kept       [default: a temporary one, removed]
  --postgres URL       into PostgreSQL by COPY instead; makes the table `flights` there
  --rows N             the first N flights only                   [default: all 336,776]
  --producers N        threads that send, 1 to 256                [default: 4]
  --batch N            rows in a transaction, 1 to 100,000        [default: 1000]
  --durability full|normal
                       full: a commit waits for the disk; normal: a crash of the machine may lose the last ones, and
                       nothing else                               [default: full]
  --data PATH          where flights.csv.zst, airports.csv.zst and airlines.csv.zst are
  --help               this text

Exit status: 0 written and checked, 1 failed, 2 wrong usage.
";

#[derive(Clone, Debug)]
pub(crate) enum Target {
    /// A file, or a temporary one.
    Sqlite(Option<PathBuf>),
    /// A connection string.
    Postgres(String),
}

#[derive(Debug)]
pub(crate) struct Args {
    pub(crate) target: Target,
    pub(crate) rows: usize,
    pub(crate) producers: usize,
    pub(crate) batch: usize,
    /// Whether a commit waits for the disk.
    pub(crate) full: bool,
    pub(crate) data: PathBuf,
}

/// What the command line asks for: a run, or the help text.
#[derive(Debug)]
pub(crate) enum Asked {
    Run(Args),
    Help,
}

pub(crate) fn parse(words: impl IntoIterator<Item = OsString>) -> Result<Asked, String> {
    use lexopt::prelude::*;
    let mut args = Args {
        target: Target::Sqlite(None),
        rows: FLIGHTS,
        producers: 4,
        batch: 1_000,
        full: true,
        data: PathBuf::from(DEFAULT_DIR),
    };
    let (mut file, mut url) = (None, None);
    let mut parser = lexopt::Parser::from_args(words);
    while let Some(arg) = parser.next().map_err(|error| error.to_string())? {
        match arg {
            Long("db") => file = Some(PathBuf::from(value(&mut parser, "db")?)),
            Long("postgres") => url = Some(text(&mut parser, "postgres")?),
            Long("rows") => args.rows = number(&mut parser, "rows", 1..=FLIGHTS)?,
            Long("producers") => args.producers = number(&mut parser, "producers", 1..=256)?,
            Long("batch") => args.batch = number(&mut parser, "batch", 1..=100_000)?,
            Long("durability") => args.full = durability(&text(&mut parser, "durability")?)?,
            Long("data") => args.data = value(&mut parser, "data")?.into(),
            Long("help") | Short('h') => return Ok(Asked::Help),
            other => return Err(other.unexpected().to_string()),
        }
    }
    args.target = match (file, url) {
        (Some(_), Some(_)) => return Err("--db and --postgres are two databases: name one".into()),
        (file, None) => Target::Sqlite(file),
        (None, Some(url)) => Target::Postgres(url),
    };
    Ok(Asked::Run(args))
}

fn value(parser: &mut lexopt::Parser, name: &str) -> Result<OsString, String> {
    parser.value().map_err(|_| format!("--{name} needs a value"))
}

fn text(parser: &mut lexopt::Parser, name: &str) -> Result<String, String> {
    value(parser, name)?.into_string().map_err(|_| format!("--{name} is not text"))
}

fn number(parser: &mut lexopt::Parser, name: &str, within: RangeInclusive<usize>) -> Result<usize, String> {
    let text = text(parser, name)?;
    let number = text.parse().ok().filter(|number| within.contains(number));
    number.ok_or_else(|| format!("--{name} {text} cannot be: give {} to {}", within.start(), within.end()))
}

fn durability(text: &str) -> Result<bool, String> {
    match text {
        "full" => Ok(true),
        "normal" => Ok(false),
        _ => Err(format!("--durability {text} is not known: give full or normal")),
    }
}
