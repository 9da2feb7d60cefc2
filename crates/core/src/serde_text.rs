//! `#[serde(with = "...")]` for durations and drop behaviour as people write them: `"250ms"`, `"none"`, `"abandon"`.

use std::borrow::Cow;
use std::time::Duration;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serializer};

use crate::crew::OnDrop;
use crate::env::FromEnv;

fn text<'de, T: FromEnv, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
    let text = <Cow<'de, str>>::deserialize(deserializer)?;
    T::from_env_text(&text).ok_or_else(|| D::Error::custom(format_args!("{text:?}: expected {}", T::EXPECTED)))
}

/// A `Duration` as `"250ms"`.
pub mod duration {
    use super::{Deserializer, Duration, Serializer, text};

    /// Reads it.
    ///
    /// # Errors
    /// If the text is no duration.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        text(deserializer)
    }

    /// Writes it.
    ///
    /// # Errors
    /// Those of the serializer.
    pub fn serialize<S: Serializer>(value: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&humantime::format_duration(*value))
    }
}

/// An `Option<Duration>` as `"250ms"` or `"none"`.
pub mod maybe_duration {
    use super::{Deserializer, Duration, Serializer, text};

    /// Reads it.
    ///
    /// # Errors
    /// If the text is neither a duration nor `none`.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
        text(deserializer)
    }

    /// Writes it.
    ///
    /// # Errors
    /// Those of the serializer.
    pub fn serialize<S: Serializer>(value: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
        match value {
            Some(value) => super::duration::serialize(value, serializer),
            None => serializer.serialize_str("none"),
        }
    }
}

impl<'de> Deserialize<'de> for OnDrop {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        text(deserializer)
    }
}

impl serde::Serialize for OnDrop {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            OnDrop::Drain(limit) => duration::serialize(limit, serializer),
            OnDrop::Abandon => serializer.serialize_str("abandon"),
        }
    }
}
