//! A build's artifacts in a registry, as an OCI artifact (OCI image specification 1.1, "Guidelines for Artifact Usage"): an index of one manifest, whose
//! layers are the files, each with its name as `org.opencontainers.image.title`, as oras does it.

mod pull;
mod push;

pub use pull::pull;
pub use push::push;

use layers::reference::Reference;
use layers::{Context, Error, Result};
use serde::Serialize;

use crate::source::http::{Client, Limits};
use crate::source::oci::{Registries, Repository};

/// What the artifact is.
pub const ARTIFACT: &str = "application/vnd.chasi-bod.image.v1";
/// Annotation of a layer: the file's name.
pub const TITLE: &str = "org.opencontainers.image.title";
/// Annotation of the manifest: the image's content id.
pub const CONTENT_ID: &str = "io.chasi-bod.content-id";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// What was pushed or pulled.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Published {
    /// Registry and repository.
    pub repository: String,
    /// Digest of the index.
    pub digest: String,
    /// Names of the files.
    pub files: Vec<String>,
    /// Bytes that went over the network.
    pub transferred: u64,
}

/// The repository of a reference, and the tag or digest.
fn repository(reference: &str, registries: &Registries) -> Result<(Repository, String)> {
    let text = reference.strip_prefix("oci://").unwrap_or(reference);
    let parsed: Reference = text.parse().map_err(|why: String| Error::input(why)).context(|| format!("reading the reference `{reference}`"))?;
    let wanted = parsed.wanted();
    Ok((Repository::open(&Client::new(Limits::default()), registries, &parsed)?, wanted))
}
