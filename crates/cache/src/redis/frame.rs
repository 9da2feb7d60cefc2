//! The bytes of a key's slot in Redis: a value, or somebody's lease.
//!
//! ```text
//! value:  magic[3] format[1] kind[1]=1 flags[1] codec[1] <fields> payload checksum[8]
//! lease:  magic[3] format[1] kind[1]=2 owner[16] nonce[8] <the value that it replaces, or nothing>
//! ```
//! Fields are numbers of variable length (seven bits a byte, the low ones first, in the fewest bytes) and texts with their
//! length before them. The checksum covers everything before it and begins with the hash of the key: bytes that were copied
//! to another key are not a value there.
//!
//! Reading allocates nothing that the bytes do not hold, and no more than [`Limits`] allows for what is compressed.

use std::time::Duration;

use fullbore_core::{Failure, contain};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::redis::codec::Codec;

const MAGIC: [u8; 4] = [0xfb, b'L', b'2', 1];
const VALUE: u8 = 1;
const LEASE: u8 = 2;
const HEAD: usize = 7;
pub(crate) const CHECKSUM: usize = 8;
/// How long a lease is without the value that it replaces.
pub(crate) const TOKEN: usize = MAGIC.len() + 1 + 16 + 8;

const NEGATIVE: u8 = 1;
const ZSTD: u8 = 2;
const ETAG: u8 = 4;
/// No other flag is known; one that is set was set by somebody who knows more.
const KNOWN: u8 = NEGATIVE | ZSTD | ETAG;

/// The most tags a value may have, and the most bytes that a tag or an etag may have.
pub(crate) const MAX_TAGS: usize = 64;
pub(crate) const MAX_TEXT: usize = 1024;

/// A number of the sequence that orders changes of tags and the beginnings of loads. Those of two epochs do not compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Moment {
    pub(crate) epoch: u64,
    pub(crate) count: u64,
}

impl Moment {
    /// As it stands in Redis.
    pub(crate) fn parse(text: &[u8]) -> Option<Self> {
        let (epoch, count) = std::str::from_utf8(text).ok()?.split_once(':')?;
        Some(Self { epoch: epoch.parse().ok()?, count: count.parse().ok()? })
    }

    /// Whether what began at `self` knows of a change at `change`.
    pub(crate) fn covers(self, change: Moment) -> bool {
        self.epoch == change.epoch && self.count >= change.count
    }
}

/// What is said of a value beside its payload. Times are of milliseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Facts<'a> {
    pub(crate) negative: bool,
    /// How long Redis was told to keep it.
    pub(crate) px: Option<u64>,
    /// How long after it was written it is fresh, and may be kept.
    pub(crate) fresh: Option<u64>,
    pub(crate) keep: Option<u64>,
    /// How long the load took, in microseconds.
    pub(crate) took: u64,
    /// The server's time when it was written, in microseconds; 0: not known.
    pub(crate) written: u64,
    /// When its load began. Only those with tags have one.
    pub(crate) born: Option<Moment>,
    pub(crate) tags: Vec<&'a str>,
    pub(crate) etag: Option<&'a str>,
}

/// A value as it lies in Redis, checked but not decoded.
#[derive(Debug)]
pub(crate) struct Frame<'a> {
    pub(crate) facts: Facts<'a>,
    /// Names the whole of it.
    pub(crate) checksum: [u8; CHECKSUM],
    codec: u8,
    zstd: bool,
    /// The length of what is decoded.
    length: u64,
    payload: &'a [u8],
}

/// What a slot holds.
#[derive(Debug)]
pub(crate) enum Slot<'a> {
    Value(Frame<'a>),
    /// Somebody loads the key.
    Lease {
        token: &'a [u8],
        owner: [u8; 16],
        /// The value that is replaced by the load.
        stale: Option<Frame<'a>>,
    },
    /// Neither, for this reason.
    Undecodable(&'static str),
}

impl<'a> Slot<'a> {
    /// The value in it, also one that is being replaced.
    pub(crate) fn frame(&self) -> Option<&Frame<'a>> {
        match self {
            Slot::Value(frame) | Slot::Lease { stale: Some(frame), .. } => Some(frame),
            Slot::Lease { stale: None, .. } | Slot::Undecodable(_) => None,
        }
    }
}

/// What a tier writes and reads at most.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) max_value: usize,
    pub(crate) zstd_above: Option<usize>,
}

/// Why a value cannot be written.
#[derive(Debug)]
pub(crate) enum Unwritable {
    TooLarge(usize),
    Codec(Failure),
    Tags(String),
}

pub(crate) fn token(owner: [u8; 16], nonce: u64) -> [u8; TOKEN] {
    let mut token = [0; TOKEN];
    token[..4].copy_from_slice(&MAGIC);
    token[4] = LEASE;
    token[5..21].copy_from_slice(&owner);
    token[21..].copy_from_slice(&nonce.to_le_bytes());
    token
}

fn seed(key: &[u8]) -> u64 {
    xxh3_64(key)
}

fn put_number(mut number: u64, into: &mut Vec<u8>) {
    while number >= 0x80 {
        into.push(number as u8 | 0x80);
        number >>= 7;
    }
    into.push(number as u8);
}

/// `None` is 0.
fn put_maybe(number: Option<u64>, into: &mut Vec<u8>) {
    put_number(number.map_or(0, |number| number.saturating_add(1)), into);
}

fn put_text(text: &str, into: &mut Vec<u8>) {
    put_number(text.len() as u64, into);
    into.extend_from_slice(text.as_bytes());
}

/// The slot's bytes for `value`.
pub(crate) fn write<V: 'static>(
    key: &[u8],
    facts: &Facts<'_>,
    value: &V,
    codec: &dyn Codec<V>,
    limits: Limits,
) -> Result<Vec<u8>, Unwritable> {
    if facts.tags.len() > MAX_TAGS {
        return Err(Unwritable::Tags(format!("{} tags, at most {MAX_TAGS} are possible", facts.tags.len())));
    }
    if let Some(long) = facts.tags.iter().chain(&facts.etag).find(|text| text.len() > MAX_TEXT) {
        return Err(Unwritable::Tags(format!(
            "a tag or etag of {} bytes, at most {MAX_TEXT} are possible",
            long.len()
        )));
    }
    let mut payload = Vec::new();
    // The user's code: a panic in it is his.
    codec.encode(value, &mut payload).map_err(Unwritable::Codec)?;
    if payload.len() > limits.max_value {
        return Err(Unwritable::TooLarge(payload.len()));
    }
    let length = payload.len() as u64;
    let packed = limits.zstd_above.filter(|above| payload.len() > *above).and_then(|_| compress(&payload));
    let mut flags = 0;
    flags |= if facts.negative { NEGATIVE } else { 0 };
    flags |= if packed.is_some() { ZSTD } else { 0 };
    flags |= if facts.etag.is_some() { ETAG } else { 0 };
    let payload = packed.unwrap_or(payload);
    let mut bytes = Vec::with_capacity(HEAD + 64 + payload.len() + CHECKSUM);
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&[VALUE, flags, codec.id()]);
    put_maybe(facts.px, &mut bytes);
    put_maybe(facts.fresh, &mut bytes);
    put_maybe(facts.keep, &mut bytes);
    put_number(facts.took, &mut bytes);
    put_number(facts.written, &mut bytes);
    put_number(length, &mut bytes);
    put_number(facts.tags.len() as u64, &mut bytes);
    if !facts.tags.is_empty() {
        let born = facts.born.unwrap_or(Moment { epoch: 0, count: 0 });
        put_number(born.epoch, &mut bytes);
        put_number(born.count, &mut bytes);
    }
    for tag in &facts.tags {
        put_text(tag, &mut bytes);
    }
    if let Some(etag) = facts.etag {
        put_text(etag, &mut bytes);
    }
    bytes.extend_from_slice(&payload);
    let checksum = xxh3_64_with_seed(&bytes, seed(key));
    bytes.extend_from_slice(&checksum.to_le_bytes());
    Ok(bytes)
}

/// What `bytes`, found at `key`, are. Never panics, and allocates only for the list of tags.
pub(crate) fn read<'a>(bytes: &'a [u8], key: &[u8]) -> Slot<'a> {
    let Some(rest) = bytes.strip_prefix(&MAGIC[..3]) else { return Slot::Undecodable("not ours") };
    match rest {
        [format, ..] if *format != MAGIC[3] => Slot::Undecodable("another format"),
        [_, VALUE, ..] => match frame(bytes, key) {
            Ok(frame) => Slot::Value(frame),
            Err(why) => Slot::Undecodable(why),
        },
        [_, LEASE, ..] => match bytes.split_at_checked(TOKEN) {
            Some((token, stale)) => {
                let mut owner = [0; 16];
                owner.copy_from_slice(&token[5..21]);
                // A replaced value that cannot be read is none; the lease is one all the same.
                let stale = if stale.is_empty() { None } else { frame(stale, key).ok() };
                Slot::Lease { token, owner, stale }
            }
            None => Slot::Undecodable("a lease cut short"),
        },
        _ => Slot::Undecodable("of no known kind"),
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn number(&mut self) -> Option<u64> {
        let mut number = 0u64;
        for shift in (0..64).step_by(7) {
            let (&byte, rest) = self.0.split_first()?;
            self.0 = rest;
            let bits = u64::from(byte & 0x7f);
            if bits << shift >> shift != bits || (byte == 0 && shift > 0) {
                return None;
            }
            number |= bits << shift;
            if byte < 0x80 {
                return Some(number);
            }
        }
        None
    }

    fn maybe(&mut self) -> Option<Option<u64>> {
        Some(self.number()?.checked_sub(1))
    }

    fn text(&mut self) -> Option<&'a str> {
        let length = usize::try_from(self.number()?).ok().filter(|length| *length <= MAX_TEXT)?;
        let (text, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        std::str::from_utf8(text).ok()
    }
}

fn frame<'a>(bytes: &'a [u8], key: &[u8]) -> Result<Frame<'a>, &'static str> {
    let (body, checksum) = bytes.split_last_chunk::<CHECKSUM>().ok_or("cut short")?;
    let head = body.get(..HEAD).ok_or("cut short")?;
    if head[..4] != MAGIC || head[4] != VALUE {
        return Err("not a value");
    }
    if xxh3_64_with_seed(body, seed(key)).to_le_bytes() != *checksum {
        return Err("damaged, or of another key");
    }
    let (flags, codec) = (head[5], head[6]);
    if flags & !KNOWN != 0 {
        return Err("with unknown flags");
    }
    fields(Reader(&body[HEAD..]), flags, codec, *checksum).ok_or("with fields that cannot be")
}

fn fields<'a>(mut reader: Reader<'a>, flags: u8, codec: u8, checksum: [u8; CHECKSUM]) -> Option<Frame<'a>> {
    let mut facts = Facts {
        negative: flags & NEGATIVE != 0,
        px: reader.maybe()?,
        fresh: reader.maybe()?,
        keep: reader.maybe()?,
        took: reader.number()?,
        written: reader.number()?,
        ..Facts::default()
    };
    let length = reader.number()?;
    let tags = usize::try_from(reader.number()?).ok().filter(|tags| *tags <= MAX_TAGS)?;
    if tags > 0 {
        facts.born = Some(Moment { epoch: reader.number()?, count: reader.number()? });
        for _ in 0..tags {
            facts.tags.push(reader.text()?);
        }
    }
    if flags & ETAG != 0 {
        facts.etag = Some(reader.text()?);
    }
    let zstd = flags & ZSTD != 0;
    if !zstd && length != reader.0.len() as u64 {
        return None;
    }
    Some(Frame { facts, checksum, codec, zstd, length, payload: reader.0 })
}

impl Frame<'_> {
    /// The value. A panic of the user's `Deserialize` is a refusal.
    pub(crate) fn open<V: 'static>(&self, codec: &dyn Codec<V>, limits: Limits) -> Result<V, &'static str> {
        if self.codec != codec.id() {
            return Err("of another codec");
        }
        let length = usize::try_from(self.length).ok().filter(|length| *length <= limits.max_value);
        let length = length.ok_or("larger than max_value")?;
        let unpacked;
        let payload = if self.zstd {
            unpacked = decompress(self.payload, length).ok_or("not to be decompressed")?;
            &unpacked[..]
        } else {
            self.payload
        };
        match contain(|| codec.decode(payload)) {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(_)) => Err("refused by the codec"),
            Err(_) => Err("a panic in the codec"),
        }
    }
}

/// Fast rather than small: it is for a network that is slower than that.
#[cfg(feature = "zstd")]
const LEVEL: i32 = 1;

#[cfg(feature = "zstd")]
fn compress(payload: &[u8]) -> Option<Vec<u8>> {
    zstd::bulk::compress(payload, LEVEL).ok().filter(|packed| packed.len() < payload.len())
}

#[cfg(not(feature = "zstd"))]
fn compress(_: &[u8]) -> Option<Vec<u8>> {
    None
}

/// `None` unless it comes to exactly `length` bytes.
#[cfg(feature = "zstd")]
fn decompress(packed: &[u8], length: usize) -> Option<Vec<u8>> {
    // It is given room for so many bytes, and stops where they end.
    zstd::bulk::decompress(packed, length).ok().filter(|payload| payload.len() == length)
}

#[cfg(not(feature = "zstd"))]
fn decompress(_: &[u8], _: usize) -> Option<Vec<u8>> {
    None
}

/// A duration in whole milliseconds, at least one: zero is not a life that Redis takes.
pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX).clamp(1, FAR)
}

/// The longest life that Redis is told: a hundred years. It adds it to its time, and refuses what does not fit.
pub(crate) const FAR: u64 = 100 * 365 * 86_400_000;

/// For the fuzzer and the property tests: whatever the bytes are, this returns, and what it reads is what was written.
pub(crate) fn exercise(bytes: &[u8]) {
    let limits = Limits { max_value: 1 << 16, zstd_above: None };
    let codec: &dyn Codec<(u32, String, Vec<u64>)> = &crate::redis::Postcard;
    // Once as they are, once with a checksum that is right, so that what is behind it is reached.
    let mut sealed = bytes.to_vec();
    let checksum = xxh3_64_with_seed(bytes, seed(b"key"));
    sealed.extend_from_slice(&checksum.to_le_bytes());
    for bytes in [bytes, &sealed] {
        match read(bytes, b"key") {
            Slot::Value(frame) | Slot::Lease { stale: Some(frame), .. } => {
                if let Ok(value) = frame.open(codec, limits) {
                    let again = write(b"key", &frame.facts, &value, codec, limits);
                    assert!(again.is_ok_and(
                        |again| matches!(read(&again, b"key"), Slot::Value(read) if read.facts == frame.facts)
                    ));
                }
            }
            Slot::Lease { stale: None, .. } | Slot::Undecodable(_) => {}
        }
    }
}

#[cfg(all(test, not(fullbore_loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::redis::{Json, Postcard};

    const LIMITS: Limits = Limits { max_value: 1 << 20, zstd_above: Some(100) };

    fn open<'a>(bytes: &'a [u8], key: &[u8]) -> Result<(String, Facts<'a>), &'static str> {
        match read(bytes, key) {
            Slot::Value(frame) => Ok((frame.open(&Postcard as &dyn Codec<String>, LIMITS)?, frame.facts)),
            Slot::Lease { .. } => Err("a lease"),
            Slot::Undecodable(why) => Err(why),
        }
    }

    fn facts() -> Facts<'static> {
        Facts {
            negative: true,
            px: Some(60_000),
            fresh: Some(0),
            keep: None,
            took: 1234,
            written: u64::MAX,
            born: Some(Moment { epoch: u64::MAX, count: 7 }),
            tags: vec!["one", ""],
            etag: Some("W/\"1\""),
        }
    }

    fn written(value: &str) -> Vec<u8> {
        write(b"key", &facts(), &value.to_owned(), &Postcard, LIMITS).unwrap_or_else(|why| panic!("{why:?}"))
    }

    #[test]
    fn what_was_written_is_read() {
        for value in ["", "short", &"long and repeated ".repeat(100)] {
            let bytes = written(value);
            assert_eq!(open(&bytes, b"key").unwrap(), (value.to_owned(), facts()));
        }
        if cfg!(feature = "zstd") {
            assert!(written(&"a".repeat(100_000)).len() < 1000);
        }
    }

    #[test]
    fn any_bit_that_is_wrong_and_any_byte_that_is_missing_is_noticed() {
        let bytes = written("value");
        for bit in 0..bytes.len() * 8 {
            let mut wrong = bytes.clone();
            wrong[bit / 8] ^= 1 << (bit % 8);
            assert!(open(&wrong, b"key").is_err(), "bit {bit}");
        }
        for length in 0..bytes.len() {
            assert!(open(&bytes[..length], b"key").is_err());
        }
        assert_eq!(open(&[&bytes[..], b"x"].concat(), b"key"), Err("damaged, or of another key"));
        assert_eq!(open(&bytes, b"other"), Err("damaged, or of another key"));
        assert_eq!(open(b"somebody else's", b"key"), Err("not ours"));
    }

    #[test]
    fn another_codec_or_type_is_noticed() {
        let bytes = write(b"key", &Facts::default(), &7u32, &Json, LIMITS).unwrap();
        assert_eq!(open(&bytes, b"key"), Err("of another codec"));
        // A number where a text is expected.
        let bytes = write(b"key", &Facts::default(), &7u32, &Postcard, LIMITS).unwrap();
        assert_eq!(open(&bytes, b"key"), Err("refused by the codec"));
        // Bytes left over.
        let bytes = write(b"key", &Facts::default(), &("a", "b"), &Pair, LIMITS).unwrap();
        assert_eq!(open(&bytes, b"key"), Err("refused by the codec"));
    }

    struct Pair;

    impl Codec<(&'static str, &'static str)> for Pair {
        fn id(&self) -> u8 {
            1
        }
        fn encode(&self, value: &(&'static str, &'static str), into: &mut Vec<u8>) -> Result<(), Failure> {
            *into = postcard::to_extend(value, std::mem::take(into)).map_err(Failure::error)?;
            Ok(())
        }
        fn decode(&self, _: &[u8]) -> Result<(&'static str, &'static str), Failure> {
            panic!("on purpose")
        }
    }

    #[test]
    fn a_panic_of_the_codec_is_a_refusal() {
        let bytes = write(b"key", &Facts::default(), &("a", "b"), &Pair, LIMITS).unwrap();
        let Slot::Value(frame) = read(&bytes, b"key") else { panic!("a value") };
        assert_eq!(frame.open(&Pair as &dyn Codec<_>, LIMITS), Err("a panic in the codec"));
    }

    #[test]
    fn what_is_too_large_is_neither_written_nor_read() {
        let small = Limits { max_value: 10, zstd_above: None };
        let value = "more than ten bytes".to_owned();
        let refused = write(b"key", &Facts::default(), &value, &Postcard, small);
        assert!(matches!(refused, Err(Unwritable::TooLarge(20))));
        let bytes = write(b"key", &Facts::default(), &value, &Postcard, LIMITS).unwrap();
        let Slot::Value(frame) = read(&bytes, b"key") else { panic!("a value") };
        assert_eq!(frame.open(&Postcard as &dyn Codec<String>, small), Err("larger than max_value"));
        let tags = Facts { tags: vec!["t"; MAX_TAGS + 1], ..Facts::default() };
        assert!(matches!(write(b"key", &tags, &value, &Postcard, LIMITS), Err(Unwritable::Tags(_))));
    }

    #[cfg(feature = "zstd")]
    #[test]
    fn a_bomb_goes_off_in_a_small_room() {
        let bomb = zstd::bulk::compress(&vec![0; 1 << 26], 1).unwrap();
        assert!(bomb.len() < 1 << 14);
        assert_eq!(decompress(&bomb, 1 << 20), None);
        assert_eq!(decompress(&bomb[..10], 1 << 20), None);
    }

    #[test]
    fn a_lease_holds_what_it_replaces() {
        let token = token([7; 16], 9);
        let Slot::Lease { owner, stale: None, .. } = read(&token, b"key") else { panic!("a lease") };
        assert_eq!(owner, [7; 16]);
        let bytes = [&token[..], &written("old")].concat();
        let Slot::Lease { token: read_token, stale: Some(stale), .. } = read(&bytes, b"key") else { panic!("a value") };
        assert_eq!(read_token, token);
        assert_eq!(stale.open(&Postcard as &dyn Codec<String>, LIMITS), Ok("old".to_owned()));
        let damaged = [&token[..], b"rubbish"].concat();
        assert!(matches!(read(&damaged, b"key"), Slot::Lease { stale: None, .. }));
        assert!(matches!(read(&token[..20], b"key"), Slot::Undecodable(_)));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>, kind in 0u8..4) {
            exercise(&bytes);
            exercise(&[&MAGIC[..], &[kind], &bytes[..]].concat());
            exercise(&[&MAGIC[..], &[VALUE, kind, 1], &bytes[..]].concat());
        }

        #[test]
        fn numbers_have_one_form(number: u64, bytes in proptest::collection::vec(any::<u8>(), 0..12)) {
            let mut there = Vec::new();
            put_number(number, &mut there);
            let mut reader = Reader(&there);
            prop_assert_eq!(reader.number(), Some(number));
            prop_assert!(reader.0.is_empty());
            let mut reader = Reader(&bytes);
            if let Some(number) = reader.number() {
                let mut again = Vec::new();
                put_number(number, &mut again);
                prop_assert_eq!(&again[..], &bytes[..bytes.len() - reader.0.len()]);
            }
        }
    }
}
