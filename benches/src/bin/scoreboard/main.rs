//! Measures every goal against its rival, side by side. See `README.md` of the package.
#![forbid(unsafe_code)]

mod args;
mod watch;

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::Instant;

use fullbore_benches::board::{self, Better, Met, Row, Subject};
use fullbore_benches::cases::{AREAS, Amount, Area, examples};
use fullbore_benches::measure::{Case, Plan, Rival, Round, compare};
use fullbore_testkit::CountingAlloc;

use crate::args::{Args, Asked};
use crate::watch::Watch;

// It costs every allocation of both sides a few instructions.
#[global_allocator]
static ALLOC: CountingAlloc = CountingAlloc;

fn main() -> ExitCode {
    let args = match args::parse(std::env::args_os().skip(1)) {
        Ok(Asked::Help) => {
            print!("{}", args::help());
            return ExitCode::SUCCESS;
        }
        Ok(Asked::Measure(args)) => args,
        Err(error) => {
            eprintln!("scoreboard: {error}\n\n{}", args::help());
            return ExitCode::from(2);
        }
    };
    let board = measure(&args);
    if let Some(path) = &args.json
        && let Err(error) = board::write_json(&board.rows, path)
    {
        eprintln!("scoreboard: cannot write {}: {error}", path.display());
        return ExitCode::FAILURE;
    }
    // A goal that is not reached is news, not a failure; a case that does not do its work is one.
    if board.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// What has been measured so far.
struct Board {
    plan: Plan,
    rows: Vec<Row>,
    failed: usize,
}

fn measure(args: &Args) -> Board {
    let plan = if args.quick { Plan::QUICK } else { Plan::FULL };
    let mut board = Board { plan, rows: Vec::new(), failed: 0 };
    let begun = Instant::now();
    println!(
        "{} rounds, turns of at least {:?}, {} cores\n\n{}",
        plan.rounds,
        plan.turn,
        std::thread::available_parallelism().map_or(1, usize::from),
        board::head()
    );
    for area in AREAS.iter().filter(|area| args.wants(area.name)) {
        board.area(area, args);
    }
    if args.wants(examples::NAME) {
        board.outcome(examples::NAME, catching(|| examples::rows(&plan)));
    }
    let count = |met| board.rows.iter().filter(|row| row.met == met).count();
    println!(
        "\n{} goals: {} met, {} not, {} unclear; {} cases failed; {:.0} s",
        board.rows.len(),
        count(Met::Yes),
        count(Met::No),
        count(Met::Unclear),
        board.failed,
        begun.elapsed().as_secs_f64()
    );
    if plan.quick {
        println!("quick: shows that everything runs; the numbers mean nothing");
    }
    board
}

impl Board {
    fn area(&mut self, area: &Area, args: &Args) {
        for case in (area.cases)() {
            for rival in &case.rivals {
                let what = format!("{}: {} against {}", area.name, case.name, rival.name);
                if !args.wants_case(&what) {
                    continue;
                }
                let watch = Watch::over(&what);
                let row = catching(|| Ok(vec![duel(&self.plan, area.name, &case, rival)]));
                watch.end();
                self.outcome(&what, row);
            }
        }
        for amount in (area.amounts)() {
            let what = format!("{}: {} against {}", area.name, amount.name, amount.rival);
            if !args.wants_case(&what) {
                continue;
            }
            let row = catching(|| Ok(vec![compared(area.name, &amount)]));
            self.outcome(&what, row);
        }
        for count in (area.counts)(&self.plan) {
            let what = format!("{}: {}", area.name, count.name);
            if !args.wants_case(&what) {
                continue;
            }
            let row = catching(|| Ok(vec![Row::zero(area.name, count.name, count.unit, (count.ours)())]));
            self.outcome(&what, row);
        }
    }

    fn outcome(&mut self, what: &str, rows: Result<Vec<Row>, String>) {
        match rows {
            Ok(rows) => {
                rows.iter().for_each(|row| println!("{row}"));
                self.rows.extend(rows);
            }
            Err(error) => {
                println!("FAILED {what}: {error}");
                self.failed += 1;
            }
        }
    }
}

/// Both sides live only as long as they are compared.
fn duel(plan: &Plan, area: &'static str, case: &Case, rival: &Rival) -> Row {
    let rounds = compare(&case.plan(plan), case.threads, &mut (case.ours)(), &mut (rival.side)());
    let subject = Subject { area, case: case.name, rival: rival.name, threads: case.threads };
    Row::new(subject, "ns", Better::Less, &rounds)
}

/// Counted, not timed: once is enough.
fn compared(area: &'static str, amount: &Amount) -> Row {
    let round = Round { ours: (amount.ours)(), theirs: (amount.theirs)() };
    let subject = Subject { area, case: amount.name, rival: amount.rival, threads: 1 };
    Row::new(subject, amount.unit, amount.better, &[round])
}

/// An assertion of one case does not end the others.
fn catching<R>(work: impl FnOnce() -> Result<R, String>) -> Result<R, String> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| Err(text(&*panic)))
}

fn text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("it panicked").to_owned()
}
