//! What a series is called, and which names there can be.

use std::fmt;

/// The name of a metric, what it means, and labels that never change.
///
/// ```
/// use fullbore_metrics::{Description, Registry};
///
/// let rows = Description::new("rows_copied").help("Rows copied to the new table").label("table", "users");
/// let rows = Registry::new().counter(rows)?;
/// rows.add(3);
/// # Ok::<(), fullbore_metrics::RegisterError>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
#[must_use = "give it to a registry"]
pub struct Description {
    pub(super) name: String,
    pub(super) help: String,
    pub(super) seconds: bool,
    pub(super) labels: Vec<(String, String)>,
    pub(super) max_series: usize,
    pub(super) buckets: Option<Vec<f64>>,
}

impl Description {
    /// A metric called `name`: letters, digits and underscores, not beginning with a digit; `_total` at the end of a counter
    /// may be left out.
    pub fn new(name: impl Into<String>) -> Self {
        let name = name.into();
        Self { help: name.replace('_', " "), name, seconds: false, labels: Vec::new(), max_series: 1000, buckets: None }
    }

    /// A sentence for people. Default: the name with spaces.
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = help.into();
        self
    }

    /// The values of the histogram are nanoseconds, to be exported as seconds; its name should end in `_seconds`. Default:
    /// they are what they are.
    pub fn durations(mut self) -> Self {
        self.seconds = true;
        self
    }

    /// One more label with a value that never changes.
    pub fn label(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.labels.push((name.into(), value.into()));
        self
    }

    /// How many label sets of a family become a series each; all further ones share one series, whose labels all have the
    /// value `other`. Each series costs memory for each thread that records in it, and in every system that reads it.
    /// Default: 1,000; more than that is hard to look at, so choose by what the reading side can hold.
    pub fn max_series(mut self, max_series: usize) -> Self {
        self.max_series = max_series;
        self
    }

    /// The upper bounds (`le`) that the histogram is exported with, in seconds if it is of [`durations`](Self::durations). They
    /// are for the reading side alone: what is recorded, and the quantiles beside them, are exact to 0.8 % whatever they are.
    /// Default: 24; for durations 1, 2.5 and 5 times powers of ten from a microsecond to 50 seconds, else powers of four. Each
    /// bound is a series in the system that reads it, so choose few, around the limits that you have promised.
    pub fn buckets(mut self, bounds: impl IntoIterator<Item = f64>) -> Self {
        self.buckets = Some(bounds.into_iter().collect());
        self
    }

    pub(super) fn label_names(&self) -> Vec<String> {
        self.labels.iter().map(|(name, _)| name.clone()).collect()
    }

    pub(super) fn check(&self) -> Result<(), RegisterError> {
        if !is_name(&self.name, ":") {
            return Err(RegisterError::InvalidName { name: self.name.clone() });
        }
        if self.name.starts_with(OURS) {
            return Err(RegisterError::Reserved { name: self.name.clone() });
        }
        if let Some(bounds) = &self.buckets {
            check_bounds(bounds)?;
        }
        check_labels(self.labels.iter().map(|(name, _)| name.as_str()))
    }
}

impl From<&str> for Description {
    fn from(name: &str) -> Self {
        Self::new(name)
    }
}

/// What our own names begin with.
const OURS: &str = "fullbore_";

/// Finite, not negative, and ascending.
pub(crate) fn check_bounds(bounds: &[f64]) -> Result<(), RegisterError> {
    let mut before = -1.0;
    for bound in bounds {
        if !(bound.is_finite() && *bound >= 0.0 && *bound > before) {
            return Err(RegisterError::InvalidBucket { bound: bound.to_string() });
        }
        before = *bound;
    }
    Ok(())
}

pub(super) fn check_labels(names: impl IntoIterator<Item = impl AsRef<str>>) -> Result<(), RegisterError> {
    let mut seen: Vec<String> = Vec::new();
    for name in names {
        let name = name.as_ref();
        // What buckets and quantiles are told apart by; `quantile` is for summaries.
        let reserved = name.starts_with("__") || ["le", "quantile", "at"].contains(&name);
        if !is_name(name, "") || reserved || seen.iter().any(|seen| seen == name) {
            return Err(RegisterError::InvalidLabel { name: name.to_owned() });
        }
        seen.push(name.to_owned());
    }
    Ok(())
}

fn is_name(name: &str, also: &str) -> bool {
    let letter = |c: char| c.is_ascii_alphabetic() || c == '_' || also.contains(c);
    name.starts_with(letter) && name.chars().all(|c| letter(c) || c.is_ascii_digit())
}

/// Why something cannot be registered.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RegisterError {
    /// No metric can have this name.
    InvalidName {
        /// The name.
        name: String,
    },
    /// No label can have this name, or it is there twice.
    InvalidLabel {
        /// The name.
        name: String,
    },
    /// The name is taken by a metric of another type.
    OtherType {
        /// The name.
        name: String,
        /// What the metric is.
        is: &'static str,
        /// What was asked for.
        asked: &'static str,
    },
    /// The metric is there, with other labels.
    OtherLabels {
        /// The metric's name.
        name: String,
        /// Its labels.
        has: Vec<String>,
        /// Those that were asked for.
        asked: Vec<String>,
    },
    /// Another instrument is registered with this name and these labels.
    Taken {
        /// The name.
        name: String,
    },
    /// The name is like those of our own metrics.
    Reserved {
        /// The name.
        name: String,
    },
    /// In an export, a series of the one would be named like a series of the other.
    Clashes {
        /// The name.
        name: String,
        /// The metric that is there.
        with: String,
    },
    /// The metric is there, and differs in something else.
    Differs {
        /// The name.
        name: String,
        /// In what.
        what: &'static str,
    },
    /// A bound of a bucket is negative, not a number, or not greater than the one before.
    InvalidBucket {
        /// The bound.
        bound: String,
    },
    /// A family of no series.
    NoSeries {
        /// The name.
        name: String,
    },
}

impl fmt::Display for RegisterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InvalidName { name } => {
                write!(f, "{name:?} cannot name a metric: letters, digits, `_` and `:`, not beginning with a digit")
            }
            Self::InvalidLabel { name } => write!(
                f,
                "{name:?} cannot name a label: letters, digits and `_`, not beginning with a digit or `__`, once each, and \
                 not `at`, `le` or `quantile`"
            ),
            Self::OtherType { name, is, asked } => write!(f, "metric {name:?} is a {is}, not a {asked}"),
            Self::OtherLabels { name, has, asked } => {
                write!(f, "metric {name:?} has the labels {has:?}, not {asked:?}")
            }
            Self::Taken { name } => write!(f, "another instrument is registered as {name:?} with the same labels"),
            Self::Reserved { name } => write!(f, "{name:?} begins with {OURS:?}, which is for our own metrics"),
            Self::Clashes { name, with } => {
                write!(
                    f,
                    "metric {name:?} cannot be there beside {with:?}: both are exported with a series of one name"
                )
            }
            Self::Differs { name, what } => write!(f, "metric {name:?} is there, with another {what}"),
            Self::InvalidBucket { bound } => {
                write!(f, "{bound} cannot bound a bucket: expected finite numbers from 0 on, in ascending order")
            }
            Self::NoSeries { name } => write!(f, "max_series of {name:?} is 0: expected at least 1"),
        }
    }
}

impl std::error::Error for RegisterError {}
