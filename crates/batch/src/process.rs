//! The process function, and what is done when it fails.
//!
//! A function that takes the batch by value is called once. One that borrows it leaves the items with us: a batch that failed
//! is tried again, then taken apart until only the items remain that fail alone. With `k` of them among `n` items that takes
//! at most `2 k (1 + log2 n)` calls beyond the attempts for the whole.

use std::sync::Arc;

use fullbore_core::Failure;

use crate::batch::{Batch, Spare};
use crate::outcomes::{IntoOutcomes, Kind, Outcomes};

/// What the batcher's thread does for a process function.
pub(crate) trait Host<R> {
    /// Runs user code in the span of the batch; a panic is a failure. A wrong number of results fails all `items`.
    fn call(&self, items: usize, f: &mut dyn FnMut() -> Outcomes<R>) -> Kind<R>;

    /// What the user says of a failure.
    fn judge(&self, failure: &Failure) -> Verdict;

    /// Waits before the next attempt. False if the batcher has no time for it any more, or there has been the last.
    fn pause(&self, attempts: u32, failure: &Failure) -> bool;

    /// Whether a failed batch is taken apart, and there is time for it.
    fn isolates(&self) -> bool;
}

/// What is to be done about a failure of a whole batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It may pass, and concerns all items, as an outage does: to take the batch apart would only ask more often.
    Passing,
    /// Nobody knows: another attempt, and then perhaps an item is to blame.
    Unknown,
    /// It will not pass: an item may be to blame.
    Lasting,
    /// The batch may have been done: neither another attempt nor a part of it.
    Settled,
}

/// What came of a batch, and its items if they were not given away.
pub(crate) struct Processed<T, R> {
    pub(crate) outcomes: Kind<R>,
    pub(crate) kept: Vec<T>,
}

pub(crate) trait Process<T, R>: Send + Sync + 'static {
    /// `spare` gets the memory of the batch back, if it is not kept.
    fn run(&self, items: Vec<T>, spare: &Arc<Spare<T>>, host: &dyn Host<R>) -> Processed<T, R>;
}

pub(crate) struct ByValue<F>(pub(crate) F);

impl<T, R, O, F> Process<T, R> for ByValue<F>
where
    T: Send,
    F: Fn(Batch<T>) -> O + Send + Sync + 'static,
    O: IntoOutcomes<R>,
{
    fn run(&self, items: Vec<T>, spare: &Arc<Spare<T>>, host: &dyn Host<R>) -> Processed<T, R> {
        let count = items.len();
        let mut items = Some(items);
        let outcomes = host.call(count, &mut || {
            let items = items.take().unwrap_or_default();
            (self.0)(Batch::new(items, Arc::clone(spare))).into_outcomes(count)
        });
        Processed { outcomes, kept: Vec::new() }
    }
}

pub(crate) struct ByRef<F>(pub(crate) F);

impl<T, R, O, F> Process<T, R> for ByRef<F>
where
    T: Send,
    F: Fn(&[T]) -> O + Send + Sync + 'static,
    O: IntoOutcomes<R>,
{
    fn run(&self, items: Vec<T>, _: &Arc<Spare<T>>, host: &dyn Host<R>) -> Processed<T, R> {
        let mut attempts = 0;
        let outcomes = loop {
            let outcomes = self.once(&items, host);
            attempts += 1;
            let Kind::Failed(failure) = outcomes else { break outcomes };
            let verdict = host.judge(&failure);
            let again = matches!(verdict, Verdict::Passing | Verdict::Unknown);
            if again && host.pause(attempts, &failure) {
                continue;
            }
            let apart = matches!(verdict, Verdict::Unknown | Verdict::Lasting);
            if items.len() <= 1 || !apart || !host.isolates() {
                break Kind::Failed(failure);
            }
            let mut each = Vec::with_capacity(items.len());
            self.halves(&items, &failure, host, &mut each);
            break Kind::Each(each);
        };
        Processed { outcomes, kept: items }
    }
}

impl<F> ByRef<F> {
    fn once<T, R, O>(&self, items: &[T], host: &dyn Host<R>) -> Kind<R>
    where
        F: Fn(&[T]) -> O,
        O: IntoOutcomes<R>,
    {
        host.call(items.len(), &mut || (self.0)(items).into_outcomes(items.len()))
    }

    /// Both halves of what has failed together, each for itself. Once there is no time any more, what is left has failed as it
    /// did together.
    fn halves<T, R, O>(&self, items: &[T], together: &Failure, host: &dyn Host<R>, each: &mut Vec<Result<R, Failure>>)
    where
        F: Fn(&[T]) -> O,
        O: IntoOutcomes<R>,
    {
        let (first, second) = items.split_at(items.len() / 2);
        for half in [first, second] {
            if !host.isolates() {
                each.extend(half.iter().map(|_| Err(together.clone())));
                continue;
            }
            match self.once(half, host) {
                Kind::Done(results) => each.extend(results.into_iter().map(Ok)),
                Kind::Each(results) => each.extend(results),
                Kind::Failed(failure) if half.len() <= 1 || host.judge(&failure) == Verdict::Settled => {
                    each.extend(half.iter().map(|_| Err(failure.clone())));
                }
                Kind::Failed(failure) => self.halves(half, &failure, host, each),
            }
        }
    }
}
