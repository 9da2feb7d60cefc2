//! Patterns with wildcards, as a trie over their segments.

use std::hash::BuildHasher;
use std::ptr;

use hashbrown::{DefaultHashBuilder, HashTable};
use smallvec::SmallVec;

use super::{Found, Slots};
use crate::pattern::{DOT, Segment};

pub(crate) struct Trie<T> {
    root: Node<T>,
    len: usize,
}

struct Node<T> {
    /// The patterns that end here.
    here: Slots<T>,
    literals: HashTable<(Box<str>, Node<T>)>,
    /// `*`
    one: Option<Box<Node<T>>>,
    /// `#`
    any: Option<Box<Node<T>>>,
    /// It is somebody's `any`: it stays where it is whatever segment comes.
    stays: bool,
}

/// The nodes at which the segments seen so far can have arrived.
type Reached<'t, T> = SmallVec<[&'t Node<T>; 16]>;

impl<T> Node<T> {
    fn new(stays: bool) -> Self {
        Self { here: Slots::new(), literals: HashTable::new(), one: None, any: None, stays }
    }

    fn is_empty(&self) -> bool {
        self.here.is_empty() && self.literals.is_empty() && self.one.is_none() && self.any.is_none()
    }

    /// Its child for a pattern's segment, made if it is not there.
    fn child(&mut self, hasher: &DefaultHashBuilder, segment: &Segment) -> &mut Self {
        match segment {
            Segment::One => self.one.get_or_insert_with(|| Box::new(Node::new(false))),
            Segment::Any => self.any.get_or_insert_with(|| Box::new(Node::new(true))),
            Segment::Literal(text) => {
                let hash = hasher.hash_one(&**text);
                let there = self.literals.entry(hash, |(it, _)| it == text, |(it, _)| hasher.hash_one(&**it));
                &mut there.or_insert_with(|| (text.clone(), Node::new(false))).into_mut().1
            }
        }
    }

    /// Takes a rule out, and on the way back the nodes that nothing is left of. Recursion is as deep as the pattern is long.
    fn remove(&mut self, hasher: &DefaultHashBuilder, pattern: &[Segment], id: u64) -> Option<T> {
        let Some((segment, rest)) = pattern.split_first() else { return self.here.remove(id) };
        match segment {
            Segment::One => Self::remove_below(&mut self.one, hasher, rest, id),
            Segment::Any => Self::remove_below(&mut self.any, hasher, rest, id),
            Segment::Literal(text) => {
                let hash = hasher.hash_one(&**text);
                let mut there = self.literals.find_entry(hash, |(it, _)| it == text).ok()?;
                let removed = there.get_mut().1.remove(hasher, rest, id);
                if there.get().1.is_empty() {
                    there.remove();
                }
                removed
            }
        }
    }

    fn remove_below(
        child: &mut Option<Box<Self>>,
        hasher: &DefaultHashBuilder,
        rest: &[Segment],
        id: u64,
    ) -> Option<T> {
        let node = child.as_mut()?;
        let removed = node.remove(hasher, rest, id);
        if node.is_empty() {
            *child = None;
        }
        removed
    }
}

impl<T> Trie<T> {
    pub(crate) fn new() -> Self {
        Self { root: Node::new(false), len: 0 }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(crate) fn insert(&mut self, hasher: &DefaultHashBuilder, pattern: &[Segment], id: u64, to: T) {
        let node = pattern.iter().fold(&mut self.root, |node, segment| node.child(hasher, segment));
        node.here.insert(id, to);
        self.len += 1;
    }

    pub(crate) fn remove(&mut self, hasher: &DefaultHashBuilder, pattern: &[Segment], id: u64) -> Option<T> {
        let removed = self.root.remove(hasher, pattern, id);
        self.len -= usize::from(removed.is_some());
        removed
    }
}

impl<T: Clone> Trie<T> {
    /// Follows all ways through the trie at once, segment by segment: never more than its nodes, however many `#` there are.
    pub(crate) fn find(&self, hasher: &DefaultHashBuilder, topic: &str, found: &mut Found<T>) {
        let mut reached = Reached::new();
        reach(&self.root, &mut reached);
        let mut next = Reached::new();
        for segment in topic.split(DOT) {
            let mut hash = None;
            for node in reached.drain(..) {
                if node.stays {
                    // What is behind it without a further segment was reached with it, and is reached again.
                    reach(node, &mut next);
                }
                if let Some(one) = &node.one {
                    reach(one, &mut next);
                }
                if !node.literals.is_empty() {
                    let hash = *hash.get_or_insert_with(|| hasher.hash_one(segment));
                    if let Some((_, child)) = node.literals.find(hash, |(it, _)| **it == *segment) {
                        reach(child, &mut next);
                    }
                }
            }
            if next.is_empty() {
                return;
            }
            if next.len() > 1 {
                // Several ways may lead to the same node; without this there could be more of them than nodes.
                next.sort_unstable_by_key(|node| ptr::from_ref(*node).addr());
                next.dedup_by(|a, b| ptr::eq(*a, *b));
            }
            std::mem::swap(&mut reached, &mut next);
        }
        for node in reached {
            node.here.give(found);
        }
    }
}

/// A node, and what can be reached from it without a segment: a `#` may stand for none.
fn reach<'t, T>(node: &'t Node<T>, reached: &mut Reached<'t, T>) {
    let mut at = Some(node);
    while let Some(node) = at {
        reached.push(node);
        at = node.any.as_deref();
    }
}
