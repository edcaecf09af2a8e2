//! Backups in a registry: one repository, a tag for each.

use std::fs::File;
use std::path::Path;

use layers::reference::Reference;
use layers::units::Digest;
use layers::{Context as _, Error, Result};

use super::folder::Backup;
use crate::config;
use crate::host::Host;
use crate::images::artifact::{self, Artifact};

/// What a backup is to a registry.
const BACKUP: Artifact =
    Artifact { what: "backup", kind: "application/vnd.chasi-bod.backup", part: "application/vnd.chasi-bod.backup.v1.tar+zstd+age" };
/// How a backup in a registry is named on the command line.
pub const PREFIX: &str = "oci:";

/// Pushes a backup to where the settings say; the reference, if they do.
pub fn push(host: &Host, backup: &Backup) -> Result<Option<Reference>> {
    let Some(repository) = config::published(host).and_then(|settings| settings.backup_to).map(|to| to.value) else { return Ok(None) };
    let reference = reference(&format!("{repository}:{}", backup.name))?;
    let pushing = || format!("pushing the backup to {reference}");
    let file = File::open(&backup.path).context(pushing)?;
    let digest = Digest::of_reader(&file).context(pushing)?;
    artifact::push(host, &reference, &BACKUP, &file, backup.size, digest).context(pushing)?;
    Ok(Some(reference))
}

/// Pulls one into a file, checked by its digest.
pub fn pull(host: &Host, text: &str, to: &Path) -> Result<()> {
    let pulling = || format!("writing {}", to.display());
    let mut file = File::options().read(true).write(true).create_new(true).open(to).context(pulling)?;
    artifact::pull(host, &reference(text)?, &BACKUP, &mut file)
}

fn reference(text: &str) -> Result<Reference> {
    Reference::with_tag(text).ok_or_else(|| Error::input(format!("`{text}` is no reference such as registry.example/site/backups:NAME")))
}
