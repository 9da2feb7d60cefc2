//! Settings as people write them: what is written is what is read back.
#![cfg(not(fullbore_loom))]
#![allow(missing_docs, clippy::unwrap_used)]

use std::time::Duration;

use fullbore_core::{FromEnv, OnDrop, Overflow};
use proptest::prelude::*;

fn duration() -> impl Strategy<Value = Duration> {
    let any = (0..=u64::MAX, 0u32..1_000_000_000).prop_map(|(secs, nanos)| Duration::new(secs, nanos));
    let usual = (0u64..1_000_000, 0u32..1_000_000_000).prop_map(|(secs, nanos)| Duration::new(secs, nanos));
    prop_oneof![2 => usual, 1 => any, 1 => Just(Duration::ZERO), 1 => Just(Duration::MAX)]
}

fn overflow() -> impl Strategy<Value = Overflow> {
    prop_oneof![
        Just(Overflow::Block),
        Just(Overflow::Reject),
        Just(Overflow::DropOldest),
        duration().prop_map(Overflow::BlockFor)
    ]
}

proptest! {
    #[test]
    fn overflow_reads_what_it_writes(overflow in overflow()) {
        prop_assert_eq!(overflow.to_string().parse(), Ok(overflow));
        prop_assert_eq!(Overflow::from_env_text(&overflow.to_string()), Some(overflow));
    }

    #[test]
    fn whatever_is_read_was_meant(text in "(block_for:)?[0-9]{0,20} ?[a-zµ]{0,6}|\\PC{0,20}") {
        if let Ok(overflow) = text.parse::<Overflow>() {
            prop_assert_eq!(overflow.to_string().parse(), Ok(overflow));
        }
        if let Some(OnDrop::Drain(limit)) = OnDrop::from_env_text(&text) {
            prop_assert_eq!(Option::<Duration>::from_env_text(&text), Some(Some(limit)));
        }
    }
}

#[test]
fn nonsense_is_not_read() {
    for text in ["", "Block", "block_for", "block_for:", "block_for:soon", "block_for:5", "block_for:-1s", "drop"] {
        assert!(text.parse::<Overflow>().is_err(), "{text}");
    }
    assert_eq!(OnDrop::from_env_text("never"), None);
    assert_eq!(Duration::from_env_text("99999999999999999999s"), None);
}

#[cfg(feature = "serde")]
mod files {
    use super::*;
    use fullbore_core::serde_text;
    use serde::{Deserialize, Serialize};

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct File {
        #[serde(with = "serde_text::duration")]
        linger: Duration,
        #[serde(with = "serde_text::maybe_duration")]
        idle: Option<Duration>,
        overflow: Overflow,
        on_drop: OnDrop,
    }

    fn on_drop() -> impl Strategy<Value = OnDrop> {
        prop_oneof![Just(OnDrop::Abandon), duration().prop_map(OnDrop::Drain)]
    }

    proptest! {
        #[test]
        fn a_file_reads_what_it_writes(
            linger in duration(),
            idle in proptest::option::of(duration()),
            overflow in overflow(),
            on_drop in on_drop(),
        ) {
            let file = File { linger, idle, overflow, on_drop };
            let text = serde_json::to_string(&file).unwrap();
            prop_assert_eq!(serde_json::from_str::<File>(&text).unwrap(), file);
        }
    }

    #[test]
    fn a_file_says_what_would_have_been_accepted() {
        let read = |field: &str, value: &str| {
            let mut file = serde_json::json!({
                "linger": "1s", "idle": "none", "overflow": "reject", "on_drop": "5s"
            });
            file[field] = serde_json::from_str(value).unwrap();
            serde_json::from_value::<File>(file).map_err(|error| error.to_string())
        };
        assert_eq!(read("idle", "\"250ms\"").unwrap().idle, Some(Duration::from_millis(250)));
        assert!(read("linger", "\"soon\"").unwrap_err().contains("\"soon\": expected a duration such as 250ms"));
        assert!(read("linger", "5").unwrap_err().contains("string"));
        assert!(read("overflow", "\"drop\"").unwrap_err().contains("drop_oldest"));
        assert!(read("on_drop", "\"never\"").unwrap_err().contains("abandon"));
    }
}
