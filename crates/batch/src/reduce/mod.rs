//! A batcher that merges instead of collecting. `README.md` beside this file has states and invariants.

mod batcher;
mod config;
mod engine;
mod pending;
mod state;

pub use batcher::{ReducingBatcher, ReducingHandle};
pub use config::{ReducingBuilder, ReducingConfig};
