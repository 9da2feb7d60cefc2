//! Values as bytes, and back.

use fullbore_core::Failure;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// How a value is written to Redis and read from it.
///
/// The bytes come from a server that others write to as well: `decode` must not trust them. What it refuses, and what makes
/// it panic, is a miss. A change of the type that makes old bytes mean something else wants another key prefix.
pub trait Codec<V>: Send + Sync + 'static {
    /// A number that is written with each value, so that one written by another codec is not read by this one. 0 to 15 are ours.
    fn id(&self) -> u8;

    /// Appends the bytes of `value`.
    ///
    /// # Errors
    /// Why it has none.
    fn encode(&self, value: &V, into: &mut Vec<u8>) -> Result<(), Failure>;

    /// The value of exactly these bytes.
    ///
    /// # Errors
    /// Why they are none; bytes left over are a reason.
    fn decode(&self, bytes: &[u8]) -> Result<V, Failure>;
}

/// Compact binary, by `postcard`. Fields have no names in it: to add one, change the key prefix.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Postcard;

/// JSON, by `serde_json`: larger and slower, readable by other programs, and tolerant of new fields.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Json;

impl<V: Serialize + DeserializeOwned> Codec<V> for Postcard {
    fn id(&self) -> u8 {
        1
    }

    fn encode(&self, value: &V, into: &mut Vec<u8>) -> Result<(), Failure> {
        let taken = postcard::to_extend(value, std::mem::take(into)).map_err(Failure::error)?;
        *into = taken;
        Ok(())
    }

    fn decode(&self, bytes: &[u8]) -> Result<V, Failure> {
        match postcard::take_from_bytes(bytes).map_err(Failure::error)? {
            (value, []) => Ok(value),
            (_, rest) => Err(Failure::error(format!("{} bytes are left over", rest.len()))),
        }
    }
}

impl<V: Serialize + DeserializeOwned> Codec<V> for Json {
    fn id(&self) -> u8 {
        2
    }

    fn encode(&self, value: &V, into: &mut Vec<u8>) -> Result<(), Failure> {
        serde_json::to_writer(into, value).map_err(Failure::error)
    }

    fn decode(&self, bytes: &[u8]) -> Result<V, Failure> {
        serde_json::from_slice(bytes).map_err(Failure::error)
    }
}
