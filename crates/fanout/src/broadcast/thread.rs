//! Which thread this is.
#![expect(unsafe_code, reason = "to say that a number is this thread's is a promise")]

use std::cell::Cell;

use super::seat::Me;
use crate::here::fresh_id;

impl Me {
    /// The running thread.
    #[inline]
    pub(super) fn here() -> Self {
        // Without a destructor, so that it is there until the very end of a thread.
        thread_local!(static NUMBER: Cell<u64> = const { Cell::new(0) });
        let number = NUMBER.with(|number| {
            if number.get() == 0 {
                number.set(fresh_id() + 1);
            }
            number.get()
        });
        // SAFETY: numbers are given out once, and this one is the thread's own.
        unsafe { Self::new(number) }
    }
}
