//! The seed: charts locked, rendered, fetched and put into the root with the list of releases, virtual clusters and components that a control plane
//! installs.

mod images;
mod list;
mod render;

pub use images::lock_images;
pub use list::{ListedImage, Listing, listing};

use layers::chart::{LockedChart, PlannedChart};
use layers::lock::Lock;
use layers::plan::{Plan, PlannedComponent};
use layers::platform::{Component, VirtualCluster};
use layers::seed::{CHARTS, Release, SEED, Seed};
use layers::{Error, Result};

use crate::assemble::editor::{Editor, known};
use crate::source::chart;
use crate::source::deb::Archive;
use crate::source::oci::Registries;
use crate::store::Store;

/// Locks the plan's charts; one that the former lock has for the same declaration stays as it is.
pub fn lock(site: &Archive<'_>, registries: &Registries, plan: &Plan, before: Option<&Lock>) -> Result<Vec<LockedChart>> {
    plan.charts.iter().map(|planned| kept(planned, before).map_or_else(|| chart::lock(site, registries, planned), |old| Ok(old.clone()))).collect()
}

/// Whether a lock answers all that the plan asks of charts and their images.
pub fn answers(plan: &Plan, lock: &Lock) -> bool {
    images::answers(plan, lock)
        && plan.components_request() == lock.components
        && plan.charts.len() == lock.charts.len()
        && plan.charts.iter().zip(&lock.charts).all(|(planned, locked)| is_for(locked, planned))
}

fn kept<'a>(planned: &PlannedChart, lock: Option<&'a Lock>) -> Option<&'a LockedChart> {
    lock?.charts.iter().find(|old| is_for(old, planned))
}

fn is_for(locked: &LockedChart, planned: &PlannedChart) -> bool {
    locked.name == planned.spec.name && locked.request == planned.request()
}

/// Puts every chart that the lock names into the store.
pub fn fetch(site: &Archive<'_>, registries: &Registries, lock: &Lock) -> Result<()> {
    lock.charts.iter().try_for_each(|locked| chart::fetch(site, registries, locked))
}

/// The charts with their archives, in the order in which they are installed.
fn archives<'a>(store: &Store, plan: &'a Plan, lock: &'a Lock) -> Result<Vec<(&'a PlannedChart, &'a LockedChart, Vec<u8>)>> {
    let one = |planned: &'a PlannedChart| {
        let missing = || Error::internal(format!("reading release {}: it is not in the lock", planned.spec.name));
        let locked = kept(planned, Some(lock)).ok_or_else(missing)?;
        Ok((planned, locked, chart::bytes(store, planned, locked)?))
    };
    plan.charts.iter().map(one).collect()
}

/// The seed as the node reads it.
fn seed(plan: &Plan, lock: &Lock) -> Seed {
    let releases = plan.charts.iter().filter_map(|planned| Some(release(planned, kept(planned, Some(lock))?)));
    let clusters = plan.virtual_clusters.iter().map(|cluster| VirtualCluster::new(&cluster.name, cluster.spec.clone()));
    let components = plan.components.iter().map(|planned| component(planned, lock));
    Seed { releases: releases.collect(), virtual_clusters: clusters.collect(), components: components.collect() }
}

/// Puts the charts and the seed into the root.
pub fn put(editor: &mut Editor<'_, '_>, plan: &Plan, lock: &Lock) -> Result<()> {
    if plan.charts.is_empty() {
        return Ok(());
    }
    for (planned, locked, archive) in archives(editor.store, plan, lock)? {
        editor.put(known(&format!("{CHARTS}/{}", release(planned, locked).file))?, &archive, 0o644, (0, 0))?;
    }
    let text = serde_json::to_vec_pretty(&seed(plan, lock)).map_err(|e| Error::internal(format!("encoding the seed: {e}")))?;
    editor.put(known(SEED)?, &text, 0o644, (0, 0))
}

fn release(planned: &PlannedChart, locked: &LockedChart) -> Release {
    Release {
        name: planned.spec.name.clone(),
        namespace: planned.spec.namespace.clone(),
        chart: locked.chart.clone(),
        version: locked.version.clone(),
        file: format!("{}-{}.tgz", planned.spec.name, locked.version),
        sha256: locked.sha256,
        size: locked.size,
        form: planned.spec.form(),
        values: planned.spec.values.clone(),
        install: planned.spec.install,
        wanted_by: planned.layer.clone(),
    }
}

/// The object with the locked version of its chart.
fn component(planned: &PlannedComponent, lock: &Lock) -> Component {
    let mut object = Component::new(&planned.component.name, planned.component.spec.clone());
    let locked = lock.charts.iter().find(|locked| locked.name == planned.chart());
    if let (Some(chart), Some(locked)) = (&mut object.spec.source.chart, locked) {
        chart.version.clone_from(&locked.version);
    }
    object
}

#[cfg(test)]
mod tests;
