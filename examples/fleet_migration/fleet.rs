//! Which tenants there are, and their databases in schema v1.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use fullbore_core::Overflow;
use fullbore_examples::fleet::{Dataset, Tenant, faults, tenant};
use fullbore_queue::{Queue, Verdict};

use crate::machine::cores;
use crate::place::{Place, TenantName, file_name};

/// The fault of a tenant that fails on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    NotADatabase,
    Violates,
    Locked,
}

pub(crate) const FAULTS: [(Fault, &str); 3] = [
    (Fault::NotADatabase, faults::NOT_A_DATABASE),
    (Fault::Violates, faults::VIOLATES),
    (Fault::Locked, faults::LOCKED),
];

/// The healthy tenants of this run, largest first.
pub(crate) fn select(dataset: &Dataset, n: usize) -> Vec<Tenant> {
    let mut by_size: Vec<&Tenant> = dataset.tenants().iter().collect();
    by_size.sort_by_key(|tenant| std::cmp::Reverse(tenant.flights.len()));
    every_nth(&by_size, n).cloned().cloned().collect()
}

/// `n` of `all`, evenly spaced: of a list by size, a sample with the same sizes.
pub(crate) fn every_nth<T>(all: &[T], n: usize) -> impl Iterator<Item = &T> {
    (0..n).map(move |i| &all[i * all.len() / n])
}

/// The tenant whose data the faulty ones are made of: one of middle size.
pub(crate) fn model(fleet: &[Tenant]) -> &Tenant {
    &fleet[fleet.len() / 2]
}

/// Deals `tenants` (largest first) into `rounds` of the same mixture.
pub(crate) fn deal(tenants: &[Tenant], rounds: usize) -> Vec<Vec<Tenant>> {
    let mut dealt = vec![Vec::new(); rounds];
    for (i, tenant) in tenants.iter().enumerate() {
        dealt[i % rounds].push(tenant.clone());
    }
    dealt
}

/// Writes the databases of `tenants` into `dir`, on all cores.
pub(crate) fn create(dir: &Path, tenants: &[Tenant], dataset: &Arc<Dataset>) -> Result<(), String> {
    let first_error = Arc::new(Mutex::new(None));
    let queue = {
        let (dir, dataset, first_error) = (dir.to_owned(), Arc::clone(dataset), Arc::clone(&first_error));
        Queue::builder()
            .name("create")
            .workers(cores())
            .capacity(4 * cores())
            .overflow(Overflow::Block)
            .max_attempts(1)
            .build(move |job: &fullbore_queue::Job<Tenant>| {
                match tenant::create(&dir.join(file_name(&job.name)), job, &dataset) {
                    Ok(()) => Verdict::Done,
                    Err(error) => {
                        let text = format!("cannot create the database of {}: {error}", job.name);
                        first_error.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(text);
                        Verdict::dead(error)
                    }
                }
            })
            .map_err(|error| error.to_string())?
    };
    let failed = || first_error.lock().unwrap_or_else(PoisonError::into_inner).clone();
    for tenant in tenants {
        if failed().is_some() {
            break;
        }
        queue.send(tenant.clone()).map_err(|error| error.to_string())?;
    }
    queue.close_within(Duration::from_secs(300)).map_err(|left| left.to_string())?;
    match failed() {
        None => Ok(()),
        Some(error) => Err(format!("{error}: make room in {}, or choose another directory with --dir", dir.display())),
    }
}

/// Writes the databases of the three faulty tenants.
pub(crate) fn create_faulty(place: &Place, fleet: &[Tenant], dataset: &Dataset) -> Result<(), String> {
    let model = model(fleet);
    for (fault, name) in FAULTS {
        let path = place.tenant(name);
        let made = match fault {
            Fault::NotADatabase => faults::create_not_a_database(&path).map_err(|error| error.to_string()),
            Fault::Violates => faults::create_violating(&path, model, dataset).map_err(|error| error.to_string()),
            Fault::Locked => faults::create_locked(&path, model, dataset).map_err(|error| error.to_string()),
        };
        made.map_err(|error| format!("cannot create the faulty tenant {name}: {error}"))?;
    }
    Ok(())
}

pub(crate) fn names(tenants: &[Tenant]) -> impl Iterator<Item = TenantName> {
    tenants.iter().map(|tenant| TenantName::from(tenant.name.as_str()))
}
