//! Images and charts into the registry inside the cluster; what is there already is left alone.

use layers::image::Descriptor;
use layers::reference::Reference;
use layers::units::{Bytes, Digest};
use layers::{Context as _, Fault, Result};
use serde_json::json;

use super::bundle::Bundle;
use super::target::Target;
use crate::remote::http::Body;
use crate::remote::oci::{Content, Document, Platforms};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// Parts of a chart (<https://helm.sh/docs/topics/registries/>).
const CHART: &str = "application/vnd.cncf.helm.config.v1+json";
const ARCHIVE: &str = "application/vnd.cncf.helm.chart.content.v1.tar+gzip";

/// What pushing came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pushed {
    /// All was there.
    Nothing,
    /// Bytes that were sent.
    New(Bytes),
    /// The same, and what the tag stood for before.
    Instead(Bytes, Digest),
}

/// Pushes an image for an architecture under the repository that nodes ask for; by a digest, all of its platforms, as an index cannot lack any.
pub fn image(target: &Target, image: &Reference, content: &Content, architecture: &str) -> Result<Pushed> {
    let pushing = || format!("pushing image {image} from {} to the cluster's registry", content.place);
    let push = || -> Result<_> {
        let repository = target.repository(&image.repository)?;
        let (platforms, wanted) = (if image.digest.is_some() { Platforms::All } else { Platforms::One(architecture) }, image.wanted());
        let before = repository.find(&wanted)?;
        let root = content.chosen(platforms)?;
        if before == Some(root.descriptor.digest) {
            return Ok(Pushed::Nothing);
        }
        let sent = Bytes(content.copy_to(&repository, &root, &wanted, platforms)?);
        Ok(before.map_or(Pushed::New(sent), |before| Pushed::Instead(sent, before)))
    };
    push().context(pushing)
}

/// Pushes a chart and gives the reference by which helm fetches exactly it. Its tag is not the version alone: that one may come to stand for other bytes.
pub fn chart(target: &Target, app: &str, bundle: &Bundle) -> Result<(String, Pushed)> {
    let (name, version) = (&bundle.metadata.name, &bundle.metadata.version);
    let (path, document, parts) = packed(app, bundle)?;
    let digest = document.descriptor.digest;
    let address = format!("oci://{}/{path}@{digest}", target.address);
    let push = || -> Result<_> {
        let repository = target.repository(&path)?;
        if repository.find(&digest.to_string())?.is_some() {
            return Ok(Pushed::Nothing);
        }
        let mut sent = document.descriptor.size.0;
        for (of, bytes) in &parts {
            if !repository.has_blob(of)? {
                let open = || Ok(Box::new(std::io::Cursor::new(bytes.clone())) as Box<dyn std::io::Read>);
                repository.put_blob(of, &Body { media_type: "application/octet-stream", size: of.size.0, open: &open })?;
                sent += of.size.0;
            }
        }
        // A tag cannot have the `+` of a version; helm writes `_`.
        let tag = format!("{}_{}", version.replace('+', "_"), &digest.hex()[..12]);
        repository.put_manifest(&tag, &document)?;
        Ok(Pushed::New(Bytes(sent)))
    };
    Ok((address, push().context(|| format!("pushing chart {name} {version} to the cluster's registry"))?))
}

/// The reference of a chart that was not pushed.
pub fn address(target: &Target, app: &str, bundle: &Bundle) -> Result<String> {
    let (path, document, _) = packed(app, bundle)?;
    Ok(format!("oci://{}/{path}@{}", target.address, document.descriptor.digest))
}

/// The repository of a chart, its manifest, and that one's parts.
type Packed = (String, Document, Vec<(Descriptor, Vec<u8>)>);

fn packed(app: &str, bundle: &Bundle) -> Result<Packed> {
    let description = serde_json::to_vec(&bundle.description()?).fault(Fault::Internal, || "encoding Chart.yaml".into())?;
    let part = |media_type: &str, bytes: Vec<u8>| {
        let descriptor = Descriptor { media_type: media_type.into(), digest: Digest::of(&bytes), size: Bytes(bytes.len() as u64) };
        (descriptor, bytes)
    };
    let parts = vec![part(CHART, description), part(ARCHIVE, bundle.archive.clone())];
    let entry = |of: &Descriptor| json!({"mediaType": of.media_type, "digest": of.digest.to_string(), "size": of.size.0});
    let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": entry(&parts[0].0), "layers": [entry(&parts[1].0)]});
    // Repositories are in small letters, which names of charts need not be.
    let path = format!("apps/{app}/{}", bundle.metadata.name.to_lowercase());
    Ok((path, Document::read(manifest.to_string().into_bytes(), MANIFEST)?, parts))
}
