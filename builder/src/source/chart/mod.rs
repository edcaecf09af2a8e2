//! Charts: a folder is packed by us, the same bytes on every machine; the others are fetched, checked and looked into.

mod module;
mod provenance;
mod registry;
mod repository;

use std::fs;

use layers::chart::{LockedChart, Metadata, Place, PlannedChart, archive};
use layers::units::{Bytes, Digest};
use layers::{Context, Error, Result};

use super::deb::fetch::{Got, obtain};
use super::deb::{Archive, Offline, Want};
use super::oci::Registries;
use crate::store::Store;

/// Finds what a declaration stands for; a chart that is no folder goes into the store.
pub fn lock(site: &Archive<'_>, registries: &Registries, planned: &PlannedChart) -> Result<LockedChart> {
    let context = || format!("locking release {} of layer `{}`", planned.spec.name, planned.layer);
    match planned.spec.place() {
        Place::Folder(_) => folder(planned),
        _ if site.offline == Offline::Required => Err(Error::environment("that needs the network")),
        Place::Repository { url, name } => repository::lock(site, planned, url, name),
        Place::Registry(place) => registry::lock(site, registries, planned, place),
        Place::Module { module, folder } => module::lock(site, planned, module, folder),
    }
    .context(context)
}

fn folder(planned: &PlannedChart) -> Result<LockedChart> {
    let (chart, archive) = archive::pack(&planned.files)?;
    Ok(locked(planned, chart, &archive, Vec::new(), None))
}

fn locked(planned: &PlannedChart, chart: Metadata, archive: &[u8], from: Vec<String>, signed_by: Option<String>) -> LockedChart {
    LockedChart {
        name: planned.spec.name.clone(),
        request: planned.request(),
        chart: chart.name,
        version: chart.version,
        sha256: Digest::of(archive),
        size: Bytes(archive.len() as u64),
        from,
        signed_by,
    }
}

/// Refuses another chart than the one asked for.
fn check_identity(chart: &Metadata, name: &str, version: &str) -> Result<()> {
    let plain = |text: &str| text.trim_start_matches('v').to_string();
    if chart.name == name && plain(&chart.version) == plain(version) {
        return Ok(());
    }
    Err(Error::input(format!("it is chart {} {}, not {name} {version}", chart.name, chart.version)))
}

/// Puts a locked chart into the store; a folder needs none.
pub fn fetch(site: &Archive<'_>, registries: &Registries, locked: &LockedChart) -> Result<()> {
    if locked.from.is_empty() || site.store.blob(&locked.sha256).exists() {
        return Ok(());
    }
    let fetching = format!("fetching chart {} of release {}", locked.chart, locked.name);
    if site.offline == Offline::Required {
        let hint = "build once with network, or bring the store with `chasi-bod cache export`";
        return Err(Error::environment(format!("building offline: the store lacks the chart of release {}", locked.name)).with_hint(hint));
    }
    if let Some(address) = locked.from.iter().find(|address| address.starts_with("oci://")) {
        return registry::fetch(site, registries, locked, address).context(|| fetching);
    }
    if let Some(address) = locked.from.iter().find(|address| address.starts_with(module::SCHEME)) {
        return module::fetch(site, locked, address).context(|| fetching);
    }
    let want = Want { label: format!("chart {}", locked.chart), sha256: locked.sha256, size: locked.size.0, urls: locked.from.clone() };
    match obtain(site, &want).context(|| fetching.clone())? {
        Got::Present => Ok(()),
        Got::Missing => Err(Error::input(format!("{fetching}: no address has it: {}", locked.from.join(", ")))),
        Got::Wrong(got) => Err(Error::input(format!("{fetching}: other bytes came, twice: expected {}, got {got}", locked.sha256))),
    }
}

/// The archive of a locked chart.
pub fn bytes(store: &Store, planned: &PlannedChart, locked: &LockedChart) -> Result<Vec<u8>> {
    let Place::Folder(_) = planned.spec.place() else {
        let path = store.blob(&locked.sha256);
        return fs::read(&path).context(|| format!("reading chart {} from {}", locked.chart, path.display()));
    };
    let (chart, archive) = archive::pack(&planned.files)?;
    let got = Digest::of(&archive);
    if got == locked.sha256 {
        return Ok(archive);
    }
    Err(Error::input(format!("packing chart {}: the lock has {}, but it became {got}", chart.name, locked.sha256))
        .with_hint("make the lock anew with `chasi-bod lock PROFILE`"))
}
