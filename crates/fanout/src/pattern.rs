//! Topics and the patterns that match them.

use std::fmt;
use std::sync::Arc;

use crate::error::{Malformed, Problem};

/// What stands between the segments of a topic.
pub(crate) const DOT: char = '.';

/// A pattern is kept as a path through a tree, which is as deep as the longest of them.
const MAX_SEGMENTS: usize = 128;

/// A topic with wildcards: segments separated by `.`, where `*` stands for exactly one segment and `#` for any number of
/// them, none included.
///
/// ```
/// use fullbore_fanout::Pattern;
///
/// let created = Pattern::new("orders.*.created")?;
/// assert!(created.matches("orders.eu.created"));
/// assert!(!created.matches("orders.created"));
/// let errors = Pattern::new("#.error")?;
/// assert!(errors.matches("error") && errors.matches("db.write.error"));
/// assert_eq!(Pattern::new("orders.eu*").unwrap_err().position(), 9);
/// # Ok::<(), fullbore_fanout::Malformed>(())
/// ```
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Pattern {
    text: Arc<str>,
    segments: Box<[Segment]>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Segment {
    Literal(Box<str>),
    /// `*`
    One,
    /// `#`
    Any,
}

impl Pattern {
    /// Reads a pattern.
    ///
    /// # Errors
    /// If it is empty, has an empty segment, a wildcard beside other characters in one segment, a control character, or
    /// more than 128 segments. The error names the byte at fault.
    pub fn new(text: &str) -> Result<Self, Malformed> {
        let bad = |position, problem| Malformed::pattern(text, position, problem);
        let mut segments = Vec::new();
        for (start, segment) in parts(text).map_err(|(position, problem)| bad(position, problem))? {
            if segments.len() == MAX_SEGMENTS {
                return Err(bad(start, Problem::TooManySegments));
            }
            segments.push(match segment {
                "*" => Segment::One,
                "#" => Segment::Any,
                literal => match literal.find(['*', '#']) {
                    Some(at) => return Err(bad(start + at, Problem::WildcardInSegment)),
                    None => Segment::Literal(literal.into()),
                },
            });
        }
        Ok(Self { text: text.into(), segments: segments.into() })
    }

    /// As it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    pub(crate) fn text(&self) -> &Arc<str> {
        &self.text
    }

    pub(crate) fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// Whether it stands for every topic.
    pub(crate) fn is_all(&self) -> bool {
        // A topic has at least one segment: `#.*`, `*.#` and `*.#.#` are the same.
        let ones = self.segments.iter().filter(|segment| **segment == Segment::One).count();
        let wild = self.segments.iter().all(|segment| matches!(segment, Segment::One | Segment::Any));
        wild && ones <= 1 && self.segments.contains(&Segment::Any)
    }

    /// Whether it stands for one topic only.
    pub(crate) fn is_literal(&self) -> bool {
        self.segments.iter().all(|segment| matches!(segment, Segment::Literal(_)))
    }

    /// Whether `topic` is one of those it stands for. Costs at most segments times segments; allocates nothing.
    #[must_use]
    pub fn matches(&self, topic: &str) -> bool {
        let mut at = 0;
        let mut topic = topic.split(DOT);
        // The last `#` seen and what followed it in the topic. Only the last one matters: what an earlier one could
        // swallow in addition, the last one can swallow too.
        let mut last_any = None;
        loop {
            let here = topic.clone();
            match (self.segments.get(at), topic.next()) {
                (None, None) => return true,
                (Some(Segment::Any), _) => {
                    at += 1;
                    last_any = Some((at, here.clone()));
                    topic = here;
                }
                (Some(Segment::One), Some(_)) => at += 1,
                (Some(Segment::Literal(literal)), Some(segment)) if **literal == *segment => at += 1,
                // A mismatch, or one of the two is at its end: the last `#` swallows one segment more.
                _ => {
                    let Some((after, swallowed)) = &mut last_any else { return false };
                    if swallowed.next().is_none() {
                        return false;
                    }
                    at = *after;
                    topic = swallowed.clone();
                }
            }
        }
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Pattern").field(&self.text).finish()
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Whether something can be published under `topic`: not empty, no empty segment, no wildcard, no control character.
pub(crate) fn check_topic(topic: &str) -> Result<(), Malformed> {
    // One look at each byte; `.` twice in a row, at the start or at the end is an empty segment.
    let plain = topic.bytes().try_fold(b'.', |before, byte| {
        let fine = !matches!(byte, b'*' | b'#' | 0..=31 | 127) && (byte != b'.' || before != b'.');
        fine.then_some(byte)
    });
    if plain.is_some_and(|last| last != b'.') {
        return Ok(());
    }
    let bad = |position, problem| Malformed::topic(topic, position, problem);
    for (start, segment) in parts(topic).map_err(|(position, problem)| bad(position, problem))? {
        if let Some(at) = segment.find(['*', '#']) {
            return Err(bad(start + at, Problem::WildcardInTopic));
        }
    }
    Ok(())
}

/// The segments of `text` with their positions in bytes.
fn parts(text: &str) -> Result<Vec<(usize, &str)>, (usize, Problem)> {
    if text.is_empty() {
        return Err((0, Problem::Empty));
    }
    if let Some(at) = text.find(|c: char| c.is_ascii_control()) {
        return Err((at, Problem::ControlCharacter));
    }
    let mut start = 0;
    let mut parts = Vec::new();
    for segment in text.split(DOT) {
        if segment.is_empty() {
            return Err((start, Problem::EmptySegment));
        }
        parts.push((start, segment));
        start += segment.len() + DOT.len_utf8();
    }
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use super::{Pattern, check_topic};
    use crate::error::Problem;

    #[test]
    fn malformed_patterns_name_the_position() {
        let cases = [
            ("", 0, Problem::Empty),
            (".", 0, Problem::EmptySegment),
            (".a", 0, Problem::EmptySegment),
            ("a.", 2, Problem::EmptySegment),
            ("a..b", 2, Problem::EmptySegment),
            ("a.b*", 3, Problem::WildcardInSegment),
            ("a.#b", 2, Problem::WildcardInSegment),
            ("##", 0, Problem::WildcardInSegment),
            ("é.*x", 3, Problem::WildcardInSegment),
            ("a.\0", 2, Problem::ControlCharacter),
        ];
        for (text, position, problem) in cases {
            let error = Pattern::new(text).unwrap_err();
            assert_eq!((error.position(), error.problem()), (position, problem), "{text:?}");
        }
    }

    #[test]
    fn malformed_topics_name_the_position() {
        let cases = [
            ("", 0, Problem::Empty),
            ("a.", 2, Problem::EmptySegment),
            (".a", 0, Problem::EmptySegment),
            ("a..b", 2, Problem::EmptySegment),
            ("a.*", 2, Problem::WildcardInTopic),
            ("a.b#", 3, Problem::WildcardInTopic),
            ("a\n", 1, Problem::ControlCharacter),
            ("a\u{7f}", 1, Problem::ControlCharacter),
        ];
        for (text, position, problem) in cases {
            let error = check_topic(text).unwrap_err();
            assert_eq!((error.position(), error.problem()), (position, problem), "{text:?}");
        }
        for fine in ["a", "a.b", "é.ü", "with space.x"] {
            assert_eq!(check_topic(fine), Ok(()));
        }
    }
}
