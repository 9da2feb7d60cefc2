//! Random stress of a primitive with real threads and the real clock, for as long as one likes: `cargo xtask soak pool`.
//!
//! It ends with status 1 at the first thing that does not hold, and names the seed. The seed fixes the settings and the plan of each
//! thread, not the order in which threads run.
#![forbid(unsafe_code)]

mod args;
mod chance;
mod pool;
mod watch;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use crate::args::{Args, Asked};
use crate::chance::Chance;
use crate::watch::Watch;

/// How often it says that all is well.
const MINUTE: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    let args = match args::parse(std::env::args_os().skip(1)) {
        Ok(Asked::Help) => {
            print!("{}", args::HELP);
            return ExitCode::SUCCESS;
        }
        Ok(Asked::Soak(args)) => args,
        Err(error) => {
            eprintln!("soak: {error}\n\n{}", args::HELP);
            return ExitCode::from(2);
        }
    };
    println!("soak pool --minutes {} --seed {}", args.minutes, args.seed);
    match soak(&args) {
        Ok(seen) => {
            println!("all held: {seen}");
            ExitCode::SUCCESS
        }
        Err(violation) => {
            println!("VIOLATION, seed {}: {violation}", args.seed);
            ExitCode::FAILURE
        }
    }
}

fn soak(args: &Args) -> Result<pool::Seen, String> {
    let watch = Watch::start(args.seed);
    let (mut chance, mut seen) = (Chance::new(args.seed), pool::Seen::default());
    let begun = Instant::now();
    let end = begun + MINUTE * args.minutes;
    let mut told = 0;
    while Instant::now() < end {
        pool::life(&mut chance, &watch, &mut seen)?;
        let minutes = begun.elapsed().as_secs() / MINUTE.as_secs();
        if minutes > told {
            told = minutes;
            println!("minute {told}: {seen}");
        }
    }
    Ok(seen)
}
