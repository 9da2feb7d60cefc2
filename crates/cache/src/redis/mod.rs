//! The second tier: a cache's values in Redis, shared by processes that use the same prefix (feature `redis`).
//!
//! See `README.md` beside this file for the protocol: what lies in a key's slot, who may write it, and who is told.

mod background;
mod codec;
mod config;
mod core;
mod error;
mod frame;
mod key;
mod link;
mod many;
mod scripts;
mod space;
mod stats;
mod tags;
mod tier;
mod wire;

#[doc(inline)]
pub use self::{
    codec::{Codec, Json, Postcard},
    config::{RedisConfig, RedisTier, RedisTierBuilder, WhenUnreachable, Writes},
    error::TierError,
    key::{RedisKey, stable_hash},
    stats::TierStats,
};

/// The tier itself, for the tests of this crate. Not for users: hidden, and outside what versions promise.
#[doc(hidden)]
pub mod testing {
    pub use super::core::Lease;
    pub use super::tier::{Completed, Looked, Need, Sought, Stored, Tier, Told};

    /// Reads `bytes` as a slot, whatever they are; for the fuzzer.
    pub fn exercise(bytes: &[u8]) {
        super::frame::exercise(bytes);
    }
}
