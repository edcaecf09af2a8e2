//! One file in a registry as an artifact (OCI image specification 1.1, "Guidelines for Artifact Usage"): snapshots of virtual clusters, backups.

use std::fs::File;
use std::io::{Cursor, Read, Seek as _};

use layers::image::Descriptor;
use layers::reference::Reference;
use layers::units::{Bytes, Digest};
use layers::{Context as _, Error, Fault, Result};
use serde_json::json;

use super::config::{CLUSTER_CA, NODE_CERTIFICATE, registries};
use crate::host::Host;
use crate::remote::http::{Body, Client, Limits, Open, Outcome, Private};
use crate::remote::oci::document::descriptor;
use crate::remote::oci::{Document, Kind, Registries, Repository};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const EMPTY: &str = "application/vnd.oci.empty.v1+json";

/// What a file is to a registry.
#[derive(Debug)]
pub struct Artifact {
    /// For people.
    pub what: &'static str,
    /// Type of the artifact.
    pub kind: &'static str,
    /// Media type of the file.
    pub part: &'static str,
}

/// Pushes a file of this size and digest under a tag.
pub fn push(host: &Host, reference: &Reference, artifact: &Artifact, file: &File, size: u64, digest: Digest) -> Result<()> {
    let repository = repository(host, reference)?;
    let (config, layer) = (part(EMPTY, Digest::of(b"{}"), 2), part(artifact.part, digest, size));
    let empty = || Ok(Box::new(Cursor::new(b"{}")) as Box<dyn Read>);
    let reading = || format!("reading the {}", artifact.what);
    let whole = || {
        let mut file = file.try_clone().fault(Fault::Environment, reading)?;
        file.rewind().fault(Fault::Environment, reading)?;
        Ok(Box::new(file) as Box<dyn Read>)
    };
    let parts: [(&Descriptor, &Open<'_>); 2] = [(&config, &empty), (&layer, &whole)];
    for (of, open) in parts {
        if !repository.has_blob(of)? {
            repository.put_blob(of, &Body { media_type: "application/octet-stream", size: of.size.0, open })?;
        }
    }
    let entry = |of: &Descriptor| json!({"mediaType": of.media_type, "digest": of.digest.to_string(), "size": of.size.0});
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST, "artifactType": artifact.kind, "config": entry(&config), "layers": [entry(&layer)],
    });
    repository.put_manifest(&reference.wanted(), &Document::read(manifest.to_string().into_bytes(), MANIFEST)?)
}

/// Pulls one into a file.
pub fn pull(host: &Host, reference: &Reference, artifact: &Artifact, file: &mut File) -> Result<()> {
    let repository = repository(host, reference)?;
    let pulling = || format!("pulling {reference}");
    let Artifact { what, part, .. } = artifact;
    let Kind::Manifest(manifest) = repository.manifest(&reference.wanted())?.kind else {
        return Err(Error::input(format!("{}: it is an index, no {what}", pulling())));
    };
    let layer = manifest.layers().iter().find(|layer| layer.media_type().to_string() == *part);
    let layer = descriptor(layer.ok_or_else(|| Error::input(format!("{}: it is no {what}: it has no part {part}", pulling())))?)?;
    match repository.client().download(&repository.blob_url(&layer.digest), file, layer.size.0, &|_| ()).context(pulling)? {
        Outcome::Whole => {}
        Outcome::TooLong => return Err(Error::environment(format!("{}: it has more than {} bytes", pulling(), layer.size.0))),
        Outcome::Missing => return Err(Error::environment(format!("{}: the registry does not have its part {}", pulling(), layer.digest))),
    }
    file.rewind().fault(Fault::Environment, pulling)?;
    let found = Digest::of_reader(&mut *file).fault(Fault::Environment, pulling)?;
    if found != layer.digest {
        return Err(Error::environment(format!("{}: its part's digest is {found}, not {}", pulling(), layer.digest)));
    }
    Ok(())
}

fn part(media_type: &str, digest: Digest, size: u64) -> Descriptor {
    Descriptor { media_type: media_type.into(), digest, size: Bytes(size) }
}

/// The repository; the registry inside the cluster knows us by the node's certificate, others by docker's configuration.
fn repository(host: &Host, reference: &Reference) -> Result<Repository> {
    let limits = Limits::default();
    let inside = registries(host)?.cluster;
    let client = if inside.strip_prefix("https://").is_some_and(|place| place.trim_end_matches('/') == reference.registry) {
        let read = |path: &str| host.read(path)?.ok_or_else(|| Error::environment(format!("reading /{path}: it is not there")));
        let node = read(NODE_CERTIFICATE)?;
        Client::private(limits, &Private { authorities: read(CLUSTER_CA)?, identity: Some((node.clone(), node)), at: None })?
    } else {
        Client::new(limits)
    };
    Repository::open(&client, &Registries::find(&[])?, reference)
}
