//! What the examples of fullbore share: the domain of the main job, free of any fullbore crate, so that the example
//! programs show the composition and nothing else.
#![forbid(unsafe_code)]

pub mod fleet;
