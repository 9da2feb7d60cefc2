//! Keys as text of Redis, and back.

use std::io::Write as _;
use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_128;

/// What can be a key in Redis: it has one form in bytes, and can be read back from it, as Redis tells of a changed key by its
/// name.
///
/// Two keys that are not equal must have different bytes, and [`decode`](Self::decode) must refuse whatever
/// [`encode`](Self::encode) does not make: the tier tells a key that it does not know from one that it does by this.
///
/// Text and bytes are themselves; numbers are decimal; `[u8; N]`, for example of a UUID, is hexadecimal. The parts of a tuple
/// are joined by `:`, where a `:` inside a part is written `\:` and a `\` is written `\\`, so that no two tuples meet.
///
/// ```
/// use fullbore_cache::redis::RedisKey;
///
/// let mut bytes = Vec::new();
/// (7u32, "a:b".to_owned()).encode(&mut bytes);
/// assert_eq!(bytes, br"7:a\:b");
/// assert_eq!(<(u32, String)>::decode(&bytes), Some((7, "a:b".to_owned())));
/// assert_eq!(<(u32, String)>::decode(b"07:a"), None, "that is not how 7 is written");
/// ```
pub trait RedisKey: Sized {
    /// Appends the bytes of the key.
    fn encode(&self, into: &mut Vec<u8>);

    /// The key of these bytes; `None` if no key has them.
    fn decode(bytes: &[u8]) -> Option<Self>;
}

/// A number for `key` that is the same in every process, on every machine and in every version: for names derived from keys.
/// It is not meant to withstand somebody who looks for two keys with the same number.
#[must_use]
pub fn stable_hash(key: &impl RedisKey) -> u128 {
    let mut bytes = Vec::new();
    key.encode(&mut bytes);
    xxh3_128(&bytes)
}

macro_rules! by_text {
    ($($type:ty),*) => {$(
        impl RedisKey for $type {
            fn encode(&self, into: &mut Vec<u8>) {
                into.extend_from_slice(self.as_bytes());
            }
            fn decode(bytes: &[u8]) -> Option<Self> {
                std::str::from_utf8(bytes).ok().map(Into::into)
            }
        }
    )*};
}
by_text!(String, Arc<str>, Box<str>);

macro_rules! by_bytes {
    ($($type:ty),*) => {$(
        impl RedisKey for $type {
            fn encode(&self, into: &mut Vec<u8>) {
                into.extend_from_slice(self);
            }
            fn decode(bytes: &[u8]) -> Option<Self> {
                Some(bytes.into())
            }
        }
    )*};
}
by_bytes!(Vec<u8>, Arc<[u8]>, Box<[u8]>);

macro_rules! by_display {
    ($($type:ty),*) => {$(
        impl RedisKey for $type {
            fn encode(&self, into: &mut Vec<u8>) {
                // Writing to a Vec cannot fail.
                let _ = write!(into, "{self}");
            }
            fn decode(bytes: &[u8]) -> Option<Self> {
                let digits = bytes.strip_prefix(b"-").unwrap_or(bytes);
                // One form for each number: no `+`, no leading zero, no `-0`.
                let canonical = match digits {
                    [b'0'] => digits.len() == bytes.len(),
                    [first, ..] => (b'1'..=b'9').contains(first),
                    [] => false,
                };
                if canonical { std::str::from_utf8(bytes).ok()?.parse().ok() } else { None }
            }
        }
    )*};
}
by_display!(u8, u16, u32, u64, u128, usize, i8, i16, i32, i64, i128, isize);

impl RedisKey for bool {
    fn encode(&self, into: &mut Vec<u8>) {
        into.extend_from_slice(if *self { b"true" } else { b"false" });
    }
    fn decode(bytes: &[u8]) -> Option<Self> {
        match bytes {
            b"true" => Some(true),
            b"false" => Some(false),
            _ => None,
        }
    }
}

impl RedisKey for char {
    fn encode(&self, into: &mut Vec<u8>) {
        into.extend_from_slice(self.encode_utf8(&mut [0; 4]).as_bytes());
    }
    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut chars = std::str::from_utf8(bytes).ok()?.chars();
        let first = chars.next()?;
        chars.next().is_none().then_some(first)
    }
}

impl<const N: usize> RedisKey for [u8; N] {
    fn encode(&self, into: &mut Vec<u8>) {
        for byte in self {
            let _ = write!(into, "{byte:02x}");
        }
    }
    fn decode(bytes: &[u8]) -> Option<Self> {
        let digit = |byte: u8| match byte {
            b'0'..=b'9' => Some(byte - b'0'),
            b'a'..=b'f' => Some(byte - b'a' + 10),
            _ => None,
        };
        if bytes.len() != 2 * N {
            return None;
        }
        let mut key = [0; N];
        for (byte, pair) in key.iter_mut().zip(bytes.chunks_exact(2)) {
            *byte = digit(pair[0])? << 4 | digit(pair[1])?;
        }
        Some(key)
    }
}

/// Appends a part of a tuple, so that its separators are not taken for those between parts.
fn escape(part: &impl RedisKey, into: &mut Vec<u8>) {
    let begin = into.len();
    part.encode(into);
    if into[begin..].iter().any(|byte| matches!(byte, b':' | b'\\')) {
        let plain = into.split_off(begin);
        for byte in plain {
            if matches!(byte, b':' | b'\\') {
                into.push(b'\\');
            }
            into.push(byte);
        }
    }
}

/// The next part of a tuple, with its escapes undone. What is left is behind the separator; `None` when there was no other.
fn part(rest: &mut Option<&[u8]>) -> Option<Vec<u8>> {
    let bytes = (*rest)?;
    let mut plain = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b':' => {
                *rest = Some(&bytes[at + 1..]);
                return Some(plain);
            }
            b'\\' => {
                let escaped = *bytes.get(at + 1)?;
                if !matches!(escaped, b':' | b'\\') {
                    return None;
                }
                plain.push(escaped);
                at += 2;
            }
            _ => {
                plain.push(byte);
                at += 1;
            }
        }
    }
    *rest = None;
    Some(plain)
}

macro_rules! tuple {
    ($($name:ident . $at:tt),*) => {
        impl<$($name: RedisKey),*> RedisKey for ($($name,)*) {
            fn encode(&self, into: &mut Vec<u8>) {
                $(
                    if $at > 0 {
                        into.push(b':');
                    }
                    escape(&self.$at, into);
                )*
            }
            fn decode(bytes: &[u8]) -> Option<Self> {
                let mut rest = Some(bytes);
                let key = ($($name::decode(&part(&mut rest)?)?,)*);
                rest.is_none().then_some(key)
            }
        }
    };
}
tuple!(A.0);
tuple!(A.0, B.1);
tuple!(A.0, B.1, C.2);
tuple!(A.0, B.1, C.2, D.3);
tuple!(A.0, B.1, C.2, D.3, E.4);
tuple!(A.0, B.1, C.2, D.3, E.4, F.5);

#[cfg(all(test, not(fullbore_loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bytes(key: &impl RedisKey) -> Vec<u8> {
        let mut bytes = Vec::new();
        key.encode(&mut bytes);
        bytes
    }

    #[test]
    fn only_the_one_form_is_read() {
        for wrong in ["", "-", "+1", "01", "-0", "-01", " 1", "1 ", "1a", "4294967296", "00"] {
            assert_eq!(i64::decode(wrong.as_bytes()).filter(|_| wrong != "4294967296"), None, "{wrong:?}");
            assert_eq!(u32::decode(wrong.as_bytes()), None, "{wrong:?}");
        }
        assert_eq!(u32::decode(b"-1"), None);
        assert_eq!((i8::decode(b"-128"), i8::decode(b"0"), i8::decode(b"128")), (Some(-128), Some(0), None));
        assert_eq!((bool::decode(b"true"), bool::decode(b"True")), (Some(true), None));
        assert_eq!(
            (char::decode("\u{fc}".as_bytes()), char::decode(b"ab"), char::decode(b"")),
            (Some('\u{fc}'), None, None)
        );
        assert_eq!(<[u8; 2]>::decode(b"0aff"), Some([10, 255]));
        for wrong in ["0AFF", "0af", "0aff0", "0ag0"] {
            assert_eq!(<[u8; 2]>::decode(wrong.as_bytes()), None);
        }
        assert_eq!(String::decode(&[0xff]), None);
        for wrong in [&br"a\"[..], br"a\b:c", br"a", br"a:b:c"] {
            assert_eq!(<(String, String)>::decode(wrong), None);
        }
    }

    #[test]
    fn the_hash_of_a_key_never_changes() {
        // If this fails, what was derived from keys by an earlier version is not found any more.
        assert_eq!(stable_hash(&(7u8, "user".to_owned())), HASH);
    }

    const HASH: u128 = 310_207_548_833_796_840_103_984_924_859_970_897_086;

    proptest! {
        #[test]
        fn what_was_written_is_read(a: String, b: i64, c: Vec<u8>, d: char, e: [u8; 16], f: bool) {
            let key = (a, b, c, d, e, f);
            let there = bytes(&key);
            prop_assert_eq!(RedisKey::decode(&there), Some(key.clone()));
            let nested = ((key.0, key.1), (key.2, (key.3,)));
            prop_assert_eq!(RedisKey::decode(&bytes(&nested)), Some(nested));
        }

        #[test]
        fn what_is_read_is_written_the_same(there: Vec<u8>) {
            fn same<K: RedisKey>(there: &[u8]) -> bool {
                K::decode(there).is_none_or(|key| bytes(&key) == there)
            }
            prop_assert!(same::<(Vec<u8>, Vec<u8>)>(&there) && same::<((String, u8), Vec<u8>, String)>(&there));
            prop_assert!(same::<u64>(&there) && same::<i8>(&there) && same::<[u8; 2]>(&there) && same::<char>(&there));
        }

        #[test]
        fn different_tuples_are_different(a in "[a:\\\\]{0,4}", b in "[a:\\\\]{0,4}", c in "[a:\\\\]{0,4}", d in "[a:\\\\]{0,4}") {
            let (one, other) = ((a, b), (c, d));
            prop_assert_eq!(bytes(&one) == bytes(&other), one == other);
        }

        #[test]
        fn numbers_have_one_form(text in "[-+0-9]{1,5}") {
            if let Some(number) = i32::decode(text.as_bytes()) {
                prop_assert_eq!(number.to_string(), text);
            }
        }
    }
}
