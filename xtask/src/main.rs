//! `cargo xtask`: every check of this workspace is one local command, and CI calls only these.
//!
//! [`commands`] holds the table of commands, which is also the help text. A command is one function in the module of
//! its name; what they share is [`repo`] (where things are), [`manifest`] (what the members say about themselves),
//! [`call`] (run a program and say so) and [`stop`] (how a command ends when it cannot go on).
//!
//! Exit status: 0 passed, 1 a check failed, 2 wrong usage or something this machine lacks.

mod book;
mod call;
mod cargo;
mod ci;
mod commands;
mod deps;
mod examples;
mod links;
mod lint;
mod loom;
mod manifest;
mod package;
mod repo;
mod rules;
mod servers;
mod stop;
mod targets;
mod test;

use std::env;
use std::process::ExitCode;

use crate::repo::Repo;

fn main() -> ExitCode {
    let arguments: Vec<_> = env::args_os().skip(1).collect();
    let result = Repo::find().and_then(|repo| commands::dispatch(&repo, &arguments));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(stop) => {
            eprintln!("xtask: {stop}");
            ExitCode::from(stop.status())
        }
    }
}
