//! The bytes of a key's slot in Redis: whatever they are, they are a value, a lease or neither, and never a panic.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fullbore_cache::redis::testing::exercise(bytes));
