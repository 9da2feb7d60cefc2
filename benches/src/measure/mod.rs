//! How time is measured: two sides in turns, round by round, in one process.

mod tally;
mod team;

use std::fmt;
use std::time::Duration;

pub use self::tally::Tally;
pub use self::team::{Span, Team, on_threads};

/// One side of a comparison, ready to run: does this many operations, all threads together, checks what came of them, and
/// returns the time that the operations took.
pub type Side = Box<dyn FnMut(u64) -> Duration>;

/// Makes a side: pools, threads and data come to life here, outside the measured time.
pub type MakeSide = Box<dyn Fn() -> Side>;

/// Something that we do, and others who do the same.
pub struct Case {
    /// What an operation is. Goals are found by it.
    pub name: &'static str,
    /// How many threads do the operations.
    pub threads: usize,
    /// How we do it.
    pub ours: MakeSide,
    /// How the others do.
    pub rivals: Vec<Rival>,
    /// Whether a turn is a single operation, which is long enough. See [`Case::one_a_turn`].
    pub one_a_turn: bool,
}

/// Somebody else's way.
pub struct Rival {
    /// Who, and how set up where that is not plain.
    pub name: &'static str,
    /// Makes its side.
    pub side: MakeSide,
}

impl Case {
    /// A case without rivals yet.
    pub fn new(name: &'static str, threads: usize, ours: impl Fn() -> Side + 'static) -> Self {
        Self { name, threads, ours: Box::new(ours), rivals: Vec::new(), one_a_turn: false }
    }

    /// Makes a turn a single operation, for those that are long, or whose time is not what they last: a percentile of many
    /// waits. It must be measured once in each round, without looking at what came out: to do again what took too short
    /// would be to choose.
    #[must_use]
    pub fn one_a_turn(mut self) -> Self {
        self.one_a_turn = true;
        self
    }

    /// `plan` as it is for this case.
    #[must_use]
    pub fn plan(&self, plan: &Plan) -> Plan {
        match self.one_a_turn {
            true => Plan { turn: Duration::ZERO, turn_for_each_thread: Duration::ZERO, ..*plan },
            false => *plan,
        }
    }

    /// Adds a rival.
    #[must_use]
    pub fn against(mut self, name: &'static str, side: impl Fn() -> Side + 'static) -> Self {
        self.rivals.push(Rival { name, side: Box::new(side) });
        self
    }
}

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Case")
            .field("name", &self.name)
            .field("threads", &self.threads)
            .field("rivals", &self.rivals)
            .field("one_a_turn", &self.one_a_turn)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Rival {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rival").field("name", &self.name).finish_non_exhaustive()
    }
}

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// How many rounds: in each, both sides have their turn.
    pub rounds: usize,
    /// The least time that a turn takes.
    pub turn: Duration,
    /// The least of it for each thread: where there are more threads than cores, a turn must be long enough for the
    /// scheduler to let most of them run.
    pub turn_for_each_thread: Duration,
    /// How often a whole program is run, where one is measured.
    pub runs: usize,
    /// Only to see that everything runs: the numbers mean nothing.
    pub quick: bool,
}

impl Plan {
    /// Numbers to rely on.
    pub const FULL: Self = Self {
        rounds: 41,
        turn: Duration::from_millis(20),
        turn_for_each_thread: Duration::from_millis(4),
        runs: 5,
        quick: false,
    };
    /// As little as can be.
    pub const QUICK: Self =
        Self { rounds: 7, turn: Duration::from_millis(1), turn_for_each_thread: Duration::ZERO, runs: 1, quick: true };
}

/// Nanoseconds for each operation, of both sides in one round.
#[derive(Clone, Copy, Debug)]
pub struct Round {
    /// Ours.
    pub ours: f64,
    /// The rival's.
    pub theirs: f64,
}

/// Lets both sides run in turns. Who begins alternates, so that neither always comes after the other has warmed the
/// machine up or worn it out.
pub fn compare(plan: &Plan, threads: usize, ours: &mut Side, theirs: &mut Side) -> Vec<Round> {
    let least = plan.turn.max(plan.turn_for_each_thread * u32::try_from(threads).unwrap_or(u32::MAX));
    let (mut our_count, mut their_count) = (calibrate(least, ours), calibrate(least, theirs));
    (0..plan.rounds)
        .map(|round| {
            if round % 2 == 0 {
                let ours = turn(least, ours, &mut our_count);
                Round { ours, theirs: turn(least, theirs, &mut their_count) }
            } else {
                let theirs = turn(least, theirs, &mut their_count);
                Round { ours: turn(least, ours, &mut our_count), theirs }
            }
        })
        .collect()
}

/// How many operations take half as long again as a turn must. Runs the side, so warms it up as well.
fn calibrate(least: Duration, side: &mut Side) -> u64 {
    let mut count = 1;
    loop {
        let took = side(count);
        if took * 2 >= least {
            return scaled(count, took, least).max(1);
        }
        // At most a hundredfold at once: the first operations are slow, and few say little.
        count = scaled(count, took, least).clamp(count * 2, count * 100);
    }
}

/// One turn of at least `least`; a shorter one is done again with more operations. After one that took far longer the next
/// has fewer: what many threads contend for can be a hundred times as slow in one turn as in the one before.
fn turn(least: Duration, side: &mut Side, count: &mut u64) -> f64 {
    loop {
        let took = side(*count);
        let each = took.as_nanos() as f64 / *count as f64;
        let enough = took >= least;
        if !enough {
            *count = scaled(*count, took, least).max(*count + 1);
        } else if took > least * 3 {
            *count = scaled(*count, took, least).max(1);
        }
        if enough {
            return each;
        }
    }
}

/// `count` made to last 1.5 times `least`, given what it took.
fn scaled(count: u64, took: Duration, least: Duration) -> u64 {
    let nanos = took.as_nanos().max(1) as f64;
    (count as f64 * 1.5 * least.as_nanos() as f64 / nanos).ceil() as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;
    use std::rc::Rc;

    /// A side whose operations take `nanos` each, and which notes its turns.
    fn pretend(nanos: u64, name: char, turns: &Rc<RefCell<String>>) -> Side {
        let turns = Rc::clone(turns);
        Box::new(move |count| {
            turns.borrow_mut().push(name);
            Duration::from_nanos(count * nanos)
        })
    }

    #[test]
    fn sides_take_turns_and_alternate_who_begins() {
        let turns = Rc::default();
        let (mut ours, mut theirs) = (pretend(10, 'o', &turns), pretend(30, 't', &turns));
        let rounds = compare(&Plan::QUICK, 1, &mut ours, &mut theirs);
        assert!(turns.borrow().ends_with("ottoottoottoot"), "{}", turns.borrow());
        assert_eq!(rounds.len(), Plan::QUICK.rounds);
        assert!(rounds.iter().all(|round| (round.ours, round.theirs) == (10.0, 30.0)));
    }

    #[test]
    fn a_turn_is_never_too_short() {
        let mut pace = 1_000_u64;
        // Gets faster each time, as something that warms up does.
        let mut side: Side = Box::new(move |count| {
            pace = pace.saturating_sub(100).max(10);
            Duration::from_nanos(count * pace)
        });
        let mut count = calibrate(Duration::from_micros(50), &mut side);
        for _ in 0..10 {
            let before = count;
            let each = turn(Duration::from_micros(50), &mut side, &mut count);
            assert!(each * count as f64 >= 50_000.0, "{each} ns, {before} or {count} times");
        }
    }

    #[test]
    fn a_long_operation_is_done_once_a_turn() {
        let case = Case::new("sleep", 64, || unreachable!("only its plan is asked for")).one_a_turn();
        let turns = Rc::default();
        let (mut ours, mut theirs) = (pretend(1, 'o', &turns), pretend(2, 't', &turns));
        let mut once: Side = Box::new(move |count| {
            assert_eq!(count, 1);
            ours(count)
        });
        compare(&case.plan(&Plan::FULL), case.threads, &mut once, &mut theirs);
        assert_eq!(turns.borrow().len(), 2 * (Plan::FULL.rounds + 1), "with one of each to warm up");
    }

    #[test]
    fn a_turn_that_was_far_too_long_makes_the_next_shorter() {
        let mut side: Side = Box::new(Duration::from_micros);
        let mut count = 1_000_000;
        assert_eq!(turn(Duration::from_micros(100), &mut side, &mut count), 1_000.0);
        assert_eq!(count, 150);
    }
}
