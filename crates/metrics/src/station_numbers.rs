//! The numbers of a station as other systems get them: one list for all exports.

use crate::snapshot::StationSnapshot;

/// A name, what it means, and where it is.
pub(crate) type Number = (&'static str, &'static str, fn(&StationSnapshot) -> u64);

/// What only grows.
pub(crate) const COUNTS: [Number; 9] = [
    ("arrivals", "Items that came in", |it| it.arrivals),
    ("refused", "Items refused at the door", |it| it.refused),
    ("begun", "Items whose service began", |it| it.begun),
    ("served", "Items done", |it| it.served),
    ("failed", "Items tried that went wrong", |it| it.failed),
    ("dropped", "Items displaced or given up", |it| it.dropped),
    ("merged", "Items merged into others", |it| it.merged),
    ("returned", "Items handed back unserved", |it| it.returned),
    ("retried", "Times that an item went back to be tried again", |it| it.retried),
];

/// What is so at the moment.
pub(crate) const NOW: [Number; 5] = [
    ("waiting", "Items in line", |it| it.waiting()),
    ("in_service", "Items being served", |it| it.in_service()),
    ("parallelism", "Items that can be served at once", StationSnapshot::parallelism),
    ("batch_size", "Items that are served together at most", StationSnapshot::batch_size),
    ("capacity", "Items that can wait", StationSnapshot::capacity),
];
