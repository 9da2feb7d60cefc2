//! After the run: every database is opened again and compared with what the data itself says.

use std::collections::HashMap;
use std::fs;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use fullbore_core::Overflow;
use fullbore_examples::fleet::data::{Dataset, Tenant};
use fullbore_examples::fleet::reference::FromMemory;
use fullbore_examples::fleet::verify::{FleetTruths, TenantFacts, verify};
use fullbore_queue::{Job, Queue, Verdict};

use crate::machine::cores;
use crate::place::{Place, TenantName};

#[derive(Debug, Default)]
pub(crate) struct Checked {
    /// Tenants that are what they should be.
    pub(crate) verified: u64,
    /// What is wrong, tenant by tenant or in the sum.
    pub(crate) wrong: Vec<String>,
}

/// Verifies `tenants` (name in the fleet's directory, and whose data it holds); the facts of those in `counted` are compared
/// with the truths of the whole fleet if that is what ran.
pub(crate) fn check(
    place: &Arc<Place>,
    healthy: &[Tenant],
    extra: &[(TenantName, Tenant)],
    dataset: &Arc<Dataset>,
    refs: &Arc<FromMemory>,
) -> Result<Checked, String> {
    let sum = Arc::new(Mutex::new((Checked::default(), TenantFacts::default())));
    let queue = {
        let (place, dataset, refs, sum) = (Arc::clone(place), Arc::clone(dataset), Arc::clone(refs), Arc::clone(&sum));
        Queue::builder()
            .name("verify")
            .workers(cores())
            .capacity(4 * cores())
            .overflow(Overflow::Block)
            .max_attempts(1)
            .build(move |job: &Job<(TenantName, Tenant, bool)>| {
                let (name, tenant, counted) = &**job;
                let verdict = verify(&place.tenant(name), tenant, &dataset, &refs);
                let mut sum = sum.lock().unwrap_or_else(PoisonError::into_inner);
                match verdict {
                    Ok(facts) => {
                        sum.0.verified += 1;
                        if *counted {
                            sum.1 += facts;
                        }
                    }
                    Err(error) => sum.0.wrong.push(format!("{name}: {error}")),
                }
                Verdict::Done
            })
            .map_err(|error| error.to_string())?
    };
    let fleet = healthy.iter().map(|tenant| (TenantName::from(tenant.name.as_str()), tenant.clone(), true));
    let extra = extra.iter().map(|(name, tenant)| (Arc::clone(name), tenant.clone(), false));
    for job in fleet.chain(extra) {
        queue.send(job).map_err(|error| error.to_string())?;
    }
    queue.close_within(Duration::from_secs(300)).map_err(|left| left.to_string())?;
    let failed = queue.station().snapshot().failed;
    drop(queue);
    let mut sum = sum.lock().unwrap_or_else(PoisonError::into_inner);
    let facts = sum.1;
    let checked = &mut sum.0;
    if failed > 0 {
        checked.wrong.push(format!("{failed} verifications panicked"));
    }
    if healthy.len() == dataset.tenants().len() && checked.wrong.is_empty() {
        checked.wrong.extend(facts.differences(&FleetTruths::FULL));
    }
    Ok(std::mem::take(checked))
}

/// The content of files that must not change.
#[derive(Debug)]
pub(crate) struct Untouched {
    before: HashMap<TenantName, Vec<u8>>,
}

impl Untouched {
    pub(crate) fn read(place: &Place, names: &[&str]) -> Result<Self, String> {
        let mut before = HashMap::new();
        for name in names {
            let bytes = fs::read(place.tenant(name)).map_err(|error| format!("cannot read {name}: {error}"))?;
            before.insert(TenantName::from(*name), bytes);
        }
        Ok(Self { before })
    }

    /// The names of those that changed or are gone.
    pub(crate) fn changed(&self, place: &Place) -> Vec<String> {
        let same = |name: &str, bytes: &Vec<u8>| fs::read(place.tenant(name)).is_ok_and(|now| now == *bytes);
        self.before.iter().filter(|(name, bytes)| !same(name, bytes)).map(|(name, _)| name.to_string()).collect()
    }
}
