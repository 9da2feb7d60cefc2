//! Which shards are due, when the next one will be, and who waits: what the workers and the senders without room look at.

use std::collections::VecDeque;

use fullbore_core::{Locked, Refusal, Serve, WaitFor, Waiters};

use super::room::{Places, Room};

pub(super) struct Hub {
    /// Shards in which something may be due. One may be in it twice; that costs a look.
    due: VecDeque<usize>,
    /// No timer that anybody has told of is earlier.
    alarm: Option<u64>,
    pub(super) closed: bool,
    /// Somebody found no room, and what could make some was in hands already: who comes back from work looks again.
    pub(super) unrelieved: bool,
    /// A worker sleeps until then, or until it is woken. It is the keeper of the alarm.
    kept: Option<Option<u64>>,
    /// Workers with nothing to do,
    workers: Waiters,
    /// and the one among them that keeps the alarm.
    keeper: Waiters,
    /// Senders without room, with what they need.
    line: Waiters<(), Places>,
}

/// The earlier of two times, where `None` is never.
pub(super) fn sooner(a: Option<u64>, b: Option<u64>) -> Option<u64> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

impl Hub {
    pub(super) fn new() -> Self {
        Self {
            due: VecDeque::new(),
            alarm: None,
            closed: false,
            unrelieved: false,
            kept: None,
            workers: Waiters::of(WaitFor::Work),
            keeper: Waiters::of(WaitFor::Work),
            line: Waiters::of(WaitFor::Place),
        }
    }

    pub(super) fn add(&mut self, shard: usize) {
        self.due.push_back(shard);
    }

    /// When there will be something.
    pub(super) fn alarm(&self) -> Option<u64> {
        self.alarm
    }

    /// Somebody looks at all timers now, and tells what he finds.
    pub(super) fn forget_alarm(&mut self) {
        self.alarm = None;
    }

    pub(super) fn has_due(&self) -> bool {
        !self.due.is_empty()
    }
}

/// A shard that is due, taken out of the line. Whoever else is idle is sent for the next one, and to keep the alarm: the
/// caller is busy now.
pub(super) fn next_due(hub: &mut Locked<'_, Hub>) -> Option<usize> {
    let shard = hub.due.pop_front()?;
    if hub.has_due() || (hub.alarm.is_some() && hub.kept.is_none()) {
        wake(hub);
    }
    Some(shard)
}

/// Lets an idle worker look.
pub(super) fn wake(hub: &mut Locked<'_, Hub>) {
    if hub.workers.is_empty() {
        hub.notify_all(|hub| &mut hub.keeper);
    } else {
        hub.notify_one(|hub| &mut hub.workers);
    }
}

/// There is a timer at this time: the alarm is not later, nor does its keeper sleep longer.
pub(super) fn tell_timer(hub: &mut Locked<'_, Hub>, at: u64) {
    hub.alarm = sooner(hub.alarm, Some(at));
    match hub.kept {
        None => hub.notify_one(|hub| &mut hub.workers),
        Some(kept) if kept.is_none_or(|kept| kept > at) => hub.notify_all(|hub| &mut hub.keeper),
        Some(_) => {}
    }
}

/// Sleeps until something changes; as the keeper of the alarm until that at the latest.
pub(super) fn sleep(hub: &mut Locked<'_, Hub>, instant: impl FnOnce(u64) -> Option<std::time::Instant>) {
    // Back at every wake-up: the worker looks properly.
    let mut slept = false;
    let look = |_: &mut Hub| std::mem::replace(&mut slept, true);
    if hub.kept.is_some() {
        hub.wait_until(|hub| &mut hub.workers, None, look);
    } else {
        hub.kept = Some(hub.alarm);
        let until = hub.alarm.and_then(instant);
        hub.wait_until(|hub| &mut hub.keeper, until, look);
        hub.kept = None;
    }
}

/// Lets everybody see that it is closed.
pub(super) fn close(hub: &mut Locked<'_, Hub>) {
    hub.closed = true;
    hub.notify_all(|hub| &mut hub.workers);
    hub.notify_all(|hub| &mut hub.keeper);
    hub.notify_all(|hub| &mut hub.line);
}

/// Waits in line for places until `deadline`.
pub(super) fn wait_for_room(
    hub: &mut Locked<'_, Hub>,
    room: &Room,
    want: Places,
    deadline: Option<std::time::Instant>,
) -> Result<(), Refusal> {
    if hub.closed {
        return Err(Refusal::Closed);
    }
    if room.take_or_want(want) {
        return Ok(());
    }
    // K8: after the mark. The first look of the wait itself comes later still.
    if room.press() {
        wake(hub);
    }
    let mut outcome = None;
    let granted = hub.wait_turn(
        |hub| &mut hub.line,
        deadline,
        want,
        |hub| {
            let found = if hub.closed {
                Err(Refusal::Closed)
            } else {
                room.take_or_want(want).then_some(()).ok_or(Refusal::Full)
            };
            let through = found != Err(Refusal::Full);
            outcome = Some(found);
            through.then_some(())
        },
    );
    let result = match (granted, outcome) {
        // It may have been told of a place that is still there: then the next one is.
        (None, _) => Err(Refusal::TimedOut),
        (Some(()), Some(Ok(()))) => Ok(()),
        (Some(()), Some(Err(Refusal::Closed))) => Err(Refusal::Closed),
        // Handed over. Closed since then: the shard will say so.
        (Some(()), _) => Ok(()),
    };
    serve_line(hub, room);
    result
}

/// Gives places back of which somebody may be in need. Who has waited for long is handed his before anybody else can see it.
pub(super) fn hand_back(hub: &mut Locked<'_, Hub>, room: &Room, places: Places) {
    let mut in_hand = places;
    hub.serve(
        |hub| &mut hub.line,
        |_, waiter, overdue| match in_hand.minus(*waiter.tag) {
            Some(rest) if overdue => {
                in_hand = rest;
                Serve::Grant(())
            }
            _ if in_hand.is_none() => Serve::Stop,
            _ => Serve::Skip,
        },
    );
    room.give(in_hand);
    serve_line(hub, room);
}

/// Tells as many in line as there are places for, and takes the mark away if nobody is left.
pub(super) fn serve_line(hub: &mut Locked<'_, Hub>, room: &Room) {
    let mut free = room.free();
    hub.serve(
        |hub| &mut hub.line,
        |_, waiter, overdue| match free.minus(*waiter.tag) {
            Some(rest) => {
                free = rest;
                if overdue && room.take(*waiter.tag) { Serve::Grant(()) } else { Serve::Nudge }
            }
            None if free.items == 0 => Serve::Stop,
            None => Serve::Skip,
        },
    );
    if hub.line.is_empty() {
        room.unwant();
    }
}
