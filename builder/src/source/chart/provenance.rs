//! Provenance of charts (<https://helm.sh/docs/topics/provenance/>): a clear-signed text that names the archive's digest. Whatever is missing or
//! does not fit is refused.

use layers::chart::PlannedChart;
use layers::units::Digest;
use layers::{Error, Result};

use crate::source::deb::Archive;
use crate::source::deb::release::Keyring;

/// Most bytes of a provenance file.
pub const LIMIT: u64 = 1 << 20;

/// The error for a chart that is not signed.
pub fn missing(chart: &str) -> Error {
    Error::input(format!("fetching the provenance of {chart}: the chart is not signed, but `keyring` asks for it"))
        .with_hint("leave out `keyring` to take it unsigned")
}

/// Checks a text for an archive of a name; returns the fingerprints of those who signed it.
pub fn check(site: &Archive<'_>, planned: &PlannedChart, text: &[u8], file: &str, sha256: Digest) -> Result<String> {
    let keys = Keyring::from_bytes(&planned.keyring, planned.spec.keyring.as_deref().unwrap_or_default())?;
    let (text, by) = keys.verify(text, site.now)?;
    // `files:` of the second document has `name: sha256:…`.
    let line = format!("{file}: {sha256}");
    if text.split_once("\n...\n").is_some_and(|(_, files)| files.lines().any(|l| l.trim() == line)) {
        return Ok(by.join(", "));
    }
    Err(Error::input(format!("what is signed does not name {line}")))
}
