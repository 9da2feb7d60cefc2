//! What each worker does: take a job, try it, put it where it belongs.

use std::time::{Duration, Instant};

use fullbore_core::{CallerSpan, Event, Failure, Locked, contain};
use fullbore_metrics::Outcome;

use crate::config::Handler;
use crate::job::{Job, Verdict};
use crate::shared::Shared;
use crate::store::{Entry, Store};

/// How an attempt ended, apart from what needs the lock.
enum Ended<J> {
    /// The job of this number is finished and gone.
    Finished(u64),
    /// It is to be tried again after a pause.
    Again { entry: Entry<J>, pause: Duration, failure: Failure, span: CallerSpan },
}

/// Works until a close is through.
pub(crate) fn run<J: Send + 'static>(shared: &Shared<J>, handler: &Handler<J>) {
    let mut store = shared.monitor.lock();
    while let Some(entry) = next(&mut store) {
        // C1: counted before a close can report it as in process.
        shared.station.began(1);
        match store.released(|| attempt(shared, handler, entry)) {
            Ended::Finished(id) => finish(&mut store, id),
            Ended::Again { entry, pause, failure, span } => again(shared, &mut store, entry, pause, failure, &span),
        }
        // In the same critical section as the end of its job: who sees that end knows that the worker is not stuck.
        store.busy -= 1;
    }
}

/// After a change of what there is to do: sees to it that somebody looks if something is ready, and that somebody keeps
/// the alarm if something is due later. Whoever looks and takes calls it again, so one at a time is enough.
pub(crate) fn wake<J>(store: &mut Locked<'_, Store<J>>) {
    if store.has_ready() {
        if store.workers.is_empty() {
            store.notify_all(|store| &mut store.keeper);
        } else {
            store.notify_one(|store| &mut store.workers);
        }
    }
    match (store.next_due(), store.alarm) {
        (Some(due), Some(alarm)) if due < alarm => store.notify_all(|store| &mut store.keeper),
        (Some(_), None) => store.notify_one(|store| &mut store.workers),
        _ => {}
    }
}

/// Lets all idle workers see that it is over.
pub(crate) fn wake_all<J>(store: &mut Locked<'_, Store<J>>) {
    store.notify_all(|store| &mut store.workers);
    store.notify_all(|store| &mut store.keeper);
}

/// The next job, waiting for it. `None`: a close is through, or has given up.
fn next<J>(store: &mut Locked<'_, Store<J>>) -> Option<Entry<J>> {
    loop {
        let now = store.now();
        if let Some(entry) = store.take(now) {
            // What else is ready, or due, is somebody else's: this one is busy now.
            wake(store);
            return Some(entry);
        }
        if store.has_given_up() {
            return None;
        }
        // Back at every wake-up: the loop looks properly.
        let mut slept = false;
        let look = |_: &mut Store<J>| std::mem::replace(&mut slept, true);
        match store.next_due().filter(|_| store.alarm.is_none()) {
            Some(due) => {
                store.alarm = Some(due);
                store.wait_until(|store| &mut store.keeper, Some(due), look);
                store.alarm = None;
            }
            None => {
                store.wait_until(|store| &mut store.workers, None, look);
            }
        }
    }
}

/// One attempt of one job.
fn attempt<J: Send + 'static>(shared: &Shared<J>, handler: &Handler<J>, mut entry: Entry<J>) -> Ended<J> {
    let station = &shared.station;
    station.waited(shared.monitor.clock().now().saturating_duration_since(entry.since));
    let permit = shared.permit();
    if shared.limit.is_some() && shared.monitor.lock().has_given_up() {
        // The wait for the permit outlasted the close: nothing is begun any more.
        drop(permit);
        return Ended::Finished(give_up(shared, entry.job, Failure::Closed));
    }
    entry.job.attempt += 1;
    let verdict = match permit {
        Err(refused) => Verdict::retry(refused),
        Ok(permit) => {
            let begin = Instant::now();
            let job = &entry.job;
            let verdict = contain(|| job.span.in_scope(|| handler(job)));
            station.took(begin.elapsed());
            drop(permit);
            verdict.unwrap_or_else(|failure| {
                shared.tell(&job.span, Event::Panic, || format!("the handler: {failure}"));
                Verdict::Retry(failure)
            })
        }
    };
    match verdict {
        Verdict::Done => {
            // The user's destructor runs before the job counts as finished.
            let (id, accepted) = (entry.job.id, entry.job.accepted);
            shared.user_code("dropping a job", || drop(entry.job));
            station.responded(shared.monitor.clock().now().saturating_duration_since(accepted));
            station.ended(Outcome::Served, 1);
            Ended::Finished(id)
        }
        Verdict::Retry(failure) if entry.job.attempt < shared.config.max_attempts => {
            // Now: neither the random numbers nor the subscriber belong under the lock.
            let (pause, span) = (shared.config.backoff().pause(entry.job.attempt), entry.job.span.clone());
            Ended::Again { entry, pause, failure, span }
        }
        Verdict::Retry(failure) | Verdict::Dead(failure) => Ended::Finished(give_up(shared, entry.job, failure)),
    }
}

/// Buries a job that was in process.
fn give_up<J: Send + 'static>(shared: &Shared<J>, job: Job<J>, failure: Failure) -> u64 {
    let (id, accepted) = (job.id, job.accepted);
    shared.user_code("the dead-letter hook", || shared.bury(job, failure));
    shared.station.responded(shared.monitor.clock().now().saturating_duration_since(accepted));
    shared.station.ended(Outcome::Failed, 1);
    id
}

fn finish<J>(store: &mut Locked<'_, Store<J>>, id: u64) {
    store.finish(id);
    store.leave(|store| &mut store.room, 1);
    store.notify_all(|store| &mut store.progress);
}

/// Puts the job back to be tried again; if the queue has given up, its last attempt was this one.
fn again<J: Send + 'static>(
    shared: &Shared<J>,
    store: &mut Locked<'_, Store<J>>,
    mut entry: Entry<J>,
    pause: Duration,
    failure: Failure,
    span: &CallerSpan,
) {
    if store.has_given_up() {
        let id = store.released(|| give_up(shared, entry.job, failure));
        return finish(store, id);
    }
    let attempt = entry.job.attempt + 1;
    entry.since = store.now();
    store.push_delayed(later(entry.since, pause), entry);
    // C1: counted before another worker can begin it.
    shared.station.retried(1);
    wake(store);
    store.released(|| {
        shared.tell(span, Event::Retry, || format!("attempt {attempt} in {pause:?}: {failure}"));
        shared.user_code("dropping a failure", || drop(failure));
    });
}

/// The moment `pause` after `now`. One too far to represent is as late as can be.
pub(crate) fn later(now: Instant, pause: Duration) -> Instant {
    const LATE: Duration = Duration::from_secs(u32::MAX as u64);
    now.checked_add(pause).or_else(|| now.checked_add(LATE)).unwrap_or(now)
}

#[cfg(all(test, not(fullbore_loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_moment_too_far_away_is_late() {
        let now = Instant::now();
        assert!(later(now, Duration::MAX) > now + Duration::from_secs(3600 * 24 * 365 * 100));
        assert_eq!(later(now, Duration::from_secs(1)), now + Duration::from_secs(1));
    }
}
