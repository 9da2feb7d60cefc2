//! What a table of flights holds, in two numbers that do not depend on the order of its rows.
//!
//! The source computes them in Rust and the database in SQL, so that nothing which went wrong in between can go wrong twice.
//! A row is a weighted sum of all its columns, a text the sum of its characters with a weight for each place; what is added
//! up is the square modulo a prime, so that values which have changed their rows are noticed, too.

use fullbore_examples::fleet::row::{COLUMNS, Row};

const PRIME: i64 = 2_147_483_647;

/// Makes every number positive: in SQL the remainder of a negative one is negative.
const SHIFT: i64 = 10_000;

/// For what is not available: no number and no text is one of these.
const NULL_NUMBER: i64 = 1;
const NULL_TEXT: &str = "?";

/// The columns that are text, and the characters of the longest.
const TEXTS: [(&str, usize); 5] = [("carrier", 2), ("tailnum", 6), ("origin", 3), ("dest", 3), ("time_hour", 20)];

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    pub(crate) rows: i64,
    pub(crate) checksum: i64,
}

impl Totals {
    /// Takes one more row in.
    pub(crate) fn add(&mut self, row: &Row<'_>) {
        let numbers = [
            Some(row.id),
            Some(row.year),
            Some(row.month),
            Some(row.day),
            row.dep_time,
            Some(row.sched_dep_time),
            row.dep_delay,
            row.arr_time,
            Some(row.sched_arr_time),
            row.arr_delay,
            Some(row.flight),
            row.air_time,
            Some(row.distance),
            Some(row.hour),
            Some(row.minute),
        ];
        let numbers = numbers.into_iter().map(|number| number.map_or(NULL_NUMBER, |number| number + SHIFT));
        let texts = [row.carrier, row.tailnum.unwrap_or(NULL_TEXT), row.origin, row.dest, &row.time_hour];
        let characters = texts.into_iter().zip(TEXTS).flat_map(|(text, (_, length))| {
            text.chars().map(|character| i64::from(u32::from(character))).chain(std::iter::repeat(0)).take(length)
        });
        let row: i64 = numbers.chain(characters).enumerate().map(|(place, value)| weight(place) * value).sum();
        let row = row % PRIME;
        self.rows += 1;
        self.checksum += row * row % PRIME;
    }
}

/// The query for both; `ordinal` is the function that makes a number of a character.
pub(crate) fn sql(ordinal: &str) -> String {
    let is_text = |column: &&str| TEXTS.iter().any(|(text, _)| text == column);
    let numbers = ["id"].into_iter().chain(COLUMNS).filter(|column| !is_text(column));
    let numbers = numbers.map(|column| format!("coalesce({column} + {SHIFT}, {NULL_NUMBER})"));
    let characters = TEXTS.into_iter().flat_map(|(column, length)| {
        (1..=length)
            .map(move |at| format!("coalesce({ordinal}(substr(coalesce({column}, '{NULL_TEXT}'), {at}, 1)), 0)"))
    });
    let terms: Vec<String> =
        numbers.chain(characters).enumerate().map(|(place, value)| format!("{} * {value}", weight(place))).collect();
    let sum = terms.join(" + ");
    // An empty table has no sum.
    format!(
        "SELECT count(*), CAST(coalesce(sum(h * h % {PRIME}), 0) AS BIGINT) FROM (SELECT ({sum}) % {PRIME} AS h FROM flights) \
         AS each"
    )
}

/// Another one for each place. Small enough that no sum overflows.
fn weight(place: usize) -> i64 {
    (place as i64 + 1) * 7_368_787 % 1_000_003 + 1
}
