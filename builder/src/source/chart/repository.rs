//! Charts of a repository: `index.yaml`, the archive, and its provenance (<https://helm.sh/docs/topics/chart_repository/>,
//! <https://helm.sh/docs/topics/provenance/>).

use layers::chart::{LockedChart, PlannedChart, archive, find_in_index};
use layers::units::Digest;
use layers::{Context, Error, Fault, Result};

use super::{check_identity, locked, provenance};
use crate::source::deb::Archive;

/// Most bytes of an index.
const INDEX_LIMIT: u64 = 64 << 20;

/// Finds a version of a chart, fetches it and checks digest, content and, where a keyring is given, who signed it.
pub fn lock(site: &Archive<'_>, planned: &PlannedChart, base: &str, name: &str) -> Result<LockedChart> {
    let version = planned.spec.version.as_deref().unwrap_or_default();
    let base = base.trim_end_matches('/');
    let index = format!("{base}/index.yaml");
    let text = get(site, &index, INDEX_LIMIT)?;
    let text = String::from_utf8(text).fault(Fault::Input, || format!("reading {index}"))?;
    let entry = find_in_index(&text, name, version).context(|| format!("reading {index}"))?;
    let urls: Vec<_> = entry.urls.iter().map(|url| if url.contains("://") { url.clone() } else { format!("{base}/{url}") }).collect();
    let url = urls.first().ok_or_else(|| Error::input(format!("reading {index}: chart {name} {version} has no address")))?;
    let bytes = get(site, url, archive::LIMIT)?;
    let got = Digest::of(&bytes);
    check_digest(entry.digest.as_deref(), got).context(|| format!("fetching {url}"))?;
    let chart = archive::look_into(&bytes).context(|| format!("looking into {url}"))?;
    check_identity(&chart, name, version).context(|| format!("looking into {url}"))?;
    let signed_by = if planned.spec.keyring.is_some() { Some(signed(site, planned, url, got)?) } else { None };
    site.store.put_blob(&bytes)?;
    Ok(locked(planned, chart, &bytes, urls, signed_by))
}

fn get(site: &Archive<'_>, url: &str, limit: u64) -> Result<Vec<u8>> {
    let found = site.http.get(url, limit).context(|| format!("fetching {url}"))?;
    found.ok_or_else(|| Error::input(format!("fetching {url}: there is no such file")))
}

fn check_digest(wanted: Option<&str>, got: Digest) -> Result<()> {
    let Some(wanted) = wanted else { return Ok(()) };
    let wanted: Digest = wanted.parse().map_err(|_| Error::input(format!("the index has no sha256 digest but `{wanted}`")))?;
    if wanted == got { Ok(()) } else { Err(Error::input(format!("other bytes came: the index has {wanted}, got {got}"))) }
}

/// Who signed the archive at an address.
fn signed(site: &Archive<'_>, planned: &PlannedChart, url: &str, sha256: Digest) -> Result<String> {
    let place = format!("{url}.prov");
    let found = site.http.get(&place, provenance::LIMIT).context(|| format!("fetching {place}"))?;
    let text = found.ok_or_else(|| provenance::missing(url))?;
    provenance::check(site, planned, &text, url.rsplit('/').next().unwrap_or(url), sha256).context(|| format!("checking {place}"))
}
