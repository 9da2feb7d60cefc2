//! The command line.

use std::ffi::OsString;
use std::time::{SystemTime, UNIX_EPOCH};

pub(crate) const HELP: &str = "\
Random stress of a primitive: real threads, a server that fails in all ways, and checks whenever all is quiet.

Usage: soak pool [OPTIONS]

Options:
  --minutes N  for how long; 5 if not said otherwise
  --seed S     the plan of an earlier run; a new one if not said otherwise
  --help       this text

Exit status: 0 all held; 1 something did not, which is printed with the seed; 2 wrong usage.
";

/// What to do.
#[derive(Debug, PartialEq)]
pub(crate) struct Args {
    pub(crate) minutes: u32,
    pub(crate) seed: u64,
}

/// What the command line asks for.
#[derive(Debug, PartialEq)]
pub(crate) enum Asked {
    Soak(Args),
    Help,
}

pub(crate) fn parse(words: impl IntoIterator<Item = OsString>) -> Result<Asked, String> {
    use lexopt::prelude::*;
    let (mut area, mut minutes, mut seed) = (false, 5, None);
    let mut parser = lexopt::Parser::from_args(words);
    while let Some(argument) = parser.next().map_err(|error| error.to_string())? {
        match argument {
            Value(word) if word == "pool" && !area => area = true,
            Value(word) => return Err(format!("no soak of `{}`; there is one of: pool", word.to_string_lossy())),
            Long("minutes") => minutes = number(&mut parser, "--minutes")?,
            Long("seed") => seed = Some(number(&mut parser, "--seed")?),
            Long("help") | Short('h') => return Ok(Asked::Help),
            other => return Err(other.unexpected().to_string()),
        }
    }
    if !area {
        return Err("of what? There is a soak of: pool".into());
    }
    Ok(Asked::Soak(Args { minutes, seed: seed.unwrap_or_else(by_time) }))
}

fn number<N: std::str::FromStr>(parser: &mut lexopt::Parser, option: &str) -> Result<N, String> {
    let value = parser.value().ok().and_then(|value| value.to_str()?.parse().ok());
    value.ok_or_else(|| format!("{option} needs a number"))
}

fn by_time() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |now| u64::from(now.subsec_nanos()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(words: &[&str]) -> Result<Asked, String> {
        parse(words.iter().map(OsString::from))
    }

    #[test]
    fn options_are_read() {
        let asked = parsed(&["pool", "--minutes", "3", "--seed=7"]).unwrap();
        assert_eq!(asked, Asked::Soak(Args { minutes: 3, seed: 7 }));
        assert!(matches!(parsed(&["pool"]), Ok(Asked::Soak(Args { minutes: 5, .. }))));
        assert_eq!(parsed(&["--help"]), Ok(Asked::Help));
    }

    #[test]
    fn what_there_is_not_is_named() {
        for (words, says) in [
            (&[][..], "of what?"),
            (&["boats"], "no soak of `boats`"),
            (&["pool", "pool"], "no soak of `pool`"),
            (&["pool", "--minutes", "many"], "--minutes needs a number"),
            (&["pool", "--slow"], "--slow"),
        ] {
            let error = parsed(words).unwrap_err();
            assert!(error.contains(says), "{words:?}: {error}");
        }
    }
}
