//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;

use fullbore_examples::fleet::data::DEFAULT_DIR;

pub(crate) const HELP: &str = "\
Migrates one SQLite database for each aircraft that left New York City in 2013, many at a time, and checks the result.

Usage: fleet_migration [OPTIONS]

Options:
  --tenants N       migrate N of the 4,044 databases, of all sizes       [default: all]
  --workers N|auto  worker threads, 1 to 512; auto: start with two and
                    double while the gain is at least 5 %, at most 64    [default: 64]
  --dir PATH        run in PATH and keep it                              [default: a temporary directory, removed]
  --resume          go on with the run in --dir
  --data PATH       where flights.csv.zst, airports.csv.zst and airlines.csv.zst are
  --json            progress on standard error, one JSON object as the last line of standard output
  --help            this text

Exit status: 0 migrated and verified, 1 failed, 2 wrong usage, 130 interrupted (finish it with --resume).
";

/// The most threads that `auto` tries.
pub(crate) const AUTO_MAX: usize = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Workers {
    Fixed(usize),
    Auto,
}

#[derive(Debug)]
pub(crate) struct Args {
    /// `None`: all of them, or what the resumed run had.
    pub(crate) tenants: Option<usize>,
    pub(crate) workers: Workers,
    pub(crate) dir: Option<PathBuf>,
    pub(crate) resume: bool,
    pub(crate) data: PathBuf,
    pub(crate) json: bool,
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
        tenants: None,
        workers: Workers::Fixed(64),
        dir: None,
        resume: false,
        data: PathBuf::from(DEFAULT_DIR),
        json: false,
    };
    let mut parser = lexopt::Parser::from_args(words);
    while let Some(arg) = parser.next().map_err(|error| error.to_string())? {
        match arg {
            Long("tenants") => args.tenants = Some(tenants(&value(&mut parser, "tenants")?.to_string_lossy())?),
            Long("workers") => args.workers = workers(&value(&mut parser, "workers")?.to_string_lossy())?,
            Long("dir") => args.dir = Some(value(&mut parser, "dir")?.into()),
            Long("data") => args.data = value(&mut parser, "data")?.into(),
            Long("resume") => args.resume = true,
            Long("json") => args.json = true,
            Long("help") | Short('h') => return Ok(Asked::Help),
            other => return Err(other.unexpected().to_string()),
        }
    }
    if args.resume && args.dir.is_none() {
        return Err("--resume needs --dir: the directory of the run to go on with".into());
    }
    Ok(Asked::Run(args))
}

fn value(parser: &mut lexopt::Parser, name: &str) -> Result<OsString, String> {
    parser.value().map_err(|_| format!("--{name} needs a value"))
}

fn tenants(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("--tenants 0 leaves nothing to do: give 1 to 4044".into()),
        // The upper end is checked against the data, once it is read.
        Ok(n) => Ok(n),
        Err(_) => Err(format!("--tenants {text} is not a whole number: give 1 to 4044")),
    }
}

fn workers(text: &str) -> Result<Workers, String> {
    match text.parse() {
        _ if text == "auto" => Ok(Workers::Auto),
        Ok(n @ 1..=512) => Ok(Workers::Fixed(n)),
        _ => Err(format!("--workers {text} cannot work: give 1 to 512, or auto")),
    }
}
