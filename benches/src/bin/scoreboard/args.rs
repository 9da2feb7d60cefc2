//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;

use fullbore_benches::cases::{AREAS, examples};

/// What to measure.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Args {
    /// Empty: all.
    only: Vec<String>,
    /// Parts of names; empty: all.
    cases: Vec<String>,
    pub(crate) quick: bool,
    pub(crate) json: Option<PathBuf>,
}

/// What the command line asks for.
#[derive(Debug, PartialEq)]
pub(crate) enum Asked {
    Measure(Args),
    Help,
}

impl Args {
    pub(crate) fn wants(&self, area: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|wanted| wanted == area)
    }

    /// Whether the case with this name, its rival's included, is wanted.
    pub(crate) fn wants_case(&self, name: &str) -> bool {
        self.cases.is_empty() || self.cases.iter().any(|part| name.contains(&**part))
    }
}

pub(crate) fn help() -> String {
    format!(
        "\
Measures every goal against its rival, in turns, in one process.

Usage: scoreboard [OPTIONS]

Options:
  --only AREA  only this area; may be given again
  --case TEXT  only rows whose case, or rival, has TEXT in its name; may be given again
  --quick      as little as can be: shows that everything runs, the numbers mean nothing
  --json FILE  write the rows to FILE, too
  --help       this text

Areas: {}

Exit status: 0 measured, whatever the goals; 1 a case failed; 2 wrong usage.
",
        areas().collect::<Vec<_>>().join(", ")
    )
}

fn areas() -> impl Iterator<Item = &'static str> {
    AREAS.iter().map(|area| area.name).chain([examples::NAME])
}

pub(crate) fn parse(words: impl IntoIterator<Item = OsString>) -> Result<Asked, String> {
    use lexopt::prelude::*;
    let mut args = Args::default();
    let mut parser = lexopt::Parser::from_args(words);
    while let Some(argument) = parser.next().map_err(|error| error.to_string())? {
        match argument {
            Long("only") => args.only.push(area(&value(&mut parser, "--only needs an area")?)?),
            Long("case") => args.cases.push(value(&mut parser, "--case needs a text")?.to_string_lossy().into_owned()),
            Long("quick") => args.quick = true,
            Long("json") => args.json = Some(value(&mut parser, "--json needs a file")?.into()),
            Long("help") | Short('h') => return Ok(Asked::Help),
            other => return Err(other.unexpected().to_string()),
        }
    }
    Ok(Asked::Measure(args))
}

fn value(parser: &mut lexopt::Parser, otherwise: &str) -> Result<OsString, String> {
    parser.value().map_err(|_| otherwise.to_owned())
}

fn area(word: &OsString) -> Result<String, String> {
    let word = word.to_string_lossy();
    areas().find(|area| *area == word).map(str::to_owned).ok_or_else(|| format!("no area `{word}`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(words: &[&str]) -> Result<Args, String> {
        match parse(words.iter().map(OsString::from))? {
            Asked::Measure(args) => Ok(args),
            Asked::Help => Err("help".into()),
        }
    }

    #[test]
    fn options_are_read() {
        let args = parsed(&["--only", "pool", "--only=examples", "--quick", "--json", "x.json"]).unwrap();
        assert!(args.quick && args.wants("pool") && args.wants("examples") && !args.wants("batch"));
        assert_eq!(args.json, Some(PathBuf::from("x.json")));
        assert!(parsed(&[]).unwrap().wants("batch"));
        assert_eq!(parsed(&["--help"]).unwrap_err(), "help");
    }

    #[test]
    fn what_there_is_not_is_named() {
        for (words, says) in [
            (&["--only", "boats"][..], "no area `boats`"),
            (&["--only"], "--only needs an area"),
            (&["--json"], "--json needs a file"),
            (&["--case"], "--case needs a text"),
            (&["--slow"], "--slow"),
            (&["pool"], "pool"),
        ] {
            let error = parsed(words).unwrap_err();
            assert!(error.contains(says), "{words:?}: {error}");
        }
        assert!(help().contains("batch, cache, fanout, limit, metrics, pool, queue, examples"));
    }
}
