//! Rules of all kinds against a matcher that is too simple to be wrong, while routes come and go.
#![allow(missing_docs, clippy::unwrap_used)]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use fullbore_fanout::{HasHeaders, Pattern, Problem, Receiver, Router, Rule};
use proptest::prelude::*;

type Headers = Vec<(&'static str, &'static str)>;

#[derive(Clone, Debug, PartialEq, Eq)]
struct Message {
    n: u32,
    headers: Headers,
}

impl HasHeaders for Message {
    fn each_header<'m>(&'m self, each: &mut dyn FnMut(&'m str, &'m str)) {
        self.headers.iter().for_each(|(key, value)| each(key, value));
    }
}

/// A rule as the test sees it.
#[derive(Clone, Debug)]
enum Wanted {
    All,
    Topic(Vec<&'static str>),
    Direct(Vec<&'static str>),
    HeadersAll(Headers),
    HeadersAny(Headers),
    DivisibleBy(u32),
}

impl Wanted {
    fn rule(&self) -> Rule<Message> {
        match self.clone() {
            Wanted::All => Rule::all(),
            Wanted::Topic(words) => Rule::topic(&words.join(".")).unwrap(),
            Wanted::Direct(words) => Rule::direct(&words.join(".")).unwrap(),
            Wanted::HeadersAll(pairs) => Rule::headers_all(pairs),
            Wanted::HeadersAny(pairs) => Rule::headers_any(pairs),
            Wanted::DivisibleBy(n) => Rule::when(move |message: &Message| message.n.is_multiple_of(n)),
        }
    }

    fn matches(&self, topic: &[&str], message: &Message) -> bool {
        let has = |pair: &(&'static str, &'static str)| message.headers.contains(pair);
        match self {
            Wanted::All => true,
            Wanted::Topic(words) => naive(words, topic),
            Wanted::Direct(words) => words == topic,
            Wanted::HeadersAll(pairs) => pairs.iter().all(has),
            Wanted::HeadersAny(pairs) => pairs.iter().any(has),
            Wanted::DivisibleBy(n) => message.n.is_multiple_of(*n),
        }
    }
}

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

fn words(of: &'static [&'static str]) -> impl Strategy<Value = Vec<&'static str>> {
    prop::collection::vec(prop::sample::select(of), 1..6)
}

fn headers() -> impl Strategy<Value = Headers> {
    let pair = (prop::sample::select(&["k", "l"][..]), prop::sample::select(&["", "v", "w"][..]));
    prop::collection::vec(pair, 0..4)
}

fn wanted() -> impl Strategy<Value = Wanted> {
    prop_oneof![
        1 => Just(Wanted::All),
        8 => words(&["a", "b", "*", "#", "#"]).prop_map(Wanted::Topic),
        3 => words(&["a", "b"]).prop_map(Wanted::Direct),
        3 => headers().prop_map(Wanted::HeadersAll),
        3 => headers().prop_map(Wanted::HeadersAny),
        1 => (2_u32..4).prop_map(Wanted::DivisibleBy),
    ]
}

#[derive(Clone, Debug)]
enum Step {
    Add(Wanted),
    Remove(prop::sample::Index),
    Publish(Vec<&'static str>, Headers),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => wanted().prop_map(Step::Add),
        1 => any::<prop::sample::Index>().prop_map(Step::Remove),
        3 => (words(&["a", "b"]), headers()).prop_map(|(topic, headers)| Step::Publish(topic, headers)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]
    #[test]
    fn a_router_gives_each_message_to_those_who_want_it(steps in prop::collection::vec(step(), 1..60)) {
        let router = Router::<Message>::builder().own_headers().build().unwrap();
        let mut there: Vec<(Wanted, Vec<u32>, Receiver<Message>)> = Vec::new();
        let mut named = 0;
        for (n, step) in (0..).zip(steps) {
            match step {
                Step::Add(wanted) => {
                    let name = format!("r{named}");
                    named += 1;
                    let receiver = router.subscribe(wanted.rule()).name(name).receiver().unwrap();
                    there.push((wanted, Vec::new(), receiver));
                }
                Step::Remove(_) if there.is_empty() => {}
                Step::Remove(which) => {
                    let (_, expected, receiver) = there.remove(which.index(there.len()));
                    receiver.close();
                    prop_assert_eq!(receiver.iter().map(|message| message.n).collect::<Vec<_>>(), expected);
                }
                Step::Publish(topic, headers) => {
                    let message = Message { n, headers };
                    let mut names = Vec::new();
                    for (wanted, expected, receiver) in &mut there {
                        if wanted.matches(&topic, &message) {
                            expected.push(n);
                            names.push(receiver.name().to_owned());
                        }
                    }
                    let receipt = router.publish(&topic.join("."), message).unwrap();
                    // In the order in which they came, each once.
                    prop_assert_eq!(receipt.destinations().map(|(name, _)| name).collect::<Vec<_>>(), names);
                    prop_assert_eq!(receipt.matched(), receipt.accepted());
                }
            }
            prop_assert_eq!(router.len(), there.len());
        }
        drop(router);
        for (_, expected, receiver) in there {
            prop_assert_eq!(receiver.iter().map(|message| message.n).collect::<Vec<_>>(), expected);
        }
    }
}

#[test]
fn many_wildcards_match_once_and_in_time() {
    let router = Router::<u32>::new();
    // By ways through the trie there are more than can be counted.
    let pattern = ["#.a"; 20].join(".");
    let receiver = router.subscribe(&pattern).receiver().unwrap();
    let receipt = router.publish(&["a"; 500].join("."), 1).unwrap();
    assert_eq!(receipt.matched(), 1);
    assert_eq!(receiver.waiting(), 1);
    assert!(router.publish(&["a"; 19].join("."), 1).unwrap().is_unroutable());
}

#[test]
fn a_pattern_has_at_most_128_segments() {
    let error = Pattern::new(&["a"; 129].join(".")).unwrap_err();
    assert_eq!((error.position(), error.problem()), (256, Problem::TooManySegments));
    assert!(error.to_string().ends_with("more than 128 segments"));
    assert!(Pattern::new(&["*"; 128].join(".")).is_ok());
}

#[test]
fn malformed_rules_name_the_position() {
    assert_eq!(Rule::<u32>::direct("a.*").unwrap_err().position(), 2);
    assert_eq!(Rule::<u32>::topic("a..b").unwrap_err().position(), 2);
    let router = Router::<u32>::new();
    let error = router.bind("a.b#").sink(fullbore_core::sink::from_fn(|_| Ok(()))).unwrap_err();
    assert_eq!(error.malformed().unwrap().position(), 3);
    assert_eq!(router.subscribe(String::from("#x")).receiver().unwrap_err().malformed().unwrap().position(), 0);
}

#[test]
fn ten_thousand_rules_of_each_kind_are_found_and_gone_again() {
    const RULES: usize = 10_000;
    let router = Router::<Message>::builder().own_headers().build().unwrap();
    let sink = || fullbore_core::sink::from_fn(|_| Ok(()));
    let mut routes = Vec::new();
    for n in 0..RULES {
        routes.push(router.route(format!("wild.*.{n}"), sink()).unwrap());
        routes.push(router.route(format!("plain.{n}"), sink()).unwrap());
        routes.push(router.route(Rule::header("n", &n.to_string()), sink()).unwrap());
    }
    let matched = |topic: &str, headers: Headers| router.publish(topic, Message { n: 0, headers }).unwrap().matched();
    assert_eq!(matched("wild.x.9999", vec![]), 1);
    assert_eq!(matched("plain.5000", vec![("n", "17")]), 2);
    assert_eq!(matched("plain.x", vec![("n", "x")]), 0);
    assert!(routes.iter().all(|route| route.remove()));
    assert!(router.is_empty());
    assert_eq!(matched("wild.x.9999", vec![("n", "17")]), 0);
}

#[test]
fn a_destination_with_several_routes_gets_a_message_once_for_each() {
    let router = Router::<u32>::new();
    let (sender, seen) = crossbeam_channel::unbounded();
    for rule in ["a.#", "#", "a.b"] {
        router.route(rule, sender.clone()).unwrap();
    }
    assert_eq!(router.publish("a.b", 1).unwrap().accepted(), 3);
    assert_eq!(seen.try_iter().count(), 3);
}

#[test]
fn headers_are_only_read_while_a_rule_asks_for_them() {
    let read = Arc::new(AtomicUsize::new(0));
    let router = {
        let read = Arc::clone(&read);
        let headers = move |_: &u32, each: &mut dyn FnMut(&'static str, &'static str)| {
            read.fetch_add(1, Ordering::Relaxed);
            each("kind", "number");
        };
        // A closure whose headers are constants: they live as long as any message.
        Router::<u32>::builder().headers(move |message, each| headers(message, &mut |k, v| each(k, v))).build().unwrap()
    };
    let _all = router.subscribe("#").receiver().unwrap();
    assert_eq!(router.publish("t", 1).unwrap().matched(), 1);
    assert_eq!(read.load(Ordering::Relaxed), 0);
    let numbers = router.subscribe(Rule::header("kind", "number")).receiver().unwrap();
    assert_eq!(numbers.name(), "kind=number");
    assert_eq!(router.publish("t", 2).unwrap().matched(), 2);
    drop(numbers);
    assert_eq!(router.publish("t", 3).unwrap().matched(), 1);
    assert_eq!(read.load(Ordering::Relaxed), 1);
}

#[test]
fn c4_what_reads_a_message_may_panic_and_the_others_are_served() {
    let router = Router::<u32>::builder()
        .headers(|message, _| assert!(*message != 1, "headers"))
        .ttl(|message| {
            assert!(*message != 2, "ttl");
            None
        })
        .build()
        .unwrap();
    let _headers = router.subscribe(Rule::header("a", "b")).receiver().unwrap();
    let _when = router.subscribe(Rule::when(|message: &u32| *message != 3 || panic!("predicate"))).receiver().unwrap();
    let (sink, mapped) = crossbeam_channel::unbounded();
    router.bind("#").map(|message: &u32| if *message == 4 { panic!("map") } else { *message }).sink(sink).unwrap();
    let all = router.subscribe("#").receiver().unwrap();
    for (n, says) in [(1, "headers"), (2, "ttl"), (3, "predicate"), (4, "map")] {
        let payload = catch_unwind(AssertUnwindSafe(|| router.publish("t", n))).unwrap_err();
        assert_eq!(payload.downcast_ref(), Some(&says));
        assert_eq!(*all.try_recv().unwrap(), n);
    }
    assert_eq!(mapped.try_iter().collect::<Vec<_>>(), [1, 2, 3]);
    let seen = router.station().snapshot();
    assert!(seen.balanced() && seen.in_service() == 0, "{seen:?}");
}

#[test]
fn a_predicate_and_a_map_may_use_the_router() {
    let router = Router::<u32>::new();
    let (inside, echo) = (router.clone(), router.subscribe("echo").receiver().unwrap());
    let again = router.clone();
    let rule = Rule::when(move |n: &u32| *n < 2 && inside.publish("echo", n + 10).is_ok());
    let (sink, seen) = crossbeam_channel::unbounded();
    let map = move |n: &u32| {
        let passing = again.subscribe("x").receiver().unwrap();
        (*n, passing.waiting(), again.len())
    };
    let route = router.bind(rule).map(map).sink(sink).unwrap();
    assert!(router.publish("t", 1).unwrap().is_complete());
    assert_eq!(*echo.try_recv().unwrap(), 11);
    assert_eq!(seen.try_recv().unwrap(), (1, 0, 3));
    // They keep the router open.
    route.remove();
}

#[test]
fn rules_change_while_others_publish() {
    let router = Router::<u32>::new();
    let steady = router.subscribe("a.*.c").capacity(10_000).receiver().unwrap();
    thread::scope(|scope| {
        for comer in 0..2 {
            let router = &router;
            scope.spawn(move || {
                for n in 0..500 {
                    let rule =
                        [format!("a.*.{n}"), format!("a.b.{n}"), "a.#".to_owned(), "#.c".to_owned()][n % 4].clone();
                    let passing = router.subscribe(rule).capacity(4000).receiver().unwrap();
                    if n % 3 == comer {
                        let _ = router.publish("a.b.c", 7).unwrap();
                        assert!(n % 4 < 2 || passing.waiting() > 0, "a route is there when `receiver` returns");
                    }
                }
            });
        }
        for _ in 0..2 {
            scope.spawn(|| {
                for n in 0..1000 {
                    assert!(router.publish("a.b.c", n).unwrap().accepted() >= 1);
                }
            });
        }
    });
    assert_eq!(router.len(), 1);
    assert!(steady.waiting() >= 2000);
}
