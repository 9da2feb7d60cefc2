//! The names of things in Redis: all below the user's prefix.
//!
//! | name | what |
//! |---|---|
//! | `<prefix>k:<key>` | a key's slot: value or lease |
//! | `<prefix>t:{t}` | the sequence that orders changes of tags and beginnings of loads |
//! | `<prefix>t:{t}:<tag>` | when the tag was last removed, as a number of that sequence |
//! | `<prefix>o:<id>` | a process that holds leases lives; not tracked |
//! | `<prefix>w:<id>` | wakes the link of that process |
//!
//! The sequence and the tags share a hash tag and so a slot of a cluster; everything else is touched one key at a time.

use std::sync::Arc;
use std::time::Duration;

use crate::redis::error::TierError;
use crate::redis::key::RedisKey;

#[derive(Debug)]
pub(crate) struct Space {
    prefix: Vec<u8>,
    max_key: usize,
    keys: Vec<u8>,
    sequence: Vec<u8>,
    tags: Vec<u8>,
}

/// Many names in one piece of memory.
pub(crate) struct Names {
    text: Vec<u8>,
    ends: Vec<usize>,
}

impl Names {
    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    pub(crate) fn get(&self, n: usize) -> &[u8] {
        let begin = n.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.text[begin..self.ends[n]]
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &[u8]> {
        (0..self.len()).map(|n| self.get(n))
    }
}

/// Whose name it is that changed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Changed<'a> {
    Key(&'a [u8]),
    Tag(&'a str),
    Sequence,
    Other,
}

impl Space {
    /// How long Redis keeps a tag that nobody asks for; then values with it are not believed any more.
    pub(crate) const TAG_LIFE: Duration = Duration::from_secs(30 * 86_400);
    pub(crate) const SEQUENCE_LIFE: Duration = Duration::from_secs(2 * 30 * 86_400);

    pub(crate) fn new(prefix: &str, max_key: usize) -> Self {
        let below = |name: &str| [prefix.as_bytes(), name.as_bytes()].concat();
        Self { prefix: below(""), max_key, keys: below("k:"), sequence: below("t:{t}"), tags: below("t:{t}:") }
    }

    fn with(&self, kind: &str, id: &[u8; 16]) -> Vec<u8> {
        let mut name = [&self.prefix[..], kind.as_bytes()].concat();
        id.encode(&mut name);
        name
    }

    pub(crate) fn key(&self, key: &impl RedisKey) -> Result<Arc<[u8]>, TierError> {
        let mut name = Vec::with_capacity(self.keys.len() + 32);
        self.append(key, &mut name)?;
        Ok(name.into())
    }

    /// The names of many keys; what is wrong with those that have none.
    pub(crate) fn names<K: RedisKey>(&self, keys: &[K]) -> (Names, Vec<Option<TierError>>) {
        let mut names = Names { text: Vec::with_capacity(keys.len() * (self.keys.len() + 16)), ends: Vec::new() };
        names.ends.reserve(keys.len());
        let wrong = keys.iter().map(|key| match self.append(key, &mut names.text) {
            Ok(()) => {
                names.ends.push(names.text.len());
                None
            }
            Err(error) => Some(error),
        });
        let wrong = wrong.collect();
        (names, wrong)
    }

    /// Appends the key's name, or nothing.
    fn append(&self, key: &impl RedisKey, into: &mut Vec<u8>) -> Result<(), TierError> {
        let begin = into.len();
        into.extend_from_slice(&self.keys);
        key.encode(into);
        let length = into.len() - begin - self.keys.len();
        if length > self.max_key {
            into.truncate(begin);
            return Err(TierError::KeyTooLarge { length, max_key: self.max_key });
        }
        Ok(())
    }

    /// A pattern that matches all keys' names.
    pub(crate) fn all_keys(&self) -> Vec<u8> {
        let mut pattern = Vec::with_capacity(self.keys.len() + 1);
        for byte in &self.keys {
            if b"*?[]^-\\".contains(byte) {
                pattern.push(b'\\');
            }
            pattern.push(*byte);
        }
        pattern.push(b'*');
        pattern
    }

    /// The name of a key whose bytes are these.
    pub(crate) fn encoded(&self, encoded: &[u8]) -> Vec<u8> {
        [&self.keys[..], encoded].concat()
    }

    pub(crate) fn tag(&self, tag: &str) -> Vec<u8> {
        [&self.tags[..], tag.as_bytes()].concat()
    }

    pub(crate) fn sequence(&self) -> &[u8] {
        &self.sequence
    }

    pub(crate) fn owner(&self, id: &[u8; 16]) -> Vec<u8> {
        self.with("o:", id)
    }

    pub(crate) fn wake(&self, id: &[u8; 16]) -> Vec<u8> {
        self.with("w:", id)
    }

    /// What the link of this process is told of. None is the beginning of another, which Redis would refuse.
    pub(crate) fn tracked(&self, id: &[u8; 16]) -> [Vec<u8>; 3] {
        [self.keys.clone(), self.sequence.clone(), self.wake(id)]
    }

    pub(crate) fn what<'a>(&self, name: &'a [u8]) -> Changed<'a> {
        if let Some(key) = name.strip_prefix(&self.keys[..]) {
            Changed::Key(key)
        } else if name == self.sequence {
            Changed::Sequence
        } else {
            let tag = name.strip_prefix(&self.tags[..]).and_then(|tag| std::str::from_utf8(tag).ok());
            tag.map_or(Changed::Other, Changed::Tag)
        }
    }
}

#[cfg(all(test, not(fullbore_loom)))]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_known_again_and_none_is_anothers() {
        let space = Space::new("shop:v3:", 10);
        let key = space.key(&"t:{t}".to_owned()).unwrap();
        assert_eq!(&*key, b"shop:v3:k:t:{t}");
        assert_eq!(space.what(&key), Changed::Key(b"t:{t}"));
        assert_eq!(space.what(&space.tag("new")), Changed::Tag("new"));
        assert_eq!(space.what(&space.tag("")), Changed::Tag(""));
        assert_eq!(space.what(space.sequence()), Changed::Sequence);
        assert_eq!(space.what(&space.wake(&[1; 16])), Changed::Other);
        assert_eq!(space.what(b"shop:v3:"), Changed::Other);
        let tracked = space.tracked(&[1; 16]);
        assert!(!tracked.iter().any(|prefix| space.owner(&[1; 16]).starts_with(prefix)));
        let refused = space.key(&"eleven text".to_owned()).unwrap_err();
        assert_eq!(refused.setting(), Some("max_key"));
    }
}
