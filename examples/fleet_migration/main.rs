//! The main job: migrate 4,044 real tenant databases as fast as the machine allows, and prove that every one is right.
//!
//! `cargo run --release --example fleet_migration`. No server, no network. See `--help`, and the book's page on it.
#![forbid(unsafe_code)]

mod args;
mod baseline;
mod check;
mod control;
mod events;
mod fleet;
mod machine;
mod pipeline;
mod place;
mod report;
mod run;

use std::process::ExitCode;

use crate::args::Asked;
use crate::run::Ended;

fn main() -> ExitCode {
    let args = match args::parse(std::env::args_os().skip(1)) {
        Ok(Asked::Run(args)) => args,
        Ok(Asked::Help) => {
            print!("{}", args::HELP);
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("fleet_migration: {error} (see --help)");
            return ExitCode::from(2);
        }
    };
    match run::run(&args) {
        Ended::Verified => ExitCode::SUCCESS,
        Ended::Wrong => ExitCode::FAILURE,
        Ended::Failed(error) => {
            eprintln!("fleet_migration: {error}");
            ExitCode::FAILURE
        }
        Ended::Usage(error) => {
            eprintln!("fleet_migration: {error}");
            ExitCode::from(2)
        }
        Ended::Interrupted(state) => {
            eprintln!("fleet_migration: interrupted: {state}");
            ExitCode::from(130)
        }
    }
}
