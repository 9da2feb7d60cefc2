//! The command line.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use fullbore_cache::redis::RedisTier;

pub(crate) const HELP: &str = "\
Four processes share a cache in front of a slow HTTP service; one of them is killed in the middle, and every
answer is checked.

Usage: cached_api [OPTIONS]

Options:
  --redis URL    the Redis to use, below a prefix of this run's own        [default: a private redis-server; without one
                 on this machine (PATH, or FULLBORE_REDIS_BIN) the run is skipped]
  --seconds N    how long to drive load, 1 to 3600                         [default: 4]
  --quick        as --seconds 1, and each check once
  --help         this text

Exit status: 0 all checks held (or skipped), 1 one did not, or failed, 2 wrong usage, 130 interrupted.
";

#[derive(Debug)]
pub(crate) struct Args {
    pub(crate) redis: Option<String>,
    pub(crate) load_for: Duration,
    pub(crate) quick: bool,
}

/// One of the four.
#[derive(Debug)]
pub(crate) struct NodeArgs {
    pub(crate) node: usize,
    pub(crate) upstream: SocketAddr,
    pub(crate) redis: String,
    pub(crate) prefix: String,
}

/// What the command line asks for. What this program starts itself with is not in the help text.
#[derive(Debug)]
pub(crate) enum Asked {
    Run(Args),
    Node(NodeArgs),
    KeepRedis(PathBuf),
    Help,
}

pub(crate) fn parse(words: impl IntoIterator<Item = OsString>) -> Result<Asked, String> {
    use lexopt::prelude::*;
    let (mut redis, mut seconds, mut quick) = (None, None, false);
    let (mut node, mut upstream, mut prefix) = (None, None, None);
    let mut parser = lexopt::Parser::from_args(words);
    while let Some(arg) = parser.next().map_err(|error| error.to_string())? {
        match arg {
            Long("redis") => redis = Some(text(&mut parser, "redis")?),
            Long("seconds") => seconds = Some(whole_seconds(&text(&mut parser, "seconds")?)?),
            Long("quick") => quick = true,
            Long("node") => node = Some(number(&text(&mut parser, "node")?)?),
            Long("upstream") => upstream = Some(number(&text(&mut parser, "upstream")?)?),
            Long("prefix") => prefix = Some(text(&mut parser, "prefix")?),
            Long("keep-redis") => return Ok(Asked::KeepRedis(value(&mut parser, "keep-redis")?.into())),
            Long("help") | Short('h') => return Ok(Asked::Help),
            other => return Err(other.unexpected().to_string()),
        }
    }
    match (node, upstream, prefix) {
        (None, None, None) => {}
        (Some(node), Some(upstream), Some(prefix)) => {
            let redis = redis.ok_or("--node needs --redis")?;
            return Ok(Asked::Node(NodeArgs { node, upstream, redis, prefix }));
        }
        _ => return Err("--node, --upstream and --prefix belong together".into()),
    }
    if let Some(url) = &redis {
        // As the nodes will understand it.
        RedisTier::builder().url(url).prefix("-").build().map_err(|error| format!("--redis: {error}"))?;
    }
    if quick && seconds.is_some() {
        return Err("--quick says how long: leave --seconds out".into());
    }
    let load_for = seconds.unwrap_or(Duration::from_secs(if quick { 1 } else { 4 }));
    Ok(Asked::Run(Args { redis, load_for, quick }))
}

fn value(parser: &mut lexopt::Parser, name: &str) -> Result<OsString, String> {
    parser.value().map_err(|_| format!("--{name} needs a value"))
}

fn text(parser: &mut lexopt::Parser, name: &str) -> Result<String, String> {
    value(parser, name)?.into_string().map_err(|_| format!("--{name} needs text"))
}

fn number<T: std::str::FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("{text} cannot be used here"))
}

fn whole_seconds(text: &str) -> Result<Duration, String> {
    match text.parse() {
        Ok(seconds @ 1..=3600) => Ok(Duration::from_secs(seconds)),
        _ => Err(format!("--seconds {text} cannot work: give 1 to 3600")),
    }
}
