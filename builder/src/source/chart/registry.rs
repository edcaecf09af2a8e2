//! Charts of OCI registries (<https://helm.sh/docs/topics/registries/>): an artifact whose one content layer is the archive; a further one may be its
//! provenance.

use layers::chart::{LockedChart, PlannedChart, archive};
use layers::image::Descriptor;
use layers::reference::Reference;
use layers::units::{Bytes, Digest};
use layers::{Context, Error, Result};

use super::{locked, provenance};
use crate::source::deb::Archive;
use crate::source::oci::{Kind, Registries, Repository};

const CONTENT: &str = "application/vnd.cncf.helm.chart.content.v1.tar+gzip";
const PROVENANCE: &str = "application/vnd.cncf.helm.chart.provenance.v1.prov";

/// Finds a version of a chart, fetches it and checks content and, where a keyring is given, who signed it.
pub fn lock(site: &Archive<'_>, registries: &Registries, planned: &PlannedChart, place: &str) -> Result<LockedChart> {
    let version = planned.spec.version.as_deref().unwrap_or_default();
    // A tag cannot have the `+` of a version; helm writes `_`.
    let address = format!("oci://{place}:{}", version.replace('+', "_"));
    let artifact = Artifact::open(site, registries, &address)?;
    let bytes = artifact.fetch(CONTENT)?.ok_or_else(|| Error::input(format!("reading {address}: it is no chart")))?;
    let chart = archive::look_into(&bytes).context(|| format!("looking into {address}"))?;
    let name = place.rsplit('/').next().unwrap_or(place);
    super::check_identity(&chart, name, version).context(|| format!("looking into {address}"))?;
    let signed_by = match planned.spec.keyring {
        None => None,
        Some(_) => {
            let text = artifact.fetch(PROVENANCE)?.ok_or_else(|| provenance::missing(&address))?;
            // Registries keep the archive's name nowhere: it is the one that helm gives it.
            let file = format!("{}-{}.tgz", chart.name, chart.version);
            Some(provenance::check(site, planned, &text, &file, Digest::of(&bytes)).context(|| format!("checking the provenance of {address}"))?)
        }
    };
    site.store.put_blob(&bytes)?;
    Ok(locked(planned, chart, &bytes, vec![address], signed_by))
}

/// Puts the archive of a locked chart into the store.
pub fn fetch(site: &Archive<'_>, registries: &Registries, locked: &LockedChart, address: &str) -> Result<()> {
    let reference = reference(address)?;
    let repository = Repository::open(&site.http, registries, &reference)?;
    let bytes = repository.blob(&Descriptor { media_type: CONTENT.into(), digest: locked.sha256, size: locked.size })?;
    site.store.put_blob(&bytes).map(drop)
}

fn reference(address: &str) -> Result<Reference> {
    address.trim_start_matches("oci://").parse().map_err(|what: String| Error::input(what))
}

/// The parts of a manifest.
struct Artifact {
    repository: Repository,
    layers: Vec<Descriptor>,
}

impl Artifact {
    fn open(site: &Archive<'_>, registries: &Registries, address: &str) -> Result<Self> {
        let reference = reference(address)?;
        let repository = Repository::open(&site.http, registries, &reference)?;
        let document = repository.manifest(&reference.wanted())?;
        let Kind::Manifest(manifest) = &document.kind else {
            return Err(Error::input(format!("reading {address}: it is an index, not a chart")));
        };
        let descriptor = |layer: &oci_spec::image::Descriptor| {
            let digest =
                layer.digest().to_string().parse().map_err(|_| Error::input(format!("reading {address}: {} is no sha256", layer.digest())))?;
            Ok(Descriptor { media_type: layer.media_type().to_string(), digest, size: Bytes(layer.size()) })
        };
        let layers = manifest.layers().iter().map(descriptor).collect::<Result<_>>()?;
        Ok(Self { repository, layers })
    }

    /// The part of a type, checked by digest and size; nothing when there is none.
    fn fetch(&self, media_type: &str) -> Result<Option<Vec<u8>>> {
        let Some(part) = self.layers.iter().find(|layer| layer.media_type == media_type) else { return Ok(None) };
        if part.size.0 > archive::LIMIT {
            return Err(Error::input(format!(
                "reading {} of {}: {} bytes are more than a chart may have",
                part.digest,
                self.repository.name(),
                part.size.0
            )));
        }
        self.repository.blob(part).map(Some)
    }
}
