//! Settings with a few names.

/// Reads and writes them: `Display`, `FromStr`, `FromEnv`.
macro_rules! from_text {
    ($type:ident: $expected:literal; $($text:literal => $value:path),*) => {
        impl FromStr for $type {
            type Err = fullbore_core::BuildError;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Self::from_env_text(text).ok_or_else(|| fullbore_core::BuildError::config(stringify!($type), text, $expected))
            }
        }
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $($value => $text),* })
            }
        }
        impl FromEnv for $type {
            const EXPECTED: &'static str = $expected;
            fn from_env_text(text: &str) -> Option<Self> {
                match text { $($text => Some($value),)* _ => None }
            }
        }
    };
}
