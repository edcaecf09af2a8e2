//! Snapshots of virtual clusters, and their way back.

use std::fmt::{self, Display, Formatter};
use std::str::FromStr;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Failure;
use crate::{Error, Result};

/// A copy of everything that a virtual cluster's API holds.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "chasi-bod.io",
    version = "v1alpha1",
    kind = "Snapshot",
    category = "chasi-bod",
    status = "CopyStatus",
    derive = "PartialEq",
    doc = "A copy of everything that a virtual cluster's API holds.",
    printcolumn(name = "Cluster", type_ = "string", json_path = ".spec.virtualCluster"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Size", type_ = "string", json_path = ".status.size"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.failure.reason"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new("self.spec == oldSelf.spec").message("spec: a snapshot is made once; make another one")
)]
#[serde(rename_all = "camelCase")]
pub struct SnapshotSpec {
    /// The virtual cluster.
    #[schemars(length(min = 1, max = 40))]
    pub virtual_cluster: String,
    /// Where the copy goes.
    pub to: Place,
}

/// Puts a snapshot into a virtual cluster, whose objects it replaces.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "chasi-bod.io",
    version = "v1alpha1",
    kind = "Restore",
    category = "chasi-bod",
    status = "CopyStatus",
    derive = "PartialEq",
    doc = "Puts a snapshot into a virtual cluster, whose objects it replaces.",
    printcolumn(name = "Cluster", type_ = "string", json_path = ".spec.virtualCluster"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.failure.reason"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new("self.spec == oldSelf.spec").message("spec: a restore is done once; make another one")
)]
#[serde(rename_all = "camelCase")]
pub struct RestoreSpec {
    /// The virtual cluster.
    #[schemars(length(min = 1, max = 40))]
    pub virtual_cluster: String,
    /// Where the copy lies.
    pub from: Place,
}

/// Where a copy lies: one of its kinds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("[has(self.volumeClaim), has(self.oci), has(self.file)].filter(x, x).size() == 1")
    .message("name one of volumeClaim, oci and file"))]
pub struct Place {
    /// A volume claim in the virtual cluster's host namespace, and a path on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume_claim: Option<VolumePlace>,
    /// An artifact in a registry, `registry/repository:tag`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    pub oci: Option<String>,
    /// A file below the control plane node's `/var/lib/chasi-bod/snapshots`, without slashes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,252}$"))]
    pub file: Option<String>,
}

/// A path on a volume.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VolumePlace {
    /// Name of the claim.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Path of the file on it, without `.` and `..`.
    #[schemars(length(min = 1, max = 1024), regex(pattern = r"^[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*$"))]
    pub path: String,
}

/// As people write it: `file:NAME`, `claim:NAME/PATH` or `oci:REFERENCE`.
impl Display for Place {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match (&self.file, &self.volume_claim, &self.oci) {
            (Some(name), ..) => write!(f, "file:{name}"),
            (_, Some(claim), _) => write!(f, "claim:{}/{}", claim.name, claim.path),
            (.., Some(reference)) => write!(f, "oci:{reference}"),
            _ => f.write_str("nowhere"),
        }
    }
}

impl FromStr for Place {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wanted = || Error::input(format!("`{text}`: write file:NAME, claim:NAME/PATH or oci:REFERENCE"));
        let (kind, rest) = text.split_once(':').filter(|(_, rest)| !rest.is_empty()).ok_or_else(wanted)?;
        match kind {
            "file" => Ok(Self { file: Some(rest.into()), ..Self::default() }),
            "oci" => Ok(Self { oci: Some(rest.into()), ..Self::default() }),
            "claim" => {
                let (name, path) = rest.split_once('/').filter(|(name, path)| !name.is_empty() && !path.is_empty()).ok_or_else(wanted)?;
                Ok(Self { volume_claim: Some(VolumePlace { name: name.into(), path: path.into() }), ..Self::default() })
            }
            _ => Err(wanted()),
        }
    }
}

/// What a copy is at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum CopyPhase {
    /// It waits for the virtual cluster.
    #[default]
    Pending,
    /// It is being made.
    Running,
    /// It is there, whole.
    Done,
    /// It failed; it is tried again.
    Error,
}

/// What the controller says of a snapshot or restore.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CopyStatus {
    /// What it is at.
    #[serde(default)]
    pub phase: CopyPhase,
    /// Since when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Time>,
    /// The generation that all of this is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Size of the copy in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<Quantity>,
    /// Digest of the copy, `sha256:…`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// What failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
    /// `Complete`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read_as_they_are_written() {
        for text in ["file:biz-1.tar.gz", "claim:backups/2026/biz.tar.gz", "oci:registry.example:5000/biz:1"] {
            assert_eq!(text.parse::<Place>().unwrap().to_string(), text);
        }
        for text in ["biz", "file:", "claim:backups", "claim:/x", "s3:bucket/x"] {
            let said = text.parse::<Place>().unwrap_err().to_string();
            assert_eq!(said, format!("`{text}`: write file:NAME, claim:NAME/PATH or oci:REFERENCE"));
        }
    }
}
