//! What happens when a buffer is full, and how long a call may wait.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, Instant};

/// What `send` does when the buffer is full.
///
/// As text (configuration files, environment): `block`, `block_for:250ms`, `reject`, `drop_oldest`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Overflow {
    /// Waits for room, however long it takes. The producer runs at the consumer's speed.
    Block,
    /// Waits for room this long, then refuses the item.
    BlockFor(Duration),
    /// Refuses the item at once.
    Reject,
    /// Accepts the item and displaces the oldest one that waits, which goes to the dead-letter hook if there is one.
    DropOldest,
}

impl Overflow {
    /// The default everywhere: wait for room up to 30 seconds. No default waits for ever.
    pub const DEFAULT: Overflow = Overflow::BlockFor(Duration::from_secs(30));
}

impl Default for Overflow {
    fn default() -> Self {
        Self::DEFAULT
    }
}

impl fmt::Display for Overflow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Overflow::Block => f.write_str("block"),
            Overflow::BlockFor(limit) => write!(f, "block_for:{}", humantime::format_duration(*limit)),
            Overflow::Reject => f.write_str("reject"),
            Overflow::DropOldest => f.write_str("drop_oldest"),
        }
    }
}

/// The text is not an [`Overflow`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParseOverflowError(());

impl fmt::Display for ParseOverflowError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("expected block, block_for:<duration>, reject or drop_oldest")
    }
}

impl std::error::Error for ParseOverflowError {}

impl FromStr for Overflow {
    type Err = ParseOverflowError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "block" => Ok(Overflow::Block),
            "reject" => Ok(Overflow::Reject),
            "drop_oldest" => Ok(Overflow::DropOldest),
            _ => text
                .strip_prefix("block_for:")
                .and_then(|limit| humantime::parse_duration(limit.trim()).ok())
                .map(Overflow::BlockFor)
                .ok_or(ParseOverflowError(())),
        }
    }
}

#[cfg(feature = "serde")]
impl serde::Serialize for Overflow {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(feature = "serde")]
impl<'de> serde::Deserialize<'de> for Overflow {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// How long one call may wait for room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Patience {
    /// Not at all (`try_send`).
    Try,
    /// As the [`Overflow`] policy says (`send`), and never beyond this instant if there is one (`send_deadline`).
    Policy(Option<Instant>),
}

/// The earlier of two deadlines, where `None` is never.
#[must_use]
pub fn earlier(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}
