//! The seed: charts locked, fetched and put into the root with the list of releases that a control plane installs.

use layers::chart::{LockedChart, PlannedChart, Place};
use layers::lock::Lock;
use layers::plan::Plan;
use layers::seed::{CHARTS, Release, SEED, Seed};
use layers::{Context, Error, Result};

use crate::assemble::editor::{Editor, known};
use crate::source::chart;

/// Locks the plan's charts; one that the former lock has for the same declaration stays as it is.
pub fn lock(plan: &Plan, before: Option<&Lock>) -> Result<Vec<LockedChart>> {
    plan.charts.iter().map(|planned| kept(planned, before).map_or_else(|| lock_one(planned), |old| Ok(old.clone()))).collect()
}

fn lock_one(planned: &PlannedChart) -> Result<LockedChart> {
    chart::lock_folder(planned).context(|| format!("locking release {} of layer `{}`", planned.spec.name, planned.layer))
}

/// Whether a lock answers all that the plan asks of charts.
pub fn answers(plan: &Plan, lock: &Lock) -> bool {
    plan.charts.len() == lock.charts.len() && plan.charts.iter().zip(&lock.charts).all(|(planned, locked)| is_for(locked, planned))
}

fn kept<'a>(planned: &PlannedChart, lock: Option<&'a Lock>) -> Option<&'a LockedChart> {
    lock?.charts.iter().find(|old| is_for(old, planned))
}

fn is_for(locked: &LockedChart, planned: &PlannedChart) -> bool {
    locked.name == planned.spec.name && locked.request == planned.request()
}

/// The charts with their archives, in the order in which they are installed.
pub fn archives<'a>(plan: &'a Plan, lock: &'a Lock) -> Result<Vec<(&'a PlannedChart, &'a LockedChart, Vec<u8>)>> {
    let one = |planned: &'a PlannedChart| {
        let name = &planned.spec.name;
        let locked = kept(planned, Some(lock)).ok_or_else(|| Error::internal(format!("reading release {name}: it is not in the lock")))?;
        let archive = match planned.spec.place() {
            Place::Folder(_) => chart::packed(planned, locked)?,
            _ => return Err(Error::internal(format!("reading release {name}: its kind of source is not known"))),
        };
        Ok((planned, locked, archive))
    };
    plan.charts.iter().map(one).collect()
}

/// Puts the charts and the list of releases into the root.
pub fn put(editor: &mut Editor<'_, '_>, plan: &Plan, lock: &Lock) -> Result<()> {
    if plan.charts.is_empty() {
        return Ok(());
    }
    let mut seed = Seed::default();
    for (planned, locked, archive) in archives(plan, lock)? {
        let release = release(planned, locked);
        editor.put(known(&format!("{CHARTS}/{}", release.file))?, &archive, 0o644, (0, 0))?;
        seed.releases.push(release);
    }
    let text = serde_json::to_vec_pretty(&seed).map_err(|e| Error::internal(format!("encoding the seed: {e}")))?;
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
        values: planned.spec.values.clone(),
        wanted_by: planned.layer.clone(),
    }
}
