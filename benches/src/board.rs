//! What the scoreboard says: rows, as a table and as JSON.

use std::fmt;
use std::fs::File;
use std::io::{self, Write as _};
use std::path::Path;

use serde::Serialize;

use crate::goals::{self, NONE};
use crate::measure::Round;
use crate::stats;

/// Which way is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Better {
    /// Times, bytes, allocations.
    Less,
    /// Rates.
    More,
}

/// Whether a goal is met.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Met {
    /// Even the lower end of the interval reaches it.
    Yes,
    /// Not even the upper end does.
    No,
    /// The goal lies within the interval.
    Unclear,
}

/// A case against one rival. The fields are those of the JSON.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// The crate's folder name.
    pub area: &'static str,
    /// What an operation is.
    pub case: &'static str,
    /// Against whom.
    pub rival: &'static str,
    /// How many threads do the operations.
    pub threads: usize,
    /// Of `ours` and `theirs`: for each operation, or operations in a second.
    pub unit: &'static str,
    /// Which way is better in this unit.
    pub better: Better,
    /// Median over the rounds.
    pub ours: f64,
    /// Median over the rounds.
    pub theirs: f64,
    /// Median of the rounds' ratios, turned so that larger is better.
    pub ratio: f64,
    /// Lower end of its 95 % interval.
    pub lo: f64,
    /// Upper end of its 95 % interval.
    pub hi: f64,
    /// The least ratio that is wanted.
    pub goal: f64,
    /// Whether that is reached.
    pub met: Met,
}

/// What a row is about.
#[derive(Clone, Copy, Debug)]
pub struct Subject {
    /// See [`Row`].
    pub area: &'static str,
    /// See [`Row`].
    pub case: &'static str,
    /// See [`Row`].
    pub rival: &'static str,
    /// See [`Row`].
    pub threads: usize,
}

impl Row {
    /// The row of rounds in `unit`, with the goal that the table has.
    ///
    /// # Panics
    /// Without rounds, or if there is no such goal.
    #[must_use]
    pub fn new(subject: Subject, unit: &'static str, better: Better, rounds: &[Round]) -> Self {
        let goal = goals::of(subject.area, subject.case, subject.rival);
        Self::with_goal(subject, unit, better, rounds, goal)
    }

    /// As [`new`](Self::new), with a goal that depends on the machine.
    ///
    /// # Panics
    /// Without rounds.
    #[must_use]
    pub fn with_goal(subject: Subject, unit: &'static str, better: Better, rounds: &[Round], goal: f64) -> Self {
        let median = |value: fn(&Round) -> f64| stats::median(&rounds.iter().map(value).collect::<Vec<_>>());
        // The ratio of each round, and not that of the medians: both sides of a round met the same disturbances.
        let ratio = median(match better {
            Better::Less => |round| round.theirs / round.ours,
            Better::More => |round| round.ours / round.theirs,
        });
        let (ours, theirs) = (median(|round| round.ours).value, median(|round| round.theirs).value);
        Self::judged(subject, (unit, better), (ours, theirs), ratio, goal)
    }

    /// The row of a count that is to be zero.
    ///
    /// # Panics
    /// If there is no such goal.
    #[must_use]
    pub fn zero(area: &'static str, case: &'static str, unit: &'static str, ours: f64) -> Self {
        let subject = Subject { area, case, rival: NONE, threads: 1 };
        let ratio = if ours == 0.0 { 1.0 } else { 0.0 };
        let exact = stats::Median { value: ratio, low: ratio, high: ratio };
        Self::judged(subject, (unit, Better::Less), (ours, 0.0), exact, goals::of(area, case, NONE))
    }

    fn judged(
        Subject { area, case, rival, threads }: Subject,
        (unit, better): (&'static str, Better),
        (ours, theirs): (f64, f64),
        stats::Median { value: ratio, low: lo, high: hi }: stats::Median,
        goal: f64,
    ) -> Self {
        let met = match () {
            () if lo >= goal => Met::Yes,
            () if hi < goal => Met::No,
            () => Met::Unclear,
        };
        Self { area, case, rival, threads, unit, better, ours, theirs, ratio, lo, hi, goal, met }
    }
}

/// The head of the table.
#[must_use]
pub fn head() -> String {
    let (case, rival) = ("case", "rival");
    let numbers = "threads      ours    theirs   ratio      95 % interval    goal  met";
    format!("{case:<46}  {rival:<36}  {numbers}\n{}", "-".repeat(46 + 2 + 36 + 2 + numbers.len()))
}

impl fmt::Display for Row {
    /// A line of the table.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let case = format!("{}: {}", self.area, self.case);
        if case.len() > 46 {
            writeln!(f, "{case}")?;
            write!(f, "{:<46}", "")?;
        } else {
            write!(f, "{case:<46}")?;
        }
        let met = match self.met {
            Met::Yes => "yes",
            Met::No => "NO",
            Met::Unclear => "unclear",
        };
        write!(
            f,
            "  {:<36}  {:>7} {:>9} {:>9} {:>7} {:>18} {:>7}  {met}",
            self.rival,
            self.threads,
            in_unit(self.ours, self.unit),
            in_unit(self.theirs, self.unit),
            short(self.ratio),
            format!("{} .. {}", short(self.lo), short(self.hi)),
            short(self.goal),
        )
    }
}

fn in_unit(value: f64, unit: &str) -> String {
    match unit {
        "ns" if value >= 10_000.0 => format!("{} us", short(value / 1_000.0)),
        "per_s" => format!("{}/s", short(value)),
        // The case says what is counted.
        "allocs" => short(value),
        unit => format!("{} {unit}", short(value)),
    }
}

/// Three digits.
fn short(value: f64) -> String {
    let digits = match value.abs() {
        0.0 => 0,
        v if v < 10.0 => 2,
        v if v < 100.0 => 1,
        _ => 0,
    };
    format!("{value:.digits$}")
}

/// Writes the rows as a JSON array.
///
/// # Errors
/// The file cannot be written.
pub fn write_json(rows: &[Row], path: &Path) -> io::Result<()> {
    let mut file = File::create(path)?;
    serde_json::to_writer_pretty(&mut file, rows)?;
    writeln!(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(better: Better, rounds: &[(f64, f64)], goal: f64) -> Row {
        let subject = Subject { area: "pool", case: "checkout", rival: "r2d2", threads: 2 };
        let rounds: Vec<Round> = rounds.iter().map(|(ours, theirs)| Round { ours: *ours, theirs: *theirs }).collect();
        Row::with_goal(subject, "ns", better, &rounds, goal)
    }

    #[test]
    fn larger_ratios_are_better_both_ways() {
        assert_eq!(row(Better::Less, &[(10.0, 50.0)], 1.0).ratio, 5.0);
        assert_eq!(row(Better::More, &[(50.0, 10.0)], 1.0).ratio, 5.0);
    }

    #[test]
    fn met_is_judged_by_the_interval() {
        let rounds = [(10.0, 40.0), (10.0, 50.0), (10.0, 60.0)];
        for (goal, met) in [(4.0, Met::Yes), (4.1, Met::Unclear), (6.0, Met::Unclear), (6.1, Met::No)] {
            assert_eq!(row(Better::Less, &rounds, goal).met, met, "goal {goal}");
        }
    }

    #[test]
    fn a_goal_of_zero_is_one_or_nothing() {
        let case = "allocations for each checkout";
        assert_eq!(Row::zero("pool", case, "allocs", 0.0).met, Met::Yes);
        let row = Row::zero("pool", case, "allocs", 0.001);
        assert_eq!((row.ratio, row.met), (0.0, Met::No));
    }

    #[test]
    fn the_json_has_the_fields_of_the_format() {
        let json = serde_json::to_value([row(Better::Less, &[(10.0, 50.0)], 5.0)]).unwrap();
        let expected = serde_json::json!([{
            "area": "pool", "case": "checkout", "rival": "r2d2", "threads": 2, "unit": "ns", "better": "less",
            "ours": 10.0, "theirs": 50.0, "ratio": 5.0, "lo": 5.0, "hi": 5.0, "goal": 5.0, "met": "yes",
        }]);
        assert_eq!(json, expected);
    }

    #[test]
    fn lines_fit_the_head() {
        let line = row(Better::Less, &[(10.0, 50.0)], 5.0).to_string();
        let head = head();
        let head = head.lines().next().unwrap();
        assert_eq!(line.find("r2d2"), head.find("rival"));
        assert_eq!(line.find("yes"), head.find("met"), "\n{head}\n{line}");
    }
}
