//! `fullbore-batch`. The cases are in files of their own.

use crate::cases::Count;
use crate::measure::Case;

/// All of them.
#[must_use]
pub fn cases() -> Vec<Case> {
    let mut cases = super::batch_send::send_cases();
    cases.extend(super::batch_reduce::reduce_cases());
    cases.extend(super::batch_db::db_cases());
    cases.extend(super::batch_keyed::keyed_cases());
    cases
}

/// What is to be zero.
#[must_use]
pub fn counts() -> Vec<Count> {
    let mut counts = super::batch_send::send_counts();
    counts.extend(super::batch_keyed::keyed_counts());
    counts
}
