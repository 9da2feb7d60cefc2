//! When each tag was last removed, as far as this process knows.
//!
//! A number is remembered only while the link is up and has told of no change since it was asked for: whoever asks leaves a
//! ticket first, and a push for the tag, a flush and a loss of the link tear it up.

use std::collections::HashMap;
use std::sync::Arc;

use fullbore_core::{Clock, Monitor};

use crate::redis::frame::Moment;

/// More than that and all are forgotten: those in use are soon there again.
const MAX: usize = 65_536;

pub(crate) struct Tags {
    known: Monitor<Known>,
}

struct Known {
    tags: HashMap<Arc<str>, Number>,
    tickets: u64,
    /// Whether changes are told of.
    live: bool,
}

#[derive(Clone, Copy)]
enum Number {
    Is(Moment),
    /// Somebody asks, with this ticket.
    Asked(u64),
}

/// The right to say what the number of some tags is, unless it changed since.
pub(crate) struct Ticket(u64);

impl Tags {
    pub(crate) fn new() -> Self {
        let known = Known { tags: HashMap::new(), tickets: 0, live: false };
        Self { known: Monitor::new(known, Clock::Real) }
    }

    /// The number of each of these tags that is known; the others in `missing`.
    pub(crate) fn look(&self, tags: &[&str], missing: &mut Vec<Arc<str>>) -> HashMap<Arc<str>, Moment> {
        let known = self.known.lock();
        let mut found = HashMap::new();
        for &tag in tags {
            match known.tags.get_key_value(tag) {
                Some((name, Number::Is(number))) => {
                    found.insert(Arc::clone(name), *number);
                }
                _ if missing.iter().any(|other| **other == *tag) => {}
                _ => missing.push(tag.into()),
            }
        }
        found
    }

    /// Before they are asked for.
    pub(crate) fn ask(&self, tags: &[Arc<str>]) -> Ticket {
        let mut known = self.known.lock();
        known.tickets += 1;
        let ticket = known.tickets;
        if known.live {
            if known.tags.len() + tags.len() > MAX {
                known.tags.clear();
            }
            for tag in tags {
                known.tags.insert(Arc::clone(tag), Number::Asked(ticket));
            }
        }
        Ticket(ticket)
    }

    /// What the answer was.
    pub(crate) fn answer(&self, ticket: &Ticket, tag: &str, number: Moment) {
        if let Some(there) = self.known.lock().tags.get_mut(tag)
            && matches!(there, Number::Asked(asked) if *asked == ticket.0)
        {
            *there = Number::Is(number);
        }
    }

    pub(crate) fn changed(&self, tag: &str) {
        self.known.lock().tags.remove(tag);
    }

    /// Everything may have changed; whether changes are told of from now on.
    pub(crate) fn forget(&self, live: bool) {
        let mut known = self.known.lock();
        known.tags.clear();
        known.live = live;
    }
}

#[cfg(all(test, not(fullbore_loom)))]
mod tests {
    use super::*;

    const ONE: Moment = Moment { epoch: 1, count: 1 };

    fn look(tags: &Tags) -> Option<Moment> {
        tags.look(&["tag"], &mut Vec::new()).get("tag").copied()
    }

    #[test]
    fn an_answer_that_was_overtaken_is_not_remembered() {
        let tags = Tags::new();
        let name: [Arc<str>; 1] = ["tag".into()];
        tags.answer(&tags.ask(&name), "tag", ONE);
        assert_eq!(look(&tags), None, "nobody tells of changes");
        tags.forget(true);
        tags.answer(&tags.ask(&name), "tag", ONE);
        assert_eq!(look(&tags), Some(ONE));
        let overtake: [fn(&Tags); 3] =
            [|tags| tags.changed("tag"), |tags| tags.forget(true), |tags| tags.forget(false)];
        for overtaken in overtake {
            tags.forget(true);
            let ticket = tags.ask(&name);
            overtaken(&tags);
            tags.answer(&ticket, "tag", ONE);
            assert_eq!(look(&tags), None);
        }
        tags.forget(true);
        let (old, new) = (tags.ask(&name), tags.ask(&name));
        tags.answer(&old, "tag", ONE);
        assert_eq!(look(&tags), None, "the later one may know better");
        tags.answer(&new, "tag", ONE);
        assert_eq!(look(&tags), Some(ONE));
    }
}
