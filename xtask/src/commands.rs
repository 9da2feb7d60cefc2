//! The table of commands: the dispatcher and the help text both come from it.

use std::ffi::OsString;
use std::io::Write as _;
use std::{io, iter};

use crate::repo::Repo;
use crate::stop::Stop;
use crate::{book, cargo, ci, deps, examples, links, lint, loom, package, test};

/// One command of `cargo xtask`.
struct Command {
    name: &'static str,
    /// What it takes, as the help shows it.
    takes: &'static str,
    /// What it does, in one line.
    about: &'static str,
    run: fn(&Repo, &[OsString]) -> Result<(), Stop>,
}

const COMMANDS: &[Command] = &[
    Command { name: "fmt", takes: "[--check]", about: "format the code, or only check that it is", run: cargo::fmt },
    Command {
        name: "lint",
        takes: "",
        about: "clippy with warnings as errors, every feature of every crate alone, the house rules",
        run: lint::lint,
    },
    Command {
        name: "deps",
        takes: "",
        about: "the arrows between the crates point down only, versions stand in one place",
        run: deps::deps,
    },
    Command {
        name: "test",
        takes: "[--install] [ARGUMENTS OF THE RUNNER]",
        about: "all tests with real servers; --install first installs the servers that are missing",
        run: test::test,
    },
    Command { name: "doc", takes: "", about: "API docs, private items too, warnings as errors", run: cargo::doc },
    Command { name: "book", takes: "", about: "build the docs site with mdBook and check its links", run: book::book },
    Command {
        name: "links",
        takes: "",
        about: "links, anchors and includes of all Markdown files resolve (offline)",
        run: links::links,
    },
    Command {
        name: "loom",
        takes: "[CRATE]... [-- ARGUMENTS OF THE TESTS]",
        about: "loom models of the crates that have tests/loom*.rs, 10 minutes at most",
        run: loom::loom,
    },
    Command {
        name: "package",
        takes: "",
        about: "every published crate packages and builds alone",
        run: package::package,
    },
    Command {
        name: "bench",
        takes: "[-- ARGUMENTS OF CRITERION]",
        about: "the Criterion benches; `-- --test` runs each once",
        run: cargo::bench,
    },
    Command {
        name: "scoreboard",
        takes: "[--only AREA] [--quick] [--json FILE]",
        about: "every goal against its rival, side by side",
        run: cargo::scoreboard,
    },
    Command {
        name: "examples",
        takes: "[EXAMPLE]...",
        about: "build every example in release and run it",
        run: examples::examples,
    },
    Command { name: "ci", takes: "", about: "all of the above, as CI runs them", run: ci::ci },
    Command {
        name: "soak",
        takes: "pool [--minutes N] [--seed S]",
        about: "a random stress of one primitive with real threads, for 5 minutes if not said otherwise",
        run: cargo::soak,
    },
    Command { name: "help", takes: "", about: "this list", run: help },
];

/// Runs the command that the first argument names with the rest of the arguments.
///
/// # Errors
///
/// There is no such command, or it stopped.
pub(crate) fn dispatch(repo: &Repo, arguments: &[OsString]) -> Result<(), Stop> {
    let Some((name, arguments)) = arguments.split_first() else {
        return Err(Stop::unable(format!("which command?\n\n{}", list())));
    };
    if is_help(name) {
        return help(repo, &[]);
    }
    let Some(command) = COMMANDS.iter().find(|command| *name == command.name) else {
        return Err(Stop::unable(format!("no command `{}`\n\n{}", name.to_string_lossy(), list())));
    };
    if arguments.first().is_some_and(is_help) {
        say(&format!("cargo xtask {}\n    {}\n", usage(command), command.about));
        return Ok(());
    }
    (command.run)(repo, arguments)
}

/// For a command that takes no arguments.
///
/// # Errors
///
/// There are some.
pub(crate) fn no_arguments(arguments: &[OsString]) -> Result<(), Stop> {
    match lexopt::Parser::from_args(arguments).next()? {
        None => Ok(()),
        Some(argument) => Err(argument.unexpected().into()),
    }
}

fn help(_: &Repo, arguments: &[OsString]) -> Result<(), Stop> {
    no_arguments(arguments)?;
    say(&list());
    Ok(())
}

fn list() -> String {
    let head = String::from("cargo xtask <command>\n\n");
    let lines = COMMANDS.iter().map(|command| format!("  {}\n      {}\n", usage(command), command.about));
    let tail = String::from("\nExit status: 0 passed, 1 a check failed, 2 wrong usage or a tool is missing.\n");
    iter::once(head).chain(lines).chain(iter::once(tail)).collect()
}

fn usage(command: &Command) -> String {
    format!("{} {}", command.name, command.takes).trim_end().to_owned()
}

fn is_help(argument: &OsString) -> bool {
    argument == "--help" || argument == "-h"
}

/// Writes to standard output; a reader that went away is no failure.
fn say(text: &str) {
    let _ = io::stdout().write_all(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(arguments: &[&str]) -> Result<(), Stop> {
        let arguments: Vec<_> = arguments.iter().map(OsString::from).collect();
        dispatch(&Repo::at("nowhere".into()), &arguments)
    }

    #[test]
    fn an_unknown_command_lists_the_known() {
        let stop = run(&["polish"]).unwrap_err();
        assert_eq!(stop.status(), 2);
        assert!(stop.to_string().contains("no command `polish`"));
        assert!(stop.to_string().contains("test [--install]"));
    }

    #[test]
    fn no_command_is_wrong_usage() {
        assert_eq!(run(&[]).unwrap_err().status(), 2);
    }

    #[test]
    fn help_is_no_error() {
        run(&["help"]).unwrap();
        run(&["--help"]).unwrap();
        run(&["scoreboard", "--help"]).unwrap();
    }

    #[test]
    fn a_stray_argument_is_wrong_usage() {
        let stop = run(&["deps", "--loud"]).unwrap_err();
        assert_eq!(stop.status(), 2);
        assert!(stop.to_string().contains("--loud"), "{stop}");
    }
}
