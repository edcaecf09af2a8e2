//! What a root carries for its cluster: charts, objects of the platform's API, and container images. Images: one folder per layer, manifests and configs by
//! digest, and an index of both. The builder writes it, the node's registry and snapshotter read it; nothing is unpacked or imported on the node.
//!
//! ```text
//! /usr/lib/chasi-bod/l/<id>/             a layer, unpacked; whiteouts in overlay form (0:0 devices, `trusted.overlay.opaque=y`)
//! /usr/lib/chasi-bod/images/index.json   `ImageIndex`
//! /usr/lib/chasi-bod/images/sha256/<hex> manifests, indices and configs; no layer blobs
//! /usr/lib/chasi-bod/registries.yaml     `Registries`: where the node asks for what it lacks
//! ```

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::chart::bundle::Form;
use crate::platform::{Component, VirtualCluster};
use crate::units::{Bytes, Digest};

/// Folder of the unpacked layers. Short, because the option text of an overlay mount of 120 of them must stay below a page.
pub const LAYERS: &str = "/usr/lib/chasi-bod/l";

/// The index's file.
pub const INDEX: &str = "/usr/lib/chasi-bod/images/index.json";

/// Folder of manifests, indices and configs, each named by its digest in hex.
pub const DOCUMENTS: &str = "/usr/lib/chasi-bod/images/sha256";

/// Port of the node's read-only registry on 127.0.0.1; below 1024, so that no ordinary user can take its place.
pub const REGISTRY_PORT: u16 = 955;

/// What a control plane installs: a `Seed`.
pub const SEED: &str = "/usr/lib/chasi-bod/seed.json";

/// Folder of the releases' charts.
pub const CHARTS: &str = "/usr/lib/chasi-bod/charts";

/// What a cluster gets when it is founded.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Seed {
    /// Releases in the order in which they are installed.
    pub releases: Vec<Release>,
    /// Virtual clusters.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub virtual_clusters: Vec<VirtualCluster>,
    /// Components, each with the version of its chart, which is one of the releases.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub components: Vec<Component>,
}

/// A release of a Helm chart.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Release {
    /// Its name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// The chart's own name.
    pub chart: String,
    /// The chart's version.
    pub version: String,
    /// The chart's file below `CHARTS`.
    pub file: String,
    /// Digest of that file.
    pub sha256: Digest,
    /// Its size.
    pub size: Bytes,
    /// What it is declared as.
    #[serde(default, skip_serializing_if = "Form::is_chart")]
    pub form: Form,
    /// Values over those of the chart.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub values: BTreeMap<String, serde_json::Value>,
    /// Whether the cluster gets it by itself; if not, the chart lies there for who uses it.
    #[serde(default = "crate::chart::yes", skip_serializing_if = "crate::chart::is_yes")]
    pub install: bool,
    /// Layer that asks for it.
    pub wanted_by: String,
}

impl Release {
    /// Digest of all that decides what is installed.
    pub fn spec(&self) -> Digest {
        let values = serde_json::to_string(&self.values).unwrap_or_default();
        Digest::of_parts([self.name.as_bytes(), self.namespace.as_bytes(), &self.sha256.0, values.as_bytes()])
    }
}

/// File of the registries that a node may ask.
pub const REGISTRIES: &str = "/usr/lib/chasi-bod/registries.yaml";

/// Where a node asks for images that its root lacks, in this order; by default nowhere.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Registries {
    /// URL of the writable registry inside the cluster, whose certificate is the cluster's; empty when there is none.
    pub cluster: String,
    /// Whether the registry of an image's name may be asked itself.
    pub upstream: bool,
}

/// All images of a root.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ImageIndex {
    /// Images in order of their names.
    pub images: Vec<Image>,
    /// Every chain of layers, by its chainID (OCI image specification, config.md); each chain's parents are there too.
    pub chains: BTreeMap<Digest, Chain>,
}

/// One image under its name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Image {
    /// Full reference with registry, repository and tag: `registry.k8s.io/pause:3.10.1`.
    pub name: String,
    /// Digest of the document that the name stands for: a manifest or an index, as its registry had it.
    pub digest: Digest,
    /// Its media type.
    pub media_type: String,
    /// Its size.
    pub size: Bytes,
    /// Digest of the manifest for this machine's platform; the same as `digest` unless that is an index.
    pub manifest: Digest,
    /// Digest of the image configuration.
    pub config: Digest,
    /// Why the image is there: chart, component or profile that asks for it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub wanted_by: Vec<String>,
}

/// One layer on top of its parents.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Chain {
    /// Digest of the layer's uncompressed tar.
    pub diff_id: Digest,
    /// chainID of the layers below; none for the lowest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<Digest>,
    /// Name of the layer's folder below `LAYERS`.
    pub layer: String,
}

/// chainIDs of a list of layers, from the lowest: the first is its diffID, each next one sha256 of the text `<chainID> <diffID>`.
pub fn chain_ids(diff_ids: &[Digest]) -> Vec<Digest> {
    let mut out: Vec<Digest> = Vec::with_capacity(diff_ids.len());
    for diff_id in diff_ids {
        let id = out.last().map_or(*diff_id, |parent| Digest::of(format!("{parent} {diff_id}").as_bytes()));
        out.push(id);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_are_named_as_the_specification_does() {
        let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
        assert_eq!(chain_ids(&[a]), [a]);
        assert_eq!(chain_ids(&[a, b])[1], Digest::of(format!("sha256:{} sha256:{}", a.hex(), b.hex()).as_bytes()));
        assert_eq!(chain_ids(&[a, b, a]).len(), 3);
    }
}
