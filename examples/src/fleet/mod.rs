//! The fleet: one SQLite database for each aircraft that left New York City in 2013, and its migration from v1 to v2.
//!
//! The input is [`Dataset`], 336,776 real flights. [`tenant::create`] writes the database of one aircraft (schema v1),
//! [`migrate::migrate`] takes it to v2 in one transaction, [`verify::verify`] reopens it and checks it against truths that
//! the data holds itself. [`faults`] makes the tenants that fail on purpose. Nothing here starts a thread, retries or waits:
//! that is what the programs in front of it are for.
//!
//! Schema v1 is one table, `flights`: `id` (the row of `flights.csv`, from 1) and its 19 columns, NULL for `NA`.
//! Schema v2 is `flights` with `carrier_id` in the place of `carrier` and four more columns, the table
//! `carriers(id, code, name)`, and the index `flights_dest_dep_utc`.

mod clock;
pub mod data;
pub mod faults;
pub mod migrate;
mod plan;
pub mod reference;
pub mod row;
pub mod tenant;
pub mod verify;

pub use data::{DataError, Dataset, Flight, NO_TAIL, Tenant};
pub use migrate::{MigrateError, Migrated};
pub use reference::{Reference, ReferenceError};
pub use verify::{FleetTruths, TenantFacts, VerifyError};
