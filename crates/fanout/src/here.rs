//! What the calling thread is to us: a subscription's thread, inside a dead-letter hook, or a stranger. And who waits for
//! whom, so that no subscription waits for itself.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

use fullbore_core::{Clock, Monitor};

/// Numbers that tell routers and subscriptions apart within the process.
pub(crate) fn fresh_id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    // ORDERING: Relaxed: only has to be different each time.
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Whose thread this is.
#[derive(Clone, Copy)]
struct Here {
    router: u64,
    subscription: u64,
}

thread_local! {
    static HERE: Cell<Option<Here>> = const { Cell::new(None) };
    static HOOKS: RefCell<Vec<u64>> = const { RefCell::new(Vec::new()) };
}

/// Says that this thread belongs to a subscription, for the rest of its life.
pub(crate) fn settle(router: u64, subscription: u64) {
    HERE.set(Some(Here { router, subscription }));
}

/// Whether this thread belongs to a subscription of `router`.
pub(crate) fn is_thread_of(router: u64) -> bool {
    HERE.get().is_some_and(|here| here.router == router)
}

/// Marks that `router`'s dead-letter hook runs on this thread; `None` if it does already.
pub(crate) fn enter_hook(router: u64) -> Option<InHook> {
    HOOKS
        .try_with(|hooks| {
            let mut hooks = hooks.borrow_mut();
            if hooks.contains(&router) {
                return None;
            }
            hooks.push(router);
            Some(InHook(router))
        })
        // The thread's locals are being torn down: nothing can be marked, and nobody publishes in there for ever.
        .unwrap_or_else(|_| Some(InHook(router)))
}

pub(crate) struct InHook(u64);

impl Drop for InHook {
    fn drop(&mut self) {
        let _ = HOOKS.try_with(|hooks| hooks.borrow_mut().retain(|router| *router != self.0));
    }
}

/// For whose room the threads of a subscription wait. There is no cycle, because the wait that would close one is not begun. A
/// subscription may have several threads, of which others may go on: what is refused here could then have ended well. But it
/// could not be known.
static WAITS: LazyLock<Monitor<BTreeMap<u64, Vec<u64>>>> = LazyLock::new(|| Monitor::new(BTreeMap::new(), Clock::Real));

/// Announces that this thread is about to wait for room at `subscription`; `None` if that one waits, directly or through
/// others, for this thread's own. Strangers may always wait.
pub(crate) fn wait_for(subscription: u64) -> Option<WaitingHere> {
    let Some(Here { subscription: me, .. }) = HERE.get() else {
        return Some(WaitingHere(None));
    };
    let mut waits = WAITS.lock();
    let (mut left, mut seen) = (vec![subscription], BTreeSet::new());
    while let Some(at) = left.pop() {
        if at == me {
            return None;
        }
        if seen.insert(at) {
            left.extend(waits.get(&at).into_iter().flatten());
        }
    }
    waits.entry(me).or_default().push(subscription);
    Some(WaitingHere(Some((me, subscription))))
}

pub(crate) struct WaitingHere(Option<(u64, u64)>);

impl Drop for WaitingHere {
    fn drop(&mut self) {
        let Some((me, subscription)) = self.0 else { return };
        let mut waits = WAITS.lock();
        if let Some(targets) = waits.get_mut(&me) {
            if let Some(at) = targets.iter().position(|target| *target == subscription) {
                targets.swap_remove(at);
            }
            if targets.is_empty() {
                waits.remove(&me);
            }
        }
    }
}
