//! Four processes in front of a slow HTTP service, with one cache between them: memory in each, Redis behind all. Items
//! change, are removed and asked for on all sides, one process is killed while it loads, and every answer is checked.
//!
//! `cargo run --release --example cached_api`. Starts a private `redis-server`, if that is installed. See `--help`.
#![forbid(unsafe_code)]

mod args;
mod fleet;
mod http;
mod keeper;
mod load;
mod node;
mod report;
mod role;
mod run;
mod upstream;

use std::process::ExitCode;

use crate::args::Asked;
use crate::run::Ended;

fn main() -> ExitCode {
    let asked = match args::parse(std::env::args_os().skip(1)) {
        Ok(asked) => asked,
        Err(error) => {
            eprintln!("cached_api: {error} (see --help)");
            return ExitCode::from(2);
        }
    };
    let ended = match asked {
        Asked::Help => {
            print!("{}", args::HELP);
            return ExitCode::SUCCESS;
        }
        Asked::Run(args) => run::run(&args),
        // What this program starts itself as.
        Asked::Node(args) => node::serve(&args).map(|()| Ended::AllHeld),
        Asked::KeepRedis(program) => keeper::keep(&program).map(|()| Ended::AllHeld),
    };
    match ended {
        Ok(Ended::AllHeld | Ended::Skipped) => ExitCode::SUCCESS,
        Ok(Ended::Broken(check)) => {
            eprintln!("cached_api: a check failed: {check}");
            ExitCode::FAILURE
        }
        Ok(Ended::Interrupted) => {
            eprintln!("cached_api: interrupted");
            ExitCode::from(130)
        }
        Err(error) => {
            eprintln!("cached_api: {error}");
            ExitCode::FAILURE
        }
    }
}
