//! Settings from environment variables, with errors that name the variable.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::time::Duration;

use crate::crew::OnDrop;
use crate::error::BuildError;
use crate::overflow::Overflow;

/// A value that can stand in an environment variable.
pub trait FromEnv: Sized {
    /// What a valid value looks like, for the error.
    const EXPECTED: &'static str;

    /// Reads the text.
    fn from_env_text(text: &str) -> Option<Self>;
}

macro_rules! from_env_by_parse {
    ($($type:ty: $expected:literal),* $(,)?) => {$(
        impl FromEnv for $type {
            const EXPECTED: &'static str = $expected;
            fn from_env_text(text: &str) -> Option<Self> {
                text.parse().ok()
            }
        }
    )*};
}
from_env_by_parse! {
    usize: "a whole number",
    u32: "a whole number below 2^32",
    u64: "a whole number",
    bool: "true or false",
    Overflow: "block, block_for:<duration>, reject or drop_oldest",
}

impl FromEnv for f64 {
    const EXPECTED: &'static str = "a finite number";
    fn from_env_text(text: &str) -> Option<Self> {
        text.parse().ok().filter(|number: &f64| number.is_finite())
    }
}

impl FromEnv for String {
    const EXPECTED: &'static str = "text";
    fn from_env_text(text: &str) -> Option<Self> {
        Some(text.to_owned())
    }
}

impl FromEnv for Duration {
    const EXPECTED: &'static str = "a duration such as 250ms or 1m 30s";
    fn from_env_text(text: &str) -> Option<Self> {
        humantime::parse_duration(text).ok()
    }
}

impl FromEnv for Option<Duration> {
    const EXPECTED: &'static str = "a duration such as 250ms, or none";
    fn from_env_text(text: &str) -> Option<Self> {
        if text == "none" { Some(None) } else { Duration::from_env_text(text).map(Some) }
    }
}

impl FromEnv for OnDrop {
    const EXPECTED: &'static str = "a duration such as 5s, or abandon";
    fn from_env_text(text: &str) -> Option<Self> {
        if text == "abandon" { Some(OnDrop::Abandon) } else { Duration::from_env_text(text).map(OnDrop::Drain) }
    }
}

/// Reads the settings of one `Config` from variables that share a prefix.
///
/// For `prefix` `APP_POOL_` the field `max_size` is the variable `APP_POOL_MAX_SIZE`. A variable with the prefix that no
/// field has is refused, as an unknown field of a file would be.
#[derive(Debug)]
pub struct EnvReader {
    prefix: String,
    vars: Vec<(String, OsString)>,
    known: BTreeSet<String>,
}

impl EnvReader {
    /// Reads the process's environment.
    #[must_use]
    pub fn new(prefix: &str) -> Self {
        Self::from_vars(prefix, std::env::vars_os())
    }

    /// Reads these variables instead of the process's.
    pub fn from_vars(prefix: &str, vars: impl IntoIterator<Item = (OsString, OsString)>) -> Self {
        let vars = vars
            .into_iter()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value)))
            .filter(|(name, _)| name.starts_with(prefix))
            .collect();
        Self { prefix: prefix.to_owned(), vars, known: BTreeSet::new() }
    }

    /// Overwrites `target` if the variable of `field` is set.
    ///
    /// # Errors
    /// [`BuildError::Config`] with the variable's name if its value cannot be read.
    pub fn read<T: FromEnv>(&mut self, field: &str, target: &mut T) -> Result<(), BuildError> {
        let name = format!("{}{}", self.prefix, field.to_uppercase());
        if let Some((_, value)) = self.vars.iter().find(|(var, _)| *var == name) {
            let parsed = value.to_str().and_then(|text| T::from_env_text(text.trim()));
            match parsed {
                Some(parsed) => *target = parsed,
                None => return Err(BuildError::config(name, value.to_string_lossy(), T::EXPECTED)),
            }
        }
        self.known.insert(name);
        Ok(())
    }

    /// Refuses variables that belong to no field.
    ///
    /// # Errors
    /// [`BuildError::Config`] with the name of the first such variable; not with its value, which may be a secret.
    pub fn finish(self) -> Result<(), BuildError> {
        match self.vars.iter().find(|(name, _)| !self.known.contains(name)) {
            None => Ok(()),
            Some((name, _)) => {
                let known: Vec<_> = self.known.iter().map(String::as_str).collect();
                let expected = format!("a variable that exists: {}", known.join(", "));
                Err(BuildError::config(name.clone(), "(its value)", expected))
            }
        }
    }
}
