//! `examples`: every example builds, runs alone and ends well. An example checks its own result.

use std::ffi::OsString;

use crate::call::Call;
use crate::repo::Repo;
use crate::stop::Stop;
use crate::targets::{self, Program};

/// An example, and the arguments that keep its run short.
#[derive(Debug)]
struct Example {
    name: &'static str,
    arguments: &'static [&'static str],
    /// Needs a database: built here, and run by `examples/tests/ten_minutes.rs` with a private one.
    server: bool,
}

/// Every example has its line here, or the command fails.
const EXAMPLES: &[Example] = &[
    // Says that it is skipped where there is no redis-server.
    Example { name: "cached_api", arguments: &["--quick"], server: false },
    Example { name: "fleet_migration", arguments: &["--tenants", "200", "--json"], server: false },
    Example { name: "image_fanout", arguments: &[], server: false },
    Example { name: "ingest_flights", arguments: &[], server: false },
    Example { name: "serve_metrics", arguments: &[], server: false },
    Example { name: "batch_rows", arguments: &[], server: true },
    Example { name: "cache_in_front", arguments: &[], server: false },
    Example { name: "fan_out", arguments: &[], server: false },
    Example { name: "percentiles", arguments: &[], server: false },
    Example { name: "pool_transaction", arguments: &[], server: true },
];

/// `examples [EXAMPLE]...`.
///
/// # Errors
///
/// One does not build, does not end with exit status 0, or has no line in the table.
pub(crate) fn examples(_: &Repo, arguments: &[OsString]) -> Result<(), Stop> {
    // As `cargo run --release --example NAME` builds them, so that both share what they build.
    let mut programs = targets::build(Call::cargo().args(["build", "--release", "--examples"]))?;
    programs.retain(|program| program.kind == "example");
    for (program, example) in pair(&programs, EXAMPLES)? {
        let wanted = arguments.is_empty() || arguments.iter().any(|wanted| *wanted == *example.name);
        if wanted && !example.server {
            Call::new(&program.path).args(example.arguments).run()?;
        }
    }
    match arguments.iter().find(|wanted| !EXAMPLES.iter().any(|example| **wanted == *example.name)) {
        None => Ok(()),
        Some(unknown) => Err(Stop::unable(format!("no example `{}`", unknown.to_string_lossy()))),
    }
}

/// Each program with its line of the table; both sides must be complete.
fn pair<'a>(programs: &'a [Program], table: &'a [Example]) -> Result<Vec<(&'a Program, &'a Example)>, Stop> {
    let unlisted = programs.iter().find(|program| !table.iter().any(|example| example.name == program.name));
    if let Some(program) = unlisted {
        return Err(Stop::failed(format!(
            "example `{}` has no line in `EXAMPLES` (xtask/src/examples.rs)",
            program.name
        )));
    }
    let found = |example: &'a Example| {
        let program = programs.iter().find(|program| program.name == example.name);
        program
            .map(|program| (program, example))
            .ok_or_else(|| Stop::failed(format!("there is no example `{}`, but a line in `EXAMPLES`", example.name)))
    };
    table.iter().map(found).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(name: &str) -> Program {
        Program { name: name.to_owned(), kind: String::from("example"), package: "p".into(), path: "x".into() }
    }

    #[test]
    fn both_sides_must_be_complete() {
        let table = [Example { name: "a", arguments: &[], server: false }];
        assert_eq!(pair(&[program("a")], &table).unwrap().len(), 1);
        assert!(pair(&[program("a"), program("b")], &table).unwrap_err().to_string().contains("`b`"));
        assert!(pair(&[], &table).unwrap_err().to_string().contains("`a`"));
    }
}
