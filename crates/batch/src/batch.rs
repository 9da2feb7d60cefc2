//! What the process function gets.

use std::collections::VecDeque;
use std::iter::FusedIterator;
use std::ops::Deref;
use std::sync::{Arc, Mutex};
use std::{fmt, mem};

/// The items of one batch, owned, in the order in which they were accepted. Never empty. Dereferences to a slice.
///
/// What the process function does not move out of it is dropped with it. Its memory serves the next batch, unless
/// [`into_vec`](Self::into_vec) has taken it.
pub struct Batch<T> {
    items: Vec<T>,
    home: Option<Arc<Spare<T>>>,
}

/// Where a batch's memory waits for the next one.
pub(crate) struct Spare<T>(Mutex<Vec<T>>);

impl<T> Spare<T> {
    pub(crate) const fn new() -> Self {
        Self(Mutex::new(Vec::new()))
    }

    /// An empty vector, with memory if there is some.
    pub(crate) fn take(&self) -> Vec<T> {
        self.0.try_lock().map(|mut spare| mem::take(&mut *spare)).unwrap_or_default()
    }

    /// Keeps the memory of an empty vector.
    pub(crate) fn keep(&self, empty: Vec<T>) {
        debug_assert!(empty.is_empty(), "destructors must not run under the lock");
        let replaced = self.0.try_lock().map(|mut spare| mem::replace(&mut *spare, empty));
        drop(replaced);
    }
}

impl<T> Batch<T> {
    pub(crate) fn new(items: Vec<T>, home: Arc<Spare<T>>) -> Self {
        Self { items, home: Some(home) }
    }

    /// How many items there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether there are none: never so for a batch that a batcher made.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// The items.
    #[must_use]
    pub fn as_slice(&self) -> &[T] {
        &self.items
    }

    /// The items, without a copy.
    #[must_use]
    pub fn into_vec(mut self) -> Vec<T> {
        self.home = None;
        mem::take(&mut self.items)
    }
}

impl<T> Drop for Batch<T> {
    fn drop(&mut self) {
        if let Some(home) = self.home.take() {
            let mut items = mem::take(&mut self.items);
            items.clear();
            home.keep(items);
        }
    }
}

impl<T: Clone> Clone for Batch<T> {
    fn clone(&self) -> Self {
        Self::from(self.items.clone())
    }
}

impl<T: PartialEq> PartialEq for Batch<T> {
    fn eq(&self, other: &Self) -> bool {
        self.items == other.items
    }
}

impl<T: Eq> Eq for Batch<T> {}

impl<T> Deref for Batch<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        &self.items
    }
}

impl<T> AsRef<[T]> for Batch<T> {
    fn as_ref(&self) -> &[T] {
        &self.items
    }
}

impl<T> From<Batch<T>> for Vec<T> {
    fn from(batch: Batch<T>) -> Self {
        batch.into_vec()
    }
}

/// So that a process function can be tested without a batcher.
impl<T> From<Vec<T>> for Batch<T> {
    fn from(items: Vec<T>) -> Self {
        Self { items, home: None }
    }
}

impl<T> IntoIterator for Batch<T> {
    type Item = T;
    type IntoIter = IntoIter<T>;
    fn into_iter(mut self) -> IntoIter<T> {
        IntoIter { home: self.home.take(), items: mem::take(&mut self.items).into() }
    }
}

/// The items of a [`Batch`], one after the other.
pub struct IntoIter<T> {
    items: VecDeque<T>,
    home: Option<Arc<Spare<T>>>,
}

impl<T> Iterator for IntoIter<T> {
    type Item = T;
    #[inline]
    fn next(&mut self) -> Option<T> {
        self.items.pop_front()
    }
    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.items.len(), Some(self.items.len()))
    }
}

impl<T> DoubleEndedIterator for IntoIter<T> {
    #[inline]
    fn next_back(&mut self) -> Option<T> {
        self.items.pop_back()
    }
}

impl<T> ExactSizeIterator for IntoIter<T> {}
impl<T> FusedIterator for IntoIter<T> {}

impl<T> Drop for IntoIter<T> {
    fn drop(&mut self) {
        if let Some(home) = self.home.take() {
            let mut items = mem::take(&mut self.items);
            items.clear();
            home.keep(items.into());
        }
    }
}

impl<T> fmt::Debug for IntoIter<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IntoIter").field("len", &self.items.len()).finish_non_exhaustive()
    }
}

impl<'a, T> IntoIterator for &'a Batch<T> {
    type Item = &'a T;
    type IntoIter = std::slice::Iter<'a, T>;
    fn into_iter(self) -> Self::IntoIter {
        self.items.iter()
    }
}

impl<T> fmt::Debug for Batch<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batch").field("len", &self.len()).finish()
    }
}
