//! Which messages a route wants.

use std::fmt;
use std::sync::Arc;

use crate::error::Malformed;
use crate::pattern::{Pattern, check_topic};

/// Which messages a route wants.
///
/// All but [`when`](Self::when) are found through an index: a publish costs what its topic and headers cost to look up, and
/// what matches; rules that cannot match cost nothing, however many there are.
///
/// ```
/// use fullbore_fanout::{Router, Rule};
///
/// let router = Router::<u32>::new();
/// let all = router.subscribe(Rule::all()).receiver()?;
/// let created = router.subscribe("orders.*.created").receiver()?;     // the same as Rule::topic
/// let one = router.subscribe(Rule::direct("orders.eu.created")?).receiver()?;
/// let large = router.subscribe(Rule::when(|amount: &u32| *amount > 1000)).receiver()?;
/// assert_eq!(router.publish("orders.eu.created", 7)?.accepted(), 3);
/// assert!(large.try_recv().unwrap_err().is_empty());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Rule<M> {
    pub(crate) what: What<M>,
}

pub(crate) enum What<M> {
    All,
    Direct(Arc<str>),
    Topic(Pattern),
    Headers(Headers),
    When(Box<Predicate<M>>),
}

pub(crate) type Predicate<M> = dyn Fn(&M) -> bool + Send + Sync;

/// Headers that a message has to have, sorted and without repetitions.
pub(crate) struct Headers {
    pub(crate) pairs: Box<[(Box<str>, Box<str>)]>,
    /// Any one of them will do; else all have to be there.
    pub(crate) any: bool,
}

impl Headers {
    fn new<K: Into<Box<str>>, V: Into<Box<str>>>(pairs: impl IntoIterator<Item = (K, V)>, any: bool) -> Self {
        let mut pairs: Vec<_> = pairs.into_iter().map(|(key, value)| (key.into(), value.into())).collect();
        pairs.sort_unstable();
        pairs.dedup();
        Self { pairs: pairs.into(), any }
    }
}

impl<M> Rule<M> {
    /// Every message.
    #[must_use]
    pub fn all() -> Self {
        Self { what: What::All }
    }

    /// Messages whose topic a pattern stands for: `orders.*.created`, `orders.#`. See [`Pattern`]. A text alone is such a rule,
    /// too.
    ///
    /// # Errors
    /// If the pattern is malformed.
    pub fn topic(pattern: &str) -> Result<Self, Malformed> {
        Ok(Pattern::new(pattern)?.into())
    }

    /// Messages under exactly this topic.
    ///
    /// # Errors
    /// If nothing can be published under it: a wildcard is one reason.
    pub fn direct(topic: &str) -> Result<Self, Malformed> {
        check_topic(topic)?;
        Ok(Self { what: What::Direct(topic.into()) })
    }

    /// Messages with this header. What a message's headers are, [`RouterBuilder::headers`](crate::RouterBuilder::headers) says;
    /// without it no message has any.
    #[must_use]
    pub fn header(key: &str, value: &str) -> Self {
        Self::headers_all([(key, value)])
    }

    /// Messages with all of these headers; with none given, every message. A rule is looked at when a message has the one of
    /// its headers that the fewest other rules were filed under.
    #[must_use]
    pub fn headers_all<K: Into<Box<str>>, V: Into<Box<str>>>(pairs: impl IntoIterator<Item = (K, V)>) -> Self {
        let headers = Headers::new(pairs, false);
        Self { what: if headers.pairs.is_empty() { What::All } else { What::Headers(headers) } }
    }

    /// Messages with any one of these headers; with none given, no message.
    #[must_use]
    pub fn headers_any<K: Into<Box<str>>, V: Into<Box<str>>>(pairs: impl IntoIterator<Item = (K, V)>) -> Self {
        Self { what: What::Headers(Headers::new(pairs, true)) }
    }

    /// Messages that the predicate says yes to. It is called for **each** message published, on the publisher's thread and
    /// under no lock: a hundred such rules cost each publish a hundred calls. One that publishes to its own router is asked about
    /// that message, too. If it panics the message does not match, and the
    /// panic goes on in `publish` once everybody else was served.
    #[must_use]
    pub fn when(predicate: impl Fn(&M) -> bool + Send + Sync + 'static) -> Self {
        Self { what: What::When(Box::new(predicate)) }
    }
}

impl<M> From<Pattern> for Rule<M> {
    fn from(pattern: Pattern) -> Self {
        let what = if pattern.is_all() {
            What::All
        } else if pattern.is_literal() {
            What::Direct(Arc::clone(pattern.text()))
        } else {
            What::Topic(pattern)
        };
        Self { what }
    }
}

/// The default name of a route.
impl<M> fmt::Display for Rule<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.what {
            What::All => f.write_str("#"),
            What::Direct(topic) => f.write_str(topic),
            What::Topic(pattern) => pattern.fmt(f),
            What::Headers(Headers { pairs, any }) => {
                let between = if *any { "|" } else { "&" };
                for (n, (key, value)) in pairs.iter().enumerate() {
                    let between = if n == 0 { "" } else { between };
                    // In the name of a thread: what it cannot hold is escaped.
                    write!(f, "{between}{}={}", key.escape_debug(), value.escape_debug())?;
                }
                if pairs.is_empty() { f.write_str("nothing") } else { Ok(()) }
            }
            What::When(_) => f.write_str("when"),
        }
    }
}

impl<M> fmt::Debug for Rule<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Rule").field(&self.to_string()).finish()
    }
}

/// What can be said where a rule is wanted: a [`Rule`], a [`Pattern`], or a text that is read as one.
pub trait IntoRule<M> {
    /// The rule.
    ///
    /// # Errors
    /// If the text is no pattern.
    fn into_rule(self) -> Result<Rule<M>, Malformed>;
}

impl<M> IntoRule<M> for Rule<M> {
    fn into_rule(self) -> Result<Rule<M>, Malformed> {
        Ok(self)
    }
}

impl<M> IntoRule<M> for Pattern {
    fn into_rule(self) -> Result<Rule<M>, Malformed> {
        Ok(self.into())
    }
}

impl<M> IntoRule<M> for &str {
    fn into_rule(self) -> Result<Rule<M>, Malformed> {
        Rule::topic(self)
    }
}

impl<M> IntoRule<M> for &String {
    fn into_rule(self) -> Result<Rule<M>, Malformed> {
        Rule::topic(self)
    }
}

impl<M> IntoRule<M> for String {
    fn into_rule(self) -> Result<Rule<M>, Malformed> {
        Rule::topic(&self)
    }
}

/// A message that says itself what its headers are. See [`RouterBuilder::headers`](crate::RouterBuilder::headers).
pub trait HasHeaders {
    /// Calls `each` with each header. The same key may come more than once.
    fn each_header<'m>(&'m self, each: &mut dyn FnMut(&'m str, &'m str));
}
