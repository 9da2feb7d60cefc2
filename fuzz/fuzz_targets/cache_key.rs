//! The names of keys in Redis: what is read as a key is written as the same name.
#![no_main]

use fullbore_cache::redis::RedisKey;

fn check<K: RedisKey>(name: &[u8]) {
    if let Some(key) = K::decode(name) {
        let mut again = Vec::new();
        key.encode(&mut again);
        assert_eq!(again, name);
    }
}

libfuzzer_sys::fuzz_target!(|name: &[u8]| {
    check::<String>(name);
    check::<i64>(name);
    check::<[u8; 16]>(name);
    check::<(u32, String, Vec<u8>)>(name);
    check::<((String, char), (bool, u128))>(name);
});
