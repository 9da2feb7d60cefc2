//! The second tier: values in Redis, shared by processes.
mod codec;
mod frame;
mod key;

pub use codec::{Codec, Json, Postcard};
pub use key::{RedisKey, stable_hash};
