//! Patterns against a matcher that is too simple to be wrong, alone and through a router.
#![allow(missing_docs)]

use fullbore_fanout::{Pattern, Router};
use proptest::prelude::*;

/// What the words mean, by cases.
fn naive(pattern: &[&str], topic: &[&str]) -> bool {
    match (pattern, topic) {
        ([], []) => true,
        (["#", rest @ ..], _) => naive(rest, topic) || (!topic.is_empty() && naive(pattern, &topic[1..])),
        (["*", rest @ ..], [_, left @ ..]) => naive(rest, left),
        ([word, rest @ ..], [segment, left @ ..]) if word == segment => naive(rest, left),
        _ => false,
    }
}

fn topic() -> impl Strategy<Value = Vec<&'static str>> {
    prop::collection::vec(prop::sample::select(vec!["a", "b", "ab"]), 1..7)
}

fn pattern() -> impl Strategy<Value = Vec<&'static str>> {
    prop::collection::vec(prop::sample::select(vec!["a", "b", "ab", "*", "#", "#"]), 1..7)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]
    #[test]
    fn a_pattern_matches_what_the_naive_matcher_says(pattern in pattern(), topic in topic()) {
        let read = Pattern::new(&pattern.join(".")).unwrap();
        prop_assert_eq!(read.matches(&topic.join(".")), naive(&pattern, &topic));
    }

    #[test]
    fn any_text_is_a_pattern_or_named_where_it_is_not(text in "[a*#.é\u{0}]{0,8}") {
        match Pattern::new(&text) {
            Ok(pattern) => prop_assert_eq!(pattern.as_str(), text),
            Err(error) => {
                prop_assert!(error.position() <= text.len());
                prop_assert!(text.is_char_boundary(error.position()));
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn a_router_gives_each_topic_to_those_who_match(
        patterns in prop::collection::vec(pattern(), 0..8),
        topics in prop::collection::vec(topic(), 1..20),
        removed in any::<prop::sample::Index>(),
    ) {
        let router = Router::<usize>::new();
        let mut receivers: Vec<_> = patterns
            .iter()
            .map(|pattern| (pattern, Vec::new(), router.subscribe(pattern.join(".")).receiver().unwrap()))
            .collect();
        for (n, topic) in topics.iter().enumerate() {
            // Half-way, one of them leaves.
            if n == topics.len() / 2 && !receivers.is_empty() {
                let at = removed.index(receivers.len());
                receivers.remove(at);
            }
            let receipt = router.publish(&topic.join("."), n).unwrap();
            let mut matching = 0;
            for (pattern, expected, _) in &mut receivers {
                if naive(pattern, topic) {
                    expected.push(n);
                    matching += 1;
                }
            }
            prop_assert_eq!((receipt.matched(), receipt.accepted()), (matching, matching));
        }
        drop(router);
        for (_, expected, receiver) in receivers {
            prop_assert_eq!(receiver.iter().map(|n| *n).collect::<Vec<_>>(), expected);
        }
    }
}
